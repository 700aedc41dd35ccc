//! Building, changing, reading and taking down one instance.

use std::fmt;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, OpenObject};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::cgroup::{self, Cgroup};
use super::dir::{BPFFS_HINT, Lock, Place, remove_tree};
use super::drain::{draining_dir, has_lost_its_cgroup};
use super::filters::Filters;
use super::observer::Observer;
use super::tables::Tables;
use super::tracefs;
use super::upgrade::{self, set_verdict};
use crate::error::{Error, Result, on};
use crate::maps::layout::{
    Addr, Cidr, Config, ConfigHead, FAMILY_BITS, FAMILY_V4, FAMILY_V6, FILTER_INCLUDE, LAYOUT,
};
use crate::maps::{self, Table};
use crate::remedy::{DROPS, anew};
use crate::sys::bpf::{self, AttachType};
use crate::sys::skel::sockaccel as skel;

/// The programs attached to every enabled cgroup, and how. Options are watched
/// before the first socket is enrolled.
pub(super) const CGROUP_PROGRAMS: [(&str, AttachType); 4] = [
    ("sa_connect4", AttachType::CgroupConnect4),
    ("sa_connect6", AttachType::CgroupConnect6),
    ("sa_setsockopt", AttachType::CgroupSetsockopt),
    ("sa_sockops", AttachType::CgroupSockOps),
];

/// For pins that somebody has removed.
const MISSING_HINT: &str = "If it is missing, make it again:  sockaccel upgrade   \
     or start anew:  sockaccel disable --now   (of the instance that the path names)";

/// What `enable` can set. `None` leaves what an existing instance has.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Accelerate blocking readers too.
    pub blocking: Option<bool>,
    /// `SCOPE_LOCAL` or `SCOPE_ENDPOINTS`.
    pub scope: Option<u32>,
    /// Messages that may wait in one redirect queue.
    pub budget_messages: Option<u32>,
    /// Bytes that may wait in one redirect queue.
    pub budget_bytes: Option<u32>,
    /// After how much of a one-way stream its sender leaves; 0 never.
    pub stream_limit: Option<u32>,
    /// Sockets the instance can hold; fixed when it is made.
    pub max_sockets: Option<u32>,
    /// Enrol connections to every server, however short they have been.
    pub admit_all: Option<bool>,
    /// Bits of the risks accepted, added to those accepted before.
    pub allow: u32,
    /// Ports with `FILTER_INCLUDE` or `FILTER_EXCLUDE`; replaces when not empty.
    pub ports: Vec<(u16, u8)>,
    /// Networks with `FILTER_INCLUDE` or `FILTER_EXCLUDE`; likewise.
    pub cidrs: Vec<(Cidr, u8)>,
    /// For tests: transitions in company.
    pub without_company_rule: bool,
    /// For tests: no splice observer.
    pub without_observer: bool,
    /// For tests: this form of the splice observer; fixed when it is made.
    pub observer: Option<Observer>,
}

/// One cgroup of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Kernel id.
    pub id: u64,
    /// Path, `None` when the cgroup is gone, or has none here.
    pub path: Option<PathBuf>,
    /// The cgroup is gone.
    pub removed: bool,
}

impl Attached {
    /// The one whose links are pinned there.
    fn of(id: u64, pins: &Path) -> Self {
        let path = cgroup::path_of(id);
        let gone = || cgroup::all_visible() || has_lost_its_cgroup(&pins.join("sa_sockops"));
        Self {
            id,
            removed: path.is_none() && gone(),
            path,
        }
    }

    /// It can only be named where all cgroups can be seen.
    pub fn is_hidden(&self) -> bool {
        self.path.is_none() && !self.removed
    }

    /// All of them, for people.
    pub fn list(all: &[Self]) -> String {
        let names: Vec<String> = all.iter().map(Self::to_string).collect();
        names.join(", ")
    }
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => path.display().fmt(f),
            None if self.removed => write!(f, "id {} (removed)", self.id),
            None => write!(f, "id {} (not visible from here)", self.id),
        }
    }
}

/// What a call changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Something is different now.
    Done,
    /// It was so before.
    Nothing,
}

