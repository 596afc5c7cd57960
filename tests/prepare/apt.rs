//! apt: the archive as it was at a time, from a mirror that keeps it in several states.

use crate::Test;
use crate::world::{Asked, World};
use slurm_factory::catalog::Family;
use slurm_factory::plan::HostAccess;

pub const TESTS: &[Test] = &[("apt_takes_the_archive_as_it_was", takes_the_archive_as_it_was)];

const OLD: &str = "20200101T000000Z";
const NEW: &str = "20260101T000000Z";

fn dated(snapshot: Option<&'static str>) -> Asked {
    Asked { snapshot, ..Asked::of(Family::Apt, &["dated"]) }
}

fn mirrored(world: &World, path: &str) -> HostAccess {
    HostAccess { package_mirror: Some(format!("{}/{path}", world.https.address)), ..world.trusting() }
}

fn takes_the_archive_as_it_was(world: &World) {
    let mut identities = Vec::new();
    for (time, version) in [(OLD, "1.0"), (NEW, "2.0")] {
        let host = mirrored(world, "snap/debian/{snapshot}");
        let rootfs = world.prepare(&dated(Some(time)), &host).unwrap_or_else(|e| panic!("{time}: {e}"));
        assert_eq!(rootfs.meta().packages["dated"], version);
        assert_eq!(rootfs.meta().gcc, "12.2.0");
        identities.push(rootfs.id().to_owned());
        assert!(!rootfs.root().join("var/lib/apt/lists").exists(), "apt's lists are named after the mirror");
    }
    assert_ne!(identities[0], identities[1]);
    // Now means now: a mirror that nobody has updated since its Release file ran out is an error.
    let rootfs = world.prepare(&dated(None), &mirrored(world, "now/debian")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(rootfs.meta().packages["dated"], "2.0");
    let error = world.prepare(&dated(None), &mirrored(world, "stale/debian")).unwrap_err().to_string();
    assert!(error.contains("apt-get update") && error.contains("expired"), "{error}");
}
