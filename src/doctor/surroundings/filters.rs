//! Rules of netfilter and tc in this network namespace: redirected bytes do
//! not meet them.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::super::finding::Finding;
use super::super::finding::Topic;
use super::super::finding::Verdict;
use super::super::guard::Guard;
use super::super::guard::Stop;
use crate::sys;

/// nft(8) and iptables(8).
pub const NETFILTER: Topic = Topic {
    name: "netfilter",
    sound: "no rule of netfilter sees packets in this network namespace",
    otherwise: "rules see each connection being made, and decide on that; redirected bytes they do \
                neither filter, count, log nor change: no acceleration where rules look at \
                payload, limit rates or count bytes of local connections",
};

/// tc(8)
pub const TC: Topic = Topic {
    name: "tc",
    sound: "no tc filter sees packets in this network namespace",
    otherwise: "tc filters and their BPF programs do not meet redirected bytes: no shaping, \
                mirroring or observing of accelerated connections",
};

const LIMIT: Duration = Duration::from_secs(2);

/// More interfaces than this take too long.
const INTERFACES: usize = 64;

/// `nft list ruleset`, which shows iptables-nft's rules as well, and whether
/// tables of the older iptables are there.
///
/// # Errors
///
/// [`Stop::Interrupted`]
pub fn netfilter(guard: &Guard) -> Result<Finding, Stop> {
    let mut legacy: Vec<String> = Vec::new();
    for (file, name) in [
        ("/proc/net/ip_tables_names", "iptables-legacy"),
        ("/proc/net/ip6_tables_names", "ip6tables-legacy"),
    ] {
        let tables = fs::read_to_string(file).unwrap_or_default();
        legacy.extend(tables.lines().map(|table| format!("{name} table {table}")));
    }
    let rules = match json(guard, Command::new("nft").args(["-j", "list", "ruleset"])) {
        Ok(value) => rules(&value),
        Err(stop) if legacy.is_empty() => {
            return Ok(NETFILTER.finding(Verdict::NotChecked, stop.reason()?));
        }
        Err(stop) => vec![format!("other rules not checked: {}", stop.reason()?)],
    };
    let found = [rules, legacy].concat();
    Ok(if found.is_empty() {
        NETFILTER.finding(Verdict::Ok, "no rules")
    } else {
        NETFILTER.finding(Verdict::Differs, found.join(", "))
    })
}

/// "3 rules in table inet filter" for each table.
fn rules(ruleset: &Value) -> Vec<String> {
    let mut tables: Vec<(String, usize)> = Vec::new();
    let entries = ruleset["nftables"].as_array();
    for rule in entries.into_iter().flatten().map(|entry| &entry["rule"]) {
        let (Some(family), Some(table)) = (rule["family"].as_str(), rule["table"].as_str()) else {
            continue;
        };
        let name = format!("{family} {table}");
        match tables.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => tables.push((name, 1)),
        }
    }
    tables
        .into_iter()
        .map(|(name, n)| format!("{n} rule{} in table {name}", if n == 1 { "" } else { "s" }))
        .collect()
}

/// `tc filter show` of each interface, in both directions and on its root.
///
/// # Errors
///
/// [`Stop::Interrupted`]
pub fn tc(guard: &Guard) -> Result<Finding, Stop> {
    let interfaces = match interfaces(guard) {
        Ok(interfaces) => interfaces,
        Err(stop) => return Ok(TC.finding(Verdict::NotChecked, stop.reason()?)),
    };
    let mut found = Vec::new();
    for (name, index) in interfaces.iter().take(INTERFACES) {
        // tc(8) does not show these.
        match sys::bpf::programs_on_interface(*index) {
            Ok(0) => {}
            Ok(count) => found.push(format!("on {name} tcx: {count}")),
            Err(error) => {
                return Ok(TC.finding(Verdict::NotChecked, format!("tcx, bpf(2): {error}")));
            }
        }
        for place in ["ingress", "egress", "root"] {
            let mut command = Command::new("tc");
            command.args(["-j", "filter", "show", "dev", name, place]);
            match json(guard, &mut command) {
                Ok(value) => {
                    let count = value
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter(|shown| is_filter(shown))
                        .count();
                    if count > 0 {
                        found.push(format!("on {name} {place}: {count}"));
                    }
                }
                Err(stop) => return Ok(TC.finding(Verdict::NotChecked, stop.reason()?)),
            }
        }
    }
    if !found.is_empty() {
        return Ok(TC.finding(Verdict::Differs, found.join(", ")));
    }
    if interfaces.len() > INTERFACES {
        let more = interfaces.len() - INTERFACES;
        return Ok(TC.finding(Verdict::NotChecked, format!("{more} interfaces more")));
    }
    let names: Vec<&str> = interfaces.iter().map(|(name, _)| name.as_str()).collect();
    Ok(TC.finding(Verdict::Ok, format!("no filters on {}", names.join(", "))))
}

/// A filter, not the priority that it is in, nor a table for look-ups.
fn is_filter(shown: &Value) -> bool {
    shown["options"].is_object() && shown["options"].get("ht_divisor").is_none()
}

/// Names and numbers of those of this network namespace: /sys may show another
/// one's.
fn interfaces(guard: &Guard) -> Result<Vec<(String, u32)>, Stop> {
    let links = json(guard, Command::new("ip").args(["-j", "link", "show"]))?;
    Ok(links
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|link| {
            let index = u32::try_from(link["ifindex"].as_u64()?).ok()?;
            Some((link["ifname"].as_str()?.to_owned(), index))
        })
        .collect())
}

/// What a tool prints as JSON; nothing is an empty list.
fn json(guard: &Guard, command: &mut Command) -> Result<Value, Stop> {
    let answer = guard.run(command, LIMIT)?;
    let name = command.get_program().to_string_lossy();
    if answer.status != Some(0) {
        let said = answer.stderr.trim().replace('\n', " ");
        return Err(Stop::Io(std::io::Error::other(format!("{name}: {said}"))));
    }
    if answer.stdout.trim().is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_str(&answer.stdout)
        .map_err(|e| Stop::Io(std::io::Error::other(format!("{name}: {e}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_counted_by_table() {
        let ruleset = serde_json::json!({ "nftables": [
            { "metainfo": { "version": "1.0.6" } },
            { "table": { "family": "inet", "name": "filter" } },
            { "chain": { "family": "inet", "table": "filter", "name": "in" } },
            { "rule": { "family": "inet", "table": "filter", "chain": "in" } },
            { "rule": { "family": "ip", "table": "nat", "chain": "out" } },
            { "rule": { "family": "inet", "table": "filter", "chain": "in" } },
        ]});
        assert_eq!(
            rules(&ruleset),
            ["2 rules in table inet filter", "1 rule in table ip nat"]
        );
        assert!(rules(&serde_json::json!({ "nftables": [] })).is_empty());
    }
}
