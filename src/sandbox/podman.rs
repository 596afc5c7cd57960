//! The fallback: podman makes the namespaces, in our own rootfs (`podman run --rootfs`).
//!
//! For hosts where a program without a profile gets no rights in a user namespace while podman, which has
//! one, does (Ubuntu 23.10 and later). Same mounts, files, environment, network and filters; what differs:
//!
//! - One id is mapped, and container runtimes insist on it being 0 inside. So [`Identity::Builder`] is uid 0
//!   here as well, with the fake root filter against tar's chown, and `FORCE_UNSAFE_CONFIGURE=1`, without
//!   which some packages' configure scripts refuse to be run by root.
//! - The command is started by `sh` in the image, which is process 1. Nothing of the environment is on a command line:
//!   the call, quoted, is in a file that only the caller can read.
//! - podman's containers outlive podman. Here the container's standard input is a pipe that we hold: when it
//!   closes, on an interrupt or because this program is gone, a watcher inside ends everything.
//!
//! podman reads its own configuration from the caller's environment, so that is what it gets.

use super::error::SandboxError;
use super::findings::{Finding, Outcome};
use super::limits::Enter;
use super::ops::Filter;
use super::plan::{self, Host};
use super::run::{Ended, Exit, Io, Output, in_foreground};
use super::seccomp::oci_profile;
use super::spec::{Access, Confinement, Content, FILES_INSIDE, Identity, Network, Spec};
use crate::fsutil::remove_tree;
use crate::process::{ProcessError, Program, quoted};
use crate::report::Interrupt;
use fs_err as fs;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{AccessFlags, Pid};
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What a host may need to be told, tried in this order. With cgroups that the caller may not use, crun
/// fails; it can do without any, but only on a host with the unified hierarchy; runc copes with the others.
const VARIANTS: [&[&str]; 3] = [&["--cgroups=disabled"], &[], &["--runtime=runc"]];

/// Longer than podman needs for its first container on a busy host; one that waits for a lock for ever shall not make us wait.
const PATIENCE: Duration = Duration::from_mins(2);

/// Maps one id, also for callers with subordinate ids: what is made in the rootfs belongs to the caller.
const ONE_ID: [&str; 4] = ["--uidmap", "0:0:1", "--gidmap", "0:0:1"];

/// podman, and how it must be called here.
#[derive(Debug, Clone)]
pub(super) struct Podman {
    flags: Vec<String>,
}

