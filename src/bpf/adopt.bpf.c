// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Enrolling connections that are older than the instance: walks over the sockets
 * of a network namespace, loaded by `adopt` over the maps of the instance and gone
 * with it.
 *
 * Their two ends find each other as all do, by the initial sequence numbers, which
 * a socket does not keep. They are what has been acknowledged or received, less
 * how much that was.
 */
#include <linux/in.h>
#include <linux/types.h>

/* libbpf would read all symbols of the kernel, which takes half as long as all the rest. */
const volatile __u64 sa_woken;
#define SA_WOKEN sa_woken

#include "kernel.h"
#include "drain.h"
#include "open.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* include/uapi/linux/bpf.h: bpf_setsockopt() takes it since 6.12. */
#define SA_SOCK_OPS_CB_FLAGS 1008

/* Sockets whose peer was found, by cookie. `adopt` adds them, the walks write. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct sa_adoption);
} sa_adoptions SEC(".maps");

/* net/ipv4/tcp_ipv4.c: the socket is locked by its caller while a program runs. */
struct bpf_iter__tcp___sa {
	struct bpf_iter_meta___sa *meta;
	struct sock_common___sa *sk_common;
} __attribute__((preserve_access_index));

/*
 * The ISN of a socket that has connected itself, that + 1 of one that was accepted:
 * tcp_ack() counts the SYN of the first, but a passive socket is made when its
 * SYN has been acknowledged already. So the two ends also tell who connected.
 */
static __always_inline __u32 sa_sent_from(const struct tcp_sock___sa *tp)
{
	return tp->snd_una - (__u32)tp->bytes_acked;
}

/* The peer's ISN + 1: its SYN is not counted by either. */
static __always_inline __u32 sa_received_from(const struct tcp_sock___sa *tp)
{
	return tp->rcv_nxt - (__u32)tp->bytes_received;
}

/*
 * A connected socket of an enabled cgroup. A FIN would count among the bytes:
 * with one the state is another.
 */
static __always_inline const struct tcp_sock___sa *sa_connected(struct sock_common___sa *skc)
{
	const struct tcp_sock___sa *tp;

	if (!skc || skc->skc_state != SA_TCP_ESTABLISHED)
		return NULL;
	tp = (const void *)bpf_skc_to_tcp_sock(skc);
	return tp && sa_covered((const void *)tp) ? tp : NULL;
}

/*
 * A socket of each network namespace, by which `adopt` gets into it. Listeners and
 * the sockets of others are none of its business: a copy keeps a port taken.
 */
SEC("iter/task_file")
int sa_adopt_places(struct bpf_iter__task_file___sa *ctx)
{
	struct sa_place place = { .fd = ctx->fd };
	struct task_struct___sa *task = ctx->task;
	struct file___sa *file = ctx->file;
	const struct tcp_sock___sa *tp;
	struct socket___sa *socket;

	if (!task || !file)
		return 0;
	socket = (void *)bpf_sock_from_file((void *)file);
	if (!socket || !socket->sk)
		return 0;
	tp = sa_connected((void *)socket->sk);
	if (!tp)
		return 0;
	place.netns_cookie = tp->inet_conn.icsk_inet.sk.__sk_common.skc_net.net->net_cookie;
	place.tgid = task->tgid;
	bpf_seq_write(ctx->meta->seq, &place, sizeof(place));
	return 0;
}

/*
 * An adoption was cut short: it waits for its peer, or one of the two found no room,
 * or came too late. Nothing was redirected, and it may be asked again.
 */
static __always_inline bool sa_half_adopted(const struct sa_sock *st)
{
	return st->adopted && !st->peer_cookie;
}

/* Its peer has come: they are paired as soon as an ACK does. */
static __always_inline bool sa_is_expected(const struct sa_sock *st)
{
	struct sa_conn *conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	const struct sa_side *other;

	if (!conn || !st->enrolled || sa_side(conn, st->side)->cookie != st->cookie)
		return false;
	other = sa_side(conn, !st->side);
	return other->cookie && other->ready == other->cookie && !other->skipped;
}

SEC("iter/tcp")
int sa_adopt_scan(struct bpf_iter__tcp___sa *ctx)
{
	const struct tcp_sock___sa *tp = sa_connected(ctx->sk_common);
	struct sa_candidate candidate = {};
	const struct sa_sock *st;

	if (!tp)
		return 0;
	st = bpf_sk_storage_get(&sa_socks, (void *)tp, NULL, 0);
	if (st && (!sa_half_adopted(st) || sa_is_expected(st))) {
		candidate.judged = st->ejected ? st->ejected : st->skipped;
		if (st->enrolled || !candidate.judged)
			return 0;
	}
	candidate.cookie = bpf_get_socket_cookie((void *)tp);
	sa_tuple_of(tp, &candidate.tuple);
	candidate.sent = sa_sent_from(tp);
	candidate.received = sa_received_from(tp);
	bpf_seq_write(ctx->meta->seq, &candidate, sizeof(candidate));
	return 0;
}

