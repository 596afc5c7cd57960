//! What [`verify`](super::verify) finds in a tree: what makes it unfit, what it needs of a host, and who needs what.

use super::hidden::Compressed;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Something that makes the tree unfit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "problem", rename_all = "kebab-case")]
pub enum Problem {
    /// A needed library is neither in the tree, where the file looks, nor one of those that come from the host.
    MissingLibrary {
        /// The file that needs it.
        path: PathBuf,
        /// The library's name.
        library: String,
        /// Where in the tree there is one of this name, to which no search path of the file leads.
        elsewhere: Option<PathBuf>,
    },
    /// A library that is asked for by a path. The loader opens just that, whatever the search path says.
    NamedByPath {
        /// The file that needs it.
        path: PathBuf,
        /// What it asks for.
        library: String,
    },
    /// A program that is started by a loader which is no system's (`PT_INTERP`).
    Interpreter {
        /// The program.
        path: PathBuf,
        /// Its loader.
        interpreter: String,
    },
    /// The library that a file finds lacks a version of its symbols that the file needs: the loader refuses it.
    MissingVersion {
        /// The file that needs it.
        path: PathBuf,
        /// The library that is found.
        library: PathBuf,
        /// The version, `LIBFOO_1.2`.
        version: String,
    },
    /// A search path that is not relative to the file, or leaves the tree.
    SearchPath {
        /// The file.
        path: PathBuf,
        /// The folder on its search path.
        folder: String,
    },
    /// The build prefix stands in a file and no rule allows it.
    Leak {
        /// The file.
        path: PathBuf,
        /// What is compressed that they are in; nothing when they stand in the file as it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        compressed: Option<Compressed>,
        /// How many times.
        count: usize,
        /// The strings, the first 1,000 of a file.
        strings: Vec<Named>,
    },
    /// A symlink whose target is not in the tree.
    Link {
        /// The symlink.
        path: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// A newer glibc is needed than the system has for which the tree must be fit.
    Glibc {
        /// The file.
        path: PathBuf,
        /// What it needs.
        floor: Floor,
        /// What there is.
        allowed: String,
    },
    /// An ELF file that cannot be read.
    Elf {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A mode that a package must not bring.
    Mode {
        /// The file or folder.
        path: PathBuf,
        /// The mode, octal.
        mode: String,
    },
    /// Neither a file nor a folder nor a symlink.
    Special {
        /// Where.
        path: PathBuf,
        /// What it is: `FIFO`, `device`, `socket`.
        kind: String,
    },
    /// A file that asks for newer processors than the package is said to be made for.
    Processor {
        /// The file.
        path: PathBuf,
        /// What it asks for.
        level: String,
        /// What was promised.
        target: String,
    },
}

/// How many strings of one file a message tells.
const TOLD: usize = 3;

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MissingLibrary { path, library, elsewhere: Some(place) } => {
                let (path, place) = (path.display(), place.display());
                write!(f, "{path}: needs {library}, which is at {place}, but no search path of the file leads there")
            }
            Self::MissingLibrary { path, library, elsewhere: None } => {
                write!(f, "{}: needs {library}, which is neither in the package nor the host's", path.display())
            }
            Self::NamedByPath { path, library } => {
                write!(
                    f,
                    "{}: asks for the library `{library}` by its path, which no search path changes",
                    path.display()
                )
            }
            Self::Interpreter { path, interpreter } => {
                write!(f, "{}: is started by the loader `{interpreter}`, which other hosts do not have", path.display())
            }
            Self::MissingVersion { path, library, version } => {
                write!(f, "{}: needs version {version} of {}, which has none", path.display(), library.display())
            }
            Self::SearchPath { path, folder } if folder.is_empty() => {
                let path = path.display();
                write!(
                    f,
                    "{path}: its search path holds an empty name, which is the folder in which a program is started"
                )
            }
            Self::SearchPath { path, folder } => {
                write!(f, "{}: search path `{folder}` leaves the package", path.display())
            }
            Self::Leak { path, compressed, count, strings } => {
                write!(f, "{}: names the build", path.display())?;
                for (index, Named { offset, text }) in strings.iter().take(TOLD).enumerate() {
                    write!(f, "{} at offset {offset}", if index == 0 { "" } else { "," })?;
                    if let Some(compressed) = compressed.as_ref().filter(|_| index == 0) {
                        write!(f, " {compressed}")?;
                    }
                    write!(f, ": `{text}`")?;
                }
                if *count > TOLD { write!(f, ", and {} more (--json has them)", count - TOLD) } else { Ok(()) }
            }
            Self::Link { path, target } => {
                write!(f, "{}: symlink to `{}`, which is not in the package", path.display(), target.display())
            }
            Self::Glibc { path, floor, allowed } => {
                let symbol = floor.symbol.as_deref().unwrap_or("the format of the file");
                let (path, version, library) = (path.display(), &floor.version, &floor.library);
                write!(f, "{path}: needs glibc {version} ({symbol}, {library}), and there is {allowed}")
            }
            Self::Elf { path, reason } => write!(f, "{}: {reason}", path.display()),
            Self::Processor { path, level, target } => {
                write!(
                    f,
                    "{}: needs a processor of level {level}, and the package is made for {target}",
                    path.display()
                )
            }
            Self::Mode { path, mode } => write!(f, "{}: mode {mode} (set-id or world-writable)", path.display()),
            Self::Special { path, kind } => write!(f, "{}: a {kind}, which no package brings", path.display()),
        }
    }
}

