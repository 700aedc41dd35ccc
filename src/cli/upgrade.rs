//! `upgrade`

use super::Context;
use super::entry::InstanceChanged;
use crate::error::Result;
use crate::state::{Change, upgrade};

/// Options of `upgrade`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Connections, tables and counters stay; nothing is interrupted. What has been unpinned is pinned
again.

Example:  sockaccel upgrade")]
pub struct Args {
    /// Also if the programs are the same
    #[arg(long, hide = true)]
    again: bool,
}

/// Runs `upgrade`.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let change = upgrade(&context.place, args.again)?;
    context.output.note(match change {
        Change::Done => "The programs are those of this version now.",
        Change::Nothing => "The programs are those of this version already: nothing to do.",
    });
    context
        .output
        .print_json(&InstanceChanged::new(context, change))
}
