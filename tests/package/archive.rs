//! The archive: the same bytes for the same tree, readable by every reader, whole or not there.

use crate::util::*;
use slurm_factory::package::{Beside, Compression, Content, FileKind, Named, Package, PackageError, Trust};
use slurm_factory::report::Ctx;
use slurm_factory::sign::{Keyring, SignError};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const BOTH: [Compression; 2] = [Compression::GZIP, Compression::ZSTD];

fn tar_x(archive: &Path, dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    tool("zstd", "zstd");
    run(tool("tar", "tar").arg("-xf").arg(archive).arg("-C").arg(dir).arg("--no-same-owner"));
}

#[test]
fn gnu_tar_and_our_own_reader_unpack_the_same_tree() {
    for compression in BOTH {
        let made = make(compression);
        let (theirs, ours) = (made.dir.path().join("theirs"), made.dir.path().join("ours"));
        tar_x(&made.path(), &theirs);
        made.package.extract(&ours, &Ctx::silent()).unwrap();
        // Times of folders are the only thing that we leave to the clock, and a snapshot has none of them.
        assert_eq!(snapshot(&theirs), snapshot(&ours));
        let mut top: Vec<_> = std::fs::read_dir(&ours).unwrap().map(|e| e.unwrap().file_name()).collect();
        top.sort();
        assert_eq!(top, ["data", "manifest.json", "modules", "view"]);
        let output = stdout(&mut std::process::Command::new(ours.join("view/sbin/also-sinfo")));
        assert_eq!(output, "sinfo here\n");
        let mode = ours.join("view/sbin/slurmd").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }
}

#[test]
fn python_gzip_and_zstd_agree_with_gnu_tar() {
    let made = make(Compression::GZIP);
    run(tool("gzip", "gzip").arg("-t").arg(made.path()));
    let script = "import sys, tarfile, hashlib\n\
        for m in tarfile.open(sys.argv[1]):\n\
        \x20   assert (m.uid, m.gid, m.uname, m.gname, m.mtime) == (0, 0, '', '', 1700000000), m.name\n\
        \x20   data = tarfile.open(sys.argv[1]).extractfile(m).read() if m.isfile() and m.size < 1000 else b''\n\
        \x20   print(m.name.encode('utf-8', 'surrogateescape').hex(), oct(m.mode), m.size, hashlib.sha256(data).hexdigest())\n";
    let listing = stdout(tool("python3", "python3").args(["-c", script]).arg(made.path()));
    let entries = made.package.manifest().files.len() + 1;
    assert_eq!(listing.lines().count(), entries);
    assert!(listing.contains(&hex::encode(b"view/share/caf\xe9")), "{listing}");
    let zst = make(Compression::ZSTD);
    run(tool("zstd", "zstd").args(["-t", "-q"]).arg(zst.path()));
    for (path, program) in [(made.path(), "gzip"), (zst.path(), "zstd")] {
        let plain = run(tool(program, program).args(["-dc"]).arg(&path)).stdout;
        std::fs::write(made.dir.path().join(program), plain).unwrap();
        let names = stdout(tool("tar", "tar").arg("-tf").arg(made.dir.path().join(program)));
        assert_eq!(names.lines().count(), entries);
        assert_eq!(names.lines().last(), Some("manifest.json"), "the manifest closes the archive");
    }
}

#[test]
fn the_sums_and_the_signature_are_good_for_sha256sum_and_gpg() {
    let gpg = Gpg::new();
    gpg.import(key().public_armored().unwrap().as_bytes());
    for compression in BOTH {
        let made = make(compression);
        let beside = made.package.beside();
        let dir = made.path().parent().unwrap().to_owned();
        run(tool("sha256sum", "coreutils").current_dir(dir).arg("-c").arg(beside.sums.file_name().unwrap()));
        let status = gpg.verify(&beside.signature, &made.path());
        assert!(status.contains(&format!("VALIDSIG {}", key().fingerprint())), "{status}");
        assert_eq!(made.signed.fingerprint(), &key().fingerprint());
        let inside = made.dir.path().join("inside");
        tar_x(&made.path(), &inside);
        assert_eq!(std::fs::read(inside.join("manifest.json")).unwrap(), std::fs::read(beside.manifest).unwrap());
    }
}

