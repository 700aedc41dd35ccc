//! The decision logic of `src/bpf/path.h`, `policy.h` and `pairing.h`, run in
//! the kernel with tables of cases. No traffic: `decide_test.bpf.c` calls it.

mod common;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::path::Path;

use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapMut;
use libbpf_rs::OpenObject;
use libbpf_rs::ProgramInput;
use libbpf_rs::ProgramMut;
use libbpf_rs::ProgramType;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::MemberAttr;
use libbpf_rs::btf::types::Struct;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::SkelBuilder as _;
use sockaccel::maps::layout;
use sockaccel::maps::layout::Addr;
use sockaccel::maps::layout::Adoption;
use sockaccel::maps::layout::Audience;
use sockaccel::maps::layout::Candidate;
use sockaccel::maps::layout::Cidr;
use sockaccel::maps::layout::Config;
use sockaccel::maps::layout::Conn;
use sockaccel::maps::layout::Dump;
use sockaccel::maps::layout::EGRESS;
use sockaccel::maps::layout::Endpoint;
use sockaccel::maps::layout::Event;
use sockaccel::maps::layout::INGRESS;
use sockaccel::maps::layout::Policy;
use sockaccel::maps::layout::PolicyKey;
use sockaccel::maps::layout::Service;
use sockaccel::maps::layout::ServiceKey;
use sockaccel::maps::layout::Side;
use sockaccel::maps::layout::Sock;
use sockaccel::maps::layout::Tuple;
use sockaccel::outcome::Outcome;
use sockaccel::outcome::REASONS;
use sockaccel::outcome::WHYS;
use zerocopy::FromBytes;
use zerocopy::FromZeros as _;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unsafe_code,
    clippy::undocumented_unsafe_blocks
)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/decide_test.skel.rs"));
}

const TCP: u8 = 6;

/// `struct sa_view` of path.h.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct View {
    why: u32,
    forced: u32,
    alone: u32,
    write_seq: u32,
    copied_seq: u32,
    queue_empty: u32,
    queue_long: u32,
    splicing: u32,
    another_thread: u32,
    answered: u32,
    size: u32,
    budget_bytes: u32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DecideCase {
    st: Sock,
    conf: Config,
    view: View,
    why: u32,
    pad: u32,
}

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct IdentityCase {
    addr: Addr,
    identity: u32,
}

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct LookupCase {
    key: PolicyKey,
    verdict: i32,
    tier: u32,
}

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct TablesCase {
    client: Tuple,
    server: Tuple,
    client_sends: u32,
    why: u32,
    tier: u32,
}

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FilterCase {
    conf: Config,
    addr: Addr,
    port: u32,
    filtered: u32,
}

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ServiceCase {
    client: Tuple,
    count: u32,
    on_stack: u32,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct MatchCase {
    conn: Conn,
    side: u32,
    reason: u32,
    /// `struct sa_conn` is aligned to a cache line.
    pad: [u32; 14],
}

/// Loads the test programs, for one test: each starts with empty tables.
fn load(storage: &mut MaybeUninit<OpenObject>) -> skel::DecideTestSkel<'_> {
    common::require_root();
    skel::DecideTestSkelBuilder::default()
        .open(storage)
        .expect("open the test object")
        .load()
        .expect("load the test programs")
}

/// Runs a program on a case: its context, or its packet. What the program
/// wrote there is in it afterwards.
fn run<T: IntoBytes + FromBytes + Immutable>(program: &ProgramMut<'_>, case: &mut T) {
    let sent = case.as_bytes().to_vec();
    let input = if program.prog_type() == ProgramType::Syscall {
        ProgramInput {
            context_in: Some(case.as_mut_bytes()),
            ..ProgramInput::default()
        }
    } else {
        ProgramInput {
            data_in: Some(&sent),
            data_out: Some(case.as_mut_bytes()),
            ..ProgramInput::default()
        }
    };
    let ran = program.test_run(input).expect("BPF_PROG_TEST_RUN");
    assert_eq!(ran.return_value, 0);
}

fn set<K: IntoBytes + Immutable, V: IntoBytes + Immutable>(map: &MapMut<'_>, key: &K, value: &V) {
    map.update(key.as_bytes(), value.as_bytes(), MapFlags::ANY)
        .expect("fill a table");
}

fn get<V: FromBytes>(map: &MapMut<'_>, key: &(impl IntoBytes + Immutable)) -> V {
    let bytes = map
        .lookup(key.as_bytes(), MapFlags::ANY)
        .expect("look up")
        .expect("the entry is there");
    V::read_from_bytes(&bytes).expect("its layout")
}

