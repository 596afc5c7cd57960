//! The index: what a cache holds, as Spack's database of version 8.
//!
//! ```text
//! {"database": {"version": "8", "installs": {HASH: {"spec": NODE, "ref_count": n, "in_buildcache": bool}}}}
//! ```
//!
//! Every node of every pushed spec is in it, externals and build dependencies too; `in_buildcache` tells those that have a
//! manifest. It is not signed, and tells Spack only where to look.
//!
//! # In a registry
//!
//! A registry has no conditional writes, so of two publishers that read the same index the second would undo what the first
//! wrote. But tags can be listed, and each package has one before its publisher comes to the index. So a publisher that wrote the
//! index lists the tags again, and reads the index again, until it finds every package of the list in the index. Whoever wrote
//! last did that afterwards: what it did not find was tagged later still, by a publisher who has yet to look. So nothing is lost
//! when all of them end; when one is killed, the next push or `buildcache index` adds what is missing, and Spack finds a package
//! by its tag meanwhile.

use super::manifest::{self, Blob, INDEX, INDEX_MANIFEST, JSON, Manifest};
use super::oci::{self, Image};
use super::read::{self as reader, index_at};
use super::spec::{self, Spec};
use super::{BuildcacheError, key};
use crate::publish::{Condition, Keep, Put, Store, Version, Written, until_written};
use crate::report::Ctx;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Larger indexes than that are not read: a hundred thousand packages have half of it.
const LIMIT: u64 = 4 << 30;

/// The index in memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Index {
    /// Hash to record; every record is an object.
    installs: Map<String, Value>,
}

/// A package of the index.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its DAG hash.
    pub hash: String,
    /// The operating system that it was built for.
    pub os: String,
    /// The processor that it was built for.
    pub target: String,
}

impl Index {
    /// Reads the blob's bytes; the reason when they are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut json: Value = serde_json::from_slice(bytes).map_err(|e| format!("it does not parse: {e}"))?;
        let version = json.pointer("/database/version").and_then(Value::as_str).unwrap_or("(none)");
        if version != "8" {
            return Err(format!("it is of version {version}, and version 8 is read and written"));
        }
        match json.pointer_mut("/database/installs").map(Value::take) {
            Some(Value::Object(installs)) => match installs.iter().find(|(_, record)| !record.is_object()) {
                None => Ok(Self { installs }),
                Some((hash, _)) => Err(format!(
                    "what it says of `{}` is no object: `buildcache index` makes a new one",
                    hash.escape_debug()
                )),
            },
            _ => Err("it has no `installs`".into()),
        }
    }

    /// The bytes of the blob: the same for the same content, whatever the order in which it was merged.
    pub fn bytes(&self) -> Vec<u8> {
        let mut hashes: Vec<&String> = self.installs.keys().collect();
        hashes.sort();
        let sorted: Map<String, Value> =
            hashes.into_iter().filter_map(|h| Some((h.clone(), self.installs.get(h)?.clone()))).collect();
        json!({"database": {"version": "8", "installs": sorted}}).to_string().into_bytes()
    }

    /// Adds a package that is in the cache, and all that it depends on.
    pub fn add(&mut self, spec: &Spec) {
        for node in spec.nodes() {
            if !self.installs.contains_key(&node.hash) {
                let record = json!({"spec": node.json, "ref_count": 0, "in_buildcache": false});
                self.installs.insert(node.hash.clone(), record);
            }
        }
        if let Some(record) = self.installs.get_mut(&spec.root().hash) {
            record["in_buildcache"] = true.into();
        }
    }

    /// Says that a package is not in the cache.
    pub fn remove(&mut self, hash: &str) {
        if let Some(record) = self.installs.get_mut(hash) {
            record["in_buildcache"] = false.into();
        }
    }

    /// Whether the package is in the cache, by the index.
    pub fn has(&self, hash: &str) -> bool {
        self.installs.get(hash).is_some_and(|r| r["in_buildcache"] == true)
    }

    /// Forgets what no package of the cache needs, and counts who needs whom.
    pub fn settle(&mut self) {
        let mut needed = std::collections::BTreeSet::new();
        let mut queue: Vec<String> = self.installs.keys().filter(|h| self.has(h)).cloned().collect();
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        while let Some(hash) = queue.pop() {
            if !needed.insert(hash.clone()) {
                continue;
            }
            let dependencies =
                self.installs.get(&hash).and_then(|r| spec::node(&r["spec"]).ok()).map(|n| n.dependencies);
            for (dependency, _) in dependencies.unwrap_or_default() {
                *counts.entry(dependency.clone()).or_default() += 1;
                queue.push(dependency);
            }
        }
        self.installs.retain(|hash, _| needed.contains(hash));
        for (hash, record) in &mut self.installs {
            record["ref_count"] = counts.get(hash).copied().unwrap_or(0).into();
        }
    }

    /// The packages in the cache, by name, version and hash.
    pub fn entries(&self) -> Vec<Entry> {
        let text = |record: &Value, at: &str| record.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut entries: Vec<Entry> = self
            .installs
            .iter()
            .filter(|(hash, _)| self.has(hash))
            .map(|(hash, record)| Entry {
                name: text(record, "/spec/name"),
                version: text(record, "/spec/version"),
                hash: hash.clone(),
                os: text(record, "/spec/arch/platform_os"),
                target: record.pointer("/spec/arch/target").map_or_else(String::new, target),
            })
            .collect();
        entries.sort_by(|a, b| (&a.name, &a.version, &a.hash).cmp(&(&b.name, &b.version, &b.hash)));
        entries
    }
}

