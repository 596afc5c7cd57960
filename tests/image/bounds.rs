//! What must have an end: indexes that lead to indexes, sizes and digests that are not what is there, bombs, tables of
//! contents, a million files. Each between the canaries of `hostile.rs`.

use crate::hostile::{Ground, seen};
use crate::oci::{Blob, INDEX, Layout, MANIFEST, Member, PACKS, Pack, archive, image};
use crate::protocol::{answer, serve};
use crate::support::{OFFLINE, Registry, Site, contains, count, place_for, quick, run};
use fs_err as fs;
use serde_json::json;
use slurm_factory::image::{self, Digest, ImageError, PulledImage, ResolveOptions};
use slurm_factory::report::Ctx;
use slurm_factory::rootfs::{Limits, unpack_owned};
use slurm_factory::sha256::Sha256;
use std::io::Write;
use std::path::Path;

/// What a document says wrongly; it may use the digest of something else.
type Lie = fn(&mut Blob, Digest);

#[test]
fn documents_that_lie_about_a_layer() {
    let content = archive(&[Member::file("f", "f")]);
    let ground = Ground::new();
    let dir = ground.site.path("image");
    let other = Digest::of(b"other");
    for pack in PACKS {
        let lies: [(&str, Lie, &[&str]); 5] = [
            ("diff_id", |b, other| b.diff_id = other, &["diff_id", "expected"]),
            ("smaller", |b, _| b.size -= 1, &["wrong size"]),
            ("larger", |b, _| b.size += 1, &["wrong size"]),
            ("endless", |b, _| b.size = u64::MAX >> 1, &["wrong size"]),
            ("digest", |b, other| b.digest = other, &["expected", "got sha256:"]),
        ];
        for (name, lie, parts) in lies {
            let mut blob = Blob::new(pack, &content);
            lie(&mut blob, other);
            let digest = blob.digest.to_string();
            let error = ground.unpack(&image(&dir, &[blob]), &Limits::default()).expect_err(name);
            contains(&error, parts);
            contains(&error, &[&digest]);
            if name != "diff_id" {
                ground.site.assert_no_blob(&digest);
            }
            ground.assert_goes_on();
        }
    }
    // Two layers of one blob, and more diff_ids than layers.
    let twice = || [Blob::new(Pack::Gzip, &content), Blob::new(Pack::Gzip, &content)];
    ground.unpack(&image(&dir, &twice()), &Limits::default()).unwrap();
    let layout = Layout::new(&dir);
    let mut config = json!({"architecture": crate::support::architecture(), "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&content), Digest::of(&content)]}});
    for (name, value, part) in [
        ("config", json!([]), "1 layers"),
        ("config", json!("text"), "configuration"),
        ("rootfs", json!(null), "configuration"),
    ] {
        if name == "rootfs" {
            config["rootfs"] = value;
        } else {
            config["history"] = value;
        }
        let blob = Blob::new(Pack::Plain, &content);
        layout.store(&blob.digest, &blob.bytes);
        let config = layout.document("application/vnd.oci.image.config.v1+json", &config);
        let layer =
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": blob.digest, "size": blob.size});
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let reference = layout.tag(layout.document(MANIFEST, &manifest));
        contains(&ground.unpack(&reference, &Limits::default()).unwrap_err(), &[part]);
        ground.assert_goes_on();
    }
}

/// What is cached of one image is no other's to delete: neither by a manifest that lies about its size, nor by a name or a
/// manifest that calls it a document.
#[test]
fn a_lie_about_a_layer_leaves_it_to_the_images_that_have_it() {
    let ground = Ground::new();
    let site = &ground.site;
    // Larger than any manifest.
    let noise: Vec<u8> = (0..5_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let content = archive(&[Member::file("f", &noise)]);
    let good = || Blob::new(Pack::Plain, &content);
    let name = image(&site.path("good"), &[good()]);
    let digest = *site.pull(&name).unwrap().layers()[0].digest();
    fs::remove_dir_all(site.path("good")).unwrap();
    let open = || {
        let resolved = site.resolve(&name, OFFLINE).unwrap();
        PulledImage::open(&site.cache, &resolved).unwrap();
    };
    open();

    let lies: [fn(&mut Blob); 2] = [|b| b.size -= 1, |b| b.size += 1];
    for lie in lies {
        let mut blob = good();
        lie(&mut blob);
        contains(&site.pull(&image(&site.path("lie"), &[blob])).unwrap_err(), &["wrong size"]);
        open();
    }

    // As a configuration, and as a manifest: in a manifest, by an index, by a name.
    let dir = site.path("lie");
    let layout = Layout::new(&dir);
    layout.store(&digest, &good().bytes);
    for (kind, size) in [("config", 100), ("config", content.len()), ("manifest", 100), ("index", content.len())] {
        let mut entry = json!({"mediaType": MANIFEST, "digest": digest, "size": size});
        if kind == "config" {
            entry["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
            entry = layout.document(MANIFEST, &json!({"schemaVersion": 2, "config": entry, "layers": []}));
        } else if kind == "index" {
            entry = layout.document(INDEX, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}));
        }
        site.pull(&layout.tag(entry)).unwrap_err();
        open();
    }
    let (address, _) = serve(|_| answer("404 Not Found", &[], ""));
    let error = site.pull(&format!("{address}/some@{digest}")).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    open();
}

#[test]
fn indexes_without_an_end() {
    let ground = Ground::new();
    let dir = ground.site.path("image");
    let layout = Layout::new(&dir);
    let content = archive(&[Member::file("f", "f")]);
    let index_of = |entry: &serde_json::Value| json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});

    // Deep, and a little too deep.
    let mut entry = layout.image(&[Blob::new(Pack::Gzip, &content)]);
    for depth in 1..=6 {
        entry = layout.document(INDEX, &index_of(&entry));
        let result = ground.unpack(&layout.tag(entry.clone()), &Limits::default());
        if depth <= 4 {
            result.unwrap();
        } else {
            contains(&result.unwrap_err(), &["indexes inside indexes", "more than 4"]);
        }
    }
    ground.assert_goes_on();

    // No document holds its own digest: an index that points to itself, or to one that points back, is stored under a
    // name that is not its digest.
    let names = [Digest::of(b"one"), Digest::of(b"two")];
    let named = |name: &Digest| json!({"mediaType": INDEX, "digest": name, "size": 300});
    for (first, second) in [(0, 0), (1, 0)] {
        layout.store(&names[0], index_of(&named(&names[first])).to_string().as_bytes());
        layout.store(&names[1], index_of(&named(&names[second])).to_string().as_bytes());
        let error = ground.site.pull(&layout.tag(named(&names[0]))).unwrap_err();
        assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
        contains(&error, &[&names[0].to_string(), "got sha256:"]);
        for name in &names {
            ground.site.assert_no_blob(&name.to_string());
        }
        ground.assert_goes_on();
    }

    // An index that is its own manifest's configuration or layer.
    let own = layout.document(INDEX, &index_of(&layout.image(&[Blob::new(Pack::Gzip, &content)])));
    let mut config = own.clone();
    config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
    let reference = layout.tag(layout.document(MANIFEST, &manifest));
    contains(&ground.unpack(&reference, &Limits::default()).unwrap_err(), &["configuration"]);
    ground.assert_goes_on();
}

