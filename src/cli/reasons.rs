//! The most frequent reasons why something is not accelerated, in sentences.

use schemars::JsonSchema;
use serde::Serialize;

use crate::maps::Stats;
use crate::outcome::{Outcome, REASONS, WHYS, counted};
use crate::remedy::{Remedies, Remedy};

/// Reasons of each kind that are told at most.
pub const TOP: usize = 5;

const SOCKETS: &str = "sockets";

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
    /// What would change it, of sockets for new connections; or empty.
    remedy: String,
}

impl Reason {
    /// As in `not_accelerated` of `status`.
    pub fn to_json(&self, remedies: &Remedies) -> Counted {
        Counted {
            reason: self.outcome.name,
            count: self.count,
            unit: self.unit,
            text: self.outcome.text,
            remedy: self.remedy(remedies).text,
        }
    }

    /// What would change it.
    pub fn remedy(&self, remedies: &Remedies) -> Remedy {
        match self.unit {
            SOCKETS => remedies.of_socket(&self.outcome),
            _ => remedies.of_message(&self.outcome),
        }
    }

    /// A sentence, and what would change it.
    pub fn to_text(&self, remedy: &Remedy) -> String {
        let Self {
            outcome: Outcome { text, .. },
            count,
            ..
        } = self;
        let mut line = match (self.unit, count) {
            (SOCKETS, 1) => format!("1 socket is not accelerated: {text}"),
            (SOCKETS, _) => format!("{count} sockets are not accelerated: {text}"),
            (_, 1) => format!("1 message of enrolled sockets went by the stack: {text}"),
            _ => format!("{count} messages of enrolled sockets went by the stack: {text}"),
        };
        if let Some(remedy) = remedy.line() {
            line.push_str("\n  ");
            line.push_str(&remedy);
        }
        line
    }
}

/// The most frequent reasons: first what keeps whole connections out, then
/// what keeps messages of enrolled ones on the stack.
pub fn top(stats: &Stats) -> Vec<Reason> {
    let sockets = most(&stats.kept_out(), REASONS, SOCKETS);
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
