/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Walking the open files of every process, for `explain` and `assert`. */
#ifndef SA_OPEN_H
#define SA_OPEN_H

#include "kernel.h"
#include "intf.h"
#include "dump.h"

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
	if (!tp || !sa_has_peer(&tp->inet_conn.icsk_inet.sk.__sk_common))
		return;
	record.inode = file->f_inode->i_ino;
	record.tgid = task->tgid;
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
}

#endif
