//! `run`: what it runs is accelerated, its exit status and signals are the
//! command's, and nothing stays, however it ends.

mod common;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use common::bpffs::Bpffs;
use common::cgroup;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::helper;
use common::helper::Channel;
use common::helper::Helper;
use common::hidden;
use common::layout;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::process::Process;
use common::warm::round_trip;

const BINARY: &str = env!("CARGO_BIN_EXE_sockaccel");
/// Where the "outside" role connects.
const PEER: &str = "SOCKACCEL_TEST_PEER";
const ROUNDS: u32 = 50;
/// For env(1): where the tests are a background job both are ignored, and a shell
/// cannot trap what was.
const DEFAULT: &str = "--default-signal";

/// A bpffs of the test's own, mounted by the first `run`.
#[derive(Debug)]
struct Place {
    bpffs: Bpffs,
}

impl Place {
    fn new() -> Self {
        let bpffs = Bpffs::new();
        Self { bpffs }
    }

    fn summary_file(&self, name: &str) -> PathBuf {
        self.bpffs.dir().join(name)
    }

    /// `run OPTIONS --`, for the command to be added.
    fn run(&self, options: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .arg("run")
            .arg("--bpffs")
            .arg(self.bpffs.path())
            .args(["--allow", "fionread"])
            .args(options)
            .arg("--")
            .env_remove("SOCKACCEL_ALLOW")
            .env_remove("SOCKACCEL_INSTANCE");
        command
    }

    /// The same with a JSON summary in a file.
    fn run_told(&self, name: &str, options: &[&str]) -> Command {
        let file = self.summary_file(name);
        let file = file.to_str().expect("UTF-8");
        self.run(&[&["--json", "--summary", file], options].concat())
    }

