//! All that can be set of an instance, as one value: read it, compare two, and
//! go from one to the other under traffic.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{Ordering, fence};

use super::cgroup::Cgroup;
use super::dir::Place;
use super::filters::Filters;
use super::instance::{Change, Instance, Settings};
use super::tables::Tables;
use crate::doctor::Risk;
use crate::error::{Error, Result};
use crate::maps::layout::{Config, FILTER_EXCLUDE, FILTER_INCLUDE, POLICY_DEFAULT_DENY, PolicyKey};
use crate::words::{
    Admission, Blocking, Bounded, BudgetBytes, BudgetMessages, Direction, Identity, MaxSockets,
    Network, Scope, ServiceName, StreamLimit, Traffic, Verdict,
};

/// Everything a command line can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Kernel id and path of each cgroup; no path where it was removed.
    pub cgroups: BTreeMap<u64, Option<PathBuf>>,
    /// Readers from blocking sockets.
    pub blocking: Blocking,
    /// Which peers.
    pub scope: Scope,
    /// Of one redirect queue.
    pub budget_messages: BudgetMessages,
    /// Of one redirect queue.
    pub budget_bytes: BudgetBytes,
    /// Of one-way streams.
    pub stream_limit: StreamLimit,
    /// Which connections.
    pub admission: Admission,
    /// Fixed when the instance is made.
    pub max_sockets: MaxSockets,
    /// Bits of the risks accepted.
    pub allow: u32,
    /// Ports and networks of servers.
    pub filters: Filters,
    /// The tables.
    pub tables: Tables,
}

/// What stands in one setup and not in another, in the words of the commands
/// that would make it so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// `true` is added, `false` removed; in the order to print.
    pub lines: Vec<(bool, String)>,
}

/// Section, what it is about, its value.
type Lines = BTreeMap<(u8, String), String>;

impl Difference {
    /// From one setup, or from nothing, to another.
    pub fn between(from: Option<&Setup>, to: Option<&Setup>) -> Self {
        let lines = |setup: Option<&Setup>| setup.map(Setup::lines).unwrap_or_default();
        let (from, to) = (lines(from), lines(to));
        let mut keys: Vec<&(u8, String)> = from.keys().chain(to.keys()).collect();
        keys.sort();
        keys.dedup();
        let mut difference = Self::default();
        for key in keys {
            let (old, new) = (from.get(key), to.get(key));
            for (sign, value) in [(false, old), (true, new)] {
                if old != new
                    && let Some(value) = value
                {
                    let line = format!("{} {value}", key.1);
                    difference.lines.push((sign, line.trim_end().to_owned()));
                }
            }
        }
        difference
    }
}

impl Setup {
    /// What `status` and `list` show of it, a line each.
    fn lines(&self) -> Lines {
        let mut lines = Lines::new();
        let mut line = |section, about: String, value: String| {
            lines.insert((section, about), value);
        };
        for (id, path) in &self.cgroups {
            match path {
                Some(path) => line(0, format!("cgroup {}", path.display()), String::new()),
                None => line(0, format!("cgroup id {id}"), "(removed)".to_owned()),
            }
        }
        line(1, "scope".to_owned(), self.scope.to_string());
        line(1, "admission".to_owned(), self.admission.to_string());
        line(1, "blocking-readers".to_owned(), self.blocking.to_string());
        for (about, number) in [
            ("max-sockets", self.max_sockets.0),
            ("budget-messages", self.budget_messages.0),
            ("budget-bytes", self.budget_bytes.0),
            ("stream-limit", self.stream_limit.0),
        ] {
            line(1, about.to_owned(), number.to_string());
        }
        for risk in Risk::from_bits(self.allow) {
            line(1, format!("allow {risk}"), String::new());
        }
        for (prefix, filter) in [("", FILTER_INCLUDE), ("exclude-", FILTER_EXCLUDE)] {
            for ports in self.filters.port_ranges(filter) {
                line(2, format!("{prefix}port {ports}"), String::new());
            }
            for network in self.filters.networks(filter) {
                line(2, format!("{prefix}cidr {network}"), String::new());
            }
        }
        let tables = &self.tables;
        for (addr, endpoint) in &tables.endpoints {
            let mut value = Vec::new();
            if endpoint.identity > 0 {
                value.push(format!("--identity {}", endpoint.identity));
            }
            if endpoint.host > 0 {
                value.push("(--host)".to_owned());
            }
            line(3, format!("endpoint {}", addr.ip()), value.join(" "));
        }
        for (cidr, identity) in &tables.identities {
            let network = Network::from(*cidr);
            line(4, format!("identity {network}"), identity.to_string());
        }
        for (key, accelerate) in &tables.services {
            let value = if *accelerate { "--accelerate" } else { "" };
            let name = ServiceName::from(*key);
            line(5, format!("service {name}"), value.to_owned());
        }
        for (key, verdict) in &tables.policy {
            line(6, rule_text(key), Verdict(*verdict).to_string());
        }
        lines
    }

