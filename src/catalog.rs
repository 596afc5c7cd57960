//! Typed view of `assets/catalog.toml` and of `rootfs/<toolchain>/`: every version, toolchain and pin that
//! the program knows, embedded at build time, widened by configuration.

mod entries;
mod valid;

pub use entries::{BinaryCache, Compiler, DerivedToolchain, Feature, Target, VariantSpec};

use crate::elf::{self, GlibcVersion};
use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

static CATALOG: &str = include_str!("../assets/catalog.toml");
static ROOTFS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/rootfs");

/// Asked for something that the catalog does not name, or a catalog that does not parse.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A value asked for is not there.
    #[error("unknown {what} `{asked}`; known: {}. A site adds its own in `[catalog]` of its configuration", known.join(", "))]
    Unknown {
        /// `Slurm version`, `toolchain`, ...
        what: &'static str,
        /// What was asked for.
        asked: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A target of another platform.
    #[error(
        "target `{asked}` is of {of}, and the image is of {platform}: take an image of that platform, or leave --target out"
    )]
    Platform {
        /// What was asked for.
        asked: String,
        /// Whose it is.
        of: String,
        /// What there is.
        platform: String,
    },
    /// A distribution that is no toolchain.
    #[error("{}", hint(asked, glibc, toolchain.as_deref(), known))]
    Distribution {
        /// What was asked for.
        asked: String,
        /// Its glibc.
        glibc: String,
        /// The toolchain whose packages run there.
        toolchain: Option<String>,
        /// What there is.
        known: Vec<String>,
    },
    /// A file of the catalog does not parse.
    #[error("catalog file `{file}` does not parse: {source}")]
    Parse {
        /// Which file.
        file: String,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
}

fn hint(asked: &str, glibc: &str, toolchain: Option<&str>, known: &[String]) -> String {
    let known = known.join(", ");
    match toolchain {
        Some(name) => {
            format!(
                "unknown toolchain `{asked}`: it has glibc {glibc}, and packages of `{name}` run there; known: {known}"
            )
        }
        None => format!(
            "unknown toolchain `{asked}`: it has glibc {glibc}, which is older than any toolchain's; packages that run there cannot \
             be made; known: {known}"
        ),
    }
}

/// glibc's version, `2.28`.
pub fn glibc_number(text: &str) -> Option<GlibcVersion> {
    elf::glibc_version(format!("GLIBC_{text}").as_bytes())
}

/// A Slurm release that can be built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlurmRelease {
    /// What users type: `25.11`.
    pub version: String,
    /// The exact release: `25.11.6`.
    pub patch: String,
    /// The version in the form of Spack's recipe: `25-11-6-1`.
    pub recipe: String,
    /// Where the release archive is.
    pub url: String,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

impl SlurmRelease {
    /// No release: that of a plan in which no Slurm is built.
    pub fn none() -> Self {
        let none = String::new;
        Self { version: none(), patch: none(), recipe: none(), url: none(), sha256: none() }
    }
}

/// A git repository and the release of it that is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitPin {
    /// URL.
    pub source: String,
    /// Tag.
    pub reference: String,
}

/// What stands in for a version that was not given.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Slurm version.
    pub slurm: String,
    /// Toolchain.
    pub toolchain: String,
    /// Compiler: `system` or a GCC version.
    pub compiler: String,
    /// GCC that `build-compiler` builds.
    pub gcc: String,
    /// Variant.
    pub variant: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    known: Vec<String>,
}

