//! Drops what is never loaded and only debuggers read.
//!
//! Only the tail of the file is laid anew: every loaded byte stays where it is. Numbers that count sections are
//! corrected in what refers to them; numbers that count symbols too, where the symbol table is kept.

use object::elf;

use super::draft::Draft;
use super::edit::Strip;
use super::error::{ElfError, Refusal};
use super::raw::{Class, Section, Writer};
use super::symbols::{Symbol, SymbolFields};
use super::view::{View, string_at};

/// What to drop.
#[derive(Debug)]
pub(super) struct Plan {
    dropped: Vec<bool>,
}

pub(super) fn plan(view: &View<'_>, strip: Strip) -> Result<Option<Plan>, ElfError> {
    if strip == Strip::Keep || view.sections.is_empty() {
        return Ok(None);
    }
    let mut dropped = vec![false; view.sections.len()];
    let at = |index: u32| usize::try_from(index).unwrap_or(usize::MAX);
    for (section, drop) in view.sections.iter().zip(&mut dropped) {
        *drop = !section.is_alloc() && section.kind != elf::SHT_NULL && is_debug(view, section, strip)?;
    }
    // What belongs to a dropped section goes with it: relocations, and the strings of a symbol table.
    for (index, section) in view.sections.iter().enumerate() {
        let is = |index: u32| dropped.get(at(index)).copied().unwrap_or(false);
        let relocations = matches!(section.kind, elf::SHT_REL | elf::SHT_RELA)
            && !section.is_alloc()
            && (is(section.info) || is(section.link));
        let indexes = section.kind == elf::SHT_SYMTAB_SHNDX && is(section.link);
        if (relocations || indexes)
            && let Some(drop) = dropped.get_mut(index)
        {
            *drop = true;
        }
    }
    for (index, section) in view.sections.iter().enumerate() {
        if section.kind != elf::SHT_STRTAB || section.is_alloc() || view.header.shstrndx == index as u64 {
            continue;
        }
        let users = || view.sections.iter().zip(&dropped).filter(|(user, _)| at(user.link) == index);
        let orphan = users().next().is_some() && users().all(|(_, dropped)| *dropped);
        if orphan && let Some(drop) = dropped.get_mut(index) {
            *drop = true;
        }
    }
    for (section, _) in view.sections.iter().zip(&dropped).filter(|(_, dropped)| **dropped) {
        let loaded = view.segments.iter().any(|segment| segment.range().overlaps(section.range()));
        if loaded {
            return Err(ElfError::Unsupported(Refusal::LoadedDebug(section.offset)));
        }
    }
    let plan = Plan { dropped };
    let nothing = !plan.dropped.contains(&true) && !plan.drops_symbols(view)?;
    Ok((!nothing).then_some(plan))
}

/// By name, as GNU `strip` does: the format has no flag for it.
fn is_debug(view: &View<'_>, section: &Section, strip: Strip) -> Result<bool, ElfError> {
    const PREFIXES: [&[u8]; 5] = [b".debug", b".zdebug", b".stab", b".gnu.debuglto_", b".gnu.linkonce.wi."];
    const NAMES: [&[u8]; 4] = [b".line", b".gdb_index", b".gnu_debuglink", b".gnu_debugaltlink"];
    let name = view.section_name(section)?;
    let debug = PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name);
    let symbols = section.kind == elf::SHT_SYMTAB || name == b".gnu_debugdata";
    Ok(debug || (strip == Strip::All && symbols))
}

impl Plan {
    fn is_dropped(&self, index: u16) -> bool {
        index < elf::SHN_LORESERVE && self.dropped.get(usize::from(index)).copied().unwrap_or(false)
    }

    /// Names of source files, and what is defined in a dropped section.
    fn drops(&self, symbol: Symbol) -> bool {
        symbol.symbol_type() == elf::STT_FILE.0 || self.is_dropped(symbol.shndx)
    }

