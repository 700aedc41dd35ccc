//! `status`: whether it runs, and why connections are not accelerated.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use super::{Context, stats};
use crate::doctor::Risk;
use crate::error::Result;
use crate::maps::Stats;
use crate::maps::layout::{Config, SCOPE_ENDPOINTS};
use crate::outcome::{Outcome, REASONS, WHYS};
use crate::state::{Attached, Instance};

/// Reasons that are told at most.
const TOP: usize = 5;

/// Runs `status`.
pub fn run(context: &Context) -> Result<()> {
    let instance = Instance::open(&context.place)?;
    let config = instance.config()?;
    let attached = instance.attached()?;
    let counters = Stats::read(&instance.dir())?;
    let reasons = top(&counters);
    let value = State {
        instance: instance.name(),
        enabled: config.enabled != 0,
        unfinished_apply: config.changing % 2 == 1,
        cgroups: attached
            .iter()
            .map(|cgroup| CgroupState {
                id: cgroup.id.to_string(),
                path: cgroup.path.clone(),
            })
            .collect(),
        scope: scope(&config),
        blocking_readers: blocking(&config),
        max_sockets: instance.max_sockets()?,
        allowed_risks: Risk::from_bits(config.allow).collect(),
        stats: stats::to_json(&counters),
        not_accelerated: reasons.iter().map(Reason::to_json).collect(),
    };
    context.output.print(&value, || {
        to_text(
            &instance,
            &config,
            &attached,
            &counters,
            &reasons,
            &context.place.instances(),
        )
    })
}

/// What runs, and why connections are not accelerated.
#[derive(Debug, Serialize, JsonSchema)]
pub struct State<'a> {
    /// Its name.
    instance: &'a str,
    /// False while it is set up or taken down.
    enabled: bool,
    /// An apply was killed half-way.
    unfinished_apply: bool,
    /// The cgroups it is attached to.
    cgroups: Vec<CgroupState>,
    /// `local` or `endpoints`.
    scope: &'a str,
    /// `skip` or `accelerate`.
    blocking_readers: &'a str,
    /// Sockets that can be enrolled at one time.
    max_sockets: u32,
    /// Risks accepted.
    allowed_risks: Vec<Risk>,
    /// As `stats` prints them.
    stats: stats::Counters,
    /// The most frequent reasons.
    not_accelerated: Vec<ReasonState>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct CgroupState {
    /// In the kernel.
    id: String,
    /// Null when it was removed.
    path: Option<PathBuf>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ReasonState {
    /// Its name in `stats`.
    reason: &'static str,
    /// How often.
    count: u64,
    /// `sockets` or `messages`.
    unit: &'static str,
    /// In a sentence.
    text: &'static str,
    /// What would change it, or empty.
    remedy: &'static str,
}

/// One reason with how often, in a sentence.
struct Reason {
    outcome: Outcome,
    count: u64,
    unit: &'static str,
}

impl Reason {
    fn to_json(&self) -> ReasonState {
        ReasonState {
            reason: self.outcome.name,
            count: self.count,
            unit: self.unit,
            text: self.outcome.text,
            remedy: self.outcome.remedy,
        }
    }
}

/// The most frequent reasons: first what keeps whole connections out, then
/// what keeps messages of enrolled ones on the stack.
fn top(stats: &Stats) -> Vec<Reason> {
    let out: Vec<u64> = stats
        .skipped
        .iter()
        .zip(&stats.ejected)
        .map(|(skipped, ejected)| skipped + ejected)
        .collect();
    [
        most(&out, REASONS, "sockets"),
        most(&stats.stack_why, WHYS, "messages"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn most(counts: &[u64], outcomes: &[Outcome], unit: &'static str) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = counts
        .iter()
        .zip(outcomes)
        .filter(|(count, _)| **count > 0)
        .map(|(count, outcome)| Reason {
            outcome: *outcome,
            count: *count,
            unit,
        })
        .collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.count));
    reasons.truncate(TOP);
    reasons
}

fn scope(config: &Config) -> &'static str {
    if config.scope == SCOPE_ENDPOINTS {
        "endpoints"
    } else {
        "local"
    }
}

fn blocking(config: &Config) -> &'static str {
    if config.blocking != 0 {
        "accelerate"
    } else {
        "skip"
    }
}

fn to_text(
    instance: &Instance,
    config: &Config,
    attached: &[Attached],
    stats: &Stats,
    reasons: &[Reason],
    instances: &[String],
) -> String {
    let mut lines = vec![format!(
        "instance {}: {}, scope {}, blocking readers: {}",
        instance.name(),
        if config.enabled != 0 {
            "enabled"
        } else {
            "being set up or taken down"
        },
        scope(config),
        blocking(config),
    )];
    if config.changing % 2 == 1 {
        lines.push(
            "an apply was killed half-way: new connections stay on the stack\n  To finish it:  sockaccel apply -f FILE".to_owned(),
        );
    }
    for cgroup in attached {
        lines.push(match &cgroup.path {
            Some(path) => format!("cgroup {}", path.display()),
            None => format!("cgroup id {} (removed)", cgroup.id),
        });
    }
    let total = stats.redirected_messages + stats.stack_messages;
    lines.push(format!(
        "{} of {} sockets seen are enrolled ({} open now); {} of {total} messages and {} of {} bytes were redirected",
        stats.enrolled(),
        stats.seen,
        stats.enrolled_now(),
        stats.redirected_messages,
        stats.redirected_bytes,
        stats.redirected_bytes + stats.stack_bytes,
    ));
    for reason in reasons {
        let mut line = if reason.unit == "sockets" {
            format!(
                "{} sockets are not accelerated: {}",
                reason.count, reason.outcome.text
            )
        } else {
            format!(
                "{} messages of enrolled sockets went by the stack: {}",
                reason.count, reason.outcome.text
            )
        };
        if !reason.outcome.remedy.is_empty() {
            line.push_str("\n  To change it:  ");
            line.push_str(reason.outcome.remedy);
        }
        lines.push(line);
    }
    let others: Vec<&str> = instances
        .iter()
        .map(String::as_str)
        .filter(|name| *name != instance.name())
        .collect();
    if !others.is_empty() {
        lines.push(format!("other instances: {}", others.join(", ")));
    }
    lines.join("\n")
}
