//! `disable` gives every live connection back to TCP, whole: nothing lost, nothing
//! out of order, nothing left behind.

mod common;

use std::fs;
use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::books::assert_balanced;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::helper;
use common::helper::Channel;
use common::helper::Helper;
use common::instance::BASE;
use common::instance::Instance;
use common::instance::Ran;
use common::netns::Netns;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::listen;
use common::pair::reconnect;
use common::pattern::Pattern;
use common::plain::Probe;
use common::plain::assert_gone;
use common::plain::map_ids;
use common::privileges::sockaccel_with;
use common::process::Process;
use common::raw;
use common::raw::Answering;
use common::raw::SilentPage;
use common::stream::recv_all;
use common::stream::recv_some;
use common::stream::send_all;
use common::throttle::Throttle;
use common::warm::assert_redirected;
use common::warm::round_trip;
use common::warm::warm_up;
use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::fcntl::FlockArg;
use nix::libc;
use serde_json::Value;
use serde_json::json;

/// Bytes that do not fit into the buffers of a connection.
const TOTAL: usize = 32 << 20;

fn draining(instance: &Instance) -> Value {
    instance.run(&["status", "--json"]).ok().json()["draining"].clone()
}

fn disable(instance: &Instance, options: &[&str]) -> Ran {
    instance.run(&[&["disable"], options].concat())
}

fn take_out(instance: &Instance, cgroup: &Cgroup, options: &[&str]) -> Ran {
    let path = cgroup.path().display().to_string();
    disable(instance, &[&["--cgroup", &path], options].concat())
}

/// A redirected connection from one cgroup to another.
fn pair_between(instance: &Instance, client: &Cgroup, server: &Cgroup) -> Pair {
    let pair = Pair::between(client, server);
    warm_up(instance, &pair);
    pair
}

/// From the client, redirected; the server does not read it.
fn leave_unread(instance: &Instance, pair: &Pair, bytes: &[u8]) {
    let before = instance.stats();
    send_all(&pair.client, bytes, Deadline::seconds(20));
    assert_redirected(&before, &instance.stats(), bytes.len() as u64);
}

/// A redirected connection in the cgroup with something unread.
fn unread_in(instance: &Instance, cgroup: &Cgroup) -> Pair {
    let pair = pair_between(instance, cgroup, cgroup);
    leave_unread(instance, &pair, b"unread");
    pair
}

/// It is still there.
fn read_unread(pair: &Pair, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    recv_all(&pair.server, &mut got, Deadline::seconds(20));
    assert_eq!(got, bytes);
}

/// The unread bytes of each socket that `disable` says it dropped, the least first.
fn dropped_unread(told: &Value) -> Vec<u64> {
    let sockets = told["dropped"].as_array().expect("an array").iter();
    let mut unread: Vec<u64> = sockets
        .filter_map(|socket| socket["unread_bytes"].as_u64())
        .filter(|bytes| *bytes > 0)
        .collect();
    unread.sort_unstable();
    unread
}

/// These cgroups are on their way out, and no others.
fn assert_drain(instance: &Instance, cgroups: &[&Cgroup]) {
    let told = draining(instance);
    let told = told["cgroups"].as_array().expect("an array").iter();
    let mut told: Vec<_> = told.map(|cgroup| cgroup["path"].clone()).collect();
    let mut paths: Vec<_> = cgroups
        .iter()
        .map(|cgroup| Value::from(cgroup.path().display().to_string()))
        .collect();
    told.sort_by_key(Value::to_string);
    paths.sort_by_key(Value::to_string);
    assert_eq!(told, paths);
}

#[test]
fn after_it_connections_are_plain_and_nothing_is_left() {
    let cgroup = Cgroup::new("drain");
    let instance = Instance::enable(&cgroup, &["--blocking-readers", "accelerate"]);
    let _joined = cgroup.join();
    let probe = Probe::new();
    let options = Options::default();
    let listener = listen(&options);
    let mut pairs: Vec<Pair> = (0..40).map(|_| Pair::on(&listener, &options)).collect();
    pairs.push(Pair::with(&Options::blocking()));
    // Redirected ones, ones that never sent, ones that closed on one side.
    for pair in pairs.iter().step_by(2) {
        warm_up(&instance, pair);
    }
    let half = Pair::on(&listener, &options);
    warm_up(&instance, &half);
    half.client
        .shutdown(std::net::Shutdown::Write)
        .expect("shutdown");
    assert!(!probe.is_plain(&pairs[0].client), "the probe sees nothing");
    let ids = map_ids(&instance);

    instance.disable().ok();
    for (n, pair) in pairs.iter().enumerate() {
        probe.assert_plain(&pair.client, &format!("client {n}"));
        probe.assert_plain(&pair.server, &format!("server {n}"));
        round_trip(pair);
    }
    let deadline = Deadline::seconds(10);
    send_all(&half.server, b"last words", deadline);
    let mut got = [0; 10];
    recv_all(&half.client, &mut got, deadline);
    assert_eq!(&got, b"last words");
    assert_gone(&ids, "with connections open");
}

