/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What happens to a socket when it becomes ESTABLISHED. */
#ifndef SA_ENROL_H
#define SA_ENROL_H

#include "admit.h"
#include "eject.h"
#include "events.h"
#include "watch.h"
#include "policy.h"

/*
 * EBUSY ... of include/uapi/asm-generic/errno-base.h, as returned: an int. Before
 * 6.4 (d7ba4cc900bf) a map operation that the verifier calls directly leaves the
 * upper half of the register as it was.
 */
static __always_inline __u32 sa_update_reason(int err)
{
	switch (err) {
	case -7: /* E2BIG */
		return SA_REASON_MAP_FULL;
	case -12: /* ENOMEM */
		return SA_REASON_NO_MEMORY;
	case -16: /* EBUSY */
	case -22: /* EINVAL: sk_user_data is somebody else's, sk_psock_init() */
		return SA_REASON_BUSY;
	default:
		return SA_REASON_UNSUPPORTED;
	}
}

/* Everything that can be said before the peer is known. */
static __always_inline __u32 sa_unfit(const struct sa_config *conf, struct sa_sock *st,
				      const struct tcp_sock___sa *tp,
				      const struct sa_listening *listening)
{
	bool active = st->role == SA_ROLE_ACTIVE;
	const struct sa_tuple *t = &st->tuple;
	__u32 reason;

	if (st->reused)
		return SA_REASON_REUSED;
	if (BPF_CORE_READ_BITFIELD(tp, syn_data) || BPF_CORE_READ_BITFIELD(tp, syn_fastopen))
		return SA_REASON_FAST_OPEN;
	reason = sa_options(tp);
	if (reason)
		return reason;
	if (sa_filtered(conf, active ? &t->remote : &t->local,
			active ? t->remote_port : t->local_port))
		return SA_REASON_FILTERED;
	if (active && sa_on_stack_service(t, true))
		return SA_REASON_SERVICE;
	if (!active) {
		bool accepted = sa_blocking(tp) != SA_READER_UNKNOWN;

		reason = sa_listener_says(conf, st, listening, accepted);
		if (reason || !accepted)
			return reason;
	}
	if (!conf->without_observer && sa_process_splices(st->tgid, st->start_time))
		return SA_REASON_SPLICING;
	if (conf->blocking)
		return SA_REASON_NONE;
	reason = sa_blocking(tp);
	/* No file: the kernel's own socket. */
	return reason == SA_READER_UNKNOWN ? SA_REASON_KERNEL_SOCKET : reason;
}

static __always_inline void sa_publish(struct sa_side *mine, const struct sa_sock *st,
				       const struct tcp_sock___sa *tp, __u64 sk)
{
	mine->sk = sk;
	mine->netns_cookie = st->netns_cookie;
	mine->tuple = st->tuple;
	mine->skipped = st->skipped;
	mine->tgid = st->tgid;
	mine->start_time = st->start_time;
	mine->st = (__u64)st;
	mine->role = st->role;
	mine->wscale_ok = BPF_CORE_READ_BITFIELD(tp, rx_opt.wscale_ok);
	mine->snd_wscale = BPF_CORE_READ_BITFIELD(tp, rx_opt.snd_wscale);
	mine->rcv_wscale = BPF_CORE_READ_BITFIELD(tp, rx_opt.rcv_wscale);
	__sync_lock_test_and_set(&mine->ready, st->cookie);
}

/*
 * The active socket comes first: it registers and waits. It registers also
 * when it will not be enrolled, or a second socket with a forged sequence
 * number could pair with a lone one.
 */
static __always_inline __u32 sa_meet_active(struct sa_sock *st, const struct tcp_sock___sa *tp,
					    __u64 sk)
{
	struct sa_conn *conn;
	__u32 reason;
	int err;

	err = bpf_map_update_elem(&sa_conns, &st->conn_id, &sa_empty_conn, BPF_NOEXIST);
	if (sa_update_reason(err) == SA_REASON_MAP_FULL) {
		st->conn_id = 0;
		return SA_REASON_MAP_FULL;
	}
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	if (!conn) {
		st->conn_id = 0;
		return SA_REASON_NO_MEMORY;
	}
	reason = sa_claim(conn, st->conn_id, st->side, st->cookie);
	if (reason) {
		st->conn_id = 0;
		return reason;
	}
	sa_publish(sa_side(conn, st->side), st, tp, sk);
	sa_watch_in(conn, st->adopted ? SA_WATCH_ADOPTED_NS : SA_WATCH_LONELY_NS);
	return SA_REASON_NONE;
}

