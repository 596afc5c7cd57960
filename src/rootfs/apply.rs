//! Unpacks an image's layers into a directory, as an unprivileged user and for hostile input.
//!
//! ```text
//! layer 1: usr/bin/a  etc/x  lib -> usr/lib        dest/usr/bin/a
//! layer 2: etc/.wh.x  lib/libc.so                  dest/lib -> usr/lib
//! layer 3: usr/bin/.wh..wh..opq  usr/bin/b         dest/usr/lib/libc.so     (through the symlink, inside dest)
//! ```
//!
//! What the rules are, and where they come from:
//!
//! - **Layers** (OCI image-spec `layer.md`, "Applying Changesets"): a directory over a directory changes its
//!   attributes and keeps its content. Everything else replaces what is there, which is deleted first and never
//!   followed: a file over a symlink does not write to the symlink's target, a directory over a symlink to a
//!   directory becomes a directory of its own (as overlayfs shows it, and as umoci does it).
//! - **Whiteouts**: `.wh.NAME` deletes NAME, `.wh..wh..opq` everything in its directory, both only what lower
//!   layers brought, wherever in the archive they stand. Other `.wh..wh.*` names are old AUFS bookkeeping: skipped.
//! - **Names**: a leading `/` counts as the root. A `..` in a name or in a hard link's target is refused: no
//!   honest tool writes it. Symlink targets are kept as they are and are resolved inside the root (see [`super::tree`]).
//! - **Owners**: everything belongs to the user who unpacks. In a user namespace that maps the user to root it is
//!   root's, which is what a single-uid map needs. Owners in the archive are not used, unless the caller asks for them
//!   ([`Limits::owners`]): then they are returned, for a namespace that maps a range of ids to give files away in.
//! - **Modes** are kept exactly, setuid, setgid and sticky too. Directories are open to their owner while
//!   layers are applied and get their own mode at the very end, so a directory may end with mode 0555 or even 0:
//!   delete trees with `fsutil::remove_tree`, which opens such directories. Only the root of the tree always
//!   stays open to its owner.
//! - **Times** of files, symlinks and directories are kept.
//! - **Devices** cannot be made by a user: they are skipped and counted; the sandbox brings its own `/dev`.
//! - **Extended attributes**: `user.*` are set where the file system can, all others (`security.capability`,
//!   ACLs, SELinux labels) are dropped and counted. `user.overlay.*` is dropped as well: it would be an order to
//!   an overlay mount with `userxattr`, of which the unpacked tree is a lower layer.
//!
//! The bytes are hashed as they pass (see [`super::stream`]). A digest is known only at the layer's end, so the
//! destination must be a staging directory that is dropped on any error.

use super::stream::{Bounds, Broken, Ended, LayerStream};
use super::tree::{self, Tree};
use crate::image::tar::{Entry, Kind, Segment, TarError, TarReader, show};
use crate::image::{Arriving, Compression, Digest, ImageError, Layer, LayerBlob, PulledImage};
use crate::report::{Ctx, Event, Interrupted, Stage};
use crate::sandbox::Owner;
use fs_err as fs;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// Directories that an archive uses without having an entry for them.
const IMPLIED_MODE: u32 = 0o755;

/// The kernel takes no longer path in one call.
const PATH_MAX: usize = 4095;

/// Devices that are remembered, for hard links to them. Honest images have a dozen.
const MAX_DEVICES: usize = 4096;

const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// When an image is refused, so that a small hostile one cannot fill the disk or the memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that all files may have together, holes included.
    pub bytes: u64,
    /// Entries of all layers together.
    pub entries: u64,
    /// Directories inside directories.
    pub depth: u32,
    /// Uncompressed bytes for each compressed one in a layer ...
    pub ratio: u64,
    /// ... that has more uncompressed bytes than this.
    pub ratio_from: u64,
    /// The highest uid and gid that files can be given to; with none all are the caller's, whatever the archive says.
    pub owners: Option<(u32, u32)>,
}

impl Default for Limits {
    /// 64 GiB, 2 million entries, 200 levels; 250 to one from 256 MiB on. The largest images in use (CUDA, ROCm,
    /// site stacks) stay below by far.
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 2_000_000, depth: 200, ratio: 250, ratio_from: 256 << 20, owners: None }
    }
}

/// What was unpacked. Entries are counted as layers bring them, also those that a later layer replaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct UnpackReport {
    /// Layers.
    pub layers: u64,
    /// Regular files.
    pub files: u64,
    /// Directories with an entry of their own.
    pub dirs: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Hard links.
    pub hardlinks: u64,
    /// Named pipes.
    pub fifos: u64,
    /// Whiteouts, opaque ones included.
    pub whiteouts: u64,
    /// Bytes written to files.
    pub bytes: u64,
    /// Block and character devices that were left out.
    pub skipped_devices: u64,
    /// Extended attributes that were left out.
    pub dropped_xattrs: u64,
}

