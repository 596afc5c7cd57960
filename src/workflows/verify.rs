//! Checks a package or a tree as whoever gets it would: signature, sums, every entry against the manifest,
//! library closure, leaked build paths, glibc floor.

use crate::fsutil::{Packing, packing};
use crate::oldest::Oldest;
use crate::package::manifest::ManifestError;
use crate::package::{Difference, Facts, Package, PackageError, Tree, Trust, decode_path};
use crate::relocate::copy::with_content;
use crate::relocate::verify::{Findings, Inspector, Problem, listed};
use crate::relocate::{Layout, Rules};
use crate::report::{Ctx, Interrupted};
use crate::sign::Fingerprint;
use crate::workflows::processor;
use fs_err as fs;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// The folder in a package that holds programs and libraries.
const VIEW: &str = "view";

/// Why something could not be checked. That it was checked and is not fit is not an error here but in
/// [`Findings::problems`].
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The package is not what it says.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// It is no archive.
    #[error("`{path}` is no tar archive (plain, gzip or zstd) that can be looked at: {reason}")]
    NoArchive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read.
    #[error("verify: {0}")]
    Io(#[from] io::Error),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A package that was opened, and what was found in it.
pub struct Verified {
    /// The package; sums and entries are as its manifest says.
    pub package: Package,
    /// Who signed it, when that was asked.
    pub signers: Vec<Fingerprint>,
    /// What was found.
    pub findings: Findings,
}

/// Checks a package file.
pub fn package(path: &Path, trust: Trust<'_>, rules: &Rules, ctx: &Ctx) -> Result<Verified, VerifyError> {
    let (package, good) = Package::open(path, trust, ctx)?;
    let rules = rules_of(&package.manifest().facts, rules);
    let mut inspector = Inspector::new(rules, Layout::BUILD);
    let mut content = Vec::new();
    package.for_each_entry(ctx, |entry| -> Result<(), VerifyError> {
        let path = entry.member.path.clone();
        // What is beside the view is data; nothing in it is loaded, but it must not name the build either.
        let relative = path.strip_prefix(VIEW).unwrap_or(&path);
        match &entry.member.kind {
            crate::package::Kind::Dir => inspector.folder(relative, entry.member.mode()),
            crate::package::Kind::Symlink { target } => inspector.link(relative, target),
            crate::package::Kind::File { .. } => {
                content.clear();
                entry.content.read_to_end(&mut content)?;
                if path != Path::new("manifest.json") {
                    inspector.file(relative, entry.member.mode(), &content);
                }
            }
            crate::package::Kind::Hardlink { target, .. } => {
                inspector.alias(relative, target.strip_prefix(VIEW).unwrap_or(target));
            }
        }
        Ok(())
    })?;
    let signers = good.into_iter().map(|g| g.fingerprint).collect();
    let mut findings = inspector.finish();
    processor::check(&mut findings, &package.manifest().facts.target);
    Ok(Verified { package, signers, findings })
}

/// The largest file of a foreign archive that is looked at, in bytes: each is held in memory.
const FOREIGN_FILE: u64 = 4 << 30;

/// Checks an archive that is no package of ours: what is in it, without sums, signature or manifest. Plain, gzip or zstd. `layout` has
/// the prefix that it must not name.
pub fn foreign(path: &Path, rules: &Rules, layout: Layout<'_>, ctx: &Ctx) -> Result<Findings, VerifyError> {
    let bad = |reason: String| VerifyError::NoArchive { path: path.to_owned(), reason };
    let mut file = io::BufReader::with_capacity(1 << 18, fs::File::open(path)?);
    let start = file.fill_buf()?;
    let plain: Box<dyn Read> = match packing(start) {
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Packing::Zstd => Box::new(zstd::Decoder::with_buffer(file)?),
        Packing::None => Box::new(file),
        Packing::Other(format) => {
            return Err(bad(format!(
                "it is compressed ({format}), which is not read here; unpack it and verify the folder"
            )));
        }
    };
    let mut inspector = Inspector::new(rules, layout);
    let mut archive = tar::Archive::new(plain);
    let mut count = 0_u64;
    for entry in archive.entries().map_err(|e| bad(e.to_string()))? {
        ctx.check()?;
        let mut entry = entry.map_err(|e| match count {
            0 => bad(format!("it does not begin with the header of a member: {}", in_words(&e))),
            _ => bad(format!("what follows its member {count} is no header: {}", in_words(&e))),
        })?;
        let name: PathBuf = entry.path().map_err(|e| bad(e.to_string()))?.into_owned();
        let member: PathBuf = name.components().filter(|c| !matches!(c, Component::CurDir)).collect();
        if member.components().any(|c| !matches!(c, Component::Normal(_))) {
            return Err(bad(format!("its member `{}` is not below the folder it is unpacked to", name.display())));
        }
        count += 1;
        let target = entry.link_name().map_err(|e| bad(e.to_string()))?.map(std::borrow::Cow::into_owned);
        let mode = entry.header().mode().map_err(|e| bad(e.to_string()))?;
        match (entry.header().entry_type(), target) {
            (tar::EntryType::Directory, _) => inspector.folder(&member, mode),
            (tar::EntryType::Symlink, Some(target)) => inspector.link(&member, &target),
            (tar::EntryType::Link, Some(target)) => {
                let first: PathBuf = target.components().filter(|c| matches!(c, Component::Normal(_))).collect();
                inspector.alias(&member, &first);
            }
            (tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse, _) => {
                if entry.size() > FOREIGN_FILE {
                    return Err(bad(format!(
                        "its member `{}` has {} bytes, more than the {FOREIGN_FILE} that are looked at",
                        name.display(),
                        entry.size()
                    )));
                }
                let mut content = Vec::new();
                entry.read_to_end(&mut content).map_err(|e| bad(e.to_string()))?;
                inspector.file(&member, mode, &content);
            }
            (tar::EntryType::Fifo, _) => inspector.special(&member, "FIFO"),
            (tar::EntryType::Char | tar::EntryType::Block, _) => inspector.special(&member, "device"),
            // Headers that describe the next member.
            _ => {}
        }
    }
    if count == 0 {
        return Err(bad("nothing is in it".to_owned()));
    }
    Ok(inspector.finish())
}

/// A tree on disk, and what was found in it.
pub struct VerifiedTree {
    /// What was found.
    pub findings: Findings,
    /// The package that was unpacked there; nothing when the tree has no manifest.
    pub package: Option<Tree>,
    /// What is not as that package's manifest says, content included.
    pub differences: Vec<Difference>,
}

/// Checks a tree on disk: an unpacked package, against its manifest too, or the view alone. `layout` has the prefix that it must not
/// name.
pub fn tree(dir: &Path, rules: &Rules, layout: Layout<'_>, ctx: &Ctx) -> Result<VerifiedTree, VerifyError> {
    let package = match Tree::open(dir) {
        // Somebody else's manifest.json is nobody's package.
        Err(PackageError::Manifest { source: ManifestError::NotOurs(_), .. }) => None,
        opened => opened?,
    };
    let mut differences = package.as_ref().map_or(Ok(Vec::new()), |tree| tree.differences(true, ctx))?;
    differences.extend(package.as_ref().and_then(|tree| moved(tree, dir)));
    let view = dir.join(VIEW);
    let rules = package.as_ref().map_or(rules, |tree| rules_of(&tree.manifest().facts, rules));
    let mut findings = looked_at(if view.is_dir() { &view } else { dir }, rules, layout, ctx)?;
    if let Some(tree) = &package {
        processor::check(&mut findings, &tree.manifest().facts.target);
    }
    Ok(VerifiedTree { findings, package, differences })
}

/// That files name another folder than the one that the tree lies in now: `install` wrote it, and then the tree was moved.
fn moved(tree: &Tree, dir: &Path) -> Option<Difference> {
    let (files, record) = (tree.holding_path(), tree.record()?);
    let (written, is) = (decode_path(&record.view), dir.join(VIEW));
    let same = |a: io::Result<std::fs::Metadata>, b: &std::fs::Metadata| {
        a.is_ok_and(|a| (a.dev(), a.ino()) == (b.dev(), b.ino()))
    };
    if files == 0 || fs::metadata(&is).is_ok_and(|is| same(fs::metadata(&written), &is)) {
        return None;
    }
    let problem = format!(
        "{files} files name `{}`, where `install` put them, and they are at `{}`: move the tree back, or remove it and install the \
         package here",
        written.display(),
        is.display()
    );
    Some(Difference { path: record.view.clone(), problem })
}

/// The rules about this package.
fn rules_of<'r>(facts: &Facts, rules: &'r Rules) -> &'r Rules {
    if facts.slurm.is_some() { rules } else { rules.of_compiler() }
}

