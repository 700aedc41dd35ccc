/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Looking at the two sockets of a connection from the sender's program. The
 * own one is locked by the caller; the peer's is only looked at, believed by
 * its cookie, and a wrong belief cannot misdeliver: the redirect goes by key.
 */
#ifndef SA_INSPECT_H
#define SA_INSPECT_H

#include "maps.h"
#include "path.h"
#include "reader.h"

/* The psock of an enrolled socket, else NULL. */
static __always_inline struct sk_psock___sa *sa_psock(const struct sock___sa *sk)
{
	__u64 data = (__u64)sa_load(sk, sk_user_data);

	if (!(data & SA_USER_DATA_PSOCK))
		return NULL;
	return sa_cast(data & SA_USER_DATA_PTRMASK, sk_psock___sa);
}

static __always_inline bool sa_queue_empty(const struct sk_psock___sa *psock)
{
	const void *head = (const void *)psock + bpf_core_field_offset(psock->ingress_msg);

	return (const void *)sa_load(psock, ingress_msg.next) == head;
}

struct sa_queue_walk {
	__u64 head;
	__u64 at;
	__u64 bytes;
	__u64 ended; /* 1: its last step found no message */
};

/* 1 ends the walk. */
static int sa_queue_step(__u32 index, struct sa_queue_walk *walk)
{
	const struct sk_msg___sa *m =
		sa_cast(walk->at - bpf_core_field_offset(struct sk_msg___sa, list), sk_msg___sa);

	if (!walk->at || walk->at == walk->head) {
		walk->ended = 1;
		return 1;
	}
	walk->bytes += sa_load(m, sg.size);
	walk->at = (__u64)sa_load(m, list.next);
	return 0;
}

/*
 * Counts messages, `limit` at most, and their bytes; only where it is worth a walk. The
 * verifier follows each step of a loop, for 4096 a tenth of a second: bpf_loop() spares it.
 */
static __always_inline __u32 sa_queue_length(const struct sk_psock___sa *psock, __u32 limit,
					     __u64 *bytes)
{
	struct sa_queue_walk walk = {
		.head = (__u64)psock + bpf_core_field_offset(psock->ingress_msg),
		.at = (__u64)sa_load(psock, ingress_msg.next),
	};
	__u32 steps = bpf_loop(limit, sa_queue_step, &walk, 0);

	*bytes = walk.bytes;
	return steps - walk.ended;
}

/*
 * Is the peer's queue at the hard cap right now? What was redirected since it was
 * seen empty says less: a reader that is always some messages behind keeps reading.
 * Of small messages a part is counted: the walk must end somewhere. Not static:
 * the verifier looks at it once, and not for each way that leads here.
 */
__noinline __u32 sa_peer_queue_long(__u64 peer_sk)
{
	const struct sock___sa *psk = sa_cast(peer_sk, sock___sa);
	const struct sk_psock___sa *psock = sa_psock(psk);
	__u64 waiting;

	return psock && (sa_queue_length(psock, SA_LONG_MESSAGES, &waiting) == SA_LONG_MESSAGES ||
			 waiting >= SA_HARD_BYTES);
}

/* The map's link and the running call hold one reference each. */
static __always_inline bool sa_alone(const struct sk_psock___sa *psock)
{
	return sa_load(psock, refcnt.refs.counter) == 2;
}

/* tcp_enter_memory_pressure() sets the word that sa_pair_with() found. */
static __always_inline bool sa_under_pressure(const struct sa_sock *st)
{
	return st->pressure && sa_word(st->pressure);
}

/*
 * The memory cgroup, if it limits what TCP may have, else 0: only those of version 1
 * do, and of a socket it is known once it is accepted, mem_cgroup_sk_alloc().
 */
static __always_inline __u64 sa_limit_of(const struct sock___sa *sk)
{
	const struct mem_cgroup___sa *memcg;
	__u64 addr;

	if (!bpf_core_field_exists(struct sock___sa, sk_memcg) ||
	    !bpf_core_field_exists(struct mem_cgroup___sa, tcpmem_active))
		return 0;
	addr = (__u64)sa_load(sk, sk_memcg);
	memcg = sa_cast(addr, mem_cgroup___sa);
	return addr && sa_load(memcg, tcpmem_active) ? addr : 0;
}

/* Cgroups above that are looked at. */
#define SA_LIMIT_LEVELS 8

/*
 * A redirect that finds no memory for the receiver's queue ends the send with ENOMEM,
 * where TCP would say EAGAIN. So an eighth is left to those that cannot leave yet.
 */
