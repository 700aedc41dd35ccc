//! The command line: bad input, life cycle, exit status, JSON.

mod common;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::io::pipe;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use nix::fcntl::Flock;
use nix::fcntl::FlockArg;
use nix::mount::MntFlags;
use nix::mount::MsFlags;
use nix::mount::umount2;
use serde_json::Value;

use common::adopt::refused_here;
use common::adopt::works_here;
use common::bpffs::Bpffs;
use common::bpffs::pins;
use common::bpffs::tree;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::instance::Ran;
use common::layout;
use common::other_program::OtherProgram;
use common::other_program::attached_to;
use common::pair::Pair;
use common::plain::Probe;
use common::rng::Rng;
use common::stream::recv_all;
use common::stream::send_all;
use common::tagged::Tagged;
use common::warm::round_trip;

const BINARY: &str = env!("CARGO_BIN_EXE_sockaccel");

/// What [`attached_to`] says of a cgroup that nobody attached to.
const NONE: [Vec<u32>; 2] = [Vec::new(), Vec::new()];

/// A bpffs of the test's own, mounted by the first `enable`.
#[derive(Debug)]
struct World {
    bpffs: Bpffs,
}

impl World {
    fn new() -> Self {
        let bpffs = Bpffs::new();
        Self { bpffs }
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(BINARY);
        self.prepare(&mut command, args);
        command
    }

    fn prepare<S: AsRef<OsStr>>(&self, command: &mut Command, args: &[S]) {
        command
            .args(args)
            .arg("--bpffs")
            .arg(self.bpffs.path())
            .env_remove("SOCKACCEL_ALLOW");
    }

    fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// Names the bpffs in the ways out.
    fn option(&self) -> String {
        format!(" --bpffs {}", self.bpffs.path().display())
    }

    /// Words, as in a shell.
    fn sh(&self, words: &str) -> Ran {
        self.bpffs.sh(words)
    }

    fn json(&self, words: &str) -> Value {
        self.sh(&format!("{words} --json")).ok().json()
    }

    fn redirected(&self) -> u64 {
        let count = &self.json("stats")["redirected_messages"];
        count.as_u64().expect("a count")
    }

    /// Round trips, of which some are redirected.
    fn warm_up(&self, pair: &Pair, when: &str) {
        let before = self.redirected();
        for _ in 0..4 {
            round_trip(pair);
        }
        let status = || self.json("status");
        assert!(self.redirected() > before, "{when}: {}", status());
    }

    /// A connection from one cgroup to another, whose messages are redirected.
    fn between(&self, client: &Cgroup, server: &Cgroup, name: &str, tag: u64) -> Tagged {
        let pair = Pair::between(client, server);
        self.warm_up(&pair, name);
        Tagged::new(name, tag, pair)
    }

    /// Leaves a redirected message unread at each end of each.
    fn leave_unread(&self, all: &mut [&mut Tagged], when: &str) {
        for tagged in all.iter_mut() {
            // One that was told to leave does so first, as each does now and then.
            tagged.exchange(2);
        }
        let before = self.redirected();
        for tagged in all.iter_mut() {
            tagged.leave_unread();
        }
        let messages = self.redirected() - before;
        let status = || self.json("status");
        assert_eq!(messages, 2 * all.len() as u64, "{when}: {}", status());
    }

    /// One cgroup is out and its connection goes on; the other is in, and has all of its.
    fn assert_one_left(
        &self,
        (out, left): (&Cgroup, &mut Tagged),
        (kept, staying): (&Cgroup, &mut Tagged),
        case: &str,
    ) {
        left.exchange(1);
        assert_eq!(attached_to(out.path()), NONE, "{case}");
        self.assert_enabled_once(kept, 0, case);
        staying.read_unread(case);
    }

    /// Writes such a file; the command that applies it.
    fn apply_words(&self, name: &str, cgroups: &[&Cgroup], text: &str) -> String {
        let path = self.bpffs.dir().join(name);
        let cgroups: Vec<&Path> = cgroups.iter().map(|cgroup| cgroup.path()).collect();
        let head = format!("cgroups = {cgroups:?}\nallow = [\"fionread\"]\n");
        fs::write(&path, head + text).expect("a file");
        format!("apply -f {}", path.display())
    }

    fn enable(&self, cgroup: &Cgroup, words: &str) -> Ran {
        self.sh(&enable_words(cgroup, words))
    }

    /// No instance, and nothing of one.
    fn assert_empty(&self, when: &str) {
        let base = self.bpffs.base();
        assert!(!base.exists(), "{when}: left {:?}", tree(&base));
    }

    /// The programs that status tells of and those of the cgroup agree.
    fn assert_enabled_once(&self, cgroup: &Cgroup, others: usize, when: &str) {
        let status = self.json("status");
        assert_eq!(status["enabled"], true, "{when}: {status}");
        assert_eq!(
            attached_to(cgroup.path()).map(|ids| ids.len()),
            [others + 1, 1],
            "{when}"
        );
        let base = self.bpffs.base();
        let names: Vec<PathBuf> = tree(&base)
            .into_iter()
            .filter(|path| path.to_string_lossy().contains("/_"))
            .collect();
        assert!(names.is_empty(), "{when}: left {names:?}");
    }
}

fn assert_plain(probe: &Probe, Pair { client, server }: &Pair, when: &str) {
    for stream in [client, server] {
        probe.assert_plain(stream, when);
    }
}

fn enable_words(cgroup: &Cgroup, words: &str) -> String {
    format!(
        "enable --allow fionread --cgroup {} {words}",
        cgroup.path().display()
    )
}

/// It failed with this status, said these words, and looks as errors do.
fn assert_fails(ran: &Ran, code: i32, words: &str, case: &str) {
    assert_eq!(ran.code, Some(code), "{case}: {}{}", ran.stdout, ran.stderr);
    assert!(
        ran.stderr.contains(words),
        "{case}: no {words:?} in {}",
        ran.stderr
    );
    assert!(!ran.stderr.contains("panicked"), "{case}: {}", ran.stderr);
}

#[test]
fn what_is_no_cgroup_is_refused() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let removed = cgroup.path().with_file_name("sockaccel-test-removed");
    fs::create_dir(&removed).expect("mkdir");
    fs::remove_dir(&removed).expect("rmdir");
    let file = cgroup.path().join("cgroup.procs");
    let cases: [(&Path, &str); 5] = [
        (
            Path::new("/no/such/cgroup"),
            "cannot open cgroup /no/such/cgroup",
        ),
        (&removed, "No such file"),
        (Path::new("/tmp"), "/tmp is not a cgroup v2 directory"),
        (Path::new("/proc/self"), "is not a cgroup v2 directory"),
        (&file, "cgroup.procs is not a cgroup v2 directory"),
    ];
    for (path, words) in cases {
        for verb in ["enable", "disable"] {
            let ran = world.run(&[OsStr::new(verb), "--cgroup".as_ref(), path.as_ref()]);
            assert_fails(&ran, 1, words, verb);
            // The way out.
            assert!(ran.stderr.contains("version 2 are below"), "{}", ran.stderr);
            world.assert_empty(verb);
        }
    }
    // One bad one among good ones: none is enabled.
    let ran = world.enable(&cgroup, "--cgroup /no/such/cgroup");
    assert_fails(&ran, 1, "/no/such/cgroup", "two cgroups");
    world.assert_empty("two cgroups");
    assert_eq!(attached_to(cgroup.path()), NONE);
}

#[test]
fn a_cgroup_removed_while_enabled_does_no_harm() {
    let world = World::new();
    let kept = Cgroup::new("kept");
    {
        let gone = Cgroup::new("gone");
        let more = format!("--cgroup {}", gone.path().display());
        world.enable(&kept, &more).ok();
    }
    let deadline = Deadline::seconds(10);
    deadline.until("the removed cgroup in status", || {
        world.sh("status").ok().stdout.contains("(removed)")
    });
    let status = world.json("status");
    let paths = status["cgroups"].as_array().expect("an array");
    assert_eq!(paths.iter().filter(|c| c["path"].is_null()).count(), 1);
    world.enable(&kept, "--scope endpoints").ok();
    let status = world.sh("status").ok().stdout;
    let way_out = "To take out what was removed:  sockaccel exportHERE | sockaccel applyHERE -f -";
    let way_out = way_out.replace("HERE", &world.option());
    assert!(status.contains(&way_out), "{status}");
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), world.sh("export").ok().stdout).expect("write");
    let apply = format!("apply -f {}", file.path().display());
    world.sh(&apply).ok();
    world.assert_enabled_once(&kept, 0, "apply of what was exported");
    let status = world.sh("status").ok().stdout;
    assert!(!status.contains("removed"), "{status}");
    assert!(status.contains("scope endpoints"), "{status}");

    drop(kept);
    deadline.until("the last one is removed", || {
        let status = world.sh("status").ok().stdout;
        status.contains(&format!(
            "what was removed:  sockaccel disable{}   (",
            world.option()
        ))
    });
    world.sh("disable").ok();
    world.assert_empty("disable");
}

#[test]
fn without_privileges_nothing_is_done_or_hidden() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let copy = world.bpffs.dir().join("sockaccel");
    fs::copy(BINARY, &copy).expect("copy the binary");
    let as_nobody = |words: &str| {
        let mut command = Command::new(&copy);
        let args: Vec<&str> = words.split_whitespace().collect();
        world.prepare(&mut command, &args);
        Ran::of(command.uid(65534).gid(65534))
    };
    let enable = enable_words(&cgroup, "");
    let refused = as_nobody(&enable);
    assert_fails(
        &refused,
        6,
        "sudo sockaccel enable --allow fionread --cgroup",
        "enable",
    );
    assert!(
        refused.stderr.contains("CAP_NET_ADMIN"),
        "{}",
        refused.stderr
    );
    world.assert_empty("enable as nobody");

    world.sh(&enable).ok();
    let status = world.json("status");
    for words in [
        "status",
        "stats",
        "dump sockhash",
        "endpoint list",
        "endpoint add 10.0.0.1",
        "policy list",
        "disable",
    ] {
        let refused = as_nobody(words);
        assert_fails(
            &refused,
            6,
            &format!("As root:  sudo sockaccel {words} --bpffs "),
            words,
        );
    }
    let refused = as_nobody("disable --json");
    assert_eq!(refused.json()["error"]["exit_status"], 6);
    assert_eq!(world.json("status"), status);
}

