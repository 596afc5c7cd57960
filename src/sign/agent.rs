//! Signing with a key that gpg-agent keeps: on disk under its own passphrase, on a smart card, or forwarded from another
//! host. The secret never comes into this process.
//!
//! The agent signs a digest, so a package is still read once. It is spoken to in its own protocol (Assuan; the commands
//! are in the GnuPG manual, "Agent Protocol") through `gpg-connect-agent`, which finds the socket wherever this gpg has
//! it and starts the agent when it does not run:
//!
//! ```text
//! SIGKEY <keygrip>               which key; gpg --with-keygrip lists them
//! SETHASH --hash=sha256 <hex>    what to sign
//! PKSIGN                         -> D (7:sig-val(5:eddsa(1:r32:...)(1:s32:...)))   a canonical S-expression
//! ```
//!
//! docs/decisions/0012-signing.md says why no crate does this.

use super::key::{chain, parse_certs, usable};
use super::{Fingerprint, SignError, day};
use crate::process::{ProcessError, Program};
use crate::report::Interrupt;
use sequoia_openpgp as openpgp;

use openpgp::cert::amalgamation::ValidAmalgamation;
use openpgp::cert::amalgamation::key::PrimaryKey;
use openpgp::cert::{Cert, ValidCert};
use openpgp::crypto::{self, mpi};
use openpgp::packet::Key;
use openpgp::packet::key::{PublicParts, UnspecifiedRole};
use openpgp::policy::StandardPolicy;
use openpgp::types::{HashAlgorithm, RevocationStatus};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

/// Somebody may have to find a card and type its number.
const PATIENCE: Duration = Duration::from_mins(5);

/// How gpg and its agent are reached.
#[derive(Clone, Default)]
pub struct Agent {
    /// Variables that gpg needs beside the usual ones, such as `GNUPGHOME` and `GPG_TTY`.
    pub env: Vec<(String, String)>,
    /// Ends what waits for the agent.
    pub interrupt: Interrupt,
}

type PublicKey = Key<PublicParts, UnspecifiedRole>;

/// A key that the agent signs with.
#[derive(Clone)]
pub(super) struct AgentKey {
    agent: Agent,
    public: PublicKey,
    keygrip: String,
}

/// Where gpg keeps the secret of a key.
struct Place {
    keygrip: String,
    /// Here, on a card, or nowhere (`#`).
    there: bool,
}

impl Agent {
    fn program(&self, name: &str) -> Program {
        let program = Program::new(name).timeout(PATIENCE);
        self.env.iter().fold(program, |program, (name, value)| program.env(name, value))
    }

    /// The certificate and the part of it that signs. It is asked for one signature at once, because a wrong
    /// passphrase or a card that is not there are found out in no other way.
    pub(super) fn key(&self, fingerprint: &Fingerprint) -> Result<(Cert, AgentKey, Option<SystemTime>), SignError> {
        let failed =
            |source: ProcessError| SignError::Gpg { fingerprint: fingerprint.clone(), source: Box::new(source) };
        let gpg = || self.program("gpg").args(["--batch", "--no-tty", "--quiet"]);
        let exported = gpg().args(["--export", fingerprint.as_str()]).output(&self.interrupt).map_err(failed)?;
        if exported.stdout.is_empty() {
            return Err(SignError::NotInGpg { fingerprint: fingerprint.clone() });
        }
        let mut certs = parse_certs("gpg's keyring", &exported.stdout)?;
        // gpg takes a subkey's fingerprint for the certificate's, and so do we.
        let Some(cert) = certs.pop().filter(|_| certs.is_empty()) else {
            return Err(SignError::NotInGpg { fingerprint: fingerprint.clone() });
        };
        let listed = gpg()
            .args(["--with-colons", "--with-keygrip", "--list-secret-keys", fingerprint.as_str()])
            .output(&self.interrupt);
        let places = match listed {
            Ok(listed) => places(&String::from_utf8_lossy(&listed.stdout)),
            // gpg ends with 2 when it has no such secret.
            Err(ProcessError::Failed { .. }) => BTreeMap::new(),
            Err(other) => return Err(failed(other)),
        };
        let policy = StandardPolicy::new();
        let valid = usable(&cert, &policy, SystemTime::now())?;
        let (public, keygrip) = choose(&valid, &places)?;
        let expires = valid.primary_key().key_expiration_time();
        let mut key = AgentKey { agent: self.clone(), public, keygrip };
        key.try_out(fingerprint)?;
        let cert = cert.strip_secret_key_material();
        Ok((cert, key, expires))
    }
}

