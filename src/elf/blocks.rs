//! What may be moved aside to make room: the tables that are found through the program headers or the dynamic section alone, as
//! blocks that must stay together, and the check that nothing else describes their bytes.

use object::elf::{self, DynamicTag};

use super::draft::Draft;
use super::error::{ElfError, Refusal};
use super::raw::{Range, Section, Segment};
use super::view::{Dynamic, View};

/// A stretch of movable tables that must stay together, such as all notes of one `PT_NOTE`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub file: Range,
    pub addr: u64,
    pub align: u64,
}

/// Tables that are found through the headers or the dynamic section alone, as blocks that must stay together.
pub(super) fn blocks(view: &View<'_>, dynamic: &Dynamic) -> Result<Vec<Block>, ElfError> {
    let mut found: Vec<Block> = Vec::new();
    for section in &view.sections {
        if is_movable(view, dynamic, section) {
            found.push(Block { file: section.range(), addr: section.addr, align: section.align });
        }
    }
    for segment in &view.segments {
        if matches!(segment.kind, elf::PT_INTERP | elf::PT_NOTE | elf::PT_GNU_PROPERTY) && segment.filesz > 0 {
            found.push(Block { file: segment.range(), addr: segment.vaddr, align: segment.align });
        }
    }
    if view.sections.is_empty() {
        found.extend(dynamic_tables(view, dynamic)?);
    }
    found.sort_by_key(|block| block.file);
    let mut merged: Vec<Block> = Vec::new();
    for block in found {
        if block.align > 4096 || (block.align > 1 && !block.align.is_power_of_two()) {
            return Err(ElfError::Unsupported(Refusal::Alignment(block.align)));
        }
        match merged.last_mut() {
            Some(last) if block.file.start < last.file.end => {
                last.file.end = last.file.end.max(block.file.end);
                last.align = last.align.max(block.align);
            }
            _ => merged.push(block),
        }
    }
    // A block keeps its distance to its own alignment.
    for block in &merged {
        if block.align > 1 && block.addr % block.align != 0 {
            return Err(ElfError::Unsupported(Refusal::Alignment(block.align)));
        }
    }
    Ok(merged)
}

fn is_movable(view: &View<'_>, dynamic: &Dynamic, section: &Section) -> bool {
    if !section.is_alloc() || section.range().is_empty() {
        return false;
    }
    let named_by = |tag: DynamicTag| dynamic.get(tag) == Some(section.addr);
    match section.kind {
        elf::SHT_NOTE => true,
        elf::SHT_PROGBITS => {
            let interp = view.segment(elf::PT_INTERP);
            interp.is_some_and(|interp| interp.range() == section.range())
        }
        elf::SHT_STRTAB => named_by(elf::DT_STRTAB),
        elf::SHT_DYNSYM => named_by(elf::DT_SYMTAB),
        elf::SHT_HASH => named_by(elf::DT_HASH),
        elf::SHT_GNU_HASH => named_by(elf::DT_GNU_HASH),
        elf::SHT_GNU_VERSYM => named_by(elf::DT_VERSYM),
        elf::SHT_GNU_VERNEED => named_by(elf::DT_VERNEED),
        elf::SHT_GNU_VERDEF => named_by(elf::DT_VERDEF),
        _ => false,
    }
}

/// The same tables in a file without section headers, measured by reading them.
fn dynamic_tables(view: &View<'_>, dynamic: &Dynamic) -> Result<Vec<Block>, ElfError> {
    let mut tables = Vec::new();
    let mut add = |addr: u64, file: Range, align: u64| tables.push(Block { file, addr, align });
    let word = view.bytes.form.word();
    if let Some(strings) = dynamic.strings {
        add(strings.addr, strings.range, 1);
    }
    if let Some(addr) = dynamic.get(elf::DT_HASH) {
        add(addr, view.sysv_hash(addr)?.0, 4);
    }
    if let Some(addr) = dynamic.get(elf::DT_GNU_HASH) {
        add(addr, view.gnu_hash(addr)?.0, word);
    }
    if let (Some(addr), Some(range)) = (dynamic.get(elf::DT_SYMTAB), view.dynsym()?) {
        add(addr, range, word);
        if let Some(versions) = dynamic.get(elf::DT_VERSYM) {
            let count = range.len() / view.bytes.form.symbol_size();
            add(versions, view.mapped("DT_VERSYM", versions, 2 * count)?, 2);
        }
    }
    Ok(tables)
}

