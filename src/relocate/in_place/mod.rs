//! Makes a tree that lies on disk, built for one prefix, work at another: `slurm-factory relocate DIR --from OLD --to NEW`.
//!
//! | what | becomes |
//! |---|---|
//! | search path of an ELF file, folders below OLD | `$ORIGIN/...`: good for any prefix; others stay |
//! | library named by its path below OLD (`DT_NEEDED`, `DT_SONAME`) | its name alone, and its folder joins the search path |
//! | program interpreter (`PT_INTERP`) below OLD | the same below NEW, of any length |
//! | symlink to below OLD | relative |
//! | text | OLD replaced by NEW; a first line that would be too long, or holds a blank, goes through `env` |
//! | any other file, also what is compiled into programs | NEW written over OLD, filled up with slashes ([`super::prefix`]) |
//! | a section that is compressed (`gcc -gz`), a file that is (`.gz`, `.zst`) | looked into; it stays, and is told |
//!
//! The last but one needs a NEW that is no longer than OLD. Where it is longer, or something stands in what is compressed,
//! nothing is changed at all, and everything that is in the way is listed.
//!
//! Nothing half-done is left: what changes is written into a folder beside it first, with a list; then the list is carried
//! out by renames. A run that is cut before the list is there has changed nothing; one that is cut later is completed by
//! the next. Files are replaced, never written to, so a tree that shares hard links with another leaves that one as it was.
//!
//! One run at a time: it holds flock(2) on the tree's folder. Linux keeps a folder's lock on the host that took it, on NFS and
//! the like too, so a run on another host is not seen. No run writes over a file that another one wrote, but who deletes first
//! spoils the other's work: that is for users to avoid, and docs/relocate.md says so.
//!
//! `content`: what becomes of one file; `attributes`: what else a file has that takes another one's place; `list`: the list of
//! renames, and how it is carried out; `report`: what is asked, what comes of it, and errors.

mod attributes;
mod content;
mod list;
mod report;

pub use report::{Leftover, MoveError, Moved, Request};

use super::prefix::Prefixes;
use super::verify::LONGEST;
use crate::fsutil;
use crate::report::{Ctx, Event, Stage};
use attributes::{Stamp, replacement};
use content::{Change, changes};
use fs_err as fs;
use list::{List, Summary, UNDER_WAY, commit, complete, hexed};
use rayon::prelude::*;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::TryLockError;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Relocates the tree where it lies.
pub fn in_place(request: &Request<'_>, ctx: &Ctx) -> Result<Moved, MoveError> {
    let (from, to) = (prefix(request.from)?, prefix(request.to)?);
    if from == to {
        let reason = "it is the one that the tree has already";
        return Err(MoveError::Prefix { prefix: request.to.to_owned(), reason });
    }
    if !fs::symlink_metadata(request.dir)?.is_dir() {
        return Err(MoveError::NotAFolder { dir: request.dir.to_owned() });
    }
    // Until the end: who comes second would take what the first has under way for what a killed run left.
    let _alone = lock(request, ctx)?;
    let staging = request.dir.join(UNDER_WAY);
    if let Some(moved) = complete(request, &staging)? {
        return Ok(moved);
    }
    if !request.dry_run {
        fsutil::remove_tree(&staging)?;
    }
    let prefixes = Prefixes::new(&from, &to);
    let tree = survey(request.dir, ctx)?;
    if !request.dry_run {
        // New content is written before it gets the old file's mode: for others the way to it is closed here.
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&staging)
            .map_err(|e| fsutil::with_path(&e, "create the folder", &staging))?;
    }
    let result = write(request, &prefixes, &tree, &staging, ctx);
    match result {
        Ok((list, moved)) if !request.dry_run => {
            commit(request.dir, &staging, &list)?;
            Ok(moved)
        }
        Ok((_, moved)) => Ok(moved),
        Err(error) => {
            if !request.dry_run {
                // The error is what matters; a later run deletes what is left.
                let _ = fsutil::remove_tree(&staging);
            }
            Err(error)
        }
    }
}

/// The tree's folder, locked as long as it is open: for this run alone, or together with others that only look.
fn lock(request: &Request<'_>, ctx: &Ctx) -> Result<fs::File, MoveError> {
    let folder = fs::File::open(request.dir)?;
    let locked = if request.dry_run { folder.file().try_lock_shared() } else { folder.file().try_lock() };
    match locked {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => Err(MoveError::Busy { dir: request.dir.to_owned() }),
        Err(TryLockError::Error(e)) if is_without_locks(&e) => {
            let dir = request.dir.display();
            ctx.warn(format!("no lock can be had on `{dir}` ({e}): make sure that nobody else relocates it meanwhile"));
            Ok(folder)
        }
        Err(TryLockError::Error(e)) => Err(fsutil::with_path(&e, "lock", request.dir).into()),
    }
}

/// Whether a file system says that it has no locks, and not that this one failed: `EBADF` is NFS's word for a lock of what is
/// not open for writing, as no folder can be.
fn is_without_locks(error: &io::Error) -> bool {
    let Some(number) = error.raw_os_error() else { return false };
    [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK, Errno::BADF].contains(&Errno::from_raw_os_error(number))
}

