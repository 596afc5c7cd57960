//! Hosts that allow less: each is made around the program, which then works or says why not and what helps.
//! What cannot be made here (AppArmor, SELinux, a sysctl of Debian's old kernels) is tested by injected errnos
//! in `src/sandbox/findings.rs`.

use crate::Test;
use crate::world::{REFUSING, World};
use slurm_factory::sandbox::{Finding, Outcome};
use std::process::{Command, Output, Stdio};

pub const TESTS: &[Test] = &[
    ("no_user_namespaces", no_user_namespaces),
    ("root_of_a_container", root_of_a_container),
    ("root_without_capabilities", root_without_capabilities),
    ("masked_proc", masked_proc),
    ("no_new_privileges", no_new_privileges),
    ("a_filter_that_refuses_namespaces", a_filter_that_refuses_namespaces),
    ("in_a_chroot", in_a_chroot),
    ("too_few_processes", too_few_processes),
    ("noexec", noexec),
    ("the_doctor_here", the_doctor_here),
];

/// In a user namespace, as root there.
pub const UNSHARE: [&str; 3] = ["unshare", "--user", "--map-root-user"];

/// Runs the program in the build sandbox within these words of command line.
fn within(world: &World, wrapper: &[&str], script: &str) -> Output {
    wrapped(world, wrapper, &world.as_program(&world.build(), "lines", script))
}

pub fn wrapped(world: &World, wrapper: &[&str], program: &Command) -> Output {
    let [first, rest @ ..] = wrapper else { panic!("no wrapper") };
    let mut command = Command::new(first);
    command.args(rest).arg(program.get_program()).args(program.get_args());
    command.stdin(Stdio::null()).current_dir(&world.dir).output().unwrap_or_else(|e| panic!("{first}: {e}"))
}

