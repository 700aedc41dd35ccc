//! Bytes arrive once, in order, whatever the mix of paths, sizes and partial
//! reads.

mod common;

use std::thread;
use std::time::Duration;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::instance::Stats;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::pattern::Pattern;
use common::rng::Rng;
use common::stream::recv_all;
use common::stream::send_all;
use common::traffic::Direction;
use common::traffic::Plan;
use common::traffic::run_end;
use common::traffic::run_end_on_two_threads;
use common::warm::assert_mostly_redirected;
use common::warm::assert_redirected;
use common::warm::warm_up;

/// Connections at once.
const CONNECTIONS: usize = 12;

/// One connection with random traffic both ways. The client sends the instant
/// connect returns, before anybody has accepted.
fn one_connection(name: &str, mut rng: Rng, deadline: Deadline) {
    let options = match rng.between(0, 2) {
        0 => Options::default(),
        1 => Options::v6(),
        _ => Options::v4_mapped(),
    };
    let options = Options {
        send_buffer: rng.one_in(3).then_some(4 << 10),
        receive_buffer: rng.one_in(4).then_some(8 << 10),
        nodelay: rng.one_in(2),
        ..options
    };
    let tiny = options.send_buffer.is_some() || options.receive_buffer.is_some();
    let limit = if tiny { 128 << 10 } else { u64::MAX };
    let mut direction = |towards: &str| {
        let plan = Plan::random(&mut rng).at_most(limit);
        Direction::new(format!("{name} to {towards}"), rng.next(), plan)
    };
    let to_server = direction("server");
    let to_client = direction("client");
    let client_run = if rng.one_in(2) {
        run_end
    } else {
        run_end_on_two_threads
    };
    let server_run = if rng.one_in(2) {
        run_end
    } else {
        run_end_on_two_threads
    };
    let (client_rng, server_rng) = (rng.fork(), rng.fork());

    let listener = listen(&options);
    let address = listener.local_addr().expect("getsockname");
    thread::scope(|scope| {
        scope.spawn(|| {
            let client = connect(address, &options);
            client_run(&client, &to_server, &to_client, client_rng, deadline);
        });
        let server = accept(&listener, &options);
        server_run(&server, &to_client, &to_server, server_rng, deadline);
    });
}

/// Random traffic for so long, while something else keeps changing things: it
/// returns how many redirected bytes `stats` no longer tells of.
fn stress(
    name: &str,
    options: &[&str],
    seconds: u64,
    meddle: impl Fn(&Instance, &Cgroup) -> u64 + Sync,
) -> Stats {
    let mut rng = Rng::for_test(name);
    let cgroup = Cgroup::new(name);
    let instance = Instance::enable(&cgroup, options);
    let _joined = cgroup.join();
    let end = Deadline::seconds(seconds);
    let mut rounds = 0;
    let mut redirected = 0;
    while !end.passed() {
        let deadline = Deadline::seconds(120);
        thread::scope(|scope| {
            let connections: Vec<_> = (0..CONNECTIONS)
                .map(|i| {
                    let rng = rng.fork();
                    scope.spawn(move || one_connection(&format!("{rounds}/{i}"), rng, deadline))
                })
                .collect();
            while connections
                .iter()
                .any(|connection| !connection.is_finished())
            {
                redirected += meddle(&instance, &cgroup);
                thread::sleep(Duration::from_millis(1));
            }
        });
        rounds += 1;
    }
    let stats = instance.stats();
    redirected += stats.redirected_bytes();
    println!(
        "{name}: {rounds} rounds, {redirected} bytes redirected, {} by the stack, {} promotions",
        stats.stack_bytes(),
        stats.count("promotions"),
    );
    assert!(
        redirected > 1 << 16,
        "{redirected} bytes redirected: {}",
        stats.0
    );
    stats
}

fn leave_alone(_: &Instance, _: &Cgroup) -> u64 {
    0
}

#[test]
fn random_traffic_is_byte_exact() {
    stress("order", &[], 6, leave_alone);
}

/// A few messages fill the queue: the path changes all the time.
#[test]
fn random_traffic_is_byte_exact_with_a_budget_of_two_messages() {
    stress(
        "order-messages",
        &["--budget-messages", "2"],
        6,
        leave_alone,
    );
}

#[test]
fn random_traffic_is_byte_exact_with_a_budget_of_few_bytes() {
    stress("order-bytes", &["--budget-bytes", "1000"], 6, leave_alone);
}

