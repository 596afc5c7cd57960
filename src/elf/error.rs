//! What can be wrong with a file, and what we will not do to one. Apart from the code that finds it, so that the
//! caller sees at a glance which failures mean "this is no good ELF file" and which mean "this one stays as it is".

/// Why an ELF file could not be read or edited.
///
/// Offsets are file offsets in bytes from the start of the file as it was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// The first four bytes are not `\x7fELF`.
    #[error("not an ELF file: it does not start with \\x7fELF")]
    NotElf,
    /// An `ar` archive (`lib*.a`): a container of relocatable objects, not an ELF file.
    #[error("not an ELF file but an ar archive")]
    Archive,
    /// A structure reaches beyond the end of the file.
    #[error("{what} at offset {offset:#x} with {length:#x} bytes reaches beyond the end of the file ({file:#x} bytes)")]
    Truncated {
        /// The structure being read.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// How long it says it is.
        length: u64,
        /// The length of the file.
        file: u64,
    },
    /// A field holds a value that the format does not allow.
    #[error("{what} at offset {offset:#x} holds {value:#x}, which is not valid")]
    Invalid {
        /// The field.
        what: &'static str,
        /// Where the field, or the structure it belongs to, starts.
        offset: u64,
        /// What it holds.
        value: u64,
    },
    /// A virtual address is not backed by any loadable segment's bytes in the file.
    #[error("{what} is at address {address:#x} ({length:#x} bytes), which no loadable segment holds")]
    Unmapped {
        /// The structure being looked for.
        what: &'static str,
        /// Its address.
        address: u64,
        /// Its length.
        length: u64,
    },
    /// A string has no terminating NUL inside its table.
    #[error("{what} at offset {offset:#x} is not terminated inside its string table")]
    Unterminated {
        /// What the string is.
        what: &'static str,
        /// Where it starts.
        offset: u64,
    },
    /// The file asks for more memory than its size can justify.
    #[error("{what} would need more than {limit} bytes, more than a file of this size can justify")]
    TooMuch {
        /// What was being read.
        what: &'static str,
        /// The limit in bytes.
        limit: u64,
    },
    /// The search path asked for cannot be written.
    #[error("the search path asked for {0}")]
    SearchPath(BadPath),
    /// The program interpreter asked for cannot be one.
    #[error("the interpreter asked for {0}")]
    Interpreter(&'static str),
    /// The file is good, but this edit of it cannot be proven safe. The caller keeps the file as it is.
    #[error("this edit cannot be done safely: {0}")]
    Unsupported(Refusal),
    /// Only parts of the file were given, and these bytes are needed too: [`edit_parts`](super::edit_parts).
    #[error("{length} bytes at offset {offset:#x} were not read yet")]
    NotRead {
        /// Where they begin.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// The edited bytes were read again and something else than what was asked for had changed. They are thrown away.
    #[error("the edited file failed its check: {what} (at {at:#x})")]
    SelfCheck {
        /// What differs.
        what: &'static str,
        /// An offset, address or index that says where.
        at: u64,
    },
}

/// What is wrong with a search path given to [`edit()`](super::edit()).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadPath {
    /// Use [`SearchPath::Remove`](super::SearchPath::Remove): an empty entry would mean the current directory.
    #[error("is empty; ask for its removal instead")]
    Empty,
    /// The loader would stop reading there.
    #[error("holds a NUL byte at index {0}")]
    Nul(usize),
}

/// Why a well-formed file is not edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// `ET_REL`: an input of the linker. It has no search path, and its debug sections hold relocations.
    #[error("it is a relocatable object (.o)")]
    Relocatable,
    /// `ET_CORE`: a memory dump.
    #[error("it is a core dump")]
    Core,
    /// A type that is none of relocatable, executable, shared object and core.
    #[error("its e_type {0:#x} is unknown")]
    UnknownKind(u16),
    /// Only debug information: the headers describe contents that are in another file.
    #[error("it is a separate debug file")]
    DebugFile,
    /// 65,535 program headers or more.
    #[error("it has too many program headers")]
    ManyProgramHeaders,
    /// `prelink` stored a copy of the headers and addresses computed from the layout.
    #[error("it was prelinked; undo that with prelink -u first")]
    Prelinked,
    /// What stands behind the program headers cannot be moved, so there is no room for one more.
    #[error("there is no room for a program header: what is at offset {0:#x} cannot be moved")]
    NoRoom(u64),
    /// Two tables share bytes, so that neither can be moved alone.
    #[error("the table at offset {0:#x} shares bytes with something else")]
    Overlap(u64),
    /// A pointer in the dynamic section that we do not know leads into what has to be moved.
    #[error("dynamic tag {0:#x} points into what would have to be moved")]
    UnknownPointer(u64),
    /// `.dynstr` is not described the same way by the section headers and by the dynamic section.
    #[error("section headers and dynamic section disagree about the table at offset {0:#x}")]
    Disagreement(u64),
    /// No free addresses behind the last segment.
    #[error("there is no address space left behind the last segment")]
    AddressSpace,
    /// A segment's alignment is not a power of two, or absurd.
    #[error("segment alignment {0:#x} is not usable")]
    Alignment(u64),
    /// A section that is to be dropped is inside a segment.
    #[error("the debug section at offset {0:#x} is part of a segment")]
    LoadedDebug(u64),
    /// Bytes that no header describes would be lost by stripping.
    #[error("{1:#x} bytes at offset {0:#x} are described by no header and would be lost")]
    UnknownBytes(u64, u64),
    /// Stripping moves what a segment that is not loaded describes.
    #[error("a segment at offset {0:#x} describes bytes that would move")]
    TailSegment(u64),
    /// A table that is kept refers to symbols by number.
    #[error("the section at offset {0:#x} refers to symbols that would be dropped")]
    SymbolUser(u64),
}
