//! `sockaccel bench` without the rest: prints ratios to plain TCP.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sockaccel::bench;

#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Hidden>,
    #[command(flatten)]
    options: bench::Options,
    /// JSON instead of a table
    #[arg(short, long)]
    json: bool,
}

#[derive(Subcommand)]
enum Hidden {
    #[command(name = bench::PEER_COMMAND, hide = true)]
    Peer(bench::PeerOptions),
}

fn main() -> ExitCode {
    let mut cli = Cli::parse();
    cli.options.json = cli.json;
    let result = match &cli.command {
        Some(Hidden::Peer(options)) => bench::run_peer(options).map_err(|err| err.to_string()),
        None => bench::run(&cli.options).map_err(|err| err.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("ratios: {err}");
            ExitCode::FAILURE
        }
    }
}
