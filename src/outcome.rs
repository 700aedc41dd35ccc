//! What can become of a connection and of a message, and which changes are
//! told as events: the closed enums.
//!
//! This table is their only source: `build.rs` writes the C header of the
//! programs from it, the counters of `stats` are named by it, and `status`
//! takes its sentences from it.

/// One value of a closed enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Name in JSON, in tables and, in upper case, in C.
    pub name: &'static str,
    /// What happened, as the end of "... connections are not accelerated: ".
    pub text: &'static str,
    /// What would change it; empty when nothing does. What is in braces is
    /// filled in by `src/remedy.rs`: a command that is told must work as it is.
    pub remedy: &'static str,
}

/// The name of a value of the maps.
pub fn name(outcomes: &[Outcome], index: u32) -> &'static str {
    outcomes
        .get(index as usize)
        .map_or("unknown", |outcome| outcome.name)
}

/// Those that were counted at all, with how often.
pub fn counted<'a>(
    counts: &'a [u64],
    outcomes: &'static [Outcome],
) -> impl Iterator<Item = (&'static Outcome, u64)> + 'a {
    let all = outcomes.iter().zip(counts.iter().copied());
    all.filter(|(_, count)| *count > 0)
}

/// The value in the maps of the outcome of this name, for constants: what is in no
/// table does not compile.
pub const fn index(outcomes: &[Outcome], name: &str) -> u32 {
    let mut index = 0;
    while !is(outcomes[index as usize].name.as_bytes(), name.as_bytes()) {
        index += 1;
    }
    index
}

const fn is(mut a: &[u8], mut b: &[u8]) -> bool {
    while let ([x, rest_a @ ..], [y, rest_b @ ..]) = (a, b) {
        if *x != *y {
            return false;
        }
        (a, b) = (rest_a, rest_b);
    }
    a.is_empty() && b.is_empty()
}

const fn outcome(name: &'static str, text: &'static str, remedy: &'static str) -> Outcome {
    Outcome { name, text, remedy }
}

/// Why a socket was skipped or ejected. The index is the value in the maps;
/// 0 means enrolled.
pub const REASONS: &[Outcome] = &[
    outcome("none", "enrolled", ""),
    outcome(
        "no_local_peer",
        "the peer is not a socket of an enabled cgroup on this machine",
        "enable the peer's cgroup too:  sockaccel enable --cgroup PATH{instance}",
    ),
    outcome(
        "blocking_reader",
        "the program reads from a blocking socket",
        "{enable} --blocking-readers accelerate   (see BLOCKING READERS in sockaccel(8))",
    ),
    outcome(
        "splicing",
        "the receiving program moves data with splice(2)",
        "",
    ),
    outcome(
        "filtered",
        "a port or CIDR filter of this instance excludes it",
        "{enable}, and --port, --exclude-port, --cidr or --exclude-cidr anew",
    ),
    outcome(
        "service",
        "its destination is a service that stays on the stack",
        "sockaccel service del VIP:PORT{instance} && sockaccel service add VIP:PORT --accelerate{instance}",
    ),
    outcome(
        "fast_open",
        "it was opened with TCP Fast Open",
        "turn TCP Fast Open off in the program",
    ),
    outcome("repair", "the socket is in TCP_REPAIR mode", ""),
    outcome(
        "ambiguous",
        "two sockets claim to be the same end of it, so neither is trusted",
        "",
    ),
    outcome(
        "reused",
        "the program connected the same socket a second time",
        "",
    ),
    outcome("self_connect", "the socket is connected to itself", ""),
    outcome(
        "mismatch",
        "the two sockets disagree about the connection they should share",
        "",
    ),
    outcome(
        "ulp",
        "an upper layer protocol (kTLS, MPTCP) owns the socket",
        "",
    ),
    outcome("rcvlowat", "the program set SO_RCVLOWAT", ""),
    outcome("tcp_inq", "the program set TCP_INQ", ""),
    outcome("zerocopy", "the program set SO_ZEROCOPY", ""),
    outcome("peek_off", "the program set SO_PEEK_OFF", ""),
    outcome(
        "timestamping",
        "the program asked for packet timestamps",
        "",
    ),
    outcome("pacing", "the program set SO_MAX_PACING_RATE", ""),
    outcome(
        "kernel_socket",
        "the socket is used by the kernel itself",
        "",
    ),
    outcome(
        "busy",
        "the socket is in another instance's or another tool's sockmap",
        "use one of them   (instances:  sockaccel status --all; other tools:  bpftool map)",
    ),
    outcome(
        "map_full",
        "the table of sockets was full",
        "a larger max_sockets:  {anew}",
    ),
    outcome("no_memory", "the kernel had no memory for the entry", ""),
    outcome("unsupported", "the kernel refused the socket", ""),
    outcome(
        "peer_not_eligible",
        "the socket at its other end cannot be accelerated",
        "sockaccel explain --port PORT{instance}   (it tells what keeps the other end out)",
    ),
    outcome(
        "short_lived",
        "connections to its server have been too short to profit",
        "{enable} --admission all",
    ),
    outcome(
        "stream",
        "it became a one-way stream, which plain TCP carries faster",
        "{enable} --stream-limit 0   (it stays enrolled)",
    ),
    outcome(
        "disabled",
        "its cgroup, or that of its peer, was disabled",
        "sockaccel enable --cgroup PATH{instance}",
    ),
];

/// Why a message went by the stack. The index is the value in the maps; 0
/// means redirected.
pub const WHYS: &[Outcome] = &[
    outcome("redirected", "redirected", ""),
    outcome("disabled", "the instance is disabled", "{enable}"),
    outcome("unpaired", "the peer is not known yet", ""),
    outcome(
        "denied",
        "policy denies it",
        "sockaccel policy list{instance}",
    ),
    outcome(
        "proxy",
        "policy sends it through a proxy, and the peer is not that proxy",
        "sockaccel policy list{instance}",
    ),
    outcome(
        "not_endpoint",
        "its destination is not an endpoint (scope endpoints)",
        "sockaccel endpoint add ADDR{instance}",
    ),
    outcome(
        "service",
        "its destination is a service that stays on the stack",
        "sockaccel service del VIP:PORT{instance} && sockaccel service add VIP:PORT --accelerate{instance}",
    ),
    outcome(
        "unread",
        "the receiver has not read from the connection yet",
        "",
    ),
    outcome(
        "behind",
        "the receiver has not read yet what the stack carries",
        "",
    ),
    outcome("budget", "the receiver's redirect queue was full", ""),
    outcome(
        "large",
        "the message is larger than one redirect carries",
        "",
    ),
    outcome(
        "stream",
        "it is part of a one-way stream, which plain TCP carries faster",
        "{enable} --stream-limit 0   (it stays redirected)",
    ),
    outcome("company", "several threads send on the socket at once", ""),
    outcome("own_state", "the sender has shut the connection down", ""),
    outcome(
        "peer_state",
        "the receiver has closed or shut down reading",
        "",
    ),
    outcome(
        "reader",
        "the receiver reads in a way that redirect cannot serve",
        "",
    ),
    outcome(
        "splicing",
        "the receiving program moves data with splice(2)",
        "",
    ),
    outcome(
        "stuck",
        "refused with EACCES: the receiver began to splice(2) while redirected data waited for it",
        "exclude the program by a cgroup of its own or by --exclude-port",
    ),
    outcome(
        "contended",
        "the receiver spins on its socket, and a redirect would have to wait for its lock",
        "",
    ),
    outcome(
        "refresh",
        "once in some minutes, so that connection tracking does not forget it",
        "",
    ),
    outcome("pressure", "the kernel is short of socket memory", ""),
    outcome("missed", "the receiver left the table meanwhile", ""),
    outcome(
        "changing",
        "the policy is being changed",
        "if it goes on, an apply was killed:  sockaccel apply -f FILE{instance}",
    ),
];

/// What `events` tells of. The index is the value in the ring buffer.
pub const EVENTS: &[Outcome] = &[
    outcome("enrolled", "a socket was enrolled", ""),
    outcome("skipped", "a socket was not enrolled", ""),
    outcome("paired", "a socket found its peer", ""),
    outcome("ejected", "a socket was taken out again", ""),
    outcome("promoted", "a direction went over to redirect", ""),
    outcome("demoted", "a direction went back to the stack", ""),
    outcome(
        "denied",
        "policy, scope or a service keeps a direction on the stack",
        "",
    ),
];
