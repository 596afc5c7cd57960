//! The list of what a move renames, and how it is carried out: all of it, or by the next run what is left of it.

use super::attributes::keep_owner;
use super::report::{MoveError, Moved, Request};
use crate::fsutil;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// The folder of what is under way, in the tree.
pub(super) const UNDER_WAY: &str = ".slurm-factory-relocate";

/// The list of what is to be done, in that folder: once it is there, the work will be carried out.
const LIST: &str = "list.json";

/// A list of renames. Names are bytes, written as hexadecimal digits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct List {
    pub from: String,
    pub to: String,
    /// Number of the written file, and its name.
    pub files: Vec<(usize, String)>,
    /// Further names of files: name, and the file's first name.
    pub names: Vec<(String, String)>,
    /// Symlinks: name and target.
    pub links: Vec<(String, String)>,
    pub result: Summary,
}

impl List {
    /// That it names nothing but what is in the tree. Somebody else may have put it there: an archive that was unpacked.
    fn check(&self, dir: &Path) -> Result<(), String> {
        let files = self.files.iter().map(|(_, name)| name);
        let names = self.names.iter().flat_map(|(name, first)| [name, first]);
        let links = self.links.iter().map(|(name, _)| name);
        let mut known: HashSet<PathBuf> = HashSet::new();
        for name in files.chain(names).chain(links) {
            let path = unhexed(name).map_err(|e| e.to_string())?;
            let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
            if !plain || path.as_os_str().is_empty() {
                return Err(format!("it names `{}`, which is not below the tree", path.display()));
            }
            for folder in path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
                if known.contains(folder) {
                    break;
                }
                if !fs::symlink_metadata(dir.join(folder)).is_ok_and(|meta| meta.is_dir()) {
                    return Err(format!("it names `{}`, and `{}` is no folder", path.display(), folder.display()));
                }
                known.insert(folder.to_owned());
            }
        }
        Ok(())
    }
}

/// What a run that completes another one can still tell.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Summary {
    pub files: u64,
    pub search_paths: u64,
    /// Not in the lists of earlier releases.
    #[serde(default)]
    pub interpreters: u64,
    pub text: u64,
    pub strings: u64,
    pub links: u64,
}

pub(super) fn hexed(path: &Path) -> String {
    hex::encode(path.as_os_str().as_bytes())
}

fn unhexed(text: &str) -> io::Result<PathBuf> {
    hex::decode(text).map(|bytes| PathBuf::from(OsString::from_vec(bytes))).map_err(io::Error::other)
}

/// Puts the list beside what was written, and carries it out.
pub(super) fn commit(dir: &Path, staging: &Path, list: &List) -> Result<(), MoveError> {
    // All of it must be on the disk before the list says so.
    let folder = fs::File::open(staging)?;
    nix::unistd::syncfs(folder.file()).map_err(|e| fsutil::with_path(&e.into(), "sync", staging))?;
    let json = serde_json::to_vec(list).map_err(io::Error::from)?;
    fsutil::write_atomic(&staging.join(LIST), &json, 0o644)?;
    carry_out(dir, staging, list).map_err(|source| MoveError::Halfway { dir: dir.to_owned(), source })
}

fn carry_out(dir: &Path, staging: &Path, list: &List) -> io::Result<()> {
    for (index, name) in &list.files {
        match fs::rename(staging.join(index.to_string()), dir.join(unhexed(name)?)) {
            // An earlier run came as far as this.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    let fresh = staging.join("name");
    for (name, first) in &list.names {
        absent(fs::remove_file(&fresh))?;
        fs::hard_link(dir.join(unhexed(first)?), &fresh)?;
        fs::rename(&fresh, dir.join(unhexed(name)?))?;
    }
    for (name, target) in &list.links {
        absent(fs::remove_file(&fresh))?;
        fs::os::unix::fs::symlink(unhexed(target)?, &fresh)?;
        let old = dir.join(unhexed(name)?);
        keep_owner(&fresh, &old, &fs::symlink_metadata(&old)?)?;
        fs::rename(&fresh, &old)?;
    }
    fsutil::remove_tree(staging)?;
    Ok(())
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Completes a run that was cut after its list was there.
pub(super) fn complete(request: &Request<'_>, staging: &Path) -> Result<Option<Moved>, MoveError> {
    let path = staging.join(LIST);
    // What is behind a link is not ours.
    if !fs::symlink_metadata(staging).is_ok_and(|meta| meta.is_dir()) {
        return Ok(None);
    }
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let foreign = |reason: String| MoveError::List { list: path.clone(), reason };
    let list: List = serde_json::from_slice(&text).map_err(|e| foreign(e.to_string()))?;
    let (from, to) = (unhexed(&list.from)?, unhexed(&list.to)?);
    if (from.as_path(), to.as_path()) != (request.from, request.to) || request.dry_run {
        let show = |path: &Path| path.display().to_string();
        return Err(MoveError::Unfinished { dir: show(request.dir), from: show(&from), to: show(&to) });
    }
    list.check(request.dir).map_err(foreign)?;
    carry_out(request.dir, staging, &list)
        .map_err(|source| MoveError::Halfway { dir: request.dir.to_owned(), source })?;
    let Summary { files, search_paths, interpreters, text, strings, links } = list.result;
    Ok(Some(Moved { files, search_paths, interpreters, text, strings, links, completed: true, ..Moved::default() }))
}
