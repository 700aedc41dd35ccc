//! Inside of a container: mount, pid, cgroup and network namespaces of its
//! own, a read-only /sys, and cgroups whose top is the container's own.
//!
//! Each test starts this program again, inside, with the name of an ignored
//! one; nothing of what that mounts is seen outside.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use caps::Capability;
use nix::mount::MntFlags;
use nix::mount::MsFlags;
use nix::mount::mount;
use nix::mount::umount2;
use serde_json::Value;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::instance::Ran;
use common::instance::sockaccel;
use common::other_program::attached_to;
use common::pair::Pair;
use common::privileges::sockaccel_with;
use common::privileges::without_bpf;
use common::warm::round_trip;
use common::warm::warm_up;

/// What docs/containers.md says is enough where bpffs and tracefs are mounted.
const ENOUGH: [Capability; 4] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
    Capability::CAP_SYSLOG,
];

const BPFFS: &str = "/sys/fs/bpf";
const TRACEFS: &str = "/sys/kernel/tracing";
const CGROUPS: &str = "/sys/fs/cgroup";

/// A path that only the outside has.
const OUTSIDE: &str = "SOCKACCEL_TEST_OUTSIDE";

/// A container's view of /sys, from inside of the namespaces.
const ENTER: &str = "\
set -e
ip link set lo up
umount -R -l /sys
mount -t sysfs -o ro sysfs /sys
mount -t cgroup2 none /sys/fs/cgroup
exec \"$@\"
";

/// An open /proc of the outside.
const OUTSIDE_PROC: i32 = 9;

/// Runs the ignored test of this name inside of a new container, which has ended
/// then; its cgroup.
fn run_inside(test: &str) -> Cgroup {
    let cgroup = Cgroup::new("container");
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "exec {OUTSIDE_PROC}</proc; echo $$ >\"$0/cgroup.procs\" && exec \"$@\""
        ))
        .arg(cgroup.path())
        .args(["unshare", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--cgroup", "--net", "--mount-proc"])
        .args(["sh", "-c", ENTER, "sh"])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "--nocapture", test])
        .env(OUTSIDE, cgroup.path())
        .output()
        .expect("unshare(1)");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("1 passed"), "{said}\n{errors}");
    cgroup
}

/// The number that a process of the outside has in its own pid namespace.
fn number_inside(pid: &Value) -> u32 {
    let status = format!("/proc/self/fd/{OUTSIDE_PROC}/{pid}/status");
    let status = fs::read_to_string(&status).unwrap_or_else(|e| panic!("{status}: {e}"));
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let last = numbers.and_then(|numbers| numbers.split_whitespace().last());
    last.and_then(|last| last.parse().ok()).expect("a number")
}

fn mounted(kind: &str, at: &str, flags: MsFlags) {
    mount(Some(kind), at, Some(kind), flags, None::<&str>)
        .unwrap_or_else(|e| panic!("mount {kind} on {at}: {e}"));
}

/// `enable` with all risks allowed; the instance's name is the same for all.
fn enable(held: Option<&[Capability]>, cgroup: &Path, more: &[&str]) -> Ran {
    let path = cgroup.to_str().expect("a path");
    let allow = ["--allow", "fionread,known-bad-kernel"];
    let args = [&["enable", "--cgroup", path][..], &allow, more].concat();
    match held {
        Some(held) => sockaccel_with(held, &args),
        None => sockaccel(&args),
    }
}

fn assert_fails(ran: &Ran, code: i32, texts: &[&str]) {
    assert_eq!(ran.code, Some(code), "{}", ran.stderr);
    for text in texts {
        assert!(ran.stderr.contains(text), "no {text:?} in: {}", ran.stderr);
    }
}

#[test]
fn with_a_bpffs_everything_works() {
    run_inside("inside_with_a_bpffs");
}

