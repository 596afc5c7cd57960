//! ELF files: what they say of themselves, and four edits of them: search path, names of libraries, debug information, interpreter. Bytes in, bytes out; no paths, no I/O.
//!
//! # What this is for
//!
//! A program or library names the libraries that it needs (`DT_NEEDED`: `libz.so.1`), and may carry a *search path*,
//! folders in which the loader looks for them before its own list. A compiler wrapper such as Spack's writes the
//! absolute folders of the build into it, so that the files work only there. A relocatable package says
//! `$ORIGIN/../lib` instead: the loader puts the file's own folder for `$ORIGIN` (`ld.so(8)`, "Dynamic string
//! tokens"). [`edit()`] writes such a path. The new one may well be longer than what stands there.
//!
//! There are two kinds, and a file should have one of them only:
//!
//! | | searched | counts for |
//! |---|---|---|
//! | `DT_RPATH` | before `LD_LIBRARY_PATH` | the file and everything that it loads |
//! | `DT_RUNPATH` | after `LD_LIBRARY_PATH`; hides every `DT_RPATH` of the same file | what the file itself needs |
//!
//! # Where it looks
//!
//! - `raw`: the records of the format, in either class and byte order; `symbols`: those of symbol tables
//! - `view`: one file, read and checked, borrowed; `parse`: the same for callers; `glibc`: version rules
//! - `parts`: a file of which only parts were read; an edit as a list of what is copied and what is written
//! - `spares`: memory that one edit leaves for the next
//! - `versions`: the version tables
//! - `names`: names of libraries that are paths of the build become bare names
//! - `path`: the search path: what has to change in the dynamic section and its strings
//! - `room`: moves tables aside, so that there is room for a longer string table; `blocks`: which may go; `moves`: what follows
//! - `compressed`: sections that are compressed
//! - `strip`: drops debug information
//! - `draft`: puts an edited file together; `check`: reads it again and compares
//!
//! Sources: System V gABI (chapters 4 and 5), `elf(5)`, `ld.so(8)`, glibc's `elf/dl-load.c`, Linux' `fs/binfmt_elf.c`.

mod blocks;
mod check;
mod compressed;
mod draft;
mod edit;
mod error;
mod glibc;
mod moves;
mod names;
mod parse;
mod parts;
mod path;
mod raw;
mod room;
mod spares;
mod strip;
mod symbols;
mod versions;
mod view;

pub use compressed::{Compression, Section, compressed};
pub use edit::{Edit, Edited, SearchPath, Strip, edit, edit_into, edit_parts, edit_parts_with, set_interpreter};
pub use error::{BadPath, ElfError, Refusal};
pub use glibc::{GlibcFloor, GlibcVersion, glibc_floor, glibc_symbol, glibc_version};
pub use parse::{Elf, IsaLevel, Kind, VersionNeed, is_elf, parse};
pub use parts::{Copied, Edits, Parts, Piece};
pub use raw::{Class, Endian};
pub use spares::Spares;
