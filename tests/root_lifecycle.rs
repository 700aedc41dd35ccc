//! `enable` and `disable` lose nothing: not what waits in a redirect queue, not
//! a connection, and not a socket that is used a second time.

mod common;

use std::fs;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use sockaccel::sys::bpf;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::layout;
use common::netns::Netns;
use common::other_program::attached_to;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::pair::reconnect;
use common::pattern::Pattern;
use common::rng::Rng;
use common::stream::recv_all;
use common::stream::send_all;
use common::traffic::Direction;
use common::traffic::Plan;
use common::traffic::run_end;
use common::warm::assert_redirected;
use common::warm::round_trip;
use common::warm::warm_up;

/// Redirected bytes that nobody has read yet, the instance turned off, then bytes
/// by TCP on the same connection: in order.
#[test]
fn unread_redirected_bytes_survive_disable() {
    let cgroup = Cgroup::new("unread");
    let instance = Instance::enable(&cgroup, &[]);
    let joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    let deadline = Deadline::seconds(10);

    let before = instance.stats();
    send_all(&pair.client, b"redirected, ", deadline);
    send_all(&pair.server, b"and back, ", deadline);
    assert_redirected(&before, &instance.stats(), 22);
    let unread: u64 = instance
        .dump("sockhash")
        .iter()
        .filter_map(|row| row["unread_bytes"].as_u64())
        .sum();
    assert_eq!(unread, 22);
    let ran = instance.run(&["disable", "--timeout", "0"]);
    assert_eq!(ran.code, Some(7), "{ran:?}");

    send_all(&pair.client, b"then by TCP", deadline);
    send_all(&pair.server, b"by TCP as well", deadline);
    let mut to_server = [0; 23];
    let mut to_client = [0; 24];
    recv_all(&pair.server, &mut to_server, deadline);
    recv_all(&pair.client, &mut to_client, deadline);
    assert_eq!(&to_server, b"redirected, then by TCP");
    assert_eq!(&to_client, b"and back, by TCP as well");
    instance.disable().ok();
    round_trip(&pair);
    drop(joined);
}

/// What an earlier instance enrolled does not disturb the next one.
#[test]
fn a_new_instance_after_disable_accelerates_new_connections() {
    let cgroup = Cgroup::new("again");
    let joined = cgroup.join();
    let first = Instance::enable(&cgroup, &[]);
    let old = Pair::new();
    warm_up(&first, &old);
    first.disable().ok();
    let second = Instance::enable(&cgroup, &[]);
    let new = Pair::new();
    warm_up(&second, &new);
    round_trip(&old);
    drop(joined);
}

/// `connect(AF_UNSPEC)` and connect again: neither unread redirected bytes of the
/// old connection nor new ones of its old peer may show up in the new one.
#[test]
fn a_socket_connected_twice_is_never_mistaken_for_its_old_self() {
    let cgroup = Cgroup::new("reused");
    let instance = Instance::enable(&cgroup, &[]);
    let joined = cgroup.join();
    let old = Pair::new();
    warm_up(&instance, &old);
    let deadline = Deadline::seconds(10);
    let before = instance.stats();
    send_all(&old.server, b"OLD SECRET", deadline);
    assert_redirected(&before, &instance.stats(), 10);

    let listener = listen(&Options::default());
    reconnect(&old.client, listener.local_addr().expect("getsockname"));
    let server = accept(&listener, &Options::default());
    // The old peer still has its socket, and may not know yet.
    let _ = nix::unistd::write(&old.server, b"OLD SECRET, LATE");
    send_all(&server, b"new", deadline);
    let mut got = [0; 3];
    recv_all(&old.client, &mut got, deadline);
    assert_eq!(&got, b"new");
    send_all(&old.client, b"also new", deadline);
    let mut got = [0; 8];
    recv_all(&server, &mut got, deadline);
    assert_eq!(&got, b"also new");
    let stats = instance.stats();
    assert_eq!(stats.by_reason("skipped", "reused"), 1, "{}", stats.0);
    drop(joined);
}

/// One direction of which more was sent than read.
struct Unread<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    pattern: Pattern,
    sent: u64,
    read: u64,
}

