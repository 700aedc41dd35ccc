//! `status --all`: the instances that there are.

use schemars::JsonSchema;
use serde::Serialize;

use super::status::{CgroupState, state};
use super::{Context, entry};
use crate::error::{Error, Result};
use crate::maps::Stats;
use crate::output::{or_dash, table};
use crate::state::{Attached, Instance, Place};

/// An instance, as `status --all` shows it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Row {
    /// Its name.
    instance: String,
    /// `enabled`, `draining`, `unfinished` (run enable again), `other_version` or `damaged`.
    state: &'static str,
    /// The cgroups it is attached to.
    cgroups: Vec<CgroupState>,
    /// Sockets that are enrolled now; null where that cannot be told.
    enrolled_now: Option<u64>,
    /// Since it was enabled.
    redirected_bytes: Option<u64>,
    #[serde(skip)]
    attached: Vec<Attached>,
}

impl Row {
    /// `None` where it has gone meanwhile.
    fn of(place: &Place) -> Option<Self> {
        let unreadable = |state| Self {
            instance: place.instance.clone(),
            state,
            cgroups: Vec::new(),
            enrolled_now: None,
            redirected_bytes: None,
            attached: Vec::new(),
        };
        match Self::read(place) {
            Ok(row) => Some(row),
            Err(Error::NotEnabled { .. }) => None,
            Err(Error::Refused(_)) => Some(unreadable("other_version")),
            Err(_) => Some(unreadable("damaged")),
        }
    }

    fn read(place: &Place) -> Result<Self> {
        let instance = Instance::open(place)?;
        let (config, attached) = (instance.config()?, instance.attached()?);
        let counters = Stats::read(&instance.dir())?;
        Ok(Self {
            instance: place.instance.clone(),
            state: state(&config, &attached),
            cgroups: attached.iter().map(CgroupState::from).collect(),
            enrolled_now: Some(counters.enrolled_now()),
            redirected_bytes: Some(counters.redirected_bytes),
            attached,
        })
    }

    fn cells(&self) -> [String; 5] {
        let cgroups = (!self.attached.is_empty()).then(|| Attached::list(&self.attached));
        [
            self.instance.clone(),
            self.state.replace('_', " "),
            or_dash(self.enrolled_now),
            or_dash(self.redirected_bytes),
            or_dash(cgroups),
        ]
    }
}

/// Every instance of the bpffs.
pub fn list(context: &Context) -> Result<()> {
    let names = context.place.instances()?.into_iter();
    let rows: Vec<Row> = names
        .filter_map(|instance| {
            let bpffs = context.place.bpffs.clone();
            Row::of(&Place { instance, bpffs })
        })
        .collect();
    entry::explain_empty(context, &rows, "instances", "enable --cgroup PATH");
    context.output.print(&rows, || {
        table(
            &[
                "instance",
                "state",
                "enrolled now",
                "redirected bytes",
                "cgroups",
            ],
            rows.iter().map(Row::cells),
        )
    })
}
