//! The bpffs that holds the pins.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::error::{Error, Result, on};

/// Where bpffs is mounted by convention.
pub const DEFAULT_DIR: &str = "/sys/fs/bpf";

/// Whether the directory lies on a bpffs.
pub fn is_bpffs(dir: &Path) -> Result<bool> {
    let fs = statfs(dir).map_err(|e| {
        on("look at bpffs", dir)(e.into()).hint("Name a directory with --bpffs DIR.")
    })?;
    Ok(fs.filesystem_type() == BPF_FS_MAGIC)
}

/// Makes sure that the directory lies on a bpffs, mounting one if need be: true
/// when it was.
pub fn ensure(dir: &Path) -> Result<bool> {
    if is_bpffs(dir)? {
        return Ok(false);
    }
    let _turn = turn(dir);
    if is_bpffs(dir)? {
        return Ok(false);
    }
    if fs::read_dir(dir)
        .map_err(|e| on("mount bpffs on", dir)(e).hint("Name a directory with --bpffs DIR."))?
        .next()
        .is_some()
    {
        return Err(Error::Failed(format!(
            "{} is not a bpffs, and not empty\n  Give an empty directory or one on a bpffs with --bpffs.",
            dir.display()
        )));
    }
    mount(
        Some("bpf"),
        dir,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .map(|()| true)
    .map_err(|e| match e {
        Errno::EPERM | Errno::EACCES => Error::Privileges(format!(
            "cannot mount bpffs on {at}: {e}; mounting needs CAP_SYS_ADMIN\n  \
             With that, or outside of the container:  mount -t bpf bpf {at}   or name a mounted one with --bpffs.",
            at = dir.display()
        )),
        _ => Error::path("mount bpffs on", dir, e.into())
            .hint("Mount it outside:  mount -t bpf bpf /sys/fs/bpf   or name another with --bpffs."),
    })
}

/// Of two commands at once one mounts. What is locked is below the mount, where anybody
/// may hold the lock: it is not waited for for long.
fn turn(dir: &Path) -> Option<Flock<File>> {
    const TRIES: u32 = 40;
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 0..TRIES {
        let below = File::open(dir).ok()?;
        match Flock::lock(below, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err(_) if is_bpffs(dir).is_ok_and(|mounted| mounted) => return None,
            Err(_) => sleep(PAUSE),
        }
    }
    None
}

/// What the kernel itself puts into every new one (`bpf_preload`).
const PRELOADED: [&str; 2] = ["maps.debug", "progs.debug"];

/// Unmounts one that `ensure` mounted, if nothing is in it. One that is in use is
/// left to its users.
pub fn unmount_if_unused(dir: &Path) {
    let is_pin = |entry: &fs::DirEntry| PRELOADED.iter().all(|name| entry.file_name() != *name);
    let used = fs::read_dir(dir).map(|entries| entries.flatten().any(|entry| is_pin(&entry)));
    if matches!(used, Ok(false)) {
        let _ = umount2(dir, MntFlags::UMOUNT_NOFOLLOW);
    }
}

/// One that `ensure` mounted, for who may have to take it away again. A thread does
/// that: it stays in the mount namespace where it was mounted, whatever `tracefs` does.
/// Where no thread can be had (`pids.max`), it stays mounted.
#[derive(Debug)]
pub struct Mount {
    undo: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Mount {
    /// Of this directory, which nobody has mounted anything else on meanwhile.
    pub fn of(dir: &Path) -> Self {
        let (undo, asked) = channel();
        let dir = dir.to_owned();
        let device = device_of(&dir);
        let undone = move || {
            // Somebody else's may be on top by then.
            if asked.recv().is_ok() && device_of(&dir) == device {
                unmount_if_unused(&dir);
            }
        };
        let thread = Builder::new().spawn(undone).ok();
        Self { undo, thread }
    }

    /// Unmounts it, if nothing is in it.
    pub fn undo(self) {
        if let (Ok(()), Some(thread)) = (self.undo.send(()), self.thread) {
            // What it could not do is not to be told before the first failure.
            let _ = thread.join();
        }
    }
}

fn device_of(dir: &Path) -> Option<u64> {
    fs::metadata(dir).ok().map(|found| found.dev())
}
