//! Runs Spack in the build sandbox: brings what it needs, writes its configuration, concretizes, installs, and
//! hands on the install tree as [`Installed`].
//!
//! Everything that Spack writes lies in one *slot*, a folder of the host that is mounted at
//! [`inside::ROOT`]: store, environments, views and stages on one file system and under one mount, because a
//! hard link across two mounts of the same disk is EXDEV. A slot belongs to one rootfs and Spack, is kept
//! between builds, and is shared by builds that run at the same time under Spack's own locks.
//!
//! ```text
//! SLOT/store/PADDING/NAME-VERSION-HASH/     install tree; the padding lets binaries be installed at longer paths
//! SLOT/env/ID/spack.{yaml,lock}     one environment for all plans that ask Spack for the same
//! SLOT/view/ID/view                 symlink to view/ID/._view/HASH, hard links into the store
//! SLOT/scope/ID/*.yaml              configuration
//! SLOT/stage/                       where Spack unpacks and builds
//! SLOT/misc/KEY/                    Spack's index of recipes and compiled Python, see `index`
//! SLOT/{user,home}/                 Spack's other caches, HOME
//! ```

mod compiler;
mod index;
pub mod lock;
pub mod log;
mod mounts;
pub mod own_repo;
pub mod recipe;
pub mod render;
pub mod source;

pub use compiler::Compiler;
pub use lock::LockedPackage;
pub use log::Failure;
pub use mounts::{building, sandbox};
pub use render::External;
pub use source::SourceError;

use crate::cache::{Cache, CacheError, Staging};
use crate::fsutil;
use crate::plan::{BuildPlan, HostAccess, inside};
use crate::report::{Ctx, Event, Interrupted, Stage};
use crate::sandbox::{Access, Ended, Exit, Io, PATH_INSIDE, Sandbox, SandboxError, Spec};
use fs_err as fs;
use index::Index;
use log::{Progress, Step};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Why Spack did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum SpackError {
    /// A package did not build, or the solver found no solution.
    #[error("{0}")]
    Failed(Box<Failed>),
    /// The environment's lockfile is not what it should be.
    #[error("{path}: {source}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: lock::LockError,
    },
    /// Spack said that all is well, and a package that the lockfile names is not in the store.
    #[error(
        "Spack ended well, but {package} is not in its store `{}`; Spack's output: {}; run again, with a fresh \
         --build-dir if it happens again",
        store.display(), console.display()
    )]
    NotInStore {
        /// Name and version.
        package: String,
        /// The store, on the host.
        store: PathBuf,
        /// Everything that Spack printed.
        console: PathBuf,
    },
    /// The toolchain's own GCC was asked for by its version, and its distribution has another by now.
    #[error(
        "GCC {asked} was asked for as the toolchain's own, and its distribution has GCC {found} by now: ask for that, or for \
         `--compiler-version system`"
    )]
    Compiler {
        /// What was asked for.
        asked: String,
        /// What the prepared rootfs has.
        found: String,
    },
    /// Spack takes the target for a wish: what GCC or this machine's processor cannot do, it lowers without a word.
    #[error(
        "target {asked} was asked for, and {package} would be made for {target}: the toolchain's GCC does not know it, or this \
         machine's processor does not run it; build on a newer machine or toolchain, or ask for --target {target}"
    )]
    Target {
        /// What was asked for.
        asked: String,
        /// A package's name.
        package: String,
        /// What the solver chose for it.
        target: String,
    },
    /// The sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A configuration file could not be rendered.
    #[error(transparent)]
    Render(#[from] render::RenderError),
    /// Spack or recipes could not be brought.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file operation failed.
    #[error("spack: {0}")]
    Io(#[from] io::Error),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A Spack command that ended with a failure.
#[derive(Debug)]
pub struct Failed {
    /// Solving, fetching or installing.
    pub stage: Stage,
    /// Whether the build was told to use no network.
    pub offline: bool,
    /// What Spack said.
    pub failure: Failure,
    /// The package's build log on the host, when there is one.
    pub log: Option<PathBuf>,
    /// Everything that Spack printed.
    pub console: PathBuf,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.stage, self.failure.package.as_str(), self.failure.phase.as_str()) {
            (Stage::Concretize, ..) => f.write_str("Spack could not concretize the request")?,
            (Stage::Fetch, package, _) => {
                write!(f, "the sources of {} cannot be had", if package.is_empty() { "a package" } else { package })?;
            }
            (_, "", _) => f.write_str("Spack failed before it built anything")?,
            (_, package, "") => write!(f, "{package} could not be installed")?,
            (_, package, phase) => write!(f, "{package} failed in phase `{phase}`")?,
        }
        for line in &self.failure.errors {
            write!(f, "\n  {line}")?;
        }
        if let Some(log) = &self.log {
            write!(f, "\nbuild log: {}", log.display())?;
        }
        write!(f, "\nSpack's output: {}", self.console.display())?;
        match self.stage {
            Stage::Install => f.write_str("\nto look inside: slurm-factory shell"),
            Stage::Fetch if self.offline => f.write_str(
                "\nwith --offline they come from the source cache or a --source-mirror: build once without --offline, or \
                 put the archive into a mirror (`spack mirror create` makes one)",
            ),
            Stage::Fetch => f.write_str(
                "\nif this host does not reach those addresses, name a folder or URL that has the archives with \
                 --source-mirror (`spack mirror create` makes one)",
            ),
            _ => Ok(()),
        }
    }
}