impl Change {
    /// After both.
    #[must_use]
    pub(super) fn and(self, other: Self) -> Self {
        match self {
            Self::Done => Self::Done,
            Self::Nothing => other,
        }
    }
}

/// An enabled instance, open under a lock.
#[derive(Debug)]
pub struct Instance {
    place: Place,
    lock: Lock,
}

impl Instance {
    /// Opens for reading.
    pub fn open(place: &Place) -> Result<Self> {
        let instance = Self::locked(place, place.read()?);
        instance.config()?;
        Ok(instance)
    }

    /// Opens for changing its tables.
    pub fn open_to_write(place: &Place) -> Result<Self> {
        let instance = Self::locked(place, place.write_existing()?);
        instance.config()?;
        instance.check_whole()?;
        // For a writer that was killed after its change and before this.
        instance.bump_generation()?;
        Ok(instance)
    }

    /// Opens for changing what runs, whole again where pins were missing.
    pub(super) fn open_to_repair(place: &Place) -> Result<(Self, Change)> {
        let instance = Self::locked(place, place.write_existing()?);
        let change = instance.make_whole()?;
        Ok((instance, change))
    }

    /// Opens for taking it down, which one with missing pins must allow, and one
    /// of another layout: see `SA_LAYOUT`.
    pub fn open_to_remove(place: &Place) -> Result<Self> {
        Ok(Self::locked(place, place.write_existing()?))
    }

    /// With the lock on all instances.
    pub(super) fn locked(place: &Place, lock: Lock) -> Self {
        Self {
            place: place.clone(),
            lock,
        }
    }

    /// Repairs what can be repaired; what cannot is an error then.
    pub(super) fn make_whole(&self) -> Result<Change> {
        self.refuse_other_version()?;
        let change = self.repair()?;
        self.config()?;
        Ok(change)
    }

    /// Where that cannot be told, with its pin missing, it is of this layout.
    pub(super) fn refuse_other_version(&self) -> Result<()> {
        match self.config() {
            Err(Error::Refused(why)) => Err(Error::Refused(why)),
            _ => Ok(()),
        }
    }

    /// Enables: makes the instance if need be, applies the settings, attaches
    /// to the cgroups. What fails before the end leaves what was before.
    pub fn enable(place: &Place, cgroups: &[Cgroup], settings: &Settings) -> Result<Change> {
        let mut cgroups: Vec<&Cgroup> = cgroups.iter().collect();
        cgroups.sort_by_key(|cgroup| cgroup.id);
        cgroups.dedup_by_key(|cgroup| cgroup.id);
        let lock = place.write()?;
        if place.exists()? {
            let instance = Self::locked(place, lock);
            let repaired = instance.make_whole()?;
            let extended = instance.extend(&cgroups, settings)?;
            return Ok(repaired.and(extended));
        }
        Self::make(place, lock, &cgroups, settings, &Tables::default())?;
        Ok(Change::Done)
    }

    /// Enables an instance that must not be there yet.
    pub fn create(place: &Place, cgroup: &Cgroup, settings: &Settings) -> Result<()> {
        let lock = place.write()?;
        if place.exists()? {
            return Err(Error::Failed(format!(
                "instance {} is enabled already\n  Give another name with --instance, or none.",
                place.instance
            )));
        }
        Self::make(place, lock, &[cgroup], settings, &Tables::default())
    }

    /// Builds a new one and switches it on.
    pub(super) fn make(
        place: &Place,
        lock: Lock,
        cgroups: &[&Cgroup],
        settings: &Settings,
        tables: &Tables,
    ) -> Result<()> {
        let building = place.building();
        let made = build(&building, cgroups, settings, tables)
            .and_then(|()| fs::rename(&building, place.dir()).map_err(on("rename", &building)));
        if let Err(error) = made {
            // The first failure is the one to report.
            let _ = remove_tree(&building);
            place.give_up(lock);
            return Err(error);
        }
        let instance = Self::locked(place, lock);
        let on = instance
            .reconcile()
            .and_then(|()| instance.change_config(|config| config.enabled = 1));
        if on.is_err() {
            // Nothing is enrolled yet.
            let _ = instance.take_down();
            place.give_up(instance.lock);
        }
        on
    }

