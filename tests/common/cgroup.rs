//! Cgroups of the test's own, under the cgroup2 mount.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::thread::sleep;
use std::time::Duration;

/// A cgroup that is removed on drop.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new cgroup directly under the mount.
    pub fn new(name: &str) -> Self {
        super::require_root();
        Self::make(mount().join(super::unique(&format!("sockaccel-test-{name}"))))
    }

    /// A new cgroup inside this one. Declare it later than its parent, so that
    /// it is dropped first.
    pub fn nested(&self, name: impl AsRef<Path>) -> Self {
        Self::make(self.path.join(name))
    }

    fn make(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
        Self { path }
    }

    /// For `--cgroup`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves this process in, until the guard is dropped. Sockets belong to the
    /// cgroup they were made in and do not move.
    pub fn join(&self) -> Joined {
        let home = current();
        enter(&self.path, process::id()).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
        Joined { home }
    }

    /// Moves another process in, for good.
    pub fn add(&self, pid: u32) {
        enter(&self.path, pid).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let parent = self.path.parent().unwrap_or(&self.path);
        // The kernel lets go of a process that has just exited a little later.
        for _ in 0..100 {
            let members = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines().filter_map(|pid| pid.parse().ok()) {
                let _ = enter(parent, pid);
            }
            match fs::remove_dir(&self.path) {
                Ok(()) => return,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return,
                Err(_) => sleep(Duration::from_millis(20)),
            }
        }
        eprintln!("left behind: {}", self.path.display());
    }
}

/// While this lives the test process is in the cgroup.
#[derive(Debug)]
pub struct Joined {
    home: PathBuf,
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Err(e) = enter(&self.home, process::id()) {
            eprintln!("back to {}: {e}", self.home.display());
        }
    }
}

fn enter(cgroup: &Path, pid: u32) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string())
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or below it in hybrid layouts.
pub fn mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc/mounts");
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .expect("no cgroup2 in /proc/mounts")
}

fn current() -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").expect("/proc/self/cgroup");
    let path = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .expect("no cgroup2 entry in /proc/self/cgroup");
    mount().join(path)
}
