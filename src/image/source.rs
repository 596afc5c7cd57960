//! Where the documents and blobs of an image come from: a registry, or a file or folder of this machine, behind one
//! face.

use super::blobs::{Begin, BlobStore, Partial, Wanted};
use super::client::ClientConfig;
use super::local::{self, Local};
use super::registry::Registry;
use super::{Digest, ImageError, Platform, Reference};
use crate::cache::Cache;
use crate::fsutil;
use crate::report::{Ctx, Event, Stage};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long to wait for another process that writes the same blob, before looking again.
const BUSY_WAIT: Duration = Duration::from_millis(100);

/// How much is copied from a layout between two looks at the interrupt.
const COPY_CHUNK: usize = 1 << 20;

/// How often progress is reported.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Where an image comes from.
pub enum Source {
    /// A repository of a registry.
    Registry(Box<Registry>),
    /// A file or folder of this machine.
    Local(Box<dyn Local>),
}

impl Source {
    /// Sets up the way to the image; nothing is sent yet.
    pub fn open(reference: &Reference, cache: &Cache, client: &ClientConfig, ctx: &Ctx) -> Result<Self, ImageError> {
        match (local::open(reference, cache, ctx)?, reference) {
            (Some(local), _) => Ok(Self::Local(local)),
            (None, Reference::Registry(r)) => {
                Registry::new(r, &reference.to_string(), client).map(|r| Self::Registry(Box::new(r)))
            }
            (None, _) => Err(ImageError::Client {
                what: reference.to_string(),
                reason: "neither a registry nor a file".to_owned(),
            }),
        }
    }

    /// The digest of the document that the reference names: a manifest, or an index of platforms.
    pub async fn start(&self, platform: Platform, store: &BlobStore) -> Result<Digest, ImageError> {
        match self {
            Self::Registry(r) => store.put(&r.named_manifest().await?),
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
        let (bytes, place) = match self {
            Self::Registry(r) => (r.manifest(&digest.to_string()).await?, r.manifest_url(&digest.to_string())),
            Self::Local(l) => (l.manifest(digest)?, l.place(digest)),
        };
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(ImageError::DigestMismatch {
                what: "the manifest".to_owned(),
                place,
                expected: Box::new(*digest),
                actual: Box::new(actual),
                remedy: "it was damaged at its source or on the way; try again, or take it from elsewhere (a mirror, a new copy)",
            });
        }
        store.put(&bytes)?;
        Ok(bytes)
    }

    fn place(&self, digest: &Digest) -> String {
        match self {
            Self::Registry(r) => r.blob_url(digest),
            Self::Local(l) => l.place(digest),
        }
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
    /// Brings one blob, whole and checked.
    pub async fn fetch(&self, wanted: &Wanted) -> Result<(), ImageError> {
        let place = self.source.place(&wanted.digest);
        let mut partial = loop {
            match self.store.begin(wanted)? {
                Begin::There => {
                    self.progress.add(wanted.size, wanted);
                    return Ok(());
                }
                Begin::Ours(partial) => break partial,
                Begin::Busy => tokio::time::sleep(BUSY_WAIT).await,
            }
        };
        let mut taken_up = partial.len() > 0;
        self.progress.add(partial.len(), wanted);
        loop {
            match &*self.source {
                Source::Registry(registry) => self.download(registry, wanted, &mut partial, &place).await?,
                Source::Local(local) => self.copy(&**local, wanted, &mut partial, &place).await?,
            }
            if taken_up && !partial.is_right() {
                // What an earlier run left may be damaged (a power cut): once more from the start.
                taken_up = false;
                self.progress.sub(partial.len());
                partial.restart()?;
                continue;
            }
            return partial.commit(&place);
        }
    }

    async fn download(
        &self,
        registry: &Registry,
        wanted: &Wanted,
        partial: &mut Partial,
        place: &str,
    ) -> Result<(), ImageError> {
        let mut attempt = 0;
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
            // A connection that brought something is no reason to give up.
            attempt = if partial.len() > before { 1 } else { attempt + 1 };
            if attempt > self.retries {
                return Err(ImageError::Cut {
                    what: wanted.what.clone(),
                    reference: self.reference.clone(),
                    got: partial.len(),
                    want: wanted.size,
                    reason,
                });
            }
            tokio::time::sleep(super::registry::backoff(attempt - 1)).await;
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("image")
        .enable_all()
        .build()
        .map_err(|e| {
            ImageError::Io(fsutil::with_path(&e, "start threads for", std::path::Path::new("the download")))
        })?;
    let stop = Arc::new(Notify::new());
    let hook = ctx.interrupt.on_signal({
        let stop = stop.clone();
        move |_| stop.notify_one()
    });
    let result = runtime.block_on(async {
        tokio::select! {
            result = work => Some(result),
            () = stop.notified() => None,
        }
    });
    drop(hook);
    // Not dropped: a name look-up that hangs in a thread of its own must not hold us.
    runtime.shutdown_background();
    ctx.check()?;
    result.unwrap_or_else(|| {
        Err(ImageError::Client { what: "the download".to_owned(), reason: "stopped without a signal".to_owned() })
    })
}
