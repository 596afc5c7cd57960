//! What an ELF file of a tree says about places in the tree, and what it says after the tree moved: its search path, libraries
//! that it names by their path, and the loader that starts it.

use super::prefix::Prefixes;
use crate::elf::{self, Edit, Edited, ElfError, SearchPath};
use crate::fsutil;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// An ELF file after a move.
#[derive(Debug)]
pub(super) struct Made {
    pub bytes: Vec<u8>,
    /// The search path, or names of libraries, are others.
    pub search_path: bool,
    /// The loader is another.
    pub interpreter: bool,
    /// What could not be changed, and why.
    pub refused: Option<String>,
}

/// Changes what can be changed at any length of the new prefix.
pub(super) fn make(path: &Path, bytes: Vec<u8>, prefixes: &Prefixes<'_>) -> Made {
    let mut made = Made { bytes, search_path: false, interpreter: false, refused: None };
    match search_path(path, &made.bytes, prefixes) {
        Ok(Some(bytes)) => (made.bytes, made.search_path) = (bytes, true),
        Ok(None) => {}
        Err(error) => made.refused = Some(format!("its search path cannot be edited: {error}")),
    }
    match interpreter(&made.bytes, prefixes) {
        Ok(Some(bytes)) => (made.bytes, made.interpreter) = (bytes, true),
        Ok(None) => {}
        Err(error) if made.refused.is_none() => {
            made.refused = Some(format!("its interpreter cannot be edited: {error}"));
        }
        Err(_) => {}
    }
    made
}

/// `folder` of the tree as seen from the file `path` of the tree.
fn from_origin(path: &Path, folder: &Path) -> Vec<u8> {
    let relative = fsutil::relative(fsutil::parent_of(path), folder);
    let mut new = b"$ORIGIN".to_vec();
    if relative != Path::new(".") {
        new.push(b'/');
        new.extend_from_slice(relative.as_os_str().as_bytes());
    }
    new
}

/// The file with a search path that names folders of the tree relative to `$ORIGIN`, and libraries by their names alone;
/// `None` when it names nothing of the tree.
fn search_path(path: &Path, bytes: &[u8], prefixes: &Prefixes<'_>) -> Result<Option<Vec<u8>>, ElfError> {
    let file = elf::parse(bytes)?;
    let old = file.search_path().unwrap_or_default();
    let mut folders: Vec<Vec<u8>> = Vec::new();
    for folder in old.split(|byte| *byte == b':').filter(|_| !old.is_empty()) {
        let new = match prefixes.below(folder) {
            Some(below) => from_origin(path, Path::new(OsStr::from_bytes(below))),
            None => folder.to_vec(),
        };
        if !folders.contains(&new) {
            folders.push(new);
        }
    }
    let mut named = file.soname.iter().any(|name| prefixes.below(name).is_some());
    for below in file.needed.iter().filter_map(|name| prefixes.below(name)) {
        named = true;
        let new = from_origin(path, fsutil::parent_of(Path::new(OsStr::from_bytes(below))));
        if !folders.contains(&new) {
            folders.push(new);
        }
    }
    let new = folders.join(&b':');
    if new == old && !named {
        return Ok(None);
    }
    let search_path = match (new.is_empty(), &file.runpath) {
        (true, _) => SearchPath::Keep,
        (false, Some(_)) => SearchPath::Runpath(new),
        // Also for a file that had none: a DT_RUNPATH would shut out the DT_RPATH of the program that loads it.
        (false, None) => SearchPath::Rpath(new),
    };
    let bare_below = Some(prefixes.from().to_vec());
    match elf::edit(bytes, &Edit { search_path, bare_below, ..Edit::default() })? {
        Edited::Changed(bytes) => Ok(Some(bytes)),
        Edited::Unchanged => Ok(None),
    }
}

/// The file with its loader below the new prefix. The kernel knows no `$ORIGIN`: this name stays absolute.
fn interpreter(bytes: &[u8], prefixes: &Prefixes<'_>) -> Result<Option<Vec<u8>>, ElfError> {
    let Some(old) = elf::parse(bytes)?.interpreter else { return Ok(None) };
    let Some(below) = prefixes.below(&old) else { return Ok(None) };
    match elf::set_interpreter(bytes, &[prefixes.to(), b"/", below].concat())? {
        Edited::Changed(bytes) => Ok(Some(bytes)),
        Edited::Unchanged => Ok(None),
    }
}
