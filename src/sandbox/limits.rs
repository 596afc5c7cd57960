//! What a sandbox may use of the machine, and who sees to it.
//!
//! | limit | enforced by |
//! |---|---|
//! | processors | affinity (`sched_setaffinity(2)`), set inside |
//! | memory | a control group of our own; else a scope of the user's systemd; else, for each process, `RLIMIT_DATA` |
//! | disk | looking at the folders that are written ([`super::quota`]); `size=` of the folders in memory |
//! | nice | `setpriority(2)` |
//!
//! All are put on the helper before it is told what to do, so that everything it starts has them. Which way memory is
//! limited is found out by doing it with a helper that does nothing. `RLIMIT_DATA` and not `RLIMIT_AS`: compilers and
//! Python reserve addresses that they never touch (`getrlimit(2)`).

use super::cgroup::{self, Group, Parent};
use super::error::SandboxError;
use super::quota::Quota;
use super::run::{Exit, Io};
use super::spec::Spec;
use super::{podman, run};
use crate::report::Interrupt;
use humansize::{BINARY, format_size};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;

/// Less than this holds not even Spack's own folders; rather a unit was forgotten. In bytes.
pub const LEAST_DISK: u64 = 64 << 20;

/// Less than this and not even the sandbox's own first process is sure to live, in bytes.
pub const LEAST_MEMORY: u64 = 64 << 20;

/// What programs say when there is no more memory for them.
const SAID: [&str; 6] =
    ["Cannot allocate memory", "memory exhausted", "out of memory", "Out of memory", "MemoryError", "std::bad_alloc"];

/// What a sandbox may use at the most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Processors; all that the caller may use when not said.
    pub cpus: Option<usize>,
    /// Memory in bytes, at least [`LEAST_MEMORY`].
    pub memory: Option<u64>,
    /// What is written to folders of the host, in bytes, over all sandboxes of one [`super::Sandbox`].
    pub disk: Option<u64>,
    /// How much processor time is left to others, 0 to 19 (`nice(1)`).
    pub nice: u8,
}

/// How memory is limited.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// By groups of our own below this one.
    Group(Parent),
    /// By scopes that the user's systemd makes.
    Systemd,
    /// For each process by itself.
    PerProcess {
        /// Why the other two are not to be had.
        why: String,
    },
}

impl Way {
    /// Tries them with a process that does nothing.
    pub fn find(limit: u64, interrupt: &Interrupt) -> Result<Self, SandboxError> {
        let idle = run::idle()?;
        let mut why = match Parent::find(limit, idle.pid()) {
            Ok(parent) => return Ok(Self::Group(parent)),
            Err(reasons) => reasons,
        };
        let scope = cgroup::systemd_scope(&[idle.pid()], limit, interrupt);
        interrupt.check()?;
        match scope {
            Ok(_) => Ok(Self::Systemd),
            Err(reason) => {
                why.push(reason);
                why.dedup();
                Ok(Self::PerProcess { why: why.join("; ") })
            }
        }
    }

    pub fn describe(&self) -> String {
        match self {
            Self::Group(parent) => format!("{} group below {}", parent.version.name(), parent.dir.display()),
            Self::Systemd => "a scope of your systemd".into(),
            Self::PerProcess { .. } => "for each process by itself, RLIMIT_DATA".into(),
        }
    }
}

/// Limits that hold for all sandboxes of one [`super::Sandbox`], and how.
#[derive(Debug)]
pub(super) struct Limited {
    limits: Limits,
    memory: Option<(u64, Way)>,
    quota: Option<Quota>,
}

impl Limited {
    /// Finds out how. With podman only what passes through a container's start is possible.
    pub fn new(limits: Limits, podman: Option<&podman::Podman>, interrupt: &Interrupt) -> Result<Self, SandboxError> {
        let way = |limit| match podman {
            Some(podman) if !podman.keeps_groups() => {
                Ok(Way::PerProcess { why: "podman makes groups of its own here".into() })
            }
            Some(_) => match Way::find(limit, interrupt)? {
                Way::Systemd => Ok(Way::PerProcess { why: "podman cannot be put into a scope".into() }),
                way => Ok(way),
            },
            None => Way::find(limit, interrupt),
        };
        let memory = match limits.memory {
            Some(limit) => Some((limit, way(limit)?)),
            None => None,
        };
        Ok(Self { memory, quota: limits.disk.map(Quota::new), limits })
    }

