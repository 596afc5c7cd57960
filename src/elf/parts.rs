//! A file of which only parts were read, and an edit of it that says what to copy and what to write.
//!
//! What an edit looks at is little of a file: headers, the dynamic section, its strings and symbols. Code and data, most of
//! the bytes, stay as they are, and a kernel copies them from file to file more cheaply than a program can (or has the
//! files share their blocks). So a caller may hand in the parts that it read so far; where another one is needed, the error
//! [`ElfError::NotRead`] says which, the caller reads it and asks again:
//!
//! ```text
//! parts of the old file --> edit_parts --> NotRead(offset, length): read that, once more
//!                                     `--> Edits: copies (from old to new), then writes, in their order
//! ```

use super::error::ElfError;
use super::raw::{Range, slice_mut};
use super::spares::Spares;

/// The bytes of a file as far as they were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    length: u64,
    /// In order, neither overlapping nor touching.
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    at: u64,
    bytes: Vec<u8>,
}

impl Part {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

impl Parts {
    /// Of a file of `length` bytes nothing is known yet.
    pub fn new(length: u64) -> Self {
        Self { length, parts: Vec::new() }
    }

    /// The length of the file in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Has what is not known yet of `start..end` read. `read` is given a buffer, an offset in the file and a length: so many bytes
    /// from there it is to put behind what the buffer holds. Buffers come from `spares`, and go there.
    pub fn fill<E>(
        &mut self,
        start: u64,
        end: u64,
        spares: &mut Spares,
        read: impl FnOnce(&mut Vec<u8>, u64, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = end.min(self.length);
        let behind = self.parts.partition_point(|part| part.at <= start);
        let touching = behind.checked_sub(1).filter(|index| self.parts.get(*index).is_some_and(|p| p.end() >= start));
        let index = touching.unwrap_or(behind);
        if touching.is_none() {
            let length = usize::try_from(end.saturating_sub(start)).unwrap_or_default();
            self.parts.insert(index, Part { at: start, bytes: spares.take(length) });
        }
        let mut rest = self.parts.split_off(index + 1).into_iter().peekable();
        let outcome = match self.parts.get_mut(index) {
            Some(part) if part.end() < end => {
                let (from, length) = (part.end(), usize::try_from(end - part.end()).unwrap_or(usize::MAX));
                let outcome = read(&mut part.bytes, from, length);
                // What it did not do, or too much of it, is unknown.
                part.bytes.truncate(usize::try_from(end - part.at).unwrap_or(usize::MAX));
                while let Some(next) = rest.next_if(|next| next.at <= part.end()) {
                    let known = usize::try_from(part.end() - next.at).unwrap_or(usize::MAX);
                    part.bytes.extend_from_slice(next.bytes.get(known..).unwrap_or_default());
                    spares.give(next.bytes);
                }
                outcome
            }
            _ => Ok(()),
        };
        self.parts.extend(rest);
        self.parts.retain(|part| !part.bytes.is_empty());
        outcome
    }

    /// Gives back the memory: that of the first part, and that of the others to `spares`.
    pub fn into_first(self, spares: &mut Spares) -> Vec<u8> {
        let mut parts = self.parts.into_iter().map(|part| part.bytes);
        let first = parts.next().unwrap_or_default();
        parts.for_each(|bytes| spares.give(bytes));
        first
    }

    /// Gives all of its memory to `spares`.
    pub fn recycle(self, spares: &mut Spares) {
        self.parts.into_iter().for_each(|part| spares.give(part.bytes));
    }

    /// Adds the bytes that stand at an offset. What reaches beyond the end of the file is cut off.
    pub fn add(&mut self, at: u64, mut bytes: Vec<u8>) {
        let room = usize::try_from(self.length.saturating_sub(at)).unwrap_or(usize::MAX);
        bytes.truncate(room);
        if bytes.is_empty() {
            return;
        }
        let end = at + bytes.len() as u64;
        let inside = self.parts.iter_mut().find(|part| part.at <= at && end <= part.end());
        if let Some(part) = inside
            && let Some(place) = slice_mut(&mut part.bytes, at - part.at, end - at)
        {
            place.copy_from_slice(&bytes);
            return;
        }
        let first = self.parts.partition_point(|part| part.end() < at);
        let last = self.parts.partition_point(|part| part.at <= end);
        let (mut start, mut merged) = (at, bytes);
        for part in self.parts.drain(first..last) {
            if part.at < start {
                let keep = usize::try_from(start - part.at).unwrap_or(usize::MAX).min(part.bytes.len());
                let mut front = part.bytes;
                let behind = front.split_off(keep);
                front.append(&mut merged);
                (start, merged) = (part.at, front);
                // The old part may end behind the new one.
                let known = usize::try_from(end - part.at).unwrap_or(usize::MAX);
                let rest = known.saturating_sub(keep);
                merged.extend_from_slice(behind.get(rest..).unwrap_or_default());
            } else {
                let known = usize::try_from(start + merged.len() as u64 - part.at).unwrap_or(usize::MAX);
                merged.extend_from_slice(part.bytes.get(known..).unwrap_or_default());
            }
        }
        self.parts.insert(first, Part { at: start, bytes: merged });
    }

    fn get(&self, offset: u64, length: u64) -> Option<&[u8]> {
        let index = self.parts.partition_point(|part| part.at <= offset).checked_sub(1)?;
        let part = self.parts.get(index)?;
        super::raw::slice(&part.bytes, offset - part.at, length)
    }

    /// The first offset from `offset` on that is not known.
    fn known_until(&self, offset: u64) -> u64 {
        let index = self.parts.partition_point(|part| part.at <= offset);
        let part = index.checked_sub(1).and_then(|index| self.parts.get(index));
        part.map_or(offset, |part| part.end().max(offset))
    }
}

/// A stretch of the old file that stands in the new one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Where it is in the old file, in bytes.
    pub from: u64,
    /// Where it is in the new one.
    pub to: u64,
    /// How long it is.
    pub length: u64,
}

/// The new file: its length, what is copied from the old one, and what is then written over that, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// The length of the new file in bytes.
    pub length: u64,
    /// In order, not overlapping.
    pub copies: Vec<Copied>,
    /// Offset in the new file, and bytes. Every byte that is not copied is written.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// What is known of the new file, where only parts of the old one were.
    pub(super) known: Parts,
}

