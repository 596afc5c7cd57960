//! The only place that starts programs on the host.
//!
//! A program is an argv (never a shell line) with an environment that is given in full: nothing of ours leaks
//! in unless named. Failures carry the argv, the status and the end of the output. What runs *inside* the
//! sandbox is started by `sandbox`, whose helper is our own program and is spawned through here too.

use crate::report::Interrupt;
use crate::secret::{Secret, without_login};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How many lines of output an error carries.
const TAIL_LINES: usize = 20;

/// Why a program on the host did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("cannot start `{argv}`: {source}{}", hint(source))]
    Start {
        /// The command line, for reading only.
        argv: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It ran and ended with a failure.
    #[error("`{argv}` failed with {status}{}", show_tail(tail))]
    Failed {
        /// The command line, for reading only.
        argv: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its output and errors.
        tail: Vec<String>,
    },
    /// Talking to it failed.
    #[error("lost contact with `{argv}`: {source}")]
    Io {
        /// The command line, for reading only.
        argv: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It did not end in time and was killed.
    #[error("`{argv}` did not end within {} s and was killed", after.as_secs())]
    TimedOut {
        /// The command line, for reading only.
        argv: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// We were told to stop while it ran.
    #[error(transparent)]
    Interrupted(#[from] crate::report::Interrupted),
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => " (is it installed and in PATH?)",
        io::ErrorKind::PermissionDenied => " (is its file system mounted noexec?)",
        _ => "",
    }
}

fn show_tail(tail: &[String]) -> String {
    if tail.is_empty() { String::new() } else { format!("; its last lines:\n  {}", tail.join("\n  ")) }
}

/// A program to start: argv, environment, folder.
#[derive(Clone, Debug)]
pub struct Program {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    input: Vec<u8>,
    timeout: Option<Duration>,
}

/// What a program printed.
#[derive(Debug)]
pub struct Output {
    /// Standard output as it came.
    pub stdout: Vec<u8>,
}

impl Program {
    /// A program by name or path, with an empty environment but for `PATH`, `HOME`, `LANG=C` and what the
    /// program's own TLS and proxy settings need.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        const PASSED: [&str; 12] = [
            "PATH",
            "HOME",
            "http_proxy",
            "https_proxy",
            "no_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "NO_PROXY",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "XDG_RUNTIME_DIR",
            "TMPDIR",
        ];
        let mut env: Vec<_> =
            PASSED.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))).collect();
        env.push(("LC_ALL".into(), "C.UTF-8".into()));
        Self { argv: vec![program.as_ref().into()], env, cwd: None, input: Vec::new(), timeout: None }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().into());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.argv.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets one variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Starts it in this folder.
    #[must_use]
    pub fn cwd(mut self, cwd: impl AsRef<Path>) -> Self {
        self.cwd = Some(cwd.as_ref().to_owned());
        self
    }

    /// Gives it the caller's whole environment but for our own variables, some of which hold secrets: for the
    /// user's own programs, which look for their agents, profiles and displays there.
    #[must_use]
    pub fn with_callers_environment(mut self) -> Self {
        let ours = |name: &OsStr| name.as_encoded_bytes().starts_with(b"SLURM_FACTORY_");
        self.env = std::env::vars_os().filter(|(name, _)| !ours(name)).collect();
        self
    }

    /// Writes this to its standard input, which is empty otherwise. Not for secrets, and for short texts only:
    /// they are written before anything is read.
    #[must_use]
    pub fn input(mut self, text: &str) -> Self {
        self.input = text.as_bytes().to_vec();
        self
    }

    /// Kills it, and what it started, when it has not ended after this time.
    #[must_use]
    pub fn timeout(mut self, after: Duration) -> Self {
        self.timeout = Some(after);
        self
    }

    /// The command line for reading: never parsed again, and without logins in addresses.
    pub fn display(&self) -> String {
        self.argv.iter().map(|a| without_login(&a.to_string_lossy())).collect::<Vec<_>>().join(" ")
    }

    fn command(&self) -> Command {
        #[allow(clippy::disallowed_methods)]
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).env_clear().envs(self.env.iter().cloned()).stdin(Stdio::null());
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        command
    }

    /// Runs it to its end and returns its output; a status other than 0 is an error.
    pub fn output(&self, interrupt: &Interrupt) -> Result<Output, ProcessError> {
        let mut stdout = Vec::new();
        self.run(interrupt, |reader| reader.read_to_end(&mut stdout).map(|_| ()))?;
        Ok(Output { stdout })
    }

    /// Runs it to its end whatever its status, and returns whether it succeeded and what it printed, at most
    /// `max` bytes of it. Its output is nowhere else: not in an error, not in a log.
    pub fn secret_output(&self, interrupt: &Interrupt, max: usize) -> Result<(bool, Secret<Vec<u8>>), ProcessError> {
        // The whole room at once: a buffer that grows leaves copies behind.
        let mut stdout = Secret::new(Vec::with_capacity(max));
        let ended = self.run(interrupt, |reader| {
            let mut chunk = Secret::new(vec![0; max]);
            loop {
                let n = reader.read(chunk.expose_mut())?;
                let room = max - stdout.expose().len();
                stdout.expose_mut().extend_from_slice(&chunk.expose()[..n.min(room)]);
                if n == 0 {
                    return Ok(());
                }
            }
        });
        match ended {
            Ok(()) => Ok((true, stdout)),
            Err(ProcessError::Failed { .. }) => Ok((false, stdout)),
            Err(other) => Err(other),
        }
    }

    /// Runs it, handing its standard output to `consume` as it comes; a status other than 0 is an error.
    ///
    /// The program gets a process group of its own, so that a signal to us ends it and what it started.
    pub fn run(
        &self,
        interrupt: &Interrupt,
        consume: impl FnOnce(&mut dyn Read) -> io::Result<()>,
    ) -> Result<(), ProcessError> {
        interrupt.check()?;
        let argv = self.display();
        tracing::debug!(%argv, "start on the host");
        let stdin = if self.input.is_empty() { Stdio::null() } else { Stdio::piped() };
        let mut child = self
            .command()
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| ProcessError::Start { argv: argv.clone(), source })?;
        let group = group_of(&child);
        let _guard = interrupt.on_signal(move |_| {
            let _ = kill(group, Signal::SIGTERM);
        });
        let watchdog = self.timeout.map(|after| Watchdog::start(group, after));
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read it is no error of its own: it may not need it.
            let _ = stdin.write_all(&self.input);
        }
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let stderr = child.stderr.take().map(|stderr| {
            let tail = tail.clone();
            std::thread::spawn(move || collect_tail(stderr, &tail))
        });
        let consumed = child.stdout.take().map_or(Ok(()), |mut stdout| consume(&mut stdout));
        if consumed.is_err() {
            let _ = kill(group, Signal::SIGTERM);
        }
        let status = child.wait().map_err(|source| ProcessError::Io { argv: argv.clone(), source })?;
        if let Some(thread) = stderr {
            let _ = thread.join();
        }
        let late = watchdog.is_some_and(Watchdog::stop);
        interrupt.check()?;
        if let (true, Some(after)) = (late, self.timeout) {
            return Err(ProcessError::TimedOut { argv, after });
        }
        let ended_by_us = consumed.is_err() && status.signal() == Some(15);
        if !status.success() && !ended_by_us {
            let tail = tail.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
            return Err(ProcessError::Failed { argv, status, tail });
        }
        consumed.map_err(|source| ProcessError::Io { argv, source })
    }
}

