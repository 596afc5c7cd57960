//! Reads one package of a cache as a reader who trusts nothing would: signature, manifest, spec, hash, tarball.

use super::check::{Fault, Kind};
use super::manifest::{self, Blob, Manifest, as_spack_reads};
use super::oci::{self, Image};
use super::spec::Spec;
use super::tarball::{DISTRIBUTION, Distribution};
use super::{BuildcacheError, key};
use crate::gzip;
use crate::publish::{Key, Store, StoreError, TAGS, Version};
use crate::report::Ctx;
use crate::sha256::Hashing;
use crate::sign::{GoodSignature, Keyring, SignError};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// Specs are hundreds of kilobytes at most; `binary_distribution` is a list of file names.
const SPEC_LIMIT: u64 = 64 << 20;

/// A package whose manifest, signature and spec are right; its tarball has not been looked at.
pub(super) struct Found {
    /// Nobody when signatures were not asked for.
    pub signer: Option<GoodSignature>,
    pub spec: Spec,
    pub tarball: Blob,
    pub spec_blob: Blob,
    /// What `spec_blob` names, as it lies there.
    pub spec_bytes: Vec<u8>,
    /// The manifest as it lies there.
    pub signed: String,
}

/// How `bytes` differ from what a manifest says of them.
pub(super) fn differs(blob: &Blob, bytes: &[u8]) -> Option<String> {
    differs_by(blob, bytes.len() as u64, &hex::encode(Sha256::digest(bytes)))
}

fn differs_by(blob: &Blob, size: u64, sha256: &str) -> Option<String> {
    if size != blob.content_length {
        return Some(format!("it has {size} bytes, and the manifest says {}", blob.content_length));
    }
    (*sha256 != blob.checksum).then(|| format!("its SHA-256 is {sha256}, and the manifest says {}", blob.checksum))
}

/// An object with its version, if it is there; or why it cannot be what it should be.
type Small = Result<Option<(Vec<u8>, Version)>, String>;

/// A small object, or why it cannot be one: that one is too large is its own fault, and does not end what is done with others.
pub(super) fn small(store: &dyn Store, at: &Key, limit: u64, ctx: &Ctx) -> Result<Small, BuildcacheError> {
    match store.read(at, limit, ctx) {
        Err(StoreError::TooLarge { size, limit, .. }) => {
            Ok(Err(format!("it has {size} bytes, and at most {limit} are read")))
        }
        other => Ok(Ok(other?)),
    }
}

/// How many requests are on their way at once: they wait for the network more than for a processor.
const AT_ONCE: usize = 8;

/// What `ask` says of each, in their order. Of a store in the network so many are asked at once and no more, on a login node with many
/// processors too; of a folder, as many as there are processors. For one alone no thread is started.
pub(super) fn at_once<I: Sync, T: Send>(
    store: &dyn Store,
    items: &[I],
    ask: impl Fn(&I) -> Result<T, BuildcacheError> + Send + Sync,
) -> Result<Vec<T>, BuildcacheError> {
    if items.len() < 2 {
        return items.iter().map(ask).collect();
    }
    if store.is_here() {
        return items.par_iter().map(ask).collect();
    }
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(AT_ONCE.min(items.len())).build().map_err(io::Error::other)?;
    pool.install(|| items.par_iter().map(ask).collect())
}

/// The specs of those of these packages, hash and where the manifest lies, that are right; and what is wrong with the others. Without a
/// keyring signatures are not asked for. That one may not be read is an error.
pub(super) fn packages(
    store: &dyn Store,
    keyring: Option<&Keyring>,
    there: &[(&String, &Key)],
    ctx: &Ctx,
) -> Result<(Vec<Spec>, Vec<Fault>), BuildcacheError> {
    let read = at_once(store, there, |(hash, at)| Ok(package(store, keyring, at, hash, ctx)?.map(|found| found.spec)))?;
    let (mut specs, mut faults) = (Vec::new(), Vec::new());
    for found in read {
        match found {
            Ok(spec) => specs.push(spec),
            Err(fault) => faults.push(fault),
        }
    }
    Ok((specs, faults))
}

