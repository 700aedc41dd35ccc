//! Endpoints, identities, services and policy of an instance, as one value.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use nix::ifaddrs::getifaddrs;

use crate::error::{Error, Result};
use crate::maps::layout::{
    Addr, Cidr, Endpoint, IDENTITY_ANY, POLICY_DEFAULT_DENY, POLICY_RULE, Policy, PolicyKey,
    Service, ServiceKey, VERDICT_DENY,
};
use crate::maps::{Plain, Table};
use crate::words::{Direction, IPPROTO_TCP, Identity, Traffic};

/// What the tables say, without what they count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Local addresses with policy.
    pub endpoints: BTreeMap<Addr, Endpoint>,
    /// Identity of each network.
    pub identities: BTreeMap<Cidr, u32>,
    /// Whether each service is accelerated.
    pub services: BTreeMap<ServiceKey, bool>,
    /// Verdict of each rule, the default denies included.
    pub policy: BTreeMap<PolicyKey, i32>,
}

impl Tables {
    /// Reads them from the instance pinned in this directory.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        Ok(Self {
            endpoints: entries(dir, "sa_endpoints", |value| value)?,
            identities: entries(dir, "sa_identities", |value| value)?,
            services: entries(dir, "sa_services", |s: Service| s.accelerate > 0)?,
            policy: entries(dir, "sa_policy", |p: Policy| p.verdict)?,
        })
    }

    /// Makes the maps equal to this, entry by entry. What is equal already stays
    /// untouched, with its counters.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let now = Self::read(dir)?;
        replace(
            dir,
            "sa_endpoints",
            &now.endpoints,
            &self.endpoints,
            |value| *value,
        )?;
        replace(
            dir,
            "sa_identities",
            &now.identities,
            &self.identities,
            |value| *value,
        )?;
        replace(
            dir,
            "sa_services",
            &now.services,
            &self.services,
            |accelerate| Service {
                accelerate: u32::from(*accelerate),
                pad: 0,
                connections: 0,
            },
        )?;
        replace(dir, "sa_policy", &now.policy, &self.policy, |verdict| {
            Policy {
                verdict: *verdict,
                pad: 0,
                evaluations: 0,
            }
        })
    }

    /// Adds the entry that makes deny the default of each endpoint and direction
    /// that has rules.
    pub fn add_default_denies(&mut self) {
        let defaults: Vec<PolicyKey> = self.policy.keys().map(default_deny).collect();
        self.policy
            .extend(defaults.into_iter().map(|key| (key, VERDICT_DENY)));
    }
}

fn entries<K: Plain + Ord, V: Plain, W>(
    dir: &Path,
    name: &'static str,
    meaning: impl Fn(V) -> W,
) -> Result<BTreeMap<K, W>> {
    let entries = Table::<K, V>::open(dir, name)?.entries()?;
    Ok(entries
        .into_iter()
        .map(|(key, value)| (key, meaning(value)))
        .collect())
}

/// Room is made first: the new entries may need it.
fn replace<K: Plain + Ord, V: Plain, W: PartialEq>(
    dir: &Path,
    name: &'static str,
    from: &BTreeMap<K, W>,
    to: &BTreeMap<K, W>,
    value: impl Fn(&W) -> V,
) -> Result<()> {
    let table = Table::<K, V>::open(dir, name)?;
    for key in from.keys().filter(|key| !to.contains_key(key)) {
        table.remove(key)?;
    }
    for (key, wanted) in to {
        if from.get(key) != Some(wanted) {
            table.set(key, &value(wanted))?;
        }
    }
    Ok(())
}

/// The key of a rule; without traffic it is about every protocol.
pub fn rule_key(
    endpoint: IpAddr,
    direction: Direction,
    identity: Identity,
    traffic: Option<Traffic>,
) -> PolicyKey {
    PolicyKey {
        endpoint: endpoint.into(),
        identity: identity.0,
        port: traffic.map_or(0, |traffic| traffic.0),
        proto: if traffic.is_some() { IPPROTO_TCP } else { 0 },
        direction: direction.raw(),
        kind: POLICY_RULE,
        pad: [0; 3],
    }
}

/// The key of the default of a rule's endpoint and direction.
pub fn default_deny(key: &PolicyKey) -> PolicyKey {
    PolicyKey {
        identity: IDENTITY_ANY,
        port: 0,
        proto: 0,
        kind: POLICY_DEFAULT_DENY,
        ..*key
    }
}

/// The addresses of this machine's interfaces, as this process's network
/// namespace has them.
pub fn own_addresses() -> Result<Vec<IpAddr>> {
    let interfaces =
        getifaddrs().map_err(|e| Error::os("list", "interface addresses", e.into()))?;
    Ok(interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect())
}