impl<'a> Unread<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream, tag: u64) -> Self {
        let pattern = Pattern::new(tag);
        Self {
            from,
            to,
            pattern,
            sent: 0,
            read: 0,
        }
    }

    fn send(&mut self, size: usize) {
        let mut bytes = vec![0; size];
        self.pattern.fill(self.sent, &mut bytes);
        send_all(self.from, &bytes, Deadline::seconds(10));
        self.sent += size as u64;
    }

    fn receive(&mut self, size: u64, what: &str) {
        let mut bytes = vec![0; usize::try_from(size).expect("small")];
        recv_all(self.to, &mut bytes, Deadline::seconds(10));
        self.pattern.check(self.read, &bytes, what);
        self.read += size;
    }
}

/// Everything that moves a direction from one path to the other, in any order, while
/// bytes of both paths are unread.
#[test]
fn whatever_is_switched_with_unread_bytes_of_both_paths_keeps_their_order() {
    const ROUNDS: u64 = 5;
    const SWITCHES: [&str; 7] = [
        "policy add 127.0.0.1 ingress any deny",
        "policy del 127.0.0.1 ingress any --if-exists",
        "disable --timeout 0",
        "enable",
        "disable --cgroup",
        "enable",
        "upgrade --again",
    ];
    let mut rng = Rng::for_test("switches");
    let cgroup = Cgroup::new("switches");
    let path = cgroup.path().to_str().expect("a path");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let switch = |words: &str| {
        let mut words: Vec<&str> = words.split(' ').collect();
        if words == ["enable"] {
            instance.enable_more(&[&cgroup], &[]).ok();
            return;
        }
        if words.last() == Some(&"--cgroup") {
            words.extend([path, "--timeout", "0"]);
        }
        let ran = instance.run(&words);
        // Nothing to change where it is disabled; what is unread is waited for.
        assert!(matches!(ran.code, Some(0 | 4 | 7)), "{words:?}: {ran:?}");
    };
    let counts = || {
        let ran = instance.run(&["stats", "--json"]);
        if ran.code != Some(0) {
            return [0; 2];
        }
        let stats = ran.json();
        ["redirected_bytes", "stack_bytes"].map(|name| stats[name].as_u64().expect("a count"))
    };
    let mut both = 0;
    for round in 0..ROUNDS {
        switch("enable");
        switch("endpoint add 127.0.0.1");
        switch("policy del 127.0.0.1 ingress any --if-exists");
        let pair = Pair::new();
        warm_up(&instance, &pair);
        let mut ways = [
            Unread::new(&pair.client, &pair.server, 2 * round),
            Unread::new(&pair.server, &pair.client, 2 * round + 1),
        ];
        let mut story = format!("round {round}");
        let mut seen = [false; 2];
        for _ in 0..6 {
            for way in &mut ways {
                let before = counts();
                way.send(rng.size(20_000));
                let after = counts();
                for path in 0..2 {
                    seen[path] |= after[path] > before[path];
                }
                let unread = way.sent - way.read;
                // Nothing, all of it, or a part.
                let read = [0, 0, unread, unread / 2][rng.between(0, 3)];
                way.receive(read, &story);
            }
            let words = SWITCHES[rng.between(0, SWITCHES.len() - 1)];
            story = format!("{story}, {words}");
            switch(words);
        }
        for way in &mut ways {
            way.receive(way.sent - way.read, &story);
        }
        both += u32::from(seen == [true; 2]);
        switch("disable");
        round_trip(&pair);
    }
    assert!(both > 1, "{both} connections used both paths");
}

/// The client's end is enrolled by the programs of before an upgrade, the server's
/// by those of after it, and both ends go on with those.
#[test]
fn an_upgrade_in_the_middle_of_a_handshake() {
    let cgroup = Cgroup::new("versions");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let netns = Netns::new("versions");
    let nft = |words: &str| netns.run("nft", &[words]);
    nft("add table inet sat");
    nft("add chain inet sat in { type filter hook input priority 0; }");
    let listener = netns.enter(|| listen(&Options::default()));
    let to = listener.local_addr().expect("getsockname");
    // The SYN gets through, the ACK that ends the handshake does not.
    let hold = format!(
        "add rule inet sat in tcp dport {} tcp flags & (syn | ack) == ack drop",
        to.port()
    );
    let deadline = Deadline::seconds(120);
    let mut met = 0;
    while met < 2 {
        deadline.check("an upgrade in the middle of a handshake");
        thread::scope(|scope| {
            let upgrade = scope.spawn(|| instance.run(&["upgrade", "--again"]).ok());
            while !upgrade.is_finished() {
                nft(&hold);
                let before = attached_to(cgroup.path());
                let client = netns.enter(|| connect(to, &Options::default()));
                // One that waits longer for its peer is given up.
                thread::sleep(Duration::from_millis(300));
                let after = attached_to(cgroup.path());
                nft("flush chain inet sat in");
                send_all(&client, b"x", deadline);
                let server = accept(&listener, &Options::default());
                recv_all(&server, &mut [0], deadline);
                if before != after {
                    met += 1;
                    talk_over_upgrades(&instance, &Pair { client, server });
                }
            }
            upgrade.join().expect("upgrade");
        });
    }
}

