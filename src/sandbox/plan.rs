//! From what is wanted to what is done: `(Spec, Host) -> Plan`. Pure; nothing is looked at and nothing needs
//! privilege, so `shell --print` shows exactly what the helper will apply.
//!
//! The order follows from the kernel's rules (`mount_namespaces(7)`, `user_namespaces(7)`):
//!
//! ```text
//! namespaces, id maps        a helper outside writes the maps, the first process inside waits for that
//! detach, root               what is mounted from here on stays here
//! /dev /proc /sys tmpfs      while the host's /proc and /dev are still at hand
//! files, aliases, mounts     mount points are made in the image while it can still be written ...
//! seal /                     ... and then it cannot
//! pivot, chdir               the host is gone
//! no_new_privs, capabilities, landlock, seccomp   last: the filter fakes capset and refuses mounts
//! ```

use super::ids::Ids;
use super::ops::{Filter, Op};
use super::spec::{Access, BUILD_ID_FOR_ROOT, Confinement, Content, FILES_INSIDE, Identity, Network, Spec};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What is known of the caller and the machine when planning. Made by probing, or by hand in tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The caller's uid.
    pub uid: u32,
    /// The caller's gid.
    pub gid: u32,
    /// Whether a new `/proc` can be mounted. If not, the host's is shown and processes are not kept apart.
    pub own_proc: bool,
    /// Which ids are mapped.
    pub ids: Ids,
}

/// A kind of namespace (`namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Namespace {
    /// Ids and capabilities.
    User,
    /// Mounts.
    Mount,
    /// Processes: when its first one ends, the kernel kills the rest.
    Pid,
    /// System V IPC and POSIX queues.
    Ipc,
    /// The host name.
    Uts,
    /// Network.
    Net,
}

impl Namespace {
    /// The word used in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mount",
            Self::Pid => "pid",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Net => "net",
        }
    }
}

/// Ids inside, and what they are outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// The first, as seen inside.
    pub inside: u32,
    /// The first, on the host: the caller's own, which needs no privilege, or subordinate ones.
    pub outside: u32,
    /// How many, one after the other.
    pub count: u32,
}

/// Everything that will be done for one sandbox, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Made together, in one `clone(2)`.
    pub namespaces: Vec<Namespace>,
    /// `/proc/PID/uid_map`.
    pub uids: Vec<IdMap>,
    /// `/proc/PID/gid_map`; with one id after `deny` to `setgroups`.
    pub gids: Vec<IdMap>,
    /// Applied by the first process inside.
    pub ops: Vec<Op>,
    /// The command's whole environment.
    #[serde(with = "super::text::pairs")]
    pub env: Vec<(OsString, OsString)>,
    /// From TERM to KILL, in milliseconds.
    pub grace_ms: u64,
}

impl Plan {
    /// Whether the sandbox has processes of its own.
    pub fn own_pids(&self) -> bool {
        self.namespaces.contains(&Namespace::Pid)
    }
}

impl fmt::Display for Plan {
    /// One operation a line. Of the environment only the names are shown: proxies hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.namespaces.iter().map(|namespace| namespace.name()).collect();
        writeln!(f, "namespaces {}", names.join(" "))?;
        for (what, maps) in [("uid", &self.uids), ("gid", &self.gids)] {
            for map in maps {
                match map.count {
                    1 => writeln!(f, "map {what} {} -> {} on the host", map.inside, map.outside)?,
                    n => writeln!(
                        f,
                        "map {what} {} -> {} on the host, {n} of them (newuidmap)",
                        map.inside, map.outside
                    )?,
                }
            }
        }
        for op in &self.ops {
            writeln!(f, "{op}")?;
        }
        let names: Vec<_> = self.env.iter().map(|(name, _)| name.to_string_lossy()).collect();
        writeln!(f, "environment {}", names.join(" "))
    }
}

/// A [`Spec`] that no host can make true.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A path that must be absolute is not, or climbs with `..`.
    #[error("{what} `{}` must be an absolute path without `..`", path.display())]
    NotAbsolute {
        /// Which field.
        what: &'static str,
        /// What it held.
        path: PathBuf,
    },
    /// A mount over the root or over one of the kernel's file systems.
    #[error("nothing can be mounted at `{}` in the sandbox: it makes /, /proc, /sys and /dev itself", path.display())]
    Reserved {
        /// The target.
        path: PathBuf,
    },
    /// A variable whose name is empty or holds `=`, or which holds a NUL.
    #[error("the environment variable {name:?} cannot be passed to a program")]
    Variable {
        /// Its name.
        name: OsString,
    },
    /// Not a host name.
    #[error("`{name}` is no host name: 1 to 63 letters, digits, `-` or `.`")]
    Hostname {
        /// What was given.
        name: String,
    },
    /// A user's name or home that would break `/etc/passwd`.
    #[error("`{name}` cannot stand in /etc/passwd")]
    User {
        /// What was given.
        name: String,
    },
    /// The host's own root as the rootfs: nothing would be kept apart.
    #[error("the host's own / cannot be the rootfs")]
    OwnRoot,
    /// No processors at all.
    #[error("a sandbox needs at least one processor")]
    NoCpus,
}

