//! The content-addressed store: a blob's name is the digest of its bytes.
//!
//! ```text
//! CACHE/blobs/
//!   sha256/<hex>     whole blobs: digest and size were right when they were renamed into place
//!   partial/<hex>    blobs under way, each locked by the one who writes it
//! ```
//!
//! A download is written to `partial/`, hashed as it comes, and renamed only when size and digest are right. A
//! cut one stays there, under a name nobody takes for a blob, and the next run goes on where it ended. Two
//! processes that want the same blob meet at its lock: the second waits, then finds the blob.
//!
//! Same folder and file names as the `blobs/` of an OCI layout (image-spec `image-layout.md`).

use super::arriving::Arrival;
use super::{Digest, ImageError};
use crate::cache::Cache;
use crate::fsutil;
use crate::sha256::Sha256;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use std::fs::TryLockError;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The blobs of a cache.
#[derive(Clone, Debug)]
pub struct BlobStore {
    whole: PathBuf,
    partial: PathBuf,
}

/// A blob that is wanted: what it must be, and what it is called in messages.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What its bytes must hash to.
    pub digest: Digest,
    /// How many there must be.
    pub size: u64,
    /// `the layer sha256:...`, `the configuration sha256:...`.
    pub what: String,
}

/// What [`BlobStore::begin`] found.
pub enum Begin {
    /// The blob is there already.
    There,
    /// Another process is writing it: try again in a moment.
    Busy,
    /// It is ours to write.
    Ours(Box<Partial>),
}

impl BlobStore {
    /// The store inside `cache`.
    pub fn new(cache: &Cache) -> Self {
        let dir = cache.dir("blobs");
        Self { whole: dir.join("sha256"), partial: dir.join("partial") }
    }

    /// Where the blob is when it is there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.whole.join(digest.hex())
    }

    /// Whether the blob is there with this size. One of another size stays: the size is a manifest's word, which may lie
    /// about a good blob of another image. If it is damaged, the right one takes its place, see [`Partial::commit`].
    pub fn has(&self, digest: &Digest, size: u64) -> Result<bool, ImageError> {
        let path = self.path(digest);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => Ok(meta.len() == size),
            // No blob, and in the way of one.
            Ok(_) => {
                fsutil::remove_tree(&path).map_err(ImageError::Io)?;
                Ok(false)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(ImageError::Io(e)),
        }
    }

    /// The folders that hold whole blobs and blobs under way.
    pub fn dirs(&self) -> [&Path; 2] {
        [&self.whole, &self.partial]
    }

    /// Like [`BlobStore::read`], but changes nothing.
    pub fn peek(&self, digest: &Digest, max: u64) -> Result<Option<Vec<u8>>, ImageError> {
        match read_small(&self.path(digest), max) {
            Ok(bytes) => Ok((Digest::of(&bytes) == *digest).then_some(bytes)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::FileTooLarge) => Ok(None),
            Err(e) => Err(ImageError::Io(e)),
        }
    }

    /// Deletes a blob that turned out to be damaged.
    pub fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        fsutil::remove_tree(&self.path(digest)).map_err(ImageError::Io)
    }

    /// Reads a small blob whole and checks its digest; `None` when it is not there or is damaged (then it is
    /// deleted, so that it is fetched again). One that is larger than `max` is not what is looked for, and stays: it may
    /// be a good layer, which a name or a manifest calls a document.
    pub fn read(&self, digest: &Digest, max: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let path = self.path(digest);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ImageError::Io(e)),
        };
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes).map_err(ImageError::Io)?;
        if bytes.len() as u64 > max {
            return Ok(None);
        }
        if Digest::of(&bytes) != *digest {
            self.remove(digest)?;
            return Ok(None);
        }
        Ok(Some(bytes))
    }

    /// Keeps bytes that are in memory.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        let path = self.path(&digest);
        if !self.has(&digest, bytes.len() as u64)? {
            fsutil::write_atomic(&path, bytes, 0o644)
                .map_err(|e| ImageError::io(e, "write", &path, "an image's manifest", bytes.len() as u64))?;
        }
        Ok(digest)
    }

    /// Begins to write a blob, or goes on with one that was cut.
    pub fn begin(&self, wanted: &Wanted) -> Result<Begin, ImageError> {
        if self.has(&wanted.digest, wanted.size)? {
            return Ok(Begin::There);
        }
        fs::create_dir_all(&self.whole).map_err(ImageError::Io)?;
        fs::create_dir_all(&self.partial).map_err(ImageError::Io)?;
        let path = self.partial.join(wanted.digest.hex());
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .map_err(|e| ImageError::io(e, "open", &path, &wanted.what, wanted.size))?;
        match file.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Begin::Busy),
            Err(TryLockError::Error(e)) => return Err(ImageError::Io(fsutil::with_path(&e, "lock", &path))),
        }
        // The file that was opened may have become the blob, by its writer's rename, before it was locked.
        let there = file.metadata().map_err(ImageError::Io)?.len();
        if !fsutil::is_at(file.file(), &path) {
            return Ok(Begin::Busy);
        }
        let mut partial = Partial {
            file,
            path,
            target: self.path(&wanted.digest),
            wanted: wanted.clone(),
            hasher: Sha256::new(),
            len: 0,
            arrival: None,
        };
        partial.take_up(there)?;
        Ok(Begin::Ours(Box::new(partial)))
    }
}

