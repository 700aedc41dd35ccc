//! The generated skeleton of the programs (`src/bpf/sockaccel.bpf.c`).
#![allow(unsafe_code)]
#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]

include!(concat!(env!("OUT_DIR"), "/sockaccel.skel.rs"));
