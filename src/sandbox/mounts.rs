//! Mounts made read-only, and the list of mounts (`proc(5)`, `/proc/PID/mountinfo`).
//!
//! A remount must repeat the flags that a mount came with: in a user namespace nosuid, nodev, noexec and the
//! rest are locked, and leaving one out is EPERM (`mount_namespaces(7)`). `MS_RDONLY` on a recursive bind
//! reaches only its top; `mount_setattr(2)` reaches all, from Linux 5.12 on. Every kernel lists its
//! mounts, so on an older one they are remounted one by one.

use super::rootdir::{fd_path, open_host};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, fstatvfs, statvfs};
use rustix::fs::OFlags;
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const NONE: Option<&str> = None;

/// One line of `mountinfo`.
#[derive(Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Its number.
    pub id: u64,
    /// The number of what it is mounted on.
    pub parent: u64,
    /// Where, as seen from the process's root.
    pub point: PathBuf,
}

/// Reads the text of `mountinfo`; lines that have no such form are left out.
pub fn parse_mountinfo(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
            let (id, parent) = (number()?, number()?);
            let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(2)?)));
            Some(MountEntry { id, parent, point })
        })
        .collect()
}

/// Space, tab, newline and backslash are written as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Makes the mount that `handle` is open on read-only, without touching what is mounted below it.
pub fn seal(handle: &impl AsFd) -> Result<(), Errno> {
    let flags = fstatvfs(handle)?.flags();
    remount_read_only(&fd_path(handle), flags)
}

/// Makes the mount that `handle` is open on read-only and all that are mounted below it. On failure also
/// says which one.
pub fn seal_tree(handle: &impl AsFd) -> Result<(), (Errno, Option<PathBuf>)> {
    if seal_at_once(handle).is_ok() {
        return Ok(());
    }
    seal(handle).map_err(|errno| (errno, None))?;
    let listed =
        |e: std::io::Error| (Errno::from_raw(e.raw_os_error().unwrap_or(0)), Some("/proc/self/mountinfo".into()));
    let top = mount_id(handle).map_err(listed)?;
    let entries = parse_mountinfo(&read("/proc/self/mountinfo".as_ref()).map_err(listed)?);
    for entry in below(&entries, top) {
        let sealed = statvfs(&entry.point).and_then(|stat| remount_read_only(&entry.point, stat.flags()));
        match sealed {
            // Covered by another mount, or in a folder closed to us: unreachable from inside as well.
            Ok(()) | Err(Errno::ENOENT | Errno::EACCES | Errno::ENOTDIR) => {}
            Err(errno) => return Err((errno, Some(entry.point.clone()))),
        }
    }
    Ok(())
}

/// As [`seal_tree`], in one call, where the kernel has it and filters around us let it pass. All or nothing.
#[allow(unsafe_code)]
fn seal_at_once(handle: &impl AsFd) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the descriptor is borrowed and open, the path a string with its end, and the structure of the size that
    // is passed; the kernel reads both and keeps neither (mount_setattr(2)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            handle.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// All entries below the one with this number, parents before children.
fn below(entries: &[MountEntry], top: u64) -> Vec<&MountEntry> {
    let mut inside = HashSet::from([top]);
    let mut found: Vec<&MountEntry> = Vec::new();
    loop {
        let more: Vec<_> = entries.iter().filter(|e| inside.contains(&e.parent) && !inside.contains(&e.id)).collect();
        if more.is_empty() {
            return found;
        }
        inside.extend(more.iter().map(|e| e.id));
        found.extend(more);
    }
}

fn mount_id(handle: &impl AsFd) -> std::io::Result<u64> {
    let path = Path::new("/proc/self/fdinfo").join(fd_path(handle).file_name().unwrap_or_default());
    let text = read(&path)?;
    let text = String::from_utf8_lossy(&text);
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| std::io::Error::from_raw_os_error(Errno::EINVAL as i32))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_host(path, OFlags::RDONLY)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn remount_read_only(path: &Path, have: FsFlags) -> Result<(), Errno> {
    let mut flags =
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if have.contains(FsFlags::ST_NOEXEC) {
        flags |= MsFlags::MS_NOEXEC;
    }
    // Of noatime, nodiratime and relatime none is named: then the kernel keeps what there is.
    mount(NONE, path, NONE, flags, NONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let text =
            b"22 1 0:20 / / rw - ext4 /dev/a rw\n30 22 0:5 / /a\\040b\\134 rw,nosuid master:1 - tmpfs t rw\nnonsense\n\
            31 30 0:6 / /a\\040b\\134/c rw - tmpfs t rw\n32 22 0:7 / /d rw - tmpfs t rw\n";
        let entries = parse_mountinfo(text);
        assert_eq!(entries.len(), 4);
        assert_eq!(entries[1], MountEntry { id: 30, parent: 22, point: "/a b\\".into() });
        assert_eq!(below(&entries, 30).iter().map(|e| e.id).collect::<Vec<_>>(), [31]);
        assert_eq!(below(&entries, 22).iter().map(|e| e.id).collect::<Vec<_>>(), [30, 32, 31]);
        assert!(below(&entries, 32).is_empty());
    }

    #[test]
    fn the_real_list_has_a_root() {
        let entries = parse_mountinfo(&fs::read("/proc/self/mountinfo").unwrap());
        assert!(entries.iter().any(|entry| entry.point == Path::new("/")), "{entries:?}");
    }
}
