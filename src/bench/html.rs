//! The report: one HTML file with its plots inside, which is XML, too, and
//! fetches nothing.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::Error;
use super::document::Document;
use super::options::{Cores, Mode, Nagle, Place, Workload};
use super::result::{self, CellResult, ModeResult, Round};
use super::stats::Summary;
use super::svg::{self, Bar, Group, Line};
use super::table;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1f2937;--paper:#ffffff;--faint:#d1d5db}\
@media(prefers-color-scheme:dark){:root{--ink:#e5e7eb;--paper:#111827;--faint:#374151}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);\
max-width:1200px;margin:2em auto;padding:0 1em}\
h2{margin-top:2em}figure{display:inline-block;width:min(100%,580px);margin:0 0 1em}\
figcaption{font-weight:600}svg{width:100%;height:auto}\
svg text{fill:var(--ink)}svg polyline[stroke='#000000']{stroke:var(--ink)}\
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}\
td,th{padding:.15em .6em;text-align:right;border-bottom:1px solid var(--faint)}\
td:first-child,td:nth-child(2),th:first-child,th:nth-child(2){text-align:left;white-space:nowrap}\
.scroll{overflow-x:auto}.bad{color:#dc2626;font-weight:600}summary{cursor:pointer}";

/// Whether a report can be written there: better known before than after.
pub fn check(path: &Path) -> Result<(), Error> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let refused = |err: io::Error| Error::Write(path.display().to_string(), err);
    access(directory, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|err| refused(err.into()))?;
    if path.is_dir() {
        return Err(refused(io::ErrorKind::IsADirectory.into()));
    }
    Ok(())
}

/// Writes the report, and its raw data beside it.
pub fn write(path: &Path, document: &Document) -> Result<(), Error> {
    let raw = raw_path(path);
    let json = serde_json::to_string(document).unwrap_or_default();
    for (path, text) in [(path, page(document, &raw)), (&raw, Ok(json))] {
        text.and_then(|text| fs::write(path, text))
            .map_err(|err| Error::Write(path.display().to_string(), err))?;
    }
    Ok(())
}

/// `FILE.json` of `FILE`.
fn raw_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

/// Text that means itself in HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no way to write the other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// What a section is about: everything that its plots have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scene {
    place: Place,
    mtu: Option<u32>,
    cores: Cores,
    connections: u32,
}

impl Scene {
    fn of(result: &CellResult) -> Self {
        let cell = &result.cell;
        Self {
            place: cell.place,
            mtu: cell.mtu,
            cores: cell.cores,
            connections: cell.connections,
        }
    }

    fn title(self) -> String {
        let place = match self.place {
            Place::Loopback => "loopback",
            Place::Netns => "two network namespaces",
            Place::Nat => "two network namespaces and address translation",
            Place::Host => "loopback of the host",
        };
        let mtu = self.mtu.map_or(String::new(), |mtu| format!(", MTU {mtu}"));
        let cores = match self.cores {
            Cores::Same => "both programs on one core",
            Cores::Across => "one core each",
        };
        let connections = match self.connections {
            1 => "1 connection".to_owned(),
            n => format!("{n} connections"),
        };
        format!("{place}{mtu}, {cores}, {connections}")
    }
}

fn page(document: &Document, raw: &Path) -> io::Result<String> {
    let mut page = String::from("<!DOCTYPE html>\n");
    let _ = write!(
        page,
        "<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width\"/><title>sockaccel bench</title>\
         <style>{STYLE}</style></head><body><h1>sockaccel bench</h1>"
    );
    head(&mut page, document, raw);
    let mut scenes: Vec<Scene> = Vec::new();
    for cell in &document.cells {
        let scene = Scene::of(cell);
        if !scenes.contains(&scene) {
            scenes.push(scene);
        }
    }
    for (n, scene) in scenes.into_iter().enumerate() {
        let cells: Vec<&CellResult> = document
            .cells
            .iter()
            .filter(|cell| Scene::of(cell) == scene)
            .collect();
        let open = if n == 0 { " open=\"open\"" } else { "" };
        let _ = write!(
            page,
            "<details{open}><summary><h2 style=\"display:inline\">{}</h2></summary>",
            escape(&scene.title())
        );
        plots(&mut page, &cells)?;
        cells_table(&mut page, &cells);
        page.push_str("</details>");
    }
    targets(&mut page, document);
    left_out(&mut page, document);
    page.push_str("</body></html>\n");
    Ok(page)
}

