//! A folder that is a root file system already: `dir:ROOTFS`.
//!
//! It is taken as an image of one layer, a tar archive in one fixed spelling, which is written into the cache: the
//! folder is copied and never changed, and what is built on it does not change when the folder does.
//!
//! What counts for the image's identity, and so for everything built on it:
//!
//! | counts | does not count |
//! |---|---|
//! | names, types, modes, link targets, content | owners: unpacking gives everything to whoever builds |
//! | which names are one file | extended attributes |
//! | times of files and links, in whole seconds: programs inside look at them | times of folders: any use changes them |
//! | the architecture | devices and sockets: nobody can make them without root |
//!
//! Members are sorted by name, byte by byte. Other file systems that are mounted in it (`/proc`) are left out; where
//! they are mounted stays an empty folder. A file that its owner may not read is an error: an image without
//! it would be another image.

use super::blobs::read_small;
use super::local::{Held, Local, MadeLayer, make_manifest, of_meta};
use super::manifest::{Compression, MAX_CONFIG};
use super::tarball::{Kind, Member, Writer};
use super::{Digest, ImageError, Platform, Reference};
use crate::fsutil;
use crate::report::{Ctx, Interrupted};
use crate::sha256::{Hashing, Sha256};
use fs_err as fs;
use serde_json::json;
use std::collections::HashMap;
use std::io::{self, Cursor, PipeReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use walkdir::{DirEntry, WalkDir};

/// A root file system on disk.
pub struct Folder {
    dir: PathBuf,
    made: Mutex<HashMap<Digest, Vec<u8>>>,
    ctx: Ctx,
}

impl Folder {
    /// Checks that the folder looks like a root file system.
    pub fn open(dir: &Path, ctx: &Ctx) -> Result<Self, ImageError> {
        let unusable = |reason: String| unusable(dir, reason);
        let meta = fs::metadata(dir).map_err(|e| ImageError::unopened(e, dir, "a root file system", "folder"))?;
        if !meta.is_dir() {
            return Err(unusable("it is not a folder".to_owned()));
        }
        if dir.join("oci-layout").exists() {
            return Err(unusable(format!("it is an OCI layout: name it oci:{}", dir.display())));
        }
        if read_small(&dir.join("version"), 1 << 10).is_ok_and(|text| text.starts_with(b"Directory Transport Version"))
        {
            return Err(unusable(format!(
                "it is skopeo's own folder of blobs; make a layout of it: skopeo copy dir:{} oci:DIR:TAG",
                dir.display()
            )));
        }
        if !["usr", "bin", "etc"].iter().any(|name| dir.join(name).is_dir()) {
            return Err(unusable("it has none of the folders usr, bin and etc".to_owned()));
        }
        Ok(Self { dir: dir.to_owned(), made: Mutex::default(), ctx: ctx.clone() })
    }

    /// Reads the whole tree to learn its digest.
    fn make(&self, platform: Platform) -> Result<Digest, ImageError> {
        let mut sink = Hashing::new(io::sink());
        write_tree(&self.dir, &mut sink, &self.ctx)?;
        let len = sink.size();
        let diff_id = Digest::from(sink.finish().1);
        let config = json!({
            "architecture": architecture(&self.dir).unwrap_or(platform.architecture()),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        })
        .to_string()
        .into_bytes();
        let layer = MadeLayer { digest: diff_id, size: len, compression: Compression::None };
        let manifest = make_manifest(&config, &[layer], &[]);
        let digest = Digest::of(&manifest);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(Digest::of(&config), config);
        made.insert(digest, manifest);
        Ok(digest)
    }

    fn known(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }
}

impl Local for Folder {
    fn find(&self, platform: Platform) -> Result<Digest, ImageError> {
        self.make(platform)
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        if self.known(digest).is_none() {
            self.make(Platform::host()?)?;
        }
        self.known(digest).ok_or_else(|| unusable(&self.dir, "it was changed while it was read".to_owned()))
    }

    fn blob(&self, digest: &Digest, size: u64) -> Result<Box<dyn Read + Send>, ImageError> {
        // The configuration may be asked for by itself; to read so small a tree twice costs nothing.
        if size <= MAX_CONFIG && self.known(digest).is_none() {
            self.make(Platform::host()?)?;
        }
        if let Some(bytes) = self.known(digest) {
            return Ok(Box::new(Cursor::new(bytes)));
        }
        Ok(Box::new(TreeReader::start(&self.dir, &self.ctx).map_err(ImageError::Io)?))
    }

    fn made(&self) -> Vec<Vec<u8>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn place(&self, _digest: &Digest) -> String {
        format!("the folder `{}`, which must not be changed while it is copied,", self.dir.display())
    }

    fn images(&self) -> Result<Vec<Held>, ImageError> {
        let digest = self.make(Platform::host()?)?;
        Ok(vec![Held { names: Vec::new(), here: Reference::Folder(self.dir.clone()), digest }])
    }
}

/// The tree's archive as something to read from; a thread writes it.
struct TreeReader {
    pipe: PipeReader,
    writer: Option<JoinHandle<Result<(), ImageError>>>,
}

impl TreeReader {
    fn start(dir: &Path, ctx: &Ctx) -> io::Result<Self> {
        let (pipe, writer) = io::pipe()?;
        let (dir, ctx) = (dir.to_owned(), ctx.clone());
        let writer = std::thread::Builder::new().name("tree".to_owned()).spawn(move || {
            let mut writer = io::BufWriter::with_capacity(1 << 16, writer);
            write_tree(&dir, &mut writer, &ctx)?;
            writer.flush().map_err(ImageError::Io)
        })?;
        Ok(Self { pipe, writer: Some(writer) })
    }
}

impl Read for TreeReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.pipe.read(into)?;
        if n == 0
            && !into.is_empty()
            && let Some(writer) = self.writer.take()
        {
            match writer.join() {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(io::Error::other(e)),
                Err(_) => return Err(io::Error::other("the thread that reads the folder panicked")),
            }
        }
        Ok(n)
    }
}

