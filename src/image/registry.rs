//! One repository of one registry: manifests and blobs over HTTP.
//!
//! ```text
//! GET /v2/NAME/manifests/TAG|DIGEST     Accept: the four types of `manifest::ACCEPTED`
//! GET /v2/NAME/blobs/DIGEST             Range: bytes=N- goes on where a cut download ended
//! 401 WWW-Authenticate: Bearer|Basic    a token for `repository:NAME:pull`, then the same request again
//! ```
//!
//! Protocol: OCI distribution-spec, "Pull"; tokens: the distribution project's "Token Authentication". Getting
//! a token is `oci_distribution`'s work, and so are the error documents. The two GETs are made here, because
//! sizes must be bounded, `Retry-After` and `Range` seen, and every answer turned into an error that names the
//! image. Nothing that comes from here is trusted: [`super::blobs`] checks digest and size.

use super::client::ClientConfig;
use super::error::chain;
use super::manifest::{ACCEPTED, MAX_MANIFEST};
use super::{Digest, ImageError, RegistryReference};
use fs_err as fs;
use oci_distribution::client::{Certificate, CertificateEncoding, ClientProtocol};
use oci_distribution::errors::OciEnvelope;
use oci_distribution::secrets::RegistryAuth;
use reqwest::header::{ACCEPT, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, RwLock};

const USER_AGENT: &str = concat!("slurm-factory/", env!("CARGO_PKG_VERSION"));

/// How much of an answer's body an error quotes.
const QUOTED: usize = 200;

/// Always reached directly: a proxy cannot know this machine's own services.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

const EVERY_HOST: &str = "*,0.0.0.0/0,::/0";

/// The longest wait that a registry may ask for between two tries.
const MAX_WAIT: Duration = Duration::from_mins(1);

/// A repository and the way to it.
pub struct Registry {
    http: reqwest::Client,
    /// Made when a registry first asks for a token: reading the system's certificates once more takes a while.
    tokens: OnceCell<oci_distribution::Client>,
    token_config: Mutex<Option<oci_distribution::client::ClientConfig>>,
    image: oci_distribution::Reference,
    login: RegistryAuth,
    base: String,
    wanted: String,
    reference: String,
    authorization: RwLock<Option<Authorization>>,
    retries: u32,
}

#[derive(Clone)]
enum Authorization {
    Bearer(String),
    Basic(String, String),
}

/// The body of a blob from `offset` on.
pub struct BlobBody {
    response: Response,
    /// Where the body begins; 0 when the registry does not know ranges.
    pub offset: u64,
}

impl BlobBody {
    /// The next bytes; `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, String> {
        self.response.chunk().await.map_err(|e| chain(&e.without_url()))
    }
}

impl Registry {
    /// Sets up the client; nothing is sent yet.
    pub fn new(reference: &RegistryReference, full_name: &str, config: &ClientConfig) -> Result<Self, ImageError> {
        let plain = reference.is_loopback();
        let certificates = load_certificates(config)?;
        let no_proxy = match config.no_proxy.as_deref() {
            Some("*") => EVERY_HOST.to_owned(),
            Some(hosts) => format!("{hosts},{LOOPBACK}"),
            None => LOOPBACK.to_owned(),
        };
        let http = http_client(config, &certificates, &no_proxy, plain)?;
        let direct = config.https_proxy.is_none() && config.http_proxy.is_none();
        let token_config = oci_distribution::client::ClientConfig {
            protocol: if plain {
                ClientProtocol::HttpsExcept(vec![reference.api_host().to_owned()])
            } else {
                ClientProtocol::Https
            },
            extra_root_certificates: certificates
                .into_iter()
                .map(|data| Certificate { encoding: CertificateEncoding::Pem, data })
                .collect(),
            read_timeout: Some(config.read_timeout),
            connect_timeout: Some(config.connect_timeout),
            user_agent: USER_AGENT,
            https_proxy: config.https_proxy.as_ref().map(|p| p.expose().clone()),
            // Without any proxy of ours this client would ask the environment; one that no host uses says no.
            http_proxy: if direct {
                Some("http://127.0.0.1:9".to_owned())
            } else {
                config.http_proxy.as_ref().map(|p| p.expose().clone())
            },
            no_proxy: Some(if direct { EVERY_HOST.to_owned() } else { no_proxy }),
            ..oci_distribution::client::ClientConfig::default()
        };
        let login = config.credentials.lookup(reference).map_or(RegistryAuth::Anonymous, |login| {
            RegistryAuth::Basic(login.user.clone(), login.password.expose().clone())
        });
        let scheme = if plain { "http" } else { "https" };
        Ok(Self {
            http,
            tokens: OnceCell::new(),
            token_config: Mutex::new(Some(token_config)),
            image: oci_distribution::Reference::with_tag(
                reference.api_host().to_owned(),
                reference.repository().to_owned(),
                "latest".to_owned(),
            ),
            login,
            base: format!("{scheme}://{}/v2/{}", reference.api_host(), reference.repository()),
            wanted: reference.wanted(),
            reference: full_name.to_owned(),
            authorization: RwLock::new(None),
            retries: config.retries,
        })
    }

