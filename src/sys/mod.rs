//! Everything that needs `unsafe`.

pub mod bpf_stats;
pub mod tcp;
pub mod textbook;
