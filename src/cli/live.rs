//! What goes on until it is ended: waiting for the next moment, for input, or
//! for the end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Error, Result};

/// Why a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The moment has come.
    Time,
    /// There is something to read, or the terminal changed its size.
    Input,
    /// A signal asked for the end, or nobody reads standard output any more.
    End,
}

/// From here on these signals end waits, not the process.
#[derive(Debug)]
pub struct Live {
    signals: SignalFd,
}

/// Ends what people end with a key or a service manager with a signal. SIGHUP is
/// not among them: under nohup(1) it must stay ignored.
pub const ENDS: &[Signal] = &[Signal::SIGINT, Signal::SIGTERM];

impl Live {
    /// Takes these signals over.
    pub fn new(signals: &[Signal]) -> Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        let failed = |e: Errno| Error::os("wait for", "signals", e.into());
        set.thread_block().map_err(failed)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags).map_err(failed)?;
        Ok(Self { signals })
    }

    /// Waits until then, or until `input` can be read.
    pub fn wait(&self, until: Instant, input: Option<BorrowedFd<'_>>) -> Result<Woken> {
        let stdout = io::stdout();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = vec![
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                // Errors and hang-ups are always told.
                PollFd::new(stdout.as_fd(), PollFlags::empty()),
            ];
            fds.extend(input.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut fds, timeout(left)) {
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(Error::os("wait for", "the next moment", e.into())),
                Ok(_) => {}
            }
            let woken: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            if woken[0] {
                return Ok(self.signalled());
            }
            if woken[1] {
                return Ok(Woken::End);
            }
            if woken.get(2) == Some(&true) {
                return Ok(Woken::Input);
            }
            if Instant::now() >= until {
                return Ok(Woken::Time);
            }
        }
    }

    fn signalled(&self) -> Woken {
        let resized = i64::from(Signal::SIGWINCH as i32);
        match self.signals.read_signal() {
            Ok(Some(info)) if i64::from(info.ssi_signo) == resized => Woken::Input,
            _ => Woken::End,
        }
    }
}

/// Rounded up: poll(2) must not return before the moment, again and again.
fn timeout(left: Duration) -> PollTimeout {
    let milliseconds = left.as_nanos().div_ceil(1_000_000);
    i32::try_from(milliseconds)
        .ok()
        .and_then(|ms| PollTimeout::try_from(ms).ok())
        .unwrap_or(PollTimeout::MAX)
}

/// A number of seconds of the command line.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(n) if (0.1..=86400.0).contains(&n) => Ok(Duration::from_secs_f64(n)),
        _ => Err(format!(
            "{text:?} is not a number of seconds from 0.1 to 86400"
        )),
    }
}

/// `2026-11-22T18:45:39.123456Z`
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_numbers_within_a_day() {
        assert_eq!(seconds("1"), Ok(Duration::from_secs(1)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "0.05", "-1", "inf", "NaN", "86401", "1s", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wait_is_never_shorter_than_asked() {
        assert_eq!(timeout(Duration::ZERO), PollTimeout::ZERO);
        assert_eq!(timeout(Duration::from_nanos(1)), PollTimeout::from(1_u8));
        assert_eq!(timeout(Duration::from_millis(2)), PollTimeout::from(2_u8));
        assert_eq!(timeout(Duration::MAX), PollTimeout::MAX);
    }

    #[test]
    fn times_are_told_in_utc() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_500_000_000_123_456_789);
        assert_eq!(timestamp(time), "2017-07-14T02:40:00.123456Z");
    }
}
