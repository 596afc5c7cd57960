//! Symlinks of a tree that is only a list of names yet: where a path leads, and which of a view's links go into the copy.

use super::origin::Origin;
use super::stage::{Entry, Kind, Report};
use crate::fsutil;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A path that leads through more links is taken for one that goes round (`MAXSYMLINKS` of Linux).
const MOST: usize = 40;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Led {
    /// To this name, which is no symlink; empty for the tree itself. Whether it is there is another matter.
    To(PathBuf),
    /// Out of the tree, or to an absolute path.
    Outside,
    /// Nowhere: what it goes through is not there, or is no folder.
    Broken,
    /// Nowhere: round and round.
    Round,
}

/// What a tree has, by names relative to it.
pub(super) trait Names<'l> {
    /// What a name says that is a symlink.
    fn link(&self, name: &Path) -> Option<&'l Path>;
    /// Whether a name is a folder's, and no symlink to one. Not asked of the tree itself.
    fn is_folder(&self, name: &Path) -> bool;
}

/// Follows `path`, as it stands in the folder `from`, as the kernel does (path_resolution(7)): part by part, `..` taken from where
/// the links so far have led, and every part but the last must be a folder, also before `..`, `.` or a slash at the end.
pub(super) fn follow<'l>(from: &Path, path: &'l Path, names: &impl Names<'l>) -> Led {
    if path.as_os_str().is_empty() {
        return Led::Broken;
    }
    if from.is_absolute() || path.is_absolute() {
        return Led::Outside;
    }
    let (mut at, mut links) = (PathBuf::new(), 0);
    let mut rest: Vec<&[u8]> = parts(path).chain(parts(from)).collect();
    while let Some(part) = rest.pop() {
        if at != Path::new("") && !names.is_folder(&at) {
            return Led::Broken;
        }
        match part {
            b"" | b"." => {}
            b".." => {
                if !at.pop() {
                    return Led::Outside;
                }
            }
            name => {
                at.push(OsStr::from_bytes(name));
                if let Some(target) = names.link(&at) {
                    links += 1;
                    if links > MOST {
                        return Led::Round;
                    }
                    if target.is_absolute() {
                        return Led::Outside;
                    }
                    at.pop();
                    rest.extend(parts(target));
                }
            }
        }
    }
    Led::To(at)
}

/// The parts of a path, the last one first. Not `Path::components`, which leaves out a `.` and the slash at the end.
fn parts(path: &Path) -> impl Iterator<Item = &[u8]> {
    path.as_os_str().as_bytes().split(|byte| *byte == b'/').rev()
}

/// Makes absolute links relative and drops those whose target was left out, until nothing changes.
pub(super) fn settle(origin: &Origin, entries: &mut Vec<Entry>, report: &mut Report) {
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
        let names = Present::of(entries);
        // A link that leaves the tree is kept: `verify` decides about it.
        let leads = |path: &Path, target: &Path| match follow(fsutil::parent_of(path), target, &names) {
            Led::To(end) => names.files.contains(end.as_path()) || names.folders.contains(end.as_path()),
            Led::Outside => true,
            Led::Broken | Led::Round => false,
        };
        let gone: HashSet<PathBuf> = names
            .links
            .iter()
            .filter(|(path, target)| !leads(path, target))
            .map(|(path, _)| path.to_path_buf())
            .collect();
        if gone.is_empty() {
            return;
        }
        report.links_dropped.extend(entries.iter().filter(|e| gone.contains(&e.path)).map(|e| e.path.clone()));
        entries.retain(|entry| !gone.contains(&entry.path));
    }
}

/// What is in the copy as it stands. A folder in which nothing is left is not in it either.
struct Present<'e> {
    files: HashSet<&'e Path>,
    links: HashMap<&'e Path, &'e Path>,
    folders: HashSet<&'e Path>,
}

impl<'e> Present<'e> {
    fn of(entries: &'e [Entry]) -> Self {
        let folders = entries.iter().flat_map(|entry| entry.path.ancestors().skip(1)).collect();
        let mut present = Self { files: HashSet::new(), links: HashMap::new(), folders };
        for entry in entries {
            match &entry.kind {
                Kind::Link(target) => drop(present.links.insert(&entry.path, target)),
                Kind::File { .. } => drop(present.files.insert(&entry.path)),
            }
        }
        present
    }
}

