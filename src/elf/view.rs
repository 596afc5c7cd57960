//! A checked, borrowed reading of one ELF file: what [`parse()`](super::parse()) shows and what editing works on.
//!
//! ```text
//!   0 +--------------------+
//!     | ELF header         |  e_phoff, e_shoff
//!  64 +--------------------+
//!     | program headers    |  PT_LOAD: what is mapped; PT_DYNAMIC, PT_INTERP, PT_NOTE: what is in there for whom
//!     +--------------------+ -.
//!     | .interp .note.*    |  |
//!     | .gnu.hash .dynsym  |  | mapped at addresses that code knows: these bytes cannot move,
//!     | .dynstr ...        |  | except the few tables that are found only through the headers
//!     | .text .data ...    |  | or the dynamic section
//!     | .dynamic           |  |
//!     +--------------------+ -'  <- "image end": nothing behind it is ever mapped
//!     | .comment .symtab   |
//!     | .debug_* ...       |
//!     | section headers    |
//!     +--------------------+
//! ```
//!
//! The dynamic section is the truth, because it is what the loader reads: strings, symbols and versions are found
//! through `PT_DYNAMIC` and need no section header. Section headers only add what is not loaded.

use object::elf::{self, DynamicTag, ProgramType, SectionType};

use super::error::{ElfError, Refusal};
use super::parts::Data;
use super::raw::{Bytes, Class, Endian, Form, Header, Range, Section, Segment};
use super::symbols::Symbol;
use super::versions::Versions;

/// The longest name of a library, a version or a section that is believed; without one, a small file could name the same long
/// string a million times and keep us reading for hours.
const NAME_LIMIT: u64 = 16 << 10;
/// The longest search path.
const PATH_LIMIT: u64 = 4 << 20;

/// One `Elf32_Dyn` or `Elf64_Dyn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub tag: DynamicTag,
    pub value: u64,
}

/// The dynamic section (`PT_DYNAMIC`): the loader's table of contents.
#[derive(Debug, Clone)]
pub(super) struct Dynamic {
    /// Which program header describes it.
    pub segment: usize,
    /// The bytes in the file that it may use, spare entries at the end included.
    pub range: Range,
    pub addr: u64,
    /// How many entries fit, the terminating `DT_NULL` included.
    pub capacity: usize,
    /// Whether there is a `DT_NULL`. `ld --spare-dynamic-tags=0` writes none, and the loader finds it further on.
    pub terminated: bool,
    /// The entries before the first `DT_NULL`.
    pub entries: Vec<Entry>,
    /// `DT_STRTAB` and `DT_STRSZ`, as bytes in the file.
    pub strings: Option<Strings>,
}

impl Dynamic {
    /// How many entries can be written in place.
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(usize::from(self.terminated))
    }

    /// The value of a tag. The loader keeps the last where a tag is repeated.
    pub fn get(&self, tag: DynamicTag) -> Option<u64> {
        self.entries.iter().rev().find(|entry| entry.tag == tag).map(|entry| entry.value)
    }
}

/// Where the dynamic string table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Strings {
    pub range: Range,
    pub addr: u64,
}

/// A whole file, its headers read and checked.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub bytes: Bytes<'a>,
    pub header: Header,
    pub segments: Vec<Segment>,
    pub sections: Vec<Section>,
    pub dynamic: Option<Dynamic>,
    /// What [`View::versions`] read.
    pub versions: Result<Versions<'a>, ElfError>,
    /// Only debug information: `.text` and the like are described but not in the file.
    pub is_debug_file: bool,
}

impl<'a> View<'a> {
    pub fn parse(data: &'a [u8]) -> Result<Self, ElfError> {
        Self::read(Data::Whole(data))
    }

