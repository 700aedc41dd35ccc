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
static __always_inline bool sa_listener_blocks(const struct sa_listening *listening)
{
	const struct tcp_sock___sa *listener;

	if (!listening)
		return true;
	listener = sa_cast(listening->sk, tcp_sock___sa);
	if (sa_cookie_of((const void *)listener) != listening->cookie)
		return true;
	return sa_blocking(listener) != SA_REASON_NONE;
}

/* What can be known of an accepted socket's reader before accept(2). */
static __always_inline __u32 sa_listener_says(const struct sa_config *conf,
					      const struct sa_sock *st,
					      const struct sa_listening *listening)
{
	struct sa_listener_key key = {
		.netns_cookie = st->netns_cookie,
		.port = st->tuple.local_port,
	};
	struct sa_listener *known = bpf_map_lookup_elem(&sa_listeners, &key);

	if (!conf->without_observer) {
		if (known && known->splicing)
			return SA_REASON_SPLICING;
		if (listening && sa_listens_for_splicers(listening->tgid, listening->start_time))
			return SA_REASON_SPLICING;
	}
	if (conf->blocking || (known && known->readers == SA_READERS_NONBLOCKING))
		return SA_REASON_NONE;
	if (known && known->readers == SA_READERS_BLOCKING)
		return SA_REASON_BLOCKING_READER;
	/* The first child tells, at its first ACK: it need not be enrolled. */
	return sa_listener_blocks(listening) ? SA_REASON_BLOCKING_READER : SA_REASON_NONE;
}

/* listen(2): what was learned of the port is of another program. */
static __always_inline void sa_on_listen(struct bpf_sock_ops *ops)
{
	const struct task_struct___sa *task = (const void *)bpf_get_current_task_btf();
	struct sa_listener_key key = {};
	struct sa_listening listening = {};
	struct sa_listener fresh = {};
	const struct sock_common___sa *skc;
	struct bpf_sock *sk = ops->sk;

	if (!sk)
		return;
	skc = (const void *)bpf_skc_to_tcp_sock(sk);
	if (!skc)
		return;
	key.netns_cookie = bpf_get_netns_cookie(ops);
	key.port = skc->skc_num;
	listening.sk = (__u64)skc;
	listening.cookie = bpf_get_socket_cookie(ops);
	listening.port = key.port;
	listening.tgid = task->tgid;
	listening.start_time = task->group_leader->start_boottime;
	fresh.tgid = listening.tgid;
	fresh.start_time = listening.start_time;
	fresh.sk = listening.sk;
	fresh.cookie = listening.cookie;
	bpf_map_update_elem(&sa_listeners, &key, &fresh, BPF_ANY);
	bpf_sk_storage_get(&sa_listening, sk, &listening, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

#endif
