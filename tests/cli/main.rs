//! The program as people and scripts meet it: exit codes and errors for bad input, and the verbs that need no build. What a
//! build does is tests/e2e.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

#[path = "../common/prepared.rs"]
mod prepared;

use assert_cmd::Command;
use std::path::Path;
use tempfile::TempDir;

/// A cache and an environment of its own, so that nothing of whoever runs the tests matters.
struct World {
    dir: TempDir,
}

struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl World {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// What a plan starts from where there is no network: a folder that says it is Debian 12, and the stand-in for Spack.
    fn sources(&self) -> Vec<String> {
        self.write("root/usr/lib/os-release", "ID=debian\nVERSION_ID=12\n");
        let standin = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/spack-standin");
        let image = format!("dir:{}", self.path("root"));
        ["--image", &image, "--spack-source", standin, "--spack-packages", &format!("{standin}/packages")]
            .map(str::to_owned)
            .into()
    }

    fn run_env(&self, args: &[&str], env: &[(&str, &str)]) -> Answer {
        let output = Command::new(env!("CARGO_BIN_EXE_slurm-factory"))
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .envs(env.iter().copied())
            .current_dir(self.dir.path())
            .timeout(std::time::Duration::from_mins(1))
            .output()
            .unwrap();
        Answer {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn run(&self, args: &[&str]) -> Answer {
        self.run_env(args, &[])
    }

    /// Fails with this code and an error that says these things, once.
    fn refuses(&self, args: &[&str], code: i32, says: &[&str]) -> Answer {
        let answer = self.run(args);
        assert_eq!(answer.code, code, "{args:?}: {}{}", answer.out, answer.err);
        for part in says {
            assert!(answer.err.contains(part), "{args:?} does not say `{part}`: {}", answer.err);
        }
        assert_eq!(
            answer.err.lines().filter(|line| line.starts_with("error:")).count(),
            1,
            "an error is shown once: {}",
            answer.err
        );
        assert!(!answer.err.contains("panicked"), "{}", answer.err);
        answer
    }
}

#[test]
fn usage_errors_list_what_is_known() {
    let world = World::new();
    world.refuses(&["build", "--slurm-version", "19.05"], 2, &["19.05", "25.11", "24.11", "23.11"]);
    world.refuses(&["plan", "--toolchain", "slackware"], 2, &["slackware", "noble", "debian12"]);
    // What decides where a package runs is the toolchain's glibc: said before anything is looked up.
    for verb in ["plan", "build"] {
        let rhel7 = [verb, "--for", "rhel7", "--compiler-version", "7.5.0"];
        world.refuses(&rhel7, 2, &["--for", "rhel7", "2.17", "noble", "2.39", "whatever its compiler", "rockylinux8"]);
        world.refuses(
            &[verb, "--for", "rocky8", "--toolchain", "debian12"],
            2,
            &["--toolchain rockylinux8 (glibc 2.28)"],
        );
    }
    world.refuses(&["plan", "--for", "plan9"], 2, &["plan9", "rhel8", "glibc-2.28"]);
    world.refuses(&["plan", "--apt-snapshot", "2026-01-01"], 2, &["2026-01-01", "20260101T000000Z"]);
    let mirror = ["plan", "--apt-snapshot", "20260101T000000Z", "--apt-mirror", "https://mirror.site/ubuntu"];
    world.refuses(&mirror, 2, &["https://mirror.site/ubuntu", "{snapshot}"]);
    world.refuses(&["plan", "--toolchain", "rockylinux9", "--dnf-repos", "/none"], 2, &["dnf-repos", "/none"]);
    world.refuses(&["plan", "--pip-index", "/none"], 2, &["pip-index", "/none"]);
    world.refuses(&["plan", "--compiler-version", "4.8.5"], 2, &["4.8.5", "system", "13.4.0"]);
    world.refuses(
        &["plan", "--toolchain", "focal"],
        2,
        &["focal", "glibc 2.31", "packages of `rockylinux8` run there"],
    );
    world.refuses(&["plan", "--with", "gpus"], 2, &["unknown feature `gpus`", "nvml", "rsmi"]);
    world.refuses(&["plan", "--target", "x86_64_v5"], 2, &["unknown target `x86_64_v5`", "x86_64_v4", "aarch64"]);
    world.refuses(&["plan", "--spec", "~jwt"], 2, &["rest needs jwt", "--without rest"]);
    world.refuses(&["plan", "--spec", "slurm@24.05"], 2, &["slurm@24.05", "--slurm-version"]);
    world.refuses(&["plan", "--compression", "rar"], 2, &["rar", "gzip", "zstd"]);
    world.refuses(&["plan", "--backend", "docker"], 2, &["docker", "userns", "podman"]);
    world.refuses(&["plan", "--image", "NOT A REFERENCE"], 2, &["NOT A REFERENCE"]);
    world.refuses(&["plan", "--shm-size", "much"], 2, &["shm-size", "much", "4G"]);
    // Addresses that nothing comes from; a login in one is not shown.
    let login = ["plan", "--apt-mirror", "ftp://me:secret@mirror.site/ubuntu"];
    assert!(!world.refuses(&login, 2, &["apt-mirror", "ftp://mirror.site/ubuntu"]).err.contains("secret"));
    world.refuses(&["plan", "--pip-index", "https://"], 2, &["pip-index", "host"]);
    world.refuses(&["plan", "--source-mirror", "htps://mirror.site"], 2, &["source-mirrors", "`htps`", "s3"]);
    world.refuses(&["plan", "--apt-snapshot", "21990101T000000Z"], 2, &["21990101T000000Z", "future"]);
    let wheels = world.path("wheels");
    fs_err::create_dir(&wheels).unwrap();
    world.refuses(&["plan", "--pip-index", &wheels], 2, &[&wheels, "clingo==", "pip download"]);
    // Another distribution than the toolchain's.
    world.write("root/usr/lib/os-release", "ID=fedora\nVERSION_ID=42\n");
    let root = format!("dir:{}", world.path("root"));
    let says = ["fedora 42", "toolchain debian12 needs debian 12"];
    world.refuses(&["plan", "--toolchain", "debian12", "--image", &root], 2, &says);
    let rows = world.refuses(&["doctor", "--backend", "docker"], 2, &["docker", "userns", "podman"]);
    assert!(rows.out.is_empty(), "{}", rows.out);
    let rows = world.refuses(&["doctor", "--writable=typo"], 2, &["typo", "fuse-overlayfs"]);
    assert!(rows.out.is_empty(), "{}", rows.out);
    for (name, value, says) in [
        ("CONFINEMENT", "stict", "confinement: `stict` is not one of strict, relaxed"),
        ("OWNERSHIP", "shared", "ownership: `shared` is not one of single, range"),
        ("WRITABLE", "all", "writable: `all` is not one of none"),
        ("NICE", "77", "nice: `77` is not one of 0 to 19"),
    ] {
        for verb in ["plan", "doctor"] {
            let answer = world.run_env(&[verb], &[(&format!("SLURM_FACTORY_{name}"), value)]);
            assert!(answer.code == 2 && answer.err.contains(says), "{verb}: {}", answer.err);
        }
    }
    let file = world.write("file", "");
    world.refuses(&["man", &format!("{file}/x")], 3, &[&file, "Not a directory"]);
    world.refuses(&["plan", "--spack-repo", "/nonexistent", "--image", "oci:/none"], 2, &["/nonexistent"]);
    // A file that is not there is a wrong word, whatever it was to be.
    for kind in ["oci", "oci-archive", "docker-archive", "dir"] {
        world.refuses(
            &["plan", "--image", &format!("{kind}:/nonexistent")],
            2,
            &["/nonexistent", "there is no such f"],
        );
    }
    world.refuses(&["image", "pull", "oci:/nonexistent"], 2, &["/nonexistent", "there is no such folder"]);
    world.refuses(&["image", "load", "/nonexistent"], 2, &["/nonexistent", "there is no such file"]);
    // What is certainly no spec is refused before anything is fetched for it.
    for (spec, words) in [("", "it is empty"), ("^[virtuals=mpi openmpi", "`[` is not closed"), ("+lua; x", "`;`")] {
        world.refuses(&["plan", "--spec", spec, "--image", "oci:/nonexistent"], 2, &["--spec", words]);
    }
    // What this machine can tell is told before a registry is asked.
    for (flag, path) in [
        ("--source-mirror", "/none/s"),
        ("--apt-mirror", "/none/a"),
        ("--spack-source", "/none/g"),
        ("--apt-sources", "/none/l"),
    ] {
        world.refuses(&["build", "--dry-run", flag, path, "--image", "localhost:1/x"], 2, &[path]);
    }
}

/// The catalog that a site adds to counts for every verb, not for builds alone.
#[test]
fn verify_knows_the_systems_of_a_site() {
    let world = World::new();
    fs_err::create_dir(world.path("tree")).unwrap();
    // `alma9` itself is among the distributions that are known.
    world.refuses(&["verify", "--for", "site9", "tree"], 2, &["site9", "rhel8"]);
    let page = fs_err::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
    let (_, table) = page.split_once("[catalog.toolchains.alma9]").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let file = world.write("site.toml", &format!("[catalog.toolchains.site9]{table}\n"));
    let answer = world.run(&["--config", &file, "verify", "--for", "site9", "tree"]);
    assert_eq!(answer.code, 0, "{}{}", answer.out, answer.err);
}

#[test]
fn what_is_not_done_yet_is_refused_at_planning() {
    let world = World::new();
    for (flags, says) in [
        (vec!["--compiler-version", "system", "--no-bootstrap"], "is not built"),
        (vec!["--with", "hdf5,sview"], "--with sview is not available yet: the GTK"),
        (vec!["--publish", "all"], "where to?"),
        (vec!["--to", "s3://bucket/x"], "--publish"),
        (vec!["--publish", "compiler-only", "--to", "s3://bucket/x"], "build-compiler"),
    ] {
        for verb in ["plan", "build"] {
            let mut args = vec![verb];
            args.extend(&flags);
            world.refuses(&args, 2, &[says]);
        }
    }
    assert!(!Path::new(&world.path(".slurm-factory/blobs")).exists(), "refused before anything is fetched");
}

#[test]
fn a_compiler_is_refused_before_anything_is_looked_up() {
    let world = World::new();
    for (flags, says) in [
        (vec!["--compiler-version", "system"], vec!["`system` is the GCC", "noble", "--list"]),
        // The default is one that is built: what is refused here is the system that it is for.
        (vec!["--for", "rhel8"], vec!["2.28", "--toolchain rockylinux8"]),
        (
            vec!["--toolchain", "rockylinux9", "--compiler-version", "11.5.0"],
            vec!["`11.5.0` is the GCC 11.5.0", "--list"],
        ),
        (vec!["--compiler-version", "4.8.5"], vec!["4.8.5", "known: system, 15.2.0", "7.5.0"]),
        (vec!["--compiler-version", "13.4.0", "--gpu"], vec!["unexpected argument", "--gpu"]),
        (
            vec!["--compiler-version", "13.4.0", "--slurm-version", "25.11"],
            vec!["unexpected argument", "--slurm-version"],
        ),
        (vec!["--compiler-version", "13.4.0", "--publish", "slurm-only"], vec!["--publish all"]),
        (vec!["--compiler-version", "13.4.0", "--publish", "compiler-only"], vec!["--package"]),
        (vec!["--compiler-version", "13.4.0", "--compression", "zstd"], vec!["--compression", "--package"]),
        (vec!["--compiler-version", "13.4.0", "--publish", "all", "--dry-run"], vec!["where to?", "--to"]),
        (vec!["--compiler-version", "13.4.0", "--for", "rhel8"], vec!["2.28", "--toolchain rockylinux8"]),
    ] {
        let mut args = vec!["build-compiler"];
        args.extend(&flags);
        world.refuses(&args, 2, &says);
    }
    let list = world.run(&["build-compiler", "--list", "--toolchain", "debian13"]);
    assert_eq!(list.code, 0, "{}", list.err);
    for part in ["system  GCC 14.2.0 of toolchain debian13", "14.2.0  the same as `system`", "13.4.0  built by Spack"] {
        assert!(list.out.contains(part), "{}", list.out);
    }
    assert!(!Path::new(&world.path(".slurm-factory/blobs")).exists(), "nothing was fetched");
}

#[test]
fn a_registry_that_cannot_be_reached_is_named() {
    let world = World::new();
    // Port 9 (discard) of loopback: nobody listens.
    world.refuses(&["image", "pull", "127.0.0.1:9/library/ubuntu:24.04"], 4, &["127.0.0.1:9"]);
}

#[test]
fn registries_are_configured_in_our_own_files_too() {
    let world = World::new();
    let conf = "[registries]\nunqualified-search-registries = ['127.0.0.1:9', 'b.example']\n\
                [registries.aliases]\nshort = '127.0.0.1:9/long'\n\
                [[registries.registry]]\nprefix = 'bad.example'\nblocked = true\n";
    let file = world.write("site.toml", conf);
    let pull = |image: &'static str| ["--config", &file, "image", "pull", "-v", image].map(str::to_owned);
    for (image, code, says) in [
        ("short:1", 4, vec!["127.0.0.1:9/long:1: an alias in", "site.toml", "cannot reach"]),
        ("other:1", 2, vec!["127.0.0.1:9/other:1, b.example/other:1", "site.toml"]),
        ("bad.example/x:1", 3, vec!["forbidden", "bad.example", "site.toml"]),
    ] {
        world.refuses(&pull(image).each_ref().map(String::as_str), code, &says);
    }
    let file = world.write("site.toml", "[[registries.registry]]\nprefix = 'a.example'\nlocatoin = 'b.example'\n");
    world.refuses(&["--config", &file, "image", "pull", "x:1"], 3, &["site.toml", "locatoin"]);
    // The same files count for a build's image.
    let named = world.write("r.conf", "[registries.search]\nregistries = ['a.example']\n");
    let answer = world.run_env(&["plan"], &[("CONTAINERS_REGISTRIES_CONF", &named)]);
    assert!(answer.code == 3 && answer.err.contains("version 1") && answer.err.contains("r.conf"), "{}", answer.err);
}

#[test]
fn images_that_are_files_need_nothing_of_what_is_configured_about_registries() {
    let world = World::new();
    for folder in ["base/etc", "spack/x", "packages/x", ".config/containers/registries.conf"] {
        fs_err::create_dir_all(world.dir.path().join(folder)).unwrap();
    }
    world.write("base/usr/lib/os-release", "ID=ubuntu\nVERSION_ID=\"24.04\"\n");
    let old = world.write("old.conf", "[registries.search]\nregistries = ['a.example']\n");
    let hosts: [&[(&str, &str)]; 3] = [
        &[("CONTAINERS_REGISTRIES_CONF", &old)],
        // The folder made above cannot be read as a file.
        &[],
        &[("CONTAINERS_REGISTRIES_CONF", "/dev/null"), ("REGISTRY_AUTH_FILE", "/nowhere/auth.json")],
    ];
    for (number, env) in hosts.into_iter().enumerate() {
        let cache = number.to_string();
        let run = |args: &[&str]| world.run_env(&[&["--cache-dir", &cache], args].concat(), env);
        let name = "registry.test/site/base:1";
        let answer = run(&["image", "pull", name]);
        assert_eq!(answer.code, 3, "the test needs a host that is refused: {}", answer.err);
        let saved = [format!("{cache}.tar.gz"), format!("{cache}.oci")];
        let from = [format!("oci-archive:{}", saved[0]), format!("oci:{}:1", saved[1])];
        let mut digests = Vec::new();
        for args in [
            ["image", "save", "dir:base", &saved[0], "--name", name].as_slice(),
            &["image", "save", "dir:base", &saved[1], "--name", name],
            &["image", "pull", "dir:base"],
            &["image", "pull", &from[0]],
            &["image", "pull", &from[1], "--refresh"],
            &["image", "load", &saved[0]],
        ] {
            let answer = run(args);
            assert_eq!(answer.code, 0, "{env:?} {args:?}: {}", answer.err);
            digests.push(answer.out.trim().rsplit(' ').next().unwrap().to_owned());
        }
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
        // It gets as far as looking into the archive.
        let archive = world.write("none.tar", "");
        let answer = run(&["image", "pull", &format!("docker-archive:{archive}")]);
        assert!(answer.code == 4 && answer.err.contains("as an image archive"), "{}", answer.err);
        assert_eq!(run(&["image", "list"]).out.lines().count(), 5);
        assert_eq!(run(&["image", "remove", "dir:base", name, &digests[0][7..19]]).out.lines().count(), 4);
        let spack = ["--offline", "--spack-source", "spack", "--spack-packages", "packages"];
        let answer = run(&[["plan", "--image", "dir:base"].as_slice(), &spack].concat());
        assert_eq!(answer.code, 0, "{env:?}: {}", answer.err);
    }
}

#[test]
fn a_short_name_is_removed_as_what_it_was_pulled() {
    let world = World::new();
    fs_err::create_dir_all(world.dir.path().join("base/etc")).unwrap();
    let file = world.write(
        "site.toml",
        "[registries]\nunqualified-search-registries = ['a.example', 'b.example']\n\
         [registries.aliases]\nbase = 'registry.test/site/base'\n",
    );
    let run = |args: &[&str]| world.run(&[&["--config", &file, "--cache-dir", "c", "image"], args].concat());
    let name = "registry.test/site/base:1";
    let load = || {
        assert_eq!(run(&["save", "dir:base", "base.tar", "--name", name]).code, 0);
        assert_eq!(run(&["load", "base.tar"]).code, 0);
        fs_err::remove_file(world.dir.path().join("base.tar")).unwrap();
        run(&["pull", "--offline", "base:1"]).out.trim().to_owned()
    };
    let digest = load();
    assert_eq!(run(&["remove", "base:1"]).out, format!("{name} {digest}\n"));
    let answer = run(&["remove", "other:1"]);
    assert!(answer.code == 2 && answer.err.contains("a.example/other:1, b.example/other:1"), "{}", answer.err);
    assert_eq!(load(), digest);
    assert_eq!(run(&["remove", &digest[7..19]]).out.lines().count(), 2, "digits are no short name");
}

#[test]
fn offline_names_what_is_missing_and_how_to_get_it() {
    let world = World::new();
    world.refuses(&["build", "--offline"], 3, &["ubuntu:24.04", "image pull"]);
    world.refuses(&["image", "pull", "--offline", "127.0.0.1:9/x:y"], 3, &["127.0.0.1:9/x:y"]);
}

#[test]
fn a_cache_that_cannot_be_written_is_named_with_what_to_do() {
    let world = World::new();
    for dir in ["/proc/slurm-factory", "/dev/null/x"] {
        world.refuses(&["--cache-dir", dir, "plan"], 3, &[dir, "--cache-dir"]);
    }
}

/// Runs a shell line in namespaces made for it, as root there: mounts and limits end with it.
fn in_namespaces(world: &World, line: &str) -> Answer {
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--", "sh", "-c", line])
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", world.dir.path())
        .env("SF", env!("CARGO_BIN_EXE_slurm-factory"))
        .current_dir(world.dir.path())
        .timeout(std::time::Duration::from_mins(1))
        .output()
        .expect("unshare (package util-linux)");
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn a_cache_on_noexec_is_refused_before_anything_is_fetched() {
    let world = World::new();
    fs_err::create_dir(world.path("n")).unwrap();
    let line = "mount -t tmpfs -o noexec tmpfs n && exec $SF --cache-dir n build";
    let answer = in_namespaces(&world, line);
    assert_eq!(answer.code, 3, "{}", answer.err);
    assert!(answer.err.contains("noexec") && answer.err.contains("--cache-dir"), "{}", answer.err);
}

#[test]
fn without_user_namespaces_build_and_doctor_say_what_to_ask_for() {
    let world = World::new();
    for verb in ["build", "doctor"] {
        let line = format!("echo 0 > /proc/sys/user/max_user_namespaces && exec $SF {verb}");
        let answer = in_namespaces(&world, &line);
        assert_eq!(answer.code, 3, "{verb}: {}{}", answer.out, answer.err);
        let said = answer.out + &answer.err;
        assert!(said.contains("max_user_namespaces"), "{verb}: {said}");
    }
}

/// What docs/doctor.md says of the JSON, of the real one.
#[test]
fn doctor_answers_as_its_page_says() {
    let page = fs_err::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/doctor.md")).unwrap();
    let fields = |heading: &str| {
        let table = page.split_once(heading).unwrap().1.split("\n\n").find(|part| part.starts_with("| field")).unwrap();
        let row = |line: &str| {
            let mut cells = line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`').to_owned());
            (cells.next().unwrap(), cells.next().unwrap())
        };
        table.lines().skip(2).map(row).collect::<Vec<_>>()
    };
    let is = |value: &serde_json::Value, kind: &str| match kind {
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "text" => value.is_string(),
        "text or null" => value.is_string() || value.is_null(),
        "number or null" => value.is_i64() || value.is_null(),
        "list" => value.is_array(),
        "list of text" => value.as_array().is_some_and(|list| list.iter().all(serde_json::Value::is_string)),
        other => panic!("{other}"),
    };
    let holds = |value: &serde_json::Value, fields: &[(String, String)]| {
        let names: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
        for (name, kind) in fields {
            assert!(is(&value[name], kind), "{name} is no {kind}: {value:#}");
        }
    };
    let world = World::new();
    let memory = [("SLURM_FACTORY_MEMORY", "1G"), ("SLURM_FACTORY_DISK", "5G")];
    let answer = world.run_env(&["doctor", "--json", "--build-dir", "."], &memory);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((answer.code, &json["schema"], &json["can_build"]), (0, &1.into(), &true.into()), "{json:#}");
    holds(&json, &fields("One object:"));
    // With -q only what is not well, and of each row the same words.
    let quiet = world.run_env(&["doctor", "-q", "--build-dir", "."], &memory);
    let not_ok = json["findings"].as_array().unwrap().iter().filter(|row| row["outcome"] != "ok").count();
    let shown = quiet.out.lines().filter(|line| line.starts_with(" note  ") || line.starts_with(" FAIL  ")).count();
    assert_eq!((quiet.code, shown), (0, not_ok), "{}", quiet.out);
    assert!(!quiet.out.contains("   ok  ") && !quiet.out.contains("builds can run"), "{}", quiet.out);
    let limits = json["limits"].as_array().unwrap();
    assert!(limits[0].as_str().unwrap().starts_with("memory 1 GiB (") && limits.len() == 2, "{limits:?}");
    let finding = fields("A finding:");
    let rows = json["findings"].as_array().unwrap();
    assert!(rows.len() > 30, "{rows:?}");
    for row in rows {
        holds(row, &finding);
        assert!(["ok", "warn", "fail"].contains(&row["outcome"].as_str().unwrap()), "{row}");
        // The build folder's ids are the cache's with another beginning.
        let id = row["id"].as_str().unwrap().replace("build-dir-", "cache-");
        assert!(page.contains(&format!("`{id}`")), "docs/doctor.md does not name {id}");
    }
}

/// As a user who may do nothing, which root becomes for it: the closed build folder is what doctor is asked about.
#[test]
fn doctor_tells_of_a_closed_build_folder_in_rows() {
    use std::os::unix::fs::{PermissionsExt, chown};
    const NOBODY: u32 = 65534;
    let world = World::new();
    let mode = |name: &str, mode| fs_err::set_permissions(world.path(name), PermissionsExt::from_mode(mode)).unwrap();
    let folder = |name: &str| fs_err::create_dir_all(world.path(name)).unwrap();
    ["home", "bin", "closed"].into_iter().for_each(folder);
    // The target folder may be closed to others; and without podman, which would keep a process.
    fs_err::copy(env!("CARGO_BIN_EXE_slurm-factory"), world.path("bin/slurm-factory")).unwrap();
    std::os::unix::fs::symlink("/usr/bin/git", world.path("bin/git")).unwrap();
    mode("", 0o755);
    let program = world.path("bin/slurm-factory");
    let mut words = vec![program.as_str()];
    if nix::unistd::geteuid().is_root() {
        chown(world.path("home"), Some(NOBODY), Some(NOBODY)).unwrap();
        mode("closed", 0o711);
        let nobody = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
        words = [&nobody, words.as_slice()].concat();
    } else {
        mode("closed", 0o511);
    }
    let build_dir = world.path("closed/work");
    let doctor = |flags: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["doctor", "--build-dir", &build_dir]).args(flags);
        command.env_clear().env("PATH", world.path("bin")).env("HOME", world.path("home"));
        let output = command.current_dir("/").timeout(std::time::Duration::from_mins(1)).output();
        let output = output.expect("setpriv (package util-linux)");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{err}");
        (String::from_utf8(output.stdout).unwrap(), err)
    };
    let (text, err) = doctor(&[]);
    assert!(text.contains("FAIL") && text.contains("git") && text.contains("builds cannot run here"), "{text}{err}");
    let (text, err) = doctor(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{err}"));
    let outcomes = |id: &str| {
        let rows = json["findings"].as_array().unwrap().iter();
        rows.filter(|row| row["id"] == id).map(|row| row["outcome"].as_str().unwrap()).collect::<Vec<_>>()
    };
    for (id, outcome) in [("build-dir-write", "fail"), ("writable", "warn"), ("cache-rename", "ok"), ("git", "ok")] {
        assert_eq!(outcomes(id), [outcome], "{id}: {json:#}");
    }
}

/// Loopback ports that nobody listens on stand for an unreachable outside.
#[test]
fn doctor_fails_where_a_build_would() {
    let world = World::new();
    let file = world.write("file", "");
    let answer = world.run(&["doctor", "--build-dir", &file]);
    assert!(answer.code == 3 && answer.out.contains("FAIL") && answer.out.contains(&file), "{}", answer.out);
    world.refuses(&["plan", "--build-dir", &format!("{file}/work"), "--image", "oci:none"], 3, &[&file, "--build-dir"]);
}

#[test]
fn a_place_without_a_binary_cache_is_told() {
    let world = World::new();
    assert_eq!(world.run(&["buildcache", "list"]).code, 0, "our own may have nothing yet");
    world.refuses(&["buildcache", "list", &world.path("nothere")], 5, &["nothere", "no index"]);
}

#[test]
fn doctor_online_names_what_does_not_answer() {
    let world = World::new();
    fs_err::create_dir(world.path("recipes")).unwrap();
    let file = world.write(
        "site.toml",
        &format!(
            "image = '127.0.0.1:9/x/y:1'\nspack-source = 'http://127.0.0.1:9/spack.git'\nspack-packages = '{}'\n",
            world.path("recipes")
        ),
    );
    let answer = world.run(&["--config", &file, "doctor", "--json", "--online"]);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((answer.code, &json["can_build"]), (3, &false.into()), "{json:#}");
    let row = |id: &str| json["findings"].as_array().unwrap().iter().find(|row| row["id"] == id).unwrap();
    for (id, outcome, part) in [
        ("online-registry", "fail", "127.0.0.1:9"),
        ("online-spack", "fail", "127.0.0.1"),
        ("online-spack-packages", "ok", "answers"),
    ] {
        assert_eq!(row(id)["outcome"], outcome, "{:#}", row(id));
        assert!(row(id)["meaning"].as_str().unwrap().contains(part), "{:#}", row(id));
    }
    assert!(row("online-registry")["remedy"].as_str().unwrap().contains("https_proxy"));
    // Nobody is asked without being told to.
    let answer = world.run(&["--config", &file, "doctor"]);
    assert!(answer.code == 0 && answer.out.contains("--online does"), "{}", answer.out);
}

/// Both sandboxes of a build as ordered operations, before anything of it is there: nothing is made but the cache's folders.
#[test]
fn a_plan_shows_the_sandboxes_operation_by_operation() {
    let world = World::new();
    let sources = world.sources();
    let mut args = vec!["plan", "--json", "--toolchain", "debian12", "--network", "none", "--shm-size", "1G"];
    args.extend(sources.iter().map(String::as_str));
    let answer = world.run_env(&args, &[("https_proxy", "http://user:secret@proxy:3128")]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(!answer.out.contains("secret"), "{}", answer.out);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    let words = |what: &str| -> Vec<String> {
        let operations = json["sandboxes"][what]["operations"].as_array().unwrap();
        operations.iter().map(|operation| operation["op"].as_str().unwrap().to_owned()).collect()
    };
    let (prepare, build) = (words("prepare"), words("build"));
    let at =
        |words: &[String], word: &str| words.iter().position(|have| have == word).unwrap_or_else(|| panic!("{word}"));
    for words in [&prepare, &build] {
        let order =
            ["detach-mounts", "root", "proc", "bind", "pivot", "no-new-privs", "capabilities", "landlock", "seccomp"];
        let places: Vec<_> = order.iter().map(|word| at(words, word)).collect();
        assert!(places.is_sorted(), "{words:?}");
    }
    assert_eq!(prepare.iter().filter(|word| *word == "seccomp").count(), 2, "root is stood in for");
    assert!(at(&build, "loopback") < at(&build, "pivot") && !prepare.contains(&"loopback".to_owned()));
    let text = json["sandboxes"]["build"].to_string();
    for part in ["/opt/spack\"", "\"/dev/shm\",\"size\":1073741824", "\"net\"", "\"https_proxy\""] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(!fs_err::exists(world.path(".slurm-factory/rootfs")).unwrap(), "nothing was made");
    assert!(fs_err::exists(world.path(".slurm-factory")).unwrap(), "is the cache elsewhere?");
    let sources = "\"target\":\"/var/cache/slurm-factory/sourcecache\"";
    let at = text.find(sources).unwrap_or_else(|| panic!("no {sources} in {text}"));
    let bind = &text[text[..at].rfind('{').unwrap()..];
    assert!(
        bind[..bind.find('}').unwrap()].contains("read-only"),
        "packages are built beside sources that they can write: {bind}"
    );
}

#[test]
fn a_cache_of_others_is_asked_when_its_key_is_named() {
    let world = World::new();
    let sources = world.sources();
    let mut args = vec!["plan", "--json"];
    args.extend(sources.iter().map(String::as_str));
    let mirrors = |name: &str, caches: &str| {
        let file =
            world.write(name, &format!("toolchain = 'debian12'\nbinary-mirrors = ['https://own.example']\n{caches}"));
        let answer = world.run(&[&["--config", &file][..], &args].concat());
        let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap_or_default();
        (answer.code, json["execution"]["binary_mirrors"].clone(), answer.err)
    };
    let key = "0123456789ABCDEF0123456789ABCDEF01234567";
    let of_others =
        format!("[catalog.caches.site]\nurl = 'https://cache.example/{{toolchain}}/deps'\nfingerprint = '{key}'\n");
    let (code, found, err) = mirrors("trusted.toml", &of_others);
    assert_eq!(
        (code, found),
        (0, serde_json::json!(["https://own.example", "https://cache.example/debian12/deps"])),
        "{err}"
    );
    let (code, found, err) = mirrors("off.toml", &of_others.replace("fingerprint", "why"));
    assert_eq!((code, found), (0, serde_json::json!(["https://own.example"])), "{err}");
    let (code, _, err) = mirrors("short.toml", &of_others.replace(key, "89ABCDEF"));
    assert!(code == 2 && err.contains("catalog.caches.site: fingerprint: `89ABCDEF`"), "{code}: {err}");
    let (code, _, err) = mirrors("nowhere.toml", &format!("[catalog.caches.site]\nfingerprint = '{key}'\n"));
    assert!(
        code == 2 && err.contains("catalog.caches.site: there is no `url`") && err.contains("vantage"),
        "{code}: {err}"
    );
    let (code, _, err) = mirrors("where.toml", &of_others.replace("https://cache.example", "/nowhere"));
    assert!(code == 2 && err.contains("catalog.caches.site: url"), "{code}: {err}");
}

#[test]
fn limits_are_planned_and_nonsense_is_refused() {
    let world = World::new();
    for (flag, value, says) in [
        ("--memory", "3X", "3X"),
        ("--memory", "1M", "64M and more"),
        ("--disk", "much", "much"),
        ("--disk", "5", "64M and more"),
        ("--nice", "20", "0 to 19"),
    ] {
        let answer = world.run(&["build", "--dry-run", flag, value]);
        assert!(answer.code == 2 && answer.err.contains(says), "{flag} {value}: {}", answer.err);
        assert!(answer.err.contains(&flag[2..]), "{}", answer.err);
    }
    let file = world.write("sizes.toml", "disk = 'much'\n");
    world.refuses(&["--config", &file, "plan"], 2, &["disk", "much"]);
    // More than there is limits nothing; no error, because settings are shared between machines.
    let above = ["--memory", "900T", "--disk", "900T", "--shm-size", "900T", "--cpus", "100000"];
    let args = [&["plan", "--image", "oci:/nonexistent"], &above[..]].concat();
    let answer = world.run(&args);
    for what in ["memory 900 TiB", "disk 900 TiB", "shm-size 900 TiB", "cpus 100000"] {
        let said = answer.err.matches(&format!("{what} limits nothing here")).count();
        assert_eq!(said, 1, "{what}: {}", answer.err);
    }
}

#[test]
fn configuration_errors_name_file_and_key() {
    let world = World::new();
    let file = world.write("site.toml", "jobs = 4\nslurm-verison = '25.11'\n");
    world.refuses(&["--config", &file, "plan"], 3, &["site.toml", "slurm-verison", "line 2"]);
    world.refuses(&["--config", &world.path("none.toml"), "plan"], 2, &["none.toml"]);
    let answer = world.run_env(&["plan"], &[("SLURM_FACTORY_JBOS", "4")]);
    assert_eq!(answer.code, 3, "{}", answer.err);
    assert!(answer.err.contains("SLURM_FACTORY_JBOS"), "{}", answer.err);
}

#[test]
fn a_tree_that_is_not_there_is_a_mistake_of_whoever_typed_it() {
    let world = World::new();
    let none = world.path("none");
    world.refuses(&["buildcache", "push", "--from", &none, "--to", &world.path("cache")], 2, &[&none, "No such file"]);
    std::fs::create_dir(&none).unwrap();
    world.refuses(&["buildcache", "push", "--from", &none, "--to", &world.path("cache")], 2, &[&none, ".spack-db"]);
}

#[test]
fn an_error_is_json_when_asked() {
    let world = World::new();
    let answer = world.run(&["--log-format", "json", "plan", "--slurm-version", "1.0"]);
    let last = answer.err.lines().last().unwrap();
    let event: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(event["event"], "error");
    assert_eq!(event["exit_code"], 2);
    assert!(event["message"].as_str().unwrap().contains("25.11"));
}

#[test]
fn verify_and_install_refuse_what_is_no_package() {
    let world = World::new();
    world.refuses(&["verify", &world.path("none.tar.gz")], 2, &["none.tar.gz"]);
    let file = world.write("junk.tar.gz", "this is no archive");
    world.refuses(&["verify", &file], 5, &["junk.tar.gz"]);
    world.refuses(&["install", &file, "--prefix", &world.path("p")], 5, &["junk.tar.gz"]);
    assert!(!Path::new(&world.path("p")).exists());
    world.refuses(&["install", "--remove", "--prefix", &world.path("p")], 3, &["p"]);
}

#[test]
fn a_tree_with_a_leftover_build_path_is_unfit() {
    let world = World::new();
    fs_err::create_dir_all(world.path("tree/view/etc")).unwrap();
    world.write("tree/view/etc/conf", "dir=/slurm-factory.build/store/x\n");
    world.refuses(&["verify", &world.path("tree")], 5, &["etc/conf", "offset 4"]);
    world.write("tree/view/etc/conf", "dir=/usr\n");
    assert_eq!(world.run(&["verify", &world.path("tree")]).code, 0);
}

#[test]
fn keys_are_made_listed_exported_and_imported() {
    let world = World::new();
    world.refuses(&["key", "export"], 3, &["key generate"]);
    let made = world.run(&["key", "generate", "--name", "Test", "--email", "t@localhost"]);
    assert_eq!(made.code, 0, "{}", made.err);
    let fingerprint = made.out.trim().to_owned();
    assert!(fingerprint.len() == 40 || fingerprint.len() == 64, "{fingerprint}");
    let listed = world.run(&["key", "list"]);
    assert!(listed.out.contains(&fingerprint) && listed.out.contains("Test"), "{}", listed.out);
    let public = world.run(&["key", "export"]).out;
    assert!(public.starts_with("-----BEGIN PGP PUBLIC KEY BLOCK-----"), "{public}");
    let secret = world.run(&["key", "export", "--secret"]).out;
    let file = world.write("secret.asc", &secret);
    let other = World::new();
    let imported = other.run(&["key", "import", &file]);
    assert_eq!((imported.code, imported.out.trim()), (0, fingerprint.as_str()), "{}", imported.err);
    assert!(other.run(&["key", "list"]).out.starts_with('*'), "one key is the default");

    // Which one signs can be said, of those that can.
    let second = other.run(&["key", "generate"]).out.trim().to_owned();
    assert_eq!(other.run(&["key", "default", &fingerprint]).code, 0);
    let list = other.run(&["key", "list"]).out;
    let marked: Vec<&str> = list.lines().filter(|line| line.starts_with('*')).collect();
    assert!(marked.len() == 1 && marked[0].contains(&fingerprint), "{list}");
    other.refuses(&["key", "default", &"0".repeat(40)], 3, &[&"0".repeat(40)]);
    let public = other.write("public.asc", &other.run(&["key", "export", &second]).out);
    let reader = World::new();
    reader.run(&["key", "import", &public]);
    reader.refuses(&["key", "default", &second], 3, &[&second, "cannot sign"]);
    assert_eq!(other.run(&["key", "remove", "--force", &fingerprint]).code, 0);
    let some = other.write("some.tar.gz", "");
    other.refuses(&["sign", &some], 3, &[&second, "key default"]);

    // The order of several in a file means nothing.
    world.run(&["key", "generate"]);
    let second = world.run(&["key", "export", "--secret"]).out;
    let both = world.write("both.asc", &format!("{secret}{second}"));
    let third = World::new();
    let imported = third.run(&["key", "import", &both]);
    assert!(imported.code == 0 && imported.err.contains("the default stays unset"), "{}", imported.err);
    assert!(third.run(&["key", "list"]).out.lines().all(|line| line.starts_with(' ')));
}

#[test]
fn a_key_s_secret_is_lost_only_when_that_is_said() {
    let world = World::new();
    world.refuses(&["key", "generate", "--expires", "0"], 2, &["--expires 0", "never expires"]);
    world.refuses(&["key", "generate", "--expires", "60000"], 2, &["60000", "49710"]);
    world.refuses(&["key", "remove", "89ABCDEF"], 2, &["full key fingerprint"]);
    let first = world.run(&["key", "generate", "--expires", "30"]).out.trim().to_owned();
    let second = world.run(&["key", "generate"]).out.trim().to_owned();
    let list = world.run(&["key", "list"]).out;
    let line = |fingerprint: &str| list.lines().find(|l| l.contains(fingerprint)).unwrap().to_owned();
    assert!(line(&first).starts_with(' ') && line(&first).contains("expires 20"), "{list}");
    assert!(line(&second).starts_with('*') && line(&second).contains("never expires"), "{list}");
    assert!(line(&second).contains("EdDSA") && line(&second).contains("signs"), "{list}");
    for fingerprint in [&first, &second] {
        world.refuses(&["key", "remove", fingerprint], 3, &["--force", "key export --secret", fingerprint]);
    }
    let removed = world.run(&["key", "remove", &second, "--force"]);
    assert!(removed.code == 0 && removed.err.contains(&second), "{}", removed.err);
    assert!(!world.run(&["key", "list"]).out.contains(&second));
    world.refuses(&["key", "export", &second], 3, &[&second]);
    world.refuses(&["key", "export"], 3, &["key generate"]);
    // A public key has nothing that could be lost.
    let other = World::new();
    other.run(&["key", "generate"]);
    let public = world.write("public.asc", &other.run(&["key", "export"]).out);
    let imported = world.run(&["key", "import", &public]).out.trim().to_owned();
    assert_eq!(world.run(&["key", "remove", &imported]).code, 0);
}

#[test]
fn a_key_that_does_not_sign_is_said_at_planning() {
    let world = World::new();
    let nowhere = ["--image", "localhost:1/x"];
    let missing = world.path("none.asc");
    let public = {
        world.run(&["key", "generate"]);
        world.write("public.asc", &world.run(&["key", "export"]).out)
    };
    fs_err::set_permissions(&public, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for verb in [&["plan"][..], &["build"], &["build", "--dry-run"]] {
        for (flags, code, says) in [
            (["--key", &missing], 3, "none.asc"),
            (["--key", &public], 3, "public half"),
            (["--key-fd", "99"], 2, "--key-fd 99"),
            (["--key-agent", "89ABCDEF"], 2, "full key fingerprint"),
        ] {
            let args: Vec<&str> = [verb, &flags[..], &nowhere[..]].concat();
            world.refuses(&args, code, &[says]);
        }
        let args: Vec<&str> = [verb, &nowhere[..]].concat();
        let bad = world.run_env(&args, &[("SLURM_FACTORY_SIGNING_KEY", "bm90IGEga2V5")]);
        assert!(bad.code == 3 && bad.err.contains("SLURM_FACTORY_SIGNING_KEY holds no OpenPGP key"), "{}", bad.err);
    }
}

#[test]
fn shell_without_a_build_says_so() {
    World::new().refuses(&["shell"], 3, &["slurm-factory build"]);
}

/// As decisions/0008 and security.md say: nothing of the program is moved at a start.
#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn the_program_has_a_fixed_address() {
    use object::Object as _;
    let program = std::fs::read(env!("CARGO_BIN_EXE_slurm-factory")).unwrap();
    let kind = object::read::File::parse(&*program).unwrap().kind();
    assert_eq!(kind, object::ObjectKind::Executable, "a program that is linked with -pie is ObjectKind::Dynamic");
}

#[test]
fn completions_and_manual_pages_are_made() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = world.run(&["completions", shell]).out;
        assert!(script.contains("slurm-factory") && script.contains("doctor"), "{shell}");
    }
    assert!(world.run(&["man"]).out.contains(".TH slurm-factory"));
    assert_eq!(world.run(&["man", &world.path("man")]).code, 0);
    assert!(Path::new(&world.path("man/slurm-factory-build.1")).exists());
}

#[test]
fn clean_of_an_empty_cache_is_fine_and_says_what_it_freed() {
    let answer = World::new().run(&["clean", "--full"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(answer.err.contains("freed"), "{}", answer.err);
}

#[test]
fn images_travel_between_caches() {
    let world = World::new();
    let root = world.dir.path().join("rootfs/etc");
    fs_err::create_dir_all(&root).unwrap();
    fs_err::write(root.join("f"), "f").unwrap();
    let image = |cache: &str, args: &[&str]| {
        let answer = world.run(&[&["--cache-dir", cache, "-q", "image"], args].concat());
        assert_eq!(answer.code, 0, "{args:?}: {}", answer.err);
        answer.out
    };
    let digest = image("a", &["pull", "dir:rootfs"]);
    let name = "registry.test/site/base:1";
    assert_eq!(image("a", &["save", "dir:rootfs", "base.tar.zst", "--name", name]), digest);
    assert_eq!(image("b", &["load", "base.tar.zst"]), format!("{name} {digest}"));
    assert_eq!(image("b", &["pull", name, "--offline"]), digest);

    let list: serde_json::Value = serde_json::from_str(&image("b", &["list", "--json"])).unwrap();
    assert_eq!((list[0]["reference"].as_str(), list[0]["digest"].as_str()), (Some(name), Some(digest.trim())));
    assert!(list[0]["whole"] == true && list[0]["bytes"].as_u64().unwrap() > 1000 && list[0]["used_at"].is_string());
    let table = image("b", &["list"]);
    assert!(table.lines().count() == 2 && table.contains(&digest[7..19]), "{table}");

    // A relative name means the same image from everywhere, and nothing when it never was one.
    let elsewhere = world.path("rootfs");
    fs_err::rename(world.path("rootfs"), world.path("moved")).unwrap();
    assert_eq!(image("a", &["pull", &format!("dir:{elsewhere}")]), digest);
    assert_eq!(image("a", &["remove", "dir:./rootfs"]), format!("dir:{elsewhere} {digest}"));
    world.refuses(&["--cache-dir", "a", "image", "pull", "dir:rootfs"], 2, &["no such folder", &elsewhere]);
    world.refuses(&["--cache-dir", "a", "image", "remove", "dir:rootfs"], 2, &["dir:rootfs", "image list"]);
    world.refuses(&["--cache-dir", "b", "image", "save", name, "moved"], 2, &["other things", ".tar"]);
    world.refuses(&["--cache-dir", "b", "image", "save", name, "x", "--name", "a b"], 2, &["--name", "a b"]);
    world.refuses(&["--cache-dir", "b", "image", "save", "site/none:1", "x", "--offline"], 3, &["image pull"]);
    world.refuses(&["--cache-dir", "b", "image", "load", "moved/etc/f"], 4, &["moved/etc/f"]);
}

#[test]
fn a_loaded_prepared_rootfs_is_what_an_offline_build_uses() {
    let world = World::new();
    let base = "registry.test/site/base:1";
    fs_err::create_dir_all(world.dir.path().join("base/etc")).unwrap();
    for (cache, args) in [
        ("a", ["save", "dir:base", "base.tar", "--name", base].as_slice()),
        ("a", &["load", "base.tar"]),
        ("a", &["pull", base, "--offline"]),
    ] {
        let answer = world.run(&[&["--cache-dir", cache, "-q", "image"], args].concat());
        assert_eq!(answer.code, 0, "{args:?}: {}", answer.err);
    }
    let digest = world.run(&["--cache-dir", "a", "-q", "image", "pull", base, "--offline"]).out.trim().to_owned();
    let save = ["--cache-dir", "a", "image", "save", "--prepared", base, "prepared.tar.gz"];
    world.refuses(&save, 3, &[base, "slurm-factory build"]);

    let entry = prepared::debian12(&world.dir.path().join("a"), base, &digest);
    assert_eq!(world.run(&save).code, 0);

    // Another site: no registry, no package mirror, Spack as trees. The build gets as far as Spack, which is none.
    for tree in ["spack", "packages"] {
        fs_err::create_dir_all(world.dir.path().join(tree).join("x")).unwrap();
    }
    let build = [
        ["--cache-dir", "b", "build", "--offline"].as_slice(),
        &["--toolchain", "debian12", "--image", base, "--spack-source", "spack", "--spack-packages", "packages"],
    ]
    .concat();
    world.refuses(&build, 3, &["offline", base]);
    let loaded = world.run(&["--cache-dir", "b", "image", "load", "prepared.tar.gz"]);
    assert!(loaded.code == 0 && loaded.err.contains(base), "{}", loaded.err);
    let answer = world.run(&build);
    assert!(answer.code != 0 && answer.err.contains("unpacked as it was saved, GCC 12.2.0"), "{}", answer.err);
    assert!(world.dir.path().join("b/rootfs").join(entry.file_name().unwrap()).join("root/usr/bin").is_dir());
}