#[test]
#[ignore = "run by with_a_bpffs_everything_works"]
fn inside_with_a_bpffs() {
    mounted("bpf", BPFFS, MsFlags::empty());
    let cgroup = Cgroup::new("inside");
    assert!(cgroup.path().starts_with(CGROUPS), "{cgroup:?}");
    let instance = Instance::enable(&cgroup, &[]);
    {
        let _joined = cgroup.join();
        let pair = Pair::new();
        warm_up(&instance, &pair);
        let rows = instance.dump("sockhash");
        assert_eq!(rows.len(), 2);
        // A process has another number outside.
        let own = std::process::id().to_string();
        for row in &rows {
            assert_ne!(row["pid"].to_string(), own);
            assert_eq!(number_inside(&row["pid"]), std::process::id());
        }
        let explain = ["explain", "--pid", &own, "--json"];
        let told = instance.run(&explain).ok().json();
        assert_eq!(
            told["connections"][0]["ends"][0]["cgroup"],
            cgroup.path().display().to_string(),
            "{told}"
        );
    }
    let status = instance.run(&["status", "--json"]).ok().json();
    assert_eq!(
        status["cgroups"][0]["path"]
            .as_str()
            .or(status["cgroups"][0].as_str()),
        cgroup.path().to_str(),
        "{status:#}"
    );
    instance.disable().ok();

    let allow = ["--allow", "fionread,known-bad-kernel"];
    let report = sockaccel(&[&["doctor", "--json", "--timeout", "60"][..], &allow].concat()).ok();
    let report = report.json();
    let rows = report["checks"].as_array().expect("an array");
    for name in ["redirect", "splice", "drain", "bpffs", "cgroup_layout"] {
        let row = rows.iter().find(|row| row["check"] == name);
        assert_eq!(row.expect("a row")["result"], "ok", "{report:#}");
    }
}

#[test]
fn four_capabilities_are_enough() {
    run_inside("inside_with_four_capabilities");
}

#[test]
#[ignore = "run by four_capabilities_are_enough"]
fn inside_with_four_capabilities() {
    mounted("bpf", BPFFS, MsFlags::empty());
    mounted("tracefs", TRACEFS, MsFlags::empty());
    let cgroup = Cgroup::new("inside");
    // CAP_SYSLOG matters only where the kernel hides its addresses.
    for missing in &ENOUGH[..3] {
        let others: Vec<Capability> = ENOUGH.into_iter().filter(|c| c != missing).collect();
        let refused = enable(Some(&others), cgroup.path(), &[]);
        let text = format!("enable refused: the process lacks {missing}\n");
        assert_fails(&refused, 6, &[&text, "Nothing was changed."]);
        assert!(!Path::new(BPFFS).join("sockaccel").exists());
    }
    enable(Some(&ENOUGH), cgroup.path(), &[]).ok();
    {
        let _joined = cgroup.join();
        let pair = Pair::new();
        for _ in 0..10 {
            round_trip(&pair);
        }
    }
    let stats = sockaccel_with(&[], &["stats", "--json"]).ok().json();
    assert!(stats["redirected_messages"].as_u64() > Some(10), "{stats}");
    sockaccel_with(&[], &["disable"]).ok();
}

#[test]
fn nothing_is_left_of_an_instance_on_a_bpffs_of_its_own() {
    let cgroup = run_inside("inside_leaving_an_instance");
    Deadline::seconds(60).until("no program on the cgroup", || {
        attached_to(cgroup.path()).iter().all(Vec::is_empty)
    });
}

#[test]
#[ignore = "run by nothing_is_left_of_an_instance_on_a_bpffs_of_its_own"]
fn inside_leaving_an_instance() {
    mounted("bpf", BPFFS, MsFlags::empty());
    // This cgroup outlives the container.
    enable(None, Path::new(CGROUPS), &[]).ok();
    let [sock_ops, setsockopt] = attached_to(Path::new(CGROUPS));
    assert!(!sock_ops.is_empty() && !setsockopt.is_empty());
}

#[test]
fn a_seccomp_filter_that_forbids_bpf_is_named() {
    run_inside("inside_without_bpf");
}

#[test]
#[ignore = "run by a_seccomp_filter_that_forbids_bpf_is_named"]
fn inside_without_bpf() {
    mounted("bpf", BPFFS, MsFlags::empty());
    mounted("tracefs", TRACEFS, MsFlags::empty());
    let refused = without_bpf(|| enable(None, Path::new(CGROUPS), &[]));
    let text = "the kernel forbids this process to create a BPF map";
    assert_fails(
        &refused,
        6,
        &[text, "a seccomp filter", "Nothing was changed."],
    );
}

#[test]
fn without_a_bpffs_it_is_mounted_or_the_error_says_how() {
    run_inside("inside_without_a_bpffs");
}

