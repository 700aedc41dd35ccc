//! `dump`: the maps as they are, key and value.

use std::net::SocketAddr;

use clap::Subcommand;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::addr::{end, local, remote};
use super::{Context, identity};
use crate::error::Result;
use crate::maps::layout::{
    Addr, Cidr, Conn, Dump, Endpoint, PATH_REDIRECT, Policy, PolicyKey, ROLE_ACTIVE, Service,
    ServiceKey,
};
use crate::maps::{Stats, sockets};
use crate::outcome::{REASONS, WHYS, name};
use crate::output::{say, table};
use crate::state::Instance;

/// The tables that can be dumped.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum What {
    /// Enrolled sockets (map `sa_sockhash`)
    Sockhash,
    /// Connections, both ends (map `sa_conns`)
    #[command(visible_alias = "connection")]
    Connections,
    /// Endpoints (map `sa_endpoints`)
    #[command(visible_alias = "endpoint")]
    Endpoints,
    /// Identities (map `sa_identities`)
    #[command(visible_alias = "identity")]
    Identities,
    /// Policy, the default denials included (map `sa_policy`)
    Policy,
    /// Services (map `sa_services`)
    #[command(visible_alias = "service")]
    Services,
    /// Switches and tunables (map `sa_config`)
    Config,
}

/// Runs `dump`.
pub fn run(context: &Context, what: What) -> Result<()> {
    let instance = Instance::open(&context.place)?;
    let rows = match what {
        What::Sockhash => return sockhash(context, &instance),
        What::Connections => return connections(context, &instance),
        What::Endpoints => endpoints(&instance)?,
        What::Identities => identities(&instance)?,
        What::Policy => policy(&instance)?,
        What::Services => services(&instance)?,
        What::Config => return config(context, &instance),
    };
    say_if_empty(context, &rows);
    context.output.print(&rows, || to_table(&rows))
}

fn say_if_empty<T>(context: &Context, rows: &[T]) {
    if rows.is_empty() && !context.output.json {
        say("0 entries.");
    }
}

/// What a screen has room for; JSON has everything.
const SOCKHASH_COLUMNS: [&str; 9] = [
    "cookie",
    "local",
    "remote",
    "role",
    "pid",
    "path",
    "stack_reason",
    "redirected_messages",
    "unread_bytes",
];

