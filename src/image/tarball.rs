//! Writes tar archives: the same members give the same bytes, whoever writes them and when.
//!
//! Headers are POSIX ustar; what does not fit (a long name or link target, a size above 8 GiB) goes into PAX records.
//! Owners are 0 and have no names. Format: POSIX.1-2017 `pax`; drawn in [`super::tar`].

use crate::pax;
use std::io::{self, Read, Write};
use tar::{EntryType, Header};

const BLOCK: u64 = 512;

/// The largest number that 11 octal digits hold.
const OCTAL_LIMIT: u64 = 0o777_7777_7777;

/// What a member is.
pub enum Kind {
    Directory,
    /// A regular file with this many bytes.
    File(u64),
    Symlink(Vec<u8>),
    /// Another name of this member.
    HardLink(Vec<u8>),
    Fifo,
}

/// What is written for a member.
pub struct Member {
    pub name: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: u64,
}

impl Member {
    /// An ordinary file without a time.
    pub fn file(name: &str, size: u64) -> Self {
        Self { name: name.as_bytes().to_vec(), kind: Kind::File(size), mode: 0o644, mtime: 0 }
    }

    /// A folder without a time.
    pub fn directory(name: &str) -> Self {
        Self { name: name.as_bytes().to_vec(), kind: Kind::Directory, mode: 0o755, mtime: 0 }
    }
}

/// Writes an archive.
pub struct Writer<W: Write> {
    inner: W,
}

impl<W: Write> Writer<W> {
    /// Writes to `inner` from the beginning of an archive.
    pub fn new(inner: W) -> Self {
        Self { inner }
    }

    /// Writes a member; `content` must give as many bytes as a file's size says.
    pub fn append(&mut self, member: &Member, content: &mut dyn Read) -> io::Result<()> {
        self.begin(member)?;
        let size = if let Kind::File(size) = member.kind { size } else { 0 };
        self.content(content, size)
    }

    /// Writes a member's header. Its content, as many bytes as a file's size says, goes to [`Writer::inner`], and then
    /// comes [`Writer::pad`].
    pub fn begin(&mut self, member: &Member) -> io::Result<()> {
        let mut records = Vec::new();
        let (kind, link, size) = match &member.kind {
            Kind::Directory => (EntryType::Directory, None, 0),
            Kind::File(size) => (EntryType::Regular, None, *size),
            Kind::Symlink(target) => (EntryType::Symlink, Some(target), 0),
            Kind::HardLink(target) => (EntryType::Link, Some(target), 0),
            Kind::Fifo => (EntryType::Fifo, None, 0),
        };
        let mut name = member.name.clone();
        if kind == EntryType::Directory {
            name.push(b'/');
        }
        let mut header = header(kind, member.mode, member.mtime);
        if !fill(&mut header.as_old_mut().name, &name) {
            pax::record(&mut records, "path", &name);
        }
        if let Some(link) = link
            && !fill(&mut header.as_old_mut().linkname, link)
        {
            pax::record(&mut records, "linkpath", link);
        }
        if size > OCTAL_LIMIT {
            pax::record(&mut records, "size", size.to_string().as_bytes());
        }
        header.set_size(size.min(OCTAL_LIMIT));
        if !records.is_empty() {
            let mut extra = self::header(EntryType::XHeader, 0o644, 0);
            let _ = fill(&mut extra.as_old_mut().name, b"PaxHeader");
            extra.set_size(records.len() as u64);
            extra.set_cksum();
            self.inner.write_all(extra.as_bytes())?;
            self.content(&mut &records[..], records.len() as u64)?;
        }
        header.set_cksum();
        self.inner.write_all(header.as_bytes())
    }

    /// Where a member's content goes.
    pub fn inner(&mut self) -> &mut W {
        &mut self.inner
    }

    fn content(&mut self, content: &mut dyn Read, size: u64) -> io::Result<()> {
        if io::copy(&mut content.take(size), &mut self.inner)? != size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        self.pad(size)
    }

    /// Fills up to a whole block after `size` bytes of content.
    pub fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = size.next_multiple_of(BLOCK) - size;
        io::copy(&mut io::repeat(0).take(padding), &mut self.inner)?;
        Ok(())
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<()> {
        self.inner.write_all(&[0; 1024])?;
        self.inner.flush()
    }
}

fn header(kind: EntryType, mode: u32, mtime: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(mtime.min(OCTAL_LIMIT));
    header.set_size(0);
    header
}

/// What fits of `bytes`; whether all of it did.
fn fill(field: &mut [u8], bytes: &[u8]) -> bool {
    let n = bytes.len().min(field.len());
    field[..n].copy_from_slice(&bytes[..n]);
    n == bytes.len()
}

#[cfg(test)]
mod tests {
    use super::super::tar::{self as reader, TarReader};
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let long = vec![b'n'; 300];
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        let mut add = |name: &[u8], kind, content: &[u8]| {
            let member = Member { name: name.to_vec(), kind, mode: 0o4711, mtime: 1_600_000_000 };
            writer.append(&member, &mut &content[..]).unwrap();
        };
        add(b"d", Kind::Directory, b"");
        add(&long, Kind::File(3), b"abc");
        add(b"not-\xff-utf8", Kind::File(0), b"");
        add(b"l", Kind::Symlink(long.clone()), b"");
        add(b"h", Kind::HardLink(long.clone()), b"");
        add(b"p", Kind::Fifo, b"");
        writer.finish().unwrap();

        let mut reader = TarReader::new(&bytes[..]);
        let mut seen = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            assert_eq!((entry.mode, entry.mtime), (0o4711, (1_600_000_000, 0)));
            let mut data = Vec::new();
            reader
                .read_data(|part| {
                    data.extend_from_slice(part);
                    Ok::<(), reader::TarError>(())
                })
                .unwrap();
            seen.push((entry.kind, entry.path, entry.link, data));
        }
        let none = Vec::new;
        assert_eq!(
            seen,
            [
                (reader::Kind::Directory, b"d/".to_vec(), none(), none()),
                (reader::Kind::File, long.clone(), none(), b"abc".to_vec()),
                (reader::Kind::File, b"not-\xff-utf8".to_vec(), none(), none()),
                (reader::Kind::Symlink, b"l".to_vec(), long.clone(), none()),
                (reader::Kind::HardLink, b"h".to_vec(), long, none()),
                (reader::Kind::Fifo, b"p".to_vec(), none(), none()),
            ]
        );
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let mut writer = Writer::new(Vec::new());
        assert!(writer.append(&Member::file("f", 4), &mut &b"abc"[..]).is_err());
    }
}