#[test]
fn indexes_of_a_registry_without_an_end() {
    let ground = Ground::new();
    let index = |below: &Digest| {
        let entry = json!({"mediaType": INDEX, "digest": below, "size": 300});
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string()
    };
    // What it answers for a digest is what it answered for the tag.
    let name = Digest::of(b"itself");
    let (address, log) = serve({
        let document = index(&name);
        move |_| answer("200 OK", &[format!("Content-Type: {INDEX}")], document.as_str())
    });
    let error = ground.unpack(&format!("{address}/self:t"), &Limits::default()).unwrap_err();
    contains(&error, &[&name.to_string(), "got sha256:"]);
    assert!(log.lock().unwrap().len() < 5, "asked once, and perhaps once more");
    ground.assert_goes_on();

    // Each is what it says, and there is always another.
    let mut chain = vec![index(&Digest::of(b"the end"))];
    for depth in 0..20 {
        chain.push(index(&Digest::of(chain[depth].as_bytes())));
    }
    let (address, log) = serve(move |request| {
        let last = request.target.rsplit('/').next().unwrap().to_owned();
        let found = chain.iter().find(|d| Digest::of(d.as_bytes()).to_string() == last);
        answer("200 OK", &[format!("Content-Type: {INDEX}")], found.unwrap_or(chain.last().unwrap()).as_str())
    });
    let error = ground.unpack(&format!("{address}/deep:t"), &Limits::default()).unwrap_err();
    contains(&error, &["indexes inside indexes", "more than 4"]);
    assert!(log.lock().unwrap().len() <= 5, "{:?}", log.lock().unwrap());
    ground.assert_goes_on();
}

