//! Ports and networks that an instance is limited to, and how to change them
//! under traffic.
//!
//! They are looked up once, when a connection is established, so no later look
//! would repair a mistake. A change therefore goes over what the old and the
//! new filters both admit: at no moment is anything admitted that neither of
//! them admits, nor anything refused that both of them admit.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::maps::Table;
use crate::maps::layout::{Cidr, FAMILY_BITS, FILTER_EXCLUDE, FILTER_INCLUDE};
use crate::words::{Network, Ports};

const PORTS: usize = 1 << 16;

/// What `sa_filtered()` of src/bpf/policy.h looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filters {
    /// `FILTER_INCLUDE`, `FILTER_EXCLUDE` or 0 for each port.
    pub ports: Vec<u8>,
    /// The same for networks, the longest prefix decides.
    pub cidrs: BTreeMap<Cidr, u8>,
    /// Ports that are not included are excluded.
    pub port_includes: bool,
    /// Likewise addresses.
    pub cidr_includes: bool,
}

impl Default for Filters {
    fn default() -> Self {
        Self::new(&[], &[])
    }
}

/// The ports of an option that includes and one that excludes. What is excluded
/// stays so when it is also included: later entries win.
pub fn ports(include: &[Ports], exclude: &[Ports]) -> Vec<(u16, u8)> {
    let each = |ports: &[Ports], filter| -> Vec<(u16, u8)> {
        ports
            .iter()
            .flat_map(|ports| ports.0.clone())
            .map(|port| (port, filter))
            .collect()
    };
    [each(include, FILTER_INCLUDE), each(exclude, FILTER_EXCLUDE)].concat()
}

/// The same for networks.
pub fn cidrs(include: &[Network], exclude: &[Network]) -> Vec<(Cidr, u8)> {
    let each = |nets: &[Network], filter| -> Vec<(Cidr, u8)> {
        nets.iter().map(|net| (Cidr::from(net.0), filter)).collect()
    };
    [each(include, FILTER_INCLUDE), each(exclude, FILTER_EXCLUDE)].concat()
}

impl Filters {
    /// From what [`ports`] and [`cidrs`] give.
    pub fn new(ports: &[(u16, u8)], cidrs: &[(Cidr, u8)]) -> Self {
        let mut all = vec![0; PORTS];
        for (port, filter) in ports {
            all[usize::from(*port)] = *filter;
        }
        Self {
            port_includes: ports.iter().any(|(_, filter)| *filter == FILTER_INCLUDE),
            cidr_includes: cidrs.iter().any(|(_, filter)| *filter == FILTER_INCLUDE),
            ports: all,
            cidrs: cidrs.iter().copied().collect(),
        }
    }

    /// Reads the maps pinned in this directory; the switches are in the config.
    pub(super) fn read(dir: &Path, port_includes: bool, cidr_includes: bool) -> Result<Self> {
        let ports: Table<u32, u8> = Table::open(dir, "sa_ports")?;
        let cidrs: Table<Cidr, u32> = Table::open(dir, "sa_cidrs")?;
        Ok(Self {
            // An array, which is read in the order of its keys.
            ports: ports
                .entries()?
                .into_iter()
                .map(|(_, filter)| filter)
                .collect(),
            cidrs: cidrs
                .entries()?
                .into_iter()
                .map(|(cidr, filter)| (cidr, u8::try_from(filter).unwrap_or(FILTER_EXCLUDE)))
                .collect(),
            port_includes,
            cidr_includes,
        })
    }

