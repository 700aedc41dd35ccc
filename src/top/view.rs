//! How `top` looks: the list, the detail page and the lines around them.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use super::model::{Connection, End, Model, Page, as_f64};
use super::processes::Processes;
use crate::cli::addr::{local, remote};
use crate::cli::reasons::most;
use crate::maps::Stats;
use crate::maps::sockets::state_name;
use crate::outcome::{REASONS, WHYS};
use crate::output::count;
use crate::remedy::Remedies;

/// Reasons in the lines at the top.
const REASONS_TOLD: usize = 4;

/// The columns from left to right. Where the screen is too narrow for all, those
/// with the lowest rank stay.
const COLUMNS: [Column; 9] = [
    Column::left("PID", 7, 17),
    Column::left("COMMAND", 5, 31),
    Column::left("LOCAL", 2, 47),
    Column::left("REMOTE", 0, 47),
    Column::left("PATH", 1, 17),
    Column::right("MSG/S", 3),
    Column::right("BYTES/S", 4),
    Column::right("UNREAD", 8),
    Column::left("REASON", 6, 24),
];

#[derive(Debug)]
struct Column {
    title: &'static str,
    rank: usize,
    min: usize,
    max: usize,
    right: bool,
}

impl Column {
    const fn left(title: &'static str, rank: usize, max: usize) -> Self {
        Self {
            title,
            rank,
            min: title.len(),
            max,
            right: false,
        }
    }

    /// Of numbers, which must not make the line jump.
    const fn right(title: &'static str, rank: usize) -> Self {
        Self {
            title,
            rank,
            min: 7,
            max: 7,
            right: true,
        }
    }
}

/// The part of the screen's state that is only about looks.
#[derive(Debug)]
pub struct View {
    color: bool,
    remedies: Remedies,
    offset: usize,
}

impl View {
    /// With colours or without.
    pub fn new(color: bool, remedies: Remedies) -> Self {
        Self {
            color,
            remedies,
            offset: 0,
        }
    }

    /// Draws everything anew.
    pub fn draw(&mut self, frame: &mut Frame<'_>, model: &mut Model, processes: &mut Processes) {
        let height = frame.area().height;
        let [head, body, foot] = Layout::vertical([
            Constraint::Length(if height >= 8 { 2 } else { 0 }),
            Constraint::Min(1),
            Constraint::Length(u16::from(height >= 3)),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(head_lines(model)), head);
        frame.render_widget(foot_line(model), foot);
        let filter = model.filter().to_owned();
        let (visible, line) = model.visible(|connection| {
            let cells = cells(connection, processes);
            cells.iter().any(|cell| cell.contains(&filter))
        });
        if model.page() == Page::Detail
            && let Some(index) = visible.get(line)
        {
            let text = detail(model.connection(*index), &self.remedies, processes);
            frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), body);
        } else {
            self.list(frame, body, model, processes, &visible, line);
        }
    }

    fn list(
        &mut self,
        frame: &mut Frame<'_>,
        area: Rect,
        model: &mut Model,
        processes: &mut Processes,
        visible: &[usize],
        line: usize,
    ) {
        let height = usize::from(area.height).saturating_sub(1).max(1);
        model.set_height(height);
        self.offset = self
            .offset
            .min(line)
            .max((line + 1).saturating_sub(height))
            .min(visible.len().saturating_sub(height));
        // Only these lines cost anything, however many connections there are.
        let shown: Vec<[String; 9]> = visible
            .iter()
            .skip(self.offset)
            .take(height)
            .map(|index| cells(model.connection(*index), processes))
            .collect();
        let columns = fitting(&shown, area.width.into());
        let header = columns
            .iter()
            .map(|(at, width)| aligned(*at, COLUMNS[*at].title, *width));
        let header = Row::new(header).style(Style::new().add_modifier(Modifier::BOLD));
        let rows = shown.iter().map(|cells| {
            Row::new(columns.iter().map(|(at, width)| {
                let cell = aligned(*at, &cells[*at], *width);
                if COLUMNS[*at].title == "PATH" {
                    cell.style(self.path_style(&cells[*at]))
                } else {
                    cell
                }
            }))
        });
        let widths = columns
            .iter()
            .map(|(_, width)| Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX)));
        let table = Table::new(rows, widths)
            .header(header)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::new();
        if !shown.is_empty() {
            state.select(Some(line - self.offset));
        }
        frame.render_stateful_widget(table, area, &mut state);
    }

    fn path_style(&self, path: &str) -> Style {
        match (
            self.color,
            path.contains("redirect"),
            path.contains("stack"),
        ) {
            (true, true, false) => Style::new().fg(Color::Green),
            (true, _, true) => Style::new().fg(Color::Yellow),
            _ => Style::new(),
        }
    }
}

