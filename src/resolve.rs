//! Gathers what a plan needs to know, by I/O, before any work: what a tag means, which commit Spack is, what the
//! host offers. The only place, with the command line, that looks at the environment.

use crate::cache::{Cache, CacheError};
use crate::catalog::{Catalog, CatalogError, SlurmRelease, Toolchain};
use crate::config::{ConfigError, Settings, parse_size};
use crate::fsutil;
use crate::image::{BadReference, ClientConfig, ImageError, Platform, RegistriesError, ResolveOptions, ResolvedImage};
use crate::plan::{
    self, BuildPlan, BuildRequest, Compression, Facts, HostAccess, Network, PlanError, Publish, Variant,
};
use crate::relocate::{Rules, RulesError};
use crate::report::Ctx;
use crate::rootfs::{self, PrepareError};
use crate::sandbox::{
    Backend, Confinement, Host, Ids, LEAST_DISK, LEAST_MEMORY, Limits, Sandbox, SandboxError, Writable,
};
use crate::sign::{Fingerprint, SignError};
use crate::spack::{SourceError, own_repo, source};
use fs_err as fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod host;
mod key;
mod publish;
mod registries;
mod sense;

pub use key::{AskPassphrase, KeySource, PASSPHRASE, SIGNING_KEY, key_there, make_key};
pub use publish::{BinaryMirrors, reach};
pub use registries::{image_reference, whole_name};

