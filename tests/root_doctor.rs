//! The probes on the kernel that runs: as root, over loopback only.

mod common;

use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::thread;

use caps::CapSet;
use caps::Capability;
use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use libbpf_rs::libbpf_sys;
use nix::poll::PollFlags;
use nix::sched::CloneFlags;
use nix::sched::unshare;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::instance::sockaccel;
use common::pair::Options;
use common::pair::Pair;
use common::require_root;
use common::stream::recv_some;
use common::stream::send_all;
use serde_json::Value;
use sockaccel::doctor;
use sockaccel::doctor::Denied;
use sockaccel::doctor::Refusal;
use sockaccel::doctor::Risk;
use sockaccel::doctor::features;
use sockaccel::doctor::features::State;
use sockaccel::doctor::fionread;
use sockaccel::doctor::fionread::Fionread;
use sockaccel::sys;

const CGROUP: &[&str] = &["/sys/fs/cgroup/none-of-these-tests-looks-at-it"];
const ALL: &[Risk] = &[Risk::Fionread, Risk::KnownBadKernel];

/// Runs where capabilities and namespaces may be changed: they are a thread's.
fn in_thread<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(test)
            .join()
            .expect("the thread's own assertions")
    })
}

fn enrolled(socket: &TcpStream) -> MapHandle {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let map =
        MapHandle::create(MapType::Sockhash, Some("sa_test"), 4, 4, 1, &options).expect("SOCKHASH");
    map.update(&[0; 4], &socket.as_raw_fd().to_ne_bytes(), MapFlags::ANY)
        .expect("enrol");
    map
}

/// What FIONREAD says of `sent` bytes, and what read(2) then returns.
fn said_and_read(pair: &Pair, sent: &[u8]) -> (usize, usize) {
    let deadline = Deadline::seconds(5);
    send_all(&pair.client, sent, deadline);
    deadline.wait(&pair.server, PollFlags::POLLIN, "something to read");
    let said = sys::probe::unread(&pair.server).expect("FIONREAD");
    let mut buffer = [0; 64];
    let read = recv_some(&pair.server, &mut buffer, deadline);
    assert_eq!(&buffer[..read], sent);
    (said, read)
}

#[test]
fn root_fionread_agrees_with_what_read_returns() {
    require_root();
    let pair = Pair::with(&Options::blocking());
    let plain = said_and_read(&pair, b"a plain socket");
    assert_eq!(plain.0, plain.1, "FIONREAD is asked correctly");

    let _map = enrolled(&pair.server);
    let (said, read) = said_and_read(&pair, b"an enrolled one");
    match fionread::probe() {
        Fionread::Right => assert_eq!(said, read),
        Fionread::Wrong {
            waiting,
            reported,
            redirected,
        } => assert_eq!(
            said == read,
            redirected,
            "the probe says {reported} of {waiting}"
        ),
        Fionread::NotProbed { reason } => panic!("loopback is up here: {reason}"),
    }
}

/// Whatever it says of redirected bytes, the checks of `doctor` see the same.
#[test]
fn root_fionread_of_redirected_bytes_is_what_doctor_sees() {
    require_root();
    let probed = match fionread::of_redirected().expect("probed") {
        Fionread::Right => "ok",
        Fionread::Wrong { redirected, .. } => {
            assert!(redirected);
            "fails"
        }
        Fionread::NotProbed { reason } => panic!("{reason}"),
    };
    let doctor = sockaccel(&["doctor", "--json", "--timeout", "60"]).json();
    let rows = doctor["checks"].as_array().expect("an array");
    let row = rows
        .iter()
        .find(|row| row["check"] == "fionread_redirected");
    assert_eq!(row.expect("a row")["result"], probed, "{doctor:#}");
}

#[test]
fn root_fionread_is_the_same_where_loopback_is_down() {
    require_root();
    let here = fionread::probe();
    let there = in_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace whose loopback is down");
        fionread::probe()
    });
    assert_eq!(here, there);
}

/// Whose instance would take any connection of ours.
#[test]
fn root_checks_are_the_same_in_a_cgroup_that_is_accelerated() {
    let results = || {
        let doctor = sockaccel(&["doctor", "--json", "--timeout", "60"]).json();
        let rows = doctor["checks"].as_array().expect("an array").clone();
        let rows = rows.into_iter();
        let told = rows.map(|row| (row["check"].clone(), row["result"].clone()));
        // Of those that are about behaviour.
        let first = |(check, _): &(Value, Value)| *check != "redirect";
        told.skip_while(first).collect::<Vec<_>>()
    };
    let outside = results();
    assert!(outside.len() > 5, "{outside:?}");
    let cgroup = Cgroup::new("doctor");
    let instance = Instance::enable_blocking(&cgroup, &["--admission", "all"]);
    let _joined = cgroup.join();
    assert_eq!(results(), outside);
    assert_eq!(instance.stats().count("enrolled"), 0);
}

