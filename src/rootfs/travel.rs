//! A prepared rootfs as an OCI image, so that a site without a package mirror can build.
//!
//! ```text
//! localhost/slurm-factory/prepared:<first 32 digits of the rootfs's id>
//!   config.Labels   slurm-factory.rootfs.id     the identity: image, packages, wheels (see `Recipe::id`)
//!                   slurm-factory.rootfs.meta   meta.json as it is
//!   annotations     org.opencontainers.image.base.name, .digest   the image that it was prepared from
//! ```
//!
//! Where it is loaded, the base image's name means the same digest as where it was saved, so that a build asks for the
//! same rootfs; its blobs are not needed. [`restore`] unpacks it when a build asks for this identity. Both digests of
//! its layer are checked then; that the tree is what its labels say is the word of whoever saved it, as with any image.

use super::apply::{Limits, UnpackError, unpack};
use super::prepare::{Meta, PrepareError, Rootfs};
use crate::cache::Cache;
use crate::fsutil;
use crate::image::{self, Digest, ImageError, Labels, Loaded, Platform, PulledImage, Reference, ResolvedImage};
use crate::report::{Ctx, Stage};
use fs_err as fs;
use std::io;

const ID: &str = "slurm-factory.rootfs.id";
const META: &str = "slurm-factory.rootfs.meta";
const BASE_NAME: &str = "org.opencontainers.image.base.name";
const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";

fn reference(id: &str) -> Result<Reference, ImageError> {
    Ok(format!("localhost/slurm-factory/prepared:{}", &id[..id.len().min(32)]).parse()?)
}

fn label<'a>(image: &'a PulledImage, key: &str) -> Option<&'a str> {
    image.config().config().as_ref()?.labels().as_ref()?.get(key).map(String::as_str)
}

/// The rootfs as an image.
pub fn as_image(rootfs: &Rootfs, base: &ResolvedImage, cache: &Cache, ctx: &Ctx) -> Result<PulledImage, PrepareError> {
    if rootfs.meta().range.is_some() {
        return Err(PrepareError::OfRange);
    }
    let meta = serde_json::to_string(rootfs.meta()).map_err(io::Error::from)?;
    let labels = Labels {
        config: &[(ID, rootfs.id().to_owned()), (META, meta)],
        manifest: &[(BASE_NAME, base.reference().to_string()), (BASE_DIGEST, base.digest().to_string())],
    };
    let name = reference(rootfs.id()).map_err(UnpackError::Image)?;
    Ok(image::make(rootfs.root(), name, base.platform(), labels, cache, ctx).map_err(UnpackError::Image)?)
}

/// Remembers what the base image of a loaded prepared rootfs is called; `None` when the image is another one.
pub fn adopt(loaded: &Loaded, cache: &Cache) -> Result<Option<Reference>, ImageError> {
    let image = &loaded.image;
    let annotation = |key: &str| image.manifest().annotations().as_ref()?.get(key).map(String::as_str);
    let (Some(_), Some(name), Some(digest)) = (label(image, ID), annotation(BASE_NAME), annotation(BASE_DIGEST)) else {
        return Ok(None);
    };
    let malformed = |reason: String| ImageError::Malformed {
        what: "the annotations".to_owned(),
        reference: image.resolved().reference().to_string(),
        reason,
    };
    let base: Reference = name.parse()?;
    let digest: Digest = digest.parse().map_err(|e: image::BadDigest| malformed(e.to_string()))?;
    image::remember(cache, &base, image.resolved().platform(), digest)?;
    Ok(Some(base))
}

/// Unpacks the prepared rootfs with this identity, when it was loaded.
pub fn restore(id: &str, platform: Platform, cache: &Cache, ctx: &Ctx) -> Result<Option<Rootfs>, PrepareError> {
    let name = reference(id).map_err(UnpackError::Image)?;
    let Some(memory) = image::recall(cache, &name, platform).map_err(UnpackError::Image)? else { return Ok(None) };
    let image = match PulledImage::open(cache, memory.image()) {
        Ok(image) => image,
        // Some of it is gone: as if it had never been loaded.
        Err(ImageError::NotCached { .. }) => return Ok(None),
        Err(e) => return Err(UnpackError::Image(e).into()),
    };
    let meta: Option<Meta> = label(&image, META).and_then(|text| serde_json::from_str(text).ok());
    let (Some(meta), true) = (meta, label(&image, ID) == Some(id)) else { return Ok(None) };
    let _lock = cache.lock(ctx, &format!("rootfs-{}", &id[..id.len().min(16)]), "the rootfs while it is prepared")?;
    if let Some(rootfs) = Rootfs::open(cache, id) {
        return Ok(Some(rootfs));
    }
    let timer = ctx.stage(Stage::Rootfs, name.to_string());
    let parent = cache.dir("rootfs");
    cache.sweep(&parent)?;
    let staging = cache.staging(&parent)?;
    let root = staging.path().join("root");
    fs::create_dir(&root)?;
    unpack(&image, &root, &Limits::default(), ctx)?;
    let json = serde_json::to_vec_pretty(&meta).map_err(io::Error::from)?;
    fsutil::write_atomic(&staging.path().join("meta.json"), &json, 0o644)?;
    staging.commit(&parent.join(id))?;
    timer.done(format!("unpacked as it was saved, GCC {}, glibc {}", meta.gcc, meta.glibc));
    Ok(Rootfs::open(cache, id))
}
