//! `doctor`: what this host can do, by trying it, and what to type or to ask an administrator for.

use super::args::{DoctorArgs, Global};
use super::{print, print_json, settings, variable};
use crate::cache::Cache;
use crate::config::Settings;
use crate::fsutil;
use crate::process::Program;
use crate::report::Ctx;
use crate::resolve;
use crate::sandbox::{self, Finding, Outcome, Sandbox};
use anyhow::Result;
use humansize::{BINARY, format_size};
use nix::sys::statvfs::statvfs;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// A first build takes about this much: rootfs, Spack, store, stage.
const DISK_NEEDED: u64 = 6 << 30;

#[derive(Serialize)]
struct Answer<'a> {
    can_build: bool,
    sandbox: Option<&'a str>,
    findings: &'a [Finding],
}

/// `doctor`
pub fn run(global: &Global, args: &DoctorArgs, ctx: &Ctx) -> Result<ExitCode> {
    let flags = Settings { backend: args.backend.clone(), build_dir: args.build_dir.clone(), ..Settings::default() };
    let settings = settings(global, flags)?;
    let dir = resolve::cache_dir(&settings, &variable)?;
    let cache = Cache::open(&dir);
    let mut folders = Vec::new();
    if let Ok(cache) = &cache {
        folders.push(("cache", cache.root().to_owned()));
        let build_dir = resolve::build_dir(&settings, cache, &variable, ctx);
        // The folder may not be there yet; what holds it tells the same.
        if let Some(there) = build_dir.ancestors().find(|p| p.is_dir())
            && there != cache.root()
        {
            folders.push(("build-dir", there.to_owned()));
        }
    }
    let paths: Vec<&Path> = folders.iter().map(|(_, path)| path.as_path()).collect();
    let mut findings = sandbox::probe(&paths, &ctx.interrupt)?;
    let opened = resolve::sandbox(&settings, ctx);
    if let Err(error) = &opened {
        findings.push(fail("sandbox", "make a sandbox", error.to_string(), None));
    }
    if let Err(error) = &cache {
        findings.push(fail("cache", "write to the cache folder", error.to_string(), None));
    }
    findings.extend(folders.iter().flat_map(|(what, path)| disk(what, path)));
    findings.push(git(ctx));
    let can_build = findings.iter().all(|f| f.outcome != Outcome::Fail);
    ctx.reporter.finish();
    let backend = opened.as_ref().ok().map(Sandbox::why);
    if args.json {
        print_json(&Answer { can_build, sandbox: backend, findings: &findings })?;
    } else {
        print(&describe(&findings, backend.filter(|_| can_build)))?;
    }
    Ok(if can_build { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn finding(id: &str, tried: &str, outcome: Outcome, meaning: String, remedy: Option<String>) -> Finding {
    Finding { id: id.to_owned(), tried: tried.to_owned(), outcome, errno: None, meaning, remedy }
}

fn fail(id: &str, tried: &str, meaning: String, remedy: Option<String>) -> Finding {
    finding(id, tried, Outcome::Fail, meaning, remedy)
}

/// Room and file system of a folder that builds write to.
fn disk(what: &str, path: &Path) -> Vec<Finding> {
    let shown = path.display();
    let Ok(stat) = statvfs(path) else { return Vec::new() };
    let free = stat.fragment_size().saturating_mul(stat.blocks_available());
    let meaning = format!("{} and {} inodes free at {shown}", format_size(free, BINARY), stat.files_available());
    let tried = format!("look at the disk of the {what} folder");
    let (outcome, remedy) = if free < DISK_NEEDED {
        let needed = format_size(DISK_NEEDED, BINARY);
        (Outcome::Warn, Some(format!("a first build needs about {needed}: choose another --cache-dir or --build-dir")))
    } else {
        (Outcome::Ok, None)
    };
    let mut findings = vec![finding(&format!("{what}-disk"), &tried, outcome, meaning, remedy)];
    if let Some(name) = fsutil::shared_file_system(path) {
        let meaning = format!("{shown} is on {name}: Spack's locks and many small files are slow or unsafe there");
        let remedy = "give --build-dir a folder on a local disk, such as /var/tmp or /scratch".to_owned();
        let tried = format!("look at the file system of the {what} folder");
        findings.push(finding(&format!("{what}-shared"), &tried, Outcome::Warn, meaning, Some(remedy)));
    }
    findings
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

fn describe(findings: &[Finding], backend: Option<&str>) -> String {
    let mut text = String::new();
    for finding in findings {
        let word = match finding.outcome {
            Outcome::Ok => "ok",
            Outcome::Warn => "note",
            Outcome::Fail => "FAIL",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{word:>5}  {finding}");
    }
    let _ = match backend {
        Some(backend) => writeln!(
            text,
            "\nbuilds can run here, in {backend}\n(registry, package archive and Spack's repositories were not asked)"
        ),
        None => writeln!(text, "\nbuilds cannot run here as it is; what to do is said at FAIL"),
    };
    text
}
