//! Cgroups of the unified hierarchy.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs, statfs};

use crate::error::{Error, Result, on};

/// An open cgroup v2 directory.
#[derive(Debug)]
pub struct Cgroup {
    /// Its absolute path.
    pub path: PathBuf,
    /// Its id in the kernel: the inode number of the directory.
    pub id: u64,
    /// The open directory.
    pub dir: File,
}

impl Cgroup {
    /// Opens a directory that must be a cgroup v2.
    pub fn open(path: &Path) -> Result<Self> {
        let path = fs::canonicalize(path).map_err(|e| {
            Error::path("open cgroup", path, e)
                .hint(format!("Cgroups of version 2 are below {}.", mount_hint()))
        })?;
        let dir = File::open(&path).map_err(on("open cgroup", &path))?;
        let fs = fstatfs(dir.as_fd()).map_err(|e| on("look at", &path)(e.into()))?;
        if fs.filesystem_type() != CGROUP2_SUPER_MAGIC || !path.is_dir() {
            return Err(Error::Failed(format!(
                "{} is not a cgroup v2 directory\n  Cgroups of version 2 are below {}.",
                path.display(),
                mount_hint()
            )));
        }
        let id = dir.metadata().map_err(on("look at", &path))?.ino();
        Ok(Self { path, id, dir })
    }
}

/// Where cgroup v2 is mounted: /sys/fs/cgroup, or below it in hybrid layouts.
pub fn mounts() -> Vec<PathBuf> {
    fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (target, kind) = (fields.nth(1)?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(target))
        })
        // Others may be mounted on top.
        .filter(|at| statfs(at).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC))
        .collect()
}

/// The cgroup v2 that this process is in, as far as it can be seen from here.
pub fn own() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let path = mounts().first()?.join(path);
    path.is_dir().then_some(path)
}

/// The cgroups right below this one.
pub(super) fn children(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .map(|entry| entry.path())
}

/// Every cgroup below this one whose name starts so.
pub fn named(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let starts = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with(prefix)
    };
    children(dir)
        .flat_map(|child| {
            if starts(&child) {
                vec![child]
            } else {
                named(&child, prefix)
            }
        })
        .collect()
}

/// The processes that are in this very cgroup.
pub fn members(dir: &Path) -> Vec<u32> {
    fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| *pid > 0)
        .collect()
}

/// The processes that are in this cgroup or below it.
pub fn members_below(dir: &Path) -> Vec<u32> {
    let below = children(dir).flat_map(|child| members_below(&child));
    members(dir).into_iter().chain(below).collect()
}

/// The path of a cgroup id, if it still exists.
pub fn path_of(id: u64) -> Option<PathBuf> {
    mounts().into_iter().find_map(|root| find(&root, id))
}

/// Whether every cgroup there is has a path here: a cgroup namespace shows its own
/// ones only, and so does a mount of a part of them. What has no path then is removed.
pub fn all_visible() -> bool {
    /// Of the root of the hierarchy, in the kernel.
    const ROOT: u64 = 1;
    let is_root = |mount: &PathBuf| fs::metadata(mount).is_ok_and(|root| root.ino() == ROOT);
    mounts().iter().any(is_root)
}

fn find(dir: &Path, id: u64) -> Option<PathBuf> {
    if fs::metadata(dir).ok()?.ino() == id {
        return Some(dir.to_owned());
    }
    children(dir).find_map(|child| find(&child, id))
}

/// Whether this process sees only a part of the cgroups (`cgroup_namespaces(7)`).
fn in_namespace() -> bool {
    /// `PROC_CGROUP_INIT_INO` of `linux/proc_ns.h`, as the link shows it.
    const FIRST: &str = "cgroup:[4026531835]";
    fs::read_link("/proc/self/ns/cgroup").is_ok_and(|link| link != Path::new(FIRST))
}

fn mount_hint() -> String {
    match mounts().first() {
        Some(path) if in_namespace() => format!(
            "{}, as far as this cgroup namespace shows them: enable others from outside of the container",
            path.display()
        ),
        Some(path) => path.display().to_string(),
        None => "a cgroup2 mount, which this machine lacks:  mount -t cgroup2 none DIR".to_owned(),
    }
}
