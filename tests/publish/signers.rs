//! A package that is signed again: the signature that is there stays, unless it is to be replaced. And what is no part of it, the
//! page for people, does not make a run fail.

use crate::world::{keyring, package, signing_key};
use slurm_factory::package::{Package, Trust};
use slurm_factory::publish::FolderStore;
use slurm_factory::report::Ctx;
use slurm_factory::sign::{Algorithm, Others, SigningKey, generate};
use slurm_factory::workflows::publish::{self, Options};

#[test]
fn a_signature_by_another_key_is_sent_only_to_replace_the_one_that_is_there() {
    let ctx = Ctx::silent();
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "25.11", 31, 1000);
    let site = dir.path().join("site");
    let store = FolderStore::new(&site);
    let made = generate("Other", "other@example.org", None, Algorithm::Ed25519).unwrap();
    let other = SigningKey::from_bytes("the other test key", &made.secret, None).unwrap();
    let mut trusted = keyring();
    trusted.add_key(&other);
    let send = |replace: bool| {
        let options = Options { replace, verify: true };
        let outgoing = publish::look(&package, &trusted, &store, options, &ctx).unwrap();
        publish::send(&outgoing, &store, options, &ctx).unwrap();
        let listed = publish::list(&store, &ctx).unwrap().packages.remove(0);
        let there = std::fs::read(site.join(format!("{}.asc", listed.path))).unwrap();
        let mine = std::fs::read(format!("{}.asc", package.display())).unwrap();
        let offered = site.join(format!("keys/{}.asc", other.fingerprint())).is_file();
        (listed.signed_by, there == mine, offered)
    };
    let first = signing_key().fingerprint().to_string();
    assert_eq!(send(false), (first.clone(), true, false));
    Package::open(&package, Trust::Require(&trusted), &ctx).unwrap().0.sign(&other, Others::Replace, &ctx).unwrap();
    assert_eq!(send(false), (first, false, false), "what is there stays, and no key is offered that signed nothing");
    assert_eq!(send(true), (other.fingerprint().to_string(), true, true));
    assert_eq!(send(false), (other.fingerprint().to_string(), true, true));

    // A second signer beside: again nothing changes unless that is said, and then every signer's key is offered.
    let made = generate("Third", "third@example.org", None, Algorithm::Ed25519).unwrap();
    let third = SigningKey::from_bytes("the third test key", &made.secret, None).unwrap();
    let mut all = trusted.clone();
    all.add_key(&third);
    Package::open(&package, Trust::Require(&all), &ctx).unwrap().0.sign(&third, Others::Keep, &ctx).unwrap();
    let send = |replace: bool| {
        let options = Options { replace, verify: true };
        let outgoing = publish::look(&package, &all, &store, options, &ctx).unwrap();
        publish::send(&outgoing, &store, options, &ctx).unwrap();
        let asc = |path: String| std::fs::read(path).unwrap();
        let listed = publish::list(&store, &ctx).unwrap().packages.remove(0);
        let same = asc(format!("{}/{}.asc", site.display(), listed.path)) == asc(format!("{}.asc", package.display()));
        (same, site.join(format!("keys/{}.asc", third.fingerprint())).is_file())
    };
    assert_eq!(send(false), (false, false));
    assert_eq!(send(true), (true, true));
    assert_eq!(send(false), (true, true));
}

#[test]
fn a_page_that_cannot_be_written_is_no_failure() {
    let ctx = Ctx::silent();
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "25.11", 32, 1000);
    let site = dir.path().join("site");
    // A folder in its place, which nothing can be renamed over.
    std::fs::create_dir_all(site.join("index.html/x")).unwrap();
    let store = FolderStore::new(&site);
    crate::world::publish_to(&store, &package).unwrap();
    assert_eq!(publish::list(&store, &ctx).unwrap().packages.len(), 1);
}
