//! The generated skeletons of `src/bpf/sockaccel.bpf.c` and `adopt.bpf.c`.
#![allow(unsafe_code)]
#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]

pub mod sockaccel {
    include!(concat!(env!("OUT_DIR"), "/sockaccel.skel.rs"));
}

pub mod adopt {
    include!(concat!(env!("OUT_DIR"), "/adopt.skel.rs"));
}
