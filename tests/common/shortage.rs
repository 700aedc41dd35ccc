//! Little memory for sockets.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::thread::sleep;
use std::time::Duration;

/// Limits what all sockets may have until this is dropped. Declare it before them.
///
/// `memory.max` of version 2 is no way to do so: at that limit a send wakes the OOM killer
/// (`mem_cgroup_charge_skmem` charges with `GFP_KERNEL`), by plain TCP too.
#[derive(Debug)]
pub enum Shortage {
    /// Of those that this process and its children make, by a memory cgroup of
    /// version 1.
    MemoryCgroup { own: PathBuf, home: PathBuf },
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
const PLENTY: u64 = 1 << 30;

impl Shortage {
    pub fn new(bytes: u64) -> Self {
        super::require_root();
        match std::env::var(WISH).as_deref() {
            Ok("tcp_mem") => return Self::of_the_machine(bytes),
            Ok(other) => panic!("{WISH}={other}: not known"),
            Err(_) => {}
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
        limit_tcp(bytes);
        this
    }

    /// Plenty again: what waits for memory goes on.
    pub fn lift(&self) {
        match self {
            Self::MemoryCgroup { own, .. } => fs::write(own.join(LIMIT), "-1").expect(LIMIT),
            // Each socket may have a little all the same, which together can be more
            // than this machine's own limit.
            Self::TcpMem { .. } => limit_tcp(PLENTY),
            Self::None => {}
        }
    }

    /// For people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MemoryCgroup { .. } => "a memory cgroup",
            Self::TcpMem { .. } => "tcp_mem",
            Self::None => "nothing",
        }
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        match self {
            Self::None => {}
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

fn limit_tcp(bytes: u64) {
    let pages = bytes / PAGE;
    let limits = format!("{} {} {pages}", pages / 2, pages * 3 / 4);
    fs::write(TCP_MEM, limits).expect(TCP_MEM);
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
