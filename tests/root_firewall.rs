//! What nftables and captures see of a redirected connection: `docs/security.md`.

mod common;

use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::process::Command;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::netns::Netns;
use common::pair::Pair;
use common::raw;
use common::stream::recv_all;
use common::stream::send_all;
use common::warm::round_trip;
use common::warm::warm_up;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use nix::errno::Errno;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::recv;
use nix::sys::socket::socket;
use sockaccel::maps::layout::Sock;
use zerocopy::FromBytes as _;
use zerocopy::IntoBytes as _;

/// More jiffies than a direction is redirected without a message by the stack:
/// `SA_REFRESH_JIFFIES` of inspect.h.
const LONG: u64 = 60_001;

/// Counts, and then does something with, the messages for the server of a pair. Bare
/// acknowledgements of what went before have no PSH, and nothing of it is sent again.
fn add_rule(netns: &Netns, pair: &Pair, then: &str) {
    raw::acknowledged(&pair.client);
    let port = pair.server.local_addr().expect("getsockname").port();
    netns.run(
        "nft",
        &[&format!(
            "add table ip sat; add chain ip sat in {{ type filter hook input priority 0; }}; \
             add rule ip sat in tcp dport {port} tcp flags & psh == psh counter {then}"
        )],
    );
}

/// Has it met a message?
fn has_met_any(netns: &Netns) -> bool {
    let mut list = Command::new("nft");
    list.args(["list", "chain", "ip", "sat", "in"]);
    let listed = netns.enter(|| list.output().expect("nft"));
    let text = String::from_utf8(listed.stdout).expect("UTF-8");
    assert!(text.contains("counter packets"), "{text}");
    !text.contains("counter packets 0 ")
}

/// The connection was last on the stack that many jiffies earlier than it was.
fn age(instance: &Instance, stream: &TcpStream, jiffies: u64) {
    let map = MapHandle::from_pinned_path(instance.dir().join("sa_socks"));
    let map = map.expect("sa_socks");
    let key = stream.as_raw_fd().to_ne_bytes();
    let bytes = map.lookup(&key, MapFlags::ANY).expect("a look-up");
    let mut sock = Sock::read_from_bytes(&bytes.expect("an entry")).expect("its size");
    sock.stack_at -= jiffies;
    let updated = map.update(&key, sock.as_bytes(), MapFlags::EXIST);
    updated.expect("an update");
}

#[test]
fn a_rule_that_is_added_later_stops_what_goes_by_the_stack_only() {
    let netns = Netns::new("later-rule");
    let cgroup = Cgroup::new("later-rule");
    let _joined = cgroup.join();
    let plain = netns.enter(Pair::new);
    let instance = Instance::enable(&cgroup, &[]);
    let redirected = netns.enter(Pair::new);
    warm_up(&instance, &redirected);

    add_rule(&netns, &redirected, "drop");
    for _ in 0..20 {
        round_trip(&redirected);
    }
    assert!(!has_met_any(&netns));

    netns.run("nft", &["delete table ip sat"]);
    add_rule(&netns, &plain, "drop");
    let deadline = Deadline::seconds(60);
    send_all(&plain.client, b"ping", deadline);
    deadline.until("a message", || has_met_any(&netns));
    netns.run("nft", &["delete table ip sat"]);
    recv_all(&plain.server, &mut [0; 4], deadline);
}

/// What tcpdump(8) reads from.
fn capture() -> OwnedFd {
    socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .expect("a packet socket")
}

/// Does one of the packets that it has waiting end with this?
fn has_captured(capture: &OwnedFd, payload: &[u8]) -> bool {
    let mut packet = [0; 2048];
    let mut found = false;
    loop {
        match recv(capture.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(n) => found |= packet[..n].ends_with(payload),
            Err(Errno::EAGAIN) => return found,
            Err(e) => panic!("recv: {e}"),
        }
    }
}

#[test]
fn a_capture_shows_what_goes_by_the_stack_only() {
    let netns = Netns::new("capture");
    let cgroup = Cgroup::new("capture");
    let _joined = cgroup.join();
    let plain = netns.enter(Pair::new);
    let instance = Instance::enable(&cgroup, &[]);
    let redirected = netns.enter(Pair::new);
    warm_up(&instance, &redirected);

    let capture = netns.enter(capture);
    round_trip(&redirected);
    assert!(!has_captured(&capture, b"ping"));
    round_trip(&plain);
    assert!(has_captured(&capture, b"ping"));
}

/// What follows connections forgets those that it does not hear of.
#[test]
fn what_is_redirected_for_long_shows_itself_to_the_stack() {
    let netns = Netns::new("refresh");
    let cgroup = Cgroup::new("refresh");
    let _joined = cgroup.join();
    let instance = Instance::enable(&cgroup, &[]);
    let pair = netns.enter(Pair::new);
    warm_up(&instance, &pair);
    add_rule(&netns, &pair, "accept");
    round_trip(&pair);
    assert!(!has_met_any(&netns));

    age(&instance, &pair.client, LONG);
    round_trip(&pair);
    assert!(has_met_any(&netns));
    let stats = instance.stats();
    assert_eq!(stats.by_reason("demotions", "refresh"), 1, "{}", stats.0);
    warm_up(&instance, &pair);
    let stats = instance.stats();
    assert_eq!(stats.by_reason("demotions", "refresh"), 1, "{}", stats.0);
}
