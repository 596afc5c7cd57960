//! Base images against the real thing: a `docker-registry` of our own on a loopback port, filled by `skopeo` and
//! `umoci`, and trees compared with what `umoci unpack --rootless` makes of the same image.
//!
//! | file         | what is shown                                                                     |
//! |--------------|-----------------------------------------------------------------------------------|
//! | pull.rs      | tags, digests, indexes, layouts; what a registry or a disk can get wrong           |
//! | files.rs    | archives of skopeo, podman and docker, folders; hostile and damaged ones          |
//! | travel.rs   | saved and loaded, listed and removed, while others pull                          |
//! | arriving.rs | layers unpacked while they and later ones still come, and what may happen then |
//! | protocol.rs  | tokens, retries, cut connections, redirects: a registry that misbehaves on purpose |
//! | proxies.rs   | `*_proxy` and `no_proxy` in the program's environment, and what the proxies are asked   |
//! | registries.rs | registries.conf, certs.d, logins and helpers: the program beside skopeo, same files   |
//! | hostile.rs   | layers that no honest tool writes: refused or right, nothing outside               |
//! | bounds.rs    | what must have an end: indexes, sizes that lie, bombs, a million files             |
//! | kill.rs      | SIGKILL while a layer comes and while it is unpacked; an ordinary user (user.rs)   |
//! | oci.rs       | the generator: archives and layouts written byte by byte                          |
//! | random.rs    | layers made by chance, unpacked as umoci does                                      |
//! | stargz.rs    | eStargz: gzip with a table of contents, beside umoci                               |
//! | unpack.rs    | the same tree as umoci, on a made image with every kind of entry and on a real one |

#![allow(clippy::unwrap_used)] // a test that cannot go on fails; clippy knows only #[test] functions as tests

mod arriving;
mod bounds;
mod files;
mod hostile;
mod kill;
mod oci;
#[path = "../common/prepared.rs"]
mod prepared;
mod protocol;
mod proxies;
mod pull;
mod random;
mod registries;
mod stargz;
mod support;
mod travel;
mod unpack;
mod user;
