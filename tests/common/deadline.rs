//! Bounded waits: a test that would hang fails instead. Where everything is slow,
//! as in an emulated machine, `SOCKACCEL_TEST_PATIENCE` says how many times as long
//! that takes.

use std::env;
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;

/// How many times as long.
pub static PATIENCE: LazyLock<u32> = LazyLock::new(|| {
    env::var("SOCKACCEL_TEST_PATIENCE").map_or(1, |n| n.parse().expect("a number"))
});

/// When a wait becomes a failure.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    /// For what fails then.
    patient: Instant,
    limit: Duration,
}

impl Deadline {
    /// So many seconds from now.
    pub fn seconds(limit: u64) -> Self {
        let (now, limit) = (Instant::now(), Duration::from_secs(limit));
        let patience = limit * *PATIENCE;
        Self {
            at: now + limit,
            patient: now + patience,
            limit: patience,
        }
    }

    /// Is it over? For loops that end by time without failing.
    pub fn passed(&self) -> bool {
        Instant::now() >= self.at
    }

    /// Fails the test when it is over.
    pub fn check(&self, what: &str) {
        assert!(
            Instant::now() < self.patient,
            "{what}: did not finish in {} s",
            self.limit.as_secs()
        );
    }

    /// Waits until the descriptor has one of the events (or an error).
    pub fn wait(&self, fd: impl AsFd, events: PollFlags, what: &str) -> PollFlags {
        loop {
            let left = self.patient.saturating_duration_since(Instant::now());
            let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            let got = wait_at_most(&fd, events, left);
            if !got.is_empty() {
                return got;
            }
            self.check(what);
        }
    }

    /// Polls a condition that no descriptor tells of.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        while !holds() {
            self.check(what);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What `poll(2)` says within so many milliseconds; empty when nothing.
pub fn wait_at_most(fd: impl AsFd, events: PollFlags, milliseconds: i32) -> PollFlags {
    let mut fds = [PollFd::new(fd.as_fd(), events)];
    let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(0) | Err(Errno::EINTR) => PollFlags::empty(),
        Ok(_) => fds[0].revents().unwrap_or(PollFlags::empty()),
        Err(e) => panic!("poll: {e}"),
    }
}