/// Which podman there is.
pub(super) fn version(interrupt: &Interrupt) -> Result<Finding, SandboxError> {
    let (outcome, meaning) = match Program::new("podman").arg("--version").output(interrupt) {
        Ok(output) => (Outcome::Ok, String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Err(ProcessError::Interrupted(interrupted)) => return Err(interrupted.into()),
        Err(ProcessError::Start { .. }) => (Outcome::Warn, "not installed".into()),
        Err(e) => (Outcome::Warn, e.to_string()),
    };
    Ok(Finding { id: "podman".into(), tried: "podman --version".into(), outcome, errno: None, meaning, remedy: None })
}

impl Podman {
    /// Starts a container for real, from a rootfs that consists of the host's own programs.
    pub(super) fn open(interrupt: &Interrupt) -> Result<Result<Self, Finding>, SandboxError> {
        sweep(&scratch());
        let rootfs = tempfile::tempdir_in(scratch()).map_err(files)?;
        let mut call: Vec<OsString> = Vec::new();
        for name in ["usr", "bin", "lib", "lib64"] {
            let host = Path::new("/").join(name);
            match fs::read_link(&host) {
                Ok(to) => symlink(to, rootfs.path().join(name)).map_err(files)?,
                Err(_) if host.is_dir() => call.extend(["--mount".into(), bind(&host, &host, Access::ReadOnly)]),
                Err(_) => {}
            }
        }
        let mut meaning = String::new();
        for flags in VARIANTS {
            let program =
                Program::new("podman").args(["run", "--rm", "--network=host"]).args(flags).args(ONE_ID).args(limits());
            let program = program.args(&call).arg("--rootfs").arg(rootfs.path()).arg("/usr/bin/true").timeout(PATIENCE);
            match program.output(interrupt) {
                Ok(_) => return Ok(Ok(Self { flags: flags.iter().map(|flag| (*flag).to_owned()).collect() })),
                Err(ProcessError::Interrupted(interrupted)) => return Err(interrupted.into()),
                Err(e @ (ProcessError::Start { .. } | ProcessError::TimedOut { .. })) => {
                    meaning = e.to_string();
                    break;
                }
                Err(e) => meaning = e.to_string(),
            }
        }
        Ok(Err(Finding {
            id: "podman-run".into(),
            tried: "starting a container with podman".into(),
            outcome: Outcome::Fail,
            errno: None,
            meaning,
            remedy: Some("Ask an administrator to install podman with crun or runc, and to let you use it.".into()),
        }))
    }

    /// Whether its containers stay in the control group that it was started in.
    pub(super) fn keeps_groups(&self) -> bool {
        self.flags.iter().any(|flag| flag == "--cgroups=disabled")
    }

    /// How it is called, for messages.
    pub(super) fn describe(&self) -> String {
        ["podman run"].into_iter().chain(self.flags.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
    }

    /// Runs `argv` in a container.
    #[allow(clippy::disallowed_methods)] // a program of the host with streams and a terminal of the caller's
    pub(super) fn run(
        &self,
        spec: &Spec,
        host: &Host,
        argv: &[OsString],
        io: Io<'_>,
        interrupt: &Interrupt,
        limits: &Enter<'_>,
    ) -> Result<Exit, SandboxError> {
        interrupt.check()?;
        plan::plan(spec, host)?; // the same nonsense is refused
        let terminal = matches!(io, Io::Terminal) && in_foreground();
        let own_streams = matches!(io, Io::Inherit | Io::Terminal);
        let merged = matches!(io, Io::Lines(_));
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(scratch()).map_err(files)?;
        let (group, memory, nice) = limits.for_podman();
        let start = Start { spec, argv, watch: !own_streams, merged, memory };
        let nice = format!("{nice}");
        let mut command = Command::new("nice");
        if let Some(file) = group {
            // podman goes on in the group that the shell has joined, and without groups of its own so does the container.
            command = Command::new("/bin/sh");
            command.args(["-c", "echo $$ > \"$0\" && exec nice \"$@\""]).arg(file);
        }
        command.args(["-n", &nice, "podman"]);
        command.args(self.arguments(spec, folder.path(), &start, terminal)?);

        let mut output = Output::new(io);
        let (stdout, stderr) = output.ends()?;
        let mut errors = None;
        let mut watched = None;
        command.stdout(stdout);
        if own_streams {
            command.stderr(stderr);
        } else {
            let pipe = |source| SandboxError::Helper { doing: "make a pipe for", source };
            let (held, hold) = io::pipe().map_err(pipe)?;
            watched = Some(hold);
            command.stdin(held).process_group(0);
            if merged {
                // What podman itself has to say is for its error, not among the command's lines.
                drop(stderr);
                let (reader, writer) = io::pipe().map_err(pipe)?;
                errors = Some(reader);
                command.stderr(writer);
            } else {
                command.stderr(stderr);
            }
        }
        let mut child = command.spawn().map_err(|source| SandboxError::Helper { doing: "start podman as", source })?;
        drop(command);

        let podman = Pid::from_raw(child.id().cast_signed());
        let watched = Mutex::new(watched);
        let guard = interrupt.on_signal(move |_| match watched.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(hold) => drop(hold),
            None => drop(kill(podman, if own_streams { Signal::SIGTERM } else { Signal::SIGKILL })),
        });
        let errors = errors.map(|mut reader| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                let _ = reader.read_to_end(&mut text);
                text
            })
        });
        let carried = output.carry(None, None);
        while waitid(Id::Pid(podman), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        drop(guard); // and with it our end of the watcher's pipe
        let status = child.wait();
        let errors = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();

        interrupt.check()?;
        carried.map_err(|source| SandboxError::Helper { doing: "listen to", source })?;
        status.map_err(|source| SandboxError::Helper { doing: "wait for", source })?;
        let code = fs::read_to_string(folder.path().join(STATUS)).ok().and_then(|text| text.trim().parse().ok());
        if let Some(code) = code {
            return Ok(Exit { ended: ended(code), stdout: output.stdout, stderr: output.stderr, memory: None });
        }
        let said = if merged { errors } else { output.stderr };
        Err(SandboxError::Podman { call: self.describe(), said: String::from_utf8_lossy(&said).trim().into() })
    }

    fn arguments(
        &self,
        spec: &Spec,
        folder: &Path,
        start: &Start<'_>,
        terminal: bool,
    ) -> Result<Vec<OsString>, SandboxError> {
        let mut filters = vec![Filter::FakeRoot];
        if spec.confinement == Confinement::Strict {
            filters.push(Filter::Deny);
        }
        let profile = folder.join("seccomp.json");
        write(&profile, oci_profile(&filters).to_string().as_bytes())?;
        let inside = folder.join("inside");
        fs::create_dir(&inside).map_err(files)?;
        write(&inside.join(START), &start.script())?;
        // The container writes here; where it is on the host is what `run` reads.
        symlink(Path::new("inside").join(STATUS_INSIDE), folder.join(STATUS)).map_err(files)?;

        let mut call: Vec<OsString> = vec!["run".into(), "--rm".into(), "--pull=never".into()];
        call.extend(self.flags.iter().map(OsString::from));
        call.extend(ONE_ID.map(OsString::from));
        call.extend(limits().map(OsString::from));
        call.push(if terminal { "--interactive=true" } else { "--interactive" }.into());
        if terminal {
            call.push("--tty".into());
        }
        call.push(if spec.network == Network::None { "--network=none" } else { "--network=host" }.into());
        call.extend(["--hostname".into(), OsString::from(&spec.hostname), "--no-hosts".into()]);
        call.push(format!("--shm-size={}b", spec.shm_size).into());
        call.extend(["--security-opt".into(), "no-new-privileges".into()]);
        call.extend(["--security-opt".into(), joined("seccomp=", &profile)]);
        if spec.identity == Identity::Builder {
            call.push("--cap-drop=all".into());
        }
        if spec.rootfs_access == Access::ReadOnly {
            call.extend(["--read-only".into(), "--read-only-tmpfs=false".into()]);
        }
        for tmpfs in spec.tmpfs.iter().filter(|tmpfs| !spec.mounts.iter().any(|m| m.target == tmpfs.target)) {
            let size = tmpfs.size.map(|size| format!(",size={size}")).unwrap_or_default();
            let options = format!(":rw,exec,notmpcopyup,mode={:o}{size}", tmpfs.mode);
            let mut text = tmpfs.target.clone().into_os_string();
            text.push(options);
            call.extend(["--tmpfs".into(), text]);
        }
        call.extend(["--mount".into(), bind(&inside, Path::new(FILES_INSIDE), Access::ReadWrite)]);
        for (index, overlay) in spec.overlays.iter().enumerate() {
            let bytes = match &overlay.content {
                Content::Text(text) => text.clone().into_bytes(),
                Content::HostFile { path, then } => [fs::read(path).unwrap_or_default(), then.clone().into()].concat(),
            };
            let source = match overlay.target.strip_prefix(FILES_INSIDE) {
                Ok(name) => inside.join(name),
                Err(_) => folder.join(format!("{index}")),
            };
            write(&source, &bytes)?;
            if !overlay.target.starts_with(FILES_INSIDE) {
                call.extend(["--mount".into(), bind(&source, &overlay.target, Access::ReadOnly)]);
            }
        }
        for mount in &spec.mounts {
            call.extend(["--mount".into(), bind(&mount.source, &mount.target, mount.access)]);
        }
        call.extend(["--workdir".into(), spec.cwd.clone().into_os_string()]);
        call.extend(["--rootfs".into(), spec.rootfs.clone().into_os_string()]);
        call.extend(["/bin/sh".into(), joined("", &Path::new(FILES_INSIDE).join(START))]);
        Ok(call)
    }
}

