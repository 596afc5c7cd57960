//! What of this machine and of the site the sandboxes may use: the CA bundle, proxies, and where packages of the
//! distribution and pinned wheels come from while a rootfs is prepared.
//!
//! A site may set what apt is told and what dnf is told side by side: only what the toolchain's package manager
//! understands counts, and a note says what does not.

use super::{Lookup, ResolveError, folders_or_urls, sense};
use crate::catalog::{Family, Toolchain};
use crate::config::Settings;
use crate::plan::HostAccess;
use crate::report::Ctx;
use fs_err as fs;
use std::path::{Path, PathBuf};

/// The placeholder of a mirror's address for the time of a snapshot.
const SNAPSHOT: &str = "{snapshot}";

/// Where the distribution's packages come from, when it is not where the image says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PackageSources {
    /// See [`HostAccess::package_mirror`].
    pub mirror: Option<String>,
    /// Text of the site's sources.
    pub sources: Option<String>,
    /// Time of the archive.
    pub snapshot: Option<String>,
}

/// What settings say about the toolchain's packages; files that they name are read.
pub fn package_sources(settings: &Settings, toolchain: &Toolchain, ctx: &Ctx) -> Result<PackageSources, ResolveError> {
    let unused = |what: &[(&str, bool)]| {
        for (key, _) in what.iter().filter(|(_, set)| *set) {
            ctx.note(format!("{key} is not used: toolchain {} takes packages otherwise", toolchain.name));
        }
    };
    let mirror = |key, mirror: &Option<String>| -> Result<_, ResolveError> {
        // A mirror with a placeholder is no folder yet.
        match mirror.as_deref().and_then(|m| Some((m.strip_suffix(SNAPSHOT)?, m))) {
            Some((folder, _)) if !folder.contains("://") => {
                let folder = folders_or_urls(key, &[folder.to_owned()])?.pop();
                Ok(folder.map(|folder| format!("{folder}/{SNAPSHOT}")))
            }
            _ if mirror.as_deref().is_some_and(|m| m.contains(SNAPSHOT)) => {
                mirror.as_deref().map_or(Ok(()), |m| sense::address(key, m))?;
                Ok(mirror.clone())
            }
            _ => Ok(folders_or_urls(key, mirror.as_slice())?.pop()),
        }
    };
    match toolchain.family {
        Family::Apt => {
            unused(&[("dnf-mirror", settings.dnf_mirror.is_some()), ("dnf-repos", settings.dnf_repos.is_some())]);
            let sources = settings.apt_sources.as_deref().map(|path| read("apt-sources", path)).transpose()?;
            let snapshot = settings.apt_snapshot.as_deref().map(snapshot).transpose()?;
            let mirror = mirror("apt-mirror", &settings.apt_mirror)?;
            let mirror = match (&mirror, &snapshot) {
                (Some(named), Some(_)) if !named.contains(SNAPSHOT) => {
                    return Err(ResolveError::Snapshot(format!(
                        "apt-mirror `{named}` has no {SNAPSHOT} in it, so it is not known where it keeps the archive as it was; \
                         write {SNAPSHOT} where the time stands, as in https://mirror.site/debian/{SNAPSHOT}"
                    )));
                }
                (Some(named), None) if named.contains(SNAPSHOT) => {
                    return Err(ResolveError::Snapshot(format!(
                        "apt-mirror `{named}` needs a time for {SNAPSHOT}: give it with --apt-snapshot"
                    )));
                }
                (None, Some(_)) if toolchain.snapshots.is_none() => {
                    return Err(ResolveError::Snapshot(format!(
                        "no public snapshots of toolchain {} are known: name the site's with --apt-mirror, {SNAPSHOT} in the \
                         place of the time",
                        toolchain.name
                    )));
                }
                (None, Some(_)) => toolchain.snapshots.clone(),
                _ => mirror,
            };
            Ok(PackageSources { mirror, sources, snapshot })
        }
        Family::Dnf => {
            unused(&[
                ("apt-mirror", settings.apt_mirror.is_some()),
                ("apt-sources", settings.apt_sources.is_some()),
                ("apt-snapshot", settings.apt_snapshot.is_some()),
            ]);
            let sources = settings.dnf_repos.as_deref().map(repos).transpose()?;
            Ok(PackageSources { mirror: mirror("dnf-mirror", &settings.dnf_mirror)?, sources, snapshot: None })
        }
    }
}

