//! Every `unsafe` of the crate, one file per kernel interface.

pub mod bpf;
pub mod probe;