/// The directory is for everybody to open.
#[test]
fn who_locks_the_directory_below_keeps_nobody_from_mounting() {
    let world = World::new();
    let below = fs::File::open(world.bpffs.path()).expect("a directory");
    let _locked = Flock::lock(below, FlockArg::LockExclusive).expect("flock");
    let cgroup = Cgroup::new("cli");
    world.enable(&cgroup, "").ok();
    world.assert_enabled_once(&cgroup, 0, "mounted");
}

#[test]
fn a_missing_bpffs_is_mounted_and_nothing_is_covered() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");

    let elsewhere = |dir: &str| {
        Ran::of(
            Command::new(BINARY)
                .args(enable_words(&cgroup, "--bpffs").split_whitespace())
                .arg(dir),
        )
    };
    for (dir, words) in [
        ("/no/such/dir", "cannot look at bpffs /no/such/dir"),
        ("/etc", "/etc is not a bpffs, and not empty"),
        ("/etc/passwd", "/etc/passwd"),
    ] {
        let refused = elsewhere(dir);
        assert_fails(&refused, 1, words, dir);
        assert!(refused.stderr.contains("--bpffs"), "{}", refused.stderr);
    }

    // What is not enabled needs no bpffs, and gets none.
    assert_fails(&world.sh("status"), 4, "sockaccel enable", "status");
    world.sh("disable").ok();
    assert_eq!(fs::read_dir(world.bpffs.path()).expect("it").count(), 0);

    world.enable(&cgroup, "").ok();
    assert!(world.bpffs.base().join("default/sa_sockhash").exists());
    world.sh("disable").ok();
    world.assert_empty("disable");
}

#[test]
fn a_first_enable_that_fails_unmounts_what_it_mounted() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let enable = enable_words(&cgroup, "");
    let unmount = || {
        world.sh("disable").ok();
        umount2(&world.bpffs.path(), MntFlags::empty()).expect("umount");
    };
    let steps = world.changing_steps(&enable);
    unmount();
    // What comes before it is about sockets to try the kernel with.
    let mounted = steps.iter().position(|(call, _)| call == "mount");
    let steps = &steps[mounted.expect("it mounts a bpffs") + 1..];
    let mut failed = 0;
    for step in steps.iter().step_by(14).chain(steps.last()) {
        if world.fail_at(&enable, step) {
            failed += 1;
            let path = world.bpffs.path().display().to_string();
            let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
            assert!(!mounts.contains(&path), "{step:?} fails: still mounted");
            assert_eq!(attached_to(cgroup.path()), NONE, "{step:?} fails");
        } else {
            unmount();
        }
    }
    assert!(failed > 2, "{failed} of {steps:?}");
    // One that was there stays.
    world.bpffs.mount(MsFlags::empty());
    assert!(world.fail_at(&enable, &steps[steps.len() - 1]) || world.bpffs.base().exists());
    world.sh("disable").ok();
    umount2(&world.bpffs.path(), MntFlags::empty()).expect("it was left mounted");
}

#[test]
fn the_usual_bpffs_is_mounted_where_it_is_missing() {
    common::require_root();
    let cgroup = Cgroup::new("cli");
    let script = format!(
        "while umount /sys/fs/bpf 2>/dev/null; do :; done
         set -e
         {BINARY} {}
         grep -q ' /sys/fs/bpf bpf ' /proc/self/mounts
         {BINARY} status >/dev/null
         {BINARY} disable
         ! {BINARY} status 2>/dev/null",
        enable_words(&cgroup, "")
    );
    let inside = Ran::of(Command::new("unshare").args(["--mount", "sh", "-c", &script]));
    assert_eq!(inside.code, Some(0), "{}{}", inside.stdout, inside.stderr);
    assert_eq!(attached_to(cgroup.path()), NONE);
}

#[test]
fn a_read_only_bpffs_is_named() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    world.bpffs.mount(MsFlags::MS_RDONLY);
    let refused = world.enable(&cgroup, "");
    assert_fails(&refused, 1, "Read-only file system", "enable");
    assert!(refused.stderr.contains("--bpffs"), "{}", refused.stderr);
    assert_eq!(attached_to(cgroup.path()), NONE);
    world.assert_empty("enable");
}

#[test]
fn an_exclusive_program_is_left_alone() {
    let world = World::new();
    let outer = Cgroup::new("cli");
    let inner = outer.nested("inner");
    let free = Cgroup::new("free");
    let _exclusive = OtherProgram::attach_exclusively(&outer);
    let before = attached_to(outer.path());
    for cgroup in [&outer, &inner] {
        let refused = world.enable(cgroup, "");
        assert_fails(&refused, 1, "another program is attached", "enable");
        let path = cgroup.path().display().to_string();
        assert!(refused.stderr.contains(&path), "{}", refused.stderr);
        assert!(refused.stderr.contains("bpftool cgroup show"));
        world.assert_empty("a refused enable");
        assert_eq!(attached_to(outer.path()), before);
        assert_eq!(attached_to(inner.path()), NONE);
    }

    // An instance that is there stays as it was.
    world.enable(&free, "").ok();
    let status = world.json("status");
    let another = Cgroup::new("another");
    let more = format!("--cgroup {}", outer.path().display());
    assert_fails(&world.enable(&another, &more), 1, "another program", "more");
    assert_eq!(world.json("status"), status);
    assert_eq!(attached_to(another.path()), NONE);
    world.assert_enabled_once(&free, 0, "after a refused addition");
}

#[test]
fn programs_of_others_stay() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let _other = OtherProgram::attach(&cgroup);
    let before = attached_to(cgroup.path());
    world.enable(&cgroup, "").ok();
    world.assert_enabled_once(&cgroup, 1, "enable");
    assert!(attached_to(cgroup.path())[0].contains(&before[0][0]));
    world.sh("disable").ok();
    assert_eq!(attached_to(cgroup.path()), before);
}

#[test]
fn commands_at_once_take_turns() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let enable = enable_words(&cgroup, "");
    let at_once = |lines: &[&str]| {
        let children: Vec<_> = lines
            .iter()
            .map(|line| {
                world
                    .command(&line.split_whitespace().collect::<Vec<_>>())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .expect("spawn")
            })
            .collect();
        for (child, line) in children.into_iter().zip(lines) {
            let output = child.wait_with_output().expect("wait");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{line}: {said}");
        }
    };
    // The first mounts the bpffs; the others find it.
    world.bpffs.mount(MsFlags::empty());
    for round in 0..5 {
        at_once(&[enable.as_str(); 4]);
        at_once(&[
            enable.as_str(),
            "upgrade",
            "upgrade --again",
            "upgrade --again",
        ]);
        world.assert_enabled_once(&cgroup, 0, &format!("round {round}"));
        at_once(&["disable"; 4]);
        world.assert_empty(&format!("round {round}"));
    }
    for _ in 0..5 {
        at_once(&[&enable, "disable", &enable, "disable", &enable]);
    }
    world.sh("disable").ok();
    world.assert_empty("after all");
    assert_eq!(attached_to(cgroup.path()), NONE);
}

/// Every command at once, under traffic: none is refused for another one's sake, and
/// nothing of the connection is lost.
#[test]
fn all_commands_at_once_under_traffic() {
    let world = World::new();
    let [cgroup, other] = ["cli", "other"].map(Cgroup::new);
    world.enable(&cgroup, "").ok();
    let joined = cgroup.join();
    let file = world.bpffs.dir().join("spec.toml");
    fs::write(&file, world.sh("export").ok().stdout).expect("write");
    let [enable, add] = [&cgroup, &other].map(|cgroup| enable_words(cgroup, ""));
    let remove = format!("disable --cgroup {} --timeout 0", other.path().display());
    let apply = format!("apply -f {}", file.display());
    let lines = [
        enable.as_str(),
        &add,
        &remove,
        &apply,
        "upgrade",
        "upgrade --again",
        "adopt",
        "endpoint add 10.0.0.1",
        "policy add 10.0.0.1 egress any tcp/80 allow",
        "identity add 10.0.0.0/8 1000",
        "status",
        "stats",
        "dump connections",
        "export",
    ];
    let mut tagged = Tagged::new("at once", 1, Pair::new());
    let before = world.redirected();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                tagged.exchange(20);
            }
        });
        let end = Ending(&done);
        for round in 0..4 {
            let all: Vec<_> = lines
                .iter()
                .map(|line| (line, scope.spawn(|| world.sh(line))))
                .collect();
            for (line, one) in all {
                let ran = one.join().expect("a command");
                // An entry may be there in other words by then, or not any more.
                let wanted: &[i32] = if line.starts_with("policy") {
                    &[0, 1]
                } else if *line == "adopt" && !works_here() {
                    &[3]
                } else {
                    &[0]
                };
                let code = ran.code.expect("a status");
                assert!(wanted.contains(&code), "round {round}, {line}: {ran:?}");
            }
        }
        drop(end);
    });
    assert!(world.redirected() > before);
    world.sh(&apply).ok();
    world.assert_enabled_once(&cgroup, 0, "after all");
    assert_eq!(attached_to(other.path()), NONE);
    world.warm_up(&Pair::new(), "after all");
    world.sh("disable").ok();
    world.assert_empty("after all");
    tagged.exchange(5);
    drop(joined);
}

/// Ends the traffic also where an assertion fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn enable_adds_and_changes_only_what_is_given() {
    let world = World::new();
    let [a, b] = ["a", "b"].map(Cgroup::new);
    let options =
        "--blocking-readers accelerate --port 80,8000-8010 --max-sockets 1000 --budget-messages 8";
    assert_eq!(
        world.enable(&a, &format!("{options} --json")).ok().json()["changed"],
        true
    );
    let config = world.json("dump config");
    let unchanged = world.enable(&a, "--json").ok();
    assert_eq!(unchanged.json()["changed"], false);
    assert_eq!(world.json("dump config"), config);
    // The same cgroup twice, by another path.
    let twice = format!("--cgroup {}/. --json", a.path().display());
    assert_eq!(world.enable(&a, &twice).ok().json()["changed"], false);

    world.enable(&b, "").ok();
    assert_eq!(
        world.json("status")["cgroups"].as_array().map(Vec::len),
        Some(2)
    );
    assert_eq!(world.json("dump config"), config);
    world.enable(&b, "--scope endpoints").ok();
    let changed = world.json("dump config");
    for (field, value) in config.as_object().expect("an object") {
        assert_eq!(
            &changed[field] == value,
            !["scope", "generation"].contains(&&**field),
            "{field}"
        );
    }
    let fixed = world.enable(&b, "--max-sockets 2000");
    assert_fails(&fixed, 1, "holds 1000 sockets at most", "max-sockets");
}

