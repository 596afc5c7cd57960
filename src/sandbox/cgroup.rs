//! Control groups: which limits hold for this process, and a group of our own for what a sandbox may use of the
//! memory.
//!
//! ```text
//! cgroup v2   0::/user.slice/...       memory.max memory.swap.max memory.events{oom_kill}   cpu.max pids.max
//! cgroup v1   4:memory:/job_7/step_0   memory.limit_in_bytes memory.memsw.* memory.oom_control{oom_kill}
//! ```
//!
//! A group can be made where the host delegated one (`cgroups(7)`): below our own, or below one that holds our own
//! (a terminal of a desktop, whose `app.slice` belongs to the user; a container whose groups can be written). In v2 a group
//! with processes in it cannot give its children a controller, so below our own only when we are alone in it, and then we
//! move into a leaf. What is found here has been done once, with a process made for it.

use crate::report::Interrupt;
use fs_err as fs;
use nix::unistd::Pid;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How the names of our own groups begin; the number of the process that made it follows.
const PREFIX: &str = "slurm-factory-";

/// v1 says "no limit" with the largest number of pages that it knows.
const NO_LIMIT: u64 = 1 << 60;

/// The two kinds of hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// One hierarchy a controller.
    One,
    /// One hierarchy for all.
    Two,
}

impl Version {
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "cgroup v1",
            Self::Two => "cgroup v2",
        }
    }

    fn limit_file(self) -> &'static str {
        match self {
            Self::One => "memory.limit_in_bytes",
            Self::Two => "memory.max",
        }
    }
}

/// Where this process is in a hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub version: Version,
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// Our own group's folder.
    pub own: PathBuf,
}

impl Place {
    /// Our own group and those around it, inmost first.
    pub fn around(&self) -> impl Iterator<Item = &Path> {
        self.own.ancestors().take_while(|dir| dir.starts_with(&self.mount))
    }
}

/// Where we are in the hierarchies that know `controller`, v2 first.
pub(super) fn places(controller: &str) -> Vec<Place> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    parse(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"), controller)
}

/// `/proc/PID/cgroup` and `/proc/PID/mountinfo` (`cgroups(7)`, `proc_pid_mountinfo(5)`).
fn parse(groups: &str, mounts: &str, controller: &str) -> Vec<Place> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let version = if id == "0" && controllers.is_empty() {
            Version::Two
        } else if controllers.split(',').any(|name| name == controller) {
            Version::One
        } else {
            continue;
        };
        let place = mounts.lines().find_map(|mount| {
            let (left, right) = mount.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            let (root, point) = (left.next()?, left.next()?);
            let mut right = right.split(' ');
            let (kind, options) = (right.next()?, right.nth(1)?);
            let fits = match version {
                Version::Two => kind == "cgroup2",
                Version::One => kind == "cgroup" && options.split(',').any(|name| name == controller),
            };
            // Another root than ours: the mount shows a part of the hierarchy in which we are not.
            let below = Path::new(path).strip_prefix(root).ok().filter(|_| fits && !path.starts_with("/.."))?;
            let own = if below == Path::new("") { point.into() } else { Path::new(point).join(below) };
            Some(Place { version, mount: point.into(), own })
        });
        found.extend(place);
    }
    found.sort_by_key(|place| place.version == Version::One);
    found
}

/// The tightest limit on memory that the groups around us set, in bytes, and the folder of the one that sets it.
pub(super) fn memory_limit() -> Option<(u64, PathBuf)> {
    tightest("memory", |place, dir| number(&dir.join(place.version.limit_file())).filter(|limit| *limit < NO_LIMIT))
}

/// The tightest limit on the number of processes.
pub(super) fn process_limit() -> Option<(u64, PathBuf)> {
    tightest("pids", |_, dir| number(&dir.join("pids.max")))
}

/// The tightest share of processor time, in thousandths of a processor.
pub(super) fn processor_limit() -> Option<(u64, PathBuf)> {
    tightest("cpu", |place, dir| {
        let (quota, period) = match place.version {
            Version::Two => {
                let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.parse().ok()?, period.parse().ok()?)
            }
            Version::One => (number(&dir.join("cpu.cfs_quota_us"))?, number(&dir.join("cpu.cfs_period_us"))?),
        };
        u64::checked_div(quota * 1000, period)
    })
}

fn tightest(controller: &str, limit: impl Fn(&Place, &Path) -> Option<u64>) -> Option<(u64, PathBuf)> {
    let places = places(controller);
    let limits = places.iter().flat_map(|place| place.around().map(move |dir| (place, dir)));
    limits.filter_map(|(place, dir)| Some((limit(place, dir)?, dir.to_owned()))).min_by_key(|(limit, _)| *limit)
}

/// A file with one number; `max` and -1 are none.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A folder of a hierarchy in which groups of our own can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parent {
    pub version: Version,
    pub dir: PathBuf,
}

