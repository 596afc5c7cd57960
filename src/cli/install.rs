//! `install`

use super::args::{Global, InstallArgs};
use super::{exit, print};
use crate::package::{Trust, layout, modulefile};
use crate::process::shell_word;
use crate::report::Ctx;
use crate::workflows::{install, processor};
use anyhow::Result;
use std::process::ExitCode;

/// `install`
pub fn run(global: &Global, args: &InstallArgs, ctx: &Ctx) -> Result<ExitCode> {
    if args.remove {
        let removed = install::remove(&args.prefix, ctx)?;
        for path in &removed.left {
            ctx.warn(format!("left alone, because no package brought it: {}", path.display()));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let package = args.package.as_ref().ok_or_else(|| exit::Usage("install: which package?".into()))?;
    let keyring;
    let trust = if args.allow_unsigned {
        ctx.warn(
            "no signature is checked (--allow-unsigned): the sums only tell that the package is whole, not who made it",
        );
        Trust::Skip
    } else {
        keyring = args.trust.keyring(global, ctx)?;
        args.trust.trust(&keyring)
    };
    let installed = install::install(package, &args.prefix, trust, ctx)?;
    let target = &installed.manifest.facts.target;
    if processor::runs_here(target) == Some(false) {
        ctx.warn(format!("made for {target}: this machine's processor is older and does not run it"));
    }
    ctx.reporter.finish();
    let (mut modules, mut load) = (installed.modules(), modulefile::load(&installed.manifest.facts));
    let core = installed.prefix.join(layout::CORE);
    match (args.enable_hierarchy, core.is_dir()) {
        (true, true) => (modules, load) = (core, modulefile::load_in_hierarchy(&installed.manifest.facts)),
        (true, false) => ctx.warn(
            "this package has no modules for a hierarchy: it is a compiler, or was made before packages had them",
        ),
        (false, _) => {}
    }
    print(&format!("{}\nmodule use {}\n{load}\n", installed.prefix.display(), shell_word(&modules.to_string_lossy())))?;
    Ok(ExitCode::SUCCESS)
}
