//! Child processes: one that is in a cgroup before it becomes its command, and one
//! that waits in our stead.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::fd::IntoRawFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, dup2_stdin, dup2_stdout, fork, pipe2, write};

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

/// Reads the file to its end in a child process; `None` when that takes longer. The
/// kernel may keep the child from ending even then, and this process from it if it
/// waited itself. To be called by a process that has no other threads.
pub fn read_within(file: File, limit: Duration) -> io::Result<Option<Vec<u8>>> {
    let end = Instant::now() + limit;
    let (told, tell) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: there is one thread, so nothing that the child uses is locked or half
    // written.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(told);
            let code = i32::from(read_and_tell(file, tell).is_err());
            // SAFETY: ends this process; what the parent has to undo is the parent's.
            unsafe { libc::_exit(code) }
        }
    };
    drop((file, tell));
    let answer = hear(File::from(told), end);
    if !matches!(answer, Ok(Some(_))) {
        // It ends when the kernel lets it.
        let _ = kill(child, Signal::SIGKILL);
        return answer;
    }
    let whole = matches!(waitpid(child, None), Ok(WaitStatus::Exited(_, 0)));
    let answer = answer?.filter(|_| whole).unwrap_or_default();
    match answer.split_last_chunk() {
        Some((bytes, errno)) if *errno == [0; 4] => Ok(Some(bytes.to_vec())),
        Some((_, errno)) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(*errno))),
        None => Err(io::Error::other("the child that should read it ended")),
    }
}

/// All that comes by the pipe until then; `None` when its end does not.
fn hear(mut pipe: File, end: Instant) -> io::Result<Option<Vec<u8>>> {
    let (mut answer, mut part) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
            Ok(0) => return Ok(None),
            Ok(_) => {
                let n = pipe.read(&mut part)?;
                if n == 0 {
                    return Ok(Some(answer));
                }
                answer.extend_from_slice(&part[..n]);
            }
        }
    }
}

/// What it read, then the errno with which that ended, or 0.
fn read_and_tell(file: File, tell: OwnedFd) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // Nothing else of the parent's stays open here: who waits for the end of its output,
    // or for its lock, waits for the parent alone.
    dup2_stdin(&file)?;
    dup2_stdout(&tell)?;
    let _ = (file.into_raw_fd(), tell.into_raw_fd());
    // SAFETY: closes descriptors, none of which anything in this process uses any more.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 2, libc::c_uint::MAX, 0) })?;
    let mut file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let tell = io::stdout().as_fd().try_clone_to_owned()?;
    let mut bytes = Vec::new();
    let errno = loop {
        match file.read_to_end(&mut bytes) {
            // After a million objects of which nothing was written the kernel wants to
            // be asked again: bpf_seq_read().
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => break e.raw_os_error().unwrap_or(libc::EIO),
            Ok(_) => break 0,
        }
    };
    bytes.extend(errno.to_ne_bytes());
    File::from(tell).write_all(&bytes)
}
