//! Logins: where they are looked for, and which one is a registry's. Text in, decisions out; [`super::helper`]
//! runs the programs that are named here.
//!
//! ```text
//! { "auths": {
//!     "quay.io":              { "auth": "dXNlcjpwYXNz" },        base64 of user:password
//!     "quay.io/team":         { "auth": "..." },                 the longest key that fits wins
//!     "registry.site":        { "identitytoken": "..." },        exchanged for a token that may pull
//!     "https://index.docker.io/v1/": { "auth": "..." } },        Docker Hub's historic key
//!   "credHelpers": { "ghcr.io": "gh" },                          docker-credential-gh knows this registry's
//!   "credsStore": "secretservice" }                              and this program those of all others
//! ```
//!
//! Within a file a registry's own helper comes first, then its keys, then the file's store. Files come in the
//! caller's order. `credential-helpers` of registries.conf may put programs before, or in place of, the files.
//!
//! Formats: containers-auth.json(5), docker `config.json`.

use super::RegistryReference;
use super::registries::AUTH_FILES;
use crate::secret::Secret;
use base64::Engine as _;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// In place of a user's name: the password is an identity token.
pub const IDENTITY_TOKEN: &str = "<token>";

/// A user's name and password or token for one registry.
pub struct Login {
    /// The user's name; `<token>` when the password is an identity token, as credential helpers say it.
    pub user: String,
    /// The password or access token.
    pub password: Secret<String>,
}

impl Login {
    /// Whether the password is an identity token, which is exchanged at the registry's token server.
    pub fn is_identity_token(&self) -> bool {
        self.user == IDENTITY_TOKEN
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({}, ..)", self.user)
    }
}

/// A place where a registry's login may be.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What is there.
    pub kind: Kind,
    /// File and key, for messages.
    pub origin: String,
}

/// A login, or who knows it.
#[derive(Clone, Debug)]
pub enum Kind {
    /// The login itself.
    Login(Arc<Login>),
    /// `docker-credential-NAME` knows it.
    Helper(String),
}

/// Where logins are looked for.
#[derive(Debug, Default)]
pub struct Credentials {
    given: BTreeMap<String, Arc<Login>>,
    files: Vec<AuthFile>,
    /// From registries.conf; empty means the files.
    helpers: Vec<(String, String)>,
}

/// A docker `config.json` or a containers `auth.json`.
#[derive(Debug)]
pub struct AuthFile {
    origin: String,
    auths: BTreeMap<String, Arc<Login>>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

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
#[serde(rename_all = "camelCase")]
struct FileText {
    #[serde(default)]
    auths: BTreeMap<String, EntryText>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct EntryText {
    auth: Option<Secret<String>>,
    identitytoken: Option<Secret<String>>,
}

impl AuthFile {
    /// Reads the text of the file at `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, AuthFileError> {
        let file: FileText = serde_json::from_str(text).map_err(|e| AuthFileError::Json { line: e.line() })?;
        let (mut auths, mut historic) = (BTreeMap::new(), Vec::new());
        for (key, entry) in file.auths {
            // Entries with neither say that a helper holds the login.
            let filled = |value: Option<Secret<String>>| value.filter(|v| !v.expose().is_empty());
            let login = match (filled(entry.identitytoken), filled(entry.auth)) {
                (Some(token), _) => Login { user: IDENTITY_TOKEN.to_owned(), password: token },
                (None, Some(encoded)) => decode(&encoded).ok_or_else(|| AuthFileError::Entry { key: key.clone() })?,
                (None, None) => continue,
            };
            let normal = normal_key(&key);
            if normal == key {
                auths.insert(key, Arc::new(login));
            } else {
                historic.push((normal, login));
            }
        }
        // A key that is written as it is meant comes before one that has to be read so.
        for (key, login) in historic {
            auths.entry(key).or_insert_with(|| Arc::new(login));
        }
        let filled = |name: &String| !name.is_empty();
        let helpers = file.cred_helpers.into_iter().map(|(key, helper)| (normal_key(&key), helper));
        Ok(Self {
            origin: path.display().to_string(),
            auths,
            helpers: helpers.filter(|(_, helper)| filled(helper)).collect(),
            store: file.creds_store.filter(filled),
        })
    }