/// What was read of one package or key, or why the store keeps a part of it from us: for who only looks, and goes on with the others.
/// Who writes must not: what may not be read may be there, and right.
pub(super) fn allowed<T>(found: Result<T, BuildcacheError>) -> Result<Result<T, String>, BuildcacheError> {
    match found {
        Err(BuildcacheError::Store(e @ StoreError::Forbidden { .. })) => Ok(Err(e.to_string())),
        other => other.map(Ok),
    }
}

/// Where the manifest of a package lies in this store.
pub(super) fn spec_key(store: &dyn Store, name: &str, version: &str, hash: &str) -> Result<Key, BuildcacheError> {
    if store.registry() { oci::spec_key(name, version, hash) } else { manifest::spec_key(name, version, hash) }
}

/// Where the index's manifest lies in this store.
pub(super) fn index_at(store: &dyn Store) -> &'static str {
    if store.registry() { oci::INDEX_TAG } else { manifest::INDEX_MANIFEST }
}

/// A signed manifest whose signature is good, and which Spack would read as what was signed.
pub(super) struct Signed {
    pub manifest: Manifest,
    pub signer: Option<GoodSignature>,
    /// As it lies there.
    pub text: String,
}

/// Reads a manifest and its signature; without a keyring, what Spack would follow without one.
pub(super) fn signed(
    store: &dyn Store,
    keyring: Option<&Keyring>,
    at: &Key,
    ctx: &Ctx,
) -> Result<Result<Signed, Fault>, BuildcacheError> {
    let fault = |kind, detail: String| Ok(Err(Fault::new(kind, at.as_str(), detail)));
    let bytes = match small(store, at, manifest::LIMIT, ctx)? {
        Ok(Some((bytes, _))) => bytes,
        Ok(None) => return fault(Kind::MissingManifest, "it is not there".into()),
        Err(reason) => return fault(Kind::BadManifest, reason),
    };
    let Ok(text) = String::from_utf8(bytes) else { return fault(Kind::BadManifest, "it is not UTF-8".into()) };
    // What Spack follows whatever is signed, where that is another text.
    let mut followed = None;
    let mut text = text;
    if store.registry() {
        let image = match Image::parse(text.as_bytes()).and_then(|image| Ok((image.followed()?, image))) {
            Ok((names, image)) => {
                followed = Some(names);
                image
            }
            Err(reason) => return fault(Kind::BadManifest, reason),
        };
        text = match (image.signed(), keyring) {
            (Some(signed), _) => signed.to_owned(),
            (None, None) => String::new(),
            (None, Some(_)) => {
                let reason =
                    "it is not signed: Spack keeps no signatures in registries, and what slurm-factory pushes has one";
                return fault(Kind::NotSigned, reason.into());
            }
        };
    }
    let Some(keyring) = keyring else {
        let plain = as_spack_reads(&text).unwrap_or(&text);
        return match followed.map_or_else(|| Manifest::parse(plain), Ok) {
            Ok(manifest) => Ok(Ok(Signed { manifest, signer: None, text })),
            Err(reason) => fault(Kind::BadManifest, reason),
        };
    };
    let seen = match as_spack_reads(&text) {
        Ok(seen) => seen,
        Err(reason) => return fault(Kind::NotSigned, reason),
    };
    let (said, signer) = match keyring.verify_clearsigned("the manifest", &text) {
        Ok(good) => good,
        Err(e) => {
            let kind = match e {
                SignError::UnknownSigner { .. } => Kind::ForeignKey,
                SignError::NoSignature { .. } => Kind::NotSigned,
                SignError::BadSignature { .. } | SignError::BadKey { .. } => Kind::BadSignature,
                other => return Err(other.into()),
            };
            return fault(kind, e.to_string());
        }
    };
    let same = Manifest::parse(&said).and_then(|signed| Ok((Manifest::parse(seen)? == signed, signed)));
    match same {
        Ok((true, manifest)) if followed.as_ref().is_some_and(|followed| *followed != manifest) => fault(
            Kind::Substituted,
            "it names other blobs than those that were signed: Spack would install them".into(),
        ),
        Ok((true, manifest)) => Ok(Ok(Signed { manifest, signer: Some(signer), text })),
        Ok((false, _)) => fault(Kind::BadManifest, "what Spack would read is not what was signed".into()),
        Err(reason) => fault(Kind::BadManifest, reason),
    }
}

