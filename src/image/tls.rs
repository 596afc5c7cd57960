//! The HTTP client for one registry: whom it trusts, who it says it is, which way it goes.
//!
//! ```text
//! certs.d/registry.site:5000/
//!   ca.crt                      *.crt: trusted for this registry, beside what is trusted for all
//!   client.cert, client.key     shown to this registry; a pair has one name. Of several pairs the one that the registry
//!                               accepts, see `identity`
//! ```
//!
//! Of several folders for the same registry only the first counts. Docker Hub's folder is `docker.io`.
//!
//! Format: containers-certs.d(5).

use super::client::ClientConfig;
use super::identity::Identities;
use super::{ImageError, RegistryReference};
use crate::report::chain;
use crate::secret::Secret;
use fs_err as fs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const USER_AGENT: &str = concat!("slurm-factory/", env!("CARGO_PKG_VERSION"));

/// Always reached directly: a proxy cannot know this machine's own services.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

const PROXY_SCHEMES: [&str; 6] = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];

const EVERY_HOST: &str = "*,0.0.0.0/0,::/0";

/// How one registry is reached.
pub struct Way {
    https_proxy: Option<Secret<String>>,
    http_proxy: Option<Secret<String>>,
    no_proxy: String,
    connect_timeout: Duration,
    read_timeout: Duration,
    authorities: Vec<CertificateDer<'static>>,
    identities: Identities,
    /// Where its own certificates came from.
    pub folder: Option<Folder>,
}

/// A registry's folder of certificates.
#[derive(Debug, Default)]
pub struct Folder {
    /// Which.
    pub path: PathBuf,
    /// Files with authorities that are trusted.
    authorities: Vec<PathBuf>,
    /// A client's certificates and their keys, by name.
    identities: Vec<(PathBuf, PathBuf)>,
    /// Folders that may not be read, and were passed over.
    pub unreadable: Vec<PathBuf>,
}

impl Folder {
    /// Looks for the folder of `host` (`registry.site:5000`) in each of `dirs`.
    fn find(dirs: &[PathBuf], host: &str) -> Result<Option<Self>, ImageError> {
        let mut unreadable = Vec::new();
        for dir in dirs {
            let path = dir.join(host);
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    unreadable.push(path);
                    continue;
                }
                Err(e) => return Err(ImageError::Io(e)),
            };
            let mut files = Vec::new();
            for entry in entries {
                files.push(entry.map_err(ImageError::Io)?.path());
            }
            let mut found = Self::sort(path, files)?;
            found.unreadable = unreadable;
            return Ok(Some(found));
        }
        Ok(None)
    }

    fn sort(path: PathBuf, mut files: Vec<PathBuf>) -> Result<Self, ImageError> {
        files.sort();
        let mut pairs: BTreeMap<PathBuf, (Option<PathBuf>, Option<PathBuf>)> = BTreeMap::new();
        let mut authorities = Vec::new();
        for file in files {
            let stem = file.with_extension("");
            match file.extension().and_then(|e| e.to_str()) {
                Some("crt") => authorities.push(file),
                Some("cert") => pairs.entry(stem).or_default().0 = Some(file),
                Some("key") => pairs.entry(stem).or_default().1 = Some(file),
                _ => {}
            }
        }
        let fault = |file: &Path, reason: &str| client_error(&format!("`{}`", file.display()), reason.to_owned());
        let mut identities = Vec::new();
        for pair in pairs.into_values() {
            match pair {
                (Some(cert), Some(key)) => identities.push((cert, key)),
                (Some(cert), None) => {
                    return Err(fault(&cert, "its .key is missing (an authority's certificate is named .crt)"));
                }
                (None, Some(key)) => return Err(fault(&key, "its .cert is missing")),
                (None, None) => {}
            }
        }
        Ok(Self { path, authorities, identities, unreadable: Vec::new() })
    }

    /// What it holds, for messages.
    pub fn contents(&self) -> String {
        let name = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut parts: Vec<String> = self.authorities.iter().map(|p| format!("trusts {}", name(p))).collect();
        let pairs: Vec<String> =
            self.identities.iter().map(|(cert, key)| format!("{} with {}", name(cert), name(key))).collect();
        if !pairs.is_empty() {
            parts.push(format!("shows {}", pairs.join(" or ")));
        }
        if parts.is_empty() { "holds no certificates".to_owned() } else { parts.join(", ") }
    }
}

