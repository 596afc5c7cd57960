//! Archives that somebody else made, looked into with `verify --foreign`: real programs and libraries that gcc and ld make,
//! one thing wrong at a time.

use crate::util::{Answer, answer, run_in as run};
use assert_cmd::Command;
use fs_err as fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// A tree with `bin/prog` that needs `lib/libv.so.1` in version `V_2`.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self { dir: TempDir::new().unwrap() };
        for folder in ["tree/bin", "tree/lib"] {
            fs::create_dir_all(site.path(folder)).unwrap();
        }
        site.library("V_1 { global: one; local: *; };\nV_2 { global: two; } V_1;\n", &[]);
        fs::write(site.path("prog.c"), "int two(void); int main(void) { return two(); }\n").unwrap();
        let link = ["-o", "tree/bin/prog", "prog.c", "-Ltree/lib", "-l:libv.so.1", "-Wl,-rpath,$ORIGIN/../lib"];
        run("gcc", &link, site.dir.path());
        site
    }

    fn library(&self, versions: &str, more: &[&str]) {
        fs::write(self.path("v.c"), "int one(void) { return 1; }\nint two(void) { return 0; }\n").unwrap();
        fs::write(self.path("v.map"), versions).unwrap();
        let link = ["-shared", "-fPIC", "-o", "tree/lib/libv.so.1", "v.c", "-Wl,-soname,libv.so.1"];
        let script = ["-Wl,--version-script=v.map"];
        run("gcc", &[&link[..], &script, more].concat(), self.dir.path());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pack(&self, name: &str, how: &str) -> String {
        run("tar", &[how, "-cf", name, "-C", "tree", "."], self.dir.path());
        self.path(name).to_str().unwrap().to_owned()
    }

    fn verify(&self, args: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slurm-factory"));
        command.arg("verify").args(args).env("HOME", self.dir.path()).env_remove("SLURM_FACTORY_CACHE_DIR");
        answer(&mut command)
    }
}

