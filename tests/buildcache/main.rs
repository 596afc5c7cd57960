//! Binary caches of Spack packages. What needs no Spack always runs: gpg verifies the manifests, Python reads the tarballs, and
//! every fault is made and must be named. With real Spack (`SLURM_FACTORY_TEST_SPACK`), `spack.sh` has stock Spack install from
//! what was pushed; without it that is said loudly.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod far;
mod faults;
mod oci;
#[path = "../publish/proxy.rs"]
mod proxy;
#[path = "../common/registry.rs"]
mod registry;
mod s3;
#[path = "../publish/servers.rs"]
mod servers;
mod support;
mod web;

use sha2::{Digest, Sha256};
use slurm_factory::buildcache::check::{self, Kind};
use slurm_factory::buildcache::manifest::{Blob, INDEX, Manifest, TARBALL};
use slurm_factory::buildcache::{Again, Pushed, Selection, Tree, Wanted, excerpt, index, prune};
use slurm_factory::publish::{FolderStore, Key, Store};
use slurm_factory::report::Ctx;
use slurm_factory::sign::Keyring;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};
use support::{ROOT, World, names, only};

/// What is wrong with a cache.
fn kinds(cache: &Path, keyring: &Keyring) -> Vec<Kind> {
    support::kinds(&FolderStore::new(cache), keyring)
}

/// Every object but the index's and the lock, with its bytes.
fn objects(cache: &Path) -> BTreeMap<String, Vec<u8>> {
    walkdir::WalkDir::new(cache)
        .into_iter()
        .map(Result::unwrap)
        .filter(|e| e.file_type().is_file() && e.file_name() != ".publish.lock")
        .map(|e| (e.path().strip_prefix(cache).unwrap().display().to_string(), fs::read(e.path()).unwrap()))
        .collect()
}

