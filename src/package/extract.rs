//! Reading a package: checking it, walking it, unpacking it. Nothing in it is believed.
//!
//! Unpacking never lets the archive choose where it writes:
//! - names that are absolute or hold `..` do not get past the tar reader;
//! - every folder on the way to a file is opened one by one with `O_NOFOLLOW` below an open handle of the target
//!   (what `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS` does, and works on the kernel 4.18 of RHEL 8 too),
//!   so a symlink that was unpacked before is never walked through;
//! - files are made with `O_EXCL`, so nothing is written twice or through a link;
//! - symlinks that lead out of the tree are refused, and so are hard links to anything but a file of the archive.
//!
//! Content is hashed as it is written and compared with the manifest, which comes last; a package that does not
//! match, or in which something is missing or too much, was never unpacked as far as anyone can see.

use super::archive::stays_inside;
use super::manifest::{FileEntry, FileKind};
use super::ustar::TarReader;
use super::{Checked, Kind, Manifest, Member, Package, PackageError, layout, told_to_stop};
use crate::fsutil::{self, Packing};
use crate::gzip;
use crate::report::{Ctx, Event, Stage};
use crate::sha256::Hashing;
use fs_err as fs;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// No manifest is larger.
const MANIFEST_LIMIT: u64 = 256 << 20;
/// Files up to this size are handed to other threads; larger ones are written as they come.
const SMALL: u64 = 1 << 20;
/// How many small files may wait.
const WAITING: usize = 32;

/// An entry while a package is walked.
pub struct Entry<'a> {
    /// Its name and kind.
    pub member: &'a Member,
    /// A file's content.
    pub content: &'a mut dyn Read,
}

impl Package {
    /// Hands out every entry in the archive's order, `manifest.json` last, without unpacking to disk.
    pub fn for_each_entry<E: From<PackageError>>(
        &self,
        ctx: &Ctx,
        mut visit: impl FnMut(Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let file = fs::File::open(&self.path).map_err(PackageError::Io)?;
        let found = walk(&self.path, file, ctx, |member, content| visit(Entry { member, content }))?;
        self.same(&found).map_err(E::from)
    }

    /// Unpacks into `dir`, which appears when everything in it is there and checked. It must not be there yet, or be
    /// empty.
    pub fn extract(&self, dir: &Path, ctx: &Ctx) -> Result<(), PackageError> {
        if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(PackageError::NotEmpty { dir: dir.to_owned() });
        }
        let parent = fsutil::parent_of(dir);
        fs::create_dir_all(parent).map_err(PackageError::Io)?;
        let staging = tempfile::Builder::new()
            .prefix(".tmp-")
            .tempdir_in(parent)
            .map_err(|e| PackageError::Io(fsutil::with_path(&e, "create a folder in", parent)))?;
        self.extract_into(staging.path(), ctx)?;
        let made = staging.keep();
        fs::rename(&made, dir).map_err(|error| {
            let _ = fsutil::remove_tree(&made);
            PackageError::Io(error)
        })
    }

    /// Unpacks into a folder that is there, is empty, and is nobody else's; it becomes mode 0755. After an error,
    /// what is in it is not to be used.
    pub fn extract_into(&self, dir: &Path, ctx: &Ctx) -> Result<(), PackageError> {
        let file = fs::File::open(&self.path).map_err(PackageError::Io)?;
        let found = unpack(&self.path, file, dir, self.manifest.facts.created, ctx)?;
        self.same(&found)
    }

    /// The archive must still be the one that was opened.
    fn same(&self, found: &str) -> Result<(), PackageError> {
        if self.sha256 == found {
            return Ok(());
        }
        let source = io::Error::other(format!("its sha256 was {} and is now {found}", self.sha256));
        Err(PackageError::Changed { path: self.path.clone(), source })
    }
}

