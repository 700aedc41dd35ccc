/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The sender of a one-way stream leaves: on the stack an enrolled socket pays
 * for a copy and a program with each message, and gains nothing. Its receiver
 * is dismissed after it. So do they where the receiver has come to read in a way that
 * redirect cannot serve: the sockmap's recv(2) has errnos of its own for those who block.
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
static __always_inline void sa_quiet(struct bpf_sock_ops *ops, struct sa_sock *st)
{
	st->quiet = 1;
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

/* Nothing comes from the peer: it is over, unless the gate has changed since. */
static __always_inline bool sa_go(const struct sa_sock *st, struct sa_conn *conn, __u32 was)
{
	__u32 gone = sa_bit(SA_GATE_GONE, st->side);

	return __sync_val_compare_and_swap(&conn->gate, was, was | gone) == was;
}

/*
 * Asks the peer not to redirect here any more. It looks at the gate when the
 * generation has moved, which it reads after taking the reference that
 * sa_nothing_comes() looks for. The atomics order the two on this side; on the
 * other the reference is taken by a locked instruction on x86-64, and elsewhere
 * some hundred instructions and a lock before.
 */
static __always_inline bool sa_ask_leave(const struct sa_sock *st, struct sa_conn *conn,
					 const struct sock___sa *own, const struct sock___sa *psk)
{
	__u32 leaving = sa_bit(SA_GATE_LEAVING, st->side);
	__u32 refused = sa_bit(SA_GATE_REFUSED, st->side);
	__u32 was;

	if (!sa_nothing_comes(own, psk))
		return false;
	was = __sync_fetch_and_or(&conn->gate, leaving) | leaving;
	sa_observe();
	if (!(was & refused) && sa_nothing_comes(own, psk) && sa_go(st, conn, was))
		return true;
	__sync_fetch_and_and(&conn->gate, ~(leaving | refused));
	return false;
}

/*
 * The same for good, where the peer is to leave, too. Its psock is held while it reads,
 * and an ACK often comes from there. So the peer also says that it has heard, in a send
 * of its own: from then on each of its sends sees the question.
 */
static __always_inline bool sa_insist(struct sa_sock *st, struct sa_conn *conn,
				      const struct sock___sa *own, const struct sock___sa *psk)
{
	__u32 leaving = sa_bit(SA_GATE_LEAVING, st->side);
	__u32 refused = sa_bit(SA_GATE_REFUSED, st->side);
	__u32 heard = sa_bit(SA_GATE_HEARD, !st->side);
	const struct sk_psock___sa *mine = sa_psock(own);
	__u32 was = __sync_fetch_and_or(&conn->gate, leaving);

	if (!(was & leaving)) {
		/* What it heard before was another question, which was taken back. */
		__sync_fetch_and_and(&conn->gate, ~(heard | refused));
		st->marks |= SA_MARK_OPTION;
		st->verdict = SA_WHY_READER;
		sa_observe();
		was = *(volatile __u32 *)&conn->gate;
	}
	if (was & refused) {
		__sync_fetch_and_and(&conn->gate, ~refused);
		return false;
	}
	if (!mine || !sa_queue_empty(mine))
		return false;
	return (was & heard || sa_nothing_comes(own, psk)) && sa_go(st, conn, was);
}

/* Has the peer been kept from redirecting to this socket, for good? */
static __always_inline bool sa_may_leave(struct sa_sock *st, struct sa_conn *conn,
					 const struct sock___sa *own, __u32 reason)
{
	__u32 used = sa_bit(SA_GATE_USED, !st->side);
	__u32 gone = sa_bit(SA_GATE_GONE, st->side);
	const struct sock___sa *psk = sa_peer(st);
	__u32 was = *(volatile __u32 *)&conn->gate;

	if (!psk || was & SA_GATE_SHUT)
		return false;
	/* It never has: nothing is unread, nothing in flight. */
	if (!(was & used))
		return __sync_val_compare_and_swap(&conn->gate, was, was | gone) == was;
	if (reason == SA_REASON_STREAM)
		return sa_ask_leave(st, conn, own, psk);
	return sa_insist(st, conn, own, psk);
}

/*
 * The receiver, once its sender is out and none of the sender's messages is in
 * flight or unread: the sender's psock is gone with its last send.
 */
static __always_inline void sa_dismiss_peer(struct bpf_sock_ops *ops, struct sa_sock *st,
					    struct sa_conn *conn, const struct sock___sa *own,
					    __u32 reason)
{
	const struct sock___sa *psk = sa_peer(st);
	const struct sk_psock___sa *psock;

	if (sa_psock(own))
		return;
	psock = psk ? sa_psock(psk) : NULL;
	if (psock && !sa_queue_empty(psock))
		return;
	if (psock && sa_eject_side(conn, !st->side, st->peer_cookie, reason))
		sa_tell_for_peer(st, conn);
	sa_quiet(ops, st);
}

/* Of a reader that redirect can serve no more: SA_REASON_NONE where it can. */
static __always_inline __u32 sa_reader_left(const struct sa_sock *st)
{
	__u32 reason = sa_judge(st->peer_sk, st->peer_cookie);

	return reason == SA_READER_UNKNOWN ? SA_REASON_NONE : reason;
}

/* Why the sender, which is on the stack, is to be plain TCP: SA_REASON_NONE, it is not. */
static __always_inline __u32 sa_is_to_go(const struct sa_sock *st, const struct sa_config *conf)
{
	if (st->marks & SA_MARK_OPTION ||
	    (st->why == SA_WHY_READER && sa_reader_left(st)))
		return SA_REASON_PEER_NOT_ELIGIBLE;
	if (conf->stream_limit && st->lost >= conf->stream_limit)
		return SA_REASON_STREAM;
	return SA_REASON_NONE;
}

/* An ACK of a socket that is out, and whose peer may be in still. */
static __always_inline void sa_on_ack_outside(struct bpf_sock_ops *ops, struct sa_sock *st,
					      struct sa_conn *conn, const struct sock___sa *own)
{
	__u32 reason = st->ejected;

	if (reason == SA_REASON_PEER_NOT_ELIGIBLE)
		reason = sa_reader_left(st);
	else if (reason != SA_REASON_STREAM)
		return;
	sa_dismiss_peer(ops, st, conn, own, reason ? reason : SA_REASON_PEER_NOT_ELIGIBLE);
}

/* Takes the own socket out, if nothing comes to it any more. */
static __always_inline bool sa_depart(struct sa_sock *st, struct sa_conn *conn,
				      const struct sock___sa *own, __u32 reason)
{
	if (!sa_may_leave(st, conn, own, reason)) {
		/* Asking costs every direction a look: not with each ACK. */
		if (reason == SA_REASON_STREAM)
			st->lost = 0;
		return false;
	}
	/* In this order: `stats` must not miss it in between. */
	sa_tell(st);
	if (!sa_eject_side(conn, st->side, st->cookie, reason))
		return false;
	st->enrolled = 0;
	st->ejected = reason;
	return true;
}

/* An ACK of a socket that has been judged: it sends by the stack. */
static __always_inline void sa_on_later_ack(struct bpf_sock_ops *ops, struct sa_sock *st,
					    const struct tcp_sock___sa *tp,
					    const struct sa_config *conf)
{
	const struct sock___sa *own = (const void *)tp;
	__u32 reason = SA_REASON_NONE;
	struct sa_conn *conn;

	if (!conf)
		return;
	if (st->enrolled) {
		if (st->path == SA_PATH_STACK)
			reason = sa_is_to_go(st, conf);
		if (!reason)
			return;
	}
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	if (!conn || sa_side(conn, st->side)->cookie != st->cookie)
		return;
	if (!st->enrolled || sa_depart(st, conn, own, reason))
		sa_on_ack_outside(ops, st, conn, own);
}

#endif
