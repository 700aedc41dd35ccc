//! Getting a connection redirected, and proof that it was.

use super::deadline::Deadline;
use super::instance::Instance;
use super::instance::Stats;
use super::pair::Pair;
use super::stream::recv_all;
use super::stream::send_all;

/// Round trips of a few bytes until a message each way is redirected: each end
/// must have shown how it reads first. Fails when that does not come; nothing
/// else may send through the instance meanwhile.
pub fn warm_up(instance: &Instance, pair: &Pair) {
    const ROUNDS: u32 = 20;
    let mut before = instance.stats();
    for _ in 0..ROUNDS {
        round_trip(pair);
        let after = instance.stats();
        if after.delta(&before, "redirected_messages") >= 2 {
            return;
        }
        before = after;
    }
    panic!(
        "not redirected both ways after {ROUNDS} round trips: {}\nsockhash: {:?}",
        before.0,
        instance.dump("sockhash")
    );
}

/// One small message each way, both read.
pub fn round_trip(pair: &Pair) {
    let deadline = Deadline::seconds(10);
    let mut buffer = [0; 4];
    send_all(&pair.client, b"ping", deadline);
    recv_all(&pair.server, &mut buffer, deadline);
    assert_eq!(&buffer, b"ping");
    send_all(&pair.server, b"pong", deadline);
    recv_all(&pair.client, &mut buffer, deadline);
    assert_eq!(&buffer, b"pong");
}

/// Fails when less than `at_least` bytes were redirected in between.
pub fn assert_redirected(before: &Stats, after: &Stats, at_least: u64) {
    let redirected = after.delta(before, "redirected_bytes");
    assert!(
        redirected >= at_least,
        "{redirected} bytes redirected, {at_least} wanted at least; {} by the stack: {}",
        after.delta(before, "stack_bytes"),
        after.0
    );
}

/// Fails when less than this share of the bytes in between was redirected.
pub fn assert_mostly_redirected(before: &Stats, after: &Stats, per_mille: u64) {
    let redirected = after.delta(before, "redirected_bytes");
    let stack = after.delta(before, "stack_bytes");
    assert!(
        redirected * 1000 >= (redirected + stack) * per_mille && redirected > 0,
        "{redirected} bytes redirected, {stack} by the stack: less than {per_mille} of 1000: {}",
        after.0
    );
}
