//! `manifest.json`: what a package is, what it was made from, and every file in it.
//!
//! It is the last entry of the archive, because the sums of all files are known only when they have been written,
//! and each is read once. It follows that an archive that was cut has no manifest and is not a package. A copy lies
//! beside the archive for those who only want to look. docs/formats.md describes the fields; a test compares.
//!
//! Nothing in it depends on who built it, where, or when: `created` is the epoch that the plan gives, and the
//! signing key is named by the signature, not here.

use super::ustar::{Kind, Member};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The version of the format that is written. Readers refuse a higher one.
pub const FORMAT: u32 = 1;
/// What stands in a shipped text file where the absolute path of the installed `view` belongs.
pub const PREFIX_PLACEHOLDER: &str = "@SLURM_FACTORY_PREFIX@";

/// The whole of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format; see [`FORMAT`].
    pub format: u32,
    /// What the package is and was made from.
    #[serde(flatten)]
    pub facts: Facts,
    /// How the archive is compressed.
    pub archive: ArchiveFacts,
    /// Counts and sizes over `files`.
    pub totals: Totals,
    /// Every entry of the archive but `manifest.json`, in the archive's order.
    pub files: Vec<FileEntry>,
}

/// What the builder knows before the archive is written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The program that made it.
    pub tool: Tool,
    /// Which Slurm; absent in the package of a compiler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slurm: Option<Version>,
    /// Which GCC it was compiled with; in the package of a compiler, which GCC it is.
    pub compiler: Version,
    /// The toolchain, such as `noble`.
    pub toolchain: String,
    /// The processor that Spack was told to build for, such as `x86_64`.
    pub target: String,
    /// Choices that were not left to the default, such as `gpu: true`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// The base image.
    pub image: Image,
    /// Spack itself.
    pub spack: Source,
    /// The recipe repositories, in the order in which Spack searches them.
    pub recipes: Vec<Source>,
    /// What Spack was asked for.
    pub specs: Vec<String>,
    /// sha256 of `spack.lock`.
    pub lock_sha256: String,
    /// sha256 of the plan: the build's identity.
    pub plan_sha256: String,
    /// Seconds since 1970; also the time of every file in the archive. From the plan, not from a clock.
    pub created: u64,
    /// What Spack installed.
    pub packages: Vec<Installed>,
    /// The oldest glibc on which it runs, when anything in it needs glibc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub glibc: Option<GlibcFloor>,
    /// The text that `install` replaces in the files of `fill_in`.
    pub placeholder: String,
    /// Files in which `install` writes the place where the package lies.
    pub fill_in: Vec<String>,
    /// Places in binaries where `install` writes it, when it has room there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strings: Vec<StringPlace>,
    /// Build paths that were left in, each with the reason.
    pub leaks: Vec<Leak>,
    /// What relocation did.
    pub relocation: Relocation,
}

impl Facts {
    /// What it is, for messages: `Slurm 24.11.5 built with GCC 13.3.0 for noble`.
    pub fn title(&self) -> String {
        let (gcc, toolchain) = (&self.compiler.release, &self.toolchain);
        match &self.slurm {
            Some(slurm) => format!("Slurm {} built with GCC {gcc} for {toolchain}", slurm.release),
            None => format!("GCC {gcc} for {toolchain}"),
        }
    }

    /// The release of what it is: Slurm's, or the compiler's.
    pub fn release(&self) -> &str {
        &self.slurm.as_ref().unwrap_or(&self.compiler).release
    }

    /// Every file into which `install` writes, in the archive.
    pub fn filled_in(&self) -> BTreeSet<&str> {
        self.fill_in.iter().chain(self.strings.iter().map(|place| &place.path)).map(String::as_str).collect()
    }
}

/// A place in a binary for the absolute path of the view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StringPlace {
    /// The file, in the archive.
    pub path: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What stands there in the archive; a path of at most as many bytes may be written over it, with slashes before it.
    pub text: String,
    /// What goes without it.
    pub reason: String,
}

