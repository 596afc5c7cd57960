//! `build-compiler`, and the flag about compilers that `build` and `plan` have too.

use super::args::{Global, SlurmArgs, WhatArgs};
use super::build::{self, Shared};
use super::{catalog, exit, open_cache, print, variable};
use crate::catalog::{Catalog, Toolchain};
use crate::plan::Publish;
use crate::report::Ctx;
use crate::resolve;
use crate::workflows::compiler::{self, Wanted};
use anyhow::Result;
use clap::Args;
use std::fmt::Write as _;
use std::process::ExitCode;

/// How a GCC is built.
#[derive(Debug, Clone, Default, Args)]
pub struct CompilerArgs {
    /// Compile a GCC once, and not a second and third time by itself: a third of the time. It is another GCC to Spack, so say it
    /// to `build-compiler` and `build` alike
    #[arg(long)]
    pub no_bootstrap: bool,
}

/// `build-compiler`
#[derive(Debug, Args)]
pub struct BuildCompilerArgs {
    /// What to build and how.
    #[command(flatten)]
    pub what: WhatArgs,
    /// Also pack it, signed, with its assembler and linker: unpacked in any folder it compiles and links
    #[arg(long)]
    pub package: bool,
    /// List the compilers that can be asked for
    #[arg(long)]
    pub list: bool,
    /// Only plan: look everything up, refuse what cannot be done, build nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `build-compiler`
pub fn run(global: &Global, args: &BuildCompilerArgs, ctx: &Ctx) -> Result<ExitCode> {
    let Shared { mut settings, flags, oldest } = build::shared(global, &SlurmArgs::default(), &args.what, false)?;
    let catalog = catalog(&settings)?;
    // The default of `build`, the toolchain's own, is nothing that could be built.
    settings.compiler_version.get_or_insert_with(|| catalog.defaults.gcc.clone());
    if args.list {
        print(&list(&catalog, &resolve::toolchain(&settings, &catalog)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    let wrong = match flags.publish {
        Some(Publish::SlurmOnly) => Some(
            "there is no Slurm to publish; --publish all sends the compiler's packages, compiler-only what --package makes",
        ),
        Some(Publish::CompilerOnly) if !args.package => {
            Some("--publish compiler-only sends what --package makes: give that too")
        }
        _ if args.what.compression.is_some() && !args.package => {
            Some("--compression says how the archive that --package makes is compressed: give that too")
        }
        _ => None,
    };
    if let Some(text) = wrong {
        return Err(exit::Usage(format!("build-compiler: {text}")).into());
    }
    let (cache, _lock) = open_cache(&settings, ctx)?;
    let source = args.what.key.source()?;
    let key = || super::signer::signing_key(&settings, &source, &cache, ctx);
    if args.dry_run {
        let resolved = compiler::plan(&settings, flags, &cache, &variable, &key, ctx)?;
        ctx.reporter.finish();
        print(&build::describe_compiler(&resolved.plan, &catalog))?;
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = Wanted { package: args.package, oldest };
    let made = compiler::build(&settings, flags, &wanted, &cache, &variable, &key, ctx)?;
    let place = if made.kept { "the cache's binary cache" } else { "the store of this build folder alone" };
    ctx.note(format!(
        "GCC {} is in {place}; `build --compiler-version {}` takes it from there. What it compiles may need glibc {}, that of \
         the toolchain, at the most",
        made.version, made.version, made.glibc
    ));
    let mut printed = format!("gcc {}\n", made.version);
    if let Some(package) = &made.package {
        let floor = package.manifest().facts.glibc.as_ref().map_or("any", |floor| &floor.version);
        ctx.note(format!(
            "the package runs where glibc is {floor} or newer, and compiles against the headers and the glibc of the host that it \
             runs on, which must be installed there; unpack it anywhere, or `slurm-factory install`"
        ));
        // Writing to a string does not fail.
        let _ = writeln!(printed, "{}", package.path().display());
    }
    ctx.reporter.finish();
    print(&printed)?;
    Ok(ExitCode::SUCCESS)
}

/// The compilers of the catalog, and what each means on a toolchain.
fn list(catalog: &Catalog, toolchain: &Toolchain) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(text, "{:>8}  GCC {} of toolchain {}: nothing is built", "system", toolchain.gcc, toolchain.name);
    for known in &catalog.compiler {
        let how = match &known.recipes {
            _ if known.version == toolchain.gcc => "the same as `system`".to_owned(),
            Some(tag) if *tag != catalog.spack_packages.reference => {
                format!("built by Spack with the recipes {tag}")
            }
            _ => "built by Spack".to_owned(),
        };
        let how =
            if known.version == catalog.defaults.gcc { format!("{how}; the default of build-compiler") } else { how };
        let _ = writeln!(text, "{:>8}  {how}", known.version);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_what_is_built_and_what_is_there() {
        let catalog = Catalog::embedded().unwrap();
        let text = list(&catalog, &catalog.toolchain("rockylinux9").unwrap());
        let line = |name: &str| text.lines().find(|line| line.trim_start().starts_with(name)).unwrap().to_owned();
        assert!(line("system").contains("GCC 11.5.0 of toolchain rockylinux9"), "{text}");
        assert!(line("11.5.0").contains("the same as `system`"), "{text}");
        assert!(line("13.4.0").ends_with("built by Spack; the default of build-compiler"), "{text}");
        assert!(line("12.5.0").ends_with("built by Spack"), "{text}");
        assert!(line("15.2.0").contains("with the recipes v2025.11.0"), "{text}");
    }
}
