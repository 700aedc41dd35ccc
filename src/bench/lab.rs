//! Everything made for the benchmark, and one measurement with it.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::accelerator::{Runs, Sockaccel, Textbook};
use super::cgroup::Cgroup;
use super::options::{Cores, Mode, Options, Place, Workload};
use super::peer::Findings;
use super::plan::{Cell, Plan};
use super::sample::Sample;
use super::site::Site;
use super::watch::{Peer, Watch};
use super::{Error, PEER_COMMAND};
use crate::output::say;
use crate::sys::bpf_stats::RunTimeStats;

/// Beyond its own duration; then a measurement counts as stuck.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the textbook program may carry in one stream: it queues without bound.
const UNBOUNDED_LIMIT: u64 = 512 << 20;

/// Fields are dropped in this order: programs leave a cgroup before it goes.
#[derive(Debug)]
pub struct Lab<'a> {
    options: &'a Options,
    binary: PathBuf,
    cpus: Vec<usize>,
    sockaccel: Option<Sockaccel>,
    variant: Option<Sockaccel>,
    _textbook: Option<Textbook>,
    plain: Cgroup,
    enabled: Option<Cgroup>,
    variant_cgroup: Option<Cgroup>,
    textbook_cgroup: Option<Cgroup>,
    sites: Vec<((Place, Option<u32>), Site)>,
    // Last: cleaning up must not be cut short by a second signal.
    watch: Watch,
}

impl<'a> Lab<'a> {
    /// Makes what the plan needs.
    pub fn set_up(options: &'a Options, schedule: &Plan) -> Result<Self, Error> {
        let watch = Watch::new()?;
        let cpus = cpus()?;
        let across = schedule
            .cells
            .iter()
            .any(|cell| cell.cores == Cores::Across);
        if across && cpus.len() < 2 {
            return Err(Error::Usage(
                "--cores across needs two CPUs, and this process may use only one",
            ));
        }
        let own = env::current_exe().map_err(|err| Error::io("finding this program", err))?;
        let measured = options.sockaccel.as_ref().unwrap_or(&own);
        let plain = Cgroup::create("plain")?;
        let mut sites: Vec<((Place, Option<u32>), Site)> = Vec::new();
        for cell in &schedule.cells {
            let key = (cell.place, cell.mtu);
            if sites.iter().all(|(known, _)| *known != key) {
                sites.push((key, Site::build(cell.place, cell.mtu)?));
            }
        }
        let cgroup = |wanted: &[Mode], name| {
            let needed = schedule.modes().iter().any(|mode| wanted.contains(mode));
            needed.then(|| Cgroup::create(name)).transpose()
        };
        let enabled = cgroup(
            &[Mode::Sockaccel, Mode::ToRemote, Mode::FromRemote],
            "sockaccel",
        )?;
        let variant_cgroup = cgroup(&[Mode::Variant], "variant")?;
        let textbook_cgroup = cgroup(&[Mode::Textbook], "textbook")?;
        let textbook = textbook_cgroup
            .as_ref()
            .map(|cgroup| Textbook::attach(cgroup.path()))
            .transpose()?;
        let enable = |cgroup: Option<&Cgroup>, more: &[String]| {
            cgroup
                .map(|cgroup| Sockaccel::enable(measured, &options.bpffs, cgroup, more))
                .transpose()
        };
        let sockaccel = enable(enabled.as_ref(), &[])?;
        let variant = enable(variant_cgroup.as_ref(), &options.variant)?;
        let warned = sockaccel.as_ref().or(variant.as_ref());
        for warning in warned.map(|(_, warnings)| warnings).into_iter().flatten() {
            say(format_args!("sockaccel: bench: {warning}"));
        }
        Ok(Self {
            options,
            binary: own,
            cpus,
            sockaccel: sockaccel.map(|(instance, _)| instance),
            variant: variant.map(|(instance, _)| instance),
            _textbook: textbook,
            plain,
            enabled,
            variant_cgroup,
            textbook_cgroup,
            sites,
            watch,
        })
    }

    /// Has somebody asked us to stop?
    pub fn check(&self) -> Result<(), Error> {
        self.watch.check()
    }

    /// Cgroups of the client and of the server.
    fn cgroups(&self, mode: Mode) -> (&Cgroup, &Cgroup) {
        let plain = &self.plain;
        let enabled = self.enabled.as_ref().unwrap_or(plain);
        let variant = self.variant_cgroup.as_ref().unwrap_or(plain);
        let textbook = self.textbook_cgroup.as_ref().unwrap_or(plain);
        match mode {
            Mode::Tcp | Mode::TcpAgain | Mode::Unix => (plain, plain),
            Mode::Sockaccel => (enabled, enabled),
            Mode::Variant => (variant, variant),
            Mode::Textbook => (textbook, textbook),
            Mode::ToRemote => (enabled, plain),
            Mode::FromRemote => (plain, enabled),
        }
    }

    fn site(&self, cell: &Cell) -> Result<&Site, Error> {
        let key = (cell.place, cell.mtu);
        let found = self.sites.iter().find(|(known, _)| *known == key);
        found
            .map(|(_, site)| site)
            .ok_or_else(|| Error::Sample(format!("{cell}: no such place")))
    }

