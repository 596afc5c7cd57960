//! From a pulled image to a root file system that Spack can work in: `apply` unpacks layers, `prepare` installs
//! the build tools, `travel` carries the result to other sites as an image.

mod apply;
mod apt;
mod dnf;
#[cfg(fuzzing)]
pub mod fuzzing;
mod packages;
mod prepare;
mod remedy;
mod runner;
mod stream;
mod travel;
mod tree;

pub use crate::image::TarError;
pub use apply::{Limits, UnpackError, UnpackReport, unpack, unpack_owned};
pub use prepare::{Meta, PrepareError, Recipe, Rootfs, check_distribution, prepare, prepare_sandbox};
pub use travel::{adopt, as_image, restore};
