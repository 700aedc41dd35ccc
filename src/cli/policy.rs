//! `policy`: which identities an endpoint may talk to, accelerated.

use std::net::IpAddr;
use std::str::FromStr;

use clap::Subcommand;
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::entry::{IfExists, absent, add, del, explain_empty, finish};
use crate::error::{Error, Result};
use crate::maps::Table;
use crate::maps::layout::{
    Addr, Endpoint, IDENTITY_ANY, POLICY_DEFAULT_DENY, POLICY_RULE, Policy, PolicyKey, VERDICT_DENY,
};
use crate::output::table;
use crate::state::tables::{default_deny, rule_key};
use crate::state::{Change, Instance};
use crate::words::{Direction, IPPROTO_TCP, Identity, Traffic, Verdict};

/// One word after the identity: a protocol with or without port, or a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// `tcp` or `tcp/PORT`.
    Traffic(Traffic),
    /// `allow`, `deny` or `proxy:PORT`.
    Verdict(Verdict),
}

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("tcp") {
            return text.parse().map(Self::Traffic);
        }
        text.parse().map(Self::Verdict).map_err(|e| {
            if text.starts_with("proxy:") {
                e
            } else {
                format!("{text:?} is not tcp, tcp/PORT, allow, deny or proxy:PORT")
            }
        })
    }
}

/// The rule that a command line names.
#[derive(Debug, clap::Args)]
pub struct Rule {
    /// The endpoint's address
    endpoint: IpAddr,
    /// Direction of the connection, seen from the endpoint
    direction: Direction,
    /// The other end's identity, or `any`
    #[arg(value_name = "IDENTITY|any")]
    identity: Identity,
}

impl Rule {
    fn key(&self, traffic: Option<Traffic>) -> PolicyKey {
        rule_key(self.endpoint, self.direction, self.identity, traffic)
    }
}

/// What can be done with policy.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Add a rule; the first of an endpoint and direction makes `deny` its default
    #[command(
        override_usage = "sockaccel policy add ENDPOINT egress|ingress IDENTITY|any [tcp[/PORT]] allow|deny|proxy:PORT",
        after_help = "\
Deny means not accelerated: the stack and its filters decide. This is no firewall.
The first hit decides: identity and port, any and port, identity and tcp, any and tcp, identity, any.

Example:  sockaccel policy add 10.0.0.7 egress 1001 tcp/8080 allow"
    )]
    Add {
        #[command(flatten)]
        rule: Rule,
        /// tcp or tcp/PORT, then allow, deny or proxy:PORT
        #[arg(value_name = "WORD", required = true, num_args = 1..=2)]
        words: Vec<Word>,
    },
    /// Delete a rule
    #[command(
        visible_alias = "delete",
        override_usage = "sockaccel policy del ENDPOINT egress|ingress IDENTITY|any [tcp[/PORT]]",
        after_help = "Example:  sockaccel policy del 10.0.0.7 egress 1001 tcp/8080"
    )]
    Del {
        #[command(flatten)]
        rule: Rule,
        /// tcp or tcp/PORT
        #[arg(value_name = "tcp[/PORT]")]
        traffic: Option<Word>,
        #[command(flatten)]
        if_exists: IfExists,
    },
    /// All rules
    #[command(
        visible_aliases = ["show", "ls"],
        after_help = "\
DIRECTION is by who connected, seen from the endpoint: a rule is about the replies, too.

Example:  sockaccel policy list --endpoint 10.0.0.7"
    )]
    List {
        /// Only those of this endpoint
        #[arg(long, value_name = "ADDR")]
        endpoint: Option<IpAddr>,
    },
    /// One rule
    #[command(
        override_usage = "sockaccel policy get ENDPOINT egress|ingress IDENTITY|any [tcp[/PORT]]",
        after_help = "Example:  sockaccel policy get 10.0.0.7 egress 1001 tcp/8080"
    )]
    Get {
        #[command(flatten)]
        rule: Rule,
        /// tcp or tcp/PORT
        #[arg(value_name = "tcp[/PORT]")]
        traffic: Option<Word>,
    },
}

