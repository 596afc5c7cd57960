//! Makes what an entry describes: files, directories, links, named pipes, with their modes, times and attributes.

use super::error::{Fault, Tried};
use super::place::{PATH_MAX, normal, split};
use super::{DirMeta, Unpacker};
use crate::image::tar::{Entry, Segment, TarReader, show};
use crate::report::Ctx;
use crate::rootfs::stream::LayerStream;
use crate::rootfs::tree;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

impl Unpacker<'_> {
    pub(super) fn file(
        &mut self,
        name: &[u8],
        entry: &Entry,
        reader: &mut TarReader<LayerStream<'_>>,
    ) -> Result<(), Fault> {
        if entry.size > self.bytes_left {
            return Err(Fault::Limit("its files have".to_owned(), self.limits.bytes));
        }
        self.bytes_left -= entry.size;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create =
            |this: &Self| rustix::fs::openat(&this.here()?.fd, name, flags, Mode::RUSR | Mode::WUSR).tried("make");
        let file = match create(self) {
            Err(Fault::Os(_, Errno::EXIST, _)) => {
                self.clear(name)?;
                create(self)
            }
            other => other,
        };
        let file = file.map_err(|fault| match fault {
            Fault::Os(verb, e, _) => Fault::Os(verb, e, entry.size),
            other => other,
        })?;
        let mut writer =
            FileWriter { file: &file, ctx: self.ctx, segments: entry.segments.as_deref(), at: 0, in_segment: 0 };
        let mut left = entry.size;
        reader.read_data(|bytes| {
            writer.write(bytes, left)?;
            left = left.saturating_sub(bytes.len() as u64);
            Ok::<(), Fault>(())
        })?;
        if entry.segments.is_some() {
            rustix::fs::ftruncate(&file, entry.size).tried("set the size of")?;
        }
        self.xattrs(&file, entry)?;
        // After the last write, which would take setuid away.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).tried("set the mode of")?;
        rustix::fs::futimens(&file, &times(entry.mtime)).tried("set the time of")?;
        self.report.files += 1;
        self.report.bytes += entry.size;
        Ok(())
    }

    pub(super) fn xattrs(&mut self, file: &OwnedFd, entry: &Entry) -> Result<(), Fault> {
        for (name, value) in &entry.xattrs {
            let wanted = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
            let set = if wanted {
                rustix::fs::fsetxattr(file, &**name, value, XattrFlags::empty())
            } else {
                Err(Errno::PERM)
            };
            match set {
                Ok(()) => {}
                Err(e @ (Errno::NOSPC | Errno::DQUOT)) if e == Errno::DQUOT || is_full(file, value.len() as u64) => {
                    return Err(Fault::Os("set an extended attribute of", e, value.len() as u64));
                }
                // The file system has none, or not so large ones (ext4 says ENOSPC then), or not of this name.
                Err(_) => self.report.dropped_xattrs += 1,
            }
        }
        Ok(())
    }

    /// The attributes that a lower layer gave a directory are not those of the entry that describes it anew.
    pub(super) fn clear_xattrs(dir: &OwnedFd) {
        let mut names = vec![0; 64 << 10];
        // Without any, or on a file system that has none, there is nothing to take away.
        let Ok(len) = rustix::fs::flistxattr(dir, &mut *names) else { return };
        for name in names[..len].split(|b| *b == 0).filter(|name| name.starts_with(b"user.")) {
            let _ = rustix::fs::fremovexattr(dir, name);
        }
    }

    pub(super) fn directory(&mut self, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let parent = self.here()?;
        let depth = parent.depth + 1;
        if depth > self.limits.depth {
            return Err(self.too_deep());
        }
        let stat = |this: &Self| rustix::fs::statat(&this.here()?.fd, name, AtFlags::SYMLINK_NOFOLLOW).tried("look at");
        let make = |this: &Self| rustix::fs::mkdirat(&this.here()?.fd, name, Mode::RWXU).tried("make");
        let mut kept = false;
        match make(self) {
            Err(Fault::Os(_, Errno::EXIST, _)) => {
                let there = stat(self)?;
                kept = FileType::from_raw_mode(there.st_mode) == FileType::Directory;
                if !kept {
                    self.clear(name)?;
                    make(self)?;
                }
            }
            other => other?,
        }
        let inode = stat(self)?.st_ino;
        self.dirs.insert(inode, DirMeta { mode: entry.mode, mtime: Some(entry.mtime), depth });
        if kept || !entry.xattrs.is_empty() {
            let dir = tree::open_dir(&self.here()?.fd, name).tried("open")?;
            Self::clear_xattrs(&dir);
            self.xattrs(&dir, entry)?;
        }
        self.report.dirs += 1;
        Ok(())
    }

    pub(super) fn symlink(&mut self, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        if entry.link.is_empty() || entry.link.len() > PATH_MAX {
            return Err(Fault::Refused(format!("is a symlink to a name of {} bytes", entry.link.len())));
        }
        let make = |this: &Self| rustix::fs::symlinkat(&*entry.link, &this.here()?.fd, name).tried("make the symlink");
        match make(self) {
            Err(Fault::Os(_, Errno::EXIST, _)) => {
                self.clear(name)?;
                make(self)?;
            }
            other => other?,
        }
        rustix::fs::utimensat(&self.here()?.fd, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .tried("set the time of")?;
        self.report.dropped_xattrs += entry.xattrs.len() as u64;
        self.report.symlinks += 1;
        Ok(())
    }

    /// True when it is another name of a device that was left out: then nothing is made.
    pub(super) fn hard_link(&mut self, name: &[u8], entry: &Entry) -> Result<bool, Fault> {
        let target = normal(&entry.link)?;
        if self.devices.contains(&target) {
            return Ok(true);
        }
        let (target_dir, target_name) = split(&target);
        let missing = || Fault::Refused(format!("is a hard link to `{}`, which is not there", show(&entry.link)));
        if target_name.is_empty() {
            return Err(Fault::Refused("is a hard link to the root".to_owned()));
        }
        let dir = match self.tree.dir(target_dir) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
            other => other.tried("open the target of the hard link")?,
        };
        // The target itself is not followed: a hard link to a symlink is another name of the symlink.
        let to = match rustix::fs::statat(&dir, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(missing()),
            other => other.tried("look at the target of the hard link")?,
        };
        if FileType::from_raw_mode(to.st_mode) == FileType::Directory {
            return Err(Fault::Refused(format!("is a hard link to the directory `{}`", show(&entry.link))));
        }
        let link = |this: &Self| {
            rustix::fs::linkat(&dir, target_name, &this.here()?.fd, name, AtFlags::empty()).tried("make the hard link")
        };
        match link(self) {
            Err(Fault::Os(_, Errno::EXIST, _)) => {
                let there = rustix::fs::statat(&self.here()?.fd, name, AtFlags::SYMLINK_NOFOLLOW).tried("look at")?;
                if there.st_ino != to.st_ino {
                    self.clear(name)?;
                    match link(self) {
                        // The target was inside what has just been replaced.
                        Err(Fault::Os(_, Errno::NOENT, _)) => return Err(missing()),
                        other => other?,
                    }
                }
            }
            other => other?,
        }
        self.report.hardlinks += 1;
        Ok(false)
    }

    pub(super) fn fifo(&mut self, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        self.clear(name)?;
        let dir = &self.here()?.fd;
        let mode = Mode::from_raw_mode(entry.mode);
        rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0).tried("make the named pipe")?;
        // Just made, and nobody else writes here: it is no symlink that chmod could follow.
        rustix::fs::chmodat(dir, name, mode, AtFlags::empty()).tried("set the mode of")?;
        rustix::fs::utimensat(dir, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).tried("set the time of")?;
        self.report.dropped_xattrs += entry.xattrs.len() as u64;
        self.report.fifos += 1;
        Ok(())
    }
}

