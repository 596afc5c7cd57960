//! The other backend, in the same rootfs: what must be the same is the same.

use crate::Test;
use crate::ending::{Nap, pid};
use crate::limits::own_nice;
use crate::world::World;
use fs_err as fs;
use nix::sys::signal::{Signal, kill};
use slurm_factory::report::Interrupt;
use slurm_factory::sandbox::{Access, Backend, Content, Ended, Io, Limits, Network, Sandbox, SandboxError, Spec};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Duration;

pub const TESTS: &[Test] = &[
    ("podman_runs_what_it_is_given", podman_runs_what_it_is_given),
    ("podman_stands_in_for_root", podman_stands_in_for_root),
    ("podman_ends_all", podman_ends_all),
    ("podman_keeps_limits", podman_keeps_limits),
    ("podman_says_what_is_wrong", podman_says_what_is_wrong),
];

fn open() -> Sandbox {
    let opened = Sandbox::open(Backend::Podman, &Interrupt::new());
    let sandbox =
        opened.unwrap_or_else(|e| panic!("apt-get install podman runc uidmap (or crun, with cgroup v2): {e}"));
    assert_eq!(sandbox.backend(), Backend::Podman);
    sandbox
}

fn run(sandbox: &Sandbox, spec: &Spec, argv: &[&str]) -> slurm_factory::sandbox::Exit {
    let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
    sandbox.run(spec, &argv, Io::Capture, &Interrupt::new()).unwrap_or_else(|e| panic!("{argv:?}: {e}"))
}

fn sh(sandbox: &Sandbox, spec: &Spec, script: &str) -> String {
    let exit = run(sandbox, spec, &["sh", "-c", script]);
    assert!(exit.success(), "{script}: {exit:?} {}", String::from_utf8_lossy(&exit.stderr));
    String::from_utf8(exit.stdout).unwrap()
}

fn podman_runs_what_it_is_given(world: &World) {
    let sandbox = open();
    assert!(sandbox.why().starts_with("podman run"), "{}", sandbox.why());
    let dir = world.folder("podman, \"odd\"");
    fs::write(dir.join("in"), "in\n").unwrap();
    let mut spec = world
        .build()
        .mount(&dir, "/opt/ro", Access::ReadOnly)
        .mount(&dir, "/opt/rw", Access::ReadWrite)
        .overlay("/etc/resolv.conf", Content::Text("ours\n".into()))
        .env("ODD", "a 'b' $c\nd")
        .cwd("/opt/rw");
    spec.shm_size = 8 << 20;
    spec.cpus = Some(1);
    let out = sh(
        &sandbox,
        &spec,
        "cat in /etc/resolv.conf; touch /opt/ro/x /etc/x /x 2>/dev/null; echo out > out; uname -n; nproc; pwd; \
         df -k --output=size /dev/shm | grep -v K; touch /tmp/ok $HOME/ok /var/tmp/ok; grep NoNewPrivs /proc/self/status",
    );
    assert_eq!(out, "in\nours\nslurm-factory\n1\n/opt/rw\n     8192\nNoNewPrivs:\t1\n");
    assert_eq!(fs::read_to_string(dir.join("out")).unwrap(), "out\n");
    assert!(!dir.join("x").exists() && !world.rootfs.join("etc/x").exists());

    let text = String::from_utf8(run(&sandbox, &spec, &["env", "-0"]).stdout).unwrap();
    let seen: BTreeSet<_> = text.split_terminator('\0').map(str::to_owned).collect();
    let mut given: BTreeSet<_> = spec
        .env
        .iter()
        .map(|(name, value)| format!("{}={}", name.to_str().unwrap(), value.to_str().unwrap()))
        .collect();
    given.insert("FORCE_UNSAFE_CONFIGURE=1".into());
    assert_eq!(seen, given);

    assert_eq!(run(&sandbox, &spec, &["sh", "-c", "exit 42"]).ended, Ended::Code(42));
    assert_eq!(run(&sandbox, &spec, &["sh", "-c", "kill -9 $$"]).ended, Ended::Signal(9));
    let mut lines = Vec::new();
    let mut take = |line: &str| lines.push(line.to_owned());
    let argv: Vec<OsString> = ["sh", "-c", "echo a; echo b >&2; echo c"].map(OsString::from).into();
    sandbox.run(&spec, &argv, Io::Lines(&mut take), &Interrupt::new()).unwrap();
    assert_eq!(lines, ["a", "b", "c"]);

    let mut alone = world.build();
    alone.network = Network::None;
    assert_eq!(sh(&sandbox, &alone, "grep -c : /proc/net/dev; grep -c lo: /proc/net/dev"), "1\n1\n");
}

fn podman_stands_in_for_root(world: &World) {
    let sandbox = open();
    let rootfs = world.own_rootfs("podman-root");
    let script = "cd /root; touch f; chown 0:42 f && mknod char c 1 3 && mknod fifo p && ls; id -u; \
                  tar --numeric-owner --owner=4000000000 -cf a.tar f && rm f && tar -xf a.tar && echo unpacked; \
                  unshare -U true 2>/dev/null || echo refused";
    assert_eq!(sh(&sandbox, &Spec::prepare(&rootfs), script), "f\nfifo\n0\nunpacked\nrefused\n");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(rootfs.join("root/a.tar")).unwrap().uid(), nix::unistd::geteuid().as_raw());
}

fn containers() -> usize {
    let output = Command::new("podman").args(["ps", "--all", "--quiet"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().count()
}

fn podman_ends_all(world: &World) {
    let before = containers();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let nap = Nap::new();
        let mut child = world
            .as_program(&world.build(), "podman", &format!("{n} & setsid {n} & {n}", n = nap.command()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        nap.wait_for(3);
        kill(pid(&child), signal).unwrap();
        let status = child.wait().unwrap();
        nap.wait_for_none(Duration::from_secs(10));
        if signal == Signal::SIGTERM {
            assert_eq!(status.code(), Some(143));
        }
    }
    let start = std::time::Instant::now();
    while containers() > before {
        assert!(start.elapsed() < Duration::from_secs(20), "a container is left");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn podman_keeps_limits(world: &World) {
    let limits = Limits { memory: Some(128 << 20), nice: 5, ..Limits::default() };
    let sandbox = open().limited(limits, &Interrupt::new()).unwrap();
    let nice = "read -r a b c d e f g h i j k l m n o p q r s rest < /proc/self/stat; echo $s";
    assert_eq!(sh(&sandbox, &world.build(), nice), format!("{}\n", own_nice() + 5));
    let argv = ["dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1"].map(OsString::from);
    let error = sandbox.run(&world.build(), &argv, Io::Capture, &Interrupt::new()).unwrap_err();
    assert!(matches!(error, SandboxError::OutOfMemory { .. }), "{error}");
}

fn podman_says_what_is_wrong(world: &World) {
    let sandbox = open();
    let spec = world.build().mount("/no/such/source", "/opt/x", Access::ReadOnly);
    let error = sandbox.run(&spec, &["true".into()], Io::Capture, &Interrupt::new()).unwrap_err();
    assert!(matches!(&error, SandboxError::Podman { .. }), "{error:?}");
    assert!(error.to_string().contains("/no/such/source"), "{error}");
}
