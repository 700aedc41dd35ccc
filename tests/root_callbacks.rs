//! Another `sock_ops` program on the same cgroup sets callback flags of its own, which
//! replaces all that a socket has.

mod common;

use std::thread;
use std::time::Duration;

use common::books::assert_balanced;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::other_program::OtherProgram;
use common::other_program::RTO_CALLBACK;
use common::other_program::RTT_CALLBACK;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::pair::reconnect;
use common::warm::round_trip;
use common::warm::warm_up;

const ROUND_TRIPS: u64 = 20;

fn wait_until_nothing_is_left(instance: &Instance) {
    Deadline::seconds(30).until("empty tables", || instance.is_empty());
}

/// More connections than there is room for, some at a time.
#[test]
fn connections_end_where_ours_were_taken_away() {
    let cgroup = Cgroup::new("callbacks");
    let instance = Instance::enable(&cgroup, &["--max-sockets", "64"]);
    let other = OtherProgram::attach_with_flags(&cgroup, RTO_CALLBACK);
    let _joined = cgroup.join();
    let mut redirected = 0;
    for _ in 0..5 {
        let pairs: Vec<Pair> = (0..30).map(|_| Pair::new()).collect();
        let before = instance.stats();
        for pair in &pairs {
            for _ in 0..ROUND_TRIPS {
                round_trip(pair);
            }
        }
        let open = instance.stats();
        let sent = 30 * 2 * ROUND_TRIPS;
        let now = open.delta(&before, "redirected_messages");
        redirected += now;
        assert_eq!(now + open.delta(&before, "stack_messages"), sent);
        assert!(now > sent / 2, "{}", open.0);
        drop(pairs);
        wait_until_nothing_is_left(&instance);
        let closed = instance.stats();
        assert_eq!(closed.redirected_messages(), redirected);
        assert_eq!(closed.redirected_bytes(), redirected * 4);
    }
    let stats = assert_balanced(&instance);
    assert_eq!(stats.count("enrolled"), 300);
    assert_eq!(stats.count("enrolled_now"), 0);
    assert_eq!(
        other.acks(),
        0,
        "the other program's flags are not in force"
    );
}

/// One socket's callbacks are all there, the other's are not.
#[test]
fn a_connection_ends_where_one_end_lost_its_callbacks() {
    let (client, server) = (Cgroup::new("callbacks"), Cgroup::new("callbacks"));
    let instance = Instance::try_enable(&[&client, &server], &[]).expect("enabled");
    let _other = OtherProgram::attach_with_flags(&server, RTO_CALLBACK);
    for _ in 0..3 {
        let pair = Pair::between(&client, &server);
        warm_up(&instance, &pair);
        drop(pair.server);
        drop(pair.client);
        wait_until_nothing_is_left(&instance);
    }
    let stats = assert_balanced(&instance);
    assert_eq!(stats.count("enrolled"), 6);
    assert_eq!(stats.count("enrolled_now"), 0);
}

fn acks_go_on(instance: &Instance, cgroup: &Cgroup, other: &OtherProgram) {
    let _joined = cgroup.join();
    let options = Options {
        server_nonblocking: false,
        ..Options::default()
    };
    let pair = Pair::with(&options);
    Deadline::seconds(10).until("ejected or skipped", || {
        round_trip(&pair);
        instance.dump("sockhash").is_empty()
    });
    // Ours are through with it after the next ACK of each end.
    round_trip(&pair);
    let before = other.acks();
    for _ in 0..ROUND_TRIPS {
        round_trip(&pair);
    }
    assert!(other.acks() > before, "{before} ACKs, and no more");
}

#[test]
fn acks_that_another_program_asked_for_before_go_on() {
    let cgroup = Cgroup::new("callbacks");
    let other = OtherProgram::attach_with_flags(&cgroup, RTT_CALLBACK);
    let instance = Instance::enable(&cgroup, &[]);
    acks_go_on(&instance, &cgroup, &other);
}

#[test]
fn acks_that_another_program_asked_for_after_go_on() {
    let cgroup = Cgroup::new("callbacks");
    let instance = Instance::enable(&cgroup, &[]);
    let other = OtherProgram::attach_with_flags(&cgroup, RTT_CALLBACK);
    acks_go_on(&instance, &cgroup, &other);
}

/// Clients of a server that is elsewhere: by the time that shows they have closed.
#[test]
fn lonely_sockets_are_counted_as_closed() {
    let (clients, elsewhere) = (Cgroup::new("callbacks"), Cgroup::new("callbacks"));
    let instance = Instance::enable(&clients, &[]);
    let _other = OtherProgram::attach_with_flags(&clients, RTO_CALLBACK);
    for _ in 0..5 {
        drop(Pair::between(&clients, &elsewhere));
    }
    wait_until_nothing_is_left(&instance);
    let stats = assert_balanced(&instance);
    assert_eq!(stats.count("seen"), 5);
    assert_eq!(stats.count("enrolled_now"), 0, "{}", stats.0);
}

/// `connect(AF_UNSPEC)`, and again: each connection leaves when the next one begins.
#[test]
fn a_socket_that_is_connected_again_holds_no_room() {
    let cgroup = Cgroup::new("callbacks");
    let instance = Instance::enable(&cgroup, &["--max-sockets", "16"]);
    let _other = OtherProgram::attach_with_flags(&cgroup, RTO_CALLBACK);
    let _joined = cgroup.join();
    let listener = listen(&Options::default());
    let mut pair = Pair::on(&listener, &Options::default());
    for _ in 0..ROUND_TRIPS {
        round_trip(&pair);
    }
    for _ in 0..80 {
        reconnect(&pair.client, listener.local_addr().expect("getsockname"));
        pair.server = accept(&listener, &Options::default());
        round_trip(&pair);
    }
    let stats = assert_balanced(&instance);
    assert_eq!(stats.by_reason("skipped", "map_full"), 0, "{}", stats.0);
    assert!(stats.redirected_messages() > ROUND_TRIPS, "{}", stats.0);
    let rows = || instance.dump("connections").len();
    Deadline::seconds(30).until("only the last one", || rows() == 2);
}

/// The watch looks many times at what is not accepted; its rests begin after that.
#[test]
fn what_was_accepted_late_is_collected_as_soon() {
    let cgroup = Cgroup::new("callbacks");
    let instance = Instance::enable(&cgroup, &[]);
    let _other = OtherProgram::attach_with_flags(&cgroup, RTO_CALLBACK);
    let _joined = cgroup.join();
    let listener = listen(&Options::default());
    let client = connect(
        listener.local_addr().expect("getsockname"),
        &Options::default(),
    );
    thread::sleep(Duration::from_millis(100));
    let server = accept(&listener, &Options::default());
    let pair = Pair { client, server };
    warm_up(&instance, &pair);
    drop(pair);
    wait_until_nothing_is_left(&instance);
}

/// Short connections earn what they have redirected, though nobody tells at their end.
#[test]
fn what_profits_is_admitted() {
    const CONNECTIONS: u64 = 300;
    let cgroup = Cgroup::new("callbacks");
    let instance = Instance::enable(&cgroup, &[]);
    let _other = OtherProgram::attach_with_flags(&cgroup, RTO_CALLBACK);
    let _joined = cgroup.join();
    let listener = listen(&Options::default());
    for _ in 0..CONNECTIONS {
        let pair = Pair::on(&listener, &Options::default());
        for _ in 0..100 {
            round_trip(&pair);
        }
    }
    let stats = assert_balanced(&instance);
    assert_eq!(stats.count("enrolled"), 2 * CONNECTIONS, "{}", stats.0);
}
