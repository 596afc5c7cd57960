//! Finds room for a longer `.dynstr` (and, where it is full, a longer `.dynamic`) without moving what code knows.
//!
//! Code reaches its data by address, so `.text`, `.data` and all else stays. Only tables that are found through the
//! program headers or the dynamic section can go elsewhere. A longer table gets a new `PT_LOAD` behind all others; the
//! new segment needs one more program header; and that needs 56 bytes behind the program headers, where `.interp` and
//! the notes stand. Those move into the place that the old `.dynstr` has left, or else into the new segment:
//!
//! ```text
//!   before  | EHDR | PHDRS | .interp .note.* .gnu.hash .dynsym .dynstr .rela ... .data |
//!   after   | EHDR | PHDRS +1 |     -       .gnu.hash .dynsym [.interp .note.*] ... .data | .dynstr+ |
//! ```
//!
//! The program headers themselves stay at offset 64, where GNU `strip` and kernels before 5.18 (which compute
//! `AT_PHDR` from the first segment) expect them. Where the last segment already ends in `.dynstr`, as after an
//! earlier edit, that segment grows instead.

use std::borrow::Cow;

use object::elf;

use super::blocks::{blocks, check_dynamic_movable, check_movable, for_one_more_header};
use super::draft::{Draft, encode_dynamic};
use super::error::{ElfError, Refusal};
use super::moves::{Move, move_pointers, move_symbols, patch_got};
use super::raw::{Class, Range, Segment, align_up, slice_mut};
use super::view::{Dynamic, Entry, Strings, View};

/// Replaces `.dynstr` by a longer table and `.dynamic` by new entries, and makes room for both.
pub(super) fn grow(draft: &mut Draft<'_>, mut entries: Vec<Entry>, table: &[u8]) -> Result<(), ElfError> {
    let view = draft.view;
    let (Some(dynamic), Ok(table_len)) = (&view.dynamic, u64::try_from(table.len())) else { return Ok(()) };
    let Some(strings) = dynamic.strings else { return Ok(()) };
    refuse_oddities(view, dynamic, strings)?;

    let dynamic_moves = entries.len() > dynamic.room();
    let last = last_load(view)?;
    if !dynamic_moves && ends_with(draft, last, strings) {
        return extend(draft, last, strings, entries, table);
    }

    let blocks = blocks(view, dynamic)?;
    let mut chosen = for_one_more_header(draft, &blocks)?;
    let strings_block = blocks.iter().find(|block| block.file.overlaps(strings.range)).copied();
    let strings_block = strings_block
        .filter(|block| block.file == strings.range)
        .ok_or(ElfError::Unsupported(Refusal::Overlap(strings.range.start)))?;
    chosen.retain(|block| block.file != strings.range);
    for block in chosen.iter().chain([&strings_block]) {
        check_movable(view, block)?;
    }

    // First into what .dynstr leaves, then into the new segment.
    let header_end = view.header.phoff + (draft.segments.len() as u64 + 1) * view.bytes.form.segment_size();
    let mut free = strings.range;
    free.start = free.start.max(header_end);
    let mut new = NewSegment::new(draft)?;
    let mut moves = Vec::new();
    for block in chosen {
        let addr = strings.addr + (free.start.saturating_sub(strings.range.start));
        let to_addr = align_up(addr, block.align).ok_or(ElfError::Unsupported(Refusal::AddressSpace))?;
        let to = free.start + (to_addr - addr);
        let (to, to_addr) = if free.contains(Range::new(to, block.file.len())) {
            free.start = to + block.file.len();
            (to, to_addr)
        } else {
            new.take(block.file.len(), block.align)?
        };
        moves.push(Move { from: block.file, from_addr: block.addr, to, to_addr });
    }
    let spare = 4; // so that a later edit finds room
    let new_capacity = if dynamic_moves { entries.len() + 1 + spare } else { dynamic.capacity };
    let dynamic_move = if dynamic_moves {
        check_dynamic_movable(view, dynamic)?;
        let form = view.bytes.form;
        let (to, to_addr) = new.take(new_capacity as u64 * form.dynamic_size(), form.word())?;
        Some(Move { from: dynamic.range, from_addr: dynamic.addr, to, to_addr })
    } else {
        None
    };
    let (to, to_addr) = new.take(table_len, 1)?;
    moves.push(Move { from: strings.range, from_addr: strings.addr, to, to_addr });
    for entry in entries.iter_mut().filter(|entry| entry.tag == elf::DT_STRSZ) {
        entry.value = table_len;
    }
    let replaced = Replaced { range: strings.range, bytes: table };
    carry_out(draft, entries, &mut moves, dynamic_move, new_capacity, &replaced, &new)
}

