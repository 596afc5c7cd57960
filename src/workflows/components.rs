//! What is said about each Spack package in a finished one: licence and source, from the recipe that it was built with,
//! and its size before and after pruning.

use crate::cache::Cache;
use crate::package::layout;
use crate::package::manifest::{self, Size, SourceArchive};
use crate::plan::BuildPlan;
use crate::report::Ctx;
use crate::spack::{Installed, LockedPackage, recipe};
use crate::workflows::payload::without_credentials;
use fs_err as fs;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Every package that Spack built. `tree` is the relocated copy of the view.
pub fn components(
    plan: &BuildPlan,
    installed: &Installed,
    tree: &Path,
    cache: &Cache,
    ctx: &Ctx,
) -> io::Result<Vec<manifest::Installed>> {
    let prefixes = prefixes(&installed.install_tree())?;
    let builtin = recipe::builtin_dir(cache, &plan.identity.spack_packages);
    let mut claimed = HashSet::new();
    let mut components = Vec::new();
    for package in installed.packages().iter().filter(|p| !p.external) {
        ctx.check().map_err(io::Error::other)?;
        let prefix = prefixes.get(&package.hash);
        let said = match prefix {
            Some(prefix) => recipe::of(prefix, package, &builtin)?,
            None => recipe::Recipe::default(),
        };
        let source = if package.root && package.name == layout::MODULE_NAME {
            // Slurm itself: our recipe takes it from the catalog, and so do we.
            let release = &plan.identity.release;
            Some(SourceArchive { url: public(&release.url), sha256: Some(release.sha256.clone()), commit: None })
        } else if said.sha256.is_some() || said.commit.is_some() {
            let url = said.url.as_deref().and_then(public);
            Some(SourceArchive { url, sha256: said.sha256, commit: said.commit })
        } else {
            None
        };
        let size = prefix.map(|prefix| size(prefix, tree, &mut claimed)).transpose()?;
        components.push(manifest::Installed { source, size, license: said.license, ..component(package) });
    }
    Ok(components)
}

fn component(package: &LockedPackage) -> manifest::Installed {
    manifest::Installed {
        name: package.name.clone(),
        version: package.version.clone(),
        hash: package.hash.clone(),
        namespace: package.namespace.clone(),
        build_only: !package.needed,
        dependencies: package.dependencies.clone(),
        ..manifest::Installed::default()
    }
}

/// An address that means something to others, without credentials: a path on the builder's disk does not.
fn public(url: &str) -> Option<String> {
    let elsewhere = url.contains("://") && !url.starts_with("file:");
    elsewhere.then(|| without_credentials(url))
}

/// The store's folders by DAG hash: `NAME-VERSION-HASH`.
fn prefixes(store: &Path) -> io::Result<HashMap<String, PathBuf>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        if let Some((_, hash)) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.rsplit_once('-'))
        {
            found.insert(hash.to_owned(), path);
        }
    }
    Ok(found)
}

/// A file that two packages have in one place of the view counts for the first.
fn size(prefix: &Path, tree: &Path, claimed: &mut HashSet<PathBuf>) -> io::Result<Size> {
    let mut size = Size::default();
    let (mut inodes, mut kept_inodes) = (HashSet::new(), HashSet::new());
    let own = |entry: &walkdir::DirEntry| entry.depth() != 1 || entry.file_name() != ".spack";
    for entry in walkdir::WalkDir::new(prefix).into_iter().filter_entry(own) {
        let entry = entry.map_err(io::Error::from)?;
        if !entry.file_type().is_file() {
            continue;
        }
        let metadata = fs::symlink_metadata(entry.path())?;
        size.installed += if inodes.insert(metadata.ino()) { metadata.len() } else { 0 };
        let below = entry.path().strip_prefix(prefix).map_err(io::Error::other)?;
        if let Ok(kept) = fs::symlink_metadata(tree.join(below))
            && kept.is_file()
            && claimed.insert(below.to_owned())
            // Of the names of one file, whichever of them was kept.
            && kept_inodes.insert(metadata.ino())
        {
            size.packaged += kept.len();
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_counted_once_and_pruned_files_are_not_in_the_package() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, tree] = ["a", "b", "tree"].map(|name| dir.path().join(name));
        for (path, length) in [
            (a.join("lib/x.so"), 100),
            (a.join("lib/x.a"), 1000),
            (a.join(".spack/spec.json"), 9999),
            (b.join("lib/x.so"), 70),
            (b.join("bin/y"), 5),
            (tree.join("lib/x.so"), 80),
            (tree.join("bin/y"), 5),
        ] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; length]).unwrap();
        }
        fs::hard_link(a.join("lib/x.so"), a.join("lib/x.so.1")).unwrap();
        // Of two names of one file only one is kept: whichever the folder gives first, it counts.
        for (left_out, kept) in [("share/a", "share/z"), ("share/y", "share/b")] {
            fs::create_dir_all(a.join("share")).unwrap();
            fs::create_dir_all(tree.join("share")).unwrap();
            fs::write(a.join(left_out), [0; 7]).unwrap();
            fs::hard_link(a.join(left_out), a.join(kept)).unwrap();
            fs::write(tree.join(kept), [0; 7]).unwrap();
        }
        let mut claimed = HashSet::new();
        assert_eq!(size(&a, &tree, &mut claimed).unwrap(), Size { installed: 1114, packaged: 94 });
        assert_eq!(size(&b, &tree, &mut claimed).unwrap(), Size { installed: 75, packaged: 5 });
    }

    #[test]
    fn no_path_of_the_builder_is_published() {
        assert_eq!(public("file:///home/me/x.tar.gz"), None);
        assert_eq!(public("https://me:pw@host/x.tar.gz").as_deref(), Some("https://host/x.tar.gz"));
    }
}
