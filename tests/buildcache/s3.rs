//! Binary caches in a bucket, as the network, other publishers and missing rights make it hard: every request fails in turn, publishers at
//! once lose nothing, and what may not be read is not lost.

use crate::faults::{Places, every_request};
use crate::proxy::{Fault, Proxy};
use crate::servers::{self, Server, address, options, store};
use crate::support::{ROUNDS, World, all, count, kinds, names, only};
use slurm_factory::buildcache::check::Kind;
use slurm_factory::buildcache::manifest::{SPEC, TARBALL};
use slurm_factory::buildcache::{Again, BuildcacheError, index, prune, would_push};
use slurm_factory::publish::{S3Options, S3Store, Store, StoreError};
use slurm_factory::report::Ctx;
use std::time::{Duration, SystemTime};

fn every_request_fails(kind: servers::Kind) {
    let (world, server) = (World::new(), Server::start(kind));
    let proxy = Proxy::before(server.port);
    let place = |port, tries| {
        let server = &server;
        move |name: &str| {
            let options = S3Options { tries, ..options(port, server) };
            Box::new(S3Store::open(&address(name), &options, &Ctx::silent()).unwrap()) as Box<dyn Store>
        }
    };
    let places =
        Places { patient: &place(proxy.port, 4), impatient: &place(proxy.port, 2), direct: &place(server.port, 4) };
    every_request(&world, &proxy, &places, Fault::SlowDown);
}

#[test]
fn what_fails_in_passing_is_tried_again_and_what_fails_for_good_is_ended_by_the_next_run_s3s() {
    every_request_fails(servers::Kind::S3s);
}

#[test]
fn what_fails_in_passing_is_tried_again_and_what_fails_for_good_is_ended_by_the_next_run_moto() {
    every_request_fails(servers::Kind::Moto);
}

/// Each publisher has one of the packages.
fn publishers(server: &Server, port: u16) {
    let world = World::new();
    for round in 0..count(ROUNDS, 5) {
        let name = format!("at-once/{round}");
        std::thread::scope(|scope| {
            for package in ["app", "lib", "tool"] {
                let (world, store) = (&world, store(port, server, &name));
                scope.spawn(move || world.push_to(&store, &only(package)).unwrap());
            }
        });
        let direct = store(server.port, server, &name);
        assert_eq!(
            (names(&direct).join(" "), kinds(&direct, &world.keyring())),
            ("app lib tool".into(), vec![]),
            "round {round}"
        );
    }
}

#[test]
fn publishers_at_once_lose_nothing() {
    let server = Server::start(servers::Kind::Moto);
    let proxy = Proxy::before(server.port);
    // moto looks at a condition and writes in two steps.
    proxy.one_at_a_time();
    publishers(&server, proxy.port);
}

#[test]
fn publishers_at_once_lose_nothing_where_there_are_no_conditional_writes() {
    let server = Server::start(servers::Kind::Moto);
    let proxy = Proxy::before(server.port);
    proxy.drop_headers(&["if-match", "if-none-match"]);
    publishers(&server, proxy.port);
}

/// A cache in a bucket that keeps one object of `lib` from us: its manifest, or a blob of it.
struct Restricted {
    world: World,
    server: Server,
    proxy: Proxy,
    /// How the key of that object begins.
    kept: String,
}

impl Restricted {
    fn new(blob: Option<&str>) -> Self {
        let (world, mut server) = (World::new(), Server::start(servers::Kind::Moto));
        world.push_to(&store(server.port, &server, "cache"), &all()).unwrap();
        // The same blobs.
        let folder = world.dir.path().join("same");
        world.push(&folder, &all());
        let kept = match blob {
            Some(media_type) => crate::blob_of(&folder, "lib", media_type).to_string(),
            None => "v3/manifests/spec/lib/".to_owned(),
        };
        let bucket = format!("arn:aws:s3:::{}", servers::BUCKET);
        server.restrict(&format!(
            r#"{{"Effect":"Allow","Action":"s3:*","Resource":["{bucket}","{bucket}/*"]}},
               {{"Effect":"Deny","Action":"s3:GetObject","Resource":"{bucket}/cache/{kept}*"}}"#
        ));
        let proxy = Proxy::before(server.port);
        Self { world, server, proxy, kept }
    }

    fn store(&self) -> S3Store {
        store(self.proxy.port, &self.server, "cache")
    }

    /// The object is named, and nothing was written.
    fn refuses<T: std::fmt::Debug>(&self, what: &str, done: Result<T, BuildcacheError>) {
        let error = done.expect_err(what);
        assert!(matches!(error, BuildcacheError::Store(StoreError::Forbidden { .. })), "{what}: {error}");
        assert!(error.to_string().contains(&self.kept), "{what}: {error}");
        let reads = |head: &String| head.starts_with("GET ") || head.starts_with("HEAD ");
        let writes: Vec<String> = self.proxy.heads().into_iter().filter(|head| !reads(head)).collect();
        assert_eq!(writes, [""; 0], "{what}");
    }
}

#[test]
fn no_index_is_made_without_what_may_not_be_read() {
    for blob in [None, Some(SPEC), Some(TARBALL)] {
        let cache = Restricted::new(blob);
        if blob != Some(TARBALL) {
            cache.refuses("index", index::rebuild(&cache.store(), &cache.world.keyring(), &Ctx::silent()));
        }
        assert_eq!(names(&cache.store()), ["app", "lib", "tool"]);
        // Who only looks names it and goes on.
        assert_eq!(kinds(&cache.store(), &cache.world.keyring()), [Kind::Forbidden], "{blob:?}");
    }
}

#[test]
fn what_may_not_be_read_is_neither_written_over_nor_removed() {
    let (cache, ctx) = (Restricted::new(None), Ctx::silent());
    let packages = cache.world.tree.select(&all()).unwrap();
    let keyring = cache.world.keyring();
    cache.refuses("dry run", would_push(&cache.store(), &packages, &keyring, &Again::Nothing, &ctx));
    cache.refuses("push", cache.world.push_to(&cache.store(), &all()));
    let later = SystemTime::now() + Duration::from_hours(1);
    cache.refuses("prune", prune::prune(&cache.store(), later, false, &ctx));
}
