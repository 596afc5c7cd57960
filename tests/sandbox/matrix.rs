//! The program itself on hosts that allow less: each is made around it. It builds something small in the sandbox, or exits
//! with 3 and says what helps; and `doctor --json` names the cause by its id, with the same exit code.

use crate::Test;
use crate::hosts::{UNSHARE, shell};
use crate::world::{OwnUser, REFUSING, World};
use fs_err as fs;
use nix::libc::{EACCES, ENOSPC, EPERM};
use serde_json::Value;
use slurm_factory::sandbox::{Access, Spec};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const TESTS: &[Test] = &[
    ("matrix_as_it_is", as_it_is),
    ("matrix_with_subordinate_ids", with_subordinate_ids),
    ("matrix_without_user_namespaces", without_user_namespaces),
    ("matrix_podman_is_chosen", podman_is_chosen),
    ("matrix_only_what_was_asked_for", only_what_was_asked_for),
    ("matrix_filters", filters),
    ("matrix_masked_proc", masked_proc),
    ("matrix_no_new_privs", no_new_privs),
    ("matrix_cache_on_an_overlay", cache_on_an_overlay),
    ("matrix_noexec", noexec),
    ("matrix_full_disk", full_disk),
    ("matrix_few_processes", few_processes),
    ("matrix_hostile_rootfs", hostile_rootfs),
];

/// Hard links, scripts, and an archive with foreign owners.
const BUILD: &str = "set -e; cd /opt/w; rm -rf p; mkdir p; cd p; printf '#!/bin/sh\\necho built\\n' > tool; chmod 755 tool; \
                     ln tool hard; tar cf t.tar --owner=4000000 --group=4000000 tool hard; mkdir out; tar xf t.tar -C out; \
                     out/hard";

/// A cache with a last build in it, in a folder of its own.
struct Host {
    dir: PathBuf,
    program: PathBuf,
}

