//! Images that try to lead out or are not fit for use, and errors that say what to do.

use crate::Test;
use crate::world::World;
use fs_err as fs;
use slurm_factory::sandbox::{Access, Content, Spec};
use std::os::unix::fs::symlink;
use std::path::Path;

pub const TESTS: &[Test] = &[
    ("links_to_the_host_stay_inside", links_to_the_host_stay_inside),
    ("a_link_to_the_root_is_refused", a_link_to_the_root_is_refused),
    ("kernel_folders_that_are_something_else", kernel_folders_that_are_something_else),
    ("files_and_folders_confused", files_and_folders_confused),
    ("links_that_never_end", links_that_never_end),
    ("missing_things_are_named", missing_things_are_named),
    ("a_rootfs_of_somebody_else", a_rootfs_of_somebody_else),
];

/// A rootfs in which `at` has been replaced by a symlink.
fn linked(world: &World, name: &str, at: &str, to: &str) -> std::path::PathBuf {
    let rootfs = world.own_rootfs(name);
    let at = rootfs.join(at.trim_start_matches('/'));
    if fs::symlink_metadata(&at).is_ok() {
        slurm_factory::fsutil::remove_tree(&at).unwrap();
    }
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    symlink(to, at).unwrap();
    rootfs
}

fn resolv(rootfs: &Path) -> Spec {
    Spec::build(rootfs).overlay("/etc/resolv.conf", Content::Text("ours\n".into()))
}

fn refusal(world: &World, spec: &Spec) -> String {
    world.run(spec, &["true"]).unwrap_err().to_string()
}

