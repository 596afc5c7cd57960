//! Reads an edited file again and compares it with the original: a mistake becomes an error instead of a broken file.
//!
//! Two readers look at it: our own, for everything that may not change, and `goblin`'s, which shares no code with the
//! one that made the edit. What is compared:
//!
//! - the memory image: every old `PT_LOAD` is still there, with the same bytes but for the ranges that the edit names;
//! - what the loader reads: every dynamic entry, symbol, hash table, version, note and the interpreter;
//! - every string of `.dynstr` that anything but a search path uses;
//! - the sections that were kept, and that no two things share bytes that did not before.

use goblin::elf::program_header::ProgramHeader;
use goblin::elf::section_header::SectionHeader;
use object::elf::{self, DynamicTag};

use super::edit::{Edit, SearchPath, Strip};
use super::error::ElfError;
use super::moves::is_table;
use super::names::{Names, bare, is_name};
use super::parse::{Elf, describe, is_static};
use super::parts::Data;
use super::raw::{Range, Section, Segment};
use super::symbols::Symbol;
use super::versions::Versions;
use super::view::{Dynamic, Entry, View, string_at};

fn fail(what: &'static str, at: u64) -> ElfError {
    ElfError::SelfCheck { what, at }
}

fn expect(good: bool, what: &'static str, at: u64) -> Result<(), ElfError> {
    if good { Ok(()) } else { Err(fail(what, at)) }
}

/// What is wrong with the new file; or, if only parts of the old one are known, what else must be.
fn unreadable(error: ElfError, what: &'static str) -> ElfError {
    if matches!(error, ElfError::NotRead { .. }) { error } else { fail(what, 0) }
}

/// What was asked for.
pub(super) struct Asked<'e> {
    pub edit: &'e Edit,
    pub interpreter: Option<&'e [u8]>,
    /// What the original says about itself.
    pub before: Elf,
}

/// Compares `bytes` with the file that it was made from. `touched` are the ranges of the original that were changed.
pub(super) fn check(old: &View<'_>, bytes: Data<'_>, mut asked: Asked<'_>, touched: &[Range]) -> Result<(), ElfError> {
    let new = View::read(bytes).map_err(|e| unreadable(e, "it cannot be read"))?;
    let new = &new;
    let edit = asked.edit;
    same_description(old, new, &mut asked)?;
    same_headers(old, new)?;
    same_dynamic(old, new, edit)?;
    same_image(old, new, &asked, touched)?;
    if let (Some(before), Some(after)) = (&old.dynamic, &new.dynamic) {
        let names = Names::plan(old, before, edit.bare_below.as_deref())?;
        same_tables((old, before), (new, after), &names)?;
        same_strings(old, new, before, &names)?;
    }
    same_sections(old, new, edit.strip)?;
    no_new_overlap(old, new)?;
    goblin_agrees(new)
}

/// Everything that [`parse()`](super::parse()) shows, apart from what was asked for.
fn same_description(old: &View<'_>, new: &View<'_>, asked: &mut Asked<'_>) -> Result<(), ElfError> {
    let (edit, before) = (asked.edit, &mut asked.before);
    let after = describe(new).map_err(|e| unreadable(e, "its dynamic section cannot be read"))?;
    let needs_nothing = before.needed.is_empty() && before.interpreter.is_none();
    let wanted = match &edit.search_path {
        _ if !before.has_dynamic || is_static(old) => (before.rpath.clone(), before.runpath.clone()),
        SearchPath::Keep => (before.rpath.clone(), before.runpath.clone()),
        _ if needs_nothing => (None, None),
        SearchPath::Remove => (None, None),
        SearchPath::Rpath(path) => (Some(path.clone()), None),
        SearchPath::Runpath(path) => (None, Some(path.clone())),
    };
    expect((after.rpath.clone(), after.runpath.clone()) == wanted, "the search path is not what was asked for", 0)?;
    let paths = |view: &View<'_>| {
        let entries = view.dynamic.iter().flat_map(|dynamic| &dynamic.entries);
        entries.filter(|entry| is_path(entry.tag)).count()
    };
    let changed = edit.search_path != SearchPath::Keep && before.has_dynamic && !is_static(old);
    expect(!changed || paths(new) <= 1, "more than one search path", 0)?;
    if let Some(folder) = edit.bare_below.as_deref().filter(|_| before.has_dynamic && !is_static(old)) {
        let needs = before.version_needs.iter_mut().map(|need| &mut need.library);
        for name in before.needed.iter_mut().chain(&mut before.soname).chain(needs) {
            if let Some(file) = bare(name, folder) {
                *name = file.to_vec();
            }
        }
    }
    if let Some(interpreter) = asked.interpreter {
        before.interpreter = Some(interpreter.to_vec());
    }
    expect(!(after.has_debug && edit.strip != Strip::Keep), "debug sections are left", 0)?;
    expect(!(after.has_symtab && edit.strip == Strip::All), "a symbol table is left", 0)?;
    (before.rpath, before.runpath) = (after.rpath.clone(), after.runpath.clone());
    (before.has_debug, before.has_symtab) = (after.has_debug, after.has_symtab);
    expect(*before == after, "the description differs", 0)
}

