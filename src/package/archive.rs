//! Writing a package: every file read once, every byte of the archive seen once.
//!
//! ```text
//! trees, texts -> sorted members -> tar -> gzip or zstd, on all cores -> disk
//!                      |                                             `--> sha256, signature
//!                      `-> sha256 of each file -> manifest.json, the last member
//! ```
//!
//! The same trees give the same bytes: members are sorted by name (bytes, part by part), owners are 0, times are the
//! plan's epoch, modes are 0755 or 0644, and the compressors cut their input by its length alone.
//!
//! All files are written in a staging folder and renamed out of it, sums first, the archive last; an older
//! archive of that name is taken away before its sums are. Whoever finds the archive finds what belongs to it.

use super::attest;
use super::manifest::{ArchiveFacts, FORMAT};
use super::ustar::TarWriter;
use super::{
    Beside, Compression, Facts, FileEntry, Kind, Manifest, Member, Named, Package, PackageError, Signed, layout,
};
use crate::cache::Cache;
use crate::fsutil;
use crate::gzip::GzipWriter;
use crate::report::{Ctx, Event, Stage};
use crate::sha256::Hashing;
use crate::sign::{self, Others, SignError, SigningHasher, SigningKey, sign_reader};
use fs_err as fs;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// Something that goes into the package.
#[derive(Debug, Clone)]
pub enum Content {
    /// A folder with all that is in it.
    Tree {
        /// Where it is.
        root: PathBuf,
        /// What it is called in the package.
        name: PathBuf,
    },
    /// A single file.
    Bytes {
        /// What it is called in the package.
        name: PathBuf,
        /// Its content.
        bytes: Vec<u8>,
        /// Whether it is a program.
        executable: bool,
    },
}

/// All that decides a package's bytes, and where they go.
pub struct Request<'a> {
    /// The folder of finished packages.
    pub dir: &'a Path,
    /// What names it.
    pub name: &'a dyn Named,
    /// What goes in.
    pub contents: Vec<Content>,
    /// What the manifest says about it.
    pub facts: Facts,
    /// How it is compressed.
    pub compression: Compression,
    /// Threads that compress; 0 means all. Does not change the result.
    pub threads: usize,
    /// Who signs.
    pub key: &'a SigningKey,
}

/// Where a member's content comes from.
enum From {
    Nothing,
    Disk(PathBuf),
    Memory(Vec<u8>),
}

/// Members in the archive's order: by name, bytewise, part by part. `/` sorts before every byte of a name.
type Members = BTreeMap<Vec<u8>, (Member, From)>;