const PREFIX: &str = "slurm-factory-";
const START: &str = "start";
const STATUS: &str = "status";
const STATUS_INSIDE: &str = "ended";

/// The file that process 1 reads.
struct Start<'a> {
    spec: &'a Spec,
    argv: &'a [OsString],
    watch: bool,
    merged: bool,
    /// Of each process, in bytes.
    memory: Option<u64>,
}

impl Start<'_> {
    fn script(&self) -> Vec<u8> {
        // The environment may hold a proxy's password: it is off the disk before the command starts.
        let mut text = OsString::from(format!("rm -f {FILES_INSIDE}/{START}\n"));
        if self.watch {
            let grace = self.spec.grace_ms.div_ceil(1000);
            text.push(format!(
                "exec 3<&0 </dev/null\n\
                 (cat <&3 >/dev/null 2>&1; kill -TERM -1; sleep {grace}; kill -KILL -1) >/dev/null 2>&1 &\n\
                 exec 3<&-\n"
            ));
        }
        if self.merged {
            text.push("exec 2>&1\n");
        }
        if let Some(bytes) = self.memory {
            text.push(format!("ulimit -d {}\n", bytes.div_ceil(1024)));
        }
        if let Some(list) = self.spec.cpus.and_then(processors) {
            text.push(format!("taskset -c {list} "));
        }
        text.push("env -i FORCE_UNSAFE_CONFIGURE=1");
        for (name, value) in &self.spec.env {
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            text.push(" ");
            text.push(quoted(&pair));
        }
        for argument in self.argv {
            text.push(" ");
            text.push(quoted(argument));
        }
        text.push(format!("\necho $? > {FILES_INSIDE}/{STATUS_INSIDE}\n"));
        text.into_vec()
    }
}