#[test]
fn disable_says_what_was_not_enabled_and_what_ends() {
    let world = World::new();
    let [a, b] = ["a", "b"].map(Cgroup::new);
    let disable = |cgroup: &Cgroup, words: &str| {
        let path = cgroup.path().display();
        world.sh(&format!("disable --cgroup {path} {words}")).ok()
    };
    let changed = |cgroup: &Cgroup| disable(cgroup, "--json").json()["changed"].clone();
    world.enable(&a, "").ok();
    world.enable(&b, "").ok();
    let again = world.enable(&b, "").ok().stderr;
    assert!(again.contains("Nothing to change."), "{again}");
    assert_eq!(changed(&a), true);
    assert_eq!(changed(&a), false);
    let [path_a, path_b] = [&a, &b].map(|cgroup| cgroup.path().display());
    let other = disable(&a, "");
    let told = format!(
        "cgroup {path_a} is not enabled in instance default: nothing to do\n  Enabled there:  {path_b}\n"
    );
    assert_eq!((other.stdout, other.stderr), (String::new(), told));
    assert_eq!(attached_to(a.path()), NONE);
    world.assert_enabled_once(&b, 0, "disable --cgroup a");

    let last = disable(&b, "").stderr;
    let gone = "the last cgroup of instance default, which is gone now";
    assert!(last.contains(gone) && last.contains("policy"), "{last}");
    world.assert_empty("the last cgroup");
    assert_eq!(changed(&b), false);
    assert_eq!(world.json("disable")["changed"], false);
    world.enable(&a, "").ok();
    assert_eq!(disable(&a, "--json").json()["ended"], true);
}

#[test]
fn who_mistypes_a_name_is_told_those_there_are() {
    let world = World::new();
    let cgroup = Cgroup::new("named");
    let all = || world.json("status --all");
    let none = world.sh("status --all").ok();
    let told = "0 instances. To add one:  sockaccel enable --cgroup PATH";
    assert!(none.stderr.contains(told), "{}", none.stderr);
    assert_eq!(all(), Value::Array(vec![]));

    for name in ["web", "ci"] {
        world.enable(&cgroup, &format!("--instance {name}")).ok();
    }
    let enabled = "Enabled are:  ci, web   (sockaccel status --all tells more)";
    for words in ["status", "policy list", "export", "endpoint add 10.0.0.1"] {
        let typo = world.sh(&format!("{words} --instance wbe"));
        assert_fails(&typo, 4, enabled, words);
    }
    let typo = world.sh("disable --instance wbe").ok().stderr;
    let told = format!("instance wbe is not enabled: nothing to do\n  {enabled}");
    assert!(typo.contains(&told), "{typo}");

    let path = cgroup.path().display().to_string();
    let (rows, text) = (all(), world.sh("status --all").ok().stdout);
    for (row, name) in [(&rows[0], "ci"), (&rows[1], "web")] {
        assert_eq!(row["instance"], name, "{rows}");
        assert_eq!(row["state"], "enabled", "{rows}");
        assert_eq!(row["cgroups"][0]["path"], path, "{rows}");
        let line = text.lines().find(|line| line.starts_with(name));
        assert!(line.is_some_and(|line| line.contains(&path)), "{text}");
    }
    // What cannot be read is there all the same.
    fs::remove_file(world.bpffs.base().join("ci/sa_stats")).expect("a pin");
    assert_eq!(all()[0]["state"], "damaged");
    assert_eq!(all()[1]["state"], "enabled");
    for name in ["web", "ci"] {
        world.sh(&format!("disable --instance {name}")).ok();
    }
    world.assert_empty("both disabled");
}

#[test]
fn what_is_not_enabled_is_4_and_says_how_to_enable() {
    let world = World::new();
    for words in [
        "status",
        "stats",
        "explain --port 80",
        "assert --enrolled >=0",
        "dump sockhash",
        "dump connections",
        "dump config",
        "endpoint list",
        "endpoint add 10.0.0.1",
        "identity get 10.0.0.1",
        "service del 10.0.0.1:80 --if-exists",
        "policy list",
    ] {
        let absent = world.sh(&format!("{words} --instance other"));
        assert_fails(&absent, 4, "instance other is not enabled", words);
        assert!(
            absent
                .stderr
                .contains("enable --cgroup PATH --instance other")
        );
        let json = world.sh(&format!("{words} -j"));
        assert_eq!(json.json()["error"]["exit_status"], 4, "{words}");
    }
    world.assert_empty("reading");
}

#[test]
fn usage_errors_are_2() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let in_cgroup = |words: &str| enable_words(&cgroup, words);
    let cases = [
        String::new(),
        "accelerate".into(),
        "enable".into(),
        "status now".into(),
        "dump".into(),
        "dump everything".into(),
        "status --instance a/b".into(),
        "status --instance ..".into(),
        "status --instance _new-x".into(),
        format!("status --instance {}", "x".repeat(33)),
        in_cgroup("--instance a.b"),
        in_cgroup("--allow everything"),
        in_cgroup("--scope world"),
        in_cgroup("--blocking-readers maybe"),
        in_cgroup("--port 0"),
        in_cgroup("--port 65536"),
        in_cgroup("--port 80-79"),
        in_cgroup("--port http"),
        in_cgroup("--exclude-port -1"),
        in_cgroup("--cidr 10.0.0.1/8"),
        in_cgroup("--cidr 10.0.0.0/33"),
        in_cgroup("--exclude-cidr fd00::/129"),
        in_cgroup("--exclude-cidr localhost"),
        in_cgroup("--max-sockets 1"),
        in_cgroup("--max-sockets 4294967296"),
        in_cgroup("--budget-messages 0"),
        in_cgroup("--budget-bytes many"),
        "endpoint add".into(),
        "endpoint add 10.0.0".into(),
        "endpoint add 10.0.0.0/8".into(),
        "endpoint add 10.0.0.1 --host".into(),
        "endpoint add 10.0.0.1 --identity 0".into(),
        "endpoint add 10.0.0.1 --identity 4294967296".into(),
        "endpoint del".into(),
        "endpoint get".into(),
        "identity add 10.0.0.0/8".into(),
        "identity add 10.0.0.1/8 7".into(),
        "identity add 10.0.0.0/8 0".into(),
        "identity add 10.0.0.0/8 any".into(),
        "identity get 10.0.0.0/8".into(),
        "service add 10.0.0.1".into(),
        "service add 10.0.0.1:0".into(),
        "service add 10.0.0.1:80/udp".into(),
        "service add fd00::1:80".into(),
        "service add web:80".into(),
        "policy add 10.0.0.1 egress any".into(),
        "policy add 10.0.0.1 outward any allow".into(),
        "policy add 10.0.0.1 egress 0 allow".into(),
        "policy add 10.0.0.1 egress any udp/53 allow".into(),
        "policy add 10.0.0.1 egress any tcp/0 allow".into(),
        "policy add 10.0.0.1 egress any proxy:0".into(),
        "policy add 10.0.0.1 egress any proxy:99999".into(),
        "policy add 10.0.0.1 egress any tcp/80".into(),
        "policy add 10.0.0.1 egress any allow tcp/80".into(),
        "policy add 10.0.0 egress any allow".into(),
        "policy del 10.0.0.1 egress any allow".into(),
        "policy get 10.0.0.1 sideways any".into(),
    ];
    for words in &cases {
        let said = world.sh(words);
        assert_fails(&said, 2, "", words);
        assert!(!said.stderr.is_empty() && said.stdout.is_empty(), "{words}");
        if !words.is_empty() {
            let json = world.sh(&format!("{words} --json"));
            assert_eq!(json.code, Some(2), "{words}");
            let error = &json.json()["error"];
            assert_eq!(error["exit_status"], 2, "{words}");
            let message = error["message"].as_str().expect("a message");
            assert!(
                !message.is_empty() && !message.starts_with("error"),
                "{message}"
            );
        }
    }
    world.assert_empty("usage errors");
    let unknown = Ran::of(
        world
            .command(&["status"])
            .env("SOCKACCEL_ALLOW", "everything"),
    );
    assert_fails(&unknown, 4, "", "the variable is for enable only");
    let enable = in_cgroup("");
    let words: Vec<&str> = enable.split_whitespace().collect();
    let unknown = Ran::of(world.command(&words).env("SOCKACCEL_ALLOW", "everything"));
    assert_fails(&unknown, 2, "SOCKACCEL_ALLOW", "an unknown risk in it");
}

/// Scripts write `VARIABLE= command` for a command without it. An option is no variable.
#[test]
fn empty_variables_are_as_none() {
    let bpffs = Bpffs::new();
    let name = common::unique("cli");
    let told = |command: &mut Command| Ran::of(command.env("SOCKACCEL_BPFFS", bpffs.path()));
    let missing = told(
        Command::new(BINARY)
            .arg("status")
            .env("SOCKACCEL_INSTANCE", ""),
    );
    assert_fails(&missing, 4, "instance default is not enabled", "no name");
    let default = Ran::of(
        Command::new(BINARY)
            .args(["status", "--instance", &name])
            .env("SOCKACCEL_BPFFS", ""),
    );
    let way_out = format!("enable --cgroup PATH --instance {name}\n");
    assert_fails(&default, 4, &way_out, "no bpffs");
    for (option, text) in [
        ("--instance", "instance name \"\""),
        ("--bpffs", "bpffs \"\""),
    ] {
        let said = Ran::of(Command::new(BINARY).args(["status", option, ""]));
        assert_fails(&said, 2, text, option);
    }
}

/// Names of cgroups are bytes; JSON and TOML are text.
#[test]
fn a_cgroup_whose_name_is_not_utf8() {
    let world = World::new();
    let above = Cgroup::new("cli");
    let cgroup = above.nested(OsStr::from_bytes(b"\xff\xfe"));
    let run = |words: &str| {
        let words = words.split(' ').map(OsStr::new);
        let all: Vec<&OsStr> = words.chain([cgroup.path().as_os_str()]).collect();
        world.run(&all).ok()
    };
    run("enable --allow fionread --cgroup");
    for words in ["status", "status --all"] {
        let shown = world.sh(words).ok().stdout;
        assert!(shown.contains(&*cgroup.path().to_string_lossy()), "{shown}");
    }
    let attached = world.json("status")["cgroups"][0].clone();
    assert_eq!(attached["path"], *cgroup.path().to_string_lossy());
    world.json("status --all");
    assert_fails(&world.sh("export"), 1, "its name is not UTF-8", "export");
    {
        let _joined = cgroup.join();
        world.warm_up(&Pair::new(), "enabled");
    }
    run("disable --now --cgroup");
    world.assert_empty("disabled");
}

