//! Finds a finished package by its plan, so that the same build a second time ends in a moment.
//!
//! `CACHE/builds/.plans/<plan digest>.json` names the archive, which lies in `CACHE/builds` or, a compiler's, in
//! `CACHE/builds/compilers/<version>`. The archive is opened and checked again, sum, signature
//! and every file: the record alone proves nothing. Libraries and leftovers were looked at when it was made, and the
//! same bytes have the same answer.

use crate::buildcache::{COMPILERS, compiler_folder};
use crate::cache::Cache;
use crate::fsutil;
use crate::oldest::Oldest;
use crate::package::{Package, Trust};
use crate::pipeline::{BuildError, Built};
use crate::plan::BuildPlan;
use crate::relocate::verify::{Findings, Floor};
use crate::report::{Ctx, Stage};
use crate::sign::{Keyring, SigningKey};
use crate::workflows::verify;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Where finished packages are.
pub fn builds_dir(cache: &Cache) -> PathBuf {
    cache.dir("builds")
}

/// Where the finished package of a compiler is: below it as below a place where it is published.
pub fn compiler_dir(cache: &Cache, gcc: &str) -> PathBuf {
    builds_dir(cache).join(compiler_folder(gcc))
}

/// The folder of all [`compiler_dir`]s, one a version.
pub fn compilers_dir(cache: &Cache) -> PathBuf {
    builds_dir(cache).join(COMPILERS)
}

#[derive(Serialize, Deserialize)]
struct Record {
    archive: String,
}

fn record(cache: &Cache, plan: &BuildPlan) -> PathBuf {
    builds_dir(cache).join(".plans").join(format!("{}.json", plan.digest))
}

/// Remembers which archive a plan made.
pub fn remember(cache: &Cache, plan: &BuildPlan, archive: &Path) -> io::Result<()> {
    let below = archive.strip_prefix(builds_dir(cache)).map_err(io::Error::other)?;
    let json = serde_json::to_vec(&Record { archive: below.to_string_lossy().into_owned() })?;
    fsutil::write_atomic(&record(cache, plan), &json, 0o644)
}

/// The archive that a plan made, if one is remembered; it may be gone or damaged.
pub fn recall(cache: &Cache, plan: &BuildPlan) -> Option<PathBuf> {
    let record: Record = serde_json::from_slice(&fs::read(record(cache, plan)).ok()?).ok()?;
    Some(builds_dir(cache).join(record.archive))
}

/// The plans whose digest begins with `digits`, of which six are enough to mean one, each with the archive that it made. Another
/// plan may have put its own there since.
pub fn by_plan(cache: &Cache, digits: &str) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(builds_dir(cache).join(".plans")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if digits.len() >= 6
            && name.starts_with(digits)
            && let Ok(record) = serde_json::from_slice::<Record>(&fs::read(&path)?)
        {
            found.push((name.to_owned(), builds_dir(cache).join(record.archive)));
        }
    }
    Ok(found)
}

/// The package that a plan made, checked; `None` when there is none that is whole, of this plan, and signed by
/// this key. One that does not run on the `oldest` system is an error.
pub fn find(
    cache: &Cache,
    plan: &BuildPlan,
    oldest: Option<&Oldest>,
    key: &SigningKey,
    ctx: &Ctx,
) -> Result<Option<Built>, BuildError> {
    let Some(path) = recall(cache, plan).filter(|path| path.is_file()) else { return Ok(None) };
    let timer = ctx.stage(Stage::Package, path.display().to_string());
    let keyring = Keyring::of(key);
    let package = match Package::open(&path, Trust::Require(&keyring), ctx) {
        Ok((package, _)) => package,
        Err(e) => {
            ctx.check()?;
            ctx.warn(format!("the finished package is not used and is built again: {e}"));
            return Ok(None);
        }
    };
    if package.manifest().facts.plan_sha256 != plan.digest.to_string() {
        // Two plans may give a file the same name; the last one made is there.
        return Ok(None);
    }
    let glibc = package.manifest().facts.glibc.as_ref().map(|floor| Floor {
        version: floor.version.clone(),
        path: floor.file.clone().into(),
        library: floor.library.clone(),
        symbol: Some(floor.symbol.clone()).filter(|symbol| !symbol.is_empty()),
    });
    let mut findings = Findings { glibc, ..Findings::default() };
    verify::hold_to(&mut findings, oldest);
    if !findings.problems.is_empty() {
        return Err(BuildError::Unfit { findings: Box::new(findings) });
    }
    timer.cached(format!("{} is already built", path.display()));
    Ok(Some(Built { package, cached: true }))
}