    fn candidates(&self, reference: &RegistryReference, into: &mut Vec<Candidate>) {
        let host = reference.host();
        if let Some(helper) = self.helpers.get(host) {
            // Whoever names a helper for a registry does not mean what else the file says of it.
            let origin = format!("credHelpers `{host}` in {}", self.origin);
            into.push(Candidate { kind: Kind::Helper(helper.clone()), origin });
            return;
        }
        if let Some((key, login)) = longest(&self.auths, reference) {
            into.push(Candidate { kind: Kind::Login(login), origin: format!("key `{key}` in {}", self.origin) });
        }
        if let Some(store) = &self.store {
            into.push(Candidate {
                kind: Kind::Helper(store.clone()),
                origin: format!("credsStore in {}", self.origin),
            });
        }
    }
}

impl Credentials {
    /// Adds a login for a registry, or for `HOST/NAMESPACE`. It comes before those of files and programs.
    pub fn insert(&mut self, key: &str, login: Login) {
        self.given.insert(normal_key(key), Arc::new(login));
    }

    /// Adds a file, which comes after those that are there.
    pub fn add_file(&mut self, file: AuthFile) {
        self.files.push(file);
    }

    /// `credential-helpers` of registries.conf: programs, and the word that means the files, best first.
    pub fn use_helpers(&mut self, helpers: &[String], origin: &str) {
        self.helpers = helpers.iter().map(|name| (name.clone(), origin.to_owned())).collect();
    }

    /// The files, for messages.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.origin.as_str())
    }

    /// Where the login for an image may be, best first.
    pub fn candidates(&self, reference: &RegistryReference) -> Vec<Candidate> {
        let mut found = Vec::new();
        if let Some((key, login)) = longest(&self.given, reference) {
            found.push(Candidate { kind: Kind::Login(login), origin: format!("the given key `{key}`") });
        }
        let files = [(AUTH_FILES.to_owned(), String::new())];
        let places = if self.helpers.is_empty() { &files[..] } else { &self.helpers };
        for (name, origin) in places {
            if name == AUTH_FILES {
                self.files.iter().for_each(|file| file.candidates(reference, &mut found));
            } else {
                found.push(Candidate {
                    kind: Kind::Helper(name.clone()),
                    origin: format!("credential-helpers in {origin}"),
                });
            }
        }
        found
    }
}

/// The longest key that is the image's registry, or a leading part of its name.
fn longest(logins: &BTreeMap<String, Arc<Login>>, reference: &RegistryReference) -> Option<(String, Arc<Login>)> {
    let full = format!("{}/{}", reference.host(), reference.repository());
    let mut key = full.as_str();
    loop {
        if let Some(login) = logins.get(key) {
            return Some((key.to_owned(), login.clone()));
        }
        key = key.rsplit_once('/')?.0;
    }
}

fn decode(encoded: &Secret<String>) -> Option<Login> {
    let bytes = Secret::new(base64::engine::general_purpose::STANDARD.decode(encoded.expose().trim()).ok()?);
    let text = std::str::from_utf8(bytes.expose()).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Login { user: user.to_owned(), password: Secret::new(password.trim_end_matches('\0').to_owned()) })
}

