//! Little memory for sockets.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::thread::sleep;
use std::time::Duration;

use super::cgroup::Cgroup;

/// Limits what all sockets may have until this is dropped. Declare it before them.
#[derive(Debug)]
pub enum Shortage {
    /// Of those that this process and its children make, by a memory cgroup of
    /// version 1.
    MemoryCgroup { own: PathBuf, home: PathBuf },
    /// Of all that the processes in a cgroup have, by `memory.max` of version 2: from
    /// [`Shortage::begin`] on, since the processes themselves count too.
    MemoryMax { file: PathBuf, current: PathBuf },
    /// Of all sockets of this machine, by `net.ipv4.tcp_mem`. Only on request: a machine
    /// that others use is not ours to limit.
    TcpMem { before: String },
    /// Nobody can be limited here.
    None,
}

const LIMIT: &str = "memory.kmem.tcp.limit_in_bytes";
const TCP_MEM: &str = "/proc/sys/net/ipv4/tcp_mem";
/// Set to `tcp_mem` where the machine is the test's own.
const WISH: &str = "SOCKACCEL_TEST_SHORTAGE";
const PAGE: u64 = 4096;

impl Shortage {
    /// `cgroup`: where the processes will be.
    pub fn new(cgroup: &Cgroup, bytes: u64) -> Self {
        super::require_root();
        match std::env::var(WISH).as_deref() {
            Ok("tcp_mem") => return Self::of_the_machine(bytes),
            Ok(other) => panic!("{WISH}={other}: not known"),
            Err(_) => {}
        }
        let file = cgroup.path().join("memory.max");
        if file.exists() {
            let current = cgroup.path().join("memory.current");
            return Self::MemoryMax { file, current };
        }
        let Some((mount, home)) = hierarchy() else {
            return Self::None;
        };
        let own = mount.join(super::unique("sockaccel-test-memory"));
        if !mount.join(LIMIT).exists() {
            return Self::None;
        }
        fs::create_dir(&own).expect("mkdir");
        let this = Self::MemoryCgroup {
            own: own.clone(),
            home,
        };
        fs::write(own.join(LIMIT), bytes.to_string()).expect(LIMIT);
        enter(&own).expect("cgroup.procs");
        this
    }

    fn of_the_machine(bytes: u64) -> Self {
        let before = fs::read_to_string(TCP_MEM).expect(TCP_MEM);
        let this = Self::TcpMem { before };
        let pages = bytes / PAGE;
        let limits = format!("{} {} {pages}", pages / 2, pages * 3 / 4);
        fs::write(TCP_MEM, limits).expect(TCP_MEM);
        this
    }

    /// What limits more than sockets leaves them `bytes` more than now.
    pub fn begin(&self, bytes: u64) {
        if let Self::MemoryMax { file, current } = self {
            let now = fs::read_to_string(current).expect("memory.current");
            let now: u64 = now.trim().parse().expect("a number");
            fs::write(file, (now + bytes).to_string()).expect("memory.max");
        }
    }

    /// Plenty again: what waits for memory goes on.
    pub fn lift(&self) {
        match self {
            Self::MemoryCgroup { own, .. } => fs::write(own.join(LIMIT), "-1").expect(LIMIT),
            Self::MemoryMax { file, .. } => fs::write(file, "max").expect("memory.max"),
            Self::TcpMem { before } => fs::write(TCP_MEM, before).expect(TCP_MEM),
            Self::None => {}
        }
    }

    /// For people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MemoryCgroup { .. } => "a memory cgroup",
            Self::MemoryMax { .. } => "memory.max",
            Self::TcpMem { .. } => "tcp_mem",
            Self::None => "nothing",
        }
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        match self {
            Self::None => {}
            // The cgroup may be gone.
            Self::MemoryMax { file, .. } => drop(fs::write(file, "max")),
            Self::TcpMem { before } => fs::write(TCP_MEM, before).expect(TCP_MEM),
            Self::MemoryCgroup { own, home } => {
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
