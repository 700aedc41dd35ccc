//! A cgroup and an instance that live as long as one `run`.
//!
//! The cgroup's directory is locked with flock(2) meanwhile. The kernel lets go
//! of the lock when the process ends, however it does: what is not locked was
//! left behind by a killed `run`, and the next one sweeps it away.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};

use super::bpffs;
use super::cgroup::{self, Cgroup, members};
use super::dir::Place;
use super::drain::{self, Drained, Patience};
use super::instance::{Instance, Settings};
use crate::error::{Error, Result, on};

/// What the names of these cgroups begin with; the instance's name follows.
const PREFIX: &str = "sockaccel-run@";

/// The kernel lets go of a process that has just ended a little later.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// What outlives the command has so long to read what was redirected to it.
const GRACE: Duration = Duration::from_secs(5);

/// A name that no other `run` of this machine has, in whatever pid namespace.
pub fn unique_instance() -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!("run-{}-{}", std::process::id(), now.as_nanos())
}

fn is_generated(instance: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    instance
        .strip_prefix("run-")
        .and_then(|rest| rest.split_once('-'))
        .is_some_and(|(pid, time)| number(pid) && number(time))
}

/// The cgroup, and the instance once it is enabled. Both are taken away again on
/// drop; [`Temporary::close`] tells what could not be.
#[derive(Debug)]
pub struct Temporary {
    place: Place,
    cgroup: Cgroup,
    lock: Option<Flock<File>>,
    mounted: bool,
    open: bool,
}

/// What remained of a command that ended.
#[derive(Debug, Default)]
pub struct Remains {
    /// Processes that it started and that still run, back in the cgroup that
    /// `run` itself is in.
    pub processes: Vec<u32>,
    /// Sockets of theirs that wait for redirected data to be read: the instance drains.
    pub draining: usize,
    /// What could not be taken away.
    pub failures: Vec<Error>,
}

