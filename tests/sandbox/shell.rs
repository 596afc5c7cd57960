//! `slurm-factory shell`, the program itself: the last build's sandbox, with and without a terminal, how it ends, and what
//! is remembered of the host.

use crate::Test;
use crate::ending::{Nap, Terminal, only_child, pid};
use crate::world::World;
use fs_err as fs;
use nix::sys::signal::{Signal, kill};
use slurm_factory::sandbox::{Spec, landlock_version};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("shell_runs_a_command", shell_runs_a_command),
    ("shell_at_a_terminal", shell_at_a_terminal),
    ("the_terminal_is_given_back_to_whom_it_belongs", the_terminal_is_given_back_to_whom_it_belongs),
    ("shell_ends_with_all_below", shell_ends_with_all_below),
    ("a_host_is_tried_once", a_host_is_tried_once),
    ("a_host_that_changed_is_tried_anew", a_host_that_changed_is_tried_anew),
];

/// A cache whose last build is `spec`, and the program beside it, where the test's user can start it.
struct Shell {
    program: PathBuf,
    cache: PathBuf,
}

impl Shell {
    fn new(world: &World, name: &str, spec: &Spec) -> Self {
        let program = world.program();
        let cache = world.folder(name);
        fs::write(cache.join("last-build.json"), serde_json::to_vec(spec).unwrap()).unwrap();
        Self { program, cache }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--cache-dir").arg(&self.cache).arg("shell").args(arguments).stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// How often this starts a program, the command included.
    fn starts(&self) -> usize {
        let trace = self.cache.join("trace");
        let status = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=execve", "-e", "status=successful", "-o"])
            .arg(&trace)
            .arg(&self.program)
            .arg("--cache-dir")
            .arg(&self.cache)
            .args(["shell", "--", "/bin/true"])
            .status()
            .expect("strace is missing: apt-get install strace");
        assert!(status.success(), "{status}");
        fs::read_to_string(trace).unwrap().matches("execve(").count()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

fn shell_runs_a_command(world: &World) {
    let shell = Shell::new(world, "shell-command", &world.build());
    // Not SIGHUP or SIGINT, which are ignored in what nohup or a script's `&` has started.
    for (script, code) in
        [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143), ("kill -10 $$", 138)]
    {
        assert_eq!(shell.output(&["--", "sh", "-c", script]).status.code(), Some(code), "{script}");
    }
    let mut child = shell
        .command(&["--", "sh", "-c", "cat; echo error >&2; ls /proc/self/fd"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"passed\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "passed\n0\n1\n2\n3\n",
        "the fourth is of the folder that ls reads"
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "error\n");
    // Commands in a pipe are a script: no prompt, no word of job control, and the end is that of the last one.
    let mut child =
        shell.command(&[]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"echo $-\nread line\nfrom the script\nexit 3\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let flags = String::from_utf8_lossy(&output.stdout);
    assert!(flags.contains('s') && !flags.contains('i') && flags.lines().count() == 1, "{flags}");
    // This rootfs has no locales, and its bash says so.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.lines().all(|line| line.contains("setlocale")), "{said}");
    let output = shell.output(&["--", "no-such-program"]);
    assert!(text(&output).contains("`no-such-program`") && !output.status.success(), "{}", text(&output));
    let printed = text(&shell.output(&["--print"]));
    let landlock =
        landlock_version().map_or("no landlock".into(), |version| format!("landlock here: version {version}"));
    assert!(printed.contains("pivot_root") && printed.contains(&landlock), "{printed}");
    fs::remove_file(shell.cache.join("last-build.json")).unwrap();
    let output = shell.output(&[]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output).contains("slurm-factory build"), "{}", text(&output));
}

fn shell_at_a_terminal(world: &World) {
    let nap = Nap::new();
    let shell = Shell::new(world, "shell-terminal", &world.build().env("PS1", ""));
    let command = shell.command(&["--", "bash", "--norc", "--noprofile", "-i"]);
    let mut terminal = Terminal::with(&command, "stty -echo; TERM=dumb \"$@\"; echo code $?");
    terminal.send("PS1= ; echo $((40 + 2)) ready; echo $TERM\n");
    terminal.expect("42 ready");
    terminal.expect("dumb");
    terminal.send("stty size\n");
    terminal.expect("40 100");
    // It has a name inside, and is a job-controlling session's own.
    terminal.send("tty; test -c $(tty) && echo $((70 + 7)) named; ps -o tty= -p $$\n");
    terminal.expect("/dev/pts/0");
    terminal.expect("77 named");
    terminal.expect("pts/0");
    // The window grows while a program runs that wants to know.
    let watch = "trap 'echo now $(stty size)' WINCH; echo $((40 + 3)) waits; for i in 1 2 3 4 5 6; do sleep 0.2; done";
    terminal.send(&format!("bash -c \"{}\"\n", watch.replace('$', "\\$")));
    terminal.expect("43 waits");
    terminal.resize(50, 132);
    terminal.expect("now 50 132");
    terminal.send("stty size\n");
    terminal.expect("50 132");
    // Ctrl-C ends what runs, not the shell; Ctrl-Z stops it, and the shell goes on with it.
    terminal.send(&format!("{}\n", nap.command()));
    nap.wait_for(1);
    terminal.send("\x03");
    nap.wait_for_none(Duration::from_secs(2));
    terminal.send("echo after $?\n");
    terminal.expect("after 130");
    terminal.send(&format!("{}\n", nap.command()));
    nap.wait_for(1);
    terminal.send("\x1a");
    terminal.expect("Stopped");
    terminal.send("bg; kill %1; wait; echo $((50 + 5)) jobs\n");
    terminal.expect("55 jobs");
    terminal.send("exit 9\n");
    terminal.expect("code 9");
    terminal.end();
}

/// A program inside leaves the terminal raw and without echo; then the shell ends, or is ended.
fn the_terminal_is_given_back_to_whom_it_belongs(world: &World) {
    for signal in [None, Some(Signal::SIGTERM), Some(Signal::SIGHUP)] {
        let nap = Nap::new();
        let shell = Shell::new(world, "shell-restored", &world.build());
        let end = if signal.is_some() { nap.command() } else { "exit 4".into() };
        let command = shell.command(&["--", "sh", "-c", &format!("stty raw -echo; {end}")]);
        let outer = "\"$@\" & echo program $!; fg >/dev/null; echo code $?; \
                     [ \"$(ps -o tpgid= -p $$)\" -eq \"$(ps -o pgid= -p $$)\" ] && echo foreground; stty -a | tr ' ;' '\\n'; echo end";
        let mut terminal = Terminal::with(&command, &format!("set -m; {outer}"));
        let code = match signal {
            None => 4,
            Some(signal) => {
                nap.wait_for(1);
                kill(nix::unistd::Pid::from_raw(terminal.number_after("program ")), signal).unwrap();
                128 + signal as i32
            }
        };
        terminal.expect(&format!("code {code}"));
        terminal.expect("foreground");
        terminal.expect("end");
        let seen = terminal.end();
        for word in ["\nicanon", "\necho\r", "\nisig"] {
            assert!(seen.contains(word), "{signal:?}: {word:?} is not set: {seen}");
        }
        nap.wait_for_none(Duration::from_secs(1));
    }
}

fn shell_ends_with_all_below(world: &World) {
    // The program itself, and the sandbox's first process: there is no helper between them here.
    let shell = Shell::new(world, "shell-ends", &world.build());
    for (depth, signal) in [
        (0, Signal::SIGKILL),
        (1, Signal::SIGKILL),
        (0, Signal::SIGTERM),
        (0, Signal::SIGINT),
        (0, Signal::SIGHUP),
        (1, Signal::SIGTERM),
    ] {
        let nap = Nap::new();
        let script = format!("trap '' HUP; {n} & setsid {n} & {n}", n = nap.command());
        let mut child = shell.command(&["--", "sh", "-c", &script]).stderr(Stdio::piped()).spawn().unwrap();
        nap.wait_for(3);
        let victim = if depth == 0 { pid(&child) } else { only_child(pid(&child)) };
        let start = Instant::now();
        kill(victim, signal).unwrap();
        let status = child.wait().unwrap();
        assert!(start.elapsed() < Duration::from_secs(2), "{depth} {signal}: {:?}", start.elapsed());
        nap.wait_for_none(Duration::from_secs(1));
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
        match (depth, signal) {
            (0, Signal::SIGKILL) => assert_eq!(status.signal(), Some(9)),
            (0, _) => assert_eq!(status.code(), Some(128 + signal as i32), "{said}"),
            (_, Signal::SIGKILL) => {
                assert!(said.contains("by SIGKILL; a memory limit") && !status.success(), "{status} {said}");
            }
            _ => assert_eq!(status.code(), Some(143), "{said}"),
        }
    }
}

fn a_host_is_tried_once(world: &World) {
    let shell = Shell::new(world, "shell-once", &world.build());
    assert_eq!(shell.starts(), 3, "the program, the program again as a helper that tries, the command");
    assert_eq!(shell.starts(), 2, "the program, the command");
    let kept: Vec<_> = fs::read_dir(shell.cache.join("hosts")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1);
    fs::write(&kept[0], "{}").unwrap();
    assert_eq!(shell.starts(), 3, "what is not whole is no answer");
    assert_eq!(shell.starts(), 2);
}

/// The changes are made in a user namespace of the test's own.
fn a_host_that_changed_is_tried_anew(world: &World) {
    let shell = Shell::new(world, "shell-changed", &world.build());
    let within = |script: &str| {
        let program = [&shell.program, Path::new("--cache-dir"), &shell.cache, Path::new("shell"), Path::new("--")];
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh"])
            .args(program)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    // Nothing of what the kept "yes" hangs on shows it, but no new /proc can be mounted any more.
    let output = within(
        "\"$@\" sh -c 'echo first $$' && ls \"$3\"/hosts && mount --bind /dev/null /proc/uptime && \
         \"$@\" sh -c 'cat /proc/uptime; [ $$ -gt 4 ] && echo shared' && ls \"$3\"/hosts && echo end",
    );
    let said = text(&output);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(said, format!("first 2\n{}.json\nshared\nend\n", boot.trim()), "and then it is not kept");
    let output = within("\"$@\" true && echo 0 > /proc/sys/user/max_user_namespaces && \"$@\" true");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("user.max_user_namespaces=0 allows none"), "{said}");
}
