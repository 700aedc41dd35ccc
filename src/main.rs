//! The command: parse, run, exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use sockaccel::cli::{Cli, asks_for_json};
use sockaccel::error::Failure;
use sockaccel::output::{say, write};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::of(&args) {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error, asks_for_json(&args)),
    };
    let json = cli.json();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if json {
                print_json(error.exit_code(), &error.to_string());
            }
            say(format_args!("sockaccel: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Help and the version are asked for, and no failure; the rest is a usage error.
fn not_parsed(error: &clap::Error, json: bool) -> ExitCode {
    let asked = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if json && !asked {
        let text = error.to_string();
        print_json(2, text.trim_start_matches("error: ").trim_end());
    }
    // Nobody may be reading it.
    let _ = error.print();
    ExitCode::from(if asked { 0 } else { 2 })
}

fn print_json(exit_status: u8, message: &str) {
    let body = Failure::new(exit_status, message);
    // The exit status tells as much where standard output is gone.
    let _ = write(&serde_json::to_string(&body).unwrap_or_default());
}
