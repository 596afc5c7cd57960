//! An edited file before it is put together.
//!
//! Everything up to `cut` keeps its place in the file. Behind it stands what is never mapped; there new bytes are let
//! in, and the rest moves back:
//!
//! ```text
//!   head (patched) | inserted: the new PT_LOAD | tail: .comment .symtab ... section headers, and whatever follows
//! ```

use std::collections::BTreeMap;

use object::elf;

use super::error::{ElfError, Refusal};
use super::parts::Edits;
use super::raw::{Class, Range, Section, Segment, Writer, align_up, slice, slice_mut};
use super::spares::Spares;
use super::view::{Dynamic, Entry, View};

/// See the module's page.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub view: &'a View<'a>,
    /// Where memory comes from.
    pub spares: &'a mut Spares,
    /// Where the tail starts in the original.
    pub cut: u64,
    /// What is written over the original up to `cut`, in this order: offset and bytes.
    patches: Vec<(u64, Vec<u8>)>,
    /// What is let in at `cut`.
    pub inserted: Vec<u8>,
    pub segments: Vec<Segment>,
    pub sections: Vec<Section>,
    /// New contents of loose sections (see [`Draft::is_loose`]), at most as long as the old ones in front of the cut.
    pub contents: BTreeMap<usize, Vec<u8>>,
    /// Where each section goes, if some are dropped: `None` for a dropped one.
    pub renumbered: Option<Vec<Option<u32>>>,
    /// Ranges of the original that were changed on purpose.
    pub touched: Vec<Range>,
}

impl<'a> Draft<'a> {
    pub fn new(view: &'a View<'a>, spares: &'a mut Spares) -> Result<Self, ElfError> {
        let cut = cut(view);
        view.bytes.has("loaded part", 0, cut)?;
        Ok(Self {
            view,
            spares,
            cut,
            patches: Vec::new(),
            inserted: Vec::new(),
            segments: view.segments.clone(),
            sections: view.sections.clone(),
            contents: BTreeMap::new(),
            renumbered: None,
            touched: Vec::new(),
        })
    }