    fn summary(&self, name: &str) -> Value {
        let text = fs::read_to_string(self.summary_file(name)).expect("the summary");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    fn instances(&self) -> Vec<String> {
        let entries = fs::read_dir(self.bpffs.base());
        entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// No instance, no mount, no cgroup of these instances.
    fn assert_clean(&self, when: &str) {
        assert_eq!(self.instances(), Vec::<String>::new(), "{when}");
        let mounts = fs::read_to_string("/proc/mounts").expect("/proc/mounts");
        let bpffs = self.bpffs.path().display().to_string();
        assert!(!mounts.contains(&bpffs), "{when}: {bpffs} is still mounted");
    }

    /// A plain `run -- true`, which sweeps.
    fn sweep(&self) -> Output {
        let output = self.run(&[]).arg("true").output().expect("run");
        assert!(output.status.success(), "{output:?}");
        output
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.bpffs.base().exists() {
            let _ = self.run(&[]).arg("true").output();
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn cgroup_of(instance: &str) -> Vec<PathBuf> {
    fn below(dir: &Path, name: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            if entry.file_name() == OsStr::new(name) {
                found.push(entry.path());
            }
            below(&entry.path(), name, found);
        }
    }
    let mut found = Vec::new();
    below(
        &cgroup::mount(),
        &format!("sockaccel-run@{instance}"),
        &mut found,
    );
    found
}

/// Runs this role as the command, to its end.
fn run_role(mut command: Command, role: &str) -> Output {
    command
        .arg(env::current_exe().expect("the test binary"))
        .args(helper::ARGUMENTS)
        .env(helper::ROLE, role)
        .stdin(Stdio::null())
        .output()
        .expect("run")
}

#[test]
fn what_it_runs_is_accelerated_and_nothing_stays() {
    let place = Place::new();
    let output = run_role(place.run_told("s", &[]), "pair");
    assert!(output.status.success(), "{output:?}");
    let summary = place.summary("s");
    let stats = &summary["stats"];
    assert_eq!(stats["enrolled"], 2, "{summary}");
    let redirected = stats["redirected_messages"].as_u64().expect("a count");
    assert!(redirected >= u64::from(ROUNDS), "{summary}");
    let share = summary["redirected_share"].as_f64().expect("a share");
    assert!(share > 0.5 && share < 1.0, "{summary}");
    assert_eq!(summary["exit_status"], 0);
    assert_eq!(summary["left_processes"], serde_json::json!([]));
    place.assert_clean("a run");
    let instance = summary["instance"].as_str().expect("a name");
    assert_eq!(cgroup_of(instance), Vec::<PathBuf>::new());

    // For people, on standard error alone.
    let output = run_role(place.run(&[]), "pair");
    let said = stderr(&output);
    assert!(said.contains("bypassed the TCP/IP stack"), "{said}");
    assert!(said.contains("2 of 2 sockets were enrolled"), "{said}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("sockaccel:"));
}

#[test]
fn blocking_programs_are_named_with_the_option_for_them() {
    let place = Place::new();
    let output = run_role(place.run(&[]), "blocking");
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("nothing was accelerated"), "{said}");
    assert!(said.contains("reads from a blocking socket"), "{said}");
    let option = "--blocking-readers accelerate";
    assert!(said.contains(&format!("sockaccel run {option}")), "{said}");

    let options: Vec<&str> = option.split(' ').collect();
    let output = run_role(place.run_told("s", &options), "blocking");
    assert!(output.status.success(), "{output:?}");
    let summary = place.summary("s");
    let redirected = summary["stats"]["redirected_messages"].as_u64();
    assert!(redirected >= Some(u64::from(ROUNDS)), "{summary}");
}

#[test]
fn peers_outside_of_the_command_are_told() {
    let place = Place::new();
    let listener = listen(&Options::default());
    let to = listener.local_addr().expect("getsockname");
    let mut command = place.run(&[]);
    command.env(PEER, to.to_string());
    let server = std::thread::spawn(move || {
        let server = accept(&listener, &Options::default());
        let deadline = Deadline::seconds(20);
        let mut byte = [0; 4];
        for _ in 0..ROUNDS {
            common::stream::recv_all(&server, &mut byte, deadline);
            common::stream::send_all(&server, &byte, deadline);
        }
    });
    let output = run_role(command, "outside");
    server.join().expect("the server");
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("the other end of every connection is outside of the command"),
        "{said}"
    );
    assert!(said.contains("start both ends in one run"), "{said}");
}

#[test]
fn the_exit_status_is_the_commands_or_as_env_has_it() {
    let place = Place::new();
    let missing = place.summary_file("no/such/file");
    let missing = missing.to_str().expect("UTF-8");
    let cases: &[(&[&str], &[&str], i32, &str)] = &[
        (&[], &["true"], 0, "no TCP connection"),
        (&[], &["sh", "-c", "exit 7"], 7, ""),
        (&[], &["sh", "-c", "kill -TERM $$"], 143, ""),
        (&[], &["sh", "-c", "kill -KILL $$"], 137, ""),
        (
            &[],
            &["/no/such/program"],
            127,
            "cannot execute /no/such/program",
        ),
        (&[], &["/etc/passwd"], 126, "cannot execute /etc/passwd"),
        (&[], &[], 125, "COMMAND"),
        (&["--bogus"], &["true"], 125, "--bogus"),
        (&["--port", "0"], &["true"], 125, "is not a port"),
        (&["--instance", "a.b"], &["true"], 125, "instance name"),
        (&["--bpffs", "/no/such"], &["true"], 125, "--bpffs"),
        (
            &["--summary", missing],
            &["touch", "/no/such"],
            125,
            "cannot create",
        ),
    ];
    for (options, command, status, said) in cases {
        let output = place.run(options).args(*command).output().expect("run");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(*status), "{command:?}: {text}");
        assert!(text.contains(said), "{command:?}: {text}");
        assert!(output.stdout.is_empty(), "{command:?}: {output:?}");
        place.assert_clean(&format!("{options:?} {command:?}"));
    }
    let nobody = as_nobody(place.run(&["--json"]));
    assert_eq!(nobody.status.code(), Some(125), "{nobody:?}");
    let said = stderr(&nobody);
    assert!(said.contains("--allow fionread --json -- true"), "{said}");
    assert!(nobody.stdout.is_empty(), "{nobody:?}");
}

fn as_nobody(mut command: Command) -> Output {
    let binary = env::temp_dir().join(common::unique("sockaccel-nobody"));
    fs::copy(BINARY, &binary).expect("copy the binary where nobody can read it");
    let mut copy = Command::new(&binary);
    copy.args(command.arg("true").get_args())
        .uid(65534)
        .gid(65534);
    let output = copy.output().expect("run");
    fs::remove_file(&binary).expect("remove it");
    output
}

#[test]
fn standard_streams_and_mounts_are_the_callers() {
    let place = Place::new();
    let mut child = place
        .run(&[])
        .args([
            "sh",
            "-c",
            "cat; readlink /proc/self/ns/mnt; echo $SOCKACCEL_INSTANCE",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("run");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"hello\n").expect("write");
    drop(stdin);
    let output = child.wait_with_output().expect("wait");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<&str> = text.lines().collect();
    let own = fs::read_link("/proc/self/ns/mnt").expect("a namespace");
    assert_eq!(lines[..2], ["hello", &own.to_string_lossy()]);
    assert!(lines[2].starts_with("run-"), "{text}");
}

#[test]
fn an_instance_that_is_there_is_left_alone() {
    let place = Place::new();
    let name = common::unique("named");
    let outer = place
        .run(&["--instance", &name])
        .args([BINARY, "run", "--bpffs"])
        .arg(place.bpffs.path())
        .args(["--allow", "fionread", "--instance", &name, "--"])
        .args(["sh", "-c", "echo $SOCKACCEL_INSTANCE"])
        .output()
        .expect("run");
    // The name of the run around it is no name of its own.
    assert!(outer.status.success(), "{outer:?}");
    let inner = String::from_utf8_lossy(&outer.stdout).into_owned();
    assert!(inner.starts_with("run-"), "{inner}");

    // Neither has its command to name the bpffs.
    let within = place
        .run(&[])
        .args([BINARY, "assert", "--redirected-bytes", "=0"])
        .output();
    let within = within.expect("run");
    assert!(within.status.success(), "{within:?}");

    let other = common::unique("other");
    let script = format!(
        "env -u SOCKACCEL_INSTANCE {BINARY} run --bpffs {0} --instance {other} -- true; \
         echo inner=$?; {BINARY} status --bpffs {0} >/dev/null",
        place.bpffs.path().display()
    );
    let clash = place
        .run(&["--instance", &other])
        .args(["sh", "-c", &script])
        .output()
        .expect("run");
    assert_eq!(clash.status.code(), Some(0), "{clash:?}");
    assert_eq!(String::from_utf8_lossy(&clash.stdout), "inner=125\n");
    place.assert_clean("both");
}

/// How the command answers a signal that is sent to `run`.
#[test]
fn signals_are_the_commands() {
    let place = Place::new();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        let name = signal.as_str().trim_start_matches("SIG");
        let number = signal as i32;
        for (action, expected) in [
            (format!("trap 'exit 40' {name};"), 40),
            (String::new(), 128 + number),
        ] {
            // A core file would be written for SIGQUIT.
            let script = format!("ulimit -c 0; {action} echo ready; while :; do sleep 0.02; done");
            let mut run = Process::start(
                place
                    .run(&[])
                    .args(["env", DEFAULT, "sh", "-c", &script])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null()),
            );
            let mut stdout = std::io::BufReader::new(run.0.stdout.take().expect("a pipe"));
            let mut line = String::new();
            std::io::BufRead::read_line(&mut stdout, &mut line).expect("read");
            assert_eq!(line, "ready\n");
            run.signal(signal);
            let status = run.ended(Deadline::seconds(60));
            assert_eq!(status.code(), Some(expected), "{name}: {status:?}");
            place.assert_clean(name);
        }
    }
}

/// The terminal sends to the whole job: the command must not get it twice.
#[test]
fn an_interrupt_of_the_terminal_comes_once() {
    let place = Place::new();
    let count = place.summary_file("count");
    let count = count.display();
    let inner = format!(
        "trap 'echo x >>{count}' INT; touch {count}; n=0; i=0; \
         while [ $n -lt 20 ] && [ $i -lt 600 ]; do \
         sleep 0.05; i=$((i + 1)); [ -s {count} ] && n=$((n + 1)); done; exit 9"
    );
    let run = format!(
        "trap : INT; {BINARY} run --bpffs {} --allow fionread -- \
         env {DEFAULT} sh -c \"$INNER\"; echo status=$?",
        place.bpffs.path().display()
    );
    let mut script = Command::new("script")
        .args(["-qec", &run, "/dev/null"])
        .env("INNER", inner)
        .env("SHELL", "/bin/sh")
        .env_remove("SOCKACCEL_INSTANCE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script(1) is needed");
    let deadline = Deadline::seconds(60);
    deadline.until("the command runs", || place.summary_file("count").exists());
    let mut keyboard = script.stdin.take().expect("a pipe");
    keyboard.write_all(b"\x03").expect("type");
    let output = script.wait_with_output().expect("wait");
    drop(keyboard);
    let screen = String::from_utf8_lossy(&output.stdout);
    assert!(screen.contains("status=9"), "{screen}");
    let interrupts = fs::read_to_string(place.summary_file("count")).expect("the count");
    assert_eq!(interrupts.lines().count(), 1, "{screen}");
}

/// A helper in a run of its own: has made a pair and was redirected.
fn warm_helper(place: &Place, name: &str) -> Helper {
    let before = place.instances();
    let mut helper = Helper::start_under(place.run_told(name, &[]), "rounds");
    exchange(&mut helper);
    let mut new = place.instances();
    new.retain(|instance| !before.contains(instance));
    let stats = place
        .bpffs
        .sh(&format!("stats --json --instance {}", new[0]));
    let stats = stats.ok().json();
    let redirected = stats["redirected_messages"].as_u64();
    assert!(redirected >= Some(u64::from(ROUNDS)), "{stats}");
    helper
}

fn exchange(helper: &mut Helper) {
    helper.say("go");
    assert_eq!(helper.hear(), "done");
}

#[test]
fn runs_at_once_are_independent() {
    let place = Place::new();
    let mut first = warm_helper(&place, "first");
    let mut second = warm_helper(&place, "second");
    assert_eq!(place.instances().len(), 2);
    first.say("end");
    assert_eq!(first.wait(), 0);
    assert_eq!(place.instances().len(), 1);
    exchange(&mut second);
    second.say("end");
    assert_eq!(second.wait(), 0);
    for (name, rounds) in [("first", 1), ("second", 2)] {
        let summary = place.summary(name);
        let redirected = summary["stats"]["redirected_messages"].as_u64();
        assert!(redirected >= Some(u64::from(rounds * ROUNDS)), "{summary}");
        assert_eq!(summary["stats"]["enrolled"], 2, "{summary}");
    }
    assert_eq!(place.instances(), Vec::<String>::new());
}

#[test]
fn processes_that_go_on_are_told_and_go_on_as_plain_tcp() {
    let place = Place::new();
    let mut command = place.run_told("s", &[]);
    // A background job of sh has no stdin but by another descriptor.
    command.args([
        "sh",
        "-c",
        "exec 3<&0; \"$0\" \"$@\" <&3 & exec 3<&-; sleep 1000",
    ]);
    let mut helper = Helper::start_under(command, "rounds");
    exchange(&mut helper);
    let members = cgroup_of(&place.instances()[0])[0].join("cgroup.procs");
    Deadline::seconds(20).until("sh, sleep and the helper", || {
        fs::read_to_string(&members).is_ok_and(|pids| pids.lines().count() == 3)
    });
    helper.signal(Signal::SIGTERM);
    assert_eq!(helper.wait(), 143);
    let summary = place.summary("s");
    let left: Vec<i32> = summary["left_processes"]
        .as_array()
        .expect("an array")
        .iter()
        .filter_map(|pid| i32::try_from(pid.as_i64()?).ok())
        .collect();
    let named: Vec<String> = left
        .iter()
        .map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default())
        .collect();
    for (pid, name) in left.iter().zip(&named) {
        if name.trim() == "sleep" {
            kill(Pid::from_raw(*pid), Signal::SIGTERM).expect("kill");
        }
    }
    assert_eq!(left.len(), 2, "{summary} {named:?}");
    place.assert_clean("the end of the command");
    let instance = summary["instance"].as_str().expect("a name");
    assert_eq!(cgroup_of(instance), Vec::<PathBuf>::new());
    exchange(&mut helper);
    let redirected = summary["stats"]["redirected_messages"].as_u64();
    assert!(redirected >= Some(u64::from(ROUNDS)), "{summary}");
}

