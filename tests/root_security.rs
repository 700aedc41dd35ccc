//! Who may do what, and what others can do about it: docs/security.md says
//! what these tests show.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use caps::CapSet;
use caps::Capability;
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::mount::mount;
use nix::poll::PollFlags;
use nix::sched::CloneFlags;
use nix::sched::unshare;
use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use serde_json::Value;

use common::adopt::refused_here;
use common::books::assert_balanced;
use common::bpffs::Bpffs;
use common::bpffs::pins;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::deadline::wait_at_most;
use common::forge::ACK;
use common::forge::PSH;
use common::forge::RST;
use common::forge::RawTcp;
use common::forge::SYN;
use common::forge::Segment;
use common::instance::Instance;
use common::instance::Ran;
use common::instance::sockaccel;
use common::netns::Netns;
use common::pair::Options;
use common::pair::Pair;
use common::pair::listen;
use common::privileges::sockaccel_with;
use common::stream::recv_all;
use common::stream::send_all;
use common::tagged::Tagged;
use common::warm::assert_mostly_redirected;
use common::warm::round_trip;
use common::warm::warm_up;
use sockaccel::sys::bpf::open_pinned;

const SECURITY: &str = include_str!("../docs/security.md");
const NOBODY: u32 = 65534;

/// Where everybody may make directories, as on the usual one.
fn mounted() -> Bpffs {
    let bpffs = Bpffs::new();
    bpffs.mount(MsFlags::empty());
    bpffs
}

/// Runs the closure on a thread that sees a tracefs, whatever is mounted
/// outside.
fn with_tracefs<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let body = || {
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
            let (kind, at) = (Some("tracefs"), "/sys/kernel/tracing");
            match mount(kind, at, kind, MsFlags::empty(), none) {
                // It is there already.
                Ok(()) | Err(Errno::EBUSY) => {}
                Err(error) => panic!("mount tracefs: {error}"),
            }
            body()
        };
        scope
            .spawn(body)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What `enable` needs, as docs/security.md says.
const ENABLE: [Capability; 4] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
    Capability::CAP_SYSLOG,
];

/// `enable` where tracefs has to be mounted: the older capability holds two of
/// the others.
const ENABLE_AND_MOUNT: [Capability; 3] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYSLOG,
];

/// Commands that need none, in an order in which each works. FILE is an empty file of
/// `apply`; that `top` is one of them is shown by `tests/root_top.rs`.
const NONE: &[&str] = &[
    "status",
    "stats",
    "assert --skipped >=0",
    "events --duration 0.1",
    "export",
    "upgrade",
    "dump sockhash",
    "dump connections",
    "dump endpoints",
    "dump identities",
    "dump policy",
    "dump services",
    "dump config",
    "endpoint add 10.0.0.1",
    "endpoint list",
    "endpoint get 10.0.0.1",
    "identity add 10.0.1.0/24 1001",
    "identity list",
    "identity get 10.0.1.1",
    "service add 10.0.0.9:80",
    "service list",
    "service get 10.0.0.9:80",
    "policy add 10.0.0.1 egress any allow",
    "policy list",
    "policy get 10.0.0.1 egress any",
    "policy del 10.0.0.1 egress any",
    "service del 10.0.0.9:80",
    "identity del 10.0.1.0/24",
    "endpoint del 10.0.0.1",
    "apply -f FILE --dry-run",
    "disable",
    "apply -f FILE",
];

/// There is such a row.
fn documented(commands: &str, capabilities: &str) {
    let row = format!("| {commands} | {capabilities}");
    assert!(SECURITY.contains(&row), "no row {row}");
}

fn names(held: &[Capability]) -> String {
    let names: Vec<String> = held.iter().map(ToString::to_string).collect();
    names.join(", ")
}

