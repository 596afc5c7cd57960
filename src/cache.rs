//! The cache folder: who lies where, who may write, and how a half-made entry is told from a whole one.
//!
//! ```text
//! CACHE/
//!   blobs/sha256/<hex>        image blobs, content-addressed
//!   images/                   what a reference resolved to, and when
//!   rootfs/<id>/              unpacked and prepared root file systems
//!   spack/<kind>-<commit>/    Spack and recipe trees
//!   sourcecache/              source archives (Spack's source mirror layout)
//!   buildcache/               Spack binary cache, layout v3
//!   builds/                   finished packages
//!   compilers/                finished compilers
//!   keys/                     signing keys, mode 0700
//!   logs/<build>/             full logs
//!   work/<slot>/              store, views and stages, unless --build-dir puts them elsewhere
//!   tmp/                      what one run needs while it runs
//!   hosts/                    that sandboxes work here: a file a host and boot
//!   locks/                    one file a lock; never deleted while the program may run
//! ```
//!
//! Entries are made in a [`Staging`] folder beside their place and renamed. A staging folder holds a lock for
//! as long as its maker lives, so [`Cache::sweep`] can delete what a killed run left.

use crate::fsutil;
use crate::report::{Ctx, Interrupted};
use fs_err as fs;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The folder cannot be made or written.
    #[error(
        "the cache folder `{path}` cannot be written: {source}; choose another with --cache-dir or SLURM_FACTORY_CACHE_DIR"
    )]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file operation inside the cache failed.
    #[error("cache: {0}")]
    Io(#[source] io::Error),
    /// We were told to stop while waiting.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// The cache folder. Cloning is cheap; all clones mean the same folder.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the folder, making it when it is not there, and checks that it can be written.
    pub fn open(root: &Path) -> Result<Self, CacheError> {
        let refuse = |source| CacheError::NotWritable { path: root.to_owned(), source };
        fs::create_dir_all(root).map_err(refuse)?;
        let root = fs::canonicalize(root).map_err(refuse)?;
        fs::create_dir_all(root.join("locks")).map_err(refuse)?;
        tempfile::Builder::new().prefix(".tmp-probe").tempfile_in(&root).map_err(refuse)?;
        Ok(Self { root })
    }

    /// The folder itself, absolute and without symlinks.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A named part, as drawn in the module's documentation.
    pub fn dir(&self, part: &str) -> PathBuf {
        self.root.join(part)
    }

    /// Waits for the lock `name`, which one process at a time can hold; says what is waited for.
    pub fn lock(&self, ctx: &Ctx, name: &str, what: &str) -> Result<Lock, CacheError> {
        self.lock_file(ctx, name, what, true)
    }

    /// Waits for the lock `name` in shared mode: many readers, or one writer.
    pub fn lock_shared(&self, ctx: &Ctx, name: &str, what: &str) -> Result<Lock, CacheError> {
        self.lock_file(ctx, name, what, false)
    }

    /// The lock `name` if nobody holds it.
    pub fn try_lock(&self, name: &str) -> Result<Option<Lock>, CacheError> {
        let path = self.lock_path(name);
        let file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(CacheError::Io(fsutil::with_path(&e, "lock", &path))),
        }
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(name.replace('/', "_"))
    }

    fn lock_file(&self, ctx: &Ctx, name: &str, what: &str, exclusive: bool) -> Result<Lock, CacheError> {
        let path = self.lock_path(name);
        let file = open_lock(&path)?;
        let mut told = false;
        loop {
            let result = if exclusive { file.try_lock() } else { file.try_lock_shared() };
            match result {
                Ok(()) => return Ok(Lock { file }),
                Err(TryLockError::WouldBlock) => {
                    if !told {
                        ctx.note(format!("waiting for another run that holds {what} (lock `{}`)", path.display()));
                        told = true;
                    }
                    // Polling, because a blocked flock cannot be told to stop by our own token.
                    std::thread::sleep(Duration::from_millis(100));
                    ctx.check()?;
                }
                Err(TryLockError::Error(e)) => return Err(CacheError::Io(fsutil::with_path(&e, "lock", &path))),
            }
        }
    }

    /// A new folder in `parent` that becomes an entry by [`Staging::commit`], and is deleted otherwise.
    pub fn staging(&self, parent: &Path) -> Result<Staging, CacheError> {
        fs::create_dir_all(parent).map_err(CacheError::Io)?;
        // The lock comes before the folder, so that no sweep ever sees a living folder without one.
        loop {
            let (lock, lock_path) = tempfile::Builder::new()
                .prefix(fsutil::TEMPORARY)
                .suffix(LOCK_SUFFIX)
                .tempfile_in(parent)
                .and_then(|f| f.keep().map_err(Into::into))
                .map_err(|e| CacheError::Io(fsutil::with_path(&e, "create a lock in", parent)))?;
            match lock.try_lock() {
                Ok(()) => {}
                // A sweep took it between the two calls, for a dead run's, and deletes it.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(e)) => return Err(CacheError::Io(fsutil::with_path(&e, "lock", &lock_path))),
            }
            if !fsutil::is_at(&lock, &lock_path) {
                continue;
            }
            let path = lock_path.with_extension("");
            let staging = Staging { path, lock_path, _lock: lock, committed: false };
            fs::create_dir(&staging.path).map_err(CacheError::Io)?;
            return Ok(staging);
        }
    }

    /// Deletes what [`Cache::staging`] made in `parent` for runs that are gone. Returns how many.
    pub fn sweep(&self, parent: &Path) -> Result<usize, CacheError> {
        let Ok(entries) = fs::read_dir(parent) else { return Ok(0) };
        // A folder, the one it replaces, and their lock share a stem.
        let mut stems = BTreeSet::new();
        for entry in entries {
            let entry = entry.map_err(CacheError::Io)?;
            let path = entry.path();
            let is_ours = path.is_dir() || path.extension() == Some(OsStr::new(&LOCK_SUFFIX[1..]));
            if fsutil::is_temporary(&entry.file_name()) && is_ours {
                stems.insert(path.with_extension(""));
            }
        }
        let mut swept = 0;
        for stem in stems {
            let lock_path = stem.with_added_extension(&LOCK_SUFFIX[1..]);
            // Not created here: the maker deletes its lock last, so where there is none nobody lives.
            let lock = fs::OpenOptions::new().write(true).open(&lock_path);
            if lock.as_ref().is_ok_and(|l| matches!(l.file().try_lock(), Err(TryLockError::WouldBlock))) {
                continue;
            }
            for path in [stem.with_added_extension(ASIDE), stem] {
                fsutil::remove_tree(&path).map_err(CacheError::Io)?;
            }
            let _ = fs::remove_file(&lock_path);
            swept += 1;
        }
        Ok(swept)
    }
}

