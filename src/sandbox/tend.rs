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
