//! A part of a cache as a cache of its own, in a folder: only what was asked for, and only what is right.
//!
//! Spack is given nothing else. What it reads is then what was checked, whoever may write to the cache that it came from, and
//! however that changes meanwhile.

use super::manifest::{self, Blob};
use super::{BuildcacheError, index, read};
use crate::fsutil;
use crate::publish::{FolderStore, Key, Store};
use crate::report::Ctx;
use crate::sign::Keyring;
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

/// Copies these packages to `to` and writes an index of them, added to what is there. Each is checked again on the way; only
/// what lies inside of tarballs is not looked at again.
pub fn excerpt(
    store: &dyn Store,
    keyring: &Keyring,
    hashes: &BTreeSet<String>,
    to: &Path,
    ctx: &Ctx,
) -> Result<(), BuildcacheError> {
    let (there, _) = read::manifests(store, ctx)?;
    let mut specs = Vec::new();
    for (hash, at) in there.iter().filter(|(hash, _)| hashes.contains(*hash)) {
        let found = match read::package(store, keyring, at, hash, ctx)? {
            Ok(found) => found,
            Err(fault) => return Err(changed(store, at, &fault.detail)),
        };
        for blob in [&found.tarball, &found.spec_blob] {
            copy(store, blob, to, ctx)?;
        }
        fsutil::write_atomic(&to.join(at.as_str()), found.signed.as_bytes(), 0o644)?;
        specs.push(found.spec);
    }
    fsutil::write_atomic(&to.join(manifest::LAYOUT), br#"{"signing": "gpg"}"#, 0o644)?;
    index::update(&FolderStore::new(to), ctx, |index| specs.iter().for_each(|spec| index.add(spec)))?;
    Ok(())
}

fn changed(store: &dyn Store, key: &Key, reason: &str) -> BuildcacheError {
    let reason = format!("it changed while it was read: {reason}");
    BuildcacheError::Format { address: store.address().to_owned(), key: key.clone(), reason }
}

fn copy(store: &dyn Store, blob: &Blob, to: &Path, ctx: &Ctx) -> Result<(), BuildcacheError> {
    let at = blob.key()?;
    let path = to.join(at.as_str());
    fs::create_dir_all(fsutil::parent_of(&path))?;
    let mut out = Hashing { inner: fs::File::create(&path)?, hasher: Sha256::new() };
    let size = store.download(&at, &mut out, ctx)?;
    if size != Some(blob.content_length) || hex::encode(out.hasher.finalize()) != blob.checksum {
        return Err(changed(store, &at, "it is not what its manifest says"));
    }
    Ok(())
}

struct Hashing<W> {
    inner: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
