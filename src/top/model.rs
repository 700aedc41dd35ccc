//! What `top` knows and how keys change it. No terminal, no /proc.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Instant;

use clap::ValueEnum;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::maps::Stats;
use crate::maps::layout::{Dump, PATH_REDIRECT, ROLE_ACTIVE};
use crate::outcome::{WHYS, name};

/// One socket of a connection, and the direction that it sends.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// What the kernel tells.
    pub record: Dump,
    /// Messages it sent each second since the last reading, by either path.
    pub messages: f64,
    /// The same in bytes.
    pub bytes: f64,
}

impl End {
    /// Whether its messages skip the stack.
    pub fn redirected(&self) -> bool {
        self.record.sock.path == PATH_REDIRECT
    }

    /// Why its last message went by the stack; nothing while they are redirected
    /// or before the first.
    pub fn why(&self) -> Option<&'static str> {
        let why = self.record.sock.why;
        (!self.redirected() && why != 0).then(|| name(WHYS, why))
    }

    /// The process last seen sending or connecting.
    pub fn pid(&self) -> Option<u32> {
        Some(self.record.sock.tgid).filter(|pid| *pid != 0)
    }
}

/// A connection by those of its sockets that are enrolled: the client's first
/// where that is one of them.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The same in each reading: the cookie of one of its sockets.
    pub id: u64,
    /// At least one.
    pub ends: Vec<End>,
}

impl Connection {
    /// Messages each second, both directions.
    pub fn messages(&self) -> f64 {
        self.ends.iter().map(|end| end.messages).sum()
    }

    /// Bytes each second, both directions.
    pub fn bytes(&self) -> f64 {
        self.ends.iter().map(|end| end.bytes).sum()
    }

    /// Bytes redirected and not read yet, both directions.
    pub fn unread(&self) -> u64 {
        self.ends.iter().map(|end| end.record.unread_bytes).sum()
    }

    fn redirected(&self) -> usize {
        self.ends.iter().filter(|end| end.redirected()).count()
    }
}

/// Orders of the connections; the rest is in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Most messages first
    Messages,
    /// Most bytes first
    Bytes,
    /// Most unread bytes first
    Unread,
    /// What is on the stack first
    Path,
    /// By process
    Pid,
    /// By local address
    Local,
    /// By remote address
    Remote,
}

impl Sort {
    /// Its name on the command line and on the screen.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Bytes => "bytes",
            Self::Unread => "unread",
            Self::Path => "path",
            Self::Pid => "pid",
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }

    fn of_key(key: char) -> Option<Self> {
        Some(match key {
            'm' => Self::Messages,
            'b' => Self::Bytes,
            'u' => Self::Unread,
            's' => Self::Path,
            'p' => Self::Pid,
            'l' => Self::Local,
            'r' => Self::Remote,
            _ => return None,
        })
    }

    fn order(self, connections: &mut [Connection]) {
        let first = |c: &Connection| c.ends[0].record.sock;
        match self {
            Self::Messages => connections.sort_by(|a, b| b.messages().total_cmp(&a.messages())),
            Self::Bytes => connections.sort_by(|a, b| b.bytes().total_cmp(&a.bytes())),
            Self::Unread => connections.sort_by_key(|c| Reverse(c.unread())),
            Self::Path => connections.sort_by_key(Connection::redirected),
            Self::Pid => connections.sort_by_key(|c| first(c).tgid),
            Self::Local => {
                connections.sort_by_key(|c| (first(c).tuple.local, first(c).tuple.local_port));
            }
            Self::Remote => {
                connections.sort_by_key(|c| (first(c).tuple.remote, first(c).tuple.remote_port));
            }
        }
    }
}

/// What the screen shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// All connections, a line each.
    List,
    /// The selected one.
    Detail,
    /// All, while the filter is typed.
    Filter,
}

/// Whether to go on after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Stay,
    /// End.
    Quit,
}

/// All of it.
#[derive(Debug)]
pub struct Model {
    instance: String,
    connections: Vec<Connection>,
    counters: Option<Stats>,
    sent: HashMap<u64, (u64, u64)>,
    read: Option<Instant>,
    sort: Sort,
    reverse: bool,
    filter: String,
    page: Page,
    paused: bool,
    /// The connection that stays selected wherever it moves; none is the first line.
    selected: Option<u64>,
    /// Where it was, for when it closes.
    line: usize,
    /// Lines of the list on the screen, as last drawn.
    height: usize,
}

impl Model {
    /// Nothing read yet.
    pub fn new(instance: &str, sort: Sort, filter: String) -> Self {
        Self {
            instance: instance.to_owned(),
            connections: Vec::new(),
            counters: None,
            sent: HashMap::new(),
            read: None,
            sort,
            reverse: false,
            filter,
            page: Page::List,
            paused: false,
            selected: None,
            line: 0,
            height: 1,
        }
    }