    /// Makes the maps equal to this, where they are `now`. Networks are set the
    /// longest first and go last: no address falls to a shorter one meanwhile.
    pub(super) fn write(&self, now: &Self, dir: &Path) -> Result<()> {
        if self.ports != now.ports {
            let ports: Table<u32, u8> = Table::open(dir, "sa_ports")?;
            for (port, (wanted, now)) in (0_u32..).zip(self.ports.iter().zip(&now.ports)) {
                if wanted != now {
                    ports.set(&port, wanted)?;
                }
            }
        }
        if self.cidrs == now.cidrs {
            return Ok(());
        }
        let cidrs: Table<Cidr, u32> = Table::open(dir, "sa_cidrs")?;
        let longest_first = |of: &BTreeMap<Cidr, u8>| {
            let mut entries: Vec<(Cidr, u8)> = of.iter().map(|(k, v)| (*k, *v)).collect();
            entries.sort_by_key(|(cidr, _)| std::cmp::Reverse(cidr.prefixlen));
            entries
        };
        for (cidr, filter) in longest_first(&self.cidrs) {
            if now.cidrs.get(&cidr) != Some(&filter) {
                cidrs.set(&cidr, &u32::from(filter))?;
            }
        }
        for (cidr, _) in longest_first(&now.cidrs) {
            if !self.cidrs.contains_key(&cidr) {
                cidrs.remove(&cidr)?;
            }
        }
        Ok(())
    }

    /// Filters that admit what both admit, on the way from one to the other.
    pub(super) fn both(&self, other: &Self) -> Self {
        let port_includes = self.port_includes || other.port_includes;
        let cidr_includes = self.cidr_includes || other.cidr_includes;
        let ports = (self.ports.iter().zip(&other.ports))
            .map(|(a, b)| {
                let admit = admits(*a, self.port_includes) && admits(*b, other.port_includes);
                filter_for(admit, *a, port_includes)
            })
            .collect();
        let cidrs = self.cidrs.keys().chain(other.cidrs.keys()).map(|cidr| {
            let admit = self.admits_cidr(cidr) && other.admits_cidr(cidr);
            let old = self.cidrs.get(cidr).copied().unwrap_or(FILTER_EXCLUDE);
            let filter = filter_for(admit, old, cidr_includes);
            (*cidr, filter)
        });
        Self {
            ports,
            cidrs: cidrs.collect(),
            port_includes,
            cidr_includes,
        }
    }

    /// On the way from `both` to this: what was included stays so as long as what
    /// is not included is still refused.
    pub(super) fn keeping(&self, both: &Self) -> Self {
        let mut staged = self.clone();
        for (port, old) in staged.ports.iter_mut().zip(&both.ports) {
            if *port == 0 && *old == FILTER_INCLUDE {
                *port = FILTER_INCLUDE;
            }
        }
        for (cidr, _) in both.cidrs.iter().filter(|(_, f)| **f == FILTER_INCLUDE) {
            staged.cidrs.entry(*cidr).or_insert(FILTER_INCLUDE);
        }
        staged
    }

    /// What this says of the addresses of a network that no longer prefix of it
    /// singles out.
    fn admits_cidr(&self, cidr: &Cidr) -> bool {
        let longest = self
            .cidrs
            .iter()
            .filter(|(entry, _)| holds(entry, cidr))
            .max_by_key(|(entry, _)| entry.prefixlen);
        admits(longest.map_or(0, |(_, filter)| *filter), self.cidr_includes)
    }

    /// The ports with this filter, as few ranges as possible.
    pub fn port_ranges(&self, filter: u8) -> Vec<Ports> {
        let mut ranges: Vec<Ports> = Vec::new();
        for (port, _) in (0_u16..=u16::MAX)
            .zip(&self.ports)
            .filter(|(_, f)| **f == filter)
        {
            match ranges.last_mut() {
                Some(last) if port.checked_sub(1) == Some(*last.0.end()) => {
                    last.0 = *last.0.start()..=port;
                }
                _ => ranges.push(Ports(port..=port)),
            }
        }
        ranges
    }

    /// The networks with this filter.
    pub fn networks(&self, filter: u8) -> Vec<Network> {
        self.cidrs
            .iter()
            .filter(|(_, f)| **f == filter)
            .map(|(cidr, _)| Network::from(*cidr))
            .collect()
    }
}

fn admits(filter: u8, includes: bool) -> bool {
    filter == FILTER_INCLUDE || (filter != FILTER_EXCLUDE && !includes)
}

/// The old value where it does, as it needs no writing.
fn filter_for(admit: bool, old: u8, includes: bool) -> u8 {
    match admit {
        _ if admits(old, includes) == admit => old,
        true => FILTER_INCLUDE,
        false => FILTER_EXCLUDE,
    }
}