#[test]
fn each_command_needs_what_is_documented_and_no_more() {
    let bpffs = mounted();
    let cgroup = Cgroup::new("least");
    let allow = "--allow fionread,known-bad-kernel";
    let enable = format!("enable {allow} --cgroup {}", cgroup.path().display());
    let enable = bpffs.args(&enable);
    let file = bpffs.dir().join("nothing.toml");
    fs::write(&file, "cgroups = []").expect("a file");
    documented("`enable`, `upgrade`, `run`", &names(&ENABLE));
    with_tracefs(|| {
        for held in [&ENABLE[..], &ENABLE_AND_MOUNT] {
            for missing in held {
                let others: Vec<Capability> =
                    held.iter().copied().filter(|c| c != missing).collect();
                let ran = sockaccel_with(&others, &enable);
                if *missing == Capability::CAP_SYSLOG && !hides_addresses() {
                    // This machine shows its addresses to everybody.
                    ran.ok();
                    sockaccel_with(&[], &bpffs.args("disable")).ok();
                    continue;
                }
                assert_eq!(ran.code, Some(6), "without {missing}: {}", ran.stderr);
                // The older capability is never asked for when a newer one will do.
                let newer = *missing == Capability::CAP_SYS_ADMIN;
                let name = if newer {
                    "CAP_BPF".to_owned()
                } else {
                    missing.to_string()
                };
                assert!(ran.stderr.contains(&name), "{missing}: {}", ran.stderr);
                assert!(!bpffs.base().exists());
            }
            sockaccel_with(held, &enable).ok();
            assert_accelerates(&cgroup, &bpffs);
            for words in NONE {
                let words = words.replace("FILE", file.to_str().expect("a path"));
                let ran = sockaccel_with(&[], &bpffs.args(&words));
                assert_eq!(ran.code, Some(0), "{words}: {}", ran.stderr);
            }
        }
    });
    let row = SECURITY.lines().find(|line| line.contains(" | none: "));
    let row = row.expect("a row of those that need none");
    for words in NONE {
        let command = words.split(' ').next().expect("a word");
        let elsewhere = ["apply", "upgrade"].contains(&command);
        assert!(
            elsewhere || row.contains(&format!("`{command}`")),
            "no {command}"
        );
    }
}

/// Without each of these it fails with this status, and names it; with all it works.
fn assert_needs(needed: &[Capability], status: i32, run: impl Fn(&[Capability]) -> Ran) {
    for missing in needed {
        if *missing == Capability::CAP_SYSLOG && !hides_addresses() {
            continue;
        }
        let others: Vec<Capability> = needed.iter().copied().filter(|c| c != missing).collect();
        let ran = run(&others);
        assert_eq!(ran.code, Some(status), "without {missing}: {ran:?}");
        assert!(ran.stderr.contains(&missing.to_string()), "{ran:?}");
    }
    run(needed).ok();
}

#[test]
fn upgrade_apply_and_run_need_what_is_documented_and_no_more() {
    let bpffs = mounted();
    let cgroup = Cgroup::new("least");
    let more = cgroup.nested("more");
    let path = |cgroup: &Cgroup| cgroup.path().display().to_string();
    let allow = "--allow fionread,known-bad-kernel";
    documented(
        "`apply`",
        "as `enable` where a cgroup is added, another risk accepted or a missing pin made again, else none",
    );
    with_tracefs(|| {
        let enable = format!("enable {allow} --cgroup {}", path(&cgroup));
        bpffs.sh(&enable).ok();
        let upgrade = bpffs.args("upgrade --again");
        assert_needs(&ENABLE, 6, |held| sockaccel_with(held, &upgrade));
        assert_accelerates(&cgroup, &bpffs);

        let export = bpffs.sh("export").ok().stdout;
        let own = format!("{:?}", path(&cgroup));
        let file = bpffs.dir().join("wanted.toml");
        let apply = bpffs.args(&format!("apply -f {}", file.display()));
        fs::write(&file, export.replace("stream_limit = ", "stream_limit = 1")).expect("a file");
        let changed = sockaccel_with(&[], &apply).ok().stdout;
        assert!(changed.contains("+ stream-limit 1"), "{changed}");
        let both = format!("{own}, {:?}", path(&more));
        fs::write(&file, export.replace(&own, &both)).expect("a file");
        assert_needs(&ENABLE, 6, |held| sockaccel_with(held, &apply));
        assert_accelerates(&more, &bpffs);

        // In a cgroup with a directory that root may write to.
        let run = format!("run {allow} --bpffs {} -- true", bpffs.path().display());
        let run: Vec<&str> = run.split(' ').collect();
        let joined = cgroup.join();
        assert_needs(&ENABLE, 125, |held| sockaccel_with(held, &run));
        // And as that of the root cgroup is.
        fs::set_permissions(cgroup.path(), fs::Permissions::from_mode(0o555)).expect("chmod");
        let ran = sockaccel_with(&ENABLE, &run);
        assert_eq!(ran.code, Some(125), "{ran:?}");
        assert!(ran.stderr.contains("cannot create cgroup"), "{ran:?}");
        let all = [&ENABLE[..], &[Capability::CAP_DAC_OVERRIDE]].concat();
        sockaccel_with(&all, &run).ok();
        drop(joined);
    });
}

