//! Why an image cannot be had: each case names the thing, the place, the cause, and what to do about it.

use super::helper::HelperError;
use super::registries::RegistriesError;
use super::{BadReference, Digest, Platform};
use crate::cache::CacheError;
use crate::fsutil;
use crate::report::Interrupted;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why an image cannot be resolved, pulled or opened.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The text names no image.
    #[error(transparent)]
    Reference(#[from] BadReference),
    /// A platform we do not know.
    #[error("`{text}` is not a platform that is supported; known are linux/amd64 and linux/arm64")]
    UnknownPlatform {
        /// What was asked for.
        text: String,
    },
    /// A setting of the client cannot be used.
    #[error("the registry client cannot be set up: {what}: {reason}")]
    Client {
        /// Which setting, with its file when it has one.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection.
    #[error("cannot reach the registry of `{reference}` at {url}: {reason}; {}", unreachable_hint(reason))]
    Unreachable {
        /// The image.
        reference: String,
        /// What was requested.
        url: String,
        /// The chain of causes.
        reason: String,
    },
    /// The registry wants other credentials, or none are good enough.
    #[error("the registry refuses `{reference}` ({url}): {reason}; {hint}")]
    Unauthorized {
        /// The image.
        reference: String,
        /// What was requested.
        url: String,
        /// The registry's words.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// A program that knows logins failed.
    #[error("{program} was asked for the login of {host} ({origin}): {source}")]
    Helper {
        /// `docker-credential-NAME`
        program: String,
        /// The registry.
        host: String,
        /// What named it: file and key.
        origin: String,
        /// Why.
        source: Box<HelperError>,
    },
    /// What is configured about registries forbids it or makes no sense.
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    /// Of several places none has it.
    #[error("none of the places that are configured for `{reference}` has {what}:{}", list(failures))]
    NoPlace {
        /// The image.
        reference: String,
        /// `its manifest`, `the layer sha256:...`.
        what: String,
        /// Each place, and what it said.
        failures: Vec<(String, ImageError)>,
    },
    /// No such repository, tag or digest.
    #[error("the registry has no {what} of `{reference}` ({url}): {reason}; check its name and tag")]
    NotFound {
        /// `image`, `manifest sha256:...`, `blob sha256:...`.
        what: String,
        /// The image.
        reference: String,
        /// What was requested.
        url: String,
        /// The registry's words.
        reason: String,
    },
    /// Too many requests.
    #[error(
        "the registry of `{reference}` says too many requests ({url}){}: log in (docker login, podman login), wait, or use a mirror",
        wait_hint(*after)
    )]
    RateLimited {
        /// The image.
        reference: String,
        /// What was requested.
        url: String,
        /// `Retry-After`, when the registry named one.
        after: Option<Duration>,
    },
    /// Any other answer that is no success.
    #[error("the registry of `{reference}` answered {status} for {url}: {reason}; try again later or use a mirror")]
    Server {
        /// The image.
        reference: String,
        /// What was requested.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of its body.
        reason: String,
    },
    /// A connection that ended too early, also after trying again.
    #[error(
        "{what} of `{reference}` was cut after {got} of {want} bytes: {reason}; run it again, it goes on from there"
    )]
    Cut {
        /// Which blob.
        what: String,
        /// The image.
        reference: String,
        /// Bytes received.
        got: u64,
        /// Bytes expected.
        want: u64,
        /// The chain of causes.
        reason: String,
    },
    /// Bytes that do not hash to their name.
    #[error("{what} from {place} has the wrong content: expected {expected}, got {actual}; it was not kept: {remedy}")]
    DigestMismatch {
        /// Which object.
        what: String,
        /// Where it came from.
        place: String,
        /// The digest asked for.
        expected: Box<Digest>,
        /// The digest received.
        actual: Box<Digest>,
        /// What to do.
        remedy: &'static str,
    },
    /// More or fewer bytes than announced.
    #[error(
        "{what} from {place} has the wrong size: its descriptor says {expected} bytes, got {actual}; it was not kept"
    )]
    SizeMismatch {
        /// Which object.
        what: String,
        /// Where it came from.
        place: String,
        /// The descriptor's size.
        expected: u64,
        /// What came: the bytes counted until it was certain.
        actual: u64,
    },
    /// No entry for the platform.
    #[error("`{reference}` has no image for {wanted}; it has: {available}")]
    NoPlatform {
        /// The image.
        reference: String,
        /// What was looked for.
        wanted: Platform,
        /// What there is.
        available: String,
    },
    /// A single image for another machine.
    #[error("`{reference}` is an image for {found}, not for {wanted}")]
    WrongPlatform {
        /// The image.
        reference: String,
        /// What was looked for.
        wanted: Platform,
        /// What its configuration says.
        found: String,
    },
    /// A manifest, index, configuration or layout that breaks its format.
    #[error("{what} of `{reference}` is malformed: {reason}")]
    Malformed {
        /// Which document.
        what: String,
        /// The image.
        reference: String,
        /// What is wrong.
        reason: String,
    },
    /// A format that is known and not supported.
    #[error("{what} of `{reference}` has the type `{media_type}`, which is not supported: {reason}")]
    Unsupported {
        /// Which object.
        what: String,
        /// The image.
        reference: String,
        /// Its media type.
        media_type: String,
        /// Why, or what would be.
        reason: &'static str,
    },
    /// A file or folder that was named and is not there.
    #[error("`{path}` cannot be used as {wanted}: there is no such {kind}")]
    Absent {
        /// The file or folder.
        path: PathBuf,
        /// `an image archive`, `an OCI layout`, `a root file system`.
        wanted: &'static str,
        /// `file` or `folder`.
        kind: &'static str,
    },
    /// A layout or archive on disk without the image.
    #[error("{place}: no {what}; {available}")]
    NotThere {
        /// The layout, archive or folder, with what it is.
        place: String,
        /// What was looked for.
        what: String,
        /// What there is.
        available: String,
    },
    /// A file or folder that is not what its reference says, or is damaged.
    #[error("`{path}` cannot be used as {wanted}: {reason}")]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// `an image archive`, `a root file system`.
        wanted: &'static str,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Where an image cannot be saved to.
    #[error("cannot save to `{path}`: {reason}")]
    Target {
        /// The folder or file.
        path: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// Offline, and something is missing.
    #[error(
        "offline, and {missing} of `{reference}` is not in the cache; on a connected machine: slurm-factory image pull {reference}"
    )]
    NotCached {
        /// What is missing.
        missing: String,
        /// The image.
        reference: String,
    },
    /// No space left, or a quota reached.
    #[error(
        "no space left for {what}: {needed} more bytes are needed at `{path}` ({source}); free some (slurm-factory clean), or choose another --cache-dir"
    )]
    NoSpace {
        /// What was written.
        what: String,
        /// The file.
        path: PathBuf,
        /// Bytes not yet written.
        needed: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// A file operation failed; the error names the path.
    #[error("image store: {0}")]
    Io(#[source] io::Error),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl ImageError {
    /// Whether another place could do better: it is not this machine's fault, and nobody told us to stop.
    pub(crate) fn may_be_elsewhere(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Unauthorized { .. }
                | Self::Helper { .. }
                | Self::NotFound { .. }
                | Self::RateLimited { .. }
                | Self::Server { .. }
                | Self::Cut { .. }
                | Self::DigestMismatch { .. }
                | Self::SizeMismatch { .. }
                | Self::Malformed { .. }
                | Self::Unsupported { .. }
        )
    }

    /// Whether the place would fail for anything else as well.
    pub(crate) fn is_of_the_whole_place(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Unauthorized { .. }
                | Self::Helper { .. }
                | Self::RateLimited { .. }
                | Self::Server { .. }
        )
    }

    /// Why a `kind` that was named cannot be opened as `wanted`: see [`Self::Absent`].
    pub(crate) fn unopened(error: io::Error, path: &Path, wanted: &'static str, kind: &'static str) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent { path: path.to_owned(), wanted, kind },
            _ => Self::Io(error),
        }
    }

    /// An I/O error on `path`, told apart from a full disk.
    pub(crate) fn io(error: io::Error, verb: &str, path: &Path, what: &str, needed: u64) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { what: what.to_owned(), path: path.to_owned(), needed, source: error }
            }
            _ => Self::Io(fsutil::with_path(&error, verb, path)),
        }
    }
}

fn unreachable_hint(reason: &str) -> &'static str {
    let reason = reason.to_ascii_lowercase();
    if reason.contains("certificate") || reason.contains("unknownissuer") {
        "its certificate is not trusted: name the site's CA bundle with SSL_CERT_FILE, or put it into /etc/containers/certs.d/HOST[:PORT]/ca.crt"
    } else if reason.contains("dns") || reason.contains("lookup") {
        "check the host's name, and https_proxy if this machine has no direct way out; or use a mirror or an OCI layout (oci:DIR)"
    } else {
        "check the address, and https_proxy if this machine has no direct way out; or use a mirror or an OCI layout (oci:DIR)"
    }
}

fn list(failures: &[(String, ImageError)]) -> String {
    failures.iter().map(|(place, error)| format!("\n  {place}: {error}")).collect::<Vec<_>>().concat()
}

fn wait_hint(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |d| format!(", again in {} s", d.as_secs()))
}