#[test]
fn the_same_tree_gives_the_same_bytes_wherever_whenever_and_with_any_number_of_threads() {
    for compression in BOTH {
        let one = make_with(compression, 1, |_| {});
        let other = make_with(compression, 4, |tree| {
            // Other times, other umask, other owner where we may, another order on disk.
            for entry in walkdir::WalkDir::new(tree).contents_first(true) {
                let path = entry.unwrap().into_path();
                run(tool("touch", "coreutils").args(["-h", "-d", "2001-02-03"]).arg(&path));
                if !path.is_symlink() {
                    let mode = path.metadata().unwrap().permissions().mode();
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode & 0o700 | 0o022)).unwrap();
                }
                if rustix::process::geteuid().is_root() {
                    std::os::unix::fs::lchown(&path, Some(1234), Some(4321)).unwrap();
                }
            }
            let aside = tree.join("share/moved");
            std::fs::rename(tree.join("share/empty-file"), &aside).unwrap();
            std::fs::rename(&aside, tree.join("share/empty-file")).unwrap();
        });
        assert_eq!(one.package.sha256(), other.package.sha256());
        assert_eq!(std::fs::read(one.path()).unwrap(), std::fs::read(other.path()).unwrap());
    }
}

#[test]
fn the_manifest_lists_everything() {
    let made = make(Compression::GZIP);
    let manifest = made.package.manifest();
    let find = |path: &str| &manifest.files.iter().find(|f| f.path == path).unwrap_or_else(|| panic!("{path}")).kind;
    assert_eq!(find("view/empty"), &FileKind::Dir);
    assert_eq!(find("view/lib/libslurm.so"), &FileKind::Symlink { target: "libslurm.so.42".into() });
    assert_eq!(find("view/bin/sinfo-too"), &FileKind::Hardlink { target: "view/bin/sinfo".into() });
    assert!(matches!(find(r"view/share/caf\xe9"), FileKind::File { size: 10, .. }));
    let FileKind::File { size, mode, sha256 } = find("view/bin/sinfo") else { panic!() };
    assert_eq!((*size, mode.as_str()), (26, "0755"));
    let sum = stdout(tool("sha256sum", "coreutils").arg(made.dir.path().join("tree/bin/sinfo")));
    assert!(sum.starts_with(sha256.as_str()));
    assert_eq!(
        manifest.totals.files + manifest.totals.dirs + manifest.totals.symlinks + manifest.totals.hardlinks,
        manifest.files.len() as u64
    );
    let text = serde_json::to_value(manifest).unwrap();
    assert_eq!(text["slurm"]["release"], "24.11.5");
    assert_eq!(text["format"], 1);
    assert_eq!(text["archive"]["compression"]["method"], "gzip");
}

