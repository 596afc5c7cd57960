//! Layers that no honest tool writes, and what becomes of them. Each is applied with both resolvers, between canaries.

use super::*;
use crate::image::testing::{Member, archive};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

/// A destination between things that must stay as they are.
struct Place {
    dir: tempfile::TempDir,
    dest: PathBuf,
    layers: Vec<(Layer, PathBuf)>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("a/dest");
        fs::create_dir_all(&dest).unwrap();
        fs::write(dir.path().join("a/canary"), "alive").unwrap();
        fs::write(dir.path().join("canary"), "alive").unwrap();
        Self { dir, dest, layers: Vec::new() }
    }

    fn blob(&mut self, blob: &[u8], compression: Compression, content: &[u8]) -> &mut Self {
        let path = self.dir.path().join(format!("layer{}", self.layers.len()));
        fs::write(&path, blob).unwrap();
        self.layers.push((Layer::for_test(blob, compression, Digest::of(content)), path));
        self
    }

    fn layer(&mut self, members: &[Member]) -> &mut Self {
        let content = archive(members);
        self.blob(&content, Compression::None, &content)
    }

    fn run(&self, limits: Limits, walk: bool) -> Result<UnpackReport, UnpackError> {
        let ctx = Ctx::silent();
        let mut unpacker = Unpacker::new(&self.dest, limits, 0, &ctx)?;
        if walk {
            unpacker.tree = unpacker.tree.by_walking();
        }
        for (layer, path) in &self.layers {
            unpacker.layer(layer, LayerBlob::whole(path.clone()).unwrap())?;
        }
        unpacker.finish()
    }

    fn assert_untouched(&self) {
        let all = walkdir::WalkDir::new(self.dir.path()).into_iter().filter_entry(|e| e.path() != self.dest);
        let outside = all.map(Result::unwrap).count();
        // The folder, `a`, two canaries, and the layers.
        assert_eq!(outside, 4 + self.layers.len(), "something was made outside");
        for canary in ["canary", "a/canary"] {
            let path = self.dir.path().join(canary);
            assert_eq!(fs::read_to_string(&path).unwrap(), "alive");
            assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
        }
    }
}

/// Applies layers with both resolvers and hands each result to `check`.
fn unpack_with(layers: &[&[Member]], limits: Limits, check: impl Fn(Result<UnpackReport, UnpackError>, &Path)) {
    for walk in [false, true] {
        let mut place = Place::new();
        for layer in layers {
            place.layer(layer);
        }
        let result = place.run(limits, walk);
        place.assert_untouched();
        check(result, &place.dest);
        crate::fsutil::remove_tree(&place.dest).unwrap();
    }
}

fn good(layers: &[&[Member]], check: impl Fn(&UnpackReport, &Path)) {
    unpack_with(layers, Limits::default(), |result, dest| check(&result.unwrap(), dest));
}

fn bad(layers: &[&[Member]], parts: &[&str]) {
    unpack_with(layers, Limits::default(), |result, _| {
        let text = result.unwrap_err().to_string();
        for part in parts {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
    });
}

fn text(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../canary", "x/../../canary", "..", "/../canary", "x/.."] {
        bad(&[&[Member::dir("x"), Member::file(name, "dead")]], &["`..`", name]);
        bad(&[&[Member::dir("x"), Member::dir(name)]], &["`..`"]);
        bad(&[&[Member::hard_link("l", name)]], &["`..`", "`l`"]);
    }
    bad(&[&[Member::file("/", "x")]], &["root"]);
    bad(&[&[Member::symlink(".", "/etc")]], &["root"]);
    bad(&[&[Member::file("", "x")]], &["root"]);
    bad(&[&[Member::hard_link("l", "/")]], &["root"]);
}

#[test]
fn absolute_names_are_inside() {
    good(&[&[Member::file("/etc/passwd", "x"), Member::hard_link("//l", "/etc//./passwd")]], |_, dest| {
        assert_eq!(text(dest.join("etc/passwd")), "x");
        assert_eq!(fs::metadata(dest.join("l")).unwrap().nlink(), 2);
    });
}

#[test]
fn symlinks_never_lead_out() {
    for target in ["/", "..", "../..", "/a", "../../../../../..", "/proc/self/cwd", "/proc/1/root"] {
        good(&[&[Member::symlink("s", target)], &[Member::file("s/canary", "inside")]], |_, dest| {
            let inside: Vec<_> = walkdir::WalkDir::new(dest)
                .into_iter()
                .map(Result::unwrap)
                .filter(|e| e.file_name() == "canary")
                .collect();
            assert_eq!(inside.len(), 1, "{target}");
        });
    }
    // An absolute link to the very folder where the canary lies.
    for walk in [false, true] {
        let mut place = Place::new();
        let outside = place.dir.path().as_os_str().as_bytes().to_vec();
        place.layer(&[Member::symlink("s", &outside), Member::file("s/canary", "dead"), Member::dir("s/made")]);
        place.run(Limits::default(), walk).unwrap();
        place.assert_untouched();
    }
}

