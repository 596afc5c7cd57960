//! Pulling from a real registry and from layouts, and what each failure says.

use crate::oci::{self, Blob, Pack};
use crate::protocol::tunnel;
use crate::support::{
    Authority, OFFLINE, Registry, Site, again_in_a_process, architecture, contains, make_image, make_layer, quick, run,
    small_image,
};
use fs_err as fs;
use slurm_factory::image::{self, ClientConfig, Credentials, ImageError, Login, Reference, ResolveOptions};
use slurm_factory::report::Ctx;
use slurm_factory::rootfs::{Limits, UnpackError, unpack};
use slurm_factory::secret::Secret;
use std::net::TcpListener;
use std::time::{Duration, Instant};

#[test]
fn a_tag_is_resolved_once_and_then_needs_no_registry() {
    let site = Site::new();
    let registry = Registry::start();
    let source = small_image(&site, "layout", architecture());
    registry.push(&source, "library/small:1", &[]);
    let name = registry.name("library/small:1");

    let pulled = site.pull(&name).unwrap();
    assert_eq!(pulled.layers().len(), 2);
    let dest = site.path("rootfs");
    fs::create_dir(&dest).unwrap();
    let report = unpack(&pulled, &dest, &Limits::default(), &Ctx::silent()).unwrap();
    assert_eq!((report.layers, report.whiteouts), (2, 1));
    assert!(dest.join("etc/added").exists() && !dest.join("etc/os-release").exists());

    let digest = *pulled.resolved().digest();
    let pinned = format!("{}@{digest}", registry.name("library/small"));
    drop(registry);
    for reference in [&name, &pinned] {
        let resolved = site.resolve(reference, OFFLINE).unwrap();
        assert_eq!(*resolved.digest(), digest);
        image::pull(&resolved, &site.cache, &quick(), true, &Ctx::silent()).unwrap();
    }
    let names: Vec<String> =
        image::list(&site.cache).unwrap().iter().map(|m| m.image().reference().to_string()).collect();
    assert_eq!(names, [name.clone(), pinned]);
    let refreshed = site.resolve(&name, ResolveOptions { offline: false, refresh: true });
    contains(&refreshed.unwrap_err(), &["cannot reach", &name]);
}

#[test]
fn offline_names_what_is_missing() {
    let site = Site::new();
    let error = site.resolve("ubuntu:24.04", OFFLINE).unwrap_err();
    contains(&error, &["offline", "slurm-factory image pull docker.io/library/ubuntu:24.04"]);
    let pinned = format!("ubuntu@sha256:{}", "a".repeat(64));
    contains(&site.resolve(&pinned, OFFLINE).unwrap_err(), &["offline", "the manifest sha256:aaaa"]);

    let registry = Registry::start();
    registry.push(&small_image(&site, "layout", architecture()), "small:1", &[]);
    let name = registry.name("small:1");
    let resolved = site.resolve(&name, ResolveOptions::default()).unwrap();
    let error = image::pull(&resolved, &site.cache, &quick(), true, &Ctx::silent()).unwrap_err();
    contains(&error, &["offline", "the configuration sha256:", &name]);
}

#[test]
fn every_compression_gives_the_same_content() {
    let site = Site::new();
    let registry = Registry::start();
    let source = small_image(&site, "layout", architecture());
    registry.push(&source, "gzip:1", &[]);
    // Into a layout first: a registry that holds the gzip blobs would use them again.
    let zstd = format!("oci:{}:t", site.path("zstd").display());
    run("skopeo", ["copy", "--quiet", "--dest-compress-format=zstd", "--dest-compress", &source, &zstd]);
    registry.push(&zstd, "zstd:1", &[]);
    registry.push(&source, "docker:1", &["--format=v2s2"]);
    let mut seen = Vec::new();
    for (image, media_type) in
        [("gzip:1", "v1.tar+gzip"), ("zstd:1", "v1.tar+zstd"), ("docker:1", "rootfs.diff.tar.gzip")]
    {
        let pulled = site.pull(&registry.name(image)).unwrap();
        assert!(pulled.layers()[0].media_type().ends_with(media_type), "{}", pulled.layers()[0].media_type());
        let dest = site.path(image);
        fs::create_dir(&dest).unwrap();
        seen.push(unpack(&pulled, &dest, &Limits::default(), &Ctx::silent()).unwrap());
    }
    assert!(seen.iter().all(|report| *report == seen[0]), "{seen:?}");
}

