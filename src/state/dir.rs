//! The directory of an instance, and the lock on all of them.
//!
//! Writers hold an exclusive flock(2) on `BPFFS/sockaccel`, readers a shared
//! one. An instance is built in a directory whose name starts with `_` and
//! renamed into place, so it is there as a whole or not at all; what a killed
//! writer left behind goes with the next writer.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::bpffs;
use crate::error::{Error, Result, on};

/// The instance when `--instance` is not given.
pub const DEFAULT_INSTANCE: &str = "default";

/// An instance's name and where it is pinned.
#[derive(Debug, Clone)]
pub struct Place {
    /// Name: letters, digits and `-`.
    pub instance: String,
    /// The bpffs.
    pub bpffs: PathBuf,
}

/// The lock, released on drop.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] Flock<File>);

impl Place {
    /// Checks the name: bpffs refuses dots, `_` is for directories in the making.
    pub fn new(instance: &str, bpffs: &Path) -> Result<Self> {
        let fits = (1..=32).contains(&instance.len())
            && instance
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !fits {
            return Err(Error::Usage(format!(
                "instance name {instance:?}: use 1 to 32 letters, digits and '-'"
            )));
        }
        Ok(Self {
            instance: instance.to_owned(),
            bpffs: bpffs.to_owned(),
        })
    }

    /// `BPFFS/sockaccel`
    pub fn base(&self) -> PathBuf {
        self.bpffs.join("sockaccel")
    }

    /// `BPFFS/sockaccel/INSTANCE`
    pub fn dir(&self) -> PathBuf {
        self.base().join(&self.instance)
    }

    /// Where a new one is built.
    pub(super) fn building(&self) -> PathBuf {
        self.base().join(format!("_new-{}", self.instance))
    }

    /// Where an old one is taken apart.
    pub(super) fn leaving(&self) -> PathBuf {
        self.base().join(format!("_old-{}", self.instance))
    }

    /// Whether the instance is there.
    pub fn exists(&self) -> bool {
        self.dir().is_dir()
    }

    /// The shared lock, for readers; fails when the instance is not enabled.
    pub fn read(&self) -> Result<Lock> {
        if !self.exists() {
            return Err(self.absent());
        }
        let lock = self.lock(FlockArg::LockShared)?;
        if self.exists() {
            Ok(lock)
        } else {
            Err(self.absent())
        }
    }

    /// The exclusive lock, for writers. Makes bpffs and the base directory,
    /// and clears away what killed writers left.
    pub fn write(&self) -> Result<Lock> {
        bpffs::ensure(&self.bpffs)?;
        loop {
            let base = self.base();
            match fs::create_dir(&base) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(on("create", &base)(e));
                }
                _ => {}
            }
            // Another command may have removed the empty directory meanwhile.
            match self.lock(FlockArg::LockExclusive) {
                Err(e) if e.is_not_found() => {}
                other => {
                    let lock = other?;
                    self.clear_leftovers()?;
                    return Ok(lock);
                }
            }
        }
    }

    fn absent(&self) -> Error {
        Error::NotEnabled {
            instance: self.instance.clone(),
        }
    }

    fn lock(&self, how: FlockArg) -> Result<Lock> {
        let base = self.base();
        let dir = File::open(&base).map_err(on("open", &base))?;
        let inode = dir.metadata().map_err(on("look at", &base))?.ino();
        let lock = Flock::lock(dir, how).map_err(|(_, e)| on("lock", &base)(e.into()))?;
        match fs::metadata(&base) {
            Ok(now) if now.ino() == inode => Ok(Lock(lock)),
            Ok(_) => Err(on("lock", &base)(std::io::ErrorKind::NotFound.into())),
            Err(e) => Err(on("lock", &base)(e)),
        }
    }

    fn clear_leftovers(&self) -> Result<()> {
        let base = self.base();
        for entry in fs::read_dir(&base).map_err(on("read directory", &base))? {
            let entry = entry.map_err(on("read directory", &base))?;
            if entry.file_name().to_string_lossy().starts_with('_') {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Every instance of this bpffs.
    pub fn instances(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.base())
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('_'))
            .collect();
        names.sort();
        names
    }

    /// Removes the base directory if no instance is left. The lock must be held.
    pub(super) fn remove_base_if_empty(&self) {
        // Not empty is the usual case, and not an error.
        let _ = fs::remove_dir(self.base());
    }
}

/// Removes a directory of pins. Unpinning a link detaches it.
pub(super) fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(on("remove", dir)),
    }
}