/// Follows requested hash, manifest, signature, spec blob and recomputed hash.
pub(super) fn package(
    store: &dyn Store,
    keyring: Option<&Keyring>,
    at: &Key,
    hash: &str,
    ctx: &Ctx,
) -> Result<Result<Found, Fault>, BuildcacheError> {
    ctx.check()?;
    let fault = |kind, at: &Key, detail: String| Ok(Err(Fault::new(kind, at.as_str(), detail)));
    let Signed { manifest, signer, text: signed } = match signed(store, keyring, at, ctx)? {
        Ok(good) => good,
        Err(f) => return Ok(Err(f)),
    };
    let blobs = manifest.blob(manifest::TARBALL).and_then(|t| Ok((t.clone(), manifest.blob(manifest::SPEC)?.clone())));
    let (tarball, spec_blob) = match blobs {
        Ok(blobs) => blobs,
        Err(reason) => return fault(Kind::BadManifest, at, reason),
    };
    let blob_at = spec_blob.key()?;
    let bytes = match small(store, &blob_at, SPEC_LIMIT, ctx)? {
        Ok(Some((bytes, _))) => bytes,
        Ok(None) => {
            return fault(Kind::MissingBlob, &blob_at, format!("{at} names it as the spec, and it is not there"));
        }
        Err(reason) => return fault(Kind::ChangedBlob, &blob_at, reason),
    };
    if let Some(reason) = differs(&spec_blob, &bytes) {
        return fault(Kind::ChangedBlob, &blob_at, reason);
    }
    let mut text = Vec::new();
    let unpacked = if spec_blob.compression == "none" {
        bytes.as_slice().read_to_end(&mut text)
    } else {
        flate2::read::MultiGzDecoder::new(bytes.as_slice()).take(SPEC_LIMIT + 1).read_to_end(&mut text)
    };
    if unpacked.is_err() || text.len() as u64 > SPEC_LIMIT {
        return fault(Kind::BadSpec, &blob_at, "it does not unpack".into());
    }
    let spec = match Spec::parse(&text) {
        Ok(spec) => spec,
        Err(e) => return fault(Kind::BadSpec, &blob_at, e.to_string()),
    };
    let root = spec.root();
    // A name that no manifest can lie under is another's too.
    let place = spec_key(store, &root.name, &root.version, &root.hash);
    if root.hash != hash || place.ok().as_ref() != Some(at) {
        return fault(
            Kind::Substituted,
            at,
            format!(
                "it was signed for {}-{} ({}) and lies in the place of another package: Spack would install the one as the other",
                root.name, root.version, root.hash
            ),
        );
    }
    Ok(Ok(Found { signer, spec, tarball, spec_blob, spec_bytes: bytes, signed }))
}