/// What is unread stays where it is, and in order; `status` says where.
#[test]
fn what_is_unread_is_waited_for_and_told() {
    let cgroup = Cgroup::new("drain-unread");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let [idle, pair] = [Pair::new(), Pair::new()];
    warm_up(&instance, &idle);
    warm_up(&instance, &pair);
    let ids = map_ids(&instance);
    let deadline = Deadline::seconds(20);
    let before = instance.stats();
    send_all(&pair.client, b"redirected, ", deadline);
    assert_redirected(&before, &instance.stats(), 12);

    let ran = disable(&instance, &["--timeout", "200ms", "--json"]);
    assert_eq!(ran.code, Some(7), "{ran:?}");
    assert_eq!(ran.json()["error"]["exit_status"], 7);
    assert!(ran.stderr.contains("12 bytes"), "{ran:?}");
    let told = draining(&instance);
    let sockets = told["sockets"].as_array().expect("an array");
    assert_eq!(sockets.len(), 2, "{told}");
    assert_eq!(sockets[0]["waits_for"], "unread", "{told}");
    assert_eq!(sockets[0]["unread_bytes"], 12, "{told}");
    assert_eq!(sockets[0]["pid"], std::process::id(), "{told}");
    assert_eq!(
        sockets[0]["local"],
        pair.server.local_addr().expect("getsockname").to_string()
    );
    assert_eq!(sockets[1]["waits_for"], "peer_unread", "{told}");
    let text = instance.run(&["status"]).ok().stdout;
    assert!(text.contains(": draining, "), "{text}");
    assert!(text.contains("12 bytes unread"), "{text}");
    Probe::new().assert_plain(&idle.client, "the other connection");

    // The guards are still there.
    assert_eq!(
        raw::set_option(&pair.server, libc::SOL_TCP, libc::TCP_ULP, b"tls\0"),
        Err(Errno::EOPNOTSUPP)
    );
    // More of both kinds, while it waits.
    send_all(&pair.client, b"more, ", deadline);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| disable(&instance, &["--timeout", "20s"]).ok());
        thread::sleep(Duration::from_millis(200));
        send_all(&pair.client, b"and more", deadline);
        let mut got = [0; 26];
        recv_all(&pair.server, &mut got, deadline);
        assert_eq!(&got, b"redirected, more, and more");
        round_trip(&pair);
        waiting.join().expect("disable");
    });
    round_trip(&pair);
    let probe = Probe::new();
    probe.assert_plain(&pair.client, "client");
    probe.assert_plain(&pair.server, "server");
    assert_eq!(instance.run(&["status"]).code, Some(4));
    assert_gone(&ids, "drained at last");
}

/// Whoever waits sees for what.
#[test]
fn a_long_drain_says_what_is_left() {
    let cgroup = Cgroup::new("drain-long");
    let instance = Instance::enable(&cgroup, &[]);
    let pair = unread_in(&instance, &cgroup);
    let mut disable = Process::start(
        Command::new(env!("CARGO_BIN_EXE_sockaccel"))
            .args(["disable", "--timeout", "60s", "--instance", instance.name()])
            .stderr(Stdio::piped()),
    );
    let mut lines = BufReader::new(disable.0.stderr.take().expect("piped")).lines();
    let said = lines.next().expect("a line").expect("read");
    assert!(said.contains("draining: 2 sockets left"), "{said}");
    assert!(said.contains("6 bytes unread"), "{said}");
    read_unread(&pair, b"unread");
    assert!(disable.ended(Deadline::seconds(30)).success());
}

#[test]
fn now_drops_what_is_unread_and_says_so() {
    let cgroup = Cgroup::new("drain-now");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    let deadline = Deadline::seconds(10);
    let before = instance.stats();
    send_all(&pair.client, b"lost", deadline);
    assert_redirected(&before, &instance.stats(), 4);
    // Not where another is named, which is not in the instance.
    let other = Cgroup::new("drain-other");
    let path = other.path().display().to_string();
    assert_eq!(disable(&instance, &["--timeout", "0"]).code, Some(7));
    disable(&instance, &["--cgroup", &path, "--now"]).ok();
    let ran = disable(&instance, &["--now", "--json"]).ok();
    let told = ran.json();
    assert_eq!(dropped_unread(&told), [4], "{told}");
    assert!(ran.stderr.contains("dropped 4 bytes unread"), "{ran:?}");
    let probe = Probe::new();
    probe.assert_plain(&pair.client, "client");
    probe.assert_plain(&pair.server, "server");
    round_trip(&pair);
}

