//! The staged copy: one walk of the view that decides, one parallel pass that copies and rewrites.

use super::copy::{Change, Copier, Wants};
use super::rules::Rules;
use super::search_path::{self, Libraries};
use super::strings::{self, Place};
use super::text::{self, MapPath};
use crate::elf::{self, Edit, Edits, ElfError, Parts, SearchPath, Strip};
use crate::fsutil;
use crate::plan::inside;
use crate::report::{Ctx, Event, Interrupted, Stage};
use fs_err as fs;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Why the copy could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RelocateError {
    /// A file operation failed.
    #[error("relocate: {0}")]
    Io(#[from] io::Error),
    /// An ELF file could not be read or edited.
    #[error("relocate `{path}`: {source}")]
    Elf {
        /// Path in the view.
        path: PathBuf,
        /// What is wrong with it.
        source: elf::ElfError,
    },
    /// A path that is compiled in cannot become what a rule says.
    #[error("relocate `{path}`: {source}")]
    String {
        /// Path in the view.
        path: PathBuf,
        /// Why not.
        source: strings::TooLong,
    },
    /// Something in the view that is neither file, folder nor symlink.
    #[error("relocate `{path}`: neither a file, a folder nor a symlink; a package cannot hold it")]
    Special {
        /// Path in the view.
        path: PathBuf,
    },
    /// The view is not there.
    #[error("the view `{path}` is not there or empty; `slurm-factory clean --full` and build again")]
    NoView {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Where the view and the store are, on the host and inside the sandbox.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Folder of the host that was mounted at `inside_root`.
    pub host_root: PathBuf,
    /// The mount point inside the sandbox.
    pub inside_root: String,
    /// The install tree inside, below `inside_root`.
    pub inside_store: String,
    /// The folder inside, below `inside_root`, that holds the view and what it links to.
    pub inside_views: String,
    /// The view inside; it may be a symlink.
    pub inside_view: String,
}

impl Origin {
    /// The view `inside_view` of a slot, the folder of the host that the sandbox has at [`inside::ROOT`].
    pub fn of_slot(slot: &Path, inside_view: &str) -> Self {
        Self {
            host_root: slot.to_owned(),
            inside_root: inside::ROOT.to_owned(),
            inside_store: inside::INSTALL_TREE.to_owned(),
            inside_views: fsutil::parent_of(Path::new(inside_view)).display().to_string(),
            inside_view: inside_view.to_owned(),
        }
    }

    /// The host's path for a path inside the sandbox.
    fn on_host(&self, inside: &Path) -> Option<PathBuf> {
        fsutil::join_below(&self.host_root, inside.strip_prefix(&self.inside_root).ok()?)
    }

    /// The view's real folder on the host: Spack makes the view a symlink to a folder named by its content.
    fn view(&self) -> Result<PathBuf, RelocateError> {
        let view = Path::new(&self.inside_view);
        let missing = |path: &Path| RelocateError::NoView { path: path.to_owned() };
        let host = self.on_host(view).ok_or_else(|| missing(view))?;
        let kind = fs::symlink_metadata(&host).map_err(|_| missing(&host))?;
        if !kind.is_symlink() {
            return Ok(host);
        }
        let target = fsutil::parent_of(view).join(fs::read_link(&host)?);
        let real = self.on_host(&target).ok_or_else(|| missing(&target))?;
        if real.is_dir() { Ok(real) } else { Err(missing(&real)) }
    }

    /// The path in the view for an absolute path of the build; `None` for paths outside store and views.
    fn in_view(&self, path: &[u8]) -> Option<PathBuf> {
        let length = self.prefix_len(path);
        if length <= self.inside_root.len() {
            return None;
        }
        let rest = path.get(length..)?;
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        Some(normalise(Path::new(OsStr::from_bytes(rest))))
    }
}

/// Removes `.` and `x/..` from a relative path, by name.
fn normalise(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out
}

impl MapPath for Origin {
    fn prefix_len(&self, text: &[u8]) -> usize {
        let component = |from: usize| {
            let tail = &text[from..];
            let end = |b: &u8| !(b.is_ascii_alphanumeric() || b"._+-@=".contains(b));
            from + tail.iter().position(end).unwrap_or(tail.len())
        };
        let below = |folder: &str| text.starts_with(folder.as_bytes()) && text.get(folder.len()) == Some(&b'/');
        if below(&self.inside_store) {
            return component(self.inside_store.len() + 1);
        }
        if below(&self.inside_views) {
            let start = self.inside_views.len() + 1;
            let first = component(start);
            // The view itself, or the folder behind it: `._view/HASH`.
            if text[start..].starts_with(b"._") && text.get(first) == Some(&b'/') {
                return component(first + 1);
            }
            return first;
        }
        self.inside_root.len()
    }
}

/// What a prune rule took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PruneCount {
    /// The rule's pattern.
    pub glob: String,
    /// Why.
    pub reason: String,
    /// Files and links.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Files kept.
    pub files: u64,
    /// Their bytes before any editing.
    pub bytes_before: u64,
    /// Their bytes now.
    pub bytes_after: u64,
    /// ELF files that were edited.
    pub elf_edited: u64,
    /// ELF files that needed no edit.
    pub elf_unchanged: u64,
    /// Symlinks made relative.
    pub links_rewritten: u64,
    /// Symlinks left out because what they name was left out.
    pub links_dropped: Vec<PathBuf>,
    /// Text files rewritten.
    pub text_rewritten: u64,
    /// Text files that `install` fills in.
    pub fill_in: Vec<PathBuf>,
    /// Places in binaries that `install` fills in.
    pub places: Vec<Place>,
    /// What was left out, by rule.
    pub pruned: Vec<PruneCount>,
}

impl Report {
    /// The work in one line, for people.
    pub fn summary(&self) -> String {
        let size = |bytes| humansize::format_size(bytes, humansize::BINARY);
        let before = self.bytes_before + self.pruned.iter().map(|p| p.bytes).sum::<u64>();
        format!(
            "{} files, {} of {} ELF files edited, {} before and {} after",
            self.files,
            self.elf_edited,
            self.elf_edited + self.elf_unchanged,
            size(before),
            size(self.bytes_after),
        )
    }
}

/// A relocatable copy of the view.
#[derive(Debug)]
pub struct Relocated {
    tree: PathBuf,
    report: Report,
}

impl Relocated {
    /// The folder that holds the copy; its content is the package's `view/`.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// What was done.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

enum Kind {
    File { size: u64, mode: u32, inode: (u64, u64), links: u64 },
    Link(PathBuf),
}

struct Entry {
    path: PathBuf,
    kind: Kind,
}

/// Copies the view into `tree` (which must not exist yet) and makes it relocatable.
pub fn relocate(origin: &Origin, rules: &Rules, tree: &Path, ctx: &Ctx) -> Result<Relocated, RelocateError> {
    let view = origin.view()?;
    let mut report = Report::default();
    let (folders, mut entries) = survey(&view, rules, &mut report, ctx)?;
    if entries.is_empty() {
        return Err(RelocateError::NoView { path: view });
    }
    settle_links(origin, &mut entries, &folders, &mut report);
    let mut libraries = Libraries::default();
    for entry in &entries {
        libraries.add(&entry.path);
    }
    fs::create_dir_all(tree)?;
    for folder in used_folders(&entries) {
        fs::create_dir_all(tree.join(folder))?;
    }
    let job = Job {
        origin,
        rules,
        libraries: &libraries,
        view: &view,
        tree,
        ctx,
        copier: Copier::default(),
        done: AtomicU64::new(0),
    };
    copy(&job, &entries, &mut report)?;
    Ok(Relocated { tree: tree.to_owned(), report })
}

/// Walks the view: what is kept, and what each rule takes away.
fn survey(
    view: &Path,
    rules: &Rules,
    report: &mut Report,
    ctx: &Ctx,
) -> Result<(Vec<PathBuf>, Vec<Entry>), RelocateError> {
    report.pruned = rules
        .prunes()
        .iter()
        .map(|r| PruneCount { glob: r.glob.clone(), reason: r.reason.clone(), ..PruneCount::default() })
        .collect();
    let (mut folders, mut entries) = (Vec::new(), Vec::new());
    for entry in walkdir::WalkDir::new(view).min_depth(1).sort_by_file_name() {
        ctx.check()?;
        let entry = entry.map_err(io::Error::from)?;
        let path = entry.path().strip_prefix(view).map_err(io::Error::other)?.to_owned();
        let kind = entry.file_type();
        if kind.is_dir() {
            folders.push(path);
            continue;
        }
        let meta = fs::symlink_metadata(entry.path())?;
        if let Some(index) = rules.pruned_by(&path) {
            report.pruned[index].files += 1;
            report.pruned[index].bytes += meta.len();
            continue;
        }
        let kind = if kind.is_symlink() {
            Kind::Link(fs::read_link(entry.path())?)
        } else if kind.is_file() {
            Kind::File { size: meta.len(), mode: meta.mode(), inode: (meta.dev(), meta.ino()), links: meta.nlink() }
        } else {
            return Err(RelocateError::Special { path });
        };
        entries.push(Entry { path, kind });
    }
    report.pruned.retain(|p| p.files > 0);
    Ok((folders, entries))
}

/// Makes absolute links relative and drops those whose target was pruned, until nothing changes.
fn settle_links(origin: &Origin, entries: &mut Vec<Entry>, folders: &[PathBuf], report: &mut Report) {
    for entry in entries.iter_mut() {
        if let Kind::Link(target) = &mut entry.kind
            && target.is_absolute()
            && let Some(inside) = origin.in_view(target.as_os_str().as_bytes())
        {
            *target = fsutil::relative(fsutil::parent_of(&entry.path), &inside);
            report.links_rewritten += 1;
        }
    }
    while entries.iter().any(|entry| matches!(entry.kind, Kind::Link(_))) {
        let present: std::collections::HashSet<PathBuf> =
            entries.iter().map(|e| e.path.clone()).chain(folders.iter().cloned()).collect();
        let before = entries.len();
        entries.retain(|entry| {
            let Kind::Link(target) = &entry.kind else { return true };
            // A link that leaves the tree is kept: `verify` decides about it.
            let keep =
                target.is_absolute() || present.contains(&normalise(&fsutil::parent_of(&entry.path).join(target)));
            if !keep {
                report.links_dropped.push(entry.path.clone());
            }
            keep
        });
        if entries.len() == before {
            return;
        }
    }
}

fn used_folders(entries: &[Entry]) -> std::collections::BTreeSet<&Path> {
    entries.iter().filter_map(|e| e.path.parent()).collect()
}

struct Job<'a> {
    origin: &'a Origin,
    rules: &'a Rules,
    libraries: &'a Libraries,
    view: &'a Path,
    tree: &'a Path,
    ctx: &'a Ctx,
    copier: Copier,
    done: AtomicU64,
}

#[derive(Default)]
struct Outcome {
    bytes: u64,
    elf: Option<bool>,
    text: bool,
    fill_in: Option<PathBuf>,
    places: Vec<Place>,
}

fn copy(job: &Job<'_>, entries: &[Entry], report: &mut Report) -> Result<(), RelocateError> {
    // Two names of one file stay two names of one file.
    let mut first_names: BTreeMap<(u64, u64), &Path> = BTreeMap::new();
    let mut second_names = Vec::new();
    let mut work = Vec::new();
    for entry in entries {
        match &entry.kind {
            Kind::File { inode, links, size, mode } => {
                report.files += 1;
                report.bytes_before += size;
                if *links > 1 {
                    if let Some(first) = first_names.get(inode) {
                        second_names.push((*first, entry.path.as_path()));
                        continue;
                    }
                    first_names.insert(*inode, &entry.path);
                }
                work.push((entry.path.as_path(), *mode));
            }
            Kind::Link(target) => fs::os::unix::fs::symlink(target, job.tree.join(&entry.path))?,
        }
    }
    let total = work.len() as u64;
    let outcomes = work
        .par_iter()
        .map(|(path, mode)| {
            job.ctx.check()?;
            let outcome = one_file(job, path, *mode)?;
            let done = job.done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(64) || done == total {
                let current = path.display().to_string();
                job.ctx.event(&Event::Progress { stage: Stage::Relocate, done, total, unit: "files", current });
            }
            Ok(outcome)
        })
        .collect::<Result<Vec<_>, RelocateError>>()?;
    for (first, second) in second_names {
        fs::hard_link(job.tree.join(first), job.tree.join(second))?;
    }
    for outcome in outcomes {
        report.bytes_after += outcome.bytes;
        match outcome.elf {
            Some(true) => report.elf_edited += 1,
            Some(false) => report.elf_unchanged += 1,
            None => {}
        }
        report.text_rewritten += u64::from(outcome.text);
        report.fill_in.extend(outcome.fill_in);
        report.places.extend(outcome.places);
    }
    Ok(())
}

/// What is made of one file of the view.
struct Making<'a> {
    job: &'a Job<'a>,
    path: &'a Path,
    outcome: Outcome,
}

