//! `relocate DIR --from OLD --to NEW` on a tree as `make install` leaves it: programs and a library that gcc makes, with the
//! prefix in search paths, in strings, in scripts, in symlinks. After it the old place is taken away, and all must run.

use crate::util::{Answer, answer, run_in as run};
use assert_cmd::Command;
use fs_err as fs;
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Site {
    dir: TempDir,
    old: PathBuf,
}

impl Site {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let old = dir.path().join("some-where/old-prefix");
        for folder in ["bin", "lib", "lib/pkgconfig", "etc", "libexec/deep/er"] {
            fs::create_dir_all(old.join(folder)).unwrap();
        }
        let shown = old.display();
        fs::write(old.join("etc/conf"), "the configuration\n").unwrap();
        fs::write(dir.path().join("l.c"), format!("const char *conf(void) {{ return \"{shown}/etc/conf\"; }}\n"))
            .unwrap();
        let main = format!(
            "#include <stdio.h>\nconst char *conf(void);\nstatic const char other[] = \"{shown}er/etc\";\n\
             int main(void) {{ char s[99]; FILE *f = fopen(conf(), \"r\"); if (!f) {{ perror(conf()); return 1; }}\n\
             if (!fgets(s, 99, f)) return 2; fputs(s, stdout); puts(other); return 0; }}\n"
        );
        fs::write(dir.path().join("p.c"), main).unwrap();
        let lib = old.join("lib/libl.so.1");
        let lib = lib.to_str().unwrap();
        run("gcc", &["-g", "-shared", "-fPIC", "-Wl,-soname,libl.so.1", "-o", lib, "l.c"], dir.path());
        let rpath = format!("-Wl,-rpath,{shown}/lib:/opt/elsewhere/lib");
        for (program, kind) in [("bin/p", "-Wl,--disable-new-dtags"), ("libexec/deep/er/p", "-Wl,--enable-new-dtags")] {
            let program = old.join(program);
            run("gcc", &["-g", "-o", program.to_str().unwrap(), "p.c", lib, &rpath, kind], dir.path());
        }
        let script = format!("#!{shown}/bin/sh -e\ncat {shown}/etc/conf\necho {shown}-2\n");
        fs::write(old.join("bin/script"), script).unwrap();
        fs::copy("/bin/sh", old.join("bin/sh")).unwrap();
        fs::set_permissions(old.join("bin/script"), std::fs::Permissions::from_mode(0o750)).unwrap();
        fs::write(old.join("lib/pkgconfig/l.pc"), format!("prefix={shown}\nLibs: -L{shown}/lib -ll\n")).unwrap();
        std::os::unix::fs::symlink(old.join("lib/libl.so.1"), old.join("lib/libl.so")).unwrap();
        std::os::unix::fs::symlink(old.join("etc"), old.join("libexec/deep/etc")).unwrap();
        std::os::unix::fs::symlink("p", old.join("bin/again")).unwrap();
        fs::hard_link(old.join("bin/p"), old.join("bin/hard")).unwrap();
        assert!(run(old.join("bin/p").to_str().unwrap(), &[], dir.path()).starts_with("the configuration\n"));
        Self { dir, old }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A copy of the tree at another place.
    fn copy(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        run("cp", &["-a", self.old.to_str().unwrap(), to.to_str().unwrap()], self.dir.path());
        to
    }

