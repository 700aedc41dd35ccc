//! Network namespaces of the benchmark's own. They have no name: the last
//! descriptor that is closed, also by a crash, takes them and their links away.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::Error;
use crate::state::netns::within;
use crate::sys::probe::raise_loopback;

/// A namespace with `lo` up.
#[derive(Debug)]
pub struct Namespace(File);

/// What went out of interfaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames, headers included.
    pub bytes: u64,
    /// What the interface counts: with segmentation offload up to 64 KiB each.
    pub packets: u64,
}

impl Namespace {
    /// A new one.
    pub fn new() -> Result<Self, Error> {
        let made = thread::spawn(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            raise_loopback()?;
            File::open("/proc/thread-self/ns/net")
        })
        .join()
        .unwrap_or_else(|panic| resume_unwind(panic));
        let this = Self(made.map_err(|err| Error::io("making a network namespace", err))?);
        // Router solicitations would count as traffic. No IPv6 is as quiet.
        for conf in ["default", "all"] {
            let _ = this.sysctl(&format!("net/ipv6/conf/{conf}/disable_ipv6"), "1");
        }
        Ok(this)
    }

    /// Where others can open it as long as this process lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd()))
    }

    /// Runs the closure on a thread that is in the namespace.
    fn enter<T: Send>(&self, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        within(&self.0, body)
    }

    /// Sets a variable of `/proc/sys`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<(), Error> {
        self.enter(|| fs::write(format!("/proc/sys/{name}"), value))
            .map_err(|err| Error::io(format!("setting {name}"), err))
    }

    /// Runs a program inside.
    pub fn run(
        &self,
        place: &'static str,
        (program, package): (&'static str, &'static str),
        args: &[&str],
        input: &str,
    ) -> Result<(), Error> {
        let output = self
            .enter(|| {
                let mut child = Command::new(program)
                    .args(args)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()?;
                if let Some(mut stdin) = child.stdin.take() {
                    // One that has failed already tells why itself.
                    let _ = stdin.write_all(input.as_bytes());
                }
                child.wait_with_output()
            })
            .map_err(|err| match err.kind() {
                io::ErrorKind::NotFound => Error::Missing {
                    program,
                    package,
                    place,
                },
                _ => Error::io(format!("starting {program}"), err),
            })?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Command {
            text: format!(
                "{program} {}: {}: {}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            // Not one of ours.
            code: None,
        })
    }

    /// What went out of all its interfaces, ever.
    pub fn sent(&self) -> Result<Sent, Error> {
        let table = self
            .enter(|| fs::read_to_string("/proc/thread-self/net/dev"))
            .map_err(|err| Error::io("reading /proc/net/dev", err))?;
        Ok(sum(&table, |_| true))
    }
}

/// What went out of `lo` of the namespace that this process is in.
pub fn sent_by_loopback() -> Result<Sent, Error> {
    let table = fs::read_to_string("/proc/self/net/dev")
        .map_err(|err| Error::io("reading /proc/net/dev", err))?;
    Ok(sum(&table, |interface| interface == "lo"))
}

/// Of `/proc/net/dev`: after the name eight numbers received, then eight sent.
fn sum(table: &str, wanted: impl Fn(&str) -> bool) -> Sent {
    let mut sent = Sent::default();
    for line in table.lines() {
        let Some((interface, numbers)) = line.split_once(':') else {
            continue;
        };
        if wanted(interface.trim()) {
            let mut numbers = numbers
                .split_whitespace()
                .skip(8)
                .map_while(|n| n.parse().ok());
            sent.bytes += numbers.next().unwrap_or(0);
            sent.packets += numbers.next().unwrap_or(0);
        }
    }
    sent
}

impl std::ops::Add for Sent {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            packets: self.packets + other.packets,
        }
    }
}

impl std::ops::Sub for Sent {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(before.bytes),
            packets: self.packets.saturating_sub(before.packets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Sent, sum};

    #[test]
    fn only_what_was_sent_counts() {
        let table = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000 10 0 0 0 0 0 0 2000 20 0 0 0 0 0 0
  eth0:   1   2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
";
        let one = Sent {
            bytes: 2000,
            packets: 20,
        };
        let both = Sent {
            bytes: 2009,
            packets: 30,
        };
        assert_eq!(sum(table, |interface| interface == "lo"), one);
        assert_eq!(sum(table, |_| true), both);
        assert_eq!((both - one).packets, 10);
    }
}