#[test]
fn set_user_id_bits_are_left_out() {
    let made = make_with(Compression::GZIP, 0, |tree| {
        std::fs::set_permissions(tree.join("bin/sinfo"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    });
    let listing = stdout(tool("tar", "tar").arg("-tvf").arg(made.path()));
    let line = listing.lines().find(|l| l.ends_with("view/bin/sinfo")).unwrap();
    assert!(line.starts_with("-rwxr-xr-x"), "{line}");
}

#[test]
fn what_cannot_be_packed_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let builds = dir.path().join("builds");
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(tree.join("sock")).unwrap();
    let error = create(&builds, contents(&tree), Compression::GZIP, 0).unwrap_err();
    assert!(matches!(error, PackageError::Unsupported { .. }) && error.to_string().contains("sock"), "{error}");
    drop(socket);
    std::fs::remove_file(tree.join("sock")).unwrap();
    for target in ["/etc/passwd", "../../outside"] {
        std::os::unix::fs::symlink(target, tree.join("link")).unwrap();
        let error = create(&builds, contents(&tree), Compression::GZIP, 0).unwrap_err();
        assert!(matches!(error, PackageError::LinkOutside { .. }) && error.to_string().contains(target), "{error}");
        std::fs::remove_file(tree.join("link")).unwrap();
    }
    let missing = vec![Content::Tree { root: tree.join("no-such"), name: "view".into() }];
    assert!(create(&builds, missing, Compression::GZIP, 0).unwrap_err().to_string().contains("no-such"));
    let left: Vec<_> = walkdir::WalkDir::new(&builds)
        .into_iter()
        .map(|e| e.unwrap().into_path())
        .filter(|p| p.is_file() && !p.starts_with(builds.join(".cache")))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn open_takes_only_what_is_whole() {
    let ctx = Ctx::silent();
    for compression in BOTH {
        let made = make(compression);
        let path = made.path();
        let (opened, good) = Package::open(&path, Trust::Skip, &ctx).unwrap();
        assert_eq!((opened.sha256(), opened.manifest()), (made.package.sha256(), made.package.manifest()));
        assert!(good.is_empty());
        let bytes = std::fs::read(&path).unwrap();
        let beside = Beside::of(&path);
        // Any change is caught by the sum.
        let mut broken = bytes.clone();
        let middle = broken.len() / 2;
        broken[middle] ^= 1;
        std::fs::write(&path, &broken).unwrap();
        let error = Package::open(&path, Trust::Skip, &ctx).unwrap_err();
        let text = error.to_string();
        assert!(!matches!(error, PackageError::SumMismatch { .. }) || text.contains(made.package.sha256()), "{text}");
        // Without the sum, by the compression's own, or by the manifest.
        std::fs::remove_file(&beside.sums).unwrap();
        for length in [0, 3, 100, bytes.len() / 3, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(Package::open(&path, Trust::Skip, &ctx).is_err(), "cut at {length}");
        }
        std::fs::write(&path, &broken).unwrap();
        assert!(Package::open(&path, Trust::Skip, &ctx).is_err());
        std::fs::write(&path, b"PK\x03\x04 something else").unwrap();
        let error = Package::open(&path, Trust::Skip, &ctx).unwrap_err();
        assert!(matches!(error, PackageError::NotAPackage { .. }), "{error}");
        std::fs::write(&path, &bytes).unwrap();
        Package::open(&path, Trust::Skip, &ctx).unwrap();
    }
}

#[test]
fn signatures_are_asked_for_as_trust_says() {
    let ctx = Ctx::silent();
    let made = make(Compression::GZIP);
    let path = made.path();
    let mut trusted = Keyring::new();
    trusted.add_key(key());
    let (_, good) = Package::open(&path, Trust::Require(&trusted), &ctx).unwrap();
    assert_eq!(good[0].fingerprint, key().fingerprint());

    let error = Package::open(&path, Trust::Require(&Keyring::new()), &ctx).unwrap_err();
    assert!(matches!(error, PackageError::Sign(SignError::UnknownSigner { .. })), "{error}");
    assert!(error.to_string().contains(key().fingerprint().as_str()), "{error}");

    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = Package::open(&path, Trust::Require(&trusted), &ctx).unwrap_err();
    assert!(matches!(error, PackageError::Sign(SignError::BadSignature { .. })), "{error}");

    std::fs::write(made.signed.signature(), "not a signature").unwrap();
    let error = Package::open(&path, Trust::Require(&trusted), &ctx).unwrap_err();
    assert!(matches!(error, PackageError::Sign(SignError::NoSignature { .. })), "{error}");
    std::fs::remove_file(made.signed.signature()).unwrap();
    let error = Package::open(&path, Trust::Require(&trusted), &ctx).unwrap_err();
    assert!(matches!(error, PackageError::NotSigned { .. }), "{error}");
}

#[test]
fn a_package_is_signed_by_several() {
    use slurm_factory::sign::Others;
    let made = make(Compression::GZIP);
    let fresh = slurm_factory::sign::generate("Other", "", None, slurm_factory::sign::Algorithm::Ed25519).unwrap();
    let other = slurm_factory::sign::SigningKey::from_bytes("it", &fresh.secret, None).unwrap();
    let ctx = Ctx::silent();
    let open = |keys: &[&slurm_factory::sign::SigningKey], all: bool| {
        let mut trusted = Keyring::new();
        for key in keys {
            trusted.add_key(key);
        }
        let trust = if all { Trust::RequireAll(&trusted) } else { Trust::Require(&trusted) };
        Package::open(&made.path(), trust, &ctx).map(|(_, good)| good.len())
    };
    let error = open(&[key(), &other], true).unwrap_err();
    assert!(error.to_string().contains(other.fingerprint().as_str()), "{error}");
    // Twice by the same key is once.
    for _ in 0..2 {
        made.package.sign(&other, Others::Keep, &ctx).unwrap();
    }
    assert_eq!(open(&[key(), &other], true).unwrap(), 2);
    assert_eq!(open(&[key()], false).unwrap(), 1);
    assert_eq!(open(&[&other], false).unwrap(), 1);
    // gpg reads them all.
    let gpg = Gpg::new();
    gpg.import(fresh.public.as_bytes());
    gpg.import(key().public_armored().unwrap().as_bytes());
    let status = gpg.verify(made.signed.signature(), &made.path());
    for by in [key(), &other] {
        assert!(status.contains(&format!("VALIDSIG {}", by.fingerprint())), "{status}");
    }
    // One that is of something else spoils the whole, as it does for gpg.
    let good = std::fs::read(made.signed.signature()).unwrap();
    let (_, stray) = slurm_factory::sign::sign_reader(key(), &b"something else"[..]).unwrap();
    let mixed = slurm_factory::sign::join("it", &good, &stray.armored, &key().signing_fingerprint()).unwrap();
    std::fs::write(made.signed.signature(), mixed).unwrap();
    let error = open(&[key(), &other], false).unwrap_err();
    assert!(matches!(error, PackageError::Sign(SignError::BadSignature { .. })), "{error}");
    let signed = made.package.sign(&other, Others::Replace, &ctx).unwrap();
    assert_eq!(open(&[&other], true).unwrap(), 1);
    assert!(open(&[key()], false).is_err());
    let status = gpg.verify(signed.signature(), &made.path());
    assert_eq!(status.matches("VALIDSIG").count(), 1, "{status}");
    std::fs::write(made.path(), "something else").unwrap();
    assert!(matches!(made.package.sign(&other, Others::Keep, &ctx), Err(PackageError::Changed { .. })));
}

#[test]
fn entries_are_walked_without_unpacking() {
    let made = make(Compression::ZSTD);
    let mut seen = Vec::new();
    made.package
        .for_each_entry::<PackageError>(&Ctx::silent(), |entry| {
            let mut content = Vec::new();
            entry.content.read_to_end(&mut content).map_err(PackageError::Io)?;
            seen.push((entry.member.path.clone(), content.len()));
            Ok(())
        })
        .unwrap();
    assert!(seen.contains(&("view/bin/sinfo".into(), 26)));
    assert_eq!(seen.last().unwrap().0, Path::new("manifest.json"));
}

#[test]
fn an_interrupt_ends_writing_and_reading_and_leaves_no_package() {
    let ctx = Ctx::silent();
    let made = make(Compression::GZIP);
    ctx.interrupt.set(15);
    let error = Package::open(&made.path(), Trust::Skip, &ctx).unwrap_err();
    assert!(matches!(error, PackageError::Interrupted(_)), "{error}");
    let out = made.dir.path().join("out");
    assert!(matches!(made.package.extract(&out, &ctx), Err(PackageError::Interrupted(_))));
    assert!(!out.exists());
}

/// Not a test: what [`a_killed_writer_leaves_no_package_that_is_not_whole`] kills.
#[test]
#[ignore = "started by another test"]
fn child_that_writes() {
    let dir = std::path::PathBuf::from(std::env::var_os("PACKAGE_TEST_DIR").unwrap());
    create(&dir.join("builds"), contents(&dir.join("tree")), Compression::GZIP, 1).unwrap();
}

#[test]
fn a_killed_writer_leaves_no_package_that_is_not_whole() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    let start = || {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "archive::child_that_writes", "--ignored", "--test-threads=1"]);
        command.env("PACKAGE_TEST_DIR", dir.path()).stdout(std::process::Stdio::null());
        command
    };
    let begun = std::time::Instant::now();
    run(&mut start());
    let whole = begun.elapsed();
    let path = dir.path().join("builds").join(name().archive(Compression::GZIP));
    let rounds = 20_u32;
    for round in 0..rounds {
        // Half of them replace a package, half make the first.
        if round % 2 == 0 {
            let _ = std::fs::remove_file(&path);
        }
        let mut child = start().spawn().unwrap();
        std::thread::sleep(whole * round / rounds);
        child.kill().unwrap();
        child.wait().unwrap();
        if path.exists() {
            Package::open(&path, Trust::Skip, &Ctx::silent()).unwrap();
        }
    }
    // The next run takes away what the killed ones left.
    run(&mut start());
    let left: Vec<_> = std::fs::read_dir(dir.path().join("builds"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with(".tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let beside = Beside::of(&path);
    assert!([path, beside.sums, beside.signature, beside.manifest].iter().all(|p| p.is_file()));
}

#[test]
fn the_formats_page_names_every_field() {
    fn fields(value: &serde_json::Value, out: &mut std::collections::BTreeSet<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    out.insert(key.clone());
                    fields(value, out);
                }
            }
            serde_json::Value::Array(list) => list.iter().for_each(|v| fields(v, out)),
            _ => {}
        }
    }
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/formats.md")).unwrap();
    let mut manifest = make(Compression::GZIP).package.manifest().clone();
    manifest.facts.options.clear();
    manifest.facts.glibc = Some(slurm_factory::package::manifest::GlibcFloor::default());
    manifest.facts.packages[0].build_only = true;
    manifest.facts.packages[0].source.as_mut().unwrap().commit = Some(String::new());
    manifest.facts.leaks = vec![slurm_factory::package::manifest::Leak::default()];
    let mut names = std::collections::BTreeSet::new();
    fields(&serde_json::to_value(&manifest).unwrap(), &mut names);
    names.extend(["options", "view", "archive_sha256", "signed_by"].map(str::to_owned));
    let missing: Vec<_> = names.iter().filter(|n| !page.contains(&format!("`{n}`"))).collect();
    assert!(missing.is_empty(), "docs/formats.md does not explain {missing:?}");
    assert!(page.contains(&format!("format {}", manifest.format)));
}
