//! What the user sees: tables for people, JSON for scripts.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::error::{Error, Result};
use crate::outcome::{Outcome, counted};

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

    /// Says something on standard error to people who read no JSON.
    pub fn note(self, text: impl Display) {
        if !self.json {
            say(text);
        }
    }

    /// The text of this value.
    pub fn to_json<T: Serialize>(self, value: &T) -> Result<String> {
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
    let text = text.trim_end_matches('\n');
    if text.is_empty() {
        return Ok(());
    }
    go_on(&format!("{text}\n")).map(drop)
}

/// Writes one part of a text that goes on, line breaks and all. False when its
/// reader has gone away.
pub fn go_on(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::os("write to", "standard output", e)),
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

/// Columns of prose that no terminal reads, as of help.
pub const PROSE: u16 = 100;

/// Rows up to which a table is fitted to the width of a terminal: it takes some
/// time for each, and who looks at so many pages through them.
const FITTED: usize = 1000;

/// A table without lines, as `ip` and `ss` print: it survives pipes and `awk`.
pub fn table<R: IntoIterator<Item = String>>(
    header: &[&str],
    rows: impl IntoIterator<Item = R>,
) -> String {
    let rows = upper(header, rows);
    if io::stdout().is_terminal() && rows.len() <= FITTED {
        fitted(rows, ContentArrangement::Dynamic)
    } else {
        aligned(&rows)
    }
}

/// A table of sentences, which are folded also where no terminal reads them.
pub fn prose_table<R: IntoIterator<Item = String>>(
    header: &[&str],
    rows: impl IntoIterator<Item = R>,
) -> String {
    fitted(upper(header, rows), ContentArrangement::Dynamic)
}

/// The same, as wide as it gets.
pub fn wide_table<R: IntoIterator<Item = String>>(
    header: &[&str],
    rows: impl IntoIterator<Item = R>,
) -> String {
    aligned(&upper(header, rows))
}

/// `1 socket`, `2 sockets`, `2 processes`
pub fn count(n: u64, noun: &str) -> String {
    let end = match n {
        1 => "",
        _ if noun.ends_with('s') => "es",
        _ => "s",
    };
    format!("{n} {noun}{end}")
}

/// What a cell says of a flag.
pub fn yes_or_no(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

/// What a cell says of a value that may be missing.
pub fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Columns of the terminal that standard output is, if it is one that knows: a
/// serial line says 0.
pub fn columns() -> Option<usize> {
    Table::new().width().map(usize::from).filter(|n| *n > 0)
}

fn upper<R: IntoIterator<Item = String>>(
    header: &[&str],
    rows: impl IntoIterator<Item = R>,
) -> Vec<Vec<String>> {
    let rows = rows.into_iter().map(|row| row.into_iter().collect());
    std::iter::once(header.iter().map(|h| h.to_uppercase()).collect())
        .chain(rows)
        .collect()
}

/// As wide as the terminal, or as help is, with line breaks in the cells.
fn fitted(rows: Vec<Vec<String>>, how: ContentArrangement) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(how);
    if columns().is_none() {
        table.set_width(PROSE);
    }
    let mut rows = rows.into_iter();
    table.set_header(rows.next().unwrap_or_default());
    table.add_rows(rows);
    table
        .to_string()
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end())
        .collect::<Vec<_>>()
        .join("\n")
}

/// As wide as the cells are.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths = vec![0; columns];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (n, row) in rows.iter().enumerate() {
        if n > 0 {
            text.push('\n');
        }
        for (width, cell) in widths.iter().zip(row) {
            text.push_str(cell);
            let gap = width + 2 - cell.chars().count();
            text.extend(std::iter::repeat_n(' ', gap));
        }
        text.truncate(text.trim_end_matches(' ').len());
    }
    text
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
pub fn by_name(counts: &[u64], names: &'static [Outcome]) -> Counts {
    let above_0 = counted(counts, names).map(|(outcome, count)| (outcome.name, count));
    Counts(above_0.collect())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_counted_has_its_number() {
        let told = [(0, "byte"), (1, "process"), (2, "process"), (3, "socket")];
        let told = told.map(|(n, noun)| count(n, noun)).join(", ");
        assert_eq!(told, "0 bytes, 1 process, 2 processes, 3 sockets");
    }

    #[test]
    fn prose_is_folded_where_no_terminal_reads_it() {
        let words = "word ".repeat(60);
        let text = prose_table(&["a", "b"], [[words.clone(), words]]);
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= columns().or(Some(PROSE.into())), "{text}");
    }

    proptest! {
        /// Whether a terminal reads it makes no difference to a table that fits.
        #[test]
        fn both_ways_to_lay_out_a_table_agree(
            header in vec("[A-Z]{1,9}", 3),
            rows in vec(vec("[a-z0-9:]{0,12}", 3), 0..9),
        ) {
            let mut all = vec![header];
            all.extend(rows);
            prop_assert_eq!(aligned(&all), fitted(all, ContentArrangement::Disabled));
        }
    }
}