/// On a kernel without the bug there is nothing to refuse.
#[test]
fn fionread_is_refused_in_the_documented_form() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let path = cgroup.path().display();
    let plain = world.sh(&format!("enable --cgroup {path}"));
    let examined = sockaccel::doctor::examine();
    if examined.risks.is_empty() {
        plain.ok();
        return;
    }
    let kernel = examined.kernel;
    // 6.1 counts only what came by TCP, 6.18.44 only what was redirected.
    let (data, reference) = match examined.fionread {
        sockaccel::doctor::Fionread::Wrong {
            redirected: true, ..
        } => (
            "redirected data",
            "counted since 929e30f93125 and 04af4efde58a",
        ),
        _ => ("data", "bug 929e30f93125, fixed by 04af4efde58a"),
    };
    let form = format!(
        "\
sockaccel: enable refused: on this kernel ({kernel}) FIONREAD reports 0 while {data} waits on an enrolled socket
  ({reference}). Programs that rely on it can hang: nginx >= 1.17.5, Java NIO, .NET.
  Nothing was changed. If none of them runs in {path}:  sockaccel enable --cgroup {path} --allow fionread{here}
",
        here = world.option()
    );
    assert_eq!((plain.code, plain.stderr), (Some(3), form));
    world.assert_empty("refused");
    assert_eq!(attached_to(cgroup.path()), NONE);
    let json = world.sh(&format!("enable --cgroup {path} --json"));
    assert_eq!(json.json()["error"]["exit_status"], 3);

    // The environment allows it, and the instance remembers.
    let words = format!("enable --cgroup {path}");
    let words: Vec<&str> = words.split(' ').collect();
    let allowed = Ran::of(world.command(&words).env("SOCKACCEL_ALLOW", "fionread")).ok();
    let again = world.run(&words).ok();
    for said in [allowed.stderr, again.stderr] {
        assert!(!said.contains("FIONREAD"), "accepted: {said}");
    }
    assert_eq!(world.json("status")["allowed_risks"][0], "fionread");
}

#[test]
fn entries_are_added_once_and_deleted_once() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    world.enable(&cgroup, "").ok();
    world.sh("endpoint add 10.0.0.9").ok();
    let nouns = [
        (
            "endpoint",
            "10.0.0.1 --identity 7",
            "10.0.0.1 --identity 8",
            "10.0.0.1",
        ),
        ("endpoint", "fd00::1", "fd00::1 --identity 8", "fd00::1"),
        ("identity", "10.1.0.0/16 7", "10.1.0.0/16 8", "10.1.0.0/16"),
        ("identity", "fd01::/64 7", "fd01::/64 8", "fd01::/64"),
        (
            "service",
            "10.2.0.1:80",
            "10.2.0.1:80 --accelerate",
            "10.2.0.1:80/tcp",
        ),
        (
            "service",
            "[fd02::1]:80",
            "[fd02::1]:80 --accelerate",
            "[fd02::1]:80",
        ),
        (
            "policy",
            "10.0.0.9 egress 7 allow",
            "10.0.0.9 egress 7 deny",
            "10.0.0.9 egress 7",
        ),
        (
            "policy",
            "10.0.0.9 ingress any tcp/80 proxy:8080",
            "10.0.0.9 ingress any tcp/80 proxy:8081",
            "10.0.0.9 ingress any tcp/80",
        ),
    ];
    let changed = |ran: Ran| ran.ok().json()["changed"].clone();
    for (noun, entry, conflict, name) in nouns {
        let case = format!("{noun} {entry}");
        assert_eq!(
            changed(world.sh(&format!("{noun} add {entry} -j"))),
            true,
            "{case}"
        );
        assert_eq!(
            changed(world.sh(&format!("{noun} add {entry} -j"))),
            false,
            "{case}"
        );
        let other = world.sh(&format!("{noun} add {conflict}"));
        assert_fails(&other, 1, "is there already, with another value", &case);
        assert_eq!(
            world
                .json(&format!("{noun} list"))
                .as_array()
                .map(Vec::is_empty),
            Some(false)
        );
        if noun != "identity" {
            assert!(world.json(&format!("{noun} get {name}")).is_object());
        }
        assert_eq!(
            changed(world.sh(&format!("{noun} del {name} -j"))),
            true,
            "{case}"
        );
        assert_fails(
            &world.sh(&format!("{noun} del {name}")),
            1,
            "does not exist",
            &case,
        );
        assert_eq!(
            changed(world.sh(&format!("{noun} delete {name} --if-exists -j"))),
            false
        );
        if noun != "identity" {
            assert_fails(
                &world.sh(&format!("{noun} get {name}")),
                1,
                "does not exist",
                &case,
            );
        }
    }
    assert_eq!(
        world.json("policy list"),
        Value::Array(vec![]),
        "no default is left"
    );
    let unknown = world.sh("policy add 10.0.0.8 egress any allow");
    assert_fails(
        &unknown,
        1,
        "sockaccel endpoint add 10.0.0.8",
        "no endpoint",
    );
}

#[test]
fn addresses_of_the_host_come_and_go_together() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    world.enable(&cgroup, "").ok();
    assert_fails(&world.sh("endpoint del --host"), 1, "--host", "none yet");
    world.sh("endpoint del --host --if-exists").ok();
    world.sh("endpoint add 127.0.0.1 --identity 9").ok();
    world.sh("endpoint add --host").ok();
    let all = world.json("endpoint list");
    let all = all.as_array().expect("an array");
    assert!(all.iter().any(|e| e["host"] == true), "{all:?}");
    assert!(
        all.iter()
            .any(|e| e["address"] == "127.0.0.1" && e["identity"] == 9)
    );
    assert_fails(
        &world.sh("endpoint add --host --identity 5"),
        1,
        "another value",
        "--identity 5",
    );
    assert_eq!(world.json("endpoint list").as_array(), Some(all));

    // One of them has policy: none goes.
    let host = all.iter().rfind(|e| e["host"] == true).expect("one");
    let host = host["address"].as_str().expect("text");
    world
        .sh(&format!("policy add {host} ingress any allow"))
        .ok();
    assert_fails(&world.sh("endpoint del --host"), 1, "has policy", host);
    assert_eq!(world.json("endpoint list").as_array(), Some(all));
    world.sh(&format!("policy del {host} ingress any")).ok();
    world.sh("endpoint del --host").ok();
    assert_eq!(
        world.json("endpoint list").as_array().map(Vec::len),
        Some(1)
    );
}

#[test]
fn a_full_table_is_named() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    world.enable(&cgroup, "").ok();
    let map = MapHandle::from_pinned_path(world.bpffs.base().join("default/sa_endpoints"))
        .expect("open the map");
    for n in 0..map.max_entries() {
        let mut key = [0xfd; 16];
        key[..4].copy_from_slice(&n.to_be_bytes());
        // The table may keep some room for itself on each CPU.
        if map.update(&key, &[0; 8], MapFlags::ANY).is_err() {
            break;
        }
    }
    let full = world.sh("endpoint add 10.0.0.1");
    assert_fails(&full, 1, "sa_endpoints", "endpoint add");
    assert!(
        full.stderr.contains("65536 entries at most"),
        "{}",
        full.stderr
    );
    let rows = world.json("dump endpoints");
    assert_eq!(rows.as_array().map(Vec::len), Some(65536));
}

/// A command, and the fields of its JSON in words.
const FIELDS: &[(&str, &str)] = &[
    (
        "stats",
        "seen enrolled enrolled_now paired ejected skipped redirected_messages \
         redirected_bytes stack_messages stack_bytes stack_reasons promotions \
         demotions events_lost",
    ),
    (
        "status",
        "instance enabled unfinished_apply programs draining cgroups scope blocking_readers max_sockets splice_observer allowed_risks \
         stats not_accelerated",
    ),
    (
        "status --all",
        "instance state cgroups enrolled_now redirected_bytes",
    ),
    ("explain --port {port}", "instance connections more"),
    (
        "assert --enrolled >=0",
        "holds for waited_seconds claims figures not_accelerated",
    ),
    (
        "dump sockhash",
        "cookie family protocol local remote netns_cookie paired path unread_bytes",
    ),
    (
        "dump connections",
        "conn_id side cookie local remote skipped",
    ),
    ("dump endpoints", "addr identity host"),
    ("dump identities", "cidr prefixlen identity"),
    (
        "dump policy",
        "endpoint direction identity proto port verdict",
    ),
    ("dump services", "addr proto accelerate connections"),
    (
        "dump config",
        "layout enabled generation scope blocking allow",
    ),
    ("export", "cgroups scope blocking_readers max_sockets"),
    ("endpoint list", "address identity host"),
    ("endpoint get 10.0.0.1", "address identity host"),
    ("identity ls", "cidr identity"),
    ("identity get 10.1.2.3", "address identity source"),
    ("service show", "service protocol accelerate connections"),
    (
        "policy list",
        "endpoint direction identity protocol port verdict",
    ),
    ("policy get 10.0.0.1 egress 8 tcp/80", "verdict evaluations"),
];

#[test]
fn json_has_the_documented_fields() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    world.enable(&cgroup, "").ok();
    for words in [
        "endpoint add 10.0.0.1 --identity 7",
        "identity add 10.1.0.0/16 8",
        "service add 10.2.0.1:80",
        "policy add 10.0.0.1 egress 8 tcp/80 allow",
    ] {
        assert_eq!(world.json(words)["changed"], true, "{words}");
    }
    let joined = cgroup.join();
    let pair = Pair::new();
    drop(joined);
    for _ in 0..3 {
        round_trip(&pair);
    }
    let port = pair.client.peer_addr().expect("getpeername").port();
    for (words, fields) in FIELDS {
        let words = &words.replace("{port}", &port.to_string());
        let plain = world.json(words);
        let pretty = world.sh(&format!("{words} -p")).ok();
        assert!(
            pretty.stdout.lines().count() > 1,
            "{words}: {}",
            pretty.stdout
        );
        let object = plain.get(0).unwrap_or(&plain);
        for field in fields.split_whitespace() {
            assert!(
                object.get(field).is_some(),
                "{words}: no {field} in {plain}"
            );
        }
        // For people there is a table.
        assert!(!world.sh(words).ok().stdout.trim().is_empty(), "{words}");
    }

    sockets_of(&world, &pair);
    for (addr, identity) in [("10.1.2.3", 8), ("10.0.0.1", 7), ("192.0.2.1", 2)] {
        let got = world.json(&format!("identity get {addr}"));
        assert_eq!(got["identity"], identity, "{addr}");
    }
    assert_eq!(
        world.json("disable"),
        serde_json::json!({"instance": "default", "changed": true, "dropped": [], "ended": true})
    );
}