/// A blob under way. Dropped without [`Partial::commit`], its bytes stay in `partial/` for the next run.
pub struct Partial {
    file: fs::File,
    path: PathBuf,
    target: PathBuf,
    wanted: Wanted,
    hasher: Sha256,
    len: u64,
    arrival: Option<Arc<Arrival>>,
}

impl Partial {
    /// From now on `arrival` is told what is there. It reads through a descriptor of its own.
    pub fn tell(&mut self, arrival: Arc<Arrival>) -> Result<(), ImageError> {
        arrival.begins(self.file.try_clone().map_err(ImageError::Io)?, self.len);
        self.arrival = Some(arrival);
        Ok(())
    }

    /// How many bytes there are: where to go on.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether size and digest are right.
    pub fn is_right(&self) -> bool {
        self.len == self.wanted.size && Digest::finish(self.hasher.clone()) == self.wanted.digest
    }

    /// Hashes what an earlier run left. More than the whole blob is nothing to go on with.
    fn take_up(&mut self, there: u64) -> Result<(), ImageError> {
        if there > self.wanted.size {
            return self.restart();
        }
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = self.file.read(&mut buffer).map_err(ImageError::Io)?;
            if n == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..n]);
            self.len += n as u64;
        }
    }

    /// Forgets what there is.
    pub fn restart(&mut self) -> Result<(), ImageError> {
        self.file.set_len(0).map_err(ImageError::Io)?;
        self.file.seek(SeekFrom::Start(0)).map_err(ImageError::Io)?;
        self.hasher = Sha256::new();
        self.len = 0;
        if let Some(arrival) = &self.arrival {
            arrival.starts_again();
        }
        Ok(())
    }

    /// Adds bytes. More than the descriptor announces is an error at once.
    pub fn write(&mut self, bytes: &[u8], place: &str) -> Result<(), ImageError> {
        let after = self.len + bytes.len() as u64;
        if after > self.wanted.size {
            self.restart()?;
            return Err(self.wrong_size(after, place));
        }
        self.file.file_mut().write_all(bytes).map_err(|e| self.write_error(e))?;
        self.hasher.update(bytes);
        self.len = after;
        if let Some(arrival) = &self.arrival {
            arrival.has(after);
        }
        Ok(())
    }

    fn write_error(&self, error: io::Error) -> ImageError {
        ImageError::io(error, "write", &self.path, &self.wanted.what, self.wanted.size.saturating_sub(self.len))
    }

    fn wrong_size(&self, actual: u64, place: &str) -> ImageError {
        ImageError::SizeMismatch {
            what: self.wanted.what.clone(),
            place: place.to_owned(),
            expected: self.wanted.size,
            actual,
        }
    }

    /// Checks size and digest. What is wrong is forgotten, so that it can be fetched again.
    pub fn check(&mut self, place: &str) -> Result<(), ImageError> {
        if self.len != self.wanted.size {
            let error = self.wrong_size(self.len, place);
            self.restart()?;
            return Err(error);
        }
        let actual = Digest::finish(self.hasher.clone());
        if actual != self.wanted.digest {
            self.restart()?;
            return Err(ImageError::DigestMismatch {
                what: self.wanted.what.clone(),
                place: place.to_owned(),
                expected: Box::new(self.wanted.digest),
                actual: Box::new(actual),
                remedy: "it was damaged at its source or on the way; try again, or take it from elsewhere (a mirror, a new copy)",
            });
        }
        Ok(())
    }

    /// Checks size and digest and makes it a blob. What fails is forgotten, never kept under the blob's name.
    pub fn commit(mut self, place: &str) -> Result<(), ImageError> {
        self.check(place)?;
        fs::rename(&self.path, &self.target).map_err(ImageError::Io)?;
        if let Some(arrival) = &self.arrival {
            arrival.is_whole();
        }
        Ok(())
    }
}

