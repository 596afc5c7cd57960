//! A binary cache in an OCI registry, as Spack's `oci://` mirrors have it.
//!
//! ```text
//! NAME:zlib-1.3.1-HASH.spack     an image manifest of a package
//!     config                     the package's spec, beside what an image's configuration has: architecture, os, rootfs, config
//!     layers                     tarballs of what it links and runs, and last its own: Spack takes the last
//!     annotations                org.opencontainers.image.description, .created
//!                                vnd.slurm-factory.spack.manifest: config and last layer as a manifest of layout 3 names blobs,
//!                                clear-signed
//! NAME:index.spack               a manifest whose first layer is the index
//! ```
//!
//! Source of the format: `spack.oci` and `binary_distribution.py` of Spack v1.0.0 and v1.1.0, and what both wrote.
//!
//! Spack's layout in registries has **no signatures**: `buildcache keys` does nothing there, and what such a mirror holds is
//! installed unchecked. So that our own builds and `check` can believe what they take, ours are signed by the annotation, which
//! Spack passes over. The signature covers what Spack follows, the digests of config and last layer, and a package whose
//! manifest names others is refused. The layers are tarballs as in any other cache, so the same tarball is the same blob.
//!
//! Tags are the truth and the index only saves asking for them all: see [`super::index`].

use super::manifest::{self, Blob, Manifest, SPEC, TARBALL};
use super::spec::{Node, Spec};
use super::{BuildcacheError, InTree, Request, key, read};
use crate::publish::{Condition, Descriptor, Keep, Key, OCI_MANIFEST, Put, Store, TAGS};
use crate::report::Ctx;
use crate::sign::clearsign;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// How the tags of packages end.
const SUFFIX: &str = ".spack";
/// The index's tag.
const INDEX: &str = "index.spack";
/// Where the index is, as a key of the store.
pub(super) const INDEX_TAG: &str = "tags/index.spack";

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

const SIGNED: &str = "vnd.slurm-factory.spack.manifest";
const CREATED: &str = "org.opencontainers.image.created";
const DESCRIPTION: &str = "org.opencontainers.image.description";

/// Longer tags than this no registry takes.
const LONGEST: usize = 128;

/// Configurations hold specs, which are hundreds of kilobytes at most.
const CONFIG_LIMIT: u64 = 64 << 20;

/// An image manifest, of which only this matters here.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Image {
    #[serde(default)]
    media_type: Option<String>,
    schema_version: u32,
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// A package's own layer.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// SHA-256 of the tarball, hexadecimal.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    /// SHA-256 of the tarball before it was compressed, hexadecimal.
    pub diff_id: String,
}

/// A descriptor as a manifest of layout 3 would name the same.
fn blob(descriptor: &Descriptor, media_type: &str, compression: &str) -> Result<Blob, String> {
    let sum = descriptor.digest.strip_prefix("sha256:").unwrap_or_default();
    let digits = sum.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if sum.len() != 64 || !digits {
        return Err(format!("`{}` is no SHA-256", descriptor.digest.escape_debug()));
    }
    Ok(Blob::new(media_type, compression, descriptor.size, sum.to_owned()))
}

impl Image {
    /// Reads a manifest; the reason when it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let image: Self = serde_json::from_slice(bytes).map_err(|e| format!("it does not parse: {e}"))?;
        if image.schema_version != 2 {
            return Err(format!("it is of schema version {}, and 2 is read", image.schema_version));
        }
        Ok(image)
    }

    /// What Spack follows, as a manifest of layout 3 would name it.
    pub fn followed(&self) -> Result<Manifest, String> {
        let last = self.layers.last().ok_or("it has no layer")?;
        Ok(Manifest::new(vec![blob(last, TARBALL, "gzip")?, blob(&self.config, SPEC, "none")?]))
    }

    /// What we signed.
    pub fn signed(&self) -> Option<&str> {
        self.annotations.get(SIGNED).map(String::as_str)
    }

    /// The index that the manifest names, as a manifest of layout 3 would name it.
    pub fn index(&self) -> Result<Blob, String> {
        blob(self.layers.first().ok_or("it has no layer")?, manifest::INDEX, "none")
    }

    /// When it was made; `None` when it does not say.
    pub fn created(&self) -> Option<jiff::Timestamp> {
        self.annotations.get(CREATED)?.parse().ok()
    }
}