/// Reads the whole archive and compares it with its manifest. Returns the manifest and the archive's sum.
pub(super) fn check(path: &Path, file: impl Read + Send, ctx: &Ctx) -> Result<(Manifest, String), PackageError> {
    let mut found = Found::new(path);
    let sha256 = walk(path, file, ctx, |member, content| {
        let sum = if member.path == Path::new(layout::MANIFEST) {
            found.set_manifest(read_manifest(path, content)?)?;
            String::new()
        } else {
            hash(path, content)?
        };
        found.add(member, sum)
    })?;
    Ok((found.compare()?, sha256))
}

/// Calls `visit` for every entry; returns the archive's sum.
fn walk<E: From<PackageError>>(
    path: &Path,
    file: impl Read + Send,
    ctx: &Ctx,
    mut visit: impl FnMut(&Member, &mut dyn Read) -> Result<(), E>,
) -> Result<String, E> {
    let damaged = |error| E::from(read_error(path, error));
    let mut hashing = Hashing::new(Checked::new(file, ctx));
    {
        let mut tar = TarReader::new(decode(path, &mut hashing)?);
        while let Some(member) = tar.next().map_err(damaged)? {
            visit(&member, &mut tar.content())?;
        }
        // What follows the archive is read for the sake of the last checksum.
        io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(damaged)?;
    }
    io::copy(&mut hashing, &mut io::sink()).map_err(damaged)?;
    Ok(hashing.hex())
}

fn read_error(path: &Path, source: io::Error) -> PackageError {
    told_to_stop(source, |source| PackageError::Damaged { path: path.to_owned(), source })
}

/// The archive inside, by the first bytes of the file.
fn decode<'r>(path: &Path, mut file: impl Read + Send + 'r) -> Result<Box<dyn Read + Send + 'r>, PackageError> {
    let mut magic = [0; 4];
    let got = gzip::read_up_to(&mut file, &mut magic).map_err(|e| told_to_stop(e, PackageError::Io))?;
    let whole = io::Cursor::new(magic.get(..got).unwrap_or_default().to_vec()).chain(file);
    match fsutil::packing(&magic) {
        Packing::Gzip => gzip::reader(whole, 0),
        Packing::Zstd => zstd::stream::read::Decoder::new(whole).map(|r| Box::new(r) as Box<dyn Read + Send>),
        Packing::None | Packing::Other(_) => {
            let reason = "it is neither a gzip nor a zstd file".to_owned();
            return Err(PackageError::NotAPackage { path: path.to_owned(), reason });
        }
    }
    .map_err(|source| PackageError::Damaged { path: path.to_owned(), source })
}

fn read_manifest(path: &Path, content: &mut dyn Read) -> Result<Manifest, PackageError> {
    let mut bytes = Vec::new();
    content.take(MANIFEST_LIMIT + 1).read_to_end(&mut bytes).map_err(|e| read_error(path, e))?;
    if bytes.len() as u64 > MANIFEST_LIMIT {
        let source = io::Error::other("its manifest.json is far too large");
        return Err(PackageError::Damaged { path: path.to_owned(), source });
    }
    Manifest::from_bytes(&bytes).map_err(|source| PackageError::Manifest { path: path.to_owned(), source })
}

fn hash(path: &Path, content: &mut dyn Read) -> Result<String, PackageError> {
    let mut hashing = Hashing::new(content);
    io::copy(&mut hashing, &mut io::sink()).map_err(|e| read_error(path, e))?;
    Ok(hashing.hex())
}

/// What was found in an archive, to be compared with what its manifest says.
struct Found<'p> {
    path: &'p Path,
    files: HashMap<String, FileKind>,
    manifest: Option<Manifest>,
}

impl<'p> Found<'p> {
    fn new(path: &'p Path) -> Self {
        Self { path, files: HashMap::new(), manifest: None }
    }

    fn wrong(&self, entry: &str, problem: &str) -> PackageError {
        PackageError::Contents { path: self.path.to_owned(), entry: entry.to_owned(), problem: problem.to_owned() }
    }

    fn set_manifest(&mut self, manifest: Manifest) -> Result<(), PackageError> {
        match self.manifest.replace(manifest) {
            None => Ok(()),
            Some(_) => Err(self.wrong(layout::MANIFEST, "it is in the archive twice")),
        }
    }

