//! `install`: a package to a prefix, and `install --remove`: away again.
//!
//! ```text
//! check sum, signature, contents
//!   -> unpack beside the prefix, in a folder that nobody takes for an installation
//!   -> fill in the prefix where the manifest says that a file needs it
//!   -> rename to the prefix
//! ```
//!
//! So the prefix is either not there or whole, also after kill -9: what such a run leaves is deleted by the next one
//! that installs into the same folder. Installing what is installed changes nothing. Another package in the
//! prefix, or anything that is not ours, is never touched.

use crate::fsutil;
use crate::package::{Difference, Manifest, Package, PackageError, Record, Removal, Tree, Trust, encode_path, layout};
use crate::report::{Ctx, Interrupted};
use crate::sign::GoodSignature;
use fs_err as fs;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a folder under way is called.
const UNDER_WAY: &str = ".tmp-slurm-factory-install-";

/// Why a package is not installed or not removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The package, or the tree at the prefix, is not sound.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A file operation failed.
    #[error("install: {0}")]
    Io(#[source] io::Error),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Somebody else's files.
    #[error("`{prefix}` is not empty and holds no package of slurm-factory; choose an empty or a new folder")]
    NotOurs {
        /// The prefix.
        prefix: PathBuf,
    },
    /// Not a folder at all.
    #[error("`{prefix}` is not a folder; choose another prefix")]
    NotAFolder {
        /// The prefix.
        prefix: PathBuf,
    },
    /// Another version is there.
    #[error(
        "`{prefix}` holds {found}, and this package is {wanted}; remove it first with `slurm-factory install --remove --prefix '{prefix}'`, or choose another prefix"
    )]
    Different {
        /// The prefix.
        prefix: PathBuf,
        /// What is there.
        found: String,
        /// What was to be installed.
        wanted: String,
    },
    /// The package is there, and somebody changed it.
    #[error(
        "`{prefix}` holds this package, but not as it was installed: {}; remove it with `slurm-factory install --remove --prefix '{prefix}'` and install it again",
        first(differences)
    )]
    Changed {
        /// The prefix.
        prefix: PathBuf,
        /// What is not as it was.
        differences: Vec<Difference>,
    },
    /// The paths filled in are those of another place.
    #[error(
        "the package in `{prefix}` was installed as `{installed}` and has that path in {files} of its files; move it back, or remove it and install it here"
    )]
    Moved {
        /// Where it is.
        prefix: PathBuf,
        /// Where it was.
        installed: String,
        /// How many files hold the path.
        files: usize,
    },
    /// Nothing to remove.
    #[error("`{prefix}` holds no package of slurm-factory (no {}); nothing was removed", layout::MANIFEST)]
    NotInstalled {
        /// The prefix.
        prefix: PathBuf,
    },
}

fn first(differences: &[Difference]) -> String {
    let told: Vec<_> = differences.iter().take(3).map(|d| format!("`{}`: {}", d.path, d.problem)).collect();
    let more = differences.len().saturating_sub(told.len());
    if more > 0 { format!("{} and {more} more", told.join(", ")) } else { told.join(", ") }
}

/// What [`install`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was unpacked.
    Installed,
    /// `tar` had unpacked it there; paths were filled in.
    Completed,
    /// It was there already; nothing was changed.
    Unchanged,
}

/// A package at its prefix.
#[derive(Debug)]
pub struct Installation {
    /// Where, absolute.
    pub prefix: PathBuf,
    /// What.
    pub manifest: Manifest,
    /// What was done.
    pub outcome: Outcome,
    /// The signature that was checked.
    pub signature: Option<GoodSignature>,
}

impl Installation {
    /// What users add to `MODULEPATH`.
    pub fn modules(&self) -> PathBuf {
        self.prefix.join(layout::MODULES)
    }
}

/// Installs the package `archive` so that it is found at `prefix`.
pub fn install(archive: &Path, prefix: &Path, trust: Trust<'_>, ctx: &Ctx) -> Result<Installation, InstallError> {
    let (package, signature) = Package::open(archive, trust, ctx)?;
    let prefix = std::path::absolute(prefix).map_err(|e| InstallError::Io(fsutil::with_path(&e, "find", prefix)))?;
    // The path that people use is what is filled in; the work is done where it leads.
    let place = if prefix.is_symlink() { fs::canonicalize(&prefix).map_err(InstallError::Io)? } else { prefix.clone() };
    let parent = fsutil::parent_of(&place).to_owned();
    fs::create_dir_all(&parent).map_err(InstallError::Io)?;
    let _lock = lock(&parent, ctx)?;
    let record = Record {
        view: encode_path(&prefix.join(layout::VIEW)),
        archive_sha256: package.sha256().to_owned(),
        signed_by: signature.first().map(|good| good.fingerprint.clone()),
    };
    let outcome = if let Some(tree) = occupied(&place)? {
        keep(&tree, &package, &prefix, &record, ctx)?
    } else {
        unpack(&package, &prefix, &place, &record, ctx)?;
        Outcome::Installed
    };
    Ok(Installation { prefix, manifest: package.manifest().clone(), outcome, signature: signature.into_iter().next() })
}

