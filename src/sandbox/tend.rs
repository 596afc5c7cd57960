//! What is done to a tree that belongs to a range of ids, where its user cannot do it: in a user namespace that maps them.
//!
//! Nothing is run there and no root is changed: one of a few tasks is done by a process that the helper makes, as root over
//! the user's own ids and nobody else's.

use super::helper::{clone_into, map_ids};
use super::plan::{IdMap, Namespace};
use super::wire::{Failure, Report, Step, send_report};
use crate::fsutil;
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A file's owner: its inode, uid and gid as seen inside.
pub type Owner = (u64, u32, u32);

/// What is done.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// Nothing: only whether such a namespace can be made.
    Try,
    /// Gives files below `root` to their owners.
    Own {
        /// The tree, on one file system.
        #[serde(with = "super::text")]
        root: PathBuf,
        /// Those that are not root's.
        owners: Vec<Owner>,
    },
    /// Copies a tree with its modes, times, links and owners; `to` is not there yet. Blocks are shared where the file system
    /// can.
    Copy {
        /// The tree.
        #[serde(with = "super::text")]
        from: PathBuf,
        /// The copy.
        #[serde(with = "super::text")]
        to: PathBuf,
    },
    /// Deletes a tree.
    Remove {
        /// The tree.
        #[serde(with = "super::text")]
        path: PathBuf,
    },
}

/// In the helper: makes the namespace, does the task in it, and reports to `socket`.
pub fn tend(uids: &[IdMap], gids: &[IdMap], task: &Task, socket: &UnixStream) -> Result<(), Failure> {
    let internal = |what: &str, errno: i32| Failure {
        step: Step::Internal(what.into()),
        path: None,
        errno,
        detail: String::new(),
    };
    let os = |what: &'static str| move |e: std::io::Error| internal(what, e.raw_os_error().unwrap_or(0));
    let (mut ours, mut theirs) = UnixStream::pair().map_err(os("make a socket"))?;
    let kinds = [Namespace::User];
    let child = clone_into(&kinds, &mut || {
        if theirs.read_exact(&mut [0; 2]).is_err() {
            return 1;
        }
        match apply(task) {
            Ok(()) => 0,
            Err((path, errno)) => {
                let failure = Failure { step: Step::Tend, path: Some(path), errno, detail: String::new() };
                send_report(socket, &Report::Failed(failure));
                2
            }
        }
    });
    let failed = |errno: Errno| Failure {
        step: Step::Namespaces(kinds.into()),
        path: None,
        errno: errno as i32,
        detail: String::new(),
    };
    let child = child.map_err(failed)?;
    let go = map_ids(child, uids, gids).and_then(|()| ours.write_all(b"go").map_err(os("wake the process")));
    if go.is_err() {
        let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
    }
    let ended = waitpid(child, None);
    go?;
    match ended {
        Ok(WaitStatus::Exited(_, 0)) => {
            send_report(socket, &Report::Exited(0));
            Ok(())
        }
        // It has said why.
        Ok(WaitStatus::Exited(_, 2)) => Ok(()),
        _ => Err(internal("do what was asked", 0)),
    }
}

fn apply(task: &Task) -> Result<(), (PathBuf, i32)> {
    match task {
        Task::Try => Ok(()),
        Task::Own { root, owners } => {
            let owners = owners.iter().map(|(inode, uid, gid)| (*inode, (*uid, *gid))).collect();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| (root.clone(), e));
            opened.and_then(|dir| own(&dir, root, &owners)).map_err(|(path, e)| (path, e.raw_os_error()))
        }
        Task::Copy { from, to } => copy(from, to).map_err(|(path, e)| (path, e.raw_os_error().unwrap_or(0))),
        Task::Remove { path } => {
            fsutil::remove_tree(path).map_err(|e| (path.clone(), e.raw_os_error().unwrap_or(Errno::EPERM as i32)))
        }
    }
}

/// From the deepest up: a folder that is given away before could not be told from one that was not.
fn own(dir: &OwnedFd, path: &Path, owners: &HashMap<u64, (u32, u32)>) -> Result<(), (PathBuf, rustix::io::Errno)> {
    use std::os::unix::ffi::OsStrExt;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |e| (path, e)
    };
    for entry in Dir::read_from(dir).map_err(at(path))? {
        let entry = entry.map_err(at(path))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let below = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at(&below))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inside = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(at(&below))?;
            own(&inside, &below, owners)?;
        }
        let Some((uid, gid)) = owners.get(&stat.st_ino) else { continue };
        let owner = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
        rustix::fs::chownat(dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).map_err(at(&below))?;
        // A change of owner takes setuid and setgid away (chown(2)).
        if kind == FileType::RegularFile && stat.st_mode & 0o6000 != 0 {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::chmodat(dir, name, mode, AtFlags::empty()).map_err(at(&below))?;
        }
    }
    Ok(())
}

/// Folders get their modes and times last, the deepest first.
fn copy(from: &Path, to: &Path) -> Result<(), (PathBuf, std::io::Error)> {
    use std::os::unix::fs::{MetadataExt, symlink};
    let mut folders = Vec::new();
    let mut linked: HashMap<u64, PathBuf> = HashMap::new();
    for entry in walkdir::WalkDir::new(from).follow_links(false) {
        let entry = entry.map_err(|e| (e.path().unwrap_or(from).to_owned(), e.into()))?;
        let at = |e: std::io::Error| (entry.path().to_owned(), e);
        let Ok(below) = entry.path().strip_prefix(from) else { continue };
        // Joined to an empty name, a path would end in `/`.
        let target = if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) };
        let meta = entry.metadata().map_err(|e| (entry.path().to_owned(), e.into()))?;
        let kind = meta.file_type();
        if let Some(first) = linked.get(&meta.ino()) {
            fs_err::hard_link(first, &target).map_err(at)?;
            continue;
        }
        if kind.is_dir() {
            fs_err::create_dir(&target).map_err(at)?;
        } else if kind.is_symlink() {
            symlink(fs_err::read_link(entry.path()).map_err(at)?, &target).map_err(at)?;
        } else if kind.is_file() {
            reflink_copy::reflink_or_copy(entry.path(), &target).map_err(at)?;
        } else {
            let mode = Mode::from_raw_mode(meta.mode() & 0o7777);
            let made = rustix::fs::mknodat(rustix::fs::CWD, &target, FileType::from_raw_mode(meta.mode()), mode, 0);
            made.map_err(|e| at(e.into()))?;
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            linked.insert(meta.ino(), target.clone());
        }
        if (meta.uid(), meta.gid()) != (0, 0) {
            std::os::unix::fs::lchown(&target, Some(meta.uid()), Some(meta.gid())).map_err(at)?;
        }
        if kind.is_dir() {
            folders.push((target, meta));
        } else if !kind.is_symlink() {
            like(&target, &meta).map_err(at)?;
        }
    }
    for (target, meta) in folders.into_iter().rev() {
        like(&target, &meta).map_err(|e| (target.clone(), e))?;
    }
    Ok(())
}

/// Mode and time of change.
fn like(path: &Path, meta: &std::fs::Metadata) -> std::io::Result<()> {
    use rustix::fs::{CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};
    use std::os::unix::fs::MetadataExt;
    fs_err::set_permissions(path, meta.permissions())?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() },
    };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
