//! What references meant, and when their images were used.
//!
//! ```text
//! CACHE/images/docker.io_library_ubuntu_24.04-amd64-1f0c2a9b.json
//! { "schema": 1,
//!   "reference": "docker.io/library/ubuntu:24.04",
//!   "platform": "linux/amd64",
//!   "digest": "sha256:447b...",                    of the platform's manifest, not of the index
//!   "resolved_at": "2026-11-20T17:45:00Z",
//!   "stamp": "fe00.1a2b..." }                      of the file it was read from, see `local`; not for registries
//! ```
//!
//! When an image was last used is the file's modification time: it is set without writing anything, and where it
//! cannot be set (a read-only or foreign cache) the image is used all the same.
//!
//! # What keeps a blob
//!
//! A memory keeps the manifest that it names, the index that its reference pins, and all blobs that these need.
//! [`collect`] deletes every other one, and so takes proof that nobody else works in the cache: a lock held alone,
//! which every run that resolves, pulls, unpacks or builds holds shared, from before its first look until its end.
//! So a blob that somebody is about to need is never taken, remembered or not: one that a pull has just brought, one
//! of an image that was forgotten while a build unpacks it.

use super::blobs::BlobStore;
use super::manifest::{self, Document, MAX_MANIFEST};
use super::resolve::ResolvedImage;
use super::{Digest, ImageError, Platform, Reference};
use crate::cache::{Cache, Lock};
use crate::fsutil;
use fs_err as fs;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

#[derive(Serialize, Deserialize)]
struct File {
    schema: u32,
    reference: String,
    platform: String,
    digest: Digest,
    resolved_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stamp: Option<String>,
}

/// What is known of a reference.
#[derive(Clone, Debug)]
pub struct Memory {
    pub(super) image: ResolvedImage,
    pub(super) stamp: Option<String>,
    path: PathBuf,
    used: Option<SystemTime>,
}

impl Memory {
    /// What the reference meant, for which machine and when.
    pub fn image(&self) -> &ResolvedImage {
        &self.image
    }

    /// When it was last resolved, pulled or built on.
    pub fn used(&self) -> Timestamp {
        self.used.and_then(|time| Timestamp::try_from(time).ok()).unwrap_or(self.image.when())
    }

    /// Says that it is used now.
    pub(super) fn touch(&self) {
        // A cache that cannot be written says nothing about the image.
        if let Ok(file) = fs::OpenOptions::new().write(true).open(&self.path) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// Forgets it; its blobs stay until [`collect`].
    pub fn forget(&self) -> Result<(), ImageError> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ImageError::Io(e)),
            _ => Ok(()),
        }
    }

    /// The file that holds it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Every reference that was resolved in this cache, by name.
pub fn list(cache: &Cache) -> Result<Vec<Memory>, ImageError> {
    let entries = match fs::read_dir(cache.dir("images")) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ImageError::Io(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(ImageError::Io)?.path();
        if path.extension().is_some_and(|e| e == "json") {
            found.extend(read(&path)?);
        }
    }
    found.sort_by_key(|memory| (memory.image.reference().to_string(), memory.image.platform().architecture()));
    Ok(found)
}

/// How much of an image is in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Bytes of its manifest, configuration and layers that are there.
    pub bytes: u64,
    /// Whether that is all of them.
    pub whole: bool,
}

/// Looks at the sizes of an image's blobs; changes nothing.
pub fn stored(cache: &Cache, image: &ResolvedImage) -> Result<Stored, ImageError> {
    let store = BlobStore::new(cache);
    let mut stored = Stored { bytes: 0, whole: true };
    let Some(bytes) = store.peek(image.digest(), MAX_MANIFEST)? else { return Ok(Stored { bytes: 0, whole: false }) };
    stored.bytes += bytes.len() as u64;
    let Ok(Document::Manifest(manifest)) = manifest::parse(&bytes, "a remembered image") else {
        return Ok(Stored { whole: false, ..stored });
    };
    let mut seen = BTreeSet::new();
    for descriptor in manifest.layers().iter().chain([manifest.config()]) {
        let Ok(digest) = descriptor.digest().as_ref().parse::<Digest>() else { continue };
        if !seen.insert(digest) {
            continue;
        }
        match fs::symlink_metadata(store.path(&digest)) {
            Ok(meta) if meta.len() == descriptor.size() => stored.bytes += meta.len(),
            Ok(_) => stored.whole = false,
            Err(e) if e.kind() == io::ErrorKind::NotFound => stored.whole = false,
            Err(e) => return Err(ImageError::Io(e)),
        }
    }
    Ok(stored)
}

/// What is known of `reference`.
pub fn recall(cache: &Cache, reference: &Reference, platform: Platform) -> Result<Option<Memory>, ImageError> {
    let found = read(&path_of(cache, reference, platform))?;
    Ok(found.filter(|m| m.image.reference() == reference && m.image.platform() == platform))
}