/// A client for the web: the site's proxies and authorities, and nothing that a registry has of its own.
pub fn web_client(config: &ClientConfig) -> Result<reqwest::Client, ImageError> {
    Way::of(None, config)?.client(false, true)
}

impl Way {
    /// Reads what is configured for a registry.
    pub fn new(reference: &RegistryReference, config: &ClientConfig) -> Result<Self, ImageError> {
        Self::of(Folder::find(&config.certificate_dirs, reference.host())?, config)
    }

    fn of(folder: Option<Folder>, config: &ClientConfig) -> Result<Self, ImageError> {
        let no_proxy = match config.no_proxy.as_deref() {
            Some("*") => EVERY_HOST.to_owned(),
            Some(hosts) => format!("{hosts},{LOOPBACK}"),
            None => LOOPBACK.to_owned(),
        };
        let mut authorities = Vec::new();
        for path in &config.extra_ca_files {
            authorities.extend(read_authorities(path)?);
        }
        let mut identities = Identities::default();
        if let Some(folder) = &folder {
            for path in &folder.authorities {
                authorities.extend(read_authorities(path)?);
            }
            for (cert, key) in &folder.identities {
                identities.read(cert, key)?;
            }
        }
        let copy = |secret: &Option<Secret<String>>| secret.as_ref().map(|s| Secret::new(s.expose().clone()));
        Ok(Self {
            https_proxy: copy(&config.https_proxy),
            http_proxy: copy(&config.http_proxy),
            no_proxy,
            connect_timeout: config.connect_timeout,
            read_timeout: config.read_timeout,
            authorities,
            identities,
            folder,
        })
    }

    /// A client that verifies whom it talks to, unless `unverified`. Only one that `may_do_without_tls` can be made
    /// on a machine without any CA bundle.
    pub fn client(&self, unverified: bool, may_do_without_tls: bool) -> Result<reqwest::Client, ImageError> {
        match self.builder(unverified)?.build() {
            Ok(client) => Ok(client),
            Err(_) if may_do_without_tls => {
                self.builder(unverified)?.tls_certs_only([]).build().map_err(|e| client_error("HTTP", chain(&e)))
            }
            Err(e) => Err(client_error("TLS", with_ca_hint(&chain(&e)))),
        }
    }

    fn builder(&self, unverified: bool) -> Result<reqwest::ClientBuilder, ImageError> {
        let mut http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(self.connect_timeout)
            .read_timeout(self.read_timeout)
            .redirect(redirects(unverified))
            // Both proxies are set below; none is read from the environment.
            .no_proxy();
        for (address, is_for_tls) in [(&self.https_proxy, true), (&self.http_proxy, false)] {
            let Some(address) = address.as_ref().map(Secret::expose) else { continue };
            // The address is not quoted: it may hold a password.
            let fault = || {
                let reason = format!("it is not a URL that begins with one of {}", PROXY_SCHEMES.join("://, ") + "://");
                client_error("the proxy's address", reason)
            };
            // What it does not know the HTTP client passes over, and goes directly. Without a scheme it is http.
            if address.split_once("://").is_some_and(|(scheme, _)| !is_proxy_scheme(scheme)) {
                return Err(fault());
            }
            let proxy = if is_for_tls { reqwest::Proxy::https(address) } else { reqwest::Proxy::http(address) };
            let proxy = proxy.map_err(|_| fault())?;
            http = http.proxy(proxy.no_proxy(reqwest::NoProxy::from_string(&self.no_proxy)));
        }
        if !self.identities.is_empty() {
            let tls = self.identities.tls(self.authorities.clone(), unverified);
            let tls = tls.map_err(|e| client_error("TLS", with_ca_hint(&e.to_string())))?;
            return Ok(http.tls_backend_preconfigured(tls));
        }
        if !self.authorities.is_empty() {
            let authorities: Result<Vec<_>, _> =
                self.authorities.iter().map(|der| reqwest::Certificate::from_der(der)).collect();
            http = http.tls_certs_merge(authorities.map_err(|e| client_error("TLS", chain(&e)))?);
        }
        Ok(if unverified { http.tls_danger_accept_invalid_certs(true) } else { http })
    }
}

