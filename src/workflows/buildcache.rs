//! What the `buildcache` verbs and the build share: which install tree is meant, and pushing of it.

use crate::buildcache::{self, BuildcacheError, Pushed, Selection, Tree};
use crate::cache::Cache;
use crate::plan::inside;
use crate::publish::Store;
use crate::report::{Ctx, Stage};
use crate::sandbox::Spec;
use crate::sign::{KeyStore, Keyring, SignError, SigningKey};
use crate::spack::LAST_BUILD;
use fs_err as fs;
use std::path::{Path, PathBuf};

/// The cache's own binary cache, which every build fills and later ones take from.
pub fn own_dir(cache: &Cache) -> PathBuf {
    cache.dir("buildcache")
}

/// The keys whose packages are believed: those of the cache and the one that signs now.
pub fn keyring(cache: &Cache, key: &SigningKey) -> Result<Keyring, SignError> {
    let mut keyring = KeyStore::new(cache).keyring()?;
    keyring.add_key(key);
    Ok(keyring)
}

/// The install tree that `from` means: a tree, a slot, or a build folder with one slot; without it, that of the last build.
pub fn tree(cache: &Cache, from: Option<&Path>) -> Result<Tree, BuildcacheError> {
    let refuse = |path: &Path, reason: String| BuildcacheError::NotATree { path: path.to_owned(), reason };
    let Some(from) = from else {
        let record = cache.dir(LAST_BUILD);
        let spec = fs::read(&record).ok().and_then(|bytes| serde_json::from_slice::<Spec>(&bytes).ok());
        let slot = spec.and_then(|s| s.mounts.into_iter().find(|m| m.target == Path::new(inside::ROOT)));
        let slot = slot.ok_or_else(|| refuse(&record, "no last build is known in this cache; name one with --from".into()))?;
        return Tree::open(&slot.source.join("store"));
    };
    let is_tree = |path: &Path| path.join(".spack-db/index.json").is_file();
    let at = [from.to_owned(), from.join("store")].into_iter().find(|path| is_tree(path));
    if let Some(at) = at {
        return Tree::open(&at);
    }
    let mut slots = Vec::new();
    for entry in fs::read_dir(from)? {
        let store = entry?.path().join("store");
        if is_tree(&store) {
            slots.push(store);
        }
    }
    match slots.as_slice() {
        [one] => Tree::open(one),
        [] => Err(refuse(from, "it has no `.spack-db/index.json`".into())),
        several => {
            let names: Vec<_> = several.iter().map(|p| p.display().to_string()).collect();
            Err(refuse(from, format!("it holds several: {}", names.join(", "))))
        }
    }
}

/// How a push is done.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// Threads that compress; 0 means all.
    pub threads: usize,
    /// Push again what is there.
    pub force: bool,
    /// Only say what would be pushed.
    pub dry_run: bool,
}

/// Pushes what is chosen of a tree.
pub fn push(
    store: &dyn Store,
    tree: &Tree,
    selection: &Selection,
    key: &SigningKey,
    cache: &Cache,
    how: How,
    ctx: &Ctx,
) -> Result<Pushed, PushError> {
    let timer = ctx.stage(Stage::Publish, format!("packages to {}", store.address()));
    let packages = tree.select(selection)?;
    let scratch = cache.staging(&cache.dir("tmp"))?;
    let keyring = keyring(cache, key).map_err(BuildcacheError::from)?;
    let request = buildcache::Request {
        tree,
        packages,
        spack: inside::SPACK,
        key,
        keyring: &keyring,
        scratch: scratch.path(),
        threads: how.threads,
        force: how.force,
        dry_run: how.dry_run,
    };
    let pushed = buildcache::push(store, &request, ctx)?;
    let bytes: u64 = pushed.pushed.iter().map(|p| p.size).sum();
    for foreign in &pushed.foreign {
        ctx.warn(format!("{} is there and was left alone: {} (--force replaces it)", foreign.name, foreign.reason));
    }
    let detail = match (pushed.pushed.len(), how.dry_run) {
        (0, _) => format!("all {} packages were there", pushed.there + pushed.foreign.len()),
        (n, true) => format!("{n} packages would be pushed, {} are there", pushed.there),
        (n, false) => {
            format!("{n} packages pushed, {}; {} were there", humansize::format_size(bytes, humansize::BINARY), pushed.there)
        }
    };
    if pushed.pushed.is_empty() { timer.cached(detail) } else { timer.done(detail) }
    Ok(pushed)
}

/// Why a push did not end well.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // what each part says, documented there
pub enum PushError {
    #[error(transparent)]
    Buildcache(#[from] BuildcacheError),
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
}
