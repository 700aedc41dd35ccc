//! Waiting for children without missing a signal: SIGINT and SIGTERM become
//! errors, so that every guard runs on the way out.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Error;

/// SIGINT, SIGTERM and SIGHUP are blocked, and noticed, as long as this lives.
#[derive(Debug)]
pub struct Watch {
    before: SigSet,
    signals: SignalFd,
}

impl Watch {
    /// From now on.
    pub fn new() -> Result<Self, Error> {
        let set = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect::<SigSet>();
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|err| Error::io("signalfd", err))?;
        let before = SigSet::thread_get_mask().map_err(|err| Error::io("signal mask", err))?;
        set.thread_block()
            .map_err(|err| Error::io("signal mask", err))?;
        Ok(Self { before, signals })
    }

    /// Has somebody asked us to stop?
    pub fn check(&self) -> Result<(), Error> {
        let signal = self
            .signals
            .read_signal()
            .map_err(|err| Error::io("signalfd", err))?;
        match signal {
            None => Ok(()),
            Some(info) => Err(Error::Interrupted(
                info.ssi_signo
                    .try_into()
                    .ok()
                    .and_then(|number: i32| Signal::try_from(number).ok())
                    .unwrap_or(Signal::SIGTERM),
            )),
        }
    }

    /// The next line that a child prints. Children print a line at once, and
    /// nothing after it before they are asked.
    pub fn line(&self, peer: &mut Peer, until: Instant) -> Result<String, Error> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            self.wait(peer, until)?;
            let mut some = [0; 4096];
            let stdout = peer.child.stdout.as_mut().expect("stdout is piped");
            let got = stdout
                .read(&mut some)
                .map_err(|err| Error::io("reading from a child", err))?;
            if got == 0 {
                return Err(peer.failure(self, until));
            }
            line.extend_from_slice(&some[..got]);
        }
        Ok(String::from_utf8_lossy(&line).trim().to_owned())
    }

    fn wait(&self, peer: &Peer, until: Instant) -> Result<(), Error> {
        let stdout = peer.child.stdout.as_ref().expect("stdout is piped");
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let ready = poll(
            &mut [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(stdout.as_fd(), PollFlags::POLLIN),
            ],
            timeout,
        )
        .map_err(|err| Error::io("poll", err))?;
        self.check()?;
        if ready == 0 {
            return Err(Error::Sample(format!("the {} is stuck", peer.name)));
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// A child process, killed and waited for in any case.
#[derive(Debug)]
pub struct Peer {
    name: &'static str,
    child: Child,
}

impl Peer {
    /// Starts it. Its standard input stays open until [`Peer::let_go`].
    pub fn start(name: &'static str, command: &mut Command) -> Result<Self, Error> {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|err| Error::io("starting a child", err))?;
        Ok(Self { name, child })
    }

    /// Closes its standard input: nothing more is to come.
    pub fn let_go(&mut self) {
        self.child.stdin = None;
    }

    /// Waits for its successful end.
    pub fn finish(&mut self, watch: &Watch, until: Instant) -> Result<(), Error> {
        let status = self.ended(watch, until)?;
        if status.success() {
            return Ok(());
        }
        Err(self.said(status))
    }

    /// Why it ended, for one that should not have.
    fn failure(&mut self, watch: &Watch, until: Instant) -> Error {
        match self.ended(watch, until) {
            Ok(status) => self.said(status),
            Err(err) => err,
        }
    }

    fn ended(&mut self, watch: &Watch, until: Instant) -> Result<ExitStatus, Error> {
        loop {
            if let Some(status) = self
                .child
                .try_wait()
                .map_err(|err| Error::io("waiting for a child", err))?
            {
                // The signal that ended it may be ours, too.
                watch.check()?;
                return Ok(status);
            }
            watch.check()?;
            if Instant::now() >= until {
                return Err(Error::Sample(format!("the {} does not end", self.name)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn said(&mut self, status: ExitStatus) -> Error {
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.read_to_string(&mut text);
        }
        let text = text.trim().trim_start_matches("sockaccel: ");
        Error::Sample(format!("the {} failed ({status}): {text}", self.name))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
