//! From an unpacked image to a rootfs that Spack can work in: packages of the distribution, pinned Python
//! wheels, and a record of what is in it. Done once for an image digest and a list, then only read.
//!
//! ```text
//! CACHE/rootfs/<id>/root/      the tree
//! CACHE/rootfs/<id>/meta.json  written last: what it was made of and what was found in it
//! ```

use super::apply::{Limits, UnpackError, unpack_owned};
use super::packages::{self, Given, words};
use super::remedy::remedy;
use super::runner::{Hidden, Runner};
use super::tree::{self, Tree};
use crate::cache::{Cache, CacheError};
use crate::catalog::{Family, OsRelease, Probe};
use crate::fsutil;
use crate::image::Arriving;
use crate::plan::HostAccess;
use crate::report::{Ctx, Event, Interrupted, Stage};
use crate::sandbox::{Access, CA_BUNDLE_INSIDE, Ended, Ids, Sandbox, SandboxError, Spec};
use fs_err as fs;
use regex::Regex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Raised when the same inputs are prepared differently by a new version of this program.
const PREPARE_REVISION: u32 = 2;

/// Where the list of wheels is seen inside.
const REQUIREMENTS: &str = "/run/slurm-factory-requirements.txt";

/// Where a CA bundle for pip alone is seen inside.
const PIP_CERT: &str = "/run/slurm-factory-pip-ca.pem";

/// Why a rootfs could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The image is not what the toolchain says.
    #[error(
        "image {image} is {found}, toolchain {toolchain} needs {wanted}; name the right image with --image or another --toolchain"
    )]
    WrongImage {
        /// The image.
        image: String,
        /// What it says it is.
        found: String,
        /// What the toolchain needs.
        wanted: String,
        /// The toolchain.
        toolchain: String,
    },
    /// A step inside the sandbox failed.
    #[error("preparing the rootfs: {step} failed ({}); its last lines:\n  {}\nfull log: {log}{}", ended(*exit), tail.join("\n  "), remedy(step, tail))]
    Step {
        /// What was done.
        step: String,
        /// How it ended.
        exit: Ended,
        /// The end of its output.
        tail: Vec<String>,
        /// All of its output.
        log: PathBuf,
    },
    /// A program whose version Spack must know did not tell it.
    #[error(
        "preparing the rootfs: `{command}` printed no version; the toolchain's package list lacks it or names the wrong command"
    )]
    NoVersion {
        /// What was run.
        command: String,
    },
    /// A mirror was named and there is nothing that it could stand for.
    #[error(
        "{}: no package source of the image `{image}`, or of the site, is the distribution's own ({}), so there is nothing to \
         replace; give the sources whole with {}", mirror.0, mirror.1, mirror.2
    )]
    NothingToMirror {
        /// The image.
        image: String,
        /// The flags' names, and how an address of the distribution is recognised.
        mirror: (&'static str, &'static str, &'static str),
    },
    /// It is needed, not there, and nothing may be fetched.
    #[error(
        "the prepared rootfs for toolchain {toolchain} is not in the cache and --offline was given; run `slurm-factory build` once with a network, or load one from elsewhere (`image save --prepared`, `image load`)"
    )]
    Offline {
        /// The toolchain.
        toolchain: String,
    },
    /// It belongs to ids that mean nothing elsewhere, and some of it only they can read.
    #[error(
        "the rootfs prepared from this image was made with --ownership range, and is not saved: its owners are subordinate ids \
         of this host; prepare it with --ownership single (slurm-factory build) and save that"
    )]
    OfRange,
    /// The image could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file operation failed.
    #[error("rootfs: {0}")]
    Io(#[from] io::Error),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

fn ended(how: Ended) -> String {
    match how {
        Ended::Code(code) => format!("exit code {code}"),
        Ended::Signal(signal) => format!("signal {signal}"),
    }
}

/// What a rootfs is made of. Its digest is the rootfs's identity.
#[derive(Debug, Clone, Serialize)]
pub struct Recipe<'a> {
    /// Toolchain's name.
    pub toolchain: &'a str,
    /// Image as named.
    pub image: &'a str,
    /// Digest of the image's manifest.
    pub image_digest: &'a str,
    /// What the image must say it is.
    pub os_release: &'a OsRelease,
    /// Packages to install.
    pub packages: &'a [String],
    /// Python wheels with their sums.
    pub requirements: &'a str,
    /// How packages are installed.
    pub family: Family,
    /// The site's package sources, when they take the place of the image's.
    pub package_sources: Option<&'a str>,
    /// The time at which the package archive is looked at, as its snapshots write it.
    pub snapshot: Option<&'a str>,
    /// Programs whose versions Spack must know.
    pub probes: &'a [Probe],
    /// Whose the files are: with a range of ids, those whom the image names.
    pub ids: Ids,
}

