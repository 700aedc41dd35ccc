//! Where the checks take place: a cgroup of our own, and an instance on a bpffs
//! of our own, which waits for no lock of others. Both are removed on every way
//! out; the bpffs, and with it the instance, goes with this process even when
//! that is killed. The network namespace is each check's own.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use nix::mount::MsFlags;
use nix::mount::mount;
use nix::sched::CloneFlags;
use nix::sched::unshare;

use super::super::guard::Guard;
use super::super::guard::Stop;
use crate::output::say;
use crate::state::Place;
use crate::state::cgroup::mounts;

/// To take the programs away.
const LIMIT: Duration = Duration::from_secs(5);

/// Cgroup and instance.
#[derive(Debug)]
pub struct Arena<'a> {
    guard: &'a Guard,
    binary: PathBuf,
    place: Place,
    cgroup: PathBuf,
}

/// Why there is none.
#[derive(Debug)]
pub enum Trouble {
    /// A child gave no answer.
    Stop(Stop),
    /// This was refused.
    Refused(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop(stop) => write!(f, "enabling on a cgroup of its own: {stop}"),
            Self::Refused(text) => f.write_str(text),
        }
    }
}

impl From<Stop> for Trouble {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// Options that name an instance and its bpffs.
pub fn name_instance(command: &mut Command, place: &Place) {
    command.args(["--instance", &place.instance, "--bpffs"]);
    command.arg(&place.bpffs);
}

impl<'a> Arena<'a> {
    /// Makes both. From then on the calling thread is in a mount namespace of its
    /// own, where the new bpffs covers that of `place`.
    ///
    /// # Errors
    ///
    /// [`Trouble`]; then nothing is left.
    pub fn make(guard: &'a Guard, place: &Place) -> Result<Self, Trouble> {
        let refused = |what: &str, e: &dyn fmt::Display| Trouble::Refused(format!("{what}: {e}"));
        let binary = std::env::current_exe().map_err(|e| refused("this program", &e))?;
        let name = format!("doctor-{}", process::id());
        let place = Place::new(&name, &place.bpffs).map_err(|e| refused(&name, &e))?;
        cover(&place.bpffs)
            .map_err(|e| refused(&format!("a bpffs on {}", place.bpffs.display()), &e))?;
        let cgroup = path_of_cgroup().map_err(|e| refused("a cgroup", &e))?;
        // From here on what is left behind goes with it.
        let arena = Self {
            guard,
            binary,
            place,
            cgroup,
        };
        for part in [
            arena.cgroup.clone(),
            plain(&arena.cgroup),
            accelerated(&arena.cgroup),
        ] {
            fs::create_dir(&part).map_err(|e| refused(&part.display().to_string(), &e))?;
        }
        let mut enable = arena.command();
        enable.arg("enable").arg("--cgroup");
        enable.arg(accelerated(&arena.cgroup));
        // The programs on it are our own; blocking readers for their checks.
        enable.args(["--allow", "fionread,known-bad-kernel"]);
        enable.args(["--blocking-readers", "accelerate"]);
        let answer = guard.run(&mut enable, guard.time())?;
        if answer.status == Some(0) {
            return Ok(arena);
        }
        let first = answer.stderr.lines().next().unwrap_or("no word").to_owned();
        Err(Trouble::Refused(first))
    }

    /// `sockaccel`, on the instance.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        name_instance(&mut command, &self.place);
        command
    }

    /// That of the two below.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }
}

impl Drop for Arena<'_> {
    fn drop(&mut self) {
        let mut disable = self.command();
        match self.guard.clean_up(disable.arg("disable"), LIMIT) {
            Ok(answer) if answer.status == Some(0) => {}
            // The signal that ends us may have come just now.
            Err(Stop::Interrupted(_)) => {
                let _ = self.guard.clean_up(self.command().arg("disable"), LIMIT);
            }
            Ok(answer) => say(format_args!("sockaccel: doctor: {}", answer.stderr.trim())),
            Err(stop) => say(format_args!(
                "sockaccel: doctor: disabling instance {}: {stop}",
                self.place.instance
            )),
        }
        // A process that has just ended may be counted for a moment.
        for _ in 0..50 {
            for part in [plain(&self.cgroup), accelerated(&self.cgroup)] {
                let _ = fs::remove_dir(part);
            }
            match fs::remove_dir(&self.cgroup) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => sleep(Duration::from_millis(20)),
                _ => return,
            }
        }
        say(format_args!(
            "sockaccel: doctor: could not remove {}",
            self.cgroup.display()
        ));
    }
}

/// Where plain TCP is tried: not where we are, which may be accelerated.
pub fn plain(cgroup: &Path) -> PathBuf {
    cgroup.join("plain")
}

/// The one that the instance is enabled on.
pub fn accelerated(cgroup: &Path) -> PathBuf {
    cgroup.join("accelerated")
}

/// Nobody else sees the mount, and it goes with the last process that does.
fn cover(dir: &Path) -> nix::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), none)
}

fn path_of_cgroup() -> io::Result<PathBuf> {
    let mount = mounts()
        .into_iter()
        .next()
        .ok_or_else(|| io::Error::other("no cgroup2 is mounted"))?;
    Ok(mount.join(format!("sockaccel-doctor-{}", process::id())))
}