#[test]
fn gpg_and_python_read_what_is_pushed() {
    let world = World::new();
    let cache = world.dir.path().join("cache");
    let pushed = world.push(&cache, &Selection::default());
    assert_eq!(
        pushed.pushed.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
        ["app", "lib"],
        "no build dependency"
    );
    let home = world.dir.path().join("gnupg");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let public = world.dir.path().join("key.asc");
    fs::write(&public, world.key.public_armored().unwrap()).unwrap();
    let gpg = |args: &[&str]| {
        let output = Command::new("gpg").arg("--homedir").arg(&home).arg("--batch").args(args).output();
        let output = output.expect("gpg is needed (package gnupg)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    gpg(&["--import", public.to_str().unwrap()]);
    let manifests: Vec<_> = objects(&cache).into_keys().filter(|k| k.starts_with("v3/manifests/spec/")).collect();
    assert_eq!(manifests.len(), 2);
    for manifest in &manifests {
        gpg(&["--verify", cache.join(manifest).to_str().unwrap()]);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/buildcache/reference.py");
    let output = Command::new("python3").arg(script).arg(world.tree.dir()).arg(world.tree.root()).arg(&cache).output();
    let output = output.expect("python3 is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_copy_with_other_times_and_modes_gives_the_same_bytes() {
    let world = World::new();
    let first = world.dir.path().join("first");
    world.push(&first, &Selection::default());
    let copy = world.dir.path().join("elsewhere/store");
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    let copied = Command::new("cp").arg("-r").arg("--preserve=links").arg(world.tree.dir()).arg(&copy).status();
    assert!(copied.unwrap().success());
    for entry in walkdir::WalkDir::new(&copy) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let mode = entry.metadata().unwrap().permissions().mode();
            // Group and others do not show, only the owner's right to execute.
            fs::set_permissions(entry.path(), fs::Permissions::from_mode((mode & 0o700) | 0o440)).unwrap();
        }
    }
    let second = world.dir.path().join("second");
    world.push_tree(&slurm_factory::buildcache::Tree::open(&copy).unwrap(), &second, &Selection::default(), 7);
    let blobs =
        |cache: &Path| -> BTreeSet<String> { objects(cache).into_keys().filter(|k| k.starts_with("blobs/")).collect() };
    assert_eq!(blobs(&first), blobs(&second));
}

#[test]
fn a_second_push_changes_nothing_and_what_is_lost_is_pushed_again() {
    let world = World::new();
    let cache = world.dir.path().join("cache");
    world.push(&cache, &Selection::default());
    let before = objects(&cache);
    let again = world.push(&cache, &Selection::default());
    assert_eq!((again.pushed.len(), again.there, again.index_changed), (0, 2, false));
    assert_eq!(objects(&cache), before);
    let blob = before.keys().filter(|k| k.starts_with("blobs/")).max_by_key(|k| before[*k].len()).unwrap();
    fs::remove_file(cache.join(blob)).unwrap();
    assert_eq!(world.push(&cache, &Selection::default()).pushed.len(), 1);
    assert!(cache.join(blob).is_file());
    // A run that was cut before the index
    fs::remove_file(cache.join("v3/manifests/index/index.manifest.json")).unwrap();
    let again = world.push(&cache, &Selection::default());
    assert_eq!((again.pushed.len(), again.index_changed), (0, true));
    assert_eq!(kinds(&cache, &world.keyring()), []);
}

#[test]
fn build_dependencies_and_exclusions_are_chosen() {
    let world = World::new();
    let cache = world.dir.path().join("cache");
    let all = support::all();
    assert_eq!(world.push(&cache, &all).pushed.len(), 3);
    let names = |selection: &Selection| -> Vec<String> {
        world.tree.select(selection).unwrap().iter().map(|(p, _)| p.name.clone()).collect()
    };
    let mut exclude = globset::GlobSetBuilder::new();
    exclude.add(globset::Glob::new("li*").unwrap());
    assert_eq!(names(&Selection { exclude: exclude.build().unwrap(), ..all.clone() }), ["app", "tool"]);
    assert_eq!(names(&Selection { roots: vec!["lib".into()], ..Selection::default() }), ["lib"]);
    let error =
        world.tree.select(&Selection { roots: vec!["none".into()], ..Selection::default() }).unwrap_err().to_string();
    assert!(error.contains("app lib tool"), "{error}");
}

#[test]
fn every_fault_is_named() {
    let world = World::new();
    let good = world.dir.path().join("good");
    world.push(&good, &Selection::default());
    let keyring = world.keyring();
    assert_eq!(kinds(&good, &keyring), []);
    let spoilt = |name: &str, spoil: &dyn Fn(&Path)| {
        let cache = world.dir.path().join(name);
        assert!(Command::new("cp").arg("-r").args([&good, &cache]).status().unwrap().success());
        spoil(&cache);
        kinds(&cache, &keyring)
    };
    let manifest = |cache: &Path, name: &str| {
        let dir = cache.join("v3/manifests/spec").join(name);
        fs::read_dir(dir).unwrap().next().unwrap().unwrap().path()
    };
    let blob = |cache: &Path, name: &str, which: usize| {
        let text = fs::read_to_string(manifest(cache, name)).unwrap();
        let sum = text.split("\"checksum\": \"").nth(which).unwrap()[..64].to_owned();
        cache.join("blobs/sha256").join(&sum[..2]).join(sum)
    };
    let flip = |path: &Path, at: usize| {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    assert_eq!(spoilt("tarball", &|c| flip(&blob(c, "app", 1), 300)), [Kind::ChangedBlob]);
    assert_eq!(spoilt("short", &|c| fs::write(blob(c, "app", 1), b"").unwrap()), [Kind::ChangedBlob]);
    // A terabyte that takes no room: what the manifest says is read of it, and no more.
    let large =
        |c: &Path| fs::OpenOptions::new().write(true).open(blob(c, "app", 1)).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(spoilt("large", &large), [Kind::ChangedBlob]);
    assert_eq!(spoilt("spec", &|c| flip(&blob(c, "app", 2), 40)), [Kind::ChangedBlob]);
    assert_eq!(spoilt("gone", &|c| fs::remove_file(blob(c, "lib", 1)).unwrap()), [Kind::MissingBlob]);
    assert_eq!(spoilt("index", &|c| fs::remove_file(manifest(c, "lib")).unwrap()), [Kind::MissingManifest]);
    assert_eq!(spoilt("no-index", &|c| fs::remove_dir_all(c.join("v3/manifests/index")).unwrap()), [Kind::BadIndex]);
    assert_eq!(
        spoilt("moved", &|c| fs::copy(manifest(c, "lib"), manifest(c, "app")).map(|_| ()).unwrap()),
        [Kind::Substituted]
    );
    assert_eq!(
        spoilt("text", &|c| {
            let path = manifest(c, "app");
            let text = fs::read_to_string(&path).unwrap().replacen("\"version\": 3", "\"version\":  3", 1);
            fs::write(path, text).unwrap();
        }),
        [Kind::BadSignature]
    );
    assert_eq!(
        spoilt("plain", &|c| {
            let path = manifest(c, "app");
            let text = fs::read_to_string(&path).unwrap();
            let inner = &text[text.find('{').unwrap()..=text.rfind('}').unwrap()];
            fs::write(path, inner).unwrap();
        }),
        [Kind::NotSigned]
    );
    // Objects of any size, and names in the unsigned index that nothing can have, do not hide the other faults.
    let grow = |path: &Path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 40).unwrap();
    let lost = |c: &Path| fs::remove_file(blob(c, "lib", 1)).unwrap();
    assert_eq!(
        spoilt("large-manifest", &|c| {
            lost(c);
            grow(&manifest(c, "app"));
        }),
        [Kind::MissingBlob, Kind::BadManifest]
    );
    assert_eq!(
        spoilt("large-spec", &|c| {
            lost(c);
            grow(&blob(c, "app", 2));
        }),
        [Kind::MissingBlob, Kind::ChangedBlob]
    );
    assert_eq!(
        spoilt("large-index", &|c| {
            lost(c);
            grow(&c.join("v3/manifests/index/index.manifest.json"));
        }),
        [Kind::MissingBlob, Kind::BadIndex]
    );
    let named = |c: &Path| {
        lost(c);
        let record = serde_json::json!({"spec": {"name": "../x", "version": "1"}, "in_buildcache": true});
        let index = serde_json::json!({"database": {"version": "8", "installs": {"0".repeat(32): record}}}).to_string();
        let sum = hex::encode(Sha256::digest(&index));
        let at = c.join("blobs/sha256").join(&sum[..2]).join(&sum);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, &index).unwrap();
        let text = Manifest::new(vec![Blob::new(INDEX, "none", index.len() as u64, sum)]).text();
        fs::write(c.join("v3/manifests/index/index.manifest.json"), text).unwrap();
    };
    assert_eq!(spoilt("odd-name", &named), [Kind::MissingBlob, Kind::BadIndex]);
    // Another's key: every package is foreign.
    let other = World::new();
    assert_eq!(kinds(&good, &other.keyring()), [Kind::ForeignKey, Kind::ForeignKey]);
}

#[test]
fn an_excerpt_has_what_is_right_and_names_what_is_not() {
    let world = World::new();
    let cache = world.dir.path().join("cache");
    let all = support::all();
    world.push(&cache, &all);
    world.lie(&cache);
    let store = FolderStore::new(&cache);
    let to = world.dir.path().join("excerpt");
    fs::create_dir(&to).unwrap();
    let named = ["app", "lib"].map(|name| (world.hash(name), world.wanted(name)));
    let nobody = ("0".repeat(32), ("nobody".to_owned(), "1".to_owned()));
    let wanted: BTreeMap<String, Wanted> = named.into_iter().chain([nobody]).collect();
    let excerpt = excerpt(&store, &world.keyring(), &wanted, ROOT, &to, &Ctx::silent()).unwrap();
    assert_eq!(excerpt.taken, BTreeSet::from([world.hash("lib")]));
    assert_eq!(excerpt.faults.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::BadTarball]);
    assert_eq!(kinds(&to, &world.keyring()), []);
    let there = objects(&to);
    assert_eq!(there.keys().filter(|k| k.starts_with("v3/manifests/spec/")).count(), 1, "nothing else: {there:?}");
    assert!(there.keys().all(|k| !k.contains(".tmp-")), "a copy that was not right is left");
}

