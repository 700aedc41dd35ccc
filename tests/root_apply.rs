//! The whole desired state: read back as it was set, put back when it fails,
//! and under traffic never half-visible.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use serde_json::Value;
use sockaccel::maps::layout::Config;
use tempfile::TempDir;
use zerocopy::{FromBytes, IntoBytes};

use common::cgroup::Cgroup;
use common::instance::{Instance, Ran, Stats};
use common::other_program::OtherProgram;
use common::pair::{Options, Pair, listen};
use common::warm::{round_trip, warm_up};

const SERVER: &str = "127.0.0.1";
const CLIENT: &str = "127.0.9.1";
/// Rules between those of SERVER and of CLIENT, in the order in which they are
/// written: they make the time between the two long.
const BETWEEN: u32 = 1000;

/// An instance, and files for it.
struct Bed {
    dir: TempDir,
    instance: Instance,
    cgroup: Cgroup,
}

impl Bed {
    fn new(enable: &[&str]) -> Self {
        let cgroup = Cgroup::new("apply");
        Self {
            dir: TempDir::new().expect("a directory"),
            instance: Instance::enable(&cgroup, enable),
            cgroup,
        }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    }

    /// What every file of this bed begins with.
    fn head(&self, more: &str) -> String {
        let cgroup = self.cgroup.path().display();
        format!("cgroups = [\"{cgroup}\"]\nallow = [\"fionread\"]\n{more}\n")
    }

    fn apply(&self, file: &Path) -> Ran {
        let file = file.to_str().expect("UTF-8");
        self.instance.run(&["apply", "--json", "-f", file])
    }

    fn export(&self) -> String {
        self.instance.run(&["export"]).ok().stdout
    }

    fn run(&self, command: &str) -> Ran {
        self.instance.run(&command.split(' ').collect::<Vec<_>>())
    }
}

#[test]
fn what_is_fixed_changes_by_export_disable_and_apply() {
    let bed = Bed::new(&["--max-sockets=1000", "--port=80"]);
    bed.run("endpoint add 10.0.0.7 --identity 1001").ok();
    bed.run("policy add 10.0.0.7 egress any tcp/80 allow").ok();
    let refused = bed
        .instance
        .enable_more(&[&bed.cgroup], &["--max-sockets=2000"]);
    assert_eq!(refused.code, Some(1));
    let name = bed.instance.name();
    let way_out = format!(
        "max_sockets in FILE:  sockaccel export --instance {name} >FILE, edit it, \
         sockaccel disable --instance {name}, sockaccel apply -f FILE --instance {name}   ("
    );
    assert!(refused.stderr.contains(&way_out), "{}", refused.stderr);

    let was = bed.export();
    let wanted = was.replace("max_sockets = 1000", "max_sockets = 2000");
    assert_ne!(was, wanted);
    let file = bed.file("edited.toml", &wanted);
    bed.instance.disable().ok();
    assert!(changed(bed.apply(&file)));
    assert_eq!(bed.export(), wanted);
}

fn changed(ran: Ran) -> bool {
    ran.ok().json()["changed"].as_bool().expect("a boolean")
}

#[test]
fn what_commands_set_is_exported_and_applied_as_it_was() {
    let bed = Bed::new(&[
        "--port=80,8000-8080",
        "--exclude-port=8001",
        "--cidr=127.0.0.0/8,fd00::/64",
        "--exclude-cidr=127.0.0.3",
        "--scope=endpoints",
        "--blocking-readers=accelerate",
        "--max-sockets=1000",
        "--budget-messages=7",
        "--budget-bytes=7000",
        "--stream-limit=77",
        "--admission=all",
    ]);
    for command in [
        "endpoint add 10.0.0.7 --identity 1001",
        "endpoint add fd00::7",
        "endpoint add --host --identity 9",
        "identity add 10.1.0.0/16 1002",
        "identity add ::/0 1003",
        "identity add 0.0.0.0/0 1004",
        "service add 10.96.0.1:443 --accelerate",
        "service add [fd00::1]:53",
        "policy add 10.0.0.7 egress 1002 tcp/8080 allow",
        "policy add 10.0.0.7 egress any deny",
        "policy add fd00::7 ingress any tcp proxy:10000",
        "policy add fd00::7 ingress 7 allow",
    ] {
        bed.run(command).ok();
    }
    let file = bed.export();
    let path = bed.file("same.toml", &file);
    assert!(!changed(bed.apply(&path)), "{file}");
    assert!(!changed(bed.apply(&path)));
    assert_eq!(bed.export(), file);

    let tables = ["endpoints", "identities", "policy", "services"];
    let dump = |of: &Instance| -> Vec<Vec<String>> {
        tables
            .iter()
            .map(|table| {
                let mut rows: Vec<String> =
                    of.dump(table).iter().map(ToString::to_string).collect();
                rows.sort();
                rows
            })
            .collect()
    };
    let before = dump(&bed.instance);
    // From nothing, and from something quite different.
    let config = |of: &Instance| {
        let mut config = of.run(&["dump", "config", "--json"]).ok().json();
        config["generation"] = Value::Null;
        config["changing"] = Value::Null;
        config
    };
    let config_before = config(&bed.instance);
    bed.instance.disable().ok();
    assert!(changed(bed.apply(&path)), "from nothing");
    assert_eq!(dump(&bed.instance), before);
    assert_eq!(config(&bed.instance), config_before);
    let other = bed.file(
        "other.toml",
        &bed.head("max_sockets = 1000\nexclude_ports = [9]"),
    );
    assert!(changed(bed.apply(&other)));
    assert!(dump(&bed.instance).iter().all(Vec::is_empty));
    assert!(changed(bed.apply(&path)), "back");
    assert_eq!(dump(&bed.instance), before);
    assert_eq!(config(&bed.instance), config_before);
    assert_eq!(bed.export(), file);
    assert!(!changed(bed.apply(&path)));
}

