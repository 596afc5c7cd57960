//! Writing to a repository: blobs, manifests, tags.
//!
//! ```text
//! HEAD   /v2/NAME/blobs/DIGEST                         is it there? then it is not sent
//! POST   /v2/NAME/blobs/uploads/                       202, Location: where the bytes go
//! PATCH  LOCATION   Content-Range: 0-N                 202, the next Location: one piece after the other
//! GET    LOCATION                                      204, Range: 0-N: how much came before the connection was cut
//! PUT    LOCATION&digest=DIGEST                        201: the registry has compared the digest
//! PUT    /v2/NAME/manifests/TAG                        201
//! GET    /v2/NAME/tags/list                            Link: <...>; rel="next"
//! DELETE /v2/NAME/manifests/DIGEST                     202, or 405 where the registry allows no removal
//! ```
//!
//! A piece whose answer was lost may have been taken, so it is not sent again blindly: the registry is asked how far it is, and
//! where it does not say the blob begins anew. Registries that take no pieces get the file as one body. What a killed run began
//! is not gone on with; registries clear away unfinished uploads themselves.
//!
//! Protocol: OCI distribution-spec 1.1, "Push", "Content Discovery" and "Content Management".

use super::{BlobBody, ClientConfig, Ctx, Endpoint, ImageError, Registry, StatusCode, Url};
use super::{read_bounded, token};
use crate::image::retry::{backoff, is_passing};
use crate::image::{Digest, reference};
use bytes::Bytes;
use reqwest::Response;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK, LOCATION};
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// Bytes in a piece of a large blob; up to this size a blob goes in one request.
const PIECE: u64 = 16 << 20;

/// No honest page of tags is larger.
const MAX_TAGS: u64 = 32 << 20;

const OCTETS: &str = "application/octet-stream";

/// What becomes a blob.
#[derive(Clone, Copy)]
pub enum Content<'c> {
    /// In memory.
    Bytes(&'c [u8]),
    /// A file of this many bytes.
    File(&'c Path, u64),
}

/// Why a registry did not take, or give up, something.
#[derive(Debug)]
pub enum Refused {
    /// It was asked, and does not do it.
    Unsupported(String),
    /// Anything else.
    Failed(ImageError),
}

impl From<ImageError> for Refused {
    fn from(error: ImageError) -> Self {
        Self::Failed(error)
    }
}

/// How a try to send a blob ended, when not well.
enum Cut {
    /// It may go better.
    Passing(ImageError),
    /// This registry takes no pieces.
    NoPieces,
    Final(ImageError),
}

#[derive(Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

impl Content<'_> {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }

    fn piece(&self, offset: u64, length: u64) -> io::Result<Bytes> {
        use std::io::{Read as _, Seek as _};
        match self {
            Self::Bytes(bytes) => {
                let part = usize::try_from(offset).ok().and_then(|from| bytes.get(from..)).unwrap_or_default();
                let length = usize::try_from(length).unwrap_or(usize::MAX).min(part.len());
                Ok(Bytes::copy_from_slice(part.get(..length).unwrap_or_default()))
            }
            Self::File(path, _) => {
                let mut file = fs_err::File::open(*path)?;
                file.seek(io::SeekFrom::Start(offset))?;
                let mut bytes = Vec::new();
                file.take(length).read_to_end(&mut bytes)?;
                if (bytes.len() as u64) < length {
                    let error = io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read");
                    return Err(crate::fsutil::with_path(&error, "read", path));
                }
                Ok(bytes.into())
            }
        }
    }
}

impl Registry {
    /// The repository `HOST[:PORT]/NAME`, for reading and writing: at its own place, for what is written to a mirror is lost.
    /// `insecure`: it may be spoken to without TLS, or with a certificate that nobody knows. Nothing is sent yet.
    pub fn repository(name: &str, insecure: bool, config: &ClientConfig, ctx: &Ctx) -> Result<Self, ImageError> {
        let reference = reference::parse_full(name)?;
        let endpoint = config.registries.route(&reference)?.endpoints.into_iter().rfind(|endpoint| !endpoint.mirror);
        let mut endpoint = endpoint.unwrap_or(Endpoint { reference, insecure: None, mirror: false });
        if insecure && !endpoint.reference.is_loopback() {
            endpoint.insecure = Some(true);
        }
        Self::new(endpoint, name, config, config.retries, ctx)
    }

