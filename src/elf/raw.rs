//! The fixed-size records of an ELF file, read from and written to bytes in either class and byte order.
//!
//! Source: the System V gABI, chapters 4 and 5 (`Elf32_Ehdr`, `Elf64_Ehdr`, ...). Everything above this file works on
//! 64-bit values and never sees a byte order. `object` and `goblin` have readers of their own; this one exists because
//! editing needs both directions, must not assume alignment, and has to name the offset of whatever is wrong. Every
//! access is checked against the file's length.

use object::elf;

use super::error::{ElfError, Refusal};
use super::parts::Data;

/// Whether addresses have 32 or 64 bits (`EI_CLASS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `ELFCLASS32`
    Elf32,
    /// `ELFCLASS64`
    Elf64,
}

/// The byte order of every number in the file (`EI_DATA`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endian {
    /// `ELFDATA2LSB`
    Little,
    /// `ELFDATA2MSB`
    Big,
}

/// Class and byte order together: everything needed to lay out a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub class: Class,
    pub endian: Endian,
}

impl Form {
    const fn pick(self, narrow: u64, wide: u64) -> u64 {
        match self.class {
            Class::Elf32 => narrow,
            Class::Elf64 => wide,
        }
    }

    /// The size of an address.
    pub const fn word(self) -> u64 {
        self.pick(4, 8)
    }

    pub const fn header_size(self) -> u64 {
        self.pick(52, 64)
    }

    pub const fn segment_size(self) -> u64 {
        self.pick(32, 56)
    }

    pub const fn section_size(self) -> u64 {
        self.pick(40, 64)
    }

    pub const fn dynamic_size(self) -> u64 {
        self.pick(8, 16)
    }

    pub const fn symbol_size(self) -> u64 {
        self.pick(16, 24)
    }

    pub const fn u16(self, bytes: [u8; 2]) -> u16 {
        match self.endian {
            Endian::Little => u16::from_le_bytes(bytes),
            Endian::Big => u16::from_be_bytes(bytes),
        }
    }

    pub const fn u32(self, bytes: [u8; 4]) -> u32 {
        match self.endian {
            Endian::Little => u32::from_le_bytes(bytes),
            Endian::Big => u32::from_be_bytes(bytes),
        }
    }

    pub const fn u64(self, bytes: [u8; 8]) -> u64 {
        match self.endian {
            Endian::Little => u64::from_le_bytes(bytes),
            Endian::Big => u64::from_be_bytes(bytes),
        }
    }

    /// One more than the highest address there can be.
    pub const fn address_limit(self) -> u64 {
        // User space ends well below: 0xc000_0000 on 32-bit x86, 2^47 on x86-64 (and 2^39 on some RISC-V).
        self.pick(0xc000_0000, 0x4000_0000_0000)
    }
}

/// Bytes with bounds-checked reads that say what was being read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes<'a> {
    pub data: Data<'a>,
    pub form: Form,
}

impl<'a> Bytes<'a> {
    pub fn len(self) -> u64 {
        self.data.len()
    }

