//! The clients: endpoint, region, the site's proxy and authorities, timeouts, tries, and credentials.
//!
//! Credentials come by the standard chain of AWS, which reads the environment and files of its own accord (the one exception to
//! the rule that a stage does not): `AWS_ACCESS_KEY_ID` and its kin; the profile of `AWS_PROFILE` with static keys, roles, SSO or
//! a program; a web identity token (`AWS_WEB_IDENTITY_TOKEN_FILE`, as CI's OIDC gives); a container's endpoint; the instance's
//! metadata service, unless `AWS_EC2_METADATA_DISABLED` is true. Which one it was is said, never the secret.

use crate::publish::StoreError;
use crate::report::{Ctx, chain};
use crate::secret::Secret;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region, imds};
use aws_credential_types::Credentials;
use aws_credential_types::credential_feature::AwsCredentialFeature as Feature;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents, SharedHttpClient};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use fs_err as fs;
use std::path::PathBuf;
use std::time::Duration;

/// Always reached directly: a proxy cannot know this machine's own services.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// For servers that ask for none.
const NO_REGION: &str = "us-east-1";

/// How a bucket is reached. The default is AWS, without a proxy, trusting the system's authorities.
#[derive(Debug)]
pub struct S3Options {
    /// URL of a server other than AWS; a profile may name one when it is not given.
    pub endpoint: Option<String>,
    /// Region; else from `AWS_REGION` or the profile.
    pub region: Option<String>,
    /// Whether the bucket stands in the path of URLs and not in the host's name; when not said, with an endpoint.
    pub path_style: Option<bool>,
    /// Proxy for https.
    pub https_proxy: Option<Secret<String>>,
    /// Proxy for plain http.
    pub http_proxy: Option<Secret<String>>,
    /// Hosts that are reached directly, separated by commas.
    pub no_proxy: Option<String>,
    /// PEM files with authorities that are trusted beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// Bytes in a part of a large file: up to this size a file goes in one piece. At least 5 MiB, S3's own limit.
    pub part_size: u64,
    /// Access key and secret key in place of the standard chain.
    pub credentials: Option<(String, Secret<String>)>,
    /// How often a request is sent at most.
    pub tries: u32,
    /// The longest pause before the second try; it doubles with each, up to twenty seconds.
    pub first_pause: Duration,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long a small request may take.
    pub timeout: Duration,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            path_style: None,
            https_proxy: None,
            http_proxy: None,
            no_proxy: None,
            ca_files: Vec::new(),
            part_size: 16 << 20,
            credentials: None,
            tries: 8,
            first_pause: Duration::from_millis(250),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
        }
    }
}

pub(super) struct Clients {
    pub quick: aws_sdk_s3::Client,
    pub bulk: aws_sdk_s3::Client,
}

/// Finds credentials and makes the clients.
pub(super) async fn connect(address: &str, options: &S3Options, ctx: &Ctx) -> Result<Clients, StoreError> {
    let bad = |reason: String| StoreError::BadAddress { address: address.to_owned(), reason };
    let given = options.endpoint.as_deref().map(is_plain).transpose().map_err(bad)?;
    let authorities = authorities(options).map_err(bad)?;
    let encrypted = http_client(options.https_proxy.as_ref(), false, options, &authorities).map_err(bad)?;

    let region = region(options).await;
    let credentials = match &options.credentials {
        Some((access, secret)) => {
            let given = Credentials::new(access, secret.expose(), None, None, "given");
            SharedCredentialsProvider::new(given)
        }
        None => standard(address, encrypted.clone(), region.clone(), ctx).await?,
    };
    let timeouts = |whole: Duration| {
        TimeoutConfig::builder()
            .connect_timeout(options.connect_timeout)
            .read_timeout(whole)
            .operation_attempt_timeout(whole)
            .build()
    };
    let shared = aws_config::defaults(BehaviorVersion::latest())
        .http_client(encrypted.clone())
        .region(region)
        .credentials_provider(credentials)
        .load()
        .await;
    // A profile may name one too.
    let named = match given {
        Some(plain) => Some(plain),
        None => shared.endpoint_url().map(is_plain).transpose().map_err(bad)?,
    };
    let http = if named == Some(true) {
        http_client(options.http_proxy.as_ref(), true, options, &authorities).map_err(bad)?
    } else {
        encrypted
    };
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        .http_client(http)
        // Sums that we give are sent; none is added in the trailers that old servers do not read.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(options.tries)
                .with_initial_backoff(options.first_pause)
                .with_max_backoff(Duration::from_secs(20)),
        )
        .force_path_style(options.path_style.unwrap_or(named.is_some()));
    if let Some(endpoint) = &options.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Clients {
        quick: aws_sdk_s3::Client::from_conf(config.clone().timeout_config(timeouts(options.timeout)).build()),
        bulk: aws_sdk_s3::Client::from_conf(config.timeout_config(timeouts(options.timeout * 10)).build()),
    })
}

