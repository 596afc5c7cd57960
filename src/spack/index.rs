//! What Spack works out about recipes once and keeps: its index of all packages, and compiled Python. Shared by build folders.
//!
//! Without it the first concretization in a build folder reads all 8,000 recipes, which takes a minute; with it, a third.
//!
//! ```text
//! CACHE/spack/index-KEY/     after the first concretization with these recipes; never changed
//!   recipes/                   Spack's `misc_cache`: providers, tags, patches of every repository
//!   python/                    PYTHONPYCACHEPREFIX
//! SLOT/misc/KEY/             a copy of it, which Spack reads and writes
//! ```
//!
//! KEY stands for the exact states of Spack, of the builtin recipes, of ours and of the site's. Spack itself takes an index
//! for good when it is younger than every recipe, and trees out of `git archive` carry the time of their commit: in a folder
//! that knew other recipes, an old index would be taken for that of the new ones.
//!
//! What a package's build may have written is never shared: the copy is taken while nothing was built in the slot, and the
//! copy in the cache is seen by no sandbox. Compiled Python is good for one version of Python and one file by
//! its own header (PEP 552). What Spack found out about compilers belongs to a rootfs and is not shared.

use crate::cache::{Cache, CacheError};
use crate::fsutil;
use crate::plan::{Identity, inside};
use crate::report::Ctx;
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};

/// Parts of the copy, and what of each is left out.
const PARTS: [(&str, &str); 2] = [("recipes", "compilers"), ("python", "")];

/// The index of one set of recipes in one slot.
pub struct Index {
    slot: PathBuf,
    shared: PathBuf,
    /// Nothing was built in the slot.
    new: bool,
}

impl Index {
    /// The slot's index. One that other build folders have made is copied; that it cannot be costs a minute and not the build.
    pub fn open(slot: &Path, identity: &Identity, cache: &Cache, ctx: &Ctx) -> Self {
        let key = key(identity);
        let index = Self {
            slot: slot.join("misc").join(&key),
            shared: cache.dir("spack").join(format!("index-{key}")),
            new: is_new(slot),
        };
        if !index.slot.is_dir()
            && let Err(e) = index.bring(cache)
        {
            ctx.detail(format!("Spack's index of recipes is made again: {e}"));
        }
        index
    }

    /// Copies the shared one to the slot, when there is one.
    fn bring(&self, cache: &Cache) -> Result<(), CacheError> {
        if !self.shared.is_dir() {
            return Ok(());
        }
        let misc = fsutil::parent_of(&self.slot);
        cache.sweep(misc)?;
        let staging = cache.staging(misc)?;
        copy(&self.shared, staging.path()).map_err(CacheError::Io)?;
        staging.commit_new(&self.slot)
    }

    /// Shares what a concretization has just made in a new slot.
    pub fn keep(&self, cache: &Cache, ctx: &Ctx) {
        if !self.new || self.shared.is_dir() {
            return;
        }
        let kept = cache.staging(&cache.dir("spack")).and_then(|staging| {
            copy(&self.slot, staging.path()).map_err(CacheError::Io)?;
            // An entry is never changed: the copies that others are making of it now would be of two.
            staging.commit_new(&self.shared)
        });
        if let Err(e) = kept {
            ctx.detail(format!("Spack's index of recipes is not kept for other build folders: {e}"));
        }
    }
}

/// Whether the slot's store holds no package, nor one that is being built.
fn is_new(slot: &Path) -> bool {
    let empty = |dir: &str| match fs::read_dir(super::on_host(slot, dir)) {
        Ok(mut all) => all.all(|e| e.is_ok_and(|e| e.file_name().as_encoded_bytes().starts_with(b"."))),
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    };
    empty(inside::INSTALL_TREE) && empty(inside::STAGE)
}

/// Names the recipes and the Spack that reads them.
fn key(identity: &Identity) -> String {
    let mut hash = Sha256::new();
    let parts = [&identity.spack.commit, &identity.spack_packages.commit, &identity.own_repo_digest];
    for part in parts.into_iter().chain(&identity.repo_digests) {
        hash.update(part);
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..6])
}

