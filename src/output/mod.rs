//! What the user sees: tables for people, JSON for scripts.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// How to print, from the global options.
#[derive(Debug, Clone, Copy, Default)]
pub struct Output {
    /// JSON instead of tables.
    pub json: bool,
    /// JSON with line breaks and indentation.
    pub pretty: bool,
}

impl Output {
    /// Prints a value that is JSON for scripts, and what `table` makes of it
    /// for people.
    pub fn print<T: Serialize>(self, value: &T, table: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json {
            self.to_json(value)?
        } else {
            table()
        };
        write(&text)
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
fn write(text: &str) -> Result<()> {
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

/// An object of counters by name, those that are 0 left out.
pub fn by_name(counts: &[u64], names: &[crate::outcome::Outcome]) -> Value {
    Value::Object(
        counts
            .iter()
            .zip(names)
            .filter(|(count, _)| **count > 0)
            .map(|(count, outcome)| (outcome.name.to_owned(), Value::from(*count)))
            .collect(),
    )
}
