/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Walking the open files of every process, for `explain` and `assert`. */
#ifndef SA_OPEN_H
#define SA_OPEN_H

#include "dump.h"
#include "pairing.h"

/* kernel/bpf/task_iter.c */
struct bpf_iter__task_file___sa {
	struct bpf_iter_meta___sa *meta;
	struct task_struct___sa *task;
	__u32 fd;
	struct file___sa *file;
} __attribute__((preserve_access_index));

/* One that connects, or is connected, as getpeername(2) sees it. */
static __always_inline bool sa_has_peer(const struct sock_common___sa *skc)
{
	return skc->skc_dport && skc->skc_state != SA_TCP_SYN_SENT &&
	       skc->skc_state != SA_TCP_CLOSE;
}

/* What is noted of a socket that is in the table is told by the walk over that. */
static __always_inline void sa_tell_open_socket(struct seq_file *seq, struct sa_open *record,
						const struct tcp_sock___sa *tp)
{
	const struct sock___sa *sk = (const void *)tp;
	const struct sa_sock *st = NULL;

	record->cookie = bpf_get_socket_cookie((void *)tp);
	record->netns_cookie = sk->__sk_common.skc_net.net->net_cookie;
	sa_tuple_of(tp, &record->tuple);
	record->mapped = !!((__u64)BPF_CORE_READ(sk, sk_user_data) & SA_USER_DATA_PSOCK);
	if (!record->mapped)
		st = bpf_sk_storage_get(&sa_socks, (void *)tp, NULL, 0);
	record->noted = !!st;
	bpf_seq_write(seq, record, sizeof(*record));
	if (st)
		bpf_seq_write(seq, (void *)st, sizeof(*st));
}

static __always_inline void sa_tell_open(struct bpf_iter__task_file___sa *ctx)
{
	struct sa_open record = { .fd = ctx->fd };
	struct task_struct___sa *task = ctx->task;
	struct file___sa *file = ctx->file;
	const struct tcp_sock___sa *tp;
	struct socket___sa *socket;

	/* A thread with descriptors of its own: /proc/PID/fd has those of the first. */
	if (!task || !file || task->pid != task->tgid)
		return;
	socket = (void *)bpf_sock_from_file((void *)file);
	if (!socket || !socket->sk)
		return;
	tp = (const void *)bpf_skc_to_tcp_sock((void *)socket->sk);
	if (!tp)
		return;
	record.connected = sa_has_peer(&tp->inet_conn.icsk_inet.sk.__sk_common);
	record.inode = file->f_inode->i_ino;
	record.tgid = task->tgid;
	sa_tell_open_socket(ctx->meta->seq, &record, tp);
}

#endif