    fn extend(&self, cgroups: &[&Cgroup], settings: &Settings) -> Result<Change> {
        let (was, whole) = (self.setup()?, self.is_whole()?);
        let max = was.max_sockets.0;
        if settings.max_sockets.is_some_and(|wanted| wanted != max) {
            return Err(Error::Failed(format!(
                "instance {} holds {max} sockets at most, and that cannot change while it is enabled\n  To change it, max_sockets in FILE:  {}",
                self.place.instance,
                anew(&self.place.option())
            )));
        }
        self.change_to(cgroups, settings, &was.filters)
            .map_err(|error| self.go_back(&was, whole, error))
    }

    fn change_to(
        &self,
        cgroups: &[&Cgroup],
        settings: &Settings,
        from: &Filters,
    ) -> Result<Change> {
        let old = self.config()?;
        let mut change = self.attach(cgroups)?;
        let mut to = Filters::new(&settings.ports, &settings.cidrs);
        if settings.ports.is_empty() {
            to.ports.clone_from(&from.ports);
            to.port_includes = from.port_includes;
        }
        if settings.cidrs.is_empty() {
            to.cidrs.clone_from(&from.cidrs);
            to.cidr_includes = from.cidr_includes;
        }
        self.change_filters(from, &to)?;
        self.change_config(|config| {
            apply(config, settings);
            config.enabled = 1;
            if *config != old {
                change = Change::Done;
                // Live directions look again: the scope is theirs, too.
                config.generation = config.generation.wrapping_add(1);
            }
        })?;
        Ok(change.and(self.settle()?))
    }

    /// Attaches to those of these cgroups that are not, also to those that drain.
    pub(super) fn attach(&self, cgroups: &[&Cgroup]) -> Result<Change> {
        let dir = self.dir();
        let before = self.cgroups()?;
        let (back, new): (Vec<&Cgroup>, Vec<&Cgroup>) = cgroups
            .iter()
            .copied()
            .filter(|c| !before.contains(&c.id))
            .partition(|c| draining_dir(self, c.id).exists());
        attach_all(&dir, &new)?;
        for cgroup in &back {
            let pins = draining_dir(self, cgroup.id);
            fs::rename(&pins, cgroup_dir(&dir, cgroup.id)).map_err(on("rename", &pins))?;
        }
        if new.is_empty() && back.is_empty() {
            return Ok(Change::Nothing);
        }
        Ok(Change::Done)
    }

    /// One cgroup's sockets are to leave: enrols nothing more there. [`Self::settle`]
    /// takes out what it can.
    pub(super) fn retire_cgroup(&self, id: u64) -> Result<()> {
        let pins = cgroup_dir(&self.dir(), id);
        fs::rename(&pins, draining_dir(self, id)).map_err(on("rename", &pins))
    }

    /// After cgroups have come or gone; done where a drain came to its end.
    pub(super) fn settle(&self) -> Result<Change> {
        self.reconcile()?;
        self.keep()
    }

    /// The filters, as they are in the maps.
    pub(super) fn filters(&self, config: &Config) -> Result<Filters> {
        Filters::read(
            &self.dir(),
            config.port_includes != 0,
            config.cidr_includes != 0,
        )
    }

    /// Under traffic: see [`super::filters`].
    fn change_filters(&self, from: &Filters, to: &Filters) -> Result<()> {
        if from == to {
            return Ok(());
        }
        let both = from.both(to);
        self.step(from, &both)?;
        self.step_from_both(&both, to)
    }

    /// The second half of it.
    pub(super) fn step_from_both(&self, both: &Filters, to: &Filters) -> Result<()> {
        let keeping = to.keeping(both);
        self.step(both, &keeping)?;
        self.step(&keeping, to)
    }

    /// First the entries, then what is not among them.
    pub(super) fn step(&self, from: &Filters, to: &Filters) -> Result<()> {
        to.write(from, &self.dir())?;
        self.change_config(|config| {
            config.port_includes = u32::from(to.port_includes);
            config.cidr_includes = u32::from(to.cidr_includes);
        })
    }