impl Package {
    /// Writes a package, its sum, its signature and a copy of its manifest.
    pub fn create(cache: &Cache, request: Request<'_>, ctx: &Ctx) -> Result<(Self, Signed), PackageError> {
        let Request { dir, name, contents, facts, compression, threads, key } = request;
        let members = collect(contents, ctx)?;
        fs::create_dir_all(dir).map_err(PackageError::Io)?;
        cache.sweep(dir)?;
        let staging = cache.staging(dir)?;
        let path = dir.join(name.archive(compression));
        let beside = Beside::of(&path);
        let staged = staging.path().join(name.archive(compression));
        let staged_beside = Beside::of(&staged);

        let output =
            Output { file: fs::File::create(&staged).map_err(PackageError::Io)?, hasher: SigningHasher::new(key)? };
        let encoder = Encoder::new(output, compression, threads).map_err(|e| write_error(dir, e))?;
        let mut archive = Archive { tar: TarWriter::new(encoder, facts.created), dir, files: Vec::new(), ctx };
        let mut manifest = Manifest {
            format: FORMAT,
            facts,
            archive: ArchiveFacts { compression },
            totals: super::manifest::Totals::default(),
            files: Vec::new(),
        };
        for (member, _) in members.values() {
            manifest.totals.add(member);
        }
        archive.write_all(members, manifest.totals.bytes)?;
        manifest.files = std::mem::take(&mut archive.files);
        let manifest_bytes = manifest.to_bytes().map_err(PackageError::Json)?;
        archive.write_manifest(&manifest_bytes)?;

        let encoder = archive.tar.finish().map_err(|e| write_error(dir, e))?;
        let Output { file, hasher } = encoder.finish().map_err(|e| write_error(dir, e))?;
        file.sync_all().map_err(PackageError::Io)?;
        let size = hasher.length();
        let (sha256, signature) = hasher.finish()?;

        let file_name = name.archive(compression);
        let attestations = attest::make(&manifest, &file_name, &sha256)?;
        let (_, provenance_signature) = sign_reader(key, attestations.provenance.as_slice())?;
        write_synced(&staged_beside.sums, attestations.sums.as_bytes())?;
        write_synced(&staged_beside.sbom, &attestations.sbom)?;
        write_synced(&staged_beside.provenance, &attestations.provenance)?;
        write_synced(&staged_beside.provenance_signature, provenance_signature.armored.as_bytes())?;
        write_synced(&staged_beside.signature, signature.armored.as_bytes())?;
        write_synced(&staged_beside.manifest, &manifest_bytes)?;
        ctx.check()?;
        publish(&staged, &staged_beside, &path, &beside)?;
        Ok((
            Self { path, sha256, size, manifest, attested: Vec::new(), strangers: Vec::new() },
            Signed { signature: beside.signature, fingerprint: signature.fingerprint },
        ))
    }
}

impl Package {
    /// Signs a package that is there already; what becomes of the signatures that it has is `others`.
    pub fn sign(&self, key: &SigningKey, others: Others, ctx: &Ctx) -> Result<Signed, PackageError> {
        let file = fs::File::open(self.path()).map_err(PackageError::Io)?;
        let (sha256, signature) = sign_reader(key, super::Checked::new(file, ctx)).map_err(|error| match error {
            SignError::Io(io) => super::told_to_stop(io, PackageError::Io),
            other => PackageError::Sign(other),
        })?;
        if sha256 != self.sha256() {
            let source = io::Error::other(format!("its sha256 was {} and is now {sha256}", self.sha256()));
            return Err(PackageError::Changed { path: self.path().to_owned(), source });
        }
        let beside = self.beside();
        if let Ok(statement) = super::read_small(&beside.provenance) {
            let (_, signature) = sign_reader(key, statement.as_slice())?;
            write_signature(&beside.provenance_signature, &signature.armored, key, others)?;
        }
        write_signature(&beside.signature, &signature.armored, key, others)?;
        Ok(Signed { signature: beside.signature, fingerprint: signature.fingerprint })
    }
}

/// Writes a signature to its file, beside those that are in it or in their place.
fn write_signature(path: &Path, armored: &str, key: &SigningKey, others: Others) -> Result<(), PackageError> {
    let existing = match (others, super::read_small(path)) {
        (Others::Keep, Ok(bytes)) => Some(bytes),
        (Others::Keep, Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(PackageError::Io(error)),
        _ => None,
    };
    let joined;
    let text = match existing {
        Some(existing) => {
            let what = format!("`{}`", path.display());
            joined = sign::join(&what, &existing, armored, &key.signing_fingerprint())?;
            &joined
        }
        None => armored,
    };
    fsutil::write_atomic(path, text.as_bytes(), 0o644).map_err(PackageError::Io)
}

/// Moves the files to their names: nothing, then the sums, then the archive.
fn publish(staged: &Path, staged_beside: &Beside, path: &Path, beside: &Beside) -> Result<(), PackageError> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(PackageError::Io(error)),
    }
    for (from, to) in [
        (&staged_beside.sums, &beside.sums),
        (&staged_beside.signature, &beside.signature),
        (&staged_beside.manifest, &beside.manifest),
        (&staged_beside.sbom, &beside.sbom),
        (&staged_beside.provenance, &beside.provenance),
        (&staged_beside.provenance_signature, &beside.provenance_signature),
    ] {
        fs::rename(from, to).map_err(PackageError::Io)?;
    }
    fs::rename(staged, path).map_err(PackageError::Io)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), PackageError> {
    let mut file = fs::File::create(path).map_err(PackageError::Io)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(PackageError::Io)
}

