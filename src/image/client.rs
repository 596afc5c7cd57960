//! What the registry client must know about the site: proxies, certificates, credentials, timeouts.
//!
//! This stage reads no environment. [`ClientConfig::from_environment`] and [`auth_file_candidates`] take a
//! lookup function, so that the caller decides what they see, and [`Credentials::from_auth_file`] takes text.
//!
//! ```text
//! { "auths": {
//!     "quay.io":              { "auth": "dXNlcjpwYXNz" },        base64 of user:password
//!     "quay.io/team":         { "auth": "..." },                 the longest key that fits wins
//!     "https://index.docker.io/v1/": { "auth": "..." } },        Docker Hub's historic key
//!   "credHelpers": { "ghcr.io": "gh" } }                         named, not run here
//! ```
//!
//! Format: docker `config.json` and containers-auth.json(5).
//!
//! Certificates: the system's bundle is trusted, or what SSL_CERT_FILE and SSL_CERT_DIR name instead (the TLS
//! library reads these two itself), plus the files in [`ClientConfig::extra_ca_files`].

use super::RegistryReference;
use crate::secret::Secret;
use base64::Engine as _;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How registries are reached. The default trusts the system's certificates, uses no proxy and no credentials.
#[derive(Debug)]
pub struct ClientConfig {
    /// Proxy for https registries.
    pub https_proxy: Option<Secret<String>>,
    /// Proxy for what is fetched over plain http.
    pub http_proxy: Option<Secret<String>>,
    /// Hosts that are reached directly, separated by commas.
    pub no_proxy: Option<String>,
    /// PEM files with certificates that are trusted beside the system's.
    pub extra_ca_files: Vec<PathBuf>,
    /// Users and passwords by registry.
    pub credentials: Credentials,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long to wait for the next bytes.
    pub read_timeout: Duration,
    /// How many layers are fetched at once.
    pub parallel: usize,
    /// How often a request that failed in passing is tried again.
    pub retries: u32,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            https_proxy: None,
            http_proxy: None,
            no_proxy: None,
            extra_ca_files: Vec::new(),
            credentials: Credentials::default(),
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_mins(1),
            parallel: 4,
            retries: 3,
        }
    }
}

impl ClientConfig {
    /// The proxies as curl and wget read them from the environment: lower case first; `HTTP_PROXY` in upper
    /// case is left out, as a CGI request could set it.
    pub fn from_environment(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            names.iter().find_map(|name| lookup(name)).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
        };
        Self {
            https_proxy: first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]).map(Secret::new),
            http_proxy: first(&["http_proxy", "all_proxy", "ALL_PROXY"]).map(Secret::new),
            no_proxy: first(&["no_proxy", "NO_PROXY"]),
            ..Self::default()
        }
    }
}

/// The files that may hold credentials, best first: containers' own, then docker's.
pub fn auth_file_candidates(lookup: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let dir = |name: &str| lookup(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    [
        dir("REGISTRY_AUTH_FILE"),
        dir("XDG_RUNTIME_DIR").map(|d| d.join("containers/auth.json")),
        dir("XDG_CONFIG_HOME")
            .or_else(|| dir("HOME").map(|d| d.join(".config")))
            .map(|d| d.join("containers/auth.json")),
        dir("DOCKER_CONFIG").or_else(|| dir("HOME").map(|d| d.join(".docker"))).map(|d| d.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A user's name and password or token for one registry.
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The password or access token.
    pub password: Secret<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({}, ..)", self.user)
    }
}

/// Logins by registry or by registry and namespace.
#[derive(Debug, Default)]
pub struct Credentials(BTreeMap<String, Login>);

/// Why a file with credentials cannot be read. Says nothing of its content.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    /// Not JSON of the known form.
    #[error("it is not a docker config.json or containers auth.json (line {line})")]
    Json {
        /// Where.
        line: usize,
    },
    /// An entry that cannot be decoded.
    #[error("the entry for `{key}` is not base64 of user:password")]
    Entry {
        /// Which.
        key: String,
    },
}

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
}

#[derive(Deserialize)]
struct AuthEntry {
    #[serde(default)]
    auth: Option<String>,
}

