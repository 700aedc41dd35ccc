//! Run time statistics of BPF programs.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

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
        let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { _fd: fd })
    }
}
