//! The finished package: one archive that unpacks into a working tree anywhere, and what vouches for it.
//!
//! ```text
//! DIR/
//!   slurm-25.11-gcc13.4.0-software.tar.gz                 (or .tar.zst)
//!       data/slurm_assets/...      install script, systemd units, configuration templates
//!       modules/slurm/25.11-gcc13.4.0.lua
//!       hierarchy/Core/gcc/13.4.0.lua ...
//!       view/{bin,sbin,lib,...}    the relocated tree
//!       manifest.json              last: what it is, and every file with its sum
//!   slurm-25.11-gcc13.4.0-software.tar.gz.sha256          for `sha256sum -c`: the archive, bill and provenance
//!   slurm-25.11-gcc13.4.0-software.tar.gz.asc             for `gpg --verify`
//!   slurm-25.11-gcc13.4.0-software.tar.gz.spdx.json       bill of materials
//!   slurm-25.11-gcc13.4.0-software.tar.gz.provenance.json how it was made; .provenance.json.asc signs it
//!   slurm-25.11-gcc13.4.0-software.tar.gz.manifest.json   a copy
//! ```
//!
//! The package of a compiler, `gcc-13.4.0-compiler.tar.gz`, is the same with another view and other modules ([`CompilerName`]).
//!
//! [`Package::create`] writes it in one pass: each file is read once, and the stream is compressed, hashed and signed
//! on its way to the disk. The archive's own name appears last, so whoever finds it finds the rest.
//! [`Package::open`] is the other door: it takes any file and checks it before it calls it a package.
//!
//! `ustar` is the tar format, `crate::gzip` the parallel compression, `archive` the writing, `extract` the reading,
//! [`mod@manifest`] the description, `sbom`, `provenance` and `attest` what vouches for it, `installed` the tree on disk,
//! [`modulefile`] what Lmod and Environment Modules read, `error` what can be wrong.

mod archive;
mod attest;
mod error;
mod extract;
mod installed;
pub mod manifest;
pub mod modulefile;
mod provenance;
mod sbom;
mod ustar;

pub use archive::{Content, Request};
pub use attest::Attested;
pub use error::PackageError;
pub use extract::Entry;
pub use installed::{Difference, Record, Removal, Tree};
pub use manifest::{Facts, FileEntry, FileKind, Manifest, PREFIX_PLACEHOLDER, decode_path, encode_path};
pub use ustar::{Kind, Member};

use crate::fsutil;
use crate::report::{Ctx, Interrupted};
use crate::sha256::Hashing;
use crate::sign::{Fingerprint, GoodSignature, Keyring, SignError, Signers};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The entries at the top of the archive, each named once.
pub mod layout {
    /// The relocated tree.
    pub const VIEW: &str = "view";
    /// What goes into `MODULEPATH`.
    pub const MODULES: &str = "modules";
    /// The modules for sites with a hierarchy of compilers and MPIs.
    pub const HIERARCHY: &str = "hierarchy";
    /// What of them goes into `MODULEPATH`.
    pub const CORE: &str = "hierarchy/Core";
    /// The module's name, and the folder that holds its versions.
    pub const MODULE_NAME: &str = "slurm";
    /// The name of a compiler's module.
    pub const COMPILER_MODULE: &str = "gcc";
    /// What administrators need beside the programs.
    pub const ASSETS: &str = "data/slurm_assets";
    /// What lies beside a compiler.
    pub const COMPILER_ASSETS: &str = "data/gcc_assets";
    /// What the package is.
    pub const MANIFEST: &str = "manifest.json";
    /// What `install` adds to an installed tree.
    pub const RECORD: &str = ".slurm-factory-install.json";
}

/// How the archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum Compression {
    /// Read by everything.
    Gzip {
        /// libdeflate's level: 1 to 12.
        level: u8,
    },
    /// Smaller and quicker, where zstd is installed.
    Zstd {
        /// zstd's level: 1 to 19.
        level: u8,
    },
}

