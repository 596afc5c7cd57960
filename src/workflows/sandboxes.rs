//! The sandboxes of a build before there is one: each an ordered list of operations, planned without privilege, for
//! `plan --json`. As `shell --print` shows the one of the last build.

use crate::cache::Cache;
use crate::config::Settings;
use crate::resolve::{self, Lookup, ResolveError, Resolved};
use crate::sandbox::{IdMap, Namespace, Op, Plan, SandboxError};
use crate::{rootfs, spack};
use serde::Serialize;

/// The sandboxes of a build.
#[derive(Debug, Serialize)]
pub struct Sandboxes {
    /// In which packages are installed into the rootfs.
    pub prepare: Planned,
    /// In which packages are built.
    pub build: Planned,
}

/// A sandbox's plan. Of the environment only the names are shown: proxies hold passwords.
#[derive(Debug, Serialize)]
pub struct Planned {
    namespaces: Vec<Namespace>,
    uids: Vec<IdMap>,
    gids: Vec<IdMap>,
    operations: Vec<Op>,
    environment: Vec<String>,
}

impl From<Plan> for Planned {
    fn from(plan: Plan) -> Self {
        let environment = plan.env.iter().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        Self { namespaces: plan.namespaces, uids: plan.uids, gids: plan.gids, operations: plan.ops, environment }
    }
}

/// What will be done for them by our own namespaces; podman is given the same mounts.
pub fn planned(
    settings: &Settings,
    resolved: &Resolved,
    cache: &Cache,
    lookup: Lookup<'_>,
) -> Result<Sandboxes, ResolveError> {
    let sandbox = resolve::untried(settings)?;
    let recipe = resolved.rootfs_recipe(sandbox.ids());
    let root = cache.dir("rootfs").join(recipe.id()).join("root");
    let slot = spack::slot_dir(&resolved.build_dir, &recipe.id(), &resolved.plan);
    let prepare = rootfs::prepare_sandbox(&recipe, cache, &resolved.host);
    let prepare = sandbox.plan(&prepare).map_err(SandboxError::from)?.into();
    let build = spack::sandbox(&resolved.plan, &root, &slot, &resolved.host, cache);
    let build = spack::building(&resolved.plan, build);
    let layered = resolve::layered(sandbox, settings, cache, lookup)?;
    Ok(Sandboxes { prepare, build: layered.plan(&build).map_err(SandboxError::from)?.into() })
}