/// Also where it is more than one read of a walk has room for.
#[test]
fn now_says_so_of_each_socket() {
    let cgroup = Cgroup::new("drain-each");
    let instance = Instance::enable(&cgroup, &["--admission", "all"]);
    let _joined = cgroup.join();
    let pairs: Vec<Pair> = std::iter::repeat_with(Pair::new).take(200).collect();
    for pair in &pairs {
        (0..3).for_each(|_| round_trip(pair));
    }
    let unread = [0; 200];
    let sizes = 1..=unread.len();
    let before = instance.stats();
    for (pair, size) in pairs.iter().zip(sizes.clone()) {
        send_all(&pair.client, &unread[..size], Deadline::seconds(20));
    }
    let sum = sizes.clone().sum::<usize>() as u64;
    assert_redirected(&before, &instance.stats(), sum);
    let told = disable(&instance, &["--now", "--json"]).ok().json();
    let sizes: Vec<u64> = sizes.map(|size| size as u64).collect();
    assert_eq!(dropped_unread(&told), sizes);
    for pair in &pairs {
        round_trip(pair);
    }
}

/// What a cgroup on its way out waits for keeps no other one, and is not dropped with it.
#[test]
fn one_cgroup_leaves_while_another_waits() {
    let [lasting, waits, goes, drops] =
        ["stays", "waits", "goes", "drops"].map(|name| Cgroup::new(&format!("drain-one-{name}")));
    let instance = Instance::try_enable(&[&lasting, &waits, &goes, &drops], &[]).expect("enable");
    let pair_in = |client: &Cgroup, server: &Cgroup, unread: &[u8]| {
        let pair = pair_between(&instance, client, server);
        leave_unread(&instance, &pair, unread);
        pair
    };
    let kept = pair_in(&lasting, &lasting, b"kept");
    let waiting = [
        pair_in(&waits, &waits, b"mine"),
        pair_in(&waits, &lasting, b"ours"),
    ];
    let gone = pair_in(&goes, &lasting, b"");
    let dropped = [
        pair_in(&drops, &drops, b"1"),
        pair_in(&drops, &lasting, b"22"),
    ];
    let both = pair_in(&waits, &drops, b"333");
    let take_out = |cgroup: &Cgroup, options: &[&str]| take_out(&instance, cgroup, options);
    let drains = |cgroups: &[&Cgroup]| assert_drain(&instance, cgroups);

    assert_eq!(take_out(&waits, &["--timeout", "0"]).code, Some(7));
    take_out(&goes, &[]).ok();
    drains(&[&waits]);
    let ran = take_out(&drops, &["--timeout", "100ms"]);
    assert_eq!(ran.code, Some(7), "{ran:?}");
    drains(&[&waits, &drops]);
    // Asked about once, and not any more.
    assert_eq!(take_out(&waits, &["--timeout", "0"]).code, Some(7));
    let ran = take_out(&drops, &["--now", "--json"]).ok();
    let told = ran.json();
    assert_eq!(dropped_unread(&told), [1, 2, 3], "{told}");
    drains(&[&waits]);
    assert_eq!(take_out(&waits, &["--timeout", "0"]).code, Some(7));

    let probe = Probe::new();
    probe.assert_plain(&gone.client, "gone");
    for pair in dropped.iter().chain([&both]) {
        probe.assert_plain(&pair.client, "dropped");
        probe.assert_plain(&pair.server, "dropped");
        round_trip(pair);
    }
    for (pair, unread) in waiting.iter().zip([b"mine", b"ours"]) {
        read_unread(pair, unread);
    }
    take_out(&waits, &[]).ok();
    drains(&[]);
    read_unread(&kept, b"kept");
    warm_up(&instance, &kept);
    drop((waiting, dropped, gone, both));
    let stats = assert_balanced(&instance);
    assert_eq!(stats.count("enrolled_now"), 2, "{}", stats.0);
}

