//! The helper: this program started again, with one thread, that makes the namespaces and waits.
//!
//! ```text
//! the program                     many threads, never enters a namespace
//!  └─ the helper                  writes the id maps, passes TERM and HUP on; outside all namespaces
//!      └─ the first process       applies the plan, then is the sandbox's init: reaps, reports the status
//!          └─ the command
//! ```
//!
//! A program that has but one thread is its own helper ([`super::run`]).
//!
//! Each one dies with its parent (`PR_SET_PDEATHSIG`), and the kernel kills a pid namespace with its first
//! process, so that SIGKILL of any of them ends all below, children that called setsid included.
//! The command is not itself the first process: as pid 1 it would not be ended by Ctrl-C, and would have to
//! reap what is left to it by others.

use super::apply::Setup;
use super::family::Family;
use super::plan::{IdMap, Namespace, Plan};
use super::probe;
use super::rootdir::open_host;
use super::tend::tend;
use super::terminal::{self, Terminal};
use super::wire::{Failure, HELPER_ARGUMENT, Report, Request, Step, Work, receive_request, send_report};
use super::{ids, layer};
use fs_err as fs;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin, getpgrp, getppid, isatty, setpgid, tcsetpgrp};
use rustix::fs::OFlags;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What our own processes exit with when a report has said why.
const FAILED: i32 = 125;

/// The stack of a cloned process. Its pages are made when touched.
const STACK: usize = 4 << 20;

/// To be called first in `main`: when this process was started as the helper, does its work and exits.
///
/// Nothing may have started a thread before.
pub fn init_if_helper() {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == HELPER_ARGUMENT) {
        std::process::exit(main());
    }
}

fn main() -> i32 {
    close_leaked(&[]);
    // No environment of the caller's is here (it was cleared at exec), and nothing else of it shall be.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let Ok(socket) = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) else { return 2 };
    let Ok((request, stdin)) = receive_request(&socket) else {
        eprintln!("{HELPER_ARGUMENT} is how slurm-factory starts its own sandbox; it is of no use by hand");
        return 2;
    };
    match prepare(&request, stdin) {
        Err(failure) => {
            send_report(&socket, &Report::Failed(failure));
            FAILED
        }
        Ok(()) => match request.work {
            Work::Probe { full } => {
                send_report(&socket, &Report::Probed(if full { probe::full() } else { probe::quick() }));
                0
            }
            Work::Layer(trial) => {
                send_report(&socket, &Report::Probed(layer::try_layer(&trial)));
                0
            }
            Work::Tend { uids, gids, task } => match tend(&uids, &gids, &task, &socket) {
                Ok(()) => 0,
                Err(failure) => {
                    send_report(&socket, &Report::Failed(failure));
                    FAILED
                }
            },
            Work::Run { plan, argv, terminal } => run(&plan, &argv, terminal, &socket),
        },
    }
}

fn internal(what: &str, errno: Errno) -> Failure {
    Failure { step: Step::Internal(what.into()), path: None, errno: errno as i32, detail: String::new() }
}

/// Descriptors that the program had open without close-on-exec (given to it by whoever started it) are not
/// the command's business.
fn close_leaked(keep: &[i32]) {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    for number in open.into_iter().filter(|number| *number > 2 && !keep.contains(number)) {
        let _ = nix::unistd::close(number);
    }
}

