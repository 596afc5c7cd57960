//! Looks for a prefix in what is compressed, where no search of the file's bytes sees it: debug sections that compilers compress
//! (`gcc -gz`), and files that are compressed as a whole (`man1/x.1.gz`).
//!
//! What comes out may be far larger than the file. It is decompressed a block at a time, and no more of it than [`LIMIT`], nor than
//! a section's header says.

use super::verify::{LONGEST, printable};
use crate::elf::{Compression, Section};
use crate::fsutil::{Packing, packing};
use serde::Serialize;
use std::fmt;
use std::io::{self, Read};

/// How much is looked at in one go, in bytes.
const BLOCK: usize = 256 << 10;

/// How many places are told of one section or file; the rest of it is not looked at.
const PLACES: usize = 1000;

/// How much of what comes out is looked at, in bytes: a compressed megabyte can hold a thousand of one letter.
const LIMIT: u64 = 4 << 30;

/// What is compressed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compressed {
    /// A section of an ELF file, by its name, `.debug_line`.
    Section(String),
    /// The file as a whole, by the format, `gzip`.
    File(&'static str),
}

impl fmt::Display for Compressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Section(name) => write!(f, "of its section {name}, decompressed"),
            Self::File(format) => write!(f, "of what it holds, decompressed ({format})"),
        }
    }
}

/// Where in what comes out something stands, and the text there; or why that cannot be known, in a sentence.
type Found = Result<Vec<(usize, String)>, String>;

/// Where in the decompressed section that stands which `look` finds, and the text there. `look` tells the offsets in the block
/// that it is given; nothing that it looks for is longer than [`LONGEST`].
///
/// # Errors
///
/// A sentence that says why the section cannot be read.
pub(super) fn find(section: &Section<'_>, look: impl Fn(&[u8]) -> Vec<usize>) -> Found {
    let failed = |what: &dyn fmt::Display| format!("section {} is compressed and cannot be read: {what}", section.name);
    let plain: Box<dyn Read> = match section.compression {
        Compression::Zlib => Box::new(flate2::bufread::ZlibDecoder::new(section.bytes)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(section.bytes).map_err(|e| failed(&e))?),
        Compression::Other(number) => return Err(failed(&format_args!("method {number} is unknown"))),
    };
    if section.size > LIMIT {
        return Err(failed(&format_args!("its header promises {} bytes, and {LIMIT} are looked at", section.size)));
    }
    search(plain.take(section.size), look).map_err(|e| failed(&e))
}

/// The same in a file that is compressed as a whole, with the format; nothing for one that is not.
pub(super) fn find_in_file(content: &[u8], look: impl Fn(&[u8]) -> Vec<usize>) -> Option<(&'static str, Found)> {
    find_up_to(LIMIT, content, look)
}

fn find_up_to(limit: u64, content: &[u8], look: impl Fn(&[u8]) -> Vec<usize>) -> Option<(&'static str, Found)> {
    let (format, plain): (_, io::Result<Box<dyn Read>>) = match packing(content) {
        Packing::Gzip => ("gzip", Ok(Box::new(flate2::bufread::MultiGzDecoder::new(content)))),
        Packing::Zstd => {
            let decoder = zstd::Decoder::with_buffer(content);
            ("zstd", decoder.map(|decoder| Box::new(decoder) as Box<dyn Read>))
        }
        Packing::Other(format) => {
            return Some((format, Err(format!("it is compressed ({format}), and not looked into"))));
        }
        Packing::None => return None,
    };
    let failed = |what: &dyn fmt::Display| format!("it looks compressed ({format}), and cannot be read: {what}");
    let found = plain.and_then(|plain| {
        let mut plain = plain.take(limit.saturating_add(1));
        search(&mut plain, look).map(|found| (found, plain.limit()))
    });
    let found = match found {
        Ok((_, 0)) => Err(failed(&format_args!("it holds more than the {limit} bytes that are looked at"))),
        Ok((found, _)) => Ok(found),
        Err(error) => Err(failed(&error)),
    };
    Some((format, found))
}

/// Whether a file that begins like this is compressed as a whole.
pub(super) fn is_compressed(start: &[u8]) -> bool {
    packing(start) != Packing::None
}

