//! Runs a command in a sandbox from the program's side: starts the helper, hands over the plan, carries
//! output, passes signals on, and says how it ended.

use super::error::SandboxError;
use super::helper::{start_first, terminal};
use super::limits::Enter;
use super::plan::{Host, IdMap, Plan};
use super::tend::Task;
use super::terminal::{Relay, Terminal};
use super::wire::{HELPER_ARGUMENT, Report, Request, Work, receive, send_request};
use super::{cgroup, resources};
use crate::report::{Interrupt, Interrupted};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpgrp, isatty, tcgetpgrp, tcsetpgrp};
use std::ffi::OsString;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Output without an end of line is handed on in pieces of this size.
const LONGEST_LINE: usize = 64 << 10;

/// Where a command's input comes from and its output goes.
pub enum Io<'a> {
    /// Nothing to read; what it prints on either stream comes line by line, in order, without the line's end.
    Lines(&'a mut dyn FnMut(&str)),
    /// Nothing to read; what it prints is returned.
    Capture,
    /// The caller's own three streams, in the caller's process group.
    Inherit,
    /// As [`Io::Inherit`], and the command is the terminal's foreground process group while it runs, so that
    /// Ctrl-C and job control are its own. Without a terminal, or in the background, it is `Inherit`.
    Terminal,
}

impl Io<'_> {
    /// The same once more, for a command that was not started.
    pub(super) fn again(&mut self) -> Io<'_> {
        match self {
            Io::Lines(lines) => Io::Lines(&mut **lines),
            Io::Capture => Io::Capture,
            Io::Inherit => Io::Inherit,
            Io::Terminal => Io::Terminal,
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// How a command ended and what it printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// How.
    pub ended: Ended,
    /// Standard output, with [`Io::Capture`].
    pub stdout: Vec<u8>,
    /// Standard error, with [`Io::Capture`].
    pub stderr: Vec<u8>,
    /// When it failed: that the kernel meanwhile ended processes for want of memory, and by whose limit. They are of the
    /// same control group, which a compiler's driver does not say of the compiler that it lost.
    pub memory: Option<String>,
}

impl Exit {
    /// Whether the exit code was 0.
    pub fn success(&self) -> bool {
        self.ended == Ended::Code(0)
    }

    /// The code a shell would give: 128 and the signal's number for a signal.
    pub fn code(&self) -> i32 {
        match self.ended {
            Ended::Code(code) => code,
            Ended::Signal(signal) => 128 + signal,
        }
    }
}

/// The helper while it runs. Dropped without having been waited for (a callback panicked), it is ended, and
/// the sandbox with it.
struct Helper {
    child: Started,
    ended: bool,
}

/// Which process that is.
enum Started {
    /// This program, started again.
    Again(Child),
    /// The sandbox's first process itself.
    First(Pid),
}

impl Helper {
    fn pid(&self) -> Pid {
        match &self.child {
            Started::Again(child) => Pid::from_raw(child.id().cast_signed()),
            Started::First(pid) => *pid,
        }
    }

