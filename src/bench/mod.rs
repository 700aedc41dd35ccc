//! How much faster is it? Request and response between two non-blocking
//! programs, in short cells that take turns: plain TCP, sockaccel, the
//! textbook sockmap program and `AF_UNIX`. What counts are the ratios to plain
//! TCP within each round, because machines drift.

mod accelerator;
mod cgroup;
mod peer;
pub mod report;
mod stats;
mod watch;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, io};

use clap::{Args, ValueEnum};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use schemars::JsonSchema;
use serde::Serialize;

use accelerator::{Runs, Sockaccel, Textbook};
use cgroup::Cgroup;
use peer::Exchange;
use watch::{Peer, Watch};

pub use peer::{PeerOptions, Transport, Wait, run as run_peer};
pub use report::Report;

use crate::sys::bpf_stats::RunTimeStats;

/// Name of the hidden subcommand whose body is [`run_peer`]: the benchmark
/// starts its own executable with it for each of the two programs.
pub const PEER_COMMAND: &str = "bench-peer";

/// Of the bytes, what must have been redirected for a measurement to count.
const ACCELERATED: f64 = 0.9;

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Bytes of each message; several sizes are measured one after the other
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "64",
        value_name = "BYTES"
    )]
    pub size: Vec<usize>,
    /// What to compare; plain TCP is always measured, twice, for the noise
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "sockaccel,textbook,unix"
    )]
    pub modes: Vec<Mode>,
    /// Both programs on one CPU, or on one each
    #[arg(long, value_enum, default_value_t = Cpu::Same)]
    pub cpu: Cpu,
    /// How the programs wait for a message
    #[arg(long, value_enum, default_value_t = Wait::Epoll)]
    pub wait: Wait,
    /// Also connections to, and from, a peer outside the enabled cgroup
    #[arg(long)]
    pub remote: bool,
    /// Rounds: in each, every mode is measured once
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 0.25, value_parser = seconds)]
    pub seconds: f64,
    /// Seconds before it that do not count
    #[arg(long, default_value_t = 0.05, value_parser = seconds)]
    pub warm_up: f64,
    /// The sockaccel to measure [default: this one]
    #[arg(long, hide = true)]
    pub sockaccel: Option<PathBuf>,
    /// JSON instead of a table
    #[arg(skip)]
    pub json: bool,
}

/// How the bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Plain TCP over 127.0.0.1
    Tcp,
    /// TCP with sockaccel
    Sockaccel,
    /// TCP with a minimal sockmap program
    Textbook,
    /// A stream `AF_UNIX` socket
    Unix,
    /// From an enabled cgroup to a peer outside of it.
    #[value(skip)]
    ToRemote,
    /// Into an enabled cgroup from a peer outside of it.
    #[value(skip)]
    FromRemote,
    /// Plain TCP again: its ratio shows the noise.
    #[value(skip)]
    TcpAgain,
}

impl Mode {
    /// Its name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Sockaccel => "sockaccel",
            Self::Textbook => "textbook",
            Self::Unix => "unix",
            Self::ToRemote => "to-remote",
            Self::FromRemote => "from-remote",
            Self::TcpAgain => "tcp-again",
        }
    }
}

/// Where the two programs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cpu {
    /// Both on one
    Same,
    /// On one each
    Cross,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// libbpf refused something.
    #[error("{0}: {1}")]
    Bpf(&'static str, #[source] libbpf_rs::Error),
    /// One of the two programs failed.
    #[error("{0}")]
    Peer(String),
    /// A command of sockaccel failed.
    #[error("{0}")]
    Command(String),
    /// There is nowhere to make cgroups.
    #[error("no cgroup2 file system is mounted")]
    NoCgroup2,
    /// Spinning on a shared CPU would measure the scheduler.
    #[error("--wait spin and --wait read need --cpu cross")]
    SpinOnOneCpu,
    /// `--cpu cross` on one CPU.
    #[error("--cpu cross needs two CPUs, and this process may use only one")]
    OneCpu,
    /// No bytes in the message.
    #[error("--size must be between 1 and 16777216")]
    Size,
    /// The ratio printed is not one of an accelerated connection.
    #[error(
        "only {share:.3} of the bytes of {size} byte messages were redirected, at least \
         {ACCELERATED} must be: see `sockaccel stats` for the reasons"
    )]
    NotAccelerated {
        /// Bytes of a message.
        size: usize,
        /// What part of all bytes was redirected.
        share: f64,
    },
    /// SIGINT, SIGTERM or SIGHUP.
    #[error("interrupted by {0}")]
    Interrupted(Signal),
}

