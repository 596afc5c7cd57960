//! An ELF file, given any bytes: an edit is refused or gives a file on which the same edit changes nothing.
#![no_main]
use slurm_factory::elf::{Edit, Edited, SearchPath, Strip, edit, set_interpreter};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for search_path in [SearchPath::Rpath(b"$ORIGIN/../lib:$ORIGIN/../lib64".to_vec()), SearchPath::Remove] {
        for (strip, bare) in [(Strip::Keep, None), (Strip::Debug, None), (Strip::Keep, Some(b"/build".to_vec()))] {
            let asked = Edit { search_path: search_path.clone(), strip, bare_below: bare };
            if let Ok(Edited::Changed(new)) = edit(bytes, &asked) {
                let again = edit(&new, &asked).expect("what was written can be read");
                assert!(matches!(again, Edited::Unchanged), "twice is not the same as once");
            }
        }
    }
    for text in [&b"/l"[..], b"/a/loader/with/a/much/longer/path/than/the/one/that/was/there/before.so.2"] {
        if let Ok(Edited::Changed(new)) = set_interpreter(bytes, text) {
            assert_eq!(set_interpreter(&new, text), Ok(Edited::Unchanged), "twice is not the same as once");
        }
    }
});
