//! A layer's bytes on their way from the store to the tree: decompressed and hashed in one pass.
//!
//! ```text
//! thread 1   blob -> sha256 of the blob (unless that was done) -> inflate or zstd -> buffers of 512 KiB --+--> thread 2: sha256 of
//!                                                                                      |    the content (diff_id)
//! caller     reads the buffers as they are (BufRead) <-- bounded channel --------------+
//! ```
//!
//! Three things run side by side on buffers that are shared and used again, so memory stays the same whatever
//! the layer's size. Both digests are known when the stream has been read to its end; [`Ended`] holds them. A blob that is
//! hashed while it is fetched is not hashed again here: its reader fails when it was wrong.

use crate::image::{Compression, Digest, LayerBlob};
use crate::sha256::Sha256;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

const CHUNK: usize = 512 << 10;

/// Buffers under way to each reader.
const AHEAD: usize = 8;

/// The largest zstd window that is accepted, 2 to the power of this: 128 MiB, zstd's own default limit.
const ZSTD_WINDOW: u32 = 27;

/// When a layer is refused for what it swells to.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Uncompressed bytes that may still come.
    pub bytes: u64,
    /// Uncompressed bytes for each compressed one.
    pub ratio: u64,
    /// The ratio counts from this many uncompressed bytes on.
    pub ratio_from: u64,
}

/// Why a stream ended before its end.
#[derive(Clone, Debug)]
pub enum Broken {
    /// The compressed data is damaged or cut.
    Compression(String),
    /// More bytes than [`Bounds::bytes`].
    TooLarge,
    /// A larger ratio than [`Bounds::ratio`].
    TooDense,
    /// The caller stopped, for a reason of its own.
    NotRead,
}

/// What was read, once it has been read to its end.
pub struct Ended {
    /// The digest of the blob, unless its reader checks it.
    pub blob: Option<Digest>,
    /// Its size.
    pub blob_size: u64,
    /// The digest of the uncompressed content, when all of it could be decompressed.
    pub content: Option<Digest>,
    /// Why it could not.
    pub broken: Option<Broken>,
}

type Buffer = Arc<Vec<u8>>;

/// The blob's digest, unless its reader checks it; its size; why it could not be read to its end.
type Decoded = (Option<Digest>, u64, Option<Broken>);

/// The uncompressed bytes of a layer.
pub struct LayerStream<'scope> {
    buffers: Option<Receiver<Buffer>>,
    current: Buffer,
    at: usize,
    pool: Sender<Vec<u8>>,
    consumed: Arc<AtomicU64>,
    decoder: ScopedJoinHandle<'scope, io::Result<Decoded>>,
    hasher: ScopedJoinHandle<'scope, Digest>,
}

impl<'scope> LayerStream<'scope> {
    /// Starts to read the blob.
    pub fn open(scope: &'scope Scope<'scope, '_>, blob: LayerBlob, compression: Compression, bounds: Bounds) -> Self {
        let hasher_of_blob = (!blob.is_checked()).then(Sha256::new);
        let consumed = Arc::new(AtomicU64::new(0));
        let (pool, returned) = channel();
        let (to_reader, buffers) = sync_channel(AHEAD);
        let (to_hasher, to_hash) = sync_channel::<Buffer>(AHEAD);
        let hasher = scope.spawn({
            let pool = pool.clone();
            move || {
                let mut hasher = Sha256::new();
                for buffer in to_hash {
                    hasher.update(&buffer);
                    recycle(&pool, buffer);
                }
                Digest::finish(hasher)
            }
        });
        let decoder = scope.spawn({
            let failed = Arc::new(AtomicBool::new(false));
            let (consumed, readers) = (consumed.clone(), [to_reader, to_hasher]);
            let blob = HashedBlob { blob, hasher: hasher_of_blob, consumed: consumed.clone(), failed: failed.clone() };
            let sink = Sink { readers, returned, consumed, failed, produced: 0, bounds };
            move || decode(blob, compression, sink)
        });
        Self { buffers: Some(buffers), current: Buffer::default(), at: 0, pool, consumed, decoder, hasher }
    }

