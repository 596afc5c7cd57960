//! Which GCC compiles a package: the toolchain's own, or one that Spack builds with it first.
//!
//! A GCC that Spack builds is an environment of its own, made in the same store before Slurm's ([`BuildPlan::compiler`]).
//! Slurm's environment then knows it as a program at a fixed place, whose path holds the GCC's own hash: whatever decides that
//! GCC decides the hashes of everything that it has compiled. docs/decisions/0016-compilers.md says why.

use super::{BuildPlan, Compression, Identity, PlanError, ToolchainPlan, Variant, choice, digest_of};
use crate::catalog::{Catalog, CatalogError, Compiler, SlurmRelease, Toolchain};
use serde::Serialize;

/// What of GCC is built. binutils come with it, because an older assembler does not know every instruction of a newer GCC, and
/// because a compiler that is unpacked somewhere needs them there. `strip` keeps the compilers' own debug information, which
/// is three times their size, out of every binary cache.
const SPEC: &str = "+binutils+strip languages:='c,c++,fortran'";

/// A GCC that Spack builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CompilerPlan {
    /// `13.4.0`
    pub version: String,
    /// What Spack is asked for.
    pub spec: String,
    /// SHA-256 of our own recipes without any release of Slurm: one compiler is chosen for all of them.
    pub own_repo_digest: String,
}

/// A GCC that is to be built, before it is known by which recipes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// `13.4.0`
    pub version: String,
    /// What Spack is asked for.
    pub spec: String,
}

impl Chosen {
    /// With our own recipes of this digest.
    pub fn by(self, own_repo_digest: String) -> CompilerPlan {
        CompilerPlan { version: self.version, spec: self.spec, own_repo_digest }
    }
}

/// What `asked` means on a toolchain. `None` is the toolchain's own GCC, by whichever name.
pub fn choose(
    asked: &str,
    bootstrap: bool,
    catalog: &Catalog,
    toolchain: &Toolchain,
) -> Result<Option<Chosen>, PlanError> {
    if asked == "system" || asked == toolchain.gcc {
        if !bootstrap {
            return Err(PlanError::Conflict(format!(
                "--no-bootstrap says how GCC is built, and `{asked}` is the GCC of toolchain {}, which is not built",
                toolchain.name
            )));
        }
        return Ok(None);
    }
    let known = compiler(asked, catalog)?;
    let without = if bootstrap { "" } else { "~bootstrap" };
    let spec = choice::laid_over(&[SPEC, without, &known.spec])?;
    let (version, spec) = (known.version.clone(), format!("gcc@={} {spec}", known.version));
    Ok(Some(Chosen { version, spec }))
}

/// The catalog's entry.
fn compiler<'c>(asked: &str, catalog: &'c Catalog) -> Result<&'c Compiler, CatalogError> {
    catalog.compiler.iter().find(|known| known.version == asked).ok_or_else(|| CatalogError::Unknown {
        what: "compiler version",
        asked: asked.to_owned(),
        known: catalog.compilers(),
    })
}

/// The release of the builtin recipes where nobody names one: that of the catalog, or one that has the GCC that is asked for.
/// `asked` on a toolchain whose own GCC it is not: else nothing is built.
pub fn recipes<'c>(asked: &str, toolchain: &Toolchain, catalog: &'c Catalog) -> &'c str {
    let known = catalog.compiler.iter().find(|known| known.version == asked && toolchain.gcc != asked);
    known.and_then(|known| known.recipes.as_deref()).unwrap_or(&catalog.spack_packages.reference)
}

/// Refuses a GCC that the catalog's release of the builtin recipes does not have. Of other recipes Spack itself will say.
pub fn check_recipes(chosen: Option<&Chosen>, reference: &str, catalog: &Catalog) -> Result<(), PlanError> {
    let Some(chosen) = chosen else { return Ok(()) };
    match &compiler(&chosen.version, catalog)?.recipes {
        Some(needed) if reference == catalog.spack_packages.reference => Err(PlanError::NotYet {
            what: format!("--compiler-version {}", chosen.version),
            why: format!(
                "the recipes {reference}, which were asked for, do not have it; without --spack-packages-reference it is {needed}"
            ),
        }),
        _ => Ok(()),
    }
}

