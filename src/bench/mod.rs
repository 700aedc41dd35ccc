//! How much faster is it? Two non-blocking programs talk, in short cells that
//! take turns: plain TCP, sockaccel, the textbook sockmap program and
//! `AF_UNIX`. What counts are the ratios to plain TCP within each round,
//! because machines drift, and the proof of the path the bytes went.

mod accelerator;
mod cgroup;
mod document;
mod error;
mod html;
mod lab;
mod netns;
mod options;
mod peer;
mod plan;
mod progress;
mod result;
mod sample;
mod site;
mod stats;
mod svg;
mod table;
mod targets;
mod watch;

use std::time::{Duration, Instant};

use lab::Lab;
use options::{Mode, Workload};
use plan::{Cell, Plan};
use progress::Progress;
use result::{CellResult, Samples, Verdict};

pub use document::Document;
pub use error::Error;
pub use options::Options;
pub use peer::{PeerOptions, run as run_peer};

use crate::output::{Output, say};
pub use accelerator::{TextbookOptions, hold as hold_textbook};

/// Name of the hidden subcommand whose body is [`run_peer`]: the benchmark
/// starts its own executable with it for each of the two programs.
pub const PEER_COMMAND: &str = "bench-peer";

/// Name of the hidden subcommand whose body is [`hold_textbook`], for
/// `scripts/bench-apps.sh`.
pub const TEXTBOOK_COMMAND: &str = "bench-textbook";

/// What takes longer is announced.
const LONG: Duration = Duration::from_secs(120);
/// Of a cell that ran out of time, how many rounds make it count.
const ENOUGH_ROUNDS: u32 = 3;

/// Measures and prints. Everything made for it is removed again, whatever
/// happens.
///
/// # Errors
///
/// [`Found`](crate::error::Error::Found) when some of the figures printed do not
/// count, or not all were measured; anything else when there are none.
pub fn run(options: &Options, output: Output) -> crate::error::Result<()> {
    let plan = Plan::new(options)?;
    if let Some(path) = &options.report {
        html::check(path)?;
    }
    announce(options, &plan);
    let began = Instant::now();
    let mut measured = Measured::default();
    let interrupted = {
        let lab = Lab::set_up(options, &plan)?;
        match measured.all(options, &plan, &lab) {
            Ok(()) => None,
            Err(Error::Interrupted(signal)) if !measured.cells.is_empty() => Some(signal),
            Err(err) => return Err(err.into()),
        }
    };
    let document = Document::new(options, measured, began.elapsed(), interrupted);
    if let Some(path) = &options.report {
        html::write(path, &document)?;
    }
    output.print(&document, || table::of(&document))?;
    let void = match interrupted {
        Some(signal) => Error::Interrupted(signal).to_string(),
        None if document.void.is_empty() => return Ok(()),
        None => format!("bench: {}", document.void.join("\n  ")),
    };
    Err(crate::error::Error::Found {
        exit_code: 1,
        text: void,
    })
}

/// How long it will take, where that is long.
fn announce(options: &Options, plan: &Plan) {
    let estimate = plan.estimate();
    if options.max_time.is_none() && estimate > LONG {
        say(format_args!(
            "sockaccel: bench: {} cells, about {} minutes; --max-time bounds that",
            plan.cells.len(),
            estimate.as_secs().div_ceil(60)
        ));
    }
}

/// What became of the cells of a plan.
#[derive(Debug, Default)]
struct Measured {
    cells: Vec<CellResult>,
    /// For which there was no time.
    left_out: Vec<Cell>,
}

impl Measured {
    fn all(&mut self, options: &Options, plan: &Plan, lab: &Lab) -> Result<(), Error> {
        let deadline = options.max_time.map(|time| Instant::now() + time);
        let progress = Progress::new(plan, options.rounds);
        for (n, cell) in plan.cells.iter().enumerate() {
            progress.begin(cell);
            let result = measure(options, plan, lab, cell, deadline, &progress);
            match result {
                Ok(Some(result)) => self.cells.push(result),
                Ok(None) => self.left_out.push(*cell),
                Err(err) => {
                    self.left_out.extend(&plan.cells[n..]);
                    return Err(err);
                }
            }
            progress.end(n + 1);
        }
        Ok(())
    }
}

/// One cell; none when there was no time for it.
fn measure(
    options: &Options,
    plan: &Plan,
    lab: &Lab,
    cell: &Cell,
    deadline: Option<Instant>,
    progress: &Progress,
) -> Result<Option<CellResult>, Error> {
    let late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
    let modes = plan.modes_of(cell);
    let mut samples: Vec<Samples> = modes.iter().map(|&mode| (mode, Ok(Vec::new()))).collect();
    for round in 0..options.rounds {
        // Another order each time: none profits from the one before it.
        for turn in 0..modes.len() {
            lab.check()?;
            if late() {
                return Ok((round >= ENOUGH_ROUNDS).then(|| {
                    for (_, samples) in &mut samples {
                        if let Ok(samples) = samples {
                            samples.truncate(round as usize);
                        }
                    }
                    CellResult::new(*cell, samples, Vec::new())
                }));
            }
            let (mode, samples) = &mut samples[(turn + round as usize) % modes.len()];
            if let Ok(done) = samples {
                match lab.sample(*mode, cell) {
                    Ok(sample) => done.push(sample),
                    // The others have figures all the same.
                    Err(Error::Sample(why)) => *samples = Err(why),
                    Err(err) => return Err(err),
                }
            }
            progress.step();
        }
    }
    let mut verdicts = Vec::new();
    if cell.workload == Workload::RequestResponse && cell.connections == 1 && !late() {
        for (mode, program) in [(Mode::Sockaccel, "sa_skmsg"), (Mode::Textbook, "tb_skmsg")] {
            if samples.iter().any(|(of, done)| *of == mode && done.is_ok()) {
                let ns = lab.verdict_ns(mode, cell, program)?;
                verdicts.push(Verdict { program, ns });
            }
        }
    }
    Ok(Some(CellResult::new(*cell, samples, verdicts)))
}
