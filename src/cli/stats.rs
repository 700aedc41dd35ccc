//! `stats`: the counters, once or again and again, for people, scripts and
//! monitoring systems.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::Context;
use super::live::{ENDS, Live, Woken, seconds, timestamp};
use super::metrics::to_openmetrics;
use crate::error::{Error, Result, on};
use crate::maps::Stats;
use crate::outcome::{REASONS, WHYS, counted};
use crate::output::{Counts, by_name, go_on, table, write};
use crate::state::Instance;

/// Options of `stats`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:  sockaccel stats --watch 5
Example:  sockaccel stats --format openmetrics --output /var/lib/node_exporter/sockaccel.prom")]
pub struct Args {
    /// How to print [default: table, with --json json]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Again each so many seconds, with what has changed [default: 1]
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = seconds,
        num_args = 0..=1,
        default_missing_value = "1",
        conflicts_with = "output"
    )]
    watch: Option<Duration>,
    /// Write to this file, which is replaced as a whole
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For scripts
    Json,
    /// For monitoring systems
    Openmetrics,
}

/// Runs `stats`.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let format = match (args.format, context.output.json) {
        (None, false) => Format::Table,
        (None | Some(Format::Json), _) => Format::Json,
        (Some(format), false) => format,
        (Some(_), true) => {
            return Err(Error::Usage(
                "--json is --format json, and cannot be combined with another format".to_owned(),
            ));
        }
    };
    if let Some(interval) = args.watch {
        if format == Format::Openmetrics {
            return Err(Error::Usage(
                "--watch prints tables or JSON; monitoring systems find out what has changed"
                    .to_owned(),
            ));
        }
        return watch(context, interval, format);
    }
    let stats = read(context)?;
    let text = match format {
        Format::Table => to_table(&stats),
        Format::Json => context.output.to_json(&to_json(&stats))?,
        Format::Openmetrics => to_openmetrics(&stats, &context.place.instance)?,
    };
    match &args.output {
        Some(path) => replace(path, &format!("{}\n", text.trim_end())),
        None if format == Format::Table => context.output.print(&(), || text),
        None => write(&text),
    }
}

fn read(context: &Context) -> Result<Stats> {
    let instance = Instance::open(&context.place)?;
    Stats::read(&instance.dir())
}

/// Readers see the old text or the new one, never a part. What is no ordinary
/// file must not be replaced by one.
fn replace(path: &Path, text: &str) -> Result<()> {
    let path = match fs::canonicalize(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(e) => return Err(on("look at", path)(e)),
    };
    if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
        return Err(Error::Usage(format!(
            "{} is not an ordinary file: --output replaces its file\n  To write elsewhere:  sockaccel stats ... > {}",
            path.display(),
            path.display()
        )));
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".sockaccel-")
        // Its reader is another user.
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(on("make a file in", dir))?;
    file.write_all(text.as_bytes())
        .map_err(on("write to", file.path()))?;
    file.persist(&path)
        .map(drop)
        .map_err(|e| on("replace", &path)(e.error))
}

/// The counters.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Counters {
    /// Sockets that became ESTABLISHED in an enabled cgroup.
    seen: u64,
    /// Of these, enrolled and not ejected since.
    enrolled: u64,
    /// Of these, open.
    enrolled_now: u64,
    /// Sockets that found their peer.
    paired: u64,
    /// Sockets taken out again, by reason.
    ejected: Counts,
    /// Sockets never enrolled, by reason.
    skipped: Counts,
    /// Messages handed straight to their receiver.
    redirected_messages: u64,
    /// Their bytes.
    redirected_bytes: u64,
    /// Messages of enrolled sockets that went by the stack, at least: after a send that
    /// took only a part the kernel does not ask for the rest.
    stack_messages: u64,
    /// Their bytes, at least.
    stack_bytes: u64,
    /// Messages on the stack, by reason.
    stack_reasons: Counts,
    /// Directions that went from stack to redirect.
    promotions: u64,
    /// Directions that went back, by reason.
    demotions: Counts,
    /// Of these, at the hard cap with several senders.
    demotions_in_company: u64,
    /// Calls of setsockopt(2) refused.
    refused_options: u64,
    /// Events that came faster than `events` read them.
    events_lost: u64,
}

/// The counters, as JSON has them.
pub fn to_json(stats: &Stats) -> Counters {
    Counters {
        seen: stats.seen,
        enrolled: stats.enrolled(),
        enrolled_now: stats.enrolled_now(),
        paired: stats.paired,
        ejected: by_name(&stats.ejected, REASONS),
        skipped: by_name(&stats.skipped, REASONS),
        redirected_messages: stats.redirected_messages,
        redirected_bytes: stats.redirected_bytes,
        stack_messages: stats.stack_messages,
        stack_bytes: stats.stack_bytes,
        stack_reasons: by_name(&stats.stack_why, WHYS),
        promotions: stats.promotions,
        demotions: by_name(&stats.demoted_why, WHYS),
        demotions_in_company: stats.hard_cap,
        refused_options: stats.refused_options,
        events_lost: stats.events_lost,
    }
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    what: &'static str,
    reason: &'static str,
    count: u64,
}

