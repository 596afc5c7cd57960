//! Images written byte by byte: tar archives as no honest tool writes them, in OCI layouts that say what they are told to.

#[path = "../../src/image/testing.rs"]
mod testing;

use crate::support::architecture;
use fs_err as fs;
use serde_json::{Value, json};
use slurm_factory::image::Digest;
use std::io::Write;
use std::path::Path;
pub use testing::{Member, archive, finish_header};

pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    Plain,
    Gzip,
    Zstd,
}

pub const PACKS: [Pack; 3] = [Pack::Plain, Pack::Gzip, Pack::Zstd];

impl Pack {
    pub fn pack(self, content: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => content.to_vec(),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zstd => zstd::encode_all(content, 1).unwrap(),
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layer: its blob, and what the manifest and the configuration say of it.
pub struct Blob {
    pub pack: Pack,
    pub bytes: Vec<u8>,
    pub digest: Digest,
    pub size: u64,
    pub diff_id: Digest,
}

impl Blob {
    /// An honest one.
    pub fn new(pack: Pack, content: &[u8]) -> Self {
        Self::packed(pack, pack.pack(content), content)
    }

    /// One that was packed elsewhere.
    pub fn packed(pack: Pack, bytes: Vec<u8>, content: &[u8]) -> Self {
        Self { pack, digest: Digest::of(&bytes), size: bytes.len() as u64, diff_id: Digest::of(content), bytes }
    }
}

/// An OCI layout in a folder.
pub struct Layout<'a>(&'a Path);

impl<'a> Layout<'a> {
    pub fn new(dir: &'a Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self(dir)
    }

    /// Stores a blob, under a name that need not be its digest.
    pub fn store(&self, name: &Digest, bytes: &[u8]) {
        fs::write(self.0.join("blobs/sha256").join(name.hex()), bytes).unwrap();
    }

    /// Stores a document and describes it.
    pub fn document(&self, media_type: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        self.store(&digest, &bytes);
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Stores an image of these layers and returns its manifest's descriptor.
    pub fn image(&self, layers: &[Blob]) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        let config = json!({"architecture": architecture(), "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.document("application/vnd.oci.image.config.v1+json", &config);
        let mut described = Vec::new();
        for layer in layers {
            self.store(&layer.digest, &layer.bytes);
            described.push(json!({"mediaType": layer.pack.media_type(), "digest": layer.digest, "size": layer.size}));
        }
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": described});
        self.document(MANIFEST, &manifest)
    }

    /// Makes the descriptor the layout's only entry and returns the reference.
    pub fn tag(&self, mut descriptor: Value) -> String {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": "t"});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]});
        fs::write(self.0.join("index.json"), index.to_string()).unwrap();
        format!("oci:{}:t", self.0.display())
    }
}

/// A layout of one image, as a reference.
pub fn image(dir: &Path, layers: &[Blob]) -> String {
    let layout = Layout::new(dir);
    layout.tag(layout.image(layers))
}