/// A memory that is not there or that cannot be read (damaged, or of another version) is no memory.
fn read(path: &Path) -> Result<Option<Memory>, ImageError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ImageError::Io(e)),
    };
    let Ok(file) = serde_json::from_slice::<File>(&bytes) else { return Ok(None) };
    let (Ok(reference), Ok(platform)) = (file.reference.parse(), file.platform.parse()) else { return Ok(None) };
    let used = fs::metadata(path).and_then(|meta| meta.modified()).ok();
    Ok((file.schema == 1).then(|| Memory {
        image: ResolvedImage::new(reference, platform, file.digest, file.resolved_at),
        stamp: file.stamp,
        path: path.to_owned(),
        used,
    }))
}

/// Makes `reference` mean the image with this digest, in place of what it meant.
pub fn name_again(cache: &Cache, reference: &Reference, platform: Platform, digest: Digest) -> Result<(), ImageError> {
    remember(cache, &ResolvedImage::new(reference.clone(), platform, digest, Timestamp::now()), None)
}

/// Writes down what a reference means.
pub fn remember(cache: &Cache, image: &ResolvedImage, stamp: Option<String>) -> Result<(), ImageError> {
    let file = File {
        schema: 1,
        reference: image.reference().to_string(),
        platform: image.platform().to_string(),
        digest: *image.digest(),
        resolved_at: image.when(),
        stamp,
    };
    let path = path_of(cache, image.reference(), image.platform());
    let malformed = |e: serde_json::Error| ImageError::Io(io::Error::other(format!("`{}`: {e}", path.display())));
    let text = serde_json::to_string_pretty(&file).map_err(malformed)?;
    fsutil::write_atomic(&path, text.as_bytes(), 0o644)
        .map_err(|e| ImageError::io(e, "write", &path, "what a reference means", text.len() as u64))
}

/// Readable, and unambiguous by the digest of the full name.
fn path_of(cache: &Cache, reference: &Reference, platform: Platform) -> PathBuf {
    let name = reference.to_string();
    let readable: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' }).collect();
    let readable = &readable[readable.len().saturating_sub(100)..];
    cache.dir("images").join(format!(
        "{readable}-{}-{}.json",
        platform.architecture(),
        &Digest::of(name.as_bytes()).hex()[..8]
    ))
}

/// What [`collect`] deleted, or would delete.
#[derive(Debug, Default)]
pub struct Collected {
    /// The files.
    pub paths: Vec<PathBuf>,
    /// Their bytes.
    pub bytes: u64,
}

/// Deletes the blobs that none of `kept` needs, cut downloads included. `alone` is proof that no other run works in the cache.
pub fn collect(cache: &Cache, kept: &[Memory], dry_run: bool, _alone: &Lock) -> Result<Collected, ImageError> {
    let store = BlobStore::new(cache);
    let mut needed = BTreeSet::new();
    for memory in kept {
        mark(&store, memory.image.digest(), 0, &mut needed)?;
        if let Some(pinned) = memory.image.reference().digest() {
            mark(&store, pinned, 0, &mut needed)?;
        }
    }
    let mut collected = Collected::default();
    for dir in store.dirs() {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(ImageError::Io(e)),
        };
        for entry in entries {
            let entry = entry.map_err(ImageError::Io)?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| needed.contains(name)) {
                continue;
            }
            collected.bytes += entry.metadata().map_err(ImageError::Io)?.len();
            collected.paths.push(entry.path());
            if !dry_run {
                fsutil::remove_tree(&entry.path()).map_err(ImageError::Io)?;
            }
        }
    }
    collected.paths.sort();
    Ok(collected)
}

/// Adds the file names of a manifest or index and of all that it needs. What is not there or is damaged needs nothing:
/// it would have to be fetched again anyway.
fn mark(store: &BlobStore, digest: &Digest, depth: usize, needed: &mut BTreeSet<String>) -> Result<(), ImageError> {
    if depth > super::resolve::MAX_DEPTH || !needed.insert(digest.hex()) {
        return Ok(());
    }
    let Some(bytes) = store.peek(digest, MAX_MANIFEST)? else { return Ok(()) };
    match manifest::parse(&bytes, "a remembered image") {
        Ok(Document::Manifest(manifest)) => {
            for descriptor in manifest.layers().iter().chain([manifest.config()]) {
                if let Ok(digest) = descriptor.digest().as_ref().parse::<Digest>() {
                    needed.insert(digest.hex());
                }
            }
        }
        Ok(Document::Index(index)) => {
            for descriptor in index.manifests() {
                if let Ok(digest) = descriptor.digest().as_ref().parse() {
                    mark(store, &digest, depth + 1, needed)?;
                }
            }
        }
        Err(_) => {}
    }
    Ok(())
}
