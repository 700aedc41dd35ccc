//! `disable`

use std::path::PathBuf;

use super::Context;
use super::entry::InstanceChanged;
use crate::error::{Error, Result};
use crate::state::cgroup::Cgroup;
use crate::state::{Change, Instance};

/// Options of `disable`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --cgroup the whole instance is disabled. Live connections go on, as plain TCP from their
next message; what was already redirected can still be read.

Example:  sockaccel disable --cgroup /sys/fs/cgroup/web")]
pub struct Args {
    /// Only take this cgroup out
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroup: Option<PathBuf>,
}

/// Runs `disable`; what is not enabled is disabled already.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    // Not root, not a cgroup: to be told also where nothing is enabled.
    let cgroup = args.cgroup.as_deref().map(Cgroup::open).transpose()?;
    let change = match (Instance::open_to_remove(&context.place), cgroup) {
        (Err(Error::NotEnabled { .. }), _) => Change::Nothing,
        (instance, None) => instance?.disable()?,
        (instance, Some(cgroup)) => instance?.disable_cgroup(cgroup.id)?,
    };
    context
        .output
        .print_json(&InstanceChanged::new(context, change))
}
