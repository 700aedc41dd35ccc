//! The command line: one file per verb or noun. Nouns read and edit tables,
//! verbs change what runs.

pub(crate) mod addr;
mod adopt;
mod apply;
mod assert;
mod disable;
mod doctor;
mod dump;
mod enable;
mod endpoint;
mod entry;
mod events;
mod explain;
#[cfg(fuzzing)]
pub mod fuzzing;
mod help;
mod identity;
mod instances;
pub(crate) mod live;
pub mod man;
mod metrics;
pub mod outputs;
mod policy;
pub(crate) mod reasons;
mod run;
mod service;
mod stats;
mod status;
mod tips;
mod top;
mod upgrade;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::parser::ValueSource::EnvVariable;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::bench;
use crate::doctor::behaviour;
use crate::error::{Error, Result};
use crate::output::{self, Output, PROSE};
use crate::state::{self, DEFAULT_INSTANCE, Place, bpffs};

/// Makes TCP between two processes of this machine skip the TCP/IP stack.
#[derive(Debug, Parser)]
#[command(
    name = "sockaccel",
    version,
    max_term_width = PROSE.into(),
    infer_long_args = true,
    disable_help_flag = true,
    disable_version_flag = true,
    subcommand_help_heading = "Commands",
    after_help = "Example:  sockaccel enable --cgroup /sys/fs/cgroup/web; sockaccel status"
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Print JSON
    #[arg(short, long, global = true, hide_short_help = true)]
    json: bool,
    /// Print JSON with line breaks
    #[arg(short, long, global = true, hide_short_help = true)]
    pretty: bool,
    /// The instance to work on
    #[arg(long, global = true, value_name = "NAME", env = state::VARIABLE, hide_env = true,
          default_value = DEFAULT_INSTANCE, hide_short_help = true)]
    instance: String,
    /// Where instances are pinned
    #[arg(long, global = true, value_name = "DIR", env = state::BPFFS_VARIABLE, hide_env = true,
          default_value = bpffs::DEFAULT_DIR, hide_short_help = true,
          value_parser = OsStringValueParser::new().map(PathBuf::from))]
    bpffs: PathBuf,
    /// Bold headers: auto, always, never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true,
        hide_short_help = true
    )]
    color: clap::ColorChoice,
    /// Print a screen of help; `sockaccel help COMMAND` and sockaccel(8) say more
    #[arg(short, long, global = true, action = ArgAction::HelpShort, hide_short_help = true)]
    help: Option<bool>,
    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, hide_short_help = true)]
    version: Option<bool>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Accelerate connections between processes of these cgroups
    Enable(enable::Args),
    /// Stop accelerating; live connections go on as plain TCP
    Disable(disable::Args),
    /// Replace the programs that run by those of this version
    Upgrade(upgrade::Args),
    /// Enrol connections that were there before enable
    Adopt(adopt::Args),
    /// Run a command, accelerate what its processes do among themselves
    Run(run::Args),
    /// Make an instance what a file says
    Apply(apply::Args),
    /// An instance as a file for apply
    #[command(after_help = "Example:  sockaccel export | sockaccel apply -f - --dry-run")]
    Export,
    /// Whether it runs, and why connections are not accelerated
    Status(status::Args),
    /// What this machine can do, tried out; changes nothing
    Doctor(doctor::Args),
    /// Counters
    #[command(visible_alias = "stat")]
    Stats(stats::Args),
    /// Why a connection is accelerated or not, rule by rule
    Explain(explain::Args),
    /// Fail unless the figures are as they should be, for scripts
    Assert(assert::Args),
    /// What happens to connections, as it happens
    #[command(visible_alias = "event")]
    Events(events::Args),
    /// Live connections on the terminal
    Top(top::Args),
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
    /// Completions of a shell
    Completions(man::Completions),
    /// The man page of a command
    Man(man::Options),
    /// How much faster it is here, as ratios to plain TCP
    Bench(Box<bench::Options>),
    /// One of the two programs of a benchmark
    #[command(name = bench::PEER_COMMAND, hide = true)]
    BenchPeer(bench::PeerOptions),
    /// The textbook program on a cgroup, until standard input ends
    #[command(name = bench::TEXTBOOK_COMMAND, hide = true)]
    BenchTextbook(bench::TextbookOptions),
    /// One check of doctor
    #[command(name = behaviour::PEER_COMMAND, hide = true)]
    DoctorPeer(behaviour::PeerOptions),
}

