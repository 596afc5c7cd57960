//! The same tree as `umoci unpack --rootless`, entry by entry.

use crate::oci::{Blob, Member, Pack, archive, finish_header, image};
use crate::support::{Site, architecture, make_image, make_layer, place_for, run, succeeds};
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
    /// The `user.*` attributes of files and directories.
    attributes: Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let content: String = String::from_utf8_lossy(&self.content).chars().take(60).collect();
        write!(
            f,
            "{}{:o} links {} size {} mtime {:?} {content:?} {:?}",
            self.kind, self.mode, self.links, self.size, self.mtime, self.attributes
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
                attributes: attributes(&path),
            },
        );
    }
    found
}

/// Where umoci writes down an owner that a user cannot give a file; we keep none.
const OWNER: &str = "user.rootlesscontainers";

fn attributes(path: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut names, mut value) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let len = rustix::fs::llistxattr(path, &mut *names).unwrap_or(0);
    let names = names[..len].split(|b| *b == 0).map(|name| String::from_utf8_lossy(name).into_owned());
    names
        .filter(|name| name.starts_with("user."))
        .map(|name| {
            let len = rustix::fs::lgetxattr(path, &*name, &mut *value).unwrap();
            (name, value[..len].to_vec())
        })
        .collect()
}

/// Unpacks the image with umoci and with us; `expected` says which paths may differ.
pub fn compare(site: &Site, source: &str, expected: impl Fn(&Path) -> bool) -> UnpackReport {
    let image = source.strip_prefix("oci:").unwrap();
    let bundle = site.path("bundle");
    run("umoci", ["unpack", "--rootless", "--image", image, bundle.to_str().unwrap()]);
    let dest = site.path("ours");
    fs::create_dir(&dest).unwrap();
    let report = unpack(&site.pull(source).unwrap(), &dest, &Limits::default(), &Ctx::silent()).unwrap();
    let (mut theirs, ours) = (tree(&bundle.join("rootfs")), tree(&dest));
    for seen in theirs.values_mut() {
        seen.attributes.retain(|(name, _)| name != OWNER);
    }
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
    let report = compare(&site, &source, |_| false);
    assert!(site.path("ours/usr/bin/through").exists());
    assert_eq!(report.fifos, 1);
    let sparse = site.path("ours/sparse").metadata().unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "holes stay holes: {} blocks", sparse.blocks());
}

/// Debian suites whose minbase is compared; `tests/deep` says more than one.
const SUITES: &str = "SLURM_FACTORY_TEST_SUITES";

#[test]
fn real_base_images() {
    let suites = std::env::var(SUITES).unwrap_or_else(|_| "bookworm".to_owned());
    for suite in suites.split_whitespace() {
        let site = Site::new();
        // Made once for this target folder; as root or as a user with subordinate ids.
        let (name, tag) = if suite == "bookworm" { ("base-image", "debian12") } else { (suite, "debian13") };
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/make-base-image.sh");
        run("bash", [script.as_os_str(), out.as_os_str(), suite.as_ref()]);
        let source = format!("oci:{}:{tag}", out.join("oci").display());
        let report = compare(&site, &source, |path| {
            // A device becomes an empty file there, and nothing here.
            path.starts_with("dev") && path != Path::new("dev")
        });
        assert_eq!(report.skipped_devices, 8);
        assert!(report.files > 3000, "{report:?}");
    }
}

/// Packages of Debian that every host of the tests has, each a layer as GNU tar makes it of what dpkg put there: set-user-id
/// programs, links of every kind, the same directories again and again. On top what `umoci repack` makes of changes.
#[test]
fn a_real_image_of_packages_with_whiteouts_of_a_real_tool() {
    let site = Site::at(&place_for(50_000));
    let mut layers = Vec::new();
    for package in
        ["base-files", "busybox-static", "bash", "dash", "coreutils", "tzdata", "perl-base", "passwd", "mount"]
    {
        let (list, layer) = (site.path("list"), site.path(&format!("{package}.tar")));
        let files = run("dpkg", ["-L", package]);
        let files: Vec<_> = files.lines().filter(|path| Path::new(path).symlink_metadata().is_ok()).collect();
        assert!(files.len() > 10, "{package} is not installed as a whole");
        fs::write(&list, files.join("\n")).unwrap();
        let (list, to) = (list.to_str().unwrap(), layer.to_str().unwrap());
        // Names with their leading slash, which most tools take away.
        run(
            "tar",
            ["--create", "--absolute-names", "--format=gnu", "--no-recursion", "--files-from", list, "--file", to],
        );
        layers.push(Blob::new(Pack::Gzip, &fs::read(layer).unwrap()));
    }
    let source = image(&site.path("layout"), &layers);
    let report = compare(&site, &source, |_| false);
    assert!(report.files > 500 && report.symlinks > 100 && report.layers == 9, "{report:?}");

    let name = source.strip_prefix("oci:").unwrap();
    let bundle = site.path("changed");
    run("umoci", ["unpack", "--rootless", "--image", name, bundle.to_str().unwrap()]);
    let root = bundle.join("rootfs");
    for gone in ["usr/share/zoneinfo", "usr/share/doc/coreutils"] {
        fs::remove_dir_all(root.join(gone)).unwrap();
    }
    fs::remove_file(root.join("usr/bin/passwd")).unwrap();
    fs::remove_file(root.join("usr/share/doc/tzdata/copyright")).unwrap();
    fs::create_dir_all(root.join("usr/share/zoneinfo/new")).unwrap();
    fs::write(root.join("usr/share/zoneinfo/new/f"), "new").unwrap();
    fs::write(root.join("usr/share/doc/dash"), "a directory was here").err().unwrap();
    fs::remove_dir_all(root.join("usr/share/doc/dash")).unwrap();
    fs::write(root.join("usr/share/doc/dash"), "a directory was here").unwrap();
    set_mode(&root.join("usr/share/doc"), 0o700);
    run(
        "umoci",
        ["repack", "--image", &format!("{}:changed", site.path("layout").display()), bundle.to_str().unwrap()],
    );
    for dir in ["bundle", "ours", "changed"] {
        slurm_factory::fsutil::remove_tree(&site.path(dir)).unwrap();
    }
    let report = compare(&site, &format!("oci:{}:changed", site.path("layout").display()), |_| false);
    assert!(report.whiteouts >= 3 && report.layers == 10, "{report:?}");
    let ours = site.path("ours");
    assert!(!ours.join("usr/bin/passwd").exists() && ours.join("usr/share/zoneinfo/new/f").exists());
}

