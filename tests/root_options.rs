//! Options that redirect cannot honour, set on a socket while messages are
//! being redirected to it: nothing is lost, and from then on it is plain TCP,
//! or the option is refused.

mod common;

use std::net::Shutdown;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket;
use nix::sys::socket::MsgFlags;

use common::books::assert_balanced;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::deadline::wait_at_most;
use common::instance::Instance;
use common::instance::Stats;
use common::option::TCP_INQ;
use common::option::tcp_has_peek_off;
use common::pair::Pair;
use common::pattern::Pattern;
use common::raw::set_option;
use common::stream::recv_all;
use common::stream::recv_some;
use common::stream::send_all;
use common::warm::warm_up;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// What follows goes by the stack.
    Stack,
    /// `EOPNOTSUPP`, and messages go on being redirected.
    Refused,
    /// Turned off or harmless: nothing changes.
    Nothing,
}

struct Case {
    name: &'static str,
    level: i32,
    option: i32,
    value: &'static [u8],
    then: Then,
}

const ONE: &[u8] = &1_i32.to_ne_bytes();
const ZERO: &[u8] = &0_i32.to_ne_bytes();
const EIGHT: &[u8] = &8_i32.to_ne_bytes();
const MEGABIT: &[u8] = &10_000_000_i32.to_ne_bytes();
const MINUS_ONE: &[u8] = &(-1_i32).to_ne_bytes();

const fn socket_option(name: &'static str, option: i32, value: &'static [u8], then: Then) -> Case {
    Case {
        name,
        level: libc::SOL_SOCKET,
        option,
        value,
        then,
    }
}

const fn tcp_option(name: &'static str, option: i32, value: &'static [u8], then: Then) -> Case {
    Case {
        level: libc::SOL_TCP,
        ..socket_option(name, option, value, then)
    }
}

const CASES: &[Case] = &[
    socket_option("SO_RCVLOWAT 8", libc::SO_RCVLOWAT, EIGHT, Then::Stack),
    socket_option("SO_RCVLOWAT 1", libc::SO_RCVLOWAT, ONE, Then::Nothing),
    tcp_option("TCP_INQ", TCP_INQ, ONE, Then::Stack),
    tcp_option("TCP_INQ off", TCP_INQ, ZERO, Then::Nothing),
    socket_option("SO_PEEK_OFF 0", libc::SO_PEEK_OFF, ZERO, Then::Stack),
    socket_option(
        "SO_PEEK_OFF off",
        libc::SO_PEEK_OFF,
        MINUS_ONE,
        Then::Nothing,
    ),
    socket_option("SO_TIMESTAMP", libc::SO_TIMESTAMP, ONE, Then::Stack),
    socket_option("SO_TIMESTAMPNS", libc::SO_TIMESTAMPNS, ONE, Then::Stack),
    // SOF_TIMESTAMPING_RX_SOFTWARE
    socket_option("SO_TIMESTAMPING", libc::SO_TIMESTAMPING, EIGHT, Then::Stack),
    socket_option(
        "SO_MAX_PACING_RATE",
        libc::SO_MAX_PACING_RATE,
        MEGABIT,
        Then::Stack,
    ),
    socket_option("SO_ZEROCOPY", libc::SO_ZEROCOPY, ONE, Then::Refused),
    socket_option("SO_ZEROCOPY off", libc::SO_ZEROCOPY, ZERO, Then::Nothing),
    tcp_option("TCP_ULP", libc::TCP_ULP, b"tls", Then::Refused),
    tcp_option(
        "TCP_ULP, terminated",
        libc::TCP_ULP,
        b"tls\0",
        Then::Refused,
    ),
    tcp_option("TCP_NODELAY", libc::TCP_NODELAY, ONE, Then::Nothing),
    socket_option("SO_KEEPALIVE", libc::SO_KEEPALIVE, ONE, Then::Nothing),
];

/// The cases that this kernel has.
fn cases() -> impl Iterator<Item = &'static Case> {
    let peek_off = tcp_has_peek_off();
    CASES
        .iter()
        .filter(move |case| peek_off || case.option != libc::SO_PEEK_OFF)
}

/// Both directions of a pair, byte by byte, in messages of this size.
struct Talk<'a> {
    pair: &'a Pair,
    at: u64,
}

const MESSAGE: usize = 100;
const ROUNDS: u64 = 20;

