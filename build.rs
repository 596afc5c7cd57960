//! Says how the program is linked: at a fixed address, because every start of a program of this size otherwise begins with
//! 72,000 addresses that are written into 250 pages. A quarter of the time of `slurm-factory shell -- /bin/true` goes there, and
//! its goal cannot be had with it; `docs/decisions/0008-start.md` has the figures and what is given up.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // As the GNU tools' option says it; other C libraries are linked statically, and by other rules.
    let is = |what: &str, value: &str| env::var(what).is_ok_and(|found| found == value);
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
