//! How the program is linked: at a fixed address on Linux with glibc.
//!
//! A position-independent program of this size has 40,000 addresses to be written into 160 pages at each start, which is
//! half of what starting it takes (0.45 of 1.3 ms; `shell` is measured against bwrap, docs/testing.md). Libraries, heap and
//! stack stay at random addresses. Other C libraries link their start files by whether it is position-independent, and
//! are left alone.

fn main() {
    println!("cargo:rerun-if-changed=.cargo/link.rs");
    let of_target = |name: &str| std::env::var(name).unwrap_or_default();
    if of_target("CARGO_CFG_TARGET_OS") == "linux" && of_target("CARGO_CFG_TARGET_ENV") == "gnu" {
        println!("cargo:rustc-link-arg-bin=slurm-factory=-no-pie");
    }
}
