//! `shell`: the sandbox of the last build, as Spack saw it.

use super::args::{Global, ShellArgs};
use super::{exit, open_cache, print, settings, variable, watch_signals};
use crate::report::Ctx;
use crate::resolve;
use crate::sandbox::{Io, Spec, as_root, landlock_version};
use crate::spack::LAST_BUILD;
use anyhow::Result;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::ExitCode;

/// `shell`
pub fn run(global: &Global, args: &ShellArgs, ctx: &Ctx) -> Result<ExitCode> {
    let mut settings = settings(global, args.modes.settings())?;
    if args.root && settings.writable.as_deref().is_none_or(|how| how == "none") {
        settings.writable = Some("auto".to_owned());
    }
    let (cache, _lock) = open_cache(&settings, ctx)?;
    let file = cache.dir(LAST_BUILD);
    let bytes = fs_err::read(&file)
        .map_err(|_| exit::HostFault("there is no last build in this cache; run `slurm-factory build` first".into()))?;
    let mut spec: Spec = serde_json::from_slice(&bytes).map_err(|e| {
        exit::HostFault(format!("`{}` does not parse ({e}); run `slurm-factory build` again", file.display()))
    })?;
    if let Ok(term) = std::env::var("TERM") {
        spec = spec.env("TERM", term);
    }
    if args.root {
        spec = as_root(spec);
    }
    let sandbox = resolve::known_sandbox(&settings, &cache, ctx)?;
    let sandbox = resolve::layered(sandbox, &settings, &cache, &variable)?;
    if settings.writable.as_deref().is_some_and(|how| how != "none") {
        ctx.note(format!("sandbox: {}", sandbox.why()));
    }
    if args.print {
        print(&sandbox.plan(&spec)?.to_string())?;
        print(
            &landlock_version().map_or("this kernel has no landlock\n".into(), |version| {
                format!("landlock here: version {version}\n")
            }),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    ctx.reporter.finish();
    // Commands that come through a pipe are a script: no prompts, and it ends with their end.
    let how = if std::io::stdin().is_terminal() { "-i" } else { "-s" };
    let shell = ["/bin/bash".to_owned(), how.to_owned()];
    let command = if args.command.is_empty() { &shell[..] } else { &args.command[..] };
    let argv: Vec<OsString> = command.iter().map(OsString::from).collect();
    let mut begin = || watch_signals(&ctx.interrupt);
    let exit = sandbox.run_first(&spec, &argv, Io::Terminal, &ctx.interrupt, &mut begin)?;
    if let Some(memory) = &exit.memory {
        ctx.warn(memory);
    }
    Ok(ExitCode::from(u8::try_from(exit.code()).unwrap_or(1)))
}
