//! What `docker save`, `podman save` and `skopeo copy docker-archive:` write.
//!
//! ```text
//! manifest.json    [{"Config": "<hex>.json", "RepoTags": ["ubuntu:24.04"], "Layers": ["<hex>.tar", ...]}, ...]
//! <hex>.json       the configuration; its name is its digest
//! <hex>.tar        layers, mostly not compressed; also <id>/layer.tar, or a link to a member with the same content
//! repositories     the names once more, for Docker before 1.10: not read
//! ```
//!
//! Newer versions of Docker put `blobs/sha256/<hex>` in all these places and an OCI layout beside: manifest.json says
//! where things are in either.
//!
//! There is no manifest, so one is made (see [`super::local`]). A layer that is not compressed is a blob as it is, its
//! digest is its diff_id; a compressed one is kept as it is too, after both of its digests were computed. The
//! configuration's digest is computed and must be what its name says.
//!
//! Format: Docker Image Specification v1.2, "Combined Image JSON + Filesystem Changeset Format".

use super::archive::{self, Archive, CopyError};
use super::local::{Held, Local, MadeLayer, make_manifest, show_archive};
use super::manifest::{Compression, MAX_CONFIG, MAX_MANIFEST};
use super::reference::Which;
use super::{Digest, DockerArchiveReference, ImageError, Platform, Reference};
use crate::report::Ctx;
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// One image of the archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Item {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

/// Where a blob of a made image is.
#[derive(Clone)]
enum Blob {
    /// In memory: a manifest or a configuration.
    Bytes(Vec<u8>),
    /// A member of the archive.
    Member(String),
}

/// An archive whose list of images was read.
pub struct DockerArchive {
    archive: Archive,
    items: Vec<Item>,
    which: Option<Which>,
    reference: String,
    blobs: Mutex<HashMap<Digest, Blob>>,
    ctx: Ctx,
}

impl DockerArchive {
    /// Opens the archive. `spool` is where a compressed one is decompressed to.
    pub fn open(wanted: &DockerArchiveReference, name: &str, spool: &Path, ctx: &Ctx) -> Result<Self, ImageError> {
        Self::read(Archive::open(wanted.path(), spool, ctx)?, wanted, name, ctx)
    }

    /// Reads the list of images.
    pub fn read(archive: Archive, wanted: &DockerArchiveReference, name: &str, ctx: &Ctx) -> Result<Self, ImageError> {
        let unusable = |reason: String| ImageError::Unusable {
            path: wanted.path().to_owned(),
            wanted: "a Docker archive",
            reason,
        };
        let Some(bytes) = archive.small("manifest.json", MAX_MANIFEST)? else {
            let path = wanted.path().display();
            return Err(unusable(if archive.has("oci-layout") {
                format!("it is an OCI layout: name it oci-archive:{path}")
            } else if archive.has("repositories") {
                "it was made by Docker before 1.10; load it into a current version and save it again".to_owned()
            } else {
                "it has no member `manifest.json`; is it whole, and made by `docker save` or `podman save`?".to_owned()
            }));
        };
        let items: Vec<Item> =
            serde_json::from_slice(&bytes).map_err(|e| unusable(format!("its manifest.json is malformed: {e}")))?;
        Ok(Self {
            archive,
            items,
            which: wanted.which().cloned(),
            reference: name.to_owned(),
            blobs: Mutex::default(),
            ctx: ctx.clone(),
        })
    }

    fn choose(&self) -> Result<&Item, ImageError> {
        let found = match &self.which {
            None => match self.items.as_slice() {
                [only] => Some(only),
                _ => None,
            },
            Some(Which::At(place)) => self.items.get(*place),
            Some(Which::Named(name)) => self.items.iter().find(|item| {
                // `ubuntu:24.04` and `docker.io/library/ubuntu:24.04` are the same name.
                item.tags().iter().any(|t| matches!(t.parse(), Ok(Reference::Registry(tag)) if tag == *name))
            }),
        };
        found.ok_or_else(|| {
            let what = match &self.which {
                Some(Which::Named(name)) => format!("image `{name}`"),
                Some(Which::At(place)) => format!("image at the place @{place}"),
                None if self.items.is_empty() => "image".to_owned(),
                None => "single image to choose".to_owned(),
            };
            let names: Vec<String> = (0_usize..)
                .zip(&self.items)
                .map(|(place, item)| if item.tags().is_empty() { format!("@{place}") } else { item.tags().join(", ") })
                .collect();
            ImageError::NotThere {
                place: show_archive(self.archive.path()),
                what,
                available: if names.is_empty() {
                    "it is empty".to_owned()
                } else {
                    format!("it has: {}", names.join(", "))
                },
            }
        })
    }

    fn malformed(&self, what: &str, reason: String) -> ImageError {
        ImageError::Malformed { what: what.to_owned(), reference: self.reference.clone(), reason }
    }

    fn lacks(&self, member: &str) -> ImageError {
        self.malformed(
            "manifest.json",
            format!("it names the member `{}`, which is not there: copy the archive again", member.escape_debug()),
        )
    }