/// A piece of the new file: [`Edits::pieces`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// What the old file has there.
    Copied(Copied),
}

impl Edits {
    /// Adds a stretch of the old file at the end.
    pub(super) fn copy(&mut self, from: u64, length: u64) {
        if length > 0 {
            self.copies.push(Copied { from, to: self.length, length });
            self.length += length;
        }
    }

    /// Adds new bytes at the end.
    pub(super) fn append(&mut self, bytes: Vec<u8>) {
        let at = self.length;
        self.length += bytes.len() as u64;
        if !bytes.is_empty() {
            self.writes.push((at, bytes));
        }
    }

    /// Writes over what is there already.
    pub(super) fn write(&mut self, what: &'static str, at: u64, bytes: Vec<u8>) -> Result<(), ElfError> {
        if at.checked_add(bytes.len() as u64).is_none_or(|end| end > self.length) {
            return Err(ElfError::SelfCheck { what, at });
        }
        self.writes.push((at, bytes));
        Ok(())
    }

    /// The new file from its begin to its end, when it is made of parts: what is known of it is written, the rest copied.
    pub fn pieces(&self) -> Vec<Piece<'_>> {
        let mut pieces = Vec::new();
        let mut at = 0;
        let known = self.known.parts.iter().map(|part| (part.at, part.bytes.as_slice()));
        for (known_at, bytes) in known.chain([(self.length, &[][..])]) {
            for copied in &self.copies {
                let (start, end) = (copied.to.max(at), (copied.to + copied.length).min(known_at));
                if start < end {
                    let from = copied.from + (start - copied.to);
                    pieces.push(Piece::Copied(Copied { from, to: start, length: end - start }));
                }
            }
            if !bytes.is_empty() {
                pieces.push(Piece::Bytes(bytes));
            }
            at = known_at + bytes.len() as u64;
        }
        pieces
    }

    /// Makes the new file of the whole old one.
    pub fn apply(&self, old: &[u8], new: &mut Vec<u8>) {
        new.clear();
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        for copied in &self.copies {
            new.resize(at(copied.to), 0);
            new.extend_from_slice(super::raw::slice(old, copied.from, copied.length).unwrap_or_default());
        }
        new.resize(at(self.length), 0);
        for (offset, bytes) in &self.writes {
            if let Some(place) = slice_mut(new, *offset, bytes.len() as u64) {
                place.copy_from_slice(bytes);
            }
        }
    }

    /// The parts of the new file that are known when these of the old one are, in memory from `spares`.
    pub(super) fn parts(&self, old: &Parts, spares: &mut Spares) -> Parts {
        let mut known: Vec<(u64, &[u8])> = Vec::new();
        for copied in &self.copies {
            for part in &old.parts {
                let (start, end) = (part.at.max(copied.from), part.end().min(copied.from + copied.length));
                if start < end
                    && let Some(bytes) = super::raw::slice(&part.bytes, start - part.at, end - start)
                {
                    known.push((copied.to + (start - copied.from), bytes));
                }
            }
        }
        known.extend(self.writes.iter().map(|(at, bytes)| (*at, bytes.as_slice())));
        known.retain(|(_, bytes)| !bytes.is_empty());

        // What touches is one part.
        let range = |(at, bytes): &(u64, &[u8])| Range::new(*at, bytes.len() as u64);
        let mut ranges: Vec<Range> = known.iter().map(range).collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, part| {
            let joins = next.start <= part.end;
            part.end = if joins { part.end.max(next.end) } else { part.end };
            joins
        });
        let size = |length: u64| usize::try_from(length).unwrap_or_default();
        let new = |range: &Range| Part { at: range.start, bytes: spares.take(size(range.len())) };
        let mut parts: Vec<Part> = ranges.iter().map(new).collect();
        for (at, bytes) in known {
            let home =
                parts.partition_point(|part| part.at <= at).checked_sub(1).and_then(|index| parts.get_mut(index));
            let Some(part) = home else { continue };
            // What is copied comes in order; what is written, behind it or over it: later bytes win.
            let offset = size(at - part.at);
            if part.bytes.len() < offset {
                part.bytes.resize(offset, 0);
            }
            let (over, behind) = bytes.split_at(bytes.len().min(part.bytes.len() - offset));
            if let Some(place) = part.bytes.get_mut(offset..offset + over.len()) {
                place.copy_from_slice(over);
            }
            part.bytes.extend_from_slice(behind);
        }
        Parts { length: self.length, parts }
    }

    /// Gives all of its memory to `spares`.
    pub fn recycle(self, spares: &mut Spares) {
        self.known.recycle(spares);
        self.writes.into_iter().for_each(|(_, bytes)| spares.give(bytes));
    }

    /// Whether the new file has at `to` what the old one has at `from`, without anybody looking.
    fn is_copy(&self, from: u64, to: u64, length: u64) -> bool {
        let (old, new) = (Range::new(from, length), Range::new(to, length));
        let copied = self.copies.iter().any(|copied| {
            Range::new(copied.from, copied.length).contains(old) && to.wrapping_sub(copied.to) == from - copied.from
        });
        copied && !self.writes.iter().any(|(at, bytes)| Range::new(*at, bytes.len() as u64).overlaps(new))
    }
}

