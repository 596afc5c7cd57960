//! What builds take from mirrors in the network: looked at before Spack sees it, wherever it comes from.

use crate::registry::{Registry, store};
use crate::servers::{self, Server};
use crate::support::{ROOT, World, all};
use slurm_factory::buildcache::check::Kind;
use slurm_factory::buildcache::{Wanted, excerpt, index};
use slurm_factory::cache::Cache;
use slurm_factory::image::ClientConfig;
use slurm_factory::publish::{Key, Reach, Store, WebStore};
use slurm_factory::report::Ctx;
use slurm_factory::resolve::BinaryMirrors;
use slurm_factory::secret::Secret;
use slurm_factory::sign::{Algorithm, SigningKey, generate};
use slurm_factory::spack::LockedPackage;
use slurm_factory::workflows::buildcache::binaries;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Python's own web server over a folder.
struct Web {
    child: Child,
    port: u16,
}

const SERVER: &str = r#"
import http.server, sys
port, folder, *forbidden = sys.argv[1:]
class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args):
        super().__init__(*args, directory=folder)
    def send_head(self):
        if any(part in self.path for part in forbidden):
            return self.send_error(403)
        return super().send_head()
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"#;

impl Web {
    fn over(dir: &Path) -> Self {
        Self::that_forbids(dir, &[])
    }