    /// Detaches and unpins. What is still in the table of sockets stays there:
    /// their own programs keep it alive.
    pub(super) fn take_down(&self) -> Result<()> {
        match detach_skmsg(&self.dir()) {
            Err(e) if !e.is_not_found() => return Err(e),
            _ => {}
        }
        let leaving = self.place.leaving();
        fs::rename(self.dir(), &leaving).map_err(on("rename", &self.dir()))?;
        remove_tree(&leaving)?;
        self.place.remove_base_if_empty();
        Ok(())
    }

    /// Its directory of pins.
    pub fn dir(&self) -> PathBuf {
        self.place.dir()
    }

    /// Its name and where it is pinned.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.place.instance
    }

    /// A command about it, as it is to be typed.
    pub(super) fn command(&self, words: &str) -> String {
        self.place.command(words)
    }

    /// Opens one of its tables.
    pub fn table<K: crate::maps::Plain, V: crate::maps::Plain>(
        &self,
        name: &'static str,
    ) -> Result<Table<K, V>> {
        Table::open(&self.dir(), name)
    }

    /// The cgroups it is attached to.
    pub fn attached(&self) -> Result<Vec<Attached>> {
        let all = self.pins_of_enabled()?.into_iter();
        Ok(all.map(|(id, pins)| Attached::of(id, &pins)).collect())
    }

    /// The cgroups that are on their way out.
    pub fn leaving(&self) -> Result<Vec<Attached>> {
        let all = self.pins_of_draining()?.into_iter();
        Ok(all.map(|(id, pins)| Attached::of(id, &pins)).collect())
    }

    /// Ids of the enabled cgroups, and the directories with their links.
    pub(super) fn pins_of_enabled(&self) -> Result<Vec<(u64, PathBuf)>> {
        let pins = |id| (id, cgroup_dir(&self.dir(), id));
        Ok(self.cgroups()?.into_iter().map(pins).collect())
    }

    /// The same of those on their way out, which have the guards of what is enrolled.
    pub(super) fn pins_of_draining(&self) -> Result<Vec<(u64, PathBuf)>> {
        let pins = |id| (id, draining_dir(self, id));
        Ok(self.draining()?.into_iter().map(pins).collect())
    }

    /// The ids of these. To find a path takes a walk over all cgroups there are.
    pub(super) fn cgroups(&self) -> Result<Vec<u64>> {
        self.directories("cgroup-")
    }

    /// The ids that its directories with this prefix name, in order.
    pub(super) fn directories(&self, prefix: &str) -> Result<Vec<u64>> {
        let dir = self.dir();
        let mut ids: Vec<u64> = fs::read_dir(&dir)
            .map_err(on("read directory", &dir))?
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                name.to_str()?.strip_prefix(prefix)?.parse().ok()
            })
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// The switches and tunables; refused where they have another layout.
    pub fn config(&self) -> Result<Config> {
        let bytes = self.config_bytes()?;
        match Config::read_from_bytes(&bytes) {
            Ok(config) if config.layout == LAYOUT => Ok(config),
            _ => Err(self.other_version(&bytes)),
        }
    }

    /// As long as the layout of the instance has it.
    fn config_bytes(&self) -> Result<Vec<u8>> {
        Ok(open_map(&self.dir(), "sa_config")?
            .lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|e| Error::bpf("look up in map", "sa_config", &e))?
            .unwrap_or_default())
    }

    fn other_version(&self, config: &[u8]) -> Error {
        let layout = match ConfigHead::read_from_prefix(config) {
            Ok((head, _)) => head.layout.to_string(),
            Err(_) => "unknown".to_owned(),
        };
        let drains = match self.cgroups() {
            Ok(attached) if attached.is_empty() => ", and is draining",
            _ => "",
        };
        Error::Refused(format!(
            "instance {} was made by another version of sockaccel (map layout {layout}, this version has {LAYOUT}){drains}\n  To change over:  {}, then enable it again   ({DROPS})\n  \
             To keep these, before, by the version that made it:  {}",
            self.place.instance,
            self.command("disable"),
            self.command("export >FILE")
        ))
    }

    /// Room in the table of sockets.
    pub fn max_sockets(&self) -> Result<u32> {
        Ok(open_map(&self.dir(), "sa_sockhash")?.max_entries())
    }

    /// The form of its splice observer; `None` where its pin was removed.
    pub fn observer(&self) -> Option<Observer> {
        Observer::of(&self.dir())
    }

    /// Makes every live direction look at the tables again. To be called after
    /// each change of policy, identities, endpoints or services.
    pub fn bump_generation(&self) -> Result<()> {
        self.change_config(|config| config.generation = config.generation.wrapping_add(1))
    }

    pub(super) fn change_config(&self, change: impl FnOnce(&mut Config)) -> Result<()> {
        let mut config = self.config()?;
        change(&mut config);
        write_config(&self.dir(), config.as_bytes())
    }

    /// Enrols nothing more, in any layout.
    pub(super) fn switch_off(&self) -> Result<()> {
        let mut bytes = self.config_bytes()?;
        match ConfigHead::mut_from_prefix(&mut bytes) {
            Ok((head, _)) => head.enabled = 0,
            Err(_) => return Err(self.other_version(&bytes)),
        }
        write_config(&self.dir(), &bytes)
    }

    /// No `apply` was killed while it changed the tables.
    pub(super) fn is_whole(&self) -> Result<bool> {
        Ok(self.config()?.changing.is_multiple_of(2))
    }

    /// Fails when an `apply` was killed half-way: its tables are neither the old
    /// ones nor the new ones, and only another `apply` knows what they should be.
    fn check_whole(&self) -> Result<()> {
        if self.is_whole()? {
            return Ok(());
        }
        Err(Error::Failed(format!(
            "an apply to instance {} was killed half-way: its tables hold parts of what was and of what should be,\n  and new connections stay on the stack\n  To finish it:  {}   ({} shows what is there now)",
            self.place.instance,
            self.command("apply -f FILE"),
            self.command("export")
        )))
    }
}

