//! What this project wants to reach in each cell, and whether it did.

use schemars::JsonSchema;
use serde::Serialize;

use super::options::{Cores, Mode, Workload};
use super::result::CellResult;
use super::stats::Summary;

/// Something that this project wants to reach.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Target {
    /// Which figure.
    pub what: &'static str,
    /// What it has to be, at least or at most.
    pub want: f64,
    /// Less is better.
    pub at_most: bool,
    /// What it is.
    pub measured: f64,
    /// Which of both.
    pub verdict: Outcome,
}

/// Whether a target was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The median reaches it.
    Met,
    /// The whole interval is short of it.
    Missed,
    /// The median is short of it, and the 95 % interval reaches it.
    Undecided,
}

impl Outcome {
    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Undecided => "undecided",
        }
    }
}

impl Target {
    fn at_least(what: &'static str, want: f64, summary: Summary) -> Self {
        Self {
            what,
            want,
            at_most: false,
            measured: summary.median,
            verdict: outcome(summary.median >= want, summary.high >= want),
        }
    }

    fn at_most(what: &'static str, want: f64, summary: Summary) -> Self {
        Self {
            what,
            want,
            at_most: true,
            measured: summary.median,
            verdict: outcome(summary.median <= want, summary.low <= want),
        }
    }
}

fn outcome(median_reaches: bool, interval_reaches: bool) -> Outcome {
    match (median_reaches, interval_reaches) {
        (true, _) => Outcome::Met,
        (false, true) => Outcome::Undecided,
        (false, false) => Outcome::Missed,
    }
}

/// The targets of one cell.
pub fn of(result: &CellResult) -> Vec<Target> {
    let cell = &result.cell;
    let ratio = |mode| result.mode(mode).and_then(|of| of.ratio);
    let own = result.mode(Mode::Sockaccel);
    let exchanges = cell.workload == Workload::RequestResponse;
    let one_core = cell.cores == Cores::Same;
    let small = exchanges && one_core && cell.size <= 4096;
    let large_stream = cell.workload == Workload::Stream && one_core && cell.size >= 65_536;
    let want = if small {
        1.45
    } else if large_stream {
        1.2
    } else {
        0.97
    };
    let mut targets = Vec::new();
    let mut at_least = |what, want, summary: Option<Summary>| {
        targets.extend(summary.map(|summary| Target::at_least(what, want, summary)));
    };
    at_least("sockaccel / tcp", want, ratio(Mode::Sockaccel));
    if small {
        at_least("sockaccel / textbook", 0.97, result.sockaccel_to_textbook);
        at_least("gap to unix closed", 0.85, result.gap_closed);
    }
    at_least("to-remote / tcp", 0.99, ratio(Mode::ToRemote));
    at_least("from-remote / tcp", 0.99, ratio(Mode::FromRemote));
    if small && let Some(own) = own {
        let p99 = own.latency_ratio.map(|of| of.p99);
        targets.extend(p99.map(|of| Target::at_most("p99 / tcp's p99", 0.75, of)));
        let cpu = own.cpu_ratio;
        targets.extend(cpu.map(|of| Target::at_most("CPU time / tcp's", 0.80, of)));
    }
    for verdict in &result.verdict_ns {
        if let ("sa_skmsg", Some(ns)) = (verdict.program, verdict.ns) {
            targets.push(Target {
                what: "ns per verdict",
                want: 100.0,
                at_most: true,
                measured: ns,
                verdict: outcome(ns <= 100.0, false),
            });
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Target};
    use crate::bench::stats::Summary;

    fn summary(low: f64, median: f64, high: f64) -> Summary {
        Summary {
            median,
            min: low,
            max: high,
            low,
            high,
        }
    }

    #[test]
    fn a_target_is_missed_only_for_certain() {
        for (low, median, high, least, most) in [
            (1.1, 1.2, 1.3, Outcome::Met, Outcome::Missed),
            (0.9, 1.1, 1.2, Outcome::Met, Outcome::Undecided),
            (0.8, 0.9, 1.1, Outcome::Undecided, Outcome::Met),
            (0.7, 0.8, 0.9, Outcome::Missed, Outcome::Met),
            (1.0, 1.0, 1.0, Outcome::Met, Outcome::Met),
        ] {
            let of = summary(low, median, high);
            assert_eq!(Target::at_least("", 1.0, of).verdict, least, "{of:?}");
            assert_eq!(Target::at_most("", 1.0, of).verdict, most, "{of:?}");
        }
    }
}
