//! A content digest: what a blob is called, and what its bytes must hash to.
//!
//! ```text
//! sha256:447b41b16e0d03ff38be865371a7778df1b7eb0bc66d844fc83c3148075449b5
//! ^algorithm  ^64 lowercase hexadecimal digits
//! ```
//!
//! Format: OCI image-spec, `descriptor.md`, "Digests". Only sha256 is accepted: it is the one algorithm that
//! registries serve and that the specification requires everyone to understand.

use crate::sha256::Sha256;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A sha256 digest. Valid by construction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is no digest.
#[derive(Debug, thiserror::Error)]
pub enum BadDigest {
    /// Another algorithm than sha256.
    #[error("`{0}` is not a sha256 digest; only sha256 is supported")]
    Algorithm(String),
    /// Not 64 lowercase hexadecimal digits.
    #[error("`{0}` is not a digest: `sha256:` must be followed by 64 lowercase hexadecimal digits")]
    Hex(String),
}

impl Digest {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(bytes);
        Self::finish(hasher)
    }

    /// The digest of what was fed to `hasher`.
    pub fn finish(hasher: Sha256) -> Self {
        Self(hasher.finish())
    }

    /// The hexadecimal digits alone: the name of the blob's file.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first twelve digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl From<[u8; 32]> for Digest {
    fn from(sum: [u8; 32]) -> Self {
        Self(sum)
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let Some(digits) = text.strip_prefix("sha256:") else {
            return Err(BadDigest::Algorithm(text.to_owned()));
        };
        let bad = || BadDigest::Hex(text.to_owned());
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| bad())?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::Digest;

    #[test]
    fn parses_and_prints() {
        let text = Digest::of(b"abc").to_string();
        assert_eq!(text, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
    }

    #[test]
    fn refuses_what_is_no_digest() {
        for text in
            ["", "sha256:", "sha256:zz", "sha512:00", "sha256:../../etc/passwd", &format!("sha256:{}", "A".repeat(64))]
        {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
