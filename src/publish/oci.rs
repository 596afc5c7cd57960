//! A repository of an OCI registry as a store: blobs by their digest, manifests by their tag.
//!
//! ```text
//! oci://HOST[:PORT]/NAME          as Spack writes it; oci+http:// is without TLS, and so is this machine's own registry
//! blobs/sha256/ab/abcd...         the blob sha256:abcd...; the registry itself compares the digest
//! tags/TAG                        the manifest under TAG; its version is its digest
//! ```
//!
//! That is all that a registry has: no other key can be written ([`Store::registry`] says so beforehand), and blobs are not
//! listed. What is written must be an OCI manifest, and what it names must be there before it.
//!
//! Registries have no conditional writes. A condition is looked at, and then the manifest is put: between the two another
//! publisher may come. Who needs more than that looks again afterwards (see [`crate::buildcache`]).
//!
//! Logins, certificates, proxies and `insecure` are those of the site's containers, see [`crate::image`].

use super::{Condition, Entry, Key, Put, Source, Store, StoreError, Version, Written, changed, io_error};
use crate::image::retry::Cuts;
use crate::image::{ClientConfig, Content, Digest, ImageError, Refused, Repository};
use crate::report::Ctx;
use crate::sha256::Hashing;
use crate::wait::Runtime;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, Write};
use std::time::SystemTime;

/// Where blobs are.
pub const BLOBS: &str = "blobs/sha256/";
/// Where manifests are.
pub const TAGS: &str = "tags/";

/// Where the blob of this SHA-256 (hexadecimal) is, in a registry and in Spack's layout 3.
///
/// ```
/// let key = slurm_factory::publish::blob_key(&"ab".repeat(32)).unwrap();
/// assert!(key.as_str().starts_with("blobs/sha256/ab/abab"));
/// ```
pub fn blob_key(sha256: &str) -> Result<Key, StoreError> {
    Key::new(format!("{BLOBS}{}/{sha256}", sha256.get(..2).unwrap_or("xx")))
}

/// What a manifest says of a blob: OCI image-spec 1.1, `descriptor.md`, of which only this matters here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// `sha256:` and 64 hexadecimal digits, when it is right; nothing is checked here.
    pub digest: String,
    /// In bytes.
    pub size: u64,
    /// Its file's name, say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A blob with this SHA-256, hexadecimal.
    pub fn new(media_type: &str, sha256: &str, size: u64) -> Self {
        let digest = format!("sha256:{sha256}");
        Self { media_type: media_type.to_owned(), digest, size, annotations: BTreeMap::new() }
    }
}

/// What a key means here.
enum Meant {
    Blob(Digest),
    Tag(String),
}

/// A repository as a store.
pub struct OciStore {
    address: String,
    repository: Repository,
    retries: u32,
    runtime: Runtime,
}

/// Name of the repository, and whether it may be without TLS; `None` when it is no address of a registry.
pub(super) fn parse(address: &str) -> Option<Result<(String, bool), StoreError>> {
    let (rest, insecure) = match address.split_once("://")? {
        ("oci", rest) => (rest, false),
        ("oci+http", rest) => (rest, true),
        _ => return None,
    };
    let refuse = |reason: &str| StoreError::BadAddress { address: address.to_owned(), reason: reason.to_owned() };
    let (host, name) = rest.trim_end_matches('/').split_once('/').unwrap_or((rest, ""));
    if host.is_empty() || name.is_empty() {
        return Some(Err(refuse("it names no repository: oci://registry.site.example/group/name")));
    }
    if name.contains([':', '@']) {
        return Some(Err(refuse("a tag or a digest has no place in it: tags are made of what is published")));
    }
    if !host.contains(['.', ':']) && host != "localhost" {
        return Some(Err(refuse("its first part is no host: oci://registry.site.example/group/name")));
    }
    // As Spack does, for names that CI puts together; registries know small letters alone.
    Some(Ok((format!("{host}/{}", name.to_lowercase()), insecure)))
}

