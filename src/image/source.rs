//! Where the documents and blobs of an image come from: a registry, or a file or folder of this machine, behind one
//! face.

use super::arriving::Arrival;
use super::blobs::{Begin, BlobStore, Partial, Wanted};
use super::client::ClientConfig;
use super::local::{self, Local};
use super::manifest;
use super::registry::Registry;
use super::retry::Cuts;
use super::{Digest, ImageError, Platform, Reference, RegistryReference};
use crate::cache::Cache;
use crate::fsutil;
use crate::report::{Ctx, Event, Stage};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long to wait for another process that writes the same blob, before looking again.
const BUSY_WAIT: Duration = Duration::from_millis(100);

/// How much is copied from a layout between two looks at the interrupt.
const COPY_CHUNK: usize = 1 << 20;

/// How often progress is reported.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Where an image comes from.
pub enum Source {
    /// A repository of a registry, or several places that stand in for it.
    Registry(Places),
    /// A file or folder of this machine.
    Local(Box<dyn Local>),
}

impl Source {
    /// Sets up the way to the image; nothing is sent yet.
    pub fn open(reference: &Reference, cache: &Cache, client: &ClientConfig, ctx: &Ctx) -> Result<Self, ImageError> {
        match (local::open(reference, cache, ctx)?, reference) {
            (Some(local), _) => Ok(Self::Local(local)),
            (None, Reference::Registry(r)) => Places::new(r, &reference.to_string(), client, ctx).map(Self::Registry),
            (None, _) => Err(ImageError::Client {
                what: reference.to_string(),
                reason: "neither a registry nor a file".to_owned(),
            }),
        }
    }

    /// The digest of the document that the reference names: a manifest, or an index of platforms.
    pub async fn start(&self, platform: Platform, store: &BlobStore) -> Result<Digest, ImageError> {
        match self {
            Self::Registry(places) => store.put(&places.manifest(None).await?),
            Self::Local(l) => {
                let digest = l.find(platform)?;
                for document in l.made() {
                    store.put(&document)?;
                }
                Ok(digest)
            }
        }
    }

    /// A manifest or index whose digest is known: fetched, checked and kept.
    pub async fn manifest(&self, digest: &Digest, store: &BlobStore) -> Result<Vec<u8>, ImageError> {
        let bytes = match self {
            Self::Registry(places) => places.manifest(Some(digest)).await?,
            Self::Local(local) => {
                let bytes = local.manifest(digest)?;
                check_manifest(&bytes, digest, || local.place(digest))?;
                bytes
            }
        };
        store.put(&bytes)?;
        Ok(bytes)
    }
}

fn check_manifest(bytes: &[u8], digest: &Digest, place: impl Fn() -> String) -> Result<(), ImageError> {
    let actual = Digest::of(bytes);
    if actual == *digest {
        return Ok(());
    }
    Err(ImageError::DigestMismatch {
        what: "the manifest".to_owned(),
        place: place(),
        expected: Box::new(*digest),
        actual: Box::new(actual),
        remedy: "it was damaged at its source or on the way; try again, or take it from elsewhere (a mirror, a new copy)",
    })
}

/// The places of an image in their order: mirrors, then where it is at home. Blobs are asked for first where the
/// manifest was, and no more where nobody answers. As everything but a tag is named by its digest, it does not
/// matter which place it is.
pub struct Places {
    list: Vec<Registry>,
    /// Those before it are not asked.
    first: AtomicUsize,
    reference: String,
    ctx: Ctx,
}

impl Places {
    fn new(reference: &RegistryReference, name: &str, client: &ClientConfig, ctx: &Ctx) -> Result<Self, ImageError> {
        let route = client.registries.route(reference)?;
        let last = route.endpoints.len() - 1;
        let open = |(index, endpoint)| {
            // Nobody waits long for a mirror that is down.
            let retries = if index == last { client.retries } else { client.retries.min(1) };
            Registry::new(endpoint, name, client, retries, ctx)
        };
        let list = route.endpoints.into_iter().enumerate().map(open).collect::<Result<_, _>>()?;
        Ok(Self { list, first: AtomicUsize::new(0), reference: name.to_owned(), ctx: ctx.clone() })
    }