    fn drops_symbols(&self, view: &View<'_>) -> Result<bool, ElfError> {
        for (section, dropped) in view.sections.iter().zip(&self.dropped) {
            if section.kind == elf::SHT_SYMTAB
                && !dropped
                && view.symbols(section.range())?.skip(1).any(|symbol| self.drops(symbol))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

pub(super) fn apply(draft: &mut Draft<'_>, plan: &Plan) -> Result<(), ElfError> {
    let view = draft.view;
    let mut next = 0_u32;
    let mut map = Vec::with_capacity(plan.dropped.len());
    for dropped in &plan.dropped {
        map.push((!dropped).then_some(next));
        next += u32::from(!dropped);
    }
    // Dropped bytes in front of the tail cannot close up.
    for (index, section) in view.sections.iter().enumerate() {
        if plan.dropped.get(index) == Some(&true) && !draft.in_tail(index) && !section.range().is_empty() {
            draft.zero(section.range())?;
        }
    }
    if view.sections.iter().any(|section| section.offset < draft.cut && section.range().end > draft.cut) {
        return Err(ElfError::SelfCheck { what: "a section on both sides of the cut", at: draft.cut });
    }

    for (index, section) in view.sections.iter().enumerate() {
        match section.kind {
            elf::SHT_SYMTAB if plan.dropped.get(index) == Some(&false) => filter_symbols(draft, plan, &map, index)?,
            elf::SHT_DYNSYM => renumber_in_place(draft, &map, index)?,
            _ => {}
        }
    }
    pack_names(draft, plan)?;

    let renumber = |index: u32| {
        usize::try_from(index).ok().and_then(|index| map.get(index).copied()).unwrap_or(Some(index)).unwrap_or(0)
    };
    for (old, section) in view.sections.iter().zip(&mut draft.sections).skip(1) {
        section.link = renumber(old.link);
        let counts_sections = matches!(old.kind, elf::SHT_REL | elf::SHT_RELA) || old.flags & elf::SHF_INFO_LINK.0 != 0;
        if counts_sections {
            section.info = renumber(old.info);
        }
    }
    draft.renumbered = Some(map);
    Ok(())
}

/// What a section number becomes.
fn new_index(map: &[Option<u32>], index: u16) -> Option<u16> {
    if index == 0 || index >= elf::SHN_LORESERVE {
        return Some(index);
    }
    map.get(usize::from(index)).copied().flatten().and_then(|index| u16::try_from(index).ok())
}

fn half(draft: &Draft<'_>, value: u16) -> Result<Vec<u8>, ElfError> {
    let mut bytes = Writer::new(draft.view.bytes.form);
    bytes.u16(value);
    bytes.finish()
}

/// `.dynsym` is loaded and stays where it is, but counts sections too.
fn renumber_in_place(draft: &mut Draft<'_>, map: &[Option<u32>], index: usize) -> Result<(), ElfError> {
    let view = draft.view;
    let Some(section) = view.sections.get(index) else { return Ok(()) };
    let SymbolFields { shndx, .. } = Symbol::fields(view.bytes.form);
    let moved = draft.sections.get(index).map_or(section.offset, |section| section.offset);
    for (index, symbol) in (0_u64..).zip(view.symbols(section.range())?) {
        let old = symbol.shndx;
        let new = new_index(map, old).ok_or(ElfError::Unsupported(Refusal::SymbolUser(section.offset)))?;
        if new == old {
            continue;
        }
        let at = moved + index * view.bytes.form.symbol_size() + shndx as u64;
        let bytes = half(draft, new)?;
        if at < draft.cut {
            draft.put(at, &bytes)?;
        } else {
            let place = super::raw::slice_mut(&mut draft.inserted, at - draft.cut, bytes.len() as u64);
            let what = "a symbol outside the new segment";
            place.ok_or(ElfError::SelfCheck { what, at })?.copy_from_slice(&bytes);
        }
    }
    Ok(())
}

/// Drops symbols, and corrects what counts symbols.
fn filter_symbols(draft: &mut Draft<'_>, plan: &Plan, map: &[Option<u32>], index: usize) -> Result<(), ElfError> {
    let view = draft.view;
    let Some(section) = view.sections.get(index) else { return Ok(()) };
    let refuse = || ElfError::Unsupported(Refusal::SymbolUser(section.offset));
    let size = usize::try_from(view.bytes.form.symbol_size()).unwrap_or(24);
    let SymbolFields { shndx, .. } = Symbol::fields(view.bytes.form);
    if !draft.is_loose(index) {
        return Err(refuse());
    }
    let original = match draft.contents.get(&index) {
        Some(contents) => contents.clone(),
        None => view.contents(section)?.to_vec(),
    };
    let mut kept = Vec::with_capacity(original.len());
    let mut numbers = Vec::new();
    let mut locals = 0_u32;
    for ((position, symbol), record) in view.symbols(section.range())?.enumerate().zip(original.chunks_exact(size)) {
        if position > 0 && plan.drops(symbol) {
            numbers.push(None);
            continue;
        }
        numbers.push(u32::try_from(kept.len() / size).ok());
        locals += u32::from(symbol.is_local());
        let start = kept.len();
        kept.extend_from_slice(record);
        let new = new_index(map, symbol.shndx).ok_or_else(refuse)?;
        if new != symbol.shndx {
            let bytes = half(draft, new)?;
            if let Some(place) = kept.get_mut(start + shndx..start + shndx + bytes.len()) {
                place.copy_from_slice(&bytes);
            }
        }
    }
    let fewer = kept.len() != original.len();
    draft.contents.insert(index, kept);
    if let Some(section) = draft.sections.get_mut(index) {
        section.info = locals;
    }
    if !fewer {
        return Ok(());
    }
    for (user, other) in view.sections.iter().enumerate() {
        let uses = usize::try_from(other.link).is_ok_and(|link| link == index);
        if !uses || plan.dropped.get(user) == Some(&true) {
            continue;
        }
        let refuse = ElfError::Unsupported(Refusal::SymbolUser(other.offset));
        if !matches!(other.kind, elf::SHT_REL | elf::SHT_RELA) {
            return Err(refuse);
        }
        let contents = renumber_relocations(view, other, &numbers)?;
        if draft.is_loose(user) {
            draft.contents.insert(user, contents);
        } else if contents != view.contents(other)? {
            // Loaded relocations that name unloaded symbols: static programs have such tables, but with number 0 only.
            return Err(refuse);
        }
    }
    Ok(())
}

/// Relocations that were kept for later tools (`ld --emit-relocs`) name symbols by number.
fn renumber_relocations(view: &View<'_>, section: &Section, numbers: &[Option<u32>]) -> Result<Vec<u8>, ElfError> {
    let refuse = ElfError::Unsupported(Refusal::SymbolUser(section.offset));
    let form = view.bytes.form;
    if view.header.machine == elf::EM_MIPS.0 && form.class == Class::Elf64 {
        return Err(refuse); // its r_info has a layout of its own
    }
    let words = if section.kind == elf::SHT_RELA { 3 } else { 2 };
    let size = words * form.word();
    let mut contents = view.contents(section)?.to_vec();
    for index in 0..section.size / size {
        let at = index * size + form.word();
        let info = view.bytes.word("relocation", section.offset + at)?;
        let shift = if form.class == Class::Elf64 { 32 } else { 8 };
        let old = usize::try_from(info >> shift).unwrap_or(usize::MAX);
        let new = numbers.get(old).copied().flatten().ok_or_else(|| refuse.clone())?;
        let mut bytes = Writer::new(form);
        bytes.word((u64::from(new) << shift) | (info & ((1 << shift) - 1)));
        let bytes = bytes.finish()?;
        if let Some(place) = super::raw::slice_mut(&mut contents, at, bytes.len() as u64) {
            place.copy_from_slice(&bytes);
        }
    }
    Ok(contents)
}

/// Rewrites the string tables of the tail with the names that are still used: a dropped name may hold a path.
fn pack_names(draft: &mut Draft<'_>, plan: &Plan) -> Result<(), ElfError> {
    let view = draft.view;
    let size = usize::try_from(view.bytes.form.symbol_size()).unwrap_or(24);
    for (index, table) in view.sections.iter().enumerate() {
        let is_kept = |index: usize| plan.dropped.get(index) == Some(&false);
        if table.kind != elf::SHT_STRTAB || !is_kept(index) || !draft.is_loose(index) {
            continue;
        }
        let users: Vec<usize> = (0..view.sections.len())
            .filter(|user| is_kept(*user))
            .filter(|user| view.sections.get(*user).is_some_and(|user| usize::try_from(user.link) == Ok(index)))
            .collect();
        let names_sections = view.header.shstrndx == index as u64;
        let understood = |user: &usize| draft.contents.contains_key(user);
        if !users.iter().all(understood) || (users.is_empty() && !names_sections) {
            continue;
        }
        let mut used = vec![0_u32];
        if names_sections {
            let kept = view.sections.iter().enumerate().filter(|(index, _)| is_kept(*index));
            used.extend(kept.map(|(_, section)| section.name));
        }
        for user in &users {
            let contents = draft.contents.get(user).map(Vec::as_slice).unwrap_or_default();
            used.extend(contents.chunks_exact(size).map(|record| name_of(view, record)));
        }
        used.sort_unstable();
        used.dedup();
        let packed = Packed::new(view.contents(table)?, &used, table.offset)?;
        if names_sections {
            for (section, old) in draft.sections.iter_mut().zip(&view.sections) {
                section.name = packed.place(old.name);
            }
        }
        for user in &users {
            let Some(contents) = draft.contents.get_mut(user) else { continue };
            for record in contents.chunks_exact_mut(size) {
                let mut bytes = Writer::new(view.bytes.form);
                bytes.u32(packed.place(name_of(view, record)));
                if let Some(place) = record.get_mut(..4) {
                    place.copy_from_slice(&bytes.finish()?);
                }
            }
        }
        draft.contents.insert(index, packed.bytes);
    }
    Ok(())
}

/// `st_name`, the first field of a symbol in either class.
fn name_of(view: &View<'_>, record: &[u8]) -> u32 {
    super::raw::Bytes { data: super::parts::Data::Whole(record), form: view.bytes.form }
        .u32("symbol", 0)
        .unwrap_or_default()
}

/// A string table with only the strings that are used. Strings that shared bytes still do.
struct Packed {
    bytes: Vec<u8>,
    /// Old and new offset, sorted.
    places: Vec<(u32, u32)>,
}

impl Packed {
    fn new(table: &[u8], used: &[u32], table_at: u64) -> Result<Self, ElfError> {
        let mut bytes = vec![0];
        let mut places = Vec::with_capacity(used.len());
        // The last string copied: where it was, where it ends, where it is.
        let (mut from, mut end, mut to) = (0, 1, 0);
        for old in used {
            let at = u64::from(*old);
            if at >= end || (at == 0 && table.first() != Some(&0)) {
                let text = string_at(table, "symbol name", at, table_at)?;
                (from, end, to) = (at, at + text.len() as u64 + 1, bytes.len() as u64);
                bytes.extend_from_slice(text);
                bytes.push(0);
            }
            let place = u32::try_from(to + (at - from));
            places.push((*old, place.map_err(|_| ElfError::TooMuch { what: "symbol names", limit: 1 << 32 })?));
        }
        Ok(Self { bytes, places })
    }

    fn place(&self, old: u32) -> u32 {
        match self.places.binary_search_by_key(&old, |(old, _)| *old) {
            Ok(index) => self.places.get(index).map_or(0, |(_, new)| *new),
            Err(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Packed;

    #[test]
    fn names_are_packed_and_keep_sharing() {
        let table = b"\0/build/x.c\0printf\0unused\0main\0";
        // "printf", "f" inside it, "main" and the empty name
        let packed = Packed::new(table, &[0, 12, 17, 26], 0).unwrap();
        assert_eq!(packed.bytes, b"\0printf\0main\0");
        assert_eq!([0, 12, 17, 26].map(|old| packed.place(old)), [0, 1, 6, 8]);
    }

    #[test]
    fn names_outside_the_table_are_errors() {
        assert!(Packed::new(b"\0a", &[0, 1], 0).is_err());
        assert!(Packed::new(b"\0a\0", &[0, 9], 0).is_err());
    }
}
