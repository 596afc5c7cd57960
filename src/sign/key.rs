//! Secret keys: reading one, choosing the part of it that signs, making a new one.
//!
//! An OpenPGP certificate (RFC 9580, section 10.1) is a primary key, user ids, and subkeys, each bound to the
//! primary by a signature that says what it is for and until when:
//!
//! ```text
//! primary key   certify (and often sign)     <- its fingerprint names the whole certificate
//!   user id     "Name <mail>"
//!   subkey      sign
//!   subkey      encrypt
//! ```
//!
//! The signing part is chosen as gpg chooses it: the newest valid signing subkey whose secret is there, else the
//! primary key. Everything that is wrong with a key is said here, before hours of work depend on it.

use super::agent::{Agent, AgentKey};
use super::{Fingerprint, SignError, day, memory};
use crate::fsutil;
use crate::secret::Secret;
use base64::Engine;
use fs_err as fs;
use sequoia_openpgp as openpgp;

use openpgp::armor;
use openpgp::cert::amalgamation::ValidAmalgamation;
use openpgp::cert::amalgamation::key::PrimaryKey;
use openpgp::cert::{Cert, CertParser, ValidCert};
use openpgp::crypto::{KeyPair, Signer, mpi};
use openpgp::packet::key::{Key4, PrimaryRole, PublicParts, SecretKeyMaterial, SecretParts, UnspecifiedRole};
use openpgp::packet::signature::SignatureBuilder;
use openpgp::packet::{Key, Packet, UserID};
use openpgp::parse::{PacketParser, Parse};
use openpgp::policy::StandardPolicy;
use openpgp::serialize::{Serialize, SerializeInto};
use openpgp::types::{Curve, HashAlgorithm, KeyFlags, RevocationStatus, SignatureType, SymmetricAlgorithm};
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The kind of a new key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Small and quick, and not open to timing attacks on RSA. gpg reads it since 2.1.
    #[default]
    Ed25519,
    /// For verifiers that know nothing newer.
    Rsa4096,
}

/// A signing key that has been found fit and has been unlocked.
#[derive(Clone)]
pub struct SigningKey {
    /// The public half only.
    cert: Cert,
    part: Part,
    expires: Option<SystemTime>,
}

/// What signs: a secret in our memory, or the agent that keeps it.
#[derive(Clone)]
enum Part {
    Pair(Box<KeyPair>),
    Agent(Box<AgentKey>),
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.fingerprint())
    }
}

impl SigningKey {
    /// Reads an armored or binary secret key that nobody but its owner may read.
    pub fn from_file(path: &Path, passphrase: Option<&Secret<String>>) -> Result<Self, SignError> {
        let bytes = read_secret_file(path)?;
        Self::from_bytes(&format!("`{}`", path.display()), &bytes, passphrase)
    }

    /// Takes an armored or binary secret key, also one wrapped in base64, as CI systems keep it. `origin` names
    /// where it came from in errors.
    pub fn from_bytes(
        origin: &str,
        bytes: &Secret<Vec<u8>>,
        passphrase: Option<&Secret<String>>,
    ) -> Result<Self, SignError> {
        memory::keep_private()?;
        let mut certs = parse_certs(origin, bytes.expose())?;
        if certs.iter().any(Cert::is_tsk) {
            certs.retain(Cert::is_tsk);
        }
        if certs.len() > 1 {
            let fingerprints = certs.iter().map(|c| c.fingerprint().to_hex()).collect();
            return Err(SignError::SeveralKeys { origin: origin.to_owned(), fingerprints });
        }
        let Some(cert) = certs.pop() else {
            return Err(SignError::NotAKey { origin: origin.to_owned(), reason: "it is empty".to_owned() });
        };
        Self::from_cert(origin, cert, passphrase, SystemTime::now())
    }

