//! What the tests stand on: a rootfs made from the host's own programs, a user without subordinate ids, and
//! this program playing the part of `slurm-factory`.

use fs_err as fs;
use slurm_factory::report::Interrupt;
use slurm_factory::sandbox::{Backend, Exit, Host, Io, Limits, Sandbox, Spec};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// First argument with which this program plays the program that is interrupted and killed.
pub const PROGRAM: &str = "--as-program";

/// First argument with which this program prints what the doctor finds, as JSON.
pub const DOCTOR: &str = "--as-doctor";

/// First argument with which this program runs another under a filter that refuses new namespaces.
pub const REFUSING: &str = "--refusing-namespaces";

/// Where the rootfs is that belongs to root, in the user's folder.
const OF_ROOT: &str = "rootfs-of-root";

const AGAIN: &str = "SANDBOX_TESTS_IN";

/// The host's programs that the rootfs is made of, and the Debian package of each.
const PROGRAMS: [(&str, &str); 34] = [
    ("/bin/sh", "dash"),
    ("/bin/bash", "bash"),
    ("/bin/cat", "coreutils"),
    ("/bin/ls", "coreutils"),
    ("/bin/chown", "coreutils"),
    ("/bin/mknod", "coreutils"),
    ("/bin/mkdir", "coreutils"),
    ("/bin/rm", "coreutils"),
    ("/bin/mv", "coreutils"),
    ("/bin/ln", "coreutils"),
    ("/bin/touch", "coreutils"),
    ("/bin/chmod", "coreutils"),
    ("/bin/readlink", "coreutils"),
    ("/bin/sleep", "coreutils"),
    ("/bin/true", "coreutils"),
    ("/bin/uname", "coreutils"),
    ("/bin/dd", "coreutils"),
    ("/bin/pwd", "coreutils"),
    ("/bin/df", "coreutils"),
    ("/usr/bin/id", "coreutils"),
    ("/usr/bin/env", "coreutils"),
    ("/usr/bin/stat", "coreutils"),
    ("/usr/bin/nproc", "coreutils"),
    ("/usr/bin/tty", "coreutils"),
    ("/usr/bin/stty", "coreutils"),
    ("/bin/tar", "tar"),
    ("/bin/grep", "grep"),
    ("/bin/mount", "mount"),
    ("/bin/kill", "procps"),
    ("/bin/ps", "procps"),
    ("/usr/bin/setsid", "util-linux"),
    ("/usr/bin/taskset", "util-linux"),
    ("/usr/bin/unshare", "util-linux"),
    ("/usr/bin/getent", "libc-bin"),
];

/// One run of all tests: as whom, and where.
pub struct World {
    /// The user, for messages.
    pub who: String,
    /// An empty folder for this run, reachable by the user.
    pub dir: PathBuf,
    /// The rootfs; tests that break one make their own with [`World::own_rootfs`].
    pub rootfs: PathBuf,
    /// The sandbox.
    pub sandbox: Sandbox,
}

impl World {
    pub fn new() -> Self {
        let uid = nix::unistd::geteuid();
        let dir = match std::env::var_os(AGAIN) {
            Some(dir) => PathBuf::from(dir),
            None => tempfile::Builder::new().prefix("sandbox-tests-").tempdir().unwrap().keep(),
        };
        fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let rootfs = dir.join("rootfs");
        make_rootfs(&rootfs);
        let sandbox = Sandbox::open(Backend::Userns, &Interrupt::new())
            .unwrap_or_else(|e| panic!("this machine cannot test it: {e}"));
        Self { who: if uid.is_root() { "root".into() } else { "user".into() }, dir, rootfs, sandbox }
    }

    pub fn is_root(&self) -> bool {
        nix::unistd::geteuid().is_root()
    }

    /// The program itself, where every user can start it: the target folder may be closed to others.
    pub fn program(&self) -> PathBuf {
        self.copy(Path::new(env!("CARGO_BIN_EXE_slurm-factory")), "slurm-factory")
    }

    /// This program, likewise.
    pub fn tests(&self) -> PathBuf {
        self.copy(&std::env::current_exe().unwrap(), "tests")
    }

    fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.dir.join("programs").join(name);
        if !to.exists() {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, &to).unwrap();
        }
        to
    }

    /// A folder for one test.
    pub fn folder(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        let _ = slurm_factory::fsutil::remove_tree(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// A rootfs that a test may break.
    pub fn own_rootfs(&self, name: &str) -> PathBuf {
        let rootfs = self.folder(name).join("rootfs");
        make_rootfs(&rootfs);
        rootfs
    }

    /// A rootfs that belongs to root and has all mount points of a build, and `/opt/here`.
    pub fn rootfs_of_root(&self) -> PathBuf {
        let rootfs = self.dir.join(OF_ROOT);
        assert!(rootfs.exists(), "run the tests as root, which makes a rootfs of another owner for this one");
        rootfs
    }

    pub fn build(&self) -> Spec {
        Spec::build(&self.rootfs)
    }

    pub fn prepare(&self) -> Spec {
        Spec::prepare(&self.rootfs)
    }

    /// Runs a line of shell and returns how it ended and what it printed.
    pub fn sh(&self, spec: &Spec, script: &str) -> Exit {
        self.run(spec, &["sh", "-c", script]).unwrap_or_else(|e| panic!("{script}: {e}"))
    }

    /// As [`World::sh`]; must succeed.
    pub fn ok(&self, spec: &Spec, script: &str) -> String {
        let exit = self.sh(spec, script);
        let (out, err) = (String::from_utf8_lossy(&exit.stdout), String::from_utf8_lossy(&exit.stderr));
        assert!(exit.success(), "`{script}` ended with {:?}\n{out}{err}", exit.ended);
        out.into_owned()
    }

    pub fn run(&self, spec: &Spec, argv: &[&str]) -> Result<Exit, slurm_factory::sandbox::SandboxError> {
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        self.sandbox.run(spec, &argv, Io::Capture, &Interrupt::new())
    }

    /// This program in the part of `slurm-factory`, running a line of shell in the build sandbox.
    pub fn as_program(&self, spec: &Spec, io: &str, script: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([PROGRAM, &serde_json::to_string(spec).unwrap(), io, "sh", "-c", script]);
        command.stdin(Stdio::null());
        command
    }

    /// This program in the part of `slurm-factory doctor`.
    pub fn doctor(&self, folders: &[&Path]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(DOCTOR).args(folders).stdin(Stdio::null());
        command
    }

    /// Run by root: all again as a user made for it. False when that failed.
    pub fn again_as_user(&self, arguments: &[String]) -> bool {
        if !self.is_root() {
            return true;
        }
        let user = OwnUser::new(0);
        let dir = tempfile::Builder::new().prefix("sandbox-tests-").tempdir().unwrap();
        // The target folder may be closed to other users.
        let program = dir.path().join("sandbox-tests");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        fs::create_dir(dir.path().join("programs")).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_slurm-factory"), dir.path().join("programs/slurm-factory")).unwrap();
        fs::copy(&program, dir.path().join("programs/tests")).unwrap();
        chown(dir.path(), Some(user.id), Some(user.id)).unwrap();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).unwrap();
        chown(&run, Some(user.id), Some(user.id)).unwrap();
        let of_root = dir.path().join(OF_ROOT);
        make_rootfs(&of_root);
        for mount_point in ["dev", "proc", "sys", "run", "var/tmp", "opt/here"] {
            fs::create_dir_all(of_root.join(mount_point)).unwrap();
        }
        let group = Delegated::new(user.id);
        // A host that gives its users a part of the memory controller; where it does not, a test hides it again.
        let status = Command::new("sh")
            .args(["-c", "echo $$ > \"$0\"; exec \"$@\""])
            .arg(group.0.as_deref().map_or("/dev/null".into(), |dir| dir.join("cgroup.procs")))
            .arg("setpriv")
            .args(["--reuid", &user.id.to_string(), "--regid", &user.id.to_string(), "--clear-groups"])
            .args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg(&program)
            .args(arguments)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
            .env("HOME", dir.path()) // podman keeps its state in these two
            .env("XDG_RUNTIME_DIR", &run)
            .env(AGAIN, dir.path())
            .status()
            .expect("setpriv is missing: apt-get install util-linux");
        // Rootless podman leaves a lock.
        let _ = fs::remove_file(format!("/dev/shm/libpod_rootless_lock_{}", user.id));
        status.success()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::env::var_os(AGAIN).is_some() {
            return; // root's, who made it, and who alone can delete what is root's in it
        }
        let _ = slurm_factory::fsutil::remove_tree(&self.dir);
    }
}

