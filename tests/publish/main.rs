//! Publishing against two real S3 servers, s3s-fs and moto, neither of which is enough alone: the first checks signatures and
//! digests, the second knows users, conditions on completions and unfinished uploads. What goes wrong on the way is made by a
//! proxy in these tests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod faults;
mod kill;
mod objects;
mod program;
mod proxy;
mod publishers;
mod registries;
#[path = "../common/registry.rs"]
mod registry;
mod servers;
mod signers;
mod world;
