/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Taking sockets out of the map while they are in use, so that nothing is lost.
 *
 * A socket can be deleted when its redirect queue is empty and stays so: when
 * the direction towards it is cut, that is, will never redirect again and has
 * nothing in flight. Deleting it earlier would destroy what is unread, and give
 * EPIPE to a sender between its verdict and the queue.
 *
 * The walk over the map sees one socket at a time, without its lock. So it first
 * takes both ends of a connection out of service. The next walk comes a grace
 * period later: by then every run of sa_verdict knows, and none promotes any more.
 */
#ifndef SA_DRAIN_H
#define SA_DRAIN_H

#include "dump.h"
#include "enrol.h"

/* Deepest cgroup that is looked for: INT_MAX is the kernel's default limit. */
#define SA_CGROUP_DEPTH 64

static __always_inline const struct cgroup___sa *sa_cgroup_above(const struct cgroup___sa *cgroup)
{
	const struct cgroup_subsys_state___sa *parent = cgroup->self.parent;

	return parent ? parent->cgroup : NULL;
}

/* Is the socket in an enabled cgroup, or below one? */
static __always_inline bool sa_covered(const struct sock___sa *sk)
{
	const struct cgroup___sa *cgroup = sk->sk_cgrp_data.cgroup;

	for (int depth = 0; cgroup && depth < SA_CGROUP_DEPTH; depth++) {
		__u64 id = cgroup->kn->id;

		if (bpf_map_lookup_elem(&sa_cgroups, &id))
			return true;
		cgroup = sa_cgroup_above(cgroup);
	}
	return false;
}

/* Does a command wait for the sockets of this cgroup? */
static __always_inline bool sa_is_asked(__u64 id)
{
	const __u32 *asked = bpf_map_lookup_elem(&sa_leaving, &id);

	return asked && *asked;
}

/*
 * The draining cgroup that a socket leaves with: of those that it is in the one that is
 * asked about, or else the nearest.
 */
static __always_inline __u64 sa_leaves_with(const struct sock___sa *sk)
{
	const struct cgroup___sa *cgroup = sk->sk_cgrp_data.cgroup;
	__u64 nearest = 0;

	for (int depth = 0; cgroup && depth < SA_CGROUP_DEPTH; depth++) {
		__u64 id = cgroup->kn->id;

		if (sa_is_asked(id))
			return id;
		if (!nearest && bpf_map_lookup_elem(&sa_leaving, &id))
			nearest = id;
		cgroup = sa_cgroup_above(cgroup);
	}
	return nearest;
}

/*
 * Asked by a sender that would rather stay redirected: may it? It takes back the
 * question of a drain that is just looking. An atomic, so that what the sender
 * has written of itself before is seen by whoever asks after.
 */
static __always_inline bool sa_is_cut(struct sa_sock *st)
{
	return __sync_val_compare_and_swap(&st->cut, SA_CUT_ASKED, SA_CUT_NOT) == SA_CUT_DONE;
}

/*
 * Is the thread that sent last certainly not between a verdict and the peer's queue?
 * On that way it waits for the peer's lock or for memory, neither of which a signal may
 * cut short; in recv(2), poll(2) or futex(2) it sleeps interruptibly. Where it has ended
 * any answer is right.
 */
static __always_inline bool sa_is_elsewhere(const struct sa_sock *st)
{
	const struct task_struct___sa *task = sa_cast(st->task, task_struct___sa);

	return sa_load(task, __state) & (SA_TASK_INTERRUPTIBLE | SA_TASK_DEAD);
}

/*
 * Is no message of the socket between its verdict and the peer's queue? A send
 * holds the psock throughout. So does a sleeping recv(2): then look at the one
 * thread that sends.
 */
static __always_inline bool sa_is_idle(const struct sock___sa *sk, const struct sa_sock *st)
{
	const struct sk_psock___sa *psock = sa_psock(sk);

	if (!psock || sa_load(psock, refcnt.refs.counter) == 1)
		return true;
	return !st->others && !st->straggler && sa_is_elsewhere(st);
}

