//! The command line: parses, reads configuration and environment, calls, reports an error once, picks the exit
//! code. One file a verb; none of them decides anything about building.

pub mod args;
mod build;
pub mod buildcache;
mod clean;
mod compiler;
mod doctor;
mod exit;
mod features;
mod image;
mod install;
mod key;
mod manual;
mod modes;
mod online;
mod package;
mod publish;
mod relocate;
mod shell;
mod shell_args;
mod sign;
mod signer;
mod verify;

use crate::cache::{Cache, Lock};
use crate::catalog::Catalog;
use crate::config::{Merged, Origin, Settings};
use crate::report::{self, Ctx, Interrupt};
use crate::resolve;
use crate::workflows::clean::IN_USE;
use anyhow::{Context as _, Result};
use args::{Cli, Color, Format, Global, Verb};
use clap::Parser as _;
use fs_err as fs;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Variables with our prefix that are not settings.
const NOT_SETTINGS: [&str; 4] = ["SLURM_FACTORY_CONFIG", DIAGNOSTICS, resolve::PASSPHRASE, resolve::SIGNING_KEY];

/// What of the program's own workings is logged, for those who look for a fault in it: `debug`, `slurm_factory=trace`.
const DIAGNOSTICS: &str = "SLURM_FACTORY_LOG";

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = shell_args::alone(std::env::args_os()).unwrap_or_else(Cli::parse);
    if let Some(filter) = variable(DIAGNOSTICS) {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    }
    // No thread before the sandbox of `shell` is there: none that draws a bar (which is no use over somebody else's
    // lines), none that waits for signals.
    let shell = matches!(cli.verb, Verb::Shell(_));
    let bar = if shell { report::Bar::Never } else { report::Bar::OnTerminal };
    let ctx = Ctx { reporter: reporter(&cli.global, bar), interrupt: Interrupt::new() };
    if !shell {
        watch_signals(&ctx.interrupt);
    }
    let result = run(&cli, &ctx);
    ctx.reporter.finish();
    match result {
        Ok(code) => code,
        Err(error) => exit::report(&error, &ctx, cli.global.log_format),
    }
}

fn reporter(global: &Global, bar: report::Bar) -> std::sync::Arc<dyn report::Reporter> {
    let format = match global.log_format {
        Format::Human => report::LogFormat::Human,
        Format::Json => report::LogFormat::Json,
    };
    let color = match global.color {
        Color::Auto => report::ColorChoice::Auto,
        Color::Always => report::ColorChoice::Always,
        Color::Never => report::ColorChoice::Never,
    };
    let verbosity = match (global.quiet, global.verbose) {
        (true, _) => report::Verbosity::Quiet,
        (_, true) => report::Verbosity::Verbose,
        _ => report::Verbosity::Normal,
    };
    report::renderer(format, color, verbosity, bar)
}

/// A thread of its own waits for signals: what runs is told, and ends by itself, cleaning up after itself.
fn watch_signals(interrupt: &Interrupt) {
    let interrupt = interrupt.clone();
    // Without it a signal still ends the program at once, as it would have anyway.
    if let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        std::thread::spawn(move || {
            for signal in signals.forever() {
                interrupt.set(signal);
            }
        });
    }
}

fn run(cli: &Cli, ctx: &Ctx) -> Result<ExitCode> {
    match &cli.verb {
        Verb::Build(args) => build::build(&cli.global, args, ctx),
        Verb::BuildCompiler(args) => compiler::run(&cli.global, args, ctx),
        Verb::Plan(args) => build::plan(&cli.global, args, ctx),
        Verb::Doctor(args) => doctor::run(&cli.global, args, ctx),
        Verb::Image(verb) => image::run(&cli.global, verb, ctx),
        Verb::Shell(args) => shell::run(&cli.global, args, ctx),
        Verb::Verify(args) => verify::run(&cli.global, args, ctx),
        Verb::Install(args) => install::run(&cli.global, args, ctx),
        Verb::Relocate(args) => relocate::run(args, ctx),
        Verb::Publish(args) => publish::run(&cli.global, args, ctx),
        Verb::Key(verb) => key::run(&cli.global, verb, ctx),
        Verb::Buildcache(verb) => buildcache::run(&cli.global, verb, ctx),
        Verb::Package(args) => package::run(&cli.global, args, ctx),
        Verb::Sign(args) => sign::run(&cli.global, args, ctx),
        Verb::Clean(args) => clean::run(&cli.global, args, ctx),
        Verb::Completions { shell } => Ok(manual::completions(*shell)),
        Verb::Man { dir } => manual::man(dir.as_deref()),
    }
}

/// A variable of the environment, when it is UTF-8.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// All layers of configuration, flags on top.
fn settings(global: &Global, mut flags: Settings) -> Result<Settings> {
    let mut merged = Merged::default();
    let home = variable("HOME").map(PathBuf::from);
    let named = global.config.clone().or_else(|| variable("SLURM_FACTORY_CONFIG").map(PathBuf::from));
    let files = named.map_or_else(default_files, |path| vec![(path, true)]);
    for (path, required) in files {
        match fs::read_to_string(&path) {
            Ok(text) => {
                let layer = Settings::parse(&path, &text)?.with_home(home.as_deref()).relative_to(&path);
                merged.add(Origin::File(path.clone()), layer)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && !required => {}
            Err(e) => return Err(exit::Usage(format!("configuration: {e}")).into()),
        }
    }
    let environment = Settings::from_env(std::env::vars(), &NOT_SETTINGS)?.with_home(home.as_deref());
    merged.add(Origin::Env("SLURM_FACTORY_*".into()), environment)?;
    flags.cache_dir = flags.cache_dir.or_else(|| global.cache_dir.clone());
    merged.add(Origin::Flag, flags.with_home(home.as_deref()))?;
    Ok(merged.settings)
}

fn default_files() -> Vec<(PathBuf, bool)> {
    let user = variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&variable("HOME")?).join(".config")))
        .map(|dir| dir.join("slurm-factory/config.toml"));
    [Some(PathBuf::from("/etc/slurm-factory/config.toml")), user, Some(PathBuf::from("slurm-factory.toml"))]
        .into_iter()
        .flatten()
        .map(|path| (path, false))
        .collect()
}

/// The catalog, with what settings add to it.
fn catalog(settings: &Settings) -> Result<Catalog> {
    Ok(Catalog::embedded()?.with(settings.catalog.clone()))
}

/// The cache, held so that `clean` leaves it alone while we work in it.
fn open_cache(settings: &Settings, ctx: &Ctx) -> Result<(Cache, Lock)> {
    let dir = resolve::cache_dir(settings, &variable)?;
    let cache = Cache::open(&dir)?;
    let lock = cache.lock_shared(ctx, IN_USE, "the cache for cleaning")?;
    Ok((cache, lock))
}

/// Prints a result to standard output.
fn print(text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read our output has read enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Prints a result as JSON to standard output.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}
