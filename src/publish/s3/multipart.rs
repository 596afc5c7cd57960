//! Large files: sent in parts, several at once, each compared on its way; cut uploads go on where they were.
//!
//! ```text
//! ListMultipartUploads    is there an upload of this key that was never completed?
//! ListParts               which of its parts are the file's? those are not sent again
//! UploadPart x N          SHA-256 in the signature and as checksum
//! CompleteMultipartUpload names every part by ETag: what another publisher put into the same upload is not taken
//! ```
//!
//! Nothing of an upload is seen before it is completed. One that is left over is taken up by the next run that sends the key, or
//! aborted by it after a day.

use super::digest::{Local, Part, Reader};
use super::failure::Failure;
use super::objects::Head;
use super::{Bucket, claim::When, digest};
use crate::publish::{Condition, Keep, Key, Put, Source, StoreError, Version, Written, changed, io_error};
use crate::report::{Ctx, Event, Stage};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use fs_err as fs;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;

/// S3's own limit for all parts but the last.
pub(super) const LEAST_PART: u64 = 5 << 20;

/// S3 takes 10,000 parts.
const MOST_PARTS: u64 = 9_000;

/// After this long an upload that nobody went on with is aborted.
const ABANDONED: Duration = Duration::from_hours(24);

/// How often a file is sent anew when its upload was taken away.
const FRESH_TRIES: u32 = 2;

/// How many unfinished uploads of one key are looked into.
const LOOKED_INTO: usize = 8;

/// The size of a part: the same for the same size of file, so that a later run finds its parts again.
pub(super) fn part_size(wanted: u64, file: u64) -> u64 {
    wanted.max(file.div_ceil(MOST_PARTS).next_multiple_of(1 << 20))
}

/// An upload that has begun.
struct Upload {
    id: String,
    /// By number: what the server has.
    there: BTreeMap<i32, There>,
}

struct There {
    etag: String,
    sha256: Option<String>,
    size: u64,
}

impl There {
    /// Whether it is the file's part.
    fn is(&self, part: &Part, size: usize) -> bool {
        self.size == size as u64
            && match &self.sha256 {
                Some(sum) => *sum == part.checksum(),
                None => self.etag.trim_matches('"').eq_ignore_ascii_case(&hex::encode(part.md5)),
            }
    }
}

/// How one try ended that did not end well.
enum Ended {
    /// Here.
    Error(StoreError),
    /// At the server.
    Failed(Failure),
}

impl Bucket {
    /// Writes a file in parts.
    pub async fn put_parts(&self, key: &Key, source: &Source, how: &Put<'_>, ctx: &Ctx) -> Result<Written, StoreError> {
        let own = self.own_key(key);
        let sums = self.abilities().await?.checksums;
        let mut upload = self.resumable(&own).await;
        let mut tries = 0;
        loop {
            // Nothing is sent for a condition that does not hold already.
            if !self.holds_now(key, &own, &how.condition).await? {
                return Ok(Written::Conflict);
            }
            let current = match upload.take() {
                Some(upload) => upload,
                None => Upload { id: self.begin(key, &own, how, sums).await?, there: BTreeMap::new() },
            };
            if !current.there.is_empty() {
                ctx.note(format!(
                    "{key}: going on with an upload that was cut, {} parts are there",
                    current.there.len()
                ));
            }
            match self.attempt(key, &own, source, how, &current, sums, ctx).await {
                Ok(written) => return Ok(written),
                Err(Ended::Error(e)) => return Err(e),
                Err(Ended::Failed(e)) if tries < FRESH_TRIES && self.is_gone(&own, &current.id, &e).await => tries += 1,
                Err(Ended::Failed(e)) => return Err(self.fault(format!("write {key}"), &e)),
            }
        }
    }

    /// Whether an upload failed because another publisher, that went on with the same one, completed or aborted it, or put other
    /// parts into it. Some servers answer that with 500.
    async fn is_gone(&self, own: &str, id: &str, failure: &Failure) -> bool {
        match failure.status {
            Some(404) => failure.code != "NoSuchBucket",
            Some(400) => failure.code != "ExpiredToken",
            Some(500..) => {
                self.unfinished(own).await.is_some_and(|uploads| uploads.iter().all(|(there, _)| there != id))
            }
            _ => false,
        }
    }

