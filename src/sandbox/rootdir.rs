//! Paths inside an image are looked up inside the image.
//!
//! An image is somebody else's work: its `/etc/resolv.conf` may be a symlink to `/`, or to `../../../home`.
//! Looked up by the host's kernel from the host's root, such a link leads out. This walks a path one name
//! at a time from an open folder, never letting the kernel follow a symlink (`O_PATH|O_NOFOLLOW`), and
//! follows links itself: an absolute one starts again at the image's root, and `..` stops there. It is what
//! `openat2(2)` does under `RESOLVE_IN_ROOT`, which the kernels of RHEL 8 do not have, and which makes nothing that is missing.
//! Where the kernel has it, what is there is opened so, in one call: a start opens sixty such paths.

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What shall be at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Whatever is there.
    Any,
    /// A folder, made with its parents when missing.
    Dir,
    /// Something that is not a folder; an empty file and its parents are made when missing.
    File,
    /// A folder at this very place, made when missing: a symlink is refused. For `/dev`, `/proc` and `/sys`,
    /// which programs find by those names.
    TrueDir,
}

/// A folder that is taken for `/`.
#[derive(Debug)]
pub struct RootDir(OwnedFd);

impl RootDir {
    /// Opens a folder of the host. After something was mounted on it this opens what was mounted.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map(Self)
    }

    /// Opens `path` inside, with `O_PATH`.
    pub fn resolve(&self, path: &Path, want: Want) -> Result<OwnedFd, Errno> {
        // Whatever is wrong, the walk says what it is, or makes what is missing.
        self.at_once(path, want).map_or_else(|| self.walk(path, want), Ok)
    }

    /// As [`RootDir::walk`], for what is there and as wanted, by the kernel.
    fn at_once(&self, path: &Path, want: Want) -> Option<OwnedFd> {
        let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        if want == Want::TrueDir {
            resolve |= ResolveFlags::NO_SYMLINKS;
        }
        let found = openat2(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?;
        if want == Want::Any {
            return Some(found);
        }
        let is_dir = FileType::from_raw_mode(fstat(&found).ok()?.st_mode) == FileType::Directory;
        (is_dir == (want != Want::File)).then_some(found)
    }

    fn walk(&self, path: &Path, want: Want) -> Result<OwnedFd, Errno> {
        let mut above: Vec<OwnedFd> = vec![self.0.try_clone().map_err(|_| Errno::MFILE)?];
        let mut todo: VecDeque<OsString> = names(path).collect();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            let Some(here) = above.last() else { return Err(Errno::NOENT) };
            if name == ".." {
                if above.len() > 1 {
                    above.pop();
                }
                continue;
            }
            let last = todo.is_empty();
            let found = match openat(here, &name, HANDLE, Mode::empty()) {
                Err(Errno::NOENT) => make(here.as_fd(), &name, want, last)?,
                other => other?,
            };
            match FileType::from_raw_mode(fstat(&found)?.st_mode) {
                FileType::Symlink if want == Want::TrueDir => return Err(Errno::NOTDIR),
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let to = PathBuf::from(OsString::from_vec(readlinkat(&found, "", Vec::new())?.into_bytes()));
                    if to.is_absolute() {
                        above.truncate(1);
                    }
                    for name in names(&to).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(name);
                    }
                }
                FileType::Directory => above.push(found),
                _ if last && !matches!(want, Want::Dir | Want::TrueDir) => return Ok(found),
                _ => return Err(Errno::NOTDIR),
            }
        }
        match above.pop() {
            Some(_) if want == Want::File => Err(Errno::ISDIR),
            Some(found) => Ok(found),
            None => Err(Errno::NOENT),
        }
    }

    /// The open folder of `path`'s parent (made when missing) and the last name.
    pub fn parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), Errno> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        Ok((self.resolve(path.parent().unwrap_or(Path::new("/")), Want::Dir)?, name))
    }

    /// Whether this handle is the root itself.
    pub fn is_root(&self, handle: impl AsFd) -> Result<bool, Errno> {
        let (root, other) = (fstat(&self.0)?, fstat(handle)?);
        Ok((root.st_dev, root.st_ino) == (other.st_dev, other.st_ino))
    }
}

