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

use std::io::{self, BufRead};

const BLOCK: u64 = 512;

/// Names and PAX records before one member may together be as large as this, and so may a sparse map.
const MAX_META: u64 = 1 << 20;

/// Linux lists no more than 64 KiB of their names.
const MAX_XATTRS: usize = 1000;

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

/// What `x`, `L` and `K` members said about the next one.
#[derive(Default)]
struct Pending {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<(i64, u32)>,
    uid: Option<u64>,
    gid: Option<u64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: PaxSparse,
}

#[derive(Default)]
struct PaxSparse {
    version_1: bool,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    numbers: Option<Vec<u64>>,
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

    /// Old GNU: four pairs in the header, then blocks with twenty-one each while `isextended` is set.
    fn gnu_sparse_map(&mut self, header: &[u8; 512], start: u64) -> Result<Vec<Segment>, TarError> {
        let malformed = |reason: &str| TarError::Malformed { position: start, reason: reason.to_owned() };
        let mut map = Vec::new();
        let mut block = *header;
        let mut table = 386..482;
        let mut extended = 482;
        loop {
            for pair in block[table.clone()].chunks_exact(24) {
                if pair[0] == 0 {
                    break;
                }
                let offset = number(&pair[..12]).ok_or_else(|| malformed("a sparse offset is not a number"))?;
                let len = number(&pair[12..]).ok_or_else(|| malformed("a sparse length is not a number"))?;
                map.push(Segment { offset, len });
            }
            if block[extended] == 0 {
                return Ok(map);
            }
            if map.len() as u64 * 24 > MAX_META {
                return Err(malformed("the sparse map is too long"));
            }
            // The blocks lie between the header and the data, and do not count as data.
            block = self.block()?.ok_or(TarError::Truncated { position: self.position, within: "a sparse map" })?;
            table = 0..504;
            extended = 504;
        }
    }

    /// PAX sparse format 1.0: the map is text at the beginning of the data, padded to whole blocks.
    fn sparse_map_in_data(&mut self, start: u64) -> Result<Vec<Segment>, TarError> {
        let malformed = |reason: &str| TarError::Malformed { position: start, reason: reason.to_owned() };
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        let mut current: Option<u64> = None;
        let mut blocks = 0;
        while wanted != Some(numbers.len()) {
            if self.data < BLOCK || blocks * BLOCK > MAX_META {
                return Err(malformed("the sparse map does not end"));
            }
            let block = self.block()?.ok_or(TarError::Truncated { position: self.position, within: "a sparse map" })?;
            self.data -= BLOCK;
            blocks += 1;
            for byte in block {
                match byte {
                    b'0'..=b'9' => {
                        let next =
                            current.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(u64::from(byte - b'0')));
                        current = Some(next.ok_or_else(|| malformed("a number of the sparse map is too large"))?);
                    }
                    b'\n' => {
                        let value = current.take().ok_or_else(|| malformed("an empty line in the sparse map"))?;
                        match wanted {
                            None => {
                                let count = usize::try_from(value).ok().and_then(|n| n.checked_mul(2));
                                wanted = Some(count.ok_or_else(|| malformed("the sparse map is too long"))?);
                            }
                            Some(_) => numbers.push(value),
                        }
                        if wanted == Some(numbers.len()) {
                            break;
                        }
                    }
                    _ => return Err(malformed("the sparse map holds something else than numbers")),
                }
            }
        }
        pairs(&numbers).map_err(|reason| TarError::Malformed { position: start, reason })
    }
}