    pub fn read(data: Data<'a>) -> Result<Self, ElfError> {
        let start = data.slice("start of the file", 0, data.len().min(64))?;
        if !super::is_elf(start) {
            let archive = start.starts_with(b"!<arch>\n") || start.starts_with(b"!<thin>\n");
            return Err(if archive { ElfError::Archive } else { ElfError::NotElf });
        }
        let bytes = Bytes { data, form: form(start)? };
        let header = Header::read(bytes)?;
        let size = bytes.form.segment_size();
        let segments = records(bytes, "program headers", (header.phoff, header.phnum, size), Segment::read)?;
        let size = bytes.form.section_size();
        let sections = records(bytes, "section headers", (header.shoff, header.shnum, size), Section::read)?;

        let is_debug_file = is_debug_file(&segments, &sections);
        let versions = Ok(Versions::default());
        let mut view = Self { bytes, header, segments, sections, dynamic: None, versions, is_debug_file };
        if !is_debug_file {
            view.check_ranges()?;
            view.dynamic = view.read_dynamic()?;
            view.versions = view.read_versions();
        }
        Ok(view)
    }

    /// Everything that the headers describe must be inside the file.
    fn check_ranges(&self) -> Result<(), ElfError> {
        for segment in &self.segments {
            self.bytes.has("segment", segment.offset, segment.filesz)?;
            if segment.is_load() && segment.memsz < segment.filesz {
                let (offset, value) = (segment.offset, segment.memsz);
                return Err(ElfError::Invalid { what: "p_memsz of the segment", offset, value });
            }
            if segment.is_load() && segment.vaddr.checked_add(segment.memsz).is_none() {
                let (offset, value) = (segment.offset, segment.vaddr);
                return Err(ElfError::Invalid { what: "p_vaddr of the segment", offset, value });
            }
        }
        for section in &self.sections {
            if !section.is_nobits() && section.kind != elf::SHT_NULL && section.size > 0 {
                self.bytes.has("section", section.offset, section.size)?;
            }
        }
        Ok(())
    }

    fn read_dynamic(&self) -> Result<Option<Dynamic>, ElfError> {
        let Some(index) = self.segments.iter().position(|segment| segment.kind == elf::PT_DYNAMIC) else {
            return Ok(None);
        };
        let Some(segment) = self.segments.get(index) else { return Ok(None) };
        let size = self.bytes.form.dynamic_size();
        let table = self.bytes.part("dynamic section", segment.offset, segment.filesz)?;
        let mut entries = Vec::new();
        let (mut at, end) = (0_u64, table.len());
        let mut terminated = false;
        while at.checked_add(size).is_some_and(|next| next <= end) {
            let entry = entry(table, at)?;
            at += size;
            if entry.tag == elf::DT_NULL {
                terminated = true;
                break;
            }
            entries.push(entry);
        }
        // Linkers leave spare DT_NULL entries (GNU ld sometimes with a value). Anything else is not ours to use.
        let mut used = entries.len() as u64 + u64::from(terminated);
        while at.checked_add(size).is_some_and(|next| next <= end) && entry(table, at)?.tag == elf::DT_NULL {
            at += size;
            used += 1;
        }
        let mut dynamic = Dynamic {
            segment: index,
            range: Range::new(segment.offset, used * size),
            addr: segment.vaddr,
            capacity: usize::try_from(used).unwrap_or(usize::MAX),
            terminated,
            entries,
            strings: None,
        };
        if let Some(addr) = dynamic.get(elf::DT_STRTAB) {
            let length = dynamic.get(elf::DT_STRSZ).unwrap_or(0);
            let range = self.mapped("dynamic string table", addr, length)?;
            dynamic.strings = Some(Strings { range, addr });
        }
        Ok(Some(dynamic))
    }

    /// The bytes in the file that are loaded at an address.
    pub fn mapped(&self, what: &'static str, address: u64, length: u64) -> Result<Range, ElfError> {
        let missing = ElfError::Unmapped { what, address, length };
        let end = address.checked_add(length).ok_or(missing.clone())?;
        self.segments
            .iter()
            .filter(|segment| segment.is_load())
            .find(|segment| segment.vaddr <= address && end <= segment.vaddr.saturating_add(segment.filesz))
            .map(|segment| Range::new(segment.offset + (address - segment.vaddr), length))
            .ok_or(missing)
    }