    /// What they are.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Each limit and who sees to it.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(cpus) = self.limits.cpus {
            lines.push(format!("{cpus} processors (affinity)"));
        }
        if let Some((limit, way)) = &self.memory {
            // The reasons of each way fill lines; they are a row of doctor's.
            let why = match way {
                Way::PerProcess { .. } => "; not for all together, `slurm-factory doctor` says why",
                _ => "",
            };
            lines.push(format!("memory {} ({}{why})", format_size(*limit, BINARY), way.describe()));
        }
        if let Some(limit) = self.limits.disk {
            lines.push(format!("{} written (looked at every second)", format_size(limit, BINARY)));
        }
        if self.limits.nice > 0 {
            lines.push(format!("nice {}", self.limits.nice));
        }
        lines
    }

    /// Runs a command in a sandbox by `start`, within the limits.
    pub fn run(
        &self,
        spec: &Spec,
        io: Io<'_>,
        interrupt: &Interrupt,
        start: impl FnOnce(&Spec, Io<'_>, &Interrupt, &Enter<'_>) -> Result<Exit, SandboxError>,
    ) -> Result<Exit, SandboxError> {
        let mut spec = spec.clone();
        spec.cpus = match (spec.cpus, self.limits.cpus) {
            (Some(own), Some(limit)) => Some(own.min(limit)),
            (own, limit) => own.or(limit),
        };
        for tmpfs in &mut spec.tmpfs {
            tmpfs.size = tmpfs.size.or(self.limits.disk);
        }
        let enter = self.enter(interrupt)?;
        let short = AtomicBool::new(false);
        let ended =
            self.watched(&spec, interrupt, |interrupt| listening(io, &short, |io| start(&spec, io, interrupt, &enter)));
        let failed = !ended.as_ref().is_ok_and(Exit::success);
        let interrupted = matches!(ended, Err(SandboxError::Interrupted(_) | SandboxError::DiskQuota { .. }));
        match &self.memory {
            Some((limit, way)) if failed && !interrupted => {
                let killed = enter.oom_kills();
                if killed == 0 && !(matches!(way, Way::PerProcess { .. }) && short.load(Ordering::Relaxed)) {
                    return ended;
                }
                Err(SandboxError::OutOfMemory { limit: *limit, how: way.describe(), killed })
            }
            _ => ended,
        }
    }

    fn enter<'a>(&self, interrupt: &'a Interrupt) -> Result<Enter<'a>, SandboxError> {
        let failed = |source: io::Error| SandboxError::Limit { what: "memory", source };
        let memory = match &self.memory {
            None => Memory::Unlimited,
            Some((limit, Way::Group(parent))) => Memory::Group(Group::make(parent, *limit).map_err(failed)?),
            Some((limit, Way::Systemd)) => Memory::Scope { idle: run::idle()?, limit: *limit, dir: Mutex::default() },
            Some((limit, Way::PerProcess { .. })) => Memory::PerProcess(*limit),
        };
        Ok(Enter { memory, nice: self.limits.nice, interrupt })
    }

    /// Ends what runs when it has written too much.
    fn watched(
        &self,
        spec: &Spec,
        interrupt: &Interrupt,
        run: impl FnOnce(&Interrupt) -> Result<Exit, SandboxError>,
    ) -> Result<Exit, SandboxError> {
        let Some(quota) = &self.quota else { return run(interrupt) };
        let folders = Quota::written_by(spec);
        let too_much = |written| SandboxError::DiskQuota { limit: quota.limit(), written, folders: folders.clone() };
        let written = quota.look(&folders);
        if written > quota.limit() {
            return Err(too_much(written));
        }
        // A token of its own: to be over the limit is no signal to the program.
        let own = Interrupt::new();
        let to_own = own.clone();
        let guard = interrupt.on_signal(move |signal| to_own.set(signal));
        let exceeded = AtomicU64::new(0);
        let (tell, ended) = channel();
        let result = std::thread::scope(|scope| {
            let (own, exceeded, folders) = (&own, &exceeded, &folders);
            scope.spawn(move || {
                quota.watch(folders, &ended, |written| {
                    exceeded.store(written, Ordering::SeqCst);
                    own.set(Signal::SIGTERM as i32);
                });
            });
            let result = run(own);
            drop(tell);
            result
        });
        drop(guard);
        interrupt.check()?;
        match exceeded.into_inner() {
            0 => {}
            written => return Err(too_much(written)),
        }
        // Between the last look and the end it may have become too much.
        match quota.look(&folders) {
            written if result.is_ok() && written > quota.limit() => Err(too_much(written)),
            _ => result,
        }
    }
}

