//! Believing signatures: whose they are, whether they fit, and whether that key was good at the time.
//!
//! "Trusted" means one thing here: the certificate is in the [`Keyring`] that the caller gives. There is no web of
//! trust and no key server. Sequoia's standard policy decides what is too weak (SHA-1 among others), at the
//! time of the signature, so that a package stays good after its key has expired.

use super::key::{SigningKey, armored_public, chain, io_error, parse_certs};
use super::{Fingerprint, SignError, day};
use fs_err as fs;
use sequoia_openpgp as openpgp;

use openpgp::cert::Cert;
use openpgp::parse::Parse;
use openpgp::parse::stream::{
    DetachedVerifierBuilder, MessageLayer, MessageStructure, VerificationError, VerificationHelper, VerifierBuilder,
};
use openpgp::policy::StandardPolicy;
use openpgp::{KeyHandle, Packet, PacketPile, packet::Signature};
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

/// Whose signatures a file needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Signers {
    /// Of one trusted key.
    #[default]
    Any,
    /// Of every trusted key.
    All,
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

    /// Only our own key.
    pub fn of(key: &SigningKey) -> Self {
        let mut keyring = Self::new();
        keyring.add_key(key);
        keyring
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

    /// Only the certificates named: a pin. One that is not here is an error, or a misspelt pin would look like an
    /// unknown signer.
    pub fn pinned(&self, fingerprints: &[Fingerprint]) -> Result<Self, SignError> {
        let known = self.fingerprints();
        if let Some(missing) = fingerprints.iter().find(|f| !known.contains(f)) {
            return Err(SignError::PinNotTrusted { fingerprint: missing.clone(), trusted: in_words(&known) });
        }
        let certs =
            self.certs.iter().filter(|c| fingerprints.contains(&Fingerprint::of(&c.fingerprint()))).cloned().collect();
        Ok(Self { certs })
    }

    /// True when nothing is trusted.
    pub fn is_empty(&self) -> bool {
        self.certs.is_empty()
    }

    /// The certificates' fingerprints.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.certs.iter().map(|c| Fingerprint::of(&c.fingerprint())).collect()
    }

    /// All certificates, armored one after the other, as `gpg --import` takes them.
    pub fn armored(&self) -> Result<String, SignError> {
        self.certs.iter().map(armored_public).collect()
    }

    /// Checks a detached signature (armored or binary) over `data`. `what` names the data in errors. Of several
    /// signatures one must be good; see [`Self::verify_signers`].
    pub fn verify_detached(
        &self,
        what: &str,
        signature: &[u8],
        data: impl Read + Send + Sync,
    ) -> Result<GoodSignature, SignError> {
        let mut good = self.verify_signers(what, signature, data, Signers::Any)?;
        // `verify_signers` gives at least one.
        Ok(good.swap_remove(0))
    }

    /// Checks every detached signature in `signature` (armored or binary) over `data` and returns the good ones, at least
    /// one. One by a stranger counts for nothing. One by a trusted key that does not fit the data fails the whole,
    /// as it does for gpg: the signatures are then not all of this file.
    pub fn verify_signers(
        &self,
        what: &str,
        signature: &[u8],
        data: impl Read + Send + Sync,
        signers: Signers,
    ) -> Result<Vec<GoodSignature>, SignError> {
        let good = self.good_signatures(what, signature, data)?;
        let signed = |f: &Fingerprint| good.iter().any(|g| g.fingerprint == *f);
        let missing: Vec<String> = match signers {
            Signers::Any => Vec::new(),
            Signers::All => self.fingerprints().iter().filter(|f| !signed(f)).map(ToString::to_string).collect(),
        };
        if missing.is_empty() { Ok(good) } else { Err(SignError::SignerMissing { what: what.to_owned(), missing }) }
    }

    /// Who else made detached signatures of these: keys that are not known here, as the signatures name them. Whether those
    /// fit the data, nobody here can tell.
    pub fn strangers(&self, signature: &[u8]) -> Vec<String> {
        let Ok(pile) = PacketPile::from_bytes(signature) else { return Vec::new() };
        let known = |id: &KeyHandle| self.certs.iter().flat_map(Cert::keys).any(|k| k.key().key_handle().aliases(id));
        let mut strangers: Vec<String> = pile
            .into_children()
            .filter_map(|packet| match packet {
                Packet::Signature(signature) if !signature.get_issuers().iter().any(known) => Some(issuer(&signature)),
                _ => None,
            })
            .collect();
        strangers.sort();
        strangers.dedup();
        strangers
    }

    fn good_signatures(
        &self,
        what: &str,
        signature: &[u8],
        data: impl Read + Send + Sync,
    ) -> Result<Vec<GoodSignature>, SignError> {
        let policy = StandardPolicy::new();
        let unusable = |reason: String| SignError::NoSignature { what: what.to_owned(), reason };
        let helper = Helper { keyring: self, what, good: Vec::new(), worst: None };
        let mut verifier = DetachedVerifierBuilder::from_bytes(signature)
            .and_then(|builder| builder.with_policy(&policy, None, helper))
            .map_err(|e| unusable(chain(&e)))?;
        verifier.verify_reader(data).map_err(|e| match io_error(e) {
            Ok(io) => SignError::Io(io),
            Err(other) => unusable(chain(&other)),
        })?;
        verifier.into_helper().outcome().unwrap_or_else(|| Err(unusable("it is empty".to_owned())))
    }

    /// Checks a clear-signed text and returns what was signed, without the end of its last line.
    pub fn verify_clearsigned(&self, what: &str, signed: &str) -> Result<(String, GoodSignature), SignError> {
        let policy = StandardPolicy::new();
        let unusable = |reason: String| SignError::NoSignature { what: what.to_owned(), reason };
        let helper = Helper { keyring: self, what, good: Vec::new(), worst: None };
        let mut verifier = VerifierBuilder::from_bytes(signed.as_bytes())
            .and_then(|builder| builder.with_policy(&policy, None, helper))
            .map_err(|e| unusable(chain(&e)))?;
        let mut text = String::new();
        verifier.read_to_string(&mut text).map_err(|e| unusable(e.to_string()))?;
        let mut good =
            verifier.into_helper().outcome().unwrap_or_else(|| Err(unusable("it is not signed".to_owned())))?;
        // There is at least one.
        Ok((text, good.swap_remove(0)))
    }
}

