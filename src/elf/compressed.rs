//! Sections that are compressed (`gcc -gz`, `objcopy --compress-debug-sections`): which, how, and where their bytes are.
//!
//! Sources: gABI chapter 4 "Section Compression" (`SHF_COMPRESSED`, `Elf64_Chdr`); binutils' older form, a section named
//! `.zdebug_info` whose bytes start with `ZLIB` and the size as eight bytes, the highest first.

use object::elf;

use super::error::ElfError;
use super::raw::{Class, Section as Header};
use super::view::View;

/// How a section is compressed (`ch_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `ELFCOMPRESS_ZLIB`: RFC 1950.
    Zlib,
    /// `ELFCOMPRESS_ZSTD`: RFC 8878.
    Zstd,
    /// A method that is not known here.
    Other(u32),
}

/// A compressed section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section<'a> {
    /// Its name, `.debug_line`.
    pub name: String,
    /// How it is compressed.
    pub compression: Compression,
    /// Its size before that, in bytes, as its header says.
    pub size: u64,
    /// The compressed bytes, without a header.
    pub bytes: &'a [u8],
}

/// The compressed sections of a file, in their order.
///
/// # Errors
///
/// When the file is malformed.
pub fn compressed(data: &[u8]) -> Result<Vec<Section<'_>>, ElfError> {
    let view = View::parse(data)?;
    let mut found = Vec::new();
    for section in &view.sections {
        let name = || view.section_name(section).map(|name| String::from_utf8_lossy(name).into_owned());
        if section.flags & elf::SHF_COMPRESSED.0 != 0 && !section.is_nobits() {
            found.push(with_header(&view, section, name()?)?);
        } else if !section.is_alloc()
            && section.kind == elf::SHT_PROGBITS
            && view.section_name(section)?.starts_with(b".zdebug")
        {
            found.extend(old_form(view.contents(section)?, name()?));
        }
    }
    Ok(found)
}

fn with_header<'a>(view: &View<'a>, section: &Header, name: String) -> Result<Section<'a>, ElfError> {
    let what = "compression header";
    // ch_type, in 64 bits a reserved word, ch_size, ch_addralign.
    let (size_at, length) = if view.bytes.form.class == Class::Elf64 { (8, 24) } else { (4, 12) };
    let at = section.offset;
    if section.size < length {
        return Err(ElfError::Invalid { what, offset: at, value: section.size });
    }
    let compression = match elf::CompressionType(view.bytes.u32(what, at)?) {
        elf::ELFCOMPRESS_ZLIB => Compression::Zlib,
        elf::ELFCOMPRESS_ZSTD => Compression::Zstd,
        other => Compression::Other(other.0),
    };
    let size = view.bytes.word(what, at + size_at)?;
    Ok(Section { name, compression, size, bytes: view.bytes.slice(what, at + length, section.size - length)? })
}

fn old_form(bytes: &[u8], name: String) -> Option<Section<'_>> {
    let (size, bytes) = bytes.strip_prefix(b"ZLIB")?.split_first_chunk()?;
    Some(Section { name, compression: Compression::Zlib, size: u64::from_be_bytes(*size), bytes })
}
