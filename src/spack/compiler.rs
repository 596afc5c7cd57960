//! The GCC that compiles: what Spack is told about it.
//!
//! It is always an external, a program that is there: the rootfs's own in `/usr`, or one that an environment before this one put
//! into the same store. The store's path inside the sandbox is the same everywhere, and a GCC's folder in it ends in its hash.

use super::Installed;
use crate::plan::inside;
use serde_json::{Value, json};

/// A GCC that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// Its exact version.
    pub version: String,
    /// Where it is inside the sandbox.
    prefix: String,
    /// Whether it was built by Spack. The distribution's has no Fortran.
    built: bool,
    /// Whether it compiles another GCC.
    builds_gcc: bool,
}

impl Compiler {
    /// The rootfs's own.
    pub fn of_rootfs(version: &str) -> Self {
        Self { version: version.to_owned(), prefix: "/usr".into(), built: false, builds_gcc: false }
    }

    /// The same for an environment in which Spack builds another one.
    #[must_use]
    pub fn that_builds_gcc(self) -> Self {
        Self { builds_gcc: true, ..self }
    }

    /// The GCC that an environment was made for.
    pub fn installed(environment: &Installed) -> Option<Self> {
        let gcc = environment.packages().iter().find(|p| p.root && p.name == "gcc")?;
        Some(Self::in_store(&gcc.version, &gcc.hash))
    }

    /// One that Spack put into the store, by version and DAG hash.
    pub fn in_store(version: &str, hash: &str) -> Self {
        let prefix = format!("{}/gcc-{version}-{hash}", inside::INSTALL_TREE);
        Self { version: version.to_owned(), prefix, built: true, builds_gcc: false }
    }

    /// The name of its folder in the install tree.
    pub fn folder(&self) -> &str {
        self.prefix.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it was built by Spack.
    pub fn is_built(&self) -> bool {
        self.built
    }

    /// The entry in `packages.yaml`.
    pub(super) fn package(&self) -> Value {
        let bin = |name: &str| format!("{}/bin/{name}", self.prefix);
        let mut compilers = json!({"c": bin("gcc"), "cxx": bin("g++")});
        let mut languages = "c,c++";
        if self.built {
            compilers["fortran"] = bin("gfortran").into();
            languages = "c,c++,fortran";
        }
        // Without them the solver gives this one the variants of the one that is built, and every hash changes with those.
        let variants = if self.builds_gcc { "~binutils+bootstrap~strip build_type=RelWithDebInfo " } else { "" };
        json!({
            "externals": [{
                "spec": format!("gcc@{} {variants}languages:='{languages}'", self.version),
                "prefix": self.prefix,
                "extra_attributes": {"compilers": compilers},
            }],
            "buildable": self.builds_gcc,
        })
    }

    /// A spec of an environment, with the compiler where Spack would have a choice.
    pub(super) fn root(&self, spec: &str) -> String {
        if self.builds_gcc { format!("{spec} %gcc@={}", self.version) } else { spec.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rootfs_has_no_fortran_and_a_gcc_of_ours_has() {
        let own = Compiler::of_rootfs("12.2.0");
        assert_eq!(own.package()["externals"][0]["spec"], "gcc@12.2.0 languages:='c,c++'");
        assert_eq!(own.package()["buildable"], false);
        assert_eq!(own.root("slurm"), "slurm");
        let first = own.that_builds_gcc();
        assert_eq!(first.package()["buildable"], true);
        assert_eq!(first.root("gcc@=14.2.0"), "gcc@=14.2.0 %gcc@=12.2.0");
        let built = Compiler::in_store("14.2.0", "abc");
        let entry = &built.package()["externals"][0];
        assert_eq!(entry["spec"], "gcc@14.2.0 languages:='c,c++,fortran'");
        assert_eq!(built.folder(), "gcc-14.2.0-abc");
        let fortran = format!("{}/gcc-14.2.0-abc/bin/gfortran", inside::INSTALL_TREE);
        assert_eq!(entry["extra_attributes"]["compilers"]["fortran"], fortran);
    }
}
