//! ELF editing against the real tools: programs are built with gcc and odd flags, edited, and run again.
//!
//! - `linkers`: every linker and flag that lays a file out differently; each edit is run, stripped and run again
//! - `headers`: program headers that are not where linkers put them
//! - `corpus`: the shared libraries and programs of this host
//! - `machines`: small files of other machines, both classes and byte orders
//! - `malformed`: truncated and flipped bytes: errors, never panics
//! - `names`: libraries that are named by a path
//! - `tools`: how the tests call outside programs. A tool that is missing fails the test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failing test should say where; tests run tools and write files of their own"
)]

mod corpus;
mod headers;
mod hostile;
mod linkers;
mod machines;
mod malformed;
mod names;
mod tools;
