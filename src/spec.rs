//! The file of `apply`, which `export` prints: an instance as TOML.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::doctor::Risk;
use crate::error::{Error, Result};
use crate::maps::layout::{
    Addr, Cidr, Endpoint, FILTER_EXCLUDE, FILTER_INCLUDE, POLICY_RULE, PolicyKey, ServiceKey,
};
use crate::state::cgroup::Cgroup;
use crate::state::filters::{self, Filters};
use crate::state::tables::{Tables, own_addresses, rule_key};
use crate::state::{Difference, Setup};
use crate::words::{
    Admission, Blocking, BudgetBytes, BudgetMessages, Direction, Identity, MaxSockets, Network,
    Ports, Scope, ServiceName, StreamLimit, Traffic, Verdict,
};

/// Everything a command line can set. What is left out has its default;
/// `cgroups` cannot be left out, so that an empty file turns nothing off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Cgroups (version 2) to accelerate; none: the instance is disabled.
    #[schemars(with = "Vec<PathBuf>")]
    pub cgroups: Vec<Spanned<PathBuf>>,
    /// Programs that read from blocking sockets.
    #[serde(default)]
    pub blocking_readers: Blocking,
    /// Which peers.
    #[serde(default)]
    pub scope: Scope,
    /// Risks accepted.
    #[serde(default)]
    pub allow: Vec<Risk>,
    /// Sockets that can be enrolled at one time.
    #[serde(default)]
    pub max_sockets: MaxSockets,
    /// Messages that may wait in a redirect queue.
    #[serde(default)]
    pub budget_messages: BudgetMessages,
    /// Bytes that may wait in a redirect queue.
    #[serde(default)]
    pub budget_bytes: BudgetBytes,
    /// Messages after which the sender of a one-way stream leaves; 0 never.
    #[serde(default)]
    pub stream_limit: StreamLimit,
    /// Which connections to enrol.
    #[serde(default)]
    pub admission: Admission,
    /// Only connections to these server ports.
    #[serde(default)]
    pub ports: Vec<Ports>,
    /// No connections to these server ports.
    #[serde(default)]
    pub exclude_ports: Vec<Ports>,
    /// Only connections to servers in these networks.
    #[serde(default)]
    pub cidrs: Vec<Network>,
    /// No connections to servers in these networks.
    #[serde(default)]
    pub exclude_cidrs: Vec<Network>,
    /// Local addresses with policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<EndpointSpec>")]
    pub endpoints: Vec<Spanned<EndpointSpec>>,
    /// Identities of networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<IdentitySpec>")]
    pub identities: Vec<Spanned<IdentitySpec>>,
    /// Destinations that stay on the stack, or do not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<ServiceSpec>")]
    pub services: Vec<Spanned<ServiceSpec>>,
    /// Rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<RuleSpec>")]
    pub policy: Vec<Spanned<RuleSpec>>,
}

/// `endpoint add`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointSpec {
    /// The address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Instead of it: every address of this machine's interfaces.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host: bool,
    /// Its identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<NonZeroU32>,
}

/// `identity add`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentitySpec {
    /// The network.
    pub cidr: Network,
    /// Its identity.
    pub identity: NonZeroU32,
}

/// `service add`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Address and port.
    pub service: ServiceName,
    /// Accelerated, not left to the stack.
    #[serde(default)]
    pub accelerate: bool,
}

/// `policy add`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// One of the endpoints.
    pub endpoint: IpAddr,
    /// Who connects.
    pub direction: Direction,
    /// The other end.
    pub identity: Identity,
    /// `tcp` or `tcp/PORT`; every protocol if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// What happens.
    pub verdict: Verdict,
}

/// A place in the file.
type Span = std::ops::Range<usize>;

/// A sentence about a place in the file.
type Complaint = (Span, String);

/// The text of a file, for messages about it.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// How the user named it.
    pub name: &'a str,
    /// All of it.
    pub text: &'a str,
}

