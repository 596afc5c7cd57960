//! What a file says about itself, in a form that owns its text: the reader's side of this module.

use object::elf;

use super::error::ElfError;
use super::raw::{Class, Endian};
use super::view::View;

/// What kind of file it is (`e_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `ET_REL`: a `.o`, input of the linker.
    Relocatable,
    /// `ET_EXEC`: a program with fixed addresses.
    Executable,
    /// `ET_DYN`: a shared library, or a position-independent program (see [`Elf::is_pie`]).
    SharedObject,
    /// `ET_CORE`: a memory dump.
    Core,
    /// A type that only some operating system or processor knows.
    Other(u16),
}

/// The versions of one library's symbols that a file needs (`DT_VERNEED`).
///
/// glibc gives every symbol the version in which it last changed. A program linked on a new system needs new versions,
/// and does not start on an older one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionNeed {
    /// The library, as in [`Elf::needed`].
    pub library: Vec<u8>,
    /// The versions, such as `GLIBC_2.34`.
    pub versions: Vec<Vec<u8>>,
    /// Those of them that may be missing (`VER_FLG_WEAK`): the loader warns and goes on.
    pub weak: Vec<Vec<u8>>,
}

/// A level of the x86-64 instruction set (x86-64 psABI, "Micro-Architecture Levels"). Each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IsaLevel {
    /// What every x86-64 processor has.
    Baseline,
    /// x86-64-v2: up to SSE4.2 and POPCNT.
    V2,
    /// x86-64-v3: up to AVX2 and FMA.
    V3,
    /// x86-64-v4: AVX-512.
    V4,
}

impl std::fmt::Display for IsaLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Baseline => "x86-64",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        })
    }
}

/// One ELF file, as the dynamic loader sees it (gABI chapter 5; `ld.so(8)`).
///
/// Text is bytes: the loader compares bytes, and nothing promises UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// 32 or 64 bits.
    pub class: Class,
    /// The byte order.
    pub endian: Endian,
    /// `e_machine`: 62 is x86-64, 183 is AArch64.
    pub machine: u16,
    /// Program, library, object or core.
    pub kind: Kind,
    /// A program that can be loaded at any address: `ET_DYN` with an interpreter, or marked `DF_1_PIE`.
    pub is_pie: bool,
    /// The program that the kernel starts to load this one (`PT_INTERP`): the dynamic loader, by absolute path.
    pub interpreter: Option<Vec<u8>>,
    /// The name by which others ask for this library (`DT_SONAME`).
    pub soname: Option<Vec<u8>>,
    /// The libraries that this file asks for (`DT_NEEDED`), in order.
    pub needed: Vec<Vec<u8>>,
    /// `DT_RPATH`: folders, separated by colons, searched for what this file *and everything it loads* needs, before
    /// `LD_LIBRARY_PATH`. Ignored where there is a `DT_RUNPATH`.
    pub rpath: Option<Vec<u8>>,
    /// `DT_RUNPATH`: folders searched for what *this file alone* needs, after `LD_LIBRARY_PATH`.
    pub runpath: Option<Vec<u8>>,
    /// Which versions of which libraries' symbols it needs.
    pub version_needs: Vec<VersionNeed>,
    /// Which versions of its own symbols it offers (`DT_VERDEF`), without the one that names the file itself.
    pub version_defs: Vec<Vec<u8>>,
    /// The linker's fingerprint of the contents (`NT_GNU_BUILD_ID`), by which debuggers find separate debug files.
    pub build_id: Option<Vec<u8>>,
    /// Which instructions it says that it needs, on x86-64; nothing when it does not say.
    pub isa_level: Option<IsaLevel>,
    /// It has a `PT_DYNAMIC`.
    pub has_dynamic: bool,
    /// It starts without a dynamic loader: plain static, or static-pie, which relocates itself. Search paths mean
    /// nothing to it.
    pub is_static: bool,
    /// It has `.debug*` or `.zdebug*` sections that are not loaded.
    pub has_debug: bool,
    /// It has a `.symtab`, which debuggers and profilers use and no loader needs.
    pub has_symtab: bool,
    /// It has section headers.
    pub has_sections: bool,
    /// It holds nothing but debug information (`objcopy --only-keep-debug`).
    pub is_debug_file: bool,
}

impl Elf {
    /// The search path that the loader uses: `DT_RUNPATH`, or else `DT_RPATH`.
    pub fn search_path(&self) -> Option<&[u8]> {
        self.runpath.as_deref().or(self.rpath.as_deref())
    }
}