/// What a Spack run works with.
pub struct Session<'a> {
    /// The plan.
    pub plan: &'a BuildPlan,
    /// Root of the prepared rootfs.
    pub rootfs: &'a Path,
    /// Identity of the prepared rootfs.
    pub rootfs_id: &'a str,
    /// The GCC that compiles.
    pub gcc: &'a Compiler,
    /// Programs of the rootfs that Spack takes as they are.
    pub externals: &'a [External],
    /// Where slots are.
    pub build_dir: &'a Path,
    /// What of the host the sandbox may use.
    pub host: &'a HostAccess,
    /// The cache.
    pub cache: &'a Cache,
    /// The sandbox.
    pub sandbox: &'a Sandbox,
    /// Asked once it is known what is missing: which of it can be installed and need not be built.
    pub binaries: &'a dyn Fn(&[&LockedPackage]) -> Result<Binaries, Interrupted>,
}

/// Packages that Spack may install from a binary cache. Everything in the cache was checked: nothing else is in it.
#[derive(Debug, Default)]
pub struct Binaries {
    /// The cache's folder on the host, seen read-only inside and deleted afterwards. `None` when there is nothing to take.
    pub dir: Option<Staging>,
    /// Hashes of its packages.
    pub hashes: HashSet<String>,
    /// Armored public keys of all whom the user trusts; nothing else is trusted inside.
    pub keys: String,
    /// Hashes of packages that the cache's own binary cache has and that could not be used.
    pub unusable: BTreeSet<String>,
}

/// A finished install tree with its view: what Spack left. Made by [`Session::install`] alone.
#[derive(Debug)]
pub struct Installed {
    slot: PathBuf,
    view: String,
    packages: Vec<LockedPackage>,
    lock_file: PathBuf,
    lock_digest: String,
    unusable: BTreeSet<String>,
}

impl Installed {
    /// The slot's folder on the host.
    pub fn slot(&self) -> &Path {
        &self.slot
    }

    /// Hashes of packages that were built although the cache's own binary cache has them: what it has could not be used.
    pub fn unusable(&self) -> &BTreeSet<String> {
        &self.unusable
    }

    /// The install tree's folder on the host.
    pub fn install_tree(&self) -> PathBuf {
        install_tree(&self.slot)
    }

    /// The view's path inside the sandbox.
    pub fn view_inside(&self) -> &str {
        &self.view
    }

    /// What the solver chose.
    pub fn packages(&self) -> &[LockedPackage] {
        &self.packages
    }

    /// `spack.lock` on the host.
    pub fn lock_file(&self) -> &Path {
        &self.lock_file
    }

    /// SHA-256 of `spack.lock`, hexadecimal.
    pub fn lock_digest(&self) -> &str {
        &self.lock_digest
    }
}

/// The folder of a slot: one for each rootfs and Spack. Packages of all compilers share it, as a GCC that is built lies in the
/// store of what it compiles.
pub fn slot_dir(build_dir: &Path, rootfs_id: &str, plan: &BuildPlan) -> PathBuf {
    // What lies in a slot names the install tree. The second part was the compiler's name; slots of builds with the rootfs's own
    // keep theirs.
    let parts = [rootfs_id, "system", &plan.identity.spack.commit, inside::INSTALL_TREE];
    let key = parts.join("\0");
    let digest = hex::encode(Sha256::digest(key));
    build_dir.join(format!("{}-{}", plan.identity.toolchain.name, &digest[..12]))
}