    /// How many bytes of the blob have been read.
    pub fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::Relaxed)
    }

    /// Reads what is left, as long as `go_on` says so, and returns the digests.
    pub fn finish(mut self, go_on: impl Fn() -> bool) -> io::Result<Ended> {
        if let Some(buffers) = self.buffers.take() {
            for buffer in buffers {
                recycle(&self.pool, buffer);
                if !go_on() {
                    break;
                }
            }
        }
        let panicked = || io::Error::other("a thread that reads the layer panicked");
        let (blob, blob_size, broken) = self.decoder.join().map_err(|_| panicked())??;
        let content = self.hasher.join().map_err(|_| panicked())?;
        Ok(Ended { blob, blob_size, content: broken.is_none().then_some(content), broken })
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(into.len());
        into[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for LayerStream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len()
            && let Some(buffers) = &self.buffers
        {
            // A closed channel is the end, or a failure that `finish` will tell.
            let next = buffers.recv().unwrap_or_default();
            recycle(&self.pool, std::mem::replace(&mut self.current, next));
            self.at = 0;
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

/// The last one to use a buffer gives it back.
fn recycle(pool: &Sender<Vec<u8>>, buffer: Buffer) {
    if let Some(buffer) = Arc::into_inner(buffer)
        && buffer.capacity() >= CHUNK
    {
        let _ = pool.send(buffer);
    }
}

struct HashedBlob {
    blob: LayerBlob,
    hasher: Option<Sha256>,
    consumed: Arc<AtomicU64>,
    /// Set when the blob itself failed, which decoders report like damaged data.
    failed: Arc<AtomicBool>,
}

impl Read for HashedBlob {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.blob.read(into).inspect_err(|_| self.failed.store(true, Ordering::Relaxed))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&into[..n]);
        }
        self.consumed.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

struct Sink {
    readers: [SyncSender<Buffer>; 2],
    returned: Receiver<Vec<u8>>,
    consumed: Arc<AtomicU64>,
    failed: Arc<AtomicBool>,
    produced: u64,
    bounds: Bounds,
}

/// Why decoding stopped.
enum Stop {
    Broken(Broken),
    /// The caller has gone: it failed, or was told to stop.
    NobodyReads,
    Io(io::Error),
}

impl Sink {
    /// Sends everything that `from` gives.
    fn drain(&mut self, from: &mut impl Read) -> Result<(), Stop> {
        loop {
            let mut buffer = self.returned.try_recv().unwrap_or_else(|_| Vec::with_capacity(CHUNK));
            buffer.resize(CHUNK, 0);
            let mut filled = 0;
            let mut failure = None;
            while filled < CHUNK {
                match from.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        failure = Some(e);
                        break;
                    }
                }
            }
            self.produced += filled as u64;
            self.check()?;
            let at_end = filled < CHUNK;
            buffer.truncate(filled);
            if filled > 0 {
                let buffer = Arc::new(buffer);
                for reader in &self.readers {
                    reader.send(buffer.clone()).map_err(|_| Stop::NobodyReads)?;
                }
            }
            match failure {
                Some(e) if self.failed.load(Ordering::Relaxed) => return Err(Stop::Io(e)),
                Some(e) => return Err(Stop::Broken(Broken::Compression(e.to_string()))),
                None if at_end => return Ok(()),
                None => {}
            }
        }
    }

    fn check(&self) -> Result<(), Stop> {
        if self.produced > self.bounds.bytes {
            return Err(Stop::Broken(Broken::TooLarge));
        }
        let allowed = self.consumed.load(Ordering::Relaxed).saturating_mul(self.bounds.ratio);
        if self.produced > self.bounds.ratio_from && self.produced > allowed {
            return Err(Stop::Broken(Broken::TooDense));
        }
        Ok(())
    }
}

/// All members of a gzip file, one after the other.
#[cfg(not(feature = "isa-l"))]
fn gunzip(blob: impl BufRead) -> impl Read {
    flate2::bufread::MultiGzDecoder::new(blob)
}

#[cfg(feature = "isa-l")]
fn gunzip(blob: impl BufRead) -> impl Read {
    // It keeps a pointer into itself from its first reading on; it is only borrowed until it is dropped.
    isal::read::GzipDecoder::new(blob)
}

fn decode(blob: HashedBlob, compression: Compression, mut sink: Sink) -> io::Result<Decoded> {
    let mut blob = BufReader::with_capacity(CHUNK, blob);
    let result = match compression {
        Compression::None => sink.drain(&mut blob),
        Compression::Gzip => sink.drain(&mut gunzip(&mut blob)),
        Compression::Zstd => match zstd::stream::read::Decoder::with_buffer(&mut blob) {
            Ok(mut decoder) => match decoder.window_log_max(ZSTD_WINDOW) {
                Ok(()) => sink.drain(&mut decoder),
                Err(e) => Err(Stop::Io(e)),
            },
            Err(e) => Err(Stop::Io(e)),
        },
    };
    let broken = match result {
        Ok(()) => None,
        Err(Stop::Io(e)) => return Err(e),
        Err(Stop::NobodyReads) => Some(Broken::NotRead),
        Err(Stop::Broken(broken)) => Some(broken),
    };
    drop(sink);
    // What a decoder left unread belongs to the blob too. After a failure the blob's digest tells a damaged
    // blob from an image that was made badly, so it is read to the end, unless it was refused for its size.
    if matches!(broken, None | Some(Broken::Compression(_))) {
        io::copy(&mut blob, &mut io::sink())?;
    }
    let blob = blob.into_inner();
    Ok((blob.hasher.map(Digest::finish), blob.consumed.load(Ordering::Relaxed), broken))
}