/// It ends no sooner than with what drains, though it is the last that was enabled.
#[test]
fn the_last_cgroup_leaves_while_others_wait() {
    let [one, two, last] =
        ["one", "two", "last"].map(|name| Cgroup::new(&format!("drain-last-{name}")));
    let instance = Instance::try_enable(&[&one, &two, &last], &[]).expect("enable");
    let waiting_in = |cgroup: &Cgroup| {
        let pair = unread_in(&instance, cgroup);
        let ran = take_out(&instance, cgroup, &["--timeout", "0"]);
        assert_eq!(ran.code, Some(7), "{ran:?}");
        pair
    };
    let [first, second] = [waiting_in(&one), waiting_in(&two)];
    assert_drain(&instance, &[&one, &two]);
    // Whoever enables finishes each that has nothing to wait for.
    read_unread(&second, b"unread");
    instance.enable_more(&[&last], &[]).ok();
    assert_drain(&instance, &[&one]);

    let ran = take_out(&instance, &last, &["--now", "--json"]).ok();
    assert_eq!(ran.json()["ended"], false, "{ran:?}");
    assert_eq!(ran.json()["dropped"], Value::Array(Vec::new()), "{ran:?}");
    assert_drain(&instance, &[&one]);
    let text = instance.run(&["status"]).ok().stdout;
    assert!(text.contains("6 bytes unread"), "{text}");
    read_unread(&first, b"unread");
    let ran = take_out(&instance, &one, &["--json"]).ok();
    assert_eq!(ran.json()["ended"], true, "{ran:?}");
    for pair in [&first, &second] {
        Probe::new().assert_plain(&pair.server, "drained");
        round_trip(pair);
    }
}

/// Another one was killed when it had begun: whoever drains meanwhile goes on with that,
/// and does not take it for done.
#[test]
fn what_a_killed_disable_has_begun_is_seen_by_one_that_runs() {
    let [slow, begun, lasting] =
        ["slow", "begun", "lasting"].map(|name| Cgroup::new(&format!("drain-{name}")));
    let instance = Instance::try_enable(&[&slow, &begun, &lasting], &[]).expect("enable");
    let [first, second] = [unread_in(&instance, &slow), unread_in(&instance, &begun)];
    thread::scope(|scope| {
        let disabling = scope.spawn(|| take_out(&instance, &slow, &["--timeout", "2m"]).ok());
        Deadline::seconds(10).until("a drain", || draining(&instance)["cgroups"] != json!([]));
        let dir = instance.dir();
        let id = fs::metadata(begun.path()).expect("a cgroup").ino();
        let from = dir.join(format!("cgroup-{id}"));
        {
            let base = File::open(BASE).expect("the base directory");
            let _lock = Flock::lock(base, FlockArg::LockExclusive).expect("flock");
            fs::rename(from, dir.join(format!("draining-{id}"))).expect("rename");
        }
        read_unread(&first, b"unread");
        disabling.join().expect("disable");
    });
    assert_drain(&instance, &[&begun]);
    read_unread(&second, b"unread");
    take_out(&instance, &begun, &[]).ok();
    Probe::new().assert_plain(&second.server, "drained");
    assert_drain(&instance, &[]);
    round_trip(&second);
}

/// What is in an enabled cgroup, too, does not leave with the one above it, though it
/// leaves with its peer.
#[test]
fn a_nested_cgroup_does_not_leave_with_the_one_above_it() {
    let [above, peers] = ["drain-above", "drain-peers"].map(Cgroup::new);
    let nested = above.nested("nested");
    let instance = Instance::try_enable(&[&above, &nested, &peers], &[]).expect("enable");
    let pair = pair_between(&instance, &peers, &nested);
    leave_unread(&instance, &pair, b"unread");

    assert_eq!(
        take_out(&instance, &peers, &["--timeout", "0"]).code,
        Some(7)
    );
    let ran = take_out(&instance, &above, &["--now", "--json"]).ok();
    assert_eq!(ran.json()["dropped"], Value::Array(Vec::new()), "{ran:?}");
    assert_drain(&instance, &[&peers]);
    read_unread(&pair, b"unread");
    take_out(&instance, &peers, &[]).ok();
    assert_drain(&instance, &[]);
    round_trip(&pair);
}

