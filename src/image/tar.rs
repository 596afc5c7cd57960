//! Reads tar archives as image layers hold them, without copying file content.
//!
//! ```text
//! archive   ::= member* zero-block zero-block
//! member    ::= header(512) data padding-to-512
//! header    0 name(100) mode(8) uid(8) gid(8) size(12) mtime(12) checksum(8) typeflag(1) linkname(100)
//!         257 magic "ustar\0" "00" | "ustar  \0"   345 prefix(155)
//! typeflag  0 \0 7 file   1 hard link   2 symlink   3 4 device   5 directory   6 fifo
//!           x PAX records for the next member       g PAX records for all (read and ignored, as Go does)
//!           L K  GNU: name, link name of the next   S GNU sparse file        V GNU volume label (ignored)
//! PAX       "LENGTH KEY=VALUE\n"*      path linkpath size mtime SCHILY.xattr.NAME GNU.sparse.*
//! numbers   octal text, or base-256 when the first bit is set
//! ```
//!
//! Formats: POSIX.1-2017 `pax`, GNU tar manual "Basic Tar Format", "Storing Sparse Files"; what an image may hold:
//! OCI image-spec `layer.md`. Where the formats leave a choice, Go's `archive/tar` decides, because images are
//! written and read with it: two readers that disagree about where a member ends see two different images.
//! Links, directories and devices have no data whatever their size field says.
//!
//! Nothing here touches the file system. Every length is checked before it is used; what the headers before a member
//! make this reader keep in memory is bounded by [`MAX_META`], all together.

mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

use header::{name_of, number, signed_number, sum, until_nul};
use pax::Pending;
use sparse::{check_segments, pairs};
use std::io::{self, BufRead};

const BLOCK: u64 = 512;

/// Names and PAX records before one member may together be as large as this, and so may a sparse map.
const MAX_META: u64 = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The bytes end inside a member.
    #[error("the archive is cut in {within}, at byte {position}")]
    Truncated {
        /// Offset in the uncompressed archive.
        position: u64,
        /// What was being read.
        within: &'static str,
    },
    /// The bytes are no tar archive.
    #[error("{reason}, in the header at byte {position}")]
    Malformed {
        /// Offset of the member's header in the uncompressed archive.
        position: u64,
        /// What is wrong.
        reason: String,
    },
    /// What feeds the reader failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of an earlier file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A block or character device.
    Device,
}

/// Bytes of a sparse file that are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file.
    pub offset: u64,
    /// How many.
    pub len: u64,
}

/// One member's header.
#[derive(Debug)]
pub struct Entry {
    /// Its name as written, not checked.
    pub path: Vec<u8>,
    /// Its link's target as written, not checked.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// The owner's uid.
    pub uid: u64,
    /// The owner's gid.
    pub gid: u64,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// The file's size, holes included.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// For a sparse file, the parts that are stored, in order; they lie inside `size` and do not overlap.
    pub segments: Option<Vec<Segment>>,
}

/// Reads members one after the other.
pub struct TarReader<R> {
    input: R,
    position: u64,
    data: u64,
    padding: u64,
}

impl<R: BufRead> TarReader<R> {
    /// A reader at the beginning of an archive.
    pub fn new(input: R) -> Self {
        Self { input, position: 0, data: 0, padding: 0 }
    }

    /// What the archive is read from, to read on.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// What the archive is read from.
    pub fn input_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// Where the current member's stored data lies: its offset from where this reader began, and how many bytes of it
    /// were not read yet.
    pub fn data_range(&self) -> (u64, u64) {
        (self.position, self.data)
    }

