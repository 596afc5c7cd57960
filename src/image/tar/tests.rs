//! What the reader makes of archives, right and wrong ones.

use super::*;
use crate::image::testing::{Member, archive, finish_header};
use proptest::prelude::*;
use std::io::BufReader;

type Read = (Entry, Vec<u8>);

fn read(bytes: &[u8]) -> Result<Vec<Read>, TarError> {
    // A small buffer: members lie across its borders.
    let mut reader = TarReader::new(BufReader::with_capacity(700, bytes));
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.read_data(|part| {
            data.extend_from_slice(part);
            Ok::<(), TarError>(())
        })?;
        found.push((entry, data));
    }
    Ok(found)
}

fn only(members: &[Member]) -> Read {
    let mut found = read(&archive(members)).unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0)
}

fn many(count: usize, member: impl Fn(usize) -> Member) -> Vec<Member> {
    (0..count).map(member).chain([Member::file("f", "")]).collect()
}

fn refused(bytes: &[u8]) -> String {
    read(bytes).map(|found| found.len()).unwrap_err().to_string()
}

#[test]
fn long_names_in_every_way() {
    let long = "n".repeat(5000);
    let gnu = [
        Member { data: format!("{long}\0").into_bytes(), ..Member::new(b'L', "././@LongLink") },
        Member { data: b"target\0".to_vec(), ..Member::new(b'K', "././@LongLink") },
        Member::symlink("short", "short"),
    ];
    let (entry, _) = only(&gnu);
    assert_eq!((entry.path, entry.link), (long.clone().into_bytes(), b"target".to_vec()));
    let pax = [Member::pax(&[("path", long.as_bytes()), ("linkpath", b"target")]), Member::symlink("short", "short")];
    let (entry, _) = only(&pax);
    assert_eq!((entry.path, entry.link), (long.into_bytes(), b"target".to_vec()));

    let mut header: [u8; 512] = Member::file("name", "").bytes().try_into().unwrap();
    header[345..351].copy_from_slice(b"prefix");
    let (entry, _) = read(&finish_header(header)).unwrap().remove(0);
    assert_eq!(entry.path, b"prefix/name");
}

#[test]
fn pax_size_time_and_attributes() {
    let records: &[(&str, &[u8])] = &[
        ("size", b"5"),
        ("mtime", b"-1.25"),
        ("SCHILY.xattr.user.a", b"old"),
        ("SCHILY.xattr.user.a", b"x\0=\ny"),
        ("comment", b"ignored"),
    ];
    let (entry, data) = only(&[Member::pax(records), Member { size: Some(0), ..Member::file("f", "hello") }]);
    assert_eq!((entry.size, data.as_slice()), (5, &b"hello"[..]));
    assert_eq!(entry.mtime, (-2, 750_000_000));
    assert_eq!(entry.xattrs, [(b"user.a".to_vec(), b"x\0=\ny".to_vec())]);
}

#[test]
fn links_and_directories_have_no_data() {
    let members = [
        Member { size: Some(1 << 20), ..Member::hard_link("l", "f") },
        Member { size: Some(1 << 20), ..Member::dir("d") },
        Member::file("f", "x"),
    ];
    let found = read(&archive(&members)).unwrap();
    assert_eq!(found.iter().map(|(e, _)| e.kind).collect::<Vec<_>>(), [Kind::HardLink, Kind::Directory, Kind::File]);
}

#[test]
fn old_and_odd_members() {
    let members = [
        Member::new(0, "old-dir/"),
        Member::new(0, "old-file"),
        Member { data: b"label".to_vec(), ..Member::new(b'V', "label") },
        Member { data: b"13 path=oops\n".to_vec(), ..Member::new(b'g', "global") },
        Member::file("after", "x"),
    ];
    let found = read(&archive(&members)).unwrap();
    let names: Vec<_> = found.iter().map(|(e, _)| (e.path.as_slice(), e.kind)).collect();
    let want: [(&[u8], Kind); 3] = [(b"old-dir/", Kind::Directory), (b"old-file", Kind::File), (b"after", Kind::File)];
    assert_eq!(names, want);
    assert!(refused(&archive(&[Member::new(b'M', "multi")])).contains("'M'"));
}