impl Source<'_> {
    /// Reads it.
    pub fn parse(&self) -> Result<Spec> {
        toml::from_str(self.text).map_err(|e| {
            let span = e.span().unwrap_or(0..0);
            self.complain(&(span, e.message().to_owned()))
        })
    }

    /// `FILE:LINE:COLUMN: what`, and the line.
    fn complain(&self, (span, what): &Complaint) -> Error {
        let before = self.text.get(..span.start).unwrap_or_default();
        let number = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before[start..].chars().count() + 1;
        let line = self.text[start..].lines().next().unwrap_or_default();
        Error::Usage(format!(
            "{}:{number}:{column}: {what}\n  {}\n  Nothing was changed.",
            self.name,
            line.trim()
        ))
    }

    /// What the file asks for on this machine as it is now, and its cgroups,
    /// open. `also` are risks accepted elsewhere.
    pub fn resolve(&self, spec: &Spec, also: &[Risk]) -> Result<(Setup, Vec<Cgroup>)> {
        let mut cgroups = Vec::new();
        for path in &spec.cgroups {
            cgroups.push(Cgroup::open(path.get_ref()).map_err(|error| {
                // The kind of failure, and with it the exit status, stays.
                match error {
                    Error::Os { .. } => error,
                    other => self.complain(&(path.span(), other.to_string())),
                }
            })?);
        }
        cgroups.sort_by_key(|cgroup| cgroup.id);
        cgroups.dedup_by_key(|cgroup| cgroup.id);
        let tables = spec.tables().map_err(|complaint| match complaint {
            Ok(complaint) => self.complain(&complaint),
            Err(error) => error,
        })?;
        let setup = Setup {
            cgroups: cgroups
                .iter()
                .map(|cgroup| (cgroup.id, Some(cgroup.path.clone())))
                .collect(),
            blocking: spec.blocking_readers,
            scope: spec.scope,
            budget_messages: spec.budget_messages,
            budget_bytes: spec.budget_bytes,
            stream_limit: spec.stream_limit,
            admission: spec.admission,
            max_sockets: spec.max_sockets,
            allow: spec.allow.iter().chain(also).fold(0, |a, r| a | r.bit()),
            filters: Filters::new(
                &filters::ports(&spec.ports, &spec.exclude_ports),
                &filters::cidrs(&spec.cidrs, &spec.exclude_cidrs),
            ),
            tables,
        };
        Ok((setup, cgroups))
    }
}

/// Inserts, unless the key is there with another value.
fn insert<K: Ord, V: PartialEq>(
    map: &mut BTreeMap<K, V>,
    key: K,
    value: V,
    span: Span,
) -> Result<(), Result<Complaint, Error>> {
    match map.entry(key) {
        Entry::Occupied(old) if *old.get() != value => {
            let what = "this is there already, with another value".to_owned();
            Err(Ok((span, what)))
        }
        entry => {
            entry.or_insert(value);
            Ok(())
        }
    }
}

impl Spec {
    fn tables(&self) -> Result<Tables, Result<Complaint, Error>> {
        let mut tables = Tables {
            endpoints: self.endpoints()?,
            ..Tables::default()
        };
        for entry in &self.identities {
            let IdentitySpec { cidr, identity } = entry.get_ref();
            let key = Cidr::from(cidr.0);
            insert(&mut tables.identities, key, identity.get(), entry.span())?;
        }
        for entry in &self.services {
            let key = ServiceKey::from(entry.get_ref().service);
            let accelerate = entry.get_ref().accelerate;
            insert(&mut tables.services, key, accelerate, entry.span())?;
        }
        for entry in &self.policy {
            let rule = entry.get_ref();
            if !tables.endpoints.contains_key(&Addr::from(rule.endpoint)) {
                let what = format!(
                    "{0} is not an endpoint; declare it:  [[endpoints]] address = \"{0}\"",
                    rule.endpoint
                );
                return Err(Ok((entry.span(), what)));
            }
            let key = rule_key(rule.endpoint, rule.direction, rule.identity, rule.traffic);
            insert(&mut tables.policy, key, rule.verdict.0, entry.span())?;
        }
        tables.add_default_denies();
        Ok(tables)
    }

