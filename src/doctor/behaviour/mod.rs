//! How accelerated connections behave on this kernel: real traffic on
//! throw-away sockets, in a network namespace, a cgroup and an instance of our
//! own. Each check runs in a child process, first on plain TCP, then on an
//! accelerated connection, and both must tell the same story.

mod arena;
mod backpressure;
mod drain;
mod fionread;
mod half_close;
mod last_data;
mod link;
mod readiness;
mod recv_flags;
mod redirect;
mod sendfile;
mod signals;
mod splice;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process;
use std::process::Command;

use clap::Args;
use nix::sched::CloneFlags;
use nix::sched::unshare;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde::Serialize;

pub use arena::Arena;
use link::Link;

use super::Risk;
use super::finding::Finding;
use super::finding::Topic;
use super::finding::Verdict;
use super::guard::Guard;
use super::guard::Stop;
use crate::maps::Stats;
use crate::maps::sockets;
use crate::state::Place;
use crate::sys;

/// Name of the hidden subcommand whose body is [`run_peer`].
pub const PEER_COMMAND: &str = "doctor-peer";

/// How the two programs of a connection work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Programs {
    /// Non-blocking sockets.
    EventLoops,
    /// Blocking sockets, which are accelerated on request.
    Blocking,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Its name, and what the result means.
    pub topic: Topic,
    /// Tells the story.
    run: fn(&mut Link) -> io::Result<()>,
    /// Whose sockets.
    programs: Programs,
    /// Messages went each way before, so that its own are redirected, or it
    /// shows nothing. Otherwise it begins with data that TCP carries.
    redirected: bool,
    /// Redirected messages are what it is about: none is no lack of a test, but
    /// its result.
    shows_redirect: bool,
    /// The verdict on another story than plain TCP's.
    if_not: Verdict,
    /// What was accepted, if that does not fail.
    risk: Option<Risk>,
}

/// A check between event loops whose difference concerns few programs.
const fn check(
    name: &'static str,
    run: fn(&mut Link) -> io::Result<()>,
    sound: &'static str,
    otherwise: &'static str,
) -> Check {
    Check {
        topic: Topic {
            name,
            sound,
            otherwise,
        },
        run,
        programs: Programs::EventLoops,
        redirected: true,
        shows_redirect: false,
        if_not: Verdict::Differs,
        risk: None,
    }
}

/// All checks, in the order in which they run.
pub const CHECKS: &[Check] = &[
    redirect::CHECK,
    redirect::TO_WAITING,
    fionread::REDIRECTED,
    fionread::TCP,
    readiness::POLL,
    readiness::LEVEL,
    readiness::EDGE,
    half_close::CHECK,
    last_data::BEFORE_CLOSE,
    last_data::AT_TCP_CLOSE,
    signals::CHECK,
    splice::CHECK,
    sendfile::CHECK,
    recv_flags::PEEK,
    recv_flags::WAITALL,
    backpressure::CHECK,
    drain::CHECK,
];

/// What a child tells of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    /// Both stories.
    Stories {
        plain: Story,
        accelerated: Story,
        redirected: bool,
    },
    /// It could not be tried, for this reason.
    NotTried(String),
    /// Nothing was redirected, so nothing was shown.
    NotRedirected,
    /// The sockets were not enrolled, so nothing was shown.
    NotEnrolled,
}

/// What the two programs saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Story {
    text: String,
    aside: String,
}

/// Runs all checks. `allowed` risks make no check fail.
///
/// # Errors
///
/// [`Stop::Interrupted`]; everything made is removed all the same.
pub fn run(guard: &Guard, place: &Place, allowed: &[Risk]) -> Result<Vec<Finding>, Stop> {
    let arena = match Arena::make(guard, place) {
        Ok(arena) => arena,
        Err(arena::Trouble::Stop(stop @ Stop::Interrupted(_))) => return Err(stop),
        Err(trouble) => return Ok(none(&trouble.to_string())),
    };
    let mut findings = Vec::new();
    for check in CHECKS {
        findings.push(ask(guard, &arena, check, allowed)?);
    }
    Ok(findings)
}

/// The rows when none of the checks can run.
pub fn none(reason: &str) -> Vec<Finding> {
    CHECKS
        .iter()
        .map(|check| check.topic.finding(Verdict::NotChecked, reason))
        .collect()
}

fn ask(guard: &Guard, arena: &Arena, check: &Check, allowed: &[Risk]) -> Result<Finding, Stop> {
    let mut command = arena.command();
    command.args([PEER_COMMAND, "--check", check.topic.name, "--cgroup"]);
    command.arg(arena.cgroup());
    // A check takes some 50 ms; one that takes this long hangs.
    let long = guard.time() / 3;
    match guard.run(&mut command, long) {
        Ok(answer) => Ok(if let Ok(told) = serde_json::from_str(&answer.stdout) {
            check.judge(&told, allowed)
        } else {
            let said = answer.stderr.lines().next().unwrap_or("no answer");
            check.topic.finding(Verdict::NotChecked, said)
        }),
        // A program of the user's would hang in the same way.
        Err(stop @ Stop::Hung(limit)) if limit == long => {
            Ok(check.topic.finding(check.if_not, format!("hangs: {stop}")))
        }
        Err(Stop::Hung(_)) => Ok(check.topic.finding(Verdict::NotChecked, "no time was left")),
        Err(stop) => Ok(check.topic.finding(Verdict::NotChecked, stop.reason()?)),
    }
}

