//! A concrete spec as Spack writes it to `.spack/spec.json`, and the hash that names it.
//!
//! ```text
//! {"spec": {"_meta": {"version": 5},
//!           "nodes": [{"name": .., "version": .., ..., "external": {..}?,
//!                      "dependencies": [{"name": .., "hash": H, "parameters": {"deptypes": [..], "virtuals": [..]}}],
//!                      "hash": H}, ...]}}                       the package itself first, then all it depends on
//! ```
//!
//! The hash of a node is the SHA-1, in base32 and lower case, of the node as compact ASCII JSON with its keys in their order
//! and without "hash". It covers the hashes of the dependencies, hence everything below. Compared with all nodes of trees that
//! Spack v1.0.0 and v1.1.0 installed.

use serde_json::Value;
use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

/// The version of the format that is understood.
const SPECFILE: u64 = 5;

/// A spec that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not JSON, or not of this form.
    #[error("it is no spec file: {0}")]
    Form(String),
    /// A version of the format that this program does not know.
    #[error("it has format version {0}, and this program reads {SPECFILE}")]
    Version(u64),
    /// The content was changed, or another's hash was written into it.
    #[error("{name} says that its hash is {said}, and its content has the hash {found}")]
    Hash {
        /// The node.
        name: String,
        /// What stands in the file.
        said: String,
        /// What the content gives.
        found: String,
    },
    /// Its hash cannot be computed from its content.
    #[error("{name} is spliced from another build: its hash does not follow from its content, which is not supported")]
    Spliced {
        /// The node.
        name: String,
    },
}

/// One package of a spec.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its DAG hash.
    pub hash: String,
    /// It is not installed by Spack, but taken from the system.
    pub external: bool,
    /// Hashes of what it depends on, with the kinds of the dependency (`build`, `link`, `run`, `test`).
    pub dependencies: Vec<(String, Vec<String>)>,
    /// The node as it stands in the file.
    pub json: Value,
}

/// A package with all it depends on, every hash computed again and found right.
#[derive(Debug, Clone)]
pub struct Spec {
    nodes: Vec<Node>,
    json: Value,
}

impl Spec {
    /// Reads a spec file; every node's hash is computed from its content.
    pub fn parse(bytes: &[u8]) -> Result<Self, SpecError> {
        let json: Value = serde_json::from_slice(bytes).map_err(|e| SpecError::Form(e.to_string()))?;
        let missing = |what: &str| SpecError::Form(format!("it has no `{what}`"));
        let version = json.pointer("/spec/_meta/version").and_then(Value::as_u64).ok_or_else(|| missing("_meta"))?;
        if version != SPECFILE {
            return Err(SpecError::Version(version));
        }
        let nodes = json.pointer("/spec/nodes").and_then(Value::as_array).ok_or_else(|| missing("nodes"))?;
        let nodes: Vec<Node> = nodes.iter().map(node).collect::<Result<_, _>>()?;
        if nodes.is_empty() {
            return Err(missing("nodes"));
        }
        let known: BTreeSet<&str> = nodes.iter().map(|n| n.hash.as_str()).collect();
        for node in &nodes {
            let found = dag_hash(&node.json);
            if node.json.get("build_spec").is_some() {
                return Err(SpecError::Spliced { name: node.name.clone() });
            }
            if found != node.hash {
                return Err(SpecError::Hash { name: node.name.clone(), said: node.hash.clone(), found });
            }
            if let Some((hash, _)) = node.dependencies.iter().find(|(hash, _)| !known.contains(hash.as_str())) {
                return Err(SpecError::Form(format!("{} depends on {hash}, which is not in it", node.name)));
            }
        }
        Ok(Self { nodes, json })
    }

    /// The package itself.
    pub fn root(&self) -> &Node {
        // Never empty: `parse` is the only door.
        &self.nodes[0]
    }

    /// The package and all that it depends on, build dependencies and externals included.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The spec as a cache keeps it: with the mark that Spack's readers still ask for, compact.
    pub(super) fn for_cache(&self) -> Vec<u8> {
        let mut json = self.json.clone();
        if let Some(object) = json.as_object_mut() {
            object.insert("buildcache_layout_version".into(), 2.into());
        }
        ascii(&json.to_string()).into_bytes()
    }

    /// The same as the configuration of an image in a registry: `config` is an image's own part, `archive` says what else Spack's
    /// has beside the spec.
    pub(super) fn for_registry(&self, config: &Value, archive: &Value) -> Vec<u8> {
        let mark = serde_json::json!({"buildcache_layout_version": 2});
        let parts = [config, &self.json, &mark, archive].into_iter().filter_map(Value::as_object).flatten();
        let whole: serde_json::Map<String, Value> = parts.map(|(name, value)| (name.clone(), value.clone())).collect();
        ascii(&Value::Object(whole).to_string()).into_bytes()
    }

    /// Hashes of the package, of what it links transitively, and of what it runs itself: all that its files may name. Externals
    /// are not among them.
    pub fn relocated(&self) -> Vec<&Node> {
        let mut found = self.closure(&["link"]);
        for (hash, kinds) in &self.root().dependencies {
            if kinds.iter().any(|k| k == "run") && !found.iter().any(|n| n.hash == *hash) {
                found.extend(self.nodes.iter().find(|n| n.hash == *hash));
            }
        }
        found.retain(|n| !n.external);
        found
    }