impl<'e> Names<'e> for Present<'e> {
    fn link(&self, name: &Path) -> Option<&'e Path> {
        self.links.get(name).copied()
    }

    fn is_folder(&self, name: &Path) -> bool {
        self.folders.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(path: &str, target: &str) -> Entry {
        Entry { path: path.into(), kind: Kind::Link(target.into()) }
    }

    fn file(path: &str) -> Entry {
        Entry { path: path.into(), kind: Kind::File { size: 0, mode: 0o644, inode: (0, 0), links: 1 } }
    }

    /// The same tree lies on disk, and the kernel is asked too.
    #[test]
    fn paths_are_followed_as_the_kernel_follows_them() {
        let entries = [
            file("lib/libz.so"),
            file("lib/private/x/f"),
            file("lib/private/y"),
            link("lib64", "lib"),
            link("deep", "lib/private/x"),
            link("lib/twice", "../lib64/libz.so"),
            link("lib/slash", "libz.so/"),
            link("lib/broken", "gone/../libz.so"),
            link("lib/out", "../../etc"),
            link("lib/absolute", "/etc"),
            link("round", "lib/round"),
            link("lib/round", "../round"),
            link("self", "self/self"),
            file("bin/p"),
        ];
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("tree");
        for entry in &entries {
            let path = root.join(&entry.path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            match &entry.kind {
                Kind::Link(target) => std::os::unix::fs::symlink(target, path).unwrap(),
                Kind::File { .. } => fs_err::write(path, "").unwrap(),
            }
        }
        let names = Present::of(&entries);
        let to = |path: &str| Led::To(path.into());
        for (from, path, want) in [
            ("", "lib/libz.so", to("lib/libz.so")),
            ("bin", "../lib64/libz.so", to("lib/libz.so")),
            ("bin", "../lib/twice", to("lib/libz.so")),
            ("bin", "../deep/../y", to("lib/private/y")), // not `y`
            ("bin", "./..", to("")),
            ("bin", "..//lib/.//private/", to("lib/private")),
            ("bin", "../lib64/", to("lib")),
            ("lib", "broken", Led::Broken),
            ("lib", "gone/../libz.so", Led::Broken),
            ("lib", "gone/./libz.so", Led::Broken),
            ("lib", "libz.so/../libz.so", Led::Broken),
            ("lib", "twice/../libz.so", Led::Broken),
            ("lib", "libz.so/.", Led::Broken),
            ("lib", "libz.so/", Led::Broken),
            ("lib", "twice/", Led::Broken),
            ("lib", "slash", Led::Broken),
            ("lib", "libz.so/f", Led::Broken),
            ("gone", "../lib/libz.so", Led::Broken),
            ("lib", "", Led::Broken),
            ("bin", "../..", Led::Outside),
            ("lib", "out/passwd", Led::Outside),
            ("", "lib/absolute/passwd", Led::Outside),
            ("", "/etc/passwd", Led::Outside),
            ("", "round", Led::Round),
            ("", "round/..", Led::Round),
            ("", "self", Led::Round),
        ] {
            assert_eq!(follow(Path::new(from), Path::new(path), &names), want, "{from} {path}");
            if path.is_empty() {
                continue; // what is joined with nothing is itself
            }
            let asked = root.join(from).join(path).canonicalize();
            let errno = asked.as_ref().err().and_then(std::io::Error::raw_os_error);
            match want {
                Led::To(end) => assert_eq!(asked.unwrap().strip_prefix(&root).unwrap(), end, "{from} {path}"),
                Led::Broken => assert!(matches!(errno, Some(2 | 20)), "ENOENT or ENOTDIR: {from} {path}: {asked:?}"),
                Led::Round => assert_eq!(errno, Some(40), "ELOOP: {from} {path}: {asked:?}"),
                Led::Outside => assert!(asked.map_or(true, |end| !end.starts_with(&root)), "{from} {path}"),
            }
        }
    }

    #[test]
    fn links_stay_that_lead_somewhere_also_through_other_links() {
        let origin = Origin::of_tests(Path::new("/h"));
        let mut entries = vec![
            file("lib/libz.so.1"),
            link("lib64", "lib"),
            link("bin/through", "../lib64/libz.so.1"),
            link("bin/out", "../../elsewhere/x"),
            link("bin/round", "round"),
            link("bin/to-what-was-left-out", "../share/gone"),
            link("bin/second", "to-what-was-left-out"),
            link("bin/by-what-was-left-out", "../share/../lib/libz.so.1"),
            link("bin/to-an-emptied-folder", "../share/doc"),
            link("share/doc/only", "/sfb/store/p-1-h/share/gone"),
        ];
        let mut report = Report::default();
        settle(&origin, &mut entries, &mut report);
        let left: Vec<_> = entries.iter().map(|e| e.path.to_str().unwrap()).collect();
        assert_eq!(left, ["lib/libz.so.1", "lib64", "bin/through", "bin/out"]);
        assert_eq!((report.links_dropped.len(), report.links_rewritten), (6, 1));
    }
}
