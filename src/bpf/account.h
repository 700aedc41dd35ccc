/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The books: each enrolled socket is counted once as it leaves, whoever takes it
 * out, and what it has redirected is told once.
 */
#ifndef SA_ACCOUNT_H
#define SA_ACCOUNT_H

#include "admit.h"
#include "events.h"

/* Is the caller the one who counts this side as gone? */
static __always_inline bool sa_account(struct sa_conn *conn, __u32 side)
{
	__u32 bit = sa_bit(SA_OUT, side);

	return !(__sync_fetch_and_or(&conn->accounted, bit) & bit);
}

/* For one that close(2) has taken out: false when somebody has counted it before. */
static __always_inline bool sa_account_closed(struct sa_conn *conn, __u32 side)
{
	if (!sa_account(conn, side))
		return false;
	sa_add(closed, 1);
	return true;
}

/* Deletes one socket from the map, and counts it if it was there. */
static __always_inline bool sa_eject_side(struct sa_conn *conn, __u32 side, __u64 cookie,
					  __u32 reason)
{
	if (bpf_map_delete_elem(&sa_sockhash, &cookie) || !sa_account(conn, side))
		return false;
	sa_add_at(ejected, reason, SA_REASON_COUNT, 1);
	sa_event(sa_side(conn, side), SA_EVENT_EJECTED, reason);
	return true;
}

static __always_inline void sa_tell_now(struct sa_sock *st)
{
	sa_add(redirected_messages, st->redirected_messages - st->told_messages);
	sa_add(redirected_bytes, st->redirected_bytes - st->told_bytes);
	st->told_messages = st->redirected_messages;
	st->told_bytes = st->redirected_bytes;
}

/*
 * Two locked additions for each message would be a tenth of the verdict, so a
 * socket counts for itself what it redirects, and tells when it leaves and at each
 * change of state: close(2) makes one in the same call that takes it out of
 * sa_sockhash, where `stats` looks for the rest.
 */
static __always_inline void sa_tell(struct sa_sock *st)
{
	const struct sa_conn *conn;

	if (st->told_messages == st->redirected_messages)
		return;
	sa_earn(st, st->redirected_messages % SA_ADMIT_EVERY);
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	if (!conn || !(conn->accounted & sa_bit(SA_TOLD, st->side)))
		return sa_tell_now(st);
	st->told_messages = st->redirected_messages;
	st->told_bytes = st->redirected_bytes;
}

/* No change of state is told where another program has set its own callback flags. */
static __always_inline bool sa_is_deaf(const struct tcp_sock___sa *tp)
{
	return !(tp->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_STATE_CB_FLAG);
}

/*
 * So it tells at once, and of what it earns in small parts: there is no end to do so.
 * Not static: the verifier looks at it once, and wants a number from it.
 */
#define SA_EARN_DEAF 8
__noinline int sa_tell_deaf(struct sa_sock *st)
{
	if (!st || st->told_messages == st->redirected_messages)
		return 0;
	sa_tell_now(st);
	if (!(st->redirected_messages % SA_EARN_DEAF))
		sa_earn(st, SA_EARN_DEAF);
	return 0;
}

/* The same for the peer, which has redirected its last message. */
static __always_inline void sa_tell_for_peer(const struct sa_sock *st, struct sa_conn *conn)
{
	__u64 peer = st->peer_st;

	if (!peer)
		return;
	__sync_fetch_and_or(&conn->accounted, sa_bit(SA_TOLD, !st->side));
	sa_add(redirected_messages,
	       sa_word(peer + __builtin_offsetof(struct sa_sock, redirected_messages)) -
		       sa_word(peer + __builtin_offsetof(struct sa_sock, told_messages)));
	sa_add(redirected_bytes,
	       sa_word(peer + __builtin_offsetof(struct sa_sock, redirected_bytes)) -
		       sa_word(peer + __builtin_offsetof(struct sa_sock, told_bytes)));
}

#endif