#[test]
fn a_file_replaces_a_symlink_and_is_not_written_through_it() {
    good(
        &[&[Member::file("target", "old"), Member::symlink("f", "target")], &[Member::file("f", "new")]],
        |_, dest| {
            assert_eq!((text(dest.join("target")), text(dest.join("f"))), ("old".into(), "new".into()));
            assert!(fs::symlink_metadata(dest.join("f")).unwrap().is_file());
        },
    );
    good(&[&[Member::symlink("f", "/canary"), Member::file("f", "new")]], |_, dest| {
        assert!(fs::symlink_metadata(dest.join("f")).unwrap().is_file());
    });
}

#[test]
fn a_directory_replaces_a_symlink_to_one_and_keeps_one() {
    let base = [Member::dir("real"), Member::file("real/old", ""), Member::symlink("d", "real")];
    good(&[&base, &[Member::dir("d"), Member::file("d/new", "")]], |_, dest| {
        assert_eq!((names(&dest.join("d")), names(&dest.join("real"))), (vec!["new".into()], vec!["old".into()]));
    });
    good(&[&base, &[Member::dir("real").mode(0o700)]], |_, dest| {
        assert_eq!(names(&dest.join("real")), ["old"]);
        assert_eq!(fs::metadata(dest.join("real")).unwrap().mode() & 0o7777, 0o700);
    });
    good(&[&base, &[Member::symlink("real", "elsewhere")]], |_, dest| {
        assert_eq!(fs::read_link(dest.join("real")).unwrap(), Path::new("elsewhere"));
    });
}

#[test]
fn files_below_a_file_are_an_error() {
    bad(&[&[Member::file("f", ""), Member::file("f/x", "")]], &["`f/x`", "Not a directory"]);
}

#[test]
fn the_way_to_the_current_directory_may_be_replaced() {
    // `a/s` is `a` itself until it becomes a file.
    bad(
        &[&[Member::dir("a"), Member::symlink("a/s", "."), Member::file("a/s/s", ""), Member::file("a/s/t", "")]],
        &["`a/s/t`"],
    );
}

#[test]
fn hard_links() {
    let base = [Member::file("f", "x"), Member::symlink("s", "/canary"), Member::dir("d")];
    good(&[&base, &[Member::hard_link("l", "s")]], |_, dest| {
        assert_eq!(fs::read_link(dest.join("l")).unwrap(), Path::new("/canary"), "a link to the symlink itself");
    });
    good(&[&base, &[Member::hard_link("f", "f"), Member::hard_link("f", "./f")]], |_, dest| {
        assert_eq!(text(dest.join("f")), "x", "a link to itself changes nothing");
    });
    good(&[&base, &[Member::hard_link("s", "f")]], |report, dest| {
        assert_eq!((text(dest.join("s")), report.hardlinks), ("x".into(), 1));
    });
    bad(&[&base, &[Member::hard_link("l", "d")]], &["directory `d`"]);
    bad(&[&base, &[Member::hard_link("l", "nothing")]], &["`l`", "`nothing`", "not there"]);
    bad(&[&base, &[Member::hard_link("l", "f/nothing")]], &["not there"]);
    bad(&[&base, &[Member::file("d/t", ""), Member::hard_link("d", "d/t")]], &["not there"]);
    // Through a symlink to the outside: it is resolved inside, where nothing is.
    bad(&[&[Member::symlink("out", "../../.."), Member::hard_link("l", "out/canary")]], &["not there"]);
}

