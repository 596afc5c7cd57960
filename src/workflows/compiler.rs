//! The GCC that compiles: the rootfs's own, or one that Spack builds with it, and the verb that makes such a GCC for later builds.
//!
//! Spack's part of a build is here too ([`packages`]): a compiler and a Slurm are both an environment in the same store, made from
//! binary caches as far as those have it, and kept in the cache's own for the next.

use crate::cache::Cache;
use crate::catalog::Catalog;
use crate::config::Settings;
use crate::oldest::Oldest;
use crate::package::Package;
use crate::pipeline::{self, BuildError, Key};
use crate::plan::{BuildPlan, PlanError, compiler};
use crate::report::Ctx;
use crate::resolve::{self, Flags, Lookup, ResolveError, Resolved};
use crate::rootfs::Rootfs;
use crate::sandbox::Sandbox;
use crate::sign::SigningKey;
use crate::spack::{self, Compiler, External, Installed};
use crate::workflows::publish as published;
use crate::workflows::{buildcache, compiler_package};

/// What Spack's part of a build works with, beside plan and compiler.
pub struct Bench<'a> {
    /// What was looked up.
    pub resolved: &'a Resolved,
    /// The prepared rootfs.
    pub rootfs: &'a Rootfs,
    /// The cache.
    pub cache: &'a Cache,
    /// The build sandbox.
    pub sandbox: &'a Sandbox,
    /// The key that signs what is kept.
    pub key: &'a SigningKey,
}

/// What a plan asks Spack for, and everything below it, installed in the build sandbox.
pub fn packages(bench: &Bench<'_>, plan: &BuildPlan, gcc: &Compiler, ctx: &Ctx) -> Result<Installed, BuildError> {
    Ok(environment(bench, plan, gcc, ctx)?.0)
}

/// The same, and whether the cache's own binary cache has it now.
fn environment(
    bench: &Bench<'_>,
    plan: &BuildPlan,
    gcc: &Compiler,
    ctx: &Ctx,
) -> Result<(Installed, bool), BuildError> {
    let Bench { resolved, rootfs, cache, sandbox, key } = bench;
    let externals = External::found(&resolved.probes, &rootfs.meta().versions);
    let session = spack::Session {
        plan,
        rootfs: rootfs.root(),
        rootfs_id: rootfs.id(),
        gcc,
        externals: &externals,
        build_dir: &resolved.build_dir,
        host: &resolved.host,
        cache,
        sandbox,
        binaries: &|missing| buildcache::binaries(cache, key, &resolved.mirrors, missing, ctx),
    };
    let installed = session.install(ctx)?;
    let kept = buildcache::keep(&installed, key, cache, ctx)?;
    Ok((installed, kept))
}

/// The GCC that compiles: the rootfs's own, or the one that the plan names, out of the store, a binary cache, or built now.
pub fn of(bench: &Bench<'_>, ctx: &Ctx) -> Result<Compiler, BuildError> {
    let own = Compiler::of_rootfs(&bench.rootfs.meta().gcc);
    if let Some((installed, _)) = install(bench, &own, ctx)? {
        return named(&installed);
    }
    ctx.note(format!("compiler: GCC {}, the toolchain's own", own.version));
    Ok(own)
}

fn install(bench: &Bench<'_>, own: &Compiler, ctx: &Ctx) -> Result<Option<(Installed, bool)>, BuildError> {
    let Some(plan) = bench.resolved.plan.compiler().map_err(ResolveError::from)? else { return Ok(None) };
    ctx.note(format!("compiler: {}, compiled with the toolchain's GCC {}", plan.identity.spec, own.version));
    Ok(Some(environment(bench, &plan, &own.clone().that_builds_gcc(), ctx)?))
}

fn named(installed: &Installed) -> Result<Compiler, BuildError> {
    Compiler::installed(installed).ok_or_else(|| {
        let text = format!("`{}` names no gcc as a root", installed.lock_file().display());
        BuildError::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, text))
    })
}

