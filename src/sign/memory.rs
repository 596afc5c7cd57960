//! Keeps the memory of a process that holds a secret key from being written out or looked into.
//!
//! Zeroing helps when the memory is given back. Until then two ways lead to it: a core dump, and another process of the
//! same user (ptrace(2), `/proc/PID/mem`, `/proc/PID/environ`). A process that is not dumpable has neither (prctl(2),
//! PR_SET_DUMPABLE; proc(5)). The limit on cores is a second lock: a `core_pattern` with a pipe heeds the first
//! only when `suid_dumpable` is 0.
//!
//! What we start afterwards becomes dumpable again by execve(2), and keeps the limit.

use super::SignError;
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;

/// Called before the first byte of a secret key or passphrase is read. Calling it again changes nothing.
pub fn keep_private() -> Result<(), SignError> {
    let failed = |errno: nix::Error| SignError::Memory(io::Error::from(errno));
    set_dumpable(false).map_err(failed)?;
    // Only the soft limit: whoever debugs a build's compiler may raise it again.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).map_err(failed)?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_other_process_looks_in_and_nothing_is_dumped() {
        keep_private().unwrap();
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap().0, 0);
    }
}