/// Reads a whole small file, refusing one that is larger than `max`.
pub(crate) fn read_small(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("`{}` is larger than {max} bytes", path.display()),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, BlobStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::new(&Cache::open(dir.path()).unwrap());
        (dir, store)
    }

    fn wanted(bytes: &[u8]) -> Wanted {
        Wanted { digest: Digest::of(bytes), size: bytes.len() as u64, what: "the layer".to_owned() }
    }

    fn ours(store: &BlobStore, wanted: &Wanted) -> Partial {
        match store.begin(wanted).unwrap() {
            Begin::Ours(partial) => *partial,
            Begin::There => panic!("there"),
            Begin::Busy => panic!("busy"),
        }
    }

    #[test]
    fn a_cut_blob_goes_on_and_is_whole_only_when_it_is_right() {
        let (_dir, store) = store();
        let wanted = wanted(b"hello world");
        let mut partial = ours(&store, &wanted);
        partial.write(b"hello ", "x").unwrap();
        assert!(matches!(store.begin(&wanted).unwrap(), Begin::Busy), "its writer holds the lock");
        drop(partial);
        assert!(!store.has(&wanted.digest, wanted.size).unwrap());
        let mut partial = ours(&store, &wanted);
        assert_eq!(partial.len(), 6);
        partial.write(b"world", "x").unwrap();
        partial.commit("x").unwrap();
        assert!(matches!(store.begin(&wanted).unwrap(), Begin::There));
        assert_eq!(store.read(&wanted.digest, 100).unwrap().unwrap(), b"hello world");
    }

    #[test]
    fn wrong_bytes_are_not_kept() {
        let (_dir, store) = store();
        let wanted = wanted(b"hello");
        let mut partial = ours(&store, &wanted);
        partial.write(b"hellX", "x").unwrap();
        let text = partial.commit("http://r/x").unwrap_err().to_string();
        assert!(
            text.contains(&wanted.digest.to_string()) && text.contains(&Digest::of(b"hellX").to_string()),
            "{text}"
        );
        let mut partial = ours(&store, &wanted);
        assert_eq!(partial.len(), 0, "nothing to go on with");
        assert!(partial.write(b"hello!", "x").unwrap_err().to_string().contains("wrong size"));
        drop(partial);
        assert!(ours(&store, &wanted).commit("x").unwrap_err().to_string().contains("wrong size"));
        assert!(!store.path(&wanted.digest).exists());
    }

    #[test]
    fn a_damaged_blob_is_found_and_deleted() {
        let (_dir, store) = store();
        let digest = store.put(b"{}").unwrap();
        fs::write(store.path(&digest), "{]").unwrap();
        assert!(store.read(&digest, 100).unwrap().is_none());
        assert!(!store.path(&digest).exists());
        // Of the wrong size, it is there until the right one takes its place.
        store.put(b"{}").unwrap();
        fs::write(store.path(&digest), "").unwrap();
        assert!(!store.has(&digest, 2).unwrap());
        let mut partial = ours(&store, &wanted(b"{}"));
        partial.write(b"{}", "x").unwrap();
        partial.commit("x").unwrap();
        assert!(store.has(&digest, 2).unwrap());
        fs::write(store.path(&digest), "{").unwrap();
        assert_eq!(store.put(b"{}").unwrap(), digest);
        assert!(store.has(&digest, 2).unwrap());
        // A folder in its place is none.
        fs::remove_file(store.path(&digest)).unwrap();
        fs::create_dir(store.path(&digest)).unwrap();
        assert!(!store.has(&digest, 2).unwrap());
        store.put(b"{}").unwrap();
    }

    #[test]
    fn a_good_blob_outlives_what_is_said_of_it() {
        let (_dir, store) = store();
        let digest = store.put(b"hello world").unwrap();
        for size in [0, 5, 12, u64::MAX] {
            assert!(!store.has(&digest, size).unwrap());
        }
        assert!(store.read(&digest, 5).unwrap().is_none());
        assert_eq!(store.read(&digest, 11).unwrap().unwrap(), b"hello world");
    }
}
