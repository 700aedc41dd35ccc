//! `doctor`, run as users run it: what it says agrees with what is there, and
//! nothing is left of it, however it ends.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use common::cgroup::Cgroup;
use common::cgroup::mount;
use common::deadline::Deadline;
use common::deadline::PATIENCE;
use common::instance::BASE;
use common::instance::Instance;
use common::instance::Ran;
use common::instance::sockaccel;
use common::netns::Netns;
use common::other_program::OtherProgram;
use common::other_program::attached_to;
use sockaccel::doctor::fionread;
use sockaccel::doctor::fionread::Fionread;
use sockaccel::doctor::topics;

/// Other tests may keep this machine busy.
const DOCTOR: [&str; 4] = ["doctor", "--json", "--timeout", "60"];

const BINARY: &str = env!("CARGO_BIN_EXE_sockaccel");

/// The row of a check, about this object if it is about one.
fn row<'a>(report: &'a Value, check: &str) -> &'a Value {
    let rows = report["checks"].as_array().expect("an array");
    rows.iter()
        .find(|row| row["check"] == check)
        .unwrap_or_else(|| panic!("no row {check}: {report:#}"))
}

fn result<'a>(report: &'a Value, check: &str) -> &'a str {
    row(report, check)["result"].as_str().expect("a result")
}

fn found<'a>(report: &'a Value, check: &str) -> &'a str {
    row(report, check)["found"].as_str().expect("a text")
}

/// Everything that `doctor` made, by its process id.
fn traces(pid: u32) -> Vec<String> {
    let name = format!("doctor-{pid}");
    let in_dir = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path().display().to_string())
            .filter(|path| path.ends_with(&name))
            .collect()
    };
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let processes = processes
        .filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|line| line.split('\0').any(|word| word == name));
    let base = Path::new(BASE);
    [in_dir(&mount()), in_dir(base)]
        .concat()
        .into_iter()
        .chain(processes)
        .collect()
}

fn start(args: &[&str]) -> Child {
    Command::new(BINARY)
        .args(["doctor", "--timeout", &(30 * *PATIENCE).to_string()])
        .args(args)
        .env_remove("SOCKACCEL_ALLOW")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start doctor")
}

/// The process that runs a check of it; waits for one.
fn peer_of(doctor: &Child) -> Pid {
    let name = format!("doctor-{}", doctor.id());
    let mut found = None;
    Deadline::seconds(30).until("a check", || {
        found = fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .find_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
                let words: BTreeSet<&str> = line.split('\0').collect();
                (words.contains("doctor-peer") && words.contains(&*name)).then_some(pid)
            });
        found.is_some()
    });
    Pid::from_raw(found.expect("found"))
}

#[test]
fn every_check_is_made_and_the_kernel_behaves() {
    common::require_root();
    let run = sockaccel(&[&DOCTOR[..], &["--allow", "fionread,known-bad-kernel"]].concat()).ok();
    let report = run.json();
    let rows = report["checks"].as_array().expect("an array");
    for topic in topics() {
        let row = row(&report, topic.name);
        let meaning = row["meaning"].as_str().expect("a text");
        match row["result"].as_str().expect("a result") {
            "ok" => assert_eq!(meaning, topic.sound),
            "differs" => assert_eq!(meaning, topic.otherwise),
            "not_checked" => assert!(meaning.contains(topic.sound), "{row}"),
            other => panic!("{other}: {row}"),
        }
    }
    // What this kernel is known to do, as root_semantics.rs asserts it.
    for check in [
        "redirect",
        "redirect_to_waiting",
        "poll",
        "epoll_level",
        "epoll_edge",
        "half_close",
        "last_data_before_close",
        "last_data_at_tcp_close",
        "splice",
        "sendfile",
        "msg_peek",
        "backpressure",
        "drain",
    ] {
        assert_eq!(result(&report, check), "ok", "{report:#}");
    }
    for check in ["signals", "msg_waitall"] {
        assert_eq!(result(&report, check), "differs", "{report:#}");
    }
    assert!(found(&report, "signals").contains("EAGAIN"), "{report:#}");
    assert!(rows.len() >= topics().count());
    assert_eq!(report["result"], "differs");
}

#[test]
fn fionread_fails_unless_it_is_allowed() {
    common::require_root();
    let run = sockaccel(&["doctor", "--timeout", "60"]);
    let wrong = match fionread::probe() {
        Fionread::Wrong {
            redirected: true, ..
        } => Some("fionread_redirected"),
        Fionread::Wrong { .. } => Some("fionread_tcp"),
        _ => None,
    };
    let status = if wrong.is_some() { 3 } else { 0 };
    assert_eq!(run.code, Some(status), "{}", run.stderr);
    if let Some(wrong) = wrong {
        assert!(run.stdout.contains(wrong), "{}", run.stdout);
        assert!(run.stdout.contains("FAILS"), "{}", run.stdout);
        assert_eq!(
            run.stderr,
            format!(
                "sockaccel: doctor: {wrong} fails\n  \
                 To accept it where no such program runs:  --allow fionread\n"
            )
        );
    }
    // One JSON document, also when something fails.
    let json = sockaccel(&DOCTOR).json();
    for check in ["fionread_tcp", "fionread_redirected"] {
        let expected = if wrong == Some(check) { "fails" } else { "ok" };
        assert_eq!(result(&json, check), expected);
    }
}

