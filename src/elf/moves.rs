//! What has to follow when tables have moved: symbols that are defined in them, the dynamic section's pointers to them, and the
//! address of the dynamic section in the global offset table.

use object::elf::{self, DynamicTag};

use super::draft::Draft;
use super::error::{ElfError, Refusal};
use super::raw::{Range, Writer};
use super::symbols::Symbol;
use super::view::{Dynamic, Entry, View};

/// Bytes that go from one place to another, all with the same distance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move {
    pub from: Range,
    pub from_addr: u64,
    pub to: u64,
    pub to_addr: u64,
}

impl Move {
    pub fn address(&self, addr: u64) -> Option<u64> {
        Range::new(self.from_addr, self.from.len()).has(addr).then(|| self.to_addr + (addr - self.from_addr))
    }

    pub fn offset(&self, offset: u64) -> u64 {
        self.to + (offset - self.from.start)
    }
}

/// Symbols defined in moved tables (`__abi_tag` of crt1.o, `_DYNAMIC`) move along, in `.symtab` and in `.dynsym`.
pub(super) fn move_symbols(draft: &mut Draft<'_>, moves: &[Move], dynamic: Option<&Move>) -> Result<(), ElfError> {
    let view = draft.view;
    let form = view.bytes.form;
    let size = usize::try_from(form.symbol_size()).unwrap_or(24);
    let fields = Symbol::fields(form);
    // By section number, so that a symbol that merely has such a value stays as it is.
    let homes: Vec<Option<&Move>> = view
        .sections
        .iter()
        .map(|section| {
            let moved =
                |m: &&Move| !section.range().is_empty() && section.is_alloc() && m.from.contains(section.range());
            moves.iter().chain(dynamic).find(moved)
        })
        .collect();
    for (index, section) in view.sections.iter().enumerate() {
        if !matches!(section.kind, elf::SHT_SYMTAB | elf::SHT_DYNSYM) {
            continue;
        }
        let contents = view.contents(section)?;
        let mut changed: Option<Vec<u8>> = None;
        for (at, symbol) in (0..).step_by(size).zip(Symbol::all(contents, form)) {
            let mut home = homes.get(usize::from(symbol.shndx)).copied().flatten();
            if let Some(dynamic) = dynamic
                && symbol.shndx == elf::SHN_ABS.0
                && symbol.value == dynamic.from_addr
                && view.symbol_name(section, symbol)? == b"_DYNAMIC"
            {
                home = Some(dynamic); // GNU ld calls this one absolute
            }
            let Some(value) = home.filter(|_| symbol.shndx != 0).and_then(|home| home.address(symbol.value)) else {
                continue;
            };
            let mut bytes = Writer::new(form);
            bytes.word(value);
            let bytes = bytes.finish()?;
            let copy = changed.get_or_insert_with(|| contents.to_vec());
            if let Some(place) = copy.get_mut(at + fields.value..at + fields.value + bytes.len()) {
                place.copy_from_slice(&bytes);
            }
        }
        match changed {
            None => {}
            Some(contents) if draft.is_loose(index) => {
                draft.contents.insert(index, contents);
            }
            Some(contents) => draft.put(section.offset, &contents)?,
        }
    }
    Ok(())
}

/// Pointers to tables that may be moved: the linker's own, which nothing but the dynamic section names.
pub(super) const fn is_table(tag: DynamicTag) -> bool {
    matches!(
        tag,
        elf::DT_STRTAB
            | elf::DT_SYMTAB
            | elf::DT_HASH
            | elf::DT_GNU_HASH
            | elf::DT_VERSYM
            | elf::DT_VERNEED
            | elf::DT_VERDEF
    )
}

/// The dynamic section's pointers to moved tables.
pub(super) fn move_pointers(view: &View<'_>, entries: &mut [Entry], moves: &[Move]) -> Result<(), ElfError> {
    for entry in entries {
        if is_value(entry.tag) || is_mips_count(view, entry.tag) {
            continue;
        }
        let Some(moved) = moves.iter().find_map(|m| m.address(entry.value)) else { continue };
        if !is_table(entry.tag) {
            return Err(ElfError::Unsupported(Refusal::UnknownPointer(entry.tag.0.cast_unsigned())));
        }
        entry.value = moved;
    }
    Ok(())
}

