//! The version tables (`DT_VERNEED`, `DT_VERDEF`, `DT_VERSYM`): which versions of whose symbols a file needs, and which it offers.
//!
//! glibc's loader goes through these linked lists before it starts anything, and so does [`View::versions`]. Their records hold
//! distances to the next one; a walk takes each byte of the table once at the most, so that a loop ends.
//!
//! Source: LSB Core "Symbol Versioning", glibc's `elf/dl-version.c`.

use object::elf;

use super::error::ElfError;
use super::raw::Range;
use super::symbols::Symbol;
use super::view::View;

/// One library of `DT_VERNEED`.
#[derive(Debug)]
pub(super) struct Need<'a> {
    pub library: &'a [u8],
    pub versions: Vec<&'a [u8]>,
    pub weak: Vec<&'a [u8]>,
    /// By which number `DT_VERSYM` means each of `versions`.
    pub indices: Vec<u16>,
}

/// The version tables, and every `.dynstr` offset that they use.
#[derive(Debug, Default)]
pub(super) struct Versions<'a> {
    pub needs: Vec<Need<'a>>,
    pub defs: Vec<&'a [u8]>,
    pub offsets: Vec<u32>,
    /// Where they name a file: the libraries of `DT_VERNEED`, and the file itself in `DT_VERDEF`.
    pub files: Vec<FileName>,
    /// The last byte used by `DT_VERNEED` and by `DT_VERDEF`, as ranges in the file.
    pub ranges: Vec<Range>,
}

/// A field that holds the offset of a file's name in `.dynstr`.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileName {
    /// Where the field is in the file, in bytes.
    pub at: u64,
    pub name: u32,
    /// Where the name's hash is, if there is one.
    pub hash_at: Option<u64>,
}

