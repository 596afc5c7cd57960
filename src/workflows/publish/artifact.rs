//! A package in an OCI registry: one artifact, a file a layer, as `oras pull` takes it and any client of registries copies it.
//!
//! ```text
//! oci://HOST/NAME, tag slurm-25.11-gcc13.3.0-software.tar.gz
//!   artifactType   application/vnd.slurm-factory.package.v1
//!   config         application/vnd.oci.empty.v1+json, {}
//!   layers         archive, .manifest.json, .spdx.json, .provenance.json, .provenance.json.asc, .sha256, .asc, FINGERPRINT.asc;
//!                  each with its file's name in org.opencontainers.image.title
//!   annotations    vnd.slurm-factory.package.signed-by
//! ```
//!
//! The tags are the index, and there is no page. The manifest is put last and names all files at once, so a reader sees all of a
//! package or nothing. A registry has no conditional writes: of two publishers of one name the second is told that it is taken
//! when it looks, or looks again, after the first; in between the last one counts.
//!
//! Format: OCI image-spec 1.1, "Guidelines for Artifact Usage".

use super::{Item, Options, Outgoing, PublishError, State};
use crate::publish::{
    self, Condition, Descriptor, Keep, Key, OCI_MANIFEST, Put, Source, Store, StoreError, TAGS, Version, Written,
    blob_key,
};
use crate::report::{Ctx, Stage};
use humansize::{BINARY, format_size};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

const ARTIFACT: &str = "application/vnd.slurm-factory.package.v1";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const TITLE: &str = "org.opencontainers.image.title";
const SIGNED_BY: &str = "vnd.slurm-factory.package.signed-by";

/// The largest manifest that is read, bytes.
const LIMIT: u64 = 4 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What a registry has under the name of a package.
#[derive(Debug, Default)]
pub(super) struct There {
    files: BTreeMap<String, Descriptor>,
    /// Who signed it.
    pub signed_by: Option<String>,
    version: Option<Version>,
}

impl There {
    /// Looks for the package whose archive has this name.
    pub fn look(store: &dyn Store, name: &str, ctx: &Ctx) -> Result<Self, StoreError> {
        let Some((bytes, version)) = store.read(&tag(name)?, LIMIT, ctx)? else { return Ok(Self::default()) };
        let manifest: Option<Manifest> = serde_json::from_slice(&bytes).ok();
        let manifest =
            manifest.filter(|manifest| manifest.artifact_type == ARTIFACT).ok_or_else(|| StoreError::Service {
                address: store.address().to_owned(),
                what: format!("publish as {name}"),
                reason: "something else has this tag; choose another repository".into(),
            })?;
        let named = |layer: Descriptor| Some((layer.annotations.get(TITLE)?.clone(), layer));
        Ok(Self {
            files: manifest.layers.into_iter().filter_map(named).collect(),
            signed_by: manifest.annotations.get(SIGNED_BY).cloned(),
            version: Some(version),
        })
    }

    /// What becomes of a file.
    pub fn state(&self, file: &str, source: &Source) -> State {
        match self.files.get(file) {
            None => State::New,
            Some(there) if there.digest == format!("sha256:{}", source.sha256) => State::There,
            Some(_) => State::Replace,
        }
    }
}

fn tag(name: &str) -> Result<Key, StoreError> {
    Key::new(format!("{TAGS}{name}"))
}

fn title(item: &Item) -> &str {
    item.key.rsplit('/').next().unwrap_or(&item.key)
}

fn descriptor(media_type: &str, sha256: &str, size: u64, title: Option<&str>) -> Descriptor {
    let annotations = title.map(|title| (TITLE.to_owned(), title.to_owned())).into_iter().collect();
    Descriptor { annotations, ..Descriptor::new(media_type, sha256, size) }
}

