//! The prepare stage, tried for real: dnf, apt and pip in the sandbox, as a user without subordinate ids, with packages from
//! a site that has a CA of its own and is reached through a proxy.
//!
//! | file | what is shown |
//! |---|---|
//! | `dnf.rs` | packages whose scriptlets need a root; mirrors, repositories of a site, signatures |
//! | `apt.rs` | the archive as it was at a time |
//! | `pip.rs` | pinned wheels from a site's index |
//! | `proxy.rs` | a proxy that wants a login, and where its password is not |
//! | `world.rs` | the helpers: image and site (made by `make-site.sh`), servers, a user made for the test |
//!
//! A program of its own, not run by libtest: it starts itself again as the sandbox's helper, and as the user. It is started
//! by root. Words on the command line select tests by name.

// A test program: a panic is how a test fails, and it starts programs of the host itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod apt;
mod dnf;
mod pip;
mod proxy;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

type Test = (&'static str, fn(&World));

fn main() {
    slurm_factory::sandbox::init_if_helper();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let Some(world) = World::of_user() else {
        std::process::exit(if world::as_user(&arguments) { 0 } else { 101 });
    };
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let tests: Vec<Test> = [dnf::TESTS, apt::TESTS, pip::TESTS, proxy::TESTS].concat();
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let start = std::time::Instant::now();
        if catch_unwind(AssertUnwindSafe(|| test(&world))).is_ok() {
            passed += 1;
            println!("test {name} ... ok ({:.0?})", start.elapsed());
        } else {
            println!("test {name} ... FAILED");
            failed.push(name);
        }
    }
    println!("prepare: {passed} passed; {} failed {failed:?}", failed.len());
    if !failed.is_empty() || passed == 0 {
        std::process::exit(101);
    }
}
