//! `assert`: holds when it should, and only then.

mod common;

use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use common::cgroup::Cgroup;
use common::instance::Instance;
use common::instance::Ran;
use common::instance::sockaccel;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::warm::round_trip;
use common::warm::warm_up;

fn assert_claims(instance: &Instance, words: &str) -> Ran {
    let words: Vec<&str> = words.split_whitespace().collect();
    instance.run(&[&["assert"], &words[..]].concat())
}

fn rounds(pair: &Pair) {
    for _ in 0..50 {
        round_trip(pair);
    }
}

/// The exit status, and what is told where it is 5.
fn check(instance: &Instance, cases: &[(&str, i32, &str)]) {
    for (words, code, said) in cases {
        let ran = assert_claims(instance, words);
        assert_eq!(
            ran.code,
            Some(*code),
            "{words}: {}{}",
            ran.stdout,
            ran.stderr
        );
        assert!(ran.stderr.contains(said), "{words}: {}", ran.stderr);
        if *code == 0 {
            assert!(ran.stderr.is_empty(), "{words}: {}", ran.stderr);
        }
    }
}

#[test]
fn claims_hold_or_the_figures_are_told() {
    let cgroup = Cgroup::new("assert");
    let instance = Instance::enable(&cgroup, &[]);
    check(
        &instance,
        &[
            (
                "--redirected-share >=0.01",
                5,
                "redirected_share is 0, not >=0.01",
            ),
            ("--redirected-bytes =0 --enrolled =0 --skipped =0", 0, ""),
        ],
    );
    let joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    rounds(&pair);
    let cases = [
        ("--redirected-share >=0.5", 0, ""),
        ("--redirected-share >=50%", 0, ""),
        ("--redirected-share >=1", 5, "not >=1"),
        ("--redirected-bytes >=400", 0, ""),
        ("--redirected-bytes >=1M", 5, "not >=1048576"),
        (
            "--redirected-messages >=100 --redirected-messages <1K",
            0,
            "",
        ),
        (
            "--redirected-messages >=100 --redirected-messages <10",
            5,
            "not <10",
        ),
        ("--enrolled =2 --paired =2 --skipped =0", 0, ""),
        ("--enrolled >2", 5, "enrolled is 2, not >2"),
        ("--stack-messages >0 --stack-bytes >0", 0, ""),
        (
            "--stack-messages =0",
            5,
            "the receiver has not read from the connection yet",
        ),
        (
            "--no-skipped any --no-skipped blocking_reader,splicing",
            0,
            "",
        ),
    ];
    check(&instance, &cases);

    let blocking = Pair::with(&Options::blocking());
    rounds(&blocking);
    drop(joined);
    check(
        &instance,
        &[
            ("--no-skipped splicing", 0, ""),
            (
                "--no-skipped blocking_reader",
                5,
                "skipped blocking_reader is ",
            ),
            ("--no-skipped any", 5, "--blocking-readers accelerate"),
            ("--skipped >0", 0, ""),
        ],
    );
    // Closed ones are in the totals.
    drop(pair);
    check(
        &instance,
        &[("--enrolled =2 --redirected-bytes >=400", 0, "")],
    );
}

#[test]
fn open_sockets_of_a_port_a_process_or_a_cgroup() {
    let cgroup = Cgroup::new("assert");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let listener = listen(&Options::default());
    let port = listener.local_addr().expect("getsockname").port();
    let pair = Pair::on(&listener, &Options::default());
    warm_up(&instance, &pair);
    rounds(&pair);
    let idle = Pair::new();
    let own = std::process::id();
    let path = cgroup.path().display().to_string();
    let inside = |whose: &str, claims: &str| format!("--for {whose} {claims}");
    for (whose, enrolled) in [
        (port.to_string(), 2),
        (format!("port:{port}"), 2),
        (format!("pid:{own}"), 4),
        (path.clone(), 4),
        ("pid:1".to_owned(), 0),
        ("1".to_owned(), 0),
    ] {
        let right = format!("--enrolled ={enrolled}");
        check(&instance, &[(&inside(&whose, &right), 0, "")]);
        let wrong = format!("--enrolled !={enrolled}");
        check(
            &instance,
            &[(&inside(&whose, &wrong), 5, "open sockets of")],
        );
        let share = inside(&whose, "--redirected-share >=0.5");
        let code = if enrolled > 0 { 0 } else { 5 };
        check(&instance, &[(&share, code, "")]);
    }
    // Open though the connection has ended, and with most kernels in the table.
    for stream in [&idle.client, &idle.server] {
        stream.shutdown(Shutdown::Write).expect("shutdown");
    }
    let now = instance.dump("sockhash").len();
    let ended = inside(&format!("pid:{own}"), &format!("--enrolled ={now}"));
    check(&instance, &[(&ended, 0, "")]);
    drop(idle);
    // What has closed is not open.
    let port = inside(&port.to_string(), "--redirected-bytes >0");
    check(&instance, &[(&port, 0, "")]);
    drop(pair);
    check(&instance, &[(&port, 5, "")]);
    check(
        &instance,
        &[
            (
                "--for pid:4194304 --enrolled =0",
                1,
                "there is no process 4194304",
            ),
            ("--for /no/such --enrolled =0", 1, "/no/such"),
        ],
    );
}

