//! OpenPGP keys and signatures, natively: no gpg is needed to sign or to verify.
//!
//! What is written here must be good for verifiers that are ten years old and for those of today: version 4
//! keys and signatures (RFC 4880, kept by RFC 9580), SHA-256 or SHA-512, never SHA-1. gpg 2.2 reads all of it.
//!
//! ```text
//! CACHE/keys/                     mode 0700
//!   default                       the fingerprint of the key that signs when none is configured
//!   <FINGERPRINT>.asc             armored secret key, mode 0600
//!   <FINGERPRINT>.pub.asc         armored public key, what users are given
//! ```
//!
//! - [`SigningKey`]: a key that has been checked and unlocked, ready to sign;
//! - [`KeyStore`]: the folder above;
//! - [`SigningHasher`]: a `Write` that sees an archive pass by and ends as its SHA-256 and its detached
//!   signature, so that gigabytes are never read a second time;
//! - [`Agent`]: signing with a key that gpg-agent keeps, its secret never here;
//! - [`Keyring`]: public keys, and what they say about a signature.
//!
//! Secret keys live in memory that is zeroed when it is dropped (Sequoia's `Protected`, our [`Secret`](crate::secret::Secret)).

mod agent;
mod beside;
mod key;
mod memory;
mod store;
mod stream;
mod verify;

pub use agent::Agent;
pub use beside::{Others, join};
pub use key::{Algorithm, Generated, KeyInfo, SigningKey, generate};
pub use memory::keep_private;
pub use store::{Created, KeyStore};
pub use stream::{DetachedSignature, SigningHasher, clearsign, sign_reader};
pub use verify::{GoodSignature, Keyring, Signers};

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::SystemTime;

/// Why a key cannot be used, or a signature not be made or believed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A file operation failed.
    #[error("keys and signatures: {0}")]
    Io(#[source] io::Error),
    /// The cache's lock could not be had.
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] crate::report::Interrupted),
    /// Others can read the secret key.
    #[error("the secret key `{path}` can be read by others (mode {mode:04o}); run `chmod 600 '{path}'`")]
    LoosePermissions {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// This is no OpenPGP key.
    #[error(
        "{origin} holds no OpenPGP key: {reason}; `gpg --armor --export FINGERPRINT` exports one that verifies, `--export-secret-keys` one that signs"
    )]
    NotAKey {
        /// Where it came from.
        origin: String,
        /// What the parser said.
        reason: String,
    },
    /// More than one secret key, and nobody said which.
    #[error("{origin} holds {} secret keys ({}); give one key a file", .fingerprints.len(), .fingerprints.join(", "))]
    SeveralKeys {
        /// Where they came from.
        origin: String,
        /// All of them.
        fingerprints: Vec<String>,
    },
    /// Only the public half is there, or a stub that points at a smart card.
    #[error(
        "{origin} holds only the public half of the signing key {fingerprint} (or a stub for a smart card); export it with `gpg --export-secret-keys`"
    )]
    NoSecret {
        /// Where it came from.
        origin: String,
        /// The key.
        fingerprint: Fingerprint,
    },
    /// Past its time.
    #[error(
        "the key {fingerprint} expired on {since}; extend it (`gpg --quick-set-expire {fingerprint} 2y`) and export it again, or use another"
    )]
    Expired {
        /// The key.
        fingerprint: Fingerprint,
        /// The day.
        since: String,
    },
    /// Its time has not come: a clock is wrong.
    #[error("the key {fingerprint} is not valid before {from}: is the clock of this host right?")]
    NotYetValid {
        /// The key.
        fingerprint: Fingerprint,
        /// The day.
        from: String,
    },
    /// Its owner took it back.
    #[error("the key {fingerprint} is revoked ({reason}); use another")]
    Revoked {
        /// The key.
        fingerprint: Fingerprint,
        /// What the revocation says.
        reason: String,
    },
    /// No part of it may sign.
    #[error("the key {fingerprint} cannot sign data: {reason}; make one that can with `slurm-factory key generate`")]
    CannotSign {
        /// The key.
        fingerprint: Fingerprint,
        /// Why.
        reason: String,
    },
    /// It is locked and no passphrase was given.
    #[error(
        "the key {fingerprint} is protected by a passphrase, and none was given: set SLURM_FACTORY_KEY_PASSPHRASE, or start from a terminal, where it is asked for"
    )]
    NeedsPassphrase {
        /// The key.
        fingerprint: Fingerprint,
    },
    /// The passphrase does not open it.
    #[error("the passphrase does not open the key {fingerprint}")]
    WrongPassphrase {
        /// The key.
        fingerprint: Fingerprint,
    },
    /// Not a fingerprint.
    #[error(
        "`{text}` is no full key fingerprint: 40 or 64 hexadecimal digits are needed (`gpg --list-keys` shows them)"
    )]
    BadFingerprint {
        /// What was given.
        text: String,
    },
    /// The store has no such key.
    #[error("there is no key {fingerprint} in `{dir}`; `slurm-factory key list` shows those that are")]
    UnknownKey {
        /// The key.
        fingerprint: Fingerprint,
        /// The key store.
        dir: PathBuf,
    },
    /// Text that gpg would read differently from what was signed.
    #[error("cannot clear-sign: line {line} has {length} characters, and gpg cuts lines after 19995")]
    LongLine {
        /// Counted from 1.
        line: usize,
        /// In bytes.
        length: usize,
    },
    /// The process cannot be closed to others.
    #[error(
        "cannot keep a secret key in memory: this process cannot be closed to others (PR_SET_DUMPABLE, RLIMIT_CORE): {0}"
    )]
    Memory(#[source] io::Error),
    /// gpg has no such key.
    #[error(
        "gpg has no key {fingerprint}; `gpg --list-secret-keys` shows those that it has, and GNUPGHOME where it looks"
    )]
    NotInGpg {
        /// The key.
        fingerprint: Fingerprint,
    },
    /// gpg or its agent could not be run.
    #[error("the key {fingerprint} is gpg's: {source}")]
    Gpg {
        /// The key.
        fingerprint: Fingerprint,
        /// What gpg said.
        source: Box<crate::process::ProcessError>,
    },
    /// The agent did not sign.
    #[error(
        "gpg-agent does not sign with the key {fingerprint}: {reason}; try `echo x | gpg --sign --local-user {fingerprint} >/dev/null` (the passphrase is asked for on GPG_TTY)"
    )]
    Agent {
        /// The key.
        fingerprint: Fingerprint,
        /// What the agent said.
        reason: String,
    },
    /// A key with a secret goes only when that is said.
    #[error(
        "the key {fingerprint} {why}; keep a copy of it (`slurm-factory key export --secret {fingerprint}`) and say --force"
    )]
    WouldLose {
        /// The key.
        fingerprint: Fingerprint,
        /// Why it is not removed just so.
        why: &'static str,
    },
    /// A pin that names no trusted key.
    #[error("no key {fingerprint} is among the keys given ({trusted}): name its file with --key, or import it")]
    PinNotTrusted {
        /// The pin.
        fingerprint: Fingerprint,
        /// The keys that are trusted, in words.
        trusted: String,
    },
    /// Not everyone has signed who must.
    #[error("{what} is not signed by {}; every key named must have signed it (--all-signers)", missing.join(", "))]
    SignerMissing {
        /// What was checked.
        what: String,
        /// The keys without a good signature.
        missing: Vec<String>,
    },
    /// The signing itself failed.
    #[error("cannot {verb} with the key {fingerprint}: {reason}")]
    Crypto {
        /// `sign`, `generate`, ...
        verb: &'static str,
        /// The key.
        fingerprint: String,
        /// What the library said.
        reason: String,
    },
    /// Nothing that could be checked.
    #[error("{what} has no usable signature: {reason}")]
    NoSignature {
        /// What was to be checked.
        what: String,
        /// Why.
        reason: String,
    },
    /// Signed by somebody we were not told to trust.
    #[error(
        "{what} is signed by the key {issuer}, which is not among the trusted keys ({trusted}); if you trust it, give its public key with --key or `slurm-factory key import`"
    )]
    UnknownSigner {
        /// What was checked.
        what: String,
        /// Fingerprint or key id, as the signature names it.
        issuer: String,
        /// How many keys are trusted, in words.
        trusted: String,
    },
    /// The bytes are not those that were signed.
    #[error("BAD signature on {what}: it is not what {fingerprint} signed; it was damaged or changed, fetch it again")]
    BadSignature {
        /// What was checked.
        what: String,
        /// The key whose signature does not fit.
        fingerprint: Fingerprint,
    },
    /// The signature fits, but the key was no longer good when it was made.
    #[error("{what} is signed by {fingerprint}, but that key cannot be believed: {reason}")]
    BadKey {
        /// What was checked.
        what: String,
        /// The key.
        fingerprint: Fingerprint,
        /// Expired, revoked, not for signing, too weak.
        reason: String,
    },
}

