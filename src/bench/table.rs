//! What people read.

use std::fmt::Write as _;

use super::document::Document;
use super::options::{Mode, Workload};
use super::result::{CellResult, ModeResult, Path};
use super::stats::Summary;
use super::targets::Outcome;
use crate::output::{columns, wide_table};

/// What is said about each mode of a cell.
pub const COLUMNS: [&str; 13] = [
    "cell",
    "mode",
    "rate",
    "ratio",
    "95 %",
    "p50",
    "p99",
    "p99.9",
    "cpu/op",
    "switches/op",
    "redirected",
    "packets/msg",
    "path",
];
/// Targets that are listed one by one.
const LISTED: usize = 20;

/// The table of all cells, and what there is to say about it.
pub fn of(document: &Document) -> String {
    let mut text = fitting(document, columns());
    text.push_str(
        "\n\nrate: operations per second, of streams bytes per second; ratio: to plain TCP, median \
         of the rounds,\nwith its 95 % interval; latencies and CPU time in microseconds, of both \
         programs; path: by what way the bytes\nwent, by the counters of sockaccel (redirected, \
         a part of all bytes) and of the interfaces (packets per message).\n",
    );
    for line in notes(document) {
        let _ = write!(text, "\n{line}");
    }
    text
}

/// A row for each mode; the first one names the cell.
pub fn rows_of(result: &CellResult) -> Vec<[String; 13]> {
    let mut name = result.cell.to_string();
    result
        .modes
        .iter()
        .map(|mode| row(result, mode, std::mem::take(&mut name)))
        .collect()
}

/// The first columns to go where there is no room for all, in this order.
const DISPENSABLE: [&str; 6] = [
    "p99.9",
    "switches/op",
    "cpu/op",
    "packets/msg",
    "95 %",
    "p50",
];

/// As many columns as fit.
fn fitting(document: &Document, room: Option<usize>) -> String {
    let rows: Vec<_> = document.cells.iter().flat_map(rows_of).collect();
    let mut gone = 0;
    loop {
        let stays = |column: &&str| !DISPENSABLE[..gone].contains(column);
        let header: Vec<&str> = COLUMNS.iter().copied().filter(stays).collect();
        let rows = rows.iter().map(|row| {
            let texts = row.iter().zip(COLUMNS);
            texts
                .filter(|(_, column)| stays(column))
                .map(|(text, _)| text.clone())
                .collect::<Vec<_>>()
        });
        let text = wide_table(&header, rows);
        let widest = text.lines().map(|line| line.chars().count()).max();
        let fits = room.is_none_or(|room| widest.is_none_or(|widest| widest <= room));
        if fits || gone == DISPENSABLE.len() {
            return text;
        }
        gone += 1;
    }
}

fn row(result: &CellResult, mode: &ModeResult, cell: String) -> [String; 13] {
    let dash = || "-".to_owned();
    let median = |of: Option<Summary>, digits: usize| {
        of.map_or_else(dash, |of| format!("{:.digits$}", of.median))
    };
    let latency = |of: fn(&super::sample::Latency) -> f64| {
        mode.latency_us
            .as_ref()
            .map_or_else(dash, |latency| format!("{:.1}", of(latency)))
    };
    let share = |of: Option<f64>| of.map_or_else(dash, |of| format!("{of:.3}"));
    let rate = match result.cell.workload {
        Workload::Stream | Workload::SlowReader => mode
            .bytes_per_second
            .map_or_else(dash, |of| format!("{}B/s", scaled(of.median))),
        _ => mode
            .rate
            .map_or_else(dash, |of| format!("{}/s", scaled(of.median))),
    };
    [
        cell,
        mode.mode.name().to_owned(),
        mode.failed.as_ref().map_or(rate, |_| "failed".to_owned()),
        median(mode.ratio, 3),
        mode.ratio
            .map_or_else(dash, |of| format!("{:.2}-{:.2}", of.low, of.high)),
        latency(|of| of.p50),
        latency(|of| of.p99),
        latency(|of| of.p999),
        median(mode.cpu_us, 2),
        median(mode.switches, 2),
        share(mode.redirected),
        mode.interface_packets
            .map_or_else(dash, |of| format!("{of:.2}")),
        path(result, mode),
    ]
}

/// A figure that is not one of an accelerated connection says so.
fn path(result: &CellResult, mode: &ModeResult) -> String {
    let name = mode.path.map_or("-", Path::name);
    if mode.mode == Mode::Sockaccel && result.missed_redirect().is_some() {
        format!("{name}: NOT ACCELERATED")
    } else {
        name.to_owned()
    }
}

fn notes(document: &Document) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(noise) = document.noise {
        notes.push(format!(
            "noise: plain TCP against itself is {:.3}; the 95 % interval of that reaches {:.3} from 1 \
             in the median cell",
            noise.ratio.median, noise.floor
        ));
    }
    for program in ["sa_skmsg", "tb_skmsg"] {
        notes.extend(verdict(document, program));
    }
    let targets = document.targets;
    notes.push(format!(
        "targets: {} met, {} missed, {} undecided",
        targets.met, targets.missed, targets.undecided
    ));
    let short = document.cells.iter().flat_map(|cell| {
        let open = |target: &&super::targets::Target| target.verdict != Outcome::Met;
        cell.targets.iter().filter(open).map(|target| {
            format!(
                "  {}: {}: {:.3}, at {} {}: {}",
                cell.cell,
                target.what,
                target.measured,
                if target.at_most { "most" } else { "least" },
                target.want,
                target.verdict.name()
            )
        })
    });
    let short: Vec<String> = short.collect();
    let more = short.len().saturating_sub(LISTED);
    notes.extend(short.into_iter().take(LISTED));
    if more > 0 {
        notes.push(format!("  and {more} more, in --json and --report"));
    }
    if !document.left_out.is_empty() {
        notes.push(format!(
            "left out, for want of time: {} of {} cells, the first of them {}",
            document.left_out.len(),
            document.left_out.len() + document.cells.len(),
            document.left_out[0]
        ));
    }
    notes
}

/// What one run of a program takes, over all cells.
fn verdict(document: &Document, program: &str) -> Option<String> {
    let verdicts = document.cells.iter().flat_map(|cell| &cell.verdict_ns);
    let ns: Vec<f64> = verdicts
        .filter(|verdict| verdict.program == program)
        .filter_map(|verdict| verdict.ns)
        .collect();
    let of = Summary::of(&ns)?;
    Some(format!(
        "{program}: {:.0} ns per message ({:.0} - {:.0} in the cells), the cost of counting included",
        of.median, of.min, of.max
    ))
}

/// `12345` as `12.3k`.
pub fn scaled(number: f64) -> String {
    for (unit, name) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if number >= unit {
            return format!("{:.3}{name}", number / unit);
        }
    }
    format!("{number:.1}")
}

#[cfg(test)]
mod tests {
    use super::scaled;

    #[test]
    fn numbers_are_scaled() {
        for (number, text) in [
            (0.5, "0.5"),
            (999.0, "999.0"),
            (1000.0, "1.000k"),
            (12_345.0, "12.345k"),
            (2.5e6, "2.500M"),
            (1.5e10, "15.000G"),
        ] {
            assert_eq!(scaled(number), text);
        }
    }
}
