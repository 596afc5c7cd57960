//! Images that are files or folders of this machine, behind one face.
//!
//! | reference | read by | the image's identity |
//! |---|---|---|
//! | `oci:DIR`, `oci-archive:FILE` | [`super::layout`] | the manifest's digest, as everywhere |
//! | `docker-archive:FILE` | [`super::docker_archive`] | a manifest made from it, see below |
//! | `dir:ROOTFS` | [`super::folder`] | a manifest made from it |
//!
//! A Docker archive and a folder have no manifest, so one is made: an OCI manifest in one fixed spelling, from
//! nothing but the configuration and the layers. The same content gives the same digest on every machine.
//!
//! What a file held is remembered with a *stamp* of the file (its inode, size and times), so that a build does not
//! read a large archive only to learn what it knows already; a file that was touched is read anew. When the file is
//! gone, its image stays usable from the cache, as a registry's does.

use super::digest::Digest;
use super::docker_archive::DockerArchive;
use super::folder::{self, Folder};
use super::layout::Layout;
use super::manifest::{Compression, OCI_MANIFEST};
use super::{ImageError, Platform, Reference};
use crate::cache::Cache;
use crate::report::Ctx;
use fs_err as fs;
use serde_json::json;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Reads images from a file or folder.
pub trait Local: Send + Sync {
    /// The digest of what the reference names: a manifest or an index of platforms.
    fn find(&self, platform: Platform) -> Result<Digest, ImageError>;

    /// The whole bytes of a manifest or an index, not yet checked.
    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError>;

    /// A blob to copy from, not yet checked. `size` is what its descriptor says.
    fn blob(&self, digest: &Digest, size: u64) -> Result<Box<dyn Read + Send>, ImageError>;

    /// The small documents that were made while looking: kept, so that nothing is read twice for them.
    fn made(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Where a blob is, for messages.
    fn place(&self, digest: &Digest) -> String;

    /// Every image there is, for `image load`.
    fn images(&self) -> Result<Vec<Held>, ImageError>;
}

/// An image in a layout or archive.
#[derive(Debug)]
pub struct Held {
    /// The names under which it travels, best first; none when the archive gives it none.
    pub names: Vec<String>,
    /// How it is named inside its file, when it has no name.
    pub here: Reference,
    /// Its manifest or index.
    pub digest: Digest,
}

/// Opens what the reference names; `None` for one in a registry.
pub fn open(reference: &Reference, cache: &Cache, ctx: &Ctx) -> Result<Option<Box<dyn Local>>, ImageError> {
    let name = reference.to_string();
    Ok(Some(match reference {
        Reference::Registry(_) => return Ok(None),
        Reference::Layout(l) => Box::new(Layout::folder(l, &name)?),
        Reference::OciArchive(l) => Box::new(Layout::archive(l, &name, &spool(cache), ctx)?),
        Reference::DockerArchive(d) => Box::new(DockerArchive::open(d, &name, &spool(cache), ctx)?),
        Reference::Folder(path) => Box::new(Folder::open(path, ctx)?),
    }))
}

/// Where a compressed archive is decompressed to: in the cache, where there is room for images.
pub fn spool(cache: &Cache) -> PathBuf {
    cache.dir("blobs").join("partial")
}

/// Whether the file of a reference is there.
#[derive(Debug, PartialEq, Eq)]
pub enum Stamp {
    /// No such file or folder.
    Gone,
    /// It is cheap to read, or lies in a registry: read it anew.
    None,
    /// Equal as long as the file was not touched.
    Is(String),
}

/// Looks at the file without reading it.
pub fn stamp(reference: &Reference, ctx: &Ctx) -> Result<Stamp, ImageError> {
    let Some(path) = reference.path() else { return Ok(Stamp::None) };
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Stamp::Gone),
        Err(e) => return Err(ImageError::Io(e)),
    };
    match reference {
        Reference::Registry(_) | Reference::Layout(_) => Ok(Stamp::None),
        Reference::OciArchive(_) | Reference::DockerArchive(_) => Ok(Stamp::Is(of_meta(&meta))),
        Reference::Folder(_) => folder::stamp(path, ctx).map(Stamp::Is),
    }
}

/// The inode's change time is there because it cannot be set back.
pub fn of_meta(meta: &std::fs::Metadata) -> String {
    format!(
        "{:x}.{:x}.{:x}.{}.{:09}.{}.{:09}",
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    )
}

/// A layer of an image whose manifest is made.
#[derive(Debug, Clone, Copy)]
pub struct MadeLayer {
    /// Of the blob.
    pub digest: Digest,
    /// Of the blob.
    pub size: u64,
    /// Of the blob.
    pub compression: Compression,
}

/// The manifest of an image that has none: always the same bytes for the same content.
pub fn make_manifest(config: &[u8], layers: &[MadeLayer], annotations: &[(&str, String)]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            let media_type = match layer.compression {
                Compression::None => "application/vnd.oci.image.layer.v1.tar",
                Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
                Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            };
            json!({"mediaType": media_type, "digest": layer.digest, "size": layer.size})
        })
        .collect();
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(config),
            "size": config.len(),
        },
        "layers": layers,
    });
    if !annotations.is_empty() {
        manifest["annotations"] = annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    }
    manifest.to_string().into_bytes()
}

/// `the archive ...`, for messages.
pub fn show_archive(path: &Path) -> String {
    format!("the archive `{}`", path.display())
}
