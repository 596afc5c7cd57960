//! File operations that must be right everywhere: atomic replacement, deletion of trees with closed
//! folders, and joining names below a root without leaving it.
//!
//! Errors come from `fs_err`, so each names its path.

use fs_err as fs;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

/// Writes `bytes` to `path` so that a reader sees the old content or the new, never a part.
///
/// The bytes are written beside the target, flushed to disk, given `mode`, and renamed.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let parent = parent_of(path);
    fs::create_dir_all(parent)?;
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(parent)
        .map_err(|e| with_path(&e, "create a temporary file in", parent))?;
    file.write_all(bytes).map_err(|e| with_path(&e, "write", path))?;
    file.as_file().sync_all().map_err(|e| with_path(&e, "sync", path))?;
    file.persist(path).map_err(|e| with_path(&e.error, "rename into place", path))?;
    Ok(())
}

/// Who deletes what belongs to others.
static OTHERS: OnceLock<fn(&Path) -> io::Result<()>> = OnceLock::new();

/// [`remove_tree`] passes on to `delete` what it may not delete because there are files of others in it: a rootfs may hold
/// subordinate ids of the user, which are within reach of a user namespace only. Said once, when the program starts.
pub fn delete_others_by(delete: fn(&Path) -> io::Result<()>) {
    let _ = OTHERS.set(delete);
}

fn has_others(path: &Path) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    let entries = walkdir::WalkDir::new(path).follow_links(false).into_iter().filter_map(Result::ok);
    entries.filter_map(|entry| entry.metadata().ok()).any(|found| found.uid() != own)
}

/// Deletes a tree, also one with folders that their owner may not enter (overlayfs leaves `work/work` with
/// mode 000, Go's module cache is read-only). A tree that is not there is no error. Never follows a symlink.
#[allow(clippy::disallowed_methods)] // the one place; every error is given its path below
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        Err(_) => {
            for entry in walkdir::WalkDir::new(path).follow_links(false) {
                let Ok(entry) = entry else { continue };
                if entry.file_type().is_dir() {
                    // walkdir reads a folder after it was handed out, so opening it here is in time.
                    let _ = fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o700));
                }
            }
            match (std::fs::remove_dir_all(path), OTHERS.get()) {
                (Ok(()), _) => Ok(()),
                (Err(e), _) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                (Err(e), Some(delete)) if e.kind() == io::ErrorKind::PermissionDenied && has_others(path) => {
                    delete(path)
                }
                (Err(e), _) => Err(with_path(&e, "delete", path)),
            }
        }
    }
}

/// `root` joined with `name` taken as a name inside `root`: a leading `/` counts as the root itself, `.` is
/// dropped, and `..` is refused. This looks at names only; symlinks on disk are not followed or checked.
pub fn join_below(root: &Path, name: &Path) -> Option<PathBuf> {
    let mut out = root.to_path_buf();
    for component in name.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => out.push(part),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

/// The relative path that leads from the folder `from` to `to`; both absolute or both relative to the same
/// folder, without `..`.
///
/// ```
/// # use std::path::{Path, PathBuf};
/// assert_eq!(slurm_factory::fsutil::relative(Path::new("lib/slurm"), Path::new("lib64")), PathBuf::from("../../lib64"));
/// ```
pub fn relative(from: &Path, to: &Path) -> PathBuf {
    let from: Vec<_> = from.components().filter(|c| *c != Component::CurDir).collect();
    let to: Vec<_> = to.components().filter(|c| *c != Component::CurDir).collect();
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let mut out = PathBuf::new();
    for _ in common..from.len() {
        out.push("..");
    }
    for part in &to[common..] {
        out.push(part);
    }
    if out.as_os_str().is_empty() {
        out.push(".");
    }
    out
}

/// The folder that holds `path`, `.` for a bare name.
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// An I/O error of the same kind that also says what was tried on which path.
pub fn with_path(error: &io::Error, verb: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("failed to {verb} `{}`: {error}", path.display()))
}

/// The name of the shared file system that holds `path`, `None` for a local one. Recognised by the magic number of
/// statfs(2).
pub fn shared_file_system(path: &Path) -> Option<&'static str> {
    const KNOWN: [(i64, &str); 7] = [
        (0x6969, "NFS"),
        (0x0BD0_0BD0, "Lustre"),
        (0x4750_4653, "GPFS"),
        (0x1983_0326, "BeeGFS"),
        (0xFF53_4D42, "CIFS"),
        (0x00C3_6400, "Ceph"),
        (0x5346_414F, "AFS"),
    ];
    // The kernel's type is i64 here and 32 bits wide elsewhere; the numbers fit both.
    let magic = nix::sys::statfs::statfs(path).ok()?.filesystem_type().0;
    KNOWN.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name)
}

/// The type of the file system that holds `path`, by the magic number of statfs(2); the number itself for those that are not
/// known here.
pub fn file_system(path: &Path) -> String {
    const KNOWN: [(i64, &str); 14] = [
        (0xEF53, "ext4 (or ext2, ext3)"),
        (0x5846_5342, "xfs"),
        (0x9123_683E, "btrfs"),
        (0x0102_1994, "tmpfs (in memory)"),
        (0x8584_58F6, "ramfs (in memory)"),
        (0x794C_7630, "overlay"),
        (0x2FC1_2FC1, "zfs"),
        (0x6573_5546, "fuse"),
        (0xF2F5_2010, "f2fs"),
        (0xCA45_1A4E, "bcachefs"),
        (0xF15F, "ecryptfs"),
        (0x0102_1997, "9p"),
        (0xFE53_4D42, "smb2"),
        (0x7371_7368, "squashfs"),
    ];
    if let Some(name) = shared_file_system(path) {
        return name.into();
    }
    let Ok(stat) = nix::sys::statfs::statfs(path) else { return "not told".into() };
    let magic = stat.filesystem_type().0;
    let known = KNOWN.iter().find(|(number, _)| *number == magic);
    known.map_or_else(|| format!("of type {magic:#x}"), |(_, name)| (*name).into())
}

