//! Images that are saved, carried and loaded; listed and removed, while others use the cache.

use crate::oci::MANIFEST;
use crate::support::{
    OFFLINE, Registry, Site, architecture, contains, make_image, make_layer, podman, quick, run, small_image,
};
use fs_err as fs;
use serde_json::{Value, json};
use slurm_factory::cache::{Cache, Lock};
use slurm_factory::image::{
    self, Digest, ImageError, Loaded, Memory, Name, Platform, PulledImage, Reference, Stored, load, save,
};
use slurm_factory::report::Ctx;
use slurm_factory::rootfs::{self, Limits, Rootfs, unpack};
use slurm_factory::workflows::clean::{IN_USE, Scope, clean};
use slurm_factory::workflows::images::{RemoveError, Removed, remove};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

fn saved(pulled: &PulledImage, target: &Path) {
    let name = Name::of(pulled.resolved().reference());
    save(pulled, &name, target, &Ctx::silent()).unwrap();
}

fn loaded(site: &Site, path: &Path) -> Result<Vec<Loaded>, ImageError> {
    load(path, Platform::host().unwrap(), &site.cache, &Ctx::silent())
}

fn names(site: &Site) -> Vec<String> {
    image::list(&site.cache).unwrap().iter().map(|m| m.image().reference().to_string()).collect()
}

fn take(site: &Site, name: &str) -> Result<Removed, RemoveError> {
    remove(&site.cache, &[name.to_owned()], site.dir.path())
}

/// The store's files, cut downloads included.
fn blobs(cache: &Cache) -> Vec<String> {
    let mut found: Vec<String> = ["sha256", "partial"]
        .iter()
        .flat_map(|dir| fs::read_dir(cache.dir("blobs").join(dir)).into_iter().flatten())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    found
}

fn in_use(cache: &Cache) -> Lock {
    cache.lock_shared(&Ctx::silent(), IN_USE, "the test").unwrap()
}

fn same_blobs(pulled: &PulledImage, layout: &Path) {
    for (digest, _) in pulled.blobs() {
        let there = fs::read(layout.join("blobs/sha256").join(digest.hex())).unwrap();
        assert!(there == fs::read(pulled.blob_path(&digest)).unwrap(), "{digest}");
    }
}

/// Loads an image into podman's store and returns its ID there: the digest of its configuration.
fn podman_loads(podman: &impl Fn(&[&str]) -> String, from: &Path) -> Digest {
    let said = podman(&["load", "--quiet", "-i", from.to_str().unwrap()]);
    let name = said.trim().rsplit_once(": ").unwrap_or_else(|| panic!("podman load: {said}")).1;
    let id = podman(&["image", "inspect", "--format={{.Id}}", name]);
    format!("sha256:{}", id.trim()).parse().unwrap()
}

