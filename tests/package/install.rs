//! `install`: atomic, repeatable, careful with what is not ours.

use crate::util::*;
use slurm_factory::package::{Compression, Tree, Trust};
use slurm_factory::report::{Ctx, Event, Reporter};
use slurm_factory::sign::Keyring;
use slurm_factory::workflows::install::{InstallError, Installation, Outcome, install, remove};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

fn put(made: &Made, prefix: &Path) -> Result<Installation, InstallError> {
    let mut trusted = Keyring::new();
    trusted.add_key(key());
    install(&made.path(), prefix, Trust::Require(&trusted), &Ctx::silent())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn any_prefix_will_do() {
    let made = make(Compression::GZIP);
    let around = made.dir.path().join("around");
    let long = around.join("l".repeat(200)).join("m".repeat(200)).join("n".repeat(255));
    for prefix in [around.join("plain"), around.join("mit Leerzeichen und \u{fc}'\"$"), long] {
        let done = put(&made, &prefix).unwrap();
        assert_eq!((done.outcome, &done.prefix), (Outcome::Installed, &prefix));
        assert_eq!(done.signature.unwrap().fingerprint, key().fingerprint());
        let pc = std::fs::read_to_string(prefix.join("view/lib64/pkgconfig/slurm.pc")).unwrap();
        assert_eq!(pc, format!("prefix={}\n", prefix.join("view").display()));
        let output = stdout(&mut std::process::Command::new(prefix.join("view/bin/sinfo-too")));
        assert_eq!(output, "sinfo here\n");
        let tree = Tree::open(&prefix).unwrap().unwrap();
        assert_eq!(tree.differences(true, &Ctx::silent()).unwrap(), []);
        assert_eq!(tree.record().unwrap().signed_by, Some(key().fingerprint()));
        // Nothing is left beside it.
        assert_eq!(names(prefix.parent().unwrap()).iter().filter(|n| n.starts_with(".tmp")).count(), 0);
    }
}

#[test]
fn a_path_in_a_binary_is_written_over_where_it_has_room() {
    let made = make(Compression::GZIP);
    // Short on purpose: what stands in the binary has 64 bytes.
    let near = tempfile::Builder::new().prefix("s").rand_bytes(5).tempdir_in("/tmp").unwrap();
    let prefix = near.path().join("p");
    put(&made, &prefix).unwrap();
    let library = prefix.join("view/lib/libplace.so");
    let view = prefix.join("view").display().to_string();
    let written = format!("{}{view}", "/".repeat(PLACE.len() - view.len()));
    assert_eq!(std::fs::read(&library).unwrap(), format!("\x7f\0dir={written}/share\0{written}\0").as_bytes());
    assert!(Path::new(&written).join("bin/sinfo").is_file(), "a path all the same");
    // It is what the manifest says, twice is once, and any other byte is a change.
    assert_eq!(put(&made, &prefix).unwrap().outcome, Outcome::Unchanged);
    let whole = std::fs::read(&library).unwrap();
    for at in [0, 6, 40, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&library, &changed).unwrap();
        let error = put(&made, &prefix).unwrap_err();
        assert!(error.to_string().contains("view/lib/libplace.so"), "{at}: {error}");
    }
    std::fs::write(&library, &whole).unwrap();
    assert_eq!(remove(&prefix, &Ctx::silent()).unwrap().left, Vec::<PathBuf>::new());

    // A longer one stays away from it, and that is said.
    let long = near.path().join("l".repeat(200));
    let said = Arc::new(Said(Mutex::new(Vec::new())));
    let ctx = Ctx { reporter: said.clone(), ..Ctx::silent() };
    let mut trusted = Keyring::new();
    trusted.add_key(key());
    install(&made.path(), &long, Trust::Require(&trusted), &ctx).unwrap();
    let shipped = format!("\x7f\0dir={PLACE}/share\0{PLACE}\0");
    assert_eq!(std::fs::read(long.join("view/lib/libplace.so")).unwrap(), shipped.as_bytes());
    let said = said.0.lock().unwrap();
    assert!(said.iter().any(|text| text.contains("libplace.so") && text.contains("only for 64")), "{said:?}");
    // Once for the file, not for each of its places.
    assert_eq!(said.iter().filter(|text| text.contains("libplace.so")).count(), 1, "{said:?}");
    assert_eq!(Tree::open(&long).unwrap().unwrap().differences(true, &Ctx::silent()).unwrap(), []);
    // Moved, it has its old path only where it was written.
    let moved = near.path().join("m");
    std::fs::rename(&long, &moved).unwrap();
    let error = put(&made, &moved).unwrap_err();
    let InstallError::Moved { files, .. } = error else { panic!("{error}") };
    assert_eq!(files, Tree::open(&moved).unwrap().unwrap().manifest().facts.fill_in.len());
}

