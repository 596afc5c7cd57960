//! Memory, processors, processes and time: how much of them there is for us, with the control groups around us counted,
//! and how limits of our own would be enforced.

use super::cgroup;
use super::doctor::row;
use super::error::SandboxError;
use super::facts::Facts;
use super::findings::{Finding, Outcome};
use super::limits::Way;
use crate::report::Interrupt;
use fs_err as fs;
use humansize::{BINARY, format_size};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// GCC with a few jobs. Bytes.
const MEMORY_NEEDED: u64 = 2 << 30;

/// A build with a few jobs has some hundred processes at a time, and the limits count all of the user's.
const PROCESSES_NEEDED: u64 = 512;

/// 2025-01-01: this program is younger.
const LONG_AGO: Duration = Duration::from_hours(482_136);

/// The rows.
pub(super) fn look(facts: &Facts, interrupt: &Interrupt) -> Result<Vec<Finding>, SandboxError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(vec![
        memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), cgroup::memory_limit()),
        processors(),
        processes(facts, cgroup::process_limit().map(|(limit, _)| limit)),
        limit_of_memory(interrupt)?,
        clock(now),
    ])
}

/// Who set a limit, from its group's name: Slurm and systemd name theirs.
pub(super) fn whose(dir: &Path) -> &'static str {
    let text = dir.to_string_lossy();
    match () {
        () if text.contains("slurm") || text.contains("/job_") => "of this Slurm job",
        () if text.contains("user-") => "of your login",
        () => "of the control group",
    }
}

/// The line of /proc/meminfo with all that the machine has (proc_meminfo(5)).
const ALL: &str = "MemTotal:";

/// The machine's memory in bytes; none where it is not told.
pub fn machine_memory() -> Option<u64> {
    bytes_of(&fs::read_to_string("/proc/meminfo").ok()?, ALL)
}

fn bytes_of(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn memory(meminfo: &str, limit: Option<(u64, std::path::PathBuf)>) -> Finding {
    let free = bytes_of(meminfo, "MemAvailable:").unwrap_or(0);
    let all = bytes_of(meminfo, ALL).unwrap_or(0);
    let mut meaning = format!("{} free of {}", format_size(free, BINARY), format_size(all, BINARY));
    let limit = limit.filter(|(limit, _)| *limit < all);
    if let Some((limit, dir)) = &limit {
        let limit = format_size(*limit, BINARY);
        meaning = format!("{meaning}; the limit {} is {limit} ({})", whose(dir), dir.display());
    }
    let few = limit.as_ref().map_or(free, |(limit, _)| free.min(*limit)) < MEMORY_NEEDED;
    let outcome = if few { Outcome::Warn } else { Outcome::Ok };
    let mut row = row("memory", "memory, and the limits on it around us", outcome, meaning);
    row.remedy =
        few.then(|| "Build where there is more (`srun --mem=8G --pty bash`), or with `build --jobs 1`.".into());
    row
}

fn processors() -> Finding {
    let online = std::thread::available_parallelism().map_or(1, usize::from);
    let allowed = sched_getaffinity(Pid::from_raw(0))
        .map_or(online, |set| (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count());
    let share = cgroup::processor_limit().map_or(String::new(), |(share, dir)| {
        format!("; their time is limited to that of {}.{:03} ({})", share / 1000, share % 1000, dir.display())
    });
    row("processors", "processors that we may use", Outcome::Ok, format!("{allowed}{share}"))
}

fn processes(facts: &Facts, group: Option<u64>) -> Finding {
    let limit = match (facts.max_processes, group) {
        (Some(own), Some(group)) => Some(own.min(group)),
        (own, group) => own.or(group),
    };
    let few = limit.is_some_and(|limit| limit < PROCESSES_NEEDED);
    let outcome = if few { Outcome::Warn } else { Outcome::Ok };
    let shown = limit.map_or("no limit".into(), |limit| limit.to_string());
    let mut row = row("processes", "the limit of your processes (RLIMIT_NPROC, pids.max)", outcome, shown);
    row.remedy = few.then(|| "Raise it (`ulimit -u 4096`), or build with fewer jobs.".into());
    row
}

/// Made and thrown away, with a process in it.
fn limit_of_memory(interrupt: &Interrupt) -> Result<Finding, SandboxError> {
    let tried = "limiting memory, for `build --memory`";
    Ok(match Way::find(MEMORY_NEEDED, interrupt)? {
        Way::PerProcess { why } => {
            let meaning = format!("only for each process by itself (RLIMIT_DATA): {why}");
            let mut row = row("limit-memory", tried, Outcome::Warn, meaning);
            row.remedy = Some(
                "Should `build --memory` hold for a build as a whole, run it in a Slurm job (`srun --mem=8G`), or ask an \
                 administrator for:\n  mkdir -p /etc/systemd/system/user@.service.d\n  printf '[Service]\\nDelegate=cpu \
                 cpuset io memory pids\\n' > /etc/systemd/system/user@.service.d/delegate.conf\n  systemctl daemon-reload"
                    .into(),
            );
            row
        }
        way => row("limit-memory", tried, Outcome::Ok, way.describe()),
    })
}

/// A clock that is wrong makes certificates and signatures invalid.
fn clock(now: Duration) -> Finding {
    let whole = Duration::from_secs(now.as_secs());
    let text = jiff::Timestamp::try_from(SystemTime::UNIX_EPOCH + whole).map(|t| t.to_string()).unwrap_or_default();
    let wrong = now < LONG_AGO || now > LONG_AGO + Duration::from_hours(100 * 365 * 24);
    let outcome = if wrong { Outcome::Warn } else { Outcome::Ok };
    let meaning = if wrong { format!("{text}: certificates and signatures will be refused") } else { text };
    let mut row = row("clock", "the clock", outcome, meaning);
    row.remedy = wrong.then(|| "Ask an administrator to set it:\n  timedatectl set-ntp true".into());
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory() {
        assert!(machine_memory().unwrap() > 64 << 20);
    }

    #[test]
    fn little_memory_and_who_says_so() {
        let meminfo = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n";
        assert_eq!(memory(meminfo, None).outcome, Outcome::Ok);
        let slurm = memory(meminfo, Some((1 << 30, "/sys/fs/cgroup/memory/slurm/uid_7/job_8".into())));
        assert_eq!(slurm.outcome, Outcome::Warn);
        assert!(slurm.meaning.contains("of this Slurm job is 1 GiB") && slurm.remedy.is_some(), "{slurm}");
        let login = memory(meminfo, Some((4 << 30, "/sys/fs/cgroup/user.slice/user-7.slice".into())));
        assert!(login.outcome == Outcome::Ok && login.meaning.contains("of your login is 4 GiB"), "{login}");
    }

    #[test]
    fn the_tighter_limit_of_processes_counts() {
        let facts = Facts { max_processes: Some(4096), ..Facts::default() };
        assert_eq!(processes(&facts, None).outcome, Outcome::Ok);
        let few = processes(&facts, Some(100));
        assert_eq!((few.outcome, few.meaning.as_str()), (Outcome::Warn, "100"));
        assert_eq!(processes(&Facts::default(), None).meaning, "no limit");
    }

    #[test]
    fn a_clock_that_was_never_set() {
        assert_eq!(clock(Duration::from_mins(1)).outcome, Outcome::Warn);
        assert_eq!(clock(Duration::from_secs(4 << 31)).outcome, Outcome::Warn);
        assert_eq!(clock(LONG_AGO + Duration::from_secs(1)).outcome, Outcome::Ok);
    }
}