fn name(outcomes: &'static [Outcome], index: u32) -> &'static str {
    outcomes
        .get(index as usize)
        .map_or("out of range", |outcome| outcome.name)
}

fn index(outcomes: &[Outcome], name: &str) -> u32 {
    let at = outcomes.iter().position(|outcome| outcome.name == name);
    u32::try_from(at.unwrap_or_else(|| panic!("no outcome {name}"))).expect("small")
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("an address").into()
}

fn cidr(text: &str) -> Cidr {
    text.parse::<ipnet::IpNet>().expect("a network").into()
}

const STACK: u32 = 0;
const REDIRECT: u32 = layout::PATH_REDIRECT;

/// A receiver that has read everything, an empty queue, a lonely sender: the
/// direction is redirected, from either path. Cases change what they are about.
fn ready(path: u32) -> DecideCase {
    DecideCase {
        st: Sock {
            path,
            first_seq: 100,
            promoted_seq: if path == REDIRECT { 500 } else { 0 },
            ..Sock::new_zeroed()
        },
        conf: Config {
            budget_messages: 4,
            budget_bytes: 1000,
            ..Config::new_zeroed()
        },
        view: View {
            alone: 1,
            write_seq: 500,
            copied_seq: 500,
            queue_empty: 1,
            size: 64,
            budget_bytes: 1000,
            ..View::new_zeroed()
        },
        why: u32::MAX,
        pad: 0,
    }
}

/// Messages and bytes wait in the peer's queue.
fn queued(case: &mut DecideCase, messages: u32, bytes: u32) {
    case.view.queue_empty = 0;
    case.st.queued_messages = messages;
    case.st.queued_bytes = bytes;
}

fn in_company(case: &mut DecideCase) {
    case.view.alone = 0;
    case.view.another_thread = 1;
}

fn denied(case: &mut DecideCase) {
    case.view.why = index(WHYS, "denied");
}

fn streaming(case: &mut DecideCase) {
    case.conf.stream_limit = 100;
    case.st.lost = 100;
}

/// The change to a ready direction, and why it then goes by the stack.
type Decision = (&'static str, fn(&mut DecideCase), &'static str);

const ENTER: &[Decision] = &[
    ("ready", |_| {}, "redirected"),
    ("unread", |c| c.view.copied_seq = 100, "unread"),
    (
        "unread, and nothing was sent",
        |c| (c.view.copied_seq, c.view.write_seq) = (100, 100),
        "unread",
    ),
    ("behind by a byte", |c| c.view.copied_seq = 499, "behind"),
    (
        "copied_seq beyond write_seq is no proof either",
        |c| c.view.copied_seq = 501,
        "behind",
    ),
    (
        "sequence numbers wrap",
        |c| (c.st.first_seq, c.view.copied_seq, c.view.write_seq) = (u32::MAX - 3, 7, 7),
        "redirected",
    ),
    ("what stands against it", denied, "denied"),
    (
        "what stands against it comes before everything else",
        |c| {
            denied(c);
            in_company(c);
            c.view.copied_seq = 100;
        },
        "denied",
    ),
    (
        "forced",
        |c| {
            c.view.why = index(WHYS, "peer_state");
            c.view.forced = 1;
        },
        "peer_state",
    ),
    ("not alone", |c| c.view.alone = 0, "company"),
    ("was in company", |c| c.st.company = 1, "company"),
    (
        "was in company, rule off",
        |c| (c.st.company, c.conf.without_company_rule) = (1, 1),
        "redirected",
    ),
    (
        "not alone, rule off",
        |c| (c.view.alone, c.conf.without_company_rule) = (0, 1),
        "redirected",
    ),
    ("messages over budget wait", |c| queued(c, 4, 4), "budget"),
    ("bytes over budget wait", |c| queued(c, 1, 937), "budget"),
    (
        "the last byte that fits",
        |c| queued(c, 1, 936),
        "redirected",
    ),
    ("a stream", streaming, "stream"),
    (
        "almost a stream",
        |c| {
            streaming(c);
            c.st.lost = 99;
        },
        "redirected",
    ),
    (
        "a stream, but senders of streams stay",
        |c| {
            streaming(c);
            c.conf.stream_limit = 0;
        },
        "redirected",
    ),
    (
        "an empty queue forgets what was counted",
        |c| (c.st.queued_messages, c.st.queued_bytes) = (4, 1000),
        "redirected",
    ),
    (
        "one message of any size into an empty queue",
        |c| c.view.size = 50_000,
        "redirected",
    ),
    (
        "the size does not overflow",
        |c| {
            queued(c, 1, u32::MAX);
            c.view.size = 2;
        },
        "budget",
    ),
];

const STAY: &[Decision] = &[
    ("nothing changed", |_| {}, "redirected"),
    (
        "redirected bytes do not move copied_seq",
        |c| c.view.copied_seq = 300,
        "redirected",
    ),
    (
        "write_seq moved: bytes went by TCP",
        |c| c.view.write_seq = 501,
        "behind",
    ),
    (
        "write_seq moved, also in company",
        |c| {
            in_company(c);
            c.view.write_seq = 501;
        },
        "behind",
    ),
    ("something stands against it", denied, "denied"),
    (
        "something stands against it, unread messages",
        |c| {
            denied(c);
            queued(c, 1, 64);
        },
        "redirected",
    ),
    (
        "something stood against it, and the queue is empty now",
        |c| c.st.leaving = u16::try_from(index(WHYS, "denied")).expect("small"),
        "denied",
    ),
    (
        "something stands against it, not alone",
        |c| {
            denied(c);
            c.view.alone = 0;
            c.st.others = 1;
        },
        "redirected",
    ),
    (
        "something stands against it, not alone, but nobody else has sent",
        |c| {
            denied(c);
            c.view.alone = 0;
        },
        "denied",
    ),
    (
        "something stands against it, not alone, rule off",
        |c| {
            denied(c);
            c.view.alone = 0;
            c.conf.without_company_rule = 1;
        },
        "denied",
    ),
    (
        "short of memory is no reason to pass unread messages by",
        |c| {
            c.view.why = index(WHYS, "pressure");
            queued(c, 1, 64);
        },
        "redirected",
    ),
    ("a stream", streaming, "stream"),
    (
        "a stream, unread messages",
        |c| {
            streaming(c);
            queued(c, 1, 64);
        },
        "redirected",
    ),
    ("messages over budget", |c| queued(c, 4, 4), "redirected"),
    ("one message less", |c| queued(c, 3, 4), "redirected"),
    ("bytes over budget", |c| queued(c, 1, 937), "redirected"),
    (
        "the last byte that fits",
        |c| queued(c, 1, 936),
        "redirected",
    ),
    (
        "over budget, but the queue is empty",
        |c| (c.st.queued_messages, c.st.queued_bytes) = (4, 1000),
        "redirected",
    ),
    (
        "one message of any size into an empty queue",
        |c| c.view.size = 50_000,
        "redirected",
    ),
    (
        "over budget, not alone",
        |c| {
            queued(c, 4, 4);
            in_company(c);
        },
        "redirected",
    ),
    (
        "over the hard cap, but the queue is short by now",
        |c| {
            queued(c, 2048, 20480);
            in_company(c);
        },
        "redirected",
    ),
    (
        "over the hard cap in messages, a long queue",
        |c| {
            queued(c, 2048, 20480);
            in_company(c);
            c.view.queue_long = 1;
        },
        "budget",
    ),
    (
        "one message below the hard cap",
        |c| {
            queued(c, 2047, 20470);
            in_company(c);
            c.view.queue_long = 1;
        },
        "redirected",
    ),
    (
        "over the hard cap in bytes, a long queue",
        |c| {
            queued(c, 8, 2 << 20);
            in_company(c);
            c.view.queue_long = 1;
        },
        "budget",
    ),
    (
        "denied at the hard cap, in company",
        |c| {
            denied(c);
            queued(c, 2048, 20480);
            in_company(c);
            c.view.queue_long = 1;
        },
        "denied",
    ),
    ("company", in_company, "redirected"),
    (
        "not alone, but the same thread",
        |c| c.view.alone = 0,
        "redirected",
    ),
    ("alone again after company", |c| c.st.company = 1, "company"),
    (
        "another thread, one after the other",
        |c| c.view.another_thread = 1,
        "redirected",
    ),
    (
        "a splicing reader with an empty queue",
        |c| {
            c.view.why = index(WHYS, "splicing");
            c.view.splicing = 1;
        },
        "splicing",
    ),
    (
        "a splicing reader with unread messages",
        |c| {
            c.view.why = index(WHYS, "splicing");
            c.view.splicing = 1;
            queued(c, 1, 64);
        },
        "redirected",
    ),
    (
        "a splicing reader over budget",
        |c| {
            c.view.splicing = 1;
            queued(c, 4, 64);
        },
        "redirected",
    ),
    (
        "a splicing reader over the hard cap, a long queue",
        |c| {
            c.view.splicing = 1;
            queued(c, 2048, 20480);
            c.view.queue_long = 1;
        },
        "stuck",
    ),
    (
        "a splicing reader over the hard cap, in company",
        |c| {
            c.view.splicing = 1;
            queued(c, 8, 2 << 20);
            in_company(c);
            c.view.queue_long = 1;
        },
        "stuck",
    ),
    (
        "a splicing reader one message below the hard cap",
        |c| {
            c.view.splicing = 1;
            queued(c, 2047, 20470);
            c.view.queue_long = 1;
        },
        "redirected",
    ),
    (
        "a splicing reader over the hard cap, but the queue is short by now",
        |c| {
            c.view.splicing = 1;
            queued(c, 2048, 20480);
        },
        "redirected",
    ),
    (
        "forced, whatever is in flight",
        |c| {
            c.view.why = index(WHYS, "peer_state");
            c.view.forced = 1;
            c.view.splicing = 1;
            queued(c, 1, 64);
            in_company(c);
        },
        "peer_state",
    ),
];

#[test]
fn directions_are_redirected_only_with_proof() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(&mut storage);
    for &(what, change, why) in ENTER {
        let mut case = ready(STACK);
        change(&mut case);
        let before = case;
        run(&skel.progs.test_decide, &mut case);
        assert_eq!(name(WHYS, case.why), why, "{what}: {case:?}");
        let promoted = why == "redirected";
        let after = case.st;
        assert_eq!(after.path, u32::from(promoted), "{what}");
        assert_eq!(after.promotions, u32::from(promoted), "{what}");
        assert_eq!(after.demotions, 0, "{what}");
        if promoted {
            assert_eq!(after.promoted_seq, before.view.write_seq, "{what}");
        }
        check_queue(what, &before, &after);
    }
}

