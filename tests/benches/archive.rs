//! The package's archive: written, hashed and signed, against `tar` with a compressor of the same level and nothing else.
//!
//! `BENCH_TREE` names the tree; else it is this system's `/usr/lib`. The peers'
//! archive is neither hashed nor signed. Ours is also written without a signature, by a stream of its own: what signing adds.

use super::{best, command, measure, row, text};
use slurm_factory::cache::Cache;
use slurm_factory::package::{Compression, Content, Facts, Package, PackageName, Request};
use slurm_factory::report::Ctx;
use slurm_factory::secret::Secret;
use slurm_factory::sign::{Algorithm, SigningKey, generate, sign_reader};
use std::path::Path;

const ROUNDS: usize = 3;

/// One archive of `tree` into the folder `to`, in this process.
pub fn ours(tree: &Path, to: &Path, method: &str) {
    let cache = Cache::open(&to.join("cache")).unwrap();
    let name = PackageName { version: "24.11".into(), compiler: "13.4.0".into() };
    let contents = vec![Content::Tree { root: tree.to_owned(), name: "view".into() }];
    let key = key();
    let compression = if method == "zstd" { Compression::ZSTD } else { Compression::GZIP };
    let facts = Facts::default();
    let request = Request { dir: to, name: &name, contents, facts, compression, threads: 0, key: &key };
    Package::create(&cache, request, &Ctx::silent()).unwrap();
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    println!("{}", usage.max_rss());
}

fn key() -> SigningKey {
    let made = generate("Bench", "", None, Algorithm::Ed25519).unwrap();
    SigningKey::from_bytes("the bench", &Secret::new(made.secret.expose().clone()), None).unwrap()
}

/// A signature of a file, in this process.
pub fn signature(file: &Path) {
    sign_reader(&key(), std::fs::File::open(file).unwrap()).unwrap();
}

fn size(folder: &Path, end: &str) -> u64 {
    let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    files.filter(|e| e.file_name().to_str().unwrap().ends_with(end)).map(|e| e.metadata().unwrap().len()).sum()
}

/// Measures in `work`.
pub fn compare(work: &Path) {
    let from = std::env::var("BENCH_TREE").unwrap_or_else(|_| "/usr/lib".into());
    // A copy without symlinks: those that lead out of a tree have no place in a package.
    let tree = text(&work.join("tree"));
    command(&["cp", "-a", &from, &tree]);
    command(&["find", &tree, "-type", "l", "-delete"]);
    let this = text(&std::env::current_exe().unwrap());
    for (method, end, compressor) in
        [("gzip", ".tar.gz", "pigz -6".to_owned()), ("zstd", ".tar.zst", "zstd -q -T0 -3".to_owned())]
    {
        let fresh = |name: &str, n: usize| {
            let folder = work.join(format!("{method}-{name}-{n}"));
            std::fs::create_dir(&folder).unwrap();
            folder
        };
        // In turns, so that both see the same machine.
        let (mut mine, mut theirs, mut memory) = (Vec::new(), Vec::new(), 0);
        for n in 0..ROUNDS {
            let (to, other) = (fresh("ours", n), fresh("peer", n));
            mine.push(measure(|| {
                let said = command(&[&this, "--ours-archive", &tree, &text(&to), method]);
                memory = memory.max(said.trim().parse::<u64>().unwrap());
            }));
            let pipe = format!("tar -C '{tree}' --sort=name -cf - . | {compressor} >'{}/peer{end}'", other.display());
            theirs.push(measure(|| drop(command(&["sh", "-c", &pipe]))));
        }
        row(&format!("package, {method}"), super::together(mine), &compressor, super::together(theirs));
        let (a, b) =
            (size(&work.join(format!("{method}-ours-0")), end), size(&work.join(format!("{method}-peer-0")), end));
        #[allow(clippy::cast_precision_loss)] // a ratio
        let ratio = a as f64 / b as f64;
        println!("  size {a} against {b} bytes: {ratio:.3}; memory {} MB", memory / 1024);
    }
    // What is done for the signature beside the sum that is made anyway: one more digest of the compressed bytes.
    let archive = std::fs::read_dir(work.join("gzip-ours-0")).unwrap().map(Result::unwrap);
    let archive = archive.map(|e| e.path()).find(|p| p.to_str().unwrap().ends_with(".tar.gz")).unwrap();
    let signing = best(ROUNDS, |_| measure(|| drop(command(&[&this, "--ours-signature", &text(&archive)]))));
    println!(
        "  a signature of that archive as a pass of its own: {:.3} s of processor time",
        signing.cpu.as_secs_f64()
    );
}
