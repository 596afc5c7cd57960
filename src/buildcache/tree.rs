//! A finished install tree of Spack, read and never written.
//!
//! ```text
//! TREE/.spack-db/index.json            {"database": {"version": "8", "installs": {HASH: {"path": PREFIX, "installed": true,
//!                                      "explicit": bool, "spec": {..}}}}}
//! TREE/NAME-VERSION-HASH/.spack/spec.json
//! ```
//!
//! The tree may lie elsewhere than it was built for, as the slot of a build sandbox does: PREFIX is the path that its files
//! name, and the folder is found by the end of that path.

use super::BuildcacheError;
use super::spec::Spec;
use fs_err as fs;
use globset::GlobSet;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where Spack keeps what is installed, below the root of a tree.
pub const DATABASE: &str = ".spack-db/index.json";

/// What Spack pads the path of an install tree with (`config:install_tree:padded_length`), one folder below another; the last
/// is the begin of this name.
pub(super) const PLACEHOLDER: &str = "__spack_path_placeholder__";

/// An install tree.
#[derive(Debug)]
pub struct Tree {
    dir: PathBuf,
    root: String,
    packages: BTreeMap<String, InTree>,
}

/// A package of the tree.
#[derive(Debug)]
pub struct InTree {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its DAG hash.
    pub hash: String,
    /// The prefix that its files name.
    pub prefix: String,
    /// The prefix's folder on this host.
    pub dir: PathBuf,
    /// Somebody asked for it: it is not only there for others.
    pub explicit: bool,
}

impl InTree {
    /// `munge-0.5.16 (uoeupca)`
    pub fn label(&self) -> String {
        format!("{}-{} ({})", self.name, self.version, self.hash.get(..7).unwrap_or(&self.hash))
    }
}

/// What of a tree is meant.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Names, or hashes of which seven letters are enough; all that were asked for explicitly when there is none.
    pub roots: Vec<String>,
    /// What was needed only to build as well.
    pub build_dependencies: bool,
    /// Packages whose names match are left out; what needs them is pushed all the same.
    pub exclude: GlobSet,
}

#[derive(Deserialize)]
struct File {
    database: Database,
}

#[derive(Deserialize)]
struct Database {
    version: String,
    installs: BTreeMap<String, Record>,
}

#[derive(Deserialize)]
struct Record {
    spec: Named,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    installed: bool,
    #[serde(default)]
    explicit: bool,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    external: Option<serde_json::Value>,
}

impl Tree {
    /// The root of the install tree that a folder is or, behind what Spack pads paths with, holds.
    pub fn find(dir: &Path) -> Option<PathBuf> {
        if dir.join(DATABASE).is_file() {
            return Some(dir.to_owned());
        }
        let padding = |e: &fs::DirEntry| {
            e.file_name().to_str().is_some_and(|name| !name.is_empty() && PLACEHOLDER.starts_with(name))
        };
        fs::read_dir(dir).ok()?.flatten().filter(padding).find_map(|e| Self::find(&e.path()))
    }