    /// Makes the image's manifest and remembers where its blobs are.
    fn make(&self, item: &Item) -> Result<Digest, ImageError> {
        let config = self.archive.small(&item.config, MAX_CONFIG)?.ok_or_else(|| self.lacks(&item.config))?;
        let digest = Digest::of(&config);
        self.check_name(&item.config, &digest)?;
        let parsed: ImageConfiguration =
            serde_json::from_slice(&config).map_err(|e| self.malformed("the configuration", e.to_string()))?;
        let members = item.layers.as_deref().unwrap_or_default();
        let diff_ids = parsed.rootfs().diff_ids();
        if diff_ids.len() != members.len() {
            return Err(self.malformed(
                "the configuration",
                format!("it has {} diff_ids for the archive's {} layers", diff_ids.len(), members.len()),
            ));
        }
        let mut layers = Vec::new();
        let mut blobs = HashMap::from([(digest, Blob::Bytes(config.clone()))]);
        for (member, diff_id) in members.iter().zip(diff_ids) {
            let diff_id = diff_id
                .parse()
                .map_err(|e: super::BadDigest| self.malformed("the configuration", format!("diff_ids: {e}")))?;
            let layer = self.layer(member, diff_id)?;
            blobs.insert(layer.digest, Blob::Member(member.clone()));
            layers.push(layer);
        }
        let manifest = make_manifest(&config, &layers, &[]);
        let made = Digest::of(&manifest);
        blobs.insert(made, Blob::Bytes(manifest));
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).extend(blobs);
        Ok(made)
    }

    /// The configuration is called by its digest, by all who write such archives.
    fn check_name(&self, name: &str, actual: &Digest) -> Result<(), ImageError> {
        let stem = name.rsplit('/').next().unwrap_or(name);
        let stem = stem.strip_suffix(".json").unwrap_or(stem);
        let stem = stem.strip_prefix("sha256:").unwrap_or(stem);
        match format!("sha256:{stem}").parse::<Digest>() {
            Ok(expected) if expected != *actual => Err(ImageError::DigestMismatch {
                what: "the configuration".to_owned(),
                place: format!("`{name}` in {}", show_archive(self.archive.path())),
                expected: Box::new(expected),
                actual: Box::new(*actual),
                remedy: DAMAGED,
            }),
            _ => Ok(()),
        }
    }

    fn layer(&self, member: &str, diff_id: Digest) -> Result<MadeLayer, ImageError> {
        let open = || self.archive.member(member)?.ok_or_else(|| self.lacks(member));
        let (section, size) = open()?;
        let mut start = Vec::new();
        section.take(8).read_to_end(&mut start).map_err(ImageError::Io)?;
        let compression = archive::sniff(&start).map_err(|other| ImageError::Unsupported {
            what: format!("the layer `{member}`"),
            reference: self.reference.clone(),
            media_type: other.to_owned(),
            reason: "expected a tar archive: plain, gzip or zstd",
        })?;
        if compression == Compression::None {
            // What it hashes to is checked when it is copied.
            return Ok(MadeLayer { digest: diff_id, size, compression });
        }
        let (digest, content) = archive::digests(open()?.0, compression, &self.ctx).map_err(|error| match error {
            CopyError::Read(e) | CopyError::Write(e) => {
                self.malformed(&format!("the layer `{member}`"), format!("it cannot be decompressed: {e}"))
            }
            CopyError::Image(e) => e,
        })?;
        if content != diff_id {
            return Err(ImageError::DigestMismatch {
                what: "the layer".to_owned(),
                place: format!("`{member}` in {}", show_archive(self.archive.path())),
                expected: Box::new(diff_id),
                actual: Box::new(content),
                remedy: DAMAGED,
            });
        }
        Ok(MadeLayer { digest, size, compression })
    }

    fn known(&self, digest: &Digest) -> Option<Blob> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// The blob, after looking at the chosen image when it was not looked at before.
    fn get(&self, digest: &Digest) -> Result<Blob, ImageError> {
        if let Some(blob) = self.known(digest) {
            return Ok(blob);
        }
        self.make(self.choose()?)?;
        self.known(digest).ok_or_else(|| ImageError::NotThere {
            place: show_archive(self.archive.path()),
            what: format!("blob {digest}"),
            available: "it was changed since it was looked at: try again".to_owned(),
        })
    }
}

const DAMAGED: &str = "the archive is damaged: save or copy it again";

impl Local for DockerArchive {
    fn find(&self, _platform: Platform) -> Result<Digest, ImageError> {
        self.make(self.choose()?)
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        match self.get(digest)? {
            Blob::Bytes(bytes) => Ok(bytes),
            Blob::Member(member) => Err(self.malformed("the manifest", format!("`{member}` is a layer"))),
        }
    }

    fn blob(&self, digest: &Digest, _size: u64) -> Result<Box<dyn Read + Send>, ImageError> {
        match self.get(digest)? {
            Blob::Bytes(bytes) => Ok(Box::new(Cursor::new(bytes))),
            Blob::Member(member) => {
                let (section, _) = self.archive.member(&member)?.ok_or_else(|| self.lacks(&member))?;
                Ok(Box::new(section))
            }
        }
    }

    fn made(&self) -> Vec<Vec<u8>> {
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = |blob: &Blob| if let Blob::Bytes(bytes) = blob { Some(bytes.clone()) } else { None };
        blobs.values().filter_map(bytes).collect()
    }

    fn place(&self, digest: &Digest) -> String {
        match self.get(digest) {
            Ok(Blob::Member(member)) => format!("`{member}` in {}", show_archive(self.archive.path())),
            _ => show_archive(self.archive.path()),
        }
    }

    fn images(&self) -> Result<Vec<Held>, ImageError> {
        (0_usize..)
            .zip(&self.items)
            .map(|(place, item)| {
                Ok(Held {
                    names: item.tags().to_vec(),
                    here: Reference::DockerArchive(DockerArchiveReference::new(
                        self.archive.path(),
                        Some(Which::At(place)),
                    )),
                    digest: self.make(item)?,
                })
            })
            .collect()
    }
}