/// A program and its version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tool {
    /// `slurm-factory`.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A version as it was asked for and as it was built.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Version {
    /// What the user typed, and what file and module are named by: `24.11`, `system`.
    pub requested: String,
    /// What it is: `24.11.5`, `13.3.0`.
    pub release: String,
}

/// A base image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Image {
    /// As it was named.
    pub reference: String,
    /// What that was.
    pub digest: String,
}

/// A source tree under version control.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Source {
    /// Its short name: `spack`, `builtin`, `slurm_factory`.
    pub name: String,
    /// Where it came from, without credentials; empty for one that is built in.
    pub url: String,
    /// The tag or branch that was asked for; may be empty.
    pub reference: String,
    /// The commit, or `sha256:` and the sum of the tree's files where there is none.
    pub revision: String,
}

/// One installed Spack package.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Installed {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its DAG hash.
    pub hash: String,
    /// The recipe repository that it comes from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Needed to build only: nothing of it is in the package.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub build_only: bool,
    /// DAG hashes of what it links or runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<String>,
    /// The licence, as the recipe writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// What it was compiled from, when the recipe says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceArchive>,
    /// Its share of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
}

/// A source archive, or a commit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SourceArchive {
    /// Where it is published, without credentials; absent for one that lay on the builder's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Its sum, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The commit, when it comes from git.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// Bytes of a package's regular files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Size {
    /// As Spack installed it.
    pub installed: u64,
    /// What is left of it in this package.
    pub packaged: u64,
}

/// The highest `GLIBC_` symbol version that a file needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GlibcFloor {
    /// For instance `2.34`.
    pub version: String,
    /// The file that needs it.
    pub file: String,
    /// The symbol, when the file names one.
    pub symbol: String,
    /// The library that has it, such as `libc.so.6`.
    pub library: String,
}

/// A build path that stays in a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Leak {
    /// The file.
    pub path: String,
    /// What was found in it.
    pub text: String,
    /// Why it does no harm.
    pub reason: String,
}

/// What relocation did, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Relocation {
    /// ELF files in the package.
    pub elf_files: u64,
    /// Of those, how many had their search path rewritten.
    pub elf_changed: u64,
    /// Symlinks that were made relative.
    pub symlinks_changed: u64,
    /// Text files in which the build prefix was replaced.
    pub text_changed: u64,
    /// Files of the view that were left out.
    pub pruned_files: u64,
    /// Their bytes.
    pub pruned_bytes: u64,
    /// Bytes of symbols and debug sections that were stripped.
    pub stripped_bytes: u64,
}

/// How the archive is compressed: enough to write the same bytes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveFacts {
    /// The compression and its level.
    pub compression: super::Compression,
}

/// Counts and sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Regular files.
    pub files: u64,
    /// Folders.
    pub dirs: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of files.
    pub hardlinks: u64,
    /// Bytes of all files, each counted once.
    pub bytes: u64,
}

/// One entry of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name, relative to where the archive is unpacked; see [`encode_path`] for names that are not UTF-8.
    pub path: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: FileKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum FileKind {
    /// A folder, mode 0755.
    Dir,
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// `0755` or `0644`.
        mode: String,
        /// Its content.
        sha256: String,
    },
    /// A symbolic link.
    Symlink {
        /// What it says; encoded like a path.
        target: String,
    },
    /// Another name of a file.
    Hardlink {
        /// That file; encoded like a path.
        target: String,
    },
}

impl FileEntry {
    /// The entry for a member whose content, if it is a file, has this sum.
    pub(super) fn of(member: &Member, sha256: String) -> Self {
        let kind = match &member.kind {
            Kind::Dir => FileKind::Dir,
            Kind::File { size, .. } => FileKind::File { size: *size, mode: format!("{:04o}", member.mode()), sha256 },
            Kind::Symlink { target } => FileKind::Symlink { target: encode_path(target) },
            Kind::Hardlink { target, .. } => FileKind::Hardlink { target: encode_path(target) },
        };
        Self { path: encode_path(&member.path), kind }
    }