/// Everything the program knows how to build.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Catalog {
    /// What stands in for what was not given.
    pub defaults: Defaults,
    toolchains: Known,
    /// Spack itself.
    pub spack: GitPin,
    /// Spack's builtin recipes.
    pub spack_packages: GitPin,
    /// Slurm releases.
    pub slurm: Vec<SlurmRelease>,
    /// What each variant builds.
    pub variants: BTreeMap<String, VariantSpec>,
    /// Constraints for packages.
    pub pins: BTreeMap<String, String>,
    /// Which packages stand for a virtual one, best first.
    pub providers: BTreeMap<String, Vec<String>>,
    /// What `--with` and `--without` know.
    pub features: BTreeMap<String, Feature>,
    /// What code can be made for; the first of a platform is the default there.
    pub target: Vec<Target>,
    /// GCC that Spack can build.
    pub compiler: Vec<Compiler>,
    /// Binary caches that others publish.
    pub caches: BTreeMap<String, BinaryCache>,
    distributions: BTreeMap<String, String>,
    /// Toolchains that a site derives from ours.
    #[serde(skip)]
    derived: BTreeMap<String, DerivedToolchain>,
}

/// What configuration adds to the catalog or puts in place of its entries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Overlay {
    /// Releases; one with the `version` of an existing entry replaces it.
    pub slurm: Vec<SlurmRelease>,
    /// Variants by name; one of ours is replaced whole.
    pub variants: BTreeMap<String, VariantSpec>,
    /// Pins by package.
    pub pins: BTreeMap<String, String>,
    /// Features by name; one of ours is replaced whole.
    pub features: BTreeMap<String, Feature>,
    /// Targets; one with the name of ours replaces it.
    pub target: Vec<Target>,
    /// GCC that Spack can build; one with the version of ours replaces it.
    pub compiler: Vec<Compiler>,
    /// Binary caches by name; what is not said stays as it is.
    pub caches: BTreeMap<String, BinaryCache>,
    /// Toolchains on other images.
    pub toolchains: BTreeMap<String, DerivedToolchain>,
    /// Rules of relocation, looked at before the program's own.
    pub relocate: RelocateRules,
}

/// Rules of packaging and relocation, in the form of `assets/relocate.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelocateRules {
    /// What is left out.
    pub prune: Vec<PathRule>,
    /// What stays although a rule of `prune` matches.
    pub keep: Vec<PathRule>,
    /// Which strings that name the build prefix may stay, in which files.
    pub allow: Vec<PathRule>,
    /// Which paths are written over those that are compiled into programs.
    pub rewrite: Vec<RewriteRule>,
    /// Which libraries are opened by name at run time.
    pub dlopen: Vec<DlopenRule>,
}

/// Files, and why something is done with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRule {
    /// Pattern for paths relative to the view.
    pub glob: String,
    /// For `allow`: pattern for the string, from the build prefix to its end. Without it, any string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub string: Option<String>,
    /// Why.
    pub reason: String,
}

/// A path that is compiled into programs and means something on every host, or in every installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewriteRule {
    /// Pattern for paths relative to the view.
    pub glob: String,
    /// Pattern for the string, from the build prefix to its end. Without it, any string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub string: Option<String>,
    /// What the string becomes: an absolute path of the host; or `{view}`: its begin, the package's folder, is filled in by
    /// `install`.
    pub to: String,
    /// Why; for `{view}`, what goes without it.
    pub reason: String,
}

/// A library that files open by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DlopenRule {
    /// Pattern for paths relative to the view.
    pub glob: String,
    /// The name that is given to dlopen(3).
    pub library: String,
    /// Why.
    pub reason: String,
}

impl Overlay {
    /// Lays `higher` over this: a release replaces the one with its version, the others go by name, rules go first.
    pub fn add(&mut self, higher: Self) {
        for release in higher.slurm {
            self.slurm.retain(|known| known.version != release.version);
            self.slurm.push(release);
        }
        for target in higher.target {
            // In its place: the first of a platform is the default there.
            match self.target.iter_mut().find(|known| known.name == target.name) {
                Some(known) => *known = target,
                None => self.target.push(target),
            }
        }
        for compiler in higher.compiler {
            self.compiler.retain(|known| known.version != compiler.version);
            self.compiler.push(compiler);
        }
        for (name, cache) in higher.caches {
            self.caches.entry(name).or_default().add(cache);
        }
        self.variants.extend(higher.variants);
        self.pins.extend(higher.pins);
        self.features.extend(higher.features);
        self.toolchains.extend(higher.toolchains);
        let RelocateRules { prune, keep, allow, rewrite, dlopen } = higher.relocate;
        // The first that matches counts.
        self.relocate.prune.splice(0..0, prune);
        self.relocate.keep.splice(0..0, keep);
        self.relocate.allow.splice(0..0, allow);
        self.relocate.rewrite.splice(0..0, rewrite);
        self.relocate.dlopen.splice(0..0, dlopen);
    }
}