/// Kills a process group when it has not been stopped in time.
struct Watchdog {
    stop: std::sync::mpsc::Sender<()>,
    fired: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Watchdog {
    fn start(group: Pid, after: Duration) -> Self {
        let (stop, stopped) = channel();
        let fired = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let fired = fired.clone();
            move || {
                if stopped.recv_timeout(after) == Err(RecvTimeoutError::Timeout) {
                    fired.store(true, Ordering::SeqCst);
                    let _ = kill(group, Signal::SIGKILL);
                }
            }
        });
        Self { stop, fired, thread }
    }

    /// Whether it had to kill.
    fn stop(self) -> bool {
        let _ = self.stop.send(());
        let _ = self.thread.join();
        self.fired.load(Ordering::SeqCst)
    }
}

fn group_of(child: &Child) -> Pid {
    Pid::from_raw(-i32::try_from(child.id()).unwrap_or(0))
}

fn collect_tail(from: impl Read, into: &Mutex<VecDeque<String>>) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) {
        let mut tail = into.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
    }
}

/// As the shell reads it back, whatever bytes it holds: within single quotes only the single quote is special.
pub fn quoted(text: &OsStr) -> OsString {
    let mut out = b"'".to_vec();
    for byte in text.as_bytes() {
        match byte {
            b'\'' => out.extend(br"'\''"),
            other => out.push(*other),
        }
    }
    out.push(b'\'');
    OsString::from_vec(out)
}

/// A word of a shell line that people copy: quoted where it must be.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./-_".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        quoted(OsStr::new(word)).to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_a_real_shell() {
        let nasty = ["", "a b", "it's", "''", "$(touch x) `y` \\ \" \n *", "-n"];
        for text in nasty {
            let mut script = OsString::from("printf %s ");
            script.push(quoted(OsStr::new(text)));
            let output = Program::new("sh").arg("-c").arg(script).output(&Interrupt::new()).unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }

    #[test]
    fn failure_names_argv_status_and_tail() {
        let error =
            Program::new("sh").args(["-c", "echo bad thing >&2; exit 3"]).output(&Interrupt::new()).unwrap_err();
        let text = error.to_string();
        for part in ["sh -c", "exit status: 3", "bad thing"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn an_unknown_program_says_what_to_do() {
        let error = Program::new("no-such-program-xyz").output(&Interrupt::new()).unwrap_err();
        assert!(error.to_string().contains("in PATH?"), "{error}");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let start = std::time::Instant::now();
        let program = Program::new("sh").args(["-c", "sleep 30 & wait"]).timeout(Duration::from_millis(300));
        let error = program.output(&Interrupt::new()).unwrap_err();
        assert!(matches!(error, ProcessError::TimedOut { .. }), "{error}");
        assert!(start.elapsed().as_secs() < 10);
    }

    #[test]
    fn secret_output_is_bounded_and_in_no_error() {
        let program = Program::new("sh").args(["-c", "cat; cat /dev/zero | head -c 100000; exit 1"]).input("hello");
        let (fine, output) = program.secret_output(&Interrupt::new(), 1000).unwrap();
        assert!(!fine && output.expose().len() == 1000 && output.expose().starts_with(b"hello"));
    }

    #[test]
    fn an_interrupt_ends_the_program_and_its_children() {
        let interrupt = Interrupt::new();
        let later = interrupt.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            later.set(15);
        });
        let start = std::time::Instant::now();
        let result = Program::new("sh").args(["-c", "sleep 30 & wait"]).output(&interrupt);
        assert!(matches!(result, Err(ProcessError::Interrupted(_))), "{result:?}");
        assert!(start.elapsed().as_secs() < 10);
        thread.join().unwrap();
    }
}
