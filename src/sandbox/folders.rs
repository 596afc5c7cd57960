//! What a folder that builds write to can do, by doing it: the cache's and the build folder's rows of `doctor`.

use super::doctor::row;
use super::error::SandboxError;
use super::findings::{Finding, Outcome};
use super::rootdir::open_host;
use crate::fsutil;
use crate::process::{ProcessError, Program};
use crate::report::Interrupt;
use fs_err as fs;
use humansize::{BINARY, format_size};
use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};
use rustix::fs::{FlockOperation, OFlags, XattrFlags};
use std::io::{self, Write};
use std::os::unix::fs::{lchown, symlink};
use std::path::Path;

/// A first build takes about this much: rootfs, Spack, store, stage. Bytes.
const DISK_NEEDED: u64 = 6 << 30;

/// With less than this not even a small package can be built. Bytes.
const DISK_LEAST: u64 = 64 << 20;

/// Files and folders of a rootfs, Spack, store and stage of a first build.
const INODES_NEEDED: u64 = 300_000;

const ANOTHER: &str = "Choose another folder with --cache-dir and --build-dir.";

/// Everything about `path`; `what` is `cache` or `build-dir` and begins the ids.
pub(super) fn look(what: &str, path: &Path, interrupt: &Interrupt) -> Result<Vec<Finding>, SandboxError> {
    let mut rows = vec![space(what, path), file_system(what, path)];
    // By ourselves: tempfile's errors hide the errno.
    let dir = path.join(format!("{}doctor-{}", fsutil::TEMPORARY, std::process::id()));
    if let Err(e) = nix::unistd::mkdir(&dir, nix::sys::stat::Mode::S_IRWXU) {
        let mut row = failed(what, "write", path, &e.into(), Outcome::Fail);
        row.meaning = "nothing can be written there".into();
        rows.push(row);
        return Ok(rows);
    }
    rows.extend(operations(what, &dir, path));
    let executable = executable(what, &dir, path, interrupt);
    let _ = fsutil::remove_tree(&dir); // what could be left has the name of our temporaries
    rows.insert(2, executable?);
    Ok(rows)
}

fn failed(what: &str, operation: &str, path: &Path, error: &io::Error, outcome: Outcome) -> Finding {
    // fs_err wraps the system's error.
    let errno = error.raw_os_error().or_else(|| {
        error.get_ref().and_then(|inner| inner.source()).and_then(|e| e.downcast_ref::<io::Error>()?.raw_os_error())
    });
    let meaning = if errno.is_some() { "its file system does not do that".into() } else { error.to_string() };
    let mut row =
        row(&format!("{what}-{operation}"), format!("{} in {}", verb(operation), path.display()), outcome, meaning);
    row.errno = errno;
    row.remedy = Some(match errno.map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT) => format!("Free some space (`slurm-factory clean`). {ANOTHER}"),
        _ => ANOTHER.into(),
    });
    row
}

fn verb(operation: &str) -> &'static str {
    match operation {
        "write" => "making a folder",
        "exec" => "running a program",
        "rename" => "renaming a folder",
        "flock" => "locking a file",
        "link" => "making hard links and symlinks",
        "chmod" => "setting permissions",
        "chown" => "setting your own uid and gid",
        _ => "setting an extended attribute",
    }
}

/// Each operation that the program or Spack does, done. Extended attributes are nice to know: nothing here needs them.
fn operations(what: &str, dir: &Path, path: &Path) -> Vec<Finding> {
    type Operation = (&'static str, Outcome, fn(&Path) -> io::Result<()>);
    let operations: [Operation; 6] = [
        ("rename", Outcome::Fail, |dir| {
            fs::create_dir(dir.join("a"))?;
            fs::write(dir.join("a/file"), "x")?;
            fs::rename(dir.join("a"), dir.join("b"))
        }),
        ("flock", Outcome::Fail, |dir| {
            let file = fs::File::create(dir.join("lock"))?;
            Ok(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?)
        }),
        ("link", Outcome::Fail, |dir| {
            fs::write(dir.join("one"), "x")?;
            fs::hard_link(dir.join("one"), dir.join("two"))?;
            symlink("one", dir.join("three"))
        }),
        ("chmod", Outcome::Warn, |dir| {
            fs::write(dir.join("mode"), "x")?;
            fs::set_permissions(dir.join("mode"), std::os::unix::fs::PermissionsExt::from_mode(0o751))?;
            let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(dir.join("mode"))?) & 0o777;
            if mode == 0o751 { Ok(()) } else { Err(Errno::EOPNOTSUPP.into()) }
        }),
        ("chown", Outcome::Warn, |dir| {
            fs::write(dir.join("owner"), "x")?;
            lchown(dir.join("owner"), Some(geteuid().as_raw()), Some(getegid().as_raw()))
        }),
        ("xattr", Outcome::Ok, |dir| {
            fs::write(dir.join("attribute"), "x")?;
            Ok(rustix::fs::setxattr(dir.join("attribute"), "user.slurm-factory", b"x", XattrFlags::empty())?)
        }),
    ];
    let tried = operations.into_iter().map(|(operation, outcome, act)| match act(dir) {
        Ok(()) => {
            let tried = format!("{} in {}", verb(operation), path.display());
            row(&format!("{what}-{operation}"), tried, Outcome::Ok, "works")
        }
        Err(e) if outcome == Outcome::Ok => {
            let mut row = failed(what, operation, path, &e, outcome);
            (row.meaning, row.remedy) = ("not there, and not needed".into(), None);
            row
        }
        Err(e) => failed(what, operation, path, &e, outcome),
    });
    tried.collect()
}

