//! What the tests stand on: the image and the site that `make-site.sh` makes, servers for it, and a user without subordinate
//! ids who does all the rest.

use fs_err as fs;
use slurm_factory::cache::Cache;
use slurm_factory::catalog::{Catalog, Family, OsRelease};
use slurm_factory::image::{self, ClientConfig, Platform, PulledImage, Reference, ResolveOptions};
use slurm_factory::plan::HostAccess;
use slurm_factory::report::{Ctx, Interrupt};
use slurm_factory::rootfs::{self, PrepareError, Recipe, Rootfs};
use slurm_factory::sandbox::{Backend, Sandbox};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Names the folder of a run to the program that is started again as the user.
const AGAIN: &str = "PREPARE_TESTS_IN";

/// Debian's part of the image, kept between runs; the number changes when what `make-site.sh` asks for does.
const TREE: &str = "prepare-base-1";

/// One run of all tests, as the user.
pub struct World {
    /// A folder of the run: `base`, `site`, `ca.pem` and so on, and `home`, which is the user's.
    pub dir: PathBuf,
    /// The site over https, by a CA that only it knows.
    pub https: Server,
    /// The same without TLS.
    pub http: Server,
    image: PulledImage,
    cache: Cache,
    sandbox: Sandbox,
}

impl World {
    /// The world of the user; `None` in the program that root starts.
    pub fn of_user() -> Option<Self> {
        let dir = PathBuf::from(std::env::var_os(AGAIN)?);
        let [certificate, key] = ["server.pem", "server-key.pem"].map(|name| dir.join(name));
        let cache = Cache::open(&dir.join("home/cache")).unwrap();
        let sandbox = Sandbox::open(Backend::Userns, &Interrupt::new()).unwrap_or_else(|e| panic!("{e}"));
        let reference: Reference = format!("dir:{}", dir.join("base").display()).parse().unwrap();
        let (client, ctx) = (ClientConfig::default(), Ctx::silent());
        let options = ResolveOptions { offline: false, refresh: false };
        let image = image::resolve(&reference, Platform::host().unwrap(), &cache, &client, options, &ctx).unwrap();
        let image = image::pull(&image, &cache, &client, false, &ctx).unwrap();
        let https = Server::start(&dir, "https", Some([&certificate, &key]));
        let http = Server::start(&dir, "http", None);
        Some(Self { dir, https, http, image, cache, sandbox })
    }

    /// The CA bundle of a host that trusts the site.
    pub fn trusting(&self) -> HostAccess {
        HostAccess { ca_bundle: Some(self.dir.join("ca.pem")), ..HostAccess::default() }
    }

    /// Prepares a rootfs with these packages.
    pub fn prepare(&self, asked: &Asked, host: &HostAccess) -> Result<Rootfs, PrepareError> {
        let packages: Vec<String> = asked.packages.iter().map(|p| (*p).to_owned()).collect();
        let digest = self.image.resolved().digest().to_string();
        let recipe = Recipe {
            toolchain: asked.name,
            image: "base",
            image_digest: &digest,
            os_release: &OsRelease { id: "rocky".into(), version_id: "9".into() },
            packages: &packages,
            requirements: &asked.requirements,
            family: asked.family,
            package_sources: asked.sources.as_deref(),
            snapshot: asked.snapshot,
            ids: self.sandbox.ids(),
            probes: &[],
        };
        let again = || Ok::<_, PrepareError>(PulledImage::open(&self.cache, self.image.resolved()).unwrap().into());
        // Two tests may ask for the same; each is to see it made.
        let _ = slurm_factory::fsutil::remove_tree(&self.cache.dir("rootfs").join(recipe.id()));
        rootfs::prepare(&recipe, &self.cache, &self.sandbox, host, &Ctx::silent(), again)
    }

    /// The log of the run that prepared it.
    pub fn log(&self, rootfs: &Rootfs) -> String {
        let folder = self.cache.dir("logs").join(format!("rootfs-{}", &rootfs.id()[..12]));
        fs::read_to_string(folder.join("prepare.log")).unwrap()
    }

    /// The names of all files of the user's that hold this text.
    pub fn files_with(&self, text: &str) -> Vec<PathBuf> {
        files_with(&self.dir.join("home/cache"), text)
    }
}

