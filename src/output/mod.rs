//! What the user sees: tables for people, JSON for scripts.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

/// How to print, from the global options.
#[derive(Debug, Clone, Copy, Default)]
pub struct Output {
    /// JSON instead of tables.
    pub json: bool,
    /// JSON with line breaks and indentation.
    pub pretty: bool,
    /// The first line of what people read, the header of a table, in bold.
    pub bold: bool,
}

impl Output {
    /// Prints a value that is JSON for scripts, and what `table` makes of it
    /// for people.
    pub fn print<T: Serialize>(self, value: &T, table: impl FnOnce() -> String) -> Result<()> {
        if self.json {
            return write(&self.to_json(value)?);
        }
        let text = table();
        match text.split_once('\n') {
            Some((first, rest)) if self.bold => write(&format!("\x1b[1m{first}\x1b[0m\n{rest}")),
            _ => write(&text),
        }
    }

    /// Prints JSON where JSON is wanted, else nothing.
    pub fn print_json<T: Serialize>(self, value: &T) -> Result<()> {
        if self.json {
            write(&self.to_json(value)?)
        } else {
            Ok(())
        }
    }

    fn to_json<T: Serialize>(self, value: &T) -> Result<String> {
        let text = if self.pretty {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        text.map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))
    }
}

/// Writes a text and a line break to standard output. A reader that has gone
/// away (`| head`) is no error.
pub fn write(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let text = text.trim_end_matches('\n');
    let written = if text.is_empty() {
        Ok(())
    } else {
        writeln!(out, "{text}")
    };
    match written.and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| Error::os("write to", "standard output", e)),
    }
}

/// Says something to people on standard error, where nobody may be reading.
pub fn say(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether to use bold, by `--color` and <https://no-color.org>.
pub fn bold(when: clap::ColorChoice) -> bool {
    match when {
        clap::ColorChoice::Always => true,
        clap::ColorChoice::Never => false,
        clap::ColorChoice::Auto => {
            io::stdout().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    }
}

/// A table without lines, as `ip` and `ss` print: it survives pipes and `awk`.
pub fn table<R: IntoIterator<Item = String>>(
    header: &[&str],
    rows: impl IntoIterator<Item = R>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(if io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    table
        .to_string()
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Counters by name, an object in JSON.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(transparent)]
pub struct Counts(#[schemars(with = "BTreeMap<String, u64>")] Vec<(&'static str, u64)>);

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// An object of counters by name, those that are 0 left out.
pub fn by_name(counts: &[u64], names: &[crate::outcome::Outcome]) -> Counts {
    let above_0 = counts.iter().zip(names).filter(|(count, _)| **count > 0);
    Counts(
        above_0
            .map(|(count, outcome)| (outcome.name, *count))
            .collect(),
    )
}