impl Change for Making<'_> {
    type Error = RelocateError;

    fn wants(&self, head: &[u8]) -> Wants {
        if self.job.rules.rewrites(self.path) {
            Wants::Change // a path may stand anywhere in it
        } else if elf::is_elf(head) {
            Wants::Edit
        } else if text::is_text(head) {
            Wants::Change
        } else {
            Wants::Copy
        }
    }

    fn edit(&mut self, parts: &Parts) -> Result<Option<Edits>, ElfError> {
        let edits = relocate_elf(self.job, self.path, parts)?;
        self.outcome.elf = Some(edits.is_some());
        Ok(edits)
    }

    fn refused(&self, source: ElfError) -> RelocateError {
        RelocateError::Elf { path: self.path.to_owned(), source }
    }

    fn change(&mut self, old: &[u8], new: &mut Vec<u8>) -> Result<bool, RelocateError> {
        let origin = self.job.origin;
        let root = origin.inside_root.as_bytes();
        let mut changed = false;
        if elf::is_elf(old) {
            let mut whole = Parts::new(old.len() as u64);
            whole.add(0, old.to_vec());
            let edits = self.edit(&whole).map_err(|source| self.refused(source))?;
            if let Some(edits) = edits {
                edits.apply(old, new);
                changed = true;
            }
        } else if text::is_text(old) {
            let Some(rewritten) = text::rewrite(old, root, origin) else { return Ok(false) };
            self.outcome.text = true;
            self.outcome.fill_in = rewritten.fill_in.then(|| self.path.to_owned());
            *new = rewritten.bytes;
            return Ok(true);
        }
        if self.job.rules.rewrites(self.path) {
            if !changed {
                new.clear();
                new.extend_from_slice(old);
            }
            self.outcome.places = strings::rewrite(self.job.rules, self.path, new, root, origin)
                .map_err(|source| RelocateError::String { path: self.path.to_owned(), source })?;
            changed = new != old;
        }
        Ok(changed)
    }
}