impl Recipe<'_> {
    /// The rootfs's identity: 64 hexadecimal digits. The image counts by its digest, not by its name.
    pub fn id(&self) -> String {
        let parts = (
            PREPARE_REVISION,
            self.image_digest,
            self.os_release,
            self.packages,
            self.requirements,
            self.probes,
            self.package_sources,
            self.snapshot,
        );
        // A tuple of strings and lists always serialises.
        let mut json = serde_json::to_vec(&parts).unwrap_or_default();
        // Under another range the same files would be somebody else's.
        json.extend(self.ids.key().unwrap_or_default().into_bytes());
        hex::encode(Sha256::digest(json))
    }
}

/// What was found in a prepared rootfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The image's manifest.
    pub image_digest: String,
    /// Exact version of GCC.
    pub gcc: String,
    /// Versions of the programs that were asked for, by Spack's name.
    pub versions: BTreeMap<String, String>,
    /// The distribution's packages and their versions.
    pub packages: BTreeMap<String, String>,
    /// glibc's version as the distribution says it.
    pub glibc: String,
    /// Files in the image that were left out (device nodes) or changed, by kind.
    pub unpacked: serde_json::Value,
    /// The range of ids that its files belong to, when they are not all the user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
}

/// A prepared rootfs in the cache.
#[derive(Debug)]
pub struct Rootfs {
    id: String,
    root: PathBuf,
    meta: Meta,
}

impl Rootfs {
    /// The identity.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is in it.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Those that were prepared from the image with this manifest: those that are all the user's first, of these the newest.
    pub fn of_image(cache: &Cache, image_digest: &str) -> Result<Vec<Self>, PrepareError> {
        let entries = match fs::read_dir(cache.dir("rootfs")) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let id = name.to_str().filter(|id| id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()));
            if let Some(rootfs) =
                id.and_then(|id| Self::open(cache, id)).filter(|r| r.meta.image_digest == image_digest)
            {
                let written = fs::metadata(fsutil::parent_of(&rootfs.root).join("meta.json"))?.modified()?;
                found.push(((rootfs.meta.range.is_none(), written), rootfs));
            }
        }
        found.sort_by_key(|(written, _)| std::cmp::Reverse(*written));
        Ok(found.into_iter().map(|(_, rootfs)| rootfs).collect())
    }

    /// The rootfs with this identity, if it is in the cache.
    pub fn open(cache: &Cache, id: &str) -> Option<Self> {
        let entry = cache.dir("rootfs").join(id);
        let meta = serde_json::from_slice(&fs::read(entry.join("meta.json")).ok()?).ok()?;
        let root = entry.join("root");
        root.is_dir().then(|| Self { id: id.to_owned(), root, meta })
    }
}

