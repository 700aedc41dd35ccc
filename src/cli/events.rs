//! `events`: what happens to connections, as it happens.

use std::fmt::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use clap::builder::{PossibleValue, PossibleValuesParser};
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::addr::{local, remote, role};
use super::live::{ENDS, Live, Woken, seconds, timestamp};
use crate::error::Result;
use crate::maps::events::{Events, KEEP, now};
use crate::maps::layout::{Event, ROLE_ACTIVE};
use crate::outcome::{EVENTS, Outcome, REASONS, WHYS, name};
use crate::output::{count, go_on, say};
use crate::state::Instance;
use crate::words::{from_one, one_port};

/// Options of `events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Goes on until it is ended by a signal, by --count or --duration, or with its reader.
One process at a time can read the events of an instance.

Example:  sockaccel events --kind demoted,ejected --port 6379")]
pub struct Args {
    /// Only events of this kind
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',', value_parser = kinds())]
    kinds: Vec<String>,
    /// Only events for this reason (see WHAT IS NEVER ACCELERATED in sockaccel(8))
    #[arg(long = "reason", value_name = "REASON", value_delimiter = ',', value_parser = reasons(), hide_possible_values = true)]
    reasons: Vec<String>,
    /// Only connections from or to this port
    #[arg(long, value_name = "PORT", value_parser = one_port)]
    port: Option<u16>,
    /// Only sockets of this process
    #[arg(long, value_name = "PID", value_parser = from_one::<u32>)]
    pid: Option<u32>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = from_one::<u64>)]
    count: Option<u64>,
    /// End after so long
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
}

fn kinds() -> PossibleValuesParser {
    EVENTS
        .iter()
        .map(|event| PossibleValue::new(event.name).help(event.text))
        .into()
}

fn reasons() -> PossibleValuesParser {
    let mut names: Vec<&str> = REASONS[1..]
        .iter()
        .chain(&WHYS[1..])
        .map(|outcome| outcome.name)
        .collect();
    names.sort_unstable();
    names.dedup();
    names.into()
}

impl Args {
    /// Bits of the kinds that are wanted; none named is all.
    fn mask(&self) -> u32 {
        (0..)
            .zip(EVENTS)
            .filter(|(_, event)| {
                self.kinds.is_empty() || self.kinds.iter().any(|k| k == event.name)
            })
            .fold(0, |mask, (bit, _)| mask | 1 << bit)
    }

    fn wants(&self, event: &Event) -> bool {
        let tuple = &event.tuple;
        (self.reasons.is_empty()
            || cause(event).is_some_and(|cause| self.reasons.iter().any(|r| r == cause.name)))
            && self
                .port
                .is_none_or(|port| port == tuple.local_port || port == tuple.remote_port)
            && self.pid.is_none_or(|pid| pid == event.tgid)
    }
}

/// Why it happened, where there is a why.
fn cause(event: &Event) -> Option<&'static Outcome> {
    let causes = match name(EVENTS, event.kind) {
        "skipped" | "ejected" => REASONS,
        "demoted" | "denied" => WHYS,
        _ => return None,
    };
    causes.get(event.cause as usize)
}

/// Runs `events`.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    // First: a signal from now on also switches off what is switched on here.
    let live = Live::new(ENDS)?;
    let events = {
        // Its lock must not be held for long.
        let instance = Instance::open(&context.place)?;
        Events::listen(&instance.dir(), args.mask())?
    };
    let end = args.duration.map(|duration| Instant::now() + duration);
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut keep = Instant::now() + KEEP;
    let mut told_lost = 0;
    loop {
        let until = end.map_or(keep, |end| end.min(keep));
        let mut over = match live.wait(until, Some(events.as_fd()))? {
            Woken::End => true,
            Woken::Input => false,
            Woken::Time => end.is_some_and(|end| Instant::now() >= end),
        };
        if over {
            events.stop()?;
        }
        let lines = lines(context, args, &events.take()?, &mut left)?;
        over |= !go_on(&lines)? || left == 0;
        let lost = events.lost()?;
        if lost > told_lost {
            over |= !tell_lost(context, lost - told_lost)?;
            told_lost = lost;
        }
        if over {
            return Ok(());
        }
        if Instant::now() >= keep {
            keep = Instant::now() + KEEP;
            if !events.keep()? {
                return Err(context.place.absent());
            }
        }
    }
}

/// What is wanted of these, a line each, as long as any are left to tell.
fn lines(context: &Context, args: &Args, events: &[Event], left: &mut u64) -> Result<String> {
    let (clock, wall) = (now()?, SystemTime::now());
    let mut text = String::new();
    for event in events.iter().filter(|event| args.wants(event)) {
        if *left == 0 {
            break;
        }
        *left -= 1;
        let ago = Duration::from_nanos(clock.saturating_sub(event.time));
        let time = timestamp(wall.checked_sub(ago).unwrap_or(wall));
        if context.output.json {
            text += &context.output.to_json(&told(&time, event))?;
        } else {
            text += &to_line(&time, event);
        }
        text.push('\n');
    }
    Ok(text)
}

