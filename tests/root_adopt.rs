//! `adopt`: connections that are older than the instance.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use nix::fcntl::SpliceFFlags;
use nix::fcntl::splice;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;
use nix::unistd::gettid;
use nix::unistd::pipe;
use serde_json::Value;

use common::adopt::refused_here;
use common::books::assert_balanced;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::netns::Netns;
use common::option;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::pattern::Pattern;
use common::process::Process;
use common::raw::Answering;
use common::raw::SilentPage;
use common::repair::forge;
use common::rng::Rng;
use common::stream::recv_all;
use common::stream::send_all;
use common::tagged::Tagged;
use common::tagged::assert_nothing_to_read;
use common::traffic::Direction;
use common::traffic::Plan;
use common::traffic::run_end;
use common::warm::assert_redirected;
use common::warm::round_trip;
use common::warm::warm_up;

/// `adopt`, with the number of connections that it took.
fn adopt(instance: &Instance) -> (usize, Value) {
    let told = instance.run(&["--json", "adopt"]).ok().json();
    let adopted = told["adopted"].as_array().expect("an array").len();
    (adopted, told)
}

/// How many sockets were left for each reason.
fn left(told: &Value) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for socket in told["left"].as_array().expect("an array") {
        let reason = socket["reason"].as_str().expect("a reason");
        *reasons.entry(reason.to_owned()).or_default() += 1;
    }
    reasons
}

#[test]
fn connections_from_before_are_accelerated() {
    if refused_here() {
        return;
    }
    for (name, options) in [
        ("v4", Options::default()),
        ("v6", Options::v6()),
        ("v4-mapped", Options::v4_mapped()),
    ] {
        let cgroup = Cgroup::new("adopt");
        let joined = cgroup.join();
        let mut old = Tagged::new(name, 1, Pair::with(&options));
        old.exchange(10);
        let instance = Instance::enable(&cgroup, &[]);
        let before = instance.stats();
        old.exchange(10);
        assert_eq!(before.count("seen"), 0);
        assert_eq!(instance.stats().redirected_messages(), 0, "{name}");

        let dry = instance.run(&["--json", "adopt", "--dry-run"]).ok().json();
        assert_eq!(dry["done"], false);
        assert_eq!(dry["adopted"].as_array().map(Vec::len), Some(1), "{dry}");
        assert_eq!(instance.stats().count("seen"), 0, "--dry-run");

        let (adopted, told) = adopt(&instance);
        assert_eq!(adopted, 1, "{name}: {told}");
        let ends = |stream: &TcpStream| {
            let addr = stream.local_addr().expect("getsockname");
            SocketAddr::new(addr.ip().to_canonical(), addr.port()).to_string()
        };
        assert_eq!(told["adopted"][0]["client"], ends(&old.pair.client));
        assert_eq!(told["adopted"][0]["server"], ends(&old.pair.server));

        // Before its reader has read anything as an enrolled socket: no redirect.
        let before = instance.stats();
        old.exchange(1);
        let after = instance.stats();
        assert_eq!(after.delta(&before, "redirected_messages"), 0);
        assert_eq!(after.by_reason("stack_reasons", "unread"), 2, "{}", after.0);
        old.exchange(20);
        let after = assert_balanced(&instance);
        assert_eq!(after.delta(&before, "redirected_messages"), 40);
        assert_eq!(after.count("seen"), 2);
        assert_eq!(after.count("enrolled_now"), 2);
        assert_eq!(after.count("paired"), 2);

        assert_eq!(adopt(&instance).0, 0, "a second time");
        drop(old);
        Deadline::seconds(10).until("closed", || instance.dump("connections").is_empty());
        assert_eq!(assert_balanced(&instance).count("enrolled_now"), 0);
        drop(joined);
    }
}

