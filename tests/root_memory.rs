//! A receiver that does not read stalls its sender, as it does on plain TCP.

mod common;

use std::io;
use std::io::Write as _;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::cgroup::Cgroup;
use common::deadline::wait_at_most;
use common::instance::Instance;
use common::pair::Options;
use common::pair::Pair;
use common::warm::warm_up;

use nix::poll::PollFlags;

const MIB: u64 = 1 << 20;
/// More than this is not "a few MiB", and no reason to fill the machine.
const TOO_MUCH: u64 = 48 * MIB;

/// Who sends, and how.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    message: usize,
    threads: usize,
    both_sides: bool,
    blocking: bool,
}

const CASES: &[Case] = &[
    Case::new("one byte", 1),
    Case::new("64 bytes", 64),
    Case::new("4 KiB", 4 << 10),
    Case::new("64 KiB", 64 << 10),
    Case::new("64 bytes, both sides", 64).both_sides(),
    Case::new("16 KiB, both sides", 16 << 10).both_sides(),
    Case::new("64 bytes, 16 threads", 64).threads(16),
    Case::new("16 KiB, 16 threads", 16 << 10).threads(16),
    Case::new("1 KiB, 2 threads", 1 << 10).threads(2),
    Case::new("16 KiB, blocking", 16 << 10).blocking(),
    Case::new("16 KiB, 16 blocking threads", 16 << 10)
        .threads(16)
        .blocking(),
    Case::new("16 KiB, 16 threads, both sides", 16 << 10)
        .threads(16)
        .both_sides(),
];

impl Case {
    const fn new(name: &'static str, message: usize) -> Self {
        Self {
            name,
            message,
            threads: 1,
            both_sides: false,
            blocking: false,
        }
    }

    const fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    const fn both_sides(self) -> Self {
        Self {
            both_sides: true,
            ..self
        }
    }

    const fn blocking(self) -> Self {
        Self {
            blocking: true,
            ..self
        }
    }

    fn options(&self) -> Options {
        if self.blocking {
            Options::blocking()
        } else {
            Options::default()
        }
    }
}

/// Sends until told to stop or the connection is shut down.
fn flood(mut stream: &TcpStream, message: usize, total: &AtomicU64, stop: &AtomicBool) {
    let bytes = vec![b'x'; message];
    while !stop.load(Ordering::Relaxed) {
        match stream.write(&bytes) {
            Ok(n) => {
                total.fetch_add(n as u64, Ordering::Relaxed);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait_at_most(stream, PollFlags::POLLOUT, 100);
            }
            // The shutdown that ends the measurement.
            Err(_) => return,
        }
    }
}

/// How much the senders get rid of before nothing moves for a while.
fn stalls_at(pair: &Pair, case: &Case) -> u64 {
    let total = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let senders: &[&TcpStream] = if case.both_sides {
        &[&pair.client, &pair.server]
    } else {
        &[&pair.client]
    };
    thread::scope(|scope| {
        for stream in senders {
            for _ in 0..case.threads {
                scope.spawn(|| flood(stream, case.message, &total, &stop));
            }
        }
        let mut last = (0, Instant::now());
        while last.1.elapsed() < Duration::from_millis(1500) {
            thread::sleep(Duration::from_millis(50));
            let now = total.load(Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            }
            if now > TOO_MUCH {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        for stream in [&pair.client, &pair.server] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
    total.load(Ordering::Relaxed)
}

#[test]
fn a_receiver_that_never_reads_stalls_its_sender() {
    let mut failures = Vec::new();
    for case in CASES {
        let plain = stalls_at(&Pair::with(&case.options()), case);

        let cgroup = Cgroup::new("memory");
        let instance = Instance::enable_blocking(&cgroup, &[]);
        let _joined = cgroup.join();
        let pair = Pair::with(&case.options());
        warm_up(&instance, &pair);
        let before = instance.stats();
        let accelerated = stalls_at(&pair, case);
        let redirected = instance.stats().delta(&before, "redirected_bytes");

        println!(
            "{}: plain TCP stalls at {plain}, accelerated at {accelerated} ({redirected} redirected)",
            case.name
        );
        if redirected == 0 {
            failures.push(format!("{}: nothing was redirected", case.name));
        }
        let receivers = if case.both_sides { 2 } else { 1 };
        if accelerated > plain + 4 * MIB * receivers {
            failures.push(format!("{}: {accelerated}, plain {plain}", case.name));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
