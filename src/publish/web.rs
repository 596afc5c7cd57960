//! A web server's tree, to be read: a binary cache that a site offers over https.
//!
//! Nothing can be written to it, and nothing listed: who reads must know the key. An object is asked for with GET, also for its
//! size, as servers and proxies differ in what they answer to HEAD; a body that was cut goes on with `Range` (RFC 9110).

use super::{Entry, Key, Put, Source, Store, StoreError, Version, Written, io_error};
use crate::image::retry::{Cuts, MAX_WAIT, is_passing, pause, retry_after, starts_at};
use crate::image::{ClientConfig, web_client};
use crate::report::{Ctx, chain};
use crate::wait::Runtime;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::header::RANGE;
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest, Sha256};
use std::io::Write;

/// What stands in a path for something else, or in no URL.
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#').add(b'"').add(b'<').add(b'>').add(b'`').add(b'{').add(b'}');

/// A web server's tree.
pub struct WebStore {
    /// As it is asked.
    url: String,
    /// The same without the password that may stand in it.
    address: String,
    client: reqwest::Client,
    retries: u32,
    runtime: Runtime,
}

impl WebStore {
    /// The tree at an `https://` or `http://` address; nothing is asked of it yet.
    pub fn open(address: &str, config: &ClientConfig) -> Result<Self, StoreError> {
        let bad = |reason: String| StoreError::BadAddress { address: hidden(address), reason };
        let url = Url::parse(address).map_err(|e| bad(e.to_string()))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("it has more after the path, which has no place here".into()));
        }
        let client = web_client(config).map_err(|e| bad(e.to_string()))?;
        let url = address.trim_end_matches('/').to_owned();
        let address = hidden(&url);
        let runtime = Runtime::new("web").map_err(|e| io_error(&address, e))?;
        Ok(Self { url, address, client, retries: config.retries, runtime })
    }

    fn forbidden(&self, key: &Key) -> StoreError {
        StoreError::Forbidden {
            address: self.address.clone(),
            what: format!("read {key}"),
            reason: format!("the server answered {}", StatusCode::FORBIDDEN),
        }
    }

    fn fault(&self, key: &Key, reason: &str) -> StoreError {
        let remedy = match () {
            () if reason.contains("certificate") => "; name a file with the site's authority in SSL_CERT_FILE",
            () if reason.contains("connect") => "; is it reached from here (https_proxy, http_proxy, no_proxy)?",
            () => "",
        };
        StoreError::Service {
            address: self.address.clone(),
            what: format!("read {key}"),
            reason: format!("{reason}{remedy}"),
        }
    }

    /// The answer from `offset` on, with where it begins; `None` when nothing is there.
    fn get(&self, key: &Key, offset: u64, ctx: &Ctx) -> Result<Option<(Response, u64)>, StoreError> {
        let url = format!("{}/{}", self.url, utf8_percent_encode(key.as_str(), ESCAPED));
        let work = async {
            let mut attempt = 0;
            loop {
                let mut request = self.client.get(&url);
                if offset > 0 {
                    request = request.header(RANGE, format!("bytes={offset}-"));
                }
                let (wait, passing, reason) = match request.send().await {
                    Ok(response) => match response.status() {
                        StatusCode::OK => return Ok(Some((response, 0))),
                        StatusCode::PARTIAL_CONTENT if starts_at(response.headers(), offset) => {
                            return Ok(Some((response, offset)));
                        }
                        StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
                        StatusCode::FORBIDDEN => return Err(self.forbidden(key)),
                        status => (
                            retry_after(response.headers()),
                            is_passing(status),
                            format!("the server answered {status}"),
                        ),
                    },
                    Err(e) => (None, e.is_timeout() || !e.is_connect(), chain(&e.without_url())),
                };
                if !passing || attempt == self.retries || wait.is_some_and(|wait| wait > MAX_WAIT) {
                    return Err(self.fault(key, &reason));
                }
                tokio::time::sleep(pause(attempt, wait)).await;
                attempt += 1;
            }
        };
        self.runtime.run(ctx, work)
    }

    /// Gives the bytes to `take`, from where they were cut when they were, until it has enough.
    fn fetch(
        &self,
        key: &Key,
        take: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
        ctx: &Ctx,
    ) -> Result<Option<u64>, StoreError> {
        let (mut taken, mut cuts) = (0_u64, Cuts::new(self.retries));
        loop {
            let before = taken;
            let Some((mut response, from)) = self.get(key, taken, ctx)? else { return Ok(None) };
            let mut skip = taken - from;
            let cut = loop {
                match self.runtime.run(ctx, async { Ok::<_, StoreError>(response.chunk().await) })? {
                    Ok(Some(bytes)) => {
                        let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
                        skip -= passed as u64;
                        let rest = bytes.get(passed..).unwrap_or_default();
                        take(rest)?;
                        taken += rest.len() as u64;
                    }
                    Ok(None) => return Ok(Some(taken)),
                    Err(e) => break chain(&e.without_url()),
                }
            };
            let Some(pause) = cuts.another(taken > before) else { return Err(self.fault(key, &cut)) };
            self.runtime.sleep(pause, ctx)?;
        }
    }

    fn cannot<T>(&self, what: &str) -> Result<T, StoreError> {
        Err(StoreError::Service {
            address: self.address.clone(),
            what: what.to_owned(),
            reason: "a web server is read, and not written to or listed".into(),
        })
    }
}