fn write_error(dir: &Path, source: io::Error) -> PackageError {
    PackageError::Write { dir: dir.to_owned(), source }
}

/// Everything that goes in, in order, with the folders above it.
fn collect(contents: Vec<Content>, ctx: &Ctx) -> Result<Members, PackageError> {
    let mut members = Members::new();
    let mut inodes: HashMap<(u64, u64), PathBuf> = HashMap::new();
    for content in contents {
        match content {
            Content::Bytes { name, bytes, executable } => {
                check_name(&name)?;
                let kind = Kind::File { size: bytes.len() as u64, executable };
                insert(&mut members, Member { path: name, kind }, From::Memory(bytes))?;
            }
            Content::Tree { root, name } => {
                check_name(&name)?;
                walk(&root, &name, &mut members, &mut inodes, ctx)?;
            }
        }
    }
    let mut parents = Vec::new();
    for (member, _) in members.values() {
        let above = member.path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty());
        parents.extend(above.filter(|p| !members.contains_key(&sort_key(p))).map(Path::to_path_buf));
    }
    parents.sort();
    parents.dedup();
    for path in parents {
        insert(&mut members, Member { path, kind: Kind::Dir }, From::Nothing)?;
    }
    Ok(members)
}

fn walk(
    root: &Path,
    name: &Path,
    members: &mut Members,
    inodes: &mut HashMap<(u64, u64), PathBuf>,
    ctx: &Ctx,
) -> Result<(), PackageError> {
    let mut special_modes = 0_usize;
    for entry in walkdir::WalkDir::new(root).follow_root_links(true).sort_by_file_name() {
        ctx.check()?;
        let entry = entry.map_err(|error| PackageError::Io(io::Error::other(error)))?;
        let below = entry.path().strip_prefix(root).unwrap_or(Path::new(""));
        let path = if below.as_os_str().is_empty() { name.to_owned() } else { name.join(below) };
        let (kind, from) = if entry.depth() == 0 || entry.file_type().is_dir() {
            (Kind::Dir, From::Nothing)
        } else if entry.file_type().is_symlink() {
            let target = fs::read_link(entry.path()).map_err(PackageError::Io)?;
            if !stays_inside(&path, &target) {
                return Err(PackageError::LinkOutside { path, target });
            }
            (Kind::Symlink { target }, From::Nothing)
        } else if entry.file_type().is_file() {
            let metadata = fs::symlink_metadata(entry.path()).map_err(PackageError::Io)?;
            let executable = metadata.mode() & 0o100 != 0;
            special_modes += usize::from(metadata.mode() & 0o7000 != 0);
            let known = match metadata.nlink() {
                1 => None,
                _ => inodes.get(&(metadata.dev(), metadata.ino())).cloned(),
            };
            if let Some(target) = known {
                (Kind::Hardlink { target, executable }, From::Nothing)
            } else {
                inodes.insert((metadata.dev(), metadata.ino()), path.clone());
                (Kind::File { size: metadata.len(), executable }, From::Disk(entry.path().to_owned()))
            }
        } else {
            let file_type = entry.file_type();
            let kind = match () {
                () if file_type.is_socket() => "a socket",
                () if file_type.is_fifo() => "a pipe",
                () => "a device",
            };
            return Err(PackageError::Unsupported { path: entry.path().to_owned(), kind });
        };
        insert(members, Member { path, kind }, from)?;
    }
    if special_modes > 0 {
        ctx.warn(format!(
            "{special_modes} files in `{}` have set-user-id, set-group-id or sticky bits; the package leaves them out",
            root.display()
        ));
    }
    Ok(())
}

