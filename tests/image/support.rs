//! Programs, registries and images that the tests share.
#![allow(clippy::disallowed_methods)] // tests start their own programs

use fs_err as fs;
use slurm_factory::cache::Cache;
use slurm_factory::image::{
    self, ClientConfig, ImageError, Platform, PulledImage, Reference, ResolveOptions, ResolvedImage,
};
use slurm_factory::report::Ctx;
use std::ffi::OsStr;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Runs a program to its end and returns what it printed. A program that is missing fails the test, with the
/// name of its package.
pub fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    let mut command = Command::new(program);
    command.args(args);
    let shown = format!("{command:?}");
    let output = command.output().unwrap_or_else(|e| missing(program, &e));
    assert!(output.status.success(), "{shown}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Where to make very many files: in memory where there is room for them and a gigabyte, for a disk needs minutes.
pub fn place_for(files: usize) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let room = |s: rustix::fs::StatVfs| s.f_favail > files as u64 * 6 / 5 && s.f_bavail * s.f_frsize > 1 << 30;
    if rustix::fs::statvfs(memory).is_ok_and(room) { memory.to_owned() } else { std::env::temp_dir() }
}

/// Whether a program ends well; what it says is thrown away.
pub fn succeeds(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> bool {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| missing(program, &e));
    output.status.success()
}

/// Never ask a registry.
pub const OFFLINE: ResolveOptions = ResolveOptions { offline: true, refresh: false };

