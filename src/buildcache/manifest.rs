//! Manifests: small signed or plain texts that name blobs by their SHA-256.
//!
//! ```json
//! {"version": 3, "data": [{"contentLength": 1, "mediaType": "..", "compression": "gzip", "checksumAlgorithm": "sha256", "checksum": ".."}]}
//! ```
//!
//! Written with line ends and no indent: gpg cuts lines after 19,995 characters. The text between the frame of a clear-signed
//! one is taken by Spack with a regular expression that wants exactly one `Hash:` line before it, so the same is asked here:
//! what the signature covers and what Spack would read must be one and the same.

use super::{BuildcacheError, key};
pub use crate::publish::BLOBS;
use crate::publish::{Key, Store, blob_key};
use serde::{Deserialize, Serialize};
use serde_json::ser::PrettyFormatter;

/// The layout, and the version of its manifests.
pub const VERSION: u32 = 3;
/// Of a package.
pub const TARBALL: &str = "application/vnd.spack.install.v2.tar+gzip";
/// Of a package's spec.
pub const SPEC: &str = "application/vnd.spack.spec.v5+json";
/// Of the index.
pub const INDEX: &str = "application/vnd.spack.db.v8+json";
/// Of a public key.
pub const PUBLIC_KEY: &str = "application/pgp-keys";
/// Of the list of keys.
pub const KEY_INDEX: &str = "application/vnd.spack.keyindex.v1+json";
/// Of manifests.
pub const JSON: &str = "application/json";

/// Where the manifests of packages are.
pub const SPECS: &str = "v3/manifests/spec/";
/// How their names end.
pub const SPEC_SUFFIX: &str = ".spec.manifest.json";
/// The index's manifest.
pub const INDEX_MANIFEST: &str = "v3/manifests/index/index.manifest.json";
/// The key index's manifest.
pub const KEYS_MANIFEST: &str = "v3/manifests/key/keys.manifest.json";
/// Where the keys are.
pub const KEYS: &str = "v3/manifests/key/";
/// How the names of their manifests end.
pub const KEY_SUFFIX: &str = ".key.manifest.json";
/// Says which layout this is.
pub const LAYOUT: &str = "v3/layout.json";
/// What stands there: manifests are signed by OpenPGP keys.
pub const LAYOUT_TEXT: &[u8] = br#"{"signing": "gpg"}"#;

/// No manifest of ours or of Spack's is larger.
pub(super) const LIMIT: u64 = 1 << 20;

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// 3.
    pub version: u32,
    /// The blobs.
    pub data: Vec<Blob>,
}

/// A blob as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blob {
    /// Bytes as stored.
    pub content_length: u64,
    /// What it is.
    pub media_type: String,
    /// `gzip` or `none`.
    pub compression: String,
    /// `sha256`.
    pub checksum_algorithm: String,
    /// Of the bytes as stored, hexadecimal.
    pub checksum: String,
}

impl Blob {
    /// A blob by what is known of it.
    pub fn new(media_type: &str, compression: &str, size: u64, sha256: String) -> Self {
        Self {
            content_length: size,
            media_type: media_type.to_owned(),
            compression: compression.to_owned(),
            checksum_algorithm: "sha256".to_owned(),
            checksum: sha256,
        }
    }

    /// Where it lies.
    pub fn key(&self) -> Result<Key, BuildcacheError> {
        Ok(blob_key(&self.checksum)?)
    }
}

impl Manifest {
    /// A manifest of these blobs.
    pub fn new(data: Vec<Blob>) -> Self {
        Self { version: VERSION, data }
    }

    /// The text, as Spack writes it.
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(b""));
        // Strings and numbers into memory: neither can fail.
        let _ = self.serialize(&mut serializer);
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Reads a text; the reason when it is none, or when it names blobs in a way that no reader of layout 3 follows.
    pub fn parse(text: &str) -> Result<Self, String> {
        let manifest: Self = serde_json::from_str(text).map_err(|e| format!("it does not parse: {e}"))?;
        if manifest.version != VERSION {
            return Err(format!("it is of version {}, and layout {VERSION} is read", manifest.version));
        }
        for blob in &manifest.data {
            let sum = &blob.checksum;
            let digits = sum.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if blob.checksum_algorithm != "sha256" || sum.len() != 64 || !digits {
                return Err(format!("`{}` is no SHA-256", sum.escape_debug()));
            }
        }
        Ok(manifest)
    }

    /// The one blob of this kind.
    pub fn blob(&self, media_type: &str) -> Result<&Blob, String> {
        let mut found = self.data.iter().filter(|b| b.media_type == media_type);
        match (found.next(), found.next()) {
            (Some(blob), None) => Ok(blob),
            (None, _) => Err(format!("it names no blob of the type {media_type}")),
            (Some(_), Some(_)) => Err(format!("it names several blobs of the type {media_type}")),
        }
    }
}

