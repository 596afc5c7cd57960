//! An OCI layout on disk: how images travel where no registry is.
//!
//! ```text
//! DIR/
//!   oci-layout             {"imageLayoutVersion": "1.0.0"}
//!   index.json             one entry an image; its tag is an annotation of the entry
//!   blobs/sha256/<hex>
//! ```
//!
//! Format: OCI image-spec `image-layout.md`. What is read is checked like what comes from a registry.

use super::blobs::read_small;
use super::manifest::{self, Document, MAX_MANIFEST};
use super::{Digest, ImageError, LayoutReference, Platform};
use fs_err as fs;
use oci_spec::image::{Descriptor, ImageIndex, OciLayout};
use std::io;
use std::path::PathBuf;

/// The annotation that holds an entry's tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A layout that was found to be one.
pub struct Layout {
    dir: PathBuf,
    wanted: LayoutReference,
    reference: String,
}

impl Layout {
    /// Checks that the folder is a layout.
    pub fn open(reference: &LayoutReference, full_name: &str) -> Result<Self, ImageError> {
        let dir = reference.dir();
        let layout = Self { dir: dir.to_owned(), wanted: reference.clone(), reference: full_name.to_owned() };
        let marker = dir.join("oci-layout");
        let bytes = match read_small(&marker, MAX_MANIFEST) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let what =
                    if fs::metadata(dir).is_ok_and(|m| m.is_dir()) { "file `oci-layout`" } else { "such folder" };
                return Err(ImageError::NotInLayout {
                    dir: dir.to_owned(),
                    what: what.to_owned(),
                    available:
                        "an OCI layout is a folder made by `skopeo copy ... oci:DIR:TAG` or `slurm-factory image save`"
                            .to_owned(),
                });
            }
            Err(e) => return Err(ImageError::Io(e)),
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

    /// The digest of what the reference names: a manifest or an index of platforms.
    pub fn find(&self, platform: Platform) -> Result<Digest, ImageError> {
        let reference = &self.wanted;
        let bytes = read_small(&self.dir.join("index.json"), MAX_MANIFEST).map_err(ImageError::Io)?;
        let Document::Index(index) = manifest::parse(&bytes, &self.reference)? else {
            return Err(self.malformed("index.json", "it is no index"));
        };
        let wanted_digest = reference.digest().map(Digest::to_string);
        let found: Vec<&Descriptor> = index
            .manifests()
            .iter()
            .filter(|d| reference.tag().is_none_or(|tag| tag_of(d) == Some(tag)))
            .filter(|d| wanted_digest.as_deref().is_none_or(|digest| d.digest().as_ref() == digest))
            .collect();
        match found.as_slice() {
            [only] => manifest::digest_of(only, "index.json", &self.reference),
            [] if wanted_digest.is_some() && reference.tag().is_none() => self.by_digest(),
            [] => Err(self.not_found(&index)),
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

    /// A digest that index.json does not list may be that of one platform's manifest, inside an index.
    fn by_digest(&self) -> Result<Digest, ImageError> {
        match self.wanted.digest() {
            Some(digest) if fs::metadata(self.blob_path(digest)).is_ok() => Ok(*digest),
            _ => Err(ImageError::NotInLayout {
                dir: self.dir.clone(),
                what: "image with this digest".to_owned(),
                available: "no blob has it as its name".to_owned(),
            }),
        }
    }

    /// The whole bytes of a manifest or an index, not yet checked.
    pub fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        read_small(&self.blob_path(digest), MAX_MANIFEST).map_err(|e| self.missing(digest, e))
    }

    /// A blob to copy from, not yet checked.
    pub fn blob(&self, digest: &Digest) -> Result<fs::File, ImageError> {
        fs::File::open(self.blob_path(digest)).map_err(|e| self.missing(digest, e))
    }

    /// Where a blob is.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn missing(&self, digest: &Digest, error: io::Error) -> ImageError {
        if error.kind() == io::ErrorKind::NotFound {
            return ImageError::NotInLayout {
                dir: self.dir.clone(),
                what: format!("blob {digest}"),
                available: "the layout is not whole: copy it again".to_owned(),
            };
        }
        ImageError::Io(error)
    }

    fn not_found(&self, index: &ImageIndex) -> ImageError {
        let tags: Vec<&str> = index.manifests().iter().filter_map(tag_of).collect();
        let available = if tags.is_empty() {
            format!("its {} images have no tags: name one by digest (oci:DIR@sha256:...)", index.manifests().len())
        } else {
            format!("it has: {}", tags.join(", "))
        };
        let what = match (self.wanted.tag(), index.manifests().len()) {
            (Some(tag), _) => format!("image with the tag `{tag}`"),
            (None, 0) => "image".to_owned(),
            (None, _) => "single image to choose".to_owned(),
        };
        ImageError::NotInLayout { dir: self.dir.clone(), what, available }
    }

    fn malformed(&self, what: &str, reason: &str) -> ImageError {
        ImageError::Malformed { what: what.to_owned(), reference: self.reference.clone(), reason: reason.to_owned() }
    }
}

/// Some tools write the whole name (`docker.io/library/ubuntu:24.04`) into the annotation; it is matched as it is.
fn tag_of(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations().as_ref()?.get(REF_NAME).map(String::as_str)
}
