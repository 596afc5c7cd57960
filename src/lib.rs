//! Builds signed, truly relocatable Slurm packages with Spack, without root and without a daemon.
//!
//! Start reading at [`pipeline`]: the whole build from top to bottom. Around it:
//!
//! ```text
//! L4  main cli                                            flags, configuration files, exit codes
//! L3  pipeline workflows resolve                          what crosses stages
//! L2  image rootfs sandbox spack relocate package sign
//!     buildcache publish                                  the stages: typed values in, proof of work out
//! L1  catalog config oldest plan elf                      pure: no I/O, no clock, no chance
//! L0  cache fsutil gzip pax process report secret sha256 wait   leaves
//! ```
//!
//! A module uses only what is below it, and sideways only: rootfs uses image; rootfs and spack use sandbox;
//! package uses sign; buildcache uses sign and publish's store; publish uses image's client of registries. `tests/layers` reads every path in the sources and fails on any other edge. Stages read
//! no environment and no configuration file, and draw nothing: they report events.

pub mod buildcache;
pub mod cache;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod elf;
pub mod fsutil;
pub mod gzip;
pub mod image;
pub mod oldest;
pub mod package;
pub mod pax;
pub mod pipeline;
pub mod plan;
pub mod process;
pub mod publish;
pub mod relocate;
pub mod report;
pub mod resolve;
pub mod rootfs;
pub mod sandbox;
pub mod secret;
pub mod sha256;
pub mod sign;
pub mod spack;
pub mod wait;
pub mod workflows;