/// Where the manifest of a package lies.
///
/// ```
/// use slurm_factory::buildcache::manifest::spec_key;
/// let key = spec_key("munge", "0.5.16", "uoeupcay3nlry63rrmctea2h6wgt2opi").unwrap();
/// assert_eq!(key.as_str(), "v3/manifests/spec/munge/munge-0.5.16-uoeupcay3nlry63rrmctea2h6wgt2opi.spec.manifest.json");
/// ```
pub fn spec_key(name: &str, version: &str, hash: &str) -> Result<Key, BuildcacheError> {
    // As Spack does with characters that are not good in file names.
    let polite = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "_+.-".contains(c) { c } else { '_' }).collect()
    };
    key(format!("{SPECS}{name}/{}-{}-{hash}{SPEC_SUFFIX}", polite(name), polite(version)))
}

/// The hash in the name of a package's manifest.
pub fn hash_of(key: &Key) -> Option<&str> {
    let stem = key.as_str().strip_prefix(SPECS)?.strip_suffix(SPEC_SUFFIX)?;
    let (_, hash) = stem.rsplit_once('-')?;
    super::spec::is_hash(hash).then_some(hash)
}

/// What Spack would take for the content of a clear-signed text: its `CLEARSIGN_FILE_REGEX`.
pub fn as_spack_reads(signed: &str) -> Result<&str, String> {
    let begin = "-----BEGIN PGP SIGNED MESSAGE-----";
    let end = "-----BEGIN PGP SIGNATURE-----";
    let rest = signed.strip_prefix(begin).ok_or("it is not clear-signed")?;
    let rest = rest.trim_start().strip_prefix("Hash:").ok_or("it has no `Hash:` line, which Spack asks for")?;
    let rest = rest.trim_start();
    let text = rest.find(char::is_whitespace).and_then(|at| rest.get(at..)).unwrap_or_default();
    // Greedy, as the expression is.
    let at = text.rfind(end).ok_or("it has no signature")?;
    Ok(text.get(..at).unwrap_or_default().trim())
}

/// A manifest that is there, not signed; with the version that a conditional write needs.
pub(super) fn read_plain(
    store: &dyn Store,
    text: &str,
    ctx: &crate::report::Ctx,
) -> Result<Option<(Manifest, crate::publish::Version)>, BuildcacheError> {
    let key = key(text.to_owned())?;
    let parsed =
        |bytes: &[u8]| std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()).and_then(Manifest::parse);
    let found = super::read::small(store, &key, LIMIT, ctx)?;
    let found = found.and_then(|found| found.map(|(bytes, version)| Ok((parsed(&bytes)?, version))).transpose());
    found.map_err(|reason| BuildcacheError::Format { address: store.address().to_owned(), key, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_back_and_have_short_lines() {
        let blob = Blob::new(TARBALL, "gzip", 7, "ab".repeat(32));
        let manifest = Manifest::new(vec![blob.clone(), Blob { media_type: SPEC.into(), ..blob.clone() }]);
        let text = manifest.text();
        assert!(text.lines().all(|l| l.len() < 120) && text.lines().count() > 10, "{text}");
        let read = Manifest::parse(&text).unwrap();
        assert_eq!(read, manifest);
        assert_eq!(read.blob(TARBALL), Ok(&blob));
        assert!(read.blob(INDEX).is_err());
        assert!(Manifest::new(vec![blob.clone(), blob]).blob(TARBALL).is_err(), "which one?");
        assert!(Manifest::parse(&text.replace("\"version\": 3", "\"version\": 4")).is_err());
        assert!(Manifest::parse(&text.replace("abab", "../a")).is_err());
    }

    #[test]
    fn the_hash_stands_in_the_name() {
        let hash = "uoeupcay3nlry63rrmctea2h6wgt2opi";
        let key = spec_key("a-b", "git.x/y=1", hash).unwrap();
        assert_eq!(key.as_str(), format!("v3/manifests/spec/a-b/a-b-git.x_y_1-{hash}.spec.manifest.json"));
        assert_eq!(hash_of(&key), Some(hash));
        assert_eq!(hash_of(&Key::new("v3/manifests/spec/a/a-1-short.spec.manifest.json").unwrap()), None);
    }

    #[test]
    fn spack_and_the_signature_must_mean_the_same_text() {
        let frame = |head: &str| {
            format!(
                "-----BEGIN PGP SIGNED MESSAGE-----\n{head}\n{{\"a\": 1}}\n-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP SIGNATURE-----\n"
            )
        };
        assert_eq!(as_spack_reads(&frame("Hash: SHA512\n")), Ok("{\"a\": 1}"));
        assert!(as_spack_reads(&frame("")).is_err());
        assert!(as_spack_reads("{}").is_err());
        let two = frame("Hash: SHA512\nHash: SHA256\n");
        assert!(as_spack_reads(&two).unwrap().starts_with("Hash:"), "what Spack would choke on is not taken for JSON");
    }
}
