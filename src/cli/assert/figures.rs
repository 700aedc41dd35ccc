//! The figures that `assert` compares: of the instance since it was enabled, or
//! of some of its open sockets.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::maps::layout::{Dump, ROLE_ACTIVE};
use crate::maps::{Stats, sockets};
use crate::outcome::REASONS;
use crate::state::Instance;
use crate::state::cgroup::{self, Cgroup};
use crate::state::process::sockets_among;

/// What can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Redirected bytes among those of enrolled sockets, 0 to 1.
    RedirectedShare,
    /// Bytes.
    RedirectedBytes,
    /// Messages.
    RedirectedMessages,
    /// Bytes.
    StackBytes,
    /// Messages.
    StackMessages,
    /// Sockets.
    Enrolled,
    /// Sockets.
    Paired,
    /// Sockets, the ejected ones among them.
    Skipped,
}

impl Figure {
    /// Name in JSON; the option has dashes.
    pub fn name(self) -> &'static str {
        match self {
            Self::RedirectedShare => "redirected_share",
            Self::RedirectedBytes => "redirected_bytes",
            Self::RedirectedMessages => "redirected_messages",
            Self::StackBytes => "stack_bytes",
            Self::StackMessages => "stack_messages",
            Self::Enrolled => "enrolled",
            Self::Paired => "paired",
            Self::Skipped => "skipped",
        }
    }
}

/// Whose sockets count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// Connections to servers on this port.
    Port(u16),
    /// Sockets that processes in this cgroup, or below it, have open.
    Cgroup(PathBuf),
    /// Sockets that this process has open.
    Pid(u32),
}

impl FromStr for Whose {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a port (6379), a cgroup (/PATH) or pid:PID");
        if let Some(path) = text.strip_prefix("cgroup:") {
            return Ok(Self::Cgroup(path.into()));
        }
        if text.contains('/') {
            return Ok(Self::Cgroup(text.into()));
        }
        if let Some(pid) = text.strip_prefix("pid:") {
            return pid.parse().map(Self::Pid).map_err(|_| bad());
        }
        match text.strip_prefix("port:").unwrap_or(text).parse() {
            Ok(port) if port > 0 => Ok(Self::Port(port)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port:{port}"),
            Self::Cgroup(path) => write!(f, "cgroup:{}", path.display()),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
        }
    }
}

/// All of them at one moment.
#[derive(Debug)]
pub struct Figures {
    /// Each.
    pub by_name: ByName,
    /// Of the whole instance; not with `--for`.
    pub stats: Option<Stats>,
}

/// The figures, as JSON has them.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ByName {
    /// Redirected bytes among those of enrolled sockets, 0 to 1.
    redirected_share: f64,
    /// Bytes sent past the stack.
    redirected_bytes: u64,
    /// Messages.
    redirected_messages: u64,
    /// Bytes of enrolled sockets that went by the stack.
    stack_bytes: u64,
    /// Messages.
    stack_messages: u64,
    /// Sockets.
    enrolled: u64,
    /// Sockets that found their peer.
    paired: u64,
    /// Sockets skipped or ejected; null with `--for`.
    skipped: Option<u64>,
}

