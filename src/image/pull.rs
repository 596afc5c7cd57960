//! From a digest to blobs in the store, every one checked.

use super::blobs::{BlobStore, Wanted};
use super::client::ClientConfig;
use super::manifest::{self, Document, Layer, MAX_CONFIG, MAX_MANIFEST};
use super::source::{self, Fetcher, Progress, Source};
use super::{Digest, ImageError, Reference, ResolvedImage};
use crate::cache::Cache;
use crate::report::Ctx;
use oci_spec::image::{ImageConfiguration, ImageManifest};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// An image whose manifest, configuration and layers are in the cache. Only [`pull`] and [`PulledImage::open`]
/// make one. Layers are present with their right size; their digests were checked when they were fetched and
/// are checked again while they are unpacked.
#[derive(Clone, Debug)]
pub struct PulledImage {
    resolved: ResolvedImage,
    manifest: ImageManifest,
    manifest_size: u64,
    config_digest: Digest,
    config: ImageConfiguration,
    layers: Vec<Layer>,
    store: BlobStore,
}

impl PulledImage {
    /// Takes an image from the cache alone, and says what is missing when it is not whole.
    pub fn open(cache: &Cache, image: &ResolvedImage) -> Result<Self, ImageError> {
        match look(cache, image)? {
            Presence::Whole(pulled) => Ok(*pulled),
            Presence::Lacking(missing) => {
                Err(ImageError::NotCached { missing, reference: image.reference().to_string() })
            }
        }
    }

    /// What was asked for, for which machine, and its digest: the image's identity.
    pub fn resolved(&self) -> &ResolvedImage {
        &self.resolved
    }

    /// Its manifest.
    pub fn manifest(&self) -> &ImageManifest {
        &self.manifest
    }

    /// Its configuration: environment, command, history.
    pub fn config(&self) -> &ImageConfiguration {
        &self.config
    }

    /// Its layers, the lowest first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The bytes of all layers as they are stored.
    pub fn size(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size()))
    }

    /// Every blob that makes up the image: digest and size, the manifest first, no blob twice.
    pub fn blobs(&self) -> Vec<(Digest, u64)> {
        let mut blobs =
            vec![(*self.resolved.digest(), self.manifest_size), (self.config_digest, self.manifest.config().size())];
        for layer in &self.layers {
            if !blobs.contains(&(*layer.digest(), layer.size())) {
                blobs.push((*layer.digest(), layer.size()));
            }
        }
        blobs
    }

    /// Where a blob of [`PulledImage::blobs`] is.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.store.path(digest)
    }

    /// Where a layer's blob is.
    pub fn layer_path(&self, layer: &Layer) -> PathBuf {
        self.store.path(layer.digest())
    }

    /// Forgets a layer's blob that turned out to be damaged, so that the next pull fetches it again.
    pub fn discard(&self, layer: &Layer) -> Result<(), ImageError> {
        self.store.remove(layer.digest())
    }
}

enum Presence {
    Whole(Box<PulledImage>),
    Lacking(String),
}

fn look(cache: &Cache, image: &ResolvedImage) -> Result<Presence, ImageError> {
    let store = BlobStore::new(cache);
    let name = image.reference().to_string();
    let Some(bytes) = store.read(image.digest(), MAX_MANIFEST)? else {
        return Ok(Presence::Lacking(format!("the manifest {}", image.digest())));
    };
    let manifest = single(&bytes, &name)?;
    let manifest_size = bytes.len() as u64;
    let config_digest = manifest::digest_of(manifest.config(), "the configuration's descriptor", &name)?;
    let Some(bytes) = store.read(&config_digest, MAX_CONFIG)? else {
        return Ok(Presence::Lacking(format!("the configuration {config_digest}")));
    };
    let config = manifest::parse_config(&bytes, image.platform(), &name)?;
    let layers = manifest::layers(&manifest, &config, &name)?;
    let mut missing = Vec::new();
    for layer in &layers {
        if !store.has(layer.digest(), layer.size())? {
            missing.push(layer.digest().to_string());
        }
    }
    if !missing.is_empty() {
        return Ok(Presence::Lacking(format!("the layer {}", missing.join(", "))));
    }
    let resolved = image.clone();
    Ok(Presence::Whole(Box::new(PulledImage {
        resolved,
        manifest,
        manifest_size,
        config_digest,
        config,
        layers,
        store,
    })))
}