impl Host {
    fn new(world: &World, name: &str, spec: Spec) -> Self {
        let dir = world.folder(name);
        fs::create_dir_all(dir.join("cache")).unwrap();
        fs::create_dir_all(dir.join("w")).unwrap();
        let spec = spec.mount(dir.join("w"), "/opt/w", Access::ReadWrite).host_names();
        fs::write(dir.join("cache/last-build.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        Self { dir, program: world.program() }
    }

    fn run(&self, wrapper: &[&str], backend: &str, words: &[&str]) -> (i32, String, String) {
        let all: Vec<&str> = wrapper.iter().copied().chain([self.program.to_str().unwrap()]).collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).args(["--cache-dir", "cache"]).args(words).current_dir(&self.dir);
        command.env("SLURM_FACTORY_BACKEND", backend).stdin(Stdio::null());
        let output = command.output().unwrap_or_else(|e| panic!("{}: {e}", all[0]));
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    fn build(&self, wrapper: &[&str]) -> (i32, String) {
        let (code, out, err) = self.run(wrapper, "auto", &["shell", "--", "sh", "-c", BUILD]);
        (code, out + &err)
    }

    /// Builds, and the doctor says so.
    fn builds(&self, wrapper: &[&str]) -> Doctor {
        let (code, said) = self.build(wrapper);
        assert!(code == 0 && said.lines().any(|line| line == "built"), "{code} {said}");
        let doctor = self.doctor(wrapper, "auto");
        assert_eq!((doctor.code, &doctor.json["can_build"]), (0, &Value::Bool(true)), "{:#}", doctor.json);
        doctor
    }

    /// Exits with 3 and says these things, and the doctor exits with 3.
    fn refuses(&self, wrapper: &[&str], parts: &[&str]) -> Doctor {
        let (code, said) = self.build(wrapper);
        assert_eq!(code, 3, "{said}");
        for part in parts {
            assert!(said.contains(part), "no `{part}` in {said}");
        }
        let doctor = self.doctor(wrapper, "auto");
        assert_eq!((doctor.code, &doctor.json["can_build"]), (3, &Value::Bool(false)), "{:#}", doctor.json);
        doctor
    }

    fn doctor(&self, wrapper: &[&str], backend: &str) -> Doctor {
        let (code, out, err) = self.run(wrapper, backend, &["doctor", "--json", "--build-dir", "w"]);
        let json = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
        Doctor { code, json }
    }
}

struct Doctor {
    code: i32,
    json: Value,
}

impl Doctor {
    /// A row by its id: its outcome, its errno, and its meaning and remedy as one text.
    fn row(&self, id: &str) -> (&str, Option<i64>, String) {
        let rows = self.json["findings"].as_array().unwrap();
        let row = rows.iter().find(|row| row["id"] == id).unwrap_or_else(|| panic!("no row {id} in {:#}", self.json));
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        (row["outcome"].as_str().unwrap(), row["errno"].as_i64(), format!("{}\n{}", text("meaning"), text("remedy")))
    }

    fn has(&self, id: &str, outcome: &str, errno: Option<i32>, parts: &[&str]) {
        let (found, number, text) = self.row(id);
        assert_eq!((found, number), (outcome, errno.map(i64::from)), "{id}: {text}");
        for part in parts {
            assert!(text.contains(part), "{id}: no `{part}` in {text}");
        }
    }
}

pub fn refs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

pub fn within(kinds: &[&str], line: &'static str) -> Vec<String> {
    shell(&[UNSHARE.as_slice(), kinds].concat(), line)
}

fn refusing(world: &World, what: &str) -> [String; 3] {
    [world.tests().to_str().unwrap().into(), REFUSING.into(), what.into()]
}

fn as_it_is(world: &World) {
    let doctor = Host::new(world, "plain", world.build()).builds(&["env"]);
    assert_eq!(doctor.json["backend"], "userns");
    assert_eq!(doctor.json["sandbox"], "user namespaces: they work");
    doctor.has("cache-exec", "ok", None, &[]);
    doctor.has("build-dir-flock", "ok", None, &[]);
    // None of the two who run the tests has any.
    doctor.has("subuid", "warn", None, &["one id is enough", "usermod --add-subuids"]);
}

/// Only root can make a user who has some.
fn with_subordinate_ids(world: &World) {
    if !world.is_root() {
        return;
    }
    let rootfs = world.own_rootfs("subordinate-rootfs");
    let host = Host::new(world, "subordinate", Spec::build(&rootfs));
    let user = OwnUser::with_subordinate_ids();
    for tree in [&rootfs, &host.dir] {
        user.give(tree);
    }
    let id = user.id.to_string();
    let home = format!("HOME={}", host.dir.display());
    let wrapper = ["env", &home, "setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
    let doctor = host.builds(&wrapper);
    doctor.has("subuid", "ok", None, &[":65536"]);
}

fn without_user_namespaces(world: &World) {
    let host = Host::new(world, "none", world.build());
    let wrapper = within(&[], "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"");
    let doctor = host.refuses(&refs(&wrapper), &["user.max_user_namespaces=0", "sysctl --system"]);
    doctor.has("user-namespace", "fail", Some(ENOSPC), &["echo 'user.max_user_namespaces = 31000'"]);
    doctor.has("max-user-namespaces", "fail", None, &["0"]);
    doctor.has("podman-run", "fail", None, &[]);
    assert!(doctor.json["backend"].is_null(), "{:#}", doctor.json);
}

/// As where a profile allows podman and not us.
fn podman_is_chosen(world: &World) {
    let host = Host::new(world, "podman-chosen", world.build());
    let wrapper = refusing(world, "ours");
    let doctor = host.builds(&refs(&wrapper));
    assert_eq!(doctor.json["backend"], "podman");
    let why = doctor.json["sandbox"].as_str().unwrap();
    assert!(why.starts_with("podman run") && why.contains("a new user namespace fails: "), "{why}");
    assert!(!why.contains('\n'), "{why}");
    doctor.has("user-namespace", "warn", Some(EPERM), &["system call filter"]);
    doctor.has("podman-run", "ok", None, &[]);
    // Not where the other was asked for.
    let doctor = host.doctor(&refs(&wrapper), "userns");
    assert_eq!((doctor.code, &doctor.json["backend"]), (3, &Value::Null));
    doctor.has("user-namespace", "fail", Some(EPERM), &[]);
}

fn only_what_was_asked_for(world: &World) {
    let host = Host::new(world, "asked", world.build());
    // Ours works; podman, which was asked for, is not to be found.
    let words = ["shell", "--", "true"];
    let (code, _, err) = host.run(&["env", "PATH=/nonexistent"], "podman", &words);
    assert!(code == 3 && err.contains("podman") && err.contains("is it installed"), "{code} {err}");
    let (code, _, err) = host.run(&["env", "PATH=/nonexistent"], "auto", &words);
    assert_eq!(code, 0, "{err}");
}

/// What cannot be made here (AppArmor, SELinux, a sysctl) refuses with these errnos.
fn filters(world: &World) {
    let host = Host::new(world, "filters", world.build());
    let container = refusing(world, "container");
    let doctor = host.refuses(&refs(&container), &["a new user namespace", "EPERM", "seccomp=unconfined"]);
    doctor.has("user-namespace", "fail", Some(EPERM), &["system call filter", "seccompProfile"]);
    for (what, id, errno) in [
        (format!("clone={EACCES}"), "user-namespace", EACCES),
        (format!("mount={EACCES}"), "mount-detach", EACCES),
        (format!("clone={ENOSPC}"), "user-namespace", ENOSPC),
    ] {
        let wrapper = refusing(world, &what);
        let doctor = host.refuses(&refs(&wrapper), &[]);
        doctor.has(id, "fail", Some(errno), &[]);
    }
}

fn masked_proc(world: &World) {
    let host = Host::new(world, "masked", world.build());
    let wrapper =
        within(&["--mount", "--pid", "--fork", "--mount-proc"], "mount --bind /dev/null /proc/uptime && exec \"$@\"");
    let doctor = host.builds(&refs(&wrapper));
    doctor.has("mount-proc", "warn", Some(EPERM), &["masked", "unmask=ALL"]);
    assert!(doctor.json["sandbox"].as_str().unwrap().contains("with one restriction"), "{:#}", doctor.json);
}

fn no_new_privs(world: &World) {
    let host = Host::new(world, "nnp", world.build());
    let doctor = host.builds(&["setpriv", "--no-new-privs"]);
    doctor.has("no-new-privs", "warn", None, &["newuidmap"]);
}

/// As in a job in a container, whose disk is an overlay.
fn cache_on_an_overlay(world: &World) {
    let host = Host::new(world, "on-overlay", world.build());
    for dir in ["l", "t"] {
        fs::create_dir(host.dir.join(dir)).unwrap();
    }
    let line = "mount -t tmpfs none t && mkdir t/u t/w && for d in cache w; do mkdir t/u/$d t/w/$d; mount -t overlay -o \
                userxattr,lowerdir=$d,upperdir=t/u/$d,workdir=t/w/$d none $d || exit 9; done; cd . && exec \"$@\"";
    let wrapper = within(&["--mount"], line);
    let doctor = host.builds(&refs(&wrapper));
    doctor.has("cache-file-system", "ok", None, &["overlay"]);
    doctor.has("cache-rename", "ok", None, &[]);
}

fn noexec(world: &World) {
    let host = Host::new(world, "no-exec", world.build());
    let wrapper = within(&["--mount"], "mount -t tmpfs -o noexec none cache && exec \"$@\"");
    let doctor = host.doctor(&refs(&wrapper), "auto");
    assert_eq!(doctor.code, 3);
    doctor.has("cache-exec", "fail", Some(EACCES), &["noexec", "--cache-dir"]);
    doctor.has("build-dir-exec", "ok", None, &[]);
}

fn full_disk(world: &World) {
    let host = Host::new(world, "full", world.build());
    for fill in ["", "head -c 2M /dev/zero > cache/fill 2>/dev/null; "] {
        let line = format!("mount -t tmpfs -o size=1m none cache && {fill} exec \"$@\"");
        let wrapper = within(&["--mount"], Box::leak(line.into_boxed_str()));
        let doctor = host.doctor(&refs(&wrapper), "auto");
        assert_eq!(doctor.code, 3);
        doctor.has("cache-disk", "fail", None, &["6 GiB", "slurm-factory clean", "--cache-dir"]);
        doctor.has("cache-file-system", "ok", None, &["tmpfs"]);
    }
}

/// The limit counts all of a user's processes, and root has none.
fn few_processes(world: &World) {
    if world.is_root() {
        return;
    }
    let host = Host::new(world, "few", world.build());
    let doctor = host.builds(&["prlimit", "--nproc=300:300"]);
    doctor.has("processes", "warn", None, &["300", "ulimit -u"]);
    let (code, said) = host.build(&["prlimit", "--nproc=1:1"]);
    // The first limit that we meet is that of our own threads.
    assert!(code != 0 && !said.contains("built"), "{code} {said}");
}

fn hostile_rootfs(world: &World) {
    let mark = |path: &Path| fs::symlink_metadata(path).map(|found| found.len()).ok();
    let before = mark(Path::new("/etc/resolv.conf"));
    let hostile = |name: &str, change: &dyn Fn(&Path)| {
        let rootfs = world.own_rootfs(&format!("hostile-{name}"));
        change(&rootfs);
        Host::new(world, &format!("with-{name}"), Spec::build(&rootfs)).build(&["env"])
    };
    let (code, said) = hostile("resolv", &|rootfs| symlink("/", rootfs.join("etc/resolv.conf")).unwrap());
    assert!(code == 0 || (code == 3 && said.contains("not usable")), "{code} {said}");
    let (code, said) = hostile("dev", &|rootfs| symlink("/etc", rootfs.join("dev")).unwrap());
    assert!((code == 0 && said.contains("built")) || (code == 3 && said.contains("/dev")), "{code} {said}");
    let (code, said) = hostile("proc", &|rootfs| fs::write(rootfs.join("proc"), "x").unwrap());
    assert!(code == 3 && said.contains("/proc") && said.contains("not usable"), "{code} {said}");
    assert_eq!(mark(Path::new("/etc/resolv.conf")), before);
}
