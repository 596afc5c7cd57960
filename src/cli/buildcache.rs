//! `buildcache`: Spack's binary caches, written and looked at without Spack.

use super::args::Global;
use super::publish::BucketArgs;
use super::signer::{KeyArgs, KeysArgs, signing_key};
use super::{catalog, exit, open_cache, print, print_json, settings, variable};
use crate::buildcache::{self, Again, Selection, check, index, keys, prune};
use crate::cache::{self, Cache};
use crate::config::Settings;
use crate::publish::{self, FolderStore, Store};
use crate::report::{Ctx, Stage};
use crate::resolve::{self, KeySource};
use crate::secret::Secret;
use crate::sign::{KeyStore, Keyring};
use crate::spack::own_repo;
use crate::workflows::buildcache as work;
use anyhow::Result;
use clap::{Args, Subcommand};
use globset::{Glob, GlobSetBuilder};
use humansize::{BINARY, format_size};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

const DAY: u64 = 24 * 60 * 60;

/// `buildcache`
#[derive(Debug, Subcommand)]
pub enum BuildcacheVerb {
    /// Push packages of an install tree that are not there yet: signed, as stock Spack reads them
    Push(PushArgs),
    /// List the packages that the index names
    List {
        /// Which cache.
        #[command(flatten)]
        place: Place,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make the index anew from the manifests that are there and whose signatures are good
    Index {
        /// Which cache.
        #[command(flatten)]
        place: Place,
        /// Whom to believe.
        #[command(flatten)]
        trust: KeysArgs,
    },
    /// Follow for each package what Spack would follow, and what it does not: index, manifest, signature, spec, hash, tarball
    Check {
        /// Which cache.
        #[command(flatten)]
        place: Place,
        /// Whom to believe.
        #[command(flatten)]
        trust: KeysArgs,
        /// Take what nobody signed for good: Spack keeps no signatures in registries
        #[arg(long)]
        unsigned: bool,
        /// Leave tarballs unread
        #[arg(long)]
        quick: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove what the index does not name
    Prune {
        /// Which cache.
        #[command(flatten)]
        place: Place,
        /// Only what was written more than this many days ago: what is younger may be on its way into the index
        #[arg(long, value_name = "DAYS", default_value_t = 7)]
        older_than: u64,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Write our recipes for a Spack that installs from the cache: it must know them. Prints what `spack repo add` wants, ours and
    /// the site's own, a line each
    Recipes {
        /// A folder that is not there yet, or empty
        dir: PathBuf,
    },
    /// List the keys that the cache offers to `spack buildcache keys`, and which of them are trusted here
    Keys {
        /// Which cache.
        #[command(flatten)]
        place: Place,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which cache.
#[derive(Debug, Args)]
pub struct Place {
    /// Where the binary cache is: a folder, file:///folder, s3://bucket/prefix or oci://host/repository [default: CACHE/buildcache]
    #[arg(value_name = "URL|DIR")]
    pub at: Option<String>,
    /// How a bucket is reached.
    #[command(flatten)]
    pub bucket: BucketArgs,
}

/// `buildcache push`
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Packages with what they link and run, by name or hash [default: all that were asked for when they were installed]
    #[arg(value_name = "PACKAGE")]
    pub packages: Vec<String>,
    /// An install tree of Spack, or a build folder [default: that of the last build]
    #[arg(long, value_name = "BUILD|DIR")]
    pub from: Option<PathBuf>,
    /// Where to push to: a folder, file:///folder, s3://bucket/prefix or oci://host/repository [default: CACHE/buildcache]
    #[arg(long, value_name = "URL|DIR")]
    pub to: Option<String>,
    /// How a bucket is reached.
    #[command(flatten)]
    pub bucket: BucketArgs,
    /// Push below this place, where it has always been: slurm/VERSION/GCC/buildcache
    #[arg(long, value_name = "URL|DIR", conflicts_with = "to")]
    pub below: Option<String>,
    /// With what was needed only to build
    #[arg(long)]
    pub with_build_deps: bool,
    /// Leave out packages of this name, as in `cuda` or `llvm*`; may be given several times
    #[arg(long, value_name = "NAME")]
    pub exclude: Vec<String>,
    /// Push again what is there
    #[arg(long)]
    pub force: bool,
    /// Only say what would be pushed
    #[arg(long)]
    pub dry_run: bool,
    /// Threads that compress, 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Who signs.
    #[command(flatten)]
    pub key: KeyArgs,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// The store at an address, the cache's own when none is given.
fn store(at: Option<&str>, settings: &Settings, cache: &Cache, ctx: &Ctx) -> Result<Box<dyn Store>> {
    let Some(at) = at else { return Ok(Box::new(FolderStore::new(&work::own_dir(cache)))) };
    Ok(publish::open(at, &resolve::reach([at], settings, &variable, ctx)?, ctx)?)
}

fn keyring(cache: &Cache, trust: &KeysArgs) -> Result<Keyring> {
    trust.keyring(|| Ok(KeyStore::new(cache).keyring()?))
}

/// `buildcache`
pub fn run(global: &Global, verb: &BuildcacheVerb, ctx: &Ctx) -> Result<ExitCode> {
    let flags = match verb {
        BuildcacheVerb::Push(args) => Settings { key: args.key.key.clone(), ..Settings::default() },
        _ => Settings::default(),
    };
    let none = BucketArgs::default();
    let bucket = match verb {
        BuildcacheVerb::Recipes { .. } => &none,
        BuildcacheVerb::Push(args) => &args.bucket,
        BuildcacheVerb::List { place, .. }
        | BuildcacheVerb::Index { place, .. }
        | BuildcacheVerb::Check { place, .. }
        | BuildcacheVerb::Prune { place, .. }
        | BuildcacheVerb::Keys { place, .. } => &place.bucket,
    };
    let settings = settings(global, bucket.over(flags))?;
    let (cache, _lock) = open_cache(&settings, ctx)?;
    match verb {
        BuildcacheVerb::Recipes { dir } => {
            let releases = catalog(&settings)?.slurm;
            let repo = own_repo::export(dir, &releases).map_err(|e| exit::Usage(format!("recipes: {e}")))?;
            // What the site's recipes built has their namespace, and Spack must know that too.
            let site = settings.spack_repos.as_deref().unwrap_or_default();
            let all = std::iter::once(&repo).chain(site);
            print(&all.fold(String::new(), |text, path| text + &path.display().to_string() + "\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        BuildcacheVerb::Push(args) => push(args, &settings, &cache, ctx),
        BuildcacheVerb::List { place, json } => {
            let (entries, there) = index::read(&*store(place.at.as_deref(), &settings, &cache, ctx)?, ctx)?;
            // In our own cache there may be nothing yet; elsewhere it is a name that was typed wrong.
            if let (None, Some(at)) = (there, &place.at) {
                let text = format!(
                    "`{at}` holds no binary cache: it has no index; `buildcache index` makes one of its manifests"
                );
                return Err(exit::Unfit(text).into());
            }
            list(&entries.entries(), *json)
        }
        BuildcacheVerb::Index { place, trust } => {
            let (store, keyring) = (store(place.at.as_deref(), &settings, &cache, ctx)?, keyring(&cache, trust)?);
            let timer = ctx.stage(Stage::Publish, format!("the index of {}", store.address()));
            let (count, faults) = index::rebuild(&*store, &keyring, ctx)?;
            timer.done(format!("{count} packages in the index"));
            told(&faults, &format!("{}: left out of the index", store.address()))
        }
        BuildcacheVerb::Check { place, trust, unsigned, quick, json } => {
            let (store, keyring) = (store(place.at.as_deref(), &settings, &cache, ctx)?, keyring(&cache, trust)?);
            let scratch = if *quick { None } else { Some(cache.staging(&cache.dir("tmp"))?) };
            let report = check::check(&*store, &keyring, *unsigned, scratch.as_ref().map(cache::Staging::path), ctx)?;
            ctx.reporter.finish();
            if *json {
                print_json(&report)?;
            } else {
                for note in &report.notes {
                    ctx.note(note.as_str());
                }
                print(&describe(&report, *quick))?;
            }
            told(&report.faults, store.address())
        }
        BuildcacheVerb::Prune { place, older_than, dry_run } => {
            let store = store(place.at.as_deref(), &settings, &cache, ctx)?;
            let age = Duration::from_secs(older_than.saturating_mul(DAY));
            let before = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
            let pruned = prune::prune(&*store, before, *dry_run, ctx)?;
            let mut text = String::new();
            for key in pruned.manifests.iter().chain(&pruned.blobs).chain(&pruned.halves) {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{key}");
            }
            print(&text)?;
            let verb = if *dry_run { "would be removed" } else { "removed" };
            let (manifests, blobs, halves) = (pruned.manifests.len(), pruned.blobs.len(), pruned.halves.len());
            let size = format_size(pruned.bytes, BINARY);
            ctx.note(format!("{manifests} manifests, {blobs} blobs and {halves} halves of killed runs {verb}, {size}"));
            Ok(ExitCode::SUCCESS)
        }
        BuildcacheVerb::Keys { place, json } => {
            offered(&*store(place.at.as_deref(), &settings, &cache, ctx)?, &cache, *json, ctx)
        }
    }
}

fn push(args: &PushArgs, settings: &Settings, cache: &Cache, ctx: &Ctx) -> Result<ExitCode> {
    let mut exclude = GlobSetBuilder::new();
    for name in &args.exclude {
        exclude.add(Glob::new(name).map_err(|e| exit::Usage(format!("--exclude: {e}")))?);
    }
    let selection = Selection {
        roots: args.packages.clone(),
        build_dependencies: args.with_build_deps,
        exclude: exclude.build().map_err(|e| exit::Usage(format!("--exclude: {e}")))?,
    };
    let tree = work::tree(cache, args.from.as_deref())?;
    let to = match &args.below {
        None => args.to.clone(),
        Some(root) => Some(format!("{}/{}", root.trim_end_matches('/'), published_path(&tree)?)),
    };
    let store = store(to.as_deref(), settings, cache, ctx)?;
    let again = if args.force { Again::Everything } else { Again::Nothing };
    let pushed = if args.dry_run {
        let keyring = believed(settings, &args.key.source()?, cache, ctx)?;
        work::would_push(&*store, &tree, &selection, &keyring, &again, ctx)?
    } else {
        let key = match signing_key(settings, &args.key.source()?, cache, ctx)? {
            Some(key) => key,
            None => resolve::make_key(cache, &variable, ctx)?,
        };
        // What is to replace something is made anew.
        let taking = again == Again::Nothing;
        let how = work::How { threads: args.threads, again, taking };
        work::push(&*store, &tree, &selection, &key, cache, &how, ctx)?
    };
    ctx.reporter.finish();
    if args.json {
        print_json(&pushed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for done in &pushed.pushed {
        // Writing to a string does not fail.
        let _ = write!(text, "{} {}-{}", done.hash, done.name, done.version);
        if !args.dry_run {
            let _ = write!(text, " {}", format_size(done.size, BINARY));
        }
        text.push('\n');
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Whose packages a push would take for its own. Nothing is signed, so no key is made, and none is unlocked; one that comes by
/// a file descriptor is not read.
fn believed(settings: &Settings, source: &KeySource, cache: &Cache, ctx: &Ctx) -> Result<Keyring> {
    let mut keyring = KeyStore::new(cache).keyring()?;
    if let Some(path) = &settings.key {
        keyring.add_file(path)?;
    }
    if let Some(text) = variable(resolve::SIGNING_KEY).filter(|text| !text.is_empty()) {
        keyring.add_bytes(resolve::SIGNING_KEY, Secret::new(text.into_bytes()).expose())?;
    }
    if source.agent.is_some()
        && let Some(key) = signing_key(settings, source, cache, ctx)?
    {
        keyring.add_key(&key);
    }
    Ok(keyring)
}

/// `slurm/VERSION/GCC/buildcache` of the Slurm in a tree.
fn published_path(tree: &buildcache::Tree) -> Result<String> {
    let slurm: Vec<_> = tree.packages().values().filter(|p| p.name == "slurm").collect();
    let [slurm] = slurm.as_slice() else {
        let text = format!(
            "--below: there are {} packages `slurm` in `{}`, and one is needed; give --to",
            slurm.len(),
            tree.dir().display()
        );
        return Err(exit::Usage(text).into());
    };
    let spec = tree.spec(slurm)?;
    // Spack writes 24-11-5-1 for what people call 24.11.
    let version: Vec<&str> = slurm.version.split(['-', '.']).take(2).collect();
    let gcc = spec.nodes().iter().find(|n| n.name == "gcc").map_or("unknown", |n| n.version.as_str());
    Ok(buildcache::slurm_path(&version.join("."), gcc))
}

fn list(entries: &[buildcache::Entry], json: bool) -> Result<ExitCode> {
    if json {
        print_json(&entries)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for entry in entries {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} {}@{} {} {}", entry.hash, entry.name, entry.version, entry.os, entry.target);
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn offered(store: &dyn Store, cache: &Cache, json: bool, ctx: &Ctx) -> Result<ExitCode> {
    let trusted = KeyStore::new(cache).keyring()?.fingerprints();
    let mut rows = Vec::new();
    for (fingerprint, armored) in keys::offered(store, ctx)? {
        // What the key itself says counts, not the name that it lies under.
        let mut ring = Keyring::new();
        let own = armored.is_some_and(|text| ring.add_bytes(&fingerprint, text.as_bytes()).is_ok())
            && ring.fingerprints().iter().any(|f| f.as_str() == fingerprint);
        let state = match (own, trusted.iter().any(|f| f.as_str() == fingerprint)) {
            (false, _) => "damaged",
            (true, true) => "trusted",
            (true, false) => "not trusted here",
        };
        rows.push((fingerprint, state));
    }
    if json {
        let rows: Vec<_> = rows.iter().map(|(f, s)| serde_json::json!({"fingerprint": f, "state": s})).collect();
        print_json(&rows)?;
    } else {
        print(&rows.iter().fold(String::new(), |text, (f, s)| text + f + " " + s + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(report: &check::Report, quick: bool) -> String {
    let mut text = format!("{} packages, {} of them good", report.packages, report.good.len());
    text += if quick { "; tarballs were not read\n" } else { "\n" };
    for (signer, count) in &report.signers {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{count} signed by {signer}");
    }
    if report.unsigned > 0 {
        let _ = writeln!(text, "{} signed by nobody", report.unsigned);
    }
    text
}

fn told(faults: &[check::Fault], what: &str) -> Result<ExitCode> {
    if faults.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let lines: Vec<String> = faults.iter().map(|f| format!("{}: {}", f.key, f.detail)).collect();
    Err(exit::Unfit(format!("{what}: {} faults\n  {}", lines.len(), lines.join("\n  "))).into())
}