/// A file that names the build prefix, and the rule that allows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AllowedLeak {
    /// The file.
    pub path: PathBuf,
    /// What is compressed that they are in; nothing when they stand in the file as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compressed: Option<Compressed>,
    /// How many times.
    pub count: usize,
    /// The strings, the first 1,000 of a file and reason.
    pub strings: Vec<Named>,
    /// Why it is harmless.
    pub reason: String,
}

/// A file in which something may stand that was not looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// The file.
    pub path: PathBuf,
    /// Why not, in words.
    pub reason: String,
}

/// A string that names the build.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Named {
    /// Where it begins, in bytes: in the file, or in what comes out when it is decompressed.
    pub offset: usize,
    /// The string, its first 400 bytes.
    pub text: String,
}

/// The highest glibc version that anything in the tree asks for, and what asks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Floor {
    /// `2.36`.
    pub version: String,
    /// The file.
    pub path: PathBuf,
    /// The library whose version it is, `libc.so.6`.
    pub library: String,
    /// A symbol that is needed in that version; nothing when the version marks the format of the file.
    pub symbol: Option<String>,
}

/// The highest level of the instruction set that anything in the tree says it needs, and what says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Isa {
    /// `x86-64-v3`.
    pub level: String,
    /// The file.
    pub path: PathBuf,
}

/// A library that a file needs, and where it is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Needed {
    /// Its name, `libz.so.1`.
    pub library: String,
    /// Where, relative to the tree; nothing when it is not in the tree: then it is the host's, or missing.
    pub found: Option<PathBuf>,
}

/// The result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Empty when the tree is fit.
    pub problems: Vec<Problem>,
    /// What still names the build, with reasons.
    pub allowed: Vec<AllowedLeak>,
    /// What was not looked into, with reasons.
    pub unseen: Vec<Unseen>,
    /// The glibc that is needed; `None` when nothing asks for one.
    pub glibc: Option<Floor>,
    /// ELF files looked at.
    pub elf_files: usize,
    /// All files looked at.
    pub files: usize,
    /// Libraries that are taken from the host.
    pub from_host: BTreeSet<String>,
    /// The instruction set that is needed; `None` when no file says.
    pub isa: Option<Isa>,
    /// Who needs what, and where it is found: every ELF file that needs anything.
    pub closure: BTreeMap<PathBuf, Vec<Needed>>,
}

impl Findings {
    /// How much is closed and what it asks of a host, in a line.
    pub fn summary(&self) -> String {
        let glibc = self.glibc.as_ref().map_or("none", |floor| floor.version.as_str());
        format!("{} ELF files closed, needs glibc {glibc}", self.elf_files)
    }
}

/// How many lines a message lists.
const LISTED: usize = 40;

/// Problems for an error message, a line each, the first of many.
pub fn listed(items: &[impl std::fmt::Display]) -> String {
    let mut lines: Vec<_> = items.iter().take(LISTED).map(ToString::to_string).collect();
    if items.len() > LISTED {
        lines.push(format!("... and {} more", items.len() - LISTED));
    }
    lines.join("\n  ")
}