/// The entries in the order of their names, without what lies on other file systems.
fn walk(dir: &Path) -> impl Iterator<Item = walkdir::Result<DirEntry>> {
    WalkDir::new(dir).min_depth(1).same_file_system(true).sort_by_file_name().into_iter()
}

fn walk_error(dir: &Path, error: &walkdir::Error) -> ImageError {
    let path = error.path().unwrap_or(dir).to_owned();
    unreadable(&path, &error.io_error().map_or_else(|| error.to_string(), ToString::to_string))
}

fn unreadable(path: &Path, reason: &str) -> ImageError {
    ImageError::Unusable {
        path: path.to_owned(),
        wanted: "part of a root file system",
        reason: format!(
            "{reason}; all of it must be readable: chmod u+r as its owner, or make an image of it as its owner (tar, then `umoci raw add-layer`)"
        ),
    }
}

fn unusable(dir: &Path, reason: String) -> ImageError {
    ImageError::Unusable { path: dir.to_owned(), wanted: "a root file system", reason }
}

/// Writes the tree as a tar archive in one fixed spelling.
pub(crate) fn write_tree(dir: &Path, to: &mut dyn Write, ctx: &Ctx) -> Result<(), ImageError> {
    let mut writer = Writer::new(to);
    let mut files: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    for entry in walk(dir) {
        ctx.check()?;
        let entry = entry.map_err(|e| walk_error(dir, &e))?;
        let path = entry.path();
        let meta = fs::symlink_metadata(path).map_err(ImageError::Io)?;
        let name = path.strip_prefix(dir).unwrap_or(path).as_os_str().as_bytes().to_vec();
        if entry.file_name().as_bytes().starts_with(b".wh.") {
            return Err(unusable(
                dir,
                format!("`{}` has a name that means `deleted` in an image's layer", path.display()),
            ));
        }
        let kind = meta.file_type();
        let mut member = Member {
            name,
            kind: Kind::Directory,
            mode: meta.mode() & 0o7777,
            mtime: u64::try_from(meta.mtime()).unwrap_or(0),
        };
        let failed = |e: io::Error| ImageError::Io(fsutil::with_path(&e, "copy", path));
        if kind.is_dir() {
            member.mtime = 0;
            writer.append(&member, &mut io::empty()).map_err(failed)?;
        } else if kind.is_symlink() {
            member.kind =
                Kind::Symlink(fs::read_link(path).map_err(ImageError::Io)?.into_os_string().into_encoded_bytes());
            member.mode = 0o777;
            writer.append(&member, &mut io::empty()).map_err(failed)?;
        } else if kind.is_fifo() {
            member.kind = Kind::Fifo;
            writer.append(&member, &mut io::empty()).map_err(failed)?;
        } else if kind.is_file() {
            let id = (meta.dev(), meta.ino());
            if let Some(first) = files.get(&id) {
                member.kind = Kind::HardLink(first.clone());
                writer.append(&member, &mut io::empty()).map_err(failed)?;
                continue;
            }
            if meta.nlink() > 1 {
                files.insert(id, member.name.clone());
            }
            member.kind = Kind::File(meta.len());
            let file = fs::File::open(path).map_err(|e| unreadable(path, &e.to_string()))?;
            writer.append(&member, &mut Checked { file, ctx }).map_err(failed)?;
        }
    }
    writer.finish().map_err(ImageError::Io)
}