/// 1 GiB of one byte, packed without holding it.
fn bomb(pack: Pack) -> (Vec<u8>, Digest) {
    use sha2::Digest as _;
    let size: u64 = 1 << 30;
    let header = Member { size: Some(size), ..Member::file("zeros", "") }.bytes();
    let end = vec![0; 1024];
    let block = vec![0; 1 << 20];
    let mut hasher = sha2::Sha256::new();
    let mut write = |sink: &mut dyn Write| {
        for part in std::iter::once(&header).chain(std::iter::repeat_n(&block, 1 << 10)).chain([&end]) {
            sink.write_all(part).unwrap();
            hasher.update(part);
        }
    };
    let bytes = match pack {
        Pack::Plain => unreachable!("no bomb"),
        Pack::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            write(&mut encoder);
            encoder.finish().unwrap()
        }
        Pack::Zstd => {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            write(&mut encoder);
            encoder.finish().unwrap()
        }
    };
    (bytes, format!("sha256:{}", hex::encode(hasher.finalize())).parse().unwrap())
}

#[test]
fn bombs() {
    let ground = Ground::new();
    for pack in [Pack::Gzip, Pack::Zstd] {
        let (bytes, diff_id) = bomb(pack);
        assert!(bytes.len() < 2 << 20, "{pack:?}: {}", bytes.len());
        let blob = Blob { diff_id, ..Blob::packed(pack, bytes, b"") };
        let error = ground.unpack(&image(&ground.site.path("image"), &[blob]), &Limits::default()).unwrap_err();
        contains(&error, &["uncompressed bytes for each compressed one", "250"]);
        // It was stopped on the way: what is there is a part of the gigabyte.
        let there = ground.dest().join("zeros").metadata().map_or(0, |m| m.len());
        assert!(there < 512 << 20, "{there}");
        ground.assert_goes_on();
    }
    // A window that a reader would have to keep in memory: 2 GiB by the frame's word.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(31).unwrap();
    encoder.long_distance_matching(true).unwrap();
    let content = archive(&[Member::file("f", "f")]);
    std::io::Write::write_all(&mut encoder, &content).unwrap();
    let blob = Blob::packed(Pack::Zstd, encoder.finish().unwrap(), &content);
    let error = ground.unpack(&image(&ground.site.path("image"), &[blob]), &Limits::default()).unwrap_err();
    contains(&error, &["zstd", "memory"]);
    ground.assert_goes_on();
}