    fn relocate(&self, dir: &Path, more: &[&str], wrapper: &[&str]) -> Answer {
        let program = env!("CARGO_BIN_EXE_slurm-factory");
        let words: Vec<&str> = wrapper.iter().copied().chain([program]).collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["relocate", dir.to_str().unwrap()])
            .args(if more.contains(&"--from") { vec![] } else { vec!["--from", self.old.to_str().unwrap()] })
            .args(more)
            .env("HOME", self.dir.path());
        answer(&mut command)
    }

    /// Everything works at `new`, with the old place gone.
    fn assert_works(&self, new: &Path) {
        let away = self.path("away");
        if self.old.exists() {
            fs::rename(&self.old, &away).unwrap();
        }
        for program in ["bin/p", "bin/hard", "bin/again", "libexec/deep/er/p"] {
            let out = run(new.join(program).to_str().unwrap(), &[], self.dir.path());
            assert!(out.starts_with("the configuration\n"), "{program}: {out}");
            assert!(out.contains(&format!("{}er/etc", self.old.display())), "another path is left alone: {out}");
        }
        let path = format!("{}:/usr/bin:/bin", new.join("bin").display());
        let out = std::process::Command::new(new.join("bin/script")).env("PATH", path).output().unwrap();
        let out = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(out, format!("the configuration\n{}-2\n", self.old.display()));
        let text = fs::read_to_string(new.join("lib/pkgconfig/l.pc")).unwrap();
        assert_eq!(text, format!("prefix={0}\nLibs: -L{0}/lib -ll\n", new.display()));
        assert_eq!(fs::read_link(new.join("lib/libl.so")).unwrap(), Path::new("libl.so.1"));
        assert_eq!(fs::read_link(new.join("libexec/deep/etc")).unwrap(), Path::new("../../etc"));
        let ino = |name: &str| fs::metadata(new.join(name)).unwrap().ino();
        assert_eq!(ino("bin/p"), ino("bin/hard"), "hard links stay");
        assert_eq!(fs::metadata(new.join("bin/script")).unwrap().mode() & 0o7777, 0o750);
        let dynamic = run("readelf", &["-d", new.join("bin/p").to_str().unwrap()], self.dir.path());
        assert!(dynamic.contains("(RPATH)") && dynamic.contains("[$ORIGIN/../lib:/opt/elsewhere/lib]"), "{dynamic}");
        let dynamic = run("readelf", &["-d", new.join("libexec/deep/er/p").to_str().unwrap()], self.dir.path());
        assert!(dynamic.contains("(RUNPATH)") && dynamic.contains("[$ORIGIN/../../../lib:"), "{dynamic}");
        assert!(!new.join(".slurm-factory-relocate").exists());
        if away.exists() {
            fs::rename(&away, &self.old).unwrap();
        }
    }
}

/// Every entry with its type, mode, time and content.
fn image(dir: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let entries = walkdir::WalkDir::new(dir).min_depth(1).into_iter().map(Result::unwrap);
    let content = |path: &Path, kind: std::fs::FileType| match kind {
        kind if kind.is_file() => fs::read(path).unwrap(),
        kind if kind.is_symlink() => fs::read_link(path).unwrap().into_os_string().into_encoded_bytes(),
        _ => Vec::new(),
    };
    entries
        .map(|e| {
            let meta = fs::symlink_metadata(e.path()).unwrap();
            let time = if meta.is_file() { meta.mtime() } else { 0 };
            (e.path().strip_prefix(dir).unwrap().to_owned(), (meta.mode(), time, content(e.path(), e.file_type())))
        })
        .collect()
}

