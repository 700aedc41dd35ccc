//! `enable`

use std::path::PathBuf;

use clap::ValueEnum;

use super::Context;
use super::entry::InstanceChanged;
use crate::doctor::{self, Report, Risk};
use crate::error::Result;
use crate::state::cgroup::Cgroup;
use crate::state::{Change, Instance, Observer, Settings, filters};
use crate::words::{
    Admission, Blocking, BudgetBytes, BudgetMessages, MaxSockets, Network, Ports, Scope,
    StreamLimit,
};

/// It was so before.
pub const NOTHING: &str = "Nothing to change.";

/// Options of `enable`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Where it is enabled, --cgroup adds one, and only the options given change.

Example:  sockaccel enable --cgroup /sys/fs/cgroup/web --port 8080")]
pub struct Args {
    /// Accelerate among processes of this cgroup v2
    #[arg(long = "cgroup", value_name = "PATH", required = true)]
    cgroups: Vec<PathBuf>,
    /// Peers: all that are local (default), endpoints
    #[arg(long, value_name = "SCOPE", hide_possible_values = true)]
    scope: Option<Scope>,
    #[command(flatten)]
    tuning: Tuning,
}

/// What `enable` and `run` have in common: which connections, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Tuning {
    /// Blocking readers: skip (default), accelerate
    #[arg(long, value_name = "WHAT", hide_possible_values = true)]
    blocking_readers: Option<Blocking>,
    /// Only these server ports, like 80,8000-8080
    #[arg(long = "port", value_name = "PORTS", value_delimiter = ',')]
    ports: Vec<Ports>,
    /// No connections to these server ports
    #[arg(long = "exclude-port", value_name = "PORTS", value_delimiter = ',')]
    exclude_ports: Vec<Ports>,
    /// Only connections to servers in these networks
    #[arg(long = "cidr", value_name = "CIDR", value_delimiter = ',')]
    cidrs: Vec<Network>,
    /// No connections to servers in these networks
    #[arg(long = "exclude-cidr", value_name = "CIDR", value_delimiter = ',')]
    exclude_cidrs: Vec<Network>,
    /// Enrolled sockets at most [default: 65536]
    #[arg(long, value_name = "N")]
    max_sockets: Option<MaxSockets>,
    /// Accept a risk: fionread, known-bad-kernel
    #[arg(
        long,
        value_name = "RISK",
        hide_possible_values = true,
        value_delimiter = ','
    )]
    pub allow: Vec<Risk>,
    /// Of a redirect queue: messages [default: 64]
    #[arg(long, value_name = "N", hide_short_help = true)]
    budget_messages: Option<BudgetMessages>,
    /// Of a redirect queue: bytes [default: 262144]
    #[arg(long, value_name = "BYTES", hide_short_help = true)]
    budget_bytes: Option<BudgetBytes>,
    /// Of a stream: messages, 0 all [default: 8192]
    #[arg(long, value_name = "N", hide_short_help = true)]
    stream_limit: Option<StreamLimit>,
    /// Enrol: what may profit (learned, default), all
    #[arg(
        long,
        value_name = "WHICH",
        hide_possible_values = true,
        hide_short_help = true
    )]
    admission: Option<Admission>,
    /// Turn a safety rule off, to see what it is good for
    #[arg(long, value_name = "RULE", hide = true)]
    without: Vec<Rule>,
    /// The splice observer's form, instead of the better one that the kernel allows
    #[arg(long, value_name = "FORM", hide = true)]
    splice_observer: Option<Observer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rule {
    CompanyRule,
    Observer,
}

impl Args {
    fn settings(&self) -> Settings {
        Settings {
            scope: self.scope.map(Scope::raw),
            ..self.tuning.settings()
        }
    }
}

impl Tuning {
    /// As the instance takes them; the risks are for the caller to ask about.
    pub fn settings(&self) -> Settings {
        Settings {
            blocking: self.blocking_readers.map(|b| b == Blocking::Accelerate),
            scope: None,
            budget_messages: self.budget_messages.map(|n| n.0),
            budget_bytes: self.budget_bytes.map(|n| n.0),
            stream_limit: self.stream_limit.map(|n| n.0),
            max_sockets: self.max_sockets.map(|n| n.0),
            admit_all: self.admission.map(|which| which == Admission::All),
            allow: 0,
            ports: filters::ports(&self.ports, &self.exclude_ports),
            cidrs: filters::cidrs(&self.cidrs, &self.exclude_cidrs),
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
    context
        .output
        .print_json(&InstanceChanged::new(context, change))?;
    context.output.note(match change {
        Change::Done => {
            "Redirected bytes bypass the stack: netfilter, tc, cgroup_skb, tcpdump and conntrack do not see them."
        }
        Change::Nothing => NOTHING,
    });
    Ok(())
}

/// Asks the kernel, and gives the bits of the risks that were accepted, now or
/// when the instance was made.
fn accepted(context: &Context, args: &Args) -> Result<u32> {
    let mut allowed = [Risk::from_env()?, args.tuning.allow.clone()].concat();
    if let Ok(instance) = Instance::open(&context.place) {
        allowed.extend(Risk::from_bits(instance.config()?.allow));
    }
    let report = doctor::before_enable(&args.cgroups, &allowed)
        .map_err(|refusal| refusal.naming(&context.place))?;
    say_warnings(context, &report, &allowed);
    Ok(allowed.iter().fold(0, |bits, risk| bits | risk.bit()))
}

/// Says what the kernel was found to lack, and was not accepted.
pub fn say_warnings(context: &Context, report: &Report, allowed: &[Risk]) {
    for warning in report.news(allowed) {
        let text = format_args!("sockaccel: warning: {warning}");
        context.output.note(text);
    }
}