/* Who reads the socket? Elsewhere that shows when it connects or sends. */
SEC("iter/task_file")
int sa_adopt_owners(struct bpf_iter__task_file___sa *ctx)
{
	struct task_struct___sa *task = ctx->task;
	struct file___sa *file = ctx->file;
	struct sa_adoption *adoption;
	struct socket___sa *socket;
	__u64 cookie, start_time;

	if (!task || !file)
		return 0;
	socket = (void *)bpf_sock_from_file((void *)file);
	if (!socket || !socket->sk)
		return 0;
	cookie = socket->sk->__sk_common.skc_cookie.counter;
	adoption = bpf_map_lookup_elem(&sa_adoptions, &cookie);
	if (!adoption)
		return 0;
	start_time = task->group_leader->start_boottime;
	adoption->owners++;
	adoption->splicing |= sa_process_splices(task->tgid, start_time);
	adoption->st.tgid = task->tgid;
	adoption->st.start_time = start_time;
	return 0;
}

/* All that is known of it, if it is still what the scan saw. */
static __always_inline bool sa_describe(struct sa_sock *st, const struct tcp_sock___sa *tp)
{
	__u32 first = sa_sent_from(tp) + (st->role == SA_ROLE_ACTIVE);
	__u32 peers = sa_received_from(tp);

	if (st->conn_id != sa_conn_id(first, peers))
		return false;
	st->cookie = bpf_get_socket_cookie((void *)tp);
	st->netns_cookie = tp->inet_conn.icsk_inet.sk.__sk_common.skc_net.net->net_cookie;
	st->first_seq = first;
	st->side = first < peers;
	st->adopted = SA_ADOPTED;
	sa_tuple_of(tp, &st->tuple);
	return true;
}

static __always_inline __u32 sa_judge_adoption(const struct sa_config *conf,
					       struct sa_adoption *adoption,
					       const struct tcp_sock___sa *tp)
{
	const struct sa_listening *listening;

	if (!sa_describe(&adoption->st, tp))
		return SA_REASON_MISMATCH;
	listening = bpf_sk_storage_get(&sa_listening, (void *)tp, NULL, 0);
	if (listening)
		adoption->st.tuple.listen_port = listening->port;
	/* Nobody has it open, or nobody that can be seen from here. */
	if (!adoption->owners)
		return SA_REASON_KERNEL_SOCKET;
	if (adoption->splicing && !conf->without_observer)
		return SA_REASON_SPLICING;
	return sa_unfit(conf, &adoption->st, tp, listening);
}

/* What stands against it, before anything is changed. */
SEC("iter/tcp")
int sa_adopt_judge(struct bpf_iter__tcp___sa *ctx)
{
	const struct tcp_sock___sa *tp = sa_connected(ctx->sk_common);
	const struct sa_config *conf = sa_conf();
	struct sa_adoption *adoption;
	__u64 cookie;

	if (!tp || !conf)
		return 0;
	cookie = bpf_get_socket_cookie((void *)tp);
	adoption = bpf_map_lookup_elem(&sa_adoptions, &cookie);
	if (adoption)
		adoption->reason = sa_judge_adoption(conf, adoption, tp);
	return 0;
}

