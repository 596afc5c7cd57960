//! A package as an OCI image, in the hands of skopeo and podman; and the page of a cache, on disk.

use crate::util::*;
use slurm_factory::cache::Cache;
use slurm_factory::package::{Compression, Facts, Package, Request};
use slurm_factory::report::Ctx;
use std::path::Path;

/// A base image as an OCI layout: one layer with a static busybox.
fn base(dir: &Path) -> String {
    base_with(dir, None)
}

/// The same with a library in the place of the C library.
fn base_with(dir: &Path, libc: Option<&Path>) -> String {
    let root = dir.join("root");
    if let Some(libc) = libc {
        std::fs::create_dir_all(root.join("usr/lib/x86_64-linux-gnu")).unwrap();
        std::fs::copy(libc, root.join("usr/lib/x86_64-linux-gnu/libc.so.6")).unwrap();
    }
    for name in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).is_file());
    std::fs::copy(busybox.expect("busybox is missing: apt-get install busybox-static"), root.join("bin/busybox"))
        .unwrap();
    for name in ["sh", "echo", "cat", "env"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    let layout = dir.join("base");
    let image = format!("{}:latest", layout.display());
    run(tool("umoci", "umoci").arg("init").arg("--layout").arg(&layout));
    run(tool("umoci", "umoci").args(["new", "--image", &image]));
    run(tool("umoci", "umoci").args(["insert", "--image", &image]).arg(&root).arg("/"));
    run(tool("umoci", "umoci").args(["config", "--image", &image, "--config.env", "PATH=/bin", "--config.env", "A=b"]));
    format!("oci:{image}")
}

fn program(home: &Path, args: &[&str]) -> Answer {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_slurm-factory"));
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", home).current_dir(home);
    answer(command.args(args))
}

#[test]
fn a_base_image_with_an_older_glibc_is_refused() {
    let libc = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6"];
    let libc = libc.into_iter().map(Path::new).find(|path| path.is_file()).expect("this host has no glibc");
    let home = tempfile::Builder::new().prefix("oci").tempdir_in("/tmp").unwrap();
    let public = home.path().join("key.asc");
    std::fs::write(&public, key().public_armored().unwrap()).unwrap();
    for name in ["none", "some"] {
        std::fs::create_dir(home.path().join(name)).unwrap();
    }
    // One in a program's own folder is none of the image's.
    let own = home.path().join("none/root/opt/tool/lib");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::copy(libc, own.join("libc.so.6")).unwrap();
    let bases = [base(&home.path().join("none")), base_with(&home.path().join("some"), Some(libc))];
    for (needed, fits) in [("2.17", [false, true]), ("9.99", [false, false])] {
        let builds = home.path().join(needed);
        std::fs::create_dir(&builds).unwrap();
        let tree = home.path().join(format!("tree-{needed}"));
        std::fs::create_dir(&tree).unwrap();
        make_tree(&tree);
        let floor =
            serde_json::json!({"version": needed, "file": "view/bin/sinfo", "symbol": "x", "library": "libc.so.6"});
        let facts = Facts { glibc: Some(serde_json::from_value(floor).unwrap()), ..facts() };
        let cache = Cache::open(&builds.join(".cache")).unwrap();
        let (name, contents) = (name(), contents(&tree));
        let compression = Compression::GZIP;
        let request = Request { dir: &builds, name: &name, contents, facts, compression, threads: 1, key: key() };
        let package = Package::create(&cache, request, &Ctx::silent()).unwrap().0.path().display().to_string();
        for (number, (base, fits)) in bases.iter().zip(fits).enumerate() {
            let (to, public) = (format!("image-{needed}-{number}"), public.display().to_string());
            let args = ["package", &package, "--oci", &to, "--base", base, "--key", &public, "--offline"];
            let answer = program(home.path(), &args);
            assert_eq!(answer.code, if fits { 0 } else { 5 }, "{needed} on {base}: {}", answer.err);
            let reason = if number == 0 { "has no glibc" } else { "has glibc 2." };
            assert!(fits || (answer.err.contains(reason) && answer.err.contains("view/bin/sinfo")), "{}", answer.err);
            assert_eq!(home.path().join(&to).exists(), fits);
        }
    }
}

#[test]
fn a_package_becomes_an_image_that_skopeo_copies_and_podman_runs() {
    let made = make(Compression::GZIP);
    let home = tempfile::Builder::new().prefix("oci").tempdir_in("/tmp").unwrap();
    let base = base(home.path());
    let public = home.path().join("key.asc");
    std::fs::write(&public, key().public_armored().unwrap()).unwrap();
    let package = made.path().display().to_string();
    let public = public.display().to_string();
    let write = |target: &str| {
        program(home.path(), &["package", &package, "--oci", target, "--base", &base, "--key", &public, "--offline"])
    };
    let one = write("one");
    assert_eq!(one.code, 0, "{}", one.err);
    // Again, in another place and at another time: the same image.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let other = write("other");
    assert_eq!(one.out, other.out);
    let strangers = program(home.path(), &["package", &package, "--oci", "x", "--base", &base, "--offline"]);
    assert!(
        strangers.code == 5 && strangers.err.contains("not among the trusted"),
        "{} {}",
        strangers.code,
        strangers.err
    );
    assert!(!home.path().join("x").exists());

    let source = format!("oci:{}:24.11.5-gcc13.3.0", home.path().join("one").display());
    let config = stdout(tool("skopeo", "skopeo").args(["inspect", "--config", &source]));
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["config"]["Env"][0], "PATH=/opt/slurm/view/bin:/opt/slurm/view/sbin:/bin");
    assert_eq!(config["config"]["Env"][1], "A=b");
    assert_eq!(config["config"]["Labels"]["slurm-factory.archive.sha256"], made.package.sha256());
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    // skopeo reads every blob and compares its digest.
    let copy = format!("oci:{}:copy", home.path().join("copy").display());
    run(tool("skopeo", "skopeo").args(["copy", "--quiet", &source, &copy]));
    let digest = |image: &str| stdout(tool("skopeo", "skopeo").args(["inspect", "--format", "{{.Digest}}", image]));
    assert_eq!(digest(&source), digest(&copy));
    assert_eq!(digest(&source), one.out);

    let store = home.path().join("podman");
    let podman = |args: &[&str]| {
        let mut podman = tool("podman", "podman");
        podman.arg("--root").arg(store.join("root")).arg("--runroot").arg(store.join("run"));
        podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "runc"]).args(args);
        podman
    };
    let archive = write("image.tar");
    assert_eq!(archive.out, one.out, "{}", archive.err);
    let archive = home.path().join("image.tar").display().to_string();
    run(&mut podman(&["load", "--quiet", "--input", &archive]));
    let image = stdout(&mut podman(&["images", "--quiet", "--no-trunc"])).trim().to_owned();
    let said = run(&mut podman(&[
        "run",
        "--rm",
        "--network",
        "host",
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=1024:1024",
        &image,
        "/bin/sh",
        "-c",
        "sinfo && cat /opt/slurm/view/lib64/pkgconfig/slurm.pc",
    ]));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said, "sinfo here\nprefix=/opt/slurm/view\n");
    run(&mut podman(&["rmi", "--force", &image]));
}
