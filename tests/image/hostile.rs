//! Layers that no honest tool writes, from a layout on disk through the store into a tree: a clear error or the right
//! result, nothing changed around the tree, nothing left in the store that is not what its name says, and the next image
//! is pulled and unpacked as if nothing had been.

use crate::oci::{Blob, INDEX, Layout, MANIFEST, Member, PACKS, Pack, archive, finish_header, image};
use crate::protocol::{answer, serve};
use crate::support::{Registry, Site, contains, count, place_for, run};
use crate::user::User;
use fs_err as fs;
use serde_json::json;
use slurm_factory::image::{Digest, ImageError};
use slurm_factory::report::Ctx;
use slurm_factory::rootfs::{Limits, UnpackReport, unpack};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// What no layer may reach has this name.
const CANARY: &str = "canary-of-hostile-layers";

/// A tree to unpack into, in the middle of things that must stay as they are.
pub struct Ground {
    pub site: Site,
    good: String,
}

impl Ground {
    pub fn new() -> Self {
        Self::at(&place_for(1000))
    }

    pub fn at(parent: &Path) -> Self {
        let site = Site::at(parent);
        for dir in ["around/here", "around/beside/sub"] {
            fs::create_dir_all(site.path(dir)).unwrap();
        }
        for file in [CANARY, "around/beside/f", "around/beside/sub/f", "around/here/etc"] {
            fs::write(site.path(file), "alive").unwrap();
        }
        for dir in ["around", "around/here"] {
            fs::write(site.path(dir).join(CANARY), "alive").unwrap();
            symlink(CANARY, site.path(dir).join("link")).unwrap();
        }
        let content = archive(&[Member::dir("etc"), Member::file("etc/good", "good")]);
        let good = image(&site.path("good"), &[Blob::new(Pack::Gzip, &content)]);
        Self { site, good }
    }

    pub fn dest(&self) -> PathBuf {
        self.site.path("around/here/rootfs")
    }

    /// Everything but the cache, the images and what is inside the tree; and what would be in the places that `..`, `/` and
    /// the working directory mean to a careless program.
    fn outside(&self) -> BTreeMap<PathBuf, String> {
        let skip = [self.site.path("cache"), self.site.path("image"), self.site.path("good"), self.dest()];
        let mut found = BTreeMap::new();
        let walk = walkdir::WalkDir::new(self.site.dir.path()).into_iter();
        for entry in walk.filter_entry(|e| !skip.iter().any(|path| e.path() == path)) {
            let entry = entry.unwrap();
            let meta = entry.path().symlink_metadata().unwrap();
            let content = if meta.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
            let times = if entry.path() == self.site.dir.path() { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
            let seen = format!("{:o} {} {} {times:?} {content:?}", meta.mode(), meta.uid(), meta.nlink());
            found.insert(entry.into_path(), seen);
        }
        for place in ["/", "/etc", "/tmp", "."] {
            let path = Path::new(place).join(CANARY);
            found.insert(path.clone(), format!("{:?}", path.symlink_metadata().is_ok()));
        }
        found
    }

    /// Pulls and unpacks.
    pub fn unpack(&self, reference: &str, limits: &Limits) -> Result<UnpackReport, String> {
        slurm_factory::fsutil::remove_tree(&self.dest()).unwrap();
        fs::create_dir(self.dest()).unwrap();
        let before = self.outside();
        let pulled = self.site.pull(reference);
        let result = match pulled {
            Ok(pulled) => unpack(&pulled, &self.dest(), limits, &Ctx::silent()).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(self.outside(), before, "{result:?}");
        result
    }

    /// What the case left does no harm: the store is sound, and a good image is pulled and unpacked.
    fn assert_goes_on(&self) {
        let blobs = self.site.cache.dir("blobs").join("sha256");
        for blob in fs::read_dir(blobs).into_iter().flatten() {
            let path = blob.unwrap().path();
            let digest = Digest::of(&fs::read(&path).unwrap()).hex();
            assert_eq!(path.file_name().unwrap().to_str(), Some(digest.as_str()), "a blob that is not what it says");
        }
        // Nothing of it is there yet, or it was deleted again: fetched as new each time.
        slurm_factory::fsutil::remove_tree(&self.site.cache.dir("blobs")).unwrap();
        self.unpack(&self.good, &Limits::default()).unwrap();
        assert_eq!(fs::read_to_string(self.dest().join("etc/good")).unwrap(), "good");
    }
}

/// What is at a path, without following a last symlink: `-` nothing, `d0755`, `f0644:content`, `l:target`, `p0600`.
fn seen(root: &Path, path: &[u8]) -> String {
    let path = root.join(std::ffi::OsStr::from_bytes(path));
    let Ok(meta) = path.symlink_metadata() else { return "-".to_owned() };
    let mode = meta.mode() & 0o7777;
    let kind = meta.file_type();
    if kind.is_symlink() {
        format!("l:{}", fs::read_link(&path).unwrap().display())
    } else if kind.is_dir() {
        format!("d{mode:04o}")
    } else if kind.is_fifo() {
        format!("p{mode:04o}")
    } else {
        let mut content = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        content.truncate(100);
        format!("f{mode:04o}:{content}")
    }
}

enum Want<'a> {
    /// An error that says these.
    Refused(&'a [&'a str]),
    /// A tree with these at these paths.
    Tree(&'a [(&'a str, &'a str)]),
}

use Want::{Refused, Tree};

struct Case<'a> {
    name: &'a str,
    layers: Vec<Vec<u8>>,
    want: Want<'a>,
}