impl Check {
    fn not_redirected(&self) -> Finding {
        let verdict = if self.shows_redirect {
            self.if_not
        } else {
            Verdict::NotChecked
        };
        self.topic.finding(verdict, "nothing was redirected")
    }

    fn judge(&self, told: &Told, allowed: &[Risk]) -> Finding {
        let (plain, accelerated) = match told {
            Told::NotTried(reason) => {
                return self.topic.finding(Verdict::NotChecked, reason);
            }
            Told::NotEnrolled => {
                return self
                    .topic
                    .finding(Verdict::NotChecked, "the sockets were not enrolled");
            }
            Told::NotRedirected => return self.not_redirected(),
            Told::Stories {
                plain,
                accelerated,
                redirected,
            } => {
                if self.redirected && !redirected {
                    return self.not_redirected();
                }
                (plain, accelerated)
            }
        };
        let aside = |story: &Story| match story.aside.as_str() {
            "" => String::new(),
            aside => format!(" ({aside})"),
        };
        if plain.text == accelerated.text {
            let found = if accelerated.aside.is_empty() {
                "as plain TCP".to_owned()
            } else {
                format!(
                    "as plain TCP ({}, on plain TCP {})",
                    accelerated.aside, plain.aside
                )
            };
            return self.topic.finding(Verdict::Ok, found);
        }
        let found = format!(
            "{}{}; on plain TCP {}{}",
            accelerated.text,
            aside(accelerated),
            plain.text,
            aside(plain)
        );
        let finding = self.topic.finding(self.if_not, found);
        finding.unless(self.risk, allowed)
    }
}

/// What a child is to do.
#[derive(Debug, Clone, Args)]
pub struct PeerOptions {
    /// The check
    #[arg(long)]
    check: String,
    /// That of the cgroups of plain and of accelerated sockets
    #[arg(long)]
    cgroup: PathBuf,
}

/// Runs one check on plain TCP and on an accelerated connection, and prints
/// both stories as JSON.
///
/// # Errors
///
/// When there is no such check, or standard output is gone.
pub fn run_peer(options: &PeerOptions, place: &Place) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let check = CHECKS
        .iter()
        .find(|check| check.topic.name == options.check)
        .ok_or_else(|| io::Error::other(format!("no check is called {}", options.check)))?;
    let told = try_both(check, options, place).unwrap_or_else(|e| Told::NotTried(e.to_string()));
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

fn try_both(check: &Check, options: &PeerOptions, place: &Place) -> io::Result<Told> {
    let step = |what: &'static str| move |e: io::Error| io::Error::other(format!("{what}: {e}"));
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .and_then(|()| Ok(sys::probe::raise_loopback()?))
        .map_err(step("a network namespace"))?;
    // Sockets are of the cgroup that their maker is in.
    let join = |cgroup: PathBuf| {
        fs::write(cgroup.join("cgroup.procs"), process::id().to_string())
            .map_err(step("joining the cgroup"))
    };
    join(arena::plain(&options.cgroup))?;
    let mut plain = Link::open(check.programs).map_err(step("a connection"))?;
    if check.redirected {
        plain.warm_up().map_err(step("plain TCP"))?;
    }
    let plain = tell(check, plain);

    join(arena::accelerated(&options.cgroup))?;
    let mut link = Link::open(check.programs).map_err(step("a connection"))?;
    let enrolled = sockets::read(&place.dir()).map_err(|e| io::Error::other(e.to_string()))?;
    if enrolled.len() < 2 {
        return Ok(Told::NotEnrolled);
    }
    if check.redirected && !link.warm_up().map_err(step("accelerated"))? {
        return Ok(Told::NotRedirected);
    }
    let mut disable = Command::new(std::env::current_exe()?);
    arena::name_instance(&mut disable, place);
    disable.arg("disable");
    link.disable = Some(disable);
    let counted = || Stats::read(&place.dir()).map(|stats| stats.redirected_messages);
    let before = counted();
    let accelerated = tell(check, link);
    let redirected = match (before, counted()) {
        (Ok(before), Ok(after)) => after > before,
        // Disabled meanwhile; before that it was shown to be redirected.
        _ => true,
    };
    Ok(Told::Stories {
        plain,
        accelerated,
        redirected,
    })
}

fn tell(check: &Check, mut link: Link) -> Story {
    if let Err(error) = (check.run)(&mut link) {
        link.note("error", error.to_string());
    }
    Story {
        text: std::mem::take(&mut link.story),
        aside: std::mem::take(&mut link.aside),
    }
}

#[cfg(test)]
mod tests;