#[test]
fn what_was_built_for_shorter_paths_is_not_taken_and_can_be_pushed_again() {
    let world = World::new();
    let cache = world.dir.path().join("cache");
    let all = support::all();
    world.push(&cache, &all);
    let store = FolderStore::new(&cache);
    let wanted: BTreeMap<String, Wanted> =
        ["app", "lib", "tool"].map(|name| (world.hash(name), world.wanted(name))).into();
    let to = world.dir.path().join("excerpt");
    fs::create_dir(&to).unwrap();
    let longer = format!("{ROOT}x");
    let excerpt = excerpt(&store, &world.keyring(), &wanted, &longer, &to, &Ctx::silent()).unwrap();
    // Texts and links can grow; what is compiled cannot.
    assert_eq!(excerpt.taken, ["app", "tool"].map(|name| world.hash(name)).into());
    assert_eq!(excerpt.faults.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::ShortPrefix]);
    assert_eq!(excerpt.refused, [world.hash("lib")].into());
    assert!(excerpt.faults[0].detail.contains("padded_length: 129"), "{}", excerpt.faults[0].detail);

    let names = |pushed: &Pushed| pushed.pushed.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&world.push_again(&cache, &Again::Nothing)), [""; 0]);
    assert_eq!(names(&world.push_again(&cache, &Again::These(excerpt.refused))), ["lib"]);
    assert_eq!(names(&world.push_again(&cache, &Again::Everything)).len(), 3);
    assert_eq!(kinds(&cache, &world.keyring()), []);
}