/// A key's full fingerprint: 40 hexadecimal digits (version 4) or 64 (version 6), in upper case.
///
/// ```
/// use slurm_factory::sign::Fingerprint;
/// let text = "0123 4567 89AB CDEF 0123  4567 89ab cdef 0123 4567";
/// assert_eq!(text.parse::<Fingerprint>().unwrap().to_string(), "0123456789ABCDEF0123456789ABCDEF01234567");
/// assert!("89ABCDEF".parse::<Fingerprint>().is_err(), "short ids can be forged");
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of(fingerprint: &sequoia_openpgp::Fingerprint) -> Self {
        Self(fingerprint.to_hex())
    }
}

impl FromStr for Fingerprint {
    type Err = SignError;

    /// Takes what people paste: with spaces or colons, in either case, with `0x` in front.
    fn from_str(text: &str) -> Result<Self, SignError> {
        let trimmed = text.trim();
        let digits = trimmed.strip_prefix("0x").or_else(|| trimmed.strip_prefix("0X")).unwrap_or(trimmed);
        let digits: String = digits.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
        if matches!(digits.len(), 40 | 64) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(digits.to_ascii_uppercase()))
        } else {
            Err(SignError::BadFingerprint { text: text.to_owned() })
        }
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = SignError;

    fn try_from(text: String) -> Result<Self, SignError> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A day as people write it, for messages.
pub fn day(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "an unknown day".to_owned(), |t| t.strftime("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::Fingerprint;

    #[test]
    fn fingerprints_are_taken_as_people_paste_them() {
        let want = "0123456789ABCDEF0123456789ABCDEF01234567";
        for text in [
            "0123456789abcdef0123456789abcdef01234567",
            "0x0123456789ABCDEF0123456789ABCDEF01234567",
            " 0123 4567 89AB CDEF 0123  4567 89AB CDEF 0123 4567\n",
            "01:23:45:67:89:AB:CD:EF:01:23:45:67:89:AB:CD:EF:01:23:45:67",
        ] {
            assert_eq!(text.parse::<Fingerprint>().unwrap().as_str(), want, "{text}");
        }
        for text in ["", "0123", "89ABCDEF01234567", "0123456789abcdef0123456789abcdef0123456g"] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
    }
}