    /// Addresses with an entry of their own keep it where the host's are added.
    fn endpoints(&self) -> Result<BTreeMap<Addr, Endpoint>, Result<Complaint, Error>> {
        let mut endpoints = BTreeMap::new();
        let mut host = None;
        for entry in &self.endpoints {
            let EndpointSpec {
                address,
                host: is_host,
                identity,
            } = entry.get_ref();
            let identity = identity.map_or(0, NonZeroU32::get);
            match (address, is_host) {
                (Some(address), false) => {
                    let endpoint = Endpoint { identity, host: 0 };
                    insert(&mut endpoints, Addr::from(*address), endpoint, entry.span())?;
                }
                (None, true) if host.is_none_or(|before| before == identity) => {
                    host = Some(identity);
                }
                (None, true) => {
                    let what = "the host is there already, with another identity".to_owned();
                    return Err(Ok((entry.span(), what)));
                }
                _ => {
                    let what = "an endpoint has either `address` or `host = true`".to_owned();
                    return Err(Ok((entry.span(), what)));
                }
            }
        }
        if let Some(identity) = host {
            for ip in own_addresses().map_err(Err)? {
                let endpoint = Endpoint { identity, host: 1 };
                endpoints.entry(Addr::from(ip)).or_insert(endpoint);
            }
        }
        Ok(endpoints)
    }

    /// The file of an instance as it is. Cgroups that were removed are left out.
    pub fn of(setup: &Setup) -> Self {
        let tables = &setup.tables;
        let host = tables.endpoints.values().find(|e| e.host > 0);
        let own = tables.endpoints.iter().filter(|(_, e)| e.host == 0);
        let endpoints = own.map(|(addr, endpoint)| EndpointSpec {
            address: Some(addr.ip()),
            host: false,
            identity: NonZeroU32::new(endpoint.identity),
        });
        let endpoints = host
            .map(|endpoint| EndpointSpec {
                address: None,
                host: true,
                identity: NonZeroU32::new(endpoint.identity),
            })
            .into_iter()
            .chain(endpoints);
        let identities = tables.identities.iter().filter_map(|(cidr, identity)| {
            Some(IdentitySpec {
                cidr: (*cidr).into(),
                identity: NonZeroU32::new(*identity)?,
            })
        });
        let services = tables.services.iter().map(|(key, accelerate)| ServiceSpec {
            service: (*key).into(),
            accelerate: *accelerate,
        });
        let rules = tables.policy.iter().filter(|(k, _)| k.kind == POLICY_RULE);
        let policy = rules.map(|(key, verdict)| RuleSpec::of(key, *verdict));
        Self {
            cgroups: (setup.cgroups.values().flatten())
                .map(|path| unplaced(path.clone()))
                .collect(),
            blocking_readers: setup.blocking,
            scope: setup.scope,
            allow: Risk::from_bits(setup.allow).collect(),
            max_sockets: setup.max_sockets,
            budget_messages: setup.budget_messages,
            budget_bytes: setup.budget_bytes,
            stream_limit: setup.stream_limit,
            admission: setup.admission,
            ports: setup.filters.port_ranges(FILTER_INCLUDE),
            exclude_ports: setup.filters.port_ranges(FILTER_EXCLUDE),
            cidrs: setup.filters.networks(FILTER_INCLUDE),
            exclude_cidrs: setup.filters.networks(FILTER_EXCLUDE),
            endpoints: endpoints.map(unplaced).collect(),
            identities: identities.map(unplaced).collect(),
            services: services.map(unplaced).collect(),
            policy: policy.map(unplaced).collect(),
        }
    }

    /// As `apply` reads it.
    pub fn to_toml(&self) -> Result<String> {
        for path in &self.cgroups {
            let path = path.get_ref();
            if path.to_str().is_none() {
                return Err(Error::Failed(format!(
                    "cannot export cgroup {}: its name is not UTF-8, which a file for apply has to be\n  Without it:  sockaccel disable --cgroup PATH",
                    path.display()
                )));
            }
        }
        toml::to_string(self).map_err(|e| Error::Failed(format!("cannot write TOML: {e}")))
    }
}

