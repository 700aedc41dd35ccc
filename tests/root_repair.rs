//! What others unpin, detach or cannot see: `status` tells, and the next command makes
//! it whole again. Nobody who only looks keeps others from their work.

mod common;

use std::fs;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use ipnet::IpNet;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapHandle;
use serde_json::Value;
use serde_json::json;
use sockaccel::maps::Table;
use sockaccel::maps::layout::Cidr;
use sockaccel::sys::bpf;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::hidden;
use common::instance::Instance;
use common::instance::Ran;
use common::other_program::attached_to;
use common::pair::Pair;
use common::process::Process;
use common::stream::recv_all;
use common::stream::send_all;
use common::warm::round_trip;
use common::warm::warm_up;

const BINARY: &str = env!("CARGO_BIN_EXE_sockaccel");

fn id_of(cgroup: &Cgroup) -> u64 {
    fs::metadata(cgroup.path()).expect("a cgroup").ino()
}

fn missing(instance: &Instance) -> Value {
    instance.run(&["status", "--json"]).ok().json()["missing"].clone()
}

fn unpin(pin: &Path) {
    fs::remove_file(pin).unwrap_or_else(|e| panic!("{}: {e}", pin.display()));
}

fn detach(pin: &Path) {
    let link = bpf::open_pinned(pin).expect("a link");
    bpf::link_detach(link.as_fd()).expect("BPF_LINK_DETACH");
}

/// What was done to an instance, given its directory and that of its cgroup in it.
type Harm = fn(&Path, &Path);

/// And what `status` says is missing then.
const HARM: [(&str, Harm, &[&str]); 7] = [
    (
        "unpinned link",
        |_, links| unpin(&links.join("sa_sockops")),
        &["CGROUP/sa_sockops"],
    ),
    (
        "detached link",
        |_, links| detach(&links.join("sa_sockops")),
        &["CGROUP/sa_sockops"],
    ),
    (
        "detached guard",
        |_, links| detach(&links.join("sa_setsockopt")),
        &["CGROUP/sa_setsockopt"],
    ),
    (
        "unpinned program",
        |dir, _| unpin(&dir.join("sa_verdict")),
        &["sa_verdict"],
    ),
    // As a repair leaves them that is killed.
    (
        "a link with the other program",
        |dir, links| {
            let link = bpf::open_pinned(&links.join("sa_sockops")).expect("a link");
            let program = bpf::open_pinned(&dir.join("sa_sockops_off")).expect("a program");
            bpf::link_update(link.as_fd(), program.as_fd()).expect("BPF_LINK_UPDATE");
        },
        &[],
    ),
    (
        "no verdict",
        |dir, _| {
            let programs = MapHandle::from_pinned_path(dir.join("sa_programs")).expect("a map");
            programs.delete(&0_u32.to_ne_bytes()).expect("an entry");
        },
        &[],
    ),
    (
        "the program of all sockets",
        |dir, _| {
            let link = dir.join("link-skmsg");
            // Before Linux 6.10 there is none.
            if link.exists() {
                detach(&link);
            }
        },
        &[],
    ),
];

#[test]
fn what_others_took_away_is_told_and_made_again() {
    let cgroup = Cgroup::new("repair");
    let instance = Instance::enable(&cgroup, &["--admission", "all"]);
    let whole = attached_to(cgroup.path());
    let directory = format!("cgroup-{}", id_of(&cgroup));
    let _joined = cgroup.join();
    let enable = || instance.enable_more(&[&cgroup], &[]);
    let upgrade = || instance.run(&["upgrade"]);
    let commands: [(&str, &dyn Fn() -> Ran); 2] = [("enable", &enable), ("upgrade", &upgrade)];
    for (command, again) in commands {
        for (name, harm, names) in HARM {
            let case = format!("{command} after: {name}");
            harm(&instance.dir(), &instance.dir().join(&directory));
            let names: Vec<String> = names
                .iter()
                .map(|name| name.replace("CGROUP", &directory))
                .collect();
            assert_eq!(missing(&instance), json!(names), "{case}");
            if let Some(name) = names.first() {
                let told = instance.run(&["status"]).ok().stdout;
                assert!(told.contains(&format!("by others: {name}\n")), "{told}");
            }
            again().ok();
            println!("{case}");
            warm_up(&instance, &Pair::new());
            assert_eq!(missing(&instance), json!([]), "{case}");
            let now = attached_to(cgroup.path());
            assert_eq!(
                now.map(|ids| ids.len()),
                whole.clone().map(|ids| ids.len()),
                "{case}"
            );
        }
    }
}

