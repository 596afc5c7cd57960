//! What is asked for when a tree is moved, what comes of it, and why it fails.

use crate::relocate::hidden::Compressed;
use crate::relocate::verify::{Unseen, listed};
use crate::report::Interrupted;
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

/// Why a tree was not relocated.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The prefixes are no prefixes.
    #[error("`{prefix}` cannot be a prefix: {reason}")]
    Prefix {
        /// As given.
        prefix: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Not a folder.
    #[error("`{dir}` is not a folder")]
    NotAFolder {
        /// What was named.
        dir: PathBuf,
    },
    /// Another run holds the tree's lock.
    #[error("another run of relocate is at work in `{dir}`; nothing was changed: run again when it has ended")]
    Busy {
        /// The tree.
        dir: PathBuf,
    },
    /// Some files cannot be made to name the new prefix.
    #[error(
        "{} files would go on naming `{from}`, so nothing was changed:\n  {}\n{}go on without them with --force",
        files(leftovers),
        listed(leftovers),
        remedies(from, leftovers)
    )]
    Leftover {
        /// The old prefix.
        from: PathBuf,
        /// What would stay.
        leftovers: Vec<Leftover>,
    },
    /// An earlier run was cut while it renamed, and meant something else.
    #[error(
        "`{dir}` is in the middle of a move from `{from}` to `{to}` that was cut; complete that first: slurm-factory relocate {dir} --from {from} --to {to}"
    )]
    Unfinished {
        /// The tree.
        dir: String,
        /// The old prefix of that run.
        from: String,
        /// The new prefix of that run.
        to: String,
    },
    /// It failed while files were put into their places.
    #[error("`{dir}` is half moved: {source}; mend that and run the same command again, which completes the move")]
    Halfway {
        /// The tree.
        dir: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The list of an earlier run names what no run of this program lists.
    #[error(
        "`{list}` is no list of this program's: {reason}; nothing was changed. If no run of relocate was cut in this tree, delete the folder that holds it and run again"
    )]
    List {
        /// The list.
        list: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file was written to while it was looked at.
    #[error(
        "`{path}` was changed by somebody else meanwhile, so nothing was changed; run again when nothing writes to the tree"
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("relocate: {0}")]
    Io(#[from] io::Error),
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

fn files(leftovers: &[Leftover]) -> usize {
    leftovers.iter().map(|l| &l.path).collect::<std::collections::BTreeSet<_>>().len()
}

/// What helps against the leftovers, before the last resort.
fn remedies(from: &Path, leftovers: &[Leftover]) -> String {
    let any = |is: fn(&Option<Compressed>) -> bool| leftovers.iter().any(|l| is(&l.compressed));
    let length = from.as_os_str().len();
    let shorter = format!("choose a new prefix of at most {length} characters, or ");
    let unpack = "have `objcopy --decompress-debug-sections` or `strip --strip-debug` change the files with compressed sections, or ";
    let files = "decompress the files that are compressed as a whole (gunzip, unzstd) or delete them, or ";
    let which = [
        any(Option::is_none).then_some(shorter.as_str()),
        any(|c| matches!(c, Some(Compressed::Section(_)))).then_some(unpack),
        any(|c| matches!(c, Some(Compressed::File(_)))).then_some(files),
    ];
    which.into_iter().flatten().collect()
}

/// A place that goes on naming the old prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The file, relative to the tree.
    pub path: PathBuf,
    /// What is compressed that it is in; nothing when it stands in the file as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compressed: Option<Compressed>,
    /// Where it is, in bytes: in the file, or in what comes out when it is decompressed.
    pub offset: usize,
    /// What stands there.
    pub text: String,
    /// Why it cannot be changed.
    pub reason: String,
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at offset {}", self.path.display(), self.offset)?;
        if let Some(compressed) = &self.compressed {
            write!(f, " {compressed}")?;
        }
        write!(f, ": `{}` ({})", self.text, self.reason)
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The tree.
    pub dir: &'a Path,
    /// The prefix that it was built for.
    pub from: &'a Path,
    /// The prefix at which it is to work.
    pub to: &'a Path,
    /// Only look.
    pub dry_run: bool,
    /// Go on although something goes on naming the old prefix.
    pub force: bool,
}

/// What was done, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Files looked at.
    pub files: u64,
    /// ELF files with a new search path, or that name libraries without their folders now.
    pub search_paths: u64,
    /// Programs that another loader starts (`PT_INTERP`): one in the tree.
    pub interpreters: u64,
    /// Text files rewritten.
    pub text: u64,
    /// Scripts whose first line goes through `env` now, so that they need the tree's programs in PATH.
    pub through_env: Vec<PathBuf>,
    /// Places in binaries that were written over.
    pub strings: u64,
    /// Symlinks made relative.
    pub links: u64,
    /// What goes on naming the old prefix.
    pub leftovers: Vec<Leftover>,
    /// What was not looked into, with reasons.
    pub unseen: Vec<Unseen>,
    /// This run completed one that was cut.
    pub completed: bool,
}

impl Moved {
    /// Whether nothing in the tree names the old prefix.
    pub fn is_nothing(&self) -> bool {
        self.search_paths + self.interpreters + self.text + self.strings + self.links == 0
            && self.leftovers.is_empty()
            && !self.completed
    }
}
