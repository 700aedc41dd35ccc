//! `bench`: its figures come with proof, and what it makes goes away.
//! Nothing here looks at how fast anything is.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use common::cgroup::mount;
use common::deadline::Deadline;
use common::instance::BASE;
use common::instance::{Ran, sockaccel};
use common::process::Process;

/// Short, as only the path matters, and long enough that an exchange ends.
const QUICK: &[&str] = &["--rounds", "1", "--seconds", "0.1", "--warm-up", "0.05"];

fn bench(words: &str, more: &[&str]) -> Ran {
    common::require_root();
    let words: Vec<&str> = words.split_whitespace().collect();
    sockaccel(&[&["bench", "--json"], &words[..], more, QUICK].concat())
}

fn rows(value: &Value) -> &Vec<Value> {
    value.as_array().expect("an array")
}

fn number(value: &Value, what: &str) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{what}: {value}"))
}

/// Cell and mode, for messages; and the mode's row.
fn modes(document: &Value) -> Vec<(String, &Value, &Value)> {
    let mut found = Vec::new();
    for cell in rows(&document["cells"]) {
        for mode in rows(&cell["modes"]) {
            let what = format!(
                "{} {} {} {}",
                cell["workload"], cell["size"], cell["place"], mode["mode"]
            );
            found.push((what, cell, mode));
        }
    }
    found
}

#[test]
fn every_workload_and_place_has_figures_and_proof() {
    let directory = tempfile::tempdir().expect("a directory");
    let report = directory.path().join("a<b>&'c'.html");
    let ran = bench(
        "--workload rr,stream,pipelined,crr,slow --size 64,16384 --connections 3 \
         --place loopback,netns,nat --cores same --report",
        &[report.to_str().expect("UTF-8")],
    )
    .ok();
    let document = ran.json();
    assert_eq!(rows(&document["cells"]).len(), 5 * 2 * 3);
    assert!(rows(&document["void"]).is_empty(), "{}", document["void"]);
    assert!(rows(&document["left_out"]).is_empty());
    for (what, cell, mode) in modes(&document) {
        let word = |of: &Value| of.as_str().unwrap_or_default().to_owned();
        let (workload, place) = (word(&cell["workload"]), word(&cell["place"]));
        let (name, size) = (word(&mode["mode"]), number(&cell["size"], &what));
        assert_eq!(mode["failed"], Value::Null, "{what}");
        assert!(number(&mode["rate"]["median"], &what) > 0.0, "{what}");
        assert!(number(&mode["ratio"]["median"], &what) > 0.0, "{what}");
        assert!(number(&mode["cpu_us"]["median"], &what) > 0.0, "{what}");
        assert_eq!(rows(&mode["rounds"]).len(), 1, "{what}");
        let answered = workload != "stream" && workload != "slow";
        if answered {
            let at = |name| number(&mode["latency_us"][name], &what);
            assert!(0.0 < at("p50") && at("p50") <= at("p99"), "{what}");
            assert!(at("p99") <= at("p999") && at("p999") <= at("max"), "{what}");
        } else {
            assert_eq!(mode["latency_us"], Value::Null, "{what}");
        }
        let packets = number(&mode["interface_packets"], &what);
        let bytes = number(&mode["interface_bytes"], &what);
        match (&*name, &*workload) {
            ("tcp" | "tcp-again", _) => {
                assert_eq!(mode["path"], "stack", "{what}");
                // Nothing goes without its headers.
                if workload != "slow" {
                    assert!(bytes > 1.0, "{what}: {bytes}");
                }
            }
            ("sockaccel", "rr") if size <= 4096.0 => {
                assert_eq!(mode["path"], "redirect", "{what}");
                assert!(number(&mode["redirected"], &what) >= 0.9, "{what}");
                assert!(packets < 0.3, "{what}: {packets} packets per message");
                assert!(bytes < 0.5, "{what}: {bytes} bytes per byte");
            }
            // A key of addresses does not find its peer behind a translation.
            ("textbook", "rr") => {
                let path = if place == "nat" { "stack" } else { "redirect" };
                assert_eq!(mode["path"], path, "{what}");
            }
            ("unix", _) => assert_eq!((bytes, &*place), (0.0, "loopback"), "{what}"),
            _ => {}
        }
    }
    assert_report(&report, &document);
}

/// One self-contained file, well-formed, with its plots; the raw data beside it.
fn assert_report(path: &Path, printed: &Value) {
    let text = fs::read_to_string(path).expect("the report");
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..roxmltree::ParsingOptions::default()
    };
    let page = roxmltree::Document::parse_with_options(&text, options).expect("XML");
    let plots: Vec<_> = page
        .descendants()
        .filter(|node| node.tag_name().name() == "figure")
        .map(|figure| {
            let caption = figure.descendants().find_map(|node| {
                (node.tag_name().name() == "figcaption").then(|| node.text().unwrap_or_default())
            });
            // The legend's frame is a rectangle that is not seen.
            let marks = |node: &roxmltree::Node| {
                matches!(node.tag_name().name(), "rect" | "circle")
                    && node.attribute("opacity") != Some("0")
            };
            let marks = figure.descendants().filter(marks).count();
            (caption.expect("a caption").to_owned(), marks)
        })
        .collect();
    for wanted in [
        "request/response: requests/s",
        "connect, request, close: requests/s",
        "one-way stream: bytes/s",
        "slow reader: bytes/s",
        "request/response: median latency, microseconds",
        "request/response: 99th percentile, microseconds",
        "one-way stream: throughput against message size",
        "request/response: latency against message size",
    ] {
        let of: Vec<_> = plots.iter().filter(|(title, _)| title == wanted).collect();
        assert_eq!(of.len(), 3, "{wanted}: one for each place, of {plots:?}");
        assert!(of.iter().all(|(_, marks)| *marks >= 6), "{wanted}: {of:?}");
    }
    for node in page.descendants() {
        for attribute in node.attributes() {
            let fetches = ["src", "href", "data"].contains(&attribute.name());
            assert!(!fetches, "the report fetches {}", attribute.value());
        }
    }
    assert!(!text.contains("url(") && !text.contains("@import"));
    let mut raw = path.as_os_str().to_owned();
    raw.push(".json");
    let raw = fs::read_to_string(PathBuf::from(raw)).expect("raw data");
    assert_eq!(&serde_json::from_str::<Value>(&raw).expect("JSON"), printed);
}