/// A target is a name, or, for processors that are not generic, an object with a name.
fn target(value: &Value) -> String {
    value.as_str().or_else(|| value.get("name")?.as_str()).unwrap_or_default().to_owned()
}

/// The index that is there, with the version of its manifest; an empty one when there is none yet.
pub fn read(store: &dyn Store, ctx: &Ctx) -> Result<(Index, Option<Version>), BuildcacheError> {
    let at = key(index_at(store).to_owned())?;
    let refuse = |key, reason| BuildcacheError::Format { address: store.address().to_owned(), key, reason };
    let (blob, version) = if store.registry() {
        let found = reader::small(store, &at, manifest::LIMIT, ctx)?.map_err(|reason| refuse(at.clone(), reason))?;
        let Some((bytes, version)) = found else { return Ok((Index::default(), None)) };
        let blob = Image::parse(&bytes).and_then(|image| image.index()).map_err(|reason| refuse(at, reason))?;
        (blob, version)
    } else {
        let Some((manifest, version)) = manifest::read_plain(store, INDEX_MANIFEST, ctx)? else {
            return Ok((Index::default(), None));
        };
        (manifest.blob(INDEX).map_err(|reason| refuse(at, reason))?.clone(), version)
    };
    let at = blob.key()?;
    let found = super::read::small(store, &at, LIMIT, ctx)?;
    let found =
        found.and_then(|found| found.ok_or_else(|| "the index's manifest names it, and it is not there".into()));
    let (bytes, _) =
        found.map_err(|reason| refuse(at.clone(), format!("{reason}: `buildcache index` makes a new one")))?;
    if let Some(reason) = reader::differs(&blob, &bytes) {
        return Err(refuse(at, format!("{reason}: `buildcache index` makes a new one")));
    }
    let index = Index::parse(&bytes).map_err(|reason| refuse(at, reason))?;
    Ok((index, Some(version)))
}