/// Whether the bytes start as an ELF file does. Four bytes are enough.
pub fn is_elf(data: &[u8]) -> bool {
    data.starts_with(&elf::ELFMAG)
}

/// Reads what a file says about itself.
///
/// Works with and without section headers, in either class and byte order. Whatever is out of bounds is an error that
/// names the structure and its offset. Needs memory in the order of the file's own size, whatever the file claims.
pub fn parse(data: &[u8]) -> Result<Elf, ElfError> {
    describe(&View::parse(data)?)
}

pub(super) fn describe(view: &View<'_>) -> Result<Elf, ElfError> {
    // Names may be shared: a small file can name one long string many times.
    let mut budget = Budget::new(view.bytes.len());
    let interpreter = budget.text(view.interpreter()?)?;
    let needed = view.needed()?.into_iter().map(|name| budget.copy(name)).collect::<Result<Vec<_>, _>>()?;
    let versions = view.versions()?;
    let mut version_needs = Vec::with_capacity(versions.needs.len());
    for need in &versions.needs {
        let library = budget.copy(need.library)?;
        let mut copies = |names: &[&[u8]]| names.iter().map(|name| budget.copy(name)).collect::<Result<Vec<_>, _>>();
        let (versions, weak) = (copies(&need.versions)?, copies(&need.weak)?);
        version_needs.push(VersionNeed { library, versions, weak });
    }
    let version_defs = versions.defs.iter().map(|name| budget.copy(name)).collect::<Result<Vec<_>, _>>()?;

    let kind = match elf::FileType(view.header.kind) {
        elf::ET_REL => Kind::Relocatable,
        elf::ET_EXEC => Kind::Executable,
        elf::ET_DYN => Kind::SharedObject,
        elf::ET_CORE => Kind::Core,
        elf::FileType(other) => Kind::Other(other),
    };
    let has_name = |prefixes: &[&[u8]]| -> Result<bool, ElfError> {
        // What is loaded is the program's own (.debug_gdb_scripts).
        for section in view.sections.iter().filter(|section| !section.is_alloc()) {
            let name = view.section_name(section)?;
            if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    Ok(Elf {
        class: view.bytes.form.class,
        endian: view.bytes.form.endian,
        machine: view.header.machine,
        kind,
        is_pie: kind == Kind::SharedObject && (interpreter.is_some() || marked_pie(view)),
        soname: budget.text(view.tag_string(elf::DT_SONAME, "DT_SONAME")?)?,
        rpath: budget.text(view.tag_string(elf::DT_RPATH, "DT_RPATH")?)?,
        runpath: budget.text(view.tag_string(elf::DT_RUNPATH, "DT_RUNPATH")?)?,
        is_static: is_static(view),
        interpreter,
        needed,
        version_needs,
        version_defs,
        build_id: budget.text(build_id(view)?)?,
        isa_level: isa_level(view)?,
        has_dynamic: view.dynamic.is_some(),
        has_debug: has_name(&[b".debug", b".zdebug"])?,
        has_symtab: view.section_of_kind(elf::SHT_SYMTAB).is_some(),
        has_sections: !view.sections.is_empty(),
        is_debug_file: view.is_debug_file,
    })
}

fn marked_pie(view: &View<'_>) -> bool {
    let flags = view.dynamic.as_ref().and_then(|dynamic| dynamic.get(elf::DT_FLAGS_1)).unwrap_or(0);
    flags & elf::DF_1_PIE.0 != 0
}

/// A program that starts without a loader. static-pie has a dynamic section but neither interpreter nor libraries;
/// what tells it from a library that needs nothing is the linker's mark, or an entry point without a name.
pub(super) fn is_static(view: &View<'_>) -> bool {
    let kind = elf::FileType(view.header.kind);
    if view.is_debug_file || view.segment(elf::PT_INTERP).is_some() || !matches!(kind, elf::ET_EXEC | elf::ET_DYN) {
        return false;
    }
    let Some(dynamic) = &view.dynamic else { return true };
    if dynamic.get(elf::DT_NEEDED).is_some() {
        return false;
    }
    let nameless = dynamic.get(elf::DT_SONAME).is_none();
    kind == elf::ET_EXEC
        || marked_pie(view)
        || (nameless && (view.header.entry != 0 || dynamic.get(elf::DT_DEBUG).is_some()))
}

/// `NT_GNU_BUILD_ID`.
fn build_id<'a>(view: &View<'a>) -> Result<Option<&'a [u8]>, ElfError> {
    gnu_note(view, elf::NT_GNU_BUILD_ID.0)
}