/// What Docker leaves to its containers: enough for package scripts, nothing that reconfigures the kernel.
const KEPT_FOR_ROOT: [&str; 13] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Parts of `/proc` that a caller with uid 0 could write, because the kernel compares uids there. Some of
/// `/proc/sys` can be written by whoever is root in a namespace.
const PROTECTED: [&str; 5] = ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"];

/// What tells of the machine or of its user's keys and is of no use to a build.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const DEV_SIZE: u64 = 64 << 10;
const FILES_SIZE: u64 = 16 << 20;

/// Makes the list. Fails only on a [`Spec`] that makes no sense on any host.
pub fn plan(spec: &Spec, host: &Host) -> Result<Plan, SpecError> {
    check(spec)?;
    let inside = |outside: u32| match spec.identity {
        Identity::FakeRoot => 0,
        Identity::Builder if host.uid == 0 => BUILD_ID_FOR_ROOT,
        Identity::Builder => outside,
    };
    let uid = IdMap { inside: inside(host.uid), outside: host.uid, count: 1 };
    let gid = IdMap { inside: inside(host.gid), outside: host.gid, count: 1 };

    let mut namespaces = vec![Namespace::User, Namespace::Mount];
    if host.own_proc {
        namespaces.push(Namespace::Pid);
    }
    namespaces.extend([Namespace::Ipc, Namespace::Uts]);
    if spec.network == Network::None {
        namespaces.push(Namespace::Net);
    }

    let rootfs = spec.rootfs.clone();
    let root = match &spec.layer {
        None => Op::Root { rootfs },
        Some(layer) => Op::Layer { rootfs, layer: layer.clone() },
    };
    let mut ops = vec![Op::DetachMounts, root];
    devices(spec, &mut ops);
    ops.push(if host.own_proc { Op::Proc } else { Op::HostProc });
    ops.push(Op::Sys { own: spec.network == Network::None });
    ops.extend(PROTECTED.map(|target| Op::Protect { target: target.into() }));
    ops.extend(MASKED.map(|target| Op::Mask { target: target.into() }));
    let mounted_over = |target: &Path| spec.mounts.iter().any(|mount| mount.target == target);
    for tmpfs in spec.tmpfs.iter().filter(|tmpfs| !mounted_over(&tmpfs.target)) {
        ops.push(Op::Tmpfs { target: tmpfs.target.clone(), size: tmpfs.size, mode: tmpfs.mode });
    }
    files(spec, uid, gid, &mut ops);
    for mount in &spec.mounts {
        let (source, target) = (mount.source.clone(), mount.target.clone());
        ops.push(Op::Bind { source, target, access: mount.access });
    }
    if spec.rootfs_access == Access::ReadOnly && spec.layer.is_none() {
        ops.push(Op::Seal { target: "/".into() });
    }
    if spec.network == Network::None {
        ops.push(Op::Loopback);
    }
    ops.extend([Op::Hostname { name: spec.hostname.clone() }, Op::Pivot, Op::Chdir { dir: spec.cwd.clone() }]);
    if let Some(count) = spec.cpus {
        ops.push(Op::Cpus { count });
    }
    let keep = match spec.identity {
        Identity::FakeRoot => KEPT_FOR_ROOT.map(String::from).to_vec(),
        Identity::Builder => Vec::new(),
    };
    ops.extend([Op::NoNewPrivs, Op::Capabilities { keep }]);
    if spec.confinement == Confinement::Strict {
        ops.extend([Op::Landlock { writable: writable(spec) }, Op::Seccomp { filter: Filter::Deny }]);
    }
    // With a range of ids root gives files away for real.
    if spec.identity == Identity::FakeRoot && host.ids == Ids::Single {
        ops.push(Op::Seccomp { filter: Filter::FakeRoot });
    }
    let (uids, gids) = host.ids.maps(uid, gid);
    Ok(Plan { namespaces, uids, gids, ops, env: spec.env.clone(), grace_ms: spec.grace_ms })
}