#[test]
fn redirected_directions_leave_when_they_must_and_can() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(&mut storage);
    for &(what, change, why) in STAY {
        let mut case = ready(REDIRECT);
        change(&mut case);
        let before = case;
        run(&skel.progs.test_decide, &mut case);
        assert_eq!(name(WHYS, case.why), why, "{what}: {case:?}");
        // A stuck message is refused: it took neither path.
        let stays = ["redirected", "stuck"].contains(&why);
        let after = case.st;
        assert_eq!(after.path, u32::from(stays), "{what}");
        assert_eq!(after.demotions, u32::from(!stays), "{what}");
        assert_eq!(after.promotions, 0, "{what}");
        assert_eq!(after.promoted_seq, before.st.promoted_seq, "{what}");
        if before.view.forced == 0 && before.view.write_seq == before.st.promoted_seq {
            let seen = before.view.alone == 0 && before.view.another_thread == 1;
            assert_eq!(after.company, before.st.company | u32::from(seen), "{what}");
        }
        check_queue(what, &before, &after);
    }
}

fn check_queue(what: &str, before: &DecideCase, after: &Sock) {
    let kept = before.view.queue_empty == 0;
    let want = |counted| if kept { counted } else { 0 };
    assert_eq!(
        (after.queued_messages, after.queued_bytes),
        (
            want(before.st.queued_messages),
            want(before.st.queued_bytes)
        ),
        "{what}"
    );
}

