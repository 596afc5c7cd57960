//! How many packages are on their way at once from a store that is not of this host: the store's limit, and not the number of processors.

use crate::support::{ROOT, World};
use slurm_factory::buildcache::check::{Kind, check};
use slurm_factory::buildcache::{Wanted, excerpt};
use slurm_factory::publish::{Entry, FolderStore, Key, Put, Source, Store, StoreError, Version, Written};
use slurm_factory::report::Ctx;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A folder that answers as slowly as a store in the network, and counts who waits for a manifest.
struct Far {
    folder: FolderStore,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Store for Far {
    fn address(&self) -> &str {
        self.folder.address()
    }

    fn read(&self, key: &Key, limit: u64, ctx: &Ctx) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        if key.as_str().starts_with("v3/manifests/spec/") {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(200));
            self.now.fetch_sub(1, Ordering::SeqCst);
        }
        self.folder.read(key, limit, ctx)
    }

    fn check(&self, ctx: &Ctx) -> Result<(), StoreError> {
        self.folder.check(ctx)
    }

    fn size(&self, key: &Key, ctx: &Ctx) -> Result<Option<u64>, StoreError> {
        self.folder.size(key, ctx)
    }

    fn download(&self, key: &Key, out: &mut dyn Write, ctx: &Ctx) -> Result<Option<u64>, StoreError> {
        self.folder.download(key, out, ctx)
    }

    fn put(&self, key: &Key, bytes: &[u8], how: &Put<'_>, ctx: &Ctx) -> Result<Written, StoreError> {
        self.folder.put(key, bytes, how, ctx)
    }

    fn put_file(&self, key: &Key, source: &Source, how: &Put<'_>, ctx: &Ctx) -> Result<Written, StoreError> {
        self.folder.put_file(key, source, how, ctx)
    }

    fn list(&self, prefix: &str, ctx: &Ctx) -> Result<Vec<Entry>, StoreError> {
        self.folder.list(prefix, ctx)
    }

    fn delete(&self, key: &Key, ctx: &Ctx) -> Result<(), StoreError> {
        self.folder.delete(key, ctx)
    }
}

#[test]
fn eight_are_asked_at_once_whatever_the_processors() {
    let world = World::new();
    let cache = world.dir.path().join("cache");
    world.push(&cache, &crate::support::all());
    // Manifests that nobody signed, of packages that are not there.
    let wanted: BTreeMap<String, Wanted> =
        ('a'..='x').map(|letter| (letter.to_string().repeat(32), ("x".to_owned(), "1".to_owned()))).collect();
    let folder = cache.join("v3/manifests/spec/x");
    fs::create_dir_all(&folder).unwrap();
    for hash in wanted.keys() {
        fs::write(folder.join(format!("x-1-{hash}.spec.manifest.json")), "{}").unwrap();
    }
    for processors in [2, 16] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(processors).build().unwrap();
        let store = Far { folder: FolderStore::new(&cache), now: AtomicUsize::new(0), most: AtomicUsize::new(0) };
        let to = tempfile::tempdir().unwrap();
        let ctx = Ctx::silent();
        let excerpt = pool.install(|| excerpt(&store, &world.keyring(), &wanted, ROOT, to.path(), &ctx)).unwrap();
        assert_eq!(excerpt.refused.len(), wanted.len());
        assert_eq!(store.most.swap(0, Ordering::SeqCst), 8, "an excerpt, {processors} processors");
        let report = pool.install(|| check(&store, &world.keyring(), false, None, &ctx)).unwrap();
        assert_eq!((report.packages, report.good.len()), (wanted.len() + 3, 3));
        assert!(report.faults.iter().all(|fault| fault.kind == Kind::NotSigned), "{:?}", report.faults);
        assert_eq!(store.most.load(Ordering::SeqCst), 8, "a check, {processors} processors");
    }
}
