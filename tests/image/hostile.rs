//! Layers that no honest tool writes, from a layout on disk through the store into a tree: a clear error or the right
//! result, nothing changed around the tree, nothing left in the store that is not what its name says, and the next image
//! is pulled and unpacked as if nothing had been.

use crate::oci::{Blob, Member, PACKS, Pack, archive, finish_header, image};
use crate::support::{Site, contains, place_for};
use crate::user::User;
use fs_err as fs;
use slurm_factory::image::Digest;
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
    pub fn assert_goes_on(&self) {
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
pub fn seen(root: &Path, path: &[u8]) -> String {
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

/// Root can write anywhere, so it is the one to try as; but it is users who run this.
#[test]
fn the_same_as_an_ordinary_user() {
    let user = User::new();
    let tests = [
        "hostile::names_that_lead_out",
        "hostile::links_that_lead_out",
        "hostile::whiteouts_and_duplicates",
        "hostile::names_of_any_bytes_and_lengths",
        "hostile::modes_devices_times_and_attributes",
        "hostile::sparse_files_in_every_form_and_maps_that_lie",
        "hostile::sizes_that_lie",
        "hostile::cut_at_every_block",
        "bounds::documents_that_lie_about_a_layer",
        "bounds::bombs",
    ];
    let output = user.this_program().arg("--exact").args(tests).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("10 passed"), "{text}");
}