/// How a staging folder's lock, and the entry it replaces while it is being replaced, are named after it.
const LOCK_SUFFIX: &str = ".lock";
const ASIDE: &str = "old";

fn open_lock(path: &Path) -> Result<File, CacheError> {
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(CacheError::Io)?;
    Ok(file.into_parts().0)
}

/// A lock that is let go when it is dropped or when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // flock(2) belongs to the open file, which a child shares between its fork and its exec: closing our descriptor alone
        // would leave the lock with it. An error leaves what the closing does.
        let _ = self.file.unlock();
    }
}

/// A folder under way. Dropped without [`Staging::commit`], it is deleted.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
    committed: bool,
}

impl Staging {
    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the folder to `target`; an entry already there is replaced.
    pub fn commit(mut self, target: &Path) -> Result<(), CacheError> {
        if target.symlink_metadata().is_ok() {
            // A folder cannot be renamed over one that is not empty: the old one steps aside first.
            let aside = self.path.with_added_extension(ASIDE);
            fs::rename(target, &aside).map_err(CacheError::Io)?;
            fs::rename(&self.path, target).map_err(CacheError::Io)?;
            fsutil::remove_tree(&aside).map_err(CacheError::Io)?;
        } else {
            fs::rename(&self.path, target).map_err(CacheError::Io)?;
        }
        self.committed = true;
        Ok(())
    }