/// Puts a longer interpreter (its NUL included) into a new segment, and what must make room for that segment's header.
pub(super) fn move_interpreter(draft: &mut Draft<'_>, text: &[u8]) -> Result<(), ElfError> {
    let view = draft.view;
    let (Some(dynamic), Some(interp)) = (&view.dynamic, view.segment(elf::PT_INTERP).copied()) else { return Ok(()) };
    if let Some(strings) = dynamic.strings {
        refuse_oddities(view, dynamic, strings)?;
    }
    let blocks = blocks(view, dynamic)?;
    let mut chosen = for_one_more_header(draft, &blocks)?;
    let own = blocks.iter().find(|block| block.file == interp.range()).copied();
    let own = own.ok_or(ElfError::Unsupported(Refusal::Overlap(interp.offset)))?;
    chosen.retain(|block| block.file != own.file);
    for block in chosen.iter().chain([&own]) {
        check_movable(view, block)?;
    }
    let mut new = NewSegment::new(draft)?;
    let mut moves = Vec::new();
    for block in chosen {
        let (to, to_addr) = new.take(block.file.len(), block.align)?;
        moves.push(Move { from: block.file, from_addr: block.addr, to, to_addr });
    }
    let (to, to_addr) = new.take(text.len() as u64, 1)?;
    moves.push(Move { from: own.file, from_addr: own.addr, to, to_addr });
    let replaced = Replaced { range: own.file, bytes: text };
    carry_out(draft, dynamic.entries.clone(), &mut moves, None, dynamic.capacity, &replaced, &new)
}

/// A table that moves and gets other bytes on the way.
struct Replaced<'t> {
    range: Range,
    bytes: &'t [u8],
}

/// Moves what was decided on, and changes everything that says where it is.
fn carry_out(
    draft: &mut Draft<'_>,
    mut entries: Vec<Entry>,
    moves: &mut [Move],
    dynamic_move: Option<Move>,
    new_capacity: usize,
    replaced: &Replaced<'_>,
    new: &NewSegment,
) -> Result<(), ElfError> {
    let view = draft.view;
    let Some(dynamic) = &view.dynamic else { return Ok(()) };
    moves.sort_by_key(|m| m.from);
    let replaced_len = replaced.bytes.len() as u64;

    // Everything that says where these tables are.
    move_symbols(draft, moves, dynamic_move.as_ref())?;
    move_pointers(view, &mut entries, moves)?;
    let sizes = [(replaced.range, replaced_len), (dynamic.range, new_capacity as u64 * view.bytes.form.dynamic_size())];
    let all = || moves.iter().chain(&dynamic_move);
    for (section, old) in draft.sections.iter_mut().zip(&view.sections) {
        let home = all().find(|m| !old.range().is_empty() && old.is_alloc() && m.from.contains(old.range()));
        let Some(home) = home else { continue };
        section.offset = home.offset(old.offset);
        section.addr = home.to_addr + (old.offset - home.from.start);
        if let Some((_, size)) = sizes.iter().find(|(range, _)| *range == home.from && *range == old.range()) {
            section.size = *size;
        }
    }
    for (segment, old) in draft.segments.iter_mut().zip(&view.segments) {
        let home = all().find(|m| !old.is_load() && old.filesz > 0 && m.from.contains(old.range()));
        let Some(home) = home else { continue };
        segment.offset = home.offset(old.offset);
        segment.vaddr = home.to_addr + (old.offset - home.from.start);
        segment.paddr = segment.vaddr;
        if old.kind == elf::PT_DYNAMIC && dynamic_move.is_some() {
            segment.filesz = new_capacity as u64 * view.bytes.form.dynamic_size();
            segment.memsz = segment.filesz;
        }
        if old.kind == elf::PT_INTERP && home.from == replaced.range {
            segment.filesz = replaced_len;
            segment.memsz = segment.filesz;
        }
    }

    // The bytes.
    let mut copies = Vec::new();
    for m in moves.iter() {
        let bytes =
            if m.from == replaced.range { Cow::Borrowed(replaced.bytes) } else { Cow::Owned(draft.get(m.from)?) };
        copies.push((m.to, bytes));
    }
    for m in moves.iter() {
        draft.zero(m.from)?;
    }
    if let Some(m) = &dynamic_move {
        draft.zero(m.from)?;
        copies.push((m.to, Cow::Owned(encode_dynamic(view, dynamic, &entries, m.to_addr, new_capacity)?)));
        patch_got(draft, dynamic, m)?;
    } else {
        draft.put_dynamic(&entries)?;
    }
    new.open(draft)?;
    for (to, bytes) in copies {
        if to < draft.cut {
            draft.put(to, &bytes)?;
        } else {
            let place = slice_mut(&mut draft.inserted, to - draft.cut, bytes.len() as u64);
            let what = "a table outside the new segment";
            place.ok_or(ElfError::SelfCheck { what, at: to })?.copy_from_slice(&bytes);
        }
        if let Cow::Owned(bytes) = bytes {
            draft.spares.give(bytes);
        }
    }
    // The loader writes to .dynamic, except on machines where the linker puts it where nobody may (MIPS).
    let writable = dynamic_move.is_some() && {
        let mut loads = view.segments.iter().filter(|segment| segment.is_load());
        loads.any(|load| load.range().contains(dynamic.range) && load.flags & elf::PF_W.0 != 0)
    };
    new.add_header(draft, writable);
    Ok(())
}

