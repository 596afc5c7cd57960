//! From what was asked ([`BuildRequest`]) and what was found out ([`Facts`]) to what will be done
//! ([`BuildPlan`]): pure, without I/O, clock or chance.
//!
//! A plan has two halves. [`Identity`] is everything that decides the package's content: its SHA-256 is the
//! build's name, under which a finished package is found again. [`Execution`] is everything else (how many
//! jobs, which backend), which may differ between two runs that make the same package.
//!
//! Whatever cannot be done is refused here, before any work: [`PlanError`].

pub mod choice;
pub mod compiler;

pub use choice::Choice;
pub use compiler::CompilerPlan;

use crate::catalog::{Catalog, CatalogError, OsRelease, SlurmRelease, Toolchain, VariantSpec};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Where things lie inside the build sandbox. The paths are part of what is built: changing one changes every
/// package's bytes.
pub mod inside {
    /// The one bind mount that holds store, environments, views and stages. No host has a folder of this name
    /// at its root and only root could make one, so a path that is left over in a binary is harmless and easy
    /// to find.
    pub const ROOT: &str = "/slurm-factory.build";
    /// What Spack is told is the root of its install tree. Its helper for scripts (`bin/sbang`) is all that lies here.
    pub const STORE: &str = "/slurm-factory.build/store";
    /// How long Spack makes the path of the install tree, in bytes (`config:install_tree:padded_length`). A name that is compiled
    /// into a file can only be replaced by one that is not longer: this is the longest store in which binaries of ours can be
    /// installed by Spack.
    pub const PADDED_LENGTH: usize = INSTALL_TREE.len();
    /// The install tree: [`STORE`] and what Spack pads it with (`spack.util.path.add_padding`).
    pub const INSTALL_TREE: &str = "/slurm-factory.build/store/__spack_path_placeholder__/\
                                    __spack_path_placeholder__/__spack_path_placeholder__/__spack_path_placeho";
    /// One folder an environment: `spack.yaml`, `spack.lock`.
    pub const ENVIRONMENTS: &str = "/slurm-factory.build/env";
    /// One folder an environment: the view.
    pub const VIEWS: &str = "/slurm-factory.build/view";
    /// One folder an environment: Spack's configuration scope.
    pub const SCOPES: &str = "/slurm-factory.build/scope";
    /// Spack's build stages.
    pub const STAGE: &str = "/slurm-factory.build/stage";
    /// Spack's caches of parsed recipes.
    pub const MISC: &str = "/slurm-factory.build/misc";
    /// `SPACK_USER_CACHE_PATH`.
    pub const USER: &str = "/slurm-factory.build/user";
    /// `HOME`.
    pub const HOME: &str = "/slurm-factory.build/home";
    /// Spack itself, read-only.
    pub const SPACK: &str = "/opt/spack";
    /// The builtin recipes, read-only.
    pub const PACKAGES: &str = "/opt/spack-packages";
    /// Our recipes, read-only.
    pub const OWN_REPO: &str = "/opt/slurm-factory/repo";
    /// Recipe repositories that the site adds, read-only, numbered from 0.
    pub const OVERLAYS: &str = "/opt/slurm-factory/overlay";
    /// Source mirrors that the site adds, read-only, numbered from 0.
    pub const MIRRORS: &str = "/var/cache/slurm-factory/mirror";
    /// The binaries that were taken from mirrors and checked, read-only, in the folder `0` below it.
    pub const BINARIES: &str = "/var/cache/slurm-factory/binary";
    /// `SPACK_GNUPGHOME`: the keyring of one run, read-only, and not below [`ROOT`], which recipes write to. In memory, where a
    /// mount point can always be made.
    pub const GNUPG: &str = "/run/spack-gnupg";
    /// The source cache, writable.
    pub const SOURCE_CACHE: &str = "/var/cache/slurm-factory/sourcecache";
}

/// How many overlays and mirrors of each kind the prepared rootfs has mount points for.
pub const MOUNT_SLOTS: usize = 8;

/// 1980-01-01, the oldest time that every archive format can hold.
const EPOCH: u64 = 315_532_800;

/// Raised when the same inputs are turned into different content by a new version of this program.
pub const CONTENT_REVISION: u32 = 3;

