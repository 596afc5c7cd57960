//! The sandbox, tried for real: as an ordinary user without subordinate ids, and as root (as in a CI container).
//!
//! | file | what is shown |
//! |---|---|
//! | `inside.rs` | who one is inside, what is seen, what can be written, what root's calls do |
//! | `escape.rs` | a program in C tries to get out, and to do what is refused; what builds do is not in its way |
//! | `ending.rs` | exit codes, signals, and that nothing survives |
//! | `shell.rs` | the program's own `shell`, with and without a terminal, and what it remembers of the host |
//! | `hostile.rs` | images that try to lead out, and errors that say what to do |
//! | `limits.rs` | processors, memory, disk, nice: that they hold, and what is said when they are reached |
//! | `hosts.rs` | hosts that allow less: no namespaces, a container, a filter, a chroot, limits |
//! | `matrix.rs` | the program itself on such hosts: it builds, or exits with 3, and `doctor --json` names the cause |
//! | `layers.rs` | a rootfs that can be written and stays as it was |
//! | `podman.rs` | the other backend |
//! | `ranges.rs` | files that belong to whom the image says, by subordinate ids |
//! | `world.rs` | the helpers: a rootfs of the host's own programs, a user made for the test |
//!
//! This is a program of its own, not run by libtest: it starts itself again as the sandbox's helper, as the
//! "program" that is killed, and, when run by root, as a user made for it. What is missing is a failure that
//! names the package. Words on the command line select tests by name.

// A test program: a panic is how a test fails, and it starts programs of the host itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, clippy::unused_self)]
#![allow(clippy::items_after_statements)]

mod ending;
mod escape;
mod hostile;
mod hosts;
mod inside;
mod layers;
mod limits;
mod matrix;
mod podman;
mod ranges;
mod shell;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

type Part = fn(&[String]) -> i32;
type Test = (&'static str, fn(&World));

fn main() {
    slurm_factory::sandbox::init_if_helper();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parts: [(&str, Part); 4] = [
        (world::PROGRAM, world::program),
        (world::DOCTOR, world::doctor),
        (world::REFUSING, world::refusing),
        (ranges::OWNER, ranges::owner),
    ];
    if let Some((_, play)) = parts.iter().find(|(name, _)| arguments.first().is_some_and(|first| first == name)) {
        std::process::exit(play(&arguments[1..]));
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let world = World::new();
    let tests: Vec<Test> = [
        inside::TESTS,
        escape::TESTS,
        ending::TESTS,
        shell::TESTS,
        hostile::TESTS,
        limits::TESTS,
        hosts::TESTS,
        matrix::TESTS,
        podman::TESTS,
        ranges::TESTS,
        layers::TESTS,
    ]
    .concat();
    let mut failed = Vec::new();
    let mut passed = 0;
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let start = std::time::Instant::now();
        if catch_unwind(AssertUnwindSafe(|| test(&world))).is_ok() {
            passed += 1;
            println!("test {} as {} ... ok ({:.0?})", name, world.who, start.elapsed());
        } else {
            println!("test {} as {} ... FAILED", name, world.who);
            failed.push(name);
        }
    }
    println!("sandbox as {}: {passed} passed; {} failed {failed:?}", world.who, failed.len());
    let user = world.again_as_user(&arguments);
    drop(world);
    if !failed.is_empty() || !user {
        std::process::exit(101);
    }
}
