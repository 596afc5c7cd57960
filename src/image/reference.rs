//! What a user writes to name an image, and what it means.
//!
//! ```text
//! ubuntu:24.04                              docker.io/library/ubuntu:24.04
//! docker.io/library/ubuntu:24.04            a registry, a repository, a tag
//! mirror.site:5000/base/ubuntu              the tag is `latest`
//! quay.io/a/b@sha256:447b...                pinned by digest
//! quay.io/a/b:1.0@sha256:447b...            pinned; the tag is for the reader
//! docker://quay.io/a/b:1.0                  the same, as skopeo writes it
//! oci:/srv/images/base                      the only image of an OCI layout on disk
//! oci:/srv/images/base:24.04                one of several
//! oci:/srv/images/base@sha256:447b...
//! ```
//!
//! Grammar: the distribution project's `reference` package as its documentation gives it (the first part is a
//! registry when it holds a `.` or a `:` or is `localhost`); layouts: OCI image-spec `image-layout.md`.

use super::Digest;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The registry that short names mean.
const DOCKER_HUB: &str = "docker.io";

/// An image's name. `Display` gives the full form, which parses to the same value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// In a registry.
    Registry(RegistryReference),
    /// In an OCI layout on disk.
    Layout(LayoutReference),
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// An image in an OCI layout.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayoutReference {
    dir: PathBuf,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text names no image.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{text}` is not an image reference: {reason} (examples: ubuntu:24.04, registry.site:5000/base/ubuntu@sha256:..., oci:DIR:TAG)"
)]
pub struct BadReference {
    text: String,
    reason: String,
}

impl Reference {
    /// The digest when the reference pins one.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Registry(r) => r.digest.as_ref(),
            Self::Layout(l) => l.digest.as_ref(),
        }
    }
}

impl RegistryReference {
    /// The host as people write it: `docker.io`, `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's name inside the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; a reference without tag and digest means `latest`.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// What the registry is asked for: the digest when there is one, else the tag.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The host that answers: Docker Hub's API is not at the name people write.
    pub fn api_host(&self) -> &str {
        if self.host == DOCKER_HUB { "registry-1.docker.io" } else { &self.host }
    }

    /// Whether the registry is this machine itself, the only one that is spoken to without TLS.
    pub fn is_loopback(&self) -> bool {
        let host = match self.host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.host.split(':').next().unwrap_or_default(),
        };
        host == "localhost"
            || host.parse::<Ipv4Addr>().is_ok_and(|a| a.is_loopback())
            || host.parse::<Ipv6Addr>().is_ok_and(|a| a.is_loopback())
    }
}

impl LayoutReference {
    /// The layout's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The digest, when the reference pins one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The value of `org.opencontainers.image.ref.name` that is looked for.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

impl FromStr for Reference {
    type Err = BadReference;

    fn from_str(text: &str) -> Result<Self, BadReference> {
        parse(text).map_err(|reason| BadReference { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if let Some(bad) = text.chars().find(|c| c.is_control()) {
        return Err(format!("it holds the character {bad:?}"));
    }
    if let Some(rest) = text.strip_prefix("oci:") {
        return parse_layout(rest).map(Reference::Layout);
    }
    for kind in ["oci-archive:", "docker-archive:", "docker-daemon:", "containers-storage:", "dir:"] {
        if text.starts_with(kind) {
            return Err(format!(
                "`{kind}` is not supported; unpack it into an OCI layout first (skopeo copy {text} oci:DIR:TAG)"
            ));
        }
    }
    let name = text.strip_prefix("docker://").unwrap_or(text);
    if name.contains("://") {
        return Err("it is a URL; write HOST[:PORT]/NAME[:TAG] without the scheme".to_owned());
    }
    parse_registry(name).map(Reference::Registry)
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), String> {
    match text.split_once('@') {
        None => Ok((text, None)),
        Some((name, digest)) => Ok((name, Some(digest.parse().map_err(|e: super::digest::BadDigest| e.to_string())?))),
    }
}

fn parse_layout(text: &str) -> Result<LayoutReference, String> {
    // An `@` may be part of the folder's name, so only `@sha256:` at the end counts.
    let (text, digest) = match text.rfind("@sha256:") {
        Some(at) => (&text[..at], split_digest(&text[at..])?.1),
        None => (text, None),
    };
    let (dir, tag) = match text.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag)),
        _ => (text, None),
    };
    if dir.is_empty() {
        return Err("the folder's name is missing after `oci:`".to_owned());
    }
    if tag.is_some_and(str::is_empty) {
        return Err("the tag after `:` is empty".to_owned());
    }
    Ok(LayoutReference { dir: PathBuf::from(dir), tag: tag.map(str::to_owned), digest })
}

fn parse_registry(text: &str) -> Result<RegistryReference, String> {
    let (name, digest) = split_digest(text)?;
    let (host, rest) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest),
        _ => (DOCKER_HUB, name),
    };
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    check_host(host)?;
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        other => other,
    };
    let repository = if host == DOCKER_HUB && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    check_repository(&repository)?;
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let tag = match (tag, digest) {
        (None, None) => Some("latest"),
        (tag, _) => tag,
    };
    Ok(RegistryReference { host: host.to_owned(), repository, tag: tag.map(str::to_owned), digest })
}