/// The newest valid signing key whose secret the agent has; the primary only when no subkey signs.
fn choose(valid: &ValidCert<'_>, places: &BTreeMap<String, Place>) -> Result<(PublicKey, String), SignError> {
    let fingerprint = Fingerprint::of(&valid.fingerprint());
    let mut best: Option<(bool, SystemTime, PublicKey, String)> = None;
    let mut reasons: Vec<String> = Vec::new();
    for candidate in valid.keys().for_signing() {
        let key = candidate.key();
        let id = key.keyid();
        if let RevocationStatus::Revoked(_) = candidate.revocation_status() {
            reasons.push(format!("its signing key {id} is revoked"));
        } else if candidate.alive().is_err() {
            let when =
                candidate.key_expiration_time().map_or_else(String::new, |t| format!(" (expired on {})", day(t)));
            reasons.push(format!("its signing key {id} is not valid now{when}"));
        } else if let Some(place) = places.get(&key.fingerprint().to_hex()).filter(|place| place.there) {
            let rank = (!candidate.primary(), key.creation_time());
            if best.as_ref().is_none_or(|(sub, time, ..)| rank > (*sub, *time)) {
                best = Some((rank.0, rank.1, key.clone(), place.keygrip.clone()));
            }
        } else {
            reasons.push(format!("gpg has no secret for its signing key {id}"));
        }
    }
    match best {
        Some((_, _, key, keygrip)) => Ok((key, keygrip)),
        None if reasons.is_empty() => Err(SignError::CannotSign {
            fingerprint,
            reason: "it is for other uses only, such as encryption".to_owned(),
        }),
        None => Err(SignError::CannotSign { fingerprint, reason: reasons.join(", ") }),
    }
}

/// Reads `gpg --with-colons --with-keygrip --list-secret-keys` (GnuPG's doc/DETAILS): a `sec` or `ssb` line, whose field
/// 15 is `+` for a secret that is there, `#` for one that is not and else a card's number, is followed by its `fpr`
/// and its `grp`.
fn places(listing: &str) -> BTreeMap<String, Place> {
    let mut places = BTreeMap::new();
    let mut there = false;
    let mut fingerprint = String::new();
    for line in listing.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            ["sec" | "ssb", ..] => {
                there = fields.get(14).is_some_and(|token| !token.is_empty() && *token != "#");
                fingerprint.clear();
            }
            ["fpr", ..] => fields.get(9).copied().unwrap_or_default().clone_into(&mut fingerprint),
            ["grp", ..] if !fingerprint.is_empty() => {
                let keygrip = fields.get(9).copied().unwrap_or_default().to_owned();
                places.insert(std::mem::take(&mut fingerprint), Place { keygrip, there });
            }
            _ => {}
        }
    }
    places
}

impl AgentKey {
    pub(super) fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs what is nobody's message: the digest of a sentence, without the trailer of an OpenPGP signature.
    fn try_out(&mut self, fingerprint: &Fingerprint) -> Result<(), SignError> {
        let signed = || -> openpgp::Result<()> {
            let hash = super::key::hash_for(self.public.mpis());
            let mut context = hash.context()?.for_digest();
            context.update(b"slurm-factory asks whether this key signs; this is no message");
            let mut digest = vec![0; context.digest_size()];
            context.digest(&mut digest)?;
            let signature = self.pksign(hash, &digest)?;
            self.public.verify(&signature, hash, &digest)
        };
        signed().map_err(|error| SignError::Agent { fingerprint: fingerprint.clone(), reason: chain(&error) })
    }

    fn pksign(&self, hash: HashAlgorithm, digest: &[u8]) -> openpgp::Result<mpi::Signature> {
        let name = match hash {
            HashAlgorithm::SHA256 => "sha256",
            HashAlgorithm::SHA384 => "sha384",
            HashAlgorithm::SHA512 => "sha512",
            other => return Err(openpgp::anyhow::anyhow!("gpg-agent is not asked to sign {other}")),
        };
        let script =
            format!("SIGKEY {}\nSETHASH --hash={name} {}\nPKSIGN\n/bye\n", self.keygrip, hex::encode_upper(digest));
        let output = self.agent.program("gpg-connect-agent").input(&script).output(&self.agent.interrupt)?;
        parse_signature(&answer(&output.stdout)?)
    }
}

impl crypto::Signer for AgentKey {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&mut self, hash: HashAlgorithm, digest: &[u8]) -> openpgp::Result<mpi::Signature> {
        self.pksign(hash, digest)
    }
}

/// The data that the agent sent: its `D` lines, joined, with `%XX` for bytes that a line cannot hold.
fn answer(output: &[u8]) -> openpgp::Result<Vec<u8>> {
    let mut data = Vec::new();
    for line in output.split(|b| *b == b'\n') {
        if let Some(error) = line.strip_prefix(b"ERR ") {
            // `ERR 67108891 Not found <GPG Agent>`
            let text = String::from_utf8_lossy(error);
            let text = text.split_once(' ').map_or(text.as_ref(), |(_, words)| words).to_owned();
            return Err(openpgp::anyhow::anyhow!("{text}"));
        }
        let Some(mut rest) = line.strip_prefix(b"D ") else { continue };
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            let escaped = after.get(..2).filter(|_| *first == b'%').and_then(|digits| hex::decode(digits).ok());
            match escaped.as_deref() {
                Some([byte]) => {
                    data.push(*byte);
                    rest = after.get(2..).unwrap_or_default();
                }
                _ => data.push(*first),
            }
        }
    }
    if data.is_empty() { Err(openpgp::anyhow::anyhow!("it gave no signature")) } else { Ok(data) }
}