fn head(page: &mut String, document: &Document, raw: &Path) {
    let raw = raw.file_name().unwrap_or_default().to_string_lossy();
    let mut paragraph = |text: &str| {
        let _ = write!(page, "<p>{}</p>", escape(text));
    };
    paragraph(&format!(
        "sockaccel {}, Linux {}, {} CPUs ({}); up to {} rounds of {} s after {} s of warm-up in \
         each cell, {:.0} s in all. Raw data: {raw}.",
        document.version,
        document.kernel,
        document.cpus,
        document.cpu,
        document.rounds,
        document.seconds,
        document.warm_up,
        document.took_seconds
    ));
    paragraph(
        "In each round every mode is measured once, in turns, with new processes and connections. \
         Ratios are to plain TCP of the same round; figures are medians of the rounds, with the \
         median's 95 % interval (percentile bootstrap). Every byte was compared with the one sent. \
         A hollow bar or point is a mode whose bytes were not, or not all, redirected: no figure \
         of an accelerated connection.",
    );
    if let Some(noise) = document.noise {
        paragraph(&format!(
            "Noise: plain TCP measured again is {:.3} of plain TCP, and the 95 % interval of that \
             reaches {:.3} from 1 in the median cell. Smaller differences mean nothing.",
            noise.ratio.median, noise.floor
        ));
    }
    if let Some(variant) = &document.variant {
        paragraph(&format!("Variant: sockaccel with {variant}."));
    }
    if let Some(signal) = document.interrupted {
        paragraph(&format!("Interrupted by {signal}."));
    }
    if !document.void.is_empty() {
        page.push_str("<p class=\"bad\">Not all figures count:</p><ul>");
        for line in &document.void {
            let _ = write!(page, "<li class=\"bad\">{}</li>", escape(line));
        }
        page.push_str("</ul>");
    }
}

fn figure(page: &mut String, title: &str, plot: &str) {
    let _ = write!(
        page,
        "<figure><figcaption>{}</figcaption>{plot}</figure>",
        escape(title)
    );
}

/// The plots of one scene, each where there is something to see.
fn plots(page: &mut String, cells: &[&CellResult]) -> io::Result<()> {
    let workload = |wanted: Workload| -> Vec<&CellResult> {
        let of = cells.iter().copied();
        of.filter(|cell| cell.cell.workload == wanted).collect()
    };
    for asked in [
        Workload::RequestResponse,
        Workload::Pipelined,
        Workload::ConnectRequestClose,
    ] {
        let of = one_nagle(&workload(asked));
        bars(page, asked, "requests/s", &of, |round| Some(round.rate))?;
    }
    for sent in [Workload::Stream, Workload::SlowReader] {
        let of = one_nagle(&workload(sent));
        let rate = |round: &Round| Some(round.bytes_per_second);
        bars(page, sent, "bytes/s", &of, rate)?;
    }
    for asked in [Workload::RequestResponse, Workload::Pipelined] {
        let of = one_nagle(&workload(asked));
        let p50 = |round: &Round| Some(round.latency_us?.p50);
        let p99 = |round: &Round| Some(round.latency_us?.p99);
        bars(page, asked, "median latency, microseconds", &of, p50)?;
        bars(page, asked, "99th percentile, microseconds", &of, p99)?;
    }
    for sent in [Workload::Stream, Workload::Pipelined] {
        throughput_against_size(page, sent, &workload(sent))?;
    }
    let asked = Workload::RequestResponse;
    latency_against_size(page, asked, &one_nagle(&workload(asked)))
}

/// Those without Nagle, or where there are none those with it.
fn one_nagle<'a>(cells: &[&'a CellResult]) -> Vec<&'a CellResult> {
    let with = |nagle: Nagle| -> Vec<&'a CellResult> {
        let of = cells.iter().copied();
        of.filter(|cell| cell.cell.nagle == nagle).collect()
    };
    match with(Nagle::Off) {
        none if none.is_empty() => with(Nagle::On),
        some => some,
    }
}

/// Whether a mode's name promises more than happened.
fn hollow(mode: &ModeResult) -> bool {
    let promises = matches!(mode.mode, Mode::Sockaccel | Mode::Variant | Mode::Textbook);
    promises && matches!(mode.path, Some(result::Path::Mixed | result::Path::Stack))
}

fn size(cell: &CellResult) -> f64 {
    super::sample::float(cell.cell.size as u64)
}

fn summary(mode: &ModeResult, value: impl Fn(&Round) -> Option<f64>) -> Option<Summary> {
    let values: Option<Vec<f64>> = mode.rounds.iter().map(value).collect();
    Summary::of(&values?)
}

/// A group of bars for each size.
fn bars(
    page: &mut String,
    workload: Workload,
    unit: &str,
    cells: &[&CellResult],
    value: impl Fn(&Round) -> Option<f64> + Copy,
) -> io::Result<()> {
    let groups: Vec<Group> = cells
        .iter()
        .map(|cell| Group {
            size: size(cell),
            bars: cell
                .modes
                .iter()
                .filter_map(|mode| {
                    let of = summary(mode, value)?;
                    Some(Bar {
                        mode: mode.mode,
                        value: of.median,
                        interval: (of.low, of.high),
                        hollow: hollow(mode),
                    })
                })
                .collect(),
        })
        .filter(|group| !group.bars.is_empty())
        .collect();
    if groups.is_empty() {
        return Ok(());
    }
    let title = format!("{}: {unit}", workload.title());
    figure(page, &title, &svg::bars(unit, &groups)?);
    Ok(())
}

