//! The enrolled sockets, as the iterator `sa_iter_dump` tells them.

use std::collections::HashSet;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use libbpf_rs::MapCore as _;
use zerocopy::FromBytes;

use super::layout::Dump;
use crate::error::{Error, Result};
use crate::sys;

/// Every socket in `sa_sockhash`, each once, in no order.
pub fn read(dir: &Path) -> Result<Vec<Dump>> {
    walk(dir, "sa_iter_dump")
}

/// Runs an iterator program over `sa_sockhash`; its records.
pub fn walk(dir: &Path, program: &str) -> Result<Vec<Dump>> {
    let bytes = walk_unread(dir, program)?;
    let mut records: Vec<Dump> = bytes
        .chunks(size_of::<Dump>())
        .map_while(|record| Dump::read_from_bytes(record).ok())
        .collect();
    if records.len() * size_of::<Dump>() != bytes.len() {
        return Err(Error::Refused(format!(
            "{} speaks another layout than this version of sockaccel",
            dir.join(program).display()
        )));
    }
    // Each read(2) of the iterator begins again with the bucket of the table
    // where the one before ended (sock_hash_seq_start).
    let mut seen = HashSet::with_capacity(records.len());
    records.retain(|record| seen.insert(record.sock.cookie));
    Ok(records)
}

/// The same where the records may be of another layout: what it printed.
pub fn walk_unread(dir: &Path, program: &str) -> Result<Vec<u8>> {
    let program = dir.join(program);
    let map = dir.join("sa_sockhash");
    let program_fd =
        sys::bpf::open_pinned(&program).map_err(|e| Error::path("open program", &program, e))?;
    let map_fd = sys::bpf::open_pinned(&map).map_err(|e| Error::path("open map", &map, e))?;
    let mut bytes = Vec::new();
    sys::bpf::iterate_sockmap(program_fd.as_fd(), map_fd.as_fd())
        .and_then(|mut iterator| iterator.read_to_end(&mut bytes))
        .map_err(|e| Error::path("iterate over map", &map, e))?;
    Ok(bytes)
}

/// How many sockets are enrolled, in any layout. What leaves meanwhile may be counted.
pub fn number(dir: &Path) -> Result<usize> {
    // When its key has left the kernel begins anew.
    let keys: HashSet<Vec<u8>> = super::open(dir, "sa_sockhash")?.keys().collect();
    Ok(keys.len())
}

/// The state names of `ss`; the kernel's are in `include/net/tcp_states.h`
const TCP_STATES: [&str; 13] = [
    "UNKNOWN",
    "ESTAB",
    "SYN-SENT",
    "SYN-RECV",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "TIME-WAIT",
    "UNCONN",
    "CLOSE-WAIT",
    "LAST-ACK",
    "LISTEN",
    "CLOSING",
    "NEW-SYN-RECV",
];

/// The name of a TCP state.
pub fn state_name(state: u32) -> &'static str {
    TCP_STATES.get(state as usize).unwrap_or(&TCP_STATES[0])
}
