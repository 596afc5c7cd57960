//! What becomes of one file of a tree that is moved.

use super::report::{Leftover, MoveError};
use crate::elf;
use crate::fsutil;
use crate::relocate::copy::with_content;
use crate::relocate::hidden::{self, Compressed};
use crate::relocate::prefix::Prefixes;
use crate::relocate::verify::{Unseen, printable, shown};
use crate::relocate::{elf_paths, text};
use fs_err as fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The longest first line of a script that every kernel in use reads whole (`BINPRM_BUF_SIZE` of Linux before 5.1).
const SHEBANG: usize = 127;

/// How many places of one file are told one by one.
const PLACES: usize = 1000;

/// Files from this size on, in bytes, are searched block by block before they are read whole: data that names no prefix needs no
/// memory of its size.
const LARGE: u64 = 64 << 20;

/// What becomes of one file.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Its names that this is about, the first one first.
    pub names: Vec<PathBuf>,
    /// The new content; nothing when it stays.
    pub bytes: Option<Vec<u8>>,
    pub search_path: bool,
    pub interpreter: bool,
    pub text: bool,
    pub through_env: bool,
    pub strings: u64,
    pub leftovers: Vec<Leftover>,
    pub unseen: Vec<Unseen>,
}

/// What becomes of the file with these names, which has `size` bytes. A program that has names in two folders looks along other
/// paths from each, and becomes two files.
pub(super) fn changes(
    dir: &Path,
    names: &[PathBuf],
    size: u64,
    prefixes: &Prefixes<'_>,
) -> Result<Vec<Change>, MoveError> {
    let Some(first) = names.first().filter(|_| size > 0) else { return Ok(Vec::new()) };
    let path = dir.join(first);
    if size >= LARGE && !is_worth_reading(&path, prefixes)? {
        return Ok(Vec::new());
    }
    with_content(&path, |bytes| {
        let mut changes = Vec::new();
        if prefixes.find(bytes).next().is_some() {
            changes = all_names(names, bytes, prefixes);
        }
        let (leftovers, unseen) = in_compressed(first, bytes, prefixes);
        if !leftovers.is_empty() || !unseen.is_empty() {
            changes.push(Change { leftovers, unseen, ..Change::default() });
        }
        Ok(changes)
    })
}

/// Whether a file is an ELF file or compressed, or holds the prefix's text.
fn is_worth_reading(path: &Path, prefixes: &Prefixes<'_>) -> io::Result<bool> {
    const BLOCK: usize = 1 << 20;
    let finder = memchr::memmem::Finder::new(prefixes.from());
    let mut file = fs::File::open(path)?;
    let mut block: Vec<u8> = Vec::with_capacity(BLOCK + prefixes.from().len());
    loop {
        let begins = block.is_empty();
        let read = file.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        if (begins && (elf::is_elf(&block) || hidden::is_compressed(&block))) || finder.find(&block).is_some() {
            return Ok(true);
        }
        if read == 0 {
            return Ok(false);
        }
        // What begins in this block may end in the next.
        let kept = block.len().min(prefixes.from().len() - 1);
        block.drain(..block.len() - kept);
    }
}

/// The changes for all names; those that agree are one.
fn all_names(names: &[PathBuf], bytes: &[u8], prefixes: &Prefixes<'_>) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for name in names {
        let known = changes.iter_mut().find(|known| {
            let first = known.names.first().map_or(Path::new(""), PathBuf::as_path);
            // Only a search path depends on where the file is.
            !known.search_path || fsutil::parent_of(first) == fsutil::parent_of(name)
        });
        match known {
            Some(known) => known.names.push(name.clone()),
            None => changes.push(Change { names: vec![name.clone()], ..one_content(name, bytes, prefixes) }),
        }
    }
    changes
}