/// A user of the machine, for as long as this lives.
pub struct OwnUser {
    name: String,
    /// Its uid and gid.
    pub id: u32,
}

impl OwnUser {
    /// With a range of them.
    pub fn with_subordinate_ids() -> Self {
        Self::new(65536)
    }

    /// Makes a tree this user's.
    pub fn give(&self, tree: &Path) {
        let owner = format!("{0}:{0}", self.id);
        assert!(Command::new("chown").args(["-hR", &owner]).arg(tree).status().unwrap().success());
    }

    fn new(subordinate: u32) -> Self {
        let name = format!("sandboxtest{}{}", std::process::id(), if subordinate > 0 { "s" } else { "" });
        // -K: Debian gives subordinate ids to each new user by itself.
        let (uids, gids) = (format!("SUB_UID_COUNT={subordinate}"), format!("SUB_GID_COUNT={subordinate}"));
        let made = Command::new("useradd")
            .args(["--no-create-home", "--user-group", "-K", &uids, "-K", &gids, &name])
            .status()
            .expect("useradd is missing: apt-get install passwd");
        assert!(made.success(), "useradd {name}: {made}");
        let user = nix::unistd::User::from_name(&name).unwrap().unwrap();
        let subuid = fs::read_to_string("/etc/subuid").unwrap_or_default();
        let has = subuid.lines().any(|line| line.starts_with(&format!("{name}:")));
        assert_eq!(has, subordinate > 0, "{name}: {subuid}");
        Self { name, id: user.uid.as_raw() }
    }
}

impl Drop for OwnUser {
    fn drop(&mut self) {
        // Rootless podman leaves a process that holds its namespaces, and the next user made may get the same number.
        let _ = Command::new("pkill").args(["-KILL", "--uid", &self.id.to_string()]).status();
        let _ = Command::new("userdel").args(["--force", &self.name]).stderr(Stdio::null()).status();
    }
}

/// A control group of the memory controller below ours that a user may write, for as long as this lives.
struct Delegated(Option<PathBuf>);