/// The two sockets of the pair, and nothing else.
fn sockets_of(world: &World, pair: &Pair) {
    let sockets = world.json("dump sockhash");
    let sockets = sockets.as_array().expect("an array");
    assert_eq!(sockets.len(), 2, "{sockets:?}");
    let ends: Vec<&str> = sockets.iter().filter_map(|s| s["local"].as_str()).collect();
    for stream in [&pair.client, &pair.server] {
        let addr = stream.local_addr().expect("getsockname").to_string();
        assert!(ends.contains(&addr.as_str()), "{addr} in {ends:?}");
    }
    for field in ["cookie", "netns_cookie"] {
        let text = sockets[0][field].as_str().expect("64 bits are text");
        text.parse::<u64>().expect("a number");
    }
}

#[test]
fn an_empty_table_says_why() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    world.enable(&cgroup, "").ok();
    for (words, said) in [
        (
            "dump sockhash",
            "0 sockets enrolled; no connection was established",
        ),
        ("dump endpoints", "0 entries"),
        ("endpoint list", "sockaccel endpoint add"),
        ("identity list", "sockaccel identity add"),
        ("service list", "sockaccel service add"),
        ("policy list", "sockaccel policy add"),
    ] {
        let empty = world.sh(words).ok();
        assert!(empty.stderr.contains(said), "{words}: {}", empty.stderr);
        assert_eq!(world.json(words), Value::Array(vec![]), "{words}");
    }
    let joined = cgroup.join();
    let pair = Pair::with(&common::pair::Options::blocking());
    drop(joined);
    round_trip(&pair);
    let said = world.sh("dump sockhash").ok().stderr;
    assert!(said.contains("blocking reader"), "{said}");
    assert!(said.contains("See sockaccel status."), "{said}");
    let status = world.sh("status").ok().stdout;
    assert!(status.contains("--blocking-readers accelerate"), "{status}");
}

#[test]
fn nobody_reading_is_no_failure() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let enable = enable_words(&cgroup, "");
    for (words, code) in [
        ("--help", 0),
        ("--version", 0),
        ("accelerate", 2),
        ("accelerate --json", 2),
        ("status", 4),
        ("status --json", 4),
        (&*enable, 0),
        ("status", 0),
        ("status --json", 0),
        ("stats", 0),
        ("dump sockhash", 0),
        ("dump config", 0),
        ("endpoint list", 0),
        ("endpoint add --host", 0),
        ("endpoint del 192.0.2.1", 1),
        ("disable", 0),
    ] {
        let args: Vec<&str> = words.split_whitespace().collect();
        let (reader, out) = pipe().expect("pipe");
        drop(reader);
        let (reader, err) = pipe().expect("pipe");
        drop(reader);
        let status = world
            .command(&args)
            .stdout(out)
            .stderr(err)
            .status()
            .expect("run");
        assert_eq!(status.code(), Some(code), "{words}");
    }
    world.assert_empty("disable");
}

#[test]
fn missing_pins_are_made_again() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    world.enable(&cgroup, "").ok();
    let dir = world.bpffs.base().join("default");
    let joined = cgroup.join();
    let pair = Pair::new();
    let pins = pins(&dir);
    assert!(pins.len() > 25, "{pins:?}");
    let enable = enable_words(&cgroup, "");
    for (n, pin) in pins.iter().enumerate() {
        let case = pin.display().to_string();
        fs::remove_file(pin).unwrap_or_else(|e| panic!("{case}: {e}"));
        // Traffic goes on meanwhile, by whatever path.
        for _ in 0..3 {
            round_trip(&pair);
        }
        let command = if n % 2 == 0 { "upgrade" } else { &enable };
        let told = world.sh(&format!("{command} --json")).ok().json();
        assert_eq!(told["changed"], true, "{case}: {told}");
        assert!(pin.exists(), "{case}");
        world.assert_enabled_once(&cgroup, 0, &case);
        world.warm_up(&pair, &case);
    }
    world.sh("disable").ok();
    world.assert_empty("disable");
    Probe::new().assert_plain(&pair.client, "after disable");
    drop(joined);
}

#[test]
fn ways_out_name_the_instance() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let enable = |max| {
        world.sh(&enable_words(
            &cgroup,
            &format!("--instance web --max-sockets {max}"),
        ))
    };
    enable(1000).ok();
    let web = format!(" --instance web{}", world.option());
    let way_out = format!("sockaccel disable{web}, sockaccel apply -f FILE{web}");
    assert_fails(&enable(2000), 1, &way_out, "max-sockets");
    for (words, way_out) in [
        (
            "policy add 10.0.0.1 egress any allow",
            "sockaccel endpoint add 10.0.0.1",
        ),
        ("endpoint list", "sockaccel endpoint add ADDR"),
    ] {
        let said = world.sh(&format!("{words} --instance web")).stderr;
        assert!(said.contains(&format!("{way_out}{web}")), "{said}");
    }
    let said = world.sh("endpoint add 10.0.0.1 --instance web").ok().stderr;
    let path = cgroup.path().display();
    let scope = format!("sockaccel enable --cgroup {path}{web} --scope endpoints");
    assert!(said.contains(&scope), "{said}");
    world.sh("disable --instance web").ok();
}

/// Nothing can be found any more, and nothing is attached: a new start.
#[test]
fn a_bpffs_that_was_unmounted_takes_all_of_it_away() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    world.enable(&cgroup, "").ok();
    let joined = cgroup.join();
    let pair = Pair::new();
    world.warm_up(&pair, "enabled");
    let deadline = Deadline::seconds(20);
    let before = world.redirected();
    send_all(&pair.client, b"unread", deadline);
    assert_eq!(world.redirected(), before + 1);
    umount2(&world.bpffs.path(), MntFlags::empty()).expect("umount");
    deadline.until("links gone", || attached_to(cgroup.path()) == NONE);
    // The kernel frees maps a moment after what held them.
    thread::sleep(Duration::from_secs(1));
    let mut got = [0; 6];
    recv_all(&pair.server, &mut got, deadline);
    assert_eq!(&got, b"unread");
    round_trip(&pair);
    assert_fails(&world.sh("status"), 4, "not enabled", "status");
    world.sh("disable").ok();
    world.enable(&cgroup, "").ok();
    world.assert_enabled_once(&cgroup, 0, "enabled again");
    round_trip(&pair);
    world.warm_up(&Pair::new(), "enabled again");
    drop(joined);
}

#[test]
fn an_instance_with_missing_pins_can_be_disabled() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let dir = world.bpffs.base().join("default");
    for pin in [
        "sa_config",
        "sa_sockhash",
        "sa_iter_drain",
        "link-skmsg",
        "sa_skmsg",
        "sa_stats",
    ] {
        world.enable(&cgroup, "").ok();
        match fs::remove_file(dir.join(pin)) {
            // Before Linux 6.10 nothing links to a map.
            Err(e) if e.kind() == ErrorKind::NotFound && pin == "link-skmsg" => {}
            removed => removed.unwrap_or_else(|e| panic!("{pin}: {e}")),
        }
        world.sh("disable").ok();
        world.assert_empty(pin);
        assert_eq!(attached_to(cgroup.path()), NONE, "{pin}");
    }
    world.enable(&cgroup, "").ok();
    fs::remove_dir_all(&dir).expect("rm -r");
    assert_fails(&world.sh("status"), 4, "not enabled", "rm -r");
    // The kernel detaches what lost its last pin a little later.
    let deadline = Deadline::seconds(10);
    deadline.until("links gone", || attached_to(cgroup.path()) == NONE);
    world.sh("disable").ok();
}

const STEPS: &str = "bpf,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mount";

/// The steps after which something outside of the process is different.
const CHANGES: [&str; 12] = [
    "mkdir",
    "rename",
    "unlink",
    "rmdir",
    "mount",
    "bpf(BPF_OBJ_PIN,",
    "bpf(BPF_MAP_UPDATE_ELEM,",
    "bpf(BPF_MAP_DELETE_ELEM,",
    "bpf(BPF_LINK_",
    "bpf(BPF_PROG_ATTACH,",
    "bpf(BPF_PROG_DETACH,",
    // Reading what it gives runs a program that changes sockets.
    "bpf(BPF_ITER_CREATE,",
];

/// Of one kill, see `kill_at_each_step`.
const TRIES: usize = 3;

/// The nth call of one system call.
type Step = (String, usize);

impl World {
    fn strace(&self, words: &str, options: &[&str]) -> std::process::Output {
        let mut command = Command::new("strace");
        command
            // adopt has children, whose ends are no steps.
            .args(["-qq", "-e", "signal=none", "-e", &format!("trace={STEPS}")])
            .args(options)
            .arg(BINARY);
        self.prepare(&mut command, &words.split_whitespace().collect::<Vec<_>>());
        command.output().expect("strace(1) is needed")
    }

    /// Runs the command to its end; its steps that change something.
    fn changing_steps(&self, words: &str) -> Vec<Step> {
        self.steps(words, &CHANGES)
    }

    /// Its steps that succeed and begin so in the log of strace(1).
    fn steps(&self, words: &str, beginnings: &[&str]) -> Vec<Step> {
        let log = self.bpffs.dir().join("strace");
        let ran = self.strace(words, &["-o", &log.display().to_string()]);
        assert!(came_to_its_end(ran.status), "{words}: {ran:?}");
        let log = fs::read_to_string(log).expect("what strace wrote");
        let changes = |line: &str| {
            beginnings.iter().any(|change| line.starts_with(change)) && !line.contains("= -1 ")
        };
        let mut counts: HashMap<&str, usize> = HashMap::new();
        let mut steps = Vec::new();
        for line in log.lines() {
            let (call, _) = line.split_once('(').expect("a system call");
            let count = counts.entry(call).or_default();
            *count += 1;
            if changes(line) {
                steps.push((call.to_owned(), *count));
            }
        }
        steps
    }

