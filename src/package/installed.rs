//! An unpacked package on disk: whether it still is what its manifest says, and taking it away again.
//!
//! ```text
//! PREFIX/
//!   data/ modules/ view/          as in the archive
//!   manifest.json                 as in the archive
//!   .slurm-factory-install.json   written by `install`: which archive, by whose signature, and the path filled in
//! ```
//!
//! Plain `tar -x` gives the same tree without the last file, and without paths filled in where the manifest's `fill_in`
//! and `strings` say that some belong.
//!
//! Nothing here walks through symlinks: somebody may have put one in the place of a folder, and what lies behind it
//! is not ours to delete.

use super::extract::{Below, Target};
use super::manifest::StringPlace;
use super::{FileKind, Manifest, PackageError, layout};
use crate::fsutil::{self, write_over};
use crate::report::Ctx;
use crate::sha256::Hashing;
use crate::sign::Fingerprint;
use fs_err as fs;
use memchr::memmem;
use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// A folder that holds a package.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
    manifest: Manifest,
    record: Option<Record>,
}

/// What `install` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The `view` folder's path that was filled in, encoded like a path of the manifest.
    pub view: String,
    /// The archive it came from.
    pub archive_sha256: String,
    /// Whose signature was checked.
    pub signed_by: Option<Fingerprint>,
}

/// Something that is not as the manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The file, as in the manifest.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What [`Tree::remove`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// Entries that were deleted.
    pub removed: usize,
    /// What was not ours, or is no longer: left where it is. Empty when the whole folder is gone.
    pub left: Vec<PathBuf>,
}