fn search(mut plain: impl Read, look: impl Fn(&[u8]) -> Vec<usize>) -> io::Result<Vec<(usize, String)>> {
    let mut found = Vec::new();
    let mut block: Vec<u8> = Vec::with_capacity(BLOCK + 2 * LONGEST);
    let mut start = 0; // where the block stands in what comes out
    let mut known = 0; // so much of it was looked at, and stays for what is asked of the bytes before a place
    loop {
        let read = plain.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        let last = read < BLOCK;
        // What begins near the end is looked at with the next block, so that its text is whole.
        let end = if last { block.len() } else { block.len().saturating_sub(LONGEST) };
        let places = look(&block).into_iter().filter(|at| (known..end).contains(at)).take(PLACES - found.len());
        found.extend(places.map(|at| (start + at, printable(&block[at..]))));
        if last || found.len() >= PLACES {
            return Ok(found);
        }
        known = end.min(LONGEST);
        block.drain(..end - known);
        start += end - known;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memchr::memmem::find_iter;
    use std::io::Write;

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(plain).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn every_place_is_found_once_also_between_two_blocks() {
        let look = |block: &[u8]| find_iter(block, b"/build.root").collect::<Vec<_>>();
        for at in [
            0,
            7,
            BLOCK - 4200,
            BLOCK - 4096,
            BLOCK - 300,
            BLOCK - 11,
            BLOCK - 5,
            BLOCK,
            2 * BLOCK - 203,
            3 * BLOCK - 20,
        ] {
            let mut plain = vec![0_u8; 3 * BLOCK];
            plain[at..at + 13].copy_from_slice(b"/build.root/x");
            let packed =
                [(Compression::Zlib, zlib(&plain)), (Compression::Zstd, zstd::encode_all(&plain[..], 1).unwrap())];
            for (compression, bytes) in packed {
                let section = Section { name: ".debug_x".into(), compression, size: plain.len() as u64, bytes: &bytes };
                assert_eq!(find(&section, look), Ok(vec![(at, "/build.root/x".to_owned())]), "{at}");
            }
        }
        let bytes = zlib(&vec![0; BLOCK]);
        let vast = Section { name: ".debug_x".into(), compression: Compression::Zlib, size: u64::MAX, bytes: &bytes };
        assert!(find(&vast, look).unwrap_err().contains("promises"));
        let damaged = Section { name: ".debug_x".into(), compression: Compression::Zlib, size: 9, bytes: &bytes[4..] };
        assert!(find(&damaged, look).unwrap_err().contains(".debug_x"));
    }

    #[test]
    fn files_that_are_compressed_are_looked_into_or_said_to_be_closed() {
        let look = |block: &[u8]| find_iter(block, b"/build.root").collect::<Vec<_>>();
        let gzip = |plain: &[u8]| {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(plain).unwrap();
            out.finish().unwrap()
        };
        let plain = b".TH X 1\n/build.root/etc/x\n";
        // Two members, as `cat a.gz b.gz` makes them.
        let members = [gzip(b"begin "), gzip(plain)].concat();
        assert_eq!(find_in_file(&members, look), Some(("gzip", Ok(vec![(14, "/build.root/etc/x".to_owned())]))));
        let packed = zstd::encode_all(&plain[..], 1).unwrap();
        assert_eq!(find_in_file(&packed, look), Some(("zstd", Ok(vec![(8, "/build.root/etc/x".to_owned())]))));
        assert_eq!(find_in_file(plain, look), None);
        let reason = |limit, content: &[u8]| find_up_to(limit, content, look).unwrap().1.unwrap_err();
        assert!(reason(LIMIT, &members[..members.len() - 9]).contains("cannot be read"));
        assert!(reason(LIMIT, b"\x1f\x8b is no gzip").contains("cannot be read"));
        assert!(reason(99, &gzip(&[0; 100])).contains("more than the 99 bytes"));
        assert_eq!(find_up_to(100, &gzip(&[0; 100]), look), Some(("gzip", Ok(Vec::new()))));
        for (name, start) in
            [("xz", &b"\xfd7zXZ\0\0"[..]), ("bzip2", b"BZh91AY"), ("zip", b"PK\x03\x04"), ("lz4", b"\x04\x22\x4d\x18")]
        {
            assert!(reason(LIMIT, start).contains(&format!("compressed ({name}), and not looked into")));
        }
        assert_eq!(find_in_file(b"BZh is how a text may begin", look), None);
    }
}
