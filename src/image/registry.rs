//! One repository of one registry: manifests and blobs over HTTP.
//!
//! ```text
//! GET /v2/NAME/manifests/TAG|DIGEST     Accept: the four types of `manifest::ACCEPTED`
//! GET /v2/NAME/blobs/DIGEST             Range: bytes=N- goes on where a cut download ended
//! 401 WWW-Authenticate: Bearer|Basic    a token for `repository:NAME:pull`, then the same request again
//! ```
//!
//! What writes is in [`push`], and asks for a token with more rights only then: some token servers give one who may only read
//! nothing at all when more is asked for.
//!
//! A 401 counts only when it comes from the registry itself: one from a place that it redirects to could name a token
//! server of its own, and be sent the registry's login.
//!
//! Layers are fetched side by side with one token. When it expires they all learn it at once: the first asks for
//! a new one, the others wait for it. A token is given up only when a request that has just got it is refused.
//!
//! Protocol: OCI distribution-spec, "Pull". Sizes are bounded, and every answer that is no success becomes an
//! error that names the image. Nothing that comes from here is trusted: [`super::blobs`] checks digest and size.

mod push;

pub use push::{Content, Refused};

use super::client::ClientConfig;
use super::credentials::{Candidate, Kind, Login};
use super::helper;
use super::manifest::{ACCEPTED, MAX_MANIFEST};
use super::registries::Endpoint;
use super::retry::{MAX_WAIT, backoff, is_passing, pause, retry_after, starts_at};
use super::tls::Way;
use super::token::{self, Challenge};
use super::{Digest, ImageError};
use crate::report::{Ctx, chain};
use crate::secret::Secret;
use oci_distribution::errors::OciEnvelope;
use reqwest::header::{ACCEPT, RANGE};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::{Mutex, OnceCell};

/// Makes a request, as often as it is sent.
type Make<'m> = &'m (dyn Fn(&reqwest::Client) -> RequestBuilder + Send + Sync);

/// How much of an answer's body an error quotes.
const QUOTED: usize = 200;

/// A repository and the way to it.
pub struct Registry {
    endpoint: Endpoint,
    way: Way,
    /// Made when it is first needed: reading the system's certificates takes a while.
    http: OnceCell<reqwest::Client>,
    /// For a token server of another name than an insecure registry's.
    verifying: OnceCell<reqwest::Client>,
    scheme: OnceCell<&'static str>,
    /// Where its login may be, and which it is once that is known.
    candidates: Vec<Candidate>,
    login: OnceCell<Option<Arc<Login>>>,
    /// The image as it was asked for.
    reference: String,
    authorization: RwLock<Granted>,
    /// What a token is asked for.
    actions: RwLock<&'static str>,
    /// Held by the one who asks for a new token.
    renewing: Mutex<()>,
    retries: u32,
    ctx: Ctx,
}

/// What is sent with a request, and its number: the first is 0, with nothing.
#[derive(Clone, Default)]
struct Granted {
    number: u64,
    authorization: Option<Authorization>,
}

#[derive(Clone)]
enum Authorization {
    Bearer(Arc<Secret<String>>),
    Basic(Arc<Login>),
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

    /// How many bytes are to come, where the registry says it.
    pub fn length(&self) -> Option<u64> {
        self.response.content_length()
    }
}

impl Registry {
    /// Reads certificates; nothing is sent yet. `retries` is how often a request is tried again.
    pub fn new(
        endpoint: Endpoint,
        full_name: &str,
        config: &ClientConfig,
        retries: u32,
        ctx: &Ctx,
    ) -> Result<Self, ImageError> {
        let way = Way::new(&endpoint.reference, config)?;
        if let Some(folder) = &way.folder {
            for path in &folder.unreadable {
                ctx.detail(format!("certificates in {} cannot be read, and are passed over", path.display()));
            }
            ctx.detail(format!("certificates in {}: {}", folder.path.display(), folder.contents()));
        }
        Ok(Self {
            candidates: config.credentials.candidates(&endpoint.reference),
            endpoint,
            way,
            http: OnceCell::new(),
            verifying: OnceCell::new(),
            scheme: OnceCell::new(),
            login: OnceCell::new(),
            reference: full_name.to_owned(),
            authorization: RwLock::default(),
            actions: RwLock::new(token::PULL),
            renewing: Mutex::default(),
            retries,
            ctx: ctx.clone(),
        })
    }

    /// Which place this is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The manifest or index that the reference names.
    pub async fn named_manifest(&self) -> Result<Vec<u8>, ImageError> {
        self.manifest(&self.endpoint.reference.wanted()).await
    }

    /// Asks for what the reference names, and returns the `Date` of the answer.
    pub async fn date(&self) -> Result<Option<String>, ImageError> {
        let path = format!("manifests/{}", self.endpoint.reference.wanted());
        let response = self.get(&path, "image", Some(&ACCEPTED.join(", ")), 0).await?;
        Ok(response.headers().get(reqwest::header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned))
    }