fn insert(members: &mut Members, member: Member, from: From) -> Result<(), PackageError> {
    let key = sort_key(&member.path);
    match members.get(&key) {
        // Two trees may share folders.
        Some((known, _)) if known.kind == Kind::Dir && member.kind == Kind::Dir => {}
        Some(_) => return Err(PackageError::Duplicate { path: member.path }),
        None => {
            members.insert(key, (member, from));
        }
    }
    Ok(())
}

fn sort_key(path: &Path) -> Vec<u8> {
    // A name has no zero byte, so it can stand for the slash and sort before everything.
    path.as_os_str().as_bytes().iter().map(|b| if *b == b'/' { 0 } else { *b }).collect()
}

fn check_name(name: &Path) -> Result<(), PackageError> {
    let plain = name.components().all(|c| matches!(c, Component::Normal(_)));
    if plain && !name.as_os_str().is_empty() && name != Path::new(layout::MANIFEST) {
        Ok(())
    } else {
        Err(PackageError::BadName { path: name.to_owned() })
    }
}

/// Whether a link at `path` that says `target` names something below the package's top, taking names as they stand.
pub(super) fn stays_inside(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count().saturating_sub(1);
    for component in target.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) => depth += 1,
            Component::ParentDir => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

/// The archive's bytes on their way to the disk.
struct Output<'k> {
    file: fs::File,
    hasher: SigningHasher<'k>,
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

enum Encoder<W: Write> {
    Gzip(GzipWriter<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    fn new(inner: W, compression: Compression, threads: usize) -> io::Result<Self> {
        match compression {
            Compression::Gzip { level } => GzipWriter::new(inner, level, threads).map(Self::Gzip),
            Compression::Zstd { level } => zstd_encoder(inner, level, threads).map(Self::Zstd),
        }
    }

    fn finish(self) -> io::Result<W> {
        match self {
            Self::Gzip(writer) => writer.finish(),
            Self::Zstd(writer) => writer.finish(),
        }
    }
}

/// zstd with worker threads gives the same bytes for any number of them, but not those of zero workers: so there is
/// always at least one. Jobs have a fixed size, or it would follow the library's version.
fn zstd_encoder<W: Write>(inner: W, level: u8, threads: usize) -> io::Result<zstd::stream::write::Encoder<'static, W>> {
    use zstd::zstd_safe::CParameter;
    // Each worker holds some 15 MB.
    let threads = crate::gzip::threads(threads, 12)?;
    let mut encoder = zstd::stream::write::Encoder::new(inner, i32::from(level))?;
    encoder.set_parameter(CParameter::NbWorkers(u32::try_from(threads).unwrap_or(1)))?;
    encoder.set_parameter(CParameter::JobSize(4 << 20))?;
    encoder.set_parameter(CParameter::ChecksumFlag(true))?;
    Ok(encoder)
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(writer) => writer.write(bytes),
            Self::Zstd(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // Nothing before the end: a flush would show in the result.
        Ok(())
    }
}

struct Archive<'a, W: Write> {
    tar: TarWriter<W>,
    dir: &'a Path,
    files: Vec<FileEntry>,
    ctx: &'a Ctx,
}