/* From here on its ACKs and its end are told to sa_sockops. */
static __always_inline int sa_call_back(const struct tcp_sock___sa *tp, struct sa_sock *st)
{
	int flags = 0, err;

	err = bpf_getsockopt((void *)tp, IPPROTO_TCP, SA_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
	if (err)
		return err;
	st->acks_wanted = !!(flags & BPF_SOCK_OPS_RTT_CB_FLAG);
	flags |= BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG;
	return bpf_setsockopt((void *)tp, IPPROTO_TCP, SA_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
}

/* Counted before, as passed over, as far as that is still known. */
static __always_inline void sa_take_back_passed(const struct sa_sock *st)
{
	struct sa_passed *slot = sa_passed_slot(st->conn_id, st->role);

	if (!slot || slot->conn_id != st->conn_id)
		return;
	sa_add(seen, -1);
	sa_add_at(skipped, slot->reason, SA_REASON_COUNT, -1);
	__builtin_memset(slot, 0, sizeof(*slot));
}

/* Counted before, by an adoption that was cut short. */
static __always_inline void sa_take_back_half(const struct sa_sock *st)
{
	__u32 ejected = st->ejected ? st->ejected : SA_REASON_NO_LOCAL_PEER;

	sa_add(seen, -1);
	if (st->skipped) {
		sa_add_at(skipped, st->skipped, SA_REASON_COUNT, -1);
		return;
	}
	sa_add(enrolled, -1);
	/* By the watch, where the socket does not know it yet. */
	sa_add_at(ejected, ejected, SA_REASON_COUNT, -1);
}

/* Does it wait for its peer still? */
static __always_inline bool sa_waits_for_peer(const struct sa_sock *st)
{
	struct sa_conn *conn;

	if (!st->enrolled)
		return false;
	conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	return conn && sa_side(conn, st->side)->cookie == st->cookie;
}

/* Does one have what the other has sent? Both ways it lies between what is known
 * to have come and what has gone out, whatever is under way.
 */
static __always_inline bool sa_in_step(const struct tcp_sock___sa *tp,
				       const struct tcp_sock___sa *peer)
{
	/* Only the own socket is locked: the peer's end may move, so it is read once. */
	__u32 acked = sa_load(peer, snd_una);
	__u32 came = sa_load(peer, rcv_nxt) - tp->snd_una;

	return came <= tp->snd_nxt - tp->snd_una &&
	       tp->rcv_nxt - acked <= sa_load(peer, snd_nxt) - acked;
}

/* The one that connected has registered. */
static __always_inline __u32 sa_meet_adopted(struct sa_sock *st, const struct tcp_sock___sa *tp)
{
	struct sa_conn *conn = bpf_map_lookup_elem(&sa_conns, &st->conn_id);
	const struct tcp_sock___sa *peer;
	const struct sa_side *other;

	if (conn) {
		other = sa_side(conn, !st->side);
		peer = sa_cast(other->sk, tcp_sock___sa);
		if (sa_cookie_of((const void *)peer) != other->cookie || !sa_in_step(tp, peer))
			return SA_REASON_MISMATCH;
	}
	return sa_meet_passive(st, tp, (__u64)tp);
}

static __always_inline __u32 sa_adopt_one(struct sa_sock *st, const struct tcp_sock___sa *tp)
{
	__u64 cookie = st->cookie;
	__u32 reason;
	int err;

	/*
	 * First into the map, then paired: what the peer knows of is there. Nothing
	 * can have been redirected to what has no peer.
	 */
	err = bpf_map_update_elem(&sa_sockhash, &cookie, (void *)tp, BPF_NOEXIST);
	if (err)
		return sa_update_reason(err);
	if (st->role == SA_ROLE_ACTIVE)
		reason = sa_meet_active(st, tp, (__u64)tp);
	else
		reason = sa_meet_adopted(st, tp);
	if (reason)
		bpf_map_delete_elem(&sa_sockhash, &cookie);
	return reason;
}

static __always_inline void sa_adopt(struct bpf_iter__tcp___sa *ctx, __u32 role)
{
	const struct tcp_sock___sa *tp = sa_connected(ctx->sk_common);
	const struct sa_config *conf = sa_conf();
	struct sa_adoption *adoption;
	struct sa_sock *st;
	__u64 cookie;

	if (!tp || !conf || !conf->enabled)
		return;
	cookie = bpf_get_socket_cookie((void *)tp);
	adoption = bpf_map_lookup_elem(&sa_adoptions, &cookie);
	if (!adoption || adoption->st.role != role)
		return;
	/* A walk may come by twice. */
	if (adoption->st.enrolled || adoption->reason || adoption->error)
		return;
	if (!sa_describe(&adoption->st, tp)) {
		adoption->reason = SA_REASON_MISMATCH;
		return;
	}
	adoption->error = sa_call_back(tp, &adoption->st);
	if (adoption->error)
		return;
	st = bpf_sk_storage_get(&sa_socks, (void *)tp, NULL, 0);
	/* Half adopted before, it has our own flags. */
	if (st)
		adoption->st.acks_wanted = st->acks_wanted;
	if (st && sa_waits_for_peer(st)) {
		adoption->st.enrolled = 1;
		return;
	}
	if (st) {
		sa_take_back_half(st);
		*st = adoption->st;
	} else {
		st = bpf_sk_storage_get(&sa_socks, (void *)tp, &adoption->st,
					BPF_LOCAL_STORAGE_GET_F_CREATE);
	}
	if (!st) {
		adoption->reason = SA_REASON_NO_MEMORY;
		return;
	}
	sa_take_back_passed(st);
	sa_add(seen, 1);
	adoption->reason = sa_adopt_one(st, tp);
	sa_conclude(st, adoption->reason);
	adoption->st.enrolled = st->enrolled;
}

/* The one that connected comes first, as it does with new connections. */
SEC("iter/tcp")
int sa_adopt_active(struct bpf_iter__tcp___sa *ctx)
{
	sa_adopt(ctx, SA_ROLE_ACTIVE);
	return 0;
}

SEC("iter/tcp")
int sa_adopt_passive(struct bpf_iter__tcp___sa *ctx)
{
	sa_adopt(ctx, SA_ROLE_PASSIVE);
	return 0;
}