/// A time as snapshot archives write it: `20260101T000000Z`, UTC.
fn snapshot(text: &str) -> Result<String, ResolveError> {
    let form = b"00000000T000000Z";
    let fits = text.len() == form.len()
        && text.bytes().zip(form).all(|(byte, want)| if *want == b'0' { byte.is_ascii_digit() } else { byte == *want });
    let wrong = || ResolveError::Snapshot(format!("`{text}` is no time of the form 20260101T000000Z (UTC)"));
    if !fits {
        return Err(wrong());
    }
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).map_err(|_| wrong())?;
    sense::past(time.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| wrong())?.timestamp(), text)?;
    Ok(text.to_owned())
}

fn read(key: &'static str, path: &Path) -> Result<String, ResolveError> {
    fs::read_to_string(path).map_err(|source| ResolveError::Named { key, path: path.to_owned(), source })
}

/// The text of a `.repo` file, or of all in a folder by their names.
fn repos(path: &Path) -> Result<String, ResolveError> {
    const KEY: &str = "dnf-repos";
    if !path.is_dir() {
        return read(KEY, path);
    }
    let failed = |source| ResolveError::Named { key: KEY, path: path.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|e| e == "repo") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::NotFound, "no file in it ends in .repo")));
    }
    let texts: Vec<String> = files.iter().map(|file| read(KEY, file)).collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

