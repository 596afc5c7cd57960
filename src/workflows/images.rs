//! Forgets images, and deletes what nobody needs any more.
//!
//! Forgetting is done at once, also while builds run: who has resolved an image does not look at its memory again.
//! Deleting needs the cache alone (`image::collect` says why), so while another run works in it the blobs stay, and
//! the next `image remove` or `clean` takes them.

use super::clean::IN_USE;
use crate::cache::{Cache, CacheError};
use crate::image::{self, Collected, ImageError, Memory, Reference};
use std::collections::BTreeSet;
use std::path::Path;

/// So many digits of a digest are enough to name one.
const SHORTEST: usize = 6;

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// No memory fits.
    #[error("no image `{text}` is in the cache; `slurm-factory image list` shows what is")]
    Unknown {
        /// What was asked for.
        text: String,
    },
    /// A short digest fits several.
    #[error("`{text}` may be any of {}; write more digits", digests.join(", "))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// Which digests begin so.
        digests: Vec<String>,
    },
    /// The images cannot be read or deleted.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// What was removed.
#[derive(Debug)]
pub struct Removed {
    /// The references that are forgotten.
    pub forgotten: Vec<Memory>,
    /// The blobs that went with them; `None` when another run uses the cache, so that they stay for now.
    pub collected: Option<Collected>,
}

/// Forgets the images that references and digests name. Nothing is done unless every one of them is known. `cwd` is
/// what relative paths in references are relative to. A short name is one of Docker Hub's: who knows better gives the
/// whole name.
pub fn remove(cache: &Cache, names: &[String], cwd: &Path) -> Result<Removed, RemoveError> {
    let known = image::list(cache)?;
    let mut chosen: Vec<Memory> = Vec::new();
    for name in names {
        for memory in select(&known, name, cwd)? {
            if !chosen.iter().any(|c| c.path() == memory.path()) {
                chosen.push(memory.clone());
            }
        }
    }
    for memory in &chosen {
        memory.forget()?;
    }
    let collected = match cache.try_lock(IN_USE)? {
        // What is kept is read again: it may have become more.
        Some(alone) => Some(image::collect(cache, &image::list(cache)?, false, &alone)?),
        None => None,
    };
    Ok(Removed { forgotten: chosen, collected })
}

/// The digits, when a text may be the beginning of a digest.
pub fn digits(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    (digits.len() >= SHORTEST && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(digits)
}

fn select<'a>(known: &'a [Memory], name: &str, cwd: &Path) -> Result<Vec<&'a Memory>, RemoveError> {
    if let Ok(reference) = name.parse::<Reference>() {
        let reference = reference.below(cwd);
        let found: Vec<&Memory> = known.iter().filter(|m| *m.image().reference() == reference).collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let unknown = || RemoveError::Unknown { text: name.to_owned() };
    let Some(digits) = digits(name) else { return Err(unknown()) };
    let found: Vec<&Memory> = known.iter().filter(|m| m.image().digest().hex().starts_with(digits)).collect();
    let digests: BTreeSet<String> = found.iter().map(|m| m.image().digest().to_string()).collect();
    match digests.len() {
        0 => Err(unknown()),
        1 => Ok(found),
        _ => Err(RemoveError::Ambiguous { text: name.to_owned(), digests: digests.into_iter().collect() }),
    }
}