/// Changes the index with `change` until nobody else changed it meanwhile; nothing is written when it stays the same. Returns
/// whether it was written.
pub fn update(store: &dyn Store, ctx: &Ctx, change: impl Fn(&mut Index)) -> Result<bool, BuildcacheError> {
    if store.registry() {
        return update_registry(store, ctx, change);
    }
    let written = until_written(ctx, |attempt| {
        let (before, version) = match read(store, ctx) {
            Ok(found) => found,
            // Another publisher pruned the blob between our two readings.
            Err(BuildcacheError::Format { .. }) if attempt < 3 => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut index = before.clone();
        change(&mut index);
        index.settle();
        if index == before && version.is_some() {
            return Ok(Some(false));
        }
        Ok(write(store, &index, version, ctx)?.then_some(true))
    })?;
    written.ok_or_else(|| BuildcacheError::contended(store))
}

/// The same where there are no conditions: until what was written is found again, with every package that has a tag.
fn update_registry(store: &dyn Store, ctx: &Ctx, change: impl Fn(&mut Index)) -> Result<bool, BuildcacheError> {
    let mut wrote = false;
    let written = until_written(ctx, |_| {
        // The tags first: what is in the list is in the index of whoever tagged it and went on, or is not yet.
        let (tags, _) = reader::manifests(store, ctx)?;
        let (before, version) = match read(store, ctx) {
            Ok(found) => found,
            // It is made of the tags.
            Err(BuildcacheError::Format { .. }) => (Index::default(), None),
            Err(e) => return Err(e),
        };
        let mut index = before.clone();
        change(&mut index);
        // One that cannot be used is told by `check`. It is looked at again each time: its tag may be on its way.
        let unnamed: Vec<_> = tags.iter().filter(|(hash, _)| !index.has(hash)).collect();
        let (specs, _) = reader::packages(store, None, &unnamed, ctx)?;
        for spec in &specs {
            index.add(spec);
        }
        index.settle();
        if index == before && version.is_some() {
            return Ok(Some(wrote));
        }
        oci::put_index(store, &index.bytes(), Condition::Always, ctx)?;
        wrote = true;
        Ok::<_, BuildcacheError>(None)
    })?;
    written.ok_or_else(|| BuildcacheError::contended(store))
}

/// Writes the index in the place of the one of this version; false when it is another's by now.
fn write(store: &dyn Store, index: &Index, version: Option<Version>, ctx: &Ctx) -> Result<bool, BuildcacheError> {
    let condition = version.map_or(Condition::Absent, Condition::Unchanged);
    let bytes = index.bytes();
    if store.registry() {
        return Ok(oci::put_index(store, &bytes, condition, ctx)? != Written::Conflict);
    }
    let blob = Blob::new(INDEX, "none", bytes.len() as u64, hex::encode(Sha256::digest(&bytes)));
    // Always: a damaged one must not stay.
    let how = Put { content_type: INDEX, keep: Keep::Forever, condition: Condition::Always };
    store.put(&blob.key()?, &bytes, &how, ctx)?;
    let text = Manifest::new(vec![blob]).text();
    let how = Put { content_type: JSON, keep: Keep::Briefly, condition };
    Ok(store.put(&key(INDEX_MANIFEST.to_owned())?, text.as_bytes(), &how, ctx)? != Written::Conflict)
}

/// Makes the index anew from the specs that the manifests name. What another publisher adds meanwhile is kept: the whole is done
/// again then. In a registry, where Spack asks for no signatures, neither does the index.
pub fn rebuild(
    store: &dyn Store,
    keyring: &crate::sign::Keyring,
    ctx: &Ctx,
) -> Result<(usize, Vec<super::check::Fault>), BuildcacheError> {
    let written = until_written(ctx, |_| {
        let at = key(index_at(store).to_owned())?;
        let version = if let Ok(found) = super::read::small(store, &at, manifest::LIMIT, ctx)? {
            found.map(|(_, version)| version)
        } else {
            // Too large to be one: nobody can use it, nor can it be compared.
            store.delete(&at, ctx)?;
            None
        };
        let (there, mut faults) = reader::manifests(store, ctx)?;
        let there: Vec<_> = there.iter().collect();
        // That one may not be read ends this: an index without it would say that it is not there.
        let (specs, more) = reader::packages(store, (!store.registry()).then_some(keyring), &there, ctx)?;
        faults.extend(more);
        let mut index = Index::default();
        for spec in &specs {
            index.add(spec);
        }
        index.settle();
        Ok::<_, BuildcacheError>(write(store, &index, version, ctx)?.then_some((specs.len(), faults)))
    })?;
    let made = written.ok_or_else(|| BuildcacheError::contended(store))?;
    if store.registry() {
        // Whoever came between.
        update(store, ctx, |_| {})?;
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_with_a_record_that_is_no_object_is_refused() {
        for record in ["1", "\"x\"", "[]", "null", "true"] {
            let text = format!(r#"{{"database": {{"version": "8", "installs": {{"a\u001b": {record}}}}}}}"#);
            let reason = Index::parse(text.as_bytes()).map(|mut index| index.remove("a\u{1b}")).unwrap_err();
            assert!(reason.contains("`buildcache index`") && !reason.contains('\u{1b}'), "{record}: {reason}");
        }
        let mut index = Index::parse(br#"{"database": {"version": "8", "installs": {"a": {}}}}"#).unwrap();
        index.remove("a");
        index.settle();
        assert_eq!(index, Index::default());
    }
}