/// What can be written inside, as the mounts have it; `/dev` and `/proc` hold what a process writes of its own.
fn writable(spec: &Spec) -> Vec<PathBuf> {
    if spec.rootfs_access == Access::ReadWrite || spec.layer.is_some() {
        return vec!["/".into()];
    }
    let mounts = spec.mounts.iter().filter(|mount| mount.access == Access::ReadWrite).map(|mount| &mount.target);
    let mut paths: Vec<PathBuf> = ["/dev", "/proc"].map(PathBuf::from).into();
    for path in spec.tmpfs.iter().map(|tmpfs| &tmpfs.target).chain(mounts) {
        if !paths.contains(path) {
            paths.push(path.clone());
        }
    }
    paths
}

fn devices(spec: &Spec, ops: &mut Vec<Op>) {
    ops.push(Op::Tmpfs { target: "/dev".into(), size: Some(DEV_SIZE), mode: 0o755 });
    ops.extend(DEVICES.map(|name| Op::Device { name: name.into() }));
    ops.push(Op::Devpts);
    for (target, to) in [
        ("/dev/ptmx", "pts/ptmx"),
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        ops.push(Op::Symlink { target: target.into(), to: to.into() });
    }
    ops.push(Op::Tmpfs { target: "/dev/shm".into(), size: Some(spec.shm_size), mode: 0o1777 });
}

