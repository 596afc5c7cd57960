//! Single requests: look, read, write, list, delete. Names here are whole keys in the bucket, prefix included.

use super::claim::When;
use super::failure::Failure;
use super::{Bucket, digest};
use crate::publish::{Condition, Keep, Key, Put, StoreError, Version, Written};
use crate::report::chain;
use crate::wait::{chance, random};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumMode;
use bytes::Bytes;
use std::time::{Duration, SystemTime};

/// The metadata by which a write is known again when its answer was lost.
const WRITE_ID: &str = "write-id";

/// How often a read that was cut goes on.
const READ_TRIES: u32 = 8;

/// What is known of an object without reading it.
#[derive(Debug)]
pub(super) struct Head {
    pub size: u64,
    /// With its quotes.
    pub etag: String,
    /// Base64, with `-N` when it is of N parts.
    pub sha256: Option<String>,
    pub write_id: Option<String>,
}

/// What was read.
pub(super) enum Body {
    Whole { bytes: Vec<u8>, etag: String },
    TooLarge { size: u64 },
}

/// An object in a listing.
pub(super) struct Listed {
    pub key: String,
    pub size: u64,
    pub modified: Option<SystemTime>,
}

/// How an object is to be described and what its writing depends on.
pub(super) struct Writing<'a> {
    pub content_type: &'a str,
    pub keep: Keep,
    pub when: &'a When,
}