impl Catalog {
    /// The embedded catalog.
    pub fn embedded() -> Result<Self, CatalogError> {
        toml::from_str(CATALOG)
            .map_err(|e| CatalogError::Parse { file: "assets/catalog.toml".into(), source: Box::new(e) })
    }

    /// The catalog with a site's additions.
    #[must_use]
    pub fn with(mut self, overlay: Overlay) -> Self {
        let mut merged = Overlay {
            slurm: self.slurm,
            variants: self.variants,
            pins: self.pins,
            features: self.features,
            target: self.target,
            compiler: self.compiler,
            caches: self.caches,
            toolchains: self.derived,
            relocate: RelocateRules::default(), // `relocate` has rules of its own to lay them over
        };
        merged.add(overlay);
        self.slurm = merged.slurm;
        self.variants = merged.variants;
        self.pins = merged.pins;
        self.features = merged.features;
        self.target = merged.target;
        self.compiler = merged.compiler;
        self.caches = merged.caches;
        self.derived = merged.toolchains;
        self
    }

    /// Binary caches of others that the site trusts: name, address for a toolchain, and the fingerprint that it gave.
    pub fn trusted_caches(&self, toolchain: &str) -> impl Iterator<Item = (&str, String, &str)> {
        self.caches.iter().filter_map(move |(name, cache)| {
            Some((name.as_str(), cache.url.replace("{toolchain}", toolchain), cache.fingerprint.as_deref()?))
        })
    }

    /// The release that `asked` names: a version (`24.11`) or an exact release (`24.11.6`).
    pub fn slurm(&self, asked: &str) -> Result<&SlurmRelease, CatalogError> {
        self.slurm.iter().find(|r| r.version == asked || r.patch == asked).ok_or_else(|| CatalogError::Unknown {
            what: "Slurm version",
            asked: asked.to_owned(),
            known: self.slurm.iter().map(|r| format!("{} ({})", r.version, r.patch)).collect(),
        })
    }

    /// The compilers that can be named, `system` first.
    pub fn compilers(&self) -> Vec<String> {
        std::iter::once("system".to_owned()).chain(self.compiler.iter().map(|c| c.version.clone())).collect()
    }

    /// A feature by name.
    pub fn feature(&self, asked: &str) -> Result<&Feature, CatalogError> {
        self.features.get(asked).ok_or_else(|| CatalogError::Unknown {
            what: "feature",
            asked: asked.to_owned(),
            known: self.features.iter().filter(|(_, f)| f.refused.is_none()).map(|(name, _)| name.clone()).collect(),
        })
    }

    /// What code is made for on a platform: what was asked, or the platform's first.
    pub fn target(&self, asked: Option<&str>, platform: &str) -> Result<&Target, CatalogError> {
        let mut there = self.target.iter().filter(|t| t.platform == platform);
        let found = match asked {
            Some(name) => there.find(|t| t.name == name),
            None => there.next(),
        };
        if let (None, Some(other)) = (found, self.target.iter().find(|t| Some(t.name.as_str()) == asked)) {
            let (asked, of) = (other.name.clone(), other.platform.clone());
            return Err(CatalogError::Platform { asked, of, platform: platform.to_owned() });
        }
        found.ok_or_else(|| CatalogError::Unknown {
            what: "target",
            asked: asked.map_or_else(|| format!("for {platform}"), str::to_owned),
            known: self.target.iter().map(|t| format!("{} ({})", t.name, t.platform)).collect(),
        })
    }

