//! Taking sockets out of an instance while they are in use.
//!
//! The proof that nothing is lost is in `src/bpf/drain.h`, one walk over the map
//! at a time; here is when to walk. What is left survives this process: sockets
//! and guards stay, and the next command goes on. All but what is about one cgroup
//! works on an instance of any layout, by what every layout keeps: see `SA_LAYOUT` of
//! `src/bpf/intf.h`.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use libbpf_rs::Program;
use libbpf_rs::query::{LinkInfo, LinkTypeInfo};

use super::dir::{Place, remove_tree};
use super::instance::{Change, Instance, cgroup_dir, open_pin};
use crate::error::{Error, Result, on};
use crate::maps::layout::Dump;
use crate::maps::sockets;
use crate::sys::bpf;

/// One to mark, one to close the directions, one to take out.
const WALKS: u32 = 3;

/// How long to look for cgroups that drain and have nothing to wait for.
const KEEP: Duration = Duration::from_millis(500);

/// Between two walks that found the same.
const PAUSE: Duration = Duration::from_millis(20);

/// What is given up after so long, and whether it is dropped instead.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long to wait for what is unread or under way.
    pub timeout: Duration,
    /// Drop it and do not wait.
    pub now: bool,
}

/// How a drain ended.
#[derive(Debug, Default)]
pub struct Drained {
    /// Whether anything is different now.
    pub changed: bool,
    /// Sockets that still drain: the time is over.
    pub waiting: Sockets,
    /// Sockets that were taken out with what was unread.
    pub dropped: Sockets,
    /// They could not be looked at, with pins missing: they leave when they close.
    pub unseen: bool,
    /// The instance is gone, with all that was set.
    pub ended: bool,
    /// What there was to drain.
    pub was: Was,
}

/// Whether what is to drain was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Was {
    /// It was enabled, or on its way out.
    #[default]
    There,
    /// The cgroup was not in the instance.
    NoCgroup,
    /// There was no instance.
    NoInstance,
}

/// Sockets on their way out.
#[derive(Debug)]
pub enum Sockets {
    /// As the programs tell of them.
    Told(Vec<Dump>),
    /// How many, at most: what programs of another layout tell cannot be read.
    Counted(usize),
}

impl Default for Sockets {
    fn default() -> Self {
        Self::Told(Vec::new())
    }
}

impl Sockets {
    /// How many there are.
    pub fn number(&self) -> usize {
        match self {
            Self::Told(sockets) => sockets.len(),
            Self::Counted(number) => *number,
        }
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.number() == 0
    }

    /// Those that leave with the cgroup that is asked about; all, where none is.
    fn of(self, asked: Option<u64>) -> Self {
        match self {
            Self::Told(mut sockets) if asked.is_some() => {
                sockets.retain(|socket| socket.asked != 0);
                Self::Told(sockets)
            }
            all => all,
        }
    }

    fn add(&mut self, more: Self) {
        match (self, more) {
            (Self::Told(sockets), Self::Told(more)) => sockets.extend(more),
            (sockets, more) if !more.is_empty() => {
                *sockets = Self::Counted(sockets.number() + more.number());
            }
            _ => {}
        }
    }
}

impl Drained {
    fn of(change: Change) -> Self {
        Self {
            changed: change == Change::Done,
            ..Self::default()
        }
    }
}

