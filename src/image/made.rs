//! An image of one layer, made of a folder: how a prepared root file system travels.
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
use fs_err as fs;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
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

/// Hashes what passes.
struct Tee<W> {
    inner: W,
    hasher: Sha256,
    len: u64,
}

impl<W: Write> Tee<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), len: 0 }
    }
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
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
        let gzip = flate2::write::GzEncoder::new(Tee::new(out), flate2::Compression::default());
        let mut content = Tee::new(gzip);
        write_tree(tree, &mut content, ctx)?;
        let mut blob = content.inner.finish().map_err(failed)?;
        blob.flush().map_err(failed)?;
        let digest = Digest::finish(blob.hasher);
        (Digest::finish(content.hasher), MadeLayer { digest, size: blob.len, compression: Compression::Gzip })
    };
    file.as_file().sync_all().map_err(failed)?;
    file.persist(store.path(&layer.digest)).map_err(|e| failed(e.error))?;

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