/// Where a package's manifest is: Spack's `default_tag`.
///
/// What no tag may have becomes `_`; of a longer one the middle is left out, and the hash stays.
pub(super) fn spec_key(name: &str, version: &str, hash: &str) -> Result<Key, BuildcacheError> {
    let fits = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
    let tag: String = format!("{name}-{version}-{hash}{SUFFIX}").chars().map(fits).collect();
    let half = LONGEST / 2;
    let tag = if tag.len() > LONGEST { format!("{}{}", &tag[..half], &tag[tag.len() - half..]) } else { tag };
    key(format!("{TAGS}{tag}"))
}

/// The hash in a tag; nothing when it is no package's. `None` for tags that are nobody's business here.
pub(super) fn hash_of(key: &Key) -> Option<Result<&str, ()>> {
    let stem = key.as_str().strip_prefix(TAGS)?.strip_suffix(SUFFIX)?;
    if key.as_str() == INDEX_TAG {
        return None;
    }
    let hash = stem.rsplit_once('-').map(|(_, hash)| hash).filter(|hash| super::spec::is_hash(hash));
    Some(hash.ok_or(()))
}

/// Writes the manifests of packages whose tarballs are there, each with its own layer.
pub(super) fn manifests(
    store: &dyn Store,
    request: &Request<'_>,
    packages: &[(&InTree, &Spec, &Layer)],
    ctx: &Ctx,
) -> Result<(), BuildcacheError> {
    let made: BTreeMap<&str, &Layer> = packages.iter().map(|(p, _, own)| (p.hash.as_str(), *own)).collect();
    // What they link and run and was there before, each asked for once.
    let mut others: BTreeMap<&str, &Node> = BTreeMap::new();
    for node in packages.iter().flat_map(|(_, spec, _)| dependencies_first(spec)) {
        if !made.contains_key(node.hash.as_str()) {
            others.insert(&node.hash, node);
        }
    }
    let others: Vec<(&str, &Node)> = others.into_iter().collect();
    let others = read::at_once(store, &others, |(hash, node)| Ok((*hash, layer(store, node, ctx)?)))?;
    let others: BTreeMap<&str, Option<Layer>> = others.into_iter().collect();
    read::at_once(store, packages, |(package, spec, own)| {
        ctx.check()?;
        // One that is not there leaves an image that does not run, and a package that can be installed all the same.
        let below = dependencies_first(spec).into_iter().map(|node| node.hash.as_str());
        let below = below.filter(|hash| *hash != package.hash);
        let below = below.filter_map(|hash| made.get(hash).copied().or_else(|| others.get(hash)?.as_ref()));
        one(store, request, package, spec, &below.collect::<Vec<_>>(), own, ctx)
    })?;
    Ok(())
}