#[test]
fn a_saved_layout_is_read_by_all() {
    let site = Site::new();
    let registry = Registry::start();
    registry.push(&small_image(&site, "layout", architecture()), "library/small:1", &[]);
    registry.push(&small_image(&site, "layout2", architecture()), "other/small:2", &["--format=v2s2"]);
    let pulled = site.pull(&registry.name("library/small:1")).unwrap();
    let digest = pulled.resolved().digest().to_string();
    let target = site.path("saved");
    saved(&pulled, &target);
    same_blobs(&pulled, &target);

    let image = format!("{}:1", target.display());
    assert_eq!(run("skopeo", ["inspect", "--format={{.Digest}}", &format!("oci:{image}")]).trim(), digest);
    let copy = format!("oci:{}:1", site.path("copy").display());
    run("skopeo", ["copy", "--quiet", &format!("oci:{image}"), &copy]);
    assert_eq!(run("skopeo", ["inspect", "--format={{.Digest}}", &copy]).trim(), digest);
    let bundle = site.path("bundle");
    run("umoci", ["unpack", "--rootless", "--image", &image, bundle.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(bundle.join("rootfs/etc/added")).unwrap(), "by the second layer\n");
    let podman = podman(&site);
    // podman makes a name of the path, so it wants one in lower case.
    let lower =
        tempfile::Builder::new().prefix(&format!("saved-{}", std::process::id())).rand_bytes(0).tempdir().unwrap();
    saved(&pulled, &lower.path().join("layout"));
    assert_eq!(podman_loads(&podman, &lower.path().join("layout")), pulled.blobs()[1].0);
    assert_eq!(*site.pull(&format!("oci:{image}")).unwrap().resolved().digest().to_string(), digest);

    // One more image; the first one again, which changes nothing; another one with its tag, which takes nobody's place.
    let docker = site.pull(&registry.name("other/small:2")).unwrap();
    assert!(docker.manifest().media_type().as_ref().unwrap().to_string().contains("docker"));
    saved(&docker, &target);
    saved(&pulled, &target);
    assert_eq!(run("umoci", ["ls", "--layout", target.to_str().unwrap()]).split_whitespace().count(), 2);
    // A Docker manifest stays what it is, with its digest. skopeo and umoci look for OCI's only; we do not.
    let two = format!("oci:{}:2", target.display());
    let there = Site::new();
    assert_eq!(there.pull(&two).unwrap().resolved().digest(), docker.resolved().digest());
    assert_eq!(loaded(&there, &target).unwrap().len(), 2);
    assert!(names(&there).contains(&registry.name("other/small:2")));
    let named: Reference = registry.name("library/small:2").parse().unwrap();
    for _ in 0..2 {
        save(&pulled, &Name::of(&named), &target, &Ctx::silent()).unwrap();
        let whole = format!("oci:{}:{named}", target.display());
        assert_eq!(run("skopeo", ["inspect", "--format={{.Digest}}", &whole]).trim(), digest);
        let index: Value = serde_json::from_slice(&fs::read(target.join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), 3);
    }
    let there = Site::new();
    assert_eq!(there.pull(&two).unwrap().resolved().digest(), docker.resolved().digest(), "its tag is still its own");
    assert_eq!(loaded(&there, &target).unwrap().len(), 3);
    assert!(names(&there).contains(&named.to_string()));

    // A damaged blob of the target is mended.
    let blob = target.join("blobs/sha256").join(pulled.layers()[0].digest().hex());
    let mut bytes = fs::read(&blob).unwrap();
    bytes[100] ^= 1;
    fs::write(&blob, bytes).unwrap();
    saved(&pulled, &target);
    same_blobs(&pulled, &target);
}

#[test]
fn saved_archives_are_read_by_all() {
    let site = Site::new();
    let registry = Registry::start();
    registry.push(&small_image(&site, "layout", architecture()), "library/small:1", &[]);
    let name = registry.name("library/small:1");
    let pulled = site.pull(&name).unwrap();
    let podman = podman(&site);
    let digest = *pulled.resolved().digest();
    drop(registry);
    for end in ["tar", "tar.gz", "tar.zst"] {
        let [target, again] = ["saved", "again"].map(|start| site.path(&format!("{start}.{end}")));
        saved(&pulled, &target);
        saved(&pulled, &again);
        assert!(fs::read(&target).unwrap() == fs::read(&again).unwrap(), "the same bytes each time");
        let reference = format!("oci-archive:{}", target.display());
        let seen = run("skopeo", ["inspect", "--format={{.Digest}}", &reference]);
        assert_eq!(seen.trim(), digest.to_string(), "{end}");
        assert_eq!(podman_loads(&podman, &target), pulled.blobs()[1].0, "{end}");
        podman(&["rmi", "--all", "--force"]);

        let other = Site::new();
        let images = loaded(&other, &target).unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(names(&other), std::slice::from_ref(&name), "under the name that it had");
        let resolved = other.resolve(&name, OFFLINE).unwrap();
        assert_eq!(*resolved.digest(), digest);
        let there = image::pull(&resolved, &other.cache, &quick(), true, &Ctx::silent()).unwrap();
        let dest = other.path("rootfs");
        fs::create_dir(&dest).unwrap();
        unpack(&there, &dest, &Limits::default(), &Ctx::silent()).unwrap();
    }
}

#[test]
fn what_is_loaded_keeps_its_names() {
    let site = Site::new();
    let source = small_image(&site, "layout", architecture());
    let foreign = small_image(&site, "foreign", if architecture() == "amd64" { "arm64" } else { "amd64" });
    let docker = site.path("d.tar");
    run("skopeo", ["copy", "--quiet", &source, &format!("docker-archive:{}:small:1", docker.display())]);
    let fresh = Site::new();
    loaded(&fresh, &docker).unwrap();
    assert_eq!(names(&fresh), ["docker.io/library/small:1"]);
    loaded(&fresh, &site.path("layout")).unwrap();
    assert!(names(&fresh).contains(&source), "a tag alone is no name: {:?}", names(&fresh));

    let podman = podman(&site);
    podman(&["load", "--quiet", "-i", docker.to_str().unwrap()]);
    let saved = site.path("p.tar");
    podman(&["save", "--quiet", "--format", "oci-archive", "-o", saved.to_str().unwrap(), "small:1"]);
    let fresh = Site::new();
    loaded(&fresh, &saved).unwrap();
    assert_eq!(names(&fresh).len(), 1);
    assert!(names(&fresh)[0].ends_with("library/small:1"), "{:?}", names(&fresh));

    let error = loaded(&fresh, &site.path("foreign")).unwrap_err();
    assert!(matches!(error, ImageError::WrongPlatform { .. }), "{error}");
    assert!(foreign.starts_with("oci:"));
    contains(&loaded(&fresh, &site.path("nowhere")).unwrap_err(), &["nowhere"]);
    fs::create_dir(site.path("empty")).unwrap();
    contains(&loaded(&fresh, &site.path("empty")).unwrap_err(), &["oci-layout"]);
}

#[test]
fn a_pinned_index_travels_as_proof_and_a_forged_one_is_not_believed() {
    let site = Site::new();
    let registry = Registry::start();
    registry.push(&small_image(&site, "layout", architecture()), "small:1", &[]);
    let manifest =
        run("skopeo", ["inspect", "--raw", "--tls-verify=false", &format!("docker://{}", registry.name("small:1"))]);
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [{
        "mediaType": MANIFEST,
        "digest": Digest::of(manifest.as_bytes()), "size": manifest.len(),
        "platform": {"os": "linux", "architecture": architecture()},
    }]})
    .to_string();
    fs::write(site.path("index"), &index).unwrap();
    let url = format!("http://127.0.0.1:{}/v2/small/manifests/index", registry.port);
    let file = format!("@{}", site.path("index").display());
    let kind = "Content-Type: application/vnd.oci.image.index.v1+json";
    run("curl", ["--fail", "--silent", "-X", "PUT", "-H", kind, "--data-binary", &file, &url]);

    let pinned = registry.name(&format!("small:1@{}", Digest::of(index.as_bytes())));
    let pulled = site.pull(&pinned).unwrap();
    let target = site.path("saved");
    saved(&pulled, &target);
    assert_eq!(
        fs::read_to_string(target.join("blobs/sha256").join(Digest::of(index.as_bytes()).hex())).unwrap(),
        index
    );
    drop(registry);
    let other = Site::new();
    loaded(&other, &target).unwrap();
    assert_eq!(names(&other), std::slice::from_ref(&pinned));
    let check = |site: &Site| *site.resolve(&pinned, OFFLINE).unwrap().digest() == *pulled.resolved().digest();
    assert!(check(&other));
    // What proves the name is kept as long as the name is.
    let alone = other.cache.try_lock(IN_USE).unwrap().unwrap();
    image::collect(&other.cache, &image::list(&other.cache).unwrap(), false, &alone).unwrap();
    assert!(check(&other));

    // Another digest in the name, without and with something behind it.
    let text = fs::read_to_string(target.join("index.json")).unwrap();
    let forged = Digest::of(b"forged");
    fs::write(target.join("index.json"), text.replace(&Digest::of(index.as_bytes()).hex(), &forged.hex())).unwrap();
    for proof in [None, Some(&index)] {
        if let Some(proof) = proof {
            fs::write(target.join("blobs/sha256").join(forged.hex()), proof).unwrap();
        }
        let other = Site::new();
        loaded(&other, &target).unwrap();
        assert_eq!(names(&other), [pinned.split('@').next().unwrap()]);
    }
}

