//! Deletes what the cache can make again, and never what a running build uses or what cannot be had again.
//!
//! | | without a flag | `--older-than DAYS` | `--full` |
//! |---|---|---|---|
//! | half-made entries of killed runs | goes | goes | goes |
//! | logs, build stages, what is known of hosts | goes | older ones | goes |
//! | blobs that no remembered image needs | goes | goes | goes |
//! | images | stays | those not used for so long | goes |
//! | prepared root file systems, Spack trees, stores | stays | older ones | goes |
//! | finished packages | stays | older ones | stays |
//! | packages kept for later builds (binary cache) | stays | stays | goes |
//! | source archives, keys | stays | stays | stays |

use crate::cache::{Cache, CacheError, Lock};
use crate::fsutil;
use crate::image::{self, ImageError};
use crate::publish::{FolderStore, Store as _, StoreError};
use crate::report::{Ctx, Interrupted};
use crate::workflows::buildcache::own_dir;
use crate::workflows::finished::compilers_dir;
use fs_err as fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Why nothing or not everything was deleted.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// A build is running.
    #[error("a build is using this cache; wait for it to end, or stop it, and clean again")]
    InUse,
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The binary cache cannot be read or deleted from.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The images cannot be read or deleted.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file operation failed.
    #[error("clean: {0}")]
    Io(#[from] io::Error),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// How much to delete.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Everything that can be made again.
    pub full: bool,
    /// Only what was not changed for this long.
    pub older_than: Option<Duration>,
    /// Only say.
    pub dry_run: bool,
}

/// What went (or would go).
#[derive(Debug, Default)]
pub struct Cleaned {
    /// Paths.
    pub paths: Vec<PathBuf>,
    /// Their bytes.
    pub bytes: u64,
}

/// Every run that works in the cache holds this lock in shared mode; `clean` takes it alone.
pub const IN_USE: &str = "in-use";

/// Deletes.
pub fn clean(cache: &Cache, build_dir: &Path, scope: Scope, ctx: &Ctx) -> Result<Cleaned, CleanError> {
    let alone: Lock = cache.try_lock(IN_USE)?.ok_or(CleanError::InUse)?;
    let mut cleaned = Cleaned::default();
    // Compilers are in folders of their own, one a version.
    let compilers = compilers_dir(cache);
    let versions = children(&compilers)?;
    if !scope.dry_run {
        for part in ["rootfs", "spack", "builds", "blobs", "images", "tmp"] {
            cache.sweep(&cache.dir(part))?;
        }
        for part in ["staged", crate::resolve::LAYERS] {
            cache.sweep(&build_dir.join(part))?;
        }
        for version in &versions {
            cache.sweep(version)?;
        }
    }
    let mut victims = children(&cache.dir("logs"))?;
    victims.extend(children(&cache.dir("hosts"))?);
    for slot in children(build_dir)? {
        victims.extend(children(&slot.join("stage"))?);
    }
    if scope.full || scope.older_than.is_some() {
        for part in ["rootfs", "spack", "images"] {
            victims.extend(children(&cache.dir(part))?);
        }
        victims.extend(children(build_dir)?);
    }
    if scope.full && scope.older_than.is_none() {
        // An older layout beside it is not ours to delete. What names comes before what is named.
        victims.extend(["buildcache/v3", "buildcache/blobs"].map(|part| cache.dir(part)));
    } else {
        // Whoever pushes to it uses the cache, so what is under way now is of killed runs.
        for half in FolderStore::new(&own_dir(cache)).sweep(SystemTime::now(), scope.dry_run, ctx)? {
            cleaned.bytes += half.size;
            cleaned.paths.push(own_dir(cache).join(half.key.as_str()));
        }
    }
    if scope.older_than.is_some() && !scope.full {
        // The age of a folder of compilers says nothing.
        victims.extend(children(&cache.dir("builds"))?.into_iter().filter(|path| *path != compilers));
        for version in &versions {
            victims.extend(children(version)?);
        }
    }
    for path in victims {
        ctx.check()?;
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let age = meta.modified().ok().and_then(|m| SystemTime::now().duration_since(m).ok()).unwrap_or_default();
        if scope.older_than.is_some_and(|limit| age < limit) {
            continue;
        }
        cleaned.bytes += size(&path);
        if !scope.dry_run {
            fsutil::remove_tree(&path)?;
        }
        cleaned.paths.push(path);
    }
    if !scope.dry_run {
        for emptied in versions.iter().chain([&compilers]) {
            remove_empty(emptied)?;
        }
    }
    // What is forgotten in a trial run is still there.
    let mut kept = image::list(cache)?;
    kept.retain(|memory| !cleaned.paths.iter().any(|path| path == memory.path()));
    let blobs = image::collect(cache, &kept, scope.dry_run, &alone)?;
    cleaned.bytes += blobs.bytes;
    cleaned.paths.extend(blobs.paths);
    Ok(cleaned)
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(Vec::new()) };
    entries.map(|e| Ok(e?.path())).collect()
}

