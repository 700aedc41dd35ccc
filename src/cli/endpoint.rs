//! `endpoint`: local addresses that have policy.

use std::net::IpAddr;

use clap::Subcommand;
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::entry::{IfExists, absent, add, change, conflict, del, explain_empty, finish};
use crate::error::{Error, Result};
use crate::maps::Table;
use crate::maps::layout::{Addr, Endpoint, Policy, PolicyKey, SCOPE_LOCAL};
use crate::output::{or_dash, table, yes_or_no};
use crate::remedy::Remedies;
use crate::state::tables::own_addresses;
use crate::state::{Change, Instance};
use crate::words;

/// What can be done with endpoints.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Declare a local address, or with --host all of this machine
    #[command(after_help = "Example:  sockaccel endpoint add 10.0.0.7 --identity 1001")]
    Add {
        /// The address
        #[arg(
            value_name = "ADDR",
            required_unless_present = "host",
            conflicts_with = "host"
        )]
        addr: Option<IpAddr>,
        /// Its security identity [default: that of its CIDR, see `sockaccel identity`]
        #[arg(long, value_name = "N", value_parser = words::identity)]
        identity: Option<u32>,
        /// Every address of this machine's interfaces; without an entry of their own in
        /// `sockaccel identity` they have identity 1 (host)
        #[arg(long)]
        host: bool,
    },
    /// Forget an address
    #[command(
        visible_alias = "delete",
        after_help = "Example:  sockaccel endpoint del 10.0.0.7"
    )]
    Del {
        /// The address
        #[arg(
            value_name = "ADDR",
            required_unless_present = "host",
            conflicts_with = "host"
        )]
        addr: Option<IpAddr>,
        /// Every address that was added with --host
        #[arg(long)]
        host: bool,
        #[command(flatten)]
        if_exists: IfExists,
    },
    /// All endpoints
    #[command(visible_aliases = ["show", "ls"])]
    List,
    /// One endpoint
    #[command(after_help = "Example:  sockaccel endpoint get 10.0.0.7")]
    Get {
        /// The address
        addr: IpAddr,
    },
}

/// An endpoint, as `list` and `get` show it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Row {
    /// The address.
    address: IpAddr,
    /// Null: that of its network.
    identity: Option<u32>,
    /// Added with --host.
    host: bool,
}

impl Row {
    pub(super) fn new(addr: Addr, endpoint: Endpoint) -> Self {
        Self {
            address: addr.ip(),
            identity: (endpoint.identity > 0).then_some(endpoint.identity),
            host: endpoint.host > 0,
        }
    }
}

/// Runs the verb.
pub fn run(context: &Context, verb: &Verb) -> Result<()> {
    match verb {
        Verb::Add { addr, identity, .. } => {
            let instance = Instance::open_to_write(&context.place)?;
            let endpoints = instance.table("sa_endpoints")?;
            let change = match addr {
                Some(addr) => add_one(&endpoints, *addr, identity.unwrap_or(0))?,
                None => add_host(&endpoints, identity.unwrap_or(0))?,
            };
            finish(context, &instance, Ok(change))?;
            if instance.config()?.scope == SCOPE_LOCAL {
                let way = Remedies::of(&instance)?.fill("{enable} --scope endpoints");
                context.output.note(format_args!(
                    "Scope is local: endpoints serve policy only, every paired local peer is accelerated.\n  \
                     To accelerate only towards endpoints:  {way}",
                ));
            }
            Ok(())
        }
        Verb::Del {
            addr, if_exists, ..
        } => {
            let instance = Instance::open_to_write(&context.place)?;
            let endpoints = instance.table("sa_endpoints")?;
            let policy = instance.table("sa_policy")?;
            let change = match addr {
                Some(addr) => del_one(&endpoints, &policy, *addr, if_exists)?,
                None => del_host(&endpoints, &policy, if_exists)?,
            };
            finish(context, &instance, Ok(change))
        }
        Verb::List => {
            let instance = Instance::open(&context.place)?;
            let mut rows: Vec<Row> = instance
                .table("sa_endpoints")?
                .entries()?
                .into_iter()
                .map(|(addr, endpoint)| Row::new(addr, endpoint))
                .collect();
            rows.sort_by_key(|row| row.address);
            drop(instance);
            explain_empty(context, &rows, "endpoints", "endpoint add ADDR");
            context.output.print(&rows, || to_table(&rows))
        }
        Verb::Get { addr } => {
            let instance = Instance::open(&context.place)?;
            let key = Addr::from(*addr);
            let endpoints: Table<Addr, Endpoint> = instance.table("sa_endpoints")?;
            let found = endpoints
                .get(&key)?
                .ok_or_else(|| absent(endpoint_of(*addr)))?;
            let row = Row::new(key, found);
            context
                .output
                .print(&row, || to_table(std::slice::from_ref(&row)))
        }
    }
}

