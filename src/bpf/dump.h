/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Walking the enrolled sockets for `dump` and `status`: one record a socket. */
#ifndef SA_DUMP_H
#define SA_DUMP_H

#include "inspect.h"

/* Messages of one queue that are counted at most. */
#define SA_DUMP_QUEUE 4096
#define SA_TOTAL_BYTES ((1ULL << 48) - 1)

/* kernel/bpf: struct bpf_iter__sockmap of net/core/sock_map.c */
struct bpf_iter_meta___sa {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
} __attribute__((preserve_access_index));

struct bpf_iter__sockmap___sa {
	struct bpf_iter_meta___sa *meta;
	struct bpf_map *map;
	void *key;
	struct sock___sa *sk;
} __attribute__((preserve_access_index));

/* What a socket that drains waits for, seen from outside a walk. */
static __always_inline __u32 sa_waits(const struct sock___sa *sk, const struct sa_sock *st)
{
	const struct sk_psock___sa *psock = sa_psock(sk);
	const struct sock___sa *psk;

	if (!st->drain)
		return SA_WAITS_NOT;
	if (psock && !sa_queue_empty(psock))
		return SA_WAITS_UNREAD;
	if (st->cut == SA_CUT_DONE)
		return SA_WAITS_PEER;
	psk = sa_cast(st->peer_sk, sock___sa);
	if (sa_cookie_of(psk) != st->peer_cookie)
		return SA_WAITS_SENDER;
	psock = sa_psock(psk);
	return psock && !sa_queue_empty(psock) ? SA_WAITS_PEER_UNREAD : SA_WAITS_SENDER;
}

/*
 * Messages in the high 16 bits, and bytes, of the queue of the psock there. Not
 * static: the verifier follows its walk once, and not for each way that leads here.
 */
__noinline __u64 sa_queue_totals(__u64 address)
{
	__u64 messages, bytes;

	messages = sa_queue_length(sa_cast(address, sk_psock___sa), SA_DUMP_QUEUE, &bytes);
	return messages << 48 | (bytes & SA_TOTAL_BYTES);
}

/* Of a record, what the socket does not show by itself. */
struct sa_found {
	__u64 totals; /* see sa_queue_totals() */
	__u32 waits;
	__u32 asked;
};

/*
 * A function of its own: the record is most of the 512 bytes of stack that a program and
 * what it calls have together, so nothing is called from here.
 */
static __noinline int sa_write_record(struct seq_file *seq, const struct sock___sa *sk,
				      const struct sa_sock *st, const struct sa_found *found)
{
	struct sa_dump record = { .waits = found->waits, .asked = found->asked };

	record.sock = *st;
	record.state = sk->__sk_common.skc_state;
	if (sk->sk_socket && sk->sk_socket->file) {
		record.inode = sk->sk_socket->file->f_inode->i_ino;
		record.nonblock = !!(sk->sk_socket->file->f_flags & SA_O_NONBLOCK);
	}
	record.unread_messages = found->totals >> 48;
	record.unread_bytes = found->totals & SA_TOTAL_BYTES;
	return bpf_seq_write(seq, &record, sizeof(record));
}

/* Not 0 where the reader's buffer is full: the socket comes again. */
static __always_inline int sa_tell_one(struct seq_file *seq, const struct sock___sa *sk,
				       const struct sa_sock *st, __u32 waits, bool asked)
{
	struct sa_found found = { .waits = waits, .asked = asked };
	/* A number: what is loaded directly is a pointer to the verifier. */
	__u64 data = (__u64)BPF_CORE_READ(sk, sk_user_data);

	if (data & SA_USER_DATA_PSOCK)
		found.totals = sa_queue_totals(data & SA_USER_DATA_PTRMASK);
	return sa_write_record(seq, sk, st, &found);
}

static __always_inline void sa_dump_one(struct bpf_iter__sockmap___sa *ctx)
{
	struct sock___sa *sk = ctx->sk;
	struct sa_sock *st;

	if (!sk)
		return;
	st = bpf_sk_storage_get(&sa_socks, (void *)sk, NULL, 0);
	if (st)
		sa_tell_one(ctx->meta->seq, sk, st, sa_waits(sk, st), false);
}

#endif
