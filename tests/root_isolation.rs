//! A message reaches only the socket at the other end of its own connection.
//! Every payload is tagged with its connection; whatever reaches another does
//! not fit there.

mod common;

use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::sockopt;
use serde_json::Value;

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
use common::pair::reconnect;
use common::pattern::Pattern;
use common::repair::bound;
use common::repair::forge;
use common::rng::Rng;
use common::stream::drain;
use common::stream::recv_all;
use common::stream::recv_some;
use common::stream::send_all;
use common::tagged::MESSAGE;
use common::tagged::Tagged;
use common::tagged::assert_nothing_to_read;
use common::traffic::Direction;
use common::traffic::Plan;
use common::traffic::run_end;
use common::warm::assert_mostly_redirected;
use common::warm::assert_redirected;
use common::warm::warm_up;

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Both ports fixed: equal tuples wherever it is used.
fn fixed() -> Options {
    Options {
        listen: local(7000),
        bind: Some(local(41000)),
        ..Options::default()
    }
}

/// The next close sends RST.
fn abort_on_close(stream: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    socket::setsockopt(stream, sockopt::Linger, &linger).expect("SO_LINGER");
}

/// Writes what the socket takes at once; errors are as good as silence.
fn try_send(mut stream: &TcpStream, tag: u64) {
    let mut bytes = [0; MESSAGE];
    Pattern::new(tag).fill(0, &mut bytes);
    for _ in 0..3 {
        let _ = stream.write(&bytes);
    }
}

/// Sends so that TCP acknowledges it, without an answer.
fn one_way(from: &TcpStream, to: &TcpStream) {
    let deadline = Deadline::seconds(10);
    let mut bytes = [0; 8];
    send_all(from, b"one way.", deadline);
    recv_all(to, &mut bytes, deadline);
    assert_eq!(&bytes, b"one way.");
}

#[test]
fn equal_tuples_in_two_namespaces_with_one_half_closed() {
    for half_close_first in [true, false] {
        for client_leaves in [true, false] {
            half_closed(half_close_first, client_leaves);
        }
    }
}

fn half_closed(the_older: bool, client_leaves: bool) {
    let name = format!("half-closed (the older {the_older}, client leaves {client_leaves})");
    let cgroup = Cgroup::new("half-closed");
    let instance = Instance::enable(&cgroup, &[]);
    let (one, two) = (Netns::new("one"), Netns::new("two"));
    let joined = cgroup.join();
    let mut older = Tagged::new("older", 1, one.enter(|| Pair::with(&fixed())));
    warm_up(&instance, &older.pair);
    let mut younger = Tagged::new("younger", 2, two.enter(|| Pair::with(&fixed())));
    warm_up(&instance, &younger.pair);
    drop(joined);
    older.exchange(3);
    younger.exchange(3);

    let (mut leaving, mut staying) = if the_older {
        (older, younger)
    } else {
        (younger, older)
    };
    let before = instance.stats();
    // First half closed and half used, then half gone and half used.
    if client_leaves {
        leaving.pair = leaving.pair.swapped();
    }
    let Pair { client, server } = &leaving.pair;
    server
        .shutdown(std::net::Shutdown::Write)
        .expect("shutdown");
    let deadline = Deadline::seconds(10);
    assert_eq!(drain(client, deadline), 0, "{name}");
    one_way(client, server);
    staying.exchange(3);
    staying.assert_quiet();

    let Pair { client, server } = leaving.pair;
    drop(server);
    for round in 0..20 {
        try_send(&client, 1000 + round);
        staying.exchange(1);
        staying.assert_quiet();
    }
    assert_redirected(
        &before,
        &assert_balanced(&instance),
        20 * 2 * MESSAGE as u64,
    );
}

/// One end aborts, the other's descriptor stays open and goes on sending while
/// the same tuple is used again and again.
#[test]
fn a_port_used_again_right_after_close() {
    let cgroup = Cgroup::new("reuse");
    let instance = Instance::enable(&cgroup, &[]);
    let netns = Netns::new("reuse");
    let _joined = cgroup.join();
    let before = instance.stats();
    let options = fixed();
    netns.enter(|| {
        let listener = listen(&options);
        let deadline = Deadline::seconds(100);
        let mut remains = Vec::new();
        for i in 0..100 {
            let mut now = Tagged::new("reused", i, Pair::on(&listener, &options));
            now.exchange(4);
            for (tag, old) in (1000..).zip(&remains) {
                try_send(old, tag);
            }
            now.exchange(2);
            now.assert_quiet();
            let pair = if i % 2 == 0 {
                now.pair
            } else {
                now.pair.swapped()
            };
            abort_on_close(&pair.client);
            drop(pair.client);
            // Until then the port is in use.
            deadline.wait(&pair.server, PollFlags::POLLHUP, "the reset");
            remains.push(pair.server);
        }
    });
    assert_redirected(
        &before,
        &assert_balanced(&instance),
        100 * 6 * MESSAGE as u64,
    );
}