struct Helper<'k> {
    keyring: &'k Keyring,
    what: &'k str,
    good: Vec<GoodSignature>,
    /// The failure that says most, and how much it says.
    worst: Option<(u8, SignError)>,
}

impl VerificationHelper for Helper<'_> {
    fn get_certs(&mut self, ids: &[KeyHandle]) -> openpgp::Result<Vec<Cert>> {
        let named = |cert: &&Cert| cert.keys().any(|k| ids.iter().any(|id| k.key().key_handle().aliases(id)));
        Ok(self.keyring.certs.iter().filter(named).cloned().collect())
    }

    /// Collects; [`Self::outcome`] judges.
    fn check(&mut self, structure: MessageStructure<'_>) -> openpgp::Result<()> {
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
                        self.good.push(GoodSignature {
                            fingerprint: Fingerprint::of(&cert.fingerprint()),
                            signing_fingerprint: Fingerprint::of(&good.ka.key().fingerprint()),
                            user_id: cert
                                .userids()
                                .next()
                                .map(|u| String::from_utf8_lossy(u.userid().value()).into_owned())
                                .unwrap_or_default(),
                            created: created(good.sig),
                            key_expired: expired.filter(|t| *t <= SystemTime::now()).map(day),
                        });
                    }
                    Err(error) => {
                        let (rank, error) = self.explain(&error);
                        if self.worst.as_ref().is_none_or(|(known, _)| rank > *known) {
                            self.worst = Some((rank, error));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// What a signature of a trusted key that does not fit says, in [`Helper::explain`].
const DOES_NOT_FIT: u8 = 4;

impl Helper<'_> {
    /// The good signatures, unless there is none, or one that does not fit.
    fn outcome(self) -> Option<Result<Vec<GoodSignature>, SignError>> {
        match self.worst {
            Some((DOES_NOT_FIT, error)) => Some(Err(error)),
            Some((_, error)) if self.good.is_empty() => Some(Err(error)),
            _ if self.good.is_empty() => None,
            _ => Some(Ok(self.good)),
        }
    }

    /// The error in our words, and how much it says: a signature that does not fit outweighs an unknown signer.
    fn explain(&self, error: &VerificationError<'_>) -> (u8, SignError) {
        let what = self.what.to_owned();
        match error {
            VerificationError::BadSignature { ka, .. } => {
                (DOES_NOT_FIT, SignError::BadSignature { what, fingerprint: Fingerprint::of(&ka.cert().fingerprint()) })
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
                let trusted = in_words(&self.keyring.fingerprints());
                (2, SignError::UnknownSigner { what, issuer: issuer(sig), trusted })
            }
            VerificationError::MalformedSignature { error, .. } => {
                (1, SignError::NoSignature { what, reason: chain(error) })
            }
            other => (0, SignError::NoSignature { what, reason: other.to_string() }),
        }
    }
}

fn in_words(fingerprints: &[Fingerprint]) -> String {
    match fingerprints {
        [] => "none is known".to_owned(),
        [one] => one.to_string(),
        several => format!("{} known", several.len()),
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
