//! A tar archive as a place to read single members from, without unpacking it.
//!
//! ```text
//! plain           the archive itself; its headers are read once, data is skipped by seeking
//! gzip, zstd      decompressed into a file without a name in the cache, which goes with the value (or the process)
//! ```
//!
//! Members are found by name and read at their offset, several at a time. Nothing is ever written under a member's
//! name, so no name can lead outside; what no honest tool writes (`..`, an absolute name) is refused all the same.
//! Tools disagree about which of two members with one name counts, so a name that is there twice cannot be read.

use super::manifest::Compression;
use super::tar::{Kind, TarError, TarReader, show};
use super::{Digest, ImageError};
use crate::fsutil::{self, Packing};
use crate::report::Ctx;
use crate::sha256::Hashing;
use fs_err as fs;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Images have a few members a layer.
const MAX_MEMBERS: usize = 100_000;

/// The kernel takes no longer path.
const MAX_NAME: usize = 4096;

/// Symlinks to symlinks.
const MAX_LINKS: usize = 8;

/// What an archive, or a layer that must be read to know its digest, may swell to; as for layers that are unpacked.
const MAX_BYTES: u64 = 64 << 30;
const MAX_RATIO: u64 = 250;
const RATIO_FROM: u64 = 256 << 20;

/// The largest zstd window, 2 to the power of this: zstd's own default limit.
const ZSTD_WINDOW: u32 = 27;

const CHUNK: usize = 1 << 20;

/// How the bytes that begin with `start` are compressed; an error is what they are, when that is not supported.
pub fn sniff(start: &[u8]) -> Result<Compression, &'static str> {
    match fsutil::packing(start) {
        Packing::Gzip => Ok(Compression::Gzip),
        Packing::Zstd => Ok(Compression::Zstd),
        Packing::Other(format) => Err(format),
        Packing::None => Ok(Compression::None),
    }
}

/// Decompresses `input`.
pub fn decoder<'a>(input: impl BufRead + 'a, compression: Compression) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
    })
}