    /// Runs the command and kills it as it begins this step; false when it came
    /// to its end before, as the kernel may answer in fewer steps this time.
    fn kill_at(&self, words: &str, step: &Step) -> bool {
        let (call, nth) = step;
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        let ran = self.strace(words, &["-o", "/dev/null", "-e", &inject]);
        // strace dies of what its command died of.
        let killed = ran.status.signal() == Some(9) || ran.status.code() == Some(137);
        let ended = killed || came_to_its_end(ran.status);
        assert!(ended, "{words}, {step:?}: {ran:?}");
        killed
    }

    /// Runs the command, for which this step fails: whether it failed with it.
    fn fail_at(&self, words: &str, step: &Step) -> bool {
        let (call, nth) = step;
        let inject = format!("inject={call}:error=EIO:when={nth}");
        let ran = self.strace(words, &["-o", "/dev/null", "-e", &inject]);
        match ran.status.code() {
            Some(0) => false,
            Some(1) => true,
            _ => panic!("{words}, {step:?}: {ran:?}"),
        }
    }
}

/// Also when it has left what is unread to the next command.
fn came_to_its_end(status: ExitStatus) -> bool {
    matches!(status.code(), Some(0 | 7))
}

/// Runs a command that is killed between each two changes that it makes: at every
/// third of these points, so that no three in a row are left out, or, with
/// `SOCKACCEL_KILLS=N`, at each of them N times. Where the command came to its end before,
/// as the kernel answered in fewer steps, it is tried again.
/// `before` and `after` are called around each, `after` with a number to take turns by.
fn kill_at_each_step(
    world: &World,
    words: &str,
    before: impl Fn(),
    mut after: impl FnMut(&str, usize),
) {
    before();
    let steps = world.changing_steps(words);
    after(&format!("{words}: not killed"), 0);
    let times: Option<usize> = std::env::var("SOCKACCEL_KILLS")
        .ok()
        .map(|n| n.parse().expect("SOCKACCEL_KILLS is not a number"));
    let first = Rng::for_test(words).between(0, 2);
    // The ends are where most can be half done.
    let sampled = |n| steps.len() < 6 || n < 2 || n + 2 >= steps.len() || n % 3 == first;
    let points = (0..steps.len()).filter(|n| times.is_some() || sampled(*n));
    let points: Vec<&Step> = points.map(|n| &steps[n]).collect();
    let times = times.unwrap_or(1);
    let mut tried = 0;
    let mut kills = vec![0; points.len()];
    for (n, step) in (0..times).flat_map(|_| points.iter().enumerate()) {
        for _ in 0..TRIES {
            before();
            tried += 1;
            let killed = world.kill_at(words, step);
            kills[n] += usize::from(killed);
            // What it does by turns it does after each of them in the end.
            let turn = tried + tried / steps.len();
            after(&format!("{words}: killed at {step:?}"), turn);
            if killed {
                break;
            }
        }
    }
    // A command that makes one change cannot be half done.
    assert!(steps.len() > 1, "{words}: {steps:?}");
    let missed = kills.iter().filter(|kills| **kills < times);
    // The last changes are made now and then only.
    assert!(missed.count() <= 2, "{words}: {kills:?} of {points:?}");
    println!(
        "{words}: killed {} times before {} of {} changes",
        kills.iter().sum::<usize>(),
        points.len(),
        steps.len()
    );
}

#[test]
fn enable_killed_at_any_step_leaves_nothing_half_done() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let _other = OtherProgram::attach(&cgroup);
    let before = attached_to(cgroup.path());
    let enable = enable_words(&cgroup, "--cidr 127.0.0.0/8");
    world.bpffs.mount(MsFlags::empty());
    let joined = cgroup.join();
    kill_at_each_step(
        &world,
        &enable,
        || {},
        |case, turn| {
            // What is half done works.
            let mut half = Tagged::new("half enabled", 1, Pair::new());
            half.exchange(4);
            half.leave_unread();
            if turn % 2 == 0 {
                world.sh(&enable).ok();
                world.assert_enabled_once(&cgroup, 1, case);
                assert_eq!(world.json("dump config")["cidr_includes"], 1, "{case}");
            }
            half.read_unread(case);
            half.exchange(4);
            world.sh("disable").ok();
            world.assert_empty(case);
            assert_eq!(attached_to(cgroup.path()), before, "{case}");
            half.exchange(1);
        },
    );
    drop(joined);
}

#[test]
fn adding_a_cgroup_killed_at_any_step_leaves_the_instance_whole() {
    let world = World::new();
    let [old, new] = ["old", "new"].map(Cgroup::new);
    let _other = OtherProgram::attach(&new);
    let before = attached_to(new.path());
    world.enable(&old, "").ok();
    // Of the scope that comes with the cgroup.
    world.sh("endpoint add 127.0.0.1").ok();
    let kept = RefCell::new(world.between(&old, &old, "kept", 0));
    let add = enable_words(&new, "--scope endpoints");
    let take_out = format!("disable --cgroup {}", new.path().display());
    kill_at_each_step(
        &world,
        &add,
        || world.leave_unread(&mut [&mut kept.borrow_mut()], "before"),
        |case, turn| {
            let mut kept = kept.borrow_mut();
            kept.leave_unread();
            world.sh("endpoint list").ok();
            let mut half = Tagged::new("half enabled", 1, Pair::between(&old, &new));
            half.exchange(4);
            half.leave_unread();
            let mut across = None;
            if turn % 2 == 0 {
                world.sh(&add).ok();
                world.assert_enabled_once(&new, 1, case);
                assert_eq!(world.json("status")["scope"], "endpoints", "{case}");
                let came = across.insert(world.between(&old, &new, "across", 2));
                world.leave_unread(&mut [came], case);
            }
            let ran = world.sh(&format!("{take_out} --timeout 0"));
            let waits = across.is_some();
            assert!(
                ran.code == Some(7) || !waits && ran.code == Some(0),
                "{case}: {ran:?}"
            );
            let probe = Probe::new();
            let mut all: Vec<Tagged> = across.into_iter().chain([half]).collect();
            for tagged in &mut all {
                tagged.read_unread(case);
            }
            world.sh(&take_out).ok();
            assert_eq!(attached_to(new.path()), before, "{case}");
            for tagged in &mut all {
                assert_plain(&probe, &tagged.pair, case);
                tagged.exchange(1);
            }
            world.assert_enabled_once(&old, 0, case);
            world.enable(&old, "--scope local").ok();
            kept.read_unread(case);
        },
    );
    world.leave_unread(&mut [&mut kept.borrow_mut()], "after");
}

#[test]
fn enable_that_fails_at_any_step_leaves_what_was() {
    let world = World::new();
    let [old, new] = ["old", "new"].map(Cgroup::new);
    world.bpffs.mount(MsFlags::empty());
    let enable = enable_words(&old, "--scope local");
    let steps = world.changing_steps(&enable);
    world.sh("disable").ok();
    let mut failed = 0;
    // Those before make the instance where nobody sees it.
    for step in &steps[steps.len() - 5..] {
        let case = format!("{enable}: {step:?} fails");
        if world.fail_at(&enable, step) {
            failed += 1;
            world.assert_empty(&case);
        }
        assert_eq!(attached_to(new.path()), NONE, "{case}");
        world.sh("disable").ok();
    }
    assert!(failed > 2, "{failed} of {steps:?}");

    world.sh(&enable).ok();
    let was = world.sh("export").ok().stdout;
    let add = enable_words(&new, "--scope endpoints --port 80-82 --cidr 127.0.0.0/8");
    let steps = world.changing_steps(&add);
    let undo = || {
        world.sh("disable").ok();
        world.sh(&enable).ok();
    };
    undo();
    let mut failed = 0;
    for step in &steps {
        let case = format!("{add}: {step:?} fails");
        if world.fail_at(&add, step) {
            failed += 1;
            assert_eq!(world.sh("export").ok().stdout, was, "{case}");
            assert_eq!(attached_to(new.path()), NONE, "{case}");
            world.assert_enabled_once(&old, 0, &case);
        }
        undo();
    }
    assert!(failed > 10, "{failed} of {steps:?}");
}

/// An apply that goes back to what a killed one left does not finish that.
#[test]
fn apply_that_fails_after_one_that_was_killed_leaves_it_unfinished() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    world.enable(&cgroup, "").ok();
    let file = world.bpffs.dir().join("wanted.toml");
    let spec = world.sh("export").ok().stdout;
    let spec = format!("{spec}\n[[identities]]\ncidr = \"192.0.2.0/24\"\nidentity = 1000\n");
    fs::write(&file, spec).expect("write");
    let apply = format!("apply -f {}", file.display());
    let steps = world.changing_steps(&apply);
    let unfinished = || world.json("status")["unfinished_apply"] == true;
    assert!(!unfinished());
    let mut failed = 0;
    for step in &steps {
        world.sh("identity del 192.0.2.0/24 --if-exists");
        world.kill_at(&apply, step);
        if !unfinished() {
            continue;
        }
        for step in &steps {
            if world.fail_at(&apply, step) {
                failed += 1;
                assert!(unfinished(), "{apply}: {step:?} fails");
            } else {
                break;
            }
        }
        // Of what was killed its steps are other ones: some cannot fail.
        if failed > 0 {
            break;
        }
    }
    assert!(failed > 0, "{steps:?}");
    world.sh(&apply).ok();
    assert!(!unfinished());
}

#[test]
fn upgrade_that_cannot_load_leaves_all_as_it_was() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    world.enable(&cgroup, "").ok();
    let loads = world.steps("upgrade --again", &["bpf(BPF_PROG_LOAD,"]);
    // The last of them may be libbpf trying what the kernel can do.
    let mut last = loads.iter().rev();
    assert!(
        last.any(|load| world.fail_at("upgrade --again", load)),
        "{loads:?}"
    );
    assert_eq!(world.json("status")["programs"], "current");
    world.assert_enabled_once(&cgroup, 0, "the upgrade failed");
}

#[test]
fn disable_killed_at_any_step_can_be_finished() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let _other = OtherProgram::attach(&cgroup);
    let before = attached_to(cgroup.path());
    let enable = || world.enable(&cgroup, "").ok();
    kill_at_each_step(
        &world,
        "disable",
        || drop(enable()),
        |case, turn| {
            if turn % 2 == 0 {
                enable();
                world.assert_enabled_once(&cgroup, 1, case);
            }
            world.sh("disable").ok();
            world.assert_empty(case);
            assert_eq!(attached_to(cgroup.path()), before, "{case}");
        },
    );
}

