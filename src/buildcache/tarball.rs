//! A package's tarball, entry for entry as Spack writes it, from one reading of the prefix.
//!
//! ```text
//! slurm-factory.build/                                         every folder above the prefix, without the leading `/`
//! slurm-factory.build/store/PADDING/                           what Spack makes of `install_tree:padded_length`
//! slurm-factory.build/store/PADDING/munge-0.5.16-HASH/         the prefix; in each folder files first, then folders, by name
//! ...
//! slurm-factory.build/store/PADDING/munge-0.5.16-HASH/.spack/binary_distribution     last: what installing elsewhere needs to know
//! ```
//!
//! POSIX pax archive; uid, gid and times are 0, no names of users; folders and links 0755, files 0755 when their owner may
//! execute them and 0644 otherwise; hard links are kept. So the bytes follow from names, contents, links and that one bit, and
//! from nothing else about the host. Compressed by [`crate::gzip`], which gives the same bytes on any number of threads.
//!
//! `binary_distribution` is YAML; JSON is YAML.

use super::classify::{Class, Classifier};
use super::{BuildcacheError, InTree};
use crate::fsutil;
use crate::gzip::{GzipWriter, Pool};
use crate::pax;
use crate::report::Ctx;
use crate::sha256::Hashing;
use fs_err as fs;
use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tar::{EntryType, Header};

/// Where a tarball says what installing it elsewhere needs, below the prefix.
pub const DISTRIBUTION: &str = ".spack/binary_distribution";
/// The size that 11 octal digits hold.
const OCTAL_LIMIT: u64 = 0o777_7777_7777;
const UNIT: u64 = 512;
/// Python's tarfile fills the archive up to this.
const RECORD: u64 = 10_240;
const BUFFER: usize = 1 << 20;

/// What installing elsewhere needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// The store's own helper for long first lines of scripts.
    pub sbang_install_path: String,
    /// The root of the store.
    pub buildpath: String,
    /// Where Spack itself was.
    pub spackprefix: String,
    /// The prefix below the store.
    pub relative_prefix: String,
    /// Of several names of a file only one is listed below.
    pub hardlinks_deduped: bool,
    /// Hash to prefix: of the package and of what it may name.
    pub hash_to_prefix: BTreeMap<String, String>,
    /// ELF files.
    pub relocate_binaries: Vec<String>,
    /// Symlinks that point into the store by an absolute path.
    pub relocate_links: Vec<String>,
    /// Texts that name the store.
    pub relocate_textfiles: Vec<String>,
}

/// A finished tarball.
#[derive(Debug, Clone)]
pub struct Made {
    /// In bytes, compressed.
    pub size: u64,
    /// SHA-256 of the compressed bytes, hexadecimal.
    pub sha256: String,
    /// The same before they were compressed, when it was asked for.
    pub unpacked: Option<String>,
}

/// Writes the tarball of `package` to the file `to`. `distribution` has everything but the three lists. How it is compressed is
/// the level, and whether what is compressed is to have a sum of its own.
pub fn write(
    package: &InTree,
    distribution: Distribution,
    to: &Path,
    (level, sum): (u8, bool),
    pool: &Pool,
    ctx: &Ctx,
) -> Result<Made, BuildcacheError> {
    let file = fs::File::create(to)?;
    let out = GzipWriter::shared(Hashing::new(file), level, pool)?;
    let (out, unpacked) = pack(package, distribution, out, sum, ctx)?;
    let hashing = out.finish()?;
    Ok(Made { size: hashing.size(), sha256: hashing.hex(), unpacked })
}

/// SHA-256, hexadecimal, of what [`write`] would compress.
pub fn sum(package: &InTree, distribution: Distribution, ctx: &Ctx) -> Result<String, BuildcacheError> {
    Ok(pack(package, distribution, Hashing::new(io::sink()), false, ctx)?.0.hex())
}