#[test]
fn a_dry_run_shows_the_difference_and_changes_nothing() {
    let bed = Bed::new(&[]);
    bed.run("endpoint add 10.0.0.7").ok();
    bed.run("policy add 10.0.0.7 egress any tcp/80 allow").ok();
    let before = bed.export();
    let to = bed.head(
        "scope = \"endpoints\"\n[[endpoints]]\naddress = \"10.0.0.7\"\n[[policy]]\n\
         endpoint = \"10.0.0.7\"\ndirection = \"egress\"\nidentity = \"any\"\n\
         traffic = \"tcp/80\"\nverdict = \"deny\"",
    );
    let path = bed.file("to.toml", &to).display().to_string();
    let ran = bed.instance.run(&["apply", "-f", &path, "--dry-run"]).ok();
    let expected = "- scope local\n+ scope endpoints\n\
                    - policy 10.0.0.7 egress any tcp/80 allow\n\
                    + policy 10.0.0.7 egress any tcp/80 deny\n";
    assert_eq!(ran.stdout, expected);
    let json = bed
        .instance
        .run(&["apply", "-f", &path, "--dry-run", "--json"]);
    let json = json.ok().json();
    assert_eq!(json["changed"], false);
    assert_eq!(json["dry_run"], true);
    assert_eq!(json["added"][0], "scope endpoints");
    assert_eq!(bed.export(), before);
    let ran = bed.instance.run(&["apply", "-f", &path]).ok();
    assert_eq!(ran.stdout, expected);
    let ran = bed.instance.run(&["apply", "-f", &path]).ok();
    assert_eq!((&*ran.stdout, &*ran.stderr), ("", "Nothing to change.\n"));
}

#[test]
fn what_cannot_be_applied_changes_nothing() {
    let bed = Bed::new(&[]);
    bed.run("endpoint add 10.0.0.7").ok();
    let before = bed.export();
    let gone = bed.cgroup.path().join("gone").display().to_string();
    let cases = [
        (
            bed.head("scop = \"local\""),
            2,
            ":3:1: unknown field `scop`",
        ),
        (format!("cgroups = [\"{gone}\"]"), 1, "cannot open cgroup"),
        (
            "cgroups = [\"/tmp\"]".to_owned(),
            2,
            ":1:12: /tmp is not a cgroup v2",
        ),
        (bed.head("max_sockets = 7"), 1, "max_sockets = 65536"),
        (String::new(), 2, "missing field `cgroups`"),
    ];
    for (text, status, expected) in cases {
        let ran = bed.apply(&bed.file("bad.toml", &text));
        assert_eq!(ran.code, Some(status), "{text}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{text}: {}", ran.stderr);
        assert_eq!(ran.json()["error"]["exit_status"], status);
        assert_eq!(bed.export(), before);
    }
    let ran = bed.apply(&bed.dir.path().join("absent.toml"));
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("sockaccel export"), "{}", ran.stderr);
}

