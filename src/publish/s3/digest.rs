//! Digests as S3 writes them, and a local file's in the same words, so that the two can be compared without reading anything back.
//!
//! ```text
//! ETag                 "<md5 of the object>"                            of one PUT
//!                      "<md5 of the parts' md5s, 16 bytes each>-N"      of N parts
//! ChecksumSHA256       base64(sha256 of the object)                     of one PUT
//!                      base64(sha256 of the parts' sha256s)-N           of N parts
//! ```
//!
//! Objects encrypted with KMS, and some servers, have other ETags: then only an equal one says something.
//!
//! Source: "Checking object integrity" in the user guide of Amazon S3.

use super::objects::Head;
use crate::publish::{StoreError, io_error};
use crate::report::{Ctx, Interrupted};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Md5;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read};

/// A part's digests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub sha256: [u8; 32],
    pub md5: [u8; 16],
}

impl Part {
    pub fn of(bytes: &[u8]) -> Self {
        Self { sha256: Sha256::digest(bytes).into(), md5: Md5::digest(bytes).into() }
    }

    /// As `ChecksumSHA256`.
    pub fn checksum(&self) -> String {
        STANDARD.encode(self.sha256)
    }
}

/// A file's digests.
#[derive(Debug, Clone)]
pub(super) struct Local {
    /// Of the whole, in hexadecimal.
    pub sha256: String,
    pub parts: Vec<Part>,
}

/// Why a file's digests are not known.
pub(super) enum Unread {
    Io(io::Error),
    Interrupted(Interrupted),
}

impl Unread {
    pub fn into_store_error(self, address: &str) -> StoreError {
        match self {
            Self::Io(e) => io_error(address, e),
            Self::Interrupted(e) => e.into(),
        }
    }
}

/// Reads a file part by part.
pub(super) struct Reader<R: Read> {
    file: R,
    left: u64,
    part: u64,
    whole: Sha256,
    parts: Vec<Part>,
}

impl<R: Read> Reader<R> {
    pub fn new(file: R, size: u64, part: u64) -> Self {
        Self { file, left: size, part, whole: Sha256::new(), parts: Vec::new() }
    }

    /// The next part with its digests; a file that became shorter is an error.
    pub fn next(&mut self) -> io::Result<Option<(Vec<u8>, Part)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let length = self.left.min(self.part);
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact(&mut bytes)?;
        self.left -= length;
        self.whole.update(&bytes);
        let part = Part::of(&bytes);
        self.parts.push(part);
        Ok(Some((bytes, part)))
    }

    pub fn finish(self) -> Local {
        Local { sha256: hex::encode(self.whole.finalize()), parts: self.parts }
    }
}

/// Reads the whole file.
pub(super) fn of_file(file: impl Read, size: u64, part: u64, ctx: &Ctx) -> Result<Local, Unread> {
    let mut reader = Reader::new(file, size, part);
    loop {
        ctx.check().map_err(Unread::Interrupted)?;
        if reader.next().map_err(Unread::Io)?.is_none() {
            return Ok(reader.finish());
        }
    }
}

/// In how many parts the object was sent, 0 for one PUT; `None` when nothing is said that could be compared.
pub(super) fn parts_of(head: &Head) -> Option<usize> {
    let etag = head.etag.trim_matches('"');
    let (digits, parts) = etag.split_once('-').map_or((etag, "0"), |(digits, parts)| (digits, parts));
    let etag =
        (digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| parts.parse().ok()).flatten();
    let checksum =
        head.sha256.as_deref().map(|sum| sum.split_once('-').and_then(|(_, parts)| parts.parse().ok()).unwrap_or(0));
    // Some servers leave the number out of the checksum.
    checksum.max(etag)
}

impl Local {
    /// Whether the object's digests are this file's, sent in as many parts.
    pub fn agrees(&self, head: &Head, parts: usize) -> bool {
        if parts == 0 {
            // The MD5 of the whole is that of its only part.
            let [only] = self.parts.as_slice() else { return false };
            return head.sha256.as_deref() == Some(only.checksum().as_str())
                || head.etag.trim_matches('"').eq_ignore_ascii_case(&hex::encode(only.md5));
        }
        if parts != self.parts.len() {
            return false;
        }
        if let Some(sum) = &head.sha256 {
            let all: Vec<u8> = self.parts.iter().flat_map(|part| part.sha256).collect();
            let (sum, _) = sum.split_once('-').unwrap_or((sum, ""));
            return sum == STANDARD.encode(Sha256::digest(&all));
        }
        let all: Vec<u8> = self.parts.iter().flat_map(|part| part.md5).collect();
        head.etag.trim_matches('"').eq_ignore_ascii_case(&format!("{}-{parts}", hex::encode(Md5::digest(&all))))
    }
}

/// Whether digests that do not agree prove that the bytes differ: only SHA-256 of equal parts do, as an ETag may be anything.
pub(super) fn conclusive(head: &Head, parts: usize, size: u64, part: u64) -> bool {
    head.sha256.as_ref().is_some_and(|sum| parts == 0 || (sum.contains('-') && parts as u64 == size.div_ceil(part)))
}

/// Hexadecimal as base64.
pub(super) fn base64(hexadecimal: &str) -> String {
    hex::decode(hexadecimal).map(|bytes| STANDARD.encode(bytes)).unwrap_or_default()
}

/// SHA-256 in hexadecimal.
pub(super) fn hex_sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(etag: &str, sha256: Option<&str>) -> Head {
        Head { size: 11, etag: etag.to_owned(), sha256: sha256.map(str::to_owned), write_id: None }
    }

    /// The sums of `hello world` and of its parts `hello ` and `world`, by md5sum and sha256sum.
    #[test]
    fn a_file_is_known_by_the_digests_that_s3_gives() {
        let local = |part| of_file(&b"hello world"[..], 11, part, &Ctx::silent()).ok().unwrap();
        let one = local(16);
        assert_eq!(one.sha256, "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9");
        assert!(one.agrees(&head("\"5eb63bbbe01eeed093cb22bb8f5acdc3\"", None), 0));
        assert!(one.agrees(&head("\"kms\"", Some("uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=")), 0));
        assert!(!one.agrees(&head("\"5eb63bbbe01eeed093cb22bb8f5acdc4\"", None), 0));
        let two = local(6);
        let etag = head("\"b91fe7e7e6ba42fbf15da22cf7a55ba9-2\"", None);
        assert_eq!(parts_of(&etag), Some(2));
        let md5s: Vec<u8> = [b"hello ".as_slice(), b"world"].iter().flat_map(|p| Md5::digest(p).to_vec()).collect();
        let etag = head(&format!("\"{}-2\"", hex::encode(Md5::digest(&md5s))), None);
        assert!(two.agrees(&etag, 2) && !local(7).agrees(&etag, 2));
        assert_eq!(parts_of(&head("\"abc\"", None)), None);
        assert!(conclusive(&head("x", Some("y")), 0, 11, 16) && !conclusive(&head("x", None), 0, 11, 16));
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        assert!(of_file(&b"hell"[..], 5, 3, &Ctx::silent()).is_err());
    }
}
