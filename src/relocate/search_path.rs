//! Which folders go on a file's search path.
//!
//! A program or library lists the libraries that it needs by name (`DT_NEEDED`). Spack's compiler wrapper puts
//! the absolute `lib` folder of every dependency on the search path; after the move those are wrong, and most
//! hold nothing that the file needs. Here the path is computed anew: for each needed library, the folder of the
//! package that has it, in the order in which the old path would have found them, written relative to the
//! file's own folder (`$ORIGIN`, ld.so(8)). A file that needs nothing from the package gets no path at all.

use crate::fsutil;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where in the tree shared libraries are, by file name.
#[derive(Debug, Default)]
pub struct Libraries(BTreeMap<OsString, BTreeSet<PathBuf>>);

impl Libraries {
    /// Adds a file (or a symlink to one) by its path relative to the tree.
    pub fn add(&mut self, path: &Path) {
        if let Some(name) = path.file_name()
            && is_library_name(name)
        {
            self.0.entry(name.to_owned()).or_default().insert(fsutil::parent_of(path).to_owned());
        }
    }

    /// The folders that hold a library of this name.
    pub fn folders(&self, name: &OsStr) -> impl Iterator<Item = &Path> {
        self.0.get(name).into_iter().flatten().map(PathBuf::as_path)
    }
}

fn is_library_name(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.ends_with(b".so") || memchr::memmem::find(name, b".so.").is_some()
}

/// The new search path of a file, and the names that no folder of the tree holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Computed {
    /// Joined with `:`; empty when the file needs nothing from the tree.
    pub path: Vec<u8>,
    /// Needed libraries that are not in the tree.
    pub outside: Vec<OsString>,
}

/// Computes the path of `file` (relative to the tree). `old` are the folders of its former search path that lie
/// in the tree, in order, relative to the tree.
pub fn compute(file: &Path, needed: &[OsString], old: &[PathBuf], libraries: &Libraries) -> Computed {
    let own = fsutil::parent_of(file);
    let mut folders: Vec<&Path> = Vec::new();
    let mut outside = Vec::new();
    for name in needed {
        let candidates: BTreeSet<&Path> = libraries.folders(name).collect();
        let chosen = old
            .iter()
            .map(PathBuf::as_path)
            .find(|folder| candidates.contains(folder))
            .or_else(|| ["lib", "lib64"].map(Path::new).into_iter().find(|f| candidates.contains(f)))
            .or_else(|| candidates.iter().copied().find(|f| *f == own))
            .or_else(|| candidates.first().copied());
        match chosen {
            Some(folder) if !folders.contains(&folder) => folders.push(folder),
            Some(_) => {}
            None => outside.push(name.clone()),
        }
    }
    let mut path = Vec::new();
    for folder in folders {
        if !path.is_empty() {
            path.push(b':');
        }
        path.extend_from_slice(b"$ORIGIN");
        let relative = fsutil::relative(own, folder);
        if relative != Path::new(".") {
            path.push(b'/');
            path.extend_from_slice(relative.as_os_str().as_bytes());
        }
    }
    Computed { path, outside }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libraries(paths: &[&str]) -> Libraries {
        let mut libraries = Libraries::default();
        for path in paths {
            libraries.add(Path::new(path));
        }
        libraries
    }

    fn path(file: &str, needed: &[&str], old: &[&str], tree: &[&str]) -> (String, usize) {
        let needed: Vec<_> = needed.iter().map(OsString::from).collect();
        let old: Vec<_> = old.iter().map(PathBuf::from).collect();
        let computed = compute(Path::new(file), &needed, &old, &libraries(tree));
        (String::from_utf8(computed.path).unwrap(), computed.outside.len())
    }

    #[test]
    fn only_folders_that_hold_something_needed() {
        let tree = ["lib/libz.so.1", "lib/slurm/libslurmfull.so", "lib64/libssl.so.3", "lib/libm4.txt"];
        assert_eq!(
            path("bin/sinfo", &["libslurmfull.so", "libc.so.6"], &["lib", "lib/slurm"], &tree),
            ("$ORIGIN/../lib/slurm".into(), 1)
        );
        assert_eq!(
            path("lib/libcurl.so.4", &["libz.so.1", "libssl.so.3"], &[], &tree),
            ("$ORIGIN:$ORIGIN/../lib64".into(), 0)
        );
        assert_eq!(path("lib/slurm/auth.so", &["libc.so.6"], &["lib"], &tree), (String::new(), 1));
    }

    #[test]
    fn the_old_order_decides_between_two_copies() {
        let tree = ["lib/liba.so.1", "lib/private/liba.so.1"];
        assert_eq!(path("bin/x", &["liba.so.1"], &["lib/private", "lib"], &tree).0, "$ORIGIN/../lib/private");
        assert_eq!(path("bin/x", &["liba.so.1"], &[], &tree).0, "$ORIGIN/../lib");
    }
}
