//! What the tests share: a package, stores, and what must be true of a place at any time.

pub use crate::servers::{address, options, store};
use sha2::{Digest, Sha256};
use slurm_factory::cache::Cache;
use slurm_factory::package::manifest::Version;
use slurm_factory::package::{Compression, Content, Facts, Package, PackageName, Request};
use slurm_factory::publish::{Key, Source, Store};
use slurm_factory::report::Ctx;
use slurm_factory::sign::{Algorithm, Keyring, SigningKey, generate};
use slurm_factory::workflows::publish;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

pub fn signing_key() -> &'static SigningKey {
    static KEY: LazyLock<SigningKey> = LazyLock::new(|| {
        let made = generate("Test", "test@example.org", None, Algorithm::Ed25519).unwrap();
        SigningKey::from_bytes("the test key", &made.secret, None).unwrap()
    });
    &KEY
}

pub fn keyring() -> Keyring {
    let mut keyring = Keyring::new();
    keyring.add_key(signing_key());
    keyring
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A signed package of about this size, in `dir`.
pub fn package(dir: &Path, version: &str, seed: u64, size: usize) -> PathBuf {
    let cache = Cache::open(&dir.join(".cache")).unwrap();
    let name = PackageName { version: version.to_owned(), compiler: "13.3.0".into() };
    let facts = Facts {
        slurm: Some(Version { requested: version.to_owned(), release: format!("{version}.1") }),
        compiler: Version { requested: "system".into(), release: "13.3.0".into() },
        toolchain: "noble".into(),
        target: "x86_64".into(),
        plan_sha256: "4".repeat(64),
        ..Facts::default()
    };
    let contents = vec![Content::Bytes { name: "view/lib/noise".into(), bytes: noise(seed, size), executable: false }];
    let request =
        Request { dir, name: &name, contents, facts, compression: Compression::ZSTD, threads: 1, key: signing_key() };
    Package::create(&cache, request, &Ctx::silent()).unwrap().0.path().to_owned()
}

pub fn source(path: &Path) -> Source {
    let bytes = std::fs::read(path).unwrap();
    Source { path: path.to_owned(), size: bytes.len() as u64, sha256: hex::encode(Sha256::digest(&bytes)) }
}

/// Publishes as the program does.
pub fn publish_to(store: &dyn Store, package: &Path) -> Result<(), publish::PublishError> {
    let ctx = Ctx::silent();
    store.check(&ctx)?;
    let options = publish::Options::default();
    let outgoing = publish::look(package, &keyring(), store, options, &ctx)?;
    publish::send(&outgoing, store, options, &ctx)
}

/// What must be true at any time: whatever is there under a name of the package is whole, and what the index names is there with
/// everything beside it. Returns the paths that the index names.
pub fn assert_sound(store: &dyn Store, packages: &[&Path]) -> Vec<String> {
    let ctx = Ctx::silent();
    let there: Vec<String> = store.list("", &ctx).unwrap().iter().map(|e| e.key.to_string()).collect();
    for key in &there {
        let name = key.rsplit('/').next().unwrap();
        let Some(local) = packages.iter().map(|p| p.parent().unwrap().join(name)).find(|p| p.is_file()) else {
            let derived = ["index.json", "index.html"].contains(&key.as_str()) || key.starts_with("keys/");
            assert!(derived, "{key} is something else");
            continue;
        };
        let mut bytes = Vec::new();
        store.download(&Key::new(key.as_str()).unwrap(), &mut bytes, &ctx).unwrap().unwrap();
        assert!(bytes == std::fs::read(&local).unwrap(), "{key} is not what was sent: {} bytes", bytes.len());
    }
    let index = publish::list(store, &ctx).unwrap();
    let mut named = Vec::new();
    for entry in index.packages {
        for suffix in ["", ".manifest.json", ".sha256", ".asc"] {
            let key = format!("{}{suffix}", entry.path);
            assert!(there.contains(&key), "the index names {key}, which is not there");
        }
        let key = Key::new(format!("keys/{}.asc", entry.signed_by)).unwrap();
        assert!(store.size(&key, &ctx).unwrap().is_some(), "the index names a signer whose key is not there");
        named.push(entry.path);
    }
    named
}
