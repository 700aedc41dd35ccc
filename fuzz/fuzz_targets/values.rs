//! One value of an option or argument.
#![no_main]

use sockaccel::cli::fuzzing;

libfuzzer_sys::fuzz_target!(|text: &str| fuzzing::value(text));
