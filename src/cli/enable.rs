//! `enable`

use std::path::PathBuf;

use clap::ValueEnum;
use ipnet::IpNet;

use super::{Context, addr};
use crate::doctor::{self, Risk};
use crate::error::{Error, Result};
use crate::maps::layout::{FILTER_EXCLUDE, FILTER_INCLUDE, SCOPE_ENDPOINTS, SCOPE_LOCAL};
use crate::output::say;
use crate::state::cgroup::Cgroup;
use crate::state::{Change, Instance, Observer, Settings};

type Ports = std::ops::RangeInclusive<u16>;

/// Options of `enable`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Only options that are given change an instance that is already enabled; another --cgroup is added.

Example:  sockaccel enable --cgroup /sys/fs/cgroup/web --port 8080")]
pub struct Args {
    /// A cgroup v2 whose processes' connections to accelerate
    #[arg(long = "cgroup", value_name = "PATH", required = true)]
    cgroups: Vec<PathBuf>,
    /// Any paired local peer, or only destinations that are endpoints [default: local]
    #[arg(long, value_name = "SCOPE")]
    scope: Option<Scope>,
    #[command(flatten)]
    tuning: Tuning,
}

/// What `enable` and `run` have in common: which connections, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Tuning {
    /// What to do with programs that read from blocking sockets [default: skip]
    #[arg(long, value_name = "WHAT")]
    blocking_readers: Option<Blocking>,
    /// Only connections to these server ports
    #[arg(long = "port", value_name = "PORT[-PORT]", value_parser = addr::ports, value_delimiter = ',')]
    ports: Vec<Ports>,
    /// No connections to these server ports
    #[arg(long = "exclude-port", value_name = "PORT[-PORT]", value_parser = addr::ports, value_delimiter = ',')]
    exclude_ports: Vec<Ports>,
    /// Only connections to servers in these networks
    #[arg(long = "cidr", value_name = "CIDR", value_parser = addr::network, value_delimiter = ',')]
    cidrs: Vec<IpNet>,
    /// No connections to servers in these networks
    #[arg(long = "exclude-cidr", value_name = "CIDR", value_parser = addr::network, value_delimiter = ',')]
    exclude_cidrs: Vec<IpNet>,
    /// Sockets that can be enrolled at one time [default: 65536]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=4_194_304))]
    max_sockets: Option<u32>,
    /// Accept a risk that enable refuses by default
    #[arg(long, value_name = "RISK", value_delimiter = ',')]
    pub allow: Vec<Risk>,
    /// Messages that may wait in a redirect queue [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    budget_messages: Option<u32>,
    /// Bytes that may wait in a redirect queue [default: 262144]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    budget_bytes: Option<u32>,
    /// Messages on the stack after which the sender of a one-way stream leaves; 0 never [default: 8192]
    #[arg(long, value_name = "N")]
    stream_limit: Option<u32>,
    /// Which connections to enrol [default: learned]
    #[arg(long, value_name = "WHICH")]
    admission: Option<Admission>,
    /// Turn a safety rule off, to see what it is good for
    #[arg(long, value_name = "RULE", hide = true)]
    without: Vec<Rule>,
    /// The splice observer's form, instead of the better one that the kernel allows
    #[arg(long, value_name = "FORM", hide = true)]
    splice_observer: Option<Observer>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Blocking {
    /// They stay on the stack
    Skip,
    /// They are accelerated: see BLOCKING READERS in sockaccel(8) for the risk
    Accelerate,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scope {
    /// Any local peer in an enabled cgroup
    Local,
    /// Only towards addresses that are endpoints
    Endpoints,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Admission {
    /// To servers whose earlier connections have profited, and a sample of the others
    Learned,
    /// All of them
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rule {
    CompanyRule,
    Observer,
}

impl Args {
    fn settings(&self) -> Settings {
        Settings {
            scope: self.scope.map(|scope| match scope {
                Scope::Local => SCOPE_LOCAL,
                Scope::Endpoints => SCOPE_ENDPOINTS,
            }),
            ..self.tuning.settings()
        }
    }
}

impl Tuning {
    /// As the instance takes them; the risks are for the caller to ask about.
    pub fn settings(&self) -> Settings {
        let each = |ranges: &[Ports], filter| -> Vec<(u16, u8)> {
            ranges
                .iter()
                .cloned()
                .flatten()
                .map(|port| (port, filter))
                .collect()
        };
        let nets = |nets: &[IpNet], filter| -> Vec<(IpNet, u8)> {
            nets.iter().map(|net| (*net, filter)).collect()
        };
        Settings {
            blocking: self
                .blocking_readers
                .map(|b| matches!(b, Blocking::Accelerate)),
            scope: None,
            budget_messages: self.budget_messages,
            budget_bytes: self.budget_bytes,
            stream_limit: self.stream_limit,
            max_sockets: self.max_sockets,
            admit_all: self.admission.map(|which| matches!(which, Admission::All)),
            allow: 0,
            // What is excluded stays so when it is also included.
            ports: [
                each(&self.ports, FILTER_INCLUDE),
                each(&self.exclude_ports, FILTER_EXCLUDE),
            ]
            .concat(),
            cidrs: [
                nets(&self.cidrs, FILTER_INCLUDE),
                nets(&self.exclude_cidrs, FILTER_EXCLUDE),
            ]
            .concat(),
            without_company_rule: self.without.contains(&Rule::CompanyRule),
            without_observer: self.without.contains(&Rule::Observer),
            observer: self.splice_observer,
        }
    }
}

/// Runs `enable`.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let cgroups = args
        .cgroups
        .iter()
        .map(|path| Cgroup::open(path))
        .collect::<Result<Vec<_>>>()?;
    let mut settings = args.settings();
    settings.allow = accepted(context, args)?;
    let change = Instance::enable(&context.place, &cgroups, &settings)?;
    context.output.print_json(&serde_json::json!({
        "instance": context.place.instance,
        "changed": change == Change::Done,
    }))?;
    if change == Change::Done && !context.output.json {
        say(
            "Redirected bytes bypass the stack: netfilter, tc, cgroup_skb, tcpdump and conntrack do not see them.",
        );
    }
    Ok(())
}

/// Asks the kernel, and gives the bits of the risks that were accepted, now or
/// when the instance was made.
fn accepted(context: &Context, args: &Args) -> Result<u32> {
    let mut allowed = [
        Risk::from_env().map_err(|e| Error::Usage(e.to_string()))?,
        args.tuning.allow.clone(),
    ]
    .concat();
    if let Ok(instance) = Instance::open(&context.place) {
        allowed.extend(Risk::from_bits(instance.config()?.allow));
    }
    let report = doctor::before_enable(&args.cgroups, &allowed)?;
    if !context.output.json {
        for warning in &report.warnings {
            say(format_args!("sockaccel: {warning}"));
        }
    }
    Ok(allowed.iter().fold(0, |bits, risk| bits | risk.bit()))
}