impl Pending {
    /// Reads PAX records. An empty value takes back what an earlier record said.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), String> {
        while !records.is_empty() {
            let (key, value, rest) = pax_record(records).ok_or("a PAX record is malformed")?;
            records = rest;
            let number =
                || decimal(value).ok_or_else(|| format!("PAX {} is not a number", String::from_utf8_lossy(key)));
            let text = || {
                if value.contains(&0) {
                    return Err(format!("PAX {} holds a zero byte", String::from_utf8_lossy(key)));
                }
                Ok((!value.is_empty()).then(|| value.to_vec()))
            };
            match key {
                b"path" => self.path = text()?,
                b"linkpath" => self.link = text()?,
                b"size" => self.size = if value.is_empty() { None } else { Some(number()?) },
                b"mtime" => {
                    self.mtime =
                        if value.is_empty() { None } else { Some(pax_time(value).ok_or("PAX mtime is not a time")?) };
                }
                b"uid" => self.uid = decimal(value),
                b"gid" => self.gid = decimal(value),
                b"GNU.sparse.name" => self.sparse.name = text()?,
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(number()?),
                b"GNU.sparse.major" => self.sparse.version_1 = number()? == 1,
                b"GNU.sparse.map" => {
                    let numbers: Option<Vec<u64>> = if value.is_empty() {
                        Some(Vec::new())
                    } else {
                        value.split(|b| *b == b',').map(decimal).collect()
                    };
                    self.sparse.numbers = Some(numbers.ok_or("PAX GNU.sparse.map is malformed")?);
                }
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    self.sparse.numbers.get_or_insert_default().push(number()?);
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.retain(|(known, _)| known != name);
                        if self.xattrs.len() == MAX_XATTRS {
                            return Err(format!("there are more than {MAX_XATTRS} extended attributes"));
                        }
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// One record and what follows it.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    if length > bytes.len() || length <= space + 1 {
        return None;
    }
    let (record, rest) = bytes.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    (equals > 0).then(|| (&record[..equals], &record[equals + 1..], rest))
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `-1.5`, `1700000000.123456789`; more than nine decimals are cut.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if negative && nanos > 0 {
        // 1.5 s before 1970 is second -2 and half a second.
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

/// The name field, with the prefix that POSIX and star put before it.
fn name_of(header: &[u8; 512]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    if &header[257..263] != b"ustar\0" {
        return name.to_vec();
    }
    let prefix = if &header[508..512] == b"tar\0" { &header[345..476] } else { &header[345..500] };
    let prefix = until_nul(prefix);
    if prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())]
}

fn sum<T: std::iter::Sum>(block: &[u8; 512], value: impl Fn(u8) -> T) -> T {
    block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { value(b' ') } else { value(*b) }).sum()
}

/// A header's number that cannot be negative.
fn number(field: &[u8]) -> Option<u64> {
    u64::try_from(signed_number(field)?).ok()
}

fn signed_number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // Two's complement, big-endian; the first bit only marks the form, the second is the sign.
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value: i128 = if negative { i128::from(first.cast_signed()) } else { i128::from(first) };
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return i64::try_from(value).ok();
    }
    let is_blank = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !is_blank(b)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_blank).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn pairs(numbers: &[u64]) -> Result<Vec<Segment>, String> {
    if !numbers.len().is_multiple_of(2) {
        return Err("the sparse map has an odd count of numbers".to_owned());
    }
    Ok(numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], len: pair[1] }).collect())
}