#[test]
fn nagle_segments_and_peers_elsewhere() {
    let ran = bench(
        "--workload rr --size 3000 --connections 1,16 --nagle on,off --place netns \
         --mtu 1500,9000 --mss 536 --mode sockaccel --remote --variant --budget-messages=32",
        &[],
    )
    .ok();
    let document = ran.json();
    assert_eq!(rows(&document["cells"]).len(), 2 * 2 * 2);
    for (what, _, mode) in modes(&document) {
        let name = mode["mode"].as_str().unwrap_or_default();
        let path = match name {
            "sockaccel" | "variant" => "redirect",
            _ => "stack",
        };
        assert_eq!(mode["path"], path, "{what}");
        if name.ends_with("-remote") {
            assert_eq!(mode["redirected"], 0.0, "{what}");
        }
    }
}

#[test]
fn a_figure_that_is_not_accelerated_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let wrapper = directory.path().join("sockaccel");
    let own = env!("CARGO_BIN_EXE_sockaccel");
    fs::write(
        &wrapper,
        format!(
            "#!/bin/sh\nif [ \"$1\" = enable ]; then shift; \
             exec '{own}' enable --exclude-cidr 0.0.0.0/0 \"$@\"; fi\nexec '{own}' \"$@\"\n"
        ),
    )
    .expect("written");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("executable");
    let wrapper = wrapper.to_str().expect("UTF-8");
    let words = "--workload rr --size 64 --mode sockaccel";
    let ran = bench(words, &["--sockaccel", wrapper]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let document = ran.json();
    assert_eq!(rows(&document["void"]).len(), 1);
    for (what, _, mode) in modes(&document) {
        assert_eq!(mode["path"], "stack", "{what}");
    }
    assert!(ran.stderr.contains("were redirected"), "{}", ran.stderr);
    let words: Vec<&str> = words.split(' ').collect();
    let ran = sockaccel(&[&["bench"], &words[..], QUICK, &["--sockaccel", wrapper]].concat());
    assert_eq!(ran.code, Some(1));
    assert!(ran.stdout.contains("NOT ACCELERATED"), "{}", ran.stdout);
}

#[test]
fn time_is_bounded_and_what_is_left_out_is_named() {
    let ran = bench("--matrix --max-time 0", &[]).ok();
    let document = ran.json();
    assert!(rows(&document["cells"]).is_empty());
    assert_eq!(rows(&document["left_out"]).len(), 5 * 8 * 3 * 2 * 5 * 2);
}

fn failing(args: &[&str], path: Option<&str>, code: i32, words: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sockaccel"));
    command.arg("bench").args(args);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let output = command.output().expect("run sockaccel");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: {said}");
    }
}

#[test]
fn failures_name_the_way_out() {
    common::require_root();
    let nowhere = Some("/nonexistent");
    failing(&["--place", "nat"], nowhere, 1, &["apt install iproute2"]);
    failing(&["--report", "/proc/no/x"], None, 1, &["/proc/no/x"]);
    failing(&["--report", "/tmp"], None, 1, &["/tmp"]);
    failing(&["--wait", "spin"], None, 2, &["--cores across"]);
    failing(&["--size", "0"], None, 2, &["1048576"]);
    let variant = ["--variant", "--budget-messages=0", "--rounds", "1"];
    failing(&variant, None, 2, &["--budget-messages"]);
}

/// What a benchmark with this pid has made and could leave behind.
fn traces(pid: u32) -> Vec<PathBuf> {
    let pins = Path::new(BASE);
    [
        (mount(), format!("sockaccel-bench-{pid}-")),
        (pins.to_owned(), format!("bench-{pid}-")),
    ]
    .iter()
    .filter_map(|(directory, prefix)| Some((fs::read_dir(directory).ok()?, prefix)))
    .flat_map(|(entries, prefix)| {
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(prefix)
        };
        entries
            .flatten()
            .map(|entry| entry.path())
            .filter(ours)
            .collect::<Vec<_>>()
    })
    .collect()
}

/// Processes whose parent it is.
fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[test]
fn signals_leave_nothing_behind() {
    common::require_root();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut running = Process::start(
            Command::new(env!("CARGO_BIN_EXE_sockaccel"))
                .args([
                    "bench",
                    "--workload",
                    "rr",
                    "--place",
                    "nat",
                    "--rounds",
                    "5000",
                ])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        );
        let pid = running.id();
        let deadline = Deadline::seconds(60);
        // Both programs of a measurement run, and everything is made.
        let peers = loop {
            let peers = children(pid);
            if peers.len() == 2 && traces(pid).len() == 4 {
                break peers;
            }
            deadline.check("the benchmark to begin");
            sleep(Duration::from_millis(5));
        };
        running.signal(signal);
        let status = running.ended(deadline);
        assert_eq!(status.code(), Some(1), "{signal}");
        assert_eq!(traces(pid), Vec::<PathBuf>::new(), "{signal}");
        for peer in peers {
            let gone = !Path::new(&format!("/proc/{peer}/cmdline")).exists();
            assert!(gone, "{signal}: process {peer} is left");
        }
    }
}
