//! Copies a file with what is made of its bytes, at little more than the price of a plain copy.
//!
//! Most files of a tree are small, most of the others go as they are. So the first bytes decide: what nobody wants to look
//! at is shared with the original where the file system can (`FICLONE`), else copied inside the kernel
//! (copy_file_range(2)); what is looked at is read into memory that each thread keeps from file to file, since fresh memory
//! is cleared by the kernel page by page, which costs more than reading does.

use crate::fsutil;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much is read before it is decided whether the rest is looked at, in bytes; smaller files are read whole.
const HEAD: u64 = 64 << 10;

/// Buffers larger than this are given back after the file that needed them, in bytes.
const KEPT: usize = 64 << 20;

#[derive(Default)]
struct Buffers {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Buffers {
    fn shrink(&mut self) {
        for buffer in [&mut self.old, &mut self.new] {
            if buffer.capacity() > KEPT {
                *buffer = Vec::new();
            }
        }
    }
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Hands the content of a file to `look`, in memory that the thread keeps for the next one.
pub fn with_content<T, E: From<io::Error>>(path: &Path, look: impl FnOnce(&[u8]) -> Result<T, E>) -> Result<T, E> {
    BUFFERS.with_borrow_mut(|buffers| {
        buffers.old.clear();
        let file = fs::File::open(path)?;
        file.file().read_to_end(&mut buffers.old).map_err(|e| fsutil::with_path(&e, "read", path))?;
        let outcome = look(&buffers.old);
        buffers.shrink();
        outcome
    })
}

/// What is done with the bytes of a file.
pub trait Change {
    /// Why it failed.
    type Error: From<io::Error>;

    /// Whether a file that starts so is looked at. Of files up to 64 KiB this is all.
    fn wants(&self, head: &[u8]) -> bool;

    /// Puts the new bytes into `new`, which may hold anything; `false` when the file stays as it is.
    fn change(&mut self, old: &[u8], new: &mut Vec<u8>) -> Result<bool, Self::Error>;
}

/// Copies files of one tree into another.
#[derive(Debug, Default)]
pub struct Copier {
    /// The file system said that it shares no blocks; it is not asked for each file.
    never_shares: AtomicBool,
}

impl Copier {
    /// Copies `from` to `to`, which must not be there yet and gets exactly `mode`. Returns how many bytes it has.
    pub fn copy<C: Change>(&self, from: &Path, to: &Path, mode: u32, change: &mut C) -> Result<u64, C::Error> {
        BUFFERS.with_borrow_mut(|buffers| {
            let length = self.with_buffers(from, to, mode, change, buffers);
            buffers.shrink();
            length
        })
    }

    fn with_buffers<C: Change>(
        &self,
        from: &Path,
        to: &Path,
        mode: u32,
        change: &mut C,
        buffers: &mut Buffers,
    ) -> Result<u64, C::Error> {
        let source = fs::File::open(from)?;
        let Buffers { old, new } = buffers;
        old.clear();
        // By std's own file: through fs_err's, the memory would be cleared before it is read into.
        let unread = |e: io::Error| fsutil::with_path(&e, "read", from);
        let mut head = source.file().take(HEAD);
        head.read_to_end(old).map_err(unread)?;
        let whole = head.limit() > 0;
        let wanted = change.wants(old);
        if wanted && !whole {
            source.file().read_to_end(old).map_err(unread)?;
        }
        // Made before the target: an error leaves none.
        let changed = wanted && change.change(old, new)?;
        let mut target = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(to)?;
        // What open(2) was told is cut by the umask.
        target.set_permissions(std::fs::Permissions::from_mode(mode))?;
        if changed {
            target.write_all(new)?;
            return Ok(new.len() as u64);
        }
        if !whole && self.shares(&source, &target) {
            return Ok(source.metadata()?.len());
        }
        target.write_all(old)?;
        if wanted || whole {
            return Ok(old.len() as u64);
        }
        // std's copy of a file to a file is copy_file_range(2), with everything that a kernel may lack done by hand.
        let rest =
            io::copy(&mut source.file(), &mut target.file()).map_err(|e| fsutil::with_path(&e, "copy to", to))?;
        Ok(HEAD + rest)
    }

    /// Has the target share the source's blocks, if the file system can.
    fn shares(&self, source: &fs::File, target: &fs::File) -> bool {
        if self.never_shares.load(Ordering::Relaxed) {
            return false;
        }
        let shared = rustix::fs::ioctl_ficlone(target.file(), source.file());
        // What one file cannot do for a reason of its own, another may.
        if matches!(shared, Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOTTY | rustix::io::Errno::XDEV)) {
            self.never_shares.store(true, Ordering::Relaxed);
        }
        shared.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// Wants files that start with `x`, and turns each `x` into `yy`.
    struct Doubles(usize);

    impl Change for Doubles {
        type Error = io::Error;

        fn wants(&self, head: &[u8]) -> bool {
            head.first() == Some(&b'x')
        }

        fn change(&mut self, old: &[u8], new: &mut Vec<u8>) -> io::Result<bool> {
            self.0 = old.len();
            new.clear();
            new.extend(old.iter().flat_map(|b| if *b == b'x' { vec![b'y'; 2] } else { vec![*b] }));
            Ok(old.contains(&b'x') && old.len() != 70_000)
        }
    }

    #[test]
    fn every_kind_of_file_arrives_whole() {
        let dir = tempfile::tempdir().unwrap();
        let copier = Copier::default();
        for length in [0_usize, 1, 4096, 65_535, 65_536, 65_537, 70_000, 300_001] {
            for first in [b'a', b'x'] {
                let mut content: Vec<u8> = (0..length).map(|i| u8::try_from(i % 90).unwrap() + b' ').collect();
                content.retain(|b| *b != b'x');
                content.resize(length, b'-');
                if let Some(byte) = content.first_mut() {
                    *byte = first;
                }
                let (from, to) = (dir.path().join("from"), dir.path().join(format!("to-{length}-{first}")));
                fs::write(&from, &content).unwrap();
                let mut change = Doubles(0);
                let told = copier.copy(&from, &to, 0o640, &mut change).unwrap();
                let changed = first == b'x' && length > 0 && length != 70_000;
                let mut want = content.clone();
                if changed {
                    want.splice(..1, *b"yy");
                }
                assert_eq!(fs::read(&to).unwrap(), want, "{length} {first}");
                assert_eq!(told, want.len() as u64);
                assert_eq!(change.0, if first == b'x' { length } else { 0 }, "what is looked at is looked at whole");
                assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o640);
                assert!(copier.copy(&from, &to, 0o640, &mut change).is_err(), "nothing is written over");
            }
        }
    }
}
