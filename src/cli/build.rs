//! `build` and `plan`.

use super::args::{BuildArgs, Global, PlanArgs, SlurmArgs, WhatArgs};
use super::signer::signing_key;
use super::{catalog, exit, features, open_cache, print, print_json, settings, variable};
use crate::catalog::Catalog;
use crate::config::Settings;
use crate::oldest::Oldest;
use crate::package::{layout, modulefile};
use crate::pipeline;
use crate::plan::{BuildPlan, Execution, Publish};
use crate::report::Ctx;
use crate::resolve::{self, Flags};
use crate::secret::without_login;
use crate::workflows::sandboxes::{self, Sandboxes};
use anyhow::Result;
use humansize::{BINARY, format_size};
use serde::Serialize;
use std::fmt::Write as _;
use std::process::ExitCode;

/// The settings that flags make.
fn flag_settings(slurm: &SlurmArgs, args: &WhatArgs) -> Settings {
    let list = |values: &Vec<String>| (!values.is_empty()).then(|| values.clone());
    let settings = Settings {
        build_dir: args.build_dir.clone(),
        slurm_version: slurm.slurm_version.clone(),
        compiler_version: args.compiler_version.clone(),
        toolchain: args.toolchain.clone(),
        target: args.target.clone(),
        image: args.image.clone(),
        apt_mirror: args.apt_mirror.clone(),
        apt_sources: args.apt_sources.clone(),
        apt_snapshot: args.apt_snapshot.clone(),
        dnf_mirror: args.dnf_mirror.clone(),
        dnf_repos: args.dnf_repos.clone(),
        pip_index: args.pip_index.clone(),
        backend: args.backend.clone(),
        jobs: args.jobs,
        cpus: args.cpus,
        memory: args.memory.clone(),
        shm_size: args.shm_size.clone(),
        disk: args.disk.clone(),
        nice: args.nice,
        network: args.network.clone(),
        compression: args.compression.clone(),
        key: args.key.key.clone(),
        spack_source: args.spack_source.clone(),
        spack_reference: args.spack_reference.clone(),
        spack_packages: args.spack_packages.clone(),
        spack_packages_reference: args.spack_packages_reference.clone(),
        spack_repos: (!args.spack_repos.is_empty()).then(|| args.spack_repos.clone()),
        source_mirrors: list(&args.source_mirrors),
        binary_mirrors: list(&args.binary_mirrors),
        ..args.modes.settings()
    };
    slurm.features.over(args.store.over(settings))
}

fn flags(slurm: &SlurmArgs, args: &WhatArgs, no_cache: bool) -> Result<Flags> {
    let publish = match args.publish.as_deref() {
        None => None,
        Some("none") => Some(Publish::None),
        Some("slurm-only") => Some(Publish::SlurmOnly),
        Some("compiler-only") => Some(Publish::CompilerOnly),
        Some("all") => Some(Publish::All),
        Some(other) => {
            let text = format!("--publish: `{other}` is not one of none, slurm-only, compiler-only, all");
            return Err(exit::Usage(text).into());
        }
    };
    if args.store.to.is_some() && matches!(publish, None | Some(Publish::None)) {
        let text =
            "--to says where to publish to, and nothing is published without --publish slurm-only or --publish all";
        return Err(exit::Usage(text.into()).into());
    }
    Ok(Flags {
        gpu: slurm.gpu,
        minimal: slurm.minimal,
        offline: args.offline,
        no_cache,
        no_bootstrap: args.compiler.no_bootstrap,
        publish,
    })
}

/// The system that the package is for, when the toolchain can do it.
fn oldest(args: &WhatArgs, settings: &Settings) -> Result<Option<Oldest>> {
    let Some(asked) = &args.oldest else { return Ok(None) };
    let catalog = catalog(settings)?;
    let usage = |error: &dyn std::fmt::Display| exit::Usage(format!("--for: {error}"));
    let oldest = Oldest::parse(asked, &catalog).map_err(|e| usage(&e))?;
    let toolchain = resolve::toolchain(settings, &catalog).map_err(|e| usage(&e))?;
    oldest.check(&toolchain, &catalog).map_err(|e| usage(&e))?;
    Ok(Some(oldest))
}

/// What the verbs that build have in common.
pub struct Shared {
    /// All layers of configuration, flags on top.
    pub settings: Settings,
    /// What holds for this run.
    pub flags: Flags,
    /// The system that the result is for.
    pub oldest: Option<Oldest>,
}

/// Settings and flags; a toolchain that is too new for `--for` is refused.
pub fn shared(global: &Global, slurm: &SlurmArgs, args: &WhatArgs, no_cache: bool) -> Result<Shared> {
    let settings = settings(global, flag_settings(slurm, args))?;
    let flags = flags(slurm, args, no_cache)?;
    let oldest = oldest(args, &settings)?;
    Ok(Shared { settings, flags, oldest })
}

/// A build of Slurm makes no package of a compiler.
fn of_slurm(shared: Shared) -> Result<Shared> {
    if shared.flags.publish == Some(Publish::CompilerOnly) {
        let text = "--publish compiler-only is for `build-compiler --package`; a build of Slurm has slurm-only and all";
        return Err(exit::Usage(text.into()).into());
    }
    Ok(shared)
}

