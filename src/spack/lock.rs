//! Reads `spack.lock`: which packages the solver chose. Only what this program uses is read.
//!
//! ```text
//! {"_meta": {"file-type": "spack-lockfile", "lockfile-version": 6, ...},
//!  "roots": [{"hash": H, "spec": "..."}],
//!  "concrete_specs": {H: {"name": .., "version": .., "external": {..}?,
//!                         "dependencies": [{"hash": H, "parameters": {"deptypes": [..]}, ..}]}}}
//! ```
//! Source: Spack v1.0 documentation, "Environments"; checked against files of v1.0.0.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A lockfile that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Not JSON, or not of this form.
    #[error("spack.lock does not parse: {0}")]
    Parse(#[from] serde_json::Error),
    /// A version of the format that this program does not know.
    #[error("spack.lock has format version {0}; this program reads 5 and 6")]
    Version(u64),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "_meta")]
    meta: Meta,
    roots: Vec<Root>,
    concrete_specs: BTreeMap<String, Node>,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(rename = "lockfile-version")]
    version: u64,
}

#[derive(Deserialize)]
struct Root {
    hash: String,
}

#[derive(Deserialize)]
struct Node {
    name: String,
    version: String,
    #[serde(default)]
    external: Option<Value>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    arch: Arch,
    #[serde(default)]
    dependencies: Vec<Dependency>,
}

impl Node {
    /// DAG hashes of what it links or runs.
    fn at_run_time(&self) -> impl Iterator<Item = &str> {
        let linked = |d: &&Dependency| d.parameters.deptypes.iter().any(|t| t == "link" || t == "run");
        self.dependencies.iter().filter(linked).map(|d| d.hash.as_str())
    }
}

#[derive(Default, Deserialize)]
struct Arch {
    #[serde(default)]
    target: Value,
}

impl Arch {
    /// A family is a string, anything narrower an object.
    fn name(&self) -> &str {
        self.target.as_str().or_else(|| self.target.get("name")?.as_str()).unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Dependency {
    hash: String,
    parameters: Parameters,
}

#[derive(Deserialize)]
struct Parameters {
    deptypes: Vec<String>,
}

/// A package that the solver chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedPackage {
    /// Spack's name.
    pub name: String,
    /// Spack's version.
    pub version: String,
    /// DAG hash.
    pub hash: String,
    /// The recipe repository that it comes from.
    pub namespace: String,
    /// What its code is made for, in Spack's words.
    pub target: String,
    /// True when it is taken from the rootfs.
    pub external: bool,
    /// True when it was asked for.
    pub root: bool,
    /// True when it was asked for, or is linked or run by one that was; what is needed only to build is not.
    pub needed: bool,
    /// DAG hashes of what it links or runs, sorted.
    pub dependencies: Vec<String>,
}

/// Parses a lockfile; packages are sorted by name, then hash.
pub fn parse(text: &str) -> Result<Vec<LockedPackage>, LockError> {
    let raw: Raw = serde_json::from_str(text)?;
    if !(5..=6).contains(&raw.meta.version) {
        return Err(LockError::Version(raw.meta.version));
    }
    let mut needed = BTreeSet::new();
    let mut queue: Vec<&str> = raw.roots.iter().map(|root| root.hash.as_str()).collect();
    while let Some(hash) = queue.pop() {
        if needed.insert(hash.to_owned())
            && let Some(node) = raw.concrete_specs.get(hash)
        {
            queue.extend(node.at_run_time());
        }
    }
    let mut packages: Vec<_> = raw
        .concrete_specs
        .into_iter()
        .map(|(hash, node)| LockedPackage {
            dependencies: node.at_run_time().map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect(),
            root: raw.roots.iter().any(|r| r.hash == hash),
            needed: needed.contains(&hash),
            target: node.arch.name().to_owned(),
            name: node.name,
            version: node.version,
            namespace: node.namespace.unwrap_or_default(),
            external: node.external.is_some_and(|e| !e.is_null()),
            hash,
        })
        .collect();
    packages.sort_by(|a, b| (&a.name, &a.hash).cmp(&(&b.name, &b.hash)));
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_roots_and_externals_are_told_apart() {
        let text = r#"{"_meta":{"file-type":"spack-lockfile","lockfile-version":6,"specfile-version":5},
            "roots":[{"hash":"h1","spec":"slurm"}],
            "concrete_specs":{
              "h1":{"name":"slurm","version":"24-11-5-1","namespace":"slurm_factory",
               "arch":{"platform":"linux","platform_os":"debian12","target":{"name":"x86_64_v3","vendor":"generic"}},"dependencies":[
                {"name":"gcc","hash":"h2","parameters":{"deptypes":["build"],"virtuals":["c"]}},
                {"name":"munge","hash":"h3","parameters":{"deptypes":["build","link"],"virtuals":[]}}]},
              "h3":{"name":"munge","version":"0.5.16","arch":{"target":"x86_64"},"dependencies":[
                {"name":"zlib","hash":"h4","parameters":{"deptypes":["link"],"virtuals":[]}}]},
              "h4":{"name":"zlib","version":"1.3.1"},
              "h2":{"name":"gcc","version":"12.2.0","external":{"path":"/usr","module":null}}}}"#;
        let packages = parse(text).unwrap();
        let facts: Vec<_> = packages.iter().map(|p| (p.name.as_str(), p.external, p.root, p.needed)).collect();
        let expected = [
            ("gcc", true, false, false),
            ("munge", false, false, true),
            ("slurm", false, true, true),
            ("zlib", false, false, true),
        ];
        assert_eq!(facts, expected);
        let targets: Vec<_> = packages.iter().map(|p| p.target.as_str()).collect();
        assert_eq!(targets, ["", "x86_64", "x86_64_v3", ""]);
        assert!(parse(&text.replace(":6,", ":9,")).unwrap_err().to_string().contains('9'));
    }
}
