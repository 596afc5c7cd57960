//! Says everything that is wrong with a cache, before Spack would trip over it or, worse, would not.

use super::index::{self, Index};
use super::{BuildcacheError, read};
use crate::publish::{Key, Store};
use crate::report::Ctx;
use crate::sign::{Fingerprint, Keyring};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What kind of fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The index, or who asks, names a package that has no manifest.
    MissingManifest,
    /// A blob is not there.
    MissingBlob,
    /// The store keeps it, or a blob of it, from us.
    Forbidden,
    /// A blob is not what its manifest says.
    ChangedBlob,
    /// Signed by a key that is not trusted.
    ForeignKey,
    /// The signature does not fit, or its key was not good.
    BadSignature,
    /// Not signed at all, or not as Spack reads it.
    NotSigned,
    /// A manifest that cannot be used.
    BadManifest,
    /// The manifest of one package in the place of another.
    Substituted,
    /// A spec whose content does not have the hash that it says.
    BadSpec,
    /// An archive that is not of its spec.
    BadTarball,
    /// Built where paths are shorter than where it is to be installed: nothing is wrong with it, and it cannot be used there.
    ShortPrefix,
    /// The index cannot be used.
    BadIndex,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// Which object of the cache.
    pub key: String,
    /// In words.
    pub detail: String,
}

impl Fault {
    pub(super) fn new(kind: Kind, key: &str, detail: String) -> Self {
        Self { kind, key: key.to_owned(), detail }
    }
}

/// What a check found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Packages that were looked at.
    pub packages: usize,
    /// Hashes of those that are right.
    pub good: BTreeSet<String>,
    /// Who signed how many of them.
    pub signers: BTreeMap<Fingerprint, usize>,
    /// How many of them nobody signed, where that was allowed.
    pub unsigned: usize,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// What is no fault and may surprise: packages that the index does not name.
    pub notes: Vec<String>,
}

/// Follows, for each package, everything that Spack would follow, and what it does not. `scratch` is a folder of this host for
/// copies of tarballs, which are looked into when they are whole, a few at a time; without it tarballs stay unread, and that
/// they are right is not known. With `unsigned`, a package that nobody signed is no fault for that.
pub fn check(
    store: &dyn Store,
    keyring: &Keyring,
    unsigned: bool,
    scratch: Option<&Path>,
    ctx: &Ctx,
) -> Result<Report, BuildcacheError> {
    if read::only_older_layout(store, ctx)? {
        return Err(BuildcacheError::OlderLayout { address: store.address().to_owned() });
    }
    let mut report = Report::default();
    let index = match index::read(store, ctx) {
        Ok((index, version)) => {
            if version.is_none() {
                report.faults.push(Fault::new(Kind::BadIndex, read::index_at(store), "there is no index".into()));
            }
            index
        }
        Err(BuildcacheError::Format { key, reason, .. }) => {
            report.faults.push(Fault::new(Kind::BadIndex, key.as_str(), reason));
            Index::default()
        }
        Err(e) => return Err(e),
    };
    let (there, misnamed) = read::manifests(store, ctx)?;
    report.faults.extend(misnamed);
    for entry in index.entries().iter().filter(|e| !there.contains_key(&e.hash)) {
        report.faults.push(match read::spec_key(store, &entry.name, &entry.version, &entry.hash) {
            Ok(key) => {
                Fault::new(Kind::MissingManifest, key.as_str(), "the index names it, and it is not there".into())
            }
            Err(e) => Fault::new(Kind::BadIndex, read::index_at(store), format!("it names what cannot be there: {e}")),
        });
    }
    let chosen: Vec<(&String, &Key)> = there.iter().collect();
    report.packages = chosen.len();
    let answers = read::at_once(store, &chosen, |(hash, key)| {
        let answer = read::allowed(one(store, keyring, unsigned, key, hash, scratch, ctx))?;
        Ok(answer.unwrap_or_else(|reason| Err(Fault::new(Kind::Forbidden, key.as_str(), reason))))
    })?;
    for ((hash, key), answer) in chosen.iter().zip(answers) {
        match answer {
            Ok(signer) => {
                report.good.insert((*hash).clone());
                match signer {
                    Some(signer) => *report.signers.entry(signer).or_default() += 1,
                    None => report.unsigned += 1,
                }
            }
            Err(fault) => report.faults.push(fault),
        }
        if !index.has(hash) {
            report.notes.push(format!("{key} is not in the index: it is being pushed, or `buildcache index` is due"));
        }
    }
    report.faults.sort();
    Ok(report)
}

/// One package: who signed it, if somebody did.
fn one(
    store: &dyn Store,
    keyring: &Keyring,
    unsigned: bool,
    at: &Key,
    hash: &str,
    scratch: Option<&Path>,
    ctx: &Ctx,
) -> Result<Result<Option<Fingerprint>, Fault>, BuildcacheError> {
    let found = match read::package(store, Some(keyring), at, hash, ctx)? {
        Err(fault) if unsigned && fault.kind == Kind::NotSigned => read::package(store, None, at, hash, ctx)?,
        found => found,
    };
    let found = match found {
        Ok(found) => found,
        Err(fault) => return Ok(Err(fault)),
    };
    if let Some(scratch) = scratch
        && let Err(fault) = read::tarball(store, &found, &mut tempfile::tempfile_in(scratch)?, ctx)?
    {
        return Ok(Err(fault));
    }
    Ok(Ok(found.signer.map(|signer| signer.fingerprint)))
}