    /// The names of all toolchains, ours first.
    pub fn toolchains(&self) -> Vec<String> {
        let new = self.derived.keys().filter(|name| !self.toolchains.known.contains(name));
        self.toolchains.known.iter().chain(new).cloned().collect()
    }

    /// A toolchain by name.
    pub fn toolchain(&self, asked: &str) -> Result<Toolchain, CatalogError> {
        let Some(derived) = self.derived.get(asked) else { return self.own_toolchain(asked) };
        let base = self.own_toolchain(&derived.like)?;
        Ok(Toolchain {
            name: asked.to_owned(),
            image: derived.image.clone(),
            os_release: derived.os_release.clone().unwrap_or(base.os_release),
            // A snapshot is of the distribution's own archive.
            snapshots: base.snapshots.filter(|_| derived.os_release.is_none()),
            ..base
        })
    }

    /// Every system that a package can be made for, with its glibc: distributions and toolchains.
    pub fn systems(&self) -> BTreeMap<String, String> {
        let toolchains =
            self.toolchains().into_iter().filter_map(|name| Some((self.toolchain(&name).ok()?.glibc, name)));
        self.distributions.clone().into_iter().chain(toolchains.map(|(glibc, name)| (name, glibc))).collect()
    }

    /// The catalog's own toolchains with their glibc, the oldest first. Those of a site have the glibc of one of these.
    pub fn by_glibc(&self) -> Vec<(GlibcVersion, String)> {
        let known = self.toolchains.known.iter().filter_map(|name| self.own_toolchain(name).ok());
        let mut known: Vec<_> = known.filter_map(|t| Some((glibc_number(&t.glibc)?, t.name))).collect();
        known.sort();
        known
    }

    /// The toolchain whose packages run with this glibc and whose own is the newest of those: its libraries and tools are the
    /// youngest.
    pub fn newest_for(&self, glibc: GlibcVersion) -> Option<(GlibcVersion, String)> {
        self.by_glibc().into_iter().rfind(|(own, _)| *own <= glibc)
    }

    /// What to say of a name that is no toolchain: for a distribution, the toolchain with the newest glibc that runs there.
    fn no_toolchain(&self, asked: &str) -> CatalogError {
        let known = self.toolchains();
        let Some(glibc) = self.distributions.get(&asked.to_lowercase()) else {
            return CatalogError::Unknown { what: "toolchain", asked: asked.to_owned(), known };
        };
        let toolchain = glibc_number(glibc).and_then(|glibc| self.newest_for(glibc)).map(|(_, name)| name);
        CatalogError::Distribution { asked: asked.to_owned(), glibc: glibc.clone(), toolchain, known }
    }

    fn own_toolchain(&self, asked: &str) -> Result<Toolchain, CatalogError> {
        let unknown = || self.no_toolchain(asked);
        if !self.toolchains.known.iter().any(|name| name == asked) {
            return Err(unknown());
        }
        let text = |file: &str| ROOTFS.get_file(format!("{asked}/{file}")).and_then(|f| f.contents_utf8());
        let file: ToolchainFile = toml::from_str(text("packages.toml").ok_or_else(unknown)?)
            .map_err(|e| CatalogError::Parse { file: format!("rootfs/{asked}/packages.toml"), source: Box::new(e) })?;
        Ok(Toolchain {
            name: asked.to_owned(),
            image: file.image,
            os_release: file.os_release,
            family: file.family,
            system_gcc: file.system_gcc,
            gcc: file.gcc,
            glibc: file.glibc,
            platforms: file.platforms,
            packages: file.package,
            external: file.external,
            providers: file.providers,
            snapshots: file.snapshots,
            requirements: text("requirements.txt").unwrap_or_default().to_owned(),
        })
    }
}

/// How a toolchain's packages are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Debian and Ubuntu.
    Apt,
    /// Rocky Linux and its kin, 8 and later.
    Dnf,
}