impl Temporary {
    /// Makes the cgroup: below the one this process is in, or where that is not
    /// possible, at the root.
    pub fn new(place: &Place) -> Result<Self> {
        let mounts = cgroup::mounts();
        if mounts.is_empty() {
            return Err(Error::Failed(
                "this machine has no cgroup2 mount\n  Mount it:  mount -t cgroup2 none DIR".into(),
            ));
        }
        let mut failure = None;
        for parent in cgroup::own().into_iter().chain(mounts) {
            match make_below(&parent, &place.instance) {
                Ok((cgroup, lock)) => {
                    return Ok(Self {
                        place: place.clone(),
                        cgroup,
                        lock: Some(lock),
                        mounted: false,
                        open: true,
                    });
                }
                Err(e) if is_taken(&e) => return Err(e),
                // The first one is where it should be.
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        Err(failure.unwrap_or_else(|| Error::Failed("no cgroup could be made".into())))
    }

    /// Where the command is to run.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The instance's name and place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Enables the instance, which must not exist yet.
    pub fn enable(&mut self, settings: &Settings) -> Result<()> {
        self.mounted = bpffs::ensure(&self.place.bpffs)?;
        // A thread of its own: where tracefs is missing it gets a mount namespace,
        // which the command must not inherit.
        thread::scope(|scope| {
            scope
                .spawn(|| Instance::create(&self.place, &self.cgroup, settings))
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Stops redirecting, moves what still runs in the cgroup to that of `run`
    /// itself, removes everything.
    pub fn close(mut self) -> Remains {
        self.take_down()
    }

    fn take_down(&mut self) -> Remains {
        let mut remains = Remains::default();
        if !std::mem::take(&mut self.open) {
            return remains;
        }
        match disable_on(&self.place, self.cgroup.id, GRACE) {
            Ok(drained) => remains.draining = drained.map_or(0, |drained| drained.waiting.number()),
            Err(e) => remains.failures.push(e),
        }
        let home = cgroup::own();
        for attempt in 0..REMOVE_TRIES {
            if attempt > 0 {
                thread::sleep(REMOVE_PAUSE);
            }
            for pid in members(&self.cgroup.path) {
                let moved = home.as_ref().is_some_and(|home| {
                    fs::write(home.join("cgroup.procs"), pid.to_string()).is_ok()
                });
                if moved && !remains.processes.contains(&pid) {
                    remains.processes.push(pid);
                }
            }
            match remove_empty(&self.cgroup.path) {
                Ok(()) => break,
                Err(e) if attempt + 1 == REMOVE_TRIES => remains.failures.push(
                    Error::path("remove cgroup", &self.cgroup.path, e).hint(format!(
                        "Processes are in it or below it; the next sockaccel run removes it once they have ended, or:  rmdir {}",
                        self.cgroup.path.display()
                    )),
                ),
                Err(_) => {}
            }
        }
        // Moved while it was exiting is not left.
        remains.processes.retain(|pid| is_running(*pid));
        self.lock = None;
        if self.mounted {
            bpffs::unmount_if_unused(&self.place.bpffs);
        }
        remains
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.take_down();
    }
}

fn is_taken(error: &Error) -> bool {
    matches!(error, Error::Os { source, .. } if source.kind() == ErrorKind::AlreadyExists)
}

/// What is left then goes on draining: the next `run` finishes it.
fn disable(place: &Place, cgroup: Option<u64>, timeout: Duration) -> Result<Drained> {
    let patience = Patience {
        timeout,
        now: false,
    };
    drain::disable(place, cgroup, patience, |_| {})
}

/// Takes this cgroup out, and the instance with it, unless somebody has enabled others
/// in it; nothing where it is not in it.
fn disable_on(place: &Place, cgroup: u64, timeout: Duration) -> Result<Option<Drained>> {
    let instance = match Instance::open_to_remove(place) {
        Err(Error::NotEnabled { .. }) => return Ok(None),
        instance => instance?,
    };
    let ids = [instance.cgroups()?, instance.draining()?].concat();
    drop(instance);
    if !ids.contains(&cgroup) {
        return Ok(None);
    }
    let is_alone = ids == [cgroup];
    disable(place, (!is_alone).then_some(cgroup), timeout).map(Some)
}

fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'))
    })
}

/// A locked cgroup. A sweep that saw it before it was locked has removed it.
fn make_below(parent: &Path, instance: &str) -> Result<(Cgroup, Flock<File>)> {
    let path = parent.join(format!("{PREFIX}{instance}"));
    loop {
        fs::create_dir(&path).map_err(|e| {
            let hint = if e.kind() == ErrorKind::AlreadyExists {
                "Another sockaccel run of this name; give another with --instance, or none."
            } else {
                ""
            };
            Error::path("create cgroup", &path, e).hint(hint)
        })?;
        let dir = File::open(&path).map_err(on("open cgroup", &path))?;
        let lock = Flock::lock(dir, FlockArg::LockExclusive)
            .map_err(|(_, e)| on("lock cgroup", &path)(e.into()))?;
        let inode = lock.metadata().map_err(on("look at", &path))?.ino();
        if !fs::metadata(&path).is_ok_and(|now| now.ino() == inode) {
            continue;
        }
        // Below a threaded cgroup no process can enter.
        let kind = fs::read_to_string(path.join("cgroup.type")).unwrap_or_default();
        if kind.trim() == "domain invalid" {
            let _ = fs::remove_dir(&path);
            return Err(Error::Failed(format!(
                "{} is a threaded cgroup: none of its own can be made for the command",
                parent.display()
            )));
        }
        return Ok((Cgroup::open(&path)?, lock));
    }
}

/// Removes the cgroup and those that its processes made in it, if all are empty.
fn remove_empty(dir: &Path) -> io::Result<()> {
    for child in cgroup::children(dir) {
        remove_empty(&child)?;
    }
    fs::remove_dir(dir)
}

/// Something that an earlier `run` left behind.
#[derive(Debug)]
pub struct Stale {
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// The cgroup was removed; else processes still are in it.
    pub removed: bool,
    /// Its instance was on this bpffs, and is disabled or drains now.
    pub disabled: bool,
}

/// Takes away what killed ones left: instances of this bpffs are disabled,
/// cgroups removed unless something still runs in them.
pub fn sweep(place: &Place) -> Vec<Stale> {
    let mut swept = Vec::new();
    for root in cgroup::mounts() {
        for path in cgroup::named(&root, PREFIX) {
            swept.extend(sweep_one(place, &path));
        }
    }
    // It drained when its cgroup went, or somebody removed that alone.
    for name in place.instances().unwrap_or_default() {
        let orphan = Place {
            instance: name,
            ..place.clone()
        };
        let ours = is_generated(&orphan.instance) || orphan.instance == place.instance;
        if ours
            && is_left(&orphan)
            && disable(&orphan, None, Duration::ZERO)
                .is_ok_and(|drained| drained.waiting.is_empty())
        {
            swept.push(Stale {
                cgroup: format!("{PREFIX}{}", orphan.instance).into(),
                removed: true,
                disabled: true,
            });
        }
    }
    swept
}

fn sweep_one(place: &Place, path: &Path) -> Option<Stale> {
    let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    let orphan = Place::new(name, &place.bpffs).ok()?;
    let cgroup = Cgroup::open(path).ok()?;
    // Held by the run that lives in it.
    let _lock = Flock::lock(File::open(path).ok()?, FlockArg::LockExclusiveNonblock).ok()?;
    let drained = disable_on(&orphan, cgroup.id, Duration::ZERO).ok()?;
    Some(Stale {
        removed: remove_empty(path).is_ok(),
        cgroup: path.to_owned(),
        disabled: drained.is_some(),
    })
}

/// It drains, or is of a `run`, and its cgroups are gone. Where not all cgroups can be
/// seen, what is enabled may be a run outside; what drains is to end in any case.
fn is_left(place: &Place) -> bool {
    let ids = Instance::open_to_remove(place)
        .and_then(|instance| Ok((instance.cgroups()?, instance.draining()?)));
    let Ok((enabled, draining)) = ids else {
        return false;
    };
    let is_gone = |id: &u64| cgroup::path_of(*id).is_none();
    let enabled_gone = enabled.is_empty()
        || (is_generated(&place.instance) && cgroup::all_visible() && enabled.iter().all(is_gone));
    enabled_gone && !(enabled.is_empty() && draining.is_empty()) && draining.iter().all(is_gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_recognised_and_fit() {
        let name = unique_instance();
        assert!(is_generated(&name), "{name}");
        Place::new(&name, Path::new("/")).expect("a valid name");
        for other in ["run-", "run-1", "run-1-", "run-a-1", "run-1-2-3", "job-1-2"] {
            assert!(!is_generated(other), "{other}");
        }
    }
}
