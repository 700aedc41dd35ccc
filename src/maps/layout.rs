//! The structs of `src/bpf/intf.h`, byte for byte.
//!
//! Ports are in host byte order, addresses in network byte order. The
//! assertions at the end and those in the header hold both sides together.

use std::mem::offset_of;
use std::net::{IpAddr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of all layouts together: `SA_LAYOUT`.
pub const LAYOUT: u32 = 7;

/// An IPv6 address, or an IPv4 one as `::ffff:a.b.c.d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Addr(pub [u8; 16]);

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl Addr {
    /// The address as people write it: v4-mapped ones as IPv4.
    pub fn ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }
}

/// `struct sa_tuple`: both ends of a connection as one of its sockets sees them.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Tuple {
    pub local: Addr,
    pub remote: Addr,
    pub local_port: u16,
    pub remote_port: u16,
    pub family: u16,
    pub listen_port: u16,
}

/// `struct sa_side`: one socket's part of `struct sa_conn`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Side {
    pub cookie: u64,
    pub ready: u64,
    pub sk: u64,
    pub netns_cookie: u64,
    pub tuple: Tuple,
    pub skipped: u32,
    pub role: u8,
    pub snd_wscale: u8,
    pub rcv_wscale: u8,
    pub wscale_ok: u8,
    pub tgid: u32,
    pub pad: u32,
    pub start_time: u64,
    pub st: u64,
    pub pad2: [u64; 3],
}

/// `struct sa_conn`: the rendezvous of the two sockets of a connection.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Conn {
    pub side: [Side; 2],
    pub gate: u32,
    pub poisoned: u32,
    pub left: u32,
    pub accounted: u32,
    pub timer: [u64; 2],
    pub looks: u16,
    pub rests: u16,
    pub suspect: u16,
    pub again: u16,
    pub draining: u32,
    pub cut: u32,
    pub leaving: [u64; 2],
}

/// `struct sa_sock`: what a socket knows of itself and its direction.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Sock {
    pub cookie: u64,
    pub conn_id: u64,
    pub peer_cookie: u64,
    pub peer_sk: u64,
    pub peer_file: u64,
    pub peer_limit: u64,
    pub peer_st: u64,
    pub pressure: u64,
    pub netns_cookie: u64,
    pub start_time: u64,
    pub redirected_messages: u64,
    pub redirected_bytes: u64,
    pub stack_messages: u64,
    pub stack_bytes: u64,
    pub told_messages: u64,
    pub told_bytes: u64,
    pub stack_at: u64,
    pub task: u64,
    pub side: u32,
    pub role: u32,
    pub skipped: u32,
    pub ejected: u32,
    pub enrolled: u32,
    pub path: u32,
    pub why: u32,
    pub verdict: u32,
    pub generation: u32,
    pub first_seq: u32,
    pub promoted_seq: u32,
    pub queued_messages: u32,
    pub queued_bytes: u32,
    pub reused: u32,
    pub disconnected: u32,
    pub others: u16,
    pub leaving: u16,
    pub company: u32,
    pub tgid: u32,
    pub gate_open: u32,
    pub marks: u32,
    pub promotions: u32,
    pub demotions: u32,
    pub policy_tier: u32,
    pub contended: u32,
    pub peer_ports: u32,
    pub lost: u32,
    pub unanswered: u32,
    pub answers: u32,
    pub judged: u32,
    pub drain: u32,
    pub cut: u32,
    pub straggler: u32,
    pub adopted: u32,
    pub acks_wanted: u16,
    pub quiet: u16,
    pub tuple: Tuple,
}

/// `struct sa_dump`: one record of the iterator `sa_iter_dump`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Dump {
    pub sock: Sock,
    pub unread_bytes: u64,
    pub unread_messages: u32,
    pub state: u32,
    pub inode: u32,
    pub uid: u32,
    pub nonblock: u16,
    pub asked: u16,
    pub waits: u32,
}

/// `enum sa_waits`: what a draining socket waits for, in order.
pub const WAITS: [&str; 6] = ["", "next_look", "unread", "peer_unread", "sender", "peer"];

impl Dump {
    /// A walk of `sa_iter_drop` took it out with what was unread.
    pub fn was_dropped(&self) -> bool {
        self.waits as usize == WAITS.len()
    }

    /// What it waits for, `None` when it does not drain.
    pub fn waits_for(&self) -> Option<&'static str> {
        WAITS
            .get(self.waits as usize)
            .copied()
            .filter(|name| !name.is_empty())
    }
}

/// `struct sa_open`: one record of the iterator `sa_iter_open`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Open {
    pub inode: u64,
    pub cookie: u64,
    pub netns_cookie: u64,
    pub tgid: u32,
    pub fd: u32,
    pub tuple: Tuple,
    pub mapped: u32,
    pub noted: u32,
    pub connected: u32,
    pub pad: u32,
}

/// `struct sa_candidate`: one record of the iterator `sa_adopt_scan`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Candidate {
    pub cookie: u64,
    pub tuple: Tuple,
    pub sent: u32,
    pub received: u32,
    pub judged: u32,
    pub pad: u32,
}

/// `struct sa_place`: one record of the iterator `sa_adopt_places`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Place {
    pub netns_cookie: u64,
    pub tgid: u32,
    pub fd: u32,
}

/// `struct sa_adoption`: a socket whose peer was found.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Adoption {
    pub st: Sock,
    pub owners: u32,
    pub splicing: u32,
    pub reason: u32,
    pub error: i32,
}

