//! A package as an OCI image: the base image that it was built in, and one layer with the package installed.
//!
//! ```text
//! layers of the base image, as they are
//! /opt/slurm/{view,modules,data,manifest.json}      the files that wait for a folder are filled in with it
//! config   PATH=/opt/slurm/view/bin:/opt/slurm/view/sbin:...   labels: version, base, the archive's sum
//! ```
//!
//! The image's time, and that of every file in the layer, is the package's, so the same package on the same base has
//! the same digest.

use crate::cache::{Cache, CacheError};
use crate::catalog::glibc_number;
use crate::fsutil;
use crate::image::{self, Changes, ImageError, PulledImage, Reference};
use crate::package::{Facts, Package, PackageError, Record, Tree, encode_path, layout};
use crate::report::{Ctx, Interrupted};
use fs_err as fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Where the package lies in the image.
const PREFIX: &str = "/opt/slurm";

/// Why no image could be made of a package.
#[derive(Debug, thiserror::Error)]
pub enum PackageImageError {
    /// The package cannot be unpacked.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The image cannot be made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file operation failed.
    #[error("package --oci: {0}")]
    Io(#[from] io::Error),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The base image's glibc is older than what the package needs.
    #[error(
        "the package needs glibc {needed} ({file}: {symbol}), and the base image `{base}` has {}: name a newer one with --base, or none for \
         the image that it was built in",
        there.as_deref().map_or("no glibc".to_owned(), |version| format!("glibc {version}"))
    )]
    OlderGlibc {
        /// The package's.
        needed: String,
        /// The file that needs it.
        file: String,
        /// What of it that file needs.
        symbol: String,
        /// The image.
        base: String,
        /// The image's; `None` when it has none.
        there: Option<String>,
    },
    /// The base image is for another processor.
    #[error("the package is built for {target}, and the base image is for {platform}: name one with --base")]
    OtherMachine {
        /// The package's.
        target: String,
        /// The image's.
        platform: String,
    },
}

/// `localhost/slurm:24.11.5-gcc13.3.0`
pub fn default_name(facts: &Facts) -> String {
    format!("localhost/slurm:{}-gcc{}", facts.release(), facts.compiler.release)
}

/// Makes the image; its blobs are in the cache until the next `clean`.
pub fn make(
    package: &Package,
    base: &PulledImage,
    name: Reference,
    cache: &Cache,
    ctx: &Ctx,
) -> Result<PulledImage, PackageImageError> {
    let facts = &package.manifest().facts;
    let platform = base.resolved().platform();
    let fits = match platform.architecture() {
        "arm64" => ["aarch64", "neoverse", "graviton", "armv8", "armv9", "a64fx"]
            .iter()
            .any(|family| facts.target.starts_with(family)),
        // Spack names processors of one family in many ways; the others are told apart by their names.
        _ => !["aarch64", "arm", "ppc64", "riscv"].iter().any(|family| facts.target.starts_with(family)),
    };
    if !fits {
        let (target, platform) = (facts.target.clone(), platform.to_string());
        return Err(PackageImageError::OtherMachine { target, platform });
    }
    if let Some(floor) = &facts.glibc {
        let there = base.glibc(ctx)?;
        let number = |text: &str| glibc_number(text);
        if there.as_deref().and_then(number) < number(&floor.version) {
            return Err(PackageImageError::OlderGlibc {
                needed: floor.version.clone(),
                file: floor.file.clone(),
                symbol: floor.symbol.clone(),
                base: base.resolved().reference().to_string(),
                there,
            });
        }
    }
    let parent = cache.dir("images");
    fs::create_dir_all(&parent)?;
    let staging = cache.staging(&parent)?;
    let root = staging.path().join("root");
    let place = root.join(PREFIX.trim_start_matches('/'));
    fs::create_dir_all(&place)?;
    package.extract_into(&place, ctx)?;
    let Some(tree) = Tree::open(&place)? else {
        return Err(
            PackageError::NotAPackage { path: package.path().to_owned(), reason: "it has no manifest".into() }.into()
        );
    };
    let view = Path::new(PREFIX).join(layout::VIEW);
    tree.fill_in(&view, ctx)?;
    tree.write_record(&Record {
        view: encode_path(&view),
        archive_sha256: package.sha256().to_owned(),
        signed_by: None,
    })?;
    uniform(&root, facts.created, ctx)?;
    let label = |key: &str, value: &str| (format!("org.opencontainers.image.{key}"), value.to_owned());
    let mut labels = vec![
        label("title", "slurm"),
        label("version", facts.release()),
        label("base.digest", &base.resolved().digest().to_string()),
        ("slurm-factory.archive.sha256".to_owned(), package.sha256().to_owned()),
        ("slurm-factory.plan.sha256".to_owned(), facts.plan_sha256.clone()),
    ];
    // A folder of this machine means nothing to others.
    if let Reference::Registry(name) = base.resolved().reference() {
        labels.push(label("base.name", &name.to_string()));
    }
    let changes = Changes {
        created: facts.created,
        path: ["bin", "sbin"].map(|dir| view.join(dir).display().to_string()).into(),
        labels,
        history: format!("slurm-factory package --oci: Slurm {} in {PREFIX}", facts.release()),
    };
    Ok(image::make_onto(base, &root, name, &changes, cache, ctx)?)
}

/// The package's time for every file, and open folders above it: what was filled in is as old as the rest.
fn uniform(root: &Path, time: u64, ctx: &Ctx) -> Result<(), PackageImageError> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let seconds = i64::try_from(time).unwrap_or(0);
    let when = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: when, last_modification: when };
    for entry in walkdir::WalkDir::new(root).contents_first(true) {
        ctx.check()?;
        let entry = entry.map_err(io::Error::from)?;
        let path = entry.path();
        if entry.file_type().is_dir() {
            fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        }
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| fsutil::with_path(&io::Error::from(e), "set the time of", path))?;
    }
    Ok(())
}
