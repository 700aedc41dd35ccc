//! Names of processes, and whose socket an inode is.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::state::process;

/// After this long a pid may be somebody else's.
const FRESH: Duration = Duration::from_secs(10);

/// What was found in /proc. It is asked only for what is shown, and rarely.
#[derive(Debug, Default)]
pub struct Processes {
    commands: HashMap<u32, (String, Instant)>,
    owners: HashMap<u64, u32>,
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
        let inode = u64::from(inode);
        let stale = self.searched.is_none_or(|at| at.elapsed() > FRESH);
        if inode != 0 && stale && !self.owners.contains_key(&inode) {
            self.owners = owners();
            self.searched = Some(Instant::now());
        }
        self.owners.get(&inode).copied()
    }
}

fn command(pid: u32) -> String {
    // Anything can be in a name, but not on a screen.
    let printable = |c: char| if c.is_control() { '?' } else { c };
    process::name(pid).map_or_else(
        || "?".to_owned(),
        |name| name.chars().map(printable).collect(),
    )
}

fn owners() -> HashMap<u64, u32> {
    let mut owners = HashMap::new();
    for socket in process::sockets_of(process::all()) {
        owners.entry(socket.inode).or_insert(socket.pid);
    }
    owners
}

#[cfg(test)]
mod tests {
    use std::fs;
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