#[test]
fn twice_is_once() {
    let made = make(Compression::ZSTD);
    let prefix = made.dir.path().join("prefix");
    std::fs::create_dir(&prefix).unwrap();
    assert_eq!(put(&made, &prefix).unwrap().outcome, Outcome::Installed, "into an empty folder");
    let before = snapshot(&prefix);
    assert_eq!(put(&made, &prefix).unwrap().outcome, Outcome::Unchanged);
    assert_eq!(snapshot(&prefix), before);
}

#[test]
fn what_tar_unpacked_is_completed() {
    let made = make(Compression::GZIP);
    let prefix = made.dir.path().join("prefix");
    std::fs::create_dir(&prefix).unwrap();
    run(tool("tar", "tar").arg("-xf").arg(made.path()).arg("-C").arg(&prefix));
    assert_eq!(put(&made, &prefix).unwrap().outcome, Outcome::Completed);
    let pc = std::fs::read_to_string(prefix.join("view/lib64/pkgconfig/slurm.pc")).unwrap();
    assert!(pc.contains(prefix.to_str().unwrap()), "{pc}");
    assert_eq!(put(&made, &prefix).unwrap().outcome, Outcome::Unchanged);
}

#[test]
fn what_is_not_ours_is_not_touched() {
    let made = make(Compression::GZIP);
    let prefix = made.dir.path().join("prefix");
    std::fs::create_dir(&prefix).unwrap();
    for (file, content) in [("mine", "mine"), ("manifest.json", "{\"name\": \"a web page\"}")] {
        std::fs::write(prefix.join(file), content).unwrap();
        let error = put(&made, &prefix).unwrap_err();
        assert!(matches!(error, InstallError::NotOurs { .. }), "{error}");
    }
    let error = put(&made, &prefix.join("mine")).unwrap_err();
    assert!(matches!(error, InstallError::NotAFolder { .. }), "{error}");
    assert_eq!(names(&prefix), ["manifest.json", "mine"]);
    let error = remove(&made.dir.path().join("tree"), &Ctx::silent()).unwrap_err();
    assert!(matches!(error, InstallError::NotInstalled { .. }), "{error}");
    assert!(matches!(remove(Path::new("/no/such"), &Ctx::silent()), Err(InstallError::NotInstalled { .. })));
}

#[test]
fn another_package_in_the_prefix_is_refused_with_the_way_out() {
    let made = make(Compression::GZIP);
    let other = make_with(Compression::GZIP, 0, |tree| std::fs::write(tree.join("bin/new"), "new").unwrap());
    let prefix = made.dir.path().join("prefix");
    put(&made, &prefix).unwrap();
    let before = snapshot(&prefix);
    let error = put(&other, &prefix).unwrap_err();
    assert!(matches!(error, InstallError::Different { .. }) && error.to_string().contains("--remove"), "{error}");
    assert_eq!(snapshot(&prefix), before);
}

