//! Settings from files, environment and flags, merged so that every value knows where it came from.
//!
//! Order, later wins: built-in, `/etc/slurm-factory/config.toml`, the user's
//! `~/.config/slurm-factory/config.toml`, the project's `./slurm-factory.toml` (or `--config FILE` in place of
//! the three), `SLURM_FACTORY_*` variables, flags. Scalars and lists replace; `catalog` and `registries` merge entry by
//! entry.
//! This module takes text and values; the command line reads the files.

use crate::catalog::Overlay;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or variable does not parse, or has a key that is not known.
    #[error("{origin}: {message}")]
    Parse {
        /// Where it stands.
        origin: Origin,
        /// What is wrong, with the line for files.
        message: String,
    },
    /// A size that is none.
    #[error("`{text}` is not a size; write bytes or a number with K, M, G or T (powers of 1024), as in 4G")]
    Size {
        /// What was given.
        text: String,
    },
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Origin {
    /// The program itself.
    BuiltIn,
    /// A configuration file.
    File(PathBuf),
    /// A variable of the environment.
    Env(String),
    /// A flag of the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::File(path) => write!(f, "configuration file `{}`", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// Everything that can be set. All keys are optional in every layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Where downloads, root file systems, keys and packages are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// Node-local folder for store, views and stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_dir: Option<PathBuf>,
    /// Slurm version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slurm_version: Option<String>,
    /// `system` or a GCC version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compiler_version: Option<String>,
    /// Toolchain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toolchain: Option<String>,
    /// Image in place of the toolchain's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// URL or folder of a mirror of the distribution's package archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apt_mirror: Option<String>,
    /// File in the form of sources.list(5) that takes the place of the image's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apt_sources: Option<PathBuf>,
    /// Time at which the distribution's package archive is looked at, `20260101T000000Z`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apt_snapshot: Option<String>,
    /// As `apt_mirror`, for toolchains whose packages dnf installs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dnf_mirror: Option<String>,
    /// A `.repo` file, or a folder of them, that takes the place of the image's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dnf_repos: Option<PathBuf>,
    /// URL of a Python package index, or folder of wheels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pip_index: Option<String>,
    /// Features to add.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with: Option<Vec<String>>,
    /// Features to leave out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without: Option<Vec<String>>,
    /// Variants and dependencies in Spack's words, laid over everything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
    /// What code is made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `auto`, `userns` or `podman`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Whose the files of a rootfs are: `single`, all the user's, or `range`, as the image says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ownership: Option<String>,
    /// How the rootfs can be written, in a layer that is thrown away: `none`, `auto`, `overlay`, `fuse-overlayfs` or `copy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writable: Option<String>,
    /// `strict` or `relaxed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confinement: Option<String>,
    /// Parallel compile jobs, 0 for all processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs: Option<u32>,
    /// Processors the build may use, 0 for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory that the build may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Shared memory inside the sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<String>,
    /// How much the build may write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// How much processor time the build leaves to others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<u32>,
    /// `host` or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// `gzip` or `zstd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// Secret key file that signs packages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Where packages are published to: `s3://bucket/prefix`, `file:///folder` or a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_to: Option<String>,
    /// Server of the bucket, when it is not AWS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3_endpoint: Option<String>,
    /// Region of the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3_region: Option<String>,
    /// Whether the bucket stands in the path of URLs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3_path_style: Option<bool>,
    /// Spack: git URL, local git directory or tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spack_source: Option<String>,
    /// Release tag of Spack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spack_reference: Option<String>,
    /// Builtin recipes: git URL, local git directory or tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spack_packages: Option<String>,
    /// Release tag of the builtin recipes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spack_packages_reference: Option<String>,
    /// Recipe repositories that take precedence over ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spack_repos: Option<Vec<PathBuf>>,
    /// Source mirrors: folders (or URLs) in the layout of Spack's source mirrors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_mirrors: Option<Vec<String>>,
    /// Binary mirrors: URLs or folders of Spack buildcaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary_mirrors: Option<Vec<String>>,
    /// Whole fingerprints of keys that a binary mirror itself may offer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary_mirror_keys: Option<Vec<String>>,
    /// How registries are reached: for each layer that says something, the lowest first, a table with the keys of
    /// containers-registries.conf(5). What it means is the image stage's business.
    #[serde(skip_serializing, deserialize_with = "one_layer")]
    pub registries: Vec<RegistriesLayer>,
    /// Additions to the catalog.
    #[serde(skip_serializing_if = "is_default")]
    pub catalog: Overlay,
}

/// What one layer says about registries.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistriesLayer {
    /// Where it stands.
    pub origin: Origin,
    /// Its `[registries]`.
    pub table: Table,
}

