//! An image on its way: manifest and configuration are there, and its layers can be read, in order, while they and later
//! ones still come.
//!
//! ```text
//! thread `image`   registry -> sha256 -> blobs/partial/<hex> -> (size and digest right) -> blobs/sha256/<hex>
//!                                             |  Arrival: how much there is, and whether it is whole
//! caller           LayerBlob::read  <---------+
//! ```
//!
//! What is read from a blob that is not yet whole is not yet believed: the reader gets the end of the file only after size
//! and digest were found right, and an error when they were not, or when the download began anew. So whoever read a layer to
//! its end has read the right bytes.

use super::blobs::BlobStore;
use super::client::ClientConfig;
use super::pull::{self, Documents, Presence, PulledImage};
use super::source::{self, Source};
use super::{Digest, ImageError, Layer, Reference, ResolvedImage};
use crate::cache::Cache;
use crate::fsutil;
use crate::report::{Ctx, Event, Stage};
use fs_err as fs;
use fs_err::os::unix::fs::FileExt as _;
use std::collections::HashMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::Notify;

/// How far a blob has come. Shared by the task that fetches it and the one that reads it.
#[derive(Debug, Default)]
pub struct Arrival {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The file that is being written; it stays the same when it is renamed into its place.
    file: Option<Arc<fs::File>>,
    /// Its bytes that may be read.
    len: u64,
    /// The download began anew: what was read before counts no more.
    restarted: bool,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It was in the store already.
    Found,
    /// It came, and was what it should be.
    Whole,
    /// It will not come.
    Failed,
}

impl Arrival {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.moved.notify_all();
    }

    /// The blob is written to `file`, which holds `len` bytes already.
    pub fn begins(&self, file: fs::File, len: u64) {
        self.change(|state| (state.file, state.len) = (Some(Arc::new(file)), len));
    }

    /// So many bytes are there.
    pub fn has(&self, len: u64) {
        self.change(|state| state.len = len);
    }

    /// The bytes that were there are gone.
    pub fn starts_again(&self) {
        self.change(|state| {
            // What nobody could read yet is not missed.
            state.restarted |= state.len > 0;
            state.len = 0;
        });
    }

    /// The blob is in the store, and was before.
    pub fn was_there(&self) {
        self.change(|state| state.end = Some(End::Found));
    }

    /// The blob came, and is in the store.
    pub fn is_whole(&self) {
        self.change(|state| state.end = Some(End::Whole));
    }

    /// The blob will not come, unless it is there.
    pub fn gives_up(&self) {
        self.change(|state| {
            state.end.get_or_insert(End::Failed);
        });
    }

    fn stumbled(&self) -> bool {
        let state = self.lock();
        state.restarted || state.end == Some(End::Failed)
    }

    fn wait(&self, until: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let guard = self.lock();
        self.moved.wait_while(guard, |state| !until(state)).unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer's blob, to be read once from its begin to its end.
pub struct LayerBlob {
    input: Input,
    path: PathBuf,
}

enum Input {
    File(fs::File),
    Arriving { arrival: Arc<Arrival>, at: u64 },
}

impl LayerBlob {
    /// One that is a file.
    pub fn whole(path: PathBuf) -> io::Result<Self> {
        Ok(Self { input: Input::File(fs::File::open(&path)?), path })
    }

    /// Where it is when it is whole.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Whether its end comes only after its digest was found right. Otherwise the reader has to check.
    pub fn is_checked(&self) -> bool {
        matches!(self.input, Input::Arriving { .. })
    }
}

impl Read for LayerBlob {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (arrival, at) = match &mut self.input {
            Input::File(file) => return file.read(into),
            Input::Arriving { arrival, at } => (arrival, at),
        };
        loop {
            let state = arrival.wait(|state| state.restarted || state.end.is_some() || state.len > *at);
            if state.restarted || state.end == Some(End::Failed) {
                return Err(io::Error::other(format!("`{}` did not come whole", self.path.display())));
            }
            let there = usize::try_from(state.len - *at).unwrap_or(usize::MAX).min(into.len());
            let Some(file) = state.file.clone().filter(|_| there > 0) else { return Ok(0) };
            drop(state);
            let n = file.read_at(&mut into[..there], *at)?;
            // Nothing, although it was there: it has just begun anew, which the next look tells.
            if n > 0 || into.is_empty() {
                *at += n as u64;
                return Ok(n);
            }
        }
    }
}

/// An image whose layers are fetched by a thread of its own. Dropped, it stops fetching; what came so far stays where the
/// next run goes on with it.
pub struct Arriving {
    image: PulledImage,
    arrivals: HashMap<Digest, Arc<Arrival>>,
    thread: Option<Thread>,
}

struct Thread {
    handle: JoinHandle<Result<(), ImageError>>,
    stop: Arc<Notify>,
}

impl Arriving {
    /// The image's layers, the lowest first.
    pub fn layers(&self) -> &[Layer] {
        self.image.layers()
    }

    /// The bytes of all layers as they are stored.
    pub fn size(&self) -> u64 {
        self.image.size()
    }