/// Adds a problem when more of glibc is needed than the system has that was asked for.
pub fn hold_to(findings: &mut Findings, oldest: Option<&Oldest>) {
    if let (Some(oldest), Some(floor)) = (oldest, findings.glibc.clone())
        && !oldest.admits(Some(&floor.version))
    {
        let allowed = format!("{} ({})", oldest.glibc, oldest.name);
        findings.problems.push(Problem::Glibc { path: floor.path.clone(), floor, allowed });
    }
}

/// What the files below `root` do not find there, need of a host, and still say of the build.
pub fn files(root: &Path, rules: &Rules, ctx: &Ctx) -> Result<Findings, VerifyError> {
    looked_at(root, rules, Layout::BUILD, ctx)
}

fn looked_at(root: &Path, rules: &Rules, layout: Layout<'_>, ctx: &Ctx) -> Result<Findings, VerifyError> {
    let mut inspector = Inspector::new(rules, layout);
    for entry in walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name() {
        ctx.check()?;
        let entry = entry.map_err(io::Error::from)?;
        let path = entry.path().strip_prefix(root).map_err(io::Error::other)?;
        let kind = entry.file_type();
        if kind.is_dir() {
            inspector.folder(path, fs::symlink_metadata(entry.path())?.mode());
        } else if kind.is_symlink() {
            inspector.link(path, &fs::read_link(entry.path())?);
        } else if kind.is_file() {
            let mode = fs::symlink_metadata(entry.path())?.mode();
            with_content(entry.path(), |content| {
                inspector.file(path, mode, content);
                Ok::<_, VerifyError>(())
            })?;
        } else {
            inspector.special(
                path,
                if kind.is_fifo() {
                    "FIFO"
                } else if kind.is_socket() {
                    "socket"
                } else {
                    "device"
                },
            );
        }
    }
    Ok(inspector.finish())
}

/// What the tar reader says of a header, without the bytes that it took for a name.
fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(": ").next().unwrap_or_default().split(" when getting ").next().unwrap_or_default();
    text.chars().filter(|c| c.is_ascii() && !c.is_control()).take(200).collect()
}

/// The problems, a line each, for an error message.
pub fn list(findings: &Findings) -> String {
    listed(&findings.problems)
}