#[test]
fn a_shorter_prefix() {
    let site = Site::new();
    let before = image(&site.old);
    let new = site.copy("new");
    let answer = site.relocate(&new, &["--json"], &[]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((&json["search_paths"], &json["links"], &json["text"]), (&2.into(), &2.into(), &2.into()), "{json}");
    site.assert_works(&new);
    let after = image(&new);
    for (path, (mode, time, _)) in &before {
        assert_eq!((after[path].0, after[path].1), (*mode, *time), "mode and time of {}", path.display());
    }
    let again = site.relocate(&new, &["--json"], &[]);
    let json: serde_json::Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!((&json["search_paths"], &json["strings"], &json["text"]), (&0.into(), &0.into(), &0.into()), "{json}");
    assert_eq!(image(&new), after, "twice is once");
    assert_eq!(image(&site.old), before);
}

/// A prefix with a blank, which the kernel would not read in a first line, and one of the same length.
#[test]
fn a_prefix_with_a_blank_and_one_of_the_same_length() {
    let site = Site::new();
    let blank = site.copy("new place");
    let answer = site.relocate(&blank, &[], &[]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(answer.err.contains("bin/script: its interpreter is found through PATH"), "{}", answer.err);
    assert!(fs::read_to_string(blank.join("bin/script")).unwrap().starts_with("#!/usr/bin/env -S sh -e\n"));
    let out = run(blank.join("bin/p").to_str().unwrap(), &[], site.dir.path());
    assert!(out.starts_with("the configuration\n"), "{out}");

    let same = site.copy("some-where/new-prefix");
    assert_eq!(site.relocate(&same, &[], &[]).code, 0);
    site.assert_works(&same);
}

#[test]
fn a_longer_prefix_is_refused_before_anything_is_changed() {
    let site = Site::new();
    let new = site.copy("some-where/a-prefix-that-is-longer");
    let before = image(&new);
    for more in [&[][..], &["--dry-run"]] {
        let answer = site.relocate(&new, more, &[]);
        assert_eq!(answer.code, 5, "{}", answer.err);
        assert!(answer.err.contains("lib/libl.so.1 at offset") && answer.err.contains("/etc/conf"), "{}", answer.err);
        assert_eq!(image(&new), before, "{more:?}");
    }
    let answer = site.relocate(&new, &["--force"], &[]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(answer.err.contains("still names the old prefix: lib/libl.so.1"), "{}", answer.err);
    assert!(answer.out.contains("without the 1 places named above"), "{}", answer.out);
    // What can be longer is: search paths, text and links.
    let dynamic = run("readelf", &["-d", new.join("bin/p").to_str().unwrap()], site.dir.path());
    assert!(dynamic.contains("[$ORIGIN/../lib:/opt/elsewhere/lib]"), "{dynamic}");
}

/// Killed at every rename in turn, the next run completes the work; killed before the list is there, nothing was changed.
#[test]
fn a_run_that_is_killed_is_completed_by_the_next() {
    let site = Site::new();
    let mut killed = 0;
    // The list is put into its place by renameat(2), the files by rename(2).
    for (index, (call, when)) in [("renameat", 1)].into_iter().chain((1..).map(|n| ("rename", n))).enumerate() {
        let new = site.copy(&format!("n{index}"));
        let before = image(&new);
        let inject = format!("inject={call}:signal=KILL:when={when}");
        let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=rename,renameat", "-e", &inject];
        let answer = site.relocate(&new, &[], &strace);
        if answer.code == 0 {
            break;
        }
        killed += 1;
        let staging = fs::metadata(new.join(".slurm-factory-relocate")).unwrap();
        assert_eq!(staging.mode() & 0o7777, 0o700, "copies of files that nobody else may read are in it");
        if new.join(".slurm-factory-relocate/list.json").exists() {
            let other = site.relocate(&new, &["--to", "/x"], &[]);
            assert_eq!(other.code, 2, "{}", other.out);
            assert!(other.err.contains("in the middle of a move"), "{}", other.err);
        } else {
            let mut now = image(&new);
            now.retain(|path, _| !path.starts_with(".slurm-factory-relocate"));
            assert_eq!(now, before, "killed at rename {when}");
        }
        let answer = site.relocate(&new, &[], &[]);
        assert_eq!(answer.code, 0, "{}", answer.err);
        site.assert_works(&new);
    }
    // Two programs, the library, two texts, a hard link and two symlinks; and the list.
    assert!(killed >= 9, "{killed}");
}

/// While one run is at work, a second one is told so and touches nothing; they may look together.
#[test]
fn two_runs_in_one_tree_do_not_meet() {
    let site = Site::new();
    let new = site.copy("new");
    // The first one stands before the list for some seconds, with all the files written.
    let slow = "inject=renameat:delay_enter=5000000:when=1";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat", "-e", slow];
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| site.relocate(&new, &[], &strace));
        while !new.join(".slurm-factory-relocate/0").exists() {
            assert!(!first.is_finished(), "the first one ended");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let second = [&[][..], &["--dry-run"]].map(|more| site.relocate(&new, more, &[]));
        (first.join().unwrap(), second)
    });
    for second in second {
        assert_eq!(second.code, 3, "{}", second.err);
        assert!(second.err.contains("another run of relocate is at work in `"), "{}", second.err);
    }
    assert_eq!(first.code, 0, "{}", first.err);
    site.assert_works(&new);

    let looking = fs::File::open(&new).unwrap();
    looking.file().lock_shared().unwrap();
    assert_eq!(site.relocate(&new, &["--dry-run"], &[]).code, 0);
    assert_eq!(site.relocate(&new, &[], &[]).code, 3);
}

/// Where no lock is to be had the run says so and goes on; that one fails in another way is an error.
#[test]
fn a_file_system_without_locks() {
    let site = Site::new();
    let new = site.copy("new");
    let with = |error: &str| {
        let inject = format!("inject=flock:error={error}");
        site.relocate(&new, &[], &["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", &inject])
    };
    let broken = with("EIO");
    assert_eq!(broken.code, 4, "{}", broken.err);
    assert!(broken.err.contains("failed to lock `"), "{}", broken.err);
    let without = with("ENOLCK");
    assert_eq!(without.code, 0, "{}", without.err);
    assert!(without.err.contains("make sure that nobody else relocates it meanwhile"), "{}", without.err);
    site.assert_works(&new);
}

/// A folder in which nothing can be renamed: the error says what to do, and doing it completes the move.
#[test]
fn a_closed_folder_in_the_middle() {
    let site = Site::new();
    let new = site.copy("new");
    let immutable = |flag: &str| run("chattr", &[flag, new.join("lib").to_str().unwrap()], site.dir.path());
    immutable("+i");
    let answer = site.relocate(&new, &[], &[]);
    immutable("-i");
    assert_eq!(answer.code, 4, "{}", answer.err);
    assert!(
        answer.err.contains("is half moved") && answer.err.contains("run the same command again"),
        "{}",
        answer.err
    );
    assert_eq!(site.relocate(&new, &[], &[]).code, 0);
    site.assert_works(&new);
}

#[test]
fn what_makes_no_sense() {
    let site = Site::new();
    let new = site.copy("new");
    let never = site.relocate(&new, &["--from", "/never/there"], &[]);
    assert!(never.out.contains("nothing in it names /never/there"), "{}", never.out);
    let from = site.old.to_str().unwrap();
    for (args, says) in [
        (["--to", "relative"], "is not absolute"),
        (["--to", "/"], "the root is in every path"),
        (["--to", "/a/../b"], "holds `..`"),
        (["--to", "/a:b"], "colon"),
        (["--to", from], "the tree has already"),
    ] {
        let answer = site.relocate(&new, &args, &[]);
        assert_eq!(answer.code, 2, "{args:?}: {}", answer.err);
        assert!(answer.err.contains(says), "{args:?}: {}", answer.err);
    }
    assert_eq!(site.relocate(&site.path("gone"), &[], &[]).code, 2);
    assert_eq!(site.relocate(&new.join("etc/conf"), &[], &[]).code, 2);
}

/// A tree with a loader of its own, and a library that is named by its path: both work at a prefix of any length.
#[test]
fn a_loader_in_the_tree_and_a_library_named_by_its_path() {
    let dir = TempDir::new().unwrap();
    let old = dir.path().join("the-old/prefix");
    let shown = old.to_str().unwrap();
    fs::create_dir_all(old.join("bin")).unwrap();
    fs::create_dir_all(old.join("lib")).unwrap();
    let system = run("sh", &["-c", "readelf -lW /bin/sh | sed -n 's/.*interpreter: \\(.*\\)]/\\1/p'"], dir.path());
    fs::copy(system.trim(), old.join("lib/ld.so")).unwrap();
    fs::write(dir.path().join("l.c"), "int one(void) { return 1; }\n").unwrap();
    fs::write(dir.path().join("p.c"), "int one(void);\nint main(void) { return one() - 1; }\n").unwrap();
    let lib = format!("{shown}/lib/libl.so");
    let soname = format!("-Wl,-soname,{lib}");
    run("gcc", &["-shared", "-fPIC", "-o", &lib, &soname, "l.c"], dir.path());
    let loader = format!("-Wl,--dynamic-linker={shown}/lib/ld.so");
    run("gcc", &["-o", &format!("{shown}/bin/p"), "p.c", &lib, &loader], dir.path());
    run(&format!("{shown}/bin/p"), &[], dir.path());

    for name in ["n", "a-new-place/that-is-longer-than-the-old-one"] {
        let new = dir.path().join(name);
        fs::create_dir_all(new.parent().unwrap()).unwrap();
        run("cp", &["-a", shown, new.to_str().unwrap()], dir.path());
        let program = new.join("bin/p");
        let relocate = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_slurm-factory"));
            answer(command.arg("relocate").arg(&new).args(["--from", shown, "--json"]).env("HOME", dir.path()))
        };
        let told = relocate();
        assert_eq!(told.code, 0, "{name}: {}", told.err);
        let json: serde_json::Value = serde_json::from_str(&told.out).unwrap();
        assert_eq!((&json["interpreters"], &json["search_paths"]), (&1.into(), &2.into()), "{json}");
        let away = dir.path().join("away");
        fs::rename(&old, &away).unwrap();
        run(program.to_str().unwrap(), &[], dir.path());
        fs::rename(&away, &old).unwrap();
        let headers = run("readelf", &["-ldW", program.to_str().unwrap()], dir.path());
        assert!(headers.contains(&format!("interpreter: {}/lib/ld.so]", new.display())), "{headers}");
        assert!(headers.contains("Shared library: [libl.so]") && headers.contains("[$ORIGIN/../lib]"), "{headers}");
        let bytes = fs::read(&program).unwrap();
        assert!(memchr::memmem::find(&bytes, shown.as_bytes()).is_none(), "{name}: the old prefix is left");
        let again: serde_json::Value = serde_json::from_str(&relocate().out).unwrap();
        assert_eq!((&again["interpreters"], &again["search_paths"]), (&0.into(), &0.into()), "twice is once: {again}");
    }
}