/// What both make of one layer: the tree, or that it is refused.
fn both(layer: &[Member]) -> [Option<BTreeMap<PathBuf, Seen>>; 2] {
    let site = Site::new();
    let source = image(&site.path("image"), &[Blob::new(Pack::Gzip, &archive(layer))]);
    let bundle = site.path("bundle");
    let args = ["unpack", "--rootless", "--image", source.strip_prefix("oci:").unwrap(), bundle.to_str().unwrap()];
    let theirs = succeeds("umoci", args).then(|| tree(&bundle.join("rootfs")));
    let dest = site.path("ours");
    fs::create_dir(&dest).unwrap();
    let ours =
        unpack(&site.pull(&source).unwrap(), &dest, &Limits::default(), &Ctx::silent()).ok().map(|_| tree(&dest));
    [theirs, ours]
}

/// Each difference that docs/images.md lists, seen on both sides: should either change, the list is wrong.
#[test]
fn where_we_differ_from_umoci_on_purpose() {
    let root = || Member::dir("./");
    let at = |tree: &Option<BTreeMap<PathBuf, Seen>>, path: &str| {
        tree.as_ref().unwrap().get(Path::new(path)).map(|seen| format!("{seen:?}"))
    };

    // Devices cannot be made by a user.
    let [theirs, ours] = both(&[root(), Member::dir("dev"), Member::new(b'3', "dev/null")]);
    assert!(at(&theirs, "dev/null").unwrap().starts_with("f644 links 1 size 0"));
    assert_eq!(at(&ours, "dev/null"), None);

    // The root's time when no layer has an entry for it.
    let [theirs, ours] = both(&[Member::file("f", "")]);
    assert!(at(&theirs, "").unwrap().contains("mtime (0, 0)"));
    assert!(!at(&ours, "").unwrap().contains("mtime (0, 0)"));

    // The root's mode keeps its owner in.
    let [theirs, ours] = both(&[root().mode(0o055)]);
    assert!(at(&theirs, "").unwrap().starts_with("d55 ") && at(&ours, "").unwrap().starts_with("d755 "));

    // Attributes that only root sets, and those that are orders to an overlay mount.
    let [theirs, ours] = both(&[root(), Member::pax(&[("SCHILY.xattr.user.overlay.opaque", b"y")]), Member::dir("d")]);
    assert!(at(&theirs, "d").unwrap().contains("user.overlay.opaque"));
    assert!(!at(&ours, "d").unwrap().contains("user."));

    // Names that climb: taken for the root there.
    for hostile in [Member::file("a/../../f", ""), Member::hard_link("l", "../f")] {
        let [theirs, ours] = both(&[root(), Member::file("f", "f"), hostile]);
        assert!(theirs.is_some() && ours.is_none());
    }

    // A name below a whiteout.
    let [theirs, ours] = both(&[root(), Member::file(".wh.d/f", "")]);
    assert!(at(&theirs, ".wh.d/f").is_some() && ours.is_none());

    // POSIX has contiguous files be files where there is nothing else.
    let [theirs, ours] = both(&[root(), Member { data: b"x".to_vec(), ..Member::new(b'7', "f") }]);
    assert!(theirs.is_none() && at(&ours, "f").is_some());

    // A foreign owner is written down in an attribute there. The generator's files are root's, so this one is changed.
    let mut bytes = Member::file("f", "").bytes();
    bytes[108..116].copy_from_slice(b"0001750\0");
    let header = finish_header(bytes[..512].try_into().unwrap());
    let site = Site::new();
    let content = [&root().bytes()[..], &header, &[0; 1024]].concat();
    let source = image(&site.path("image"), &[Blob::new(Pack::Gzip, &content)]);
    compare(&site, &source, |_| false);
    assert_eq!(attributes(&site.path("bundle/rootfs/f"))[0].0, OWNER);
    assert_eq!(attributes(&site.path("ours/f")), []);
}