    /// The bytes in the file from an address to the end of its segment.
    pub fn mapped_rest(&self, what: &'static str, address: u64) -> Result<Range, ElfError> {
        let missing = ElfError::Unmapped { what, address, length: 1 };
        self.segments
            .iter()
            .filter(|segment| segment.is_load())
            .find(|segment| segment.vaddr <= address && address < segment.vaddr.saturating_add(segment.filesz))
            .map(|segment| Range { start: segment.offset + (address - segment.vaddr), end: segment.range().end })
            .ok_or(missing)
    }

    /// The bytes in the file from an address to the end of a segment that holds `length` of them; of several that do, the one
    /// that goes furthest.
    fn mapped_most(&self, what: &'static str, address: u64, length: u64) -> Result<Range, ElfError> {
        let missing = ElfError::Unmapped { what, address, length };
        let end = address.checked_add(length).ok_or(missing.clone())?;
        let loads = self.segments.iter().filter(|segment| segment.is_load());
        let last = |segment: &&Segment| segment.vaddr.saturating_add(segment.filesz);
        let segment = loads.filter(|s| s.vaddr <= address && end <= last(s)).max_by_key(last).ok_or(missing)?;
        Ok(Range { start: segment.offset + (address - segment.vaddr), end: segment.range().end })
    }