/// A frame for each file, and a table of contents in a frame that decoders skip (RFC 8878 3.1.2).
#[test]
fn zstd_chunked_as_a_real_tool_writes_it() {
    let site = Site::new();
    let registry = Registry::start();
    let layer = make_layer(&site, "layer", |tree| {
        fs::create_dir_all(tree.join("d/e")).unwrap();
        let noise: Vec<u8> = (0..400_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        fs::write(tree.join("d/noise"), &noise).unwrap();
        fs::write(tree.join("text"), "text\n").unwrap();
        std::os::unix::fs::symlink("d", tree.join("link")).unwrap();
    });
    let made = make_image(&site, "made", "t", architecture(), &[layer]);
    let chunked = format!("oci:{}:t", site.path("chunked").display());
    run("skopeo", ["copy", "--quiet", "--dest-compress-format=zstd:chunked", "--dest-compress", &made, &chunked]);
    registry.push(&chunked, "chunked:1", &[]);
    let pulled = site.pull(&registry.name("chunked:1")).unwrap();
    assert!(pulled.layers()[0].media_type().ends_with("v1.tar+zstd"));
    let blob = fs::read(pulled.layer_path(&pulled.layers()[0])).unwrap();
    assert!(memchr::memmem::find(&blob, &0x184D_2A50_u32.to_le_bytes()).is_some(), "it has a table of contents");
    let into = |name: &str, image: &image::PulledImage| {
        let dest = site.path(name);
        fs::create_dir(&dest).unwrap();
        unpack(image, &dest, &Limits::default(), &Ctx::silent())
    };
    // Debian 12's skopeo (1.9) leaves out the zero blocks that end an archive: what comes out is not what the image's
    // configuration names.
    contains(&into("whole", &pulled).unwrap_err(), &["diff_id", "made wrongly"]);
    // The same blob in an image that names what it holds.
    let content = zstd::decode_all(&*blob).unwrap();
    let right = oci::image(&site.path("right"), &[Blob::packed(Pack::Zstd, blob, &content)]);
    let report = into("tree", &site.pull(&right).unwrap()).unwrap();
    assert_eq!((report.files, report.dirs, report.symlinks), (2, 3, 1));
    assert_eq!(fs::read(site.path("tree/link/noise")).unwrap().len(), 1_600_000);
}

#[test]
fn what_is_not_there_is_named() {
    let site = Site::new();
    let registry = Registry::start();
    registry.push(&small_image(&site, "layout", architecture()), "small:1", &[]);
    for image in ["small:2", "nothing:1", &format!("small@sha256:{}", "0".repeat(64))] {
        let name = registry.name(image);
        let error = site.pull(&name).unwrap_err();
        assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
        contains(&error, &[&name]);
    }
}

#[test]
fn nobody_listening_is_an_error_at_once() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = Instant::now();
    let error = Site::new().pull(&format!("127.0.0.1:{port}/a:1")).unwrap_err();
    contains(&error, &["cannot reach", "Connection refused", "oci:DIR"]);
    assert!(start.elapsed() < Duration::from_secs(3));
    let error = Site::new().pull("no-such-host.invalid/a:1").unwrap_err();
    contains(&error, &["cannot reach", "no-such-host.invalid", "https_proxy"]);
}

