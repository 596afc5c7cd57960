//! Deletes what a layer hides of those below it.

use super::Unpacker;
use super::error::{Fault, Tried};
use crate::rootfs::tree;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use std::hash::BuildHasher;

pub(super) const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

impl Unpacker<'_> {
    pub(super) fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<(), Fault> {
        let target = if name == OPAQUE { None } else { Some(&name[WHITEOUT.len()..]) };
        match target {
            Some(b"" | b"." | b"..") => return Err(Fault::Refused("is a whiteout of no name".to_owned())),
            Some(_) if name.starts_with(AUFS) => return Ok(()),
            _ => {}
        }
        self.report.whiteouts += 1;
        if self.fresh.is_none() {
            return Ok(());
        }
        // Nothing is made for a whiteout: where there is no such directory there is nothing to delete.
        let dir = match self.tree.dir(parent) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other.tried("open the directory of")?,
        };
        let inode = rustix::fs::fstat(&dir).tried("look at the directory of")?.st_ino;
        // Nothing of a lower layer comes back there: what appears later is the current layer's.
        if !self.hidden.insert(self.hasher.hash_one((inode, name))) {
            return Ok(());
        }
        if let Some(name) = target {
            self.remove_lower(&dir, name).tried("delete what is whited out by")?;
        } else {
            // The descriptor is good for names only; listing needs another one.
            let dir = tree::open_dir(&dir, b".").tried("open the directory of")?;
            for (name, _) in tree::list(&dir).tried("list the directory of")? {
                self.remove_lower(&dir, &name).tried("delete what is hidden by")?;
            }
        }
        self.parent = None;
        Ok(())
    }

    /// Deletes `name` and what is below, but for what the current layer brought.
    pub(super) fn remove_lower(&self, dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
        let above = rustix::fs::fstat(dir)?.st_ino;
        let is_fresh = self.fresh.as_ref().is_some_and(|f| f.contains(&self.hasher.hash_one((above, name))));
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(()),
            other => other?,
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return if is_fresh { Ok(()) } else { rustix::fs::unlinkat(dir, name, AtFlags::empty()) };
        }
        let inside = tree::open_dir(dir, name)?;
        for (name, _) in tree::list(&inside)? {
            self.remove_lower(&inside, &name)?;
        }
        if is_fresh {
            return Ok(());
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            // Something of the current layer is inside.
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            other => other,
        }
    }
}