    pub fn slice(self, what: &'static str, offset: u64, length: u64) -> Result<&'a [u8], ElfError> {
        self.data.slice(what, offset, length)
    }

    /// That a range is inside the file, without looking at it.
    pub fn has(self, what: &'static str, offset: u64, length: u64) -> Result<(), ElfError> {
        let file = self.len();
        let inside = offset.checked_add(length).is_some_and(|end| end <= file);
        if inside { Ok(()) } else { Err(ElfError::Truncated { what, offset, length, file }) }
    }

    /// A stretch of the file, for whoever reads many numbers of it; offsets count from its start.
    pub fn part(self, what: &'static str, offset: u64, length: u64) -> Result<Self, ElfError> {
        Ok(Self { data: Data::Whole(self.slice(what, offset, length)?), form: self.form })
    }

    fn array<const N: usize>(self, what: &'static str, offset: u64) -> Result<[u8; N], ElfError> {
        let bytes = self.slice(what, offset, N as u64)?;
        bytes.try_into().map_err(|_| ElfError::Truncated { what, offset, length: N as u64, file: self.len() })
    }

    pub fn u16(self, what: &'static str, offset: u64) -> Result<u16, ElfError> {
        Ok(self.form.u16(self.array(what, offset)?))
    }

    pub fn u32(self, what: &'static str, offset: u64) -> Result<u32, ElfError> {
        Ok(self.form.u32(self.array(what, offset)?))
    }

    pub fn u64(self, what: &'static str, offset: u64) -> Result<u64, ElfError> {
        Ok(self.form.u64(self.array(what, offset)?))
    }

    /// An address-sized number.
    pub fn word(self, what: &'static str, offset: u64) -> Result<u64, ElfError> {
        match self.form.class {
            Class::Elf32 => self.u32(what, offset).map(u64::from),
            Class::Elf64 => self.u64(what, offset),
        }
    }
}

/// `data[offset..offset + length]`, or `None` where that is not inside `data`.
pub(super) fn slice(data: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    data.get(start..end)
}

/// As [`slice()`], to be written to.
pub(super) fn slice_mut(data: &mut [u8], offset: u64, length: u64) -> Option<&mut [u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    data.get_mut(start..end)
}

/// The smallest multiple of `align` (a power of two, or 0 and 1 for none) that is not below `value`.
pub(super) fn align_up(value: u64, align: u64) -> Option<u64> {
    if align < 2 {
        return Some(value);
    }
    value.checked_add(align - 1).map(|v| v & !(align - 1))
}

/// Appends numbers in a file's form. Values that do not fit in 32 bits are an error of the caller, found by
/// [`Writer::finish`].
pub(super) struct Writer {
    form: Form,
    out: Vec<u8>,
    fits: bool,
}

impl Writer {
    pub fn new(form: Form) -> Self {
        Self { form, out: Vec::with_capacity(64), fits: true }
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        match self.form.endian {
            Endian::Little => self.out.extend_from_slice(&value.to_le_bytes()),
            Endian::Big => self.out.extend_from_slice(&value.to_be_bytes()),
        }
        self
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        match self.form.endian {
            Endian::Little => self.out.extend_from_slice(&value.to_le_bytes()),
            Endian::Big => self.out.extend_from_slice(&value.to_be_bytes()),
        }
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        match self.form.endian {
            Endian::Little => self.out.extend_from_slice(&value.to_le_bytes()),
            Endian::Big => self.out.extend_from_slice(&value.to_be_bytes()),
        }
        self
    }

    pub fn word(&mut self, value: u64) -> &mut Self {
        match self.form.class {
            Class::Elf32 => {
                self.fits &= u32::try_from(value).is_ok();
                self.u32(u32::try_from(value).unwrap_or(u32::MAX))
            }
            Class::Elf64 => self.u64(value),
        }
    }

    pub fn finish(self) -> Result<Vec<u8>, ElfError> {
        if self.fits { Ok(self.out) } else { Err(ElfError::Unsupported(Refusal::AddressSpace)) }
    }
}

/// The ELF header, with the extended counts of section 0 already resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: u16,
    pub machine: u16,
    pub entry: u64,
    pub phoff: u64,
    pub shoff: u64,
    pub flags: u32,
    pub phnum: u64,
    pub shnum: u64,
    pub shstrndx: u64,
}

