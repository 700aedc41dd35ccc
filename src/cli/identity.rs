//! `identity`: which security identity an address has, by longest prefix.

use std::net::IpAddr;

use clap::Subcommand;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::entry::{IfExists, add, del, explain_empty, finish};
use crate::error::Result;
use crate::maps::Table;
use crate::maps::layout::{Addr, Cidr, Endpoint, IDENTITY_HOST, IDENTITY_WORLD};
use crate::output::table;
use crate::state::Instance;
use crate::words::{self, Network};

/// What can be done with identities.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Give a network (or one address) an identity
    #[command(after_help = "\
Well known:  1 host (this machine), 2 world (every address without an entry).

Example:  sockaccel identity add 10.1.0.0/16 1001")]
    Add {
        /// The network
        cidr: Network,
        /// The identity, from 1
        #[arg(value_name = "ID", value_parser = words::identity)]
        identity: u32,
    },
    /// Take an identity away
    #[command(
        visible_alias = "delete",
        after_help = "Example:  sockaccel identity del 10.1.0.0/16"
    )]
    Del {
        /// The network, just as it was added
        cidr: Network,
        #[command(flatten)]
        if_exists: IfExists,
    },
    /// All identities
    #[command(visible_aliases = ["show", "ls"])]
    List,
    /// The identity of an address, and what gives it
    #[command(after_help = "Example:  sockaccel identity get 10.1.2.3")]
    Get {
        /// The address
        addr: IpAddr,
    },
}

/// An identity, as `list` shows it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Row {
    /// The network.
    cidr: String,
    /// Its identity.
    identity: u32,
}

/// The identity of an address, as `get` shows it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Resolved {
    /// The address.
    address: IpAddr,
    /// What policy sees.
    identity: u32,
    /// Where it comes from.
    source: &'static str,
}

/// Runs the verb.
pub fn run(context: &Context, verb: &Verb) -> Result<()> {
    match verb {
        Verb::Add { cidr, identity } => {
            let instance = Instance::open_to_write(&context.place)?;
            let identities: Table<Cidr, u32> = instance.table("sa_identities")?;
            let key = Cidr::from(cidr.0);
            // A look-up in the trie would give the longest prefix, not this one.
            let old = find(&identities, key)?;
            let what = format!("identity of {cidr}");
            let change = add(&identities, old, &key, identity, what, |old| {
                old == identity
            })?;
            finish(context, &instance, Ok(change))
        }
        Verb::Del { cidr, if_exists } => {
            let instance = Instance::open_to_write(&context.place)?;
            let identities: Table<Cidr, u32> = instance.table("sa_identities")?;
            let change = del(
                &identities,
                &Cidr::from(cidr.0),
                format!("identity of {cidr}"),
                if_exists,
            )?;
            finish(context, &instance, Ok(change))
        }
        Verb::List => {
            let instance = Instance::open(&context.place)?;
            let mut entries = instance.table::<Cidr, u32>("sa_identities")?.entries()?;
            entries.sort_by_key(|(cidr, _)| (cidr.addr, cidr.prefixlen));
            let rows: Vec<Row> = entries
                .into_iter()
                .map(|(cidr, identity)| Row {
                    cidr: Network::from(cidr).to_string(),
                    identity,
                })
                .collect();
            drop(instance);
            explain_empty(context, &rows, "identities", "identity add CIDR ID");
            context.output.print(&rows, || {
                table(
                    &["cidr", "identity"],
                    rows.iter()
                        .map(|row| [row.cidr.clone(), row.identity.to_string()]),
                )
            })
        }
        Verb::Get { addr } => {
            let instance = Instance::open(&context.place)?;
            let (identity, source) = resolve(&instance, *addr)?;
            let value = Resolved {
                address: *addr,
                identity,
                source,
            };
            context.output.print(&value, || {
                table(
                    &["address", "identity", "source"],
                    [[addr.to_string(), identity.to_string(), source.to_owned()]],
                )
            })
        }
    }
}

/// The entry of exactly this prefix.
fn find(identities: &Table<Cidr, u32>, key: Cidr) -> Result<Option<u32>> {
    let entries = identities.entries()?;
    Ok(entries
        .into_iter()
        .find(|(cidr, _)| *cidr == key)
        .map(|(_, identity)| identity))
}

/// The identity of an address and what gives it: the same steps as `sa_identity()` of src/bpf/policy.h.
pub fn resolve(instance: &Instance, addr: IpAddr) -> Result<(u32, &'static str)> {
    let key = Addr::from(addr);
    let endpoint: Option<Endpoint> = instance.table("sa_endpoints")?.get(&key)?;
    if let Some(endpoint) = endpoint.filter(|e| e.identity > 0) {
        return Ok((endpoint.identity, "endpoint"));
    }
    let identities: Table<Cidr, u32> = instance.table("sa_identities")?;
    if let Some(identity) = identities.get(&Cidr::from(IpNet::from(addr.to_canonical())))? {
        return Ok((identity, "identity table"));
    }
    if endpoint.is_some_and(|e| e.host > 0) {
        return Ok((IDENTITY_HOST, "host"));
    }
    Ok((IDENTITY_WORLD, "no entry: world"))
}