/// The same with live connections, one of them with something unread.
#[test]
fn a_drain_killed_at_any_step_can_be_finished() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let joined = cgroup.join();
    let [idle, pair] = [Pair::new(), Pair::new()];
    drop((idle, pair));
    let pairs = RefCell::new(Vec::new());
    let deadline = Deadline::seconds(20);
    let probe = Probe::new();
    let mut redirected_again = 0;
    kill_at_each_step(
        &world,
        "disable --timeout 0 --json",
        || {
            world.enable(&cgroup, "").ok();
            let mut pairs = pairs.borrow_mut();
            pairs.clear();
            pairs.extend([Pair::new(), Pair::new()]);
            for pair in pairs.iter() {
                world.warm_up(pair, "enabled");
            }
        },
        |case, turn| {
            let pairs = pairs.borrow();
            send_all(&pairs[1].client, b"unread", deadline);
            if turn % 3 == 0 {
                // On again, and what is still enrolled is redirected as before.
                world.enable(&cgroup, "").ok();
                world.assert_enabled_once(&cgroup, 0, case);
                let mut got = [0; 6];
                recv_all(&pairs[1].server, &mut got, deadline);
                let Pair { client, server } = &pairs[1];
                if probe.is_plain(client) || probe.is_plain(server) {
                    round_trip(&pairs[1]);
                } else {
                    world.warm_up(&pairs[1], case);
                    redirected_again += 1;
                }
                send_all(&pairs[1].client, b"unread", deadline);
            }
            let ran = world.sh("disable --timeout 0");
            assert!(matches!(ran.code, Some(0 | 7)), "{case}: {ran:?}");
            let mut got = [0; 6];
            recv_all(&pairs[1].server, &mut got, deadline);
            assert_eq!(&got, b"unread", "{case}");
            world.sh("disable").ok();
            world.assert_empty(case);
            assert_eq!(attached_to(cgroup.path()), NONE, "{case}");
            for pair in pairs.iter() {
                assert_plain(&probe, pair, case);
                round_trip(pair);
            }
        },
    );
    assert!(redirected_again > 0);
    drop(joined);
}

/// The same of an instance that another version made. What is killed is followed by
/// another drain, or by one that drops.
#[test]
fn a_drain_of_another_layout_killed_at_any_step_can_be_finished() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let joined = cgroup.join();
    let dir = world.bpffs.base().join("default");
    let pair = RefCell::new(Pair::new());
    let deadline = Deadline::seconds(60);
    let probe = Probe::new();
    let mut waited = 0;
    kill_at_each_step(
        &world,
        "disable --timeout 0 --json",
        || {
            world.enable(&cgroup, "").ok();
            pair.replace(Pair::new());
            world.warm_up(&pair.borrow(), "enabled");
            layout::number(&dir, layout::OTHER);
        },
        |case, turn| {
            let pair = pair.borrow();
            // Redirected still, unless it has been drained.
            send_all(&pair.client, b"unread", deadline);
            let mut got = [0; 6];
            if turn % 3 == 2 {
                let told = world.json("disable --now");
                // All of it or nothing: by TCP, where the direction had been cut.
                send_all(&pair.client, b"after!", deadline);
                recv_all(&pair.server, &mut got, deadline);
                if told["dropped"] != Value::Null || &got != b"after!" {
                    assert_eq!(&got, b"unread", "{case}");
                    recv_all(&pair.server, &mut got, deadline);
                }
                assert_eq!(&got, b"after!", "{case}");
            } else {
                let ran = world.sh("disable --timeout 0");
                assert!(matches!(ran.code, Some(0 | 7)), "{case}: {ran:?}");
                waited += usize::from(ran.code == Some(7));
                recv_all(&pair.server, &mut got, deadline);
                assert_eq!(&got, b"unread", "{case}");
                world.sh("disable").ok();
            }
            world.assert_empty(case);
            assert_eq!(attached_to(cgroup.path()), NONE, "{case}");
            assert_plain(&probe, &pair, case);
            round_trip(&pair);
        },
    );
    assert!(waited > 0);
    drop(joined);
}

#[test]
fn upgrade_killed_at_any_step_can_be_finished() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let _other = OtherProgram::attach(&cgroup);
    world.enable(&cgroup, "").ok();
    let joined = cgroup.join();
    let kept = RefCell::new(world.between(&cgroup, &cgroup, "kept", 0));
    kill_at_each_step(
        &world,
        "upgrade --again",
        || world.leave_unread(&mut [&mut kept.borrow_mut()], "before"),
        |case, turn| {
            let mut kept = kept.borrow_mut();
            // What is half done works.
            kept.leave_unread();
            let between = Pair::new();
            for _ in 0..4 {
                round_trip(&between);
            }
            if turn % 2 == 0 {
                world.enable(&cgroup, "").ok();
            }
            world.sh("upgrade").ok();
            world.warm_up(&between, case);
            assert_eq!(world.json("status")["programs"], "current", "{case}");
            assert_eq!(world.json("upgrade")["changed"], false, "{case}");
            world.assert_enabled_once(&cgroup, 1, case);
            kept.read_unread(case);
            world.leave_unread(&mut [&mut kept], case);
            kept.read_unread(case);
            world.warm_up(&Pair::new(), case);
        },
    );
    drop(joined);
}

#[test]
fn adopt_killed_at_any_step_can_be_run_again() {
    if refused_here() {
        return;
    }
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let joined = cgroup.join();
    let pairs: Vec<Pair> = (0..3).map(|_| Pair::new()).collect();
    kill_at_each_step(
        &world,
        "adopt",
        || {
            world.sh("disable").ok();
            world.enable(&cgroup, "").ok();
        },
        |case, _| {
            let told = world.json("adopt");
            assert_eq!(
                told["left"].as_array().map(Vec::len),
                Some(0),
                "{case}: {told}"
            );
            for pair in &pairs {
                for _ in 0..4 {
                    round_trip(pair);
                }
            }
            world.assert_enabled_once(&cgroup, 0, case);
            let stats = world.json("stats");
            assert!(
                stats["redirected_messages"].as_u64() > Some(6),
                "{case}: {stats}"
            );
            assert_eq!(stats["seen"], 6, "{case}: {stats}");
            assert_eq!(stats["ejected"], serde_json::json!({}), "{case}: {stats}");
        },
    );
    drop(joined);
}

/// Whether what leaves with it has something unread meanwhile, or not.
#[test]
fn taking_a_cgroup_out_killed_at_any_step_can_be_finished() {
    let world = World::new();
    let [kept, out] = ["kept", "out"].map(Cgroup::new);
    world.enable(&kept, "").ok();
    let staying = RefCell::new(world.between(&kept, &kept, "staying", 0));
    let leaving = RefCell::new(None);
    let disable = format!("disable --cgroup {} --timeout 0", out.path().display());
    let probe = Probe::new();
    let mut redirected_again = 0;
    for unread in [false, true] {
        kill_at_each_step(
            &world,
            &disable,
            || {
                world.enable(&out, "").ok();
                let (mut staying, mut leaving) = (staying.borrow_mut(), leaving.borrow_mut());
                let leaving = leaving.insert(world.between(&kept, &out, "leaving", 1));
                world.leave_unread(&mut [&mut staying, leaving], "before");
                if !unread {
                    leaving.read_unread("before");
                }
            },
            |case, turn| {
                let (mut staying, mut leaving) = (staying.borrow_mut(), leaving.borrow_mut());
                let leaving = leaving.as_mut().expect("a connection");
                staying.leave_unread();
                leaving.leave_unread();
                if turn % 2 == 0 {
                    world.enable(&out, "").ok();
                    world.assert_enabled_once(&out, 0, case);
                    leaving.read_unread(case);
                    let Pair { client, server } = &leaving.pair;
                    if !probe.is_plain(client) && !probe.is_plain(server) {
                        world.leave_unread(&mut [leaving], case);
                        redirected_again += 1;
                    }
                }
                let ran = world.sh(&disable);
                assert!(matches!(ran.code, Some(0 | 7)), "{case}: {ran:?}");
                leaving.read_unread(case);
                world.sh(&disable).ok();
                assert_plain(&probe, &leaving.pair, case);
                world.assert_one_left((&out, leaving), (&kept, &mut staying), case);
            },
        );
    }
    assert!(redirected_again > 0);
    world.leave_unread(&mut [&mut staying.borrow_mut()], "after");
}

/// What has a cgroup to stay in, or waits in another one that leaves, is not dropped.
#[test]
fn dropping_what_a_cgroup_has_killed_at_any_step_drops_nothing_else() {
    let world = World::new();
    let [kept, waits, out] = ["kept", "waits", "out"].map(Cgroup::new);
    for cgroup in [&kept, &waits] {
        world.enable(cgroup, "").ok();
    }
    let staying = RefCell::new(world.between(&kept, &kept, "staying", 0));
    let mut waiting = world.between(&kept, &waits, "waiting", 1);
    world.leave_unread(&mut [&mut waiting], "waiting");
    let wait = format!("disable --cgroup {} --timeout 0", waits.path().display());
    assert_eq!(world.sh(&wait).code, Some(7));
    let leaving = RefCell::new(Vec::new());
    let disable = format!("disable --cgroup {} --now --json", out.path().display());
    let probe = Probe::new();
    let mut dropped = 0;
    kill_at_each_step(
        &world,
        &disable,
        || {
            world.enable(&out, "").ok();
            let (mut staying, mut leaving) = (staying.borrow_mut(), leaving.borrow_mut());
            leaving.clear();
            leaving.extend([
                world.between(&out, &out, "inside", 2),
                world.between(&kept, &out, "across", 3),
            ]);
            let all = [&mut *staying].into_iter().chain(leaving.iter_mut());
            world.leave_unread(&mut all.collect::<Vec<_>>(), "before");
        },
        |case, turn| {
            let (mut staying, mut leaving) = (staying.borrow_mut(), leaving.borrow_mut());
            staying.leave_unread();
            if turn % 2 == 0 {
                world.enable(&out, "").ok();
                world.assert_enabled_once(&out, 0, case);
            }
            world.sh(&disable).ok();
            for tagged in leaving.iter_mut() {
                assert_plain(&probe, &tagged.pair, case);
                dropped += tagged.read_unread_or_nothing(case);
                tagged.exchange(1);
            }
            assert_eq!(attached_to(out.path()), NONE, "{case}");
            world.assert_enabled_once(&kept, 0, case);
            staying.read_unread(case);
        },
    );
    assert!(dropped > 0);
    assert_eq!(world.sh(&wait).code, Some(7));
    waiting.read_unread("waited");
    world.sh(&wait).ok();
    assert_plain(&probe, &waiting.pair, "waited");
    waiting.exchange(1);
    world.leave_unread(&mut [&mut staying.borrow_mut()], "after");
}

