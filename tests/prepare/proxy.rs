//! A proxy that wants a login (tinyproxy): apt, dnf and pip go through it, and its password is in no argument and no file.

use crate::Test;
use crate::world::{Asked, World};
use fs_err as fs;
use slurm_factory::catalog::Family;
use slurm_factory::plan::HostAccess;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const TESTS: &[Test] = &[
    ("proxy_with_a_login_is_used_by_all", a_login_is_used_by_all),
    ("proxy_that_refuses_is_named_without_its_password", a_refusal_shows_no_password),
];

const PASSWORD: &str = "hunter2hunter2";

/// As it is written in an address; a program may print it decoded.
const WRONG: &str = "not%2Dthe%2Dpassword";

struct Proxy {
    port: u16,
    log: PathBuf,
    child: Child,
}

impl Proxy {
    fn start(world: &World) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = world.dir.join("home").join(format!("proxy-{port}"));
        fs::create_dir_all(&dir).unwrap();
        let log = dir.join("log");
        let text = format!(
            "Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 60\nMaxClients 50\nLogFile \"{}\"\nLogLevel Connect\n\
             BasicAuth me {PASSWORD}\n",
            log.display()
        );
        fs::write(dir.join("conf"), text).unwrap();
        let child = Command::new("tinyproxy").arg("-d").arg("-c").arg(dir.join("conf")).stdout(Stdio::null()).spawn();
        let child = child.expect("tinyproxy is missing: apt-get install tinyproxy");
        let there = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        assert!(there, "tinyproxy did not start");
        Self { port, log, child }
    }

    fn access(&self, world: &World, password: &str, mirror: String) -> HostAccess {
        let address = format!("http://me:{password}@localhost:{}", self.port);
        let names = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"];
        let env = names.map(|name| (name.to_owned(), address.clone())).into();
        HostAccess { env, package_mirror: Some(mirror), ..world.trusting() }
    }

    fn connections(&self) -> usize {
        fs::read_to_string(&self.log).unwrap().lines().filter(|l| l.contains("Established connection to host")).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks at every command line of the machine until it is told to end; true when one held the text.
fn watch_arguments(text: &'static str) -> impl FnOnce() -> bool {
    let end = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&end);
    let watcher = std::thread::spawn(move || {
        let mut seen = false;
        while !told.load(Ordering::Relaxed) {
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                seen |= memchr::memmem::find(&line, text.as_bytes()).is_some();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        seen
    });
    move || {
        end.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    }
}

fn a_login_is_used_by_all(world: &World) {
    let proxy = Proxy::start(world);
    let seen = watch_arguments(PASSWORD);
    for (scheme, site) in [("http", &world.http), ("https", &world.https)] {
        for (family, package, path) in [(Family::Dnf, "gcc", "rocky"), (Family::Apt, "dated", "now/debian")] {
            let before = proxy.connections();
            let mut host = proxy.access(world, PASSWORD, format!("{}/{path}", site.address));
            host.env.push(("PIP_INDEX_URL".into(), format!("{}/simple", site.address)));
            if scheme == "http" {
                host.env.push(("PIP_TRUSTED_HOST".into(), "localhost".into()));
            }
            let asked = Asked::of(family, &[package]).with_wheels();
            let rootfs = world.prepare(&asked, &host).unwrap_or_else(|e| panic!("{scheme} {package}: {e}"));
            assert!(rootfs.meta().packages.contains_key(package));
            assert!(proxy.connections() >= before + 3, "{scheme} {package}: not through the proxy");
        }
    }
    assert!(!seen(), "the password was an argument of a program");
    let told = world.files_with(PASSWORD);
    assert!(told.is_empty(), "the password is in {told:?}");
    // What no_proxy names is reached without it.
    let before = proxy.connections();
    let mut host = proxy.access(world, "wrong", format!("{}/rocky", world.https.address));
    host.env.push(("no_proxy".into(), "localhost".into()));
    world.prepare(&Asked::of(Family::Dnf, &["gcc"]), &host).unwrap_or_else(|e| panic!("no_proxy: {e}"));
    assert_eq!(proxy.connections(), before);
}

fn a_refusal_shows_no_password(world: &World) {
    let proxy = Proxy::start(world);
    for (family, package, path) in [(Family::Dnf, "gcc", "rocky"), (Family::Apt, "dated", "now/debian")] {
        let host = proxy.access(world, WRONG, format!("{}/{path}", world.https.address));
        let error = world.prepare(&Asked::of(family, &[package]), &host).unwrap_err().to_string();
        assert!(error.contains("the proxy wants a login"), "{error}");
        assert!(!error.contains(WRONG) && !error.contains("not-the-password"), "{error}");
    }
    // pip's own words, when only it goes through the proxy.
    let mut host = proxy.access(world, WRONG, world.dir.join("site/rocky").display().to_string());
    host.env.push(("PIP_INDEX_URL".into(), format!("{}/simple", world.https.address)));
    let error = world.prepare(&Asked::of(Family::Dnf, &["gcc"]).with_wheels(), &host).unwrap_err().to_string();
    assert!(error.contains("pip install") && error.contains("the proxy wants a login"), "{error}");
    assert!(!error.contains("not-the-password"), "{error}");
    for text in [WRONG, "not-the-password"] {
        let told = world.files_with(text);
        assert!(told.is_empty(), "the password is in {told:?}");
    }
}