impl Tree {
    /// The package in `root`, if there is one.
    pub fn open(root: &Path) -> Result<Option<Self>, PackageError> {
        let Some(bytes) = read_if_there(&root.join(layout::MANIFEST))? else { return Ok(None) };
        let malformed = |source| PackageError::Manifest { path: root.to_owned(), source };
        let manifest = Manifest::from_bytes(&bytes).map_err(malformed)?;
        for entry in &manifest.files {
            let path = entry.path();
            if path.as_os_str().is_empty() || !path.components().all(|c| matches!(c, Component::Normal(_))) {
                return Err(PackageError::BadName { path });
            }
        }
        // A record that cannot be read is as good as none: `install` writes it again.
        let record = read_if_there(&root.join(layout::RECORD))?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(Some(Self { root: root.to_owned(), manifest, record }))
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What it should hold.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What `install` wrote down; nothing when `tar` unpacked it.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Writes the record.
    pub fn write_record(&self, record: &Record) -> Result<(), PackageError> {
        let mut bytes = serde_json::to_vec_pretty(record).map_err(PackageError::Json)?;
        bytes.push(b'\n');
        fsutil::write_atomic(&self.root.join(layout::RECORD), &bytes, 0o644).map_err(PackageError::Io)
    }

    /// Writes `view`, the absolute path of the installed view, wherever the manifest says that it belongs, and
    /// returns how many files were changed. A file that is filled in already stays as it is.
    pub fn fill_in(&self, view: &Path, ctx: &Ctx) -> Result<usize, PackageError> {
        let files: HashSet<&str> = self
            .manifest
            .files
            .iter()
            .filter(|f| matches!(f.kind, FileKind::File { .. }))
            .map(|f| f.path.as_str())
            .collect();
        let placeholder = self.manifest.facts.placeholder.as_bytes();
        let mut changed = 0;
        for name in &self.manifest.facts.fill_in {
            let wrong = |problem: &str| PackageError::Contents {
                path: self.root.clone(),
                entry: name.clone(),
                problem: problem.to_owned(),
            };
            if !files.contains(name.as_str()) || placeholder.is_empty() {
                return Err(wrong("it is to be filled in, and is no file of the package"));
            }
            let path = self.root.join(super::decode_path(name));
            let metadata = fs::symlink_metadata(&path).map_err(PackageError::Io)?;
            if !metadata.is_file() {
                return Err(wrong("it is to be filled in, and is no longer a file"));
            }
            let old = fs::read(&path).map_err(PackageError::Io)?;
            let new = replace(&old, placeholder, view.as_os_str().as_bytes());
            if new == old {
                continue;
            }
            if new.starts_with(b"#!") {
                warn_of_shebang(&new, name, ctx);
            }
            put_back(&path, &metadata, &new)?;
            changed += 1;
        }
        Ok(changed + self.fill_in_strings(&files, view, ctx)?)
    }

    /// The same in binaries, where it has no more room than what stands there.
    fn fill_in_strings(&self, files: &HashSet<&str>, view: &Path, ctx: &Ctx) -> Result<usize, PackageError> {
        let view = view.as_os_str().as_bytes();
        let mut by_file: BTreeMap<&str, Vec<&StringPlace>> = BTreeMap::new();
        for place in &self.manifest.facts.strings {
            by_file.entry(&place.path).or_default().push(place);
        }
        let mut changed = 0;
        for (name, places) in by_file {
            let wrong = |problem: &str| PackageError::Contents {
                path: self.root.clone(),
                entry: name.to_owned(),
                problem: problem.to_owned(),
            };
            let path = self.root.join(super::decode_path(name));
            let metadata = fs::symlink_metadata(&path).map_err(PackageError::Io)?;
            if !files.contains(name) || !metadata.is_file() {
                return Err(wrong("a path is to be written into it, and it is no file of the package"));
            }
            let old = fs::read(&path).map_err(PackageError::Io)?;
            let mut new = old.clone();
            let mut short: Option<&StringPlace> = None;
            for place in places {
                let there = place_in(&mut new, place).ok_or_else(|| wrong("a path is to be written behind its end"))?;
                if there != place.text.as_bytes() || write_over(there, view).is_some() {
                    continue;
                }
                if short.is_none_or(|known| place.text.len() < known.text.len()) {
                    short = Some(place);
                }
            }
            if let Some(StringPlace { text, reason, .. }) = short {
                let (need, room) = (view.len(), text.len());
                ctx.note(format!("`{name}` has no room for a path of {need} bytes, only for {room}: {reason}"));
            }
            if new != old {
                put_back(&path, &metadata, &new)?;
                changed += 1;
            }
        }
        Ok(changed)
    }

    /// How many files hold the path that `install` wrote down: those that it filled in, and binaries that had room for it.
    pub fn holding_path(&self) -> usize {
        let Some(record) = &self.record else { return 0 };
        let view = super::decode_path(&record.view);
        let fits = |place: &&StringPlace| place.text.len() >= view.as_os_str().len();
        let facts = &self.manifest.facts;
        let binaries = facts.strings.iter().filter(fits).map(|place| place.path.as_str());
        facts.fill_in.iter().map(String::as_str).chain(binaries).collect::<HashSet<_>>().len()
    }

    /// What is not as the manifest says. Without `thorough`, kinds, sizes and link targets; with it, content.
    pub fn differences(&self, thorough: bool, ctx: &Ctx) -> Result<Vec<Difference>, PackageError> {
        let filled = self.manifest.facts.filled_in();
        let found: Vec<Option<Difference>> = self
            .manifest
            .files
            .par_iter()
            .map(|entry| {
                ctx.check()?;
                let path = self.root.join(entry.path());
                let problem = match &entry.kind {
                    FileKind::Dir => kind_problem(&path, FileType::Directory),
                    FileKind::Symlink { target } => kind_problem(&path, FileType::Symlink).or_else(|| {
                        let now = fs::read_link(&path).map(|t| super::encode_path(&t));
                        (now.ok().as_ref() != Some(target)).then(|| "it leads elsewhere".to_owned())
                    }),
                    FileKind::Hardlink { .. } => kind_problem(&path, FileType::RegularFile),
                    FileKind::File { size, sha256, .. } => kind_problem(&path, FileType::RegularFile).or_else(|| {
                        let filled = filled.contains(entry.path.as_str()).then_some(entry.path.as_str());
                        self.file_problem(&path, *size, sha256, filled, thorough)
                    }),
                };
                Ok(problem.map(|problem| Difference { path: entry.path.clone(), problem }))
            })
            .collect::<Result<_, PackageError>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    fn file_problem(
        &self,
        path: &Path,
        size: u64,
        sha256: &str,
        filled: Option<&str>,
        thorough: bool,
    ) -> Option<String> {
        if filled.is_none() {
            match fs::symlink_metadata(path) {
                Ok(metadata) if metadata.len() == size => {}
                Ok(metadata) => return Some(format!("it has {} bytes and should have {size}", metadata.len())),
                Err(error) => return Some(error.to_string()),
            }
        }
        if !thorough {
            return None;
        }
        let sum = || -> io::Result<String> {
            if let Some(name) = filled {
                return Ok(hex::encode(Sha256::digest(self.as_shipped(name, fs::read(path)?))));
            }
            let mut hashing = Hashing::new(fs::File::open(path)?);
            io::copy(&mut hashing, &mut io::sink())?;
            Ok(hashing.hex())
        };
        match sum() {
            Ok(sum) if sum == sha256 => None,
            Ok(_) => Some("its content was changed".to_owned()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// The content of a filled-in file with what was there before back in its place.
    fn as_shipped(&self, name: &str, mut content: Vec<u8>) -> Vec<u8> {
        let Some(record) = &self.record else { return content };
        let facts = &self.manifest.facts;
        let view = super::decode_path(&record.view);
        let view = view.as_os_str().as_bytes();
        if facts.fill_in.iter().any(|file| file == name) {
            content = replace(&content, view, facts.placeholder.as_bytes());
        }
        for place in facts.strings.iter().filter(|place| place.path == name) {
            let mut filled = place.text.as_bytes().to_vec();
            if write_over(&mut filled, view).is_some()
                && let Some(there) = place_in(&mut content, place)
                && there == filled
            {
                there.copy_from_slice(place.text.as_bytes());
            }
        }
        content
    }

    /// Deletes what the manifest lists, and the folder when nothing else is in it. The manifest goes last, so that a
    /// removal that was cut short can be repeated.
    pub fn remove(&self, ctx: &Ctx) -> Result<Removal, PackageError> {
        let target = Target::new(&self.root, 0);
        let mut below = Below::open_root(&target).map_err(PackageError::Io)?;
        let mut removed = 0;
        // Children before their folders.
        for entry in self.manifest.files.iter().rev() {
            ctx.check()?;
            let path = entry.path();
            let expected = match entry.kind {
                FileKind::Dir => FileType::Directory,
                FileKind::Symlink { .. } => FileType::Symlink,
                FileKind::File { .. } | FileKind::Hardlink { .. } => FileType::RegularFile,
            };
            removed += usize::from(below.remove(&path, expected).map_err(PackageError::Io)?);
        }
        let ours: Vec<PathBuf> = [layout::RECORD, layout::MANIFEST]
            .iter()
            .map(|name| self.root.join(name))
            .filter(|path| path.symlink_metadata().is_ok())
            .collect();
        let left: Vec<PathBuf> = walkdir::WalkDir::new(&self.root)
            .min_depth(1)
            .sort_by_file_name()
            .into_iter()
            .filter_map(Result::ok)
            .map(walkdir::DirEntry::into_path)
            .filter(|path| !ours.contains(path))
            .collect();
        // A folder is followed by what is in it, which is named in its place.
        let next = left.iter().skip(1).map(Some).chain([None]);
        let left = left.iter().zip(next).filter(|(path, next)| !next.is_some_and(|n| n.starts_with(path)));
        let left: Vec<PathBuf> = left.map(|(path, _)| path.clone()).collect();
        for path in &ours {
            fs::remove_file(path).map_err(PackageError::Io)?;
            removed += 1;
        }
        if left.is_empty() {
            fs::remove_dir(&self.root).map_err(PackageError::Io)?;
        }
        Ok(Removal { removed, left })
    }
}

/// Writes the new content of an installed file.
fn put_back(path: &Path, metadata: &std::fs::Metadata, content: &[u8]) -> Result<(), PackageError> {
    let written = if metadata.nlink() > 1 {
        // Its other names must show the same.
        fs::write(path, content)
    } else {
        fsutil::write_atomic(path, content, metadata.mode() & 0o777)
    };
    written.map_err(PackageError::Io)
}

/// The bytes of a place.
fn place_in<'c>(content: &'c mut [u8], place: &StringPlace) -> Option<&'c mut [u8]> {
    let start = usize::try_from(place.offset).ok()?;
    content.get_mut(start..start.checked_add(place.text.len())?)
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, PackageError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(PackageError::Io(error)),
    }
}

fn kind_problem(path: &Path, expected: FileType) -> Option<String> {
    match rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == expected => None,
        Ok(_) => Some("it is of another kind".to_owned()),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Some("it is missing".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

fn replace(content: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    let mut at = 0;
    for position in memmem::find_iter(content, from) {
        out.extend_from_slice(content.get(at..position).unwrap_or_default());
        out.extend_from_slice(to);
        at = position + from.len();
    }
    out.extend_from_slice(content.get(at..).unwrap_or_default());
    out
}

/// The kernel reads a script's first line up to its 255th byte, and takes a blank for the end of the program's name.
fn warn_of_shebang(content: &[u8], name: &str, ctx: &Ctx) {
    let line = content.split(|b| *b == b'\n').next().unwrap_or_default();
    let program = line.strip_prefix(b"#!").unwrap_or_default().trim_ascii();
    if line.len() > 254 || program.contains(&b' ') && !program.starts_with(b"/usr/bin/env ") {
        ctx.warn(format!(
            "`{name}` cannot be started by its name: its first line holds the prefix, which is too long or has blanks; start it with its interpreter, or choose another prefix"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::replace;

    #[test]
    fn replacing_and_putting_back() {
        let shipped = b"a=@P@/x:@P@\n@P";
        let filled = replace(shipped, b"@P@", b"/long/prefix");
        assert_eq!(filled, b"a=/long/prefix/x:/long/prefix\n@P");
        assert_eq!(replace(&filled, b"/long/prefix", b"@P@"), shipped);
    }
}