/// What the kernel or the instance refuses; the first only on kernels with the bug.
#[test]
fn a_dry_run_fails_as_apply_would() {
    let bed = Bed::new(&[]);
    let new = Cgroup::new("new");
    let fionread = sockaccel::doctor::examine().risks;
    let cases = [
        (
            format!("cgroups = [\"{}\"]", new.path().display()),
            (!fionread.is_empty()).then_some((3, "allow = [\"fionread\"]")),
        ),
        (
            bed.head("max_sockets = 7"),
            Some((1, "max_sockets = 65536")),
        ),
        (bed.head("scope = \"endpoints\""), None),
    ];
    for (text, refused) in cases {
        let path = bed.file("dry.toml", &text).display().to_string();
        let words = ["apply", "-f", &path, "--dry-run"];
        let dry = bed.instance.run(&words);
        let json = bed.instance.run(&[&words[..], &["--json"]].concat());
        // The difference comes first.
        assert!(dry.stdout.contains("+ "), "{dry:?}");
        let told = &json.json()["refused"];
        let Some((status, said)) = refused else {
            assert_eq!((dry.code, told), (Some(0), &Value::Null), "{dry:?}");
            continue;
        };
        assert_eq!(
            (dry.code, json.code),
            (Some(status), Some(status)),
            "{dry:?}"
        );
        assert!(dry.stderr.contains(said), "{dry:?}");
        assert!(
            told.as_str().is_some_and(|why| why.contains(said)),
            "{told}"
        );
        let real = bed.apply(Path::new(&path));
        assert_eq!(real.code, Some(status));
        assert!(real.stderr.contains(&dry.stderr), "{real:?}");
    }
}

#[test]
fn no_cgroups_mean_disabled() {
    let bed = Bed::new(&[]);
    let none = bed.file("none.toml", "cgroups = []");
    assert!(changed(bed.apply(&none)));
    assert_eq!(bed.run("status").code, Some(4));
    assert_eq!(bed.run("export").code, Some(4));
    assert!(!changed(bed.apply(&none)));
}

/// Attaching comes last, and what went before is undone.
#[test]
fn a_failure_half_way_restores_what_was() {
    let bed = Bed::new(&["--port=80"]);
    bed.run("endpoint add 10.0.0.7").ok();
    bed.run("policy add 10.0.0.7 egress any allow").ok();
    let before = bed.export();
    let taken = Cgroup::new("taken");
    let _other = OtherProgram::attach_exclusively(&taken);
    let file = format!(
        "cgroups = [\"{}\"]\nallow = [\"fionread\"]\nscope = \"endpoints\"\nports = [81]\n",
        taken.path().display()
    );
    let ran = bed.apply(&bed.file("taken.toml", &file));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("tolerates no other"), "{}", ran.stderr);
    assert!(
        !ran.stderr.contains("could not be restored"),
        "{}",
        ran.stderr
    );
    assert_eq!(bed.export(), before);
    assert_eq!(bed.run("status --json").json()["unfinished_apply"], false);
    bed.run("policy add 10.0.0.7 ingress any allow").ok();
}

/// Addresses of both ends, and a free port.
fn between() -> Options {
    let at = |ip: &str| SocketAddr::new(ip.parse().expect("an address"), 0);
    Options {
        listen: at(SERVER),
        bind: Some(at(CLIENT)),
        ..Options::default()
    }
}

fn rule(text: &mut String, endpoint: &str, direction: &str, traffic: Option<u16>, verdict: &str) {
    let _ = write!(
        text,
        "[[policy]]\nendpoint = \"{endpoint}\"\ndirection = \"{direction}\"\n\
         identity = \"any\"\nverdict = \"{verdict}\"\n"
    );
    if let Some(port) = traffic {
        let _ = writeln!(text, "traffic = \"tcp/{port}\"");
    }
}

impl Bed {
    /// A file with rules of SERVER, many between, and rules of CLIENT. The ones
    /// between differ from file to file, so that each has to be written.
    fn policy(
        &self,
        name: &str,
        number: u16,
        rules: &[(&str, &str, Option<u16>, &str)],
    ) -> PathBuf {
        let mut text = self.head("admission = \"all\"");
        let fillers = || (0..BETWEEN).map(|n| format!("127.0.{}.{}", 1 + n / 250, n % 250));
        for endpoint in [SERVER, CLIENT]
            .map(str::to_owned)
            .into_iter()
            .chain(fillers())
        {
            let _ = writeln!(text, "[[endpoints]]\naddress = \"{endpoint}\"");
        }
        for endpoint in fillers() {
            rule(
                &mut text,
                &endpoint,
                "egress",
                None,
                &format!("proxy:{number}"),
            );
        }
        for (endpoint, direction, traffic, verdict) in rules {
            rule(&mut text, endpoint, direction, *traffic, verdict);
        }
        self.file(name, &text)
    }