    /// One measurement: new processes, new connections.
    pub fn sample(&self, mode: Mode, cell: &Cell) -> Result<Sample, Error> {
        let site = self.site(cell)?;
        let instance = match mode {
            Mode::Sockaccel | Mode::ToRemote | Mode::FromRemote => self.sockaccel.as_ref(),
            Mode::Variant => self.variant.as_ref(),
            _ => None,
        };
        let redirected = || instance.map(Sockaccel::redirected_bytes).transpose();
        let (sent_before, redirected_before) = (site.sent()?, redirected()?);
        let (client, server) = self.exchange(mode, cell, self.options.seconds)?;
        let (sent, redirected) = (site.sent()?, redirected()?);
        Sample::new(
            cell,
            client,
            server,
            redirected
                .zip(redirected_before)
                .map(|(after, before)| after - before),
            sent - sent_before,
        )
    }

    fn exchange(
        &self,
        mode: Mode,
        cell: &Cell,
        seconds: f64,
    ) -> Result<(Findings, Findings), Error> {
        let site = self.site(cell)?;
        let (client_cgroup, server_cgroup) = self.cgroups(mode);
        let until =
            Instant::now() + Duration::from_secs_f64(seconds + self.options.warm_up) + PATIENCE;
        let listen = match mode {
            Mode::Unix => "unix".to_owned(),
            _ => site.listen.to_string(),
        };
        let last = self.cpus.len() - 1;
        let (server_cpu, client_cpu) = match cell.cores {
            Cores::Same => (self.cpus[last], self.cpus[last]),
            Cores::Across => (self.cpus[last], self.cpus[last - 1]),
        };
        let start = |name, cgroup: &Cgroup, netns: Option<PathBuf>, cpu: usize, role: &[&str]| {
            let mut command = Command::new(&self.binary);
            command
                .arg(PEER_COMMAND)
                .arg("--cgroup")
                .arg(cgroup.path())
                .args(["--cpu", &cpu.to_string()])
                .args(["--workload", cell.workload.name()])
                .args(["--size", &cell.size.to_string()])
                .args(["--connections", &cell.connections.to_string()])
                .args(["--nagle", cell.nagle.name()])
                .args(["--wait", self.options.wait.name()])
                .args(["--seconds", &seconds.to_string()])
                .args(["--warm-up", &self.options.warm_up.to_string()])
                .args(role);
            if let Some(netns) = netns {
                command.arg("--netns").arg(netns);
            }
            if let Some(mss) = self.options.mss {
                command.args(["--mss", &mss.to_string()]);
            }
            if cell.workload == Workload::Pipelined {
                command.args(["--depth", &self.options.depth.to_string()]);
            }
            if mode == Mode::Textbook {
                command.args(["--limit", &UNBOUNDED_LIMIT.to_string()]);
            }
            Peer::start(name, &mut command)
        };
        let mut server = start(
            "server",
            server_cgroup,
            site.server(),
            server_cpu,
            &["--listen", &listen],
        )?;
        let bound = self.watch.line(&mut server, until)?;
        let address = match (mode, site.ask) {
            (Mode::Unix, _) | (_, None) => bound,
            (_, Some(ask)) => ask.to_string(),
        };
        let mut client = start(
            "client",
            client_cgroup,
            site.client(),
            client_cpu,
            &["--connect", &address],
        )?;
        let of_client = self.findings(&mut client, until);
        server.let_go();
        let of_server = self.findings(&mut server, until);
        match (of_client, of_server) {
            (Ok(client), Ok(server)) => Ok((client, server)),
            // Where both failed the client's reason may be only that the server did.
            (Err(Error::Sample(client)), Err(Error::Sample(server))) => {
                Err(Error::Sample(format!("{client}; {server}")))
            }
            (Err(err), _) | (_, Err(err)) => Err(err),
        }
    }

    fn findings(&self, peer: &mut Peer, until: Instant) -> Result<Findings, Error> {
        let line = self.watch.line(peer, until)?;
        peer.finish(&self.watch, until)?;
        serde_json::from_str(&line).map_err(|err| Error::Sample(format!("{line}: {err}")))
    }

    /// Ns that one run of the `sk_msg` program takes. Measured apart from the
    /// rates, because counting itself costs something.
    pub fn verdict_ns(
        &self,
        mode: Mode,
        cell: &Cell,
        program: &'static str,
    ) -> Result<Option<f64>, Error> {
        let _counting =
            RunTimeStats::enable().map_err(|err| Error::io("counting program run time", err))?;
        let before = Runs::of(program);
        let (client, server) = self.exchange(mode, cell, self.options.seconds)?;
        Ok(before.ns_since(client.messages + server.messages))
    }
}

/// That this process may use. The last ones are taken first, as the first often
/// has the interrupts.
fn cpus() -> Result<Vec<usize>, Error> {
    let allowed =
        sched_getaffinity(Pid::from_raw(0)).map_err(|err| Error::io("sched_getaffinity", err))?;
    Ok((0..CpuSet::count())
        .filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .collect())
}