    pub(super) fn from_cert(
        origin: &str,
        cert: Cert,
        passphrase: Option<&Secret<String>>,
        now: SystemTime,
    ) -> Result<Self, SignError> {
        let policy = StandardPolicy::new();
        let valid = usable(&cert, &policy, now)?;
        let key = choose(origin, &valid)?;
        let expires = valid.primary_key().key_expiration_time();
        let pair = unlock(key, passphrase)?;
        Ok(Self { expires, part: Part::Pair(Box::new(pair)), cert: cert.strip_secret_key_material() })
    }

    /// A key that gpg-agent keeps, named by its fingerprint or that of its signing subkey.
    pub fn from_agent(agent: &Agent, fingerprint: &Fingerprint) -> Result<Self, SignError> {
        let (cert, key, expires) = agent.key(fingerprint)?;
        Ok(Self { cert, part: Part::Agent(Box::new(key)), expires })
    }

    /// The certificate's fingerprint: what users compare.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.cert.fingerprint())
    }

    /// The fingerprint of the part that signs; the same as [`Self::fingerprint`] unless that is a subkey.
    pub fn signing_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.public().fingerprint())
    }

    /// When the key expires.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    /// The armored public key.
    pub fn public_armored(&self) -> Result<String, SignError> {
        armored_public(&self.cert)
    }

    pub(super) fn cert(&self) -> &Cert {
        &self.cert
    }

    pub(super) fn signer(&self) -> Box<dyn Signer + Send + Sync> {
        match &self.part {
            Part::Pair(pair) => pair.clone(),
            Part::Agent(key) => key.clone(),
        }
    }

    fn public(&self) -> &Key<PublicParts, UnspecifiedRole> {
        match &self.part {
            Part::Pair(pair) => pair.public(),
            Part::Agent(key) => key.public(),
        }
    }

    pub(super) fn hash(&self) -> HashAlgorithm {
        hash_for(self.public().mpis())
    }

    pub(super) fn failed(&self, verb: &'static str, error: &openpgp::anyhow::Error) -> SignError {
        SignError::Crypto { verb, fingerprint: self.fingerprint().to_string(), reason: chain(error) }
    }
}

/// The digest that goes with a key. gpg refuses one that is shorter than an ECDSA key.
pub(super) fn hash_for(key: &mpi::PublicKey) -> HashAlgorithm {
    let wide = match key {
        mpi::PublicKey::ECDSA { curve, .. } | mpi::PublicKey::EdDSA { curve, .. } => {
            curve.bits().map_or(true, |bits| bits > 256)
        }
        mpi::PublicKey::Ed448 { .. } => true,
        _ => false,
    };
    if wide { HashAlgorithm::SHA512 } else { HashAlgorithm::SHA256 }
}

/// What there is to say about a key without unlocking it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct KeyInfo {
    /// The full fingerprint.
    pub fingerprint: Fingerprint,
    /// Names and addresses.
    pub user_ids: Vec<String>,
    /// For instance `EdDSA` or `RSA 4096`.
    pub algorithm: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it expires.
    pub expires: Option<u64>,
    /// Taken back by its owner.
    pub revoked: bool,
    /// Whether it signs now: valid, of the right kind, and the secret is here.
    pub can_sign: bool,
    /// Why not, when it does not.
    pub why_not: Option<String>,
    /// The secret half is here.
    pub has_secret: bool,
    /// The secret half needs a passphrase.
    pub protected: bool,
    /// This key signs when none is configured.
    pub default: bool,
}

