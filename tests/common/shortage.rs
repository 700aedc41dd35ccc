//! Little memory for sockets.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::thread::sleep;
use std::time::Duration;

/// What all sockets may have until this is dropped. Declare it before them.
#[derive(Debug)]
pub enum Shortage {
    /// Those that this process and its children make, by a memory cgroup of
    /// version 1.
    Cgroup { own: PathBuf, home: PathBuf },
    /// Nobody can be limited here.
    None,
}

const LIMIT: &str = "memory.kmem.tcp.limit_in_bytes";

impl Shortage {
    pub fn new(bytes: u64) -> Self {
        super::require_root();
        let Some((mount, home)) = hierarchy() else {
            return Self::None;
        };
        let own = mount.join(super::unique("sockaccel-test-memory"));
        if !mount.join(LIMIT).exists() {
            return Self::None;
        }
        fs::create_dir(&own).expect("mkdir");
        let this = Self::Cgroup {
            own: own.clone(),
            home,
        };
        fs::write(own.join(LIMIT), bytes.to_string()).expect(LIMIT);
        enter(&own).expect("cgroup.procs");
        this
    }

    /// Plenty again: what waits for memory goes on.
    pub fn lift(&self) {
        match self {
            Self::Cgroup { own, .. } => fs::write(own.join(LIMIT), "-1").expect(LIMIT),
            Self::None => {}
        }
    }

    /// For people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cgroup { .. } => "a memory cgroup",
            Self::None => "nothing",
        }
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        match self {
            Self::None => {}
            Self::Cgroup { own, home } => {
                enter(home).expect("back home");
                for _ in 0..100 {
                    match fs::remove_dir(&*own) {
                        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                            sleep(Duration::from_millis(20));
                        }
                        _ => return,
                    }
                }
                eprintln!("left behind: {}", own.display());
            }
        }
    }
}

fn enter(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), process::id().to_string())
}

/// Where version 1 has the memory controller, and the cgroup of it that we are in.
fn hierarchy() -> Option<(PathBuf, PathBuf)> {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc/mounts");
    let mount = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[2] == "cgroup" && fields[3].split(',').any(|o| o == "memory"))
        .map(|fields| PathBuf::from(fields[1]))?;
    let own = fs::read_to_string("/proc/self/cgroup").expect("/proc/self/cgroup");
    let home = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers
            .split(',')
            .any(|c| c == "memory")
            .then_some(path)
    })?;
    let home = mount.join(home.trim_start_matches('/'));
    Some((mount, home))
}
