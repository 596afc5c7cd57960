//! The command line as data: what may be typed. What it means is `plan`'s and the verbs' business.

use super::compiler::CompilerArgs;
use super::exit::CODES;
use super::features::FeatureArgs;
use super::modes::ModeArgs;
use super::package::PackageArgs;
use super::publish::{PublishArgs, StoreArgs};
use super::sign::SignArgs;
use super::signer::{KeyArgs, TrustArgs};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const MORE: &str = "\
Files:
  ~/.slurm-factory                      cache: downloads, rootfs, packages (builds/), keys, logs
  /etc/slurm-factory/config.toml        settings; the next two win over it
  ~/.config/slurm-factory/config.toml
  ./slurm-factory.toml

Variables:
  SLURM_FACTORY_BUILD_DIR        a setting, here `build-dir`, by its name in capitals
  SLURM_FACTORY_SIGNING_KEY      signing key, armored or in base64
  SLURM_FACTORY_KEY_PASSPHRASE   passphrase of a locked signing key
  SSL_CERT_FILE, https_proxy, http_proxy, no_proxy   as everywhere

Examples:
  slurm-factory doctor
  slurm-factory build --slurm-version 25.11 --dry-run
  slurm-factory build --slurm-version 25.11
  slurm-factory install ~/.slurm-factory/builds/slurm-25.11-gcc13.3.0-software.tar.gz --prefix /opt/slurm";

/// Builds signed, relocatable Slurm packages with Spack: without root, without a daemon.
#[derive(Debug, Parser)]
#[command(name = "slurm-factory", version, propagate_version = true, max_term_width = 110, after_long_help = format!("{CODES}\n\n{MORE}"))]
pub struct Cli {
    /// Flags of every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Show the output of the programs that are run, and which file decided what about registries
    #[arg(short, long, global = true, help_heading = "Global options", conflicts_with = "quiet")]
    pub verbose: bool,
    /// Show warnings and errors only
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Read this configuration file in place of /etc/slurm-factory/config.toml, the user's and ./slurm-factory.toml
    #[arg(long, global = true, help_heading = "Global options", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where downloads, root file systems, keys and packages are kept [env: SLURM_FACTORY_CACHE_DIR] [default: ~/.slurm-factory]
    #[arg(long, global = true, help_heading = "Global options", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Progress and errors for people, or one JSON object a line
    #[arg(long, global = true, help_heading = "Global options", value_enum, default_value_t = Format::Human, value_name = "FORMAT")]
    pub log_format: Format,
    /// Colours: on a terminal, always or never
    #[arg(long, global = true, help_heading = "Global options", value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,
}

/// `--log-format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Human,
    /// One JSON object a line
    Json,
}

