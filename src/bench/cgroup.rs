//! Cgroups of the benchmark's own.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use super::Error;

/// A cgroup that is removed in the end.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn create(name: &str) -> Result<Self, Error> {
        let mounts = fs::read_to_string("/proc/mounts")
            .map_err(|err| Error::io("reading /proc/mounts", err))?;
        let path = mount(&mounts)
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

/// Where cgroup2 is mounted, with the octal escapes of /proc/mounts undone.
fn mount(mounts: &str) -> Option<PathBuf> {
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    Some(line.split(' ').nth(1)?.replace("\\040", " ").into())
}

#[cfg(test)]
mod tests {
    use super::mount;
    use std::path::PathBuf;

    #[test]
    fn finds_the_mount() {
        for (mounts, found) in [
            (
                "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
                Some("/sys/fs/cgroup"),
            ),
            (
                "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                 none /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
                Some("/sys/fs/cgroup/unified"),
            ),
            ("none /a\\040b cgroup2 rw 0 0\n", Some("/a b")),
            ("cgroup2 /proc proc rw 0 0\n", None),
        ] {
            assert_eq!(mount(mounts), found.map(PathBuf::from), "{mounts}");
        }
    }
}
