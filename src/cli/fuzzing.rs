//! What the targets in `fuzz/` call: private parsers and decoders. Only built with
//! `--cfg fuzzing`.

use clap::Parser as _;
use zerocopy::FromBytes;

use super::{Cli, addr, dump, endpoint, identity, policy, service};
use crate::maps::layout::{
    Addr, Cidr, Config, Conn, Dump, Endpoint, Policy, PolicyKey, Service, ServiceKey,
};

/// A whole command line, one argument a line.
pub fn arguments(text: &str) {
    let args = std::iter::once("sockaccel").chain(text.lines());
    if let Err(error) = Cli::try_parse_from(args) {
        assert!(!error.render().to_string().is_empty());
    }
}

/// One value, by every parser of values. What is accepted is accepted again as it
/// is printed, and means the same.
pub fn value(text: &str) {
    if let Ok(network) = addr::network(text) {
        assert_eq!(addr::network(&network.to_string()), Ok(network));
    }
    if let Ok(ports) = addr::ports(text) {
        let printed = format!("{}-{}", ports.start(), ports.end());
        assert_eq!(addr::ports(&printed), Ok(ports));
    }
    if let Ok(name) = text.parse::<service::Name>() {
        let again: service::Name = name.to_string().parse().expect("a name as it is printed");
        assert_eq!(again.to_string(), name.to_string());
    }
    let _ = text.parse::<policy::Identity>();
    let _ = text.parse::<policy::Word>();
}

/// The start of the bytes as each record of the maps and of the iterator, shown as
/// the commands show it.
pub fn records(bytes: &[u8]) {
    if let Some(record) = read::<Dump>(bytes) {
        shown(&dump::Socket::from(&record));
    }
    if let Some(conn) = read::<Conn>(bytes) {
        shown(&dump::sides(u64::MAX, &conn));
    }
    if let Some(cidr) = read::<Cidr>(bytes) {
        identity::text(cidr);
    }
    if let Some((addr, endpoint)) = pair::<Addr, Endpoint>(bytes) {
        shown(&endpoint::Row::new(addr, endpoint));
    }
    if let Some((key, entry)) = pair::<ServiceKey, Service>(bytes) {
        shown(&service::Row::new(key, entry));
    }
    if let Some((key, entry)) = pair::<PolicyKey, Policy>(bytes) {
        shown(&policy::Row::new(&key, &entry));
        policy::describe(&key);
    }
    let _ = read::<Config>(bytes);
    crate::maps::fuzz_stats(bytes);
}

fn read<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(record, _)| record)
}

fn pair<K: FromBytes, V: FromBytes>(bytes: &[u8]) -> Option<(K, V)> {
    let (key, rest) = K::read_from_prefix(bytes).ok()?;
    Some((key, read(rest)?))
}

fn shown(row: &impl serde::Serialize) {
    serde_json::to_string(row).expect("a row is JSON");
}