/// There can be very many of these: they are written as they are.
#[derive(Serialize)]
pub(super) struct Socket {
    #[serde(serialize_with = "as_text")]
    cookie: u64,
    family: &'static str,
    protocol: &'static str,
    state: &'static str,
    local: SocketAddr,
    remote: SocketAddr,
    role: &'static str,
    #[serde(serialize_with = "as_text")]
    netns_cookie: u64,
    paired: bool,
    #[serde(serialize_with = "some_as_text")]
    peer_cookie: Option<u64>,
    path: &'static str,
    stack_reason: Option<&'static str>,
    unread_bytes: u64,
    unread_messages: u32,
    redirected_messages: u64,
    redirected_bytes: u64,
    stack_messages: u64,
    stack_bytes: u64,
    promotions: u32,
    demotions: u32,
    nonblocking: bool,
    pid: Option<u32>,
    inode: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn as_text<S: Serializer>(id: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(id)
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn some_as_text<S: Serializer>(id: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => to.collect_str(id),
        None => to.serialize_none(),
    }
}

fn sockhash(context: &Context, instance: &Instance) -> Result<()> {
    let mut records = sockets::read(&instance.dir())?;
    records.sort_unstable_by_key(|record| record.sock.cookie);
    if records.is_empty() && !context.output.json {
        say(why_empty(&Stats::read(&instance.dir())?));
        return Ok(());
    }
    let sockets: Vec<Socket> = records.iter().map(Socket::from).collect();
    context.output.print(&sockets, || {
        table(
            &SOCKHASH_COLUMNS,
            sockets.iter().map(|socket| {
                [
                    socket.cookie.to_string(),
                    socket.local.to_string(),
                    socket.remote.to_string(),
                    socket.role.to_owned(),
                    or_dash(socket.pid),
                    socket.path.to_owned(),
                    or_dash(socket.stack_reason),
                    socket.redirected_messages.to_string(),
                    socket.unread_bytes.to_string(),
                ]
            }),
        )
    })
}

impl From<&Dump> for Socket {
    fn from(record: &Dump) -> Self {
        let sock = &record.sock;
        let redirected = sock.path == PATH_REDIRECT;
        Self {
            cookie: sock.cookie,
            family: if sock.tuple.family == 2 {
                "inet"
            } else {
                "inet6"
            },
            protocol: "tcp",
            state: sockets::state_name(record.state),
            local: local(&sock.tuple),
            remote: remote(&sock.tuple),
            role: role(sock.role),
            netns_cookie: sock.netns_cookie,
            paired: sock.peer_cookie != 0,
            peer_cookie: (sock.peer_cookie != 0).then_some(sock.peer_cookie),
            path: if redirected { "redirect" } else { "stack" },
            stack_reason: (!redirected && sock.why != 0).then(|| name(WHYS, sock.why)),
            unread_bytes: record.unread_bytes,
            unread_messages: record.unread_messages,
            redirected_messages: sock.redirected_messages,
            redirected_bytes: sock.redirected_bytes,
            stack_messages: sock.stack_messages,
            stack_bytes: sock.stack_bytes,
            promotions: sock.promotions,
            demotions: sock.demotions,
            nonblocking: record.nonblock != 0,
            pid: (sock.tgid != 0).then_some(sock.tgid),
            inode: record.inode,
        }
    }
}

fn role(role: u32) -> &'static str {
    if role == ROLE_ACTIVE {
        "active"
    } else {
        "passive"
    }
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `0 sockets enrolled; 37 skipped: blocking_reader (37).`
fn why_empty(stats: &Stats) -> String {
    let list = |what: &str, counts: &[u64]| {
        let total: u64 = counts.iter().sum();
        let mut reasons: Vec<(u64, &str)> = counts
            .iter()
            .zip(REASONS)
            .filter(|(count, _)| **count > 0)
            .map(|(count, reason)| (*count, reason.name))
            .collect();
        reasons.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let reasons: Vec<String> = reasons
            .iter()
            .map(|(count, name)| format!("{} ({count})", name.replace('_', " ")))
            .collect();
        if total == 0 {
            String::new()
        } else {
            format!("; {total} connections {what}: {}", reasons.join(", "))
        }
    };
    format!(
        "0 sockets enrolled{}{}{}. See sockaccel status.",
        list("skipped", &stats.skipped),
        list("ejected", &stats.ejected),
        if stats.seen == 0 {
            "; no connection was established since enable"
        } else {
            ""
        },
    )
}

/// One side of a connection.
#[derive(Serialize)]
pub(super) struct Claimed {
    conn_id: String,
    side: usize,
    #[serde(serialize_with = "as_text")]
    cookie: u64,
    local: SocketAddr,
    remote: SocketAddr,
    role: &'static str,
    #[serde(serialize_with = "as_text")]
    netns_cookie: u64,
    skipped: Option<&'static str>,
    left: bool,
    gate: u32,
    poisoned: bool,
    pid: Option<u32>,
}

/// The sides of a connection that sockets have claimed.
pub(super) fn sides(id: u64, conn: &Conn) -> Vec<Claimed> {
    let sides = conn.side.iter().enumerate();
    sides
        .filter(|(_, side)| side.cookie != 0)
        .map(|(index, side)| Claimed {
            conn_id: format!("{id:016x}"),
            side: index,
            cookie: side.cookie,
            local: local(&side.tuple),
            remote: remote(&side.tuple),
            role: role(side.role.into()),
            netns_cookie: side.netns_cookie,
            skipped: (side.skipped != 0).then(|| name(REASONS, side.skipped)),
            left: conn.left & (1 << index) != 0,
            gate: conn.gate,
            poisoned: conn.poisoned != 0,
            pid: (side.tgid != 0).then_some(side.tgid),
        })
        .collect()
}

fn connections(context: &Context, instance: &Instance) -> Result<()> {
    let mut entries = instance.table::<u64, Conn>("sa_conns")?.entries()?;
    entries.sort_unstable_by_key(|(id, _)| *id);
    let rows: Vec<Claimed> = entries
        .iter()
        .flat_map(|(id, conn)| sides(*id, conn))
        .collect();
    say_if_empty(context, &rows);
    context.output.print(&rows, || {
        let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
        let columns = [
            "conn_id",
            "side",
            "cookie",
            "local",
            "remote",
            "role",
            "netns_cookie",
            "skipped",
            "left",
            "gate",
            "poisoned",
            "pid",
        ];
        if rows.is_empty() {
            return String::new();
        }
        table(
            &columns,
            rows.iter().map(|row| {
                [
                    row.conn_id.clone(),
                    row.side.to_string(),
                    row.cookie.to_string(),
                    row.local.to_string(),
                    row.remote.to_string(),
                    row.role.to_owned(),
                    row.netns_cookie.to_string(),
                    or_dash(row.skipped),
                    yes(row.left),
                    row.gate.to_string(),
                    yes(row.poisoned),
                    or_dash(row.pid),
                ]
            }),
        )
    })
}

fn endpoints(instance: &Instance) -> Result<Vec<Value>> {
    let mut entries = instance
        .table::<Addr, Endpoint>("sa_endpoints")?
        .entries()?;
    entries.sort_by_key(|(addr, _)| *addr);
    Ok(entries
        .iter()
        .map(|(addr, endpoint)| {
            json!({ "addr": addr.ip(), "identity": endpoint.identity, "host": endpoint.host })
        })
        .collect())
}

fn identities(instance: &Instance) -> Result<Vec<Value>> {
    let mut entries = instance.table::<Cidr, u32>("sa_identities")?.entries()?;
    entries.sort_by_key(|(cidr, _)| (cidr.addr, cidr.prefixlen));
    Ok(entries
        .iter()
        .map(|(cidr, identity)| {
            json!({
                "cidr": identity::text(*cidr),
                "prefixlen": cidr.prefixlen,
                "identity": identity,
            })
        })
        .collect())
}

fn policy(instance: &Instance) -> Result<Vec<Value>> {
    let mut entries = instance
        .table::<PolicyKey, Policy>("sa_policy")?
        .entries()?;
    entries.sort_by_key(|(key, _)| {
        (
            key.endpoint,
            key.direction,
            key.kind,
            key.identity,
            key.proto,
            key.port,
        )
    });
    Ok(entries
        .iter()
        .map(|(key, policy)| {
            json!({
                "endpoint": key.endpoint.ip(),
                "direction": key.direction,
                "kind": key.kind,
                "identity": key.identity,
                "proto": key.proto,
                "port": key.port,
                "verdict": policy.verdict,
                "evaluations": policy.evaluations,
            })
        })
        .collect())
}

fn services(instance: &Instance) -> Result<Vec<Value>> {
    let mut entries = instance
        .table::<ServiceKey, Service>("sa_services")?
        .entries()?;
    entries.sort_by_key(|(key, _)| (key.addr, key.port));
    Ok(entries
        .iter()
        .map(|(key, service)| {
            json!({
                "addr": end(key.addr, key.port),
                "proto": key.proto,
                "accelerate": service.accelerate,
                "connections": service.connections,
            })
        })
        .collect())
}

fn config(context: &Context, instance: &Instance) -> Result<()> {
    let config = instance.config()?;
    let value = json!({
        "layout": config.layout,
        "enabled": config.enabled,
        "generation": config.generation,
        "scope": config.scope,
        "blocking": config.blocking,
        "budget_messages": config.budget_messages,
        "budget_bytes": config.budget_bytes,
        "max_message": config.max_message,
        "stream_limit": config.stream_limit,
        "admit_all": config.admit_all,
        "port_includes": config.port_includes,
        "cidr_includes": config.cidr_includes,
        "allow": config.allow,
        "max_sockets": instance.max_sockets()?,
    });
    context.output.print(&value, || {
        let fields = value.as_object().into_iter().flatten();
        table(
            &["field", "value"],
            fields.map(|(name, value)| [name.clone(), cell(value)]),
        )
    })
}

fn to_table(rows: &[Value]) -> String {
    let Some(first) = rows.first().and_then(Value::as_object) else {
        return String::new();
    };
    let columns: Vec<&str> = first.keys().map(String::as_str).collect();
    table(
        &columns,
        rows.iter()
            .map(|row| columns.iter().map(|field| cell(&row[*field]))),
    )
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(flag) => if *flag { "yes" } else { "no" }.to_owned(),
        other => other.to_string(),
    }
}
