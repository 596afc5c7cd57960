//! Entries of the catalog that are more than a name: variants, features, targets, compilers, binary caches, and toolchains that
//! a site derives from ours.

use super::OsRelease;
use serde::de::{self, Deserializer, MapAccess, value::MapAccessDeserializer};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a variant builds: Slurm's spec, and packages beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VariantSpec {
    /// Slurm's spec without name and version.
    pub spec: String,
    /// Packages that are built beside Slurm.
    pub roots: Vec<String>,
}

/// A text is the spec of a variant with nothing beside Slurm; else a table with `spec` and `roots`.
impl<'de> Deserialize<'de> for VariantSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            spec: String,
            #[serde(default)]
            roots: Vec<String>,
        }
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = VariantSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a spec, or a table with `spec` and `roots`")
            }

            fn visit_str<E: de::Error>(self, spec: &str) -> Result<VariantSpec, E> {
                Ok(VariantSpec { spec: spec.to_owned(), roots: Vec::new() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<VariantSpec, A::Error> {
                let Table { spec, roots } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(VariantSpec { spec, roots })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Something that `--with` adds to a package and `--without` leaves out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Feature {
    /// Variants of Slurm's recipe, `+hwloc`; left out, each `+` becomes `~`.
    pub spec: String,
    /// Packages that are built beside Slurm.
    pub roots: Vec<String>,
    /// Packages that come with it, and with no feature that is left out.
    pub brings: Vec<String>,
    /// Features without which it does not work.
    pub needs: Vec<String>,
    /// Why it cannot be had, and what to do instead.
    pub refused: Option<String>,
    /// What it is for.
    pub why: String,
}

/// What code can be made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Spack's name: `x86_64_v3`.
    pub name: String,
    /// The image's platform: `linux/amd64`.
    pub platform: String,
    /// The level of the x86-64 psABI, 1 to 4; none on other architectures.
    #[serde(default)]
    pub level: Option<u8>,
    /// Which processors run it.
    pub runs: String,
}

/// A GCC that Spack can build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compiler {
    /// `13.4.0`
    pub version: String,
    /// Variants in Spack's words, laid over what every GCC is built with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub spec: String,
    /// The release of the builtin recipes that has it, when the pinned one has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipes: Option<String>,
}

/// A binary cache that somebody publishes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BinaryCache {
    /// Its URL; `{toolchain}` stands for the toolchain's name.
    pub url: String,
    /// Whose it is.
    pub why: String,
    /// Fingerprint of the key that the site trusts, 40 hexadecimal digits. Without one the cache is not used.
    pub fingerprint: Option<String>,
}

impl BinaryCache {
    /// What a site says over what is there: usually the fingerprint alone.
    pub(super) fn add(&mut self, higher: Self) {
        for (low, high) in [(&mut self.url, higher.url), (&mut self.why, higher.why)] {
            if !high.is_empty() {
                *low = high;
            }
        }
        self.fingerprint = higher.fingerprint.or(self.fingerprint.take());
    }
}

/// A toolchain of a site: one of ours on another image. Packages, GCC and glibc are as in that one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DerivedToolchain {
    /// The toolchain of ours.
    pub like: String,
    /// The image.
    pub image: String,
    /// What the image says it is, when it is another distribution of the same family: AlmaLinux for Rocky.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_release: Option<OsRelease>,
}