/// The best columns that fit, with their widths, from left to right.
fn fitting(rows: &[[String; 9]], screen: usize) -> Vec<(usize, usize)> {
    let width = |at: usize| {
        let column = &COLUMNS[at];
        let longest = rows.iter().map(|cells| cells[at].chars().count()).max();
        longest.unwrap_or(0).clamp(column.min, column.max)
    };
    let mut by_rank: Vec<usize> = (0..COLUMNS.len()).collect();
    by_rank.sort_by_key(|at| COLUMNS[*at].rank);
    let mut columns = Vec::new();
    let mut left = screen;
    for at in by_rank {
        let width = width(at);
        let gap = usize::from(!columns.is_empty());
        if width + gap > left {
            break;
        }
        left -= width + gap;
        columns.push((at, width));
    }
    if columns.is_empty() {
        columns.push((3, screen));
    }
    columns.sort_unstable();
    columns
}

fn aligned(at: usize, text: &str, width: usize) -> Cell<'static> {
    if COLUMNS[at].right {
        Cell::new(format!("{text:>width$}"))
    } else {
        Cell::new(text.to_owned())
    }
}

/// The text of each column.
fn cells(connection: &Connection, processes: &mut Processes) -> [String; 9] {
    let first = &connection.ends[0].record.sock.tuple;
    let mut reasons: Vec<&str> = connection.ends.iter().filter_map(End::why).collect();
    reasons.dedup();
    let pids: Vec<Option<u32>> = connection
        .ends
        .iter()
        .map(|end| pid(end, processes))
        .collect();
    let each = |text: &mut dyn FnMut(Option<u32>) -> String| {
        let texts: Vec<String> = pids.iter().map(|pid| text(*pid)).collect();
        texts.join(">")
    };
    [
        each(&mut |pid| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())),
        each(&mut |pid| {
            pid.map_or_else(|| "-".to_owned(), |pid| processes.command(pid).to_owned())
        }),
        local(first).to_string(),
        remote(first).to_string(),
        connection
            .ends
            .iter()
            .map(|end| path(end))
            .collect::<Vec<_>>()
            .join(">"),
        short(connection.messages()),
        short(connection.bytes()),
        short(as_f64(connection.unread())),
        reasons.join(">"),
    ]
}

/// What was not seen sending yet is found by its open file.
fn pid(end: &End, processes: &mut Processes) -> Option<u32> {
    end.pid().or_else(|| processes.owner(end.record.inode))
}

fn path(end: &End) -> &'static str {
    if end.redirected() {
        "redirect"
    } else {
        "stack"
    }
}

/// At most 6 characters: `7`, `1234`, `12.3k`, `4.56M`.
fn short(n: f64) -> String {
    if n < 9999.5 {
        return if n > 0.0 && n < 9.95 && n.fract() != 0.0 {
            format!("{n:.1}")
        } else {
            format!("{n:.0}")
        };
    }
    let mut n = n / 1000.0;
    for unit in ["k", "M", "G", "T"] {
        if n < 999.5 {
            return format!("{n:.1}{unit}");
        }
        n /= 1000.0;
    }
    format!("{n:.0}P")
}