/// Whoever sent last, and however much: the numbers that the two ends begin with
/// are found again.
#[test]
fn the_history_of_a_connection_does_not_matter() {
    if refused_here() {
        return;
    }
    let cgroup = Cgroup::new("history");
    let _joined = cgroup.join();
    let mut rng = Rng::for_test("history");
    let deadline = Deadline::seconds(60);
    let mut pairs: Vec<(Pair, [u64; 2])> = Vec::new();
    for (up, down) in [(0, 0), (1, 0), (0, 1), (70_000, 5), (3, 900_000)] {
        let pair = Pair::new();
        for (from, to, bytes) in [
            (&pair.client, &pair.server, up),
            (&pair.server, &pair.client, down),
        ] {
            let mut sent = 0;
            while sent < bytes {
                let len = rng.size(4096).min(bytes - sent);
                send_all(from, &vec![7; len], deadline);
                recv_all(to, &mut vec![0; len], deadline);
                sent += len;
            }
        }
        pairs.push((pair, [0; 2]));
    }
    let instance = Instance::enable(&cgroup, &[]);
    let (adopted, told) = adopt(&instance);
    assert_eq!(adopted, pairs.len(), "{told}");
    for (pair, _) in &pairs {
        warm_up(&instance, pair);
    }
    assert_balanced(&instance);
}

/// What waits in TCP's queues while both are enrolled is read first.
#[test]
fn unread_bytes_stay_in_order() {
    if refused_here() {
        return;
    }
    let cgroup = Cgroup::new("unread");
    let _joined = cgroup.join();
    let deadline = Deadline::seconds(30);
    let pair = Pair::new();
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    let mut bytes = vec![0; 100_000];
    up.fill(0, &mut bytes);
    send_all(&pair.client, &bytes, deadline);
    let mut bytes = vec![0; 50_000];
    down.fill(0, &mut bytes);
    send_all(&pair.server, &bytes, deadline);
    let instance = Instance::enable(&cgroup, &[]);
    assert_eq!(adopt(&instance).0, 1);
    // Some is read, then more is sent behind what is not.
    let mut got = vec![0; 40_000];
    recv_all(&pair.server, &mut got, deadline);
    up.check(0, &got, "the first part");
    let mut bytes = [0; 1000];
    up.fill(100_000, &mut bytes);
    send_all(&pair.client, &bytes, deadline);
    let mut got = vec![0; 61_000];
    recv_all(&pair.server, &mut got, deadline);
    up.check(40_000, &got, "the rest");
    let mut got = vec![0; 50_000];
    recv_all(&pair.client, &mut got, deadline);
    down.check(0, &got, "the other way");
    warm_up(&instance, &pair);
}

/// Enrolled and taken out again, many times, while bytes flow both ways.
#[test]
fn traffic_goes_on() {
    const CYCLES: usize = 4;
    if refused_here() {
        return;
    }
    let cgroup = Cgroup::new("traffic");
    let _joined = cgroup.join();
    let mut rng = Rng::for_test("adopted traffic");
    let deadline = Deadline::seconds(240);
    let pairs: Vec<Pair> = (0..3).map(|_| Pair::new()).collect();
    let directions: Vec<[Direction; 2]> = (0..pairs.len())
        .map(|n| {
            [("up", 200), ("down", 6000)].map(|(name, largest)| {
                let plan = Plan {
                    total: u64::MAX,
                    largest,
                    lull_one_in: 1,
                };
                Direction::new(format!("{name} {n}"), rng.next(), plan)
            })
        })
        .collect();
    let (mut adopted, mut redirected) = (0, 0);
    thread::scope(|scope| {
        for (pair, [up, down]) in pairs.iter().zip(&directions) {
            for (stream, out, inbound) in [(&pair.client, up, down), (&pair.server, down, up)] {
                let rng = rng.fork();
                scope.spawn(move || run_end(stream, out, inbound, rng, deadline));
            }
        }
        for _ in 0..CYCLES {
            let instance = Instance::enable(&cgroup, &[]);
            adopted += adopt(&instance).0;
            let moves = || instance.stats().redirected_messages() > 50;
            while !moves() && !deadline.passed() {
                thread::sleep(Duration::from_millis(20));
            }
            redirected += assert_balanced(&instance).redirected_messages();
            instance.disable().ok();
        }
        directions.iter().flatten().for_each(Direction::end);
    });
    assert_eq!(adopted, CYCLES * pairs.len());
    assert!(redirected > 50 * CYCLES as u64, "{redirected}");
}