/// A key that is a URL means its host; Docker Hub has several names.
fn normal_key(key: &str) -> String {
    let key = key.trim_end_matches('/');
    let key = match key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key,
    };
    match key {
        "index.docker.io" | "index.docker.io/v1" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Reference;
    use super::*;

    fn registry(text: &str) -> RegistryReference {
        let Reference::Registry(r) = text.parse().unwrap() else { panic!("{text}") };
        r
    }

    fn file(name: &str, text: &str) -> AuthFile {
        AuthFile::parse(Path::new(name), text).unwrap_or_else(|e| panic!("{e}"))
    }

    /// `user:password` or `!helper`, then where from.
    fn shown(credentials: &Credentials, image: &str) -> Vec<String> {
        let show = |candidate: Candidate| {
            let what = match candidate.kind {
                Kind::Login(login) => format!("{}:{}", login.user, login.password.expose()),
                Kind::Helper(name) => format!("!{name}"),
            };
            format!("{what} {}", candidate.origin)
        };
        credentials.candidates(&registry(image)).into_iter().map(show).collect()
    }

    #[test]
    fn the_longest_key_wins_and_docker_hub_has_many_names() {
        // base64 of `hub:one`, `team:two:three`, `quay:four`
        let mut credentials = Credentials::default();
        credentials.add_file(file(
            "f",
            r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOm9uZQ=="},
            "quay.io/team": {"auth": "dGVhbTp0d286dGhyZWU="},
            "quay.io": {"auth": "cXVheTpmb3Vy"},
            "https://old.site/v2/": {"auth": "cXVheTpmb3Vy"},
            "token.site": {"auth": "aHViOm9uZQ==", "identitytoken": "tok"},
            "ghcr.io": {}}}"#,
        ));
        for (image, want) in [
            ("ubuntu", vec!["hub:one key `docker.io` in f"]),
            ("quay.io/team/a", vec!["team:two:three key `quay.io/team` in f"]),
            ("quay.io/other/a", vec!["quay:four key `quay.io` in f"]),
            ("quay.io/teamster/a", vec!["quay:four key `quay.io` in f"]),
            ("old.site/a", vec!["quay:four key `old.site` in f"]),
            ("token.site/a", vec!["<token>:tok key `token.site` in f"]),
            ("ghcr.io/a", vec![]),
        ] {
            assert_eq!(shown(&credentials, image), want, "{image}");
        }
    }

    #[test]
    fn files_helpers_and_stores_in_their_order() {
        let mut credentials = Credentials::default();
        credentials.add_file(file(
            "one",
            r#"{"auths": {"a.site": {"auth": "aHViOm9uZQ=="}, "b.site": {"auth": "aHViOm9uZQ=="}},
                "credHelpers": {"a.site": "own", "https://index.docker.io/v1/": "hub"}}"#,
        ));
        credentials.add_file(file("two", r#"{"auths": {"b.site": {"auth": "cXVheTpmb3Vy"}}, "credsStore": "all"}"#));
        assert_eq!(
            shown(&credentials, "a.site/x"),
            ["!own credHelpers `a.site` in one", "!all credsStore in two"],
            "a registry's own helper stands in for the keys of its file"
        );
        assert_eq!(
            shown(&credentials, "b.site/x"),
            ["hub:one key `b.site` in one", "quay:four key `b.site` in two", "!all credsStore in two"]
        );
        assert_eq!(shown(&credentials, "ubuntu")[0], "!hub credHelpers `docker.io` in one");

        credentials.use_helpers(&["first".to_owned(), AUTH_FILES.to_owned()], "r.conf");
        assert_eq!(
            shown(&credentials, "b.site/x")[..2],
            ["!first credential-helpers in r.conf", "hub:one key `b.site` in one"]
        );
        credentials.use_helpers(&["first".to_owned()], "r.conf");
        assert_eq!(shown(&credentials, "b.site/x").len(), 1, "files count only when they are named");
        credentials.insert("b.site/x", Login { user: "u".to_owned(), password: Secret::new("p".to_owned()) });
        assert_eq!(shown(&credentials, "b.site/x")[0], "u:p the given key `b.site/x`");
    }

    #[test]
    fn a_bad_file_is_an_error_without_its_content() {
        for text in [
            r#"{"auths":{"h":{"auth":"s3cret!"}}}"#,
            "{\"auths\":[s3cret",
            r#"{"auths":{"h":{"auth":["s3cret"]}}}"#,
            r#"{"auths":{"h":"s3cret"}}"#,
        ] {
            let error = AuthFile::parse(Path::new("f"), text).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
        // base64 of `hub:s3cret`
        let text = r#"{"auths":{"h":{"auth":"aHViOnMzY3JldA=="}}}"#;
        let shown = format!("{:?}", file("f", text));
        assert!(shown.contains("hub") && !shown.contains("s3cret") && !shown.contains("aHVi"), "{shown}");
    }
}