/// Removes the package at `prefix`; other files there stay, and are named.
pub fn remove(prefix: &Path, ctx: &Ctx) -> Result<Removal, InstallError> {
    let place = match fs::canonicalize(prefix) {
        Ok(place) => place,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(InstallError::NotInstalled { prefix: prefix.to_owned() });
        }
        Err(error) => return Err(InstallError::Io(error)),
    };
    let _lock = lock(fsutil::parent_of(&place), ctx)?;
    let Some(tree) = Tree::open(&place)? else {
        return Err(InstallError::NotInstalled { prefix: prefix.to_owned() });
    };
    let removal = tree.remove(ctx)?;
    if prefix.is_symlink() && !place.exists() {
        ctx.note(format!("the link `{}` now leads nowhere; it was left", prefix.display()));
    }
    Ok(removal)
}

/// The package that is at `place`, nothing when the place is free, an error when something else is there.
fn occupied(place: &Path) -> Result<Option<Tree>, InstallError> {
    let mut entries = match fs::read_dir(place) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(InstallError::NotAFolder { prefix: place.to_owned() });
        }
        Err(error) => return Err(InstallError::Io(error)),
    };
    if entries.next().is_none() {
        return Ok(None);
    }
    match Tree::open(place) {
        Ok(Some(tree)) => Ok(Some(tree)),
        // Somebody else's manifest.json is nobody's package.
        Ok(None) | Err(PackageError::Manifest { source: crate::package::manifest::ManifestError::NotOurs(_), .. }) => {
            Err(InstallError::NotOurs { prefix: place.to_owned() })
        }
        Err(error) => Err(error.into()),
    }
}

/// The prefix has a package: this one, whole, or it is an error.
fn keep(tree: &Tree, package: &Package, prefix: &Path, record: &Record, ctx: &Ctx) -> Result<Outcome, InstallError> {
    if tree.manifest() != package.manifest() {
        return Err(InstallError::Different {
            prefix: prefix.to_owned(),
            found: describe(tree.manifest()),
            wanted: describe(package.manifest()),
        });
    }
    let differences = tree.differences(true, ctx)?;
    if !differences.is_empty() {
        return Err(InstallError::Changed { prefix: prefix.to_owned(), differences });
    }
    let files = tree.holding_path();
    match tree.record() {
        Some(known) if known.view != record.view && files > 0 => {
            Err(InstallError::Moved { prefix: prefix.to_owned(), installed: known.view.clone(), files })
        }
        Some(known) if known == record => Ok(Outcome::Unchanged),
        known => {
            let filled = tree.fill_in(&prefix.join(layout::VIEW), ctx)?;
            tree.write_record(record)?;
            Ok(if filled > 0 || known.is_none() { Outcome::Completed } else { Outcome::Unchanged })
        }
    }
}

fn unpack(package: &Package, prefix: &Path, place: &Path, record: &Record, ctx: &Ctx) -> Result<(), InstallError> {
    let parent = fsutil::parent_of(place);
    let staging = tempfile::Builder::new()
        .prefix(UNDER_WAY)
        .tempdir_in(parent)
        .map_err(|e| InstallError::Io(fsutil::with_path(&e, "create a folder in", parent)))?;
    package.extract_into(staging.path(), ctx)?;
    let Some(tree) = Tree::open(staging.path())? else {
        return Err(InstallError::NotInstalled { prefix: staging.path().to_owned() });
    };
    tree.fill_in(&prefix.join(layout::VIEW), ctx)?;
    tree.write_record(record)?;
    ctx.check()?;
    let made = staging.keep();
    // An empty folder in the way is replaced by the same call.
    fs::rename(&made, place).map_err(|error| {
        let _ = fsutil::remove_tree(&made);
        InstallError::Io(error)
    })
}

fn describe(manifest: &Manifest) -> String {
    let facts = &manifest.facts;
    let plan: String = facts.plan_sha256.chars().take(12).collect();
    format!("{} (plan {plan})", facts.title())
}

/// One installer at a time in a folder; whoever holds the lock deletes what killed ones left. A file system that cannot
/// lock folders (NFS) does without both.
fn lock(parent: &Path, ctx: &Ctx) -> Result<Option<File>, InstallError> {
    let file = fs::File::open(parent).map_err(InstallError::Io)?.into_parts().0;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {
                if !told {
                    ctx.note(format!("waiting for another installation in `{}`", parent.display()));
                    told = true;
                }
                std::thread::sleep(Duration::from_millis(100));
                ctx.check()?;
            }
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
    for entry in fs::read_dir(parent).map_err(InstallError::Io)?.filter_map(Result::ok) {
        if entry.file_name().as_encoded_bytes().starts_with(UNDER_WAY.as_bytes()) {
            // Another user's may not be ours to delete; it does no harm.
            let _ = fsutil::remove_tree(&entry.path());
        }
    }
    Ok(Some(file))
}