    /// The name on disk.
    pub fn path(&self) -> PathBuf {
        decode_path(&self.path)
    }
}

impl Totals {
    pub(super) fn add(&mut self, member: &Member) {
        match member.kind {
            Kind::Dir => self.dirs += 1,
            Kind::File { size, .. } => {
                self.files += 1;
                self.bytes += size;
            }
            Kind::Symlink { .. } => self.symlinks += 1,
            Kind::Hardlink { .. } => self.hardlinks += 1,
        }
    }
}

impl Manifest {
    /// The file's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads the file's bytes. A newer format is an error that says so, whatever else it holds.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Probe {
            format: u32,
        }
        let probe: Probe = serde_json::from_slice(bytes).map_err(ManifestError::NotOurs)?;
        if probe.format > FORMAT {
            return Err(ManifestError::Newer { found: probe.format });
        }
        serde_json::from_slice(bytes).map_err(ManifestError::Malformed)
    }
}

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or JSON of something else.
    #[error("manifest.json is not one of slurm-factory's: {0}")]
    NotOurs(#[source] serde_json::Error),
    /// A field is missing or wrong.
    #[error("manifest.json is malformed: {0}")]
    Malformed(#[source] serde_json::Error),
    /// Written by a newer program.
    #[error("manifest.json has format {found}, and this slurm-factory reads up to {FORMAT}: use a newer one")]
    Newer {
        /// Its format.
        found: u32,
    },
}

/// A file name as text that loses nothing: UTF-8 as it is, a backslash doubled, any other byte as `\xHH`.
///
/// ```
/// use slurm_factory::package::{decode_path, encode_path};
/// use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};
/// let name = Path::new(OsStr::from_bytes(b"a\\b/caf\xe9"));
/// assert_eq!(encode_path(name), r"a\\b/caf\xe9");
/// assert_eq!(decode_path(&encode_path(name)), name);
/// ```
pub fn encode_path(path: &Path) -> String {
    let mut out = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        out.push_str(&chunk.valid().replace('\\', r"\\"));
        for byte in chunk.invalid() {
            let _ = write!(out, r"\x{byte:02x}");
        }
    }
    out
}

/// The file name that [`encode_path`] wrote. Text that it cannot have written comes back as it is.
pub fn decode_path(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let rest = bytes.get(at..).unwrap_or_default();
        if rest.starts_with(br"\\") {
            out.push(b'\\');
            at += 2;
        } else if rest.starts_with(br"\x")
            && let Some(byte) = rest.get(2..4).and_then(|h| hex::decode(h).ok()).and_then(|b| b.first().copied())
        {
            out.push(byte);
            at += 4;
        } else {
            out.push(*byte);
            at += 1;
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_bytes_come_back() {
        for name in [&b"plain"[..], b"\\x41", b"\\\\x41", b"\xff\xfe", "ü\\".as_bytes(), b"a\nb\"c", b"\\"] {
            let path = PathBuf::from(OsString::from_vec(name.to_vec()));
            assert_eq!(decode_path(&encode_path(&path)), path, "{name:?}");
        }
    }

    #[test]
    fn a_newer_format_and_foreign_json_are_told_apart() {
        assert!(matches!(Manifest::from_bytes(br#"{"format": 99, "x": 1}"#), Err(ManifestError::Newer { found: 99 })));
        assert!(matches!(Manifest::from_bytes(br#"{"name": "left-pad"}"#), Err(ManifestError::NotOurs(_))));
        assert!(matches!(Manifest::from_bytes(br#"{"format": 1}"#), Err(ManifestError::Malformed(_))));
        assert!(matches!(Manifest::from_bytes(b"PK\x03\x04"), Err(ManifestError::NotOurs(_))));
    }
}
