//! Every connection that is not accelerated is counted under one reason, which
//! `status` names, and its data flows as ever.
//!
//! Not here, because a test cannot provoke them: `no_memory` and `unsupported`.
//! `mismatch` takes two sockets with one pair of sequence numbers that are not a
//! connection: see `root_adopt.rs`. `kernel_socket` takes a kernel service that speaks TCP
//! (NFS, `NVMe`); the one that every kernel has is MPTCP, and its sockets are
//! counted as `ulp`. For `ambiguous` see `root_isolation.rs`.

mod common;

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::Backlog;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::TimestampingFlag;
use nix::sys::socket::sockopt;
use sockaccel::outcome::REASONS;

use common::books::assert_balanced;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::netns::Netns;
use common::option;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::listen;
use common::pair::reconnect;
use common::stream::recv_all;
use common::stream::send_all;
use common::tagged::Tagged;
use common::warm::assert_redirected;
use common::warm::round_trip;
use common::warm::warm_up;

/// How many of which reason, in the order skipped, ejected.
type Expected<'a> = (&'a [(&'a str, u64)], &'a [(&'a str, u64)]);

/// Exactly these reasons were counted, the books balance, and `status` tells
/// each, with what would change it.
fn assert_told(instance: &Instance, (skipped, ejected): Expected) {
    let stats = assert_balanced(instance);
    for (object, expected) in [("skipped", skipped), ("ejected", ejected)] {
        let counted: Vec<(&str, u64)> = stats.0[object]
            .as_object()
            .expect("an object")
            .iter()
            .map(|(reason, count)| (reason.as_str(), count.as_u64().expect("a count")))
            .collect();
        let mut expected = expected.to_vec();
        expected.sort_by_key(|(name, _)| REASONS.iter().position(|r| r.name == *name));
        assert_eq!(counted, expected, "{object}: {}", stats.0);
    }
    let json = instance.run(&["status", "--json"]).ok().json();
    let text = instance.run(&["status"]).ok().stdout;
    for (name, _) in skipped.iter().chain(ejected) {
        let reason = REASONS
            .iter()
            .find(|reason| reason.name == *name)
            .unwrap_or_else(|| panic!("{name} is no reason"));
        let told = json["not_accelerated"]
            .as_array()
            .expect("an array")
            .iter()
            .find(|told| told["reason"] == *name)
            .unwrap_or_else(|| panic!("status does not tell {name}: {json}"));
        let remedy = told["remedy"].as_str().expect("text");
        // What is to be filled in is another test's.
        let fixed = reason.remedy.rsplit('}').next().unwrap_or_default();
        assert!(remedy.ends_with(fixed), "{name}: {remedy}");
        assert_eq!(remedy.is_empty(), reason.remedy.is_empty());
        assert!(text.contains(reason.text), "{name}: {text}");
        assert!(text.contains(remedy), "{name}: {text}");
    }
}

/// The data flows, and none of it is redirected.
fn flows_by_the_stack(instance: &Instance, pair: Pair) -> Pair {
    let before = instance.stats();
    let mut tagged = Tagged::new("not accelerated", 1, pair);
    tagged.exchange(20);
    assert_eq!(instance.stats().delta(&before, "redirected_bytes"), 0);
    tagged.pair
}

/// One connection of this kind, made in the cgroup.
fn one_connection(enable: &[&str], options: &Options, expected: Expected) {
    let cgroup = Cgroup::new("reason");
    let instance = Instance::enable(&cgroup, enable);
    let _joined = cgroup.join();
    let pair = flows_by_the_stack(&instance, Pair::with(options));
    assert_told(&instance, expected);
    assert_closed(&instance, pair);
}

/// Nothing of it stays in the tables.
fn assert_closed<T>(instance: &Instance, connections: T) {
    drop(connections);
    Deadline::seconds(10).until("empty tables", || instance.is_empty());
    assert_eq!(instance.stats().count("enrolled_now"), 0);
}

#[test]
fn no_local_peer_of_an_accepted_socket() {
    let cgroup = Cgroup::new("accepted");
    let instance = Instance::enable(&cgroup, &[]);
    let options = Options::default();
    let joined = cgroup.join();
    let listener = listen(&options);
    drop(joined);
    let pair = flows_by_the_stack(&instance, Pair::on(&listener, &options));
    assert_told(&instance, (&[("no_local_peer", 1)], &[]));
    assert_closed(&instance, pair);
}

#[test]
fn no_local_peer_of_a_connecting_socket_at_its_first_ack() {
    let cgroup = Cgroup::new("connecting");
    let instance = Instance::enable(&cgroup, &[]);
    let options = Options::default();
    let listener = listen(&options);
    let _joined = cgroup.join();
    let pair = Pair::on(&listener, &options);
    let pair = flows_by_the_stack(&instance, pair);
    assert_told(&instance, (&[], &[("no_local_peer", 1)]));
    assert_closed(&instance, pair);
}

/// It never sends, so no ACK tells: it must not keep its place for that.
#[test]
fn no_local_peer_of_an_idle_connecting_socket() {
    let cgroup = Cgroup::new("idle");
    let instance = Instance::enable(&cgroup, &[]);
    let options = Options::default();
    let listener = listen(&options);
    let _joined = cgroup.join();
    let pair = Pair::on(&listener, &options);
    Deadline::seconds(10).until("no entry", || instance.is_empty());
    assert_told(&instance, (&[], &[("no_local_peer", 1)]));
    let pair = flows_by_the_stack(&instance, pair);
    assert_closed(&instance, pair);
    assert_told(&instance, (&[], &[("no_local_peer", 1)]));
}

/// Closed with its only message not acknowledged yet: the books must not show
/// it as open for ever.
#[test]
fn connections_closed_before_their_first_ack_are_not_open_any_more() {
    let cgroup = Cgroup::new("one-shot");
    let instance = Instance::enable(&cgroup, &[]);
    let options = Options::default();
    let listener = listen(&options);
    let _joined = cgroup.join();
    for _ in 0..20 {
        let Pair { client, server } = Pair::on(&listener, &options);
        option::set(&server, option::QuickAck, 0);
        send_all(&client, b"one shot", Deadline::seconds(10));
        drop(client);
        let mut got = [0; 8];
        recv_all(&server, &mut got, Deadline::seconds(10));
        assert_eq!(&got, b"one shot");
    }
    assert_eq!(assert_balanced(&instance).count("seen"), 20);
    assert_closed(&instance, ());
}

#[test]
fn blocking_reader_that_connects() {
    one_connection(
        &[],
        &Options {
            client_nonblocking: false,
            ..Options::default()
        },
        (&[("blocking_reader", 1), ("peer_not_eligible", 1)], &[]),
    );
}

/// As programs do that connect with a time limit.
#[test]
fn blocking_reader_that_was_not_one_while_it_connected() {
    let cgroup = Cgroup::new("later");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    assert_eq!(instance.stats().count("enrolled_now"), 2);
    pair.client.set_nonblocking(false).expect("O_NONBLOCK");
    let pair = flows_by_the_stack(&instance, pair);
    assert_told(&instance, (&[], &[("blocking_reader", 2)]));
    assert_closed(&instance, pair);
}

/// A listener's children read alike: the first of a non-blocking one is found
/// out, the next are not taken any more.
#[test]
fn blocking_reader_that_accepts_is_learned() {
    let cgroup = Cgroup::new("learned");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let options = Options {
        server_nonblocking: false,
        ..Options::default()
    };
    let listener = listen(&Options::default());
    let first = flows_by_the_stack(&instance, Pair::on(&listener, &options));
    assert_told(&instance, (&[], &[("blocking_reader", 2)]));

    let second = flows_by_the_stack(&instance, Pair::on(&listener, &options));
    assert_told(
        &instance,
        (
            &[("blocking_reader", 1)],
            &[("blocking_reader", 2), ("peer_not_eligible", 1)],
        ),
    );
    assert_closed(&instance, (first, second));
}

/// The children of the next program at that address may read differently.
#[test]
fn what_was_learned_is_forgotten_when_somebody_else_listens() {
    for bind in ["127.0.0.1:7000", "0.0.0.0:7000", "[::]:7000"] {
        let cgroup = Cgroup::new("forgotten");
        let instance = Instance::enable(&cgroup, &[]);
        let netns = Netns::new("forgotten");
        let _joined = cgroup.join();
        let nonblocking = Options {
            listen: bind.parse().expect("an address"),
            connect: Some("127.0.0.1:0".parse().expect("an address")),
            ..Options::default()
        };
        let blocking = Options {
            server_nonblocking: false,
            ..nonblocking.clone()
        };
        let before = netns.enter(|| Pair::with(&blocking));
        drop(flows_by_the_stack(&instance, before));
        println!("listening at {bind}: {}", instance.stats().0);
        let after = netns.enter(|| Pair::with(&nonblocking));
        warm_up(&instance, &after);
        assert_balanced(&instance);
    }
}

/// The accepted socket is told what is the matter with the other end.
const FILTERED: Expected = (&[("filtered", 1), ("peer_not_eligible", 1)], &[]);

#[test]
fn filtered_by_port() {
    one_connection(&["--port", "1-9"], &Options::default(), FILTERED);
}

#[test]
fn filtered_by_excluded_port() {
    one_connection(
        &["--exclude-port", "1024-65535"],
        &Options::default(),
        FILTERED,
    );
}

#[test]
fn filtered_by_cidr() {
    one_connection(&["--cidr", "10.0.0.0/8"], &Options::default(), FILTERED);
    one_connection(&["--cidr", "127.0.0.0/8"], &Options::v6(), FILTERED);
}

#[test]
fn filtered_by_excluded_cidr() {
    one_connection(
        &["--exclude-cidr", "127.0.0.0/8"],
        &Options::default(),
        FILTERED,
    );
    one_connection(
        &["--exclude-cidr", "127.0.0.0/8"],
        &Options::v4_mapped(),
        FILTERED,
    );
    one_connection(&["--exclude-cidr", "::1/128"], &Options::v6(), FILTERED);
}

#[test]
fn what_the_filters_let_through_is_accelerated() {
    for enable in [
        &["--port", "1024-65535"],
        &["--exclude-port", "1-9"],
        &["--cidr", "127.0.0.0/8"],
        &["--exclude-cidr", "10.0.0.0/8"],
    ] {
        let cgroup = Cgroup::new("let-through");
        let instance = Instance::enable(&cgroup, enable);
        let _joined = cgroup.join();
        warm_up(&instance, &Pair::new());
        assert_balanced(&instance);
    }
}

#[test]
fn service_on_the_stack() {
    let cgroup = Cgroup::new("service");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let options = Options::default();
    let listener = listen(&options);
    let vip = listener.local_addr().expect("getsockname").to_string();
    instance.run(&["service", "add", &vip]).ok();
    let pair = flows_by_the_stack(&instance, Pair::on(&listener, &options));
    assert_told(
        &instance,
        (&[("peer_not_eligible", 1), ("service", 1)], &[]),
    );
    assert_closed(&instance, pair);
}

#[test]
fn fast_open() {
    let cgroup = Cgroup::new("fast-open");
    let instance = Instance::enable(&cgroup, &[]);
    let netns = Netns::new("fast-open");
    // Client and server, both without cookies.
    netns.run("sysctl", &["-q", "-w", "net.ipv4.tcp_fastopen=519"]);
    let _joined = cgroup.join();
    let options = Options {
        prepare_listener: |fd| option::set(fd, option::FastOpen, 16),
        ..Options::default()
    };
    let pair = netns.enter(|| {
        let listener = listen(&options);
        let client = unconnected();
        socket::setsockopt(&client, sockopt::TcpFastOpenConnect, &true).expect("TCP_FASTOPEN");
        start_connect(&client, listener.local_addr().expect("getsockname"));
        let client = TcpStream::from(client);
        send_all(&client, b"in the SYN", Deadline::seconds(10));
        let server = accept(&listener, &options);
        let mut got = [0; 10];
        recv_all(&server, &mut got, Deadline::seconds(10));
        assert_eq!(&got, b"in the SYN");
        Pair { client, server }
    });
    let pair = flows_by_the_stack(&instance, pair);
    // The accepted socket is there before the client's has an answer.
    assert_told(&instance, (&[("no_local_peer", 1), ("fast_open", 1)], &[]));
    assert_closed(&instance, pair);
}

fn unconnected() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("socket")
}

fn start_connect(fd: &OwnedFd, to: SocketAddr) {
    match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(e) => panic!("connect {to}: {e}"),
    }
}

/// Two sockets restored as the ends of one connection, as CRIU does.
#[test]
fn repair() {
    let cgroup = Cgroup::new("repair");
    let instance = Instance::enable(&cgroup, &[]);
    let netns = Netns::new("repair");
    let _joined = cgroup.join();
    let ends = [41000, 41001].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let [one, two] = netns.enter(|| {
        [0, 1].map(|i| {
            let fd = unconnected();
            socket::setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
            socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(ends[i])).expect("bind");
            option::set(&fd, option::Repair, 1);
            // TCP_RECV_QUEUE is 1, TCP_SEND_QUEUE is 2.
            for (queue, seq) in [(2 - i, 1_000_000), (1 + i, 2_000_000)] {
                let queue = i32::try_from(queue).expect("1 or 2");
                option::set(&fd, option::RepairQueue, queue);
                option::set(&fd, option::QueueSeq, seq);
            }
            start_connect(&fd, ends[1 - i]);
            fd
        })
    });
    for fd in [&one, &two] {
        option::set(fd, option::Repair, 0);
    }
    let pair = Pair {
        client: one.into(),
        server: two.into(),
    };
    let pair = flows_by_the_stack(&instance, pair);
    assert_told(&instance, (&[("repair", 2)], &[]));
    assert_closed(&instance, pair);
}

#[test]
fn self_connect() {
    let cgroup = Cgroup::new("self");
    let instance = Instance::enable(&cgroup, &[]);
    let netns = Netns::new("self");
    let _joined = cgroup.join();
    let stream = netns.enter(|| {
        let fd = unconnected();
        let own = SocketAddr::from(([127, 0, 0, 1], 42000));
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(own)).expect("bind");
        start_connect(&fd, own);
        Deadline::seconds(10).wait(&fd, PollFlags::POLLOUT, "connect");
        TcpStream::from(fd)
    });
    let pair = Pair {
        client: stream.try_clone().expect("dup"),
        server: stream,
    };
    let pair = flows_by_the_stack(&instance, pair);
    assert_told(&instance, (&[("self_connect", 1)], &[]));
    assert_closed(&instance, pair);
}