fn talk_over_upgrades(instance: &Instance, pair: &Pair) {
    warm_up(instance, pair);
    let before = instance.stats();
    let mut ways = [
        Unread::new(&pair.client, &pair.server, 1),
        Unread::new(&pair.server, &pair.client, 2),
    ];
    for size in [1, 100, 10_000] {
        for way in &mut ways {
            way.send(size);
            way.send(2 * size);
        }
        // And programs of a third one while it is unread.
        instance.run(&["upgrade", "--again"]).ok();
        for way in &mut ways {
            way.receive(way.sent - way.read, "two versions");
        }
    }
    assert_redirected(&before, &instance.stats(), 20_000);
}

/// Ends both directions of a connection.
struct Ending<'a>([&'a Direction; 2]);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        for direction in self.0 {
            direction.end();
        }
    }
}

/// One build is told from another by its number alone.
#[test]
fn an_upgrade_from_another_build_under_traffic() {
    let cgroup = Cgroup::new("build");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let dir = instance.dir();
    let programs = || instance.run(&["status", "--json"]).ok().json()["programs"].clone();
    let [busy, waiting] = [Pair::new(), Pair::new()];
    for pair in [&busy, &waiting] {
        warm_up(&instance, pair);
    }
    assert_eq!(programs(), "current");
    layout::other_build(&dir);
    assert_eq!(programs(), "other");
    let before = verdict_id(&dir);

    let unread = instance.stats();
    let mut ways = [
        Unread::new(&waiting.client, &waiting.server, 1),
        Unread::new(&waiting.server, &waiting.client, 2),
    ];
    for way in &mut ways {
        way.send(1000);
    }
    assert_redirected(&unread, &instance.stats(), 2000);

    let deadline = Deadline::seconds(120);
    let rng = &mut Rng::for_test("build");
    let mut direction = |towards: &str| {
        let plan = Plan {
            total: u64::MAX,
            largest: 4 << 10,
            lull_one_in: 4,
        };
        Direction::new(format!("to the {towards}"), rng.next(), plan)
    };
    let [up, down] = [direction("server"), direction("client")];
    let rngs = [rng.fork(), rng.fork()];
    thread::scope(|scope| {
        let [first, second] = rngs;
        let (busy, up, down) = (&busy, &up, &down);
        scope.spawn(move || run_end(&busy.client, up, down, first, deadline));
        scope.spawn(move || run_end(&busy.server, down, up, second, deadline));
        let more_is_redirected = |when: &str| {
            let before = instance.stats();
            deadline.until(when, || {
                instance.stats().delta(&before, "redirected_messages") > 500
            });
        };
        // Also by a failure: the scope waits for its threads.
        let _ending = Ending([up, down]);
        more_is_redirected("redirected before the upgrade");
        let ran = instance.run(&["upgrade", "--json"]).ok();
        assert_eq!(ran.json()["changed"], true, "{ran:?}");
        more_is_redirected("redirected after the upgrade");
    });

    assert_eq!(programs(), "current");
    let after = verdict_id(&dir);
    assert_ne!(before, after);
    for way in &mut ways {
        way.receive(way.sent, "unread over the upgrade");
    }
    for pair in [&waiting, &Pair::new()] {
        warm_up(&instance, pair);
    }
}

/// Of the program that is pinned; it is the one that the enrolled sockets call.
fn verdict_id(dir: &Path) -> u32 {
    let program = bpf::open_pinned(&dir.join("sa_verdict")).expect("sa_verdict");
    let info = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let info = fs::read_to_string(info).expect("what the kernel says of it");
    let id = info.lines().find_map(|line| line.strip_prefix("prog_id:"));
    let id: u32 = id.expect("a program").trim().parse().expect("a number");
    let called = MapHandle::from_pinned_path(dir.join("sa_programs"))
        .expect("sa_programs")
        .lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)
        .expect("look up");
    assert_eq!(called, Some(id.to_ne_bytes().to_vec()));
    id
}
