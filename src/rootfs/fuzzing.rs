//! The door for the fuzz target `layers` in `tests/fuzz`: layers that no honest tool writes, applied for real. Nothing here
//! is part of the program.

use super::apply::{Limits, Unpacker};
use crate::image::testing::{Member, archive};
use crate::image::{Compression, Digest, Layer, LayerBlob};
use crate::report::Ctx;
use fs_err as fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// One member of a layer: a tar type flag, a name, what it links to, and what is in it.
pub struct Entry {
    /// Type flag of the header.
    pub flag: u8,
    /// Name.
    pub name: Vec<u8>,
    /// Link target.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub data: Vec<u8>,
}

/// Applies the layers twice, resolving names by the kernel and by hand: both must come to the same tree or both refuse,
/// and nothing outside of it may change.
pub fn layers(layers: &[Vec<Entry>]) {
    let trees = [false, true].map(|walk| apply(layers, walk));
    assert_eq!(trees[0], trees[1], "the two resolvers differ");
}

fn apply(layers: &[Vec<Entry>], walk: bool) -> Option<Vec<String>> {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let dest = dir.path().join("a/root");
    fs::create_dir_all(&dest).expect("a folder");
    for canary in ["canary", "a/canary"] {
        fs::write(dir.path().join(canary), "alive").expect("a file");
    }
    let blobs = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let ctx = Ctx::silent();
    let mut unpacker = Unpacker::new(&dest, Limits::default(), 0, &ctx).expect("an empty folder");
    if walk {
        unpacker.walk();
    }
    let mut whole = true;
    for (index, layer) in layers.iter().enumerate() {
        let members: Vec<_> = layer
            .iter()
            .map(|e| Member {
                link: e.link.clone(),
                data: e.data.clone(),
                mode: e.mode,
                ..Member::new(e.flag, &e.name)
            })
            .collect();
        let bytes = archive(&members);
        let blob = blobs.path().join(index.to_string());
        fs::write(&blob, &bytes).expect("a file");
        let layer = Layer::for_test(&bytes, Compression::None, Digest::of(&bytes));
        if unpacker.layer(&layer, LayerBlob::whole(blob).expect("a file")).is_err() {
            whole = false;
            break;
        }
    }
    whole = whole && unpacker.finish().is_ok();
    let outside: Vec<_> = walkdir::WalkDir::new(dir.path())
        .into_iter()
        .filter_entry(|e| e.path() != dest)
        .map(|e| e.expect("readable").path().to_owned())
        .collect();
    assert_eq!(outside.len(), 4, "something was made outside: {outside:?}");
    for canary in ["canary", "a/canary"] {
        let path = dir.path().join(canary);
        assert_eq!(fs::read_to_string(&path).expect("there"), "alive");
        assert_eq!(fs::metadata(&path).expect("there").nlink(), 1);
    }
    whole.then(|| tree(&dest))
}

/// Every entry in a line: path, type and mode, size, what it links to.
fn tree(dest: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut walk = walkdir::WalkDir::new(dest).sort_by_file_name().into_iter();
    while let Some(entry) = walk.next() {
        // A folder that the image closed to its owner.
        let Ok(entry) = entry else { continue };
        let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
        if meta.is_dir() {
            let _ = fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(meta.mode() | 0o700));
        }
        let size = if meta.is_file() { meta.len() } else { 0 };
        let target = fs::read_link(entry.path()).ok();
        let path = entry.path().strip_prefix(dest).unwrap_or(entry.path()).to_owned();
        lines.push(format!("{path:?} {:o} {size} {} {target:?}", meta.mode(), meta.nlink()));
    }
    lines
}
