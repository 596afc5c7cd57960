//! The name of an object in a store: what S3 takes as a key and a folder can hold as a path.

use super::StoreError;
use std::fmt;
use std::path::Path;

/// A key such as `v3/layout.json`: parts joined by `/`, each fit to be a file name.
///
/// Invariants: not empty, at most 1,024 bytes (the limit of S3), no part is empty, `.` or `..`, or has a control character.
/// So a key joined to a folder stays in it.
///
/// ```
/// use slurm_factory::publish::Key;
/// assert_eq!(Key::new("blobs/sha256/ab/abcd").unwrap().as_str(), "blobs/sha256/ab/abcd");
/// for wrong in ["", "/etc/passwd", "a//b", "a/../b", "a/./b", "a/", "a\nb"] {
///     assert!(Key::new(wrong).is_err(), "{wrong:?}");
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

const LONGEST: usize = 1024;

impl Key {
    /// Checks the name.
    pub fn new(text: impl Into<String>) -> Result<Self, StoreError> {
        let text = text.into();
        let refuse = |reason| Err(StoreError::BadKey { key: text.escape_debug().to_string(), reason });
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > LONGEST {
            return refuse("it has more than 1,024 bytes");
        }
        for part in text.split('/') {
            if matches!(part, "" | "." | "..") {
                return refuse("it has an empty part, `.` or `..`");
            }
            if part.len() > 255 {
                return refuse("a part has more than 255 bytes, which no file system takes");
            }
            if part.chars().any(char::is_control) {
                return refuse("it has a control character");
            }
        }
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This key below another, as a prefix inside a bucket is put before it.
    pub fn below(&self, prefix: &str) -> String {
        let prefix = prefix.trim_matches('/');
        if prefix.is_empty() { self.0.clone() } else { format!("{prefix}/{}", self.0) }
    }

    pub(super) fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
