//! The command: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use sockaccel::cli::Cli;

fn main() -> ExitCode {
    // clap ends the process itself: 0 for help and version, 2 for usage errors.
    let cli = Cli::parse();
    let json = cli.json();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if json {
                let body = serde_json::json!({
                    "error": { "exit_status": error.exit_code(), "message": error.to_string() }
                });
                println!("{body}");
            }
            eprintln!("sockaccel: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