/// The files are written into a folder in memory of their own, which is then sealed: what is bound from it
/// is read-only too, because a bind mount takes over the flags of what it shows.
fn files(spec: &Spec, uid: IdMap, gid: IdMap, ops: &mut Vec<Op>) {
    let mut overlays: Vec<(PathBuf, Content)> = Vec::new();
    if spec.identity == Identity::Builder {
        let (name, home) = (&spec.user.name, spec.user.home.display());
        let (uid, gid) = (uid.inside, gid.inside);
        let passwd = format!(
            "root:x:0:0:root:/root:/bin/sh\n{name}:x:{uid}:{gid}:{name}:{home}:/bin/sh\n\
             nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        );
        let group = format!("root:x:0:\n{name}:x:{gid}:\nnogroup:x:65534:\n");
        overlays.push(("/etc/passwd".into(), Content::Text(passwd)));
        overlays.push(("/etc/group".into(), Content::Text(group)));
    }
    overlays.extend(spec.overlays.iter().map(|overlay| (overlay.target.clone(), overlay.content.clone())));
    if overlays.is_empty() {
        return;
    }
    ops.push(Op::Tmpfs { target: FILES_INSIDE.into(), size: Some(FILES_SIZE), mode: 0o755 });
    let mut aliases = Vec::new();
    for (index, (target, content)) in overlays.into_iter().enumerate() {
        if target.starts_with(FILES_INSIDE) {
            ops.push(Op::File { target, content });
            continue;
        }
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let source = Path::new(FILES_INSIDE).join(format!("{index}-{name}"));
        ops.push(Op::File { target: source.clone(), content });
        aliases.push(Op::Alias { source, target });
    }
    ops.push(Op::Seal { target: FILES_INSIDE.into() });
    ops.extend(aliases);
}

fn check(spec: &Spec) -> Result<(), SpecError> {
    absolute("rootfs", &spec.rootfs)?;
    if spec.rootfs == Path::new("/") {
        return Err(SpecError::OwnRoot);
    }
    absolute("working folder", &spec.cwd)?;
    absolute("home", &spec.user.home)?;
    for mount in &spec.mounts {
        absolute("mount source", &mount.source)?;
        target("mount target", &mount.target)?;
    }
    for tmpfs in &spec.tmpfs {
        target("tmpfs", &tmpfs.target)?;
    }
    for overlay in &spec.overlays {
        target("file", &overlay.target)?;
        if let Content::HostFile { path, .. } = &overlay.content {
            absolute("host file", path)?;
        }
    }
    for (name, value) in &spec.env {
        let bad = name.is_empty() || name.as_bytes().contains(&b'=');
        if bad || name.as_bytes().contains(&0) || value.as_bytes().contains(&0) {
            return Err(SpecError::Variable { name: name.clone() });
        }
    }
    let host = &spec.hostname;
    let of_host = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if host.is_empty() || host.len() > 63 || !host.chars().all(of_host) {
        return Err(SpecError::Hostname { name: host.clone() });
    }
    for text in [spec.user.name.as_str(), &spec.user.home.to_string_lossy()] {
        if text.is_empty() || text.contains([':', '\n', '\0']) {
            return Err(SpecError::User { name: text.into() });
        }
    }
    if spec.cpus == Some(0) { Err(SpecError::NoCpus) } else { Ok(()) }
}

fn absolute(what: &'static str, path: &Path) -> Result<(), SpecError> {
    let plain = path.is_absolute()
        && !path.as_os_str().as_bytes().contains(&0)
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if plain { Ok(()) } else { Err(SpecError::NotAbsolute { what, path: path.to_owned() }) }
}

fn target(what: &'static str, path: &Path) -> Result<(), SpecError> {
    absolute(what, path)?;
    let reserved = path == Path::new("/") || ["/proc", "/sys", "/dev"].iter().any(|top| path.starts_with(top));
    if reserved { Err(SpecError::Reserved { path: path.to_owned() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::ids::SubIds;
    use super::super::spec::Layer;
    use super::*;

    const USER: Host = Host { uid: 1234, gid: 1235, own_proc: true, ids: Ids::Single };
    const ROOT: Host = Host { uid: 0, gid: 0, own_proc: true, ids: Ids::Single };

    fn lines(spec: &Spec, host: &Host) -> String {
        plan(spec, host).unwrap().to_string()
    }

    fn position(text: &str, line: &str) -> usize {
        text.lines().position(|have| have.starts_with(line)).unwrap_or_else(|| panic!("no `{line}` in\n{text}"))
    }

    #[test]
    fn the_build_plan_in_words() {
        let spec = Spec::build("/cache/rootfs").mount("/scratch/store", "/opt/store", Access::ReadWrite).mount(
            "/cache/source",
            "/cache/source",
            Access::ReadOnly,
        );
        assert_eq!(
            lines(&spec, &USER),
            "\
namespaces user mount pid ipc uts
map uid 1234 -> 1234 on the host
map gid 1235 -> 1235 on the host
mount --make-rslave /
root /cache/rootfs
tmpfs /dev mode=755 size=65536
device /dev/null
device /dev/zero
device /dev/full
device /dev/random
device /dev/urandom
device /dev/tty
devpts /dev/pts
symlink /dev/ptmx -> pts/ptmx
symlink /dev/fd -> /proc/self/fd
symlink /dev/stdin -> /proc/self/fd/0
symlink /dev/stdout -> /proc/self/fd/1
symlink /dev/stderr -> /proc/self/fd/2
tmpfs /dev/shm mode=1777 size=2147483648
proc /proc
bind /sys read-only
protect /proc/sys read-only
protect /proc/sysrq-trigger read-only
protect /proc/irq read-only
protect /proc/bus read-only
protect /proc/fs read-only
mask /proc/acpi
mask /proc/kcore
mask /proc/keys
mask /proc/latency_stats
mask /proc/scsi
mask /proc/sched_debug
mask /proc/timer_list
mask /sys/firmware
mask /sys/devices/virtual/powercap
tmpfs /tmp mode=1777
tmpfs /run mode=755
tmpfs /var/tmp mode=1777
tmpfs /tmp/home mode=755
tmpfs /run/slurm-factory mode=755 size=16777216
file /run/slurm-factory/0-passwd (135 bytes)
file /run/slurm-factory/1-group (43 bytes)
remount /run/slurm-factory read-only
alias /run/slurm-factory/0-passwd at /etc/passwd
alias /run/slurm-factory/1-group at /etc/group
bind /scratch/store at /opt/store read-write
bind /cache/source at /cache/source read-only
remount / read-only
hostname slurm-factory
pivot_root
chdir /
no_new_privs
drop all capabilities
landlock: only /dev /proc /tmp /run /var/tmp /tmp/home /opt/store can be written
seccomp: dangerous calls are refused
environment PATH HOME USER LOGNAME LC_ALL TMPDIR
"
        );
    }

    #[test]
    fn prepare_is_uid_0_and_keeps_the_images_users() {
        let text = lines(&Spec::prepare("/r"), &USER);
        assert!(text.contains("map uid 0 -> 1234 on the host\nmap gid 0 -> 1235 on the host\n"), "{text}");
        assert!(!text.contains("/etc/passwd") && !text.contains("remount / "), "{text}");
        assert!(position(&text, "drop all capabilities but CAP_CHOWN") < position(&text, "seccomp: calls of root"));
    }

    #[test]
    fn a_caller_with_uid_0_builds_as_1000_and_cannot_write_the_kernels_switches() {
        let text = lines(&Spec::build("/r"), &ROOT);
        assert!(text.contains("map uid 1000 -> 0 on the host"), "{text}");
        assert!(text.contains("protect /proc/sys read-only"), "{text}");
        assert!(lines(&Spec::prepare("/r"), &ROOT).contains("map uid 0 -> 0 on the host"));
    }

    #[test]
    fn without_its_own_proc_there_are_no_own_pids() {
        let text = lines(&Spec::build("/r"), &Host { own_proc: false, ..USER });
        assert!(text.starts_with("namespaces user mount ipc uts\n"), "{text}");
        assert!(text.contains("bind /proc (the host's)"), "{text}");
    }

    #[test]
    fn with_a_layer_the_rootfs_is_not_sealed_and_can_be_written() {
        let mut spec = Spec::build("/r");
        spec.layer = Some(Layer::Overlay { upper: Some("/u".into()), size: None });
        let text = lines(&spec, &USER);
        assert!(text.contains("root /r, with what is written in an overlay, /u\n"), "{text}");
        assert!(!text.contains("remount / read-only"), "{text}");
        assert!(text.contains("landlock: only / can be written"), "{text}");
    }

    #[test]
    fn with_a_range_nothing_is_faked() {
        let part = SubIds { first: 100_000, count: 65_536 };
        let host = Host { ids: Ids::Range { uids: part, gids: part }, ..USER };
        let text = lines(&Spec::prepare("/r"), &host);
        assert!(
            text.contains("map uid 0 -> 1234 on the host\nmap uid 1 -> 100000 on the host, 65536 of them"),
            "{text}"
        );
        assert!(!text.contains("calls of root are faked") && text.contains("drop all capabilities but"), "{text}");
    }

    #[test]
    fn no_network_means_a_namespace_with_loopback() {
        let mut spec = Spec::build("/r");
        spec.network = Network::None;
        let text = lines(&spec, &USER);
        assert!(text.starts_with("namespaces user mount pid ipc uts net\n"), "{text}");
        assert!(position(&text, "loopback up") < position(&text, "pivot_root"));
        assert!(text.contains("sysfs /sys read-only"));
    }

    #[test]
    fn a_mount_replaces_the_tmpfs_at_its_place() {
        let text = lines(&Spec::build("/r").mount("/big", "/tmp", Access::ReadWrite), &USER);
        assert!(!text.contains("tmpfs /tmp mode"), "{text}");
        assert!(text.contains("bind /big at /tmp read-write"));
    }

    #[test]
    fn overlays_are_sealed_before_they_are_shown() {
        let text = lines(&Spec::prepare("/r").host_names().ca_bundle(Path::new("/etc/ssl/ca.crt")), &USER);
        let seal = position(&text, "remount /run/slurm-factory");
        assert!(
            position(&text, "file /run/slurm-factory/ca-certificates.crt (copy of the host's /etc/ssl/ca.crt)") < seal
        );
        assert!(seal < position(&text, "alias /run/slurm-factory/0-resolv.conf at /etc/resolv.conf"));
        assert!(text.contains("SSL_CERT_FILE"), "{text}");
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let with = |change: &dyn Fn(&mut Spec)| {
            let mut spec = Spec::build("/r");
            change(&mut spec);
            plan(&spec, &USER).unwrap_err().to_string()
        };
        for (error, part) in [
            (with(&|s| s.rootfs = "r".into()), "rootfs `r` must be an absolute path"),
            (with(&|s| s.rootfs = "/".into()), "own / cannot be the rootfs"),
            (with(&|s| s.cwd = "/a/../b".into()), "working folder `/a/../b`"),
            (with(&|s| *s = s.clone().mount("/x", "/", Access::ReadOnly)), "mounted at `/`"),
            (with(&|s| *s = s.clone().mount("/x", "/proc/x", Access::ReadOnly)), "mounted at `/proc/x`"),
            (with(&|s| *s = s.clone().mount("x", "/x", Access::ReadOnly)), "mount source `x`"),
            (with(&|s| s.env.push(("A=B".into(), "".into()))), "\"A=B\""),
            (with(&|s| s.env.push(("A".into(), "a\0b".into()))), "\"A\""),
            (with(&|s| s.hostname = "a b".into()), "`a b` is no host name"),
            (with(&|s| s.user.name = "a:b".into()), "/etc/passwd"),
            (with(&|s| s.cpus = Some(0)), "at least one processor"),
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_plan_survives_the_way_to_the_helper() {
        let plan = plan(&Spec::prepare("/r").host_names(), &USER).unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    }
}