    /// Begins to go through the places in search of `what`.
    fn walk(&self, what: &str) -> Walk<'_> {
        let next = self.first.load(Ordering::Relaxed);
        Walk { places: self, what: what.to_owned(), next, failures: Vec::new() }
    }

    /// The manifest or index with this digest, or that the reference names.
    async fn manifest(&self, digest: Option<&Digest>) -> Result<Vec<u8>, ImageError> {
        let what = digest.map_or_else(|| "its manifest".to_owned(), |digest| format!("the manifest {digest}"));
        let mut walk = self.walk(&what);
        while let Some(registry) = walk.next() {
            match self.manifest_from(registry, digest).await {
                Ok(bytes) => {
                    walk.is_home();
                    self.ctx.detail(format!("{what}: from {}", registry.endpoint()));
                    return Ok(bytes);
                }
                Err(error) => walk.failed(registry, error)?,
            }
        }
        Err(walk.end())
    }

    async fn manifest_from(&self, registry: &Registry, digest: Option<&Digest>) -> Result<Vec<u8>, ImageError> {
        let bytes = match digest {
            Some(digest) => {
                let bytes = registry.manifest(&digest.to_string()).await?;
                check_manifest(&bytes, digest, || registry.manifest_url(&digest.to_string()))?;
                bytes
            }
            None => registry.named_manifest().await?,
        };
        // A page of somebody's login portal is no manifest; another place may have one.
        manifest::parse(&bytes, &self.reference)?;
        Ok(bytes)
    }
}

/// One way through the places.
struct Walk<'a> {
    places: &'a Places,
    what: String,
    /// The place after the one that is tried.
    next: usize,
    failures: Vec<(String, ImageError)>,
}

impl<'a> Walk<'a> {
    fn next(&mut self) -> Option<&'a Registry> {
        let registry = self.places.list.get(self.next)?;
        self.next += 1;
        Some(registry)
    }

    /// The place that is tried has the image: it is asked first from now on.
    fn is_home(&self) {
        self.places.first.fetch_max(self.next - 1, Ordering::Relaxed);
    }

    /// The place that is tried does not have it. What is no place's own failure ends the walk.
    fn failed(&mut self, registry: &Registry, error: ImageError) -> Result<(), ImageError> {
        if self.places.list.len() == 1 || !error.may_be_elsewhere() {
            return Err(error);
        }
        // A single blob that is lacking or damaged says nothing of the others.
        if error.is_of_the_whole_place() && self.next < self.places.list.len() {
            self.places.first.fetch_max(self.next, Ordering::Relaxed);
        }
        let place = registry.endpoint().to_string();
        self.places.ctx.detail(format!("{}: not from {place}: {error}", self.what));
        self.failures.push((place, error));
        Ok(())
    }

    fn end(self) -> ImageError {
        let reference = self.places.reference.clone();
        ImageError::NoPlace { reference, what: self.what, failures: self.failures }
    }
}

/// Fetches blobs into the store; shared by the tasks that fetch them side by side.
pub struct Fetcher {
    pub source: Arc<Source>,
    pub store: BlobStore,
    pub progress: Progress,
    pub retries: u32,
    pub reference: String,
}

impl Fetcher {
    /// Brings one blob, whole and checked, and tells `arrival` how far it is.
    pub async fn fetch(&self, wanted: &Wanted, arrival: Option<Arc<Arrival>>) -> Result<(), ImageError> {
        let mut partial = loop {
            match self.store.begin(wanted)? {
                Begin::There => {
                    self.progress.add(wanted.size, wanted);
                    if let Some(arrival) = arrival {
                        arrival.was_there();
                    }
                    return Ok(());
                }
                Begin::Ours(mut partial) => {
                    if let Some(arrival) = arrival {
                        partial.tell(arrival)?;
                    }
                    break partial;
                }
                Begin::Busy => tokio::time::sleep(BUSY_WAIT).await,
            }
        };
        self.progress.add(partial.len(), wanted);
        match &*self.source {
            Source::Registry(places) => {
                let mut walk = places.walk(&wanted.what);
                while let Some(registry) = walk.next() {
                    match self.bring(registry, wanted, &mut partial).await {
                        Ok(place) => return partial.commit(&place),
                        Err(error) => walk.failed(registry, error)?,
                    }
                }
                Err(walk.end())
            }
            Source::Local(local) => {
                let place = local.place(&wanted.digest);
                self.copy(&**local, wanted, &mut partial, &place).await?;
                partial.commit(&place)
            }
        }
    }