pub fn said(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn refused(output: &Output, parts: &[&str]) {
    let (code, text) = said(output);
    assert_eq!(code, Some(3), "{text}");
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

fn works(output: &Output, expect: &str) {
    assert_eq!(said(output), (Some(0), expect.to_owned()));
}

pub fn shell(prefix: &[&str], script: &'static str) -> Vec<String> {
    let words = ["sh", "-c", script, "sh"];
    prefix.iter().chain(&words).map(|word| (*word).to_owned()).collect()
}

fn no_user_namespaces(world: &World) {
    let wrapper = shell(&UNSHARE, "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"");
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    let output = within(world, &wrapper, "true");
    refused(
        &output,
        &["a new user namespace: ", "ENOSPC", "user.max_user_namespaces=0 allows none", "sysctl --system"],
    );
    let wrapper = shell(&UNSHARE, "echo 0 > /proc/sys/user/max_mnt_namespaces; exec \"$@\"");
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    refused(&within(world, &wrapper, "true"), &["a new mount namespace", "user.max_mnt_namespaces=0"]);
}

fn root_of_a_container(world: &World) {
    works(&within(world, &UNSHARE, "id -u; cat /proc/1/comm > /dev/null && echo ok"), "1000\nok\n");
}

fn root_without_capabilities(world: &World) {
    let bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let wrapper = [UNSHARE.as_slice(), bare.as_slice()].concat();
    refused(&within(world, &wrapper, "true"), &["mapping your uid", "EPERM", "CAP_SETFCAP", "--cap-add SETFCAP"]);
}

/// As in a container that hides parts of /proc: no new one can be mounted.
fn masked_proc(world: &World) {
    let masked = [UNSHARE.as_slice(), &["--pid", "--fork", "--mount-proc"]].concat();
    let wrapper = shell(&masked, "mount --bind /dev/null /proc/uptime && exec \"$@\"");
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    let output = within(world, &wrapper, "cat /proc/uptime; id -un; [ $$ -gt 2 ] && echo shared");
    works(&output, "builder\nshared\n");
    let doctor = wrapped(world, &wrapper, &world.doctor(&[]));
    let row = row(&findings(&doctor), "mount-proc");
    assert_eq!((row.outcome, row.errno), (Outcome::Warn, Some(nix::libc::EPERM)));
    assert!(row.meaning.contains("masked"), "{row}");
}

fn no_new_privileges(world: &World) {
    works(&within(world, &["setpriv", "--no-new-privs"], "echo fine"), "fine\n");
}

fn a_filter_that_refuses_namespaces(world: &World) {
    let program = std::env::current_exe().unwrap();
    let wrapper = [program.to_str().unwrap(), REFUSING, "container"];
    refused(
        &within(world, &wrapper, "true"),
        &["a new user namespace", "EPERM", "system call filter", "seccomp=unconfined"],
    );
}

/// Only root can make a chroot; the program in it is an ordinary user.
fn in_a_chroot(world: &World) {
    if !world.is_root() {
        return;
    }
    let rootfs = world.own_rootfs("chroot");
    for name in ["proc", "dev"] {
        fs_err::create_dir_all(rootfs.join(name)).unwrap();
    }
    fs_err::copy(std::env::current_exe().unwrap(), rootfs.join("usr/bin/program")).unwrap();
    let script = format!(
        "mount --rbind /proc {r}/proc && mount --rbind /dev {r}/dev && exec chroot --userspec=65534:65534 {r} \"$@\"",
        r = rootfs.display()
    );
    let program = world.as_program(&world.build(), "lines", "true");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh", "/usr/bin/program"])
        .args(program.get_args())
        .output()
        .unwrap();
    refused(&output, &["a new user namespace", "EPERM", "in a chroot"]);
}

/// The limit counts all of a user's processes, and root has none.
fn too_few_processes(world: &World) {
    if world.is_root() {
        return;
    }
    let mut seen = Vec::new();
    for limit in 1..30 {
        let output = within(world, &["prlimit", &format!("--nproc={limit}")], "true");
        let (code, text) = said(&output);
        if code == Some(0) {
            assert!(seen.iter().any(|text: &String| text.contains("ulimit -u")), "{seen:?}");
            return;
        }
        seen.push(text);
    }
    panic!("never worked: {seen:?}");
}

fn noexec(world: &World) {
    let dir = world.folder("noexec");
    let wrapper =
        shell(&[UNSHARE.as_slice(), &["--mount"]].concat(), "mount -t tmpfs -o noexec none noexec && exec \"$@\"");
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    let row = row(&findings(&wrapped(world, &wrapper, &world.doctor(&[&dir]))), "folder-exec");
    assert_eq!((row.outcome, row.errno), (Outcome::Fail, Some(nix::libc::EACCES)), "{row}");
    assert!(
        row.meaning.contains("noexec") && row.remedy.as_ref().is_some_and(|text| text.contains("--cache-dir")),
        "{row}"
    );
}

fn the_doctor_here(world: &World) {
    let rows = findings(&world.doctor(&[&world.dir]).output().unwrap());
    for id in [
        "user-namespace",
        "mount-namespace",
        "pid-namespace",
        "ipc-namespace",
        "uts-namespace",
        "net-namespace",
        "id-map",
        "mount-detach",
        "mount-tmpfs",
        "mount-devpts",
        "mount-proc",
        "mount-sysfs",
        "seccomp-fake-root",
        "seccomp-deny",
        "nested-user-namespace",
        "folder-exec",
        "folder-flock",
        "folder-rename",
        "folder-link",
        "memory",
        "processors",
        "limit-memory",
        "clock",
        "processes",
        "no-new-privs",
    ] {
        let row = row(&rows, id);
        assert_eq!((row.outcome, row.errno), (Outcome::Ok, None), "{row}");
    }
    for id in ["newuidmap", "subuid", "podman"] {
        assert_ne!(row(&rows, id).outcome, Outcome::Fail);
    }
    if !world.is_root() {
        let subuid = row(&rows, "subuid");
        assert_eq!(subuid.outcome, Outcome::Warn);
        assert!(subuid.remedy.unwrap().contains("usermod --add-subuids"));
    }
}

fn findings(output: &Output) -> Vec<Finding> {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {:?}", said(output)))
}

fn row(rows: &[Finding], id: &str) -> Finding {
    rows.iter().find(|row| row.id == id).unwrap_or_else(|| panic!("no row {id} in {rows:?}")).clone()
}