fn is_host(part: &str) -> bool {
    part.contains('.') || part.contains(':') || part == "localhost" || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or_else(|| format!("`{host}` lacks a `]`"))?;
        address.parse::<Ipv6Addr>().map_err(|_| format!("`{address}` is not an IPv6 address"))?;
        (None, port.strip_prefix(':').or_else(|| port.is_empty().then_some("")))
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), Some("")),
        }
    };
    let port = port.ok_or_else(|| format!("`{host}` is not a host name"))?;
    if host.ends_with(':') || !port.is_empty() && !port.parse::<u16>().is_ok_and(|p| p > 0) {
        return Err(format!("`{port}` is not a port"));
    }
    let fine = name.is_none_or(|name| {
        !name.is_empty()
            && name.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            })
    });
    if fine { Ok(()) } else { Err(format!("`{host}` is not a host name")) }
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() || repository.len() > 255 {
        return Err("the repository's name must have 1 to 255 characters".to_owned());
    }
    if let Some(bad) = repository.split('/').find(|part| !is_path_component(part)) {
        return Err(format!(
            "`{bad}` is not a part of a repository's name (lowercase letters and digits, inside also `.`, `_`, `__` and `-`)"
        ));
    }
    Ok(())
}

/// `[a-z0-9]+ ( ( "." | "_" | "__" | "-"+ ) [a-z0-9]+ )*`
fn is_path_component(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    if !bytes.first().is_some_and(|b| word(*b)) || !bytes.last().is_some_and(|b| word(*b)) {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), String> {
    let mut bytes = tag.bytes();
    let fine = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && tag.len() <= 128;
    if fine { Ok(()) } else { Err(format!("`{tag}` is not a tag (letters, digits, `_`, `.`, `-`; at most 128)")) }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tag, digest) = match self {
            Self::Registry(r) => {
                write!(f, "{}/{}", r.host, r.repository)?;
                (&r.tag, &r.digest)
            }
            Self::Layout(l) => {
                write!(f, "oci:{}", l.dir.display())?;
                (&l.tag, &l.digest)
            }
        };
        if let Some(tag) = tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn full_forms() {
        for (text, want) in [
            ("ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
            ("ubuntu", "docker.io/library/ubuntu:latest"),
            ("rockylinux/rockylinux:8", "docker.io/rockylinux/rockylinux:8"),
            ("index.docker.io/ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
            ("docker://quay.io/a/b:1", "quay.io/a/b:1"),
            ("localhost/a", "localhost/a:latest"),
            ("127.0.0.1:5000/library/debian:12", "127.0.0.1:5000/library/debian:12"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            (&format!("ubuntu@{DIGEST}"), &format!("docker.io/library/ubuntu@{DIGEST}")),
            (&format!("h:1/n:t@{DIGEST}"), &format!("h:1/n:t@{DIGEST}")),
            ("oci:/a/b", "oci:/a/b"),
            ("oci:/a/b:t", "oci:/a/b:t"),
            ("oci:/a:x/b", "oci:/a:x/b"),
            ("oci:rel:24.04", "oci:rel:24.04"),
            (&format!("oci:/a@b@{DIGEST}"), &format!("oci:/a@b@{DIGEST}")),
        ] {
            let parsed: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parsed.to_string(), want);
            assert_eq!(want.parse::<Reference>().unwrap(), parsed, "{want}");
        }
    }

    #[test]
    fn refusals_say_why() {
        for (text, part) in [
            ("", "empty"),
            ("https://quay.io/a", "URL"),
            ("Ubuntu", "lowercase"),
            ("quay.io/a//b", "not a part"),
            ("quay.io/a_-b", "not a part"),
            ("quay.io/../x", "not a part"),
            ("quay.io:0/x", "port"),
            ("quay.io:99999/x", "port"),
            ("qu_ay.io/x", "host name"),
            ("[::1/x:y", "lacks"),
            ("ubuntu:", "tag"),
            ("ubuntu:a b", "tag"),
            ("ubuntu@sha256:12", "64"),
            ("ubuntu@md5:12", "sha256"),
            ("oci:", "folder"),
            ("oci:a:", "tag"),
            ("oci-archive:x.tar", "skopeo"),
            ("a\nb", "character"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn loopback_is_the_only_plain_http() {
        for (text, want) in [
            ("localhost:5000/a", true),
            ("127.0.0.1:1/a", true),
            ("127.9.9.9/a", true),
            ("[::1]:5000/a", true),
            ("localhost.evil.com/a", false),
            ("127.0.0.1.evil.com/a", false),
            ("10.0.0.1:5000/a", false),
            ("ubuntu", false),
        ] {
            let Reference::Registry(r) = text.parse().unwrap() else { panic!("{text}") };
            assert_eq!(r.is_loopback(), want, "{text}");
        }
    }
}