/// A program and a hard link to it in a folder at another depth: the library is elsewhere from there.
#[test]
fn a_program_with_names_in_two_folders() {
    let site = Site::new();
    fs::hard_link(site.old.join("bin/p"), site.old.join("libexec/deep/er/hard")).unwrap();
    fs::hard_link(site.old.join("bin/p"), site.old.join("libexec/deep/er/harder")).unwrap();
    let new = site.copy("n");
    let answer = site.relocate(&new, &[], &[]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    site.assert_works(&new);
    fs::rename(&site.old, site.path("gone")).unwrap();
    let out = run(new.join("libexec/deep/er/hard").to_str().unwrap(), &[], site.dir.path());
    assert!(out.starts_with("the configuration\n"), "{out}");
    let ino = |name: &str| fs::metadata(new.join(name)).unwrap().ino();
    assert_eq!(ino("libexec/deep/er/hard"), ino("libexec/deep/er/harder"));
}

/// An archive may bring a list as a run of ours leaves it, which has files put where its maker wants them.
#[test]
fn a_list_that_leads_out_of_the_tree_is_not_carried_out() {
    let site = Site::new();
    let victim = site.path("victim");
    fs::create_dir_all(&victim).unwrap();
    for (index, (name, link)) in
        [("../victim/file", "etc/l"), ("bin/../../victim/file", "etc/l"), ("way/out/file", "etc/l")]
            .into_iter()
            .chain([("etc/l", "../victim/file"), ("", "etc/l")])
            .enumerate()
    {
        let new = site.copy(&format!("n{index}"));
        fs::create_dir(new.join("way")).unwrap();
        std::os::unix::fs::symlink(&victim, new.join("way/out")).unwrap();
        let staging = new.join(".slurm-factory-relocate");
        fs::create_dir(&staging).unwrap();
        fs::write(staging.join("0"), "theirs").unwrap();
        let list = serde_json::json!({
            "from": hex::encode(site.old.to_str().unwrap()), "to": hex::encode(new.to_str().unwrap()),
            "files": [[0, hex::encode(name)]], "names": [], "links": [[hex::encode(link), hex::encode("/x")]],
            "result": {"files": 1, "search_paths": 0, "text": 0, "strings": 0, "links": 0},
        });
        fs::write(staging.join("list.json"), list.to_string()).unwrap();
        let before = image(&new);
        let answer = site.relocate(&new, &[], &[]);
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "{name}");
        assert!(answer.code != 0 && answer.err.contains("is no list of this program's"), "{name}: {}", answer.err);
        assert_eq!(image(&new), before, "{name}");
    }
    // A link in place of the folder is not followed.
    let new = site.copy("linked");
    std::os::unix::fs::symlink(site.path("n0/.slurm-factory-relocate"), new.join(".slurm-factory-relocate")).unwrap();
    let answer = site.relocate(&new, &[], &[]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    site.assert_works(&new);
    assert!(site.path("n0/.slurm-factory-relocate/0").exists());
}

/// Attributes and owners stay, those of links too. Capabilities and other owners are root's to give.
#[test]
fn attributes_capabilities_and_owners_stay() {
    let site = Site::new();
    let new = site.copy("n");
    let path = |name: &str| new.join(name).to_str().unwrap().to_owned();
    let here = site.dir.path();
    run("setfacl", &["-m", "u:12345:r", &path("lib/pkgconfig/l.pc")], here);
    // Files in this folder would get a list of their own.
    run("setfacl", &["-d", "-m", "u:12346:rwx", new.to_str().unwrap()], here);
    let root = nix::unistd::geteuid().is_root();
    let owned = ["bin/p", "lib/libl.so", "lib/pkgconfig/l.pc"];
    if root {
        for name in owned {
            std::os::unix::fs::lchown(new.join(name), Some(1234), Some(2345)).unwrap();
        }
        run("setcap", &["cap_net_raw+ep", &path("bin/p")], here);
    }
    let answer = site.relocate(&new, &[], &[]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    let lists = |name: &str| run("getfacl", &["-cpn", &path(name)], here);
    assert!(lists("lib/pkgconfig/l.pc").contains("user:12345:r--"), "{}", lists("lib/pkgconfig/l.pc"));
    for name in ["bin/p", "bin/script", "lib/pkgconfig/l.pc"] {
        assert!(!lists(name).contains("12346"), "{name}: {}", lists(name));
    }
    if root {
        let shown = run("getcap", &[&path("bin/p")], here);
        assert!(shown.contains("cap_net_raw=ep"), "{shown}");
        for name in owned.into_iter().chain(["bin/hard"]) {
            let meta = fs::symlink_metadata(new.join(name)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (1234, 2345), "{name}");
        }
    }
    site.assert_works(&new);
}