    /// Takes a new reading of all enrolled sockets.
    pub fn update(&mut self, records: Vec<Dump>, counters: Stats, now: Instant) {
        let passed = self.read.map(|before| (now - before).as_secs_f64());
        let mut sent = HashMap::with_capacity(records.len());
        let mut at: HashMap<u64, usize> = HashMap::with_capacity(records.len() / 2 + 1);
        self.connections.clear();
        for record in records {
            let sock = &record.sock;
            let total = (
                sock.redirected_messages + sock.stack_messages,
                sock.redirected_bytes + sock.stack_bytes,
            );
            sent.insert(sock.cookie, total);
            let before = self.sent.get(&sock.cookie);
            let rate = |now: u64, before: Option<u64>| match (passed, before) {
                (Some(passed), Some(before)) if passed > 0.0 => {
                    as_f64(now.saturating_sub(before)) / passed
                }
                _ => 0.0,
            };
            let end = End {
                messages: rate(total.0, before.map(|b| b.0)),
                bytes: rate(total.1, before.map(|b| b.1)),
                record,
            };
            let peer = Some(sock.peer_cookie).filter(|peer| *peer != 0);
            let id = peer.map_or(sock.cookie, |peer| peer.min(sock.cookie));
            let connections = &mut self.connections;
            let index = *at.entry(id).or_insert_with(|| {
                connections.push(Connection {
                    id,
                    ends: Vec::with_capacity(2),
                });
                connections.len() - 1
            });
            let ends = &mut connections[index].ends;
            let place = if sock.role == ROLE_ACTIVE {
                0
            } else {
                ends.len()
            };
            ends.insert(place, end);
        }
        self.sent = sent;
        self.read = Some(now);
        self.counters = Some(counters);
        self.arrange();
    }

    /// Equal ones stay in one order from reading to reading.
    fn arrange(&mut self) {
        self.connections.sort_unstable_by_key(|c| c.id);
        self.sort.order(&mut self.connections);
        if self.reverse {
            self.connections.reverse();
        }
    }

    /// Does what the key stands for.
    pub fn press(&mut self, key: KeyEvent) -> Flow {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match (key.code, self.page) {
            (KeyCode::Char('c'), _) if control => return Flow::Quit,
            (code, Page::Filter) => self.type_filter(code, control),
            (KeyCode::Char('q'), Page::List) => return Flow::Quit,
            (KeyCode::Esc | KeyCode::Enter | KeyCode::Char('q'), Page::Detail) => {
                self.page = Page::List;
            }
            (KeyCode::Esc, Page::List) => self.filter.clear(),
            (KeyCode::Enter, Page::List) => self.page = Page::Detail,
            (KeyCode::Char('/'), _) => self.page = Page::Filter,
            (KeyCode::Char(' '), _) => self.paused = !self.paused,
            (KeyCode::Char('i'), _) => {
                self.reverse = !self.reverse;
                self.arrange();
            }
            (KeyCode::Char(c), _) => {
                if let Some(step) = self.step(key.code) {
                    self.step_by(step);
                } else if let Some(sort) = Sort::of_key(c) {
                    self.sort = sort;
                    self.arrange();
                }
            }
            (code, _) => {
                if let Some(step) = self.step(code) {
                    self.step_by(step);
                }
            }
        }
        Flow::Stay
    }

    /// How many lines down, for keys that move.
    fn step(&self, key: KeyCode) -> Option<isize> {
        let page = isize::try_from(self.height.max(1)).unwrap_or(1);
        Some(match key {
            KeyCode::Down | KeyCode::Char('j') => 1,
            KeyCode::Up | KeyCode::Char('k') => -1,
            KeyCode::PageDown => page,
            KeyCode::PageUp => -page,
            KeyCode::Home | KeyCode::Char('g') => isize::MIN,
            KeyCode::End | KeyCode::Char('G') => isize::MAX,
            _ => return None,
        })
    }

    fn step_by(&mut self, step: isize) {
        // The view knows what the filter leaves: it settles the selection.
        self.line = self.line.saturating_add_signed(step);
        self.selected = None;
    }

    fn type_filter(&mut self, key: KeyCode, control: bool) {
        match key {
            KeyCode::Enter => self.page = Page::List,
            KeyCode::Esc => {
                self.filter.clear();
                self.page = Page::List;
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char('u') if control => self.filter.clear(),
            KeyCode::Char(c) if !control => self.filter.push(c),
            _ => {}
        }
    }

    /// The connections that are to be shown, by their index, where `matches` says
    /// which the filter leaves; the line of the selected one comes with them.
    pub fn visible(&mut self, mut matches: impl FnMut(&Connection) -> bool) -> (Vec<usize>, usize) {
        let visible: Vec<usize> = (0..self.connections.len())
            .filter(|index| self.filter.is_empty() || matches(&self.connections[*index]))
            .collect();
        let found = self.selected.and_then(|id| {
            visible
                .iter()
                .position(|index| self.connections[*index].id == id)
        });
        self.line = found
            .unwrap_or(self.line)
            .min(visible.len().saturating_sub(1));
        // The first line is a place, not a connection: the busiest stays in view.
        self.selected = visible
            .get(self.line)
            .filter(|_| self.line > 0 || self.page == Page::Detail)
            .map(|index| self.connections[*index].id);
        (visible, self.line)
    }

    /// Tells how many lines a page has.
    pub fn set_height(&mut self, lines: usize) {
        self.height = lines;
    }

    /// By the index that [`Model::visible`] gave.
    pub fn connection(&self, index: usize) -> &Connection {
        &self.connections[index]
    }

    /// All of them, in their order.
    pub fn connections(&self) -> &[Connection] {
        &self.connections
    }

    /// The counters of the last reading.
    pub fn counters(&self) -> Option<&Stats> {
        self.counters.as_ref()
    }

    /// Name of the instance.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// What is shown.
    pub fn page(&self) -> Page {
        self.page
    }

    /// What a line must have in it.
    pub fn filter(&self) -> &str {
        &self.filter
    }

    /// The order, and whether it is turned round.
    pub fn sort(&self) -> (Sort, bool) {
        (self.sort, self.reverse)
    }

    /// Whether it stands still.
    pub fn paused(&self) -> bool {
        self.paused
    }
}

/// For rates and sums on a screen.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn as_f64(n: u64) -> f64 {
    n as f64
}