#[test]
fn a_blob_that_the_registry_damaged_is_not_kept() {
    let site = Site::new();
    let registry = Registry::start();
    registry.push(&small_image(&site, "layout", architecture()), "small:1", &[]);
    let name = registry.name("small:1");
    let layer = {
        let other = Site::new();
        other.pull(&name).unwrap().layers()[0].digest().to_string()
    };
    let stored = registry.stored(&layer);
    let mut bytes = fs::read(&stored).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&stored, &bytes).unwrap();
    let error = site.pull(&name).unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
    contains(&error, &[&layer, "expected", "got sha256:", "blobs/sha256:"]);
    site.assert_no_blob(&layer);

    // Mended, it is pulled: what failed left nothing that is in the way.
    bytes[middle] ^= 1;
    fs::write(&stored, &bytes).unwrap();
    site.pull(&name).unwrap();

    bytes.push(0);
    fs::write(&stored, &bytes).unwrap();
    let other = Site::new();
    contains(&other.pull(&name).unwrap_err(), &["wrong size", &layer]);
    other.assert_no_blob(&layer);

    // A manifest that does not hash to what was pinned.
    let pinned = format!("{}@{}", registry.name("small"), site.pull(&name).unwrap().resolved().digest());
    let digest = pinned.rsplit_once('@').unwrap().1;
    let manifest = fs::read_to_string(registry.stored(digest)).unwrap();
    fs::write(registry.stored(digest), format!("{manifest} ")).unwrap();
    contains(&Site::new().pull(&pinned).unwrap_err(), &[digest]);
}

#[test]
fn a_blob_damaged_in_the_cache_is_found_and_fetched_again() {
    let site = Site::new();
    let source = small_image(&site, "layout", architecture());
    let pulled = site.pull(&source).unwrap();
    let layer = &pulled.layers()[0];
    let path = pulled.layer_path(layer);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let dest = site.path("rootfs");
    fs::create_dir(&dest).unwrap();
    let error = unpack(&pulled, &dest, &Limits::default(), &Ctx::silent()).unwrap_err();
    assert!(matches!(error, UnpackError::DamagedBlob { .. }), "{error}");
    contains(&error, &[&layer.digest().to_string(), "deleted"]);
    assert!(!path.exists());
    let pulled = site.pull(&source).unwrap();
    let dest = site.path("rootfs2");
    fs::create_dir(&dest).unwrap();
    unpack(&pulled, &dest, &Limits::default(), &Ctx::silent()).unwrap();
}

#[test]
fn an_index_gives_the_image_of_this_machine() {
    let site = Site::new();
    let registry = Registry::start();
    let other = if architecture() == "amd64" { "arm64" } else { "amd64" };
    // umoci gives one tag to two images only through an index of our own: written here.
    let mut entries = Vec::new();
    for arch in [other, architecture()] {
        let layout = format!("layout-{arch}");
        let source = small_image(&site, &layout, arch);
        registry.push(&source, &format!("multi:{arch}"), &[]);
        let raw = run("skopeo", ["inspect", "--raw", &source]);
        let digest = run("skopeo", ["inspect", "--format={{.Digest}}", &source]).trim().to_owned();
        entries.push(serde_json::json!({
            "mediaType": oci::MANIFEST, "digest": digest, "size": raw.len(),
            "platform": {"os": "linux", "architecture": arch},
        }));
    }
    let attestation = serde_json::json!({
        "mediaType": oci::MANIFEST, "digest": entries[0]["digest"], "size": entries[0]["size"],
        "platform": {"os": "unknown", "architecture": "unknown"},
    });
    for (tag, list, media_type) in [
        ("oci", [&[attestation.clone()][..], &entries].concat(), "application/vnd.oci.image.index.v1+json"),
        ("docker", entries.clone(), "application/vnd.docker.distribution.manifest.list.v2+json"),
        ("foreign", vec![entries[0].clone()], "application/vnd.oci.image.index.v1+json"),
    ] {
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "manifests": list}).to_string();
        let path = site.path("index.json");
        fs::write(&path, index).unwrap();
        let url = format!("http://{}", registry.name("").replace('/', &format!("/v2/multi/manifests/{tag}")));
        run(
            "curl",
            [
                "--fail",
                "--silent",
                "--show-error",
                "-X",
                "PUT",
                "-H",
                &format!("Content-Type: {media_type}"),
                "--data-binary",
                &format!("@{}", path.display()),
                &url,
            ],
        );
    }
    for tag in ["oci", "docker"] {
        let pulled = site.pull(&registry.name(&format!("multi:{tag}"))).unwrap();
        assert_eq!(pulled.config().architecture().to_string(), architecture());
        assert_eq!(pulled.resolved().digest().to_string(), entries[1]["digest"].as_str().unwrap());
    }
    contains(&site.pull(&registry.name("multi:foreign")).unwrap_err(), &[&format!("linux/{other}"), "no image for"]);
    let single = site.pull(&registry.name(&format!("multi:{other}"))).unwrap_err();
    assert!(matches!(single, ImageError::WrongPlatform { .. }), "{single}");
}

