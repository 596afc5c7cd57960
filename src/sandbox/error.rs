//! What can go wrong with a sandbox, told so that somebody can do something about it.

use super::findings::{Finding, remedy_for};
use super::plan::SpecError;
use super::wire::{Failure, Step};
use crate::report::Interrupted;
use humansize::{BINARY, format_size};
use nix::errno::Errno;
use std::io;
use std::path::PathBuf;

/// Why a command did not run, or why it is not known how it ended. A command that ran and failed is no error
/// here, but an [`super::Exit`].
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// What was asked for makes no sense on any host.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No way was found to put a layer over the rootfs.
    #[error(
        "the rootfs cannot be made writable:{}\n  choose another with --writable (overlay, fuse-overlayfs, copy), or a --build-dir \
         on a local disk", refused.iter().flat_map(|no| ["\n  ", no]).collect::<String>()
    )]
    NotWritable {
        /// What was tried, and why not.
        refused: Vec<String>,
    },
    /// The folder in which layers are made cannot be used.
    #[error("cannot make a layer for the rootfs in `{}`: {source}", folder.display())]
    LayerFolder {
        /// The folder.
        folder: PathBuf,
        /// The reason.
        source: crate::cache::CacheError,
    },
    /// A range of ids was asked for and cannot be had.
    #[error("no range of subordinate ids for `--ownership range`: {reason}; {remedy}, or use `--ownership single`")]
    NoRange {
        /// What is missing.
        reason: String,
        /// Whom to ask for what.
        remedy: String,
    },
    /// A step of making the sandbox failed; the command was not started.
    #[error("cannot make the sandbox: {}", describe(failure))]
    Setup {
        /// Which step, on which path, and the kernel's answer.
        failure: Box<Failure>,
    },
    /// The sandbox is fine, but the command could not be started in it.
    #[error("cannot start `{program}` in the sandbox: {}{}", reason(*errno), start_hint(*errno))]
    Start {
        /// The program's name or path inside.
        program: String,
        /// The kernel's answer.
        errno: i32,
    },
    /// This host lets no backend work.
    #[error("no sandbox is possible here:{}", list(findings))]
    Unavailable {
        /// What was tried and what can be done.
        findings: Vec<Finding>,
    },
    /// Our own helper could not be started or reached.
    #[error("cannot {doing} the sandbox helper: {source}{}", helper_hint(source))]
    Helper {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The sandbox ended without saying how: something killed it from outside.
    #[error("the sandbox was ended from outside{}", lost_hint(*signal, memory.as_deref()))]
    Lost {
        /// The signal that ended its first process.
        signal: Option<i32>,
        /// That it was for want of memory, and whose limit that is, when the kernel counted so.
        memory: Option<String>,
    },
    /// A limit could not be put on the sandbox.
    #[error("cannot limit {what} of the sandbox: {source}")]
    Limit {
        /// Which.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The command failed, and the limit of memory had been reached.
    #[error(
        "memory ran out: --memory allows {} ({how}){}; give more with --memory (0 for no limit), or use less at a time with \
         fewer --jobs",
        format_size(*limit, BINARY), kills(*killed)
    )]
    OutOfMemory {
        /// The limit in bytes.
        limit: u64,
        /// How it is enforced.
        how: String,
        /// How many processes the kernel ended for it.
        killed: u64,
    },
    /// More was written than is allowed; what ran was ended.
    #[error(
        "too much was written: --disk allows {}, and {} were written to {}; give more with --disk (0 for no limit)",
        format_size(*limit, BINARY), format_size(*written, BINARY),
        folders.iter().map(|f| format!("`{}`", f.display())).collect::<Vec<_>>().join(", ")
    )]
    DiskQuota {
        /// The limit in bytes.
        limit: u64,
        /// What was seen.
        written: u64,
        /// Where.
        folders: Vec<PathBuf>,
    },
    /// podman could not run the container.
    #[error("`{call}` failed: {said}")]
    Podman {
        /// How it was called, without mounts and environment.
        call: String,
        /// What it said.
        said: String,
    },
    /// The program was told to stop; nothing of the sandbox is left.
    #[error(transparent)]
    Interrupted(Interrupted),
}

impl SandboxError {
    /// The signal by which it ended, when it ended by one without being asked to.
    pub fn lost_by(&self) -> Option<i32> {
        match self {
            Self::Lost { signal, .. } => *signal,
            _ => None,
        }
    }

    /// Whether what ran used more than it was allowed.
    pub fn over_limit(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. } | Self::DiskQuota { .. })
    }

    pub(super) fn setup(failure: Failure) -> Self {
        match failure.step {
            Step::Start(program) => Self::Start { program, errno: failure.errno },
            _ => Self::Setup { failure: Box::new(failure) },
        }
    }
}

/// The kernel's answer in words, with its name.
pub(super) fn reason(errno: i32) -> String {
    if errno == 0 {
        return "refused".into();
    }
    let errno = Errno::from_raw(errno);
    format!("{} ({errno:?})", errno.desc())
}

fn describe(failure: &Failure) -> String {
    let step = match &failure.step {
        Step::Namespaces(kinds) => {
            let kinds: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
            format!("new namespaces ({})", kinds.join(", "))
        }
        Step::MapIds => "map ids".into(),
        Step::Tend => "change files of subordinate ids".into(),
        Step::Op(op) => op.to_string(),
        Step::Start(program) => format!("start {program}"),
        Step::Internal(what) => what.clone(),
    };
    let detail = if failure.detail.is_empty() { String::new() } else { format!(", {}", failure.detail) };
    let path = failure.path.as_ref().map(|path| format!(", at `{}`", path.display())).unwrap_or_default();
    let remedy = remedy_for(failure).map(|remedy| format!("; {remedy}")).unwrap_or_default();
    format!("{step}: {}{detail}{path}{remedy}", reason(failure.errno))
}

fn start_hint(errno: i32) -> &'static str {
    match Errno::from_raw(errno) {
        Errno::ENOENT => "; it, or the interpreter that it names, is not in the image",
        Errno::EACCES => "; it is not executable, or its file system is mounted noexec",
        Errno::ENOEXEC => "; it is made for another architecture",
        Errno::E2BIG => "; its arguments and environment are too large",
        Errno::EAGAIN => "; the limit of processes is reached (`ulimit -u`, or the pids limit of the job)",
        _ => "",
    }
}

fn helper_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "; /proc and /dev must be mounted where this program runs",
        _ => start_hint(source.raw_os_error().unwrap_or(0)),
    }
}

fn kills(killed: u64) -> String {
    match killed {
        0 => " and a process got no more".into(),
        1 => " and the kernel ended a process for it".into(),
        n => format!(" and the kernel ended {n} processes for it"),
    }
}

fn lost_hint(signal: Option<i32>, memory: Option<&str>) -> String {
    match signal {
        Some(9) if memory.is_some() => format!(" by SIGKILL: {}", memory.unwrap_or_default()),
        Some(9) => " by SIGKILL; a memory limit of this login or job does that (run it under srun or salloc \
                    with more memory)"
            .into(),
        Some(signal) => format!(" by signal {signal}"),
        None => String::new(),
    }
}

fn list(findings: &[Finding]) -> String {
    findings.iter().flat_map(|finding| ["\n  ".to_owned(), finding.to_string()]).collect()
}
