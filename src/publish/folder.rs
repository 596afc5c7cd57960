//! A folder that behaves as a store: for `file://`, for a web server's tree, for a disk that is carried to another site.
//!
//! ```text
//! FOLDER/<key>            the objects, mode 0644
//! FOLDER/**/.tmp-*        objects under way, beside where they will be; renamed into place when whole. A killed run leaves them
//!                         ([`Store::sweep`])
//! FOLDER/.publish.lock    held while a write with a condition looks and writes
//! ```
//!
//! The version of an object is the SHA-256 of its bytes. Conditions hold among publishers that see each other's locks: on one
//! host, and on shared file systems whose server does locks.

use super::{Condition, Entry, Key, Put, Source, Store, StoreError, Version, Written, io_error, with_path};
use crate::fsutil;
use crate::report::Ctx;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::TryLockError;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const LOCK: &str = ".publish.lock";
const BUFFER: usize = 1 << 20;

/// A folder as a store.
#[derive(Debug)]
pub struct FolderStore {
    root: PathBuf,
    address: String,
}

impl FolderStore {
    /// The store in `root`, which is made by a check or with the first object; nothing is looked at or written now.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), address: format!("file://{}", root.display()) }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.path())
    }

    fn io<T>(&self, result: io::Result<T>) -> Result<T, StoreError> {
        result.map_err(|e| io_error(&self.address, e))
    }

    /// The open object and its size. A symlink is followed: whoever keeps the folder may place objects elsewhere.
    fn open(&self, key: &Key) -> Result<Option<(fs::File, u64)>, StoreError> {
        let file = match fs::File::open(self.path(key)) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(io_error(&self.address, e)),
        };
        let meta = self.io(file.metadata())?;
        // A folder in an object's place is the begin of other keys.
        Ok(meta.is_file().then_some((file, meta.len())))
    }

    fn version(&self, key: &Key, ctx: &Ctx) -> Result<Option<Version>, StoreError> {
        let Some((mut file, _)) = self.open(key)? else { return Ok(None) };
        let mut hasher = Sha256::new();
        self.copy(
            &mut file,
            &mut |bytes| {
                hasher.update(bytes);
                Ok(())
            },
            ctx,
        )?;
        Ok(Some(Version(hex::encode(hasher.finalize()))))
    }

    fn copy(
        &self,
        from: &mut dyn Read,
        to: &mut dyn FnMut(&[u8]) -> io::Result<()>,
        ctx: &Ctx,
    ) -> Result<u64, StoreError> {
        let mut buffer = vec![0; BUFFER];
        let mut total = 0;
        loop {
            ctx.check()?;
            let read = match from.read(&mut buffer) {
                Ok(0) => return Ok(total),
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(io_error(&self.address, e)),
            };
            self.io(to(&buffer[..read]))?;
            total += read as u64;
        }
    }

    /// Waits for the right to look and write.
    fn lock(&self, ctx: &Ctx) -> Result<fs::File, StoreError> {
        self.io(fs::create_dir_all(&self.root))?;
        let path = self.root.join(LOCK);
        let open = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
        let file = self.io(open)?;
        loop {
            match file.file().try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(Duration::from_millis(5));
                    ctx.check()?;
                }
                Err(TryLockError::Error(e)) => return Err(with_path(&self.address, &e, "lock", &path)),
            }
        }
    }

    /// An object under way: beside where it will be, so that the last step is a rename.
    fn begin(&self, key: &Key) -> Result<tempfile::NamedTempFile, StoreError> {
        let path = self.path(key);
        let parent = fsutil::parent_of(&path);
        self.io(fs::create_dir_all(parent))?;
        tempfile::Builder::new()
            .prefix(fsutil::TEMPORARY)
            .permissions(std::fs::Permissions::from_mode(0o644))
            .tempfile_in(parent)
            .map_err(|e| with_path(&self.address, &e, "create a temporary file in", parent))
    }

    /// The last step of every write.
    fn finish(
        &self,
        key: &Key,
        file: tempfile::NamedTempFile,
        version: Version,
        condition: &Condition,
        ctx: &Ctx,
    ) -> Result<Written, StoreError> {
        let path = self.path(key);
        file.as_file().sync_all().map_err(|e| with_path(&self.address, &e, "sync", &path))?;
        let _lock = match condition {
            Condition::Always => None,
            Condition::Absent | Condition::Unchanged(_) => {
                let lock = self.lock(ctx)?;
                let there = match condition {
                    Condition::Unchanged(_) => self.version(key, ctx)?,
                    // Only whether there is something matters: nothing is read for that.
                    _ => self.open(key)?.map(|_| Version(String::new())),
                };
                let holds = match condition {
                    Condition::Unchanged(expected) => there.as_ref() == Some(expected),
                    _ => there.is_none(),
                };
                if !holds {
                    return Ok(Written::Conflict);
                }
                Some(lock)
            }
        };
        file.persist(&path).map_err(|e| with_path(&self.address, &e.error, "rename into place", &path))?;
        Ok(Written::Yes(version))
    }

    /// The files below `start` whose keys begin with `prefix`, and whose names are wanted, by their keys.
    fn walk(
        &self,
        start: &Path,
        prefix: &str,
        wanted: &dyn Fn(&OsStr) -> bool,
        ctx: &Ctx,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        if !start.is_dir() {
            return Ok(entries);
        }
        for entry in walkdir::WalkDir::new(start).follow_links(true) {
            ctx.check()?;
            let Some(entry) = self.io(still(entry.map_err(io::Error::from)))? else { continue };
            if !entry.file_type().is_file() || !wanted(entry.file_name()) {
                continue;
            }
            let Some(text) = entry.path().strip_prefix(&self.root).ok().and_then(Path::to_str) else { continue };
            if !text.starts_with(prefix) {
                continue;
            }
            // What others put there under names that no object of ours can have is none of ours.
            let Ok(key) = Key::new(text) else { continue };
            let Some(meta) = self.io(still(entry.metadata().map_err(io::Error::from)))? else { continue };
            let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            entries.push(Entry { key, size: meta.len(), modified });
        }
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }
}

