/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Everything that both sides read: the layout of map keys and values.
 *
 * src/maps mirrors each struct; _Static_assert here and `const` assertions
 * there hold the two together. Bump SA_LAYOUT when any of them changes.
 *
 * Ports are in host byte order, addresses in network byte order.
 */
#ifndef SA_INTF_H
#define SA_INTF_H

#include <linux/types.h>
#include <linux/bpf.h>

#define SA_LAYOUT 7

/*
 * What every layout keeps, whatever else it changes: so much lets any version
 * disable an instance of any other, whose pinned programs know their own layout.
 *
 * - The directory of an instance, its lock and the names in it that begin with
 *   cgroup-, draining- and _ are those of src/state/dir.rs and drain.rs.
 * - sa_config begins with the words `layout` and `enabled`. It may be longer or
 *   shorter behind them; with `enabled` 0 nothing more is enrolled.
 * - sa_cgroups has the __u64 id of a cgroup as its key and a __u32 as its value.
 *   What is in none of these cgroups, nor below one, is to leave.
 * - sa_sockops_off may replace sa_sockops in the link of that name of a cgroup:
 *   it enrols nothing, and guards what is enrolled.
 * - sa_iter_drain and sa_iter_drop walk over sa_sockhash, whose keys are __u64,
 *   one for each socket. A grace period comes before each walk. One that prints
 *   nothing has left nothing that is to leave. After three of sa_iter_drain
 *   sa_iter_drop takes out what that waits for. What they print is their own.
 * - Unpinning all of it, and detaching sa_skmsg from sa_sockhash where there is
 *   no link-skmsg, ends it. A socket that is still in the map loses nothing.
 */

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

/* An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). */
struct sa_addr {
	__u8 b[16];
};

/* The two ends of a connection as one of its sockets sees them. */
struct sa_tuple {
	struct sa_addr local;
	struct sa_addr remote;
	__u16 local_port;
	__u16 remote_port;
	__u16 family; /* of the socket: AF_INET, or AF_INET6 also when v4-mapped */
	__u16 listen_port; /* of the listener a passive socket came from, 0 unknown */
};
_Static_assert(sizeof(struct sa_tuple) == 40, "layout");

enum sa_role {
	SA_ROLE_ACTIVE = 1, /* connect(2): the client */
	SA_ROLE_PASSIVE = 2, /* accept(2): the server */
};

/* In place of a cookie: nobody has come, and nobody will be let in. */
#define SA_NOBODY (~0ULL)

/* One socket's part of a connection. Only that socket's programs write it. */
struct sa_side {
	__u64 cookie; /* claimed by compare-and-swap, 0 is free */
	__u64 ready; /* == cookie once everything below is valid */
	__u64 sk; /* address of the struct sock, believed only with its cookie */
	__u64 netns_cookie;
	struct sa_tuple tuple;
	__u32 skipped; /* enum sa_reason why this socket is not enrolled, or 0 */
	__u8 role;
	__u8 snd_wscale;
	__u8 rcv_wscale;
	__u8 wscale_ok;
	__u32 tgid; /* of the process seen using the socket, 0 unknown */
	__u32 pad;
	__u64 start_time; /* of that process: ns since boot */
	__u64 st; /* address of the socket's struct sa_sock */
	__u64 pad2[3];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct sa_side) == 128, "layout");

/* Bits of side 0; those of side 1 are the next, see sa_bit(). */
enum sa_gate {
	SA_GATE_USED = 1, /* it has redirected to the other at least once */
	SA_GATE_SHUT = 4, /* both: nothing was ever redirected, nothing ever will be */
	SA_GATE_GONE = 8, /* it is out: nothing may be redirected to it */
	SA_GATE_LEAVING = 32, /* it asks its peer not to redirect to it */
	SA_GATE_REFUSED = 128, /* the peer had to, meanwhile */
	SA_GATE_HEARD = 512, /* it has heard its peer ask, and redirects nothing any more */
};