/// A `--mount` value: comma-separated, a field in double quotes when it needs them (RFC 4180).
fn bind(source: &Path, target: &Path, access: Access) -> OsString {
    let field = |key: &str, path: &Path| {
        let text = joined(key, path);
        if !text.as_bytes().iter().any(|byte| matches!(byte, b',' | b'"' | b'\n')) {
            return text;
        }
        let doubled = text
            .as_bytes()
            .iter()
            .flat_map(|byte| if *byte == b'"' { &b"\"\""[..] } else { std::slice::from_ref(byte) });
        OsString::from_vec([b"\"".to_vec(), doubled.copied().collect(), b"\"".to_vec()].concat())
    };
    let mut text = OsString::from("type=bind,");
    text.push(field("src=", source));
    text.push(",");
    text.push(field("dst=", target));
    text.push(if access == Access::ReadOnly { ",ro=true" } else { ",ro=false" });
    text
}

fn joined(key: &str, path: &Path) -> OsString {
    let mut text = OsString::from(key);
    text.push(path);
    text
}

/// The first so many processors of those allowed, as `taskset` wants them.
fn processors(count: usize) -> Option<String> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let list = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).take(count);
    Some(list.map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(","))
}

/// The caller's own limits: podman would set higher ones for root, which root of a namespace may not, and it
/// lowers its own number of processes to the highest process number first.
fn limits() -> [String; 2] {
    let highest = fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
    let limit = |name, resource, highest: u64| {
        let (soft, hard) = getrlimit(resource).unwrap_or((1024, 1024));
        format!("--ulimit={name}={}:{}", soft.min(highest), hard.min(highest))
    };
    [
        limit("nofile", Resource::RLIMIT_NOFILE, 1 << 20),
        limit("nproc", Resource::RLIMIT_NPROC, highest.unwrap_or(32768)),
    ]
}

/// The shell says 128 and the signal's number for a signal.
fn ended(code: i32) -> Ended {
    match code {
        129..=192 => Ended::Signal(code - 128),
        code => Ended::Code(code),
    }
}

/// Where small files go that may hold secrets: memory if there is one for us.
fn scratch() -> PathBuf {
    let own = PathBuf::from(format!("/run/user/{}", nix::unistd::geteuid()));
    // In a user namespace the folder of this number may be another's.
    let ours = |dir: &PathBuf| nix::unistd::access(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    [own, PathBuf::from("/dev/shm")].into_iter().find(ours).unwrap_or_else(|| "/tmp".into())
}

/// Removes what runs left behind that were killed: their folders carry the number of a process that is gone.
fn sweep(scratch: &Path) {
    let Ok(entries) = fs::read_dir(scratch) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = remove_tree(&entry.path()); // another user's cannot be removed
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), SandboxError> {
    fs::write(path, bytes)
        .and_then(|()| fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)))
        .map_err(files)
}

fn files(source: io::Error) -> SandboxError {
    SandboxError::Helper { doing: "write files for", source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn leftovers_of_the_dead_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let own = format!("{PREFIX}{}-x", std::process::id());
        for name in [own.as_str(), "slurm-factory-999999999-y", "slurm-factory-none", "other-999999999-z"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        sweep(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert!(dir.path().join(own).exists());
    }

    #[test]
    fn mounts_with_commas_and_quotes() {
        let text = bind(Path::new("/a,b"), Path::new("/c\"d"), Access::ReadOnly);
        assert_eq!(text, OsStr::new(r#"type=bind,"src=/a,b","dst=/c""d",ro=true"#));
        assert_eq!(
            bind(Path::new("/a"), Path::new("/b"), Access::ReadWrite),
            OsStr::new("type=bind,src=/a,dst=/b,ro=false")
        );
    }

    #[test]
    fn no_variable_is_on_the_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let spec = Spec::build("/r").env("https_proxy", "http://me:secret@proxy");
        let start = Start { spec: &spec, argv: &["true".into()], watch: true, merged: true, memory: None };
        let podman = Podman { flags: vec!["--runtime=runc".into()] };
        let call = podman.arguments(&spec, folder.path(), &start, false).unwrap();
        assert!(!call.iter().any(|word| word.to_string_lossy().contains("secret")), "{call:?}");
        let script = folder.path().join("inside").join(START);
        assert!(fs::read_to_string(&script).unwrap().contains("'https_proxy=http://me:secret@proxy'"));
        assert_eq!(fs::metadata(&script).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(call.contains(&"--read-only".into()) && call.contains(&"--cap-drop=all".into()), "{call:?}");
    }
}
