/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The sender of a one-way stream leaves: on the stack an enrolled socket pays
 * for a copy and a program with each message, and gains nothing. Its receiver
 * is dismissed after it.
 *
 * Deleting a socket destroys what its redirect queue holds, and a redirect in
 * flight to it fails with EPIPE. So the peer must have stopped, and be seen to
 * have: elapsed time proves nothing.
 */
#ifndef SA_STREAM_H
#define SA_STREAM_H

#include "account.h"
#include "inspect.h"

/* Enough of its ACKs; another program may have asked for them, too. */
static __always_inline void sa_quiet(struct bpf_sock_ops *ops, const struct sa_sock *st)
{
	if (st->acks_wanted || !(ops->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_STATE_CB_FLAG))
		return;
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_RTT_CB_FLAG);
}

/* Looked up by address, believed by cookie: NULL when it is gone. */
static __always_inline const struct sock___sa *sa_peer(const struct sa_sock *st)
{
	const struct sock___sa *psk = sa_cast(st->peer_sk, sock___sa);

	return sa_cookie_of(psk) == st->peer_cookie ? psk : NULL;
}

/* No send of the peer is running, and nothing it redirected here is unread. */
static __always_inline bool sa_nothing_comes(const struct sock___sa *own,
					     const struct sock___sa *psk)
{
	const struct sk_psock___sa *theirs = sa_psock(psk), *mine;

	if (theirs && sa_load(theirs, refcnt.refs.counter) != 1)
		return false;
	mine = sa_psock(own);
	return mine && sa_queue_empty(mine);
}

/*
 * Asks the peer not to redirect here any more. It looks at the gate when the
 * generation has moved, which it reads after taking the reference that
 * sa_nothing_comes() looks for. The atomics order the two on this side; on the
 * other the reference is taken by a locked instruction on x86-64, and elsewhere
 * some hundred instructions and a lock before.
 */
static __always_inline bool sa_ask_leave(const struct sa_sock *st, struct sa_conn *conn,
					 const struct sock___sa *own)
{
	__u32 leaving = sa_bit(SA_GATE_LEAVING, st->side);
	__u32 refused = sa_bit(SA_GATE_REFUSED, st->side);
	__u32 gone = sa_bit(SA_GATE_GONE, st->side);
	const struct sock___sa *psk = sa_peer(st);
	__u32 was;

	if (!psk || !sa_nothing_comes(own, psk))
		return false;
	was = __sync_fetch_and_or(&conn->gate, leaving) | leaving;
	sa_observe();
	if (!(was & refused) && sa_nothing_comes(own, psk) &&
	    __sync_val_compare_and_swap(&conn->gate, was, (was & ~leaving) | gone) == was)
		return true;
	__sync_fetch_and_and(&conn->gate, ~(leaving | refused));
	return false;
}

/* Has the peer been kept from redirecting to this socket, for good? */
static __always_inline bool sa_may_leave(const struct sa_sock *st, struct sa_conn *conn,
					 const struct sock___sa *own)
{
	__u32 used = sa_bit(SA_GATE_USED, !st->side);
	__u32 gone = sa_bit(SA_GATE_GONE, st->side);
	__u32 was = conn->gate;

	if (was & SA_GATE_SHUT)
		return false;
	if (was & used)
		return sa_ask_leave(st, conn, own);
	/* It never has: nothing is unread, nothing in flight. */
	return __sync_val_compare_and_swap(&conn->gate, was, was | gone) == was;
}

/*
 * The receiver, once its sender is out and none of the sender's messages is in
 * flight or unread: the sender's psock is gone with its last send.
 */
static __always_inline void sa_dismiss_peer(struct bpf_sock_ops *ops, const struct sa_sock *st,
					    struct sa_conn *conn, const struct sock___sa *own)
{
	const struct sock___sa *psk = sa_peer(st);
	const struct sk_psock___sa *psock;

	if (sa_psock(own))
		return;
	psock = psk ? sa_psock(psk) : NULL;
	if (psock && !sa_queue_empty(psock))
		return;
	if (psock && sa_eject_side(conn, !st->side, st->peer_cookie, SA_REASON_STREAM))
		sa_tell_for_peer(st, conn);
	sa_quiet(ops, st);
}

/* An ACK of a socket that has been judged: it sends by the stack. */
static __always_inline void sa_on_stream_ack(struct bpf_sock_ops *ops, struct sa_sock *st,
					     const struct tcp_sock___sa *tp,
					     const struct sa_config *conf)
{
	struct sa_conn *conn;

	if (!conf || !conf->stream_limit || st->lost < conf->stream_limit)
		return;
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	if (!conn || sa_side(conn, st->side)->cookie != st->cookie)
		return;
	if (!st->enrolled) {
		sa_dismiss_peer(ops, st, conn, (const void *)tp);
		return;
	}
	if (st->path != SA_PATH_STACK)
		return;
	if (!sa_may_leave(st, conn, (const void *)tp)) {
		/* Asking costs every direction a look: not with each ACK. */
		st->lost = 0;
		return;
	}
	/* In this order: `stats` must not miss it in between. */
	sa_tell(st);
	if (sa_eject_side(conn, st->side, st->cookie, SA_REASON_STREAM)) {
		st->enrolled = 0;
		st->ejected = SA_REASON_STREAM;
	}
}

#endif