#[test]
fn reused() {
    let cgroup = Cgroup::new("reused");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let options = Options::default();
    let listener = listen(&options);
    let Pair { client, server } = Pair::on(&listener, &options);
    reconnect(&client, listener.local_addr().expect("getsockname"));
    let again = Pair {
        server: accept(&listener, &options),
        client,
    };
    let again = flows_by_the_stack(&instance, again);
    assert_told(&instance, (&[("reused", 1), ("peer_not_eligible", 1)], &[]));
    assert_closed(&instance, (server, again));
}

/// An option that one end has from the beginning: the client, or the listener,
/// whose children inherit it.
fn option(reason: &str, prepare: fn(&OwnedFd)) {
    one_connection(
        &[],
        &Options {
            prepare_client: prepare,
            ..Options::default()
        },
        (&[(reason, 1), ("peer_not_eligible", 1)], &[]),
    );
    one_connection(
        &[],
        &Options {
            prepare_listener: prepare,
            ..Options::default()
        },
        (&[(reason, 1)], &[("peer_not_eligible", 1)]),
    );
}

#[test]
fn rcvlowat() {
    option("rcvlowat", |fd| option::set(fd, option::RcvLowat, 2));
}

#[test]
fn tcp_inq() {
    option("tcp_inq", |fd| option::set(fd, option::Inq, 1));
}

