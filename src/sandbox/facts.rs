//! What explains a refusal: read from `/proc` and `/etc`, never decided upon.
//!
//! The answers themselves come from trying ([`super::probe`]). A fact that cannot be read is `None`, and then
//! it explains nothing.

use fs_err as fs;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{User, getegid, geteuid};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What is known about this host and this process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The caller.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
    /// The caller's login name.
    pub user: Option<String>,
    /// Our own program, for profiles that name it.
    pub program: Option<PathBuf>,
    /// `user.max_user_namespaces`.
    pub max_user_namespaces: Option<u64>,
    /// `user.max_mnt_namespaces`.
    pub max_mnt_namespaces: Option<u64>,
    /// `user.max_pid_namespaces`.
    pub max_pid_namespaces: Option<u64>,
    /// `kernel.unprivileged_userns_clone`, on Debian's kernels.
    pub unprivileged_userns_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, on Ubuntu since 23.10.
    pub apparmor_restrict: Option<u64>,
    /// Whether SELinux enforces.
    pub selinux_enforcing: bool,
    /// Whether this process runs under a seccomp filter, as in a container.
    pub seccomp: bool,
    /// Whether this process has no_new_privs set.
    pub no_new_privs: bool,
    /// Whether this process may make file capabilities, which mapping uid 0 needs.
    pub cap_setfcap: bool,
    /// Whether this process is in a chroot, where user namespaces are refused.
    pub chroot: bool,
    /// The soft limit of the user's processes; none when unlimited.
    pub max_processes: Option<u64>,
    /// Where `newuidmap` is.
    pub newuidmap: Option<PathBuf>,
    /// Whether it is setuid root or has the file capability in its place.
    pub newuidmap_privileged: bool,
    /// The caller's line in `/etc/subuid`.
    pub subuid: Option<String>,
    /// The caller's line in `/etc/subgid`.
    pub subgid: Option<String>,
    /// The kernel's release.
    pub kernel: Option<String>,
}

const CAP_SETFCAP: u32 = 31;

impl Facts {
    /// Reads them.
    pub fn read() -> Self {
        let uid = geteuid();
        let user = User::from_uid(uid).ok().flatten().map(|user| user.name);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let newuidmap = ["/usr/bin/newuidmap", "/bin/newuidmap", "/usr/local/bin/newuidmap"].map(PathBuf::from);
        let newuidmap = newuidmap.into_iter().find(|path| path.exists());
        Self {
            uid: uid.as_raw(),
            gid: getegid().as_raw(),
            program: fs::read_link("/proc/self/exe").ok(),
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            max_mnt_namespaces: number("/proc/sys/user/max_mnt_namespaces"),
            max_pid_namespaces: number("/proc/sys/user/max_pid_namespaces"),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restrict: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            selinux_enforcing: number("/sys/fs/selinux/enforce") == Some(1),
            seccomp: in_status(&status, "Seccomp:") == Some("2"),
            no_new_privs: in_status(&status, "NoNewPrivs:") == Some("1"),
            cap_setfcap: in_status(&status, "CapEff:")
                .and_then(|hex| u64::from_str_radix(hex, 16).ok())
                .is_some_and(|caps| caps >> CAP_SETFCAP & 1 == 1),
            chroot: in_chroot(),
            max_processes: getrlimit(Resource::RLIMIT_NPROC)
                .ok()
                .map(|(soft, _)| soft)
                .filter(|soft| *soft != nix::libc::RLIM_INFINITY),
            newuidmap_privileged: newuidmap.as_deref().is_some_and(privileged),
            newuidmap,
            subuid: sub_ids("/etc/subuid", user.as_deref(), uid.as_raw()),
            subgid: sub_ids("/etc/subgid", user.as_deref(), uid.as_raw()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned()),
            user,
        }
    }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn in_status<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}

/// The first process's root is the machine's (or the container's). Who may not look there cannot tell by it,
/// and then the mount that `/` is on tells: a chroot into a folder has none.
fn in_chroot() -> bool {
    let id = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    match (id("/proc/1/root/"), id("/")) {
        (Ok(first), Ok(own)) => first != own,
        _ => fs::read("/proc/self/mountinfo").is_ok_and(|text| {
            let mounts = super::mounts::parse_mountinfo(&text);
            !mounts.is_empty() && !mounts.iter().any(|mount| mount.point == Path::new("/"))
        }),
    }
}

fn privileged(path: &Path) -> bool {
    let setuid = fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o4000 != 0 && found.uid() == 0);
    // The value's form does not matter: the distributions give no other capability to this program.
    let mut value = [0_u8; 64];
    setuid || rustix::fs::getxattr(path, "security.capability", &mut value).is_ok()
}

fn sub_ids(path: &str, user: Option<&str>, uid: u32) -> Option<String> {
    line_of(&fs::read_to_string(path).ok()?, user, uid)
}

/// `subuid(5)`: `name or uid:first:count`.
fn line_of(text: &str, user: Option<&str>, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let of_caller = |line: &&str| line.split(':').next().is_some_and(|who| who == uid || Some(who) == user);
    text.lines().find(of_caller).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_ids_are_found_by_name_and_by_number() {
        let text = "other:1:2\nann:100000:65536\n1234:300000:65536\n";
        assert_eq!(line_of(text, Some("ann"), 7).as_deref(), Some("ann:100000:65536"));
        assert_eq!(line_of(text, Some("bob"), 1234).as_deref(), Some("1234:300000:65536"));
        assert_eq!(line_of(text, Some("an"), 30), None);
    }

    #[test]
    fn this_host_can_be_read() {
        let facts = Facts::read();
        assert!(facts.kernel.is_some() && facts.program.is_some(), "{facts:?}");
    }
}