    #[allow(clippy::too_many_arguments)] // what one try is made of
    async fn attempt(
        &self,
        key: &Key,
        own: &str,
        source: &Source,
        how: &Put<'_>,
        upload: &Upload,
        sums: bool,
        ctx: &Ctx,
    ) -> Result<Written, Ended> {
        let (local, parts) = self.send(key, own, source, upload, sums, ctx).await?;
        if local.sha256 != source.sha256 {
            self.abort(own, &upload.id).await;
            return Err(Ended::Error(changed(&self.address, source, &local.sha256)));
        }
        let Some((when, claim)) = self.ready(key, own, &how.condition).await.map_err(Ended::Error)? else {
            self.abort(own, &upload.id).await;
            return Ok(Written::Conflict);
        };
        let completed = self.within(claim.as_ref(), self.complete(own, &upload.id, &when, parts)).await;
        if let Some(claim) = claim {
            self.release(&claim).await;
        }
        let looked = self.head(own).await.map_err(|e| Ended::Error(self.fault(format!("look at {key}"), &e)))?;
        let ours = looked.as_ref().is_some_and(|head| is(head, &local, source));
        match (completed, looked) {
            (Ok(()), Some(head)) if ours || !known(&head, source, &local) => Ok(Written::Yes(Version(head.etag))),
            (Ok(()), Some(head)) if head.size != source.size && others_may_replace(how) => {
                Ok(Written::Yes(Version(head.etag)))
            }
            (Ok(()), head) => Err(Ended::Error(StoreError::Mismatch {
                address: self.address.clone(),
                key: key.clone(),
                sent: format!("{} bytes, SHA-256 {}", source.size, source.sha256),
                found: head.map_or_else(
                    || "nothing".to_owned(),
                    |head| format!("{} bytes, {}", head.size, head.sha256.unwrap_or(head.etag)),
                ),
            })),
            // The answer of a try that did complete it was lost, or another publisher wrote the same.
            (Err(_), Some(head)) if ours => Ok(Written::Yes(Version(head.etag))),
            (Err(e), _)
                if e.conflict()
                    || (e.not_found() && matches!(when, When::Unchanged(_)) && e.code != "NoSuchUpload") =>
            {
                self.abort(own, &upload.id).await;
                Ok(Written::Conflict)
            }
            (Err(e), _) => Err(Ended::Failed(e)),
        }
    }

    /// Sends what is not there, and returns the file's digests and what names the parts.
    async fn send(
        &self,
        key: &Key,
        own: &str,
        source: &Source,
        upload: &Upload,
        sums: bool,
        ctx: &Ctx,
    ) -> Result<(Local, Vec<CompletedPart>), Ended> {
        let io = |e| Ended::Error(io_error(&self.address, e));
        let size = part_size(self.part_size, source.size);
        let mut reader = Reader::new(fs::File::open(&source.path).map_err(io)?, source.size, size);
        let mut tasks: JoinSet<Result<(i32, String, u64), Failure>> = JoinSet::new();
        let mut etags: BTreeMap<i32, String> = BTreeMap::new();
        let mut done = 0;
        let mut progress = |bytes: u64| {
            done += bytes;
            let current = key.to_string();
            ctx.event(&Event::Progress { stage: Stage::Publish, done, total: source.size, unit: "bytes", current });
        };
        let count = i32::try_from(source.size.div_ceil(size)).unwrap_or(i32::MAX);
        for number in 1..=count {
            let permit = self.parts.clone().acquire_owned().await;
            let permit = permit.map_err(|e| Ended::Error(self.fault("send parts", &Failure::local(e.to_string()))))?;
            let read = tokio::task::spawn_blocking(move || {
                let next = reader.next();
                (reader, next)
            });
            let (back, next) = read.await.map_err(|e| io(std::io::Error::other(e)))?;
            reader = back;
            let Some((bytes, part)) = next.map_err(io)? else { break };
            let length = bytes.len() as u64;
            if let Some(there) = upload.there.get(&number).filter(|there| there.is(&part, bytes.len())) {
                etags.insert(number, there.etag.clone());
                progress(length);
                continue;
            }
            let request = self
                .bulk
                .upload_part()
                .bucket(&self.name)
                .key(own)
                .upload_id(&upload.id)
                .part_number(number)
                .set_checksum_sha256(sums.then(|| part.checksum()))
                .body(ByteStream::from(bytes));
            tasks.spawn(async move {
                let sent = request.send().await.map_err(Failure::of)?;
                drop(permit);
                Ok((number, sent.e_tag().unwrap_or_default().to_owned(), length))
            });
            while let Some(sent) = tasks.try_join_next() {
                let (number, etag, length) = self.joined(sent)?;
                etags.insert(number, etag);
                progress(length);
            }
        }
        while let Some(sent) = tasks.join_next().await {
            let (number, etag, length) = self.joined(sent)?;
            etags.insert(number, etag);
            progress(length);
        }
        let local = reader.finish();
        let parts = etags
            .into_iter()
            .zip(&local.parts)
            .map(|((number, etag), part)| {
                let sum = sums.then(|| part.checksum());
                CompletedPart::builder().part_number(number).e_tag(etag).set_checksum_sha256(sum).build()
            })
            .collect();
        Ok((local, parts))
    }

    fn joined<T>(&self, sent: Result<Result<T, Failure>, tokio::task::JoinError>) -> Result<T, Ended> {
        match sent {
            Ok(sent) => sent.map_err(Ended::Failed),
            Err(e) => Err(Ended::Error(io_error(&self.address, std::io::Error::other(e)))),
        }
    }

    async fn begin(&self, key: &Key, own: &str, how: &Put<'_>, sums: bool) -> Result<String, StoreError> {
        let request = self
            .quick
            .create_multipart_upload()
            .bucket(&self.name)
            .key(own)
            .content_type(how.content_type)
            .cache_control(how.keep.cache_control())
            .set_checksum_algorithm(sums.then_some(ChecksumAlgorithm::Sha256));
        let fault = |e: &Failure| self.fault(format!("begin to write {key}"), e);
        let upload = request.send().await.map_err(Failure::of).map_err(|e| fault(&e))?;
        let id = upload.upload_id().map(str::to_owned);
        id.ok_or_else(|| fault(&Failure::local("the server's answer names no upload")))
    }

