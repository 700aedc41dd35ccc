//! `adopt`

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::addr::{local, remote};
use super::reasons::most;
use crate::error::Result;
use crate::maps::layout::Candidate;
use crate::outcome::{REASONS, name};
use crate::output::{count, say, table};
use crate::state::{self, adopt};

/// Options of `adopt`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
By the same rules as new connections. Each direction is accelerated once its receiver has read
something from then on.

Example:  sockaccel adopt --dry-run")]
pub struct Args {
    /// Change nothing, say what would be
    #[arg(long)]
    dry_run: bool,
}

/// What `adopt` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    /// False where `--dry-run` says what would be.
    done: bool,
    /// Connections that are enrolled now.
    adopted: Vec<Connection>,
    /// Sockets that stay on the stack.
    left: Vec<Left>,
}

/// A connection, as its client sees it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Connection {
    /// Address of the socket that connected.
    client: SocketAddr,
    /// Address that it connected to.
    server: SocketAddr,
    /// Cookie of the client's socket.
    client_cookie: String,
    /// Cookie of the server's socket.
    server_cookie: String,
}

/// A socket, and why it was not adopted.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Left {
    /// In the kernel, unique for the boot.
    cookie: String,
    /// Its own address.
    local: SocketAddr,
    /// Its peer's, as it sees it.
    remote: SocketAddr,
    /// A name of `skipped` in `stats`.
    reason: &'static str,
}

impl From<&[Candidate; 2]> for Connection {
    fn from([client, server]: &[Candidate; 2]) -> Self {
        Self {
            client: local(&client.tuple),
            server: remote(&client.tuple),
            client_cookie: client.cookie.to_string(),
            server_cookie: server.cookie.to_string(),
        }
    }
}

impl From<&(Candidate, u32)> for Left {
    fn from((socket, reason): &(Candidate, u32)) -> Self {
        Self {
            cookie: socket.cookie.to_string(),
            local: local(&socket.tuple),
            remote: remote(&socket.tuple),
            reason: name(REASONS, *reason),
        }
    }
}

/// Runs `adopt`.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let found = adopt(&context.place, args.dry_run)?;
    let connections = found.connections.len() as u64;
    context.output.note(sentence(connections, args.dry_run));
    if found.hidden > 0 {
        say(format_args!(
            "sockaccel: {} cannot be looked at without CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_SYS_PTRACE",
            count(found.hidden as u64, "other network namespace")
        ));
    }
    let report = Report::of(&found, !args.dry_run);
    context.output.print(&report, || to_table(&found))
}

impl Report {
    /// `done` unless it is what would be.
    pub fn of(found: &state::Adopted, done: bool) -> Self {
        Self {
            done,
            adopted: found.connections.iter().map(Connection::from).collect(),
            left: found.left.iter().map(Left::from).collect(),
        }
    }
}

fn sentence(connections: u64, dry_run: bool) -> String {
    let would = if dry_run {
        "Would be adopted"
    } else {
        "Adopted"
    };
    match connections {
        0 => format!("{would}: no connection"),
        n => format!("{would}: {}", count(n, "connection")),
    }
}

/// Sockets that were left, by reason.
fn to_table(found: &state::Adopted) -> String {
    let mut counts = [0; REASONS.len()];
    for (_, reason) in &found.left {
        if let Some(count) = counts.get_mut(*reason as usize) {
            *count += 1;
        }
    }
    let reasons = most(&counts, REASONS, "sockets");
    if reasons.is_empty() {
        return String::new();
    }
    table(
        &["sockets left", "reason", "meaning"],
        reasons.iter().map(|reason| {
            [
                reason.count.to_string(),
                reason.outcome.name.to_owned(),
                reason.outcome.text.to_owned(),
            ]
        }),
    )
}
