//! `events` tells of each change once, to one reader at a time, and costs
//! nothing when nobody listens.

mod common;

use std::io::BufRead as _;
use std::io::BufReader;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use sockaccel::maps::Table;
use sockaccel::maps::events;
use sockaccel::maps::layout::Audience;
use sockaccel::outcome::EVENTS;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::pair::Options;
use common::pair::Pair;
use common::pair::listen;
use common::process::Process;
use common::warm::round_trip;
use common::warm::warm_up;

const LIMIT: Duration = Duration::from_secs(60);

/// A running `events`.
struct Listener {
    child: Process,
    lines: Receiver<String>,
}

impl Listener {
    /// Returns when the programs know that it listens.
    fn start(instance: &Instance, args: &[&str]) -> Self {
        // What a killed one left on is not this one's doing.
        let before = audience(instance).until;
        let mut child = Process::start(
            Command::new(env!("CARGO_BIN_EXE_sockaccel"))
                .args(["events", "--instance", instance.name()])
                .args(args)
                .stdout(Stdio::piped()),
        );
        let stdout = BufReader::new(child.0.stdout.take().expect("a pipe"));
        let (to, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        Deadline::seconds(60).until("a listener", || {
            let now = audience(instance);
            now.kinds != 0 && now.until != before
        });
        Self { child, lines }
    }

    fn next(&mut self) -> String {
        self.lines.recv_timeout(LIMIT).expect("another event")
    }

    /// All until its end, and its exit status.
    fn rest(&mut self) -> (Vec<String>, Option<i32>) {
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("no end after {lines:?}"),
            }
        }
        (lines, self.child.ended(Deadline::seconds(60)).code())
    }

    /// Ends it; what it had told until then.
    fn end(&mut self) -> Vec<String> {
        self.child.signal(Signal::SIGTERM);
        let (lines, code) = self.rest();
        assert_eq!(code, Some(0));
        lines
    }
}

fn table(instance: &Instance) -> Table<u32, Audience> {
    let dir = instance.dir();
    Table::open(&dir, "sa_audience").expect("the map")
}

fn audience(instance: &Instance) -> Audience {
    table(instance).get(&0).expect("readable").expect("there")
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))
}

/// `event reason local`, sorted: the order of the two ends is not fixed.
fn told(lines: &[String]) -> Vec<String> {
    let mut told: Vec<String> = lines
        .iter()
        .map(|line| json(line))
        .map(|event| {
            let text = |field: &str| event[field].as_str().unwrap_or("-").to_owned();
            format!("{} {} {}", text("event"), text("reason"), text("local"))
        })
        .collect();
    told.sort();
    told
}

fn expected(events: &[(&str, &str, &dyn ToString)]) -> Vec<String> {
    let mut events: Vec<String> = events
        .iter()
        .map(|(event, reason, local)| format!("{event} {reason} {}", local.to_string()))
        .collect();
    events.sort();
    events
}

#[test]
fn the_life_of_a_connection_is_told() {
    let cgroup = Cgroup::new("events");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let mut listener = Listener::start(&instance, &["--json"]);
    let pair = Pair::new();
    let client = pair.client.local_addr().expect("a name");
    let server = pair.server.local_addr().expect("a name");
    warm_up(&instance, &pair);
    instance.run(&["endpoint", "add", "127.0.0.1"]).ok();
    let policy = ["policy", "add", "127.0.0.1", "egress", "any", "deny"];
    instance.run(&policy).ok();
    round_trip(&pair);
    let lines = listener.end();
    assert_eq!(
        told(&lines),
        expected(&[
            ("enrolled", "-", &client),
            ("enrolled", "-", &server),
            ("paired", "-", &client),
            ("paired", "-", &server),
            ("promoted", "-", &client),
            ("promoted", "-", &server),
            ("denied", "denied", &client),
            ("denied", "denied", &server),
            ("demoted", "denied", &client),
            ("demoted", "denied", &server),
        ])
    );
    for line in &lines {
        let event = json(line);
        let active = event["local"] == client.to_string();
        assert_eq!(event["role"], if active { "active" } else { "passive" });
        let remote = if active { server } else { client };
        assert_eq!(event["remote"], remote.to_string());
        let cookie: u64 = event["cookie"]
            .as_str()
            .expect("a string")
            .parse()
            .expect("a number");
        assert!(cookie > 0);
        let time = event["time"].as_str().expect("a time");
        assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
        if active {
            assert_eq!(event["pid"], std::process::id(), "{line}");
        }
    }
    let stats = instance.stats();
    assert_eq!(stats.count("events_lost"), 0);
    assert_eq!(stats.by_reason("demotions", "denied"), 2);
    assert_eq!(stats.count("promotions"), 2);
    assert_eq!(audience(&instance).kinds, 0, "switched off");
}

