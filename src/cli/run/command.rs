//! The command itself: started in the cgroup, told the signals, waited for.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::absolute;
use std::process::{Child, Command, ExitStatus};

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::{Pid, getpgid};

use super::{failed, failed_as};
use crate::error::{Error, Result};
use crate::state::temporary::Temporary;
use crate::state::{BPFFS_VARIABLE, VARIABLE};
use crate::sys::child::{SpawnError, spawn_in, wait_for_children};

/// As env(1): found, but not executable; not found.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// What is passed on to the command. SIGTSTP and the like are not among them:
/// the terminal stops and continues the whole job.
const FORWARDED: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// The signals that come to this process, instead of ending it.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    /// The mask that the command gets.
    before: SigSet,
}

impl Signals {
    /// Blocks them in this thread, and in those that it starts from now on.
    pub fn take() -> Result<Self> {
        let os = |e: nix::Error| Error::os("receive", "signals", e.into());
        wait_for_children().map_err(os)?;
        let mut set: SigSet = FORWARDED.into_iter().collect();
        set.add(Signal::SIGCHLD);
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(os)?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(os)?;
        Ok(Self { fd, before })
    }

    /// One that has come already and would have been for the command.
    pub fn pending(&mut self) -> Option<Signal> {
        while let Ok(Some(info)) = self.fd.read_signal() {
            match number(&info) {
                Some(Signal::SIGCHLD) | None => {}
                found => return found,
            }
        }
        None
    }

    fn next(&mut self) -> Result<siginfo> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd as _;
        loop {
            match self.fd.read_signal() {
                Ok(Some(info)) => return Ok(info),
                Ok(None) | Err(nix::Error::EINTR) => {}
                Err(e) => return Err(Error::os("receive", "signals", e.into())),
            }
            // EINTR: look again.
            let _ = poll(
                &mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)],
                PollTimeout::NONE,
            );
        }
    }
}

fn number(info: &siginfo) -> Option<Signal> {
    let number = i32::try_from(info.ssi_signo).ok()?;
    Signal::try_from(number).ok()
}

/// Starts it and waits for its end: its exit status, or 128 and the signal.
pub fn run(words: &[OsString], temporary: &Temporary, signals: &mut Signals) -> Result<u8> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| failed(Error::Usage("run what?".into())))?;
    // The command may change its directory.
    let bpffs = absolute(&temporary.place().bpffs).unwrap_or_default();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env(VARIABLE, &temporary.place().instance)
        .env(BPFFS_VARIABLE, &bpffs);
    let name = program.to_string_lossy();
    let mut child =
        spawn_in(&mut command, &temporary.cgroup().path, signals.before).map_err(|error| {
            match error {
                SpawnError::Cgroup(e) => {
                    failed(Error::path("enter cgroup", &temporary.cgroup().path, e))
                }
                SpawnError::Execute(e) => {
                    let status = if e.kind() == io::ErrorKind::NotFound {
                        NOT_FOUND
                    } else {
                        NOT_EXECUTABLE
                    };
                    failed_as(status, Error::Failed(format!("cannot execute {name}: {e}")))
                }
            }
        })?;
    wait(&mut child, signals).map(status_of)
}

fn wait(child: &mut Child, signals: &mut Signals) -> Result<ExitStatus> {
    loop {
        let info = signals.next().map_err(failed)?;
        match number(&info) {
            Some(Signal::SIGCHLD) => {
                let ended = child
                    .try_wait()
                    .map_err(|e| failed(Error::os("wait for", "the command", e)))?;
                if let Some(status) = ended {
                    return Ok(status);
                }
            }
            Some(signal) if !has_it_already(&info, child) => {
                let pid = Pid::from_raw(child.id().cast_signed());
                // It is not reaped yet, so the number is its own.
                let _ = kill(pid, signal);
            }
            _ => {}
        }
    }
}

/// A signal of the terminal goes to the whole foreground job, and the command is
/// of the same unless it made a process group of its own.
fn has_it_already(info: &siginfo, child: &Child) -> bool {
    let group = |pid: i32| getpgid(Some(Pid::from_raw(pid))).ok();
    info.ssi_code == libc::SI_KERNEL && group(child.id().cast_signed()) == group(0)
}

fn status_of(status: ExitStatus) -> u8 {
    let number = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    number.and_then(|n| u8::try_from(n).ok()).unwrap_or(u8::MAX)
}

/// The status of a command that this signal ended.
pub fn status_of_signal(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}
