//! `image`

use super::args::{Global, ImageVerb};
use super::{open_cache, print, settings, variable};
use crate::config::Settings;
use crate::image::{self, Platform, Reference, ResolveOptions};
use crate::report::{Ctx, Stage};
use crate::resolve::client_config;
use anyhow::Result;
use std::process::ExitCode;

/// `image pull`
pub fn run(global: &Global, verb: &ImageVerb, ctx: &Ctx) -> Result<ExitCode> {
    let ImageVerb::Pull { reference, offline, refresh } = verb;
    let settings = settings(global, Settings::default())?;
    let reference: Reference = reference.parse().map_err(|e| super::exit::Usage(format!("{e}")))?;
    let (cache, _lock) = open_cache(&settings, ctx)?;
    let client = client_config(&variable, ctx);
    let timer = ctx.stage(Stage::Image, reference.to_string());
    let options = ResolveOptions { offline: *offline, refresh: *refresh };
    let resolved = image::resolve(&reference, Platform::host()?, &cache, &client, options, ctx)?;
    let pulled = image::pull(&resolved, &cache, &client, *offline, ctx)?;
    timer.done(format!("{} layers", pulled.layers().len()));
    ctx.reporter.finish();
    print(&format!("{}\n", resolved.digest()))?;
    Ok(ExitCode::SUCCESS)
}