fn one_layer<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<RegistriesLayer>, D::Error> {
    // Whoever reads the layer knows where it stands.
    Table::deserialize(from).map(|table| vec![RegistriesLayer { origin: Origin::BuiltIn, table }])
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Settings {
    /// Reads a layer from a file's text.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut layer: Self = toml::from_str(text).map_err(|e| ConfigError::Parse {
            origin: Origin::File(path.to_owned()),
            message: e.to_string().trim().to_owned(),
        })?;
        layer
            .catalog
            .check()
            .map_err(|message| ConfigError::Parse { origin: Origin::File(path.to_owned()), message })?;
        layer.registries.iter_mut().for_each(|part| part.origin = Origin::File(path.to_owned()));
        Ok(layer)
    }

    /// Puts the home folder in place of a `~/` at the begin of paths, which no shell sees in a file or a variable.
    #[must_use]
    pub fn with_home(mut self, home: Option<&Path>) -> Self {
        let Some(home) = home else { return self };
        [&mut self.cache_dir, &mut self.build_dir, &mut self.key, &mut self.apt_sources, &mut self.dnf_repos]
            .into_iter()
            .flatten()
            .chain(self.spack_repos.iter_mut().flatten())
            .for_each(|path| {
                if let Ok(below) = path.strip_prefix("~") {
                    *path = home.join(below);
                }
            });
        self
    }

    /// Makes the relative paths of a layer relative to the folder of the file that it came from.
    #[must_use]
    pub fn relative_to(mut self, file: &Path) -> Self {
        let folder = file.parent().unwrap_or(Path::new(""));
        let fix = |path: &mut PathBuf| *path = folder.join(&*path);
        [&mut self.cache_dir, &mut self.build_dir, &mut self.key, &mut self.apt_sources, &mut self.dnf_repos]
            .into_iter()
            .flatten()
            .for_each(fix);
        self.spack_repos.iter_mut().flatten().for_each(fix);
        let is_path = |text: &str| !text.contains("://") && (text.starts_with("./") || text.starts_with("../"));
        let sources = [&mut self.spack_source, &mut self.spack_packages].into_iter().flatten();
        let mirrors = [&mut self.source_mirrors, &mut self.binary_mirrors].into_iter().flatten().flatten();
        let packages = [&mut self.apt_mirror, &mut self.dnf_mirror, &mut self.pip_index, &mut self.publish_to]
            .into_iter()
            .flatten();
        for text in sources.chain(mirrors).chain(packages).filter(|text| is_path(text)) {
            *text = folder.join(&*text).display().to_string();
        }
        // An image in a file or folder: its tag, if any, is at the end of the path.
        if let Some((kind, path)) = self.image.as_deref().and_then(|image| image.split_once(':'))
            && ["oci", "oci-archive", "docker-archive", "dir"].contains(&kind)
        {
            self.image = Some(format!("{kind}:{}", folder.join(path).display()));
        }
        self
    }

    /// Reads a layer from variables: `SLURM_FACTORY_JOBS=8` sets `jobs`. Lists are separated by commas.
    /// Variables of the tests (`SLURM_FACTORY_TEST_*`) and of `ignored` are passed over; any other unknown
    /// name is an error, so that a misspelt variable does not silently do nothing.
    pub fn from_env(vars: impl IntoIterator<Item = (String, String)>, ignored: &[&str]) -> Result<Self, ConfigError> {
        const LISTS: [&str; 6] =
            ["spack-repos", "source-mirrors", "binary-mirrors", "binary-mirror-keys", "with", "without"];
        const NUMBERS: [&str; 3] = ["jobs", "cpus", "nice"];
        const BOOLEANS: [&str; 1] = ["s3-path-style"];
        let mut merged = Table::new();
        for (name, text) in vars {
            let Some(key) = name.strip_prefix("SLURM_FACTORY_") else { continue };
            if key.starts_with("TEST_") || ignored.contains(&name.as_str()) {
                continue;
            }
            let key = key.to_lowercase().replace('_', "-");
            let fail = |message: String| ConfigError::Parse { origin: Origin::Env(name.clone()), message };
            let value = if LISTS.contains(&key.as_str()) {
                Value::Array(
                    text.split(',')
                        .map(str::trim)
                        .filter(|s| !s.is_empty())
                        .map(|s| Value::String(s.to_owned()))
                        .collect(),
                )
            } else if NUMBERS.contains(&key.as_str()) {
                Value::Integer(text.parse().map_err(|e| fail(format!("`{text}` is not a number: {e}")))?)
            } else if BOOLEANS.contains(&key.as_str()) {
                Value::Boolean(text.parse().map_err(|_| fail(format!("`{text}` is neither true nor false")))?)
            } else {
                Value::String(text)
            };
            // Each alone first: an error names its variable.
            let one = Table::from_iter([(key, value)]);
            let _: Self = one.clone().try_into().map_err(|e: toml::de::Error| fail(e.message().to_owned()))?;
            merged.extend(one);
        }
        // Not one of them can fail now; their names stand for all.
        merged.try_into().map_err(|e: toml::de::Error| ConfigError::Parse {
            origin: Origin::Env("SLURM_FACTORY_*".into()),
            message: e.message().to_owned(),
        })
    }
}