/// The guards of what is enrolled are those of a cgroup on its way out, too.
#[test]
fn a_draining_cgroup_that_is_enabled_again_has_all_of_its_links() {
    let [leaving, lasting] = ["repair-leaving", "repair-lasting"].map(Cgroup::new);
    let instance = Instance::try_enable(&[&leaving, &lasting], &[]).expect("enable");
    let whole = attached_to(leaving.path()).map(|ids| ids.len());
    let _joined = leaving.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    send_all(&pair.client, b"unread", Deadline::seconds(10));
    let path = leaving.path().to_str().expect("UTF-8");
    let disable = ["disable", "--cgroup", path, "--timeout", "0"];
    assert_eq!(instance.run(&disable).code, Some(7));
    let directory = format!("draining-{}", id_of(&leaving));
    let names = ["sa_setsockopt", "sa_sockops"].map(|name| format!("{directory}/{name}"));
    for name in &names {
        unpin(&instance.dir().join(name));
    }
    assert_eq!(missing(&instance), json!(names));
    instance.enable_more(&[&leaving], &[]).ok();
    assert_eq!(missing(&instance), json!([]));
    assert_eq!(attached_to(leaving.path()).map(|ids| ids.len()), whole);
    warm_up(&instance, &Pair::new());
    let mut got = [0; 6];
    recv_all(&pair.server, &mut got, Deadline::seconds(10));
    assert_eq!(&got, b"unread");
    round_trip(&pair);
}

/// `identity list | less`: more than a pipe holds, and nobody reads on.
#[test]
fn a_list_that_nobody_reads_to_its_end_holds_up_no_command() {
    const NUMBER: u32 = 3000;
    let cgroup = Cgroup::new("pager");
    let instance = Instance::enable(&cgroup, &[]);
    let identities: Table<Cidr, u32> =
        Table::open(&instance.dir(), "sa_identities").expect("a map");
    for n in 0..NUMBER {
        let net: IpNet = format!("10.0.{}.{}/32", n / 256, n % 256)
            .parse()
            .expect("a network");
        identities.set(&Cidr::from(net), &7).expect("an entry");
    }
    for list in [
        &["identity", "list"][..],
        &["dump", "identities"],
        &["export"],
    ] {
        let mut command = Command::new(BINARY);
        command
            .args(list)
            .args(["--json", "--instance", instance.name()])
            .stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        let mut pipe = process.0.stdout.take().expect("a pipe");
        pipe.read_exact(&mut [0]).expect("it prints");
        let add = ["endpoint", "add", "10.0.0.1", "--instance", instance.name()];
        let added = Ran::of(Command::new("timeout").args(["20", BINARY]).args(add));
        assert_eq!(added.code, Some(0), "{list:?}: {added:?}");
        instance.run(&["endpoint", "del", "10.0.0.1"]).ok();
        drop((pipe, process));
    }
}

/// A cgroup that has no path in a container was not removed.
#[test]
fn cgroups_outside_of_a_container_are_not_taken_for_removed_ones() {
    let [cgroup, inside] = ["outside", "inside"].map(Cgroup::new);
    let instance = Instance::enable(&cgroup, &[]);
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), instance.run(&["export"]).ok().stdout).expect("write");
    let file = file.path().to_str().expect("UTF-8");
    let in_container = |args: &[&str]| {
        Ran::of(
            hidden::command(&inside, hidden::OWN)
                .arg(BINARY)
                .args(args)
                .args(["--instance", instance.name()]),
        )
    };
    let status = in_container(&["status"]).ok().stdout;
    let shown = format!("cgroup id {} (not visible from here)", id_of(&cgroup));
    assert!(status.contains(&shown), "{status}");
    assert!(!status.contains("removed"), "{status}");
    let exported = in_container(&["export"]).ok();
    assert!(
        exported.stderr.contains("1 cgroup of it cannot be seen"),
        "{exported:?}"
    );
    // One that is inside and gone is.
    let gone = Cgroup::new("gone");
    instance.enable_more(&[&gone], &[]).ok();
    let shown = format!("cgroup id {} (removed)", id_of(&gone));
    drop(gone);
    Deadline::seconds(20).until("the kernel has let go of it", || {
        in_container(&["status"]).ok().stdout.contains(&shown)
    });
    let applied = in_container(&["apply", "-f", file]);
    assert_eq!(applied.code, Some(1), "{applied:?}");
    let status = instance.run(&["status", "--json"]).ok().json();
    assert_eq!(
        status["cgroups"][0]["path"],
        json!(cgroup.path()),
        "{status}"
    );
}
