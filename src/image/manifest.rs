//! Reading indexes, manifests and configurations. Bytes in, types out; no I/O.
//!
//! ```text
//! index (or Docker manifest list)      one entry a platform; entries may be indexes again
//!   `- manifest                        config + layers, each a descriptor: media type, digest, size
//!        |- config                     os, architecture, rootfs.diff_ids: digests of the *uncompressed* layers
//!        `- layers                     tar archives: plain, gzip or zstd
//! ```
//!
//! Formats: OCI image-spec `image-index.md`, `manifest.md`, `config.md`, `layer.md`; Docker "Image Manifest
//! V 2, Schema 2". A registry's `Content-Type` and the documents' own `mediaType` may both be absent, so what a
//! document is follows from what it holds.

use super::{Digest, ImageError, Platform};
use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde::Deserialize;

/// The media type of a manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The four types a client must accept, or a registry says there is no such manifest.
pub const ACCEPTED: [&str; 4] = [
    OCI_MANIFEST,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// No honest manifest or index is larger; registries refuse them at 4 MiB.
pub const MAX_MANIFEST: u64 = 4 << 20;

/// No honest configuration is larger.
pub const MAX_CONFIG: u64 = 8 << 20;

/// How a layer's tar archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames.
    Zstd,
}

/// One layer: a compressed tar archive, and what its content must be.
#[derive(Clone, Debug)]
pub struct Layer {
    digest: Digest,
    size: u64,
    media_type: String,
    compression: Compression,
    diff_id: Digest,
}

impl Layer {
    /// The digest of the blob as it is stored and sent.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The size of the blob.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The type that the manifest gives.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// How the blob is compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The digest of the uncompressed tar archive.
    pub fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn for_test(blob: &[u8], compression: Compression, diff_id: Digest) -> Self {
        let size = blob.len() as u64;
        Self { digest: Digest::of(blob), size, media_type: String::new(), compression, diff_id }
    }
}

/// An index or a manifest.
#[derive(Debug)]
pub enum Document {
    /// Many platforms.
    Index(Box<ImageIndex>),
    /// One image.
    Manifest(Box<ImageManifest>),
}

/// What a document says about itself, before it is read in full.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
}

/// Reads an index or a manifest.
pub fn parse(bytes: &[u8], reference: &str) -> Result<Document, ImageError> {
    let malformed = |reason: String| ImageError::Malformed {
        what: "the manifest".to_owned(),
        reference: reference.to_owned(),
        reason,
    };
    let shape: Shape = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
    match shape.schema_version {
        Some(2) => {}
        Some(1) => {
            return Err(ImageError::Unsupported {
                what: "the manifest".to_owned(),
                reference: reference.to_owned(),
                media_type: shape.media_type.unwrap_or_else(|| "Docker schema 1".to_owned()),
                reason: "a Docker schema 1 image; push it again with a current tool",
            });
        }
        other => return Err(malformed(format!("schemaVersion is {other:?}, not 2"))),
    }
    // A document that is both could be read as one by us and as the other by someone else.
    let is_index = shape.manifests.is_some();
    let is_manifest = shape.config.is_some() || shape.layers.is_some();
    if is_index == is_manifest {
        return Err(malformed("it holds neither `manifests` nor `config` and `layers`, or both".to_owned()));
    }
    if let Some(media_type) = shape.media_type.filter(|t| !t.is_empty()) {
        let fits =
            match media_type.as_str() {
                "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json" => is_index,
                "application/vnd.oci.image.manifest.v1+json"
                | "application/vnd.docker.distribution.manifest.v2+json" => is_manifest,
                _ => {
                    return Err(ImageError::Unsupported {
                        what: "the manifest".to_owned(),
                        reference: reference.to_owned(),
                        media_type,
                        reason: "expected an OCI image or index, or a Docker manifest or manifest list",
                    });
                }
            };
        if !fits {
            return Err(malformed(format!("its mediaType `{media_type}` does not fit what it holds")));
        }
    }
    if is_index {
        serde_json::from_slice(bytes)
            .map(|index| Document::Index(Box::new(index)))
            .map_err(|e| malformed(e.to_string()))
    } else {
        serde_json::from_slice(bytes)
            .map(|manifest| Document::Manifest(Box::new(manifest)))
            .map_err(|e| malformed(e.to_string()))
    }
}

