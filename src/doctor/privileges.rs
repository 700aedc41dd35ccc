//! What the calling thread may do.

use std::fs::File;
use std::io::Read as _;

use caps::CapSet;
use caps::Capability;
use caps::CapsHashSet;
use libbpf_rs::ErrorKind;
use libbpf_rs::MapType;

use super::map;
use crate::remedy::as_root;
use crate::state::tracefs;

/// Capabilities that enabling needs, in the order they are reported:
/// to load programs and create maps; to attach to a cgroup and to use socket
/// maps; to read kernel memory from programs and to attach to a tracepoint;
/// where tracefs or bpffs has to be mounted first, to mount; and where the
/// kernel hides its addresses otherwise, to see them.
pub const NEEDED: [Capability; 5] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYSLOG,
];

/// What takes programs that are attached to cgroups and sockets.
const TO_REPLACE: [Capability; 4] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
    Capability::CAP_SYSLOG,
];

/// What takes programs that only walk.
const TO_ADOPT: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYSLOG,
];

/// Why the calling thread may not use BPF as a command has to, before that has
/// changed anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It lacks the capabilities of these names.
    #[error(
        "the process lacks {missing}\n  Nothing was changed. As root:  {command}",
        missing = .0.join(", "), command = as_root()
    )]
    Lacks(Vec<String>),
    /// It has them, and this is what the kernel answered all the same.
    #[error(
        "the kernel forbids this process to create a BPF map ({0}),\n  \
         although it has the capabilities: a user namespace, a seccomp filter or a security \
         module stands between.\n  \
         Nothing was changed. Outside of the container:  {command}",
        command = as_root()
    )]
    Forbidden(String),
}

/// Those of [`NEEDED`] that the calling thread lacks, where symbols are hidden or
/// not. A bpffs that is missing is told of when it is mounted.
pub fn missing(hidden: bool) -> Vec<Capability> {
    // What cannot be read is not held.
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    missing_from(&held, !tracefs::is_visible(), hidden)
}

/// `CAP_SYS_ADMIN` stands in for the two that were split off it in Linux 5.8
/// (a17b53c4a4b5, 980737282232).
fn missing_from(held: &CapsHashSet, to_mount: bool, hidden: bool) -> Vec<Capability> {
    let admin = held.contains(&Capability::CAP_SYS_ADMIN);
    NEEDED
        .into_iter()
        .filter(|needed| match needed {
            Capability::CAP_BPF | Capability::CAP_PERFMON if admin => false,
            Capability::CAP_SYS_ADMIN if !to_mount => false,
            Capability::CAP_SYSLOG if !hidden => false,
            other => !held.contains(other),
        })
        .collect()
}

/// Whether the kernel shows this thread no addresses, as it does without
/// `CAP_SYSLOG` unless `kernel.perf_event_paranoid` is 1 or less, and to
/// everybody where `kernel.kptr_restrict` is 2. The programs need that of one
/// function, to tell a reader that sleeps in recv(2) from one in epoll(7).
pub fn symbols_are_hidden() -> bool {
    let mut start = vec![0; 1 << 16];
    // The first symbols are of per-CPU data, and one of them may be at 0.
    let read = File::open("/proc/kallsyms").and_then(|mut file| file.read(&mut start));
    let text = String::from_utf8_lossy(&start[..read.unwrap_or(0)]).into_owned();
    hides(&text)
}

fn hides(symbols: &str) -> bool {
    symbols
        .lines()
        .filter_map(|line| line.split(' ').next())
        .all(|address| address.bytes().all(|digit| digit == b'0'))
}

/// Does the kernel let this thread create such a map? Capabilities do not tell: those
/// of a user namespace do not count here, and a seccomp filter or a security module
/// may forbid bpf(2) altogether.
///
/// # Errors
///
/// What the kernel answered, if that was about permission.
pub fn bpf_permitted(kind: MapType) -> Result<(), String> {
    match map::create(kind) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// What replacing the programs of an instance takes.
///
/// # Errors
///
/// The kernel would answer EINVAL to some of what is missing, and load programs that
/// take event loops for blocking readers without the rest.
pub fn to_replace() -> Result<(), Denied> {
    all_held(&TO_REPLACE)?;
    bpf_permitted(MapType::Sockhash).map_err(Denied::Forbidden)
}

/// What walking over all sockets takes. A socket map would take `CAP_NET_ADMIN`, too.
pub fn to_adopt() -> Result<(), Denied> {
    all_held(&TO_ADOPT)?;
    bpf_permitted(MapType::LruHash).map_err(Denied::Forbidden)
}

fn all_held(needed: &[Capability]) -> Result<(), Denied> {
    let mut missing = missing(symbols_are_hidden());
    missing.retain(|capability| needed.contains(capability));
    if missing.is_empty() {
        return Ok(());
    }
    Err(Denied::Lacks(
        missing.iter().map(ToString::to_string).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Capability::CAP_BPF;
    use Capability::CAP_NET_ADMIN;
    use Capability::CAP_PERFMON;
    use Capability::CAP_SYS_ADMIN;
    use Capability::CAP_SYSLOG;

    #[test]
    fn what_is_missing() {
        let cases: [(&[Capability], &[Capability]); 5] = [
            (&NEEDED, &[]),
            (&[], &NEEDED),
            (&[CAP_SYS_ADMIN, CAP_NET_ADMIN], &[CAP_SYSLOG]),
            (&[CAP_SYS_ADMIN], &[CAP_NET_ADMIN, CAP_SYSLOG]),
            (
                &[CAP_BPF, CAP_NET_ADMIN],
                &[CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYSLOG],
            ),
        ];
        for (held, expected) in cases {
            let set = held.iter().copied().collect();
            for (to_mount, hidden) in [(true, true), (true, false), (false, true), (false, false)] {
                let unneeded = |c: &Capability| {
                    (*c == CAP_SYS_ADMIN && !to_mount) || (*c == CAP_SYSLOG && !hidden)
                };
                let expected: Vec<Capability> =
                    expected.iter().copied().filter(|c| !unneeded(c)).collect();
                let found = missing_from(&set, to_mount, hidden);
                assert_eq!(found, expected, "holding {held:?}, {to_mount} {hidden}");
            }
        }
    }

    #[test]
    fn hidden_addresses() {
        let hidden = "0000000000000000 A per_cpu_start\n0000000000000000 T _text\n";
        assert!(hides(hidden));
        assert!(hides(""));
        assert!(!hides(&hidden.replace("00 T", "10 T")));
    }
}
