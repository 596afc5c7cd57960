//! Looks at a finished tree or archive as a stranger would: does every program find its libraries inside it,
//! does anything still name the build, which glibc does it ask for.
//!
//! Entries are fed one by one ([`Inspector::file`]), so that an archive is checked without unpacking it; the
//! closure is worked out at the end. A search path counts only by what it is: `$ORIGIN` is the file's own
//! folder, and an absolute path, or one that leaves the tree, is an offence even if the host has it.

use super::rules::Rules;
use crate::elf::{self, GlibcFloor};
use crate::fsutil;
use memchr::memmem;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Something that makes the tree unfit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "problem", rename_all = "kebab-case")]
pub enum Problem {
    /// A needed library is neither in the tree, where the file looks, nor one of glibc's.
    MissingLibrary {
        /// The file that needs it.
        path: PathBuf,
        /// The library's name.
        library: String,
    },
    /// A search path that is not relative to the file, or leaves the tree.
    SearchPath {
        /// The file.
        path: PathBuf,
        /// The folder on its search path.
        folder: String,
    },
    /// The build prefix stands in a file and no rule allows it.
    Leak {
        /// The file.
        path: PathBuf,
        /// Offset of the first, in bytes.
        offset: usize,
        /// The string there.
        text: String,
    },
    /// A symlink whose target is not in the tree.
    Link {
        /// The symlink.
        path: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// An ELF file that cannot be read.
    Elf {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A mode that a package must not bring.
    Mode {
        /// The file.
        path: PathBuf,
        /// The mode, octal.
        mode: String,
    },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MissingLibrary { path, library } => {
                write!(f, "{}: needs {library}, which is neither in the package nor one of glibc's", path.display())
            }
            Self::SearchPath { path, folder } => {
                write!(f, "{}: search path `{folder}` leaves the package", path.display())
            }
            Self::Leak { path, offset, text } => {
                write!(f, "{}: names the build at offset {offset}: `{text}`", path.display())
            }
            Self::Link { path, target } => {
                write!(f, "{}: symlink to `{}`, which is not in the package", path.display(), target.display())
            }
            Self::Elf { path, reason } => write!(f, "{}: {reason}", path.display()),
            Self::Mode { path, mode } => write!(f, "{}: mode {mode} (set-id or world-writable)", path.display()),
        }
    }
}

/// A file that names the build prefix, and the rule that allows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AllowedLeak {
    /// The file.
    pub path: PathBuf,
    /// How many times.
    pub count: usize,
    /// The first such string.
    pub text: String,
    /// Why it is harmless.
    pub reason: String,
}

/// The highest glibc version that anything in the tree asks for, and what asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Floor {
    /// `2.36`.
    pub version: String,
    /// The file.
    pub path: PathBuf,
    /// The library whose version it is, `libc.so.6`.
    pub library: String,
}

/// The result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Empty when the tree is fit.
    pub problems: Vec<Problem>,
    /// What still names the build, with reasons.
    pub allowed: Vec<AllowedLeak>,
    /// The glibc that is needed; `None` when nothing asks for one.
    pub glibc: Option<Floor>,
    /// ELF files looked at.
    pub elf_files: usize,
    /// All files looked at.
    pub files: usize,
    /// glibc's libraries that are taken from the host.
    pub from_host: BTreeSet<String>,
}

struct ElfFacts {
    needed: Vec<Vec<u8>>,
    search_path: Vec<Vec<u8>>,
}

/// Takes the entries of a tree and works out the [`Findings`].
pub struct Inspector<'a> {
    rules: &'a Rules,
    needle: memmem::Finder<'a>,
    findings: Findings,
    floor: Option<(GlibcFloor, PathBuf)>,
    elf: BTreeMap<PathBuf, ElfFacts>,
    names: BTreeSet<PathBuf>,
    links: BTreeMap<PathBuf, PathBuf>,
}

impl<'a> Inspector<'a> {
    /// `build_root` is what no file may name.
    pub fn new(rules: &'a Rules, build_root: &'a str) -> Self {
        Self {
            rules,
            needle: memmem::Finder::new(build_root.as_bytes()),
            findings: Findings::default(),
            floor: None,
            elf: BTreeMap::new(),
            names: BTreeSet::new(),
            links: BTreeMap::new(),
        }
    }

