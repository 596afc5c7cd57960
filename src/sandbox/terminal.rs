//! A terminal of the sandbox's own, for a command that a person types to.
//!
//! ```text
//! the user's terminal  <-- raw -->  the program  <-- master, over a socket -->  /dev/pts/0 inside  <--  the command
//! ```
//!
//! The user's terminal has no name inside, so programs that ask for it (`tty`, `mesg`, gpg's and ssh's questions) would be told
//! that there is none. So one is made in the sandbox's own devpts, the first process begins a session on it, and the program
//! carries what is typed and printed, and the window's size. What the command does to its terminal it does to this one: the
//! user's is as it was in the end. See pty(7), ioctl_tty(2).
//!
//! Only when both input and output are a terminal: in `shell -- ls | less` the keys are the other program's.

use super::wire::send_terminal;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags};
use nix::pty::{posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, isatty, setsid};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Which terminal a command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Terminal {
    /// None of its own.
    None,
    /// The caller's, in its foreground.
    Shared,
    /// One of the sandbox's own.
    Own,
}

/// In the first process, when everything is mounted: makes a terminal, begins a session on it, sends the other end to whoever
/// started the sandbox. Of the standard descriptors those that were terminals become it.
pub fn make(socket: &UnixStream) -> Result<(), Errno> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    let slave = nix::fcntl::open(name.as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())?;
    // As the user has it: size, echo, the key that erases.
    let stdin = io::stdin();
    tcsetattr(&slave, SetArg::TCSANOW, &tcgetattr(&stdin)?)?;
    copy_size(stdin.as_fd(), slave.as_fd());
    setsid()?;
    control(&slave)?;
    let number = |e: io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    send_terminal(socket, master.as_fd()).map_err(number)?;
    let (out, err) = (isatty(io::stdout()).unwrap_or(false), isatty(io::stderr()).unwrap_or(false));
    dup2_stdin(&slave)?;
    if out {
        dup2_stdout(&slave)?;
    }
    if err {
        dup2_stderr(&slave)?;
    }
    Ok(())
}

/// Makes a terminal the session's own (`TIOCSCTTY`).
#[allow(unsafe_code)]
fn control(slave: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, and this request takes a number and no pointer (TIOCSCTTY(2const)).
    Errno::result(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// A size that cannot be read is none: programs then assume one.
fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    if let Ok(size) = rustix::termios::tcgetwinsize(from) {
        let _ = rustix::termios::tcsetwinsize(to, size);
    }
}

/// The program's side. Made before the sandbox is, and before threads that could take its signal.
pub struct Relay {
    outside: std::fs::File,
    windows: SignalFd,
    before: SigSet,
    inside: Option<std::fs::File>,
    /// Typed and not yet taken by what runs inside.
    typed: Vec<u8>,
    /// Nothing more is typed: the user's terminal is gone.
    closed: bool,
}

impl Relay {
    /// With the user's terminal.
    pub fn new(terminal: OwnedFd) -> Result<Self, Errno> {
        let signal: SigSet = [Signal::SIGWINCH].into_iter().collect();
        let before = signal.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let windows = SignalFd::with_flags(&signal, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { outside: terminal.into(), windows, before, inside: None, typed: Vec::new(), closed: false })
    }

    /// The sandbox has made its terminal: from now on the user's hands everything on as it is typed.
    pub fn begin(&mut self, master: OwnedFd) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
        let mut settings = tcgetattr(&self.outside)?;
        cfmakeraw(&mut settings);
        tcsetattr(&self.outside, SetArg::TCSADRAIN, &settings)?;
        copy_size(self.outside.as_fd(), master.as_fd());
        self.inside = Some(master.into());
        Ok(())
    }

    /// Whether something may still come from inside.
    pub fn is_open(&self) -> bool {
        self.inside.is_some()
    }

    /// What to wait for.
    pub fn waits_for(&self) -> Vec<PollFd<'_>> {
        let Some(inside) = &self.inside else { return Vec::new() };
        let mut events = PollFlags::POLLIN;
        if !self.typed.is_empty() {
            events |= PollFlags::POLLOUT;
        }
        let mut fds = vec![PollFd::new(inside.as_fd(), events), PollFd::new(self.windows.as_fd(), PollFlags::POLLIN)];
        // What is typed waits in the user's terminal while nobody inside reads.
        if self.typed.is_empty() && !self.closed {
            fds.push(PollFd::new(self.outside.as_fd(), PollFlags::POLLIN));
        }
        fds
    }

    /// Carries what is there, in the order of [`Relay::waits_for`].
    pub fn carry(&mut self, ready: &[PollFlags], buffer: &mut [u8]) {
        let Some(inside) = &mut self.inside else { return };
        if ready.get(1).is_some_and(|events| !events.is_empty()) {
            while let Ok(Some(_)) = self.windows.read_signal() {}
            copy_size(self.outside.as_fd(), inside.as_fd());
        }
        if ready.get(2).is_some_and(|events| !events.is_empty()) {
            match self.outside.read(buffer) {
                Ok(0) => self.closed = true,
                Ok(length) => self.typed.extend_from_slice(&buffer[..length]),
                Err(e) if again(&e) => {}
                // Hung up: the signal that comes with it ends everything.
                Err(_) => self.closed = true,
            }
        }
        if !self.typed.is_empty() {
            match inside.write(&self.typed) {
                Ok(length) => drop(self.typed.drain(..length)),
                Err(e) if again(&e) => {}
                Err(_) => self.typed.clear(),
            }
        }
        if ready
            .first()
            .is_some_and(|events| events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR))
        {
            match inside.read(buffer) {
                // EIO: nobody has the other end open any more.
                Ok(0) => self.inside = None,
                Err(e) if again(&e) => {}
                Err(_) => self.inside = None,
                Ok(length) if self.outside.write_all(&buffer[..length]).is_err() => self.inside = None,
                Ok(_) => {}
            }
        }
    }
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}