/// Takes one cgroup out, or all of the instance. `progress` is told what still
/// waits, after each look that found something. What another cgroup waits for that is
/// on its way out keeps this one from nothing, and is not dropped with it.
pub fn disable(
    place: &Place,
    cgroup: Option<u64>,
    patience: Patience,
    mut progress: impl FnMut(&Sockets),
) -> Result<Drained> {
    let start = Instant::now();
    let mut instance = match Instance::open_to_remove(place) {
        Err(Error::NotEnabled { .. }) => {
            return Ok(Drained {
                was: Was::NoInstance,
                ..Drained::default()
            });
        }
        instance => instance?,
    };
    // Its pin may be missing; what cannot be repaired can still be taken down.
    let _ = instance.repair();
    if !instance.has(cgroup)? {
        return Ok(Drained {
            was: Was::NoCgroup,
            ..Drained::default()
        });
    }
    let mut drained = Drained::of(instance.retire(cgroup)?);
    let mut walks = 0_u32;
    loop {
        // With the last one goes whatever else there is.
        let asked = if instance.ends_with(cgroup)? {
            None
        } else {
            cgroup
        };
        let walk = match asked {
            _ if !patience.now || walks < WALKS => Walk::Drain,
            Some(_) => Walk::DropAsked,
            None => Walk::Drop,
        };
        let found = match instance.walk(walk, asked) {
            Err(error) if error.is_not_found() => {
                drained.unseen = true;
                Found::default()
            }
            found => found?,
        };
        walks += 1;
        drained.dropped.add(found.dropped);
        // Of the others it is not known where nothing could be looked at.
        let alone = asked.filter(|_| drained.unseen || !found.waiting.is_empty());
        let waiting = found.waiting.of(asked);
        if waiting.is_empty() {
            drained.ended = instance.ends_with(alone)?;
            drained.changed |= instance.finish(alone)? == Change::Done;
            return Ok(drained);
        }
        if walks < WALKS + u32::from(patience.now) {
            continue;
        }
        if !patience.now && start.elapsed() >= patience.timeout {
            drained.waiting = waiting;
            return Ok(drained);
        }
        // The lock is free meanwhile: others may look, or enable again.
        std::mem::drop(instance);
        progress(&waiting);
        sleep(PAUSE);
        instance = match Instance::open_to_remove(place) {
            Err(Error::NotEnabled { .. }) => {
                drained.ended = true;
                return Ok(drained);
            }
            instance => instance?,
        };
        if !instance.is_retired(cgroup)? {
            return Err(Error::Failed(format!(
                "instance {} was enabled again while it drained\n  To see it:  {}",
                instance.name(),
                place.command("status")
            )));
        }
        // Who changed something meanwhile may have been killed over it.
        instance.reconcile_what_is_there()?;
    }
}

/// What a walk over the sockets does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    Drain,
    Drop,
    DropAsked,
    Keep,
}

impl Walk {
    fn program(self) -> &'static str {
        match self {
            Self::Drain => "sa_iter_drain",
            Self::Drop => "sa_iter_drop",
            Self::DropAsked => "sa_iter_drop_asked",
            Self::Keep => "sa_iter_keep",
        }
    }
}

/// What a walk came upon.
#[derive(Debug, Default)]
struct Found {
    /// Sockets that are to leave and have not.
    waiting: Sockets,
    /// Sockets that it took out with what was unread.
    dropped: Sockets,
}

impl Instance {
    /// Enabled or on its way out; any cgroup, where none is named.
    fn has(&self, cgroup: Option<u64>) -> Result<bool> {
        let known = [self.cgroups()?, self.draining()?].concat();
        Ok(cgroup.is_none_or(|id| known.contains(&id)))
    }

    /// Enrols nothing more, there or anywhere. The guards stay.
    fn retire(&self, cgroup: Option<u64>) -> Result<Change> {
        let mut change = Change::Nothing;
        if cgroup.is_some() {
            // Its pin may have been missing before the repair.
            self.refuse_other_version()?;
        }
        for id in self.cgroups()? {
            if cgroup.is_none_or(|wanted| wanted == id) {
                self.retire_cgroup(id)?;
                change = Change::Done;
            }
        }
        // Also what a command that was killed did not come to.
        self.reconcile_what_is_there()?;
        Ok(change)
    }

    fn reconcile_what_is_there(&self) -> Result<()> {
        match self.reconcile() {
            // With a pin missing there is nothing to switch off by it.
            Err(error) if error.is_not_found() => Ok(()),
            done => done,
        }
    }

    fn is_retired(&self, cgroup: Option<u64>) -> Result<bool> {
        let attached = self.cgroups()?;
        Ok(cgroup.map_or(attached.is_empty(), |id| !attached.contains(&id)))
    }