/// Copies the tarball to `copy`, an empty file: size and digest are what the manifest says then, and no more than that is written.
pub(super) fn copied(
    store: &dyn Store,
    found: &Found,
    copy: &mut File,
    ctx: &Ctx,
) -> Result<Result<(), Fault>, BuildcacheError> {
    let blob = &found.tarball;
    let at = blob.key()?;
    let fault = |kind, detail: String| Ok(Err(Fault::new(kind, at.as_str(), detail)));
    let mut out = Hashing::new(Bounded { inner: copy, left: blob.content_length, over: false });
    let got = store.download(&at, &mut out, ctx);
    let (bounded, sum) = out.finish();
    if bounded.over {
        return fault(
            Kind::ChangedBlob,
            format!("it has more than the {} bytes that the manifest says", blob.content_length),
        );
    }
    let Some(size) = got? else {
        return fault(Kind::MissingBlob, "a manifest names it as the package, and it is not there".into());
    };
    match differs_by(blob, size, &hex::encode(sum)) {
        Some(reason) => fault(Kind::ChangedBlob, reason),
        None => Ok(Ok(())),
    }
}

/// The same, and looks into the copy: what nobody signed is not unpacked. What comes back says how it was built.
pub(super) fn tarball(
    store: &dyn Store,
    found: &Found,
    copy: &mut File,
    ctx: &Ctx,
) -> Result<Result<Distribution, Fault>, BuildcacheError> {
    if let Err(fault) = copied(store, found, copy, ctx)? {
        return Ok(Err(fault));
    }
    copy.rewind()?;
    let at = found.tarball.key()?;
    Ok(look(&*copy, &found.spec).map_err(|reason| Fault::new(Kind::BadTarball, at.as_str(), reason)))
}

/// Takes so many bytes and no more.
struct Bounded<'f> {
    inner: &'f mut File,
    left: u64,
    /// More came.
    over: bool,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len() as u64;
        if length > self.left {
            self.over = true;
            return Err(io::Error::other("there is more than was said"));
        }
        self.inner.write_all(bytes)?;
        self.left -= length;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the archive is of this spec: one prefix, the spec itself in it, and a last entry that agrees with both.
fn look(from: impl Read + Send, spec: &Spec) -> Result<Distribution, String> {
    let plain = gzip::reader(from, 1).map_err(|e| e.to_string())?;
    let mut archive = tar::Archive::new(plain);
    let mut prefix: Option<String> = None;
    let mut inner = false;
    let mut last = None;
    for entry in archive.entries().map_err(|e| e.to_string())? {
        let mut entry = entry.map_err(|e| e.to_string())?;
        let path = entry.path_bytes().into_owned();
        let name = String::from_utf8_lossy(&path).trim_end_matches('/').to_owned();
        last = None;
        if let Some(prefix) = &prefix {
            let below =
                Path::new(&name).strip_prefix(prefix).map_err(|_| format!("`{name}` is outside of `{prefix}`"))?;
            if below.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
                return Err(format!("`{name}` climbs"));
            }
            if below == Path::new(".spack/spec.json") {
                let bytes = whole(&mut entry)?;
                let found = Spec::parse(&bytes).map_err(|e| format!("the spec in it: {e}"))?;
                if found.root().hash != spec.root().hash {
                    return Err(format!("it is the package {} ({})", found.root().name, found.root().hash));
                }
                inner = true;
            } else if below == Path::new(DISTRIBUTION) {
                last = Some(whole(&mut entry)?);
            }
        } else if name.ends_with(spec.root().hash.as_str()) || !entry.header().entry_type().is_dir() {
            prefix = Some(name);
        } else if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("`{name}` climbs"));
        }
        // Else a folder above the prefix.
    }
    let prefix = prefix.ok_or("it has no prefix whose name ends in the hash")?;
    if !inner {
        return Err("it has no `.spack/spec.json`".into());
    }
    let last = last.ok_or_else(|| format!("its last entry is not `{DISTRIBUTION}`"))?;
    agrees(&last, &prefix, spec)
}

