//! The same tree as `umoci unpack --rootless`, entry by entry.

use crate::support::{Site, architecture, make_image, make_layer, run};
use fs_err as fs;
use slurm_factory::report::Ctx;
use slurm_factory::rootfs::{Limits, UnpackReport, unpack};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What is compared of an entry. Times of directories that no layer names are left out.
#[derive(PartialEq, Eq)]
struct Seen {
    kind: char,
    mode: u32,
    links: u64,
    size: u64,
    mtime: (i64, i64),
    content: Vec<u8>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let content: String = String::from_utf8_lossy(&self.content).chars().take(60).collect();
        write!(
            f,
            "{}{:o} links {} size {} mtime {:?} {content:?}",
            self.kind, self.mode, self.links, self.size, self.mtime
        )
    }
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let (kind, content) = if kind.is_symlink() {
            ('l', fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
        } else if kind.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            ('d', Vec::new())
        } else if kind.is_file() {
            // A file that its owner may not read: its size and mode are compared.
            ('f', fs::read(&path).unwrap_or_default())
        } else if kind.is_fifo() {
            ('p', Vec::new())
        } else {
            ('?', Vec::new())
        };
        let is_dir = kind == 'd';
        found.insert(
            path.strip_prefix(root).unwrap().to_owned(),
            Seen {
                kind,
                mode: if kind == 'l' { 0 } else { meta.mode() & 0o7777 },
                links: if is_dir { 0 } else { meta.nlink() },
                size: if is_dir { 0 } else { meta.size() },
                mtime: (meta.mtime(), meta.mtime_nsec()),
                content,
            },
        );
    }
    found
}

/// Unpacks the image with umoci and with us; `expected` says which paths may differ.
fn compare(site: &Site, source: &str, expected: impl Fn(&Path) -> bool) -> UnpackReport {
    let image = source.strip_prefix("oci:").unwrap();
    let bundle = site.path("bundle");
    run("umoci", ["unpack", "--rootless", "--image", image, bundle.to_str().unwrap()]);
    let dest = site.path("ours");
    fs::create_dir(&dest).unwrap();
    let report = unpack(&site.pull(source).unwrap(), &dest, &Limits::default(), &Ctx::silent()).unwrap();
    let (theirs, ours) = (tree(&bundle.join("rootfs")), tree(&dest));
    let mut differences = Vec::new();
    for path in theirs.keys().chain(ours.keys()).collect::<std::collections::BTreeSet<_>>() {
        if theirs.get(path) != ours.get(path) && !expected(path) {
            differences.push(format!(
                "{}:\n  umoci {:?}\n  ours  {:?}",
                path.display(),
                theirs.get(path),
                ours.get(path)
            ));
        }
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
    report
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_made_image_with_every_kind_of_entry() {
    let site = Site::new();
    let long = "n".repeat(200);
    let base = make_layer(&site, "base", |tree| {
        for dir in ["usr/bin", "usr/lib", "etc/gone", "etc/opaque/sub", "deep", "closed", "kept/old"] {
            fs::create_dir_all(tree.join(dir)).unwrap();
        }
        symlink("usr/lib", tree.join("lib")).unwrap();
        symlink("/usr/bin", tree.join("bin")).unwrap();
        symlink("nowhere/at/all", tree.join("dangling")).unwrap();
        fs::write(tree.join("usr/bin/su"), "setuid").unwrap();
        set_mode(&tree.join("usr/bin/su"), 0o4755);
        fs::hard_link(tree.join("usr/bin/su"), tree.join("usr/bin/su2")).unwrap();
        fs::write(tree.join("etc/gone/f"), "f").unwrap();
        fs::write(tree.join("etc/opaque/f"), "f").unwrap();
        fs::write(tree.join("etc/opaque/sub/f"), "f").unwrap();
        fs::write(tree.join("etc/replaced"), "file, later a directory").unwrap();
        set_mode(&tree.join("deep"), 0o1777);
        set_mode(&tree.join("usr/lib"), 0o2755);
        let long_dir = tree.join("deep").join(&long);
        fs::create_dir_all(&long_dir).unwrap();
        fs::write(long_dir.join(&long), "long").unwrap();
        symlink(&long, long_dir.join("link")).unwrap();
        fs::write(tree.join(std::ffi::OsStr::from_bytes(b"not-\xff-utf8")), "x").unwrap();
        fs::write(tree.join("gr\u{fc}n \u{1f332}"), "x").unwrap();
        let sparse = fs::File::create(tree.join("sparse")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(sparse.file(), b"middle", 3 << 20).unwrap();
        sparse.set_len(10 << 20).unwrap();
        fs::write(tree.join("closed/inside"), "x").unwrap();
        set_mode(&tree.join("closed"), 0o500);
        run("mkfifo", [tree.join("pipe")]);
        let old = fs::File::open(tree.join("etc/replaced")).unwrap();
        old.set_modified(SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789)).unwrap();
    });
    let middle = make_layer(&site, "middle", |tree| {
        for dir in ["etc/replaced", "etc/opaque/new", "lib", "closed"] {
            fs::create_dir_all(tree.join(dir)).unwrap();
        }
        fs::write(tree.join("etc/.wh.gone"), "").unwrap();
        fs::write(tree.join("etc/opaque/.wh..wh..opq"), "").unwrap();
        fs::write(tree.join("etc/opaque/new/f"), "new").unwrap();
        fs::write(tree.join("etc/replaced/f"), "in a directory").unwrap();
        fs::write(tree.join("lib/own"), "lib is a directory now").unwrap();
        fs::write(tree.join("kept"), "was a directory").unwrap();
        fs::write(tree.join("closed/more"), "x").unwrap();
        set_mode(&tree.join("closed"), 0o555);
    });
    // By hand: through a symlink of a lower layer, and a file that a user could not read to archive it.
    let top = site.path("top.tar");
    let mut archive = tar::Builder::new(fs::File::create(&top).unwrap());
    for (name, mode) in [("bin/through", 0o644), ("etc/closed-file", 0)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(mode);
        header.set_mtime(5);
        archive.append_data(&mut header, name, &b"data"[..]).unwrap();
    }
    archive.finish().unwrap();

    let source = make_image(&site, "layout", "t", architecture(), &[base, middle, top]);
    // A directory that no layer has an entry for anew got its time from what was put inside.
    let report = compare(&site, &source, |path| path == Path::new("usr/bin"));
    assert!(site.path("ours/usr/bin/through").exists());
    assert_eq!(report.fifos, 1);
    let sparse = site.path("ours/sparse").metadata().unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "holes stay holes: {} blocks", sparse.blocks());
}

#[test]
fn a_real_base_image() {
    let site = Site::new();
    // Made once for this target folder; as root or as a user with subordinate ids.
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("base-image");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/make-base-image.sh");
    run("bash", [script.as_os_str(), out.as_os_str()]);
    let source = format!("oci:{}:debian12", out.join("oci").display());
    let report = compare(&site, &source, |path| {
        // A device becomes an empty file there, and nothing here.
        path.starts_with("dev") && path != Path::new("dev")
    });
    assert_eq!(report.skipped_devices, 8);
    assert!(report.files > 3000, "{report:?}");
}
