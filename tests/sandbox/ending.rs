//! How a command ends, how it is ended, and that nothing survives it.

use crate::Test;
use crate::world::World;
use fs_err as fs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use slurm_factory::report::Interrupt;
use slurm_factory::sandbox::{Ended, Host, Io, Sandbox, SandboxError};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("exit_codes_and_signals", exit_codes_and_signals),
    ("a_command_that_is_not_there", a_command_that_is_not_there),
    ("orphans_are_reaped", orphans_are_reaped),
    ("what_is_left_behind_is_ended", what_is_left_behind_is_ended),
    ("a_callback_that_panics_ends_the_sandbox", a_callback_that_panics_ends_the_sandbox),
    ("lines_come_in_order", lines_come_in_order),
    ("much_output_is_carried", much_output_is_carried),
    ("standard_input_is_passed", standard_input_is_passed),
    ("interrupt_ends_all_within_a_second", interrupt_ends_all_within_a_second),
    ("interrupt_before_the_start", interrupt_before_the_start),
    ("signals_to_the_program_end_all", signals_to_the_program_end_all),
    ("a_command_that_ignores_term_is_killed", a_command_that_ignores_term_is_killed),
    ("a_second_signal_kills_at_once", a_second_signal_kills_at_once),
    ("sigkill_of_any_process_ends_all", sigkill_of_any_process_ends_all),
    ("out_of_memory_ends_all", out_of_memory_ends_all),
    ("no_mount_is_left", no_mount_is_left),
    ("a_terminal_is_handed_over_and_back", a_terminal_is_handed_over_and_back),
    ("a_closed_terminal_ends_all", a_closed_terminal_ends_all),
    ("without_own_pids_nothing_survives_either", without_own_pids_nothing_survives_either),
];

fn exit_codes_and_signals(world: &World) {
    for code in [0, 1, 42, 125, 127, 255] {
        let exit = world.sh(&world.build(), &format!("exit {code}"));
        assert_eq!((exit.ended, exit.code(), exit.success()), (Ended::Code(code), code, code == 0));
    }
    for signal in [9, 11, 15] {
        let exit = world.sh(&world.build(), &format!("kill -{signal} $$"));
        assert_eq!((exit.ended, exit.code()), (Ended::Signal(signal), 128 + signal));
    }
}

fn a_command_that_is_not_there(world: &World) {
    let error = world.run(&world.build(), &["no-such-program"]).unwrap_err();
    assert!(matches!(&error, SandboxError::Start { errno: nix::libc::ENOENT, .. }), "{error:?}");
    assert!(
        error.to_string().contains("`no-such-program`") && error.to_string().contains("not in the image"),
        "{error}"
    );
    let error = world.run(&world.build(), &["/etc/passwd"]).unwrap_err().to_string();
    assert!(error.contains("EACCES") && error.contains("not executable"), "{error}");
    assert!(world.run(&world.build(), &[]).is_err());
}

fn orphans_are_reaped(world: &World) {
    let out = world
        .ok(&world.build(), "(sleep 0.05 & sleep 0.05 & sleep 0.05 &); sleep 0.4; grep -h State /proc/[0-9]*/status");
    assert!(!out.contains('Z'), "{out}");
}

fn what_is_left_behind_is_ended(world: &World) {
    let nap = Nap::new();
    let start = Instant::now();
    world.ok(&world.build(), &format!("{n} & setsid {n} & (setsid {n} &); true", n = nap.command()));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(nap.count(), 0);
}

fn a_callback_that_panics_ends_the_sandbox(world: &World) {
    let nap = Nap::new();
    let argv: Vec<OsString> =
        ["sh", "-c", &format!("{n} & echo line; {n}", n = nap.command())].map(OsString::from).into();
    let nap_inside = nap.clone();
    let mut take = |_: &str| {
        nap_inside.wait_for(2);
        panic!("as the test wants");
    };
    let run = std::panic::AssertUnwindSafe(|| {
        let _ = world.sandbox.run(&world.build(), &argv, Io::Lines(&mut take), &Interrupt::new());
    });
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let result = std::panic::catch_unwind(run);
    std::panic::set_hook(hook);
    assert!(result.is_err());
    nap.wait_for_none(Duration::from_secs(1));
}

