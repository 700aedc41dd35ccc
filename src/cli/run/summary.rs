//! What became of the command's connections.

use std::borrow::Cow;
use std::ffi::OsString;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::reasons::{self, Counted};
use crate::cli::stats;
use crate::maps::Stats;
use crate::outcome::{REASONS, index};
use crate::output::count;
use crate::remedy::Remedies;
use crate::state::Place;
use crate::state::temporary::{Remains, Stale};

/// Processes that are named at most.
const NAMED: usize = 8;
const NO_LOCAL_PEER: usize = index(REASONS, "no_local_peer") as usize;

/// What became of the command's connections.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Told<'a> {
    /// The command and its arguments.
    command: Vec<Cow<'a, str>>,
    /// The instance it ran in, which is gone unless it drains.
    instance: &'a str,
    /// That of the command, or 128 and the signal that ended it.
    exit_status: u8,
    /// How long it ran.
    seconds: f64,
    /// Redirected bytes among those of enrolled sockets, 0 to 1; null if nothing was sent.
    redirected_share: Option<f64>,
    /// As `stats` prints them.
    stats: stats::Counters,
    /// The most frequent reasons.
    not_accelerated: Vec<Counted>,
    /// Pids of its processes that still run, as plain TCP.
    left_processes: &'a [u32],
    /// Sockets of theirs that wait for redirected data to be read: the instance drains.
    draining_sockets: usize,
}

/// Everything there is to tell.
#[derive(Debug)]
pub struct Summary<'a> {
    pub command: &'a [OsString],
    pub place: &'a Place,
    pub status: u8,
    pub elapsed: Duration,
    pub stats: Stats,
    pub remains: Remains,
}

impl Summary<'_> {
    /// See sockaccel(8), JSON FIELDS.
    pub fn to_json(&self) -> Told<'_> {
        let words = self.command.iter();
        let remedies = Remedies::of_run();
        Told {
            command: words.map(|word| word.to_string_lossy()).collect(),
            instance: &self.place.instance,
            exit_status: self.status,
            seconds: self.elapsed.as_secs_f64(),
            redirected_share: self.stats.redirected_share(),
            stats: stats::to_json(&self.stats),
            not_accelerated: reasons::top(&self.stats)
                .iter()
                .map(|reason| reason.to_json(&remedies))
                .collect(),
            left_processes: &self.remains.processes,
            draining_sockets: self.remains.draining,
        }
    }

    /// For people, on standard error.
    pub fn to_text(&self) -> String {
        let stats = &self.stats;
        let mut lines = vec![format!("sockaccel: {}", headline(stats))];
        if stats.seen > 0 {
            lines.push(format!(
                "  {} of {} sockets were enrolled; {} of {} messages and {} of {} bytes of theirs were redirected",
                stats.enrolled(),
                stats.seen,
                stats.redirected_messages,
                stats.redirected_messages + stats.stack_messages,
                stats.redirected_bytes,
                stats.redirected_bytes + stats.stack_bytes,
            ));
        }
        let remedies = Remedies::of_run();
        for reason in reasons::top(stats) {
            let text = reason.to_text(&reason.remedy(&remedies));
            lines.extend(text.lines().map(|line| format!("  {line}")));
        }
        if !self.remains.processes.is_empty() {
            lines.push(format!(
                "  left running: {}; connections go on as plain TCP",
                processes(&self.remains.processes)
            ));
        }
        if self.remains.draining > 0 {
            lines.push(format!(
                "  left draining, as redirected data is not read yet: {} of instance {name}; the next run after that takes it away\n  \
                 To see what waits:  sockaccel status{option}",
                count(self.remains.draining as u64, "socket"),
                name = self.place.instance,
                option = self.place.option(),
            ));
        }
        lines.join("\n")
    }
}

fn headline(stats: &Stats) -> String {
    let outside = stats.kept_out()[NO_LOCAL_PEER];
    if stats.seen == 0 {
        "the command established no TCP connection".to_owned()
    } else if let Some(share) = stats
        .redirected_share()
        .filter(|_| stats.redirected_bytes > 0)
    {
        format!(
            "{:.1} % of the bytes that enrolled sockets sent bypassed the TCP/IP stack",
            100.0 * share
        )
    } else if outside == stats.seen {
        "nothing was accelerated: the other end of every connection is outside of the command"
            .to_owned()
    } else {
        "nothing was accelerated".to_owned()
    }
}

fn processes(pids: &[u32]) -> String {
    let named: Vec<String> = pids.iter().take(NAMED).map(u32::to_string).collect();
    let more = if pids.len() > NAMED { ", ..." } else { "" };
    format!(
        "{} of the command ({}{more})",
        count(pids.len() as u64, "process"),
        named.join(", ")
    )
}

/// One line on what an earlier run had left.
pub fn swept(stale: &Stale) -> String {
    let cgroup = stale.cgroup.display();
    if stale.removed {
        return format!("removed what an earlier run had left: {cgroup}");
    }
    let plain = if stale.disabled {
        ": they are not accelerated any more"
    } else {
        ""
    };
    format!(
        "a killed run has left processes in {cgroup}{plain}\n  \
         The cgroup goes with the next run after they have ended."
    )
}
