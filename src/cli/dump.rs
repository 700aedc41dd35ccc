//! `dump`: the maps as they are, key and value.

use std::net::{IpAddr, SocketAddr};

use clap::Subcommand;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::Context;
use super::addr::{end, local, remote, role};
use super::reasons::most;
use crate::error::Result;
use crate::maps::layout::{
    Addr, Cidr, Conn, Dump, Endpoint, NOBODY, PATH_REDIRECT, Policy, PolicyKey, Service, ServiceKey,
};
use crate::maps::{Stats, sockets};
use crate::outcome::{REASONS, WHYS, name};
use crate::output::{count, or_dash, say, table, yes_or_no};
use crate::state::Instance;
use crate::words::Network;

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
        What::Sockhash => return sockhash(context, instance),
        What::Connections => return connections(context, instance),
        What::Endpoints => endpoints(&instance)?,
        What::Identities => identities(&instance)?,
        What::Policy => policy(&instance)?,
        What::Services => services(&instance)?,
        What::Config => return config(context, &instance),
    };
    // Who reads this slowly holds up no command.
    drop(instance);
    say_if_empty(context, &rows);
    context.output.print(&rows, || to_table(&rows))
}

fn say_if_empty<T>(context: &Context, rows: &[T]) {
    if rows.is_empty() {
        context.output.note("0 entries.");
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

/// An enrolled socket. There can be very many of these: they are written as they are.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Socket {
    /// Of the socket, unique for the boot.
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    cookie: u64,
    /// `inet` or `inet6`.
    family: &'static str,
    /// `tcp`.
    protocol: &'static str,
    /// As ss(8) names it.
    state: &'static str,
    /// Own address and port.
    local: SocketAddr,
    /// The other end's, as this one sees it.
    remote: SocketAddr,
    /// `active` connected, `passive` accepted.
    role: &'static str,
    /// Of the network namespace.
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    netns_cookie: u64,
    /// The peer is known.
    paired: bool,
    /// Of the peer.
    #[serde(serialize_with = "some_as_text")]
    #[schemars(with = "Option<String>")]
    peer_cookie: Option<u64>,
    /// `stack` or `redirect`.
    path: &'static str,
    /// Why the last message went by the stack.
    stack_reason: Option<&'static str>,
    /// Redirected to it and not read yet.
    unread_bytes: u64,
    /// Likewise.
    unread_messages: u32,
    /// Sent past the stack.
    redirected_messages: u64,
    /// Their bytes.
    redirected_bytes: u64,
    /// Sent by the stack.
    stack_messages: u64,
    /// Their bytes.
    stack_bytes: u64,
    /// From stack to redirect.
    promotions: u32,
    /// And back.
    demotions: u32,
    /// It does not block.
    nonblocking: bool,
    /// Of the process that connected or sent last.
    pid: Option<u32>,
    /// As in /proc/PID/fd.
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

fn sockhash(context: &Context, instance: Instance) -> Result<()> {
    let mut records = sockets::read(&instance.dir())?;
    records.sort_unstable_by_key(|record| record.sock.cookie);
    if records.is_empty() && !context.output.json {
        say(why_empty(&Stats::read(&instance.dir())?));
        return Ok(());
    }
    drop(instance);
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

/// `0 sockets enrolled; 37 connections skipped: blocking reader (37).`
fn why_empty(stats: &Stats) -> String {
    let list = |what: &str, counts: &[u64]| {
        let reasons = most(counts, REASONS, "sockets");
        if reasons.is_empty() {
            return String::new();
        }
        let total = reasons.iter().map(|reason| reason.count).sum();
        let each = reasons.iter().map(|reason| {
            let name = reason.outcome.name.replace('_', " ");
            format!("{name} ({})", reason.count)
        });
        format!(
            "; {} {what}: {}",
            count(total, "connection"),
            each.collect::<Vec<_>>().join(", ")
        )
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

/// One end of a connection.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Claimed {
    /// From both initial sequence numbers.
    conn_id: String,
    /// Which end, 0 or 1.
    side: usize,
    /// Of the socket.
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    cookie: u64,
    /// Own address and port.
    local: SocketAddr,
    /// The other end's.
    remote: SocketAddr,
    /// `active` or `passive`.
    role: &'static str,
    /// Of the network namespace.
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    netns_cookie: u64,
    /// Why it is not enrolled.
    skipped: Option<&'static str>,
    /// It has closed.
    left: bool,
    /// Bits: which ends have redirected, and whether nobody may.
    gate: u32,
    /// Two sockets claimed one end.
    poisoned: bool,
    /// Of a process seen using it.
    pid: Option<u32>,
}

/// The sides of a connection that sockets have claimed. One that nobody can claim any
/// more is how the programs give the entry up.
pub(super) fn sides(id: u64, conn: &Conn) -> Vec<Claimed> {
    let sides = conn.side.iter().enumerate();
    sides
        .filter(|(_, side)| !matches!(side.cookie, 0 | NOBODY))
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

fn connections(context: &Context, instance: Instance) -> Result<()> {
    let mut entries = instance.table::<u64, Conn>("sa_conns")?.entries()?;
    entries.sort_unstable_by_key(|(id, _)| *id);
    let rows: Vec<Claimed> = entries
        .iter()
        .flat_map(|(id, conn)| sides(*id, conn))
        .collect();
    drop(instance);
    say_if_empty(context, &rows);
    context.output.print(&rows, || {
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
                    yes_or_no(row.left),
                    row.gate.to_string(),
                    yes_or_no(row.poisoned),
                    or_dash(row.pid),
                ]
            }),
        )
    })
}

/// An endpoint.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EndpointRow {
    /// Its address.
    addr: IpAddr,
    /// 0: that of its network.
    identity: u32,
    /// 1: added with --host.
    host: u32,
}

