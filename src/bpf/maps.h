/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps. Each comment says who writes the map, and when. */
#ifndef SA_MAPS_H
#define SA_MAPS_H

#include "kernel.h"
#include "intf.h"
#include "outcome.h"

/*
 * Enrolled sockets by cookie. sa_sockops adds at ESTABLISHED and deletes at
 * ejection; the kernel deletes at close. The value is declared as __u64 so
 * that a look-up from user space gives the cookie.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u64);
} sa_sockhash SEC(".maps");

/*
 * The two ends of each connection, by conn_id. sa_sockops adds at ESTABLISHED,
 * the last side to leave deletes, under its own socket's lock.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct sa_conn);
} sa_conns SEC(".maps");

/* The enabled cgroups by kernel id: a socket in one of them, or below, is to be
 * accelerated; the others drain. User space writes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
} sa_cgroups SEC(".maps");

/*
 * The cgroups whose sockets drain, by kernel id: 1 for the one that a command asks
 * about, 0 for the others. User space writes: when cgroups come or go, and before each
 * walk that asks. Those of any number of changes may wait here.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
} sa_leaving SEC(".maps");

/* What a socket knows of itself. Its own programs write it, freed with it. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sa_sock);
} sa_socks SEC(".maps");

/*
 * The listener, cloned by the kernel into every socket accepted from it: that
 * costs each of them, so only where sa_listeners does not tell. sa_setsockopt
 * makes it for transparent sockets, sa_sockops writes it at listen(2).
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct sa_listening);
} sa_listening SEC(".maps");

/* Local addresses with policy. User space writes (endpoint add|del). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sa_addr);
	__type(value, struct sa_endpoint);
} sa_endpoints SEC(".maps");

/* Identity of an address, longest prefix. User space writes. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sa_cidr);
	__type(value, __u32);
} sa_identities SEC(".maps");

/* Destinations that stay on the stack. User space writes; sa_sockops counts. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sa_service_key);
	__type(value, struct sa_service);
} sa_services SEC(".maps");

/* Verdicts. User space writes; the deciding entry counts its evaluations. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sa_policy_key);
	__type(value, struct sa_policy);
} sa_policy SEC(".maps");

/* Switches, tunables and the generation of the tables. User space writes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sa_config);
} sa_config SEC(".maps");

/* Ports of the server: enum sa_filter. User space writes at enable. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u8);
} sa_ports SEC(".maps");

/* Addresses of the server: enum sa_filter. User space writes at enable; while they
 * change, old and new ones are there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sa_cidr);
	__type(value, __u32);
} sa_cidrs SEC(".maps");

/* What earlier children of a listener turned out to be. sa_sockops writes when
 * it judges one, the splice observer when it sees one splice.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct sa_listener_key);
	__type(value, struct sa_listener);
} sa_listeners SEC(".maps");

/*
 * Does enrolling connections to this server pay? A time in ns since boot: until
 * when its connections have used up what they may cost, see admit.h.
 * sa_sockops raises it as it enrols, both programs lower it as redirect pays.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct sa_server_key);
	__type(value, __u64);
} sa_servers SEC(".maps");

/*
 * Connections passed over, each side in a slot of its own that is found by hash;
 * the next one there overwrites it. sa_sockops writes.
 */
#define SA_PASSED_SLOTS 16384
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SA_PASSED_SLOTS);
	__type(key, __u32);
	__type(value, struct sa_passed);
} sa_passed SEC(".maps");

/* Processes seen splicing, by tgid. The splice observer writes. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct sa_splicer);
} sa_splicers SEC(".maps");

/* Sockets whose readers became unsafe while enrolled, by cookie: enum sa_mark.
 * The splice observer and sa_setsockopt write.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u32);
} sa_marked SEC(".maps");

/* Counters; every program adds to its CPU's copy. */
struct sa_stats {
	__u64 seen;
	__u64 enrolled; /* ever; ejected ones are counted there too */
	__u64 closed; /* enrolled ones that have closed */
	__u64 paired; /* sockets */
	/* Of sockets on their way out: live ones keep their own, see sa_tell(). */
	__u64 redirected_messages;
	__u64 redirected_bytes;
	__u64 stack_messages;
	__u64 stack_bytes;
	__u64 promotions;
	__u64 refused_options; /* setsockopt(2) calls refused */
	__u64 hard_cap; /* demotions in company, at the hard cap */
	__u64 events_lost; /* sa_events was full */
	__u64 skipped[SA_REASON_COUNT];
	__u64 ejected[SA_REASON_COUNT];
	__u64 stack_why[SA_WHY_COUNT];
	__u64 demoted_why[SA_WHY_COUNT];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sa_stats);
} sa_stats SEC(".maps");

/* What happens to sockets, for `events`. Every program writes, see events.h. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} sa_events SEC(".maps");

/*
 * Whether anybody reads sa_events. `events` writes, and keeps moving the
 * deadline; the first event after it switches off what a killed one left on.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sa_audience);
} sa_audience SEC(".maps");

/*
 * The second half of the generation: raised by programs that saw a reader
 * become unsafe. Not in sa_config, which user space writes as a whole, and no
 * global variable, which an upgrade would not hand over.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sa_observed SEC(".maps");

/* sa_verdict, which sa_skmsg calls. User space writes, at enable and upgrade. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sa_programs SEC(".maps");

static __always_inline struct sa_config *sa_conf(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&sa_config, &zero);
}

static __always_inline struct sa_stats *sa_count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&sa_stats, &zero);
}

static __always_inline __u32 sa_observations(void)
{
	__u32 zero = 0, *observed = bpf_map_lookup_elem(&sa_observed, &zero);

	return observed ? *observed : 0;
}

/* Every direction looks at the tables again. */
static __always_inline void sa_observe(void)
{
	__u32 zero = 0, *observed = bpf_map_lookup_elem(&sa_observed, &zero);

	if (observed)
		__sync_fetch_and_add(observed, 1);
}

/* Notes that a reader became unsafe; every direction looks again. */
static __always_inline void sa_mark(__u64 cookie, __u32 mark)
{
	__u32 *known = bpf_map_lookup_elem(&sa_marked, &cookie);

	if (known && *known & mark)
		return;
	if (known)
		mark |= *known;
	bpf_map_update_elem(&sa_marked, &cookie, &mark, BPF_ANY);
	sa_observe();
}

/*
 * sock_ops programs run in softirq and in process context on the same CPU and
 * can interrupt one another between load and store: add in one instruction.
 */
#define sa_add(field, n)                                         \
	do {                                                     \
		struct sa_stats *stats_ = sa_count();            \
		if (stats_)                                      \
			__sync_fetch_and_add(&stats_->field, n); \
	} while (0)

/* Older verifiers know the bounds of the register that was compared, not of its copies. */
#define sa_add_at(field, index, limit, n)                                       \
	do {                                                                    \
		struct sa_stats *stats_ = sa_count();                           \
		__u64 index_ = (__u32)(index);                                  \
		asm volatile("" : "+r"(index_));                                \
		if (stats_ && index_ < (limit))                                 \
			__sync_fetch_and_add(&stats_->field[index_], n);        \
	} while (0)

#endif
