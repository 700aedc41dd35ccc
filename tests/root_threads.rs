//! Several threads sending on one socket: each thread's bytes arrive in the
//! order it sent them.
//!
//! A write may be cut anywhere and another thread's come in between, on plain
//! TCP too. So every single byte says whose it is (high half) and carries a
//! piece of that thread's own pattern (low half).

mod common;

use std::io;
use std::io::Write as _;
use std::net::TcpStream;
use std::panic::resume_unwind;
use std::sync::Barrier;
use std::thread;

use nix::poll::PollFlags;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::pair::Options;
use common::pair::Pair;
use common::rng::Rng;
use common::rng::mix;
use common::stream::recv_some;
use common::stream::send_all;
use common::warm::assert_redirected;
use common::warm::round_trip;

const MOST_THREADS: usize = 16;

/// How the senders of one connection behave.
#[derive(Debug, Clone)]
struct Case {
    threads: usize,
    /// Sizes of one write.
    largest: usize,
    /// Bytes each thread sends.
    each: u64,
    options: Options,
}

/// The byte that a thread sends at its own offset.
fn byte(thread: usize, offset: u64) -> u8 {
    let text = mix((offset / 16) ^ ((thread as u64) << 40));
    let low = (text >> (offset % 16 * 4)) & 15;
    u8::try_from(((thread as u64) << 4) | low).expect("16 threads at most")
}

fn send(
    thread: usize,
    case: &Case,
    mut stream: &TcpStream,
    mut rng: Rng,
    deadline: Deadline,
) -> Result<(), String> {
    let mut sent = 0;
    let mut bytes = Vec::with_capacity(case.largest);
    while sent < case.each {
        let size = (rng.size(case.largest) as u64).min(case.each - sent);
        bytes.clear();
        bytes.extend((sent..sent + size).map(|offset| byte(thread, offset)));
        match stream.write(&bytes) {
            Ok(n) => sent += n as u64,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                deadline.wait(stream, PollFlags::POLLOUT, "send");
            }
            Err(e) => return Err(format!("thread {thread}: send at {sent}: {e}")),
        }
    }
    Ok(())
}

/// Reads what all threads send; the first byte out of order, in words.
fn receive(
    case: &Case,
    stream: &TcpStream,
    mut rng: Rng,
    deadline: Deadline,
) -> Result<(), String> {
    let mut got = [0; MOST_THREADS];
    let mut left = case.each * case.threads as u64;
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let room = rng.size(buffer.len());
        let n = recv_some(stream, &mut buffer[..room], deadline);
        if n == 0 {
            return Err(format!("ended with {left} bytes to come"));
        }
        for (i, &found) in buffer[..n].iter().enumerate() {
            let thread = usize::from(found >> 4);
            let at = &mut got[thread];
            if found != byte(thread, *at) {
                let own: Vec<u8> = buffer[i..n]
                    .iter()
                    .copied()
                    .filter(|b| usize::from(b >> 4) == thread)
                    .take(24)
                    .collect();
                return Err(format!(
                    "thread {thread}: wrong byte at its offset {at}, {i} bytes into a read of {n}; {}",
                    belongs(thread, *at, &own)
                ));
            }
            *at += 1;
        }
        left -= n as u64;
    }
    Ok(())
}

/// Where these bytes of a thread would fit.
fn belongs(thread: usize, near: u64, own: &[u8]) -> String {
    const AROUND: u64 = 1 << 20;
    if own.len() < 8 {
        return "too few bytes to tell where they belong".to_owned();
    }
    (near.saturating_sub(AROUND)..near + AROUND)
        .find(|&from| {
            (from..)
                .zip(own)
                .all(|(offset, &b)| b == byte(thread, offset))
        })
        .map_or_else(
            || "what follows fits nowhere near".to_owned(),
            |from| format!("{} bytes there fit offset {from}", own.len()),
        )
}