/// Reasons that were never counted are left out.
fn rows(stats: &Stats) -> Vec<Row> {
    let one = |what, count| {
        vec![Row {
            what,
            reason: "",
            count,
        }]
    };
    let each = |what, counts: &[u64], outcomes| {
        counted(counts, outcomes)
            .map(|(outcome, count)| Row {
                what,
                reason: outcome.name,
                count,
            })
            .collect()
    };
    [
        one("sockets seen", stats.seen),
        one("sockets enrolled", stats.enrolled()),
        one("  of which open", stats.enrolled_now()),
        one("sockets paired", stats.paired),
        each("sockets ejected", &stats.ejected, REASONS),
        each("sockets skipped", &stats.skipped, REASONS),
        one("messages redirected", stats.redirected_messages),
        one("bytes redirected", stats.redirected_bytes),
        one("messages on the stack", stats.stack_messages),
        one("bytes on the stack", stats.stack_bytes),
        each("messages on the stack", &stats.stack_why, WHYS),
        each("directions demoted", &stats.demoted_why, WHYS),
        one("directions promoted", stats.promotions),
        one("options refused", stats.refused_options),
        one("events lost", stats.events_lost),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn to_table(stats: &Stats) -> String {
    table(
        &["counter", "reason", "count"],
        rows(stats)
            .into_iter()
            .map(|row| [row.what.into(), row.reason.into(), row.count.to_string()]),
    )
}

/// What has changed, in a table of its own each time; a terminal is drawn anew.
fn watch(context: &Context, interval: Duration, format: Format) -> Result<()> {
    let live = Live::new(ENDS)?;
    let terminal = io::stdout().is_terminal() && format == Format::Table;
    let (mut before, mut at) = (read(context)?, Instant::now());
    if terminal && !go_on(&screen(&changes(&before, &before, interval)))? {
        return Ok(());
    }
    let mut next = at + interval;
    while live.wait(next, None)? != Woken::End {
        let (stats, now) = (read(context)?, Instant::now());
        let passed = now - at;
        let text = match format {
            Format::Json => {
                let told = Watched {
                    time: timestamp(SystemTime::now()),
                    seconds: passed.as_secs_f64(),
                    stats: to_json(&stats),
                    change: difference(&json!(to_json(&before)), &json!(to_json(&stats))),
                };
                format!("{}\n", context.output.to_json(&told)?)
            }
            _ if terminal => screen(&changes(&before, &stats, passed)),
            _ => format!("{}\n\n", changes(&before, &stats, passed)),
        };
        if !go_on(&text)? {
            break;
        }
        (before, at) = (stats, now);
        next = (next + interval).max(now);
    }
    Ok(())
}

/// What `--watch` prints each time.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Watched {
    /// When these were the counters.
    time: String,
    /// Since the time before.
    seconds: f64,
    /// The counters.
    stats: Counters,
    /// The same fields with what has changed.
    #[schemars(with = "BTreeMap<String, Change>")]
    change: Value,
}

/// A difference, or one for each reason.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Change {
    Count(i64),
    ByReason(BTreeMap<String, i64>),
}

/// From the upper left corner, over what is there, as much as fits.
fn screen(text: &str) -> String {
    let height = ratatui::crossterm::terminal::size().map_or(usize::MAX, |(_, rows)| rows.into());
    let lines: Vec<&str> = text.lines().take(height.saturating_sub(1)).collect();
    format!("\x1b[H{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n"))
}

fn changes(before: &Stats, stats: &Stats, passed: Duration) -> String {
    let earlier = rows(before);
    let count_before = |row: &Row| {
        earlier
            .iter()
            .find(|old| (old.what, old.reason) == (row.what, row.reason))
            .map_or(0, |old| old.count)
    };
    table(
        &["counter", "reason", "count", "change", "per second"],
        rows(stats).into_iter().map(|row| {
            let change = row.count.wrapping_sub(count_before(&row)).cast_signed();
            [
                row.what.into(),
                row.reason.into(),
                row.count.to_string(),
                change.to_string(),
                per_second(change, passed),
            ]
        }),
    )
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn per_second(change: i64, passed: Duration) -> String {
    format!(
        "{:.1}",
        change as f64 / passed.as_secs_f64().max(f64::EPSILON)
    )
}

/// Each number as its difference; what was not there before was 0.
fn difference(before: &Value, after: &Value) -> Value {
    match after {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), difference(&before[name], value)))
            .collect(),
        number => {
            let count = |value: &Value| value.as_u64().unwrap_or(0);
            count(number)
                .wrapping_sub(count(before))
                .cast_signed()
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_go_down_too() {
        let before = json!({ "seen": 3, "enrolled_now": 2, "skipped": { "service": 1 } });
        let after = json!({ "seen": 5, "enrolled_now": 0, "skipped": { "service": 1, "busy": 4 } });
        assert_eq!(
            difference(&before, &after),
            json!({ "seen": 2, "enrolled_now": -2, "skipped": { "service": 0, "busy": 4 } })
        );
    }

    #[test]
    fn rates() {
        assert_eq!(per_second(10, Duration::from_secs(4)), "2.5");
        assert_eq!(per_second(-10, Duration::from_secs(1)), "-10.0");
        assert_eq!(per_second(0, Duration::ZERO), "0.0");
    }

    #[test]
    fn files_are_replaced_and_devices_are_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("stats.prom");
        for text in ["one\n", "two\n"] {
            replace(&path, text).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("readable"), text);
        }
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o400, 0o400, "{mode:o}");
        assert_eq!(mode & 0o133, 0, "{mode:o}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        replace(&link, "three\n").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("readable"), "three\n");
        assert!(link.is_symlink());
        let left: Vec<_> = fs::read_dir(dir.path()).expect("readable").collect();
        assert_eq!(left.len(), 2, "{left:?}");
        for bad in ["/dev/null", "/dev"] {
            let error = replace(Path::new(bad), "").expect_err("refused");
            assert_eq!(error.exit_code(), 2, "{error}");
        }
        assert!(replace(&dir.path().join("none/here"), "").is_err());
    }
}
