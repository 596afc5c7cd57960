//! Files that belong to whom the image says: `--ownership range`, with a user who has subordinate ids and with ones who have
//! none. Only root can make the first, so root makes one, and this program is started again as that user.

use crate::Test;
use crate::world::{OwnUser, World};
use fs_err as fs;
use slurm_factory::cache::Cache;
use slurm_factory::fsutil;
use slurm_factory::image::{self, ClientConfig, Platform, Reference, ResolveOptions};
use slurm_factory::report::{Ctx, Interrupt};
use slurm_factory::rootfs::{Limits, unpack_owned};
use slurm_factory::sandbox::{Access, Backend, Ids, Io, Sandbox, Spec, Writable, as_root, remove_of_range};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const TESTS: &[Test] = &[
    ("ranges_owners_are_the_images", owners_are_the_images),
    ("ranges_are_refused_where_there_are_none", refused_where_there_are_none),
];

/// First argument with which this program is the user who has a range: a word, and a folder.
pub const OWNER: &str = "--as-owner";

/// Name, mode, uid, gid; a name that ends in `/` is a folder, `->` makes a link.
type Made = (&'static str, u32, u32, u32);

/// What Debian's images are like: a game of its own user, spools, setuid and setgid programs.
const LOWER: [Made; 9] = [
    ("var/games/", 0o2775, 0, 60),
    ("var/games/score", 0o664, 5, 60),
    ("var/spool/at/", 0o1770, 1, 1),
    ("var/spool/at/closed/", 0o700, 1, 1),
    ("var/spool/at/closed/job", 0o600, 1, 1),
    ("etc/secret", 0o640, 0, 42),
    ("usr/bin/given", 0o6755, 65534, 8),
    ("usr/bin/gone", 0o755, 7, 7),
    ("usr/bin/taken-back", 0o755, 7, 7),
];

/// Over it: one goes, one becomes root's, one is replaced, and a folder with an owner gets something more.
const UPPER: [Made; 7] = [
    ("var/spool/at/", 0o1770, 1, 1),
    ("var/spool/at/closed/", 0o700, 1, 1),
    ("usr/bin/.wh.gone", 0o644, 0, 0),
    ("usr/bin/taken-back", 0o755, 0, 0),
    ("etc/secret", 0o600, 9, 9),
    ("var/spool/at/closed/more", 0o400, 2, 3),
    ("usr/bin/link->given", 0o777, 12, 13),
];

fn layer(tree: &Path, made: &[Made], tar: &Path) {
    for (name, mode, uid, gid) in made {
        if let Some((name, to)) = name.split_once("->") {
            let path = tree.join(name);
            std::os::unix::fs::symlink(to, &path).unwrap();
            std::os::unix::fs::lchown(&path, Some(*uid), Some(*gid)).unwrap();
            continue;
        }
        let path = tree.join(name);
        if name.ends_with('/') {
            fs::create_dir_all(&path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
        }
        std::os::unix::fs::chown(&path, Some(*uid), Some(*gid)).unwrap();
        fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
    }
    run("tar", &["--numeric-owner", "--sort=name", "-C", text(tree), "-cf", text(tar), "."]);
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is missing (apt-get install umoci tar): {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Name, and type with mode, uid, gid.
fn listing(root: &Path) -> BTreeMap<PathBuf, (u32, u32, u32)> {
    let entries = walkdir::WalkDir::new(root).min_depth(1).into_iter().map(Result::unwrap);
    let found = entries.map(|entry| (entry.path().strip_prefix(root).unwrap().to_owned(), entry.metadata().unwrap()));
    found.map(|(name, meta)| (name, (meta.mode(), meta.uid(), meta.gid()))).collect()
}

fn owners_are_the_images(world: &World) {
    if !world.is_root() {
        return;
    }
    let dir = world.folder("ranges");
    let lower = world.own_rootfs("ranges-lower");
    let upper = world.folder("ranges-upper");
    let image = format!("{}:image", text(&dir.join("layout")));
    run("umoci", &["init", "--layout", text(&dir.join("layout"))]);
    run("umoci", &["new", "--image", &image]);
    for (tree, made, tar) in [(&lower, &LOWER[..], "lower.tar"), (&upper, &UPPER[..], "upper.tar")] {
        let tar = dir.join(tar);
        layer(tree, made, &tar);
        run("umoci", &["raw", "add-layer", "--image", &image, text(&tar)]);
    }
    run("umoci", &["unpack", "--image", &image, text(&dir.join("peer"))]);
    run("chmod", &["-R", "a+rX", text(&dir.join("layout"))]);
    let user = OwnUser::with_subordinate_ids();
    let mine = dir.join("mine");
    fs::create_dir(&mine).unwrap();
    std::os::unix::fs::symlink(dir.join("layout"), mine.join("layout")).unwrap();
    user.give(&mine);

    let as_user = |word: &str| {
        let id = user.id.to_string();
        let output = Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"])
            .arg(world.tests())
            .args([OWNER, word, text(&mine)])
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{word}: {out}{err}");
        out.into_owned()
    };
    let first: u32 = as_user("unpack").trim().parse().unwrap();
    let on_host = |id: u32| if id == 0 { user.id } else { first + id - 1 };
    let wanted: BTreeMap<_, _> = listing(&dir.join("peer/rootfs"))
        .into_iter()
        .map(|(name, (mode, uid, gid))| (name, (mode, on_host(uid), on_host(gid))))
        .collect();
    let unpacked = listing(&mine.join("root"));
    for (name, want) in &wanted {
        assert_eq!(unpacked.get(name), Some(want), "{}", name.display());
    }
    assert_eq!(unpacked.len(), wanted.len());
    assert_eq!(unpacked[Path::new("usr/bin/given")].0 & 0o7777, 0o6755, "setuid and setgid are kept");
    assert_eq!(unpacked[Path::new("var/spool/at/closed/more")].1, on_host(2));

    // As root inside: what apt and dpkg do is done, and seen by whoever asks.
    let said = as_user("prepare");
    let uid = user.id;
    for line in ["0:42 640 etc", "1:1 1770 at", "33:44 4755 new", "9:9 600 secret", "65534:8 6755 given", "0:0"] {
        assert!(said.lines().any(|have| have == line), "no `{line}` in {said}");
    }
    // As the builder: the user's own id, no rights over others' files, and their owners are seen.
    let said = as_user("build");
    for line in [format!("{uid}:{uid}"), format!("{uid}:42 secretly"), "closed".into(), "1:1 at".into()] {
        assert!(said.lines().any(|have| have == line), "no `{line}` in {said}");
    }
    let there = listing(&mine.join("root"));
    assert_eq!(there[Path::new("opt/new")], (0o104_755, on_host(33), on_host(44)));
    // In a layer too, which goes with what was given away in it.
    let before = listing(&mine.join("root"));
    let said = as_user("layers");
    assert_eq!(said.matches("33:44 4755 again").count(), 2, "{said}");
    assert_eq!(listing(&mine.join("root")), before);
    // The program's own `clean --full`, in a cache whose rootfs holds what is closed to its user.
    world.program();
    let said = as_user("clean");
    assert!(said.contains("33:44 700 closed") && said.contains("/rootfs/range\n"), "{said}");
    as_user("remove");
    assert!(!mine.join("root").exists());
}

/// The user's side. Prints what root compares.
pub fn owner(arguments: &[String]) -> i32 {
    let [word, dir] = arguments else { return 2 };
    let dir = Path::new(dir);
    let root = dir.join("root");
    let interrupt = Interrupt::new();
    let open = || Sandbox::open(Backend::Userns, &interrupt).unwrap().with_range().unwrap_or_else(|e| panic!("{e}"));
    let sh = |spec: &Spec, script: &str| {
        let argv = ["sh", "-c", script].map(OsString::from);
        let exit = open().run(spec, &argv, Io::Capture, &interrupt).unwrap_or_else(|e| panic!("{e}"));
        print!("{}", String::from_utf8_lossy(&exit.stdout));
        eprint!("{}", String::from_utf8_lossy(&exit.stderr));
        i32::from(!exit.success())
    };
    match word.as_str() {
        "unpack" => {
            let sandbox = open();
            let cache = Cache::open(&dir.join("cache")).unwrap();
            let reference: Reference = format!("oci:{}:image", dir.join("layout").display()).parse().unwrap();
            let (client, ctx) = (ClientConfig::default(), Ctx::silent());
            let options = ResolveOptions { offline: false, refresh: false };
            let image = image::resolve(&reference, Platform::host().unwrap(), &cache, &client, options, &ctx).unwrap();
            let image = image::pull(&image, &cache, &client, false, &ctx).unwrap();
            // A range that does not reach as far as the image's ids is refused with the file's name.
            fs::create_dir(dir.join("small")).unwrap();
            let limits = Limits { owners: Some((1000, 1000)), ..Limits::default() };
            let error = unpack_owned(image.clone().into(), &dir.join("small"), &limits, &ctx).unwrap_err().to_string();
            assert!(error.contains("usr/bin/given") && error.contains("uid 65534"), "{error}");

            fs::create_dir(&root).unwrap();
            let limits = Limits { owners: sandbox.ids().highest(), ..Limits::default() };
            let (_, _, owners) = unpack_owned(image.into(), &root, &limits, &ctx).unwrap();
            sandbox.own(&root, owners).unwrap_or_else(|e| panic!("{e}"));
            let Ids::Range { uids, .. } = sandbox.ids() else { return 3 };
            println!("{}", uids.first);
            0
        }
        "prepare" => {
            let script = "cd /; touch opt/new 2>/dev/null || { mkdir opt; touch opt/new; }; chown 33:44 opt/new; chmod 4755 opt/new; \
                          mkdir -p opt/etc; chown 0:42 opt/etc; chmod 640 opt/etc; \
                          stat -c '%u:%g %a %n' opt/etc var/spool/at opt/new etc/secret usr/bin/given | \
                          while read o m n; do echo $o $m ${n##*/}; done; echo $(id -u):$(id -g); \
                          touch /x && ! chown 70000 /x 2>/dev/null && rm /x";
            sh(&Spec::prepare(&root), script)
        }
        "build" => {
            let script = "echo $(id -u):$(id -g); cat /etc/secret 2>/dev/null || echo closed; \
                          echo $(stat -c %u:%g /var/spool/at) at; \
                          stat -c '%u:%g secretly' /opt/etc; touch /usr/bin/x 2>/dev/null && exit 1; exit 0";
            sh(&Spec::build(&root), script)
        }
        "layers" => {
            fsutil::delete_others_by(remove_of_range);
            let (cache, layers) = (Cache::open(&dir.join("cache")).unwrap(), dir.join("layers"));
            for way in [Writable::Overlay, Writable::Copy] {
                let sandbox = open().writable(way, &layers, &cache).unwrap_or_else(|e| panic!("{e}"));
                let script = "mkdir /opt/closed && touch /opt/closed/f && chown -R 33:44 /opt/closed && chmod 700 /opt/closed && \
                              stat -c '%u:%g %a again' /opt/new && test $(stat -c %u /usr/bin/given) = 65534";
                let argv = ["sh", "-c", script].map(OsString::from);
                let exit = sandbox.run(&as_root(Spec::build(&root)), &argv, Io::Capture, &interrupt).unwrap();
                print!("{}{}", String::from_utf8_lossy(&exit.stdout), String::from_utf8_lossy(&exit.stderr));
                assert!(exit.success(), "{way:?}");
                assert_eq!(fs::read_dir(&layers).unwrap().count(), 0, "{way:?} left something");
            }
            0
        }
        "clean" => {
            let cache = Cache::open(&dir.join("cache")).unwrap();
            let rootfs = cache.dir("rootfs/range");
            fs::create_dir_all(&rootfs).unwrap();
            let script = "cd /mnt; mkdir -p root/closed/in; touch root/closed/in/f; chown -R 33:44 root/closed; \
                          chmod 700 root/closed; stat -c '%u:%g %a closed' root/closed";
            assert_eq!(sh(&Spec::prepare(&root).mount(&rootfs, "/mnt", Access::ReadWrite), script), 0);
            assert!(fs::read_dir(rootfs.join("root/closed")).is_err(), "it is open to its user");
            let program = std::env::current_exe().unwrap().with_file_name("slurm-factory");
            let mut clean = Command::new(program);
            clean.env("HOME", dir).arg("--cache-dir").arg(cache.root()).args(["clean", "--full"]);
            let output = clean.output().unwrap();
            print!("{}", String::from_utf8_lossy(&output.stdout));
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success() && !rootfs.exists());
            0
        }
        "remove" => {
            assert!(fsutil::remove_tree(&root).is_err(), "it can be deleted without");
            assert!(root.exists());
            // What a killed run leaves half-made is swept.
            let cache = Cache::open(&dir.join("cache")).unwrap();
            let parent = cache.dir("rootfs");
            fs::create_dir_all(&parent).unwrap();
            fs::rename(&root, parent.join(".tmp-dead")).unwrap();
            fsutil::delete_others_by(remove_of_range);
            assert_eq!(cache.sweep(&parent).unwrap(), 1);
            assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
            0
        }
        _ => 2,
    }
}

fn refused_where_there_are_none(world: &World) {
    let cache = world.folder("no-ranges");
    let spec = serde_json::to_vec(&world.build()).unwrap();
    fs::write(cache.join("last-build.json"), spec).unwrap();
    let call = |words: &[&str]| {
        let mut command = Command::new(world.program());
        command.arg("--cache-dir").arg(&cache).args(words).stdin(Stdio::null());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let words = ["/etc/subuid", ":100000:65536` in /etc/subuid and in /etc/subgid", "--ownership single"];
    for verb in [&["shell", "--ownership", "range", "--", "true"][..], &["doctor", "--ownership", "range"]] {
        let (code, said) = call(verb);
        assert_eq!(code, Some(3), "{said}");
        for word in words {
            assert!(said.contains(word), "no `{word}` in {said}");
        }
    }
    let (code, said) = call(&["shell", "--ownership", "some", "--", "true"]);
    assert!(code == Some(2) && said.contains("single, range"), "{said}");
    assert_eq!(call(&["shell", "--ownership", "single", "--", "true"]).0, Some(0));
}