/// A canonical S-expression (libgcrypt's manual, "S-expressions"): `(`, `)` and `LENGTH:BYTES`.
enum Token<'a> {
    Open,
    Close,
    Atom(&'a [u8]),
}

fn tokens(mut data: &[u8]) -> Option<Vec<Token<'_>>> {
    let mut found = Vec::new();
    while let Some((first, rest)) = data.split_first() {
        data = match first {
            b'(' => {
                found.push(Token::Open);
                rest
            }
            b')' => {
                found.push(Token::Close);
                rest
            }
            b'0'..=b'9' => {
                let colon = data.iter().position(|b| *b == b':')?;
                let length: usize = std::str::from_utf8(data.get(..colon)?).ok()?.parse().ok()?;
                let end = (colon + 1).checked_add(length)?;
                found.push(Token::Atom(data.get(colon + 1..end)?));
                data.get(end..)?
            }
            // What fills the agent's last block.
            0 => rest,
            _ => return None,
        };
    }
    Some(found)
}

/// `(sig-val (ALGORITHM (NAME VALUE) ...))`
fn parse_signature(data: &[u8]) -> openpgp::Result<mpi::Signature> {
    let odd = || {
        let mut text = String::new();
        for byte in data.iter().take(40) {
            // Writing to a string does not fail.
            let _ = write!(text, "{}", byte.escape_ascii());
        }
        openpgp::anyhow::anyhow!("it gave a signature of an unknown form: {text}")
    };
    let tokens = tokens(data).ok_or_else(odd)?;
    let [Token::Open, Token::Atom(b"sig-val"), Token::Open, Token::Atom(algorithm), values @ ..] = tokens.as_slice()
    else {
        return Err(odd());
    };
    let value = |wanted: &[u8]| {
        values.windows(2).find_map(|pair| match pair {
            [Token::Atom(name), Token::Atom(value)] if *name == wanted => Some(mpi::MPI::new(value)),
            _ => None,
        })
    };
    let signature = match *algorithm {
        b"rsa" => value(b"s").map(|s| mpi::Signature::RSA { s }),
        b"eddsa" => value(b"r").zip(value(b"s")).map(|(r, s)| mpi::Signature::EdDSA { r, s }),
        b"ecdsa" => value(b"r").zip(value(b"s")).map(|(r, s)| mpi::Signature::ECDSA { r, s }),
        _ => None,
    };
    signature.ok_or_else(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_unescaped_and_errors_are_said() {
        assert_eq!(answer(b"OK\nD (1:a%25%0A%\nD b)\nOK\n").unwrap(), b"(1:a%\n%b)");
        let error = answer(b"OK\nERR 67108881 No secret key <GPG Agent>\n").unwrap_err();
        assert_eq!(error.to_string(), "No secret key <GPG Agent>");
        assert!(answer(b"OK\n").is_err());
    }

    #[test]
    fn signatures_are_read_and_nonsense_is_refused() {
        let rsa = parse_signature(b"(7:sig-val(3:rsa(1:s3:a:()))\0").unwrap();
        assert!(matches!(rsa, mpi::Signature::RSA { s } if s.value() == b"a:("));
        let eddsa = parse_signature(b"(7:sig-val(5:eddsa(1:r2:xy)(1:s2:zz)))").unwrap();
        assert!(matches!(eddsa, mpi::Signature::EdDSA { .. }));
        for bad in
            [&b""[..], b"(7:sig-val", b"(99999999999999999999:x)", b"(7:sig-val(3:rsa(1:s99:x)))", b"(3:abc(3:rsa))"]
        {
            assert!(parse_signature(bad).is_err());
        }
    }

    #[test]
    fn a_secret_that_is_not_here_is_told_from_one_on_a_card() {
        let listing = "sec:u:255:22:AAAA:1:::u:::scESC:::#:::23::0:\nfpr:::::::::F1:\ngrp:::::::::G1:\nuid:u::::1::X::me::::::::::0:\n\
                       ssb:u:255:22:BBBB:1::::::s:::+:::23:\nfpr:::::::::F2:\ngrp:::::::::G2:\n\
                       ssb:u:255:22:CCCC:1::::::s:::D2760001240102:::23:\nfpr:::::::::F3:\ngrp:::::::::G3:\n";
        let places = places(listing);
        let facts: Vec<_> = places.iter().map(|(f, p)| (f.as_str(), p.keygrip.as_str(), p.there)).collect();
        assert_eq!(facts, [("F1", "G1", false), ("F2", "G2", true), ("F3", "G3", true)]);
    }
}
