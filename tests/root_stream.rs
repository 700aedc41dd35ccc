//! The sender of a one-way stream becomes plain TCP again, and its receiver
//! after it; what is answered stays redirected.

mod common;

use std::thread;

use common::books::assert_balanced;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::helper;
use common::helper::Channel;
use common::helper::Helper;
use common::instance::Instance;
use common::instance::Stats;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::pattern::Pattern;
use common::stream::recv_all;
use common::stream::send_all;
use common::throttle::Throttle;
use common::warm::assert_mostly_redirected;
use common::warm::assert_redirected;
use common::warm::round_trip;
use common::warm::warm_up;

const MESSAGE: usize = 100;

fn streams(stats: &Stats) -> u64 {
    stats.by_reason("ejected", "stream")
}

/// The server sends so many messages, the client reads them meanwhile, byte for
/// byte.
fn download(pair: &Pair, tag: u64, messages: usize) {
    let pattern = Pattern::new(tag);
    let deadline = Deadline::seconds(60);
    thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..messages {
                let mut bytes = [0; MESSAGE];
                pattern.fill((i * MESSAGE) as u64, &mut bytes);
                send_all(&pair.server, &bytes, deadline);
            }
        });
        let mut bytes = vec![0; messages * MESSAGE];
        recv_all(&pair.client, &mut bytes, deadline);
        pattern.check(0, &bytes, "download");
    });
}

/// Downloads until the instance has ejected both ends.
fn download_until_ejected(instance: &Instance, pair: &Pair) {
    for tag in 0..50 {
        download(pair, tag, 2000);
        if streams(&instance.stats()) == 2 {
            return;
        }
    }
    panic!("not ejected: {}", instance.stats().0);
}

