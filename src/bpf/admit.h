/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections that are passed over before anything is allocated for them: a
 * one-shot connection must not pay for what it cannot profit from.
 */
#ifndef SA_ADMIT_H
#define SA_ADMIT_H

#include "pairing.h"
#include "policy.h"
#include "reader.h"

/*
 * Each server has an account, kept as the time until when it is overdrawn (the
 * virtual scheduling form of a leaky bucket, ITU-T I.371). An enrolled
 * connection costs 10 ms, so that 100 a second are always taken, and 128 more at
 * once; 8 redirected messages earn that back. The coarse clock is exact enough:
 * what a tick hides, the next one shows.
 */
#define SA_ADMIT_COST_NS 10000000ULL
#define SA_ADMIT_BURST_NS (128 * SA_ADMIT_COST_NS)
#define SA_ADMIT_EARN_NS (SA_ADMIT_COST_NS / 8)
/* How often a direction tells what it earned, in messages; a power of two. */
#define SA_ADMIT_EVERY 256

static __always_inline void sa_server_of(const struct sa_tuple *client, __u64 netns_cookie,
					 struct sa_server_key *key)
{
	key->netns_cookie = netns_cookie;
	key->addr = client->remote;
	key->port = client->remote_port;
	key->pad = 0;
}

static __always_inline bool sa_overdrawn(const struct sa_config *conf,
					 const struct sa_server_key *key)
{
	const __u64 *until = bpf_map_lookup_elem(&sa_servers, key);

	return !conf->admit_all && until && *until > bpf_ktime_get_coarse_ns() + SA_ADMIT_BURST_NS;
}

static __always_inline void sa_charge(const struct sa_server_key *key)
{
	__u64 now = bpf_ktime_get_coarse_ns(), fresh = now + SA_ADMIT_COST_NS;
	__u64 *until = bpf_map_lookup_elem(&sa_servers, key);

	if (!until)
		bpf_map_update_elem(&sa_servers, key, &fresh, BPF_NOEXIST);
	else if (*until < now)
		*until = fresh;
	else
		__sync_fetch_and_add(until, SA_ADMIT_COST_NS);
}

/* So many messages of this connection were redirected. */
static __noinline void sa_earn(const struct sa_sock *st, __u32 messages)
{
	const struct sa_side *client;
	struct sa_server_key key;
	struct sa_conn *conn;
	__u64 *until, id;

	if (!st || !messages)
		return;
	/* Before 6.2 a key may not be in what a global function was given: sa_tell_deaf(). */
	id = st->conn_id;
	conn = bpf_map_lookup_elem(&sa_conns, &id);
	if (!conn)
		return;
	client = sa_side(conn, st->role == SA_ROLE_ACTIVE ? st->side : !st->side);
	sa_server_of(&client->tuple, client->netns_cookie, &key);
	until = bpf_map_lookup_elem(&sa_servers, &key);
	/* Drains run it, too, which have no coarse clock. */
	if (until && *until > bpf_ktime_get_ns())
		__sync_fetch_and_add(until, -(messages * SA_ADMIT_EARN_NS));
}

/* Why a connecting socket need not be looked at any further; else 0. */
static __always_inline __u32 sa_pass_over(const struct sa_config *conf,
					  const struct tcp_sock___sa *tp,
					  const struct sa_tuple *t, __u64 netns_cookie)
{
	struct sa_server_key key;

	if (sa_filtered(conf, &t->remote, t->remote_port))
		return SA_REASON_FILTERED;
	if (!conf->blocking && sa_blocking(tp) == SA_REASON_BLOCKING_READER)
		return SA_REASON_BLOCKING_READER;
	sa_server_of(t, netns_cookie, &key);
	return sa_overdrawn(conf, &key) ? SA_REASON_SHORT_LIVED : SA_REASON_NONE;
}

/* Where such a side is noted. Sequence numbers are as good as random. */
static __always_inline struct sa_passed *sa_passed_slot(__u64 conn_id, __u32 role)
{
	__u32 slot = ((__u32)conn_id ^ (__u32)(conn_id >> 32) ^ role) % SA_PASSED_SLOTS;

	return bpf_map_lookup_elem(&sa_passed, &slot);
}

static __always_inline bool sa_was_passed(__u64 conn_id, __u32 role)
{
	const struct sa_passed *slot = sa_passed_slot(conn_id, role);

	return slot && slot->conn_id == conn_id;
}

/* Counts it, once: nested cgroups run the program once for each. */
static __always_inline bool sa_pass(struct bpf_sock_ops *ops, __u64 conn_id, __u32 role,
				    __u32 reason)
{
	struct sa_passed *slot = sa_passed_slot(conn_id, role);

	if (!slot || slot->conn_id == conn_id)
		return false;
	slot->conn_id = conn_id;
	slot->cookie = bpf_get_socket_cookie(ops);
	slot->reason = reason;
	sa_add(seen, 1);
	sa_add_at(skipped, reason, SA_REASON_COUNT, 1);
	return true;
}

#endif