impl Figures {
    /// Of the instance, or of some of its open sockets.
    pub fn read(instance: &Instance, whose: Option<&Whose>) -> Result<Self> {
        let Some(whose) = whose else {
            let stats = Stats::read(&instance.dir())?;
            let by_name = ByName {
                redirected_share: share(stats.redirected_bytes, stats.stack_bytes),
                redirected_bytes: stats.redirected_bytes,
                redirected_messages: stats.redirected_messages,
                stack_bytes: stats.stack_bytes,
                stack_messages: stats.stack_messages,
                enrolled: stats.enrolled(),
                paired: stats.paired,
                skipped: Some(stats.kept_out().iter().sum()),
            };
            return Ok(Self {
                by_name,
                stats: Some(stats),
            });
        };
        let records = sockets::read(&instance.dir())?;
        let chosen = choose(&instance.dir(), whose, &records)?;
        let sum = |field: fn(&Dump) -> u64| chosen.iter().map(|record| field(record)).sum();
        let redirected_bytes = sum(|r| r.sock.redirected_bytes);
        let stack_bytes = sum(|r| r.sock.stack_bytes);
        let by_name = ByName {
            redirected_share: share(redirected_bytes, stack_bytes),
            redirected_bytes,
            redirected_messages: sum(|r| r.sock.redirected_messages),
            stack_bytes,
            stack_messages: sum(|r| r.sock.stack_messages),
            enrolled: chosen.len() as u64,
            paired: sum(|r| u64::from(r.sock.peer_cookie != 0)),
            skipped: None,
        };
        Ok(Self {
            by_name,
            stats: None,
        })
    }

    /// One of them.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn value(&self, figure: Figure) -> f64 {
        let all = &self.by_name;
        let count = match figure {
            Figure::RedirectedShare => return all.redirected_share,
            Figure::RedirectedBytes => all.redirected_bytes,
            Figure::RedirectedMessages => all.redirected_messages,
            Figure::StackBytes => all.stack_bytes,
            Figure::StackMessages => all.stack_messages,
            Figure::Enrolled => all.enrolled,
            Figure::Paired => all.paired,
            Figure::Skipped => all.skipped.unwrap_or(0),
        };
        count as f64
    }

    /// Sockets skipped or ejected for this reason, or for any.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn kept_out(&self, reason: &str) -> f64 {
        let Some(stats) = &self.stats else {
            return 0.0;
        };
        let count: u64 = stats
            .kept_out()
            .iter()
            .zip(REASONS)
            .filter(|(_, known)| reason == "any" || known.name == reason)
            .map(|(count, _)| count)
            .sum();
        count as f64
    }

    /// Sockets that all this is about.
    pub fn sockets(&self) -> u64 {
        let seen = self.stats.as_ref().map(|stats| stats.seen);
        seen.unwrap_or(self.by_name.enrolled)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn share(redirected: u64, stack: u64) -> f64 {
    redirected as f64 / (redirected + stack).max(1) as f64
}

fn choose<'a>(dir: &Path, whose: &Whose, records: &'a [Dump]) -> Result<Vec<&'a Dump>> {
    let pids = match whose {
        Whose::Port(port) => {
            return Ok(records.iter().filter(|r| serves(r, *port)).collect());
        }
        Whose::Pid(pid) => {
            if !Path::new(&format!("/proc/{pid}")).exists() {
                return Err(Error::Failed(format!("there is no process {pid}")));
            }
            vec![*pid]
        }
        Whose::Cgroup(path) => cgroup::members_below(&Cgroup::open(path)?.path),
    };
    let open = sockets_among(dir, pids);
    let inodes: HashSet<u64> = open.into_iter().map(|socket| socket.inode).collect();
    Ok(records
        .iter()
        .filter(|r| inodes.contains(&u64::from(r.inode)))
        .collect())
}

fn serves(record: &Dump, port: u16) -> bool {
    let tuple = &record.sock.tuple;
    if record.sock.role == ROLE_ACTIVE {
        tuple.remote_port == port
    } else {
        tuple.local_port == port || tuple.listen_port == port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose() {
        for (text, expected) in [
            ("6379", Some(Whose::Port(6379))),
            ("port:80", Some(Whose::Port(80))),
            ("pid:1", Some(Whose::Pid(1))),
            (
                "/sys/fs/cgroup/web",
                Some(Whose::Cgroup("/sys/fs/cgroup/web".into())),
            ),
            ("./web", Some(Whose::Cgroup("./web".into()))),
            ("cgroup:web", Some(Whose::Cgroup("web".into()))),
            ("0", None),
            ("65536", None),
            ("pid:x", None),
            ("web", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
