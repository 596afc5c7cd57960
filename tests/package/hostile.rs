//! Archives made to harm: refused when opened, and when something got past that, nothing is written outside.
//!
//! `extract` is given each of them behind a package that was opened whole and then replaced on disk, so that its own
//! care is what is tested.

use crate::util::*;
use slurm_factory::package::{Compression, Manifest, Package, PackageError, Trust};
use slurm_factory::report::Ctx;
use std::io::Write;
use std::path::Path;
use tar::{EntryType, Header};

/// One raw entry; names and targets are written as they are.
fn entry(out: &mut Vec<u8>, kind: EntryType, name: &[u8], target: &[u8], content: &[u8]) {
    entry_with(out, kind, name, target, content, |_| {});
}

fn entry_with(
    out: &mut Vec<u8>,
    kind: EntryType,
    name: &[u8],
    target: &[u8],
    content: &[u8],
    change: impl FnOnce(&mut Header),
) {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_entry_type(kind);
    header.set_mode(0o4777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(content.len() as u64);
    change(&mut header);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn pax(out: &mut Vec<u8>, key: &str, value: &str) {
    let body = format!("{key}={value}\n");
    let length = (1..1 << 20).find(|n| format!("{n} {body}").len() == *n).unwrap();
    entry(out, EntryType::XHeader, b"PaxHeaders/x", b"", format!("{length} {body}").as_bytes());
}

fn gzip(mut tar: Vec<u8>) -> Vec<u8> {
    tar.extend([0; 1024]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar).unwrap();
    encoder.finish().unwrap()
}

const DIR: EntryType = EntryType::Directory;
const FILE: EntryType = EntryType::Regular;
const SYM: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

type Build = fn(&mut Vec<u8>);
type Change = fn(&mut Manifest);

const HOSTILE: [(&str, Build); 22] = [
    ("a name that climbs", |t| entry(t, FILE, b"../evil", b"", b"x")),
    ("a name that climbs later", |t| entry(t, FILE, b"view/../../evil", b"", b"x")),
    ("an absolute name", |t| entry(t, FILE, b"/tmp/slurm-factory-evil", b"", b"x")),
    ("an absolute name in a pax record", |t| {
        pax(t, "path", "/tmp/slurm-factory-evil");
        entry(t, FILE, b"fine", b"", b"x");
    }),
    ("a climbing name in a GNU long name", |t| {
        entry(t, EntryType::GNULongName, b"././@LongLink", b"", b"../evil\0");
        entry(t, FILE, b"fine", b"", b"x");
    }),
    ("a symlink to an absolute place", |t| entry(t, SYM, b"link", b"/tmp", b"")),
    ("a symlink that climbs", |t| entry(t, SYM, b"link", b"../..", b"")),
    ("a symlink that climbs, in a pax record", |t| {
        pax(t, "linkpath", "../../tmp");
        entry(t, SYM, b"link", b"fine", b"");
    }),
    ("a file through a symlink that stays inside", |t| {
        entry(t, DIR, b"view/", b"", b"");
        entry(t, SYM, b"link", b"view", b"");
        entry(t, FILE, b"link/evil", b"", b"x");
    }),
    ("a chain of links that adds up to a climb", |t| {
        entry(t, DIR, b"a/", b"", b"");
        entry(t, DIR, b"a/b/", b"", b"");
        entry(t, SYM, b"a/b/up", b"..", b"");
        entry(t, SYM, b"out", b"a/b/up/../..", b"");
        entry(t, FILE, b"out/evil", b"", b"x");
    }),
    ("a folder through a symlink", |t| {
        entry(t, DIR, b"view/", b"", b"");
        entry(t, SYM, b"link", b"view", b"");
        entry(t, DIR, b"link/evil/", b"", b"");
    }),
    ("a folder made a symlink after", |t| {
        entry(t, DIR, b"view/", b"", b"");
        entry(t, SYM, b"view", b"other", b"");
    }),
    ("a file over a symlink", |t| {
        entry(t, SYM, b"x", b"y", b"");
        entry(t, FILE, b"x", b"", b"x");
    }),
    ("a file twice", |t| {
        entry(t, FILE, b"x", b"", b"1");
        entry(t, FILE, b"x", b"", b"2");
    }),
    ("a hard link to the system", |t| entry(t, HARD, b"x", b"/etc/passwd", b"")),
    ("a hard link that climbs", |t| entry(t, HARD, b"x", b"../../etc/passwd", b"")),
    ("a hard link to a symlink", |t| {
        entry(t, SYM, b"l", b"nowhere", b"");
        entry(t, HARD, b"x", b"l", b"");
    }),
    ("a hard link to nothing", |t| entry(t, HARD, b"x", b"not-there", b"")),
    ("a device", |t| entry(t, EntryType::Char, b"null", b"", b"")),
    ("a pipe", |t| entry(t, EntryType::Fifo, b"pipe", b"", b"")),
    ("a record that claims gigabytes", |t| {
        entry_with(t, EntryType::XHeader, b"x", b"", b"", |h| h.set_size(8 << 30));
    }),
    ("a file that claims more than there is", |t| {
        pax(t, "size", "18446744073709551615");
        entry(t, FILE, b"x", b"", b"x");
    }),
];

#[test]
fn nothing_is_written_outside_and_nothing_stays() {
    let ctx = Ctx::silent();
    for (what, build) in HOSTILE {
        let made = make(Compression::GZIP);
        let path = made.path();
        std::fs::remove_file(made.package.beside().sums).unwrap();
        let mut tar = Vec::new();
        build(&mut tar);
        std::fs::write(&path, gzip(tar)).unwrap();
        Package::open(&path, Trust::Skip, &ctx).expect_err(what);

        // The target lies two folders deep; whatever climbs shows beside it.
        let around = made.dir.path().join("around");
        let target = around.join("deep/target");
        std::fs::create_dir_all(around.join("deep")).unwrap();
        let error = made.package.extract(&target, &ctx).expect_err(what);
        let left: Vec<_> = walkdir::WalkDir::new(&around).into_iter().map(|e| e.unwrap().into_path()).collect();
        assert_eq!(left, [around.clone(), around.join("deep")], "{what}: {error}");
        assert!(!Path::new("/tmp/slurm-factory-evil").exists(), "{what}");
        // Also when the folder is given, as install does.
        let given = around.join("deep/given");
        std::fs::create_dir(&given).unwrap();
        made.package.extract_into(&given, &ctx).expect_err(what);
        let outside: Vec<_> = walkdir::WalkDir::new(&around)
            .into_iter()
            .map(|e| e.unwrap().into_path())
            .filter(|p| !p.starts_with(&given))
            .collect();
        assert_eq!(outside, [around.clone(), around.join("deep")], "{what}");
    }
}

/// The package's own archive with its manifest changed or other entries put before it.
fn rebuilt(made: &Made, change: impl FnOnce(&mut Manifest), before: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let plain = run(tool("gzip", "gzip").arg("-dc").arg(made.path())).stdout;
    let mut manifest = made.package.manifest().clone();
    change(&mut manifest);
    // The manifest is the last member: its header is the last that has its name.
    let at = memchr::memmem::rfind(&plain, b"manifest.json\0").unwrap();
    let mut tar = plain[..at].to_vec();
    before(&mut tar);
    entry(&mut tar, FILE, b"manifest.json", b"", &manifest.to_bytes().unwrap());
    gzip(tar)
}

#[test]
fn an_archive_that_is_not_what_its_manifest_says_is_refused() {
    let ctx = Ctx::silent();
    let cases: [(&str, Change, Build); 6] = [
        ("it is not listed", |_| {}, |t| entry(t, FILE, b"extra", b"", b"x")),
        ("it is not listed", |m| drop(m.files.pop()), |_| {}),
        ("it is missing", |m| m.files[0].path = "gone".into(), |_| {}),
        ("differs", |m| flip_sum(m), |_| {}),
        (
            "of another kind",
            |m| m.files[0].kind = slurm_factory::package::FileKind::Symlink { target: "x".into() },
            |_| {},
        ),
        ("twice", |_| {}, |t| entry(t, FILE, b"manifest.json", b"", b"{\"format\":1}")),
    ];
    for (want, change, before) in cases {
        let made = make(Compression::GZIP);
        let bytes = rebuilt(&made, change, before);
        std::fs::remove_file(made.package.beside().sums).unwrap();
        std::fs::write(made.path(), bytes).unwrap();
        let error = Package::open(&made.path(), Trust::Skip, &ctx).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(want) || want == "twice" && text.contains("malformed"), "{want}: {text}");
        assert!(made.package.extract(&made.dir.path().join("out"), &ctx).is_err());
    }
}

fn flip_sum(manifest: &mut Manifest) {
    for file in &mut manifest.files {
        if let slurm_factory::package::FileKind::File { sha256, .. } = &mut file.kind {
            *sha256 = "0".repeat(64);
            return;
        }
    }
}

#[test]
fn a_newer_format_says_so() {
    let made = make(Compression::GZIP);
    let bytes = rebuilt(&made, |m| m.format = 99, |_| {});
    std::fs::remove_file(made.package.beside().sums).unwrap();
    std::fs::write(made.path(), bytes).unwrap();
    let error = Package::open(&made.path(), Trust::Skip, &Ctx::silent()).unwrap_err();
    assert!(error.to_string().contains("use a newer one"), "{error}");
}

#[test]
fn damage_is_found_or_does_no_harm() {
    let ctx = Ctx::silent();
    for compression in [Compression::GZIP, Compression::ZSTD] {
        let made = make(compression);
        let bytes = std::fs::read(made.path()).unwrap();
        std::fs::remove_file(made.package.beside().sums).unwrap();
        // A fixed sequence: a failure can be run again.
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..60 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = usize::try_from(seed >> 20).unwrap() % bytes.len();
            let mut broken = bytes.clone();
            broken[at] ^= 1 << (seed % 8);
            std::fs::write(made.path(), &broken).unwrap();
            if let Ok((opened, _)) = Package::open(&made.path(), Trust::Skip, &ctx) {
                assert_eq!(opened.manifest(), made.package.manifest(), "byte {at}");
            }
        }
    }
}