/* The passive socket finds the active one there, or has a remote peer. */
static __always_inline __u32 sa_meet_passive(struct sa_sock *st, const struct tcp_sock___sa *tp,
					     __u64 sk)
{
	struct sa_conn *conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	struct sa_side *peer, *mine;
	__u32 reason;

	if (!conn) {
		st->conn_id = 0;
		return SA_REASON_NO_LOCAL_PEER;
	}
	reason = sa_claim(conn, st->conn_id, st->side, st->cookie);
	if (reason) {
		st->conn_id = 0;
		return reason;
	}
	mine = sa_side(conn, st->side);
	peer = sa_side(conn, !st->side);
	/* Compared before it is published: the role is all that matching needs. */
	mine->role = st->role;
	mine->netns_cookie = st->netns_cookie;
	mine->tuple = st->tuple;
	mine->wscale_ok = BPF_CORE_READ_BITFIELD(tp, rx_opt.wscale_ok);
	mine->snd_wscale = BPF_CORE_READ_BITFIELD(tp, rx_opt.snd_wscale);
	mine->rcv_wscale = BPF_CORE_READ_BITFIELD(tp, rx_opt.rcv_wscale);
	reason = sa_match(conn, mine, peer);
	if (!reason && peer->skipped)
		reason = SA_REASON_PEER_NOT_ELIGIBLE;
	if (!reason && !st->skipped) {
		sa_pair_with(st, peer);
		sa_watch(conn);
	}
	/* The reason found here is the peer's to see, too. */
	if (!st->skipped)
		st->skipped = reason;
	sa_publish(mine, st, tp, sk);
	return reason;
}

/* Nothing is kept of it, so what the event tells is looked up for it. */
static __always_inline void sa_event_passed(struct bpf_sock_ops *ops,
					    const struct tcp_sock___sa *tp, __u32 role,
					    __u32 reason)
{
	struct sa_tuple tuple = {};

	if (!sa_listening_to(SA_EVENT_SKIPPED))
		return;
	sa_tuple_of(tp, &tuple);
	sa_emit(bpf_get_socket_cookie(ops), bpf_get_netns_cookie(ops), &tuple, 0,
		SA_EVENT_SKIPPED | reason << 8 | role << 24);
}

/*
 * Before anything is allocated: is this one of those that are not looked at any
 * further? A passive socket whose peer was passed over has nobody to meet, like
 * one with a remote peer.
 */
static __always_inline bool sa_passes(struct bpf_sock_ops *ops, const struct sa_config *conf,
				      const struct tcp_sock___sa *tp, __u32 role)
{
	__u64 conn_id = sa_conn_id(tp->snd_nxt, tp->rcv_nxt);
	struct sa_tuple tuple;
	__u32 reason;

	if (role == SA_ROLE_PASSIVE) {
		if (bpf_map_lookup_elem(&sa_conns, &conn_id))
			return false;
		reason = sa_was_passed(conn_id, SA_ROLE_ACTIVE) ? SA_REASON_PEER_NOT_ELIGIBLE :
								  SA_REASON_NO_LOCAL_PEER;
	} else {
		sa_tuple_of(tp, &tuple);
		reason = sa_pass_over(conf, tp, &tuple, bpf_get_netns_cookie(ops));
		if (!reason)
			return false;
	}
	if (sa_pass(ops, conn_id, role, reason))
		sa_event_passed(ops, tp, role, reason);
	return true;
}

/* All that is known of the socket itself. */
static __always_inline void sa_introduce(struct bpf_sock_ops *ops, struct sa_sock *st,
					 const struct tcp_sock___sa *tp, __u32 role)
{
	st->cookie = bpf_get_socket_cookie(ops);
	st->netns_cookie = bpf_get_netns_cookie(ops);
	st->role = role;
	sa_tuple_of(tp, &st->tuple);
	st->first_seq = tp->snd_nxt;
	st->conn_id = sa_conn_id(tp->snd_nxt, tp->rcv_nxt);
	st->side = tp->snd_nxt < tp->rcv_nxt;
}

/* 0 when it may be enrolled; else why not. */
static __always_inline __u32 sa_meet(const struct sa_config *conf, struct sa_sock *st,
				     const struct tcp_sock___sa *tp,
				     const struct sa_listening *listening)
{
	__u32 reason;

	if (tp->snd_nxt == tp->rcv_nxt) {
		st->conn_id = 0;
		return SA_REASON_SELF_CONNECT;
	}
	/* One with the same sequence numbers was: one of the two is forged. */
	if (st->role == SA_ROLE_ACTIVE && sa_was_passed(st->conn_id, SA_ROLE_ACTIVE)) {
		st->conn_id = 0;
		return SA_REASON_AMBIGUOUS;
	}
	st->skipped = sa_unfit(conf, st, tp, listening);
	reason = st->role == SA_ROLE_ACTIVE ? sa_meet_active(st, tp, (__u64)tp) :
					      sa_meet_passive(st, tp, (__u64)tp);
	return reason ? reason : st->skipped;
}