    /// The same, which answers 403 to paths that contain one of these.
    fn that_forbids(dir: &Path, parts: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("python3");
        command.args(["-c", SERVER, &port.to_string()]).arg(dir).args(parts);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "Python's web server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { child, port }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mirror", self.port)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn locked(world: &World) -> Vec<LockedPackage> {
    let packages = world.tree.packages().values().filter(|p| p.name != "tool");
    packages
        .map(|p| LockedPackage {
            name: p.name.clone(),
            version: p.version.clone(),
            hash: p.hash.clone(),
            namespace: "builtin".into(),
            target: "x86_64".into(),
            external: false,
            root: p.name == "app",
            needed: true,
            dependencies: Vec::new(),
        })
        .collect()
}

/// What a build would take from these places, with the key of the world among those that are believed, or not.
fn taken(world: &World, places: &[String], keys: &[&str], believed: bool) -> BTreeSet<String> {
    taken_by(Reach::default(), world, places, keys, believed)
}

fn taken_by(reach: Reach, world: &World, places: &[String], keys: &[&str], believed: bool) -> BTreeSet<String> {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let other = generate("Builder", "", None, Algorithm::Ed25519).unwrap();
    let other = SigningKey::from_bytes("the builder", &Secret::new(other.secret.expose().clone()), None).unwrap();
    let own = if believed { &world.key } else { &other };
    let mirrors = BinaryMirrors {
        places: places.to_vec(),
        reach: Some(reach),
        keys: keys.iter().map(|key| key.parse().unwrap()).collect(),
    };
    let missing = locked(world);
    let missing: Vec<&LockedPackage> = missing.iter().collect();
    let found = binaries(&cache, own, &mirrors, &missing, &Ctx::silent()).unwrap();
    if let Some(dir) = &found.dir {
        let names: Vec<_> = fs::read_dir(dir.path().join("v3/manifests/spec")).unwrap().collect();
        assert_eq!(names.len(), found.hashes.len(), "Spack sees what was taken and nothing else");
    }
    found.hashes.into_iter().collect()
}

fn pushed() -> (World, PathBuf) {
    let world = World::new();
    let mirror = world.dir.path().join("served/mirror");
    world.push(&mirror, &all());
    (world, mirror)
}

fn manifest_of(mirror: &Path, name: &str) -> PathBuf {
    fs::read_dir(mirror.join("v3/manifests/spec").join(name)).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn a_swapped_manifest_in_the_web_is_caught_and_the_build_goes_on_without_it() {
    let (world, mirror) = pushed();
    let web = Web::over(mirror.parent().unwrap());
    let places = [web.url()];
    assert_eq!(taken(&world, &places, &[], true), BTreeSet::from([world.hash("app"), world.hash("lib")]));
    // `lib` gets the manifest of `tool`, whose signature is good.
    fs::copy(manifest_of(&mirror, "tool"), manifest_of(&mirror, "lib")).unwrap();
    assert_eq!(taken(&world, &places, &[], true), BTreeSet::from([world.hash("app")]));
    let store = WebStore::open(&web.url(), &ClientConfig::default()).unwrap();
    let to = world.dir.path().join("to");
    fs::create_dir(&to).unwrap();
    let wanted: BTreeMap<String, Wanted> = [(world.hash("lib"), world.wanted("lib"))].into();
    let found = excerpt(&store, &world.keyring(), &wanted, ROOT, &to, &Ctx::silent()).unwrap();
    assert_eq!(found.faults.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::Substituted]);
    assert!(found.faults[0].key.contains("lib-0.5.16"), "{:?}", found.faults);
    // Where nobody is, everything is built.
    drop(web);
    assert_eq!(taken(&world, &places, &[], true), BTreeSet::new());
}

#[test]
fn keys_of_a_mirror_are_believed_when_their_whole_fingerprint_is_configured() {
    let (world, mirror) = pushed();
    let web = Web::over(mirror.parent().unwrap());
    let places = [web.url()];
    let fingerprint = world.key.fingerprint().to_string();
    let all = BTreeSet::from([world.hash("app"), world.hash("lib")]);
    assert_eq!(taken(&world, &places, &[], false), BTreeSet::new(), "nobody said that this key is good");
    assert_eq!(taken(&world, &places, &[&fingerprint], false), all);
    let other = generate("Other", "", None, Algorithm::Ed25519).unwrap();
    let other = SigningKey::from_bytes("x", &Secret::new(other.secret.expose().clone()), None).unwrap();
    assert_eq!(taken(&world, &places, &[&other.fingerprint().to_string()], false), BTreeSet::new());
}

#[test]
fn buckets_and_registries_are_read_in_the_same_way() {
    let (world, _) = pushed();
    let all = all();
    let wanted = BTreeSet::from([world.hash("app"), world.hash("lib")]);
    let registry = Registry::start();
    world.push_to(&store(registry.port, "site/cache", 1), &all).unwrap();
    assert_eq!(taken(&world, &[format!("oci://127.0.0.1:{}/site/cache", registry.port)], &[], true), wanted);

    let server = Server::start(servers::Kind::S3s);
    world.push_to(&servers::store(server.port, &server, "mirror"), &all).unwrap();
    let reach = Reach { s3: servers::options(server.port, &server), registries: Arc::default() };
    assert_eq!(taken_by(reach, &world, &[servers::address("mirror")], &[], true), wanted);
}

/// A package that may not be read counts as not there, and the others of the same cache are taken all the same.
#[test]
fn what_is_forbidden_is_not_there_and_the_rest_is_taken() {
    let (world, mirror) = pushed();
    let fingerprint = world.key.fingerprint().to_string();
    let app = BTreeSet::from([world.hash("app")]);
    // Its layout too: as where the object is not there and the place may not be listed.
    let web = Web::that_forbids(
        mirror.parent().unwrap(),
        &["/spec/lib/", "layout.json", "build_cache/index.json", "/manifests/index/"],
    );
    for keys in [&[][..], &[fingerprint.as_str()]] {
        assert_eq!(taken(&world, &[web.url()], keys, keys.is_empty()), app, "{keys:?}");
    }
    let store = WebStore::open(&web.url(), &ClientConfig::default()).unwrap();
    let lib: BTreeMap<String, Wanted> = [(world.hash("lib"), world.wanted("lib"))].into();
    let found = excerpt(&store, &world.keyring(), &lib, ROOT, &world.dir.path().join("to"), &Ctx::silent()).unwrap();
    assert_eq!((found.forbidden, found.faults, found.taken), (1, vec![], BTreeSet::new()));
    // Who asks for the index is told.
    let error = index::read(&store, &Ctx::silent()).unwrap_err().to_string();
    assert!(error.contains("may not read") && error.contains("403"), "{error}");
    // A blob, and every key.
    let spec = blob_of(&mirror, "app");
    let web = Web::that_forbids(mirror.parent().unwrap(), &[&spec, "/key/"]);
    assert_eq!(taken(&world, &[web.url()], &[&fingerprint], true), BTreeSet::from([world.hash("lib")]));

    let mut server = Server::start(servers::Kind::Moto);
    let all = all();
    world.push_to(&servers::store(server.port, &server, "mirror"), &all).unwrap();
    let objects = format!("arn:aws:s3:::{}/mirror", servers::BUCKET);
    server.restrict(&format!(
        r#"{{"Effect":"Allow","Action":"s3:GetObject","Resource":"{objects}/*"}},
           {{"Effect":"Deny","Action":"s3:GetObject","Resource":["{objects}/v3/manifests/spec/lib/*","{objects}/v3/layout.json"]}}"#
    ));
    let reach = Reach { s3: servers::options(server.port, &server), registries: Arc::default() };
    assert_eq!(taken_by(reach, &world, &[servers::address("mirror")], &[], true), app);
}

/// Where the first blob of a package's manifest lies.
fn blob_of(mirror: &Path, name: &str) -> String {
    let text = fs::read_to_string(manifest_of(mirror, name)).unwrap();
    let (_, rest) = text.split_once("\"checksum\": \"").unwrap();
    format!("/{}", &rest[..64])
}

/// A server that cuts every body after some bytes and knows ranges, or does not: more often than a request is tried again, and
/// each time it has brought something. From then on that it brings nothing, it is given up.
#[test]
fn a_body_that_is_cut_goes_on_as_long_as_it_brings_something() {
    for (ranges, step) in [(true, 60_000), (false, 60_000), (true, 0)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let body: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let sent = body.clone();
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = requests.clone();
        std::thread::spawn(move || {
            let mut number = 0;
            for stream in listener.incoming().flatten() {
                number += 1;
                seen.fetch_add(1, Ordering::SeqCst);
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut from) = (String::new(), 0_usize);
                while reader.read_line(&mut line).unwrap_or(0) > 2 {
                    if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=").filter(|_| ranges) {
                        from = range.trim().trim_end_matches('-').parse().unwrap();
                    }
                    line.clear();
                }
                let (total, rest) = (sent.len(), &sent[from..]);
                let head = match from {
                    0 => "200 OK\r\n".to_owned(),
                    _ => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}\r\n", total - 1),
                };
                let mut stream = stream;
                let _ = write!(stream, "HTTP/1.1 {head}Content-Length: {}\r\nConnection: close\r\n\r\n", rest.len());
                let most = match (step, ranges) {
                    (0, _) => 100_000 - from.min(100_000),
                    (_, true) => step,
                    (_, false) => step * number,
                };
                let _ = stream.write_all(&rest[..rest.len().min(most)]);
            }
        });
        let config = ClientConfig { retries: 1, ..ClientConfig::default() };
        let store = WebStore::open(&format!("http://127.0.0.1:{port}"), &config).unwrap();
        let mut got = Vec::new();
        let read = store.download(&Key::new("blob").unwrap(), &mut got, &Ctx::silent());
        if step == 0 {
            assert!(read.unwrap_err().to_string().contains("cannot read blob") && got == body[..100_000]);
            // The first brought something, which counts as one; the next does not.
            assert_eq!(requests.load(Ordering::SeqCst), 2);
            continue;
        }
        assert_eq!((read.unwrap(), got == body), (Some(body.len() as u64), true), "ranges: {ranges}");
        assert_eq!(requests.load(Ordering::SeqCst), body.len().div_ceil(step), "ranges: {ranges}");
    }
}