#[test]
fn zerocopy() {
    option("zerocopy", |fd| option::set(fd, option::ZeroCopy, 1));
}

#[test]
fn peek_off() {
    if !option::tcp_has_peek_off() {
        return;
    }
    option("peek_off", |fd| option::set(fd, option::PeekOff, 0));
}

#[test]
fn timestamping() {
    option("timestamping", |fd| {
        socket::setsockopt(fd, sockopt::ReceiveTimestamp, &true).expect("SO_TIMESTAMP");
    });
    option("timestamping", |fd| {
        let flags = TimestampingFlag::SOF_TIMESTAMPING_RX_SOFTWARE
            | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE;
        socket::setsockopt(fd, sockopt::Timestamping, &flags).expect("SO_TIMESTAMPING");
    });
}

/// What one end has shut is no option. Linux 6.1 has it next to some of them.
#[test]
fn a_half_closed_connection_has_no_option() {
    let cgroup = Cgroup::new("half-closed");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    pair.server.shutdown(Shutdown::Write).expect("shutdown");
    let deadline = Deadline::seconds(20);
    for _ in 0..20 {
        send_all(&pair.client, b"request", deadline);
        recv_all(&pair.server, &mut [0; 7], deadline);
    }
    assert_told(&instance, (&[], &[]));
}

