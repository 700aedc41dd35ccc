//! `explain`: for every kind of connection the rule that decides, with its
//! evidence, and the others with theirs.

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use nix::sched::CloneFlags;
use nix::sched::unshare;
use nix::sys::stat::fstat;
use serde_json::Value;
use sockaccel::state::process::Walked;
use sockaccel::state::process::walked;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::instance::Ran;
use common::netns::Netns;
use common::option;
use common::option::set;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::stream::send_all;
use common::warm::assert_redirected;
use common::warm::round_trip;
use common::warm::warm_up;

fn ends(pair: &Pair) -> [String; 2] {
    [
        pair.client.local_addr().expect("getsockname").to_string(),
        pair.client.peer_addr().expect("getpeername").to_string(),
    ]
}

/// The connection's JSON; for people there must be as much.
fn explain(instance: &Instance, pair: &Pair) -> Value {
    let [local, remote] = ends(pair);
    let told = instance
        .run(&["explain", &local, &remote, "--json"])
        .ok()
        .json();
    let text = instance.run(&["explain", &remote, &local]).ok().stdout;
    let connections = told["connections"].as_array().expect("an array");
    assert_eq!(connections.len(), 1, "{told}");
    for direction in connections[0]["directions"].as_array().expect("an array") {
        for rule in direction["rules"].as_array().expect("an array") {
            let evidence = rule["evidence"].as_str().expect("text");
            // Figures may have moved on.
            if rule["rule"] != "history" && rule["rule"] != "budget" {
                assert!(text.contains(evidence), "{evidence} is not in {text}");
            }
        }
    }
    connections[0].clone()
}

/// Evidence of the rules of this name that stand against it.
fn against<'a>(direction: &'a Value, rule: &str) -> Vec<(&'a str, &'a str)> {
    direction["rules"]
        .as_array()
        .expect("an array")
        .iter()
        .filter(|found| found["rule"] == rule && found["holds"] == false)
        .map(|found| {
            (
                found["evidence"].as_str().expect("text"),
                found["remedy"].as_str().expect("text"),
            )
        })
        .collect()
}

/// The rule is broken in both directions with these words, and is the answer.
fn assert_decided(connection: &Value, rule: &str, evidence: &str, remedy: &str) {
    let directions = connection["directions"].as_array().expect("an array");
    assert!(!directions.is_empty());
    for direction in directions {
        assert_eq!(direction["accelerated"], false, "{direction}");
        let found = against(direction, rule);
        let hit = found.iter().find(|(text, _)| text.contains(evidence));
        let (_, way_out) = hit.unwrap_or_else(|| panic!("no {rule}: {evidence:?} in {direction}"));
        assert!(way_out.contains(remedy), "{way_out:?}: no {remedy:?}");
    }
    let why = directions[0]["why"].as_str().expect("text");
    assert!(why.contains(evidence), "{why:?} does not say {evidence:?}");
}

/// A remedy, up to what explains it, typed into a shell.
fn type_it(remedy: &str) {
    let command = remedy.split("   (").next().expect("a command");
    let binary = Path::new(env!("CARGO_BIN_EXE_sockaccel"));
    let script = format!(
        "PATH={}:$PATH; {command}",
        binary.parent().expect("it").display()
    );
    Ran::of(Command::new("bash").args(["-c", &script])).ok();
}

fn rounds(pair: &Pair) {
    for _ in 0..5 {
        round_trip(pair);
    }
}

#[test]
fn an_accelerated_connection() {
    let cgroup = Cgroup::new("explain");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    // Nothing was sent: on the stack, and that is no fault.
    let quiet = explain(&instance, &pair);
    assert_decided(&quiet, "path", "nothing was sent yet", "");
    warm_up(&instance, &pair);
    let told = explain(&instance, &pair);
    let own = std::process::id();
    for end in told["ends"].as_array().expect("an array") {
        assert_eq!(end["pid"], own);
        assert_eq!(end["cgroup"], cgroup.path().display().to_string());
        assert_eq!(end["nonblocking"], true);
        assert_eq!(end["enrolled"], true);
        assert_eq!(end["seen"], true);
        assert_eq!(end["reason"], Value::Null);
    }
    assert_eq!(told["ends"][0]["role"], "active");
    assert_eq!(told["ends"][1]["role"], "passive");
    for direction in told["directions"].as_array().expect("an array") {
        assert_eq!(direction["accelerated"], true, "{direction}");
        assert_eq!(direction["path"], "redirect");
        assert_eq!(direction["why"], "accelerated");
        assert!(direction["redirected_messages"].as_u64() > Some(0));
    }
    // What waits unread is evidence.
    let before = instance.stats();
    send_all(&pair.client, b"unread", Deadline::seconds(10));
    assert_redirected(&before, &instance.stats(), 6);
    let told = explain(&instance, &pair).to_string();
    assert!(told.contains("1 message, 6 bytes unread now"), "{told}");
}