/// Why an image cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The destination is not an empty directory.
    #[error("`{dest}` is not an empty directory: an image is unpacked into a new one")]
    NotEmpty {
        /// The destination.
        dest: PathBuf,
    },
    /// The stored blob does not hash to its name.
    #[error(
        "the layer's blob `{path}` is damaged: expected {expected} ({expected_size} bytes), it has {actual} ({actual_size} bytes); it was deleted, pull the image again"
    )]
    DamagedBlob {
        /// The blob's file.
        path: PathBuf,
        /// Its name.
        expected: Digest,
        /// The size that the manifest gives.
        expected_size: u64,
        /// What it hashes to.
        actual: Digest,
        /// Its size.
        actual_size: u64,
    },
    /// The uncompressed layer is not what the image's configuration says.
    #[error(
        "the layer {layer} does not have the content that the image's configuration names: expected diff_id {expected}, got {actual}; the image was made wrongly or tampered with"
    )]
    WrongContent {
        /// The layer's blob.
        layer: Digest,
        /// The configuration's diff_id.
        expected: Digest,
        /// The digest of what came out.
        actual: Digest,
    },
    /// The compressed data is broken although the blob is what its digest says.
    #[error("the layer {layer} cannot be decompressed ({format}): {reason}; the image was made wrongly")]
    Compression {
        /// The layer's blob.
        layer: Digest,
        /// `gzip` or `zstd`.
        format: &'static str,
        /// The decoder's words.
        reason: String,
    },
    /// The archive is broken.
    #[error("the layer {layer} is not a good tar archive: {source}")]
    Archive {
        /// The layer's blob.
        layer: Digest,
        /// Where and why.
        source: TarError,
    },
    /// An entry that no honest image has.
    #[error("the layer {layer} is refused: its entry `{entry}` {reason}")]
    Refused {
        /// The layer's blob.
        layer: Digest,
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More than the limits allow.
    #[error(
        "the layer {layer} is refused: {what} more than the {limit} that are allowed; is the image what it should be?"
    )]
    Limit {
        /// The layer's blob.
        layer: Digest,
        /// What there is too much of.
        what: String,
        /// How much is allowed.
        limit: u64,
    },
    /// No space left, or a quota reached.
    #[error(
        "no space (or inodes) left in `{dest}` for `{entry}`, which needs {needed} more bytes ({source}); free some (slurm-factory clean), or choose another --cache-dir"
    )]
    NoSpace {
        /// The destination.
        dest: PathBuf,
        /// The entry's name.
        entry: String,
        /// Its bytes that are not yet written.
        needed: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {verb} `{entry}` in `{dest}`: {source}")]
    Entry {
        /// What was tried.
        verb: &'static str,
        /// The destination.
        dest: PathBuf,
        /// The entry's name.
        entry: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A file operation failed on something else than an entry; the error names the path.
    #[error("rootfs: {0}")]
    Io(#[source] io::Error),
    /// The image's blobs cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Unpacks all layers of `image` into `dest`, an empty directory that the caller drops on any error.
pub fn unpack(image: &PulledImage, dest: &Path, limits: &Limits, ctx: &Ctx) -> Result<UnpackReport, UnpackError> {
    unpack_owned(image.clone().into(), dest, limits, ctx).map(|(_, report, _)| report)
}

/// Like [`unpack`], while the image's layers still come; returns when it is whole in the cache too. With [`Limits::owners`]
/// it says who owns what is not root's: inode, uid, gid.
pub fn unpack_owned(
    image: Arriving,
    dest: &Path,
    limits: &Limits,
    ctx: &Ctx,
) -> Result<(PulledImage, UnpackReport, Vec<Owner>), UnpackError> {
    let mut unpacker = Unpacker::new(dest, *limits, image.size(), ctx)?;
    let mut apply = || {
        for layer in image.layers() {
            unpacker.quiet = image.is_under_way();
            let blob = image.layer(layer).map_err(UnpackError::Io)?;
            let result = unpacker.layer(layer, blob);
            if let Err(UnpackError::DamagedBlob { .. }) = result {
                image.discard(layer)?;
            }
            result?;
        }
        Ok(())
    };
    match apply() {
        Ok(()) => {
            let (report, owners) = unpacker.finish_owned()?;
            Ok((image.finish()?, report, owners))
        }
        // A layer was read that was not the right one, or only its begin: the download says why, or ends well, and then
        // all is done again from what is whole.
        Err(error) if image.stumbled() && !matches!(error, UnpackError::Interrupted(_)) => {
            ctx.check()?;
            let pulled = image.finish()?;
            drop(unpacker);
            crate::fsutil::remove_tree(dest).map_err(UnpackError::Io)?;
            fs::create_dir(dest).map_err(UnpackError::Io)?;
            unpack_owned(pulled.into(), dest, limits, ctx)
        }
        Err(error) => Err(error),
    }
}

/// What a directory gets when all layers are applied.
#[derive(Clone, Copy)]
struct DirMeta {
    mode: u32,
    mtime: Option<(i64, u32)>,
    depth: u32,
}

/// The directory that the last entry was in: the next one mostly is in the same.
struct Parent {
    path: Vec<u8>,
    fd: OwnedFd,
    inode: u64,
    depth: u32,
}

pub(super) struct Unpacker<'a> {
    dest: PathBuf,
    tree: Tree,
    limits: Limits,
    ctx: &'a Ctx,
    report: UnpackReport,
    /// Every directory of the tree by inode, whatever symlinks led to it.
    dirs: HashMap<u64, DirMeta>,
    /// By inode, who owns what is not root's.
    owners: HashMap<u64, (u32, u32)>,
    parent: Option<Parent>,
    /// What the current layer brought, as hashes of (directory's inode, name): whiteouts spare it. The lowest
    /// layer has nothing below it to white out, so there it is not kept.
    fresh: Option<HashSet<u64>>,
    /// What the current layer's whiteouts have hidden, as hashes of the same kind: said again it costs nothing, or a
    /// layer could have one large directory searched a million times.
    hidden: HashSet<u64>,
    hasher: RandomState,
    /// Devices that were left out: hard links to them are left out too.
    devices: HashSet<Vec<u8>>,
    entries: u64,
    bytes_left: u64,
    /// The current entry took the place of something: the way to the current directory may have led through it.
    replaced: bool,
    /// The download reports how far it is, and one number at a time is enough.
    quiet: bool,
    progress_done: u64,
    progress_total: u64,
    progress_at: Option<Instant>,
}

/// What went wrong with one entry, before it is known which.
enum Fault {
    Refused(String),
    Limit(String, u64),
    Os(&'static str, Errno, u64),
    Tar(TarError),
    Interrupted(Interrupted),
}

impl From<TarError> for Fault {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl From<Interrupted> for Fault {
    fn from(error: Interrupted) -> Self {
        Self::Interrupted(error)
    }
}

/// Says what was tried.
trait Tried<T> {
    fn tried(self, verb: &'static str) -> Result<T, Fault>;
}

impl<T> Tried<T> for rustix::io::Result<T> {
    fn tried(self, verb: &'static str) -> Result<T, Fault> {
        self.map_err(|e| Fault::Os(verb, e, 0))
    }
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(dest: &Path, limits: Limits, total: u64, ctx: &'a Ctx) -> Result<Self, UnpackError> {
        if fs::read_dir(dest).map_err(UnpackError::Io)?.next().is_some() {
            return Err(UnpackError::NotEmpty { dest: dest.to_owned() });
        }
        let os = |e: Errno| UnpackError::Io(crate::fsutil::with_path(&e.into(), "open", dest));
        let tree = Tree::open(dest).map_err(os)?;
        let root = rustix::fs::fstat(tree.root()).map_err(os)?;
        let root_meta = DirMeta { mode: IMPLIED_MODE, mtime: None, depth: 0 };
        Ok(Self {
            dest: dest.to_owned(),
            tree,
            limits,
            ctx,
            report: UnpackReport::default(),
            dirs: HashMap::from([(root.st_ino, root_meta)]),
            owners: HashMap::new(),
            parent: None,
            fresh: None,
            hidden: HashSet::new(),
            hasher: RandomState::new(),
            devices: HashSet::new(),
            entries: 0,
            bytes_left: limits.bytes,
            replaced: false,
            quiet: false,
            progress_done: 0,
            progress_total: total,
            progress_at: None,
        })
    }

    /// Resolves names by hand even where the kernel could.
    #[cfg(fuzzing)]
    pub(super) fn walk(&mut self) {
        let tree = Tree::open(&self.dest).expect("it was opened before");
        self.tree = tree.by_walking();
    }

    pub(super) fn layer(&mut self, layer: &Layer, blob: LayerBlob) -> Result<(), UnpackError> {
        let path = blob.path().clone();
        self.ctx.check()?;
        self.fresh = (self.report.layers > 0).then(HashSet::new);
        self.hidden.clear();
        self.report.layers += 1;
        let bounds = Bounds { bytes: self.limits.bytes, ratio: self.limits.ratio, ratio_from: self.limits.ratio_from };
        let (applied, ended) = std::thread::scope(|scope| {
            let stream = LayerStream::open(scope, blob, layer.compression(), bounds);
            let mut reader = TarReader::new(stream);
            let applied = self.entries(&mut reader, layer);
            let stream = reader.into_inner();
            // A broken archive may be a damaged blob: only the digests tell.
            let ended = match &applied {
                Ok(()) | Err(UnpackError::Archive { .. }) => {
                    Some(stream.finish(|| self.ctx.check().is_ok()).map_err(UnpackError::Io)?)
                }
                Err(_) => None,
            };
            Ok::<_, UnpackError>((applied, ended))
        })?;
        self.ctx.check()?;
        if let Some(ended) = ended {
            self.check_digests(layer, &path, &ended)?;
        }
        applied?;
        self.progress_done = self.progress_done.saturating_add(layer.size());
        self.progress(0, true);
        Ok(())
    }

    fn check_digests(&self, layer: &Layer, path: &Path, ended: &Ended) -> Result<(), UnpackError> {
        let id = *layer.digest();
        match &ended.broken {
            Some(Broken::TooLarge) => {
                let what = "its uncompressed content has".to_owned();
                return Err(UnpackError::Limit { layer: id, what, limit: self.limits.bytes });
            }
            Some(Broken::TooDense) => {
                let what = "its uncompressed bytes for each compressed one are".to_owned();
                return Err(UnpackError::Limit { layer: id, what, limit: self.limits.ratio });
            }
            _ => {}
        }
        if let Some(actual) = ended.blob
            && (actual != id || ended.blob_size != layer.size())
        {
            return Err(UnpackError::DamagedBlob {
                path: path.to_owned(),
                expected: id,
                expected_size: layer.size(),
                actual,
                actual_size: ended.blob_size,
            });
        }
        if let Some(Broken::Compression(reason)) = &ended.broken {
            let format = match layer.compression() {
                Compression::None => "plain",
                Compression::Gzip => "gzip",
                Compression::Zstd => "zstd",
            };
            return Err(UnpackError::Compression { layer: id, format, reason: reason.clone() });
        }
        match ended.content {
            Some(actual) if actual != *layer.diff_id() => {
                Err(UnpackError::WrongContent { layer: id, expected: *layer.diff_id(), actual })
            }
            _ => Ok(()),
        }
    }

    fn entries(&mut self, reader: &mut TarReader<LayerStream<'_>>, layer: &Layer) -> Result<(), UnpackError> {
        let id = *layer.digest();
        loop {
            self.ctx.check()?;
            let entry = match reader.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(()),
                Err(source) => return Err(UnpackError::Archive { layer: id, source }),
            };
            let consumed = reader.input_mut().consumed();
            self.progress(consumed, false);
            self.entry(&entry, reader).map_err(|fault| self.explain(fault, &entry.path, id))?;
        }
    }

    fn explain(&self, fault: Fault, name: &[u8], layer: Digest) -> UnpackError {
        let entry = show(name);
        let dest = self.dest.clone();
        match fault {
            Fault::Refused(reason) => UnpackError::Refused { layer, entry, reason },
            Fault::Limit(what, limit) => UnpackError::Limit { layer, what, limit },
            Fault::Os(_, e @ (Errno::NOSPC | Errno::DQUOT), needed) => {
                UnpackError::NoSpace { dest, entry, needed, source: e.into() }
            }
            Fault::Os(verb, e, _) => UnpackError::Entry { verb, dest, entry, source: e.into() },
            Fault::Tar(source) => UnpackError::Archive { layer, source },
            Fault::Interrupted(i) => UnpackError::Interrupted(i),
        }
    }

    fn progress(&mut self, in_layer: u64, now: bool) {
        if self.quiet || !now && self.progress_at.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
            return;
        }
        self.progress_at = Some(Instant::now());
        self.ctx.event(&Event::Progress {
            stage: Stage::Rootfs,
            done: self.progress_done.saturating_add(in_layer),
            total: self.progress_total,
            unit: "bytes",
            current: format!("layer {}", self.report.layers),
        });
    }

    fn entry(&mut self, entry: &Entry, reader: &mut TarReader<LayerStream<'_>>) -> Result<(), Fault> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Fault::Limit("the image has".to_owned() + " entries", self.limits.entries));
        }
        let path = normal(&entry.path)?;
        let (parent, name) = split(&path);
        if name.is_empty() {
            return self.root_entry(entry);
        }
        if parent.split(|b| *b == b'/').any(|part| part.starts_with(WHITEOUT)) {
            return Err(Fault::Refused("lies inside a whiteout".to_owned()));
        }
        if name.starts_with(WHITEOUT) {
            return self.whiteout(parent, name);
        }
        self.enter(parent)?;
        let mut is_device = false;
        match entry.kind {
            Kind::File => self.file(name, entry, reader)?,
            Kind::Directory => self.directory(name, entry)?,
            Kind::Symlink => self.symlink(name, entry)?,
            Kind::HardLink => is_device = self.hard_link(name, entry)?,
            Kind::Fifo => self.fifo(name, entry)?,
            Kind::Device => is_device = true,
        }
        if is_device {
            // It is left out, but it takes the place of what was there all the same.
            self.clear(name)?;
            self.report.skipped_devices += 1;
        }
        if self.limits.owners.is_some() && !matches!(entry.kind, Kind::Device | Kind::HardLink) {
            let made = rustix::fs::statat(&self.here()?.fd, name, AtFlags::SYMLINK_NOFOLLOW).tried("look at")?;
            self.owned(made.st_ino, entry)?;
        }
        if is_device && self.devices.len() < MAX_DEVICES {
            self.devices.insert(path.clone());
        } else if !self.devices.is_empty() {
            self.devices.remove(&path);
        }
        self.mark(name);
        if std::mem::take(&mut self.replaced) {
            self.parent = None;
        }
        Ok(())
    }

    /// Notes whose an entry is, and takes back what a deleted one with the same inode was. The root of the tree stays the
    /// caller's, who has to reach what is below, and a hard link is its target's owner's.
    fn owned(&mut self, inode: u64, entry: &Entry) -> Result<(), Fault> {
        let Some((uids, gids)) = self.limits.owners else { return Ok(()) };
        let within = |what: &str, id: u64, highest: u32| {
            u32::try_from(id).ok().filter(|id| *id <= highest).ok_or_else(|| {
                let range = format!("which is not in your range of subordinate ids (1 to {highest})");
                Fault::Refused(format!(
                    "belongs to {what} {id}, {range}; ask for a larger one, or use --ownership single"
                ))
            })
        };
        match (within("uid", entry.uid, uids)?, within("gid", entry.gid, gids)?) {
            (0, 0) => self.owners.remove(&inode),
            owner => self.owners.insert(inode, owner),
        };
        Ok(())
    }

    /// An entry for `/` itself can only be a directory.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.kind != Kind::Directory {
            return Err(Fault::Refused("would replace the root".to_owned()));
        }
        let inode = rustix::fs::fstat(self.tree.root()).tried("look at")?.st_ino;
        // The root must stay open for its owner: everything else is reached through it.
        self.dirs.insert(inode, DirMeta { mode: entry.mode | 0o700, mtime: Some(entry.mtime), depth: 0 });
        let root = tree::open_dir(self.tree.root(), b".").tried("open")?;
        Self::clear_xattrs(&root);
        self.xattrs(&root, entry)?;
        self.report.dirs += 1;
        Ok(())
    }

    /// Makes `path` the current directory, making it when it is not there.
    fn enter(&mut self, path: &[u8]) -> Result<(), Fault> {
        if self.parent.as_ref().is_some_and(|p| p.path == path) {
            return Ok(());
        }
        let fd = match self.tree.dir(path) {
            Err(Errno::NOENT) => self.make_dirs(path)?,
            other => other.tried("open the directory of")?,
        };
        let inode = rustix::fs::fstat(&fd).tried("look at the directory of")?.st_ino;
        let depth = self.dirs.get(&inode).map_or(0, |d| d.depth);
        self.parent = Some(Parent { path: path.to_vec(), fd, inode, depth });
        Ok(())
    }

    fn make_dirs(&mut self, path: &[u8]) -> Result<OwnedFd, Fault> {
        let Self { tree, dirs, owners, fresh, hasher, limits, .. } = self;
        let mut too_deep = false;
        let made = tree.make_dirs(path, |parent, name| {
            let above = rustix::fs::fstat(parent)?.st_ino;
            let depth = dirs.get(&above).map_or(0, |d| d.depth) + 1;
            if depth > limits.depth {
                too_deep = true;
                return Err(Errno::LOOP);
            }
            let inode = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_ino;
            dirs.insert(inode, DirMeta { mode: IMPLIED_MODE, mtime: None, depth });
            owners.remove(&inode);
            if let Some(fresh) = fresh {
                fresh.insert(hasher.hash_one((above, name)));
            }
            Ok(())
        });
        if too_deep {
            return Err(self.too_deep());
        }
        made.tried("make the directory of")
    }

    fn too_deep(&self) -> Fault {
        Fault::Limit("directories are nested".to_owned(), self.limits.depth.into())
    }

    fn here(&self) -> Result<&Parent, Fault> {
        self.parent.as_ref().ok_or(Fault::Os("open the directory of", Errno::NOENT, 0))
    }

    /// Notes that the current layer brought `name`.
    fn mark(&mut self, name: &[u8]) {
        if let (Some(fresh), Some(parent)) = (&mut self.fresh, &self.parent) {
            fresh.insert(self.hasher.hash_one((parent.inode, name)));
        }
    }

    /// Deletes what stands where an entry goes.
    fn clear(&mut self, name: &[u8]) -> Result<(), Fault> {
        self.replaced |= tree::remove(&self.here()?.fd, name).tried("replace")?;
        Ok(())
    }

    fn file(&mut self, name: &[u8], entry: &Entry, reader: &mut TarReader<LayerStream<'_>>) -> Result<(), Fault> {
        if entry.size > self.bytes_left {
            return Err(Fault::Limit("its files have".to_owned(), self.limits.bytes));
        }
        self.bytes_left -= entry.size;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create =
            |this: &Self| rustix::fs::openat(&this.here()?.fd, name, flags, Mode::RUSR | Mode::WUSR).tried("make");
        let file = match create(self) {
            Err(Fault::Os(_, Errno::EXIST, _)) => {
                self.clear(name)?;
                create(self)
            }
            other => other,
        };
        let file = file.map_err(|fault| match fault {
            Fault::Os(verb, e, _) => Fault::Os(verb, e, entry.size),
            other => other,
        })?;
        let mut writer =
            FileWriter { file: &file, ctx: self.ctx, segments: entry.segments.as_deref(), at: 0, in_segment: 0 };
        let mut left = entry.size;
        reader.read_data(|bytes| {
            writer.write(bytes, left)?;
            left = left.saturating_sub(bytes.len() as u64);
            Ok::<(), Fault>(())
        })?;
        if entry.segments.is_some() {
            rustix::fs::ftruncate(&file, entry.size).tried("set the size of")?;
        }
        self.xattrs(&file, entry)?;
        // After the last write, which would take setuid away.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).tried("set the mode of")?;
        rustix::fs::futimens(&file, &times(entry.mtime)).tried("set the time of")?;
        self.report.files += 1;
        self.report.bytes += entry.size;
        Ok(())
    }

    fn xattrs(&mut self, file: &OwnedFd, entry: &Entry) -> Result<(), Fault> {
        for (name, value) in &entry.xattrs {
            let wanted = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
            let set = if wanted {
                rustix::fs::fsetxattr(file, &**name, value, XattrFlags::empty())
            } else {
                Err(Errno::PERM)
            };
            match set {
                Ok(()) => {}
                Err(e @ (Errno::NOSPC | Errno::DQUOT)) if e == Errno::DQUOT || is_full(file, value.len() as u64) => {
                    return Err(Fault::Os("set an extended attribute of", e, value.len() as u64));
                }
                // The file system has none, or not so large ones (ext4 says ENOSPC then), or not of this name.
                Err(_) => self.report.dropped_xattrs += 1,
            }
        }
        Ok(())
    }

    /// The attributes that a lower layer gave a directory are not those of the entry that describes it anew.
    fn clear_xattrs(dir: &OwnedFd) {
        let mut names = vec![0; 64 << 10];
        // Without any, or on a file system that has none, there is nothing to take away.
        let Ok(len) = rustix::fs::flistxattr(dir, &mut *names) else { return };
        for name in names[..len].split(|b| *b == 0).filter(|name| name.starts_with(b"user.")) {
            let _ = rustix::fs::fremovexattr(dir, name);
        }
    }

    fn directory(&mut self, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let parent = self.here()?;
        let depth = parent.depth + 1;
        if depth > self.limits.depth {
            return Err(self.too_deep());
        }
        let stat = |this: &Self| rustix::fs::statat(&this.here()?.fd, name, AtFlags::SYMLINK_NOFOLLOW).tried("look at");
        let make = |this: &Self| rustix::fs::mkdirat(&this.here()?.fd, name, Mode::RWXU).tried("make");
        let mut kept = false;
        match make(self) {
            Err(Fault::Os(_, Errno::EXIST, _)) => {
                let there = stat(self)?;
                kept = FileType::from_raw_mode(there.st_mode) == FileType::Directory;
                if !kept {
                    self.clear(name)?;
                    make(self)?;
                }
            }
            other => other?,
        }
        let inode = stat(self)?.st_ino;
        self.dirs.insert(inode, DirMeta { mode: entry.mode, mtime: Some(entry.mtime), depth });
        if kept || !entry.xattrs.is_empty() {
            let dir = tree::open_dir(&self.here()?.fd, name).tried("open")?;
            Self::clear_xattrs(&dir);
            self.xattrs(&dir, entry)?;
        }
        self.report.dirs += 1;
        Ok(())
    }

    fn symlink(&mut self, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        if entry.link.is_empty() || entry.link.len() > PATH_MAX {
            return Err(Fault::Refused(format!("is a symlink to a name of {} bytes", entry.link.len())));
        }
        let make = |this: &Self| rustix::fs::symlinkat(&*entry.link, &this.here()?.fd, name).tried("make the symlink");
        match make(self) {
            Err(Fault::Os(_, Errno::EXIST, _)) => {
                self.clear(name)?;
                make(self)?;
            }
            other => other?,
        }
        rustix::fs::utimensat(&self.here()?.fd, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .tried("set the time of")?;
        self.report.dropped_xattrs += entry.xattrs.len() as u64;
        self.report.symlinks += 1;
        Ok(())
    }

    /// True when it is another name of a device that was left out: then nothing is made.
    fn hard_link(&mut self, name: &[u8], entry: &Entry) -> Result<bool, Fault> {
        let target = normal(&entry.link)?;
        if self.devices.contains(&target) {
            return Ok(true);
        }
        let (target_dir, target_name) = split(&target);
        let missing = || Fault::Refused(format!("is a hard link to `{}`, which is not there", show(&entry.link)));
        if target_name.is_empty() {
            return Err(Fault::Refused("is a hard link to the root".to_owned()));
        }
        let dir = match self.tree.dir(target_dir) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
            other => other.tried("open the target of the hard link")?,
        };
        // The target itself is not followed: a hard link to a symlink is another name of the symlink.
        let to = match rustix::fs::statat(&dir, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(missing()),
            other => other.tried("look at the target of the hard link")?,
        };
        if FileType::from_raw_mode(to.st_mode) == FileType::Directory {
            return Err(Fault::Refused(format!("is a hard link to the directory `{}`", show(&entry.link))));
        }
        let link = |this: &Self| {
            rustix::fs::linkat(&dir, target_name, &this.here()?.fd, name, AtFlags::empty()).tried("make the hard link")
        };
        match link(self) {
            Err(Fault::Os(_, Errno::EXIST, _)) => {
                let there = rustix::fs::statat(&self.here()?.fd, name, AtFlags::SYMLINK_NOFOLLOW).tried("look at")?;
                if there.st_ino != to.st_ino {
                    self.clear(name)?;
                    match link(self) {
                        // The target was inside what has just been replaced.
                        Err(Fault::Os(_, Errno::NOENT, _)) => return Err(missing()),
                        other => other?,
                    }
                }
            }
            other => other?,
        }
        self.report.hardlinks += 1;
        Ok(false)
    }

    fn fifo(&mut self, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        self.clear(name)?;
        let dir = &self.here()?.fd;
        let mode = Mode::from_raw_mode(entry.mode);
        rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0).tried("make the named pipe")?;
        // Just made, and nobody else writes here: it is no symlink that chmod could follow.
        rustix::fs::chmodat(dir, name, mode, AtFlags::empty()).tried("set the mode of")?;
        rustix::fs::utimensat(dir, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).tried("set the time of")?;
        self.report.dropped_xattrs += entry.xattrs.len() as u64;
        self.report.fifos += 1;
        Ok(())
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<(), Fault> {
        let target = if name == OPAQUE { None } else { Some(&name[WHITEOUT.len()..]) };
        match target {
            Some(b"" | b"." | b"..") => return Err(Fault::Refused("is a whiteout of no name".to_owned())),
            Some(_) if name.starts_with(AUFS) => return Ok(()),
            _ => {}
        }
        self.report.whiteouts += 1;
        if self.fresh.is_none() {
            return Ok(());
        }
        // Nothing is made for a whiteout: where there is no such directory there is nothing to delete.
        let dir = match self.tree.dir(parent) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other.tried("open the directory of")?,
        };
        let inode = rustix::fs::fstat(&dir).tried("look at the directory of")?.st_ino;
        // Nothing of a lower layer comes back there: what appears later is the current layer's.
        if !self.hidden.insert(self.hasher.hash_one((inode, name))) {
            return Ok(());
        }
        if let Some(name) = target {
            self.remove_lower(&dir, name).tried("delete what is whited out by")?;
        } else {
            // The descriptor is good for names only; listing needs another one.
            let dir = tree::open_dir(&dir, b".").tried("open the directory of")?;
            for (name, _) in tree::list(&dir).tried("list the directory of")? {
                self.remove_lower(&dir, &name).tried("delete what is hidden by")?;
            }
        }
        self.parent = None;
        Ok(())
    }

    /// Deletes `name` and what is below, but for what the current layer brought.
    fn remove_lower(&self, dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
        let above = rustix::fs::fstat(dir)?.st_ino;
        let is_fresh = self.fresh.as_ref().is_some_and(|f| f.contains(&self.hasher.hash_one((above, name))));
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(()),
            other => other?,
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return if is_fresh { Ok(()) } else { rustix::fs::unlinkat(dir, name, AtFlags::empty()) };
        }
        let inside = tree::open_dir(dir, name)?;
        for (name, _) in tree::list(&inside)? {
            self.remove_lower(&inside, &name)?;
        }
        if is_fresh {
            return Ok(());
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            // Something of the current layer is inside.
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// Gives directories their modes and times, from the deepest up.
    #[cfg(any(test, fuzzing))]
    pub(super) fn finish(self) -> Result<UnpackReport, UnpackError> {
        self.finish_owned().map(|(report, _)| report)
    }

    /// The same; says who owns what.
    fn finish_owned(self) -> Result<(UnpackReport, Vec<Owner>), UnpackError> {
        self.ctx.check()?;
        let root = tree::open_dir(self.tree.root(), b".");
        root.and_then(|root| self.finish_dir(&root)).map_err(|e| {
            UnpackError::Io(crate::fsutil::with_path(&e.into(), "set modes and times of directories in", &self.dest))
        })?;
        self.ctx.check()?;
        Ok((self.report, self.owners.into_iter().map(|(inode, (uid, gid))| (inode, uid, gid)).collect()))
    }

    fn finish_dir(&self, dir: &OwnedFd) -> rustix::io::Result<()> {
        if self.ctx.check().is_err() {
            return Ok(());
        }
        for (name, kind) in tree::list(dir)? {
            if kind == FileType::Directory {
                self.finish_dir(&tree::open_dir(dir, &name)?)?;
            }
        }
        let inode = rustix::fs::fstat(dir)?.st_ino;
        if let Some(meta) = self.dirs.get(&inode) {
            rustix::fs::fchmod(dir, Mode::from_raw_mode(meta.mode))?;
            if let Some(mtime) = meta.mtime {
                rustix::fs::futimens(dir, &times(mtime))?;
            }
        }
        Ok(())
    }
}