    /// Renames the folder to `target`, unless another run was quicker: then its entry stays, and this one is deleted.
    pub fn commit_new(mut self, target: &Path) -> Result<(), CacheError> {
        match fs::rename(&self.path, target) {
            Ok(()) => self.committed = true,
            Err(_) if target.is_dir() => {}
            Err(e) => return Err(CacheError::Io(e)),
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fsutil::remove_tree(&self.path);
        }
        let _ = fs::remove_file(&self.lock_path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_staging_leaves_nothing_and_a_committed_one_its_entry() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let parent = cache.dir("rootfs");
        drop(cache.staging(&parent).unwrap());
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        for text in ["one", "two"] {
            let staging = cache.staging(&parent).unwrap();
            fs::write(staging.path().join("f"), text).unwrap();
            staging.commit(&parent.join("entry")).unwrap();
            assert_eq!(fs::read_to_string(parent.join("entry/f")).unwrap(), text);
        }
        let late = cache.staging(&parent).unwrap();
        fs::write(late.path().join("f"), "three").unwrap();
        late.commit_new(&parent.join("entry")).unwrap();
        assert_eq!(fs::read_to_string(parent.join("entry/f")).unwrap(), "two");
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 1);
    }

    #[test]
    fn sweep_takes_what_a_killed_run_left_and_spares_what_lives() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let parent = cache.dir("rootfs");
        let alive = cache.staging(&parent).unwrap();
        fs::create_dir_all(alive.path().with_extension("old")).unwrap();
        // What a kill leaves: a folder with its lock, one whose entry stood aside, a lock alone, a folder alone.
        for dead in [".tmp-a/x", ".tmp-b", ".tmp-b.old/x", ".tmp-d/x"] {
            fs::create_dir_all(parent.join(dead)).unwrap();
        }
        for dead in [".tmp-a.lock", ".tmp-b.lock", ".tmp-c.lock"] {
            fs::write(parent.join(dead), "").unwrap();
        }
        assert_eq!(cache.sweep(&parent).unwrap(), 4);
        assert!(alive.path().is_dir() && alive.path().with_extension("old").is_dir());
        let mut left: Vec<_> = fs::read_dir(&parent).unwrap().map(|e| e.unwrap().path()).collect();
        left.sort();
        let stem = alive.path();
        assert_eq!(left, [stem.to_owned(), stem.with_extension("lock"), stem.with_extension("old")]);
    }

    #[test]
    fn sweeps_and_makers_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let parent = cache.dir("rootfs");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        cache.sweep(&parent).unwrap();
                    }
                });
            }
            for n in 0..2000 {
                let staging = cache.staging(&parent).unwrap();
                fs::write(staging.path().join("f"), "").unwrap();
                staging.commit(&parent.join(format!("entry-{}", n % 7))).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 7);
    }

    #[test]
    fn locks_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let held = cache.lock(&Ctx::silent(), "a", "the test").unwrap();
        assert!(cache.try_lock("a").unwrap().is_none());
        // What a child has inherited, until it calls exec, does not keep the lock.
        let inherited = held.file.try_clone().unwrap();
        drop(held);
        assert!(cache.try_lock("a").unwrap().is_some());
        drop(inherited);
    }

    #[test]
    fn a_folder_that_cannot_be_made_says_which_and_what_to_do() {
        let error = Cache::open(Path::new("/proc/no/such")).unwrap_err().to_string();
        assert!(error.contains("/proc/no/such") && error.contains("--cache-dir"), "{error}");
    }
}