/* The peer's redirect queue; a peer that has left it has none. */
static __always_inline bool sa_peer_has_read(const struct sa_sock *st)
{
	const struct sock___sa *psk = sa_cast(st->peer_sk, sock___sa);
	const struct sk_psock___sa *psock;

	if (sa_cookie_of(psk) != st->peer_cookie)
		return true;
	psock = sa_psock(psk);
	return !psock || sa_queue_empty(psock);
}

/* Cuts the direction that a socket sends in, or says what stands against it. */
static __always_inline __u32 sa_cut(const struct sock___sa *sk, struct sa_sock *st)
{
	__u32 waits = SA_WAITS_NOT;

	if (st->cut == SA_CUT_DONE)
		return SA_WAITS_NOT;
	if (st->path != SA_PATH_REDIRECT && !st->straggler) {
		/* Out of service, it is not promoted again. */
		__sync_lock_test_and_set(&st->cut, SA_CUT_DONE);
		return SA_WAITS_NOT;
	}
	/*
	 * Whoever gets its verdict after this takes the question back, whoever had
	 * it before is not idle.
	 */
	__sync_lock_test_and_set(&st->cut, SA_CUT_ASKED);
	if (!sa_is_idle(sk, st))
		waits = SA_WAITS_SENDER;
	else if (!sa_peer_has_read(st))
		waits = SA_WAITS_PEER_UNREAD;
	if (waits) {
		__sync_val_compare_and_swap(&st->cut, SA_CUT_ASKED, SA_CUT_NOT);
		return waits;
	}
	if (__sync_val_compare_and_swap(&st->cut, SA_CUT_ASKED, SA_CUT_DONE) != SA_CUT_ASKED)
		return SA_WAITS_SENDER;
	st->path = SA_PATH_STACK;
	return SA_WAITS_NOT;
}

/* Can nothing come from the other end any more? */
static __always_inline bool sa_is_let_alone(const struct sa_sock *st, struct sa_conn *conn)
{
	const struct sa_side *peer;
	const struct sock___sa *psk;

	/* It is there as long as this side has not left. */
	if (!conn)
		return true;
	peer = sa_side(conn, !st->side);
	if (!peer->cookie || peer->skipped || conn->gate & SA_GATE_SHUT)
		return true;
	if (conn->cut & sa_bit(1, !st->side))
		return true;
	psk = sa_cast(peer->sk, sock___sa);
	if (sa_cookie_of(psk) != peer->cookie)
		return true;
	return !sa_psock(psk);
}

static __always_inline void sa_take_out(struct sa_sock *st, struct sa_conn *conn)
{
	__u64 cookie = st->cookie;

	if (__sync_lock_test_and_set(&st->enrolled, 0)) {
		st->ejected = SA_REASON_DISABLED;
		if (!conn || sa_account(conn, st->side))
			sa_add_at(ejected, SA_REASON_DISABLED, SA_REASON_COUNT, 1);
		sa_event(st, SA_EVENT_EJECTED, SA_REASON_DISABLED);
		sa_tell(st);
	}
	bpf_map_delete_elem(&sa_sockhash, &cookie);
	sa_leave(st);
}

static __always_inline void sa_side_leaves(struct sa_conn *conn, __u32 side, __u64 cgroup)
{
	if (side)
		conn->leaving[1] = cgroup;
	else
		conn->leaving[0] = cgroup;
}

/*
 * Does the socket leave, itself or for its peer, with the cgroup that is asked about?
 * What a side that stays left with once does not count.
 */
static __always_inline bool sa_leaves_asked(const struct sa_sock *st, const struct sa_conn *conn,
					    __u64 leaving)
{
	if (sa_is_asked(leaving))
		return true;
	if (!conn || !(conn->draining & sa_bit(1, !st->side)))
		return false;
	return sa_is_asked(st->side ? conn->leaving[0] : conn->leaving[1]);
}