/// One socket, connected again to somebody else: what the first peer sent and
/// was not read is gone, as on plain TCP.
#[test]
fn a_socket_connected_again_has_nothing_of_its_first_connection() {
    let cgroup = Cgroup::new("again");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let first = Pair::new();
    warm_up(&instance, &first);
    let before = instance.stats();
    send_all(
        &first.server,
        b"the secret of the first",
        Deadline::seconds(10),
    );
    assert_redirected(&before, &instance.stats(), 1);

    let options = Options::default();
    let listener = listen(&options);
    reconnect(&first.client, listener.local_addr().expect("getsockname"));
    let second = Pair {
        client: first.client,
        server: accept(&listener, &options),
    };
    let mut second = Tagged::new("second", 2, second);
    second.assert_quiet();
    second.exchange(5);
    try_send(&first.server, 1);
    second.exchange(5);
    second.assert_quiet();
    assert_balanced(&instance);
}

/// The same, when the first peer never hears that its connection is gone.
#[test]
fn a_socket_connected_again_hears_nothing_of_a_peer_that_goes_on() {
    let cgroup = Cgroup::new("deaf");
    let instance = Instance::enable(&cgroup, &[]);
    let netns = Netns::new("deaf");
    let _joined = cgroup.join();
    let first = netns.enter(|| Pair::with(&fixed()));
    warm_up(&instance, &first);
    netns.run("nft", &["add table ip sat; add chain ip sat in { type filter hook input priority 0; }; add rule ip sat in tcp dport 7000 tcp flags & rst == rst drop"]);
    let options = Options {
        listen: local(7001),
        ..Options::default()
    };
    let listener = netns.enter(|| listen(&options));
    reconnect(&first.client, options.listen);
    let second = Pair {
        client: first.client,
        server: accept(&listener, &options),
    };
    let mut second = Tagged::new("second", 2, second);
    for round in 0..5 {
        try_send(&first.server, 1000 + round);
        second.exchange(2);
        second.assert_quiet();
    }
    assert_balanced(&instance);
}

/// The same, while the first peer is in the middle of sending. The kernel
/// keeps the redirect queue of a deleted socket, and the socket reads from it,
/// as long as a sender holds a reference to it.
#[test]
fn a_socket_connected_again_while_its_first_peer_sends() {
    let cgroup = Cgroup::new("mid-send");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let options = Options::default();
    let listener = listen(&options);
    let to = listener.local_addr().expect("getsockname");
    let before = instance.stats();
    let end = Deadline::seconds(4);
    let mut tag = 0;
    while !end.passed() {
        tag += 1;
        let mut first = Tagged::new("first", 2 * tag, Pair::on(&listener, &options));
        first.exchange(3);
        let Pair { client, server } = first.pair;
        let started = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let deadline = Deadline::seconds(10);
                loop {
                    match (&server).write(&[0xee; 200]) {
                        Ok(_) => started.fetch_add(1, Ordering::Relaxed),
                        // Its queue is full until it hears of the end.
                        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => 0,
                        Err(_) => return,
                    };
                    deadline.check("the end of the first connection");
                }
            });
            let deadline = Deadline::seconds(10);
            while started.load(Ordering::Relaxed) <= tag % 16 {
                deadline.check("sending");
                std::hint::spin_loop();
            }
            reconnect(&client, to);
            let pair = Pair {
                server: accept(&listener, &options),
                client,
            };
            let mut second = Tagged::new("second", 2 * tag + 1, pair);
            second.exchange(3);
            second.assert_quiet();
        });
    }
    println!("{tag} times");
    assert_redirected(&before, &assert_balanced(&instance), 1000);
}

