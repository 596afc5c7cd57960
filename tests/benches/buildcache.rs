//! Binary caches: a push of Slurm and all that it needs, signed, to a folder, against `spack buildcache push` of the same tree.
//!
//! `BENCH_SPACK` names a program that is a Spack in whose store a Slurm is installed: `tests/buildcache/spack.sh
//! PROGRAM WORK` leaves some (`WORK/slurm-v1.0.0/run`). Both sides sign, and write blobs, manifests, keys and index.

use super::{best, command, measure, row, text};
use std::path::Path;

const ROUNDS: usize = 3;

/// Measures in `work`.
pub fn compare(work: &Path) {
    let Ok(spack) = std::env::var("BENCH_SPACK") else {
        eprintln!("buildcache: NOT RUN: set BENCH_SPACK to a Spack that has a Slurm in its store");
        return;
    };
    let prefix = command(&[&spack, "location", "-i", "slurm"]);
    let store = text(Path::new(prefix.trim()).parent().unwrap());
    // With two keys Spack asks which.
    if !command(&[&spack, "gpg", "list", "--signing"]).contains("bench@example.org") {
        command(&[&spack, "gpg", "create", "Bench", "bench@example.org"]);
    }
    let (program, cache) = (env!("CARGO_BIN_EXE_slurm-factory"), text(&work.join("cache")));
    let ours = |to: &str| {
        command(&[
            program,
            "--quiet",
            "--cache-dir",
            &cache,
            "buildcache",
            "push",
            "slurm",
            "--from",
            &store,
            "--to",
            to,
        ])
    };
    let fresh = |name: String| text(&work.join(name));
    let first = best(ROUNDS, |n| measure(|| drop(ours(&fresh(format!("ours-{n}"))))));
    let again = best(ROUNDS, |n| measure(|| drop(ours(&fresh(format!("ours-{n}"))))));
    let theirs = |n| {
        let to = fresh(format!("theirs-{n}"));
        command(&[&spack, "buildcache", "push", "--without-build-dependencies", "--update-index", &to, "slurm"])
    };
    let peer = best(ROUNDS, |n| measure(|| drop(theirs(n))));
    let peer_again = best(ROUNDS, |n| measure(|| drop(theirs(n))));
    row("buildcache push", first, "spack", peer);
    row("nothing new", again, "spack", peer_again);
    let size = |name: &str| -> u64 {
        let files = walkdir::WalkDir::new(work.join(name)).into_iter().map(Result::unwrap);
        files.filter(|e| e.file_type().is_file()).map(|e| e.metadata().unwrap().len()).sum()
    };
    let (mine, other) = (size("ours-0"), size("theirs-0"));
    #[allow(clippy::cast_precision_loss)] // a ratio
    let ratio = mine as f64 / other as f64;
    println!("size                   ours: {mine} bytes | spack: {other} bytes | ratio {ratio:.3}");
}