/// Each end in a network namespace of its own; no process lives in either.
#[test]
fn across_network_namespaces() {
    if refused_here() {
        return;
    }
    let (client, server) = (Netns::new("client"), Netns::new("server"));
    client.veth(("va", "10.1.0.2/24"), &server, ("vb", "10.1.0.1/24"));
    let cgroup = Cgroup::new("adopt");
    let joined = cgroup.join();
    let options = Options {
        listen: "10.1.0.1:0".parse().expect("an address"),
        ..Options::default()
    };
    let listener = server.enter(|| listen(&options));
    let to = listener.local_addr().expect("getsockname");
    let stream = client.enter(|| connect(to, &options));
    let pair = Pair {
        client: stream,
        server: accept(&listener, &options),
    };
    round_trip(&pair);
    let instance = Instance::enable(&cgroup, &[]);
    let (adopted, told) = adopt(&instance);
    assert_eq!(adopted, 1, "{told}");
    warm_up(&instance, &pair);
    drop(joined);
}

/// What cannot be enrolled when it is established cannot be adopted either, and is
/// not counted: it stays as unknown as it was.
#[test]
fn what_is_left_and_why() {
    if refused_here() {
        return;
    }
    let cgroup = Cgroup::new("left");
    let other = Cgroup::new("left");
    let options = Options::default();
    let check = |what: &str, enable: &[&str], expected: &[(&str, usize)], pair: &Pair| {
        let instance = Instance::enable(&cgroup, enable);
        let (adopted, told) = adopt(&instance);
        assert_eq!(adopted, 0, "{what}: {told}");
        let expected = expected
            .iter()
            .map(|(r, n)| ((*r).to_owned(), *n))
            .collect();
        assert_eq!(left(&told), expected, "{what}");
        let before = instance.stats();
        assert_eq!(before.count("seen"), 0, "{what}");
        for _ in 0..5 {
            round_trip(pair);
        }
        assert_eq!(instance.stats().redirected_messages(), 0, "{what}");
    };
    let both = |reason| [(reason, 1), ("peer_not_eligible", 1)];

    // Each way in which one end alone, or both, are not fit.
    let joined = cgroup.join();
    let blocking = Pair::with(&Options::blocking());
    check("blocking", &[], &[("blocking_reader", 2)], &blocking);
    drop(blocking);
    let half = Pair::with(&Options {
        server_nonblocking: false,
        ..Options::default()
    });
    check("half", &[], &both("blocking_reader"), &half);
    drop(half);
    let pair = Pair::new();
    let port = pair.server.local_addr().expect("getsockname").port();
    check(
        "port",
        &["--exclude-port", &port.to_string()],
        &[("filtered", 2)],
        &pair,
    );
    check(
        "cidr",
        &["--exclude-cidr", "127.0.0.0/8"],
        &[("filtered", 2)],
        &pair,
    );
    drop(joined);
    drop(pair);

    // The server is elsewhere.
    let listener = {
        let _joined = other.join();
        listen(&options)
    };
    let pair = {
        let _joined = cgroup.join();
        let client = connect(listener.local_addr().expect("getsockname"), &options);
        Pair {
            client,
            server: accept(&listener, &options),
        }
    };
    check("other cgroup", &[], &[("no_local_peer", 1)], &pair);
}

type Set = fn(&TcpStream);

/// Those of `tests/root_reasons.rs`, at either end.
#[test]
fn an_option_that_redirect_cannot_honour_leaves_both_ends() {
    if refused_here() {
        return;
    }
    let mut options: Vec<(&str, Set)> = vec![
        ("rcvlowat", |fd| option::set(fd, option::RcvLowat, 10)),
        ("tcp_inq", |fd| option::set(fd, option::Inq, 1)),
        ("zerocopy", |fd| option::set(fd, option::ZeroCopy, 1)),
        ("timestamping", |fd| {
            setsockopt(fd, sockopt::ReceiveTimestamp, &true).expect("SO_TIMESTAMP");
        }),
        ("pacing", |fd| {
            option::set(fd, option::MaxPacingRate, 50_000_000);
        }),
    ];
    if option::tcp_has_peek_off() {
        options.push(("peek_off", |fd| option::set(fd, option::PeekOff, 0)));
    }
    let cgroup = Cgroup::new("options");
    let _joined = cgroup.join();
    for (reason, set) in options {
        for server in [false, true] {
            let pair = Pair::new();
            set(if server { &pair.server } else { &pair.client });
            let instance = Instance::enable(&cgroup, &[]);
            let (adopted, told) = adopt(&instance);
            assert_eq!(adopted, 0, "{reason}: {told}");
            let expected = [(reason, 1), ("peer_not_eligible", 1)];
            let expected = expected.map(|(r, n)| (r.to_owned(), n)).into();
            assert_eq!(left(&told), expected, "{reason}");
        }
    }
}

