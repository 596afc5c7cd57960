//! Believing signatures: whose they are, whether they fit, and whether that key was good at the time.
//!
//! "Trusted" means one thing here: the certificate is in the [`Keyring`] that the caller gives. There is no web of
//! trust and no key server. Sequoia's standard policy decides what is too weak (SHA-1 among others), at the
//! time of the signature, so that a package stays good after its key has expired.

use super::key::{SigningKey, chain, io_error, parse_certs};
use super::{Fingerprint, SignError, day};
use fs_err as fs;
use sequoia_openpgp as openpgp;

use openpgp::cert::Cert;
use openpgp::parse::Parse;
use openpgp::parse::stream::{
    DetachedVerifierBuilder, MessageLayer, MessageStructure, VerificationError, VerificationHelper, VerifierBuilder,
};
use openpgp::policy::StandardPolicy;
use openpgp::{KeyHandle, packet::Signature};
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

/// Public keys that are trusted.
#[derive(Clone, Default)]
pub struct Keyring {
    certs: Vec<Cert>,
}

/// A signature that fits, by a trusted key that was good when it signed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct GoodSignature {
    /// The certificate.
    pub fingerprint: Fingerprint,
    /// The part of it that signed.
    pub signing_fingerprint: Fingerprint,
    /// Its first user id.
    pub user_id: String,
    /// When it was signed, in seconds since 1970.
    pub created: u64,
    /// The day on which the key expired, when it has since.
    pub key_expired: Option<String>,
}

impl Keyring {
    /// No key at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the certificates in armored or binary bytes; secret halves are dropped.
    pub fn add_bytes(&mut self, origin: &str, bytes: &[u8]) -> Result<(), SignError> {
        for cert in parse_certs(origin, bytes)? {
            self.add(cert);
        }
        Ok(())
    }

    /// Adds the certificates in a file.
    pub fn add_file(&mut self, path: &Path) -> Result<(), SignError> {
        let bytes = fs::read(path).map_err(SignError::Io)?;
        self.add_bytes(&format!("`{}`", path.display()), &bytes)
    }

    /// Adds the public half of our own key.
    pub fn add_key(&mut self, key: &SigningKey) {
        self.add(key.cert().clone());
    }

    pub(super) fn add(&mut self, cert: Cert) {
        let cert = cert.strip_secret_key_material();
        match self.certs.iter_mut().find(|c| c.fingerprint() == cert.fingerprint()) {
            Some(known) => {
                if let Ok(merged) = known.clone().merge_public(cert) {
                    *known = merged;
                }
            }
            None => self.certs.push(cert),
        }
    }

    /// Only the certificates named: a pin.
    #[must_use]
    pub fn only(&self, fingerprints: &[Fingerprint]) -> Self {
        let certs =
            self.certs.iter().filter(|c| fingerprints.contains(&Fingerprint::of(&c.fingerprint()))).cloned().collect();
        Self { certs }
    }

    /// True when nothing is trusted.
    pub fn is_empty(&self) -> bool {
        self.certs.is_empty()
    }

    /// The certificates' fingerprints.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.certs.iter().map(|c| Fingerprint::of(&c.fingerprint())).collect()
    }

    /// Checks a detached signature (armored or binary) over `data`. `what` names the data in errors.
    pub fn verify_detached(
        &self,
        what: &str,
        signature: &[u8],
        data: impl Read + Send + Sync,
    ) -> Result<GoodSignature, SignError> {
        let policy = StandardPolicy::new();
        let unusable = |reason: String| SignError::NoSignature { what: what.to_owned(), reason };
        let helper = Helper { keyring: self, what, outcome: None };
        let mut verifier = DetachedVerifierBuilder::from_bytes(signature)
            .and_then(|builder| builder.with_policy(&policy, None, helper))
            .map_err(|e| unusable(chain(&e)))?;
        verifier.verify_reader(data).map_err(|e| match io_error(e) {
            Ok(io) => SignError::Io(io),
            Err(other) => unusable(chain(&other)),
        })?;
        verifier.into_helper().outcome.unwrap_or_else(|| Err(unusable("it is empty".to_owned())))
    }

    /// Checks a clear-signed text and returns what was signed, without the end of its last line.
    pub fn verify_clearsigned(&self, what: &str, signed: &str) -> Result<(String, GoodSignature), SignError> {
        let policy = StandardPolicy::new();
        let unusable = |reason: String| SignError::NoSignature { what: what.to_owned(), reason };
        let helper = Helper { keyring: self, what, outcome: None };
        let mut verifier = VerifierBuilder::from_bytes(signed.as_bytes())
            .and_then(|builder| builder.with_policy(&policy, None, helper))
            .map_err(|e| unusable(chain(&e)))?;
        let mut text = String::new();
        verifier.read_to_string(&mut text).map_err(|e| unusable(e.to_string()))?;
        let good = verifier.into_helper().outcome.unwrap_or_else(|| Err(unusable("it is not signed".to_owned())))?;
        Ok((text, good))
    }
}

