//! Decides how a search path is changed, and changes it where that needs no room.
//!
//! A search path is one entry of the dynamic section whose value is an offset into `.dynstr`. Linkers share strings
//! there: with `-O2` GNU ld stores `libfoo.so` inside `/opt/lib/libfoo.so`, and a name inside the tail of the path. So a
//! string is only written over where no other offset leads into it; else the new text goes to a longer copy of the
//! table (`room`). The old text is zeroed where nothing else reads it: it names folders of the build.

use std::collections::BTreeSet;

use object::elf::{self, DynamicTag};

use super::draft::Draft;
use super::edit::SearchPath;
use super::error::ElfError;
use super::names::{Names, is_name};
use super::parse::is_static;
use super::raw::{Range, slice_mut};
use super::view::{Dynamic, Entry, View};
use super::{moves, room};

/// What to do.
#[derive(Debug)]
pub(super) struct Plan {
    /// The new dynamic section.
    entries: Vec<Entry>,
    /// Offsets in `.dynstr` whose bytes nobody else reads.
    wipe: Vec<Range>,
    /// Text to write inside `.dynstr`, after wiping.
    write: Option<(u64, Vec<u8>)>,
    /// Text that needs a longer `.dynstr`.
    append: Option<Vec<u8>>,
    /// Names of libraries that change too.
    names: Names,
}

const fn is_path(tag: DynamicTag) -> bool {
    matches!(tag, elf::DT_RPATH | elf::DT_RUNPATH)
}

pub(super) fn plan(view: &View<'_>, asked: &SearchPath, bare: Option<&[u8]>) -> Result<Option<Plan>, ElfError> {
    let mut wanted = match asked {
        SearchPath::Keep | SearchPath::Remove => None,
        SearchPath::Rpath(path) => Some((elf::DT_RPATH, path.as_slice())),
        SearchPath::Runpath(path) => Some((elf::DT_RUNPATH, path.as_slice())),
    };
    let Some(dynamic) = &view.dynamic else { return Ok(None) };
    if is_static(view) {
        return Ok(None);
    }
    if dynamic.get(elf::DT_NEEDED).is_none() && view.segment(elf::PT_INTERP).is_none() {
        wanted = None;
    }

    let names = Names::plan(view, dynamic, bare)?;
    let keep = *asked == SearchPath::Keep;
    let mut existing = Vec::new();
    for entry in dynamic.entries.iter().filter(|entry| is_path(entry.tag) && !keep) {
        let what = if entry.tag == elf::DT_RPATH { "DT_RPATH" } else { "DT_RUNPATH" };
        existing.push((*entry, view.string(what, entry.value)?));
    }
    let as_asked = match (&wanted, existing.as_slice()) {
        (None, []) => true,
        (Some((tag, path)), [(entry, text)]) => entry.tag == *tag && text == path,
        _ => false,
    };
    if as_asked && names.is_empty() {
        return Ok(None);
    }

    // Text that is already there is kept; else the largest place that is ours is taken.
    let table = view.dynstr()?;
    let paths = existing.iter().map(|(entry, text)| (entry.value, text.len() as u64));
    let spans: Vec<Span> =
        paths.chain(names.folders()).map(|(offset, length)| Span::new(table, offset, length)).collect();
    let mut users = Users::of(view, dynamic, &names, keep, &spans)?;
    let kept = wanted.and_then(|(_, path)| existing.iter().find(|(_, text)| *text == path));
    if let Some((entry, _)) = kept {
        users.add(entry.value);
    }
    let wipe: Vec<Range> = spans.iter().map(|span| users.owned(span)).collect();

    let kept_entries = dynamic.entries.iter().filter(|entry| keep || !is_path(entry.tag));
    let mut entries: Vec<Entry> = kept_entries
        .map(|entry| Entry {
            value: if is_name(entry.tag) { names.new_offset(entry.value) } else { entry.value },
            ..*entry
        })
        .collect();
    let mut plan = Plan { entries: Vec::new(), wipe, write: None, append: None, names };
    if let Some((tag, path)) = wanted {
        let length = path.len() as u64;
        let room = plan.wipe.iter().filter(|range| range.len() > length).max_by_key(|range| range.len());
        let value = if let Some((entry, _)) = kept {
            entry.value
        } else if let Some(place) = room {
            plan.write = Some((place.start, path.to_vec()));
            place.start
        } else {
            let mut text = Vec::with_capacity(path.len() + 2);
            if table.last().is_none_or(|byte| *byte != 0) {
                text.push(0);
            }
            let value = (table.len() + text.len()) as u64;
            text.extend_from_slice(path);
            text.push(0);
            plan.append = Some(text);
            value
        };
        // Where the path was, or where linkers put it: behind the names.
        let first = dynamic.entries.iter().position(|entry| is_path(entry.tag));
        let behind_names = || dynamic.entries.iter().rposition(|entry| is_name(entry.tag)).map_or(0, |index| index + 1);
        let at = first.unwrap_or_else(behind_names).min(entries.len());
        entries.insert(at, Entry { tag, value });
    }
    plan.entries = entries;
    Ok(Some(plan))
}