    fn add(&mut self, member: &Member, sha256: String) -> Result<(), PackageError> {
        if member.path == Path::new(layout::MANIFEST) {
            return Ok(());
        }
        let FileEntry { path, kind } = FileEntry::of(member, sha256);
        if self.files.contains_key(&path) {
            return Err(self.wrong(&path, "it is in the archive twice"));
        }
        self.files.insert(path, kind);
        Ok(())
    }

    fn compare(mut self) -> Result<Manifest, PackageError> {
        let Some(manifest) = self.manifest.take() else {
            let reason = "it holds no manifest.json".to_owned();
            return Err(PackageError::NotAPackage { path: self.path.to_owned(), reason });
        };
        for entry in &manifest.files {
            match self.files.remove(&entry.path) {
                None => return Err(self.wrong(&entry.path, "it is missing")),
                Some(kind) if kind == entry.kind => {}
                Some(FileKind::File { sha256, .. }) => {
                    return Err(self.wrong(&entry.path, &format!("its content (sha256 {sha256}) or mode differs")));
                }
                Some(_) => return Err(self.wrong(&entry.path, "it is of another kind or leads elsewhere")),
            }
        }
        match self.files.keys().min() {
            Some(extra) => Err(self.wrong(&extra.clone(), "it is not listed")),
            None => Ok(manifest),
        }
    }
}

/// Unpacks below `dir`; returns the archive's sum.
fn unpack(path: &Path, file: impl Read + Send, dir: &Path, mtime: u64, ctx: &Ctx) -> Result<String, PackageError> {
    let mut found = Found::new(path);
    let target = Target::new(dir, mtime);
    let mut below = Below::open_root(&target).map_err(PackageError::Io)?;
    rustix::fs::fchmod(&*below.root, Mode::from_raw_mode(0o755))
        .map_err(|e| PackageError::Io(fsutil::with_path(&e.into(), "change the mode of", dir)))?;
    let (jobs, queue) = sync_channel::<Job>(WAITING);
    let queue = Mutex::new(queue);
    let results: Mutex<Results> = Mutex::new(Results::default());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get).min(8);
    let mut hard_links = Vec::new();
    let sha256 = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&queue, &target, &results));
        }
        // The sender must be gone when the scope waits for the workers.
        feed(path, file, jobs, &mut below, &mut found, &mut hard_links, &results, ctx)
    })?;
    let Results { mut sums, error } = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = error {
        return Err(PackageError::Io(error));
    }
    // The workers are done: every file is there.
    for (name, target) in hard_links {
        below.hard_link(&name, &target).map_err(PackageError::Io)?;
    }
    for (name, kind) in &mut found.files {
        if let (FileKind::File { sha256, .. }, Some(sum)) = (kind, sums.remove(name)) {
            *sha256 = sum;
        }
    }
    found.compare()?;
    Ok(sha256)
}

/// A small file to be hashed and written by whoever is free.
struct Job {
    parent: Arc<OwnedFd>,
    member: Member,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Results {
    sums: HashMap<String, String>,
    error: Option<io::Error>,
}

fn work(queue: &Mutex<Receiver<Job>>, target: &Target<'_>, results: &Mutex<Results>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { parent, member, bytes }) = job else { return };
        let sum = hex::encode(Sha256::digest(&bytes));
        let written = target.file(&parent, &member, &mut bytes.as_slice());
        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
        match written {
            Ok(()) => {
                results.sums.insert(super::encode_path(&member.path), sum);
            }
            Err(error) => {
                results.error.get_or_insert(error);
            }
        }
    }
}