#[test]
fn a_relay_whose_outer_connections_are_both_local() {
    let mut rng = Rng::for_test("relay");
    let cgroup = Cgroup::new("relay");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let before = instance.stats();
    let deadline = Deadline::seconds(60);
    thread::scope(|scope| {
        for i in 0..3_u64 {
            let plan = || Plan {
                total: 1 << 20,
                largest: 4 << 10,
                lull_one_in: 8,
            };
            let up = Direction::new(format!("{i} up"), 2 * i, plan());
            let down = Direction::new(format!("{i} down"), 2 * i + 1, plan());
            let rngs = [rng.fork(), rng.fork()];
            scope.spawn(move || {
                let (outer, inner) = (Pair::new(), Pair::new());
                thread::scope(|scope| {
                    let [one, two] = rngs;
                    let (up, down, outer, inner) = (&up, &down, &outer, &inner);
                    scope.spawn(move || run_end(&outer.client, up, down, one, deadline));
                    scope.spawn(move || run_end(&inner.server, down, up, two, deadline));
                    scope.spawn(move || relay(&outer.server, &inner.client, deadline));
                    relay(&inner.client, &outer.server, deadline);
                });
            });
        }
    });
    assert_redirected(&before, &assert_balanced(&instance), 1 << 16);
}

/// Copies one direction to its end.
fn relay(from: &TcpStream, to: &TcpStream, deadline: Deadline) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match recv_some(from, &mut buffer, deadline) {
            0 => break,
            n => send_all(to, &buffer[..n], deadline),
        }
    }
    // The other end may have read its fill and be gone.
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn equal_tuples_connected_at_once_in_several_namespaces() {
    const ROUNDS: u64 = 60;
    let cgroup = Cgroup::new("at-once");
    let instance = Instance::enable(&cgroup, &[]);
    let spaces: Vec<Netns> = (0..6).map(|_| Netns::new("once")).collect();
    let _joined = cgroup.join();
    let before = instance.stats();
    let options = fixed();
    thread::scope(|scope| {
        for (space, netns) in (0_u64..).zip(&spaces) {
            let options = &options;
            scope.spawn(move || {
                netns.enter(|| {
                    let listener = listen(options);
                    for round in 0..ROUNDS {
                        let pair = Pair::on(&listener, options);
                        let name = format!("namespace {space}, round {round}");
                        let mut now = Tagged::new(&name, space << 32 | round, pair);
                        now.exchange(6);
                        now.assert_quiet();
                        abort_on_close(&now.pair.client);
                    }
                });
            });
        }
    });
    let after = assert_balanced(&instance);
    // Each of the 6 messages each way but those that show how they are read.
    assert_redirected(&before, &after, 6 * ROUNDS * 6 * MESSAGE as u64);
}

/// Opened and closed at rate, closed by readers whose peer is in the middle of
/// sending, over a table that is too small for all.
#[test]
fn churn_over_a_tiny_table_with_peers_in_mid_send() {
    const THREADS: u64 = 12;
    let mut rng = Rng::for_test("churn");
    let cgroup = Cgroup::new("churn");
    let instance = Instance::enable(&cgroup, &["--max-sockets", "16"]);
    let _joined = cgroup.join();
    let before = instance.stats();
    let end = Deadline::seconds(6);
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let (mut rng, next) = (rng.fork(), &next);
            scope.spawn(move || {
                while !end.passed() {
                    let tag = next.fetch_add(1, Ordering::Relaxed);
                    churn(tag, &mut rng);
                }
            });
        }
    });
    let after = assert_balanced(&instance);
    let full = after.by_reason("skipped", "map_full");
    println!(
        "{} connections, {} bytes redirected, full for {full} sockets",
        next.load(Ordering::Relaxed),
        after.delta(&before, "redirected_bytes"),
    );
    assert!(full > 0, "{}", after.0);
    assert_redirected(&before, &after, 1 << 16);
    let deadline = Deadline::seconds(10);
    deadline.until("empty tables", || instance.is_empty());
    assert_eq!(instance.stats().count("enrolled_now"), 0);

    // And whatever happened, the table is as good as new.
    let pairs: Vec<Pair> = (0..4).map(|_| Pair::new()).collect();
    for pair in &pairs {
        warm_up(&instance, pair);
    }
}

