//! An instance that a version with another layout made: `disable` of this one gives
//! its connections back whole, and nothing else touches it.

mod common;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::bpffs::pins;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::instance::Ran;
use common::layout;
use common::layout::OTHER;
use common::pair::Pair;
use common::pattern::Pattern;
use common::plain::Probe;
use common::plain::assert_gone;
use common::plain::map_ids;
use common::raw;
use common::stream::recv_all;
use common::stream::send_all;
use common::warm::assert_redirected;
use common::warm::round_trip;
use common::warm::warm_up;
use nix::errno::Errno;
use nix::libc;
use sockaccel::maps::Stats;

/// Makes the instance in a directory one of another layout.
type Make = fn(&Path);

const OTHERS: [(&str, Make); 2] = [
    ("another number", |dir| layout::number(dir, OTHER)),
    ("a longer configuration", layout::lengthen),
];

/// Messages that its programs redirect, whatever their layout.
fn redirected(dir: &Path) -> u64 {
    Stats::read(dir).expect("stats").redirected_messages
}

fn assert_refused(ran: &Ran, instance: &Instance, case: &str) {
    assert_eq!(ran.code, Some(3), "{case}: {ran:?}");
    let name = instance.name();
    for words in [
        format!("(map layout {OTHER}, this version has"),
        format!("To change over:  sockaccel disable --instance {name}, then enable it again   ("),
    ] {
        assert!(ran.stderr.contains(&words), "{case}: {ran:?}");
    }
}

/// Two pairs that were redirected, the second one with unread bytes, in an instance
/// that has become one of another layout.
fn make(cgroup: &Cgroup, instance: &Instance, other: Make, case: &str) -> [Pair; 2] {
    let _joined = cgroup.join();
    let pairs = [Pair::new(), Pair::new()];
    for pair in &pairs {
        warm_up(instance, pair);
    }
    let dir = instance.dir();
    other(&dir);
    let before = redirected(&dir);
    send_all(&pairs[1].client, b"redirected, ", Deadline::seconds(10));
    assert_eq!(redirected(&dir), before + 1, "{case}");
    pairs
}

#[test]
fn what_is_unread_is_waited_for() {
    const MORE: usize = 300_000;
    for (case, other) in OTHERS {
        let cgroup = Cgroup::new("layout");
        let instance = Instance::enable(&cgroup, &[]);
        let [idle, pair] = make(&cgroup, &instance, other, case);
        let (dir, ids) = (instance.dir(), map_ids(&instance));
        let config = layout::config(&dir);
        let probe = Probe::new();
        assert_refused(&instance.run(&["status"]), &instance, case);

        let ran = instance.run(&["disable", "--timeout", "200ms", "--json"]);
        assert_eq!(ran.code, Some(7), "{case}: {ran:?}");
        let said = format!(": 2 sockets left in instance {}\n", instance.name());
        assert!(ran.stderr.contains(&said), "{case}: {ran:?}");
        assert!(ran.stderr.contains("Another version"), "{case}: {ran:?}");
        assert!(!ran.stderr.contains("status"), "{case}: {ran:?}");
        assert_eq!(ran.json()["error"]["exit_status"], 7, "{case}");
        for (stream, plain) in [(&idle.client, true), (&pair.client, false)] {
            assert_eq!(probe.is_plain(stream), plain, "{case}");
        }
        // Of the configuration only the switch is different.
        let mut off = config.clone();
        off[4..8].fill(0);
        assert_ne!(config, off, "{case}");
        assert_eq!(layout::config(&dir), off, "{case}");
        let status = instance.run(&["status"]);
        assert_refused(&status, &instance, case);
        assert!(status.stderr.contains("is draining"), "{case}: {status:?}");

        // The guards are there, and nothing new is enrolled.
        assert_eq!(
            raw::set_option(&pair.server, libc::SOL_TCP, libc::TCP_ULP, b"tls\0"),
            Err(Errno::EOPNOTSUPP),
            "{case}"
        );
        {
            let _joined = cgroup.join();
            let (new, before) = (Pair::new(), redirected(&dir));
            (0..4).for_each(|_| round_trip(&new));
            assert_eq!(redirected(&dir), before, "{case}");
            probe.assert_plain(&new.client, case);
        }

        let deadline = Deadline::seconds(60);
        let pattern = Pattern::new(3);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut bytes = vec![0; MORE];
                pattern.fill(0, &mut bytes);
                send_all(&pair.client, &bytes, deadline);
            });
            let waiting = scope.spawn(|| {
                instance
                    .run(&["disable", "--timeout", "60s", "--json"])
                    .ok()
            });
            thread::sleep(Duration::from_millis(200));
            assert!(!waiting.is_finished(), "{case}: it has to wait");
            let mut got = [0; 12];
            recv_all(&pair.server, &mut got, deadline);
            assert_eq!(&got, b"redirected, ", "{case}");
            let mut bytes = vec![0; MORE];
            recv_all(&pair.server, &mut bytes, deadline);
            pattern.check(0, &bytes, case);
            sender.join().expect("sender");
            let told = waiting.join().expect("disable").json();
            assert_eq!(told["changed"], true, "{case}: {told}");
            assert_eq!(told["dropped"], serde_json::json!([]), "{case}: {told}");
        });
        for stream in [&idle.client, &idle.server, &pair.client, &pair.server] {
            probe.assert_plain(stream, case);
        }
        round_trip(&pair);
        round_trip(&idle);
        assert!(!dir.exists(), "{case}");
        assert_gone(&ids, case);

        // Over to this version.
        instance.enable_more(&[&cgroup], &[]).ok();
        let _joined = cgroup.join();
        warm_up(&instance, &Pair::new());
    }
}