/// Senders leave in the middle of everything, with the other direction redirected.
#[test]
fn random_traffic_is_byte_exact_while_streams_are_ejected() {
    for limit in ["50", "200", "500"] {
        let options = ["--stream-limit", limit];
        let stats = stress("order-stream", &options, 4, leave_alone);
        let ejected = stats.by_reason("ejected", "stream");
        println!("limit {limit}: {ejected} sockets ejected");
        assert!(ejected > 0, "{}", stats.0);
    }
}

#[test]
fn random_traffic_is_byte_exact_while_policy_flips() {
    const RULES: [[&str; 3]; 2] = [["127.0.0.1", "egress", "any"], ["::1", "ingress", "any"]];
    stress("order-policy", &[], 8, |instance, _| {
        for rule in RULES {
            instance.run(&["endpoint", "add", rule[0]]).ok();
            let denied = [&["policy", "add"], rule.as_slice(), &["deny"]].concat();
            instance.run(&denied).ok();
        }
        for rule in RULES {
            let gone = [&["policy", "del"], rule.as_slice()].concat();
            instance.run(&gone).ok();
            instance.run(&["endpoint", "del", rule[0]]).ok();
        }
        0
    });
}

#[test]
fn random_traffic_is_byte_exact_while_disabled_and_enabled_again() {
    stress("order-disable", &[], 8, |instance, cgroup| {
        thread::sleep(Duration::from_millis(150));
        let redirected = instance.stats().redirected_bytes();
        instance.disable().ok();
        instance.enable_more(&[cgroup], &[]).ok();
        redirected
    });
}

/// Programs of both versions run on each connection, again and again. With
/// `SOCKACCEL_SECONDS` for as long.
#[test]
fn random_traffic_is_byte_exact_while_upgraded() {
    let seconds = std::env::var("SOCKACCEL_SECONDS").map_or(8, |text| {
        text.parse().expect("SOCKACCEL_SECONDS is not a number")
    });
    stress("order-upgrade", &[], seconds, |instance, _| {
        thread::sleep(Duration::from_millis(100));
        instance.run(&["upgrade", "--again"]).ok();
        0
    });
}

#[test]
fn request_and_response_are_redirected() {
    for (name, options, enable) in [
        ("v4", Options::default(), &[] as &[&str]),
        ("v6", Options::v6(), &[]),
        ("v4-mapped", Options::v4_mapped(), &[]),
        (
            "blocking",
            Options::blocking(),
            &["--blocking-readers", "accelerate"],
        ),
    ] {
        let mut rng = Rng::for_test(name);
        let cgroup = Cgroup::new("request");
        let instance = Instance::enable(&cgroup, enable);
        let _joined = cgroup.join();
        let pair = Pair::with(&options);
        warm_up(&instance, &pair);

        let before = instance.stats();
        let requests = 2000;
        let bytes = request_and_response(&pair, &mut rng, requests);
        let after = instance.stats();
        println!("{name}: {requests} requests, {bytes} bytes");
        assert_redirected(&before, &after, bytes * 9 / 10);
        assert_mostly_redirected(&before, &after, 900);
    }
}

/// The bytes that went over the connection.
fn request_and_response(pair: &Pair, rng: &mut Rng, requests: u32) -> u64 {
    const LARGEST: usize = 16 << 10;
    let deadline = Deadline::seconds(60);
    let sizes: Vec<(usize, usize)> = (0..requests)
        .map(|_| (rng.size(LARGEST), rng.size(LARGEST)))
        .collect();
    let (request, response) = (Pattern::new(rng.next()), Pattern::new(rng.next()));
    let put = |stream, pattern: Pattern, at: &mut u64, size: usize| {
        let mut bytes = vec![0; size];
        pattern.fill(*at, &mut bytes);
        *at += size as u64;
        send_all(stream, &bytes, deadline);
    };
    let take = |stream, pattern: Pattern, at: &mut u64, size: usize| {
        let mut bytes = vec![0; size];
        recv_all(stream, &mut bytes, deadline);
        pattern.check(*at, &bytes, "request and response");
        *at += size as u64;
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut got, mut sent) = (0, 0);
            for &(asked, answered) in &sizes {
                take(&pair.server, request, &mut got, asked);
                put(&pair.server, response, &mut sent, answered);
            }
        });
        let (mut got, mut sent) = (0, 0);
        for &(asked, answered) in &sizes {
            put(&pair.client, request, &mut sent, asked);
            take(&pair.client, response, &mut got, answered);
        }
    });
    sizes.iter().map(|&(a, b)| (a + b) as u64).sum()
}