    /// The manifest or index that the reference names.
    pub async fn named_manifest(&self) -> Result<Vec<u8>, ImageError> {
        self.manifest(&self.wanted).await
    }

    /// The manifest or index that `wanted` (a tag or a digest) names, not yet checked.
    pub async fn manifest(&self, wanted: &str) -> Result<Vec<u8>, ImageError> {
        let url = format!("{}/manifests/{wanted}", self.base);
        let accept = ACCEPTED.join(", ");
        let what = if wanted.starts_with("sha256:") { format!("manifest {wanted}") } else { "image".to_owned() };
        let mut attempt = 0;
        loop {
            let response = self.get(&url, &what, Some(&accept), 0).await?;
            match read_bounded(response, MAX_MANIFEST).await {
                Ok(Some(body)) => return Ok(body),
                Ok(None) => {
                    return Err(ImageError::Malformed {
                        what: "the manifest".to_owned(),
                        reference: self.reference.clone(),
                        reason: format!("it is larger than the {MAX_MANIFEST} bytes that are accepted"),
                    });
                }
                Err(error) if attempt == self.retries => return Err(self.unreachable(&url, &error)),
                Err(_) => {
                    tokio::time::sleep(backoff(attempt)).await;
                    attempt += 1;
                }
            }
        }
    }

    /// The blob's body from `offset` on, not yet checked.
    pub async fn blob(&self, digest: &Digest, offset: u64) -> Result<BlobBody, ImageError> {
        let url = self.blob_url(digest);
        let response = self.get(&url, &format!("blob {digest}"), None, offset).await?;
        let offset =
            if response.status() == StatusCode::PARTIAL_CONTENT && starts_at(&response, offset) { offset } else { 0 };
        Ok(BlobBody { response, offset })
    }

    /// Where a blob is, for messages.
    pub fn blob_url(&self, digest: &Digest) -> String {
        format!("{}/blobs/{digest}", self.base)
    }

    /// Where a manifest is, for messages.
    pub fn manifest_url(&self, wanted: &str) -> String {
        format!("{}/manifests/{wanted}", self.base)
    }

