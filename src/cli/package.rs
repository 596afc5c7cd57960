//! `package`

use super::args::Global;
use super::signer::TrustArgs;
use super::{exit, open_cache, print, print_json, settings, variable};
use crate::config::Settings;
use crate::image::{self, Name, Reference, ResolveOptions};
use crate::package::manifest::Installed;
use crate::package::{Manifest, Package, PackageError, Trust};
use crate::report::{Ctx, Stage};
use crate::resolve;
use crate::workflows::{finished, package_image};
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
    #[arg(long, required_unless_present = "oci")]
    pub sizes: bool,
    /// As JSON
    #[arg(long, requires = "sizes")]
    pub json: bool,
    /// Write it as an OCI image, installed in /opt/slurm on the image that it was built in: a folder (an OCI layout), or a
    /// file that ends in .tar, .tar.gz or .tar.zst; `skopeo copy oci:DIR:TAG docker://...` pushes it
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "sizes")]
    pub oci: Option<PathBuf>,
    /// The image below, in place of the one that it was built in: same distribution, same or newer release
    #[arg(long, value_name = "REF", requires = "oci")]
    pub base: Option<String>,
    /// Name under which the image travels [default: localhost/slurm:VERSION-gccCOMPILER]
    #[arg(long, value_name = "NAME", requires = "oci")]
    pub name: Option<String>,
    /// Use no network; name what is missing
    #[arg(long, requires = "oci")]
    pub offline: bool,
    /// Whose signature counts.
    #[command(flatten)]
    pub trust: TrustArgs,
    /// Take a package although nobody's signature can be checked
    #[arg(long, requires = "oci", conflicts_with_all = ["key", "fingerprint", "all_signers"])]
    pub allow_unsigned: bool,
}

/// `package`
pub fn run(global: &Global, args: &PackageArgs, ctx: &Ctx) -> Result<ExitCode> {
    if let Some(target) = &args.oci {
        return oci(global, args, target, ctx);
    }
    let package = open(global, &args.package, Trust::Skip, ctx)?;
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
fn open(global: &Global, named: &Path, trust: Trust<'_>, ctx: &Ctx) -> Result<Package> {
    let (plan, path) = if named.exists() {
        (None, named.to_owned())
    } else {
        let settings = settings(global, Settings::default())?;
        let (cache, _lock) = open_cache(&settings, ctx)?;
        let text = named.to_string_lossy();
        match finished::by_plan(&cache, &text)?.as_slice() {
            [(plan, path)] => (Some(plan.clone()), path.clone()),
            [] => {
                let builds = finished::builds_dir(&cache);
                let text = format!("`{text}` is neither a file nor a plan whose package is in `{}`", builds.display());
                return Err(exit::Usage(text).into());
            }
            several => {
                let list: Vec<_> = several.iter().map(|(plan, path)| format!("{plan} {}", path.display())).collect();
                return Err(exit::Usage(format!("`{text}` may be each of\n  {}", list.join("\n  "))).into());
            }
        }
    };
    let package = Package::open(&path, trust, ctx)?.0;
    match plan {
        Some(plan) if package.manifest().facts.plan_sha256 != plan => Err(exit::Usage(format!(
            "the package of plan {plan} is gone: `{}` is that of another plan, which has the same name; build the first again",
            path.display()
        ))
        .into()),
        _ => Ok(package),
    }
}

/// A name under which an image can be pushed.
fn registry_name(text: &str) -> Result<Reference> {
    match text.parse() {
        Ok(name @ Reference::Registry(_)) => Ok(name),
        Ok(_) => Err(exit::Usage(format!("--name: `{text}` is no name of a registry")).into()),
        Err(e) => Err(exit::Usage(format!("--name: {e}")).into()),
    }
}

/// `package --oci`
fn oci(global: &Global, args: &PackageArgs, target: &Path, ctx: &Ctx) -> Result<ExitCode> {
    let keyring;
    let trust = if args.allow_unsigned {
        Trust::Skip
    } else {
        keyring = args.trust.keyring(global, ctx)?;
        args.trust.trust(&keyring)
    };
    // What was typed wrong is said before gigabytes are read.
    image::check_target(target)?;
    let name = args.name.as_deref().map(registry_name).transpose()?;
    let settings = settings(global, Settings::default())?;
    let reference = |text: &str| resolve::image_reference(text, &settings, &variable, ctx);
    let base = args.base.as_deref().map(reference).transpose()?;
    let package = open(global, &args.package, trust, ctx)?;
    let facts = &package.manifest().facts;
    if facts.slurm.is_none() {
        let (path, title) = (package.path().to_owned(), facts.title());
        return Err(PackageError::NoSlurm { path, title, what: "package --oci" }.into());
    }
    let name = name.map_or_else(|| registry_name(&package_image::default_name(facts)), Ok)?;
    let (base, client) = base.map_or_else(|| reference(&facts.image.reference), Ok)?;
    let (cache, _lock) = open_cache(&settings, ctx)?;
    let options = ResolveOptions { offline: args.offline, refresh: false };
    let base = super::image::pulled(&cache, &base, &client, options, ctx)?;
    if args.base.is_none() && base.resolved().digest().to_string() != facts.image.digest {
        ctx.warn(format!(
            "the package was built in {} {}; that name means {} now, which is taken",
            facts.image.reference,
            facts.image.digest,
            base.resolved().digest()
        ));
    }
    let timer = ctx.stage(Stage::Image, target.display().to_string());
    let made = package_image::make(&package, &base, name.clone(), &cache, ctx)?;
    image::save(&made, &Name::of(&name), target, ctx)?;
    timer.done(format!("{name}, {}", format_size(made.size(), BINARY)));
    ctx.reporter.finish();
    print(&format!("{}\n", made.resolved().digest()))?;
    Ok(ExitCode::SUCCESS)
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
