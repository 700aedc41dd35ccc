//! Processes that get little CPU time.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use super::cgroup::Cgroup;

/// 2 of 20 ms, by `cpu.max` or what it was called before; until dropped. Declare
/// it before the process, which must be gone by then.
#[derive(Debug)]
pub struct Throttle {
    own: Option<PathBuf>,
    procs: PathBuf,
}

impl Throttle {
    /// Where the unified hierarchy has the controller, for processes of this
    /// cgroup; else in a cgroup of version 1.
    pub fn new(cgroup: &Cgroup) -> Self {
        let unified = cgroup.path().join("cpu.max");
        if unified.exists() {
            fs::write(&unified, "2000 20000").expect("cpu.max");
            return Self {
                own: None,
                procs: cgroup.path().join("cgroup.procs"),
            };
        }
        let mounts = fs::read_to_string("/proc/mounts").expect("/proc/mounts");
        let mount = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields[2] == "cgroup" && fields[3].split(',').any(|o| o == "cpu"))
            .map(|fields| PathBuf::from(fields[1]))
            .expect("a cgroup hierarchy with the cpu controller");
        let own = mount.join(super::unique("sockaccel-test-cpu"));
        fs::create_dir(&own).expect("mkdir");
        fs::write(own.join("cpu.cfs_period_us"), "20000").expect("cpu.cfs_period_us");
        fs::write(own.join("cpu.cfs_quota_us"), "2000").expect("cpu.cfs_quota_us");
        Self {
            procs: own.join("cgroup.procs"),
            own: Some(own),
        }
    }

    pub fn add(&self, pid: u32) {
        fs::write(&self.procs, pid.to_string()).expect("cgroup.procs");
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let Some(own) = &self.own else {
            return;
        };
        for _ in 0..100 {
            match fs::remove_dir(own) {
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                    sleep(Duration::from_millis(20));
                }
                _ => return,
            }
        }
        eprintln!("left behind: {}", own.display());
    }
}
