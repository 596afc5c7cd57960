//! Brings Spack and recipe repositories to a tree in the cache, each at an exact commit.
//!
//! A source is a git URL, a local git directory (bare or with a work tree, also one that another user owns), or
//! a plain folder. A tag is resolved to a commit once and remembered, so that a second run and `--offline`
//! need no network. Trees come out of `git archive`: no check-out, no hooks, no ownership check of a work
//! tree, and nothing of the user's git configuration decides what is in them.
//!
//! ```text
//! CACHE/spack/ref-<sha256 of source and reference>.json   what a tag of a URL resolved to, and when
//! CACHE/spack/tree-<commit or content digest>/            the tree, made beside and renamed
//! ```

use crate::cache::{Cache, CacheError};
use crate::fsutil;
use crate::plan::{RepoPin, SourcePin};
use crate::process::{ProcessError, Program};
use crate::report::{Ctx, Interrupted};
use crate::secret::without_login;
use fs_err as fs;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why Spack or a recipe repository cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Neither a folder nor something git could fetch.
    #[error("{what} `{source_name}` is neither a folder nor a git URL")]
    NotASource {
        /// `Spack`, `recipes`.
        what: &'static str,
        /// As given.
        source_name: String,
    },
    /// The repository has no such tag, branch or commit.
    #[error("{what}: `{source_name}` has no tag, branch or commit `{reference}`")]
    NoReference {
        /// `Spack`, `recipes`.
        what: &'static str,
        /// As given.
        source_name: String,
        /// As given.
        reference: String,
    },
    /// The network is needed and may not be used.
    #[error(
        "{what}: `{source_name}` at `{reference}` is not in the cache and --offline was given; run once with a network, or name a local git directory"
    )]
    Offline {
        /// `Spack`, `recipes`.
        what: &'static str,
        /// As given.
        source_name: String,
        /// As given.
        reference: String,
    },
    /// A folder that is given as a recipe repository has no `repo.yaml`.
    #[error("`{path}` is not a Spack recipe repository: {reason}")]
    NotARepo {
        /// The folder.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// git failed.
    #[error("{what}: {source}")]
    Git {
        /// What was wanted from it.
        what: String,
        /// Its own words.
        source: ProcessError,
    },
    /// A file operation failed.
    #[error("spack source: {0}")]
    Io(#[from] io::Error),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

enum Kind {
    Url,
    GitDir(PathBuf),
    Tree(PathBuf),
}

fn kind_of(what: &'static str, source: &str) -> Result<Kind, SourceError> {
    let path = Path::new(source);
    if path.is_dir() {
        let path = fs::canonicalize(path)?;
        for candidate in [path.join(".git"), path.clone()] {
            if candidate.join("HEAD").is_file() && candidate.join("objects").is_dir() {
                return Ok(Kind::GitDir(candidate));
            }
        }
        return Ok(Kind::Tree(path));
    }
    // `host:path` is git's short form for ssh.
    if source.contains("://") || (source.contains('@') && source.contains(':')) {
        return Ok(Kind::Url);
    }
    Err(SourceError::NotASource { what, source_name: without_login(source) })
}

fn git(git_dir: Option<&Path>) -> Program {
    let mut program = Program::new("git").env("GIT_TERMINAL_PROMPT", "0").env("GIT_CONFIG_NOSYSTEM", "1");
    if let Some(dir) = git_dir {
        // An explicit --git-dir is exempt from git's ownership check of discovered repositories.
        program = program.arg("--git-dir").arg(dir);
    }
    program
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    source: String,
    reference: String,
    commit: String,
    resolved: jiff::Timestamp,
}

/// Resolves a source to an exact state; asks the network only for a URL whose tag is not remembered.
pub fn resolve(
    what: &'static str,
    source: &str,
    reference: &str,
    offline: bool,
    cache: &Cache,
    ctx: &Ctx,
) -> Result<SourcePin, SourceError> {
    let pin =
        |source: String, reference: &str, commit: String| SourcePin { source, reference: reference.to_owned(), commit };
    let missing =
        || SourceError::NoReference { what, source_name: without_login(source), reference: reference.to_owned() };
    match kind_of(what, source)? {
        Kind::Tree(path) => Ok(pin(path.display().to_string(), "", tree_digest(&path)?)),
        Kind::GitDir(dir) => {
            let output = git(Some(&dir))
                .args(["rev-parse", "--verify", "--quiet", "--end-of-options"])
                .arg(format!("{reference}^{{commit}}"))
                .output(&ctx.interrupt);
            match output {
                Ok(output) => {
                    let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                    Ok(pin(dir.display().to_string(), reference, commit))
                }
                Err(ProcessError::Failed { status, .. }) if status.code() == Some(1) => Err(missing()),
                Err(source) => Err(SourceError::Git { what: format!("{what}: resolve `{reference}`"), source }),
            }
        }
        Kind::Url if is_commit(reference) => Ok(pin(source.to_owned(), reference, reference.to_owned())),
        Kind::Url => {
            let memory = cache
                .dir("spack")
                .join(format!("ref-{}.json", hex::encode(Sha256::digest(format!("{source}\0{reference}")))));
            if let Ok(bytes) = fs::read(&memory)
                && let Ok(known) = serde_json::from_slice::<Remembered>(&bytes)
            {
                return Ok(pin(known.source, reference, known.commit));
            }
            if offline {
                return Err(SourceError::Offline {
                    what,
                    source_name: without_login(source),
                    reference: reference.to_owned(),
                });
            }
            let commit = ls_remote(what, source, reference, ctx)?.ok_or_else(missing)?;
            let known = Remembered {
                source: source.to_owned(),
                reference: reference.to_owned(),
                commit: commit.clone(),
                resolved: jiff::Timestamp::now(),
            };
            let json = serde_json::to_vec_pretty(&known).map_err(io::Error::other)?;
            fsutil::write_atomic(&memory, &json, 0o644)?;
            Ok(pin(source.to_owned(), reference, commit))
        }
    }
}

/// Whether a source answers and has the reference; a folder that is there does.
pub fn reach(what: &'static str, source: &str, reference: &str, ctx: &Ctx) -> Result<bool, SourceError> {
    match kind_of(what, source)? {
        Kind::Tree(_) | Kind::GitDir(_) => Ok(true),
        // A commit has no name to ask for; that there is an answer is what counts.
        Kind::Url if is_commit(reference) => ls_remote(what, source, "HEAD", ctx).map(|_| true),
        Kind::Url => ls_remote(what, source, reference, ctx).map(|found| found.is_some()),
    }
}

fn ls_remote(what: &str, url: &str, reference: &str, ctx: &Ctx) -> Result<Option<String>, SourceError> {
    let names =
        [format!("refs/tags/{reference}^{{}}"), format!("refs/tags/{reference}"), format!("refs/heads/{reference}")];
    let output = git(None)
        .args(["ls-remote", "--", url])
        .args(&names)
        .output(&ctx.interrupt)
        .map_err(|source| SourceError::Git { what: format!("{what}: look up `{reference}`"), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = |name: &String| {
        text.lines().find_map(|line| line.split_once('\t').filter(|(_, n)| n == name).map(|(c, _)| c.to_owned()))
    };
    // A peeled tag names the commit; the tag object itself comes second.
    Ok(names.iter().find_map(found))
}

/// A source's tree in the cache.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
}

impl Tree {
    /// The folder on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Where the tree of a resolved source is in the cache, once it was fetched.
pub fn tree_dir(cache: &Cache, pin: &SourcePin) -> PathBuf {
    cache.dir("spack").join(format!("tree-{}", pin.commit))
}

/// The tree of a resolved source, from the cache or brought there now.
pub fn fetch(
    what: &'static str,
    pin: &SourcePin,
    offline: bool,
    cache: &Cache,
    ctx: &Ctx,
) -> Result<Tree, SourceError> {
    let path = tree_dir(cache, pin);
    let parent = fsutil::parent_of(&path);
    if path.is_dir() {
        return Ok(Tree { path });
    }
    let _lock = cache.lock(ctx, &format!("spack-{}", pin.commit), &format!("{what} at {}", pin.reference))?;
    if path.is_dir() {
        return Ok(Tree { path });
    }
    cache.sweep(parent)?;
    let staging = cache.staging(parent)?;
    let tree = staging.path().join("tree");
    fs::create_dir(&tree)?;
    match kind_of(what, &pin.source)? {
        Kind::Tree(source) => copy_tree(&source, &tree, ctx)?,
        Kind::GitDir(dir) => export(what, &dir, &pin.commit, &tree, ctx)?,
        Kind::Url if offline => {
            return Err(SourceError::Offline {
                what,
                source_name: without_login(&pin.source),
                reference: pin.reference.clone(),
            });
        }
        Kind::Url => {
            let bare = staging.path().join("bare");
            let failed = |source| SourceError::Git { what: format!("{what}: fetch `{}`", pin.reference), source };
            Program::new("git")
                .args(["init", "--quiet", "--bare"])
                .arg(&bare)
                .output(&ctx.interrupt)
                .map_err(failed)?;
            git(Some(&bare))
                .args(["fetch", "--quiet", "--depth", "1", "--", &pin.source, &pin.commit])
                .output(&ctx.interrupt)
                .map_err(failed)?;
            export(what, &bare, &pin.commit, &tree, ctx)?;
            fsutil::remove_tree(&bare)?;
        }
    }
    let committed = cache.staging(parent)?;
    // The entry is the tree alone; what else was needed goes with its own staging folder.
    fs::remove_dir(committed.path())?;
    fs::rename(&tree, committed.path())?;
    committed.commit(&path)?;
    Ok(Tree { path })
}

fn export(what: &str, git_dir: &Path, commit: &str, into: &Path, ctx: &Ctx) -> Result<(), SourceError> {
    git(Some(git_dir))
        .args(["archive", "--format=tar", commit])
        .run(&ctx.interrupt, |reader| {
            let mut archive = tar::Archive::new(io::BufReader::with_capacity(1 << 20, reader));
            archive.set_preserve_mtime(true);
            archive.unpack(into)?;
            // git waits until its last block is taken.
            io::copy(&mut archive.into_inner(), &mut io::sink()).map(|_| ())
        })
        .map_err(|source| SourceError::Git { what: format!("{what}: export {commit}"), source })
}

fn copy_tree(from: &Path, to: &Path, ctx: &Ctx) -> Result<(), SourceError> {
    for entry in walk(from) {
        ctx.check()?;
        let entry = entry?;
        let relative = entry.path().strip_prefix(from).map_err(io::Error::other)?;
        let target = to.join(relative);
        if entry.file_type().is_dir() {
            fs::create_dir_all(&target)?;
        } else if entry.file_type().is_symlink() {
            fs::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
        } else if entry.file_type().is_file() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

fn walk(root: &Path) -> impl Iterator<Item = io::Result<walkdir::DirEntry>> {
    walkdir::WalkDir::new(root)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|e| e.file_name() != "__pycache__" && e.file_name() != ".git")
        .map(|e| e.map_err(io::Error::from))
}

/// SHA-256 over names, kinds, executable bits and contents of a tree, `.git` and `__pycache__` left out.
pub fn tree_digest(root: &Path) -> io::Result<String> {
    let entries: Vec<_> = walk(root).collect::<io::Result<_>>()?;
    let sums = entries
        .par_iter()
        .map(|entry| -> io::Result<(Vec<u8>, Vec<u8>)> {
            let name = entry.path().strip_prefix(root).map_err(io::Error::other)?;
            let kind = entry.file_type();
            let content = if kind.is_symlink() {
                [b"link\0", fs::read_link(entry.path())?.as_os_str().as_bytes()].concat()
            } else if kind.is_file() {
                let executable = fs::metadata(entry.path())?.permissions().mode() & 0o100 != 0;
                let sum = Sha256::digest(fs::read(entry.path())?);
                [if executable { b"exec\0" as &[u8] } else { b"file\0" }, sum.as_slice()].concat()
            } else {
                b"dir\0".to_vec()
            };
            Ok((name.as_os_str().as_bytes().to_vec(), content))
        })
        .collect::<io::Result<Vec<_>>>()?;
    let mut hash = Sha256::new();
    for (name, content) in sums {
        for part in [name, content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(&part);
        }
    }
    Ok(hex::encode(hash.finalize()))
}

#[derive(Deserialize)]
struct RepoYaml {
    repo: RepoSection,
}

#[derive(Deserialize)]
struct RepoSection {
    namespace: String,
}

/// A site's recipe repository: the folder of its `repo.yaml`, or one above it that holds
/// `spack_repo/<namespace>/repo.yaml` (Spack's package API v2).
pub fn recipe_repo(path: &Path) -> Result<RepoPin, SourceError> {
    let refuse = |reason: String| SourceError::NotARepo { path: path.to_owned(), reason };
    let root = fs::canonicalize(path).map_err(|e| refuse(e.to_string()))?;
    let found =
        find_repo_yaml(&root).ok_or_else(|| refuse("no repo.yaml in it or in spack_repo/*/ below it".into()))?;
    let text = fs::read_to_string(&found)?;
    let yaml: RepoYaml = serde_yaml::from_str(&text).map_err(|e| refuse(format!("repo.yaml: {e}")))?;
    let folder = fsutil::parent_of(&found);
    Ok(RepoPin { path: folder.to_owned(), namespace: yaml.repo.namespace, digest: tree_digest(folder)? })
}

fn find_repo_yaml(root: &Path) -> Option<PathBuf> {
    let direct = root.join("repo.yaml");
    if direct.is_file() {
        return Some(direct);
    }
    let mut below: Vec<_> = fs::read_dir(root.join("spack_repo"))
        .ok()?
        .filter_map(|e| Some(e.ok()?.path().join("repo.yaml")))
        .filter(|p| p.is_file())
        .collect();
    below.sort();
    below.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Interrupt;

    fn repository(dir: &Path) -> PathBuf {
        let work = dir.join("w");
        fs::create_dir_all(work.join("bin")).unwrap();
        fs::write(work.join("bin/spack"), "#!/bin/sh\n").unwrap();
        let run = |args: &[&str]| {
            Program::new("git")
                .args(["-C", work.to_str().unwrap(), "-c", "user.name=t", "-c", "user.email=t@localhost"])
                .args(args)
                .output(&Interrupt::new())
                .unwrap()
        };
        run(&["init", "-q"]);
        run(&["add", "."]);
        run(&["commit", "-q", "-m", "x"]);
        run(&["tag", "-a", "v1.0.0", "-m", "x"]);
        work
    }

    #[test]
    fn a_tag_becomes_a_commit_and_its_tree() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        let ctx = Ctx::silent();
        let work = repository(dir.path());
        for source in [work.display().to_string(), format!("file://{}", work.display())] {
            let pin = resolve("Spack", &source, "v1.0.0", false, &cache, &ctx).unwrap();
            assert!(is_commit(&pin.commit), "{pin:?}");
            let tree = fetch("Spack", &pin, false, &cache, &ctx).unwrap();
            assert!(tree.path().join("bin/spack").is_file());
            fsutil::remove_tree(tree.path()).unwrap();
        }
        let error = resolve("Spack", work.to_str().unwrap(), "v9", false, &cache, &ctx).unwrap_err().to_string();
        assert!(error.contains("v9"), "{error}");
        let error = resolve("Spack", "nowhere", "v9", false, &cache, &ctx).unwrap_err().to_string();
        assert!(error.contains("nowhere"), "{error}");
    }

    #[test]
    fn offline_uses_what_is_remembered_and_names_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        let ctx = Ctx::silent();
        let url = format!("file://{}", repository(dir.path()).display());
        let error = resolve("Spack", &url, "v1.0.0", true, &cache, &ctx).unwrap_err().to_string();
        assert!(error.contains("--offline") && error.contains(&url), "{error}");
        let pin = resolve("Spack", &url, "v1.0.0", false, &cache, &ctx).unwrap();
        assert_eq!(resolve("Spack", &url, "v1.0.0", true, &cache, &ctx).unwrap(), pin);
        assert!(fetch("Spack", &pin, true, &cache, &ctx).is_err());
        fetch("Spack", &pin, false, &cache, &ctx).unwrap();
        fetch("Spack", &pin, true, &cache, &ctx).unwrap();
    }

    #[test]
    fn a_plain_tree_is_named_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("t");
        fs::create_dir_all(tree.join("a")).unwrap();
        fs::write(tree.join("a/f"), "1").unwrap();
        let before = tree_digest(&tree).unwrap();
        fs::create_dir_all(tree.join("a/__pycache__")).unwrap();
        assert_eq!(tree_digest(&tree).unwrap(), before);
        fs::write(tree.join("a/f"), "2").unwrap();
        assert_ne!(tree_digest(&tree).unwrap(), before);
    }

    #[test]
    fn a_recipe_repository_is_found_from_either_folder() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("spack_repo/site");
        fs::create_dir_all(&repo).unwrap();
        fs::write(repo.join("repo.yaml"), "repo:\n  namespace: site\n  api: v2.0\n").unwrap();
        for path in [repo.as_path(), dir.path()] {
            assert_eq!(recipe_repo(path).unwrap().namespace, "site");
        }
        assert!(recipe_repo(Path::new("/nonexistent")).is_err());
    }
}