    /// Refuses another value of what is fixed when an instance is made.
    pub fn check_fixed(&self, to: &Self, place: &Place) -> Result<()> {
        if self.max_sockets == to.max_sockets {
            return Ok(());
        }
        Err(Error::Failed(format!(
            "instance {0} holds {1} sockets at most, and that cannot change while it is enabled\n  \
             To keep it:  max_sockets = {1}\n  To change it:  {2}, then apply again",
            place.instance,
            self.max_sockets.0,
            place.command("disable")
        )))
    }

    fn config(&self, config: &mut Config) {
        config.enabled = 1;
        config.blocking = u32::from(self.blocking == Blocking::Accelerate);
        config.budget_messages = self.budget_messages.0;
        config.budget_bytes = self.budget_bytes.0;
        config.stream_limit = self.stream_limit.0;
        config.admit_all = u32::from(self.admission == Admission::All);
        config.allow = self.allow;
    }

    fn settings(&self) -> Settings {
        let ports = (0_u16..=u16::MAX).zip(self.filters.ports.iter().copied());
        Settings {
            blocking: Some(self.blocking == Blocking::Accelerate),
            scope: Some(self.scope.raw()),
            budget_messages: Some(self.budget_messages.0),
            budget_bytes: Some(self.budget_bytes.0),
            stream_limit: Some(self.stream_limit.0),
            admit_all: Some(self.admission == Admission::All),
            max_sockets: Some(self.max_sockets.0),
            allow: self.allow,
            ports: ports.filter(|(_, filter)| *filter > 0).collect(),
            cidrs: self.filters.cidrs.iter().map(|(k, v)| (*k, *v)).collect(),
            ..Settings::default()
        }
    }
}

/// The words of `policy add`, without the verdict.
fn rule_text(key: &PolicyKey) -> String {
    let direction = Direction::from_raw(key.direction);
    let start = format!("policy {} {direction}", key.endpoint.ip());
    if key.kind == POLICY_DEFAULT_DENY {
        return format!("{start} default");
    }
    let identity = Identity(key.identity);
    if key.proto == 0 {
        format!("{start} {identity}")
    } else {
        format!("{start} {identity} {}", Traffic(key.port))
    }
}

impl Instance {
    /// What it is set to.
    pub fn setup(&self) -> Result<Setup> {
        let config = self.config()?;
        Ok(Setup {
            cgroups: self
                .attached()?
                .into_iter()
                .map(|cgroup| (cgroup.id, cgroup.path))
                .collect(),
            blocking: (config.blocking != 0).into(),
            scope: Scope::from_raw(config.scope),
            budget_messages: Bounded(config.budget_messages),
            budget_bytes: Bounded(config.budget_bytes),
            stream_limit: Bounded(config.stream_limit),
            admission: (config.admit_all != 0).into(),
            max_sockets: Bounded(self.max_sockets()?),
            allow: config.allow,
            filters: self.filters(&config)?,
            tables: Tables::read(&self.dir())?,
        })
    }

    /// Whether the last command that changed it came to its end.
    pub fn is_settled(&self) -> Result<bool> {
        let on = self.config()?.enabled != 0 || self.cgroups()?.is_empty();
        Ok(on && self.is_reconciled()? && self.is_whole()?)
    }