/// What of the host the sandboxes may use to reach the network. Gathered by `resolve`, never part of a plan's
/// identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostAccess {
    /// A CA bundle in PEM form, for sites with a CA of their own.
    pub ca_bundle: Option<PathBuf>,
    /// `http_proxy` and its kin, pip's settings: names and values.
    pub env: Vec<(String, String)>,
    /// Folders of wheels that pip may look into, mounted at the same path.
    pub wheels: Vec<PathBuf>,
    /// A CA bundle for pip alone, seen at the same path inside.
    pub pip_cert: Option<PathBuf>,
    /// URL or folder of a mirror of the distribution's archive: the same packages, signed by the same keys.
    /// `{snapshot}` in it stands for the time of the snapshot.
    pub package_mirror: Option<String>,
}

/// What was asked cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Something named is not in the catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// It is known, but this version of the program does not do it.
    #[error("{what} is not available yet: {why}")]
    NotYet {
        /// What was asked.
        what: String,
        /// Why, and what to do instead.
        why: String,
    },
    /// Two things that were asked do not go together.
    #[error("{0}")]
    Conflict(String),
}

/// Which feature set of Slurm is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// What most clusters want.
    Default,
    /// The least that runs.
    Minimal,
    /// With GPU autodetection.
    Gpu,
}

impl Variant {
    /// The name in the catalog.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Minimal => "minimal",
            Self::Gpu => "gpu",
        }
    }
}

/// How the archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// `.tar.gz`
    Gzip,
    /// `.tar.zst`
    Zstd,
}

impl Compression {
    /// The end of the file's name.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Gzip => "tar.gz",
            Self::Zstd => "tar.zst",
        }
    }
}

/// The network inside the build sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The host's.
    Host,
    /// The host's while sources are fetched; none while packages are built.
    FetchOnly,
    /// None but a loopback of its own.
    None,
}

/// What the user wants, after configuration and flags were merged. Unset values stand at their defaults.
#[derive(Debug, Clone, Serialize)]
pub struct BuildRequest {
    /// As typed: `24.11`.
    pub slurm_version: String,
    /// `system` or a GCC version.
    pub compiler_version: String,
    /// Toolchain's name.
    pub toolchain: String,
    /// Feature set.
    pub variant: Variant,
    /// What is chosen beyond it.
    pub choice: Choice,
    /// Archive format.
    pub compression: Compression,
    /// Parallel jobs, 0 for all processors.
    pub jobs: u32,
    /// Processors, 0 for all.
    pub cpus: u32,
    /// Memory, bytes, 0 for all.
    pub memory: u64,
    /// Shared memory inside the sandbox, bytes, 0 for all.
    pub shm_size: u64,
    /// What may be written, bytes, 0 for all.
    pub disk: u64,
    /// How much processor time is left to others, 0 to 19.
    pub nice: u8,
    /// Network inside the build sandbox.
    pub network: Network,
    /// Whether anything may be fetched.
    pub offline: bool,
    /// Whether a finished package may be taken from the cache.
    pub use_cache: bool,
    /// Whether the finished package is sent somewhere.
    pub publish: Publish,
}

/// What is published after a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Publish {
    /// Nothing.
    None,
    /// The Slurm package.
    SlurmOnly,
    /// The compiler's package.
    CompilerOnly,
    /// Dependencies as well.
    All,
}

/// A git repository (or a plain tree) at an exact state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePin {
    /// URL or path as given.
    pub source: String,
    /// Tag as given, empty for a plain tree.
    pub reference: String,
    /// Commit, or the SHA-256 of the tree's content.
    pub commit: String,
}

/// A recipe repository of the site, at an exact state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoPin {
    /// Folder on the host.
    pub path: PathBuf,
    /// Namespace from its `repo.yaml`.
    pub namespace: String,
    /// SHA-256 of its content.
    pub digest: String,
}

/// What `resolve` found out.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The image reference as used.
    pub image: String,
    /// Digest of the platform's manifest.
    pub image_digest: String,
    /// `linux/amd64`.
    pub platform: String,
    /// Spack.
    pub spack: SourcePin,
    /// Builtin recipes.
    pub spack_packages: SourcePin,
    /// SHA-256 of our own recipes.
    pub own_repo_digest: String,
    /// SHA-256 of our own recipes without any release of Slurm: those of a compiler.
    pub bare_repo_digest: String,
    /// SHA-256 of the rules by which a package is pruned and relocated.
    pub rules_digest: String,
    /// The site's recipe repositories, highest precedence first.
    pub repos: Vec<RepoPin>,
    /// Source mirrors: folders or URLs.
    pub source_mirrors: Vec<String>,
    /// Binary mirrors: folders or URLs.
    pub binary_mirrors: Vec<String>,
    /// Text of the site's package sources, in the form of the toolchain's package manager.
    pub package_sources: Option<String>,
    /// The time at which the package archive is looked at.
    pub snapshot: Option<String>,
    /// Processors of this host that we may use.
    pub host_cpus: u32,
}

