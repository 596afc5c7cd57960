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
//! oci-archive:/srv/base.tar.zst             the same layout as one file: a tar archive, plain, gzip or zstd
//! oci-archive:/srv/base.tar:24.04           one of several
//! docker-archive:/srv/base.tar              what `docker save` and `podman save` write
//! docker-archive:/srv/base.tar:ubuntu:24.04 one of several, by its name; or by its place: `:@0`
//! dir:/srv/rootfs                           a folder that is a root file system already
//! ```
//!
//! Grammar: the distribution project's `reference` package as its documentation gives it (the first part is a
//! registry when it holds a `.` or a `:` or is `localhost`); layouts: OCI image-spec `image-layout.md`; archives:
//! containers-transports(5), where the first `:` ends the file's name, as a tag may hold one. `dir:` is not what that
//! page calls so (its own transport of loose blobs): such a folder is recognised and refused with what to type.

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
    /// In an OCI layout that is one archive.
    OciArchive(LayoutReference),
    /// In what `docker save` writes.
    DockerArchive(DockerArchiveReference),
    /// A root file system.
    Folder(PathBuf),
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// An image in an OCI layout: a folder, or an archive of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayoutReference {
    path: PathBuf,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// An image in a Docker archive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DockerArchiveReference {
    path: PathBuf,
    which: Option<Which>,
}

