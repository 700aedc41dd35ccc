//! The shared parts themselves: what they make is there, and goes away.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;

use common::cgroup::Cgroup;
use common::helper;
use common::helper::Channel;
use common::helper::Helper;
use common::netns::Netns;
use common::pair::Options;
use common::pair::Pair;
use common::pair::connect;
use common::pair::listen;
use common::pattern::Pattern;
use common::warm::round_trip;

fn own_cgroup() -> String {
    fs::read_to_string("/proc/self/cgroup").expect("/proc/self/cgroup")
}

#[test]
fn cgroups_are_left_and_removed_also_by_a_panic() {
    let home = own_cgroup();
    let mut path = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let outer = Cgroup::new("support");
        let inner = outer.nested("inner");
        path = Some(outer.path().to_owned());
        let _joined = inner.join();
        assert!(own_cgroup().contains("/inner\n"), "not moved");
        panic!("on purpose");
    }));
    let message = outcome.expect_err("it panicked");
    assert_eq!(message.downcast_ref(), Some(&"on purpose"));
    assert_eq!(own_cgroup(), home);
    assert!(!path.expect("set").exists());
}

#[test]
fn pairs_of_every_family_talk() {
    for options in [
        Options::default(),
        Options::blocking(),
        Options::v6(),
        Options::v4_mapped(),
    ] {
        round_trip(&Pair::with(&options));
    }
}

#[test]
fn namespaces_reach_each_other_by_their_veth() {
    let server = Netns::new("server");
    let client = Netns::new("client");
    server.veth(("va", "10.9.0.1/24"), &client, ("vb", "10.9.0.2/24"));
    let options = Options {
        listen: SocketAddr::from((Ipv4Addr::new(10, 9, 0, 1), 7000)),
        ..Options::default()
    };
    let listener = server.enter(|| listen(&options));
    let client = client.enter(|| connect(options.listen, &options));
    let server = common::pair::accept(&listener, &options);
    round_trip(&Pair { client, server });
}

#[test]
fn a_helper_is_a_process_in_the_cgroup_of_its_test() {
    let cgroup = Cgroup::new("helper");
    let joined = cgroup.join();
    let mut helper = Helper::start("echo");
    drop(joined);
    helper.say("hello");
    assert_eq!(helper.hear(), "hello");
    let members = fs::read_to_string(cgroup.path().join("cgroup.procs")).expect("cgroup.procs");
    assert_eq!(members.trim(), helper.pid().to_string());
}

#[test]
fn a_pattern_is_the_same_wherever_it_is_cut() {
    let pattern = Pattern::new(7);
    let mut whole = [0; 100];
    pattern.fill(3, &mut whole);
    for cut in 0..=whole.len() {
        pattern.check(3 + cut as u64, &whole[cut..], "cut");
    }
    let moved = catch_unwind(|| pattern.check(4, &whole, "moved"));
    let message = moved.expect_err("it does not fit");
    let message = message.downcast_ref::<String>().expect("a message");
    assert!(message.contains("belongs at offset 3"), "{message}");
}

fn echo(channel: &mut Channel) {
    while let Some(line) = channel.hear() {
        channel.say(&line);
    }
}

#[test]
#[ignore = "the body of the helper processes"]
fn helper_process() {
    helper::main(&[("echo", echo)]);
}