/// What `bench` needs.
const BENCH: [Capability; 4] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYSLOG,
    Capability::CAP_DAC_OVERRIDE,
];

#[test]
fn bench_needs_what_is_documented_and_no_more() {
    documented("`bench`", &format!("{} |", names(&BENCH)));
    let bench = "bench --mode sockaccel --workload rr --size 64 --rounds 1 --seconds 0.1";
    let bench: Vec<&str> = bench.split(' ').collect();
    with_tracefs(|| assert_needs(&BENCH, 6, |held| sockaccel_with(held, &bench)));
}

/// What `explain` needs to look at sockets of a process that has more.
const LOOK: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_SYS_PTRACE];

#[test]
fn explain_tells_what_may_be_seen() {
    let bpffs = mounted();
    let cgroup = Cgroup::new("least");
    documented(
        "`explain`",
        &format!(
            "none; {} to tell the options and the cgroup",
            names(&LOOK).replace(", ", " and ")
        ),
    );
    let allow = "--allow fionread,known-bad-kernel";
    let enable = format!("enable {allow} --cgroup {}", cgroup.path().display());
    bpffs.sh(&enable).ok();
    let _joined = cgroup.join();
    let _pair = Pair::new();
    let explain = bpffs.args(&format!("explain --json --pid {}", std::process::id()));
    let path = cgroup.path().display().to_string();
    for (held, nonblocking, own_cgroup) in [
        (&[][..], Value::Null, Value::Null),
        (&LOOK[..1], Value::Null, Value::Null),
        (&LOOK[1..], Value::Bool(true), Value::Null),
        (&LOOK, Value::Bool(true), Value::String(path)),
    ] {
        let told = sockaccel_with(held, &explain).ok().json();
        let end = &told["connections"][0]["ends"][0];
        assert_eq!(end["nonblocking"], nonblocking, "{held:?}: {told}");
        assert_eq!(end["cgroup"], own_cgroup, "{held:?}: {told}");
    }
}

/// What `adopt` needs of [`ENABLE`], as docs/security.md says.
const ADOPT: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYSLOG,
];

/// And where connections are in other network namespaces.
const ADOPT_ELSEWHERE: [Capability; 3] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
];

#[test]
fn adopt_needs_what_is_documented_and_no_more() {
    if refused_here() {
        return;
    }
    let bpffs = mounted();
    let cgroup = Cgroup::new("least");
    documented("`adopt`", &format!("{};", names(&ADOPT)));
    let joined = cgroup.join();
    let pair = Pair::new();
    drop(joined);
    let allow = "--allow fionread,known-bad-kernel";
    let enable = format!("enable {allow} --cgroup {}", cgroup.path().display());
    bpffs.sh(&enable).ok();
    let dry_run = bpffs.args("adopt --dry-run");
    assert_needs(&ADOPT, 6, |held| sockaccel_with(held, &dry_run));
    let told = sockaccel_with(&ADOPT, &bpffs.args("adopt --json"));
    let told = told.ok().json();
    assert_eq!(told["adopted"].as_array().map(Vec::len), Some(1), "{told}");
    for _ in 0..10 {
        round_trip(&pair);
    }
    let stats = bpffs.sh("stats --json").ok().json();
    assert!(stats["redirected_messages"].as_u64() > Some(10), "{stats}");
}