impl Header {
    pub fn read(bytes: Bytes<'_>) -> Result<Self, ElfError> {
        let form = bytes.form;
        let word = form.word();
        bytes.slice("ELF header", 0, form.header_size())?;
        let ehsize_at = 24 + 3 * word + 4;
        let (phoff, shoff) = (bytes.word("e_phoff", 24 + word)?, bytes.word("e_shoff", 24 + 2 * word)?);
        let phentsize = bytes.u16("e_phentsize", ehsize_at + 2)?;
        let phnum = u64::from(bytes.u16("e_phnum", ehsize_at + 4)?);
        let shentsize = bytes.u16("e_shentsize", ehsize_at + 6)?;
        let shnum = u64::from(bytes.u16("e_shnum", ehsize_at + 8)?);
        let shstrndx = u64::from(bytes.u16("e_shstrndx", ehsize_at + 10)?);

        let has_sections = shoff != 0;
        if has_sections && u64::from(shentsize) != form.section_size() {
            let (offset, value) = (ehsize_at + 6, u64::from(shentsize));
            return Err(ElfError::Invalid { what: "e_shentsize", offset, value });
        }
        if phnum != 0 && u64::from(phentsize) != form.segment_size() {
            let (offset, value) = (ehsize_at + 2, u64::from(phentsize));
            return Err(ElfError::Invalid { what: "e_phentsize", offset, value });
        }
        // Counts that do not fit in 16 bits are in the section header with index 0.
        let first = if has_sections && (shnum == 0 || phnum == 0xffff || shstrndx == u64::from(elf::SHN_XINDEX.0)) {
            Some(Section::read(bytes, shoff)?)
        } else {
            None
        };
        Ok(Self {
            kind: bytes.u16("e_type", 16)?,
            machine: bytes.u16("e_machine", 18)?,
            entry: bytes.word("e_entry", 24)?,
            phoff,
            shoff,
            flags: bytes.u32("e_flags", 24 + 3 * word)?,
            phnum: match &first {
                Some(first) if phnum == 0xffff => u64::from(first.info),
                _ => phnum,
            },
            shnum: match &first {
                Some(first) if shnum == 0 => first.size,
                _ if !has_sections => 0,
                _ => shnum,
            },
            shstrndx: match &first {
                Some(first) if shstrndx == u64::from(elf::SHN_XINDEX.0) => u64::from(first.link),
                _ => shstrndx,
            },
        })
    }
}

/// A program header: what the kernel and the loader map, or look at, when the file is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub kind: elf::ProgramType,
    pub flags: u32,
    pub offset: u64,
    pub vaddr: u64,
    pub paddr: u64,
    pub filesz: u64,
    pub memsz: u64,
    pub align: u64,
}

impl Segment {
    pub fn read(bytes: Bytes<'_>, at: u64) -> Result<Self, ElfError> {
        let what = "program header";
        bytes.slice(what, at, bytes.form.segment_size())?;
        Ok(match bytes.form.class {
            Class::Elf32 => Self {
                kind: elf::ProgramType(bytes.u32(what, at)?),
                offset: bytes.word(what, at + 4)?,
                vaddr: bytes.word(what, at + 8)?,
                paddr: bytes.word(what, at + 12)?,
                filesz: bytes.word(what, at + 16)?,
                memsz: bytes.word(what, at + 20)?,
                flags: bytes.u32(what, at + 24)?,
                align: bytes.word(what, at + 28)?,
            },
            Class::Elf64 => Self {
                kind: elf::ProgramType(bytes.u32(what, at)?),
                flags: bytes.u32(what, at + 4)?,
                offset: bytes.word(what, at + 8)?,
                vaddr: bytes.word(what, at + 16)?,
                paddr: bytes.word(what, at + 24)?,
                filesz: bytes.word(what, at + 32)?,
                memsz: bytes.word(what, at + 40)?,
                align: bytes.word(what, at + 48)?,
            },
        })
    }

    pub fn write(&self, out: &mut Writer) {
        out.u32(self.kind.0);
        match out.form.class {
            Class::Elf32 => out
                .word(self.offset)
                .word(self.vaddr)
                .word(self.paddr)
                .word(self.filesz)
                .word(self.memsz)
                .u32(self.flags)
                .word(self.align),
            Class::Elf64 => out
                .u32(self.flags)
                .word(self.offset)
                .word(self.vaddr)
                .word(self.paddr)
                .word(self.filesz)
                .word(self.memsz)
                .word(self.align),
        };
    }

    pub fn is_load(&self) -> bool {
        self.kind == elf::PT_LOAD
    }

    /// The bytes that it takes from the file.
    pub fn range(&self) -> Range {
        Range::new(self.offset, self.filesz)
    }
}

/// A section header: what linkers, debuggers and `strip` look at. Not needed to run a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Section {
    pub name: u32,
    pub kind: elf::SectionType,
    pub flags: u64,
    pub addr: u64,
    pub offset: u64,
    pub size: u64,
    pub link: u32,
    pub info: u32,
    pub align: u64,
    pub entsize: u64,
}