/// Files whose layout is recorded where we do not look.
fn refuse_oddities(view: &View<'_>, dynamic: &Dynamic, strings: Strings) -> Result<(), ElfError> {
    if dynamic.get(elf::DT_GNU_PRELINKED).is_some() || dynamic.get(elf::DT_GNU_CONFLICT).is_some() {
        return Err(ElfError::Unsupported(Refusal::Prelinked));
    }
    if view.segments.len() >= 0xfffe {
        return Err(ElfError::Unsupported(Refusal::ManyProgramHeaders));
    }
    for section in &view.sections {
        if section.is_alloc() && section.kind == elf::SHT_STRTAB && section.addr == strings.addr {
            if section.range() != strings.range {
                return Err(ElfError::Unsupported(Refusal::Disagreement(section.offset)));
            }
        } else if section.range().overlaps(strings.range) {
            return Err(ElfError::Unsupported(Refusal::Overlap(section.offset)));
        }
    }
    Ok(())
}

/// The `PT_LOAD` with the highest addresses.
fn last_load(view: &View<'_>) -> Result<usize, ElfError> {
    let loads = view.segments.iter().enumerate().filter(|(_, segment)| segment.is_load());
    let last = loads.max_by_key(|(_, segment)| segment.vaddr.saturating_add(segment.memsz));
    last.map(|(index, _)| index).ok_or(ElfError::Unmapped { what: "the file", address: 0, length: 0 })
}

/// Whether the last segment, in memory and in the file, ends in `.dynstr`.
fn ends_with(draft: &Draft<'_>, last: usize, strings: Strings) -> bool {
    draft.view.segments.get(last).is_some_and(|load| {
        load.filesz == load.memsz
            && load.range().end == strings.range.end
            && load.vaddr.saturating_add(load.filesz) == strings.addr.saturating_add(strings.range.len())
            && strings.range.end == draft.cut
    })
}

/// Grows the last segment, which ends in `.dynstr`.
fn extend(
    draft: &mut Draft<'_>,
    last: usize,
    strings: Strings,
    mut entries: Vec<Entry>,
    table: &[u8],
) -> Result<(), ElfError> {
    let (length, old) = (table.len() as u64, strings.range.len());
    for entry in entries.iter_mut().filter(|entry| entry.tag == elf::DT_STRSZ) {
        entry.value = length;
    }
    for section in draft.sections.iter_mut().filter(|section| section.range() == strings.range && section.is_alloc()) {
        section.size = length;
    }
    if let Some(load) = draft.segments.get_mut(last) {
        load.filesz += length - old;
        load.memsz += length - old;
        if load.vaddr + load.memsz > draft.view.bytes.form.address_limit() {
            return Err(ElfError::Unsupported(Refusal::AddressSpace));
        }
    }
    let kept = usize::try_from(old).unwrap_or(usize::MAX);
    let (head, added) = table.split_at_checked(kept).unwrap_or((table, &[]));
    draft.put(strings.range.start, head)?;
    draft.put_dynamic(&entries)?;
    let align = tail_align(draft.view, draft.cut);
    let size = added.len().next_multiple_of(usize::try_from(align).unwrap_or(1));
    let mut inserted = draft.spares.take(size);
    inserted.extend_from_slice(added);
    inserted.resize(size, 0);
    draft.inserted = inserted;
    Ok(())
}

/// The largest alignment of what stands in the tail: it moves by a multiple of that.
fn tail_align(view: &View<'_>, cut: u64) -> u64 {
    let tail = view.sections.iter().filter(|section| section.offset >= cut && !section.range().is_empty());
    let aligns = tail.map(|section| section.align).filter(|align| align.is_power_of_two() && *align <= 4096);
    aligns.chain([8]).max().unwrap_or(8)
}

