//! The command line: one file per verb or noun. Nouns read and edit tables,
//! verbs change what runs.

pub mod addr;
mod apply;
mod disable;
mod dump;
mod enable;
mod endpoint;
mod entry;
mod identity;
mod policy;
mod service;
mod stats;
mod status;

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::bench;
use crate::error::{Error, Result};
use crate::output::{self, Output};
use crate::state::{DEFAULT_INSTANCE, Place, bpffs};

/// Makes TCP between two processes of this machine skip the TCP/IP stack.
#[derive(Debug, Parser)]
#[command(
    name = "sockaccel",
    version,
    max_term_width = 100,
    infer_long_args = true
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// Print JSON
    #[arg(short, long, global = true)]
    json: bool,
    /// Print JSON with line breaks (implies --json)
    #[arg(short, long, global = true)]
    pretty: bool,
    /// The instance to work on
    #[arg(long, global = true, value_name = "NAME", default_value = DEFAULT_INSTANCE)]
    instance: String,
    /// The bpffs that holds the instances
    #[arg(long, global = true, value_name = "DIR", default_value = bpffs::DEFAULT_DIR)]
    bpffs: PathBuf,
    /// Bold headers in output for people; `NO_COLOR` is respected
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: clap::ColorChoice,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Accelerate connections between processes of these cgroups
    Enable(enable::Args),
    /// Stop accelerating; live connections go on as plain TCP
    Disable(disable::Args),
    /// Make an instance what a file says
    Apply(apply::Args),
    /// An instance as a file for apply
    #[command(after_help = "Example:  sockaccel export | sockaccel apply -f - --dry-run")]
    Export,
    /// Whether it runs, and why connections are not accelerated
    Status,
    /// Counters
    #[command(visible_alias = "stat")]
    Stats,
    /// Raw contents of a table
    #[command(subcommand)]
    Dump(dump::What),
    /// Local addresses that have policy
    #[command(subcommand, visible_alias = "endpoints")]
    Endpoint(endpoint::Verb),
    /// Security identities of addresses
    #[command(subcommand, visible_alias = "identities")]
    Identity(identity::Verb),
    /// Destinations that stay on the stack
    #[command(subcommand, visible_alias = "services")]
    Service(service::Verb),
    /// Which identities an endpoint may talk to, accelerated
    #[command(subcommand, visible_alias = "policies")]
    Policy(policy::Verb),
    /// How much faster it is here, as ratios to plain TCP
    Bench(bench::Options),
    /// One of the two programs of a benchmark
    #[command(name = bench::PEER_COMMAND, hide = true)]
    BenchPeer(bench::PeerOptions),
}

/// Whether a command line that could not be parsed asks for JSON: its error is
/// JSON then, too.
pub fn asks_for_json<S: AsRef<OsStr>>(args: &[S]) -> bool {
    args.iter()
        .skip(1)
        .map(|arg| arg.as_ref().as_encoded_bytes())
        .take_while(|arg| *arg != b"--")
        .any(|arg| match arg {
            [b'-', b'-', name @ ..] => {
                !name.is_empty() && (b"json".starts_with(name) || b"pretty".starts_with(name))
            }
            [b'-', letters @ ..] => {
                letters.iter().all(|l| b"jp".contains(l)) && !letters.is_empty()
            }
            _ => false,
        })
}

/// What every command gets.
#[derive(Debug)]
struct Context {
    place: Place,
    output: Output,
}

impl Cli {
    /// Whether errors are to be printed as JSON, too.
    pub fn json(&self) -> bool {
        self.global.json || self.global.pretty
    }

    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let context = Context {
            output: Output {
                json: self.json(),
                pretty: self.global.pretty,
                bold: output::bold(self.global.color),
            },
            place: Place::new(&self.global.instance, &self.global.bpffs)?,
        };
        match self.command {
            Command::Enable(args) => enable::run(&context, &args),
            Command::Disable(args) => disable::run(&context, &args),
            Command::Apply(args) => apply::run(&context, &args),
            Command::Export => apply::export(&context),
            Command::Status => status::run(&context),
            Command::Stats => stats::run(&context),
            Command::Dump(what) => dump::run(&context, what),
            Command::Endpoint(verb) => endpoint::run(&context, &verb),
            Command::Identity(verb) => identity::run(&context, &verb),
            Command::Service(verb) => service::run(&context, &verb),
            Command::Bench(mut options) => {
                options.json = context.output.json;
                Ok(bench::run(&options)?)
            }
            Command::BenchPeer(options) => {
                bench::run_peer(&options).map_err(|e| Error::os("take part in", "the benchmark", e))
            }
            Command::Policy(verb) => policy::run(&context, &verb),
        }
    }
}