#[test]
fn damage_does_not_travel_and_nothing_is_overwritten() {
    let site = Site::new();
    let pulled = site.pull(&small_image(&site, "layout", architecture())).unwrap();
    let things = site.path("things");
    fs::create_dir(&things).unwrap();
    fs::write(things.join("thesis.tex"), "x").unwrap();
    let name = Name::default();
    for (target, part) in [(&things, "other things"), (&things.join("thesis.tex"), "it is a file")] {
        let error = save(&pulled, &name, target, &Ctx::silent()).unwrap_err();
        contains(&error, &[part, ".tar", target.to_str().unwrap()]);
    }
    assert_eq!(fs::read_dir(&things).unwrap().count(), 1);

    let path = pulled.layer_path(&pulled.layers()[0]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    for target in [site.path("new"), site.path("new.tar")] {
        fs::write(&path, &bytes).unwrap();
        let error = save(&pulled, &name, &target, &Ctx::silent()).unwrap_err();
        assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
        assert!(!target.join("index.json").exists());
        assert!(!target.is_file(), "an archive is whole or not there");
        assert!(!path.exists(), "it is fetched again");
    }
}

#[test]
fn removing_takes_what_nobody_else_needs() {
    let site = Site::new();
    let base = make_layer(&site, "base", |tree| fs::write(tree.join("base"), "base").unwrap());
    let top = make_layer(&site, "top", |tree| fs::write(tree.join("top"), "top").unwrap());
    let one = make_image(&site, "layout", "one", architecture(), std::slice::from_ref(&base));
    let two = make_image(&site, "layout", "two", architecture(), &[base, top]);
    let kept = site.pull(&one).unwrap();
    let gone = site.pull(&two).unwrap();
    let again = format!("{}@{}", one.rsplit_once(':').unwrap().0, kept.resolved().digest());
    site.pull(&again).unwrap();
    // What a killed download and a resolved image that was never pulled leave.
    fs::write(site.cache.dir("blobs/partial").join("a".repeat(64)), "cut").unwrap();
    fs::write(site.cache.dir("blobs/sha256").join("b".repeat(64)), "old").unwrap();

    for (name, part) in [("oci:nowhere:one", "oci:nowhere:one"), ("sha256:12", "sha256:12"), ("ffffffffffff", "ffff")] {
        let error = take(&site, name).unwrap_err();
        assert!(matches!(error, RemoveError::Unknown { .. }), "{error}");
        contains(&error, &[part, "image list"]);
    }
    let all = [two.clone(), "nothing:1".to_owned()];
    assert!(remove(&site.cache, &all, site.dir.path()).is_err());
    assert_eq!(names(&site).len(), 3, "nothing is done when one of them is not known");

    // While another run works, the name goes and the blobs stay.
    let before = blobs(&site.cache);
    let running = in_use(&site.cache);
    let removed = take(&site, &gone.resolved().digest().short()).unwrap();
    assert_eq!((removed.forgotten.len(), removed.collected.is_none()), (1, true));
    assert_eq!(blobs(&site.cache), before);
    drop(running);

    // By digest all its names go; what `two` left goes now as well.
    site.pull(&two).unwrap();
    let removed = take(&site, "oci:./layout:two").unwrap();
    let collected = removed.collected.unwrap();
    assert_eq!(collected.paths.len(), 3 + 2, "manifest, configuration, layer; the two above: {:?}", collected.paths);
    let mut left: Vec<String> = kept.blobs().iter().map(|(digest, _)| digest.hex()).collect();
    left.sort();
    assert_eq!(blobs(&site.cache), left);
    take(&site, &kept.resolved().digest().to_string()).unwrap();
    assert_eq!((names(&site).len(), blobs(&site.cache).len()), (0, 0));
}

#[test]
fn the_list_says_how_large_and_when_used_and_clean_goes_by_it() {
    let site = Site::new();
    let layer = make_layer(&site, "l", |tree| fs::write(tree.join("f"), "f").unwrap());
    let old = make_image(&site, "layout", "old", architecture(), std::slice::from_ref(&layer));
    let new = make_image(&site, "layout", "new", architecture(), &[layer.clone(), layer]);
    let pulled = site.pull(&old).unwrap();
    site.pull(&new).unwrap();
    let stored = |memory: &Memory| image::stored(&site.cache, memory.image()).unwrap();
    let find = |name: &str| {
        let found = image::list(&site.cache).unwrap().into_iter().find(|m| m.image().reference().to_string() == name);
        found.unwrap()
    };
    let bytes = pulled.blobs().iter().map(|(_, size)| size).sum();
    assert_eq!(stored(&find(&old)), Stored { bytes, whole: true });

    let year = Duration::from_hours(365 * 24);
    for name in [&old, &new] {
        let file = fs::OpenOptions::new().write(true).open(find(name).path()).unwrap();
        file.set_modified(SystemTime::now() - year).unwrap();
    }
    let before = find(&new).used();
    site.pull(&new).unwrap();
    assert!(find(&new).used() > before, "using it is seen");
    let unused = find(&old).used();
    assert!(unused.as_second() < before.as_second() + 1);

    let scope = Scope { full: false, older_than: Some(year / 2), dry_run: true };
    let work = site.cache.dir("work");
    let all = blobs(&site.cache);
    let would = clean(&site.cache, &work, scope, &Ctx::silent()).unwrap();
    assert_eq!(blobs(&site.cache), all);
    let did = clean(&site.cache, &work, Scope { dry_run: false, ..scope }, &Ctx::silent()).unwrap();
    assert_eq!((did.bytes, &did.paths), (would.bytes, &would.paths));
    assert_eq!(names(&site), std::slice::from_ref(&new));
    // Manifest and configuration; the layer is the other's too.
    assert_eq!(blobs(&site.cache).len(), all.len() - 2);
    assert!(stored(&find(&new)).whole);
    fs::remove_file(site.cache.dir("blobs/sha256").join(pulled.layers()[0].digest().hex())).unwrap();
    assert!(!stored(&find(&new)).whole);
    clean(&site.cache, &work, Scope { full: true, older_than: None, dry_run: false }, &Ctx::silent()).unwrap();
    assert_eq!((names(&site).len(), blobs(&site.cache).len()), (0, 0));
}

#[test]
fn removing_while_others_pull_and_unpack() {
    let site = Site::new();
    let registry = Registry::start();
    registry.push(&small_image(&site, "layout", architecture()), "small:1", &[]);
    let name = registry.name("small:1");
    let done = AtomicBool::new(false);
    let (mut freed, mut kept) = (0, 0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let (site, name) = (&site, &name);
                scope.spawn(move || {
                    for round in 0..12 {
                        // As every verb does: the cache is held from the first look to the last.
                        let held = in_use(&site.cache);
                        let pulled = site.pull(name).unwrap();
                        let dest = site.path(&format!("rootfs-{worker}-{round}"));
                        fs::create_dir(&dest).unwrap();
                        let report = unpack(&pulled, &dest, &Limits::default(), &Ctx::silent()).unwrap();
                        assert_eq!(report.layers, 2);
                        drop(held);
                        std::thread::sleep(Duration::from_millis(5));
                    }
                })
            })
            .collect();
        let remover = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                match take(&site, &name) {
                    Ok(removed) if removed.collected.is_some() => freed += 1,
                    Ok(_) => kept += 1,
                    Err(RemoveError::Unknown { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        });
        let results: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        remover.join().unwrap();
        assert!(results.iter().all(Result::is_ok));
    });
    assert!(kept > 0, "it was removed in the middle of a pull or an unpack: {freed} {kept}");
}