/// Reads the archive and gives the workers their files. Hard links are only noted.
#[allow(clippy::too_many_arguments)] // a thread's worth of state, used in one place
fn feed(
    path: &Path,
    file: impl Read + Send,
    jobs: SyncSender<Job>,
    below: &mut Below<'_>,
    found: &mut Found<'_>,
    hard_links: &mut Vec<(PathBuf, PathBuf)>,
    results: &Mutex<Results>,
    ctx: &Ctx,
) -> Result<String, PackageError> {
    let (mut done, mut told) = (0, 0);
    let refuse = |entry: &Path, problem: &str| PackageError::Contents {
        path: path.to_owned(),
        entry: entry.display().to_string(),
        problem: problem.to_owned(),
    };
    let sha256 = walk::<PackageError>(path, file, ctx, |member, content| {
        if results.lock().unwrap_or_else(PoisonError::into_inner).error.is_some() {
            return Err(PackageError::Io(io::Error::other("a file could not be written")));
        }
        let mut sum = String::new();
        match &member.kind {
            Kind::Dir => below.dir(&member.path).map_err(PackageError::Io)?,
            Kind::Symlink { target } => {
                if !stays_inside(&member.path, target) {
                    return Err(PackageError::LinkOutside { path: member.path.clone(), target: target.clone() });
                }
                below.symlink(&member.path, target).map_err(PackageError::Io)?;
            }
            Kind::Hardlink { target, .. } => {
                let known = found.files.get(&super::encode_path(target));
                if !matches!(known, Some(FileKind::File { .. })) {
                    return Err(refuse(&member.path, "it is a hard link to something that is no file of the package"));
                }
                hard_links.push((member.path.clone(), target.clone()));
            }
            Kind::File { .. } if member.path == Path::new(layout::MANIFEST) => {
                let mut bytes = Vec::new();
                content.take(MANIFEST_LIMIT).read_to_end(&mut bytes).map_err(|e| read_error(path, e))?;
                found.set_manifest(read_manifest(path, &mut bytes.as_slice())?)?;
                let parent = below.parent(&member.path).map_err(PackageError::Io)?;
                below.target.file(&parent, member, &mut bytes.as_slice()).map_err(PackageError::Io)?;
            }
            Kind::File { size, .. } => {
                done = size.saturating_add(done);
                let parent = below.parent(&member.path).map_err(PackageError::Io)?;
                if *size <= SMALL {
                    let mut bytes = Vec::new();
                    content.read_to_end(&mut bytes).map_err(|e| read_error(path, e))?;
                    let job = Job { parent, member: member.clone(), bytes };
                    jobs.send(job).map_err(|_| PackageError::Io(io::Error::other("the writing threads died")))?;
                } else {
                    let mut hashing = Hashing::new(content);
                    below.target.file(&parent, member, &mut hashing).map_err(|e| match e.kind() {
                        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => read_error(path, e),
                        _ => told_to_stop(e, PackageError::Io),
                    })?;
                    sum = hashing.hex();
                }
                if done - told >= SMALL {
                    told = done;
                    let current = member.path.display().to_string();
                    ctx.event(&Event::Progress { stage: Stage::Package, done, total: 0, unit: "bytes", current });
                }
            }
        }
        found.add(member, sum)
    });
    drop(jobs);
    sha256.map_err(|error| {
        // The worker's own reason says more.
        match results.lock().unwrap_or_else(PoisonError::into_inner).error.take() {
            Some(reason) => PackageError::Io(reason),
            None => error,
        }
    })
}

/// The folder that is worked on, and the times that files get.
pub(super) struct Target<'d> {
    dir: &'d Path,
    mtime: i64,
}

impl<'d> Target<'d> {
    pub(super) fn new(dir: &'d Path, mtime: u64) -> Self {
        Self { dir, mtime: i64::try_from(mtime).unwrap_or(0) }
    }

    fn file(&self, parent: &OwnedFd, member: &Member, content: &mut dyn Read) -> io::Result<()> {
        let failed = |verb: &str, e: io::Error| fsutil::with_path(&e, verb, &self.dir.join(&member.path));
        let name = member.path.file_name().unwrap_or_default();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| failed("create", e.into()))?;
        let mut file = std::fs::File::from(fd);
        let mut buffer = vec![0; 128 << 10];
        loop {
            // Errors of reading stay as they are; they are the archive's.
            let got = content.read(&mut buffer)?;
            if got == 0 {
                break;
            }
            file.write_all(buffer.get(..got).unwrap_or_default()).map_err(|e| failed("write", e))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(member.mode()))
            .map_err(|e| failed("change the mode of", e.into()))?;
        rustix::fs::futimens(&file, &self.times()).map_err(|e| failed("set the time of", e.into()))
    }

    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime, tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    }
}

