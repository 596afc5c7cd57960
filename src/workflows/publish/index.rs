//! `index.json`: what packages a place holds. Written last, and only over the state that was read.
//!
//! ```text
//! { "schema": 1,
//!   "packages": [                                       sorted by path
//!     { "path": "slurm/25.11/13.3.0/slurm-25.11-gcc13.3.0-software.tar.gz",
//!       "slurm": "25.11.1", "compiler": "13.3.0", "toolchain": "noble", "target": "x86_64",
//!       "glibc": "2.39",                                the oldest that it runs with; missing when any does
//!       "bytes": 123, "sha256": "ab12...", "signed_by": "FINGERPRINT", "plan": "cd34...", "spack_hash": "ef56..." } ] }
//! ```

use super::PublishError;
use crate::package::{Facts, Package};
use crate::publish::{Condition, Keep, Key, Put, Store, TRIES, Version, Written, until_written};
use crate::report::Ctx;
use serde::{Deserialize, Serialize};

/// Where it is, below the address.
pub const KEY: &str = "index.json";

const SCHEMA: u32 = 1;

/// The largest that is read, bytes.
const LIMIT: u64 = 64 << 20;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// The version of this format.
    pub schema: u32,
    /// Sorted by path.
    pub packages: Vec<Listed>,
}

/// One package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The archive's key.
    pub path: String,
    /// Slurm's version; missing for a compiler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slurm: Option<String>,
    /// GCC's version: of the one that compiled it, or of the compiler that it is.
    pub compiler: String,
    /// The toolchain.
    pub toolchain: String,
    /// The processor.
    pub target: String,
    /// The oldest glibc that it runs with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub glibc: Option<String>,
    /// The archive's size in bytes.
    pub bytes: u64,
    /// The archive's SHA-256.
    pub sha256: String,
    /// The fingerprint of the key that signed it.
    pub signed_by: String,
    /// The digest of the plan that it was built by.
    pub plan: String,
    /// The DAG hash by which Spack knows its Slurm, or the compiler; missing when an older version published it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spack_hash: Option<String>,
}

impl Listed {
    pub(super) fn new(path: &str, package: &Package, signed_by: String) -> Self {
        let facts = &package.manifest().facts;
        Self {
            path: path.to_owned(),
            slurm: facts.slurm.as_ref().map(|slurm| slurm.release.clone()),
            compiler: facts.compiler.release.clone(),
            toolchain: facts.toolchain.clone(),
            target: facts.target.clone(),
            glibc: facts.glibc.as_ref().map(|glibc| glibc.version.clone()),
            bytes: package.size(),
            sha256: package.sha256().to_owned(),
            signed_by,
            plan: facts.plan_sha256.clone(),
            spack_hash: root(facts),
        }
    }
}

/// The DAG hash of what a package is of: of the two GCCs below a compiler, the one of its version.
fn root(facts: &Facts) -> Option<String> {
    let (name, version) = match &facts.slurm {
        Some(_) => ("slurm", None),
        None => ("gcc", Some(&facts.compiler.release)),
    };
    let found = facts.packages.iter().find(|p| p.name == name && version.is_none_or(|v| p.version == *v));
    found.map(|p| p.hash.clone())
}

impl Index {
    /// Adds an entry, or puts it in the place of the one of its path; false when it is there. An entry of the same archive with
    /// another signer stays unless `replace` says that the signature was replaced: else the one that lies there is the other's.
    pub fn insert(&mut self, entry: &Listed, replace: bool) -> bool {
        match self.packages.binary_search_by(|there| there.path.cmp(&entry.path)) {
            Ok(at)
                if self.packages[at].sha256 == entry.sha256
                    && (!replace || self.packages[at].signed_by == entry.signed_by) =>
            {
                false
            }
            Ok(at) => {
                self.packages[at] = entry.clone();
                true
            }
            Err(at) => {
                self.packages.insert(at, entry.clone());
                true
            }
        }
    }

