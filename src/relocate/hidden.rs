//! Looks for a prefix in what compilers compress (`gcc -gz`): debug sections, which no search of the file's bytes sees.
//!
//! A section may be far larger than the file. It is decompressed a block at a time, and no more of it than its header says.

use super::verify::{LONGEST, printable};
use crate::elf::{Compression, Section};
use std::io::Read;

/// How much is looked at in one go, in bytes.
const BLOCK: usize = 256 << 10;

/// How many places are told of one section; the rest of it is not looked at.
const PLACES: usize = 1000;

/// Where in the decompressed section that stands which `look` finds, and the text there. `look` tells the offsets in the block
/// that it is given; nothing that it looks for is longer than [`LONGEST`].
///
/// # Errors
///
/// A sentence that says why the section cannot be read.
pub(super) fn find(section: &Section<'_>, look: impl Fn(&[u8]) -> Vec<usize>) -> Result<Vec<(usize, String)>, String> {
    let failed =
        |what: &dyn std::fmt::Display| format!("section {} is compressed and cannot be read: {what}", section.name);
    let plain: Box<dyn Read> = match section.compression {
        Compression::Zlib => Box::new(flate2::bufread::ZlibDecoder::new(section.bytes)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(section.bytes).map_err(|e| failed(&e))?),
        Compression::Other(number) => return Err(failed(&format_args!("method {number} is unknown"))),
    };
    let mut plain = plain.take(section.size);
    let mut found = Vec::new();
    let mut block: Vec<u8> = Vec::with_capacity(BLOCK + 2 * LONGEST);
    let mut start = 0; // where the block stands in the section
    let mut known = 0; // so much of it was looked at, and stays for what is asked of the bytes before a place
    loop {
        let read = plain.by_ref().take(BLOCK as u64).read_to_end(&mut block).map_err(|e| failed(&e))?;
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
        let damaged = Section { name: ".debug_x".into(), compression: Compression::Zlib, size: 9, bytes: &bytes[4..] };
        assert!(find(&damaged, look).unwrap_err().contains(".debug_x"));
    }
}
