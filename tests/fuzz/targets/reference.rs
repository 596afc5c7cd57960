//! An image's name, as a user may type it.
#![no_main]
libfuzzer_sys::fuzz_target!(|text: &str| slurm_factory::image::fuzzing::reference(text));
