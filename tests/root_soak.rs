//! Everything at once, for long: random traffic, checked byte by byte, while the
//! policy flips, programs are replaced, cgroups come and go, and the instance with
//! them.

mod common;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::adopt::works_here;
use common::books::assert_balanced;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::instance::Stats;
use common::pair::Options;
use common::pair::Pair;
use common::rng::Rng;
use common::traffic::Direction;
use common::traffic::Plan;
use common::traffic::run_end;

/// Connections at once.
const CONNECTIONS: usize = 3;
/// Times that the instance goes and comes back while they run.
const CYCLES: u64 = 5;
/// Budgets so small that paths change all the time, and streams that leave.
const OPTIONS: &[&str] = &["--budget-messages", "4", "--stream-limit", "500"];

/// One connection from beginning to end, for event loops. Most are short: one that was
/// drained, or has left as a stream, is redirected no more.
fn one_connection(name: &str, rng: &mut Rng, messages: &AtomicU64) {
    let deadline = Deadline::seconds(300);
    let options = Options {
        nodelay: rng.one_in(2),
        ..Options::default()
    };
    let mut direction = |towards: &str| {
        let (largest, total) = match rng.between(0, 7) {
            0 => (2000, 1 << 20),
            1 => (64, 8 << 10),
            _ => (24, 5 << 10),
        };
        let plan = Plan {
            total,
            largest,
            lull_one_in: rng.between(1, 3) as u64,
        };
        Direction::new(format!("{name} to {towards}"), rng.next(), plan)
    };
    let (up, down) = (direction("server"), direction("client"));
    let pair = Pair::with(&options);
    let (client_rng, server_rng) = (rng.fork(), rng.fork());
    thread::scope(|scope| {
        scope.spawn(|| run_end(&pair.client, &up, &down, client_rng, deadline));
        run_end(&pair.server, &down, &up, server_rng, deadline);
    });
    messages.fetch_add(up.messages() + down.messages(), Ordering::Relaxed);
}

/// What was redirected, and ejected as a stream.
#[derive(Default, Clone, Copy)]
struct Seen {
    redirected: u64,
    streams: u64,
}

impl Seen {
    fn of(stats: &Stats) -> Self {
        Self {
            redirected: stats.redirected_messages(),
            streams: stats.by_reason("ejected", "stream"),
        }
    }

    fn add(&mut self, more: Self) {
        self.redirected += more.redirected;
        self.streams += more.streams;
    }
}

/// Changes one thing of an instance under traffic. `ended` is told what was seen by one
/// that ended over it: its last cgroup was drained at once.
fn meddle(instance: &Instance, cgroup: &Cgroup, rng: &mut Rng, ended: &mut Seen) {
    let rule = ["127.0.0.1", "ingress", "any"];
    let path = cgroup.path().to_str().expect("a path");
    match rng.between(0, 5) {
        0 => {
            instance.run(&["endpoint", "add", "127.0.0.1"]).ok();
            let deny = [&["policy", "add"], &rule[..], &["deny"]].concat();
            instance.run(&deny).ok();
            thread::sleep(Duration::from_millis(20));
            let gone = [&["policy", "del", "--if-exists"], &rule[..]].concat();
            instance.run(&gone).ok();
        }
        1 => {
            instance.run(&["upgrade", "--again"]).ok();
        }
        2 => {
            let seen = Seen::of(&instance.stats());
            // Not all may have been read in this time: then they go on draining.
            let out = instance.run(&["disable", "--cgroup", path, "--timeout", "100ms"]);
            assert!(matches!(out.code, Some(0 | 7)), "{out:?}");
            instance.enable_more(&[cgroup], OPTIONS).ok();
            if out.code == Some(0) {
                ended.add(seen);
            }
        }
        3 if works_here() => {
            instance.run(&["adopt"]).ok();
        }
        _ => thread::sleep(Duration::from_millis(50)),
    }
}

