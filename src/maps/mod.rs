//! Typed access to each map of an instance.

pub mod events;
pub mod layout;
pub mod sockets;
mod stats;
mod table;

pub use stats::Stats;
#[cfg(fuzzing)]
pub use stats::fuzz as fuzz_stats;
pub use table::{Plain, Table};

use std::path::Path;

use libbpf_rs::MapHandle;

use crate::error::{Error, Result};

/// The map pinned as `name` in an instance's directory.
pub fn open(dir: &Path, name: &str) -> Result<MapHandle> {
    let path = dir.join(name);
    MapHandle::from_pinned_path(&path)
        .map_err(|e| Error::bpf("open map", path.display().to_string(), &e))
}
