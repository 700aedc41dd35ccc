//! What the targets in `fuzz/` call: private parsers and decoders. Only built with
//! `--cfg fuzzing`.

use std::fmt::Display;
use std::str::FromStr;

use zerocopy::FromBytes;

use super::addr::{local, remote};
use super::{Cli, adopt, dump, endpoint, events, policy, service};
use crate::error::Result;
use crate::maps::layout::{
    Addr, Cidr, Config, Conn, Dump, Endpoint, Event, Passed, Policy, PolicyKey, Service, ServiceKey,
};
use crate::outcome::{REASONS, name};
use crate::spec::{Source, Spec};
use crate::state::{Setup, fuzz_adopt, process, sock_diag};
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

/// A file of `apply`. What is accepted is accepted again as `export` prints it, and
/// means the same; so is what an instance made of it would export.
pub fn spec(text: &str) {
    let name = "FILE";
    let Ok(mut spec) = (Source { name, text }).parse() else {
        return;
    };
    let again = reread(&spec);
    assert_eq!(printed(&again), printed(&spec));
    let Ok(setup) = resolved(text, &mut spec) else {
        return;
    };
    for mut other in [again, reread(&Spec::of(&setup))] {
        let text = printed(&other);
        assert_eq!(resolved(&text, &mut other).expect(&text), setup);
    }
}

fn printed(spec: &Spec) -> String {
    spec.to_toml().expect("a file")
}

fn reread(spec: &Spec) -> Spec {
    let (name, text) = ("FILE", &printed(spec));
    Source { name, text }.parse().expect(text)
}

/// Without its cgroups: those of this machine are not for a fuzzer to open.
fn resolved(text: &str, spec: &mut Spec) -> Result<Setup> {
    spec.cgroups.clear();
    let name = "FILE";
    let (setup, _) = Source { name, text }.resolve(spec, &[])?;
    Ok(setup)
}

/// The start of the bytes as each record of the maps and of the iterators, shown as
/// the commands show it; all of them as what `sock_diag` and the walks that tell
/// records of several lengths or of many sockets wrote.
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
    if let Some(event) = read::<Event>(bytes) {
        events::shown(&event);
    }
    if let Some(passed) = read::<Passed>(bytes) {
        let _ = name(REASONS, passed.reason);
    }
    let _ = read::<Config>(bytes);
    for walked in process::decoded(bytes) {
        let tuple = walked.noted.map_or(walked.told.tuple, |sock| sock.tuple);
        shown(&[local(&tuple), remote(&tuple)]);
    }
    shown(&adopt::Report::of(&fuzz_adopt(bytes), true));
    sock_diag::fuzz(bytes);
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