fn is_proxy_scheme(scheme: &str) -> bool {
    PROXY_SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

fn read_authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, ImageError> {
    let fault = |reason: String| client_error(&format!("the CA file `{}`", path.display()), reason);
    let bytes = fs::read(path).map_err(|e| fault(e.to_string()))?;
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|e| fault(e.to_string()))?;
    if found.is_empty() { Err(fault("it holds no PEM certificate".to_owned())) } else { Ok(found) }
}

/// Follows up to ten redirects, as registries use to hand blobs to their storage, but never from TLS to plain
/// text, unless the registry may be insecure. `Authorization` is dropped by the HTTP client when the host, the
/// port or the scheme changes.
fn redirects(unverified: bool) -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(move |attempt| {
        let downgrade =
            attempt.url().scheme() == "http" && attempt.previous().last().is_some_and(|from| from.scheme() == "https");
        if downgrade && !unverified {
            attempt.error("redirected from https to http")
        } else if attempt.previous().len() > 10 {
            attempt.error("redirected more than ten times")
        } else {
            attempt.follow()
        }
    })
}

/// A setting that cannot be used.
pub fn client_error(what: &str, reason: String) -> ImageError {
    ImageError::Client { what: what.to_owned(), reason }
}

fn with_ca_hint(reason: &str) -> String {
    if reason.contains("No CA certificates") {
        format!("{reason}; install ca-certificates, or name a bundle with SSL_CERT_FILE")
    } else {
        reason.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> Result<Folder, ImageError> {
        Folder::sort("/c/h".into(), names.iter().map(|n| Path::new("/c/h").join(n)).collect())
    }

    #[test]
    fn files_are_what_their_names_say() {
        let found = folder(&["z.crt", "a.crt", "client.key", "client.cert", "README"]).unwrap();
        assert_eq!(found.contents(), "trusts a.crt, trusts z.crt, shows client.cert with client.key");
        let several = folder(&["b.key", "a.cert", "b.cert", "a.key"]).unwrap();
        assert_eq!(several.contents(), "shows a.cert with a.key or b.cert with b.key");
        assert_eq!(folder(&[]).unwrap().contents(), "holds no certificates");
        for (names, part) in
            [(vec!["a.cert"], "a.cert`: its .key is missing"), (vec!["a.key"], "a.key`: its .cert is missing")]
        {
            let error = folder(&names).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_first_folder_of_a_registry_counts() {
        let dir = tempfile::tempdir().unwrap();
        let dirs: Vec<PathBuf> = ["one", "two", "three"].iter().map(|n| dir.path().join(n)).collect();
        for (at, name) in [(1, "h:5000"), (2, "h:5000"), (2, "h")] {
            fs::create_dir_all(dirs[at].join(name)).unwrap();
        }
        let find = |host: &str| Folder::find(&dirs, host).unwrap().map(|f| f.path);
        assert_eq!(find("h:5000"), Some(dirs[1].join("h:5000")));
        assert_eq!(find("h"), Some(dirs[2].join("h")));
        assert_eq!(find("h:1"), None);
    }
}