/// Writes a file's data where it belongs: in one go, or into the segments of a sparse file.
struct FileWriter<'a> {
    file: &'a OwnedFd,
    ctx: &'a Ctx,
    segments: Option<&'a [Segment]>,
    /// Index of the current segment.
    at: usize,
    in_segment: u64,
}

impl FileWriter<'_> {
    fn write(&mut self, mut bytes: &[u8], left: u64) -> Result<(), Fault> {
        self.ctx.check()?;
        let Some(segments) = self.segments else {
            while !bytes.is_empty() {
                let n = self.retry(left, |file| rustix::io::write(file, bytes))?;
                bytes = &bytes[n..];
            }
            return Ok(());
        };
        while !bytes.is_empty() {
            // The map accounts for every stored byte: the reader has checked it.
            let Some(segment) = segments.get(self.at) else { return Ok(()) };
            let room = usize::try_from(segment.len - self.in_segment).unwrap_or(usize::MAX).min(bytes.len());
            let offset = segment.offset + self.in_segment;
            let n = self.retry(left, |file| rustix::io::pwrite(file, &bytes[..room], offset))?;
            bytes = &bytes[n..];
            self.in_segment += n as u64;
            if self.in_segment == segment.len {
                self.at += 1;
                self.in_segment = 0;
            }
        }
        Ok(())
    }

    fn retry(&self, left: u64, write: impl Fn(&OwnedFd) -> rustix::io::Result<usize>) -> Result<usize, Fault> {
        loop {
            match write(self.file) {
                Err(Errno::INTR) => {}
                Ok(0) => return Err(Fault::Os("write", Errno::IO, left)),
                other => return other.map_err(|e| Fault::Os("write", e, left)),
            }
        }
    }
}

/// Whether the file system of `file` has no room for so many bytes and an inode.
fn is_full(file: &OwnedFd, bytes: u64) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|s| {
        s.f_bavail.saturating_mul(s.f_frsize) < bytes.saturating_add(64 << 10) || (s.f_files > 0 && s.f_favail == 0)
    })
}

/// The access time is left as it is.
pub(super) fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}