/// What messages of these kinds add to `lost`, or take from it, in a row.
#[test]
fn enrolment_pays_where_messages_are_answered() {
    type Kind = (&'static str, fn(&mut DecideCase), u32, i64);
    const KINDS: &[Kind] = &[
        ("request and response", |c| c.view.answered = 1, 100, -400),
        (
            "a pipeline of 32 requests",
            |c| c.view.answered = u32::from(c.st.unanswered == 31),
            3200,
            -400,
        ),
        ("small ones, never answered", |_| {}, 1064, 1000),
        (
            "large ones, never answered",
            |c| c.view.size = 64 << 10,
            10,
            -320,
        ),
        (
            "the reader is behind",
            |c| c.view.write_seq += 1,
            1000,
            1000,
        ),
        (
            "the reader is behind large ones",
            |c| (c.view.write_seq, c.view.size) = (c.view.write_seq + 1, 64 << 10),
            100,
            1700,
        ),
        ("denied: a later policy may allow it", denied, 1000, 0),
    ];
    let mut storage = MaybeUninit::uninit();
    let skel = load(&mut storage);
    for &(what, change, messages, expected) in KINDS {
        let fresh = ready(STACK);
        let mut case = fresh;
        case.st.lost = 1000;
        for _ in 0..messages {
            case.view = fresh.view;
            change(&mut case);
            run(&skel.progs.test_decide, &mut case);
        }
        assert_eq!(i64::from(case.st.lost) - 1000, expected, "{what}: {case:?}");
    }
}

/// A direction once in company never comes back, however lonely it is later.
#[test]
fn company_is_for_good() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(&mut storage);
    let mut case = ready(REDIRECT);
    let lonely = case.view;
    in_company(&mut case);
    let mut said = Vec::new();
    for _ in 0..3 {
        run(&skel.progs.test_decide, &mut case);
        said.push(name(WHYS, case.why));
        case.view = lonely;
    }
    assert_eq!(said, ["redirected", "company", "company"]);
}

#[test]
fn identities_come_from_the_endpoint_then_the_longest_prefix_then_the_host() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(&mut storage);
    for (at, identity, host) in [
        ("10.0.0.1", 11, 0),
        ("10.0.0.2", 0, 0),
        ("10.0.0.3", 0, 1),
        ("192.0.2.3", 0, 1),
        ("192.0.2.4", 0, 0),
        ("192.0.2.5", 15, 1),
        ("fd00::1", 16, 0),
    ] {
        set(
            &skel.maps.sa_endpoints,
            &addr(at),
            &Endpoint { identity, host },
        );
    }
    for (net, identity) in [
        ("10.0.0.0/8", 1008_u32),
        ("10.1.0.0/16", 1016),
        ("10.1.2.0/24", 1024),
        ("10.1.2.3/32", 1032),
        ("fd00::/8", 6008),
        ("fd00:1::/32", 6032),
    ] {
        set(&skel.maps.sa_identities, &cidr(net), &identity);
    }
    for (at, identity) in [
        ("10.0.0.1", 11),
        ("10.0.0.2", 1008),
        ("10.0.0.3", 1008),
        ("192.0.2.3", layout::IDENTITY_HOST),
        ("192.0.2.4", layout::IDENTITY_WORLD),
        ("192.0.2.5", 15),
        ("192.0.2.6", layout::IDENTITY_WORLD),
        ("10.200.0.1", 1008),
        ("10.1.200.1", 1016),
        ("10.1.2.200", 1024),
        ("10.1.2.3", 1032),
        ("::ffff:10.1.2.3", 1032),
        ("fd00::1", 16),
        ("fd00::2", 6008),
        ("fd00:1::2", 6032),
        ("2001:db8::1", layout::IDENTITY_WORLD),
    ] {
        let mut case = IdentityCase {
            addr: addr(at),
            identity: u32::MAX,
        };
        run(&skel.progs.test_identity, &mut case);
        assert_eq!(case.identity, identity, "{at}");
    }
}

const CLIENT: &str = "10.0.0.1";
const SERVER: &str = "10.0.0.2";
const WEB: u16 = 80;
const ID: u32 = 77;

fn rule(endpoint: &str, direction: u8, identity: u32, proto: u8, port: u16) -> PolicyKey {
    PolicyKey {
        endpoint: addr(endpoint),
        identity,
        port,
        proto,
        direction,
        kind: layout::POLICY_RULE,
        pad: [0; 3],
    }
}

fn default_deny(endpoint: &str, direction: u8) -> PolicyKey {
    PolicyKey {
        kind: layout::POLICY_DEFAULT_DENY,
        ..rule(endpoint, direction, layout::IDENTITY_ANY, 0, 0)
    }
}

fn verdict(verdict: i32) -> Policy {
    Policy {
        verdict,
        pad: 0,
        evaluations: 0,
    }
}

fn tiers(direction: u8) -> [PolicyKey; 7] {
    let any = layout::IDENTITY_ANY;
    [
        rule(CLIENT, direction, ID, TCP, WEB),
        rule(CLIENT, direction, any, TCP, WEB),
        rule(CLIENT, direction, ID, TCP, 0),
        rule(CLIENT, direction, any, TCP, 0),
        rule(CLIENT, direction, ID, 0, 0),
        rule(CLIENT, direction, any, 0, 0),
        default_deny(CLIENT, direction),
    ]
}

fn look_up(skel: &skel::DecideTestSkel<'_>, key: PolicyKey) -> (i32, u32) {
    let mut case = LookupCase {
        key,
        verdict: i32::MAX,
        tier: u32::MAX,
    };
    run(&skel.progs.test_lookup, &mut case);
    (case.verdict, case.tier)
}