impl RuleSpec {
    fn of(key: &PolicyKey, verdict: i32) -> Self {
        Self {
            endpoint: key.endpoint.ip(),
            direction: Direction::from_raw(key.direction),
            identity: Identity(key.identity),
            traffic: (key.proto > 0).then_some(Traffic(key.port)),
            verdict: Verdict(verdict),
        }
    }
}

/// What comes from no file has no place in one.
fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

/// What applying the file would change.
pub fn difference(now: Option<&Setup>, wanted: &Setup) -> Difference {
    let wanted = (!wanted.cgroups.is_empty()).then_some(wanted);
    Difference::between(now, wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Spec> {
        let name = "web.toml";
        Source { name, text }.parse()
    }

    fn resolve(text: &str) -> Result<Setup> {
        let source = Source {
            name: "web.toml",
            text,
        };
        let (setup, _) = source.resolve(&source.parse()?, &[])?;
        Ok(setup)
    }

    #[test]
    fn complaints_name_line_and_column() {
        for (text, expected) in [
            ("", "web.toml:1:1: missing field `cgroups`"),
            (
                "cgroups = []\nscop = \"local\"",
                "web.toml:2:1: unknown field `scop`, expected one of `cgroups`, ",
            ),
            (
                "cgroups = []\nscope = \"lokal\"",
                "web.toml:2:9: \"lokal\" is not local or endpoints",
            ),
            (
                "cgroups = []\nports = [80, \"9-8\"]",
                "web.toml:2:14: \"9-8\" is an empty range of ports",
            ),
            (
                "cgroups = []\nports = [0]",
                "web.toml:2:10: \"0\" is not a port",
            ),
            (
                "cgroups = []\ncidrs = [\"10.1.2.3/8\"]",
                "did you mean 10.0.0.0/8?",
            ),
            (
                "cgroups = []\nbudget_messages = 5000",
                "web.toml:2:19: 5000 is not in 1..=4096",
            ),
            (
                "cgroups = []\nallow = [\"fire\"]",
                "web.toml:2:10: unknown variant `fire`",
            ),
            (
                "cgroups = []\n[[policy]]\nendpoint = \"10.0.0.7\"\ndirection = \"egress\"\nidentity = \"any\"\nverdict = \"drop\"",
                "web.toml:6:11: \"drop\" is not allow, deny or proxy:PORT",
            ),
            (
                "cgroups = []\n[[endpoints]]\nadress = \"10.0.0.7\"",
                "web.toml:3:1: unknown field `adress`, expected one of",
            ),
            (
                "cgroups = []\n[[identities]]\ncidr = \"10.0.0.0/8\"\nidentity = 0",
                "web.toml:4:12: ",
            ),
            ("cgroups = [", "web.toml:1:"),
            ("cgroups = \"\u{e9}\"", "web.toml:1:11: "),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(expected), "{text:?}: {error}");
        }
    }

    /// With one that is refused the fuzzer would begin at nothing.
    #[test]
    fn the_fuzzer_begins_with_a_file_that_says_all() {
        let spec = parse(include_str!("../fuzz/seeds/spec/all.toml")).expect("a file");
        let said = |spec: &Spec| toml::Table::try_from(spec).expect("a table");
        let default = parse("cgroups = []").expect("a file");
        for (name, value) in said(&spec) {
            assert_ne!(said(&default).get(&name), Some(&value), "{name}");
        }
        assert_eq!(said(&spec).len(), 17);
    }

    #[test]
    fn entries_must_agree() {
        let rule = "[[policy]]\nendpoint = \"10.0.0.7\"\ndirection = \"egress\"\nidentity = \"any\"\nverdict = ";
        for (text, expected) in [
            (format!("{rule}\"deny\""), ":2:1: 10.0.0.7 is not an endpoint"),
            (
                format!("[[endpoints]]\naddress = \"10.0.0.7\"\n{rule}\"deny\"\n{rule}\"allow\""),
                ":9:1: this is there already",
            ),
            (
                "[[endpoints]]\nhost = true\naddress = \"10.0.0.7\"".to_owned(),
                ":2:1: an endpoint has either",
            ),
            (
                "[[endpoints]]\nhost = true\n[[endpoints]]\nhost = true\nidentity = 7".to_owned(),
                ":4:1: the host is there already",
            ),
            (
                "[[services]]\nservice = \"10.0.0.1:80\"\n[[services]]\nservice = \"10.0.0.1:80/tcp\"\naccelerate = true"
                    .to_owned(),
                ":4:1: this is there already",
            ),
        ] {
            let error = resolve(&format!("cgroups = []\n{text}")).expect_err(&text);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        // Saying the same twice is no contradiction.
        let twice = "[[endpoints]]\naddress = \"10.0.0.7\"\n";
        let setup = resolve(&format!("cgroups = []\n{twice}{twice}")).expect("the same");
        assert_eq!(setup.tables.endpoints.len(), 1);
    }

    prop_compose! {
        fn rule()(
            last in 0_u8..3,
            egress: bool,
            identity in 0_u32..4,
            traffic in prop::option::of(0_u16..4),
            verdict in -1_i32..3,
        ) -> (PolicyKey, i32) {
            let direction = if egress { Direction::Egress } else { Direction::Ingress };
            let key = rule_key([10, 0, 0, last].into(), direction, Identity(identity), traffic.map(Traffic));
            (key, verdict)
        }
    }

    prop_compose! {
        fn setup()(
            blocking: bool,
            endpoints: bool,
            messages in 1_u32..=4096,
            ports in prop::collection::vec((0_u16..=u16::MAX, 1_u8..=2), 0..6),
            nets in prop::collection::vec((any::<IpAddr>(), 0_u8..=32, 1_u8..=2), 0..6),
            rules in prop::collection::btree_map(0_u8..9, rule(), 0..6),
            services in prop::collection::btree_map((any::<[u8; 4]>(), 1_u16..), any::<bool>(), 0..4),
            identities in prop::collection::vec((any::<IpAddr>(), 0_u8..=32, 1_u32..), 0..6),
        ) -> Setup {
            let cidr = |ip: IpAddr, len| {
                Cidr::from(ipnet::IpNet::new(ip.to_canonical(), len).unwrap().trunc())
            };
            let ports: Vec<(u16, u8)> = ports.into_iter().filter(|(port, _)| *port > 0).collect();
            let mut filters = Filters::new(&ports, &[]);
            filters.port_includes = filters.ports.contains(&FILTER_INCLUDE);
            filters.cidrs = nets.into_iter().map(|(ip, len, f)| (cidr(ip, len), f)).collect();
            filters.cidr_includes = filters.cidrs.values().any(|f| *f == FILTER_INCLUDE);
            let mut tables = Tables {
                policy: rules.into_values().collect(),
                ..Tables::default()
            };
            for key in tables.policy.keys() {
                tables.endpoints.insert(key.endpoint, Endpoint { identity: key.identity, host: 0 });
            }
            tables.services = services
                .into_iter()
                .map(|((ip, port), accelerate)| (ServiceName((ip, port).into()).into(), accelerate))
                .collect();
            tables.identities = identities
                .into_iter()
                .map(|(ip, len, identity)| (cidr(ip, len), identity))
                .collect();
            tables.add_default_denies();
            Setup {
                cgroups: BTreeMap::new(),
                blocking: blocking.into(),
                scope: if endpoints { Scope::Endpoints } else { Scope::Local },
                budget_messages: messages.to_string().parse().unwrap(),
                budget_bytes: BudgetBytes::default(),
                stream_limit: messages.to_string().parse().unwrap(),
                admission: endpoints.into(),
                max_sockets: MaxSockets::default(),
                allow: u32::from(blocking),
                filters,
                tables,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_exported_reads_back_as_what_was(setup in setup()) {
            let text = Spec::of(&setup).to_toml().unwrap();
            let back = resolve(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
            prop_assert_eq!(&back, &setup, "{}", text);
            prop_assert!(Difference::between(Some(&back), Some(&setup)).lines.is_empty());
        }

        #[test]
        fn setups_that_differ_show_a_difference(a in setup(), b in setup()) {
            let lines = Difference::between(Some(&a), Some(&b)).lines;
            prop_assert_eq!(a == b, lines.is_empty());
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            let _ = parse(&text);
        }
    }
}
