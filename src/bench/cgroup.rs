//! Cgroups of the benchmark's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::Error;
use crate::output::say;
use crate::state::cgroup::mounts;

/// A cgroup that is removed in the end.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    name: &'static str,
}

impl Cgroup {
    /// A new one, directly below the first mount.
    pub fn create(name: &'static str) -> Result<Self, Error> {
        let path = mounts()
            .into_iter()
            .next()
            .ok_or(Error::NoCgroup2)?
            .join(format!("sockaccel-bench-{}-{name}", std::process::id()));
        fs::create_dir(&path)
            .map_err(|err| Error::io(format!("creating {}", path.display()), err))?;
        Ok(Self { path, name })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it was made for.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that was just reaped may still be counted for a moment.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        say(format_args!(
            "sockaccel: bench: could not remove {}",
            self.path.display()
        ));
    }
}
