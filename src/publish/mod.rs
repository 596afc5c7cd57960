//! Where packages and caches are published: a folder, a bucket, a repository of an OCI registry.
//!
//! A store holds objects under keys, as S3 does; a folder is made to behave the same. What makes publishing safe is built on
//! three promises that every [`Store`] keeps:
//!
//! - an object is whole or not there: a reader never sees a part of one;
//! - what was written is read back by whoever asks afterwards;
//! - a write can depend on what is there ([`Condition`]), so that two publishers at once lose nothing.
//!
//! A registry keeps the first two, has no keys but blobs' digests and tags ([`Store::registry`]), and cannot keep the third: who
//! writes to one looks again afterwards. A web server is read alone ([`WebStore`]).
//!
//! The order is the caller's: blobs, then what names them, then the index, last.

mod folder;
mod key;
mod oci;
mod open;
mod s3;
mod web;

pub use folder::FolderStore;
pub use key::Key;
pub use oci::{BLOBS, Descriptor, OciStore, TAGS, blob_key};
pub use open::{Reach, is_by_registries, open, open_to_read};
pub use s3::{S3Options, S3Store};
pub use web::WebStore;

pub use crate::image::OCI_MANIFEST;
use crate::report::{Ctx, Interrupted};
use crate::sha256::Hashing;
use crate::wait::chance;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not a name that an object can have.
    #[error("`{key}` is no key for an object: {reason}")]
    BadKey {
        /// What was given.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An address that no store is known for.
    #[error("cannot publish to `{address}`: {reason}")]
    BadAddress {
        /// What was given.
        address: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A file operation failed, here or in a folder that is the store.
    #[error("{address}: {source}")]
    Io {
        /// The store.
        address: String,
        /// The system's reason, with the path.
        source: io::Error,
    },
    /// An object is larger than the caller is ready to take.
    #[error("{address}/{key} has {size} bytes, and at most {limit} are read")]
    TooLarge {
        /// The store.
        address: String,
        /// The object.
        key: Key,
        /// Its size in bytes.
        size: u64,
        /// The caller's limit in bytes.
        limit: u64,
    },
    /// What was stored is not what was sent.
    #[error("{address}/{key} was written, and what is there is something else: sent {sent}, found {found}")]
    Mismatch {
        /// The store.
        address: String,
        /// The object.
        key: Key,
        /// Digest or size of what was sent.
        sent: String,
        /// Digest or size of what is there.
        found: String,
    },
    /// The service keeps this one object from us: 403. A bucket that may be read and not listed says so of what is not there, too. A
    /// registry, whose rights are those of a whole repository, gives [`Self::Service`].
    #[error("{address}: may not {what}: {reason}")]
    Forbidden {
        /// The store.
        address: String,
        /// `read v3/layout.json`, `look at v3/layout.json`.
        what: String,
        /// Cause and remedy.
        reason: String,
    },
    /// The service refused or could not be reached.
    #[error("{address}: cannot {what}: {reason}")]
    Service {
        /// The store.
        address: String,
        /// `read v3/layout.json`, `list v3/`, ...
        what: String,
        /// Cause and remedy.
        reason: String,
    },
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Names one state of an object: an ETag, or the digest of its bytes. Only for comparing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(pub String);

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub key: Key,
    /// In bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// What a write depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Nothing: the object is replaced.
    Always,
    /// There is nothing yet.
    Absent,
    /// What is there is still this.
    Unchanged(Version),
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is there.
    Yes(Version),
    /// The condition did not hold; nothing was changed.
    Conflict,
}

/// How long others may keep what they read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// For good: the key names the content.
    Forever,
    /// A minute: it is replaced, as an index is.
    Briefly,
}

impl Keep {
    /// The value of `Cache-Control` (RFC 9111, section 5.2.2; `immutable` is RFC 8246).
    pub fn cache_control(self) -> &'static str {
        match self {
            Self::Forever => "public, max-age=31536000, immutable",
            Self::Briefly => "public, max-age=60",
        }
    }
}

/// How an object is written.
#[derive(Debug, Clone)]
pub struct Put<'a> {
    /// Its media type.
    pub content_type: &'a str,
    /// What readers and proxies between may do with it.
    pub keep: Keep,
    /// What the write depends on.
    pub condition: Condition,
}

/// A file that is to become an object.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    /// In bytes.
    pub size: u64,
    /// SHA-256 of its bytes, in lower-case hexadecimal, known from when it was made.
    pub sha256: String,
}

/// Objects under keys.
///
/// May be used from many threads at once. Failures that pass (a cut connection, 503) are tried again inside; an error is final.
pub trait Store: Send + Sync {
    /// `s3://bucket/prefix`, `file:///path`: how messages name the store.
    fn address(&self) -> &str;