/// A background job of sh has no stdin but by another descriptor. It ends by SIGTERM with
/// 1 from before the job begins.
const IN_THE_BACKGROUND: [&str; 3] = [
    "sh",
    "-c",
    "sleep 1000 & sleep=$!; trap 'kill $sleep; exit 1' TERM; \
     exec 3<&0; \"$0\" \"$@\" <&3 & exec 3<&-; wait $sleep",
];

/// A process that has something unread and outlives its run, with these options.
fn left_with_unread(place: &Place, options: &[&str]) -> (Helper, Value) {
    let mut command = place.run_told("s", options);
    command.args(IN_THE_BACKGROUND);
    let mut helper = Helper::start_under(command, "unread");
    assert_eq!(helper.hear(), "sent");
    helper.signal(Signal::SIGTERM);
    assert_eq!(helper.wait(), 1);
    (helper, place.summary("s"))
}

/// With a name of its own the next run of that name ends it.
#[test]
fn a_name_is_free_again_when_what_drained_is_read() {
    let place = Place::new();
    let named = ["--instance", "nightly"];
    let (mut helper, _) = left_with_unread(&place, &named);
    let again = || place.run(&named).arg("true").output().expect("run");
    assert_eq!(again().status.code(), Some(125), "it drains");
    exchange(&mut helper);
    let ran = again();
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(place.instances(), Vec::<String>::new());
}