#[test]
fn two_versions_lie_side_by_side() {
    let made = make(Compression::GZIP);
    let other = make_with(Compression::GZIP, 0, |tree| std::fs::write(tree.join("bin/new"), "new").unwrap());
    let site = made.dir.path().join("apps");
    let (one, two) = (site.join("24.11"), site.join("25.11"));
    assert_eq!(put(&made, &one).unwrap().outcome, Outcome::Installed);
    assert_eq!(put(&other, &two).unwrap().outcome, Outcome::Installed);
    let before = snapshot(&two);
    assert_eq!(put(&made, &one).unwrap().outcome, Outcome::Unchanged);
    assert_eq!(remove(&one, &Ctx::silent()).unwrap().left, Vec::<PathBuf>::new());
    assert_eq!((names(&site), snapshot(&two)), (vec!["25.11".to_owned()], before));
}

#[test]
fn a_changed_or_moved_installation_is_said() {
    let made = make(Compression::GZIP);
    let prefix = made.dir.path().join("prefix");
    put(&made, &prefix).unwrap();
    let moved = made.dir.path().join("moved");
    std::fs::rename(&prefix, &moved).unwrap();
    let rules = slurm_factory::relocate::Rules::embedded().unwrap();
    let differences = |tree: &Path| {
        let layout = slurm_factory::relocate::Layout::BUILD;
        slurm_factory::workflows::verify::tree(tree, &rules, layout, &Ctx::silent()).unwrap().differences
    };
    let told = differences(&moved);
    assert!(told.len() == 1 && told[0].problem.contains("move the tree back"), "{told:?}");
    let error = put(&made, &moved).unwrap_err();
    assert!(matches!(error, InstallError::Moved { .. }) && error.to_string().contains("prefix/view"), "{error}");
    std::fs::rename(&moved, &prefix).unwrap();
    std::os::unix::fs::symlink(&prefix, &moved).unwrap();
    assert_eq!(differences(&moved), [], "another way to the same folder");
    // Another byte in a file of the same length.
    let program = prefix.join("view/sbin/slurmd");
    let whole = std::fs::read(&program).unwrap();
    let mut changed = whole.clone();
    changed[0] ^= 1;
    std::fs::write(&program, &changed).unwrap();
    let error = put(&made, &prefix).unwrap_err();
    assert!(matches!(error, InstallError::Changed { .. }) && error.to_string().contains("view/sbin/slurmd"), "{error}");
    assert_eq!(differences(&prefix).iter().map(|d| d.path.as_str()).collect::<Vec<_>>(), ["view/sbin/slurmd"]);
    std::fs::write(&program, &whole).unwrap();
    assert_eq!(differences(&prefix), []);
    std::fs::remove_file(&program).unwrap();
    let error = put(&made, &prefix).unwrap_err();
    assert!(error.to_string().contains("view/sbin/slurmd") && error.to_string().contains("missing"), "{error}");
    // Same size, other content: only the thorough look finds it.
    std::fs::write(prefix.join("view/share/exactly-512"), [7; 512]).unwrap();
    let tree = Tree::open(&prefix).unwrap().unwrap();
    let paths = |thorough| -> Vec<String> {
        tree.differences(thorough, &Ctx::silent()).unwrap().into_iter().map(|d| d.path).collect()
    };
    assert_eq!(paths(false), ["view/sbin/slurmd"]);
    assert_eq!(paths(true), ["view/sbin/slurmd", "view/share/exactly-512"]);
}

#[test]
fn a_bad_signature_installs_nothing() {
    let made = make(Compression::GZIP);
    let prefix = made.dir.path().join("sub/prefix");
    let mut bytes = std::fs::read(made.path()).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(made.path(), bytes).unwrap();
    assert!(put(&made, &prefix).is_err());
    assert!(!made.dir.path().join("sub").exists());
}

