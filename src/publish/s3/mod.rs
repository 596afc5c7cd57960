//! A bucket, or a part of one, as a store: AWS and every server that speaks its protocol.
//!
//! ```text
//! s3://BUCKET/PREFIX/<key>                          the objects
//! s3://BUCKET/PREFIX/.slurm-factory/probe           one small object, by which is found out what the server can do
//! s3://BUCKET/PREFIX/.slurm-factory/claims/<id>     for moments, on servers without conditional writes (`claim`)
//! ```
//!
//! - An object is there when its last byte is: S3 promises that for one PUT, and for the completion of a multipart upload.
//! - Every request carries the SHA-256 of its body in its signature, so the server refuses what changed on the way; where the
//!   server keeps checksums it gets them too and gives them back.
//! - The version of an object is its ETag.
//! - Large files go in parts, several at once (`multipart`). An upload that was cut, also by kill -9, is found again by its key
//!   and goes on where it was.
//! - What fails in passing (a cut connection, 500, 503, SlowDown) is tried again with growing pauses by the SDK.
//!
//! Sources: the API reference of Amazon S3 (PutObject, CompleteMultipartUpload, "Conditional requests", "Checking object
//! integrity"). docs/decisions/0011-publishing.md says why it is as it is.

mod claim;
mod client;
mod digest;
mod failure;
mod multipart;
mod objects;

pub use client::S3Options;

use super::{Entry, Key, Put, Source, Store, StoreError, Version, Written, io_error};
use crate::report::Ctx;
use crate::wait::Runtime;
use aws_sdk_s3::Client;
use claim::Abilities;
use failure::Failure;
use fs_err as fs;
use objects::Body;
use std::future::Future;
use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::{OnceCell, Semaphore};

/// Our own objects below the prefix.
const OWN: &str = ".slurm-factory";

/// How many parts are in memory, and on their way, at once; for all threads that use the store.
const PARTS_AT_ONCE: usize = 4;

/// A bucket's prefix as a store.
pub struct S3Store {
    bucket: Bucket,
    runtime: Runtime,
}

/// What every operation needs.
struct Bucket {
    /// `s3://bucket/prefix`
    address: String,
    name: String,
    /// Without slashes around it; empty for the whole bucket.
    prefix: String,
    /// For requests that a healthy server answers in seconds.
    quick: Client,
    /// For parts and completions.
    bulk: Client,
    part_size: u64,
    parts: Arc<Semaphore>,
    abilities: OnceCell<Abilities>,
}

impl Bucket {
    fn own_key(&self, key: &Key) -> String {
        key.below(&self.prefix)
    }

    fn own(&self, name: &str) -> String {
        let prefix = if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        format!("{prefix}{OWN}/{name}")
    }

    fn fault(&self, what: impl Into<String>, failure: &Failure) -> StoreError {
        StoreError::Service { address: self.address.clone(), what: what.into(), reason: failure.explain(&self.name) }
    }

    /// Why an object is not read.
    fn unread(&self, what: String, failure: &Failure) -> StoreError {
        if failure.forbidden() {
            return StoreError::Forbidden { address: self.address.clone(), what, reason: failure.explain(&self.name) };
        }
        self.fault(what, failure)
    }
}

impl S3Store {
    /// Opens `s3://bucket/prefix`: finds credentials, by the standard chain of AWS, and says where they are from. Nothing is
    /// asked of the bucket yet.
    pub fn open(address: &str, options: &S3Options, ctx: &Ctx) -> Result<Self, StoreError> {
        let (name, prefix) = parse(address)?;
        let address = format!("s3://{name}{}{prefix}", if prefix.is_empty() { "" } else { "/" });
        let runtime = Runtime::new("s3").map_err(|e| io_error(&address, e))?;
        let clients = runtime.run(ctx, client::connect(&address, options, ctx))?;
        let bucket = Bucket {
            address,
            name,
            prefix,
            quick: clients.quick,
            bulk: clients.bulk,
            part_size: options.part_size.max(multipart::LEAST_PART),
            parts: Arc::new(Semaphore::new(PARTS_AT_ONCE)),
            abilities: OnceCell::new(),
        };
        Ok(Self { bucket, runtime })
    }

    fn run<T>(&self, ctx: &Ctx, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.runtime.run(ctx, work)
    }
}