#[test]
fn policy_killed_at_any_step_can_be_finished() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    world.enable(&cgroup, "").ok();
    world.sh("endpoint add 10.0.0.1").ok();
    let rule = "10.0.0.1 egress any tcp/80";
    let add = format!("policy add {rule} allow");
    let del = format!("policy del {rule} --if-exists");
    let generation = || world.json("dump config")["generation"].as_u64();
    for (words, finished) in [(&add, 2), (&del, 0)] {
        let undo = if *words == add { &del } else { &add };
        kill_at_each_step(
            &world,
            words,
            || drop(world.sh(undo).ok()),
            |case, _| {
                let before = generation();
                world.sh(words).ok();
                assert!(generation() > before, "{case}: live connections look again");
                let rows = world.json("policy list");
                assert_eq!(rows.as_array().map(Vec::len), Some(finished), "{case}");
            },
        );
    }
}

#[test]
fn apply_killed_at_any_step_is_finished_by_the_next() {
    let world = World::new();
    let [old, new] = ["old", "new"].map(Cgroup::new);
    let rule = |verdict| {
        format!(
            "[[policy]]\nendpoint = \"10.0.0.7\"\ndirection = \"egress\"\n\
             identity = \"any\"\nverdict = \"{verdict}\"\n"
        )
    };
    let endpoint = "[[endpoints]]\naddress = \"10.0.0.7\"\n";
    let from = world.apply_words(
        "old.toml",
        &[&old],
        &format!("exclude_ports = [80]\n{endpoint}{}", rule("deny")),
    );
    let more = "[[endpoints]]\naddress = \"127.0.0.1\"\n[[services]]\nservice = \"10.0.0.9:80\"\n\
                [[identities]]\ncidr = \"10.0.0.0/8\"\nidentity = 7\n";
    let to = world.apply_words(
        "new.toml",
        &[&old, &new],
        &format!(
            "cidrs = [\"10.0.0.0/8\", \"127.0.0.0/8\"]\nscope = \"endpoints\"\nblocking_readers = \"accelerate\"\n{endpoint}{more}{}",
            rule("allow")
        ),
    );
    world.sh(&from).ok();
    let before = world.sh("export").ok().stdout;
    world.sh(&to).ok();
    let after = world.sh("export").ok().stdout;
    let policy = |text: &str| text.split_once("[[endpoints]]").map(|(_, t)| t.to_owned());
    let kept = RefCell::new(world.between(&old, &old, "kept", 0));
    let mut unfinished = 0;
    kill_at_each_step(
        &world,
        &to,
        || {
            world.sh(&from).ok();
            world.leave_unread(&mut [&mut kept.borrow_mut()], "before");
        },
        |case, _| {
            let mut kept = kept.borrow_mut();
            kept.leave_unread();
            let mut between = Tagged::new("half applied", 1, Pair::between(&old, &new));
            between.exchange(4);
            between.leave_unread();
            let now = world.sh("export").ok().stdout;
            let half = world.json("status")["unfinished_apply"] == true;
            unfinished += u32::from(half);
            // In between, the tables are all old or all new.
            let whole = [&before, &after].map(|text| policy(text) == policy(&now));
            assert!(half || whole.contains(&true), "{case}: {now}");
            world.sh(&to).ok();
            assert_eq!(world.sh("export").ok().stdout, after, "{case}");
            world.assert_enabled_once(&new, 0, case);
            world.assert_enabled_once(&old, 0, case);
            assert_eq!(world.json(&to)["changed"], false, "{case}");
            let mut across = world.between(&old, &new, "across", 2);
            world.leave_unread(&mut [&mut across], case);
            for tagged in [&mut *kept, &mut between, &mut across] {
                tagged.read_unread(case);
            }
        },
    );
    assert!(unfinished > 0);
    world.leave_unread(&mut [&mut kept.borrow_mut()], "after");
}

/// What leaves with the cgroup has something unread meanwhile.
#[test]
fn apply_that_takes_a_cgroup_out_killed_at_any_step_is_finished_by_the_next() {
    let world = World::new();
    let [kept, out] = ["kept", "out"].map(Cgroup::new);
    let from = world.apply_words("both.toml", &[&kept, &out], "");
    let to = world.apply_words("one.toml", &[&kept], "");
    let disable = format!("disable --cgroup {}", out.path().display());
    world.sh(&from).ok();
    let staying = RefCell::new(world.between(&kept, &kept, "staying", 0));
    let leaving = RefCell::new(None);
    let probe = Probe::new();
    kill_at_each_step(
        &world,
        &to,
        || {
            world.sh(&from).ok();
            let (mut staying, mut leaving) = (staying.borrow_mut(), leaving.borrow_mut());
            let leaving = leaving.insert(world.between(&kept, &out, "leaving", 1));
            world.leave_unread(&mut [&mut staying, leaving], "before");
        },
        |case, turn| {
            let (mut staying, mut leaving) = (staying.borrow_mut(), leaving.borrow_mut());
            let leaving = leaving.as_mut().expect("a connection");
            staying.leave_unread();
            leaving.leave_unread();
            if turn % 3 == 0 {
                world.sh(&from).ok();
                let mut again = world.between(&kept, &out, "again", 2);
                again.exchange(1);
                leaving.read_unread(case);
                world.leave_unread(&mut [leaving], case);
            }
            world.sh(&to).ok();
            assert_eq!(world.json(&to)["changed"], false, "{case}");
            // Nothing is enrolled there any more.
            let seen = world.json("stats")["seen"].clone();
            round_trip(&Pair::between(&out, &out));
            assert_eq!(world.json("stats")["seen"], seen, "{case}");
            leaving.read_unread(case);
            world.sh(if turn % 2 == 0 { &to } else { &disable }).ok();
            assert_plain(&probe, &leaving.pair, case);
            world.assert_one_left((&out, leaving), (&kept, &mut staying), case);
        },
    );
    world.leave_unread(&mut [&mut staying.borrow_mut()], "after");
}

/// What was on its way out is redirected again.
#[test]
fn apply_that_brings_a_cgroup_back_killed_at_any_step_is_finished_by_the_next() {
    let world = World::new();
    let [kept, back] = ["kept", "back"].map(Cgroup::new);
    let to = world.apply_words("both.toml", &[&kept, &back], "");
    world.sh(&to).ok();
    let disable = format!("disable --cgroup {} --timeout 0", back.path().display());
    let returning = RefCell::new(None);
    kill_at_each_step(
        &world,
        &to,
        || {
            world.sh(&to).ok();
            let mut returning = returning.borrow_mut();
            let returning = returning.insert(world.between(&kept, &back, "returning", 0));
            world.leave_unread(&mut [returning], "before");
            assert_eq!(world.sh(&disable).code, Some(7));
        },
        |case, _| {
            let mut returning = returning.borrow_mut();
            let returning = returning.as_mut().expect("a connection");
            world.sh(&to).ok();
            assert_eq!(world.json(&to)["changed"], false, "{case}");
            world.assert_enabled_once(&back, 0, case);
            returning.read_unread(case);
            world.leave_unread(&mut [returning], case);
            returning.read_unread(case);
        },
    );
}

/// The second one came no further than to move the pins back.
#[test]
fn apply_finishes_what_two_killed_commands_have_begun() {
    let world = World::new();
    let [kept, other] = ["kept", "other"].map(Cgroup::new);
    let both = world.apply_words("both.toml", &[&kept, &other], "");
    let one = world.apply_words("one.toml", &[&kept], "");
    let dir = world.bpffs.base().join("default");
    let id = fs::metadata(other.path()).expect("a cgroup").ino();
    let [enabled, draining] = ["cgroup", "draining"].map(|kind| dir.join(format!("{kind}-{id}")));
    let move_pins = |from: &Path, to: &Path| match fs::rename(from, to) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        moved => moved.expect("rename"),
    };
    let disable = format!("disable --cgroup {}", other.path().display());
    world.sh(&both).ok();
    kill_at_each_step(
        &world,
        &disable,
        || drop(world.sh(&both).ok()),
        |case, _| {
            move_pins(&draining, &enabled);
            world.sh(&both).ok();
            assert_eq!(world.json(&both)["changed"], false, "{case}");
            drop(world.between(&kept, &other, case, 0));
        },
    );
    kill_at_each_step(
        &world,
        &enable_words(&other, ""),
        || drop(world.sh(&one).ok()),
        |case, _| {
            move_pins(&enabled, &draining);
            world.sh(&one).ok();
            assert_eq!(world.json(&one)["changed"], false, "{case}");
            let seen = world.json("stats")["seen"].clone();
            round_trip(&Pair::between(&other, &other));
            assert_eq!(world.json("stats")["seen"], seen, "{case}");
        },
    );
}

/// One without cgroups, which disables.
#[test]
fn apply_of_nothing_killed_at_any_step_is_finished_by_the_next() {
    let world = World::new();
    let cgroup = Cgroup::new("cli");
    let from = world.apply_words("one.toml", &[&cgroup], "");
    let to = world.apply_words("none.toml", &[], "");
    let live = RefCell::new(None);
    let probe = Probe::new();
    kill_at_each_step(
        &world,
        &to,
        || {
            world.sh(&from).ok();
            live.replace(Some(world.between(&cgroup, &cgroup, "live", 0)));
        },
        |case, _| {
            let mut live = live.borrow_mut();
            let live = live.as_mut().expect("a connection");
            live.leave_unread();
            thread::scope(|scope| {
                let applying = scope.spawn(|| world.sh(&to));
                live.read_unread(case);
                applying.join().expect("apply").ok();
            });
            world.assert_empty(case);
            assert_eq!(attached_to(cgroup.path()), NONE, "{case}");
            assert_plain(&probe, &live.pair, case);
            live.exchange(1);
        },
    );
}

#[test]
fn a_terminal_of_unknown_width_gets_whole_lines() {
    let cgroup = Cgroup::new("cli");
    let instance = Instance::enable(&cgroup, &[]);
    let program = env!("CARGO_BIN_EXE_sockaccel");
    for columns in [0, 80] {
        let line = format!(
            "stty cols {columns}; exec {program} stats --instance {}",
            instance.name()
        );
        let ran = Ran::of(Command::new("script").args(["-qec", &line, "/dev/null"])).ok();
        assert!(
            ran.stdout.contains("sockets seen"),
            "{columns}: {}",
            ran.stdout
        );
    }
}