fn single(bytes: &[u8], name: &str) -> Result<ImageManifest, ImageError> {
    match manifest::parse(bytes, name)? {
        Document::Manifest(manifest) => Ok(*manifest),
        Document::Index(_) => Err(ImageError::Malformed {
            what: "the manifest".to_owned(),
            reference: name.to_owned(),
            reason: "it is an index".to_owned(),
        }),
    }
}

/// Brings everything of the image that is not yet in the cache. Offline, only files and folders of this machine are
/// read.
pub fn pull(
    image: &ResolvedImage,
    cache: &Cache,
    client: &ClientConfig,
    offline: bool,
    ctx: &Ctx,
) -> Result<PulledImage, ImageError> {
    match look(cache, image)? {
        Presence::Whole(pulled) => return Ok(*pulled),
        Presence::Lacking(missing) if offline && matches!(image.reference(), Reference::Registry(_)) => {
            return Err(ImageError::NotCached { missing, reference: image.reference().to_string() });
        }
        Presence::Lacking(_) => {}
    }
    let source = Source::open(image.reference(), cache, client, ctx)?;
    source::run(ctx, fetch(image, BlobStore::new(cache), &Arc::new(source), client, ctx))?;
    PulledImage::open(cache, image)
}

pub(super) async fn fetch(
    image: &ResolvedImage,
    store: BlobStore,
    source: &Arc<Source>,
    client: &ClientConfig,
    ctx: &Ctx,
) -> Result<(), ImageError> {
    let name = image.reference().to_string();
    let bytes = match store.read(image.digest(), MAX_MANIFEST)? {
        Some(bytes) => bytes,
        None => source.manifest(image.digest(), &store).await?,
    };
    let manifest = single(&bytes, &name)?;
    manifest::check_config_descriptor(&manifest, &name)?;
    for layer in manifest.layers() {
        manifest::compression_of(layer, &name)?;
    }

    // A layer may be listed twice; its blob is fetched once.
    let mut layers = BTreeMap::new();
    for descriptor in manifest.layers() {
        let digest = manifest::digest_of(descriptor, "a layer's descriptor", &name)?;
        let wanted = Wanted { digest, size: descriptor.size(), what: format!("the layer {digest}") };
        layers.insert(digest, wanted);
    }
    let digest = manifest::digest_of(manifest.config(), "the configuration's descriptor", &name)?;
    let config = Wanted { digest, size: manifest.config().size(), what: format!("the configuration {digest}") };

    let total = layers.values().fold(config.size, |sum, wanted| sum.saturating_add(wanted.size));
    let fetcher = Arc::new(Fetcher {
        source: source.clone(),
        store,
        progress: Progress::new(ctx, total),
        retries: client.retries,
        reference: name.clone(),
    });

    // The configuration alone first: an image for another machine is refused before its layers are fetched.
    fetcher.fetch(&config).await?;
    if let Some(bytes) = fetcher.store.read(&config.digest, MAX_CONFIG)? {
        let config = manifest::parse_config(&bytes, image.platform(), &name)?;
        manifest::layers(&manifest, &config, &name)?;
    }

    let slots = Arc::new(Semaphore::new(client.parallel.max(1)));
    let mut tasks = JoinSet::new();
    for wanted in layers.into_values() {
        let (fetcher, slots) = (fetcher.clone(), slots.clone());
        tasks.spawn(async move {
            let _slot = slots.acquire_owned().await;
            fetcher.fetch(&wanted).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|e| ImageError::Client { what: "a download".to_owned(), reason: e.to_string() })??;
    }
    Ok(())
}
