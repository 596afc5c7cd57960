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
        endpoint: settings.s3_endpoint.clone(),
        region: settings.s3_region.clone(),
        path_style: settings.s3_path_style,
        https_proxy: proxies.https_proxy,
        http_proxy: proxies.http_proxy,
        no_proxy: proxies.no_proxy,
        ca_files,
        ..S3Options::default()
    }
}