    /// Makes tables and links say what the directories say.
    pub(super) fn reconcile(&self) -> Result<()> {
        let dir = self.dir();
        let attached = self.cgroups()?;
        if attached.is_empty() {
            self.switch_off()?;
        }
        let cgroups = self.table::<u64, u32>("sa_cgroups")?;
        for (id, _) in cgroups.entries()? {
            if !attached.contains(&id) {
                cgroups.remove(&id)?;
            }
        }
        for id in attached {
            cgroups.set(&id, &1)?;
            let pin = cgroup_dir(&dir, id).join("sa_sockops");
            run_program(&dir, &pin, "sa_sockops")?;
        }
        for id in self.draining()? {
            let pin = draining_dir(self, id).join("sa_sockops");
            run_program(&dir, &pin, "sa_sockops_off")?;
        }
        match self.refuse_other_version() {
            // It tells in its own way, or not at all.
            Err(_) => Ok(()),
            Ok(()) => self.note_leaving(None),
        }
    }

    /// Whether tables and links say what the directories say, and [`Self::keep`] came to
    /// its end after that. What somebody has unpinned is for `repair` to find.
    pub(super) fn is_reconciled(&self) -> Result<bool> {
        match self.says_what_is_there() {
            Err(error) if error.is_not_found() => Ok(true),
            says => says,
        }
    }