/// The text says all of these.
pub fn contains(error: &impl std::fmt::Display, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// podman with a store of its own, which needs no particular kernel or host configuration for what it is used for.
pub fn podman(site: &Site) -> impl Fn(&[&str]) -> String {
    let [root, state] = ["podman-root", "podman-state"].map(|name| site.path(name).display().to_string());
    move |args| {
        let start = ["--root", &root, "--runroot", &state, "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"];
        run("podman", start.into_iter().chain(args.iter().copied()))
    }
}

/// Runs one test of this binary in a process of its own, under `wrapper` and with more in its environment.
pub fn again_in_a_process(test: &str, env: &[(&str, &str)], wrapper: &[&str]) {
    let this = std::env::current_exe().unwrap();
    let words = wrapper
        .iter()
        .map(OsStr::new)
        .chain([this.as_os_str()])
        .chain(["--exact", "--nocapture", test].map(OsStr::new));
    let words: Vec<&OsStr> = words.collect();
    let output = Command::new(words[0]).args(&words[1..]).envs(env.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{test}: {text}");
}

/// How many: what `tests/deep/run.sh` says in the environment, or a number that CI has the time for.
pub fn count(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")))
}

fn missing(program: &str, error: &std::io::Error) -> ! {
    // Each is in a package of its own name.
    panic!("cannot start `{program}`: {error}; install it: apt-get install {program}");
}

/// A registry on a loopback port, with its own storage. It ends with the value.
pub struct Registry {
    child: Child,
    dir: TempDir,
    pub port: u16,
}

impl Registry {
    pub fn start() -> Self {
        Self::with("", "http")
    }

    /// `more` is added to the configuration.
    pub fn with(more: &str, scheme: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n{}\nhttp:\n  addr: 127.0.0.1:{port}\n{}",
            dir.path().join("storage").display(),
            if scheme == "http" { more } else { "" },
            if scheme == "https" { more } else { "" },
        );
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).unwrap().into_parts().0)
            .spawn()
            .unwrap_or_else(|e| missing("docker-registry", &e));
        let registry = Self { child, dir, port };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "docker-registry does not answer: {}", registry.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        registry
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The name of an image in this registry.
    pub fn name(&self, image: &str) -> String {
        format!("127.0.0.1:{}/{image}", self.port)
    }

    /// Copies an image into the registry.
    pub fn push(&self, source: &str, image: &str, more: &[&str]) {
        let target = format!("docker://{}", self.name(image));
        let mut args = vec!["copy", "--quiet", "--dest-tls-verify=false"];
        args.extend_from_slice(more);
        args.extend([source, &target]);
        run("skopeo", args);
    }

    /// Where the registry keeps a blob.
    pub fn stored(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.dir.path().join("storage/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with a cache and a place for images.
pub struct Site {
    pub dir: TempDir,
    pub cache: Cache,
}

impl Site {
    pub fn new() -> Self {
        Self::at(&std::env::temp_dir())
    }

    pub fn at(parent: &Path) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        Self { dir, cache }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn resolve(&self, reference: &str, options: ResolveOptions) -> Result<ResolvedImage, ImageError> {
        self.resolve_with(reference, options, &quick())
    }

    pub fn resolve_with(
        &self,
        reference: &str,
        options: ResolveOptions,
        client: &ClientConfig,
    ) -> Result<ResolvedImage, ImageError> {
        let reference: Reference = reference.parse()?;
        image::resolve(&reference, Platform::host()?, &self.cache, client, options, &Ctx::silent())
    }

    pub fn pull(&self, reference: &str) -> Result<PulledImage, ImageError> {
        self.pull_with(reference, &quick())
    }

    pub fn pull_with(&self, reference: &str, client: &ClientConfig) -> Result<PulledImage, ImageError> {
        let resolved = self.resolve_with(reference, ResolveOptions::default(), client)?;
        image::pull(&resolved, &self.cache, client, false, &Ctx::silent())
    }

    /// Nothing that could be taken for a blob is left of a failed pull.
    pub fn assert_no_blob(&self, digest: &str) {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let path = self.cache.dir("blobs").join("sha256").join(hex);
        assert!(!path.exists(), "{} was kept", path.display());
    }
}

/// A client that does not wait long.
pub fn quick() -> ClientConfig {
    ClientConfig {
        connect_timeout: Duration::from_secs(5),
        read_timeout: Duration::from_secs(5),
        retries: 1,
        ..ClientConfig::default()
    }
}

/// An authority of its own in `ca.crt` and `ca.key` of a folder; certificates that it signs are made beside.
pub struct Authority {
    dir: TempDir,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let authority = Self { dir: tempfile::tempdir().unwrap() };
        let subject = format!("/CN={name}");
        let is_ca = "basicConstraints=critical,CA:TRUE";
        let (key, crt) = (authority.path("ca.key"), authority.path("ca.crt"));
        let what = ["-nodes", "-days", "2", "-subj", &subject, "-addext", is_ca, "-keyout", &key, "-out", &crt];
        run("openssl", ["req", "-x509"].iter().chain(&EC_KEY).chain(&what));
        authority
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Makes `NAME.crt` and `NAME.key` with these extensions.
    pub fn sign(&self, name: &str, extensions: &str) {
        let [key, csr, crt, ext] = ["key", "csr", "crt", "ext"].map(|end| self.path(&format!("{name}.{end}")));
        run(
            "openssl",
            ["req"].iter().chain(&EC_KEY).chain(&["-nodes", "-subj", "/CN=x", "-keyout", &key, "-out", &csr]),
        );
        fs::write(&ext, extensions).unwrap();
        let (ca, ca_key) = (self.path("ca.crt"), self.path("ca.key"));
        let by = ["-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-days", "2", "-extfile", &ext];
        run("openssl", ["x509", "-req", "-in", &csr, "-out", &crt].iter().chain(&by));
    }

    /// The registry's configuration for a certificate of ours, with `more` below `tls`.
    pub fn tls(&self, name: &str, more: &str) -> String {
        let (crt, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        format!("  tls: {{certificate: {crt}, key: {key}{more}}}\n")
    }
}

const EC_KEY: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// `docker save` names for this machine.
pub fn architecture() -> &'static str {
    Platform::host().unwrap().architecture()
}

/// An OCI layout with one image: the layers are the given tar archives, the lowest first.
pub fn make_image(site: &Site, layout: &str, tag: &str, architecture: &str, layers: &[PathBuf]) -> String {
    let dir = site.path(layout);
    let image = format!("{}:{tag}", dir.display());
    if !dir.exists() {
        run("umoci", ["init", "--layout", dir.to_str().unwrap()]);
    }
    run("umoci", ["new", "--image", &image]);
    run("umoci", ["config", "--image", &image, "--architecture", architecture, "--os", "linux"]);
    for layer in layers {
        run("umoci", ["raw", "add-layer", "--image", &image, layer.to_str().unwrap()]);
    }
    format!("oci:{image}")
}

/// A tar archive of a folder that `fill` has filled, made by GNU tar.
pub fn make_layer(site: &Site, name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    let tree = site.path(&format!("{name}.tree"));
    fs::create_dir_all(&tree).unwrap();
    fill(&tree);
    let archive = site.path(&format!("{name}.tar"));
    run(
        "tar",
        [
            "--create",
            "--format=posix",
            "--sparse",
            "--xattrs",
            "--file",
            archive.to_str().unwrap(),
            "--directory",
            tree.to_str().unwrap(),
            ".",
        ],
    );
    archive
}

/// A small image of two layers.
pub fn small_image(site: &Site, layout: &str, architecture: &str) -> String {
    let base = make_layer(site, &format!("{layout}-1"), |tree| {
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/os-release"), "ID=test\n").unwrap();
        // Not compressible, so that blobs have a size worth cutting.
        let noise: Vec<u8> = (0..400_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        fs::write(tree.join("noise"), noise).unwrap();
        fs::write(tree.join("arch"), architecture).unwrap();
    });
    let top = make_layer(site, &format!("{layout}-2"), |tree| {
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/added"), "by the second layer\n").unwrap();
        fs::write(tree.join("etc/.wh.os-release"), "").unwrap();
    });
    make_image(site, layout, "t", architecture, &[base, top])
}