impl Compression {
    /// A little smaller than `gzip -6`, at a third of its work.
    pub const GZIP: Self = Self::Gzip { level: 5 };
    /// zstd's own default.
    pub const ZSTD: Self = Self::Zstd { level: 3 };

    /// `.tar.gz` or `.tar.zst`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Gzip { .. } => ".tar.gz",
            Self::Zstd { .. } => ".tar.zst",
        }
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self::GZIP
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gzip" | "gz" => Ok(Self::GZIP),
            "zstd" | "zst" => Ok(Self::ZSTD),
            other => Err(format!("`{other}` is no compression; known are gzip and zstd")),
        }
    }
}

/// What has an archive named by it.
pub trait Named {
    /// The archive's name.
    fn archive(&self, compression: Compression) -> String;
    /// What it is called in messages.
    fn label(&self) -> String;
}

/// What names a package: the Slurm version and the compiler, as the user asked for them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PackageName {
    /// For instance `25.11`.
    pub version: String,
    /// The compiler's version, such as `13.4.0`.
    pub compiler: String,
}

/// What names the package of a compiler: its exact version.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CompilerName(pub String);

impl Named for CompilerName {
    /// `gcc-13.4.0-compiler.tar.gz`.
    fn archive(&self, compression: Compression) -> String {
        format!("{}-compiler{}", self.label(), compression.suffix())
    }

    /// `gcc-13.4.0`.
    fn label(&self) -> String {
        format!("gcc-{}", self.0)
    }
}

impl Named for PackageName {
    /// `slurm-25.11-gcc13.4.0-software.tar.gz`.
    fn archive(&self, compression: Compression) -> String {
        format!("slurm-{}-software{}", self.label(), compression.suffix())
    }

    /// `25.11-gcc13.4.0`: the module's version.
    fn label(&self) -> String {
        format!("{}-gcc{}", self.version, self.compiler)
    }
}

impl PackageName {
    /// `modules/slurm/25.11-gcc13.4.0.lua`, inside the archive.
    pub fn modulefile(&self) -> PathBuf {
        Path::new(layout::MODULES).join(layout::MODULE_NAME).join(format!("{}.lua", self.label()))
    }
}

/// The files that lie beside an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beside {
    /// For `sha256sum -c`.
    pub sums: PathBuf,
    /// The detached signature.
    pub signature: PathBuf,
    /// The copy of the manifest.
    pub manifest: PathBuf,
    /// The bill of materials, SPDX 2.3.
    pub sbom: PathBuf,
    /// The statement of provenance, in-toto and SLSA.
    pub provenance: PathBuf,
    /// Its detached signature.
    pub provenance_signature: PathBuf,
}

impl Beside {
    /// Their names for this archive.
    pub fn of(archive: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name: OsString = archive.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self {
            sums: with(".sha256"),
            signature: with(".asc"),
            manifest: with(".manifest.json"),
            sbom: with(".spdx.json"),
            provenance: with(".provenance.json"),
            provenance_signature: with(".provenance.json.asc"),
        }
    }
}

/// A whole package on disk: written by us, or opened and checked.
#[derive(Debug, Clone)]
pub struct Package {
    path: PathBuf,
    sha256: String,
    size: u64,
    manifest: Manifest,
    attested: Vec<Attested>,
    strangers: Vec<String>,
}

/// A package's signature, beside it on disk.
#[derive(Debug, Clone)]
pub struct Signed {
    signature: PathBuf,
    fingerprint: Fingerprint,
}

impl Signed {
    /// The `.asc` file.
    pub fn signature(&self) -> &Path {
        &self.signature
    }

    /// The key that signed.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }
}

/// What is asked of a signature when a package is opened.
#[derive(Clone, Copy)]
pub enum Trust<'k> {
    /// There must be one, good, by one of these keys.
    Require(&'k Keyring),
    /// There must be a good one by each of these keys.
    RequireAll(&'k Keyring),
    /// Nobody asks: our own cache, or the user said so.
    Skip,
}

impl Trust<'_> {
    /// Whose signatures are needed.
    fn signers(self) -> Signers {
        match self {
            Self::RequireAll(_) => Signers::All,
            Self::Require(_) | Self::Skip => Signers::Any,
        }
    }
}