/// Loads the programs and pins everything below `dir`, switched off.
fn build(dir: &Path, cgroups: &[&Cgroup], settings: &Settings, tables: &Tables) -> Result<()> {
    fs::create_dir(dir).map_err(|e| on("create", dir)(e).hint(BPFFS_HINT))?;
    let mut storage = MaybeUninit::uninit();
    let mut open = open_programs(&mut storage)?;
    if let Some(max) = settings.max_sockets {
        for map in [&mut open.maps.sa_sockhash, &mut open.maps.sa_conns] {
            map.set_max_entries(max)
                .map_err(|e| Error::bpf("size", "the socket tables", &e))?;
        }
    }
    let observer = settings.observer.unwrap_or_else(Observer::choose);
    load_observer(&mut open, observer);
    let mut skeleton = open
        .load()
        .map_err(|e| Error::bpf("load", "the BPF programs into the kernel", &e))?;

    pin_maps(skeleton.object_mut(), dir)?;
    pin_programs(skeleton.object_mut(), dir)?;
    let mut config = Config {
        layout: LAYOUT,
        budget_messages: 64,
        budget_bytes: 256 * 1024,
        max_message: u32::MAX,
        stream_limit: 8192,
        build: upgrade::build(),
        ..Config::new_zeroed()
    };
    apply(&mut config, settings);
    write_config(dir, config.as_bytes())?;
    Filters::new(&settings.ports, &settings.cidrs).write(&Filters::default(), dir)?;
    tables.write(dir)?;

    set_verdict(dir)?;
    attach_skmsg(dir)?;
    attach_observer(&mut skeleton, observer, dir)?;
    attach_all(dir, cgroups)
}

/// The programs that this binary brings, not loaded yet.
pub(super) fn open_programs(
    storage: &mut MaybeUninit<OpenObject>,
) -> Result<skel::OpenSockaccelSkel<'_>> {
    skel::SockaccelSkelBuilder::default()
        .open(storage)
        .map_err(|e| Error::bpf("open", "the BPF programs", &e))
}

/// Lets the programs use the maps that are pinned in `dir`.
pub(super) fn reuse_maps(object: &mut OpenObject, dir: &Path) -> Result<()> {
    for mut map in object.maps_mut() {
        let pin = dir.join(map.name());
        if pin.exists() {
            map.reuse_pinned_map(&pin)
                .map_err(|e| Error::bpf("use map", pin.display().to_string(), &e))?;
        }
    }
    Ok(())
}

