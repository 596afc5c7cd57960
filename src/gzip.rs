//! gzip on all cores, with the same bytes whatever their number.
//!
//! The input is cut into blocks of 1 MiB; each becomes a gzip member of its own (RFC 1952 allows any number of
//! members in a file, and every reader we know joins them: gzip, GNU tar, Python, Go, zlib's gzread). Whole blocks
//! let libdeflate do the work, four times quicker than zlib at the same ratio. Where a block begins depends on
//! the data only, so threads do not show in the result.
//!
//! ```text
//! 1f 8b 08 04  mtime=0  xfl=0  os=255          header with FEXTRA set, no name, no time
//! xlen=8  'S' 'F' len=4  u32 LE                our extra field: bytes of this whole member
//! deflate data                                 RFC 1951
//! crc32 LE  isize LE                           isize: bytes of the block, 1 MiB but for the last
//! ```
//!
//! The extra field is what lets our own reader find the next member without inflating this one, so reading is
//! parallel too. A gzip file that does not begin with it is read by one thread, as gzip does.

use flate2::read::MultiGzDecoder;
use libdeflater::{CompressionLvl, Compressor, Decompressor};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::VecDeque;
use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// Bytes of input in a member. Part of the format: changing it changes every archive.
pub const BLOCK: usize = 1 << 20;
const HEADER: usize = 20;
const TRAILER: usize = 8;
/// Each thread has two blocks waiting, in and out: this keeps memory under 150 MB.
const MOST_THREADS: usize = 32;
/// No member of ours is larger; a larger number is damage or malice.
const MEMBER_LIMIT: usize = 2 * BLOCK;

type Reply = Receiver<io::Result<Vec<u8>>>;

/// How many threads to use when `wanted` were asked for, at most `most`; 0 means all.
pub fn threads(wanted: usize, most: usize) -> io::Result<usize> {
    let threads = if wanted == 0 { std::thread::available_parallelism()?.get() } else { wanted };
    Ok(threads.min(most))
}

/// Threads that compress, for several writers at once.
#[derive(Clone)]
pub struct Pool {
    threads: Arc<ThreadPool>,
    /// Blocks that one writer may have under way.
    limit: usize,
}

impl Pool {
    /// `threads` of 0 means all; `writers` are expected at once, and share the blocks that may wait in memory.
    pub fn new(wanted: usize, writers: usize) -> io::Result<Self> {
        let count = threads(wanted, MOST_THREADS)?;
        let pool = ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("gzip-{i}"))
            .build()
            .map_err(io::Error::other)?;
        Ok(Self { threads: Arc::new(pool), limit: (2 * count).div_ceil(writers.max(1)) + 2 })
    }
}

/// Blocks under way in a pool, in order.
struct Ordered {
    pool: Arc<ThreadPool>,
    pending: VecDeque<Reply>,
    limit: usize,
}

impl Ordered {
    fn new(threads: usize) -> io::Result<Self> {
        Ok(Self::shared(&Pool::new(threads, 1)?))
    }

    fn shared(pool: &Pool) -> Self {
        Self { pool: Arc::clone(&pool.threads), pending: VecDeque::new(), limit: pool.limit }
    }

    fn spawn(&mut self, work: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static) {
        let (reply, receiver) = sync_channel(1);
        self.pool.spawn_fifo(move || {
            // Nobody listens any more when the other side gave up.
            let _ = reply.send(work());
        });
        self.pending.push_back(receiver);
    }

    fn is_full(&self) -> bool {
        self.pending.len() >= self.limit
    }

    /// The oldest block's result.
    fn next(&mut self) -> Option<io::Result<Vec<u8>>> {
        let receiver = self.pending.pop_front()?;
        Some(receiver.recv().unwrap_or_else(|_| Err(io::Error::other("a compression thread died"))))
    }
}

/// Compresses what is written to it into `inner`.
pub struct GzipWriter<W: Write> {
    inner: W,
    level: CompressionLvl,
    block: Vec<u8>,
    blocks: u64,
    work: Ordered,
}

impl<W: Write> GzipWriter<W> {
    /// `level` is libdeflate's, 1 to 12; `threads` of 0 means all.
    pub fn new(inner: W, level: u8, threads: usize) -> io::Result<Self> {
        Self::shared(inner, level, &Pool::new(threads, 1)?)
    }