#[test]
fn a_service_is_left_on_the_stack() {
    if refused_here() {
        return;
    }
    let cgroup = Cgroup::new("service");
    let _joined = cgroup.join();
    let pair = Pair::new();
    let service = pair.server.local_addr().expect("getsockname").to_string();
    let instance = Instance::enable(&cgroup, &[]);
    instance.run(&["service", "add", &service]).ok();
    let (adopted, told) = adopt(&instance);
    assert_eq!(adopted, 0, "{told}");
    assert_eq!(left(&told)["service"], 1, "{told}");
    instance.run(&["service", "del", &service]).ok();
    assert_eq!(adopt(&instance).0, 1, "judged for good");
    warm_up(&instance, &pair);
}

/// Nobody reads it yet, so nobody knows how.
#[test]
fn a_connection_that_is_not_accepted_is_left() {
    if refused_here() {
        return;
    }
    let cgroup = Cgroup::new("queue");
    let _joined = cgroup.join();
    let options = Options::default();
    let listener = listen(&options);
    let client = connect(listener.local_addr().expect("getsockname"), &options);
    let instance = Instance::enable(&cgroup, &[]);
    let (adopted, told) = adopt(&instance);
    assert_eq!(adopted, 0, "{told}");
    assert_eq!(left(&told)["kernel_socket"], 1, "{told}");
    let pair = Pair {
        client,
        server: accept(&listener, &options),
    };
    assert_eq!(adopt(&instance).0, 1);
    warm_up(&instance, &pair);
}

/// A process that was seen splicing reads its older connections that way, too.
#[test]
fn connections_of_a_process_that_splices_are_left() {
    if refused_here() {
        return;
    }
    let cgroup = Cgroup::new("splices");
    let _joined = cgroup.join();
    let old = Pair::new();
    let instance = Instance::enable(&cgroup, &[]);
    let new = Pair::new();
    warm_up(&instance, &new);
    send_all(&new.client, b"spliced", Deadline::seconds(10));
    let (_out, into) = pipe().expect("pipe");
    // It may see nothing: that it asks is enough.
    let _ = splice(
        &new.server,
        None,
        &into,
        None,
        7,
        SpliceFFlags::SPLICE_F_NONBLOCK,
    );
    let (adopted, told) = adopt(&instance);
    assert_eq!(adopted, 0, "{told}");
    assert_eq!(left(&told)["splicing"], 2, "{told}");
    let before = instance.stats();
    for _ in 0..5 {
        round_trip(&old);
    }
    assert_eq!(
        instance.stats().redirected_messages(),
        before.redirected_messages()
    );
}

/// A splice(2) between adoption and the first redirect is seen in time.
#[test]
fn a_reader_that_splices_its_first_bytes_gets_all_of_them() {
    if refused_here() {
        return;
    }
    let cgroup = Cgroup::new("splices");
    let _joined = cgroup.join();
    let pair = Pair::new();
    round_trip(&pair);
    let instance = Instance::enable(&cgroup, &[]);
    assert_eq!(adopt(&instance).0, 1);
    let deadline = Deadline::seconds(20);
    let text = Pattern::new(9);
    let (out, into) = pipe().expect("pipe");
    let mut at = 0;
    for _ in 0..10 {
        let mut bytes = [0; 64];
        text.fill(at, &mut bytes);
        send_all(&pair.client, &bytes, deadline);
        deadline.wait(&pair.server, PollFlags::POLLIN, "splice");
        let mut missing = bytes.len();
        while missing > 0 {
            let moved = splice(
                &pair.server,
                None,
                &into,
                None,
                missing,
                SpliceFFlags::empty(),
            );
            missing -= moved.expect("splice");
        }
        let mut got = [0; 64];
        std::fs::File::from(out.try_clone().expect("dup"))
            .read_exact(&mut got)
            .expect("read the pipe");
        text.check(at, &got, "spliced");
        at += 64;
    }
    assert_eq!(instance.stats().by_reason("stack_reasons", "unread"), 1);
}

