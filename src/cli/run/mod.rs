//! `run`: a cgroup and an instance for one command.

mod command;
mod summary;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use super::enable::Tuning;
use super::{Context, RUN_FAILED};
use crate::doctor::{self, Fionread, Risk};
use crate::error::{Error, Failure, Result, on};
use crate::maps::Stats;
use crate::output::say;
use crate::state::temporary::{self, Temporary};
use crate::state::{DEFAULT_INSTANCE, Place, VARIABLE};
use command::Signals;
use summary::Summary;
pub use summary::Told;

/// Options of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Accelerates what has both ends in the command, which finds the instance in
SOCKACCEL_INSTANCE. Exit status: its own, 128 and a signal, 125-127 as env(1).

Example:  sockaccel run -- sh -c 'redis-server --save \"\" & redis-benchmark -q; kill $!'")]
pub struct Args {
    #[command(flatten)]
    tuning: Tuning,
    /// Where the summary goes, not standard error
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
    /// The command and its arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        hide_short_help = true
    )]
    command: Vec<OsString>,
}

/// Runs the command: its exit status.
pub fn run(context: &Context, args: &Args) -> Result<u8> {
    let mut report = Report::open(args)?;
    accelerated(context, args, &mut report).inspect_err(|error| {
        if context.output.json {
            let message = error.to_string();
            let value = Failure::new(error.exit_code(), &message);
            // The exit status tells as much.
            let _ = context
                .output
                .to_json(&value)
                .and_then(|text| report.write(&text));
        }
    })
}

fn accelerated(context: &Context, args: &Args, report: &mut Report) -> Result<u8> {
    // Before anything is made: from here on a signal ends the command, not us.
    let mut signals = Signals::take().map_err(failed)?;
    let mut place = context.place.clone();
    if is_unnamed(&place) {
        place.instance = temporary::unique_instance();
    }
    let mut settings = args.tuning.settings();
    settings.allow = accepted(args).map_err(failed)?;
    for stale in temporary::sweep(&place) {
        say(format_args!("sockaccel: {}", summary::swept(&stale)));
    }
    let mut temporary = Temporary::new(&place).map_err(failed)?;
    temporary.enable(&settings).map_err(failed)?;
    if let Some(signal) = signals.pending() {
        // Nothing was started: as if it had ended by that signal.
        drop(temporary);
        return Ok(command::status_of_signal(signal));
    }
    let started = std::time::Instant::now();
    let ended = command::run(&args.command, &temporary, &mut signals);
    let elapsed = started.elapsed();
    let counters = Stats::read(&place.dir());
    let remains = temporary.close();
    for failure in &remains.failures {
        say(format_args!("sockaccel: {failure}"));
    }
    let exit_status = ended?;
    let stats = match counters {
        Ok(stats) => stats,
        // Somebody has disabled it meanwhile; the exit status still is the command's.
        Err(e) => {
            say(format_args!("sockaccel: no summary: {e}"));
            return Ok(exit_status);
        }
    };
    let summary = Summary {
        command: &args.command,
        place: &place,
        status: exit_status,
        elapsed,
        stats,
        remains,
    };
    let text = if context.output.json {
        context.output.to_json(&summary.to_json()).map_err(failed)?
    } else {
        summary.to_text()
    };
    // The command has done its work; its exit status is the one to give.
    if let Err(e) = report.write(&text) {
        say(format_args!("sockaccel: {e}"));
    }
    Ok(exit_status)
}

/// A failure of `run` itself, as env(1) has it.
pub fn failed(error: Error) -> Error {
    failed_as(RUN_FAILED, error)
}

fn failed_as(status: u8, error: Error) -> Error {
    Error::Run {
        status,
        source: Box::new(error),
    }
}

/// No name was given, or that of the run around this one.
fn is_unnamed(place: &Place) -> bool {
    place.instance == DEFAULT_INSTANCE
        || std::env::var_os(VARIABLE).is_some_and(|name| name == *place.instance)
}

/// Asks the kernel, and warns; gives the bits of the risks that are taken.
fn accepted(args: &Args) -> Result<u32> {
    let allowed = [Risk::from_env()?, args.tuning.allow.clone()].concat();
    let report = doctor::before_run(&args.command, &allowed)?;
    for warning in report.news(&allowed) {
        let of_fionread = *warning == report.fionread.to_string();
        say(format_args!("sockaccel: warning: {warning}"));
        if of_fionread && matches!(report.fionread, Fionread::Wrong { .. }) {
            say(
                "  Programs that rely on it can hang: nginx >= 1.17.5, Java NIO, .NET.\n  \
                 If none of them runs here, this is silenced by:  --allow fionread",
            );
        }
    }
    let taken = allowed.iter().chain(&report.risks);
    Ok(taken.fold(0, |bits, risk| bits | risk.bit()))
}

/// Where the summary goes.
#[derive(Debug)]
struct Report(Option<(PathBuf, File)>);

impl Report {
    /// Opened first: that it cannot be written is to be known before the command
    /// has run for an hour.
    fn open(args: &Args) -> Result<Self> {
        let Some(path) = &args.summary else {
            return Ok(Self(None));
        };
        let file = File::create(path).map_err(|e| failed(on("create", path)(e)))?;
        Ok(Self(Some((path.clone(), file))))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        if let Some((path, file)) = &mut self.0 {
            return writeln!(file, "{text}").map_err(on("write to", path));
        }
        say(text);
        Ok(())
    }
}