impl Delegated {
    fn new(user: u32) -> Self {
        let dir = own_group().join(format!("slurm-factory-tests-{}", std::process::id()));
        if let Err(e) = fs::create_dir(&dir) {
            println!("no control group for the user: {e}");
            return Self(None);
        }
        for path in [dir.clone(), dir.join("cgroup.procs"), dir.join("cgroup.subtree_control")] {
            if path.exists() {
                chown(path, Some(user), Some(user)).unwrap();
            }
        }
        Self(Some(dir))
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Our own group's folder in the hierarchy of the memory controller, v1 or v2.
pub fn own_group() -> PathBuf {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path =
        |of: &str| groups.lines().find_map(|line| Some(line.split_once(of)?.1.trim_start_matches('/').to_owned()));
    match path(":memory:") {
        Some(path) => Path::new("/sys/fs/cgroup/memory").join(path),
        None => Path::new("/sys/fs/cgroup").join(path("0::").expect("control groups")),
    }
}

fn make_rootfs(rootfs: &Path) {
    if rootfs.exists() {
        return;
    }
    for dir in ["usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "etc", "tmp", "var", "root"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    for (link, to) in [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        symlink(to, rootfs.join(link)).unwrap();
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n_apt:x:42:65534::/:/bin/false\n").unwrap();
    fs::write(rootfs.join("etc/group"), "root:x:0:\nshadow:x:42:\n").unwrap();
    let mut files = BTreeSet::new();
    for (program, package) in PROGRAMS {
        let real = fs::canonicalize(program).unwrap_or_else(|_| panic!("{program}: apt-get install {package}"));
        let name = Path::new(program).file_name().unwrap();
        fs::copy(&real, rootfs.join("usr/bin").join(name)).unwrap();
        let ldd = Command::new("ldd").arg(&real).output().expect("ldd is missing: apt-get install libc-bin");
        let text = String::from_utf8(ldd.stdout).unwrap();
        files.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    let own = std::env::current_exe().unwrap();
    let ldd = Command::new("ldd").arg(&own).output().unwrap();
    let text = String::from_utf8(ldd.stdout).unwrap();
    files.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    // The loader is named by its path in each program; the others are searched.
    for file in files {
        let path = Path::new(&file);
        let folder = if path.starts_with("/lib64") { "usr/lib64" } else { "usr/lib" };
        fs::copy(path, rootfs.join(folder).join(path.file_name().unwrap())).unwrap();
    }
}

/// Plays `slurm-factory`: TERM, INT and HUP set the interrupt, as its signal thread does.
pub fn program(arguments: &[String]) -> i32 {
    use nix::sys::signal::{SigSet, Signal};
    let [spec, io, argv @ ..] = arguments else { return 2 };
    let spec: Spec = serde_json::from_str(spec).unwrap();
    let interrupt = Interrupt::new();
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().unwrap();
    let watcher = interrupt.clone();
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            watcher.set(signal as i32);
        }
    });
    let backend = if io == "podman" { Backend::Podman } else { Backend::Userns };
    let sandbox = match Sandbox::open(backend, &interrupt) {
        Ok(sandbox) if io == "limited" => {
            let limits = Limits { memory: Some(128 << 20), ..Limits::default() };
            let sandbox = sandbox.limited(limits, &interrupt).unwrap();
            println!("{}", sandbox.limits().join("\n"));
            sandbox
        }
        Ok(sandbox) if io == "shared" => Sandbox::remembered(Host { own_proc: false, ..sandbox.host() }),
        Ok(sandbox) => sandbox,
        Err(e) => {
            eprintln!("{e}");
            return 3;
        }
    };
    let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
    let mut lines = |line: &str| println!("{line}");
    let io = match io.as_str() {
        "lines" | "shared" | "podman" | "limited" => Io::Lines(&mut lines),
        "terminal" => Io::Terminal,
        _ => Io::Inherit,
    };
    match sandbox.run(&spec, &argv, io, &interrupt) {
        Ok(exit) => exit.code(),
        Err(e) => {
            eprintln!("{e}");
            interrupt.signal().map_or(3, |signal| 128 + signal)
        }
    }
}

/// Plays `slurm-factory doctor`.
pub fn doctor(arguments: &[String]) -> i32 {
    let folders: Vec<_> = arguments.iter().map(|folder| ("folder", Path::new(folder))).collect();
    let rows = slurm_factory::sandbox::probe(Some(Backend::Userns), &folders, &Interrupt::new()).unwrap();
    println!("{}", serde_json::to_string(&rows).unwrap());
    0
}

/// Runs a program under a filter that refuses: the first argument says what, and with which errno.
///
/// | word | refused |
/// |---|---|
/// | `container` | what container runtimes refuse: new user namespaces, mounts; `clone3` is ENOSYS |
/// | `clone=N` | new user namespaces, as security modules refuse them, with errno N |
/// | `mount=N` | mounts, with errno N |
/// | `ours` | new user namespaces as we make them, and not as podman makes its own |
pub fn refusing(arguments: &[String]) -> i32 {
    use nix::libc;
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    };
    use std::os::unix::process::CommandExt;
    let new_user = u64::try_from(libc::CLONE_NEWUSER).unwrap();
    // What rootless podman asks for.
    let of_podman = new_user | u64::try_from(libc::CLONE_NEWNS | libc::SIGCHLD).unwrap();
    let [what, arguments @ ..] = arguments else { return 2 };
    let (what, number) = what.split_once('=').unwrap_or((what, "1"));
    let errno: i32 = number.parse().unwrap();
    let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, of_podman).unwrap();
    let asks = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(new_user), new_user).unwrap();
    let ours = || vec![SeccompRule::new(vec![asks.clone(), other.clone()]).unwrap()];
    let asks = || vec![SeccompRule::new(vec![asks.clone()]).unwrap()];
    let filters = match what {
        "container" => vec![
            (vec![(libc::SYS_clone, asks()), (libc::SYS_unshare, asks()), (libc::SYS_mount, vec![])], libc::EPERM),
            (vec![(libc::SYS_clone3, vec![])], libc::ENOSYS),
        ],
        "clone" => vec![(vec![(libc::SYS_clone, asks()), (libc::SYS_unshare, asks())], errno)],
        "mount" => vec![(vec![(libc::SYS_mount, vec![])], errno)],
        "ours" => vec![(vec![(libc::SYS_clone, ours())], errno)],
        other => panic!("{other}"),
    };
    for (rules, errno) in filters {
        let action = SeccompAction::Errno(u32::try_from(errno).unwrap());
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, action, arch).unwrap();
        seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    }
    panic!("{}", Command::new(&arguments[0]).args(&arguments[1..]).exec());
}