    /// Whether it is an OCI registry, which has blobs and tags alone: `blobs/sha256/ab/abcd...` and `tags/TAG`, of which only the
    /// second can be listed, and no conditional writes.
    fn registry(&self) -> bool {
        false
    }

    /// Whether it is a folder of this host: what is asked of it takes a processor more than the network.
    fn is_here(&self) -> bool {
        false
    }

    /// Finds out, before any work, whether this can be written to. May leave a small object that is none of the caller's.
    fn check(&self, ctx: &Ctx) -> Result<(), StoreError>;

    /// Whether what is there has the bytes of `source`; then it need not be sent again. Told by digests of the store's own where
    /// it has them, else by reading.
    fn holds(&self, key: &Key, source: &Source, ctx: &Ctx) -> Result<bool, StoreError> {
        holds_by_reading(self, key, source, ctx)
    }

    /// The size in bytes of what is there, which is not read for that; `None` when nothing is.
    fn size(&self, key: &Key, ctx: &Ctx) -> Result<Option<u64>, StoreError>;

    /// A small object, whole, with the version that was read; at most `limit` bytes.
    fn read(&self, key: &Key, limit: u64, ctx: &Ctx) -> Result<Option<(Vec<u8>, Version)>, StoreError>;

    /// Writes an object's bytes to `out` and returns how many; `None` when it is not there. The caller checks the digest.
    fn download(&self, key: &Key, out: &mut dyn Write, ctx: &Ctx) -> Result<Option<u64>, StoreError>;

    /// Writes a small object.
    fn put(&self, key: &Key, bytes: &[u8], how: &Put<'_>, ctx: &Ctx) -> Result<Written, StoreError>;

    /// Writes a file of any size. Its bytes are compared with `source.sha256` on the way; a file that changed meanwhile is an
    /// error, and nothing is left under the key.
    fn put_file(&self, key: &Key, source: &Source, how: &Put<'_>, ctx: &Ctx) -> Result<Written, StoreError>;

    /// Every object whose key begins with `prefix` (`v3/manifests/spec/`, or empty for all), in order of their keys.
    fn list(&self, prefix: &str, ctx: &Ctx) -> Result<Vec<Entry>, StoreError>;

    /// Removes an object; that it is not there is no error.
    fn delete(&self, key: &Key, ctx: &Ctx) -> Result<(), StoreError>;

    /// What killed runs left of objects under way, written before `before`, is removed, or only looked for; returns what it was.
    /// A store that leaves nothing of that kind has nothing to do.
    fn sweep(&self, _before: SystemTime, _dry_run: bool, _ctx: &Ctx) -> Result<Vec<Entry>, StoreError> {
        Ok(Vec::new())
    }
}

/// How often a write that other publishers came before is tried again: with the pauses, for some minutes.
pub const TRIES: u32 = 500;

/// Reads, changes and writes under a condition, done by `attempt`, until nobody else came first: `attempt` gives nothing when its
/// write met a conflict. It gets its number, from 0. Nothing after [`TRIES`] of them. Between two is a pause left to chance, that
/// grows to half a second: who failed together should not come back together.
pub fn until_written<T, E: From<Interrupted>>(
    ctx: &Ctx,
    mut attempt: impl FnMut(u32) -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    for number in 0..TRIES {
        ctx.check()?;
        if let Some(done) = attempt(number)? {
            return Ok(Some(done));
        }
        std::thread::sleep(Duration::from_millis((8 << number.min(6)).min(500)).mul_f64(chance()));
    }
    Ok(None)
}

/// Reads an object and compares its SHA-256.
fn holds_by_reading(store: &(impl Store + ?Sized), key: &Key, source: &Source, ctx: &Ctx) -> Result<bool, StoreError> {
    if store.size(key, ctx)? != Some(source.size) {
        return Ok(false);
    }
    Ok(sum(store, key, ctx)?.is_some_and(|sum| sum == source.sha256))
}

/// SHA-256, in lower-case hexadecimal, of what can be read under a key; `None` when nothing is there.
pub fn sum(store: &(impl Store + ?Sized), key: &Key, ctx: &Ctx) -> Result<Option<String>, StoreError> {
    let mut hashing = Hashing::new(io::sink());
    let read = store.download(key, &mut hashing, ctx)?;
    Ok(read.map(|_| hashing.hex()))
}

/// A file is not what it was when its sum was taken.
fn changed(address: &str, source: &Source, found: &str) -> StoreError {
    let text = format!(
        "`{}` changed since it was made: its SHA-256 was {} and is {found}; nothing was published from it",
        source.path.display(),
        source.sha256
    );
    io_error(address, io::Error::other(text))
}

fn io_error(address: &str, source: io::Error) -> StoreError {
    StoreError::Io { address: address.to_owned(), source }
}

fn with_path(address: &str, error: &io::Error, verb: &str, path: &Path) -> StoreError {
    io_error(address, crate::fsutil::with_path(error, verb, path))
}