#[test]
fn a_tree_is_found_behind_what_spack_pads_it_with() {
    let world = World::new();
    let home = world.dir.path().join("site");
    let padding = "__spack_path_placeholder__";
    let deep = home.join(padding).join(padding).join(&padding[..7]);
    fs::create_dir_all(deep.parent().unwrap()).unwrap();
    fs::create_dir(home.join("__other")).unwrap();
    assert_eq!(Tree::find(&home), None);
    fs::create_dir_all(deep.join(".spack-db")).unwrap();
    fs::write(deep.join(".spack-db/index.json"), "{}").unwrap();
    assert_eq!(Tree::find(&home), Some(deep));
}

#[test]
fn a_well_signed_lie_is_seen() {
    // Whoever holds the key signs the tarball of one package with the spec of another.
    let world = World::new();
    let cache = world.dir.path().join("cache");
    world.push(&cache, &Selection::default());
    world.lie(&cache);
    assert_eq!(kinds(&cache, &world.keyring()), [Kind::BadTarball]);
}

#[test]
fn the_index_is_made_again_and_what_nothing_names_is_removed() {
    let world = World::new();
    let cache = world.dir.path().join("cache");
    let ctx = Ctx::silent();
    let store = FolderStore::new(&cache);
    world.push(&cache, &Selection::default());
    let before = objects(&cache);
    fs::remove_file(cache.join("v3/manifests/index/index.manifest.json")).unwrap();
    assert_eq!(index::rebuild(&store, &world.keyring(), &ctx).unwrap(), (2, vec![]));
    assert_eq!(objects(&cache), before, "the same index");
    // An index of any size is made anew.
    let grown = fs::OpenOptions::new().write(true).open(cache.join("v3/manifests/index/index.manifest.json"));
    grown.unwrap().set_len(1 << 40).unwrap();
    assert_eq!(index::rebuild(&store, &world.keyring(), &ctx).unwrap(), (2, vec![]));
    assert_eq!(objects(&cache), before, "the same index");
    // A manifest that is not good does not come into it.
    let (count, faults) = index::rebuild(&store, &World::new().keyring(), &ctx).unwrap();
    assert_eq!((count, faults.len()), (0, 2));
    index::rebuild(&store, &world.keyring(), &ctx).unwrap();
    let orphan = cache.join("blobs/sha256/ab").join("ab".repeat(32));
    fs::create_dir_all(orphan.parent().unwrap()).unwrap();
    fs::write(&orphan, "nobody's").unwrap();
    let hour = Duration::from_hours(1);
    let (past, future) = (SystemTime::now() - hour, SystemTime::now() + hour);
    let half = cache.join("blobs/sha256/ab/.tmp-x1Y2z3");
    fs::write(&half, "half").unwrap();
    assert_eq!(prune::prune(&store, past, false, &ctx).unwrap().blobs.len(), 0, "it may be on its way");
    let would = prune::prune(&store, future, true, &ctx).unwrap();
    assert!(half.is_file() && would.halves == ["blobs/sha256/ab/.tmp-x1Y2z3"], "{would:?}");
    assert!(orphan.is_file() && would.blobs.len() == 2, "the orphan and the empty index: {would:?}");
    assert_eq!(prune::prune(&store, future, false, &ctx).unwrap().blobs, would.blobs);
    assert_eq!(objects(&cache), before);
    index::update(&store, &ctx, |index| index.remove(&world.hash("app"))).unwrap();
    let pruned = prune::prune(&store, future, false, &ctx).unwrap();
    assert_eq!((pruned.manifests.len(), pruned.blobs.len()), (1, 3), "{pruned:?}");
    assert_eq!(kinds(&cache, &world.keyring()), []);
    assert_eq!(index::read(&store, &ctx).unwrap().0.entries().len(), 1);
}

