//! Looks at a finished tree or archive as a stranger would: does every program find its libraries inside it,
//! does anything still name the build, which glibc does it ask for.
//!
//! Entries are fed one by one ([`Inspector::file`]), so that an archive is checked without unpacking it; the
//! closure is worked out at the end. A search path counts only by what it is: `$ORIGIN` is the file's own
//! folder, and an absolute path, or one that leaves the tree, is an offence even if the host has it.

pub use super::findings::{AllowedLeak, Findings, Floor, Isa, Named, Needed, Problem, Unseen, listed};
use super::hidden::{self, Compressed};
use super::layout::Layout;
use super::links::{Led, Names, follow};
use super::rules::Rules;
use crate::elf::{self, GlibcFloor, IsaLevel, VersionNeed};
use crate::fsutil;
use memchr::memmem;
use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

#[derive(Clone)]
struct ElfFacts {
    needed: Vec<Vec<u8>>,
    search_path: Vec<Vec<u8>>,
    version_needs: Vec<VersionNeed>,
    version_defs: Vec<Vec<u8>>,
}

/// How many strings of a file are told for one reason: a library with debug information names its sources thousands of times.
const STRINGS: usize = 1000;

/// Takes the entries of a tree and works out the [`Findings`].
pub struct Inspector<'a> {
    rules: &'a Rules,
    layout: Layout<'a>,
    needle: memmem::Finder<'a>,
    findings: Findings,
    floor: Option<(GlibcFloor, PathBuf, Option<Vec<u8>>)>,
    isa: Option<(IsaLevel, PathBuf)>,
    elf: BTreeMap<PathBuf, ElfFacts>,
    names: BTreeSet<PathBuf>,
    links: BTreeMap<PathBuf, PathBuf>,
    /// An archive need not have entries for its folders.
    folders: BTreeSet<PathBuf>,
}

impl<'a> Inspector<'a> {
    /// No file may name the root of `layout`.
    pub fn new(rules: &'a Rules, layout: Layout<'a>) -> Self {
        Self {
            rules,
            layout,
            needle: memmem::Finder::new(layout.root.as_bytes()),
            findings: Findings::default(),
            floor: None,
            isa: None,
            elf: BTreeMap::new(),
            names: BTreeSet::new(),
            links: BTreeMap::new(),
            folders: BTreeSet::new(),
        }
    }