/// Whatever a run has left in it.
#[test]
fn what_was_enabled_in_an_instance_since_stays() {
    let place = Place::new();
    let mut helper = warm_helper(&place, "s");
    let instance = place.instances().remove(0);
    helper.signal(Signal::SIGKILL);
    helper.wait();
    let cgroup = Cgroup::new("run-since");
    let path = cgroup.path().display();
    let since = format!("--instance {instance} --allow fionread --cgroup {path}");
    place.bpffs.sh(&format!("enable {since}")).ok();
    place.sweep();
    let status = place
        .bpffs
        .sh(&format!("status --json --instance {instance}"));
    let status = status.ok().json();
    assert_eq!(
        status["cgroups"][0]["path"],
        serde_json::json!(cgroup.path()),
        "{status}"
    );
    assert_eq!(
        status["cgroups"].as_array().map(Vec::len),
        Some(1),
        "{status}"
    );
    exchange(&mut helper);
    place
        .bpffs
        .sh(&format!("disable --instance {instance}"))
        .ok();
    helper.say("end");
    let cgroup = cgroup_of(&instance).remove(0);
    Deadline::seconds(30).until("the cgroup is empty", || fs::remove_dir(&cgroup).is_ok());
}

#[test]
fn what_a_process_that_goes_on_has_not_read_is_kept() {
    let place = Place::new();
    let (mut helper, summary) = left_with_unread(&place, &[]);
    // The other end waits, too.
    assert_eq!(summary["draining_sockets"], 2, "{summary}");
    let instance = summary["instance"].as_str().expect("a name");
    assert_eq!(place.instances(), [instance]);
    assert_eq!(cgroup_of(instance), Vec::<PathBuf>::new());
    // Not yet.
    place.sweep();
    assert_eq!(place.instances(), [instance]);
    exchange(&mut helper);
    let said = stderr(&place.sweep());
    assert!(said.contains("an earlier run had left"), "{said}");
    assert_eq!(place.instances(), Vec::<String>::new());
    exchange(&mut helper);
}

