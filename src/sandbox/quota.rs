//! `--disk`: what a build writes, watched. An ordinary user cannot set a quota on a file system, so the folders that
//! are written are looked through now and then, and a build that wrote too much is ended.
//!
//! Counted is what the folders have grown by since they were first seen, in blocks on disk, hard links once. Another build
//! that writes to the same folders at the same time counts too. Between two looks a build can write more than is allowed:
//! the limit protects a shared disk from a build gone wrong, it is not exact.

use super::spec::{Access, Layer, Spec};
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The least time between two looks. A look may take a twentieth of the time, so on slow disks they are rarer.
const PAUSE: Duration = Duration::from_secs(1);

/// A limit, and what the folders held and hold.
#[derive(Debug)]
pub(super) struct Quota {
    limit: u64,
    folders: Mutex<BTreeMap<PathBuf, Held>>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    at_first: u64,
    now: u64,
}

impl Quota {
    pub fn new(limit: u64) -> Self {
        Self { limit, folders: Mutex::default() }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The folders of the host that a sandbox may write to.
    pub fn written_by(spec: &Spec) -> Vec<PathBuf> {
        let mounts = spec.mounts.iter().filter(|mount| mount.access == Access::ReadWrite);
        let rootfs = (spec.rootfs_access == Access::ReadWrite).then(|| spec.rootfs.clone());
        let layer = match &spec.layer {
            Some(Layer::Overlay { upper: Some(upper), .. } | Layer::Fuse { upper, .. }) => Some(upper.clone()),
            Some(Layer::Overlay { upper: None, .. }) | None => None,
        };
        rootfs.into_iter().chain(layer).chain(mounts.map(|mount| mount.source.clone())).collect()
    }

    /// Looks at these folders and returns how many bytes have been written in all, also by sandboxes before.
    pub fn look(&self, folders: &[PathBuf]) -> u64 {
        for folder in folders {
            let now = used(folder);
            let mut known = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
            known.entry(folder.clone()).or_insert(Held { at_first: now, now }).now = now;
        }
        let known = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().map(|held| held.now.saturating_sub(held.at_first)).sum()
    }

    /// Looks until `ended` is told, and calls `exceeded` once with the bytes written when they are too many.
    pub fn watch(&self, folders: &[PathBuf], ended: &std::sync::mpsc::Receiver<()>, exceeded: impl FnOnce(u64)) {
        let mut pause = PAUSE;
        while ended.recv_timeout(pause) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let start = Instant::now();
            let written = self.look(folders);
            if written > self.limit {
                return exceeded(written);
            }
            pause = PAUSE.max(start.elapsed() * 20);
        }
    }
}

/// Bytes on disk of everything below `dir`. What vanishes or is closed while it is looked at counts for nothing.
fn used(dir: &Path) -> u64 {
    let mut linked = HashSet::new();
    let entries = walkdir::WalkDir::new(dir).follow_links(false).into_iter().filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(|found| found.nlink() < 2 || found.is_dir() || linked.insert((found.dev(), found.ino())))
        .map(|found| found.blocks() * 512)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

    #[test]
    fn growth_is_counted_and_hard_links_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("old"), vec![1; 1 << 20]).unwrap();
        let folders = [dir.path().to_owned()];
        let quota = Quota::new(1 << 20);
        assert_eq!(quota.look(&folders), 0, "what was there is not the build's");
        fs::write(dir.path().join("new"), vec![1; 3 << 20]).unwrap();
        fs::hard_link(dir.path().join("new"), dir.path().join("again")).unwrap();
        let written = quota.look(&folders);
        assert!((3 << 20..4 << 20).contains(&written), "{written}");
    }

    #[test]
    fn what_a_sandbox_writes_to() {
        let spec = Spec::build("/r").mount("/a", "/a", Access::ReadWrite).mount("/b", "/b", Access::ReadOnly);
        assert_eq!(Quota::written_by(&spec), [PathBuf::from("/a")]);
        assert_eq!(Quota::written_by(&Spec::prepare("/r")), [PathBuf::from("/r")]);
    }
}
