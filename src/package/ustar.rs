//! The tar format, as far as packages need it: POSIX ustar headers with pax records for what does not fit.
//!
//! ```text
//! offset size  field (POSIX.1-2017, pax, "ustar Interchange Format")
//!      0  100  name              what does not fit name and prefix goes into a pax `path` record
//!    100    8  mode              0755 or 0644; 0777 for symlinks
//!    108   16  uid, gid          0, 0
//!    124   12  size              above 8 GiB: pax `size`
//!    136   12  mtime             the same for every entry
//!    148    8  checksum
//!    156    1  typeflag          0 file, 1 hard link, 2 symlink, 5 folder, x pax records for the next entry
//!    157  100  linkname          longer: pax `linkpath`
//!    257    8  "ustar\0" "00"
//!    265   64  uname, gname      empty
//!    329   16  devmajor, devminor
//!    345  155  prefix
//! ```
//!
//! The writer gives the same bytes for the same entries. The reader takes what the writer makes and what GNU tar
//! makes of it (long names in `L` and `K` entries); anything else is refused, and so is every name that is absolute
//! or climbs: what comes out of it is safe to join below a folder, *by name*. Names are bytes, not text.

use crate::pax;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use tar::{EntryType, Header};

const UNIT: usize = 512;
/// The largest size that 11 octal digits hold.
const OCTAL_LIMIT: u64 = 0o777_7777_7777;
/// Names and pax records are read into memory; nobody has longer ones.
const RECORDS_LIMIT: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Dir,
    /// A regular file.
    File {
        /// Bytes of content.
        size: u64,
        /// Its owner may execute it.
        executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// What it says, as it says it.
        target: PathBuf,
    },
    /// Another name of a file that came before.
    Hardlink {
        /// That file's name in the archive.
        target: PathBuf,
        /// As for the file: Python's tarfile sets the mode again for every name.
        executable: bool,
    },
}

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name: relative, without `.` and `..`.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
}

impl Member {
    /// The mode that is written for it.
    pub fn mode(&self) -> u32 {
        match self.kind {
            Kind::Dir | Kind::File { executable: true, .. } | Kind::Hardlink { executable: true, .. } => 0o755,
            Kind::File { .. } | Kind::Hardlink { .. } => 0o644,
            Kind::Symlink { .. } => 0o777,
        }
    }

    fn size(&self) -> u64 {
        if let Kind::File { size, .. } = self.kind { size } else { 0 }
    }
}

/// Writes an archive.
pub(super) struct TarWriter<W: Write> {
    inner: W,
    mtime: u64,
}

impl<W: Write> TarWriter<W> {
    pub fn new(inner: W, mtime: u64) -> Self {
        Self { inner, mtime }
    }