/// One line for scripts.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Line<'a> {
    /// What happened to a socket.
    Event(Told<'a>),
    /// What could not be told.
    Lost(Lost<'a>),
}

/// An event.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Told<'a> {
    /// When.
    time: &'a str,
    /// Its kind, or `lost`.
    event: &'a str,
    /// Why, where there is a why.
    reason: Option<&'a str>,
    /// Of the socket, unique for the boot.
    cookie: String,
    /// Its own address and port.
    local: SocketAddr,
    /// The other end's.
    remote: SocketAddr,
    /// `active` connected, `passive` accepted.
    role: &'a str,
    /// Of the network namespace.
    netns_cookie: String,
    /// Of a process seen using it.
    pid: Option<u32>,
}

/// Events that came faster than they were read.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Lost<'a> {
    /// When that was noticed.
    time: &'a str,
    /// `lost`.
    event: &'a str,
    /// With `lost`: how many events.
    count: u64,
}

fn told<'a>(time: &'a str, event: &Event) -> Line<'a> {
    Line::Event(Told {
        time,
        event: name(EVENTS, event.kind),
        reason: cause(event).map(|cause| cause.name),
        cookie: event.cookie.to_string(),
        local: local(&event.tuple),
        remote: remote(&event.tuple),
        role: role(event.role),
        netns_cookie: event.netns_cookie.to_string(),
        pid: (event.tgid != 0).then_some(event.tgid),
    })
}

/// Both ways.
#[cfg(fuzzing)]
pub fn shown(event: &Event) {
    serde_json::to_string(&told("TIME", event)).expect("a line is JSON");
    assert!(to_line("TIME", event).starts_with("TIME "));
}

/// `TIME demoted 127.0.0.1:40001 -> 127.0.0.1:6379 pid 42 budget: ...`; the arrow
/// is from the client to the server, and the socket stands at the left.
fn to_line(time: &str, event: &Event) -> String {
    let mut line = format!(
        "{time} {:<8} {} {} {}",
        name(EVENTS, event.kind),
        local(&event.tuple),
        if event.role == ROLE_ACTIVE {
            "->"
        } else {
            "<-"
        },
        remote(&event.tuple),
    );
    if event.tgid != 0 {
        let _ = write!(line, " pid {}", event.tgid);
    }
    if let Some(cause) = cause(event) {
        let _ = write!(line, " {}: {}", cause.name, cause.text);
    }
    line
}

/// In the stream for scripts, beside it for people.
fn tell_lost(context: &Context, lost: u64) -> Result<bool> {
    if !context.output.json {
        say(format_args!(
            "{} lost: they came faster than they were read",
            count(lost, "event")
        ));
        return Ok(true);
    }
    let line = Line::Lost(Lost {
        time: &timestamp(SystemTime::now()),
        event: "lost",
        count: lost,
    });
    go_on(&format!("{}\n", context.output.to_json(&line)?))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use zerocopy::FromZeros;

    use super::*;
    use crate::maps::layout::Addr;

    fn args(options: &[&str]) -> Args {
        use clap::{Args as _, Command, FromArgMatches};
        let command = Args::augment_args(Command::new("events").no_binary_name(true));
        let matches = command.get_matches_from(options);
        Args::from_arg_matches(&matches).expect("options")
    }

    fn event(kind: &str, cause: u32) -> Event {
        let mut event = Event::new_zeroed();
        let kind = EVENTS.iter().position(|event| event.name == kind);
        event.kind = kind.and_then(|kind| kind.try_into().ok()).expect("a kind");
        event.cause = cause;
        event.tgid = 42;
        event.role = ROLE_ACTIVE;
        event.tuple.local =
            Addr::from("127.0.0.1".parse::<std::net::IpAddr>().expect("an address"));
        event.tuple.remote = event.tuple.local;
        event.tuple.local_port = 40001;
        event.tuple.remote_port = 6379;
        event
    }

    #[test]
    fn kinds_become_bits() {
        assert_eq!(args(&[]).mask(), (1 << EVENTS.len()) - 1);
        assert_eq!(args(&["--kind", "enrolled,paired"]).mask(), 0b101);
    }

    #[test]
    fn filters() {
        let budget = WHYS.iter().position(|why| why.name == "budget").unwrap();
        let demoted = event("demoted", budget.try_into().unwrap());
        for (options, wanted) in [
            (&[][..], true),
            (&["--reason", "budget"], true),
            (&["--reason", "behind,budget"], true),
            (&["--reason", "blocking_reader"], false),
            (&["--port", "6379"], true),
            (&["--port", "40001"], true),
            (&["--port", "80"], false),
            (&["--pid", "42"], true),
            (&["--pid", "43"], false),
            (&["--pid", "42", "--port", "80"], false),
        ] {
            assert_eq!(args(options).wants(&demoted), wanted, "{options:?}");
        }
        // What has no reason is for none.
        assert!(!args(&["--reason", "budget"]).wants(&event("promoted", 0)));
    }

    #[test]
    fn one_line_tells_all() {
        let skipped = event("skipped", 2);
        assert_eq!(
            to_line("TIME", &skipped),
            "TIME skipped  127.0.0.1:40001 -> 127.0.0.1:6379 pid 42 \
             blocking_reader: the program reads from a blocking socket"
        );
        let mut paired = event("paired", 0);
        paired.role = 2;
        paired.tgid = 0;
        assert_eq!(
            to_line("TIME", &paired),
            "TIME paired   127.0.0.1:40001 <- 127.0.0.1:6379"
        );
        let json = json!(told("TIME", &skipped));
        assert_eq!(json["reason"], "blocking_reader");
        assert_eq!(json!(told("TIME", &paired))["pid"], Value::Null);
    }
}