    /// The next member; what is left of the last one's data is skipped. `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_data()?;
        let mut pending = Pending::default();
        let mut described = 0_u64;
        loop {
            let start = self.position;
            let Some(header) = self.header()? else { return Ok(None) };
            let malformed = |reason: String| TarError::Malformed { position: start, reason };
            let size = number(&header[124..136]).ok_or_else(|| malformed("the size is not a number".to_owned()))?;
            if matches!(header[156], b'x' | b'L' | b'K' | b'g' | b'V') {
                // Any number of them may come before a member; each record adds to what is kept.
                described = described.saturating_add(BLOCK).saturating_add(size);
                if described > MAX_META {
                    let reason = format!(
                        "more than {MAX_META} bytes of names and attributes before one member are not accepted"
                    );
                    return Err(malformed(reason));
                }
            }
            match header[156] {
                b'x' => {
                    let records = self.meta(size)?;
                    pending.read_pax(&records).map_err(malformed)?;
                }
                b'L' => pending.long_path = Some(until_nul(&self.meta(size)?).to_vec()),
                b'K' => pending.long_link = Some(until_nul(&self.meta(size)?).to_vec()),
                b'g' | b'V' => {
                    self.begin_data(size);
                    self.skip_data()?;
                }
                flag => return self.entry(&header, flag, size, pending, start).map(Some),
            }
        }
    }

    /// Hands the member's stored data to `sink`, in the pieces in which it lies in memory.
    pub fn read_data<E: From<TarError>>(&mut self, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        while self.data > 0 {
            let available = self.input.fill_buf().map_err(|e| E::from(TarError::Io(e)))?;
            if available.is_empty() {
                return Err(TarError::Truncated { position: self.position, within: "a file's data" }.into());
            }
            let n = available.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
            sink(&available[..n])?;
            self.input.consume(n);
            self.data -= n as u64;
            self.position += n as u64;
        }
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        self.read_data(|_| Ok::<(), TarError>(()))?;
        self.data = std::mem::take(&mut self.padding);
        // Some writers leave out the padding of the last member.
        match self.read_data(|_| Ok::<(), TarError>(())) {
            Err(TarError::Truncated { .. }) => {
                self.data = 0;
                Ok(())
            }
            other => other,
        }
    }

    fn begin_data(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    /// A whole block, `None` at the end of the input.
    fn block(&mut self) -> Result<Option<[u8; 512]>, TarError> {
        let mut block = [0; 512];
        let mut filled = 0;
        while filled < block.len() {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                if filled == 0 {
                    return Ok(None);
                }
                return Err(TarError::Truncated { position: self.position + filled as u64, within: "a header" });
            }
            let n = available.len().min(block.len() - filled);
            block[filled..filled + n].copy_from_slice(&available[..n]);
            self.input.consume(n);
            filled += n;
        }
        self.position += BLOCK;
        Ok(Some(block))
    }

    /// The next header with a right checksum; `None` at the end of the archive. An archive without the two zero
    /// blocks that end it is accepted: whether all bytes are there is for the digest to say.
    fn header(&mut self) -> Result<Option<[u8; 512]>, TarError> {
        let position = self.position;
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().all(|b| *b == 0) {
            return match self.block()? {
                Some(second) if second.iter().any(|b| *b != 0) => {
                    Err(TarError::Malformed { position, reason: "one zero block where two end an archive".to_owned() })
                }
                _ => Ok(None),
            };
        }
        let stated = number(&block[148..156]);
        let unsigned: u64 = sum(&block, u64::from);
        let signed: i64 = sum(&block, |b| i64::from(b.cast_signed()));
        if stated != Some(unsigned) && stated.and_then(|s| i64::try_from(s).ok()) != Some(signed) {
            return Err(TarError::Malformed {
                position,
                reason: "the checksum is wrong: this is no tar archive".to_owned(),
            });
        }
        Ok(Some(block))
    }

    /// A member's data as a whole, for members that describe the next one; their size has been checked.
    fn meta(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        self.begin_data(size);
        let mut bytes = Vec::new();
        self.read_data(|part| {
            bytes.extend_from_slice(part);
            Ok::<(), TarError>(())
        })?;
        self.skip_data()?;
        Ok(bytes)
    }

    fn entry(
        &mut self,
        header: &[u8; 512],
        flag: u8,
        header_size: u64,
        pending: Pending,
        start: u64,
    ) -> Result<Entry, TarError> {
        let malformed = |reason: String| TarError::Malformed { position: start, reason };
        let path = pending.long_path.or(pending.sparse.name).or(pending.path).unwrap_or_else(|| name_of(header));
        let link = pending.long_link.or(pending.link).unwrap_or_else(|| until_nul(&header[157..257]).to_vec());
        let kind = match flag {
            // Archives from before POSIX mark a directory by its name alone.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(malformed(format!("members of type {:?} are not known", char::from(other)))),
        };
        let mode = number(&header[100..108]).ok_or_else(|| malformed("the mode is not a number".to_owned()))?;
        let mtime = match pending.mtime {
            Some(mtime) => mtime,
            None => {
                (signed_number(&header[136..148]).ok_or_else(|| malformed("the time is not a number".to_owned()))?, 0)
            }
        };
        let stored = if kind == Kind::File { pending.size.unwrap_or(header_size) } else { 0 };
        let mut size = stored;
        self.begin_data(stored);
        let mut segments = None;
        if flag == b'S' {
            let map = self.gnu_sparse_map(header, start)?;
            size = number(&header[483..495]).ok_or_else(|| malformed("the real size is not a number".to_owned()))?;
            segments = Some(map);
        } else if kind == Kind::File && pending.sparse.version_1 {
            size = pending
                .sparse
                .real_size
                .ok_or_else(|| malformed("a sparse file without GNU.sparse.realsize".to_owned()))?;
            segments = Some(self.sparse_map_in_data(start)?);
        } else if kind == Kind::File
            && let Some(numbers) = pending.sparse.numbers
        {
            size = pending
                .sparse
                .real_size
                .ok_or_else(|| malformed("a sparse file without GNU.sparse.size".to_owned()))?;
            segments = Some(pairs(&numbers).map_err(malformed)?);
        }
        if let Some(segments) = &mut segments {
            check_segments(segments, size, self.data).map_err(malformed)?;
            segments.retain(|s| s.len > 0);
        }
        let mode = u32::try_from(mode & 0o7777).unwrap_or(0);
        // A field that is no number counts as root's: most readers of an archive never look at it.
        let uid = pending.uid.or_else(|| number(&header[108..116])).unwrap_or(0);
        let gid = pending.gid.or_else(|| number(&header[116..124])).unwrap_or(0);
        Ok(Entry { path, link, kind, mode, uid, gid, mtime, size, xattrs: pending.xattrs, segments })
    }
}

/// A name for messages: one line, printable, not too long.
pub fn show(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut shown: String = text.chars().take(200).flat_map(char::escape_debug).collect();
    if text.chars().count() > 200 {
        shown.push_str("...");
    }
    shown
}