/// Segments must be in order, inside the file, and account for all stored bytes.
fn check_segments(segments: &[Segment], size: u64, stored: u64) -> Result<(), String> {
    let mut end = 0_u64;
    let mut total = 0_u64;
    for segment in segments {
        if segment.offset < end {
            return Err("the sparse map is not in order".to_owned());
        }
        end = segment.offset.checked_add(segment.len).ok_or("the sparse map leaves the file")?;
        total = total.checked_add(segment.len).ok_or("the sparse map leaves the file")?;
    }
    if end > size {
        return Err("the sparse map leaves the file".to_owned());
    }
    if total != stored {
        return Err(format!("the sparse map accounts for {total} bytes, {stored} are stored"));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::super::testing::{Member, archive, finish_header};
    use super::*;
    use proptest::prelude::*;
    use std::io::BufReader;

    type Read = (Entry, Vec<u8>);

    fn read(bytes: &[u8]) -> Result<Vec<Read>, TarError> {
        // A small buffer: members lie across its borders.
        let mut reader = TarReader::new(BufReader::with_capacity(700, bytes));
        let mut found = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut data = Vec::new();
            reader.read_data(|part| {
                data.extend_from_slice(part);
                Ok::<(), TarError>(())
            })?;
            found.push((entry, data));
        }
        Ok(found)
    }

    fn only(members: &[Member]) -> Read {
        let mut found = read(&archive(members)).unwrap();
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    fn many(count: usize, member: impl Fn(usize) -> Member) -> Vec<Member> {
        (0..count).map(member).chain([Member::file("f", "")]).collect()
    }

    fn refused(bytes: &[u8]) -> String {
        read(bytes).map(|found| found.len()).unwrap_err().to_string()
    }

    #[test]
    fn long_names_in_every_way() {
        let long = "n".repeat(5000);
        let gnu = [
            Member { data: format!("{long}\0").into_bytes(), ..Member::new(b'L', "././@LongLink") },
            Member { data: b"target\0".to_vec(), ..Member::new(b'K', "././@LongLink") },
            Member::symlink("short", "short"),
        ];
        let (entry, _) = only(&gnu);
        assert_eq!((entry.path, entry.link), (long.clone().into_bytes(), b"target".to_vec()));
        let pax =
            [Member::pax(&[("path", long.as_bytes()), ("linkpath", b"target")]), Member::symlink("short", "short")];
        let (entry, _) = only(&pax);
        assert_eq!((entry.path, entry.link), (long.into_bytes(), b"target".to_vec()));

        let mut header: [u8; 512] = Member::file("name", "").bytes().try_into().unwrap();
        header[345..351].copy_from_slice(b"prefix");
        let (entry, _) = read(&finish_header(header)).unwrap().remove(0);
        assert_eq!(entry.path, b"prefix/name");
    }

    #[test]
    fn pax_size_time_and_attributes() {
        let records: &[(&str, &[u8])] = &[
            ("size", b"5"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.a", b"old"),
            ("SCHILY.xattr.user.a", b"x\0=\ny"),
            ("comment", b"ignored"),
        ];
        let (entry, data) = only(&[Member::pax(records), Member { size: Some(0), ..Member::file("f", "hello") }]);
        assert_eq!((entry.size, data.as_slice()), (5, &b"hello"[..]));
        assert_eq!(entry.mtime, (-2, 750_000_000));
        assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"x\0=\ny".to_vec())]);
    }

    #[test]
    fn links_and_directories_have_no_data() {
        let members = [
            Member { size: Some(1 << 20), ..Member::hard_link("l", "f") },
            Member { size: Some(1 << 20), ..Member::dir("d") },
            Member::file("f", "x"),
        ];
        let found = read(&archive(&members)).unwrap();
        assert_eq!(
            found.iter().map(|(e, _)| e.kind).collect::<Vec<_>>(),
            [Kind::HardLink, Kind::Directory, Kind::File]
        );
    }

    #[test]
    fn old_and_odd_members() {
        let members = [
            Member::new(0, "old-dir/"),
            Member::new(0, "old-file"),
            Member { data: b"label".to_vec(), ..Member::new(b'V', "label") },
            Member { data: b"13 path=oops\n".to_vec(), ..Member::new(b'g', "global") },
            Member::file("after", "x"),
        ];
        let found = read(&archive(&members)).unwrap();
        let names: Vec<_> = found.iter().map(|(e, _)| (e.path.as_slice(), e.kind)).collect();
        let want: [(&[u8], Kind); 3] =
            [(b"old-dir/", Kind::Directory), (b"old-file", Kind::File), (b"after", Kind::File)];
        assert_eq!(names, want);
        assert!(refused(&archive(&[Member::new(b'M', "multi")])).contains("'M'"));
    }

    #[test]
    fn sparse_files_in_every_format() {
        let want = [Segment { offset: 0, len: 4 }, Segment { offset: 1000, len: 4 }];
        let pax_0_0: &[(&str, &[u8])] = &[
            ("GNU.sparse.size", b"2000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"4"),
            ("GNU.sparse.offset", b"1000"),
            ("GNU.sparse.numbytes", b"4"),
        ];
        let pax_0_1: &[(&str, &[u8])] =
            &[("GNU.sparse.size", b"2000"), ("GNU.sparse.map", b"0,4,1000,4"), ("GNU.sparse.name", b"f")];
        let pax_1_0: &[(&str, &[u8])] = &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"f"),
            ("GNU.sparse.realsize", b"2000"),
        ];
        let mut with_map = b"2\n0\n4\n1000\n4\n".to_vec();
        with_map.resize(512, 0);
        with_map.extend(b"abcdEFGH");
        for (records, data) in [(pax_0_0, &b"abcdEFGH"[..]), (pax_0_1, b"abcdEFGH"), (pax_1_0, &with_map)] {
            let (entry, data) = only(&[Member::pax(records), Member::file("f", data)]);
            assert_eq!((entry.size, entry.segments.unwrap(), data.as_slice()), (2000, want.to_vec(), &b"abcdEFGH"[..]));
        }

        // Old GNU, with a block of the map outside the header.
        let mut header: [u8; 512] =
            Member { flag: b'S', size: Some(8), ..Member::file("f", "") }.bytes().try_into().unwrap();
        header[386..410].copy_from_slice(b"00000000000\x0000000000004\0");
        header[482] = 1;
        header[483..495].copy_from_slice(b"00000003720\0");
        let mut extension = [0; 512];
        extension[..24].copy_from_slice(b"00000001750\x0000000000004\0");
        let mut bytes = [finish_header(header), extension].concat();
        bytes.extend(b"abcdEFGH");
        bytes.resize(512 * 5, 0);
        let (entry, data) = read(&bytes).unwrap().remove(0);
        assert_eq!((entry.size, entry.segments.unwrap(), data.as_slice()), (2000, want.to_vec(), &b"abcdEFGH"[..]));
    }

    #[test]
    fn sparse_maps_that_lie_are_refused() {
        for (map, part) in [
            ("0,4,2,4", "order"),
            ("0,4,1997,4", "leaves"),
            ("0,4", "accounts"),
            ("0,4,18446744073709551615,4", "leaves"),
            ("0,4,8", "odd"),
            ("0,4,,4", "malformed"),
        ] {
            let records: &[(&str, &[u8])] = &[("GNU.sparse.size", b"2000"), ("GNU.sparse.map", map.as_bytes())];
            let text = refused(&archive(&[Member::pax(records), Member::file("f", "abcdEFGH")]));
            assert!(text.contains(part), "{map}: {text}");
        }
        let records: &[(&str, &[u8])] = &[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")];
        for map in ["", "x\n", "\n", "99999999999999999999\n", "9\n1\n"] {
            let mut data = map.as_bytes().to_vec();
            data.resize(512, b'1');
            refused(&archive(&[Member::pax(records), Member::file("f", data)]));
        }
    }

    #[test]
    fn malformed_archives_are_errors() {
        let good = archive(&[Member::file("f", "x")]);
        let mut flipped = good.clone();
        flipped[0] ^= 1;
        let mut bad_size = good.clone();
        bad_size[124..136].copy_from_slice(b"0000000000x\0");
        let header: [u8; 512] = bad_size[..512].try_into().unwrap();
        bad_size[..512].copy_from_slice(&finish_header(header));
        let mut one_zero = vec![0; 512];
        one_zero.extend(&good);
        for (bytes, part) in [
            (flipped, "checksum"),
            (bad_size, "size"),
            (one_zero, "zero block"),
            (vec![1; 100], "cut in a header"),
            (vec![b'x'; 1024], "checksum"),
            (
                archive(&[Member { data: b"99 path=x\n".to_vec(), ..Member::new(b'x', "") }, Member::file("f", "")]),
                "PAX",
            ),
            (archive(&[Member { data: b"path=x\n".to_vec(), ..Member::new(b'x', "") }, Member::file("f", "")]), "PAX"),
            (archive(&[Member::pax(&[("path", b"a\0b")]), Member::file("f", "")]), "zero byte"),
            (archive(&[Member::pax(&[("size", b"-1")]), Member::file("f", "")]), "size"),
            (archive(&[Member::pax(&[("size", b"18446744073709551615")]), Member::file("f", "")]), "cut"),
            (archive(&[Member { size: Some(2 << 20), ..Member::new(b'L', "") }]), "more than"),
            // Each of a bearable size, and without an end.
            (archive(&many(2000, |i| Member::pax(&[(&format!("SCHILY.xattr.user.{i}"), &[b'x'; 900])]))), "more than"),
            (archive(&many(3000, |_| Member::new(b'g', "g"))), "more than"),
        ] {
            let text = refused(&bytes);
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn numbers_in_base_256() {
        for (field, want) in [
            (&b"\x80\0\0\0\0\0\0\0\0\0\x01\x00"[..], Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"        123 ", Some(0o123)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"12 x    ", Some(0o12)),
            (b"-1      ", None),
        ] {
            assert_eq!(signed_number(field), want, "{field:?}");
        }
    }

    #[test]
    fn cut_at_every_byte_is_an_error_or_fewer_members_and_never_other_content() {
        let members = [
            Member::dir("d"),
            Member::pax(&[("path", b"d/long")]),
            Member::file("f", vec![7; 600]),
            Member::symlink("s", "t"),
        ];
        let whole = archive(&members);
        let all = read(&whole).unwrap();
        for end in 0..whole.len() {
            if let Ok(found) = read(&whole[..end]) {
                assert!(found.len() <= all.len());
                for ((entry, data), (want, want_data)) in found.iter().zip(&all) {
                    assert_eq!((&entry.path, data), (&want.path, want_data));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn honest_archives_read_as_the_tar_crate_wrote_them(
            files in prop::collection::vec(("[a-z]{1,30}(/[a-z]{1,60}){0,6}", prop::collection::vec(any::<u8>(), 0..2000), any::<bool>()), 0..8)
        ) {
            let mut builder = tar::Builder::new(Vec::new());
            for (name, data, gnu) in &files {
                let mut header = if *gnu { tar::Header::new_gnu() } else { tar::Header::new_ustar() };
                header.set_size(data.len() as u64);
                header.set_mode(0o4751);
                header.set_mtime(77);
                if builder.append_data(&mut header, name, data.as_slice()).is_err() {
                    // The name does not fit a ustar header.
                    header = tar::Header::new_gnu();
                    header.set_size(data.len() as u64);
                    header.set_mode(0o4751);
                    header.set_mtime(77);
                    builder.append_data(&mut header, name, data.as_slice()).unwrap();
                }
            }
            let found = read(&builder.into_inner().unwrap()).unwrap();
            prop_assert_eq!(found.len(), files.len());
            for ((entry, data), (name, want, _)) in found.iter().zip(&files) {
                prop_assert_eq!(entry.path.as_slice(), name.as_bytes());
                prop_assert_eq!(data, want);
                prop_assert_eq!((entry.mode, entry.mtime, entry.size), (0o4751, (77, 0), want.len() as u64));
            }
        }

        #[test]
        fn changed_bytes_never_panic(changes in prop::collection::vec((0_usize..6000, any::<u8>()), 0..12), fix in any::<bool>()) {
            let records: &[(&str, &[u8])] = &[("GNU.sparse.size", b"2000"), ("GNU.sparse.map", b"0,4,1000,4"), ("mtime", b"1.5")];
            let mut bytes = archive(&[
                Member::pax(records),
                Member::file("f", "abcdEFGH"),
                Member { data: b"long\0".to_vec(), ..Member::new(b'L', "") },
                Member::file("g", vec![1; 700]),
                Member { flag: b'S', ..Member::file("s", "abc") },
            ]);
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
                if fix {
                    // A checksum that is right again leads deeper.
                    let start = at / 512 * 512;
                    let header: [u8; 512] = bytes[start..start + 512].try_into().unwrap();
                    bytes[start..start + 512].copy_from_slice(&finish_header(header));
                }
            }
            let _ = read(&bytes);
        }
    }
}
