//! A child process that is in a cgroup before it becomes its command.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{pipe2, write};

/// Which step failed.
#[derive(Debug)]
pub enum SpawnError {
    /// The cgroup could not be entered.
    Cgroup(io::Error),
    /// The command could not be executed.
    Execute(io::Error),
}

/// Starts the command in the cgroup, with this signal mask.
pub fn spawn_in(command: &mut Command, cgroup: &Path, mask: SigSet) -> Result<Child, SpawnError> {
    let procs = File::options()
        .write(true)
        .open(cgroup.join("cgroup.procs"))
        .map(OwnedFd::from)
        .map_err(SpawnError::Cgroup)?;
    // spawn() gives the errno of either step: a byte in the pipe says which.
    let (told, tell) =
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|e| SpawnError::Cgroup(e.into()))?;
    let enter = move || {
        if let Err(e) = write(&procs, b"0") {
            let _ = write(&tell, b"x");
            return Err(e.into());
        }
        mask.thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: between fork and exec the closure makes system calls only: write(2)
    // on descriptors it owns, and sigprocmask(2).
    unsafe { command.pre_exec(enter) };
    command.spawn().map_err(|e| {
        let mut byte = [0];
        if File::from(told).read(&mut byte).is_ok_and(|n| n > 0) {
            SpawnError::Cgroup(e)
        } else {
            SpawnError::Execute(e)
        }
    })
}

/// Makes children waitable, also where the caller's caller ignores SIGCHLD.
pub fn wait_for_children() -> Result<(), Errno> {
    // SAFETY: the default action is no handler of ours.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }.map(drop)
}
