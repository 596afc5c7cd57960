//! Makes a staged copy of the view that runs from any folder, with nothing set.
//!
//! The install tree is never edited: the view's files are hard links into the store, which other builds and the
//! binary cache use. So the view is copied (reflinked where the file system can), and the copy is changed:
//!
//! 1. pruned by rules ([`rules`]),
//! 2. ELF files stripped of debug sections and given `$ORIGIN`-relative search paths ([`search_path`]),
//! 3. absolute symlinks into the build prefix made relative,
//! 4. paths that are compiled into programs and that every host has elsewhere, or that `install` knows, written over ([`strings`]),
//! 5. text that names the build prefix rewritten ([`text`]), and what cannot be made relative listed for
//!    `install` to fill in.
//!
//! [`verify`] then looks at the result as a stranger would.
//!
//! [`in_place()`] is for trees of others: it moves one from one prefix to another where it lies.

pub mod copy;
mod elf_paths;
mod findings;
mod hidden;
mod in_place;
mod layout;
mod links;
mod origin;
pub mod prefix;
pub mod rules;
pub mod search_path;
mod stage;
pub mod strings;
pub mod text;
pub mod verify;

pub use hidden::Compressed;
pub use in_place::{Leftover, MoveError, Moved, Request, in_place};
pub use layout::Layout;
pub use origin::Origin;
pub use rules::{Rules, RulesError};
pub use stage::{PruneCount, RelocateError, Relocated, Report, relocate};