impl KeyInfo {
    pub(super) fn of(cert: &Cert, default: bool, now: SystemTime) -> Self {
        let policy = StandardPolicy::new();
        let primary = cert.primary_key().key();
        let bits = primary.mpis().bits().filter(|_| matches!(primary.mpis(), mpi::PublicKey::RSA { .. }));
        let why_not = usable(cert, &policy, now)
            .and_then(|valid| choose("the store", &valid).map(|_| ()))
            .err()
            .map(|error| error.to_string());
        Self {
            fingerprint: Fingerprint::of(&cert.fingerprint()),
            user_ids: cert.userids().map(|u| String::from_utf8_lossy(u.userid().value()).into_owned()).collect(),
            algorithm: bits.map_or_else(|| primary.pk_algo().to_string(), |bits| format!("RSA {bits}")),
            created: seconds(primary.creation_time()),
            expires: cert
                .with_policy(&policy, now)
                .ok()
                .and_then(|valid| valid.primary_key().key_expiration_time())
                .map(seconds),
            revoked: matches!(cert.revocation_status(&policy, now), RevocationStatus::Revoked(_)),
            can_sign: why_not.is_none(),
            why_not,
            has_secret: cert.is_tsk(),
            protected: cert.keys().secret().any(|k| !k.key().has_unencrypted_secret()),
            default,
        }
    }
}

/// A new key, both halves armored.
pub struct Generated {
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// The secret half.
    pub secret: Secret<Vec<u8>>,
    /// The public half.
    pub public: String,
}

/// Makes a key that certifies and signs, without subkeys: one fingerprint, the one that gpg prints.
///
/// It has the form that gpg gives its keys: key flags and expiry in the user id's binding, no direct-key signature, and no
/// critical subpacket but time, flags and expiry. rpm before 4.19 parses OpenPGP by itself and imports nothing else;
/// Sequoia's own `CertBuilder` marks the primary user id as critical.
pub fn generate(
    name: &str,
    mail: &str,
    valid_for: Option<Duration>,
    algorithm: Algorithm,
) -> Result<Generated, SignError> {
    memory::keep_private()?;
    let failed = |error: openpgp::anyhow::Error| SignError::Crypto {
        verb: "make a key",
        fingerprint: format!("for `{name} <{mail}>`"),
        reason: chain(&error),
    };
    let make = || -> openpgp::Result<Cert> {
        let user_id = if mail.is_empty() { UserID::from(name) } else { UserID::from_address(name, None, mail)? };
        let key: Key<SecretParts, PrimaryRole> = match algorithm {
            Algorithm::Ed25519 => Key4::generate_ecc(true, Curve::Ed25519)?.into(),
            Algorithm::Rsa4096 => Key4::generate_rsa(4096)?.into(),
        };
        let mut signer = key.clone().into_keypair()?;
        let cert = Cert::from_packets(std::iter::once(Packet::from(key)))?;
        let template = SignatureBuilder::new(SignatureType::PositiveCertification)
            .set_key_flags(KeyFlags::empty().set_certification().set_signing())?
            .set_key_validity_period(valid_for)?
            .set_preferred_hash_algorithms(vec![HashAlgorithm::SHA512, HashAlgorithm::SHA256])?
            .set_preferred_symmetric_algorithms(vec![SymmetricAlgorithm::AES256, SymmetricAlgorithm::AES128])?
            .set_hash_algo(HashAlgorithm::SHA512);
        let binding = user_id.bind(&mut signer, &cert, template)?;
        Ok(cert.insert_packets([Packet::from(user_id), binding.into()])?.0)
    };
    let cert = make().map_err(failed)?;
    let secret = cert.as_tsk().armored().to_vec().map_err(failed)?;
    Ok(Generated {
        fingerprint: Fingerprint::of(&cert.fingerprint()),
        secret: Secret::new(secret),
        public: armored_public(&cert)?,
    })
}

/// Reads a secret file whose mode keeps others out. Mode and content are those of one open file.
pub(super) fn read_secret_file(path: &Path) -> Result<Secret<Vec<u8>>, SignError> {
    memory::keep_private()?;
    let mut file = fs::File::open(path).map_err(SignError::Io)?;
    let metadata = file.metadata().map_err(SignError::Io)?;
    let mode = metadata.permissions().mode() & 0o7777;
    let bytes = Secret::read(&mut file).map_err(|e| SignError::Io(fsutil::with_path(&e, "read", path)))?;
    // What is no secret key is told as what it is, by who reads it.
    let is_secret = || parse_certs("it", bytes.expose()).is_ok_and(|certs| certs.iter().any(Cert::is_tsk));
    if mode & 0o077 != 0 && is_secret() {
        return Err(SignError::LoosePermissions { path: path.to_owned(), mode });
    }
    Ok(bytes)
}