#[test]
fn a_good_one_in_every_compression() {
    let site = Site::new();
    for (name, how) in [("a.tar", "--no-auto-compress"), ("a.tar.gz", "--gzip"), ("a.tar.zst", "--zstd")] {
        let archive = site.pack(name, how);
        let refused = site.verify(&[&archive, "--key", "/dev/null"]);
        assert_ne!(refused.code, 0, "nothing tells who made it: {}", refused.out);
        let answer = site.verify(&[&archive, "--foreign", "--closure"]);
        assert_eq!(answer.code, 0, "{name}: {}", answer.err);
        assert!(answer.err.contains("no signature"), "{}", answer.err);
        assert!(answer.out.contains("libv.so.1 => lib/libv.so.1"), "{}", answer.out);
        assert!(answer.out.contains("libc.so.6 => the host's"), "{}", answer.out);
        assert!(!answer.out.contains("plain tar -x gives a working tree"), "nothing is promised: {}", answer.out);
    }
    let answer = site.verify(&[site.path("tree").to_str().unwrap(), "--json"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    let needed = json["closure"]["bin/prog"].as_array().unwrap();
    assert!(needed.iter().any(|n| n["library"] == "libv.so.1" && n["found"] == "lib/libv.so.1"), "{needed:?}");
}

#[test]
fn who_needs_what_is_a_tree() {
    let site = Site::new();
    // libv needs libu, which needs libv: a ring, and a library of the ring that two files need.
    fs::write(site.path("u.c"), "int three(void) { return 3; }\n").unwrap();
    let link = ["-shared", "-fPIC", "-o", "tree/lib/libu.so.1", "u.c", "-Wl,-soname,libu.so.1", "-Wl,-rpath,$ORIGIN"];
    run("gcc", &[&link[..], &["-Wl,--no-as-needed", "-Ltree/lib", "-l:libv.so.1"]].concat(), site.dir.path());
    let versions = "V_1 { global: one; local: *; };\nV_2 { global: two; } V_1;\n";
    site.library(versions, &["-Wl,--no-as-needed", "-Ltree/lib", "-l:libu.so.1", "-Wl,-rpath,$ORIGIN"]);
    let archive = site.pack("a.tar", "--no-auto-compress");
    let answer = site.verify(&[&archive, "--foreign", "--closure"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    let tree = "\nbin/prog\n    libv.so.1 => lib/libv.so.1\n        libu.so.1 => lib/libu.so.1\n            \
                libv.so.1 => lib/libv.so.1 (above)\n            libc.so.6 => the host's\n        libc.so.6 => the host's\n    \
                libc.so.6 => the host's\n";
    assert!(answer.out.ends_with(tree), "{}", answer.out);
    // Nobody needs the ring now, and it is shown all the same.
    fs::remove_file(site.path("tree/bin/prog")).unwrap();
    let answer = site.verify(&[site.path("tree").to_str().unwrap(), "--closure"]);
    assert!(
        answer
            .out
            .contains("\nlib/libu.so.1\n    libv.so.1 => lib/libv.so.1\n        libu.so.1 => lib/libu.so.1 (above)\n"),
        "{}",
        answer.out
    );
}

#[test]
fn an_archive_in_a_compression_that_is_not_read() {
    let site = Site::new();
    for (name, how, format) in [("a.tar.xz", "--xz", "xz"), ("a.tar.bz2", "--bzip2", "bzip2")] {
        let answer = site.verify(&[&site.pack(name, how), "--foreign"]);
        assert_ne!(answer.code, 0);
        let says = format!("it is compressed ({format}), which is not read here; unpack it and verify the folder");
        assert!(answer.err.contains(name) && answer.err.contains(&says), "{}", answer.err);
    }
}

/// The loader's own word is asked too: what we call missing it refuses, what we let pass it takes.
#[test]
fn a_version_that_the_library_lacks() {
    let site = Site::new();
    let starts = |site: &Site| {
        std::process::Command::new(site.path("tree/bin/prog")).output().is_ok_and(|output| output.status.success())
    };
    assert!(starts(&site));
    site.library("V_1 { global: one; two; local: *; };\n", &[]);
    assert!(!starts(&site), "the loader refuses it");
    let answer = site.verify(&[&site.pack("a.tar", "--no-auto-compress"), "--foreign"]);
    assert_eq!(answer.code, 5, "{}", answer.out);
    assert!(answer.err.contains("bin/prog: needs version V_2 of lib/libv.so.1"), "{}", answer.err);

    // Without any versions of its own: taken as it is when it has a table of versions, for what it needs of the C library.
    for (more, taken) in [("", false), ("#include <stdio.h>\nint three(void) { return puts(\"\"); }\n", true)] {
        fs::write(site.path("v.c"), format!("{more}int one(void) {{ return 1; }}\nint two(void) {{ return 0; }}\n"))
            .unwrap();
        run("gcc", &["-shared", "-fPIC", "-o", "tree/lib/libv.so.1", "v.c", "-Wl,-soname,libv.so.1"], site.dir.path());
        assert_eq!(starts(&site), taken, "{more}");
        let answer = site.verify(&[&site.pack("b.tar", "--no-auto-compress"), "--foreign"]);
        assert_eq!(answer.code, if taken { 0 } else { 5 }, "{more}: {}", answer.err);
    }
}

#[test]
fn a_library_to_which_no_path_leads() {
    let site = Site::new();
    fs::create_dir(site.path("tree/other")).unwrap();
    fs::rename(site.path("tree/lib/libv.so.1"), site.path("tree/other/libv.so.1")).unwrap();
    let answer = site.verify(&[&site.pack("a.tar", "--no-auto-compress"), "--foreign"]);
    assert_eq!(answer.code, 5, "{}", answer.out);
    let says = "bin/prog: needs libv.so.1, which is at other/libv.so.1, but no search path";
    assert!(answer.err.contains(says), "{}", answer.err);
}

#[test]
fn what_the_processor_must_have() {
    let site = Site::new();
    let versions = "V_1 { global: one; local: *; };\nV_2 { global: two; } V_1;\n";
    for (flag, level) in [("v2", "x86-64-v2"), ("v3", "x86-64-v3"), ("v4", "x86-64-v4")] {
        site.library(versions, &[&format!("-Wl,-z,x86-64-{flag}")]);
        let answer = site.verify(&[&site.pack("a.tar", "--no-auto-compress"), "--foreign"]);
        let wanted = format!("{level} or newer, asked for by lib/libv.so.1");
        assert!(answer.out.contains(&wanted), "{flag}: {}{}", answer.out, answer.err);
    }
}

#[test]
fn what_is_no_archive_or_a_bad_one() {
    let site = Site::new();
    let text = site.path("text");
    fs::write(&text, "no archive\n".repeat(100)).unwrap();
    let empty = site.path("empty");
    fs::write(&empty, "").unwrap();
    run("tar", &["-cPf", "up.tar", "--transform=s,^,../,", "v.c"], site.dir.path());
    let whole = fs::read(site.pack("a.tar.gz", "--gzip")).unwrap();
    let cut = site.path("cut.tar.gz");
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    fs::write(site.path("noise"), [0xf3_u8, 0x1b].repeat(1000)).unwrap();
    for path in [text, empty, site.path("up.tar"), site.path("noise"), cut] {
        let answer = site.verify(&[path.to_str().unwrap(), "--foreign"]);
        assert_eq!(answer.code, 5, "{}: {}", path.display(), answer.out);
        assert!(answer.err.contains("is no tar archive"), "{}: {}", path.display(), answer.err);
        assert!(!answer.err.contains('\u{1b}'), "a terminal is sent no bytes of the file: {:?}", answer.err);
    }
}

/// A tree that was built for a prefix of its own, as Spack or a hand-made script leaves one behind.
#[test]
fn the_prefix_of_another_build() {
    let site = Site::new();
    fs::write(site.path("tree/bin/script"), "#!/opt/site/bin/python3\n").unwrap();
    fs::write(site.path("tree/lib/x.pc"), "prefix=/opt/site/x\n").unwrap();
    fs::write(
        site.path("prog.c"),
        "const char *where = \"/opt/site/etc\"; int two(void); int main(void) { return two(); }\n",
    )
    .unwrap();
    let link = ["-o", "tree/bin/prog", "prog.c", "-Ltree/lib", "-l:libv.so.1", "-Wl,-rpath,$ORIGIN/../lib"];
    run("gcc", &link, site.dir.path());
    let archive = site.pack("a.tar.gz", "--gzip");
    let tree = site.path("tree");
    for what in [&[archive.as_str(), "--foreign"][..], &[tree.to_str().unwrap()]] {
        let named = site.verify(&[what, &["--from", "/opt/site/"]].concat());
        assert_eq!(named.code, 5, "{}", named.out);
        for part in ["bin/script: names the build at offset 2: `/opt/site/bin/python3`", "lib/x.pc", "bin/prog"] {
            assert!(named.err.contains(part), "{part}: {}", named.err);
        }
        // Of another prefix nothing is there, and without one it is said what was sought.
        let other = site.verify(&[what, &["--from", "/opt/sit"]].concat());
        assert!(other.code == 0 && other.out.contains("sought  /opt/sit\n"), "{}{}", other.out, other.err);
        let unasked = site.verify(what);
        assert!(unasked.code == 0 && unasked.out.contains("--from names the prefix"), "{}{}", unasked.out, unasked.err);
    }
    for (args, part) in [([archive.as_str(), "--from"], "add --foreign"), ([archive.as_str(), "--from"], "absolute")] {
        let prefix = if part == "absolute" { "opt/site" } else { "/opt/site" };
        let refused = site.verify(&[&args[..], &[prefix]].concat());
        assert!(refused.code == 2 && refused.err.contains(part), "{}: {}", refused.code, refused.err);
    }
}

#[test]
fn folders_for_everybody_and_what_is_no_file() {
    let site = Site::new();
    for (name, mode, told) in [("sticky", 0o1777, false), ("of-a-group", 0o2775, false), ("open", 0o777, true)] {
        let folder = site.path("tree").join(name);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        let archive = site.pack("a.tar", "--no-auto-compress");
        for what in [&[archive.as_str(), "--foreign"][..], &[site.path("tree").to_str().unwrap()]] {
            let answer = site.verify(what);
            assert_eq!(answer.code == 5 && answer.err.contains("open: mode 0777"), told, "{name}: {}", answer.err);
        }
    }
    run("mkfifo", &["tree/pipe"], site.dir.path());
    let archive = site.pack("a.tar", "--no-auto-compress");
    for what in [&[archive.as_str(), "--foreign"][..], &[site.path("tree").to_str().unwrap()]] {
        let answer = site.verify(what);
        assert!(answer.code == 5 && answer.err.contains("pipe: a FIFO"), "{}", answer.err);
    }
}
