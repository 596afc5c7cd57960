//! An image of one layer, made of a folder: how a prepared root file system travels. And a folder as one more layer on
//! another image: how a package becomes one.
//!
//! The layer is the folder's archive in the one fixed spelling of [`super::folder`], compressed by gzip without name and
//! time: the same tree gives the same digests. Its blobs are in the cache like any other's, but nothing remembers the
//! image, so they go with the next `clean`.

use super::blobs::BlobStore;
use super::folder::write_tree;
use super::local::{MadeLayer, make_manifest};
use super::manifest::Compression;
use super::{Digest, ImageError, Platform, PulledImage, Reference, ResolvedImage};
use crate::cache::Cache;
use crate::fsutil;
use crate::report::Ctx;
use crate::sha256::Hashing;
use fs_err as fs;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What is said about a made image.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// `config.Labels` of the configuration.
    pub config: &'a [(&'a str, String)],
    /// Annotations of the manifest.
    pub manifest: &'a [(&'a str, String)],
}

/// Makes an image of the folder `tree`, called `reference`.
pub fn make(
    tree: &Path,
    reference: Reference,
    platform: Platform,
    labels: Labels<'_>,
    cache: &Cache,
    ctx: &Ctx,
) -> Result<PulledImage, ImageError> {
    let store = BlobStore::new(cache);
    let (diff_id, layer) = write_layer(tree, &store, ctx)?;
    let said: serde_json::Map<String, Value> =
        labels.config.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let config = json!({
        "architecture": platform.architecture(),
        "os": "linux",
        "config": {"Labels": said},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    })
    .to_string()
    .into_bytes();
    store.put(&config)?;
    let digest = store.put(&make_manifest(&config, &[layer], labels.manifest))?;
    PulledImage::open(cache, &ResolvedImage::new(reference, platform, digest, Timestamp::now()))
}

/// The folder's archive in the cache: its digest before compression, and its blob.
fn write_layer(tree: &Path, store: &BlobStore, ctx: &Ctx) -> Result<(Digest, MadeLayer), ImageError> {
    let [whole, partial] = store.dirs();
    for dir in [whole, partial] {
        fs::create_dir_all(dir).map_err(ImageError::Io)?;
    }
    let failed = |e| ImageError::io(e, "write a layer in", partial, "the image's layer", 0);
    let file = tempfile::Builder::new()
        .prefix(fsutil::TEMPORARY)
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(partial)
        .map_err(failed)?;
    let (diff_id, layer) = {
        let out = io::BufWriter::with_capacity(1 << 20, file.as_file());
        let gzip = flate2::write::GzEncoder::new(Hashing::new(out), flate2::Compression::default());
        let mut content = Hashing::new(gzip);
        write_tree(tree, &mut content, ctx)?;
        let (gzip, diff_id) = content.finish();
        let mut blob = gzip.finish().map_err(failed)?;
        blob.flush().map_err(failed)?;
        let (size, digest) = (blob.size(), Digest::from(blob.finish().1));
        (Digest::from(diff_id), MadeLayer { digest, size, compression: Compression::Gzip })
    };
    file.as_file().sync_all().map_err(failed)?;
    file.persist(store.path(&layer.digest)).map_err(|e| failed(e.error))?;
    Ok((diff_id, layer))
}

/// What is changed in the configuration of the image below.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Seconds since 1970: the image's time.
    pub created: u64,
    /// Folders that come before the others in `PATH`.
    pub path: Vec<String>,
    /// `config.Labels`, and annotations of the manifest.
    pub labels: Vec<(String, String)>,
    /// What the history says about the layer.
    pub history: String,
}

/// The usual `PATH` of an image that names none.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes an image of `base` with the folder `tree` as one more layer, called `reference`. The layers below keep their
/// blobs; the manifest is always OCI's. The same base, tree and changes give the same digest.
pub fn make_onto(
    base: &PulledImage,
    tree: &Path,
    reference: Reference,
    changes: &Changes,
    cache: &Cache,
    ctx: &Ctx,
) -> Result<PulledImage, ImageError> {
    let malformed = |reason: String| ImageError::Malformed {
        what: "the configuration".to_owned(),
        reference: base.resolved().reference().to_string(),
        reason,
    };
    let store = BlobStore::new(cache);
    let (diff_id, layer) = write_layer(tree, &store, ctx)?;
    let mut config = serde_json::to_value(base.config()).map_err(|e| malformed(e.to_string()))?;
    let time = i64::try_from(changes.created).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or_default();
    config["created"] = json!(time.to_string());
    match config.pointer_mut("/rootfs/diff_ids").and_then(Value::as_array_mut) {
        Some(known) => known.push(json!(diff_id)),
        None => return Err(malformed("it names no layers (rootfs.diff_ids)".to_owned())),
    }
    // A history tells of every layer or of none.
    if let Some(history) = config.get_mut("history").and_then(Value::as_array_mut).filter(|h| !h.is_empty()) {
        history.push(json!({"created": time.to_string(), "created_by": changes.history}));
    }
    if !config["config"].is_object() {
        config["config"] = json!({});
    }
    let variables = config["config"]["Env"].as_array().cloned().unwrap_or_default();
    let known = variables.iter().filter_map(Value::as_str).find_map(|text| text.strip_prefix("PATH="));
    let folders = changes.path.iter().map(String::as_str).chain([known.unwrap_or(USUAL_PATH)]);
    let path = format!("PATH={}", folders.collect::<Vec<_>>().join(":"));
    let others = variables.iter().filter(|v| !v.as_str().is_some_and(|text| text.starts_with("PATH="))).cloned();
    config["config"]["Env"] = std::iter::once(json!(path)).chain(others).collect();
    if !config["config"]["Labels"].is_object() {
        config["config"]["Labels"] = json!({});
    }
    for (key, value) in &changes.labels {
        config["config"]["Labels"][key] = json!(value);
    }
    let config = config.to_string().into_bytes();
    store.put(&config)?;
    let below = base.layers().iter().map(|layer| MadeLayer {
        digest: *layer.digest(),
        size: layer.size(),
        compression: layer.compression(),
    });
    let layers: Vec<MadeLayer> = below.chain([layer]).collect();
    let annotations: Vec<(&str, String)> =
        changes.labels.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let digest = store.put(&make_manifest(&config, &layers, &annotations))?;
    PulledImage::open(cache, &ResolvedImage::new(reference, base.resolved().platform(), digest, Timestamp::now()))
}