    /// Writes an entry; `content` must give exactly the bytes that a file's size says.
    pub fn append(&mut self, member: &Member, content: &mut dyn Read) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let mut records = Vec::new();
        header.set_mode(member.mode());
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.mtime.min(OCTAL_LIMIT));
        let size = member.size();
        if size > OCTAL_LIMIT {
            pax::record(&mut records, "size", size.to_string().as_bytes());
        }
        header.set_size(size.min(OCTAL_LIMIT));
        let (entry_type, target) = match &member.kind {
            Kind::Dir => (EntryType::Directory, None),
            Kind::File { .. } => (EntryType::Regular, None),
            Kind::Symlink { target } => (EntryType::Symlink, Some(target)),
            Kind::Hardlink { target, .. } => (EntryType::Link, Some(target)),
        };
        header.set_entry_type(entry_type);
        let mut name = member.path.as_os_str().as_bytes().to_vec();
        if member.kind == Kind::Dir {
            name.push(b'/');
        }
        if !set_name(&mut header, &name) {
            pax::record(&mut records, "path", &name);
        }
        if let Some(target) = target {
            let target = target.as_os_str().as_bytes();
            if !fill(&mut header.as_old_mut().linkname, target) {
                pax::record(&mut records, "linkpath", target);
            }
        }
        if !records.is_empty() {
            self.write_records(&member.path, &records)?;
        }
        header.set_cksum();
        self.inner.write_all(header.as_bytes())?;
        let copied = io::copy(&mut content.take(size), &mut self.inner)?;
        if copied != size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        self.pad(size)
    }

    fn write_records(&mut self, path: &Path, records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.mtime.min(OCTAL_LIMIT));
        header.set_size(records.len() as u64);
        header.set_entry_type(EntryType::XHeader);
        let mut name = b"PaxHeaders/".to_vec();
        name.extend_from_slice(path.file_name().unwrap_or_default().as_bytes());
        name.truncate(100);
        fill(&mut header.as_old_mut().name, &name);
        header.set_cksum();
        self.inner.write_all(header.as_bytes())?;
        self.inner.write_all(records)?;
        self.pad(records.len() as u64)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % UNIT as u64).unwrap_or(0);
        let zeros = [0; UNIT];
        let padding = if over == 0 { &[] } else { zeros.get(over..).unwrap_or_default() };
        self.inner.write_all(padding)
    }

    /// Writes the end of the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&[0; 2 * UNIT])?;
        Ok(self.inner)
    }
}

/// Puts a name into name and prefix. False when it does not fit: then name holds its beginning, for old readers.
fn set_name(header: &mut Header, name: &[u8]) -> bool {
    let Some(ustar) = header.as_ustar_mut() else { return false };
    if fill(&mut ustar.name, name) {
        return true;
    }
    // The last slash that leaves at most 155 bytes before it, and between 1 and 100 after it.
    let split = (0..name.len().min(156))
        .rev()
        .find(|i| name.get(*i) == Some(&b'/') && (1..=100).contains(&(name.len() - i - 1)) && *i > 0);
    match split.and_then(|i| Some((name.get(..i)?, name.get(i + 1..)?))) {
        Some((prefix, rest)) => {
            ustar.name = [0; 100];
            fill(&mut ustar.name, rest) && fill(&mut ustar.prefix, prefix)
        }
        None => false,
    }
}

fn fill(field: &mut [u8], bytes: &[u8]) -> bool {
    let taken = bytes.len().min(field.len());
    if let (Some(to), Some(from)) = (field.get_mut(..taken), bytes.get(..taken)) {
        to.copy_from_slice(from);
    }
    taken == bytes.len()
}

/// Reads an archive entry by entry.
pub(super) struct TarReader<R: Read> {
    inner: R,
    /// Bytes of the current entry that nobody has read, and the padding after them.
    left: u64,
    padding: u64,
    ended: bool,
}