#[test]
fn removing_takes_all_that_is_ours_and_only_that() {
    let made = make(Compression::GZIP);
    let prefix = made.dir.path().join("prefix");
    put(&made, &prefix).unwrap();
    let removal = remove(&prefix, &Ctx::silent()).unwrap();
    assert_eq!(removal.left, Vec::<PathBuf>::new());
    assert!(!prefix.exists());

    put(&made, &prefix).unwrap();
    let outside = made.dir.path().join("outside");
    std::fs::create_dir_all(outside.join("man1")).unwrap();
    std::fs::write(outside.join("man1/sinfo.1"), "somebody's own").unwrap();
    std::fs::write(prefix.join("view/bin/mine"), "mine").unwrap();
    // A folder that became a link: what is behind it has the names of our files.
    std::fs::remove_dir_all(prefix.join("view/share/man")).unwrap();
    std::os::unix::fs::symlink(&outside, prefix.join("view/share/man")).unwrap();
    // A file that became a folder.
    std::fs::remove_file(prefix.join("view/sbin/slurmd")).unwrap();
    std::fs::create_dir(prefix.join("view/sbin/slurmd")).unwrap();
    let removal = remove(&prefix, &Ctx::silent()).unwrap();
    let place = prefix.canonicalize().unwrap();
    let left: Vec<_> = removal.left.iter().map(|p| p.strip_prefix(&place).unwrap().to_str().unwrap()).collect();
    assert_eq!(left, ["view/bin/mine", "view/sbin/slurmd", "view/share/man"]);
    assert_eq!(std::fs::read_to_string(outside.join("man1/sinfo.1")).unwrap(), "somebody's own");
    assert!(!prefix.join("view/bin/sinfo").exists());
    let error = put(&made, &prefix).unwrap_err();
    assert!(matches!(error, InstallError::NotOurs { .. }), "{error}");
}

/// Keeps what is said.
struct Said(Mutex<Vec<String>>);

impl Reporter for Said {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}

/// Interrupts once unpacking has begun.
struct Stop(Mutex<Option<Ctx>>);

impl Reporter for Stop {
    fn event(&self, event: &Event) {
        if matches!(event, Event::Progress { .. })
            && let Some(ctx) = self.0.lock().unwrap().take()
        {
            ctx.interrupt.set(15);
        }
    }
}

#[test]
fn an_interrupted_installation_leaves_nothing_and_a_killed_one_is_swept() {
    let made = make(Compression::GZIP);
    let around = made.dir.path().join("around");
    let prefix = around.join("prefix");
    let stop = Arc::new(Stop(Mutex::new(None)));
    let ctx = Ctx { reporter: stop.clone(), ..Ctx::silent() };
    *stop.0.lock().unwrap() = Some(ctx.clone());
    install(&made.path(), &prefix, Trust::Skip, &ctx).unwrap_err();
    assert_eq!(names(&around), Vec::<String>::new());

    let dead = around.join(".tmp-slurm-factory-install-dead/view");
    std::fs::create_dir_all(&dead).unwrap();
    put(&made, &prefix).unwrap();
    assert_eq!(names(&around), ["prefix"]);
}

#[test]
fn two_at_once_install_once() {
    let made = make(Compression::GZIP);
    let prefix = made.dir.path().join("around/prefix");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| put(&made, &prefix).unwrap().outcome)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|o| **o == Outcome::Installed).count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|o| **o == Outcome::Unchanged).count(), 3, "{outcomes:?}");
}

#[test]
fn a_link_as_prefix_is_followed_and_kept() {
    let made = make(Compression::GZIP);
    let real = made.dir.path().join("real");
    let link = made.dir.path().join("link");
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    put(&made, &link).unwrap();
    assert!(link.is_symlink() && real.join("manifest.json").is_file());
    let pc = std::fs::read_to_string(real.join("view/lib64/pkgconfig/slurm.pc")).unwrap();
    assert_eq!(pc, format!("prefix={}\n", link.join("view").display()), "the path that people use");
}