    /// Opens the tree in `dir`. Only the database is read.
    pub fn open(dir: &Path) -> Result<Self, BuildcacheError> {
        let dir = fs::canonicalize(dir)?;
        let refuse = |reason: String| BuildcacheError::NotATree { path: dir.clone(), reason };
        let bytes = fs::read(dir.join(DATABASE)).map_err(|e| refuse(e.to_string()))?;
        let file: File = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("{DATABASE}: {e}")))?;
        if !matches!(file.database.version.as_str(), "7" | "8") {
            return Err(refuse(format!(
                "{DATABASE} has version {}, and this program reads 7 and 8",
                file.database.version
            )));
        }
        let mut packages = BTreeMap::new();
        let mut roots = BTreeSet::new();
        for (hash, record) in file.database.installs {
            if record.spec.external.is_some_and(|e| !e.is_null()) || !record.installed {
                continue;
            }
            let Some(prefix) = record.path else { continue };
            let (root, below) = split(&dir, &prefix).ok_or_else(|| {
                refuse(format!(
                    "{} is said to be installed at `{prefix}`, and no end of that path is here",
                    record.spec.name
                ))
            })?;
            roots.insert(root);
            let package = InTree {
                name: record.spec.name,
                version: record.spec.version,
                dir: dir.join(below),
                hash: hash.clone(),
                explicit: record.explicit,
                prefix,
            };
            packages.insert(hash, package);
        }
        let root = match roots.len() {
            0 => return Err(refuse("nothing is installed in it".into())),
            1 => roots.pop_first().unwrap_or_default(),
            _ => return Err(refuse(format!("its prefixes have several roots: {}", Vec::from_iter(roots).join(", ")))),
        };
        Ok(Self { dir, root, packages })
    }

    /// Its folder on this host.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of the tree that its files name.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Every package by its hash.
    pub fn packages(&self) -> &BTreeMap<String, InTree> {
        &self.packages
    }

    /// The spec of a package, its hashes checked.
    pub fn spec(&self, package: &InTree) -> Result<Spec, BuildcacheError> {
        let path = package.dir.join(".spack/spec.json");
        let refuse = |reason: String| BuildcacheError::Package { package: package.label(), path: path.clone(), reason };
        let spec = Spec::parse(&fs::read(&path)?).map_err(|e| refuse(e.to_string()))?;
        if spec.root().hash != package.hash {
            return Err(refuse(format!(
                "its spec is of {}, and the tree's database says {}",
                spec.root().hash,
                package.hash
            )));
        }
        Ok(spec)
    }

    /// The chosen packages with their specs, by name and hash.
    pub fn select(&self, selection: &Selection) -> Result<Vec<(&InTree, Spec)>, BuildcacheError> {
        let mut roots = Vec::new();
        for wanted in &selection.roots {
            let hash = wanted.trim_start_matches('/');
            let before = roots.len();
            let is_it = |p: &&InTree| p.name == *wanted || (hash.len() >= 7 && p.hash.starts_with(hash));
            roots.extend(self.packages.values().filter(is_it));
            if roots.len() == before {
                let names: BTreeSet<&str> = self.packages.values().map(|p| p.name.as_str()).collect();
                return Err(BuildcacheError::Unknown {
                    path: self.dir.clone(),
                    wanted: wanted.clone(),
                    known: Vec::from_iter(names).join(" "),
                });
            }
        }
        if selection.roots.is_empty() {
            roots.extend(self.packages.values().filter(|p| p.explicit));
            if roots.is_empty() {
                // A store without an environment, or one whose marks were lost: all of it.
                roots.extend(self.packages.values());
            }
        }
        let kinds: &[&str] =
            if selection.build_dependencies { &["link", "run", "build", "test"] } else { &["link", "run"] };
        let mut wanted = BTreeSet::new();
        for root in roots {
            let spec = self.spec(root)?;
            let linked: BTreeSet<&str> = spec.closure(&["link", "run"]).iter().map(|n| n.hash.as_str()).collect();
            for node in spec.closure(kinds) {
                if node.external || selection.exclude.is_match(&node.name) {
                    continue;
                }
                match self.packages.get(&node.hash) {
                    Some(package) => {
                        wanted.insert((package.name.as_str(), package.hash.as_str()));
                    }
                    // What was needed to build may be gone since; what is linked may not.
                    None if !linked.contains(node.hash.as_str()) => {}
                    None => {
                        return Err(BuildcacheError::Package {
                            package: root.label(),
                            path: self.dir.clone(),
                            reason: format!(
                                "it needs {}-{} ({}), which is not installed",
                                node.name, node.version, node.hash
                            ),
                        });
                    }
                }
            }
        }
        let chosen = wanted.into_iter().filter_map(|(_, hash)| self.packages.get(hash));
        chosen.map(|package| Ok((package, self.spec(package)?))).collect()
    }
}

/// The root of the tree as `prefix` names it, and the rest of the path, of which the folder lies in `dir`: the longest end of
/// `prefix` that is there with a spec in it.
fn split(dir: &Path, prefix: &str) -> Option<(String, String)> {
    let mut at = 0;
    while let Some(next) = prefix.get(at..)?.find('/') {
        let slash = at + next;
        let below = prefix.get(slash + 1..)?;
        let safe = Path::new(below).components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if !below.is_empty() && safe && dir.join(below).join(".spack/spec.json").is_file() {
            return Some((prefix.get(..slash)?.to_owned(), below.to_owned()));
        }
        at = slash + 1;
    }
    None
}
