//! apt: the archive as it was at a time, from a mirror that keeps it in several states; a site's sources with its key in them.

use crate::Test;
use crate::world::{Asked, World};
use fs_err as fs;
use slurm_factory::catalog::Family;
use slurm_factory::plan::HostAccess;

pub const TESTS: &[Test] = &[
    ("apt_takes_the_archive_as_it_was", takes_the_archive_as_it_was),
    ("apt_takes_a_key_inside_the_sources_and_no_other", takes_a_key_inside_the_sources_and_no_other),
];

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

/// A site's archive and its key in one file (deb822), which the image knows nothing of.
fn keyed(world: &World, key: &str) -> Asked {
    let key = fs::read_to_string(world.dir.join(key)).unwrap();
    let lines: Vec<&str> = key.lines().map(|line| if line.is_empty() { "." } else { line }).collect();
    let lines = lines.join("\n ");
    let address = &world.https.address;
    let text =
        format!("Types: deb\nURIs: {address}/now/debian\nSuites: stable\nComponents: main\nSigned-By:\n {lines}\n");
    Asked { sources: Some(text), ..dated(None) }
}

fn takes_a_key_inside_the_sources_and_no_other(world: &World) {
    let rootfs = world.prepare(&keyed(world, "site.asc"), &world.trusting()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(rootfs.meta().packages["dated"], "2.0");
    let error = world.prepare(&keyed(world, "other.asc"), &world.trusting()).unwrap_err().to_string();
    for part in ["apt-get update", "NO_PUBKEY", "Signed-By: in apt's sources"] {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}
