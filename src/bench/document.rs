//! All that was found, as JSON has it and as tables and reports take it.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use schemars::JsonSchema;
use serde::Serialize;

use super::Measured;
use super::options::{Mode, Options, Wait};
use super::plan::Cell;
use super::result::CellResult;
use super::stats::Summary;
use super::targets::Outcome;

/// The whole result.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Document {
    /// Of this program.
    pub version: &'static str,
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the CPU, by /proc/cpuinfo.
    pub cpu: String,
    /// How many of them there are.
    pub cpus: usize,
    /// How programs waited.
    pub wait: Wait,
    /// Rounds of each cell, at most.
    pub rounds: u32,
    /// Of each measurement.
    pub seconds: f64,
    /// Before each.
    pub warm_up: f64,
    /// Requests of one connection under way at one time, in pipelined.
    pub depth: u32,
    /// Largest segment that TCP was allowed.
    pub mss: Option<u32>,
    /// Options of the variant.
    pub variant: Option<String>,
    /// How long it all took.
    pub took_seconds: f64,
    /// Ratios of plain TCP to plain TCP.
    pub noise: Option<Noise>,
    /// How many targets were met, missed and left undecided.
    pub targets: Targets,
    /// What was measured.
    pub cells: Vec<CellResult>,
    /// What there was no time for.
    pub left_out: Vec<Cell>,
    /// What keeps figures from counting.
    pub void: Vec<String>,
    /// The signal that ended it, if one did.
    pub interrupted: Option<&'static str>,
}

/// How far plain TCP is from itself: what a difference has to exceed.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct Noise {
    /// Of the medians of all cells.
    pub ratio: Summary,
    /// How far from 1 the 95 % interval of it reaches, in the median cell.
    pub floor: f64,
}

/// Counts of targets.
#[derive(Debug, Clone, Copy, Default, Serialize, JsonSchema)]
pub struct Targets {
    /// Reached.
    pub met: usize,
    /// Not reached.
    pub missed: usize,
    /// Within the noise.
    pub undecided: usize,
}

impl Document {
    pub(super) fn new(
        options: &Options,
        measured: Measured,
        took: Duration,
        interrupted: Option<Signal>,
    ) -> Self {
        let Measured { cells, left_out } = measured;
        let void = cells.iter().flat_map(CellResult::void).collect();
        let mut targets = Targets::default();
        for target in cells.iter().flat_map(|cell| &cell.targets) {
            match target.verdict {
                Outcome::Met => targets.met += 1,
                Outcome::Missed => targets.missed += 1,
                Outcome::Undecided => targets.undecided += 1,
            }
        }
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: nix::sys::utsname::uname()
                .map(|uname| uname.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            cpu: cpu_model(),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            wait: options.wait,
            rounds: options.rounds,
            seconds: options.seconds,
            warm_up: options.warm_up,
            depth: options.depth,
            mss: options.mss,
            variant: (!options.variant.is_empty()).then(|| options.variant.join(" ")),
            took_seconds: took.as_secs_f64(),
            noise: Noise::of(&cells),
            targets,
            cells,
            left_out,
            void,
            interrupted: interrupted.map(Signal::as_str),
        }
    }
}

impl Noise {
    fn of(cells: &[CellResult]) -> Option<Self> {
        let again: Vec<Summary> = cells
            .iter()
            .filter_map(|cell| cell.mode(Mode::TcpAgain)?.ratio)
            .collect();
        let medians: Vec<f64> = again.iter().map(|ratio| ratio.median).collect();
        let reach = |ratio: &Summary| (ratio.high - 1.0).max(1.0 - ratio.low);
        let reaches: Vec<f64> = again.iter().map(reach).collect();
        Some(Self {
            ratio: Summary::of(&medians)?,
            floor: Summary::of(&reaches)?.median,
        })
    }
}

fn cpu_model() -> String {
    fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, model)| model.to_owned())
        .unwrap_or_default()
}