/// Every subset of the tiers, in both directions: the first that is there
/// decides, counts, and no other counts.
#[test]
fn the_first_tier_that_hits_decides() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(&mut storage);
    let policy = &skel.maps.sa_policy;
    for direction in [EGRESS, INGRESS] {
        let tiers = tiers(direction);
        let asked = tiers[0];
        for subset in 0_u32..1 << tiers.len() {
            let there = |tier: &usize| subset & 1 << tier != 0;
            for (tier, key) in tiers.iter().enumerate() {
                if there(&tier) {
                    // Each with a verdict of its own; the default is a deny whatever it says.
                    let own = i32::try_from(1000 + tier).expect("small");
                    set(policy, key, &verdict(own));
                } else {
                    let _ = policy.delete(key.as_bytes());
                }
            }
            let hit = (0..tiers.len()).find(there);
            let want = match hit {
                None => (layout::VERDICT_ALLOW, 0),
                Some(6) => (layout::VERDICT_DENY, 7),
                Some(tier) => (
                    i32::try_from(1000 + tier).expect("small"),
                    u32::try_from(tier + 1).expect("small"),
                ),
            };
            assert_eq!(look_up(&skel, asked), want, "subset {subset:#b}");
            for tier in (0..tiers.len()).filter(there) {
                let found: Policy = get(policy, &tiers[tier]);
                let counted = u64::from(Some(tier) == hit);
                assert_eq!(found.evaluations, counted, "subset {subset:#b}, {tier}");
            }
        }
    }
}

#[test]
fn a_rule_is_of_its_endpoint_direction_identity_protocol_and_port() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(&mut storage);
    let asked = rule(CLIENT, EGRESS, ID, TCP, WEB);
    set(&skel.maps.sa_policy, &asked, &verdict(layout::VERDICT_DENY));
    let denied = (layout::VERDICT_DENY, 1);
    let free = (layout::VERDICT_ALLOW, 0);
    let other = |change: fn(&mut PolicyKey)| {
        let mut key = asked;
        change(&mut key);
        key
    };
    for (what, key, want) in [
        ("the same", asked, denied),
        ("endpoint", other(|k| k.endpoint = addr(SERVER)), free),
        ("direction", other(|k| k.direction = INGRESS), free),
        ("identity", other(|k| k.identity = ID + 1), free),
        ("protocol", other(|k| k.proto = 17), free),
        ("port", other(|k| k.port = WEB + 1), free),
    ] {
        assert_eq!(look_up(&skel, key), want, "{what}");
    }
}

/// A connection from CLIENT to SERVER:WEB, as both ends see it.
fn ends() -> (Tuple, Tuple) {
    let client = Tuple {
        local: addr(CLIENT),
        remote: addr(SERVER),
        local_port: 40_000,
        remote_port: WEB,
        family: 2,
        listen_port: 0,
    };
    let server = Tuple {
        local: client.remote,
        remote: client.local,
        local_port: client.remote_port,
        remote_port: client.local_port,
        family: 2,
        listen_port: WEB,
    };
    (client, server)
}

fn tables_case((client, server): (Tuple, Tuple), client_sends: bool) -> TablesCase {
    TablesCase {
        client,
        server,
        client_sends: client_sends.into(),
        why: u32::MAX,
        tier: u32::MAX,
    }
}

/// Why, and the tier, for each of the two directions of a connection.
fn ask(skel: &skel::DecideTestSkel<'_>, ends: (Tuple, Tuple)) -> [(&'static str, u32); 2] {
    [true, false].map(|client_sends| {
        let mut case = tables_case(ends, client_sends);
        run(&skel.progs.test_tables, &mut case);
        (name(WHYS, case.why), case.tier)
    })
}

fn scope(skel: &skel::DecideTestSkel<'_>, scope: u32) {
    let conf = Config {
        scope,
        ..Config::new_zeroed()
    };
    set(&skel.maps.sa_config, &0_u32, &conf);
}

/// Rules with their verdicts; why, and the tier that decides.
type Ruling<'a> = (&'a str, &'a [(PolicyKey, i32)], &'a str, u32);

/// Rules, and what then becomes of a connection: a reply has the verdict of
/// its connection, never one of its own.
#[test]
fn both_ends_must_allow_and_replies_follow_their_connection() {
    let deny = layout::VERDICT_DENY;
    let allow = layout::VERDICT_ALLOW;
    let world = layout::IDENTITY_WORLD;
    let any = layout::IDENTITY_ANY;
    let to_web = |endpoint, direction, identity| rule(endpoint, direction, identity, TCP, WEB);
    let cases: &[Ruling] = &[
        ("no rules", &[], "redirected", 0),
        (
            "the client may not go there",
            &[(to_web(CLIENT, EGRESS, world), deny)],
            "denied",
            1,
        ),
        (
            "the server may not be reached from there",
            &[(to_web(SERVER, INGRESS, world), deny)],
            "denied",
            1,
        ),
        (
            "a default at the client",
            &[(default_deny(CLIENT, EGRESS), deny)],
            "denied",
            7,
        ),
        (
            "a default at the server",
            &[(default_deny(SERVER, INGRESS), deny)],
            "denied",
            7,
        ),
        (
            "allowed by one, denied by the other",
            &[
                (to_web(CLIENT, EGRESS, any), allow),
                (rule(SERVER, INGRESS, any, 0, 0), deny),
            ],
            "denied",
            6,
        ),
        (
            "allowed by both, despite the defaults",
            &[
                (rule(CLIENT, EGRESS, any, TCP, 0), allow),
                (default_deny(CLIENT, EGRESS), deny),
                (to_web(SERVER, INGRESS, world), allow),
                (default_deny(SERVER, INGRESS), deny),
            ],
            "redirected",
            1,
        ),
        (
            "only rules for the other direction: the client as a server",
            &[(default_deny(CLIENT, INGRESS), deny)],
            "redirected",
            0,
        ),
        (
            "only rules for the other direction: the server as a client",
            &[
                (rule(SERVER, EGRESS, any, 0, 0), deny),
                (default_deny(SERVER, EGRESS), deny),
            ],
            "redirected",
            0,
        ),
        (
            "the port is the server's, not the client's",
            &[(rule(SERVER, INGRESS, any, TCP, 40_000), deny)],
            "redirected",
            0,
        ),
    ];
    for (what, rules, why, tier) in cases {
        let mut storage = MaybeUninit::uninit();
        let skel = load(&mut storage);
        for (key, value) in *rules {
            set(&skel.maps.sa_policy, key, &verdict(*value));
        }
        assert_eq!(ask(&skel, ends()), [(*why, *tier); 2], "{what}");
    }
}