fn space(what: &str, path: &Path) -> Finding {
    let id = format!("{what}-disk");
    let tried = format!("the room in {}", path.display());
    let Ok(fsutil::Room { bytes: free, inodes }) = fsutil::room(path) else {
        return row(&id, tried, Outcome::Warn, "not told by its file system");
    };
    let inodes_shown = inodes.map_or("inodes not counted".into(), |n| format!("{n} inodes"));
    let meaning = format!("{} and {inodes_shown} free", format_size(free, BINARY));
    let few = inodes.is_some_and(|n| n < INODES_NEEDED);
    let outcome = match free {
        free if free < DISK_LEAST || inodes.is_some_and(|n| n < 1000) => Outcome::Fail,
        free if free < DISK_NEEDED || few => Outcome::Warn,
        _ => Outcome::Ok,
    };
    let mut row = row(&id, tried, outcome, meaning);
    row.remedy = (outcome != Outcome::Ok).then(|| {
        format!(
            "A first build needs about {} and {INODES_NEEDED} inodes: free some space (`slurm-factory clean`), or choose \
             another --cache-dir or --build-dir.",
            format_size(DISK_NEEDED, BINARY)
        )
    });
    row
}

/// Shared ones are fine for the cache; store and stages do badly there.
fn file_system(what: &str, path: &Path) -> Finding {
    let id = format!("{what}-file-system");
    let tried = format!("the file system of {}", path.display());
    let name = fsutil::file_system(path);
    match fsutil::shared_file_system(path) {
        None => row(&id, tried, Outcome::Ok, name),
        Some(_) if what == "cache" => {
            row(&id, tried, Outcome::Ok, format!("{name}, a shared one: store and stages go to a local folder"))
        }
        Some(_) => {
            let meaning =
                format!("{name}: Spack's locks and many small files are slow or unsafe on a shared file system");
            let mut row = row(&id, tried, Outcome::Warn, meaning);
            row.remedy = Some("Give --build-dir a folder on a local disk, such as /var/tmp or /scratch.".into());
            row
        }
    }
}

/// Runs a program: a file system mounted noexec answers EACCES.
fn executable(what: &str, dir: &Path, path: &Path, interrupt: &Interrupt) -> Result<Finding, SandboxError> {
    let program = dir.join("program");
    // Closed at once: a file open for writing is ETXTBSY.
    let made = open_host(&program, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC).map_err(io::Error::from);
    let made = made
        .and_then(|mut file| file.write_all(b"#!/bin/sh\nexit 0\n"))
        .and_then(|()| fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)));
    if let Err(e) = made {
        return Ok(failed(what, "exec", path, &e, Outcome::Fail));
    }
    match Program::new(&program).output(interrupt) {
        Ok(_) => {
            Ok(row(&format!("{what}-exec"), format!("running a program in {}", path.display()), Outcome::Ok, "works"))
        }
        Err(ProcessError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(ProcessError::Start { source, .. }) => {
            let noexec = source.raw_os_error() == Some(Errno::EACCES as i32) && fsutil::mounted_noexec(path);
            let mut row = failed(what, "exec", path, &source, Outcome::Fail);
            row.meaning =
                if noexec { "its file system is mounted noexec" } else { "programs cannot run from there" }.into();
            Ok(row)
        }
        Err(e) => {
            let tried = format!("running a program in {}", path.display());
            Ok(row(&format!("{what}-exec"), tried, Outcome::Fail, e.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_can_do_all() {
        let dir = tempfile::tempdir().unwrap();
        let rows = look("build-dir", dir.path(), &Interrupt::new()).unwrap();
        let ids: Vec<_> = rows.iter().map(|row| row.id.as_str()).collect();
        let all = ["disk", "file-system", "exec", "rename", "flock", "link", "chmod", "chown", "xattr"];
        assert_eq!(ids, all.map(|name| format!("build-dir-{name}")));
        assert!(rows.iter().skip(2).all(|row| row.outcome == Outcome::Ok), "{rows:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn a_folder_that_is_not_there() {
        let rows = look("cache", Path::new("/nonexistent/x"), &Interrupt::new()).unwrap();
        let write = rows.iter().find(|row| row.id == "cache-write").unwrap();
        assert_eq!((write.outcome, write.errno), (Outcome::Fail, Some(Errno::ENOENT as i32)), "{write}");
    }
}
