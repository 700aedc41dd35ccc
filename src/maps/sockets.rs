//! The enrolled sockets, as the iterator `sa_iter_dump` tells them.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

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
    let program = dir.join(program);
    let map = dir.join("sa_sockhash");
    let program_fd =
        sys::bpf::open_pinned(&program).map_err(|e| Error::path("open program", &program, e))?;
    let map_fd = sys::bpf::open_pinned(&map).map_err(|e| Error::path("open map", &map, e))?;
    let mut bytes = Vec::new();
    sys::bpf::iterate_sockmap(program_fd.as_fd(), map_fd.as_fd())
        .and_then(|mut iterator| iterator.read_to_end(&mut bytes))
        .map_err(|e| Error::path("iterate over map", &map, e))?;
    let records: Vec<Dump> = bytes
        .chunks(size_of::<Dump>())
        .map_while(|record| Dump::read_from_bytes(record).ok())
        .collect();
    if records.len() * size_of::<Dump>() != bytes.len() {
        return Err(Error::Refused(format!(
            "{} speaks another layout than this version of sockaccel",
            program.display()
        )));
    }
    Ok(records)
}