/* Of sa_conn.accounted, by side like enum sa_gate. */
enum sa_accounted {
	SA_OUT = 1, /* somebody has counted it as ejected, or as closed */
	SA_TOLD = 4, /* its peer has told for it what it redirected, see sa_tell() */
};

/* Value of sa_conns: the rendezvous of the two sockets of one connection. */
struct sa_conn {
	struct sa_side side[2];
	__u32 gate; /* enum sa_gate, changed by atomics only */
	__u32 poisoned; /* two sockets claimed one side: nobody is paired */
	__u32 left; /* bit per side: will not touch this entry again */
	__u32 accounted; /* enum sa_accounted */
	struct bpf_timer timer; /* of the watch, see watch.h */
	__u16 looks; /* of the watch at sockets that were not accepted yet */
	__u16 rests; /* of the watch, longer each time */
	__u16 suspect; /* the watch saw a reader that may not be eligible */
	__u16 again; /* looks since it saw none */
	__u32 draining; /* one end's cgroup is being disabled: both ends leave */
	__u32 cut; /* bit per side: will never redirect again, nothing is in flight */
	__u64 leaving[2]; /* per side: the cgroup that it leaves with, of sa_leaving */
};
_Static_assert(sizeof(struct sa_conn) == 320, "layout");

enum sa_path {
	SA_PATH_STACK = 0,
	SA_PATH_REDIRECT = 1,
};

/* Value of sa_socks: what a socket knows of itself, its peer and its sending
 * direction. Written under the socket's own lock.
 */
struct sa_sock {
	__u64 cookie;
	__u64 conn_id;
	__u64 peer_cookie; /* 0 until paired, then immutable */
	__u64 peer_sk;
	__u64 peer_file; /* of the peer, while the path is redirect */
	__u64 peer_limit; /* its memory cgroup if that limits TCP, as long */
	__u64 peer_st; /* address of the peer's struct sa_sock */
	__u64 pressure; /* address of the protocol's memory_pressure */
	__u64 netns_cookie;
	__u64 start_time; /* of the process `tgid`: ns since boot */
	__u64 redirected_messages;
	__u64 redirected_bytes;
	__u64 stack_messages;
	__u64 stack_bytes;
	__u64 told_messages; /* of the redirected ones, in sa_stats already */
	__u64 told_bytes;
	__u64 stack_at; /* jiffies of the last message on the stack */
	/*
	 * The task_struct of the thread that sent last: who it is, in one word. It may
	 * have ended, and another thread may have its place since.
	 */
	__u64 task;
	__u32 side;
	__u32 role; /* enum sa_role */
	__u32 skipped; /* enum sa_reason */
	__u32 ejected; /* enum sa_reason */
	__u32 enrolled;
	__u32 path; /* enum sa_path */
	__u32 why; /* enum sa_why of the last message on the stack */
	__u32 verdict; /* enum sa_why that the tables give, 0 allow */
	__u32 generation; /* of the tables when the verdict was found */
	__u32 first_seq; /* own ISN + 1 */
	__u32 promoted_seq; /* write_seq when the path became redirect */
	__u32 queued_messages; /* redirected since the peer's queue was seen empty */
	__u32 queued_bytes;
	__u32 reused; /* connected before: its cookie may be known to an old peer */
	__u32 disconnected; /* connect(AF_UNSPEC) took it out */
	__u16 others; /* than one thread have sent since one was last alone */
	__u16 leaving; /* enum sa_why: goes back to the stack when the queue is empty */
	__u32 company; /* two threads were seen sending: never promoted again */
	__u32 tgid; /* process that connected or sent last */
	__u32 gate_open; /* this direction has told sa_conn.gate */
	__u32 marks; /* enum sa_mark */
	__u32 promotions;
	__u32 demotions;
	__u32 policy_tier; /* tier of the entry that decided, 0 none */
	__u32 contended; /* how often the peer's lock was found taken: 0 rarely */
	__u32 peer_ports; /* skc_portpair of the peer: it may connect elsewhere */
	__u32 lost; /* messages that enrolment has cost time: see sa_weigh() */
	__u32 unanswered; /* messages sent since the peer was last seen to have sent one */
	__u32 answers; /* what the peer had sent then */
	__u32 judged; /* how both ends read was seen; its later ACKs are for who leaves */
	__u32 drain; /* walk of sa_iter_drain that took it out of service, 0 none */
	__u32 cut; /* enum sa_cut */
	__u32 straggler; /* left redirect while another thread may be in flight */
	__u32 adopted; /* enum sa_adopted */
	__u16 acks_wanted; /* by another program: its RTT callbacks stay on */
	__u16 quiet; /* ours are through with it */
	struct sa_tuple tuple;
};
_Static_assert(sizeof(struct sa_sock) == 320, "layout");