/// `--color`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Build a signed, relocatable Slurm package
    Build(BuildArgs),
    /// Build a GCC for later builds, from the toolchain's own, into the cache's binary cache
    BuildCompiler(super::compiler::BuildCompilerArgs),
    /// Show what `build` with the same flags would do
    Plan(PlanArgs),
    /// Say what this host can do, what is missing and how to mend it
    Doctor(DoctorArgs),
    /// Base images
    #[command(subcommand)]
    Image(ImageVerb),
    /// Open the sandbox of the last build, as Spack saw it
    Shell(ShellArgs),
    /// Check a package or a tree: signature, sums, library closure, leaked prefixes, glibc floor
    Verify(VerifyArgs),
    /// Install a package to a prefix, or remove it
    Install(InstallArgs),
    /// Make a tree on disk, built for one prefix, work at another; what could not work is told before anything is changed
    Relocate(RelocateArgs),
    /// Send a finished package to where others find it: a bucket or a folder, with an index
    Publish(PublishArgs),
    /// Signing keys
    #[command(subcommand)]
    Key(KeyVerb),
    /// Binary caches of Spack packages: push, list, check, prune
    #[command(subcommand)]
    Buildcache(super::buildcache::BuildcacheVerb),
    /// Look into a finished package, or give it another form
    Package(PackageArgs),
    /// Sign a finished package, beside whoever has signed it
    Sign(SignArgs),
    /// Delete what the cache can make again
    Clean(CleanArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one page a verb into a folder
    Man {
        /// Folder for the pages
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// `build`
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Which Slurm.
    #[command(flatten)]
    pub slurm: SlurmArgs,
    /// What to build and how.
    #[command(flatten)]
    pub what: WhatArgs,
    /// Only plan: look everything up, refuse what cannot be done, build nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Build the package again even if it is there; dependencies are still reused
    #[arg(long)]
    pub no_cache: bool,
    /// Say at the end how to load it in a hierarchy of compilers and MPIs; every package has these modules too
    #[arg(long)]
    pub enable_hierarchy: bool,
}

/// `plan`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Which Slurm.
    #[command(flatten)]
    pub slurm: SlurmArgs,
    /// What to build and how.
    #[command(flatten)]
    pub what: WhatArgs,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Which Slurm: what no compiler is asked for.
#[derive(Debug, Args, Default)]
pub struct SlurmArgs {
    /// Slurm version: 25.11, 24.11, 23.11 or one that the site's configuration adds
    #[arg(long, value_name = "VERSION")]
    pub slurm_version: Option<String>,
    /// With GPU autodetection. In place of `--gpu --minimal`: --minimal --with nvml,rsmi
    #[arg(long, conflicts_with = "minimal")]
    pub gpu: bool,
    /// The least that runs: munge, slurmctld, slurmd, srun and their kin, and none of the features; --with adds some
    #[arg(long)]
    pub minimal: bool,
    /// What of it.
    #[command(flatten)]
    pub features: FeatureArgs,
}

/// What all verbs that build share.
#[derive(Debug, Args, Default)]
pub struct WhatArgs {
    /// GCC version, or `system` for the toolchain's own; another one is built first, when no binary cache has it. A version that is
    /// not known is answered with the list. When not given: `system`; for `build-compiler` the default of its `--list`
    #[arg(long, value_name = "VERSION")]
    pub compiler_version: Option<String>,
    /// How that GCC is built.
    #[command(flatten)]
    pub compiler: CompilerArgs,
    /// Base image and build tools: noble, jammy, debian12, debian13, rockylinux8, rockylinux9 or rockylinux10
    #[arg(long, value_name = "NAME")]
    pub toolchain: Option<String>,
    /// Oldest system that it must run on: rhel8, debian12, focal and so on, or glibc-2.28. Refused when the toolchain is newer
    #[arg(long = "for", value_name = "SYSTEM")]
    pub oldest: Option<String>,
    /// What code is made for: x86_64, x86_64_v2, x86_64_v3, x86_64_v4 or aarch64. Older processors cannot run it; `plan` says what
    /// they do then [default: every processor of the image's architecture]
    #[arg(long, value_name = "TARGET")]
    pub target: Option<String>,
    /// How the sandbox is made: auto, userns or podman
    #[arg(long, value_name = "BACKEND")]
    pub backend: Option<String>,
    /// How it is made else.
    #[command(flatten)]
    pub modes: ModeArgs,
    /// Image in place of the toolchain's: a registry reference, oci:DIR[:TAG], oci-archive:FILE[:TAG],
    /// docker-archive:FILE[:NAME:TAG] or dir:ROOTFS
    #[arg(long, value_name = "REF")]
    pub image: Option<String>,
    /// Mirror of the distribution's package archive, URL or folder, in place of the addresses in the image
    #[arg(long, value_name = "URL")]
    pub apt_mirror: Option<String>,
    /// Package sources in place of the image's own, in the form of sources.list(5)
    #[arg(long, value_name = "FILE")]
    pub apt_sources: Option<PathBuf>,
    /// Take the distribution's packages as they were at this time, as in 20260101T000000Z: from its public snapshots, or
    /// from an --apt-mirror with {snapshot} in the place of the time
    #[arg(long, value_name = "TIME")]
    pub apt_snapshot: Option<String>,
    /// For the Rocky toolchains: mirror of the distribution's repositories, URL or folder, in place of those in the image
    #[arg(long, value_name = "URL")]
    pub dnf_mirror: Option<String>,
    /// For the Rocky toolchains: a .repo file, or a folder of them, in place of the image's own
    #[arg(long, value_name = "FILE|DIR")]
    pub dnf_repos: Option<PathBuf>,
    /// Python package index, or a folder of wheels, that the pinned wheels come from [default: PIP_INDEX_URL, or PyPI]
    #[arg(long, value_name = "URL|DIR")]
    pub pip_index: Option<String>,
    /// Use no network; name what is missing
    #[arg(long)]
    pub offline: bool,
    /// Parallel compile jobs, 0 for all processors that the build may use [default: 4, or --cpus if that is less]
    #[arg(long, short, value_name = "N")]
    pub jobs: Option<u32>,
    /// Processors that the build may use, 0 for all [default: 0]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory that the build may use: a number with K, M, G or T (times 1024), 0 for all [default: 0]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Shared memory inside the sandbox, 0 for all [default: 2G]
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<String>,
    /// How much the build may write to the cache and the build folder, 0 for all [default: 0]
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,
    /// Leave processor time to others, as nice(1) does: 0 to 19 [default: 0]
    #[arg(long, value_name = "N")]
    pub nice: Option<u32>,
    /// Network inside the build sandbox: host, fetch-only (none while packages are built) or none [default: host]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// What to publish: none, slurm-only or all; of a compiler none, compiler-only or all [default: none]
    #[arg(long, value_name = "WHAT")]
    pub publish: Option<String>,
    /// Where to publish to.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Node-local folder for store, views and stages [default: CACHE/work]
    #[arg(long, value_name = "DIR")]
    pub build_dir: Option<PathBuf>,
    /// Spack: a git URL, a local git directory or a tree
    #[arg(long, value_name = "SOURCE")]
    pub spack_source: Option<String>,
    /// Release tag of Spack
    #[arg(long, value_name = "TAG")]
    pub spack_reference: Option<String>,
    /// Builtin recipes: a git URL, a local git directory or a tree
    #[arg(long, value_name = "SOURCE")]
    pub spack_packages: Option<String>,
    /// Release tag of the builtin recipes
    #[arg(long, value_name = "TAG")]
    pub spack_packages_reference: Option<String>,
    /// Recipe repository that takes precedence over ours; may be given several times
    #[arg(long = "spack-repo", value_name = "DIR")]
    pub spack_repos: Vec<PathBuf>,
    /// Source mirror: a folder or URL in Spack's mirror layout; may be given several times
    #[arg(long = "source-mirror", value_name = "MIRROR")]
    pub source_mirrors: Vec<String>,
    /// Binary mirror: a folder or URL of a Spack buildcache; may be given several times
    #[arg(long = "binary-mirror", value_name = "MIRROR")]
    pub binary_mirrors: Vec<String>,
    /// Compression of the package: gzip or zstd [default: gzip]
    #[arg(long, value_name = "KIND")]
    pub compression: Option<String>,
    /// Who signs the package.
    #[command(flatten)]
    pub key: KeyArgs,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Ask the registry and Spack's repositories too
    #[arg(long)]
    pub online: bool,
    /// How the sandbox shall be made: auto, userns or podman
    #[arg(long, value_name = "BACKEND")]
    pub backend: Option<String>,
    /// How it is made else.
    #[command(flatten)]
    pub modes: ModeArgs,
    /// Node-local folder to look at as well
    #[arg(long, value_name = "DIR")]
    pub build_dir: Option<PathBuf>,
}

/// `image`
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Fetch an image into the cache and check every blob
    Pull {
        /// A registry reference, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME:TAG] or dir:ROOTFS
        reference: String,
        /// Use no network; name what is missing
        #[arg(long)]
        offline: bool,
        /// Ask the registry again what a tag means
        #[arg(long, conflicts_with = "offline")]
        refresh: bool,
    },
    /// List the images that the cache knows: what a reference meant, how large it is, when it was used
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget images and delete what no other image needs
    Remove {
        /// References, or digests (six digits are enough)
        #[arg(required = true, value_name = "REF|DIGEST")]
        images: Vec<String>,
    },
    /// Write an image as an OCI layout that skopeo, podman and umoci read, with the same digests; it is pulled first when
    /// it is not in the cache
    Save {
        /// The image
        reference: String,
        /// A folder (a layout that is there gets one more image), or a file that ends in .tar, .tar.gz or .tar.zst
        #[arg(value_name = "DIR|FILE")]
        target: PathBuf,
        /// Name under which it travels, in place of its own
        #[arg(long, value_name = "NAME", conflicts_with = "prepared")]
        name: Option<String>,
        /// The root file system that was prepared from it, with the build tools, in place of the image itself: where it is
        /// loaded, `build` needs no package mirror
        #[arg(long)]
        prepared: bool,
        /// Use no network; name what is missing
        #[arg(long)]
        offline: bool,
    },
    /// Take all images of an OCI layout or an archive (OCI's or Docker's) into the cache, under the names that they have
    Load {
        /// A layout, or an archive: plain, gzip or zstd
        #[arg(value_name = "DIR|FILE")]
        source: PathBuf,
    },
}

