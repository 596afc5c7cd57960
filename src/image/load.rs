//! Brings the images of a layout or archive into the cache under the names that they travel with.
//!
//! An image that says its whole name (`io.containerd.image.name` in a layout, `RepoTags` in a Docker archive) is remembered
//! under it, so that a site without a network builds with the references that it would use with one. One without a name
//! is remembered as what it is: `oci:DIR:TAG`. A name that pins a digest is believed only with proof: the digest is the
//! image's, or that of an index which is there and leads to it.

use super::archive::Archive;
use super::blobs::BlobStore;
use super::client::ClientConfig;
use super::docker_archive::DockerArchive;
use super::layout::Layout;
use super::local::{self, Held, Local};
use super::memory::remember;
use super::pull::Documents;
use super::source::{self, Source};
use super::{
    Digest, DockerArchiveReference, ImageError, LayoutReference, Platform, PulledImage, Reference, ResolvedImage,
    resolve,
};
use crate::cache::Cache;
use crate::report::Ctx;
use fs_err as fs;
use jiff::Timestamp;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// An image that was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// What it is remembered as; several references when it has several names.
    pub references: Vec<Reference>,
    /// The image, under its first reference.
    pub image: PulledImage,
}

/// Loads all images for `platform` from the folder or archive at `path`.
pub fn load(path: &Path, platform: Platform, cache: &Cache, ctx: &Ctx) -> Result<Vec<Loaded>, ImageError> {
    let local = open(path, cache, ctx)?;
    let held = local.images()?;
    let source = Arc::new(Source::Local(local));
    let store = BlobStore::new(cache);
    let mut loaded = Vec::new();
    let mut others = Vec::new();
    for image in held {
        match source::run(ctx, one(&image, platform, cache, &store, &source, ctx)) {
            Ok(references) => {
                let Some(first) = references.first() else { continue };
                let pulled = PulledImage::open(cache, first)?;
                for reference in &references {
                    remember(cache, reference, None)?;
                }
                let references = references.iter().map(|r| r.reference().clone()).collect();
                loaded.push(Loaded { references, image: pulled });
            }
            Err(e @ (ImageError::NoPlatform { .. } | ImageError::WrongPlatform { .. })) => others.push(e),
            Err(e) => return Err(e),
        }
    }
    if !loaded.is_empty() {
        for other in others {
            ctx.note(format!("left out: {other}"));
        }
        return Ok(loaded);
    }
    Err(others.pop().unwrap_or_else(|| ImageError::NotThere {
        place: format!("`{}`", path.display()),
        what: "image".to_owned(),
        available: "it is empty".to_owned(),
    }))
}

fn open(path: &Path, cache: &Cache, ctx: &Ctx) -> Result<Box<dyn Local>, ImageError> {
    let layout = LayoutReference::new(path, None, None);
    let name = path.display().to_string();
    if fs::metadata(path).is_ok_and(|m| m.is_dir()) {
        return Ok(Box::new(Layout::folder(&layout, &name)?));
    }
    let archive = Archive::open(path, &local::spool(cache), ctx)?;
    // Docker writes both since version 25; the layout says more.
    if archive.has("oci-layout") || !archive.has("manifest.json") {
        return Ok(Box::new(Layout::read(archive, &layout, &name)?));
    }
    Ok(Box::new(DockerArchive::read(archive, &DockerArchiveReference::new(path, None), &name, ctx)?))
}

/// Fetches one image and says what it may be called.
async fn one(
    held: &Held,
    platform: Platform,
    cache: &Cache,
    store: &BlobStore,
    source: &Arc<Source>,
    ctx: &Ctx,
) -> Result<Vec<ResolvedImage>, ImageError> {
    let shown = held.names.first().cloned().unwrap_or_else(|| held.here.to_string());
    let digest = resolve::follow(held.digest, platform, store, source, &shown).await?;
    let now = Timestamp::now();
    let image = |reference| ResolvedImage::new(reference, platform, digest, now);
    let client = ClientConfig::default();
    let wanted = image(held.here.clone());
    let documents = Documents::fetch(&wanted, BlobStore::new(cache), source, client.retries, ctx).await?;
    documents.layers(client.parallel, &HashMap::new()).await?;
    let mut found = Vec::new();
    for name in &held.names {
        match name.parse() {
            Ok(reference) => found.extend(proved(reference, digest, platform, store, source, ctx).await.map(image)),
            Err(e) => ctx.warn(format!("the name in `{}` is not used: {e}", held.here)),
        }
    }
    if found.is_empty() {
        found.push(image(held.here.clone()));
    }
    Ok(found)
}

/// The reference, without its pinned digest when that cannot be shown to mean the image.
async fn proved(
    reference: Reference,
    digest: Digest,
    platform: Platform,
    store: &BlobStore,
    source: &Source,
    ctx: &Ctx,
) -> Option<Reference> {
    let Reference::Registry(name) = &reference else {
        ctx.warn(format!("the name `{reference}` is not one of a registry; it is not used"));
        return None;
    };
    let Some(pinned) = name.digest() else { return Some(reference) };
    if *pinned == digest {
        return Some(reference);
    }
    match resolve::follow(*pinned, platform, store, source, &reference.to_string()).await {
        Ok(found) if found == digest => Some(reference),
        _ => {
            ctx.warn(format!("nothing shows that `{reference}` means the image {digest}: its digest is left out"));
            name.unpinned().map(Reference::Registry)
        }
    }
}