/// A package that goes to two places is compressed once; what lies in the first and is not right, or not of this tree, is not taken.
#[test]
fn tarballs_are_taken_from_another_cache_where_they_are_right() {
    let world = World::new();
    let at = |name: &str| world.dir.path().join(name);
    let all = support::all();
    world.push(&at("own"), &all);
    let own = FolderStore::new(&at("own"));
    let taken = |name: &str| world.push_taking(&FolderStore::new(&at(name)), &own).unwrap().taken;
    assert_eq!(taken("second"), 3);
    assert_eq!(kinds(&at("second"), &world.keyring()), []);
    assert_eq!(tarball(&at("second"), "lib"), tarball(&at("own"), "lib"));

    // In a registry its layers have a sum of what is compressed, too.
    let registry = registry::Registry::start();
    let (plain, other) = (registry::store(registry.port, "plain", 0), registry::store(registry.port, "taken", 0));
    world.push_to(&plain, &all).unwrap();
    assert_eq!(world.push_taking(&other, &own).unwrap().taken, 3);
    let diff_ids = |store| oci::configuration(store, "app")["rootfs"]["diff_ids"].clone();
    assert_eq!(diff_ids(&plain), diff_ids(&other));

    // A byte is wrong: that one is made anew, and what is published is right.
    let damaged = at("own").join(tarball(&at("own"), "lib"));
    let mut bytes = fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    assert_eq!(taken("third"), 2);
    assert_eq!(kinds(&at("third"), &world.keyring()), []);
    // Another build of the same hash: what is pushed is what is in the tree.
    fs::write(
        world.dir.path().join("store").join(format!("tool-{}", world.hash("tool"))).join("bin/tool"),
        "#!/bin/sh\n:\n",
    )
    .unwrap();
    assert_eq!(taken("changed"), 1);
    assert_eq!(kinds(&at("changed"), &world.keyring()), []);
    assert_ne!(tarball(&at("changed"), "tool"), tarball(&at("own"), "tool"));
    // Signed by nobody who is believed.
    let stranger = World::new();
    stranger.push(&at("theirs"), &all);
    let to = FolderStore::new(&at("fourth"));
    assert_eq!(world.push_taking(&to, &FolderStore::new(&at("theirs"))).unwrap().taken, 0);
    // Nothing is there.
    assert_eq!(world.push_taking(&FolderStore::new(&at("fifth")), &FolderStore::new(&at("none"))).unwrap().taken, 0);
    assert_eq!(kinds(&at("fifth"), &world.keyring()), []);
}