impl AsFd for RootDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The path by which the kernel finds what a handle is open on, whatever has been mounted or renamed since
/// on the way there (`proc(5)`, `/proc/PID/fd`).
pub fn fd_path(handle: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd()))
}

/// Opens a file of the host, which must or must not exist as `flags` say. Unlike `fs_err`'s errors, which name
/// the path and hide the number, this one is the number: findings are decided by it.
pub fn open_host(path: &Path, flags: OFlags) -> Result<std::fs::File, Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o700)).map(Into::into)
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Makes what is missing. Another sandbox may make the same thing at the same time, so "exists" is no error.
fn make(here: BorrowedFd<'_>, name: &OsStr, want: Want, last: bool) -> Result<OwnedFd, Errno> {
    let made = match want {
        Want::Any => return Err(Errno::NOENT),
        Want::File if last => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(here, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
        Want::File | Want::Dir | Want::TrueDir => mkdirat(here, name, Mode::from_raw_mode(0o755)),
    };
    match made {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    openat(here, name, HANDLE, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;
    use std::os::unix::fs::symlink;

    /// Both ways must find the same, where the kernel's finds anything.
    fn found(root: &RootDir, path: &str, want: Want) -> Result<PathBuf, Errno> {
        let name = |handle: OwnedFd| fs::read_link(fd_path(&handle)).unwrap();
        let at_once = root.at_once(Path::new(path), want).map(name);
        let walked = root.walk(Path::new(path), want).map(name);
        assert!(at_once.is_none() || at_once.as_ref() == walked.as_ref().ok(), "{path}: {at_once:?} {walked:?}");
        // What was there is found at once, the second time also what was made.
        assert_eq!(
            root.at_once(Path::new(path), want).map(name).ok_or(()),
            walked.as_ref().cloned().map_err(|_| ()),
            "{path}"
        );
        walked
    }

    #[test]
    fn links_never_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let image = top.join("image");
        fs::create_dir_all(image.join("etc")).unwrap();
        fs::create_dir_all(image.join("a/b")).unwrap();
        fs::write(top.join("secret"), "s").unwrap();
        fs::write(image.join("etc/file"), "f").unwrap();
        for (name, to) in [
            ("etc/root", "/"),
            ("etc/up", "../../../../../../secret"),
            ("etc/absolute", "/etc/file"),
            ("etc/host", "/etc/passwd"),
            ("etc/loop", "loop"),
            ("a/b/back", "../../etc"),
            ("etc/run", "../run/systemd/resolve/stub-resolv.conf"),
        ] {
            symlink(to, image.join(name)).unwrap();
        }
        let root = RootDir::open(&image).unwrap();
        assert_eq!(found(&root, "/etc/absolute", Want::File).unwrap(), image.join("etc/file"));
        assert_eq!(found(&root, "/a/b/back/file", Want::Any).unwrap(), image.join("etc/file"));
        assert_eq!(found(&root, "/../../etc/file", Want::Any).unwrap(), image.join("etc/file"));
        assert_eq!(found(&root, "/etc/root", Want::File), Err(Errno::ISDIR));
        assert!(root.is_root(root.resolve(Path::new("/etc/root"), Want::Dir).unwrap()).unwrap());
        assert_eq!(found(&root, "/etc/up", Want::Any), Err(Errno::NOENT));
        assert_eq!(found(&root, "/etc/loop", Want::File), Err(Errno::LOOP));
        assert_eq!(found(&root, "/etc/host", Want::File).unwrap(), image.join("etc/passwd"), "made inside");
        assert_eq!(
            found(&root, "/etc/run", Want::File).unwrap(),
            image.join("run/systemd/resolve/stub-resolv.conf"),
            "made with its folders"
        );
        assert_eq!(found(&root, "/etc/file/x", Want::Dir), Err(Errno::NOTDIR));
        assert_eq!(found(&root, "/new/deep", Want::TrueDir).unwrap(), image.join("new/deep"));
        assert_eq!(found(&root, "/etc/root", Want::TrueDir), Err(Errno::NOTDIR));
        assert_eq!(fs::read_to_string(top.join("secret")).unwrap(), "s");
        let (parent, name) = root.parent(Path::new("/a/b/back")).unwrap();
        assert_eq!((fs::read_link(fd_path(&parent)).unwrap(), name), (image.join("a/b"), OsStr::new("back")));
    }
}
