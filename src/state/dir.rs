//! The directory of an instance, and the lock on all of them.
//!
//! Writers hold an exclusive flock(2) on `BPFFS/sockaccel`, readers a shared
//! one. An instance is built in a directory whose name starts with `_` and
//! renamed into place, so it is there as a whole or not at all, and the same
//! holds for each cgroup of it; what a killed writer left behind goes with the
//! next writer.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::sys::statfs::{BPF_FS_MAGIC, fstatfs};
use nix::unistd::geteuid;

use super::bpffs::{self, Mount};
use crate::error::{Error, Result, on};
use crate::remedy::quoted;
use crate::sys::bpf;

/// The instance when `--instance` is not given.
pub const DEFAULT_INSTANCE: &str = "default";

/// Names the instance where no option does; `run` sets it for its command.
pub const VARIABLE: &str = "SOCKACCEL_INSTANCE";

/// Names the bpffs likewise.
pub const BPFFS_VARIABLE: &str = "SOCKACCEL_BPFFS";

/// What to do where nothing can be made.
pub(super) const BPFFS_HINT: &str = "Is the bpffs writable? Another can be named with --bpffs DIR.";

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
pub struct Lock {
    _flock: Flock<File>,
    /// Where who has it has mounted the bpffs, too.
    mount: Option<Mount>,
}

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
        if bpffs.as_os_str().is_empty() {
            return Err(Error::Usage("bpffs \"\": name its directory".to_owned()));
        }
        Ok(Self {
            instance: instance.to_owned(),
            bpffs: bpffs.to_owned(),
        })
    }

    /// What names it on a command line, each option with a space before it.
    pub fn option(&self) -> String {
        let is_set = |variable| env::var_os(variable).is_some_and(|value| !value.is_empty());
        let mut options = Vec::new();
        if self.instance != DEFAULT_INSTANCE || is_set(VARIABLE) {
            options.push(format!(" --instance {}", self.instance));
        }
        if self.bpffs != Path::new(bpffs::DEFAULT_DIR) || is_set(BPFFS_VARIABLE) {
            options.push(format!(" --bpffs {}", quoted(&self.bpffs)));
        }
        options.concat()
    }

    /// A command about this instance, as it is to be typed.
    pub(super) fn command(&self, words: &str) -> String {
        format!("sockaccel {words}{}", self.option())
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

    /// Whether the instance is there. Not being allowed to look is an error:
    /// it must not pass for absence.
    pub fn exists(&self) -> Result<bool> {
        refuse_link(&self.base())?;
        is_there(&self.dir())
    }

    /// The shared lock, for readers; fails when the instance is not enabled.
    pub fn read(&self) -> Result<Lock> {
        if !self.exists()? {
            return Err(self.absent());
        }
        let lock = self.lock(FlockArg::LockShared)?;
        if self.exists()? {
            Ok(lock)
        } else {
            Err(self.absent())
        }
    }

    /// The exclusive lock, for writers. Makes bpffs and the base directory,
    /// and clears away what killed writers left.
    pub fn write(&self) -> Result<Lock> {
        let mut mount = None;
        match self.make_and_lock(&mut mount) {
            Ok(lock) => Ok(Lock { mount, ..lock }),
            Err(error) => {
                if let Some(mount) = mount {
                    self.remove_base_if_empty();
                    mount.undo();
                }
                Err(error)
            }
        }
    }

    fn make_and_lock(&self, mount: &mut Option<Mount>) -> Result<Lock> {
        loop {
            // Each time: `run` takes away again what it has mounted.
            if bpffs::ensure(&self.bpffs)? {
                *mount = Some(Mount::of(&self.bpffs));
            }
            let base = self.base();
            // Its lock is not for everybody to hold.
            match fs::DirBuilder::new().mode(0o700).create(&base) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                    if !bpffs::is_bpffs(&self.bpffs)? {
                        continue;
                    }
                    return Err(on("create", &base)(e).hint(BPFFS_HINT));
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

    /// The same for what must be enabled already; makes nothing. Also where
    /// only leftovers are there: they are cleared away before it fails.
    pub fn write_existing(&self) -> Result<Lock> {
        refuse_link(&self.base())?;
        while is_there(&self.base())? {
            match self.lock(FlockArg::LockExclusive) {
                Err(e) if e.is_not_found() => {}
                other => {
                    let lock = other?;
                    self.clear_leftovers()?;
                    if self.exists()? {
                        return Ok(lock);
                    }
                    self.remove_base_if_empty();
                    break;
                }
            }
        }
        Err(self.absent())
    }

    /// It is not enabled.
    pub fn absent(&self) -> Error {
        Error::NotEnabled {
            instance: self.instance.clone(),
            option: self.option(),
            others: self.instances().unwrap_or_default(),
        }
    }

    fn lock(&self, how: FlockArg) -> Result<Lock> {
        let base = self.base();
        let dir = open_base(&base)?;
        let metadata = dir.metadata().map_err(on("look at", &base))?;
        check_owner(&base, &metadata)?;
        let inode = metadata.ino();
        let lock = Flock::lock(dir, how).map_err(|(_, e)| on("lock", &base)(e.into()))?;
        match fs::symlink_metadata(&base) {
            Ok(now) if now.ino() == inode => Ok(Lock {
                _flock: lock,
                mount: None,
            }),
            Ok(_) => Err(on("lock", &base)(ErrorKind::NotFound.into())),
            Err(e) => Err(on("lock", &base)(e)),
        }
    }

    fn clear_leftovers(&self) -> Result<()> {
        clear_leftovers_in(&self.base())?;
        if self.exists()? {
            clear_leftovers_in(&self.dir())?;
        }
        Ok(())
    }

    /// Every instance of this bpffs.
    ///
    /// # Errors
    ///
    /// Those of readdir(3): only root may look.
    pub fn instances(&self) -> Result<Vec<String>> {
        let base = self.base();
        match open_base(&base) {
            Err(e) if e.is_not_found() => return Ok(Vec::new()),
            opened => opened?,
        };
        let entries = fs::read_dir(&base).map_err(on("read", &base))?;
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('_'))
            .collect();
        names.sort();
        Ok(names)
    }

    /// After a failure of what was to be the first command: what [`Place::write`]
    /// made goes again, unless there is something else in it.
    pub(super) fn give_up(&self, lock: Lock) {
        self.remove_base_if_empty();
        // A mount in which something is open cannot be taken away.
        let Lock {
            mount,
            _flock: flock,
        } = lock;
        drop(flock);
        if let Some(mount) = mount {
            mount.undo();
        }
    }

    /// Removes the base directory if no instance is left. The lock must be held.
    pub(super) fn remove_base_if_empty(&self) {
        // Not empty is the usual case, and not an error.
        let _ = fs::remove_dir(self.base());
    }
}

fn refuse_link(base: &Path) -> Result<()> {
    match fs::symlink_metadata(base) {
        Ok(found) if found.is_symlink() => check_owner(base, &found),
        _ => Ok(()),
    }
}

/// Opens the directory of all instances itself, not what a symbolic link of its name
/// leads to: leftovers are cleared away in it.
fn open_base(base: &Path) -> Result<File> {
    refuse_link(base)?;
    let dir = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(base)
        .map_err(on("open", base))?;
    let lies_on = fstatfs(dir.as_fd()).map_err(|e| on("look at", base)(e.into()))?;
    if lies_on.filesystem_type() != BPF_FS_MAGIC {
        return Err(Error::Failed(format!(
            "{} is not on a bpffs\n  Name a directory that is one with --bpffs DIR.",
            base.display()
        )));
    }
    Ok(dir)
}

/// Everybody may make directories and links on a bpffs, as on /tmp. In one that another
/// user made, that user could take every pin away, or hold the lock for ever.
fn check_owner(base: &Path, metadata: &fs::Metadata) -> Result<()> {
    let owner = metadata.uid();
    let own = owner == 0 || owner == geteuid().as_raw();
    if own && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{base} belongs to user {owner} and has mode {mode:03o}: others could take away what is pinned there\n  \
         If no instance of theirs is in it:  rm -r {base}   or name another bpffs with --bpffs.",
        base = base.display(),
        mode = metadata.mode() & 0o777,
    )))
}

fn is_there(dir: &Path) -> Result<bool> {
    match fs::metadata(dir) {
        Ok(found) => Ok(found.is_dir()),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(on("look at", dir)(e)),
    }
}

/// What is no link, or one of a kind that only unpinning detaches, says so: no
/// failure, as all of it is unpinned next.
fn detach_links(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            detach_links(&path);
        } else if let Ok(pin) = bpf::open_pinned(&path) {
            let _ = bpf::link_detach(pin.as_fd());
        }
    }
}

fn clear_leftovers_in(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(on("read directory", dir))? {
        let entry = entry.map_err(on("read directory", dir))?;
        if entry.file_name().to_string_lossy().starts_with('_') {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a directory of pins, and detaches the links among them.
pub(super) fn remove_tree(dir: &Path) -> Result<()> {
    detach_links(dir);
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map_err(on("remove", dir)),
    }
}
