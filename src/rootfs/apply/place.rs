//! Where an entry goes: its name taken apart, and the way to its directory.

use super::error::{Fault, Tried};
use super::{DirMeta, IMPLIED_MODE, Unpacker};
use crate::rootfs::tree;
use rustix::fd::OwnedFd;
use rustix::fs::AtFlags;
use rustix::io::Errno;
use std::hash::BuildHasher;

/// The kernel takes no longer path in one call.
pub(super) const PATH_MAX: usize = 4095;

/// The directory that the last entry was in: the next one mostly is in the same.
pub(super) struct Parent {
    pub path: Vec<u8>,
    pub fd: OwnedFd,
    pub inode: u64,
    pub depth: u32,
}

impl Unpacker<'_> {
    /// Makes `path` the current directory, making it when it is not there.
    pub(super) fn enter(&mut self, path: &[u8]) -> Result<(), Fault> {
        if self.parent.as_ref().is_some_and(|p| p.path == path) {
            return Ok(());
        }
        let fd = match self.tree.dir(path) {
            Err(Errno::NOENT) => self.make_dirs(path)?,
            other => other.tried("open the directory of")?,
        };
        let inode = rustix::fs::fstat(&fd).tried("look at the directory of")?.st_ino;
        let depth = self.dirs.get(&inode).map_or(0, |d| d.depth);
        self.parent = Some(Parent { path: path.to_vec(), fd, inode, depth });
        Ok(())
    }

    pub(super) fn make_dirs(&mut self, path: &[u8]) -> Result<OwnedFd, Fault> {
        let Self { tree, dirs, owners, fresh, hasher, limits, .. } = self;
        let mut too_deep = false;
        let made = tree.make_dirs(path, |parent, name| {
            let above = rustix::fs::fstat(parent)?.st_ino;
            let depth = dirs.get(&above).map_or(0, |d| d.depth) + 1;
            if depth > limits.depth {
                too_deep = true;
                return Err(Errno::LOOP);
            }
            let inode = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_ino;
            dirs.insert(inode, DirMeta { mode: IMPLIED_MODE, mtime: None, depth });
            owners.remove(&inode);
            if let Some(fresh) = fresh {
                fresh.insert(hasher.hash_one((above, name)));
            }
            Ok(())
        });
        if too_deep {
            return Err(self.too_deep());
        }
        made.tried("make the directory of")
    }

    pub(super) fn too_deep(&self) -> Fault {
        Fault::Limit("directories are nested".to_owned(), self.limits.depth.into())
    }

    pub(super) fn here(&self) -> Result<&Parent, Fault> {
        self.parent.as_ref().ok_or(Fault::Os("open the directory of", Errno::NOENT, 0))
    }

    /// Notes that the current layer brought `name`.
    pub(super) fn mark(&mut self, name: &[u8]) {
        if let (Some(fresh), Some(parent)) = (&mut self.fresh, &self.parent) {
            fresh.insert(self.hasher.hash_one((parent.inode, name)));
        }
    }

    /// Deletes what stands where an entry goes.
    pub(super) fn clear(&mut self, name: &[u8]) -> Result<(), Fault> {
        self.replaced |= tree::remove(&self.here()?.fd, name).tried("replace")?;
        Ok(())
    }
}

/// The parts of a name joined again without `/` at either end, empty parts and `.`.
pub(super) fn normal(path: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Fault::Refused("has a `..` in a name, which could lead out of the image".to_owned())),
            part => {
                if part.contains(&0) {
                    return Err(Fault::Refused("has a zero byte in a name".to_owned()));
                }
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    if out.len() > PATH_MAX {
        return Err(Fault::Refused(format!("has a name of {} bytes; Linux takes {PATH_MAX}", out.len())));
    }
    Ok(out)
}

/// The directory and the last part.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