/// Deletes a folder in which nothing is left.
fn remove_empty(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}

fn size(path: &Path) -> u64 {
    walkdir::WalkDir::new(path)
        .into_iter()
        .filter_map(Result::ok)
        .filter_map(|e| e.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|m| m.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_killed_runs_go_and_the_binary_cache_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let (half, blob) =
            (cache.dir("buildcache/blobs/sha256/ab/.tmp-x"), cache.dir("buildcache/blobs/sha256/ab/abc"));
        fs::create_dir_all(fsutil::parent_of(&half)).unwrap();
        fs::write(&half, "12345").unwrap();
        fs::write(&blob, "12345").unwrap();
        let scope = Scope { full: false, older_than: None, dry_run: true };
        std::thread::sleep(Duration::from_millis(20));
        let would = clean(&cache, &cache.dir("work"), scope, &Ctx::silent()).unwrap();
        assert!(would.paths == [half.clone()] && half.exists(), "{would:?}");
        clean(&cache, &cache.dir("work"), Scope { dry_run: false, ..scope }, &Ctx::silent()).unwrap();
        assert!(!half.exists() && blob.exists());
    }

    #[test]
    fn a_new_compiler_in_an_old_folder_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let archive = |version: &str| cache.dir("builds/compilers").join(version).join("gcc.tar.gz");
        for version in ["13.4.0", "14.2.0"] {
            fs::create_dir_all(fsutil::parent_of(&archive(version))).unwrap();
            fs::write(archive(version), "12345").unwrap();
        }
        let old = SystemTime::now() - Duration::from_secs(1000);
        for path in [archive("13.4.0"), cache.dir("builds/compilers"), cache.dir("builds/compilers/14.2.0")] {
            fs::File::open(path).unwrap().file().set_modified(old).unwrap();
        }
        let scope = Scope { full: false, older_than: Some(Duration::from_secs(500)), dry_run: false };
        clean(&cache, &cache.dir("work"), scope, &Ctx::silent()).unwrap();
        assert!(!archive("13.4.0").exists() && archive("14.2.0").exists());
        assert!(!cache.dir("builds/compilers/13.4.0").exists(), "an empty folder");
    }

    #[test]
    fn halves_of_compilers_go_and_what_they_leave_empty() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let compilers = cache.dir("builds/compilers");
        let (whole, half) = (compilers.join("13.4.0/gcc.tar.gz"), ".tmp-a/gcc.tar.gz");
        for path in [whole.clone(), compilers.join("13.4.0").join(half), compilers.join("14.2.0").join(half)] {
            fs::create_dir_all(fsutil::parent_of(&path)).unwrap();
            fs::write(path, "12345").unwrap();
        }
        fs::write(compilers.join("14.2.0/.tmp-a.lock"), "").unwrap();
        let of = |older_than| Scope { full: false, older_than, dry_run: false };
        let trial = Scope { dry_run: true, ..of(None) };
        clean(&cache, &cache.dir("work"), trial, &Ctx::silent()).unwrap();
        assert!(compilers.join("14.2.0").join(half).exists());
        clean(&cache, &cache.dir("work"), of(Some(Duration::from_secs(500))), &Ctx::silent()).unwrap();
        assert!(whole.exists() && !compilers.join("13.4.0/.tmp-a").exists() && !compilers.join("14.2.0").exists());
        fs::remove_file(&whole).unwrap();
        clean(&cache, &cache.dir("work"), of(None), &Ctx::silent()).unwrap();
        assert!(!compilers.exists() && cache.dir("builds").exists());
    }

    #[test]
    fn full_spares_packages_sources_and_keys() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        for file in ["rootfs/a/root/f", "builds/p.tar.gz", "sourcecache/x", "keys/k", "logs/l/f", "work/slot/store/f"] {
            let path = cache.dir(file);
            fs::create_dir_all(fsutil::parent_of(&path)).unwrap();
            fs::write(path, "12345").unwrap();
        }
        let scope = Scope { full: true, older_than: None, dry_run: false };
        let held = cache.lock_shared(&Ctx::silent(), IN_USE, "x").unwrap();
        assert!(matches!(clean(&cache, &cache.dir("work"), scope, &Ctx::silent()), Err(CleanError::InUse)));
        drop(held);
        let would = clean(&cache, &cache.dir("work"), Scope { dry_run: true, ..scope }, &Ctx::silent()).unwrap();
        assert!(cache.dir("rootfs/a").exists());
        let did = clean(&cache, &cache.dir("work"), scope, &Ctx::silent()).unwrap();
        assert_eq!((did.bytes, did.paths.len()), (would.bytes, would.paths.len()));
        for gone in ["rootfs/a", "logs/l", "work/slot"] {
            assert!(!cache.dir(gone).exists(), "{gone}");
        }
        for kept in ["builds/p.tar.gz", "sourcecache/x", "keys/k"] {
            assert!(cache.dir(kept).exists(), "{kept}");
        }
    }
}
