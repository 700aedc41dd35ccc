//! The screen and the keys, without a terminal.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;
use zerocopy::FromZeros;

use super::model::{Connection, Flow, Model, Page, Sort};
use super::processes::Processes;
use super::view::View;
use crate::maps::Stats;
use crate::maps::layout::{Addr, Dump, PATH_REDIRECT, ROLE_ACTIVE};
use crate::outcome::{REASONS, WHYS};
use crate::remedy::Remedies;

fn counters() -> Stats {
    Stats {
        seen: 0,
        enrolled_ever: 0,
        closed: 0,
        paired: 0,
        redirected_messages: 0,
        redirected_bytes: 0,
        stack_messages: 0,
        stack_bytes: 0,
        promotions: 0,
        refused_options: 0,
        hard_cap: 0,
        events_lost: 0,
        skipped: REASONS
            .iter()
            .map(|r| u64::from(r.name == "splicing") * 3)
            .collect(),
        ejected: REASONS
            .iter()
            .map(|r| u64::from(r.name == "pacing") * 7)
            .collect(),
        stack_why: vec![0; WHYS.len()],
        demoted_why: vec![0; WHYS.len()],
    }
}

/// Both sockets of connection `n`; the client has sent so many messages of 10
/// bytes, the server none. Odd ones are redirected.
fn pair(n: u16, messages: u64) -> [Dump; 2] {
    let mut client = Dump::new_zeroed();
    let sock = &mut client.sock;
    sock.cookie = 2 * u64::from(n) + 1;
    sock.peer_cookie = sock.cookie + 1;
    sock.role = ROLE_ACTIVE;
    sock.tgid = u32::MAX - u32::from(n);
    sock.stack_messages = 5;
    sock.stack_bytes = 50;
    sock.redirected_messages = messages;
    sock.redirected_bytes = 10 * messages;
    sock.path = if n % 2 == 1 { PATH_REDIRECT } else { 0 };
    let budget = WHYS.iter().position(|why| why.name == "budget");
    sock.why = budget.unwrap().try_into().unwrap();
    sock.tuple.local = Addr::from("10.0.0.1".parse::<IpAddr>().unwrap());
    sock.tuple.remote = Addr::from("10.0.0.2".parse::<IpAddr>().unwrap());
    sock.tuple.local_port = 1000 + n;
    sock.tuple.remote_port = 80;
    client.state = 1;
    let mut server = client;
    let tuple = client.sock.tuple;
    server.sock.cookie = client.sock.peer_cookie;
    server.sock.peer_cookie = client.sock.cookie;
    server.sock.role = 2;
    server.sock.redirected_messages = 0;
    server.sock.redirected_bytes = 0;
    server.sock.tuple.local = tuple.remote;
    server.sock.tuple.remote = tuple.local;
    server.sock.tuple.local_port = tuple.remote_port;
    server.sock.tuple.remote_port = tuple.local_port;
    server.unread_bytes = u64::from(n);
    // In no order.
    [server, client]
}

/// Connections 0 to 9, of which n sends 10 n messages each second.
fn model() -> Model {
    let mut model = Model::new("test", Sort::Messages, String::new());
    let now = Instant::now();
    for second in [1, 3] {
        let records = (0..10).flat_map(|n| pair(n, u64::from(n) * 10 * second));
        model.update(
            records.collect(),
            counters(),
            now + Duration::from_secs(second),
        );
    }
    model
}

struct Screen {
    terminal: Terminal<TestBackend>,
    view: View,
    processes: Processes,
}

impl Screen {
    fn new(width: u16, height: u16) -> Self {
        Self {
            terminal: Terminal::new(TestBackend::new(width, height)).expect("a terminal"),
            view: View::new(false, Remedies::of_run()),
            processes: Processes::default(),
        }
    }

