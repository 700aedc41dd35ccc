//! A receiver that does not read stalls its sender, as it does on plain TCP.

mod common;

use std::fs;
use std::io;
use std::io::Read as _;
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
/// What may wait in a redirect queue: "a few MiB".
const QUEUE: u64 = 4 * MIB;

/// Who sends, and how.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    message: usize,
    threads: usize,
    both_sides: bool,
    blocking: bool,
    /// A thread of the sender's waits in `recv` on the same socket.
    own_reader: bool,
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
    // Three that are hardly ever alone: without a bound, 200 MiB in 50 ms.
    Case::new("60000 bytes, 3 threads", 60_000).threads(3),
    Case::new("1 KiB, 2 threads", 1 << 10).threads(2),
    Case::new("16 KiB, blocking", 16 << 10).blocking(),
    // To the kernel, it never is the only one that uses the socket.
    Case::new("4 KiB, blocking, with a reader of its own", 4 << 10)
        .blocking()
        .own_reader(),
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
            own_reader: false,
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

    const fn own_reader(self) -> Self {
        Self {
            own_reader: true,
            ..self
        }
    }

    fn directions(&self) -> u64 {
        if self.both_sides { 2 } else { 1 }
    }

    fn options(&self) -> Options {
        if self.blocking {
            Options::blocking()
        } else {
            Options::default()
        }
    }
}

/// What TCP itself may buffer of one direction. How much of it is used differs
/// from run to run: small messages make it enlarge its buffers.
fn tcp_limit() -> u64 {
    ["tcp_rmem", "tcp_wmem"]
        .map(|name| {
            let path = format!("/proc/sys/net/ipv4/{name}");
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            let largest = text.split_whitespace().next_back().map(str::parse::<u64>);
            largest.and_then(Result::ok).expect("three numbers")
        })
        .iter()
        .sum()
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
        if case.own_reader {
            scope.spawn(|| (&pair.client).read(&mut [0; 16]));
            // It sleeps before the flood begins.
            thread::sleep(Duration::from_millis(100));
        }
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
            // No reason to fill the machine.
            if now > case.directions() * 2 * tcp_limit() {
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
    // A direction with several senders may leave before the first message.
    let mut redirected_in_company = 0;
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
        if case.threads > 1 {
            redirected_in_company += redirected;
        } else if redirected == 0 {
            failures.push(format!("{}: nothing was redirected", case.name));
        }
        let by_stack = accelerated.saturating_sub(redirected);
        if redirected > case.directions() * QUEUE
            || by_stack > plain.max(case.directions() * tcp_limit())
        {
            failures.push(format!(
                "{}: {redirected} redirected and {by_stack} by the stack, plain {plain}",
                case.name
            ));
        }
    }
    if redirected_in_company == 0 {
        failures.push("nothing was redirected with several threads".to_owned());
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Where buffers do not grow, plain TCP takes the same each time.
#[test]
fn a_receiver_that_never_reads_holds_at_most_4_mib_more_than_plain_tcp() {
    const SIZES: [usize; 3] = [100, 4 << 10, 100 << 10];
    let fixed = |blocking: bool| Options {
        send_buffer: Some(256 << 10),
        receive_buffer: Some(256 << 10),
        client_nonblocking: !blocking,
        server_nonblocking: !blocking,
        ..Options::default()
    };
    let mut failures = Vec::new();
    for blocking in [false, true] {
        for message in SIZES {
            let case = Case::new("fixed buffers", message);
            let plain = (0..3).map(|_| stalls_at(&Pair::with(&fixed(blocking)), &case));
            let plain = plain.min().expect("three");

            let cgroup = Cgroup::new("memory-fixed");
            let instance = Instance::enable_blocking(&cgroup, &[]);
            let _joined = cgroup.join();
            let pair = Pair::with(&fixed(blocking));
            warm_up(&instance, &pair);
            let before = instance.stats();
            let accelerated = stalls_at(&pair, &case);
            let redirected = instance.stats().delta(&before, "redirected_bytes");
            let found = format!(
                "{message} bytes, blocking: {blocking}: plain TCP {plain}, \
                 accelerated {accelerated}, {redirected} of it redirected"
            );
            println!("{found}");
            if redirected == 0 || accelerated > plain + QUEUE {
                failures.push(found);
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
