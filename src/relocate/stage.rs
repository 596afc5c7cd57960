//! The staged copy: one walk of the view that decides, one parallel pass that copies and rewrites.

use super::copy::{Change, Copier, Wants};
use super::links;
use super::origin::Origin;
use super::rules::Rules;
use super::search_path::{self, Libraries};
use super::strings::{self, Place};
use super::text;
use crate::elf::{self, Edit, Elf, ElfError, SearchPath, Strip};
use crate::fsutil;
use crate::report::{Ctx, Event, Interrupted, Stage};
use fs_err as fs;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
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

pub(super) enum Kind {
    File { size: u64, mode: u32, inode: (u64, u64), links: u64 },
    Link(PathBuf),
}

/// A file or a symlink of the view.
pub(super) struct Entry {
    pub path: PathBuf,
    pub kind: Kind,
}

/// Copies the view into `tree` (which must not exist yet) and makes it relocatable.
pub fn relocate(origin: &Origin, rules: &Rules, tree: &Path, ctx: &Ctx) -> Result<Relocated, RelocateError> {
    let view = origin.view()?;
    let mut report = Report::default();
    let mut entries = survey(&view, rules, &mut report, ctx)?;
    if entries.is_empty() {
        return Err(RelocateError::NoView { path: view });
    }
    links::settle(origin, &mut entries, &mut report);
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
fn survey(view: &Path, rules: &Rules, report: &mut Report, ctx: &Ctx) -> Result<Vec<Entry>, RelocateError> {
    report.pruned = rules
        .prunes()
        .iter()
        .map(|r| PruneCount { glob: r.glob.clone(), reason: r.reason.clone(), ..PruneCount::default() })
        .collect();
    let mut entries = Vec::new();
    for entry in walkdir::WalkDir::new(view).min_depth(1).sort_by_file_name() {
        ctx.check()?;
        let entry = entry.map_err(io::Error::from)?;
        let path = entry.path().strip_prefix(view).map_err(io::Error::other)?.to_owned();
        let kind = entry.file_type();
        if kind.is_dir() {
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
    Ok(entries)
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

/// One file of the view with all its names.
struct Work<'e> {
    names: Vec<&'e Path>,
    mode: u32,
}

fn copy(job: &Job<'_>, entries: &[Entry], report: &mut Report) -> Result<(), RelocateError> {
    // Two names of one file stay two names of one file.
    let mut known: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    let mut work: Vec<Work<'_>> = Vec::new();
    for entry in entries {
        match &entry.kind {
            Kind::File { inode, links, size, mode } => {
                report.files += 1;
                report.bytes_before += size;
                // The view's files are links into the store, so that nearly all have more than one name.
                let index = if *links > 1 { *known.entry(*inode).or_insert(work.len()) } else { work.len() };
                match work.get_mut(index) {
                    Some(work) => work.names.push(&entry.path),
                    None => work.push(Work { names: vec![&entry.path], mode: *mode }),
                }
            }
            Kind::Link(target) => fs::os::unix::fs::symlink(target, job.tree.join(&entry.path))?,
        }
    }
    let total = work.len() as u64;
    let outcomes = work
        .par_iter()
        .map(|work| {
            job.ctx.check()?;
            let outcomes = all_names(job, work)?;
            let done = job.done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(64) || done == total {
                let current = work.names.first().map(|path| path.display().to_string()).unwrap_or_default();
                job.ctx.event(&Event::Progress { stage: Stage::Relocate, done, total, unit: "files", current });
            }
            Ok(outcomes)
        })
        .collect::<Result<Vec<_>, RelocateError>>()?;
    for outcome in outcomes.into_iter().flatten() {
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

/// Copies a file under all its names. Two programs of one content in two folders (`bin/git`, `libexec/git-core/git`) look along
/// other paths from where they stand, so they may become two files.
fn all_names(job: &Job<'_>, work: &Work<'_>) -> Result<Vec<Outcome>, RelocateError> {
    // Others must be able to read a shared package; set-user-id bits do not travel.
    let mode = if work.mode & 0o111 != 0 { 0o755 } else { 0o644 };
    let mut outcomes = Vec::new();
    let mut names = work.names.clone();
    while let Some((path, others)) = names.split_first() {
        let outcome = Outcome::default();
        let mut making = Making { job, path, others, apart: Vec::new(), outcome };
        let to = job.tree.join(path);
        making.outcome.bytes = job.copier.copy(&job.view.join(path), &to, mode, &mut making)?;
        let Making { apart, outcome, .. } = making;
        outcomes.push(outcome);
        for other in others.iter().filter(|other| !apart.contains(other)) {
            fs::hard_link(&to, job.tree.join(other))?;
        }
        names = apart;
    }
    Ok(outcomes)
}

/// What is made of one file of the view.
struct Making<'a, 'e> {
    job: &'a Job<'a>,
    path: &'e Path,
    /// Further names of the same file.
    others: &'a [&'e Path],
    /// Those of them for which the edit is another one.
    apart: Vec<&'e Path>,
    outcome: Outcome,
}

impl Change for Making<'_, '_> {
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

    fn asked(&mut self, file: &Elf) -> Option<Edit> {
        let edit = asked(self.job, self.path, file);
        let (job, others) = (self.job, self.others.iter().copied());
        self.apart = others.filter(|other| asked(job, other, file) != edit).collect();
        edit
    }

    fn edited(&mut self, outcome: Result<bool, ElfError>) -> Result<(), RelocateError> {
        let edited = outcome.map_err(|source| RelocateError::Elf { path: self.path.to_owned(), source })?;
        self.outcome.elf = Some(edited);
        Ok(())
    }

    fn change(&mut self, old: &[u8], new: &mut Vec<u8>) -> Result<bool, RelocateError> {
        let origin = self.job.origin;
        let root = origin.inside_root.as_bytes();
        let mut changed = false;
        if elf::is_elf(old) {
            let edit = elf::parse(old).map(|file| self.asked(&file));
            let outcome = edit.and_then(|edit| edit.map_or(Ok(false), |edit| elf::edit_into(old, &edit, new)));
            changed = outcome == Ok(true);
            self.edited(outcome)?;
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

/// What becomes of an ELF file of the view.
fn asked(job: &Job<'_>, path: &Path, file: &Elf) -> Option<Edit> {
    let code = matches!(file.kind, elf::Kind::Executable | elf::Kind::SharedObject);
    if !code || file.is_debug_file {
        return None;
    }
    // A library that is named by its path in the build is found like all others.
    let bare_below = Some(job.origin.inside_root.as_bytes().to_vec());
    let root = Path::new(&job.origin.inside_root);
    let name = |name: &Vec<u8>| {
        let path = Path::new(OsStr::from_bytes(name));
        path.file_name().filter(|_| path.starts_with(root)).unwrap_or(path.as_os_str()).to_owned()
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
    Some(Edit { search_path, strip: Strip::All, bare_below })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let relocated = relocate(&Origin::of_tests(&dir.path().join("host")), &rules, &tree, &Ctx::silent()).unwrap();
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
        let error =
            relocate(&Origin::of_tests(dir.path()), &Rules::embedded().unwrap(), &dir.path().join("t"), &Ctx::silent());
        assert!(error.unwrap_err().to_string().contains("clean --full"));
    }
}