    /// Whether layers are still being fetched.
    pub fn is_under_way(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.handle.is_finished())
    }

    /// One of its layers, as soon as there is something of it.
    pub fn layer(&self, layer: &Layer) -> io::Result<LayerBlob> {
        let path = self.image.layer_path(layer);
        let Some(arrival) = self.arrivals.get(layer.digest()) else { return LayerBlob::whole(path) };
        let state = arrival.wait(|state| state.file.is_some() || state.end.is_some());
        if state.end == Some(End::Found) {
            return LayerBlob::whole(path);
        }
        drop(state);
        Ok(LayerBlob { input: Input::Arriving { arrival: arrival.clone(), at: 0 }, path })
    }

    /// Whether what was read of a layer may be wrong although the image is not: its download failed or began anew.
    pub fn stumbled(&self) -> bool {
        self.arrivals.values().any(|arrival| arrival.stumbled())
    }

    /// Forgets a layer's blob that was in the store and turned out to be damaged.
    pub fn discard(&self, layer: &Layer) -> Result<(), ImageError> {
        self.image.discard(layer)
    }

    /// Waits until everything is there.
    pub fn finish(mut self) -> Result<PulledImage, ImageError> {
        if let Some(Thread { handle, .. }) = self.thread.take() {
            joined(handle)?;
            // What had the right size may have been found damaged and deleted since.
            return self.image.again();
        }
        Ok(self.image.clone())
    }
}

/// One that is there already.
impl From<PulledImage> for Arriving {
    fn from(image: PulledImage) -> Self {
        Self { image, arrivals: HashMap::new(), thread: None }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if let Some(Thread { handle, stop }) = self.thread.take() {
            stop.notify_one();
            // It was told to stop: how it ended is of no interest.
            let _ = handle.join();
        }
    }
}

fn joined(handle: JoinHandle<Result<(), ImageError>>) -> Result<(), ImageError> {
    handle.join().unwrap_or_else(|_| Err(stopped("its thread panicked")))
}

fn stopped(reason: &str) -> ImageError {
    ImageError::Client { what: "the download".to_owned(), reason: reason.to_owned() }
}

/// Begins to bring everything of the image that is not yet in the cache, and returns as soon as its layers are known.
/// Offline, only files and folders of this machine are read. The stage `image` is reported: its begin at once, its end
/// when the last layer has come.
pub fn begin(
    image: &ResolvedImage,
    cache: &Cache,
    client: &ClientConfig,
    offline: bool,
    ctx: &Ctx,
) -> Result<Arriving, ImageError> {
    let start = Instant::now();
    ctx.event(&Event::StageStarted { stage: Stage::Image, detail: image.reference().to_string() });
    let done = move |image: &ResolvedImage, ctx: &Ctx, cached| {
        let detail = format!("{} {}", image.reference(), image.digest());
        ctx.event(&Event::StageDone { stage: Stage::Image, detail, seconds: start.elapsed().as_secs_f64(), cached });
    };
    match pull::look(&BlobStore::new(cache), image)? {
        Presence::Whole(pulled) => {
            done(image, ctx, true);
            return Ok((*pulled).into());
        }
        Presence::Lacking(missing) if offline && matches!(image.reference(), Reference::Registry(_)) => {
            return Err(ImageError::NotCached { missing, reference: image.reference().to_string() });
        }
        Presence::Lacking(_) => {}
    }
    let source = Arc::new(Source::open(image.reference(), cache, client, ctx)?);
    let stop = Arc::new(Notify::new());
    let (known, documents) = sync_channel(1);
    let handle = std::thread::Builder::new()
        .name("image".to_owned())
        .spawn({
            let (image, store, ctx, stop) = (image.clone(), BlobStore::new(cache), ctx.clone(), stop.clone());
            let (retries, parallel) = (client.retries, client.parallel);
            move || {
                let work = bring(&image, store, source, retries, parallel, known, &ctx);
                source::run(&ctx, async {
                    tokio::select! {
                        result = work => result,
                        () = stop.notified() => Err(stopped("it was given up")),
                    }
                })?;
                done(&image, &ctx, false);
                Ok(())
            }
        })
        .map_err(|e| {
            ImageError::Io(fsutil::with_path(&e, "start a thread for", std::path::Path::new("the download")))
        })?;
    // It ends without a word only when it failed.
    match documents.recv() {
        Ok((image, arrivals)) => Ok(Arriving { image, arrivals, thread: Some(Thread { handle, stop }) }),
        Err(_) => Err(joined(handle).err().unwrap_or_else(|| stopped("it ended without a result"))),
    }
}

type Known = (PulledImage, HashMap<Digest, Arc<Arrival>>);

async fn bring(
    image: &ResolvedImage,
    store: BlobStore,
    source: Arc<Source>,
    retries: u32,
    parallel: usize,
    known: SyncSender<Known>,
    ctx: &Ctx,
) -> Result<(), ImageError> {
    let documents = Documents::fetch(image, store, &source, retries, ctx).await?;
    let arrivals = GiveUp(documents.arrivals());
    // Whoever waited has gone: then nobody wants the layers either, and will say so.
    let _ = known.send((documents.expected(), arrivals.0.clone()));
    documents.layers(parallel, &arrivals.0).await
}

/// However fetching ends, nobody waits any longer.
struct GiveUp(HashMap<Digest, Arc<Arrival>>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        for arrival in self.0.values() {
            arrival.gives_up();
        }
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
    begin(image, cache, client, offline, ctx)?.finish()
}