/// Where the tarball or the spec of a package lies in a cache.
fn blob_of(cache: &Path, name: &str, media_type: &str) -> Key {
    let dir = cache.join("v3/manifests/spec").join(name);
    let text = fs::read_to_string(fs::read_dir(dir).unwrap().next().unwrap().unwrap().path()).unwrap();
    let inner = &text[text.find('{').unwrap()..=text.rfind('}').unwrap()];
    Manifest::parse(inner).unwrap().blob(media_type).unwrap().key().unwrap()
}

fn tarball(cache: &Path, name: &str) -> String {
    blob_of(cache, name, TARBALL).to_string()
}

#[test]
fn two_publishers_at_once_lose_nothing() {
    let world = World::new();
    for round in 0..20 {
        let cache = world.dir.path().join(format!("cache-{round}"));
        std::thread::scope(|scope| {
            for name in ["app", "lib", "tool"] {
                let (world, cache) = (&world, &cache);
                scope.spawn(move || world.push(cache, &only(name)));
            }
        });
        assert_eq!(names(&FolderStore::new(&cache)), ["app", "lib", "tool"], "round {round}");
        assert_eq!(kinds(&cache, &world.keyring()), []);
    }
}

#[test]
fn an_older_layout_is_left_alone() {
    let world = World::new();
    let cache = world.dir.path().join("cache");
    fs::create_dir_all(cache.join("build_cache")).unwrap();
    // Of any size: whether it is there is all that is asked.
    fs::File::create(cache.join("build_cache/index.json")).unwrap().set_len(1 << 40).unwrap();
    let error = world.try_push(&cache).unwrap_err().to_string();
    assert!(error.contains("older layout"), "{error}");
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
    let store = FolderStore::new(&cache);
    assert!(store.address().starts_with("file://"));
    assert!(check::check(&store, &world.keyring(), false, None, &Ctx::silent()).is_err());
}

#[test]
fn a_dry_run_pushes_nothing_and_makes_no_key() {
    let world = World::new();
    let (own, to) = (world.dir.path().join("own"), world.dir.path().join("to"));
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slurm-factory"));
        command.env_clear().env("HOME", world.dir.path()).env("PATH", std::env::var_os("PATH").unwrap());
        if !args.contains(&"--dry-run") {
            // The key that is made is locked with it; a dry run has none, and nobody to ask.
            command.env("SLURM_FACTORY_KEY_PASSPHRASE", "passphrase");
        }
        command.arg("--cache-dir").arg(&own).args(["buildcache", "push", "--from"]).arg(world.tree.dir());
        let output = command.arg("--to").arg(&to).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().count()
    };
    let keys =
        || walkdir::WalkDir::new(own.join("keys")).into_iter().flatten().filter(|e| e.file_type().is_file()).count();
    assert_eq!(run(&["--dry-run"]), 2);
    assert!(keys() == 0 && !to.exists(), "a dry run left something");
    assert_eq!((run(&[]), run(&["--dry-run"])), (2, 0));
    assert!(keys() > 0, "where are keys kept?");
}

#[test]
fn stock_spack_installs_from_it() {
    script("spack.sh");
}

#[test]
fn stock_spack_installs_from_a_registry() {
    script("spack-oci.sh");
}

fn script(name: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/buildcache").join(name);
    let status = Command::new("bash").arg(script).arg(env!("CARGO_BIN_EXE_slurm-factory")).status().unwrap();
    assert!(status.success(), "what it said stands above");
}