fn churn(tag: u64, rng: &mut Rng) {
    let mut now = Tagged::new(&format!("connection {tag}"), tag, Pair::new());
    now.exchange(u32::try_from(rng.between(0, 5)).expect("small"));
    let pair = if rng.one_in(2) {
        now.pair
    } else {
        now.pair.swapped()
    };
    let text = Pattern::new(u64::MAX - tag);
    let (wanted, abort) = (rng.between(0, 40_000) as u64, rng.one_in(2));
    let largest = rng.between(1, 3000);
    thread::scope(|scope| {
        let sender = &pair.server;
        scope.spawn(move || {
            let deadline = Deadline::seconds(20);
            let mut bytes = vec![0; largest];
            let mut sent = 0;
            loop {
                text.fill(sent, &mut bytes);
                match (&mut &*sender).write(&bytes) {
                    Ok(n) => sent += n as u64,
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                        let got = deadline.wait(sender, PollFlags::POLLOUT, "the end");
                        if got.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
        });
        let deadline = Deadline::seconds(20);
        let mut got = 0;
        let mut buffer = vec![0; 5000];
        while got < wanted {
            let n = recv_some(&pair.client, &mut buffer, deadline);
            assert!(n > 0, "connection {tag} ended while its peer sends");
            text.check(got, &buffer[..n], &format!("connection {tag}"));
            got += n as u64;
        }
        if abort {
            abort_on_close(&pair.client);
        }
        drop(pair.client);
    });
}

#[test]
fn a_socket_connected_to_itself_talks_to_itself() {
    let cgroup = Cgroup::new("self");
    let instance = Instance::enable(&cgroup, &[]);
    let netns = Netns::new("self");
    let _joined = cgroup.join();
    let stream = netns.enter(|| {
        let own = local(42000);
        connect(
            own,
            &Options {
                bind: Some(own),
                ..Options::default()
            },
        )
    });
    for _ in 0..10 {
        one_way(&stream, &stream);
    }
    let stats = assert_balanced(&instance);
    assert_eq!(stats.by_reason("skipped", "self_connect"), 1, "{}", stats.0);
    assert_eq!(stats.redirected_bytes(), 0);
}

/// Both SYNs are lost first, so that both ends are in SYN-SENT when they are
/// sent again.
#[test]
fn simultaneous_open_is_left_to_the_stack() {
    let cgroup = Cgroup::new("both");
    let instance = Instance::enable(&cgroup, &[]);
    let netns = Netns::new("both");
    netns.run("nft", &["add table ip sat; add chain ip sat in { type filter hook input priority 0; policy drop; }"]);
    let _joined = cgroup.join();
    let (one, two) = (local(43000), local(43001));
    let pair = netns.enter(|| {
        let ends = [(one, two), (two, one)].map(|(from, to)| {
            let fd = bound(from);
            let started = socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to));
            assert_eq!(started, Err(nix::errno::Errno::EINPROGRESS));
            fd
        });
        netns.run("nft", &["delete table ip sat"]);
        for fd in &ends {
            Deadline::seconds(20).wait(fd, PollFlags::POLLOUT, "connect");
            let error = socket::getsockopt(fd, sockopt::SocketError).expect("SO_ERROR");
            assert_eq!(error, 0, "connect");
        }
        let [client, server] = ends.map(TcpStream::from);
        Pair { client, server }
    });
    let mut both = Tagged::new("simultaneous", 1, pair);
    both.exchange(10);
    both.assert_quiet();
    let stats = assert_balanced(&instance);
    println!("simultaneous open: {}", stats.0);
    assert_eq!(stats.count("seen"), 2);
    // One that has an answer to its SYN before that of the other comes is a client.
    assert!(
        stats.redirected_bytes() == 0 || stats.count("paired") == 2,
        "roles tell nothing here"
    );
}

#[test]
fn nested_cgroups_run_the_program_twice_and_count_once() {
    let outer = Cgroup::new("nested");
    let inner = outer.nested("inner");
    let instance = Instance::try_enable(&[&outer, &inner], &[]).expect("enabled");
    let _joined = inner.join();
    for round in 1..=3 {
        let pair = Pair::new();
        warm_up(&instance, &pair);
        let mut tagged = Tagged::new("nested", round, pair);
        let before = instance.stats();
        tagged.exchange(20);
        let after = assert_balanced(&instance);
        assert_mostly_redirected(&before, &after, 900);
        assert_eq!(after.count("seen"), 2 * round);
        assert_eq!(after.count("enrolled_now"), 2, "round {round}: {}", after.0);
        drop(tagged);
        Deadline::seconds(10).until("closed", || instance.dump("sockhash").is_empty());
    }
    let after = assert_balanced(&instance);
    assert_eq!(after.count("enrolled_now"), 0, "{}", after.0);
    assert!(instance.dump("connections").is_empty());
}