fn same_headers(old: &View<'_>, new: &View<'_>) -> Result<(), ElfError> {
    let (a, b) = (&old.header, &new.header);
    let same = (a.kind, a.machine, a.entry, a.flags, a.phoff) == (b.kind, b.machine, b.entry, b.flags, b.phoff);
    expect(same && old.bytes.form == new.bytes.form, "the ELF header differs", 0)
}

const fn is_path(tag: DynamicTag) -> bool {
    matches!(tag, elf::DT_RPATH | elf::DT_RUNPATH)
}

/// The other entries, in their order. Pointers to tables may differ: [`same_tables`] follows them.
fn same_dynamic(old: &View<'_>, new: &View<'_>, edit: &Edit) -> Result<(), ElfError> {
    let entries = |view: &View<'_>| -> Vec<Entry> {
        let entries = view.dynamic.iter().flat_map(|dynamic| dynamic.entries.iter().copied());
        let neutral = |entry: Entry| match entry.tag {
            elf::DT_STRSZ | elf::DT_MIPS_RLD_MAP_REL => Entry { value: 0, ..entry },
            tag if is_table(tag) => Entry { value: 0, ..entry },
            // What they say now was compared as text.
            tag if is_name(tag) && edit.bare_below.is_some() => Entry { value: 0, ..entry },
            _ => entry,
        };
        entries.filter(|entry| !is_path(entry.tag)).map(neutral).collect()
    };
    let (before, after) = (entries(old), entries(new));
    let differs = before.iter().zip(&after).position(|(a, b)| a != b);
    let at = differs.map_or(0, |index| index as u64);
    expect(before == after, "a dynamic entry differs", at)?;
    // The padding keeps PT_DYNAMIC and the section of one size.
    let sizes = |view: &View<'_>| {
        let section = view.section_of_kind(elf::SHT_DYNAMIC).map(|(_, section)| section.size);
        (section, view.segment(elf::PT_DYNAMIC).map(|segment| segment.filesz))
    };
    let agree = |(section, segment): (Option<u64>, Option<u64>)| section.is_none() || section == segment;
    expect(agree(sizes(new)) || !agree(sizes(old)), "PT_DYNAMIC and .dynamic disagree", 0)
}

