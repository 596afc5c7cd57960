//! `image`

use super::args::{Global, ImageVerb};
use super::{exit, open_cache, print, print_json, settings, variable};
use crate::cache::Cache;
use crate::config::Settings;
use crate::image::{self, ClientConfig, Memory, Name, Platform, PulledImage, Reference, ResolveOptions, Stored};
use crate::report::{Ctx, Stage};
use crate::resolve::{self, image_reference};
use crate::rootfs::{self, Rootfs};
use crate::workflows::images;
use anyhow::Result;
use humansize::{BINARY, format_size};
use jiff::Timestamp;
use serde_json::json;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// `image`
pub fn run(global: &Global, verb: &ImageVerb, ctx: &Ctx) -> Result<ExitCode> {
    let settings = settings(global, Settings::default())?;
    match verb {
        ImageVerb::Pull { reference, offline, refresh } => {
            let options = ResolveOptions { offline: *offline, refresh: *refresh };
            pull(&settings, reference, options, ctx)
        }
        ImageVerb::List { json } => list(&settings, *json, ctx),
        ImageVerb::Remove { images } => remove(&settings, images, ctx),
        ImageVerb::Save { reference, target, prepared: true, offline, .. } => {
            let options = ResolveOptions { offline: *offline, refresh: false };
            save_prepared(&settings, reference, options, target, ctx)
        }
        ImageVerb::Save { reference, target, name, offline, .. } => {
            let options = ResolveOptions { offline: *offline, refresh: false };
            save(&settings, reference, options, target, name.as_deref(), ctx)
        }
        ImageVerb::Load { source } => load(&settings, source, ctx),
    }
}

pub(super) fn pulled(
    cache: &Cache,
    reference: &Reference,
    client: &ClientConfig,
    options: ResolveOptions,
    ctx: &Ctx,
) -> Result<PulledImage> {
    let resolved = image::resolve(reference, Platform::host()?, cache, client, options, ctx)?;
    Ok(image::pull(&resolved, cache, client, options.offline, ctx)?)
}

fn pull(settings: &Settings, reference: &str, options: ResolveOptions, ctx: &Ctx) -> Result<ExitCode> {
    let (reference, client) = image_reference(reference, settings, &variable, ctx)?;
    if let (Reference::Registry(reference), false) = (&reference, options.offline) {
        // What is blocked is refused also when it is in the cache: a pull was asked for.
        client.registries.route(reference)?;
    }
    let (cache, _lock) = open_cache(settings, ctx)?;
    let pulled = pulled(&cache, &reference, &client, options, ctx)?;
    ctx.reporter.finish();
    print(&format!("{}\n", pulled.resolved().digest()))?;
    Ok(ExitCode::SUCCESS)
}

fn list(settings: &Settings, as_json: bool, ctx: &Ctx) -> Result<ExitCode> {
    let (cache, _lock) = open_cache(settings, ctx)?;
    let mut rows: Vec<(Memory, Stored)> = Vec::new();
    for memory in image::list(&cache)? {
        let stored = image::stored(&cache, memory.image())?;
        rows.push((memory, stored));
    }
    ctx.reporter.finish();
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(memory, stored)| {
                let image = memory.image();
                json!({
                    "reference": image.reference().to_string(),
                    "platform": image.platform().to_string(),
                    "digest": image.digest(),
                    "bytes": stored.bytes,
                    "whole": stored.whole,
                    "resolved_at": image.when(),
                    "used_at": memory.used(),
                })
            })
            .collect();
        print_json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = rows.iter().map(|(m, _)| m.image().reference().to_string().chars().count()).max().unwrap_or(0).max(9);
    let mut text = format!(
        "{:width$}  {:11}  {:12}  {:>10}  {:20}  {:20}\n",
        "REFERENCE", "PLATFORM", "DIGEST", "SIZE", "RESOLVED", "USED"
    );
    for (memory, stored) in &rows {
        let image = memory.image();
        let size = if stored.whole { format_size(stored.bytes, BINARY) } else { "not whole".to_owned() };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:width$}  {:11}  {:12}  {size:>10}  {:20}  {:20}",
            image.reference().to_string(),
            image.platform().to_string(),
            image.digest().short(),
            seconds(image.when()),
            seconds(memory.used()),
        );
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Nobody reads nanoseconds.
fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