fn whole(entry: &mut impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    entry.take(SPEC_LIMIT + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > SPEC_LIMIT { Err("an entry that should be small is not".into()) } else { Ok(bytes) }
}

/// Whether what installing elsewhere would go by is of this spec and this prefix.
fn agrees(bytes: &[u8], prefix: &str, spec: &Spec) -> Result<Distribution, String> {
    let distribution: Distribution =
        serde_yaml::from_slice(bytes).map_err(|e| format!("`{DISTRIBUTION}` does not parse: {e}"))?;
    let prefix = format!("/{prefix}");
    let said = Path::new(&distribution.buildpath).join(&distribution.relative_prefix);
    if said != Path::new(&prefix) {
        return Err(format!("`{DISTRIBUTION}` is of `{}`, and the files are of `{prefix}`", said.display()));
    }
    let root = &spec.root().hash;
    if distribution.hash_to_prefix.get(root) != Some(&prefix) {
        return Err(format!("`{DISTRIBUTION}` does not say that {root} is `{prefix}`"));
    }
    let expected: BTreeSet<&str> = spec.relocated().iter().map(|n| n.hash.as_str()).collect();
    let found: BTreeSet<&str> = distribution.hash_to_prefix.keys().map(String::as_str).collect();
    if let Some(other) = found.symmetric_difference(&expected).next() {
        return Err(format!("`{DISTRIBUTION}` and the spec do not agree on whether files may name {other}"));
    }
    Ok(distribution)
}

/// The manifests of packages: hash to where each lies; and what lies there under no such name.
pub(super) fn manifests(
    store: &dyn Store,
    ctx: &Ctx,
) -> Result<(std::collections::BTreeMap<String, Key>, Vec<Fault>), BuildcacheError> {
    let mut found = std::collections::BTreeMap::new();
    let mut faults = Vec::new();
    let registry = store.registry();
    for entry in store.list(if registry { TAGS } else { manifest::SPECS }, ctx)? {
        let hash = match (registry, oci::hash_of(&entry.key)) {
            (true, None) => continue,
            (true, Some(hash)) => hash.ok(),
            (false, _) => manifest::hash_of(&entry.key),
        };
        match hash {
            None => faults.push(Fault::new(Kind::BadManifest, entry.key.as_str(), "no package has such a name".into())),
            Some(hash) => {
                if let Some(other) = found.insert(hash.to_owned(), entry.key.clone()) {
                    let detail = format!("{other} has the same hash");
                    faults.push(Fault::new(Kind::Substituted, entry.key.as_str(), detail));
                }
            }
        }
    }
    Ok((found, faults))
}

/// Whether an older layout is there and this one is not.
pub(super) fn only_older_layout(store: &dyn Store, ctx: &Ctx) -> Result<bool, BuildcacheError> {
    // What may not be read does not tell one layout from the other.
    let is_there = |at: &str| -> Result<bool, BuildcacheError> {
        let found = allowed(store.size(&key(at.to_owned())?, ctx).map_err(BuildcacheError::from))?;
        if let Err(reason) = &found {
            ctx.detail(reason);
        }
        Ok(matches!(found, Ok(Some(_))))
    };
    Ok(!store.registry() && !is_there(manifest::LAYOUT)? && is_there("build_cache/index.json")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::{FolderStore, Reach, open_to_read};
    use std::sync::Barrier;

    #[test]
    fn many_are_asked_at_once_and_one_on_the_thread_that_asks() {
        let web = open_to_read("http://127.0.0.1:1", &Reach::default(), &Ctx::silent()).unwrap();
        let folder = FolderStore::new(Path::new("/nowhere"));
        let stores: [&dyn Store; 2] = [&*web, &folder];
        for store in stores {
            let here = at_once(store, &[()], |()| Ok(std::thread::current().id())).unwrap();
            assert_eq!(here, [std::thread::current().id()]);
            let order: Vec<usize> = (0..100).collect();
            assert_eq!(at_once(store, &order, |n| Ok(*n)).unwrap(), order);
        }
        // None of them goes on before all have been asked, whatever the number of processors.
        let all = Barrier::new(AT_ONCE);
        at_once(&*web, &[(); AT_ONCE], |()| Ok(all.wait().is_leader())).unwrap();
    }
}