/// Every old `PT_LOAD` with its bytes; at most one more, behind all others.
fn same_image(old: &View<'_>, new: &View<'_>, asked: &Asked<'_>, touched: &[Range]) -> Result<(), ElfError> {
    let loads = |view: &View<'_>| -> Vec<Segment> { view.segments.iter().copied().filter(Segment::is_load).collect() };
    let (before, after) = (loads(old), loads(new));
    expect(after.len() <= before.len() + 1 && after.len() >= before.len(), "the number of PT_LOADs", 0)?;
    let image_end = before.iter().map(|load| load.vaddr.saturating_add(load.memsz)).max().unwrap_or(0);
    let mut touched = touched.to_vec();
    touched.sort_unstable();
    for (a, b) in before.iter().zip(&after) {
        let grown = Segment { filesz: b.filesz, memsz: b.memsz, ..*a };
        let may_grow = a.vaddr.saturating_add(a.memsz) == image_end && a.filesz == a.memsz && b.filesz == b.memsz;
        expect(a == b || (may_grow && grown == *b && b.filesz > a.filesz), "a PT_LOAD differs", a.offset)?;
        let what = "PT_LOAD";
        new.bytes.has(what, b.offset, a.filesz)?;
        // Compare between the touched ranges.
        let mut at = a.offset;
        let end = a.range().end;
        for range in touched.iter().chain([&Range { start: end, end }]) {
            let stop = range.start.clamp(at, end);
            // What nobody read was copied.
            for part in old.bytes.data.known(Range { start: at, end: stop }) {
                let new_at = b.offset + (part.start - a.offset);
                let (x, y) =
                    (old.bytes.slice(what, part.start, part.len())?, new.bytes.slice(what, new_at, part.len())?);
                expect(x == y, "loaded bytes differ", part.start)?;
            }
            at = at.max(range.end.min(end));
        }
    }
    if let Some(added) = after.get(before.len()) {
        let pages = |load: &Segment| load.vaddr & !(load.align.max(1) - 1);
        expect(pages(added) >= image_end, "the new PT_LOAD overlaps another", added.vaddr)?;
        expect(added.align.is_power_of_two(), "the new PT_LOAD's alignment", added.align)?;
        let agree = added.vaddr.wrapping_sub(added.offset) & (added.align - 1) == 0;
        expect(agree, "the new PT_LOAD cannot be mapped", added.offset)?;
        expect(added.flags & elf::PF_X.0 == 0, "the new PT_LOAD is executable", added.offset)?;
        let mut order = new.segments.iter().filter(|segment| segment.is_load());
        expect(order.next_back() == Some(added), "the new PT_LOAD is not the last", added.offset)?;
    }
    // Other headers: the same kinds in the same order, of the same size unless they describe what grew.
    let others = |view: &View<'_>| -> Vec<Segment> {
        let kinds = view.segments.iter().filter(|segment| !segment.is_load() && segment.kind != elf::PT_NULL);
        kinds.copied().collect()
    };
    let (before, after) = (others(old), others(new));
    expect(before.len() == after.len(), "the number of program headers", 0)?;
    for (a, b) in before.iter().zip(&after) {
        let replaced = a.kind == elf::PT_INTERP && asked.interpreter.is_some();
        let may_grow = matches!(a.kind, elf::PT_PHDR | elf::PT_DYNAMIC) || replaced;
        let same = (a.kind, a.flags, a.align) == (b.kind, b.flags, b.align);
        let sizes = (a.filesz, a.memsz) == (b.filesz, b.memsz) || (may_grow && b.filesz >= a.filesz);
        expect(same && sizes, "a program header differs", a.offset)?;
        // What the interpreter is now is part of the description, which was compared.
        if matches!(a.kind, elf::PT_INTERP | elf::PT_NOTE | elf::PT_GNU_PROPERTY) && !replaced {
            let what = "note";
            let bytes = (old.bytes.slice(what, a.offset, a.filesz)?, new.bytes.slice(what, b.offset, b.filesz)?);
            expect(bytes.0 == bytes.1, "a note or the interpreter differs", a.offset)?;
        }
        // Whoever finds it by address finds what stands at the offset.
        if matches!(a.kind, elf::PT_INTERP | elf::PT_NOTE | elf::PT_GNU_PROPERTY | elf::PT_DYNAMIC) && b.filesz > 0 {
            let was_loaded = old.mapped("segment", a.vaddr, a.filesz).ok() == Some(a.range());
            let is_loaded = new.mapped("segment", b.vaddr, b.filesz).ok() == Some(b.range());
            expect(is_loaded || !was_loaded, "a segment is not loaded where it says", b.offset)?;
        }
        if b.kind == elf::PT_PHDR {
            expect(b.range() == new.segment_table(), "PT_PHDR is not the program headers", b.offset)?;
        }
    }
    // The program headers must not lie over anything, and be loaded if they were.
    let (table, mapped) = (new.segment_table(), |view: &View<'_>, table: Range| {
        view.segments.iter().any(|segment| segment.is_load() && segment.range().contains(table))
    });
    expect(mapped(new, table) || !mapped(old, old.segment_table()), "program headers are not loaded", table.start)
}

