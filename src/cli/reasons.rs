//! The most frequent reasons why something is not accelerated, in sentences.

use schemars::JsonSchema;
use serde::Serialize;

use crate::maps::Stats;
use crate::outcome::{Outcome, REASONS, WHYS, counted};

/// Reasons of each kind that are told at most.
pub const TOP: usize = 5;

/// One reason with how often.
#[derive(Debug, Clone)]
pub struct Reason {
    /// The reason.
    pub outcome: Outcome,
    /// How often.
    pub count: u64,
    unit: &'static str,
}

/// A reason, as JSON has it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Counted {
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

impl Reason {
    /// As in `not_accelerated` of `status`.
    pub fn to_json(&self) -> Counted {
        Counted {
            reason: self.outcome.name,
            count: self.count,
            unit: self.unit,
            text: self.outcome.text,
            remedy: self.outcome.remedy,
        }
    }

    /// A sentence, and what would change it unless that is empty.
    pub fn to_text(&self, remedy: &str) -> String {
        let Self {
            outcome: Outcome { text, .. },
            count,
            ..
        } = self;
        let mut line = match (self.unit, count) {
            ("sockets", 1) => format!("1 socket is not accelerated: {text}"),
            ("sockets", _) => format!("{count} sockets are not accelerated: {text}"),
            (_, 1) => format!("1 message of enrolled sockets went by the stack: {text}"),
            _ => format!("{count} messages of enrolled sockets went by the stack: {text}"),
        };
        if !remedy.is_empty() {
            line.push_str("\n  To change it:  ");
            line.push_str(remedy);
        }
        line
    }
}

/// The most frequent reasons: first what keeps whole connections out, then
/// what keeps messages of enrolled ones on the stack.
pub fn top(stats: &Stats) -> Vec<Reason> {
    let sockets = most(&stats.kept_out(), REASONS, "sockets");
    let messages = most(&stats.stack_why, WHYS, "messages");
    let each = [sockets, messages].into_iter();
    each.flat_map(|reasons| reasons.into_iter().take(TOP))
        .collect()
}

/// What was counted, the most frequent first.
pub fn most(counts: &[u64], outcomes: &'static [Outcome], unit: &'static str) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = counted(counts, outcomes)
        .map(|(outcome, count)| Reason {
            outcome: *outcome,
            count,
            unit,
        })
        .collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.count));
    reasons
}
