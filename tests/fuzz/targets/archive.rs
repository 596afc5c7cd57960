//! A layer's or an archive's tar stream, given any bytes.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| slurm_factory::image::fuzzing::archive(bytes));