/// Every certificate in armored (one block or many), binary or base64-wrapped bytes.
pub(super) fn parse_certs(origin: &str, bytes: &[u8]) -> Result<Vec<Cert>, SignError> {
    const BEGIN: &[u8] = b"-----BEGIN PGP ";
    let refuse = |reason: String| SignError::NotAKey { origin: origin.to_owned(), reason };
    let mut blocks = Vec::new();
    let starts: Vec<usize> = memchr::memmem::find_iter(bytes, BEGIN).collect();
    let unwrapped;
    if starts.is_empty() {
        unwrapped = unwrap_base64(bytes);
        if let Some(inner) = &unwrapped {
            return parse_certs(origin, inner.expose());
        }
        blocks.push(bytes);
    } else {
        let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
        blocks.extend(starts.iter().zip(ends).filter_map(|(start, end)| bytes.get(*start..end)));
    }
    let mut certs = Vec::new();
    for block in blocks {
        let parser = PacketParser::from_bytes(block).map_err(|e| refuse(chain(&e)))?;
        for cert in CertParser::from(parser) {
            certs.push(cert.map_err(|e| refuse(chain(&e)))?);
        }
    }
    if certs.is_empty() { Err(refuse("nothing was found".to_owned())) } else { Ok(certs) }
}

/// The bytes inside base64 text, when it is that and an OpenPGP key is inside.
fn unwrap_base64(bytes: &[u8]) -> Option<Secret<Vec<u8>>> {
    let mut text: Vec<u8> = Vec::with_capacity(bytes.len());
    text.extend(bytes.iter().filter(|b| !b.is_ascii_whitespace()));
    let text = Secret::new(text);
    let inner = base64::engine::general_purpose::STANDARD.decode(text.expose()).map(Secret::new).ok()?;
    // The first byte of an OpenPGP packet has its high bit set (RFC 9580, section 4.2).
    let is_key =
        inner.expose().first().is_some_and(|b| b & 0x80 != 0) || inner.expose().starts_with(b"-----BEGIN PGP ");
    is_key.then_some(inner)
}

pub(super) fn armored_public(cert: &Cert) -> Result<String, SignError> {
    let write = || -> openpgp::Result<Vec<u8>> {
        let mut writer = armor::Writer::new(Vec::new(), armor::Kind::PublicKey)?;
        cert.export(&mut writer)?;
        Ok(writer.finalize()?)
    };
    write().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(|error| SignError::Crypto {
        verb: "export",
        fingerprint: cert.fingerprint().to_hex(),
        reason: chain(&error),
    })
}

/// The certificate at `now`, unless it is expired, revoked or weaker than what is accepted today.
pub(super) fn usable<'a>(
    cert: &'a Cert,
    policy: &'a StandardPolicy<'a>,
    now: SystemTime,
) -> Result<ValidCert<'a>, SignError> {
    let fingerprint = Fingerprint::of(&cert.fingerprint());
    if cert.primary_key().key().version() != 4 {
        let reason = "it is a version 6 key, which gpg and Spack cannot check".to_owned();
        return Err(SignError::CannotSign { fingerprint, reason });
    }
    if let RevocationStatus::Revoked(signatures) = cert.revocation_status(policy, now) {
        let reason = signatures
            .first()
            .and_then(|s| s.reason_for_revocation())
            .map_or_else(|| "no reason given".to_owned(), |(code, _)| code.to_string());
        return Err(SignError::Revoked { fingerprint, reason });
    }
    let created = cert.primary_key().key().creation_time();
    if created > now {
        return Err(SignError::NotYetValid { fingerprint, from: day(created) });
    }
    let valid = cert
        .with_policy(policy, now)
        .map_err(|error| SignError::CannotSign { fingerprint: fingerprint.clone(), reason: chain(&error) })?;
    if let Err(error) = valid.alive() {
        return Err(match valid.primary_key().key_expiration_time() {
            Some(time) if time <= now => SignError::Expired { fingerprint, since: day(time) },
            _ => SignError::CannotSign { fingerprint, reason: chain(&error) },
        });
    }
    Ok(valid)
}

