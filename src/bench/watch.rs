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
            let stdout = peer.0.stdout.as_mut().expect("stdout is piped");
            let got = stdout
                .read(&mut some)
                .map_err(|err| Error::io("reading from a child", err))?;
            if got == 0 {
                return Err(Error::Peer(format!(
                    "a child ended without an answer: {}",
                    peer.finish(self, until)?
                )));
            }
            line.extend_from_slice(&some[..got]);
        }
        Ok(String::from_utf8_lossy(&line).trim().to_owned())
    }

    fn wait(&self, peer: &Peer, until: Instant) -> Result<(), Error> {
        let stdout = peer.0.stdout.as_ref().expect("stdout is piped");
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
            return Err(Error::Peer("a child is stuck".to_owned()));
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
pub struct Peer(Child);

impl Peer {
    pub fn start(command: &mut Command) -> Result<Self, Error> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|err| Error::io("starting a child", err))?;
        Ok(Self(child))
    }

    pub fn finish(&mut self, watch: &Watch, until: Instant) -> Result<ExitStatus, Error> {
        loop {
            if let Some(status) = self
                .0
                .try_wait()
                .map_err(|err| Error::io("waiting for a child", err))?
            {
                return Ok(status);
            }
            watch.check()?;
            if Instant::now() >= until {
                return Err(Error::Peer("a child does not end".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
