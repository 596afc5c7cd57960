//! Copies a file with what is made of its bytes, at little more than the price of a plain copy.
//!
//! Most files of a tree are small, most of the others go as they are. So the first bytes decide: what nobody wants to look
//! at is shared with the original where the file system can (`FICLONE`), else copied inside the kernel
//! (copy_file_range(2)). Of an ELF file only the parts are read that its edit asks for ([`edit_parts`](crate::elf::edit_parts)), and the rest is
//! copied by the kernel too. Other files that are looked at are read into memory that each thread keeps from file to file,
//! since fresh memory is cleared by the kernel page by page, which costs more than reading does.

use crate::elf::{Copied, Edit, Edits, Elf, ElfError, Parts, Piece, Spares};
use crate::fsutil;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much is read before it is decided whether the rest is looked at, in bytes; smaller files are read whole.
const HEAD: usize = 64 << 10;

/// Buffers larger than this are given back after the file that needed them, in bytes.
const KEPT: usize = 64 << 20;

#[derive(Default)]
struct Buffers {
    old: Vec<u8>,
    new: Vec<u8>,
    spares: Spares,
}

impl Buffers {
    fn shrink(&mut self) {
        for buffer in [&mut self.old, &mut self.new] {
            if buffer.capacity() > KEPT {
                *buffer = Vec::new();
            }
        }
        self.spares.shrink(KEPT);
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

/// What is to be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// It is copied.
    Copy,
    /// It is handed to [`Change::change`].
    Change,
    /// It is an ELF file, for which [`Change::asked`] says what it becomes.
    Edit,
}

/// What is done with the bytes of a file.
pub trait Change {
    /// Why it failed.
    type Error: From<io::Error>;

    /// What is done with a file that starts so. Of files up to 64 KiB this is all.
    fn wants(&self, head: &[u8]) -> Wants;

    /// What becomes of an ELF file that says this about itself; `None` when it stays as it is. May be asked more than once.
    fn asked(&mut self, file: &Elf) -> Option<Edit>;

