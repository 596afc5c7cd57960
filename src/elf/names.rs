//! Names of libraries that are paths: `DT_NEEDED` and `DT_SONAME` say `/build/lib/liba.so` where a linker was told so
//! (`-soname /build/lib/liba.so`, or a library without a soname that was named by its path).
//!
//! The loader opens such a name as it stands and asks no search path. Taking the folder away makes it a name that is looked
//! for. No new text is needed: `liba.so` is the tail of the string that is there, so only offsets change, and the folder's
//! bytes are wiped where nothing else reads them. The version tables name the same files, and the loader compares
//! (`find_needed` in glibc's `elf/dl-version.c`), so their names change alike.

use std::collections::BTreeMap;

use object::elf::{self, DynamicTag};

use super::draft::Draft;
use super::error::ElfError;
use super::raw::Writer;
use super::view::{Dynamic, View};

/// The names that lose their folders.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Offset in `.dynstr` of each, and how many bytes its folder has, the slash included.
    folders: BTreeMap<u64, u64>,
    /// Words in the version tables: place in the file, new value.
    words: Vec<(u64, u32)>,
}

pub(super) const fn is_name(tag: DynamicTag) -> bool {
    matches!(tag, elf::DT_NEEDED | elf::DT_SONAME)
}

/// The file's name at the end of a path below `folder`; `None` for any other name.
pub(super) fn bare<'n>(name: &'n [u8], folder: &[u8]) -> Option<&'n [u8]> {
    let rest = name.strip_prefix(folder)?;
    let slash = rest.iter().rposition(|byte| *byte == b'/')?;
    rest.get(slash + 1..).filter(|file| rest.starts_with(b"/") && !file.is_empty() && *file != b"." && *file != b"..")
}

impl Names {
    /// What changes when names below `folder` lose it; with `None`, nothing.
    pub fn plan(view: &View<'_>, dynamic: &Dynamic, folder: Option<&[u8]>) -> Result<Self, ElfError> {
        let mut found = Self::default();
        // In most files no text is of the build.
        let Some(folder) = folder.filter(|_| dynamic.strings.is_some()) else { return Ok(found) };
        if memchr::memmem::find(view.dynstr()?, folder).is_none() {
            return Ok(found);
        }
        let mut take = |offset: u64| -> Result<Option<&[u8]>, ElfError> {
            let text = view.string("a library's name", offset)?;
            let file = bare(text, folder);
            if let Some(file) = file {
                found.folders.insert(offset, (text.len() - file.len()) as u64);
            }
            Ok(file)
        };
        for entry in dynamic.entries.iter().filter(|entry| is_name(entry.tag)) {
            take(entry.value)?;
        }
        let mut words = Vec::new();
        let files = &view.versions()?.files;
        for field in files {
            let Some(file) = take(u64::from(field.name))? else { continue };
            if let Some(at) = field.hash_at {
                words.push((at, sysv_hash(file)));
            }
        }
        for field in files {
            if let Some(length) = found.folders.get(&u64::from(field.name)) {
                words.push((field.at, field.name + u32::try_from(*length).unwrap_or_default()));
            }
        }
        found.words = words;
        Ok(found)
    }

    pub fn is_empty(&self) -> bool {
        self.folders.is_empty()
    }

    /// The offset of a name after the change.
    pub fn new_offset(&self, old: u64) -> u64 {
        old + self.folders.get(&old).copied().unwrap_or(0)
    }

    /// The folders in `.dynstr`, as offset and length.
    pub fn folders(&self) -> impl Iterator<Item = (u64, u64)> {
        self.folders.iter().map(|(offset, length)| (*offset, *length))
    }

    /// Changes the version tables. The dynamic section is written with the search path.
    pub fn apply(&self, draft: &mut Draft<'_>) -> Result<(), ElfError> {
        for (at, word) in &self.words {
            let mut bytes = Writer::new(draft.view.bytes.form);
            bytes.u32(*word);
            let bytes = bytes.finish()?;
            draft.put(*at, &bytes)?;
        }
        Ok(())
    }

    /// How many words of the version tables change.
    pub fn words(&self) -> usize {
        self.words.len()
    }
}

/// The hash of the System V gABI, chapter 5 "Hash Table", which `vd_hash` holds too.
fn sysv_hash(name: &[u8]) -> u32 {
    name.iter().fold(0_u32, |hash, byte| {
        let hash = (hash << 4).wrapping_add(u32::from(*byte));
        let high = hash & 0xf000_0000;
        (hash ^ (high >> 24)) & !high
    })
}

#[cfg(test)]
mod tests {
    use super::{bare, sysv_hash};

    #[test]
    fn only_paths_below_the_folder_are_bared() {
        for (name, want) in [
            ("/build/lib/liba.so.1", Some("liba.so.1")),
            ("/build/liba.so", Some("liba.so")),
            ("/build", None),
            ("/build/", None),
            ("/build/lib/..", None),
            ("/builder/lib/liba.so", None),
            ("/usr/lib/liba.so", None),
            ("liba.so", None),
            ("lib/liba.so", None),
        ] {
            assert_eq!(bare(name.as_bytes(), b"/build"), want.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn the_hash_is_that_of_the_linkers() {
        // `readelf -V` shows no hashes; these are from `objdump -p` of glibc's libc.so.6.
        assert_eq!(sysv_hash(b"libc.so.6"), 0x0865_f4e6);
        assert_eq!(sysv_hash(b"GLIBC_2.2.5"), 0x0969_1a75);
    }
}
