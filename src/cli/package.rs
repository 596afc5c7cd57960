//! `package`

use super::args::Global;
use super::{exit, open_cache, print, print_json, settings};
use crate::config::Settings;
use crate::package::manifest::Installed;
use crate::package::{Manifest, Package, Trust};
use crate::report::Ctx;
use crate::workflows::finished;
use anyhow::Result;
use clap::Args;
use humansize::{BINARY, format_size};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `package`
#[derive(Debug, Args)]
pub struct PackageArgs {
    /// A finished package (.tar.gz, .tar.zst), or the first digits of the plan that made it
    #[arg(value_name = "PACKAGE|PLAN")]
    pub package: PathBuf,
    /// Which Spack package takes how much: as it was installed, and what is left of it here
    #[arg(long, required = true)]
    pub sizes: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `package`
pub fn run(global: &Global, args: &PackageArgs, ctx: &Ctx) -> Result<ExitCode> {
    let package = open(global, &args.package, ctx)?;
    ctx.reporter.finish();
    let sizes = Sizes::of(&package)?;
    if args.json {
        print_json(&sizes)?;
    } else {
        print(&sizes.table())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A package by its path, or one of the cache by its plan.
fn open(global: &Global, named: &Path, ctx: &Ctx) -> Result<Package> {
    let path = if named.exists() {
        named.to_owned()
    } else {
        let settings = settings(global, Settings::default())?;
        let (cache, _lock) = open_cache(&settings, ctx)?;
        let text = named.to_string_lossy();
        match finished::by_plan(&cache, &text)?.as_slice() {
            [one] => one.clone(),
            [] => {
                let builds = finished::builds_dir(&cache);
                let text = format!("`{text}` is neither a file nor a plan whose package is in `{}`", builds.display());
                return Err(exit::Usage(text).into());
            }
            several => {
                let list: Vec<_> = several.iter().map(|path| path.display().to_string()).collect();
                return Err(exit::Usage(format!("`{text}` may be each of\n  {}", list.join("\n  "))).into());
            }
        }
    };
    Ok(Package::open(&path, Trust::Skip, ctx)?.0)
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    version: &'a str,
    hash: &'a str,
    build_only: bool,
    installed: u64,
    packaged: u64,
}

/// Bytes of regular files, before compression.
#[derive(Serialize)]
struct Sizes<'a> {
    /// The largest share of the package first.
    packages: Vec<Row<'a>>,
    /// What no Spack package brought: modulefile, manifest, payload.
    other: u64,
    /// All files of the package.
    total: u64,
    /// The archive.
    compressed: u64,
}

impl<'a> Sizes<'a> {
    fn of(package: &'a Package) -> Result<Self> {
        let manifest: &Manifest = package.manifest();
        let row = |p: &'a Installed| {
            let size = p.size?;
            let (name, version, hash) = (p.name.as_str(), p.version.as_str(), p.hash.as_str());
            Some(Row {
                name,
                version,
                hash,
                build_only: p.build_only,
                installed: size.installed,
                packaged: size.packaged,
            })
        };
        let mut packages: Vec<Row<'_>> = manifest.facts.packages.iter().filter_map(row).collect();
        if packages.is_empty() {
            return Err(exit::Unfit(format!(
                "{}: its manifest has no sizes; it was made by a program that did not write them down yet: build it again",
                package.path().display()
            ))
            .into());
        }
        packages.sort_by(|a, b| (b.packaged, b.installed, a.name).cmp(&(a.packaged, a.installed, b.name)));
        let total = manifest.totals.bytes;
        let ours: u64 = packages.iter().map(|p| p.packaged).sum();
        Ok(Self { packages, other: total.saturating_sub(ours), total, compressed: package.size() })
    }

    fn table(&self) -> String {
        let size = |bytes: u64| format_size(bytes, BINARY);
        let mut text = format!("{:<24} {:<16} {:>12} {:>12}\n", "package", "version", "installed", "in package");
        let mut line = |name: &str, version: &str, before: &str, after: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<24} {version:<16} {before:>12} {after:>12}");
        };
        for p in &self.packages {
            let after = if p.build_only { "-".to_owned() } else { size(p.packaged) };
            line(p.name, p.version, &size(p.installed), &after);
        }
        let before: u64 = self.packages.iter().map(|p| p.installed).sum();
        line("other files", "", "", &size(self.other));
        line("all", "", &size(before), &size(self.total));
        line("compressed", "", "", &size(self.compressed));
        text
    }
}