    /// Takes a regular file. `path` is relative to the tree that its libraries must be found in.
    pub fn file(&mut self, path: &Path, mode: u32, content: &[u8]) {
        self.findings.files += 1;
        self.names.insert(path.to_owned());
        if mode & 0o6000 != 0 || mode & 0o002 != 0 {
            self.findings.problems.push(Problem::Mode { path: path.to_owned(), mode: format!("{mode:04o}") });
        }
        self.leaks(path, content);
        if !elf::is_elf(content) {
            return;
        }
        self.findings.elf_files += 1;
        match elf::parse(content) {
            Ok(file) => {
                if let Some(floor) = elf::glibc_floor(&file)
                    && self.floor.as_ref().is_none_or(|(known, _)| floor.version > known.version)
                {
                    self.floor = Some((floor, path.to_owned()));
                }
                let search_path = file.search_path().unwrap_or_default();
                let search_path = search_path.split(|b| *b == b':').filter(|f| !f.is_empty()).map(<[u8]>::to_vec);
                let facts = ElfFacts { search_path: search_path.collect(), needed: file.needed };
                self.elf.insert(path.to_owned(), facts);
            }
            Err(e) => {
                self.findings.problems.push(Problem::Elf { path: path.to_owned(), reason: e.to_string() });
            }
        }
    }

    /// Takes a symlink.
    pub fn link(&mut self, path: &Path, target: &Path) {
        self.names.insert(path.to_owned());
        if self.needle.find(target.as_os_str().as_bytes()).is_some() {
            self.findings.problems.push(Problem::Link { path: path.to_owned(), target: target.to_owned() });
        } else {
            self.links.insert(path.to_owned(), target.to_owned());
        }
    }

    /// Takes a further name of a file that was taken before.
    pub fn alias(&mut self, path: &Path, first: &Path) {
        self.names.insert(path.to_owned());
        // The same bytes in another folder look along another `$ORIGIN`.
        if let Some(facts) = self.elf.get(first) {
            let facts = ElfFacts { needed: facts.needed.clone(), search_path: facts.search_path.clone() };
            self.elf.insert(path.to_owned(), facts);
        }
    }

    /// Takes a folder.
    pub fn folder(&mut self, path: &Path) {
        self.names.insert(path.to_owned());
    }

    fn leaks(&mut self, path: &Path, content: &[u8]) {
        let mut found = self.needle.find_iter(content);
        let Some(offset) = found.next() else { return };
        let count = 1 + found.count();
        let text = printable(&content[offset..]);
        match self.rules.allow.iter().find(|rule| rule.matches(path)) {
            Some(rule) => self.findings.allowed.push(AllowedLeak {
                path: path.to_owned(),
                count,
                text,
                reason: rule.reason.clone(),
            }),
            None => self.findings.problems.push(Problem::Leak { path: path.to_owned(), offset, text }),
        }
    }

    /// Works out the closure.
    pub fn finish(mut self) -> Findings {
        for (path, target) in &self.links {
            let resolved = if target.is_absolute() { None } else { resolve(fsutil::parent_of(path), target) };
            if !resolved.is_some_and(|t| self.exists(&t, 0)) {
                self.findings.problems.push(Problem::Link { path: path.clone(), target: target.clone() });
            }
        }
        for (path, facts) in &self.elf {
            let own = fsutil::parent_of(path);
            let mut folders = Vec::new();
            for entry in &facts.search_path {
                match origin_relative(own, entry) {
                    Some(folder) => folders.push(folder),
                    None => self.findings.problems.push(Problem::SearchPath {
                        path: path.clone(),
                        folder: String::from_utf8_lossy(entry).into_owned(),
                    }),
                }
            }
            for library in &facts.needed {
                let name = String::from_utf8_lossy(library).into_owned();
                let inside = folders.iter().any(|f| self.exists(&f.join(OsStr::from_bytes(library)), 0));
                if inside {
                    continue;
                }
                if self.rules.is_libc(&name) {
                    self.findings.from_host.insert(name);
                } else {
                    self.findings.problems.push(Problem::MissingLibrary { path: path.clone(), library: name });
                }
            }
        }
        self.findings.glibc = self.floor.take().map(|(floor, path)| Floor {
            version: floor.version.to_string(),
            path,
            library: String::from_utf8_lossy(&floor.library).into_owned(),
        });
        self.findings.problems.sort();
        self.findings
    }

