//! `stats`

use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::error::Result;
use crate::maps::Stats;
use crate::outcome::{Outcome, REASONS, WHYS};
use crate::output::{Counts, by_name, table};
use crate::state::Instance;

/// Runs `stats`.
pub fn run(context: &Context) -> Result<()> {
    let instance = Instance::open(&context.place)?;
    let stats = Stats::read(&instance.dir())?;
    context.output.print(&to_json(&stats), || to_table(&stats))
}

/// The counters.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Counters {
    /// Sockets that became ESTABLISHED in an enabled cgroup.
    seen: u64,
    /// Of these, enrolled and not ejected since.
    enrolled: u64,
    /// Of these, open.
    enrolled_now: u64,
    /// Sockets that found their peer.
    paired: u64,
    /// Sockets taken out again, by reason.
    ejected: Counts,
    /// Sockets never enrolled, by reason.
    skipped: Counts,
    /// Messages handed straight to their receiver.
    redirected_messages: u64,
    /// Their bytes.
    redirected_bytes: u64,
    /// Messages of enrolled sockets that went by the stack.
    stack_messages: u64,
    /// Their bytes.
    stack_bytes: u64,
    /// Messages on the stack, by reason.
    stack_reasons: Counts,
    /// Directions that went from stack to redirect.
    promotions: u64,
    /// Directions that went back, by reason.
    demotions: Counts,
    /// Of these, at the hard cap with several senders.
    demotions_in_company: u64,
    /// Calls of setsockopt(2) refused.
    refused_options: u64,
}

/// The counters, as JSON has them.
pub fn to_json(stats: &Stats) -> Counters {
    Counters {
        seen: stats.seen,
        enrolled: stats.enrolled(),
        enrolled_now: stats.enrolled_now(),
        paired: stats.paired,
        ejected: by_name(&stats.ejected, REASONS),
        skipped: by_name(&stats.skipped, REASONS),
        redirected_messages: stats.redirected_messages,
        redirected_bytes: stats.redirected_bytes,
        stack_messages: stats.stack_messages,
        stack_bytes: stats.stack_bytes,
        stack_reasons: by_name(&stats.stack_why, WHYS),
        promotions: stats.promotions,
        demotions: by_name(&stats.demoted_why, WHYS),
        demotions_in_company: stats.hard_cap,
        refused_options: stats.refused_options,
    }
}

fn to_table(stats: &Stats) -> String {
    let mut rows: Vec<[String; 3]> = Vec::new();
    let mut row = |what: &str, reason: &str, count: u64| {
        rows.push([what.to_owned(), reason.to_owned(), count.to_string()]);
    };
    row("sockets seen", "", stats.seen);
    row("sockets enrolled", "", stats.enrolled());
    row("  of which open", "", stats.enrolled_now());
    row("sockets paired", "", stats.paired);
    let mut each = |what: &str, counts: &[u64], names: &[Outcome]| {
        for (count, outcome) in counts.iter().zip(names).filter(|(count, _)| **count > 0) {
            row(what, outcome.name, *count);
        }
    };
    each("sockets ejected", &stats.ejected, REASONS);
    each("sockets skipped", &stats.skipped, REASONS);
    row("messages redirected", "", stats.redirected_messages);
    row("bytes redirected", "", stats.redirected_bytes);
    row("messages on the stack", "", stats.stack_messages);
    row("bytes on the stack", "", stats.stack_bytes);
    let mut each = |what: &str, counts: &[u64], names: &[Outcome]| {
        for (count, outcome) in counts.iter().zip(names).filter(|(count, _)| **count > 0) {
            row(what, outcome.name, *count);
        }
    };
    each("messages on the stack", &stats.stack_why, WHYS);
    each("directions demoted", &stats.demoted_why, WHYS);
    row("directions promoted", "", stats.promotions);
    row("options refused", "", stats.refused_options);
    table(&["counter", "reason", "count"], rows)
}