/// Pins the maps that `dir` lacks.
pub(super) fn pin_maps(object: &mut Object, dir: &Path) -> Result<()> {
    for mut map in object.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if name.starts_with("sa_") && !dir.join(&name).exists() {
            map.pin(dir.join(&name))
                .map_err(|e| Error::bpf("pin map", name, &e))?;
        }
    }
    Ok(())
}

/// Pins the programs that were loaded.
pub(super) fn pin_programs(object: &mut Object, dir: &Path) -> Result<()> {
    for mut program in object.progs_mut().filter(|program| program.autoload()) {
        let name = program.name().to_string_lossy().into_owned();
        program
            .pin(dir.join(&name))
            .map_err(|e| Error::bpf("pin program", name, &e))?;
    }
    Ok(())
}

/// Of the two forms of the observer only this one is loaded.
pub(super) fn load_observer(open: &mut skel::OpenSockaccelSkel<'_>, observer: Observer) {
    open.progs
        .sa_splice
        .set_autoload(observer == Observer::Tracepoint);
    open.progs
        .sa_splice_read
        .set_autoload(observer == Observer::Fentry);
}

/// Attaches the splice observer, and pins its link below `dir`.
pub(super) fn attach_observer(
    skeleton: &mut skel::SockaccelSkel<'_>,
    observer: Observer,
    dir: &Path,
) -> Result<()> {
    if observer == Observer::Tracepoint {
        tracefs::ensure()?;
    }
    let program = match observer {
        Observer::Tracepoint => &mut skeleton.progs.sa_splice,
        Observer::Fentry => &mut skeleton.progs.sa_splice_read,
    };
    program
        .attach()
        .map_err(|e| {
            let what = format!("the splice observer to {}", observer.place());
            Error::bpf("attach", what, &e)
        })?
        .pin(dir.join("link-splice"))
        .map_err(|e| Error::bpf("pin", "the link of the splice observer", &e))
}

fn apply(config: &mut Config, settings: &Settings) {
    config.blocking = settings.blocking.map_or(config.blocking, u32::from);
    config.scope = settings.scope.unwrap_or(config.scope);
    config.budget_messages = settings.budget_messages.unwrap_or(config.budget_messages);
    config.budget_bytes = settings.budget_bytes.unwrap_or(config.budget_bytes);
    config.stream_limit = settings.stream_limit.unwrap_or(config.stream_limit);
    config.admit_all = settings.admit_all.map_or(config.admit_all, u32::from);
    config.allow |= settings.allow;
    config.without_company_rule |= u32::from(settings.without_company_rule);
    config.without_observer |= u32::from(settings.without_observer);
    if !settings.ports.is_empty() {
        config.port_includes = u32::from(settings.ports.iter().any(|p| p.1 == FILTER_INCLUDE));
    }
    if !settings.cidrs.is_empty() {
        config.cidr_includes = u32::from(settings.cidrs.iter().any(|c| c.1 == FILTER_INCLUDE));
    }
}

impl From<ipnet::IpNet> for Cidr {
    fn from(net: ipnet::IpNet) -> Self {
        let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
        Self {
            prefixlen: FAMILY_BITS + mapped + u32::from(net.prefix_len()),
            family: if net.addr().is_ipv4() {
                FAMILY_V4
            } else {
                FAMILY_V6
            },
            addr: Addr::from(net.network()),
        }
    }
}

pub(super) fn cgroup_dir(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("cgroup-{id}"))
}

fn new_cgroup_dir(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("_new-{id}"))
}

/// Attaches to these cgroups or to none of them, beside what others attached there.
fn attach_all(dir: &Path, cgroups: &[&Cgroup]) -> Result<()> {
    let attached = cgroups
        .iter()
        .try_for_each(|cgroup| attach(dir, cgroup))
        .and_then(|()| {
            cgroups.iter().try_for_each(|cgroup| {
                let pins = new_cgroup_dir(dir, cgroup.id);
                fs::rename(&pins, cgroup_dir(dir, cgroup.id)).map_err(on("rename", &pins))
            })
        });
    if attached.is_err() {
        // The first failure is the one to report.
        for cgroup in cgroups {
            let _ = remove_tree(&new_cgroup_dir(dir, cgroup.id));
            let _ = remove_tree(&cgroup_dir(dir, cgroup.id));
        }
    }
    attached
}

