//! BPF programs of others: on the same cgroups, and those that use sockets.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use libbpf_rs::ProgramType;
use libbpf_rs::query::ProgInfoIter;

use super::super::finding::Finding;
use super::super::finding::Topic;
use super::super::finding::Verdict;
use crate::state::cgroup::Cgroup;
use crate::sys::bpf::AttachType;
use crate::sys::bpf::next_program;
use crate::sys::bpf::programs_on;

/// Others that see connections being made.
pub const SOCK_OPS: Topic = Topic {
    name: "other_sock_ops",
    sound: "no other program is told of these cgroups' connections and socket options",
    otherwise: "other programs act on the same connections: both run, and a socket that one of \
                them puts into a map of its own is skipped as busy; where one sets callback flags \
                of its own, which replaces ours, a one-way stream stays enrolled and is slower than \
                on plain TCP, one that is not accelerated takes room while it is open, and all do \
                for as long again as they lasted, or four minutes; ACKs that another asked for \
                after us may end with ours",
};

/// Others that see packets.
pub const CGROUP_SKB: Topic = Topic {
    name: "cgroup_skb",
    sound: "no program looks at these cgroups' packets",
    otherwise: "these programs do not meet redirected bytes: what filters or counts by cgroup, \
                as systemd's IPAddressDeny= and IPAccounting= do, sees the beginning of a \
                connection only",
};

/// Others that redirect.
pub const SK_MSG: Topic = Topic {
    name: "other_sk_msg",
    sound: "no other tool redirects messages between sockets",
    otherwise: "another tool, or another instance, has programs for messages between sockets: a \
                socket can be in one map only, and is skipped as busy where the other was first",
};

const SOCKET_KINDS: [AttachType; 4] = [
    AttachType::CgroupSockOps,
    AttachType::CgroupSetsockopt,
    AttachType::CgroupConnect4,
    AttachType::CgroupConnect6,
];

const PACKET_KINDS: [AttachType; 2] = [AttachType::CgroupIngress, AttachType::CgroupEgress];

/// What runs for a cgroup, those attached above it included.
pub fn on(cgroup: &Path) -> Vec<Finding> {
    let name = cgroup.display().to_string();
    let dir = match Cgroup::open(cgroup) {
        Ok(cgroup) => cgroup.dir,
        Err(error) => {
            let why = error.to_string();
            let why = why.lines().next().unwrap_or_default();
            return [SOCK_OPS, CGROUP_SKB]
                .map(|topic| topic.finding(Verdict::NotChecked, why).about(&name))
                .into();
        }
    };
    [(SOCK_OPS, &SOCKET_KINDS[..]), (CGROUP_SKB, &PACKET_KINDS)]
        .map(|(topic, kinds)| row(&topic, &dir, kinds).about(&name))
        .into()
}

fn row(topic: &Topic, cgroup: &File, kinds: &[AttachType]) -> Finding {
    match others(cgroup, kinds) {
        Ok(names) if names.is_empty() => topic.finding(Verdict::Ok, "none"),
        Ok(names) => topic.finding(Verdict::Differs, names.join(", ")),
        Err(error) => topic.finding(Verdict::NotChecked, format!("bpf(2): {error}")),
    }
}

/// "name (id)" of each program that is not ours.
fn others(cgroup: &File, kinds: &[AttachType]) -> io::Result<Vec<String>> {
    let mut ids = Vec::new();
    for kind in kinds {
        ids.extend(programs_on(cgroup.as_fd(), *kind)?);
    }
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let known: Vec<(u32, String)> = ProgInfoIter::default()
        .map(|info| (info.id, info.name.to_string_lossy().into_owned()))
        .collect();
    Ok(ids
        .into_iter()
        .map(|id| {
            let name = known.iter().find(|(known, _)| *known == id);
            (id, name.map_or("?", |(_, name)| name))
        })
        .filter(|(_, name)| !name.starts_with("sa_"))
        .map(|(id, name)| format!("{name} (program {id})"))
        .collect())
}

/// Programs for messages that are loaded, whoever has them: ours as well, for
/// each instance.
pub fn sk_msg() -> Finding {
    if let Err(error) = next_program(0) {
        return SK_MSG.finding(Verdict::NotChecked, format!("bpf(2): {error}"));
    }
    let mut names: BTreeMap<String, u32> = BTreeMap::new();
    for info in ProgInfoIter::default().filter(|info| info.ty == ProgramType::SkMsg) {
        *names
            .entry(info.name.to_string_lossy().into_owned())
            .or_default() += 1;
    }
    if names.is_empty() {
        return SK_MSG.finding(Verdict::Ok, "none");
    }
    let list: Vec<String> = names
        .into_iter()
        .map(|(name, count)| format!("{count} named {name}"))
        .collect();
    SK_MSG.finding(Verdict::Differs, list.join(", "))
}