/// Unpacks and prepares; `image` is called only when the rootfs is not in the cache.
pub fn prepare<E: From<PrepareError>>(
    recipe: &Recipe<'_>,
    cache: &Cache,
    sandbox: &Sandbox,
    host: &HostAccess,
    ctx: &Ctx,
    image: impl FnOnce() -> Result<Arriving, E>,
) -> Result<Rootfs, E> {
    let id = recipe.id();
    if let Some(rootfs) = Rootfs::open(cache, &id) {
        return Ok(rootfs);
    }
    let parent = cache.dir("rootfs");
    let wait = || cache.lock(ctx, &format!("rootfs-{}", &id[..16]), "the rootfs while it is prepared");
    let _lock = wait().map_err(PrepareError::from)?;
    if let Some(rootfs) = Rootfs::open(cache, &id) {
        return Ok(rootfs);
    }
    let image = image()?;
    let timer = ctx.stage(Stage::Rootfs, format!("{} and {} packages", recipe.image, recipe.packages.len()));
    cache.sweep(&parent).map_err(PrepareError::from)?;
    let staging = cache.staging(&parent).map_err(PrepareError::from)?;
    let root = staging.path().join("root");
    let meta = fill(recipe, image, &root, cache, sandbox, host, ctx)?;
    let json = serde_json::to_vec_pretty(&meta).map_err(|e| PrepareError::Io(e.into()))?;
    fsutil::write_atomic(&staging.path().join("meta.json"), &json, 0o644).map_err(PrepareError::from)?;
    staging.commit(&parent.join(&id)).map_err(PrepareError::from)?;
    timer.done(format!("{} prepared, GCC {}, glibc {}", recipe.toolchain, meta.gcc, meta.glibc));
    Ok(Rootfs { root: parent.join(&id).join("root"), id, meta })
}

/// The sandbox in which a rootfs is prepared, as it will be: nothing of it need be there. The folders that are staged under
/// a name drawn by lot have a plain one here. The step that installs wheels sees the folders that pip may look into besides.
pub fn prepare_sandbox(recipe: &Recipe<'_>, cache: &Cache, host: &HostAccess) -> Spec {
    let dir = cache.dir("rootfs").join(recipe.id());
    let spec = sandbox_of(&dir.join("root"), &logs(recipe, cache).join(WHEELS), host);
    if recipe.package_sources.is_none() && host.package_mirror.is_none() {
        return spec;
    }
    with_sources(spec, recipe, host, &dir.join("sources"))
}

/// With the folder of the site's own sources, and the mirrors among them that are folders.
fn with_sources(mut spec: Spec, recipe: &Recipe<'_>, host: &HostAccess, dir: &Path) -> Spec {
    spec = spec.mount(dir, packages::inside(recipe.family), Access::ReadOnly);
    let mirror = host.package_mirror.as_deref();
    for folder in mirror.map(|m| packages::folders(recipe.family, m, recipe.snapshot)).unwrap_or_default() {
        spec = spec.mount(&folder, &folder, Access::ReadOnly);
    }
    spec
}

fn logs(recipe: &Recipe<'_>, cache: &Cache) -> PathBuf {
    cache.dir("logs").join(format!("rootfs-{}", &recipe.id()[..12]))
}

/// The file there that says which wheels are installed.
const WHEELS: &str = "requirements.txt";

fn sandbox_of(root: &Path, requirements: &Path, host: &HostAccess) -> Spec {
    let mut spec = Spec::prepare(root).host_names().mount(requirements, REQUIREMENTS, Access::ReadOnly);
    if let Some(bundle) = &host.ca_bundle {
        spec = spec.ca_bundle(bundle);
    }
    for (name, value) in &host.env {
        spec = spec.env(name, value);
    }
    spec
}

