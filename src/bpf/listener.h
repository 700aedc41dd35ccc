/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What one accepted socket says of the later ones: programs treat the children
 * of a listener alike.
 */
#ifndef SA_LISTENER_H
#define SA_LISTENER_H

#include "maps.h"
#include "splice.h"

/* A listener known for blocking children gets one tried in so many. */
#define SA_TRY_EVERY 64

/* A child was judged: it reads from a blocking socket, or not. */
static __always_inline void sa_listener_learn(__u64 netns_cookie, __u32 port, bool blocking)
{
	struct sa_listener_key key = { .netns_cookie = netns_cookie, .port = port };
	struct sa_listener fresh = { .blocking = blocking };
	struct sa_listener *known = bpf_map_lookup_elem(&sa_listeners, &key);

	if (known) {
		known->blocking = blocking;
		known->tries = 0;
	} else if (blocking) {
		bpf_map_update_elem(&sa_listeners, &key, &fresh, BPF_NOEXIST);
	}
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
	if (!known || !known->blocking || conf->blocking)
		return SA_REASON_NONE;
	if (++known->tries >= SA_TRY_EVERY) {
		known->tries = 0;
		return SA_REASON_NONE;
	}
	return SA_REASON_BLOCKING_READER;
}

/* listen(2): what was learned of the port is of another program. */
static __always_inline void sa_on_listen(struct bpf_sock_ops *ops)
{
	const struct task_struct___sa *task = (const void *)bpf_get_current_task_btf();
	struct sa_listener_key key = {};
	struct sa_listening listening = {};
	const struct sock_common___sa *skc;
	struct bpf_sock *sk = ops->sk;

	if (!sk)
		return;
	skc = (const void *)bpf_skc_to_tcp_sock(sk);
	if (!skc)
		return;
	key.netns_cookie = bpf_get_netns_cookie(ops);
	key.port = skc->skc_num;
	bpf_map_delete_elem(&sa_listeners, &key);
	listening.port = key.port;
	listening.tgid = task->tgid;
	listening.start_time = task->group_leader->start_boottime;
	bpf_sk_storage_get(&sa_listening, sk, &listening, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

#endif