#[test]
fn adopt_looks_into_other_namespaces_with_what_is_documented() {
    if refused_here() {
        return;
    }
    let bpffs = mounted();
    let cgroup = Cgroup::new("least");
    let netns = Netns::new("least");
    let needed = names(&ADOPT_ELSEWHERE);
    let (first, last) = needed.rsplit_once(", ").expect("three");
    let row = format!(
        "{}; {first} and {last} where connections are in other network namespaces |",
        names(&ADOPT)
    );
    documented("`adopt`", &row);
    let joined = cgroup.join();
    let _pair = netns.enter(Pair::new);
    drop(joined);
    let allow = "--allow fionread,known-bad-kernel";
    let enable = format!("enable {allow} --cgroup {}", cgroup.path().display());
    bpffs.sh(&enable).ok();
    let adopt = |held: &[Capability]| -> (Ran, usize) {
        let held = [&ADOPT[..], held].concat();
        let ran = sockaccel_with(&held, &bpffs.args("adopt --dry-run --json")).ok();
        let adopted = ran.json()["adopted"].as_array().map(Vec::len);
        (ran, adopted.expect("an array"))
    };
    let [net_admin, sys_admin, sys_ptrace] = ADOPT_ELSEWHERE;
    for held in [
        &[][..],
        &[sys_admin, sys_ptrace],
        &[net_admin, sys_ptrace],
        &[net_admin, sys_admin],
    ] {
        let (ran, adopted) = adopt(held);
        assert_eq!(adopted, 0, "{held:?}: {ran:?}");
        let text =
            format!("1 other network namespace cannot be looked at without {first} and {last}");
        assert!(ran.stderr.contains(&text), "{held:?}: {ran:?}");
    }
    let (ran, adopted) = adopt(&ADOPT_ELSEWHERE);
    assert_eq!(adopted, 1, "{ran:?}");
    assert!(!ran.stderr.contains("cannot be looked at"), "{ran:?}");
}

/// Without one of these the capabilities are too few to enable.
fn assert_refused_without(doctor: &[&str]) {
    for missing in [Capability::CAP_NET_ADMIN, Capability::CAP_SYSLOG] {
        if missing == Capability::CAP_SYSLOG && !hides_addresses() {
            continue;
        }
        let others: Vec<Capability> = BENCH.into_iter().filter(|c| *c != missing).collect();
        let ran = sockaccel_with(&others, doctor);
        assert_eq!(ran.code, Some(6), "without {missing}: {ran:?}");
    }
}

#[test]
fn doctor_tells_what_it_could_not_try() {
    let allow = ["--allow", "fionread,known-bad-kernel"];
    let doctor = [&["doctor", "--json", "--timeout", "60"][..], &allow].concat();
    let result = |report: &Value, check: &str| -> String {
        let rows = report["checks"].as_array().expect("an array");
        let row = rows.iter().find(|row| row["check"] == check);
        row.expect("a row")["result"]
            .as_str()
            .expect("text")
            .to_owned()
    };
    // All that it does; what bench does for speed it does for behaviour.
    documented("`doctor`", &format!("{} |", names(&BENCH)));
    with_tracefs(|| {
        let report = sockaccel_with(&BENCH, &doctor).ok().json();
        assert_eq!(result(&report, "redirect"), "ok", "{report:#}");
        assert_refused_without(&doctor);
        let all = [&ENABLE[..], &BENCH].concat();
        for missing in [Capability::CAP_SYS_ADMIN, Capability::CAP_DAC_OVERRIDE] {
            let others: Vec<Capability> = all.iter().copied().filter(|c| *c != missing).collect();
            let report = sockaccel_with(&others, &doctor).ok().json();
            assert_eq!(result(&report, "redirect"), "not_checked", "{missing}");
        }
        let report = sockaccel_with(&[Capability::CAP_SYS_ADMIN], &doctor);
        assert_eq!(report.code, Some(6), "{}", report.stderr);
        assert_eq!(result(&report.json(), "capabilities"), "fails");
    });
}