/// The sequence numbers of a side of the only connection there is.
fn sequence_numbers(instance: &Instance, side: u64) -> [i32; 2] {
    numbers_in(&instance.dump("connections"), side)
}

fn numbers_in(rows: &[Value], side: u64) -> [i32; 2] {
    let id = rows[0]["conn_id"].as_str().expect("a conn_id");
    assert!(rows.iter().all(|row| row["conn_id"] == id), "{rows:?}");
    let id = u64::from_str_radix(id, 16).expect("hexadecimal");
    let [high, low] =
        [id >> 32, id & 0xffff_ffff].map(|seq| u32::try_from(seq).expect("32 bits").cast_signed());
    if side == 1 { [high, low] } else { [low, high] }
}

/// Forged sockets with the numbers of each end of a pair that is redirected.
#[test]
fn forged_sockets_hear_nothing_of_a_pair() {
    for side in [0, 1] {
        let cgroup = Cgroup::new("forged");
        let instance = Instance::enable(&cgroup, &[]);
        let netns = Netns::new("forged");
        let _joined = cgroup.join();
        let victim = Pair::new();
        warm_up(&instance, &victim);
        let mut victim = Tagged::new("victim", 1, victim);
        let numbers = sequence_numbers(&instance, side);
        let forged = netns.enter(|| forge(local(44000), local(44001), numbers));

        let before = instance.stats();
        for round in 0..10 {
            try_send(&forged, 1000 + round);
            victim.exchange(10);
            victim.assert_quiet();
            assert_nothing_to_read(&forged, "forged");
        }
        let after = assert_balanced(&instance);
        assert_mostly_redirected(&before, &after, 900);
        assert_eq!(after.count("seen"), 3);
        let named = ["ambiguous", "repair"].map(|why| after.by_reason("skipped", why));
        assert_eq!(named.iter().sum::<u64>(), 1, "not silent: {}", after.0);
    }
}

/// The victim has only read so far; what waits for it must not go when the
/// forger makes its connection suspicious.
#[test]
fn forged_sockets_do_not_take_away_what_waits_for_a_victim() {
    for side in [0, 1] {
        let cgroup = Cgroup::new("waiting");
        let instance = Instance::enable(&cgroup, &[]);
        let netns = Netns::new("waiting");
        let _joined = cgroup.join();
        let Pair { client, server } = Pair::new();
        one_way(&server, &client);
        one_way(&server, &client);
        let before = instance.stats();
        let deadline = Deadline::seconds(10);
        send_all(&server, b"waiting for the client", deadline);
        assert_redirected(&before, &instance.stats(), 1);
        let numbers = sequence_numbers(&instance, side);
        let _forged = netns.enter(|| forge(local(44000), local(44001), numbers));

        one_way(&client, &server);
        one_way(&client, &server);
        println!("side {side}: {}", assert_balanced(&instance).0);
        let mut got = [0; 22];
        recv_all(&client, &mut got, deadline);
        assert_eq!(&got, b"waiting for the client");
    }
}

/// A forged socket on the empty side of a connection with a remote peer.
#[test]
fn forged_sockets_do_not_pair_with_a_lone_one() {
    for side in [0, 1] {
        let cgroup = Cgroup::new("lone");
        let instance = Instance::enable(&cgroup, &[]);
        let netns = Netns::new("lone");
        let options = Options::default();
        let listener = listen(&options);
        let joined = cgroup.join();
        // Nobody waits for a peer longer than a second: a busy test may come late.
        let (victim, numbers) = (0..200)
            .find_map(|_| {
                let pair = Pair::on(&listener, &options);
                let rows = instance.dump("connections");
                (!rows.is_empty()).then(|| (pair, numbers_in(&rows, side)))
            })
            .expect("an entry that waits");
        let mut victim = Tagged::new("victim", 1, victim);
        let forged = netns.enter(|| forge(local(44000), local(44001), numbers));
        for round in 0..10 {
            try_send(&forged, 1000 + round);
            victim.exchange(5);
            victim.assert_quiet();
            assert_nothing_to_read(&forged, "forged");
        }
        let stats = assert_balanced(&instance);
        assert_eq!(stats.redirected_bytes(), 0, "{}", stats.0);
        let named = ["ambiguous", "repair"].map(|why| stats.by_reason("skipped", why));
        assert_eq!(named.iter().sum::<u64>(), 1, "not silent: {}", stats.0);
        drop(joined);

        // The forger has gone from the table with its victim.
        drop((victim, forged));
        Deadline::seconds(10).until("an empty table", || instance.dump("connections").is_empty());
    }
}