fn attach(dir: &Path, cgroup: &Cgroup) -> Result<()> {
    let pins = new_cgroup_dir(dir, cgroup.id);
    fs::create_dir(&pins).map_err(on("create", &pins))?;
    CGROUP_PROGRAMS
        .into_iter()
        .try_for_each(|(name, kind)| attach_one(dir, cgroup, &pins, name, kind))
}

pub(super) fn attach_one(
    dir: &Path,
    cgroup: &Cgroup,
    pins: &Path,
    name: &str,
    kind: AttachType,
) -> Result<()> {
    // Enrols when all of it is in place, see reconcile().
    let idle = match kind {
        AttachType::CgroupSockOps => "sa_sockops_off",
        _ => name,
    };
    let program = open_pin(&dir.join(idle))?;
    let link = bpf::link_create(program.as_fd(), cgroup.dir.as_fd(), kind)
        .map_err(|e| attach_error(cgroup, name, e))?;
    let pin = pins.join(name);
    bpf::pin(link.as_fd(), &pin).map_err(on("pin", &pin))
}

/// The privileges were probed before, so EPERM is about the cgroup: a program
/// on it, or on one above it, was attached without `BPF_F_ALLOW_MULTI`.
fn attach_error(cgroup: &Cgroup, program: &str, error: std::io::Error) -> Error {
    let path = cgroup.path.display();
    let why = match error.raw_os_error() {
        Some(nix::libc::EPERM) => {
            "another program is attached to it, or to a cgroup above it, and tolerates no other"
        }
        Some(nix::libc::E2BIG) => "as many programs are attached to it as the kernel allows",
        _ => return Error::path("attach to cgroup", &cgroup.path, error),
    };
    Error::Failed(format!(
        "cannot attach {program} to cgroup {path}: {why}\n  \
         To see them:  bpftool cgroup show {path} effective"
    ))
}

/// Sockets enrolled from now on run `sa_skmsg`.
pub(super) fn attach_skmsg(dir: &Path) -> Result<()> {
    let (program, map) = (
        open_pin(&dir.join("sa_skmsg"))?,
        open_pin(&dir.join("sa_sockhash"))?,
    );
    match bpf::link_create(program.as_fd(), map.as_fd(), AttachType::SkMsgVerdict) {
        Ok(link) => {
            let pin = dir.join("link-skmsg");
            bpf::pin(link.as_fd(), &pin).map_err(on("pin", &pin))
        }
        // Before 6.10 sockmaps have no links.
        Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => {
            bpf::prog_attach(program.as_fd(), map.as_fd(), AttachType::SkMsgVerdict)
                .map_err(|e| Error::os("attach sa_skmsg to", "sa_sockhash", e))
        }
        Err(e) => Err(Error::os("attach sa_skmsg to", "sa_sockhash", e)),
    }
}

/// Without a link the map would keep its program, and the program its map.
fn detach_skmsg(dir: &Path) -> Result<()> {
    if dir.join("link-skmsg").exists() {
        return Ok(());
    }
    let (program, map) = (
        open_pin(&dir.join("sa_skmsg"))?,
        open_pin(&dir.join("sa_sockhash"))?,
    );
    bpf::prog_detach(program.as_fd(), map.as_fd(), AttachType::SkMsgVerdict)
        .map_err(|e| Error::os("detach sa_skmsg from", "sa_sockhash", e))
}

pub(super) fn open_pin(path: &Path) -> Result<std::os::fd::OwnedFd> {
    bpf::open_pinned(path).map_err(|e| on("open", path)(e).hint(MISSING_HINT))
}

pub(super) fn open_map(dir: &Path, name: &str) -> Result<MapHandle> {
    maps::open(dir, name).map_err(|e| e.hint(MISSING_HINT))
}

fn write_config(dir: &Path, config: &[u8]) -> Result<()> {
    open_map(dir, "sa_config")?
        .update(&0_u32.to_ne_bytes(), config, MapFlags::ANY)
        .map_err(|e| Error::bpf("write to map", "sa_config", &e))
}
