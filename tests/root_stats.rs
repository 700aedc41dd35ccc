//! `stats` for monitoring systems, and again and again.

mod common;

use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::pair::Pair;
use common::process::Process;
use common::warm::round_trip;
use common::warm::warm_up;

/// A running `stats --watch`.
struct Watch {
    child: Process,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(instance: &Instance, args: &[&str]) -> Self {
        let mut child = Process::start(
            Command::new(env!("CARGO_BIN_EXE_sockaccel"))
                .args(["stats", "--instance", instance.name(), "--watch"])
                .args(args)
                .stdout(Stdio::piped()),
        );
        let stdout = child.0.stdout.take().map(BufReader::new);
        Self { child, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().expect("not closed");
        stdout.read_line(&mut line).expect("readable");
        line
    }

    fn code(&mut self) -> Option<i32> {
        self.child.ended(Deadline::seconds(60)).code()
    }
}

#[test]
fn openmetrics_has_the_counters_of_json() {
    let cgroup = Cgroup::new("stats");
    let instance = Instance::enable(&cgroup, &[]);
    let joined = cgroup.join();
    warm_up(&instance, &Pair::new());
    drop(joined);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("sockaccel.prom");
    let name = file.to_str().expect("UTF-8");
    let written = instance.run(&["stats", "--format", "openmetrics", "--output", name]);
    assert_eq!(written.ok().stdout, "");
    let text = fs::read_to_string(&file).expect("the file");
    let printed = instance.run(&["stats", "--format", "openmetrics"]).ok();
    assert_eq!(printed.stdout, text);
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    let stats = instance.stats();
    let label = format!("sockaccel_instance=\"{}\"", instance.name());
    for (sample, field) in [
        ("redirected_messages_total", "redirected_messages"),
        ("redirected_bytes_total", "redirected_bytes"),
        ("sockets_seen_total", "seen"),
        ("promotions_total", "promotions"),
    ] {
        assert!(stats.count(field) > 0, "{field}");
        let line = format!("\nsockaccel_{sample}{{{label}}} {}\n", stats.count(field));
        assert!(text.contains(&line), "no {line} in {text}");
    }
    let unread = stats.by_reason("stack_reasons", "unread");
    assert!(unread > 0);
    let line = format!("\nsockaccel_stack_messages_total{{{label},reason=\"unread\"}} {unread}\n");
    assert!(text.contains(&line), "no {line} in {text}");

    let json = instance.run(&["stats", "--format", "json"]).ok().stdout;
    assert_eq!(json, instance.run(&["stats", "--json"]).ok().stdout);
    let table = instance.run(&["stats", "--format", "table"]).ok().stdout;
    assert_eq!(table, instance.run(&["stats"]).ok().stdout);
    for wrong in [
        &["stats", "--json", "--format", "openmetrics"][..],
        &["stats", "--watch", "--format", "openmetrics"],
        &["stats", "--watch", "--output", name],
        &["stats", "--watch", "0"],
        &["stats", "--output", "/dev/null"],
    ] {
        let ran = instance.run(wrong);
        assert_eq!(ran.code, Some(2), "{wrong:?}: {}", ran.stderr);
    }
}

#[test]
fn watch_tells_what_has_changed() {
    let cgroup = Cgroup::new("stats");
    let instance = Instance::enable(&cgroup, &[]);
    let joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    let mut watch = Watch::start(&instance, &["0.2", "--json"]);
    // Until it has read once, what comes is not a change.
    watch.line();
    for _ in 0..100 {
        round_trip(&pair);
    }
    let (mut messages, mut enrolled) = (0, 0);
    let closed = std::cell::Cell::new(Some((pair, joined)));
    // All of it is told, whatever the reading it falls into.
    while messages < 200 || enrolled > -2 {
        let line: Value = serde_json::from_str(&watch.line()).expect("JSON");
        messages += line["change"]["redirected_messages"]
            .as_i64()
            .expect("a number");
        enrolled += line["change"]["enrolled_now"].as_i64().expect("a number");
        assert!(line["seconds"].as_f64().expect("seconds") > 0.0);
        assert!(line["time"].as_str().expect("a time").ends_with('Z'));
        if messages == 200 {
            drop(closed.take());
        }
    }
    assert_eq!((messages, enrolled), (200, -2));
    watch.child.signal(Signal::SIGTERM);
    assert_eq!(watch.code(), Some(0));

    let mut watch = Watch::start(&instance, &["0.1"]);
    let header = watch.line();
    let words: Vec<&str> = header.split_whitespace().collect();
    assert_eq!(
        words,
        ["COUNTER", "REASON", "COUNT", "CHANGE", "PER", "SECOND"]
    );
    // The next block begins after an empty line.
    while watch.line() != "\n" {}
    assert_eq!(watch.line(), header);
    watch.child.signal(Signal::SIGINT);
    assert_eq!(watch.code(), Some(0));
}

#[test]
fn watch_ends_with_its_reader_and_with_the_instance() {
    let cgroup = Cgroup::new("stats");
    let instance = Instance::enable(&cgroup, &[]);
    let mut watch = Watch::start(&instance, &["3600"]);
    drop(watch.stdout.take());
    assert_eq!(watch.code(), Some(0));
    let mut watch = Watch::start(&instance, &["0.1", "--json"]);
    watch.line();
    instance.disable().ok();
    assert_eq!(watch.code(), Some(4));
}
