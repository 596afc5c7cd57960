//! Program headers as no linker writes them but tools that edit files do: behind the rest of the file, in a segment of their
//! own (a kernel older than 5.18 does not start such a program), and with segments that overlap.

use slurm_factory::elf::{ElfError, Refusal, SearchPath, Strip, edit, parse};

use crate::linkers::{INITIAL, build, does_not_find, long, rpath, runs};
use crate::tools::{edit_of, edited, write_program};

/// `e_phoff`, `e_phnum` and the size of a header in ELF64.
const PHOFF: usize = 0x20;
const PHNUM: usize = 0x38;
const SIZE: usize = 56;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const PHDR: u32 = 6;
const PROPERTY: u32 = 0x6474_e553;

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn kind(header: &[u8]) -> u32 {
    u32::try_from(number(header, 0, 4)).unwrap()
}

/// The program with its headers in a new last segment; `slack` zeros follow them there. One that nobody needs makes room for the
/// new segment's own.
fn with_headers_behind(program: &[u8], slack: usize) -> Vec<u8> {
    let mut bytes = program.to_vec();
    let (at, count) =
        (usize::try_from(number(&bytes, PHOFF, 8)).unwrap(), usize::try_from(number(&bytes, PHNUM, 2)).unwrap());
    let mut headers: Vec<Vec<u8>> = bytes[at..at + count * SIZE].chunks(SIZE).map(<[u8]>::to_vec).collect();
    let unneeded = headers.iter().position(|h| kind(h) == PROPERTY).or(headers.iter().position(|h| kind(h) == NOTE));
    headers.remove(unneeded.expect("a header that nobody needs"));
    let loads = || headers.iter().filter(|h| kind(h) == LOAD);
    let end = loads().map(|h| number(h, 0x10, 8) + number(h, 0x28, 8)).max().unwrap();
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    let (offset, addr) = (bytes.len() as u64, end.next_multiple_of(4096));
    let length = (count * SIZE) as u64;
    let mut load = vec![0; SIZE];
    load[0] = 1; // PT_LOAD
    load[4] = 4; // PF_R
    for (field, value) in [(0x08, offset), (0x10, addr), (0x18, addr), (0x30, 4096)] {
        put(&mut load, field, value);
    }
    for field in [0x20, 0x28] {
        put(&mut load, field, length + slack as u64);
    }
    let last = headers.iter().rposition(|h| kind(h) == LOAD).unwrap();
    headers.insert(last + 1, load);
    for header in headers.iter_mut().filter(|h| kind(h) == PHDR) {
        for (field, value) in [(0x08, offset), (0x10, addr), (0x18, addr), (0x20, length), (0x28, length)] {
            put(header, field, value);
        }
    }
    bytes[at..at + count * SIZE].fill(0);
    bytes.extend(headers.concat());
    bytes.resize(bytes.len() + slack, 0);
    put(&mut bytes, PHOFF, offset);
    bytes
}

#[test]
fn headers_behind_everything() {
    let built = build(&["-g"], "-pie", Some(INITIAL));
    let program = std::fs::read(&built.program).unwrap();
    let out = built.dir.join("edited");
    let longer = format!("/nowhere/{}:$ORIGIN/{}", "x".repeat(60), long());
    for slack in [0, 200] {
        let moved = with_headers_behind(&program, slack);
        assert_eq!(parse(&moved).unwrap().needed, parse(&program).unwrap().needed);
        write_program(&out, &moved);
        does_not_find(&out, "before an edit");
        for (path, strip) in [("$ORIGIN/lib", Strip::Keep), ("$ORIGIN/lib", Strip::Debug), ("$ORIGIN/lib", Strip::All)]
        {
            let name = format!("{slack} {strip:?}");
            write_program(&out, &edited(&moved, &edit_of(rpath(path), strip), &name));
            runs(&out, &name);
        }
        write_program(&out, &edited(&moved, &edit_of(SearchPath::Remove, Strip::Keep), "remove"));
        does_not_find(&out, "removed");
        // What grows needs one more header, which has its place there or not.
        let edit_longer = edit_of(rpath(&longer), Strip::Keep);
        if slack > 0 {
            write_program(&out, &edited(&moved, &edit_longer, "longer"));
            runs(&out, "longer");
        } else {
            let refused = edit(&moved, &edit_longer);
            assert!(matches!(refused, Err(ElfError::Unsupported(Refusal::NoRoom(_)))), "{refused:?}");
        }
    }
}

/// The program with its first segment reaching into the second, in the file as in memory, where the second is mapped over it.
fn with_overlapping_segments(program: &[u8]) -> Vec<u8> {
    let mut bytes = program.to_vec();
    let at = usize::try_from(number(&bytes, PHOFF, 8)).unwrap();
    let count = usize::try_from(number(&bytes, PHNUM, 2)).unwrap();
    let header = |index: usize| at + index * SIZE;
    let mut loads = (0..count).filter(|index| kind(&bytes[header(*index)..]) == LOAD);
    let (first, second) = (header(loads.next().unwrap()), header(loads.next().unwrap()));
    let field = |of: usize, field: usize| number(&bytes, of + field, 8);
    let apart = field(second, 0x08) - field(first, 0x08);
    assert_eq!(apart, field(second, 0x10) - field(first, 0x10), "both are as far apart in the file as in memory");
    let length = apart + 0x40;
    assert!(length > field(first, 0x20) && field(second, 0x20) > 0x40);
    for size in [0x20, 0x28] {
        put(&mut bytes, first + size, length);
    }
    bytes
}

#[test]
fn segments_that_overlap() {
    let built = build(&["-g"], "-pie", Some(INITIAL));
    let overlapping = with_overlapping_segments(&std::fs::read(&built.program).unwrap());
    let out = built.dir.join("edited");
    write_program(&out, &overlapping);
    does_not_find(&out, "before an edit");
    for path in ["$ORIGIN/lib".to_owned(), format!("/nowhere/{}:$ORIGIN/{}", "x".repeat(60), long())] {
        for strip in [Strip::Keep, Strip::Debug] {
            let name = format!("{path} {strip:?}");
            write_program(&out, &edited(&overlapping, &edit_of(rpath(&path), strip), &name));
            runs(&out, &name);
        }
    }
    write_program(&out, &edited(&overlapping, &edit_of(SearchPath::Remove, Strip::Keep), "remove"));
    does_not_find(&out, "removed");
}