#[test]
fn what_is_skipped_or_ejected_is_told_with_its_reason() {
    let cgroup = Cgroup::new("events");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let mut listener = Listener::start(&instance, &["--json", "--kind", "skipped,ejected"]);
    let blocking = Pair::with(&Options {
        client_nonblocking: false,
        ..Options::default()
    });
    // Its reader shows only after accept(2).
    let late = Pair::new();
    late.server.set_nonblocking(false).expect("O_NONBLOCK");
    for pair in [&blocking, &late] {
        round_trip(pair);
    }
    Deadline::seconds(30).until("an ejection", || {
        instance.stats().by_reason("ejected", "blocking_reader") == 2
    });
    let name = |stream: &std::net::TcpStream| stream.local_addr().expect("a name");
    assert_eq!(
        told(&listener.end()),
        expected(&[
            ("skipped", "blocking_reader", &name(&blocking.client)),
            ("skipped", "peer_not_eligible", &name(&blocking.server)),
            ("ejected", "blocking_reader", &name(&late.client)),
            ("ejected", "blocking_reader", &name(&late.server)),
        ])
    );
}

#[test]
fn what_a_disabled_cgroup_takes_out_is_told() {
    let (cgroup, other) = (Cgroup::new("events"), Cgroup::new("events"));
    let instance = Instance::try_enable(&[&cgroup, &other], &[]).expect("enabled");
    let joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    drop(joined);
    let mut listener = Listener::start(&instance, &["--json", "--kind", "ejected"]);
    let path = cgroup.path().to_str().expect("a path");
    instance.run(&["disable", "--cgroup", path]).ok();
    let name = |stream: &std::net::TcpStream| stream.local_addr().expect("a name");
    assert_eq!(
        told(&listener.end()),
        expected(&[
            ("ejected", "disabled", &name(&pair.client)),
            ("ejected", "disabled", &name(&pair.server)),
        ])
    );
}

#[test]
fn filters_and_limits() {
    let cgroup = Cgroup::new("events");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let options = Options::default();
    let (one, two) = (listen(&options), listen(&options));
    let port = two.local_addr().expect("a name").port();

    let mut listener = Listener::start(&instance, &["--port", &port.to_string(), "--count", "3"]);
    let pairs = [Pair::on(&one, &options), Pair::on(&two, &options)];
    warm_up(&instance, &pairs[0]);
    warm_up(&instance, &pairs[1]);
    let (lines, code) = listener.rest();
    assert_eq!((lines.len(), code), (3, Some(0)), "{lines:?}");
    for line in &lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let kind = words[1];
        assert!(EVENTS.iter().any(|event| event.name == kind), "{line}");
        assert!(line.contains(&format!(":{port}")), "{line}");
    }

    let own = std::process::id().to_string();
    let nobody = "4194305";
    for (args, some) in [
        (["--pid", &own, "--kind", "enrolled"], true),
        (["--pid", nobody, "--kind", "enrolled"], false),
        (["--reason", "blocking_reader", "--kind", "enrolled"], false),
        (["--port", "1", "--kind", "enrolled"], false),
    ] {
        let mut listener = Listener::start(&instance, &args);
        let _pair = Pair::new();
        assert_eq!(!listener.end().is_empty(), some, "{args:?}");
    }

    let mut listener = Listener::start(&instance, &["--duration", "0.3"]);
    assert_eq!(listener.rest(), (vec![], Some(0)));
    for wrong in [
        ["--kind", "none"],
        ["--reason", "none"],
        ["--port", "0"],
        ["--count", "0"],
        ["--duration", "x"],
    ] {
        let ran = instance.run(&[&["events"][..], &wrong].concat());
        assert_eq!(ran.code, Some(2), "{wrong:?}: {}", ran.stderr);
    }
}

