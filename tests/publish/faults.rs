//! Every request of a whole publication fails once, the ways taking turns, and from every request on for good. As often as there
//! are ways (`tests/deep`), each request fails in each.

use crate::proxy::{ALL, Fault, Proxy};
use crate::servers::{Kind, Server};
use crate::world::{assert_sound, options, package, publish_to, store};
use slurm_factory::publish::S3Store;
use slurm_factory::report::Ctx;
use std::path::Path;

/// How many bytes: three parts.
const SIZE: usize = 11 << 20;

/// How many requests a publication to an empty place takes.
fn requests(proxy: &Proxy, server: &Server, package: &Path) -> usize {
    proxy.rule(|_| None);
    publish_to(&store(proxy.port, server, "count"), package).unwrap();
    proxy.heads().len()
}

/// How many times the ways are dealt to the requests, each time by one further; all of them by `tests/deep`.
const WAYS: &str = "SLURM_FACTORY_TEST_PUBLISH_WAYS";

fn once_each(kind: Kind) {
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port);
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "25.11", 1, SIZE);
    let requests = requests(&proxy, &server, &package);
    assert!(requests > 20, "{requests}");
    let ways: usize = std::env::var(WAYS).map_or(1, |n| n.parse().unwrap());
    let dealt = (0..ways).flat_map(|round| (0..requests).zip(ALL.iter().cycle().skip(round)));
    for (place, (number, fault)) in dealt.enumerate() {
        let prefix = format!("once/{place}");
        proxy.rule(move |n| (n == number).then_some(*fault));
        publish_to(&store(proxy.port, &server, &prefix), &package)
            .unwrap_or_else(|e| panic!("{fault:?} at request {number} of {requests}: {e}"));
        let named = assert_sound(&store(server.port, &server, &prefix), &[&package]);
        assert_eq!(named.len(), 1, "{fault:?} at request {number}");
    }
}

#[test]
fn what_fails_in_passing_is_tried_again_s3s() {
    once_each(Kind::S3s);
}

#[test]
fn what_fails_in_passing_is_tried_again_moto() {
    once_each(Kind::Moto);
}

fn for_good(kind: Kind) {
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port);
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "25.11", 2, SIZE);
    let requests = requests(&proxy, &server, &package);
    for number in 0..requests {
        let prefix = format!("for-good/{number}");
        let fault = [Fault::CutBefore, Fault::CutAfter, Fault::SlowDown][number % 3];
        let first = number;
        proxy.rule(move |n| (n >= first).then_some(fault));
        let mut impatient = options(proxy.port, &server);
        impatient.tries = 2;
        let through = S3Store::open(&crate::world::address(&prefix), &impatient, &Ctx::silent()).unwrap();
        let result = publish_to(&through, &package);
        let direct = store(server.port, &server, &prefix);
        let named = assert_sound(&direct, &[&package]);
        if let Err(error) = result {
            let error = error.to_string();
            assert!(error.starts_with("s3://packages/for-good/"), "{error}");
        } else {
            assert_eq!(named.len(), 1, "{fault:?} from request {number} of {requests} on");
        }
        // A run afterwards ends it.
        proxy.rule(|_| None);
        publish_to(&through, &package).unwrap_or_else(|e| panic!("after {fault:?} from request {number}: {e}"));
        assert_eq!(assert_sound(&direct, &[&package]).len(), 1);
    }
}

#[test]
fn what_fails_for_good_leaves_the_place_sound_s3s() {
    for_good(Kind::S3s);
}

#[test]
fn what_fails_for_good_leaves_the_place_sound_moto() {
    for_good(Kind::Moto);
}