    /// Overwrites bytes of the head.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ElfError> {
        let bytes = self.spares.copy(bytes);
        self.patch(Range::new(offset, bytes.len() as u64), bytes)
    }

    /// Zeroes bytes of the head.
    pub fn zero(&mut self, range: Range) -> Result<(), ElfError> {
        let length = usize::try_from(range.len()).unwrap_or(usize::MAX);
        if range.end > self.cut {
            return Err(ElfError::SelfCheck { what: "a table behind the loaded part", at: range.start });
        }
        let zeros = self.spares.zeros(length);
        self.patch(range, zeros)
    }

    fn patch(&mut self, range: Range, bytes: Vec<u8>) -> Result<(), ElfError> {
        if range.end > self.cut || range.end < range.start {
            return Err(ElfError::SelfCheck { what: "a table behind the loaded part", at: range.start });
        }
        self.touched.push(range);
        self.patches.push((range.start, bytes));
        Ok(())
    }

    /// Bytes of the head as they are now.
    pub fn get(&mut self, range: Range) -> Result<Vec<u8>, ElfError> {
        let bytes = self.view.bytes.slice("a table that moves", range.start, range.len())?;
        let mut bytes = self.spares.copy(bytes);
        for (at, patch) in &self.patches {
            let patched = Range::new(*at, patch.len() as u64);
            let (start, end) = (patched.start.max(range.start), patched.end.min(range.end));
            if start < end
                && let Some(new) = slice(patch, start - at, end - start)
                && let Some(place) = slice_mut(&mut bytes, start - range.start, end - start)
            {
                place.copy_from_slice(new);
            }
        }
        Ok(bytes)
    }

    /// Writes the dynamic section where it is, padded with `DT_NULL` to its old size.
    pub fn put_dynamic(&mut self, entries: &[Entry]) -> Result<(), ElfError> {
        let Some(dynamic) = &self.view.dynamic else { return Ok(()) };
        let bytes = encode_dynamic(self.view, dynamic, entries, dynamic.addr, dynamic.capacity)?;
        self.put(dynamic.range.start, &bytes)
    }

    /// Whether a section's bytes are in the tail of the original.
    pub fn in_tail(&self, index: usize) -> bool {
        self.view.sections.get(index).is_some_and(|section| {
            let unloaded = section.kind != elf::SHT_NULL && !section.is_alloc();
            unloaded && section.offset >= self.cut && section.offset <= self.view.bytes.len()
        })
    }

    /// Whether a section is nobody's but its own: not loaded, and in no segment. Those in front of the cut (`patchelf`
    /// puts segments behind them) may get other contents, but not another place.
    pub fn is_loose(&self, index: usize) -> bool {
        let view = self.view;
        view.sections.get(index).is_some_and(|section| {
            let inside = || view.segments.iter().any(|segment| segment.range().overlaps(section.range()));
            section.kind != elf::SHT_NULL && !section.is_alloc() && (self.in_tail(index) || !inside())
        })
    }

    /// Writes new contents of sections in front of the cut to their place.
    fn put_contents(&mut self) -> Result<(), ElfError> {
        for (index, contents) in std::mem::take(&mut self.contents) {
            if self.in_tail(index) {
                self.contents.insert(index, contents);
                continue;
            }
            let Some(old) = self.view.sections.get(index) else { continue };
            if contents.len() as u64 > old.size {
                return Err(ElfError::SelfCheck { what: "a section became longer", at: old.offset });
            }
            self.zero(old.range())?;
            self.put(old.offset, &contents)?;
            if let Some(section) = self.sections.get_mut(index) {
                section.size = contents.len() as u64;
            }
        }
        Ok(())
    }

    /// What was changed on purpose, for the check.
    pub fn touched(&self) -> Vec<Range> {
        let mut touched = self.touched.clone();
        let form = self.view.bytes.form;
        touched.push(Range::new(0, form.header_size()));
        touched.push(Range::new(self.view.header.phoff, self.segments.len() as u64 * form.segment_size()));
        touched.push(self.view.section_table());
        touched
    }

    /// Puts the file together.
    pub fn finish(mut self) -> Result<Edits, ElfError> {
        self.put_contents()?;
        let mut out = Edits::default();
        out.copy(0, self.cut);
        for (at, bytes) in std::mem::take(&mut self.patches) {
            out.write("a table behind the loaded part", at, bytes)?;
        }
        out.append(std::mem::take(&mut self.inserted));
        let (shoff, count) =
            if self.renumbered.is_some() { self.lay_tail(&mut out)? } else { self.keep_tail(&mut out)? };
        if self.segments != self.view.segments {
            let mut table = Writer::new(self.view.bytes.form);
            for segment in &self.segments {
                segment.write(&mut table);
            }
            out.write("program headers outside the file", self.view.header.phoff, table.finish()?)?;
        }
        self.write_counts(&mut out, shoff, count)?;
        Ok(out)
    }

    /// Segments that are not loaded may describe bytes of the tail (`PT_RISCV_ATTRIBUTES`).
    fn move_tail_segments(&mut self, place: impl Fn(&Segment) -> Option<u64>) -> Result<(), ElfError> {
        for old in &self.view.segments {
            if old.is_load() || old.filesz == 0 || old.offset < self.cut {
                continue;
            }
            let offset = place(old).ok_or(ElfError::Unsupported(Refusal::TailSegment(old.offset)))?;
            if let Some(segment) = self.segments.iter_mut().find(|segment| *segment == old) {
                segment.offset = offset;
            }
        }
        Ok(())
    }

    /// The tail as it was, further back by what was let in.
    fn keep_tail(&mut self, out: &mut Edits) -> Result<(u64, usize), ElfError> {
        let shift = out.length - self.cut;
        out.copy(self.cut, self.view.bytes.len() - self.cut);
        for index in 0..self.sections.len() {
            if self.in_tail(index)
                && let Some(section) = self.sections.get_mut(index)
            {
                section.offset += shift;
            }
        }
        for (index, contents) in &self.contents {
            let Some(section) = self.sections.get(*index) else { continue };
            out.write("a section outside the file", section.offset, contents.clone())?;
        }
        self.move_tail_segments(|old| Some(old.offset + shift))?;
        let shoff = self.view.header.shoff;
        let shoff = if self.sections.is_empty() || shoff < self.cut { shoff } else { shoff + shift };
        let kept: Vec<usize> = (0..self.sections.len()).collect();
        let table = self.section_table(&kept)?;
        if !table.is_empty() {
            out.write("section headers outside the file", shoff, table)?;
        }
        Ok((shoff, kept.len()))
    }

    /// The kept sections of the tail, one behind the other, then the section headers, then what followed them.
    fn lay_tail(&mut self, out: &mut Edits) -> Result<(u64, usize), ElfError> {
        let view = self.view;
        let renumbered = self.renumbered.clone().unwrap_or_default();
        let is_kept = |index: usize| renumbered.get(index).copied().flatten().is_some();
        let mut order: Vec<usize> = (0..view.sections.len()).filter(|index| self.in_tail(*index)).collect();
        order.sort_by_key(|index| view.sections.get(*index).map(|section| (section.offset, *index)));
        let overlay = self.overlay(&order)?;
        let mut moved: Vec<(Range, u64)> = Vec::new();
        for index in order {
            let (Some(old), Some(section)) = (view.sections.get(index), self.sections.get_mut(index)) else { continue };
            if !is_kept(index) {
                continue;
            }
            pad(out, section.align)?;
            section.offset = out.length;
            if let Some(contents) = self.contents.remove(&index) {
                if !section.is_nobits() {
                    section.size = contents.len() as u64;
                }
                out.append(contents);
            } else {
                out.copy(old.offset, old.range().len());
            }
            moved.push((old.range(), section.offset));
        }
        self.move_tail_segments(|old| {
            let home = moved.iter().find(|(range, _)| range.contains(old.range()));
            home.map(|(range, new)| new + (old.offset - range.start))
        })?;

        pad(out, 8)?;
        let shoff = out.length;
        let kept: Vec<usize> = (0..view.sections.len()).filter(|index| is_kept(*index)).collect();
        let table = self.section_table(&kept)?;
        out.append(table);
        out.copy(overlay.start, overlay.len());
        Ok((shoff, kept.len()))
    }

    /// What follows everything that a header describes: self-extracting programs keep their payload there. Bytes
    /// *between* described parts have no place in the new tail.
    fn overlay(&self, order: &[usize]) -> Result<Range, ElfError> {
        let view = self.view;
        let mut known: Vec<Range> =
            order.iter().filter_map(|index| view.sections.get(*index)).map(Section::range).collect();
        known.push(view.section_table());
        known.extend(view.segments.iter().map(Segment::range));
        known.retain(|range| !range.is_empty() && range.end > self.cut);
        known.sort_unstable();
        let mut at = self.cut;
        for range in known {
            if range.start > at {
                let gap = view.bytes.slice("gap", at, range.start - at)?;
                if gap.iter().any(|byte| *byte != 0) {
                    return Err(ElfError::Unsupported(Refusal::UnknownBytes(at, gap.len() as u64)));
                }
            }
            at = at.max(range.end);
        }
        Ok(Range { start: at.min(view.bytes.len()), end: view.bytes.len() })
    }

    fn section_table(&self, kept: &[usize]) -> Result<Vec<u8>, ElfError> {
        let mut table = Writer::new(self.view.bytes.form);
        for (position, index) in kept.iter().enumerate() {
            let Some(mut section) = self.sections.get(*index).copied() else { continue };
            // With 65,280 sections or more, index 0 holds the counts.
            if position == 0 && section.size != 0 {
                section.size = kept.len() as u64;
            }
            if position == 0 && section.link != 0 {
                section.link = u32::try_from(self.new_shstrndx()).unwrap_or_default();
            }
            section.write(&mut table);
        }
        table.finish()
    }

    fn new_shstrndx(&self) -> u64 {
        let old = self.view.header.shstrndx;
        match &self.renumbered {
            None => old,
            Some(map) => usize::try_from(old).ok().and_then(|old| map.get(old).copied().flatten()).map_or(0, u64::from),
        }
    }

    fn write_counts(&self, out: &mut Edits, shoff: u64, kept: usize) -> Result<(), ElfError> {
        let form = self.view.bytes.form;
        let word = form.word();
        let mut put = |at: u64, bytes: Vec<u8>| out.write("no ELF header", at, bytes);
        let half = |value: u64, limit: u64, beyond: u16| match u16::try_from(value) {
            Ok(short) if value < limit => short,
            _ => beyond,
        };
        let counts_at = 24 + 3 * word + 4;
        let segments = u16::try_from(self.segments.len()).ok().filter(|count| *count != 0xffff);
        let segments = segments.ok_or(ElfError::Unsupported(Refusal::ManyProgramHeaders))?;
        let mut bytes = Writer::new(form);
        bytes.u16(segments);
        put(counts_at + 4, bytes.finish()?)?;
        if self.view.sections.is_empty() {
            return Ok(());
        }
        let mut bytes = Writer::new(form);
        bytes.word(shoff);
        put(24 + 2 * word, bytes.finish()?)?;
        let mut bytes = Writer::new(form);
        let reserved = u64::from(elf::SHN_LORESERVE);
        bytes.u16(half(kept as u64, reserved, 0));
        bytes.u16(half(self.new_shstrndx(), reserved, elf::SHN_XINDEX.0));
        put(counts_at + 8, bytes.finish()?)
    }
}

