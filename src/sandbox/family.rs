//! All processes of a sandbox, to signal and to end: easy with a pid namespace, careful without.
//!
//! With one, -1 means "everybody in here", and the kernel kills all when the first process ends
//! (`pid_namespaces(7)`). Without one (a host where a new `/proc` cannot be mounted), -1 would mean every
//! process of the user on this machine. Then the first process is a subreaper (`PR_SET_CHILD_SUBREAPER`), to
//! which orphans fall back, and the family is found by following parents in `/proc`.

use fs_err as fs;
use nix::errno::Errno;
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};
use std::collections::{HashMap, HashSet};

/// How often the family is killed again while some of it is left: a process may fork while it is searched.
const ROUNDS: usize = 200;

/// The processes below this one.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    own_pids: bool,
}

impl Family {
    pub fn new(own_pids: bool) -> Self {
        Self { own_pids }
    }

    /// What happens when the helper dies. As pid 1 this process can just be killed, and all others go with
    /// it; else it is told, and ends them itself.
    pub fn die_with_parent(self) -> Result<(), Errno> {
        if self.own_pids {
            return set_pdeathsig(Signal::SIGKILL);
        }
        set_child_subreaper(true)?;
        set_pdeathsig(Signal::SIGTERM)
    }

    /// Sends a signal to everything inside but this process.
    pub fn signal(self, signal: Signal) {
        if self.own_pids {
            let _ = kill(Pid::from_raw(-1), signal);
        } else {
            for pid in descendants() {
                let _ = kill(pid, signal);
            }
        }
    }

    /// Leaves nothing running. With a pid namespace the kernel does it when this process exits.
    pub fn end(self) {
        if self.own_pids {
            return;
        }
        for _ in 0..ROUNDS {
            let left = descendants();
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status.pid().is_some()) {}
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

fn descendants() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let parents: HashMap<i32, i32> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, parent_in_stat(&fs::read_to_string(entry.path().join("stat")).ok()?)?))
        })
        .collect();
    below(&parents, getpid().as_raw()).into_iter().map(Pid::from_raw).collect()
}

/// The parent in `/proc/PID/stat`: the second field after the name, which may itself hold spaces and `)`.
fn parent_in_stat(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn below(parents: &HashMap<i32, i32>, top: i32) -> HashSet<i32> {
    let mut found = HashSet::new();
    loop {
        let before = found.len();
        for (pid, parent) in parents {
            if *pid != top && (*parent == top || found.contains(parent)) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_is_all_below_and_nobody_else() {
        let parents = HashMap::from([(1, 0), (2, 1), (10, 2), (11, 10), (12, 11), (20, 2), (21, 20)]);
        assert_eq!(below(&parents, 10), HashSet::from([11, 12]));
        assert_eq!(below(&parents, 21), HashSet::new());
    }

    #[test]
    fn a_name_with_brackets_does_not_confuse() {
        assert_eq!(parent_in_stat("12 (a) b (c)) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in_stat("garbage"), None);
    }
}