/// Looks for the words of programs that got no memory in what is printed.
fn listening(
    io: Io<'_>,
    short: &AtomicBool,
    run: impl FnOnce(Io<'_>) -> Result<Exit, SandboxError>,
) -> Result<Exit, SandboxError> {
    let heard = |text: &str| {
        if SAID.iter().any(|said| text.contains(said)) {
            short.store(true, Ordering::Relaxed);
        }
    };
    match io {
        Io::Lines(lines) => run(Io::Lines(&mut |line| {
            heard(line);
            lines(line);
        })),
        Io::Capture => {
            let exit = run(Io::Capture)?;
            heard(&String::from_utf8_lossy(&exit.stdout));
            heard(&String::from_utf8_lossy(&exit.stderr));
            Ok(exit)
        }
        other => run(other),
    }
}

/// Puts the limits on a process that waits to be told what to do.
pub(super) struct Enter<'a> {
    memory: Memory,
    nice: u8,
    interrupt: &'a Interrupt,
}

enum Memory {
    Unlimited,
    Group(Group),
    /// The idle one keeps the scope, and so its counters, when everything else in it is gone.
    Scope {
        idle: run::Idle,
        limit: u64,
        dir: Mutex<Option<PathBuf>>,
    },
    PerProcess(u64),
}

impl Enter<'_> {
    /// No limits at all.
    pub fn freely(interrupt: &Interrupt) -> Enter<'_> {
        Enter { memory: Memory::Unlimited, nice: 0, interrupt }
    }

    /// Whether there are none.
    pub fn are_none(&self) -> bool {
        matches!(self.memory, Memory::Unlimited) && self.nice == 0
    }

    /// Puts them on.
    pub fn put_on(&self, pid: Pid) -> Result<(), SandboxError> {
        let failed = |what| move |source: io::Error| SandboxError::Limit { what, source };
        let of_rustix = rustix::process::Pid::from_raw(pid.as_raw());
        match &self.memory {
            Memory::Unlimited => {}
            Memory::Group(group) => group.add(pid).map_err(failed("memory"))?,
            Memory::Scope { idle, limit, dir } => {
                let made = cgroup::systemd_scope(&[idle.pid(), pid], *limit, self.interrupt);
                let made = made.map_err(|text| failed("memory")(io::Error::other(text)))?;
                *dir.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
            }
            Memory::PerProcess(limit) => {
                let limit = rustix::process::Rlimit { current: Some(*limit), maximum: Some(*limit) };
                let set = rustix::process::prlimit(of_rustix, rustix::process::Resource::Data, limit);
                set.map_err(|e| failed("memory")(e.into()))?;
            }
        }
        if self.nice > 0 {
            // Added to ours, as nice(1) does: to take from it needs privilege.
            let own = rustix::process::getpriority_process(None).unwrap_or(0);
            let set = rustix::process::setpriority_process(of_rustix, (own + i32::from(self.nice)).min(19));
            set.map_err(|e| failed("nice")(e.into()))?;
        }
        Ok(())
    }

    /// For podman, which starts before it can be moved: the file to join by, the limit of each process in bytes, and nice.
    pub fn for_podman(&self) -> (Option<PathBuf>, Option<u64>, u8) {
        match &self.memory {
            Memory::Group(group) => (Some(group.joined_by()), None, self.nice),
            Memory::PerProcess(limit) => (None, Some(*limit), self.nice),
            Memory::Unlimited | Memory::Scope { .. } => (None, None, self.nice),
        }
    }

    fn oom_kills(&self) -> u64 {
        match &self.memory {
            Memory::Group(group) => group.oom_kills(),
            Memory::Scope { dir, .. } => {
                let dir = dir.lock().unwrap_or_else(PoisonError::into_inner);
                dir.as_deref().map_or(0, Group::oom_kills_in)
            }
            Memory::Unlimited | Memory::PerProcess(_) => 0,
        }
    }
}