/// Large files end at a signal too.
struct Checked<'a> {
    file: fs::File,
    ctx: &'a Ctx,
}

impl Read for Checked<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.ctx.check().map_err(|e: Interrupted| io::Error::other(e))?;
        self.file.read(into)
    }
}

/// Equal as long as nothing in the tree was touched: what `stat` says of every entry.
pub fn stamp(dir: &Path, ctx: &Ctx) -> Result<String, ImageError> {
    let mut hasher = Sha256::new();
    for entry in walk(dir) {
        ctx.check()?;
        let entry = entry.map_err(|e| walk_error(dir, &e))?;
        let meta = fs::symlink_metadata(entry.path()).map_err(ImageError::Io)?;
        hasher.update(entry.path().as_os_str().as_bytes());
        // A folder's own times say nothing that its entries do not.
        let line = if meta.is_dir() {
            format!("\0{:o}\0", meta.mode())
        } else {
            format!("\0{:o} {}\0", meta.mode(), of_meta(&meta))
        };
        hasher.update(line.as_bytes());
    }
    Ok(Digest::finish(hasher).hex())
}

/// The architecture of the tree's programs, in OCI's words; `None` when none of the usual ones is there.
fn architecture(dir: &Path) -> Option<&'static str> {
    // ELF header: magic, class, byte order, ..., e_machine at offset 18 (System V ABI).
    for name in ["usr/bin/bash", "bin/bash", "usr/bin/dash", "bin/dash", "bin/busybox", "usr/bin/env", "sbin/ldconfig"]
    {
        let path = dir.join(name);
        if !fs::symlink_metadata(&path).is_ok_and(|m| m.is_file()) {
            continue;
        }
        let mut start = [0; 20];
        if fs::File::open(&path).and_then(|mut f| f.read_exact(&mut start)).is_err() || start[..4] != *b"\x7fELF" {
            continue;
        }
        let machine = if start[5] == 2 { [start[19], start[18]] } else { [start[18], start[19]] };
        match u16::from_le_bytes(machine) {
            62 => return Some("amd64"),
            183 => return Some("arm64"),
            3 => return Some("386"),
            40 => return Some("arm"),
            21 => return Some("ppc64le"),
            22 => return Some("s390x"),
            243 => return Some("riscv64"),
            _ => {}
        }
    }
    None
}
