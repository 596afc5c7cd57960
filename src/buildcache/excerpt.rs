//! A part of a cache as a cache of its own, in a folder: only what was asked for, and only what is right.
//!
//! Spack is given nothing else. What it reads is then what was checked, whoever may write to the cache that it came from, and
//! however that changes meanwhile: it is the copy that is looked at, so everything is read once.

use super::check::{Fault, Kind};
use super::manifest::{self, Blob};
use super::spec::Spec;
use super::{BuildcacheError, index, read};
use crate::fsutil;
use crate::publish::{FolderStore, Key, Store};
use crate::report::Ctx;
use crate::sign::Keyring;
use fs_err as fs;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// What came of copying.
#[derive(Debug, Default)]
pub struct Excerpt {
    /// Hashes of what was right, and was copied.
    pub taken: BTreeSet<String>,
    /// What was asked for, is there, and cannot be used.
    pub faults: Vec<Fault>,
    /// Hashes of those.
    pub refused: BTreeSet<String>,
    /// How many may not be read, which count as not there: a bucket that may not be listed says the same of both.
    pub forbidden: usize,
}

/// A package that is asked for: its name and version, by which its manifest is found without listing the cache.
pub type Wanted = (String, String);

/// Copies of these packages, by their hashes, those that are there and right to `to`, and writes an index of them, added to what
/// is there. Each is followed from its hash to what its tarball holds. That one is not there is no fault, nor that it may not be read. `install_tree` is the
/// path at which Spack will install them.
pub fn excerpt(
    store: &dyn Store,
    keyring: &Keyring,
    wanted: &BTreeMap<String, Wanted>,
    install_tree: &str,
    to: &Path,
    ctx: &Ctx,
) -> Result<Excerpt, BuildcacheError> {
    if read::only_older_layout(store, ctx)? {
        return Err(BuildcacheError::OlderLayout { address: store.address().to_owned() });
    }
    let wanted: Vec<(&String, &Wanted)> = wanted.iter().collect();
    let copied = read::at_once(store, &wanted, |(hash, (name, version))| {
        let at = read::spec_key(store, name, version, hash)?;
        read::allowed(one(store, keyring, &at, hash, install_tree, to, ctx))
    })?;
    let mut excerpt = Excerpt::default();
    let mut specs = Vec::new();
    for ((hash, _), answer) in wanted.into_iter().zip(copied) {
        match answer {
            Err(reason) => {
                ctx.detail(reason);
                excerpt.forbidden += 1;
            }
            Ok(Err(fault)) if fault.kind == Kind::MissingManifest => {}
            Ok(Ok(spec)) => {
                excerpt.taken.insert(hash.clone());
                specs.push(spec);
            }
            Ok(Err(fault)) => {
                excerpt.refused.insert(hash.clone());
                excerpt.faults.push(fault);
            }
        }
    }
    excerpt.faults.sort();
    if !specs.is_empty() {
        fsutil::write_atomic(&to.join(manifest::LAYOUT), manifest::LAYOUT_TEXT, 0o644)?;
        index::update(&FolderStore::new(to), ctx, |index| specs.iter().for_each(|spec| index.add(spec)))?;
    }
    Ok(excerpt)
}

/// One package: blobs, then the manifest that names them.
fn one(
    store: &dyn Store,
    keyring: &Keyring,
    at: &Key,
    hash: &str,
    install_tree: &str,
    to: &Path,
    ctx: &Ctx,
) -> Result<Result<Spec, Fault>, BuildcacheError> {
    let found = match read::package(store, Some(keyring), at, hash, ctx)? {
        Ok(found) => found,
        Err(fault) => return Ok(Err(fault)),
    };
    let place = |blob: &Blob| -> Result<PathBuf, BuildcacheError> { Ok(to.join(blob.key()?.as_str())) };
    let path = place(&found.tarball)?;
    let parent = fsutil::parent_of(&path);
    fs::create_dir_all(parent)?;
    let mut copy = tempfile::Builder::new()
        .prefix(fsutil::TEMPORARY)
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(parent)?;
    let distribution = match read::tarball(store, &found, copy.as_file_mut(), ctx)? {
        Ok(distribution) => distribution,
        Err(fault) => return Ok(Err(fault)),
    };
    // Spack would begin, find that a name in a program cannot grow, and end the build.
    if distribution.buildpath.len() < install_tree.len() && !distribution.relocate_binaries.is_empty() {
        let detail = format!(
            "its programs name `{}`, {} bytes, where no path of {} bytes has a place: it was built without \
             `config:install_tree:padded_length: {}`",
            distribution.buildpath,
            distribution.buildpath.len(),
            install_tree.len(),
            install_tree.len()
        );
        return Ok(Err(Fault::new(Kind::ShortPrefix, at.as_str(), detail)));
    }
    copy.persist(&path).map_err(|e| fsutil::with_path(&e.error, "rename into place", &path))?;
    fsutil::write_atomic(&place(&found.spec_blob)?, &found.spec_bytes, 0o644)?;
    let root = found.spec.root();
    let at = manifest::spec_key(&root.name, &root.version, &root.hash)?;
    fsutil::write_atomic(&to.join(at.as_str()), found.signed.as_bytes(), 0o644)?;
    Ok(Ok(found.spec))
}
