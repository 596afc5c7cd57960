//! What the `buildcache` verbs and the build share: which install tree is meant, and pushing of it.

use crate::buildcache::check::{Fault, Kind};
use crate::buildcache::{self, Again, BuildcacheError, Pushed, Selection, Tree, Wanted};
use crate::cache::Cache;
use crate::plan::inside;
use crate::publish::{self, FolderStore, Store, StoreError};
use crate::report::{Ctx, Interrupted, Stage};
use crate::resolve::BinaryMirrors;
use crate::sandbox::Spec;
use crate::sign::{KeyStore, Keyring, SignError, SigningKey};
use crate::spack::{self, Binaries, Installed, LAST_BUILD, LockedPackage};
use fs_err as fs;
use std::collections::BTreeMap;
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
        let slot =
            slot.ok_or_else(|| refuse(&record, "no last build is known in this cache; name one with --from".into()))?;
        return Tree::open(&spack::install_tree(&slot.source));
    };
    if let Some(at) = [from.to_owned(), from.join("store")].iter().find_map(|path| Tree::find(path)) {
        return Tree::open(&at);
    }
    let mut slots = Vec::new();
    for entry in fs::read_dir(from).map_err(|e| refuse(from, e.to_string()))? {
        slots.extend(Tree::find(&entry?.path().join("store")));
    }
    match slots.as_slice() {
        [one] => Tree::open(one),
        [] => Err(refuse(from, format!("it has no `{}`", buildcache::DATABASE))),
        several => {
            let names: Vec<_> = several.iter().map(|p| p.display().to_string()).collect();
            Err(refuse(from, format!("it holds several: {}", names.join(", "))))
        }
    }
}

/// How a push is done.
#[derive(Debug, Clone, Default)]
pub struct How {
    /// Threads that compress; 0 means all.
    pub threads: usize,
    /// What is pushed although it is there.
    pub again: Again,
    /// Whether tarballs of the same tree are taken from the cache's own binary cache, so that they are compressed once.
    pub taking: bool,
}

/// Says what would be pushed of a tree, when the packages of those in `keyring` count as being there.
pub fn would_push(
    store: &dyn Store,
    tree: &Tree,
    selection: &Selection,
    keyring: &Keyring,
    again: &Again,
    ctx: &Ctx,
) -> Result<Pushed, BuildcacheError> {
    let timer = ctx.stage(Stage::Publish, format!("packages to {}", store.address()));
    let pushed = buildcache::would_push(store, &tree.select(selection)?, keyring, again, ctx)?;
    left_alone(&pushed, ctx);
    match pushed.pushed.len() {
        0 => timer.cached(all_there(&pushed)),
        n => timer.done(format!("{n} packages would be pushed, {} are there", pushed.there)),
    }
    Ok(pushed)
}

fn left_alone(pushed: &Pushed, ctx: &Ctx) {
    for foreign in &pushed.foreign {
        ctx.warn(format!("{} is there and was left alone: {} (--force replaces it)", foreign.name, foreign.reason));
    }
}

fn all_there(pushed: &Pushed) -> String {
    format!("all {} packages were there", pushed.there + pushed.foreign.len())
}

