//! The whole build, read from top to bottom.
//!
//! Each stage takes the proof that the one before happened and returns its own:
//!
//! ```text
//! Resolved -> PulledImage -> Rootfs -> Compiler -> Installed -> Relocated -> Package + Signed -> Findings
//! ```
//!
//! Every stage keeps its result in the cache, whole or not at all: a run that was cut goes on from the last one finished.

use crate::cache::{Cache, CacheError};
use crate::config::Settings;
use crate::image::{self, ImageError};
use crate::oldest::Oldest;
use crate::package::{Package, PackageError, PackageName};
use crate::relocate::verify::Findings;
use crate::relocate::{self, RelocateError, Relocated, Rules};
use crate::report::{Ctx, Interrupted, Stage};
use crate::resolve::{self, Flags, Lookup, ResolveError, Resolved};
use crate::rootfs::{self, PrepareError, Rootfs};
use crate::sandbox::Sandbox;
use crate::sign::SigningKey;
use crate::spack::{Installed, SpackError};
use crate::workflows::compiler::{self, Bench};
use crate::workflows::packing::Packing;
use crate::workflows::publish::{self, PublishError};
use crate::workflows::{compiler_package, components, finished, payload, verify};
use std::io;
use std::path::{Path, PathBuf};

/// Why a build did not end with a package.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant is a stage's error, documented there
pub enum BuildError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Spack(#[from] SpackError),
    #[error(transparent)]
    Relocate(#[from] RelocateError),
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error(transparent)]
    Verify(#[from] verify::VerifyError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Compiler(#[from] compiler_package::TreeError),
    #[error("build: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The tree is not fit to be moved; nothing was packaged.
    #[error("the relocated tree is not fit: {} problems\n  {}", findings.problems.len(), verify::list(findings))]
    Unfit {
        /// What is wrong with it.
        findings: Box<Findings>,
    },
}

/// A finished package and how it came to be.
pub struct Built {
    /// The package.
    pub package: Package,
    /// True when it was found and not made.
    pub cached: bool,
}

/// Opens the key that signs, and asks for its passphrase where somebody can answer. `None` when one is still to be made.
pub type Key<'a> = &'a dyn Fn() -> Result<Option<SigningKey>, ResolveError>;

/// Builds what was asked, or finds it. What `key` opens signs; without one the cache's own is made. `oldest` is the system on
/// which it must run, whatever image stands for the toolchain: else nothing is packed or published.
pub fn build(
    settings: &Settings,
    flags: Flags,
    oldest: Option<&Oldest>,
    cache: &Cache,
    lookup: Lookup<'_>,
    key: Key<'_>,
    ctx: &Ctx,
) -> Result<Built, BuildError> {
    // What costs nothing to find out comes first: a wrong name, a key that does not sign, a host on which nothing can be built.
    resolve::check(settings, flags, cache, lookup, ctx)?;
    let key = key()?;
    let target = publish::planned(settings, flags, key.as_ref(), lookup, false, ctx)?;
    let sandbox = resolve::sandbox(settings, ctx)?;
    let spacks = resolve::layered(sandbox.clone(), settings, cache, lookup)?;
    let resolved = resolve::resolve(settings, flags, cache, lookup, ctx)?;
    let plan = &resolved.plan;
    let _lock = cache.lock(ctx, &format!("plan-{}", plan.digest.short()), "the same build")?;
    let key = key.map_or_else(|| resolve::make_key(cache, lookup, ctx), Ok)?;
    // The packages of Spack are those of an install tree, which a finished package does not have.
    if resolved.request.use_cache
        && !publish::wants_packages(target.as_ref())
        && let Some(built) = finished::find(cache, plan, oldest, &key, ctx)?
    {
        publish::finish(target, &built.package, ctx)?;
        return Ok(built);
    }
    ctx.note(format!("sandbox: {}", spacks.why()));
    sandbox.limits().iter().for_each(|limit| ctx.note(format!("limit: {limit}")));
    let rootfs = prepared_rootfs(&resolved, cache, &sandbox, ctx)?;
    let bench = Bench { resolved: &resolved, rootfs: &rootfs, cache, sandbox: &spacks, key: &key };
    let gcc = compiler::of(&bench, ctx)?;
    let installed = compiler::packages(&bench, plan, &gcc, ctx)?;
    let staging = cache.staging(&resolved.build_dir.join("staged"))?;
    let nothing_more = |_: &Path| Ok(());
    let (relocated, findings) = relocated(&resolved.rules, oldest, &installed, staging.path(), &nothing_more, ctx)?;
    let name = PackageName { version: plan.identity.slurm_version.clone(), compiler: gcc.version };
    let packages = components::components(plan, &installed, relocated.tree(), cache, ctx)?;
    let facts = payload::facts(plan, &name.compiler, &installed, relocated.report(), &findings, packages);
    let beside = payload::contents(&name, &facts, &installed)?;
    let dir = finished::builds_dir(cache);
    let packing = Packing { plan, dir: &dir, name: &name, rules: &resolved.rules, key: &key, cache };
    let package = packing.packed(&relocated, facts, beside, ctx)?;
    publish::packages(target.as_ref(), &name, &installed, &key, cache, ctx)?;
    publish::finish(target, &package, ctx)?;
    Ok(Built { package, cached: false })
}

/// The base image with the build tools in it.
pub fn prepared_rootfs(resolved: &Resolved, cache: &Cache, sandbox: &Sandbox, ctx: &Ctx) -> Result<Rootfs, BuildError> {
    let recipe = resolved.rootfs_recipe(sandbox.ids());
    if let Some(rootfs) = Rootfs::open(cache, &recipe.id()) {
        ctx.stage(Stage::Rootfs, recipe.toolchain).cached(format!(
            "{} with GCC {}",
            recipe.toolchain,
            rootfs.meta().gcc
        ));
        return Ok(rootfs);
    }
    if let Some(rootfs) = rootfs::restore(&recipe.id(), resolved.image.platform(), cache, ctx)? {
        return Ok(rootfs);
    }
    if resolved.request.offline {
        return Err(PrepareError::Offline { toolchain: recipe.toolchain.to_owned() }.into());
    }
    rootfs::prepare(&recipe, cache, sandbox, &resolved.host, ctx, || {
        Ok(image::begin(&resolved.image, cache, &resolved.client, resolved.request.offline, ctx)?)
    })
}

/// A copy of the view that runs from any folder, looked at before anything is packed. `complete` adds what no package brought.
pub fn relocated(
    rules: &Rules,
    oldest: Option<&Oldest>,
    installed: &Installed,
    staging: &Path,
    complete: &dyn Fn(&Path) -> Result<(), BuildError>,
    ctx: &Ctx,
) -> Result<(Relocated, Findings), BuildError> {
    let timer = ctx.stage(Stage::Relocate, "the view");
    let origin = relocate::Origin::of_slot(installed.slot(), installed.view_inside());
    let relocated = relocate::relocate(&origin, rules, &staging.join("view"), ctx)?;
    complete(relocated.tree())?;
    let mut findings = verify::files(relocated.tree(), rules, ctx)?;
    verify::hold_to(&mut findings, oldest);
    if !findings.problems.is_empty() {
        return Err(BuildError::Unfit { findings: Box::new(findings) });
    }
    timer.done(relocated.report().summary());
    Ok((relocated, findings))
}

/// What `build` would do: everything is looked up, nothing is made.
pub fn plan(
    settings: &Settings,
    flags: Flags,
    cache: &Cache,
    lookup: Lookup<'_>,
    key: Key<'_>,
    ctx: &Ctx,
) -> Result<(Resolved, Option<PathBuf>), BuildError> {
    resolve::check(settings, flags, cache, lookup, ctx)?;
    let key = key()?;
    publish::planned(settings, flags, key.as_ref(), lookup, true, ctx)?;
    let resolved = resolve::resolve(settings, flags, cache, lookup, ctx)?;
    let there = finished::recall(cache, &resolved.plan).filter(|path| path.exists());
    Ok((resolved, there))
}