/// `shell`
#[derive(Debug, Args)]
pub struct ShellArgs {
    /// How the sandbox is made.
    #[command(flatten)]
    pub modes: ModeArgs,
    /// Be root inside, to install packages into the rootfs as it is seen here; nothing of it is kept (implies --writable)
    #[arg(long)]
    pub root: bool,
    /// Print the sandbox's operations and start nothing
    #[arg(long)]
    pub print: bool,
    /// Command in place of an interactive shell
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A package (.tar.gz, .tar.zst) or an unpacked tree
    pub path: PathBuf,
    /// Whose signature counts.
    #[command(flatten)]
    pub trust: TrustArgs,
    /// Look into an archive that slurm-factory did not make (plain, gzip or zstd): closure, build paths, glibc; nothing
    /// tells who made it
    #[arg(long, conflicts_with_all = ["key", "fingerprint", "all_signers"])]
    pub foreign: bool,
    /// With a tree or archive of another: the prefix that it was built for; a file that names it is a problem
    #[arg(long, value_name = "PREFIX")]
    pub from: Option<String>,
    /// Oldest system that it must run on, as for `build`: needing a newer glibc is a problem [default: that of the
    /// toolchain it was built on]
    #[arg(long = "for", value_name = "SYSTEM")]
    pub oldest: Option<String>,
    /// Also print who needs which library, and where it is found
    #[arg(long)]
    pub closure: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `relocate`
#[derive(Debug, Args)]
pub struct RelocateArgs {
    /// The tree, a folder
    pub dir: PathBuf,
    /// The prefix that it was built for
    #[arg(long, value_name = "OLD")]
    pub from: PathBuf,
    /// The prefix at which it is to work [default: where it lies]
    #[arg(long, value_name = "NEW")]
    pub to: Option<PathBuf>,
    /// Change nothing; say what would be changed, and what could not
    #[arg(long)]
    pub dry_run: bool,
    /// Go on although some files go on naming the old prefix
    #[arg(long)]
    pub force: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `install`
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// The package
    #[arg(required_unless_present = "remove")]
    pub package: Option<PathBuf>,
    /// Folder to install to
    #[arg(long, value_name = "DIR")]
    pub prefix: PathBuf,
    /// Whose signature counts.
    #[command(flatten)]
    pub trust: TrustArgs,
    /// Install although nobody's signature can be checked; sums are still checked
    #[arg(long)]
    pub allow_unsigned: bool,
    /// Remove what was installed there
    #[arg(long, conflicts_with = "package")]
    pub remove: bool,
    /// Print how to load it in a hierarchy of compilers and MPIs (Core/Compiler/MPI)
    #[arg(long, conflicts_with = "remove")]
    pub enable_hierarchy: bool,
}

/// `key`
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Make a signing key and use it from now on
    Generate {
        /// Name in the key
        #[arg(long, default_value = "slurm-factory")]
        name: String,
        /// Mail address in the key
        #[arg(long, default_value = "")]
        email: String,
        /// Days until it expires, at least 1; never when not given
        #[arg(long, value_name = "DAYS")]
        expires: Option<u32>,
        /// RSA with 4096 bits in place of Ed25519, for old verifiers
        #[arg(long)]
        rsa: bool,
    },
    /// Take keys from a file, armored, binary or in base64, as gpg exports them: a secret one signs from now on, a public one
    /// is trusted from now on. A locked one stays locked; its passphrase is read from SLURM_FACTORY_KEY_PASSPHRASE, or asked
    /// for on the terminal, when it signs
    Import {
        /// The file, or `-` for standard input
        file: PathBuf,
    },
    /// Print a public key, armored
    Export {
        /// Fingerprint; the key in use when not given
        fingerprint: Option<String>,
        /// The secret key instead
        #[arg(long)]
        secret: bool,
    },
    /// List keys: fingerprint, algorithm, expiry, what each can do
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Sign with this key from now on
    Default {
        /// Its full fingerprint
        fingerprint: String,
    },
    /// Remove a key: it is no longer trusted; one that has its secret here goes only with --force
    Remove {
        /// Its full fingerprint
        fingerprint: String,
        /// Also when it is the default or when its secret is lost by it
        #[arg(long)]
        force: bool,
    },
}

/// `clean`
#[derive(Debug, Args)]
pub struct CleanArgs {
    /// Everything but finished packages, source archives and keys
    #[arg(long)]
    pub full: bool,
    /// Packages, logs and root file systems not used for this many days
    #[arg(long, value_name = "DAYS")]
    pub older_than: Option<u64>,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
}
