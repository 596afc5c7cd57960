//! Where the stored bytes of a sparse file belong: GNU's old map, and the three of PAX.
//!
//! Source: GNU tar manual, "Storing Sparse Files".

use super::header::number;
use super::{BLOCK, MAX_META, Segment, TarError, TarReader};
use std::io::BufRead;

impl<R: BufRead> TarReader<R> {
    /// Old GNU: four pairs in the header, then blocks with twenty-one each while `isextended` is set.
    pub(super) fn gnu_sparse_map(&mut self, header: &[u8; 512], start: u64) -> Result<Vec<Segment>, TarError> {
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
    pub(super) fn sparse_map_in_data(&mut self, start: u64) -> Result<Vec<Segment>, TarError> {
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

pub fn pairs(numbers: &[u64]) -> Result<Vec<Segment>, String> {
    if !numbers.len().is_multiple_of(2) {
        return Err("the sparse map has an odd count of numbers".to_owned());
    }
    Ok(numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], len: pair[1] }).collect())
}

/// Segments must be in order, inside the file, and account for all stored bytes.
pub fn check_segments(segments: &[Segment], size: u64, stored: u64) -> Result<(), String> {
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