#[test]
fn pacing() {
    option("pacing", |fd| {
        option::set(fd, option::MaxPacingRate, 50_000_000);
    });
}

/// Set later, on both ends of a pair that is redirected already.
#[test]
fn options_set_later_send_a_direction_back() {
    let mut later: Vec<fn(&TcpStream)> = vec![
        |stream| option::set(stream, option::RcvLowat, 2),
        |stream| option::set(stream, option::Inq, 1),
        |stream| option::set(stream, option::MaxPacingRate, 50_000_000),
    ];
    if option::tcp_has_peek_off() {
        later.push(|stream| option::set(stream, option::PeekOff, 0));
    }
    for set in later {
        let cgroup = Cgroup::new("later");
        let instance = Instance::enable(&cgroup, &[]);
        let _joined = cgroup.join();
        let pair = Pair::new();
        warm_up(&instance, &pair);
        set(&pair.client);
        set(&pair.server);
        flows_by_the_stack(&instance, pair);
        assert_balanced(&instance);
    }
}

#[test]
fn busy_with_a_second_instance() {
    let cgroup = Cgroup::new("busy");
    let first = Instance::enable(&cgroup, &[]);
    let second = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    let mut tagged = Tagged::new("of two instances", 1, pair);
    let before = [first.stats(), second.stats()];
    tagged.exchange(20);
    let after = [assert_balanced(&first), assert_balanced(&second)];
    let (winner, loser) = if after[0].redirected_bytes() > 0 {
        (0, 1)
    } else {
        (1, 0)
    };
    assert_redirected(&before[winner], &after[winner], 1);
    assert_eq!(after[loser].redirected_bytes(), 0);
    assert_told(
        [&first, &second][loser],
        (&[("busy", 1), ("peer_not_eligible", 1)], &[]),
    );
    drop(tagged);
    assert_closed(&first, ());
    assert_closed(&second, ());
}