struct Helper<'k> {
    keyring: &'k Keyring,
    what: &'k str,
    outcome: Option<Result<GoodSignature, SignError>>,
}

impl VerificationHelper for Helper<'_> {
    fn get_certs(&mut self, ids: &[KeyHandle]) -> openpgp::Result<Vec<Cert>> {
        let named = |cert: &&Cert| cert.keys().any(|k| ids.iter().any(|id| k.key().key_handle().aliases(id)));
        Ok(self.keyring.certs.iter().filter(named).cloned().collect())
    }

    /// One good signature is enough; without one, the failure that says most is kept.
    fn check(&mut self, structure: MessageStructure<'_>) -> openpgp::Result<()> {
        let mut worst: Option<(u8, SignError)> = None;
        for layer in structure {
            let MessageLayer::SignatureGroup { results } = layer else { continue };
            for result in results {
                match result {
                    Ok(good) => {
                        let cert = good.ka.cert();
                        let policy = StandardPolicy::new();
                        let expired = cert
                            .with_policy(&policy, None)
                            .ok()
                            .and_then(|valid| valid.primary_key().key_expiration_time());
                        self.outcome = Some(Ok(GoodSignature {
                            fingerprint: Fingerprint::of(&cert.fingerprint()),
                            signing_fingerprint: Fingerprint::of(&good.ka.key().fingerprint()),
                            user_id: cert
                                .userids()
                                .next()
                                .map(|u| String::from_utf8_lossy(u.userid().value()).into_owned())
                                .unwrap_or_default(),
                            created: created(good.sig),
                            key_expired: expired.filter(|t| *t <= SystemTime::now()).map(day),
                        }));
                        return Ok(());
                    }
                    Err(error) => {
                        let (rank, error) = self.explain(&error);
                        if worst.as_ref().is_none_or(|(known, _)| rank > *known) {
                            worst = Some((rank, error));
                        }
                    }
                }
            }
        }
        self.outcome = worst.map(|(_, error)| Err(error));
        Ok(())
    }
}

impl Helper<'_> {
    /// The error in our words, and how much it says: a signature that does not fit outweighs an unknown signer.
    fn explain(&self, error: &VerificationError<'_>) -> (u8, SignError) {
        let what = self.what.to_owned();
        match error {
            VerificationError::BadSignature { ka, .. } => {
                (4, SignError::BadSignature { what, fingerprint: Fingerprint::of(&ka.cert().fingerprint()) })
            }
            VerificationError::BadKey { ka, error, .. } => (
                3,
                SignError::BadKey {
                    what,
                    fingerprint: Fingerprint::of(&ka.cert().fingerprint()),
                    reason: chain(error),
                },
            ),
            VerificationError::UnboundKey { cert, error, .. } => {
                (3, SignError::BadKey { what, fingerprint: Fingerprint::of(&cert.fingerprint()), reason: chain(error) })
            }
            VerificationError::MissingKey { sig } => {
                let trusted = match self.keyring.fingerprints().as_slice() {
                    [] => "none is known".to_owned(),
                    [one] => one.to_string(),
                    several => format!("{} known", several.len()),
                };
                (2, SignError::UnknownSigner { what, issuer: issuer(sig), trusted })
            }
            VerificationError::MalformedSignature { error, .. } => {
                (1, SignError::NoSignature { what, reason: chain(error) })
            }
            other => (0, SignError::NoSignature { what, reason: other.to_string() }),
        }
    }
}

fn issuer(signature: &Signature) -> String {
    let mut ids = signature.get_issuers();
    // Fingerprints say more than key ids.
    ids.sort_by_key(|id| matches!(id, KeyHandle::KeyID(_)));
    ids.first().map_or_else(|| "(not named)".to_owned(), KeyHandle::to_hex)
}

fn created(signature: &Signature) -> u64 {
    signature
        .signature_creation_time()
        .and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok())
        .map_or(0, |d| d.as_secs())
}
