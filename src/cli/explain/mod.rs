//! `explain`: one connection, both directions, every rule.

mod find;
mod rules;

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::addr::end;
use crate::error::{Error, Result};
use crate::maps::layout::PATH_REDIRECT;
use crate::outcome::REASONS;
use crate::output::count;
use crate::remedy::Remedies;
use crate::state::{Instance, process};
use crate::words::{from_one, one_port};
use find::{Connection, End, Look, Paths, Wanted, canonical, find};
use rules::{Direction, Rule, Seen, Setting};

/// Options of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Also of what is not accelerated: skipped, ejected, older, outside of the cgroups.
ss -tnp lists all there are. Its words:  GLOSSARY of  sockaccel man | man -l -

Example:  sockaccel explain 127.0.0.1:41592 127.0.0.1:6379")]
pub struct Args {
    /// One end of the connection, ADDRESS:PORT
    #[arg(requires = "remote", conflicts_with_all = ["pid", "port"])]
    local: Option<SocketAddr>,
    /// Its other end
    remote: Option<SocketAddr>,
    /// The connections that this process has open
    #[arg(long, value_name = "PID", conflicts_with = "port", value_parser = from_one::<u32>)]
    pid: Option<u32>,
    /// The connections with this port at either end
    #[arg(long, value_name = "PORT", value_parser = one_port)]
    port: Option<u16>,
    /// Connections to explain at most
    #[arg(long, value_name = "N", default_value_t = 10)]
    limit: usize,
}

impl Args {
    fn wanted(&self) -> Result<Wanted> {
        match (self.local, self.remote, self.pid, self.port) {
            (Some(local), Some(remote), _, _) => {
                Ok(Wanted::Ends(canonical(local), canonical(remote)))
            }
            (_, _, Some(pid), _) => Ok(Wanted::Pid(pid)),
            (_, _, _, Some(port)) => Ok(Wanted::Port(port)),
            _ => Err(Error::Usage(
                "explain what? Both ends of a connection (LOCAL REMOTE), --pid PID or --port PORT"
                    .into(),
            )),
        }
    }
}

/// A connection, looked at and judged.
struct Explained {
    connection: Connection,
    looks: [Option<Look>; 2],
    /// First to second, and back.
    directions: Vec<Direction>,
}

/// Runs `explain`.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let wanted = args.wanted()?;
    let instance = Instance::open(&context.place)?;
    let found = find(&instance, wanted, args.limit)?;
    if found.hidden > 0 {
        context.output.note(format_args!(
            "sockaccel: the sockets of {} may not be looked at",
            count(found.hidden, "process")
        ));
    }
    if found.connections.is_empty() {
        return Err(absent(wanted));
    }
    let config = instance.config()?;
    let observed = instance.table::<u32, u32>("sa_observed")?.get(&0)?;
    let attached = instance.attached()?;
    let setting = Setting {
        generation: (config.generation.wrapping_add(1)).wrapping_add(observed.unwrap_or_default()),
        remedies: Remedies::new(&context.place, &config, &attached),
        config,
        attached,
        instance: &instance,
    };
    let mut paths = Paths::new();
    let explained = found
        .connections
        .into_iter()
        .map(|connection| explain(&setting, &mut paths, connection))
        .collect::<Result<Vec<_>>>()?;
    drop(instance);
    let value = Explanations {
        instance: &context.place.instance,
        connections: explained.iter().map(ConnectionRow::new).collect(),
        more: found.more,
    };
    context.output.print(&value, || {
        let mut text: Vec<String> = explained.iter().map(to_text).collect();
        if found.more > 0 {
            text.push(format!(
                "{} more; name one by its ends, or give --limit N",
                found.more
            ));
        }
        text.join("\n\n")
    })
}

fn absent(wanted: Wanted) -> Error {
    let (what, way_out) = match wanted {
        Wanted::Ends(a, b) => (
            format!("no process has a TCP connection between {a} and {b} open"),
            "All there are:  ss -tnp   (in a network namespace:  ss -tnp -N NAME)",
        ),
        Wanted::Pid(pid) => (
            format!("process {pid} has no TCP connection open"),
            "All there are:  ss -tnp",
        ),
        Wanted::Port(port) => (
            format!("no process has a TCP connection with port {port} open"),
            "All there are:  ss -tnp   (in a network namespace:  ss -tnp -N NAME)",
        ),
    };
    Error::Failed(format!("{what}\n  {way_out}"))
}

fn explain(setting: &Setting<'_>, paths: &mut Paths, connection: Connection) -> Result<Explained> {
    let looks = [
        connection.first.look(paths),
        connection.second.as_ref().and_then(|end| end.look(paths)),
    ];
    let first = Seen {
        end: &connection.first,
        look: looks[0].as_ref(),
    };
    let second = connection.second.as_ref().map(|end| Seen {
        end,
        look: looks[1].as_ref(),
    });
    let mut directions = vec![setting.judge(first, second)?];
    if let Some(second) = second {
        directions.push(setting.judge(second, Some(first))?);
    }
    Ok(Explained {
        connection,
        looks,
        directions,
    })
}