__noinline __u32 sa_no_room(__u64 limit)
{
	if (!bpf_core_field_exists(struct mem_cgroup___sa, tcpmem))
		return 0;
	limit += bpf_core_field_offset(struct mem_cgroup___sa, tcpmem);
	for (__u32 n = 0; n < SA_LIMIT_LEVELS && limit; n++) {
		const struct page_counter___sa *pages = sa_cast(limit, page_counter___sa);
		__u64 max = sa_load(pages, max);

		if ((__u64)sa_load(pages, usage.counter) > max - max / 8)
			return 1;
		limit = (__u64)sa_load(pages, parent);
	}
	return 0;
}

static __always_inline bool sa_own_can_send(const struct sock___sa *sk)
{
	__u8 state = sk->__sk_common.skc_state;

	return (state == SA_TCP_ESTABLISHED || state == SA_TCP_CLOSE_WAIT) &&
	       !(sk->sk_shutdown & SA_SEND_SHUTDOWN);
}

static __always_inline bool sa_peer_can_read(const struct sock___sa *sk)
{
	__u8 state = sa_load(sk, __sk_common.skc_state);

	return (state == SA_TCP_ESTABLISHED || state == SA_TCP_CLOSE_WAIT ||
		state == SA_TCP_FIN_WAIT1 || state == SA_TCP_FIN_WAIT2) &&
	       !(sa_load(sk, sk_shutdown) & SA_RCV_SHUTDOWN);
}

static __always_inline void sa_against(struct sa_view *v, __u32 why)
{
	if (!v->why)
		v->why = why;
}

static __always_inline void sa_force(struct sa_view *v, __u32 why)
{
	v->why = why;
	v->forced = 1;
}

/*
 * A reader that spins in recv(2) holds its socket's lock most of the time. TCP
 * would leave the message in the backlog; a redirect sleeps until it gets the
 * lock. Each time counts for four that find it free.
 */
#define SA_CONTENDED_STEP 4
#define SA_CONTENDED_LIMIT 64

static __always_inline bool sa_contended(struct sa_sock *st, const struct sock___sa *psk)
{
	if (sa_load(psk, sk_lock.owned)) {
		if (st->contended < 2 * SA_CONTENDED_LIMIT)
			st->contended += SA_CONTENDED_STEP;
	} else if (st->contended) {
		st->contended--;
	}
	/* Leave at the limit, come back when it has been free for long. */
	return st->path == SA_PATH_REDIRECT ? st->contended >= SA_CONTENDED_LIMIT : st->contended;
}

/* Sleepers looked at on one socket. */
#define SA_SLEEPERS 8

/* Who sleeps in recv(2) or send(2) on the socket. */
static __always_inline __s32 sa_sleepers(const struct sock___sa *psk)
{
	const struct socket_wq___sa *wq = sa_load(psk, sk_wq);
	__u64 head, at;
	__s32 sleepers = 0;

	if (!wq)
		return SA_SLEEPERS;
	head = (__u64)wq + bpf_core_field_offset(wq->wait.head);
	at = (__u64)sa_load(wq, wait.head.next);
	for (__u32 n = 0; n < SA_SLEEPERS && at && at != head; n++) {
		const struct wait_queue_entry___sa *entry =
			sa_cast(at - bpf_core_field_offset(struct wait_queue_entry___sa, entry),
				wait_queue_entry___sa);

		if (!SA_WOKEN || (__u64)sa_load(entry, func) == SA_WOKEN)
			sleepers++;
		at = (__u64)sa_load(entry, entry.next);
	}
	return sleepers;
}

/*
 * A blocking reader that sleeps in TCP's own recv, for the rest of MSG_WAITALL,
 * would not see a redirected message. One that sleeps in the sockmap's recv (or
 * send) holds the psock, so sleepers beyond its references sleep in TCP's.
 */
static __always_inline bool sa_sleeps_in_tcp(const struct sock___sa *psk, __s32 sleepers)
{
	const struct sk_psock___sa *psock = sa_psock(psk);

	return !psock || sleepers > sa_load(psock, refcnt.refs.counter) - 1;
}

/* What is looked at before a promotion only: options that are set later come
 * by sa_setsockopt, which marks the socket; what the kernel does with its own
 * sockets shows in their callback.
 */