/// `enable` while it drains: the connections that are still enrolled go on, and
/// are redirected again.
#[test]
fn enable_turns_a_draining_instance_back_on() {
    let [one, two] = ["drain-one", "drain-two"].map(Cgroup::new);
    let instance = Instance::try_enable(&[&one, &two], &[]).expect("enable");
    let [first, second] = [&one, &two].map(|cgroup| unread_in(&instance, cgroup));
    assert_eq!(disable(&instance, &["--timeout", "0"]).code, Some(7));
    instance.enable_more(&[&one], &[]).ok();
    let told = draining(&instance);
    assert_eq!(told["cgroups"].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(told["sockets"].as_array().map(Vec::len), Some(2), "{told}");
    // Only the one that drains is to be disabled.
    let status = instance.run(&["status"]).ok().stdout;
    let (path, name) = (two.path().display(), instance.name());
    let wait = format!("wait for it:  sockaccel disable --cgroup {path} --instance {name}   ");
    assert!(status.contains(&wait), "{status}");

    for pair in [&first, &second] {
        read_unread(pair, b"unread");
    }
    warm_up(&instance, &first);
    {
        let _joined = one.join();
        warm_up(&instance, &Pair::new());
    }
    {
        // Nothing of the other cgroup is enrolled any more.
        let _joined = two.join();
        let seen = instance.stats().count("seen");
        round_trip(&Pair::new());
        assert_eq!(instance.stats().count("seen"), seen);
    }
    let before = instance.stats();
    round_trip(&second);
    assert_eq!(instance.stats().delta(&before, "redirected_bytes"), 0);
    // Enabled already: it finishes what has nothing to wait for.
    instance.enable_more(&[&one], &[]).ok();
    let told = draining(&instance);
    assert_eq!(told["cgroups"].as_array().map(Vec::len), Some(0), "{told}");
    Probe::new().assert_plain(&second.server, "drained");
    warm_up(&instance, &first);
    assert_balanced(&instance);
}

#[test]
fn one_cgroup_of_several() {
    let [lasting, leaving] = ["drain-stays", "drain-goes"].map(Cgroup::new);
    let nested = lasting.nested("nested");
    let instance = Instance::try_enable(&[&lasting, &leaving, &nested], &[]).expect("enable");
    let probe = Probe::new();
    let pair_in = |client: &Cgroup, server: &Cgroup| pair_between(&instance, client, server);
    let kept = pair_in(&lasting, &lasting);
    let below = pair_in(&nested, &nested);
    let [gone, across] = [pair_in(&leaving, &leaving), pair_in(&lasting, &leaving)];
    let path = |cgroup: &Cgroup| cgroup.path().display().to_string();

    // Its parent is enabled as well: nothing changes for the sockets.
    disable(&instance, &["--cgroup", &path(&nested)]).ok();
    assert!(!probe.is_plain(&below.client));
    disable(&instance, &["--cgroup", &path(&leaving)]).ok();
    for (pair, name) in [(&gone, "gone"), (&across, "across")] {
        probe.assert_plain(&pair.client, name);
        probe.assert_plain(&pair.server, name);
        round_trip(pair);
    }
    let stats = assert_balanced(&instance);
    assert_eq!(stats.by_reason("ejected", "disabled"), 4, "{}", stats.0);
    warm_up(&instance, &kept);
    warm_up(&instance, &below);
    drop((gone, across));
    let stats = assert_balanced(&instance);
    assert_eq!(stats.count("enrolled_now"), 4, "{}", stats.0);
    assert_eq!(instance.dump("connections").len(), 4);
}

/// Asleep in recv(2) on an enrolled socket: it goes on sleeping, and gets what
/// comes by TCP then. Whether it sends as well, or another thread does, which may have
/// ended since.
#[test]
fn blocked_readers_sleep_on() {
    let cgroup = Cgroup::new("drain-asleep");
    let instance = Instance::enable_blocking(&cgroup, &[]);
    let _joined = cgroup.join();
    let deadline = Deadline::seconds(20);
    let hello = |pair: &Pair| send_all(&pair.server, b"hello", deadline);
    let pairs: Vec<Pair> = (0..6).map(|_| Pair::with(&Options::blocking())).collect();
    thread::scope(|scope| {
        let mut ending = Vec::new();
        for (n, pair) in pairs.iter().enumerate() {
            if n % 3 != 2 {
                warm_up(&instance, pair);
                continue;
            }
            let (warm, is_warm) = mpsc::channel();
            let (go, may_go) = mpsc::channel();
            let instance = &instance;
            let sender = scope.spawn(move || {
                warm_up(instance, pair);
                warm.send(()).expect("the test");
                may_go.recv().expect("the test");
                hello(pair);
            });
            is_warm.recv().expect("a sender");
            ending.push((go, sender));
        }
        let readers: Vec<_> = pairs
            .iter()
            .enumerate()
            .map(|(n, pair)| {
                scope.spawn(move || {
                    let mut buffer = [0; 64];
                    if n % 3 == 0 {
                        hello(pair);
                    }
                    let n = (&pair.server).read(&mut buffer).expect("a blocking read");
                    buffer[..n].to_vec()
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(100));
        for pair in pairs.iter().skip(1).step_by(3) {
            hello(pair);
        }
        for (go, sender) in ending {
            go.send(()).expect("a sender");
            sender.join().expect("a sender");
        }
        for pair in &pairs {
            recv_all(&pair.client, &mut [0; 5], deadline);
        }
        disable(&instance, &["--timeout", "20s"]).ok();
        for pair in &pairs {
            send_all(&pair.client, b"by TCP", deadline);
        }
        for reader in readers {
            assert_eq!(reader.join().expect("reader"), b"by TCP");
        }
    });
    let probe = Probe::new();
    for pair in &pairs {
        probe.assert_plain(&pair.server, "awake again");
        probe.assert_plain(&pair.client, "client");
        round_trip(pair);
    }
}

/// Its main thread sends, then another thread execs itself: that has the number of the
/// first one from then on, and its connection.
const SENDER: &str = r#"
import os, socket, sys, threading
if sys.argv[1] == "port":
    s = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    while os.read(0, 1) == b"w":
        s.send(b"warm")
    s.set_inheritable(True)
    again = [sys.executable, *sys.orig_argv[1:3], "fd", str(s.fileno())]
    threading.Thread(target=lambda: os.execv(sys.executable, again)).start()
    threading.Event().wait()
s = socket.socket(fileno=int(sys.argv[2]))
os.write(1, b"!")
os.read(0, 1)
s.send(b"precious")
os.read(0, 1)
"#;

/// A drain must not take it for the thread that sent before, which has ended.
#[test]
fn a_send_under_way_by_another_thread_of_the_same_number_is_waited_for() {
    let cgroup = Cgroup::new("drain-exec");
    let instance = Instance::enable_blocking(&cgroup, &["--admission", "all"]);
    let _joined = cgroup.join();
    let options = Options::default();
    let listener = listen(&options);
    let port = listener.local_addr().expect("getsockname").port();
    let mut sender = Process::start(
        Command::new("python3")
            .args(["-c", SENDER, "port", &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped()),
    );
    let mut told = sender.0.stdin.take().expect("piped");
    let mut said = sender.0.stdout.take().expect("piped");
    let server = accept(&listener, &options);
    let deadline = Deadline::seconds(60);
    let before = instance.stats();
    for _ in 0..10 {
        told.write_all(b"w").expect("the sender");
        recv_all(&server, &mut [0; 4], deadline);
    }
    assert_redirected(&before, &instance.stats(), 1);
    told.write_all(b"x").expect("the sender");
    said.read_exact(&mut [0]).expect("the second image");
    let page = SilentPage::new();
    thread::scope(|scope| {
        // Has the socket locked meanwhile.
        let own = scope.spawn(|| page.send(&server));
        let answering = Answering(&page);
        deadline.until("the send to need the page", || page.is_asked_for());
        told.write_all(b"s").expect("the sender");
        let stat = format!("/proc/{}/stat", sender.id());
        deadline.until("the sender to wait for the lock", || {
            fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") D "))
        });
        assert_eq!(disable(&instance, &["--timeout", "1s"]).code, Some(7));
        drop(answering);
        assert_eq!(own.join().expect("a send"), Ok(4096));
    });
    let mut got = [0; 8];
    recv_all(&server, &mut got, deadline);
    assert_eq!(&got, b"precious");
    // What was sent to it was not read.
    drop(sender);
    disable(&instance, &["--timeout", "20s"]).ok();
}

/// A sender that sleeps because its receiver does not read, and a receiver that
/// starts to: all of it arrives, and neither call fails.
#[test]
fn blocked_senders_lose_nothing() {
    let cgroup = Cgroup::new("drain-full");
    let instance = Instance::enable_blocking(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::with(&Options::blocking());
    warm_up(&instance, &pair);
    let pattern = Pattern::new(11);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut bytes = vec![0; 8 << 10];
            for at in (0..TOTAL).step_by(bytes.len()) {
                pattern.fill(at as u64, &mut bytes);
                (&pair.client).write_all(&bytes).expect("a blocking send");
            }
        });
        thread::sleep(Duration::from_millis(300));
        assert!(!sender.is_finished(), "it has to sleep");
        let ran = disable(&instance, &["--timeout", "300ms"]);
        assert_eq!(ran.code, Some(7), "{ran:?}");
        let waiting = scope.spawn(|| disable(&instance, &["--timeout", "60s"]).ok());
        let deadline = Deadline::seconds(60);
        let (mut at, mut buffer) = (0, vec![0; 64 << 10]);
        while at < TOTAL {
            let n = recv_some(&pair.server, &mut buffer, deadline);
            assert!(n > 0, "the stream ended at {at}");
            pattern.check(at as u64, &buffer[..n], "sender asleep");
            at += n;
        }
        sender.join().expect("sender");
        waiting.join().expect("disable");
    });
    Probe::new().assert_plain(&pair.server, "server");
    round_trip(&pair);
}

