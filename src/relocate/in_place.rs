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
//!
//! The last needs a NEW that is no longer than OLD. Where it is longer, nothing is changed at all, and everything that stands
//! in the way is listed.
//!
//! Nothing half-done is left: what changes is written into a folder beside it first, with a list; then the list is carried
//! out by renames. A run that is cut before the list is there has changed nothing; one that is cut later is completed by
//! the next. Files are replaced, never written to, so a tree that shares hard links with another leaves that one as it was.

use super::copy::with_content;
use super::elf_paths;
use super::prefix::Prefixes;
use super::text;
use super::verify::{listed, printable, shown};
use crate::elf;
use crate::fsutil;
use crate::report::{Ctx, Event, Interrupted, Stage};
use fs_err as fs;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The folder of what is under way, in the tree.
const UNDER_WAY: &str = ".slurm-factory-relocate";

/// The list of what is to be done, in that folder: once it is there, the work will be carried out.
const LIST: &str = "list.json";

/// The longest first line of a script that every kernel in use reads whole (`BINPRM_BUF_SIZE` of Linux before 5.1).
const SHEBANG: usize = 127;

/// Why a tree was not relocated.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The prefixes are no prefixes.
    #[error("`{prefix}` cannot be a prefix: {reason}")]
    Prefix {
        /// As given.
        prefix: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Not a folder.
    #[error("`{dir}` is not a folder")]
    NotAFolder {
        /// What was named.
        dir: PathBuf,
    },
    /// Some files cannot be made to name the new prefix.
    #[error(
        "{} files would go on naming `{from}`, so nothing was changed:\n  {}\nchoose a new prefix of at most {} characters, or go on without them with --force",
        files(leftovers), listed(leftovers), from.as_os_str().len()
    )]
    Leftover {
        /// The old prefix.
        from: PathBuf,
        /// What would stay.
        leftovers: Vec<Leftover>,
    },
    /// An earlier run was cut while it renamed, and meant something else.
    #[error(
        "`{dir}` is in the middle of a move from `{from}` to `{to}` that was cut; complete that first: slurm-factory relocate {dir} --from {from} --to {to}"
    )]
    Unfinished {
        /// The tree.
        dir: String,
        /// The old prefix of that run.
        from: String,
        /// The new prefix of that run.
        to: String,
    },
    /// It failed while files were put into their places.
    #[error("`{dir}` is half moved: {source}; mend that and run the same command again, which completes the move")]
    Halfway {
        /// The tree.
        dir: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("relocate: {0}")]
    Io(#[from] io::Error),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

fn files(leftovers: &[Leftover]) -> usize {
    leftovers.iter().map(|l| &l.path).collect::<std::collections::BTreeSet<_>>().len()
}

/// A place that goes on naming the old prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The file, relative to the tree.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub offset: usize,
    /// What stands there.
    pub text: String,
    /// Why it cannot be changed.
    pub reason: String,
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at offset {}: `{}` ({})", self.path.display(), self.offset, self.text, self.reason)
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The tree.
    pub dir: &'a Path,
    /// The prefix that it was built for.
    pub from: &'a Path,
    /// The prefix at which it is to work.
    pub to: &'a Path,
    /// Only look.
    pub dry_run: bool,
    /// Go on although something goes on naming the old prefix.
    pub force: bool,
}

/// What was done, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Files looked at.
    pub files: u64,
    /// ELF files with a new search path, or that name libraries without their folders now.
    pub search_paths: u64,
    /// Programs that another loader starts (`PT_INTERP`): one in the tree.
    pub interpreters: u64,
    /// Text files rewritten.
    pub text: u64,
    /// Scripts whose first line goes through `env` now, so that they need the tree's programs in PATH.
    pub through_env: Vec<PathBuf>,
    /// Places in binaries that were written over.
    pub strings: u64,
    /// Symlinks made relative.
    pub links: u64,
    /// What goes on naming the old prefix.
    pub leftovers: Vec<Leftover>,
    /// This run completed one that was cut.
    pub completed: bool,
}

impl Moved {
    /// Whether nothing in the tree names the old prefix.
    pub fn is_nothing(&self) -> bool {
        self.search_paths + self.interpreters + self.text + self.strings + self.links == 0
            && self.leftovers.is_empty()
            && !self.completed
    }
}

/// A list of renames. Names are bytes, written as hexadecimal digits.
#[derive(Debug, Serialize, Deserialize)]
struct List {
    from: String,
    to: String,
    /// Number of the written file, and its name.
    files: Vec<(usize, String)>,
    /// Further names of files: name, and the number of the first.
    names: Vec<(String, String)>,
    /// Symlinks: name and target.
    links: Vec<(String, String)>,
    result: Summary,
}

/// What a run that completes another one can still tell.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Summary {
    files: u64,
    search_paths: u64,
    /// Not in the lists of earlier releases.
    #[serde(default)]
    interpreters: u64,
    text: u64,
    strings: u64,
    links: u64,
}

fn hexed(path: &Path) -> String {
    hex::encode(path.as_os_str().as_bytes())
}

fn unhexed(text: &str) -> io::Result<PathBuf> {
    hex::decode(text).map(|bytes| PathBuf::from(OsString::from_vec(bytes))).map_err(io::Error::other)
}

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
        fs::create_dir(&staging)?;
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
    if bytes.iter().any(|byte| matches!(byte, b'\n' | b':')) {
        return Err(bad("it holds a colon or a line break, which end a path in search paths and scripts"));
    }
    Ok(bytes)
}

struct File {
    path: PathBuf,
    size: u64,
}

