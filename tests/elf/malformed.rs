//! Broken input: an error that says where, never a panic, and never output that differs from what was asked.

use std::path::Path;
use std::sync::OnceLock;

use proptest::prelude::*;
use slurm_factory::elf::{Edit, ElfError, SearchPath, Strip, edit, parse, set_interpreter};

use crate::tools::{by_parts, edit_of, folder, tool};

fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let (_guard, dir) = folder();
        std::fs::write(
            dir.join("a.c"),
            "#include <stdio.h>\nint a(void){return puts(\"x\");}\nint main(){return a();}\n",
        )
        .unwrap();
        let build = |out: &str, flags: &[&str], dir: &Path| {
            tool("gcc", &[&["-o", out, "a.c", "-Wl,-rpath,/some/path/lib"], flags].concat(), dir);
            std::fs::read(dir.join(out)).unwrap()
        };
        let mut samples = vec![
            build("program", &["-g", "-Wl,--hash-style=both"], &dir),
            build("library.so", &["-shared", "-fPIC", "-s"], &dir),
            build("lld", &["-fuse-ld=lld"], &dir),
        ];
        let mut headless = samples[1].clone();
        headless[40..48].fill(0);
        headless[58..64].fill(0);
        samples.push(headless);
        // ELF32 can be linked without a 32-bit C library.
        std::fs::write(dir.join("b.c"), "extern int ext(void); int b(void){return ext();}\n").unwrap();
        tool("gcc", &["-m32", "-fPIC", "-g", "-c", "-o", "b.o", "b.c"], &dir);
        tool(
            "ld",
            &["-m", "elf_i386", "-shared", "-o", "b.so", "b.o", "-rpath", "/some/path/lib", "-soname", "libb.so"],
            &dir,
        );
        samples.push(std::fs::read(dir.join("b.so")).unwrap());
        samples.extend(crate::machines::FILES.iter().map(|file| file.1.to_vec()));
        samples
    })
}

fn edits() -> [Edit; 4] {
    [
        edit_of(SearchPath::Rpath(vec![b'x'; 300]), Strip::Debug),
        edit_of(SearchPath::Runpath(b"/x".to_vec()), Strip::Keep),
        edit_of(SearchPath::Remove, Strip::All),
        edit_of(SearchPath::Runpath(vec![b'y'; 900]), Strip::Keep),
    ]
}

/// `SLURM_FACTORY_ELF_CASES=1000000` makes a fuzzer of this.
fn cases() -> u32 {
    std::env::var("SLURM_FACTORY_ELF_CASES")
        .map_or(600, |count| count.parse().expect("SLURM_FACTORY_ELF_CASES: a number"))
}

/// Everything that takes bytes; a panic fails the test.
fn try_all(data: &[u8]) {
    let _ = parse(data);
    for what in edits() {
        let (whole, parts) = (edit(data, &what), by_parts(data, &what));
        assert!(whole.is_err() || whole == parts, "of parts, the edit is another: {what:?}");
    }
    for text in [&b"/l"[..], &[b'/'; 300]] {
        let _ = set_interpreter(data, text);
    }
}

#[test]
fn truncated_files_are_errors() {
    for sample in samples() {
        for length in (0..sample.len()).step_by(64).chain(0..128) {
            try_all(&sample[..length]);
        }
        let error = parse(&sample[..sample.len().min(100)]).unwrap_err();
        assert!(matches!(error, ElfError::Truncated { .. }), "{error}");
        assert!(error.to_string().contains("offset 0x"), "{error}");
    }
}

#[test]
fn bad_paths_are_refused() {
    let sample = &samples()[0];
    for (path, expected) in [(vec![], "empty"), (b"a\0b".to_vec(), "NUL byte at index 1")] {
        let error = edit(sample, &edit_of(SearchPath::Rpath(path), Strip::Keep)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Every byte of the headers and of the dynamic section, set to values that are likely to hurt.
#[test]
fn header_bytes_with_extreme_values() {
    for sample in samples() {
        for at in 0..sample.len().min(0x300) {
            for value in [0, 0xff] {
                let mut data = sample.clone();
                data[at] = value;
                let _ = edit(&data, &edits()[at % 4]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_never_panic(
        which in 0..12_usize,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut data = samples()[which].clone();
        for (index, value) in flips {
            let at = index.index(data.len());
            data[at] = value;
        }
        try_all(&data);
    }

    #[test]
    fn extreme_words_never_panic(
        which in 0..12_usize,
        words in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..64_u32), 1..6),
    ) {
        let mut data = samples()[which].clone();
        for (index, kind, shift) in words {
            let at = (index.index(data.len() - 8) / 8) * 8;
            let value = match kind % 4 {
                0 => u64::MAX,
                1 => 1_u64 << shift,
                2 => (1_u64 << shift) - 1,
                _ => u64::MAX << shift,
            };
            data[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        try_all(&data);
    }

    #[test]
    fn noise_after_the_magic_never_panics(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut data = b"\x7fELF\x02\x01\x01".to_vec();
        data.extend_from_slice(&noise);
        try_all(&data);
    }
}