/// What a processor must have, from `NT_GNU_PROPERTY_TYPE_0` (the x86-64 psABI, "Program Property"): glibc's loader
/// refuses a file whose level the processor does not reach.
fn isa_level(view: &View<'_>) -> Result<Option<IsaLevel>, ElfError> {
    if elf::Machine(view.header.machine) != elf::EM_X86_64 {
        return Ok(None);
    }
    let Some(properties) = gnu_note(view, elf::NT_GNU_PROPERTY_TYPE_0.0)? else { return Ok(None) };
    let little = view.bytes.form.endian == Endian::Little;
    let word = |bytes: &[u8]| -> Option<u32> {
        let bytes = bytes.first_chunk()?;
        Some(if little { u32::from_le_bytes(*bytes) } else { u32::from_be_bytes(*bytes) })
    };
    // pr_type, pr_datasz, data, each padded to the size of a word.
    let step = if view.bytes.form.class == Class::Elf64 { 8 } else { 4 };
    let mut rest = properties;
    while let (Some(kind), Some(size)) = (word(rest), rest.get(4..).and_then(word)) {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let Some(data) = rest.get(8..).and_then(|rest| rest.get(..size)) else { break };
        if kind == elf::GNU_PROPERTY_X86_ISA_1_NEEDED.0
            && let Some(bits) = word(data)
        {
            let levels = [
                (elf::GNU_PROPERTY_X86_ISA_1_V4, IsaLevel::V4),
                (elf::GNU_PROPERTY_X86_ISA_1_V3, IsaLevel::V3),
                (elf::GNU_PROPERTY_X86_ISA_1_V2, IsaLevel::V2),
                (elf::GNU_PROPERTY_X86_ISA_1_BASELINE, IsaLevel::Baseline),
            ];
            return Ok(levels.into_iter().find(|(bit, _)| bits & bit != 0).map(|(_, level)| level));
        }
        rest = rest.get(8 + size.next_multiple_of(step)..).unwrap_or_default();
    }
    Ok(None)
}

/// Looks for a note of GNU's in the note segments, which need no section headers.
fn gnu_note<'a>(view: &View<'a>, wanted: u32) -> Result<Option<&'a [u8]>, ElfError> {
    if view.is_debug_file {
        return Ok(None);
    }
    // Segments may share bytes, notes take some of their own: thousands of segments are not worth as many looks at the file.
    let mut left = view.bytes.len();
    for segment in view.segments.iter().filter(|segment| segment.kind == elf::PT_NOTE) {
        let align = if segment.align == 8 { 8 } else { 4 };
        let end = segment.range().end;
        let mut at = segment.offset;
        // Elf_Nhdr: namesz, descsz, type; then name and description, each padded.
        while at.checked_add(12).is_some_and(|head| head <= end) {
            let names = u64::from(view.bytes.u32("note", at)?);
            let descs = u64::from(view.bytes.u32("note", at + 4)?);
            let kind = view.bytes.u32("note", at + 8)?;
            let padded = |size: u64| size.next_multiple_of(align);
            let desc_at = at + padded(12 + names);
            if desc_at.saturating_add(descs) > end {
                break; // notes are for tools: a broken one stops nobody from loading the file
            }
            let next = desc_at + padded(descs);
            left = match left.checked_sub(next - at) {
                Some(left) => left,
                None => return Ok(None),
            };
            let name = view.bytes.slice("note", at + 12, names)?;
            if kind == wanted && name == b"GNU\0" {
                return view.bytes.slice("note", desc_at, descs).map(Some);
            }
            at = next;
        }
    }
    Ok(None)
}

/// How much text may be copied out of a file.
struct Budget {
    left: u64,
    limit: u64,
}

impl Budget {
    fn new(file: u64) -> Self {
        let limit = file.saturating_mul(4).saturating_add(64 << 10);
        Self { left: limit, limit }
    }

    fn copy(&mut self, text: &[u8]) -> Result<Vec<u8>, ElfError> {
        let left = self.left.checked_sub(text.len() as u64);
        self.left = left.ok_or(ElfError::TooMuch { what: "the text of the dynamic section", limit: self.limit })?;
        Ok(text.to_vec())
    }

    fn text(&mut self, text: Option<&[u8]>) -> Result<Option<Vec<u8>>, ElfError> {
        text.map(|text| self.copy(text)).transpose()
    }
}