/* Is its connection older than the instance? */
enum sa_adopted {
	SA_ADOPTED_NOT = 0,
	SA_ADOPTED = 1,
	/*
	 * A call on the peer slept in TCP when they were paired. If that is a splice(2)
	 * nobody saw it, so how it reads shows when it sleeps in the sockmap's recv.
	 */
	SA_ADOPTED_ASLEEP = 2,
};

/* Of a draining direction: may it redirect? See drain.h. */
enum sa_cut {
	SA_CUT_NOT = 0,
	SA_CUT_ASKED = 1, /* the drain is looking; a redirect takes it back */
	SA_CUT_DONE = 2, /* never again */
};

enum sa_mark {
	SA_MARK_SPLICING = 1, /* the peer was seen splicing */
	SA_MARK_OPTION = 2, /* the peer asked for an option redirect cannot honour, or blocks */
	SA_MARK_LEAVING = 4, /* the peer is about to leave, see stream.h */
	SA_MARK_GONE = 8, /* it has left */
};

/* Key of sa_endpoints, sa_services' address part, the policy's endpoint. */
struct sa_endpoint {
	__u32 identity; /* 0: from sa_identities */
	__u32 host; /* added by `endpoint add --host` */
};

/* ::/0 is not 0.0.0.0/0, though v4-mapped addresses lie in it. */
#define SA_FAMILY_V4 4
#define SA_FAMILY_V6 6

struct sa_cidr {
	__u32 prefixlen; /* of the 32 bits of family and the 128 of addr */
	__u32 family;
	struct sa_addr addr;
};
_Static_assert(sizeof(struct sa_cidr) == 24, "layout");

struct sa_service_key {
	struct sa_addr addr;
	__u16 port;
	__u8 proto;
	__u8 pad;
};
_Static_assert(sizeof(struct sa_service_key) == 20, "layout");

struct sa_service {
	__u32 accelerate;
	__u32 pad;
	__u64 connections; /* connections that met this entry */
};

enum sa_direction {
	SA_EGRESS = 1,
	SA_INGRESS = 2,
};

#define SA_IDENTITY_ANY 0
#define SA_IDENTITY_HOST 1
#define SA_IDENTITY_WORLD 2

enum sa_policy_kind {
	SA_POLICY_RULE = 0,
	/* The endpoint has rules in this direction: what matches none is denied. */
	SA_POLICY_DEFAULT_DENY = 1,
};

struct sa_policy_key {
	struct sa_addr endpoint;
	__u32 identity; /* SA_IDENTITY_ANY: every identity */
	__u16 port; /* 0: every port */
	__u8 proto; /* 0: every protocol */
	__u8 direction; /* enum sa_direction */
	__u8 kind; /* enum sa_policy_kind */
	__u8 pad[3];
};
_Static_assert(sizeof(struct sa_policy_key) == 28, "layout");

