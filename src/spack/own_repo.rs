//! Our own recipe repository, embedded in the program, written out for Spack with the versions that the
//! catalog names.
//!
//! Recipes hold no versions of their own: the slurm recipe reads `versions.json` beside it, which is written
//! here, so that the catalog stays the only place for them.

use crate::cache::{Cache, CacheError};
use crate::catalog::SlurmRelease;
use crate::fsutil;
use fs_err as fs;
use include_dir::{Dir, DirEntry, include_dir};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};

static REPO: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/spack-repo");

/// Where the versions are written, relative to the repository.
const VERSIONS: &str = "spack_repo/slurm_factory/packages/slurm/versions.json";

/// SHA-256 of the repository with the given release.
pub fn digest(release: &SlurmRelease) -> String {
    let mut hash = Sha256::new();
    let mut files = Vec::new();
    collect(&REPO, &mut files);
    for (path, content) in files {
        for part in [path.as_os_str().as_encoded_bytes(), content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hash.update(versions([release]));
    hex::encode(hash.finalize())
}

fn collect<'a>(dir: &'a Dir<'a>, into: &mut Vec<(&'a Path, &'a [u8])>) {
    for entry in dir.entries() {
        match entry {
            DirEntry::Dir(dir) if dir.path().ends_with("__pycache__") => {}
            DirEntry::Dir(dir) => collect(dir, into),
            DirEntry::File(file) => into.push((file.path(), file.contents())),
        }
    }
    into.sort_by_key(|(path, _)| *path);
}

fn versions<'r>(releases: impl IntoIterator<Item = &'r SlurmRelease>) -> String {
    let version = |r: &SlurmRelease| json!({"version": r.recipe, "sha256": r.sha256, "url": r.url});
    json!({"versions": releases.into_iter().filter(|r| **r != SlurmRelease::none()).map(version).collect::<Vec<_>>()})
        .to_string()
}

/// Writes the repository with these releases for a Spack of somebody else's, into a folder that is not there yet or empty: without
/// it Spack installs nothing of ours, because it does not know the namespace. Returns what `spack repo add` wants.
pub fn export<'r>(into: &Path, releases: impl IntoIterator<Item = &'r SlurmRelease>) -> io::Result<PathBuf> {
    fs::create_dir_all(into)?;
    if fs::read_dir(into)?.next().is_some() {
        let full = io::Error::new(io::ErrorKind::DirectoryNotEmpty, "it is not empty");
        return Err(fsutil::with_path(&full, "write recipes to", into));
    }
    write_files(into, releases)?;
    Ok(into.join("spack_repo/slurm_factory"))
}

/// Where recipes of this digest are kept.
pub fn dir(cache: &Cache, digest: &str) -> PathBuf {
    cache.dir("spack").join(format!("own-{digest}"))
}

/// The repository in the cache, written when it is not there. Returns the folder that holds `spack_repo/`.
pub fn write(cache: &Cache, digest: &str, release: &SlurmRelease) -> Result<PathBuf, CacheError> {
    let path = dir(cache, digest);
    if path.is_dir() {
        return Ok(path);
    }
    let staging = cache.staging(&cache.dir("spack"))?;
    write_files(staging.path(), [release]).map_err(CacheError::Io)?;
    staging.commit(&path)?;
    Ok(path)
}

fn write_files<'r>(into: &Path, releases: impl IntoIterator<Item = &'r SlurmRelease>) -> io::Result<()> {
    let mut files = Vec::new();
    collect(&REPO, &mut files);
    for (path, content) in files {
        let target = into.join(path);
        fs::create_dir_all(fsutil::parent_of(&target))?;
        fs::write(target, content)?;
    }
    fs::write(into.join(VERSIONS), versions(releases))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn the_repository_is_written_with_the_version_and_named_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let catalog = Catalog::embedded().unwrap();
        let (new, old) = (catalog.slurm("25.11").unwrap(), catalog.slurm("24.11").unwrap());
        assert_ne!(digest(new), digest(old));
        let path = write(&cache, &digest(new), new).unwrap();
        assert!(path.join("spack_repo/slurm_factory/repo.yaml").is_file());
        assert!(fs::read_to_string(path.join(VERSIONS)).unwrap().contains(&new.sha256));
        let shared = dir.path().join("shared");
        assert!(export(&shared, [new, old]).unwrap().join("repo.yaml").is_file());
        let text = fs::read_to_string(shared.join(VERSIONS)).unwrap();
        assert!(text.contains(&new.sha256) && text.contains(&old.sha256), "{text}");
        assert!(export(&shared, [new]).unwrap_err().to_string().contains("not empty"));
    }
}