/// Copies decompressed bytes until the end, as long as they stay within the limits. Returns how many.
pub fn copy_bounded(
    from: &mut dyn Read,
    to: &mut dyn Write,
    compressed: &AtomicU64,
    ctx: &Ctx,
) -> Result<u64, CopyError> {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0_u64;
    loop {
        ctx.check().map_err(|e| CopyError::Image(e.into()))?;
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(done),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(CopyError::Read(e)),
        };
        done += n as u64;
        let allowed = compressed.load(Ordering::Relaxed).saturating_mul(MAX_RATIO).max(RATIO_FROM);
        if done > MAX_BYTES || done > allowed {
            let reason = format!(
                "it swells to more than {} bytes, {MAX_RATIO} for each compressed one or {MAX_BYTES} in all: it is refused",
                done - n as u64
            );
            return Err(CopyError::Read(io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        to.write_all(&buffer[..n]).map_err(CopyError::Write)?;
    }
}

/// What ended a copy.
pub enum CopyError {
    /// The compressed data is damaged, cut or a bomb, or cannot be read.
    Read(io::Error),
    /// The other side.
    Write(io::Error),
    /// We were told to stop.
    Image(ImageError),
}

/// Counts what passes.
pub struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R> Counted<R> {
    /// Counts the bytes that are read from `inner`.
    pub fn new(inner: R) -> (Self, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(0));
        (Self { inner, count: count.clone() }, count)
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Part of a file, read at its own place, so that several readers do not disturb each other.
pub struct Section {
    file: Arc<fs::File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(into.len());
        let n = self
            .file
            .file()
            .read_at(&mut into[..want], self.at)
            .map_err(|e| fsutil::with_path(&e, "read", self.file.path()))?;
        self.at += n as u64;
        Ok(n)
    }
}

enum Member {
    File {
        offset: u64,
        len: u64,
    },
    /// The name that it stands for.
    Link(Vec<u8>),
    /// The name is there more than once.
    Twice,
    /// A folder, a device, a sparse file: nothing that could be a part of an image.
    Unfit,
}

/// An archive whose members are known.
pub struct Archive {
    path: PathBuf,
    file: Arc<fs::File>,
    members: HashMap<Vec<u8>, Member>,
}

impl Archive {
    /// Opens the archive and reads its headers. `spool` is where a compressed one is decompressed to.
    pub fn open(path: &Path, spool: &Path, ctx: &Ctx) -> Result<Self, ImageError> {
        let unusable = |reason: String| unusable(path, reason);
        let file = fs::File::open(path).map_err(|e| ImageError::unopened(e, path, "an image archive", "file"))?;
        let meta = file.metadata().map_err(ImageError::Io)?;
        if meta.is_dir() {
            return Err(unusable(
                "it is a folder; an OCI layout is named oci:DIR, a root file system dir:DIR".to_owned(),
            ));
        }
        if !meta.is_file() {
            return Err(unusable("it is not a regular file: write it to one first".to_owned()));
        }
        let mut archive = Self { path: path.to_owned(), file: Arc::new(file), members: HashMap::new() };
        let mut start = Vec::new();
        archive.section(0, meta.len().min(8)).read_to_end(&mut start).map_err(ImageError::Io)?;
        match sniff(&start) {
            Ok(Compression::None) => archive.index(meta.len(), ctx)?,
            Ok(compression) => {
                let (file, len) = archive.spool(meta.len(), compression, spool, ctx)?;
                archive.file = Arc::new(file);
                archive.index(len, ctx)?;
            }
            Err(other) => {
                return Err(unusable(format!(
                    "it is compressed with {other}; plain, gzip and zstd are read: decompress it first"
                )));
            }
        }
        Ok(archive)
    }

    /// Where the archive is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn section(&self, at: u64, len: u64) -> Section {
        Section { file: self.file.clone(), at, end: at.saturating_add(len) }
    }

    /// Decompresses the archive into a file that has no name and so is gone when nobody holds it.
    fn spool(&self, len: u64, compression: Compression, dir: &Path, ctx: &Ctx) -> Result<(fs::File, u64), ImageError> {
        fs::create_dir_all(dir).map_err(ImageError::Io)?;
        let broken = |e: &io::Error| {
            unusable(&self.path, format!("it cannot be decompressed ({e}); it is damaged or cut: copy it again"))
        };
        let into = tempfile::tempfile_in(dir)
            .map_err(|e| ImageError::io(e, "create a temporary file in", dir, "the decompressed archive", len))?;
        let (counted, count) = Counted::new(self.section(0, len));
        let mut from = decoder(BufReader::with_capacity(CHUNK, counted), compression).map_err(|e| broken(&e))?;
        let size = copy_bounded(&mut from, &mut &into, &count, ctx).map_err(|e| match e {
            CopyError::Read(e) => broken(&e),
            CopyError::Write(e) => ImageError::io(e, "write a temporary file in", dir, "the decompressed archive", len),
            CopyError::Image(e) => e,
        })?;
        // Its errors name the archive, which is what people know.
        Ok((fs::File::from_parts(into, &self.path), size))
    }

    fn index(&mut self, len: u64, ctx: &Ctx) -> Result<(), ImageError> {
        let mut at = 0;
        while at < len {
            ctx.check()?;
            // A reader for each member: the data between two headers is never read.
            let mut reader = TarReader::new(BufReader::with_capacity(4096, self.section(at, len - at)));
            let entry = reader.next_entry().map_err(|e| self.tar_error(e, at))?;
            let Some(entry) = entry else { break };
            let (offset, stored) = reader.data_range();
            let data = at.saturating_add(offset);
            let Some(end) = data.checked_add(stored).filter(|end| *end <= len) else {
                return Err(self.unusable(format!(
                    "it is cut: the member `{}` has {stored} bytes from byte {data} on, the archive has {len}; copy it again",
                    show(&entry.path)
                )));
            };
            at = end.next_multiple_of(512);
            let name = normal(&entry.path).map_err(|reason| {
                self.unusable(format!("its member `{}` {reason}, as no honest tool writes it", show(&entry.path)))
            })?;
            let member = match entry.kind {
                Kind::File if entry.segments.is_none() => Member::File { offset: data, len: stored },
                Kind::HardLink => normal(&entry.link).map_or(Member::Unfit, Member::Link),
                Kind::Symlink => beside(&name, &entry.link).map_or(Member::Unfit, Member::Link),
                Kind::Directory => continue,
                _ => Member::Unfit,
            };
            if self.members.len() == MAX_MEMBERS {
                return Err(self.unusable(format!("it has more than {MAX_MEMBERS} members: it is refused")));
            }
            self.members.entry(name).and_modify(|known| *known = Member::Twice).or_insert(member);
        }
        if self.members.is_empty() {
            return Err(self.unusable("it is empty".to_owned()));
        }
        Ok(())
    }

    fn tar_error(&self, error: TarError, at: u64) -> ImageError {
        match error {
            TarError::Io(e) => ImageError::Io(e),
            TarError::Malformed { reason, .. } if at == 0 => self.unusable(format!("{reason}; is it the right file?")),
            TarError::Malformed { position, reason } => self.unusable(format!(
                "it is damaged: {reason}, in the header at byte {}; copy it again",
                at.saturating_add(position)
            )),
            TarError::Truncated { position, within } => {
                self.unusable(format!("it is cut in {within}, at byte {}; copy it again", at.saturating_add(position)))
            }
        }
    }

    fn unusable(&self, reason: String) -> ImageError {
        unusable(&self.path, reason)
    }

    /// Where the member lies, links followed; `None` when there is none of this name.
    fn find(&self, name: &str) -> Result<Option<(u64, u64)>, ImageError> {
        // A name that leads elsewhere is not the name of a member.
        let Ok(mut at) = normal(name.as_bytes()) else { return Ok(None) };
        for _ in 0..=MAX_LINKS {
            match self.members.get(&at) {
                None => return Ok(None),
                Some(Member::File { offset, len }) => return Ok(Some((*offset, *len))),
                Some(Member::Link(target)) => at.clone_from(target),
                Some(Member::Twice) => {
                    return Err(self.unusable(format!(
                        "it has more than one member `{}`, and tools disagree about which counts",
                        show(&at)
                    )));
                }
                Some(Member::Unfit) => {
                    return Err(self.unusable(format!("its member `{}` is not a regular file", show(&at))));
                }
            }
        }
        Err(self.unusable(format!("its member `{name}` is a link to a link, and so on, more than {MAX_LINKS} times")))
    }

    /// Whether there is such a member.
    pub fn has(&self, name: &str) -> bool {
        self.members.contains_key(name.as_bytes())
    }

    /// A small member whole; `None` when there is none of this name.
    pub fn small(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some((offset, len)) = self.find(name)? else { return Ok(None) };
        if len > max {
            return Err(
                self.unusable(format!("its member `{name}` has {len} bytes, more than the {max} that are accepted"))
            );
        }
        let mut bytes = Vec::new();
        self.section(offset, len).read_to_end(&mut bytes).map_err(ImageError::Io)?;
        Ok(Some(bytes))
    }

    /// A member to read from, and its size; `None` when there is none of this name.
    pub fn member(&self, name: &str) -> Result<Option<(Section, u64)>, ImageError> {
        Ok(self.find(name)?.map(|(offset, len)| (self.section(offset, len), len)))
    }
}

/// The digest of the bytes, and of what they decompress to.
pub fn digests(section: Section, compression: Compression, ctx: &Ctx) -> Result<(Digest, Digest), CopyError> {
    let (counted, count) = Counted::new(section);
    let mut blob = BufReader::with_capacity(CHUNK, Hashing::new(counted));
    let mut content = Hashing::new(io::sink());
    {
        let mut from = decoder(&mut blob, compression).map_err(CopyError::Read)?;
        copy_bounded(&mut from, &mut content, &count, ctx)?;
    }
    // What the decoder left unread belongs to the blob too.
    io::copy(&mut blob, &mut io::sink()).map_err(CopyError::Read)?;
    Ok((blob.into_inner().finish().1.into(), content.finish().1.into()))
}

fn unusable(path: &Path, reason: String) -> ImageError {
    ImageError::Unusable { path: path.to_owned(), wanted: "an image archive", reason }
}

/// A name's parts joined by single slashes; an error is what is wrong with it.
fn normal(name: &[u8]) -> Result<Vec<u8>, &'static str> {
    if name.len() > MAX_NAME {
        return Err("has a name that is too long");
    }
    if name.first() == Some(&b'/') {
        return Err("has an absolute name");
    }
    join(&[], name)
}