/// Exit status of a command line that makes no sense.
pub const USAGE: u8 = 2;

/// Exit status of `run` where it fails itself, also for its command line: others
/// are its command's.
pub const RUN_FAILED: u8 = 125;

/// Whether a command line that could not be parsed is one of `run`.
pub fn asks_for_run(args: &[OsString]) -> bool {
    command()
        .ignore_errors(true)
        .try_get_matches_from(args)
        .is_ok_and(|matches| matches.subcommand_name() == Some("run"))
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

/// What clap knows of the command line; its help fits a screen.
pub fn command() -> clap::Command {
    help::on_a_screen(whole())
}

/// The same, with nothing left out: for man pages and completions.
pub fn whole() -> clap::Command {
    help::with_examples(Cli::command())
}

impl Cli {
    /// Parses a command line.
    pub fn of<S: AsRef<OsStr>>(args: &[S]) -> Result<Self, clap::Error> {
        let words = args.iter().map(|word| word.as_ref().to_owned());
        let matches = command()
            .try_get_matches_from(words)
            .map_err(|error| tips::with_tip(error, args))?;
        let mut cli = Self::from_arg_matches(&matches)?;
        // An empty variable is none; an empty option is a mistake.
        let is_unset = |id, empty| empty && matches.value_source(id) == Some(EnvVariable);
        let global = &mut cli.global;
        if is_unset("instance", global.instance.is_empty()) {
            DEFAULT_INSTANCE.clone_into(&mut global.instance);
        }
        if is_unset("bpffs", global.bpffs.as_os_str().is_empty()) {
            global.bpffs = bpffs::DEFAULT_DIR.into();
        }
        Ok(cli)
    }

    /// Whether errors are to be printed as JSON, too.
    pub fn json(&self) -> bool {
        self.global.json || self.global.pretty
    }

    /// Runs the command, and gives the exit status: that of the command that
    /// `run` ran, else 0.
    pub fn run(self) -> Result<u8> {
        let context = Context {
            output: Output {
                json: self.json(),
                pretty: self.global.pretty,
                bold: output::bold(self.global.color),
            },
            place: Place::new(&self.global.instance, &self.global.bpffs).map_err(
                |error| match self.command {
                    Command::Run(_) => run::failed(error),
                    _ => error,
                },
            )?,
        };
        match self.command {
            Command::Run(args) => return run::run(&context, &args),
            Command::Enable(args) => enable::run(&context, &args),
            Command::Disable(args) => disable::run(&context, &args),
            Command::Adopt(args) => adopt::run(&context, &args),
            Command::Upgrade(args) => upgrade::run(&context, &args),
            Command::Apply(args) => apply::run(&context, &args),
            Command::Export => apply::export(&context),
            Command::Status(args) => status::run(&context, &args),
            Command::Doctor(args) => doctor::run(&context, &args),
            Command::DoctorPeer(options) => behaviour::run_peer(&options, &context.place)
                .map_err(|e| Error::os("take part in", "doctor", e)),
            Command::Stats(args) => stats::run(&context, &args),
            Command::Explain(args) => explain::run(&context, &args),
            Command::Assert(args) => assert::run(&context, &args),
            Command::Events(args) => events::run(&context, &args),
            Command::Top(args) => top::run(&context, args),
            Command::Dump(what) => dump::run(&context, what),
            Command::Endpoint(verb) => endpoint::run(&context, &verb),
            Command::Identity(verb) => identity::run(&context, &verb),
            Command::Service(verb) => service::run(&context, &verb),
            Command::Completions(args) => man::completions(&args),
            Command::Man(options) => man::run(&options),
            Command::Bench(mut options) => {
                options.bpffs.clone_from(&context.place.bpffs);
                bench::run(&options, context.output)
            }
            Command::BenchPeer(options) => {
                bench::run_peer(&options).map_err(|e| Error::os("take part in", "the benchmark", e))
            }
            Command::BenchTextbook(options) => Ok(bench::hold_textbook(&options)?),
            Command::Policy(verb) => policy::run(&context, &verb),
        }
        .map(|()| 0)
    }
}