#[test]
fn nothing_is_unpacked_over_what_is_there() {
    let made = make(Compression::GZIP);
    let dir = made.dir.path().join("full");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("mine"), "mine").unwrap();
    let error = made.package.extract(&dir, &Ctx::silent()).unwrap_err();
    assert!(matches!(error, PackageError::NotEmpty { .. }), "{error}");
    let empty = made.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    made.package.extract(&empty, &Ctx::silent()).unwrap();
    assert!(empty.join("view/bin/sinfo").is_file());
}

#[test]
fn special_bits_and_odd_modes_do_not_come_out() {
    use std::os::unix::fs::PermissionsExt;
    let made = make(Compression::GZIP);
    let bytes = rebuilt(
        &made,
        |m| {
            m.files.push(slurm_factory::package::FileEntry {
                path: "setuid".into(),
                kind: slurm_factory::package::FileKind::File {
                    size: 1,
                    mode: "0755".into(),
                    sha256: "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881".into(),
                },
            });
        },
        |t| entry(t, FILE, b"setuid", b"", b"x"),
    );
    let beside = made.package.beside();
    for file in [beside.sums, beside.provenance] {
        std::fs::remove_file(file).unwrap();
    }
    std::fs::write(made.path(), bytes).unwrap();
    let (package, _) = Package::open(&made.path(), Trust::Skip, &Ctx::silent()).unwrap();
    let out = made.dir.path().join("out");
    package.extract(&out, &Ctx::silent()).unwrap();
    assert_eq!(out.join("setuid").metadata().unwrap().permissions().mode() & 0o7777, 0o755);
}