/// The identity looked up is the other end's, by its own tables.
#[test]
fn rules_name_the_identity_of_the_other_end() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(&mut storage);
    let policy = &skel.maps.sa_policy;
    for (key, value) in [
        (rule(CLIENT, EGRESS, 2002, TCP, WEB), layout::VERDICT_ALLOW),
        (default_deny(CLIENT, EGRESS), layout::VERDICT_DENY),
        (rule(SERVER, INGRESS, 1001, TCP, WEB), layout::VERDICT_ALLOW),
        (default_deny(SERVER, INGRESS), layout::VERDICT_DENY),
    ] {
        set(policy, &key, &verdict(value));
    }
    assert_eq!(ask(&skel, ends()), [("denied", 7); 2]);
    set(&skel.maps.sa_identities, &cidr("10.0.0.1/32"), &1001_u32);
    assert_eq!(ask(&skel, ends()), [("denied", 7); 2]);
    set(&skel.maps.sa_identities, &cidr("10.0.0.2/32"), &2002_u32);
    assert_eq!(ask(&skel, ends()), [("redirected", 1); 2]);
    let endpoint = Endpoint {
        identity: 3003,
        host: 0,
    };
    set(&skel.maps.sa_endpoints, &addr(SERVER), &endpoint);
    assert_eq!(ask(&skel, ends()), [("denied", 7); 2]);
}

#[test]
fn a_proxy_verdict_lets_pass_only_what_ends_at_the_proxy() {
    const PROXY: u16 = 10_000;
    let set_ports = |local_port, listen_port| {
        let (client, server) = ends();
        let server = Tuple {
            local_port,
            listen_port,
            ..server
        };
        (client, server)
    };
    // Rules without a port: the port that an ingress rule sees is the proxy's own.
    for key in [
        rule(CLIENT, EGRESS, layout::IDENTITY_ANY, TCP, 0),
        rule(SERVER, INGRESS, layout::IDENTITY_ANY, TCP, 0),
    ] {
        let mut storage = MaybeUninit::uninit();
        let skel = load(&mut storage);
        set(&skel.maps.sa_policy, &key, &verdict(PROXY.into()));
        for (what, local, listening, why) in [
            ("the server itself", WEB, WEB, "proxy"),
            ("listener unknown", WEB, 0, "proxy"),
            ("redirected to the proxy", PROXY, PROXY, "redirected"),
            ("listener unknown, proxy", PROXY, 0, "redirected"),
            ("taken over transparently", WEB, PROXY, "redirected"),
            ("another port", PROXY + 1, PROXY + 1, "proxy"),
        ] {
            let got = ask(&skel, set_ports(local, listening));
            assert_eq!(got, [(why, 4); 2], "{what}");
        }
        // The client's own port must not pass for the proxy's.
        let (mut client, mut server) = ends();
        (client.local_port, client.listen_port) = (PROXY, PROXY);
        server.remote_port = PROXY;
        assert_eq!(ask(&skel, (client, server)), [("proxy", 4); 2]);
    }
}

/// Policy sees where the client really is and what it asked for, through NAT.
#[test]
fn translated_connections_are_judged_by_what_the_client_asked_for() {
    let (mut client, mut server) = ends();
    (client.remote, client.remote_port) = (addr("10.96.0.1"), 443);
    server.remote = addr("10.0.0.254");
    let any = layout::IDENTITY_ANY;
    for (what, key, why) in [
        (
            "egress to the virtual port",
            rule(CLIENT, EGRESS, any, TCP, 443),
            "denied",
        ),
        (
            "egress to the server's port",
            rule(CLIENT, EGRESS, any, TCP, WEB),
            "redirected",
        ),
        (
            "ingress at the server's port",
            rule(SERVER, INGRESS, any, TCP, WEB),
            "denied",
        ),
        (
            "ingress at the virtual port",
            rule(SERVER, INGRESS, any, TCP, 443),
            "redirected",
        ),
        (
            "ingress from the client, not from the masquerade",
            rule(SERVER, INGRESS, 1001, 0, 0),
            "denied",
        ),
        (
            "ingress from the masquerade",
            rule(SERVER, INGRESS, 254, 0, 0),
            "redirected",
        ),
        (
            "egress to the identity of the virtual address",
            rule(CLIENT, EGRESS, 96, 0, 0),
            "denied",
        ),
    ] {
        let mut storage = MaybeUninit::uninit();
        let skel = load(&mut storage);
        for (net, identity) in [
            ("10.0.0.1/32", 1001_u32),
            ("10.0.0.254/32", 254),
            ("10.96.0.1/32", 96),
        ] {
            set(&skel.maps.sa_identities, &cidr(net), &identity);
        }
        set(&skel.maps.sa_policy, &key, &verdict(layout::VERDICT_DENY));
        let got = ask(&skel, (client, server)).map(|(why, _)| why);
        assert_eq!(got, [why; 2], "{what}");
    }
}