#[test]
fn programs_that_block() {
    let cgroup = Cgroup::new("explain");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let listener = listen(&Options::blocking());
    let pair = Pair::on(&listener, &Options::blocking());
    rounds(&pair);
    let told = explain(&instance, &pair);
    assert_decided(
        &told,
        "enrolled",
        "(blocking_reader)",
        "--blocking-readers accelerate",
    );
    for direction in told["directions"].as_array().expect("an array") {
        let found = against(direction, "reader");
        assert!(found[0].0.contains("is blocking now"), "{direction}");
    }
    // The hint works as it is, on connections that are made after it.
    let way_out = against(&told["directions"][0], "enrolled")[0].1;
    let status = instance.run(&["status"]).ok().stdout;
    let hint = format!("To change it for new connections:  {way_out}");
    assert!(status.contains(&hint), "{status}");
    let assert = instance.run(&["assert", "--enrolled", ">0"]).stderr;
    assert!(assert.contains(&hint), "{assert}");
    type_it(way_out);
    let new = Pair::on(&listener, &Options::blocking());
    warm_up(&instance, &new);
    let told = explain(&instance, &pair);
    assert_decided(&told, "enrolled", "(blocking_reader)", "connect again");
    for text in [told.to_string(), instance.run(&["status"]).ok().stdout] {
        assert!(!text.contains("sockaccel enable"), "{text}");
        assert!(text.contains("sockaccel adopt --instance"), "{text}");
    }
    let back = format!("{} skip", way_out.split(" accelerate").next().expect("it"));
    type_it(&back);

    // Known as it is now, not as it was.
    pair.client.set_nonblocking(true).expect("O_NONBLOCK");
    pair.server.set_nonblocking(true).expect("O_NONBLOCK");
    let told = explain(&instance, &pair);
    assert_eq!(against(&told["directions"][0], "reader"), []);
    assert_decided(&told, "enrolled", "(blocking_reader)", "");
}

#[test]
fn connections_from_before_and_from_outside() {
    let cgroup = Cgroup::new("explain");
    let joined = cgroup.join();
    let before = Pair::new();
    let instance = Instance::enable(&cgroup, &[]);
    let told = explain(&instance, &before);
    assert_decided(
        &told,
        "established",
        "established before its cgroup was enabled",
        "connect again",
    );
    assert_eq!(told["ends"][0]["seen"], false);

    drop(joined);
    let outside = Pair::new();
    let told = explain(&instance, &outside);
    let enable = format!("--instance {}", instance.name());
    assert_decided(&told, "cgroup", "which is not enabled", &enable);

    // Only the client is inside.
    let options = Options::default();
    let listener = listen(&options);
    let to = listener.local_addr().expect("getsockname");
    let joined = cgroup.join();
    let client = connect(to, &options);
    drop(joined);
    let server = accept(&listener, &options);
    let pair = Pair { client, server };
    rounds(&pair);
    let told = explain(&instance, &pair);
    let directions = told["directions"].as_array().expect("an array");
    assert_eq!(directions.len(), 2);
    let found = against(&directions[0], "enrolled");
    assert!(found[0].0.contains("(no_local_peer)"), "{told}");
    assert!(found[0].1.contains("enable the peer's cgroup"), "{told}");
    assert_decided(&told, "cgroup", "which is not enabled", "sockaccel enable");
    assert_eq!(told["ends"][0]["reason"], "no_local_peer", "{told}");
    assert_eq!(told["ends"][1]["seen"], false, "{told}");
}

fn port_of(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("getsockname").port()
}

#[test]
fn filters_services_and_options() {
    let cgroup = Cgroup::new("explain");
    let _joined = cgroup.join();
    let excluded = listen(&Options::default());
    let port = port_of(&excluded).to_string();
    let instance = Instance::enable(&cgroup, &["--exclude-port", &port]);
    let service = listen(&Options::default());
    let vip = format!("127.0.0.1:{}", port_of(&service));
    instance.run(&["service", "add", &vip]).ok();

    let pair = Pair::on(&excluded, &Options::default());
    rounds(&pair);
    let told = explain(&instance, &pair);
    assert_decided(&told, "enrolled", "(filtered)", "--exclude-port");

    let pair = Pair::on(&service, &Options::default());
    rounds(&pair);
    let told = explain(&instance, &pair);
    assert_decided(&told, "enrolled", "(service)", "--accelerate");
    assert!(
        !against(&told["directions"][1], "service").is_empty(),
        "{told}"
    );

    let pair = Pair::new();
    warm_up(&instance, &pair);
    set(&pair.client, option::RcvLowat, 100);
    set(&pair.server, option::RcvLowat, 100);
    for direction in explain(&instance, &pair)["directions"]
        .as_array()
        .expect("an array")
    {
        let found = against(direction, "options");
        assert!(found[0].0.contains("SO_RCVLOWAT"), "{direction}");
    }
}