    fn draw(&mut self, model: &mut Model) -> Vec<String> {
        let Self {
            terminal,
            view,
            processes,
        } = self;
        terminal
            .draw(|frame| view.draw(frame, model, processes))
            .expect("drawn");
        let buffer = terminal.backend().buffer();
        let width = usize::from(buffer.area.width);
        buffer
            .content()
            .chunks(width)
            .map(|line| line.iter().map(Cell::symbol).collect::<String>())
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    fn buffer(&self) -> &Buffer {
        self.terminal.backend().buffer()
    }

    /// The list's local ports, from the top, and the line that is highlighted.
    fn ports(&mut self, model: &mut Model) -> (Vec<u16>, Option<u16>) {
        let lines = self.draw(model);
        let port = |line: &str| -> Option<u16> {
            let (_, rest) = line.split_once("10.0.0.1:")?;
            rest.split(' ').next()?.parse().ok()
        };
        let highlighted = lines
            .iter()
            .enumerate()
            .find(|(y, _)| {
                let cell = &self.buffer()[(0, u16::try_from(*y).unwrap())];
                cell.modifier.contains(ratatui::style::Modifier::REVERSED)
            })
            .and_then(|(_, line)| port(line));
        let ports = lines.iter().filter_map(|line| port(line)).map(|p| p - 1000);
        (ports.collect(), highlighted.map(|p| p - 1000))
    }
}

fn press(model: &mut Model, keys: &str) -> Flow {
    for key in keys.split_whitespace() {
        let (code, modifiers) = match key {
            "Enter" => (KeyCode::Enter, KeyModifiers::NONE),
            "Esc" => (KeyCode::Esc, KeyModifiers::NONE),
            "Up" => (KeyCode::Up, KeyModifiers::NONE),
            "Down" => (KeyCode::Down, KeyModifiers::NONE),
            "PgDn" => (KeyCode::PageDown, KeyModifiers::NONE),
            "PgUp" => (KeyCode::PageUp, KeyModifiers::NONE),
            "Home" => (KeyCode::Home, KeyModifiers::NONE),
            "End" => (KeyCode::End, KeyModifiers::NONE),
            "Backspace" => (KeyCode::Backspace, KeyModifiers::NONE),
            "Space" => (KeyCode::Char(' '), KeyModifiers::NONE),
            "^C" => (KeyCode::Char('c'), KeyModifiers::CONTROL),
            "^U" => (KeyCode::Char('u'), KeyModifiers::CONTROL),
            one => (
                KeyCode::Char(one.chars().next().unwrap()),
                KeyModifiers::NONE,
            ),
        };
        if model.press(KeyEvent::new(code, modifiers)) == Flow::Quit {
            return Flow::Quit;
        }
    }
    Flow::Stay
}

#[test]
fn both_sockets_are_one_line_with_rates() {
    let model = model();
    assert_eq!(model.connections().len(), 10);
    let busiest = &model.connections()[0];
    assert_eq!(busiest.id, 19);
    assert_eq!(busiest.ends.len(), 2);
    assert_eq!(busiest.ends[0].record.sock.role, ROLE_ACTIVE);
    // 180 messages of 10 bytes in two seconds.
    assert!((busiest.messages() - 90.0).abs() < 1e-9);
    assert!((busiest.bytes() - 900.0).abs() < 1e-9);
    assert_eq!(busiest.unread(), 9);
    assert_eq!(busiest.ends[0].why(), None);
    assert_eq!(model.connections()[1].ends[0].why(), Some("budget"));
}

#[test]
fn a_connection_is_new_before_it_has_a_rate() {
    let mut model = Model::new("test", Sort::Messages, String::new());
    let now = Instant::now();
    model.update(pair(1, 1000).into(), counters(), now);
    assert!(model.connections()[0].messages().abs() < 1e-9);
    let both = [pair(1, 1001), pair(2, 1000)].concat();
    model.update(both, counters(), now + Duration::from_secs(1));
    let rates: Vec<f64> = model
        .connections()
        .iter()
        .map(Connection::messages)
        .collect();
    assert!(
        (rates[0] - 1.0).abs() < 1e-9 && rates[1].abs() < 1e-9,
        "{rates:?}"
    );
    // One end alone, and none at all.
    model.update(
        vec![pair(1, 1001)[0]],
        counters(),
        now + Duration::from_secs(2),
    );
    assert_eq!(model.connections()[0].ends.len(), 1);
    model.update(vec![], counters(), now + Duration::from_secs(3));
    assert!(model.connections().is_empty());
    assert_eq!(Screen::new(80, 24).ports(&mut model), (vec![], None));
}

/// Keys, the connections from the top, the highlighted one.
#[test]
fn keys_sort_move_and_filter() {
    let falling: Vec<u16> = (0..10).rev().collect();
    let rising: Vec<u16> = (0..10).collect();
    let cases: &[(&str, &[u16], Option<u16>)] = &[
        ("", &falling, Some(9)),
        ("b", &falling, Some(9)),
        ("i", &rising, Some(0)),
        ("i i", &falling, Some(9)),
        ("l", &rising, Some(0)),
        ("p", &falling, Some(9)),
        ("u", &falling, Some(9)),
        ("r", &rising, Some(0)),
        ("s", &[0, 2, 4, 6, 8, 1, 3, 5, 7, 9], Some(0)),
        ("Down", &falling, Some(8)),
        ("j j k", &falling, Some(8)),
        ("Up", &falling, Some(9)),
        ("End", &falling, Some(0)),
        ("G Home", &falling, Some(9)),
        ("g", &falling, Some(9)),
        ("PgDn PgUp", &falling, Some(9)),
        // The first line is a place, any other a connection.
        ("l", &rising, Some(0)),
        ("Down l", &rising, Some(8)),
        ("/ b u d g e t Enter", &[8, 6, 4, 2, 0], Some(8)),
        ("/ 1 0 0 3", &[3], Some(3)),
        ("/ 1 0 0 3 Esc", &falling, Some(9)),
        ("/ 1 0 0 3 Enter Esc", &falling, Some(9)),
        ("/ 1 0 0 3 4 Backspace Enter", &[3], Some(3)),
        ("/ x ^U 1 0 0 3 Enter", &[3], Some(3)),
        ("/ n o n e Enter", &[], None),
        // While it is typed, letters are no commands.
        ("/ q Esc", &falling, Some(9)),
        ("x F1", &falling, Some(9)),
    ];
    for (keys, ports, highlighted) in cases {
        let mut model = model();
        let mut screen = Screen::new(150, 14);
        screen.ports(&mut model);
        for key in keys.split_whitespace() {
            assert_eq!(press(&mut model, key), Flow::Stay, "{keys}");
            screen.ports(&mut model);
        }
        let expected = (ports.to_vec(), *highlighted);
        assert_eq!(screen.ports(&mut model), expected, "{keys}");
    }
}

#[test]
fn keys_that_end() {
    for keys in ["q", "^C", "Enter ^C", "/ ^C", "Enter Esc q", "Enter q q"] {
        assert_eq!(press(&mut model(), keys), Flow::Quit, "{keys}");
    }
    for keys in ["Enter q", "/ q", "Esc", "Space"] {
        assert_eq!(press(&mut model(), keys), Flow::Stay, "{keys}");
    }
    let mut model = model();
    press(&mut model, "Space");
    assert!(model.paused());
    press(&mut model, "Space Enter");
    assert_eq!((model.paused(), model.page()), (false, Page::Detail));
}

#[test]
fn the_list_scrolls_with_its_line() {
    let mut model = model();
    // Two lines at the top, one header, one at the bottom: four connections.
    let mut screen = Screen::new(150, 8);
    assert_eq!(screen.ports(&mut model), (vec![9, 8, 7, 6], Some(9)));
    press(&mut model, "Down Down Down Down");
    assert_eq!(screen.ports(&mut model), (vec![8, 7, 6, 5], Some(5)));
    press(&mut model, "End");
    assert_eq!(screen.ports(&mut model), (vec![3, 2, 1, 0], Some(0)));
    press(&mut model, "PgUp");
    assert_eq!(screen.ports(&mut model), (vec![4, 3, 2, 1], Some(4)));
    // The selected one closes: the line stays.
    let records = (0..10).filter(|n| *n != 4).flat_map(|n| pair(n, 1));
    model.update(
        records.collect(),
        counters(),
        Instant::now() + Duration::from_secs(9),
    );
    assert!(screen.ports(&mut model).1.is_some());
}

#[test]
fn what_is_on_the_screen() {
    let mut model = model();
    let mut screen = Screen::new(150, 14);
    let lines = screen.draw(&mut model);
    assert_eq!(
        lines[0],
        "test: 10 connections, 5 redirected both ways, 450 messages/s, 4500 bytes/s"
    );
    assert_eq!(lines[1], "sockets not enrolled: pacing 7, splicing 3");
    let header: Vec<&str> = lines[2].split_whitespace().collect();
    assert_eq!(
        header,
        [
            "PID", "COMMAND", "LOCAL", "REMOTE", "PATH", "MSG/S", "BYTES/S", "UNREAD", "REASON"
        ]
    );
    let words: Vec<&str> = lines[4].split_whitespace().collect();
    let pid = u32::MAX - 8;
    assert_eq!(
        words,
        [
            &format!("{pid}>{pid}")[..17],
            "?>?",
            "10.0.0.1:1008",
            "10.0.0.2:80",
            "stack>stack",
            "80",
            "800",
            "8",
            "budget"
        ]
    );
    assert!(lines[13].starts_with("by messages"), "{}", lines[13]);
    press(&mut model, "i Space / 8 0");
    let lines = screen.draw(&mut model);
    assert_eq!(lines[13], "filter: 80_");
    press(&mut model, "Enter");
    let lines = screen.draw(&mut model);
    assert!(lines[13].starts_with("paused filter: 80 by messages, inverted"));

    press(&mut model, "Esc i Down Enter");
    let text = screen.draw(&mut model).join("\n");
    let budget = WHYS.iter().find(|why| why.name == "budget").unwrap();
    for part in [
        "10.0.0.1:1008 to 10.0.0.2:80",
        "10.0.0.2:80 to 10.0.0.1:1008",
        budget.text,
        "80 messages/s, 800 bytes/s",
        "240 messages, 2400 bytes",
        "5 messages, 50 bytes",
        "ESTAB, blocking, cookie 17",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[test]
fn any_size_of_terminal() {
    for width in [1, 2, 10, 21, 22, 40, 60, 80, 119] {
        for height in [1, 2, 3, 7, 8, 15] {
            let mut model = model();
            let mut screen = Screen::new(width, height);
            for keys in ["Down", "End", "Enter", "Esc", "/ 8"] {
                press(&mut model, keys);
                let lines = screen.draw(&mut model);
                assert_eq!(lines.len(), usize::from(height));
            }
        }
    }
    // What is most important stays.
    let narrow = Screen::new(30, 10).draw(&mut model());
    assert!(narrow[2].starts_with("REMOTE"), "{narrow:?}");
    assert!(narrow[3].contains("10.0.0.2:80"), "{narrow:?}");
    assert!(narrow[3].contains("redirect>redirect"), "{narrow:?}");
    // Both ends tell one connection of a server from another.
    let narrow = Screen::new(60, 10).draw(&mut model());
    assert!(narrow[3].contains("10.0.0.1:1"), "{narrow:?}");
    assert!(narrow[2].contains("MSG/S"), "{narrow:?}");
    let flat = Screen::new(80, 2).draw(&mut model());
    assert!(flat[1].contains("10.0.0.2:80"), "{flat:?}");
}

#[test]
fn colours_only_where_they_are_wanted() {
    for color in [false, true] {
        let mut screen = Screen::new(150, 14);
        screen.view = View::new(color, Remedies::of_run());
        screen.draw(&mut model());
        let colours: std::collections::BTreeSet<String> = screen
            .buffer()
            .content()
            .iter()
            .map(|cell| format!("{:?}", cell.fg))
            .collect();
        let expected: &[Color] = if color {
            &[Color::Green, Color::Reset, Color::Yellow]
        } else {
            &[Color::Reset]
        };
        let expected = expected.iter().map(|color| format!("{color:?}")).collect();
        assert_eq!(colours, expected);
    }
}