fn fill(
    recipe: &Recipe<'_>,
    image: Arriving,
    root: &Path,
    cache: &Cache,
    sandbox: &Sandbox,
    host: &HostAccess,
    ctx: &Ctx,
) -> Result<Meta, PrepareError> {
    fs::create_dir(root)?;
    let limits = Limits { owners: recipe.ids.highest(), ..Limits::default() };
    let (_, unpacked, owners) = unpack_owned(image, root, &limits, ctx)?;
    check_distribution(recipe.toolchain, recipe.os_release, recipe.image, root)?;
    if !owners.is_empty() {
        sandbox.own(root, owners)?;
    }
    let logs = logs(recipe, cache);
    fs::create_dir_all(&logs)?;
    let log = logs.join("prepare.log");
    ctx.event(&Event::LogFile { stage: Stage::Rootfs, path: log.clone() });
    let requirements = logs.join(WHEELS);
    fs::write(&requirements, recipe.requirements)?;
    let mut spec = sandbox_of(root, &requirements, host);
    // Gone afterwards: an address may hold a password.
    let sources_dir = tempfile::Builder::new().prefix("sources-").tempdir_in(fsutil::parent_of(root))?;
    let sources = package_sources(recipe, host, root)?;
    if let Some(sources) = &sources {
        for file in sources {
            fsutil::write_atomic(&sources_dir.path().join(&file.name), file.text.as_bytes(), 0o600)?;
        }
        spec = with_sources(spec, recipe, host, sources_dir.path());
    }
    let texts = sources.iter().flatten().map(|file| file.text.as_str());
    let hidden = Hidden::of(texts.chain(host.env.iter().map(|(_, value)| value.as_str())));
    let mut runner = Runner::new(sandbox, ctx, log, hidden)?;
    let given = Given {
        packages: recipe.packages,
        own_sources: sources.is_some(),
        ca_bundle: host.ca_bundle.as_ref().map(|_| CA_BUNDLE_INSIDE),
        snapshot: recipe.snapshot.is_some(),
    };
    let (before, after) = packages::steps(recipe.family, given);
    for step in before {
        runner.run(step.name, &spec, &step.argv)?;
    }
    if !recipe.requirements.trim().is_empty() {
        install_wheels(&mut runner, &spec, host)?;
    }
    for step in after {
        runner.run(step.name, &spec, &step.argv)?;
    }
    // rpm opens its database for writing even to read it.
    let list = runner.run("listing the packages", &spec, &packages::list(recipe.family))?;
    let packages = list.iter().filter_map(|l| l.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    survey(recipe, root, &mut runner, packages, serde_json::to_value(unpacked).map_err(io::Error::from)?)
}

/// Installs the pinned wheels. Settings that only newer versions of pip know are variables, which older ones pass over.
fn install_wheels(runner: &mut Runner<'_>, spec: &Spec, host: &HostAccess) -> Result<(), PrepareError> {
    let mut spec = spec.clone();
    for name in ["PIP_BREAK_SYSTEM_PACKAGES", "PIP_DISABLE_PIP_VERSION_CHECK"] {
        spec = spec.env(name, "1");
    }
    spec = spec.env("PIP_ROOT_USER_ACTION", "ignore");
    for wheels in &host.wheels {
        spec = spec.mount(wheels, wheels, Access::ReadOnly);
    }
    if let Some(bundle) = &host.pip_cert {
        spec = spec.mount(bundle, PIP_CERT, Access::ReadOnly).env("PIP_CERT", PIP_CERT);
    }
    let pip = "python3 -m pip install --quiet --no-cache-dir --require-hashes --no-deps --only-binary :all: -r";
    let argv: Vec<_> = words(pip).into_iter().chain([REQUIREMENTS.to_owned()]).collect();
    runner.run("pip install of pinned wheels", &spec, &argv)?;
    Ok(())
}

/// The package sources that are used, `None` for the image's own as they are.
fn package_sources(
    recipe: &Recipe<'_>,
    host: &HostAccess,
    root: &Path,
) -> Result<Option<Vec<packages::Sources>>, PrepareError> {
    let mirror = host.package_mirror.as_deref();
    packages::sources(recipe.family, recipe.package_sources, mirror, recipe.snapshot, root).map_err(|e| match e {
        Some(e) => e.into(),
        None => PrepareError::NothingToMirror {
            image: recipe.image.to_owned(),
            mirror: match (recipe.family, recipe.snapshot) {
                (Family::Apt, None) => {
                    ("--apt-mirror", "an address that ends in /ubuntu, /debian or the like", "--apt-sources")
                }
                (Family::Apt, Some(_)) => {
                    ("--apt-snapshot", "an address that ends in /ubuntu, /debian or the like", "--apt-sources")
                }
                (Family::Dnf, _) => ("--dnf-mirror", "an address below $contentdir or /rocky", "--dnf-repos"),
            },
        },
    })
}

/// Asks the programs inside for their versions, as the build will see them.
fn survey(
    recipe: &Recipe<'_>,
    root: &Path,
    runner: &mut Runner<'_>,
    packages: BTreeMap<String, String>,
    unpacked: serde_json::Value,
) -> Result<Meta, PrepareError> {
    let spec = Spec::build(root);
    let version = Regex::new(r"[0-9]+(\.[0-9]+)+").map_err(io::Error::other)?;
    let mut ask = |command: &[String]| -> Result<String, PrepareError> {
        let lines = runner.run(&command.join(" "), &spec, command)?;
        let found = lines.iter().find_map(|line| version.find(line)).map(|m| m.as_str().to_owned());
        found.ok_or_else(|| PrepareError::NoVersion { command: command.join(" ") })
    };
    let gcc = ask(&words("gcc -dumpfullversion"))?;
    let glibc = ask(&words("getconf GNU_LIBC_VERSION"))?;
    let mut versions = BTreeMap::new();
    for probe in recipe.probes {
        versions.insert(probe.name.clone(), ask(&probe.command)?);
    }
    Ok(Meta {
        image_digest: recipe.image_digest.to_owned(),
        gcc,
        versions,
        packages,
        glibc,
        unpacked,
        range: recipe.ids.key(),
    })
}

/// Refuses the root file system of an image that is not what the toolchain is for.
pub fn check_distribution(toolchain: &str, wanted: &OsRelease, image: &str, root: &Path) -> Result<(), PrepareError> {
    // /etc/os-release is a symlink to this file wherever os-release(5) is followed; a symlink of the image, also one on
    // the way to it, is not followed on the host.
    let dir = Tree::open(root).and_then(|tree| tree.dir(b"usr/lib"));
    let text = match dir {
        Ok(dir) => tree::read_text(&dir, b"os-release", 64 << 10)?.unwrap_or_default(),
        Err(_) => String::new(),
    };
    let found = os_release(&text);
    if found.as_ref().is_some_and(|found| wanted.admits(found)) {
        return Ok(());
    }
    Err(PrepareError::WrongImage {
        image: image.to_owned(),
        found: found.map_or_else(
            || "of no known distribution (no usr/lib/os-release)".into(),
            |f| format!("{} {}", f.id, f.version_id),
        ),
        wanted: format!("{} {}", wanted.id, wanted.version_id),
        toolchain: toolchain.to_owned(),
    })
}

/// `ID` and `VERSION_ID` of an os-release(5) file.
fn os_release(text: &str) -> Option<OsRelease> {
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|v| v.trim().trim_matches(['"', '\'']).to_owned())
    };
    Some(OsRelease { id: value("ID")?, version_id: value("VERSION_ID")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::SubIds;

    #[test]
    fn os_release_is_read_with_and_without_quotes() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(os_release(text), Some(OsRelease { id: "debian".into(), version_id: "12".into() }));
        assert_eq!(os_release("NAME=x\n"), None);
    }

    #[test]
    fn the_image_counts_by_digest_and_not_by_name() {
        let os = OsRelease { id: "debian".into(), version_id: "12".into() };
        let packages = vec!["gcc".to_owned()];
        let recipe = |image, digest, ids| {
            Recipe {
                toolchain: "t",
                image,
                image_digest: digest,
                os_release: &os,
                packages: &packages,
                requirements: "",
                probes: &[],
                family: Family::Apt,
                package_sources: None,
                snapshot: None,
                ids,
            }
            .id()
        };
        let range = |first| {
            let part = SubIds { first, count: 65_536 };
            Ids::Range { uids: part, gids: part }
        };
        assert_eq!(recipe("a", "sha256:1", Ids::Single), recipe("b", "sha256:1", Ids::Single));
        assert_ne!(recipe("a", "sha256:1", Ids::Single), recipe("a", "sha256:2", Ids::Single));
        assert_ne!(recipe("a", "sha256:1", Ids::Single), recipe("a", "sha256:1", range(1)));
        assert_ne!(recipe("a", "sha256:1", range(2)), recipe("a", "sha256:1", range(1)));
    }
}
