//! From a name to a digest, once.
//!
//! ```text
//! CACHE/images/docker.io_library_ubuntu_24.04-amd64-1f0c2a9b.json
//! { "schema": 1,
//!   "reference": "docker.io/library/ubuntu:24.04",
//!   "platform": "linux/amd64",
//!   "digest": "sha256:447b...",                    of the platform's manifest, not of the index
//!   "resolved_at": "2026-11-20T17:45:00Z" }
//! ```
//!
//! A tag is asked for once and then remembered with its time, so that a second build, and one without a
//! network, means the same image. A pinned digest needs no memory, a layout on disk is always read anew.
//! Documents on the way (the index, the manifest) are kept as blobs.

use super::blobs::BlobStore;
use super::client::ClientConfig;
use super::manifest::{self, Document, MAX_MANIFEST};
use super::source::{self, Source};
use super::{Digest, ImageError, Platform, Reference};
use crate::cache::Cache;
use crate::fsutil;
use crate::report::Ctx;
use fs_err as fs;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// Indexes may hold indexes; none that is honest goes deeper.
const MAX_DEPTH: usize = 4;

/// How to resolve.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResolveOptions {
    /// Never use the network.
    pub offline: bool,
    /// Ask the registry again even when the tag is remembered.
    pub refresh: bool,
}

/// A reference whose digest is known. Only [`resolve`] and [`list`] make one.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    reference: Reference,
    platform: Platform,
    digest: Digest,
    when: Timestamp,
}

impl ResolvedImage {
    /// What was asked for.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// For which machine.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// The digest of the platform's manifest: the image's identity.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// When the tag had this digest.
    pub fn when(&self) -> Timestamp {
        self.when
    }
}

#[derive(Serialize, Deserialize)]
struct Memory {
    schema: u32,
    reference: String,
    platform: String,
    digest: Digest,
    resolved_at: Timestamp,
}

/// Finds the digest that `reference` means on `platform`.
pub fn resolve(
    reference: &Reference,
    platform: Platform,
    cache: &Cache,
    client: &ClientConfig,
    options: ResolveOptions,
    ctx: &Ctx,
) -> Result<ResolvedImage, ImageError> {
    let store = BlobStore::new(cache);
    if let (Reference::Registry(_), None, false) = (reference, reference.digest(), options.refresh)
        && let Some(known) = recall(cache, reference, platform)?
    {
        return Ok(known);
    }
    if options.offline && reference.digest().is_none() && matches!(reference, Reference::Registry(_)) {
        return Err(ImageError::NotCached { missing: "the digest".to_owned(), reference: reference.to_string() });
    }
    let digest = source::run(ctx, find(reference, platform, &store, client, options.offline))?;
    let found = ResolvedImage { reference: reference.clone(), platform, digest, when: Timestamp::now() };
    remember(cache, &found)?;
    Ok(found)
}

async fn find(
    reference: &Reference,
    platform: Platform,
    store: &BlobStore,
    client: &ClientConfig,
    offline: bool,
) -> Result<Digest, ImageError> {
    let name = reference.to_string();
    let mut source = None;
    let mut next = match (reference, reference.digest()) {
        // A pinned manifest may be in the store already.
        (Reference::Registry(_), Some(digest)) => *digest,
        _ => source.insert(Source::open(reference, client)?).start(platform, store).await?,
    };
    for _ in 0..MAX_DEPTH {
        let bytes = match store.read(&next, MAX_MANIFEST)? {
            Some(bytes) => bytes,
            None if offline && matches!(reference, Reference::Registry(_)) => {
                return Err(ImageError::NotCached { missing: format!("the manifest {next}"), reference: name });
            }
            None => {
                let source = match source {
                    Some(ref source) => source,
                    None => source.insert(Source::open(reference, client)?),
                };
                source.manifest(&next, store).await?
            }
        };
        match manifest::parse(&bytes, &name)? {
            Document::Manifest(_) => return Ok(next),
            Document::Index(index) => {
                next = manifest::digest_of(&manifest::choose(&index, platform, &name)?, "the index", &name)?;
            }
        }
    }
    Err(ImageError::Malformed {
        what: "the index".to_owned(),
        reference: name,
        reason: format!("indexes inside indexes, more than {MAX_DEPTH} deep"),
    })
}

/// Every reference that was resolved in this cache, by name.
pub fn list(cache: &Cache) -> Result<Vec<ResolvedImage>, ImageError> {
    let dir = cache.dir("images");
    let entries = match fs::read_dir(&dir) {
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
    found.sort_by_key(|image| image.reference.to_string());
    Ok(found)
}

fn recall(cache: &Cache, reference: &Reference, platform: Platform) -> Result<Option<ResolvedImage>, ImageError> {
    let found = read(&memory_path(cache, reference, platform))?;
    Ok(found.filter(|image| image.reference == *reference && image.platform == platform))
}

/// A memory that is not there or that cannot be read (damaged, or of another version) is no memory.
fn read(path: &std::path::Path) -> Result<Option<ResolvedImage>, ImageError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ImageError::Io(e)),
    };
    let Ok(memory) = serde_json::from_slice::<Memory>(&bytes) else { return Ok(None) };
    let (Ok(reference), Ok(platform)) = (memory.reference.parse(), memory.platform.parse()) else { return Ok(None) };
    Ok((memory.schema == 1).then_some(ResolvedImage {
        reference,
        platform,
        digest: memory.digest,
        when: memory.resolved_at,
    }))
}

fn remember(cache: &Cache, image: &ResolvedImage) -> Result<(), ImageError> {
    let memory = Memory {
        schema: 1,
        reference: image.reference.to_string(),
        platform: image.platform.to_string(),
        digest: image.digest,
        resolved_at: image.when,
    };
    let path = memory_path(cache, &image.reference, image.platform);
    let malformed = |e: serde_json::Error| ImageError::Io(io::Error::other(format!("`{}`: {e}", path.display())));
    let text = serde_json::to_string_pretty(&memory).map_err(malformed)?;
    fsutil::write_atomic(&path, text.as_bytes(), 0o644)
        .map_err(|e| ImageError::io(e, "write", &path, "what a reference means", text.len() as u64))
}

/// Readable, and unambiguous by the digest of the full name.
fn memory_path(cache: &Cache, reference: &Reference, platform: Platform) -> PathBuf {
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