/// What becomes of a file that names the old prefix.
fn one_content(path: &Path, bytes: &[u8], prefixes: &Prefixes<'_>) -> Change {
    let mut change = Change::default();
    if !elf::is_elf(bytes) && text::is_text(bytes) {
        let Some(mut new) = prefixes.in_text(bytes) else { return change };
        if let Some(line) = through_env(&new) {
            let end = memchr::memchr(b'\n', &new).unwrap_or(new.len());
            new.splice(..end, line);
            change.through_env = true;
        }
        (change.text, change.bytes) = (true, Some(new));
        return change;
    }
    let mut new = bytes.to_vec();
    let mut why = "it is compiled in, and the new prefix is longer".to_owned();
    if elf::is_elf(&new) {
        let made = elf_paths::make(path, new, prefixes);
        (change.search_path, change.interpreter, new) = (made.search_path, made.interpreter, made.bytes);
        if let Some(error) = made.refused {
            why = format!("{why}; {error}");
        }
    }
    if prefixes.fits() {
        change.strings = prefixes.in_binary(&mut new) as u64;
    } else {
        let leftover = |offset: usize| Leftover {
            path: path.to_owned(),
            compressed: None,
            offset,
            text: shown(&printable(&new[offset..])),
            reason: why.clone(),
        };
        let mut found = prefixes.find(&new);
        change.leftovers = found.by_ref().take(PLACES).map(leftover).collect();
        let more = found.count();
        if let Some(last) = change.leftovers.last_mut().filter(|_| more > 0) {
            last.reason = format!("{}; and {more} more in this file", last.reason);
        }
    }
    if change.search_path || change.interpreter || change.strings > 0 {
        change.bytes = Some(new);
    }
    change
}

/// Where the old prefix stands in what a compiler compressed, which is debug information that nothing needs to run, or in a file
/// that is compressed as a whole; and what cannot be looked into.
fn in_compressed(path: &Path, bytes: &[u8], prefixes: &Prefixes<'_>) -> (Vec<Leftover>, Vec<Unseen>) {
    let look = |block: &[u8]| prefixes.find(block).collect();
    let leftover = |compressed, offset, text: &str, reason| {
        let path = path.to_owned();
        Leftover { path, compressed: Some(compressed), offset, text: shown(text), reason }
    };
    // One stands for all: there are thousands, and what helps against one helps against all.
    let first = |compressed, found: Vec<(usize, String)>| {
        let more = if found.len() > 1 { format!(", and {} more", found.len() - 1) } else { String::new() };
        found.first().map(|(offset, text)| leftover(compressed, *offset, text, format!("it is compressed{more}")))
    };
    if !elf::is_elf(bytes) {
        return match hidden::find_in_file(bytes, look) {
            None => (Vec::new(), Vec::new()),
            Some((format, Ok(found))) => (first(Compressed::File(format), found).into_iter().collect(), Vec::new()),
            Some((_, Err(reason))) => (Vec::new(), vec![Unseen { path: path.to_owned(), reason }]),
        };
    }
    // A malformed file has no sections: it was looked at as the bytes that it is.
    let sections = elf::compressed(bytes).unwrap_or_default();
    let told = sections.iter().filter_map(|section| {
        let compressed = Compressed::Section(section.name.clone());
        match hidden::find(section, look) {
            Ok(found) => first(compressed, found),
            Err(reason) => Some(leftover(compressed, 0, "", reason)),
        }
    });
    (told.collect(), Vec::new())
}

/// Another first line for a script whose interpreter the kernel would not find: it takes [`SHEBANG`] bytes, and ends the
/// interpreter's path at a blank.
fn through_env(content: &[u8]) -> Option<Vec<u8>> {
    let end = memchr::memchr(b'\n', content).unwrap_or(content.len());
    let command = content[..end].strip_prefix(b"#!")?.trim_ascii();
    // An interpreter's path with a blank in it is not to be told from one with an argument: the last `/bin/` tells.
    let name_at = memchr::memmem::rfind(command, b"/bin/")? + b"/bin/".len();
    let blank = memchr::memchr2(b' ', b'\t', &command[..name_at]).is_some();
    if !blank && end <= SHEBANG {
        return None;
    }
    let rest = &command[name_at..];
    let split = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
    let (name, arguments) = (&rest[..split], rest[split..].trim_ascii());
    Some(text::through_env(name, arguments))
}