/// Which blocks must go so that one more program header fits behind the others.
pub(super) fn for_one_more_header(draft: &Draft<'_>, blocks: &[Block]) -> Result<Vec<Block>, ElfError> {
    let view = draft.view;
    if view.segments.iter().any(|segment| segment.kind == elf::PT_NULL) {
        return Ok(Vec::new());
    }
    let table = view.segment_table();
    let need = Range::new(table.end, view.bytes.form.segment_size());
    let no_room = |at: u64| ElfError::Unsupported(Refusal::NoRoom(at));
    if need.end > draft.cut {
        return Err(no_room(need.start));
    }
    // The loader reads the headers in memory: what maps the table must map the new entry too.
    for load in view.segments.iter().filter(|segment| segment.is_load() && segment.range().overlaps(table)) {
        if !load.range().contains(need) {
            return Err(no_room(load.range().end));
        }
    }
    let chosen: Vec<Block> = blocks.iter().copied().filter(|block| block.file.overlaps(need)).collect();
    let in_chosen = |at: u64| chosen.iter().any(|block| block.file.has(at));
    for range in fixed_ranges(view) {
        let clash = range.overlaps(need) && !chosen.iter().any(|block| block.file.contains(range));
        if clash {
            return Err(no_room(range.start));
        }
    }
    let bytes = view.bytes.slice("room for a program header", need.start, need.len())?;
    for (at, byte) in (need.start..).zip(bytes) {
        // patchelf fills what it leaves behind with X or Z. Without sections, any byte may mean something.
        let unused = *byte == 0 || (matches!(byte, b'X' | b'Z') && !view.sections.is_empty());
        if !unused && !in_chosen(at) {
            return Err(no_room(at));
        }
    }
    Ok(chosen)
}

/// The ranges of the file that something other than `PT_LOAD` and `PT_PHDR` describes.
fn fixed_ranges(view: &View<'_>) -> impl Iterator<Item = Range> {
    let sections = view.sections.iter().map(Section::range);
    let segments = view.segments.iter().filter(|segment| !segment.is_load() && segment.kind != elf::PT_PHDR);
    let tables = [view.section_table(), Range::new(0, view.bytes.form.header_size())];
    sections.chain(segments.map(Segment::range)).chain(tables).filter(|range| !range.is_empty())
}

/// A block may go if it is inside one segment and everything in it is movable.
pub(super) fn check_movable(view: &View<'_>, block: &Block) -> Result<(), ElfError> {
    let overlap = |at: u64| Err(ElfError::Unsupported(Refusal::Overlap(at)));
    let consistent = view.mapped("a table", block.addr, block.file.len())?;
    if consistent != block.file || view.segment_table().overlaps(block.file) {
        return overlap(block.file.start);
    }
    for range in fixed_ranges(view) {
        if range.overlaps(block.file) && !block.file.contains(range) {
            return overlap(range.start);
        }
    }
    let Some(dynamic) = &view.dynamic else { return Ok(()) };
    for section in view.sections.iter().filter(|section| section.range().overlaps(block.file)) {
        if !is_movable(view, dynamic, section) {
            return overlap(section.offset);
        }
    }
    for segment in view.segments.iter().filter(|segment| segment.range().overlaps(block.file)) {
        let moves =
            matches!(segment.kind, elf::PT_LOAD | elf::PT_PHDR | elf::PT_INTERP | elf::PT_NOTE | elf::PT_GNU_PROPERTY);
        if !moves {
            return overlap(segment.offset);
        }
    }
    Ok(())
}

/// `.dynamic` may go if nothing but its own headers and `PT_GNU_RELRO` describes it.
pub(super) fn check_dynamic_movable(view: &View<'_>, dynamic: &Dynamic) -> Result<(), ElfError> {
    for section in view.sections.iter().filter(|section| section.range().overlaps(dynamic.range)) {
        if section.kind != elf::SHT_DYNAMIC || section.range() != dynamic.range {
            return Err(ElfError::Unsupported(Refusal::Overlap(section.offset)));
        }
    }
    for (index, segment) in view.segments.iter().enumerate() {
        let expected = matches!(segment.kind, elf::PT_LOAD | elf::PT_GNU_RELRO) || index == dynamic.segment;
        if segment.range().overlaps(dynamic.range) && !expected {
            return Err(ElfError::Unsupported(Refusal::Overlap(segment.offset)));
        }
    }
    let home = view.segments.get(dynamic.segment).map(Segment::range);
    if home != Some(dynamic.range) {
        return Err(ElfError::Unsupported(Refusal::Overlap(dynamic.range.start)));
    }
    Ok(())
}