fn case<'a>(name: &'a str, layers: &[&[Member]], want: Want<'a>) -> Case<'a> {
    Case { name, layers: layers.iter().map(|members| archive(members)).collect(), want }
}

/// Runs each case with each compression.
fn run_all(cases: &[Case<'_>]) {
    let ground = Ground::new();
    for case in cases {
        for pack in PACKS {
            let name = format!("{}, {pack:?}", case.name);
            let layers: Vec<Blob> = case.layers.iter().map(|content| Blob::new(pack, content)).collect();
            let result = ground.unpack(&image(&ground.site.path("image"), &layers), &Limits::default());
            match (&case.want, result) {
                (Refused(parts), Err(error)) => {
                    for part in *parts {
                        assert!(error.contains(part), "{name}: `{part}` is not in: {error}");
                    }
                    assert!(!error.contains('\n') && error.len() < 1000, "{name}: not one readable line: {error}");
                }
                (Tree(want), Ok(_)) => {
                    for (path, want) in *want {
                        assert_eq!(seen(&ground.dest(), path.as_bytes()), *want, "{name}: {path}");
                    }
                }
                (_, result) => panic!("{name}: {result:?}"),
            }
            ground.assert_goes_on();
        }
    }
}

#[test]
fn names_that_lead_out() {
    let above = format!("../{CANARY}");
    let far = format!("a/b/../../../../{CANARY}");
    let rooted = format!("/../../{CANARY}");
    let absolute = format!("/etc/{CANARY}");
    let dead = |name: &str| Member::file(name, "dead");
    run_all(&[
        case("above", &[&[dead(&above)]], Refused(&["`..`", CANARY])),
        case("far above", &[&[dead(&far)]], Refused(&["`..`", CANARY])),
        case("above /", &[&[dead(&rooted)]], Refused(&["`..`", CANARY])),
        case("by PAX", &[&[Member::pax(&[("path", above.as_bytes())]), dead("x")]], Refused(&["`..`", CANARY])),
        case(
            "by GNU",
            &[&[Member { data: above.clone().into_bytes(), ..Member::new(b'L', "x") }, dead("x")]],
            Refused(&["`..`", CANARY]),
        ),
        case("a directory above", &[&[Member::dir("../made")]], Refused(&["`..`", "../made"])),
        case("only ..", &[&[Member::dir("..")]], Refused(&["`..`"])),
        case("a link above", &[&[Member::symlink(&above, "x")]], Refused(&["`..`"])),
        case("a pipe above", &[&[Member::new(b'6', &above)]], Refused(&["`..`"])),
        case("a device above", &[&[Member::new(b'3', &above)]], Refused(&["`..`"])),
        case(
            "absolute",
            &[&[dead(&absolute), Member::file("//x//./y", "y")]],
            Tree(&[(&absolute[1..], "f0644:dead"), ("x/y", "f0644:y")]),
        ),
        case("the root a file", &[&[dead("/")]], Refused(&["root"])),
        case("the root a link", &[&[Member::symlink("./", "/etc")]], Refused(&["root"])),
        case("no name", &[&[dead("")]], Refused(&["root"])),
    ]);
}

#[test]
fn links_that_lead_out() {
    // Where the canaries are is known to the layer; that is as hostile as it gets.
    let ground = Ground::new();
    let real = ground.site.path("around/here");
    for target in [real.as_os_str().as_bytes(), b"..", b"../..", b"../../../../../../..", b"/", b"/proc/self/cwd/.."] {
        for (name, members) in [
            ("a file through", vec![Member::file(format!("s/{CANARY}"), "dead")]),
            ("a directory through", vec![Member::dir("s/beside").mode(0o777)]),
            ("a link through", vec![Member::symlink(format!("s/{CANARY}"), "dead")]),
            ("two steps", vec![Member::symlink("t", "s"), Member::file(format!("t/{CANARY}"), "dead")]),
            ("a whiteout through", vec![Member::file(format!("s/.wh.{CANARY}"), "")]),
            ("an opaque one through", vec![Member::file("s/.wh..wh..opq", "")]),
        ] {
            for layered in [true, false] {
                let first = vec![Member::symlink("s", target)];
                let layers = if layered {
                    vec![archive(&first), archive(&members)]
                } else {
                    vec![archive(&[first, members.iter().map(again).collect()].concat_members())]
                };
                let layers: Vec<Blob> = layers.iter().map(|content| Blob::new(Pack::Gzip, content)).collect();
                let result = ground.unpack(&image(&ground.site.path("image"), &layers), &Limits::default());
                assert!(result.is_ok(), "{name}, {}: {result:?}", String::from_utf8_lossy(target));
            }
            ground.assert_goes_on();
        }
        // A hard link to what is outside is one to nothing.
        let members = [Member::symlink("s", target), Member::hard_link("l", format!("s/{CANARY}"))];
        let layers = [Blob::new(Pack::Plain, &archive(&members))];
        let error = ground.unpack(&image(&ground.site.path("image"), &layers), &Limits::default()).unwrap_err();
        contains(&error, &["not there", CANARY]);
    }
    let absolute = real.join(CANARY);
    let absolute = absolute.as_os_str().as_bytes();
    let above = format!("../{CANARY}");
    run_all(&[
        case("a hard link by an absolute name", &[&[Member::hard_link("l", absolute)]], Refused(&["not there", "`l`"])),
        case("a hard link above", &[&[Member::hard_link("l", &above)]], Refused(&["`..`", "`l`"])),
        case("a hard link to the root", &[&[Member::hard_link("l", "/")]], Refused(&["root"])),
        case(
            "a hard link to a directory",
            &[&[Member::dir("d"), Member::hard_link("l", "d")]],
            Refused(&["directory `d`"]),
        ),
        case(
            "a hard link to a symlink is the symlink; what replaces it is not written through it",
            &[
                &[Member::symlink("s", absolute), Member::hard_link("l", "s")],
                &[Member::file("l", "mine"), Member::file("s", "mine")],
            ],
            Tree(&[("l", "f0644:mine"), ("s", "f0644:mine")]),
        ),
        case(
            "a hard link through a hard link to a symlink",
            &[
                &[Member::symlink("s", real.as_os_str().as_bytes()), Member::hard_link("t", "s")],
                &[Member::hard_link("l", format!("t/{CANARY}"))],
            ],
            Refused(&["not there"]),
        ),
        case(
            "a directory is a symlink in the next layer, and gets files in the third",
            &[
                &[Member::dir("d"), Member::file("d/f", "old")],
                &[Member::symlink("d", real.as_os_str().as_bytes())],
                &[Member::file(format!("d/{CANARY}"), "dead"), Member::file("d/.wh.etc", "")],
            ],
            Tree(&[("d/f", "-")]),
        ),
        case(
            "a symlink is a directory in the next layer",
            &[&[Member::symlink("d", "/etc")], &[Member::dir("d"), Member::file(format!("d/{CANARY}"), "mine")]],
            Tree(&[("d", "d0755"), ("etc", "-")]),
        ),
        case(
            "links in a circle",
            &[&[Member::symlink("a", "b"), Member::symlink("b", "a"), Member::file("a/f", "")]],
            Refused(&["`a/f`", "symbolic links"]),
        ),
    ]);
}

/// A member once more.
fn again(member: &Member) -> Member {
    Member { name: member.name.clone(), link: member.link.clone(), data: member.data.clone(), ..*member }
}

trait Concat {
    fn concat_members(self) -> Vec<Member>;
}

impl Concat for [Vec<Member>; 2] {
    fn concat_members(self) -> Vec<Member> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn whiteouts_and_duplicates() {
    let base: &[Member] = &[Member::dir("d"), Member::file("d/f", "f"), Member::file("g", "g")];
    let mark = |name: &str| Member::file(name, "");
    let mut cases = vec![
        case(
            "all of /",
            &[base, &[mark("/.wh..wh..opq"), Member::file("n", "n")]],
            Tree(&[("d", "-"), ("g", "-"), ("n", "f0644:n")]),
        ),
        case("above", &[base, &[mark(&format!("../.wh.{CANARY}"))]], Refused(&["`..`"])),
        case("all above", &[base, &[mark("../.wh..wh..opq")]], Refused(&["`..`"])),
        case("inside one", &[base, &[mark(".wh.d/f")]], Refused(&["inside a whiteout"])),
        case(
            "of what is not there",
            &[base, &[mark(".wh.x"), mark("x/.wh.y"), mark("g/.wh..wh..opq")]],
            Tree(&[("d/f", "f0644:f"), ("g", "f0644:g"), ("x", "-")]),
        ),
        case(
            "of a symlink's target",
            &[&[Member::symlink("s", "/d")], base, &[mark(".wh.s")]],
            Tree(&[("s", "-"), ("d/f", "f0644:f")]),
        ),
        case(
            "twice",
            &[
                base,
                &[
                    mark("d/.wh..wh..opq"),
                    Member::file("d/n", "n"),
                    mark("d/.wh..wh..opq"),
                    mark(".wh.d"),
                    mark(".wh.d"),
                ],
            ],
            Tree(&[("d/f", "-"), ("d/n", "f0644:n")]),
        ),
        case(
            "files, links and directories by one name",
            &[&[
                Member::file("x", "1"),
                Member::dir("x"),
                Member::file("x/y", "2"),
                Member::symlink("x", "g"),
                Member::file("x", "3").mode(0o4755),
                Member::hard_link("x", "x"),
            ]],
            Tree(&[("x", "f4755:3")]),
        ),
        case(
            "a directory twice",
            &[&[Member::dir("x").mode(0o700), Member::file("x/y", "y"), Member::dir("x").mode(0o1777)]],
            Tree(&[("x", "d1777"), ("x/y", "f0644:y")]),
        ),
    ];
    for name in [".wh.", "/.wh.", ".wh..", ".wh...", "d/.wh...", "d/.wh..", ".wh../"] {
        cases.push(case("of nothing, of . and of ..", &[base, &[mark(name)]], Refused(&["whiteout of no name"])));
    }
    run_all(&cases);
}

#[test]
fn names_of_any_bytes_and_lengths() {
    let gnu = |name: &[u8]| Member { data: name.to_vec(), ..Member::new(b'L', "././@LongLink") };
    let pax = |name: &[u8]| Member::pax(&[("path", name)]);
    let long = "n".repeat(5000);
    let deep = "directory/".repeat(500);
    let fits = format!("{0}/{0}/{0}", "n".repeat(255));
    let odd = b"\xff\xfe\x80 \n\x1b[31m";
    let component = "n".repeat(300);
    for (name, part) in [(&component, "File name too long"), (&long, "has a name of 5000 bytes"), (&deep, "4999 bytes")]
    {
        run_all(&[
            case("PAX", &[&[pax(name.as_bytes()), Member::file("f", "x")]], Refused(&[part])),
            case("GNU", &[&[gnu(name.as_bytes()), Member::file("f", "x")]], Refused(&[part])),
            case(
                "a whiteout",
                &[&[], &[pax(format!(".wh.{name}").as_bytes()), Member::file("f", "")]],
                match part {
                    // Nothing has such a name, so there is nothing to hide.
                    "File name too long" => Tree(&[]),
                    "4999 bytes" => Refused(&["5003 bytes", "`.wh.directory"]),
                    _ => Refused(&["5004 bytes"]),
                },
            ),
        ]);
    }
    run_all(&[
        case("long, PAX", &[&[pax(fits.as_bytes()), Member::file("f", "x")]], Tree(&[(&fits, "f0644:x")])),
        case("long, GNU", &[&[gnu(fits.as_bytes()), Member::file("f", "x")]], Tree(&[(&fits, "f0644:x")])),
        case(
            "a long target",
            &[&[Member::pax(&[("linkpath", long.as_bytes())]), Member::symlink("s", "")]],
            Refused(&["5000 bytes"]),
        ),
        case("a zero byte", &[&[pax(b"a\0b"), Member::file("f", "x")]], Refused(&["zero byte"])),
    ]);
    let ground = Ground::new();
    for member in [vec![Member::file(odd, "x")], vec![pax(odd), Member::file("f", "x")]] {
        let layers = [Blob::new(Pack::Gzip, &archive(&member))];
        ground.unpack(&image(&ground.site.path("image"), &layers), &Limits::default()).unwrap();
        assert_eq!(seen(&ground.dest(), odd), "f0644:x");
    }
    let refused = [pax(&[odd.as_slice(), b"/../x"].concat()), Member::file("f", "x")];
    let layers = [Blob::new(Pack::Gzip, &archive(&refused))];
    let error = ground.unpack(&image(&ground.site.path("image"), &layers), &Limits::default()).unwrap_err();
    assert!(!error.contains(['\n', '\x1b']), "nothing that a terminal obeys: {error:?}");
}

#[test]
fn modes_devices_times_and_attributes() {
    // On a disk, which keeps smaller attributes than memory does.
    let ground = Ground::at(&std::env::temp_dir());
    // Whether this file system keeps attributes at all decides what is counted.
    let probe = ground.site.path("probe");
    fs::write(&probe, "").unwrap();
    let keeps = rustix::fs::setxattr(&probe, "user.a", b"1", rustix::fs::XattrFlags::empty()).is_ok();
    let large = vec![b'x'; 60_000];
    let keeps_large = rustix::fs::setxattr(&probe, "user.b", &large, rustix::fs::XattrFlags::empty()).is_ok();
    fs::remove_file(&probe).unwrap();

    let attributes = || {
        Member::pax(&[
            ("SCHILY.xattr.user.a", b"\0any\n"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0"),
            ("SCHILY.xattr.trusted.x", b"x"),
        ])
    };
    let base = [
        Member::file("setuid", "x").mode(0o4755),
        Member::file("setgid", "x").mode(0o2750),
        Member::dir("sticky").mode(0o1777),
        Member::dir("closed").mode(0),
        attributes(),
        Member::file("ping", "x"),
        attributes(),
        Member::dir("d"),
        Member::pax(&[("SCHILY.xattr.user.b", &large)]),
        Member::file("large", "x"),
        Member::pax(&[("mtime", b"9223372036854775807")]),
        Member::file("late", ""),
        Member::pax(&[("mtime", b"-9223372036854775807.5")]),
        Member::file("early", ""),
        Member::new(b'3', "dev/null"),
        Member::new(b'4', "dev/sda"),
        Member::hard_link("dev/zero", "dev/null"),
        Member::new(b'6', "pipe").mode(0o600),
    ];
    let layers = [Blob::new(Pack::Gzip, &archive(&base)), Blob::new(Pack::Gzip, &archive(&[Member::dir("d")]))];
    let layers: &[Blob] = &layers;
    let report = ground.unpack(&image(&ground.site.path("image"), layers), &Limits::default()).unwrap();
    let dest = ground.dest();
    for (path, want) in [
        ("setuid", "f4755:x"),
        ("setgid", "f2750:x"),
        ("sticky", "d1777"),
        ("closed", "d0000"),
        ("pipe", "p0600"),
        ("dev/null", "-"),
        ("dev/sda", "-"),
        ("dev/zero", "-"),
    ] {
        assert_eq!(seen(&dest, path.as_bytes()), want, "{path}");
    }
    assert_eq!(report.skipped_devices, 3);
    let dropped = 5 * 2 + if keeps { 0 } else { 2 } + u64::from(!keeps_large);
    assert_eq!(report.dropped_xattrs, dropped, "an attribute too large for the file system is no full disk");
    let of = |path: &str| {
        let (mut names, mut value) = (vec![0; 4096], vec![0; 100]);
        let n = rustix::fs::listxattr(dest.join(path), &mut *names).unwrap_or(0);
        let v = rustix::fs::getxattr(dest.join(path), "user.a", &mut *value).unwrap_or(0);
        (String::from_utf8(names[..n].to_vec()).unwrap(), value[..v].to_vec())
    };
    if keeps {
        assert_eq!(of("ping"), ("user.a\0".to_owned(), b"\0any\n".to_vec()));
    }
    assert_eq!(of("d").0, "", "the upper layer's entry has none");
    ground.assert_goes_on();
}

/// 2,000 bytes with 4 at the start and 4 at 1,000.
fn sparse(segments: [&[u8]; 2]) -> Vec<u8> {
    let mut content = vec![0; 2000];
    content[..4].copy_from_slice(segments[0]);
    content[1000..1004].copy_from_slice(segments[1]);
    content
}

#[test]
fn sparse_files_in_every_form_and_maps_that_lie() {
    let data: &[u8] = b"abcdEFGH";
    let mut with_map = b"2\n0\n4\n1000\n4\n".to_vec();
    with_map.resize(512, 0);
    with_map.extend(data);
    let v00: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"2000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"4"),
        ("GNU.sparse.offset", b"1000"),
        ("GNU.sparse.numbytes", b"4"),
    ];
    let v01: &[(&str, &[u8])] = &[("GNU.sparse.size", b"2000"), ("GNU.sparse.map", b"0,4,1000,4")];
    let v10: &[(&str, &[u8])] =
        &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"2000")];
    let old = |real: &[u8; 12]| {
        let blank = Member { flag: b'S', size: Some(8), ..Member::file("f", "") };
        let mut header: [u8; 512] = blank.bytes().try_into().unwrap();
        header[386..434].copy_from_slice(b"00000000000\x0000000000004\x0000000001750\x0000000000004\0");
        header[483..495].copy_from_slice(real);
        let mut bytes = finish_header(header).to_vec();
        bytes.extend(data);
        bytes.resize(1024 + 1024, 0);
        bytes
    };
    let good = [
        archive(&[Member::pax(v00), Member::file("f", data)]),
        archive(&[Member::pax(v01), Member::file("f", data)]),
        archive(&[Member::pax(v10), Member::file("f", &with_map)]),
        old(b"00000003720\0"),
    ];
    let ground = Ground::new();
    for content in good {
        let layers = [Blob::new(Pack::Zstd, &content)];
        ground.unpack(&image(&ground.site.path("image"), &layers), &Limits::default()).unwrap();
        assert_eq!(fs::read(ground.dest().join("f")).unwrap(), sparse([b"abcd", b"EFGH"]));
    }
    let huge: &[(&str, &[u8])] = &[("GNU.sparse.size", b"9000000000000000000"), ("GNU.sparse.map", b"0,8")];
    let outside: &[(&str, &[u8])] = &[("GNU.sparse.size", b"2000"), ("GNU.sparse.map", b"0,4,18446744073709551612,4")];
    let fewer: &[(&str, &[u8])] = &[("GNU.sparse.size", b"2000"), ("GNU.sparse.map", b"0,4")];
    let unending: &[(&str, &[u8])] = &[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")];
    let mut cases = vec![
        case("huge", &[&[Member::pax(huge), Member::file("f", data)]], Refused(&["more than the 68719476736"])),
        case("outside", &[&[Member::pax(outside), Member::file("f", data)]], Refused(&["sparse map"])),
        case("fewer", &[&[Member::pax(fewer), Member::file("f", data)]], Refused(&["sparse map", "8 are stored"])),
        case("unending", &[&[Member::pax(unending), Member::file("f", [b'1'; 512])]], Refused(&["sparse map"])),
    ];
    cases.push(Case { name: "old", layers: vec![old(b"00000000004\0")], want: Refused(&["leaves the file"]) });
    run_all(&cases);
}

#[test]
fn sizes_that_lie() {
    let pax = |size: &[u8]| Member::pax(&[("size", size)]);
    let file = |size| Member { size, ..Member::file("f", [b'f'; 700]) };
    let rest = || Member::file("hidden", "h");
    run_all(&[
        case("larger than the archive", &[&[pax(b"99999999"), file(None)]], Refused(&["cut in a file's data"])),
        case("endless", &[&[pax(b"9223372036854775807"), file(None)]], Refused(&["more than the 68719476736"])),
        case("more than a number", &[&[pax(b"18446744073709551616"), file(None)]], Refused(&["size", "not a number"])),
        case("negative", &[&[pax(b"-1"), file(None)]], Refused(&["size", "not a number"])),
        case("smaller: data is taken for a header", &[&[pax(b"1"), file(None), rest()]], Refused(&["checksum"])),
        case("nothing", &[&[pax(b"0"), file(None), rest()]], Refused(&["checksum"])),
        // PAX counts, as for Go: the next header is data for both.
        case("swallows the next", &[&[pax(b"2048"), file(None), rest()]], Tree(&[("hidden", "-")])),
        case("header's too large", &[&[file(Some(1 << 32)), rest()]], Refused(&["cut in a file's data"])),
        case("header's too small", &[&[file(Some(1)), rest()]], Refused(&["checksum"])),
        case(
            "a link with a size",
            &[&[Member { size: Some(512), ..Member::symlink("s", "x") }, rest()]],
            Tree(&[("s", "l:x"), ("hidden", "f0644:h")]),
        ),
        case(
            "attributes without an end",
            &[&[pax(b"700"), Member { size: Some(2 << 20), ..Member::new(b'x', "") }]],
            Refused(&["names and attributes"]),
        ),
        case("no archive", &[], Tree(&[])),
        Case { name: "text", layers: vec![vec![b'x'; 2000]], want: Refused(&["no tar archive"]) },
        Case { name: "nothing", layers: vec![Vec::new()], want: Tree(&[]) },
    ]);
}

#[test]
fn cut_at_every_block() {
    let long = "n".repeat(200);
    let whole = archive(&[
        Member::dir("d"),
        Member::pax(&[("path", format!("d/{long}").as_bytes())]),
        Member::file("f", [b'f'; 1500]),
        Member { data: long.clone().into_bytes(), ..Member::new(b'L', "././@LongLink") },
        Member::file("g", "g"),
        Member::symlink("s", "d"),
        Member::pax(&[("linkpath", long.as_bytes())]),
        Member::hard_link("l", "x"),
    ]);
    let ground = Ground::new();
    let dir = ground.site.path("image");
    let [mut refused, mut shorter] = [0, 0];
    for end in (0..whole.len()).step_by(512) {
        let cut = &whole[..end];
        for pack in PACKS {
            // Made of a cut archive: what is there is right, or it is refused. An archive without its end is one to tar, too.
            let result = ground.unpack(&image(&dir, &[Blob::new(pack, cut)]), &Limits::default());
            match result {
                Ok(_) => {
                    shorter += 1;
                    let file = seen(&ground.dest(), format!("d/{long}").as_bytes());
                    assert!(file == "-" || file == format!("f0644:{}", "f".repeat(100)), "{file}");
                }
                Err(error) => {
                    refused += 1;
                    contains(&error, &["the archive is cut in"]);
                }
            }
            // The configuration names the whole.
            let mut lies = Blob::new(pack, cut);
            lies.diff_id = Digest::of(&whole);
            let error = ground.unpack(&image(&dir, &[lies]), &Limits::default()).unwrap_err();
            contains(&error, &["diff_id"]);
            // The compressed stream is cut.
            if pack != Pack::Plain && end > 0 {
                let packed = pack.pack(&whole);
                let lies = Blob::packed(pack, packed[..packed.len() * end / whole.len()].to_vec(), &whole);
                let error = ground.unpack(&image(&dir, &[lies]), &Limits::default()).unwrap_err();
                contains(&error, &["cannot be decompressed"]);
            }
            ground.assert_goes_on();
        }
    }
    assert!(refused > 10 && shorter > 10, "{refused} refused, {shorter} shorter");
}

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
        if depth <= 3 {
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
    use std::io::Write;
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

/// Root can write anywhere, so it is the one to try as; but it is users who run this.
#[test]
fn the_same_as_an_ordinary_user() {
    let user = User::new();
    let tests = [
        "names_that_lead_out",
        "links_that_lead_out",
        "whiteouts_and_duplicates",
        "names_of_any_bytes_and_lengths",
        "modes_devices_times_and_attributes",
        "sparse_files_in_every_form_and_maps_that_lie",
        "sizes_that_lie",
        "cut_at_every_block",
        "documents_that_lie_about_a_layer",
        "bombs",
    ];
    let names = tests.map(|test| format!("hostile::{test}"));
    let output = user.this_program().arg("--exact").args(&names).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("10 passed"), "{text}");
}

/// How many empty files; `tests/deep` says a million.
const FILES: &str = "SLURM_FACTORY_TEST_EMPTY_FILES";

#[test]
fn very_many_empty_files_in_bounded_memory() {
    // In a process of its own, whose memory is that of this image alone.
    crate::support::again_in_a_process("hostile::very_many_empty_files", &[("TEST_ALONE", "1")], &[]);
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
