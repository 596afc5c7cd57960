//! A read-only rootfs that can be written all the same, each way: what is written is seen and thrown away, and the rootfs is as
//! it was. And root in it, for `apt`.

use crate::Test;
use crate::matrix::{refs, within};
use crate::world::World;
use fs_err as fs;
use slurm_factory::cache::Cache;
use slurm_factory::report::Interrupt;
use slurm_factory::sandbox::{Access, Ended, Io, Limits, SandboxError, Spec, Writable};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const TESTS: &[Test] = &[
    ("layers_are_written_and_thrown_away", written_and_thrown_away),
    ("layers_are_chosen_and_explained", chosen_and_explained),
    ("layers_in_memory", in_memory),
    ("layers_for_root", for_root),
    ("layers_over_fuse", over_fuse),
    ("layers_by_a_program_that_fails", by_a_program_that_fails),
];

/// What only a layer that works can do: remove a folder of the rootfs, make it anew, rename, link, append.
const CHANGES: &str = "set -e; rm -r /opt/lower; mkdir /opt/lower; echo new > /opt/lower/f; mv /opt/file /opt/moved; \
                       echo more >> /etc/group; ln /opt/moved /opt/hard; cat /bin/true > /usr/bin/tool; chmod 755 /usr/bin/tool; tool; \
                       cat /opt/lower/f /opt/hard; tail -n 1 /etc/group; rm /usr/bin/uname; test ! -e /usr/bin/uname";

fn rootfs(world: &World, name: &str) -> PathBuf {
    let rootfs = world.own_rootfs(name);
    fs::create_dir_all(rootfs.join("opt/lower/deep")).unwrap();
    fs::write(rootfs.join("opt/lower/deep/f"), "old\n").unwrap();
    fs::write(rootfs.join("opt/file"), "file\n").unwrap();
    fs::copy("/usr/bin/tail", rootfs.join("usr/bin/tail")).unwrap();
    rootfs
}

/// Everything about a tree but the mount points that a first sandbox makes.
fn listing(root: &Path) -> Vec<String> {
    let entries = walkdir::WalkDir::new(root).sort_by_file_name().into_iter().map(Result::unwrap);
    entries
        .map(|entry| (entry.path().to_owned(), entry.metadata().unwrap()))
        .map(|(path, meta)| format!("{} {:o} {} {}", path.display(), meta.mode(), meta.size(), meta.mtime()))
        .collect()
}

/// Whether this user can open `/dev/fuse`.
fn has_fuse() -> bool {
    assert!(Path::new("/usr/bin/fuse-overlayfs").exists(), "apt-get install fuse-overlayfs");
    fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok()
}