fn add_one(endpoints: &Table<Addr, Endpoint>, addr: IpAddr, identity: u32) -> Result<Change> {
    let endpoint = Endpoint { identity, host: 0 };
    let key = Addr::from(addr);
    add(
        endpoints,
        endpoints.get(&key)?,
        &key,
        &endpoint,
        endpoint_of(addr),
        |old| *old == endpoint,
    )
}

/// All or nothing. Addresses declared one by one before keep what was said of them.
fn add_host(endpoints: &Table<Addr, Endpoint>, identity: u32) -> Result<Change> {
    let endpoint = Endpoint { identity, host: 1 };
    let mut new = Vec::new();
    for ip in own_addresses()? {
        let key = Addr::from(ip);
        match endpoints.get(&key)? {
            None => new.push(key),
            Some(old) if old.host > 0 && old != endpoint => return Err(conflict(endpoint_of(ip))),
            Some(_) => {}
        }
    }
    for key in &new {
        endpoints.set(key, &endpoint)?;
    }
    Ok(change(!new.is_empty()))
}

fn del_one(
    endpoints: &Table<Addr, Endpoint>,
    policy: &Table<PolicyKey, Policy>,
    addr: IpAddr,
    if_exists: &IfExists,
) -> Result<Change> {
    let key = Addr::from(addr);
    refuse_policy(policy, &[key])?;
    del(endpoints, &key, endpoint_of(addr), if_exists)
}

/// All or nothing, too.
fn del_host(
    endpoints: &Table<Addr, Endpoint>,
    policy: &Table<PolicyKey, Policy>,
    if_exists: &IfExists,
) -> Result<Change> {
    let entries = endpoints.entries()?.into_iter();
    let hosts: Vec<Addr> = entries
        .filter(|(_, endpoint)| endpoint.host > 0)
        .map(|(addr, _)| addr)
        .collect();
    if hosts.is_empty() && !if_exists.if_exists {
        return Err(absent("endpoint that was added with --host"));
    }
    refuse_policy(policy, &hosts)?;
    for addr in &hosts {
        endpoints.remove(addr)?;
    }
    Ok(change(!hosts.is_empty()))
}

/// Rules must not outlive their endpoint.
fn refuse_policy(policy: &Table<PolicyKey, Policy>, addrs: &[Addr]) -> Result<()> {
    let rules = policy.entries()?;
    match rules
        .iter()
        .find(|(rule, _)| addrs.contains(&rule.endpoint))
    {
        None => Ok(()),
        Some((rule, _)) => {
            let addr = rule.endpoint.ip();
            Err(Error::Failed(format!(
                "endpoint {addr} has policy\n  Delete that first:  sockaccel policy list --endpoint {addr}"
            )))
        }
    }
}

fn endpoint_of(addr: IpAddr) -> String {
    format!("endpoint {addr}")
}

fn to_table(rows: &[Row]) -> String {
    table(
        &["address", "identity", "host"],
        rows.iter().map(|row| {
            [
                row.address.to_string(),
                or_dash(row.identity),
                yes_or_no(row.host),
            ]
        }),
    )
}