    fn says_what_is_there(&self) -> Result<bool> {
        let attached = self.cgroups()?;
        let ids = |name| -> Result<Vec<u64>> {
            let entries = self.table::<u64, u32>(name)?.entries()?;
            Ok(entries.into_iter().map(|(id, _)| id).collect())
        };
        let mut known = ids("sa_cgroups")?;
        known.sort_unstable();
        let leaving = ids("sa_leaving")?;
        if known != attached || leaving.iter().any(|id| attached.contains(id)) {
            return Ok(false);
        }
        let dir = self.dir();
        let on = attached
            .iter()
            .map(|id| (cgroup_dir(&dir, *id), "sa_sockops"));
        let draining = self.draining()?;
        let off = draining
            .iter()
            .map(|id| (draining_dir(self, *id), "sa_sockops_off"));
        for (pins, program) in on.chain(off) {
            if !runs_program(&dir, &pins.join("sa_sockops"), program)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The cgroups whose sockets are on their way out.
    pub fn draining(&self) -> Result<Vec<u64>> {
        self.directories("draining-")
    }

    /// Lets the programs know which cgroups drain, and which of them is asked about. Those
    /// that drained and are enabled again stay noted until [`Self::keep`] is through.
    fn note_leaving(&self, asked: Option<u64>) -> Result<()> {
        let draining = self.draining()?;
        let known = [self.cgroups()?, draining.clone()].concat();
        self.forget_leaving(|id| !known.contains(id))?;
        let leaving = self.table::<u64, u32>("sa_leaving")?;
        for id in draining {
            leaving.set(&id, &u32::from(asked == Some(id)))?;
        }
        Ok(())
    }

    fn forget_leaving(&self, gone: impl Fn(&u64) -> bool) -> Result<()> {
        let leaving = self.table::<u64, u32>("sa_leaving")?;
        for (id, _) in leaving.entries()? {
            if gone(&id) {
                leaving.remove(&id)?;
            }
        }
        Ok(())
    }

    /// Back in service: the sockets of cgroups that are enabled again. Those of
    /// the others go on draining, or are done.
    pub(super) fn keep(&self) -> Result<Change> {
        // The first end of a pair cannot know of the second.
        self.walk(Walk::Keep, None)?;
        self.walk(Walk::Keep, None)?;
        let attached = self.cgroups()?;
        self.forget_leaving(|id| attached.contains(id))?;
        for _ in 0..WALKS {
            if self.walk(Walk::Drain, None)?.waiting.is_empty() {
                return self.finish(None);
            }
        }
        let mut change = Change::Nothing;
        // Each takes a walk: what is not come to waits for the next command.
        let start = Instant::now();
        for id in self.draining()? {
            if start.elapsed() > KEEP {
                break;
            }
            let asked = Some(id);
            if self.walk(Walk::Drain, asked)?.waiting.of(asked).is_empty() {
                change = change.and(self.finish(asked)?);
            }
        }
        Ok(change)
    }

    fn walk(&self, walk: Walk, asked: Option<u64>) -> Result<Found> {
        if asked.is_some() {
            // Another command may have asked about another cgroup since.
            self.note_leaving(asked)?;
        }
        // What was written before is known to every program that runs after.
        bpf::grace_period().map_err(|e| Error::os("wait for", "running BPF programs", e))?;
        let dir = self.dir();
        if self.refuse_other_version().is_err() {
            return walk_other_version(&dir, walk);
        }
        let told = sockets::walk(&dir, walk.program())?.into_iter();
        let (dropped, waiting) = told.partition(Dump::was_dropped);
        Ok(Found {
            waiting: Sockets::Told(waiting),
            dropped: Sockets::Told(dropped),
        })
    }

    /// Is nothing left when these have left: the one, or all that drain?
    fn ends_with(&self, alone: Option<u64>) -> Result<bool> {
        let stays = |id: &u64| alone.is_some_and(|alone| *id != alone);
        Ok(self.cgroups()?.is_empty() && !self.draining()?.iter().any(stays))
    }

    /// No socket of theirs is left: takes their guards down, or all of it.
    fn finish(&self, alone: Option<u64>) -> Result<Change> {
        if self.ends_with(alone)? {
            return self.take_down().map(|()| Change::Done);
        }
        let mut change = Change::Nothing;
        for id in self.draining()? {
            if alone.is_some_and(|alone| id != alone) {
                continue;
            }
            let leaving = self.dir().join(format!("_old-{id}"));
            let retired = draining_dir(self, id);
            fs::rename(&retired, &leaving).map_err(on("rename", &retired))?;
            remove_tree(&leaving)?;
            change = Change::Done;
        }
        Ok(change)
    }
}

/// Its programs print something for each socket that is to leave and has not, and
/// for each that they drop.
fn walk_other_version(dir: &Path, walk: Walk) -> Result<Found> {
    let before = match walk {
        Walk::Drop => sockets::number(dir)?,
        _ => 0,
    };
    if sockets::walk_unread(dir, walk.program())?.is_empty() {
        return Ok(Found::default());
    }
    let after = sockets::number(dir)?;
    Ok(Found {
        waiting: Sockets::Counted(after),
        dropped: Sockets::Counted(before.saturating_sub(after)),
    })
}

pub(super) fn draining_dir(instance: &Instance, id: u64) -> PathBuf {
    instance.dir().join(format!("draining-{id}"))
}

/// Lets the link pinned there run this program of the instance.
pub(super) fn run_program(dir: &Path, pin: &Path, program: &str) -> Result<()> {
    if !pin.exists() {
        // Detached with its last pin; repair() makes another.
        return Ok(());
    }
    let link = open_pin(pin)?;
    let program = open_pin(&dir.join(program))?;
    match bpf::link_update(link.as_fd(), program.as_fd()) {
        // The cgroup is gone, and with it what was attached.
        Err(e) if e.raw_os_error() == Some(nix::libc::ENOLINK) => Ok(()),
        done => done.map_err(on("update link", pin)),
    }
}

/// Whether it does; also where its cgroup is gone, and nothing runs.
fn runs_program(dir: &Path, pin: &Path, program: &str) -> Result<bool> {
    let info = link_info(pin)?;
    let pinned = dir.join(program);
    let program = open_pin(&pinned)?;
    let id = Program::id_from_fd(program.as_fd())
        .map_err(|e| Error::bpf("ask program", pinned.display().to_string(), &e))?;
    Ok(is_severed(&info) || info.prog_id == id)
}

fn link_info(pin: &Path) -> Result<LinkInfo> {
    LinkInfo::from_fd(open_pin(pin)?.as_fd())
        .map_err(|e| Error::bpf("ask link", pin.display().to_string(), &e))
}

/// Its cgroup is gone, or somebody has detached it.
fn is_severed(link: &LinkInfo) -> bool {
    matches!(&link.info, LinkTypeInfo::Cgroup(cgroup) if cgroup.cgroup_id == 0)
}

/// Whether the kernel has taken the cgroup of the link that is pinned there, as far as
/// may be seen.
pub(super) fn has_lost_its_cgroup(pin: &Path) -> bool {
    pin.exists() && link_info(pin).is_ok_and(|link| is_severed(&link))
}

/// Whether the link that is pinned there is attached.
pub(super) fn is_attached(pin: &Path) -> Result<bool> {
    Ok(pin.exists() && !is_severed(&link_info(pin)?))
}