/// An absolute path without a slash at its end, `.` or `..`.
fn prefix(path: &Path) -> Result<Vec<u8>, MoveError> {
    let bad = |reason| MoveError::Prefix { prefix: path.to_owned(), reason };
    if !path.is_absolute() {
        return Err(bad("it is not absolute"));
    }
    if path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(bad("it holds `..`"));
    }
    let clean: PathBuf = path.components().collect();
    if clean == Path::new("/") {
        return Err(bad("the root is in every path"));
    }
    let bytes = clean.into_os_string().into_vec();
    if bytes.len() >= LONGEST {
        return Err(bad("it is longer than any path may be (4,095 bytes)"));
    }
    if bytes.iter().any(|byte| matches!(byte, b'\n' | b':')) {
        return Err(bad("it holds a colon or a line break, which end a path in search paths and scripts"));
    }
    Ok(bytes)
}

struct File {
    names: Vec<PathBuf>,
    seen: Stamp,
}

#[derive(Default)]
struct Tree {
    files: Vec<File>,
    links: Vec<(PathBuf, PathBuf)>,
}

fn survey(dir: &Path, ctx: &Ctx) -> Result<Tree, MoveError> {
    let mut tree = Tree::default();
    let mut known: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    let walk = walkdir::WalkDir::new(dir).min_depth(1).sort_by_file_name().same_file_system(true);
    for entry in walk.into_iter().filter_entry(|e| e.depth() != 1 || e.file_name() != OsStr::new(UNDER_WAY)) {
        ctx.check()?;
        let entry = entry.map_err(io::Error::from)?;
        let path = entry.path().strip_prefix(dir).map_err(io::Error::other)?.to_owned();
        let kind = entry.file_type();
        if kind.is_symlink() {
            tree.links.push((path, fs::read_link(entry.path())?));
        } else if kind.is_file() {
            let meta = fs::symlink_metadata(entry.path())?;
            let inode = (meta.dev(), meta.ino());
            let new = tree.files.len();
            let index = if meta.nlink() > 1 { *known.entry(inode).or_insert(new) } else { new };
            match tree.files.get_mut(index) {
                Some(file) => file.names.push(path),
                None => tree.files.push(File { names: vec![path], seen: Stamp::of(&meta) }),
            }
        }
    }
    Ok(tree)
}

/// Writes everything that changes beside the tree, and the list of it.
fn write(
    request: &Request<'_>,
    prefixes: &Prefixes<'_>,
    tree: &Tree,
    staging: &Path,
    ctx: &Ctx,
) -> Result<(List, Moved), MoveError> {
    let (done, total) = (AtomicU64::new(0), tree.files.len() as u64);
    let number = AtomicUsize::new(0);
    let all = tree
        .files
        .par_iter()
        .map(|file| {
            ctx.check()?;
            let mut written = Vec::new();
            for mut change in changes(request.dir, &file.names, file.seen.size, prefixes)? {
                let mut place = None;
                if let (Some(bytes), Some(first)) = (change.bytes.take(), change.names.first()) {
                    let number = number.fetch_add(1, Ordering::Relaxed);
                    if !request.dry_run {
                        let new = staging.join(number.to_string());
                        replacement(&request.dir.join(first), file.seen, &new, &bytes)?;
                    }
                    place = Some(number);
                }
                written.push((place, change));
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(256) || done == total {
                let current = file.names.first().map(|path| path.display().to_string()).unwrap_or_default();
                ctx.event(&Event::Progress { stage: Stage::Relocate, done, total, unit: "files", current });
            }
            Ok(written)
        })
        .collect::<Result<Vec<Vec<(Option<usize>, Change)>>, MoveError>>()?;
    let names = tree.files.iter().map(|file| file.names.len() as u64).sum();
    let mut moved = Moved { files: names, ..Moved::default() };
    let (mut files, mut names) = (Vec::new(), Vec::new());
    for (place, change) in all.into_iter().flatten() {
        moved.search_paths += u64::from(change.search_path);
        moved.interpreters += u64::from(change.interpreter);
        moved.text += u64::from(change.text);
        moved.strings += change.strings;
        moved.leftovers.extend(change.leftovers);
        moved.unseen.extend(change.unseen);
        if let (Some(number), Some((first, others))) = (place, change.names.split_first()) {
            files.push((number, hexed(first)));
            names.extend(others.iter().map(|other| (hexed(other), hexed(first))));
            moved.through_env.extend(change.through_env.then(|| first.clone()));
        }
    }
    let mut links = Vec::new();
    for (path, target) in &tree.links {
        if let Some(below) = prefixes.below(target.as_os_str().as_bytes()) {
            let target = fsutil::relative(fsutil::parent_of(path), Path::new(OsStr::from_bytes(below)));
            links.push((hexed(path), hexed(&target)));
        }
    }
    moved.links = links.len() as u64;
    if !moved.leftovers.is_empty() && !request.force && !request.dry_run {
        return Err(MoveError::Leftover { from: request.from.to_owned(), leftovers: moved.leftovers });
    }
    let result = Summary {
        files: moved.files,
        search_paths: moved.search_paths,
        interpreters: moved.interpreters,
        text: moved.text,
        strings: moved.strings,
        links: moved.links,
    };
    Ok((List { from: hexed(request.from), to: hexed(request.to), files, names, links, result }, moved))
}