/// The toolchain's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToolchainPlan {
    /// Its name.
    pub name: String,
    /// The image.
    pub image: String,
    /// The manifest's digest.
    pub image_digest: String,
    /// `linux/amd64`.
    pub platform: String,
    /// What the image must say it is.
    pub os_release: OsRelease,
    /// Packages that are installed, sorted.
    pub packages: Vec<String>,
    /// Python wheels with their sums.
    pub requirements: String,
    /// Major version of the distribution's GCC.
    pub system_gcc: String,
    /// The distribution's glibc: the newest that a package can come to need.
    pub glibc: String,
    /// The site's package sources, when they take the place of the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package_sources: Option<String>,
    /// The time at which the package archive is looked at, `20260101T000000Z`; now when not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

/// Everything that decides the package's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Version of this program that made the plan.
    pub tool: String,
    /// See [`CONTENT_REVISION`].
    pub content_revision: u32,
    /// The version as typed, which names files.
    pub slurm_version: String,
    /// The release.
    pub release: SlurmRelease,
    /// Feature set.
    pub variant: Variant,
    /// `system` or a GCC version.
    pub compiler: String,
    /// The GCC that Spack builds first, when it is not the toolchain's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gcc: Option<CompilerPlan>,
    /// The base.
    pub toolchain: ToolchainPlan,
    /// Spack.
    pub spack: SourcePin,
    /// Builtin recipes.
    pub spack_packages: SourcePin,
    /// SHA-256 of our own recipes.
    pub own_repo_digest: String,
    /// SHA-256 of the rules by which a package is pruned and relocated.
    pub rules_digest: String,
    /// SHA-256 of each of the site's recipe repositories.
    pub repo_digests: Vec<String>,
    /// What Spack is asked for.
    pub spec: String,
    /// What Spack is asked for beside Slurm.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<String>,
    /// What of the catalog's features is in, sorted.
    pub features: Vec<String>,
    /// What Spack must choose for a package.
    pub pins: BTreeMap<String, String>,
    /// Which packages stand for a virtual one, best first.
    pub providers: BTreeMap<String, Vec<String>>,
    /// Architecture that code is made for, in Spack's words.
    pub target: String,
    /// Where the store lies inside the sandbox.
    pub store: String,
    /// Time of every file in the archive, seconds since 1970. Not a clock's: the same plan makes the same bytes.
    pub epoch: u64,
    /// Archive format.
    pub compression: Compression,
}

/// What may differ between two runs that make the same package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Execution {
    /// Parallel compile jobs.
    pub jobs: u32,
    /// Processors the sandbox may use.
    pub cpus: u32,
    /// Memory, bytes, 0 for all.
    pub memory: u64,
    /// Shared memory, bytes, 0 for all.
    pub shm_size: u64,
    /// What may be written, bytes, 0 for all.
    pub disk: u64,
    /// As in nice(1).
    pub nice: u8,
    /// Network inside.
    pub network: Network,
    /// Whether anything may be fetched.
    pub offline: bool,
    /// Recipe repositories on the host.
    pub repos: Vec<RepoPin>,
    /// Source mirrors: folders or URLs.
    pub source_mirrors: Vec<String>,
    /// Binary mirrors: folders or URLs.
    pub binary_mirrors: Vec<String>,
}

/// A build, thought through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildPlan {
    /// SHA-256 of `identity` as compact JSON: the build's name.
    pub digest: PlanDigest,
    /// SHA-256 of the part of `identity` that Spack works on: plans that differ only in how the result is named,
    /// relocated and packed share an environment.
    pub environment: PlanDigest,
    /// What decides the content.
    pub identity: Identity,
    /// What does not.
    pub execution: Execution,
}

/// A build's name: 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanDigest(String);