impl From<Error> for crate::error::Error {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::SpinOnOneCpu | Error::Size => Self::Usage(text),
            Error::Io(_, source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::Privileges(text)
            }
            _ => Self::Failed(text),
        }
    }
}

impl Error {
    fn io(what: impl Into<String>, err: impl Into<io::Error>) -> Self {
        Self::Io(what.into(), err.into())
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds between 0 and 3600".to_owned()),
    }
}

/// Measures and prints. Everything made for it is removed again, whatever
/// happens.
///
/// # Errors
///
/// [`Error::NotAccelerated`] when the figures printed do not count; anything
/// else when there are none.
pub fn run(options: &Options) -> Result<(), Error> {
    let report = measure(options)?;
    if options.json {
        println!("{}", report.json());
    } else {
        print!("{report}");
    }
    match report.not_accelerated(ACCELERATED) {
        None => Ok(()),
        Some((size, share)) => Err(Error::NotAccelerated { size, share }),
    }
}

/// One measurement of one mode.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    exchange: Exchange,
    /// By sockaccel's own counters; only where it is enabled.
    redirected: Option<u64>,
}

fn measure(options: &Options) -> Result<Report, Error> {
    if options.wait != Wait::Epoll && options.cpu == Cpu::Same {
        return Err(Error::SpinOnOneCpu);
    }
    if options
        .size
        .iter()
        .any(|size| !(1..=1 << 24).contains(size))
    {
        return Err(Error::Size);
    }
    let modes = modes(options);
    let bench = Bench::set_up(options, &modes)?;
    let mut report = Report::new(options, &modes);
    for &size in &options.size {
        for _ in 0..options.rounds {
            for &mode in &modes {
                report.add(size, mode, bench.sample(mode, size)?);
            }
        }
        for (mode, program) in [(Mode::Sockaccel, "sa_skmsg"), (Mode::Textbook, "tb_skmsg")] {
            if modes.contains(&mode) {
                report.verdict(size, program, bench.verdict_ns(mode, program, size)?);
            }
        }
    }
    Ok(report)
}

/// In the order in which they take turns.
fn modes(options: &Options) -> Vec<Mode> {
    let mut modes = vec![Mode::Tcp];
    for &mode in &options.modes {
        if !modes.contains(&mode) {
            modes.push(mode);
        }
    }
    if options.remote {
        modes.extend([Mode::ToRemote, Mode::FromRemote]);
    }
    modes.push(Mode::TcpAgain);
    modes
}

/// Everything made for the benchmark. Fields are dropped in this order:
/// programs leave a cgroup before it goes.
struct Bench<'a> {
    options: &'a Options,
    cpus: (usize, usize),
    sockaccel: Option<Sockaccel>,
    _textbook: Option<Textbook>,
    plain: Cgroup,
    enabled: Option<Cgroup>,
    textbook_cgroup: Option<Cgroup>,
    // Last: cleaning up must not be cut short by a second signal.
    watch: Watch,
}

impl<'a> Bench<'a> {
    fn set_up(options: &'a Options, modes: &[Mode]) -> Result<Self, Error> {
        let watch = Watch::new()?;
        let cpus = cpus(options.cpu)?;
        let plain = Cgroup::create("plain")?;
        let needs = |wanted: &[Mode]| modes.iter().any(|mode| wanted.contains(mode));
        let enabled = needs(&[Mode::Sockaccel, Mode::ToRemote, Mode::FromRemote])
            .then(|| Cgroup::create("sockaccel"))
            .transpose()?;
        let textbook_cgroup = needs(&[Mode::Textbook])
            .then(|| Cgroup::create("textbook"))
            .transpose()?;
        let textbook = textbook_cgroup
            .as_ref()
            .map(|cgroup| Textbook::attach(cgroup.path()))
            .transpose()?;
        let own = || env::current_exe().map_err(|err| Error::io("finding this program", err));
        let sockaccel = enabled
            .as_ref()
            .map(|cgroup| {
                let binary = options.sockaccel.clone().map_or_else(own, Ok)?;
                Sockaccel::enable(&binary, cgroup.path())
            })
            .transpose()?;
        Ok(Self {
            options,
            cpus,
            sockaccel,
            _textbook: textbook,
            plain,
            enabled,
            textbook_cgroup,
            watch,
        })
    }