/// The archive as it is before it is compressed, and its sum when that is asked for.
fn pack<W: Write>(
    package: &InTree,
    mut distribution: Distribution,
    out: W,
    sum: bool,
    ctx: &Ctx,
) -> Result<(W, Option<String>), BuildcacheError> {
    // With a padded store, its helper for scripts lies beside the padding and not below it.
    let store = [distribution.buildpath.clone(), distribution.sbang_install_path.clone()];
    let finders = store.each_ref().map(|path| Finder::new(path.as_bytes()));
    let own = if store[1].starts_with(&store[0]) { 1 } else { 2 };
    let (store, finders) = (store.get(..own).unwrap_or_default(), finders.get(..own).unwrap_or_default());
    let mut writer = Tar { out, written: 0, sum: sum.then(Sha256::new) };
    let name = package.prefix.trim_start_matches('/').to_owned();
    let mut above = String::new();
    let parents: Vec<&str> = name.split('/').collect();
    for part in parents.iter().take(parents.len().saturating_sub(1)) {
        above.push_str(part);
        writer.entry(above.as_bytes(), EntryType::Directory, 0o755, 0, None)?;
        above.push('/');
    }
    let mut walk = Walk { ctx, finders, store, package, name, links: HashMap::new(), buffer: vec![0; BUFFER] };
    walk.run(&mut writer, &mut distribution)?;
    let text = serde_json::to_vec(&distribution).map_err(io::Error::other)?;
    let size = text.len() as u64;
    writer.entry(format!("{}/{DISTRIBUTION}", walk.name).as_bytes(), EntryType::Regular, 0o644, size, None)?;
    writer.write(&text)?;
    writer.pad(size)?;
    Ok(writer.finish()?)
}

struct Walk<'w> {
    ctx: &'w Ctx,
    finders: &'w [Finder<'w>],
    store: &'w [String],
    package: &'w InTree,
    /// The prefix, without the leading `/`.
    name: String,
    /// Device and inode of files with several names, and the first of them.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn run<W: Write>(&mut self, tar: &mut Tar<W>, facts: &mut Distribution) -> Result<(), BuildcacheError> {
        // Relative to the prefix, as bytes: names of files need not be text.
        let mut folders: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(folder) = folders.pop() {
            self.ctx.check()?;
            let at = self.package.dir.join(Path::new(std::ffi::OsStr::from_bytes(&folder)));
            tar.entry(&self.named(&folder), EntryType::Directory, 0o755, 0, None)?;
            let mut entries = fs::read_dir(&at)?.collect::<io::Result<Vec<_>>>()?;
            entries.sort_by_key(fs::DirEntry::file_name);
            let mut below = Vec::new();
            for entry in entries {
                let mut path = folder.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend(entry.file_name().as_bytes());
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    below.push(path);
                } else if kind.is_symlink() {
                    let target = fs::read_link(entry.path())?;
                    let target = target.as_os_str().as_bytes();
                    if self.store.iter().any(|path| target.starts_with(path.as_bytes())) {
                        facts.relocate_links.push(self.text(&path)?);
                    }
                    tar.entry(&self.named(&path), EntryType::Symlink, 0o755, 0, Some(target))?;
                } else if kind.is_file() && path != DISTRIBUTION.as_bytes() {
                    self.file(&entry.path(), &path, tar, facts)?;
                }
                // Spack leaves out sockets, pipes and devices too, and the file that is written anew at the end.
            }
            folders.extend(below.into_iter().rev());
        }
        Ok(())
    }

    fn file<W: Write>(
        &mut self,
        at: &Path,
        path: &[u8],
        tar: &mut Tar<W>,
        facts: &mut Distribution,
    ) -> Result<(), BuildcacheError> {
        let mut file = fs::File::open(at)?;
        let meta = file.metadata()?;
        let mode = if meta.mode() & 0o100 == 0 { 0o644 } else { 0o755 };
        let name = self.named(path);
        if meta.nlink() > 1 {
            let first = self.links.entry((meta.dev(), meta.ino())).or_insert_with(|| name.clone());
            if *first != name {
                tar.entry(&name, EntryType::Link, mode, 0, Some(first))?;
                return Ok(());
            }
        }
        let size = meta.len();
        tar.entry(&name, EntryType::Regular, mode, size, None)?;
        let mut classifier = (!path.starts_with(b".spack/")).then(|| Classifier::new(self.finders));
        let mut left = size;
        while left > 0 {
            self.ctx.check()?;
            let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let got = file.read(self.buffer.get_mut(..wanted).unwrap_or_default())?;
            if got == 0 {
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read");
                return Err(fsutil::with_path(&error, "read", at).into());
            }
            let bytes = self.buffer.get(..got).unwrap_or_default();
            if let Some(classifier) = &mut classifier {
                classifier.update(bytes);
            }
            tar.write(bytes)?;
            left -= got as u64;
        }
        tar.pad(size)?;
        match classifier.map(Classifier::finish) {
            Some(Class::Binary) => facts.relocate_binaries.push(self.text(path)?),
            Some(Class::Text) => facts.relocate_textfiles.push(self.text(path)?),
            Some(Class::Other) | None => {}
        }
        Ok(())
    }

    /// The entry's name in the archive.
    fn named(&self, path: &[u8]) -> Vec<u8> {
        let mut name = self.name.clone().into_bytes();
        if !path.is_empty() {
            name.push(b'/');
            name.extend(path);
        }
        name
    }

    fn text(&self, path: &[u8]) -> Result<String, BuildcacheError> {
        String::from_utf8(path.to_vec()).map_err(|_| BuildcacheError::Package {
            package: self.package.label(),
            path: self.package.dir.clone(),
            reason: format!(
                "`{}` must be edited where it is installed, and its name is not UTF-8, which Spack cannot read",
                path.escape_ascii()
            ),
        })
    }
}