#[test]
fn now_drops_what_is_unread_and_says_so() {
    for (case, other) in OTHERS {
        let cgroup = Cgroup::new("layout-now");
        let instance = Instance::enable(&cgroup, &[]);
        let [idle, pair] = make(&cgroup, &instance, other, case);
        let (dir, ids) = (instance.dir(), map_ids(&instance));
        let ran = instance.run(&["disable", "--now", "--json"]).ok();
        let said = "dropped what was unread on 2 sockets or fewer";
        assert!(ran.stderr.contains(said), "{case}: {ran:?}");
        let told = ran.json();
        assert_eq!(told["changed"], true, "{case}: {told}");
        assert_eq!(told["dropped"], serde_json::Value::Null, "{case}: {told}");
        let probe = Probe::new();
        for pair in [&idle, &pair] {
            probe.assert_plain(&pair.client, case);
            probe.assert_plain(&pair.server, case);
            round_trip(pair);
        }
        assert!(!dir.exists(), "{case}");
        assert_gone(&ids, case);
    }
}

/// Of one cgroup as well: what stays would have to be kept by its own version.
#[test]
fn whatever_is_not_disable_leaves_it_alone() {
    for (case, other) in OTHERS {
        let cgroup = Cgroup::new("layout-refused");
        let instance = Instance::enable(&cgroup, &[]);
        let [_idle, pair] = make(&cgroup, &instance, other, case);
        let dir = instance.dir();
        let config = layout::config(&dir);
        let path = cgroup.path().display().to_string();
        for words in [
            "status",
            "upgrade",
            "upgrade --again",
            "stats",
            "adopt",
            "export",
            "endpoint add 127.0.0.1",
            &format!("enable --allow fionread --cgroup {path}"),
            &format!("disable --cgroup {path}"),
        ] {
            let ran = instance.run(&words.split(' ').collect::<Vec<_>>());
            assert_refused(&ran, &instance, &format!("{case}: {words}"));
        }
        assert_eq!(layout::config(&dir), config, "{case}");
        let mut got = [0; 12];
        recv_all(&pair.server, &mut got, Deadline::seconds(10));
        let before = redirected(&dir);
        round_trip(&pair);
        assert!(redirected(&dir) > before, "{case}");
    }
}

/// Its own maps can be had back from its programs. Programs of this version would
/// misread them.
#[test]
fn with_missing_pins_it_gets_nothing_of_this_version() {
    for (map, link) in [
        ("sa_config", false),
        ("sa_config", true),
        ("sa_cgroups", false),
        ("sa_sockhash", true),
    ] {
        let case = format!("{map} and a {}", if link { "link" } else { "program" });
        let cgroup = Cgroup::new("layout-pins");
        let instance = Instance::enable(&cgroup, &[]);
        let [_idle, pair] = make(&cgroup, &instance, OTHERS[0].1, &case);
        let (dir, ids) = (instance.dir(), map_ids(&instance));
        let find = || {
            let mut pins = pins(&dir).into_iter();
            if link {
                pins.find(|pin| pin.ends_with("sa_connect4") && pin.parent() != Some(&dir))
            } else {
                pins.find(|pin| pin.ends_with("sa_iter_dump"))
            }
        };
        for pin in [dir.join(map), find().expect("a pin")] {
            fs::remove_file(&pin).unwrap_or_else(|e| panic!("{}: {e}", pin.display()));
        }
        assert_refused(&instance.run(&["upgrade"]), &instance, &case);
        assert_eq!(find(), None, "{case}: upgrade");

        let _ = fs::remove_file(dir.join(map));
        let ran = instance.run(&["disable", "--timeout", "0"]);
        assert_eq!(ran.code, Some(7), "{case}: {ran:?}");
        assert_eq!(find(), None, "{case}: disable");
        let mut got = [0; 12];
        recv_all(&pair.server, &mut got, Deadline::seconds(10));
        assert_eq!(&got, b"redirected, ", "{case}");
        instance.disable().ok();
        Probe::new().assert_plain(&pair.server, &case);
        assert_gone(&ids, &case);
    }
}

/// The instance that runs beside it is of this version.
#[test]
fn another_instance_is_not_touched() {
    let [own, other] = ["layout-own", "layout-other"].map(Cgroup::new);
    let instances = [&own, &other].map(|cgroup| Instance::enable(cgroup, &[]));
    let [_idle, pair] = make(&other, &instances[1], OTHERS[0].1, "beside");
    let kept = {
        let _joined = own.join();
        Pair::new()
    };
    warm_up(&instances[0], &kept);
    let mut got = [0; 12];
    recv_all(&pair.server, &mut got, Deadline::seconds(10));
    instances[1].disable().ok();
    let before = instances[0].stats();
    round_trip(&kept);
    assert_redirected(&before, &instances[0].stats(), 8);
}
