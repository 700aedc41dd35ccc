//! The two programs that talk: child processes, each a single-threaded event
//! loop over non-blocking sockets.

mod client;
mod meter;
mod pattern;
mod server;
mod wire;

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;
use std::{io, process};

use clap::Args;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

pub use meter::{Findings, histogram};

use super::options::{Nagle, Wait, Workload};

/// What one child process is to do.
#[derive(Debug, Clone, Args)]
pub struct PeerOptions {
    /// Cgroup to join before any socket is made
    #[arg(long)]
    pub cgroup: PathBuf,
    /// Network namespace to enter
    #[arg(long)]
    pub netns: Option<PathBuf>,
    /// CPU to stay on
    #[arg(long)]
    pub cpu: usize,
    /// What to do
    #[arg(long, value_enum)]
    pub workload: Workload,
    /// Bytes of each message
    #[arg(long)]
    pub size: usize,
    /// Connections at one time
    #[arg(long, default_value_t = 1)]
    pub connections: u32,
    /// Requests under way on each
    #[arg(long, default_value_t = 1)]
    pub depth: u32,
    /// Nagle's algorithm
    #[arg(long, value_enum)]
    pub nagle: Nagle,
    /// Largest segment
    #[arg(long)]
    pub mss: Option<u32>,
    /// How to wait for the next message
    #[arg(long, value_enum)]
    pub wait: Wait,
    /// Serve here: an IPv4 address and port, or "unix"
    #[arg(long)]
    pub listen: Option<String>,
    /// Ask, at this address, as the server printed it
    #[arg(long, conflicts_with = "listen", required_unless_present = "listen")]
    pub connect: Option<String>,
    /// Send no more than so many bytes
    #[arg(long)]
    pub limit: Option<u64>,
    /// Seconds before the measurement
    #[arg(long)]
    pub warm_up: f64,
    /// Seconds of it
    #[arg(long)]
    pub seconds: f64,
}

impl PeerOptions {
    fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up)
    }

    fn seconds(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// Runs a child to its end. The server prints its address, and serves until its
/// standard input is closed; both print [`Findings`] as JSON last.
///
/// # Errors
///
/// What the kernel said, or that a byte was not the one that was sent.
pub fn run(options: &PeerOptions) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    fs::write(
        options.cgroup.join("cgroup.procs"),
        process::id().to_string(),
    )?;
    if let Some(path) = &options.netns {
        setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    }
    let mut cpus = CpuSet::new();
    cpus.set(options.cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let findings = match (&options.connect, &options.listen) {
        (Some(address), _) => client::run(options, address)?,
        (None, Some(address)) => server::run(options, address)?,
        (None, None) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    println!("{}", serde_json::to_string(&findings)?);
    Ok(())
}
