//! The rules that decide over one direction, in the order in which they do.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::find::{End, Look};
use crate::cli::addr::end;
use crate::cli::{identity, policy};
use crate::error::Result;
use crate::maps::layout::{
    Addr, Cidr, Config, EGRESS, Endpoint, FILTER_EXCLUDE, FILTER_INCLUDE, INGRESS, PATH_REDIRECT,
    Policy, PolicyKey, SCOPE_ENDPOINTS, Service, ServiceKey, Sock, Tuple,
};
use crate::outcome::{Outcome, REASONS, WHYS, index};
use crate::output::count;
use crate::remedy::{Remedies, Remedy, quoted};
use crate::state::{Attached, Instance};
use crate::words::{Blocking, IPPROTO_TCP, Verdict};

/// `enum sa_mark`
const MARK_SPLICING: u32 = 1;
const NO_LOCAL_PEER: u32 = index(REASONS, "no_local_peer");
const BLOCKING_READER: u32 = index(REASONS, "blocking_reader");
const SERVICE: u32 = index(REASONS, "service");
const FILTERED: u32 = index(REASONS, "filtered");
const UNPAIRED: u32 = index(WHYS, "unpaired");
const PEER_STATE: u32 = index(WHYS, "peer_state");
const CHANGING: u32 = index(WHYS, "changing");

/// One rule, and what it says of this direction.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Rule {
    /// Its name.
    #[serde(rename = "rule")]
    name: &'static str,
    /// Does it allow a redirect? `None` where that cannot be seen.
    pub holds: Option<bool>,
    /// What is known.
    pub evidence: String,
    /// What would change it; empty when nothing does.
    #[serde(serialize_with = "text_of")]
    #[schemars(with = "String")]
    remedy: Remedy,
    /// It is broken because of the other end.
    #[serde(skip)]
    about_peer: bool,
}

impl Rule {
    fn new(
        name: &'static str,
        holds: impl Into<Option<bool>>,
        evidence: impl Into<String>,
    ) -> Self {
        Self {
            name,
            holds: holds.into(),
            evidence: evidence.into(),
            remedy: Remedy::default(),
            about_peer: false,
        }
    }

    fn remedy(mut self, remedy: Remedy) -> Self {
        if self.holds == Some(false) {
            self.remedy = remedy;
        }
        self
    }

    pub fn to_text(&self) -> String {
        let mark = match self.holds {
            Some(true) => "yes",
            Some(false) => "NO ",
            None => "?  ",
        };
        let mut text = format!("    {mark} {:<12} {}", self.name, self.evidence);
        if let Some(remedy) = self.remedy.line() {
            text.push_str("\n                     ");
            text.push_str(&remedy);
        }
        text
    }
}

fn text_of<S: Serializer>(remedy: &Remedy, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&remedy.text)
}

/// An end and what was seen of it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub end: &'a End,
    pub look: Option<&'a Look>,
}

/// What all directions share.
#[derive(Debug)]
pub struct Setting<'a> {
    pub instance: &'a Instance,
    pub config: Config,
    /// Of verdicts that are up to date: see `sa_verdict` of src/bpf.
    pub generation: u32,
    pub attached: Vec<Attached>,
    pub remedies: Remedies,
}

/// One direction, judged.
#[derive(Debug)]
pub struct Direction {
    /// Is what is sent now redirected?
    pub accelerated: bool,
    /// The whole answer in a sentence.
    pub why: String,
    /// All of them.
    pub rules: Vec<Rule>,
}

fn outcome(table: &'static [Outcome], index: u32) -> Outcome {
    table.get(index as usize).copied().unwrap_or(Outcome {
        name: "unknown",
        text: "a reason that this version does not know",
        remedy: "",
    })
}