    /// The dynamic string table's bytes.
    pub fn dynstr(&self) -> Result<&'a [u8], ElfError> {
        match self.dynamic.as_ref().and_then(|dynamic| dynamic.strings) {
            Some(strings) => self.bytes.slice("dynamic string table", strings.range.start, strings.range.len()),
            None => Ok(&[]),
        }
    }

    /// The string at an offset in the dynamic string table.
    pub fn string(&self, what: &'static str, offset: u64) -> Result<&'a [u8], ElfError> {
        let start = self.dynamic.as_ref().and_then(|dynamic| dynamic.strings).map_or(0, |strings| strings.range.start);
        let table = self.dynstr()?;
        let limit = if matches!(what, "DT_RPATH" | "DT_RUNPATH") { PATH_LIMIT } else { NAME_LIMIT };
        let end = usize::try_from(offset.saturating_add(limit)).unwrap_or(usize::MAX).min(table.len());
        string_at(table.get(..end).unwrap_or(table), what, offset, start)
    }

    /// The string that a dynamic tag names.
    pub fn tag_string(&self, tag: DynamicTag, what: &'static str) -> Result<Option<&'a [u8]>, ElfError> {
        match self.dynamic.as_ref().and_then(|dynamic| dynamic.get(tag)) {
            Some(offset) => self.string(what, offset).map(Some),
            None => Ok(None),
        }
    }

    /// The libraries that the file asks for, in order.
    pub fn needed(&self) -> Result<Vec<&'a [u8]>, ElfError> {
        let Some(dynamic) = &self.dynamic else { return Ok(Vec::new()) };
        let needed = dynamic.entries.iter().filter(|entry| entry.tag == elf::DT_NEEDED);
        needed.map(|entry| self.string("DT_NEEDED", entry.value)).collect()
    }

    /// The program interpreter, without its terminating NUL.
    pub fn interpreter(&self) -> Result<Option<&'a [u8]>, ElfError> {
        if self.is_debug_file {
            return Ok(None);
        }
        let Some(segment) = self.segment(elf::PT_INTERP) else { return Ok(None) };
        let bytes = self.bytes.slice("PT_INTERP", segment.offset, segment.filesz)?;
        Ok(bytes.split(|byte| *byte == 0).next())
    }

    pub fn segment(&self, kind: ProgramType) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.kind == kind)
    }

    pub fn section_of_kind(&self, kind: SectionType) -> Option<(usize, &Section)> {
        self.sections.iter().enumerate().find(|(_, section)| section.kind == kind)
    }

    /// A section's bytes; none for `SHT_NOBITS`.
    pub fn contents(&self, section: &Section) -> Result<&'a [u8], ElfError> {
        let range = section.range();
        if range.is_empty() { Ok(&[]) } else { self.bytes.slice("section", range.start, range.len()) }
    }

    /// A section's name.
    pub fn section_name(&self, section: &Section) -> Result<&'a [u8], ElfError> {
        let Some(table) = usize::try_from(self.header.shstrndx).ok().and_then(|index| self.sections.get(index)) else {
            return Ok(&[]);
        };
        if self.header.shstrndx == 0 {
            return Ok(&[]);
        }
        let (names, offset) = (self.contents(table)?, u64::from(section.name));
        let end = usize::try_from(offset.saturating_add(NAME_LIMIT)).unwrap_or(usize::MAX).min(names.len());
        string_at(names.get(..end).unwrap_or(names), "section name", offset, table.offset)
    }

    /// The records of the symbol table at these offsets.
    pub fn symbols(&self, table: Range) -> Result<impl Iterator<Item = Symbol> + use<'a>, ElfError> {
        let bytes = self.bytes.slice("symbols", table.start, table.len())?;
        Ok(Symbol::all(bytes, self.bytes.form))
    }

    /// The name of a symbol of a table.
    pub fn symbol_name(&self, table: &Section, symbol: Symbol) -> Result<&'a [u8], ElfError> {
        let strings = usize::try_from(table.link).ok().and_then(|link| self.sections.get(link));
        let Some(strings) = strings else { return Ok(&[]) };
        string_at(self.contents(strings)?, "symbol name", u64::from(symbol.name), strings.offset)
    }

    /// How many dynamic symbols there are, if anything says so. `DT_SYMTAB` alone does not.
    pub fn symbol_count(&self) -> Result<Option<u64>, ElfError> {
        let Some(dynamic) = &self.dynamic else { return Ok(None) };
        let Some(addr) = dynamic.get(elf::DT_SYMTAB) else { return Ok(Some(0)) };
        let size = self.bytes.form.symbol_size();
        let by_section = self.sections.iter().find(|section| section.kind == elf::SHT_DYNSYM && section.addr == addr);
        let count = if let Some(section) = by_section {
            Some(section.size / size)
        } else if let Some(hash) = dynamic.get(elf::DT_HASH) {
            Some(self.sysv_hash(hash)?.1)
        } else if let Some(hash) = dynamic.get(elf::DT_GNU_HASH) {
            Some(self.gnu_hash(hash)?.1)
        } else if self.header.machine == elf::EM_MIPS.0 {
            dynamic.get(elf::DT_MIPS_SYMTABNO)
        } else {
            None
        };
        if let Some(count) = count {
            let length = count.saturating_mul(size);
            self.mapped("dynamic symbols", addr, length)?;
        }
        Ok(count)
    }

    /// The dynamic symbols' bytes.
    pub fn dynsym(&self) -> Result<Option<Range>, ElfError> {
        let Some(addr) = self.dynamic.as_ref().and_then(|dynamic| dynamic.get(elf::DT_SYMTAB)) else {
            return Ok(None);
        };
        match self.symbol_count()? {
            Some(count) => {
                let length = count.saturating_mul(self.bytes.form.symbol_size());
                let range = self.mapped("dynamic symbols", addr, length)?;
                self.bytes.slice("dynamic symbols", range.start, range.len())?; // in one go, if they must be read
                Ok(Some(range))
            }
            None => Ok(None),
        }
    }

    /// `DT_HASH`: its bytes and the number of symbols.
    pub fn sysv_hash(&self, addr: u64) -> Result<(Range, u64), ElfError> {
        let what = "DT_HASH";
        // The one table whose entries are 8 bytes on two machines (and 4 everywhere else).
        let wide = self.header.machine == elf::EM_ALPHA.0
            || (self.header.machine == elf::EM_S390.0 && self.bytes.form.class == Class::Elf64);
        let entry = if wide { 8 } else { 4 };
        let head = self.mapped(what, addr, 2 * entry)?;
        let read = |at| if wide { self.bytes.u64(what, at) } else { self.bytes.u32(what, at).map(u64::from) };
        let (buckets, chains) = (read(head.start)?, read(head.start + entry)?);
        let length = buckets.checked_add(chains).and_then(|n| n.checked_add(2)).and_then(|n| n.checked_mul(entry));
        let length = length.ok_or(ElfError::Invalid { what, offset: head.start, value: chains })?;
        Ok((self.mapped(what, addr, length)?, chains))
    }

    /// `DT_GNU_HASH`: its bytes and the number of symbols, which is where the last chain ends.
    pub fn gnu_hash(&self, addr: u64) -> Result<(Range, u64), ElfError> {
        let what = "DT_GNU_HASH";
        let head = self.mapped(what, addr, 16)?.start;
        let buckets = u64::from(self.bytes.u32(what, head)?);
        let first = u64::from(self.bytes.u32(what, head + 4)?);
        let bloom = u64::from(self.bytes.u32(what, head + 8)?);
        // At most 2^32 entries of 8 bytes each: none of this overflows.
        let buckets_at = 16 + bloom * self.bytes.form.word();
        let chains_at = buckets_at + 4 * buckets;
        let table = self.mapped(what, addr, chains_at)?;
        let mut last = None;
        let heads = self.bytes.part(what, table.start + buckets_at, 4 * buckets)?;
        for head in heads.slice(what, 0, 4 * buckets)?.chunks_exact(4) {
            last = last.max(head.first_chunk().map(|head| u64::from(self.bytes.form.u32(*head))));
        }
        let Some(mut last) = last.filter(|last| *last != 0) else { return Ok((table, first)) };
        if last < first {
            return Err(ElfError::Invalid { what, offset: table.start + buckets_at, value: last });
        }
        // Once for the whole chain: with thousands of segments, each look costs.
        let room = self.mapped_most(what, addr, chains_at)?;
        loop {
            let length = chains_at + 4 * (last - first + 1);
            let range = Range::new(room.start, length);
            if !room.contains(range) {
                return Err(ElfError::Unmapped { what, address: addr, length });
            }
            if self.bytes.u32(what, range.end - 4)? & 1 == 1 {
                return Ok((range, last + 1));
            }
            last += 1;
        }
    }

    /// The end of everything that is mapped, and of the headers: what stands behind may move.
    pub fn image_end(&self) -> u64 {
        let form = self.bytes.form;
        let headers = self.header.phoff.saturating_add(self.header.phnum.saturating_mul(form.segment_size()));
        let loads = self.segments.iter().filter(|segment| segment.is_load()).map(|segment| segment.range().end);
        let sections = self.sections.iter().filter(|section| section.is_alloc()).map(Section::range);
        let sections = sections.filter(|range| !range.is_empty()).map(|range| range.end);
        loads.chain(sections).chain([headers, form.header_size()]).max().unwrap_or_default()
    }

    /// The program header table.
    pub fn segment_table(&self) -> Range {
        Range::new(self.header.phoff, self.header.phnum * self.bytes.form.segment_size())
    }

    /// The section header table.
    pub fn section_table(&self) -> Range {
        Range::new(self.header.shoff, self.header.shnum * self.bytes.form.section_size())
    }

    /// Why no edit at all may be tried on such a file.
    pub fn refuse_kind(&self) -> Result<(), ElfError> {
        let refusal = match elf::FileType(self.header.kind) {
            elf::ET_EXEC | elf::ET_DYN if self.is_debug_file => Refusal::DebugFile,
            elf::ET_EXEC | elf::ET_DYN => return Ok(()),
            elf::ET_REL => Refusal::Relocatable,
            elf::ET_CORE => Refusal::Core,
            elf::FileType(other) => Refusal::UnknownKind(other),
        };
        Err(ElfError::Unsupported(refusal))
    }
}

