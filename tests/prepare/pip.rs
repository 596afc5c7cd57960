//! pip: the pinned wheels from a site's index, which is only a place.

use crate::Test;
use crate::world::{Asked, World};
use slurm_factory::catalog::Family;
use slurm_factory::plan::HostAccess;

pub const TESTS: &[Test] = &[
    ("pip_takes_wheels_from_a_sites_index", takes_wheels_from_a_sites_index),
    ("pip_refuses_another_file_under_a_pinned_name", refuses_another_file),
];

fn wheels() -> Asked {
    Asked::of(Family::Dnf, &["gcc"]).with_wheels()
}

fn index(world: &World, address: &str) -> HostAccess {
    HostAccess {
        env: vec![("PIP_INDEX_URL".into(), address.into())],
        package_mirror: Some(world.dir.join("site/rocky").display().to_string()),
        ..HostAccess::default()
    }
}

fn takes_wheels_from_a_sites_index(world: &World) {
    let address = format!("https://me:p4ssw0rd@localhost:{}/private/simple", world.https.port);
    // A bundle for pip alone.
    let host = HostAccess { pip_cert: Some(world.dir.join("ca.pem")), ..index(world, &address) };
    let rootfs = world.prepare(&wheels(), &host).unwrap_or_else(|e| panic!("{e}"));
    assert!(rootfs.root().join("usr/local/lib/python3.11/dist-packages/clingo").is_dir());
    assert!(world.https.requests().contains("GET /private/simple/clingo/"), "{}", world.https.requests());
    let told = world.files_with("p4ssw0rd");
    assert!(told.is_empty(), "the password is in {told:?}");
}

fn refuses_another_file(world: &World) {
    let address = format!("{}/wrong", world.http.address);
    let host = index(world, &address);
    let error = world.prepare(&wheels(), &host).unwrap_err().to_string();
    for part in ["pip install", "cffi", "--pip-index"] {
        assert!(error.contains(part), "{error}");
    }
}
