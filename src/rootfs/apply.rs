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

mod error;
mod members;
mod place;
#[cfg(test)]
mod tests;
mod whiteout;

pub use error::UnpackError;

use super::stream::{Bounds, Broken, Ended, LayerStream};
use super::tree::{self, Tree};
use crate::image::tar::{Entry, Kind, TarReader, show};
use crate::image::{Arriving, Compression, Digest, Layer, LayerBlob, PulledImage};
use crate::report::{Ctx, Event, Stage};
use crate::sandbox::Owner;
use error::{Fault, Tried};
use fs_err as fs;
use members::times;
use place::{Parent, normal, split};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use whiteout::WHITEOUT;

/// Directories that an archive uses without having an entry for them.
const IMPLIED_MODE: u32 = 0o755;

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