    /// The package and what it needs along edges of these kinds, nearest first.
    pub fn closure(&self, kinds: &[&str]) -> Vec<&Node> {
        let by_hash: BTreeMap<&str, &Node> = self.nodes.iter().map(|n| (n.hash.as_str(), n)).collect();
        let mut seen = BTreeSet::from([self.root().hash.as_str()]);
        let mut queue = VecDeque::from([self.root()]);
        let mut found = Vec::new();
        while let Some(node) = queue.pop_front() {
            found.push(node);
            for (hash, of) in &node.dependencies {
                if of.iter().any(|k| kinds.contains(&k.as_str()))
                    && seen.insert(hash)
                    && let Some(next) = by_hash.get(hash.as_str())
                {
                    queue.push_back(next);
                }
            }
        }
        found
    }
}

pub(super) fn node(json: &Value) -> Result<Node, SpecError> {
    let text = |name: &str| {
        let value = json.get(name).and_then(Value::as_str);
        value.map(str::to_owned).ok_or_else(|| SpecError::Form(format!("a node has no `{name}`")))
    };
    let name = text("name")?;
    let hash = text("hash")?;
    if !is_hash(&hash) {
        return Err(SpecError::Form(format!("`{}` is no hash", hash.escape_debug())));
    }
    let mut dependencies = Vec::new();
    for dependency in json.get("dependencies").and_then(Value::as_array).into_iter().flatten() {
        let to = dependency.get("hash").and_then(Value::as_str);
        let kinds = dependency.pointer("/parameters/deptypes").and_then(Value::as_array);
        let (Some(to), Some(kinds)) = (to, kinds) else {
            return Err(SpecError::Form(format!("a dependency of {name} has no hash or no kind")));
        };
        let kinds = kinds.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        dependencies.push((to.to_owned(), kinds));
    }
    Ok(Node {
        version: text("version")?,
        external: json.get("external").is_some_and(|e| !e.is_null()),
        name,
        hash,
        dependencies,
        json: json.clone(),
    })
}

/// Whether this has the form of a DAG hash: 32 letters and digits of base32.
pub fn is_hash(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
}

/// The hash of a node, from its content.
pub fn dag_hash(node: &Value) -> String {
    let mut node = node.clone();
    if let Some(object) = node.as_object_mut() {
        object.shift_remove("hash");
    }
    let digest = Sha1::digest(ascii(&node.to_string()));
    data_encoding::BASE32_NOPAD.encode(&digest).to_lowercase()
}

/// JSON as Python writes it by default: what is not printable ASCII is escaped.
fn ascii(json: &str) -> String {
    if json.bytes().all(|b| b < 0x7f) {
        return json.to_owned();
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if c < '\u{7f}' {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_escaped_as_python_does() {
        // python3 -c 'import json; print(json.dumps("a\u00e9\u20ac\U0001f600\x7f\n"))'
        assert_eq!(ascii("\"a\u{e9}\u{20ac}\u{1f600}\u{7f}\\n\""), "\"a\\u00e9\\u20ac\\ud83d\\ude00\\u007f\\n\"");
    }

    #[test]
    fn the_hash_is_that_of_spack() {
        // From a tree that Spack v1.0.0 made: the external gmake of a Debian 12.
        let node: Value = serde_json::from_str(
            r#"{"name":"gmake","version":"4.3","arch":{"platform":"linux","platform_os":"debian12","target":"x86_64"},"namespace":"builtin","parameters":{"build_system":"generic","guile":false,"patches":["599f134e69f696ad1ff32b001ea132a49749ebd92ab2b4f4d26afdda2c33cc43"],"cflags":[],"cppflags":[],"cxxflags":[],"fflags":[],"ldflags":[],"ldlibs":[]},"external":{"path":"/usr","module":null,"extra_attributes":{}},"patches":["599f134e69f696ad1ff32b001ea132a49749ebd92ab2b4f4d26afdda2c33cc43"],"package_hash":"dlmb5kapnkx5gwbpl7t5hqi2dw6howsmabfbfsrywadjh5fgg3ta====","annotations":{"original_specfile_version":5},"hash":"c7we7ourkzajibb6dkzhje2avoi2knbn"}"#,
        )
        .unwrap();
        assert_eq!(dag_hash(&node), "c7we7ourkzajibb6dkzhje2avoi2knbn");
        let file = |node: &Value| serde_json::json!({"spec": {"_meta": {"version": 5}, "nodes": [node]}}).to_string();
        let spec = Spec::parse(file(&node).as_bytes()).unwrap();
        assert_eq!((spec.root().name.as_str(), spec.root().external), ("gmake", true));
        let mut changed = node.clone();
        changed["version"] = "4.4".into();
        assert!(matches!(Spec::parse(file(&changed).as_bytes()), Err(SpecError::Hash { .. })));
        changed["build_spec"] = "x".into();
        assert!(matches!(Spec::parse(file(&changed).as_bytes()), Err(SpecError::Spliced { .. })));
        changed["hash"] = "../../../etc".into();
        assert!(matches!(Spec::parse(file(&changed).as_bytes()), Err(SpecError::Form(_))));
    }
}