/// Whether requests to an endpoint go without TLS.
fn is_plain(endpoint: &str) -> Result<bool, String> {
    let url =
        reqwest::Url::parse(endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let Some(url) = url else {
        // What is no URL may hold a password too.
        let shown = if endpoint.contains('@') { "..." } else { endpoint };
        return Err(format!("the endpoint `{shown}` is no URL such as https://s3.site.example:9000"));
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "the endpoint's URL holds a user or a password; credentials are taken from the standard chain".into()
        );
    }
    Ok(url.scheme() == "http")
}

/// The standard chain, once it has given something.
async fn standard(
    address: &str,
    http: SharedHttpClient,
    region: Region,
    ctx: &Ctx,
) -> Result<SharedCredentialsProvider, StoreError> {
    let configuration = ProviderConfig::without_region().with_http_client(http).with_region(Some(region.clone()));
    let providers = DefaultCredentialsChain::builder()
        .configure(configuration.clone())
        .region(region)
        .imds_client(imds::Client::builder().configure(&configuration).max_attempts(2).build())
        .build()
        .await;
    let found = providers.provide_credentials().await.map_err(|e| StoreError::Service {
        address: address.to_owned(),
        what: "find credentials".to_owned(),
        reason: format!(
            "{}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or what else the standard chain of AWS reads",
            chain(&e)
        ),
    })?;
    ctx.note(format!("{address}: credentials from {}", provider(&found)));
    Ok(SharedCredentialsProvider::new(providers))
}

/// Given, or from the environment, or the profile. The metadata service is not asked: where there is none, that takes seconds.
async fn region(options: &S3Options) -> Region {
    if let Some(region) = &options.region {
        return Region::new(region.clone());
    }
    let chain = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new())
        .or_else(Region::from_static(NO_REGION));
    chain.region().await.unwrap_or(Region::from_static(NO_REGION))
}

/// What gave the credentials, in words.
fn provider(credentials: &Credentials) -> &'static str {
    let features = credentials.get_property::<Vec<Feature>>().map_or(&[][..], Vec::as_slice);
    let has = |wanted: &[Feature]| features.iter().any(|feature| wanted.contains(feature));
    if has(&[Feature::CredentialsProfileSso, Feature::CredentialsSso]) {
        "a single sign-on session"
    } else if has(&[Feature::CredentialsProfileProcess, Feature::CredentialsProcess]) {
        "the program that the profile names (credential_process)"
    } else if has(&[
        Feature::CredentialsEnvVarsStsWebIdToken,
        Feature::CredentialsProfileStsWebIdToken,
        Feature::CredentialsStsAssumeRoleWebId,
    ]) {
        "a web identity token (OIDC)"
    } else if has(&[Feature::CredentialsStsAssumeRole]) {
        "a role that the profile names"
    } else if has(&[Feature::CredentialsImds]) {
        "the instance's role (metadata service)"
    } else if has(&[Feature::CredentialsHttp]) {
        "the container's role"
    } else if has(&[Feature::CredentialsEnvVars]) {
        if credentials.session_token().is_some() {
            "the environment (AWS_ACCESS_KEY_ID, with a session token)"
        } else {
            "the environment (AWS_ACCESS_KEY_ID)"
        }
    } else if has(&[Feature::CredentialsProfile, Feature::CredentialsProfileNamedProvider]) {
        "a profile of the AWS configuration files"
    } else {
        "the standard chain of AWS"
    }
}

/// The text of the files, each looked at: the SDK's client does not survive one that it cannot read.
fn authorities(options: &S3Options) -> Result<Vec<Vec<u8>>, String> {
    options
        .ca_files
        .iter()
        .map(|path| {
            let fault = |reason: String| format!("the CA file `{}`: {reason}", path.display());
            let bytes = fs::read(path).map_err(|e| fault(e.to_string()))?;
            let found = reqwest::Certificate::from_pem_bundle(&bytes).map_err(|e| fault(chain(&e)))?;
            if found.is_empty() {
                return Err(fault("it holds no PEM certificate".into()));
            }
            reqwest::Client::builder().no_proxy().tls_certs_only(found).build().map_err(|e| fault(chain(&e)))?;
            Ok(bytes)
        })
        .collect()
}

fn http_client(
    proxy: Option<&Secret<String>>,
    plain: bool,
    options: &S3Options,
    authorities: &[Vec<u8>],
) -> Result<SharedHttpClient, String> {
    let mut trusted = TrustStore::default();
    for pem in authorities {
        trusted = trusted.with_pem_certificate(pem.as_slice());
    }
    let tls = TlsContext::builder().with_trust_store(trusted).build().map_err(|e| chain(&e))?;
    let proxy = match proxy {
        None => ProxyConfig::disabled(),
        Some(url) => {
            let url = url.expose().as_str();
            let made = if plain { ProxyConfig::http(url) } else { ProxyConfig::https(url) };
            // Its address may hold a password.
            let made =
                made.map_err(|_| "the proxy's address is not a URL such as http://proxy.site:3128".to_owned())?;
            let direct =
                options.no_proxy.as_deref().map_or_else(|| LOOPBACK.to_owned(), |hosts| format!("{hosts},{LOOPBACK}"));
            made.no_proxy(direct)
        }
    };
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(tls.clone()).build()
    }))
}
