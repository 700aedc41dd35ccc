//! Child processes that cannot keep us: each has a time limit, ends with us,
//! and SIGINT, SIGTERM and SIGHUP become errors, so that every guard runs on
//! the way out.

use std::io;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::FcntlArg;
use nix::fcntl::OFlag;
use nix::fcntl::fcntl;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signal::killpg;
use nix::sys::signalfd::SfdFlags;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

/// Why a child gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// Somebody wants us to end.
    #[error("interrupted by {0}")]
    Interrupted(Signal),
    /// It did not end in time, and was ended.
    #[error("no answer in {} s", .0.as_secs_f32())]
    Hung(Duration),
    /// There is no such program.
    #[error("{0} not found")]
    NotFound(String),
    /// The kernel refused something.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Stop {
    /// Why one thing could not be looked at.
    ///
    /// # Errors
    ///
    /// [`Stop::Interrupted`], which ends all of it instead.
    pub fn reason(self) -> Result<String, Self> {
        match self {
            Self::Interrupted(_) => Err(self),
            other => Ok(other.to_string()),
        }
    }
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// What a child left.
#[derive(Debug)]
pub struct Answer {
    /// Exit status, `None` when a signal ended it.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// The signals are blocked, and noticed, as long as this lives; and all there
/// is to do ends at one moment.
#[derive(Debug)]
pub struct Guard {
    before: SigSet,
    signals: SignalFd,
    time: Duration,
    end: Instant,
}

impl Guard {
    /// With so much time for everything together.
    ///
    /// # Errors
    ///
    /// Those of signalfd(2) and sigprocmask(2).
    pub fn new(time: Duration) -> io::Result<Self> {
        let set = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect::<SigSet>();
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = SigSet::thread_get_mask()?;
        set.thread_block()?;
        Ok(Self {
            before,
            signals,
            time,
            end: Instant::now() + time,
        })
    }

    /// The time for everything together.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Runs a command to its end, at most for so long.
    ///
    /// # Errors
    ///
    /// [`Stop`]; then the command and what it started are ended.
    pub fn run(&self, command: &mut Command, limit: Duration) -> Result<Answer, Stop> {
        self.run_until(command, limit, self.end)
    }

    /// The same for what has to be cleaned up, which the common end of all
    /// does not cut short.
    ///
    /// # Errors
    ///
    /// [`Stop`]
    pub fn clean_up(&self, command: &mut Command, limit: Duration) -> Result<Answer, Stop> {
        self.run_until(command, limit, Instant::now() + limit)
    }

    fn run_until(
        &self,
        command: &mut Command,
        limit: Duration,
        end: Instant,
    ) -> Result<Answer, Stop> {
        self.check()?;
        let started = Instant::now();
        let limit = limit.min(end.saturating_duration_since(started));
        let mut child = Running::start(command)?;
        let mut outputs = [Vec::new(), Vec::new()];
        while !child.read(self, started + limit, &mut outputs)? {
            self.check()?;
            if started.elapsed() >= limit {
                return Err(Stop::Hung(limit));
            }
        }
        let status = child.end(self, started + limit, limit)?;
        let [stdout, stderr] = outputs.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Answer {
            status,
            stdout,
            stderr,
        })
    }