impl Talk<'_> {
    fn ends(&self) -> [(&TcpStream, &TcpStream, Pattern); 2] {
        let Pair { client, server } = self.pair;
        [
            (client, server, Pattern::new(1)),
            (server, client, Pattern::new(2)),
        ]
    }

    /// Sends one message each way.
    fn send(&self, ahead: u64) {
        let mut bytes = [0; MESSAGE];
        for (from, _, pattern) in self.ends() {
            pattern.fill(self.at + ahead * MESSAGE as u64, &mut bytes);
            send_all(from, &bytes, Deadline::seconds(10));
        }
    }

    /// Receives and checks one message each way.
    fn receive(&mut self) {
        let mut bytes = [0; MESSAGE];
        for (_, to, pattern) in self.ends() {
            recv_all(to, &mut bytes, Deadline::seconds(10));
            pattern.check(self.at, &bytes, "after the option");
        }
        self.at += MESSAGE as u64;
    }

    fn rounds(&mut self) {
        for _ in 0..ROUNDS {
            self.send(0);
            self.receive();
        }
    }
}

/// One option on one end, with redirected messages waiting and without.
fn one(instance: &Instance, case: &Case, on_server: bool, waiting: u64) -> Result<(), String> {
    let pair = Pair::new();
    warm_up(instance, &pair);
    let mut talk = Talk { pair: &pair, at: 0 };
    for ahead in 0..waiting {
        talk.send(ahead);
    }
    let before = instance.stats();
    let end = if on_server {
        &pair.server
    } else {
        &pair.client
    };
    let set = set_option(end, case.level, case.option, case.value);
    let wanted = if case.then == Then::Refused {
        Err(Errno::EOPNOTSUPP)
    } else {
        Ok(())
    };
    if set != wanted {
        return Err(format!("setsockopt gave {set:?}"));
    }
    for _ in 0..waiting {
        talk.receive();
    }
    // By the stack in both directions or in that to the reader: either will do.
    talk.rounds();
    let after = instance.stats();
    let redirected = after.delta(&before, "redirected_messages");
    let refused = after.delta(&before, "refused_options");
    if refused != u64::from(case.then == Then::Refused) {
        return Err(format!("refused_options grew by {refused}"));
    }
    match case.then {
        Then::Stack if redirected > ROUNDS => Err(counts("redirected to it", &before, &after)),
        Then::Refused | Then::Nothing if redirected < 2 * ROUNDS => {
            Err(counts("no longer redirected", &before, &after))
        }
        _ => Ok(()),
    }
}

fn counts(what: &str, before: &Stats, after: &Stats) -> String {
    format!(
        "{what}: {} messages redirected, {} by the stack: {}",
        after.delta(before, "redirected_messages"),
        after.delta(before, "stack_messages"),
        after.0["stack_reasons"]
    )
}

