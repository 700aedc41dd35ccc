//! `status`: whether it runs, and why connections are not accelerated.

use schemars::JsonSchema;
use serde::Serialize;

use super::reasons::{self, TOP};
use super::{Context, disable, instances, stats};
use crate::doctor::Risk;
use crate::error::Result;
use crate::maps::layout::{Config, Dump};
use crate::maps::{Stats, sockets};
use crate::output::count;
use crate::remedy::{DROPS, Remedies, quoted};
use crate::state::{self, Attached, Instance, Observer, Place};
use crate::words::{Blocking, Scope};

/// Options of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Figures are totals since the instance was enabled.

Example:  sockaccel status --instance ci
Example:  sockaccel status --all")]
pub struct Args {
    /// A line for each instance that there is
    #[arg(long)]
    all: bool,
}

/// Runs `status`.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    if args.all {
        return instances::list(context);
    }
    let instance = Instance::open(&context.place)?;
    let seen = Seen::read(&instance)?;
    let (max_sockets, splice_observer) = (instance.max_sockets()?, instance.observer());
    // Who reads this slowly holds up no command.
    drop(instance);
    let Seen {
        config, counters, ..
    } = &seen;
    let name = &*context.place.instance;
    let reasons = reasons::top(counters);
    let remedies = Remedies::new(&context.place, config, &seen.attached);
    let value = State {
        instance: name,
        enabled: config.enabled != 0,
        unfinished_apply: config.changing % 2 == 1,
        programs: programs(config),
        missing: &seen.missing,
        draining: seen.draining.state(),
        cgroups: seen.attached.iter().map(CgroupState::from).collect(),
        scope: Scope::from_raw(config.scope).to_string(),
        blocking_readers: Blocking::from(config.blocking != 0).to_string(),
        max_sockets,
        splice_observer,
        allowed_risks: Risk::from_bits(config.allow).collect(),
        stats: stats::to_json(counters),
        not_accelerated: reasons.iter().map(|r| r.to_json(&remedies)).collect(),
    };
    context.output.print(&value, || {
        let reasons: Vec<String> = reasons
            .iter()
            .map(|reason| reason.to_text(&reason.remedy(&remedies)))
            .collect();
        let instances = context.place.instances().unwrap_or_default();
        to_text(&context.place, &seen, &reasons, &instances)
    })
}

/// What there is of an instance.
struct Seen {
    config: Config,
    attached: Vec<Attached>,
    draining: Draining,
    missing: Vec<String>,
    counters: Stats,
}

impl Seen {
    fn read(instance: &Instance) -> Result<Self> {
        Ok(Self {
            config: instance.config()?,
            attached: instance.attached()?,
            draining: Draining::read(instance)?,
            missing: instance.missing()?,
            counters: Stats::read(&instance.dir())?,
        })
    }
}

/// What is on its way out, and what waits where.
struct Draining {
    cgroups: Vec<Attached>,
    sockets: Vec<Dump>,
}

impl Draining {
    fn read(instance: &Instance) -> Result<Self> {
        let mut sockets = sockets::read(&instance.dir())?;
        sockets.retain(|socket| socket.waits_for().is_some());
        sockets.sort_by_key(|socket| std::cmp::Reverse(socket.unread_bytes));
        Ok(Self {
            cgroups: instance.leaving()?,
            sockets,
        })
    }

    fn state(&self) -> DrainState {
        DrainState {
            cgroups: self.cgroups.iter().map(CgroupState::from).collect(),
            sockets: self.sockets.iter().map(disable::Waiting::from).collect(),
        }
    }

    /// `ends` where all of the instance is on its way out.
    fn lines(&self, ends: bool, instance: &str) -> Vec<String> {
        let remedy = |which: &str| {
            let disable = format!("sockaccel disable{which}{instance}");
            format!("  To wait for it:  {disable}   To drop it:  {disable} --now")
        };
        let mut lines = Vec::new();
        for cgroup in &self.cgroups {
            lines.push(format!("draining: cgroup {cgroup}"));
            match &cgroup.path {
                _ if ends => {}
                Some(path) => lines.push(remedy(&format!(" --cgroup {}", quoted(path)))),
                None => lines.push(
                    "  It ends with the next enable or apply, once all is read or closed".into(),
                ),
            }
        }
        let shown = self.sockets.iter().take(TOP);
        lines.extend(shown.map(|socket| format!("draining: {}", disable::to_line(socket))));
        if self.sockets.len() > TOP {
            let more = self.sockets.len() - TOP;
            lines.push(format!("draining: {} more", count(more as u64, "socket")));
        }
        if ends && !lines.is_empty() {
            lines.push(remedy(""));
        }
        lines
    }
}

