//! A program inside tries to get out: `escape.c`, which prints a line an attempt. And what a build does all day works
//! under the same walls.

use crate::Test;
use crate::world::World;
use fs_err as fs;
use slurm_factory::report::Interrupt;
use slurm_factory::sandbox::{Access, Confinement, Host, Io, Network, Sandbox, Spec, landlock_version};
use std::ffi::OsString;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};

pub const TESTS: &[Test] = &[
    ("nothing_gets_out", nothing_gets_out),
    ("a_relaxed_sandbox_is_told_from_a_strict_one", a_relaxed_sandbox_is_told_from_a_strict_one),
    ("a_site_may_relax_all", a_site_may_relax_all),
    ("a_folder_that_came_in_is_no_way_out", a_folder_that_came_in_is_no_way_out),
    ("without_own_pids_the_host_is_not_signalled", without_own_pids_the_host_is_not_signalled),
    ("builds_link_rename_and_write", builds_link_rename_and_write),
    ("streams_can_be_opened_again", streams_can_be_opened_again),
];

/// The version from which Landlock holds back signals and abstract sockets.
const SCOPED: i32 = 6;

/// What is attacked.
struct Target {
    program: PathBuf,
    secret: PathBuf,
    read_only: PathBuf,
    name: String,
    port: u16,
    _listeners: (UnixListener, TcpListener),
}

impl Target {
    fn new(world: &World, name: &str) -> Self {
        let dir = world.folder(name);
        let program = dir.join("escape");
        // The test's user may not read the sources' folder.
        fs::write(dir.join("escape.c"), include_bytes!("escape.c")).unwrap();
        let made = Command::new("gcc")
            .args(["-static", "-O1", "-Wall", "-Wextra", "-o"])
            .args([&program, &dir.join("escape.c")])
            .output()
            .expect("gcc is missing: apt-get install gcc libc6-dev");
        assert!(made.status.success() && made.stderr.is_empty(), "{}", String::from_utf8_lossy(&made.stderr));
        let (secret, read_only) = (dir.join("secret"), dir.join("read-only"));
        fs::write(&secret, "secret").unwrap();
        fs::create_dir(&read_only).unwrap();
        fs::write(read_only.join("file"), "kept").unwrap();
        fs::set_permissions(read_only.join("file"), std::fs::Permissions::from_mode(0o666)).unwrap();
        let socket = format!("{name}-{}", std::process::id());
        let unix = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&socket).unwrap()).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        Self { program, secret, read_only, name: socket, port, _listeners: (unix, tcp) }
    }

    /// Runs it and returns the attempts that worked.
    fn attack(&self, world: &World, spec: Spec, kind: &str) -> Vec<String> {
        let port = if spec.network == Network::None { self.port } else { 0 };
        let spec = spec.mount(&self.program, "/tmp/escape", Access::ReadOnly).mount(
            &self.read_only,
            "/opt/read-only",
            Access::ReadOnly,
        );
        let own = std::process::id().to_string();
        let (port, inode) = (port.to_string(), fs::metadata("/").unwrap().ino().to_string());
        let secret = self.secret.to_str().unwrap();
        let exit = world
            .run(&spec, &["/tmp/escape", kind, secret, "/opt/read-only", &own, &self.name, &port, &inode])
            .unwrap_or_else(|e| panic!("{kind}: {e}"));
        let said = String::from_utf8(exit.stdout).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        let tried = lines.iter().filter(|line| line.starts_with("ok ") || line.starts_with("ESCAPED ")).count();
        assert!(tried > 100, "{kind}: {said}");
        assert_eq!(lines.last(), Some(&format!("done {tried}").as_str()), "{kind}: {said}");
        assert_eq!(fs::read_to_string(self.read_only.join("file")).unwrap(), "kept");
        assert_eq!(fs::read_dir(&self.read_only).unwrap().count(), 1);
        lines.iter().filter_map(|line| line.strip_prefix("ESCAPED ")).map(str::to_owned).collect()
    }
}

fn nothing_gets_out(world: &World) {
    let host = Target::new(world, "escape");
    for network in [Network::None, Network::Host] {
        for (mut spec, kind) in [(world.build(), "build"), (world.prepare(), "prepare")] {
            spec.network = network;
            let mut worked = host.attack(world, spec, kind);
            if network == Network::Host && landlock_version().is_none_or(|version| version < SCOPED) {
                worked.retain(|name| name != "an abstract socket of the host"); // docs/security.md says so
            }
            assert_eq!(worked, [""; 0], "{kind}, network {network:?}");
        }
    }
}