    /// Makes the instance what `to` says, building it where there is none and one may be
    /// `made`. These are the open cgroups of `to`. What fails leaves what was, or says so.
    /// Where nothing differs it can still have been repaired, or a drain have ended.
    pub fn apply(
        place: &Place,
        to: &Setup,
        cgroups: &[Cgroup],
        made: bool,
    ) -> Result<(Difference, Change)> {
        let lock = place.write()?;
        if !place.exists()? {
            if !made {
                // It was there when the risks of the change were looked at.
                return Err(place.absent());
            }
            let all: Vec<&Cgroup> = cgroups.iter().collect();
            Self::make(place, lock, &all, &to.settings(), &to.tables)?;
            return Ok((Difference::between(None, Some(to)), Change::Done));
        }
        let instance = Self::locked(place, lock);
        let repaired = instance.make_whole()?;
        let (from, whole) = (instance.setup()?, instance.is_whole()?);
        if from == *to && instance.is_settled()? {
            // As `enable` does for what drains and has been read since.
            let drained = instance.settle()?;
            return Ok((Difference::default(), repaired.and(drained)));
        }
        from.check_fixed(to, place)?;
        instance
            .go(&from, to, true, cgroups)
            .map_err(|error| instance.go_back(&from, whole, error))?;
        Ok((Difference::between(Some(&from), Some(to)), Change::Done))
    }

    /// From one setup to another in an order in which no connection is judged by
    /// parts of both: first only what both admit, then the tables behind their
    /// sequence count (see `sa_ask_tables()` of src/bpf/direction.h), then all
    /// that the new one admits. Where the new one is not `whole`, parts of what an
    /// apply was killed over, the count stays odd.
    fn go(&self, from: &Setup, to: &Setup, whole: bool, cgroups: &[Cgroup]) -> Result<()> {
        let both = from.filters.both(&to.filters);
        if from.filters != to.filters {
            self.step(&from.filters, &both)?;
        }
        self.change_config(|config| {
            if to.blocking == Blocking::Skip {
                config.blocking = 0;
            }
        })?;
        for id in from.cgroups.keys() {
            if !to.cgroups.contains_key(id) {
                self.retire_cgroup(*id)?;
            }
        }
        // Before the tables change: what leaves must not be judged by new ones.
        self.reconcile()?;

        self.change_config(|config| config.changing |= 1)?;
        // The kernel's stores on our behalf, in this order for every CPU.
        fence(Ordering::SeqCst);
        to.tables.write(&self.dir())?;
        self.change_config(|config| config.scope = to.scope.raw())?;
        fence(Ordering::SeqCst);
        self.change_config(|config| {
            config.changing = (config.changing | 1).wrapping_add(u32::from(whole));
            config.generation = config.generation.wrapping_add(1);
        })?;

        if from.filters != to.filters {
            self.step_from_both(&both, &to.filters)?;
        }
        self.change_config(|config| to.config(config))?;
        let new: Vec<&Cgroup> = cgroups
            .iter()
            .filter(|cgroup| !from.cgroups.contains_key(&cgroup.id))
            .collect();
        self.attach(&new)?;
        self.settle().map(drop)
    }

    /// After a failure: to what was. What cannot be undone is said.
    pub(super) fn go_back(&self, to: &Setup, whole: bool, failure: Error) -> Error {
        let paths = to.cgroups.values().flatten();
        let undone = self.setup().and_then(|now| {
            let cgroups = paths
                .map(|path| Cgroup::open(path))
                .collect::<Result<Vec<_>>>()?;
            self.go(&now, to, whole, &cgroups)
        });
        match undone {
            Ok(()) => failure,
            Err(second) => Error::Failed(format!(
                "{failure}\n  What was before could not be restored either: {second}\n  \
                 The instance holds parts of both, which is safe: in doubt connections stay on the stack.\n  \
                 When the cause is gone:  the same command again, or {}",
                self.command("disable")
            )),
        }
    }
}
