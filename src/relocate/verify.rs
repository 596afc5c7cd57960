//! Looks at a finished tree or archive as a stranger would: does every program find its libraries inside it,
//! does anything still name the build, which glibc does it ask for.
//!
//! Entries are fed one by one ([`Inspector::file`]), so that an archive is checked without unpacking it; the
//! closure is worked out at the end. A search path counts only by what it is: `$ORIGIN` is the file's own
//! folder, and an absolute path, or one that leaves the tree, is an offence even if the host has it.

pub use super::findings::{AllowedLeak, Findings, Floor, Isa, Needed, Problem, listed};
use super::hidden;
use super::rules::Rules;
use crate::elf::{self, GlibcFloor, IsaLevel, VersionNeed};
use crate::fsutil;
use memchr::memmem;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

#[derive(Clone)]
struct ElfFacts {
    needed: Vec<Vec<u8>>,
    search_path: Vec<Vec<u8>>,
    version_needs: Vec<VersionNeed>,
    version_defs: Vec<Vec<u8>>,
}

/// Takes the entries of a tree and works out the [`Findings`].
pub struct Inspector<'a> {
    rules: &'a Rules,
    needle: memmem::Finder<'a>,
    findings: Findings,
    floor: Option<(GlibcFloor, PathBuf, Option<Vec<u8>>)>,
    isa: Option<(IsaLevel, PathBuf)>,
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
            isa: None,
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
        self.hidden_leaks(path, content);
        match elf::parse(content) {
            Ok(file) => {
                if let Some(interpreter) = file.interpreter.as_deref().filter(|loader| !is_of_a_system(loader)) {
                    let interpreter = String::from_utf8_lossy(interpreter).into_owned();
                    self.findings.problems.push(Problem::Interpreter { path: path.to_owned(), interpreter });
                }
                if let Some(floor) = elf::glibc_floor(&file)
                    && self.floor.as_ref().is_none_or(|(known, ..)| floor.version > known.version)
                {
                    // The file was read already; a table that is not as it should be only leaves the symbol unnamed.
                    let symbol = elf::glibc_symbol(content, &floor).ok().flatten();
                    self.floor = Some((floor, path.to_owned(), symbol));
                }
                if let Some(level) = file.isa_level
                    && self.isa.as_ref().is_none_or(|(known, _)| level > *known)
                {
                    self.isa = Some((level, path.to_owned()));
                }
                let search_path = file.search_path().unwrap_or_default();
                let search_path = search_path.split(|b| *b == b':').filter(|f| !f.is_empty()).map(<[u8]>::to_vec);
                let facts = ElfFacts {
                    search_path: search_path.collect(),
                    needed: file.needed,
                    version_needs: file.version_needs,
                    version_defs: file.version_defs,
                };
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
            let facts = facts.clone();
            self.elf.insert(path.to_owned(), facts);
        }
    }

    /// Takes a folder.
    pub fn folder(&mut self, path: &Path) {
        self.names.insert(path.to_owned());
    }

    /// Every string that names the build: allowed by the first rule for this file and this string, or a problem.
    fn leaks(&mut self, path: &Path, content: &[u8]) {
        let mut found = self.needle.find_iter(content).map(|at| (at, printable(&content[at..]))).peekable();
        if found.peek().is_some() {
            let found: Vec<_> = found.collect();
            self.judge(path, None, &found);
        }
    }

    /// The same in sections that are compressed (`-gz`), where no search of the file sees them.
    fn hidden_leaks(&mut self, path: &Path, content: &[u8]) {
        for section in elf::compressed(content).unwrap_or_default() {
            match hidden::find(&section, &self.needle) {
                Ok(found) if found.is_empty() => {}
                Ok(found) => self.judge(path, Some(&section.name), &found),
                Err(reason) => self.findings.problems.push(Problem::Elf { path: path.to_owned(), reason }),
            }
        }
    }

    fn judge(&mut self, path: &Path, section: Option<&str>, found: &[(usize, String)]) {
        let mut allowed: BTreeMap<&str, AllowedLeak> = BTreeMap::new();
        let mut leak: Option<(usize, &str, usize)> = None;
        for (offset, text) in found {
            match self.rules.allowed(path, text) {
                Some(reason) => {
                    let entry = allowed.entry(reason);
                    let (path, reason, text) = (path.to_owned(), reason.to_owned(), shown(text));
                    entry.or_insert_with(|| AllowedLeak { path, count: 0, text, reason }).count += 1;
                }
                None => leak.get_or_insert((*offset, text, 0)).2 += 1,
            }
        }
        self.findings.allowed.extend(allowed.into_values());
        if let Some((offset, text, count)) = leak {
            let (path, section, text) = (path.to_owned(), section.map(str::to_owned), shown(text));
            self.findings.problems.push(Problem::Leak { path, section, offset, text, count });
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
            let mut closure = Vec::new();
            for library in &facts.needed {
                let name = String::from_utf8_lossy(library).into_owned();
                if library.contains(&b'/') {
                    self.findings.problems.push(Problem::NamedByPath { path: path.clone(), library: name.clone() });
                    closure.push(Needed { library: name, found: None });
                    continue;
                }
                let found = folders.iter().find_map(|f| self.real(&f.join(OsStr::from_bytes(library)), 0));
                if let Some(found) = &found {
                    self.findings.problems.extend(self.missing_versions(path, facts, library, found));
                } else if self.rules.is_libc(&name) {
                    self.findings.from_host.insert(name.clone());
                } else {
                    let library = name.clone();
                    let elsewhere = self.names.iter().find(|name| name.file_name() == Some(OsStr::new(&library)));
                    let elsewhere = elsewhere.cloned();
                    self.findings.problems.push(Problem::MissingLibrary { path: path.clone(), library, elsewhere });
                }
                closure.push(Needed { library: name, found });
            }
            if !closure.is_empty() {
                self.findings.closure.insert(path.clone(), closure);
            }
        }
        self.findings.isa = self.isa.take().map(|(level, path)| Isa { level: level.to_string(), path });
        self.findings.glibc = self.floor.take().map(|(floor, path, symbol)| Floor {
            version: floor.version.to_string(),
            path,
            library: String::from_utf8_lossy(&floor.library).into_owned(),
            symbol: symbol.map(|name| String::from_utf8_lossy(&name).into_owned()),
        });
        self.findings.problems.sort();
        self.findings
    }

    /// What the file needs of a library's versions and the library does not have. A library that defines none is taken by
    /// glibc's loader as it is, with a warning, if only it has a table of versions (`DT_VERSYM`), which it has when it
    /// needs versions itself; without one, the loader ends with an assertion (`check_match` in `elf/dl-lookup.c`).
    fn missing_versions(&self, path: &Path, facts: &ElfFacts, library: &[u8], found: &Path) -> Vec<Problem> {
        let Some(ElfFacts { version_defs: offered, version_needs: table, .. }) = self.elf.get(found) else {
            return Vec::new();
        };
        if offered.is_empty() && !table.is_empty() {
            return Vec::new();
        }
        let needs = facts.version_needs.iter().filter(|need| need.library == library);
        let missing = needs.flat_map(|need| {
            need.versions.iter().filter(|v| !need.weak.contains(v) && !offered.contains(v)).map(|version| {
                Problem::MissingVersion {
                    path: path.to_owned(),
                    library: found.to_owned(),
                    version: String::from_utf8_lossy(version).into_owned(),
                }
            })
        });
        missing.collect()
    }

    /// Whether a path is there, following symlinks of the tree.
    fn exists(&self, path: &Path, depth: usize) -> bool {
        self.real(path, depth).is_some()
    }

    /// The path behind all symlinks of the tree, when it is there.
    fn real(&self, path: &Path, depth: usize) -> Option<PathBuf> {
        if depth > 40 {
            return None;
        }
        if path == Path::new("") {
            return Some(PathBuf::new());
        }
        if let Some(target) = self.links.get(path) {
            return self.real(&resolve(fsutil::parent_of(path), target)?, depth + 1);
        }
        if self.names.contains(path) {
            return Some(path.to_owned());
        }
        path.ancestors().skip(1).find_map(|folder| {
            let target = self.links.get(folder)?;
            let rest = path.strip_prefix(folder).ok()?;
            self.real(&resolve(fsutil::parent_of(folder), target)?.join(rest), depth + 1)
        })
    }
}

