//! Images that are files and folders: made by skopeo, podman and umoci, and made badly by hand.

use crate::support::{OFFLINE, Site, architecture, contains, make_image, make_layer, podman, quick, run, small_image};
use flate2::write::GzEncoder;
use fs_err as fs;
use serde_json::json;
use slurm_factory::image::{self, Digest, ImageError, Layer, PulledImage, ResolveOptions};
use slurm_factory::report::Ctx;
use slurm_factory::rootfs::{Limits, UnpackReport, unpack};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use tar::{EntryType, Header};

/// One member of an archive that no tool wrote.
struct Raw<'a> {
    name: &'a str,
    kind: EntryType,
    link: &'a str,
    data: &'a [u8],
    /// In place of the data's length.
    size: Option<u64>,
}

fn file<'a>(name: &'a str, data: &'a [u8]) -> Raw<'a> {
    Raw { name, kind: EntryType::Regular, link: "", data, size: None }
}

fn link<'a>(kind: EntryType, name: &'a str, link: &'a str) -> Raw<'a> {
    Raw { name, kind, link, data: &[], size: None }
}

/// Names and sizes go into the headers as they are.
fn raw(members: &[Raw<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in members {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..member.name.len()].copy_from_slice(member.name.as_bytes());
        header.as_old_mut().linkname[..member.link.len()].copy_from_slice(member.link.as_bytes());
        header.set_entry_type(member.kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(member.size.unwrap_or(member.data.len() as u64));
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(member.data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({"architecture": architecture(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
}

fn manifest_json(config: &str, layers: &[&str]) -> Vec<u8> {
    json!([{"Config": config, "RepoTags": ["small:1"], "Layers": layers}]).to_string().into_bytes()
}

fn unpacked(site: &Site, pulled: &PulledImage, name: &str) -> UnpackReport {
    let dest = site.path(name);
    fs::create_dir(&dest).unwrap();
    unpack(pulled, &dest, &Limits::default(), &Ctx::silent()).unwrap()
}

fn compressed(site: &Site, path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let (gz, zst) = (site.path(&format!("{name}.gz")), site.path(&format!("{name}.zst")));
    fs::write(&gz, gzip(&bytes)).unwrap();
    run("zstd", ["-q", path.to_str().unwrap(), "-o", zst.to_str().unwrap()]);
    [path, &gz, &zst].iter().map(|p| p.display().to_string()).collect()
}

/// Everything outside the cache, by name and content.
fn surroundings(site: &Site) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut todo = vec![site.dir.path().to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path == site.path("cache") {
                continue;
            }
            if path.symlink_metadata().unwrap().is_dir() {
                todo.push(path.clone());
            }
            let content = fs::read(&path).unwrap_or_default();
            found.push((path, content));
        }
    }
    found.sort();
    found
}

#[test]
fn oci_archives_of_skopeo_and_podman() {
    let site = Site::new();
    let source = small_image(&site, "layout", architecture());
    let original = site.pull(&source).unwrap();
    let wanted = unpacked(&site, &original, "original");
    let archive = site.path("o.tar");
    run("skopeo", ["copy", "--quiet", &source, &format!("oci-archive:{}:t", archive.display())]);

    for path in compressed(&site, &archive) {
        let other = Site::new();
        for reference in [format!("oci-archive:{path}"), format!("oci-archive:{path}:t")] {
            let pulled = other.pull(&reference).unwrap();
            assert_eq!(pulled.resolved().digest(), original.resolved().digest(), "{reference}");
        }
        let pinned = format!("oci-archive:{path}@{}", original.resolved().digest());
        let pulled = other.pull(&pinned).unwrap();
        assert_eq!(unpacked(&other, &pulled, "rootfs"), wanted);
        contains(&other.pull(&format!("oci-archive:{path}:u")).unwrap_err(), &["`u`", "it has: t", &path]);
        contains(&other.pull(&format!("docker-archive:{path}")).unwrap_err(), &["oci-archive:"]);
        assert_eq!(fs::read_dir(other.cache.dir("blobs").join("partial")).unwrap().count(), 0, "no spool stays");
    }

    let podman = podman(&site);
    podman(&["pull", "--quiet", &format!("oci-archive:{}", archive.display())]);
    let saved = site.path("podman.tar");
    podman(&["tag", "localhost/t:latest", "localhost/x:1"]);
    podman(&["save", "--quiet", "--format", "oci-archive", "-o", saved.to_str().unwrap(), "localhost/x:1"]);
    let reference = format!("oci-archive:{}", saved.display());
    let digest = run("skopeo", ["inspect", "--format={{.Digest}}", &reference]);
    for reference in [reference.clone(), format!("{reference}:localhost/x:1")] {
        let pulled = site.pull(&reference).unwrap();
        assert_eq!(pulled.resolved().digest().to_string(), digest.trim());
    }
    assert_eq!(unpacked(&site, &site.pull(&reference).unwrap(), "podman"), wanted);
}

#[test]
fn docker_archives_of_skopeo_and_podman() {
    let site = Site::new();
    let source = small_image(&site, "layout", architecture());
    let original = site.pull(&source).unwrap();
    let wanted = unpacked(&site, &original, "original");
    let config = original.manifest().config().digest().to_string();
    let archive = site.path("d.tar");
    run("skopeo", ["copy", "--quiet", &source, &format!("docker-archive:{}:small:1", archive.display())]);
    let podman = podman(&site);
    podman(&["load", "--quiet", "-i", archive.to_str().unwrap()]);
    podman(&["tag", "small:1", "localhost:5000/other:2"]);
    let saved = site.path("podman.tar");
    let save = ["save", "--quiet", "--format", "docker-archive", "-o", saved.to_str().unwrap(), "small:1"];
    podman(&save);

    let mut digests = Vec::new();
    for path in [compressed(&site, &archive), compressed(&site, &saved)].concat() {
        let other = Site::new();
        for reference in [
            format!("docker-archive:{path}"),
            format!("docker-archive:{path}:small:1"),
            format!("docker-archive:{path}:docker.io/library/small:1"),
            format!("docker-archive:{path}:@0"),
        ] {
            let pulled = other.pull(&reference).unwrap();
            assert_eq!(pulled.manifest().config().digest().to_string(), config, "{reference}");
            // What docker and podman store is not compressed.
            assert!(pulled.layers().iter().all(|l| l.digest() == l.diff_id()), "{reference}");
            digests.push(*pulled.resolved().digest());
        }
        let pulled = other.pull(&format!("docker-archive:{path}")).unwrap();
        assert_eq!(unpacked(&other, &pulled, "rootfs"), wanted);
        let error = other.pull(&format!("docker-archive:{path}:small:2")).unwrap_err();
        contains(&error, &["docker.io/library/small:2", "it has:", "small:1", &path]);
        contains(&other.pull(&format!("docker-archive:{path}:@7")).unwrap_err(), &["@7"]);
        contains(&other.pull(&format!("oci-archive:{path}")).unwrap_err(), &["docker-archive:"]);
    }
    assert!(digests.iter().all(|d| *d == digests[0]), "the same content is the same image, whoever saved it");

    // Several images: one must be named.
    let two = site.path("two.tar");
    make_image(
        &site,
        "second",
        "u",
        architecture(),
        &[make_layer(&site, "l", |t| fs::write(t.join("f"), "x").unwrap())],
    );
    let second = format!("oci-archive:{}", site.path("second.tar").display());
    run("skopeo", ["copy", "--quiet", &format!("oci:{}:u", site.path("second").display()), &format!("{second}:u")]);
    podman(&["pull", "--quiet", &second]);
    podman(&["tag", "localhost/u:latest", "localhost/two:2"]);
    podman(&["save", "--quiet", "-m", "-o", two.to_str().unwrap(), "small:1", "localhost/two:2"]);
    let error = site.pull(&format!("docker-archive:{}", two.display())).unwrap_err();
    contains(&error, &["single image to choose", "small:1", "localhost/two:2"]);
    for (name, layers) in [("small:1", 2), ("localhost/two:2", 1)] {
        assert_eq!(site.pull(&format!("docker-archive:{}:{name}", two.display())).unwrap().layers().len(), layers);
    }
}

#[test]
fn docker_archives_of_every_shape() {
    let site = Site::new();
    let (one, two) = (raw(&[file("etc/one", b"1")]), raw(&[file("etc/two", b"2")]));
    let (gz, zst) = (gzip(&one), zstd::encode_all(&two[..], 1).unwrap());
    let config = config(&[&one, &two, &one]);
    let hex = Digest::of(&config).hex();
    let named = format!("{hex}.json");
    let blob = format!("blobs/sha256/{hex}");
    let list = |config: &str, layers: [&str; 3]| manifest_json(config, &layers);
    let path = site.path("a.tar");
    let symlinks = list(&named, ["1/layer.tar", "2/layer.tar", "3/layer.tar"]);
    let packed = list("config", ["1.tar.gz", "2.tar.zst", "1.tar.gz"]);
    let layout = list(&blob, ["blobs/sha256/1", "blobs/sha256/2", "blobs/sha256/1"]);
    for (members, kept) in [
        // A layer that is the same as an earlier one, as older versions of Docker say it.
        (
            vec![
                file(&named, &config),
                file("1/layer.tar", &one),
                link(EntryType::Link, "2/layer.tar", "./t"),
                file("t", &two),
                link(EntryType::Symlink, "3/layer.tar", "../1/layer.tar"),
                file("manifest.json", &symlinks),
                file("repositories", b"{}"),
            ],
            [Digest::of(&one), Digest::of(&two)],
        ),
        // Compressed layers are kept as they are.
        (
            vec![
                file("manifest.json", &packed),
                file("1.tar.gz", &gz),
                file("2.tar.zst", &zst),
                file("config", &config),
            ],
            [Digest::of(&gz), Digest::of(&zst)],
        ),
        // With an OCI layout beside.
        (
            vec![
                file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
                file("index.json", br#"{"schemaVersion":2,"manifests":[]}"#),
                file("manifest.json", &layout),
                file(&blob, &config),
                file("blobs/sha256/1", &one),
                file("blobs/sha256/2", &two),
            ],
            [Digest::of(&one), Digest::of(&two)],
        ),
    ] {
        fs::write(&path, raw(&members)).unwrap();
        let site = Site::new();
        let pulled = site.pull(&format!("docker-archive:{}", path.display())).unwrap();
        let digests: Vec<Digest> = pulled.layers().iter().map(Layer::digest).copied().collect();
        assert_eq!(digests, [kept[0], kept[1], kept[0]]);
        assert_eq!(unpacked(&site, &pulled, "rootfs").files, 3);
        assert_eq!(fs::read_to_string(site.path("rootfs/etc/two")).unwrap(), "2");
    }
}

#[test]
fn what_is_gone_is_used_from_the_cache_and_what_was_changed_is_read_again() {
    let site = Site::new();
    let source = small_image(&site, "layout", architecture());
    let (oci, docker) = (site.path("o.tar.gz"), site.path("d.tar"));
    run("skopeo", ["copy", "--quiet", &source, &format!("oci-archive:{}", site.path("o.tar").display())]);
    fs::write(&oci, gzip(&fs::read(site.path("o.tar")).unwrap())).unwrap();
    run("skopeo", ["copy", "--quiet", &source, &format!("docker-archive:{}:small:1", docker.display())]);
    let names = [format!("oci-archive:{}", oci.display()), format!("docker-archive:{}", docker.display())];
    let digests = names.clone().map(|name| *site.pull(&name).unwrap().resolved().digest());

    // The same names, another image.
    let layer = make_layer(&site, "new", |tree| fs::write(tree.join("new"), "new").unwrap());
    let new = make_image(&site, "new-layout", "n", architecture(), &[layer]);
    fs::remove_file(&docker).unwrap();
    run("skopeo", ["copy", "--quiet", &new, &format!("docker-archive:{}:small:1", docker.display())]);
    let changed = *site.pull(&names[1]).unwrap().resolved().digest();
    assert_ne!(changed, digests[1]);

    fs::remove_file(&oci).unwrap();
    fs::remove_file(&docker).unwrap();
    fs::remove_dir_all(site.path("layout")).unwrap();
    for (name, digest) in names.iter().zip([digests[0], changed]) {
        let resolved = site.resolve(name, OFFLINE).unwrap();
        assert_eq!(*resolved.digest(), digest);
        image::pull(&resolved, &site.cache, &quick(), true, &Ctx::silent()).unwrap();
        let refreshed = site.resolve(name, ResolveOptions { offline: false, refresh: true }).unwrap_err();
        contains(&refreshed, &["there is no such file"]);
    }
    contains(&Site::new().pull(&names[0]).unwrap_err(), &["there is no such file", oci.to_str().unwrap()]);
}

#[test]
fn the_wrong_machine_is_refused_and_attestations_are_no_images() {
    let site = Site::new();
    let other = if architecture() == "amd64" { "arm64" } else { "amd64" };
    let foreign = small_image(&site, "foreign", other);
    for kind in ["oci-archive", "docker-archive"] {
        let path = site.path(&format!("{kind}.tar"));
        run("skopeo", ["copy", "--quiet", &foreign, &format!("{kind}:{}:a:1", path.display())]);
        let error = site.pull(&format!("{kind}:{}", path.display())).unwrap_err();
        assert!(matches!(error, ImageError::WrongPlatform { .. }), "{error}");
        contains(&error, &[other, architecture()]);
    }

    // An index of one image, its attestation, and another machine's, as `docker buildx` writes it.
    let ours = small_image(&site, "ours", architecture());
    let digest = *site.pull(&ours).unwrap().resolved().digest();
    let entry = |layout: &str, os: &str, arch: &str| {
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(site.path(layout).join("index.json")).unwrap()).unwrap();
        let mut entry = index["manifests"][0].clone();
        entry["platform"] = json!({"os": os, "architecture": arch});
        entry
    };
    let index = json!({"schemaVersion": 2, "manifests": [
        entry("foreign", "unknown", "unknown"), entry("foreign", "linux", other), entry("ours", "linux", architecture()),
    ]})
    .to_string();
    let name = Digest::of(index.as_bytes());
    for blob in fs::read_dir(site.path("foreign/blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        fs::copy(blob.path(), site.path("ours/blobs/sha256").join(blob.file_name())).unwrap();
    }
    fs::write(site.path("ours/blobs/sha256").join(name.hex()), &index).unwrap();
    let attestation = entry("foreign", "unknown", "unknown");
    let top = json!({"schemaVersion": 2, "manifests": [
        attestation,
        {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": name, "size": index.len()},
    ]});
    fs::write(site.path("ours/index.json"), top.to_string()).unwrap();
    let archive = site.path("index.tar");
    run("tar", ["-C", site.path("ours").to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
    for reference in [format!("oci-archive:{}", archive.display()), format!("oci:{}", site.path("ours").display())] {
        assert_eq!(*site.pull(&reference).unwrap().resolved().digest(), digest);
    }
}

#[test]
fn hostile_and_damaged_archives() {
    let site = Site::new();
    let layer = raw(&[file("etc/f", b"f")]);
    let config = config(&[&layer]);
    let name = format!("{}.json", Digest::of(&config).hex());
    let good = manifest_json(&name, &["l.tar"]);
    let of = |list: &[u8], more: &[Raw<'_>]| {
        let start = [file(&name, &config), file("l.tar", &layer), file("manifest.json", list)];
        let all: Vec<Raw<'_>> = start
            .iter()
            .chain(more)
            .map(|m| Raw { name: m.name, kind: m.kind, link: m.link, data: m.data, size: m.size })
            .collect();
        raw(&all)
    };
    let bomb = {
        // 512 MiB of zeros in half a megabyte.
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
        (0..512).for_each(|_| encoder.write_all(&vec![0; 1 << 20]).unwrap());
        encoder.finish().unwrap()
    };
    let huge = vec![b' '; 5 << 20];
    let whole = of(&good, &[]);
    let other_layer = raw(&[file("etc/f", b"g")]);
    let bad_config = manifest_json(&format!("{}.json", "0".repeat(64)), &["l.tar"]);
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("climbs", of(&good, &[file("../../escaped", b"x")]), &["`../../escaped`", "`..`"]),
        ("absolute", of(&good, &[file("/tmp/escaped", b"x")]), &["`/tmp/escaped`", "absolute"]),
        ("twice", of(&good, &[file("./l.tar", &other_layer)]), &["more than one member `l.tar`"]),
        ("list twice", of(&good, &[file("manifest.json", b"[]")]), &["more than one member `manifest.json`"]),
        ("long", of(&good, &[Raw { size: Some(1 << 32), ..file("x", b"x") }]), &["is cut", "4294967296"]),
        ("endless", of(&good, &[Raw { size: Some(u64::MAX >> 1), ..file("x", b"x") }]), &["is cut"]),
        ("not there", of(&manifest_json(&name, &["no.tar"]), &[]), &["`no.tar`", "not there"]),
        ("no config", of(&manifest_json("no.json", &["l.tar"]), &[]), &["`no.json`", "not there"]),
        ("outside", of(&manifest_json(&name, &["../l.tar"]), &[]), &["`../l.tar`", "not there"]),
        (
            "link outside",
            of(&manifest_json(&name, &["s"]), &[link(EntryType::Symlink, "s", "../../../etc/passwd")]),
            &["`s` is not a regular file"],
        ),
        ("loop", of(&manifest_json(&name, &["s"]), &[link(EntryType::Symlink, "s", "s")]), &["link to a link"]),
        ("wrong layer", of(&manifest_json(&name, &["w"]), &[file("w", &other_layer)]), &["wrong content", "`w`"]),
        ("wrong gzip", of(&manifest_json(&name, &["w"]), &[file("w", &gzip(&other_layer))]), &["wrong content", "`w`"]),
        ("bad gzip", of(&manifest_json(&name, &["w"]), &[file("w", &gzip(&layer)[..30])]), &["decompressed"]),
        ("layer bomb", of(&manifest_json(&name, &["w"]), &[file("w", &bomb)]), &["swells"]),
        ("config's name", of(&bad_config, &[file(&format!("{}.json", "0".repeat(64)), &config)]), &["wrong content"]),
        ("count", of(&manifest_json(&name, &[]), &[]), &["1 diff_ids", "0 layers"]),
        ("huge list", of(&huge, &[]), &["manifest.json", "5242880 bytes"]),
        ("no list", raw(&[file("l.tar", &layer)]), &["no member `manifest.json`"]),
        ("old", raw(&[file("repositories", b"{}")]), &["before 1.10"]),
        ("not json", of(b"<html>", &[]), &["malformed"]),
        ("empty list", of(b"[]", &[]), &["it is empty"]),
        ("bomb", bomb.clone(), &["swells"]),
        ("cut", whole[..whole.len() - 3000].to_vec(), &["cut"]),
        ("cut gzip", gzip(&whole)[..200].to_vec(), &["cannot be decompressed"]),
        ("text", vec![b'x'; 2000], &["no tar archive"]),
        ("nothing", Vec::new(), &["empty"]),
    ];
    for (case, bytes, parts) in cases {
        let path = site.path("hostile.tar");
        fs::write(&path, bytes).unwrap();
        let before = surroundings(&site);
        let reference = format!("docker-archive:{}", path.display());
        let error = site.pull(&reference).map(|p| *p.resolved().digest()).expect_err(case);
        for part in parts {
            assert!(error.to_string().contains(part), "{case}: `{part}` is not in: {error}");
        }
        assert!(error.to_string().contains("hostile.tar"), "{case}: {error}");
        assert_eq!(surroundings(&site), before, "{case}: something was written outside the cache");
        let blobs = site.cache.dir("blobs").join("sha256");
        for blob in fs::read_dir(&blobs).into_iter().flatten() {
            let blob = blob.unwrap();
            let digest = Digest::of(&fs::read(blob.path()).unwrap());
            assert_eq!(blob.file_name().to_str().unwrap(), digest.hex(), "{case}: a blob that is not what it says");
        }
    }
    // The same, made well, is an image.
    fs::write(site.path("hostile.tar"), whole).unwrap();
    site.pull(&format!("docker-archive:{}", site.path("hostile.tar").display())).unwrap();

    // A layout's blob that is not what its name says.
    let source = small_image(&site, "layout", architecture());
    let blob = site.pull(&source).unwrap().layers()[1].digest().hex();
    let path = site.path("layout/blobs/sha256").join(&blob);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let archive = site.path("damaged.tar");
    run("tar", ["-C", site.path("layout").to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
    let fresh = Site::new();
    let error = fresh.pull(&format!("oci-archive:{}", archive.display())).unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
    contains(&error, &[&blob, "damaged.tar"]);
    fresh.assert_no_blob(&format!("sha256:{blob}"));
}

fn rootfs(dir: &Path) {
    for name in ["usr/bin", "etc", "proc", "closed"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::copy("/bin/true", dir.join("usr/bin/env")).unwrap();
    fs::write(dir.join("etc/f"), "f").unwrap();
    fs::hard_link(dir.join("etc/f"), dir.join("etc/g")).unwrap();
    symlink("usr/bin", dir.join("bin")).unwrap();
    symlink(format!("/{}", "n".repeat(200)), dir.join("etc/long")).unwrap();
    fs::write(dir.join("n".repeat(180)), "long").unwrap();
    fs::set_permissions(dir.join("usr/bin/env"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(dir.join("closed"), std::fs::Permissions::from_mode(0o555)).unwrap();
}

#[test]
fn a_folder_is_an_image_by_its_content() {
    let site = Site::new();
    let dir = site.path("root:fs");
    fs::create_dir(&dir).unwrap();
    rootfs(&dir);
    let before = surroundings(&site);
    let name = format!("dir:{}", dir.display());
    let pulled = site.pull(&name).unwrap();
    let digest = *pulled.resolved().digest();
    assert_eq!(surroundings(&site), before, "the folder is never changed");
    assert_eq!(pulled.layers().len(), 1);
    let report = unpacked(&site, &pulled, "out");
    assert_eq!((report.files, report.hardlinks, report.symlinks), (3, 1, 2));
    let out = site.path("out");
    assert_eq!(fs::metadata(out.join("usr/bin/env")).unwrap().permissions().mode() & 0o7777, 0o4755);
    assert_eq!(fs::metadata(out.join("closed")).unwrap().permissions().mode() & 0o7777, 0o555);
    assert_eq!(fs::metadata(out.join("etc/f")).unwrap().ino(), fs::metadata(out.join("etc/g")).unwrap().ino());
    assert_eq!(fs::metadata(out.join("etc/f")).unwrap().mtime(), fs::metadata(dir.join("etc/f")).unwrap().mtime());
    assert_eq!(fs::read_link(out.join("etc/long")).unwrap(), fs::read_link(dir.join("etc/long")).unwrap());

    // Whose it is and when folders were made is not content; a copy, and what was unpacked, are the same image.
    let copy = site.path("copy");
    run("cp", ["-a", dir.to_str().unwrap(), copy.to_str().unwrap()]);
    run("chown", ["-R", "12345:12345", copy.to_str().unwrap()]);
    // chown takes setuid away.
    fs::set_permissions(copy.join("usr/bin/env"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(copy.join("etc/passing"), "").unwrap();
    fs::remove_file(copy.join("etc/passing")).unwrap();
    for same in [&copy, &out] {
        let other = Site::new();
        assert_eq!(*other.pull(&format!("dir:{}", same.display())).unwrap().resolved().digest(), digest);
    }

    // Every change is another image, and nothing else is.
    let changed = format!("dir:{}", copy.display());
    let mut seen = vec![*site.pull(&changed).unwrap().resolved().digest()];
    assert_eq!(seen[0], digest);
    let changes: [&dyn Fn(); 4] = [
        &|| fs::write(copy.join("etc/f"), "F").unwrap(),
        &|| fs::set_permissions(copy.join("etc/f"), std::fs::Permissions::from_mode(0o600)).unwrap(),
        &|| fs::rename(copy.join("etc/g"), copy.join("etc/h")).unwrap(),
        &|| {
            fs::remove_file(copy.join("bin")).unwrap();
            symlink("/usr/bin", copy.join("bin")).unwrap();
        },
    ];
    for change in changes {
        change();
        let digest = *site.pull(&changed).unwrap().resolved().digest();
        assert!(!seen.contains(&digest));
        seen.push(digest);
    }

    fs::remove_dir_all(&dir).unwrap();
    let resolved = site.resolve(&name, OFFLINE).unwrap();
    assert_eq!(*resolved.digest(), digest);
    image::pull(&resolved, &site.cache, &quick(), true, &Ctx::silent()).unwrap();
}

#[test]
fn folders_that_are_no_root_file_systems() {
    let site = Site::new();
    let source = small_image(&site, "layout", architecture());
    run("skopeo", ["copy", "--quiet", &source, &format!("dir:{}", site.path("skopeo").display())]);
    fs::create_dir(site.path("empty")).unwrap();
    fs::create_dir_all(site.path("deleted/etc/.wh.x")).unwrap();
    fs::create_dir_all(site.path("foreign/usr/bin")).unwrap();
    let machine: u8 = if architecture() == "amd64" { 183 } else { 62 };
    let mut elf = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\0\0";
    elf[18] = machine;
    fs::write(site.path("foreign/usr/bin/bash"), elf).unwrap();
    for (name, part) in [
        ("layout", "oci:"),
        ("skopeo", "skopeo copy dir:"),
        ("empty", "usr, bin and etc"),
        ("nowhere", "no such folder"),
        ("layout/index.json", "not a folder"),
        ("deleted", "`deleted`"),
        ("foreign", "is an image for linux/"),
    ] {
        let path = site.path(name).display().to_string();
        contains(&site.pull(&format!("dir:{path}")).unwrap_err(), &[part, &path]);
    }
    contains(&site.pull(&format!("oci-archive:{}", site.path("layout").display())).unwrap_err(), &["oci:DIR"]);
    contains(&site.pull(&format!("oci:{}", site.path("layout/index.json").display())).unwrap_err(), &["index.json"]);
}