/// An identity.
#[derive(Debug, Serialize, JsonSchema)]
pub struct IdentityRow {
    /// The network.
    cidr: String,
    /// Of the key: 32 bits of family and the address.
    prefixlen: u32,
    /// Its identity.
    identity: u32,
}

/// A rule.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PolicyRow {
    /// Its address.
    endpoint: IpAddr,
    /// 1 egress, 2 ingress.
    direction: u8,
    /// 0 a rule, 1 the default deny.
    kind: u8,
    /// 0: any.
    identity: u32,
    /// 0: any, 6: TCP.
    proto: u8,
    /// 0: any.
    port: u16,
    /// 0 allow, -1 deny, above 0 a proxy port.
    verdict: i32,
    /// How often it decided.
    evaluations: u64,
}

/// A service.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServiceRow {
    /// Address and port.
    addr: SocketAddr,
    /// 6: TCP.
    proto: u8,
    /// 1: not left to the stack.
    accelerate: u32,
    /// That met this entry.
    connections: u64,
}

/// Switches and tunables.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ConfigRow {
    /// Version of the maps.
    layout: u32,
    /// 0 while it is set up or taken down.
    enabled: u32,
    /// Of the tables.
    generation: u32,
    /// Odd while apply rewrites them.
    changing: u32,
    /// 0 local, 1 endpoints.
    scope: u32,
    /// 1: blocking readers too.
    blocking: u32,
    /// Of one redirect queue.
    budget_messages: u32,
    /// Likewise.
    budget_bytes: u32,
    /// Larger ones go by the stack.
    max_message: u32,
    /// Of a one-way stream, after which its sender leaves; 0 never.
    stream_limit: u32,
    /// 1: also to servers whose connections are too short.
    admit_all: u32,
    /// 1: only the ports named.
    port_includes: u32,
    /// 1: only the networks named.
    cidr_includes: u32,
    /// Bits of the risks accepted.
    allow: u32,
    /// That can be enrolled at one time.
    max_sockets: u32,
}

fn row<T: Serialize>(row: &T) -> Value {
    // Plain structs of numbers and strings always are JSON.
    serde_json::to_value(row).unwrap_or_default()
}

fn endpoints(instance: &Instance) -> Result<Vec<Value>> {
    let mut entries = instance
        .table::<Addr, Endpoint>("sa_endpoints")?
        .entries()?;
    entries.sort_by_key(|(addr, _)| *addr);
    Ok(entries
        .iter()
        .map(|(addr, endpoint)| {
            row(&EndpointRow {
                addr: addr.ip(),
                identity: endpoint.identity,
                host: endpoint.host,
            })
        })
        .collect())
}

fn identities(instance: &Instance) -> Result<Vec<Value>> {
    let mut entries = instance.table::<Cidr, u32>("sa_identities")?.entries()?;
    entries.sort_by_key(|(cidr, _)| (cidr.addr, cidr.prefixlen));
    Ok(entries
        .iter()
        .map(|(cidr, identity)| {
            row(&IdentityRow {
                cidr: Network::from(*cidr).to_string(),
                prefixlen: cidr.prefixlen,
                identity: *identity,
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
            row(&PolicyRow {
                endpoint: key.endpoint.ip(),
                direction: key.direction,
                kind: key.kind,
                identity: key.identity,
                proto: key.proto,
                port: key.port,
                verdict: policy.verdict,
                evaluations: policy.evaluations,
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
            row(&ServiceRow {
                addr: end(key.addr, key.port),
                proto: key.proto,
                accelerate: service.accelerate,
                connections: service.connections,
            })
        })
        .collect())
}

fn config(context: &Context, instance: &Instance) -> Result<()> {
    let config = instance.config()?;
    let value = row(&ConfigRow {
        layout: config.layout,
        enabled: config.enabled,
        generation: config.generation,
        changing: config.changing,
        scope: config.scope,
        blocking: config.blocking,
        budget_messages: config.budget_messages,
        budget_bytes: config.budget_bytes,
        max_message: config.max_message,
        stream_limit: config.stream_limit,
        admit_all: config.admit_all,
        port_includes: config.port_includes,
        cidr_includes: config.cidr_includes,
        allow: config.allow,
        max_sockets: instance.max_sockets()?,
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
        Value::Bool(flag) => yes_or_no(*flag),
        other => other.to_string(),
    }
}