/// One connection: warm, then all threads at once.
fn burst(case: &Case, rng: &mut Rng) -> Result<(), String> {
    let deadline = Deadline::seconds(60);
    let pair = Pair::with(&case.options);
    for _ in 0..3 {
        round_trip(&pair);
    }
    thread::scope(|scope| {
        let senders: Vec<_> = (0..case.threads)
            .map(|thread| {
                let (rng, pair) = (rng.fork(), &pair);
                scope.spawn(move || send(thread, case, &pair.client, rng, deadline))
            })
            .collect();
        let received = receive(case, &pair.server, rng.fork(), deadline);
        if received.is_err() {
            // Nobody reads any more: let the senders go, with their errors.
            let _ = pair.server.shutdown(std::net::Shutdown::Both);
        }
        let sent = senders
            .into_iter()
            .try_for_each(|sender| sender.join().unwrap_or_else(|panic| resume_unwind(panic)));
        received.and(sent)
    })
}

/// Some mix of what there is.
fn random_case(rng: &mut Rng) -> Case {
    let options = if rng.one_in(2) {
        Options::default()
    } else {
        Options::blocking()
    };
    let largest = [16, 200, 4000, 100_000][rng.between(0, 3)];
    Case {
        threads: [2, 4, MOST_THREADS][rng.between(0, 2)],
        largest,
        each: (largest as u64 * 40).clamp(2000, 200_000),
        options: Options {
            send_buffer: rng.one_in(2).then_some(4 << 10),
            ..options
        },
    }
}

/// What has found the most: small messages, so that there are many, from few
/// threads, that wait for buffer space in the middle of one.
fn contended_case(rng: &mut Rng) -> Case {
    Case {
        threads: rng.between(2, 4),
        largest: 16,
        each: 2000,
        options: Options {
            send_buffer: Some(4 << 10),
            ..Options::default()
        },
    }
}

/// The same for as long as the connection lasts, and not for its first moments:
/// for rules that a connection leaves behind soon.
fn long_contended_case(rng: &mut Rng) -> Case {
    Case {
        threads: 4,
        each: 200_000,
        ..contended_case(rng)
    }
}

/// With the default budget a queue gets longer before anything changes.
fn crowded_case(_: &mut Rng) -> Case {
    Case {
        threads: 8,
        largest: 16,
        each: 6000,
        options: Options::default(),
    }
}

/// Bursts for so long; the first violation.
fn bursts(
    name: &str,
    options: &[&str],
    seconds: u64,
    next: fn(&mut Rng) -> Case,
) -> Result<(), String> {
    let mut rng = Rng::for_test(name);
    let cgroup = Cgroup::new(name);
    let instance = Instance::enable_blocking(&cgroup, options);
    let _joined = cgroup.join();
    let before = instance.stats();
    let end = Deadline::seconds(seconds);
    let mut count = 0;
    while !end.passed() {
        let case = next(&mut rng);
        burst(&case, &mut rng).map_err(|e| format!("burst {count}, {case:?}:\n{e}"))?;
        count += 1;
    }
    let after = instance.stats();
    println!(
        "{name}: {count} bursts, {} bytes redirected, {} by the stack, {} promotions, demotions {}",
        after.delta(&before, "redirected_bytes"),
        after.delta(&before, "stack_bytes"),
        after.delta(&before, "promotions"),
        after.0["demotions"],
    );
    assert_redirected(&before, &after, 1 << 14);
    Ok(())
}

const TINY: &[&str] = &["--budget-messages", "2"];

#[test]
fn threads_on_one_socket_keep_their_order() {
    bursts("threads", &[], 6, random_case).unwrap_or_else(|e| panic!("{e}"));
}

/// Paths change far more often than with the default budget.
#[test]
fn threads_on_one_socket_keep_their_order_with_a_tiny_budget() {
    bursts("threads-budget", TINY, 6, contended_case).unwrap_or_else(|e| panic!("{e}"));
}

const RECORD: usize = 64;
const RECORDS: usize = 40;