#[derive(Default)]
struct Tree {
    files: Vec<File>,
    /// Further names of a file: name and index of the first.
    names: Vec<(PathBuf, usize)>,
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
            if meta.nlink() > 1
                && let Some(first) = known.get(&inode)
            {
                tree.names.push((path, *first));
                continue;
            }
            if meta.nlink() > 1 {
                known.insert(inode, tree.files.len());
            }
            tree.files.push(File { path, size: meta.len() });
        }
    }
    Ok(tree)
}

/// What becomes of one file.
#[derive(Default)]
struct Change {
    bytes: Option<Vec<u8>>,
    search_path: bool,
    interpreter: bool,
    text: bool,
    through_env: bool,
    strings: u64,
    leftovers: Vec<Leftover>,
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
    let changes = tree
        .files
        .par_iter()
        .enumerate()
        .map(|(index, file)| {
            ctx.check()?;
            let mut change = one_file(request.dir, file, prefixes)?;
            if let Some(bytes) = change.bytes.take() {
                if !request.dry_run {
                    replacement(&request.dir.join(&file.path), &staging.join(index.to_string()), &bytes)?;
                }
                change.bytes = Some(Vec::new());
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(256) || done == total {
                let current = file.path.display().to_string();
                ctx.event(&Event::Progress { stage: Stage::Relocate, done, total, unit: "files", current });
            }
            Ok(change)
        })
        .collect::<Result<Vec<_>, MoveError>>()?;
    let mut moved = Moved { files: total + tree.names.len() as u64, ..Moved::default() };
    let mut files = Vec::new();
    for (index, (change, file)) in changes.into_iter().zip(&tree.files).enumerate() {
        if change.bytes.is_some() {
            files.push((index, hexed(&file.path)));
        }
        moved.search_paths += u64::from(change.search_path);
        moved.interpreters += u64::from(change.interpreter);
        moved.text += u64::from(change.text);
        moved.strings += change.strings;
        if change.through_env {
            moved.through_env.push(file.path.clone());
        }
        moved.leftovers.extend(change.leftovers);
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
    let changed: std::collections::BTreeSet<usize> = files.iter().map(|(index, _)| *index).collect();
    let names = tree.names.iter().filter(|(_, first)| changed.contains(first));
    let names = names.map(|(path, first)| (hexed(path), hexed(&tree.files[*first].path))).collect();
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

/// Writes the new content with everything else as the old file has it.
fn replacement(old: &Path, new: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(new, bytes)?;
    let meta = fs::symlink_metadata(old)?;
    let made = fs::symlink_metadata(new)?;
    if (made.uid(), made.gid()) != (meta.uid(), meta.gid()) {
        std::os::unix::fs::chown(new, Some(meta.uid()), Some(meta.gid()))
            .map_err(|e| fsutil::with_path(&e, "keep the owner of", old))?;
    }
    // After chown(2), which takes set-user-id away.
    fs::set_permissions(new, meta.permissions())?;
    // Compiled Python is good only for a source of the same time.
    fs::OpenOptions::new()
        .append(true)
        .open(new)
        .or_else(|_| fs::File::open(new))?
        .file()
        .set_modified(meta.modified()?)
}

fn one_file(dir: &Path, file: &File, prefixes: &Prefixes<'_>) -> Result<Change, MoveError> {
    let mut change = Change::default();
    if file.size == 0 {
        return Ok(change);
    }
    with_content(&dir.join(&file.path), |bytes| {
        if prefixes.find(bytes).next().is_some() {
            change = one_content(file, bytes, prefixes);
        }
        Ok(change)
    })
}

/// What becomes of a file that names the old prefix.
fn one_content(file: &File, bytes: &[u8], prefixes: &Prefixes<'_>) -> Change {
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
        let made = elf_paths::make(&file.path, new, prefixes);
        (change.search_path, change.interpreter, new) = (made.search_path, made.interpreter, made.bytes);
        if let Some(error) = made.refused {
            why = format!("{why}; {error}");
        }
    }
    if prefixes.fits() {
        change.strings = prefixes.in_binary(&mut new) as u64;
    } else {
        change.leftovers = prefixes
            .find(&new)
            .map(|offset| Leftover {
                path: file.path.clone(),
                offset,
                text: shown(&printable(&new[offset..])),
                reason: why.clone(),
            })
            .collect();
    }
    if change.search_path || change.interpreter || change.strings > 0 {
        change.bytes = Some(new);
    }
    change
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

/// Puts the list beside what was written, and carries it out.
fn commit(dir: &Path, staging: &Path, list: &List) -> Result<(), MoveError> {
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
        fs::rename(&fresh, dir.join(unhexed(name)?))?;
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
fn complete(request: &Request<'_>, staging: &Path) -> Result<Option<Moved>, MoveError> {
    let text = match fs::read(staging.join(LIST)) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let list: List =
        serde_json::from_slice(&text).map_err(|e| fsutil::with_path(&e.into(), "read", &staging.join(LIST)))?;
    let (from, to) = (unhexed(&list.from)?, unhexed(&list.to)?);
    if (from.as_path(), to.as_path()) != (request.from, request.to) || request.dry_run {
        let show = |path: &Path| path.display().to_string();
        return Err(MoveError::Unfinished { dir: show(request.dir), from: show(&from), to: show(&to) });
    }
    carry_out(request.dir, staging, &list)
        .map_err(|source| MoveError::Halfway { dir: request.dir.to_owned(), source })?;
    let Summary { files, search_paths, interpreters, text, strings, links } = list.result;
    Ok(Some(Moved { files, search_paths, interpreters, text, strings, links, completed: true, ..Moved::default() }))
}