impl<W: Write> Archive<'_, W> {
    fn write_all(&mut self, members: Members, total: u64) -> Result<(), PackageError> {
        let mut done = 0;
        let mut told = 0;
        for (member, from) in members.into_values() {
            self.ctx.check()?;
            let sha256 = self.write(&member, from)?;
            if let Kind::File { size, .. } = member.kind {
                done += size;
            }
            // A terminal does not need more than a hundred of them.
            if done - told > total / 100 || done == total && told < total {
                told = done;
                let current = member.path.display().to_string();
                self.ctx.event(&Event::Progress { stage: Stage::Package, done, total, unit: "bytes", current });
            }
            self.files.push(FileEntry::of(&member, sha256));
        }
        Ok(())
    }

    /// Writes one member; returns the sum of a file's content.
    fn write(&mut self, member: &Member, from: From) -> Result<String, PackageError> {
        match from {
            From::Nothing => {
                self.append(member, &mut io::empty()).map_err(|e| write_error(self.dir, e)).map(|_| String::new())
            }
            From::Memory(bytes) => self.append(member, &mut bytes.as_slice()).map_err(|e| write_error(self.dir, e)),
            From::Disk(path) => {
                let mut file = fs::File::open(&path).map_err(PackageError::Io)?;
                let sum = self.append(member, &mut file).map_err(|source| match source.kind() {
                    io::ErrorKind::UnexpectedEof => PackageError::Changed { path: path.clone(), source },
                    _ => write_error(self.dir, source),
                })?;
                let mut more = [0; 1];
                if file.read(&mut more).map_err(PackageError::Io)? != 0 {
                    let source = io::Error::other("it became longer");
                    return Err(PackageError::Changed { path, source });
                }
                Ok(sum)
            }
        }
    }

    fn append(&mut self, member: &Member, content: &mut dyn Read) -> io::Result<String> {
        let mut hashing = Hashing::new(content);
        self.tar.append(member, &mut hashing)?;
        Ok(hashing.hex())
    }

    fn write_manifest(&mut self, bytes: &[u8]) -> Result<(), PackageError> {
        let kind = Kind::File { size: bytes.len() as u64, executable: false };
        let member = Member { path: PathBuf::from(layout::MANIFEST), kind };
        self.tar.append(&member, &mut &*bytes).map_err(|e| write_error(self.dir, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_sorted_part_by_part_with_their_parents() {
        let file = |name: &str| Content::Bytes { name: name.into(), bytes: Vec::new(), executable: false };
        let members =
            collect(vec![file("view/lib/x"), file("view/lib-a"), file("data/slurm_assets/a")], &Ctx::silent()).unwrap();
        let names: Vec<_> = members.values().map(|(m, _)| m.path.display().to_string()).collect();
        assert_eq!(
            names,
            ["data", "data/slurm_assets", "data/slurm_assets/a", "view", "view/lib", "view/lib/x", "view/lib-a"]
        );
    }

    #[test]
    fn names_that_clash_or_lead_out_are_refused() {
        let file = |name: &str| Content::Bytes { name: name.into(), bytes: Vec::new(), executable: false };
        let ctx = Ctx::silent();
        assert!(matches!(collect(vec![file("a"), file("a")], &ctx), Err(PackageError::Duplicate { .. })));
        for bad in ["", "/a", "../a", "a/../b", "manifest.json"] {
            assert!(matches!(collect(vec![file(bad)], &ctx), Err(PackageError::BadName { .. })), "{bad}");
        }
    }

    #[test]
    fn links_are_followed_by_name_only() {
        for (path, target, inside) in [
            ("view/bin/x", "../lib/y", true),
            ("view/bin/x", "../../data/y", true),
            ("view/bin/x", "../../../y", false),
            ("view/x", "/etc/passwd", false),
            ("x", "..", false),
            ("a/x", "b/../../c", true),
            ("a/x", "b/../../../c", false),
        ] {
            assert_eq!(stays_inside(Path::new(path), Path::new(target)), inside, "{path} -> {target}");
        }
    }

    #[test]
    fn zstd_has_the_same_bytes_for_any_number_of_threads_and_sizes_of_writes() {
        let data: Vec<u8> = (0..30_000_000_u64).map(|i| (i.wrapping_mul(i) >> 11).to_le_bytes()[0] & 0x3f).collect();
        let pack = |threads, step| {
            let mut encoder = zstd_encoder(Vec::new(), 3, threads).unwrap();
            for part in data.chunks(step) {
                encoder.write_all(part).unwrap();
            }
            encoder.finish().unwrap()
        };
        let one = pack(1, 1 << 16);
        assert!(one == pack(4, 1 << 16) && one == pack(2, 7_777_777) && one == pack(3, 513));
    }
}