impl Store for FolderStore {
    fn address(&self) -> &str {
        &self.address
    }

    fn is_here(&self) -> bool {
        true
    }

    fn check(&self, _ctx: &Ctx) -> Result<(), StoreError> {
        self.io(fs::create_dir_all(&self.root))?;
        fsutil::writable(&self.root).map_err(|e| with_path(&self.address, &e, "write to", &self.root))
    }

    fn size(&self, key: &Key, ctx: &Ctx) -> Result<Option<u64>, StoreError> {
        ctx.check()?;
        Ok(self.open(key)?.map(|(_, size)| size))
    }

    fn read(&self, key: &Key, limit: u64, ctx: &Ctx) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        let Some((file, size)) = self.open(key)? else { return Ok(None) };
        ctx.check()?;
        let mut bytes = Vec::new();
        self.io(file.take(limit.saturating_add(1)).read_to_end(&mut bytes))?;
        if bytes.len() as u64 > limit {
            return Err(StoreError::TooLarge { address: self.address.clone(), key: key.clone(), size, limit });
        }
        let version = Version(hex::encode(Sha256::digest(&bytes)));
        Ok(Some((bytes, version)))
    }

    fn download(&self, key: &Key, out: &mut dyn Write, ctx: &Ctx) -> Result<Option<u64>, StoreError> {
        let Some((mut file, _)) = self.open(key)? else { return Ok(None) };
        self.copy(&mut file, &mut |bytes| out.write_all(bytes), ctx).map(Some)
    }

    fn put(&self, key: &Key, bytes: &[u8], how: &Put<'_>, ctx: &Ctx) -> Result<Written, StoreError> {
        let mut file = self.begin(key)?;
        file.write_all(bytes).map_err(|e| with_path(&self.address, &e, "write", &self.path(key)))?;
        self.finish(key, file, Version(hex::encode(Sha256::digest(bytes))), &how.condition, ctx)
    }

    fn put_file(&self, key: &Key, source: &Source, how: &Put<'_>, ctx: &Ctx) -> Result<Written, StoreError> {
        let mut from = self.io(fs::File::open(&source.path))?;
        let mut file = self.begin(key)?;
        let path = self.path(key);
        let mut hasher = Sha256::new();
        self.copy(
            &mut from,
            &mut |bytes| {
                hasher.update(bytes);
                file.write_all(bytes).map_err(|e| fsutil::with_path(&e, "write", &path))
            },
            ctx,
        )?;
        let sha256 = hex::encode(hasher.finalize());
        if sha256 != source.sha256 {
            return Err(super::changed(&self.address, source, &sha256));
        }
        self.finish(key, file, Version(sha256), &how.condition, ctx)
    }

    fn list(&self, prefix: &str, ctx: &Ctx) -> Result<Vec<Entry>, StoreError> {
        // Only the folder that the prefix names is walked.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let start = if folder.is_empty() { self.root.clone() } else { self.root.join(Key::new(folder)?.path()) };
        let ours = |name: &OsStr| !fsutil::is_temporary(name) && name != LOCK;
        self.walk(&start, prefix, &ours, ctx)
    }

    fn sweep(&self, before: SystemTime, dry_run: bool, ctx: &Ctx) -> Result<Vec<Entry>, StoreError> {
        let mut left = self.walk(&self.root, "", &fsutil::is_temporary, ctx)?;
        left.retain(|entry| entry.modified < before);
        for entry in left.iter().filter(|_| !dry_run) {
            self.delete(&entry.key, ctx)?;
        }
        Ok(left)
    }

    fn delete(&self, key: &Key, ctx: &Ctx) -> Result<(), StoreError> {
        ctx.check()?;
        match fs::remove_file(self.path(key)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error(&self.address, e)),
            _ => Ok(()),
        }
    }
}