/// Whose instance would take any connection of ours.
#[test]
fn root_fionread_is_the_same_in_a_cgroup_that_is_accelerated() {
    require_root();
    let outside = [
        fionread::probe(),
        fionread::of_redirected().expect("outside"),
    ];
    let cgroup = Cgroup::new("fionread");
    let _instance = Instance::enable_blocking(&cgroup, &["--admission", "all"]);
    let _joined = cgroup.join();
    let inside = [
        fionread::probe(),
        fionread::of_redirected().expect("inside"),
    ];
    assert_eq!(outside, inside);
}

#[test]
fn root_fionread_that_cannot_be_probed_says_so() {
    require_root();
    let found = in_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace whose loopback is down");
        caps::drop(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).expect("drop");
        fionread::probe()
    });
    let Fionread::NotProbed { reason } = &found else {
        panic!("there was neither a loopback nor a way to one: {found:?}");
    };
    assert!(
        reason.contains("in a network namespace of its own"),
        "{reason}"
    );
}

#[test]
fn root_probing_leaves_nothing_behind() {
    require_root();
    let maps = || {
        libbpf_rs::query::MapInfoIter::default()
            .filter(|map| map.name == "sa_probe")
            .count()
    };
    // Other tests probe at the same time, and the kernel frees maps later.
    fionread::probe();
    Deadline::seconds(20).until("no map of a probe", || maps() == 0);
}

#[test]
fn root_features_are_those_that_load() {
    require_root();
    let found = features::probe();
    for feature in &found {
        println!("{feature}");
    }
    let iterator = found
        .iter()
        .find(|feature| feature.piece.to_string() == "BPF iter/sockmap programs")
        .expect("it is in the table");
    let btf = std::path::Path::new(features::KERNEL_BTF).exists();
    assert_eq!(iterator.state == State::Supported, btf);
    assert!(
        !found
            .iter()
            .any(|feature| matches!(feature.state, State::Unknown(_))),
        "{found:#?}"
    );
}

#[test]
fn root_enabling_is_refused_for_what_is_wrong_and_nothing_else() {
    require_root();
    let report = doctor::examine();
    for allowed in [&[][..], &[Risk::Fionread], &[Risk::KnownBadKernel], ALL] {
        let verdict = doctor::before_enable(CGROUP, allowed);
        let open: Vec<Risk> = report
            .risks
            .iter()
            .copied()
            .filter(|risk| !allowed.contains(risk))
            .collect();
        match verdict {
            Ok(found) => {
                assert_eq!(open, []);
                assert_eq!(found, report);
                assert!(report.risks.is_empty() || !report.warnings.is_empty());
            }
            Err(Refusal::Lacks { .. }) => {
                assert!(report.features.iter().any(|f| f.state == State::Missing));
            }
            Err(refusal) => {
                assert_eq!(refusal.exit_code(), 3);
                let text = refusal.to_string();
                println!("{text}");
                assert!(text.contains("Nothing was changed."), "{text}");
                assert!(text.contains(&format!("--cgroup {}", CGROUP[0])), "{text}");
                assert!(
                    open.iter()
                        .any(|risk| text.ends_with(&format!("--allow {risk}")))
                );
            }
        }
    }
}

#[test]
fn root_report_is_json() {
    require_root();
    let json = serde_json::to_value(doctor::examine()).expect("serializes");
    for field in ["kernel", "features", "fionread", "risks", "warnings"] {
        assert!(json.get(field).is_some(), "{field} in {json:#}");
    }
    println!("{json:#}");
}

#[test]
fn root_missing_capabilities_are_named() {
    require_root();
    let refusal = in_thread(|| {
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).expect("drop");
        doctor::before_enable(CGROUP, ALL).expect_err("CAP_NET_ADMIN is missing")
    });
    assert_eq!(refusal.exit_code(), 6);
    assert!(
        refusal.to_string().contains("lacks CAP_NET_ADMIN\n"),
        "{refusal}"
    );
}

/// Every capability of a user namespace is held, and none of them counts.
#[test]
fn root_of_a_user_namespace_is_refused() {
    require_root();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user"])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "inside_of_a_user_namespace"])
        .output()
        .expect("unshare(1)");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by root_of_a_user_namespace_is_refused"]
fn inside_of_a_user_namespace() {
    let refusal = doctor::before_enable(CGROUP, ALL).expect_err("bpf(2) is forbidden here");
    assert!(
        matches!(refusal, Refusal::Denied(Denied::Forbidden(_))),
        "{refusal}"
    );
    assert_eq!(refusal.exit_code(), 6);
}