#[test]
fn map_full() {
    let cgroup = Cgroup::new("full");
    let instance = Instance::enable(&cgroup, &["--max-sockets", "2"]);
    let _joined = cgroup.join();
    let first = Pair::new();
    warm_up(&instance, &first);
    let second = flows_by_the_stack(&instance, Pair::new());
    assert_told(
        &instance,
        (&[("map_full", 1), ("peer_not_eligible", 1)], &[]),
    );
    assert_closed(&instance, (first, second));
    warm_up(&instance, &Pair::new());
}

/// The table of connections is as large as that of sockets, and fills first
/// when each connection has one socket here that is not enrolled.
#[test]
fn map_full_of_connections() {
    let cgroup = Cgroup::new("full");
    let options = Options {
        prepare_client: |fd| option::set(fd, option::RcvLowat, 2),
        ..Options::default()
    };
    let instance = Instance::enable(&cgroup, &["--max-sockets", "2"]);
    let remote = listen(&options);
    let _joined = cgroup.join();
    let idle = [Pair::on(&remote, &options), Pair::on(&remote, &options)];
    let pair = flows_by_the_stack(&instance, Pair::new());
    let stats = assert_balanced(&instance);
    assert_eq!(stats.by_reason("skipped", "map_full"), 1, "{}", stats.0);
    assert_closed(&instance, (idle, pair));
}