/// Nothing when it went while a folder was walked, as objects of others do at any time, or leads nowhere.
fn still<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::Keep;

    fn how(condition: Condition) -> Put<'static> {
        Put { content_type: "text/plain", keep: Keep::Briefly, condition }
    }

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let store = FolderStore::new(&dir.path().join("made/later"));
        let ctx = Ctx::silent();
        assert_eq!(store.size(&key("a/b"), &ctx).unwrap(), None);
        assert_eq!(store.list("", &ctx).unwrap(), []);
        let Written::Yes(version) = store.put(&key("a/b"), b"one", &how(Condition::Absent), &ctx).unwrap() else {
            panic!("nothing was there")
        };
        assert_eq!(store.read(&key("a/b"), 3, &ctx).unwrap(), Some((b"one".to_vec(), version.clone())));
        assert!(matches!(store.read(&key("a/b"), 2, &ctx), Err(StoreError::TooLarge { size: 3, limit: 2, .. })));
        assert_eq!(store.size(&key("a/b"), &ctx).unwrap(), Some(3));
        // A terabyte that takes no room: its size is known without reading it.
        let large = fs::OpenOptions::new().write(true).create_new(true).open(dir.path().join("made/later/a-large"));
        large.unwrap().set_len(1 << 40).unwrap();
        assert_eq!(store.size(&key("a-large"), &ctx).unwrap(), Some(1 << 40));
        store.delete(&key("a-large"), &ctx).unwrap();
        assert_eq!(store.put(&key("a/b"), b"two", &how(Condition::Absent), &ctx).unwrap(), Written::Conflict);
        let Written::Yes(second) =
            store.put(&key("a/b"), b"two", &how(Condition::Unchanged(version.clone())), &ctx).unwrap()
        else {
            panic!("it had not changed")
        };
        assert_ne!(second, version);
        assert_eq!(
            store.put(&key("a/b"), b"three", &how(Condition::Unchanged(version)), &ctx).unwrap(),
            Written::Conflict
        );
        store.put(&key("a-c"), b"x", &how(Condition::Always), &ctx).unwrap();
        store.put(&key("a/b2/c"), b"x", &how(Condition::Always), &ctx).unwrap();
        let names = |prefix: &str| -> Vec<String> {
            store.list(prefix, &ctx).unwrap().iter().map(|e| e.key.to_string()).collect()
        };
        assert_eq!(names(""), ["a-c", "a/b", "a/b2/c"]);
        assert_eq!(names("a/b"), ["a/b", "a/b2/c"], "a prefix is of letters, not of folders");
        store.delete(&key("a/b"), &ctx).unwrap();
        store.delete(&key("a/b"), &ctx).unwrap();
        assert_eq!(store.size(&key("a/b"), &ctx).unwrap(), None);
    }

    #[test]
    fn what_goes_while_a_folder_is_listed_does_not_end_the_listing() {
        let dir = tempfile::tempdir().unwrap();
        let store = FolderStore::new(dir.path());
        let ctx = Ctx::silent();
        store.put(&key("stays"), b"x", &how(Condition::Always), &ctx).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("gone")).unwrap();
        assert_eq!(store.list("", &ctx).unwrap().len(), 1);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for n in 0..50 {
                        let at = key(&format!("goes/{n}/x"));
                        store.put(&at, b"x", &how(Condition::Always), &ctx).unwrap();
                        fs::remove_dir_all(dir.path().join(format!("goes/{n}"))).unwrap();
                    }
                }
            });
            let all = (0..200).map(|_| store.list("", &ctx)).collect::<Result<Vec<_>, _>>();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(all.unwrap().iter().all(|found| found.iter().any(|e| e.key == key("stays"))));
        });
    }

    #[test]
    fn a_file_that_changed_is_not_published() {
        let dir = tempfile::tempdir().unwrap();
        let store = FolderStore::new(&dir.path().join("store"));
        let ctx = Ctx::silent();
        let path = dir.path().join("file");
        fs::write(&path, "content").unwrap();
        let right = Source { path, size: 7, sha256: hex::encode(Sha256::digest(b"content")) };
        let wrong = Source { sha256: hex::encode(Sha256::digest(b"other")), ..right.clone() };
        assert!(store.put_file(&key("x"), &wrong, &how(Condition::Always), &ctx).is_err());
        assert_eq!(store.list("", &ctx).unwrap(), [], "nothing is left of it");
        assert!(matches!(store.put_file(&key("x"), &right, &how(Condition::Absent), &ctx), Ok(Written::Yes(_))));
        let mut out = Vec::new();
        assert_eq!(store.download(&key("x"), &mut out, &ctx).unwrap(), Some(7));
        assert_eq!(out, b"content");
    }

    #[test]
    fn of_many_writers_at_once_one_wins_each_turn() {
        let dir = tempfile::tempdir().unwrap();
        let store = FolderStore::new(dir.path());
        let (store, counter) = (&store, &key("counter"));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(move || {
                    let ctx = Ctx::silent();
                    for _ in 0..25 {
                        loop {
                            let there = store.read(counter, 100, &ctx).unwrap();
                            let (value, condition) = match there {
                                None => (0, Condition::Absent),
                                Some((bytes, version)) => (
                                    String::from_utf8(bytes).unwrap().parse::<u32>().unwrap(),
                                    Condition::Unchanged(version),
                                ),
                            };
                            let next = (value + 1).to_string();
                            if store.put(counter, next.as_bytes(), &how(condition), &ctx).unwrap() != Written::Conflict
                            {
                                break;
                            }
                        }
                    }
                });
            }
        });
        let (bytes, _) = store.read(counter, 100, &Ctx::silent()).unwrap().unwrap();
        assert_eq!(bytes, b"200");
    }
}
