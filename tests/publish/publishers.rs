//! Two publishers at once: nothing that either wrote is lost, and the index names everything.

use crate::proxy::Proxy;
use crate::servers::{Kind, Server};
use crate::world::{assert_sound, package, publish_to, store};
use slurm_factory::workflows::publish::PublishError;
use std::path::{Path, PathBuf};

/// How many rounds; `tests/deep` says more.
const ROUNDS: &str = "SLURM_FACTORY_TEST_PUBLISH_ROUNDS";

fn rounds() -> usize {
    std::env::var(ROUNDS).map_or(5, |n| n.parse().unwrap())
}

fn at_once(port: u16, server: &Server, prefix: &str, packages: &[&Path]) -> Vec<Result<(), PublishError>> {
    std::thread::scope(|scope| {
        let runs: Vec<_> = packages
            .iter()
            .map(|package| scope.spawn(move || publish_to(&store(port, server, prefix), package)))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

fn two_packages(server: &Server, port: u16) {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let packages: Vec<PathBuf> =
        ["24.11", "25.11"].iter().zip(&dirs).map(|(v, dir)| package(dir.path(), v, 5, 6 << 20)).collect();
    let packages: Vec<&Path> = packages.iter().map(PathBuf::as_path).collect();
    for round in 0..rounds() {
        let prefix = format!("two/{round}");
        for result in at_once(port, server, &prefix, &packages) {
            result.unwrap();
        }
        let named = assert_sound(&store(server.port, server, &prefix), &packages);
        assert_eq!(named.len(), 2, "round {round}: {named:?}");
    }
}

#[test]
fn two_packages_at_once_are_both_in_the_index() {
    let server = Server::start(Kind::Moto);
    let proxy = Proxy::before(server.port);
    proxy.one_at_a_time();
    two_packages(&server, proxy.port);
}

#[test]
fn two_packages_at_once_where_there_are_no_conditional_writes() {
    let server = Server::start(Kind::Moto);
    let proxy = Proxy::before(server.port);
    proxy.drop_headers(&["if-match", "if-none-match"]);
    two_packages(&server, proxy.port);
}

#[test]
fn of_two_packages_with_one_name_one_wins_and_is_whole() {
    let server = Server::start(Kind::Moto);
    let proxy = Proxy::before(server.port);
    proxy.one_at_a_time();
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let packages: Vec<PathBuf> =
        [21, 22].iter().zip(&dirs).map(|(seed, dir)| package(dir.path(), "25.11", *seed, 6 << 20)).collect();
    for round in 0..rounds() {
        let prefix = format!("one/{round}");
        let results = at_once(proxy.port, &server, &prefix, &[&packages[0], &packages[1]]);
        let won: Vec<_> = (0..2).filter(|i| results[*i].is_ok()).collect();
        assert_eq!(won.len(), 1, "round {round}: {results:?}");
        let lost = results.into_iter().find_map(Result::err).unwrap();
        assert!(matches!(lost, PublishError::Taken { .. }), "{lost}");
        let named = assert_sound(&store(server.port, &server, &prefix), &[&packages[won[0]]]);
        assert_eq!(named.len(), 1);
    }
}

#[test]
fn the_same_package_twice_at_once_is_there_once() {
    let server = Server::start(Kind::Moto);
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "25.11", 23, 12 << 20);
    for round in 0..rounds() {
        let prefix = format!("same/{round}");
        for result in at_once(server.port, &server, &prefix, &[&package, &package]) {
            result.unwrap();
        }
        assert_eq!(assert_sound(&store(server.port, &server, &prefix), &[&package]).len(), 1);
    }
}