/// Why a plan could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A setting has a value that it cannot have.
    #[error("{key}: `{value}` is not one of {}", known.join(", "))]
    Value {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        known: &'static [&'static str],
    },
    /// A key that is to be trusted is named by something else than its fingerprint.
    #[error("{key}: `{value}` is no whole fingerprint: 40 or 64 hexadecimal digits, as `gpg --fingerprint` shows them")]
    Fingerprint {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// A binary cache that has a key and no address.
    #[error("there is no `url`; those that have one are {}", known.join(", "))]
    NoUrl {
        /// The caches of the catalog with an address.
        known: Vec<String>,
    },
    /// What a site says of a binary cache of others.
    #[error("catalog.caches.{name}: {source}")]
    OfCache {
        /// The cache's name in the catalog.
        name: String,
        /// What is wrong.
        source: Box<ResolveError>,
    },
    /// A size that is none.
    #[error("{key}: {source}")]
    Size {
        /// The setting.
        key: &'static str,
        /// What a size is.
        source: ConfigError,
    },
    /// A file that does not parse.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Not in the catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Not an image reference.
    #[error(transparent)]
    Reference(#[from] BadReference),
    /// What is configured about registries cannot be used.
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    /// A file that is named or that must count cannot be read; the error names it.
    #[error("configuration: {0}")]
    Unreadable(#[source] io::Error),
    /// The image could not be looked up.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Spack or recipes could not be looked up.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// More than one place for the signing key.
    #[error("the signing key is named twice, by {first} and by {second}; leave one out")]
    TwoKeys {
        /// One place.
        first: &'static str,
        /// Another.
        second: &'static str,
    },
    /// A file descriptor that cannot be read.
    #[error("--key-fd {number}: {source}; it must be open for reading, as in `--key-fd 3 3<key.asc`")]
    KeyDescriptor {
        /// Its number.
        number: i32,
        /// The system's reason.
        source: io::Error,
    },
    /// The passphrase could not be asked for.
    #[error("cannot ask for the passphrase of the signing key: {0}")]
    Ask(#[source] io::Error),
    /// The signing key cannot be used.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// No sandbox can be made here.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The embedded rules are wrong.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// A folder named in a setting is not there.
    #[error("{key}: folder `{path}` does not exist")]
    NoFolder {
        /// The setting.
        key: &'static str,
        /// The folder.
        path: PathBuf,
    },
    /// An address that nothing can be fetched from.
    #[error("{key}: `{address}` cannot be used: {why}")]
    Address {
        /// The setting.
        key: &'static str,
        /// The address, without a login.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// A folder of wheels that is not complete.
    #[error(
        "pip-index: the folder `{}` lacks wheels that the toolchain pins: {missing}; `pip download --only-binary :all: -d DIR` \
         brings them where there is a network",
        folder.display()
    )]
    NoWheels {
        /// The folder.
        folder: PathBuf,
        /// Names and versions.
        missing: String,
    },
    /// The image is of another distribution than the toolchain's.
    #[error(transparent)]
    Distribution(#[from] PrepareError),
    /// A file that a setting or variable names cannot be read.
    #[error("{key}: `{path}` cannot be read: {source}")]
    Named {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A snapshot of the package archive that cannot be had.
    #[error("apt-snapshot: {0}")]
    Snapshot(String),
    /// Nothing can run from the folder.
    #[error(
        "`{path}` is on a file system that is mounted noexec, so no program in it can run; choose another --cache-dir or --build-dir"
    )]
    NoExec {
        /// The cache or the build folder.
        path: PathBuf,
    },
    /// Nothing can be made there.
    #[error("`{path}` cannot be written ({source}); choose another --cache-dir or --build-dir")]
    Closed {
        /// The cache or the build folder.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The home folder is needed and not known.
    #[error("HOME is not set: name the cache folder with --cache-dir or SLURM_FACTORY_CACHE_DIR")]
    NoHome,
}

/// Shared memory inside the sandbox when nothing is said, bytes.
const SHM_SIZE: u64 = 2 << 30;

/// What flags alone can say: they hold for one run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flags {
    /// `--gpu`
    pub gpu: bool,
    /// `--minimal`
    pub minimal: bool,
    /// `--offline`
    pub offline: bool,
    /// `--no-cache`
    pub no_cache: bool,
    /// `--no-bootstrap`
    pub no_bootstrap: bool,
    /// `--publish`
    pub publish: Option<Publish>,
}

/// Reads variables of the environment; tests pass their own.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Everything that a build needs, looked up and checked.
pub struct Resolved {
    /// What was asked.
    pub request: BuildRequest,
    /// What will be done.
    pub plan: BuildPlan,
    /// The image, its digest known.
    pub image: ResolvedImage,
    /// How registries are reached.
    pub client: Arc<ClientConfig>,
    /// Binary caches of others, and how they are reached.
    pub mirrors: BinaryMirrors,
    /// What of the host the sandboxes may use.
    pub host: HostAccess,
    /// What is pruned and allowed.
    pub rules: Rules,
    /// How packages are installed into the rootfs.
    pub family: crate::catalog::Family,
    /// Programs of the rootfs that Spack takes as they are.
    pub probes: Vec<crate::catalog::Probe>,
    /// Where store, views and stages are.
    pub build_dir: PathBuf,
}

impl Resolved {
    /// What the root file system is made of. `ids` are those that its files belong to.
    pub fn rootfs_recipe(&self, ids: Ids) -> rootfs::Recipe<'_> {
        let toolchain = &self.plan.identity.toolchain;
        rootfs::Recipe {
            toolchain: &toolchain.name,
            image: &toolchain.image,
            image_digest: &toolchain.image_digest,
            os_release: &toolchain.os_release,
            packages: &toolchain.packages,
            requirements: &toolchain.requirements,
            probes: &self.probes,
            family: self.family,
            package_sources: toolchain.package_sources.as_deref(),
            snapshot: toolchain.snapshot.as_deref(),
            ids,
        }
    }
}

/// The cache folder that settings and environment name.
pub fn cache_dir(settings: &Settings, lookup: Lookup<'_>) -> Result<PathBuf, ResolveError> {
    if let Some(dir) = &settings.cache_dir {
        return Ok(dir.clone());
    }
    lookup("HOME").map(|home| Path::new(&home).join(".slurm-factory")).ok_or(ResolveError::NoHome)
}

/// Settings and flags, with defaults in place of what was not said.
pub fn request(settings: &Settings, flags: Flags, catalog: &Catalog) -> Result<BuildRequest, ResolveError> {
    let defaults = &catalog.defaults;
    let or = |value: &Option<String>, default: &str| value.clone().unwrap_or_else(|| default.to_owned());
    let variant = match (flags.gpu, flags.minimal) {
        (true, _) => Variant::Gpu,
        (_, true) => Variant::Minimal,
        _ => Variant::Default,
    };
    let compression = match or(&settings.compression, "gzip").as_str() {
        "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        other => return Err(bad("compression", other, &["gzip", "zstd"])),
    };
    let network = match or(&settings.network, "host").as_str() {
        "host" => Network::Host,
        "fetch-only" => Network::FetchOnly,
        "none" => Network::None,
        other => return Err(bad("network", other, &["host", "fetch-only", "none"])),
    };
    let limits = limits(settings)?;
    Ok(BuildRequest {
        slurm_version: or(&settings.slurm_version, &defaults.slurm),
        compiler_version: or(&settings.compiler_version, &defaults.compiler),
        toolchain: or(&settings.toolchain, &defaults.toolchain),
        variant,
        choice: plan::Choice {
            with: settings.with.clone().unwrap_or_default(),
            without: settings.without.clone().unwrap_or_default(),
            spec: settings.spec.clone(),
            target: settings.target.clone(),
            no_bootstrap: flags.no_bootstrap,
        },
        compression,
        jobs: settings.jobs.unwrap_or_else(|| match settings.cpus {
            Some(cpus) if cpus > 0 => cpus.min(4),
            _ => 4,
        }),
        cpus: settings.cpus.unwrap_or(0),
        memory: limits.memory.unwrap_or(0),
        shm_size: size("shm-size", settings.shm_size.as_deref())?.unwrap_or(SHM_SIZE),
        disk: limits.disk.unwrap_or(0),
        nice: limits.nice,
        network,
        offline: flags.offline,
        use_cache: !flags.no_cache,
        publish: flags.publish.unwrap_or(Publish::None),
    })
}

fn size(key: &'static str, text: Option<&str>) -> Result<Option<u64>, ResolveError> {
    text.map(parse_size).transpose().map_err(|source| ResolveError::Size { key, source })
}

fn bad(key: &'static str, value: &str, known: &'static [&'static str]) -> ResolveError {
    ResolveError::Value { key, value: value.to_owned(), known }
}

/// The backend that settings name.
pub fn backend(settings: &Settings) -> Result<Backend, ResolveError> {
    match settings.backend.as_deref().unwrap_or("auto") {
        "auto" => Ok(Backend::Auto),
        "userns" => Ok(Backend::Userns),
        "podman" => Ok(Backend::Podman),
        other => Err(bad("backend", other, &["auto", "userns", "podman"])),
    }
}

/// Whether files of a rootfs belong to whom the image names, by a range of subordinate ids.
fn owners(settings: &Settings) -> Result<bool, ResolveError> {
    match settings.ownership.as_deref().unwrap_or("single") {
        "single" => Ok(false),
        "range" => Ok(true),
        other => Err(bad("ownership", other, &["single", "range"])),
    }
}

/// Refuses what can be refused without asking anyone: names that are not known, and folders in which no program
/// could run.
pub fn check(
    settings: &Settings,
    flags: Flags,
    cache: &Cache,
    lookup: Lookup<'_>,
    ctx: &Ctx,
) -> Result<(), ResolveError> {
    let catalog = Catalog::embedded()?.with(settings.catalog.clone());
    let request = request(settings, flags, &catalog)?;
    plan::check(&request, &catalog)?;
    check_sandbox(settings)?;
    let build_dir = build_dir(settings, cache, lookup);
    if let (None, Some(name)) = (&settings.build_dir, fsutil::shared_file_system(cache.root())) {
        ctx.note(format!(
            "the cache is on {name}; store and stages go to the local folder {} (--build-dir names another)",
            build_dir.display()
        ));
    }
    sense::limits(&request, &build_dir, ctx);
    for path in [cache.root().to_owned(), build_dir] {
        // The build folder may not be there yet; what holds it is mounted the same.
        let there = fsutil::existing(&path).map_err(|source| ResolveError::Closed { path: path.clone(), source })?;
        if fsutil::mounted_noexec(there) {
            return Err(ResolveError::NoExec { path });
        }
        fsutil::writable(there).map_err(|source| ResolveError::Closed { path, source })?;
    }
    Ok(())
}

/// Files and folders of this machine that settings name, read before anybody else is asked for anything.
struct Local {
    source_mirrors: Vec<String>,
    binary_mirrors: Vec<String>,
    mirror_keys: Vec<Fingerprint>,
    packages: host::PackageSources,
    access: HostAccess,
    repos: Vec<plan::RepoPin>,
}

fn local(
    settings: &Settings,
    catalog: &Catalog,
    toolchain: &Toolchain,
    lookup: Lookup<'_>,
    ctx: &Ctx,
) -> Result<Local, ResolveError> {
    for (key, source) in [("spack-source", &settings.spack_source), ("spack-packages", &settings.spack_packages)] {
        if let Some(path) = source.as_deref().filter(|s| s.starts_with(['/', '.'])).map(Path::new)
            && !path.exists()
        {
            return Err(ResolveError::NoFolder { key, path: path.to_owned() });
        }
    }
    let access = host::access(settings, lookup)?;
    if let (Some(_), Some(folder)) = (&settings.pip_index, access.wheels.first()) {
        sense::wheels(folder, toolchain)?;
    }
    let (binary_mirrors, mirror_keys) = publish::binary_mirrors(settings, catalog, toolchain)?;
    Ok(Local {
        source_mirrors: folders_or_urls("source-mirrors", settings.source_mirrors.as_deref().unwrap_or_default())?,
        binary_mirrors,
        mirror_keys,
        packages: host::package_sources(settings, toolchain, ctx)?,
        access,
        repos: settings.spack_repos.iter().flatten().map(|p| source::recipe_repo(p)).collect::<Result<_, _>>()?,
    })
}

/// The toolchain that settings name, or the catalog's default.
pub fn toolchain(settings: &Settings, catalog: &Catalog) -> Result<Toolchain, CatalogError> {
    catalog.toolchain(settings.toolchain.as_ref().unwrap_or(&catalog.defaults.toolchain))
}

/// The builtin recipes where settings name no others: those that have the compiler.
pub fn recipes_pin(settings: &Settings, toolchain: &Toolchain, catalog: &Catalog) -> crate::catalog::GitPin {
    let asked = settings.compiler_version.as_ref().unwrap_or(&catalog.defaults.compiler);
    let reference = plan::compiler::recipes(asked, toolchain, catalog).to_owned();
    crate::catalog::GitPin { reference, ..catalog.spack_packages.clone() }
}

/// Looks everything up and makes the plan. What is known to be impossible is refused before the network is
/// asked anything; [`check`] has been called.
pub fn resolve(
    settings: &Settings,
    flags: Flags,
    cache: &Cache,
    lookup: Lookup<'_>,
    ctx: &Ctx,
) -> Result<Resolved, ResolveError> {
    let catalog = Catalog::embedded()?.with(settings.catalog.clone());
    let request = request(settings, flags, &catalog)?;
    let (release, toolchain) = plan::check(&request, &catalog)?;
    let local = local(settings, &catalog, &toolchain, lookup, ctx)?;
    let rules = Rules::of_site(&settings.catalog.relocate)?;
    let build_dir = build_dir(settings, cache, lookup);

    let (reference, client) =
        image_reference(settings.image.as_deref().unwrap_or(&toolchain.image), settings, lookup, ctx)?;
    let platform = Platform::host()?;
    let options = ResolveOptions { offline: request.offline, refresh: false };
    let image = crate::image::resolve(&reference, platform, cache, &client, options, ctx)?;
    sense::distribution(&image, &toolchain, cache)?;

    let find = |what, source: &Option<String>, reference: &Option<String>, pin: &crate::catalog::GitPin| {
        let source = source.as_deref().unwrap_or(&pin.source);
        let reference = reference.as_deref().unwrap_or(&pin.reference);
        source::resolve(what, source, reference, request.offline, cache, ctx)
    };
    let spack = find("Spack", &settings.spack_source, &settings.spack_reference, &catalog.spack)?;
    let recipes = recipes_pin(settings, &toolchain, &catalog);
    let spack_packages = find("Spack recipes", &settings.spack_packages, &settings.spack_packages_reference, &recipes)?;
    // A tree has no reference.
    if settings.spack_packages_reference.is_none()
        && recipes.reference != catalog.spack_packages.reference
        && spack_packages.reference == recipes.reference
    {
        ctx.note(format!("Spack's recipes are {}, which have GCC {}", recipes.reference, request.compiler_version));
    }
    let facts = Facts {
        image: reference.to_string(),
        image_digest: image.digest().to_string(),
        platform: platform.to_string(),
        spack,
        spack_packages,
        own_repo_digest: own_repo::digest(&release),
        bare_repo_digest: own_repo::digest(&SlurmRelease::none()),
        rules_digest: rules.digest().to_owned(),
        repos: local.repos,
        source_mirrors: local.source_mirrors,
        binary_mirrors: local.binary_mirrors,
        package_sources: local.packages.sources,
        snapshot: local.packages.snapshot,
        host_cpus: host_cpus(),
    };
    let plan = plan::plan(&request, &catalog, facts)?;
    let client = Arc::new(client);
    // For an image in a file nothing about registries was read.
    let known = reference.path().is_none().then_some(&client);
    let places = &plan.execution.binary_mirrors;
    let mirrors = BinaryMirrors::new(places, local.mirror_keys, request.offline, known, settings, lookup, ctx)?;
    Ok(Resolved {
        mirrors,
        request,
        plan,
        image,
        client,
        host: HostAccess { package_mirror: local.packages.mirror, ..local.access },
        rules,
        family: toolchain.family,
        probes: toolchain.external,
        build_dir,
    })
}

/// Processors that this process may use.
fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
}

/// The sandbox of this host, by really trying, with the limits that settings set.
pub fn sandbox(settings: &Settings, ctx: &Ctx) -> Result<Sandbox, ResolveError> {
    as_set(Sandbox::open(backend(settings)?, &ctx.interrupt)?, settings, ctx)
}

/// The sandbox of this host for what takes milliseconds: not tried when it worked before.
pub fn known_sandbox(settings: &Settings, cache: &Cache, ctx: &Ctx) -> Result<Sandbox, ResolveError> {
    as_set(Sandbox::open_known(backend(settings)?, &cache.dir("hosts"), &ctx.interrupt)?, settings, ctx)
}

/// The sandbox that settings ask for, for showing what is done in it: whether namespaces can be made here is not tried. A range
/// of subordinate ids and a layer are, which settings have to ask for.
pub fn untried(settings: &Settings) -> Result<Sandbox, ResolveError> {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let host = Host { uid, gid, own_proc: true, ids: Ids::Single };
    shaped(Sandbox::remembered(host), settings)
}

fn shaped(sandbox: Sandbox, settings: &Settings) -> Result<Sandbox, ResolveError> {
    let sandbox = sandbox.confined(confinement(settings)?);
    Ok(if owners(settings)? { sandbox.with_range()? } else { sandbox })
}

/// The same with a layer over the rootfs, when settings ask for one.
pub fn layered(
    sandbox: Sandbox,
    settings: &Settings,
    cache: &Cache,
    lookup: Lookup<'_>,
) -> Result<Sandbox, ResolveError> {
    let Some(wanted) = writable(settings)? else { return Ok(sandbox) };
    let folder = build_dir(settings, cache, lookup).join(LAYERS);
    Ok(sandbox.writable(wanted, &folder, cache)?)
}

/// Where layers are made, in the build folder.
pub const LAYERS: &str = "layers";

fn writable(settings: &Settings) -> Result<Option<Writable>, ResolveError> {
    match settings.writable.as_deref().unwrap_or("none") {
        "none" => Ok(None),
        "auto" => Ok(Some(Writable::Auto)),
        "overlay" => Ok(Some(Writable::Overlay)),
        "fuse-overlayfs" => Ok(Some(Writable::FuseOverlayfs)),
        "copy" => Ok(Some(Writable::Copy)),
        other => Err(bad("writable", other, &["none", "auto", "overlay", "fuse-overlayfs", "copy"])),
    }
}

fn as_set(sandbox: Sandbox, settings: &Settings, ctx: &Ctx) -> Result<Sandbox, ResolveError> {
    Ok(shaped(sandbox, settings)?.limited(limits(settings)?, &ctx.interrupt)?)
}

/// Refuses settings of the sandbox that it cannot have.
pub fn check_sandbox(settings: &Settings) -> Result<(), ResolveError> {
    backend(settings)?;
    confinement(settings)?;
    owners(settings)?;
    writable(settings)?;
    limits(settings)?;
    Ok(())
}

/// The confinement that settings name.
fn confinement(settings: &Settings) -> Result<Confinement, ResolveError> {
    match settings.confinement.as_deref().unwrap_or("strict") {
        "strict" => Ok(Confinement::Strict),
        "relaxed" => Ok(Confinement::Relaxed),
        other => Err(bad("confinement", other, &["strict", "relaxed"])),
    }
}

/// What a build may use.
pub fn limits(settings: &Settings) -> Result<Limits, ResolveError> {
    let some = |key, text: &Option<String>| size(key, text.as_deref()).map(|bytes| bytes.filter(|bytes| *bytes > 0));
    let memory = some("memory", &settings.memory)?;
    if memory.is_some_and(|bytes| bytes < LEAST_MEMORY) {
        return Err(bad("memory", settings.memory.as_deref().unwrap_or_default(), &["0 (all)", "64M and more"]));
    }
    let disk = some("disk", &settings.disk)?;
    if disk.is_some_and(|bytes| bytes < LEAST_DISK) {
        return Err(bad("disk", settings.disk.as_deref().unwrap_or_default(), &["0 (all)", "64M and more"]));
    }
    let nice = settings.nice.unwrap_or(0);
    let nice = u8::try_from(nice).ok().filter(|nice| *nice < 20);
    Ok(Limits {
        cpus: settings.cpus.and_then(|cpus| usize::try_from(cpus).ok()).filter(|cpus| *cpus > 0),
        memory,
        disk,
        nice: nice.ok_or_else(|| bad("nice", &settings.nice.unwrap_or(0).to_string(), &["0 to 19"]))?,
    })
}

fn folders_or_urls(key: &'static str, given: &[String]) -> Result<Vec<String>, ResolveError> {
    given
        .iter()
        .map(|mirror| {
            let path = mirror.strip_prefix("file://").unwrap_or(mirror);
            if path.contains("://") {
                sense::address(key, mirror)?;
                return Ok(mirror.clone());
            }
            let refuse = || ResolveError::NoFolder { key, path: path.into() };
            let path = fs::canonicalize(path).map_err(|_| refuse())?;
            path.to_str().map(str::to_owned).ok_or_else(refuse)
        })
        .collect()
}

/// Store and stages belong on a local disk: Spack's locks and many small files do badly on a shared one.
pub fn build_dir(settings: &Settings, cache: &Cache, lookup: Lookup<'_>) -> PathBuf {
    if let Some(dir) = &settings.build_dir {
        return dir.clone();
    }
    if fsutil::shared_file_system(cache.root()).is_none() {
        return cache.dir("work");
    }
    let parent = lookup("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    parent.join(format!("slurm-factory-{}", nix::unistd::getuid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_that_users_know() {
        let catalog = Catalog::embedded().unwrap();
        let request = request(&Settings::default(), Flags::default(), &catalog).unwrap();
        assert_eq!((request.jobs, request.shm_size), (4, 2 << 30));
        assert_eq!(request.slurm_version, "25.11");
    }

    #[test]
    fn a_wrong_value_is_answered_with_the_right_ones() {
        let catalog = Catalog::embedded().unwrap();
        let settings = Settings { compression: Some("rar".into()), ..Settings::default() };
        let error = request(&settings, Flags::default(), &catalog).unwrap_err().to_string();
        assert!(error.contains("rar") && error.contains("zstd"), "{error}");
    }
}