    /// Has somebody asked us to stop?
    ///
    /// # Errors
    ///
    /// [`Stop::Interrupted`] if so.
    pub fn check(&self) -> Result<(), Stop> {
        let Some(info) = self.signals.read_signal()? else {
            return Ok(());
        };
        let signal = info.ssi_signo.try_into().ok();
        let signal = signal.and_then(|number: i32| Signal::try_from(number).ok());
        Err(Stop::Interrupted(signal.unwrap_or(Signal::SIGTERM)))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// A child in a process group of its own; the group is ended with this.
#[derive(Debug)]
struct Running {
    child: Child,
    over: bool,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self, Stop> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Stop::NotFound(name),
                _ => Stop::Io(error),
            })?;
        let running = Self { child, over: false };
        let Child { stdout, stderr, .. } = &running.child;
        for pipe in [
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ] {
            fcntl(pipe.expect("piped"), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(running)
    }

    /// Waits for output and takes it; true when both pipes are at their end.
    fn read(
        &mut self,
        guard: &Guard,
        until: Instant,
        outputs: &mut [Vec<u8>; 2],
    ) -> Result<bool, Stop> {
        let Child { stdout, stderr, .. } = &mut self.child;
        let (out, err) = (
            stdout.as_mut().expect("piped"),
            stderr.as_mut().expect("piped"),
        );
        let [to_out, to_err] = outputs;
        let open = [take(out, to_out)?, take(err, to_err)?];
        if open == [false, false] {
            return Ok(true);
        }
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(guard.signals.as_fd(), PollFlags::POLLIN)];
        if open[0] {
            fds.push(PollFd::new(out.as_fd(), PollFlags::POLLIN));
        }
        if open[1] {
            fds.push(PollFd::new(err.as_fd(), PollFlags::POLLIN));
        }
        match poll(
            &mut fds,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(_) | Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Its exit status; the pipes are at their end, so it has all but ended.
    fn end(mut self, guard: &Guard, until: Instant, limit: Duration) -> Result<Option<i32>, Stop> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.over = true;
                return Ok(status.code());
            }
            guard.check()?;
            if Instant::now() >= until {
                return Err(Stop::Hung(limit));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            // Not waited for yet, so the group's number is still its own.
            let group = i32::try_from(self.child.id()).map(Pid::from_raw);
            let _ = group.map(|group| killpg(group, Signal::SIGKILL));
            let _ = self.child.wait();
        }
    }
}

/// Reads what is there; false at the end.
fn take(pipe: &mut impl Read, into: &mut Vec<u8>) -> io::Result<bool> {
    let mut some = [0; 1 << 14];
    loop {
        match pipe.read(&mut some) {
            Ok(0) => return Ok(false),
            Ok(n) => into.extend_from_slice(&some[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn sh(guard: &Guard, text: &str, limit: Duration) -> Result<Answer, Stop> {
        guard.run(Command::new("sh").args(["-c", text]), limit)
    }

    #[test]
    fn an_answer_is_all_of_it() {
        let guard = Guard::new(LONG).expect("guard");
        let text = "head -c 300000 /dev/zero | tr '\\0' x; echo wrong >&2; exit 7";
        let answer = sh(&guard, text, LONG).expect("an answer");
        assert_eq!(answer.status, Some(7));
        assert_eq!(answer.stdout.len(), 300_000);
        assert_eq!(answer.stderr, "wrong\n");
    }

    #[test]
    fn what_hangs_is_ended_with_what_it_started() {
        let guard = Guard::new(LONG).expect("guard");
        let mark = format!("sockaccel-guard-{}", std::process::id());
        let text = format!("sh -c 'sleep 60; : {mark}' & sleep 60");
        let stop = sh(&guard, &text, Duration::from_millis(300)).expect_err("it sleeps");
        assert!(matches!(stop, Stop::Hung(_)), "{stop}");
        let alive = || {
            std::fs::read_dir("/proc")
                .expect("/proc")
                .flatten()
                .filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
                .filter(|line| line.contains(&mark))
                .count()
        };
        let end = Instant::now() + LONG;
        while alive() > 0 {
            assert!(Instant::now() < end, "still there");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let guard = Guard::new(LONG).expect("guard");
        let stop = guard.run(&mut Command::new("sockaccel-no-such-program"), LONG);
        assert_eq!(
            stop.expect_err("none").to_string(),
            "sockaccel-no-such-program not found"
        );
    }

    #[test]
    fn the_common_end_is_the_end_of_each() {
        let guard = Guard::new(Duration::ZERO).expect("guard");
        let stop = sh(&guard, "sleep 60", LONG).expect_err("no time");
        assert!(matches!(stop, Stop::Hung(_)), "{stop}");
    }
}