type SecretKey = Key<openpgp::packet::key::SecretParts, UnspecifiedRole>;

/// The part of the certificate that signs.
fn choose(origin: &str, valid: &ValidCert<'_>) -> Result<SecretKey, SignError> {
    let fingerprint = Fingerprint::of(&valid.fingerprint());
    let mut best: Option<(bool, SystemTime, SecretKey)> = None;
    let mut reasons: Vec<String> = Vec::new();
    let mut without_secret = false;
    for candidate in valid.keys().for_signing() {
        let key: &Key<PublicParts, UnspecifiedRole> = candidate.key();
        let id = key.keyid();
        if let RevocationStatus::Revoked(_) = candidate.revocation_status() {
            reasons.push(format!("its signing subkey {id} is revoked"));
        } else if candidate.alive().is_err() {
            reasons.push(match candidate.key_expiration_time() {
                Some(time) => format!("its signing subkey {id} expired on {}", day(time)),
                None => format!("its signing subkey {id} is not valid now"),
            });
        } else if !key.pk_algo().is_supported() {
            reasons.push(format!("the algorithm {} is not supported", key.pk_algo()));
        } else if let Ok(secret) = key.clone().parts_into_secret()
            && is_material(secret.secret())
        {
            let rank = (!candidate.primary(), key.creation_time());
            if best.as_ref().is_none_or(|(sub, time, _)| rank > (*sub, *time)) {
                best = Some((rank.0, rank.1, secret));
            }
        } else {
            without_secret = true;
        }
    }
    match best {
        Some((_, _, key)) => Ok(key),
        None if without_secret => Err(SignError::NoSecret { origin: origin.to_owned(), fingerprint }),
        None if reasons.is_empty() => Err(SignError::CannotSign {
            fingerprint,
            reason: "it is for other uses only, such as encryption".to_owned(),
        }),
        None => Err(SignError::CannotSign { fingerprint, reason: reasons.join(", ") }),
    }
}

/// False for the stubs that gpg leaves for a key on a card or kept elsewhere.
fn is_material(secret: &SecretKeyMaterial) -> bool {
    match secret {
        SecretKeyMaterial::Unencrypted(_) => true,
        SecretKeyMaterial::Encrypted(encrypted) => encrypted.s2k().is_supported(),
    }
}

fn unlock(key: SecretKey, passphrase: Option<&Secret<String>>) -> Result<KeyPair, SignError> {
    let fingerprint = Fingerprint::of(&key.fingerprint());
    let key = if key.has_unencrypted_secret() {
        key
    } else {
        let Some(passphrase) = passphrase else { return Err(SignError::NeedsPassphrase { fingerprint }) };
        // A wrong passphrase is reported as whatever the garbage looks like ("unexpected EOF").
        key.decrypt_secret(&passphrase.expose().as_str().into())
            .map_err(|_| SignError::WrongPassphrase { fingerprint: fingerprint.clone() })?
    };
    key.into_keypair().map_err(|error| SignError::Crypto {
        verb: "unlock",
        fingerprint: fingerprint.to_string(),
        reason: chain(&error),
    })
}

/// An error of the library with its causes, in one line.
pub(super) fn chain(error: &openpgp::anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

pub(super) fn io_error(error: openpgp::anyhow::Error) -> Result<io::Error, openpgp::anyhow::Error> {
    error.downcast::<io::Error>()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
