/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What one accepted socket says of the later ones: programs treat the children
 * of a listener alike.
 */
#ifndef SA_LISTENER_H
#define SA_LISTENER_H

#include "maps.h"
#include "reader.h"
#include "splice.h"

/* A child was judged, enrolled or not. */
static __always_inline void sa_listener_learn(__u64 netns_cookie, __u32 port, __u32 readers)
{
	struct sa_listener_key key = { .netns_cookie = netns_cookie, .port = port };
	struct sa_listener fresh = { .readers = readers };
	struct sa_listener *known = bpf_map_lookup_elem(&sa_listeners, &key);

	if (!known)
		bpf_map_update_elem(&sa_listeners, &key, &fresh, BPF_NOEXIST);
	else if (known->readers != readers)
		known->readers = readers;
}

/*
 * O_NONBLOCK of the listener itself, as it is now: programs set it before and
 * after listen(2). One that listened before we came is not known.
 */
static __always_inline bool sa_listener_blocks(__u64 sk, __u64 cookie)
{
	const struct tcp_sock___sa *listener;

	if (!cookie)
		return true;
	listener = sa_cast(sk, tcp_sock___sa);
	if (sa_cookie_of((const void *)listener) != cookie)
		return true;
	return sa_blocking(listener) != SA_REASON_NONE;
}

/* Was another child of the listener, or of the same program's, seen splicing? */
static __always_inline bool sa_children_splice(const struct sa_listener *known,
					       const struct sa_listening *own)
{
	if (known && known->splicing)
		return true;
	if (own)
		return sa_listens_for_splicers(own->tgid, own->start_time);
	return known && sa_listens_for_splicers(known->tgid, known->start_time);
}

/*
 * What the listener tells of a passive socket's reader: of one that is accepted
 * only whether it may splice, its file tells the rest.
 */
static __always_inline __u32 sa_listener_says(const struct sa_config *conf,
					      const struct sa_sock *st,
					      const struct sa_listening *own, bool accepted)
{
	struct sa_listener_key key = {
		.netns_cookie = st->netns_cookie,
		.port = st->tuple.local_port,
	};
	struct sa_listener *known = bpf_map_lookup_elem(&sa_listeners, &key);

	if (!conf->without_observer && sa_children_splice(known, own))
		return SA_REASON_SPLICING;
	if (accepted || conf->blocking ||
	    (known && !known->shared && known->readers == SA_READERS_NONBLOCKING))
		return SA_REASON_NONE;
	if (known && !known->shared && known->readers == SA_READERS_BLOCKING)
		return SA_REASON_BLOCKING_READER;
	/* The first child tells, at its first ACK: it need not be enrolled. */
	if (own ? sa_listener_blocks(own->sk, own->cookie) :
		  !known || sa_listener_blocks(known->sk, known->cookie))
		return SA_REASON_BLOCKING_READER;
	return SA_REASON_NONE;
}

/*
 * listen(2): what was learned of the port is of another program. But where several
 * listen there (SO_REUSEPORT, or each at an address of its own) the first one has
 * the entry, and the others keep theirs with them.
 */
static __always_inline void sa_on_listen(struct bpf_sock_ops *ops)
{
	const struct task_struct___sa *task = (const void *)bpf_get_current_task_btf();
	struct sa_listener_key key = {};
	struct sa_listener fresh = {};
	struct sa_listener *known;
	const struct sock_common___sa *skc;
	struct sa_listening *own;
	struct bpf_sock *sk = ops->sk;

	if (!sk)
		return;
	skc = (const void *)bpf_skc_to_tcp_sock(sk);
	if (!skc)
		return;
	key.netns_cookie = bpf_get_netns_cookie(ops);
	key.port = skc->skc_num;
	fresh.tgid = task->tgid;
	fresh.start_time = task->group_leader->start_boottime;
	fresh.sk = (__u64)skc;
	fresh.cookie = bpf_get_socket_cookie(ops);
	known = bpf_map_lookup_elem(&sa_listeners, &key);
	own = bpf_sk_storage_get(&sa_listening, sk, NULL, 0);
	if (known && known->cookie && known->cookie != fresh.cookie && sa_listens(known)) {
		known->shared = 1;
		if (!own)
			own = bpf_sk_storage_get(&sa_listening, sk, NULL,
						 BPF_LOCAL_STORAGE_GET_F_CREATE);
	} else {
		bpf_map_update_elem(&sa_listeners, &key, &fresh, BPF_ANY);
	}
	if (!own)
		return;
	own->sk = fresh.sk;
	own->cookie = fresh.cookie;
	own->tgid = fresh.tgid;
	own->start_time = fresh.start_time;
	own->port = key.port;
}

#endif
