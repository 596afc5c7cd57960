//! Spack's binary cache, layout version 3, written and read without Spack.
//!
//! ```text
//! blobs/sha256/<c[:2]>/<c>                                    c = SHA-256 of the object as it is stored
//! v3/layout.json                                              {"signing": "gpg"}
//! v3/manifests/spec/<name>/<name>-<version>-<hash>.spec.manifest.json    clear-signed; names two blobs:
//!                                                             the package's tarball and its spec
//! v3/manifests/index/index.manifest.json                      names the index, a blob
//! v3/manifests/key/<FINGERPRINT>.key.manifest.json            names an armored public key, a blob
//! v3/manifests/key/keys.manifest.json                         names the list of fingerprints, a blob
//! ```
//!
//! Source of the format: the documentation of Spack v1.0 ("Build Caches", "Build cache layout") and files that v1.0.0 and
//! v1.1.0 wrote. Stock Spack reads what is written here and checks the signatures; `tests/buildcache` shows it.
//!
//! - [`Tree`] is a finished install tree, of which nothing is changed;
//! - [`push`] writes what is not there yet: blobs, then the manifests that name them, then the index;
//! - [`check`](mod@check) follows everything that Spack would follow, and more: Spack takes any validly signed manifest for the
//!   package at whose place it lies, so one that is moved to another's place installs the wrong thing. Here the requested hash
//!   must be the hash of the spec that the manifest names, computed again from its content;
//! - [`index::rebuild`] makes the index from the manifests; [`prune::prune`] removes what nothing names.
//!
//! In an OCI registry the same lies as Spack's `oci://` mirrors have it: [`mod@oci`].
//!
//! An index is replaced only if it is still the one that was read, else the merge is done again: two publishers at once lose
//! nothing, as long as the [`Store`](crate::publish::Store) keeps its promises.

pub mod check;
mod classify;
mod excerpt;
pub mod index;
pub mod keys;
pub mod manifest;
mod oci;
pub mod prune;
mod push;
mod read;
mod ready;
pub mod spec;
mod tarball;
mod tree;

pub use excerpt::{Excerpt, Wanted, excerpt};
pub use index::Entry;
pub use push::{Again, Done, Pushed, Request, Undone, push, would_push};
pub use tree::{DATABASE, InTree, Selection, Tree};

use crate::publish::{Key, Store, StoreError, TRIES};
use crate::report::Interrupted;
use crate::sign::SignError;
use std::io;
use std::path::PathBuf;

/// Why a cache was not written, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BuildcacheError {
    /// A file operation on this host failed.
    #[error("buildcache: {0}")]
    Io(#[from] io::Error),
    /// The place where the cache is failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Not a Spack install tree.
    #[error(
        "`{path}` is no install tree of Spack: {reason}; give the folder that holds `.spack-db`, or a build folder of \
         slurm-factory"
    )]
    NotATree {
        /// What was given.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A package of the tree cannot be pushed as it is.
    #[error("{package} in `{path}` cannot be pushed: {reason}")]
    Package {
        /// Name, version and hash.
        package: String,
        /// Its prefix on this host, or the tree.
        path: PathBuf,
        /// Cause and remedy.
        reason: String,
    },
    /// The tree has no such package.
    #[error("the install tree `{path}` has no installed package `{wanted}`; it has: {known}")]
    Unknown {
        /// The tree.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// Names of those that are there.
        known: String,
    },
    /// An object of the cache is not what the format says.
    #[error("{address}/{key} is not what it should be: {reason}")]
    Format {
        /// The store.
        address: String,
        /// The object.
        key: Key,
        /// What is wrong.
        reason: String,
    },
    /// An older layout lies there.
    #[error(
        "{address} holds a buildcache of an older layout (`build_cache/`), which is left alone; choose another place, or remove \
         it when nobody reads it any more"
    )]
    OlderLayout {
        /// The store.
        address: String,
    },
    /// A registry has no place for keys.
    #[error(
        "{address}: a binary cache in a registry has no keys, in Spack's layout and so in ours; get the public key another way, compare its \
         fingerprint, and give it with --key"
    )]
    NoKeys {
        /// The store.
        address: String,
    },
    /// Others replace the index again and again.
    #[error("{address}: the index was replaced by others {tries} times while it was being merged; try again")]
    Contended {
        /// The store.
        address: String,
        /// How often it was tried.
        tries: u32,
    },
}

impl BuildcacheError {
    fn contended(store: &dyn Store) -> Self {
        Self::Contended { address: store.address().to_owned(), tries: TRIES }
    }
}

/// Where a Slurm is published, below the root of everything published: where the older tool had it, which is kept.
///
/// ```
/// use slurm_factory::buildcache::{slurm_folder, slurm_path};
/// assert_eq!(slurm_folder("25.11", "13.4.0"), "slurm/25.11/13.4.0");
/// assert_eq!(slurm_path("25.11", "13.4.0"), "slurm/25.11/13.4.0/buildcache");
/// ```
pub fn slurm_folder(version: &str, gcc: &str) -> String {
    format!("slurm/{version}/{gcc}")
}

/// Where the packages of Spack are, that a Slurm was built of.
pub fn slurm_path(version: &str, gcc: &str) -> String {
    beside(&slurm_folder(version, gcc))
}

/// The folder of all compilers, below the root of everything published.
pub const COMPILERS: &str = "compilers";

/// Where a GCC is published, below the root of everything published.
pub fn compiler_folder(gcc: &str) -> String {
    format!("{COMPILERS}/{gcc}")
}

/// The binary cache in a folder of [`slurm_folder`].
pub fn beside(folder: &str) -> String {
    format!("{folder}/buildcache")
}

fn key(text: String) -> Result<Key, BuildcacheError> {
    Ok(Key::new(text)?)
}