/// The host's CA bundle, proxies, and what pip is told.
pub fn access(settings: &Settings, lookup: Lookup<'_>) -> Result<HostAccess, ResolveError> {
    const BUNDLES: [&str; 3] =
        ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];
    let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
    let named = lookup("SSL_CERT_FILE").map(PathBuf::from);
    let ca_bundle = named.into_iter().chain(BUNDLES.map(PathBuf::from)).find(|p| p.is_file());
    let mut access = HostAccess { ca_bundle, ..HostAccess::default() };
    let mut pass = |name: &str, value: String| access.env.push((name.to_owned(), value));
    // apt reads the small names alone, other programs either: inside, both are set.
    let all = ["all_proxy", "ALL_PROXY"];
    for (small, large, all) in [
        ("http_proxy", "HTTP_PROXY", all.as_slice()),
        ("https_proxy", "HTTPS_PROXY", all.as_slice()),
        ("ftp_proxy", "FTP_PROXY", all.as_slice()),
        ("no_proxy", "NO_PROXY", &[]),
    ] {
        if let Some(value) = [small, large].iter().chain(all).find_map(|name| lookup(name)) {
            pass(small, value.clone());
            pass(large, value);
        }
    }
    if let Some(value) = lookup("SOURCE_DATE_EPOCH") {
        pass("SOURCE_DATE_EPOCH", value);
    }
    for name in ["PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT"] {
        if let Some(value) = lookup(name) {
            pass(name, value);
        }
    }
    match folders_or_urls("pip-index", settings.pip_index.as_slice())?.pop() {
        Some(folder) if folder.starts_with('/') => {
            pass("PIP_NO_INDEX", "1".to_owned());
            pass("PIP_FIND_LINKS", folder.clone());
            access.wheels.push(folder.into());
        }
        Some(url) => pass("PIP_INDEX_URL", url),
        None => {
            for name in ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS"] {
                if let Some(value) = lookup(name) {
                    pass(name, value);
                }
            }
            let links = lookup("PIP_FIND_LINKS").unwrap_or_default();
            let folders = links.split_whitespace().map(PathBuf::from).filter(|p| p.is_absolute() && p.is_dir());
            access.wheels.extend(folders);
        }
    }
    if let Some(path) = lookup("PIP_CERT").map(PathBuf::from) {
        let path = fs::canonicalize(&path).map_err(|source| ResolveError::Named { key: "PIP_CERT", path, source })?;
        access.pip_cert = Some(path);
    }
    Ok(access)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    fn sources(settings: &Settings, toolchain: &str) -> Result<PackageSources, String> {
        let toolchain = Catalog::embedded().unwrap().toolchain(toolchain).unwrap();
        package_sources(settings, &toolchain, &Ctx::silent()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_sandbox_gets_proxies_and_the_named_bundle_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("ca.pem");
        fs::write(&bundle, "").unwrap();
        let text = bundle.display().to_string();
        let lookup = move |name: &str| match name {
            "HTTPS_PROXY" => Some("http://proxy:3128".into()),
            "no_proxy" => Some(String::new()),
            "SSL_CERT_FILE" => Some(text.clone()),
            "AWS_SECRET_ACCESS_KEY" => Some("secret".into()),
            _ => None,
        };
        let access = access(&Settings::default(), &lookup).unwrap();
        assert_eq!(access.ca_bundle, Some(bundle));
        let both = ["https_proxy", "HTTPS_PROXY"].map(|name| (name.to_owned(), "http://proxy:3128".to_owned()));
        assert_eq!(access.env, both);
    }

    #[test]
    fn a_named_index_takes_the_place_of_pips_variables() {
        let dir = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(dir.path()).unwrap().display().to_string();
        let lookup = |name: &str| match name {
            "PIP_INDEX_URL" | "PIP_EXTRA_INDEX_URL" => Some("https://of.the.host/simple".to_owned()),
            _ => None,
        };
        let env = |index: Option<&str>| {
            let settings = Settings { pip_index: index.map(str::to_owned), ..Settings::default() };
            access(&settings, &lookup).unwrap().env
        };
        assert_eq!(env(None).len(), 2);
        assert_eq!(env(Some("https://site/simple")), [("PIP_INDEX_URL".to_owned(), "https://site/simple".to_owned())]);
        let links = [("PIP_NO_INDEX".to_owned(), "1".to_owned()), ("PIP_FIND_LINKS".to_owned(), folder.clone())];
        assert_eq!(env(Some(&folder)), links);
        let missing = Settings { pip_index: Some("/no/such/folder".into()), ..Settings::default() };
        assert!(access(&missing, &lookup).unwrap_err().to_string().contains("/no/such/folder"));
        let cert = |name: &str| (name == "PIP_CERT").then(|| "/no/such/ca.pem".to_owned());
        let error = access(&Settings::default(), &cert).unwrap_err().to_string();
        assert!(error.contains("PIP_CERT") && error.contains("/no/such/ca.pem"), "{error}");
    }

    #[test]
    fn a_snapshot_and_a_mirror_agree() {
        let settings = |mirror: Option<&str>, snapshot: Option<&str>| Settings {
            apt_mirror: mirror.map(str::to_owned),
            apt_snapshot: snapshot.map(str::to_owned),
            ..Settings::default()
        };
        let time = "20260101T000000Z";
        let found = sources(&settings(None, Some(time)), "debian12").unwrap();
        assert!(found.mirror.unwrap().contains("/{snapshot}"));
        assert_eq!(found.snapshot.as_deref(), Some(time));
        let dated = "https://mirror.site/debian/{snapshot}";
        assert_eq!(sources(&settings(Some(dated), Some(time)), "debian12").unwrap().mirror.as_deref(), Some(dated));
        for (mirror, snapshot, part) in [
            (Some("https://mirror.site/debian"), Some(time), "no {snapshot}"),
            (Some(dated), None, "--apt-snapshot"),
            (None, Some("2026-01-01"), "2026-01-01"),
            (None, Some("20261301T000000Z"), "20261301T000000Z"),
            (None, Some("21990101T000000Z"), "future"),
            (Some("ftp://mirror.site/debian/{snapshot}"), Some(time), "`ftp`"),
        ] {
            let error = sources(&settings(mirror, snapshot), "debian12").unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_another_package_manager_is_told_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b.repo"), "[b]\n").unwrap();
        fs::write(dir.path().join("a.repo"), "[a]\n").unwrap();
        fs::write(dir.path().join("c.repo.rpmsave"), "[c]\n").unwrap();
        let settings = Settings {
            apt_mirror: Some("https://mirror.site/debian".into()),
            dnf_mirror: Some("https://mirror.site/rocky".into()),
            dnf_repos: Some(dir.path().to_owned()),
            ..Settings::default()
        };
        let rocky = sources(&settings, "rockylinux9").unwrap();
        assert_eq!(rocky.mirror.as_deref(), Some("https://mirror.site/rocky"));
        assert_eq!(rocky.sources.as_deref(), Some("[a]\n\n[b]\n"));
        let debian = sources(&settings, "debian12").unwrap();
        assert_eq!((debian.mirror.as_deref(), debian.sources), (Some("https://mirror.site/debian"), None));
        let empty = Settings { dnf_repos: Some("/proc/self/fdinfo".into()), ..Settings::default() };
        assert!(sources(&empty, "rockylinux9").unwrap_err().contains(".repo"));
    }
}
