//! Every `unsafe` of the crate, one file per kernel interface.

pub mod bpf;
pub mod bpf_stats;
pub mod child;
pub mod pidfd;
pub mod probe;
pub mod signal;
pub mod skel;
pub mod tcp;
pub mod textbook;