#[test]
fn whiteouts_delete_what_lower_layers_brought() {
    let base = [
        Member::dir("d"),
        Member::file("d/a", ""),
        Member::dir("d/sub"),
        Member::file("d/sub/x", ""),
        Member::file("e", ""),
    ];
    good(&[&base, &[Member::file("d/.wh.a", ""), Member::file(".wh.e", "")]], |report, dest| {
        assert_eq!((names(dest), names(&dest.join("d"))), (vec!["d".into()], vec!["sub".into()]));
        assert_eq!(report.whiteouts, 2);
    });
    // In any order within the layer, what the layer itself brought stays.
    for opaque_first in [true, false] {
        let mut top = vec![Member::file("d/.wh..wh..opq", ""), Member::file("d/new", ""), Member::file("d/sub/y", "")];
        if !opaque_first {
            top.rotate_left(1);
        }
        good(&[&base, &top], |_, dest| {
            assert_eq!(
                (names(&dest.join("d")), names(&dest.join("d/sub"))),
                (vec!["new".into(), "sub".into()], vec!["y".into()])
            );
        });
    }
    good(&[&base, &[Member::file("d/a", "new"), Member::file("d/.wh.a", "")]], |_, dest| {
        assert_eq!(text(dest.join("d/a")), "new");
    });
    good(&[&base, &[Member::file(".wh..wh..opq", ""), Member::file("only", "")]], |_, dest| {
        assert_eq!(names(dest), ["only"]);
    });
    // Nothing to delete, nothing made; and in the lowest layer there is nothing below.
    good(
        &[&base, &[Member::file("nowhere/.wh.x", ""), Member::file("e/.wh.x", ""), Member::file(".wh.nothing", "")]],
        |_, dest| {
            assert_eq!(names(dest), ["d", "e"]);
        },
    );
    good(&[&[Member::file("a", ""), Member::file(".wh.a", ""), Member::file(".wh..wh.plnk", "")]], |report, dest| {
        assert_eq!((names(dest), report.whiteouts), (vec!["a".into()], 1));
    });
}

#[test]
fn hostile_whiteouts() {
    let base: &[Member] = &[Member::dir("d"), Member::symlink("out", "../..")];
    for name in [".wh.", ".wh..", ".wh...", "d/.wh...", "d/.wh."] {
        bad(&[base, &[Member::file(name, "")]], &["whiteout"]);
        bad(&[&[Member::file(name, "")]], &["whiteout"]);
    }
    bad(&[base, &[Member::file("../.wh.canary", "")]], &["`..`"]);
    bad(&[base, &[Member::file(".wh.d/f", "")]], &["inside a whiteout"]);
    // Through a symlink: the canary outside stays (checked for every case).
    good(&[base, &[Member::file("out/.wh.canary", ""), Member::file("out/a/.wh..wh..opq", "")]], |_, _| {});
    good(&[base, &[Member::file("out/.wh..wh..opq", "")]], |_, dest| assert!(names(dest).is_empty()));
}

#[test]
fn duplicates_the_last_one_wins() {
    good(
        &[&[Member::file("f", "1"), Member::file("f", "22"), Member::symlink("f", "x"), Member::file("f", "3")]],
        |_, dest| {
            assert_eq!(text(dest.join("f")), "3");
        },
    );
    good(&[&[Member::dir("d"), Member::file("d/x/y", ""), Member::file("d", "file")]], |_, dest| {
        assert_eq!(text(dest.join("d")), "file");
    });
}

#[test]
fn modes_and_times() {
    let members = [
        Member::dir(".").mode(0o555),
        Member::dir("closed").mode(0),
        Member::dir("closed/inner").mode(0o2555),
        Member::file("closed/inner/f", "x").mode(0o4711),
        Member::dir("tmp").mode(0o1777),
        Member::symlink("s", "x"),
    ];
    good(&[&members, &[Member::file("closed/inner/g", "")]], |_, dest| {
        let mode = |path: &str| fs::symlink_metadata(dest.join(path)).unwrap().mode() & 0o7777;
        assert_eq!(mode("."), 0o755, "the root stays open to its owner");
        assert_eq!((mode("closed"), mode("tmp")), (0, 0o1777));
        assert_eq!(fs::metadata(dest.join("tmp")).unwrap().mtime(), 1_600_000_000);
        assert_eq!(fs::symlink_metadata(dest.join("s")).unwrap().mtime(), 1_600_000_000);
        fs::set_permissions(dest.join("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!((mode("closed/inner"), mode("closed/inner/f")), (0o2555, 0o4711));
        assert_eq!(fs::metadata(dest.join("closed/inner/f")).unwrap().mtime(), 1_600_000_000);
    });
}

#[test]
fn devices_are_left_out_and_pipes_made() {
    let members = [
        Member::new(b'3', "dev/null"),
        Member::new(b'4', "dev/sda"),
        Member::hard_link("dev/zero", "dev/null"),
        Member::new(b'6', "pipe").mode(0o600),
    ];
    good(&[&[Member::file("dev/null", "in the way")], &members], |report, dest| {
        assert_eq!((names(&dest.join("dev")), names(dest)), (vec![], vec!["dev".into(), "pipe".into()]));
        assert_eq!((report.skipped_devices, report.fifos), (3, 1));
    });
    // A link to one replaces what is there too, and is itself one for the next; a name that is used for something else no more.
    let below = [Member::file("one", "in the way"), Member::file("two", "in the way"), Member::file("file", "f")];
    let members = [
        Member::new(b'3', "null"),
        Member::hard_link("one", "null"),
        Member::hard_link("two", "one"),
        Member::hard_link("null", "file"),
        Member::hard_link("again", "null"),
    ];
    good(&[&below, &members], |report, dest| {
        assert_eq!(names(dest), ["again", "file", "null"]);
        assert_eq!((report.skipped_devices, report.hardlinks), (3, 2));
        assert_eq!(text(dest.join("again")), "f");
    });
}

#[test]
fn attributes_of_others_than_the_user_are_dropped() {
    let attributes: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.security.capability", b"\x01"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.x", b"y"),
    ];
    good(
        &[&[Member::pax(attributes), Member::file("f", ""), Member::pax(attributes), Member::dir("d")]],
        |report, _| {
            assert_eq!(report.dropped_xattrs, 6);
        },
    );
}