/// What an image's `/etc/os-release` must say to be this toolchain's (os-release(5)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OsRelease {
    /// `ID`.
    pub id: String,
    /// `VERSION_ID`, or what it begins with up to a dot: `9` is meant by `9.6`.
    pub version_id: String,
}

impl OsRelease {
    /// Whether an image that says `found` is what this asks for.
    pub fn admits(&self, found: &Self) -> bool {
        let rest = found.version_id.strip_prefix(&self.version_id);
        self.id == found.id && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// A package that the prepared rootfs needs, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootfsPackage {
    /// The distribution's name for it.
    pub name: String,
    /// Why it is there.
    pub reason: String,
}

/// A program of the rootfs that Spack is to take as it is, and the command that prints its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Spack's name.
    pub name: String,
    /// Command, run inside; the first dotted number that it prints is the version.
    pub command: Vec<String>,
    /// Variants that Spack's recipes ask of it: `+threads`.
    #[serde(default)]
    pub variants: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolchainFile {
    image: String,
    os_release: OsRelease,
    family: Family,
    system_gcc: String,
    gcc: String,
    glibc: String,
    platforms: Vec<String>,
    package: Vec<RootfsPackage>,
    #[serde(default)]
    external: Vec<Probe>,
    #[serde(default)]
    providers: BTreeMap<String, Vec<String>>,
    snapshots: Option<String>,
}

/// A base image and what is installed into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Toolchain {
    /// The folder under `rootfs/`.
    pub name: String,
    /// The image that is pulled when no other is named.
    pub image: String,
    /// What the image must say it is.
    pub os_release: OsRelease,
    /// How packages are installed.
    pub family: Family,
    /// The major version of the distribution's GCC.
    pub system_gcc: String,
    /// Its exact version when the catalog was made; what the prepared rootfs has counts.
    pub gcc: String,
    /// The distribution's glibc: packages run where it is this or newer.
    pub glibc: String,
    /// What the image is there for.
    pub platforms: Vec<String>,
    /// The packages.
    pub packages: Vec<RootfsPackage>,
    /// Programs of the rootfs that Spack takes as they are.
    pub external: Vec<Probe>,
    /// Which packages stand for a virtual one here, in place of the catalog's.
    pub providers: BTreeMap<String, Vec<String>>,
    /// Address of the distribution's archive as it was at a time, with `{snapshot}` in the time's place.
    pub snapshots: Option<String>,
    /// Python wheels in pip's requirements format, each with its sums.
    pub requirements: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_catalog_parses_and_its_defaults_exist() {
        let catalog = Catalog::embedded().unwrap();
        catalog.slurm(&catalog.defaults.slurm).unwrap();
        assert!(catalog.compilers().contains(&catalog.defaults.compiler));
        assert!(catalog.compiler.iter().any(|known| known.version == catalog.defaults.gcc));
        assert!(catalog.variants.contains_key(&catalog.defaults.variant));
        for name in catalog.toolchains() {
            let toolchain = catalog.toolchain(&name).unwrap();
            assert!(toolchain.packages.iter().all(|p| !p.reason.is_empty()), "{name}: a package without a reason");
            assert!(toolchain.requirements.contains("--hash=sha256:"), "{name}: wheels are pinned by sum");
            assert!(toolchain.gcc.starts_with(&format!("{}.", toolchain.system_gcc)), "{name}");
            for platform in &toolchain.platforms {
                catalog.target(None, platform).unwrap();
            }
        }
    }

    #[test]
    fn features_say_what_they_are_for_and_name_features() {
        let catalog = Catalog::embedded().unwrap();
        for (name, feature) in &catalog.features {
            assert!(!feature.why.is_empty(), "{name}");
            assert_ne!(feature.refused.is_some(), !feature.spec.is_empty() || !feature.roots.is_empty(), "{name}");
            assert!(feature.needs.iter().all(|needed| catalog.features.contains_key(needed)), "{name}");
        }
    }