/// `build`
pub fn build(global: &Global, args: &BuildArgs, ctx: &Ctx) -> Result<ExitCode> {
    let Shared { settings, flags, oldest } = of_slurm(shared(global, &args.slurm, &args.what, args.no_cache)?)?;
    let (cache, _lock) = open_cache(&settings, ctx)?;
    let source = args.what.key.source()?;
    let key = || signing_key(&settings, &source, &cache, ctx);
    if args.dry_run {
        let (resolved, there) = pipeline::plan(&settings, flags, &cache, &variable, &key, ctx)?;
        ctx.reporter.finish();
        print(&describe(&resolved.plan, there.as_deref(), &catalog(&settings)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    let built = pipeline::build(&settings, flags, oldest.as_ref(), &cache, &variable, &key, ctx)?;
    ctx.reporter.finish();
    let floor = built.package.manifest().facts.glibc.as_ref();
    let glibc = floor.map_or_else(|| "any".to_owned(), |f| f.version.clone());
    let how = match built.package.manifest().facts.filled_in().len() {
        0 => " or unpack it anywhere".to_owned(),
        files => format!(", which fills in its folder where nothing else will do ({files} of its files)"),
    };
    ctx.note(format!("runs where glibc is {glibc} or newer; install with `slurm-factory install`{how}"));
    if args.enable_hierarchy {
        let load = modulefile::load_in_hierarchy(&built.package.manifest().facts);
        ctx.note(format!("in a hierarchy: `module use FOLDER/{}`, `{load}`", layout::CORE));
    }
    ctx.reporter.finish();
    print(&format!("{}\n", built.package.path().display()))?;
    Ok(ExitCode::SUCCESS)
}

/// What `plan --json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    plan: &'a BuildPlan,
    sandboxes: Sandboxes,
}

/// `plan`
pub fn plan(global: &Global, args: &PlanArgs, ctx: &Ctx) -> Result<ExitCode> {
    let Shared { settings, flags, .. } = of_slurm(shared(global, &args.slurm, &args.what, false)?)?;
    let (cache, _lock) = open_cache(&settings, ctx)?;
    let source = args.what.key.source()?;
    let key = || signing_key(&settings, &source, &cache, ctx);
    let (resolved, there) = pipeline::plan(&settings, flags, &cache, &variable, &key, ctx)?;
    ctx.reporter.finish();
    if args.json {
        let sandboxes = sandboxes::planned(&settings, &resolved, &cache, &variable)?;
        print_json(&Shown { plan: &resolved.plan, sandboxes })?;
    } else {
        print(&describe(&resolved.plan, there.as_deref(), &catalog(&settings)?))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn limits(execution: &Execution) -> String {
    let size = |name: &str, bytes: u64| match bytes {
        0 => format!("all {name}"),
        bytes => format!("{} of {name}", format_size(bytes, BINARY)),
    };
    let nice = if execution.nice > 0 { format!(", nice {}", execution.nice) } else { String::new() };
    format!(
        "{}, {}, {}{nice}",
        size("memory", execution.memory),
        size("shared memory", execution.shm_size),
        size("disk", execution.disk)
    )
}

/// What `build-compiler` would do.
pub fn describe_compiler(plan: &BuildPlan, catalog: &Catalog) -> String {
    const ABOUT_SLURM: [&str; 6] = ["plan", "slurm", "spec", "beside", "features", "result"];
    table(rows(plan, None, catalog).into_iter().filter(|(name, _)| !ABOUT_SLURM.contains(name)))
}

fn describe(plan: &BuildPlan, there: Option<&std::path::Path>, catalog: &Catalog) -> String {
    table(rows(plan, there, catalog))
}

fn table(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut text = String::new();
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:>10}  {value}");
    }
    text
}

/// Where packages that are built already are looked for, first to last.
fn binaries(mirrors: &[String]) -> String {
    let mirrors = mirrors.iter().map(|mirror| without_login(mirror));
    std::iter::once("the cache's own".to_owned()).chain(mirrors).collect::<Vec<_>>().join(", ")
}

fn rows(plan: &BuildPlan, there: Option<&std::path::Path>, catalog: &Catalog) -> [(&'static str, String); 17] {
    let identity = &plan.identity;
    let execution = &plan.execution;
    let compiler = match (&identity.gcc, identity.compiler.as_str()) {
        (Some(gcc), _) => format!(
            "GCC {} from a binary cache, or built first with the toolchain's GCC {}: {}",
            gcc.version, identity.toolchain.system_gcc, gcc.spec
        ),
        (None, "system") => format!("GCC {} of the toolchain", identity.toolchain.system_gcc),
        (None, own) => format!("GCC {own}, which is the toolchain's own"),
    };
    let pin =
        |pin: &crate::plan::SourcePin| format!("{} {} ({})", without_login(&pin.source), pin.reference, pin.commit);
    [
        ("plan", plan.digest.to_string()),
        ("slurm", format!("{} ({})", identity.slurm_version, identity.release.patch)),
        ("compiler", compiler),
        ("toolchain", identity.toolchain.name.clone()),
        ("image", format!("{} {}", identity.toolchain.image, identity.toolchain.image_digest)),
        ("rootfs", format!("{} packages", identity.toolchain.packages.len())),
        ("spack", pin(&identity.spack)),
        ("recipes", pin(&identity.spack_packages)),
        ("spec", identity.spec.clone()),
        ("beside", identity.roots.join(", ")),
        ("features", features::listed(&identity.features)),
        ("target", features::target(&identity.target, &identity.toolchain.glibc, catalog)),
        (
            "glibc",
            format!("needs {} at the most, which the toolchain has, whatever the compiler", identity.toolchain.glibc),
        ),
        ("jobs", format!("{} on {} processors", execution.jobs, execution.cpus)),
        ("limits", limits(execution)),
        ("binaries", binaries(&execution.binary_mirrors)),
        (
            "result",
            there.map_or_else(|| "not built yet".to_owned(), |path| format!("already built: {}", path.display())),
        ),
    ]
}
