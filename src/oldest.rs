//! The oldest system that a package must run on: what `--for` names.
//!
//! A program asks for the version of each glibc function in which that function last changed (`memcpy@GLIBC_2.14`), so what
//! is linked on a system runs there and on newer ones. Which compiler is used makes no difference: GCC 7.5.0 on Ubuntu 24.04
//! links against glibc 2.39 all the same. So the toolchain's image decides, and that is known before anything is built; the
//! finished package shows what it came to ([`Oldest::admits`]), which may be less.

use crate::catalog::{Catalog, CatalogError, Toolchain, glibc_number};
use crate::elf::GlibcVersion;

/// The system asked for, and its glibc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oldest {
    /// As asked: `rhel8`, `glibc-2.28`.
    pub name: String,
    /// Its glibc.
    pub glibc: GlibcVersion,
}

/// What was asked for cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OldestError {
    /// No such system, or no such toolchain.
    #[error(transparent)]
    Unknown(#[from] CatalogError),
    /// The catalog gives a version that is none.
    #[error("the catalog says `{version}` is the glibc of {of}, which is no version; write it as 2.28")]
    Version {
        /// Whose.
        of: String,
        /// What it says.
        version: String,
    },
    /// The toolchain is newer than the system.
    #[error(
        "a package for {name} may need no glibc after {glibc}, and what is built with toolchain {toolchain} may need {needed}, whatever its compiler; {remedy}"
    )]
    TooNew {
        /// The system.
        name: String,
        /// Its glibc.
        glibc: GlibcVersion,
        /// The toolchain asked for.
        toolchain: String,
        /// That toolchain's glibc.
        needed: GlibcVersion,
        /// Which toolchain would do it, or that none would.
        remedy: String,
    },
}

fn version(of: &str, text: &str) -> Result<GlibcVersion, OldestError> {
    glibc_number(text).ok_or_else(|| OldestError::Version { of: of.to_owned(), version: text.to_owned() })
}

impl Oldest {
    /// Reads the name of a system in the catalog, or `glibc-2.28`.
    pub fn parse(asked: &str, catalog: &Catalog) -> Result<Self, OldestError> {
        let systems = catalog.systems();
        let named = systems.get(asked).map(String::as_str).or_else(|| asked.strip_prefix("glibc-"));
        let unknown = || CatalogError::Unknown {
            what: "system to build for",
            asked: asked.to_owned(),
            known: systems.keys().cloned().chain(["glibc-2.28 and the like".to_owned()]).collect(),
        };
        let text = named.ok_or_else(unknown)?;
        let is_ours = systems.contains_key(asked);
        let glibc = version(asked, text).map_err(|error| if is_ours { error } else { unknown().into() })?;
        Ok(Self { name: asked.to_owned(), glibc })
    }

    /// The toolchain that something was built on: more than its glibc nothing in it can need that was not put there later. Nothing
    /// for a toolchain that only another site's catalog has.
    pub fn of_toolchain(name: &str, catalog: &Catalog) -> Option<Self> {
        let toolchain = catalog.toolchain(name).ok()?;
        let glibc = glibc_number(&toolchain.glibc)?;
        Some(Self { name: format!("the toolchain {name}, on which it was built"), glibc })
    }

    /// Whether a package that needs this version of glibc runs there. Nothing needed runs everywhere; a version that
    /// cannot be read is not taken for an old one.
    pub fn admits(&self, needed: Option<&str>) -> bool {
        needed.is_none_or(|text| version("", text).is_ok_and(|needed| needed <= self.glibc))
    }

    /// Refuses a toolchain whose packages may need more than the system has, and says which one would do.
    pub fn check(&self, toolchain: &Toolchain, catalog: &Catalog) -> Result<(), OldestError> {
        let needed = version(&toolchain.name, &toolchain.glibc)?;
        if needed <= self.glibc {
            return Ok(());
        }
        let remedy = match (catalog.newest_for(self.glibc), catalog.by_glibc().first()) {
            (Some((glibc, name)), _) => format!("use --toolchain {name} (glibc {glibc})"),
            (None, Some((glibc, name))) => {
                format!(
                    "no toolchain is that old: the oldest is {name} (glibc {glibc}), which does for systems from that on"
                )
            }
            (None, None) => "the catalog knows no toolchain".to_owned(),
        };
        let (name, toolchain) = (self.name.clone(), toolchain.name.clone());
        Err(OldestError::TooNew { name, glibc: self.glibc, toolchain, needed, remedy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toolchain_that_would_do_is_named() {
        let catalog = Catalog::embedded().unwrap();
        let answer = |system: &str, toolchain: &str| {
            let oldest = Oldest::parse(system, &catalog).unwrap();
            oldest.check(&catalog.toolchain(toolchain).unwrap(), &catalog).map_err(|error| error.to_string())
        };
        assert_eq!(answer("rhel8", "rockylinux8"), Ok(()));
        assert_eq!(answer("rhel9", "rockylinux8"), Ok(()));
        assert_eq!(answer("glibc-2.36", "debian12"), Ok(()));
        let error = answer("rhel8", "noble").unwrap_err();
        assert!(error.contains("2.39") && error.contains("--toolchain rockylinux8 (glibc 2.28)"), "{error}");
        let error = answer("debian12", "noble").unwrap_err();
        assert!(error.contains("--toolchain debian12"), "{error}");
        let error = answer("rhel7", "noble").unwrap_err();
        assert!(error.contains("no toolchain is that old") && error.contains("rockylinux8"), "{error}");
    }

    #[test]
    fn what_is_no_system_is_refused() {
        let catalog = Catalog::embedded().unwrap();
        for asked in ["plan9", "glibc-", "glibc-x", "2.28", ""] {
            let error = Oldest::parse(asked, &catalog).unwrap_err().to_string();
            assert!(error.contains("rhel8"), "{asked}: {error}");
        }
    }

    #[test]
    fn a_package_is_held_to_it() {
        let catalog = Catalog::embedded().unwrap();
        let oldest = Oldest::parse("rocky8", &catalog).unwrap();
        assert!(oldest.admits(None) && oldest.admits(Some("2.28")) && oldest.admits(Some("2.2.5")));
        assert!(!oldest.admits(Some("2.34")) && !oldest.admits(Some("new")));
    }

    #[test]
    fn every_version_in_the_catalog_is_one() {
        let catalog = Catalog::embedded().unwrap();
        for name in catalog.systems().keys() {
            Oldest::parse(name, &catalog).unwrap();
        }
        for name in catalog.toolchains() {
            version(&name, &catalog.toolchain(&name).unwrap().glibc).unwrap();
        }
    }
}
