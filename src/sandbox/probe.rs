//! Tries what a sandbox needs, for real, in processes made for it and thrown away.
//!
//! A sysctl says what its author meant it to say; only the kernel's answer says what happens. So every
//! question is asked by doing the thing, in the helper, and the answer is an errno. What it means is decided
//! elsewhere ([`super::findings`]), from the errno and from what explains it.

use super::helper::{clone_into, map_ids};
use super::ops::Filter;
use super::plan::{IdMap, Namespace};
use super::seccomp;
use super::wire::Failure;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// What.
    pub step: Try,
    /// The kernel's answer; none when it worked.
    pub errno: Option<i32>,
    /// What a program said that was needed for it; empty when there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub said: String,
}

impl Trial {
    /// What came of one thing.
    pub fn new(step: Try, errno: Option<i32>) -> Self {
        Self { step, errno, said: String::new() }
    }
}

/// The things that are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Try {
    /// A new namespace of this kind (with a new user namespace, the only way without privilege).
    Namespace(Namespace),
    /// Mapping the caller's uid and gid.
    MapIds,
    /// Taking the mounts from under the host's control.
    DetachMounts,
    /// A folder in memory.
    Tmpfs,
    /// Pseudo-terminals.
    Devpts,
    /// A new `/proc` in a new pid namespace.
    Proc,
    /// A new `/sys` in a new network namespace.
    Sysfs,
    /// The filter that fakes root, and that a chown then succeeds.
    FakeRoot,
    /// The filter that refuses dangerous calls.
    Deny,
    /// A user namespace in a user namespace.
    Nested,
    /// A layer over a folder, in which a folder of the lower one can be removed. Only `--writable` asks for it.
    Layer,
}

const NONE: Option<&str> = None;

/// The kinds of namespace that every sandbox has.
const NEEDED: [Namespace; 5] = [Namespace::User, Namespace::Mount, Namespace::Pid, Namespace::Ipc, Namespace::Uts];

/// Only what decides whether a sandbox works, and how: one process when it does.
pub fn quick() -> Vec<Trial> {
    let trials = attempt(&NEEDED, &mut mounts_and_filters);
    let works = trials.iter().all(|trial| trial.errno.is_none() || trial.step == Try::Proc);
    if works { trials } else { full() }
}

/// Everything, each kind of namespace by itself, so that the one that is missing is named.
pub fn full() -> Vec<Trial> {
    let mut trials = attempt(&[Namespace::User], &mut || vec![tried(Try::Nested, nested())]);
    if failed(&trials, Try::Namespace(Namespace::User)) || failed(&trials, Try::MapIds) {
        return trials;
    }
    for kind in [Namespace::Mount, Namespace::Pid, Namespace::Ipc, Namespace::Uts, Namespace::Net] {
        let answer = attempt(&[Namespace::User, kind], &mut Vec::new);
        trials.extend(answer.into_iter().filter(|trial| trial.step == Try::Namespace(kind)));
    }
    let without_pid = failed(&trials, Try::Namespace(Namespace::Pid));
    let kinds: Vec<_> = NEEDED.into_iter().filter(|kind| *kind != Namespace::Pid || !without_pid).collect();
    trials.extend(actions(attempt(&kinds, &mut mounts_and_filters)));
    let kinds = [Namespace::User, Namespace::Mount, Namespace::Net];
    trials.extend(actions(attempt(&kinds, &mut || vec![tried(Try::Sysfs, mount_at("sysfs", "/sys"))])));
    trials
}

fn failed(trials: &[Trial], step: Try) -> bool {
    trials.iter().any(|trial| trial.step == step && trial.errno.is_some())
}

fn actions(trials: Vec<Trial>) -> impl Iterator<Item = Trial> {
    trials.into_iter().filter(|trial| !matches!(trial.step, Try::Namespace(_) | Try::MapIds))
}

fn tried(step: Try, result: Result<(), Errno>) -> Trial {
    Trial::new(step, result.err().map(|errno| errno as i32))
}

/// In new namespaces: does `action` and passes on what it found. A clone that fails is charged to the last
/// kind in the list.
pub(super) fn attempt(kinds: &[Namespace], action: &mut dyn FnMut() -> Vec<Trial>) -> Vec<Trial> {
    let charged = kinds.last().copied().unwrap_or(Namespace::User);
    let Ok((ours, theirs)) = UnixStream::pair() else {
        return vec![tried(Try::Namespace(charged), Err(Errno::EMFILE))];
    };
    let mut pair = (Some(ours), Some(theirs));
    let child = clone_into(kinds, &mut || {
        drop(pair.0.take());
        let Some(mut socket) = pair.1.take() else { return 1 };
        if socket.read_exact(&mut [0; 2]).is_err() {
            return 1;
        }
        let found = serde_json::to_vec(&action()).unwrap_or_default();
        i32::from(socket.write_all(&found).is_err())
    });
    drop(pair.1.take());
    let (child, mut socket) = match (child, pair.0.take()) {
        (Ok(child), Some(socket)) => (child, socket),
        (Err(errno), _) => return vec![tried(Try::Namespace(charged), Err(errno))],
        (Ok(_), None) => return Vec::new(),
    };
    let mut trials: Vec<_> = kinds.iter().map(|kind| tried(Try::Namespace(*kind), Ok(()))).collect();
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let own = |id| [IdMap { inside: id, outside: id, count: 1 }];
    let mapped = map_ids(child, &own(uid), &own(gid));
    let errno = mapped.err().map(|failure: Failure| failure.errno);
    trials.push(Trial::new(Try::MapIds, errno));
    let mut found = Vec::new();
    if errno.is_none() && socket.write_all(b"go").is_ok() {
        let _ = socket.read_to_end(&mut found);
    }
    drop(socket);
    let _ = waitpid(child, None);
    trials.extend(serde_json::from_slice::<Vec<Trial>>(&found).unwrap_or_default());
    trials
}

fn mounts_and_filters() -> Vec<Trial> {
    let mut trials = vec![
        tried(Try::DetachMounts, mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)),
        tried(Try::Proc, mount_at("proc", "/proc")),
        // Last of the mounts: it covers the host's devices.
        tried(Try::Tmpfs, mount_at("tmpfs", "/dev")),
        tried(
            Try::Devpts,
            nix::unistd::mkdir("/dev/pts", nix::sys::stat::Mode::S_IRWXU).and_then(|()| mount_at("devpts", "/dev/pts")),
        ),
    ];
    let filter = |filter| seccomp::install(filter).map_err(|_| Errno::EINVAL);
    trials.push(tried(Try::FakeRoot, filter(Filter::FakeRoot)));
    trials.push(tried(Try::Deny, filter(Filter::Deny)));
    trials
}

fn mount_at(kind: &str, at: &str) -> Result<(), Errno> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = (kind == "devpts").then_some("newinstance,ptmxmode=0666,mode=620");
    mount(Some(kind), at, Some(kind), flags, options)
}

fn nested() -> Result<(), Errno> {
    let child = clone_into(&[Namespace::User], &mut || 0)?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        _ => Err(Errno::ECHILD),
    }
}