impl Bucket {
    pub async fn head(&self, own: &str) -> Result<Option<Head>, Failure> {
        let request = self.quick.head_object().bucket(&self.name).key(own).checksum_mode(ChecksumMode::Enabled);
        match request.send().await.map_err(Failure::of) {
            Ok(head) => Ok(Some(Head {
                size: head.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
                etag: head.e_tag().unwrap_or_default().to_owned(),
                sha256: head.checksum_sha256().map(str::to_owned),
                write_id: head.metadata().and_then(|m| m.get(WRITE_ID)).cloned(),
            })),
            // An answer to HEAD has no body, hence no code: that the bucket is missing is found out by writing.
            Err(e) if e.not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub async fn get(&self, own: &str, limit: u64) -> Result<Option<Body>, Failure> {
        let mut tries = 0;
        loop {
            let got = match self.quick.get_object().bucket(&self.name).key(own).send().await.map_err(Failure::of) {
                Ok(got) => got,
                Err(e) if e.not_found() => return Ok(None),
                Err(e) => return Err(e),
            };
            let etag = got.e_tag().unwrap_or_default().to_owned();
            let size = got.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            if size > limit {
                return Ok(Some(Body::TooLarge { size }));
            }
            let mut body = got.body;
            let mut bytes = Vec::new();
            let cut = loop {
                match body.try_next().await {
                    Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                    Ok(None) if bytes.len() as u64 == size => return Ok(Some(Body::Whole { bytes, etag })),
                    Ok(None) => break format!("{} of {size} bytes came", bytes.len()),
                    Err(e) => break chain(&e),
                }
                if bytes.len() as u64 > size {
                    return Ok(Some(Body::TooLarge { size: bytes.len() as u64 }));
                }
            };
            tries += 1;
            if tries == READ_TRIES {
                return Err(Failure::local(cut));
            }
            pause(tries).await;
        }
    }

    pub async fn put_once(
        &self,
        own: &str,
        bytes: Bytes,
        how: &Writing<'_>,
        id: &str,
        sums: bool,
    ) -> Result<String, Failure> {
        let checksum = sums.then(|| digest::Part::of(&bytes).checksum());
        let mut request = self
            .bulk
            .put_object()
            .bucket(&self.name)
            .key(own)
            .content_type(how.content_type)
            .cache_control(how.keep.cache_control())
            .metadata(WRITE_ID, id)
            .set_checksum_sha256(checksum);
        request = match how.when {
            When::Always => request,
            When::Absent => request.if_none_match("*"),
            When::Unchanged(etag) => request.if_match(etag),
        };
        let put = request.body(ByteStream::from(bytes)).send().await.map_err(Failure::of)?;
        Ok(put.e_tag().unwrap_or_default().to_owned())
    }

    /// Writes a small object.
    pub async fn put(&self, key: &Key, bytes: Bytes, how: &Put<'_>) -> Result<Written, StoreError> {
        let own = self.own_key(key);
        let abilities = self.abilities().await?;
        let fault = |e: &Failure| self.fault(format!("write {key}"), e);
        let Some((when, claim)) = self.ready(key, &own, &how.condition).await? else {
            return Ok(Written::Conflict);
        };
        let writing = Writing { content_type: how.content_type, keep: how.keep, when: &when };
        let id = format!("{:016x}", random());
        let put = Box::pin(self.put_once(&own, bytes, &writing, &id, abilities.checksums));
        let put = self.within(claim.as_ref(), put).await;
        if let Some(claim) = claim {
            self.release(&claim).await;
        }
        match put {
            Ok(etag) => Ok(Written::Yes(Version(etag))),
            Err(e) if !matches!(when, When::Always) && (e.conflict() || e.not_found()) => {
                // A try before the last may have written it, and its answer was lost.
                let head = self.head(&own).await.map_err(|e| fault(&e))?;
                let ours = head.filter(|head| head.write_id.as_deref() == Some(id.as_str()));
                Ok(ours.map_or(Written::Conflict, |head| Written::Yes(Version(head.etag))))
            }
            Err(e) => Err(fault(&e)),
        }
    }

    /// Whether what is there now is as the condition says.
    pub async fn holds_now(&self, key: &Key, own: &str, condition: &Condition) -> Result<bool, StoreError> {
        if matches!(condition, Condition::Always) {
            return Ok(true);
        }
        let head = self.head(own).await.map_err(|e| self.fault(format!("look at {key}"), &e))?;
        Ok(match condition {
            Condition::Always => true,
            Condition::Absent => head.is_none(),
            Condition::Unchanged(version) => head.is_some_and(|head| head.etag == version.0),
        })
    }

    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>, Failure> {
        let request = self.quick.list_objects_v2().bucket(&self.name).prefix(prefix);
        let mut pages = request.into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(Failure::of)?;
            found.extend(page.contents().iter().filter_map(|object| {
                Some(Listed {
                    key: object.key()?.to_owned(),
                    size: object.size().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
                    modified: object.last_modified().and_then(|time| SystemTime::try_from(*time).ok()),
                })
            }));
        }
        Ok(found)
    }

    pub async fn remove(&self, own: &str) -> Result<(), Failure> {
        match self.quick.delete_object().bucket(&self.name).key(own).send().await.map_err(Failure::of) {
            Ok(_) => Ok(()),
            Err(e) if e.not_found() => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// Waits longer each time, up to five seconds.
pub(super) async fn pause(tries: u32) {
    let most = Duration::from_millis((200 << tries.min(5)).min(5000));
    tokio::time::sleep(most.mul_f64(0.5 + 0.5 * chance())).await;
}

/// What [`Download::next`] came to.
pub(super) enum Next {
    Bytes(Bytes),
    End(u64),
    NotThere,
}

/// An object as it comes. A connection that is cut is made again where it was, for the same state of the object.
pub(super) struct Download<'b> {
    bucket: &'b Bucket,
    own: &'b str,
    body: Option<ByteStream>,
    etag: Option<String>,
    done: u64,
    total: u64,
    tries: u32,
}

impl<'b> Download<'b> {
    pub fn new(bucket: &'b Bucket, own: &'b str) -> Self {
        Self { bucket, own, body: None, etag: None, done: 0, total: 0, tries: 0 }
    }

    pub async fn next(&mut self) -> Result<Next, Failure> {
        loop {
            let body = if let Some(body) = &mut self.body {
                body
            } else {
                match self.open().await? {
                    Some(body) => self.body.insert(body),
                    None => return Ok(Next::NotThere),
                }
            };
            let cut = match body.try_next().await {
                Ok(Some(bytes)) => {
                    self.done += bytes.len() as u64;
                    self.tries = 0;
                    return Ok(Next::Bytes(bytes));
                }
                Ok(None) if self.done >= self.total => return Ok(Next::End(self.done)),
                Ok(None) => format!("{} of {} bytes came", self.done, self.total),
                Err(e) => chain(&e),
            };
            self.body = None;
            self.tries += 1;
            if self.tries == READ_TRIES {
                return Err(Failure::local(cut));
            }
            pause(self.tries).await;
        }
    }

    async fn open(&mut self) -> Result<Option<ByteStream>, Failure> {
        let mut request = self.bucket.bulk.get_object().bucket(&self.bucket.name).key(self.own);
        if let Some(etag) = &self.etag {
            request = request.if_match(etag).range(format!("bytes={}-", self.done));
        }
        let got = match request.send().await.map_err(Failure::of) {
            Ok(got) => got,
            Err(e) if e.not_found() && self.etag.is_none() => return Ok(None),
            Err(e) => return Err(e),
        };
        let length = got.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        if self.etag.is_some() && got.content_range().is_none() {
            return Err(Failure::local("the server knows no ranges, and the connection was cut"));
        }
        self.total = self.done + length;
        self.etag = Some(got.e_tag().unwrap_or_default().to_owned());
        Ok(Some(got.body))
    }
}
