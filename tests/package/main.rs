//! Packages and signatures against the programs that users have: gpg, sha256sum, GNU tar, gzip, zstd, Python, Lmod.
//!
//! | module | what |
//! |---|---|
//! | [`keys`] | keys that gpg made are used, keys that we made are used by gpg; what is wrong with a key is said |
//! | [`archive`] | the same tree gives the same bytes; every reader reads them; nothing half-made is left |
//! | [`modules`] | the modulefile under Lmod: found everywhere, sets what it says, takes it back |
//! | [`foreign`] | archives that somebody else made are looked into |
//! | [`hostile`] | archives made to harm are refused, and nothing is written outside |
//! | [`relocated`] | trees of others, moved from one prefix to another |
//! | [`kinds`] | every kind of file that names a prefix, with its outcome |
//! | [`install`] | atomic, repeatable, careful with what is not ours |
//!
//! A missing program is a failure that names its Debian package, never a test that passes.

// A test may panic, and starts real programs itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, clippy::unnecessary_debug_formatting)]

mod archive;
mod attest;
mod foreign;
mod hostile;
mod image;
mod install;
mod keys;
mod kinds;
mod modules;
mod relocated;
mod util;
mod verifiers;