fn head_lines(model: &Model) -> Vec<Line<'static>> {
    let all = model.connections();
    let (mut messages, mut bytes, mut redirected) = (0.0, 0.0, 0);
    for connection in all {
        messages += connection.messages();
        bytes += connection.bytes();
        redirected += usize::from(connection.ends.iter().all(End::redirected));
    }
    let summary = format!(
        "{}: {} connections, {redirected} redirected both ways, {} messages/s, {} bytes/s",
        model.instance(),
        all.len(),
        short(messages),
        short(bytes),
    );
    let out = model.counters().map(Stats::kept_out).unwrap_or_default();
    let reasons: Vec<String> = most(&out, REASONS, "sockets")
        .iter()
        .take(REASONS_TOLD)
        .map(|reason| format!("{} {}", reason.outcome.name, reason.count))
        .collect();
    let not = if reasons.is_empty() {
        "every socket seen was enrolled".to_owned()
    } else {
        format!("sockets not enrolled: {}", reasons.join(", "))
    };
    vec![Line::from(summary), Line::from(not)]
}

fn foot_line(model: &Model) -> Line<'static> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    if model.page() == Page::Filter {
        return Line::from(vec![
            Span::styled("filter: ", bold),
            Span::raw(format!("{}_", model.filter())),
        ]);
    }
    let mut spans = Vec::new();
    if model.paused() {
        spans.push(Span::styled("paused ", bold));
    }
    if model.page() == Page::Detail {
        spans.push(Span::raw("Esc back  Up Down next  space pause"));
        return Line::from(spans);
    }
    if !model.filter().is_empty() {
        spans.push(Span::styled(format!("filter: {} ", model.filter()), bold));
    }
    let (sort, reverse) = model.sort();
    let turned = if reverse { ", inverted" } else { "" };
    spans.push(Span::styled(format!("by {}{turned} ", sort.name()), bold));
    spans.push(Span::raw(
        " q quit  Enter detail  / filter  space pause  sort: m b u s p l r, i invert",
    ));
    Line::from(spans)
}

fn detail(
    connection: &Connection,
    remedies: &Remedies,
    processes: &mut Processes,
) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for end in &connection.ends {
        lines.extend(direction(end, remedies, processes));
        lines.push(Line::default());
    }
    if connection.ends.len() == 1 {
        lines.push(Line::from("The other end is not enrolled."));
    }
    lines
}

/// A socket and what it sends.
fn direction(end: &End, remedies: &Remedies, processes: &mut Processes) -> Vec<Line<'static>> {
    let record = &end.record;
    let sock = &record.sock;
    let who = pid(end, processes).map_or_else(
        || "by an unknown process".to_owned(),
        |pid| format!("by {} (pid {pid})", processes.command(pid)),
    );
    let why = end
        .why()
        .and_then(|why| WHYS.iter().find(|outcome| outcome.name == why));
    let mut path = path(end).to_owned();
    if let Some(why) = why {
        path += &[": ", why.name, ", ", why.text].concat();
        if let Some(remedy) = remedies.of_message(why).line() {
            path += &[". ", &*remedy].concat();
        }
    }
    let field = |name: &str, text: String| Line::from(format!("  {name:<12}{text}"));
    let reader = if record.nonblock == 0 {
        "blocking"
    } else {
        "non-blocking"
    };
    vec![
        Line::styled(
            format!("{} to {}", local(&sock.tuple), remote(&sock.tuple)),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        field("sent", who),
        field("path", path),
        field(
            "now",
            format!(
                "{} messages/s, {} bytes/s",
                short(end.messages),
                short(end.bytes)
            ),
        ),
        field(
            "redirected",
            format!(
                "{} messages, {} bytes",
                sock.redirected_messages, sock.redirected_bytes
            ),
        ),
        field(
            "stack",
            format!(
                "{} messages, {} bytes",
                sock.stack_messages, sock.stack_bytes
            ),
        ),
        field(
            "changes",
            format!(
                "{}, {}",
                count(sock.promotions.into(), "promotion"),
                count(sock.demotions.into(), "demotion")
            ),
        ),
        field(
            "to read",
            format!(
                "{} redirected bytes in {} messages wait here",
                record.unread_bytes, record.unread_messages
            ),
        ),
        field(
            "socket",
            format!(
                "{}, {reader}, cookie {}, inode {}, netns cookie {}",
                state_name(record.state),
                sock.cookie,
                record.inode,
                sock.netns_cookie
            ),
        ),
    ]
}
