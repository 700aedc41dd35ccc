//! Which process has which socket open, as /proc tells.

use std::fs;

/// A descriptor of a process that is a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSocket {
    /// The process.
    pub pid: u32,
    /// Its descriptor.
    pub fd: i32,
    /// The socket's inode, the same for every descriptor of it.
    pub inode: u64,
}

/// Every process of this pid namespace.
pub fn all() -> Vec<u32> {
    numbers("/proc")
}

/// The sockets that these processes have open; those of processes that end
/// meanwhile, or that may not be looked at, are missing.
pub fn sockets_of(pids: impl IntoIterator<Item = u32>) -> Vec<OpenSocket> {
    let mut sockets = Vec::new();
    for pid in pids {
        let dir = format!("/proc/{pid}/fd");
        for fd in numbers(&dir) {
            let inode = fs::read_link(format!("{dir}/{fd}")).ok().and_then(|link| {
                link.to_str()?
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .parse()
                    .ok()
            });
            if let Some(inode) = inode {
                sockets.push(OpenSocket { pid, fd, inode });
            }
        }
    }
    sockets
}

/// The name of a process, as in /proc/PID/comm.
pub fn name(pid: u32) -> Option<String> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(comm.trim_end().to_owned())
}

fn numbers<T: std::str::FromStr>(dir: &str) -> Vec<T> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