/// Spack's `misc_cache`, inside the sandbox.
pub fn recipes_inside(identity: &Identity) -> String {
    format!("{}/{}/recipes", inside::MISC, key(identity))
}

/// Where compiled Python is kept, inside the sandbox.
pub fn python_inside(identity: &Identity) -> String {
    format!("{}/{}/python", inside::MISC, key(identity))
}

/// Copies the files of an index with their times. Locks, and files that Spack is just writing in another run, are left out.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for (part, left_out) in PARTS {
        let root = from.join(part);
        if !root.is_dir() {
            continue;
        }
        let wanted = |e: &walkdir::DirEntry| !(e.depth() == 1 && e.file_name() == left_out);
        for entry in walkdir::WalkDir::new(&root).into_iter().filter_entry(wanted) {
            let entry = entry?;
            let Ok(below) = entry.path().strip_prefix(from) else { continue };
            let target = to.join(below);
            if entry.file_type().is_dir() {
                fs::create_dir_all(&target)?;
            } else if entry.file_type().is_file()
                && entry.path().extension().is_some_and(|end| end == "json" || end == "pyc")
            {
                let modified = entry.metadata()?.modified()?;
                fs::copy(entry.path(), &target)?;
                fs::OpenOptions::new().write(true).open(&target)?.set_modified(modified)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::install_tree;
    use super::*;
    use crate::plan::tests::identity;

    fn write(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            fs::create_dir_all(fsutil::parent_of(&path)).unwrap();
            fs::write(path, name).unwrap();
        }
    }

    #[test]
    fn a_second_build_folder_has_what_the_first_made_and_nothing_that_came_later() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for slot in [&one, &two] {
            for part in ["misc", "store", "stage"] {
                fs::create_dir_all(slot.join(part)).unwrap();
            }
        }
        let (identity, ctx) = (identity(), Ctx::silent());
        let first = Index::open(&one, &identity, &cache, &ctx);
        assert!(!first.slot.exists(), "Spack makes it");
        let made = ["recipes/tags/builtin-index.json", "python/opt/spack/a.cpython-311.pyc"];
        let own = ["recipes/compilers/compilers.json", "recipes/tags/.builtin-index.json.lock", "python/x.pyc.123"];
        write(&first.slot, &made);
        write(&first.slot, &own);
        first.keep(&cache, &ctx);

        let second = Index::open(&two, &identity, &cache, &ctx);
        for name in made {
            let (old, new) = (first.slot.join(name), second.slot.join(name));
            assert_eq!(fs::read_to_string(&new).unwrap(), name);
            let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
            assert_eq!(time(&old), time(&new), "Spack compares times");
        }
        for name in own {
            assert!(!second.slot.join(name).exists(), "{name}");
        }
        assert_eq!(fs::read_dir(two.join("misc")).unwrap().count(), 1);

        // Builds have run in both since: nothing of that is shared.
        fsutil::remove_tree(&first.shared).unwrap();
        fs::create_dir_all(install_tree(&one).join("zlib-1.3-abc")).unwrap();
        fs::create_dir_all(two.join("stage/spack-stage-zlib")).unwrap();
        for slot in [&one, &two] {
            Index::open(slot, &identity, &cache, &ctx).keep(&cache, &ctx);
            assert!(!first.shared.exists());
        }
    }

    #[test]
    fn other_recipes_have_another_index() {
        let identity = identity();
        let mut other = identity.clone();
        other.spack_packages.commit = "1".repeat(40);
        let mut overlaid = identity.clone();
        overlaid.repo_digests.push("2".repeat(64));
        let keys: std::collections::BTreeSet<_> = [&identity, &other, &overlaid].into_iter().map(key).collect();
        assert_eq!(keys.len(), 3);
        assert!(recipes_inside(&identity).starts_with(inside::MISC));
    }
}