/// Programs and rules of others, in a cgroup and a namespace of the test's own.
#[test]
fn what_redirected_bytes_do_not_meet_is_told() {
    let (cgroup, bare) = (Cgroup::new("told"), Cgroup::new("bare"));
    let nested = cgroup.nested("below");
    let _sock_ops = OtherProgram::attach(&cgroup);
    let _packets = OtherProgram::attach_to_packets(&cgroup);
    let netns = Netns::new("told");
    let look = |cgroup: &Cgroup| -> Value {
        let path = cgroup.path().to_str().expect("a path");
        netns.enter(|| sockaccel(&[&DOCTOR[..], &["--cgroup", path]].concat()).json())
    };
    let before = look(&bare);
    for check in ["other_sock_ops", "cgroup_skb", "netfilter", "tc"] {
        assert_eq!(result(&before, check), "ok", "{before:#}");
    }
    netns.run("nft", &["add table ip sat; add chain ip sat in { type filter hook input priority 0; }; add rule ip sat in counter accept"]);
    netns.run("tc", &["qdisc", "add", "dev", "lo", "clsact"]);
    let filter = "filter add dev lo egress u32 match u32 0 0 flowid 1:1";
    netns.run("tc", &filter.split(' ').collect::<Vec<_>>());
    let after = look(&nested);
    for (check, text) in [
        ("other_sock_ops", "sat_other (program "),
        ("cgroup_skb", "sat_other (program "),
        ("netfilter", "1 rule in table ip sat"),
        ("tc", "on lo egress: 1"),
    ] {
        assert_eq!(result(&after, check), "differs", "{after:#}");
        assert!(found(&after, check).contains(text), "{after:#}");
    }
    assert_eq!(
        row(&after, "cgroup_skb")["object"],
        nested.path().to_str().expect("a path")
    );
    // An instance is another tool to the next one.
    let _instance = Instance::enable(&bare, &[]);
    let beside = look(&cgroup);
    assert_eq!(result(&beside, "other_sk_msg"), "differs", "{beside:#}");
    let text = found(&beside, "other_sk_msg");
    assert!(text.contains("named sa_verdict"), "{text}");
}

#[test]
fn a_tool_that_is_missing_is_no_proof_of_absence() {
    common::require_root();
    let empty = tempfile::tempdir().expect("a temporary directory");
    let look = || Ran::of(Command::new(BINARY).args(DOCTOR).env("PATH", empty.path())).json();
    let report = look();
    for (check, text) in [("netfilter", "nft not found"), ("tc", "ip not found")] {
        assert_eq!(result(&report, check), "not_checked", "{report:#}");
        assert_eq!(found(&report, check), text);
    }
    // One that says nothing useful is none either.
    symlink("/bin/false", empty.path().join("nft")).expect("a useless nft");
    let report = look();
    assert_eq!(result(&report, "netfilter"), "not_checked", "{report:#}");
}

#[test]
fn a_check_that_hangs_is_told_and_ended() {
    common::require_root();
    let doctor = start(&["--json", "--allow", "fionread"]);
    let id = doctor.id();
    let peer = peer_of(&doctor);
    kill(peer, Signal::SIGSTOP).expect("stop the check");
    let output = doctor.wait_with_output().expect("doctor ends");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let hung: Vec<&Value> = report["checks"]
        .as_array()
        .expect("an array")
        .iter()
        .filter(|row| {
            row["found"]
                .as_str()
                .is_some_and(|f| f.starts_with("hangs"))
        })
        .collect();
    assert_eq!(hung.len(), 1, "{report:#}");
    assert_ne!(hung[0]["result"], "ok");
    assert_eq!(traces(id), Vec::<String>::new());
}

#[test]
fn a_signal_ends_it_with_nothing_left() {
    common::require_root();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let doctor = start(&[]);
        let id = doctor.id();
        peer_of(&doctor);
        let pid = Pid::from_raw(id.cast_signed());
        kill(pid, signal).expect("interrupt doctor");
        let output = doctor.wait_with_output().expect("doctor ends");
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(&format!("interrupted by {signal}")), "{said}");
        assert_eq!(traces(id), Vec::<String>::new());
    }
}

/// A kill leaves empty cgroups, and nothing that does anything.
#[test]
fn killed_it_leaves_no_instance() {
    common::require_root();
    let mut doctor = start(&[]);
    let id = doctor.id();
    let peer = peer_of(&doctor);
    doctor.kill().expect("kill doctor");
    doctor.wait().expect("doctor ends");
    let deadline = Deadline::seconds(20);
    deadline.until("the check to end with it", || {
        !Path::new(&format!("/proc/{peer}")).exists()
    });
    let cgroup = mount().join(format!("sockaccel-doctor-{id}"));
    let accelerated = cgroup.join("accelerated");
    deadline.until("the programs to go", || {
        attached_to(&accelerated).iter().all(Vec::is_empty)
    });
    for part in [accelerated, cgroup.join("plain"), cgroup] {
        deadline.until("the cgroup to be empty", || fs::remove_dir(&part).is_ok());
    }
    assert_eq!(traces(id), Vec::<String>::new());
}