    /// The manifest or index that `wanted` (a tag or a digest) names, not yet checked.
    pub async fn manifest(&self, wanted: &str) -> Result<Vec<u8>, ImageError> {
        let path = format!("manifests/{wanted}");
        let accept = ACCEPTED.join(", ");
        let what = if wanted.starts_with("sha256:") { format!("manifest {wanted}") } else { "image".to_owned() };
        let mut attempt = 0;
        loop {
            let response = self.get(&path, &what, Some(&accept), 0).await?;
            match read_bounded(response, MAX_MANIFEST).await {
                Ok(Some(body)) => return Ok(body),
                Ok(None) => {
                    return Err(ImageError::Malformed {
                        what: "the manifest".to_owned(),
                        reference: self.reference.clone(),
                        reason: format!("it is larger than the {MAX_MANIFEST} bytes that are accepted"),
                    });
                }
                Err(error) if attempt == self.retries => return Err(self.unreachable(&self.url(&path), &error)),
                Err(_) => {
                    tokio::time::sleep(backoff(attempt)).await;
                    attempt += 1;
                }
            }
        }
    }

    /// The blob's body from `offset` on, not yet checked.
    pub async fn blob(&self, digest: &Digest, offset: u64) -> Result<BlobBody, ImageError> {
        let response = self.get(&format!("blobs/{digest}"), &format!("blob {digest}"), None, offset).await?;
        let offset = if response.status() == StatusCode::PARTIAL_CONTENT && starts_at(response.headers(), offset) {
            offset
        } else {
            0
        };
        Ok(BlobBody { response, offset })
    }

    /// Where a blob is, for messages.
    pub fn blob_url(&self, digest: &Digest) -> String {
        self.url(&format!("blobs/{digest}"))
    }

    /// Where a manifest is, for messages.
    pub fn manifest_url(&self, wanted: &str) -> String {
        self.url(&format!("manifests/{wanted}"))
    }

    fn url(&self, path: &str) -> String {
        let reference = &self.endpoint.reference;
        let scheme = self.scheme.get().copied().unwrap_or_else(|| if self.is_plain() { "http" } else { "https" });
        format!("{scheme}://{}/v2/{}/{path}", reference.api_host(), reference.repository())
    }

    /// Whether it is spoken to without TLS from the start: this machine's own, of which nothing says otherwise.
    fn is_plain(&self) -> bool {
        self.endpoint.reference.is_loopback() && self.endpoint.insecure.is_none() && self.way.folder.is_none()
    }

    fn is_insecure(&self) -> bool {
        self.endpoint.insecure == Some(true)
    }

    async fn client(&self) -> Result<&reqwest::Client, ImageError> {
        let make = || async { self.way.client(self.is_insecure(), self.is_plain() || self.is_insecure()) };
        self.http.get_or_try_init(make).await
    }

    /// Finds out whether an insecure registry speaks TLS. All others do, or do not, by what is configured.
    async fn settle_scheme(&self) -> Result<(), ImageError> {
        let settle = || async {
            if self.is_plain() {
                return Ok("http");
            }
            if !self.is_insecure() {
                return Ok("https");
            }
            let http = self.client().await?;
            let mut reasons = Vec::new();
            for scheme in ["https", "http"] {
                let url = format!("{scheme}://{}/v2/", self.endpoint.reference.api_host());
                match http.get(&url).send().await {
                    // Whatever it says, it speaks.
                    Ok(_) => {
                        self.ctx.detail(format!("{}: insecure, speaks {scheme}", self.endpoint.reference.host()));
                        return Ok(scheme);
                    }
                    Err(e) => reasons.push(format!("{scheme}: {}", chain(&e.without_url()))),
                }
            }
            let url = format!("https://{}/v2/ and http://", self.endpoint.reference.api_host());
            Err(self.unreachable(&url, &reasons.join("; ")))
        };
        self.scheme.get_or_try_init(settle).await.map(|_| ())
    }