/// What stands behind [`Bytes`](super::raw::Bytes): a whole file, parts of one, or what becomes of the parts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Data<'a> {
    Whole(&'a [u8]),
    Parts(&'a Parts),
    Made(&'a Parts, &'a Edits),
}

impl<'a> Data<'a> {
    pub fn len(self) -> u64 {
        match self {
            Self::Whole(data) => data.len() as u64,
            Self::Parts(parts) | Self::Made(parts, _) => parts.length,
        }
    }

    /// Bytes of the file. Whatever reaches beyond its end is [`ElfError::Truncated`].
    pub fn slice(self, what: &'static str, offset: u64, length: u64) -> Result<&'a [u8], ElfError> {
        let file = self.len();
        if offset.checked_add(length).is_none_or(|end| end > file) {
            return Err(ElfError::Truncated { what, offset, length, file });
        }
        let (found, edits) = match self {
            _ if length == 0 => return Ok(&[]),
            Self::Whole(data) => (super::raw::slice(data, offset, length), None),
            Self::Parts(parts) => (parts.get(offset, length), None),
            Self::Made(parts, edits) => (parts.get(offset, length), Some((parts, edits))),
        };
        if let Some(found) = found {
            return Ok(found);
        }
        let Some((parts, edits)) = edits else { return Err(ElfError::NotRead { offset, length }) };
        // Only the old file can be read.
        let missing = parts.known_until(offset);
        let home = edits.copies.iter().find(|copied| Range::new(copied.to, copied.length).has(missing));
        let home = home.ok_or(ElfError::SelfCheck { what: "bytes that nobody wrote", at: missing })?;
        let from = home.from + (missing - home.to);
        let length = (offset + length).min(home.to + home.length) - missing;
        Err(ElfError::NotRead { offset: from, length })
    }

    /// Those ranges within `range` whose bytes are known.
    pub fn known(self, range: Range) -> Vec<Range> {
        let parts = match self {
            Self::Whole(_) => return vec![range],
            Self::Parts(parts) | Self::Made(parts, _) => parts,
        };
        let inside = |part: &Part| Range { start: part.at.max(range.start), end: part.end().min(range.end) };
        parts.parts.iter().map(inside).filter(|range| range.start < range.end).collect()
    }

    /// Whether this file was made by copying these bytes of the old one, so that they need no comparison.
    pub fn is_copy(self, from: Range, to: Range) -> bool {
        match self {
            Self::Made(_, edits) => from.len() == to.len() && edits.is_copy(from.start, to.start, from.len()),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_merged_and_later_bytes_win() {
        let mut parts = Parts::new(20);
        parts.add(10, b"kl".to_vec());
        parts.add(2, b"cd".to_vec());
        assert_eq!((parts.get(2, 2), parts.get(2, 3), parts.get(3, 1)), (Some(&b"cd"[..]), None, Some(&b"d"[..])));
        parts.add(4, b"efg".to_vec()); // touches
        assert_eq!(parts.get(2, 5), Some(&b"cdefg"[..]));
        parts.add(3, b"DE".to_vec()); // inside
        assert_eq!(parts.get(2, 5), Some(&b"cDEfg"[..]));
        parts.add(6, b"Ghijk".to_vec()); // overlaps both
        assert_eq!(parts.get(2, 10), Some(&b"cDEfGhijkl"[..]));
        parts.add(0, b"abcdefghijklmnopqrstuvwxyz".to_vec()); // over all, and cut off
        assert_eq!((parts.get(0, 20), parts.parts.len()), (Some(&b"abcdefghijklmnopqrst"[..]), 1));
        assert_eq!((parts.known_until(5), Parts::new(3).known_until(1)), (20, 1));
    }

    #[test]
    fn only_what_is_unknown_is_read() {
        let file: Vec<u8> = (0..100).collect();
        let (mut parts, mut spares) = (Parts::new(100), Spares::default());
        let mut told = Vec::new();
        for (start, end) in [(10, 20), (15, 30), (40, 50), (45, 60), (30, 35), (33, 47), (0, 5), (90, 200), (0, 100)] {
            let read = |buffer: &mut Vec<u8>, at: u64, length: usize| {
                told.push((at, length));
                let at = usize::try_from(at).unwrap();
                buffer.extend_from_slice(&file[at..at + length]);
                Ok::<(), ()>(())
            };
            parts.fill(start, end, &mut spares, read).unwrap();
            let (from, length) = (start, end.min(100) - start);
            assert_eq!(parts.get(from, length), super::super::raw::slice(&file, from, length), "{start} {end}");
            assert!(parts.parts.windows(2).all(|two| two[0].end() < two[1].at), "{parts:?}");
        }
        let read = [(10, 10), (20, 10), (40, 10), (50, 10), (30, 5), (35, 12), (0, 5), (90, 10), (5, 95)];
        assert_eq!(told, read);
        assert_eq!((parts.parts.len(), parts.into_first(&mut spares)), (1, file));
        let mut parts = Parts::new(9);
        assert_eq!(parts.fill(3, 5, &mut spares, |_, _, _| Err("no")), Err("no"));
        assert_eq!(parts.parts, []);
    }

    #[test]
    fn what_is_unknown_of_the_new_file_is_asked_of_the_old() {
        let mut old = Parts::new(100);
        old.add(0, vec![1; 10]);
        let mut edits = Edits::default();
        edits.copy(0, 50);
        edits.append(vec![2; 5]);
        edits.copy(50, 50);
        edits.write("x", 3, vec![3; 2]).unwrap();
        assert!(edits.write("x", 104, vec![3; 2]).is_err());
        let new = edits.parts(&old, &mut Spares::default());
        let data = Data::Made(&new, &edits);
        assert_eq!(data.slice("x", 0, 10), Ok(&[1, 1, 1, 3, 3, 1, 1, 1, 1, 1][..]));
        assert_eq!(data.slice("x", 8, 10), Err(ElfError::NotRead { offset: 10, length: 8 }));
        assert_eq!(data.slice("x", 50, 10), Err(ElfError::NotRead { offset: 50, length: 5 }));
        assert_eq!(data.slice("x", 40, 12), Err(ElfError::NotRead { offset: 40, length: 10 }));
        assert!(matches!(data.slice("x", 100, 6), Err(ElfError::Truncated { .. })));
        assert!(
            data.is_copy(Range::new(60, 5), Range::new(65, 5)) && !data.is_copy(Range::new(60, 5), Range::new(60, 5))
        );
        assert!(!data.is_copy(Range::new(2, 5), Range::new(2, 5)), "written over");
        let (whole, mut out) = ((0..100).collect::<Vec<u8>>(), Vec::new());
        edits.known = new;
        let copied = |from, to, length| Piece::Copied(Copied { from, to, length });
        let front = [1, 1, 1, 3, 3, 1, 1, 1, 1, 1];
        let pieces = [Piece::Bytes(&front), copied(10, 10, 40), Piece::Bytes(&[2; 5]), copied(50, 55, 50)];
        assert_eq!(edits.pieces(), pieces);
        edits.apply(&whole, &mut out);
        assert_eq!(
            (out.len(), &out[..6], &out[49..57]),
            (105, &[0, 1, 2, 3, 3, 5][..], &[49, 2, 2, 2, 2, 2, 50, 51][..])
        );
    }
}