fn links_to_the_host_stay_inside(world: &World) {
    let victim = world.folder("victim").join("file");
    fs::write(&victim, "host").unwrap();
    let up = format!("../../../../../../../../../..{}", victim.display());
    for to in [victim.to_str().unwrap(), &up, "../run/systemd/resolve/stub-resolv.conf"] {
        let rootfs = linked(world, "linked-out", "/etc/resolv.conf", to);
        assert_eq!(world.ok(&resolv(&rootfs), "cat /etc/resolv.conf"), "ours\n");
        assert_eq!(
            world.ok(
                &Spec::prepare(&rootfs).overlay("/etc/resolv.conf", Content::Text("p\n".into())),
                "cat /etc/resolv.conf"
            ),
            "p\n"
        );
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "host");
    assert_eq!(fs::read_dir(victim.parent().unwrap()).unwrap().count(), 1, "nothing is made on the host");
    // A folder of the host as the mount point's parent.
    let outside = world.folder("outside");
    let rootfs = linked(world, "linked-parent", "/opt", outside.to_str().unwrap());
    let spec = Spec::build(&rootfs).mount(&outside, "/opt/store", Access::ReadOnly);
    world.ok(&spec, "ls -d /opt/store/");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

fn a_link_to_the_root_is_refused(world: &World) {
    for (at, to) in [("/etc/resolv.conf", "/"), ("/etc/resolv.conf", "../.."), ("/etc/resolv.conf", "/etc")] {
        let rootfs = linked(world, "to-root", at, to);
        let error = refusal(world, &resolv(&rootfs));
        assert!(error.contains("/etc/resolv.conf") && error.contains("the image has something else"), "{error}");
    }
    let rootfs = linked(world, "mount-to-root", "/opt", "/");
    let error = refusal(world, &Spec::build(&rootfs).mount(&world.rootfs, "/opt", Access::ReadOnly));
    assert!(error.contains("leads to the image's own /"), "{error}");
    let rootfs = linked(world, "tmp-to-root", "/tmp", "..");
    assert!(refusal(world, &Spec::build(&rootfs)).contains("tmpfs /tmp"));
}

fn kernel_folders_that_are_something_else(world: &World) {
    for name in ["dev", "proc", "sys"] {
        for to in ["/", "/etc", "/usr/../..", "/nowhere"] {
            let rootfs = linked(world, "kernel-link", name, to);
            let error = refusal(world, &Spec::build(&rootfs));
            assert!(error.contains(&format!("`/{name}`")) && error.contains("the image has something else"), "{error}");
        }
        let rootfs = world.own_rootfs("kernel-file");
        let _ = fs::remove_dir(rootfs.join(name));
        fs::write(rootfs.join(name), "a file").unwrap();
        let error = refusal(world, &Spec::prepare(&rootfs));
        assert!(error.contains(&format!("`/{name}`")) && error.contains("ENOTDIR"), "{error}");
    }
    // What is in the image's own /dev does not come through.
    let rootfs = world.own_rootfs("dev-content");
    fs::create_dir_all(rootfs.join("dev")).unwrap();
    fs::write(rootfs.join("dev/null"), "not a device").unwrap();
    symlink("/etc", rootfs.join("dev/shm")).unwrap();
    assert_eq!(world.ok(&Spec::build(&rootfs), "stat -c %F /dev/null /dev/shm"), "character special file\ndirectory\n");
}

fn files_and_folders_confused(world: &World) {
    let rootfs = world.own_rootfs("confused");
    fs::remove_file(rootfs.join("etc/passwd")).unwrap();
    fs::create_dir(rootfs.join("etc/passwd")).unwrap();
    let error = refusal(world, &Spec::build(&rootfs));
    assert!(error.contains("/etc/passwd") && error.contains("EISDIR"), "{error}");
    let dir = world.folder("a-folder");
    fs::write(dir.join("file"), "").unwrap();
    let error = refusal(world, &world.build().mount(&dir, "/usr/bin/env/below", Access::ReadOnly));
    assert!(error.contains("/usr/bin/env/below") && error.contains("ENOTDIR"), "{error}");
    let error = refusal(world, &world.build().mount(dir.join("file"), "/usr", Access::ReadOnly));
    assert!(error.contains("EISDIR"), "{error}");
    let error = refusal(world, &Spec::build(world.rootfs.join("etc/passwd")));
    assert!(error.contains("ENOTDIR"), "{error}");
}

fn links_that_never_end(world: &World) {
    let rootfs = linked(world, "loop", "/etc/resolv.conf", "resolv.conf");
    assert!(refusal(world, &resolv(&rootfs)).contains("ELOOP"));
    let rootfs = linked(world, "spiral", "/etc/resolv.conf", "resolv.conf/x");
    assert!(refusal(world, &resolv(&rootfs)).contains("ELOOP"));
}

fn missing_things_are_named(world: &World) {
    let error = refusal(world, &Spec::build("/no/such/rootfs"));
    assert!(error.contains("`/no/such/rootfs`") && error.contains("the rootfs is gone"), "{error}");
    let error = refusal(world, &world.build().mount("/no/such/source", "/opt/x", Access::ReadOnly));
    assert!(error.contains("`/no/such/source`") && error.contains("does not exist on this host"), "{error}");
    let error = refusal(world, &world.build().mount("relative", "/opt/x", Access::ReadOnly));
    assert!(error.contains("must be an absolute path"), "{error}");
}

/// A site's shared rootfs, which the user cannot write: it works when the mount points are there, and says so
/// when they are not. Root writes everywhere, so this is for the user.
fn a_rootfs_of_somebody_else(world: &World) {
    if world.is_root() {
        return;
    }
    let rootfs = world.rootfs_of_root();
    let dir = world.folder("shared-source");
    let spec = Spec::build(&rootfs).mount(&dir, "/opt/here", Access::ReadWrite);
    world.ok(&spec, "touch /opt/here/file && id -un");
    let error = refusal(world, &Spec::build(&rootfs).mount(&dir, "/opt/missing", Access::ReadOnly));
    assert!(
        error.contains("/opt/missing") && error.contains("EACCES") && error.contains("missing in the rootfs"),
        "{error}"
    );
    let error = refusal(world, &Spec::prepare(&rootfs).overlay("/etc/new", Content::Text(String::new())));
    assert!(error.contains("/etc/new") && error.contains("cannot be written by you"), "{error}");
}