/// What `kallsyms_show_value` of the kernel says of a process without
/// `CAP_SYSLOG`.
fn hides_addresses() -> bool {
    let number = |name: &str| -> i32 {
        let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).expect(name);
        text.trim().parse().expect("a number")
    };
    number("kptr_restrict") > 0 || number("perf_event_paranoid") > 1
}

/// Event loops, which wait in epoll: the programs need all their privileges to
/// tell them from blocking readers.
fn assert_accelerates(cgroup: &Cgroup, bpffs: &Bpffs) {
    let counted = || -> u64 {
        let stats = bpffs.sh("stats --json").ok().json();
        stats["redirected_messages"].as_u64().expect("a count")
    };
    let _joined = cgroup.join();
    let pair = Pair::new();
    let before = counted();
    let deadline = Deadline::seconds(20);
    let wait = |end: &TcpStream| {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll
            .add(end, EpollEvent::new(events, 0))
            .expect("epoll_ctl");
        let mut event = [EpollEvent::empty()];
        epoll.wait(&mut event, 10_000_u16).expect("epoll_wait");
        recv_all(end, &mut [0; 4], deadline);
    };
    while counted() < before + 20 {
        deadline.check("redirected messages to readers that wait in epoll");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    wait(&pair.server);
                    send_all(&pair.server, b"pong", deadline);
                }
            });
            for _ in 0..20 {
                // So that the reader sleeps in epoll again.
                std::thread::sleep(std::time::Duration::from_millis(5));
                send_all(&pair.client, b"ping", deadline);
                wait(&pair.client);
            }
        });
    }
}

/// Also where somebody has opened the directories to all.
#[test]
fn nobody_else_opens_a_pin() {
    let bpffs = mounted();
    let cgroup = Cgroup::new("pins");
    let path = cgroup.path().to_str().expect("a path");
    let enable = format!("enable --allow fionread --cgroup {path}");
    bpffs.sh(&enable).ok();
    let base = bpffs.base();
    let base_mode = fs::metadata(&base).expect("metadata").mode() & 0o777;
    assert_eq!(base_mode, 0o700, "{base_mode:03o}");
    let all = pins(&base);
    assert!(all.len() > 20, "{all:?}");
    for pin in &all {
        let metadata = fs::metadata(pin).expect("metadata");
        assert_eq!(metadata.mode() & 0o777, 0o600, "{}", pin.display());
        assert_eq!(metadata.uid(), 0);
        open_pinned(pin).unwrap_or_else(|e| panic!("root, {}: {e}", pin.display()));
    }

    let copy = bpffs.dir().join("this-test");
    fs::copy(std::env::current_exe().expect("this test"), &copy).expect("copy");
    for mode in [0o700, 0o755] {
        fs::set_permissions(&base, fs::Permissions::from_mode(mode)).expect("chmod");
        let output = Command::new(&copy)
            .args(["--ignored", "--exact", "--nocapture", "as_nobody"])
            .env(
                "SOCKACCEL_TEST_PINS",
                std::env::join_paths(&all).expect("paths"),
            )
            .current_dir("/")
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .expect("run as nobody");
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{mode:03o}: {text}\n{errors}");
        assert!(text.contains("1 passed"), "{text}");
    }
}

#[test]
#[ignore = "run by nobody_else_opens_a_pin"]
fn as_nobody() {
    let all = std::env::var_os("SOCKACCEL_TEST_PINS").expect("set by root");
    for pin in std::env::split_paths(&all) {
        let error = open_pinned(&pin).expect_err("not for nobody");
        let denied = std::io::ErrorKind::PermissionDenied;
        assert_eq!(error.kind(), denied, "{}: {error}", pin.display());
        fs::remove_file(&pin).expect_err("not for nobody");
    }
}