/// What is known of an entry before its header comes.
#[derive(Default)]
struct Ahead {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> TarReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, ended: false }
    }

    /// The next entry; its content is read with [`TarReader::content`] before asking for another.
    pub fn next(&mut self) -> io::Result<Option<Member>> {
        let mut ahead = Ahead::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let own = header.entry_size().map_err(|e| damaged(&format!("an entry's size: {e}")))?;
            let entry_type = header.entry_type();
            match entry_type {
                EntryType::XHeader => read_records(&self.text(own)?, &mut ahead)?,
                EntryType::GNULongName => ahead.path = Some(until_nul(self.text(own)?)),
                EntryType::GNULongLink => ahead.link = Some(until_nul(self.text(own)?)),
                EntryType::XGlobalHeader => drop(self.text(own)?),
                _ => {
                    // What a record says is about the entry itself, not about others that come between: a size that counted
                    // for those would have us and other readers see different files.
                    let size = ahead.size.unwrap_or(own);
                    let name = ahead.path.take().unwrap_or_else(|| header.path_bytes().into_owned());
                    // Some readers skip what follows such an entry, and some do not.
                    let content_of_no_file = || {
                        let name = OsStr::from_bytes(&name).display();
                        damaged(&format!("`{name}` has content and is no file"))
                    };
                    let Some(path) = safe(&name)? else {
                        if size > 0 && (entry_type != EntryType::Regular || name.ends_with(b"/")) {
                            return Err(content_of_no_file());
                        }
                        self.left = size;
                        self.padding = padding(self.left);
                        ahead = Ahead::default();
                        continue;
                    };
                    let target = ahead.link.take().or_else(|| header.link_name_bytes().map(Vec::from));
                    let executable = header.mode().map_err(|e| damaged(&format!("an entry's mode: {e}")))? & 0o100 != 0;
                    let kind = kind(entry_type, &path, target, size, executable, &name)?;
                    if size > 0 && !matches!(kind, Kind::File { .. }) {
                        return Err(content_of_no_file());
                    }
                    self.left = if let Kind::File { size, .. } = kind { size } else { 0 };
                    self.padding = padding(self.left);
                    return Ok(Some(Member { path, kind }));
                }
            }
        }
    }

    /// The rest of the current entry's content.
    pub fn content(&mut self) -> Content<'_, R> {
        Content(self)
    }

    /// Gives back what follows the archive.
    pub fn into_inner(self) -> R {
        self.inner
    }

    fn skip(&mut self) -> io::Result<()> {
        let skip = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.inner).take(skip), &mut io::sink())?;
        if skipped == skip { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        if self.ended {
            return Ok(None);
        }
        let mut header = Header::new_old();
        self.inner.read_exact(header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|b| *b == 0) {
            self.ended = true;
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum: u32 =
            bytes.iter().enumerate().map(|(i, b)| u32::from(if (148..156).contains(&i) { b' ' } else { *b })).sum();
        if header.cksum().ok() == Some(sum) {
            Ok(Some(header))
        } else {
            Err(damaged("a header's checksum does not fit"))
        }
    }

    /// The content of an entry that speaks about the next one.
    fn text(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > RECORDS_LIMIT {
            return Err(damaged("its records are too large to be true"));
        }
        self.left = size;
        self.padding = padding(size);
        let mut text = Vec::new();
        self.content().read_to_end(&mut text)?;
        if text.len() as u64 == size { Ok(text) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

fn kind(
    entry_type: EntryType,
    path: &Path,
    target: Option<Vec<u8>>,
    size: u64,
    executable: bool,
    name: &[u8],
) -> io::Result<Kind> {
    let target = || {
        target.filter(|t| !t.is_empty()).ok_or_else(|| damaged(&format!("the link `{}` leads nowhere", path.display())))
    };
    Ok(match entry_type {
        EntryType::Regular if name.ends_with(b"/") => Kind::Dir,
        EntryType::Regular => Kind::File { size, executable },
        EntryType::Directory => Kind::Dir,
        EntryType::Symlink => Kind::Symlink { target: PathBuf::from(std::ffi::OsString::from_vec(target()?)) },
        EntryType::Link => {
            let target = target()?;
            let target = safe(&target)?.ok_or_else(|| damaged("a hard link to the archive itself"))?;
            Kind::Hardlink { target, executable }
        }
        other => {
            let what = match other {
                EntryType::Char | EntryType::Block => "a device",
                EntryType::Fifo => "a pipe",
                _ => "an entry of a kind that packages do not have",
            };
            return Err(damaged(&format!("`{}` is {what}", path.display())));
        }
    })
}

/// The name without `.` parts; nothing when nothing is left. Absolute names and those with `..` are refused.
fn safe(name: &[u8]) -> io::Result<Option<PathBuf>> {
    let mut out = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => out.push(part),
            _ => return Err(damaged(&format!("`{}` would be written outside", OsStr::from_bytes(name).display()))),
        }
    }
    if name.contains(&0) {
        return Err(damaged("a name holds a zero byte"));
    }
    Ok(Some(out).filter(|path| !path.as_os_str().is_empty()))
}

fn read_records(mut text: &[u8], ahead: &mut Ahead) -> io::Result<()> {
    let bad = || damaged("a pax record");
    while !text.is_empty() {
        let space = memchr::memchr(b' ', text).ok_or_else(bad)?;
        let length: usize = text
            .get(..space)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(bad)?;
        let record = text.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(bad)?;
        let equals = memchr::memchr(b'=', record).ok_or_else(bad)?;
        let (key, value) = (record.get(..equals).unwrap_or_default(), record.get(equals + 1..).unwrap_or_default());
        match key {
            b"path" => ahead.path = Some(value.to_vec()),
            b"linkpath" => ahead.link = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).ok_or_else(bad)?;
                ahead.size = Some(size);
            }
            key if key.starts_with(b"GNU.sparse") => return Err(damaged("sparse files are not read")),
            _ => {}
        }
        text = text.get(length..).unwrap_or_default();
    }
    Ok(())
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = memchr::memchr(0, &text) {
        text.truncate(end);
    }
    text
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % UNIT as u64
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a sound archive: {what}"))
}