/// Settings of all layers, and the origin of each key.
#[derive(Debug, Clone, Default)]
pub struct Merged {
    /// The values that won.
    pub settings: Settings,
    /// Key to origin, for what was set in any layer.
    pub origins: BTreeMap<String, Origin>,
    layers: usize,
    with: Said,
    without: Said,
}

/// A list of features as it was said last, and in which layer, counted from 1; 0 when in none.
#[derive(Debug, Clone, Default)]
struct Said {
    layer: usize,
    names: Vec<String>,
}

impl Merged {
    /// Lays `layer` over what is there.
    pub fn add(&mut self, origin: Origin, mut layer: Settings) -> Result<(), ConfigError> {
        let catalog = std::mem::take(&mut layer.catalog);
        let mut registries = std::mem::take(&mut self.settings.registries);
        if !layer.registries.is_empty() {
            registries.append(&mut layer.registries);
            self.origins.insert("registries".into(), origin.clone());
        }
        let fail = |message: String| ConfigError::Parse { origin: origin.clone(), message };
        let mut low = std::mem::take(&mut self.settings.catalog);
        self.layers += 1;
        for (said, kept) in [(&layer.with, &mut self.with), (&layer.without, &mut self.without)] {
            if let Some(names) = said {
                *kept = Said { layer: self.layers, names: names.clone() };
            }
        }
        let mut table = Table::try_from(&self.settings).map_err(|e| fail(e.to_string()))?;
        for (key, value) in Table::try_from(&layer).map_err(|e| fail(e.to_string()))? {
            self.origins.insert(key.clone(), origin.clone());
            table.insert(key, value);
        }
        self.settings = table.try_into().map_err(|e: toml::de::Error| fail(e.to_string()))?;
        if !is_default(&catalog) {
            self.origins.insert("catalog".into(), origin);
        }
        low.add(catalog);
        self.settings.catalog = low;
        self.settings.registries = registries;
        // A feature of one list is taken off the other, where that was said in a lower layer. Of one layer both stay.
        let left = |list: &Said, other: &Said| {
            let stays = |name: &&String| list.layer >= other.layer || !other.names.contains(name);
            (list.layer > 0).then(|| list.names.iter().filter(stays).cloned().collect())
        };
        self.settings.with = left(&self.with, &self.without);
        self.settings.without = left(&self.without, &self.with);
        Ok(())
    }

    /// Where `key` came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::BuiltIn)
    }
}