impl PlanDigest {
    /// The first twelve digits, for names of folders.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for PlanDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks what can be checked before anything was looked up: versions, names, and what this program does.
pub fn check(request: &BuildRequest, catalog: &Catalog) -> Result<(SlurmRelease, Toolchain), PlanError> {
    let release = catalog.slurm(&request.slurm_version)?.clone();
    let toolchain = catalog.toolchain(&request.toolchain)?;
    compiler::choose(&request.compiler_version, !request.choice.no_bootstrap, catalog, &toolchain)?;
    choice::choose(variant_spec(request.variant, catalog)?, &request.choice, catalog)?;
    // For which platform, the image will say.
    if let Some(asked) = &request.choice.target
        && !catalog.target.iter().any(|known| known.name == *asked)
    {
        catalog.target(Some(asked), "any platform")?;
    }
    Ok((release, toolchain))
}

/// What the catalog has for a variant.
fn variant_spec(variant: Variant, catalog: &Catalog) -> Result<&VariantSpec, CatalogError> {
    catalog.variants.get(variant.name()).ok_or_else(|| CatalogError::Unknown {
        what: "variant",
        asked: variant.name().to_owned(),
        known: catalog.variants.keys().cloned().collect(),
    })
}

/// Makes the plan.
pub fn plan(request: &BuildRequest, catalog: &Catalog, facts: Facts) -> Result<BuildPlan, PlanError> {
    let (release, toolchain) = check(request, catalog)?;
    for (what, count) in [("--spack-repo", facts.repos.len()), ("source mirrors", facts.source_mirrors.len())] {
        if count > MOUNT_SLOTS {
            return Err(PlanError::Conflict(format!("{what}: {count} were given, at most {MOUNT_SLOTS} can be used")));
        }
    }
    let chosen = choice::choose(variant_spec(request.variant, catalog)?, &request.choice, catalog)?;
    let gcc = compiler::choose(&request.compiler_version, !request.choice.no_bootstrap, catalog, &toolchain)?;
    compiler::check_recipes(gcc.as_ref(), &facts.spack_packages.reference, catalog)?;
    let target = catalog.target(request.choice.target.as_deref(), &facts.platform)?;
    let mut packages: Vec<_> = toolchain.packages.iter().map(|p| p.name.clone()).collect();
    packages.sort();
    packages.dedup();
    let mut providers = catalog.providers.clone();
    providers.extend(toolchain.providers);
    let identity = Identity {
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        content_revision: CONTENT_REVISION,
        slurm_version: request.slurm_version.clone(),
        spec: format!("slurm@={} {}", release.recipe, chosen.spec).trim_end().to_owned(),
        roots: chosen.roots,
        features: chosen.features,
        release,
        variant: request.variant,
        compiler: request.compiler_version.clone(),
        gcc: gcc.map(|gcc| gcc.by(facts.bare_repo_digest)),
        toolchain: ToolchainPlan {
            name: toolchain.name,
            image: facts.image,
            image_digest: facts.image_digest,
            platform: facts.platform,
            os_release: toolchain.os_release,
            packages,
            requirements: toolchain.requirements,
            system_gcc: toolchain.system_gcc,
            glibc: toolchain.glibc,
            package_sources: facts.package_sources,
            snapshot: facts.snapshot,
        },
        spack: facts.spack,
        spack_packages: facts.spack_packages,
        own_repo_digest: facts.own_repo_digest,
        rules_digest: facts.rules_digest,
        repo_digests: facts.repos.iter().map(|r| r.digest.clone()).collect(),
        pins: catalog.pins.clone(),
        providers,
        target: target.name.clone(),
        store: inside::INSTALL_TREE.to_owned(),
        epoch: EPOCH,
        compression: request.compression,
    };
    let cpus = if request.cpus == 0 { facts.host_cpus } else { request.cpus.min(facts.host_cpus) };
    let execution = Execution {
        jobs: if request.jobs == 0 { cpus } else { request.jobs },
        cpus,
        memory: request.memory,
        shm_size: request.shm_size,
        disk: request.disk,
        nice: request.nice,
        network: request.network,
        offline: request.offline,
        repos: facts.repos,
        source_mirrors: facts.source_mirrors,
        binary_mirrors: facts.binary_mirrors,
    };
    let environment = Identity {
        slurm_version: String::new(),
        rules_digest: String::new(),
        epoch: 0,
        compression: Compression::Gzip,
        // An image counts by its digest.
        toolchain: ToolchainPlan { image: String::new(), ..identity.toolchain.clone() },
        ..identity.clone()
    };
    Ok(BuildPlan { digest: digest_of(&identity)?, environment: digest_of(&environment)?, identity, execution })
}

fn digest_of(identity: &Identity) -> Result<PlanDigest, PlanError> {
    let json = serde_json::to_vec(identity)
        .map_err(|e| PlanError::Conflict(format!("the plan cannot be written as JSON: {e}")))?;
    Ok(PlanDigest(hex::encode(Sha256::digest(json))))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn request() -> BuildRequest {
        BuildRequest {
            slurm_version: "25.11".into(),
            compiler_version: "system".into(),
            toolchain: "noble".into(),
            variant: Variant::Default,
            choice: Choice::default(),
            compression: Compression::Gzip,
            jobs: 4,
            cpus: 0,
            memory: 0,
            disk: 0,
            nice: 0,
            shm_size: 2 << 30,
            network: Network::Host,
            offline: false,
            use_cache: true,
            publish: Publish::None,
        }
    }

    fn facts() -> Facts {
        let pin = |source: &str| SourcePin { source: source.into(), reference: "v1".into(), commit: "c".repeat(40) };
        Facts {
            image: "docker.io/library/ubuntu:24.04".into(),
            image_digest: format!("sha256:{}", "a".repeat(64)),
            platform: "linux/amd64".into(),
            spack: pin("spack"),
            spack_packages: pin("packages"),
            own_repo_digest: "b".repeat(64),
            bare_repo_digest: "0".repeat(64),
            rules_digest: "d".repeat(64),
            repos: vec![],
            source_mirrors: vec![],
            binary_mirrors: vec![],
            package_sources: None,
            snapshot: None,
            host_cpus: 8,
        }
    }

    fn make(request: &BuildRequest, facts: Facts) -> BuildPlan {
        plan(request, &Catalog::embedded().unwrap(), facts).unwrap()
    }

    /// What other modules' tests take for a plan's identity.
    pub(crate) fn identity() -> Identity {
        make(&request(), facts()).identity
    }

    #[test]
    fn execution_does_not_change_the_digest_and_content_does() {
        let base = make(&request(), facts());
        let faster = BuildRequest { jobs: 64, offline: true, network: Network::None, ..request() };
        assert_eq!(make(&faster, facts()).digest, base.digest);
        let mirrored = Facts { source_mirrors: vec!["/m".into()], ..facts() };
        assert_eq!(make(&request(), mirrored).digest, base.digest);
        let other_image = Facts { image_digest: format!("sha256:{}", "e".repeat(64)), ..facts() };
        for changed in [
            make(&BuildRequest { slurm_version: "24.11".into(), ..request() }, facts()),
            make(&BuildRequest { compression: Compression::Zstd, ..request() }, facts()),
            make(&BuildRequest { variant: Variant::Minimal, ..request() }, facts()),
            make(&request(), other_image),
        ] {
            assert_ne!(changed.digest, base.digest);
        }
    }

    #[test]
    fn only_what_spack_sees_changes_the_environment() {
        let base = make(&request(), facts());
        let repacked = BuildRequest { compression: Compression::Zstd, ..request() };
        let other_rules = Facts { rules_digest: "f".repeat(64), ..facts() };
        assert_eq!(make(&repacked, facts()).environment, base.environment);
        assert_eq!(make(&request(), other_rules).environment, base.environment);
        let other_recipes = Facts { own_repo_digest: "f".repeat(64), ..facts() };
        let smaller = BuildRequest { variant: Variant::Minimal, ..request() };
        for changed in [make(&request(), other_recipes), make(&smaller, facts())] {
            assert_ne!(changed.environment, base.environment);
        }
    }

    #[test]
    fn binary_mirrors_are_read_before_the_sandbox_is_there() {
        let catalog = Catalog::embedded().unwrap();
        for network in [Network::Host, Network::FetchOnly, Network::None] {
            let asked = BuildRequest { network, ..request() };
            for mirror in ["https://example.org/b", "/site/b"] {
                let mirrored = Facts { binary_mirrors: vec![mirror.into(); 2 * MOUNT_SLOTS], ..facts() };
                assert!(plan(&asked, &catalog, mirrored).is_ok(), "{mirror}");
            }
        }
    }

    #[test]
    fn the_toolchains_own_gcc_may_be_named_by_its_version() {
        let own = BuildRequest { toolchain: "rockylinux9".into(), compiler_version: "11.5.0".into(), ..request() };
        assert!(check(&own, &Catalog::embedded().unwrap()).is_ok());
        assert!(make(&own, facts()).compiler().unwrap().is_none());
    }

    #[test]
    fn a_gcc_that_is_built_has_a_plan_of_its_own_that_does_not_know_what_it_compiles() {
        let with = |slurm: &str, compiler: &str| BuildRequest {
            slurm_version: slurm.into(),
            compiler_version: compiler.into(),
            ..request()
        };
        let plan = make(&with("25.11", "13.4.0"), facts());
        assert_ne!(plan.environment, make(&request(), facts()).environment);
        let gcc = plan.compiler().unwrap().unwrap();
        assert_eq!(gcc.identity.spec, "gcc@=13.4.0 +binutils+strip languages:='c,c++,fortran'");
        assert!(gcc.identity.roots.is_empty() && gcc.compiler().unwrap().is_none());
        let minimal = BuildRequest { variant: Variant::Minimal, ..with("24.11", "13.4.0") };
        let facts_of_another = Facts { own_repo_digest: "9".repeat(64), ..facts() };
        assert_eq!(make(&minimal, facts_of_another).compiler().unwrap().unwrap().environment, gcc.environment);
        assert_ne!(make(&with("25.11", "12.5.0"), facts()).compiler().unwrap().unwrap().environment, gcc.environment);
    }

    #[test]
    fn only_what_spack_sees_changes_the_environment_of_a_gcc() {
        let asked = || BuildRequest { compiler_version: "13.4.0".into(), ..request() };
        let zstd = || BuildRequest { compression: Compression::Zstd, ..asked() };
        let of = |request: &BuildRequest, facts| {
            let plan = make(request, facts);
            (plan.compiler().unwrap().unwrap(), plan.compiler_package("rules").unwrap().unwrap())
        };
        let (gcc, package) = of(&asked(), facts());
        assert_eq!(package.environment, gcc.environment);
        assert_eq!((package.identity.compression, package.identity.epoch), (Compression::Gzip, EPOCH));
        let (repacked, repackage) = of(&zstd(), facts());
        assert_eq!(repacked.environment, gcc.environment);
        assert_eq!(
            (repackage.environment, repackage.identity.compression),
            (gcc.environment.clone(), Compression::Zstd)
        );
        assert_ne!(repackage.digest, package.digest, "another archive");
        let other_rules = Facts { rules_digest: "f".repeat(64), image: "example.org/the/same".into(), ..facts() };
        assert_eq!(of(&asked(), other_rules).0.environment, gcc.environment);
        let other_recipes = Facts { bare_repo_digest: "f".repeat(64), ..facts() };
        let other_image = Facts { image_digest: format!("sha256:{}", "e".repeat(64)), ..facts() };
        for changed in [other_recipes, other_image] {
            assert_ne!(of(&asked(), changed).0.environment, gcc.environment);
        }
    }

    #[test]
    fn a_target_is_one_of_the_images_platform() {
        let v3 = Choice { target: Some("x86_64_v3".into()), ..Choice::default() };
        let v3 = BuildRequest { choice: v3, ..request() };
        assert_eq!(make(&v3, facts()).identity.target, "x86_64_v3");
        let arm = || Facts { platform: "linux/arm64".into(), ..facts() };
        assert_eq!(make(&request(), arm()).identity.target, "aarch64");
        let error = plan(&v3, &Catalog::embedded().unwrap(), arm()).unwrap_err().to_string();
        assert!(error.contains("`x86_64_v3` is of linux/amd64, and the image is of linux/arm64"), "{error}");
    }

    #[test]
    fn zero_means_all_processors() {
        let plan = make(&BuildRequest { jobs: 0, cpus: 0, ..request() }, facts());
        assert_eq!((plan.execution.jobs, plan.execution.cpus), (8, 8));
        let plan = make(&BuildRequest { jobs: 0, cpus: 3, ..request() }, facts());
        assert_eq!((plan.execution.jobs, plan.execution.cpus), (3, 3));
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_reason() {
        let catalog = Catalog::embedded().unwrap();
        let with = |choice: Choice| BuildRequest { choice, ..request() };
        for (request, part) in [
            (BuildRequest { compiler_version: "4.8.5".into(), ..request() }, "known: system, 15.2.0"),
            (with(Choice { target: Some("z80".into()), ..Choice::default() }), "x86_64_v3 (linux/amd64)"),
            (with(Choice { with: vec!["x".into()], ..Choice::default() }), "unknown feature `x`; known: cgroup"),
            (BuildRequest { toolchain: "slackware".into(), ..request() }, "noble, jammy"),
        ] {
            let error = check(&request, &catalog).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
