/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Taking sockets out again at the first acknowledgement of own data: what is
 * still unpaired has a remote peer, and by now it shows how each end reads.
 */
#ifndef SA_EJECT_H
#define SA_EJECT_H

#include "inspect.h"
#include "listener.h"
#include "pairing.h"
#include "stream.h"

/* From here on nothing is redirected, if nothing ever was. */
static __always_inline bool sa_shut(struct sa_conn *conn)
{
	__u32 was = __sync_val_compare_and_swap(&conn->gate, 0, SA_GATE_SHUT);

	return !was || was == SA_GATE_SHUT;
}

/* The own socket is out, or was never in: plain TCP for good. */
static __always_inline void sa_out(struct bpf_sock_ops *ops, struct sa_sock *st, __u32 reason)
{
	struct sa_conn *conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);

	if (st->enrolled) {
		st->ejected = reason;
		/* Not there, and not counted: close(2) has taken it out. */
		if (conn && !sa_eject_side(conn, st->side, st->cookie, reason) &&
		    sa_account_closed(conn, st->side))
			st->ejected = SA_REASON_NONE;
		st->enrolled = 0;
	}
	sa_leave(st);
	sa_quiet(ops, st);
}

/*
 * Takes both ends out, if nothing was ever redirected between them: then no
 * byte waits in a redirect queue and none can come. Else both stay, and the
 * per-message rules keep them on the stack.
 */
static __always_inline bool sa_eject_pair(struct bpf_sock_ops *ops, struct sa_sock *st,
					  struct sa_conn *conn, __u32 reason)
{
	if (!sa_shut(conn))
		return false;
	sa_eject_side(conn, !st->side, st->peer_cookie, reason);
	sa_out(ops, st, reason);
	return true;
}

/* The peer, once both have met. */
static __always_inline void sa_pair_with(struct sa_sock *st, const struct sa_side *peer)
{
	const struct tcp_sock___sa *tp = sa_cast(peer->sk, tcp_sock___sa);
	const struct sock___sa *psk = (const void *)tp;
	const struct proto___sa *prot = sa_load(psk, __sk_common.skc_prot);
	__u16 *ports = (void *)&st->peer_ports;

	/* What it read before it was enrolled does not show how it reads now. */
	if (st->adopted) {
		st->first_seq = sa_load(tp, copied_seq);
		st->adopted = sa_sleeps_in_tcp(psk, sa_sleepers(psk)) ? SA_ADOPTED_ASLEEP :
									SA_ADOPTED;
	}
	st->peer_sk = peer->sk;
	st->peer_st = peer->st;
	st->pressure = (__u64)sa_load(prot, memory_pressure);
	ports[0] = bpf_htons(peer->tuple.remote_port);
	ports[1] = peer->tuple.local_port;
	st->peer_cookie = peer->cookie;
	sa_add(paired, 1);
	sa_event(st, SA_EVENT_PAIRED, 0);
}

/* By its peer, or by the watch? Then it is plain TCP and knows it now. */
static __always_inline bool sa_was_taken_out(struct bpf_sock_ops *ops, struct sa_sock *st)
{
	struct sa_conn *conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);

	if (!conn)
		return false;
	if (conn->gate & SA_GATE_SHUT) {
		/* The watch has found that its peer blocks after all. */
		if (!st->judged)
			return false;
		sa_out(ops, st, SA_REASON_PEER_NOT_ELIGIBLE);
		return true;
	}
	if (!(conn->accounted & sa_bit(SA_OUT, st->side)))
		return false;
	sa_tell(st);
	st->enrolled = 0;
	st->ejected = SA_REASON_PEER_NOT_ELIGIBLE;
	sa_quiet(ops, st);
	return true;
}

/* RTT callback: own data sent by TCP was acknowledged. */
static __always_inline void sa_on_ack(struct bpf_sock_ops *ops, struct sa_sock *st,
				      const struct tcp_sock___sa *tp)
{
	const struct sa_config *conf = sa_conf();
	struct sa_conn *conn;
	struct sa_side *other;
	__u32 own, theirs;

	if (st->quiet)
		return;
	if (st->enrolled && !sa_psock((const void *)tp) && sa_was_taken_out(ops, st))
		return;
	if (st->judged) {
		sa_on_later_ack(ops, st, tp, conf);
		return;
	}
	if (!st->enrolled && st->role == SA_ROLE_PASSIVE) {
		own = sa_blocking(tp);
		/* Not accepted yet: another ACK will come. */
		if (own == SA_READER_UNKNOWN)
			return;
		sa_listener_learn(st->netns_cookie, st->tuple.local_port,
				  own ? SA_READERS_BLOCKING : SA_READERS_NONBLOCKING);
	}
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	if (!conf || !conn)
		return sa_out(ops, st, SA_REASON_NO_LOCAL_PEER);
	other = sa_side(conn, !st->side);
	if (!st->enrolled)
		return sa_out(ops, st, SA_REASON_NONE);
	if (other->ready && other->skipped) {
		sa_out(ops, st, SA_REASON_PEER_NOT_ELIGIBLE);
		return;
	}
	if (!st->peer_cookie) {
		__u32 reason = sa_match(conn, sa_side(conn, st->side), other);

		/* Its peer is next. If it does not come, the watch sees that. */
		if (reason && st->adopted)
			return;
		/* The peer may be paired, and have redirected, already. */
		if (reason && !sa_shut(conn))
			return;
		if (reason)
			return sa_out(ops, st, reason);
		sa_pair_with(st, other);
	}
	if (conn->gate == SA_GATE_SHUT)
		return sa_out(ops, st, SA_REASON_PEER_NOT_ELIGIBLE);

	own = sa_judge(sa_side(conn, st->side)->sk, st->cookie);
	if (own && own != SA_READER_UNKNOWN) {
		if (st->role == SA_ROLE_PASSIVE && own == SA_REASON_BLOCKING_READER)
			sa_listener_learn(st->netns_cookie, st->tuple.local_port,
					  SA_READERS_BLOCKING);
		if (sa_eject_pair(ops, st, conn, own))
			return;
	}
	theirs = sa_judge(st->peer_sk, st->peer_cookie);
	if (theirs && theirs != SA_READER_UNKNOWN) {
		if (st->role == SA_ROLE_ACTIVE && theirs == SA_REASON_BLOCKING_READER)
			sa_listener_learn(other->netns_cookie, other->tuple.local_port,
					  SA_READERS_BLOCKING);
		if (sa_eject_pair(ops, st, conn, theirs))
			return;
		/* Bytes were redirected: it leaves with its later ACKs, like a stream. */
		st->judged = 1;
	}
	if (!own && !theirs) {
		if (st->role == SA_ROLE_PASSIVE)
			sa_listener_learn(st->netns_cookie, st->tuple.local_port,
					  SA_READERS_NONBLOCKING);
		st->judged = 1;
	}
}

#endif