#[test]
fn fast_open_connections_keep_their_data() {
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
    let mut all: Vec<Tagged> = netns.enter(|| {
        let listener = listen(&options);
        let to = SockaddrStorage::from(listener.local_addr().expect("getsockname"));
        (0..10)
            .map(|tag: u64| {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let fd = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None)
                    .expect("socket");
                socket::setsockopt(&fd, sockopt::TcpFastOpenConnect, &true).expect("TFO");
                socket::connect(fd.as_raw_fd(), &to).expect("connect at once");
                let client = TcpStream::from(fd);
                let first = [u8::try_from(tag).expect("small"); 100];
                send_all(&client, &first, Deadline::seconds(10));
                let server = accept(&listener, &options);
                let mut got = [0xff; 100];
                recv_all(&server, &mut got, Deadline::seconds(10));
                assert_eq!(got, first, "the data of the SYN");
                Tagged::new("fast open", tag, Pair { client, server })
            })
            .collect()
    });
    for _ in 0..5 {
        for tagged in &mut all {
            tagged.exchange(2);
        }
    }
    let stats = assert_balanced(&instance);
    println!("fast open: {}", stats.0);
    assert_eq!(stats.by_reason("skipped", "fast_open"), 10, "{}", stats.0);
    assert_eq!(stats.redirected_bytes(), 0);
}

#[test]
fn a_table_full_of_remote_connections_makes_room_for_a_local_pair() {
    let cgroup = Cgroup::new("remote");
    let instance = Instance::enable(&cgroup, &["--max-sockets", "16"]);
    let options = Options::default();
    let remote = listen(&options);
    let _joined = cgroup.join();
    let idle: Vec<Pair> = (0..40).map(|_| Pair::on(&remote, &options)).collect();
    let full = assert_balanced(&instance);
    assert!(full.by_reason("skipped", "map_full") > 0, "{}", full.0);
    let mut early = Tagged::new("while it is full", 1, Pair::new());
    early.exchange(10);
    // A slow machine may have given up the first of them by then, after a second.
    let then = assert_balanced(&instance);
    let room = then.by_reason("ejected", "no_local_peer") > 0;
    assert!(room || then.redirected_bytes() == 0, "{}", then.0);
    drop(early);

    for pair in &idle {
        one_way(&pair.client, &pair.server);
    }
    let deadline = Deadline::seconds(10);
    deadline.until("the remote ones to be ejected", || {
        instance.dump("sockhash").is_empty()
    });
    let pair = Pair::new();
    warm_up(&instance, &pair);
    let before = instance.stats();
    let mut tagged = Tagged::new("local", 2, pair);
    tagged.exchange(50);
    assert_mostly_redirected(&before, &assert_balanced(&instance), 900);
}

/// Whoever is met by nobody is given up by a timer after a second; its socket may close
/// at the same moment. Before Linux 6.10 a processor hangs for ever where both delete.
#[test]
fn lone_connections_that_close_as_they_are_given_up() {
    const THREADS: usize = 2;
    const CONNECTIONS: usize = 150;
    let rng = &mut Rng::for_test("given-up");
    let cgroup = Cgroup::new("given-up");
    let instance = Instance::enable(&cgroup, &[]);
    let options = Options::default();
    let remotes: Vec<_> = (0..THREADS).map(|_| listen(&options)).collect();
    let _joined = cgroup.join();
    thread::scope(|scope| {
        for remote in &remotes {
            let mut rng = rng.fork();
            let options = &options;
            scope.spawn(move || {
                let mut open = Vec::new();
                for _ in 0..CONNECTIONS {
                    let pair = Pair::on(remote, options);
                    let lives = 985_000 + rng.between(0, 17_000) as u64;
                    open.push((Instant::now() + Duration::from_micros(lives), pair));
                }
                for (ends, pair) in open {
                    // Awake: a sleep ends where another timer has just run.
                    while Instant::now() < ends {
                        std::hint::spin_loop();
                    }
                    drop(pair);
                }
            });
        }
    });
    Deadline::seconds(20).until("empty tables", || instance.is_empty());
    let stats = assert_balanced(&instance);
    println!("given up: {}", stats.0);
    let given_up = stats.by_reason("ejected", "no_local_peer");
    assert!(given_up > 0, "none was given up: {}", stats.0);
    warm_up(&instance, &Pair::new());
}