/// Other cgroups than its own have no path in a cgroup namespace, and none has where
/// they are not mounted: the kernel has not removed them.
#[test]
fn a_run_outside_is_not_taken_for_a_killed_one() {
    let place = Place::new();
    let mut outside = warm_helper(&place, "s");
    let inside = Cgroup::new("run-inside");
    let hide = [
        ("umount -l \"$0\"", 125),
        (hidden::OWN, 0),
        // Its root is number 1, too.
        ("mount -t tmpfs none \"$0\"", 125),
    ];
    for (hide, status) in hide {
        let output = hidden::command(&inside, hide)
            .arg(BINARY)
            .args(place.run(&[]).get_args())
            .arg("true")
            .env_remove("SOCKACCEL_INSTANCE")
            .output()
            .expect("unshare(1)");
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert!(!stderr(&output).contains("earlier run"), "{output:?}");
        assert_eq!(place.instances().len(), 1);
    }
    exchange(&mut outside);
    outside.say("end");
    assert_eq!(outside.wait(), 0);
    let summary = place.summary("s");
    let redirected = summary["stats"]["redirected_messages"].as_u64();
    assert!(redirected >= Some(2 * u64::from(ROUNDS)), "{summary}");
}

#[test]
fn what_a_killed_run_leaves_goes_with_the_next() {
    let place = Place::new();
    let mut helper = warm_helper(&place, "s");
    let instances = place.instances();
    assert_eq!(instances.len(), 1);
    helper.signal(Signal::SIGKILL);
    assert_eq!(helper.wait(), -9);
    // Nobody is there to take it down, and nothing is broken.
    assert_eq!(place.instances(), instances);
    exchange(&mut helper);

    let said = stderr(&place.sweep());
    assert!(said.contains("a killed run has left processes"), "{said}");
    assert_eq!(place.instances(), Vec::<String>::new());
    let cgroup = cgroup_of(&instances[0]);
    assert_eq!(cgroup.len(), 1, "the helper is in it");
    exchange(&mut helper);

    helper.say("end");
    let members = cgroup[0].join("cgroup.procs");
    Deadline::seconds(30).until("the helper has ended", || {
        fs::read_to_string(&members).is_ok_and(|members| members.is_empty())
    });
    let said = stderr(&place.sweep());
    assert!(
        said.contains("removed what an earlier run had left"),
        "{said}"
    );
    assert_eq!(cgroup_of(&instances[0]), Vec::<PathBuf>::new());

    // By hand, without another run.
    let mut helper = warm_helper(&place, "t");
    let instances = place.instances();
    helper.signal(Signal::SIGKILL);
    helper.wait();
    let disable = format!("disable --instance {}", instances[0]);
    place.bpffs.sh(&disable).ok();
    assert_eq!(place.instances(), Vec::<String>::new());
    exchange(&mut helper);
    helper.say("end");
    let cgroup = cgroup_of(&instances[0]);
    Deadline::seconds(30).until("the cgroup is empty", || fs::remove_dir(&cgroup[0]).is_ok());
}

