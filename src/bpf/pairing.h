/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who is my peer? The two sockets of a connection meet in sa_conns under the
 * pair of initial sequence numbers that only they share.
 */
#ifndef SA_PAIRING_H
#define SA_PAIRING_H

#include "maps.h"

static const struct sa_conn sa_empty_conn;

static __always_inline bool sa_same_addr(const struct sa_addr *a, const struct sa_addr *b)
{
	const __u64 *x = (const void *)a, *y = (const void *)b;

	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline void sa_map_v4(struct sa_addr *addr, __be32 v4)
{
	__u32 *word = (void *)addr;

	word[0] = 0;
	word[1] = 0;
	word[2] = bpf_htonl(0xffff);
	word[3] = v4;
}

/* An AF_INET6 socket keeps IPv4 addresses v4-mapped itself. */
static __always_inline void sa_tuple_of(const struct tcp_sock___sa *tp, struct sa_tuple *t)
{
	const struct sock_common___sa *skc = (const void *)tp;
	__u32 *l = (void *)&t->local, *r = (void *)&t->remote;

	t->family = skc->skc_family;
	t->local_port = skc->skc_num;
	t->remote_port = bpf_ntohs(skc->skc_dport);
	if (t->family == AF_INET) {
		sa_map_v4(&t->local, skc->skc_rcv_saddr);
		sa_map_v4(&t->remote, skc->skc_daddr);
		return;
	}
	l[0] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[0];
	l[1] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[1];
	l[2] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[2];
	l[3] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[3];
	r[0] = skc->skc_v6_daddr.in6_u.u6_addr32[0];
	r[1] = skc->skc_v6_daddr.in6_u.u6_addr32[1];
	r[2] = skc->skc_v6_daddr.in6_u.u6_addr32[2];
	r[3] = skc->skc_v6_daddr.in6_u.u6_addr32[3];
}

static __always_inline __u64 sa_conn_id(__u32 snd_nxt, __u32 rcv_nxt)
{
	__u64 lo = snd_nxt < rcv_nxt ? snd_nxt : rcv_nxt;
	__u64 hi = snd_nxt < rcv_nxt ? rcv_nxt : snd_nxt;

	return lo << 32 | hi;
}

/*
 * One of the two sides, without a variable index into the map value: the
 * verifier of older kernels loses track of those.
 */
static __always_inline struct sa_side *sa_side(struct sa_conn *conn, __u32 side)
{
	return side ? &conn->side[1] : &conn->side[0];
}

/* Of a mask in struct sa_conn that has bits for side 0, the one for this side. */
static __always_inline __u32 sa_bit(__u32 bit, __u32 side)
{
	return side ? bit << 1 : bit;
}

/*
 * Takes the side for this cookie: 0, or the reason why not.
 *
 * Elements of the hash are recycled without waiting for readers, so the entry
 * may have become another connection's since it was looked up. What is claimed
 * and has not left is never deleted: found again, it is ours.
 */
static __always_inline __u32 sa_claim(struct sa_conn *conn, __u64 id, __u32 side, __u64 cookie)
{
	struct sa_side *mine = sa_side(conn, side);
	__u64 owner = __sync_val_compare_and_swap(&mine->cookie, 0, cookie);

	if (bpf_map_lookup_elem(&sa_conns, &id) != conn) {
		if (!owner)
			__sync_val_compare_and_swap(&mine->cookie, cookie, 0);
		return SA_REASON_NO_LOCAL_PEER;
	}
	if (owner == SA_NOBODY)
		return SA_REASON_NO_LOCAL_PEER;
	if (owner && owner != cookie) {
		__sync_lock_test_and_set(&conn->poisoned, 1);
		return SA_REASON_AMBIGUOUS;
	}
	return 0;
}

/* Is the remote end of one the local end of the other? */
static __always_inline bool sa_same_end(const struct sa_tuple *a, const struct sa_tuple *b)
{
	return a->remote_port == b->local_port && sa_same_addr(&a->remote, &b->local);
}

/* Are these two the ends of one connection? 0, or the reason why not. */
static __always_inline __u32 sa_match(const struct sa_conn *conn, const struct sa_side *me,
				      const struct sa_side *peer)
{
	const struct sa_tuple *client, *server;

	if (conn->poisoned)
		return SA_REASON_AMBIGUOUS;
	if (!peer->cookie || peer->ready != peer->cookie || conn->left)
		return SA_REASON_NO_LOCAL_PEER;
	if (me->role == peer->role)
		return SA_REASON_MISMATCH;
	if (me->wscale_ok != peer->wscale_ok || me->snd_wscale != peer->rcv_wscale ||
	    me->rcv_wscale != peer->snd_wscale)
		return SA_REASON_MISMATCH;
	/*
	 * Within one namespace: where the client reached just the address it
	 * asked for, nothing translates, and the server must see this client.
	 */
	client = me->role == SA_ROLE_ACTIVE ? &me->tuple : &peer->tuple;
	server = me->role == SA_ROLE_ACTIVE ? &peer->tuple : &me->tuple;
	if (me->netns_cookie == peer->netns_cookie && sa_same_end(client, server) &&
	    !sa_same_end(server, client))
		return SA_REASON_MISMATCH;
	return 0;
}

/*
 * This side will not touch the entry again. The last one out deletes it; a
 * side that nobody ever claimed counts as out.
 *
 * Only one may delete. Before Linux 6.10 (a6fcd19d7eac) a delete waits for the
 * entry's timer with the hash bucket locked, so a timer that is about to delete the
 * same entry would never end: sa_give_up takes the free side first, and so does this.
 * Before it says that it has left: after that the entry may be another connection's.
 */
static __always_inline void sa_leave(struct sa_sock *st)
{
	__u32 mine = sa_bit(1, st->side), gone;
	struct sa_conn *conn;
	__u64 other;

	if (!st->conn_id)
		return;
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	if (!conn || sa_side(conn, st->side)->cookie != st->cookie || conn->left & mine)
		return;
	other = __sync_val_compare_and_swap(&sa_side(conn, !st->side)->cookie, 0, SA_NOBODY);
	/* The timer deletes it, or another run for this socket does. */
	if (other == SA_NOBODY)
		return;
	gone = __sync_fetch_and_or(&conn->left, mine) | mine;
	if (gone == 3 || !other) {
		__u64 id = st->conn_id;

		bpf_map_delete_elem(&sa_conns, &id);
	}
}

#endif
