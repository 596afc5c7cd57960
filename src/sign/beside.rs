//! Several signatures in one `.asc` file.
//!
//! A detached signature is one packet; a file may hold several, one after the other, in one armor (RFC 9580, section 10.4).
//! gpg and sq read them all. Two armored blocks in a row would not do: gpg reads the first and is content.

use super::key::chain;
use super::{Fingerprint, SignError};
use sequoia_openpgp as openpgp;

use openpgp::armor;
use openpgp::packet::Signature;
use openpgp::parse::{PacketParser, PacketParserResult, Parse};
use openpgp::serialize::Serialize;
use openpgp::{KeyHandle, Packet};

/// What becomes of the signatures that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// They stay; an older one by the same key goes.
    Keep,
    /// They go.
    Replace,
}

/// The armored signature `new`, made with the key `by`, beside those in `existing`. `what` names the file in errors.
pub fn join(what: &str, existing: &[u8], new: &str, by: &Fingerprint) -> Result<String, SignError> {
    let mut signatures = packets(what, existing)?;
    signatures.retain(|old| {
        !old.get_issuers().iter().any(|id| matches!(id, KeyHandle::Fingerprint(f) if Fingerprint::of(f) == *by))
    });
    signatures.extend(packets(what, new.as_bytes())?);
    let write = || -> openpgp::Result<Vec<u8>> {
        let mut writer = armor::Writer::new(Vec::new(), armor::Kind::Signature)?;
        for signature in signatures {
            Packet::from(signature).serialize(&mut writer)?;
        }
        Ok(writer.finalize()?)
    };
    let bytes = write().map_err(|error| SignError::Crypto {
        verb: "write the signatures",
        fingerprint: by.to_string(),
        reason: chain(&error),
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn packets(what: &str, bytes: &[u8]) -> Result<Vec<Signature>, SignError> {
    let unusable = |reason: String| SignError::NoSignature { what: what.to_owned(), reason };
    let mut found = Vec::new();
    let mut parser = PacketParser::from_bytes(bytes).map_err(|e| unusable(chain(&e)))?;
    while let PacketParserResult::Some(packet) = parser {
        let (packet, next) = packet.next().map_err(|e| unusable(chain(&e)))?;
        match packet {
            Packet::Signature(signature) => found.push(signature),
            other => return Err(unusable(format!("it holds a {} packet, which is no signature", other.tag()))),
        }
        parser = next;
    }
    Ok(found)
}