    /// Waits for its end and leaves its number taken, so that a signal to it cannot hit another.
    fn wait(&self) {
        while waitid(Id::Pid(self.pid()), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
    }

    /// The signal by which the sandbox's first process ended, when that is what was started.
    fn reap(mut self) -> Option<i32> {
        self.ended = true;
        match (waitpid(self.pid(), None), &self.child) {
            (Ok(WaitStatus::Signaled(_, signal, _)), Started::First(_)) => Some(signal as i32),
            _ => None,
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if !self.ended {
            let _ = kill(self.pid(), Signal::SIGKILL);
            let _ = waitpid(self.pid(), None);
        }
    }
}

/// A helper that waits to be told what to do, and never is: something to try limits with.
pub(super) struct Idle {
    helper: Helper,
    _socket: UnixStream,
}

impl Idle {
    /// Its number.
    pub(super) fn pid(&self) -> Pid {
        self.helper.pid()
    }
}

/// Starts a helper that does nothing until it is dropped.
pub(super) fn idle() -> Result<Idle, SandboxError> {
    let (helper, socket) = spawn_helper(Stdio::null(), Stdio::null(), true)?;
    Ok(Idle { helper, _socket: socket })
}

/// Starts the helper. Its standard input is the socket that is returned.
#[allow(clippy::disallowed_methods)] // our own program, not one of the host
fn spawn_helper(stdout: Stdio, stderr: Stdio, own_group: bool) -> Result<(Helper, UnixStream), SandboxError> {
    let failed = |doing| move |source: io::Error| SandboxError::Helper { doing, source };
    let (ours, theirs) = UnixStream::pair().map_err(failed("make a socket for"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("slurm-factory").arg(HELPER_ARGUMENT).env_clear();
    command.stdin(OwnedFd::from(theirs)).stdout(stdout).stderr(stderr);
    if own_group {
        command.process_group(0);
    }
    let helper = Helper { child: Started::Again(command.spawn().map_err(failed("start"))?), ended: false };
    drop(command); // with it our copies of the pipes' write ends
    Ok((helper, ours))
}

/// Starts the helper with this request, within the limits.
fn start_helper(
    work: Work,
    stdout: Stdio,
    stderr: Stdio,
    stdin: Option<BorrowedFd<'_>>,
    own_group: bool,
    limits: &Enter<'_>,
) -> Result<(Helper, UnixStream), SandboxError> {
    let failed = |source: io::Error| SandboxError::Helper { doing: "talk to", source };
    let (helper, ours) = spawn_helper(stdout, stderr, own_group)?;
    limits.put_on(helper.pid())?;
    let parent = std::process::id().cast_signed();
    send_request(&ours, &Request { parent, work }, stdin).map_err(failed)?;
    Ok((helper, ours))
}

/// Makes the first process without a helper: this process writes its id maps, and waits for it. Only for a process
/// with one thread and a command that gets this process's own streams; a good part of a start is loading this program.
fn start_here(plan: &Plan, argv: &[OsString], terminal: Terminal) -> Result<(Helper, UnixStream), SandboxError> {
    let (ours, theirs) =
        UnixStream::pair().map_err(|source| SandboxError::Helper { doing: "make a socket for", source })?;
    let _ = io::stdout().flush(); // what waits there would be written twice
    let failed = |errno: Errno| SandboxError::Helper { doing: "block signals for", source: errno.into() };
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(failed)?;
    let first = start_first(plan, argv, terminal, &theirs, true);
    before.thread_set_mask().map_err(failed)?;
    Ok((Helper { child: Started::First(first.map_err(SandboxError::setup)?), ended: false }, ours))
}

/// Whether this process has no thread but this one: then a copy of it has all that there is.
fn one_thread() -> bool {
    // `.`, `..` and a folder a thread.
    fs_err::metadata("/proc/self/task").is_ok_and(|found| found.nlink() == 3)
}

/// Asks the helper to try what this host allows.
pub(super) fn probe(full: bool) -> Result<Vec<super::probe::Trial>, SandboxError> {
    try_out(Work::Probe { full })
}

/// Asks the helper to try a layer.
pub(super) fn try_layer(trial: super::layer::LayerTrial) -> Result<Vec<super::probe::Trial>, SandboxError> {
    try_out(Work::Layer(trial))
}

fn try_out(work: Work) -> Result<Vec<super::probe::Trial>, SandboxError> {
    match answer(work)? {
        Report::Probed(trials) => Ok(trials),
        _ => Err(SandboxError::Lost { signal: None, memory: None }),
    }
}

/// Starts a helper that works alone and takes its one answer.
fn answer(work: Work) -> Result<Report, SandboxError> {
    let interrupt = Interrupt::new();
    let free = Enter::freely(&interrupt);
    let (helper, mut socket) = start_helper(work, Stdio::null(), Stdio::null(), None, true, &free)?;
    let mut text = Vec::new();
    let read = socket.read_to_end(&mut text);
    helper.reap();
    read.map_err(|source| SandboxError::Helper { doing: "listen to", source })?;
    match reports(&text).into_iter().next() {
        Some(Report::Failed(failure)) => Err(SandboxError::setup(failure)),
        Some(report) => Ok(report),
        None => Err(SandboxError::Lost { signal: None, memory: None }),
    }
}

/// Does something to a tree that belongs to a range of ids.
pub(super) fn tend(host: &Host, task: Task) -> Result<(), SandboxError> {
    let own = |outside| IdMap { inside: 0, outside, count: 1 };
    let (uids, gids) = host.ids.maps(own(host.uid), own(host.gid));
    match answer(Work::Tend { uids, gids, task })? {
        Report::Exited(0) => Ok(()),
        _ => Err(SandboxError::Lost { signal: None, memory: None }),
    }
}

fn reports(text: &[u8]) -> Vec<Report> {
    text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// Runs `argv` as planned, within the limits. `begin` is called when the helper is there; a thread may be started from
/// then on.
pub(super) fn run(
    plan: Plan,
    argv: &[OsString],
    io: Io<'_>,
    interrupt: &Interrupt,
    limits: &Enter<'_>,
    begin: &mut dyn FnMut(),
) -> Result<Exit, SandboxError> {
    interrupt.check()?;
    let failed = |e: &io::Error| SandboxError::Helper {
        doing: "share the terminal with",
        source: io::Error::new(e.kind(), e.to_string()),
    };
    let foreground = match io {
        Io::Terminal => Foreground::here(),
        _ => None,
    };
    // Before a thread begins that could take the signal of a new window's size.
    let relay = match &foreground {
        Some(foreground) if foreground.both => {
            let copy = foreground.terminal.try_clone().map_err(|e| failed(&e))?;
            Some(Relay::new(copy).map_err(|e| failed(&e.into()))?)
        }
        _ => None,
    };
    let terminal = match (&foreground, &relay) {
        (None, _) => Terminal::None,
        (Some(_), None) => Terminal::Shared,
        (Some(_), Some(_)) => Terminal::Own,
    };
    let own_streams = matches!(io, Io::Inherit | Io::Terminal);
    let mut output = Output::new(io);
    let (helper, socket) = if own_streams && limits.are_none() && one_thread() {
        start_here(&plan, argv, terminal)?
    } else {
        let stdin = io::stdin();
        let stdin = own_streams.then(|| stdin.as_fd());
        let (stdout, stderr) = output.ends()?;
        let work = Work::Run { plan, argv: argv.to_vec(), terminal };
        start_helper(work, stdout, stderr, stdin, !own_streams, limits)?
    };
    begin();
    // While the sandbox is being made there is time for it.
    let kills = cgroup::kills_around();

    let pid = helper.pid();
    let asked = AtomicBool::new(false);
    let guard = interrupt.on_signal(move |_| {
        // First politely: what runs inside gets TERM and a moment. Asked again, all of it goes at once.
        let signal = if asked.swap(true, Ordering::SeqCst) { Signal::SIGKILL } else { Signal::SIGTERM };
        let _ = kill(pid, signal);
    });
    let carried = output.carry(Some(socket), relay);
    if carried.is_err() {
        let _ = kill(pid, Signal::SIGTERM);
    }
    // While the kernel takes the namespaces away.
    let carried = carried.map(|said| reports(&said));
    helper.wait();
    drop(guard);
    let mut gone = helper.reap();
    drop(foreground);

    interrupt.check()?;
    let said = carried.map_err(|source| SandboxError::Helper { doing: "listen to", source })?;
    for report in said {
        let ended = match report {
            Report::Failed(failure) => return Err(SandboxError::setup(failure)),
            Report::Exited(code) => Ended::Code(code),
            Report::Signalled(signal) => Ended::Signal(signal),
            Report::Gone { signal } => {
                gone = signal;
                continue;
            }
            Report::Probed(_) | Report::Terminal => continue,
        };
        let failed = ended != Ended::Code(0);
        let memory = failed.then(|| out_of_memory(cgroup::kills_around(), kills, "")).flatten();
        return Ok(Exit { ended, stdout: output.stdout, stderr: output.stderr, memory });
    }
    let killed = gone == Some(Signal::SIGKILL as i32);
    let memory = killed.then(|| out_of_memory(cgroup::kills_around(), kills, ", the first among them")).flatten();
    Err(SandboxError::Lost { signal: gone, memory })
}

/// What the kernel's counts say, from the time when the sandbox was made to its end.
fn out_of_memory(now: u64, before: u64, which: &str) -> Option<String> {
    let killed = now.checked_sub(before).filter(|killed| *killed > 0)?;
    let limit = cgroup::memory_limit().map_or("of the machine".to_owned(), |(limit, dir)| {
        format!("{} ({}, {})", resources::whose(&dir), humansize::format_size(limit, humansize::BINARY), dir.display())
    });
    Some(format!(
        "memory ran out, and the kernel ended {killed} of its processes{which}; the limit is that {limit}. Ask for \
         more (srun, salloc or sbatch with --mem), or use less at a time with fewer --jobs"
    ))
}

impl From<Interrupted> for SandboxError {
    fn from(interrupted: Interrupted) -> Self {
        Self::Interrupted(interrupted)
    }
}

/// The command's output on its way to the caller.
pub(super) struct Output<'a> {
    lines: Option<&'a mut dyn FnMut(&str)>,
    capture: bool,
    readers: [Option<PipeReader>; 2],
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl<'a> Output<'a> {
    pub(super) fn new(io: Io<'a>) -> Self {
        let capture = matches!(io, Io::Capture);
        let lines = match io {
            Io::Lines(lines) => Some(lines),
            _ => None,
        };
        Self { lines, capture, readers: [None, None], stdout: Vec::new(), stderr: Vec::new() }
    }

    /// The helper's ends. Lines come through one pipe, so that both streams stay in order.
    pub(super) fn ends(&mut self) -> Result<(Stdio, Stdio), SandboxError> {
        let failed = |source| SandboxError::Helper { doing: "make a pipe for", source };
        if self.lines.is_some() {
            let (reader, writer) = io::pipe().map_err(failed)?;
            let second = writer.try_clone().map_err(failed)?;
            self.readers = [Some(reader), None];
            return Ok((writer.into(), second.into()));
        }
        if self.capture {
            let ((out, to_out), (err, to_err)) = (io::pipe().map_err(failed)?, io::pipe().map_err(failed)?);
            self.readers = [Some(out), Some(err)];
            return Ok((to_out.into(), to_err.into()));
        }
        Ok((Stdio::inherit(), Stdio::inherit()))
    }

    /// Carries output until everybody inside has closed it, and returns what the helper said.
    /// With a terminal of the sandbox's own, what is typed and printed there is carried too.
    pub(super) fn carry(&mut self, mut socket: Option<UnixStream>, mut relay: Option<Relay>) -> io::Result<Vec<u8>> {
        let mut said = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let open: Vec<(usize, BorrowedFd<'_>)> = [
                socket.as_ref().map(|socket| (2, socket.as_fd())),
                self.readers[0].as_ref().map(|reader| (0, reader.as_fd())),
                self.readers[1].as_ref().map(|reader| (1, reader.as_fd())),
            ]
            .into_iter()
            .flatten()
            .collect();
            if open.is_empty() && !relay.as_ref().is_some_and(Relay::is_open) {
                self.flush();
                return Ok(said);
            }
            let mut fds: Vec<_> = open.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
            fds.extend(relay.iter().flat_map(Relay::waits_for));
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let ready: Vec<usize> =
                open.iter().zip(&fds).filter(|(_, fd)| fd.any() == Some(true)).map(|((index, _), _)| *index).collect();
            let typed: Vec<_> = fds[open.len()..].iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
            if let Some(relay) = &mut relay {
                relay.carry(&typed, &mut buffer);
            }
            for index in ready {
                let read = match index {
                    2 => match socket.as_ref().map_or(Ok((0, None)), |socket| receive(socket, &mut buffer)) {
                        Ok((length, master)) => {
                            if let (Some(relay), Some(master)) = (&mut relay, master) {
                                relay.begin(master)?;
                            }
                            Ok(length)
                        }
                        Err(e) => Err(e),
                    },
                    _ => self.readers[index].as_mut().map_or(Ok(0), |reader| reader.read(&mut buffer)),
                };
                match (read, index) {
                    (Err(e), _) if e.kind() == io::ErrorKind::Interrupted => {}
                    // A reset is the end too: a killed helper leaves what was not read in its socket.
                    (Ok(0) | Err(_), 2) => socket = None,
                    (Ok(0), _) => self.readers[index] = None,
                    (Err(e), _) => return Err(e),
                    (Ok(length), 2) => said.extend_from_slice(&buffer[..length]),
                    (Ok(length), 0) => self.take(&buffer[..length]),
                    (Ok(length), _) => self.stderr.extend_from_slice(&buffer[..length]),
                }
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let Some(lines) = &mut self.lines else {
            self.stdout.extend_from_slice(bytes);
            return;
        };
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.stdout.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.stdout.len() >= LONGEST_LINE {
                let line = self.stdout.strip_suffix(b"\n").unwrap_or(&self.stdout);
                lines(&String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)));
                self.stdout.clear();
            }
        }
    }

    /// The last line, when it has no end.
    fn flush(&mut self) {
        if let Some(lines) = &mut self.lines
            && !self.stdout.is_empty()
        {
            lines(&String::from_utf8_lossy(&self.stdout));
            self.stdout.clear();
        }
    }
}

/// Whether there is a terminal, with us in its foreground.
pub(super) fn in_foreground() -> bool {
    terminal().is_some_and(|terminal| tcgetpgrp(&terminal).is_ok_and(|group| group == getpgrp()))
}

/// The terminal as it was, given back when this is dropped: its settings, and us in the foreground.
struct Foreground {
    terminal: OwnedFd,
    settings: Termios,
    /// It is where input comes from and output goes.
    both: bool,
}

impl Foreground {
    /// Only when there is a terminal and we are in its foreground: a job in the background that took it would
    /// take it from the user's shell.
    fn here() -> Option<Self> {
        if !in_foreground() {
            return None;
        }
        let terminal = terminal()?;
        let settings = tcgetattr(&terminal).ok()?;
        let is_terminal = |fd: BorrowedFd<'_>| isatty(fd).unwrap_or(false);
        let both = is_terminal(io::stdin().as_fd()) && is_terminal(io::stdout().as_fd());
        Some(Self { terminal, settings, both })
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        // We are in the background now; blocked, SIGTTOU does not stop us for taking it back.
        let stop: SigSet = [Signal::SIGTTOU].into_iter().collect();
        let Ok(before) = stop.thread_swap_mask(SigmaskHow::SIG_BLOCK) else { return };
        let _ = tcsetpgrp(&self.terminal, getpgrp());
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.settings);
        let _ = before.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_memory_ran_out_is_said_when_the_kernel_counted_it() {
        assert_eq!(out_of_memory(3, 3, ""), None);
        assert_eq!(out_of_memory(2, 3, ""), None, "another group's count");
        let memory = out_of_memory(5, 3, ", the first among them");
        let error = SandboxError::Lost { signal: Some(9), memory }.to_string();
        assert!(
            error.contains("memory ran out") && error.contains("ended 2 of its") && error.contains("--mem"),
            "{error}"
        );
        let error = SandboxError::Lost { signal: Some(9), memory: None }.to_string();
        assert!(error.contains("by SIGKILL; a memory limit"), "{error}");
    }
}
