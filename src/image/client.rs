//! What the registry client must know about the site: proxies, certificates, registries, logins, timeouts.
//!
//! This stage reads no environment. [`ClientConfig::from_environment`] takes a lookup function, so that the caller
//! decides what it sees; what registries and logins are configured comes as typed values, see
//! [`super::registries`] and [`super::credentials`].
//!
//! Certificates: the system's bundle is trusted, or what SSL_CERT_FILE and SSL_CERT_DIR name instead (the TLS
//! library reads these two itself), plus the files in [`ClientConfig::extra_ca_files`], plus what a folder of
//! the registry's name holds, see [`super::tls`].

use super::credentials::Credentials;
use super::registries::Registries;
use crate::secret::Secret;
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
    /// Folders with a folder a registry (`HOST[:PORT]/`) of certificates and keys; of several for the same
    /// registry the first is used.
    pub certificate_dirs: Vec<PathBuf>,
    /// Prefixes, locations, mirrors, short names.
    pub registries: Registries,
    /// Users and passwords by registry, and the programs that know them.
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
            certificate_dirs: Vec::new(),
            registries: Registries::default(),
            credentials: Credentials::default(),
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_mins(1),
            parallel: 4,
            retries: 3,
        }
    }
}

impl ClientConfig {
    /// The proxies as curl reads them from the environment: lower case first, and one that is empty is not set;
    /// `HTTP_PROXY` in upper case is left out, as a CGI request could set it.
    pub fn from_environment(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &&str| lookup(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let first = |names: &[&str]| names.iter().find_map(set);
        Self {
            https_proxy: first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]).map(Secret::new),
            http_proxy: first(&["http_proxy", "all_proxy", "ALL_PROXY"]).map(Secret::new),
            no_proxy: first(&["no_proxy", "NO_PROXY"]),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_what_the_caller_says() {
        let lookup = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://u:p@proxy:1".to_owned()),
            "no_proxy" => Some(" .site ".to_owned()),
            _ => None,
        };
        let config = ClientConfig::from_environment(lookup);
        assert!(config.https_proxy.is_some() && config.http_proxy.is_none());
        assert_eq!(config.no_proxy.as_deref(), Some(".site"));
        assert!(!format!("{config:?}").contains("u:p"));

        // What is empty hides nothing.
        let lookup = |name: &str| match name {
            "https_proxy" | "HTTPS_PROXY" | "http_proxy" | "no_proxy" => Some(" ".to_owned()),
            "all_proxy" => Some("http://all:1".to_owned()),
            "NO_PROXY" => Some("a.site".to_owned()),
            _ => None,
        };
        let config = ClientConfig::from_environment(lookup);
        let text = |proxy: Option<Secret<String>>| proxy.map(|p| p.expose().clone());
        assert_eq!(text(config.https_proxy).as_deref(), Some("http://all:1"));
        assert_eq!(text(config.http_proxy).as_deref(), Some("http://all:1"));
        assert_eq!(config.no_proxy.as_deref(), Some("a.site"));
    }
}