#[test]
fn sparse_files_in_every_format() {
    let want = [Segment { offset: 0, len: 4 }, Segment { offset: 1000, len: 4 }];
    let pax_0_0: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"2000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"4"),
        ("GNU.sparse.offset", b"1000"),
        ("GNU.sparse.numbytes", b"4"),
    ];
    let pax_0_1: &[(&str, &[u8])] =
        &[("GNU.sparse.size", b"2000"), ("GNU.sparse.map", b"0,4,1000,4"), ("GNU.sparse.name", b"f")];
    let pax_1_0: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", b"2000"),
    ];
    let mut with_map = b"2\n0\n4\n1000\n4\n".to_vec();
    with_map.resize(512, 0);
    with_map.extend(b"abcdEFGH");
    for (records, data) in [(pax_0_0, &b"abcdEFGH"[..]), (pax_0_1, b"abcdEFGH"), (pax_1_0, &with_map)] {
        let (entry, data) = only(&[Member::pax(records), Member::file("f", data)]);
        assert_eq!((entry.size, entry.segments.unwrap(), data.as_slice()), (2000, want.to_vec(), &b"abcdEFGH"[..]));
    }

    // Old GNU, with a block of the map outside the header.
    let mut header: [u8; 512] =
        Member { flag: b'S', size: Some(8), ..Member::file("f", "") }.bytes().try_into().unwrap();
    header[386..410].copy_from_slice(b"00000000000\x0000000000004\0");
    header[482] = 1;
    header[483..495].copy_from_slice(b"00000003720\0");
    let mut extension = [0; 512];
    extension[..24].copy_from_slice(b"00000001750\x0000000000004\0");
    let mut bytes = [finish_header(header), extension].concat();
    bytes.extend(b"abcdEFGH");
    bytes.resize(512 * 5, 0);
    let (entry, data) = read(&bytes).unwrap().remove(0);
    assert_eq!((entry.size, entry.segments.unwrap(), data.as_slice()), (2000, want.to_vec(), &b"abcdEFGH"[..]));
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    for (map, part) in [
        ("0,4,2,4", "order"),
        ("0,4,1997,4", "leaves"),
        ("0,4", "accounts"),
        ("0,4,18446744073709551615,4", "leaves"),
        ("0,4,8", "odd"),
        ("0,4,,4", "malformed"),
    ] {
        let records: &[(&str, &[u8])] = &[("GNU.sparse.size", b"2000"), ("GNU.sparse.map", map.as_bytes())];
        let text = refused(&archive(&[Member::pax(records), Member::file("f", "abcdEFGH")]));
        assert!(text.contains(part), "{map}: {text}");
    }
    let records: &[(&str, &[u8])] = &[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")];
    for map in ["", "x\n", "\n", "99999999999999999999\n", "9\n1\n"] {
        let mut data = map.as_bytes().to_vec();
        data.resize(512, b'1');
        refused(&archive(&[Member::pax(records), Member::file("f", data)]));
    }
}

