//! The edits and the order in which they are made: decide, draft, put together, check.

use super::check;
use super::draft::Draft;
use super::error::{BadPath, ElfError};
use super::parse::{Elf, describe};
use super::parts::{Data, Edits, Parts};
use super::raw::Range;
use super::spares::Spares;
use super::view::View;
use super::{path, room, strip};
use object::elf;

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
    /// `DT_NEEDED` and `DT_SONAME` that are paths below this absolute folder, as some linkers' command lines make them,
    /// become the bare names of their files, which are looked for along the search path. Without a slash at its end.
    pub bare_below: Option<Vec<u8>>,
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
    let mut out = Vec::new();
    Ok(if edit_into(data, edit, &mut out)? { Edited::Changed(out) } else { Edited::Unchanged })
}

/// The same as [`edit`], with the new bytes in a buffer of the caller's: whoever edits thousands of files keeps the memory
/// from one to the next, instead of having the kernel clear it anew each time. `false` says that the file is
/// [`Edited::Unchanged`]; then, and after an error, what the buffer holds means nothing.
///
/// # Errors
///
/// As for [`edit`].
pub fn edit_into(data: &[u8], edit: &Edit, out: &mut Vec<u8>) -> Result<bool, ElfError> {
    let view = View::parse(data)?;
    let Some((edits, touched)) = plan(&view, edit, &mut Spares::default())? else { return Ok(false) };
    edits.apply(data, out);
    let asked = check::Asked { edit, interpreter: None, before: describe(&view)? };
    check::check(&view, Data::Whole(out), asked, &touched)?;
    Ok(true)
}

/// The same as [`edit`] for a file of which only parts were read, as a list of what to copy and what to write; `None` when it
/// stays as it is. `asked` says what is to be done with a file that says this about itself. What is copied is not looked at; all
/// else is read again and compared as for [`edit`].
///
/// # Errors
///
/// [`ElfError::NotRead`]: read what it names, [add](Parts::add) it and ask again. All others as for [`edit`].
pub fn edit_parts(parts: &Parts, asked: impl FnOnce(&Elf) -> Option<Edit>) -> Result<Option<Edits>, ElfError> {
    edit_parts_with(parts, &mut Spares::default(), asked)
}

/// The same as [`edit_parts`] for whoever edits thousands of files: with memory of earlier edits.
/// [Recycle](Edits::recycle) what you were given.
///
/// # Errors
///
/// As for [`edit_parts`].
pub fn edit_parts_with(
    parts: &Parts,
    spares: &mut Spares,
    asked: impl FnOnce(&Elf) -> Option<Edit>,
) -> Result<Option<Edits>, ElfError> {
    let view = View::read(Data::Parts(parts))?;
    let before = describe(&view)?;
    let Some(edit) = asked(&before) else { return Ok(None) };
    let Some((mut edits, touched)) = plan(&view, &edit, spares)? else { return Ok(None) };
    let made = edits.parts(parts, spares);
    let asked = check::Asked { edit: &edit, interpreter: None, before };
    let outcome = check::check(&view, Data::Made(&made, &edits), asked, &touched);
    edits.known = made;
    match outcome {
        Ok(()) => Ok(Some(edits)),
        Err(error) => {
            edits.recycle(spares);
            Err(error)
        }
    }
}

/// Decides, and drafts; also which ranges of the original were changed on purpose.
fn plan(view: &View<'_>, edit: &Edit, spares: &mut Spares) -> Result<Option<(Edits, Vec<Range>)>, ElfError> {
    if let SearchPath::Rpath(path) | SearchPath::Runpath(path) = &edit.search_path {
        if path.is_empty() {
            return Err(ElfError::SearchPath(BadPath::Empty));
        }
        if let Some(index) = path.iter().position(|byte| *byte == 0) {
            return Err(ElfError::SearchPath(BadPath::Nul(index)));
        }
    }
    if *edit == Edit::default() {
        return Ok(None);
    }
    view.refuse_kind()?;

    let path_plan = path::plan(view, &edit.search_path, edit.bare_below.as_deref())?;
    let strip_plan = strip::plan(view, edit.strip)?;
    if path_plan.is_none() && strip_plan.is_none() {
        return Ok(None);
    }
    let mut draft = Draft::new(view, spares)?;
    if let Some(plan) = path_plan {
        path::apply(&mut draft, plan)?;
    }
    if let Some(plan) = strip_plan {
        strip::apply(&mut draft, &plan)?;
    }
    let touched = draft.touched();
    Ok(Some((draft.finish()?, touched)))
}

/// Sets the program interpreter (`PT_INTERP`): the dynamic loader that the kernel starts, by absolute path.
///
/// A shorter one is written over the old and padded with NULs, which no reader of it minds (execve(2) takes the text up to
/// the first); a longer one goes to a new `PT_LOAD`. Everything else keeps its address. A file without an interpreter (a
/// library, a static program) is [`Edited::Unchanged`]: it is not started by one.
///
/// # Errors
///
/// As for [`edit`]; [`ElfError::Interpreter`] for a text that the kernel would not open.
pub fn set_interpreter(data: &[u8], text: &[u8]) -> Result<Edited, ElfError> {
    let bad = |what| Err(ElfError::Interpreter(what));
    if !text.starts_with(b"/") {
        return bad("is not an absolute path");
    }
    if text.contains(&0) {
        return bad("holds a NUL byte");
    }
    // PATH_MAX of Linux, which load_elf_binary() refuses to go beyond; the NUL included.
    if text.len() >= 4096 {
        return bad("is longer than 4,095 bytes");
    }
    let view = View::parse(data)?;
    view.refuse_kind()?;
    let Some(segment) = view.segment(elf::PT_INTERP).copied() else { return Ok(Edited::Unchanged) };
    if view.interpreter()? == Some(text) {
        return Ok(Edited::Unchanged);
    }
    let mut spares = Spares::default();
    let mut draft = Draft::new(&view, &mut spares)?;
    let terminated = [text, b"\0"].concat();
    if terminated.len() as u64 <= segment.filesz {
        draft.zero(segment.range())?;
        draft.put(segment.offset, &terminated)?;
    } else {
        room::move_interpreter(&mut draft, &terminated)?;
    }
    let touched = draft.touched();
    let mut bytes = Vec::new();
    draft.finish()?.apply(data, &mut bytes);
    let edit = Edit::default();
    let asked = check::Asked { edit: &edit, interpreter: Some(text), before: describe(&view)? };
    check::check(&view, Data::Whole(&bytes), asked, &touched)?;
    Ok(Edited::Changed(bytes))
}
