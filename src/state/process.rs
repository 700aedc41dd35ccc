//! Which process has which socket open, as the walk of an instance tells, or /proc.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::num::NonZero;
use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use nix::fcntl::readlinkat;
use zerocopy::FromBytes as _;

use crate::maps::layout::{Open, Sock};
use crate::sys::bpf;

/// Descriptors that are worth threads.
const MANY: usize = 1000;

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

/// One that the walk `sa_iter_open` came by.
#[derive(Debug)]
pub struct Walked {
    /// Where it is open.
    pub socket: OpenSocket,
    /// What the walk told.
    pub told: Open,
    /// What the programs noted of it, where that follows.
    pub noted: Option<Box<Sock>>,
}

/// Every TCP socket that a process has open, once for each descriptor, in a fifth of the
/// time that /proc takes.
///
/// `None` where there is no such walk: with an instance that an earlier version made,
/// and where processes have other numbers, which are the walk's.
pub fn walked(dir: &Path) -> Option<Vec<Walked>> {
    in_first_namespace().then(|| walk(dir).ok()).flatten()
}

fn walk(dir: &Path) -> io::Result<Vec<Walked>> {
    let program = bpf::open_pinned(&dir.join("sa_iter_open"))?;
    let mut bytes = Vec::new();
    bpf::iterate(program.as_fd())?.read_to_end(&mut bytes)?;
    let mut rest = &bytes[..];
    Ok(std::iter::from_fn(|| next(&mut rest)).collect())
}

/// Takes a record off the bytes.
fn next(bytes: &mut &[u8]) -> Option<Walked> {
    let (told, mut rest) = Open::read_from_prefix(bytes).ok()?;
    let mut noted = None;
    if told.noted != 0 {
        let (sock, behind) = Sock::read_from_prefix(rest).ok()?;
        (noted, rest) = (Some(Box::new(sock)), behind);
    }
    *bytes = rest;
    Some(Walked {
        socket: OpenSocket {
            pid: told.tgid,
            fd: i32::try_from(told.fd).ok()?,
            inode: told.inode,
        },
        told,
        noted,
    })
}

/// The bytes as what a walk told: every record, up to the first that is none.
#[cfg(fuzzing)]
pub fn decoded(mut bytes: &[u8]) -> impl Iterator<Item = Walked> {
    std::iter::from_fn(move || {
        let before = bytes.len();
        let walked = next(&mut bytes)?;
        let noted = walked.noted.as_ref().map_or(0, |_| size_of::<Sock>());
        assert_eq!(before - bytes.len(), size_of::<Open>() + noted);
        Some(walked)
    })
}

/// The sockets that these processes have open, maybe only those of TCP.
pub fn sockets_among(dir: &Path, pids: Vec<u32>) -> Vec<OpenSocket> {
    let Some(walked) = walked(dir) else {
        return sockets_of(pids);
    };
    let pids: HashSet<u32> = pids.into_iter().collect();
    let sockets = walked.into_iter().map(|walked| walked.socket);
    sockets
        .filter(|socket| pids.contains(&socket.pid))
        .collect()
}

/// `PROC_PID_INIT_INO` of `linux/proc_ns.h`, as the link shows it.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

fn in_first_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(FIRST_NAMESPACE))
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
        let path = format!("/proc/{pid}/fd");
        let Ok(dir) = File::open(&path) else {
            continue;
        };
        let found = each(&numbers(&path), |fd| {
            let inode = inode_of_socket(&dir, fd)?;
            Some(OpenSocket { pid, fd, inode })
        });
        sockets.extend(found);
    }
    sockets
}

/// `None` for what is no socket.
fn inode_of_socket(dir: &File, fd: i32) -> Option<u64> {
    let link = readlinkat(dir, fd.to_string().as_str()).ok()?;
    let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
    inode.parse().ok()
}

/// What there is of each, in this order. Of many by all processors at a time: the
/// kernel takes some microseconds for each link.
fn each<T: Send>(fds: &[i32], look: impl Fn(i32) -> Option<T> + Sync) -> Vec<T> {
    let look_at = |fds: &[i32]| fds.iter().filter_map(|fd| look(*fd)).collect::<Vec<T>>();
    if fds.len() < MANY {
        return look_at(fds);
    }
    let parts = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        let threads: Vec<_> = fds
            .chunks(fds.len().div_ceil(parts))
            .map(|part| {
                let thread = thread::Builder::new().spawn_scoped(scope, || look_at(part));
                (part, thread)
            })
            .collect();
        let found = threads.into_iter().map(|(part, thread)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|e| resume_unwind(e)),
            // No more threads may be had (pids.max).
            Err(_) => look_at(part),
        });
        found.flatten().collect()
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_looked_at_in_their_order() {
        let fds: Vec<i32> = (0..10_000).collect();
        let odd = |fd| (fd % 2 == 1).then_some(fd);
        let wanted: Vec<i32> = fds.iter().copied().filter_map(odd).collect();
        assert_eq!(each(&fds, odd), wanted);
        assert_eq!(each(&fds[..10], odd), wanted[..5]);
    }
}
