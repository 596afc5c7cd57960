//! Removes what nothing names: packages that the index does not have, blobs that no manifest has, and halves that killed runs left.
//!
//! A publisher writes blobs first and the index last, so what nobody names yet may be on its way: only what is older than the
//! caller says is removed. Manifests go before their blobs, so that a reader never sees a name of what is not there; and which
//! blobs are named is asked after the listing, so that whatever came to be named meanwhile stays.
//!
//! In a registry only manifests are removed, whose age is what they say themselves: blobs that none names any more, the registry
//! clears away.

use super::manifest::{self, BLOBS, INDEX_MANIFEST, KEYS, Manifest, SPECS};
use super::oci::Image;
use super::{BuildcacheError, index, read};
use crate::publish::{Entry, Store};
use crate::report::Ctx;
use std::collections::BTreeSet;
use std::time::SystemTime;

/// What was removed, or would be.
#[derive(Debug, Default, serde::Serialize)]
pub struct Pruned {
    /// Keys of manifests.
    pub manifests: Vec<String>,
    /// Keys of blobs.
    pub blobs: Vec<String>,
    /// What killed runs left of objects under way.
    pub halves: Vec<String>,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Removes what is not named and was written before `before`. Without an index nothing is removed: everything would be.
pub fn prune(store: &dyn Store, before: SystemTime, dry_run: bool, ctx: &Ctx) -> Result<Pruned, BuildcacheError> {
    if store.registry() {
        return prune_registry(store, before, dry_run, ctx);
    }
    let old = |entry: &Entry| entry.modified < before;
    let manifests = store.list(SPECS, ctx)?;
    let blobs = store.list(BLOBS, ctx)?;
    let (index, version) = index::read(store, ctx)?;
    let mut pruned = Pruned::default();
    if version.is_none() {
        return Err(no_index(store)?);
    }
    let unnamed = |entry: &&Entry| old(entry) && !manifest::hash_of(&entry.key).is_some_and(|hash| index.has(hash));
    let gone: BTreeSet<&str> = manifests.iter().filter(unnamed).map(|e| e.key.as_str()).collect();
    // Every manifest that stays, those that came since the listing too.
    let mut named = BTreeSet::new();
    let staying = store.list(SPECS, ctx)?.into_iter().chain(store.list(KEYS, ctx)?).map(|e| e.key);
    for at in staying.chain([super::key(INDEX_MANIFEST.to_owned())?]) {
        if gone.contains(at.as_str()) {
            continue;
        }
        let Some((bytes, _)) = store.read(&at, manifest::LIMIT, ctx)? else { continue };
        let text = String::from_utf8_lossy(&bytes);
        // Signed or not, good or not: what it names stays.
        let text = manifest::as_spack_reads(&text).unwrap_or(&text);
        let manifest = Manifest::parse(text).map_err(|reason| BuildcacheError::Format {
            address: store.address().to_owned(),
            key: at.clone(),
            reason: format!("{reason}: what it names is not known, so nothing is removed"),
        })?;
        for blob in &manifest.data {
            named.insert(blob.key()?.as_str().to_owned());
        }
    }
    for entry in manifests.iter().filter(unnamed) {
        pruned.bytes += entry.size;
        pruned.manifests.push(entry.key.to_string());
        if !dry_run {
            store.delete(&entry.key, ctx)?;
        }
    }
    for entry in blobs.iter().filter(|e| old(e) && !named.contains(e.key.as_str())) {
        pruned.bytes += entry.size;
        pruned.blobs.push(entry.key.to_string());
        if !dry_run {
            store.delete(&entry.key, ctx)?;
        }
    }
    for half in store.sweep(before, dry_run, ctx)? {
        pruned.bytes += half.size;
        pruned.halves.push(half.key.to_string());
    }
    Ok(pruned)
}

/// The manifests that the index does not name. One that does not say when it was made, as Spack's do not, stays.
fn prune_registry(store: &dyn Store, before: SystemTime, dry_run: bool, ctx: &Ctx) -> Result<Pruned, BuildcacheError> {
    // Before the index, so that a package that comes between the two is in the index and not in the list.
    let there = read::manifests(store, ctx)?.0;
    let (index, version) = index::read(store, ctx)?;
    if version.is_none() {
        return Err(no_index(store)?);
    }
    let mut pruned = Pruned::default();
    for (hash, at) in there {
        if index.has(&hash) {
            continue;
        }
        let Ok(Some((bytes, _))) = read::small(store, &at, manifest::LIMIT, ctx)? else { continue };
        let created = Image::parse(&bytes).ok().and_then(|image| image.created()).map(SystemTime::from);
        if created.is_none_or(|created| created >= before) {
            continue;
        }
        pruned.bytes += bytes.len() as u64;
        pruned.manifests.push(at.to_string());
        if !dry_run {
            store.delete(&at, ctx)?;
        }
    }
    Ok(pruned)
}

fn no_index(store: &dyn Store) -> Result<BuildcacheError, BuildcacheError> {
    let key = super::key(read::index_at(store).to_owned())?;
    let reason = "there is no index, by which what is needed is known; `buildcache index` makes one".to_owned();
    Ok(BuildcacheError::Format { address: store.address().to_owned(), key, reason })
}
