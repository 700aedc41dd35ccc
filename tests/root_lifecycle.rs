//! `enable` and `disable` lose nothing: not what waits in a redirect queue, not
//! a connection, and not a socket that is used a second time.

mod common;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::listen;
use common::pair::reconnect;
use common::stream::recv_all;
use common::stream::send_all;
use common::warm::assert_redirected;
use common::warm::round_trip;
use common::warm::warm_up;

/// Redirected bytes that nobody has read yet, the instance turned off, then bytes
/// by TCP on the same connection: in order.
#[test]
fn unread_redirected_bytes_survive_disable() {
    let cgroup = Cgroup::new("unread");
    let instance = Instance::enable(&cgroup, &[]);
    let joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    let deadline = Deadline::seconds(10);

    let before = instance.stats();
    send_all(&pair.client, b"redirected, ", deadline);
    send_all(&pair.server, b"and back, ", deadline);
    assert_redirected(&before, &instance.stats(), 22);
    let unread: u64 = instance
        .dump("sockhash")
        .iter()
        .filter_map(|row| row["unread_bytes"].as_u64())
        .sum();
    assert_eq!(unread, 22);
    let ran = instance.run(&["disable", "--timeout", "0"]);
    assert_eq!(ran.code, Some(7), "{ran:?}");

    send_all(&pair.client, b"then by TCP", deadline);
    send_all(&pair.server, b"by TCP as well", deadline);
    let mut to_server = [0; 23];
    let mut to_client = [0; 24];
    recv_all(&pair.server, &mut to_server, deadline);
    recv_all(&pair.client, &mut to_client, deadline);
    assert_eq!(&to_server, b"redirected, then by TCP");
    assert_eq!(&to_client, b"and back, by TCP as well");
    instance.disable().ok();
    round_trip(&pair);
    drop(joined);
}

/// What an earlier instance enrolled does not disturb the next one.
#[test]
fn a_new_instance_after_disable_accelerates_new_connections() {
    let cgroup = Cgroup::new("again");
    let joined = cgroup.join();
    let first = Instance::enable(&cgroup, &[]);
    let old = Pair::new();
    warm_up(&first, &old);
    first.disable().ok();
    let second = Instance::enable(&cgroup, &[]);
    let new = Pair::new();
    warm_up(&second, &new);
    round_trip(&old);
    drop(joined);
}

/// `connect(AF_UNSPEC)` and connect again: neither unread redirected bytes of the
/// old connection nor new ones of its old peer may show up in the new one.
#[test]
fn a_socket_connected_twice_is_never_mistaken_for_its_old_self() {
    let cgroup = Cgroup::new("reused");
    let instance = Instance::enable(&cgroup, &[]);
    let joined = cgroup.join();
    let old = Pair::new();
    warm_up(&instance, &old);
    let deadline = Deadline::seconds(10);
    let before = instance.stats();
    send_all(&old.server, b"OLD SECRET", deadline);
    assert_redirected(&before, &instance.stats(), 10);

    let listener = listen(&Options::default());
    reconnect(&old.client, listener.local_addr().expect("getsockname"));
    let server = accept(&listener, &Options::default());
    // The old peer still has its socket, and may not know yet.
    let _ = nix::unistd::write(&old.server, b"OLD SECRET, LATE");
    send_all(&server, b"new", deadline);
    let mut got = [0; 3];
    recv_all(&old.client, &mut got, deadline);
    assert_eq!(&got, b"new");
    send_all(&old.client, b"also new", deadline);
    let mut got = [0; 8];
    recv_all(&server, &mut got, deadline);
    assert_eq!(&got, b"also new");
    let stats = instance.stats();
    assert_eq!(stats.by_reason("skipped", "reused"), 1, "{}", stats.0);
    drop(joined);
}