/// The record's bytes say whose it is, and its first ones which.
fn record(thread: usize, number: usize) -> [u8; RECORD] {
    let mut bytes = [byte(thread, 0); RECORD];
    bytes[..8].copy_from_slice(&(number << 8 | thread).to_be_bytes());
    bytes
}

/// Two threads send small records while their socket is set to block and its peer sends,
/// so that both ends leave: what one send gave is not cut by another's, as on plain TCP.
fn records_of_two(pair: &Pair) -> Result<(), String> {
    const THREADS: usize = 2;
    let deadline = Deadline::seconds(60);
    let start = Barrier::new(THREADS + 2);
    thread::scope(|scope| {
        for id in 0..THREADS {
            let (start, pair) = (&start, &pair);
            scope.spawn(move || {
                start.wait();
                (0..RECORDS).for_each(|n| send_all(&pair.client, &record(id, n), deadline));
            });
        }
        scope.spawn(|| {
            start.wait();
            (0..50).for_each(|_| send_all(&pair.server, b"ping", deadline));
        });
        pair.client.set_nonblocking(false).expect("O_NONBLOCK");
        start.wait();
        let mut next = [0; THREADS];
        let (mut bytes, mut at) = (vec![0; RECORD * THREADS * RECORDS], 0);
        while at < bytes.len() {
            // Less than one record at a time.
            let end = bytes.len().min(at + 48);
            at += recv_some(&pair.server, &mut bytes[at..end], deadline);
        }
        let (records, _) = bytes.as_chunks::<RECORD>();
        for (place, got) in records.iter().enumerate() {
            let thread = usize::from(got[7]);
            let is_next = next
                .get(thread)
                .is_some_and(|number| *got == record(thread, *number));
            if !is_next {
                return Err(format!("record {place}: {got:?}"));
            }
            next[thread] += 1;
        }
        Ok(())
    })
}

#[test]
fn records_of_threads_stay_whole_while_their_socket_turns_blocking() {
    let cgroup = Cgroup::new("threads-records");
    let instance = Instance::enable(&cgroup, &["--admission", "all"]);
    let _joined = cgroup.join();
    for n in 0..400 {
        let pair = Pair::new();
        for _ in 0..4 {
            round_trip(&pair);
        }
        records_of_two(&pair).unwrap_or_else(|e| panic!("connection {n}: {e}"));
    }
    let stats = instance.stats();
    assert!(stats.redirected_messages() > 400 * 4, "{}", stats.0);
    assert!(
        stats.by_reason("ejected", "blocking_reader") > 0,
        "{}",
        stats.0
    );
}

/// `cargo test --release --test root_threads -- --ignored --test-threads=1 50_runs`
#[test]
#[ignore = "50 runs of 5 s"]
fn threads_on_one_socket_keep_their_order_in_50_runs() {
    type Kind = (&'static [&'static str], fn(&mut Rng) -> Case);
    let kinds: [Kind; 5] = [
        (&[], crowded_case),
        (&[], random_case),
        (TINY, contended_case),
        (TINY, random_case),
        (&["--budget-bytes", "3000"], random_case),
    ];
    let mut violations = Vec::new();
    for run in 0..50 {
        let (options, next) = kinds[run % kinds.len()];
        if let Err(e) = bursts("threads-runs", options, 5, next) {
            violations.push(format!("run {run}, {options:?}: {e}"));
        }
    }
    assert!(
        violations.is_empty(),
        "{} of 50 runs:\n{}",
        violations.len(),
        violations.join("\n")
    );
}

/// The rule that the others rely on: without it this file sees the damage, but
/// only when two threads happen to meet within a few hundred nanoseconds.
///
/// `cargo test --release --test root_threads -- --ignored --test-threads=1 without`
#[test]
#[ignore = "a race that an idle machine shows within seconds, a busy one perhaps not"]
fn without_the_company_rule_order_breaks() {
    let options = [TINY, &["--without", "company-rule"]].concat();
    let outcome = bursts("threads-unruly", &options, 60, long_contended_case);
    let seen = outcome.expect_err("no violation in 60 s: does this file still provoke any?");
    println!("as expected: {seen}");
}