impl Session<'_> {
    /// Concretizes and installs; what is there already is not done again.
    pub fn install(&self, ctx: &Ctx) -> Result<Installed, SpackError> {
        let asked = &self.plan.identity.compiler;
        if asked != "system" && *asked != self.gcc.version {
            return Err(SpackError::Compiler { asked: asked.clone(), found: self.gcc.version.clone() });
        }
        let slot = slot_dir(self.build_dir, self.rootfs_id, self.plan);
        for folder in ["store", "env", "view", "scope", "stage", "misc", "user", "home"] {
            fs::create_dir_all(slot.join(folder))?;
        }
        let timer = ctx.stage(Stage::Sources, format!("Spack {}", shown(&self.plan.identity.spack)));
        let spec = self.spec(&slot, ctx)?;
        timer.done(format!(
            "Spack {} and recipes {}",
            shown(&self.plan.identity.spack),
            shown(&self.plan.identity.spack_packages)
        ));
        let name = format!("environment-{}", self.plan.environment.short());
        let _lock = self.cache.lock(ctx, &name, "the same Spack environment")?;
        let environment = self.write_configuration(&slot)?;
        let mut build = building(self.plan, spec.clone());
        self.remember_for_shell(&build, &environment)?;

        let lock_file = environment.join("spack.lock");
        let timer = ctx.stage(Stage::Concretize, &self.plan.identity.spec);
        if lock_file.is_file() {
            timer.cached("dependencies already chosen");
        } else {
            let index = Index::open(&slot, &self.plan.identity, self.cache, ctx);
            self.spack(&spec, &slot, Stage::Concretize, &["concretize", "--force"], ctx)?;
            index.keep(self.cache, ctx);
            timer.done("dependencies chosen");
        }
        let lock_text = fs::read_to_string(&lock_file)?;
        let packages =
            lock::parse(&lock_text).map_err(|source| SpackError::Lock { path: lock_file.clone(), source })?;

        let asked = &self.plan.identity.target;
        if let Some(package) = packages.iter().find(|p| p.needed && !p.external && p.target != *asked) {
            return Err(SpackError::Target {
                asked: asked.clone(),
                package: package.name.clone(),
                target: package.target.clone(),
            });
        }

        let count = packages.iter().filter(|p| !p.external).count();
        let absent = missing(&slot, &packages)?;
        let mut binaries = if absent.is_empty() { Binaries::default() } else { (self.binaries)(&absent)? };
        // Deleted when this ends.
        let _keyring = if binaries.dir.is_some() {
            match self.trust(&spec, &binaries.keys, ctx) {
                Ok(made) => {
                    build = build.mount(made.path(), inside::GNUPG, Access::ReadOnly);
                    Some(made)
                }
                Err(e) => {
                    ctx.check()?;
                    ctx.warn(format!("binary caches are not used, and everything is built: {e}"));
                    binaries = Binaries { unusable: binaries.unusable, ..Binaries::default() };
                    None
                }
            }
        } else {
            None
        };
        self.name_mirrors(&slot, binaries.dir.is_some())?;
        if let Some(dir) = &binaries.dir {
            build = build.mount(dir.path(), format!("{}/0", inside::BINARIES), Access::ReadOnly);
            ctx.note(format!("{} of {} packages are taken from binary caches", binaries.hashes.len(), absent.len()));
        }
        // What cannot be had is said before anything is compiled. From a binary mirror a package needs no sources.
        let to_build: Vec<&&LockedPackage> = absent.iter().filter(|p| !binaries.hashes.contains(&p.hash)).collect();
        if absent.iter().any(|p| p.root) && !to_build.is_empty() {
            let timer = ctx.stage(Stage::Fetch, "source archives");
            let hashes: Vec<String> = to_build.iter().map(|p| format!("/{}", p.hash)).collect();
            let mut args = vec!["fetch"];
            if binaries.hashes.is_empty() {
                args.push("--missing");
            } else {
                args.extend(hashes.iter().map(String::as_str));
            }
            self.spack(&spec, &slot, Stage::Fetch, &args, ctx)?;
            timer.done("all source archives are there");
        }

        let timer = ctx.stage(Stage::Install, format!("{count} packages"));
        let jobs = self.plan.execution.jobs.to_string();
        let installed = self.spack(
            &build,
            &slot,
            Stage::Install,
            &["install", "--only-concrete", "--fail-fast", "-j", &jobs],
            ctx,
        )?;
        // Spack's exit code does not prove it: an environment that it takes for empty is installed without a word.
        if let Some(package) = missing(&slot, &packages)?.iter().find(|p| p.needed) {
            return Err(SpackError::NotInStore {
                package: format!("{}-{}", package.name, package.version),
                store: on_host(&slot, inside::INSTALL_TREE),
                console: self.console(Stage::Install),
            });
        }
        timer.done(if installed == 0 {
            "all packages were there".into()
        } else {
            format!("{installed} packages built")
        });
        Ok(Installed {
            view: render::view_dir(self.plan),
            lock_digest: hex::encode(Sha256::digest(&lock_text)),
            slot,
            packages,
            lock_file,
            unusable: binaries.unusable,
        })
    }

    /// The build sandbox, with everything there that is mounted into it.
    fn spec(&self, slot: &Path, ctx: &Ctx) -> Result<Spec, SpackError> {
        let identity = &self.plan.identity;
        let offline = self.plan.execution.offline;
        source::fetch("Spack", &identity.spack, offline, self.cache, ctx)?;
        source::fetch("Spack recipes", &identity.spack_packages, offline, self.cache, ctx)?;
        own_repo::write(self.cache, &identity.own_repo_digest, &identity.release)?;
        fs::create_dir_all(self.cache.dir(SOURCE_CACHE))?;
        Ok(sandbox(self.plan, self.rootfs, slot, self.host, self.cache))
    }

    /// Writes `spack.yaml` and the scope; returns the environment's folder on the host.
    fn write_configuration(&self, slot: &Path) -> Result<PathBuf, SpackError> {
        let rendered = render::render(self.plan, self.gcc, self.externals)?;
        let scope = on_host(slot, &render::scope_dir(self.plan));
        for (name, text) in &rendered.scope {
            fsutil::write_atomic(&scope.join(name), text.as_bytes(), 0o644)?;
        }
        let environment = on_host(slot, &render::environment_dir(self.plan));
        fsutil::write_atomic(&environment.join("spack.yaml"), rendered.spack_yaml.as_bytes(), 0o644)?;
        Ok(environment)
    }

    /// Says which mirrors Spack may ask, once it is known whether what they have can be checked.
    fn name_mirrors(&self, slot: &Path, checked: bool) -> Result<(), SpackError> {
        let text = render::mirrors_file(self.plan, checked)?;
        let scope = on_host(slot, &render::scope_dir(self.plan));
        Ok(fsutil::write_atomic(&scope.join(render::MIRRORS), text.as_bytes(), 0o644)?)
    }

    /// A keyring of these keys alone, for Spack's gpg. It is made anew for each run and lies outside the slot, where no recipe
    /// can add to it and nothing stays of a key that is trusted no more.
    fn trust(&self, spec: &Spec, keys: &str, ctx: &Ctx) -> Result<Staging, SpackError> {
        let keyring = self.cache.staging(&self.cache.dir("tmp"))?;
        fs::set_permissions(keyring.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        fsutil::write_atomic(&keyring.path().join("trusted.asc"), keys.as_bytes(), 0o644)?;
        let spec = spec.clone().mount(keyring.path(), inside::GNUPG, Access::ReadWrite);
        let file = format!("{}/trusted.asc", inside::GNUPG);
        let argv = ["gpg", "--homedir", inside::GNUPG, "--batch", "--import", &file].map(OsString::from);
        let mut said = Vec::new();
        let mut take = |line: &str| said.push(line.to_owned());
        let exit = self.sandbox.run(&spec, &argv, Io::Lines(&mut take), &ctx.interrupt)?;
        if !exit.success() {
            return Err(io::Error::other(format!("gpg cannot import the trusted keys: {}", said.join("; "))).into());
        }
        Ok(keyring)
    }

    /// Keeps the sandbox for `slurm-factory shell`, which begins in the environment's folder and has a `spack` that means
    /// this environment.
    fn remember_for_shell(&self, build: &Spec, environment: &Path) -> Result<(), SpackError> {
        let inside = render::environment_dir(self.plan);
        let (scope, spack) = (render::scope_dir(self.plan), inside::SPACK);
        let script = format!("#!/bin/sh\nexec {spack}/bin/spack -C {scope} -e {inside} \"$@\"\n");
        fsutil::write_atomic(&environment.join("bin/spack"), script.as_bytes(), 0o755)?;
        let mut shell = build.clone().env("PATH", format!("{inside}/bin:{PATH_INSIDE}"));
        shell.cwd = inside.into();
        let json = serde_json::to_vec_pretty(&shell).map_err(io::Error::other)?;
        Ok(fsutil::write_atomic(&self.cache.dir(LAST_BUILD), &json, 0o600)?)
    }

    /// Runs one Spack command in the environment, follows its output, keeps it in a log. Returns how many
    /// packages were put in place.
    fn spack(&self, spec: &Spec, slot: &Path, stage: Stage, args: &[&str], ctx: &Ctx) -> Result<usize, SpackError> {
        let console = self.console(stage);
        fs::create_dir_all(fsutil::parent_of(&console))?;
        ctx.event(&Event::LogFile { stage, path: console.clone() });
        let mut writer = BufWriter::new(fs::File::create(&console)?);
        let scope = render::scope_dir(self.plan);
        let environment = render::environment_dir(self.plan);
        let spack = format!("{}/bin/spack", inside::SPACK);
        let argv: Vec<OsString> = [spack.as_str(), "--color", "never", "-C", &scope, "-e", &environment]
            .iter()
            .chain(args)
            .map(OsString::from)
            .collect();
        let mut progress = Progress::default();
        let mut counts = (0, 0);
        let mut written = Ok(());
        let mut take = |line: &str| {
            if written.is_ok() {
                written = writeln!(writer, "{line}").and_then(|()| writer.flush());
            }
            ctx.event(&Event::Output { stage, line: line.to_owned() });
            let Some(step) = progress.line(line) else { return };
            let (name, state) = match step {
                Step::Installing { package, number, total } => {
                    counts = (number.saturating_sub(1), total);
                    (package, "building".to_owned())
                }
                Step::Phase { package, phase } => (package, format!("phase {phase}")),
                Step::Installed { package, from_binary } => {
                    counts.0 += 1;
                    (package, if from_binary { "from cache" } else { "installed" }.to_owned())
                }
            };
            ctx.event(&Event::Package { name, state, done: counts.0, total: counts.1 });
        };
        let ended = self.sandbox.run(spec, &argv, Io::Lines(&mut take), &ctx.interrupt);
        written.map_err(|e| fsutil::with_path(&e, "write", &console))?;
        ctx.check()?;
        let why = match ended {
            Ok(exit) if exit.success() => return Ok(progress.installed()),
            Ok(Exit { memory: Some(memory), .. }) => Some(memory),
            Ok(Exit { ended: Ended::Signal(signal), .. }) => Some(format!("Spack was ended by signal {signal}")),
            Ok(_) => None,
            // Which package it was that used too much stands in what Spack said.
            Err(e) if e.over_limit() => Some(e.to_string()),
            Err(e) => return Err(e.into()),
        };
        let mut failure = progress.failure();
        failure.errors.extend(why);
        let log = failure.log.as_ref().and_then(|inside_path| {
            let kept = console.with_file_name("build-failed.log");
            fs::copy(on_host(slot, inside_path), &kept).ok().map(|_| kept)
        });
        let offline = self.plan.execution.offline;
        Err(SpackError::Failed(Box::new(Failed { stage, offline, failure, log, console })))
    }

    /// The file that keeps everything Spack prints in this stage.
    fn console(&self, stage: Stage) -> PathBuf {
        self.cache.dir("logs").join(self.plan.digest.short()).join(format!("{}.log", stage.title()))
    }
}

