//! `doctor`: what this host can do, by trying it, and what to type or to ask an administrator for.

use super::args::{DoctorArgs, Global};
use super::{online, print, print_json, settings, variable};
use crate::cache::Cache;
use crate::config::Settings;
use crate::fsutil;
use crate::process::Program;
use crate::report::Ctx;
use crate::resolve;
use crate::sandbox::{self, Backend, Finding, Outcome, Sandbox};
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// Raised when a field changes its meaning or goes; new ones may come at any time.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Answer<'a> {
    schema: u32,
    can_build: bool,
    backend: Option<Backend>,
    sandbox: Option<&'a str>,
    limits: Vec<String>,
    findings: &'a [Finding],
}

const ANOTHER: &str = "Choose another folder with --build-dir.";

/// `doctor`
pub fn run(global: &Global, args: &DoctorArgs, ctx: &Ctx) -> Result<ExitCode> {
    let flags = Settings { backend: args.backend.clone(), build_dir: args.build_dir.clone(), ..args.modes.settings() };
    let settings = settings(global, flags)?;
    // What was typed wrong is said before anything is tried.
    resolve::check_sandbox(&settings)?;
    let dir = resolve::cache_dir(&settings, &variable)?;
    let cache = Cache::open(&dir);
    let mut folders = Vec::new();
    // A folder may not be there yet, or not be to be had; what holds it tells the same.
    let mut unusable = Vec::new();
    if let (Err(_), Ok(there)) = (&cache, fsutil::existing(&dir)) {
        folders.push(("cache", there.to_owned()));
    }
    if let Ok(cache) = &cache {
        folders.push(("cache", cache.root().to_owned()));
        let build_dir = resolve::build_dir(&settings, cache, &variable);
        match fsutil::existing(&build_dir) {
            Ok(there) if there == cache.root() => {}
            Ok(there) => folders.push(("build-dir", there.to_owned())),
            Err(error) => {
                unusable.push(fail("build-dir", "use the build folder", error.to_string(), Some(ANOTHER.into())));
            }
        }
    }
    let paths: Vec<(&str, &Path)> = folders.iter().map(|(what, path)| (*what, path.as_path())).collect();
    let opened = resolve::sandbox(&settings, ctx);
    let backend = opened.as_ref().ok().map(Sandbox::backend);
    let mut findings = sandbox::probe(backend, &paths, &ctx.interrupt)?;
    if let Err(error) = &opened {
        findings.push(fail("sandbox", "make a sandbox", error.to_string(), None));
    }
    if let Err(error) = &cache {
        findings.push(fail("cache", "write to the cache folder", error.to_string(), None));
    }
    if let Ok(cache) = &cache {
        let folder = folders.last().map_or(cache.root(), |(_, path)| path);
        findings.extend(sandbox::layers(folder, cache).unwrap_or_else(|error| {
            // What is in the way of builds there is said by the folder's own rows.
            let tried = format!("--writable in {}", folder.display());
            vec![finding("writable", &tried, Outcome::Warn, error.to_string(), None)]
        }));
    }
    findings.extend(unusable);
    // One way that was asked for by name is needed, as a build will say with the same words.
    if let (Ok(sandbox), Ok(cache)) = (&opened, &cache)
        && let Err(error) = resolve::layered(sandbox.clone(), &settings, cache, &variable)
    {
        findings.push(fail("layer", "make the rootfs writable", error.to_string(), None));
    }
    findings.push(git(ctx));
    if let (true, Ok(cache)) = (args.online, &cache) {
        findings.extend(online::look(&settings, cache, ctx)?);
    }
    let can_build = findings.iter().all(|f| f.outcome != Outcome::Fail);
    ctx.reporter.finish();
    let why = opened.as_ref().ok().map(Sandbox::why);
    let limits = opened.as_ref().map(Sandbox::limits).unwrap_or_default();
    if args.json {
        print_json(&Answer { schema: SCHEMA, can_build, backend, sandbox: why, limits, findings: &findings })?;
    } else {
        print(&describe(&findings, why.filter(|_| can_build), &limits, args.online, global.quiet))?;
    }
    Ok(if can_build { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

pub(super) fn finding(id: &str, tried: &str, outcome: Outcome, meaning: String, remedy: Option<String>) -> Finding {
    Finding { id: id.to_owned(), tried: tried.to_owned(), outcome, errno: None, meaning, remedy }
}

pub(super) fn fail(id: &str, tried: &str, meaning: String, remedy: Option<String>) -> Finding {
    finding(id, tried, Outcome::Fail, meaning, remedy)
}

fn git(ctx: &Ctx) -> Finding {
    match Program::new("git").arg("--version").output(&ctx.interrupt) {
        Ok(output) => {
            let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            finding("git", "run git", Outcome::Ok, version, None)
        }
        Err(error) => {
            let remedy = "install git, or give --spack-source and --spack-packages plain folders".to_owned();
            fail("git", "run git", error.to_string(), Some(remedy))
        }
    }
}

/// Warnings and failures only when `quiet`; nothing then says that a build can run.
fn describe(findings: &[Finding], sandbox: Option<&str>, limits: &[String], online: bool, quiet: bool) -> String {
    let mut text = String::new();
    for finding in findings.iter().filter(|finding| !quiet || finding.outcome != Outcome::Ok) {
        let word = match finding.outcome {
            Outcome::Ok => "ok",
            Outcome::Warn => "note",
            Outcome::Fail => "FAIL",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{word:>5}  {finding}");
    }
    let Some(sandbox) = sandbox else {
        return text + "\nbuilds cannot run here as it is; what to do is said at FAIL\n";
    };
    if quiet {
        return text;
    }
    let _ = writeln!(text, "\nbuilds can run here; sandbox: {sandbox}");
    for limit in limits {
        let _ = writeln!(text, "limit: {limit}");
    }
    if !online {
        text += "(registry and Spack's repositories were not asked; --online does)\n";
    }
    text
}
