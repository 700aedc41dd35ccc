//! Where cgroups of version 2 are, and the bpffs for the pins.

use std::fs;
use std::path::Path;

use super::super::finding::Finding;
use super::super::finding::Topic;
use super::super::finding::Verdict;
use crate::state::bpffs::is_bpffs;
use crate::state::cgroup::mounts;

/// cgroups(7)
pub const LAYOUT: Topic = Topic {
    name: "cgroup_layout",
    sound: "cgroups of version 2 are mounted; their paths are what --cgroup takes",
    otherwise: "no cgroup of version 2 can be named: mount -t cgroup2 none DIR",
};

/// Where instances are.
pub const BPFFS: Topic = Topic {
    name: "bpffs",
    sound: "instances are pinned there",
    otherwise: "enable mounts it, which needs CAP_SYS_ADMIN and a file system that can be written \
                to; in containers mount it from outside",
};

/// Unified, hybrid or none.
pub fn layout() -> Finding {
    let mounts = mounts();
    let mounted = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let old = mounted
        .lines()
        .any(|line| line.split(' ').nth(2) == Some("cgroup"));
    let paths: Vec<String> = mounts.iter().map(|p| p.display().to_string()).collect();
    if paths.is_empty() {
        let kind = if old {
            "version 1 only"
        } else {
            "none mounted"
        };
        return LAYOUT.finding(Verdict::Fails, kind);
    }
    let kind = if old { "hybrid" } else { "unified" };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::"));
    LAYOUT.finding(
        Verdict::Ok,
        format!(
            "{kind}, version 2 at {}; this process is in {}",
            paths.join(" and "),
            own.unwrap_or("none")
        ),
    )
}

/// Mounted or not.
pub fn bpffs(dir: &Path) -> Finding {
    match is_bpffs(dir) {
        Ok(true) => BPFFS.finding(Verdict::Ok, dir.display().to_string()),
        Ok(false) => BPFFS.finding(
            Verdict::Differs,
            format!("none is mounted on {}", dir.display()),
        ),
        Err(error) => BPFFS.finding(
            Verdict::Differs,
            error.to_string().lines().next().unwrap_or_default(),
        ),
    }
}