/// Runs traffic from here on, until the closure, which is told how much it was so
/// far, comes to its end.
fn under_traffic(rng: &mut Rng, body: impl FnOnce(&dyn Fn() -> u64)) {
    let messages = &AtomicU64::new(0);
    let done = &AtomicBool::new(false);
    let failed = &AtomicBool::new(false);
    thread::scope(|scope| {
        for worker in 0..CONNECTIONS {
            let mut rng = rng.fork();
            scope.spawn(move || {
                let _told = Failing(failed);
                for n in 0.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    one_connection(&format!("{worker}/{n}"), &mut rng, messages);
                }
            });
        }
        let end = Ending(done);
        body(&|| {
            assert!(!failed.load(Ordering::Relaxed), "a connection failed");
            messages.load(Ordering::Relaxed)
        });
        drop(end);
    });
}

/// Ends the traffic also where an assertion fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Without it nobody would stop to wait for messages that no connection sends.
struct Failing<'a>(&'a AtomicBool);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// At least so many messages and changes, and a stream that is ejected in each life
/// of the instance; fails when a byte is lost, reordered or not its own.
fn soak(name: &str, messages: u64, changes: u64) {
    let rng = &mut Rng::for_test(name);
    let cgroup = &Cgroup::new(name);
    let _joined = cgroup.join();
    let (mut seen, mut done) = (Seen::default(), 0);
    under_traffic(&mut rng.fork(), |sent| {
        for cycle in 1..=CYCLES {
            let instance = Instance::enable(cgroup, OPTIONS);
            while sent() < messages * cycle / CYCLES || done < changes * cycle / CYCLES {
                meddle(&instance, cgroup, rng, &mut seen);
                done += 1;
            }
            Deadline::seconds(300).until("a stream that is ejected", || {
                meddle(&instance, cgroup, rng, &mut seen);
                done += 1;
                Seen::of(&instance.stats()).streams > 0
            });
            let stats = assert_balanced(&instance);
            seen.add(Seen::of(&stats));
            instance.disable().ok();
        }
        let (
            sent,
            Seen {
                redirected,
                streams,
            },
        ) = (sent(), seen);
        println!(
            "{name}: {sent} messages, {redirected} redirected, {streams} ejected as streams, {done} changes"
        );
        assert!(redirected > sent / 50, "{redirected} of {sent}");
    });
}

#[test]
fn random_traffic_is_byte_exact_whatever_changes() {
    soak("soak", 100_000, 15);
}

#[test]
#[ignore = "the same for ten million messages and two hundred changes"]
fn ten_million_messages_are_byte_exact_whatever_changes() {
    soak("soak-long", 10_000_000, 200);
}

/// The programs are replaced again and again, by those of two builds in turn where
/// `SOCKACCEL_OTHER_BUILD` is the path of a binary of another build.
fn upgrades(name: &str, count: u32) {
    let other = std::env::var_os("SOCKACCEL_OTHER_BUILD");
    let rng = &mut Rng::for_test(name);
    let cgroup = &Cgroup::new(name);
    let _joined = cgroup.join();
    let instance = Instance::enable(cgroup, &[]);
    under_traffic(rng, |sent| {
        let start = Instant::now();
        for n in 0..count {
            let next = Instant::now() + Duration::from_millis(100);
            match &other {
                Some(binary) if n % 2 == 0 => instance.run_by(binary, &["upgrade", "--again"]),
                _ => instance.run(&["upgrade", "--again"]),
            }
            .ok();
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        let took = start.elapsed().as_secs();
        println!("{name}: {count} upgrades in {took} s, {} messages", sent());
    });
    let stats = assert_balanced(&instance);
    assert!(stats.redirected_messages() > 1000, "{}", stats.0);
}

#[test]
fn upgrades_under_traffic_lose_nothing() {
    upgrades("upgrades", 10);
}

#[test]
#[ignore = "600 upgrades, one each 100 ms or as fast as they come"]
fn a_minute_of_upgrades_under_traffic_loses_nothing() {
    upgrades("upgrades-long", 600);
}