/// The tables behind the dynamic section's pointers.
fn same_tables(
    (old, before): (&View<'_>, &Dynamic),
    (new, after): (&View<'_>, &Dynamic),
    names: &Names,
) -> Result<(), ElfError> {
    let pair = |tag| before.get(tag).zip(after.get(tag));
    let same = |a: Range, b: Range, what| -> Result<(), ElfError> {
        let bytes = (old.bytes.slice(what, a.start, a.len())?, new.bytes.slice(what, b.start, b.len())?);
        expect(bytes.0 == bytes.1, what, a.start)
    };
    if let Some((a, b)) = pair(elf::DT_HASH) {
        same(old.sysv_hash(a)?.0, new.sysv_hash(b)?.0, "DT_HASH differs")?;
    }
    if let Some((a, b)) = pair(elf::DT_GNU_HASH) {
        same(old.gnu_hash(a)?.0, new.gnu_hash(b)?.0, "DT_GNU_HASH differs")?;
    }
    let (Some(a), Some(b)) = (old.dynsym()?, new.dynsym()?) else {
        return expect(old.dynsym()?.is_none() == new.dynsym()?.is_none(), "dynamic symbols got lost", 0);
    };
    let size = old.bytes.form.symbol_size();
    let count = a.len() / size;
    expect(a.len() == b.len(), "the number of dynamic symbols", b.len())?;
    let records = (old.bytes.slice("symbols", a.start, a.len())?, new.bytes.slice("symbols", b.start, b.len())?);
    if records.0 != records.1 {
        // Only the value of a symbol in a moved table, and section numbers, may differ.
        for (index, (a, b)) in (0..).zip(old.symbols(a)?.zip(new.symbols(b)?)) {
            expect((a.name, a.info) == (b.name, b.info), "a dynamic symbol differs", index)?;
            expect((a.shndx == 0) == (b.shndx == 0), "a dynamic symbol differs", index)?;
            let home = old.sections.get(usize::from(a.shndx)).zip(new.sections.get(usize::from(b.shndx)));
            let moved = home.is_some_and(|(a, b)| a.addr != b.addr);
            expect(a.value == b.value || moved, "a dynamic symbol's value differs", index)?;
        }
    }
    if let Some((a, b)) = pair(elf::DT_VERSYM) {
        let what = "DT_VERSYM differs";
        same(old.mapped(what, a, 2 * count)?, new.mapped(what, b, 2 * count)?, what)?;
    }
    for tag in [elf::DT_VERNEED, elf::DT_VERDEF] {
        expect(before.get(tag).is_some() == after.get(tag).is_some(), "a version table got lost", 0)?;
    }
    let (a, b) = (old.versions()?, new.versions()?);
    expect(a.defs == b.defs && a.offsets.len() == b.offsets.len(), "version names differ", 0)?;
    if names.is_empty() {
        return expect(a.offsets == b.offsets, "version names differ", 0);
    }
    // The names of files may have changed, and only they; what those of other files are now was compared as text.
    let files =
        |versions: &Versions<'_>| -> Vec<u64> { versions.files.iter().map(|field| u64::from(field.name)).collect() };
    let wanted: Vec<u64> = files(a).into_iter().map(|offset| names.new_offset(offset)).collect();
    expect(files(b) == wanted, "the names of files in the version tables", 0)?;
    let changed = a.offsets.iter().zip(&b.offsets).filter(|(a, b)| a != b).count();
    expect(changed <= names.words(), "version names differ", 0)
}

/// No byte of `.dynstr` differs that another string than a search path uses.
fn same_strings(old: &View<'_>, new: &View<'_>, dynamic: &Dynamic, changed: &Names) -> Result<(), ElfError> {
    let (before, after) = (old.dynstr()?, new.dynstr()?);
    expect(after.len() >= before.len(), "the dynamic string table shrank", after.len() as u64)?;
    let Some((first, last)) = difference(before, after) else { return Ok(()) };
    // The string that the first difference is in may start earlier.
    let start = memchr::memrchr(0, before.get(..first).unwrap_or_default()).map_or(0, |nul| nul + 1);
    let suspicious = |offset: u64| usize::try_from(offset).is_ok_and(|offset| (start..=last).contains(&offset));
    let same = |offset: u64| -> Result<(), ElfError> {
        let text = |table| string_at(table, "string", offset, 0);
        let equal = !suspicious(offset) || text(before)? == text(after)?;
        expect(equal, "a dynamic string differs", offset)
    };
    let names = [elf::DT_NEEDED, elf::DT_SONAME, elf::DT_AUXILIARY, elf::DT_FILTER, elf::DT_DEPAUDIT, elf::DT_AUDIT];
    for entry in dynamic.entries.iter().filter(|entry| names.contains(&entry.tag)) {
        same(if is_name(entry.tag) { changed.new_offset(entry.value) } else { entry.value })?;
    }
    let versions = old.versions()?;
    let is_file = |offset: u32| versions.files.iter().any(|field| field.name == offset);
    for offset in &versions.offsets {
        same(if is_file(*offset) { changed.new_offset(u64::from(*offset)) } else { u64::from(*offset) })?;
    }
    let Some(symbols) = old.dynsym()? else {
        return expect(false, "strings changed without knowing the symbols", first as u64);
    };
    old.symbols(symbols)?.try_for_each(|symbol| same(u64::from(symbol.name)))
}

/// The first and the last place at which two texts differ, as far as the first goes. In blocks, which are compared at once.
fn difference(a: &[u8], b: &[u8]) -> Option<(usize, usize)> {
    const BLOCK: usize = 256;
    let b = b.get(..a.len())?;
    let mut blocks = a.chunks(BLOCK).zip(b.chunks(BLOCK)).enumerate().filter(|(_, (a, b))| a != b);
    let (first, (x, y)) = blocks.next()?;
    let begin = first * BLOCK + x.iter().zip(y).position(|(x, y)| x != y)?;
    let (last, (x, y)) = blocks.next_back().unwrap_or((first, (x, y)));
    let end = last * BLOCK + x.iter().zip(y).rposition(|(x, y)| x != y)?;
    Some((begin, end))
}

/// The sections that were kept, in their order; only unloaded ones may be missing, and only when stripping.
fn same_sections(old: &View<'_>, new: &View<'_>, strip: Strip) -> Result<(), ElfError> {
    let mut rest = new.sections.iter().enumerate();
    let mut next = rest.next();
    for (index, a) in old.sections.iter().enumerate() {
        let Some((_, b)) = next else {
            expect(strip != Strip::Keep && !a.is_alloc(), "a section got lost", index as u64)?;
            continue;
        };
        let same = (a.kind, a.flags, a.align, a.entsize) == (b.kind, b.flags, b.align, b.entsize)
            && old.section_name(a)? == new.section_name(b)?;
        if !same {
            expect(strip != Strip::Keep && !a.is_alloc(), "a section differs", index as u64)?;
            continue;
        }
        same_section(old, new, a, b, strip)?;
        next = rest.next();
    }
    expect(next.is_none(), "a section too many", next.map_or(0, |(index, _)| index as u64))
}

fn same_section(old: &View<'_>, new: &View<'_>, a: &Section, b: &Section, strip: Strip) -> Result<(), ElfError> {
    if a.is_alloc() {
        expect(a.is_nobits() || a.size <= b.size, "a loaded section shrank", a.offset)?;
        if !a.range().is_empty() {
            let was_loaded = old.mapped("section", a.addr, a.size).ok() == Some(a.range());
            let is_loaded = new.mapped("section", b.addr, b.size).ok() == Some(b.range());
            expect(is_loaded || !was_loaded, "a section is not loaded where it says", b.offset)?;
        }
        return Ok(()); // its bytes are part of the image, or a table that was followed
    }
    if new.bytes.data.is_copy(a.range(), b.range()) && a.kind != elf::SHT_SYMTAB {
        return Ok(());
    }
    let rewritten = match a.kind {
        elf::SHT_SYMTAB => {
            return same_symbols(old, new, a, b, strip);
        }
        elf::SHT_STRTAB | elf::SHT_REL | elf::SHT_RELA => strip != Strip::Keep,
        elf::SHT_NULL => true,
        _ => false,
    };
    expect(rewritten || old.contents(a)? == new.contents(b)?, "the contents of a section differ", a.offset)
}

/// The symbols that were kept have their names and values.
fn same_symbols(old: &View<'_>, new: &View<'_>, a: &Section, b: &Section, strip: Strip) -> Result<(), ElfError> {
    let strings = |view: &View<'_>, section: &Section| {
        usize::try_from(section.link).ok().and_then(|link| view.sections.get(link).copied())
    };
    let (Some(names_a), Some(names_b)) = (strings(old, a), strings(new, b)) else {
        return expect(false, "a symbol table without names", a.offset);
    };
    let same = |a: &Section, b: &Section| new.bytes.data.is_copy(a.range(), b.range());
    if strip == Strip::Keep && same(a, b) && same(&names_a, &names_b) {
        return Ok(());
    }
    let (table_a, table_b) = (old.contents(&names_a)?, new.contents(&names_b)?);
    let size = old.bytes.form.symbol_size();
    let (count_a, count_b) = (a.size / size, b.size / size);
    let mut at = 0;
    for index in 0..count_a {
        let x = Symbol::read(old.bytes, a.offset + index * size)?;
        let y = if at < count_b { Some(Symbol::read(new.bytes, b.offset + at * size)?) } else { None };
        let section = old.sections.get(usize::from(x.shndx));
        let in_debug =
            x.shndx < elf::SHN_LORESERVE && section.is_some_and(|section| !section.is_alloc()) && x.shndx != 0;
        let droppable = strip != Strip::Keep && (x.symbol_type() == elf::STT_FILE.0 || in_debug);
        let name = |table, offset: u32| string_at(table, "symbol name", u64::from(offset), 0);
        let same = match y {
            Some(y) => {
                let home = section.zip(new.sections.get(usize::from(y.shndx)));
                let moved = home.is_some_and(|(a, b)| a.addr != b.addr);
                let text = name(table_a, x.name)?;
                let moved = moved || text == b"_DYNAMIC";
                x.info == y.info && (x.value == y.value || moved) && text == name(table_b, y.name)?
            }
            None => false,
        };
        expect(same || droppable, "a symbol differs", index)?;
        at += u64::from(same);
    }
    expect(at == count_b, "a symbol too many", at)?;
    let locals = u64::from(b.info);
    let local = |index| Symbol::read(new.bytes, b.offset + index * size).map(Symbol::is_local);
    let boundary = locals <= count_b && (locals == 0 || local(locals - 1)?) && (locals == count_b || !local(locals)?);
    let was_sound = a.info > 0 && Symbol::read(old.bytes, a.offset + (u64::from(a.info) - 1) * size)?.is_local();
    expect(boundary || !was_sound || strip == Strip::Keep, "local symbols do not end where they should", locals)
}

/// Headers and sections each have their own bytes, unless they already shared some.
fn no_new_overlap(old: &View<'_>, new: &View<'_>) -> Result<(), ElfError> {
    let overlap = |view: &View<'_>| {
        let mut ranges: Vec<Range> = view.sections.iter().map(Section::range).collect();
        ranges.extend([view.segment_table(), view.section_table(), Range::new(0, view.bytes.form.header_size())]);
        ranges.retain(|range| !range.is_empty());
        ranges.sort_unstable();
        ranges.iter().zip(ranges.iter().skip(1)).find(|(a, b)| a.overlaps(**b)).map(|(_, b)| b.start)
    };
    let found = overlap(new);
    expect(found.is_none() || overlap(old).is_some(), "two parts share bytes", found.unwrap_or(0))
}