impl OciStore {
    /// Opens the repository; nothing is asked of it yet.
    pub fn open(address: &str, config: &ClientConfig, ctx: &Ctx) -> Result<Self, StoreError> {
        let bad = |reason: String| StoreError::BadAddress { address: address.to_owned(), reason };
        let (name, insecure) = match parse(address) {
            Some(parsed) => parsed?,
            None => return Err(bad("it does not begin with oci://".into())),
        };
        let repository = Repository::repository(&name, insecure, config, ctx).map_err(|e| bad(e.to_string()))?;
        let address = format!("{}://{name}", if insecure { "oci+http" } else { "oci" });
        let runtime = Runtime::new("oci").map_err(|e| io_error(&address, e))?;
        Ok(Self { address, repository, retries: config.retries, runtime })
    }

    fn run<T>(
        &self,
        what: impl FnOnce() -> String,
        ctx: &Ctx,
        work: impl Future<Output = Result<T, ImageError>>,
    ) -> Result<T, StoreError> {
        let done = self.runtime.run(ctx, async { Ok::<_, StoreError>(work.await) })?;
        done.map_err(|e| self.fault(what(), &e))
    }

    fn fault(&self, what: String, error: &ImageError) -> StoreError {
        StoreError::Service { address: self.address.clone(), what, reason: error.to_string() }
    }

    fn meant(key: &Key) -> Result<Meant, StoreError> {
        let text = key.as_str();
        if let Some(tag) = text.strip_prefix(TAGS) {
            let mut letters = tag.chars();
            let first = letters.next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
            // The distribution-spec's `<reference>`.
            if first && tag.len() <= 128 && letters.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
                return Ok(Meant::Tag(tag.to_owned()));
            }
            return Err(StoreError::BadKey { key: text.to_owned(), reason: "a registry takes no such tag" });
        }
        let sum = text.strip_prefix(BLOBS).and_then(|rest| rest.split_once('/'));
        let digest = sum.and_then(|(_, sum)| format!("sha256:{sum}").parse().ok());
        digest.map(Meant::Blob).ok_or_else(|| StoreError::BadKey {
            key: text.to_owned(),
            reason: "a registry has only blobs and tags; a bucket or a folder can hold it",
        })
    }

    /// What is there of small things.
    fn get(&self, key: &Key, limit: u64, ctx: &Ctx) -> Result<Option<Vec<u8>>, StoreError> {
        let too_large = |size| StoreError::TooLarge { address: self.address.clone(), key: key.clone(), size, limit };
        match Self::meant(key)? {
            Meant::Tag(tag) => {
                let found = self.run(|| format!("read {key}"), ctx, self.repository.manifest_if_there(&tag))?;
                match found {
                    Some(bytes) if bytes.len() as u64 > limit => Err(too_large(bytes.len() as u64)),
                    found => Ok(found),
                }
            }
            Meant::Blob(digest) => {
                let mut out = Limited { bytes: Vec::new(), limit };
                match self.fetch(&digest, key, &mut out, ctx) {
                    Err(_) if out.bytes.len() as u64 > limit => Err(too_large(out.bytes.len() as u64)),
                    got => Ok(got?.map(|_| out.bytes)),
                }
            }
        }
    }

    /// Writes a blob to `out`, from where it was cut when it is.
    fn fetch(&self, digest: &Digest, key: &Key, out: &mut dyn Write, ctx: &Ctx) -> Result<Option<u64>, StoreError> {
        let what = || format!("read {key}");
        let (mut written, mut cuts) = (0_u64, Cuts::new(self.retries));
        loop {
            let before = written;
            let Some(mut body) = self.run(what, ctx, self.repository.blob_if_there(digest, written))? else {
                return Ok(None);
            };
            // A registry that knows no ranges begins from the start: what is written already is passed over.
            let mut skip = written - body.offset.min(written);
            let cut = loop {
                let chunk = self.runtime.run(ctx, async { Ok::<_, StoreError>(body.chunk().await) })?;
                match chunk {
                    Ok(Some(bytes)) => {
                        let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
                        skip -= passed as u64;
                        let rest = bytes.get(passed..).unwrap_or_default();
                        out.write_all(rest).map_err(|e| io_error(&self.address, e))?;
                        written += rest.len() as u64;
                    }
                    Ok(None) => return Ok(Some(written)),
                    Err(reason) => break reason,
                }
            };
            let Some(pause) = cuts.another(written > before) else {
                return Err(StoreError::Service { address: self.address.clone(), what: what(), reason: cut });
            };
            self.runtime.sleep(pause, ctx)?;
        }
    }

    fn holds_now(&self, key: &Key, condition: &Condition, ctx: &Ctx) -> Result<bool, StoreError> {
        if *condition == Condition::Always {
            return Ok(true);
        }
        let there = self.get(key, u64::MAX, ctx)?.map(|bytes| version(&bytes));
        Ok(match condition {
            Condition::Unchanged(expected) => there.as_ref() == Some(expected),
            _ => there.is_none(),
        })
    }
}