impl Parent {
    /// The first in which a group with a limit of memory can be made and `pid`, a process of ours, moved into it.
    pub fn find(limit: u64, pid: Pid) -> Result<Self, Vec<String>> {
        let mut reasons = Vec::new();
        for place in places("memory") {
            // Root could leave a job's group for one around it, and with it the limits that were set for the job.
            let reach = if nix::unistd::geteuid().is_root() { 1 } else { usize::MAX };
            for dir in place.around().take(reach) {
                let parent = Self { version: place.version, dir: dir.to_owned() };
                match parent.try_out(limit, pid) {
                    Ok(()) => return Ok(parent),
                    Err(e) => reasons.push(format!("{}: {e}", place.version.name())),
                }
            }
        }
        if reasons.is_empty() {
            reasons.push("no hierarchy of control groups is mounted".into());
        }
        Err(reasons)
    }

    fn try_out(&self, limit: u64, pid: Pid) -> io::Result<()> {
        if self.version == Version::Two {
            self.give_to_children()?;
        }
        sweep(&self.dir);
        let group = Group::make(self, limit)?;
        let before = group_of(pid, self.version)?;
        group.add(pid)?;
        // Back, so that the group can be removed.
        fs::write(before.join("cgroup.procs"), pid.to_string())
    }

    /// v2: children get only the controllers that their parent hands on.
    fn give_to_children(&self) -> io::Result<()> {
        let has = |file: &str| {
            let path = self.dir.join(file);
            fs::read_to_string(path).map(|text| text.split_whitespace().any(|name| name == "memory"))
        };
        if has("cgroup.subtree_control")? {
            return Ok(());
        }
        if !has("cgroup.controllers")? {
            let text = format!("`{}` has no memory controller", self.dir.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let hand_on = || fs::write(self.dir.join("cgroup.subtree_control"), "+memory");
        let Err(e) = hand_on() else { return Ok(()) };
        let own = std::process::id().to_string();
        let within: Vec<String> =
            fs::read_to_string(self.dir.join("cgroup.procs"))?.lines().map(str::to_owned).collect();
        if e.raw_os_error() != Some(nix::libc::EBUSY) || !within.contains(&own) || !ours_alone(&within) {
            return Err(e);
        }
        let leaf = self.dir.join(format!("{PREFIX}{own}-self"));
        fs::create_dir(&leaf)?;
        for pid in &within {
            fs::write(leaf.join("cgroup.procs"), pid)?;
        }
        hand_on()
    }
}

/// Whether these processes are us and our children: others are not ours to move.
fn ours_alone(pids: &[String]) -> bool {
    let own = std::process::id().to_string();
    pids.iter().all(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).unwrap_or_default();
        *pid == own || parent == own
    })
}

/// The folder of the group that a process is in.
pub(super) fn group_of(pid: Pid, version: Version) -> io::Result<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let place = parse(&groups, &mounts, "memory").into_iter().find(|place| place.version == version);
    place
        .map(|place| place.own)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its control group is not in sight"))
}

/// Removes the groups of processes that are gone.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = fs::remove_dir(entry.path()); // not empty: somebody's processes are still ending
        }
    }
}

/// A group with a limit of memory, removed when dropped.
#[derive(Debug)]
pub(super) struct Group {
    version: Version,
    dir: PathBuf,
}