#[test]
#[ignore = "run by without_a_bpffs_it_is_mounted_or_the_error_says_how"]
fn inside_without_a_bpffs() {
    let cgroup = Cgroup::new("inside");
    let refused = enable(Some(&ENOUGH), cgroup.path(), &[]);
    // Without a tracefs, too.
    assert_fails(&refused, 6, &["lacks CAP_SYS_ADMIN\n"]);
    mounted("tracefs", TRACEFS, MsFlags::empty());
    let refused = enable(Some(&ENOUGH), cgroup.path(), &[]);
    let texts = [
        "cannot mount bpffs on /sys/fs/bpf",
        "needs CAP_SYS_ADMIN",
        "outside of the container:  mount -t bpf bpf /sys/fs/bpf",
    ];
    assert_fails(&refused, 6, &texts);
    let nowhere = enable(None, cgroup.path(), &["--bpffs", "/sys/fs/nowhere"]);
    assert_fails(&nowhere, 1, &["/sys/fs/nowhere", "--bpffs DIR"]);

    // A read-only /sys does not matter: mounting writes nothing there.
    enable(None, cgroup.path(), &[]).ok();
    sockaccel(&["disable"]).ok();
    umount2(BPFFS, MntFlags::empty()).expect("umount");
    mounted("bpf", BPFFS, MsFlags::MS_RDONLY);
    let read_only = enable(None, cgroup.path(), &[]);
    assert_fails(&read_only, 1, &["Read-only file system", "--bpffs DIR"]);
}

#[test]
fn cgroups_above_its_own_are_out_of_reach() {
    run_inside("inside_looking_for_cgroups");
}

#[test]
#[ignore = "run by cgroups_above_its_own_are_out_of_reach"]
fn inside_looking_for_cgroups() {
    mounted("bpf", BPFFS, MsFlags::empty());
    let outside = std::env::var(OUTSIDE).expect("set outside");
    let refused = enable(None, Path::new(&outside), &[]);
    let texts = [
        "cannot open cgroup /sys/fs/cgroup",
        "as far as this cgroup namespace shows them",
        "outside of the container",
    ];
    assert_fails(&refused, 1, &texts);
    // The top of what it sees is its own, and can be named. Nothing is written there.
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    let none = None::<&str>;
    mount(none, CGROUPS, none, read_only, none).expect("a read-only mount");
    enable(None, Path::new(CGROUPS), &[]).ok();
    let run = sockaccel(&["run", "--allow", "fionread,known-bad-kernel", "--", "true"]);
    assert_fails(
        &run,
        125,
        &["cannot create cgroup", "Read-only file system"],
    );
    sockaccel(&["disable"]).ok();

    umount2(CGROUPS, MntFlags::empty()).expect("umount");
    let none = enable(None, Path::new(CGROUPS), &[]);
    assert_fails(&none, 1, &["mount -t cgroup2 none DIR"]);
}

/// Every capability is held there, and none counts for bpf(2).
#[test]
fn in_a_user_namespace_it_is_refused() {
    let cgroup = Cgroup::new("userns");
    let path = cgroup.path().display().to_string();
    let texts = [
        "the kernel forbids this process to create a BPF map",
        "a user namespace",
    ];
    let enable = in_user_namespace(&["enable", "--allow", "fionread", "--cgroup", &path]);
    assert_fails(&enable, 6, &texts);
    let way_out = format!(
        "Outside of the container:  sudo sockaccel enable --allow fionread --cgroup {path}\n"
    );
    assert_fails(&enable, 6, &[&way_out]);

    let instance = Instance::enable(&cgroup, &[]);
    for command in [&["adopt"][..], &["upgrade", "--again"]] {
        let words = [command, &["--instance", instance.name()]].concat();
        let way_out = format!("container:  sudo sockaccel {}\n", words.join(" "));
        let ran = in_user_namespace(&words);
        assert_fails(&ran, 6, &[&texts[..], &[&way_out]].concat());
    }
}

fn in_user_namespace(args: &[&str]) -> Ran {
    Ran::of(
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "--cgroup", "--net"])
            .args(["--pid", "--fork", "--mount-proc"])
            .arg(env!("CARGO_BIN_EXE_sockaccel"))
            .args(args),
    )
}