/// A GCC that `build-compiler` made or found.
pub struct Made {
    /// Its exact version.
    pub version: String,
    /// Whether the cache's own binary cache has it; else it is in the store of this build folder alone.
    pub kept: bool,
    /// glibc of the toolchain: what is compiled with it may come to need that, and so does GCC itself.
    pub glibc: String,
    /// Its package, when that was asked for.
    pub package: Option<Package>,
}

/// What `build-compiler` is asked for beside the packages of Spack.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Its own package.
    pub package: bool,
    /// The system on which it must run.
    pub oldest: Option<Oldest>,
}

/// Makes the GCC that was asked for, for the builds to come: into the cache's own binary cache, and where it is to be published.
pub fn build(
    settings: &Settings,
    flags: Flags,
    wanted: &Wanted,
    cache: &Cache,
    lookup: Lookup<'_>,
    key: Key<'_>,
    ctx: &Ctx,
) -> Result<Made, BuildError> {
    check(settings, flags)?;
    resolve::check(settings, flags, cache, lookup, ctx)?;
    let key = key()?;
    let target = published::planned(settings, flags, key.as_ref(), lookup, false, ctx)?;
    let sandbox = resolve::sandbox(settings, ctx)?;
    let spacks = resolve::layered(sandbox.clone(), settings, cache, lookup)?;
    let resolved = resolve::resolve(settings, flags, cache, lookup, ctx)?;
    let key = key.map_or_else(|| resolve::make_key(cache, lookup, ctx), Ok)?;
    let rootfs = pipeline::prepared_rootfs(&resolved, cache, &sandbox, ctx)?;
    let bench = Bench { resolved: &resolved, rootfs: &rootfs, cache, sandbox: &spacks, key: &key };
    let own = Compiler::of_rootfs(&rootfs.meta().gcc);
    let toolchain = &resolved.plan.identity.toolchain;
    let (installed, kept) =
        install(&bench, &own, ctx)?.ok_or_else(|| not_built(&own.version, &own.version, &toolchain.name))?;
    let gcc = named(&installed)?;
    let oldest = wanted.oldest.as_ref();
    let package = if wanted.package {
        compiler_package::pack(&bench, &gcc, &own.version, &installed, oldest, ctx)?
    } else {
        None
    };
    published::compiler(target.as_ref(), &gcc.version, &installed, &key, cache, ctx)?;
    if let Some(package) = &package {
        published::finish(target, package, ctx)?;
    }
    Ok(Made { version: gcc.version, kept, glibc: rootfs.meta().glibc.clone(), package })
}

/// What `build-compiler` would do: everything is looked up, nothing is made.
pub fn plan(
    settings: &Settings,
    flags: Flags,
    cache: &Cache,
    lookup: Lookup<'_>,
    key: Key<'_>,
    ctx: &Ctx,
) -> Result<Resolved, BuildError> {
    check(settings, flags)?;
    Ok(pipeline::plan(settings, flags, cache, lookup, key, ctx)?.0)
}

/// Refuses what is not built.
fn check(settings: &Settings, flags: Flags) -> Result<(), BuildError> {
    let catalog = Catalog::embedded().map_err(ResolveError::from)?.with(settings.catalog.clone());
    let request = resolve::request(settings, flags, &catalog)?;
    let toolchain = catalog.toolchain(&request.toolchain).map_err(ResolveError::from)?;
    let chosen = compiler::choose(&request.compiler_version, !flags.no_bootstrap, &catalog, &toolchain);
    match chosen.map_err(ResolveError::from)? {
        Some(_) => Ok(()),
        None => Err(not_built(&request.compiler_version, &toolchain.gcc, &toolchain.name)),
    }
}

/// The toolchain's own GCC is there, and nothing is to be built.
fn not_built(asked: &str, gcc: &str, toolchain: &str) -> BuildError {
    let text = format!(
        "build-compiler: `{asked}` is the GCC {gcc} of toolchain {toolchain}, which is there and is not built; name another with \
         --compiler-version (`slurm-factory build-compiler --list` shows them)"
    );
    ResolveError::from(PlanError::Conflict(text)).into()
}