    /// Forgets an entry; false when it is not there.
    pub fn remove(&mut self, path: &str) -> bool {
        let before = self.packages.len();
        self.packages.retain(|there| there.path != path);
        self.packages.len() < before
    }
}

/// The index, and the state of it that was read.
pub fn read(store: &dyn Store, ctx: &Ctx) -> Result<(Index, Option<Version>), PublishError> {
    let fault = |reason: String| PublishError::Index { address: store.address().to_owned(), reason };
    let Some((bytes, version)) = store.read(&Key::new(KEY)?, LIMIT, ctx)? else {
        return Ok((Index { schema: SCHEMA, packages: Vec::new() }, None));
    };
    let mut index: Index = serde_json::from_slice(&bytes).map_err(|e| {
        fault(format!("it is not an index of packages ({e}); something else is published here: choose another --to"))
    })?;
    if index.schema > SCHEMA {
        let text =
            format!("its schema is {}, and this version knows {SCHEMA}; use a newer slurm-factory", index.schema);
        return Err(fault(text));
    }
    index.packages.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((index, Some(version)))
}

/// Reads, changes and writes, again when another publisher wrote meanwhile. `change` says whether there is something to write;
/// so does this.
pub fn update(store: &dyn Store, ctx: &Ctx, mut change: impl FnMut(&mut Index) -> bool) -> Result<bool, PublishError> {
    let written = until_written(ctx, |_| {
        let (mut index, version) = read(store, ctx)?;
        if !change(&mut index) {
            return Ok(Some(false));
        }
        let mut text = serde_json::to_vec_pretty(&index)
            .map_err(|e| PublishError::Index { address: store.address().to_owned(), reason: e.to_string() })?;
        text.push(b'\n');
        let condition = version.map_or(Condition::Absent, Condition::Unchanged);
        let how = Put { content_type: "application/json", keep: Keep::Briefly, condition };
        let written = store.put(&Key::new(KEY)?, &text, &how, ctx)?;
        Ok::<_, PublishError>((written != Written::Conflict).then_some(true))
    })?;
    written.ok_or_else(|| PublishError::Index {
        address: store.address().to_owned(),
        reason: format!("other publishers came first {TRIES} times; run the same again, nothing is sent twice"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::FolderStore;

    fn listed(path: &str, sha256: &str) -> Listed {
        let text = serde_json::json!({"path": path, "slurm": "25.11", "compiler": "13.3.0", "toolchain": "noble",
            "target": "x86_64", "bytes": 1, "sha256": sha256, "signed_by": "F", "plan": "p"});
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn entries_are_sorted_and_replaced_by_their_path() {
        let mut index = Index { schema: SCHEMA, packages: Vec::new() };
        assert!(index.insert(&listed("b", "1"), false) && index.insert(&listed("a", "1"), false));
        assert!(!index.insert(&listed("b", "1"), true) && index.insert(&listed("b", "2"), false));
        let again = Listed { signed_by: "G".into(), ..listed("b", "2") };
        assert!(!index.insert(&again, false) && index.packages[1].signed_by == "F");
        assert!(index.insert(&again, true) && index.packages[1].signed_by == "G");
        let paths: Vec<_> = index.packages.iter().map(|p| (p.path.as_str(), p.sha256.as_str())).collect();
        assert_eq!(paths, [("a", "1"), ("b", "2")]);
        assert!(index.remove("a") && !index.remove("a"));
    }

    #[test]
    fn an_index_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (store, ctx) = (FolderStore::new(dir.path()), Ctx::silent());
        for (text, hint) in [("{\"name\": \"x\"}", "something else"), ("{\"schema\": 9, \"packages\": []}", "newer")] {
            fs_err::write(dir.path().join(KEY), text).unwrap();
            let error = update(&store, &ctx, |_| true).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
            assert_eq!(fs_err::read_to_string(dir.path().join(KEY)).unwrap(), text);
        }
    }
}