    fn granted(&self) -> Granted {
        self.authorization.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A GET, whose answer is a success.
    async fn get(&self, path: &str, what: &str, accept: Option<&str>, offset: u64) -> Result<Response, ImageError> {
        self.settle_scheme().await?;
        let url = self.url(path);
        let ask = |offset: u64| {
            let url = url.clone();
            move |http: &reqwest::Client| {
                let mut request = http.get(&url);
                if let Some(accept) = accept {
                    request = request.header(ACCEPT, accept);
                }
                if offset > 0 { request.header(RANGE, format!("bytes={offset}-")) } else { request }
            }
        };
        let mut response = self.exchange(&url, &ask(offset), self.retries).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && offset > 0 {
            // What we have is not a beginning of what the registry has: from the start.
            response = self.exchange(&url, &ask(0), self.retries).await?;
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            _ => Err(self.refusal(&url, what, response).await),
        }
    }

    /// Sends a request, authorised when the registry asks for it, and `retries` times again when the failure may pass. The
    /// answer may be a refusal of any other kind.
    async fn exchange(&self, url: &str, make: Make<'_>, retries: u32) -> Result<Response, ImageError> {
        let http = self.client().await?;
        let mut attempt = 0;
        // The grant that was got for this very request.
        let mut fresh = None;
        loop {
            let granted = self.granted();
            let mut request = make(http);
            match &granted.authorization {
                Some(Authorization::Bearer(token)) => request = request.bearer_auth(token.expose()),
                Some(Authorization::Basic(login)) => {
                    request = request.basic_auth(&login.user, Some(login.password.expose()));
                }
                None => {}
            }
            let (wait, outcome) = match request.send().await {
                Ok(response)
                    if response.status() == StatusCode::UNAUTHORIZED && !is_same_place(url, response.url()) =>
                {
                    // Whoever the registry sent us to gets no login of it, nor does a token server of their choice.
                    return Err(self.asked_elsewhere(url, response.url()));
                }
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED && fresh != Some(granted.number) => {
                    // No token yet, or one that has expired.
                    fresh = self.authorise(url, granted.number, response).await?;
                    continue;
                }
                Ok(response) if !is_passing(response.status()) => return Ok(response),
                Ok(response) => (retry_after(response.headers()), Ok(response)),
                Err(error) => {
                    // Nobody listening, no such host, an untrusted certificate: the same the next time.
                    let passing = error.is_timeout() || !error.is_connect();
                    let error = self.unreachable(url, &chain(&error.without_url()));
                    if !passing {
                        return Err(error);
                    }
                    (None, Err(error))
                }
            };
            if attempt == retries || wait.is_some_and(|w| w > MAX_WAIT) {
                return outcome;
            }
            tokio::time::sleep(pause(attempt, wait)).await;
            attempt += 1;
            // What was fresh has aged.
            fresh = None;
        }
    }

    /// Gets what the registry asks for in its 401, unless another request has got it already since the grant
    /// `used`. Returns the number of the new grant when it is ours.
    async fn authorise(&self, url: &str, used: u64, response: Response) -> Result<Option<u64>, ImageError> {
        let challenge = Challenge::of(response.headers());
        let _renewing = self.renewing.lock().await;
        if self.granted().number != used {
            return Ok(None);
        }
        let login = self.login(url).await?;
        let authorization = match (challenge, login) {
            (Some(Challenge::Bearer { realm, service }), login) => {
                let token = self.token(url, &realm, service.as_deref(), login.as_deref()).await?;
                Authorization::Bearer(Arc::new(token))
            }
            // An identity token is no password: it is good for a token server alone.
            (_, Some(login)) if !login.is_identity_token() => Authorization::Basic(login),
            _ => return Err(self.refusal(url, "image", response).await),
        };
        let number = used + 1;
        *self.authorization.write().unwrap_or_else(PoisonError::into_inner) =
            Granted { number, authorization: Some(authorization) };
        Ok(Some(number))
    }

    /// The registry's login, looked for when it is first asked for one.
    async fn login(&self, url: &str) -> Result<Option<Arc<Login>>, ImageError> {
        self.login.get_or_try_init(|| self.find_login(url)).await.cloned()
    }

    async fn find_login(&self, url: &str) -> Result<Option<Arc<Login>>, ImageError> {
        let host = self.endpoint.reference.host();
        let mut failed = None;
        for candidate in &self.candidates {
            let found = match &candidate.kind {
                Kind::Login(login) => Ok(Some(login.clone())),
                Kind::Helper(name) => {
                    let (ask, at, interrupt) = (name.clone(), host.to_owned(), self.ctx.interrupt.clone());
                    let asked = tokio::task::spawn_blocking(move || helper::ask(&ask, &at, &interrupt)).await;
                    asked.map_err(|e| self.unreachable(url, &e.to_string()))?.map(|login| login.map(Arc::new)).map_err(
                        |source| ImageError::Helper {
                            program: helper::program(name),
                            host: host.to_owned(),
                            origin: candidate.origin.clone(),
                            source: Box::new(source),
                        },
                    )
                }
            };
            let by = match &candidate.kind {
                Kind::Login(_) => String::new(),
                Kind::Helper(name) => format!("{} of ", helper::program(name)),
            };
            match found {
                Ok(Some(login)) => {
                    self.ctx.detail(format!("login for {host}: {by}{}", candidate.origin));
                    return Ok(Some(login));
                }
                Ok(None) => self.ctx.detail(format!("no login for {host}: {by}{}", candidate.origin)),
                Err(error) => {
                    self.ctx.detail(error.to_string());
                    failed.get_or_insert(error);
                }
            }
        }
        // Only when nobody else knows one is it an error that a helper failed.
        if let Some(error) = failed {
            return Err(error);
        }
        self.ctx.detail(format!("no login for {host} is configured"));
        Ok(None)
    }

    /// Asks the token server.
    async fn token(
        &self,
        url: &str,
        realm: &str,
        service: Option<&str>,
        login: Option<&Login>,
    ) -> Result<Secret<String>, ImageError> {
        let refuse = |why: &str| self.unauthorized(url, &format!("asking for a token at {}: {why}", quote(realm)));
        let realm_url = Url::parse(realm).map_err(|_| refuse("it is not a URL"))?;
        match realm_url.scheme() {
            "https" => {}
            // A registry that is spoken to in the clear may have such a token server; a login goes nowhere else.
            "http" if self.scheme.get() == Some(&"http") || self.is_insecure() => {}
            _ => return Err(refuse("it is not an https address")),
        }
        let own = self.endpoint.reference.api_host();
        let own = Url::parse(&format!("https://{own}/")).ok();
        let same_host = own.is_some_and(|own| own.host_str() == realm_url.host_str());
        let http = if self.is_insecure() && !same_host {
            // Nobody said that this one may be anybody.
            let make = || async { self.way.client(false, realm_url.scheme() == "http") };
            self.verifying.get_or_try_init(make).await?
        } else {
            self.client().await?
        };
        let (repository, actions) = (self.endpoint.reference.repository(), self.actions());
        let request = || token::request(http, &realm_url, service, repository, actions, login);
        let response = self.send(realm, request).await?;
        let status = response.status();
        let body = read_bounded(response, token::MAX_ANSWER).await.ok().flatten().unwrap_or_default();
        let body = Secret::new(body);
        if status != StatusCode::OK {
            return Err(refuse(&explain(status, body.expose())));
        }
        token::read(body.expose()).ok_or_else(|| refuse("its answer holds no token"))
    }

    /// Sends a request that needs no authorization of ours, and again when the failure may pass.
    async fn send(&self, url: &str, request: impl Fn() -> RequestBuilder) -> Result<Response, ImageError> {
        let mut attempt = 0;
        loop {
            let sent = request().send().await;
            let last = attempt == self.retries;
            let wait = match sent {
                Ok(response) => {
                    let wait = retry_after(response.headers());
                    if !is_passing(response.status()) || last || wait.is_some_and(|w| w > MAX_WAIT) {
                        return Ok(response);
                    }
                    wait
                }
                Err(error) if last || (error.is_connect() && !error.is_timeout()) => {
                    let reason = chain(&error.without_url());
                    return Err(self.unreachable(url, &format!("asking for a token: {reason}")));
                }
                Err(_) => None,
            };
            tokio::time::sleep(pause(attempt, wait)).await;
            attempt += 1;
        }
    }

    fn unreachable(&self, url: &str, reason: &str) -> ImageError {
        ImageError::Unreachable { reference: self.reference.clone(), url: url.to_owned(), reason: reason.to_owned() }
    }

    fn unauthorized(&self, url: &str, reason: &str) -> ImageError {
        let hint = match self.login.get() {
            _ if self.actions() != token::PULL => {
                "this login, or nobody, may not write there: log in as somebody who may (docker login, podman login)"
            }
            Some(Some(_)) => {
                "the stored login is refused or has no right to pull it: log in again (docker login, podman login)"
            }
            _ => {
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

    /// A 401 of a place that a redirect led to. Its address is told without the path, which may hold a signature.
    fn asked_elsewhere(&self, url: &str, place: &Url) -> ImageError {
        ImageError::Unauthorized {
            reference: self.reference.clone(),
            url: url.to_owned(),
            reason: format!("it leads to {}, which asks for a login of its own", place.origin().ascii_serialization()),
            hint: "a registry's login is sent to the registry alone: its storage must take whom it sends there; try again, use a mirror, or tell those who run it",
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

/// Whether the answer came from whom we asked: scheme, host and port are the same, whatever redirects there were.
fn is_same_place(asked: &str, answered: &Url) -> bool {
    Url::parse(asked).is_ok_and(|asked| asked.origin() == answered.origin())
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
    fn a_place_is_scheme_host_and_port() {
        let same = |answered: &str| is_same_place("https://r.site/v2/a", &answered.parse().unwrap());
        assert!(same("https://r.site:443/other?x") && same("https://R.SITE/v2/a"));
        for other in ["http://r.site/v2/a", "https://r.site:444/v2/a", "https://a.r.site/v2/a", "https://x@s.site/v2/a"]
        {
            assert!(!same(other), "{other}");
        }
    }
}
