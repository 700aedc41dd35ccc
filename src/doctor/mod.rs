//! Probes of the kernel.

use clap::ValueEnum;

use crate::error::Result;
use crate::state::Place;
use crate::state::cgroup::Cgroup;

/// A risk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Risk {
    /// FIONREAD
    Fionread,
    /// Kernel
    KnownBadKernel,
}

/// Bits.
pub fn bits(risks: &[Risk]) -> u32 {
    risks
        .iter()
        .fold(0, |bits, risk| bits | 1 << (*risk as u32))
}

/// Names.
pub fn names(_bits: u32) -> Vec<&'static str> {
    Vec::new()
}

/// Probe.
pub fn before_enable(_place: &Place, _cgroups: &[Cgroup], _allow: &[Risk]) -> Result<u32> {
    Ok(0)
}
