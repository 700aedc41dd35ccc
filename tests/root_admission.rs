//! A server whose connections are too short to profit: most of them are passed
//! over, until some profit again.

mod common;

use std::net::TcpListener;

use common::books::assert_balanced;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::pair::Options;
use common::pair::Pair;
use common::pair::listen;
use common::tagged::Tagged;
use common::warm::round_trip;
use common::warm::warm_up;

/// More than are taken at once, see admit.h.
const MANY: u64 = 400;

fn one_shots(listener: &TcpListener) {
    for tag in 0..MANY {
        let pair = Pair::on(listener, &Options::default());
        Tagged::new("one shot", tag, pair).exchange(1);
    }
}

#[test]
fn servers_of_one_shot_connections_are_passed_over() {
    let cgroup = Cgroup::new("one-shot");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let listener = listen(&Options::default());
    one_shots(&listener);
    let stats = assert_balanced(&instance);
    assert_eq!(stats.count("seen"), 2 * MANY);
    let passed = stats.by_reason("skipped", "short_lived");
    assert!(passed > MANY / 4, "{}", stats.0);
    assert_eq!(stats.by_reason("skipped", "peer_not_eligible"), passed);
    let text = instance.run(&["status"]).ok().stdout;
    assert!(text.contains("too short to profit"), "{text}");
    assert!(text.contains("--admission all"), "{text}");

    // Another server is not judged by them.
    let passed = instance.stats().by_reason("skipped", "short_lived");
    let other = listen(&Options::default());
    let _pair = Pair::on(&other, &Options::default());
    let stats = assert_balanced(&instance);
    assert_eq!(stats.by_reason("skipped", "short_lived"), passed);

    // A sample is always taken, and what it earns lets the next ones in.
    let before = instance.stats();
    Deadline::seconds(30).until("a connection that is redirected", || {
        let pair = Pair::on(&listener, &Options::default());
        for _ in 0..50 {
            round_trip(&pair);
        }
        instance.stats().delta(&before, "redirected_messages") > 0
    });
}

#[test]
fn servers_whose_connections_profit_are_not_passed_over() {
    let cgroup = Cgroup::new("profit");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let listener = listen(&Options::default());
    for tag in 0..MANY {
        let pair = Pair::on(&listener, &Options::default());
        Tagged::new("profits", tag, pair).exchange(12);
    }
    let stats = assert_balanced(&instance);
    assert_eq!(stats.by_reason("skipped", "short_lived"), 0, "{}", stats.0);
    assert!(stats.redirected_messages() > MANY * 10, "{}", stats.0);
}

#[test]
fn all_are_admitted_on_request() {
    let cgroup = Cgroup::new("admit-all");
    let instance = Instance::enable(&cgroup, &["--admission", "all"]);
    let _joined = cgroup.join();
    let listener = listen(&Options::default());
    one_shots(&listener);
    let stats = assert_balanced(&instance);
    assert_eq!(stats.by_reason("skipped", "short_lived"), 0, "{}", stats.0);
    assert_eq!(stats.count("enrolled"), 2 * MANY, "{}", stats.0);
    // And admitted ones are redirected as soon as they live that long.
    warm_up(&instance, &Pair::on(&listener, &Options::default()));
}

/// The program runs once for each cgroup.
#[test]
fn what_is_passed_over_in_nested_cgroups_is_counted_once() {
    let outer = Cgroup::new("passed");
    let inner = outer.nested("inner");
    let instance = Instance::enable(&outer, &["--exclude-port", "1-65535"]);
    instance.enable_more(&[&inner], &[]).ok();
    let _joined = inner.join();
    let listener = listen(&Options::default());
    one_shots(&listener);
    let stats = assert_balanced(&instance);
    assert_eq!(stats.count("seen"), 2 * MANY, "{}", stats.0);
    assert_eq!(stats.by_reason("skipped", "filtered"), MANY);
}
