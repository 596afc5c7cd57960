//! The two edits and the order in which they are made: decide, draft, put together, check.

use super::check;
use super::draft::Draft;
use super::error::{BadPath, ElfError};
use super::view::View;
use super::{path, strip};

/// What to do with the search path (see the [module's page](super) for the two kinds).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SearchPath {
    /// Leave it as it is.
    #[default]
    Keep,
    /// Take out `DT_RPATH` and `DT_RUNPATH`.
    Remove,
    /// Exactly one `DT_RPATH`, with this text, and no `DT_RUNPATH`.
    Rpath(Vec<u8>),
    /// Exactly one `DT_RUNPATH`, with this text, and no `DT_RPATH`.
    Runpath(Vec<u8>),
}

/// What to drop of the sections that are never loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strip {
    /// Nothing.
    #[default]
    Keep,
    /// Debug information, as `strip --strip-debug`: `.debug*`, `.zdebug*`, `.stab*`, `.gdb_index`, the links to
    /// separate debug files, and the names of source files in the symbol table. The symbol table stays, so that
    /// backtraces and profilers can name functions.
    Debug,
    /// Also `.symtab`, its strings and `.gnu_debugdata`, as `strip --strip-unneeded`. What the loader uses (`.dynsym`)
    /// stays.
    All,
}

/// An edit of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    /// The search path.
    pub search_path: SearchPath,
    /// The debug information.
    pub strip: Strip,
}

/// The outcome of [`edit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edited {
    /// The file already is as asked for, or the edit means nothing to it. Keep the bytes that you have.
    Unchanged,
    /// The new bytes.
    Changed(Vec<u8>),
}

/// Edits a program or a shared library.
///
/// - A file that is already as asked for is [`Edited::Unchanged`]: editing twice is editing once.
/// - Search path edits leave static and static-pie programs alone: no loader reads their path. A library that needs no
///   other (`libicudata.so`) is given no path either; one that it carries is taken out, since it can only be stale.
/// - What is loaded keeps its address, except tables that are found only through the headers and the dynamic section.
///   A longer path adds at most one `PT_LOAD`.
/// - The result is read again and compared with the original before it is returned.
///
/// # Errors
///
/// [`ElfError::Unsupported`] if the file is good but the edit cannot be proven safe, any other error if the file is
/// malformed. `.o` files, archives and core dumps are errors too, unless nothing is asked for.
pub fn edit(data: &[u8], edit: &Edit) -> Result<Edited, ElfError> {
    if let SearchPath::Rpath(path) | SearchPath::Runpath(path) = &edit.search_path {
        if path.is_empty() {
            return Err(ElfError::SearchPath(BadPath::Empty));
        }
        if let Some(index) = path.iter().position(|byte| *byte == 0) {
            return Err(ElfError::SearchPath(BadPath::Nul(index)));
        }
    }
    let view = View::parse(data)?;
    if *edit == Edit::default() {
        return Ok(Edited::Unchanged);
    }
    view.refuse_kind()?;

    let path_plan = path::plan(&view, &edit.search_path)?;
    let strip_plan = strip::plan(&view, edit.strip)?;
    if path_plan.is_none() && strip_plan.is_none() {
        return Ok(Edited::Unchanged);
    }
    let mut draft = Draft::new(&view)?;
    if let Some(plan) = path_plan {
        path::apply(&mut draft, plan)?;
    }
    if let Some(plan) = strip_plan {
        strip::apply(&mut draft, &plan)?;
    }
    let touched = draft.touched();
    let bytes = draft.finish()?;
    check::check(&view, &bytes, edit, &touched)?;
    Ok(Edited::Changed(bytes))
}