#[test]
fn what_a_killed_run_of_another_version_leaves_goes_with_the_next() {
    let place = Place::new();
    let mut helper = warm_helper(&place, "o");
    let instances = place.instances();
    helper.signal(Signal::SIGKILL);
    helper.wait();
    let path = cgroup_of(&instances[0]).remove(0);
    // And one whose cgroup somebody has removed.
    {
        let gone = Cgroup::new("run-gone");
        let path = gone.path().display();
        let enable = format!("enable --instance run-1-1 --allow fionread --cgroup {path}");
        place.bpffs.sh(&enable).ok();
    }
    for instance in [&instances[0], "run-1-1"] {
        layout::number(&place.bpffs.base().join(instance), layout::OTHER);
    }
    let _ = place.sweep();
    assert_eq!(place.instances(), Vec::<String>::new());
    exchange(&mut helper);
    helper.say("end");
    Deadline::seconds(30).until("the cgroup is empty", || fs::remove_dir(&path).is_ok());
}

/// Killed between its changes, some of them: the next run leaves nothing.
#[test]
fn killed_at_any_step_it_can_be_cleaned_up() {
    const STEPS: &str =
        "trace=bpf,mkdir,rmdir,unlink,unlinkat,rename,mount,umount2,flock,write,clone3,vfork,clone";
    const EVERY: usize = 13;
    let place = Place::new();
    let strace = |options: &[&str]| {
        let run = place.run(&[]);
        Command::new("strace")
            .args(["-qq", "-f", "-e", STEPS])
            .args(options)
            .arg(BINARY)
            .args(run.get_args())
            .arg("true")
            .env_remove("SOCKACCEL_INSTANCE")
            .output()
            .expect("strace(1) is needed")
    };
    let log = place.summary_file("log");
    let whole = strace(&["-o", &log.display().to_string()]);
    assert!(whole.status.success(), "{whole:?}");
    let log = fs::read_to_string(&log).expect("what strace wrote");
    let mut killed = 0;
    for call in [
        "bpf", "mkdir", "rmdir", "rename", "unlink", "unlinkat", "mount", "umount2", "flock",
    ] {
        let times = log
            .lines()
            .filter(|line| {
                line.split_whitespace()
                    .nth(1)
                    .is_some_and(|word| word.starts_with(&format!("{call}(")))
            })
            .count();
        for nth in (1..=times).step_by(EVERY) {
            let inject = format!("inject={call}:signal=KILL:when={nth}");
            let output = strace(&["-o", "/dev/null", "-e", &inject]);
            let status = output.status;
            killed += usize::from(status.signal() == Some(9) || status.code() == Some(137));
        }
    }
    assert!(killed > 4, "{killed} kills of {}", log.lines().count());
    place.sweep();
    assert_eq!(place.instances(), Vec::<String>::new());
    println!("killed {killed} times");
}