/// The dynamic section as bytes.
pub(super) fn encode_dynamic(
    view: &View<'_>,
    old: &Dynamic,
    entries: &[Entry],
    addr: u64,
    capacity: usize,
) -> Result<Vec<u8>, ElfError> {
    let form = view.bytes.form;
    let mut out = Writer::new(form);
    for (index, entry) in entries.iter().enumerate() {
        let mut value = entry.value;
        if view.header.machine == elf::EM_MIPS.0 && entry.tag == elf::DT_MIPS_RLD_MAP_REL {
            // The one value that counts from its own place.
            let before = old.entries.iter().position(|entry| entry.tag == elf::DT_MIPS_RLD_MAP_REL).unwrap_or(index);
            let place = |addr: u64, index: usize| addr.wrapping_add(index as u64 * form.dynamic_size());
            value = value.wrapping_add(place(old.addr, before)).wrapping_sub(place(addr, index));
            if form.class == Class::Elf32 {
                value &= 0xffff_ffff;
            }
        }
        let tag = entry.tag.0.cast_unsigned();
        out.word(if form.class == Class::Elf32 { tag & 0xffff_ffff } else { tag }).word(value);
    }
    let mut bytes = out.finish()?;
    let size = usize::try_from(form.dynamic_size()).unwrap_or(16) * capacity;
    let in_place = addr == old.addr && !old.terminated;
    if bytes.len() > size || (bytes.len() == size && !in_place) {
        return Err(ElfError::SelfCheck { what: "the dynamic section is full", at: old.range.start });
    }
    bytes.resize(size, 0);
    Ok(bytes)
}

/// Where the tail starts: behind everything loaded, and not inside anything.
fn cut(view: &View<'_>) -> u64 {
    let mut cut = view.image_end().min(view.bytes.len());
    let mut ranges: Vec<Range> = view.sections.iter().map(Section::range).collect();
    ranges.extend(view.segments.iter().map(Segment::range));
    ranges.push(view.section_table());
    ranges.sort_unstable();
    for range in ranges {
        if !range.is_empty() && range.start < cut && cut < range.end {
            cut = range.end.min(view.bytes.len());
        }
    }
    cut
}

/// Zeroes up to a multiple of `align`.
fn pad(out: &mut Edits, align: u64) -> Result<(), ElfError> {
    let align = if align.is_power_of_two() && align <= 4096 { align } else { 1 };
    let end = align_up(out.length, align).and_then(|end| usize::try_from(end - out.length).ok());
    out.append(vec![0; end.ok_or(ElfError::Unsupported(Refusal::AddressSpace))?]);
    Ok(())
}