/// Who sleeps in recv(2) at adoption may have begun a splice(2), and is not redirected
/// to before it has come back. A poll(2) is none.
#[test]
fn a_reader_that_polls_meanwhile_is_redirected_to() {
    if refused_here() {
        return;
    }
    let cgroup = Cgroup::new("polls");
    let _joined = cgroup.join();
    let pair = Pair::new();
    round_trip(&pair);
    let instance = Instance::enable(&cgroup, &[]);
    let deadline = Deadline::seconds(20);
    let (tell, hear) = channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            tell.send(gettid()).expect("hear");
            deadline.wait(&pair.client, PollFlags::POLLIN, "ping");
        });
        let stat = format!("/proc/self/task/{}/stat", hear.recv().expect("a thread"));
        deadline.until("it sleeps", || {
            fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "))
        });
        assert_eq!(adopt(&instance).0, 1);
        send_all(&pair.server, b"ping", deadline);
    });
    recv_all(&pair.client, &mut [0; 4], deadline);
    warm_up(&instance, &pair);
}

/// A third socket that has the numbers of one of the two: which is whose peer?
/// Addresses would not tell, with translations in between.
#[test]
fn twins_are_left() {
    if refused_here() {
        return;
    }
    for role in ["active", "passive"] {
        let cgroup = Cgroup::new("twins");
        let netns = Netns::new("twins");
        let _joined = cgroup.join();
        let instance = Instance::enable(&cgroup, &[]);
        let pair = Pair::new();
        warm_up(&instance, &pair);
        let numbers = numbers_to_forge(&instance, role);
        instance.disable().ok();
        drop(instance);

        let end = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let twin = netns.enter(|| forge(end(44000), end(44001), numbers));
        let instance = Instance::enable(&cgroup, &[]);
        let (adopted, told) = adopt(&instance);
        assert_eq!(adopted, 0, "{role}: {told}");
        assert_eq!(left(&told), [("ambiguous".to_owned(), 3)].into(), "{role}");
        for _ in 0..5 {
            round_trip(&pair);
        }
        assert_eq!(instance.stats().redirected_messages(), 0, "{role}");
        drop(twin);
        assert_eq!(adopt(&instance).0, 1, "{role}: without its twin");
        warm_up(&instance, &pair);
    }
}

/// In place of a server that is elsewhere, with its numbers: it has not had what the
/// client sent.
#[test]
fn a_forged_end_is_not_paired_with_a_lone_one() {
    if refused_here() {
        return;
    }
    let (cgroup, other) = (Cgroup::new("lone"), Cgroup::new("lone"));
    let netns = Netns::new("lone");
    let options = Options::default();
    let both = Instance::try_enable(&[&cgroup, &other], &[]).expect("enabled");
    let listener = {
        let _joined = other.join();
        listen(&options)
    };
    let _joined = cgroup.join();
    let pair = Pair::on(&listener, &options);
    warm_up(&both, &pair);
    let numbers = numbers_to_forge(&both, "passive");
    both.disable().ok();
    drop(both);

    let end = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let forged = netns.enter(|| forge(end(44001), end(44000), numbers));
    let instance = Instance::enable(&cgroup, &[]);
    let (adopted, told) = adopt(&instance);
    assert_eq!(adopted, 0, "{told}");
    let reasons = [("mismatch", 1), ("peer_not_eligible", 1)];
    assert_eq!(left(&told), reasons.map(|(r, n)| (r.to_owned(), n)).into());
    assert_eq!(
        assert_balanced(&instance).by_reason("skipped", "mismatch"),
        1
    );
    let mut victim = Tagged::new("victim", 1, pair);
    for _ in 0..10 {
        victim.exchange(2);
        assert_nothing_to_read(&forged, "forged");
    }
    let stats = assert_balanced(&instance);
    assert_eq!(stats.redirected_messages(), 0, "{}", stats.0);
}

/// What a forged socket must be given to look like the client or the server of the
/// only connection there is.
fn numbers_to_forge(instance: &Instance, role: &str) -> [i32; 2] {
    let rows = instance.dump("connections");
    let row = rows.iter().find(|row| row["role"] == role).expect("a row");
    let id = row["conn_id"].as_str().expect("a conn_id");
    let id = u64::from_str_radix(id, 16).expect("hexadecimal");
    let both = [id >> 32, id & 0xffff_ffff].map(|n| u32::try_from(n).expect("32 bits"));
    // Side 1 sends from the smaller number, see sa_introduce().
    let [own, peer] = if row["side"] == 1 {
        both
    } else {
        [both[1], both[0]]
    };
    let syn = u32::from(role == "active");
    [own.wrapping_sub(syn), peer].map(u32::cast_signed)
}