impl Setting<'_> {
    /// Judges what `from` sends.
    pub fn judge(&self, from: Seen<'_>, to: Option<Seen<'_>>) -> Result<Direction> {
        let mut rules = vec![Rule::new(
            "instance",
            self.config.enabled != 0,
            format!(
                "instance {} is {}",
                self.instance.name(),
                if self.config.enabled != 0 {
                    "enabled"
                } else {
                    "being set up or taken down"
                }
            ),
        )];
        rules.extend(self.kept_in("sender", from));
        match to {
            Some(to) => rules.extend(self.kept_in("receiver", to)),
            None => rules.push(
                Rule::new(
                    "receiver",
                    false,
                    format!("no process on this machine was seen to have the socket at {}", from.end.remote),
                )
                .remedy(Remedy::now("none, if it is another machine; else see whether a process hides it (pid namespace, container)")),
            ),
        }
        if let (Some(tuple), Some(true)) = (
            from.end.tuple(),
            from.end.record().map(|sock| sock.cookie != 0),
        ) {
            rules.extend(self.tables(from.end, to.map(|to| to.end), &tuple)?);
        }
        let in_table = from.end.enrolled.is_some();
        if let Some(to) = to {
            rules.extend(self.reader(from.end, to));
        }
        if in_table {
            rules.extend(self.path(from.end, to.map(|to| to.end)));
        }
        Ok(self.conclude(from.end, to.map(|to| to.end), rules))
    }

    fn conclude(&self, from: &End, to: Option<&End>, rules: Vec<Rule>) -> Direction {
        let on_redirect =
            from.enrolled.is_some() && from.record().is_some_and(|sock| sock.path == PATH_REDIRECT);
        let accelerated =
            self.config.enabled != 0 && on_redirect && to.is_some_and(|to| to.enrolled.is_some());
        let is_broken = |rule: &&Rule| rule.holds == Some(false);
        // What is wrong with the other end is told best by the other end.
        let broken = rules
            .iter()
            .filter(is_broken)
            .find(|rule| !rule.about_peer)
            .or_else(|| rules.iter().find(is_broken));
        let why = match (accelerated, broken) {
            (true, None) => "accelerated".to_owned(),
            (true, Some(rule)) => format!(
                "accelerated until its next message, which finds: {}",
                rule.evidence
            ),
            (false, Some(rule)) => format!("not accelerated: {}", rule.evidence),
            (false, None) => {
                "not accelerated yet: every rule allows it, and it changes over with a message that finds all before it read".to_owned()
            }
        };
        Direction {
            accelerated,
            why,
            rules,
        }
    }

    /// Was it seen, and is it in the table?
    fn kept_in(&self, who: &'static str, seen: Seen<'_>) -> Vec<Rule> {
        let end = seen.end;
        let mut rules = Vec::new();
        let inside = seen.look.and_then(|look| look.cgroup.as_ref()).map(|path| {
            let enabled = self
                .attached
                .iter()
                .filter_map(|attached| attached.path.as_ref())
                .find(|enabled| Path::new(path).starts_with(enabled));
            (path, enabled)
        });
        let process = match end.pid() {
            Some(pid) => format!(
                "pid {pid} ({})",
                crate::state::process::name(pid).unwrap_or_else(|| "ended".to_owned())
            ),
            None => "no process that can be seen".to_owned(),
        };
        match inside {
            Some((path, Some(enabled))) => rules.push(Rule::new(
                "cgroup",
                true,
                format!("the {who}'s socket belongs to {path}, enabled by {}: {process}", enabled.display()),
            )),
            Some((path, None)) => rules.push(
                Rule::new("cgroup", end.record().is_some(), format!("the {who}'s socket belongs to cgroup {path}, which is not enabled: {process}"))
                    .remedy(self.next(&format!("sockaccel enable --cgroup {}{{instance}}", quoted(Path::new(path))))),
            ),
            None => rules.push(Rule::new("cgroup", None, format!("the {who}'s cgroup cannot be seen: {process}"))),
        }
        let Some(sock) = end.record() else {
            let skipped = end
                .side
                .as_ref()
                .map(|side| side.skipped)
                .filter(|reason| *reason != 0)
                .or(end.passed);
            rules.push(match (skipped, inside) {
                (Some(reason), _) => self.refused(who, "skipped", reason, end.passed.is_some()),
                (None, Some((_, Some(_)))) => Rule::new(
                    "established",
                    false,
                    format!("the {who}'s socket was established before its cgroup was enabled"),
                )
                .remedy(self.now("sockaccel adopt{instance}, or let the program connect again")),
                (None, Some((_, None))) => Rule::new(
                    "established",
                    false,
                    format!("the {who}'s socket was established outside of the enabled cgroups"),
                ),
                (None, None) => Rule::new(
                    "established",
                    false,
                    format!("the {who}'s socket was not seen being established"),
                ),
            });
            return rules;
        };
        rules.push(if sock.skipped != 0 {
            self.refused(who, "skipped", sock.skipped, false)
        } else if sock.ejected != 0 {
            self.refused(who, "ejected", sock.ejected, false)
        } else if end.enrolled.is_some() {
            Rule::new("enrolled", true, format!("the {who}'s socket is enrolled"))
        } else {
            Rule::new(
                "enrolled",
                false,
                format!("the {who}'s socket was taken out, as its peer was"),
            )
        });
        rules
    }

    /// Pair, filters, services, scope, policy and what was cached of them.
    fn tables(&self, from: &End, to: Option<&End>, mine: &Tuple) -> Result<Vec<Rule>> {
        let mut rules = vec![self.pair(from, to)];
        let theirs = to.and_then(End::tuple).unwrap_or(Tuple {
            local: mine.remote,
            remote: mine.local,
            local_port: mine.remote_port,
            remote_port: mine.local_port,
            ..*mine
        });
        let (client, server) = if from.role() == Some(true) {
            (*mine, theirs)
        } else {
            (theirs, *mine)
        };
        rules.push(self.filter(&client, &server, from.role() == Some(true))?);
        if self.config.changing % 2 == 1 {
            rules.push(self.unfinished(from));
        }
        rules.push(self.service(&client)?);
        if self.config.scope == SCOPE_ENDPOINTS {
            let endpoint = self
                .instance
                .table::<Addr, Endpoint>("sa_endpoints")?
                .get(&mine.remote)?;
            rules.push(
                Rule::new(
                    "scope",
                    endpoint.is_some(),
                    format!(
                        "scope endpoints: {} is {}an endpoint",
                        mine.remote.ip(),
                        if endpoint.is_some() { "" } else { "not " }
                    ),
                )
                .remedy(self.now(&format!(
                    "sockaccel endpoint add {}{{instance}}",
                    mine.remote.ip()
                ))),
            );
        } else {
            rules.push(Rule::new(
                "scope",
                true,
                "scope local: every paired local peer",
            ));
        }
        rules.push(self.policy(
            "egress",
            client.local,
            EGRESS,
            client.remote,
            client.remote_port,
            &server,
        )?);
        rules.push(self.policy(
            "ingress",
            server.local,
            INGRESS,
            client.local,
            server.local_port,
            &server,
        )?);
        if from.enrolled.is_some()
            && let Some(sock) = from.record()
        {
            rules.push(self.verdict(sock.verdict, sock.generation, sock.policy_tier));
        }
        Ok(rules)
    }

    fn filter(&self, client: &Tuple, server: &Tuple, active: bool) -> Result<Rule> {
        // Each socket is filtered by what it itself knows of the server.
        let (addr, port) = if active {
            (client.remote, client.remote_port)
        } else {
            (server.local, server.local_port)
        };
        let by_port = self
            .instance
            .table::<u32, u8>("sa_ports")?
            .get(&u32::from(port))?
            .unwrap_or(0);
        let host = ipnet::IpNet::from(addr.ip());
        let by_addr = self
            .instance
            .table::<Cidr, u32>("sa_cidrs")?
            .get(&Cidr::from(host))?
            .unwrap_or(0);
        let excluded = by_port == FILTER_EXCLUDE || by_addr == u32::from(FILTER_EXCLUDE);
        let missing = (self.config.port_includes != 0 && by_port != FILTER_INCLUDE)
            || (self.config.cidr_includes != 0 && by_addr != u32::from(FILTER_INCLUDE));
        let says = match (excluded, missing) {
            (true, _) => "exclude it",
            (_, true) => "do not include it",
            _ => "let it in",
        };
        Ok(Rule::new(
            "filter",
            !excluded && !missing,
            format!("port and CIDR filters {says} now: server {}; they act when a connection is established", end(addr, port)),
        )
        .remedy(self.remedies.of_socket(&outcome(REASONS, FILTERED))))
    }

    fn service(&self, client: &Tuple) -> Result<Rule> {
        let key = ServiceKey {
            addr: client.remote,
            port: client.remote_port,
            proto: IPPROTO_TCP,
            pad: 0,
        };
        let name = end(key.addr, key.port);
        let found = self
            .instance
            .table::<ServiceKey, Service>("sa_services")?
            .get(&key)?;
        Ok(match found {
            None => Rule::new("service", true, format!("{name} is not a service")),
            Some(service) if service.accelerate != 0 => Rule::new(
                "service",
                true,
                format!("{name} is a service that is accelerated"),
            ),
            Some(_) => Rule::new(
                "service",
                false,
                format!("{name} is a service that stays on the stack"),
            )
            .remedy(
                self.next(
                    &outcome(REASONS, SERVICE)
                        .remedy
                        .replace("VIP:PORT", &name.to_string()),
                ),
            ),
        })
    }

    fn policy(
        &self,
        name: &'static str,
        endpoint: Addr,
        direction: u8,
        other: Addr,
        port: u16,
        server: &Tuple,
    ) -> Result<Rule> {
        let (number, source) = identity::resolve(self.instance, other.ip())?;
        let rules = self.instance.table::<PolicyKey, Policy>("sa_policy")?;
        let asked = format!(
            "{} {name} for {} (identity {number}, {source}), port {port}",
            endpoint.ip(),
            other.ip()
        );
        let Some((tier, key, rule)) = policy::lookup(&rules, endpoint, direction, number, port)?
        else {
            return Ok(Rule::new(name, true, format!("{asked}: no rules, allowed")));
        };
        let holds = rule.verdict == 0
            || i32::from(server.local_port) == rule.verdict
            || i32::from(server.listen_port) == rule.verdict;
        let entry = if tier == 7 {
            "no rule matches, and the endpoint has some: denied".to_owned()
        } else {
            format!(
                "tier {tier}, {}: {}",
                policy::describe(&key),
                Verdict(rule.verdict)
            )
        };
        let rule = format!("{} {name} {number} tcp/{port}", endpoint.ip());
        let add = format!("sockaccel policy add {rule} allow{{instance}}");
        // One of just this name is not changed by another.
        let remedy = match tier {
            1 => format!("sockaccel policy del {rule}{{instance}} && {add}"),
            _ => add,
        };
        Ok(Rule::new(name, holds, format!("{asked}: {entry}")).remedy(self.now(&remedy)))
    }

    fn verdict(&self, verdict: u32, generation: u32, tier: u32) -> Rule {
        let behind = self.generation != generation;
        let why = outcome(WHYS, verdict);
        let said = if generation == 0 {
            "nothing was sent yet: the tables are asked at the first message".to_owned()
        } else if verdict == 0 {
            format!("the tables allowed it (policy tier {tier}) at generation {generation}")
        } else {
            format!("the tables said at generation {generation}: {}", why.text)
        };
        let when = if behind && generation != 0 {
            "; tables or readers have changed since, and are asked again at the next message"
        } else {
            ""
        };
        let holds = if behind { None } else { Some(verdict == 0) };
        Rule::new("verdict", holds, format!("{said}{when}")).remedy(self.remedies.of_message(&why))
    }

    /// How the receiver reads.
    fn reader(&self, from: &End, to: Seen<'_>) -> Vec<Rule> {
        let mut rules = Vec::new();
        let nonblocking = to.look.map(|look| look.nonblocking).or(to
            .end
            .enrolled
            .as_ref()
            .filter(|dump| dump.inode != 0)
            .map(|dump| dump.nonblock != 0));
        let accelerate = self.config.blocking != 0;
        rules.push(match nonblocking {
            None => Rule::new("reader", None, "whether the receiver blocks cannot be seen"),
            Some(true) => Rule::new("reader", true, "the receiver has O_NONBLOCK set now"),
            Some(false) => Rule::new(
                "reader",
                accelerate,
                format!(
                    "the receiver's socket is blocking now; blocking readers: {}",
                    Blocking::from(accelerate)
                ),
            )
            .remedy(self.blocking(from)),
        });
        if let Some(look) = to.look {
            let none = look.options.is_empty();
            let evidence = if none {
                "the receiver set no option that redirect cannot honour".to_owned()
            } else {
                format!("the receiver set {}", look.options.join(", "))
            };
            rules.push(Rule::new("options", none, evidence).remedy(Remedy::now(
                "the program's own choice; leave the option out",
            )));
        }
        if let Some(sock) = from.record().filter(|_| from.enrolled.is_some()) {
            let evidence = match sock.marks {
                0 => "nobody was seen splicing or setting such options on this connection",
                marks if marks & MARK_SPLICING != 0 => {
                    "the receiver, or its process, was seen to splice(2)"
                }
                _ => {
                    "an option that redirect cannot honour was set after the connection was enrolled"
                }
            };
            rules.push(Rule::new("marks", sock.marks == 0, evidence));
        }
        rules
    }

    /// Budgets, company and what the last message met.
    fn path(&self, from: &End, to: Option<&End>) -> Vec<Rule> {
        let Some(sock) = from.record() else {
            return Vec::new();
        };
        let unread = to
            .and_then(|to| to.enrolled.as_ref())
            .map_or((0, 0), |dump| (dump.unread_messages, dump.unread_bytes));
        let config = &self.config;
        let within = sock.queued_messages < config.budget_messages
            && sock.queued_bytes < config.budget_bytes;
        let redirect = sock.path == PATH_REDIRECT;
        let why = outcome(WHYS, sock.why);
        let mut rules = vec![
            Rule::new(
                "budget",
                within || unread.0 == 0,
                format!(
                    "{} of {} messages and {} of {} bytes since the receiver's queue was last empty; {}, {} unread now",
                    sock.queued_messages,
                    config.budget_messages,
                    sock.queued_bytes,
                    config.budget_bytes,
                    count(unread.0.into(), "message"),
                    count(unread.1, "byte")
                ),
            ),
            Rule::new(
                "company",
                sock.company == 0,
                if sock.company == 0 {
                    "one thread at a time sends on the socket"
                } else {
                    "several threads were seen sending on the socket at once: it stays on the stack"
                },
            ),
            Rule::new(
                "history",
                None,
                format!(
                    "{}, {}; {} ({}) redirected, {} ({}) by the stack",
                    count(sock.promotions.into(), "promotion"),
                    count(sock.demotions.into(), "demotion"),
                    count(sock.redirected_messages, "message"),
                    count(sock.redirected_bytes, "byte"),
                    sock.stack_messages,
                    sock.stack_bytes
                ),
            ),
        ];
        rules.push(if redirect {
            Rule::new("path", true, "redirect")
        } else if sock.stack_messages == 0 {
            Rule::new("path", false, "stack: nothing was sent yet").remedy(Remedy::now(
                "none needed: it changes over when the receiver has read",
            ))
        } else {
            Rule::new(
                "path",
                false,
                format!("stack: at the last message {}", why.text),
            )
            .remedy(self.remedies.of_message(&why))
        });
        rules
    }

    /// Was `passed` over: then it can be adopted.
    fn refused(&self, who: &str, how: &str, reason: u32, passed: bool) -> Rule {
        let reason = outcome(REASONS, reason);
        let evidence = format!(
            "the {who}'s socket was {how} ({}): {}",
            reason.name, reason.text
        );
        let remedy = match (self.remedies.is_applied(&reason), passed) {
            // The other end is among the rules, too.
            _ if reason.name == "peer_not_eligible" => Remedy::default(),
            (false, _) => self.remedies.of_socket(&reason),
            (true, true) => self.now("sockaccel adopt{instance}, or let the program connect again"),
            (true, false) => self.now("set so by now: let the program connect again"),
        };
        Rule {
            about_peer: ["no_local_peer", "peer_not_eligible"].contains(&reason.name),
            ..Rule::new("enrolled", false, evidence).remedy(remedy)
        }
    }

    /// Of a receiver that blocks: an enrolled sender asks with each message.
    fn blocking(&self, from: &End) -> Remedy {
        let reason = outcome(REASONS, BLOCKING_READER);
        if from.enrolled.is_some() {
            self.remedies.of_message(&reason)
        } else {
            self.remedies.of_socket(&reason)
        }
    }

    fn now(&self, text: &str) -> Remedy {
        Remedy::now(self.remedies.fill(text))
    }

    fn next(&self, text: &str) -> Remedy {
        Remedy::next(self.remedies.fill(text))
    }

    /// The tables are neither the old ones nor the new ones.
    fn unfinished(&self, from: &End) -> Rule {
        let is_judged = |sock: &Sock| {
            sock.generation != 0 && ![CHANGING, UNPAIRED, PEER_STATE].contains(&sock.verdict)
        };
        let judged = from.record().is_some_and(is_judged);
        let what = if judged {
            "this direction keeps its verdict"
        } else {
            "what was not judged before stays on the stack"
        };
        let evidence = format!("an apply is under way or was killed half-way: {what}");
        Rule::new("apply", judged, evidence)
            .remedy(self.remedies.of_message(&outcome(WHYS, CHANGING)))
    }

    fn pair(&self, from: &End, to: Option<&End>) -> Rule {
        let Some(sock) = from.record() else {
            return Rule::new("pair", None, "not known");
        };
        let role = if from.role() == Some(true) {
            "client"
        } else {
            "server"
        };
        let meets = to.is_some_and(|to| {
            to.enrolled
                .as_ref()
                .is_some_and(|dump| dump.sock.peer_cookie == from.cookie)
        });
        match sock.peer_cookie {
            0 if meets && from.enrolled.is_some() => Rule::new(
                "pair",
                true,
                format!(
                    "the sender is the {role}; it meets its peer, which knows it, at its first message"
                ),
            ),
            0 => Rule {
                about_peer: true,
                ..Rule::new(
                    "pair",
                    false,
                    format!("the sender is the {role}, and has not met its peer"),
                )
                .remedy(self.remedies.of_socket(&outcome(REASONS, NO_LOCAL_PEER)))
            },
            peer => Rule::new(
                "pair",
                true,
                format!(
                    "the sender is the {role}; connection {:016x}, peer's cookie {peer}",
                    sock.conn_id
                ),
            ),
        }
    }
}