    /// Whether a path is there, following symlinks of the tree.
    fn exists(&self, path: &Path, depth: usize) -> bool {
        if depth > 40 {
            return false;
        }
        if path == Path::new("") {
            return true;
        }
        if let Some(target) = self.links.get(path) {
            return resolve(fsutil::parent_of(path), target).is_some_and(|t| self.exists(&t, depth + 1));
        }
        self.names.contains(path) || self.through_linked_folder(path, depth)
    }

    fn through_linked_folder(&self, path: &Path, depth: usize) -> bool {
        path.ancestors().skip(1).any(|folder| {
            self.links.get(folder).is_some_and(|target| {
                let Ok(rest) = path.strip_prefix(folder) else { return false };
                resolve(fsutil::parent_of(folder), target).is_some_and(|t| self.exists(&t.join(rest), depth + 1))
            })
        })
    }
}

/// A folder of a search path, relative to the tree; `None` when it is absolute or leaves the tree.
fn origin_relative(own: &Path, entry: &[u8]) -> Option<PathBuf> {
    let rest = entry.strip_prefix(b"$ORIGIN").or_else(|| entry.strip_prefix(b"${ORIGIN}"))?;
    let rest = match rest {
        [] => rest,
        [b'/', rest @ ..] => rest,
        _ => return None,
    };
    resolve(own, Path::new(OsStr::from_bytes(rest)))
}

/// `folder` and `relative` joined, `..` taken by name; `None` when it leaves the tree.
fn resolve(folder: &Path, relative: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in folder.components().chain(relative.components()) {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                if !out.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

fn printable(bytes: &[u8]) -> String {
    let end = bytes.iter().take(200).position(|b| !(0x20..0x7f).contains(b)).unwrap_or(bytes.len().min(200));
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::embedded().unwrap()
    }

    #[test]
    fn leaks_links_and_modes_are_found() {
        let rules = rules();
        let mut inspector = Inspector::new(&rules, "/build.root");
        inspector.file(Path::new("etc/a"), 0o644, b"x=/build.root/store/y\n");
        inspector.file(Path::new("bin/s"), 0o4755, b"");
        inspector.file(Path::new("lib/real.so.1"), 0o755, b"");
        inspector.link(Path::new("lib/ok.so"), Path::new("real.so.1"));
        inspector.link(Path::new("lib/twice.so"), Path::new("ok.so"));
        inspector.link(Path::new("lib/dangling"), Path::new("gone"));
        inspector.link(Path::new("lib/abs"), Path::new("/etc/passwd"));
        inspector.link(Path::new("lib/out"), Path::new("../../x"));
        let problems = inspector.finish().problems;
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(
            problems
                .iter()
                .any(|p| matches!(p, Problem::Leak { offset: 2, text, .. } if text == "/build.root/store/y"))
        );
    }

    #[test]
    fn search_paths_stay_in_the_tree() {
        for (own, entry, want) in [
            ("bin", "$ORIGIN/../lib", Some("lib")),
            ("bin", "${ORIGIN}", Some("bin")),
            ("bin", "$ORIGIN/../../lib", None),
            ("bin", "/usr/lib", None),
            ("bin", "$ORIGINAL/x", None),
            ("bin", "lib", None),
        ] {
            assert_eq!(origin_relative(Path::new(own), entry.as_bytes()), want.map(PathBuf::from), "{entry}");
        }
    }

    #[test]
    fn a_library_behind_a_linked_folder_is_found() {
        let rules = rules();
        let mut inspector = Inspector::new(&rules, "/build.root");
        inspector.folder(Path::new("lib"));
        inspector.file(Path::new("lib/libz.so.1"), 0o644, b"");
        inspector.link(Path::new("lib64"), Path::new("lib"));
        assert!(inspector.exists(Path::new("lib64/libz.so.1"), 0));
        assert!(!inspector.exists(Path::new("lib64/libq.so.1"), 0));
    }
}
