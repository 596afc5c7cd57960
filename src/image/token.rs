//! Tokens: what a registry asks for when it says 401, and how it is got.
//!
//! ```text
//! 401 WWW-Authenticate: Bearer realm="https://auth.site/token",service="registry.site"
//!   GET  realm?service=...&scope=repository:NAME:pull          with user and password, or without
//!   POST realm   grant_type=refresh_token&refresh_token=...    for an identity token
//!   { "token": "..." } or { "access_token": "..." }
//! 401 WWW-Authenticate: Basic realm="..."                      user and password with each request
//! ```
//!
//! Protocol: the distribution project's "Token Authentication Specification" and "OAuth2 Token Authentication".

use super::credentials::Login;
use crate::secret::Secret;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Url};
use serde::Deserialize;

/// No honest answer is larger: tokens that list many rights have some kilobytes.
pub const MAX_ANSWER: u64 = 1 << 20;

const CLIENT: &str = "slurm-factory";

/// What a token may be asked for: reading, writing too, and removing too.
pub const PULL: &str = "pull";
/// See [`PULL`].
pub const PUSH: &str = "pull,push";
/// See [`PULL`].
pub const DELETE: &str = "pull,push,delete";

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A token from `realm`.
    Bearer {
        /// The token server's address.
        realm: String,
        /// The registry's name for itself.
        service: Option<String>,
    },
    /// User and password.
    Basic,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret<String>>,
    access_token: Option<Secret<String>>,
}

impl Challenge {
    /// Reads the headers of a 401. Of several challenges a token is preferred.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()) {
            for challenge in http_auth::parse_challenges(value).unwrap_or_default() {
                let parameter = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped()).filter(|v| !v.is_empty())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = parameter("realm")
                {
                    return Some(Self::Bearer { realm, service: parameter("service") });
                }
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

/// The request for a token for `repository`; `actions` is one of the above.
pub fn request(
    http: &reqwest::Client,
    realm: &Url,
    service: Option<&str>,
    repository: &str,
    actions: &str,
    login: Option<&Login>,
) -> RequestBuilder {
    let scope = format!("repository:{repository}:{actions}");
    let mut url = realm.clone();
    match login {
        Some(login) if login.is_identity_token() => {
            let mut form = Url::parse("http://localhost/").unwrap_or_else(|_| realm.clone());
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service.unwrap_or_default())
                .append_pair("client_id", CLIENT)
                .append_pair("scope", &scope)
                .append_pair("refresh_token", login.password.expose());
            let body = form.query().unwrap_or_default().to_owned();
            http.post(url).header("Content-Type", "application/x-www-form-urlencoded").body(body)
        }
        login => {
            url.query_pairs_mut().append_pair("scope", &scope);
            if let Some(service) = service {
                url.query_pairs_mut().append_pair("service", service);
            }
            let request = http.get(url);
            match login {
                Some(login) => request.basic_auth(&login.user, Some(login.password.expose())),
                None => request,
            }
        }
    }
}

/// The token in an answer; `None` when there is none.
pub fn read(body: &[u8]) -> Option<Secret<String>> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.expose().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::of(&headers)
    }

    #[test]
    fn challenges_are_read_and_a_token_is_preferred() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        for (values, want) in [
            (
                vec![r#"Bearer realm="https://a.site/token",service="r",scope="repository:a:pull""#],
                bearer("https://a.site/token", Some("r")),
            ),
            (vec![r#"bearer Realm="https://a.site/t?x=1""#], bearer("https://a.site/t?x=1", None)),
            (vec![r#"Basic realm="x""#, r#"Bearer realm="https://b""#], bearer("https://b", None)),
            (vec![r#"Basic realm="x", Bearer realm="https://b""#], bearer("https://b", None)),
            (vec![r#"BASIC realm="x""#], Some(Challenge::Basic)),
            (vec!["Bearer"], None),
            (vec!["Negotiate"], None),
            (vec!["\"\"\""], None),
            (vec![], None),
        ] {
            assert_eq!(challenge(&values), want, "{values:?}");
        }
    }

    #[test]
    fn requests_for_users_nobody_and_identity_tokens() {
        let http = reqwest::Client::builder().tls_certs_only([]).build().unwrap();
        let realm: Url = "https://a.site/token?account=x".parse().unwrap();
        let login = |user: &str| Login { user: user.to_owned(), password: Secret::new("p&q".to_owned()) };
        let build = |login: Option<&Login>| request(&http, &realm, Some("r s"), "a/b", PULL, login).build().unwrap();
        let anonymous = build(None);
        assert_eq!(anonymous.url().query(), Some("account=x&scope=repository%3Aa%2Fb%3Apull&service=r+s"));
        assert!(!anonymous.headers().contains_key("authorization"));
        assert!(build(Some(&login("me"))).headers()["authorization"].is_sensitive());
        let identity = build(Some(&login("<token>")));
        assert_eq!((identity.method().as_str(), identity.url().as_str()), ("POST", realm.as_str()));
        assert!(!identity.headers().contains_key("authorization"));
        let body = String::from_utf8(identity.body().unwrap().as_bytes().unwrap().to_vec()).unwrap();
        assert!(body.contains("refresh_token=p%26q") && body.contains("scope=repository%3Aa%2Fb%3Apull"), "{body}");
    }

    #[test]
    fn answers() {
        let text = |body: &[u8]| read(body).map(|t| t.expose().clone());
        assert_eq!(text(br#"{"token":"a","expires_in":60}"#).as_deref(), Some("a"));
        assert_eq!(text(br#"{"access_token":"b"}"#).as_deref(), Some("b"));
        assert_eq!(text(br#"{"token":"","access_token":"b"}"#).as_deref(), Some("b"));
        assert_eq!(text(br#"{"token":"a","access_token":"b"}"#).as_deref(), Some("a"));
        for body in [&br"{}"[..], b"", b"<html>", br#"{"token":1}"#] {
            assert_eq!(text(body), None);
        }
    }
}