    /// Applies the two in turn while `traffic` runs; it is told when to end.
    fn swap(&self, rounds: usize, files: [&Path; 2], traffic: impl Fn(&AtomicBool) + Sync) {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let running = scope.spawn(|| traffic(&done));
            let swapped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..rounds {
                    for file in files {
                        assert!(changed(self.apply(file)));
                    }
                }
            }));
            done.store(true, Ordering::Relaxed);
            running.join().expect("the traffic");
            swapped.expect("every apply");
        });
    }
}

/// Each of two policies denies: one at the client, one at the server. Only parts
/// of both together would allow.
#[test]
fn no_connection_is_allowed_by_parts_of_two_policies() {
    let bed = Bed::new(&[]);
    let _joined = bed.cgroup.join();
    let options = between();
    let listener = listen(&options);
    let port = listener.local_addr().expect("getsockname").port();
    let file = |name, number, client, server| {
        let rules = [
            (CLIENT, "egress", Some(port), client),
            (SERVER, "ingress", Some(port), server),
        ];
        bed.policy(name, number, &rules)
    };
    let [at_server, at_client, nowhere] = [
        file("server.toml", 1, "allow", "deny"),
        file("client.toml", 2, "deny", "allow"),
        file("nowhere.toml", 3, "allow", "allow"),
    ];
    assert!(changed(bed.apply(&at_server)));
    let before = bed.instance.stats();
    bed.swap(8, [&at_client, &at_server], |done| {
        while !done.load(Ordering::Relaxed) {
            let pair = Pair::on(&listener, &options);
            for _ in 0..40 {
                round_trip(&pair);
            }
        }
    });
    let after = bed.instance.stats();
    let count = |why| after.by_reason("stack_reasons", why);
    println!("denied {}, changing {}", count("denied"), count("changing"));
    assert_eq!(
        after.delta(&before, "redirected_messages"),
        0,
        "{}",
        after.0
    );
    assert!(count("denied") > 0, "{}", after.0);
    // New connections came while it was changing: the case was met.
    assert!(count("changing") > 0, "{}", after.0);
    // And it is policy alone that stood against it.
    assert!(changed(bed.apply(&nowhere)));
    warm_up(&bed.instance, &Pair::on(&listener, &options));
}

/// Each of two policies allows a connection, by rules of its own. Only parts of
/// them would deny.
#[test]
fn a_live_connection_is_not_denied_by_parts_of_two_policies() {
    let bed = Bed::new(&[]);
    let _joined = bed.cgroup.join();
    let options = between();
    let listener = listen(&options);
    let port = listener.local_addr().expect("getsockname").port();
    let file = |name, number, traffic| {
        let rules = [
            (CLIENT, "egress", traffic, "allow"),
            (SERVER, "ingress", traffic, "allow"),
        ];
        bed.policy(name, number, &rules)
    };
    let [by_port, by_any] = [file("port.toml", 1, Some(port)), file("any.toml", 2, None)];
    assert!(changed(bed.apply(&by_port)));
    let pair = Pair::on(&listener, &options);
    warm_up(&bed.instance, &pair);
    let before = bed.instance.stats();
    bed.swap(8, [&by_any, &by_port], |done| {
        while !done.load(Ordering::Relaxed) {
            round_trip(&pair);
        }
    });
    let after = bed.instance.stats();
    assert!(
        after.delta(&before, "redirected_messages") > 100,
        "{}",
        after.0
    );
    for why in ["denied", "changing", "proxy"] {
        assert_eq!(
            after.by_reason("stack_reasons", why),
            0,
            "{why}: {}",
            after.0
        );
    }
}

/// Ports: one of either filter, one of both, one of neither.
#[test]
fn filters_change_under_traffic_without_a_gap() {
    let bed = Bed::new(&[]);
    let _joined = bed.cgroup.join();
    let options = Options::default();
    let [both, neither] = [listen(&options), listen(&options)];
    let port = both.local_addr().expect("getsockname").port();
    // All of these connections are short.
    let file = |name: &str, filters: &str| {
        bed.file(name, &bed.head(&format!("admission = \"all\"\n{filters}")))
    };
    let one = file(
        "one.toml",
        &format!("ports = [{port}, \"1-999\"]\ncidrs = [\"127.0.0.1\"]"),
    );
    let other = file(
        "other.toml",
        &format!("ports = [{port}]\ncidrs = [\"127.0.0.0/8\"]"),
    );
    let open = file("open.toml", "exclude_cidrs = [\"127.0.0.0/9\"]");
    let open_here = file("here.toml", "exclude_cidrs = [\"127.0.0.2/32\"]");

    assert!(changed(bed.apply(&one)));
    let connect_to = |listener: &std::net::TcpListener, done: &AtomicBool| {
        while !done.load(Ordering::Relaxed) {
            round_trip(&Pair::on(listener, &options));
        }
    };
    // What every filter admits is never refused.
    bed.swap(4, [&other, &one], |done| connect_to(&both, done));
    bed.swap(4, [&open_here, &one], |done| connect_to(&both, done));
    let stats = bed.instance.stats();
    let skipped = |stats: &Stats| -> u64 {
        ["filtered", "peer_not_eligible"]
            .iter()
            .map(|reason| stats.by_reason("skipped", reason))
            .sum()
    };
    assert_eq!(skipped(&stats), 0, "{}", stats.0);
    assert_eq!(stats.count("enrolled"), stats.count("seen"), "{}", stats.0);
    warm_up(&bed.instance, &Pair::on(&both, &options));
    // What none admits is never admitted.
    let before = bed.instance.stats();
    bed.swap(4, [&other, &one], |done| connect_to(&neither, done));
    bed.swap(4, [&open, &one], |done| connect_to(&neither, done));
    let stats = bed.instance.stats();
    let refused = skipped(&stats);
    assert!(refused > 0, "{}", stats.0);
    assert_eq!(stats.delta(&before, "seen"), refused, "{}", stats.0);
}