fn prepare(request: &Request, stdin: Option<OwnedFd>) -> Result<(), Failure> {
    set_pdeathsig(Signal::SIGKILL).map_err(|e| internal("tie the helper to its parent", e))?;
    if getppid().as_raw() != request.parent {
        return Err(internal("the program that asked is gone", Errno::ESRCH));
    }
    let stdin = stdin.map_or_else(|| open_host(Path::new("/dev/null"), OFlags::RDONLY).map(OwnedFd::from), Ok);
    let stdin = stdin.map_err(|e| internal("open /dev/null", Errno::from_raw(e.raw_os_error())))?;
    dup2_stdin(stdin).map_err(|e| internal("set up standard input", e))
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Blocks all signals and returns where the named ones are read. Blocked, none is lost before there is
/// somebody to read it, and pid 1 gets even those that it would be spared by default (`signal(7)`).
fn watch() -> Result<SignalFd, Errno> {
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None)?;
    let read: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    SignalFd::with_flags(&read, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Waits until a signal can be read, at most until `deadline`; true when the time is over.
fn wait_for_signal(signals: &SignalFd, deadline: Option<Instant>) -> bool {
    let timeout = match deadline {
        None => PollTimeout::NONE,
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        }
    };
    let _ = poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout);
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// Whether one of the signals that say "end" has come since the last call.
fn told_to_end(signals: &SignalFd) -> bool {
    let mut told = false;
    while let Ok(Some(info)) = signals.read_signal() {
        told |= info.ssi_signo != Signal::SIGCHLD as u32;
    }
    told
}

fn run(plan: &Plan, argv: &[OsString], terminal: Terminal, socket: &UnixStream) -> i32 {
    let failed = |failure| {
        send_report(socket, &Report::Failed(failure));
        FAILED
    };
    let signals = match watch() {
        Ok(signals) => signals,
        Err(e) => return failed(internal("watch for signals", e)),
    };
    let child = match start_first(plan, argv, terminal, socket, false) {
        Ok(child) => child,
        Err(failure) => return failed(failure),
    };
    loop {
        wait_for_signal(&signals, None);
        if told_to_end(&signals) {
            let _ = kill(child, Signal::SIGTERM);
        }
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => {
                send_report(socket, &Report::Gone { signal: None });
                return code;
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                send_report(socket, &Report::Gone { signal: Some(signal as i32) });
                return FAILED;
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return failed(internal("wait for the first process", e)),
        }
    }
}

/// Makes the sandbox's first process, which applies the plan and reports to `socket`, and writes its id maps. Signals
/// must be blocked: the first process has to inherit that, or one that comes early is lost to it (`signal(7)`).
///
/// `copied`: this process is the program itself, and the first process a copy of it that has to let go of what the
/// program has open. What it has in memory is the program's, and as closed from inside as the program: the first
/// process is not dumpable when the command starts.
pub(super) fn start_first(
    plan: &Plan,
    argv: &[OsString],
    terminal: Terminal,
    socket: &UnixStream,
    copied: bool,
) -> Result<Pid, Failure> {
    let step = || Step::Namespaces(plan.namespaces.clone());
    let refused = |e: Errno| Failure { step: step(), path: None, errno: e as i32, detail: String::new() };
    if copied && single(&plan.uids, &plan.gids).is_some() {
        // A map of one's own id one may write from inside as well: nobody waits for anybody.
        return clone_into(&plan.namespaces, &mut || {
            let_go(&[socket.as_raw_fd()]);
            first_process(plan, argv, terminal, socket, Start::Alone)
        })
        .map_err(refused);
    }
    let pair = UnixStream::pair().map_err(|e| internal("make a socket", errno_of(&e)))?;
    let mut pair = (Some(pair.0), Some(pair.1));
    let child = clone_into(&plan.namespaces, &mut || {
        // In the child's copy: held open there, the helper's end would not be seen to close.
        drop(pair.0.take());
        let Some(told) = pair.1.take() else { return FAILED };
        if copied {
            let_go(&[socket.as_raw_fd(), told.as_raw_fd()]);
        }
        first_process(plan, argv, terminal, socket, Start::Told(told))
    });
    let child = child.map_err(refused)?;
    drop(pair.1);
    let go = map_ids(child, &plan.uids, &plan.gids).and_then(|()| {
        let sent = pair.0.as_mut().map_or(Ok(()), |ours| ours.write_all(b"go"));
        sent.map_err(|e| internal("wake the first process", errno_of(&e)))
    });
    if go.is_err() {
        let _ = kill(child, Signal::SIGKILL);
        let _ = waitpid(child, None);
    }
    go.map(|()| child)
}

/// In a copy of the program: lets go of what the program has open and of how it makes files.
fn let_go(keep: &[i32]) {
    close_leaked(keep);
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
}

/// How the first process gets its ids.
enum Start {
    /// The helper writes the maps and then says so here.
    Told(UnixStream),
    /// It writes them itself.
    Alone,
}

/// `clone(2)` with new namespaces. Not `clone3`, which filters of containers answer with ENOSYS.
#[allow(unsafe_code)]
pub(super) fn clone_into(namespaces: &[Namespace], child: &mut dyn FnMut() -> i32) -> Result<Pid, Errno> {
    let flags = namespaces.iter().fold(CloneFlags::empty(), |flags, namespace| {
        flags
            | match namespace {
                Namespace::User => CloneFlags::CLONE_NEWUSER,
                Namespace::Mount => CloneFlags::CLONE_NEWNS,
                Namespace::Pid => CloneFlags::CLONE_NEWPID,
                Namespace::Ipc => CloneFlags::CLONE_NEWIPC,
                Namespace::Uts => CloneFlags::CLONE_NEWUTS,
                Namespace::Net => CloneFlags::CLONE_NEWNET,
            }
    });
    let mut stack = vec![0_u8; STACK];
    // What the program does at its end (`atexit(3)`) is the program's own to do, not its copy's.
    // SAFETY: _exit takes a number and does not return.
    let run = Box::new(|| unsafe { nix::libc::_exit(child()) });
    // SAFETY: without CLONE_VM the child has a copy of all memory, this stack included, so that nothing it
    // does is seen here; the caller has one thread (the helper always, the program when it asked), so no lock is held by
    // a thread that the child lacks, and the child may allocate and do as any process does. The child never returns from
    // its function.
    unsafe { nix::sched::clone(run, &mut stack, flags, Some(Signal::SIGCHLD as i32)) }
}

/// Writes the maps of a process in a new user namespace (`user_namespaces(7)`): each file once, one line,
/// and `deny` before the gid map, without which an unprivileged writer gets EPERM. More than the own id only privileged
/// programs may write.
pub(super) fn map_ids(child: Pid, uids: &[IdMap], gids: &[IdMap]) -> Result<(), Failure> {
    match single(uids, gids) {
        Some(own) => map_own(&child.to_string(), own),
        None => ids::map_range(child, uids, gids),
    }
}

/// The maps, when they are of one id each.
fn single<'a>(uids: &'a [IdMap], gids: &'a [IdMap]) -> Option<(&'a IdMap, &'a IdMap)> {
    match (uids, gids) {
        ([uid @ IdMap { count: 1, .. }], [gid @ IdMap { count: 1, .. }]) => Some((uid, gid)),
        _ => None,
    }
}

