//! `top`

use std::time::Duration;

use super::Context;
use super::live::seconds;
use crate::error::{Error, Result};
use crate::top::{self, model::Sort};

/// Options of `top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys: q quit, arrows move, Enter shows all about a connection, / filters, space stands still,
m b u s p l r sort by messages, bytes, unread, path (stack first), pid, local, remote; i inverts.

Example:  sockaccel top --sort bytes --filter :6379")]
pub struct Args {
    /// Time between two readings
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    interval: Duration,
    /// The order at the beginning
    #[arg(long, value_name = "KEY", default_value = "messages")]
    sort: Sort,
    /// Only connections with this text in their line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,
}

/// Runs `top`.
pub fn run(context: &Context, args: Args) -> Result<()> {
    if context.output.json {
        return Err(Error::Usage(
            "top has no JSON\n  To use:  sockaccel dump sockhash --json, sockaccel stats --watch --json"
                .to_owned(),
        ));
    }
    top::run(
        &context.place,
        top::Options {
            interval: args.interval,
            sort: args.sort,
            filter: args.filter,
            color: context.output.bold,
        },
    )
}