/*
 * Takes the socket out of service if it, or its peer, is in no enabled cgroup:
 * false when it stays.
 */
static __always_inline bool sa_out_of_service(struct sa_sock *st, struct sa_conn *conn,
					      __u32 walk, bool covered, __u64 leaving)
{
	if (!conn) {
		if (covered)
			return st->drain;
	} else if (!covered) {
		sa_side_leaves(conn, st->side, leaving);
		__sync_fetch_and_or(&conn->draining, sa_bit(1, st->side));
	} else {
		/* An enable that was killed may have left it. */
		__sync_fetch_and_and(&conn->draining, ~sa_bit(1, st->side));
		if (!conn->draining)
			return st->drain;
	}
	if (!st->drain)
		st->drain = walk;
	return true;
}

/* What keeps a socket that is out of service; SA_WAITS_NOT: nothing. */
static __always_inline __u32 sa_drain_waits(const struct sock___sa *sk, struct sa_sock *st,
					    struct sa_conn *conn, __u32 walk)
{
	const struct sk_psock___sa *psock;
	__u32 waits;

	if (st->drain == walk)
		return SA_WAITS_NEXT;
	waits = sa_cut(sk, st);
	if (!waits && conn)
		__sync_fetch_and_or(&conn->cut, sa_bit(1, st->side));
	psock = sa_psock(sk);
	if (psock && !sa_queue_empty(psock))
		return SA_WAITS_UNREAD;
	if (waits)
		return waits;
	return sa_is_let_alone(st, conn) ? SA_WAITS_NOT : SA_WAITS_PEER;
}

enum sa_drop {
	SA_DROP_NONE,
	SA_DROP_ASKED, /* what leaves with the cgroup that is asked about */
	SA_DROP_ALL,
};

/* One record for each socket that stays, and for each that is dropped. */
static __always_inline void sa_drain_one(struct bpf_iter__sockmap___sa *ctx, enum sa_drop which)
{
	/* Where the reader's buffer ends a walk starts its bucket again. */
	__u32 walk = (__u32)ctx->meta->session_id | 1u << 31;
	struct sock___sa *sk = ctx->sk;
	struct sa_conn *conn;
	bool covered, asked, drop;
	struct sa_sock *st;
	__u64 leaving;
	__u32 waits;

	if (!sk)
		return;
	st = bpf_sk_storage_get(&sa_socks, (void *)sk, NULL, 0);
	if (!st)
		return;
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	covered = sa_covered(sk);
	leaving = covered ? 0 : sa_leaves_with(sk);
	if (!sa_out_of_service(st, conn, walk, covered, leaving))
		return;
	waits = sa_drain_waits(sk, st, conn, walk);
	asked = sa_leaves_asked(st, conn, leaving);
	drop = waits != SA_WAITS_NEXT &&
	       (which == SA_DROP_ALL || (which == SA_DROP_ASKED && asked));
	if (waits && sa_tell_one(ctx->meta->seq, sk, st, drop ? SA_DROPPED : waits, asked))
		return;
	if (!waits || drop)
		sa_take_out(st, conn);
}

/* Back in service, if both ends are in enabled cgroups again, and in the map. */
static __always_inline void sa_keep_one(struct bpf_iter__sockmap___sa *ctx)
{
	struct sock___sa *sk = ctx->sk;
	struct sa_conn *conn;
	struct sa_sock *st;

	if (!sk)
		return;
	st = bpf_sk_storage_get(&sa_socks, (void *)sk, NULL, 0);
	if (!st || !st->drain || !sa_covered(sk))
		return;
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	if (!conn)
		return;
	__sync_fetch_and_and(&conn->draining, ~sa_bit(1, st->side));
	/* Bit of a side that has left: its socket was taken out. */
	if (conn->draining || conn->left)
		return;
	__sync_fetch_and_and(&conn->cut, ~sa_bit(1, st->side));
	st->cut = SA_CUT_NOT;
	st->drain = 0;
}

#endif
