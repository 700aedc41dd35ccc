/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * connect(AF_UNSPEC), then connect(2) again: one socket, two connections. The
 * kernel keeps psock, key and unread redirected bytes across it, and a sender
 * of the first connection may be between its verdict and the queue.
 */
#ifndef SA_REUSE_H
#define SA_REUSE_H

#include "inspect.h"

/* connect(2) gives it when there are no free local ports, too. */
#define SA_EADDRNOTAVAIL 99

/*
 * Is this change to TCP_CLOSE tcp_disconnect()? A reset has set sk_err before, an
 * orderly end has shut both directions down, close(2) has taken the file.
 */
static __always_inline bool sa_is_disconnect(const struct tcp_sock___sa *tp)
{
	const struct sock___sa *sk = (const void *)tp;
	const __u8 both = SA_SEND_SHUTDOWN | SA_RCV_SHUTDOWN;

	return !sk->sk_err && (sk->sk_shutdown & both) != both &&
	       sa_blocking(tp) != SA_READER_UNKNOWN;
}

/* What is unread goes, as tcp_disconnect() empties TCP's own queue. */
static __always_inline void sa_on_disconnect(struct sa_sock *st)
{
	if (!bpf_map_delete_elem(&sa_sockhash, &st->cookie))
		st->disconnected = 1;
}

/* Still held by a sender of the connection before? */
static __always_inline bool sa_still_held(struct bpf_sock *sk)
{
	const struct sa_sock *st = bpf_sk_storage_get(&sa_socks, sk, NULL, 0);
	const struct sk_psock___sa *psock = sa_psock(sa_cast(sa_address(sk), sock___sa));

	/* Where tcp_disconnect() went unseen (both ends shut, a reset), the map still has it. */
	return st && st->cookie && psock && sa_load(psock, refcnt.refs.counter) > !st->disconnected;
}

#endif