/* The verdict on a socket, for the books and for its peer. */
static __always_inline void sa_conclude(struct sa_sock *st, __u32 reason)
{
	struct sa_conn *conn;

	st->skipped = reason;
	if (!reason) {
		st->enrolled = 1;
		sa_add(enrolled, 1);
		sa_event(st, SA_EVENT_ENROLLED, 0);
		return;
	}
	sa_add_at(skipped, reason, SA_REASON_COUNT, 1);
	sa_event(st, SA_EVENT_SKIPPED, reason);
	if (!st->conn_id)
		return;
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	if (conn)
		sa_side(conn, st->side)->skipped = reason;
	/* A passive socket that is not enrolled has nothing to wait for. */
	if (st->role == SA_ROLE_PASSIVE)
		sa_leave(st);
}

static __always_inline void sa_on_established(struct bpf_sock_ops *ops, __u32 role)
{
	struct sa_config *conf = sa_conf();
	struct bpf_sock *sk = ops->sk;
	const struct tcp_sock___sa *tp;
	const struct sa_listening *listening;
	struct sa_sock *st;
	__u32 reason;

	if (!conf || !conf->enabled || !sk)
		return;
	tp = (const void *)bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	st = bpf_sk_storage_get(&sa_socks, sk, NULL, 0);
	if (!st && sa_passes(ops, conf, tp, role))
		return;
	if (!st)
		st = bpf_sk_storage_get(&sa_socks, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!st) {
		sa_add(seen, 1);
		sa_add_at(skipped, SA_REASON_NO_MEMORY, SA_REASON_COUNT, 1);
		return;
	}
	/* Nested cgroups run the program once for each. */
	if (st->cookie)
		return;
	sa_introduce(ops, st, tp, role);
	listening = bpf_sk_storage_get(&sa_listening, sk, NULL, 0);
	if (listening)
		st->tuple.listen_port = listening->port;
	sa_add(seen, 1);
	reason = sa_meet(conf, st, tp, listening);
	if (!reason) {
		int err = bpf_sock_hash_update(ops, &sa_sockhash, &st->cookie, BPF_NOEXIST);

		if (err)
			reason = sa_update_reason(err);
	}
	/* Flags outlive connect(AF_UNSPEC), ours as well. */
	if (!st->reused)
		st->acks_wanted = !!(ops->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_RTT_CB_FLAG);
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG |
					       BPF_SOCK_OPS_RTT_CB_FLAG);
	sa_conclude(st, reason);
	if (!reason && role == SA_ROLE_ACTIVE) {
		struct sa_server_key key;

		sa_server_of(&st->tuple, st->netns_cookie, &key);
		sa_charge(&key);
	}
}

static __always_inline void sa_on_close(struct sa_sock *st)
{
	struct sa_conn *conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);

	/*
	 * Nested cgroups run the program once for each. Where nobody came, the watch
	 * has ejected it, and deleted the connection.
	 */
	if (__sync_lock_test_and_set(&st->enrolled, 0) && conn)
		sa_account_closed(conn, st->side);
	sa_leave(st);
}

/* connect(2) runs in its caller; ESTABLISHED may run in anybody's softirq. */
static __always_inline void sa_on_connect(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct sa_sock *st;

	if (!sk)
		return;
	st = bpf_sk_storage_get(&sa_socks, sk, NULL, 0);
	if (!st) {
		const struct tcp_sock___sa *tp = (const void *)bpf_skc_to_tcp_sock(sk);
		const struct sa_config *conf = sa_conf();
		struct sa_tuple tuple;

		if (!tp || !conf || !conf->enabled)
			return;
		sa_tuple_of(tp, &tuple);
		if (sa_pass_over(conf, tp, &tuple, bpf_get_netns_cookie(ops)))
			return;
		st = bpf_sk_storage_get(&sa_socks, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	}
	if (!st)
		return;
	if (st->cookie) {
		/*
		 * connect(AF_UNSPEC), then again: the kernel keeps psock, key and
		 * unread redirected bytes. Out before the new connection starts,
		 * and for good: the old peer knows the cookie.
		 */
		__u16 acks_wanted = st->acks_wanted;

		/* The end of the first was not told where others took our callbacks away. */
		sa_tell(st);
		sa_on_close(st);
		bpf_map_delete_elem(&sa_sockhash, &st->cookie);
		__builtin_memset(st, 0, sizeof(*st));
		st->reused = 1;
		st->acks_wanted = acks_wanted;
	}
	sa_note_process(st);
}

#endif