/// Writes a file's data where it belongs: in one go, or into the segments of a sparse file.
struct FileWriter<'a> {
    file: &'a OwnedFd,
    ctx: &'a Ctx,
    segments: Option<&'a [Segment]>,
    /// Index of the current segment.
    at: usize,
    in_segment: u64,
}

impl FileWriter<'_> {
    fn write(&mut self, mut bytes: &[u8], left: u64) -> Result<(), Fault> {
        self.ctx.check()?;
        let Some(segments) = self.segments else {
            while !bytes.is_empty() {
                let n = self.retry(left, |file| rustix::io::write(file, bytes))?;
                bytes = &bytes[n..];
            }
            return Ok(());
        };
        while !bytes.is_empty() {
            // The map accounts for every stored byte: the reader has checked it.
            let Some(segment) = segments.get(self.at) else { return Ok(()) };
            let room = usize::try_from(segment.len - self.in_segment).unwrap_or(usize::MAX).min(bytes.len());
            let offset = segment.offset + self.in_segment;
            let n = self.retry(left, |file| rustix::io::pwrite(file, &bytes[..room], offset))?;
            bytes = &bytes[n..];
            self.in_segment += n as u64;
            if self.in_segment == segment.len {
                self.at += 1;
                self.in_segment = 0;
            }
        }
        Ok(())
    }

    fn retry(&self, left: u64, write: impl Fn(&OwnedFd) -> rustix::io::Result<usize>) -> Result<usize, Fault> {
        loop {
            match write(self.file) {
                Err(Errno::INTR) => {}
                Ok(0) => return Err(Fault::Os("write", Errno::IO, left)),
                other => return other.map_err(|e| Fault::Os("write", e, left)),
            }
        }
    }
}

/// Whether the file system of `file` has no room for so many bytes and an inode.
fn is_full(file: &OwnedFd, bytes: u64) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|s| {
        s.f_bavail.saturating_mul(s.f_frsize) < bytes.saturating_add(64 << 10) || (s.f_files > 0 && s.f_favail == 0)
    })
}

/// The parts of a name joined again without `/` at either end, empty parts and `.`.
fn normal(path: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Fault::Refused("has a `..` in a name, which could lead out of the image".to_owned())),
            part => {
                if part.contains(&0) {
                    return Err(Fault::Refused("has a zero byte in a name".to_owned()));
                }
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    if out.len() > PATH_MAX {
        return Err(Fault::Refused(format!("has a name of {} bytes; Linux takes {PATH_MAX}", out.len())));
    }
    Ok(out)
}

/// The directory and the last part.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// The access time is left as it is.
fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}

#[cfg(test)]
mod tests;
