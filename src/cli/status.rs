//! `status`: whether it runs, and why connections are not accelerated.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use super::reasons::{self, Reason};
use super::{Context, stats};
use crate::doctor::Risk;
use crate::error::Result;
use crate::maps::Stats;
use crate::maps::layout::{Config, SCOPE_ENDPOINTS};
use crate::state::{Attached, Instance, Observer};

/// Runs `status`.
pub fn run(context: &Context) -> Result<()> {
    let instance = Instance::open(&context.place)?;
    let config = instance.config()?;
    let attached = instance.attached()?;
    let counters = Stats::read(&instance.dir())?;
    let reasons = reasons::top(&counters);
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
        splice_observer: instance.observer(),
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
    /// How calls of splice(2) are seen: `tracepoint` or `fentry`; null where its pin is gone.
    splice_observer: Option<Observer>,
    /// Risks accepted.
    allowed_risks: Vec<Risk>,
    /// As `stats` prints them.
    stats: stats::Counters,
    /// The most frequent reasons.
    not_accelerated: Vec<reasons::Counted>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct CgroupState {
    /// In the kernel.
    id: String,
    /// Null when it was removed.
    path: Option<PathBuf>,
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
    lines.extend(
        reasons
            .iter()
            .map(|reason| reason.to_text(reason.outcome.remedy)),
    );
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
