//! A file that takes another one's place: with its owner, mode, time and extended attributes (xattr(7)).

use super::report::MoveError;
use crate::fsutil;
use fs_err as fs;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What of a file shows that it was written to or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    pub size: u64,
    time: (i64, i64),
}

impl Stamp {
    pub fn of(meta: &std::fs::Metadata) -> Self {
        Self { inode: (meta.dev(), meta.ino()), size: meta.len(), time: (meta.mtime(), meta.mtime_nsec()) }
    }
}

/// Writes the new content with everything else as the old file has it, which must still be what was looked at.
pub(super) fn replacement(old: &Path, seen: Stamp, new: &Path, bytes: &[u8]) -> Result<(), MoveError> {
    // Never over what is there: it would be another run's, which this one could not see.
    fs::File::create_new(new)?.write_all(bytes)?;
    let meta = fs::symlink_metadata(old)?;
    if Stamp::of(&meta) != seen {
        return Err(MoveError::Changed { path: old.to_owned() });
    }
    keep_owner(new, old, &meta)?;
    let file = fs::File::open(new)?;
    keep_attributes(&fs::File::open(old)?, &file)?;
    // After chown(2), which takes set-user-id away, and after the list of access rights, which changes the mode.
    fs::set_permissions(new, meta.permissions())?;
    // Compiled Python is good only for a source of the same time.
    Ok(file.file().set_modified(meta.modified()?)?)
}

/// Gives `new` the owner of `old`, also where it is a symlink.
pub(super) fn keep_owner(new: &Path, old: &Path, meta: &std::fs::Metadata) -> io::Result<()> {
    let made = fs::symlink_metadata(new)?;
    if (made.uid(), made.gid()) == (meta.uid(), meta.gid()) {
        return Ok(());
    }
    std::os::unix::fs::lchown(new, Some(meta.uid()), Some(meta.gid()))
        .map_err(|e| fsutil::with_path(&e, "keep the owner of", old))
}

/// Whether an attribute belongs to the file as its content does: a user's own, what a program may do without root
/// (capabilities(7)), and who may do what (acl(5)). Labels of a security module are given by its rules, and those of the
/// kernel's file systems (`trusted.overlay.*`) are about the old file.
fn is_kept(name: &CStr) -> bool {
    let name = name.to_bytes();
    name.starts_with(b"user.") || name == b"security.capability" || name == b"system.posix_acl_access"
}

fn keep_attributes(old: &fs::File, new: &fs::File) -> io::Result<()> {
    let failed = |verb: &str, name: &CStr, error: Errno| {
        let verb = format!("{verb} the attribute {} of", name.to_string_lossy());
        fsutil::with_path(&error.into(), &verb, old.path())
    };
    let (wanted, there) = (attributes(old)?, attributes(new)?);
    for (name, value) in wanted.iter().filter(|(name, value)| there.get(*name) != Some(value)) {
        rustix::fs::fsetxattr(new.file(), name.as_c_str(), value, XattrFlags::empty())
            .map_err(|e| failed("keep", name, e))?;
    }
    // A folder may give its files a list of access rights that the old one has not.
    for name in there.keys().filter(|name| !wanted.contains_key(*name)) {
        rustix::fs::fremovexattr(new.file(), name.as_c_str()).map_err(|e| failed("leave out", name, e))?;
    }
    Ok(())
}

/// The attributes of a file that [are kept](is_kept); none where the file system has none.
fn attributes(file: &fs::File) -> io::Result<BTreeMap<CString, Vec<u8>>> {
    // What the kernel allows at most (XATTR_LIST_MAX, XATTR_SIZE_MAX of linux/limits.h).
    const MOST: usize = 64 << 10;
    let failed = |error: Errno| fsutil::with_path(&error.into(), "read the attributes of", file.path());
    let mut names = vec![
        0;
        match rustix::fs::flistxattr_query(file.file()) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
            Ok(_) => MOST,
            Err(error) => return Err(failed(error)),
        }
    ];
    let length = rustix::fs::flistxattr(file.file(), &mut names[..]).map_err(failed)?;
    let mut found = BTreeMap::new();
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !is_kept(name) {
            continue;
        }
        let mut value = vec![0; MOST];
        match rustix::fs::fgetxattr(file.file(), name, &mut value[..]) {
            Ok(length) => value.truncate(length),
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(failed(error)),
        }
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_was_written_to_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        fs::write(&old, "one").unwrap();
        let seen = Stamp::of(&fs::symlink_metadata(&old).unwrap());
        replacement(&old, seen, &new, b"two").unwrap();
        assert_eq!(fs::metadata(&new).unwrap().modified().unwrap(), fs::metadata(&old).unwrap().modified().unwrap());
        assert!(replacement(&old, seen, &new, b"another's").is_err() && fs::read(&new).unwrap() == b"two");
        fs::remove_file(&new).unwrap();
        fs::write(&old, "three").unwrap();
        let error = replacement(&old, seen, &new, b"two").unwrap_err().to_string();
        assert!(error.contains("old") && error.contains("nothing was changed"), "{error}");
    }

    #[test]
    fn attributes_of_the_user_and_closed_modes_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        fs::write(&old, "one").unwrap();
        let set = |name: &str, value: &[u8]| {
            rustix::fs::setxattr(&old, name, value, XattrFlags::empty()).unwrap();
        };
        set("user.origin", b"https://example.org/x");
        set("user.empty", b"");
        fs::set_permissions(&old, std::fs::Permissions::from_mode(0o555)).unwrap();
        let meta = fs::symlink_metadata(&old).unwrap();
        replacement(&old, Stamp::of(&meta), &new, b"two").unwrap();
        let made = attributes(&fs::File::open(&new).unwrap()).unwrap();
        let names: Vec<_> = made.iter().map(|(name, value)| (name.to_str().unwrap(), value.len())).collect();
        assert_eq!(names, [("user.empty", 0), ("user.origin", 21)]);
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o7777, 0o555);
    }
}