#[test]
fn names_of_any_bytes_and_lengths() {
    let odd: &[u8] = b"\xff\xfe \n\x1b[31m";
    good(&[&[Member::file(odd, "x")]], |_, dest| {
        assert_eq!(text(dest.join(std::ffi::OsStr::from_bytes(odd))), "x");
    });
    let component = "c".repeat(256);
    bad(&[&[Member::pax(&[("path", component.as_bytes())]), Member::file("f", "")]], &["File name too long"]);
    let long = "d/".repeat(2500);
    bad(&[&[Member::pax(&[("path", long.as_bytes())]), Member::file("f", "")]], &["4999 bytes"]);
    bad(&[&[Member::pax(&[("linkpath", &b"t/".repeat(2500))]), Member::symlink("s", "")]], &["5000 bytes"]);
    bad(&[&[Member::symlink("s", "")]], &["0 bytes"]);
}

#[test]
fn limits() {
    let limits = Limits { bytes: 10_000, entries: 3, depth: 4, ..Limits::default() };
    let refused = |members: &[Member], part: &str| {
        unpack_with(&[members], limits, |result, _| {
            let error = result.unwrap_err();
            assert!(matches!(error, UnpackError::Limit { .. }), "{error}");
            assert!(error.to_string().contains(part), "{error}");
        });
    };
    refused(&[Member::dir("a"), Member::dir("b"), Member::dir("c"), Member::dir("d")], "entries more than the 3");
    refused(&[Member::file("a/b/c/d/e/f", "")], "nested more than the 4");
    refused(&[Member::dir("a/b/c/d"), Member::dir("a/b/c/d/e")], "nested");
    // Deeper by a symlink.
    refused(&[Member::symlink("s", "a/b/c"), Member::dir("a/b/c"), Member::dir("s/d/e")], "nested");
    refused(&[Member::file("f", vec![0; 11_000])], "more than the 10000");
    let huge: &[(&str, &[u8])] = &[("GNU.sparse.size", b"9000000000000000000"), ("GNU.sparse.map", b"0,1")];
    refused(&[Member::pax(huge), Member::file("f", "x")], "more than the 10000");
    let chain: Vec<Member> = (0..50).map(|i| Member::symlink(format!("s{i}"), format!("s{}", i + 1))).collect();
    bad(&[&chain, &[Member::file("s0/f", "")]], &["symbolic links"]);
    bad(&[&[Member::symlink("loop", "loop"), Member::file("loop/f", "")]], &["symbolic links"]);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn run_blob(
    blob: &[u8],
    compression: Compression,
    content: &[u8],
    limits: Limits,
) -> Result<UnpackReport, UnpackError> {
    let mut place = Place::new();
    place.blob(blob, compression, content);
    let result = place.run(limits, false);
    place.assert_untouched();
    result
}

#[test]
fn bombs_are_refused() {
    let limits = Limits { ratio: 100, ratio_from: 1 << 20, ..Limits::default() };
    let content = archive(&[Member::file("zeros", vec![0; 32 << 20])]);
    for (blob, compression) in
        [(gzip(&content), Compression::Gzip), (zstd::encode_all(&content[..], 1).unwrap(), Compression::Zstd)]
    {
        let error = run_blob(&blob, compression, &content, limits).unwrap_err();
        assert!(matches!(error, UnpackError::Limit { .. }), "{error}");
    }
}

#[test]
fn every_compression_members_and_frames() {
    let content = archive(&[Member::file("f", vec![3; 3 << 20]), Member::file("g", "end")]);
    let (first, second) = content.split_at(content.len() / 2);
    let frames = [zstd::encode_all(first, 3).unwrap(), zstd::encode_all(second, 3).unwrap()].concat();
    // As zstd:chunked writes it: a frame that decoders skip.
    let skipped = [&frames[..], &0x184D_2A50_u32.to_le_bytes(), &4_u32.to_le_bytes(), b"meta"].concat();
    for (blob, compression) in [
        (content.clone(), Compression::None),
        (gzip(&content), Compression::Gzip),
        ([gzip(first), gzip(second)].concat(), Compression::Gzip),
        (frames, Compression::Zstd),
        (skipped, Compression::Zstd),
    ] {
        let report = run_blob(&blob, compression, &content, Limits::default()).unwrap();
        assert_eq!((report.files, report.bytes), (2, (3 << 20) + 3));
    }
}

#[test]
fn damage_is_told_apart() {
    let content = archive(&[Member::file("f", vec![3; 1 << 20]), Member::file("g", "end")]);
    let cases: [(Vec<u8>, Compression); 3] = [
        (content.clone(), Compression::None),
        (gzip(&content), Compression::Gzip),
        (zstd::encode_all(&content[..], 3).unwrap(), Compression::Zstd),
    ];
    for (blob, compression) in cases {
        // The image itself names other content.
        let error = run_blob(&blob, compression, b"other", Limits::default()).unwrap_err();
        assert!(matches!(error, UnpackError::WrongContent { .. }), "{error}");
        // The stored blob was cut or changed.
        for change in [blob.len() / 3, blob.len() - 1] {
            let mut place = Place::new();
            place.blob(&blob, compression, &content);
            let mut damaged = blob.clone();
            damaged[change] ^= 0x55;
            fs::write(&place.layers[0].1, &damaged).unwrap();
            let error = place.run(Limits::default(), false).unwrap_err();
            assert!(matches!(error, UnpackError::DamagedBlob { .. }), "{error}");
            let mut place = Place::new();
            place.blob(&blob, compression, &content);
            fs::write(&place.layers[0].1, &blob[..change]).unwrap();
            let error = place.run(Limits::default(), false).unwrap_err();
            assert!(matches!(error, UnpackError::DamagedBlob { .. }), "{error}");
        }
        // The image was made of a cut or prolonged stream.
        if compression != Compression::None {
            for made in [blob[..blob.len() - 3].to_vec(), [&blob[..], b"trailing garbage"].concat()] {
                let error = run_blob(&made, compression, &content, Limits::default()).unwrap_err();
                assert!(matches!(error, UnpackError::Compression { .. }), "{compression:?} {error}");
            }
        }
    }
    let no_archive = b"this is no archive".repeat(100);
    let error = run_blob(&no_archive, Compression::None, &no_archive, Limits::default()).unwrap_err();
    assert!(matches!(error, UnpackError::Archive { .. }), "{error}");
    // An archive cut at a block's border: the image names what is there, or the whole.
    let (part, most) = (&content[..512], &content[..content.len() - 1024]);
    let error = run_blob(part, Compression::None, part, Limits::default()).unwrap_err();
    assert!(error.to_string().contains("cut in a file's data"), "{error}");
    for cut in [part, most] {
        let error = run_blob(cut, Compression::None, &content, Limits::default()).unwrap_err();
        assert!(matches!(error, UnpackError::WrongContent { .. }), "{error}");
    }
}

#[test]
fn only_into_an_empty_directory() {
    let place = Place::new();
    fs::write(place.dest.join("x"), "").unwrap();
    assert!(matches!(place.run(Limits::default(), false), Err(UnpackError::NotEmpty { .. })));
    // The destination's own name may lead through symlinks; only what is below is untrusted.
    let link = place.dir.path().join("link");
    fs::create_dir(place.dir.path().join("real")).unwrap();
    symlink(place.dir.path().join("real"), &link).unwrap();
    let ctx = Ctx::silent();
    Unpacker::new(&link, Limits::default(), 0, &ctx).unwrap().finish().unwrap();
}

#[test]
fn an_interrupt_ends_it() {
    let mut place = Place::new();
    place.layer(&[Member::file("f", "x")]);
    let ctx = Ctx::silent();
    let mut unpacker = Unpacker::new(&place.dest, Limits::default(), 0, &ctx).unwrap();
    ctx.interrupt.set(15);
    let (layer, path) = &place.layers[0];
    assert!(matches!(unpacker.layer(layer, LayerBlob::whole(path.clone()).unwrap()), Err(UnpackError::Interrupted(_))));
}