    /// As [`Self::new`], with threads that other writers use as well.
    pub fn shared(inner: W, level: u8, pool: &Pool) -> io::Result<Self> {
        Ok(Self {
            inner,
            level: valid(level)?,
            block: Vec::with_capacity(BLOCK),
            blocks: 0,
            work: Ordered::shared(pool),
        })
    }

    fn submit(&mut self) -> io::Result<()> {
        while self.work.is_full() {
            self.drain_one()?;
        }
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        let level = self.level;
        self.blocks += 1;
        self.work.spawn(move || member(&block, level));
        Ok(())
    }

    fn drain_one(&mut self) -> io::Result<()> {
        match self.work.next() {
            Some(member) => self.inner.write_all(&member?),
            None => Ok(()),
        }
    }

    /// Writes what is left and gives back the inner writer.
    pub fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() || self.blocks == 0 {
            self.submit()?;
        }
        while !self.work.pending.is_empty() {
            self.drain_one()?;
        }
        Ok(self.inner)
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if self.block.len() == BLOCK {
            self.submit()?;
        }
        Ok(taken)
    }

    /// Does nothing: a block that ended early would make the result depend on who flushed.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn valid(level: u8) -> io::Result<CompressionLvl> {
    CompressionLvl::new(i32::from(level))
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("gzip has no level {level}: 1 to 12")))
}

/// Small data, whole, in the form that [`GzipWriter`] writes.
pub fn pack(data: &[u8], level: u8) -> io::Result<Vec<u8>> {
    let level = valid(level)?;
    let mut out = Vec::new();
    for block in data.chunks(BLOCK) {
        out.extend(member(block, level)?);
    }
    if out.is_empty() { member(&[], level) } else { Ok(out) }
}

fn member(block: &[u8], level: CompressionLvl) -> io::Result<Vec<u8>> {
    let mut compressor = Compressor::new(level);
    let mut out = vec![0; HEADER + compressor.deflate_compress_bound(block.len()) + TRAILER];
    let body = out.get_mut(HEADER..).unwrap_or_default();
    let size = compressor.deflate_compress(block, body).map_err(io::Error::other)?;
    out.truncate(HEADER + size);
    let mut crc = libdeflater::Crc::new();
    crc.update(block);
    out.extend(crc.sum().to_le_bytes());
    out.extend(u32::try_from(block.len()).map_err(io::Error::other)?.to_le_bytes());
    let total = u32::try_from(out.len()).map_err(io::Error::other)?;
    if let Some(header) = out.get_mut(..HEADER) {
        header.copy_from_slice(&header_bytes(total));
    }
    Ok(out)
}

fn header_bytes(member: u32) -> [u8; HEADER] {
    let [a, b, c, d] = member.to_le_bytes();
    [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 8, 0, b'S', b'F', 4, 0, a, b, c, d]
}

/// The member's size, when this is a header of ours.
fn member_size(header: &[u8; HEADER]) -> Option<usize> {
    let [.., a, b, c, d] = *header;
    let size = u32::from_le_bytes([a, b, c, d]);
    (*header == header_bytes(size)).then_some(size as usize)
}

/// A reader of any gzip file: on all cores when it is one of ours.
pub fn reader<'r>(inner: impl Read + Send + 'r, threads: usize) -> io::Result<Box<dyn Read + Send + 'r>> {
    let mut inner = BufReader::with_capacity(256 << 10, inner);
    let mut header = [0; HEADER];
    let got = read_up_to(&mut inner, &mut header)?;
    if got == HEADER && member_size(&header).is_some() {
        return Ok(Box::new(GzipReader {
            inner,
            header: Some(header),
            work: Ordered::new(threads)?,
            block: Vec::new(),
            position: 0,
        }));
    }
    let start = io::Cursor::new(header.get(..got).unwrap_or_default().to_vec());
    Ok(Box::new(MultiGzDecoder::new(start.chain(inner))))
}

struct GzipReader<R: Read> {
    inner: R,
    /// The header of the next member, already read.
    header: Option<[u8; HEADER]>,
    work: Ordered,
    block: Vec<u8>,
    position: usize,
}