/// Pushes what is chosen of a tree.
pub fn push(
    store: &dyn Store,
    tree: &Tree,
    selection: &Selection,
    key: &SigningKey,
    cache: &Cache,
    how: &How,
    ctx: &Ctx,
) -> Result<Pushed, PushError> {
    let timer = ctx.stage(Stage::Publish, format!("packages to {}", store.address()));
    let packages = tree.select(selection)?;
    let scratch = cache.staging(&cache.dir("tmp"))?;
    let keyring = keyring(cache, key).map_err(BuildcacheError::from)?;
    let own = FolderStore::new(&own_dir(cache));
    let request = buildcache::Request {
        tree,
        packages,
        spack: inside::SPACK,
        key,
        keyring: &keyring,
        scratch: scratch.path(),
        threads: how.threads,
        again: &how.again,
        made: how.taking.then_some(&own as &dyn Store),
    };
    let pushed = buildcache::push(store, &request, ctx)?;
    left_alone(&pushed, ctx);
    let bytes: u64 = pushed.pushed.iter().map(|p| p.size).sum();
    match pushed.pushed.len() {
        0 => timer.cached(all_there(&pushed)),
        n => timer.done(format!(
            "{n} packages pushed, {}{}; {} were there",
            humansize::format_size(bytes, humansize::BINARY),
            if pushed.taken > 0 {
                format!(", {} of them as they are in the cache", pushed.taken)
            } else {
                String::new()
            },
            pushed.there
        )),
    }
    Ok(pushed)
}

/// Pushes what a build installed, with what was needed only to build if that is asked for.
pub fn push_installed(
    store: &dyn Store,
    installed: &Installed,
    build_dependencies: bool,
    how: &How,
    key: &SigningKey,
    cache: &Cache,
    ctx: &Ctx,
) -> Result<Pushed, PushError> {
    let tree = Tree::open(&installed.install_tree())?;
    let known = |p: &&LockedPackage| tree.packages().contains_key(&p.hash);
    let roots = installed.packages().iter().filter(|p| p.root).filter(known).map(|p| format!("/{}", p.hash)).collect();
    let selection = Selection { roots, build_dependencies, ..Selection::default() };
    push(store, &tree, &selection, key, cache, how, ctx)
}

/// Keeps what a build installed for later builds, also in other build folders: what is new goes into the cache's own binary
/// cache, with what was needed only to build; also what was there and could not be used. That this fails does not make the build fail;
/// returns whether it did not.
pub fn keep(installed: &Installed, key: &SigningKey, cache: &Cache, ctx: &Ctx) -> Result<bool, Interrupted> {
    let how = How { again: Again::These(installed.unusable().clone()), ..How::default() };
    let result = push_installed(&FolderStore::new(&own_dir(cache)), installed, true, &how, key, cache, ctx);
    ctx.check()?;
    if let Err(e) = &result {
        ctx.warn(format!("the packages are not kept for later builds in other folders: {e}"));
    }
    Ok(result.is_ok())
}

/// What of the missing packages need not be built: the cache's own binary cache is asked first, then the folders, buckets,
/// registries and web servers that the site names. Each package is followed from its hash to the bytes of its tarball, and what is good is laid out as a cache of its
/// own, which is all that Spack gets to see of them. What is not good is told, and built.
pub fn binaries(
    cache: &Cache,
    key: &SigningKey,
    mirrors: &BinaryMirrors,
    missing: &[&LockedPackage],
    ctx: &Ctx,
) -> Result<Binaries, Interrupted> {
    let result = offered(cache, key, mirrors, missing, ctx);
    ctx.check()?;
    Ok(result.unwrap_or_else(|e| {
        ctx.warn(format!("binary caches are not used, and everything is built: {e}"));
        Binaries::default()
    }))
}

