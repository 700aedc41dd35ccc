//! Cgroups of the benchmark's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::Error;
use crate::state::cgroup::mounts;

/// A cgroup that is removed in the end.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn create(name: &str) -> Result<Self, Error> {
        let path = mounts()
            .into_iter()
            .next()
            .ok_or(Error::NoCgroup2)?
            .join(format!("sockaccel-bench-{}-{name}", std::process::id()));
        fs::create_dir(&path)
            .map_err(|err| Error::io(format!("creating {}", path.display()), err))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that was just reaped may still be counted for a moment.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        eprintln!("sockaccel: bench: could not remove {}", self.0.display());
    }
}