    /// Brings one blob from one registry; returns where it was.
    async fn bring(&self, registry: &Registry, wanted: &Wanted, partial: &mut Partial) -> Result<String, ImageError> {
        let place = registry.blob_url(&wanted.digest);
        let taken_up = partial.len() > 0;
        self.download(registry, wanted, partial, &place).await?;
        if taken_up && !partial.is_right() {
            // What an earlier run or another place left may be damaged (a power cut): once more from the start.
            self.progress.sub(partial.len());
            partial.restart()?;
            self.download(registry, wanted, partial, &place).await?;
        }
        let len = partial.len();
        if let Err(error) = partial.check(&place) {
            self.progress.sub(len);
            return Err(error);
        }
        Ok(place)
    }

    async fn download(
        &self,
        registry: &Registry,
        wanted: &Wanted,
        partial: &mut Partial,
        place: &str,
    ) -> Result<(), ImageError> {
        let mut cuts = Cuts::new(self.retries);
        while partial.len() < wanted.size {
            let before = partial.len();
            let mut body = registry.blob(&wanted.digest, before).await?;
            if body.offset != before {
                self.progress.sub(before);
                partial.restart()?;
            }
            let reason = loop {
                match body.chunk().await {
                    Ok(Some(bytes)) => {
                        partial.write(&bytes, place)?;
                        self.progress.add(bytes.len() as u64, wanted);
                    }
                    Ok(None) => break "the connection ended early".to_owned(),
                    Err(reason) => break reason,
                }
            };
            if partial.len() == wanted.size {
                break;
            }
            let Some(pause) = cuts.another(partial.len() > before) else {
                return Err(ImageError::Cut {
                    what: wanted.what.clone(),
                    reference: self.reference.clone(),
                    got: partial.len(),
                    want: wanted.size,
                    reason,
                });
            };
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    async fn copy(
        &self,
        local: &dyn Local,
        wanted: &Wanted,
        partial: &mut Partial,
        place: &str,
    ) -> Result<(), ImageError> {
        let mut file = local.blob(&wanted.digest, wanted.size)?;
        self.progress.sub(partial.len());
        partial.restart()?;
        let mut buffer = vec![0; COPY_CHUNK];
        loop {
            let n = match file.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // A folder's reader says more than that it cannot be read.
                Err(e) => return Err(e.downcast::<ImageError>().unwrap_or_else(ImageError::Io)),
                Ok(n) => n,
            };
            if n == 0 {
                return Ok(());
            }
            partial.write(&buffer[..n], place)?;
            self.progress.add(n as u64, wanted);
            tokio::task::yield_now().await;
        }
    }
}

/// Counts bytes for all blobs together and reports them now and then.
pub struct Progress {
    ctx: Ctx,
    total: u64,
    done: AtomicU64,
    last: Mutex<Option<Instant>>,
}

impl Progress {
    pub fn new(ctx: &Ctx, total: u64) -> Self {
        Self { ctx: ctx.clone(), total, done: AtomicU64::new(0), last: Mutex::new(None) }
    }

    fn add(&self, bytes: u64, current: &Wanted) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if done < self.total && last.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
            return;
        }
        *last = Some(Instant::now());
        self.ctx.event(&Event::Progress {
            stage: Stage::Image,
            done,
            total: self.total,
            unit: "bytes",
            current: current.digest.short(),
        });
    }

    fn sub(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Runs async work to its end from synchronous code, on a runtime of its own that ends with it. A signal ends
/// the work at its next await: connections are closed, partial blobs stay where nobody takes them for whole.
pub fn run<T>(ctx: &Ctx, work: impl Future<Output = Result<T, ImageError>>) -> Result<T, ImageError> {
    ctx.check()?;
    let runtime = crate::wait::Runtime::new("image").map_err(|e| {
        ImageError::Io(fsutil::with_path(&e, "start threads for", std::path::Path::new("the download")))
    })?;
    let result = runtime.run(ctx, work);
    // What failed because of a signal is told as that.
    ctx.check()?;
    result
}