fn rounds(pair: &Pair) {
    for _ in 0..ROUNDS {
        round_trip(pair);
    }
}

fn pair(_: &mut Channel) {
    rounds(&Pair::new());
}

fn blocking(_: &mut Channel) {
    rounds(&Pair::with(&Options::blocking()));
}

fn outside(_: &mut Channel) {
    let to: SocketAddr = env::var(PEER).expect("set").parse().expect("an address");
    let client = connect(to, &Options::default());
    let deadline = Deadline::seconds(20);
    let mut back = [0; 4];
    for _ in 0..ROUNDS {
        common::stream::send_all(&client, b"ping", deadline);
        common::stream::recv_all(&client, &mut back, deadline);
    }
}

/// Round trips on one connection, whenever told.
fn rounds_on_demand(channel: &mut Channel) {
    let pair = Pair::new();
    while channel.hear().is_some_and(|line| line == "go") {
        rounds(&pair);
        channel.say("done");
    }
}

/// Leaves something unread, and reads it when told; then goes on.
fn unread(channel: &mut Channel) {
    let pair = Pair::new();
    rounds(&pair);
    let deadline = Deadline::seconds(20);
    common::stream::send_all(&pair.client, b"unread", deadline);
    channel.say("sent");
    assert_eq!(channel.hear().as_deref(), Some("go"));
    let mut got = [0; 6];
    common::stream::recv_all(&pair.server, &mut got, deadline);
    assert_eq!(&got, b"unread");
    rounds(&pair);
    channel.say("done");
    while channel.hear().is_some_and(|line| line == "go") {
        rounds(&pair);
        channel.say("done");
    }
}

#[test]
#[ignore = "the body of the helper processes"]
fn helper_process() {
    helper::main(&[
        ("pair", pair),
        ("blocking", blocking),
        ("outside", outside),
        ("rounds", rounds_on_demand),
        ("unread", unread),
    ]);
}