/// The names of all files below a folder, but blobs of images, that hold this text or have it in their names.
pub fn files_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(folder).into_iter().filter_entry(|e| e.file_name() != "blobs") {
        let entry = entry.unwrap();
        let named = entry.file_name().to_string_lossy().contains(text);
        let held = entry.file_type().is_file()
            && memchr::memmem::find(&fs::read(entry.path()).unwrap_or_default(), text.as_bytes()).is_some();
        if named || held {
            found.push(entry.path().to_owned());
        }
    }
    found
}

/// What is asked for.
pub struct Asked {
    pub name: &'static str,
    pub family: Family,
    pub packages: Vec<&'static str>,
    pub requirements: String,
    pub sources: Option<String>,
    pub snapshot: Option<&'static str>,
}

impl Asked {
    pub fn of(family: Family, packages: &[&'static str]) -> Self {
        let (requirements, packages) = (String::new(), packages.to_vec());
        Self { name: "tests", family, packages, requirements, sources: None, snapshot: None }
    }

    /// With Spack's solver, as the image's Python takes it.
    pub fn with_wheels(mut self) -> Self {
        self.requirements = Catalog::embedded().unwrap().toolchain("debian12").unwrap().requirements;
        self
    }
}

/// A server of the site on loopback.
pub struct Server {
    /// `https://localhost:PORT`
    pub address: String,
    pub port: u16,
    log: PathBuf,
    child: Child,
}

impl Server {
    fn start(dir: &Path, scheme: &str, tls: Option<[&Path; 2]>) -> Self {
        let log = dir.join("home").join(format!("{scheme}.log"));
        let mut command = Command::new("python3");
        command.arg(dir.join("serve.py")).arg(dir.join("site")).arg(&log).args(tls.iter().flatten());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 is missing");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().expect("the server did not start");
        Self { address: format!("{scheme}://localhost:{port}"), port, log, child }
    }

    /// What was asked of it so far.
    pub fn requests(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Run by root: makes image and site, and starts this program again as a user made for it. False when that failed.
pub fn as_user(arguments: &[String]) -> bool {
    assert!(nix::unistd::geteuid().is_root(), "run by root: it makes a user and an image");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/prepare");
    let dir = tempfile::Builder::new().prefix("prepare-tests-").tempdir().unwrap();
    let dir = dir.path();
    fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let tree = Path::new(env!("CARGO_TARGET_TMPDIR")).join(TREE);
    let made = Command::new(source.join("make-site.sh")).arg(&tree).arg(dir).status().unwrap();
    assert!(made.success(), "make-site.sh: {made}");
    let user = TestUser::new();
    let home = dir.join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(user.id), Some(user.id)).unwrap();
    // The user reads the image as a folder of its own, and the target folder may be closed to others.
    let owner = format!("{}:{}", user.id, user.id);
    let owned = Command::new("chown").args(["-R", &owner]).arg(dir.join("base")).status().unwrap();
    assert!(owned.success());
    chown(dir.join("server-key.pem"), Some(user.id), Some(user.id)).unwrap();
    let program = dir.join("prepare-tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::copy(source.join("serve.py"), dir.join("serve.py")).unwrap();
    let status = Command::new("setpriv")
        .args(["--reuid", &user.id.to_string(), "--regid", &user.id.to_string(), "--clear-groups"])
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(&program)
        .args(arguments)
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
        .env("HOME", &home)
        .env(AGAIN, dir)
        .status()
        .expect("setpriv is missing: apt-get install util-linux");
    status.success()
}

/// A user of the machine, for as long as this lives.
struct TestUser {
    name: String,
    id: u32,
}

impl TestUser {
    fn new() -> Self {
        let name = format!("preparetest{}", std::process::id());
        let made = Command::new("useradd")
            .args(["--no-create-home", "--user-group", "-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0", &name])
            .status()
            .expect("useradd is missing: apt-get install passwd");
        assert!(made.success(), "useradd {name}: {made}");
        let user = nix::unistd::User::from_name(&name).unwrap().unwrap();
        let subuid = fs::read_to_string("/etc/subuid").unwrap_or_default();
        assert!(!subuid.lines().any(|line| line.starts_with(&format!("{name}:"))), "{name} has subuids: {subuid}");
        Self { name, id: user.uid.as_raw() }
    }
}

impl Drop for TestUser {
    fn drop(&mut self) {
        let _ = Command::new("userdel").args(["--force", &self.name]).stderr(Stdio::null()).status();
    }
}