/// Bucket and prefix of an address. A bucket's name: 3 to 63 of a-z, 0-9, `.` and `-` ("Bucket naming rules" of Amazon S3; some
/// servers also take capitals and `_`).
fn parse(address: &str) -> Result<(String, String), StoreError> {
    let refuse = |reason: &str| StoreError::BadAddress { address: address.to_owned(), reason: reason.to_owned() };
    let rest = address.strip_prefix("s3://").ok_or_else(|| refuse("it does not begin with s3://"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(fits) {
        return Err(refuse(
            "the bucket's name has 3 to 63 letters, digits, dots and hyphens, as in s3://bucket/prefix (a server of your own is named \
             with --s3-endpoint)",
        ));
    }
    let prefix = prefix.trim_matches('/');
    if !prefix.is_empty() {
        Key::new(prefix).map_err(|e| refuse(&e.to_string()))?;
    }
    if prefix.split('/').any(|part| part == OWN) {
        return Err(refuse("`.slurm-factory` is where this program keeps its own objects"));
    }
    Ok((bucket.to_owned(), prefix.to_owned()))
}

impl Store for S3Store {
    fn address(&self) -> &str {
        &self.bucket.address
    }

    fn check(&self, ctx: &Ctx) -> Result<(), StoreError> {
        self.run(ctx, async {
            let abilities = self.bucket.abilities().await?;
            ctx.detail(format!("{}: {abilities}", self.bucket.address));
            Ok(())
        })
    }

    fn size(&self, key: &Key, ctx: &Ctx) -> Result<Option<u64>, StoreError> {
        self.run(ctx, async {
            let head = self.bucket.head(&self.bucket.own_key(key)).await;
            let head = head.map_err(|e| self.bucket.unread(format!("look at {key}"), &e))?;
            Ok(head.map(|head| head.size))
        })
    }

    fn holds(&self, key: &Key, source: &Source, ctx: &Ctx) -> Result<bool, StoreError> {
        let head = self.run(ctx, async {
            let head = self.bucket.head(&self.bucket.own_key(key)).await;
            head.map_err(|e| self.bucket.unread(format!("look at {key}"), &e))
        })?;
        let Some(head) = head.filter(|head| head.size == source.size) else { return Ok(false) };
        if head.sha256.as_deref() == Some(&digest::base64(&source.sha256)) {
            return Ok(true);
        }
        // What the server says of the parts is compared with the parts of the file.
        if let Some(parts) = digest::parts_of(&head) {
            let size = multipart::part_size(self.bucket.part_size, source.size);
            let file = fs::File::open(&source.path).map_err(|e| io_error(&self.bucket.address, e))?;
            let local =
                digest::of_file(file, source.size, size, ctx).map_err(|e| e.into_store_error(&self.bucket.address))?;
            if local.sha256 != source.sha256 {
                return Err(super::changed(&self.bucket.address, source, &local.sha256));
            }
            if local.agrees(&head, parts) {
                return Ok(true);
            }
            if digest::conclusive(&head, parts, source.size, size) {
                return Ok(false);
            }
        }
        super::holds_by_reading(self, key, source, ctx)
    }

    fn read(&self, key: &Key, limit: u64, ctx: &Ctx) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        self.run(ctx, async {
            let found = self.bucket.get(&self.bucket.own_key(key), limit).await;
            match found.map_err(|e| self.bucket.unread(format!("read {key}"), &e))? {
                None => Ok(None),
                Some(Body::Whole { bytes, etag }) => Ok(Some((bytes, Version(etag)))),
                Some(Body::TooLarge { size }) => {
                    Err(StoreError::TooLarge { address: self.bucket.address.clone(), key: key.clone(), size, limit })
                }
            }
        })
    }

    fn download(&self, key: &Key, out: &mut dyn Write, ctx: &Ctx) -> Result<Option<u64>, StoreError> {
        let own = self.bucket.own_key(key);
        let mut download = objects::Download::new(&self.bucket, &own);
        loop {
            let next = self
                .run(ctx, async { download.next().await.map_err(|e| self.bucket.unread(format!("read {key}"), &e)) })?;
            match next {
                objects::Next::Bytes(bytes) => out.write_all(&bytes).map_err(|e| io_error(&self.bucket.address, e))?,
                objects::Next::End(total) => return Ok(Some(total)),
                objects::Next::NotThere => return Ok(None),
            }
        }
    }

    fn put(&self, key: &Key, bytes: &[u8], how: &Put<'_>, ctx: &Ctx) -> Result<Written, StoreError> {
        self.run(ctx, self.bucket.put(key, bytes::Bytes::copy_from_slice(bytes), how))
    }

    fn put_file(&self, key: &Key, source: &Source, how: &Put<'_>, ctx: &Ctx) -> Result<Written, StoreError> {
        if source.size > self.bucket.part_size {
            return self.run(ctx, self.bucket.put_parts(key, source, how, ctx));
        }
        let bytes = fs::read(&source.path).map_err(|e| io_error(&self.bucket.address, e))?;
        let sha256 = digest::hex_sha256(&bytes);
        if sha256 != source.sha256 {
            return Err(super::changed(&self.bucket.address, source, &sha256));
        }
        self.run(ctx, self.bucket.put(key, bytes.into(), how))
    }

    fn list(&self, prefix: &str, ctx: &Ctx) -> Result<Vec<Entry>, StoreError> {
        let begin = if self.bucket.prefix.is_empty() { String::new() } else { format!("{}/", self.bucket.prefix) };
        let found = self.run(ctx, async {
            let found = self.bucket.list(&format!("{begin}{prefix}")).await;
            found.map_err(|e| self.bucket.fault(format!("list {prefix}"), &e))
        })?;
        let own = format!("{OWN}/");
        let mut entries: Vec<Entry> = found
            .into_iter()
            .filter_map(|object| {
                let text = object.key.strip_prefix(&begin)?;
                // What others put there under names that no object of ours can have is none of ours.
                let key = Key::new(text).ok().filter(|_| !text.starts_with(&own))?;
                Some(Entry { key, size: object.size, modified: object.modified.unwrap_or(SystemTime::UNIX_EPOCH) })
            })
            .collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    fn delete(&self, key: &Key, ctx: &Ctx) -> Result<(), StoreError> {
        self.run(ctx, async {
            let gone = self.bucket.remove(&self.bucket.own_key(key)).await;
            gone.map_err(|e| self.bucket.fault(format!("delete {key}"), &e))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (address, want) in [
            ("s3://bucket", ("bucket", "")),
            ("s3://bucket/", ("bucket", "")),
            ("s3://my.bucket-1/a/b/", ("my.bucket-1", "a/b")),
        ] {
            assert_eq!(parse(address).unwrap(), (want.0.to_owned(), want.1.to_owned()));
        }
        for wrong in [
            "s3://",
            "s3:///x",
            "s3://b",
            "s3://host:9000/bucket",
            "s3://bu cket",
            "s3://bucket/a//b",
            "s3://bucket/../x",
            "s3://bucket/.slurm-factory/x",
            "https://bucket",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