impl<'a> View<'a> {
    /// Reads `DT_VERNEED` and `DT_VERDEF`: which versions of whose symbols are needed, and which are offered.
    pub fn versions(&self) -> Result<&Versions<'a>, ElfError> {
        self.versions.as_ref().map_err(Clone::clone)
    }

    pub(super) fn read_versions(&self) -> Result<Versions<'a>, ElfError> {
        let mut found = Versions::default();
        let Some(dynamic) = &self.dynamic else { return Ok(found) };
        if let Some(addr) = dynamic.get(elf::DT_VERNEED) {
            let count = dynamic.get(elf::DT_VERNEEDNUM).unwrap_or(u64::MAX);
            self.version_needs(addr, count, &mut found)?;
        }
        if let Some(addr) = dynamic.get(elf::DT_VERDEF) {
            let count = dynamic.get(elf::DT_VERDEFNUM).unwrap_or(u64::MAX);
            self.version_defs(addr, count, &mut found)?;
        }
        Ok(found)
    }

    fn version_needs(&self, addr: u64, count: u64, found: &mut Versions<'a>) -> Result<(), ElfError> {
        let what = "DT_VERNEED";
        let mut walk = Walk::new(self.mapped_rest(what, addr)?, what);
        let mut at = walk.table.start;
        for _ in 0..count {
            // Elf_Verneed: version, cnt, file, aux, next; then Elf_Vernaux: hash, flags, other, name, next.
            walk.step(at, 16)?;
            let auxiliaries = self.bytes.u16(what, at + 2)?;
            let file = self.bytes.u32(what, at + 4)?;
            let mut need = Need {
                library: self.string(what, u64::from(file))?,
                versions: Vec::new(),
                weak: Vec::new(),
                indices: Vec::new(),
            };
            found.offsets.push(file);
            found.files.push(FileName { at: at + 4, name: file, hash_at: None });
            let mut aux = walk.forward(at, self.bytes.u32(what, at + 8)?)?;
            for _ in 0..auxiliaries {
                walk.step(aux, 16)?;
                let name = self.bytes.u32(what, aux + 8)?;
                let text = self.string(what, u64::from(name))?;
                need.versions.push(text);
                need.indices.push(self.bytes.u16(what, aux + 6)? & 0x7fff);
                if self.bytes.u16(what, aux + 4)? & elf::VER_FLG_WEAK.0 != 0 {
                    need.weak.push(text);
                }
                found.offsets.push(name);
                match self.bytes.u32(what, aux + 12)? {
                    0 => break,
                    next => aux = walk.forward(aux, next)?,
                }
            }
            found.needs.push(need);
            match self.bytes.u32(what, at + 12)? {
                0 => break,
                next => at = walk.forward(at, next)?,
            }
        }
        found.ranges.push(Range { start: walk.table.start, end: walk.last });
        Ok(())
    }

    /// The first symbol that is needed in this version of this library; nothing when only the version itself is needed.
    pub fn symbol_of_version(&self, library: &[u8], version: &[u8]) -> Result<Option<&'a [u8]>, ElfError> {
        let what = "DT_VERSYM";
        let versions = self.versions()?;
        let needs = versions.needs.iter().filter(|need| need.library == library);
        let mut numbers = needs.flat_map(|need| need.versions.iter().zip(&need.indices));
        let Some(number) = numbers.find(|(text, _)| **text == version).map(|(_, number)| *number) else {
            return Ok(None);
        };
        let Some(table) = self.dynamic.as_ref().and_then(|dynamic| dynamic.get(elf::DT_VERSYM)) else {
            return Ok(None);
        };
        let Some(symbols) = self.dynsym()? else { return Ok(None) };
        let size = self.bytes.form.symbol_size();
        let count = symbols.len() / size;
        let table = self.mapped(what, table, 2 * count)?;
        for index in 0..count {
            if self.bytes.u16(what, table.start + 2 * index)? & 0x7fff == number {
                let name = Symbol::read(self.bytes, symbols.start + index * size)?.name;
                return self.string("symbol name", u64::from(name)).map(Some);
            }
        }
        Ok(None)
    }

    fn version_defs(&self, addr: u64, count: u64, found: &mut Versions<'a>) -> Result<(), ElfError> {
        let what = "DT_VERDEF";
        let mut walk = Walk::new(self.mapped_rest(what, addr)?, what);
        let mut at = walk.table.start;
        for _ in 0..count {
            // Elf_Verdef: version, flags, ndx, cnt, hash, aux, next; then Elf_Verdaux: name, next.
            walk.step(at, 20)?;
            let is_base = self.bytes.u16(what, at + 2)? & elf::VER_FLG_BASE.0 != 0;
            let auxiliaries = self.bytes.u16(what, at + 6)?;
            let mut aux = walk.forward(at, self.bytes.u32(what, at + 12)?)?;
            for index in 0..auxiliaries {
                walk.step(aux, 8)?;
                let name = self.bytes.u32(what, aux)?;
                let text = self.string(what, u64::from(name))?;
                // The first name is the version's own, the others are its parents'. The base names the file itself.
                if index == 0 && is_base {
                    found.files.push(FileName { at: aux, name, hash_at: Some(at + 8) });
                } else if index == 0 {
                    found.defs.push(text);
                }
                found.offsets.push(name);
                match self.bytes.u32(what, aux + 4)? {
                    0 => break,
                    next => aux = walk.forward(aux, next)?,
                }
            }
            match self.bytes.u32(what, at + 16)? {
                0 => break,
                next => at = walk.forward(at, next)?,
            }
        }
        found.ranges.push(Range { start: walk.table.start, end: walk.last });
        Ok(())
    }
}

/// Bounds a walk through a linked table: every step needs bytes of its own, so that loops end.
struct Walk {
    table: Range,
    what: &'static str,
    budget: u64,
    last: u64,
}

impl Walk {
    fn new(table: Range, what: &'static str) -> Self {
        Self { table, what, budget: table.len(), last: table.start }
    }

    /// Takes a record of `size` bytes at `at`.
    fn step(&mut self, at: u64, size: u64) -> Result<(), ElfError> {
        let record = Range::new(at, size);
        if !self.table.contains(record) || self.budget < size {
            return Err(ElfError::Invalid { what: self.what, offset: at, value: size });
        }
        self.budget -= size;
        self.last = self.last.max(record.end);
        Ok(())
    }

    fn forward(&self, at: u64, by: u32) -> Result<u64, ElfError> {
        at.checked_add(u64::from(by)).ok_or(ElfError::Invalid { what: self.what, offset: at, value: u64::from(by) })
    }
}