/// Sends what is not there, and last the manifest that names it.
pub(super) fn send(
    outgoing: &Outgoing,
    there: &There,
    store: &dyn Store,
    options: Options,
    ctx: &Ctx,
) -> Result<(), PublishError> {
    let address = store.address();
    let timer = ctx.stage(Stage::Publish, address);
    let Some(archive) = outgoing.items.first() else { return Ok(()) };
    let name = title(archive);
    outgoing.allowed(options, address)?;
    let mut layers = Vec::new();
    let mut sent = 0;
    for item in &outgoing.items {
        // What is there of another day stays.
        let kept = there.files.get(title(item)).filter(|_| item.state == State::There);
        if kept.is_none() {
            store.put_file(
                &blob_key(&item.source.sha256)?,
                &item.source,
                &how(item.content_type, Condition::Always),
                ctx,
            )?;
            sent += item.bytes;
        }
        layers.push(kept.cloned().unwrap_or_else(|| {
            descriptor(item.content_type, &item.source.sha256, item.source.size, Some(title(item)))
        }));
    }
    // Of a signature that stays, the keys stay too.
    let stays = outgoing.stays.is_some();
    let known = there.files.values().filter(|file| stays && file.media_type == "application/pgp-keys").cloned();
    layers.extend(known);
    for fingerprint in outgoing.signers.fingerprints().into_iter().filter(|_| !stays) {
        let armored = outgoing.signers.pinned(std::slice::from_ref(&fingerprint))?.armored()?;
        let sum = put(store, armored.as_bytes(), "application/pgp-keys", ctx)?;
        let file = format!("{fingerprint}.asc");
        layers.push(descriptor("application/pgp-keys", &sum, armored.len() as u64, Some(&file)));
    }
    let empty = put(store, b"{}", EMPTY, ctx)?;
    let signed_by = there.signed_by.clone().filter(|_| stays).unwrap_or_else(|| outgoing.entry.signed_by.clone());
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: ARTIFACT.to_owned(),
        config: descriptor(EMPTY, &empty, 2, None),
        layers,
        annotations: BTreeMap::from([(SIGNED_BY.to_owned(), signed_by)]),
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|source| PublishError::Beside { source: source.into() })?;
    let version = Version(hex::encode(Sha256::digest(&bytes)));
    let fresh = there.version.as_ref() != Some(&version);
    if fresh {
        let condition = there.version.clone().map_or(Condition::Absent, Condition::Unchanged);
        let written = store.put(&tag(name)?, &bytes, &how(OCI_MANIFEST, condition), ctx)?;
        // Another publisher may have come first, or after us.
        let now = There::look(store, name, ctx)?;
        if now.state(name, &archive.source) != State::There {
            return Err(PublishError::Taken { address: address.to_owned(), key: tag(name)? });
        }
        if written == Written::Conflict || now.version.as_ref() != Some(&version) {
            ctx.warn(format!("{address}: another publisher put the same package there meanwhile, and that one counts"));
        }
    }
    if options.verify {
        verify(&manifest, store, ctx)?;
    }
    if let Some(there) = &outgoing.stays {
        ctx.warn(format!(
            "{name} is there, signed by {there}, and that signature stays; --replace puts ours in its place"
        ));
    }
    if fresh {
        timer.done(format!("{} sent, tagged {name}", format_size(sent, BINARY)));
    } else {
        timer.cached("everything is there");
    }
    Ok(())
}

fn how(content_type: &str, condition: Condition) -> Put<'_> {
    Put { content_type, keep: Keep::Briefly, condition }
}

fn put(store: &dyn Store, bytes: &[u8], content_type: &str, ctx: &Ctx) -> Result<String, StoreError> {
    let sum = hex::encode(Sha256::digest(bytes));
    store.put(&blob_key(&sum)?, bytes, &how(content_type, Condition::Always), ctx)?;
    Ok(sum)
}

/// Reads everything back.
fn verify(manifest: &Manifest, store: &dyn Store, ctx: &Ctx) -> Result<(), PublishError> {
    for layer in &manifest.layers {
        let expected = layer.digest.trim_start_matches("sha256:");
        let key = blob_key(expected)?;
        let found = publish::sum(store, &key, ctx)?;
        if found.as_deref() != Some(expected) {
            return Err(PublishError::NotAsSent {
                address: store.address().to_owned(),
                key,
                expected: expected.to_owned(),
                found: found.unwrap_or_else(|| "nothing".to_owned()),
            });
        }
    }
    Ok(())
}
