/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a sending direction does rarely: meet its peer, ask the tables again,
 * tell which process sends, open the gate for its first redirect.
 */
#ifndef SA_DIRECTION_H
#define SA_DIRECTION_H

#include "eject.h"
#include "policy.h"
#include "splice.h"

/* As an atomic, for its order with the look-ups before and after it. */
static __always_inline __u32 sa_changing(struct sa_config *conf)
{
	return __sync_fetch_and_or(&conf->changing, 0);
}

/*
 * The tables as one picture, though `apply` rewrites them entry by entry: a
 * sequence count, odd meanwhile, tells whether what was read is of one piece.
 * Where it is not, a direction judged before keeps its verdict, a new one goes
 * by the stack, and both look again at the next message. An `apply` that was
 * killed leaves the count odd until the next one, which ends what it began.
 */
static __always_inline void sa_ask_tables(struct sa_sock *st, const struct sa_tuple *client,
					  const struct sa_tuple *server, bool judged)
{
	struct sa_config *conf = sa_conf();
	__u32 before, why, tier = 0;

	if (!conf)
		return;
	before = sa_changing(conf);
	if (!(before & 1)) {
		why = sa_tables_why(&st->tuple, client, server, &tier);
		if (sa_changing(conf) == before) {
			if (why && why != st->verdict)
				sa_event(st, SA_EVENT_DENIED, why);
			st->verdict = why;
			st->policy_tier = tier;
			return;
		}
	}
	if (!judged)
		st->verdict = SA_WHY_CHANGING;
	st->generation--;
}

/* The tables may have changed: what do they say now of this direction? */
static __noinline void sa_evaluate(struct sa_sock *st, __u32 generation)
{
	struct sa_side *me, *peer;
	struct sa_conn *conn;
	bool active, judged;
	__u32 *mark, gate;

	if (!st)
		return;
	/* Generation 0: never asked. What found no peer was not judged by the tables. */
	judged = st->generation && st->verdict != SA_WHY_UNPAIRED &&
		 st->verdict != SA_WHY_PEER_STATE;
	st->generation = generation;
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	if (!conn) {
		st->verdict = SA_WHY_UNPAIRED;
		return;
	}
	me = sa_side(conn, st->side);
	peer = sa_side(conn, !st->side);
	if (!st->peer_cookie) {
		__u32 reason = peer->skipped;

		if (!reason)
			reason = sa_match(conn, me, peer);
		if (reason) {
			/* Look again at the next message. */
			st->verdict = SA_WHY_UNPAIRED;
			st->generation = generation - 1;
			return;
		}
		sa_pair_with(st, peer);
	}
	if (me->cookie != st->cookie || peer->cookie != st->peer_cookie) {
		st->verdict = SA_WHY_PEER_STATE;
		return;
	}
	st->marks &= ~SA_MARK_LEAVING;
	/* At one moment: LEAVING becomes GONE, and neither must be missed. */
	gate = *(volatile __u32 *)&conn->gate;
	if (gate & sa_bit(SA_GATE_GONE, !st->side)) {
		st->marks |= SA_MARK_GONE;
		st->verdict = SA_WHY_MISSED;
		return;
	}
	if (gate & sa_bit(SA_GATE_LEAVING, !st->side)) {
		/* Look again at the next message. */
		st->marks |= SA_MARK_LEAVING;
		st->generation = generation - 1;
	}
	active = st->role == SA_ROLE_ACTIVE;
	mark = bpf_map_lookup_elem(&sa_marked, &st->peer_cookie);
	if (mark)
		st->marks |= *mark;
	/* Timestamps and pacing are the sender's options. */
	mark = bpf_map_lookup_elem(&sa_marked, &st->cookie);
	if (mark)
		st->marks |= *mark & SA_MARK_OPTION;
	if (peer->tgid && sa_process_splices(peer->tgid, peer->start_time))
		st->marks |= SA_MARK_SPLICING;
	if (st->marks & ~SA_MARK_LEAVING) {
		st->verdict = st->marks & SA_MARK_SPLICING ? SA_WHY_SPLICING : SA_WHY_READER;
		return;
	}
	sa_ask_tables(st, active ? &st->tuple : &peer->tuple, active ? &peer->tuple : &st->tuple,
		      judged);
}

/* Another process sends now (fork, SCM_RIGHTS): the peer must know, in case it
 * is one that splices.
 */
static __noinline void sa_new_process(struct sa_sock *st, __u32 tgid)
{
	struct sa_conn *conn;
	struct sa_side *me;

	if (!st)
		return;
	sa_note_process(st);
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	if (!conn)
		return;
	me = sa_side(conn, st->side);
	if (me->cookie != st->cookie)
		return;
	me->start_time = st->start_time;
	me->tgid = tgid;
	/* Not otherwise: two that take turns would have all look at each message. */
	if (sa_process_splices(tgid, st->start_time))
		sa_observe();
}

/* First redirect of a direction: from here on nobody may eject the pair. */
static __noinline bool sa_open_gate(struct sa_sock *st)
{
	struct sa_conn *conn;

	if (!st)
		return false;
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	if (!conn || sa_side(conn, st->side)->cookie != st->cookie)
		return false;
	return !(__sync_fetch_and_or(&conn->gate, sa_bit(SA_GATE_USED, st->side)) &
		 (SA_GATE_SHUT | sa_bit(SA_GATE_GONE, !st->side)));
}

/* Is no earlier message of this direction in flight? As sa_stay() and sa_enter() see it. */
static __always_inline bool sa_is_clear(const struct sa_sock *st, __u32 alone,
					__u32 another_thread)
{
	if (alone)
		return true;
	return st->path == SA_PATH_REDIRECT ? !st->others && !another_thread : !st->straggler;
}

/*
 * The peer asks to leave: may it, as far as this message goes? Not while its queue holds
 * something: bytes by TCP behind it would not wake an edge-triggered reader. Nor while
 * another send may be in flight to it. Then it must stay. Not static: the verifier looks
 * at it once.
 */
__noinline int sa_let_go(const struct sa_sock *st, __u32 queue_empty, __u32 alone,
			 __u32 another_thread)
{
	bool clear, must_stay;
	struct sa_conn *conn;
	__u64 id;

	if (!st)
		return true;
	clear = sa_is_clear(st, alone, another_thread);
	must_stay = st->path == SA_PATH_REDIRECT && !(queue_empty && clear);
	if (!must_stay && !clear)
		return true;
	/* Before 6.2 a key may not be in what a global function was given. */
	id = st->conn_id;
	conn = bpf_map_lookup_elem(&sa_conns, &id);
	if (!conn || sa_side(conn, st->side)->cookie != st->cookie)
		return true;
	if (must_stay)
		return !!(__sync_fetch_and_or(&conn->gate, sa_bit(SA_GATE_REFUSED, !st->side)) &
			  sa_bit(SA_GATE_GONE, !st->side));
	__sync_fetch_and_or(&conn->gate, sa_bit(SA_GATE_HEARD, st->side));
	return true;
}

#endif