/// Else the suite would pass on a host that refuses all of it anyway, whatever our filter does.
fn a_relaxed_sandbox_is_told_from_a_strict_one(world: &World) {
    let host = Target::new(world, "escape-relaxed");
    let mut spec = world.build();
    spec.confinement = Confinement::Relaxed;
    let worked = host.attack(world, spec, "build");
    for name in ["unshare a user namespace", "keyctl", "io_uring"] {
        assert!(worked.iter().any(|line| line == name), "{name} is refused without a filter: {worked:?}");
    }
    #[cfg(target_arch = "x86_64")]
    assert!(worked.iter().any(|line| line == "a 32-bit call"), "{worked:?}");
    // What does not hang on the filter holds.
    for name in
        ["read a file in the home of the host's user", "see processes of the host", "use a descriptor that leaked"]
    {
        assert!(!worked.iter().any(|line| line == name), "{name}: {worked:?}");
    }
}

fn a_site_may_relax_all(world: &World) {
    let argv: Vec<OsString> = ["unshare", "--user", "true"].map(OsString::from).into();
    let run = |sandbox: &Sandbox| sandbox.run(&world.build(), &argv, Io::Capture, &Interrupt::new()).unwrap().success();
    assert!(!run(&world.sandbox));
    let relaxed = world.sandbox.clone().confined(Confinement::Relaxed);
    assert!(run(&relaxed) && relaxed.why().contains("relaxed"));
    assert!(!relaxed.plan(&world.build()).unwrap().to_string().contains("seccomp"));
}

/// A folder of the host as standard input leads by `..` to all of the host. What stands in the way is Landlock.
fn a_folder_that_came_in_is_no_way_out(world: &World) {
    let dir = world.folder("came-in");
    fs::create_dir(dir.join("given")).unwrap();
    fs::write(dir.join("secret"), "secret").unwrap();
    let read = |spec: &Spec| {
        let mut program = world.as_program(spec, "inherit", "cat /proc/self/fd/0/../secret");
        let given = fs::File::open(dir.join("given")).unwrap();
        let output = program.stdin(Stdio::from(given.into_parts().0)).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let mut relaxed = world.build();
    relaxed.confinement = Confinement::Relaxed;
    assert_eq!(read(&relaxed), "secret", "without Landlock the test shows nothing");
    let expected = if landlock_version().is_some() { "" } else { "secret" };
    assert_eq!(read(&world.build()), expected);
}

/// As on a host that masks parts of `/proc`.
fn without_own_pids_the_host_is_not_signalled(world: &World) {
    // On older kernels it is as docs/security.md says.
    let reached = if landlock_version().is_some_and(|version| version >= SCOPED) { "" } else { "reached\n" };
    let sandbox = Sandbox::remembered(Host { own_proc: false, ..world.sandbox.host() });
    let own = std::process::id();
    let script = format!("ls -d /proc/{own}; kill -0 {own} && echo reached; kill -0 $$ && echo own");
    let argv: Vec<OsString> = ["sh", "-c", &script].map(OsString::from).into();
    let exit = sandbox.run(&world.build(), &argv, Io::Capture, &Interrupt::new()).unwrap();
    assert_eq!(String::from_utf8(exit.stdout).unwrap(), format!("/proc/{own}\n{reached}own\n"));
}

fn builds_link_rename_and_write(world: &World) {
    let slot = world.folder("slot");
    let spec = world.build().mount(&slot, "/slot", Access::ReadWrite);
    let out = world.ok(
        &spec,
        "cd /slot; mkdir -p store/a/lib view/lib stage; echo text > stage/file; mv stage/file store/a/lib/file; \
         ln store/a/lib/file view/lib/file; ln -s ../store/a/lib view/link; mv store/a store/b; \
         stat -c %h view/lib/file; cat view/lib/file; echo more >> store/b/lib/file; : > store/b/lib/file; \
         rm -r view store; mkdir tmp; touch tmp/f; mv tmp /tmp/moved && ls /tmp/moved; \
         echo 500 > /proc/self/oom_score_adj && cat /proc/self/oom_score_adj; ls",
    );
    assert_eq!(out, "2\ntext\nf\n500\nstage\n");
    // The same in the prepare stage, where the whole rootfs may be written.
    let rootfs = world.own_rootfs("links");
    let out = world.ok(
        &Spec::prepare(&rootfs),
        "mkdir -p /opt/a /opt/b; echo x > /opt/a/f; ln /opt/a/f /opt/b/f; mv /opt/a/f /var/f; stat -c %h /var/f; rm -r /opt",
    );
    assert_eq!(out, "2\n");
}

/// `/dev/stdout` opens what the caller gave: a file of the host.
fn streams_can_be_opened_again(world: &World) {
    let dir = world.folder("streams");
    let file = fs::File::create(dir.join("out")).unwrap();
    let mut program = world.as_program(&world.build(), "inherit", "echo one > /dev/stdout; cat < /dev/stdin >&2");
    fs::write(dir.join("in"), "two\n").unwrap();
    let input = fs::File::open(dir.join("in")).unwrap();
    let output =
        program.stdin(Stdio::from(input.into_parts().0)).stdout(Stdio::from(file.into_parts().0)).output().unwrap();
    assert_eq!(fs::read_to_string(dir.join("out")).unwrap(), "one\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "two\n");
}