/// Takes no more than so many bytes, so that what is too large is not held.
struct Limited {
    bytes: Vec<u8>,
    limit: u64,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() as u64 > self.limit {
            return Err(io::Error::other("it is larger than what is read"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn version(bytes: &[u8]) -> Version {
    Version(hex::encode(Sha256::digest(bytes)))
}

impl Store for OciStore {
    fn address(&self) -> &str {
        &self.address
    }

    fn registry(&self) -> bool {
        true
    }

    fn check(&self, ctx: &Ctx) -> Result<(), StoreError> {
        self.run(|| "write here".into(), ctx, self.repository.check_writable())
    }

    fn holds(&self, key: &Key, source: &Source, ctx: &Ctx) -> Result<bool, StoreError> {
        match Self::meant(key)? {
            // Its name is its digest.
            Meant::Blob(digest) => {
                Ok(digest.to_string() == format!("sha256:{}", source.sha256)
                    && self.size(key, ctx)? == Some(source.size))
            }
            Meant::Tag(_) => super::holds_by_reading(self, key, source, ctx),
        }
    }

    fn size(&self, key: &Key, ctx: &Ctx) -> Result<Option<u64>, StoreError> {
        match Self::meant(key)? {
            Meant::Blob(digest) => {
                let what = || format!("look at {key}");
                let Some(told) = self.run(what, ctx, self.repository.look_for(&digest))? else { return Ok(None) };
                if told.is_some() {
                    return Ok(told);
                }
                // An answer with a body may say it, else it is read.
                let Some(body) = self.run(what, ctx, self.repository.blob_if_there(&digest, 0))? else {
                    return Ok(None);
                };
                match body.length() {
                    Some(size) => Ok(Some(size)),
                    None => self.fetch(&digest, key, &mut io::sink(), ctx),
                }
            }
            Meant::Tag(_) => Ok(self.get(key, u64::MAX, ctx)?.map(|bytes| bytes.len() as u64)),
        }
    }

    fn read(&self, key: &Key, limit: u64, ctx: &Ctx) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        Ok(self.get(key, limit, ctx)?.map(|bytes| {
            let version = version(&bytes);
            (bytes, version)
        }))
    }

    fn download(&self, key: &Key, out: &mut dyn Write, ctx: &Ctx) -> Result<Option<u64>, StoreError> {
        match Self::meant(key)? {
            Meant::Blob(digest) => self.fetch(&digest, key, out, ctx),
            Meant::Tag(_) => {
                let Some(bytes) = self.get(key, u64::MAX, ctx)? else { return Ok(None) };
                out.write_all(&bytes).map_err(|e| io_error(&self.address, e))?;
                Ok(Some(bytes.len() as u64))
            }
        }
    }

    fn put(&self, key: &Key, bytes: &[u8], how: &Put<'_>, ctx: &Ctx) -> Result<Written, StoreError> {
        let what = || format!("write {key}");
        match Self::meant(key)? {
            Meant::Blob(digest) => {
                self.run(what, ctx, self.repository.put_blob(&digest, Content::Bytes(bytes)))?;
            }
            Meant::Tag(tag) => {
                if !self.holds_now(key, &how.condition, ctx)? {
                    return Ok(Written::Conflict);
                }
                self.run(what, ctx, self.repository.put_manifest(&tag, how.content_type, bytes))?;
            }
        }
        Ok(Written::Yes(version(bytes)))
    }

    fn put_file(&self, key: &Key, source: &Source, how: &Put<'_>, ctx: &Ctx) -> Result<Written, StoreError> {
        let Meant::Blob(digest) = Self::meant(key)? else {
            let bytes = fs_err::read(&source.path).map_err(|e| io_error(&self.address, e))?;
            return self.put(key, &bytes, how, ctx);
        };
        let content = Content::File(&source.path, source.size);
        if let Err(error) = self.run(|| format!("write {key}"), ctx, self.repository.put_blob(&digest, content)) {
            // The registry has compared the digest: is it the file that is another by now?
            let mut sum = Hashing::new(io::sink());
            let read = fs_err::File::open(&source.path).and_then(|mut file| io::copy(&mut file, &mut sum));
            let found = sum.hex();
            return Err(match read {
                Ok(_) if found != source.sha256 => changed(&self.address, source, &found),
                _ => error,
            });
        }
        Ok(Written::Yes(Version(source.sha256.clone())))
    }

    fn list(&self, prefix: &str, ctx: &Ctx) -> Result<Vec<Entry>, StoreError> {
        if !prefix.starts_with(TAGS) {
            return Err(StoreError::BadKey { key: prefix.to_owned(), reason: "a registry lists tags alone" });
        }
        let tags = self.run(|| "list the tags".into(), ctx, self.repository.tags())?;
        let keys = tags.into_iter().filter_map(|tag| Key::new(format!("{TAGS}{tag}")).ok());
        let keys = keys.filter(|key| key.as_str().starts_with(prefix));
        // A registry says neither how large a manifest is nor when it came.
        Ok(keys.map(|key| Entry { key, size: 0, modified: SystemTime::UNIX_EPOCH }).collect())
    }

    fn delete(&self, key: &Key, ctx: &Ctx) -> Result<(), StoreError> {
        if matches!(Self::meant(key)?, Meant::Blob(_)) {
            let reason = "a registry removes blobs itself, when no manifest names them any more";
            return Err(StoreError::BadKey { key: key.to_string(), reason });
        }
        let Some(bytes) = self.get(key, u64::MAX, ctx)? else { return Ok(()) };
        let digest = Digest::of(&bytes);
        let gone =
            self.runtime.run(ctx, async { Ok::<_, StoreError>(self.repository.delete_manifest(&digest).await) })?;
        gone.map_err(|refused| match refused {
            Refused::Failed(error) => self.fault(format!("delete {key}"), &error),
            Refused::Unsupported(said) => StoreError::Service {
                address: self.address.clone(),
                what: format!("delete {key}"),
                reason: format!("{said}; this registry does not allow removal: those who run it can, or can allow it"),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (address, want) in [
            ("oci://r.site/a/b/", ("r.site/a/b", false)),
            ("oci://localhost/Org/Cache", ("localhost/org/cache", false)),
            ("oci+http://r.site:5000/a", ("r.site:5000/a", true)),
        ] {
            assert_eq!(parse(address).unwrap().unwrap(), (want.0.to_owned(), want.1));
        }
        for wrong in
            ["oci://", "oci://r.site", "oci://r.site/", "oci://user/name", "oci://r.site/a:tag", "oci://r.site/a@b"]
        {
            assert!(parse(wrong).unwrap().is_err(), "{wrong}");
        }
        assert!(parse("s3://bucket").is_none() && parse("/folder").is_none());
    }
}
