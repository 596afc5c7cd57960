//! Public keys in a cache: what `spack buildcache keys --install --trust` takes.
//!
//! They lie beside what they signed, so whoever can write the cache can write them: a user must compare the fingerprint with one
//! that came another way.

use super::manifest::{self, Blob, JSON, KEY_INDEX, KEY_SUFFIX, KEYS, KEYS_MANIFEST, Manifest, PUBLIC_KEY};
use super::{BuildcacheError, key, read};
use crate::publish::{Condition, Keep, Key, Put, Store, Written, until_written};
use crate::report::Ctx;
use crate::sign::SigningKey;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Puts, where there is a place for keys, the public half of `signer` and its line in the list of keys where they are not there yet.
pub fn publish(store: &dyn Store, signer: &SigningKey, ctx: &Ctx) -> Result<(), BuildcacheError> {
    if store.registry() {
        return Ok(());
    }
    let fingerprint = signer.fingerprint().to_string();
    let at = key(format!("{KEYS}{fingerprint}{KEY_SUFFIX}"))?;
    let armored = signer.public_armored()?;
    let (blob, manifest) = named(armored.as_bytes(), PUBLIC_KEY);
    let known = store.read(&at, manifest::LIMIT, ctx)?;
    if known.is_none_or(|(bytes, _)| bytes != manifest.as_bytes()) {
        put(store, &blob, armored.as_bytes(), PUBLIC_KEY, ctx)?;
        let how = Put { content_type: JSON, keep: Keep::Briefly, condition: Condition::Always };
        store.put(&at, manifest.as_bytes(), &how, ctx)?;
    }
    let written = until_written(ctx, |_| {
        let (mut list, version) = listed(store, ctx)?;
        if version.is_some() && list.contains_key(&fingerprint) {
            return Ok(Some(()));
        }
        list.insert(fingerprint.clone(), json!({}));
        let text = json!({"keys": list}).to_string();
        let (blob, manifest) = named(text.as_bytes(), KEY_INDEX);
        put(store, &blob, text.as_bytes(), KEY_INDEX, ctx)?;
        let condition = version.map_or(Condition::Absent, Condition::Unchanged);
        let how = Put { content_type: JSON, keep: Keep::Briefly, condition };
        let written = store.put(&key(KEYS_MANIFEST.to_owned())?, manifest.as_bytes(), &how, ctx)?;
        Ok::<_, BuildcacheError>((written != Written::Conflict).then_some(()))
    })?;
    written.ok_or_else(|| BuildcacheError::contended(store))
}

fn named(bytes: &[u8], media_type: &str) -> (Blob, String) {
    let blob = Blob::new(media_type, "none", bytes.len() as u64, hex::encode(Sha256::digest(bytes)));
    let text = Manifest::new(vec![blob.clone()]).text();
    (blob, text)
}

fn put(store: &dyn Store, blob: &Blob, bytes: &[u8], media_type: &str, ctx: &Ctx) -> Result<(), BuildcacheError> {
    let how = Put { content_type: media_type, keep: Keep::Forever, condition: Condition::Always };
    store.put(&blob.key()?, bytes, &how, ctx)?;
    Ok(())
}

/// Fingerprints in the list, and the version of its manifest. A list that cannot be read is made anew.
fn listed(
    store: &dyn Store,
    ctx: &Ctx,
) -> Result<(Map<String, Value>, Option<crate::publish::Version>), BuildcacheError> {
    let Some((manifest, version)) = manifest::read_plain(store, KEYS_MANIFEST, ctx)? else {
        return Ok((Map::new(), None));
    };
    let list = match manifest.blob(KEY_INDEX) {
        Ok(blob) => store.read(&blob.key()?, manifest::LIMIT, ctx)?,
        Err(_) => None,
    };
    let json = list.and_then(|(bytes, _)| serde_json::from_slice::<Value>(&bytes).ok());
    let keys = json.and_then(|mut json| json.get_mut("keys").map(Value::take));
    Ok((if let Some(Value::Object(keys)) = keys { keys } else { Map::new() }, Some(version)))
}

/// The keys that a cache offers: fingerprint, and the armored key when its blob is there and whole.
pub fn offered(store: &dyn Store, ctx: &Ctx) -> Result<Vec<(String, Option<String>)>, BuildcacheError> {
    if store.registry() {
        return Err(BuildcacheError::NoKeys { address: store.address().to_owned() });
    }
    let mut found = Vec::new();
    for fingerprint in listed(store, ctx)?.0.keys() {
        let Ok(at) = key(format!("{KEYS}{fingerprint}{KEY_SUFFIX}")) else { continue };
        // One that may not be read is one that is not offered.
        let armored = read::allowed(armored(store, &at, ctx))?.unwrap_or_else(|reason| {
            ctx.detail(reason);
            None
        });
        found.push((fingerprint.clone(), armored));
    }
    Ok(found)
}

/// The key that a manifest names, when both are there and right.
fn armored(store: &dyn Store, at: &Key, ctx: &Ctx) -> Result<Option<String>, BuildcacheError> {
    let manifest = match manifest::read_plain(store, at.as_str(), ctx) {
        Ok(Some((manifest, _))) => manifest,
        Ok(None) | Err(BuildcacheError::Format { .. }) => return Ok(None),
        Err(e) => return Err(e),
    };
    let Ok(blob) = manifest.blob(PUBLIC_KEY) else { return Ok(None) };
    let Ok(Some((bytes, _))) = read::small(store, &blob.key()?, manifest::LIMIT, ctx)? else { return Ok(None) };
    Ok(if read::differs(blob, &bytes).is_none() { String::from_utf8(bytes).ok() } else { None })
}