impl<R: Read> GzipReader<R> {
    /// Reads members ahead until the pool has enough to do or the file ends.
    fn fill(&mut self) -> io::Result<()> {
        while !self.work.is_full() {
            let Some(header) = self.header.take() else { return Ok(()) };
            let size = member_size(&header)
                .filter(|size| (HEADER + TRAILER..=MEMBER_LIMIT).contains(size))
                .ok_or_else(|| damaged("a member's header"))?;
            let mut member = vec![0; size];
            let (head, rest) = member.split_at_mut(HEADER);
            head.copy_from_slice(&header);
            self.inner.read_exact(rest)?;
            self.work.spawn(move || inflate(&member));
            let mut next = [0; HEADER];
            self.header = match read_up_to(&mut self.inner, &mut next)? {
                0 => None,
                HEADER => Some(next),
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        Ok(())
    }
}

fn inflate(member: &[u8]) -> io::Result<Vec<u8>> {
    let [.., a, b, c, d] = *member else { return Err(damaged("a member")) };
    let size = u32::from_le_bytes([a, b, c, d]) as usize;
    if size > BLOCK {
        return Err(damaged("a member's size"));
    }
    let mut out = vec![0; size];
    let got = Decompressor::new().gzip_decompress(member, &mut out).map_err(|_| damaged("the compressed data"))?;
    if got == size { Ok(out) } else { Err(damaged("a member's size")) }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the gzip stream is damaged ({what})"))
}

impl<R: Read> Read for GzipReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.position == self.block.len() {
            self.fill()?;
            match self.work.next() {
                Some(block) => (self.block, self.position) = (block?, 0),
                None => return Ok(0),
            }
        }
        let rest = self.block.get(self.position..).unwrap_or_default();
        let taken = rest.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..taken), rest.get(..taken)) {
            to.copy_from_slice(from);
        }
        self.position += taken;
        Ok(taken)
    }
}

/// Reads until `buffer` is full or the data ends.
pub fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..)
        && !rest.is_empty()
    {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(length: usize) -> Vec<u8> {
        (0..length as u64).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0] & 0x1f).collect()
    }

    fn pack(data: &[u8], threads: usize, step: usize) -> Vec<u8> {
        let mut writer = GzipWriter::new(Vec::new(), 5, threads).unwrap();
        for part in data.chunks(step) {
            writer.write_all(part).unwrap();
            writer.flush().unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn threads_and_the_size_of_writes_do_not_show() {
        let data = sample(3 * BLOCK + 17);
        let one = pack(&data, 1, 4096);
        assert_eq!(one, pack(&data, 4, 1_000_003));
        assert_eq!(one, pack(&data, 3, data.len()));
    }

    #[test]
    fn both_readers_give_back_what_was_written() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3] {
            let data = sample(length);
            let packed = pack(&data, 2, 65_536);
            let mut ours = Vec::new();
            reader(packed.as_slice(), 3).unwrap().read_to_end(&mut ours).unwrap();
            assert!(ours == data, "{length}");
            let mut stock = Vec::new();
            MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut stock).unwrap();
            assert!(stock == data, "{length}");
            assert!(super::pack(&data, 5).unwrap() == packed, "{length}");
        }
    }

    #[test]
    fn a_gzip_file_of_others_is_read() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"hello").unwrap();
        let mut packed = encoder.finish().unwrap();
        packed.extend_from_within(..);
        let mut out = String::new();
        reader(packed.as_slice(), 1).unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(out, "hellohello");
    }

    #[test]
    fn damage_anywhere_is_an_error() {
        let data = sample(BLOCK + 1000);
        let packed = pack(&data, 1, BLOCK);
        for position in [3, 15, 17, 400, packed.len() / 2, packed.len() - 1] {
            let mut broken = packed.clone();
            broken[position] ^= 0x55;
            let mut out = Vec::new();
            let result = reader(broken.as_slice(), 2).and_then(|mut r| r.read_to_end(&mut out));
            assert!(result.is_err() || out == data, "byte {position}");
        }
        for length in [1, 19, 21, packed.len() / 2, packed.len() - 1] {
            let mut out = Vec::new();
            let result = reader(&packed[..length], 2).and_then(|mut r| r.read_to_end(&mut out));
            assert!(result.is_err(), "cut at {length}");
        }
    }
}