    /// Cgroups of the server and of the client.
    fn cgroups(&self, mode: Mode) -> (&Cgroup, &Cgroup) {
        let plain = &self.plain;
        let enabled = self.enabled.as_ref().unwrap_or(plain);
        let textbook = self.textbook_cgroup.as_ref().unwrap_or(plain);
        match mode {
            Mode::Tcp | Mode::TcpAgain | Mode::Unix => (plain, plain),
            Mode::Sockaccel => (enabled, enabled),
            Mode::Textbook => (textbook, textbook),
            Mode::ToRemote => (plain, enabled),
            Mode::FromRemote => (enabled, plain),
        }
    }

    fn sample(&self, mode: Mode, size: usize) -> Result<Sample, Error> {
        let counts = matches!(mode, Mode::Sockaccel | Mode::ToRemote | Mode::FromRemote);
        let sockaccel = self.sockaccel.as_ref().filter(|_| counts);
        let before = sockaccel.map(Sockaccel::redirected_bytes).transpose()?;
        let exchange = self.exchange(mode, size, self.options.seconds)?;
        let after = sockaccel.map(Sockaccel::redirected_bytes).transpose()?;
        Ok(Sample {
            exchange,
            redirected: after.zip(before).map(|(after, before)| after - before),
        })
    }

    /// One connection between two new processes.
    fn exchange(&self, mode: Mode, size: usize, seconds: f64) -> Result<Exchange, Error> {
        let (server_cgroup, client_cgroup) = self.cgroups(mode);
        let until = Instant::now()
            + Duration::from_secs_f64(seconds + self.options.warm_up)
            + Duration::from_secs(10);
        let listen = match mode {
            Mode::Unix => "unix",
            _ => "tcp",
        };
        let mut server = self.peer(server_cgroup, self.cpus.0, size, &["--listen", listen])?;
        let address = self.watch.line(&mut server, until)?;
        let mut client = self.peer(
            client_cgroup,
            self.cpus.1,
            size,
            &[
                "--connect",
                &address,
                "--seconds",
                &seconds.to_string(),
                "--warm-up",
                &self.options.warm_up.to_string(),
            ],
        )?;
        let line = self.watch.line(&mut client, until)?;
        for (who, peer) in [("client", &mut client), ("server", &mut server)] {
            let status = peer.finish(&self.watch, until)?;
            if !status.success() {
                return Err(Error::Peer(format!("{} {who}: {status}", mode.name())));
            }
        }
        serde_json::from_str(&line).map_err(|err| Error::Peer(format!("{line}: {err}")))
    }

    fn peer(&self, cgroup: &Cgroup, cpu: usize, size: usize, role: &[&str]) -> Result<Peer, Error> {
        let binary = env::current_exe().map_err(|err| Error::io("finding this program", err))?;
        Peer::start(
            Command::new(binary)
                .arg(PEER_COMMAND)
                .arg("--cgroup")
                .arg(cgroup.path())
                .args(["--cpu", &cpu.to_string()])
                .args(["--size", &size.to_string()])
                .args(["--wait", self.options.wait.name()])
                .args(role),
        )
    }

    /// Ns that one run of the `sk_msg` program takes. Measured apart from the
    /// rates, because counting itself costs something.
    fn verdict_ns(
        &self,
        mode: Mode,
        program: &'static str,
        size: usize,
    ) -> Result<Option<f64>, Error> {
        let _counting =
            RunTimeStats::enable().map_err(|err| Error::io("counting program run time", err))?;
        let before = Runs::of(program);
        let exchange = self.exchange(mode, size, self.options.seconds.max(0.5))?;
        Ok(before.ns_since(exchange.messages))
    }
}

/// CPUs of the server and of the client. The last ones, as the first often
/// takes the interrupts.
fn cpus(cpu: Cpu) -> Result<(usize, usize), Error> {
    let allowed =
        sched_getaffinity(Pid::from_raw(0)).map_err(|err| Error::io("sched_getaffinity", err))?;
    let mut allowed = (0..CpuSet::count())
        .rev()
        .filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let first = allowed.next().ok_or(Error::OneCpu)?;
    match cpu {
        Cpu::Same => Ok((first, first)),
        Cpu::Cross => Ok((first, allowed.next().ok_or(Error::OneCpu)?)),
    }
}
