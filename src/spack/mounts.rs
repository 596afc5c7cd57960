//! The build sandbox as data: what is mounted where, and the environment, whole. Nothing of it need be there yet, so that
//! `plan --json` shows what a build will do.

use super::{SOURCE_CACHE, index, own_repo, render, source};
use crate::cache::Cache;
use crate::plan::{self, BuildPlan, HostAccess, inside};
use crate::sandbox::{Access, Network, Spec};
use std::path::Path;

/// The sandbox in which packages are built, of that in which Spack works: without a network unless the plan says so, and with
/// sources that are only read. All of them are fetched before, so that a recipe cannot put something into the cache that another build
/// takes for an archive.
pub fn building(plan: &BuildPlan, mut spec: Spec) -> Spec {
    if plan.execution.network != plan::Network::Host {
        spec.network = Network::None;
    }
    let cached = spec.mounts.iter_mut().filter(|mount| mount.target == Path::new(inside::SOURCE_CACHE));
    cached.for_each(|mount| mount.access = Access::ReadOnly);
    spec
}

/// The sandbox in which Spack works, in `rootfs`, with `slot` to write to.
pub fn sandbox(plan: &BuildPlan, rootfs: &Path, slot: &Path, host: &HostAccess, cache: &Cache) -> Spec {
    let (identity, execution) = (&plan.identity, &plan.execution);
    let mut spec = Spec::build(rootfs)
        .mount(slot, inside::ROOT, Access::ReadWrite)
        .mount(source::tree_dir(cache, &identity.spack), inside::SPACK, Access::ReadOnly)
        .mount(source::tree_dir(cache, &identity.spack_packages), inside::PACKAGES, Access::ReadOnly)
        .mount(own_repo::dir(cache, &identity.own_repo_digest), inside::OWN_REPO, Access::ReadOnly)
        .mount(cache.dir(SOURCE_CACHE), inside::SOURCE_CACHE, Access::ReadWrite);
    for (index, repo) in execution.repos.iter().enumerate() {
        spec = spec.mount(&repo.path, render::overlay_repo_dir(index, &repo.namespace), Access::ReadOnly);
    }
    for (index, mirror) in execution.source_mirrors.iter().enumerate().filter(|(_, m)| !m.contains("://")) {
        spec = spec.mount(mirror, format!("{}/{index}", inside::MIRRORS), Access::ReadOnly);
    }
    let variables = [
        ("HOME", inside::HOME.to_owned()),
        ("SPACK_DISABLE_LOCAL_CONFIG", "1".to_owned()),
        ("SPACK_USER_CACHE_PATH", inside::USER.to_owned()),
        ("SPACK_GNUPGHOME", inside::GNUPG.to_owned()),
        ("SPACK_PYTHON", "/usr/bin/python3".to_owned()),
        // Spack's own tree is read-only; compiled Python is kept here and makes each later call faster.
        ("PYTHONPYCACHEPREFIX", index::python_inside(identity)),
        // Spack folds what the compiler said to the width of a terminal.
        ("COLUMNS", "200".to_owned()),
        // Spack forks while it prints; through a buffer its lines would come out of order.
        ("PYTHONUNBUFFERED", "1".to_owned()),
    ];
    for (name, value) in variables {
        spec = spec.env(name, value);
    }
    // pip works when the rootfs is prepared; its addresses may hold a password and are not for recipes to see.
    for (name, value) in host.env.iter().filter(|(name, _)| !name.starts_with("PIP_")) {
        spec = spec.env(name, value);
    }
    if let Some(bundle) = &host.ca_bundle {
        spec = spec.ca_bundle(bundle);
    }
    spec.network = match execution.network {
        plan::Network::Host | plan::Network::FetchOnly => Network::Host,
        plan::Network::None => Network::None,
    };
    spec.shm_size = execution.shm_size;
    spec.cpus = usize::try_from(execution.cpus).ok().filter(|n| *n > 0);
    spec.cwd = inside::ROOT.into();
    spec.host_names()
}
