//! What surrounds the programs: the kernel's configuration, cgroups, other BPF
//! programs, and the rules that redirected bytes do not meet. Nothing is
//! changed, and what could not be looked at is never said to be absent.

mod attached;
mod cgroups;
mod config;
mod filters;
mod kernel;

use std::path::Path;
use std::path::PathBuf;

use super::Report;
use super::Risk;
use super::finding::Finding;
use super::finding::Topic;
use super::guard::Guard;
use super::guard::Stop;

/// Every topic of this part, for the manual.
pub const TOPICS: &[Topic] = &[
    kernel::CAPABILITIES,
    kernel::BPF,
    kernel::FEATURES,
    kernel::SYMBOLS,
    kernel::KNOWN_BUGS,
    config::TOPIC,
    config::LOCKDOWN,
    cgroups::LAYOUT,
    cgroups::BPFFS,
    attached::SOCK_OPS,
    attached::CGROUP_SKB,
    attached::SK_MSG,
    filters::NETFILTER,
    filters::TC,
];

/// Looks at all of it. Without cgroups named, at the top of each hierarchy of
/// version 2: what is attached there concerns all below.
///
/// # Errors
///
/// [`Stop::Interrupted`]
pub fn look(
    guard: &Guard,
    report: &Report,
    named: &[PathBuf],
    bpffs: &Path,
    allowed: &[Risk],
) -> Result<Vec<Finding>, Stop> {
    let mut findings = kernel::look(report, allowed);
    findings.push(config::look(guard)?);
    findings.push(config::lockdown());
    findings.push(cgroups::layout());
    findings.push(cgroups::bpffs(bpffs));
    let tops = crate::state::cgroup::mounts();
    let cgroups = if named.is_empty() { &tops[..] } else { named };
    for cgroup in cgroups {
        findings.extend(attached::on(cgroup));
    }
    findings.push(attached::sk_msg());
    findings.push(filters::netfilter(guard)?);
    findings.push(filters::tc(guard)?);
    Ok(findings)
}
