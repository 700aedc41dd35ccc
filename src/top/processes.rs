//! Names of processes, and whose socket an inode is.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

/// After this long a pid may be somebody else's.
const FRESH: Duration = Duration::from_secs(10);

/// What was found in /proc. It is asked only for what is shown, and rarely.
#[derive(Debug, Default)]
pub struct Processes {
    commands: HashMap<u32, (String, Instant)>,
    owners: HashMap<u32, u32>,
    searched: Option<Instant>,
}

impl Processes {
    /// The command of a process, `?` when it is gone.
    pub fn command(&mut self, pid: u32) -> &str {
        let now = Instant::now();
        let entry = self
            .commands
            .entry(pid)
            .and_modify(|known| {
                if now.duration_since(known.1) > FRESH {
                    *known = (command(pid), now);
                }
            })
            .or_insert_with(|| (command(pid), now));
        &entry.0
    }

    /// A process that has the socket with this inode open: one of them, and only
    /// if this process may see it. All processes are searched, at most once in a
    /// while.
    pub fn owner(&mut self, inode: u32) -> Option<u32> {
        let stale = self.searched.is_none_or(|at| at.elapsed() > FRESH);
        if inode != 0 && stale && !self.owners.contains_key(&inode) {
            self.owners = owners();
            self.searched = Some(Instant::now());
        }
        self.owners.get(&inode).copied()
    }
}

fn command(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(
        |_| "?".to_owned(),
        // Anything can be in a name, but not on a screen.
        |name| {
            let printable = |c: char| if c.is_control() { '?' } else { c };
            name.trim_end().chars().map(printable).collect()
        },
    )
}

fn owners() -> HashMap<u32, u32> {
    let mut owners = HashMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let files = fs::read_dir(process.path().join("fd"));
        for file in files.into_iter().flatten().flatten() {
            let inode = fs::read_link(file.path()).ok().and_then(|to| {
                let inode = to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
                inode.parse().ok()
            });
            if let Some(inode) = inode {
                owners.entry(inode).or_insert(pid);
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::linux::fs::MetadataExt;

    use super::*;

    #[test]
    fn own_name_and_own_sockets() {
        let mut processes = Processes::default();
        let own = std::process::id();
        let name = fs::read_to_string("/proc/self/comm").expect("a name");
        assert_eq!(processes.command(own), name.trim_end());
        assert_eq!(processes.command(u32::MAX), "?");
        let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
        let inode = fs::metadata(format!("/proc/self/fd/{fd}"))
            .expect("open")
            .st_ino();
        let inode = u32::try_from(inode).expect("an inode of sockfs");
        assert_eq!(processes.owner(inode), Some(own));
        assert_eq!(processes.owner(0), None);
    }
}