/// A size in bytes from `1536`, `512M`, `2G`, `2GiB`; units are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, ConfigError> {
    let fail = || ConfigError::Size { text: text.to_owned() };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let number: u64 = trimmed[..digits].parse().map_err(|_| fail())?;
    let unit = trimmed[digits..].trim().to_ascii_lowercase();
    let shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(fail()),
    };
    number.checked_mul(1 << shift).ok_or_else(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(text: &str) -> Settings {
        Settings::parse(Path::new("t.toml"), text).unwrap()
    }

    #[test]
    fn later_layers_win_and_origins_are_kept() {
        let mut merged = Merged::default();
        merged.add(Origin::File("/etc/a".into()), layer("jobs = 2\ntoolchain = 'noble'")).unwrap();
        merged.add(Origin::Flag, layer("jobs = 8")).unwrap();
        assert_eq!(merged.settings.jobs, Some(8));
        assert_eq!(merged.origin("jobs"), Origin::Flag);
        assert_eq!(merged.settings.toolchain.as_deref(), Some("noble"));
        assert_eq!(merged.origin("toolchain"), Origin::File("/etc/a".into()));
        assert_eq!(merged.origin("image"), Origin::BuiltIn);
    }

    #[test]
    fn relative_paths_are_relative_to_their_file() {
        let of = |text: &str| layer(text).relative_to(Path::new("/site/conf/x.toml"));
        for (image, want) in [
            ("oci:images/noble:24.04", "oci:/site/conf/images/noble:24.04"),
            ("docker-archive:../u.tar:@0", "docker-archive:/site/conf/../u.tar:@0"),
            ("dir:/root", "dir:/root"),
            ("oci.site:5000/ubuntu:24.04", "oci.site:5000/ubuntu:24.04"),
            ("ubuntu:24.04", "ubuntu:24.04"),
        ] {
            assert_eq!(of(&format!("image = '{image}'")).image.as_deref(), Some(want));
        }
        let settings = of("pip-index = './wheels'\ndnf-repos = 'repos'\ndnf-mirror = 'https://site/rocky'");
        assert_eq!(settings.pip_index.as_deref(), Some("/site/conf/./wheels"));
        assert_eq!(settings.dnf_repos, Some("/site/conf/repos".into()));
        assert_eq!(settings.dnf_mirror.as_deref(), Some("https://site/rocky"));
    }

    #[test]
    fn a_feature_is_taken_off_the_other_list_of_lower_layers() {
        let features = |low: &str, high: &str| {
            let mut merged = Merged::default();
            merged.add(Origin::File("/etc/a".into()), layer(low)).unwrap();
            merged.add(Origin::Flag, layer(high)).unwrap();
            (merged.settings.with.unwrap_or_default(), merged.settings.without.unwrap_or_default())
        };
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let site = "with = ['hdf5']\nwithout = ['mysql', 'lua']";
        assert_eq!(features(site, "with = ['mysql']"), (names(&["mysql"]), names(&["lua"])));
        assert_eq!(features(site, "without = ['hdf5']"), (names(&[]), names(&["hdf5"])));
        // The list of the highest layer counts, whatever those between said.
        let mut merged = Merged::default();
        for text in ["without = ['mysql']", "with = ['mysql']", "with = ['hdf5']"] {
            merged.add(Origin::Flag, layer(text)).unwrap();
        }
        assert_eq!((merged.settings.with, merged.settings.without), (Some(names(&["hdf5"])), Some(names(&["mysql"]))));
        // Of one layer both stay, and planning asks which was meant.
        assert_eq!(features("", "with = ['lua']\nwithout = ['lua']"), (names(&["lua"]), names(&["lua"])));
    }

    #[test]
    fn the_catalog_merges_by_entry() {
        let mut merged = Merged::default();
        merged.add(Origin::BuiltIn, layer("[catalog.pins]\nmunge = '@0.5.15'\ncurl = '@8'")).unwrap();
        merged.add(Origin::Flag, layer("[catalog.pins]\nmunge = '@0.5.16'")).unwrap();
        assert_eq!(merged.settings.catalog.pins["munge"], "@0.5.16");
        assert_eq!(merged.settings.catalog.pins["curl"], "@8");
    }

    #[test]
    fn every_layer_may_say_something_about_registries() {
        let mut merged = Merged::default();
        merged.add(Origin::File("t.toml".into()), layer("[registries.aliases]\na = 'x/a'")).unwrap();
        merged.add(Origin::Flag, layer("jobs = 8")).unwrap();
        merged.add(Origin::Flag, layer("[[registries.registry]]\nlocation = 'x'")).unwrap();
        let tables: Vec<_> = merged.settings.registries.iter().map(|l| l.table.keys().next().unwrap()).collect();
        assert_eq!(tables, ["aliases", "registry"]);
        assert_eq!(merged.settings.registries[0].origin, Origin::File("t.toml".into()));
        assert_eq!(merged.settings.jobs, Some(8));
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_and_line() {
        let error = Settings::parse(Path::new("/etc/x.toml"), "jobs = 2\njbos = 3").unwrap_err().to_string();
        for part in ["/etc/x.toml", "jbos", "line 2"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn variables_are_typed_and_misspelt_ones_refused() {
        let vars =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
        let settings = Settings::from_env(
            vars(&[("SLURM_FACTORY_JOBS", "8"), ("SLURM_FACTORY_SPACK_REPOS", "/a,/b"), ("HOME", "/x")]),
            &[],
        )
        .unwrap();
        assert_eq!(settings.jobs, Some(8));
        assert_eq!(settings.spack_repos, Some(vec!["/a".into(), "/b".into()]));
        for bad in [("SLURM_FACTORY_JOBS", "many"), ("SLURM_FACTORY_JBOS", "8")] {
            let error = Settings::from_env(vars(&[bad]), &[]).unwrap_err().to_string();
            assert!(error.contains(bad.0), "{error}");
        }
        assert!(Settings::from_env(vars(&[("SLURM_FACTORY_TEST_SPACK", "x")]), &[]).is_ok());
    }

    #[test]
    fn sizes() {
        for (text, want) in [("0", Some(0)), ("2G", Some(2 << 30)), ("512MiB", Some(512 << 20)), ("1 k", Some(1024))] {
            assert_eq!(parse_size(text).ok(), want, "{text}");
        }
        for text in ["", "G", "2X", "-1", "99999999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
