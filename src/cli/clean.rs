//! `clean`

use super::args::{CleanArgs, Global};
use super::{print, settings, variable};
use crate::cache::Cache;
use crate::config::Settings;
use crate::report::Ctx;
use crate::resolve;
use crate::workflows::clean::{Scope, clean};
use anyhow::Result;
use std::process::ExitCode;
use std::time::Duration;

/// `clean`
pub fn run(global: &Global, args: &CleanArgs, ctx: &Ctx) -> Result<ExitCode> {
    let settings = settings(global, Settings::default())?;
    let cache = Cache::open(&resolve::cache_dir(&settings, &variable)?)?;
    let scope = Scope {
        full: args.full,
        older_than: args.older_than.map(|days| Duration::from_secs(days * 24 * 60 * 60)),
        dry_run: args.dry_run,
    };
    let build_dir = resolve::build_dir(&settings, &cache, &variable);
    let cleaned = clean(&cache, &build_dir, scope, ctx)?;
    for path in &cleaned.paths {
        print(&format!("{}\n", path.display()))?;
    }
    let size = humansize::format_size(cleaned.bytes, humansize::BINARY);
    ctx.note(format!("{} {size}", if args.dry_run { "would free" } else { "freed" }));
    Ok(ExitCode::SUCCESS)
}
