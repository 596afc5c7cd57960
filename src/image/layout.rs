//! An OCI layout on disk: how images travel where no registry is.
//!
//! ```text
//! DIR/                     or a tar archive of it
//!   oci-layout             {"imageLayoutVersion": "1.0.0"}
//!   index.json             one entry an image; its tag is an annotation of the entry
//!   blobs/sha256/<hex>
//! ```
//!
//! Format: OCI image-spec `image-layout.md`. What is read is checked like what comes from a registry.

use super::archive::Archive;
use super::blobs::read_small;
use super::local::{Held, Local, show_archive};
use super::manifest::{self, Document, MAX_MANIFEST};
use super::reference::is_whole_name;
use super::{Digest, ImageError, LayoutReference, Platform, Reference};
use crate::report::Ctx;
use fs_err as fs;
use oci_spec::image::{Descriptor, ImageIndex, OciLayout};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The annotation that holds an entry's tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The annotation in which Docker and containerd keep an image's whole name; we do so too.
pub const IMAGE_NAME: &str = "io.containerd.image.name";

/// Where a layout's files are read from.
enum Files {
    Folder(PathBuf),
    Archive(Archive),
}

impl Files {
    /// A small file whole; `None` when it is not there.
    fn small(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        match self {
            Self::Folder(dir) => match read_small(&dir.join(name), MAX_MANIFEST) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(ImageError::Io(e)),
            },
            Self::Archive(archive) => archive.small(name, MAX_MANIFEST),
        }
    }

    /// A file to read from; `None` when it is not there.
    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, ImageError> {
        match self {
            Self::Folder(dir) => match fs::File::open(dir.join(name)) {
                Ok(file) => Ok(Some(Box::new(file))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(ImageError::Io(e)),
            },
            Self::Archive(archive) => {
                Ok(archive.member(name)?.map(|(section, _)| Box::new(section) as Box<dyn Read + Send>))
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(dir) => fs::metadata(dir.join(name)).is_ok(),
            Self::Archive(archive) => archive.has(name),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Folder(dir) => format!("the OCI layout `{}`", dir.display()),
            Self::Archive(archive) => show_archive(archive.path()),
        }
    }
}

/// A layout that was found to be one.
pub struct Layout {
    files: Files,
    wanted: LayoutReference,
    reference: String,
}

impl Layout {
    /// Checks that the folder is a layout.
    pub fn folder(wanted: &LayoutReference, name: &str) -> Result<Self, ImageError> {
        let path = wanted.path();
        let meta = fs::metadata(path).map_err(|e| ImageError::unopened(e, path, "an OCI layout", "folder"))?;
        let what = if meta.is_dir() { "file `oci-layout`" } else { "such folder" };
        Self::check(Files::Folder(path.to_owned()), wanted, name, what)
    }

    /// Opens an archive of a layout. `spool` is where a compressed one is decompressed to.
    pub fn archive(wanted: &LayoutReference, name: &str, spool: &Path, ctx: &Ctx) -> Result<Self, ImageError> {
        Self::read(Archive::open(wanted.path(), spool, ctx)?, wanted, name)
    }

    /// Checks that the archive is one of a layout.
    pub fn read(archive: Archive, wanted: &LayoutReference, name: &str) -> Result<Self, ImageError> {
        if archive.has("manifest.json") && !archive.has("oci-layout") {
            return Err(ImageError::Unusable {
                path: wanted.path().to_owned(),
                wanted: "an OCI archive",
                reason: format!("it is what `docker save` writes: name it docker-archive:{}", wanted.path().display()),
            });
        }
        Self::check(Files::Archive(archive), wanted, name, "file `oci-layout`")
    }

    fn check(files: Files, wanted: &LayoutReference, name: &str, what: &str) -> Result<Self, ImageError> {
        let layout = Self { files, wanted: wanted.clone(), reference: name.to_owned() };
        let Some(bytes) = layout.files.small("oci-layout")? else {
            return Err(layout.not_there(
                what.to_owned(),
                "an OCI layout is made by `skopeo copy ... oci:DIR:TAG` or `slurm-factory image save`".to_owned(),
            ));
        };
        let marker: OciLayout =
            serde_json::from_slice(&bytes).map_err(|e| layout.malformed("oci-layout", &e.to_string()))?;
        if !marker.image_layout_version().starts_with("1.") {
            return Err(
                layout.malformed("oci-layout", &format!("version {} is not 1.x", marker.image_layout_version()))
            );
        }
        Ok(layout)
    }

    fn index(&self) -> Result<Box<ImageIndex>, ImageError> {
        let Some(bytes) = self.files.small("index.json")? else {
            return Err(self.not_there("file `index.json`".to_owned(), "it is not whole: copy it again".to_owned()));
        };
        match manifest::parse(&bytes, &self.reference)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => Err(self.malformed("index.json", "it is no index")),
        }
    }

    /// A digest that index.json does not list may be that of one platform's manifest, inside an index.
    fn by_digest(&self) -> Result<Digest, ImageError> {
        match self.wanted.digest() {
            Some(digest) if self.files.has(&blob_name(digest)) => Ok(*digest),
            _ => Err(self.not_there("image with this digest".to_owned(), "no blob has it as its name".to_owned())),
        }
    }

    fn missing(&self, digest: &Digest) -> ImageError {
        self.not_there(format!("blob {digest}"), "it is not whole: copy it again".to_owned())
    }

    fn not_found(&self, index: &ImageIndex) -> ImageError {
        let tags: Vec<&str> = index.manifests().iter().filter_map(tag_of).collect();
        let available = if tags.is_empty() {
            format!("its {} images have no tags: name one by digest (...@sha256:...)", index.manifests().len())
        } else {
            format!("it has: {}", tags.join(", "))
        };
        let what = match (self.wanted.tag(), index.manifests().len()) {
            (Some(tag), _) => format!("image with the tag `{tag}`"),
            (None, 0) => "image".to_owned(),
            (None, _) => "single image to choose".to_owned(),
        };
        self.not_there(what, available)
    }

    fn not_there(&self, what: String, available: String) -> ImageError {
        ImageError::NotThere { place: self.files.show(), what, available }
    }

    fn malformed(&self, what: &str, reason: &str) -> ImageError {
        ImageError::Malformed { what: what.to_owned(), reference: self.reference.clone(), reason: reason.to_owned() }
    }
}