/// Whether a loader is where systems have theirs: `/lib64/ld-linux-x86-64.so.2`, `/lib/ld-musl-aarch64.so.1`, `/usr/lib/...`.
fn is_of_a_system(interpreter: &[u8]) -> bool {
    let interpreter = interpreter.strip_prefix(b"/usr").unwrap_or(interpreter);
    interpreter.starts_with(b"/lib") && !interpreter.windows(4).any(|part| part == b"/../")
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

/// How much of a text is looked at, in bytes: more than any path has.
pub(super) const LONGEST: usize = 4096;

/// The text at the begin of `bytes`, at most [`LONGEST`] of them: rules are about its end too.
pub(super) fn printable(bytes: &[u8]) -> String {
    let end = bytes.iter().take(LONGEST).position(|b| !(0x20..0x7f).contains(b)).unwrap_or(bytes.len().min(LONGEST));
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// As much of a text as a list has room for. [`printable`] text is ASCII.
pub(super) fn shown(text: &str) -> String {
    text.get(..400).map_or_else(|| text.to_owned(), |begin| format!("{begin}..."))
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
    fn a_rule_allows_the_string_that_it_is_about_and_no_other() {
        let site: crate::catalog::RelocateRules =
            toml::from_str("[[allow]]\nglob = 'lib/x.so'\nstring = '*/machine-id'\nreason = 'only looked for'\n")
                .unwrap();
        let rules = Rules::of_site(&site).unwrap();
        let mut inspector = Inspector::new(&rules, "/build.root");
        inspector.file(
            Path::new("lib/x.so"),
            0o644,
            b"\0/build.root/var/machine-id\0/build.root/etc/x\0/build.root/a\0",
        );
        let findings = inspector.finish();
        assert_eq!(findings.allowed.len(), 1);
        let leak = &findings.problems[0];
        assert!(
            matches!(leak, Problem::Leak { offset: 28, text, count: 2, .. } if text == "/build.root/etc/x"),
            "{leak:?}"
        );
        assert!(leak.to_string().ends_with("and 1 more"), "{leak}");
    }

    #[test]
    fn loaders_of_systems_are_told_from_others() {
        for (loader, want) in [
            ("/lib64/ld-linux-x86-64.so.2", true),
            ("/lib/ld-musl-x86_64.so.1", true),
            ("/usr/lib64/ld-linux-x86-64.so.2", true),
            ("/libx32/ld-linux-x32.so.2", true),
            ("/gnu/store/x-glibc/lib/ld-linux-x86-64.so.2", false),
            ("/opt/tool/lib/ld.so", false),
            ("/lib/../home/ld.so", false),
            ("ld.so", false),
        ] {
            assert_eq!(is_of_a_system(loader.as_bytes()), want, "{loader}");
        }
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