/// What a kill in the middle leaves: old verdicts stay, new connections wait on
/// the stack, single edits are refused, and an apply ends it.
#[test]
fn a_killed_apply_is_safe_and_the_next_one_finishes_it() {
    let bed = Bed::new(&[]);
    let _joined = bed.cgroup.join();
    let live = Pair::new();
    warm_up(&bed.instance, &live);
    let file = bed.export();
    let path = bed.file("same.toml", &file);
    bed.begin_change();

    let before = bed.instance.stats();
    for _ in 0..5 {
        round_trip(&live);
    }
    let after = bed.instance.stats();
    assert_eq!(
        after.delta(&before, "redirected_messages"),
        10,
        "{}",
        after.0
    );
    let new = Pair::new();
    for _ in 0..5 {
        round_trip(&new);
    }
    let stats = bed.instance.stats();
    assert_eq!(
        stats.by_reason("stack_reasons", "changing"),
        10,
        "{}",
        stats.0
    );
    assert_eq!(stats.delta(&after, "redirected_messages"), 0, "{}", stats.0);
    for (pair, kept) in [(&live, true), (&new, false)] {
        let ends = [pair.client.local_addr(), pair.client.peer_addr()];
        let [from, to] = ends.map(|end| end.expect("an address"));
        let told = bed.run(&format!("explain {from} {to} --json")).ok().json();
        for direction in told["connections"][0]["directions"].as_array().unwrap() {
            assert_eq!(direction["accelerated"], kept, "{direction}");
            let why = direction["why"].as_str().unwrap();
            assert_ne!(why.contains("an apply is under way"), kept, "{why}");
            let rules = direction["rules"].as_array().unwrap();
            let rule = rules.iter().find(|rule| rule["rule"] == "apply");
            assert_eq!(rule.unwrap()["holds"], kept, "{direction}");
        }
    }

    assert_eq!(bed.run("status --json").json()["unfinished_apply"], true);
    let ran = bed.run("endpoint add 10.0.0.7");
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains("sockaccel apply -f FILE"),
        "{}",
        ran.stderr
    );
    let ran = bed.run("status").ok();
    assert!(ran.stdout.contains("killed half-way"), "{}", ran.stdout);
    assert_eq!(bed.export(), file);

    let dry = bed.run(&format!("apply -f {} --dry-run", path.display()));
    assert!(dry.ok().stderr.contains("would be finished"));
    assert!(changed(bed.apply(&path)));
    assert_eq!(bed.run("status --json").json()["unfinished_apply"], false);
    let before = bed.instance.stats();
    for _ in 0..5 {
        round_trip(&new);
    }
    let after = bed.instance.stats();
    assert!(
        after.delta(&before, "redirected_messages") >= 8,
        "{}",
        after.0
    );
    assert!(!changed(bed.apply(&path)));
    bed.run("endpoint add 10.0.0.7").ok();
}

impl Bed {
    /// As an apply does before it writes the tables.
    fn begin_change(&self) {
        let pin = self.instance.dir();
        let map = MapHandle::from_pinned_path(pin.join("sa_config")).expect("the map");
        let key = 0_u32.to_ne_bytes();
        let bytes = map.lookup(&key, MapFlags::ANY).expect("look up");
        let mut config = Config::read_from_bytes(&bytes.expect("the element")).expect("the layout");
        config.changing += 1;
        map.update(&key, config.as_bytes(), MapFlags::ANY)
            .expect("update");
    }
}