pub(super) fn apply(draft: &mut Draft<'_>, plan: Plan) -> Result<(), ElfError> {
    let Some((dynamic, strings)) =
        draft.view.dynamic.as_ref().and_then(|dynamic| dynamic.strings.map(|strings| (dynamic, strings)))
    else {
        return Err(ElfError::SelfCheck { what: "a path without a dynamic string table", at: 0 });
    };
    plan.names.apply(draft)?;
    let moves = plan.append.is_some() || plan.entries.len() > dynamic.room();
    if !moves {
        for range in &plan.wipe {
            draft.zero(Range::new(strings.range.start + range.start, range.len()))?;
        }
        if let Some((at, text)) = &plan.write {
            draft.put(strings.range.start + at, text)?;
        }
        return draft.put_dynamic(&plan.entries);
    }
    let (old, append) = (draft.view.dynstr()?, plan.append.as_deref().unwrap_or_default());
    let mut table = draft.spares.take(old.len() + append.len());
    table.extend_from_slice(old);
    let inside = |at: u64| ElfError::SelfCheck { what: "a path outside its string table", at };
    for range in &plan.wipe {
        slice_mut(&mut table, range.start, range.len()).ok_or(inside(range.start))?.fill(0);
    }
    if let Some((at, text)) = &plan.write {
        slice_mut(&mut table, *at, text.len() as u64).ok_or(inside(*at))?.copy_from_slice(text);
    }
    table.extend_from_slice(append);
    room::grow(draft, plan.entries, &table)?;
    draft.spares.give(table);
    Ok(())
}

/// A text in `.dynstr`, and which offsets lead into it.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// Where the string begins that it is, or is the tail of.
    start: u64,
    offset: u64,
    length: u64,
}

impl Span {
    fn new(table: &[u8], offset: u64, length: u64) -> Self {
        // A string that starts earlier reads into this one if there is no NUL between.
        let before = usize::try_from(offset).ok().and_then(|offset| table.get(..offset)).unwrap_or_default();
        Self { start: memchr::memrchr(0, before).map_or(0, |nul| nul as u64 + 1), offset, length }
    }

    fn has(&self, user: u64) -> bool {
        self.start <= user && user <= self.offset.saturating_add(self.length)
    }
}

/// Every offset that leads into these texts and is not a search path's, sorted; or nothing, if they cannot all be known.
struct Users(Option<Vec<u64>>);