#[test]
fn options_set_while_redirected_to() {
    let cgroup = Cgroup::new("options");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let mut failures = Vec::new();
    for case in cases() {
        for (on_server, waiting) in [(true, 0), (false, 0), (true, 5), (false, 5)] {
            if let Err(e) = one(&instance, case, on_server, waiting) {
                failures.push(format!(
                    "{} (on the {}, {waiting} messages waiting): {e}",
                    case.name,
                    if on_server { "server" } else { "client" }
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Set before anything was sent, they keep the connection out altogether.
#[test]
fn options_set_before_the_first_message() {
    let cgroup = Cgroup::new("options-early");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let mut failures = Vec::new();
    for case in cases().filter(|case| case.then == Then::Stack) {
        for on_server in [true, false] {
            let pair = Pair::new();
            let before = instance.stats();
            let end = if on_server {
                &pair.server
            } else {
                &pair.client
            };
            set_option(end, case.level, case.option, case.value).expect(case.name);
            Talk { pair: &pair, at: 0 }.rounds();
            let after = instance.stats();
            if after.delta(&before, "redirected_messages") > ROUNDS {
                failures.push(format!(
                    "{} on_server {on_server}: {}",
                    case.name,
                    counts("redirected to it", &before, &after)
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    // It is the options that kept them out.
    warm_up(&instance, &Pair::new());
}

/// What is in the queue when a low-water mark is set can be read.
#[test]
fn a_low_water_mark_above_what_waits() {
    let cgroup = Cgroup::new("options-lowat");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    send_all(&pair.client, b"hell", Deadline::seconds(10));
    set_option(&pair.server, libc::SOL_SOCKET, libc::SO_RCVLOWAT, EIGHT).expect("SO_RCVLOWAT");
    send_all(&pair.client, b"o world!", Deadline::seconds(10));
    let mut bytes = [0; 12];
    recv_all(&pair.server, &mut bytes, Deadline::seconds(10));
    assert_eq!(&bytes, b"hello world!");
    assert!(wait_at_most(&pair.server, PollFlags::POLLIN, 0).is_empty());
    send_all(&pair.client, b"seven b", Deadline::seconds(10));
    assert!(wait_at_most(&pair.server, PollFlags::POLLIN, 100).is_empty());
    send_all(&pair.client, b"y", Deadline::seconds(10));
    assert!(!wait_at_most(&pair.server, PollFlags::POLLIN, 5000).is_empty());
}

/// Peeking goes on where it stopped, over bytes of both kinds.
#[test]
fn a_peek_offset_over_waiting_messages() {
    if !tcp_has_peek_off() {
        return;
    }
    let cgroup = Cgroup::new("options-peek");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    send_all(&pair.client, b"redirected", Deadline::seconds(10));
    set_option(&pair.server, libc::SOL_SOCKET, libc::SO_PEEK_OFF, ZERO).expect("SO_PEEK_OFF");
    let mut bytes = [0; 10];
    recv_all(&pair.server, &mut bytes, Deadline::seconds(10));
    assert_eq!(&bytes, b"redirected");
    send_all(&pair.client, b"by the stack", Deadline::seconds(10));
    wait_at_most(&pair.server, PollFlags::POLLIN, 5000);
    for want in ["by t", "he s", "tack"] {
        let mut bytes = [0; 4];
        let n = socket::recv(pair.server.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK);
        assert_eq!((n, bytes.as_slice()), (Ok(4), want.as_bytes()));
    }
}

/// The usual shape of a reader that blocks: one thread always sleeps in recv(2), and
/// another answers. So the socket is never idle when an ACK comes.
#[test]
fn both_ends_leave_while_a_thread_sleeps_in_recv() {
    let cgroup = Cgroup::new("options-asleep");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    let deadline = Deadline::seconds(30);
    thread::scope(|scope| {
        let (heard, answers) = mpsc::channel();
        let server = &pair.server;
        scope.spawn(move || {
            let mut bytes = [0; 4];
            while recv_some(server, &mut bytes, deadline) > 0 {
                let _ = heard.send(());
            }
        });
        scope.spawn(move || {
            for () in answers {
                // By then the other thread sleeps.
                thread::sleep(Duration::from_millis(2));
                send_all(server, b"pong", deadline);
            }
        });
        let ask = || {
            let mut bytes = [0; 4];
            send_all(&pair.client, b"ping", deadline);
            recv_all(&pair.client, &mut bytes, deadline);
        };
        (0..ROUNDS).for_each(|_| ask());
        let redirected = instance.stats().redirected_messages();
        pair.server.set_nonblocking(false).expect("O_NONBLOCK");
        let left = (0..400).any(|_| {
            ask();
            instance.dump("sockhash").is_empty()
        });
        pair.client.shutdown(Shutdown::Write).expect("shutdown");
        assert!(redirected > ROUNDS, "{redirected}");
        assert!(left, "{:?}", instance.dump("sockhash"));
    });
    assert_balanced(&instance);
}

/// A reader that becomes blocking is left alone, and is plain TCP once its peer has sent
/// to it, whatever waits in both queues.
#[test]
fn nonblock_toggled_after_promotion() {
    let cgroup = Cgroup::new("options-nonblock");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    for (on_server, waiting) in [(true, 0), (true, 5), (false, 0), (false, 5)] {
        let pair = Pair::new();
        warm_up(&instance, &pair);
        let end = if on_server {
            &pair.server
        } else {
            &pair.client
        };
        let mut talk = Talk { pair: &pair, at: 0 };
        for ahead in 0..waiting {
            talk.send(ahead);
        }
        end.set_nonblocking(false).expect("O_NONBLOCK");
        let before = instance.stats();
        for _ in 0..waiting {
            talk.receive();
        }
        talk.rounds();
        let after = instance.stats();
        let redirected = after.delta(&before, "redirected_messages");
        assert!(
            redirected <= ROUNDS,
            "{}",
            counts("redirected to a blocking reader", &before, &after)
        );
        Deadline::seconds(10).until("both ends leave", || {
            talk.rounds();
            instance.dump("sockhash").is_empty()
        });
        end.set_nonblocking(true).expect("O_NONBLOCK");
        let before = instance.stats();
        talk.rounds();
        let after = instance.stats();
        assert_eq!(after.delta(&before, "redirected_messages"), 0);
    }
    let stats = assert_balanced(&instance);
    assert_eq!(stats.by_reason("ejected", "blocking_reader"), 4);
    assert_eq!(stats.by_reason("ejected", "peer_not_eligible"), 4);
    assert_eq!(stats.count("demotions_in_company"), 0);
}