    async fn complete(&self, own: &str, id: &str, when: &When, parts: Vec<CompletedPart>) -> Result<(), Failure> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request =
            self.bulk.complete_multipart_upload().bucket(&self.name).key(own).upload_id(id).multipart_upload(parts);
        let request = match when {
            When::Always => request,
            When::Absent => request.if_none_match("*"),
            When::Unchanged(etag) => request.if_match(etag),
        };
        request.send().await.map(|_| ()).map_err(Failure::of)
    }

    /// What cannot be aborted now is aborted by a later run.
    async fn abort(&self, own: &str, id: &str) {
        let _ = self.quick.abort_multipart_upload().bucket(&self.name).key(own).upload_id(id).send().await;
    }

    /// The unfinished upload of this key that has come furthest; abandoned ones are aborted. A server (or a permission) that
    /// cannot list them makes the file go from its begin.
    async fn resumable(&self, own: &str) -> Option<Upload> {
        let mut best: Option<Upload> = None;
        for (id, age) in self.unfinished(own).await?.into_iter().take(LOOKED_INTO) {
            // Where the parts are not told, all are sent again, into this upload: else it would be left over.
            let there = self.parts_there(own, &id).await.unwrap_or_default();
            let further = best.as_ref().is_none_or(|best| best.there.len() < there.len());
            let other = if further { best.replace(Upload { id, there }) } else { Some(Upload { id, there }) };
            if let Some(other) = other.filter(|_| age.is_some_and(|age| age > ABANDONED)) {
                self.abort(own, &other.id).await;
            }
        }
        best
    }

    /// The unfinished uploads of this key, and their ages.
    async fn unfinished(&self, own: &str) -> Option<Vec<(String, Option<Duration>)>> {
        let listed = self.quick.list_multipart_uploads().bucket(&self.name).prefix(own).send().await.ok()?;
        let uploads = listed.uploads().iter().filter(|upload| upload.key() == Some(own));
        let age = |time: aws_sdk_s3::primitives::DateTime| SystemTime::try_from(time).ok()?.elapsed().ok();
        Some(uploads.filter_map(|u| Some((u.upload_id()?.to_owned(), u.initiated().copied().and_then(age)))).collect())
    }

    async fn parts_there(&self, own: &str, id: &str) -> Option<BTreeMap<i32, There>> {
        let mut there = BTreeMap::new();
        let mut after: Option<String> = None;
        // Not the SDK's paginator: it takes the last page's marker, which some servers give, for another page's.
        loop {
            let request = self.quick.list_parts().bucket(&self.name).key(own).upload_id(id);
            let page = request.set_part_number_marker(after.clone()).send().await.ok()?;
            for part in page.parts() {
                let size = part.size().and_then(|n| u64::try_from(n).ok());
                if let (Some(number), Some(etag), Some(size)) = (part.part_number(), part.e_tag(), size) {
                    let sha256 = part.checksum_sha256().map(str::to_owned);
                    there.insert(number, There { etag: etag.to_owned(), sha256, size });
                }
            }
            let next = page.next_part_number_marker().map(str::to_owned);
            if page.is_truncated() != Some(true) || next.is_none() || next == after {
                break;
            }
            after = next;
        }
        Some(there)
    }
}

/// Whether what is there is this file, by what the server says of it.
fn is(head: &Head, local: &Local, source: &Source) -> bool {
    head.size == source.size && digest::parts_of(head).is_some_and(|parts| local.agrees(head, parts))
}

/// Whether another publisher may have put something else there as soon as it was written: the name does not name the content, and
/// nothing was asked of what is there. What is found then is not what was sent, and nothing is wrong.
fn others_may_replace(how: &Put<'_>) -> bool {
    how.keep == Keep::Briefly && how.condition == Condition::Always
}

/// Whether what the server says of the object would tell another file from this one.
fn known(head: &Head, source: &Source, local: &Local) -> bool {
    head.size != source.size || (head.sha256.is_some() && digest::parts_of(head) == Some(local.parts.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_by_its_content_is_nothing_else_afterwards() {
        let may = |keep, condition| others_may_replace(&Put { content_type: "text/plain", keep, condition });
        assert!(may(Keep::Briefly, Condition::Always));
        assert!(!may(Keep::Forever, Condition::Always), "a blob of another size is damaged");
        assert!(!may(Keep::Briefly, Condition::Absent) && !may(Keep::Forever, Condition::Absent));
    }

    #[test]
    fn parts_are_as_many_as_s3_takes() {
        assert_eq!(part_size(16 << 20, 1 << 30), 16 << 20);
        let huge = 5_u64 << 40;
        let size = part_size(16 << 20, huge);
        assert!(huge.div_ceil(size) <= 10_000 && size.is_multiple_of(1 << 20));
    }
}
