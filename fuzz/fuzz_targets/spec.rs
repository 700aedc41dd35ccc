//! A file of `apply`.
#![no_main]

use sockaccel::cli::fuzzing;

libfuzzer_sys::fuzz_target!(|text: &str| fuzzing::spec(text));