/// `struct sa_event`: one record of the ring buffer `sa_events`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Event {
    pub time: u64,
    pub cookie: u64,
    pub netns_cookie: u64,
    pub tuple: Tuple,
    pub kind: u32,
    pub cause: u32,
    pub tgid: u32,
    pub role: u32,
}

/// `struct sa_audience`
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Audience {
    pub until: u64,
    pub kinds: u32,
    pub pad: u32,
}

/// `struct sa_endpoint`
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Endpoint {
    pub identity: u32,
    pub host: u32,
}

/// `struct sa_cidr`: key of the longest-prefix tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct Cidr {
    pub prefixlen: u32,
    pub family: u32,
    pub addr: Addr,
}

/// `struct sa_service_key`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct ServiceKey {
    pub addr: Addr,
    pub port: u16,
    pub proto: u8,
    pub pad: u8,
}

/// `struct sa_service`
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Service {
    pub accelerate: u32,
    pub pad: u32,
    pub connections: u64,
}

/// `struct sa_policy_key`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct PolicyKey {
    pub endpoint: Addr,
    pub identity: u32,
    pub port: u16,
    pub proto: u8,
    pub direction: u8,
    pub kind: u8,
    pub pad: [u8; 3],
}

/// `struct sa_passed`: one side of a connection that was passed over.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Passed {
    pub conn_id: u64,
    pub cookie: u64,
    pub reason: u32,
    pub pad: u32,
}

/// `struct sa_policy`
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Policy {
    pub verdict: i32,
    pub pad: u32,
    pub evaluations: u64,
}

/// `struct sa_config`
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Config {
    pub layout: u32,
    pub enabled: u32,
    pub generation: u32,
    pub changing: u32,
    pub scope: u32,
    pub blocking: u32,
    pub budget_messages: u32,
    pub budget_bytes: u32,
    pub max_message: u32,
    pub port_includes: u32,
    pub cidr_includes: u32,
    pub allow: u32,
    pub without_company_rule: u32,
    pub without_observer: u32,
    pub stream_limit: u32,
    pub admit_all: u32,
    pub build: u64,
}

/// How `struct sa_config` begins in every layout: see `SA_LAYOUT`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct ConfigHead {
    pub layout: u32,
    pub enabled: u32,
}

macro_rules! values {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[$doc])* pub const $name: $type = $value;)*
    };
}

values! {
    /// `SA_PATH_REDIRECT`
    PATH_REDIRECT: u32 = 1;
    /// `SA_ROLE_ACTIVE`
    ROLE_ACTIVE: u32 = 1;
    /// `SA_ROLE_PASSIVE`
    ROLE_PASSIVE: u32 = 2;
    /// `SA_NOBODY`, in place of a cookie.
    NOBODY: u64 = u64::MAX;
    /// `SA_GATE_SHUT`
    GATE_SHUT: u32 = 4;
    /// Bits of `Cidr::family`, which a prefix always has in full.
    FAMILY_BITS: u32 = 32;
    /// `SA_FAMILY_V4`
    FAMILY_V4: u32 = 4;
    /// `SA_FAMILY_V6`
    FAMILY_V6: u32 = 6;
    /// `SA_EGRESS`
    EGRESS: u8 = 1;
    /// `SA_INGRESS`
    INGRESS: u8 = 2;
    /// `SA_IDENTITY_ANY`
    IDENTITY_ANY: u32 = 0;
    /// `SA_IDENTITY_HOST`
    IDENTITY_HOST: u32 = 1;
    /// `SA_IDENTITY_WORLD`
    IDENTITY_WORLD: u32 = 2;
    /// `SA_POLICY_RULE`
    POLICY_RULE: u8 = 0;
    /// `SA_POLICY_DEFAULT_DENY`
    POLICY_DEFAULT_DENY: u8 = 1;
    /// `SA_VERDICT_ALLOW`
    VERDICT_ALLOW: i32 = 0;
    /// `SA_VERDICT_DENY`
    VERDICT_DENY: i32 = -1;
    /// `SA_SCOPE_LOCAL`
    SCOPE_LOCAL: u32 = 0;
    /// `SA_SCOPE_ENDPOINTS`
    SCOPE_ENDPOINTS: u32 = 1;
    /// `SA_FILTER_INCLUDE`
    FILTER_INCLUDE: u8 = 1;
    /// `SA_FILTER_EXCLUDE`
    FILTER_EXCLUDE: u8 = 2;
}

const _: () = {
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<Side>() == 128);
    assert!(size_of::<Conn>() == 320);
    assert!(size_of::<Sock>() == 320);
    assert!(size_of::<Dump>() == 352);
    assert!(size_of::<Open>() == 88);
    assert!(size_of::<Event>() == 80);
    assert!(size_of::<Candidate>() == 64);
    assert!(size_of::<Place>() == 16);
    assert!(size_of::<Adoption>() == 336);
    assert!(size_of::<Audience>() == 16);
    assert!(size_of::<Passed>() == 24);
    assert!(size_of::<Cidr>() == 24);
    assert!(size_of::<ServiceKey>() == 20);
    assert!(size_of::<PolicyKey>() == 28);
    assert!(size_of::<Config>() == 72);
    assert!(offset_of!(Config, layout) == offset_of!(ConfigHead, layout));
    assert!(offset_of!(Config, enabled) == offset_of!(ConfigHead, enabled));
    assert!(size_of::<ConfigHead>() == 8);
};