impl Section {
    pub fn read(bytes: Bytes<'_>, at: u64) -> Result<Self, ElfError> {
        let what = "section header";
        bytes.slice(what, at, bytes.form.section_size())?;
        let word = bytes.form.word();
        Ok(Self {
            name: bytes.u32(what, at)?,
            kind: elf::SectionType(bytes.u32(what, at + 4)?),
            flags: bytes.word(what, at + 8)?,
            addr: bytes.word(what, at + 8 + word)?,
            offset: bytes.word(what, at + 8 + 2 * word)?,
            size: bytes.word(what, at + 8 + 3 * word)?,
            link: bytes.u32(what, at + 8 + 4 * word)?,
            info: bytes.u32(what, at + 12 + 4 * word)?,
            align: bytes.word(what, at + 16 + 4 * word)?,
            entsize: bytes.word(what, at + 16 + 5 * word)?,
        })
    }

    pub fn write(&self, out: &mut Writer) {
        out.u32(self.name)
            .u32(self.kind.0)
            .word(self.flags)
            .word(self.addr)
            .word(self.offset)
            .word(self.size)
            .u32(self.link)
            .u32(self.info)
            .word(self.align)
            .word(self.entsize);
    }

    pub fn is_alloc(&self) -> bool {
        self.flags & elf::SHF_ALLOC.0 != 0
    }

    pub fn is_nobits(&self) -> bool {
        self.kind == elf::SHT_NOBITS
    }

    /// The bytes that it takes from the file: none for `SHT_NULL` and `SHT_NOBITS`, whatever their size says.
    pub fn range(&self) -> Range {
        let empty = self.is_nobits() || self.kind == elf::SHT_NULL;
        Range::new(self.offset, if empty { 0 } else { self.size })
    }
}

/// A half-open range of file offsets or addresses. Its end never overflows: construction saturates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    pub fn new(start: u64, length: u64) -> Self {
        Self { start, end: start.saturating_add(length) }
    }

    pub fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }

    pub fn overlaps(self, other: Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.start < other.end && other.start < self.end
    }

    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    pub fn has(self, at: u64) -> bool {
        self.start <= at && at < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Class, Endian, Form, Range, Section, Segment, Writer, align_up, slice};
    use object::elf;

    fn forms() -> impl Iterator<Item = Form> {
        let classes = [Class::Elf32, Class::Elf64];
        classes.into_iter().flat_map(|class| [Endian::Little, Endian::Big].map(|endian| Form { class, endian }))
    }

    #[test]
    fn records_survive_writing_and_reading() {
        for form in forms() {
            let (kind, offset, vaddr, paddr) = (elf::PT_NOTE, 1, 2, 3);
            let segment = Segment { kind, flags: 5, offset, vaddr, paddr, filesz: 4, memsz: 6, align: 8 };
            let mut out = Writer::new(form);
            segment.write(&mut out);
            let data = out.finish().unwrap();
            assert_eq!(data.len() as u64, form.segment_size());
            assert_eq!(Segment::read(Bytes { data: super::Data::Whole(&data), form }, 0).unwrap(), segment);

            let (kind, addr, entsize) = (elf::SHT_NOTE, 0x1000, 9);
            let section =
                Section { name: 1, kind, flags: 2, addr, offset: 3, size: 4, link: 5, info: 6, align: 7, entsize };
            let mut out = Writer::new(form);
            section.write(&mut out);
            let data = out.finish().unwrap();
            assert_eq!(data.len() as u64, form.section_size());
            assert_eq!(Section::read(Bytes { data: super::Data::Whole(&data), form }, 0).unwrap(), section);
        }
    }

    #[test]
    fn large_numbers_do_not_fit_in_32_bits() {
        let mut out = Writer::new(Form { class: Class::Elf32, endian: Endian::Little });
        out.word(1 << 32);
        assert!(out.finish().is_err());
    }

    #[test]
    fn nothing_overflows() {
        assert_eq!(slice(&[1, 2, 3], u64::MAX, 2), None);
        assert_eq!(slice(&[1, 2, 3], 1, u64::MAX), None);
        assert_eq!(slice(&[1, 2, 3], 1, 2), Some(&[2, 3][..]));
        assert_eq!((align_up(5, 4), align_up(5, 0), align_up(u64::MAX, 8)), (Some(8), Some(5), None));
        let all = Range::new(u64::MAX - 1, 10);
        assert!(all.overlaps(Range::new(0, u64::MAX)) && !all.overlaps(Range::new(0, 0)));
    }
}