    /// A GET that is authorised when the registry asks for it, and repeated when the failure may pass.
    async fn get(&self, url: &str, what: &str, accept: Option<&str>, mut offset: u64) -> Result<Response, ImageError> {
        let mut attempt = 0;
        let mut refused = false;
        loop {
            let mut request = self.http.get(url);
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            match &*self.authorization.read().await {
                Some(Authorization::Bearer(token)) => request = request.bearer_auth(token),
                Some(Authorization::Basic(user, password)) => request = request.basic_auth(user, Some(password)),
                None => {}
            }
            let (wait, error) = match request.send().await {
                Ok(response) if matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) => {
                    return Ok(response);
                }
                Ok(response) if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && offset > 0 => {
                    // What we have is not a beginning of what the registry has: from the start.
                    offset = 0;
                    continue;
                }
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED && !refused => {
                    // No token yet, or one that has expired: once.
                    refused = true;
                    drop(response);
                    self.authorise(url).await?;
                    continue;
                }
                Ok(response) => {
                    let status = response.status();
                    let wait = retry_after(response.headers());
                    let passing = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
                    let error = self.refusal(url, what, response).await;
                    if !passing {
                        return Err(error);
                    }
                    (wait, error)
                }
                Err(error) => {
                    // Nobody listening, no such host, an untrusted certificate: the same the next time.
                    let passing = error.is_timeout() || !error.is_connect();
                    let error = self.unreachable(url, &chain(&error.without_url()));
                    if !passing {
                        return Err(error);
                    }
                    (None, error)
                }
            };
            if attempt == self.retries || wait.is_some_and(|w| w > MAX_WAIT) {
                return Err(error);
            }
            tokio::time::sleep(wait.unwrap_or_else(|| backoff(attempt))).await;
            attempt += 1;
        }
    }

    async fn token_client(&self) -> Result<&oci_distribution::Client, ImageError> {
        self.tokens
            .get_or_try_init(|| async {
                let config =
                    self.token_config.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
                oci_distribution::Client::try_from(config).map_err(|e| client_error("TLS", with_ca_hint(&chain(&e))))
            })
            .await
    }

    /// Asks for a token, or settles for user and password when that is what the registry wants.
    async fn authorise(&self, url: &str) -> Result<(), ImageError> {
        let operation = oci_distribution::RegistryOperation::Pull;
        let granted = self.token_client().await?.auth(&self.image, &self.login, operation).await;
        let found = match granted {
            Ok(Some(token)) => Some(Authorization::Bearer(token)),
            Ok(None) => match &self.login {
                RegistryAuth::Basic(user, password) => Some(Authorization::Basic(user.clone(), password.clone())),
                RegistryAuth::Anonymous | RegistryAuth::Bearer(_) => None,
            },
            Err(oci_distribution::errors::OciDistributionError::RequestError(e)) => {
                return Err(self.unreachable(url, &format!("asking for a token: {}", chain(&e.without_url()))));
            }
            Err(e) => {
                return Err(self.unauthorized(url, &quote(&format!("asking for a token: {}", chain(&e)))));
            }
        };
        *self.authorization.write().await = found;
        Ok(())
    }

    fn unreachable(&self, url: &str, reason: &str) -> ImageError {
        ImageError::Unreachable { reference: self.reference.clone(), url: url.to_owned(), reason: reason.to_owned() }
    }

    fn unauthorized(&self, url: &str, reason: &str) -> ImageError {
        let hint = match self.login {
            RegistryAuth::Basic(..) => {
                "the stored login is refused or has no right to pull it: log in again (docker login, podman login)"
            }
            RegistryAuth::Anonymous | RegistryAuth::Bearer(_) => {
                "no login for it is known: check the name (registries say this of images that do not exist), or log in (docker login, podman login)"
            }
        };
        ImageError::Unauthorized {
            reference: self.reference.clone(),
            url: url.to_owned(),
            reason: reason.to_owned(),
            hint,
        }
    }

    async fn refusal(&self, url: &str, what: &str, response: Response) -> ImageError {
        let status = response.status();
        let after = retry_after(response.headers());
        let body = read_bounded(response, 64 << 10).await.ok().flatten().unwrap_or_default();
        let reason = explain(status, &body);
        let (reference, url) = (self.reference.clone(), url.to_owned());
        match status {
            StatusCode::NOT_FOUND => ImageError::NotFound { what: what.to_owned(), reference, url, reason },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.unauthorized(&url, &reason),
            StatusCode::TOO_MANY_REQUESTS => ImageError::RateLimited { reference, url, after },
            _ => ImageError::Server { reference, url, status: status.as_u16(), reason },
        }
    }
}

fn client_error(what: &str, reason: String) -> ImageError {
    ImageError::Client { what: what.to_owned(), reason }
}

fn http_client(
    config: &ClientConfig,
    certificates: &[Vec<u8>],
    no_proxy: &str,
    plain: bool,
) -> Result<reqwest::Client, ImageError> {
    let builder = || -> Result<reqwest::ClientBuilder, ImageError> {
        let mut http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(config.connect_timeout)
            .read_timeout(config.read_timeout)
            .redirect(redirects())
            // Both proxies are set below; none is read from the environment.
            .no_proxy();
        let proxies = [
            config.https_proxy.as_ref().map(|p| reqwest::Proxy::https(p.expose())),
            config.http_proxy.as_ref().map(|p| reqwest::Proxy::http(p.expose())),
        ];
        for proxy in proxies.into_iter().flatten() {
            // The address is not quoted: it may hold a password.
            let proxy = proxy.map_err(|_| client_error("the proxy's address", "it is not a URL".to_owned()))?;
            http = http.proxy(proxy.no_proxy(reqwest::NoProxy::from_string(no_proxy)));
        }
        for pem in certificates {
            let certificate = reqwest::Certificate::from_pem(pem)
                .map_err(|e| client_error("a certificate of the extra CA files", chain(&e)))?;
            http = http.tls_certs_merge([certificate]);
        }
        Ok(http)
    };
    match builder()?.build() {
        Ok(http) => Ok(http),
        // A machine without any CA bundle can still speak to its own registry.
        Err(_) if plain => builder()?.tls_certs_only([]).build().map_err(|e| client_error("HTTP", chain(&e))),
        Err(e) => Err(client_error("TLS", with_ca_hint(&chain(&e)))),
    }
}

