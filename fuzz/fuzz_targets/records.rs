//! What the kernel's maps, iterators and `sock_diag(7)` hand out.
#![no_main]

use sockaccel::cli::fuzzing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::records(bytes));
