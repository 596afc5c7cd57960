//! Files that are made to keep a reader busy: small ones in which the same bytes are described thousands of times. Each of
//! these took minutes to hours.

use slurm_factory::elf::{ElfError, SearchPath, Strip, edit, parse};
use std::time::{Duration, Instant};

use crate::tools::edit_of;

/// So many headers; a few are left for what the file needs.
const MANY: usize = 60_000;
const LOAD: u64 = 1;
const DYNAMIC: u64 = 2;
const NOTE: u64 = 4;

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A program header: `p_type` and `p_flags` (readable), offset and address alike.
fn segment(kind: u64, offset: usize, length: usize) -> Vec<u8> {
    let (offset, length) = (offset as u64, length as u64);
    words(&[kind | 4 << 32, offset, offset, offset, length, length, 4])
}

/// The header of a library for x86-64 with so many program headers behind it, and section headers where `sections` says.
fn header(segments: usize, sections: (usize, usize, usize)) -> Vec<u8> {
    let (at, count, names) = sections;
    let half = |value: usize| u16::try_from(value).unwrap().to_le_bytes();
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0".to_vec();
    bytes.extend(words(&[0, 64, at as u64]));
    bytes.extend([0; 4]);
    for value in [64, 56, segments, 64, count, names] {
        bytes.extend(half(value));
    }
    bytes
}

/// Far less than it took, far more than it takes on a busy machine.
fn soon<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    assert!(start.elapsed() < Duration::from_mins(1), "{:?}", start.elapsed());
    result
}

#[test]
fn a_hash_table_without_end_in_the_last_of_many_segments() {
    let data_at = 64 + (MANY + 2) * 56;
    let (strings_at, symbols_at, hash_at) = (data_at + 7 * 16, data_at + 7 * 16 + 32, data_at + 7 * 16 + 56);
    let length = hash_at + (4 << 20);
    let mut bytes = header(MANY + 2, (0, 0, 0));
    bytes.extend((0..MANY).flat_map(|_| segment(LOAD, 0, 0)));
    bytes.extend(segment(LOAD, 0, length));
    bytes.extend(segment(DYNAMIC, data_at, 7 * 16));
    // DT_STRTAB, DT_STRSZ, DT_SYMTAB, DT_GNU_HASH, DT_NEEDED, DT_RUNPATH
    let entries = [(5, strings_at), (10, 32), (6, symbols_at), (0x6fff_fef5, hash_at), (1, 1), (29, 9), (0, 0)];
    bytes.extend(entries.iter().flat_map(|(tag, value)| words(&[*tag, *value as u64])));
    bytes.extend(b"\0liba.so\0/build/lib\0\0\0\0\0\0\0\0\0\0\0\0");
    bytes.extend([0; 24]);
    // One bucket, whose chain begins at symbol 1 and of which no entry says that it is the last.
    bytes.extend([1_u32, 1, 1, 0, 0, 0, 1].iter().flat_map(|word| word.to_le_bytes()));
    bytes.resize(length, 0);
    let found = soon(|| edit(&bytes, &edit_of(SearchPath::Remove, Strip::Keep)));
    assert!(matches!(found, Err(ElfError::Unmapped { what: "DT_GNU_HASH", .. })), "{found:?}");
}

#[test]
fn notes_that_many_segments_share() {
    let notes_at = 64 + MANY * 56;
    let mut bytes = header(MANY, (0, 0, 0));
    bytes.extend((0..MANY).flat_map(|_| segment(NOTE, notes_at, 12 << 18)));
    bytes.resize(notes_at + (12 << 18), 0);
    assert_eq!(soon(|| parse(&bytes)).unwrap().build_id, None);
}

#[test]
fn a_name_without_end_that_many_sections_have() {
    let table_at = 64;
    let length = 64 << 20;
    let mut bytes = header(0, (table_at + length, MANY, 1));
    bytes.resize(table_at + length - 1, b'a');
    bytes.push(0);
    let section = |kind: u64| words(&[kind << 32, 0, 0, table_at as u64, length as u64, 0, 1, 0]);
    bytes.extend(section(0));
    bytes.extend((1..MANY).flat_map(|_| section(3)));
    let found = soon(|| parse(&bytes));
    assert!(matches!(found, Err(ElfError::Unterminated { what: "section name", .. })), "{found:?}");
}
