//! An index, a manifest or a configuration, given any bytes.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = slurm_factory::image::fuzzing::document(bytes);
});
