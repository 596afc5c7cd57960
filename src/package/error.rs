//! What can be wrong with a package or with what one is made of: each names the file, and what to do where there is something.

use super::manifest;
use crate::report::Interrupted;
use crate::sign::SignError;
use std::io;
use std::path::PathBuf;

/// Why a package cannot be written or believed.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A file operation failed.
    #[error("package: {0}")]
    Io(#[source] io::Error),
    /// The archive cannot be written.
    #[error("cannot write the archive in `{dir}`: {source}")]
    Write {
        /// The folder.
        dir: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Signing or checking a signature failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The staging folder cannot be had.
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Sockets, devices and pipes.
    #[error("`{path}` is {kind}, which a package cannot hold; remove it from the tree")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A link that would lead out of the unpacked tree.
    #[error(
        "the symlink `{path}` leads to `{target}`, outside the package; relocation should have made it relative or removed it"
    )]
    LinkOutside {
        /// The link's name in the package.
        path: PathBuf,
        /// What it says.
        target: PathBuf,
    },
    /// Two things of one name.
    #[error("two parts of the package have the name `{path}`")]
    Duplicate {
        /// The name.
        path: PathBuf,
    },
    /// A name that is not one below the package.
    #[error("`{path}` is no name inside a package: it must be relative and without `..`")]
    BadName {
        /// The name.
        path: PathBuf,
    },
    /// Somebody writes to the tree.
    #[error("`{path}` changed while it was read: {source}; is another program writing to this tree?")]
    Changed {
        /// The file.
        path: PathBuf,
        /// How it shows.
        source: io::Error,
    },
    /// The manifest cannot be written.
    #[error("cannot write manifest.json: {0}")]
    Json(#[source] serde_json::Error),
    /// This is another kind of file.
    #[error("`{path}` is not a package of slurm-factory: {reason} (`verify --foreign` looks into other archives)")]
    NotAPackage {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The compressed stream, the archive or a name in it is not sound.
    #[error("the package `{path}` is damaged, incomplete or hostile: {source}; fetch or build it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it stops making sense.
        source: io::Error,
    },
    /// The archive is not the one whose sum lies beside it.
    #[error(
        "the package `{path}` has sha256 {found}, but `{sums}` says {expected}; one of the two is old or damaged: fetch both again"
    )]
    SumMismatch {
        /// The archive.
        path: PathBuf,
        /// The file with the sum.
        sums: PathBuf,
        /// The sum in it.
        expected: String,
        /// The archive's.
        found: String,
    },
    /// The file beside it says nothing about it.
    #[error("`{sums}` holds no sha256 sum of {name}")]
    SumUnreadable {
        /// The file.
        sums: PathBuf,
        /// The archive's name.
        name: String,
    },
    /// No signature where one is required.
    #[error(
        "the package `{path}` is not signed: there is no `{signature}`; fetch it from where the package came from (`install --allow-unsigned` goes without; `verify --foreign` looks into archives of others)"
    )]
    NotSigned {
        /// The archive.
        path: PathBuf,
        /// Where the signature should be.
        signature: PathBuf,
    },
    /// What lies beside an archive does not belong to it.
    #[error("`{file}` does not belong to the archive beside it: {reason}; fetch both again, or take it away")]
    Attestation {
        /// The file.
        file: PathBuf,
        /// How it shows.
        reason: String,
    },
    /// The manifest cannot be read.
    #[error("the package `{path}`: {source}")]
    Manifest {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: manifest::ManifestError,
    },
    /// The archive does not hold what its manifest says.
    #[error("the package `{path}` does not hold what its manifest says: {entry}: {problem}")]
    Contents {
        /// The archive.
        path: PathBuf,
        /// The entry.
        entry: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What is only done with Slurm.
    #[error("`{path}` is a package of {title}: {what} takes packages of Slurm")]
    NoSlurm {
        /// The archive.
        path: PathBuf,
        /// What it is.
        title: String,
        /// The verb.
        what: &'static str,
    },
    /// Unpacking never writes over what is there.
    #[error("`{dir}` is there already and not empty; unpack into a new folder")]
    NotEmpty {
        /// The folder.
        dir: PathBuf,
    },
    /// The modulefile's template and its values do not fit.
    #[error("cannot render the modulefile: {0}")]
    Template(#[source] minijinja::Error),
}
