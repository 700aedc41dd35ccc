/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Readers that splice(2): the kernel shows them only what came by TCP, so a
 * redirected message would never reach them.
 */
#ifndef SA_SPLICE_H
#define SA_SPLICE_H

#include "maps.h"

static __always_inline bool sa_process_splices(__u32 tgid, __u64 start_time)
{
	const struct sa_splicer *known = bpf_map_lookup_elem(&sa_splicers, &tgid);

	return known && known->start_time == start_time && !known->by_child;
}

/* Whoever called listen(2): itself, or workers that it forked. */
static __always_inline bool sa_listens_for_splicers(__u32 tgid, __u64 start_time)
{
	const struct sa_splicer *known = bpf_map_lookup_elem(&sa_splicers, &tgid);

	return known && known->start_time == start_time;
}

/* Notes which process uses the socket: the one that runs now. */
static __always_inline void sa_note_process(struct sa_sock *st)
{
	const struct task_struct___sa *task = (const void *)bpf_get_current_task_btf();

	st->tgid = task->tgid;
	st->start_time = task->group_leader->start_boottime;
}

/* The TCP socket behind a descriptor of the current process. */
static __always_inline const struct sock___sa *sa_spliced_socket(const struct task_struct___sa *task,
								 __u32 fd)
{
	const struct fdtable___sa *fdt = BPF_CORE_READ(task, files, fdt);
	const struct file___sa *file = NULL;
	const struct socket___sa *socket;
	const struct sock___sa *sk;
	struct file___sa **slots;

	if (!fdt || fd >= BPF_CORE_READ(fdt, max_fds))
		return NULL;
	slots = BPF_CORE_READ(fdt, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), slots + fd) || !file)
		return NULL;
	if ((BPF_CORE_READ(file, f_inode, i_mode) & SA_S_IFMT) != SA_S_IFSOCK)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	return sk && BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP ? sk : NULL;
}

static __always_inline void sa_process_seen(__u32 tgid, __u64 start_time, bool by_child)
{
	struct sa_splicer splicer = { .start_time = start_time, .by_child = by_child };
	const struct sa_splicer *known = bpf_map_lookup_elem(&sa_splicers, &tgid);

	/* Known as much or worse already. */
	if (known && known->start_time == start_time && known->by_child <= by_child)
		return;
	bpf_map_update_elem(&sa_splicers, &tgid, &splicer, BPF_ANY);
}

static __always_inline bool sa_listens(const struct sa_listener *known)
{
	const struct sock_common___sa *skc = (const void *)known->sk;

	return BPF_CORE_READ(skc, skc_cookie.counter) == known->cookie &&
	       BPF_CORE_READ(skc, skc_state) == SA_TCP_LISTEN;
}

/*
 * Later children of the socket's listener are not even enrolled, nor are those
 * of other listeners that the same process made for its workers.
 */
static __always_inline void sa_listener_splices(const struct sock___sa *sk)
{
	struct sa_listener_key key = {
		.netns_cookie = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie),
		.port = BPF_CORE_READ(sk, __sk_common.skc_num),
	};
	struct sa_listener fresh = { .splicing = 1 };
	struct sa_listener *known = bpf_map_lookup_elem(&sa_listeners, &key);

	if (!known) {
		bpf_map_update_elem(&sa_listeners, &key, &fresh, BPF_NOEXIST);
		return;
	}
	/* A client may have got the port of a program that listens no more. */
	if (known->cookie && !sa_listens(known))
		return;
	known->splicing = 1;
	if (known->tgid)
		sa_process_seen(known->tgid, known->start_time, true);
}

/* Marks the socket, its listener and its process; every direction looks again. */
static __always_inline void sa_saw_splice(const struct task_struct___sa *task,
					  const struct sock___sa *sk)
{
	const struct sa_config *conf = sa_conf();

	if (!sk || !conf || conf->without_observer)
		return;
	/* Enrolled? */
	if (!((__u64)BPF_CORE_READ(sk, sk_user_data) & SA_USER_DATA_PSOCK))
		return;
	sa_process_seen(BPF_CORE_READ(task, tgid), BPF_CORE_READ(task, group_leader, start_boottime),
			false);
	sa_listener_splices(sk);
	sa_mark(BPF_CORE_READ(sk, __sk_common.skc_cookie.counter), SA_MARK_SPLICING);
}

#endif