/// Reads the content of the current entry.
pub(super) struct Content<'a, R: Read>(&'a mut TarReader<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let TarReader { inner, left, .. } = &mut *self.0;
        let got = inner.take(*left).read(out)?;
        if got == 0 && *left > 0 && !out.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(members: &[Member]) -> Vec<u8> {
        let mut writer = TarWriter::new(Vec::new(), 1_700_000_000);
        for member in members {
            let content = vec![b'x'; usize::try_from(member.size()).unwrap()];
            writer.append(member, &mut content.as_slice()).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<Member>> {
        let mut reader = TarReader::new(bytes);
        let mut members = Vec::new();
        while let Some(member) = reader.next()? {
            let copied = io::copy(&mut reader.content(), &mut io::sink())?;
            assert_eq!(copied, member.size());
            members.push(member);
        }
        Ok(members)
    }

    fn name(length: usize, slash_every: usize) -> PathBuf {
        let text: String = (1..=length).map(|i| if i % slash_every == 0 && i < length { '/' } else { 'n' }).collect();
        PathBuf::from(text)
    }

    #[test]
    fn names_of_every_length_come_back() {
        let mut members = Vec::new();
        for length in [1, 99, 100, 101, 155, 156, 200, 255, 256, 257, 1000, 3000] {
            for slash_every in [40, 100, 101, 250] {
                let path = name(length, slash_every);
                members.push(Member { path: path.clone(), kind: Kind::File { size: 513, executable: true } });
                members.push(Member { path: path.clone(), kind: Kind::Dir });
                members.push(Member {
                    path: path.clone(),
                    kind: Kind::Hardlink { target: path.clone(), executable: true },
                });
                members.push(Member { path, kind: Kind::Symlink { target: name(length, 3) } });
            }
        }
        let odd = PathBuf::from(std::ffi::OsString::from_vec(b"caf\xe9 \xff\n=x".repeat(20)));
        members.push(Member { path: odd.clone(), kind: Kind::Symlink { target: odd } });
        assert_eq!(read(&write(&members)).unwrap(), members);
    }

    #[test]
    fn names_that_climb_and_odd_entries_are_refused() {
        for bad in ["../x", "a/../../x", "/etc/passwd"] {
            let bytes = write(&[Member { path: PathBuf::from(bad), kind: Kind::Dir }]);
            assert!(read(&bytes).unwrap_err().to_string().contains("outside"), "{bad}");
            let link = Kind::Hardlink { target: PathBuf::from(bad), executable: false };
            assert!(read(&write(&[Member { path: PathBuf::from("l"), kind: link }])).is_err(), "{bad}");
        }
        for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse, EntryType::new(b'Z')] {
            let mut header = Header::new_ustar();
            header.set_path("dev").unwrap();
            header.set_mode(0o644);
            header.set_size(0);
            header.set_entry_type(kind);
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend([0; 1024]);
            assert!(read(&bytes).is_err(), "{kind:?}");
        }
    }

    #[test]
    fn a_cut_or_damaged_archive_is_an_error() {
        let bytes = write(&[Member { path: PathBuf::from("f"), kind: Kind::File { size: 1000, executable: false } }]);
        for length in [0, 100, 512, 700, 1536, 1600] {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
        let mut broken = bytes;
        broken[0] ^= 1;
        assert!(read(&broken).unwrap_err().to_string().contains("checksum"));
    }

    fn entry(kind: EntryType, name: &str, size: u64, content: &[u8]) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_mode(0o644);
        header.set_size(size);
        header.set_entry_type(kind);
        if matches!(kind, EntryType::Link | EntryType::Symlink) {
            header.set_link_name("f").unwrap();
        }
        header.set_cksum();
        let mut bytes = [header.as_bytes(), content].concat();
        bytes.resize(bytes.len().next_multiple_of(UNIT), 0);
        bytes
    }

    #[test]
    fn a_recorded_size_is_that_of_the_file_and_of_nothing_before_it() {
        let record = |size: u64| {
            let text = format!("{} size={size}\n", 9 + size.to_string().len() - 1);
            entry(EntryType::XHeader, "r", text.len() as u64, text.as_bytes())
        };
        assert_eq!(record(3)[UNIT..UNIT + 9], *b"9 size=3\n");
        let long = entry(EntryType::GNULongName, "l", 2, b"x\0");
        let bytes = [record(3), long, entry(EntryType::Regular, "f", 0, b"abc"), vec![0; 2 * UNIT]].concat();
        let file = Member { path: "x".into(), kind: Kind::File { size: 3, executable: false } };
        assert_eq!(read(&bytes).unwrap(), [file]);
        // The archive's own folder is passed over with what it is said to hold.
        let most = format!("29 size={}\n", u64::MAX);
        assert_eq!(most.len(), 29);
        let most = entry(EntryType::XHeader, "r", 29, most.as_bytes());
        let bytes = [most, entry(EntryType::Regular, ".", 0, b""), vec![0; 2 * UNIT]].concat();
        assert_eq!(read(&bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    /// Readers do not agree on whether content follows what is no file: ours takes none of it, and the writer says that none does.
    #[test]
    fn only_files_have_content() {
        for (kind, name) in [
            (EntryType::Directory, "d"),
            (EntryType::Directory, "."),
            (EntryType::Symlink, "d"),
            (EntryType::Link, "d"),
            (EntryType::Link, "."),
            (EntryType::Regular, "d/"),
            (EntryType::Regular, "./"),
        ] {
            let read =
                |size: u64, content: &[u8]| read(&[entry(kind, name, size, content), vec![0; 2 * UNIT]].concat());
            assert!(read(0, b"").is_ok(), "{kind:?} {name}");
            let error = read(3, b"abc").unwrap_err().to_string();
            assert!(error.contains("has content and is no file"), "{kind:?} {name}: {error}");
        }
        let target = PathBuf::from("f");
        for kind in [Kind::Dir, Kind::Symlink { target: target.clone() }, Kind::Hardlink { target, executable: true }] {
            let bytes = write(&[Member { path: "l".into(), kind }]);
            assert_eq!((&bytes[124..135], bytes.len()), (&b"00000000000"[..], 3 * UNIT));
        }
    }

    #[test]
    fn records_that_lie_are_refused() {
        for text in [&b"5 path=abc\n"[..], b"x", b"99 path=a\n", b"-1 path=a\n", b"7 path\n", b"12 size=many\n"] {
            assert!(read_records(text, &mut Ahead::default()).is_err(), "{:?}", OsStr::from_bytes(text));
        }
    }
}
