//! Why an image is not unpacked: what the caller is told, and what went wrong with one entry before it is known which.

use crate::image::tar::TarError;
use crate::image::{Digest, ImageError};
use crate::report::Interrupted;
use rustix::io::Errno;
use std::io;
use std::path::PathBuf;

/// Why an image cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The destination is not an empty directory.
    #[error("`{dest}` is not an empty directory: an image is unpacked into a new one")]
    NotEmpty {
        /// The destination.
        dest: PathBuf,
    },
    /// The stored blob does not hash to its name.
    #[error(
        "the layer's blob `{path}` is damaged: expected {expected} ({expected_size} bytes), it has {actual} ({actual_size} bytes); it was deleted, pull the image again"
    )]
    DamagedBlob {
        /// The blob's file.
        path: PathBuf,
        /// Its name.
        expected: Digest,
        /// The size that the manifest gives.
        expected_size: u64,
        /// What it hashes to.
        actual: Digest,
        /// Its size.
        actual_size: u64,
    },
    /// The uncompressed layer is not what the image's configuration says.
    #[error(
        "the layer {layer} does not have the content that the image's configuration names: expected diff_id {expected}, got {actual}; the image was made wrongly or tampered with"
    )]
    WrongContent {
        /// The layer's blob.
        layer: Digest,
        /// The configuration's diff_id.
        expected: Digest,
        /// The digest of what came out.
        actual: Digest,
    },
    /// The compressed data is broken although the blob is what its digest says.
    #[error("the layer {layer} cannot be decompressed ({format}): {reason}; the image was made wrongly")]
    Compression {
        /// The layer's blob.
        layer: Digest,
        /// `gzip` or `zstd`.
        format: &'static str,
        /// The decoder's words.
        reason: String,
    },
    /// The archive is broken.
    #[error("the layer {layer} is not a good tar archive: {source}")]
    Archive {
        /// The layer's blob.
        layer: Digest,
        /// Where and why.
        source: TarError,
    },
    /// An entry that no honest image has.
    #[error("the layer {layer} is refused: its entry `{entry}` {reason}")]
    Refused {
        /// The layer's blob.
        layer: Digest,
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More than the limits allow.
    #[error(
        "the layer {layer} is refused: {what} more than the {limit} that are allowed; is the image what it should be?"
    )]
    Limit {
        /// The layer's blob.
        layer: Digest,
        /// What there is too much of.
        what: String,
        /// How much is allowed.
        limit: u64,
    },
    /// No space left, or a quota reached.
    #[error(
        "no space (or inodes) left in `{dest}` for `{entry}`, which needs {needed} more bytes ({source}); free some (slurm-factory clean), or choose another --cache-dir"
    )]
    NoSpace {
        /// The destination.
        dest: PathBuf,
        /// The entry's name.
        entry: String,
        /// Its bytes that are not yet written.
        needed: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {verb} `{entry}` in `{dest}`: {source}")]
    Entry {
        /// What was tried.
        verb: &'static str,
        /// The destination.
        dest: PathBuf,
        /// The entry's name.
        entry: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A file operation failed on something else than an entry; the error names the path.
    #[error("rootfs: {0}")]
    Io(#[source] io::Error),
    /// The image's blobs cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// What went wrong with one entry, before it is known which.
pub(super) enum Fault {
    Refused(String),
    Limit(String, u64),
    Os(&'static str, Errno, u64),
    Tar(TarError),
    Interrupted(Interrupted),
}

impl From<TarError> for Fault {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl From<Interrupted> for Fault {
    fn from(error: Interrupted) -> Self {
        Self::Interrupted(error)
    }
}

/// Says what was tried.
pub(super) trait Tried<T> {
    fn tried(self, verb: &'static str) -> Result<T, Fault>;
}

impl<T> Tried<T> for rustix::io::Result<T> {
    fn tried(self, verb: &'static str) -> Result<T, Fault> {
        self.map_err(|e| Fault::Os(verb, e, 0))
    }
}