/// What `goblin` reads is what we read.
fn goblin_agrees(new: &View<'_>) -> Result<(), ElfError> {
    let unreadable = |_| fail("goblin cannot read it", 0);
    let bytes = |range: Range| new.bytes.slice("what goblin reads", range.start, range.len());
    let header = bytes(Range::new(0, new.bytes.form.header_size()))?;
    let header = goblin::elf::Elf::parse_header(header).map_err(unreadable)?;
    let ctx = goblin::elf::Elf::lazy_parse(header).map_err(unreadable)?;
    let (le, class) = (ctx.little_endian, ctx.is_64);
    let container = if class { goblin::container::Container::Big } else { goblin::container::Container::Little };
    let endian = if le { goblin::container::Endian::Little } else { goblin::container::Endian::Big };
    let context = goblin::container::Ctx::new(container, endian);
    let count = usize::from(header.e_phnum);
    let same_places = (header.e_phoff, header.e_shoff) == (new.header.phoff, new.header.shoff);
    expect(same_places, "goblin reads another header", 0)?;
    let mut segments = ProgramHeader::parse(bytes(new.segment_table())?, 0, count, context).map_err(unreadable)?;
    let ours = new.segments.iter();
    let same = segments.iter().zip(ours).all(|(theirs, ours)| {
        (theirs.p_type, theirs.p_offset, theirs.p_vaddr, theirs.p_filesz, theirs.p_memsz)
            == (ours.kind.0, ours.offset, ours.vaddr, ours.filesz, ours.memsz)
    });
    expect(same && segments.len() == new.segments.len(), "goblin reads other program headers", 0)?;

    let count = usize::from(header.e_shnum);
    if header.e_shoff != 0 {
        let table = bytes(new.section_table())?;
        let sections = SectionHeader::parse_from(table, 0, count, context).map_err(unreadable)?;
        let same = sections.iter().zip(&new.sections).all(|(theirs, ours)| {
            (theirs.sh_type, theirs.sh_offset, theirs.sh_size, theirs.sh_link)
                == (ours.kind.0, ours.offset, ours.size, ours.link)
        });
        expect(same && sections.len() == new.sections.len(), "goblin reads other section headers", 0)?;
    }

    // It looks for the bytes of PT_DYNAMIC at the segment's offset, and is given no others.
    let dynamic = new.segment(elf::PT_DYNAMIC).filter(|_| !new.is_debug_file).map(Segment::range);
    let dynamic_bytes = bytes(dynamic.unwrap_or(Range::new(0, 0)))?;
    for segment in segments.iter_mut().filter(|segment| segment.p_type == elf::PT_DYNAMIC.0) {
        segment.p_offset = 0;
    }
    let dynamic = goblin::elf::Dynamic::parse(dynamic_bytes, &segments, context).map_err(unreadable)?;
    let (Some(theirs), Some(ours)) = (dynamic, &new.dynamic) else {
        return expect(new.dynamic.is_none() || new.is_debug_file, "goblin finds no dynamic section", 0);
    };
    let strings = ours.strings.map_or((0, 0), |strings| (strings.range.start, strings.range.len()));
    let found = (theirs.info.strtab as u64, theirs.info.strsz as u64);
    expect(strings == found, "goblin finds another string table", found.0)?;
    let table = new.dynstr()?;
    let texts = |tag: DynamicTag| -> Result<Vec<&[u8]>, ElfError> {
        let entries = theirs.dyns.iter().filter(|entry| entry.d_tag == tag.0.cast_unsigned());
        entries.map(|entry| string_at(table, "string", entry.d_val, found.0)).collect()
    };
    let last = |tag| texts(tag).map(|texts| texts.last().copied());
    let agree = texts(elf::DT_NEEDED)? == new.needed()?
        && last(elf::DT_SONAME)? == new.tag_string(elf::DT_SONAME, "DT_SONAME")?
        && last(elf::DT_RPATH)? == new.tag_string(elf::DT_RPATH, "DT_RPATH")?
        && last(elf::DT_RUNPATH)? == new.tag_string(elf::DT_RUNPATH, "DT_RUNPATH")?;
    expect(agree, "goblin reads other names", 0)
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn differences_are_found_in_every_block() {
        let text = vec![b'x'; 1000];
        assert_eq!(difference(&text, &[&text[..], b"more"].concat()), None);
        for (first, last) in [(0, 0), (255, 256), (3, 999), (512, 600), (999, 999)] {
            let mut other = text.clone();
            (other[first], other[last]) = (b'y', b'z');
            assert_eq!(difference(&text, &other), Some((first, last)));
        }
    }
}