/// No command uses what a user has put in the place of the directory of instances; the
/// words of one that enables.
fn refused_as_of_nobody(bpffs: &Bpffs, cgroup: &Cgroup) -> String {
    let path = cgroup.path().to_str().expect("a path");
    let enable = format!("enable --allow fionread --cgroup {path}");
    for words in [&*enable, "status", "endpoint add 10.0.0.1", "disable"] {
        let ran = bpffs.sh(words);
        assert_eq!(ran.code, Some(3), "{words}: {}", ran.stderr);
        let text = format!("{} belongs to user {NOBODY}", bpffs.base().display());
        assert!(ran.stderr.contains(&text), "{words}: {}", ran.stderr);
    }
    enable
}

/// Everybody may make directories on a bpffs: one that waits for root's pins
/// would let its owner take them away.
#[test]
fn a_directory_that_nobody_made_is_not_used() {
    let bpffs = mounted();
    let cgroup = Cgroup::new("squat");
    let base = bpffs.base();
    let made = Command::new("mkdir")
        .args(["-p"])
        .arg(base.join("default"))
        .uid(NOBODY)
        .gid(NOBODY)
        .status()
        .expect("mkdir");
    assert!(made.success());
    let enable = refused_as_of_nobody(&bpffs, &cgroup);
    assert_eq!(pins(&base), Vec::<PathBuf>::new());
    fs::remove_dir_all(&base).expect("as the message says");
    bpffs.sh(&enable).ok();
}

/// Nor is a link of that name, which would let root's commands clear away what looks
/// like leftovers somewhere else.
#[test]
fn a_link_to_another_directory_is_not_used() {
    let bpffs = mounted();
    let cgroup = Cgroup::new("link");
    let victim = bpffs.dir().join("victim");
    let precious = victim.join("_precious");
    fs::create_dir_all(&precious).expect("mkdir");
    let made = Command::new("ln")
        .arg("-s")
        .arg(&victim)
        .arg(bpffs.base())
        .uid(NOBODY)
        .gid(NOBODY)
        .status()
        .expect("ln");
    assert!(made.success());
    refused_as_of_nobody(&bpffs, &cgroup);
    assert!(precious.exists());
    fs::remove_file(bpffs.base()).expect("rm");

    // What is no bpffs at all is not cleared either.
    fs::create_dir_all(bpffs.dir().join("sockaccel/_precious")).expect("mkdir");
    let disable = ["disable", "--bpffs", bpffs.dir().to_str().expect("UTF-8")];
    let ran = sockaccel(&disable);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("is not on a bpffs"), "{}", ran.stderr);
    assert!(bpffs.dir().join("sockaccel/_precious").exists());
}

const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const FORGED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 99);

/// A container beside the victim's, which hears what is sent to an address
/// that nobody has.
fn beside(victim: &Netns) -> Netns {
    let attacker = Netns::new("attacker");
    victim.veth(("sat0", "10.0.0.1/24"), &attacker, ("sat1", "10.0.0.2/24"));
    let mac = "02:00:00:00:00:99";
    attacker.ip(&["link", "set", "sat1", "address", mac]);
    let to = FORGED.to_string();
    victim.ip(&["neigh", "replace", &to, "lladdr", mac, "dev", "sat0"]);
    attacker
}

/// Runs the closure in the namespace with `CAP_NET_RAW` and nothing else.
fn attack<T: Send>(attacker: &Netns, body: impl FnOnce(&RawTcp) -> T + Send) -> T {
    attacker.enter(|| {
        let held = [Capability::CAP_NET_RAW].into_iter().collect();
        caps::set(None, CapSet::Effective, &held).expect("drop the others");
        body(&RawTcp::open())
    })
}