/// Whether the network lies in the entry's.
fn holds(entry: &Cidr, cidr: &Cidr) -> bool {
    let bits = entry.prefixlen.saturating_sub(FAMILY_BITS);
    let shift = 128_u32.saturating_sub(bits);
    let head = |c: &Cidr| u128::from_be_bytes(c.addr.0).checked_shr(shift);
    entry.family == cidr.family && entry.prefixlen <= cidr.prefixlen && head(entry) == head(cidr)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Filters {
        /// As the kernel decides for one address and port.
        fn admit(&self, addr: &Cidr, port: u16) -> bool {
            admits(self.ports[usize::from(port)], self.port_includes) && self.admits_cidr(addr)
        }

        /// One state after each write of `write`, in its order.
        fn steps_to(&self, to: &Self) -> Vec<Self> {
            let mut steps = vec![self.clone()];
            let mut at = self.clone();
            for port in 0..PORTS {
                if at.ports[port] != to.ports[port] {
                    at.ports[port] = to.ports[port];
                    steps.push(at.clone());
                }
            }
            let mut keys: Vec<&Cidr> = to.cidrs.keys().collect();
            keys.sort_by_key(|cidr| std::cmp::Reverse(cidr.prefixlen));
            for cidr in keys {
                at.cidrs.insert(*cidr, to.cidrs[cidr]);
                steps.push(at.clone());
            }
            let mut gone: Vec<Cidr> = at.cidrs.keys().copied().collect();
            gone.retain(|cidr| !to.cidrs.contains_key(cidr));
            gone.sort_by_key(|cidr| std::cmp::Reverse(cidr.prefixlen));
            for cidr in gone {
                at.cidrs.remove(&cidr);
                steps.push(at.clone());
            }
            steps.push(to.clone());
            steps
        }
    }

    fn filters() -> impl Strategy<Value = Filters> {
        let filter = || prop_oneof![Just(FILTER_INCLUDE), Just(FILTER_EXCLUDE)];
        let net = (0_u8..4, 30_u8..=32).prop_map(|(last, len)| {
            let net = ipnet::IpNet::new([10, 0, 0, last].into(), len).unwrap();
            Cidr::from(net.trunc())
        });
        (
            prop::collection::vec((1_u16..4, filter()), 0..3),
            prop::collection::vec((net, filter()), 0..4),
        )
            .prop_map(|(ports, cidrs)| {
                let mut filters = Filters::new(&ports, &cidrs);
                // As user space writes them: later entries win.
                filters.port_includes = filters.ports.contains(&FILTER_INCLUDE);
                filters.cidr_includes = filters.cidrs.values().any(|f| *f == FILTER_INCLUDE);
                filters
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_change_admits_nothing_that_neither_admits(old in filters(), new in filters()) {
            let both = old.both(&new);
            let keeping = new.keeping(&both);
            let states = [
                old.steps_to(&both),
                both.steps_to(&keeping),
                keeping.steps_to(&new),
            ]
            .concat();
            for last in 0..5_u8 {
                let net = ipnet::IpNet::new([10, 0, 0, last].into(), 32).unwrap();
                let addr = Cidr::from(net);
                for port in 1..5 {
                    let (a, b) = (old.admit(&addr, port), new.admit(&addr, port));
                    for state in &states {
                        let now = state.admit(&addr, port);
                        prop_assert!(!now || a || b, "{last}:{port} {state:?}");
                        prop_assert!(now || !(a && b), "{last}:{port} {state:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn ranges() {
        let include = ["80".parse().unwrap(), "81-90".parse().unwrap()];
        let exclude = ["85".parse().unwrap()];
        let filters = Filters::new(&ports(&include, &exclude), &[]);
        let text = |filter| -> Vec<String> {
            let ranges = filters.port_ranges(filter);
            ranges.iter().map(ToString::to_string).collect()
        };
        assert_eq!(text(FILTER_INCLUDE), ["80-84", "86-90"]);
        assert_eq!(text(FILTER_EXCLUDE), ["85"]);
    }
}