/// The new `PT_LOAD` while it is being filled.
struct NewSegment {
    start: u64,
    vaddr: u64,
    align: u64,
    length: u64,
    limit: u64,
}

impl NewSegment {
    fn new(draft: &Draft<'_>) -> Result<Self, ElfError> {
        let view = draft.view;
        let space = ElfError::Unsupported(Refusal::AddressSpace);
        let loads = || view.segments.iter().filter(|segment| segment.is_load());
        // The alignment that the linker chose is the largest page size that the file may meet.
        let align = loads().map(|load| load.align).max().unwrap_or(1).max(page_size(view.header.machine));
        if !align.is_power_of_two() || align > 1 << 30 {
            return Err(ElfError::Unsupported(Refusal::Alignment(align)));
        }
        let end = loads().filter_map(|load| load.vaddr.checked_add(load.memsz)).max().unwrap_or_default();
        let end = end.checked_add(largest_symbol(view)?).ok_or(space.clone())?;
        let start = align_up(draft.cut, 16).ok_or(space.clone())?;
        // Offset and address must agree below the page size, so that the file can be mapped there.
        let vaddr = align_up(end, align).and_then(|page| page.checked_add(start & (align - 1))).ok_or(space)?;
        Ok(Self { start, vaddr, align, length: 0, limit: view.bytes.form.address_limit() })
    }

    /// Reserves room; its offset and address.
    fn take(&mut self, length: u64, align: u64) -> Result<(u64, u64), ElfError> {
        let space = ElfError::Unsupported(Refusal::AddressSpace);
        let at = align_up(self.vaddr + self.length, align).ok_or(space.clone())? - self.vaddr;
        let end = at.checked_add(length).filter(|end| self.vaddr.saturating_add(*end) <= self.limit);
        self.length = end.ok_or(space)?;
        Ok((self.start + at, self.vaddr + at))
    }

    /// Lets the segment's bytes, still zero, into the file.
    fn open(&self, draft: &mut Draft<'_>) -> Result<(), ElfError> {
        let size = align_up(self.start - draft.cut + self.length, tail_align(draft.view, draft.cut));
        let size = size.and_then(|size| usize::try_from(size).ok());
        draft.inserted = draft.spares.zeros(size.ok_or(ElfError::Unsupported(Refusal::AddressSpace))?);
        Ok(())
    }

    /// Adds its program header behind the last `PT_LOAD`: they must be in the order of their addresses.
    fn add_header(&self, draft: &mut Draft<'_>, writable: bool) {
        let header = Segment {
            kind: elf::PT_LOAD,
            flags: if writable { elf::PF_R.0 | elf::PF_W.0 } else { elf::PF_R.0 },
            offset: self.start,
            vaddr: self.vaddr,
            paddr: self.vaddr,
            filesz: self.length,
            memsz: self.length,
            align: self.align,
        };
        let unused = draft.segments.iter().position(|segment| segment.kind == elf::PT_NULL);
        if let Some(unused) = unused {
            draft.segments.remove(unused);
        }
        let at = draft.segments.iter().rposition(Segment::is_load).map_or(0, |index| index + 1);
        draft.segments.insert(at, header);
        let size = draft.segments.len() as u64 * draft.view.bytes.form.segment_size();
        for table in draft.segments.iter_mut().filter(|segment| segment.kind == elf::PT_PHDR) {
            table.filesz = size;
            table.memsz = size;
        }
    }
}

/// A distance to keep from the other segments. `eu-elflint` takes a relocation to write as many bytes as its symbol is
/// large, and complains if that reaches into a segment that cannot be written. Addresses cost nothing; bytes would.
fn largest_symbol(view: &View<'_>) -> Result<u64, ElfError> {
    let limit = match view.bytes.form.class {
        Class::Elf32 => 1 << 20,
        Class::Elf64 => 16 << 20,
    };
    let Some(symbols) = view.dynsym()? else { return Ok(0) };
    let largest = view.symbols(symbols)?.map(|symbol| symbol.size).max();
    Ok(largest.unwrap_or(0).min(limit))
}

/// The largest page size of the systems that run on a machine.
fn page_size(machine: u16) -> u64 {
    match elf::Machine(machine) {
        elf::EM_AARCH64 | elf::EM_PPC | elf::EM_PPC64 | elf::EM_MIPS | elf::EM_LOONGARCH | elf::EM_IA_64 => 64 << 10,
        elf::EM_SPARC | elf::EM_SPARCV9 | elf::EM_ALPHA => 8 << 10,
        _ => 4 << 10,
    }
}