/// An address without the password that may stand in it.
fn hidden(address: &str) -> String {
    let Ok(mut url) = Url::parse(address) else { return address.to_owned() };
    if url.password().is_none() {
        return address.to_owned();
    }
    let _ = url.set_password(None);
    url.to_string()
}

impl Store for WebStore {
    fn address(&self) -> &str {
        &self.address
    }

    fn check(&self, _ctx: &Ctx) -> Result<(), StoreError> {
        self.cannot("write here")
    }

    fn size(&self, key: &Key, ctx: &Ctx) -> Result<Option<u64>, StoreError> {
        let Some((response, _)) = self.get(key, 0, ctx)? else { return Ok(None) };
        match response.content_length() {
            Some(size) => Ok(Some(size)),
            None => self.fetch(key, &mut |_| Ok(()), ctx),
        }
    }

    fn read(&self, key: &Key, limit: u64, ctx: &Ctx) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        let mut bytes = Vec::new();
        let mut take = |part: &[u8]| {
            bytes.extend_from_slice(part);
            let size = bytes.len() as u64;
            if size > limit {
                return Err(StoreError::TooLarge { address: self.address.clone(), key: key.clone(), size, limit });
            }
            Ok(())
        };
        let there = self.fetch(key, &mut take, ctx)?;
        Ok(there.map(|_| {
            let version = Version(hex::encode(Sha256::digest(&bytes)));
            (bytes, version)
        }))
    }

    fn download(&self, key: &Key, out: &mut dyn Write, ctx: &Ctx) -> Result<Option<u64>, StoreError> {
        let address = self.address.clone();
        self.fetch(key, &mut |part| out.write_all(part).map_err(|e| io_error(&address, e)), ctx)
    }

    fn put(&self, _key: &Key, _bytes: &[u8], _how: &Put<'_>, _ctx: &Ctx) -> Result<Written, StoreError> {
        self.cannot("write")
    }

    fn put_file(&self, _key: &Key, _source: &Source, _how: &Put<'_>, _ctx: &Ctx) -> Result<Written, StoreError> {
        self.cannot("write")
    }

    fn list(&self, _prefix: &str, _ctx: &Ctx) -> Result<Vec<Entry>, StoreError> {
        self.cannot("list what is there")
    }

    fn delete(&self, _key: &Key, _ctx: &Ctx) -> Result<(), StoreError> {
        self.cannot("delete")
    }
}
