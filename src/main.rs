//! The command: parse, run, exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use sockaccel::cli::{Cli, asks_for_json, asks_for_run};
use sockaccel::cli::{RUN_FAILED, USAGE};
use sockaccel::error::Failure;
use sockaccel::output::{say, write};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::of(&args) {
        Ok(cli) => cli,
        Err(error) if asks_for_run(&args) => return not_parsed(&error, false, RUN_FAILED),
        Err(error) => return not_parsed(&error, asks_for_json(&args), USAGE),
    };
    let json = cli.json();
    match cli.run() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            // One document is enough.
            if json && !error.is_printed() {
                print_json(error.exit_code(), &error.to_string());
            }
            say(format_args!("sockaccel: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Help and the version are asked for, and no failure; the rest is a usage error.
fn not_parsed(error: &clap::Error, json: bool, status: u8) -> ExitCode {
    let asked = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if json && !asked {
        let text = error.to_string();
        print_json(status, text.trim_start_matches("error: ").trim_end());
    }
    // Nobody may be reading it.
    let _ = error.print();
    ExitCode::from(if asked { 0 } else { status })
}

fn print_json(exit_status: u8, message: &str) {
    let body = Failure::new(exit_status, message);
    // The exit status tells as much where standard output is gone.
    let _ = write(&serde_json::to_string(&body).unwrap_or_default());
}