/// A rule, as `list` and `get` show it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Row {
    /// The endpoint's address.
    endpoint: IpAddr,
    /// `egress` or `ingress`.
    direction: String,
    /// A number, `any`, or `default` for what no rule names.
    identity: String,
    /// `tcp` or `any`.
    protocol: &'static str,
    /// Null: every port.
    port: Option<u16>,
    /// `allow`, `deny` or `proxy:PORT`.
    verdict: String,
    /// How often it decided.
    evaluations: u64,
}

impl Row {
    pub(super) fn new(key: &PolicyKey, policy: &Policy) -> Self {
        Self {
            endpoint: key.endpoint.ip(),
            direction: Direction::from_raw(key.direction).to_string(),
            identity: if key.kind == POLICY_DEFAULT_DENY {
                "default".to_owned()
            } else {
                Identity(key.identity).to_string()
            },
            protocol: if key.proto == 0 { "any" } else { "tcp" },
            port: (key.port > 0).then_some(key.port),
            verdict: Verdict(policy.verdict).to_string(),
            evaluations: policy.evaluations,
        }
    }
}

type Rules = Table<PolicyKey, Policy>;

/// Runs the verb.
pub fn run(context: &Context, verb: &Verb) -> Result<()> {
    match verb {
        Verb::Add { rule, words } => {
            let (traffic, verdict) = match words[..] {
                [Word::Verdict(verdict)] => (None, verdict),
                [Word::Traffic(traffic), Word::Verdict(verdict)] => (Some(traffic), verdict),
                _ => {
                    return Err(Error::Usage(
                        "a rule ends with [tcp[/PORT]] and one of allow, deny, proxy:PORT".into(),
                    ));
                }
            };
            let instance = Instance::open_to_write(&context.place)?;
            let endpoints: Table<Addr, Endpoint> = instance.table("sa_endpoints")?;
            if endpoints.get(&rule.endpoint.into())?.is_none() {
                return Err(Error::Failed(format!(
                    "{0} is not an endpoint\n  Declare it first:  sockaccel endpoint add {0}{1}",
                    rule.endpoint,
                    context.place.option()
                )));
            }
            let rules = instance.table("sa_policy")?;
            let added = add_rule(context, &rules, &rule.key(traffic), verdict);
            finish(context, &instance, added)
        }
        Verb::Del {
            rule,
            traffic,
            if_exists,
        } => {
            let key = rule.key(traffic_of(*traffic)?);
            let instance = Instance::open_to_write(&context.place)?;
            let rules: Rules = instance.table("sa_policy")?;
            let deleted = del(&rules, &key, describe(&key), if_exists);
            // Also where the rule is absent: a killed `del` may have left it.
            if count(&rules, &key)? == 0 {
                rules.remove(&default_deny(&key))?;
            }
            finish(context, &instance, deleted)
        }
        Verb::List { endpoint } => {
            let instance = Instance::open(&context.place)?;
            let mut rows: Vec<Row> = instance
                .table("sa_policy")?
                .entries()?
                .iter()
                .filter(|(key, _): &&(PolicyKey, Policy)| {
                    endpoint.is_none_or(|addr| Addr::from(addr) == key.endpoint)
                })
                .map(|(key, policy)| Row::new(key, policy))
                .collect();
            rows.sort_by_cached_key(|r| {
                (r.endpoint, r.direction.clone(), r.identity.clone(), r.port)
            });
            drop(instance);
            explain_empty(
                context,
                &rows,
                "policy rules",
                "policy add ENDPOINT egress any allow",
            );
            context.output.print(&rows, || to_table(&rows))
        }
        Verb::Get { rule, traffic } => {
            let key = rule.key(traffic_of(*traffic)?);
            let instance = Instance::open(&context.place)?;
            let rules: Rules = instance.table("sa_policy")?;
            let found = rules.get(&key)?.ok_or_else(|| absent(describe(&key)))?;
            let row = Row::new(&key, &found);
            context
                .output
                .print(&row, || to_table(std::slice::from_ref(&row)))
        }
    }
}

fn traffic_of(word: Option<Word>) -> Result<Option<Traffic>> {
    match word {
        None => Ok(None),
        Some(Word::Traffic(traffic)) => Ok(Some(traffic)),
        Some(Word::Verdict(_)) => Err(Error::Usage(
            "a rule is named by its traffic, tcp or tcp/PORT".into(),
        )),
    }
}