#[test]
fn it_waits_as_long_as_it_may() {
    let cgroup = Cgroup::new("assert");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    check(
        &instance,
        &[("--enrolled >0 --within 200ms", 5, "enrolled is 0")],
    );
    let options = Options::default();
    let listener = listen(&options);
    let to = listener.local_addr().expect("getsockname");
    let ran = thread::scope(|scope| {
        let waiting =
            scope.spawn(|| assert_claims(&instance, "--redirected-messages >=50 --within 60s"));
        // Most likely it waits by now; if not, it has less to wait for.
        thread::sleep(Duration::from_millis(300));
        let client = connect(to, &options);
        let server = accept(&listener, &options);
        rounds(&Pair { client, server });
        waiting.join().expect("it ran")
    });
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
}

#[test]
fn json_is_the_same_either_way() {
    let cgroup = Cgroup::new("assert");
    let instance = Instance::enable(&cgroup, &[]);
    for (claim, code, holds) in [("<1", 0, true), (">=1", 5, false)] {
        let ran = assert_claims(&instance, &format!("--enrolled {claim} --json"));
        assert_eq!(ran.code, Some(code));
        let value = ran.json();
        assert_eq!(value["holds"], holds, "{value}");
        assert_eq!(value["claims"][0]["figure"], "enrolled");
        assert_eq!(value["claims"][0]["wanted"], claim);
        assert_eq!(value["claims"][0]["value"], 0);
        assert_eq!(value["figures"]["enrolled"], 0);
        assert_eq!(value["for"], serde_json::Value::Null);
        assert!(value["waited_seconds"].is_number());
        assert!(value["not_accelerated"].is_array());
    }
}

#[test]
fn bad_claims_are_2_and_not_enabled_is_4() {
    let absent = common::unique("absent");
    for (words, code) in [
        ("--enrolled >=1", 4),
        ("--enrolled >=1 --within 1m", 4),
        ("", 2),
        ("--for 80", 2),
        ("--enrolled 1", 2),
        ("--enrolled >=", 2),
        ("--redirected-share >=x", 2),
        ("--redirected-share 90%", 2),
        ("--no-skipped nonsense", 2),
        ("--no-skipped any --for 80", 2),
        ("--skipped =0 --for 80", 2),
        ("--enrolled =0 --for web", 2),
        ("--enrolled =0 --within soon", 2),
    ] {
        let args: Vec<&str> = ["assert", "--instance", &absent]
            .into_iter()
            .chain(words.split_whitespace())
            .collect();
        let ran = sockaccel(&args);
        assert_eq!(ran.code, Some(code), "{words}: {}", ran.stderr);
    }
}

/// A job's own check, in the run that it checks.
#[test]
fn inside_of_a_run_it_finds_the_instance() {
    common::require_root();
    let binary = env!("CARGO_BIN_EXE_sockaccel");
    for (claim, status) in [("<1", "0"), (">=1", "5")] {
        let ran = sockaccel(&["run", "--", binary, "assert", "--enrolled", claim]);
        assert_eq!(
            ran.code.map(|code| code.to_string()).as_deref(),
            Some(status),
            "{}",
            ran.stderr
        );
    }
}