#[test]
fn layouts_on_disk() {
    let site = Site::new();
    let layer = make_layer(&site, "l", |tree| fs::write(tree.join("f"), "x").unwrap());
    let one = make_image(&site, "layout", "one", architecture(), std::slice::from_ref(&layer));
    let bare = one.rsplit_once(':').unwrap().0.to_owned();
    let digest = *site.pull(&one).unwrap().resolved().digest();
    assert_eq!(*site.pull(&bare).unwrap().resolved().digest(), digest, "the only image needs no tag");
    assert_eq!(*site.pull(&format!("{bare}@{digest}")).unwrap().resolved().digest(), digest);

    make_image(&site, "layout", "two", architecture(), &[layer.clone(), layer]);
    contains(&site.pull(&bare).unwrap_err(), &["one, two"]);
    contains(&site.pull(&format!("{bare}:three")).unwrap_err(), &["`three`", "one, two"]);
    let nowhere = site.path("nowhere");
    contains(
        &site.pull(&format!("oci:{}", nowhere.display())).unwrap_err(),
        &["no such folder", nowhere.to_str().unwrap()],
    );
    fs::create_dir(&nowhere).unwrap();
    contains(&site.pull(&format!("oci:{}", nowhere.display())).unwrap_err(), &["oci-layout"]);

    // A blob that is cut, in a layout that nothing was taken from yet.
    let fresh = Site::new();
    let layer = site.pull(&one).unwrap().layers()[0].digest().to_string();
    let blob = site.path("layout/blobs/sha256").join(layer.strip_prefix("sha256:").unwrap());
    let bytes = fs::read(&blob).unwrap();
    fs::write(&blob, &bytes[..bytes.len() - 1]).unwrap();
    contains(&fresh.pull(&one).unwrap_err(), &["wrong size", &layer]);
    fresh.assert_no_blob(&layer);
    fs::remove_file(&blob).unwrap();
    contains(&fresh.pull(&one).unwrap_err(), &["no blob", &layer]);
}

#[test]
fn user_and_password() {
    let site = Site::new();
    let dir = tempfile::tempdir().unwrap();
    // bcrypt of `pass word`, cost 4.
    let line = "me:$2b$04$zoIJXxi117D8ADlT4WzDZ.nRKBPYlzIohoHaJsptrBs.g2lVmQeha\n";
    let file = dir.path().join("htpasswd");
    fs::write(&file, line).unwrap();
    let registry = Registry::with(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}", file.display()), "http");
    registry.push(&small_image(&site, "layout", architecture()), "small:1", &["--dest-creds=me:pass word"]);
    let name = registry.name("small:1");
    let error = site.pull(&name).unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    contains(&error, &[&name, "no login"]);

    let with = |password: &str| {
        let mut credentials = Credentials::default();
        let login = Login { user: "me".to_owned(), password: Secret::new(password.to_owned()) };
        credentials.insert(&registry.name(""), login);
        ClientConfig { credentials, ..quick() }
    };
    let error = site.pull_with(&name, &with("wrong")).unwrap_err();
    contains(&error, &["the stored login is refused"]);
    assert!(!error.to_string().contains("wrong\""));
    site.pull_with(&name, &with("pass word")).unwrap();
}