/// The default goes in first: between the two writes new connections are
/// denied, never wrongly allowed.
fn add_rule(context: &Context, rules: &Rules, key: &PolicyKey, verdict: Verdict) -> Result<Change> {
    let default = default_deny(key);
    let first = rules.get(&default)?.is_none();
    if first {
        rules.set(
            &default,
            &Policy {
                verdict: VERDICT_DENY,
                pad: 0,
                evaluations: 0,
            },
        )?;
    }
    let value = Policy {
        verdict: verdict.0,
        pad: 0,
        evaluations: 0,
    };
    let added = add(rules, rules.get(key)?, key, &value, describe(key), |old| {
        old.verdict == verdict.0
    });
    if added.is_err() && first {
        rules.remove(&default)?;
    }
    if first && added.is_ok() {
        let row = Row::new(key, &value);
        context.output.note(format_args!(
            "First {} rule of {}: what no rule of it allows stays on the stack from now on.",
            row.direction, row.endpoint
        ));
    }
    added
}

/// Rules of the same endpoint and direction.
fn count(rules: &Rules, key: &PolicyKey) -> Result<usize> {
    Ok(rules
        .entries()?
        .iter()
        .filter(|(other, _)| {
            other.kind == POLICY_RULE
                && other.endpoint == key.endpoint
                && other.direction == key.direction
        })
        .count())
}

/// The rule that decides, and its tier: 1 to 6 as in `policy add --help`, 7 for the
/// default. The same steps as `sa_policy_lookup()` of src/bpf/policy.h.
pub fn lookup(
    rules: &Table<PolicyKey, Policy>,
    endpoint: Addr,
    direction: u8,
    identity: u32,
    port: u16,
) -> Result<Option<(u32, PolicyKey, Policy)>> {
    for tier in 1..=7_u32 {
        let default = tier == 7;
        let key = PolicyKey {
            endpoint,
            identity: if tier % 2 == 1 && !default {
                identity
            } else {
                IDENTITY_ANY
            },
            port: if tier <= 2 { port } else { 0 },
            proto: if tier <= 4 { IPPROTO_TCP } else { 0 },
            direction,
            kind: if default {
                POLICY_DEFAULT_DENY
            } else {
                POLICY_RULE
            },
            pad: [0; 3],
        };
        if let Some(rule) = rules.get(&key)? {
            return Ok(Some((tier, key, rule)));
        }
    }
    Ok(None)
}

/// A rule in words.
pub fn describe(key: &PolicyKey) -> String {
    let row = Row::new(
        key,
        &Policy {
            verdict: 0,
            pad: 0,
            evaluations: 0,
        },
    );
    let port = row.port.map(|port| format!("/{port}")).unwrap_or_default();
    format!(
        "policy of {} {} for identity {}, protocol {}{port}",
        row.endpoint, row.direction, row.identity, row.protocol
    )
}

fn to_table(rows: &[Row]) -> String {
    table(
        &[
            "endpoint",
            "direction",
            "identity",
            "protocol",
            "port",
            "verdict",
            "evaluations",
        ],
        rows.iter().map(|row| {
            [
                row.endpoint.to_string(),
                row.direction.clone(),
                row.identity.clone(),
                row.protocol.to_owned(),
                row.port
                    .map_or_else(|| "any".to_owned(), |port| port.to_string()),
                row.verdict.clone(),
                row.evaluations.to_string(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (text, expected) in [
            ("tcp", Some(Word::Traffic(Traffic(0)))),
            ("tcp/80", Some(Word::Traffic(Traffic(80)))),
            ("allow", Some(Word::Verdict(Verdict(0)))),
            ("proxy:10000", Some(Word::Verdict(Verdict(10000)))),
            ("tcp/0", None),
            ("udp/53", None),
            ("proxy:0", None),
            ("drop", None),
        ] {
            assert_eq!(text.parse::<Word>().ok(), expected, "{text}");
        }
    }

    #[test]
    fn an_absent_rule_is_looked_for_among_rules() {
        let endpoint = IpAddr::from([10, 0, 0, 7]);
        let key = rule_key(endpoint, Direction::Egress, Identity(7), None);
        let text = absent(describe(&key)).to_string();
        assert!(text.ends_with("sockaccel policy list"), "{text}");
    }
}