const CONNECTIONS: usize = 12;
const MESSAGES: u64 = 1000;

fn size_of_message(n: u64) -> usize {
    1 + usize::try_from(n * 37 % 3000).expect("small")
}

/// Sends messages, each of which is acknowledged by one byte, on one connection
/// after the other.
fn sender(channel: &mut Channel) {
    let deadline = Deadline::seconds(300);
    let port: u16 = channel.hear().expect("a port").parse().expect("a port");
    let to = ([127, 0, 0, 1], port).into();
    for _ in 0..CONNECTIONS {
        let stream = common::pair::connect(to, &Options::default());
        let (pattern, mut at) = (Pattern::new(23), 0);
        for n in 0..MESSAGES {
            let mut bytes = vec![0; size_of_message(n)];
            pattern.fill(at, &mut bytes);
            at += bytes.len() as u64;
            send_all(&stream, &bytes, deadline);
            recv_all(&stream, &mut [0], deadline);
        }
    }
    channel.say("all sent");
    channel.hear();
}

#[test]
#[ignore = "the body of the helper processes"]
fn helper_process() {
    helper::main(&[("sender", sender)]);
}

/// Enabled and disabled under a sender that is stopped again and again wherever it
/// is: it loses nothing, and no call of it fails.
#[test]
fn throttled_senders_lose_nothing() {
    let cgroup = Cgroup::new("drain-slow");
    let instance = Instance::enable(&cgroup, &[]);
    let throttle = Throttle::new(&cgroup);
    let joined = cgroup.join();
    let options = Options::default();
    let listener = listen(&options);
    let port = listener.local_addr().expect("getsockname").port();
    let mut senders = [Helper::start("sender"), Helper::start("sender")];
    for sender in &mut senders {
        throttle.add(sender.pid());
        sender.say(&port.to_string());
    }
    drop(joined);
    let (redirected, switched) = thread::scope(|scope| {
        let servers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let deadline = Deadline::seconds(300);
                    for _ in 0..CONNECTIONS {
                        let server = common::pair::accept(&listener, &options);
                        let (pattern, mut at) = (Pattern::new(23), 0);
                        for n in 0..MESSAGES {
                            let mut bytes = vec![0; size_of_message(n)];
                            recv_all(&server, &mut bytes, deadline);
                            pattern.check(at, &bytes, "throttled");
                            at += bytes.len() as u64;
                            send_all(&server, b"+", deadline);
                        }
                    }
                })
            })
            .collect();
        let (mut redirected, mut switched) = (0, 0);
        let more_to_come = || servers.iter().any(|server| !server.is_finished());
        // The first time whatever it takes: what connects while it is off is passed over.
        while redirected == 0 && more_to_come() {
            thread::sleep(Duration::from_millis(10));
            redirected = instance.stats().redirected_bytes();
        }
        while more_to_come() {
            thread::sleep(Duration::from_millis(50));
            redirected += instance.stats().redirected_bytes();
            let ran = disable(&instance, &["--timeout", "0"]);
            assert!(matches!(ran.code, Some(0 | 7)), "{ran:?}");
            instance.enable_more(&[&cgroup], &[]).ok();
            switched += 1;
        }
        (redirected, switched)
    });
    for sender in &mut senders {
        assert_eq!(sender.hear(), "all sent");
    }
    assert!(redirected > 0, "nothing was redirected");
    assert!(switched > 0, "it was over before it was disabled");
}