/// Follows up to ten redirects, as registries use to hand blobs to their storage, but never from TLS to plain
/// text. `Authorization` is dropped by the HTTP client when the host changes.
fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let downgrade =
            attempt.url().scheme() == "http" && attempt.previous().last().is_some_and(|from| from.scheme() == "https");
        if downgrade {
            attempt.error("redirected from https to http")
        } else if attempt.previous().len() > 10 {
            attempt.error("redirected more than ten times")
        } else {
            attempt.follow()
        }
    })
}

fn load_certificates(config: &ClientConfig) -> Result<Vec<Vec<u8>>, ImageError> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut found = Vec::new();
    for path in &config.extra_ca_files {
        let what = || format!("the CA file `{}`", path.display());
        let text = fs::read_to_string(path).map_err(|e| ImageError::Client { what: what(), reason: e.to_string() })?;
        let before = found.len();
        for part in text.split(BEGIN).skip(1) {
            if let Some((body, _)) = part.split_once(END) {
                found.push(format!("{BEGIN}{body}{END}\n").into_bytes());
            }
        }
        if found.len() == before {
            return Err(ImageError::Client { what: what(), reason: "it holds no PEM certificate".to_owned() });
        }
    }
    Ok(found)
}

fn with_ca_hint(reason: &str) -> String {
    if reason.contains("No CA certificates") {
        format!("{reason}; install ca-certificates, or name a bundle with SSL_CERT_FILE")
    } else {
        reason.to_owned()
    }
}

/// `Content-Range: bytes 100-199/200` must begin where we asked.
fn starts_at(response: &Response, offset: u64) -> bool {
    response
        .headers()
        .get(reqwest::header::CONTENT_RANGE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse::<u64>().ok())
        .is_some_and(|start| start == offset)
}

/// Seconds only; the date form is not used by registries.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// 0.5 s, 1 s, 2 s ..., spread so that many clients do not come back together.
pub fn backoff(attempt: u32) -> Duration {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    let spread = 0.75 + 0.5 * (f64::from(nanos % 1000) / 1000.0);
    Duration::from_millis(500 << attempt.min(6)).mul_f64(spread)
}

/// The body, or `None` when it is larger than `max`.
async fn read_bounded(mut response: Response, max: u64) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(|e| chain(&e.without_url()))? {
        if (body.len() + bytes.len()) as u64 > max {
            return Ok(None);
        }
        body.extend_from_slice(&bytes);
    }
    Ok(Some(body))
}

/// The registry's own words: its error document, or the beginning of whatever it sent.
fn explain(status: StatusCode, body: &[u8]) -> String {
    if let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(body) {
        let words: Vec<String> = envelope
            .errors
            .iter()
            .map(|e| {
                let code = serde_json::to_string(&e.code).unwrap_or_default();
                format!("{} {}", code.trim_matches('"'), e.message).trim().to_owned()
            })
            .collect();
        if !words.is_empty() {
            return quote(&words.join("; "));
        }
    }
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    if text.is_empty() { status.to_string() } else { quote(text) }
}

/// One printable line of bounded length.
fn quote(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED).collect();
    if text.chars().count() > QUOTED {
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_documents_are_put_into_words() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#;
        assert_eq!(explain(StatusCode::NOT_FOUND, body), "MANIFEST_UNKNOWN manifest unknown");
        assert_eq!(explain(StatusCode::BAD_GATEWAY, b""), "502 Bad Gateway");
        assert_eq!(explain(StatusCode::BAD_GATEWAY, b"<html>\x1b[31m\n"), "<html> [31m");
        assert!(explain(StatusCode::BAD_GATEWAY, &[b'x'; 5000]).len() < 300);
    }

    #[test]
    fn waits_grow_and_are_spread() {
        for (attempt, low, high) in [(0, 375, 626), (2, 1500, 2501)] {
            let wait = backoff(attempt).as_millis();
            assert!((low..high).contains(&wait), "{attempt}: {wait}");
        }
    }
}