#[test]
fn one_reader_at_a_time() {
    let cgroup = Cgroup::new("events");
    let instance = Instance::enable(&cgroup, &[]);
    let mut listener = Listener::start(&instance, &[]);
    let second = instance.run(&["events"]);
    assert_eq!(second.code, Some(1));
    assert!(second.stderr.contains("one at a time"), "{}", second.stderr);
    // It holds none of the locks that others need.
    instance.run(&["stats"]).ok();
    let more = instance.enable_more(&[&cgroup], &["--scope", "endpoints"]);
    assert_eq!(more.code, Some(0), "{}", more.stderr);
    // The reader goes on, and the next one is let in when it has ended.
    listener.end();
    Listener::start(&instance, &[]).end();
}

#[test]
fn it_ends_with_its_reader_and_with_the_instance() {
    let cgroup = Cgroup::new("events");
    let instance = Instance::enable(&cgroup, &[]);
    let mut child = Process::start(
        Command::new(env!("CARGO_BIN_EXE_sockaccel"))
            .args(["events", "--instance", instance.name()])
            .stdout(Stdio::piped()),
    );
    drop(child.0.stdout.take());
    assert_eq!(child.ended(Deadline::seconds(60)).code(), Some(0));

    let mut listener = Listener::start(&instance, &[]);
    listener.child.signal(Signal::SIGINT);
    assert_eq!(listener.rest(), (vec![], Some(0)));

    let mut listener = Listener::start(&instance, &[]);
    instance.disable().ok();
    assert_eq!(listener.rest(), (vec![], Some(4)));
}

/// The programs stop at the deadline that it cannot move any more.
#[test]
fn a_killed_reader_is_not_written_for() {
    let cgroup = Cgroup::new("events");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    drop(Listener::start(&instance, &[]));
    let left = audience(&instance);
    assert_ne!(left.kinds, 0, "nobody switched it off");
    // Still written, and not for the next reader.
    drop(Pair::new());
    let mut next = Listener::start(&instance, &["--json"]);
    assert_eq!(next.end(), [""; 0]);

    let mut over = left;
    over.until = events::now().expect("the time");
    table(&instance).set(&0, &over).expect("written");
    drop(Pair::new());
    assert_eq!(audience(&instance).kinds, 0);
}

#[test]
fn lost_events_are_counted_and_told() {
    let cgroup = Cgroup::new("events");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let mut listener = Listener::start(&instance, &["--json"]);
    listener.child.signal(Signal::SIGSTOP);
    // As if it were only slow.
    let mut patient = audience(&instance);
    patient.until = u64::MAX;
    table(&instance).set(&0, &patient).expect("written");
    let options = Options::default();
    let at = listen(&options);
    let deadline = Deadline::seconds(120);
    while instance.stats().count("events_lost") == 0 {
        for _ in 0..500 {
            Pair::on(&at, &options);
        }
        deadline.check("a full ring buffer");
    }
    let lost = instance.stats().count("events_lost");
    listener.child.signal(Signal::SIGCONT);
    let mut events = 0_u64;
    loop {
        let event = json(&listener.next());
        if event["event"] == "lost" {
            assert_eq!(event["count"], lost);
            break;
        }
        events += 1;
    }
    assert!(events > 1000, "{events} events before the loss");
    // It goes on.
    let _pair = Pair::on(&at, &options);
    assert_eq!(json(&listener.next())["event"], "enrolled");
    listener.end();
}