/// The guard against a second connect(2) works until the end of the drain.
#[test]
fn a_socket_connected_again_while_it_drains_sees_nothing_old() {
    let cgroup = Cgroup::new("drain-again");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let old = Pair::new();
    warm_up(&instance, &old);
    let deadline = Deadline::seconds(10);
    let before = instance.stats();
    send_all(&old.server, b"OLD SECRET", deadline);
    assert_redirected(&before, &instance.stats(), 10);
    assert_eq!(disable(&instance, &["--timeout", "0"]).code, Some(7));

    let listener = listen(&Options::default());
    reconnect(&old.client, listener.local_addr().expect("getsockname"));
    let server = common::pair::accept(&listener, &Options::default());
    send_all(&server, b"new", deadline);
    let mut got = [0; 3];
    recv_all(&old.client, &mut got, deadline);
    assert_eq!(&got, b"new");
    instance.disable().ok();
    Probe::new().assert_plain(&old.client, "connected again");
}

/// With the last pin goes the program that decides; the table must not, while there
/// are sockets in it.
#[test]
fn what_is_unread_outlives_the_pins() {
    let cgroup = Cgroup::new("unpinned");
    let instance = Instance::enable(&cgroup, &[]);
    let pair = unread_in(&instance, &cgroup);
    let ids = map_ids(&instance);
    fs::remove_dir_all(instance.dir()).expect("rm -r");
    // The kernel frees maps a moment after what held them.
    thread::sleep(Duration::from_secs(1));
    read_unread(&pair, b"unread");
    round_trip(&pair);
    drop(pair);
    assert_gone(&ids, "closed");
}