fn remove(settings: &Settings, images: &[String], ctx: &Ctx) -> Result<ExitCode> {
    // Not `open_cache`: what it holds would keep every blob.
    let cache = Cache::open(&resolve::cache_dir(settings, &variable)?)?;
    let cwd = std::env::current_dir().unwrap_or_default();
    let names = images.iter().map(|text| known_as(text, settings, ctx)).collect::<Result<Vec<_>>>()?;
    let removed = images::remove(&cache, &names, &cwd)?;
    ctx.reporter.finish();
    for memory in &removed.forgotten {
        print(&format!("{} {}\n", memory.image().reference(), memory.image().digest()))?;
    }
    match removed.collected {
        Some(collected) => ctx.note(format!("freed {}", format_size(collected.bytes, BINARY))),
        None => ctx.note(
            "another run uses this cache, so nothing is freed yet; the next `image remove` or `clean` does".to_owned(),
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// What `image pull` remembers a short name as. Digits of a digest, files and whole names need no configuration.
fn known_as(text: &str, settings: &Settings, ctx: &Ctx) -> Result<String> {
    if images::digits(text).is_some() || !image::is_short_name(text) {
        return Ok(text.to_owned());
    }
    Ok(resolve::whole_name(text, settings, &variable, ctx)?.to_string())
}

fn save(
    settings: &Settings,
    reference: &str,
    options: ResolveOptions,
    target: &Path,
    name: Option<&str>,
    ctx: &Ctx,
) -> Result<ExitCode> {
    let (reference, client) = image_reference(reference, settings, &variable, ctx)?;
    let name = match name {
        None => Name::of(&reference),
        Some(text) => match text.parse() {
            Ok(named @ Reference::Registry(_)) => Name::of(&named),
            Ok(_) => return Err(exit::Usage(format!("--name: `{text}` is no name of a registry")).into()),
            Err(e) => return Err(exit::Usage(format!("--name: {e}")).into()),
        },
    };
    let (cache, _lock) = open_cache(settings, ctx)?;
    let pulled = pulled(&cache, &reference, &client, options, ctx)?;
    let timer = ctx.stage(Stage::Image, target.display().to_string());
    image::save(&pulled, &name, target, ctx)?;
    timer.done(format!("{}, {}", name.tag().unwrap_or("without a tag"), format_size(pulled.size(), BINARY)));
    ctx.reporter.finish();
    print(&format!("{}\n", pulled.resolved().digest()))?;
    Ok(ExitCode::SUCCESS)
}

fn save_prepared(
    settings: &Settings,
    reference: &str,
    options: ResolveOptions,
    target: &Path,
    ctx: &Ctx,
) -> Result<ExitCode> {
    let (reference, client) = image_reference(reference, settings, &variable, ctx)?;
    let (cache, _lock) = open_cache(settings, ctx)?;
    let base = image::resolve(&reference, Platform::host()?, &cache, &client, options, ctx)?;
    let found = Rootfs::of_image(&cache, &base.digest().to_string())?;
    let Some(rootfs) = found.first() else {
        let text =
            format!("no rootfs prepared from {reference} is in the cache; run `slurm-factory build` with it once");
        return Err(exit::HostFault(text).into());
    };
    if found.len() > 1 {
        ctx.note(format!("{} were prepared from it; the newest is saved: {}", found.len(), rootfs.id()));
    }
    let timer = ctx.stage(Stage::Image, format!("the rootfs prepared from {reference}"));
    let image = rootfs::as_image(rootfs, &base, &cache, ctx)?;
    image::save(&image, &Name::of(image.resolved().reference()), target, ctx)?;
    timer.done(format!("{}, {}", target.display(), format_size(image.size(), BINARY)));
    ctx.reporter.finish();
    print(&format!("{}\n", image.resolved().digest()))?;
    Ok(ExitCode::SUCCESS)
}

fn load(settings: &Settings, source: &Path, ctx: &Ctx) -> Result<ExitCode> {
    let source = std::path::absolute(source)?;
    let (cache, _lock) = open_cache(settings, ctx)?;
    let timer = ctx.stage(Stage::Image, source.display().to_string());
    let loaded = image::load(&source, Platform::host()?, &cache, ctx)?;
    timer.done(counted(loaded.len(), "image"));
    for image in &loaded {
        if let Some(base) = rootfs::adopt(image, &cache)? {
            ctx.note(format!("a prepared rootfs: builds on {base} use it and need no package mirror"));
        }
    }
    ctx.reporter.finish();
    for image in &loaded {
        for reference in &image.references {
            print(&format!("{reference} {}\n", image.image.resolved().digest()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
