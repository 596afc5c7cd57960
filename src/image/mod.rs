//! Base images: from a name to checked blobs in the cache.
//!
//! ```text
//! "ubuntu:24.04" -> Reference -> ResolvedImage -> PulledImage -> (rootfs::unpack)
//!                   parse        resolve: digest   pull: manifest, config and layers in CACHE/blobs,
//!                                of the platform's  each with the right size and digest
//!                                manifest, remembered
//! ```
//!
//! An image is a manifest that lists one configuration and several layers; a layer is a compressed tar archive
//! that is unpacked over the layers below it. Everything is named by the digest of its content, so nothing that
//! a registry, a proxy or a disk damages is ever taken for the image.
//!
//! Formats: OCI image-spec 1.1, OCI distribution-spec 1.1, Docker image manifest V2 schema 2.
//!
//! Images also come from files and leave as files: [`load`] and [`save`], and the references `oci:`, `oci-archive:`,
//! `docker-archive:` and `dir:` (`local`). What is remembered, and so kept, is `memory`'s business.
//!
//! The public functions are synchronous; what is asynchronous runs on a runtime of their own.

mod archive;
mod arriving;
mod blobs;
mod client;
mod credentials;
mod digest;
mod docker_archive;
mod error;
mod folder;
#[cfg(fuzzing)]
pub mod fuzzing;
mod glance;
mod helper;
mod identity;
mod layout;
mod load;
mod local;
mod made;
mod manifest;
mod memory;
mod platform;
mod pull;
mod reach;
mod reference;
mod registries;
mod registry;
mod resolve;
pub(crate) mod retry;
mod save;
mod source;
pub(crate) mod tar;
mod tarball;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
pub(crate) mod testing;
mod tls;
mod token;

pub use arriving::{Arriving, LayerBlob, begin, pull};
pub use client::ClientConfig;
pub use credentials::{AuthFile, AuthFileError, Credentials, Login};
pub use digest::{BadDigest, Digest};
pub use error::ImageError;
pub use helper::HelperError;
pub use load::{Loaded, load};
pub use made::{Changes, Labels, make, make_onto};
pub use manifest::{Compression, Layer, OCI_MANIFEST};
pub use memory::{Collected, Memory, Stored, collect, list, name_again as remember, recall, stored};
pub use platform::Platform;
pub use pull::PulledImage;
pub use reach::{Reached, reach};
pub use reference::{BadReference, DockerArchiveReference, LayoutReference, Reference, RegistryReference, Which};
pub use registries::{Endpoint, Expanded, Registries, RegistriesError, Route, UnknownKeys, is_short_name};
pub use registry::{BlobBody, Content, Refused, Registry as Repository};
pub use resolve::{ResolveOptions, ResolvedImage, resolve};
pub use save::{Name, check_target, save};
pub use tar::TarError;
pub use tls::web_client;
