//! A prepared rootfs in a cache, as a build leaves it, without building one. Taken in by `#[path]`.

use slurm_factory::catalog::Catalog;
use slurm_factory::rootfs::Recipe;
use slurm_factory::sandbox::Ids;
use std::path::{Path, PathBuf};

/// Makes the entry of toolchain debian12 on the image `base` with this digest; what it is called follows from them. Returns its
/// folder, in which `root/usr/bin` and `meta.json` are.
pub fn debian12(cache: &Path, base: &str, digest: &str) -> PathBuf {
    let toolchain = Catalog::embedded().unwrap().toolchain("debian12").unwrap();
    let mut packages: Vec<_> = toolchain.packages.iter().map(|p| p.name.clone()).collect();
    packages.sort();
    packages.dedup();
    let recipe = Recipe {
        family: toolchain.family,
        package_sources: None,
        snapshot: None,
        ids: Ids::Single,
        toolchain: &toolchain.name,
        image: base,
        image_digest: digest,
        os_release: &toolchain.os_release,
        packages: &packages,
        requirements: &toolchain.requirements,
        probes: &toolchain.external,
    };
    let entry = cache.join("rootfs").join(recipe.id());
    fs_err::create_dir_all(entry.join("root/usr/bin")).unwrap();
    let meta = serde_json::json!({"image_digest": digest, "gcc": "12.2.0", "versions": {}, "packages": {},
        "glibc": "2.36", "unpacked": {}});
    fs_err::write(entry.join("meta.json"), meta.to_string()).unwrap();
    entry
}