/// A line for each mode in these cells.
fn mode_lines(
    cells: &[&CellResult],
    suffix: &str,
    dashed: bool,
    value: impl Fn(&Round) -> Option<f64> + Copy,
) -> Vec<Line> {
    let mut modes: Vec<Mode> = Vec::new();
    for mode in cells.iter().flat_map(|cell| &cell.modes) {
        if !modes.contains(&mode.mode) && mode.mode != Mode::TcpAgain {
            modes.push(mode.mode);
        }
    }
    modes
        .into_iter()
        .map(|mode| {
            let points = cells.iter().filter_map(|cell| {
                let of = cell.mode(mode)?;
                Some((size(cell), summary(of, value)?.median, hollow(of)))
            });
            let mut points: Vec<(f64, f64, bool)> = points.collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Line {
                mode,
                name: format!("{mode}{suffix}"),
                dashed,
                points,
            }
        })
        .filter(|line| !line.points.is_empty())
        .collect()
}

fn throughput_against_size(
    page: &mut String,
    workload: Workload,
    cells: &[&CellResult],
) -> io::Result<()> {
    let mut lines = Vec::new();
    for (nagle, suffix) in [(Nagle::Off, ", Nagle off"), (Nagle::On, ", Nagle on")] {
        let of: Vec<&CellResult> = cells
            .iter()
            .copied()
            .filter(|cell| cell.cell.nagle == nagle)
            .collect();
        let rate = |round: &Round| Some(round.bytes_per_second);
        lines.extend(mode_lines(&of, suffix, nagle == Nagle::On, rate));
    }
    against_size(
        page,
        &format!("{}: throughput", workload.title()),
        "bytes/s",
        &lines,
    )
}

fn latency_against_size(
    page: &mut String,
    workload: Workload,
    cells: &[&CellResult],
) -> io::Result<()> {
    let p50 = |round: &Round| Some(round.latency_us?.p50);
    let p99 = |round: &Round| Some(round.latency_us?.p99);
    let mut lines = mode_lines(cells, ", median", false, p50);
    lines.extend(mode_lines(cells, ", 99 %", true, p99));
    against_size(
        page,
        &format!("{}: latency", workload.title()),
        "microseconds",
        &lines,
    )
}

/// Only where there are two sizes to connect.
fn against_size(page: &mut String, what: &str, unit: &str, lines: &[Line]) -> io::Result<()> {
    if lines.iter().all(|line| line.points.len() < 2) {
        return Ok(());
    }
    let title = format!("{what} against message size");
    figure(page, &title, &svg::lines(unit, lines)?);
    Ok(())
}

fn cells_table(page: &mut String, cells: &[&CellResult]) {
    page.push_str("<div class=\"scroll\"><table><thead><tr>");
    for column in table::COLUMNS {
        let _ = write!(page, "<th>{}</th>", escape(column));
    }
    page.push_str("</tr></thead><tbody>");
    for row in cells.iter().flat_map(|cell| table::rows_of(cell)) {
        page.push_str("<tr>");
        for text in row {
            let class = if text.contains("NOT ACCELERATED") || text == "failed" {
                " class=\"bad\""
            } else {
                ""
            };
            let _ = write!(page, "<td{class}>{}</td>", escape(&text));
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div>");
}

fn targets(page: &mut String, document: &Document) {
    let counts = document.targets;
    let _ = write!(
        page,
        "<h2>Targets</h2><p>{} met, {} missed, {} undecided.</p><div class=\"scroll\"><table>\
         <thead><tr><th>cell</th><th>figure</th><th>measured</th><th>wanted</th><th></th></tr>\
         </thead><tbody>",
        counts.met, counts.missed, counts.undecided
    );
    for cell in &document.cells {
        for target in &cell.targets {
            let bound = if target.at_most {
                "at most"
            } else {
                "at least"
            };
            let _ = write!(
                page,
                "<tr><td>{}</td><td>{}</td><td>{:.3}</td><td>{bound} {}</td><td>{}</td></tr>",
                escape(&cell.cell.to_string()),
                escape(target.what),
                target.measured,
                target.want,
                target.verdict.name()
            );
        }
    }
    page.push_str("</tbody></table></div>");
}

fn left_out(page: &mut String, document: &Document) {
    if document.left_out.is_empty() {
        return;
    }
    page.push_str("<h2>Left out, for want of time</h2><ul>");
    for cell in &document.left_out {
        let _ = write!(page, "<li>{}</li>", escape(&cell.to_string()));
    }
    page.push_str("</ul>");
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_means_something_to_html_is_escaped() {
        assert_eq!(
            escape("<a href=\"x\">'&'</a>\u{1}"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;\u{fffd}"
        );
    }
}