/// Which image of a Docker archive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// The one that has this name among its `RepoTags`.
    Named(RegistryReference),
    /// The one at this place in `manifest.json`, from 0.
    At(usize),
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
            Self::Layout(l) | Self::OciArchive(l) => l.digest.as_ref(),
            Self::DockerArchive(_) | Self::Folder(_) => None,
        }
    }

    /// The file or folder of this machine that holds the image; `None` for one in a registry.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Registry(_) => None,
            Self::Layout(l) | Self::OciArchive(l) => Some(&l.path),
            Self::DockerArchive(d) => Some(&d.path),
            Self::Folder(path) => Some(path),
        }
    }

    /// The same image whatever folder the program is in later: a relative path is one below `cwd`.
    #[must_use]
    pub fn below(mut self, cwd: &Path) -> Self {
        match &mut self {
            Self::Registry(_) => {}
            Self::Layout(LayoutReference { path, .. })
            | Self::OciArchive(LayoutReference { path, .. })
            | Self::DockerArchive(DockerArchiveReference { path, .. })
            | Self::Folder(path) => *path = cwd.join(path.strip_prefix(".").unwrap_or(path)),
        }
        self
    }

    /// The image's tag, when the reference names it by one.
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Registry(r) => r.tag(),
            Self::Layout(l) | Self::OciArchive(l) => l.tag(),
            Self::DockerArchive(d) => match &d.which {
                Some(Which::Named(name)) => name.tag(),
                _ => None,
            },
            Self::Folder(_) => None,
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

    /// The digest, when the reference pins one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same name without a pinned digest; `None` when nothing would be left to name it by.
    pub(crate) fn unpinned(&self) -> Option<Self> {
        self.tag.is_some().then(|| Self { digest: None, ..self.clone() })
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

    /// Whether the registry is this machine itself, the only one that is spoken to without TLS unless it is
    /// configured otherwise.
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
    /// The image `tag` or `digest` of the layout at `path`.
    pub(crate) fn new(path: &Path, tag: Option<&str>, digest: Option<Digest>) -> Self {
        Self { path: path.to_owned(), tag: tag.map(str::to_owned), digest }
    }

    /// The layout's folder or archive.
    pub fn path(&self) -> &Path {
        &self.path
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

impl DockerArchiveReference {
    /// One image of the archive at `path`.
    pub(crate) fn new(path: &Path, which: Option<Which>) -> Self {
        Self { path: path.to_owned(), which }
    }

    /// The archive.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which of its images; `None` means the only one.
    pub fn which(&self) -> Option<&Which> {
        self.which.as_ref()
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
    if let Some(rest) = text.strip_prefix("oci-archive:") {
        return parse_oci_archive(rest).map(Reference::OciArchive);
    }
    if let Some(rest) = text.strip_prefix("docker-archive:") {
        return parse_docker_archive(rest).map(Reference::DockerArchive);
    }
    if let Some(rest) = text.strip_prefix("dir:") {
        if rest.is_empty() {
            return Err("the folder's name is missing after `dir:`".to_owned());
        }
        return Ok(Reference::Folder(PathBuf::from(rest)));
    }
    for kind in ["docker-daemon:", "containers-storage:"] {
        if text.starts_with(kind) {
            return Err(format!(
                "`{kind}` is not supported; copy it into an OCI layout first (skopeo copy {text} oci:DIR:TAG)"
            ));
        }
    }
    let name = text.strip_prefix("docker://").unwrap_or(text);
    if name.contains("://") {
        return Err("it is a URL; write HOST[:PORT]/NAME[:TAG] without the scheme".to_owned());
    }
    parse_registry(name).map(Reference::Registry)
}

/// The `oci:` or `docker://` before a name, when there is one: such a text is no short name.
pub(super) fn transport(text: &str) -> Option<&str> {
    const KNOWN: [&str; 7] =
        ["docker://", "oci:", "oci-archive:", "docker-archive:", "docker-daemon:", "containers-storage:", "dir:"];
    KNOWN.into_iter().find(|kind| text.starts_with(kind)).or_else(|| text.contains("://").then_some("://"))
}

/// Reads `HOST[:PORT]/NAME[:TAG][@DIGEST]`, whose first part is always a registry.
pub(super) fn parse_full(text: &str) -> Result<RegistryReference, BadReference> {
    let bad = |reason: String| BadReference { text: text.to_owned(), reason };
    let (host, rest) = text.split_once('/').ok_or_else(|| bad("there is no name after the registry".to_owned()))?;
    check_host(host).map_err(bad)?;
    if is_host(host) {
        return parse_registry(text).map_err(bad);
    }
    // A host without a dot, as inside a site. The grammar takes it for a part of a name.
    let parsed = parse_registry(&format!("localhost/{rest}")).map_err(bad)?;
    Ok(RegistryReference { host: host.to_owned(), ..parsed })
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
    Ok(LayoutReference { path: PathBuf::from(dir), tag: tag.map(str::to_owned), digest })
}

fn parse_oci_archive(text: &str) -> Result<LayoutReference, String> {
    let (text, digest) = match text.rfind("@sha256:") {
        Some(at) => (&text[..at], split_digest(&text[at..])?.1),
        None => (text, None),
    };
    let (path, tag) = split_file(text)?;
    Ok(LayoutReference { path, tag: tag.map(str::to_owned), digest })
}

fn parse_docker_archive(text: &str) -> Result<DockerArchiveReference, String> {
    let (path, which) = split_file(text)?;
    let which = match which {
        None => None,
        Some(which) => Some(match which.strip_prefix('@') {
            Some(place) => Which::At(place.parse().map_err(|_| format!("`@{place}` is not a place: write @0, @1"))?),
            None => Which::Named(parse_registry(which)?),
        }),
    };
    Ok(DockerArchiveReference { path, which })
}

/// The first `:` ends the file's name.
fn split_file(text: &str) -> Result<(PathBuf, Option<&str>), String> {
    let (path, rest) = match text.split_once(':') {
        Some((path, rest)) => (path, Some(rest)),
        None => (text, None),
    };
    if path.is_empty() {
        return Err("the file's name is missing after the `:`".to_owned());
    }
    if rest.is_some_and(str::is_empty) {
        return Err("the tag after `:` is empty".to_owned());
    }
    Ok((PathBuf::from(path), rest))
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

/// Whether a text can only be an image's whole name, with its registry, and no mere tag.
pub(crate) fn is_whole_name(text: &str) -> bool {
    text.split_once('/').is_some_and(|(host, _)| is_host(host)) && parse_registry(text).is_ok()
}

/// Whether the first part of a name is a registry.
pub(super) fn is_host(part: &str) -> bool {
    part.contains('.') || part.contains(':') || part == "localhost" || part.bytes().any(|b| b.is_ascii_uppercase())
}

/// `HOST[:PORT]`
pub(super) fn check_host(host: &str) -> Result<(), String> {
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

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        tag_and_digest(f, self.tag.as_deref(), self.digest.as_ref())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(r) => r.fmt(f),
            Self::Layout(l) => {
                write!(f, "oci:{}", l.path.display())?;
                tag_and_digest(f, l.tag.as_deref(), l.digest.as_ref())
            }
            Self::OciArchive(l) => {
                write!(f, "oci-archive:{}", l.path.display())?;
                tag_and_digest(f, l.tag.as_deref(), l.digest.as_ref())
            }
            Self::DockerArchive(d) => {
                write!(f, "docker-archive:{}", d.path.display())?;
                match &d.which {
                    None => Ok(()),
                    Some(Which::Named(name)) => write!(f, ":{name}"),
                    Some(Which::At(place)) => write!(f, ":@{place}"),
                }
            }
            Self::Folder(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

fn tag_and_digest(f: &mut fmt::Formatter<'_>, tag: Option<&str>, digest: Option<&Digest>) -> fmt::Result {
    if let Some(tag) = tag {
        write!(f, ":{tag}")?;
    }
    digest.map_or(Ok(()), |digest| write!(f, "@{digest}"))
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
            ("oci-archive:/a.tar", "oci-archive:/a.tar"),
            ("oci-archive:a.tar:localhost/x:t", "oci-archive:a.tar:localhost/x:t"),
            (&format!("oci-archive:a.tar:t@{DIGEST}"), &format!("oci-archive:a.tar:t@{DIGEST}")),
            ("docker-archive:a.tar", "docker-archive:a.tar"),
            ("docker-archive:a.tar:ubuntu", "docker-archive:a.tar:docker.io/library/ubuntu:latest"),
            ("docker-archive:a.tar:h:5000/u:1", "docker-archive:a.tar:h:5000/u:1"),
            ("docker-archive:a.tar:@1", "docker-archive:a.tar:@1"),
            ("dir:/srv/root:fs", "dir:/srv/root:fs"),
        ] {
            let parsed: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parsed.to_string(), want);
            assert_eq!(want.parse::<Reference>().unwrap(), parsed, "{want}");
        }
    }

    #[test]
    fn a_relative_file_is_made_absolute_and_a_registry_is_left_alone() {
        let cwd = Path::new("/work");
        for (text, want) in [
            ("oci:a:t", "oci:/work/a:t"),
            ("oci-archive:./a.tar", "oci-archive:/work/a.tar"),
            ("docker-archive:/a.tar:@0", "docker-archive:/a.tar:@0"),
            ("dir:../r", "dir:/work/../r"),
            ("ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().below(cwd).to_string(), want);
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
            ("docker-daemon:x:1", "skopeo"),
            ("oci-archive:", "file"),
            ("oci-archive:x.tar:", "tag"),
            ("docker-archive:x.tar:@x", "place"),
            ("docker-archive:x.tar:A b", "not a part"),
            ("dir:", "folder"),
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
