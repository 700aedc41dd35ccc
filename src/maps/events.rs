//! `sa_events`: what happens to sockets, as it happens.
//!
//! The ring buffer has one read position in the kernel, so two readers would
//! steal from one another: a lock on the instance's directory lets one in at a
//! time. The programs write only while `sa_audience` says that somebody reads,
//! with a deadline that the reader keeps moving: one that was killed costs
//! nothing from the first event after it.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};
use zerocopy::FromBytes;

use super::layout::{Audience, Event};
use super::{Stats, Table};
use crate::error::{Error, Result, on};

/// How long the programs go on without hearing from the reader.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often [`Events::keep`] must be called, with some room.
pub const KEEP: Duration = Duration::from_secs(1);

/// The reader of the events of one instance. Dropped, it switches them off.
pub struct Events {
    ring: RingBuffer<'static>,
    queue: Rc<RefCell<Vec<Event>>>,
    map: MapHandle,
    id: u32,
    counters: MapHandle,
    lost_before: u64,
    audience: Table<u32, Audience>,
    kinds: u32,
    since: u64,
    path: PathBuf,
    _only: Flock<File>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Events {
    /// Begins to listen for these kinds: bits by the index of
    /// [`EVENTS`](crate::outcome::EVENTS). Fails while another process listens.
    pub fn listen(dir: &Path, kinds: u32) -> Result<Self> {
        let only = only_reader(dir)?;
        let path = dir.join("sa_events");
        let map = super::open(dir, "sa_events")?;
        let queue = Rc::new(RefCell::new(Vec::new()));
        let into = Rc::clone(&queue);
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&map, move |bytes| {
                // All records are of this type: the layout was checked.
                into.borrow_mut().extend(Event::read_from_bytes(bytes));
                0
            })
            .map_err(|e| Error::bpf("read", path.display().to_string(), &e))?;
        let ring = builder
            .build()
            .map_err(|e| Error::bpf("read", path.display().to_string(), &e))?;
        let counters = super::open(dir, "sa_stats")?;
        let events = Self {
            lost_before: Stats::counters(&counters)?.events_lost,
            id: id(&map)?,
            audience: Table::open(dir, "sa_audience")?,
            since: now()?,
            ring,
            queue,
            map,
            counters,
            kinds,
            path,
            _only: only,
        };
        events.keep()?;
        Ok(events)
    }

    /// Tells the programs that somebody still listens: to be called at least
    /// once in [`KEEP`]. False when the instance is not there any more.
    pub fn keep(&self) -> Result<bool> {
        if !MapHandle::from_pinned_path(&self.path).is_ok_and(|map| id(&map).ok() == Some(self.id))
        {
            return Ok(false);
        }
        let patience = u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
        let audience = Audience {
            until: now()?.saturating_add(patience),
            kinds: self.kinds,
            pad: 0,
        };
        self.audience.set(&0, &audience).map(|()| true)
    }

    /// What has happened since the last call, oldest first. Never waits.
    pub fn take(&self) -> Result<Vec<Event>> {
        self.ring
            .consume()
            .map_err(|e| Error::bpf("read", self.path.display().to_string(), &e))?;
        let mut events = self.queue.take();
        // An earlier reader may have left some.
        events.retain(|event| event.time >= self.since);
        Ok(events)
    }

    /// No further events; those until now can still be taken.
    pub fn stop(&self) -> Result<()> {
        let nobody = Audience {
            until: 0,
            kinds: 0,
            pad: 0,
        };
        self.audience.set(&0, &nobody)
    }

    /// Events that found the ring buffer full since this reader listens.
    pub fn lost(&self) -> Result<u64> {
        let lost = Stats::counters(&self.counters)?.events_lost;
        Ok(lost.saturating_sub(self.lost_before))
    }
}

/// Can be polled for input.
impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Else the deadline does it.
        let _ = self.stop();
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which events are stamped with.
pub fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_err(|e| Error::os("read", "the clock", e.into()))?;
    let nanoseconds = Duration::from(now).as_nanos();
    Ok(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

fn id(map: &MapHandle) -> Result<u32> {
    let info = libbpf_rs::MapCore::info(map).map_err(|e| Error::bpf("look at", "sa_events", &e))?;
    Ok(info.info.id)
}

fn only_reader(dir: &Path) -> Result<Flock<File>> {
    let file = File::open(dir).map_err(on("open", dir))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => Error::Failed(format!(
            "another process reads the events of {}, and there can be one at a time\n  \
             To see which:  fuser -v {}",
            dir.display(),
            dir.display()
        )),
        other => on("lock", dir)(other.into()),
    })
}