/// Puts the manifest of a package, of the layers `below` and, last, its own: Spack takes the last.
fn one(
    store: &dyn Store,
    request: &Request<'_>,
    package: &InTree,
    spec: &Spec,
    below: &[&Layer],
    own: &Layer,
    ctx: &Ctx,
) -> Result<(), BuildcacheError> {
    let layers = || below.iter().copied().chain([own]);
    let config = configuration(request, spec, layers(), own);
    let described = Blob::new(SPEC, "none", config.len() as u64, hex::encode(Sha256::digest(&config)));
    let how = |content_type| Put { content_type, keep: Keep::Forever, condition: Condition::Always };
    store.put(&described.key()?, &config, &how(CONFIG), ctx)?;
    let root = spec.root();
    let named = Manifest::new(vec![Blob::new(TARBALL, "gzip", own.size, own.sha256.clone()), described.clone()]);
    let annotations = BTreeMap::from([
        (CREATED.to_owned(), jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        (DESCRIPTION.to_owned(), format!("{}@{}/{}", root.name, root.version, root.hash)),
        (SIGNED.to_owned(), clearsign(request.key, &named.text())?),
    ]);
    let image = Image {
        media_type: Some(OCI_MANIFEST.to_owned()),
        schema_version: 2,
        config: Descriptor::new(CONFIG, &described.checksum, described.content_length),
        layers: layers().map(|layer| Descriptor::new(LAYER, &layer.sha256, layer.size)).collect(),
        annotations,
    };
    let at = spec_key(&package.name, &package.version, &package.hash)?;
    store.put(&at, &serde_json::to_vec(&image).map_err(std::io::Error::other)?, &how(OCI_MANIFEST), ctx)?;
    ctx.detail(format!("{} tagged {at}", package.label()));
    Ok(())
}

/// The configuration: an image's, and the package's spec. The same for the same package and layers.
fn configuration<'l>(
    request: &Request<'_>,
    spec: &Spec,
    layers: impl Iterator<Item = &'l Layer>,
    own: &Layer,
) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.map(|layer| format!("sha256:{}", layer.diff_id)).collect();
    let config = json!({
        "architecture": architecture(spec.root()),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {"Env": [format!("PATH={}", path(request, spec))]},
    });
    let archive = json!({
        "binary_cache_checksum": {"hash_algorithm": "sha256", "hash": own.sha256},
        "archive_size": own.size,
        "archive_compression": "gzip",
    });
    spec.for_registry(&config, &archive)
}

/// Where the image finds programs: in the package and in what it runs.
fn path(request: &Request<'_>, spec: &Spec) -> String {
    let nodes = spec.closure(&["run"]);
    let packages = nodes.iter().filter_map(|node| request.tree.packages().get(&node.hash));
    let folders = packages.filter(|p| p.dir.join("bin").is_dir()).map(|p| format!("{}/bin", p.prefix));
    folders.chain(["/bin:/usr/bin".to_owned()]).collect::<Vec<_>>().join(":")
}

/// The processor as images name it.
fn architecture(root: &Node) -> &'static str {
    let target = root.json.pointer("/arch/target");
    let name = target.and_then(|t| t.as_str().or_else(|| t.get("name")?.as_str())).unwrap_or_default();
    // A particular processor is told by the family that it belongs to, which stands among its parents.
    let texts = target.map(Value::to_string).unwrap_or_default();
    let is = |family: &str| name.starts_with(family) || texts.contains(family);
    match () {
        () if is("aarch64") => "arm64",
        () if is("x86_64") => "amd64",
        () if is("ppc64le") => "ppc64le",
        // Its tarball was made where it was built.
        () if std::env::consts::ARCH == "aarch64" => "arm64",
        () => "amd64",
    }
}

/// What a package links and runs, and last itself; each after all that it needs itself.
fn dependencies_first(spec: &Spec) -> Vec<&Node> {
    let by_hash: BTreeMap<&str, &Node> = spec.nodes().iter().map(|n| (n.hash.as_str(), n)).collect();
    let mut seen = BTreeSet::new();
    let mut order = Vec::new();
    // Whether all that it needs has been put in order already.
    let mut stack = vec![(spec.root(), false)];
    while let Some((node, ready)) = stack.pop() {
        if ready {
            order.push(node);
            continue;
        }
        if node.external || !seen.insert(node.hash.as_str()) {
            continue;
        }
        stack.push((node, true));
        for (hash, kinds) in node.dependencies.iter().rev() {
            if kinds.iter().any(|k| k == "link" || k == "run")
                && let Some(next) = by_hash.get(hash.as_str())
            {
                stack.push((next, false));
            }
        }
    }
    order
}