#[test]
fn policy_with_its_tier_and_entry() {
    let cgroup = Cgroup::new("explain");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let listener = listen(&Options::default());
    let port = port_of(&listener);
    let pair = Pair::on(&listener, &Options::default());
    warm_up(&instance, &pair);
    instance.run(&["endpoint", "add", "127.0.0.1"]).ok();
    let denied = format!("tcp/{port}");
    let rule = [
        "policy",
        "add",
        "127.0.0.1",
        "ingress",
        "any",
        &denied,
        "deny",
    ];
    instance.run(&rule).ok();
    // Not asked yet: the next message will.
    let told = explain(&instance, &pair);
    assert!(told.to_string().contains("have changed since"), "{told}");
    rounds(&pair);
    let told = explain(&instance, &pair);
    assert_decided(
        &told,
        "ingress",
        "tier 2",
        "sockaccel policy add 127.0.0.1 ingress",
    );
    for direction in told["directions"].as_array().expect("an array") {
        for rule in ["verdict", "path"] {
            let found = against(direction, rule);
            assert!(found[0].0.contains("policy denies it"), "{direction}");
            let list = format!("sockaccel policy list --instance {}", instance.name());
            assert_eq!(found[0].1, list);
        }
    }

    // The very rule is replaced by what is told.
    instance
        .run(&[&rule[..4], &["2"], &rule[5..]].concat())
        .ok();
    rounds(&pair);
    let told = explain(&instance, &pair);
    let found = against(&told["directions"][0], "ingress");
    assert!(found[0].0.contains("tier 1"), "{told}");
    type_it(found[0].1);
    rounds(&pair);
    let told = explain(&instance, &pair);
    assert_eq!(told["directions"][0]["accelerated"], true, "{told}");

    let rule = [&rule[..2], &["127.0.0.1", "egress", "7", "allow"]].concat();
    instance.run(&rule).ok();
    rounds(&pair);
    let told = explain(&instance, &pair);
    assert_decided(&told, "egress", "no rule matches", "egress 2 tcp/");
}