fn written_and_thrown_away(world: &World) {
    let rootfs = rootfs(world, "layer-rootfs");
    // A name that means something in a mount's options.
    let dir = world.folder("layers: a,b");
    let cache = Cache::open(&dir.join("cache")).unwrap();
    // The first makes mount points.
    world.ok(&Spec::build(&rootfs), "true");
    let before = listing(&rootfs);
    let argv = ["sh", "-c", CHANGES].map(OsString::from);
    let mut ways = vec![(Writable::Overlay, "overlay"), (Writable::Copy, "copy"), (Writable::Auto, "overlay")];
    if has_fuse() {
        ways.push((Writable::FuseOverlayfs, "fuse-overlayfs"));
    }
    for (way, name) in ways {
        let folder = if way == Writable::FuseOverlayfs { world.folder("fuse-layers") } else { dir.join("layers") };
        let sandbox = world.sandbox.clone().writable(way, &folder, &cache).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(sandbox.why().contains(&format!("can be written: {name} in ")), "{}", sandbox.why());
        for spec in [Spec::build(&rootfs), slurm_factory::sandbox::as_root(Spec::build(&rootfs))] {
            // In the build the group file is ours.
            let spec = Spec { overlays: Vec::new(), ..spec };
            let exit =
                sandbox.run(&spec, &argv, Io::Capture, &Interrupt::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
            let err = String::from_utf8_lossy(&exit.stderr);
            if spec.identity == slurm_factory::sandbox::Identity::Builder {
                // /etc/group is put over the image's, read-only.
                assert!(err.contains("/etc/group"), "{name}: {err}");
            } else {
                assert_eq!(exit.ended, Ended::Code(0), "{name}: {err}");
                assert_eq!(String::from_utf8_lossy(&exit.stdout), "new\nfile\nmore\n", "{name}");
            }
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{name} left something");
            assert_eq!(listing(&rootfs), before, "{name} changed the rootfs");
        }
    }
    let refused = world.sandbox.clone().writable(Writable::FuseOverlayfs, &dir.join("layers"), &cache).unwrap_err();
    assert!(refused.to_string().contains("no folder with `:`"), "{refused}");
    // What may be written anyway is written.
    let sandbox = world.sandbox.clone().writable(Writable::Auto, &dir.join("layers"), &cache).unwrap();
    let argv = ["touch", "/opt/kept"].map(OsString::from);
    let spec = Spec { rootfs_access: Access::ReadWrite, ..Spec::build(&rootfs) };
    assert!(sandbox.run(&spec, &argv, Io::Capture, &Interrupt::new()).unwrap().success());
    assert!(rootfs.join("opt/kept").exists());
    // Without a layer nothing is.
    let exit = world.sh(&Spec::build(&rootfs), "touch /opt/no");
    assert!(!exit.success() && !rootfs.join("opt/no").exists());
}

/// The program in a cache of its own whose last build was in this rootfs.
fn program(world: &World, name: &str, rootfs: &Path, wrapper: &[&str], words: &[&str]) -> (i32, String, String) {
    let cache = world.dir.join(name);
    fs::create_dir_all(&cache).unwrap();
    fs::write(cache.join("last-build.json"), serde_json::to_vec(&Spec::build(rootfs)).unwrap()).unwrap();
    let program = world.program();
    let all: Vec<&str> = wrapper.iter().copied().chain([program.to_str().unwrap(), "--cache-dir", "."]).collect();
    let mut command = Command::new(all[0]);
    let output = command.args(&all[1..]).args(words).current_dir(&cache).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn chosen_and_explained(world: &World) {
    let rootfs = rootfs(world, "chosen-rootfs");
    let call = |words: &[&str]| program(world, "chosen", &rootfs, &["env"], words);
    let touch = ["--", "sh", "-c", "touch /opt/here && echo done"];
    let (code, out, err) = call(&[&["shell", "--writable"], &touch[..]].concat());
    assert!(code == 0 && out == "done\n", "{out}{err}");
    assert!(err.lines().any(|line| line.contains("the rootfs can be written: overlay in ")), "{err}");
    let (code, out, err) = call(&[&["shell", "--writable=copy"], &touch[..]].concat());
    assert!(code == 0 && out == "done\n" && err.contains("written: copy in "), "{out}{err}");
    let (code, _, err) = call(&[&["shell"], &touch[..]].concat());
    assert!(code == 1 && err.contains("Read-only file system"), "{err}");
    let (code, _, err) = call(&[&["shell", "--writable=some"], &touch[..]].concat());
    assert!(code == 2 && err.contains("auto, overlay, fuse-overlayfs, copy"), "{err}");
    let (code, out, err) = call(&[&["shell", "--writable=fuse-overlayfs"], &touch[..]].concat());
    if has_fuse() {
        assert!(code == 0 && out == "done\n", "{err}");
    } else {
        // Only that one, and why not.
        assert_eq!(code, 3, "{err}");
        assert!(
            err.contains("fuse-overlayfs: /dev/fuse is not there or closed") && err.contains("--writable (overlay"),
            "{err}"
        );
    }
    // What is printed is what would be done, and making it is not.
    let layers = fs::canonicalize(world.dir.join("chosen")).unwrap().join("work/layers");
    let (root, layer) = (rootfs.display(), layers.join(".tmp-...").display().to_string());
    for (how, line) in [
        ("overlay", format!("root {root}, with what is written in an overlay, {layer}")),
        ("copy", format!("root {layer}/root")),
        ("none", format!("root {root}")),
    ] {
        let (code, out, err) = call(&["shell", "--print", &format!("--writable={how}")]);
        assert_eq!(code, 0, "{err}");
        assert!(out.lines().any(|have| have.trim() == line), "no `{line}` in {out}");
        assert_eq!(out.lines().any(|have| have.trim() == "remount / read-only"), how == "none", "{out}");
    }
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 0);
    let (_, out, _) = call(&["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    let row = |id: &str| json["findings"].as_array().unwrap().iter().find(|row| row["id"] == id).cloned();
    let fuse = if has_fuse() { "ok" } else { "warn" };
    for (id, outcome) in [
        ("writable-overlay", "ok"),
        ("writable-overlay-memory", "ok"),
        ("writable-fuse-overlayfs", fuse),
        ("writable-copy", "ok"),
    ] {
        let row = row(id).unwrap_or_else(|| panic!("no row {id} in {json:#}"));
        assert_eq!(row["outcome"], outcome, "{row:#}");
    }
}

/// As in a job in a container, whose disk is an overlay: that can be no upper layer.
fn in_memory(world: &World) {
    let rootfs = rootfs(world, "memory-rootfs");
    let line = "mkdir -p work t && mount -t tmpfs none t && mkdir t/l t/u t/w && mount -t overlay -o \
                userxattr,lowerdir=t/l,upperdir=t/u,workdir=t/w none work && exec \"$@\"";
    let wrapper = within(&["--mount"], line);
    let call = |disk: &str, script: &str| {
        let limit = format!("SLURM_FACTORY_DISK={disk}");
        let wrapper: Vec<&str> = ["env", &limit].into_iter().chain(refs(&wrapper)).collect();
        program(world, "in-memory", &rootfs, &wrapper, &["shell", "--writable=overlay", "--", "sh", "-c", script])
    };
    let (code, out, err) = call("0", "rm -r /opt/lower && mkdir /opt/lower && echo done");
    assert!(code == 0 && out == "done\n", "{out}{err}");
    assert!(err.contains("overlay in memory (overlay with its upper layer in "), "{err}");
    let (code, _, err) = call("64M", "dd if=/dev/zero of=/opt/large bs=1M count=70");
    assert!(code == 1 && err.contains("No space left"), "{code} {err}");
}

fn for_root(world: &World) {
    let rootfs = rootfs(world, "root-rootfs");
    fs::create_dir_all(rootfs.join("etc/apt/apt.conf.d")).unwrap();
    let script = "id -u; touch /etc/mine && chown 42:42 /etc/mine && echo given; cat /etc/apt/apt.conf.d/99*; echo $HOME; \
                  grep -c _apt /etc/passwd";
    let (code, out, err) =
        program(world, "for-root", &rootfs, &["env"], &["shell", "--root", "--", "sh", "-c", script]);
    assert_eq!((code, out.as_str()), (0, "0\ngiven\nAPT::Sandbox::User \"root\";\n/root\n1\n"), "{err}");
    assert!(!rootfs.join("etc/mine").exists());
    // Ended by a limit, it leaves nothing either.
    let dir = world.folder("layer-limit");
    let cache = Cache::open(&dir.join("cache")).unwrap();
    let limits = Limits { disk: Some(1 << 20), ..Limits::default() };
    let sandbox = world.sandbox.clone().limited(limits, &Interrupt::new()).unwrap();
    let sandbox = sandbox.writable(Writable::Overlay, &dir.join("layers"), &cache).unwrap();
    let argv = ["sh", "-c", "dd if=/dev/zero of=/opt/large bs=1M count=50; sleep 20"].map(OsString::from);
    let ended = sandbox.run(&Spec::build(&rootfs), &argv, Io::Capture, &Interrupt::new());
    assert!(matches!(ended, Err(SandboxError::DiskQuota { .. })), "{ended:?}");
    assert_eq!(fs::read_dir(dir.join("layers")).unwrap().count(), 0);
}

/// A rootfs on sshfs or ceph-fuse is of the same kind of file system as the layer over it, and must not be taken for it.
fn over_fuse(world: &World) {
    if !has_fuse() {
        println!("layers_over_fuse: /dev/fuse is closed to {}, who then gets no such layer", world.who);
        return;
    }
    let rootfs = rootfs(world, "over-fuse-rootfs");
    // Mount points are made in it now, so that nothing is written to it later.
    world.ok(&Spec::build(&rootfs), "true");
    let dir = world.folder("over-fuse-shared");
    for name in ["upper", "work", "seen"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    let line = "fuse-overlayfs -f -o lowerdir=$LOWER,upperdir=$SHARED/upper,workdir=$SHARED/work $SHARED/seen & serves=$!; \
                until mountpoint -q $SHARED/seen; do kill -0 $serves || exit 99; sleep 0.01; done; \
                \"$@\"; code=$?; kill $serves; wait $serves; exit $code";
    let wrapper = within(&["--mount"], line);
    let (lower, shared) = (format!("LOWER={}", rootfs.display()), format!("SHARED={}", dir.display()));
    let wrapper: Vec<&str> = ["env", &lower, &shared].into_iter().chain(refs(&wrapper)).collect();
    let call = |words: &[&str]| program(world, "over-fuse", &dir.join("seen"), &wrapper, words);
    let script = "rm -r /opt/lower && touch /opt/new && echo done";
    for _ in 0..5 {
        let (code, out, err) = call(&["shell", "--writable=fuse-overlayfs", "--", "sh", "-c", script]);
        assert!(code == 0 && out == "done\n", "{code} {out}{err}");
        assert!(!dir.join("upper/opt").exists(), "the shared rootfs was written to");
    }
}

/// A device that opens and is none: what the program says of it is passed on.
fn by_a_program_that_fails(world: &World) {
    let rootfs = rootfs(world, "failing-rootfs");
    let wrapper = within(&["--mount"], "mount --bind /dev/null /dev/fuse && exec \"$@\"");
    let words = ["shell", "--writable=fuse-overlayfs", "--", "true"];
    let (code, _, err) = program(world, "failing", &rootfs, &refs(&wrapper), &words);
    assert_eq!(code, 3, "{err}");
    let said = err.split_once("fuse-overlayfs did not mount it: ").map(|(_, said)| said.trim());
    assert!(said.is_some_and(|said| said.contains("fuse")), "{err}");
}