#[test]
fn a_stream_from_the_first_byte_is_ejected() {
    let cgroup = Cgroup::new("stream");
    let instance = Instance::enable(&cgroup, &["--stream-limit", "500"]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    download_until_ejected(&instance, &pair);
    assert!(instance.dump("sockhash").is_empty());
    assert_balanced(&instance);

    // Nobody counts any more: it is plain TCP.
    let before = instance.stats();
    download(&pair, 99, 1000);
    round_trip(&pair);
    let after = instance.stats();
    assert_eq!(after.delta(&before, "stack_messages"), 0);
    assert_eq!(after.delta(&before, "redirected_messages"), 0);
    drop(pair);
    Deadline::seconds(10).until("no entry", || instance.dump("connections").is_empty());
    assert_balanced(&instance);
}

/// Its receiver has redirected before, and may again at any time: it must have
/// been kept from that first.
#[test]
fn a_stream_after_requests_is_ejected() {
    let cgroup = Cgroup::new("stream-pooled");
    let instance = Instance::enable(&cgroup, &["--stream-limit", "500"]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    download_until_ejected(&instance, &pair);
    for _ in 0..10 {
        round_trip(&pair);
    }
    assert_balanced(&instance);
}

/// What it has not read of redirected bytes would be lost with the entry.
#[test]
fn a_sender_with_unread_redirected_bytes_stays() {
    let cgroup = Cgroup::new("stream-unread");
    let instance = Instance::enable(&cgroup, &["--stream-limit", "500"]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    let before = instance.stats();
    send_all(&pair.client, b"unread", Deadline::seconds(10));
    assert_redirected(&before, &instance.stats(), 6);
    for tag in 0..10 {
        download(&pair, tag, 2000);
    }
    let stats = instance.stats();
    assert_eq!(streams(&stats), 0, "{}", stats.0);
    let mut bytes = [0; 6];
    recv_all(&pair.server, &mut bytes, Deadline::seconds(10));
    assert_eq!(&bytes, b"unread");
    download_until_ejected(&instance, &pair);
    round_trip(&pair);
}

/// `stats` is a counter: ejection takes nothing back.
#[test]
fn ejection_keeps_what_was_redirected_in_stats() {
    let cgroup = Cgroup::new("stream-counts");
    let instance = Instance::enable(&cgroup, &["--stream-limit", "500"]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    for _ in 0..1000 {
        round_trip(&pair);
    }
    let mut before = instance.stats();
    let mut fell = |after: Stats| {
        for count in ["redirected_messages", "redirected_bytes"] {
            assert!(
                after.count(count) >= before.count(count),
                "{count} fell from {} to {}: {}",
                before.count(count),
                after.count(count),
                after.0
            );
        }
        before = after;
    };
    for tag in 0..50 {
        download(&pair, tag, 2000);
        let after = instance.stats();
        let ejected = streams(&after);
        fell(after);
        if ejected == 2 {
            drop(pair);
            fell(instance.stats());
            assert!(before.count("redirected_messages") >= 2000, "{}", before.0);
            return;
        }
    }
    panic!("not ejected: {}", before.0);
}

/// A pooled connection that streams once.
#[test]
fn requests_after_a_short_stream_are_redirected_again() {
    let cgroup = Cgroup::new("stream-short");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    download(&pair, 1, 3000);
    // A reader that spun meanwhile must be found free as often as SA_CONTENDED_LIMIT asks.
    for _ in 0..150 {
        round_trip(&pair);
    }
    warm_up(&instance, &pair);
    let before = instance.stats();
    for _ in 0..100 {
        round_trip(&pair);
    }
    let after = instance.stats();
    assert_mostly_redirected(&before, &after, 950);
    assert_eq!(streams(&after), 0);
}

#[test]
fn with_no_limit_streams_stay_enrolled() {
    let cgroup = Cgroup::new("stream-stays");
    let instance = Instance::enable(&cgroup, &["--stream-limit", "0"]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    for tag in 0..10 {
        download(&pair, tag, 2000);
    }
    let stats = assert_balanced(&instance);
    assert_eq!(stats.count("enrolled_now"), 2, "{}", stats.0);
    // That is what they stay for. A busy receiver's lock was found taken often.
    let is_back = || {
        let before = instance.stats();
        round_trip(&pair);
        instance.stats().delta(&before, "redirected_messages") == 2
    };
    Deadline::seconds(30).until("redirected both ways", is_back);
}

const CONNECTIONS: u64 = 6;
const REQUESTS: usize = 50;
const STREAMED: usize = 6000;

/// On one connection after the other: requests, each answered, then a stream, then
/// requests again. A call that fails ends this process.
fn streamer(channel: &mut Channel) {
    let deadline = Deadline::seconds(300);
    let port: u16 = channel.hear().expect("a port").parse().expect("a port");
    for n in 0..CONNECTIONS {
        let stream = connect(([127, 0, 0, 1], port).into(), &Options::default());
        let (pattern, mut at, mut bytes) = (Pattern::new(n), 0, [0; MESSAGE]);
        for message in 0..REQUESTS + STREAMED + REQUESTS {
            pattern.fill(at, &mut bytes);
            at += MESSAGE as u64;
            send_all(&stream, &bytes, deadline);
            if !(REQUESTS..REQUESTS + STREAMED).contains(&message) {
                recv_all(&stream, &mut [0], deadline);
            }
        }
    }
    channel.say("all sent");
    channel.hear();
}

#[test]
#[ignore = "the body of the helper processes"]
fn helper_process() {
    helper::main(&[("streamer", streamer)]);
}

/// Ejected while it may be anywhere in its send(2): it loses nothing, and no call of
/// it fails.
#[test]
fn a_throttled_sender_is_ejected_without_loss() {
    let cgroup = Cgroup::new("stream-slow");
    let instance = Instance::enable(&cgroup, &["--stream-limit", "200"]);
    let throttle = Throttle::new(&cgroup);
    let _joined = cgroup.join();
    let options = Options::default();
    let listener = listen(&options);
    let mut sender = Helper::start("streamer");
    throttle.add(sender.pid());
    let port = listener.local_addr().expect("getsockname").port();
    sender.say(&port.to_string());
    let deadline = Deadline::seconds(300);
    for n in 0..CONNECTIONS {
        let server = accept(&listener, &options);
        let (pattern, mut at, mut bytes) = (Pattern::new(n), 0, [0; MESSAGE]);
        for message in 0..REQUESTS + STREAMED + REQUESTS {
            recv_all(&server, &mut bytes, deadline);
            pattern.check(at, &bytes, &format!("connection {n}"));
            at += MESSAGE as u64;
            if !(REQUESTS..REQUESTS + STREAMED).contains(&message) {
                send_all(&server, b"+", deadline);
            }
        }
    }
    assert_eq!(sender.hear(), "all sent");
    let stats = assert_balanced(&instance);
    assert!(streams(&stats) >= 2, "nothing was ejected: {}", stats.0);
    let redirected = stats.redirected_messages();
    assert!(redirected >= CONNECTIONS * REQUESTS as u64, "{}", stats.0);
}