/// What skopeo writes as zstd:chunked: a frame a chunk, and the table of contents in frames that decoders skip.
#[test]
fn zstd_chunked_layers() {
    let ground = Ground::new();
    let site = &ground.site;
    let noise: Vec<u8> = (0..600_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let content = archive(&[
        Member::dir("d"),
        Member::file("d/noise", &noise),
        Member::file("d/empty", ""),
        Member::hard_link("d/same", "d/noise"),
        Member::symlink("s", "d"),
        Member::file("d/setuid", "x").mode(0o4755),
    ]);
    let plain = image(&site.path("image"), &[Blob::new(Pack::Gzip, &content)]);
    let chunked = format!("oci:{}:t", site.path("chunked").display());
    run("skopeo", ["copy", "--quiet", "--dest-compress", "--dest-compress-format=zstd:chunked", &plain, &chunked]);
    let registry = Registry::start();
    registry.push(&chunked, "chunked:1", &[]);
    let name = registry.name("chunked:1");
    let pulled = site.pull(&name).unwrap();
    let manifest = serde_json::to_string(pulled.manifest()).unwrap();
    assert!(manifest.contains("io.containers.zstd-chunked.manifest-position"), "no table of contents: {manifest}");
    let layer = &pulled.layers()[0];
    let blob = fs::read(pulled.layer_path(layer)).unwrap();
    for reference in [&name, &chunked] {
        ground.unpack(reference, &Limits::default()).unwrap();
        assert_eq!(fs::read(ground.dest().join("d/same")).unwrap(), noise);
        assert_eq!(seen(&ground.dest(), b"d/setuid"), "f4755:x");
    }
    // A table that is nonsense changes nothing: the content is the stream's. One that is cut is a cut layer.
    let skip = |bytes: &[u8]| {
        [&0x184D_2A50_u32.to_le_bytes(), &u32::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat()
    };
    let dir = site.path("image");
    for bytes in [
        [&skip(b"first")[..], &blob].concat(),
        [&blob[..], &skip(&[0xff; 4096])].concat(),
        [&blob[..], &skip(b""), &skip(b"x"), &Pack::Zstd.pack(b"")].concat(),
    ] {
        let layers = [Blob::packed(Pack::Zstd, bytes, &content)];
        ground.unpack(&image(&dir, &layers), &Limits::default()).unwrap();
        assert_eq!(fs::read(ground.dest().join("d/noise")).unwrap(), noise);
    }
    let mut cut = skip(&[0; 100]);
    cut.truncate(50);
    for bytes in [blob[..blob.len() - 1].to_vec(), [&blob[..], &cut].concat(), [&blob[..], b"more"].concat()] {
        let layers = [Blob::packed(Pack::Zstd, bytes, &content)];
        let error = ground.unpack(&image(&dir, &layers), &Limits::default()).unwrap_err();
        contains(&error, &["cannot be decompressed", "zstd"]);
    }
    ground.assert_goes_on();
}

/// Mebibytes in one layer, which packs to half of that or more: both are more than the memory that may be used. `tests/deep` says 4096.
const MEBIBYTES: &str = "SLURM_FACTORY_TEST_LAYER_MEBIBYTES";

/// A layer with one large file, written as it is made: the same packed mebibyte again and again.
fn large_image(dir: &Path, pack: Pack, mebibytes: usize) -> String {
    let layout = Layout::new(dir);
    // Half of each byte is chance (xorshift).
    let mut state = 0x9e37_79b9_u32;
    let mut chance = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8 & 0xf
    };
    let block: Vec<u8> = (0..1 << 20).map(|_| chance()).collect();
    let header = Member { size: Some((mebibytes as u64) << 20), ..Member::file("large", "") }.bytes();
    let parts = [header, block, vec![0; 1024]].map(|part| (pack.pack(&part), part));
    let mut file = fs::File::create(dir.join("blob")).unwrap();
    let (mut blob, mut content, mut size) = (Sha256::new(), Sha256::new(), 0);
    for part in std::iter::once(0).chain(std::iter::repeat_n(1, mebibytes)).chain([2]) {
        let (packed, plain) = &parts[part];
        file.write_all(packed).unwrap();
        blob.update(packed);
        content.update(plain);
        size += packed.len() as u64;
    }
    assert!((mebibytes as u64) << 18 < size && size < (mebibytes as u64) << 20, "packed to {size} bytes");
    let (digest, diff_id) = (Digest::finish(blob), Digest::finish(content));
    let image = layout.image(&[Blob { pack, bytes: Vec::new(), digest, size, diff_id }]);
    fs::rename(dir.join("blob"), dir.join("blobs/sha256").join(digest.hex())).unwrap();
    layout.tag(image)
}

#[test]
fn a_large_layer_in_bounded_memory() {
    let site = Site::new();
    for pack in [Pack::Gzip, Pack::Zstd] {
        let dir = site.path("image");
        let reference = large_image(&dir, pack, count(MEBIBYTES, 512));
        // Each in a process of its own, whose memory is that of this image alone.
        crate::support::again_in_a_process("bounds::one_large_layer", &[("TEST_LARGE_LAYER", &reference)], &[]);
        fs::remove_dir_all(dir).unwrap();
    }
}

/// Run by the test above: unpacked while it comes, and once more from the cache.
#[test]
fn one_large_layer() {
    let Ok(reference) = std::env::var("TEST_LARGE_LAYER") else { return };
    let site = Site::new();
    let (client, ctx) = (quick(), Ctx::silent());
    let resolved = site.resolve(&reference, ResolveOptions::default()).unwrap();
    for again in [false, true] {
        let dest = site.path("tree");
        fs::create_dir(&dest).unwrap();
        let arriving = image::begin(&resolved, &site.cache, &client, again, &ctx).unwrap();
        unpack_owned(arriving, &dest, &Limits::default(), &ctx).unwrap();
        assert_eq!(fs::metadata(dest.join("large")).unwrap().len(), (count(MEBIBYTES, 512) as u64) << 20);
        fs::remove_dir_all(&dest).unwrap();
        println!("{} MiB, again: {again}: {} MiB of memory", count(MEBIBYTES, 512), peak() >> 20);
        assert!(peak() < 200 << 20, "{} bytes of memory", peak());
    }
}

/// How many empty files; `tests/deep` says a million.
const FILES: &str = "SLURM_FACTORY_TEST_EMPTY_FILES";

#[test]
fn very_many_empty_files_in_bounded_memory() {
    // In a process of its own, whose memory is that of this image alone.
    crate::support::again_in_a_process("bounds::very_many_empty_files", &[("TEST_ALONE", "1")], &[]);
}

/// Run by the test above.
#[test]
fn very_many_empty_files() {
    if std::env::var_os("TEST_ALONE").is_none() {
        return;
    }
    let files = count(FILES, 50_000);
    // Two layers of them are there at once.
    let ground = Ground::at(&place_for(2 * files));
    // Written as it is made: the archive itself is 512 bytes a name.
    let write = |name: &str, files: usize, per_dir: usize, directories: bool, more: &[Member]| -> Blob {
        let mut bytes = Vec::new();
        let mut encoder = zstd::Encoder::new(&mut bytes, 1).unwrap();
        let mut hasher = <sha2::Sha256 as sha2::Digest>::new();
        let mut put = |part: &[u8]| {
            std::io::Write::write_all(&mut encoder, part).unwrap();
            sha2::Digest::update(&mut hasher, part);
        };
        for i in 0..files {
            let path = format!("{name}/{}/{i}", i / per_dir);
            put(&if directories { Member::dir(path) } else { Member::file(path, "") }.bytes());
        }
        for member in more {
            put(&member.bytes());
        }
        put(&[0; 1024]);
        encoder.finish().unwrap();
        let diff_id = format!("sha256:{}", hex::encode(sha2::Digest::finalize(hasher))).parse().unwrap();
        Blob { diff_id, ..Blob::packed(Pack::Zstd, bytes, b"") }
    };
    // The second layer in one directory, which is hidden by the third.
    let layers = [
        write("many", files, 1000, false, &[]),
        write("flat", files, files, false, &[]),
        Blob::new(Pack::Zstd, &archive(&[Member::file(".wh.flat", "")])),
    ];
    let reference = image(&ground.site.path("image"), &layers);
    let before = peak();
    let report = ground.unpack(&reference, &Limits { entries: u64::MAX, ..Limits::default() }).unwrap();
    assert_eq!(report.files, 2 * files as u64);
    assert_eq!(fs::read_dir(ground.dest().join("many/0")).unwrap().count(), 1000.min(files));
    assert!(!ground.dest().join("flat").exists());
    let used = peak().saturating_sub(before);
    println!("{files} files twice: {} MiB", used >> 20);
    assert!(used < 200 << 20, "{used} bytes for {files} files");

    // As many directories; a million of them is still no reason for more.
    let reference = image(&ground.site.path("image"), &[write("dirs", files, 1000, true, &[])]);
    let report = ground.unpack(&reference, &Limits::default()).unwrap();
    assert_eq!(report.dirs, files as u64);
    let used = peak().saturating_sub(before);
    println!("and as many directories: {} MiB", used >> 20);
    assert!(used < 200 << 20, "{used} bytes for {files} directories");

    // A layer that hides its own directory again and again, in vain, has it searched once.
    let marks: Vec<Member> =
        (0..2000).map(|i| Member::file(if i % 2 == 0 { "flat/0/.wh..wh..opq" } else { ".wh.flat" }, "")).collect();
    let few = files.min(50_000);
    let layers = [write("flat", 1, 1, false, &[]), write("flat", few, few, false, &marks)];
    let hiding = image(&ground.site.path("hiding"), &layers);
    let start = std::time::Instant::now();
    let report = ground.unpack(&hiding, &Limits::default()).unwrap();
    assert_eq!(report.whiteouts, 2000);
    assert_eq!(fs::read_dir(ground.dest().join("flat/0")).unwrap().count(), few);
    assert!(start.elapsed() < std::time::Duration::from_mins(1), "{:?}", start.elapsed());

    // More than are allowed are refused, and what is there is deleted as any tree.
    let few = Limits { entries: 1000, ..Limits::default() };
    contains(&ground.unpack(&reference, &few).unwrap_err(), &["entries more than the 1000"]);
    ground.assert_goes_on();
}

/// The most memory that this process had, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