/// Maps one id each for the process of this name in `/proc`.
fn map_own(process: &str, (uid, gid): (&IdMap, &IdMap)) -> Result<(), Failure> {
    let one = |map: &IdMap| format!("{} {} 1", map.inside, map.outside);
    for (name, text) in [("uid_map", one(uid)), ("setgroups", "deny".into()), ("gid_map", one(gid))] {
        let path = Path::new("/proc").join(process).join(name);
        let file = open_host(&path, OFlags::WRONLY).map_err(io::Error::from);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(e) = written {
            let errno = e.raw_os_error().unwrap_or(0);
            return Err(Failure { step: Step::MapIds, path: Some(path), errno, detail: format!("write `{text}`") });
        }
    }
    Ok(())
}

/// In the new namespaces: applies the plan, starts the command, and stays as init until it ends.
fn first_process(plan: &Plan, argv: &[OsString], terminal: Terminal, socket: &UnixStream, start: Start) -> i32 {
    let family = Family::new(plan.own_pids());
    let grace = Duration::from_millis(plan.grace_ms);
    let ended = set_up(plan, argv, terminal, socket, start, family).and_then(|(command, signals)| {
        stay(command, &signals, family, grace, terminal).map_err(|e| internal("wait for the command", e))
    });
    family.end();
    match ended {
        Ok(report) => {
            send_report(socket, &report);
            0
        }
        Err(failure) => {
            send_report(socket, &Report::Failed(failure));
            FAILED
        }
    }
}

fn set_up(
    plan: &Plan,
    argv: &[OsString],
    terminal: Terminal,
    socket: &UnixStream,
    start: Start,
    family: Family,
) -> Result<(Pid, SignalFd), Failure> {
    family.die_with_parent().map_err(|e| internal("tie the first process to the helper", e))?;
    // The helper dying before the line above is seen here, as the end of its socket.
    match start {
        Start::Told(mut told) => {
            told.read_exact(&mut [0; 2]).map_err(|_| internal("wait for the id maps", Errno::EPIPE))?;
        }
        Start::Alone => {
            let mut ended = [PollFd::new(socket.as_fd(), PollFlags::empty())];
            let heard = poll(&mut ended, PollTimeout::ZERO).map_err(|e| internal("look for the program", e))?;
            if heard > 0 {
                return Err(internal("the program that asked is gone", Errno::ESRCH));
            }
            single(&plan.uids, &plan.gids).map_or(Ok(()), |own| map_own("self", own))?;
        }
    }

    let mut setup = Setup::default();
    for op in &plan.ops {
        setup.apply(op).map_err(|trouble| Failure {
            step: Step::Op(Box::new(op.clone())),
            path: trouble.path.or_else(|| op.path()),
            errno: trouble.errno,
            detail: trouble.detail,
        })?;
    }
    // `/proc/1/exe` is our program on the host, which the command could open and overwrite; only a process
    // with capabilities over the host may look at one that is not dumpable (ptrace(2), proc(5)).
    set_dumpable(false).map_err(|e| internal("hide the first process", e))?;
    let signals = watch().map_err(|e| internal("watch for signals", e))?;
    match terminal {
        Terminal::None => {}
        Terminal::Shared => take_terminal().map_err(|e| internal("take the terminal", e))?,
        Terminal::Own => terminal::make(socket).map_err(|e| internal("make a terminal", e))?,
    }
    start_command(plan, argv).map(|command| (command, signals))
}

/// Makes this process's group the terminal's foreground group: the command, started into the same group,
/// gets Ctrl-C, and an interactive shell finds itself in the foreground and can go on from there with groups
/// of its own. SIGTTOU, which a process in the background gets for this, is blocked.
fn take_terminal() -> Result<(), Errno> {
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    match terminal() {
        Some(terminal) => tcsetpgrp(terminal, getpgrp()),
        None => Ok(()),
    }
}