impl Local for Layout {
    fn find(&self, platform: Platform) -> Result<Digest, ImageError> {
        let reference = &self.wanted;
        let index = self.index()?;
        let wanted_digest = reference.digest().map(Digest::to_string);
        let found: Vec<&Descriptor> = index
            .manifests()
            .iter()
            .filter(|d| match reference.tag() {
                Some(tag) => tag_of(d) == Some(tag) || name_of(d) == Some(tag),
                // Without a tag any image will do, but an attestation is none.
                None => !manifest::is_attestation(d),
            })
            .filter(|d| wanted_digest.as_deref().is_none_or(|digest| d.digest().as_ref() == digest))
            .collect();
        match found.as_slice() {
            [only] => manifest::digest_of(only, "index.json", &self.reference),
            [] if wanted_digest.is_some() && reference.tag().is_none() => self.by_digest(),
            [] => Err(self.not_found(&index)),
            // One image under several tags.
            several if several.iter().all(|d| d.digest() == several[0].digest()) => {
                manifest::digest_of(several[0], "index.json", &self.reference)
            }
            // The same tag for several platforms, or several images and no tag.
            several if several.iter().all(|d| d.platform().is_some() && tag_of(d) == tag_of(several[0])) => {
                let mut same = index.clone();
                same.set_manifests(several.iter().map(|d| (*d).clone()).collect());
                let chosen = manifest::choose(&same, platform, &self.reference)?;
                manifest::digest_of(&chosen, "index.json", &self.reference)
            }
            _ => Err(self.not_found(&index)),
        }
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        self.files.small(&blob_name(digest))?.ok_or_else(|| self.missing(digest))
    }

    fn blob(&self, digest: &Digest, _size: u64) -> Result<Box<dyn Read + Send>, ImageError> {
        self.files.open(&blob_name(digest))?.ok_or_else(|| self.missing(digest))
    }

    fn place(&self, digest: &Digest) -> String {
        match &self.files {
            Files::Folder(dir) => format!("`{}`", dir.join(blob_name(digest)).display()),
            Files::Archive(archive) => format!("`{}` in {}", blob_name(digest), show_archive(archive.path())),
        }
    }

    fn images(&self) -> Result<Vec<Held>, ImageError> {
        let index = self.index()?;
        let mut held: Vec<Held> = Vec::new();
        for entry in index.manifests().iter().filter(|d| !manifest::is_attestation(d)) {
            let digest = manifest::digest_of(entry, "index.json", &self.reference)?;
            let here = match tag_of(entry) {
                Some(tag) => LayoutReference::new(self.wanted.path(), Some(tag), None),
                None => LayoutReference::new(self.wanted.path(), None, Some(digest)),
            };
            held.push(Held {
                // podman writes the whole name where others write the tag.
                names: name_of(entry)
                    .or_else(|| tag_of(entry).filter(|tag| is_whole_name(tag)))
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
                here: match &self.files {
                    Files::Folder(_) => Reference::Layout(here),
                    Files::Archive(_) => Reference::OciArchive(here),
                },
                digest,
            });
        }
        Ok(held)
    }
}

/// Where a blob lies in a layout.
pub fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Some tools write the whole name (`docker.io/library/ubuntu:24.04`) into the annotation; it is matched as it is.
fn tag_of(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations().as_ref()?.get(REF_NAME).map(String::as_str)
}

fn name_of(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations().as_ref()?.get(IMAGE_NAME).map(String::as_str)
}