#[test]
fn a_prepared_rootfs_travels_as_an_image() {
    let site = Site::new();
    let base = site.pull(&small_image(&site, "layout", architecture())).unwrap();
    // As `prepare` leaves it: a tree, and what was found in it.
    let id = Digest::of(b"a recipe").hex();
    let entry = site.cache.dir("rootfs").join(&id);
    fs::create_dir_all(entry.join("root/usr/bin")).unwrap();
    fs::write(entry.join("root/usr/bin/gcc"), "gcc").unwrap();
    std::os::unix::fs::symlink("usr/bin", entry.join("root/bin")).unwrap();
    let image_digest = base.resolved().digest().to_string();
    let meta = json!({"image_digest": image_digest, "gcc": "13.3.0", "versions": {"perl": "5.38"},
        "packages": {"gcc": "4:13"}, "glibc": "2.39", "unpacked": {}});
    fs::write(entry.join("meta.json"), meta.to_string()).unwrap();

    let found = Rootfs::of_image(&site.cache, &image_digest).unwrap();
    assert_eq!(found.len(), 1);
    assert!(Rootfs::of_image(&site.cache, "sha256:other").unwrap().is_empty());
    let silent = Ctx::silent();
    let image = rootfs::as_image(&found[0], base.resolved(), &site.cache, &silent).unwrap();
    let again = rootfs::as_image(&found[0], base.resolved(), &site.cache, &silent).unwrap();
    assert_eq!(image.resolved().digest(), again.resolved().digest(), "the same tree, the same digest");
    let (layout, archive) = (site.path("prepared"), site.path("prepared.tar.zst"));
    saved(&image, &layout);
    saved(&image, &archive);
    let name = format!("{}:{}", layout.display(), &id[..32]);
    let seen = run("skopeo", ["inspect", "--format={{.Digest}} {{.Labels}}", &format!("oci:{name}")]);
    assert!(seen.starts_with(&image.resolved().digest().to_string()) && seen.contains(&id), "{seen}");
    let bundle = site.path("bundle");
    run("umoci", ["unpack", "--rootless", "--image", &name, bundle.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(bundle.join("rootfs/usr/bin/gcc")).unwrap(), "gcc");

    for source in [&layout, &archive] {
        let other = Site::new();
        let platform = Platform::host().unwrap();
        let restore = |id: &str| rootfs::restore(id, platform, &other.cache, &silent).unwrap();
        assert!(restore(&id).is_none());
        let images = loaded(&other, source).unwrap();
        let adopted = rootfs::adopt(&images[0], &other.cache).unwrap().unwrap();
        assert_eq!(adopted, *base.resolved().reference());
        // The base's name has its digest again, the image itself is not needed.
        assert_eq!(names(&other).len(), 2);
        assert!(restore(&Digest::of(b"another recipe").hex()).is_none());
        // The same first digits are not the same recipe.
        assert!(restore(&format!("{}{}", &id[..32], "0".repeat(32))).is_none());
        let restored = restore(&id).unwrap();
        assert_eq!((restored.id(), restored.meta()), (id.as_str(), found[0].meta()));
        assert_eq!(fs::read_to_string(restored.root().join("bin/gcc")).unwrap(), "gcc");
        assert!(restore(&id).is_some(), "it is there now");
    }
    let plain = loaded(&Site::new(), &site.path("layout")).unwrap();
    assert!(rootfs::adopt(&plain[0], &site.cache).unwrap().is_none(), "any other image is just an image");
}