/// Opens names below a folder without ever walking through a symlink.
pub(super) struct Below<'t> {
    target: &'t Target<'t>,
    root: Arc<OwnedFd>,
    /// The folders that lead to the last entry; the next one is mostly in the same.
    chain: Vec<(PathBuf, Arc<OwnedFd>)>,
}

impl<'t> Below<'t> {
    pub(super) fn open_root(target: &'t Target<'t>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(target.dir, flags, Mode::empty())
            .map_err(|e| fsutil::with_path(&e.into(), "open", target.dir))?;
        Ok(Self { target, root: Arc::new(root), chain: Vec::new() })
    }

    fn failed(&self, verb: &str, path: &Path, error: rustix::io::Errno) -> io::Error {
        fsutil::with_path(&error.into(), verb, &self.target.dir.join(path))
    }

    /// The folder that holds `path`, which must be there and be reached through folders only.
    fn parent(&mut self, path: &Path) -> io::Result<Arc<OwnedFd>> {
        self.open(path.parent().unwrap_or(Path::new("")))
    }

    fn open(&mut self, dir: &Path) -> io::Result<Arc<OwnedFd>> {
        while self.chain.last().is_some_and(|(known, _)| !dir.starts_with(known)) {
            self.chain.pop();
        }
        let known = self.chain.last().map_or(PathBuf::new(), |(known, _)| known.clone());
        let mut at = known.clone();
        for part in dir.strip_prefix(&known).unwrap_or(dir).components() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at.push(part);
            let from = self.chain.last().map_or(&self.root, |(_, fd)| fd);
            let fd = rustix::fs::openat(from.as_fd(), part.as_os_str(), flags, Mode::empty())
                .map_err(|e| self.failed("enter", &at, e))?;
            self.chain.push((at.clone(), Arc::new(fd)));
        }
        Ok(self.chain.last().map_or_else(|| self.root.clone(), |(_, fd)| fd.clone()))
    }

    fn dir(&mut self, path: &Path) -> io::Result<()> {
        let parent = self.parent(path)?;
        let name = name_of(path);
        rustix::fs::mkdirat(&*parent, name, Mode::from_raw_mode(0o700)).map_err(|e| self.failed("create", path, e))?;
        let made = self.open(path)?;
        rustix::fs::fchmod(&*made, Mode::from_raw_mode(0o755)).map_err(|e| self.failed("change the mode of", path, e))
    }

    fn symlink(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        let parent = self.parent(path)?;
        let name = name_of(path);
        rustix::fs::symlinkat(target, &*parent, name).map_err(|e| self.failed("create", path, e))?;
        rustix::fs::utimensat(&*parent, name, &self.target.times(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.failed("set the time of", path, e))
    }

    /// Deletes an entry if it is there, is of the expected kind, and is reached through folders only; a folder that is
    /// not empty stays. Says whether it was deleted.
    pub(super) fn remove(&mut self, path: &Path, expected: FileType) -> io::Result<bool> {
        use rustix::io::Errno;
        // Children come before their folders: no handle of a deleted folder may be kept.
        self.chain.retain(|(known, _)| known != path);
        let Ok(parent) = self.parent(path) else { return Ok(false) };
        let name = name_of(path);
        match rustix::fs::statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == expected => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(self.failed("look at", path, error)),
        }
        let flags = if expected == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match rustix::fs::unlinkat(&*parent, name, flags) {
            Ok(()) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(error) => Err(self.failed("delete", path, error)),
        }
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        let from = self.parent(target)?;
        let to = self.parent(path)?;
        rustix::fs::linkat(&*from, name_of(target), &*to, name_of(path), AtFlags::empty())
            .map_err(|e| self.failed("link", path, e))
    }
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}
