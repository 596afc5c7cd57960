//! The records of symbol tables (`Elf32_Sym`, `Elf64_Sym`): read one by one, and all of a table in one go. Libraries have tens of
//! thousands of them, which are most of what an edit looks at.
//!
//! Source: the System V gABI, chapter 4 "Symbol Table".

use super::error::ElfError;
use super::raw::{Bytes, Class, Form};

/// A symbol table entry, without what nobody here needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Symbol {
    pub name: u32,
    pub info: u8,
    pub shndx: u16,
    pub value: u64,
    pub size: u64,
}

impl Symbol {
    pub fn read(bytes: Bytes<'_>, at: u64) -> Result<Self, ElfError> {
        let (what, length) = ("symbol", bytes.form.symbol_size());
        let truncated = ElfError::Truncated { what, offset: at, length, file: bytes.len() };
        Self::of(bytes.slice(what, at, length)?, bytes.form).ok_or(truncated)
    }

    /// The records of a table, one behind the other. What is no whole record at its end is left out.
    pub fn all(table: &[u8], form: Form) -> impl Iterator<Item = Self> {
        let size = usize::try_from(form.symbol_size()).unwrap_or(usize::MAX);
        table.chunks_exact(size).filter_map(move |record| Self::of(record, form))
    }

    /// The order of the fields is another in each class.
    fn of(record: &[u8], form: Form) -> Option<Self> {
        let (name, rest) = record.split_first_chunk()?;
        let name = form.u32(*name);
        Some(match form.class {
            Class::Elf32 => {
                let (value, rest) = rest.split_first_chunk()?;
                let (size, rest) = rest.split_first_chunk()?;
                let ([info, _], rest) = rest.split_first_chunk()?;
                let (value, size) = (u64::from(form.u32(*value)), u64::from(form.u32(*size)));
                Self { name, info: *info, shndx: form.u16(*rest.first_chunk()?), value, size }
            }
            Class::Elf64 => {
                let ([info, _], rest) = rest.split_first_chunk()?;
                let (shndx, rest) = rest.split_first_chunk()?;
                let (value, rest) = rest.split_first_chunk()?;
                let (value, size) = (form.u64(*value), form.u64(*rest.first_chunk()?));
                Self { name, info: *info, shndx: form.u16(*shndx), value, size }
            }
        })
    }

    /// Where the fields are inside a record.
    pub const fn fields(form: Form) -> SymbolFields {
        match form.class {
            Class::Elf32 => SymbolFields { shndx: 14, value: 4 },
            Class::Elf64 => SymbolFields { shndx: 6, value: 8 },
        }
    }

    pub const fn symbol_type(self) -> u8 {
        self.info & 0xf
    }

    pub const fn is_local(self) -> bool {
        self.info >> 4 == 0
    }
}

/// See [`Symbol::fields`].
pub(super) struct SymbolFields {
    pub shndx: usize,
    pub value: usize,
}

#[cfg(test)]
mod tests {
    use super::super::parts::Data;
    use super::super::raw::Endian;
    use super::{Bytes, Class, Form, Symbol};

    #[test]
    fn symbols_are_read_in_both_classes() {
        // name, (info, other, shndx,) value, size, (info, other, shndx)
        let narrow = [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0x12, 0, 7, 0];
        let wide = [1, 0, 0, 0, 0x12, 0, 7, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
        for (class, data) in [(Class::Elf32, &narrow[..]), (Class::Elf64, &wide[..])] {
            let form = Form { class, endian: Endian::Little };
            let symbol = Symbol::read(Bytes { data: Data::Whole(data), form }, 0).unwrap();
            assert_eq!(symbol, Symbol { name: 1, info: 0x12, shndx: 7, value: 2, size: 3 });
            assert!(!symbol.is_local() && symbol.symbol_type() == 2);
            let table = [data, data, &data[1..]].concat();
            assert_eq!(Symbol::all(&table, form).collect::<Vec<_>>(), [symbol, symbol], "the rest is no record");
        }
    }
}