/// Both numbers of the only connection that the test knows of. A lone one is given up
/// after a second, which on a slow machine has passed.
fn halves(instance: &Instance) -> Option<[u32; 2]> {
    let rows = instance.dump("connections");
    let id = rows.first()?["conn_id"].as_str().expect("a conn_id");
    let id = u64::from_str_radix(id, 16).expect("hexadecimal");
    Some([id >> 32, id & 0xffff_ffff].map(|half| u32::try_from(half).expect("32 bits")))
}

/// A whole handshake with a sequence number of the attacker's choice, and some
/// data: as on plain TCP, this makes a connection.
fn forge(raw: &RawTcp, from_port: u16, to_port: u16, seq: u32) {
    let segment = |flags, seq, ack, payload: &[u8]| Segment {
        from: (FORGED, from_port),
        to: (VICTIM, to_port),
        seq,
        ack,
        flags,
        payload: payload.to_vec(),
    };
    raw.send(&segment(SYN, seq.wrapping_sub(1), 0, b""));
    let answer = raw
        .hear((FORGED, from_port), SYN | ACK)
        .expect("a SYN-ACK for the forged address");
    let ack = answer.seq.wrapping_add(1);
    raw.send(&segment(ACK, seq, ack, b""));
    raw.send(&segment(ACK | PSH, seq, ack, b"injected"));
}

/// Takes the forged connection: it is there, with its data.
fn accepted(listener: &TcpListener) -> TcpStream {
    Deadline::seconds(10).wait(listener, PollFlags::POLLIN, "accept");
    let (stream, from) = listener.accept().expect("accept");
    assert_eq!(from.ip(), FORGED);
    wait_at_most(&stream, PollFlags::POLLIN, 5000);
    let mut buffer = [0; 20];
    let flags = nix::sys::socket::MsgFlags::MSG_PEEK;
    let n = nix::sys::socket::recv(stream.as_raw_fd(), &mut buffer, flags).expect("recv");
    assert_eq!(&buffer[..n], b"injected");
    stream
}

/// The attacker knows both numbers of the victim's connection and chooses one
/// of its own; the other is the kernel's choice.
#[test]
fn forged_segments_make_no_pair_with_a_victim() {
    const TRIES: u16 = 20;
    for lone in [true, false] {
        let victim_space = Netns::new("victim");
        let attacker = beside(&victim_space);
        let options = Options {
            listen: SocketAddr::from((VICTIM, 0)),
            ..Options::default()
        };
        let cgroup = Cgroup::new("forged");
        let instance = Instance::enable(&cgroup, &[]);
        let remote = victim_space.enter(|| listen(&options));
        let joined = cgroup.join();
        let listener = victim_space.enter(|| listen(&options));
        let deadline = Deadline::seconds(20);
        let (pair, mut numbers) = loop {
            deadline.check("a connection in the table");
            let pair = victim_space.enter(|| {
                if lone {
                    Pair::on(&remote, &options)
                } else {
                    Pair::with(&options)
                }
            });
            if let Some(numbers) = halves(&instance) {
                break (pair, numbers);
            }
        };
        let ports =
            [&pair.client, &pair.server].map(|end| end.local_addr().expect("getsockname").port());
        if !lone {
            warm_up(&instance, &pair);
        }
        let mut victim = Tagged::new("victim", 1, pair);
        let before = instance.stats();
        let to_port = listener.local_addr().expect("getsockname").port();
        let mut forged = Vec::new();
        for n in 0..TRIES {
            numbers.reverse();
            attack(&attacker, |raw| {
                forge(raw, 20_000 + n, to_port, numbers[0]);
                // And into the victim's connection itself, as its own peer.
                for flags in [RST, SYN, ACK | PSH, RST | ACK] {
                    let into = Segment {
                        from: (VICTIM, ports[0]),
                        to: (VICTIM, ports[1]),
                        seq: numbers[0],
                        ack: numbers[1],
                        flags,
                        payload: b"injected".to_vec(),
                    };
                    raw.send(&into);
                }
            });
            forged.push(accepted(&listener));
            victim.exchange(5);
            victim.assert_quiet();
        }
        let after = assert_balanced(&instance);
        let (paired, redirected) = (
            after.delta(&before, "paired"),
            after.delta(&before, "redirected_messages"),
        );
        assert_eq!(paired, 0, "{}", after.0);
        if lone {
            assert_eq!(redirected, 0, "{}", after.0);
        } else {
            assert_mostly_redirected(&before, &after, 900);
        }
        // None was even enrolled: they have no local peer.
        let alone = after.by_reason("skipped", "no_local_peer");
        assert!(alone >= u64::from(TRIES), "{}", after.0);
        drop(joined);
    }
}