fn one_file(job: &Job<'_>, path: &Path, mode: u32) -> Result<Outcome, RelocateError> {
    // Others must be able to read a shared package; set-user-id bits do not travel.
    let mode = if mode & 0o111 != 0 { 0o755 } else { 0o644 };
    let mut making = Making { job, path, outcome: Outcome::default() };
    making.outcome.bytes = job.copier.copy(&job.view.join(path), &job.tree.join(path), mode, &mut making)?;
    Ok(making.outcome)
}

/// The edits of an ELF file, of which these parts were read.
fn relocate_elf(job: &Job<'_>, path: &Path, parts: &Parts) -> Result<Option<Edits>, ElfError> {
    let file = elf::parse_parts(parts)?;
    let code = matches!(file.kind, elf::Kind::Executable | elf::Kind::SharedObject);
    if !code || file.is_debug_file {
        return Ok(None);
    }
    // A library that is named by its path in the build is found like all others.
    let bare_below = Some(job.origin.inside_root.as_bytes().to_vec());
    let name = |name: &Vec<u8>| match job.origin.in_view(name) {
        Some(path) => path.file_name().unwrap_or_default().to_owned(),
        None => OsString::from_vec(name.clone()),
    };
    let mut needed: Vec<OsString> = file.needed.iter().map(name).collect();
    needed.extend(job.rules.dlopen.iter().filter(|d| d.matches(path)).map(|d| OsString::from(&d.library)));
    let named = file.needed.iter().filter_map(|name| job.origin.in_view(name));
    let searched = file.search_path().unwrap_or_default().split(|b| *b == b':');
    let searched = searched.filter_map(|folder| job.origin.in_view(folder));
    // A path named one file and no other of that name: its folder comes first.
    let old: Vec<PathBuf> = named.map(|path| fsutil::parent_of(&path).to_owned()).chain(searched).collect();
    let computed = search_path::compute(path, &needed, &old, job.libraries);
    let search_path = if computed.path.is_empty() { SearchPath::Remove } else { SearchPath::Rpath(computed.path) };
    elf::edit_parts(parts, &Edit { search_path, strip: Strip::All, bare_below })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(host: &Path) -> Origin {
        Origin {
            host_root: host.to_owned(),
            inside_root: "/sfb".into(),
            inside_store: "/sfb/store".into(),
            inside_views: "/sfb/view".into(),
            inside_view: "/sfb/view/x".into(),
        }
    }

    #[test]
    fn build_paths_map_into_the_view() {
        let origin = origin(Path::new("/h"));
        for (path, want) in [
            ("/sfb/store/zlib-1.3-abc/lib", Some("lib")),
            ("/sfb/store/zlib-1.3-abc", Some("")),
            ("/sfb/view/x/lib/slurm", Some("lib/slurm")),
            ("/sfb/view/._x/hash/lib", Some("lib")),
            ("/sfb/store/zlib/lib/../lib64", Some("lib64")),
            ("/sfb/stage/tmp", None),
            ("/usr/lib", None),
        ] {
            assert_eq!(origin.in_view(path.as_bytes()), want.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn a_view_is_copied_pruned_and_its_links_and_text_made_relative() {
        let dir = tempfile::tempdir().unwrap();
        let view = dir.path().join("host/view/._x/hash");
        for folder in ["bin", "lib", "etc"] {
            fs::create_dir_all(view.join(folder)).unwrap();
        }
        fs::os::unix::fs::symlink("/sfb/view/._x/hash", dir.path().join("host/view/x")).unwrap();
        fs::write(view.join("lib/libz.a"), "archive").unwrap();
        fs::os::unix::fs::symlink("libz.a", view.join("lib/libz-static.a.lnk")).unwrap();
        fs::write(view.join("lib/data"), "plain").unwrap();
        fs::os::unix::fs::symlink("/sfb/store/p-1-h/lib/data", view.join("lib/link")).unwrap();
        fs::write(view.join("etc/conf"), "dir=/sfb/store/p-1-h/share\n").unwrap();
        fs::hard_link(view.join("lib/data"), view.join("bin/data2")).unwrap();
        let tree = dir.path().join("tree");
        let rules = Rules::embedded().unwrap();
        let relocated = relocate(&origin(&dir.path().join("host")), &rules, &tree, &Ctx::silent()).unwrap();
        let report = relocated.report();
        assert!(!tree.join("lib/libz.a").exists());
        assert_eq!(report.links_dropped, [PathBuf::from("lib/libz-static.a.lnk")]);
        assert_eq!(fs::read_link(tree.join("lib/link")).unwrap(), Path::new("data"));
        assert_eq!(fs::read_to_string(tree.join("etc/conf")).unwrap(), format!("dir={}/share\n", text::PLACEHOLDER));
        assert_eq!(report.fill_in, [PathBuf::from("etc/conf")]);
        let ino = |name: &str| fs::metadata(tree.join(name)).unwrap().ino();
        assert_eq!(ino("lib/data"), ino("bin/data2"), "hard links stay hard links");
        assert_ne!(ino("lib/data"), fs::metadata(view.join("lib/data")).unwrap().ino(), "the store is never shared");
    }

    #[test]
    fn an_empty_view_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = relocate(&origin(dir.path()), &Rules::embedded().unwrap(), &dir.path().join("t"), &Ctx::silent());
        assert!(error.unwrap_err().to_string().contains("clean --full"));
    }
}
