//! Run time statistics of BPF programs.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use super::bpf::owned;

/// The kernel counts runs and run time of BPF programs as long as this lives.
#[derive(Debug)]
pub struct RunTimeStats {
    _fd: OwnedFd,
}

impl RunTimeStats {
    /// Turns the statistics on, whatever `kernel.bpf_stats_enabled` says.
    ///
    /// # Errors
    ///
    /// Whatever bpf(2) gives for `BPF_ENABLE_STATS`: EPERM without `CAP_SYS_ADMIN`.
    pub fn enable() -> io::Result<Self> {
        // SAFETY: takes a plain value and gives a descriptor or an error.
        owned(unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) })
            .map(|fd| Self { _fd: fd })
    }
}
