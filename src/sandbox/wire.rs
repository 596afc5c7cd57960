//! What passes between the program and its helper over a socket: the request once, then what happened.
//!
//! The helper is this same program, started again with [`HELPER_ARGUMENT`]: a new user namespace can only
//! be entered by a process with one thread, and a fork of a process with many may not do much. Its standard
//! input is the socket (so no descriptor number is passed and nothing is inherited by accident); the
//! standard input meant for the command comes over it (`unix(7)`, `SCM_RIGHTS`). Requests and reports are
//! JSON, one a line, because plans are JSON anyway.

use super::layer::LayerTrial;
use super::ops::Op;
use super::plan::{IdMap, Namespace, Plan};
use super::probe::Trial;
use super::tend::Task;
use super::terminal::Terminal;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// The hidden first argument. Not in the command line's help: a user has no reason to give it.
pub const HELPER_ARGUMENT: &str = "--sandbox-helper";

/// What the helper is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The process that asks. The helper ends when it does.
    pub parent: i32,
    /// What.
    pub work: Work,
}

/// The kinds of request.
#[derive(Debug, Serialize, Deserialize)]
pub enum Work {
    /// Make a sandbox and run a command in it.
    Run {
        /// How it is made.
        plan: Plan,
        /// The command.
        #[serde(with = "super::text::list")]
        argv: Vec<OsString>,
        /// Which terminal it gets.
        terminal: Terminal,
    },
    /// Do something to a tree that belongs to a range of ids.
    Tend {
        /// As in [`Plan`].
        uids: Vec<IdMap>,
        /// As in [`Plan`].
        gids: Vec<IdMap>,
        /// What.
        task: Task,
    },
    /// Try a layer over a rootfs.
    Layer(LayerTrial),
    /// Try what this host allows.
    Probe {
        /// Each thing by itself, or only whether all of it works.
        full: bool,
    },
}

/// What the helper says, in the order in which it happens. The first of `Failed` and `Ended` counts.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// A step of the set-up failed, and the command was not started.
    Failed(Failure),
    /// The command ended with this exit code.
    Exited(i32),
    /// The command was ended by this signal.
    Signalled(i32),
    /// The sandbox's first process is gone; for the case that nothing was said before.
    Gone {
        /// The signal that ended it, if one did.
        signal: Option<i32>,
    },
    /// The sandbox's own terminal comes with this.
    Terminal,
    /// The answer to [`Work::Probe`].
    Probed(Vec<Trial>),
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which.
    pub step: Step,
    /// The path it was about.
    pub path: Option<PathBuf>,
    /// The kernel's answer, 0 when it was not the kernel that said no.
    pub errno: i32,
    /// More, if there is more to say.
    pub detail: String,
}

/// The steps at which a set-up can fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// `clone(2)` with new namespaces.
    Namespaces(Vec<Namespace>),
    /// Writing one of the files that map ids.
    MapIds,
    /// One operation of the plan.
    Op(Box<Op>),
    /// Changing a tree that belongs to a range of ids.
    Tend,
    /// Starting the command.
    Start(String),
    /// Something between the two processes, or in keeping watch.
    Internal(String),
}

/// Sends the request and perhaps a descriptor.
pub fn send_request(socket: &UnixStream, request: &Request, stdin: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let passed: Vec<RawFd> = stdin.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&passed)];
    let control = if passed.is_empty() { &control[..0] } else { &control };
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(b"\n")], control, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut socket = socket;
    socket.write_all(&serde_json::to_vec(request)?)?;
    socket.shutdown(std::net::Shutdown::Write)
}

/// Receives what [`send_request`] sent.
pub fn receive_request(socket: &UnixStream) -> io::Result<(Request, Option<OwnedFd>)> {
    let (_, stdin) = receive(socket, &mut [0])?;
    let mut text = Vec::new();
    let mut socket = socket;
    socket.read_to_end(&mut text)?;
    Ok((serde_json::from_slice(&text)?, stdin))
}

/// Sends the sandbox's terminal to whoever started it.
pub fn send_terminal(socket: &UnixStream, master: BorrowedFd<'_>) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Report::Terminal)?;
    line.push(b'\n');
    let passed = [master.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&passed)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&line)], &control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives what the helper or the first process says, and a descriptor when one comes with it.
pub fn receive(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!(RawFd);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut descriptor = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(passed) = control {
            descriptor = passed.first().copied().map(owned);
        }
    }
    Ok((message.bytes, descriptor))
}

#[allow(unsafe_code)]
fn owned(received: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this descriptor for us in `recvmsg` just now; nothing else knows its number, so
    // this is its only owner. One is sent at most, and only the first is used.
    unsafe { OwnedFd::from_raw_fd(received) }
}

/// Sends one report. Nobody listening is no reason to fail: then everything is about to end anyway.
pub fn send_report(mut socket: &UnixStream, report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = socket.write_all(&line);
    }
}
