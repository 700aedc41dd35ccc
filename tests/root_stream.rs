//! The sender of a one-way stream becomes plain TCP again, and its receiver
//! after it; what is answered stays redirected.

mod common;

use std::thread;

use common::books::assert_balanced;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::instance::Stats;
use common::pair::Pair;
use common::pattern::Pattern;
use common::stream::recv_all;
use common::stream::send_all;
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
}