#[test]
fn scope_endpoints_looks_at_the_destination_of_each_socket() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(&mut storage);
    let endpoint = Endpoint {
        identity: 0,
        host: 0,
    };
    let whys = || ask(&skel, ends()).map(|(why, _)| why);
    scope(&skel, layout::SCOPE_LOCAL);
    assert_eq!(whys(), ["redirected"; 2]);
    scope(&skel, layout::SCOPE_ENDPOINTS);
    assert_eq!(whys(), ["not_endpoint"; 2]);
    set(&skel.maps.sa_endpoints, &addr(SERVER), &endpoint);
    assert_eq!(whys(), ["redirected", "not_endpoint"]);
    set(&skel.maps.sa_endpoints, &addr(CLIENT), &endpoint);
    assert_eq!(whys(), ["redirected"; 2]);
}

#[test]
fn services_stay_on_the_stack_unless_marked() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(&mut storage);
    let services = &skel.maps.sa_services;
    let key = ServiceKey {
        addr: addr(SERVER),
        port: WEB,
        proto: TCP,
        pad: 0,
    };
    let service = |accelerate| Service {
        accelerate,
        pad: 0,
        connections: 0,
    };
    let whys = || ask(&skel, ends()).map(|(why, _)| why);
    let asked = |client: Tuple, count: u32| {
        let mut case = ServiceCase {
            client,
            count,
            on_stack: u32::MAX,
        };
        run(&skel.progs.test_service, &mut case);
        case.on_stack
    };
    let (client, _) = ends();
    assert_eq!(whys(), ["redirected"; 2]);
    set(services, &key, &service(0));
    assert_eq!(whys(), ["service"; 2]);
    assert_eq!((asked(client, 1), asked(client, 0)), (1, 1));
    assert_eq!(get::<Service>(services, &key).connections, 1);
    for other in [
        Tuple {
            remote_port: WEB + 1,
            ..client
        },
        Tuple {
            remote: addr("10.0.0.3"),
            ..client
        },
    ] {
        assert_eq!(asked(other, 1), 0);
    }
    set(services, &key, &service(1));
    assert_eq!(whys(), ["redirected"; 2]);
    assert_eq!(asked(client, 1), 0);
    assert_eq!(get::<Service>(services, &key).connections, 1);
    // Before everything else: the client's verdict would be a deny.
    set(services, &key, &service(0));
    set(
        &skel.maps.sa_policy,
        &default_deny(CLIENT, EGRESS),
        &verdict(layout::VERDICT_DENY),
    );
    assert_eq!(whys(), ["service"; 2]);
}

