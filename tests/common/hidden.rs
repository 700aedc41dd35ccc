//! A command in a cgroup namespace of its own, with another view of the cgroups.

use std::process::Command;

use super::cgroup::Cgroup;
use super::cgroup::mount;

/// Only those of the namespace are to be seen.
pub const OWN: &str = "umount -l \"$0\" && mount -t cgroup2 none \"$0\"";

/// Runs `hide` there, in sh, with the mount of the cgroups as `$0`; then the words that
/// are to be added. All in this cgroup.
pub fn command(cgroup: &Cgroup, hide: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\""])
        .arg(cgroup.path())
        .args(["unshare", "--cgroup", "--mount", "sh", "-c"])
        .arg(format!("{hide} && exec \"$@\""))
        .arg(mount());
    command
}