/// A descriptor's digest as ours.
pub fn digest_of(descriptor: &Descriptor, what: &str, reference: &str) -> Result<Digest, ImageError> {
    descriptor.digest().as_ref().parse().map_err(|e: super::digest::BadDigest| ImageError::Malformed {
        what: what.to_owned(),
        reference: reference.to_owned(),
        reason: e.to_string(),
    })
}

/// The index's entry for `platform`. Attestations (`unknown/unknown`) are no images and are skipped. An entry
/// without a platform is taken only when it is the one there is; its configuration is checked later.
pub fn choose(index: &ImageIndex, platform: Platform, reference: &str) -> Result<Descriptor, ImageError> {
    let images: Vec<&Descriptor> = index.manifests().iter().filter(|d| !is_attestation(d)).collect();
    let fits = |d: &&&Descriptor| {
        d.platform().as_ref().is_some_and(|p| platform.accepts(p.os(), p.architecture(), p.variant().as_deref()))
    };
    if let Some(found) = images.iter().find(fits) {
        return Ok((*found).clone());
    }
    match images.as_slice() {
        [only] if only.platform().is_none() => Ok((*only).clone()),
        _ => Err(ImageError::NoPlatform {
            reference: reference.to_owned(),
            wanted: platform,
            available: available(&images),
        }),
    }
}

fn available(images: &[&Descriptor]) -> String {
    let mut names: Vec<String> = images
        .iter()
        .map(|d| match d.platform() {
            Some(p) => match p.variant() {
                Some(variant) => format!("{}/{}/{variant}", p.os(), p.architecture()),
                None => format!("{}/{}", p.os(), p.architecture()),
            },
            None => "an image without a platform".to_owned(),
        })
        .collect();
    names.dedup();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// Whether the entry describes another image (where it was built, what is in it) and is none itself.
pub fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.platform().as_ref().is_some_and(|p| {
        *p.os() == Os::Other("unknown".to_owned()) && *p.architecture() == Arch::Other("unknown".to_owned())
    }) || descriptor.annotations().as_ref().is_some_and(|a| a.contains_key("vnd.docker.reference.type"))
}

/// Reads the configuration and checks that the image is one for `platform`.
pub fn parse_config(bytes: &[u8], platform: Platform, reference: &str) -> Result<ImageConfiguration, ImageError> {
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(|e| ImageError::Malformed {
        what: "the configuration".to_owned(),
        reference: reference.to_owned(),
        reason: e.to_string(),
    })?;
    if !platform.accepts(config.os(), config.architecture(), config.variant().as_deref()) {
        let variant =
            config.variant().as_deref().filter(|v| !v.is_empty()).map(|v| format!("/{v}")).unwrap_or_default();
        return Err(ImageError::WrongPlatform {
            reference: reference.to_owned(),
            wanted: platform,
            found: format!("{}/{}{variant}", config.os(), config.architecture()),
        });
    }
    Ok(config)
}

/// Checks the manifest's config descriptor before anything is fetched.
pub fn check_config_descriptor(manifest: &ImageManifest, reference: &str) -> Result<(), ImageError> {
    let media_type = manifest.config().media_type().as_ref();
    if !matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    ) {
        return Err(ImageError::Unsupported {
            what: "the configuration".to_owned(),
            reference: reference.to_owned(),
            media_type: media_type.to_owned(),
            reason: "this is an artifact (a Helm chart, a signature), not a container image",
        });
    }
    if manifest.config().size() > MAX_CONFIG {
        return Err(ImageError::Malformed {
            what: "the configuration".to_owned(),
            reference: reference.to_owned(),
            reason: format!("{} bytes are more than the {MAX_CONFIG} that are accepted", manifest.config().size()),
        });
    }
    Ok(())
}

/// The compression that a layer's media type tells.
pub fn compression_of(descriptor: &Descriptor, reference: &str) -> Result<Compression, ImageError> {
    match descriptor.media_type().as_ref() {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Compression::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
        other => Err(ImageError::Unsupported {
            what: format!("the layer {}", descriptor.digest()),
            reference: reference.to_owned(),
            media_type: other.to_owned(),
            reason: "expected a tar archive: plain, gzip or zstd",
        }),
    }
}