/// Filters by port and by network, and whether they keep the server out.
type Filters<'a> = (&'a str, &'a [(u32, u8)], &'a [(&'a str, u8)], bool);

#[test]
fn filters_include_and_exclude_by_port_and_network() {
    let (include, exclude) = (layout::FILTER_INCLUDE, layout::FILTER_EXCLUDE);
    let cases: &[Filters] = &[
        ("none", &[], &[], false),
        ("port included", &[(80, include)], &[], false),
        ("another port included", &[(81, include)], &[], true),
        ("port excluded", &[(80, exclude)], &[], true),
        ("another port excluded", &[(81, exclude)], &[], false),
        ("network included", &[], &[("10.0.0.0/8", include)], false),
        ("another included", &[], &[("11.0.0.0/8", include)], true),
        ("network excluded", &[], &[("10.0.0.0/8", exclude)], true),
        (
            "excluded within included",
            &[],
            &[("10.0.0.0/8", include), ("10.0.0.0/24", exclude)],
            true,
        ),
        (
            "included within excluded",
            &[],
            &[("10.0.0.0/8", exclude), ("10.0.0.0/24", include)],
            false,
        ),
        (
            "both must include",
            &[(80, include)],
            &[("11.0.0.0/8", include)],
            true,
        ),
        (
            "either may exclude",
            &[(80, include)],
            &[("10.0.0.0/8", exclude)],
            true,
        ),
    ];
    for (what, ports, cidrs, filtered) in cases {
        let mut storage = MaybeUninit::uninit();
        let skel = load(&mut storage);
        for (port, filter) in *ports {
            set(&skel.maps.sa_ports, port, filter);
        }
        for (net, filter) in *cidrs {
            set(&skel.maps.sa_cidrs, &cidr(net), &u32::from(*filter));
        }
        let mut case = FilterCase {
            conf: Config {
                port_includes: u32::from(ports.iter().any(|p| p.1 == include)),
                cidr_includes: u32::from(cidrs.iter().any(|c| c.1 == include)),
                ..Config::new_zeroed()
            },
            addr: addr(SERVER),
            port: WEB.into(),
            filtered: u32::MAX,
        };
        run(&skel.progs.test_filter, &mut case);
        assert_eq!(case.filtered, u32::from(*filtered), "{what}");
    }
}

/// Both sides of a connection within one namespace, each published.
fn met() -> MatchCase {
    let (client, server) = ends();
    let side = |cookie, role, tuple, snd_wscale, rcv_wscale| Side {
        cookie,
        ready: cookie,
        netns_cookie: 1,
        role,
        tuple,
        snd_wscale,
        rcv_wscale,
        wscale_ok: 1,
        ..Side::new_zeroed()
    };
    let mut case = MatchCase::new_zeroed();
    case.conn.side = [side(21, 1, client, 7, 9), side(22, 2, server, 9, 7)];
    case.reason = u32::MAX;
    case
}

type Meeting = (&'static str, fn(&mut [Side; 2], &mut Meta), &'static str);

/// The fields of a connection that belong to neither side.
#[derive(Debug, Default)]
struct Meta {
    poisoned: u32,
    left: u32,
}

/// Each change is to side 1; it is asked from both sides.
const MEETINGS: &[Meeting] = &[
    ("the two ends", |_, _| {}, "none"),
    ("poisoned", |_, m| m.poisoned = 1, "ambiguous"),
    ("one has left", |_, m| m.left = 2, "no_local_peer"),
    ("the same role", |s, _| s[1].role = 1, "mismatch"),
    (
        "only one scales windows",
        |s, _| s[1].wscale_ok = 0,
        "mismatch",
    ),
    (
        "another send window scale",
        |s, _| s[1].snd_wscale = 8,
        "mismatch",
    ),
    (
        "another receive window scale",
        |s, _| s[1].rcv_wscale = 8,
        "mismatch",
    ),
    (
        "one namespace, another client address",
        |s, _| s[1].tuple.remote = s[1].tuple.local,
        "mismatch",
    ),
    (
        "one namespace, another client port",
        |s, _| s[1].tuple.remote_port = 1,
        "mismatch",
    ),
    (
        "one namespace, redirected to another port",
        |s, _| s[1].tuple.local_port = 1,
        "none",
    ),
    (
        "one namespace, translated both ways",
        |s, _| (s[1].tuple.local_port, s[1].tuple.remote_port) = (1, 2),
        "none",
    ),
    (
        "two namespaces, masqueraded",
        |s, _| (s[1].netns_cookie, s[1].tuple.remote_port) = (2, 1),
        "none",
    ),
    (
        "two namespaces, equal tuples",
        |s, _| s[1].netns_cookie = 2,
        "none",
    ),
];

#[test]
fn sides_match_only_as_the_ends_of_one_connection() {
    let mut storage = MaybeUninit::uninit();
    let skel = load(&mut storage);
    let ask = |mut case: MatchCase, side| {
        case.side = side;
        run(&skel.progs.test_match, &mut case);
        name(REASONS, case.reason)
    };
    for &(what, change, reason) in MEETINGS {
        let mut case = met();
        let mut meta = Meta::default();
        change(&mut case.conn.side, &mut meta);
        (case.conn.poisoned, case.conn.left) = (meta.poisoned, meta.left);
        for side in 0..2 {
            assert_eq!(ask(case.clone(), side), reason, "{what}, from side {side}");
        }
    }
    // What only the one that looks can say of the other.
    let mut case = met();
    case.conn.side[1].ready = 0;
    assert_eq!(ask(case.clone(), 0), "no_local_peer");
    case.conn.side[1].ready = 99;
    assert_eq!(ask(case.clone(), 0), "no_local_peer");
    case.conn.side[1] = Side::new_zeroed();
    assert_eq!(ask(case, 0), "no_local_peer");
}

/// Offset of each field, by name, and the size.
type Shape = (BTreeMap<String, usize>, usize);

fn in_object(btf: &Btf<'_>, name: &str) -> Shape {
    use libbpf_rs::btf::HasSize as _;
    let found: Struct<'_> = btf
        .type_by_name(name)
        .unwrap_or_else(|| panic!("the object has no struct {name}"));
    let fields = found
        .iter()
        .map(|member| {
            let MemberAttr::Normal { offset } = member.attr else {
                panic!("{name} has a bit field");
            };
            let field = member.name.expect("a name").to_string_lossy().into_owned();
            (field, offset as usize / 8)
        })
        .collect();
    (fields, found.size())
}

/// The same of a mirror, without a list to keep: which byte changes what is
/// printed of which field?
fn in_mirror<T: FromBytes + Debug>() -> Shape {
    let mut bytes = vec![0; size_of::<T>()];
    let zero = printed::<T>(&bytes);
    let mut offsets = BTreeMap::new();
    for at in 0..bytes.len() {
        bytes[at] = 1;
        for (field, text) in printed::<T>(&bytes) {
            if zero[&field] != text {
                offsets.entry(field).or_insert(at);
            }
        }
        bytes[at] = 0;
    }
    (offsets, size_of::<T>())
}

/// What `{:#?}` says of each field of a struct, by the field's name.
fn printed<T: FromBytes + Debug>(bytes: &[u8]) -> BTreeMap<String, String> {
    let value = T::read_from_bytes(bytes).expect("the size of it");
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in format!("{value:#?}").lines() {
        let own = line.strip_prefix("    ").unwrap_or_default();
        match own.split_once(": ") {
            Some((name, text)) if !own.starts_with(' ') => {
                fields.push((name.to_owned(), text.to_owned()));
            }
            _ => {
                if let Some((_, text)) = fields.last_mut() {
                    text.push_str(line);
                }
            }
        }
    }
    fields.into_iter().collect()
}

/// The programs have the layouts that user space believes in.
#[test]
fn layouts_are_the_same_on_both_sides() {
    let object = Path::new(env!("OUT_DIR")).join("decide_test.bpf.o");
    let btf = Btf::from_path(&object).expect("type information of the object");
    for (name, mirror) in [
        ("sa_tuple", in_mirror::<Tuple>()),
        ("sa_side", in_mirror::<Side>()),
        ("sa_conn", in_mirror::<Conn>()),
        ("sa_sock", in_mirror::<Sock>()),
        ("sa_dump", in_mirror::<Dump>()),
        ("sa_event", in_mirror::<Event>()),
        ("sa_candidate", in_mirror::<Candidate>()),
        ("sa_place", in_mirror::<layout::Place>()),
        ("sa_adoption", in_mirror::<Adoption>()),
        ("sa_audience", in_mirror::<Audience>()),
        ("sa_endpoint", in_mirror::<Endpoint>()),
        ("sa_cidr", in_mirror::<Cidr>()),
        ("sa_service_key", in_mirror::<ServiceKey>()),
        ("sa_service", in_mirror::<Service>()),
        ("sa_policy_key", in_mirror::<PolicyKey>()),
        ("sa_policy", in_mirror::<Policy>()),
        ("sa_config", in_mirror::<Config>()),
        ("sa_view", in_mirror::<View>()),
    ] {
        assert_eq!(in_object(&btf, name), mirror, "{name}");
    }
}
