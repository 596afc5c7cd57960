//! The bill of materials and the statement of provenance, written beside an archive and checked with it.

use super::manifest::Manifest;
use super::{Beside, PackageError, Trust, parse_sums, provenance, read_small, sbom};
use crate::sign::{Fingerprint, SignError};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::io;
use std::path::Path;

/// What is written beside an archive, and what its sums file says.
pub(super) struct Attestations {
    pub sbom: Vec<u8>,
    pub provenance: Vec<u8>,
    pub sums: String,
}

/// A file beside an archive that vouches for it, and was found to belong to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attested {
    /// Its name.
    pub file: String,
    /// Who signed it, of the keys that are trusted. A bill of materials is signed by way of the statement of provenance,
    /// which holds its sum.
    pub signers: Vec<Fingerprint>,
    /// Who else signed it: keys that are not known here.
    pub strangers: Vec<String>,
}

/// All of it is decided by the manifest and the archive's sum.
pub(super) fn make(manifest: &Manifest, archive: &str, sha256: &str) -> Result<Attestations, PackageError> {
    let beside = Beside::of(Path::new(archive));
    let [sbom_name, provenance_name] =
        [&beside.sbom, &beside.provenance].map(|path| path.to_string_lossy().into_owned());
    let sbom = sbom::document(manifest, archive, sha256).map_err(PackageError::Json)?;
    let sbom_sum = sum(&sbom);
    let subjects = [(archive, sha256), (sbom_name.as_str(), sbom_sum.as_str())];
    let provenance = provenance::statement(manifest, &subjects).map_err(PackageError::Json)?;
    let sums = format!("{sha256}  {archive}\n{sbom_sum}  {sbom_name}\n{}  {provenance_name}\n", sum(&provenance));
    Ok(Attestations { sbom, provenance, sums })
}

/// What lies beside an archive must belong to it. What does not lie there is not missed: people fetch an archive and its
/// signature alone, and older packages have no more.
pub(super) fn check(path: &Path, sha256: &str, trust: Trust<'_>) -> Result<Vec<Attested>, PackageError> {
    let mut attested: Vec<Attested> = Vec::new();
    let beside = Beside::of(path);
    let refuse = |file: &Path, reason: String| PackageError::Attestation { file: file.to_owned(), reason };
    let sums = there(&beside.sums)?.map(|text| parse_sums(&text)).unwrap_or_default();
    let mut bill = None;
    for file in [&beside.sbom, &beside.provenance] {
        let Some(bytes) = there(file)? else { continue };
        let found = sum(&bytes);
        let name = file.file_name().unwrap_or_default();
        // One that was renamed is held to the archive by its content, below.
        if let Some((expected, _)) = sums.iter().find(|(_, listed)| listed.file_name() == Some(name))
            && *expected != found
        {
            return Err(refuse(file, format!("its sha256 is {found}, and the sums say {expected}")));
        }
        let shown = name.to_string_lossy().into_owned();
        attested.push(Attested { file: shown, signers: Vec::new(), strangers: Vec::new() });
        if *file == beside.sbom {
            bill = Some(found);
            continue;
        }
        let mut files = vec![("the archive", sha256)];
        files.extend(bill.as_deref().map(|sum| ("the bill of materials", sum)));
        if let Some(reason) = provenance::disagrees(&bytes, &files) {
            return Err(refuse(file, reason));
        }
        if let Trust::Require(keyring) | Trust::RequireAll(keyring) = trust {
            let signature = there(&beside.provenance_signature)?.ok_or_else(|| PackageError::NotSigned {
                path: file.clone(),
                signature: beside.provenance_signature.clone(),
            })?;
            let what = format!("`{}`", file.display());
            let good =
                keyring.verify_signers(&what, &signature, bytes.as_slice(), trust.signers()).map_err(|e| match e {
                    SignError::Io(io) => PackageError::Io(io),
                    other => PackageError::Sign(other),
                })?;
            let signers: Vec<_> = good.into_iter().map(|good| good.fingerprint).collect();
            let strangers = keyring.strangers(&signature);
            // The bill too, if there is one: the statement was held to its sum.
            for attested in &mut attested {
                (attested.signers, attested.strangers) = (signers.clone(), strangers.clone());
            }
        }
    }
    Ok(attested)
}

fn there(path: &Path) -> Result<Option<Vec<u8>>, PackageError> {
    match read_small(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PackageError::Io(error)),
    }
}

fn sum(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
