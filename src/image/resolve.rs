//! From a name to a digest, once.
//!
//! A tag is asked for once and then remembered with its time (see [`super::memory`]), so that a second build, and one
//! without a network, means the same image. A pinned digest needs no memory. A file or folder is read anew when it
//! was touched; when it is gone, what it held counts, as with a registry.
//! Documents on the way (the index, the manifest) are kept as blobs.

use super::blobs::BlobStore;
use super::client::ClientConfig;
use super::local::{self, Stamp};
use super::manifest::{self, Document, MAX_MANIFEST};
use super::memory::{self, recall, remember};
use super::source::{self, Source};
use super::{Digest, ImageError, Platform, Reference};
use crate::cache::Cache;
use crate::report::Ctx;
use jiff::Timestamp;

/// Indexes may hold indexes, so many one inside the other, and then there is a manifest; none that is honest goes deeper.
pub(super) const MAX_DEPTH: usize = 4;

/// How to resolve.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResolveOptions {
    /// Never use the network.
    pub offline: bool,
    /// Ask the registry again even when the tag is remembered.
    pub refresh: bool,
}

/// A reference whose digest is known. Only [`resolve`], [`super::list`] and [`super::load`] make one.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    reference: Reference,
    platform: Platform,
    digest: Digest,
    when: Timestamp,
}

impl ResolvedImage {
    pub(super) fn new(reference: Reference, platform: Platform, digest: Digest, when: Timestamp) -> Self {
        Self { reference, platform, digest, when }
    }

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
    let known = recall(cache, reference, platform)?;
    let stamp = local::stamp(reference, ctx)?;
    if let Some(known) = &known
        && !options.refresh
        && may_recall(reference, known, &stamp)
    {
        if stamp == Stamp::Gone {
            ctx.note(format!("{reference} is gone; using what it held at {}", known.image().when()));
        }
        known.touch();
        return Ok(known.image().clone());
    }
    if options.offline && reference.digest().is_none() && matches!(reference, Reference::Registry(_)) {
        return Err(ImageError::NotCached { missing: "the digest".to_owned(), reference: reference.to_string() });
    }
    let digest = source::run(ctx, find(reference, platform, cache, &store, client, options.offline, ctx))?;
    let found = ResolvedImage { reference: reference.clone(), platform, digest, when: Timestamp::now() };
    let stamp = if let Stamp::Is(stamp) = stamp { Some(stamp) } else { None };
    if let Some(known) =
        known.filter(|known| !options.refresh && *known.image().digest() == digest && known.stamp == stamp)
    {
        known.touch();
        return Ok(known.image().clone());
    }
    remember(cache, &found, stamp)?;
    Ok(found)
}

/// Whether what is remembered counts, or the image's place must be looked at.
fn may_recall(reference: &Reference, known: &memory::Memory, stamp: &Stamp) -> bool {
    match (reference, stamp) {
        // A pinned digest is looked for in the store: what it means can be proved.
        (Reference::Registry(r), _) => r.digest().is_none(),
        (_, Stamp::Gone) => true,
        (_, Stamp::Is(stamp)) => known.stamp.as_ref() == Some(stamp),
        (_, Stamp::None) => false,
    }
}

async fn find(
    reference: &Reference,
    platform: Platform,
    cache: &Cache,
    store: &BlobStore,
    client: &ClientConfig,
    offline: bool,
    ctx: &Ctx,
) -> Result<Digest, ImageError> {
    let name = reference.to_string();
    let mut source = None;
    let mut next = match (reference, reference.digest()) {
        // A pinned manifest may be in the store already.
        (Reference::Registry(_), Some(digest)) => *digest,
        _ => source.insert(Source::open(reference, cache, client, ctx)?).start(platform, store).await?,
    };
    for _ in 0..=MAX_DEPTH {
        let bytes = match store.read(&next, MAX_MANIFEST)? {
            Some(bytes) => bytes,
            None if offline && matches!(reference, Reference::Registry(_)) => {
                return Err(ImageError::NotCached { missing: format!("the manifest {next}"), reference: name });
            }
            None => {
                let source = match source {
                    Some(ref source) => source,
                    None => source.insert(Source::open(reference, cache, client, ctx)?),
                };
                source.manifest(&next, store).await?
            }
        };
        match step(&bytes, platform, &name)? {
            None => return Ok(next),
            Some(below) => next = below,
        }
    }
    Err(too_deep(name))
}

/// The manifest for `platform` that `start`, a document of `source`, leads to.
pub(super) async fn follow(
    start: Digest,
    platform: Platform,
    store: &BlobStore,
    source: &Source,
    name: &str,
) -> Result<Digest, ImageError> {
    let mut next = start;
    for _ in 0..=MAX_DEPTH {
        let bytes = match store.read(&next, MAX_MANIFEST)? {
            Some(bytes) => bytes,
            None => source.manifest(&next, store).await?,
        };
        match step(&bytes, platform, name)? {
            None => return Ok(next),
            Some(below) => next = below,
        }
    }
    Err(too_deep(name.to_owned()))
}

/// The document below an index that is for `platform`; `None` when the document is a manifest.
fn step(bytes: &[u8], platform: Platform, name: &str) -> Result<Option<Digest>, ImageError> {
    match manifest::parse(bytes, name)? {
        Document::Manifest(_) => Ok(None),
        Document::Index(index) => {
            manifest::digest_of(&manifest::choose(&index, platform, name)?, "the index", name).map(Some)
        }
    }
}

fn too_deep(reference: String) -> ImageError {
    ImageError::Malformed {
        what: "the index".to_owned(),
        reference,
        reason: format!("indexes inside indexes, more than {MAX_DEPTH} deep"),
    }
}
