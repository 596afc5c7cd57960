//! Layers in eStargz: gzip that a lazy puller reads file by file, and everybody else as any other gzip.
//!
//! ```text
//! layer    ::= member* landmark toc footer
//! member   ::= gzip member of one tar header with its data (a large file: several, in chunks)
//! landmark ::= the file `.no.prefetch.landmark` or `.prefetch.landmark`, one byte 0xf
//! toc      ::= gzip member of the file `stargz.index.json` and the two zero blocks that end the archive
//! footer   ::= 51 bytes: an empty gzip member with the extra field "SG", the TOC's offset in 16 hexadecimal digits, "STARGZ"
//! ```
//!
//! Format: stargz-snapshotter, `docs/estargz.md`. No tool that writes it is a package of Debian, so the layer is made here
//! and `umoci` says what is in it: landmark and table are files like any other for whoever does not pull lazily.

use crate::oci::{self, Blob, Member, Pack};
use crate::support::Site;
use crate::unpack::compare;
use serde_json::{Value, json};
use slurm_factory::image::Digest;
use std::io::Write as _;

/// Where large files are cut.
const CHUNK: usize = 100_000;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// RFC 1952: FLG.FEXTRA with one subfield, an empty stored block, sum and size of nothing.
fn footer(toc: usize) -> Vec<u8> {
    let field = format!("{toc:016x}STARGZ");
    let mut bytes = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
    for part in
        [&26_u16.to_le_bytes()[..], b"SG", &22_u16.to_le_bytes(), field.as_bytes(), &[1, 0, 0, 255, 255], &[0; 8]]
    {
        bytes.extend_from_slice(part);
    }
    assert_eq!(bytes.len(), 51);
    bytes
}

/// The blob, its uncompressed content, and the table's offset in the blob.
fn estargz(members: &[Member]) -> (Vec<u8>, Vec<u8>, usize) {
    let (mut blob, mut content) = (Vec::new(), Vec::new());
    let mut entries: Vec<Value> = Vec::new();
    let mut add = |bytes: &[u8], blob: &mut Vec<u8>| {
        let offset = blob.len();
        blob.extend(gzip(bytes));
        content.extend_from_slice(bytes);
        offset
    };
    for member in members {
        let bytes = member.bytes();
        let name = String::from_utf8(member.name.clone()).unwrap();
        let kind = match member.flag {
            b'5' => "dir",
            b'2' => "symlink",
            b'1' => "hardlink",
            _ => "reg",
        };
        let first = bytes.len().min(512 + CHUNK);
        let offset = add(&bytes[..first], &mut blob);
        let sum = Digest::of(&member.data).to_string();
        entries.push(json!({"name": name, "type": kind, "size": member.data.len(), "offset": offset, "digest": sum,
            "linkName": String::from_utf8_lossy(&member.link), "mode": member.mode}));
        for (index, chunk) in bytes[first..].chunks(CHUNK).enumerate() {
            let offset = add(chunk, &mut blob);
            let at = CHUNK * (index + 1);
            entries.push(json!({"name": name, "type": "chunk", "offset": offset, "chunkOffset": at}));
        }
    }
    let table = json!({"version": 1, "entries": entries}).to_string();
    let toc = add(&oci::archive(&[Member::file("stargz.index.json", table)]), &mut blob);
    blob.extend(footer(toc));
    (blob, content, toc)
}

#[test]
fn an_estargz_layer_is_a_gzip_layer() {
    let large: Vec<u8> = (0..350_000_u32).flat_map(|n| (n ^ n >> 7).to_le_bytes()).collect();
    let members = [
        Member::dir("usr/"),
        Member::dir("usr/bin/"),
        Member::file("usr/bin/large", &large).mode(0o755),
        Member::file("usr/empty", ""),
        Member::symlink("bin", "usr/bin"),
        Member::hard_link("usr/bin/again", "usr/bin/large"),
        Member::file(".no.prefetch.landmark", [0xf]),
    ];
    let (blob, content, toc) = estargz(&members);
    assert!(memchr::memmem::find_iter(&blob, b"\x1f\x8b\x08").count() > members.len() + 10, "many gzip members");
    let site = Site::new();
    let reference = oci::image(&site.path("layout"), &[Blob::packed(Pack::Gzip, blob.clone(), &content)]);
    // Nothing says when the root was changed: umoci then says 1970.
    let report = compare(&site, &reference, |path| path.as_os_str().is_empty());
    assert_eq!((report.files, report.hardlinks, report.symlinks, report.dirs), (4, 1, 1, 2));
    let read = |name: &str| fs_err::read(site.path("ours").join(name)).unwrap();
    assert_eq!(read("usr/bin/again"), large);
    assert_eq!(read(".no.prefetch.landmark"), [0xf]);
    assert!(serde_json::from_slice::<Value>(&read("stargz.index.json")).unwrap()["entries"].is_array());

    // Cut before its table, or in its footer: the digests say so, whatever the members before say.
    for end in [toc, blob.len() - 20] {
        let site = Site::new();
        let cut = Blob::packed(Pack::Gzip, blob[..end].to_vec(), &content);
        let pulled = site.pull(&oci::image(&site.path("layout"), &[cut])).unwrap();
        let dest = site.path("dest");
        fs_err::create_dir(&dest).unwrap();
        let limits = slurm_factory::rootfs::Limits::default();
        let error = slurm_factory::rootfs::unpack(&pulled, &dest, &limits, &slurm_factory::report::Ctx::silent());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("diff_id") || error.contains("cannot be decompressed"), "{error}");
    }
}