impl From<&Attached> for CgroupState {
    fn from(cgroup: &Attached) -> Self {
        Self {
            id: cgroup.id.to_string(),
            path: (cgroup.path.as_deref()).map(|path| path.to_string_lossy().into_owned()),
        }
    }
}

/// In a word.
pub fn state(config: &Config, attached: &[Attached]) -> &'static str {
    match (config.enabled != 0, attached) {
        (true, _) => "enabled",
        (false, []) => "draining",
        (false, _) => "unfinished",
    }
}

/// Whose programs run.
fn programs(config: &Config) -> &'static str {
    match config.build {
        0 => "mixed",
        build if build == state::build() => "current",
        _ => "other",
    }
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
    /// Whose programs run: `current`, this command's; `other`, or `mixed` after an
    /// upgrade that was killed.
    programs: &'a str,
    /// Pins that somebody has removed, and links that somebody has detached.
    missing: &'a [String],
    /// What is on its way out.
    draining: DrainState,
    /// The cgroups it is attached to.
    cgroups: Vec<CgroupState>,
    /// `local` or `endpoints`.
    scope: String,
    /// `skip` or `accelerate`.
    blocking_readers: String,
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
struct DrainState {
    /// The cgroups whose sockets leave.
    cgroups: Vec<CgroupState>,
    /// The sockets that have not left yet.
    sockets: Vec<disable::Waiting>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct CgroupState {
    /// In the kernel.
    id: String,
    /// Null when it was removed, or cannot be seen from this cgroup namespace. What is not
    /// UTF-8 in it is U+FFFD here.
    path: Option<String>,
}

/// How what was removed leaves, which nothing does by itself.
fn removed(attached: &[Attached], instance: &str) -> Option<String> {
    let gone = attached.iter().filter(|cgroup| cgroup.removed);
    let gone = gone.count();
    let way_out = if gone == attached.len() {
        format!("sockaccel disable{instance}   ({DROPS})")
    } else {
        format!("sockaccel export{instance} | sockaccel apply{instance} -f -")
    };
    (gone > 0).then(|| format!("  To take out what was removed:  {way_out}"))
}

fn to_text(place: &Place, seen: &Seen, reasons: &[String], instances: &[String]) -> String {
    let name = &*place.instance;
    let Seen {
        config,
        attached,
        draining,
        missing,
        counters: stats,
    } = seen;
    let mut lines = vec![format!(
        "instance {}: {}, scope {}, blocking readers: {}",
        name,
        match state(config, attached) {
            "unfinished" => "not set up to the end (run enable again)",
            word => word,
        },
        Scope::from_raw(config.scope),
        Blocking::from(config.blocking != 0),
    )];
    lines.extend(attached.iter().map(|cgroup| format!("cgroup {cgroup}")));
    let option = place.option();
    lines.extend(removed(attached, &option));
    lines.extend(draining.lines(attached.is_empty(), &option));
    if !missing.is_empty() {
        lines.push(format!(
            "removed or detached by others: {}\n  To make it again:  sockaccel upgrade{option}",
            missing.join(", ")
        ));
    }
    if config.changing % 2 == 1 {
        lines.push(
            format!("an apply was killed half-way: new connections stay on the stack\n  To finish it:  sockaccel apply -f FILE{option}"),
        );
    }
    match programs(config) {
        "mixed" => lines.push(
            format!("an upgrade did not come to its end\n  To finish it:  sockaccel upgrade{option}"),
        ),
        "other" => lines.push(
            format!("the programs are of another version than this command\n  To change over:  sockaccel upgrade{option}"),
        ),
        _ => {}
    }
    lines.push("totals since it was enabled:".to_owned());
    let total = stats.redirected_messages + stats.stack_messages;
    lines.push(format!(
        "{} of {} sockets seen were enrolled ({} open now); {} of {total} messages and {} of {} bytes were redirected",
        stats.enrolled(),
        stats.seen,
        stats.enrolled_now(),
        stats.redirected_messages,
        stats.redirected_bytes,
        stats.redirected_bytes + stats.stack_bytes,
    ));
    if stats.seen == 0 && !attached.is_empty() {
        lines.push(
            "no connection was established in its cgroups; older ones stay as they are".to_owned(),
        );
    }
    lines.extend_from_slice(reasons);
    let others: Vec<&str> = instances
        .iter()
        .map(String::as_str)
        .filter(|other| *other != name)
        .collect();
    if !others.is_empty() {
        lines.push(format!("other instances: {}", others.join(", ")));
    }
    lines.join("\n")
}