impl Users {
    fn of(view: &View<'_>, dynamic: &Dynamic, changed: &Names, keep: bool, spans: &[Span]) -> Result<Self, ElfError> {
        let unknown = Ok(Self(None));
        if spans.is_empty() {
            return unknown;
        }
        let Some(strings) = dynamic.strings else { return unknown };
        let mut offsets = Vec::new();
        for entry in dynamic.entries.iter().filter(|entry| keep || !is_path(entry.tag)) {
            // Tags that nobody here knows may name strings: any value that could be an offset is taken for one.
            let names = matches!(
                entry.tag,
                elf::DT_AUXILIARY | elf::DT_FILTER | elf::DT_CONFIG | elf::DT_DEPAUDIT | elf::DT_AUDIT
            );
            if is_name(entry.tag) {
                offsets.push(changed.new_offset(entry.value));
            } else if names || is_path(entry.tag) || !moves::is_known(entry.tag) {
                offsets.push(entry.value);
            }
        }
        let versions = view.versions()?;
        let of_files: BTreeSet<u64> = versions.files.iter().map(|field| u64::from(field.name)).collect();
        // A version may be called as a file is: it keeps its name.
        let mut of_versions = versions.offsets.clone();
        for field in &versions.files {
            if let Some(at) = of_versions.iter().position(|offset| *offset == field.name) {
                of_versions.swap_remove(at);
            }
        }
        offsets.extend(of_versions.into_iter().map(u64::from));
        offsets.extend(of_files.into_iter().map(|offset| changed.new_offset(offset)));

        let Some(symbols) = view.dynsym()? else { return unknown };
        // A section header that hides symbols would hide their names from us.
        let hash = dynamic.get(elf::DT_HASH).map(|addr| view.sysv_hash(addr)).transpose()?;
        let gnu_hash = dynamic.get(elf::DT_GNU_HASH).map(|addr| view.gnu_hash(addr)).transpose()?;
        let hashed = hash.map_or(0, |(_, count)| count).max(gnu_hash.map_or(0, |(_, count)| count));
        if hashed > symbols.len() / view.bytes.form.symbol_size() {
            return unknown;
        }
        let inside = |offset: &u64| spans.iter().any(|span| span.has(*offset));
        offsets.extend(view.symbols(symbols)?.map(|symbol| u64::from(symbol.name)).filter(inside));

        // Anything else that uses these bytes as a string table, or for something else altogether.
        for (index, section) in view.sections.iter().enumerate() {
            let is_table = section.kind == elf::SHT_STRTAB && section.range() == strings.range;
            if !is_table && section.range().overlaps(strings.range) {
                return unknown;
            }
            if !is_table {
                continue;
            }
            let links = |other: &super::raw::Section| usize::try_from(other.link).is_ok_and(|link| link == index);
            let foreign = view.sections.iter().any(|other| {
                let ours = matches!(
                    other.kind,
                    elf::SHT_DYNSYM | elf::SHT_DYNAMIC | elf::SHT_GNU_VERDEF | elf::SHT_GNU_VERNEED
                );
                links(other) && !ours
            });
            if foreign || view.header.shstrndx == index as u64 {
                return unknown;
            }
        }
        offsets.retain(inside);
        offsets.sort_unstable();
        offsets.dedup();
        Ok(Self(Some(offsets)))
    }

    fn add(&mut self, offset: u64) {
        if let Some(offsets) = &mut self.0
            && let Err(at) = offsets.binary_search(&offset)
        {
            offsets.insert(at, offset);
        }
    }

    /// The bytes of a string, from its start, that no other offset reads; its NUL too if that is not shared.
    fn owned(&self, span: &Span) -> Range {
        let Span { start, offset, length } = *span;
        let nothing = Range::new(offset, 0);
        let Some(offsets) = &self.0 else { return nothing };
        let from = offsets.partition_point(|user| *user < start);
        match offsets.get(from) {
            Some(user) if *user <= offset => nothing,
            Some(user) if *user <= offset + length => Range { start: offset, end: *user },
            _ => Range::new(offset, length + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::raw::Range;
    use super::{Span, Users};

    #[test]
    fn only_unshared_bytes_are_owned() {
        //            0 1        11       20
        let table = b"\0/build/li\0b/lib.so\0";
        let span = |offset, length| Span::new(table, offset, length);
        let owned = |users: &[u64], offset, length| Users(Some(users.to_vec())).owned(&span(offset, length));
        assert_eq!(owned(&[0, 11], 1, 9), Range { start: 1, end: 11 }, "alone, its NUL too");
        assert_eq!(owned(&[0, 8, 11], 1, 9), Range { start: 1, end: 8 }, "a name ends in its tail");
        assert_eq!(owned(&[0, 10], 1, 9), Range { start: 1, end: 10 }, "its NUL is somebody's empty name");
        assert!(owned(&[0, 1], 1, 9).is_empty(), "somebody has the same text");
        assert!(owned(&[0, 11], 13, 6).is_empty(), "it is itself the tail of a name");
        assert!(Users(None).owned(&span(1, 9)).is_empty(), "users unknown");
    }
}