impl Group {
    /// Makes it with `limit` bytes, swap included.
    pub fn make(parent: &Parent, limit: u64) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = parent.dir.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&dir)?;
        let group = Self { version: parent.version, dir };
        fs::write(group.dir.join(group.version.limit_file()), limit.to_string())?;
        // A kernel without accounting of swap lacks these two.
        let _ = match group.version {
            Version::Two => fs::write(group.dir.join("memory.swap.max"), "0"),
            Version::One => fs::write(group.dir.join("memory.memsw.limit_in_bytes"), limit.to_string()),
        };
        Ok(group)
    }

    /// The group that `pid` is in and that somebody else made, and removes.
    pub fn oom_kills_in(dir: &Path) -> u64 {
        oom_kills(&fs::read_to_string(dir.join("memory.events")).unwrap_or_default())
    }

    /// Moves a process into it; what that starts is in it too.
    pub fn add(&self, pid: Pid) -> io::Result<()> {
        fs::write(self.joined_by(), pid.to_string())
    }

    /// The file that a process writes its number into.
    pub fn joined_by(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    /// How many processes the kernel ended because the limit was reached.
    pub fn oom_kills(&self) -> u64 {
        match self.version {
            Version::Two => Self::oom_kills_in(&self.dir),
            Version::One => oom_kills(&fs::read_to_string(self.dir.join("memory.oom_control")).unwrap_or_default()),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that is gone leaves its group a moment later.
        for _ in 0..50 {
            if fs::remove_dir(&self.dir).is_ok() || !self.dir.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// How many processes of our own group the kernel ended for want of memory, in whichever hierarchy says so.
pub(super) fn kills_around() -> u64 {
    let of = |place: &Place| {
        ["memory.events", "memory.oom_control"]
            .map(|file| oom_kills(&fs::read_to_string(place.own.join(file)).unwrap_or_default()))
            .into_iter()
            .sum::<u64>()
    };
    places("memory").iter().map(of).sum()
}

fn oom_kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

/// Asks the user's systemd for a scope with a limit of memory that holds `pids`, and returns its group's folder. For
/// logins: their session's group is not the user's to write, but systemd's own below `user@UID.service` is.
pub(super) fn systemd_scope(pids: &[Pid], limit: u64, interrupt: &Interrupt) -> Result<PathBuf, String> {
    use crate::process::Program;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let runtime = PathBuf::from(format!("/run/user/{}", nix::unistd::geteuid()));
    if !runtime.join("bus").exists() {
        return Err(format!("your systemd: there is none (no `{}/bus`)", runtime.display()));
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{PREFIX}{}-{number}.scope", std::process::id());
    let list: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let mut said = String::new();
    // Before systemd 253 a scope has no OOMPolicy, and none of its processes is ended but the one that the kernel chose.
    for policy in [&["OOMPolicy", "s", "continue"][..], &[]] {
        let call = ["--user", "--quiet", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"];
        let method = ["org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"];
        let program = Program::new("busctl").args(call).args(method).args([name.as_str(), "fail"]);
        let program = program.arg(if policy.is_empty() { "3" } else { "4" });
        let program = program.args(["PIDs", "au", &list.len().to_string()]).args(&list);
        let program =
            program.args(["MemoryMax", "t", &limit.to_string(), "MemorySwapMax", "t", "0"]).args(policy).arg("0");
        let program = program.env("XDG_RUNTIME_DIR", &runtime).timeout(Duration::from_secs(10));
        match program.output(interrupt) {
            Ok(_) => return in_scope(pids, &name, limit),
            Err(e) => said = e.to_string(),
        }
    }
    Err(format!("your systemd: {said}"))
}

/// systemd answers before it is done, and takes limits that it has no controller for.
fn in_scope(pids: &[Pid], name: &str, limit: u64) -> Result<PathBuf, String> {
    for _ in 0..200 {
        let dirs: Vec<_> = pids.iter().filter_map(|pid| group_of(*pid, Version::Two).ok()).collect();
        if dirs.len() == pids.len() && dirs.iter().all(|dir| dir.ends_with(name)) {
            let dir = dirs.into_iter().next().unwrap_or_default();
            return match number(&dir.join("memory.max")) {
                Some(set) if set <= limit => Ok(dir),
                _ => Err("your systemd: it has no memory controller to give".into()),
            };
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(format!("your systemd: it did not make {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
27 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
28 25 0:25 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
    const UNIFIED: &str = "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot";

    #[test]
    fn the_own_group_is_found_in_each_hierarchy() {
        let groups = "9:cpu,cpuacct:/\n4:memory:/slurm/uid_7/job_8\n0::/\n";
        let found = parse(groups, HYBRID, "memory");
        assert_eq!(
            found.iter().map(|p| p.own.to_str().unwrap()).collect::<Vec<_>>(),
            ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory/slurm/uid_7/job_8"]
        );
        let around: Vec<_> = found[1].around().map(|dir| dir.to_str().unwrap()).collect();
        assert_eq!(
            around[1..],
            ["/sys/fs/cgroup/memory/slurm/uid_7", "/sys/fs/cgroup/memory/slurm", "/sys/fs/cgroup/memory"]
        );
        assert_eq!(parse(groups, HYBRID, "cpu")[1].own, Path::new("/sys/fs/cgroup/cpu,cpuacct"));

        let login = parse("0::/user.slice/user-7.slice/session-2.scope\n", UNIFIED, "memory");
        assert_eq!(login[0].own, Path::new("/sys/fs/cgroup/user.slice/user-7.slice/session-2.scope"));
        assert_eq!(login[0].around().count(), 4);
    }

    /// As in a container that shows its own part of the hierarchy, and in one that shows another's.
    #[test]
    fn a_mounted_part_of_a_hierarchy() {
        let part = "30 20 0:26 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup2 rw";
        assert_eq!(parse("0::/docker/ab/x\n", part, "memory")[0].own, Path::new("/sys/fs/cgroup/x"));
        assert!(parse("0::/docker/cd\n", part, "memory").is_empty());
        assert!(parse("0::/../cd\n", UNIFIED, "memory").is_empty());
        assert!(parse("", "", "memory").is_empty());
    }

    #[test]
    fn counts_of_kills() {
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 31\noom 2\noom_kill 3\noom_group_kill 0\n"), 3);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), 1);
        assert_eq!(oom_kills(""), 0);
    }
}