impl BuildPlan {
    /// The plan of the GCC that must be there before this one's packages are built; `None` when it is the toolchain's own.
    pub fn compiler(&self) -> Result<Option<Self>, PlanError> {
        let Some(gcc) = &self.identity.gcc else { return Ok(None) };
        // What is said about Slurm decides nothing about a compiler.
        let identity = Identity {
            slurm_version: String::new(),
            release: SlurmRelease::none(),
            own_repo_digest: gcc.own_repo_digest.clone(),
            variant: Variant::Default,
            compiler: "system".into(),
            gcc: None,
            spec: gcc.spec.clone(),
            roots: Vec::new(),
            features: Vec::new(),
            rules_digest: String::new(),
            // How its package is written decides nothing about it either.
            epoch: 0,
            compression: Compression::Gzip,
            toolchain: ToolchainPlan { image: String::new(), ..self.identity.toolchain.clone() },
            ..self.identity.clone()
        };
        let digest = digest_of(&identity)?;
        Ok(Some(Self { digest: digest.clone(), environment: digest, identity, execution: self.execution.clone() }))
    }

    /// The plan of that GCC's own package, pruned and relocated by the rules of this digest: the same environment, and what
    /// decides the archive's bytes.
    pub fn compiler_package(&self, rules_digest: &str) -> Result<Option<Self>, PlanError> {
        let (Some(gcc), Some(plan)) = (&self.identity.gcc, self.compiler()?) else { return Ok(None) };
        let identity = Identity {
            compiler: gcc.version.clone(),
            rules_digest: rules_digest.to_owned(),
            epoch: self.identity.epoch,
            compression: self.identity.compression,
            toolchain: self.identity.toolchain.clone(),
            ..plan.identity
        };
        Ok(Some(Self { digest: digest_of(&identity)?, identity, ..plan }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(asked: &str, bootstrap: bool, toolchain: &str) -> Result<Option<Chosen>, String> {
        let catalog = Catalog::embedded().unwrap();
        choose(asked, bootstrap, &catalog, &catalog.toolchain(toolchain).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_toolchains_own_gcc_is_not_built_by_whichever_name() {
        assert_eq!(chosen("system", true, "noble"), Ok(None));
        assert_eq!(chosen("11.5.0", true, "rockylinux9"), Ok(None));
        let built = chosen("11.5.0", true, "noble").unwrap().unwrap();
        assert_eq!(built.spec, "gcc@=11.5.0 +binutils+strip languages:='c,c++,fortran'");
        let quick = chosen("11.5.0", false, "noble").unwrap().unwrap();
        assert_eq!(quick.spec, "gcc@=11.5.0 +binutils+strip languages:='c,c++,fortran' ~bootstrap");
        assert!(chosen("system", false, "noble").unwrap_err().contains("--no-bootstrap"));
    }

    #[test]
    fn a_version_that_is_not_there_is_answered_with_those_that_are() {
        let error = chosen("4.8.5", true, "noble").unwrap_err();
        assert!(error.contains("known: system, 15.2.0, 14.2.0"), "{error}");
    }

    #[test]
    fn recipes_that_lack_it_are_refused_and_others_are_left_to_spack() {
        let catalog = Catalog::embedded().unwrap();
        let new = chosen("15.2.0", true, "noble").unwrap();
        let error = check_recipes(new.as_ref(), &catalog.spack_packages.reference, &catalog).unwrap_err().to_string();
        assert!(error.contains("it is v2025.11.0"), "{error}");
        let mut toolchain = catalog.toolchain("noble").unwrap();
        let of =
            |toolchain: &Toolchain| ["15.2.0", "14.2.0", "system"].map(|asked| recipes(asked, toolchain, &catalog));
        assert_eq!(of(&toolchain), ["v2025.11.0", "v2025.07.0", "v2025.07.0"]);
        toolchain.gcc = "15.2.0".into();
        assert_eq!(of(&toolchain), ["v2025.07.0"; 3]);
        assert!(check_recipes(new.as_ref(), "v2025.11.0", &catalog).is_ok());
        assert!(check_recipes(new.as_ref(), "", &catalog).is_ok(), "a tree");
        assert!(check_recipes(None, &catalog.spack_packages.reference, &catalog).is_ok());
    }

    #[test]
    fn a_site_says_how_its_gcc_is_built() {
        let mut catalog = Catalog::embedded().unwrap();
        let own = Compiler { version: "14.2.0".into(), spec: "build_type=MinSizeRel ~strip".into(), recipes: None };
        catalog.compiler = vec![own];
        let toolchain = catalog.toolchain("noble").unwrap();
        let chosen = choose("14.2.0", true, &catalog, &toolchain).unwrap().unwrap();
        assert_eq!(chosen.spec, "gcc@=14.2.0 +binutils~strip languages:='c,c++,fortran' build_type=MinSizeRel");
    }
}