fn ends(explained: &Explained) -> impl Iterator<Item = (&End, Option<&Look>)> {
    let Connection { first, second } = &explained.connection;
    [Some(first), second.as_ref()]
        .into_iter()
        .zip(&explained.looks)
        .filter_map(|(end, look)| Some((end?, look.as_ref())))
}

/// What was found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Explanations<'a> {
    /// Its name.
    instance: &'a str,
    /// Each connection.
    connections: Vec<ConnectionRow<'a>>,
    /// Connections beyond the limit.
    more: usize,
}

/// A connection, the client's end first where that is known.
#[derive(Debug, Serialize, JsonSchema)]
struct ConnectionRow<'a> {
    /// Both, as far as they are known.
    ends: Vec<EndRow<'a>>,
    /// From each of them.
    directions: Vec<DirectionRow<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct EndRow<'a> {
    /// Of the socket, unique for the boot.
    cookie: String,
    /// Own address and port.
    local: SocketAddr,
    /// The other end's, as this one sees it.
    remote: SocketAddr,
    /// `active` connected, `passive` accepted; null where nothing tells.
    role: Option<&'a str>,
    /// Of a process that has it open.
    pid: Option<u32>,
    /// The name of that process.
    command: Option<String>,
    /// Path of the cgroup that it belongs to.
    cgroup: Option<&'a str>,
    /// It does not block.
    nonblocking: Option<bool>,
    /// Options that keep it on the stack.
    options: Option<&'a [&'static str]>,
    /// It became ESTABLISHED in an enabled cgroup.
    seen: bool,
    /// It is enrolled now.
    enrolled: bool,
    /// Why it was skipped or ejected.
    reason: Option<&'a str>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct DirectionRow<'a> {
    /// Address and port of the sender.
    from: SocketAddr,
    /// Of the receiver.
    to: SocketAddr,
    /// Is what is sent now redirected?
    accelerated: bool,
    /// The whole answer in a sentence.
    why: &'a str,
    /// `stack` or `redirect`; null where it is not enrolled.
    path: Option<&'a str>,
    /// Sent past the stack.
    redirected_messages: Option<u64>,
    /// Their bytes.
    redirected_bytes: Option<u64>,
    /// Sent by the stack.
    stack_messages: Option<u64>,
    /// Their bytes.
    stack_bytes: Option<u64>,
    /// Every rule that decides, in its order.
    rules: &'a [Rule],
}

impl<'a> ConnectionRow<'a> {
    fn new(explained: &'a Explained) -> Self {
        let directions = ends(explained).zip(&explained.directions);
        Self {
            ends: ends(explained)
                .map(|(end, look)| EndRow::new(end, look))
                .collect(),
            directions: directions
                .map(|((end, _), direction)| DirectionRow::new(end, direction))
                .collect(),
        }
    }
}

impl<'a> EndRow<'a> {
    fn new(end: &End, look: Option<&'a Look>) -> Self {
        let reason = end.record().map_or(0, |sock| match sock.skipped {
            0 => sock.ejected,
            skipped => skipped,
        });
        Self {
            cookie: end.cookie.to_string(),
            local: end.local,
            remote: end.remote,
            role: end
                .role()
                .map(|active| if active { "active" } else { "passive" }),
            pid: end.pid(),
            command: end.pid().and_then(process::name),
            cgroup: look.and_then(|look| look.cgroup.as_deref()),
            nonblocking: look.map(|look| look.nonblocking),
            options: look.map(|look| &*look.options),
            seen: end.record().is_some(),
            enrolled: end.enrolled.is_some(),
            reason: REASONS
                .get(reason as usize)
                .filter(|_| reason != 0)
                .map(|reason| reason.name),
        }
    }
}

impl<'a> DirectionRow<'a> {
    fn new(from: &End, direction: &'a Direction) -> Self {
        let sock = from.record();
        Self {
            from: from.local,
            to: from.remote,
            accelerated: direction.accelerated,
            why: &direction.why,
            path: from.enrolled.as_ref().and(sock).map(|sock| {
                if sock.path == PATH_REDIRECT {
                    "redirect"
                } else {
                    "stack"
                }
            }),
            redirected_messages: sock.map(|sock| sock.redirected_messages),
            redirected_bytes: sock.map(|sock| sock.redirected_bytes),
            stack_messages: sock.map(|sock| sock.stack_messages),
            stack_bytes: sock.map(|sock| sock.stack_bytes),
            rules: &direction.rules,
        }
    }
}

fn to_text(explained: &Explained) -> String {
    let mut lines = Vec::new();
    for ((from, _), direction) in ends(explained).zip(&explained.directions) {
        let through = match from.tuple() {
            Some(tuple) if tuple.listen_port != 0 && tuple.listen_port != tuple.local_port => {
                format!(" (listener {})", end(tuple.local, tuple.listen_port))
            }
            _ => String::new(),
        };
        lines.push(format!(
            "{}{through} -> {}: {}",
            from.local, from.remote, direction.why
        ));
        lines.extend(direction.rules.iter().map(rules::Rule::to_text));
    }
    lines.join("\n")
}