#[test]
fn a_sites_own_certificate() {
    let site = Site::new();
    let authority = Authority::new("Site CA");
    authority.sign("r", "subjectAltName=DNS:registry.test\nextendedKeyUsage=serverAuth\n");
    let at = |name: &str| authority.path(name);
    let registry = Registry::with(&authority.tls("r", ""), "https");

    // A name that only the proxy knows, as on a site whose machines have no way out.
    let proxy = tunnel(registry.port);
    let with = |ca: &[&str]| ClientConfig {
        https_proxy: Some(Secret::new(proxy.clone())),
        extra_ca_files: ca.iter().map(|name| at(name).into()).collect(),
        ..quick()
    };
    let name = "registry.test/small:1";
    contains(&site.pull_with(name, &with(&[])).unwrap_err(), &["certificate", "SSL_CERT_FILE"]);
    let error = site.pull_with(name, &with(&["ca.crt"])).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "trusted, but empty: {error}");
    contains(&site.pull_with(name, &with(&["r.ext"])).unwrap_err(), &["no PEM certificate", &at("r.ext")]);

    // The same through the environment, which only a new process can be given.
    again_in_a_process("pull::trust_by_environment", &[("SSL_CERT_FILE", &at("ca.crt")), ("TEST_PROXY", &proxy)], &[]);
}

/// Run by the test above, in a process that has the environment it needs.
#[test]
fn trust_by_environment() {
    let Ok(proxy) = std::env::var("TEST_PROXY") else { return };
    let client = ClientConfig { https_proxy: Some(Secret::new(proxy)), ..quick() };
    let error = Site::new().pull_with("registry.test/small:1", &client).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "trusted, but empty: {error}");
}

#[test]
fn a_full_disk_is_named() {
    let site = Site::new();
    let source = small_image(&site, "layout", architecture());
    for size in ["1m", "2m"] {
        let small = site.path(size);
        fs::create_dir(&small).unwrap();
        let mount = format!("mount -t tmpfs -o size={size} none '{}' && exec \"$0\" \"$@\"", small.display());
        let env = [("TEST_SMALL_DISK", small.to_str().unwrap()), ("TEST_SOURCE", &source)];
        again_in_a_process(
            "pull::on_a_small_disk",
            &env,
            &["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount],
        );
    }
}

/// Run by the test above where `TEST_SMALL_DISK` is mounted: 1.6 MB of blobs that unpack to 1.6 MB of files.
#[test]
fn on_a_small_disk() {
    let Ok(small) = std::env::var("TEST_SMALL_DISK") else { return };
    let site = Site::at(small.as_ref());
    match site.pull(&std::env::var("TEST_SOURCE").unwrap()) {
        Err(error) => {
            assert!(matches!(error, ImageError::NoSpace { .. }), "{error}");
            contains(&error, &["no space left", "more bytes are needed", &small]);
        }
        Ok(pulled) => {
            let dest = site.path("rootfs");
            fs::create_dir(&dest).unwrap();
            let error = unpack(&pulled, &dest, &Limits::default(), &Ctx::silent()).unwrap_err();
            assert!(matches!(error, UnpackError::NoSpace { .. }), "{error}");
            contains(&error, &["no space", "noise", &small]);
        }
    }
}

/// `doctor --online`: each place is asked, and nothing is kept.
#[test]
fn registries_are_asked_whether_they_answer() {
    let site = Site::new();
    let registry = Registry::start();
    let source = small_image(&site, "reach", architecture());
    registry.push(&source, "reach/image:t", &[]);
    let ask = |name: &str| {
        let Reference::Registry(reference) = name.parse().unwrap() else { panic!("{name}") };
        image::reach(&reference, &quick(), &Ctx::silent()).unwrap().remove(0)
    };
    let reached = ask(&registry.name("reach/image:t"));
    let date = reached.answer.unwrap().expect("a registry says its time");
    assert!((date.as_second() - jiff::Timestamp::now().as_second()).abs() < 60, "{date}");
    let error = ask(&registry.name("reach/none:t")).answer.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    let error = ask("127.0.0.1:9/x:y").answer.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
}