impl Package {
    /// The archive.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its sha256 in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What it says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What lay beside it when it was opened, vouches for it and belongs to it; nothing for one that was just written.
    pub fn attested(&self) -> &[Attested] {
        &self.attested
    }

    /// Keys that signed it and are not known here, as their signatures name them. They count for nothing.
    pub fn strangers(&self) -> &[String] {
        &self.strangers
    }

    /// The files beside it, whether or not they are there.
    pub fn beside(&self) -> Beside {
        Beside::of(&self.path)
    }

    /// Takes any file for a package if it is one: its sum is that of the `.sha256` beside it (when there is one), its
    /// signature is good (when `trust` asks), and every entry is what the manifest says.
    pub fn open(path: &Path, trust: Trust<'_>, ctx: &Ctx) -> Result<(Self, Vec<GoodSignature>), PackageError> {
        let beside = Beside::of(path);
        let mut file = fs::File::open(path).map_err(PackageError::Io)?;
        let size = file.metadata().map_err(PackageError::Io)?.len();
        let (mut good, mut strangers) = (Vec::new(), Vec::new());
        let mut signed = None;
        if let Trust::Require(keyring) | Trust::RequireAll(keyring) = trust {
            // Nothing in it is looked at before somebody who is trusted has vouched for it.
            let mut hashing = Hashing::new(Checked::new(&mut file, ctx));
            let signature = match read_small(&beside.signature) {
                Ok(signature) => signature,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(PackageError::NotSigned { path: path.to_owned(), signature: beside.signature });
                }
                Err(error) => return Err(PackageError::Io(error)),
            };
            let what = format!("`{}`", path.display());
            strangers = keyring.strangers(&signature);
            good = keyring.verify_signers(&what, &signature, &mut hashing, trust.signers()).map_err(
                |error| match error {
                    SignError::Io(io) => told_to_stop(io, PackageError::Io),
                    other => PackageError::Sign(other),
                },
            )?;
            let sha256 = drained(hashing)?;
            check_sum(path, &beside.sums, &sha256)?;
            file.rewind().map_err(PackageError::Io)?;
            signed = Some(sha256);
        }
        let (manifest, sha256) = match extract::check(path, &mut file, ctx) {
            Ok(read) => read,
            Err(error) => {
                if signed.is_none() && matches!(error, PackageError::Damaged { .. }) {
                    // That the sum is wrong says more.
                    file.rewind().map_err(PackageError::Io)?;
                    check_sum(path, &beside.sums, &drained(Hashing::new(Checked::new(&mut file, ctx)))?)?;
                }
                return Err(error);
            }
        };
        match signed {
            None => check_sum(path, &beside.sums, &sha256)?,
            Some(signed) if signed == sha256 => {}
            Some(_) => {
                let source = io::Error::other("it changed between the check of its signature and the reading");
                return Err(PackageError::Changed { path: path.to_owned(), source });
            }
        }
        let attested = attest::check(path, &sha256, trust)?;
        Ok((Self { path: path.to_owned(), sha256, size, manifest, attested, strangers }, good))
    }
}

/// Compares with the sum beside the archive, when there is one.
fn check_sum(path: &Path, sums: &Path, found: &str) -> Result<(), PackageError> {
    let text = match read_small(sums) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(PackageError::Io(error)),
    };
    let name = path.file_name().unwrap_or_default();
    let Some(expected) = archive_sum(parse_sums(&text), name) else {
        return Err(PackageError::SumUnreadable { sums: sums.to_owned(), name: name.to_string_lossy().into_owned() });
    };
    if expected == found {
        Ok(())
    } else {
        Err(PackageError::SumMismatch {
            path: path.to_owned(),
            sums: sums.to_owned(),
            expected,
            found: found.to_owned(),
        })
    }
}