/// What a symlink in `name` points to, inside the archive.
fn beside(name: &[u8], target: &[u8]) -> Result<Vec<u8>, &'static str> {
    if target.first() == Some(&b'/') || target.len() > MAX_NAME {
        return Err("points outside");
    }
    let parent = name.iter().rposition(|b| *b == b'/').map_or(&[][..], |at| &name[..at]);
    let mut parts: Vec<&[u8]> = parent.split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or("points outside")?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

fn join(start: &[u8], name: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut out = start.to_vec();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("has a name with `..`"),
            part => {
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Member, archive};
    use super::*;

    fn open(bytes: &[u8]) -> Result<Archive, ImageError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        fs::write(&path, bytes).unwrap();
        Archive::open(&path, dir.path(), &Ctx::silent())
    }

    fn refused(bytes: &[u8], part: &str) {
        let error = open(bytes).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }

    #[test]
    fn members_and_links_to_them_are_read() {
        let archive = open(&archive(&[
            Member::dir("a/"),
            Member::file("./a/f", "content"),
            Member::file("b", ""),
            Member::symlink("a/s", "../a/./f"),
            Member::symlink("s2", "a/s"),
            Member::hard_link("h", "./a/f"),
            Member::symlink("out", "../x"),
            Member::symlink("loop", "loop"),
            Member::file("twice", "1"),
            Member::file("twice", "2"),
        ]))
        .unwrap();
        for name in ["a/f", "a/s", "s2", "h"] {
            assert_eq!(archive.small(name, 100).unwrap().unwrap(), b"content", "{name}");
        }
        assert_eq!(archive.small("b", 0).unwrap().unwrap(), b"");
        for name in ["c", "../b", "/b"] {
            assert!(archive.small(name, 9).unwrap().is_none(), "{name}");
        }
        assert!(archive.small("./b", 9).unwrap().is_some());
        for (name, part) in [("a/f", "7 bytes"), ("out", "regular"), ("loop", "8 times"), ("twice", "more than one")] {
            let error = archive.small(name, 6).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
        }
    }

    #[test]
    fn compressed_archives_are_the_same() {
        use std::io::Write as _;
        let plain = archive(&[Member::file("f", "content")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        for bytes in [&plain, &gzip, &zstd] {
            assert_eq!(open(bytes).unwrap().small("f", 100).unwrap().unwrap(), b"content");
        }
        refused(&gzip[..gzip.len() - 9], "cut");
        refused(&zstd[..zstd.len() - 5], "cut");
    }

    #[test]
    fn what_is_no_archive_or_a_hostile_one_is_refused() {
        refused(b"", "empty");
        refused(b"hello", "cut in a header");
        refused(&[b'x'; 4096], "no tar archive");
        refused(b"BZh91AY", "bzip2");
        refused(&archive(&[Member::file("../x", "1")]), "`..`");
        refused(&archive(&[Member::file("/etc/passwd", "1")]), "absolute");
        let long = archive(&[Member { size: Some(1 << 30), ..Member::file("f", "1") }]);
        refused(&long, "has 1073741824 bytes");
        let whole = archive(&[Member::file("a", "1"), Member::file("b", [7; 2000])]);
        refused(&whole[..1800], "is cut");
        refused(&whole[..1100], "is cut in a header");
        let mut damaged = whole;
        damaged[1024 + 10] ^= 1;
        refused(&damaged, "header at byte 1024");
        let error = Archive::open(Path::new("/no/such"), Path::new("/"), &Ctx::silent()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("/no/such"), "{error}");
    }
}