fn lines_come_in_order(world: &World) {
    let mut lines = Vec::new();
    let mut take = |line: &str| lines.push(line.to_owned());
    let argv: Vec<OsString> = ["sh", "-c", "echo a; echo b >&2; echo; printf 'c\\r\\n'; printf '\\377d'; printf e >&2"]
        .map(OsString::from)
        .into();
    world.sandbox.run(&world.build(), &argv, Io::Lines(&mut take), &Interrupt::new()).unwrap();
    assert_eq!(lines, ["a", "b", "", "c", "\u{fffd}de"]);
}

fn much_output_is_carried(world: &World) {
    let exit = world
        .sh(&world.build(), "dd if=/dev/zero bs=1M count=8 2>/dev/null; dd if=/dev/zero bs=1M count=4 >&2 2>/dev/null");
    assert_eq!((exit.stdout.len(), exit.stderr.len()), (8 << 20, 4 << 20));
    let mut longest = 0;
    let mut take = |line: &str| longest = longest.max(line.len());
    let argv: Vec<OsString> = ["dd", "if=/dev/zero", "bs=1M", "count=1"].map(OsString::from).into();
    world.sandbox.run(&world.build(), &argv, Io::Lines(&mut take), &Interrupt::new()).unwrap();
    assert!(longest < 200 << 10, "a line without an end is cut: {longest}");
}

fn standard_input_is_passed(world: &World) {
    let mut child = world
        .as_program(&world.build(), "inherit", "cat; exit 3")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"hello"[..], Some(3)));
}

const STUBBORN: &str = "trap '' TERM; ";

fn interrupt_ends_all_within_a_second(world: &World) {
    let nap = Nap::new();
    let script = format!("{n} & setsid {n} & (setsid {n} &) ; {n}", n = nap.command());
    let interrupt = Interrupt::new();
    let later = interrupt.clone();
    let nap_in_thread = nap.clone();
    let thread = std::thread::spawn(move || {
        nap_in_thread.wait_for(4);
        later.set(2);
        Instant::now()
    });
    let argv = ["sh".into(), "-c".into(), script.into()];
    let result = world.sandbox.run(&world.build(), &argv, Io::Capture, &interrupt);
    let told = thread.join().unwrap();
    assert!(matches!(result, Err(SandboxError::Interrupted(i)) if i.signal == 2), "{result:?}");
    assert_eq!(nap.count(), 0, "all are gone when run returns");
    assert!(told.elapsed() < Duration::from_secs(1), "{:?}", told.elapsed());
}

fn interrupt_before_the_start(world: &World) {
    let interrupt = Interrupt::new();
    interrupt.set(15);
    let result = world.sandbox.run(&world.build(), &["true".into()], Io::Capture, &interrupt);
    assert!(matches!(result, Err(SandboxError::Interrupted(_))), "{result:?}");
}

fn signals_to_the_program_end_all(world: &World) {
    for (signal, io) in [
        (Signal::SIGTERM, "lines"),
        (Signal::SIGINT, "lines"),
        (Signal::SIGHUP, "inherit"),
        (Signal::SIGTERM, "inherit"),
    ] {
        let nap = Nap::new();
        let mut child = world
            .as_program(&world.build(), io, &format!("{n} & setsid {n} & {n}", n = nap.command()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        nap.wait_for(3);
        kill(pid(&child), signal).unwrap();
        let start = Instant::now();
        let status = child.wait().unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "{signal} {io}: {:?}", start.elapsed());
        assert_eq!(status.code(), Some(128 + signal as i32), "{io}");
        assert_eq!(nap.count(), 0, "{signal} {io}");
    }
}

fn a_command_that_ignores_term_is_killed(world: &World) {
    let nap = Nap::new();
    let script = format!("{STUBBORN}{n} & while true; do {n}; done", n = nap.command());
    let mut child = world.as_program(&world.build(), "lines", &script).stderr(Stdio::null()).spawn().unwrap();
    nap.wait_for(2);
    kill(pid(&child), Signal::SIGTERM).unwrap();
    let start = Instant::now();
    child.wait().unwrap();
    let took = start.elapsed();
    assert!(took > Duration::from_millis(600) && took < Duration::from_secs(2), "{took:?}");
    assert_eq!(nap.count(), 0);
}

fn a_second_signal_kills_at_once(world: &World) {
    let nap = Nap::new();
    let mut spec = world.build();
    spec.grace_ms = 60_000;
    let script = format!("{STUBBORN}while true; do {n}; done", n = nap.command());
    let mut child = world.as_program(&spec, "lines", &script).stderr(Stdio::null()).spawn().unwrap();
    nap.wait_for(1);
    kill(pid(&child), Signal::SIGINT).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none());
    let start = Instant::now();
    kill(pid(&child), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(1));
    nap.wait_for_none(Duration::from_secs(1));
}