/// The layer of a package that is in the registry; `None` when it is not, or cannot be used.
fn layer(store: &dyn Store, node: &Node, ctx: &Ctx) -> Result<Option<Layer>, BuildcacheError> {
    let at = spec_key(&node.name, &node.version, &node.hash)?;
    let Ok(Some((bytes, _))) = read::small(store, &at, manifest::LIMIT, ctx)? else { return Ok(None) };
    let Ok(followed) = Image::parse(&bytes).and_then(|image| image.followed()) else { return Ok(None) };
    let (Ok(tarball), Ok(config)) = (followed.blob(TARBALL), followed.blob(SPEC)) else { return Ok(None) };
    let Ok(Some((bytes, _))) = read::small(store, &config.key()?, CONFIG_LIMIT, ctx)? else { return Ok(None) };
    let diff_id = serde_json::from_slice::<Value>(&bytes).ok().and_then(|config| {
        let last = config.pointer("/rootfs/diff_ids")?.as_array()?.last()?.as_str()?;
        last.strip_prefix("sha256:").map(str::to_owned)
    });
    let known = read::differs(config, &bytes).is_none();
    Ok(diff_id.filter(|_| known).map(|diff_id| Layer {
        sha256: tarball.checksum.clone(),
        size: tarball.content_length,
        diff_id,
    }))
}

/// Puts an index, and the manifest that names it.
pub(super) fn put_index(
    store: &dyn Store,
    bytes: &[u8],
    condition: Condition,
    ctx: &Ctx,
) -> Result<crate::publish::Written, BuildcacheError> {
    let blob =
        |bytes: &[u8]| Blob::new(manifest::INDEX, "none", bytes.len() as u64, hex::encode(Sha256::digest(bytes)));
    let (index, empty) = (blob(bytes), blob(b"{}"));
    let how = |content_type, condition| Put { content_type, keep: Keep::Briefly, condition };
    store.put(&index.key()?, bytes, &how(LAYER, Condition::Always), ctx)?;
    store.put(&empty.key()?, b"{}", &how(CONFIG, Condition::Always), ctx)?;
    let image = Image {
        media_type: Some(OCI_MANIFEST.to_owned()),
        schema_version: 2,
        config: Descriptor::new(CONFIG, &empty.checksum, empty.content_length),
        // It is no layer. Spack says that it is one, and asks for it as one.
        layers: vec![Descriptor::new(LAYER, &index.checksum, index.content_length)],
        annotations: BTreeMap::new(),
    };
    let text = serde_json::to_vec(&image).map_err(std::io::Error::other)?;
    Ok(store.put(&key(format!("{TAGS}{INDEX}"))?, &text, &how(OCI_MANIFEST, condition), ctx)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "uoeupcay3nlry63rrmctea2h6wgt2opi";

    #[test]
    fn tags_are_those_of_spack() {
        let tag = |name: &str, version: &str| spec_key(name, version, HASH).unwrap();
        assert_eq!(tag("munge", "0.5.16").as_str(), format!("tags/munge-0.5.16-{HASH}.spack"));
        assert_eq!(tag("a", "git.x/y=1+2").as_str(), format!("tags/a-git.x_y_1_2-{HASH}.spack"));
        let long = tag(&"n".repeat(90), &"9".repeat(60));
        assert_eq!(long.as_str().len(), TAGS.len() + LONGEST);
        for key in [&tag("munge", "0.5.16"), &long] {
            assert_eq!(hash_of(key), Some(Ok(HASH)));
        }
        let other = |text: &str| hash_of(&Key::new(text).unwrap()).map(|found| found.is_ok());
        assert_eq!(other(INDEX_TAG), None);
        assert_eq!(other("tags/slurm-25.11-gcc13.3.0-software.tar.gz"), None);
        assert_eq!(other("tags/no-package.spack"), Some(false));
    }

    #[test]
    fn what_spack_follows_is_the_last_layer_and_the_configuration() {
        let layer =
            |c: char| json!({"mediaType": LAYER, "digest": format!("sha256:{}", c.to_string().repeat(64)), "size": 7});
        let text = json!({"schemaVersion": 2, "config": layer('c'), "layers": [layer('a'), layer('b')]}).to_string();
        let image = Image::parse(text.as_bytes()).unwrap();
        let followed = image.followed().unwrap();
        assert_eq!(followed.blob(TARBALL).unwrap().checksum, "b".repeat(64));
        assert_eq!(followed.blob(SPEC).unwrap().checksum, "c".repeat(64));
        assert!(image.signed().is_none() && image.created().is_none());
        assert!(Image::parse(text.replace("bbb", "../").as_bytes()).unwrap().followed().is_err());
        assert!(Image::parse(br#"{"schemaVersion": 1}"#).is_err());
    }
}