/// Who may not load programs cannot make it again either.
#[test]
fn what_is_unread_is_waited_for_where_a_pin_is_missing() {
    let [leaving, lasting] = ["drain-pins", "drain-whole"].map(Cgroup::new);
    let instance = Instance::try_enable(&[&leaving, &lasting], &[]).expect("enable");
    let pair = unread_in(&instance, &leaving);
    let dir = instance.dir();
    fs::remove_file(dir.join("sa_sockops_off")).expect("rm");
    let path = leaving.path().to_str().expect("UTF-8");
    let of_it = ["--instance", instance.name(), "--cgroup", path];
    let disable = [&["disable", "--timeout", "0"][..], &of_it].concat();
    let ran = sockaccel_with(&[], &disable);
    assert_eq!(ran.code, Some(7), "{ran:?}");
    assert!(ran.stderr.contains("6 bytes unread"), "{ran:?}");
    read_unread(&pair, b"unread");
    sockaccel_with(&[], &disable).ok();
    Probe::new().assert_plain(&pair.server, "drained");
    round_trip(&pair);
}

#[test]
fn a_drain_whose_cgroup_was_removed_ends_with_the_next_enable_or_apply() {
    let lasting = Cgroup::new("drain-lasting");
    let instance = Instance::enable(&lasting, &[]);
    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("web.toml");
    let export = instance.run(&["export"]).ok().stdout;
    fs::write(&file, export).expect("a file");
    let apply = ["apply", "--json", "-f", file.to_str().expect("UTF-8")];
    let enable_again = || instance.enable_more(&[&lasting], &["--json"]);
    let apply_again = || instance.run(&apply);
    let commands: [&dyn Fn() -> Ran; 2] = [&enable_again, &apply_again];
    for again in commands {
        let removed = Cgroup::new("drain-removed");
        instance.enable_more(&[&removed], &[]).ok();
        let pair = unread_in(&instance, &removed);
        assert_eq!(
            take_out(&instance, &removed, &["--timeout", "0"]).code,
            Some(7)
        );
        drop(removed);
        assert_eq!(again().ok().json()["changed"], false);
        let hint = "It ends with the next enable or apply, once all is read or closed";
        let told = instance.run(&["status"]).ok().stdout;
        assert!(told.contains(hint), "{told}");
        read_unread(&pair, b"unread");
        assert_eq!(again().ok().json()["changed"], true);
        assert_drain(&instance, &[]);
        assert_eq!(again().ok().json()["changed"], false);
        Probe::new().assert_plain(&pair.server, "removed");
        round_trip(&pair);
    }
}

/// Namespaces and cgroups may go while connections live in them.
#[test]
fn what_is_around_a_connection_may_be_gone() {
    let [cgroup, other] = ["drain-gone", "drain-other"].map(Cgroup::new);
    let instance = Instance::try_enable(&[&cgroup, &other], &[]).expect("enable");
    let netns = Netns::new("drain");
    let pair = {
        let _joined = cgroup.join();
        netns.enter(Pair::new)
    };
    netns.enter(|| warm_up(&instance, &pair));
    drop(netns);
    let path = cgroup.path().to_owned();
    drop(cgroup);
    assert!(!path.exists());
    let told = instance.run(&["status", "--json"]).ok().json();
    assert_eq!(told["cgroups"].as_array().map(Vec::len), Some(2), "{told}");
    // The sockets outlive both, and go on.
    warm_up(&instance, &pair);
    let ids = map_ids(&instance);
    instance.disable().ok();
    let probe = Probe::new();
    probe.assert_plain(&pair.client, "client");
    probe.assert_plain(&pair.server, "server");
    assert_gone(&ids, "cgroup and namespace gone");
}