/// Bytes that a map holds, as the kernel counts them.
fn memory(pin: &Path) -> u64 {
    let fd = open_pinned(pin).unwrap_or_else(|e| panic!("{}: {e}", pin.display()));
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let info = info.expect("fdinfo");
    info.lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .and_then(|value| value.trim().parse().ok())
        .expect("memlock")
}

/// One process opens many more connections than there is room for.
#[test]
fn connections_fill_the_tables_and_no_more() {
    const ROOM: usize = 64;
    const PAIRS: usize = 300;
    let cgroup = Cgroup::new("many");
    let instance = Instance::enable(&cgroup, &["--max-sockets", &ROOM.to_string()]);
    let dir = instance.dir();
    let maps: Vec<PathBuf> = pins(&dir)
        .into_iter()
        .filter(|pin| {
            open_pinned(pin).is_ok_and(|fd| {
                let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
                info.is_ok_and(|info| info.contains("map_type:"))
            })
        })
        .collect();
    assert!(maps.len() >= 10, "{maps:?}");
    let total = || maps.iter().map(|map| memory(map)).sum::<u64>();
    let joined = cgroup.join();
    let empty = total();
    let fill = |pairs: usize| -> Vec<Pair> {
        let options = Options::default();
        let listener = listen(&options);
        (0..pairs).map(|_| Pair::on(&listener, &options)).collect()
    };
    let first = fill(ROOM);
    let filled = total();
    assert!(
        filled - empty <= 512 * ROOM as u64,
        "{empty} to {filled} bytes"
    );
    let more = fill(PAIRS);
    assert_eq!(total(), filled, "beyond the room for {ROOM}");
    for (table, rows) in [("sockhash", ROOM), ("connections", 2 * ROOM)] {
        let found = instance.dump(table).len();
        assert!(found <= rows, "{found} rows in {table}, room for {ROOM}");
    }
    let stats = assert_balanced(&instance);
    assert!(stats.by_reason("skipped", "map_full") > 0, "{}", stats.0);
    println!("maps: {empty} bytes when empty, {filled} when full");
    for map in &maps {
        println!("  {} {}", map.display(), memory(map));
    }
    drop((first, more));
    drop(joined);
    Deadline::seconds(20).until("empty tables", || total() <= empty);
}

/// Small messages cost the kernel most, 1 KiB each: they are counted.
#[test]
fn a_queue_of_small_messages_is_bounded() {
    const SENT: usize = 5000;
    let path = include_str!("../src/bpf/path.h");
    let (_, rest) = path.split_once("#define SA_HARD_MESSAGES ").expect("it");
    let hard: u64 = rest
        .lines()
        .next()
        .expect("a line")
        .parse()
        .expect("a number");
    assert!(SECURITY.contains(&format!("{hard} messages")));
    let cgroup = Cgroup::new("small");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    let deadline = Deadline::seconds(20);
    for _ in 0..SENT {
        send_all(&pair.client, b"x", deadline);
    }
    let rows = instance.dump("sockhash");
    let waiting = rows
        .iter()
        .map(|row| row["unread_messages"].as_u64().expect("a count"));
    let most = waiting.max().expect("two rows");
    assert!(most > 0 && most <= hard, "{most} messages wait");
    recv_all(&pair.server, &mut [0; SENT], deadline);
}