impl Credentials {
    /// Reads the text of a docker `config.json` or a containers `auth.json`.
    pub fn from_auth_file(text: &str) -> Result<Self, AuthFileError> {
        let file: AuthFile = serde_json::from_str(text).map_err(|e| AuthFileError::Json { line: e.line() })?;
        let mut found = Self::default();
        for (key, entry) in file.auths {
            // Entries without `auth` say that a helper holds the login.
            let Some(encoded) = entry.auth.filter(|a| !a.is_empty()) else { continue };
            let login = decode(&Secret::new(encoded)).ok_or_else(|| AuthFileError::Entry { key: key.clone() })?;
            found.0.insert(normal_key(&key), login);
        }
        Ok(found)
    }

    /// Adds a login for a registry, or for `HOST/NAMESPACE`.
    pub fn insert(&mut self, key: &str, login: Login) {
        self.0.insert(normal_key(key), login);
    }

    /// Adds the logins of `other` for registries that have none yet.
    pub fn merge(&mut self, other: Self) {
        for (key, login) in other.0 {
            self.0.entry(key).or_insert(login);
        }
    }

    /// The login for an image: the longest key that is its registry, or a leading part of its name.
    pub fn lookup(&self, reference: &RegistryReference) -> Option<&Login> {
        let full = format!("{}/{}", reference.host(), reference.repository());
        let mut key = full.as_str();
        loop {
            if let Some(login) = self.0.get(key) {
                return Some(login);
            }
            key = key.rsplit_once('/')?.0;
        }
    }
}

fn decode(encoded: &Secret<String>) -> Option<Login> {
    let bytes = Secret::new(base64::engine::general_purpose::STANDARD.decode(encoded.expose().trim()).ok()?);
    let text = std::str::from_utf8(bytes.expose()).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Login { user: user.to_owned(), password: Secret::new(password.trim_end_matches('\0').to_owned()) })
}

/// `https://index.docker.io/v1/` and `registry-1.docker.io` are Docker Hub; other keys lose scheme and version.
fn normal_key(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key).trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Reference;
    use super::*;

    fn registry(text: &str) -> RegistryReference {
        match text.parse().unwrap() {
            Reference::Registry(r) => r,
            _ => panic!("{text}"),
        }
    }

    #[test]
    fn the_longest_key_wins_and_docker_hub_has_many_names() {
        // base64 of `hub:one`, `team:two:three`, `quay:four`
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOm9uZQ=="},
            "quay.io/team": {"auth": "dGVhbTp0d286dGhyZWU="},
            "quay.io": {"auth": "cXVheTpmb3Vy"},
            "ghcr.io": {}}, "credsStore": "x"}"#;
        let credentials = Credentials::from_auth_file(text).unwrap();
        for (image, want) in [
            ("ubuntu", Some(("hub", "one"))),
            ("quay.io/team/a", Some(("team", "two:three"))),
            ("quay.io/other/a", Some(("quay", "four"))),
            ("quay.io/teamster/a", Some(("quay", "four"))),
            ("ghcr.io/a", None),
        ] {
            let found = credentials.lookup(&registry(image)).map(|l| (l.user.as_str(), l.password.expose().as_str()));
            assert_eq!(found, want, "{image}");
        }
    }

    #[test]
    fn a_bad_file_is_an_error_without_its_content() {
        let error = Credentials::from_auth_file(r#"{"auths":{"h":{"auth":"s3cret!"}}}"#).unwrap_err().to_string();
        assert!(error.contains("`h`") && !error.contains("s3cret"), "{error}");
        let error = Credentials::from_auth_file("{\"auths\":[s3cret").unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn the_environment_is_what_the_caller_says() {
        let lookup = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://u:p@proxy:1".to_owned()),
            "no_proxy" => Some(" .site ".to_owned()),
            "HOME" => Some("/h".to_owned()),
            _ => None,
        };
        let config = ClientConfig::from_environment(lookup);
        assert!(config.https_proxy.is_some() && config.http_proxy.is_none());
        assert_eq!(config.no_proxy.as_deref(), Some(".site"));
        assert!(!format!("{config:?}").contains("u:p"));
        let files = auth_file_candidates(lookup);
        assert_eq!(files, [PathBuf::from("/h/.config/containers/auth.json"), PathBuf::from("/h/.docker/config.json")]);
    }
}