/// What there is no room for is left as it was, and both ends of the rest get in.
#[test]
fn there_is_room_for_whole_connections_only() {
    if refused_here() {
        return;
    }
    let cgroup = Cgroup::new("room");
    let _joined = cgroup.join();
    let mut pairs: Vec<Pair> = (0..40).map(|_| Pair::new()).collect();
    let instance = Instance::enable(&cgroup, &["--max-sockets", "64"]);
    let (adopted, told) = adopt(&instance);
    assert_eq!(adopted, 32, "{told}");
    assert_eq!(left(&told), [("map_full".to_owned(), 16)].into());
    assert_eq!(assert_balanced(&instance).count("seen"), 64);

    let of = |pair: &Pair| pair.client.local_addr().expect("getsockname").to_string();
    let taken: Vec<String> = told["adopted"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|c| c["client"].as_str().expect("an address").to_owned())
        .collect();
    let mut closed = 0;
    pairs.retain(|pair| {
        let close = closed < 8 && taken.contains(&of(pair));
        closed += usize::from(close);
        !close
    });
    Deadline::seconds(10).until("closed", || instance.stats().count("enrolled_now") == 48);
    // Those that are adopted and have not sent yet are not told as left.
    let (adopted, told) = adopt(&instance);
    assert_eq!(adopted, 8, "{told}");
    assert_eq!(left(&told), BTreeMap::new(), "{told}");
    for pair in [&pairs[0], &pairs[31]] {
        warm_up(&instance, pair);
    }
    assert_balanced(&instance);
}

/// A socket whose owner is kept in the middle of a send(2): `adopt` gives up in time,
/// and other commands do not wait for it.
#[test]
fn a_socket_that_stays_locked_keeps_nobody_waiting_for_ever() {
    if refused_here() {
        return;
    }
    let cgroup = Cgroup::new("adopt-locked");
    let _joined = cgroup.join();
    let held = Pair::new();
    let mut free = Tagged::new("free", 1, Pair::new());
    let instance = Instance::enable(&cgroup, &[]);
    let page = SilentPage::new();
    thread::scope(|scope| {
        let sender = scope.spawn(|| page.send(&held.client));
        // Also where an assertion fails.
        let answering = Answering(&page);
        let deadline = Deadline::seconds(60);
        deadline.until("the send to need the page", || page.is_asked_for());
        interrupt_adopt(&instance, deadline);
        instance.run(&["status"]).ok();
        let adopting = scope.spawn(|| instance.run(&["adopt", "--json"]));
        deadline.until("adopt to give up", || adopting.is_finished());
        let ran = adopting.join().expect("adopt");
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("socket locked"), "{ran:?}");
        // It is locked still, and waited for; nothing else is.
        assert!(!sender.is_finished());
        for words in [
            &["status"][..],
            &["endpoint", "add", "10.0.0.1"],
            &["upgrade", "--again"],
        ] {
            instance.run(words).ok();
        }
        instance.disable().ok();
        instance.enable_more(&[&cgroup], &[]).ok();
        free.exchange(1);
        drop(answering);
        assert_eq!(sender.join().expect("a send"), Ok(4096));
    });
    // What was left in the middle does nothing to the instance of now.
    free.exchange(5);
    assert_eq!(instance.stats().count("seen"), 0);
    let (adopted, told) = adopt(&instance);
    assert_eq!(adopted, 2, "{told}");
    let before = instance.stats();
    free.exchange(5);
    assert_redirected(&before, &instance.stats(), 1);
    assert_balanced(&instance);
}

/// Somebody who will not wait so long: the child that does must hold nothing back.
fn interrupt_adopt(instance: &Instance, deadline: Deadline) {
    let mut adopting = Process::start(
        Command::new(env!("CARGO_BIN_EXE_sockaccel"))
            .args(["adopt", "--instance", instance.name()])
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    let children = format!("/proc/{0}/task/{0}/children", adopting.id());
    deadline.until("adopt to have a child", || {
        fs::read_to_string(&children).is_ok_and(|list| !list.is_empty())
    });
    adopting.signal(Signal::SIGINT);
    adopting.ended(deadline);
}
