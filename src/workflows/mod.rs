//! Verbs that cross stages: what `cli` calls after it has parsed, beside the build itself (`pipeline`).

pub mod buildcache;
pub mod clean;
pub mod compiler;
pub mod compiler_package;
pub mod components;
pub mod finished;
pub mod images;
pub mod install;
pub mod package_image;
pub mod packing;
pub mod payload;
pub mod processor;
pub mod publish;
pub mod sandboxes;
pub mod verify;