/// Writes headers and contents, counting.
struct Tar<W: Write> {
    out: W,
    written: u64,
    sum: Option<Sha256>,
}

impl<W: Write> Tar<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        if let Some(sum) = &mut self.sum {
            sum.update(bytes);
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// A header; names that do not fit and sizes of 8 GiB and more go into pax records before it.
    fn entry(&mut self, name: &[u8], kind: EntryType, mode: u32, size: u64, link: Option<&[u8]>) -> io::Result<()> {
        let mut name = name.to_vec();
        if kind == EntryType::Directory {
            name.push(b'/');
        }
        let mut records = Vec::new();
        let long = |text: &[u8]| text.len() > 100 || !text.is_ascii();
        let texts = [("path", Some(name.as_slice())), ("linkpath", link)];
        if texts.iter().any(|(_, text)| text.is_some_and(|t| std::str::from_utf8(t).is_err())) {
            pax::record(&mut records, "hdrcharset", b"BINARY");
        }
        for (keyword, text) in texts {
            if let Some(text) = text.filter(|text| long(text)) {
                pax::record(&mut records, keyword, text);
            }
        }
        if size > OCTAL_LIMIT {
            pax::record(&mut records, "size", size.to_string().as_bytes());
        }
        if !records.is_empty() {
            let length = records.len() as u64;
            self.header(b"././@PaxHeader", EntryType::XHeader, 0, length, None)?;
            self.write(&records)?;
            self.pad(length)?;
        }
        self.header(&name, kind, mode, if size > OCTAL_LIMIT { 0 } else { size }, link)
    }

    fn header(&mut self, name: &[u8], kind: EntryType, mode: u32, size: u64, link: Option<&[u8]>) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        let old = header.as_old_mut();
        fill(&mut old.name, name);
        fill(&mut old.linkname, link.unwrap_or_default());
        header.set_cksum();
        let bytes = *header.as_bytes();
        self.write(&bytes)
    }

    /// Fills up to the next header.
    fn pad(&mut self, size: u64) -> io::Result<()> {
        self.zeros((UNIT - size % UNIT) % UNIT)
    }

    fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let part = count.min(UNIT);
            self.write([0; 512].get(..usize::try_from(part).unwrap_or(0)).unwrap_or_default())?;
            count -= part;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<(W, Option<String>)> {
        self.zeros(2 * UNIT)?;
        self.zeros((RECORD - self.written % RECORD) % RECORD)?;
        Ok((self.out, self.sum.map(|sum| hex::encode(sum.finalize()))))
    }
}

/// As much as fits: the whole name is in a record then.
fn fill(field: &mut [u8; 100], text: &[u8]) {
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
}