    pub(super) fn actions(&self) -> &'static str {
        *self.actions.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a token is asked for that may do this; what was granted for less is given up.
    fn wants(&self, actions: &'static str) {
        let mut now = self.actions.write().unwrap_or_else(PoisonError::into_inner);
        // Each is the beginning of the next.
        if now.len() < actions.len() {
            *now = actions;
            let mut granted = self.authorization.write().unwrap_or_else(PoisonError::into_inner);
            if matches!(granted.authorization, Some(super::Authorization::Bearer(_))) {
                *granted = super::Granted { number: granted.number + 1, authorization: None };
            }
        }
    }

    /// Whether the caller may write here: an upload is begun and given up.
    pub async fn check_writable(&self) -> Result<(), ImageError> {
        self.settle_scheme().await?;
        self.wants(token::PUSH);
        let location = self.begin().await.map_err(|cut| self.of(cut))?;
        // It may be left: registries clear them away.
        let _ = self.exchange(location.as_str(), &|http| http.delete(location.clone()), 0).await;
        Ok(())
    }

    /// Whether a blob is there, and its size where the registry says it: some proxies leave `Content-Length` out of answers to HEAD.
    pub async fn look_for(&self, digest: &Digest) -> Result<Option<Option<u64>>, ImageError> {
        self.settle_scheme().await?;
        let url = self.url(&format!("blobs/{digest}"));
        let response = self.exchange(&url, &|http| http.head(&url), self.retries).await?;
        match response.status() {
            StatusCode::OK => {
                Ok(Some(response.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok())))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refusal(&url, &format!("blob {digest}"), response).await),
        }
    }

    /// The body of a blob from `offset` on; `None` when it is not there.
    pub async fn blob_if_there(&self, digest: &Digest, offset: u64) -> Result<Option<BlobBody>, ImageError> {
        match self.blob(digest, offset).await {
            Ok(body) => Ok(Some(body)),
            Err(ImageError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The manifest under a tag or digest; `None` when there is none. Not checked.
    pub async fn manifest_if_there(&self, wanted: &str) -> Result<Option<Vec<u8>>, ImageError> {
        match self.manifest(wanted).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ImageError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Puts a blob where it is not yet.
    pub async fn put_blob(&self, digest: &Digest, content: Content<'_>) -> Result<(), ImageError> {
        if self.look_for(digest).await?.is_some() {
            return Ok(());
        }
        self.wants(token::PUSH);
        let mut pieces = content.size() > PIECE;
        let mut attempt = 0;
        loop {
            let sent = if pieces { self.in_pieces(digest, content).await } else { self.whole(digest, content).await };
            let error = match sent {
                Ok(()) => return Ok(()),
                Err(Cut::NoPieces) => {
                    pieces = false;
                    continue;
                }
                Err(Cut::Passing(error)) => error,
                Err(Cut::Final(error)) => return Err(error),
            };
            if attempt == self.retries {
                return Err(error);
            }
            tokio::time::sleep(backoff(attempt)).await;
            attempt += 1;
            // Only the answer may have been lost.
            if self.look_for(digest).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// Puts a manifest of this media type under a tag.
    pub async fn put_manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> Result<(), ImageError> {
        self.settle_scheme().await?;
        self.wants(token::PUSH);
        let url = self.url(&format!("manifests/{tag}"));
        let body = Bytes::copy_from_slice(bytes);
        let make = |http: &reqwest::Client| http.put(&url).header(CONTENT_TYPE, media_type).body(body.clone());
        let mut attempt = 0;
        loop {
            let response = self.exchange(&url, &make, self.retries).await?;
            match response.status() {
                StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED => return Ok(()),
                // docker-registry does not know a blob while another client puts the same.
                StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND if attempt < self.retries => {
                    tokio::time::sleep(backoff(attempt)).await;
                    attempt += 1;
                }
                _ => return Err(self.refusal(&url, "repository", response).await),
            }
        }
    }

    /// Every tag of the repository, sorted; none when there is no repository yet.
    pub async fn tags(&self) -> Result<Vec<String>, ImageError> {
        self.settle_scheme().await?;
        let mut url = self.url("tags/list");
        let mut found = Vec::new();
        let mut attempt = 0;
        loop {
            let response = self.exchange(&url, &|http| http.get(&url), self.retries).await?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => break,
                _ => return Err(self.refusal(&url, "list of tags", response).await),
            }
            let next = response.headers().get(LINK).and_then(|v| next_page(v.to_str().ok()?));
            let malformed = |reason: String| ImageError::Malformed {
                what: "the list of tags".to_owned(),
                reference: self.reference.clone(),
                reason,
            };
            let body = match read_bounded(response, MAX_TAGS).await {
                Ok(Some(body)) => body,
                Ok(None) => return Err(malformed(format!("it is larger than the {MAX_TAGS} bytes that are accepted"))),
                Err(reason) if attempt == self.retries => return Err(self.unreachable(&url, &reason)),
                Err(_) => {
                    tokio::time::sleep(backoff(attempt)).await;
                    attempt += 1;
                    continue;
                }
            };
            let page: Tags = serde_json::from_slice(&body).map_err(|e| malformed(e.to_string()))?;
            let page = page.tags.unwrap_or_default();
            let Some(next) = next.filter(|_| !page.is_empty()) else {
                found.extend(page);
                break;
            };
            found.extend(page);
            url = self.at_registry(&url, &next)?.into();
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Removes a manifest, and so every tag that names it. That it is not there is no error.
    pub async fn delete_manifest(&self, digest: &Digest) -> Result<(), Refused> {
        self.settle_scheme().await?;
        self.wants(token::DELETE);
        let url = self.url(&format!("manifests/{digest}"));
        let response = self.exchange(&url, &|http| http.delete(&url), self.retries).await?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::OK | StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(()),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => {
                Err(Refused::Unsupported(self.refusal(&url, "manifest", response).await.to_string()))
            }
            _ => Err(self.refusal(&url, "manifest", response).await.into()),
        }
    }

    fn of(&self, cut: Cut) -> ImageError {
        match cut {
            Cut::Passing(error) | Cut::Final(error) => error,
            Cut::NoPieces => self.unreachable(&self.url("blobs/uploads/"), "it takes no pieces"),
        }
    }

    /// Begins an upload and returns where its bytes go.
    async fn begin(&self) -> Result<Url, Cut> {
        self.settle_scheme().await.map_err(Cut::Final)?;
        let url = self.url("blobs/uploads/");
        let make = |http: &reqwest::Client| http.post(&url).header(CONTENT_LENGTH, "0");
        let response = self.exchange(&url, &make, self.retries).await.map_err(Cut::Final)?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(Cut::Final(self.refusal(&url, "repository", response).await));
        }
        self.location(&url, &response).map_err(Cut::Final)
    }

    fn location(&self, asked: &str, response: &Response) -> Result<Url, ImageError> {
        let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
        self.at_registry(asked, location)
    }

    /// An address that the registry gave, of the registry itself: a login is sent nowhere else.
    fn at_registry(&self, asked: &str, given: &str) -> Result<Url, ImageError> {
        let url = Url::parse(asked).and_then(|base| base.join(given));
        let own = url.ok().filter(|url| !given.is_empty() && super::is_same_place(asked, url));
        own.ok_or_else(|| ImageError::Malformed {
            what: "where it says to go on".to_owned(),
            reference: self.reference.clone(),
            reason: format!("`{}` is no address of this registry", super::quote(given)),
        })
    }

    /// The last request of an upload, with the whole content or what is left of it.
    async fn complete(&self, location: &Url, digest: &Digest, rest: Bytes) -> Result<(), Cut> {
        let mut url = location.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let make = |http: &reqwest::Client| {
            let length = rest.len().to_string();
            let request = http.put(url.clone()).header(CONTENT_TYPE, OCTETS).header(CONTENT_LENGTH, length);
            request.body(rest.clone())
        };
        let response = self.exchange(url.as_str(), &make, 0).await;
        self.taken(url.as_str(), response).await.map(|_| ())
    }

    /// Whether an answer of an upload is a good one.
    async fn taken(&self, url: &str, response: Result<Response, ImageError>) -> Result<Response, Cut> {
        // The address has a state of the registry's in it.
        let shown = url.split('?').next().unwrap_or(url);
        let response = response.map_err(|e| match e {
            ImageError::Unreachable { .. } => Cut::Passing(e),
            e => Cut::Final(e),
        })?;
        match response.status() {
            StatusCode::CREATED | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Ok(response),
            // The upload is gone, or is not where we thought.
            status if is_passing(status) || matches!(status.as_u16(), 404 | 416) => {
                Err(Cut::Passing(self.refusal(shown, "upload", response).await))
            }
            _ => Err(Cut::Final(self.refusal(shown, "upload", response).await)),
        }
    }

    /// A blob in one body.
    async fn whole(&self, digest: &Digest, content: Content<'_>) -> Result<(), Cut> {
        let location = self.begin().await?;
        if let (Content::File(path, size), true) = (content, content.size() > PIECE) {
            return self.streamed(&location, digest, path.to_owned(), size).await;
        }
        let bytes = content.piece(0, content.size()).map_err(|e| Cut::Final(ImageError::Io(e)))?;
        self.complete(&location, digest, bytes).await
    }

    /// A file in one body, for registries that take no pieces.
    async fn streamed(&self, location: &Url, digest: &Digest, path: PathBuf, size: u64) -> Result<(), Cut> {
        let mut url = location.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let make = |http: &reqwest::Client| {
            let path = path.clone();
            let pieces = futures_util::stream::try_unfold(0_u64, move |offset| {
                let path = path.clone();
                async move {
                    if offset >= size {
                        return Ok::<_, io::Error>(None);
                    }
                    let length = (size - offset).min(1 << 20);
                    let bytes = Content::File(&path, size).piece(offset, length)?;
                    Ok(Some((bytes, offset + length)))
                }
            });
            let request = http.put(url.clone()).header(CONTENT_TYPE, OCTETS).header(CONTENT_LENGTH, size.to_string());
            request.body(reqwest::Body::wrap_stream(pieces))
        };
        let response = self.exchange(url.as_str(), &make, 0).await;
        self.taken(url.as_str(), response).await.map(|_| ())
    }

    /// A blob piece by piece; after a cut, from where the registry says that it is.
    async fn in_pieces(&self, digest: &Digest, content: Content<'_>) -> Result<(), Cut> {
        let mut location = self.begin().await?;
        let size = content.size();
        let (mut offset, mut failures) = (0, 0);
        while offset < size {
            let length = (size - offset).min(PIECE);
            let bytes = content.piece(offset, length).map_err(|e| Cut::Final(ImageError::Io(e)))?;
            let (url, range) = (location.clone(), format!("{offset}-{}", offset + length - 1));
            let make = |http: &reqwest::Client| {
                let request = http.patch(url.clone()).header(CONTENT_TYPE, OCTETS).header(CONTENT_RANGE, &range);
                request.header(CONTENT_LENGTH, bytes.len().to_string()).body(bytes.clone())
            };
            let response = self.exchange(url.as_str(), &make, 0).await;
            if let Ok(refused) = &response
                && matches!(refused.status().as_u16(), 405 | 411 | 413 | 501)
            {
                return Err(Cut::NoPieces);
            }
            match self.taken(url.as_str(), response).await {
                Ok(response) => {
                    location = self.location(url.as_str(), &response).map_err(Cut::Final)?;
                    offset += length;
                }
                Err(Cut::Passing(error)) if failures < self.retries => {
                    tokio::time::sleep(backoff(failures)).await;
                    failures += 1;
                    let Some((next, there)) = self.progress(&location).await else { return Err(Cut::Passing(error)) };
                    if there > size {
                        return Err(Cut::Passing(error));
                    }
                    (location, offset) = (next, there);
                }
                Err(cut) => return Err(cut),
            }
        }
        self.complete(&location, digest, Bytes::new()).await
    }

    /// How many bytes of an upload the registry has, and where to go on; `None` when it does not say.
    async fn progress(&self, location: &Url) -> Option<(Url, u64)> {
        let response = self.exchange(location.as_str(), &|http| http.get(location.clone()), self.retries).await.ok()?;
        if response.status() != StatusCode::NO_CONTENT {
            return None;
        }
        let range = response.headers().get("range")?.to_str().ok()?;
        let last: u64 = range.trim_start_matches("bytes=").split_once('-')?.1.trim().parse().ok()?;
        // `0-0` is what an empty upload has, and one of a byte: the piece of a byte is sent again, and refused at worst.
        let there = if last == 0 { 0 } else { last + 1 };
        Some((self.location(location.as_str(), &response).ok()?, there))
    }
}

/// `</v2/NAME/tags/list?last=x&n=y>; rel="next"` (RFC 8288)
fn next_page(link: &str) -> Option<String> {
    link.split(',').find_map(|part| {
        let (target, parameters) = part.trim().strip_prefix('<')?.split_once('>')?;
        let next = parameters.split(';').any(|p| matches!(p.trim(), r#"rel="next""# | "rel=next"));
        next.then(|| target.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_in_the_link() {
        let link = r#"</v2/a/tags/list?last=x&n=2>; rel="next""#;
        assert_eq!(next_page(link).as_deref(), Some("/v2/a/tags/list?last=x&n=2"));
        for other in [r#"</v2/a>; rel="prev""#, "", "/v2/a; rel=next"] {
            assert_eq!(next_page(other), None, "{other}");
        }
    }

    #[test]
    fn pieces_of_bytes_and_files_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs_err::write(&path, b"0123456789").unwrap();
        for content in [Content::Bytes(b"0123456789"), Content::File(&path, 10)] {
            assert_eq!(content.size(), 10);
            assert_eq!(content.piece(3, 4).unwrap().as_ref(), b"3456");
            assert_eq!(content.piece(8, 2).unwrap().as_ref(), b"89");
        }
        assert!(Content::File(&path, 12).piece(8, 4).is_err(), "it is shorter than was said");
    }
}
