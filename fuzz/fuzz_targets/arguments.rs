//! A command line, one argument a line.
#![no_main]

use sockaccel::cli::fuzzing;

libfuzzer_sys::fuzz_target!(|text: &str| fuzzing::arguments(text));
