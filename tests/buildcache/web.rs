//! What builds take from mirrors in the network: looked at before Spack sees it, wherever it comes from.

use crate::oci::store;
use crate::registry::Registry;
use crate::support::{ROOT, World};
use slurm_factory::buildcache::check::Kind;
use slurm_factory::buildcache::{Selection, Wanted, excerpt};
use slurm_factory::cache::Cache;
use slurm_factory::image::ClientConfig;
use slurm_factory::publish::{Key, Reach, S3Options, S3Store, Store, WebStore};
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
use std::time::{Duration, Instant};

/// Python's own web server over a folder.
struct Web {
    child: Child,
    port: u16,
}

impl Web {
    fn over(dir: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string(), "--directory"]).arg(dir);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "python3 -m http.server does not answer");
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
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let other = generate("Builder", "", None, Algorithm::Ed25519).unwrap();
    let other = SigningKey::from_bytes("the builder", &Secret::new(other.secret.expose().clone()), None).unwrap();
    let own = if believed { &world.key } else { &other };
    let mirrors = BinaryMirrors {
        places: places.to_vec(),
        reach: Some(Reach::default()),
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
    world.push(&mirror, &Selection { build_dependencies: true, ..Selection::default() });
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
    let all = Selection { build_dependencies: true, ..Selection::default() };
    let wanted = BTreeSet::from([world.hash("app"), world.hash("lib")]);
    let registry = Registry::start();
    world.push_to(&store(registry.port, "site/cache", 1), &all).unwrap();
    assert_eq!(taken(&world, &[format!("oci://127.0.0.1:{}/site/cache", registry.port)], &[], true), wanted);

    let tools = Path::new(env!("CARGO_BIN_EXE_slurm-factory")).parent().unwrap().parent().unwrap().join("test-tools");
    let data = world.dir.path().join("s3");
    fs::create_dir_all(data.join("bucket")).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(tools.join("bin/s3s-fs"));
    command.args(["--host", "127.0.0.1", "--access-key", "access", "--secret-key", "secret", "--port"]);
    let server = command.arg(port.to_string()).arg(&data).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut server = server.unwrap_or_else(|e| panic!("{}: {e}; tests/run.sh installs it", tools.display()));
    let begin = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(50));
    }
    let s3 = || S3Options {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        region: Some("us-east-1".into()),
        credentials: Some(("access".into(), Secret::new("secret".into()))),
        ..S3Options::default()
    };
    let bucket = S3Store::open("s3://bucket/mirror", &s3(), &Ctx::silent()).unwrap();
    world.push_to(&bucket, &all).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let mirrors = BinaryMirrors {
        places: vec!["s3://bucket/mirror".into()],
        reach: Some(Reach { s3: s3(), registries: ClientConfig::default() }),
        keys: Vec::new(),
    };
    let missing = locked(&world);
    let missing: Vec<&LockedPackage> = missing.iter().collect();
    let cache = Cache::open(cache.path()).unwrap();
    let found = binaries(&cache, &world.key, &mirrors, &missing, &Ctx::silent()).unwrap();
    assert_eq!(found.hashes.into_iter().collect::<BTreeSet<_>>(), wanted);
    let _ = server.kill();
    let _ = server.wait();
}

/// A server that cuts every body after some bytes and knows ranges, or does not.
#[test]
fn a_body_that_is_cut_goes_on() {
    for ranges in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let body: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let sent = body.clone();
        std::thread::spawn(move || {
            let mut number = 0;
            for stream in listener.incoming().flatten() {
                number += 1;
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
                // Each time a little further.
                let _ = stream.write_all(&rest[..rest.len().min(150_000 * number)]);
            }
        });
        let config = ClientConfig { retries: 5, ..ClientConfig::default() };
        let store = WebStore::open(&format!("http://127.0.0.1:{port}"), &config).unwrap();
        let mut got = Vec::new();
        let read = store.download(&Key::new("blob").unwrap(), &mut got, &Ctx::silent()).unwrap();
        assert_eq!((read, got == body), (Some(body.len() as u64), true), "ranges: {ranges}");
    }
}