/// The entry at an offset of a dynamic section.
fn entry(table: Bytes<'_>, at: u64) -> Result<Entry, ElfError> {
    let what = "dynamic entry";
    let tag = match table.form.class {
        Class::Elf32 => i64::from(table.u32(what, at)?.cast_signed()),
        Class::Elf64 => table.u64(what, at)?.cast_signed(),
    };
    Ok(Entry { tag: DynamicTag(tag), value: table.word(what, at + table.form.word())? })
}

/// Class and byte order, from the identification bytes.
fn form(data: &[u8]) -> Result<Form, ElfError> {
    let ident = |index: usize| {
        let (offset, length, file) = (index as u64, 1, data.len() as u64);
        data.get(index).copied().ok_or(ElfError::Truncated { what: "ELF identification", offset, length, file })
    };
    let invalid = |what, offset, value: u8| Err(ElfError::Invalid { what, offset, value: u64::from(value) });
    let class = match elf::FileClass(ident(4)?) {
        elf::ELFCLASS32 => Class::Elf32,
        elf::ELFCLASS64 => Class::Elf64,
        other => return invalid("EI_CLASS", 4, other.0),
    };
    let endian = match elf::DataEncoding(ident(5)?) {
        elf::ELFDATA2LSB => Endian::Little,
        elf::ELFDATA2MSB => Endian::Big,
        other => return invalid("EI_DATA", 5, other.0),
    };
    match ident(6)? {
        1 => Ok(Form { class, endian }),
        other => invalid("EI_VERSION", 6, other),
    }
}