#[test]
fn malformed_archives_are_errors() {
    let good = archive(&[Member::file("f", "x")]);
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    let mut bad_size = good.clone();
    bad_size[124..136].copy_from_slice(b"0000000000x\0");
    let header: [u8; 512] = bad_size[..512].try_into().unwrap();
    bad_size[..512].copy_from_slice(&finish_header(header));
    let mut one_zero = vec![0; 512];
    one_zero.extend(&good);
    for (bytes, part) in [
        (flipped, "checksum"),
        (bad_size, "size"),
        (one_zero, "zero block"),
        (vec![1; 100], "cut in a header"),
        (vec![b'x'; 1024], "checksum"),
        (archive(&[Member { data: b"99 path=x\n".to_vec(), ..Member::new(b'x', "") }, Member::file("f", "")]), "PAX"),
        (archive(&[Member { data: b"path=x\n".to_vec(), ..Member::new(b'x', "") }, Member::file("f", "")]), "PAX"),
        (archive(&[Member::pax(&[("path", b"a\0b")]), Member::file("f", "")]), "zero byte"),
        (archive(&[Member::pax(&[("size", b"-1")]), Member::file("f", "")]), "size"),
        (archive(&[Member::pax(&[("size", b"18446744073709551615")]), Member::file("f", "")]), "cut"),
        (archive(&[Member { size: Some(2 << 20), ..Member::new(b'L', "") }]), "more than"),
        // Each of a bearable size, and without an end.
        (archive(&many(2000, |i| Member::pax(&[(&format!("SCHILY.xattr.user.{i}"), &[b'x'; 900])]))), "more than"),
        (archive(&many(3000, |_| Member::new(b'g', "g"))), "more than"),
    ] {
        let text = refused(&bytes);
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn numbers_in_base_256() {
    for (field, want) in [
        (&b"\x80\0\0\0\0\0\0\0\0\0\x01\x00"[..], Some(256)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
        (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
        (b"        123 ", Some(0o123)),
        (b"777777777777", Some(0o777_777_777_777)),
        (b"\0\0\0\0\0\0\0\0", Some(0)),
        (b"12 x    ", Some(0o12)),
        (b"-1      ", None),
    ] {
        assert_eq!(signed_number(field), want, "{field:?}");
    }
}

#[test]
fn cut_at_every_byte_is_an_error_or_fewer_members_and_never_other_content() {
    let members = [
        Member::dir("d"),
        Member::pax(&[("path", b"d/long")]),
        Member::file("f", vec![7; 600]),
        Member::symlink("s", "t"),
    ];
    let whole = archive(&members);
    let all = read(&whole).unwrap();
    for end in 0..whole.len() {
        if let Ok(found) = read(&whole[..end]) {
            assert!(found.len() <= all.len());
            for ((entry, data), (want, want_data)) in found.iter().zip(&all) {
                assert_eq!((&entry.path, data), (&want.path, want_data));
            }
        }
    }
}

proptest! {
    #[test]
    fn honest_archives_read_as_the_tar_crate_wrote_them(
        files in prop::collection::vec(("[a-z]{1,30}(/[a-z]{1,60}){0,6}", prop::collection::vec(any::<u8>(), 0..2000), any::<bool>()), 0..8)
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data, gnu) in &files {
            let mut header = if *gnu { tar::Header::new_gnu() } else { tar::Header::new_ustar() };
            header.set_size(data.len() as u64);
            header.set_mode(0o4751);
            header.set_mtime(77);
            if builder.append_data(&mut header, name, data.as_slice()).is_err() {
                // The name does not fit a ustar header.
                header = tar::Header::new_gnu();
                header.set_size(data.len() as u64);
                header.set_mode(0o4751);
                header.set_mtime(77);
                builder.append_data(&mut header, name, data.as_slice()).unwrap();
            }
        }
        let found = read(&builder.into_inner().unwrap()).unwrap();
        prop_assert_eq!(found.len(), files.len());
        for ((entry, data), (name, want, _)) in found.iter().zip(&files) {
            prop_assert_eq!(entry.path.as_slice(), name.as_bytes());
            prop_assert_eq!(data, want);
            prop_assert_eq!((entry.mode, entry.mtime, entry.size), (0o4751, (77, 0), want.len() as u64));
        }
    }

    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((0_usize..6000, any::<u8>()), 0..12), fix in any::<bool>()) {
        let records: &[(&str, &[u8])] = &[("GNU.sparse.size", b"2000"), ("GNU.sparse.map", b"0,4,1000,4"), ("mtime", b"1.5")];
        let mut bytes = archive(&[
            Member::pax(records),
            Member::file("f", "abcdEFGH"),
            Member { data: b"long\0".to_vec(), ..Member::new(b'L', "") },
            Member::file("g", vec![1; 700]),
            Member { flag: b'S', ..Member::file("s", "abc") },
        ]);
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
            if fix {
                // A checksum that is right again leads deeper.
                let start = at / 512 * 512;
                let header: [u8; 512] = bytes[start..start + 512].try_into().unwrap();
                bytes[start..start + 512].copy_from_slice(&finish_header(header));
            }
        }
        let _ = read(&bytes);
    }
}