    /// What came of it: whether the file was edited, or why it was refused.
    fn edited(&mut self, outcome: Result<bool, ElfError>) -> Result<(), Self::Error>;

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
        let Buffers { old, new, spares } = buffers;
        old.clear();
        let unread = |e: io::Error| fsutil::with_path(&e, "read", from);
        append(source.file(), old, 0, HEAD).map_err(unread)?;
        let whole = old.len() < HEAD;
        let wants = change.wants(old);
        let wanted = wants == Wants::Change;
        if wanted && !whole {
            // By std's own file: through fs_err's, the memory would be cleared before it is read into.
            source.file().seek(SeekFrom::Start(HEAD as u64)).map_err(unread)?;
            source.file().read_to_end(old).map_err(unread)?;
        }
        // Made before the target: an error leaves none.
        let changed = wanted && change.change(old, new)?;
        let edits = if wants == Wants::Edit {
            edits_of(&source, from, whole, (&mut *old, &mut *spares), change)?
        } else {
            None
        };
        let mut target = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(to)?;
        // What open(2) was told is cut by the umask.
        target.set_permissions(std::fs::Permissions::from_mode(mode))?;
        if let Some(edits) = edits {
            carry_out(&edits, source.file(), target.file()).map_err(|e| fsutil::with_path(&e, "write", to))?;
            let length = edits.length;
            edits.recycle(spares);
            return Ok(length);
        }
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
        let failed = |e: io::Error| fsutil::with_path(&e, "copy to", to);
        source.file().seek(SeekFrom::Start(HEAD as u64)).map_err(unread)?;
        let rest = io::copy(&mut source.file(), &mut target.file()).map_err(failed)?;
        Ok(HEAD as u64 + rest)
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

/// Puts up to so many bytes of the file behind what the buffer holds; fewer only at the file's end.
fn append(file: &std::fs::File, buffer: &mut Vec<u8>, offset: u64, length: usize) -> io::Result<()> {
    let start = buffer.len();
    buffer.resize(start + length, 0);
    let mut done = 0;
    while done < length {
        match file.read_at(&mut buffer[start + done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(start + done);
    Ok(())
}

/// How many times parts of a file are read before all of it is.
const READS: usize = 40;

/// What an edit asks for is read with what stands around it, up to this alignment in bytes.
const PAGE: u64 = 16 << 10;

/// Asks for the edit of an ELF file that begins with `head`, and reads what that needs.
fn edits_of<C: Change>(
    source: &fs::File,
    path: &Path,
    whole: bool,
    (head, spares): (&mut Vec<u8>, &mut Spares),
    change: &mut C,
) -> Result<Option<Edits>, C::Error> {
    let known = head.len() as u64;
    let length = if whole { known } else { source.metadata()?.len().max(known) };
    let mut parts = Parts::new(length);
    // A moment later the same bytes, in the same memory.
    let took = parts.fill(0, known, spares, |buffer, _, _| {
        std::mem::swap(buffer, head);
        Ok::<(), io::Error>(())
    });
    let mut reads = 0;
    let outcome = took.and_then(|()| {
        loop {
            let (start, end) = match crate::elf::edit_parts_with(&parts, spares, |file| change.asked(file)) {
                Err(ElfError::NotRead { .. }) if reads == READS => (0, length),
                Err(ElfError::NotRead { offset, length: wanted }) if reads < READS => {
                    (offset / PAGE * PAGE, offset.saturating_add(wanted).next_multiple_of(PAGE))
                }
                other => return Ok(other),
            };
            parts.fill(start, end, spares, |buffer, at, wanted| {
                let before = buffer.len();
                append(source.file(), buffer, at, wanted).map_err(|e| fsutil::with_path(&e, "read", path))?;
                let shorter = || io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter");
                if buffer.len() - before < wanted { Err(fsutil::with_path(&shorter(), "read", path)) } else { Ok(()) }
            })?;
            reads += 1;
        }
    });
    *head = parts.into_first(spares);
    let outcome = outcome?;
    change.edited(match &outcome {
        Ok(edits) => Ok(edits.is_some()),
        Err(error) => Err(error.clone()),
    })?;
    Ok(outcome.ok().flatten())
}

/// Makes the new file: what is known of it is written, the kernel copies the rest.
fn carry_out(edits: &Edits, source: &std::fs::File, target: &std::fs::File) -> io::Result<()> {
    let mut at = 0;
    for piece in edits.pieces() {
        match piece {
            Piece::Bytes(bytes) => {
                target.write_all_at(bytes, at)?;
                at += bytes.len() as u64;
            }
            Piece::Copied(copied) => {
                copy_range(&copied, source, target)?;
                at = copied.to + copied.length;
            }
        }
    }
    Ok(())
}

fn copy_range(copied: &Copied, source: &std::fs::File, target: &std::fs::File) -> io::Result<()> {
    use rustix::io::Errno;
    let (mut from, mut to, mut left) = (copied.from, copied.to, copied.length);
    while left > 0 {
        let step = usize::try_from(left).unwrap_or(1 << 30).min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), step) {
            // At the end of a file, and from some file systems that say it of files that they make up (copy_file_range(2), BUGS).
            Ok(0) => return copy_by_hand(Copied { from, to, length: left }, source, target),
            Ok(done) => left -= done as u64,
            Err(Errno::INTR) => {}
            // Another file system, or one that has no such call (copy_file_range(2)).
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM | Errno::TXTBSY) => {
                return copy_by_hand(Copied { from, to, length: left }, source, target);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(copied: Copied, source: &std::fs::File, target: &std::fs::File) -> io::Result<()> {
    let mut bytes = vec![0; usize::try_from(copied.length).unwrap_or(usize::MAX).min(1 << 20)];
    let mut done = 0;
    while done < copied.length {
        let step = usize::try_from(copied.length - done).unwrap_or(usize::MAX).min(bytes.len());
        let bytes = &mut bytes[..step];
        source.read_exact_at(bytes, copied.from + done).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(error.kind(), "the file that it is copied from became shorter")
            }
            _ => error,
        })?;
        target.write_all_at(bytes, copied.to + done)?;
        done += step as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// Wants files that start with `x`, and turns each `x` into `yy`.
    struct Doubles(usize);

    impl Change for Doubles {
        type Error = io::Error;

        fn wants(&self, head: &[u8]) -> Wants {
            if head.first() == Some(&b'x') { Wants::Change } else { Wants::Copy }
        }

        fn asked(&mut self, _: &Elf) -> Option<Edit> {
            panic!("no ELF file here")
        }

        fn edited(&mut self, _: Result<bool, ElfError>) -> io::Result<()> {
            panic!("no ELF file here")
        }

        fn change(&mut self, old: &[u8], new: &mut Vec<u8>) -> io::Result<bool> {
            self.0 = old.len();
            new.clear();
            new.extend(old.iter().flat_map(|b| if *b == b'x' { vec![b'y'; 2] } else { vec![*b] }));
            Ok(old.contains(&b'x') && old.len() != 70_000)
        }
    }

    #[test]
    fn a_stretch_is_copied_alike_by_hand_and_by_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3_000_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        fs::write(dir.path().join("from"), &content).unwrap();
        let source = fs::File::open(dir.path().join("from")).unwrap();
        let copied = Copied { from: 999, to: 5, length: 2_500_000 };
        for (name, by_hand) in [("kernel", false), ("hand", true)] {
            let target = fs::File::create(dir.path().join(name)).unwrap();
            let copy = |copied: Copied| {
                if by_hand {
                    copy_by_hand(copied, source.file(), target.file())
                } else {
                    copy_range(&copied, source.file(), target.file())
                }
            };
            copy(copied).unwrap();
            assert_eq!(fs::read(dir.path().join(name)).unwrap()[5..], content[999..2_500_999], "{name}");
            let error = copy(Copied { from: 2_999_990, to: 0, length: 11 }).unwrap_err();
            assert!(error.kind() == io::ErrorKind::UnexpectedEof && error.to_string().contains("shorter"), "{error}");
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