/// The lines of `sha256sum`'s output, `HEX  NAME` or `HEX *NAME`: sum in lower case, and name, empty for a sum that stands alone.
fn parse_sums(text: &[u8]) -> Vec<(String, PathBuf)> {
    String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| {
            let (sum, rest) = line.split_once([' ', '\t']).unwrap_or((line.trim(), ""));
            let name = rest.strip_prefix([' ', '*']).unwrap_or(rest);
            let is_sum = sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
            is_sum.then(|| (sum.to_ascii_lowercase(), PathBuf::from(name)))
        })
        .collect()
}

/// The sum of the archive `name`, or, when it has been renamed, of the only one in the list.
fn archive_sum(sums: Vec<(String, PathBuf)>, name: &OsStr) -> Option<String> {
    if let Some((sum, _)) = sums.iter().find(|(_, listed)| listed.file_name() == Some(name)) {
        return Some(sum.clone());
    }
    // What we write beside it is listed too.
    let mut archives = sums.into_iter().filter(|(_, listed)| listed.extension() != Some(OsStr::new("json")));
    archives.next().filter(|_| archives.next().is_none()).map(|(sum, _)| sum)
}

/// Reads a file that cannot be large: a sum, a signature.
fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    const LIMIT: u64 = 1 << 20;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        let error = io::Error::new(io::ErrorKind::InvalidData, "it is far too large");
        return Err(fsutil::with_path(&error, "read", path));
    }
    Ok(bytes)
}

/// The sum of everything, when the rest has been read too.
fn drained<R: Read>(mut hashing: Hashing<R>) -> Result<String, PackageError> {
    io::copy(&mut hashing, &mut io::sink()).map_err(|e| told_to_stop(e, PackageError::Io))?;
    Ok(hashing.hex())
}

/// Ends with an error when the program is told to stop.
struct Checked<'c, R: Read> {
    inner: R,
    ctx: &'c Ctx,
}

impl<'c, R: Read> Checked<'c, R> {
    fn new(inner: R, ctx: &'c Ctx) -> Self {
        Self { inner, ctx }
    }
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // Not ErrorKind::Interrupted, which readers answer by trying again.
        self.ctx.check().map_err(io::Error::other)?;
        self.inner.read(out)
    }
}

/// The error as `Interrupted` when [`Checked`] raised it, else as `otherwise` says.
fn told_to_stop(error: io::Error, otherwise: impl FnOnce(io::Error) -> PackageError) -> PackageError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Interrupted>()) {
        Some(interrupted) => PackageError::Interrupted(*interrupted),
        None => otherwise(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name = PackageName { version: "25.11".into(), compiler: "13.4.0".into() };
        assert_eq!(name.archive(Compression::GZIP), "slurm-25.11-gcc13.4.0-software.tar.gz");
        assert_eq!(name.archive(Compression::ZSTD), "slurm-25.11-gcc13.4.0-software.tar.zst");
        assert_eq!(name.modulefile(), Path::new("modules/slurm/25.11-gcc13.4.0.lua"));
        let compiler = CompilerName("13.4.0".into());
        assert_eq!(compiler.archive(Compression::GZIP), "gcc-13.4.0-compiler.tar.gz");
    }

    #[test]
    fn sums_are_read_in_the_forms_that_exist() {
        let sum = "a".repeat(64);
        let name = OsStr::new("x.tar.gz");
        for text in [
            format!("{sum}  x.tar.gz\n"),
            format!("{sum} *x.tar.gz\n"),
            format!("{}\n", sum.to_uppercase()),
            format!("{}  other\n{sum}  ./dir/x.tar.gz\n", "b".repeat(64)),
        ] {
            assert_eq!(archive_sum(parse_sums(text.as_bytes()), name).as_deref(), Some(sum.as_str()), "{text}");
        }
        for text in ["", "abc  x.tar.gz", "not found"] {
            assert_eq!(archive_sum(parse_sums(text.as_bytes()), name), None, "{text}");
        }
    }
}