    #[test]
    fn an_old_distribution_is_told_which_toolchain_delivers_it() {
        let catalog = Catalog::embedded().unwrap();
        let says = |asked: &str| catalog.toolchain(asked).unwrap_err().to_string();
        for (asked, part) in [
            ("focal", "packages of `rockylinux8` run there"),
            ("RHEL9", "packages of `rockylinux9` run there"),
            ("ubuntu22.04", "packages of `jammy` run there"),
            ("centos7", "older than any toolchain's"),
        ] {
            assert!(says(asked).contains(part), "{}", says(asked));
        }
    }

    #[test]
    fn a_site_derives_a_toolchain_and_trusts_a_cache() {
        let overlay: Overlay = toml::from_str(
            "[toolchains.alma9]\nlike = 'rockylinux9'\nimage = 'docker.io/library/almalinux:9'\n\
             os-release = { id = 'almalinux', version_id = '9' }\n[caches.vantage]\nfingerprint = 'F'",
        )
        .unwrap();
        let catalog = Catalog::embedded().unwrap().with(overlay);
        let (alma, rocky) = (catalog.toolchain("alma9").unwrap(), catalog.toolchain("rockylinux9").unwrap());
        assert_eq!((alma.name.as_str(), &alma.packages, &alma.glibc), ("alma9", &rocky.packages, &rocky.glibc));
        assert!(alma.os_release.id == "almalinux" && catalog.toolchains().contains(&"alma9".to_owned()));
        let cache = &catalog.caches["vantage"];
        assert!(cache.url.starts_with("https://") && cache.fingerprint.as_deref() == Some("F"));
        let (name, url, fingerprint) = catalog.trusted_caches("noble").next().unwrap();
        assert!(name == "vantage" && url.contains("/noble/") && !url.contains('{') && fingerprint == "F", "{url}");
        assert_eq!(Catalog::embedded().unwrap().trusted_caches("noble").count(), 0, "off until a site turns it on");
    }

    #[test]
    fn an_image_of_a_point_release_is_the_toolchains() {
        let os = |id: &str, version: &str| OsRelease { id: id.into(), version_id: version.into() };
        assert!(os("rocky", "9").admits(&os("rocky", "9.6")) && os("debian", "12").admits(&os("debian", "12")));
        for (id, version) in [("rocky", "90"), ("rocky", "8.9"), ("almalinux", "9.6"), ("rocky", "")] {
            assert!(!os("rocky", "9").admits(&os(id, version)), "{id} {version}");
        }
    }

    #[test]
    fn every_release_has_a_sum_and_a_recipe_form() {
        for release in Catalog::embedded().unwrap().slurm {
            assert_eq!(release.sha256.len(), 64, "{}", release.version);
            assert!(release.recipe.starts_with(&release.patch.replace('.', "-")), "{}", release.version);
            assert!(release.patch.starts_with(&release.version));
        }
    }

    #[test]
    fn what_is_not_there_is_answered_with_what_is() {
        let error = Catalog::embedded().unwrap().slurm("19.05").unwrap_err().to_string();
        assert!(error.contains("19.05") && error.contains("25.11"), "{error}");
        let error = Catalog::embedded().unwrap().toolchain("slackware").unwrap_err().to_string();
        assert!(error.contains("noble"), "{error}");
    }

    #[test]
    fn a_site_replaces_a_release_by_its_version() {
        let release = SlurmRelease {
            version: "24.11".into(),
            patch: "24.11.5".into(),
            recipe: "24-11-5-1".into(),
            url: "file:///x".into(),
            sha256: "0".repeat(64),
        };
        let overlay = Overlay { slurm: vec![release], ..Overlay::default() };
        let catalog = Catalog::embedded().unwrap().with(overlay);
        assert_eq!(catalog.slurm("24.11").unwrap().patch, "24.11.5");
        assert!(catalog.slurm("24.11.6").is_err());
    }
}
