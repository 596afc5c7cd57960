//! `verify`

use super::args::{Global, VerifyArgs};
use super::{exit, open_cache, print, print_json, settings};
use crate::config::Settings;
use crate::package::Trust;
use crate::relocate::Rules;
use crate::relocate::verify::Findings;
use crate::report::Ctx;
use crate::sign::{Fingerprint, KeyStore, Keyring};
use crate::workflows::verify;
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// The keys named, or those of the cache.
pub fn keyring(global: &Global, keys: &[PathBuf], ctx: &Ctx) -> Result<Keyring> {
    if keys.is_empty() {
        let settings = settings(global, Settings::default())?;
        let (cache, _lock) = open_cache(&settings, ctx)?;
        return Ok(KeyStore::new(&cache).keyring()?);
    }
    let mut keyring = Keyring::new();
    for key in keys {
        keyring.add_file(key)?;
    }
    Ok(keyring)
}

#[derive(Serialize)]
struct Answer<'a> {
    path: String,
    fit: bool,
    signer: Option<&'a str>,
    sha256: Option<&'a str>,
    fill_in: Vec<String>,
    #[serde(flatten)]
    findings: &'a Findings,
}

/// `verify`
pub fn run(global: &Global, args: &VerifyArgs, ctx: &Ctx) -> Result<ExitCode> {
    let rules = Rules::embedded()?;
    let path = args.path.display().to_string();
    let is_tree = fs_err::metadata(&args.path).map_err(|e| exit::Usage(format!("verify: {e}")))?.is_dir();
    let (findings, signer, sha256, fill_in): (Findings, Option<Fingerprint>, Option<String>, Vec<String>) = if is_tree {
        ctx.warn("a tree on disk has no signature and no sums; only what is in it is checked");
        (verify::tree(&args.path, &rules, ctx)?, None, None, Vec::new())
    } else {
        let keyring = keyring(global, &args.key, ctx)?;
        let verified = verify::package(&args.path, Trust::Require(&keyring), &rules, ctx)?;
        let sum = verified.package.sha256().to_owned();
        let fill_in = verified.package.manifest().facts.fill_in.clone();
        (verified.findings, verified.signer, Some(sum), fill_in)
    };
    ctx.reporter.finish();
    let fit = findings.problems.is_empty();
    if args.json {
        print_json(&Answer {
            path,
            fit,
            signer: signer.as_ref().map(Fingerprint::as_str),
            sha256: sha256.as_deref(),
            fill_in,
            findings: &findings,
        })?;
    } else {
        print(&describe(&findings, signer.as_ref(), sha256.as_deref(), &fill_in))?;
    }
    if fit {
        return Ok(ExitCode::SUCCESS);
    }
    Err(exit::Unfit(format!(
        "{}: {} problems\n  {}",
        args.path.display(),
        findings.problems.len(),
        verify::list(&findings)
    ))
    .into())
}

fn describe(findings: &Findings, signer: Option<&Fingerprint>, sha256: Option<&str>, fill_in: &[String]) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:>10}  {value}");
    };
    if let Some(signer) = signer {
        row("signature", &format!("good, by {signer}"));
    }
    if let Some(sum) = sha256 {
        row("sha256", sum);
    }
    row("files", &format!("{}, of which {} ELF", findings.files, findings.elf_files));
    let host: Vec<_> = findings.from_host.iter().map(String::as_str).collect();
    row("from host", &host.join(" "));
    if let Some(floor) = &findings.glibc {
        row("glibc", &format!("{} or newer, asked for by {}", floor.version, floor.path.display()));
    }
    for leak in &findings.allowed {
        row("names build", &format!("{} ({} times): {}", leak.path.display(), leak.count, leak.reason));
    }
    if fill_in.is_empty() {
        row("unpacking", "plain tar -x gives a working tree");
    } else {
        row("unpacking", &format!("{} files wait for `slurm-factory install` to fill in a folder:", fill_in.len()));
        for path in fill_in {
            row("", path);
        }
    }
    text
}
