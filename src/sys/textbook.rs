//! The generated skeleton of the textbook program (`src/bpf/textbook.bpf.c`).
#![allow(unsafe_code)]
#![allow(missing_docs, clippy::pedantic, clippy::undocumented_unsafe_blocks)]

include!(concat!(env!("OUT_DIR"), "/textbook.skel.rs"));