/// Where source archives are kept, in the cache.
const SOURCE_CACHE: &str = "sourcecache";

/// The sandbox of the last build, for `slurm-factory shell`: a [`Spec`] as JSON, in the cache.
pub const LAST_BUILD: &str = "last-build.json";

/// Packages that the solver chose and that are not in the store. Spack writes `.spack/spec.json` last.
fn missing<'a>(slot: &Path, packages: &'a [LockedPackage]) -> io::Result<Vec<&'a LockedPackage>> {
    let mut there = HashSet::new();
    let entries = match fs::read_dir(install_tree(slot)) {
        Ok(entries) => Some(entries),
        // Nothing was installed yet: Spack makes the folders of the padding with the first package.
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    for entry in entries.into_iter().flatten() {
        let entry = entry?;
        if let Some((_, hash)) = entry.file_name().to_string_lossy().rsplit_once('-')
            && entry.path().join(".spack/spec.json").is_file()
        {
            there.insert(hash.to_owned());
        }
    }
    Ok(packages.iter().filter(|p| !p.external && !there.contains(&p.hash)).collect())
}

/// The install tree of a slot.
pub fn install_tree(slot: &Path) -> PathBuf {
    on_host(slot, inside::INSTALL_TREE)
}

/// The host's path for one inside the slot's mount.
fn on_host(slot: &Path, inside_path: &str) -> PathBuf {
    let below = inside_path.strip_prefix(inside::ROOT).unwrap_or(inside_path);
    slot.join(below.trim_start_matches('/'))
}

fn shown(pin: &crate::plan::SourcePin) -> String {
    let commit = &pin.commit[..pin.commit.len().min(12)];
    if pin.reference.is_empty() { format!("tree {commit}") } else { format!("{} ({commit})", pin.reference) }
}