/// What the file system that holds a folder has left for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// Files and folders; none when the file system counts none, because it makes inodes as they are needed.
    pub inodes: Option<u64>,
}

/// The room that is left where `path` is, by statvfs(3).
pub fn room(path: &Path) -> io::Result<Room> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(Room {
        bytes: stat.fragment_size().saturating_mul(stat.blocks_available()),
        inodes: (stat.files() > 0).then(|| stat.files_available()),
    })
}

/// The folder `path`, or the nearest above it that is there: what holds it tells how it will be. That one of them is no folder
/// is an error, which names it.
pub fn existing(path: &Path) -> io::Result<&Path> {
    let named = |path| if path == Path::new("") { Path::new(".") } else { path };
    let there = path.ancestors().map(named).find(|path| path.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
    // A link may lead to a folder.
    if there.is_dir() { Ok(there) } else { Err(with_path(&io::ErrorKind::NotADirectory.into(), "use", there)) }
}

/// Whether programs in `path` cannot be run because its file system is mounted `noexec` (mount(8)).
pub fn mounted_noexec(path: &Path) -> bool {
    use nix::sys::statvfs::{FsFlags, statvfs};
    statvfs(path).is_ok_and(|stat| stat.flags().contains(FsFlags::ST_NOEXEC))
}

/// An error when the user who runs may not make files in the folder `path` (access(2) with W_OK and X_OK).
pub fn writable(path: &Path) -> io::Result<()> {
    use nix::unistd::{AccessFlags, access};
    Ok(access(path, AccessFlags::W_OK | AccessFlags::X_OK)?)
}

/// Whether `path` still names the open `file`, and not one that was renamed or made there since.
pub fn is_at(file: &std::fs::File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// How the names of our own temporaries begin.
pub const TEMPORARY: &str = ".tmp-";

/// Whether a directory entry is one of our own temporaries (see [`write_atomic`] and `cache::Staging`).
pub fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// By none of the ways below.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// zstd (RFC 8878), also when a skippable frame comes first.
    Zstd,
    /// By a format that is known by its begin, and not read here.
    Other(&'static str),
}

/// How the bytes that begin with `start` are compressed; six bytes are enough.
pub fn packing(start: &[u8]) -> Packing {
    match start {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packing::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Other("xz"),
        // The begin of the stream's header, and of the first block's (the digits of pi).
        [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', ..] => Packing::Other("bzip2"),
        [b'P', b'K', 3, 4, ..] => Packing::Other("zip"),
        [4, 0x22, 0x4d, 0x18, ..] => Packing::Other("lz4"),
        _ => Packing::None,
    }
}

/// Writes a path over another one, of which nothing may move: with slashes before it, which are as good as one (POSIX.1-2017, 4.13). `None`, and nothing is written, when it is longer than they are.
pub fn write_over(bytes: &mut [u8], path: &[u8]) -> Option<()> {
    let spare = bytes.len().checked_sub(path.len())?;
    let (slashes, end) = bytes.split_at_mut(spare);
    slashes.fill(b'/');
    end.copy_from_slice(path);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_stay_below() {
        let root = Path::new("/r");
        for (name, want) in
            [("a/b", Some("/r/a/b")), ("/a", Some("/r/a")), ("./a", Some("/r/a")), ("a/../b", None), ("..", None)]
        {
            assert_eq!(join_below(root, Path::new(name)), want.map(PathBuf::from), "{name}");
        }
    }

    #[test]
    fn relative_paths() {
        for (from, to, want) in [
            ("lib", "lib", "."),
            ("bin", "lib", "../lib"),
            ("lib/slurm", "lib", ".."),
            ("", "lib", "lib"),
            ("/a/b", "/a/c/d", "../c/d"),
        ] {
            assert_eq!(relative(Path::new(from), Path::new(to)), PathBuf::from(want), "{from} {to}");
        }
    }

    #[test]
    fn a_tree_with_a_closed_folder_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("t/a/b");
        fs::create_dir_all(&closed).unwrap();
        fs::write(closed.join("f"), "x").unwrap();
        fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&dir.path().join("t")).unwrap();
        assert!(!dir.path().join("t").exists());
        remove_tree(&dir.path().join("t")).unwrap();
    }

    #[test]
    fn what_is_not_there_yet_is_where_its_parent_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(existing(dir.path()).unwrap(), dir.path());
        assert_eq!(existing(&dir.path().join("a/b")).unwrap(), dir.path());
        assert_eq!(existing(Path::new("not/there")).unwrap(), Path::new("."));
        let error = existing(&dir.path().join("file/b")).unwrap_err();
        assert!(error.kind() == io::ErrorKind::NotADirectory && error.to_string().contains("file"), "{error}");
    }

    #[test]
    fn atomic_write_replaces_and_sets_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x/key");
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path().join("x")).unwrap().count(), 1, "nothing left beside");
    }
}
