//! Limits: that they hold for everything inside, and what is said when they are reached.

use crate::Test;
use crate::hosts::{UNSHARE, said, shell, wrapped};
use crate::world::World;
use slurm_factory::report::Interrupt;
use slurm_factory::sandbox::{Access, Exit, Io, Limits, Sandbox, SandboxError, Spec};
use std::ffi::OsString;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("memory_of_all_together", memory_of_all_together),
    ("memory_of_each_process", memory_of_each_process),
    ("memory_in_a_terminal_less_shell", memory_in_a_terminal_less_shell),
    ("disk", disk),
    ("processors_and_nice", processors_and_nice),
];

const MIB: u64 = 1 << 20;

fn limited(world: &World, limits: Limits) -> Sandbox {
    world.sandbox.clone().limited(limits, &Interrupt::new()).unwrap()
}

fn run(sandbox: &Sandbox, spec: &Spec, script: &str) -> Result<Exit, SandboxError> {
    sandbox.run(spec, &["sh", "-c", script].map(OsString::from), Io::Capture, &Interrupt::new())
}

/// Each of these fits, and together they do not: they hold their memory while they wait for more input.
const TOGETHER: &str = "for i in 1 2 3 4; do (dd if=/dev/zero bs=50M count=1 iflag=fullblock; sleep 2) 2>/dev/null \
                        | (sleep 1; dd of=/dev/null bs=50M iflag=fullblock) & done; wait; exit 3";

fn memory_of_all_together(world: &World) {
    let sandbox = limited(world, Limits { memory: Some(128 * MIB), ..Limits::default() });
    let how = sandbox.limits().join("\n");
    if how.contains("RLIMIT_DATA") {
        // A runner that gives not even root a group; what then holds is `memory_of_each_process`.
        println!("no control group can be made here: {how}");
        let error = run(&sandbox, &world.build(), "dd if=/dev/zero of=/dev/null bs=300M count=1").unwrap_err();
        assert!(matches!(error, SandboxError::OutOfMemory { killed: 0, .. }), "{error}");
        return;
    }
    assert!(how.starts_with("memory 128 MiB (cgroup v") && how.contains(" group below /sys/fs/cgroup"), "{how}");
    let fine = run(&sandbox, &world.build(), "dd if=/dev/zero of=/dev/null bs=50M count=1").unwrap();
    assert!(fine.success(), "{fine:?}");
    // A failure of its own is no lack of memory.
    assert_eq!(run(&sandbox, &world.build(), "exit 7").unwrap().code(), 7);
    for script in ["dd if=/dev/zero of=/dev/null bs=300M count=1", TOGETHER] {
        let error = run(&sandbox, &world.build(), script).unwrap_err();
        assert!(matches!(error, SandboxError::OutOfMemory { killed: 1.., .. }), "{script}: {error}");
        for part in ["memory ran out", "--memory allows 128 MiB (cgroup v", "fewer --jobs"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
    // What is in memory counts too, though no process holds it.
    let error = run(&sandbox, &world.build(), "dd if=/dev/zero of=/tmp/x bs=1M count=300").unwrap_err();
    assert!(matches!(error, SandboxError::OutOfMemory { killed: 1.., .. }), "{error}");
    let parent = how.split_once("group below ").unwrap().1.trim_end_matches(')');
    let own = format!("slurm-factory-{}-", std::process::id());
    let left: Vec<_> = fs_err::read_dir(parent).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().starts_with(&own)), "{left:?}");
}

/// A host without control groups for us: nothing of them is in sight.
fn memory_of_each_process(world: &World) {
    let words = [UNSHARE.as_slice(), &["--mount"]].concat();
    let wrapper = shell(&words, "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"");
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    let within = |script| said(&wrapped(world, &wrapper, &world.as_program(&world.build(), "limited", script)));
    let (code, text) = within("dd if=/dev/zero of=/dev/null bs=300M count=1");
    assert_eq!(code, Some(3), "{text}");
    for part in ["for each process by itself, RLIMIT_DATA; not for all together", "memory ran out", "--memory allows"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let (code, text) = within("dd if=/dev/zero of=/dev/null bs=50M count=1 2>/dev/null; echo fine");
    assert!(code == Some(0) && text.ends_with("\nfine\n"), "{text}");
}

/// With streams of the caller's own nothing is read, and the group still knows.
fn memory_in_a_terminal_less_shell(world: &World) {
    let sandbox = limited(world, Limits { memory: Some(128 * MIB), ..Limits::default() });
    if sandbox.limits().join("").contains("RLIMIT_DATA") {
        return println!("no control group can be made here");
    }
    let argv = ["dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1"].map(OsString::from);
    let error = sandbox.run(&world.build(), &argv, Io::Inherit, &Interrupt::new()).unwrap_err();
    assert!(matches!(error, SandboxError::OutOfMemory { killed: 1, .. }), "{error}");
}

fn disk(world: &World) {
    let dir = world.folder("disk");
    fs_err::write(dir.join("old"), vec![1; 30 << 20]).unwrap();
    let spec = world.build().mount(&dir, "/opt/w", Access::ReadWrite);
    let limits = Limits { disk: Some(20 * MIB), ..Limits::default() };
    let sandbox = limited(world, limits);
    assert_eq!(sandbox.limits(), ["20 MiB written (looked at every second)"]);
    let write = |name: &str, count: u32| format!("dd if=/dev/zero of=/opt/w/{name} bs=1M count={count} 2>/dev/null");
    assert!(run(&sandbox, &spec, &write("a", 15)).unwrap().success());
    // With what was written before it is too much, and it is ended long before it would end by itself.
    let start = Instant::now();
    let error = run(&sandbox, &spec, &format!("{}; sleep 60", write("b", 15))).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let text = error.to_string();
    let SandboxError::DiskQuota { limit, written, folders } = error else { panic!("{text}") };
    assert_eq!((limit, folders), (20 * MIB, vec![dir.clone()]));
    assert!((30 * MIB..32 * MIB).contains(&written), "{written}");
    assert!(text.contains("too much was written: --disk allows 20 MiB, and 30"), "{text}");
    // Nothing more is begun, and a quick writer is found out at its end.
    assert!(run(&sandbox, &spec, "true").is_err());
    let sandbox = limited(world, limits);
    let error = run(&sandbox, &spec, &write("c", 25)).unwrap_err();
    assert!(matches!(error, SandboxError::DiskQuota { .. }), "{error}");
    // The folders in memory are no larger either.
    let sandbox = limited(world, limits);
    let exit = run(&sandbox, &spec, "df -k --output=size /tmp | grep -v K").unwrap();
    assert_eq!(String::from_utf8_lossy(&exit.stdout).trim(), "20480");
}

/// What nice is for us: it is added to.
pub fn own_nice() -> i32 {
    let stat = fs_err::read_to_string("/proc/self/stat").unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap().parse().unwrap()
}

fn processors_and_nice(world: &World) {
    let sandbox = limited(world, Limits { cpus: Some(1), nice: 7, ..Limits::default() });
    assert_eq!(sandbox.limits(), ["1 processors (affinity)", "nice 7"]);
    for spec in [world.build(), world.prepare()] {
        // The 19th field of proc_pid_stat(5).
        let nice = "read -r a b c d e f g h i j k l m n o p q r s rest < /proc/self/stat; echo $s; nproc";
        let exit = run(&sandbox, &spec, nice).unwrap();
        assert_eq!(String::from_utf8_lossy(&exit.stdout), format!("{}\n1\n", own_nice() + 7));
    }
}
