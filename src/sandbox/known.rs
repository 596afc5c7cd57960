//! What probing found is kept for the next run: a probe takes as long as starting a sandbox.
//!
//! ```text
//! FOLDER/<boot id>.json      {"conditions": {...}}      one file a host and boot, of the user who runs
//! ```
//!
//! Only a plain "yes" is kept, and only under the conditions that it was given under: this boot of this kernel,
//! this program, this user, these namespaces, filters, capabilities, labels and switches. Anything else is no
//! answer, and then the host is probed. A start that fails although "yes" was kept is taken for a change that is
//! not seen here: it is forgotten and everything is tried anew ([`super::Sandbox::run`]), so that an error is the
//! one that a fresh probe gives. A file that another user wrote is not read.

use crate::fsutil;
use fs_err as fs;
use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Files of other boots and hosts are deleted when they are as old as this.
const KEPT: Duration = Duration::from_hours(30 * 24);

/// Much longer than any such file.
const MAX_BYTES: u64 = 64 << 10;

/// What [`super::findings`] explains refusals by, and where a security module says under what label we run.
const SWITCHES: [&str; 9] = [
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/user/max_mnt_namespaces",
    "/proc/sys/user/max_pid_namespaces",
    "/proc/sys/user/max_ipc_namespaces",
    "/proc/sys/user/max_uts_namespaces",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
    "/sys/fs/selinux/enforce",
    "/proc/self/attr/current",
];

/// Lines of `/proc/self/status`.
const STATUS: [&str; 5] = ["CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:", "Seccomp_filters:"];

/// The namespaces that we run in, and the root.
const PLACES: [&str; 3] = ["/proc/self/ns/user", "/proc/self/ns/mnt", "/proc/self/ns/pid"];

/// Everything on which the answer depends, as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Conditions {
    boot: String,
    kernel: String,
    uid: u32,
    gid: u32,
    /// Device, inode, size, and time of change in nanoseconds: a program that was replaced has others.
    program: [i128; 4],
    /// Device and inode of `/`, for a chroot.
    root: [u64; 2],
    places: Vec<Option<PathBuf>>,
    status: Vec<String>,
    switches: Vec<Option<String>>,
}

/// As in the file.
#[derive(Serialize, Deserialize)]
struct Kept {
    conditions: Conditions,
}

/// A place to keep an answer in, and the conditions as they are now.
#[derive(Debug, Clone)]
pub struct Known {
    file: PathBuf,
    conditions: Conditions,
}

impl Known {
    /// Reads the conditions. None where they cannot be read: then nothing can be kept.
    pub fn now(folder: &Path) -> Option<Self> {
        let boot = line("/proc/sys/kernel/random/boot_id")?;
        let program = fs::metadata("/proc/self/exe").ok()?;
        let root = fs::metadata("/").ok()?;
        let status = text("/proc/self/status")?;
        let changed = i128::from(program.ctime()) * 1_000_000_000 + i128::from(program.ctime_nsec());
        let plain = !boot.is_empty() && boot.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        let conditions = Conditions {
            kernel: nix::sys::utsname::uname().ok()?.release().to_string_lossy().into_owned(),
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            program: [program.dev().into(), program.ino().into(), program.size().into(), changed],
            root: [root.dev(), root.ino()],
            places: PLACES.map(|path| fs::read_link(path).ok()).into(),
            status: STATUS
                .iter()
                .filter_map(|key| status.lines().find(|line| line.starts_with(key)))
                .map(str::to_owned)
                .collect(),
            switches: SWITCHES.map(line).into(),
            boot,
        };
        plain.then(|| Self { file: folder.join(format!("{}.json", conditions.boot)), conditions })
    }

    /// Whether sandboxes worked under exactly these conditions.
    pub fn worked(&self) -> bool {
        let Ok(file) = fs::File::open(&self.file) else { return false };
        let mut bytes = Vec::new();
        let own = file.metadata().is_ok_and(|found| found.uid() == self.conditions.uid);
        own && file.take(MAX_BYTES).read_to_end(&mut bytes).is_ok()
            && serde_json::from_slice::<Kept>(&bytes).is_ok_and(|kept| kept.conditions == self.conditions)
    }

    /// Keeps a "yes". That it cannot be written only means that the next run probes again.
    pub fn keep(&self) {
        let Ok(json) = serde_json::to_vec(&Kept { conditions: self.conditions.clone() }) else { return };
        if fsutil::write_atomic(&self.file, &json, 0o600).is_ok() {
            sweep(fsutil::parent_of(&self.file));
        }
    }

    /// Forgets it.
    pub fn forget(&self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// The first line of a small file of the kernel's.
fn line(path: &str) -> Option<String> {
    let text = text(path)?;
    Some(text.lines().next().unwrap_or_default().trim_end_matches('\0').to_owned())
}

/// In one read: such files have no size that could be asked for.
fn text(path: &str) -> Option<String> {
    let mut buffer = [0; 4096];
    let length = fs::File::open(path).ok()?.read(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let changed = entry.metadata().and_then(|found| found.modified()).ok();
        let age = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        if age.is_some_and(|age| age > KEPT) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_yes_holds_under_its_conditions_only() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::now(dir.path()).unwrap();
        assert!(!known.worked(), "nothing was kept yet");
        known.keep();
        assert!(Known::now(dir.path()).unwrap().worked());
        let changes: [&dyn Fn(&mut Conditions); 8] = [
            &|c| c.kernel.push('x'),
            &|c| c.uid += 1,
            &|c| c.gid += 1,
            &|c| c.program[3] += 1,
            &|c| c.root[1] += 1,
            &|c| c.places[1] = None,
            &|c| c.status[0].push('1'),
            &|c| c.switches[0] = Some("0".into()),
        ];
        for change in changes {
            let mut other = known.clone();
            change(&mut other.conditions);
            assert!(!other.worked(), "{:?}", other.conditions);
        }
        known.forget();
        assert!(!known.worked());
    }

    #[test]
    fn what_is_not_ours_or_not_whole_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::now(dir.path()).unwrap();
        known.keep();
        let bytes = fs::read(&known.file).unwrap();
        fs::write(&known.file, &bytes[..bytes.len() / 2]).unwrap();
        assert!(!known.worked());
        // A folder that cannot be written is no error.
        Known { file: "/proc/no/such.json".into(), ..known }.keep();
    }

    #[test]
    fn old_files_are_deleted_by_the_next_that_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("0000.json");
        fs::write(&old, "{}").unwrap();
        let file = std::fs::File::options().write(true).open(&old).unwrap();
        file.set_modified(SystemTime::now() - KEPT * 2).unwrap();
        Known::now(dir.path()).unwrap().keep();
        assert!(!old.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
