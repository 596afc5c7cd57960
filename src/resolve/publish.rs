//! Where to publish to, as settings say, and how a bucket is reached from this host.

use super::registries::client_config;
use super::{Lookup, ResolveError};
use crate::catalog::{Catalog, Toolchain};
use crate::config::Settings;
use crate::image::ClientConfig;
use crate::publish::{Reach, S3Options, is_by_registries};
use crate::report::Ctx;
use crate::sign::Fingerprint;
use std::path::PathBuf;
use std::sync::Arc;

/// Binary caches that the site names, for builds to take from.
#[derive(Debug)]
pub struct BinaryMirrors {
    /// Folders and addresses, in the order in which they are asked.
    pub places: Vec<String>,
    /// How those in the network are reached; nothing when none may be.
    pub reach: Option<Reach>,
    /// Fingerprints of keys that a mirror itself may offer.
    pub keys: Vec<Fingerprint>,
}

impl BinaryMirrors {
    /// `known`: what is configured about registries, when it was read already.
    pub(super) fn new(
        places: &[String],
        keys: Vec<Fingerprint>,
        offline: bool,
        known: Option<&Arc<ClientConfig>>,
        settings: &Settings,
        lookup: Lookup<'_>,
        ctx: &Ctx,
    ) -> Result<Self, ResolveError> {
        let reach = match (offline, known) {
            (true, _) => None,
            (false, Some(known)) => Some(Reach { s3: s3_options(settings, lookup), registries: known.clone() }),
            (false, None) => Some(reach(places.iter().map(String::as_str), settings, lookup, ctx)?),
        };
        Ok(Self { places: places.to_vec(), reach, keys })
    }
}

/// Where binaries come from, in the order in which they are asked, and the keys that such a place itself may offer: what settings
/// name, then the caches of others that the site's catalog trusts.
pub(super) fn binary_mirrors(
    settings: &Settings,
    catalog: &Catalog,
    toolchain: &Toolchain,
) -> Result<(Vec<String>, Vec<Fingerprint>), ResolveError> {
    let parse = |key: &'static str, text: &str| {
        text.parse().map_err(|_| ResolveError::Fingerprint { key, value: text.to_owned() })
    };
    let named = settings.binary_mirror_keys.iter().flatten();
    let mut keys = named.map(|text| parse("binary-mirror-keys", text)).collect::<Result<Vec<_>, _>>()?;
    let mut places = settings.binary_mirrors.clone().unwrap_or_default();
    places = super::folders_or_urls("binary-mirrors", &places)?;
    for (name, url, fingerprint) in catalog.trusted_caches(&toolchain.name) {
        let of_cache = |source: ResolveError| ResolveError::OfCache { name: name.to_owned(), source: Box::new(source) };
        keys.push(parse("fingerprint", fingerprint).map_err(of_cache)?);
        if url.is_empty() {
            let known = catalog.caches.iter().filter(|(_, cache)| !cache.url.is_empty());
            let known = known.map(|(name, _)| name.clone()).collect();
            return Err(of_cache(ResolveError::NoUrl { known }));
        }
        places.extend(super::folders_or_urls("url", &[url]).map_err(of_cache)?);
    }
    Ok((places, keys))
}

/// How the stores at these addresses are reached. What is configured about registries is read only when one of them is in a
/// registry or in the web: what is wrong there must not stop who uses none.
pub fn reach<'a>(
    addresses: impl IntoIterator<Item = &'a str>,
    settings: &Settings,
    lookup: Lookup<'_>,
    ctx: &Ctx,
) -> Result<Reach, ResolveError> {
    let registries = if addresses.into_iter().any(is_by_registries) {
        client_config(settings, lookup, ctx)?
    } else {
        ClientConfig::default()
    };
    Ok(Reach { s3: s3_options(settings, lookup), registries: Arc::new(registries) })
}

/// How buckets are reached: endpoint, region and path style by settings; the site's proxy and authorities as everywhere
/// (`https_proxy`, `http_proxy`, `no_proxy`, `SSL_CERT_FILE`) and as other tools for S3 have them (`AWS_CA_BUNDLE`).
fn s3_options(settings: &Settings, lookup: Lookup<'_>) -> S3Options {
    let proxies = ClientConfig::from_environment(lookup);
    let file = |name| lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // A bundle that is named for S3 must be there; the other may be meant for programs that are not this one.
    let ca_files =
        file("AWS_CA_BUNDLE").into_iter().chain(file("SSL_CERT_FILE").filter(|path| path.is_file())).collect();
    S3Options {
        endpoint: settings.s3_endpoint.clone().or_else(|| endpoint(lookup)),
        region: settings.s3_region.clone(),
        path_style: settings.s3_path_style,
        https_proxy: proxies.https_proxy,
        http_proxy: proxies.http_proxy,
        no_proxy: proxies.no_proxy,
        ca_files,
        ..S3Options::default()
    }
}

/// The server that other tools for S3 are told ("Service-specific endpoints" of the AWS SDKs' reference guide). It decides which
/// proxy is used, and is checked as one that is given to us.
fn endpoint(lookup: Lookup<'_>) -> Option<String> {
    if lookup("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return None;
    }
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].into_iter().find_map(|name| lookup(name).filter(|url| !url.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_of_other_tools_is_taken_unless_one_is_set() {
        let found = |own: Option<&str>, variables: &[(&str, &str)]| {
            let settings = Settings { s3_endpoint: own.map(str::to_owned), ..Settings::default() };
            let lookup = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            s3_options(&settings, &lookup).endpoint
        };
        let both = [("AWS_ENDPOINT_URL", "http://all"), ("AWS_ENDPOINT_URL_S3", "http://s3")];
        assert_eq!(found(None, &both).as_deref(), Some("http://s3"));
        assert_eq!(found(None, &both[..1]).as_deref(), Some("http://all"));
        assert_eq!(found(Some("https://own"), &both).as_deref(), Some("https://own"));
        assert_eq!(found(None, &[("AWS_ENDPOINT_URL_S3", "")]), None);
        assert_eq!(found(None, &[both[0], ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")]), None);
    }
}
