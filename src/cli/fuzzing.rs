//! What the targets in `fuzz/` call: private parsers and decoders. Only built with
//! `--cfg fuzzing`.

use std::fmt::Display;
use std::str::FromStr;

use zerocopy::FromBytes;

use super::{Cli, dump, endpoint, policy, service};
use crate::maps::layout::{
    Addr, Cidr, Config, Conn, Dump, Endpoint, Policy, PolicyKey, Service, ServiceKey,
};
use crate::words::{Identity, Network, Ports, ServiceName, Traffic, Verdict, duration};

/// A whole command line, one argument a line.
pub fn arguments(text: &str) {
    let args: Vec<&str> = std::iter::once("sockaccel").chain(text.lines()).collect();
    if let Err(error) = Cli::of(&args) {
        assert!(!error.render().to_string().is_empty());
    }
}

/// One value, by every parser of values. What is accepted is accepted again as it
/// is printed, and means the same.
pub fn value(text: &str) {
    spelt::<Network>(text);
    spelt::<Ports>(text);
    spelt::<ServiceName>(text);
    spelt::<Identity>(text);
    spelt::<Traffic>(text);
    spelt::<Verdict>(text);
    let _ = (text.parse::<policy::Word>(), duration(text));
}

fn spelt<T: FromStr<Err = String> + Display>(text: &str) {
    if let Ok(word) = text.parse::<T>() {
        let printed = word.to_string();
        let again: T = printed.parse().expect("a word as it is printed");
        assert_eq!(again.to_string(), printed);
    }
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
        let _ = Network::from(cidr).to_string();
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