/// The process is known for splicing once it was seen.
#[test]
fn splicing() {
    let cgroup = Cgroup::new("splicing");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let options = Options {
        server_nonblocking: true,
        ..Options::default()
    };
    let listener = listen(&options);
    let first = Pair::on(&listener, &options);
    send_all(&first.client, b"spliced", Deadline::seconds(10));
    splice_to_the_end_or_nothing(&first.server);
    let second = flows_by_the_stack(&instance, Pair::on(&listener, &options));
    let stats = assert_balanced(&instance);
    assert_eq!(stats.by_reason("skipped", "splicing"), 1, "{}", stats.0);
    assert_eq!(
        stats.by_reason("skipped", "peer_not_eligible"),
        1,
        "{}",
        stats.0
    );
    let text = instance.run(&["status"]).ok().stdout;
    assert!(text.contains("splice(2)"), "{text}");
    assert_closed(&instance, (first, second));
}

/// `io::copy` from a socket to a pipe is splice(2).
fn splice_to_the_end_or_nothing(mut from: &TcpStream) {
    Deadline::seconds(10).wait(from, PollFlags::POLLIN, "something to splice");
    let (reader, writer) = nix::unistd::pipe().expect("pipe");
    let mut writer = File::from(writer);
    match io::copy(&mut from, &mut writer) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
        Err(e) => panic!("splice: {e}"),
    }
    let mut got = [0; 7];
    nix::unistd::read(&reader, &mut got).expect("the pipe");
    assert_eq!(&got, b"spliced");
}

#[test]
fn ulp() {
    let cgroup = Cgroup::new("ulp");
    let instance = Instance::enable(&cgroup, &[]);
    let netns = Netns::new("ulp");
    netns.run("sysctl", &["-q", "-w", "net.mptcp.enabled=1"]);
    let _joined = cgroup.join();
    let pair = netns.enter(|| {
        let listener = option::mptcp_socket();
        let at = SocketAddr::from(([127, 0, 0, 1], 7000));
        socket::bind(listener.as_raw_fd(), &SockaddrStorage::from(at)).expect("bind");
        socket::listen(&listener, Backlog::new(8).expect("a backlog")).expect("listen");
        let client = option::mptcp_socket();
        start_connect(&client, at);
        let server = accept(&TcpListener::from(listener), &Options::default());
        Deadline::seconds(10).wait(&client, PollFlags::POLLOUT, "connect");
        Pair {
            client: client.into(),
            server,
        }
    });
    let pair = flows_by_the_stack(&instance, pair);
    let stats = assert_balanced(&instance);
    println!("MPTCP: {}", stats.0);
    assert!(stats.by_reason("skipped", "ulp") > 0, "{}", stats.0);
    assert_closed(&instance, pair);
}

/// It has judged its peer by then, and is out of the tables all the same.
#[test]
fn both_ends_leave_where_the_client_blocks_late() {
    let cgroup = Cgroup::new("late");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    // It speaks first, and is acknowledged.
    send_all(&pair.server, b"hello", Deadline::seconds(10));
    recv_all(&pair.client, &mut [0; 5], Deadline::seconds(10));
    thread::sleep(Duration::from_millis(10));
    pair.client.set_nonblocking(false).expect("O_NONBLOCK");
    Deadline::seconds(10).until("both ends to be ejected", || {
        instance.dump("sockhash").is_empty()
    });
    for _ in 0..3 {
        round_trip(&pair);
    }
    Deadline::seconds(10).until("an empty table", || {
        round_trip(&pair);
        instance.dump("connections").is_empty()
    });
    let stats = assert_balanced(&instance);
    assert_eq!(
        stats.by_reason("ejected", "blocking_reader"),
        2,
        "{}",
        stats.0
    );
    assert_eq!(stats.redirected_bytes(), 0, "{}", stats.0);
}