/// The records of a table (where it is, how many they are, how long each is) that must be inside the file. The table is looked
/// up, and read, in one go.
fn records<'a, T>(
    bytes: Bytes<'a>,
    what: &'static str,
    (offset, count, size): (u64, u64, u64),
    read: impl Fn(Bytes<'a>, u64) -> Result<T, ElfError>,
) -> Result<Vec<T>, ElfError> {
    let length = count.saturating_mul(size);
    if length == 0 {
        return Ok(Vec::new());
    }
    let table = bytes.part(what, offset, length)?;
    (0..count).map(|index| read(table, index * size)).collect()
}

/// A NUL-terminated string in a table that starts at `table_at` in the file.
pub(super) fn string_at<'a>(
    table: &'a [u8],
    what: &'static str,
    offset: u64,
    table_at: u64,
) -> Result<&'a [u8], ElfError> {
    let at = table_at.saturating_add(offset);
    let rest = usize::try_from(offset).ok().and_then(|offset| table.get(offset..));
    let rest = rest.ok_or(ElfError::Invalid { what, offset: at, value: offset })?;
    let end = memchr::memchr(0, rest).ok_or(ElfError::Unterminated { what, offset: at })?;
    Ok(rest.get(..end).unwrap_or_default())
}

/// `objcopy --only-keep-debug` and `eu-strip -f` keep every header and turn what is loaded into `SHT_NOBITS`.
fn is_debug_file(segments: &[Segment], sections: &[Section]) -> bool {
    let executable = elf::SHF_EXECINSTR.0;
    let hollow = |section: &Section| section.is_alloc() && section.is_nobits() && section.size > 0;
    sections.iter().any(|section| {
        let code = section.flags & executable != 0;
        let dynamic = segments.iter().any(|segment| {
            segment.kind == elf::PT_DYNAMIC && segment.vaddr == section.addr && segment.memsz == section.size
        });
        hollow(section) && (code || dynamic)
    })
}
