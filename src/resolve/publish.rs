//! Where to publish to, as settings say, and how a bucket is reached from this host.

use super::Lookup;
use crate::config::Settings;
use crate::image::ClientConfig;
use crate::publish::S3Options;
use std::path::PathBuf;

/// How buckets are reached: endpoint, region and path style by settings; the site's proxy and authorities as everywhere
/// (`https_proxy`, `http_proxy`, `no_proxy`, `SSL_CERT_FILE`) and as other tools for S3 have them (`AWS_CA_BUNDLE`).
pub fn s3_options(settings: &Settings, lookup: Lookup<'_>) -> S3Options {
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