/// The layers in order, each with the digest of its uncompressed content.
pub fn layers(
    manifest: &ImageManifest,
    config: &ImageConfiguration,
    reference: &str,
) -> Result<Vec<Layer>, ImageError> {
    let malformed = |reason: String| ImageError::Malformed {
        what: "the configuration".to_owned(),
        reference: reference.to_owned(),
        reason,
    };
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != manifest.layers().len() {
        return Err(malformed(format!(
            "it has {} diff_ids for the manifest's {} layers",
            diff_ids.len(),
            manifest.layers().len()
        )));
    }
    manifest
        .layers()
        .iter()
        .zip(diff_ids)
        .map(|(descriptor, diff_id)| {
            Ok(Layer {
                digest: digest_of(descriptor, "a layer's descriptor", reference)?,
                size: descriptor.size(),
                media_type: descriptor.media_type().to_string(),
                compression: compression_of(descriptor, reference)?,
                diff_id: diff_id.parse().map_err(|e: super::digest::BadDigest| malformed(format!("diff_ids: {e}")))?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn entry(os: &str, arch: &str, digest_start: &str) -> serde_json::Value {
        let digest = format!("sha256:{digest_start}{}", "0".repeat(62));
        json!({"mediaType": ACCEPTED[0], "digest": digest, "size": 7, "platform": {"os": os, "architecture": arch}})
    }

    fn index(entries: &[serde_json::Value]) -> ImageIndex {
        let text = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        match parse(text.as_bytes(), "x").unwrap() {
            Document::Index(index) => *index,
            Document::Manifest(_) => panic!("an index"),
        }
    }

    #[test]
    fn the_platform_is_chosen_and_attestations_are_skipped() {
        let index = index(&[
            entry("unknown", "unknown", "aa"),
            entry("linux", "s390x", "bb"),
            entry("linux", "arm64", "cc"),
            entry("linux", "amd64", "dd"),
        ]);
        for (platform, start) in [(Platform::LinuxArm64, "sha256:cc"), (Platform::LinuxAmd64, "sha256:dd")] {
            let chosen = choose(&index, platform, "x").unwrap();
            assert!(chosen.digest().as_ref().starts_with(start));
        }
    }

    #[test]
    fn a_missing_platform_names_what_there_is() {
        let index = index(&[entry("linux", "s390x", "bb"), entry("windows", "amd64", "cc")]);
        let text = choose(&index, Platform::LinuxArm64, "x").unwrap_err().to_string();
        for part in ["linux/arm64", "linux/s390x", "windows/amd64"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn malformed_documents_are_errors() {
        for (text, part) in [
            ("", "EOF"),
            ("[]", "schemaVersion"),
            ("{}", "schemaVersion"),
            (r#"{"schemaVersion":1}"#, "schema 1"),
            (r#"{"schemaVersion":2}"#, "neither"),
            (r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, "both"),
            (r#"{"schemaVersion":2,"manifests":[{"digest":"x"}]}"#, "digest"),
            (r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#, "fit"),
            (r#"{"schemaVersion":2,"mediaType":"text/html","manifests":[]}"#, "text/html"),
        ] {
            let error = parse(text.as_bytes(), "x").unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    fn manifest(layer_types: &[&str]) -> ImageManifest {
        let layers: Vec<_> = layer_types.iter().map(|t| json!({"mediaType": t, "digest": DIGEST, "size": 3})).collect();
        let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 3});
        let text = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
        match parse(text.as_bytes(), "x").unwrap() {
            Document::Manifest(manifest) => *manifest,
            Document::Index(_) => panic!("a manifest"),
        }
    }

    fn config(diff_ids: &[&str]) -> Vec<u8> {
        json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn layers_have_types_and_diff_ids() {
        let manifest = manifest(&[
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ]);
        let config = parse_config(&config(&[DIGEST; 3]), Platform::LinuxAmd64, "x").unwrap();
        let found: Vec<_> = layers(&manifest, &config, "x").unwrap().iter().map(Layer::compression).collect();
        assert_eq!(found, [Compression::None, Compression::Gzip, Compression::Zstd]);
    }

    #[test]
    fn unknown_layers_wrong_counts_and_wrong_machines_are_refused() {
        let wrong = parse_config(&config(&[]), Platform::LinuxArm64, "x").unwrap_err().to_string();
        assert!(wrong.contains("linux/amd64") && wrong.contains("linux/arm64"), "{wrong}");
        let config = parse_config(&config(&[DIGEST]), Platform::LinuxAmd64, "x").unwrap();
        let encrypted = manifest(&["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]);
        assert!(layers(&encrypted, &config, "x").unwrap_err().to_string().contains("encrypted"));
        let two = manifest(&["application/vnd.oci.image.layer.v1.tar"; 2]);
        assert!(layers(&two, &config, "x").unwrap_err().to_string().contains("1 diff_ids for the manifest's 2"));
    }
}