/// The first word of the global offset table is, by the processor supplements, the address of the dynamic section.
pub(super) fn patch_got(draft: &mut Draft<'_>, dynamic: &Dynamic, m: &Move) -> Result<(), ElfError> {
    let view = draft.view;
    let Some(addr) = dynamic.get(elf::DT_PLTGOT) else { return Ok(()) };
    let Ok(place) = view.mapped("DT_PLTGOT", addr, view.bytes.form.word()) else { return Ok(()) };
    if view.bytes.word("DT_PLTGOT", place.start)? != m.from_addr {
        return Ok(());
    }
    let mut bytes = Writer::new(view.bytes.form);
    bytes.word(m.to_addr);
    let bytes = bytes.finish()?;
    draft.put(place.start, &bytes)
}

/// Tags whose value is a number, a flag or a string, never an address.
const fn is_value(tag: DynamicTag) -> bool {
    matches!(
        tag,
        elf::DT_NEEDED
            | elf::DT_PLTRELSZ
            | elf::DT_RELASZ
            | elf::DT_RELAENT
            | elf::DT_STRSZ
            | elf::DT_SYMENT
            | elf::DT_SONAME
            | elf::DT_RPATH
            | elf::DT_SYMBOLIC
            | elf::DT_RELSZ
            | elf::DT_RELENT
            | elf::DT_PLTREL
            | elf::DT_DEBUG
            | elf::DT_TEXTREL
            | elf::DT_BIND_NOW
            | elf::DT_INIT_ARRAYSZ
            | elf::DT_FINI_ARRAYSZ
            | elf::DT_RUNPATH
            | elf::DT_FLAGS
            | elf::DT_PREINIT_ARRAYSZ
            | elf::DT_RELRSZ
            | elf::DT_RELRENT
            | elf::DT_CHECKSUM
            | elf::DT_PLTPADSZ
            | elf::DT_MOVEENT
            | elf::DT_MOVESZ
            | elf::DT_FEATURE_1
            | elf::DT_POSFLAG_1
            | elf::DT_SYMINSZ
            | elf::DT_SYMINENT
            | elf::DT_RELACOUNT
            | elf::DT_RELCOUNT
            | elf::DT_FLAGS_1
            | elf::DT_VERDEFNUM
            | elf::DT_VERNEEDNUM
            | elf::DT_AUXILIARY
            | elf::DT_FILTER
            | elf::DT_CONFIG
            | elf::DT_DEPAUDIT
            | elf::DT_AUDIT
    )
}

/// MIPS keeps counts and relative distances in tags of its own, and any of them may look like an address.
fn is_mips_count(view: &View<'_>, tag: DynamicTag) -> bool {
    view.header.machine == elf::EM_MIPS.0
        && matches!(
            tag,
            elf::DT_MIPS_RLD_VERSION
                | elf::DT_MIPS_FLAGS
                | elf::DT_MIPS_LOCAL_GOTNO
                | elf::DT_MIPS_SYMTABNO
                | elf::DT_MIPS_UNREFEXTNO
                | elf::DT_MIPS_GOTSYM
                | elf::DT_MIPS_HIPAGENO
                | elf::DT_MIPS_RLD_MAP_REL
        )
}

/// Tags whose meaning we know: a number, a string or an address. The value of any other may be anything.
pub(super) const fn is_known(tag: DynamicTag) -> bool {
    is_value(tag)
        || is_table(tag)
        || matches!(
            tag,
            elf::DT_PLTGOT
                | elf::DT_RELA
                | elf::DT_INIT
                | elf::DT_FINI
                | elf::DT_REL
                | elf::DT_JMPREL
                | elf::DT_INIT_ARRAY
                | elf::DT_FINI_ARRAY
                | elf::DT_PREINIT_ARRAY
                | elf::DT_SYMTAB_SHNDX
                | elf::DT_RELR
        )
}