#define SA_VERDICT_ALLOW 0
#define SA_VERDICT_DENY (-1)
/* A verdict above 0 is a proxy port. */
struct sa_policy {
	__s32 verdict;
	__u32 pad;
	__u64 evaluations; /* how often this entry decided */
};

enum sa_scope {
	SA_SCOPE_LOCAL = 0,
	SA_SCOPE_ENDPOINTS = 1,
};

enum sa_filter {
	SA_FILTER_INCLUDE = 1,
	SA_FILTER_EXCLUDE = 2,
};

/* The one element of sa_config. User space writes it. */
struct sa_config {
	__u32 layout;
	__u32 enabled;
	__u32 generation; /* of policy, identities, endpoints, services */
	__u32 changing; /* sequence count: odd while `apply` rewrites the tables */
	__u32 scope; /* enum sa_scope */
	__u32 blocking; /* accelerate blocking readers too */
	__u32 budget_messages;
	__u32 budget_bytes;
	__u32 max_message; /* bytes; larger ones go by the stack */
	__u32 port_includes; /* sa_ports has includes */
	__u32 cidr_includes; /* sa_cidrs has includes */
	__u32 allow; /* bits of the risks the administrator accepted */
	/* For tests of the rules themselves: 1 turns the rule off. */
	__u32 without_company_rule;
	__u32 without_observer;
	__u32 stream_limit; /* of sa_sock.lost, 0 none: the sender leaves */
	__u32 admit_all; /* also to servers whose connections are too short */
	__u64 build; /* of the programs, 0 while they are being replaced */
};
_Static_assert(sizeof(struct sa_config) == 72, "layout");
_Static_assert(__builtin_offsetof(struct sa_config, layout) == 0, "kept by every layout");
_Static_assert(__builtin_offsetof(struct sa_config, enabled) == 4, "kept by every layout");

/* Of sa_listeners: a port, whatever the address. */
struct sa_listener_key {
	__u64 netns_cookie;
	__u32 port;
	__u32 pad;
};
_Static_assert(sizeof(struct sa_listener_key) == 16, "layout");

struct sa_listener {
	__u32 readers; /* enum sa_readers: what the last child judged was */
	__u32 splicing; /* a child was seen splicing */
	__u32 tgid; /* of the process that called listen(2), 0 unknown */
	__u32 shared; /* others listen there too: what one child is says nothing */
	__u64 start_time; /* of that process: ns since boot */
	__u64 sk; /* address of the listener, believed only with its cookie */
	__u64 cookie;
};

/* Of sa_servers: where a client connects to. */
struct sa_server_key {
	__u64 netns_cookie; /* of the client */
	struct sa_addr addr;
	__u32 port;
	__u32 pad;
};
_Static_assert(sizeof(struct sa_server_key) == 32, "layout");

/* Value of sa_passed: one side of a connection that was passed over. */
struct sa_passed {
	__u64 conn_id;
	__u64 cookie;
	__u32 reason; /* enum sa_reason */
	__u32 pad;
};
_Static_assert(sizeof(struct sa_passed) == 24, "layout");

enum sa_readers {
	SA_READERS_UNKNOWN = 0,
	SA_READERS_NONBLOCKING = 1,
	SA_READERS_BLOCKING = 2,
};

/* Value of sa_listening: the listener, where the port does not tell which. */
struct sa_listening {
	__u64 sk; /* address of the listener, believed only with its cookie */
	__u64 cookie;
	__u64 start_time; /* of the process that called listen(2): ns since boot */
	__u32 tgid; /* of that process */
	__u32 port;
};

/* A process seen splicing from an enrolled socket, or the one that had called
 * listen(2) for it.
 */
struct sa_splicer {
	__u64 start_time; /* ns since boot, tells a reused pid apart */
	__u32 by_child; /* only what it listened for was: its workers did */
	__u32 pad;
};

