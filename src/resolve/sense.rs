//! Whether what was asked makes sense on this machine and today: addresses that nothing can be fetched from, a folder of
//! wheels without those that are pinned, a time that has not come, an image of another distribution, limits that limit nothing.
//! Told at planning, not after an hour.

use super::ResolveError;
use crate::cache::Cache;
use crate::catalog::Toolchain;
use crate::fsutil;
use crate::image::{Reference, ResolvedImage};
use crate::plan::BuildRequest;
use crate::report::Ctx;
use crate::rootfs;
use crate::sandbox::machine_memory;
use crate::secret::without_login;
use fs_err as fs;
use humansize::{BINARY, format_size};
use jiff::Timestamp;
use std::path::Path;

/// What packages and wheels are fetched with. apt has no ftp since 2.0, pip never had.
const WEB: [&str; 2] = ["http", "https"];

/// What Spack reads mirrors from ("Mirrors" in its documentation).
const STORES: [&str; 5] = ["http", "https", "s3", "gs", "oci"];

/// Refuses a URL of `key` that nothing can be fetched from. What is no URL is a folder, and not looked at here.
pub fn address(key: &'static str, text: &str) -> Result<(), ResolveError> {
    if !text.contains("://") || text.starts_with("file://") {
        return Ok(());
    }
    let known: &[&str] = if key.ends_with("-mirrors") { &STORES } else { &WEB };
    let refuse = |why: String| Err(ResolveError::Address { key, address: without_login(text), why });
    match reqwest::Url::parse(text) {
        Ok(url) if !known.contains(&url.scheme()) => {
            refuse(format!("`{}` is no way to fetch from it; a folder, or one of {}", url.scheme(), known.join(", ")))
        }
        Ok(url) if url.host_str().is_none_or(str::is_empty) => refuse("it names no host".to_owned()),
        Ok(_) => Ok(()),
        Err(e) => refuse(e.to_string()),
    }
}

/// Refuses a folder of wheels that lacks one that the toolchain pins.
pub fn wheels(folder: &Path, toolchain: &Toolchain) -> Result<(), ResolveError> {
    let unreadable = |source| ResolveError::Named { key: "pip-index", path: folder.to_owned(), source };
    let mut there = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".whl")) {
            let mut parts = name.split('-');
            there.push((normal(parts.next().unwrap_or_default()), parts.next().unwrap_or_default().to_owned()));
        }
    }
    let missing: Vec<&str> = toolchain
        .requirements
        .lines()
        .filter_map(|line| line.split([' ', '\\', ';']).next())
        .filter(|pin| {
            pin.split_once("==").is_some_and(|(name, version)| !there.contains(&(normal(name), version.to_owned())))
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(ResolveError::NoWheels { folder: folder.to_owned(), missing: missing.join(", ") })
}

/// A project's name as it is compared, in the form that names of wheels have (PEP 503, PEP 427).
fn normal(name: &str) -> String {
    name.to_ascii_lowercase().replace(['-', '.'], "_")
}

/// Refuses a time of the package archive that has not come.
pub fn past(time: Timestamp, text: &str) -> Result<(), ResolveError> {
    let now = Timestamp::now();
    if time <= now {
        return Ok(());
    }
    let now = now.strftime("%Y%m%dT%H%M%SZ");
    Err(ResolveError::Snapshot(format!(
        "{text} lies in the future, and nobody has packages from there; now is {now} (UTC)"
    )))
}

/// Refuses an image of another distribution than the toolchain's, as far as that is known without unpacking it: of a folder,
/// or when another toolchain's rootfs was prepared from the same image.
pub fn distribution(image: &ResolvedImage, toolchain: &Toolchain, cache: &Cache) -> Result<(), ResolveError> {
    let root = match image.reference() {
        Reference::Folder(path) => Some(path.clone()),
        _ => rootfs::Rootfs::of_image(cache, &image.digest().to_string())?.first().map(|r| r.root().to_owned()),
    };
    let Some(root) = root else { return Ok(()) };
    Ok(rootfs::check_distribution(&toolchain.name, &toolchain.os_release, &image.reference().to_string(), &root)?)
}

/// Says which limits are above what the machine has, and so limit nothing. Settings are shared between machines: it is no
/// error.
pub fn limits(request: &BuildRequest, build_dir: &Path, ctx: &Ctx) {
    let above = |what: &str, asked: u64, there: Option<u64>, of: &str| {
        if let Some(there) = there.filter(|there| asked > *there) {
            let (asked, there) = (format_size(asked, BINARY), format_size(there, BINARY));
            ctx.note(format!("{what} {asked} limits nothing here: {of} {there}"));
        }
    };
    let memory = machine_memory();
    above("memory", request.memory, memory, "this machine has");
    // 2 GiB is the default, which nobody asked for.
    if request.shm_size != super::SHM_SIZE {
        above("shm-size", request.shm_size, memory, "this machine has");
    }
    let free = fsutil::existing(build_dir).ok().and_then(|there| fsutil::room(there).ok()).map(|room| room.bytes);
    above("disk", request.disk, free, "free at the build folder are");
    let cpus = super::host_cpus();
    if request.cpus > cpus {
        ctx.note(format!("cpus {} limits nothing here: this process may use {cpus}", request.cpus));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn addresses_that_nothing_comes_from_are_refused_without_their_password() {
        for (key, good) in [
            ("apt-mirror", "https://mirror.site/debian/{snapshot}"),
            ("pip-index", "http://u:p@[::1]:3141/simple"),
            ("source-mirrors", "s3://bucket/mirror"),
            ("binary-mirrors", "oci://registry.site/cache"),
            ("binary-mirrors", "file:///srv/mirror"),
            ("dnf-mirror", "/srv/rocky"),
        ] {
            address(key, good).unwrap();
        }
        for (key, bad, part) in [
            ("apt-mirror", "ftp://user:secret@mirror.site/debian", "`ftp`"),
            ("pip-index", "s3://bucket/simple", "`s3`"),
            ("pip-index", "https://", "host"),
            ("source-mirrors", "htps://mirror.site", "`htps`"),
            ("dnf-mirror", "https://mirror.site:notaport/", "port"),
            ("dnf-mirror", "https://user:sec/secret@mirror.site/", "`https://mirror.site/`"),
        ] {
            let error = address(key, bad).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(key) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn pinned_wheels_must_be_in_the_folder() {
        let toolchain = Catalog::embedded().unwrap().toolchain("debian12").unwrap();
        let pins: Vec<(&str, &str)> =
            toolchain.requirements.lines().filter_map(|line| line.split(' ').next()?.split_once("==")).collect();
        let dir = tempfile::tempdir().unwrap();
        let error = wheels(dir.path(), &toolchain).unwrap_err().to_string();
        for (name, version) in &pins {
            assert!(error.contains(&format!("{name}=={version}")), "{error}");
            let file = format!("{}-{version}-cp311-cp311-manylinux_2_17_x86_64.whl", name.replace('-', "_"));
            fs::write(dir.path().join(file), "").unwrap();
        }
        assert!(pins.len() > 1);
        wheels(dir.path(), &toolchain).unwrap();
    }

    #[test]
    fn the_future_has_no_packages() {
        past(Timestamp::now(), "now").unwrap();
        let error = past("2199-01-01T00:00:00Z".parse().unwrap(), "21990101T000000Z").unwrap_err().to_string();
        assert!(error.contains("21990101T000000Z") && error.contains("future"), "{error}");
    }
}
