//! From a digest to blobs in the store, every one checked.

use super::arriving::Arrival;
use super::blobs::{BlobStore, Wanted};
use super::manifest::{self, Document, Layer, MAX_CONFIG, MAX_MANIFEST};
use super::source::{Fetcher, Progress, Source};
use super::{Digest, ImageError, ResolvedImage};
use crate::cache::Cache;
use crate::report::Ctx;
use oci_spec::image::{ImageConfiguration, ImageManifest};
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinSet;

/// An image whose manifest, configuration and layers are in the cache. Only [`super::pull`], [`super::Arriving::finish`] and
/// [`PulledImage::open`] give one. Layers are present with their right size; their digests were checked when they were fetched and
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
        Self::look(&BlobStore::new(cache), image)
    }

    /// Looks again whether everything is there.
    pub(super) fn again(&self) -> Result<Self, ImageError> {
        Self::look(&self.store, &self.resolved)
    }

    fn look(store: &BlobStore, image: &ResolvedImage) -> Result<Self, ImageError> {
        match look(store, image)? {
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

pub(super) enum Presence {
    Whole(Box<PulledImage>),
    Lacking(String),
}

pub(super) fn look(store: &BlobStore, image: &ResolvedImage) -> Result<Presence, ImageError> {
    let name = image.reference().to_string();
    let Some(bytes) = store.read(image.digest(), MAX_MANIFEST)? else {
        return Ok(Presence::Lacking(format!("the manifest {}", image.digest())));
    };
    let manifest = single(&bytes, &name)?;
    let config_digest = manifest::digest_of(manifest.config(), "the configuration's descriptor", &name)?;
    let Some(config) = store.read(&config_digest, MAX_CONFIG)? else {
        return Ok(Presence::Lacking(format!("the configuration {config_digest}")));
    };
    let pulled = described(image, store, manifest, bytes.len() as u64, &config)?;
    let mut missing = Vec::new();
    for layer in &pulled.layers {
        if !store.has(layer.digest(), layer.size())? {
            missing.push(layer.digest().to_string());
        }
    }
    if !missing.is_empty() {
        return Ok(Presence::Lacking(format!("the layer {}", missing.join(", "))));
    }
    Ok(Presence::Whole(Box::new(pulled)))
}

/// What the two documents say of the image. Whether its layers are there is another matter.
fn described(
    image: &ResolvedImage,
    store: &BlobStore,
    manifest: ImageManifest,
    manifest_size: u64,
    config: &[u8],
) -> Result<PulledImage, ImageError> {
    let name = image.reference().to_string();
    let config_digest = manifest::digest_of(manifest.config(), "the configuration's descriptor", &name)?;
    let config = manifest::parse_config(config, image.platform(), &name)?;
    let layers = manifest::layers(&manifest, &config, &name)?;
    let (resolved, store) = (image.clone(), store.clone());
    Ok(PulledImage { resolved, manifest, manifest_size, config_digest, config, layers, store })
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

/// Manifest and configuration are in the store; which layers there are is known.
pub(super) struct Documents {
    expected: PulledImage,
    /// Each blob once, in the order in which layers are unpacked.
    layers: Vec<Wanted>,
    fetcher: Arc<Fetcher>,
}

impl Documents {
    /// Brings manifest and configuration. The configuration comes alone: an image for another machine is refused before
    /// its layers are fetched.
    pub async fn fetch(
        image: &ResolvedImage,
        store: BlobStore,
        source: &Arc<Source>,
        retries: u32,
        ctx: &Ctx,
    ) -> Result<Self, ImageError> {
        let name = image.reference().to_string();
        let bytes = match store.read(image.digest(), MAX_MANIFEST)? {
            Some(bytes) => bytes,
            None => source.manifest(image.digest(), &store).await?,
        };
        let manifest = single(&bytes, &name)?;
        manifest::check_config_descriptor(&manifest, &name)?;
        let mut layers: Vec<Wanted> = Vec::new();
        for descriptor in manifest.layers() {
            manifest::compression_of(descriptor, &name)?;
            let digest = manifest::digest_of(descriptor, "a layer's descriptor", &name)?;
            if layers.iter().all(|there| there.digest != digest) {
                layers.push(Wanted { digest, size: descriptor.size(), what: format!("the layer {digest}") });
            }
        }
        let digest = manifest::digest_of(manifest.config(), "the configuration's descriptor", &name)?;
        let config = Wanted { digest, size: manifest.config().size(), what: format!("the configuration {digest}") };
        let total = layers.iter().fold(config.size, |sum, wanted| sum.saturating_add(wanted.size));
        let progress = Progress::new(ctx, total);
        let (source, reference) = (source.clone(), name.clone());
        let fetcher = Fetcher { source, store, progress, retries, reference };
        fetcher.fetch(&config, None).await?;
        let Some(found) = fetcher.store.read(&config.digest, MAX_CONFIG)? else {
            return Err(ImageError::NotCached { missing: config.what, reference: name });
        };
        let expected = described(image, &fetcher.store, manifest, bytes.len() as u64, &found)?;
        Ok(Self { expected, layers, fetcher: Arc::new(fetcher) })
    }

    /// The image as it will be.
    pub fn expected(&self) -> PulledImage {
        self.expected.clone()
    }

    /// What tells how far each layer's blob has come.
    pub fn arrivals(&self) -> HashMap<Digest, Arc<Arrival>> {
        self.layers.iter().map(|wanted| (wanted.digest, Arc::default())).collect()
    }

    /// Brings the layers, so many at a time, the lowest first.
    pub async fn layers(self, parallel: usize, arrivals: &HashMap<Digest, Arc<Arrival>>) -> Result<(), ImageError> {
        let count = parallel.clamp(1, self.layers.len().max(1));
        let queue: VecDeque<_> =
            self.layers.into_iter().map(|wanted| (arrivals.get(&wanted.digest).cloned(), wanted)).collect();
        let queue = Arc::new(Mutex::new(queue));
        let next = |queue: &Mutex<VecDeque<_>>| queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (fetcher, queue) = (self.fetcher.clone(), queue.clone());
            tasks.spawn(async move {
                while let Some((arrival, wanted)) = next(&queue) {
                    fetcher.fetch(&wanted, arrival).await?;
                }
                Ok::<(), ImageError>(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|e| ImageError::Client { what: "a download".to_owned(), reason: e.to_string() })??;
        }
        Ok(())
    }
}
