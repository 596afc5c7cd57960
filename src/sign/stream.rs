//! Making signatures while the bytes pass by.
//!
//! A version 4 signature (RFC 9580, section 5.2.4) is made over a digest of the data followed by a short trailer:
//!
//! ```text
//! data ......................  | trailer: type, algorithms, creation time, issuer
//! `---- SHA-256 up to here is the archive's checksum
//! `------------------------------------------------- SHA-256 up to here is what the key signs
//! ```
//!
//! So one running SHA-256 serves both: it is copied before the trailer goes in. Keys that need a longer digest
//! (see [`SigningKey::hash`]) have a second one run beside it.

use super::key::{SigningKey, chain};
use super::{Fingerprint, SignError};
use sequoia_openpgp as openpgp;

use openpgp::armor;
use openpgp::crypto::hash::Context;
use openpgp::packet::Packet;
use openpgp::packet::signature::SignatureBuilder;
use openpgp::serialize::Serialize;
use openpgp::serialize::stream::{Message, Signer};
use openpgp::types::{HashAlgorithm, SignatureType};
use std::io::{self, Read, Write};

/// The longest line that gpg takes in clear-signed text without cutting it.
const LONGEST_LINE: usize = 19_995;

/// A detached signature, armored: the content of an `.asc` file.
#[derive(Debug, Clone)]
pub struct DetachedSignature {
    /// The text.
    pub armored: String,
    /// The certificate that it was made with.
    pub fingerprint: Fingerprint,
}

/// Hashes what is written to it, for a checksum and for a signature, in one pass.
pub struct SigningHasher<'k> {
    key: &'k SigningKey,
    sha256: Context,
    wide: Option<Context>,
    length: u64,
}

impl<'k> SigningHasher<'k> {
    /// Begins.
    pub fn new(key: &'k SigningKey) -> Result<Self, SignError> {
        let context = |algorithm: HashAlgorithm| {
            algorithm.context().map(|builder| builder.for_signature(4)).map_err(|e| key.failed("hash", &e))
        };
        let wide = match key.hash() {
            HashAlgorithm::SHA256 => None,
            other => Some(context(other)?),
        };
        Ok(Self { key, sha256: context(HashAlgorithm::SHA256)?, wide, length: 0 })
    }

    /// How many bytes were written.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Takes more of the data.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(wide) = &mut self.wide {
            wide.update(bytes);
        }
        self.length += bytes.len() as u64;
    }

    /// Ends: the SHA-256 in hexadecimal, and the signature.
    pub fn finish(self) -> Result<(String, DetachedSignature), SignError> {
        let key = self.key;
        let failed = |error: &openpgp::anyhow::Error| key.failed("sign", error);
        let digest = self.sha256.clone().into_digest().map_err(|e| failed(&e))?;
        let context = self.wide.unwrap_or(self.sha256);
        let signature = SignatureBuilder::new(SignatureType::Binary)
            .sign_hash(&mut key.signer(), context)
            .map_err(|e| failed(&e))?;
        let write = || -> openpgp::Result<Vec<u8>> {
            let mut writer = armor::Writer::new(Vec::new(), armor::Kind::Signature)?;
            Packet::from(signature).serialize(&mut writer)?;
            Ok(writer.finalize()?)
        };
        let armored = write().map_err(|e| failed(&e))?;
        Ok((
            hex::encode(digest),
            DetachedSignature {
                armored: String::from_utf8_lossy(&armored).into_owned(),
                fingerprint: key.fingerprint(),
            },
        ))
    }
}

impl Write for SigningHasher<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Signs something that is already written, such as a package that came without a signature. Returns its SHA-256
/// in hexadecimal as well.
pub fn sign_reader(key: &SigningKey, mut data: impl Read) -> Result<(String, DetachedSignature), SignError> {
    let mut hasher = SigningHasher::new(key)?;
    io::copy(&mut data, &mut hasher).map_err(SignError::Io)?;
    hasher.finish()
}

/// The text inside a clear-signed message (RFC 9580, section 7), as Spack keeps its manifests.
///
/// As gpg does it: the last line's end belongs to the frame, not to the text, and is not signed.
pub fn clearsign(key: &SigningKey, text: &str) -> Result<String, SignError> {
    if let Some((index, line)) = text.lines().enumerate().find(|(_, line)| line.len() > LONGEST_LINE) {
        return Err(SignError::LongLine { line: index + 1, length: line.len() });
    }
    let text = text.strip_suffix('\n').unwrap_or(text);
    let mut out = Vec::new();
    let write = |out: &mut Vec<u8>| -> openpgp::Result<()> {
        let message = Message::new(out);
        let template = SignatureBuilder::new(SignatureType::Text);
        let mut signer =
            Signer::with_template(message, key.signer(), template)?.hash_algo(key.hash())?.cleartext().build()?;
        signer.write_all(text.as_bytes())?;
        signer.finalize()?;
        Ok(())
    };
    write(&mut out).map_err(|error| SignError::Crypto {
        verb: "clear-sign",
        fingerprint: key.fingerprint().to_string(),
        reason: chain(&error),
    })?;
    String::from_utf8(out).map_err(|error| SignError::Crypto {
        verb: "clear-sign",
        fingerprint: key.fingerprint().to_string(),
        reason: error.to_string(),
    })
}