#[test]
fn scope_endpoints() {
    let cgroup = Cgroup::new("explain");
    let instance = Instance::enable(&cgroup, &["--scope", "endpoints"]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    rounds(&pair);
    let told = explain(&instance, &pair);
    assert_decided(
        &told,
        "scope",
        "not an endpoint",
        "sockaccel endpoint add 127.0.0.1",
    );
}

#[test]
fn by_process_by_port_and_in_any_network_namespace() {
    let cgroup = Cgroup::new("explain");
    let instance = Instance::enable(&cgroup, &[]);
    let netns = Netns::new("explain");
    let _joined = cgroup.join();
    let listener = netns.enter(|| listen(&Options::default()));
    let to = listener.local_addr().expect("getsockname");
    let client = netns.enter(|| connect(to, &Options::default()));
    let server = accept(&listener, &Options::default());
    let pair = Pair { client, server };
    warm_up(&instance, &pair);
    let told = explain(&instance, &pair);
    assert_eq!(told["directions"][0]["accelerated"], true, "{told}");
    // The socket's namespace was asked for its cgroup.
    assert_eq!(
        told["ends"][1]["cgroup"],
        cgroup.path().display().to_string()
    );

    let v6 = Pair::with(&Options::v6());
    let mapped = Pair::with(&Options::v4_mapped());
    for pair in [&v6, &mapped] {
        rounds(pair);
        let told = explain(&instance, pair);
        assert_eq!(told["directions"][0]["accelerated"], true, "{told}");
        assert_eq!(
            told["ends"][0]["cgroup"],
            cgroup.path().display().to_string()
        );
    }
    let own = std::process::id().to_string();
    let port = to.port().to_string();
    for (words, connections, more) in [
        (["--pid", &own, "--limit", "9"], 3, 0),
        (["--pid", &own, "--limit", "1"], 1, 2),
        (["--port", &port, "--limit", "9"], 1, 0),
    ] {
        let told = instance
            .run(&[&["explain", "--json"], &words[..]].concat())
            .ok()
            .json();
        let found = told["connections"].as_array().map(Vec::len);
        assert_eq!(found, Some(connections), "{words:?}: {told}");
        assert_eq!(told["more"], more, "{words:?}");
    }
}

#[test]
fn what_is_not_there() {
    let cgroup = Cgroup::new("explain");
    let instance = Instance::enable(&cgroup, &[]);
    for (words, code, said) in [
        (&["127.0.0.1:1", "127.0.0.1:2"][..], 1, "ss -tnp"),
        (&["--pid", "4194304"], 1, "has no TCP connection open"),
        (&["--port", "1"], 1, "with port 1"),
        (&[], 2, "--port"),
        (&["127.0.0.1:1"], 2, ""),
        (&["here", "there"], 2, "here"),
        (&["--pid", "1", "--port", "1"], 2, ""),
    ] {
        let ran = instance.run(&[&["explain"], words].concat());
        assert_eq!(ran.code, Some(code), "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{words:?}: {}", ran.stderr);
    }
    instance.disable().ok();
    let ran = instance.run(&["explain", "--port", "1"]);
    assert_eq!(ran.code, Some(4), "{}", ran.stderr);
}

/// Where the pin of the walk over open files is missing, as with an instance of an
/// earlier version, /proc tells as much.
#[test]
fn open_sockets_are_walked_or_read_from_proc() {
    let cgroup = Cgroup::new("explain");
    let outside = Pair::new();
    let instance = Instance::enable(&cgroup, &[]);
    let dir = instance.dir();
    let _joined = cgroup.join();
    let listener = listen(&Options::default());
    let pair = Pair::on(&listener, &Options::default());
    warm_up(&instance, &pair);
    let skipped = Pair::with(&Options::blocking());
    rounds(&skipped);
    let other = Cgroup::new("explain-other");
    let others = Instance::enable(&other, &[]);
    let elsewhere = {
        let _joined = other.join();
        Pair::new()
    };
    warm_up(&others, &elsewhere);

    let own = std::process::id();
    // Whether it is found, and with a peer.
    let known = |fd: BorrowedFd<'_>| {
        let inode = fstat(fd).expect("fstat").st_ino;
        let place = (own, fd.as_raw_fd(), inode);
        let mut walked = walked(&dir).expect("a walk").into_iter();
        let found =
            walked.find(|Walked { socket, .. }| (socket.pid, socket.fd, socket.inode) == place);
        found.map(|walked| walked.told.connected != 0)
    };
    for fd in [pair.client.as_fd(), outside.server.as_fd()] {
        assert_eq!(known(fd), Some(true));
    }
    assert_eq!(known(listener.as_fd()), Some(false));
    let pairs = [&pair, &skipped, &outside, &elsewhere];
    let found = || pairs.map(|pair| explain(&instance, pair)["ends"].clone());
    let by_walk = found();
    assert_eq!(by_walk[0][0]["pid"], own, "{by_walk:?}");

    fs::remove_file(dir.join("sa_iter_open")).expect("a pin");
    assert!(walked(&dir).is_none());
    assert_eq!(found(), by_walk);
    instance.run(&["upgrade"]).ok();
    assert_eq!(known(pair.client.as_fd()), Some(true));
}

/// A thread may have descriptors of its own: there is no way to them by its pid.
#[test]
fn descriptors_of_a_thread_alone_are_not_those_of_its_process() {
    let cgroup = Cgroup::new("explain");
    let instance = Instance::enable(&cgroup, &[]);
    let dir = instance.dir();
    let alone = || {
        unshare(CloneFlags::CLONE_FILES).expect("unshare");
        let pair = Pair::new();
        let inode = fstat(&pair.client).expect("fstat").st_ino;
        let walked = walked(&dir).expect("a walk");
        assert!(walked.iter().all(|walked| walked.socket.inode != inode));
    };
    thread::scope(|scope| scope.spawn(alone).join()).expect("the thread");
}

/// One connection among many; a hang guard, not a measurement.
#[test]
fn one_of_many() {
    let cgroup = Cgroup::new("explain");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let options = Options::default();
    let listener = listen(&options);
    let pairs: Vec<Pair> = (0..400).map(|_| Pair::on(&listener, &options)).collect();
    rounds(&pairs[7]);
    let start = Instant::now();
    let told = explain(&instance, &pairs[7]);
    println!("two answers among {}: {:?}", pairs.len(), start.elapsed());
    assert_eq!(told["directions"][0]["accelerated"], true, "{told}");
    assert_eq!(told["directions"][0]["from"], ends(&pairs[7])[0]);
}