fn sigkill_of_any_process_ends_all(world: &World) {
    // The program, its helper, the first process inside.
    for depth in 0..3 {
        let nap = Nap::new();
        let mut child = world
            .as_program(&world.build(), "lines", &format!("{STUBBORN}{n} & setsid {n} & {n}", n = nap.command()))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        nap.wait_for(3);
        let mut victim = pid(&child);
        for _ in 0..depth {
            victim = only_child(victim);
        }
        kill(victim, Signal::SIGKILL).unwrap();
        nap.wait_for_none(Duration::from_secs(1));
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        match depth {
            0 => assert_eq!(status.signal(), Some(9)),
            1 => assert!(said.contains("the sandbox was ended from outside"), "{said}"),
            _ => assert!(said.contains("by SIGKILL; a memory limit"), "{said}"),
        }
    }
}

/// A real lack of memory, by the limit of a group around the program, as a login node or a Slurm job has it: the kernel
/// ends the sandbox's first process, then, in another run, the command. Root alone can make such a group here.
fn out_of_memory_ends_all(world: &World) {
    if !world.is_root() {
        return;
    }
    let cache = world.folder("oom");
    fs::write(cache.join("last-build.json"), serde_json::to_vec(&world.build()).unwrap()).unwrap();
    for (first, code, says) in [
        (true, 137, "ended from outside by SIGKILL: memory ran out, and the kernel ended"),
        (false, 137, "memory ran out, and the kernel ended 1 of its processes; the limit"),
    ] {
        let group = Limited::new(96 << 20);
        let nap = Nap::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let eats = "exec dd if=/dev/zero of=/dev/null bs=300M count=1";
        let script = format!("setsid {n} & {n} & echo ready; read x; {eats}", n = nap.command());
        let mut child = Command::new("sh")
            .args(["-c", "echo $$ > \"$0\"; exec \"$@\""])
            .arg(group.dir.join("cgroup.procs"))
            .arg(world.program())
            .args(["--cache-dir", cache.to_str().unwrap(), "shell", "--", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        nap.wait_for(2);
        let inside = children(child.id());
        let [pid] = inside[..] else { panic!("{inside:?}") };
        if first {
            // Whom the kernel prefers.
            fs::write(format!("/proc/{pid}/oom_score_adj"), "1000").unwrap();
        }
        writeln!(child.stdin.take().unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(says) && said.contains("of the control group (96 MiB"), "{said}");
        assert!(said.contains("--jobs"), "{said}");
        assert_eq!(nap.count(), 0, "when the program has ended nothing runs");
        assert_eq!(fs::read_to_string(group.dir.join("cgroup.procs")).unwrap(), "");
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
    }
}

/// A control group with a limit of memory, below the one that we are in, for as long as this lives.
struct Limited {
    dir: std::path::PathBuf,
}

impl Limited {
    fn new(limit: u64) -> Self {
        let dir = crate::world::own_group().join(format!("sandbox-oom-{}", std::process::id()));
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("root cannot make a control group here: {e}"));
        for (file, value) in
            [("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", limit), ("memory.max", limit)]
        {
            if dir.join(file).exists() {
                fs::write(dir.join(file), value.to_string()).unwrap();
            }
        }
        Self { dir }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn children(of: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn no_mount_is_left(world: &World) {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = world.folder("mount-left");
    let spec = world.build().mount(&dir, "/opt/somewhere", slurm_factory::sandbox::Access::ReadWrite);
    world.ok(&spec, "true");
    assert!(world.run(&spec.cwd("/not/there"), &["true"]).is_err());
    let nap = Nap::new();
    let mut child = world.as_program(&world.build(), "lines", &nap.command()).spawn().unwrap();
    nap.wait_for(1);
    child.kill().unwrap();
    child.wait().unwrap();
    nap.wait_for_none(Duration::from_secs(1));
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

/// A shell on a pseudo-terminal runs the program, as a user at a terminal does.
fn a_terminal_is_handed_over_and_back(world: &World) {
    let nap = Nap::new();
    let mut terminal = Terminal::start(
        world,
        "stty -echo; trap 'echo outer got it' INT; \"$@\"; echo code $?; \
         [ \"$(ps -o tpgid= -p $$)\" -eq \"$(ps -o pgid= -p $$)\" ] && echo foreground; stty | grep -c -- -echo",
        "exec bash --norc --noprofile -i",
    );
    terminal.send("PS1= ; echo $((40 + 2)) ready\n");
    terminal.expect("42 ready");
    terminal.send(&format!("{}\n", nap.command()));
    nap.wait_for(1);
    terminal.send("\x03");
    nap.wait_for_none(Duration::from_secs(2));
    terminal.send(&format!("{}\n", nap.command()));
    nap.wait_for(1);
    terminal.send("\x1a"); // Ctrl-Z: job control of the inner shell
    terminal.send("jobs; stty size; tty < /dev/tty; kill %1; echo still $((40 + 4))\n");
    terminal.expect("Stopped");
    terminal.expect("40 100");
    terminal.expect("still 44");
    terminal.send("stty raw; exit 7\n");
    terminal.expect("code 7");
    terminal.expect("foreground");
    terminal.expect("1");
    let seen = terminal.end();
    assert!(!seen.contains("outer got it"), "Ctrl-C reached the outside: {seen}");
    // A plain command is ended by Ctrl-C as well.
    let mut terminal = Terminal::start(world, "\"$@\"; echo code $?", &format!("exec {}", nap.command()));
    nap.wait_for(1);
    terminal.send("\x1a"); // nobody could continue it, so it goes on
    std::thread::sleep(Duration::from_millis(100));
    terminal.send("\x03");
    terminal.expect("code 130");
    terminal.end();
}

fn a_closed_terminal_ends_all(world: &World) {
    let nap = Nap::new();
    let mut terminal = Terminal::start(world, "exec \"$@\"", &format!("setsid {n} & {n}", n = nap.command()));
    nap.wait_for(2);
    terminal.hang_up();
    nap.wait_for_none(Duration::from_secs(2));
}

/// As on a host that masks parts of `/proc`: no pid namespace.
fn without_own_pids_nothing_survives_either(world: &World) {
    let sandbox = Sandbox::remembered(Host { own_proc: false, ..world.sandbox.host() });
    let bystander = Nap::new();
    let mut outside = Command::new("sleep").arg(&bystander.0).spawn().unwrap();
    let nap = Nap::new();
    let argv = |script: String| ["sh".into(), "-c".into(), script.into()];
    let leave =
        argv(format!("{n} & setsid {n} & (setsid {n} &); ls -d /proc/{}; exit 5", outside.id(), n = nap.command()));
    let exit = sandbox.run(&world.build(), &leave, Io::Capture, &Interrupt::new()).unwrap();
    assert_eq!(exit.ended, Ended::Code(5));
    assert_eq!(nap.count(), 0);

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let nap = Nap::new();
        let mut child = world
            .as_program(&world.build(), "shared", &format!("{STUBBORN}{n} & (setsid {n} &) ; {n}", n = nap.command()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        nap.wait_for(3);
        kill(pid(&child), signal).unwrap();
        child.wait().unwrap();
        nap.wait_for_none(Duration::from_secs(2));
    }
    assert_eq!(bystander.count(), 1, "a process outside was ended");
    outside.kill().unwrap();
    outside.wait().unwrap();
}

pub fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

pub fn only_child(of: Pid) -> Pid {
    let children = fs::read_dir(format!("/proc/{of}/task"))
        .unwrap()
        .map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap());
    Pid::from_raw(children.collect::<String>().trim().parse().unwrap())
}

/// A `sleep` that can be told from all others on this machine, also from outside.
#[derive(Clone)]
pub struct Nap(String);

impl Nap {
    pub fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(format!("9{:07}.{:04}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    pub fn command(&self) -> String {
        format!("sleep {}", self.0)
    }

    fn count(&self) -> usize {
        let wanted = [b"sleep\0", self.0.as_bytes(), b"\0"].concat();
        let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        processes.filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == wanted)).count()
    }

    pub fn wait_for(&self, count: usize) {
        let start = Instant::now();
        while self.count() != count {
            assert!(start.elapsed() < Duration::from_secs(20), "{} of {count} run", self.count());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_for_none(&self, within: Duration) {
        let start = Instant::now();
        while self.count() > 0 {
            assert!(start.elapsed() < within, "{} still run", self.count());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A pseudo-terminal with a shell that runs the program in it.
pub struct Terminal {
    master: Option<std::fs::File>,
    child: Child,
    seen: String,
    /// How much of it earlier expectations have used up.
    read: usize,
}

impl Terminal {
    fn start(world: &World, outer: &str, inner: &str) -> Self {
        Self::with(&world.as_program(&world.build().env("TERM", "dumb"), "terminal", inner), outer)
    }

    /// `outer` is a line of bash, in which `"$@"` is the program.
    pub fn with(program: &Command, outer: &str) -> Self {
        let size = nix::pty::Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        nix::fcntl::fcntl(&pty.master, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).unwrap();
        let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        // setsid -c: the terminal becomes the new session's own.
        let child = Command::new("setsid")
            .args(["-c", "-w", "bash", "--norc", "-c", outer, "outer"])
            .arg(program.get_program())
            .args(program.get_args())
            .stdin(slave(&pty.slave))
            .stdout(slave(&pty.slave))
            .stderr(slave(&pty.slave))
            .spawn()
            .expect("setsid is missing: apt-get install util-linux");
        Self { master: Some(pty.master.into()), child, seen: String::new(), read: 0 }
    }

    pub fn send(&mut self, text: &str) {
        self.master.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Reads on until `text` comes.
    pub fn expect(&mut self, text: &str) {
        use nix::poll::{PollFd, PollFlags, poll};
        use std::os::fd::AsFd;
        let start = Instant::now();
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.seen[self.read..].find(text) {
                self.read += at + text.len();
                return;
            }
            let left = Duration::from_secs(20).saturating_sub(start.elapsed());
            assert!(!left.is_zero(), "no `{text}` in: {}", self.seen);
            let master = self.master.as_mut().unwrap();
            let ready = poll(&mut [PollFd::new(master.as_fd(), PollFlags::POLLIN)], 100_u16).unwrap();
            if ready > 0 {
                let length = master.read(&mut buffer).unwrap_or_else(|e| panic!("{e}: no `{text}` in: {}", self.seen));
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        }
    }

    /// The number that follows `text`, when it and the line's end have come.
    pub fn number_after(&mut self, text: &str) -> i32 {
        self.expect(text);
        let from = self.read;
        self.expect("\n");
        self.seen[from..].lines().next().unwrap().trim().parse().unwrap()
    }

    /// As the user's window does.
    #[allow(unsafe_code)]
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let master = self.master.as_ref().unwrap();
        // SAFETY: TIOCSWINSZ reads one such structure from the pointer, which is valid for the call.
        let done = unsafe {
            nix::libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(master), nix::libc::TIOCSWINSZ, &raw const size)
        };
        assert_eq!(done, 0);
    }

    pub fn hang_up(&mut self) {
        self.master = None;
        self.child.wait().unwrap();
    }

    pub fn end(mut self) -> String {
        self.child.wait().unwrap();
        std::mem::take(&mut self.seen)
    }
}
