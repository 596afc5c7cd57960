//! Writes that depend on what is there: by the server where it can (`If-None-Match: *`, `If-Match`), else under a claim.
//!
//! What the server can is found out once a run, with one small object that is always there. A server that ignores the headers
//! writes what it should have refused; one that does not know them says so (501, 400).
//!
//! # The claim
//!
//! For servers without conditional writes. Whoever wants to write puts an object of a name of its own below `claims/`, then lists
//! them. Alone, it has the claim; else it takes its own away and tries again after a random time. Two cannot both be alone: an
//! object that was put is in every listing that begins afterwards (S3's consistency since 2020), so of two that put before they
//! list, the one that lists last sees the other.
//!
//! A claim is good for [`LEASE`]. Older ones, left by who was killed, are taken away by others; age is told by the server's
//! clock, which dates one's own claim too. Who holds one begins to write only within its first half, and gives up at its end. A
//! write that was given up and that a proxy holds back would come too late: such servers are for sites with one publisher at a
//! time, and `check` says which kind it is.

use super::failure::Failure;
use super::objects::Writing;
use super::{Bucket, objects};
use crate::publish::{Condition, Keep, Key, StoreError};
use crate::wait::random;
use bytes::Bytes;
use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant, SystemTime};

/// How long a claim is good.
const LEASE: Duration = Duration::from_mins(1);

/// How long to wait for others' claims.
const PATIENCE: Duration = Duration::from_mins(5);

const PROBE: &str = "probe";
const PROBE_TEXT: &[u8] = b"slurm-factory finds out with this object what the server can do. It may be deleted.\n";

/// An ETag that no object has.
const NEVER: &str = "\"00000000000000000000000000000000\"";

/// What the server can do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Abilities {
    /// `If-None-Match: *` on writes.
    pub if_none_match: bool,
    /// `If-Match` on writes.
    pub if_match: bool,
    /// Keeps SHA-256 checksums, or lets them pass.
    pub checksums: bool,
}

impl fmt::Display for Abilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |able| if able { "yes" } else { "no" };
        write!(
            f,
            "If-None-Match {}, If-Match {}, checksums {}",
            word(self.if_none_match),
            word(self.if_match),
            word(self.checksums)
        )
    }
}

/// What a request itself says that it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum When {
    Always,
    Absent,
    Unchanged(String),
}

/// The right to look and write, for a while.
pub(super) struct Claim {
    own: String,
    taken: Instant,
}

impl Bucket {
    /// What the server can do. The first call of a run writes the probe: so it also tells whether anything can be written here.
    pub async fn abilities(&self) -> Result<Abilities, StoreError> {
        self.abilities.get_or_try_init(|| self.probe()).await.copied()
    }

    async fn probe(&self) -> Result<Abilities, StoreError> {
        let own = self.own(PROBE);
        let fault = |e: &Failure| self.fault("write here", e);
        let put = async |when: When, sums: bool| {
            let writing = Writing { content_type: "text/plain", keep: Keep::Briefly, when: &when };
            self.put_once(&own, Bytes::from_static(PROBE_TEXT), &writing, "probe", sums).await
        };
        let checksums = match put(When::Always, true).await {
            Ok(_) => true,
            Err(e) if e.unsupported() => {
                put(When::Always, false).await.map_err(|e| fault(&e))?;
                false
            }
            Err(e) => return Err(fault(&e)),
        };
        let refused = |answer: Result<String, Failure>| match answer {
            Ok(_) => Ok(false),
            Err(e) if e.conflict() => Ok(true),
            Err(e) if e.unsupported() => Ok(false),
            Err(e) => Err(fault(&e)),
        };
        let if_none_match = refused(put(When::Absent, checksums).await)?;
        let if_match = refused(put(When::Unchanged(NEVER.to_owned()), checksums).await)?;
        Ok(Abilities { if_none_match, if_match, checksums })
    }

    /// What the request has to say, or the claim under which it may be sent; `None` when the condition does not hold.
    pub async fn ready(
        &self,
        key: &Key,
        own: &str,
        condition: &Condition,
    ) -> Result<Option<(When, Option<Claim>)>, StoreError> {
        let abilities = self.abilities().await?;
        match condition {
            Condition::Always => Ok(Some((When::Always, None))),
            Condition::Absent if abilities.if_none_match => Ok(Some((When::Absent, None))),
            Condition::Unchanged(version) if abilities.if_match => Ok(Some((When::Unchanged(version.0.clone()), None))),
            Condition::Absent | Condition::Unchanged(_) => {
                let started = Instant::now();
                loop {
                    let claim = self.claim(started).await?;
                    let holds = self.holds_now(key, own, condition).await;
                    if !matches!(holds, Ok(true)) {
                        self.release(&claim).await;
                        return holds.map(|_| None);
                    }
                    if claim.taken.elapsed() < LEASE / 2 {
                        return Ok(Some((When::Always, Some(claim))));
                    }
                    self.release(&claim).await;
                }
            }
        }
    }

    async fn claim(&self, started: Instant) -> Result<Claim, StoreError> {
        let prefix = self.own("claims/");
        let fault = |e: &Failure| self.fault("claim the right to write", e);
        let mut tries = 0;
        loop {
            let own = format!("{prefix}{:016x}", random());
            let taken = Instant::now();
            let writing = Writing { content_type: "text/plain", keep: Keep::Briefly, when: &When::Always };
            let text = Bytes::from_static(b"A publisher is writing.\n");
            self.put_once(&own, text, &writing, "claim", false).await.map_err(|e| fault(&e))?;
            let there = self.list(&prefix).await.map_err(|e| fault(&e))?;
            let now = there.iter().find(|claim| claim.key == own).and_then(|claim| claim.modified);
            let mut others = None;
            for claim in there.iter().filter(|claim| claim.key != own) {
                if older(claim.modified, now) {
                    self.remove(&claim.key).await.map_err(|e| fault(&e))?;
                } else {
                    others = Some(&claim.key);
                }
            }
            let claim = Claim { own, taken };
            match others {
                // Its own must be in the listing: a server whose listings come late cannot be claimed from.
                None if now.is_some() => return Ok(claim),
                None => {
                    self.release(&claim).await;
                    return Err(fault(&Failure::local(
                        "the server has no conditional writes, and its listings do not show what was just written; publish to \
                         another server, or to a folder that is copied there",
                    )));
                }
                Some(other) if started.elapsed() > PATIENCE => {
                    let text =
                        format!("`{other}` says that another publisher is writing; if none is, delete that object");
                    self.release(&claim).await;
                    return Err(fault(&Failure::local(text)));
                }
                Some(_) => self.release(&claim).await,
            }
            tries += 1;
            objects::pause(tries.min(4)).await;
        }
    }

    /// Does a write in what is left of a claim's time: after that, others may take the claim away.
    pub async fn within<T>(
        &self,
        claim: Option<&Claim>,
        write: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let Some(claim) = claim else { return write.await };
        match tokio::time::timeout(LEASE.saturating_sub(claim.taken.elapsed()), write).await {
            Ok(written) => written,
            Err(_) => Err(Failure::local("the write took longer than a claim is good; run the same again")),
        }
    }

    /// Lets others write. One that cannot be taken away ends by its age.
    pub async fn release(&self, claim: &Claim) {
        let _ = self.remove(&claim.own).await;
    }
}

fn older(claim: Option<SystemTime>, now: Option<SystemTime>) -> bool {
    claim.zip(now).and_then(|(claim, now)| now.duration_since(claim).ok()).is_some_and(|age| age > LEASE)
}
