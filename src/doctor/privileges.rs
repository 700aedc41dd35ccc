//! What the calling thread may do.

use caps::CapSet;
use caps::Capability;
use caps::CapsHashSet;
use libbpf_rs::ErrorKind;
use libbpf_rs::MapType;

use super::map;
use crate::state::tracefs;

/// Capabilities that enabling needs, in the order they are reported:
/// to load programs and create maps; to attach to a cgroup and to use socket
/// maps; to read kernel memory from programs and to attach to a tracepoint;
/// and, where tracefs or bpffs has to be mounted first, to mount.
pub const NEEDED: [Capability; 4] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_ADMIN,
];

/// Those of [`NEEDED`] that the calling thread lacks. A bpffs that is missing
/// is told of when it is mounted.
pub fn missing() -> Vec<Capability> {
    // What cannot be read is not held.
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    missing_from(&held, !tracefs::is_visible())
}

/// `CAP_SYS_ADMIN` stands in for the two that were split off it in Linux 5.8
/// (a17b53c4a4b5, 980737282232).
fn missing_from(held: &CapsHashSet, to_mount: bool) -> Vec<Capability> {
    let admin = held.contains(&Capability::CAP_SYS_ADMIN);
    NEEDED
        .into_iter()
        .filter(|needed| match needed {
            Capability::CAP_BPF | Capability::CAP_PERFMON if admin => false,
            Capability::CAP_SYS_ADMIN if !to_mount => false,
            other => !held.contains(other),
        })
        .collect()
}

/// Does the kernel let this thread create a socket map? Capabilities do not
/// tell: those of a user namespace do not count here, and a seccomp filter or
/// a security module may forbid bpf(2) altogether.
///
/// # Errors
///
/// What the kernel answered, if that was about permission.
pub fn bpf_permitted() -> libbpf_rs::Result<()> {
    match map::create(MapType::Sockhash) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Capability::CAP_BPF;
    use Capability::CAP_NET_ADMIN;
    use Capability::CAP_PERFMON;
    use Capability::CAP_SYS_ADMIN;

    #[test]
    fn what_is_missing() {
        let cases: [(&[Capability], &[Capability]); 5] = [
            (&NEEDED, &[]),
            (&[], &NEEDED),
            (&[CAP_SYS_ADMIN, CAP_NET_ADMIN], &[]),
            (&[CAP_SYS_ADMIN], &[CAP_NET_ADMIN]),
            (&[CAP_BPF, CAP_NET_ADMIN], &[CAP_PERFMON, CAP_SYS_ADMIN]),
        ];
        for (held, expected) in cases {
            let set = held.iter().copied().collect();
            assert_eq!(missing_from(&set, true), expected, "holding {held:?}");
            let without: Vec<Capability> = expected
                .iter()
                .copied()
                .filter(|capability| *capability != CAP_SYS_ADMIN)
                .collect();
            assert_eq!(missing_from(&set, false), without, "holding {held:?}");
        }
    }
}