static __always_inline bool sa_fit_to_start(struct sa_sock *st, const struct sock___sa *own,
					    const struct tcp_sock___sa *peer)
{
	const struct sock___sa *psk = (const void *)peer;
	const struct socket___sa *socket = sa_load(psk, sk_socket);
	__s32 sleepers;

	if (!socket || sa_options(peer) || sa_load(psk, sk_data_ready) != own->sk_data_ready)
		return false;
	st->peer_file = (__u64)sa_load(socket, file);
	if (!st->peer_file)
		return false;
	st->peer_limit = sa_limit_of(psk);
	sleepers = sa_sleepers(psk);
	if (sa_sleeps_in_tcp(psk, sleepers))
		return false;
	/* What slept in TCP at adoption may have been a splice(2): it has come back. */
	if (st->adopted == SA_ADOPTED_ASLEEP && sleepers)
		st->adopted = SA_ADOPTED;
	return st->adopted != SA_ADOPTED_ASLEEP;
}

/*
 * Stateful filters and translations on the way forget a connection that they do
 * not see. A minute at HZ=1000, ten at HZ=100: the shortest default is IPVS's 15.
 */
#define SA_REFRESH_JIFFIES 60000

/* Has the peer sent since our last message? Of a peer that is gone: anything. */
static __always_inline bool sa_answered(struct sa_sock *st)
{
	__u32 sent;

	if (!st->peer_st)
		return false;
	sent = sa_word(st->peer_st + __builtin_offsetof(struct sa_sock, redirected_messages)) +
	       sa_word(st->peer_st + __builtin_offsetof(struct sa_sock, stack_messages));
	if (sent == st->answers)
		return false;
	st->answers = sent;
	return true;
}

/* Fills the view for one message; st->verdict is current. */
static __always_inline void sa_inspect(struct sa_sock *st, const struct tcp_sock___sa *tp,
				       const struct sa_config *conf, struct sa_view *v)
{
	const struct sock___sa *own = (const void *)tp;
	const struct tcp_sock___sa *peer = sa_cast(st->peer_sk, tcp_sock___sa);
	const struct sock___sa *psk = (const void *)peer;
	const struct sk_psock___sa *psock = sa_psock(own);
	const struct file___sa *file;

	/* Asked where it makes a difference: two loads of ten. */
	if (st->lost || st->unanswered >= SA_PIPELINE)
		v->answered = sa_answered(st);
	v->write_seq = tp->write_seq;
	v->alone = psock && sa_alone(psock);
	if (!sa_own_can_send(own))
		return sa_force(v, SA_WHY_OWN_STATE);
	if (sa_cookie_of(psk) != st->peer_cookie)
		return sa_force(v, SA_WHY_PEER_STATE);
	/* Gone at close(2), too: behind this the file is the peer's. */
	psock = sa_psock(psk);
	if (!psock)
		return sa_force(v, SA_WHY_MISSED);
	if (!sa_peer_can_read(psk) || sa_load(psk, __sk_common.skc_portpair) != st->peer_ports)
		return sa_force(v, SA_WHY_PEER_STATE);

	v->queue_empty = sa_queue_empty(psock);
	v->budget_bytes = conf->budget_bytes;
	if (!v->queue_empty) {
		__u32 quarter = (__u32)sa_load(psk, sk_rcvbuf) / 4;

		if (quarter < v->budget_bytes)
			v->budget_bytes = quarter;
	}
	if (!conf->enabled || st->drain)
		return sa_against(v, SA_WHY_DISABLED);
	if (st->verdict)
		return sa_against(v, st->verdict);
	if (v->size > conf->max_message)
		return sa_against(v, SA_WHY_LARGE);
	if (sa_contended(st, psk))
		return sa_against(v, SA_WHY_CONTENDED);
	if (st->path != SA_PATH_REDIRECT) {
		v->copied_seq = sa_load(peer, copied_seq);
		if (v->copied_seq == st->first_seq)
			return;
		if (!sa_fit_to_start(st, own, peer))
			return sa_against(v, SA_WHY_READER);
	}
	file = sa_cast(st->peer_file, file___sa);
	if (!conf->blocking && !(sa_load(file, f_flags) & SA_O_NONBLOCK))
		return sa_against(v, SA_WHY_READER);
	if (sa_under_pressure(st) || (st->peer_limit && sa_no_room(st->peer_limit)))
		return sa_against(v, SA_WHY_PRESSURE);
	if (st->path == SA_PATH_REDIRECT && bpf_jiffies64() - st->stack_at > SA_REFRESH_JIFFIES)
		return sa_against(v, SA_WHY_REFRESH);
}

#endif
