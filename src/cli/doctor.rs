//! `doctor`

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::Context;
use crate::doctor::{self, Diagnosis, Risk};
use crate::error::{Error, Result};
use crate::output::prose_table;
use crate::state::cgroup::Cgroup;
use crate::words::from_one;

/// Options of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Tries what accelerated connections do on this kernel, in a network namespace, a cgroup and an
instance of its own, which are gone when it ends. Takes some seconds.

Example:  sockaccel doctor --cgroup /sys/fs/cgroup/web")]
pub struct Args {
    /// A cgroup v2 to look at for programs of others [default: the top of the hierarchy]
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroups: Vec<PathBuf>,
    /// A risk that is accepted, and does not fail
    #[arg(long, value_name = "RISK", value_delimiter = ',')]
    allow: Vec<Risk>,
    /// When to give up, and clean up; a third of it is a check's that hangs
    #[arg(long, value_name = "SECONDS", default_value_t = 9, value_parser = from_one::<u16>)]
    timeout: u16,
}

/// Runs `doctor`.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let cgroups = args
        .cgroups
        .iter()
        .map(|path| Ok(Cgroup::open(path)?.path))
        .collect::<Result<Vec<_>>>()?;
    let allowed = [Risk::from_env()?, args.allow.clone()].concat();
    let time = Duration::from_secs(args.timeout.into());
    let diagnosis = doctor::diagnose(&context.place, &cgroups, &allowed, time)?;
    context
        .output
        .print(&diagnosis, || for_people(&diagnosis))?;
    let failed = diagnosis.failed();
    if failed.is_empty() {
        return Ok(());
    }
    let report = &diagnosis.report;
    let privileges = !report.missing_capabilities.is_empty() || report.forbidden.is_some();
    let mut text = format!("doctor: {} fails", failed.join(", "));
    let mut risks: Vec<Risk> = diagnosis.checks.iter().filter_map(|f| f.risk).collect();
    risks.dedup();
    for risk in risks {
        let _ = write!(
            text,
            "\n  To accept it where no such program runs:  --allow {risk}"
        );
    }
    Err(Error::Found {
        exit_code: if privileges { 6 } else { 3 },
        text,
    })
}

/// What is not as it should be comes with what that means.
fn for_people(diagnosis: &Diagnosis) -> String {
    let rows = diagnosis.checks.iter().map(|finding| {
        let object = finding.object.as_deref();
        [
            finding.check.to_owned(),
            finding.result.to_string(),
            object.map_or_else(
                || finding.found.clone(),
                |object| format!("{object}: {}", finding.found),
            ),
            finding.meaning.clone(),
        ]
    });
    prose_table(&["check", "result", "found", "meaning"], rows)
}
