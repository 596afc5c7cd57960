//! A directory tree that nothing leaves: every path is resolved inside its root, whatever symlinks it holds.
//!
//! Names come from image layers, which may be hostile: `..`, absolute names, a symlink to `/etc` and then a file
//! "through" it. So no path is ever handed to the kernel as it is. A *directory* is opened below the root with
//! `openat2(RESOLVE_IN_ROOT)`, under which absolute symlinks and `..` end at the root, as in a chroot; everything
//! else is done by one plain name relative to that open directory, without following symlinks.
//!
//! Kernels before 5.6 (RHEL 8) and old seccomp profiles have no openat2. There the same is done by hand: one
//! component after the other is opened with `O_NOFOLLOW`, and symlinks are read and resolved here.
//!
//! See openat2(2), path_resolution(7).

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::io::Read;
use std::path::Path;

/// Symlinks on the way to one directory, as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// openat2 says EAGAIN when something was renamed meanwhile, anywhere on the machine.
const TRIES: usize = 32;

const PATH_DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// How directories below the root are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolver {
    /// By the kernel.
    Openat2,
    /// By hand.
    Walk,
}

/// The root of a tree.
pub struct Tree {
    root: OwnedFd,
    resolver: Resolver,
}

impl Tree {
    /// Opens an existing directory as the root. It is trusted; what is below is not.
    pub fn open(root: &Path) -> rustix::io::Result<Self> {
        let root = rustix::fs::openat(CWD, root, PATH_DIR, Mode::empty())?;
        let probe = openat2(&root, b".");
        let resolver = match probe {
            Ok(_) => Resolver::Openat2,
            Err(_) => Resolver::Walk,
        };
        Ok(Self { root, resolver })
    }

    /// Resolves by hand even where the kernel could.
    #[cfg(any(test, fuzzing))]
    pub fn by_walking(mut self) -> Self {
        self.resolver = Resolver::Walk;
        self
    }

    /// The root itself.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Opens an existing directory; symlinks on the way, also the last, are resolved inside the root. The
    /// descriptor is good for `*at` calls only.
    pub fn dir(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        if self.resolver == Resolver::Openat2 {
            let path = if path.is_empty() { b"." } else { path };
            for _ in 0..TRIES {
                match openat2(&self.root, path) {
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    other => return other,
                }
            }
        }
        self.walk(path, |_, _| Err(Errno::NOENT))
    }

    /// Opens a directory, making what is missing on the way, also where a symlink points to nothing. `made` is
    /// told of every directory that is made: the one it is in, and its name.
    pub fn make_dirs(
        &self,
        path: &[u8],
        mut made: impl FnMut(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<OwnedFd> {
        self.walk(path, |parent, name| {
            rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
            made(parent, name)
        })
    }

    /// Resolves component by component. `missing` may make a directory that is not there.
    fn walk(
        &self,
        path: &[u8],
        mut missing: impl FnMut(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<OwnedFd> {
        // The last element is where we are; the first is the root, which `..` does not leave.
        let mut stack = vec![rustix::io::fcntl_dupfd_cloexec(&self.root, 3)?];
        let mut todo: Vec<Vec<u8>> = components(path);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let here = stack.last().ok_or(Errno::INVAL)?;
            let next = match open_component(here, &name) {
                Err(Errno::NOENT) => {
                    missing(here, &name)?;
                    open_component(here, &name)?
                }
                other => other?,
            };
            match FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode) {
                FileType::Directory => stack.push(next),
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = rustix::fs::readlinkat(here, &*name, Vec::new())?.into_bytes();
                    if target.first() == Some(&b'/') {
                        stack.truncate(1);
                    }
                    todo.extend(components(&target));
                }
                _ => return Err(Errno::NOTDIR),
            }
        }
        stack.pop().ok_or(Errno::INVAL)
    }
}

/// The parts of a path, the last first, without empty ones and `.`.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').rev().filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec).collect()
}

fn openat2(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(root, path, PATH_DIR, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

fn open_component(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a directory by its name in `parent` for reading and for changing it; never through a symlink.
pub fn open_dir(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// The text of a plain file by its name in `parent`; `None` when it is not there, is anything else (a symlink, a pipe that
/// nobody writes to) or is larger than `max` bytes. What is not UTF-8 is replaced.
pub fn read_text(parent: impl AsFd, name: &[u8], max: u64) -> std::io::Result<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ACCESS) => return Ok(None),
        other => std::fs::File::from(other?),
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > max {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The names in a directory with what they are.
pub fn list(dir: impl AsFd) -> rustix::io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not say.
            FileType::Unknown => kind_of(&dir, name)?,
            kind => kind,
        };
        found.push((name.to_bytes().to_vec(), kind));
    }
    Ok(found)
}

fn kind_of(dir: impl AsFd, name: &CStr) -> rustix::io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode))
}

/// Deletes what `name` is in `parent`, with everything below it when it is a directory. `false` when there is
/// nothing of this name.
pub fn remove(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<bool> {
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        // Linux says EISDIR, POSIX allows EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let dir = open_dir(&parent, name)?;
    for (name, _) in list(&dir)? {
        remove(&dir, &name)?;
    }
    rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
    Ok(true)
}