    /// Takes a regular file. `path` is relative to the tree that its libraries must be found in.
    pub fn file(&mut self, path: &Path, mode: u32, content: &[u8]) {
        self.findings.files += 1;
        self.name(path);
        if mode & 0o6000 != 0 || mode & 0o002 != 0 {
            self.findings
                .problems
                .push(Problem::Mode { path: path.to_owned(), mode: format!("{:04o}", mode & 0o7777) });
        }
        self.leaks(path, content);
        if !elf::is_elf(content) {
            return self.leaks_in_compressed(path, content);
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
                // An empty folder among others counts: it is the one that the program is started in.
                let search_path = file.search_path().filter(|path| !path.is_empty());
                let search_path =
                    search_path.into_iter().flat_map(|path| path.split(|b| *b == b':')).map(<[u8]>::to_vec);
                let facts = ElfFacts {
                    search_path: search_path.collect(),
                    needed: file.needed,
                    version_needs: file.version_needs,
                    version_defs: file.version_defs,
                };
                self.elf.insert(path.to_owned(), facts);
            }
            Err(error) => self.unreadable(path, error.to_string()),
        }
    }

    /// Takes a symlink.
    pub fn link(&mut self, path: &Path, target: &Path) {
        self.name(path);
        if self.needle.find(target.as_os_str().as_bytes()).is_some() {
            self.findings.problems.push(Problem::Link { path: path.to_owned(), target: target.to_owned() });
        } else {
            self.links.insert(path.to_owned(), target.to_owned());
        }
    }

    /// Takes a further name of a file that was taken before.
    pub fn alias(&mut self, path: &Path, first: &Path) {
        self.name(path);
        // The same bytes in another folder look along another `$ORIGIN`.
        if let Some(facts) = self.elf.get(first) {
            let facts = facts.clone();
            self.elf.insert(path.to_owned(), facts);
        }
    }

    /// Takes a folder. One that everybody may write to is told, unless it keeps one's files from others (`S_ISVTX`).
    pub fn folder(&mut self, path: &Path, mode: u32) {
        self.name(path);
        self.folders.insert(path.to_owned());
        if mode & 0o1002 == 0o002 {
            self.findings
                .problems
                .push(Problem::Mode { path: path.to_owned(), mode: format!("{:04o}", mode & 0o7777) });
        }
    }

    /// Takes what is neither file, folder nor link.
    pub fn special(&mut self, path: &Path, kind: &str) {
        self.name(path);
        self.findings.problems.push(Problem::Special { path: path.to_owned(), kind: kind.to_owned() });
    }

    fn name(&mut self, path: &Path) {
        self.names.insert(path.to_owned());
        for folder in path.ancestors().skip(1) {
            if !self.folders.insert(folder.to_owned()) {
                break;
            }
        }
    }

    /// Every string that names the build: allowed by the first rule for this file and this string, or a problem.
    fn leaks(&mut self, path: &Path, content: &[u8]) {
        // A finder's copy borrows what it looks for.
        let needle = self.needle.clone();
        self.judge(path, None, needle.find_iter(content).map(|at| (at, printable(&content[at..]))));
    }

    /// The same in sections that are compressed (`-gz`), where no search of the file sees them.
    fn hidden_leaks(&mut self, path: &Path, content: &[u8]) {
        let sections = match elf::compressed(content) {
            Ok(sections) => sections,
            Err(error) => return self.unreadable(path, error.to_string()),
        };
        for section in sections {
            match hidden::find(&section, |block| self.needle.find_iter(block).collect()) {
                Ok(found) => {
                    let compressed = Compressed::Section(section.name.clone());
                    self.judge(path, Some(&compressed), found.into_iter());
                }
                Err(reason) => self.unreadable(path, reason),
            }
        }
    }

    /// The same in a file that is compressed as a whole.
    fn leaks_in_compressed(&mut self, path: &Path, content: &[u8]) {
        match hidden::find_in_file(content, |block| self.needle.find_iter(block).collect()) {
            Some((format, Ok(found))) => self.judge(path, Some(&Compressed::File(format)), found.into_iter()),
            Some((_, Err(reason))) => self.findings.unseen.push(Unseen { path: path.to_owned(), reason }),
            None => {}
        }
    }

    /// An ELF file that cannot be read. What is wrong with it is said once, whoever finds it.
    fn unreadable(&mut self, path: &Path, reason: String) {
        let problem = Problem::Elf { path: path.to_owned(), reason };
        if self.findings.problems.last() != Some(&problem) {
            self.findings.problems.push(problem);
        }
    }

    fn judge(&mut self, path: &Path, compressed: Option<&Compressed>, found: impl Iterator<Item = (usize, String)>) {
        // By reason; without one, no rule allows them.
        let mut by_reason: BTreeMap<Option<&str>, (usize, Vec<Named>)> = BTreeMap::new();
        let length = self.layout.root.len();
        for (offset, text) in found {
            // `/opt/spack-2` is not below `/opt/spack`.
            if text.as_bytes().get(length).is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
                continue;
            }
            let (count, strings) = by_reason.entry(self.rules.allowed(path, &text, &self.layout)).or_default();
            *count += 1;
            if strings.len() < STRINGS {
                strings.push(Named { offset, text: shown(&text) });
            }
        }
        for (reason, (count, strings)) in by_reason {
            let (path, compressed) = (path.to_owned(), compressed.cloned());
            match reason.map(str::to_owned) {
                Some(reason) => self.findings.allowed.push(AllowedLeak { path, compressed, count, strings, reason }),
                None => self.findings.problems.push(Problem::Leak { path, compressed, count, strings }),
            }
        }
    }

    /// Works out the closure.
    pub fn finish(mut self) -> Findings {
        for (path, target) in &self.links {
            if self.real(fsutil::parent_of(path), target).is_none() {
                self.findings.problems.push(Problem::Link { path: path.clone(), target: target.clone() });
            }
        }
        let names = &self.names;
        let by_name: LazyCell<BTreeMap<&OsStr, &PathBuf>, _> =
            LazyCell::new(|| names.iter().rev().filter_map(|path| Some((path.file_name()?, path))).collect());
        for (path, facts) in &self.elf {
            let own = fsutil::parent_of(path);
            let mut folders = Vec::new();
            for entry in &facts.search_path {
                match self.searched(own, entry) {
                    Led::To(folder) => folders.push(folder),
                    Led::Outside => self.findings.problems.push(Problem::SearchPath {
                        path: path.clone(),
                        folder: String::from_utf8_lossy(entry).into_owned(),
                    }),
                    // The loader finds nothing there, and neither do we.
                    Led::Broken | Led::Round => {}
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
                let found = folders.iter().find_map(|f| self.real(f, Path::new(OsStr::from_bytes(library))));
                if let Some(found) = &found {
                    self.findings.problems.extend(self.missing_versions(path, facts, library, found));
                } else if self.rules.is_of_host(&name) {
                    self.findings.from_host.insert(name.clone());
                } else {
                    let library = name.clone();
                    let elsewhere = by_name.get(OsStr::new(&library)).map(|path| (*path).clone());
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

    /// Where a folder of the search path of a file in the folder `own` leads. What does not begin with the file's own place
    /// leads outside.
    fn searched(&self, own: &Path, entry: &[u8]) -> Led {
        let rest = entry.strip_prefix(b"$ORIGIN").or_else(|| entry.strip_prefix(b"${ORIGIN}"));
        match rest {
            Some([]) => Led::To(own.to_owned()),
            // A slash at the end asks for a folder, which may not be there.
            Some([b'/', rest @ ..]) => {
                let end = rest.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
                match &rest[..end] {
                    [] => Led::To(own.to_owned()),
                    rest => follow(own, Path::new(OsStr::from_bytes(rest)), &self),
                }
            }
            _ => Led::Outside,
        }
    }

    /// The path behind all symlinks of the tree, when it is there.
    fn real(&self, from: &Path, path: &Path) -> Option<PathBuf> {
        match follow(from, path, &self) {
            Led::To(end) if end == Path::new("") || self.names.contains(&end) || self.folders.contains(&end) => {
                Some(end)
            }
            _ => None,
        }
    }
}

impl<'l> Names<'l> for &'l Inspector<'_> {
    fn link(&self, name: &Path) -> Option<&'l Path> {
        self.links.get(name).map(PathBuf::as_path)
    }

    fn is_folder(&self, name: &Path) -> bool {
        self.folders.contains(name)
    }
}

/// Whether a loader is where systems have theirs: `/lib64/ld-linux-x86-64.so.2`, `/lib/ld-musl-aarch64.so.1`, `/usr/lib/...`.
fn is_of_a_system(interpreter: &[u8]) -> bool {
    let interpreter = interpreter.strip_prefix(b"/usr").unwrap_or(interpreter);
    interpreter.starts_with(b"/lib") && !interpreter.windows(4).any(|part| part == b"/../")
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

    const LAYOUT: Layout<'static> =
        Layout { root: "/build.root", store: "/build.root/store", views: "/build.root/view" };

    fn rules() -> Rules {
        Rules::embedded().unwrap()
    }

    fn named(offset: usize, text: &str) -> Named {
        Named { offset, text: text.to_owned() }
    }

    #[test]
    fn leaks_links_and_modes_are_found() {
        let rules = rules();
        let mut inspector = Inspector::new(&rules, LAYOUT);
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
                .any(|p| matches!(p, Problem::Leak { strings, .. } if *strings == [named(2, "/build.root/store/y")]))
        );
    }

    #[test]
    fn a_rule_allows_the_string_that_it_is_about_and_no_other() {
        let site: crate::catalog::RelocateRules =
            toml::from_str("[[allow]]\nglob = 'lib/x.so'\nstring = '*/machine-id'\nreason = 'only looked for'\n")
                .unwrap();
        let rules = Rules::of_site(&site).unwrap();
        let mut inspector = Inspector::new(&rules, LAYOUT);
        inspector.file(
            Path::new("lib/x.so"),
            0o644,
            b"\0/build.root/var/machine-id\0/build.root/etc/x\0/build.root/a\0",
        );
        let findings = inspector.finish();
        assert_eq!(findings.allowed.len(), 1);
        let leak = &findings.problems[0];
        assert!(
            matches!(leak, Problem::Leak { count: 2, strings, .. } if strings[0] == named(28, "/build.root/etc/x")),
            "{leak:?}"
        );
        let says = "lib/x.so: names the build at offset 28: `/build.root/etc/x`, at offset 46: `/build.root/a`";
        assert_eq!(leak.to_string(), says);
        let mut inspector = Inspector::new(&rules, LAYOUT);
        inspector.file(Path::new("lib/x.so"), 0o644, &b"/build.root/b\0".repeat(5));
        let many = inspector.finish().problems[0].to_string();
        assert!(many.ends_with(", at offset 28: `/build.root/b`, and 2 more (--json has them)"), "{many}");
    }

    #[test]
    fn what_install_cannot_write_over_is_a_leak() {
        let site: crate::catalog::RelocateRules =
            toml::from_str("[[rewrite]]\nglob = 'lib/x.so'\nto = '{view}'\nreason = 'install writes it'\n").unwrap();
        let rules = Rules::of_site(&site).unwrap();
        let endless = format!("/build.root/store/p-1-h/{}", "x".repeat(LONGEST));
        for (text, fine) in [
            ("/build.root/store/p-1-h/share", true),
            ("/build.root/view/._v/h/share", true),
            ("/build.root/stage/p-1-h/p.c", false),
            ("/build.root", false),
            (&endless, false),
        ] {
            let mut inspector = Inspector::new(&rules, LAYOUT);
            inspector.file(Path::new("lib/x.so"), 0o644, format!("\0{text}\0").as_bytes());
            let findings = inspector.finish();
            assert_eq!((findings.problems.is_empty(), findings.allowed.len()), (fine, usize::from(fine)), "{text:.60}");
        }
    }

    #[test]
    fn a_compressed_section_that_cannot_be_read_is_a_problem() {
        // A section that is not loaded, said to be compressed and too short for the header that tells how.
        let mut bytes = fs_err::read("/bin/true").unwrap();
        let number = |at: usize, length: usize| {
            bytes[at..at + length].iter().rev().fold(0_usize, |n, b| n << 8 | usize::from(*b))
        };
        let (table, count, names) = (number(0x28, 8), number(0x3c, 2), number(0x3e, 2));
        let unloaded = (1..count).find(|i| *i != names && number(table + 64 * i + 8, 8) & 2 == 0).unwrap();
        let section = table + 64 * unloaded;
        bytes[section + 9] |= 0x08;
        bytes[section + 32..section + 40].copy_from_slice(&3_u64.to_le_bytes());
        assert!(elf::parse(&bytes).is_ok(), "what is loaded is as it should be");
        let rules = rules();
        let mut inspector = Inspector::new(&rules, LAYOUT);
        inspector.file(Path::new("bin/x"), 0o755, &bytes);
        let problems = inspector.finish().problems;
        let told = |p: &&Problem| matches!(p, Problem::Elf { reason, .. } if reason.contains("compression header"));
        assert_eq!(problems.iter().filter(told).count(), 1, "{problems:?}");
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

    /// Each of these links leads through all the others: whoever tries every way is at it for ever.
    #[test]
    fn links_below_links_end() {
        let rules = rules();
        let mut inspector = Inspector::new(&rules, LAYOUT);
        let path = |parts: usize| std::iter::repeat_n("a", parts).collect::<PathBuf>();
        for parts in 1..12 {
            inspector.link(&path(parts), &path(12));
        }
        assert_eq!(inspector.finish().problems.len(), 11);
    }

    /// ld.so(8) takes an empty folder for the current one, where anybody may have put a library.
    #[test]
    fn an_empty_folder_on_a_search_path_is_told() {
        let bytes = fs_err::read("/bin/true").unwrap();
        let rules = rules();
        for (path, want) in [("$ORIGIN/../lib", 0), ("$ORIGIN/../lib:", 1), (":$ORIGIN/../lib", 1)] {
            let edit = elf::Edit { search_path: elf::SearchPath::Runpath(path.into()), ..elf::Edit::default() };
            let elf::Edited::Changed(bytes) = elf::edit(&bytes, &edit).unwrap() else { panic!("no new path") };
            let mut inspector = Inspector::new(&rules, LAYOUT);
            inspector.file(Path::new("bin/x"), 0o755, &bytes);
            let problems = inspector.finish().problems;
            assert_eq!(problems.len(), want, "{problems:?}");
            assert!(problems.iter().all(|p| p.to_string().contains("the folder in which")), "{problems:?}");
        }
    }

    #[test]
    fn search_paths_stay_in_the_tree() {
        let rules = rules();
        let mut inspector = Inspector::new(&rules, LAYOUT);
        inspector.file(Path::new("bin/x"), 0o755, b"");
        inspector.file(Path::new("opt/deep/lib/l"), 0o755, b"");
        inspector.link(Path::new("link"), Path::new("opt/deep/lib"));
        let to = |path: &str| Led::To(path.into());
        for (entry, want) in [
            ("$ORIGIN/../lib", to("lib")),
            ("$ORIGIN/../lib/", to("lib")),
            ("${ORIGIN}", to("bin")),
            ("$ORIGIN/", to("bin")),
            ("$ORIGIN/..", to("")),
            // The kernel takes `..` from where the link leads.
            ("$ORIGIN/../link/../l2", to("opt/deep/l2")),
            ("$ORIGIN/../gone/../lib", Led::Broken),
            ("$ORIGIN/../../lib", Led::Outside),
            ("$ORIGIN/../link/../../../../lib", Led::Outside),
            ("/usr/lib", Led::Outside),
            ("$ORIGINAL/x", Led::Outside),
            ("lib", Led::Outside),
        ] {
            assert_eq!(inspector.searched(Path::new("bin"), entry.as_bytes()), want, "{entry}");
        }
    }

    #[test]
    fn a_library_behind_a_linked_folder_is_found() {
        let rules = rules();
        let mut inspector = Inspector::new(&rules, LAYOUT);
        inspector.folder(Path::new("lib"), 0o755);
        inspector.file(Path::new("lib/libz.so.1"), 0o644, b"");
        inspector.link(Path::new("lib64"), Path::new("lib"));
        let real = |path: &str| inspector.real(Path::new("lib64"), Path::new(path));
        assert_eq!(real("libz.so.1"), Some("lib/libz.so.1".into()));
        assert_eq!(real("libq.so.1"), None);
        // What is on the way must be there, and be a folder, if only because something is in it.
        inspector.file(Path::new("opt/x/f"), 0o644, b"");
        let real = |path: &str| inspector.real(Path::new("lib"), Path::new(path));
        assert_eq!(real("../opt/x"), Some("opt/x".into()));
        for path in ["gone/../libz.so.1", "libz.so.1/../libz.so.1", "libz.so.1/"] {
            assert_eq!(real(path), None, "{path}");
        }
    }
}