fn offered(
    cache: &Cache,
    key: &SigningKey,
    mirrors: &BinaryMirrors,
    missing: &[&LockedPackage],
    ctx: &Ctx,
) -> Result<Binaries, PushError> {
    let mut keyring = keyring(cache, key).map_err(BuildcacheError::from)?;
    let mut binaries = Binaries::default();
    let mut wanted: BTreeMap<String, Wanted> =
        missing.iter().map(|p| (p.hash.clone(), (p.name.clone(), p.version.clone()))).collect();
    let own = own_dir(cache).display().to_string();
    for place in [&own].into_iter().chain(&mirrors.places) {
        if wanted.is_empty() {
            break;
        }
        let unused = |e: &dyn std::fmt::Display| ctx.warn(format!("the binary cache `{place}` is not used: {e}"));
        let store = match (place.contains("://"), &mirrors.reach) {
            (false, _) if !Path::new(place).is_dir() => continue,
            (false, _) => Box::new(FolderStore::new(Path::new(place))),
            (true, None) => {
                unused(&"with --offline nothing in the network is asked");
                continue;
            }
            (true, Some(reach)) => match publish::open_to_read(place, reach, ctx) {
                Ok(store) => store,
                Err(e) => {
                    unused(&e);
                    continue;
                }
            },
        };
        if let Err(e) = offered_keys(&*store, mirrors, &mut keyring, ctx) {
            ctx.check().map_err(BuildcacheError::from)?;
            unused(&e);
            continue;
        }
        let to = match &mut binaries.dir {
            Some(to) => to,
            none => none.insert(cache.staging(&cache.dir("tmp"))?),
        };
        let excerpt = match buildcache::excerpt(&*store, &keyring, &wanted, inside::INSTALL_TREE, to.path(), ctx) {
            Ok(excerpt) => excerpt,
            Err(e) => {
                ctx.check().map_err(BuildcacheError::from)?;
                unused(&e);
                continue;
            }
        };
        if excerpt.forbidden > 0 {
            let count = excerpt.forbidden;
            ctx.note(format!("the binary cache `{place}`: {count} packages may not be read, and count as not there"));
        }
        tell(place, &excerpt.faults, ctx);
        if *place == own {
            binaries.unusable.extend(excerpt.refused);
        }
        wanted.retain(|hash, _| !excerpt.taken.contains(hash));
        binaries.hashes.extend(excerpt.taken);
    }
    if binaries.hashes.is_empty() {
        binaries.dir = None;
    }
    binaries.keys = keyring.armored().map_err(BuildcacheError::from)?;
    Ok(binaries)
}

/// Says what is not taken. Binaries for shorter paths come in dozens, and one line does for them.
fn tell(place: &str, faults: &[Fault], ctx: &Ctx) {
    let (short, others): (Vec<_>, Vec<_>) = faults.iter().partition(|f| f.kind == Kind::ShortPrefix);
    let from = format!("the binary cache `{place}`");
    for fault in others {
        ctx.warn(format!("not taken from {from}: {}: {}", fault.key, fault.detail));
    }
    if let Some(first) = short.first() {
        let count = short.len();
        ctx.warn(format!("not taken from {from}: {count} packages, as {}: {}", first.key, first.detail));
    }
}

/// Believes, of the keys that a cache offers, those whose whole fingerprint the site's configuration names: they lie beside what
/// they signed, so whoever can write the one can write the other.
fn offered_keys(
    store: &dyn Store,
    mirrors: &BinaryMirrors,
    keyring: &mut Keyring,
    ctx: &Ctx,
) -> Result<(), BuildcacheError> {
    let known = keyring.fingerprints();
    let wanted: Vec<_> = mirrors.keys.iter().filter(|key| !known.contains(key)).collect();
    if wanted.is_empty() || store.registry() {
        return Ok(());
    }
    let offered = match buildcache::keys::offered(store, ctx) {
        // Those that the builder has are still good.
        Err(BuildcacheError::Store(e @ StoreError::Forbidden { .. })) => {
            ctx.detail(e.to_string());
            return Ok(());
        }
        offered => offered?,
    };
    for (_, armored) in offered {
        let mut offered = Keyring::new();
        let Some(text) = armored else { continue };
        // What is no key is passed over: what it signed is not taken.
        if offered.add_bytes(store.address(), text.as_bytes()).is_err() {
            continue;
        }
        let named: Vec<_> = offered.fingerprints().into_iter().filter(|f| wanted.contains(&f)).collect();
        if !named.is_empty() {
            let armored = offered.pinned(&named)?.armored()?;
            keyring.add_bytes(store.address(), armored.as_bytes())?;
            ctx.detail(format!("{}: its key {} is believed, as the configuration says", store.address(), named[0]));
        }
    }
    Ok(())
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