/// The first of the standard descriptors that is a terminal.
pub(super) fn terminal() -> Option<OwnedFd> {
    let handles = [
        io::stdin().as_fd().try_clone_to_owned(),
        io::stdout().as_fd().try_clone_to_owned(),
        io::stderr().as_fd().try_clone_to_owned(),
    ];
    handles.into_iter().flatten().find(|handle| isatty(handle).unwrap_or(false))
}

/// Starts the command with the plan's environment and nothing else, and with no signal blocked or, as SIGPIPE is in this
/// program, ignored. By `posix_spawn(3)`, which copies nothing of this process: a fork of a program of this size costs more than
/// most mounts.
fn start_command(plan: &Plan, argv: &[OsString]) -> Result<Pid, Failure> {
    let failed = |errno: i32, detail: String| {
        let program = argv.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
        Failure { step: Step::Start(program), path: argv.first().map(Into::into), errno, detail }
    };
    let Some(program) = argv.first() else { return Err(failed(0, "no command was given".into())) };
    let os = |errno: Errno| failed(errno as i32, String::new());
    let mut attributes = PosixSpawnAttr::init().map_err(os)?;
    let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
    attributes.set_flags(flags).map_err(os)?;
    attributes.set_sigmask(&SigSet::empty()).map_err(os)?;
    attributes.set_sigdefault(&[Signal::SIGPIPE].into_iter().collect()).map_err(os)?;
    let actions = PosixSpawnFileActions::init().map_err(os)?;
    let text = |parts: &[&[u8]]| CString::new(parts.concat()).map_err(|_| os(Errno::EINVAL));
    let pairs = plan.env.iter().map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()]));
    let environment = pairs.collect::<Result<Vec<_>, _>>()?;
    let arguments = argv.iter().map(|argument| text(&[argument.as_bytes()])).collect::<Result<Vec<_>, _>>()?;
    let mut worst = Errno::ENOENT;
    for path in paths_of(program, plan) {
        let started = match posix_spawn(&path, &actions, &attributes, &arguments, &environment) {
            // A script that names no interpreter is the shell's, as for execvp(3).
            Err(Errno::ENOEXEC) if is_text(&path) => {
                let mut words = vec![text(&[b"/bin/sh"])?, text(&[path.as_os_str().as_bytes()])?];
                words.extend(arguments.iter().skip(1).cloned());
                posix_spawn("/bin/sh", &actions, &attributes, &words, &environment)
            }
            other => other,
        };
        match started {
            // It is reaped with all the others in `stay`.
            Ok(child) => return Ok(child),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::EACCES) => worst = Errno::EACCES,
            Err(errno) => return Err(os(errno)),
        }
    }
    Err(os(worst))
}

/// Where a program may be: at its path, or in each folder of the search path that has something of this name.
fn paths_of(program: &OsStr, plan: &Plan) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return vec![program.into()];
    }
    let search = plan.env.iter().find(|(name, _)| name == "PATH");
    let folders = search.map(|(_, value)| std::env::split_paths(value).collect::<Vec<_>>()).unwrap_or_default();
    folders.into_iter().map(|folder| folder.join(program)).filter(|path| path.exists()).collect()
}

/// Whether a file begins as a text does: a program for another machine is none, and no shell's business.
fn is_text(path: &Path) -> bool {
    let mut begin = [0; 64];
    let read = open_host(path, OFlags::RDONLY).ok().and_then(|mut file| file.read(&mut begin).ok());
    read.is_some_and(|length| !begin[..length].contains(&0))
}

/// What an init does: reaps whatever ends, until the command does. Told to end, it passes that on to
/// everything inside, and after the grace kills.
fn stay(
    command: Pid,
    signals: &SignalFd,
    family: Family,
    grace: Duration,
    terminal: Terminal,
) -> Result<Report, Errno> {
    let mut deadline = None;
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == command => return Ok(Report::Exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                    return Ok(Report::Signalled(signal as i32));
                }
                // Ctrl-Z: the shell that the user has outside does not see this group, so nobody could continue
                // it. In the caller's own group it is stopped with the caller, and continued with it.
                Ok(WaitStatus::Stopped(pid, _)) if pid == command && terminal != Terminal::None => {
                    kill(pid, Signal::SIGCONT)?;
                }
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
        if wait_for_signal(signals, deadline) {
            return Ok(Report::Signalled(Signal::SIGKILL as i32));
        }
        if told_to_end(signals) {
            if deadline.is_some() {
                return Ok(Report::Signalled(Signal::SIGKILL as i32));
            }
            family.signal(Signal::SIGTERM);
            deadline = Some(Instant::now() + grace);
        }
    }
}