/* One record of sa_iter_dump. */
struct sa_dump {
	struct sa_sock sock;
	__u64 unread_bytes; /* redirected to this socket and not read yet */
	__u32 unread_messages;
	__u32 state; /* TCP_ESTABLISHED ... */
	__u32 inode; /* of the socket, as in /proc/PID/fd */
	__u32 uid;
	__u16 nonblock;
	__u16 asked; /* it, or its peer, leaves with the cgroup that is asked about */
	__u32 waits; /* enum sa_waits */
};
_Static_assert(sizeof(struct sa_dump) == 352, "layout");

/* One record of sa_iter_open: a descriptor of a process that is a TCP socket. */
struct sa_open {
	__u64 inode; /* of the socket, as in /proc/PID/fd */
	__u64 cookie;
	__u64 netns_cookie;
	__u32 tgid; /* outside of all pid namespaces */
	__u32 fd;
	struct sa_tuple tuple;
	__u32 mapped; /* it is in a table of sockets, of ours or of another tool */
	__u32 noted; /* it is not, and its struct sa_sock follows */
	__u32 connected; /* it has a peer, for getpeername(2) */
	__u32 pad;
};
_Static_assert(sizeof(struct sa_open) == 88, "layout");

/* What a draining socket waits for before it can be taken out. */
enum sa_waits {
	SA_WAITS_NOT = 0, /* it is not draining */
	SA_WAITS_NEXT = 1, /* for the next look */
	SA_WAITS_UNREAD = 2, /* for its program to read what was redirected to it */
	SA_WAITS_PEER_UNREAD = 3, /* for its peer to read what it redirected */
	SA_WAITS_SENDER = 4, /* for a send(2) on it that may be under way */
	SA_WAITS_PEER = 5, /* for the other end, which may still redirect to it */
	SA_DROPPED = 6, /* not any more: it was taken out with what was unread */
};

/* One record of sa_adopt_scan: a socket that the instance has not enrolled. */
struct sa_candidate {
	__u64 cookie;
	struct sa_tuple tuple;
	__u32 sent; /* own ISN; that + 1 of a passive socket, see sa_sent_from() */
	__u32 received; /* the peer's ISN + 1 */
	__u32 judged; /* enum sa_reason why it was skipped or ejected, or 0 */
	__u32 pad;
};
_Static_assert(sizeof(struct sa_candidate) == 64, "layout");

/* One record of sa_adopt_places: where a connected socket can be got at. */
struct sa_place {
	__u64 netns_cookie;
	__u32 tgid;
	__u32 fd;
};
_Static_assert(sizeof(struct sa_place) == 16, "layout");

/* Value of sa_adoptions: a socket whose peer was found. */
struct sa_adoption {
	struct sa_sock st; /* what its struct sa_sock will begin with */
	__u32 owners; /* processes that have it open */
	__u32 splicing; /* one of them was seen splicing */
	__u32 reason; /* enum sa_reason why it stays as it is, or 0 */
	__s32 error; /* of the kernel, when it was asked to call sa_sockops */
};
_Static_assert(sizeof(struct sa_adoption) == 336, "layout");

/* One record of sa_events. */
struct sa_event {
	__u64 time; /* ns of CLOCK_MONOTONIC */
	__u64 cookie;
	__u64 netns_cookie;
	struct sa_tuple tuple;
	__u32 kind; /* enum sa_event_kind */
	__u32 cause; /* enum sa_reason of skipped and ejected, enum sa_why of the rest */
	__u32 tgid; /* of the process seen using the socket, 0 unknown */
	__u32 role; /* enum sa_role */
};
_Static_assert(sizeof(struct sa_event) == 80, "layout");

/* The one element of sa_audience: who wants to hear of what, and how long. */
struct sa_audience {
	__u64 until; /* ns of CLOCK_MONOTONIC */
	__u32 kinds; /* bits of enum sa_event_kind, 0 nobody listens */
	__u32 pad;
};
_Static_assert(sizeof(struct sa_audience) == 16, "layout");

#endif
