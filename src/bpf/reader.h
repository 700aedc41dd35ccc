/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which sockets read (and send) in a way that redirect can serve? */
#ifndef SA_READER_H
#define SA_READER_H

#include "maps.h"

#define SA_READER_UNKNOWN SA_REASON_COUNT /* not accepted yet: no file */

static __always_inline bool sa_sock_flag(const struct sock___sa *sk, __u64 bit)
{
	return sa_load(sk, __sk_common.skc_flags) >> (bit & 63) & 1;
}

/*
 * Options that redirect would not honour: SA_REASON_NONE, or which.
 * Each is one load; the values change only by setsockopt(2).
 */
static __always_inline __u32 sa_options(const struct tcp_sock___sa *tp)
{
	const struct sock___sa *sk = (const void *)tp;

	if (sa_load(tp, inet_conn.icsk_ulp_ops))
		return SA_REASON_ULP;
	if (bpf_core_field_exists(tp->is_mptcp) && sa_load(tp, is_mptcp))
		return SA_REASON_ULP;
	if (sa_load(sk, sk_rcvlowat) > 1)
		return SA_REASON_RCVLOWAT;
	if (sa_load_bits(tp, recvmsg_inq))
		return SA_REASON_TCP_INQ;
	if (sa_sock_flag(sk, bpf_core_enum_value(enum sock_flags___sa, SOCK_ZEROCOPY___sa)))
		return SA_REASON_ZEROCOPY;
	if (sa_load(sk, sk_peek_off) >= 0)
		return SA_REASON_PEEK_OFF;
	/* In 6.1 16 bits wide, with sk_shutdown behind them. */
	if (sa_load_bits(sk, sk_tsflags) ||
	    sa_sock_flag(sk, bpf_core_enum_value(enum sock_flags___sa, SOCK_RCVTSTAMP___sa)))
		return SA_REASON_TIMESTAMPING;
	if (sa_load(sk, sk_max_pacing_rate) != ~0UL)
		return SA_REASON_PACING;
	if (sa_load_bits(tp, repair))
		return SA_REASON_REPAIR;
	if (sa_load_bits(sk, sk_kern_sock))
		return SA_REASON_KERNEL_SOCKET;
	return SA_REASON_NONE;
}

/* O_NONBLOCK of the file: SA_REASON_NONE when set, SA_READER_UNKNOWN before
 * accept(2).
 */
static __always_inline __u32 sa_blocking(const struct tcp_sock___sa *tp)
{
	const struct sock___sa *sk = (const void *)tp;
	const struct socket___sa *socket = sa_load(sk, sk_socket);
	const struct file___sa *file;

	if (!socket)
		return SA_READER_UNKNOWN;
	file = sa_load(socket, file);
	if (!file)
		return SA_READER_UNKNOWN;
	return sa_load(file, f_flags) & SA_O_NONBLOCK ? SA_REASON_NONE : SA_REASON_BLOCKING_READER;
}

/*
 * All of it, as far as it is known: SA_READER_UNKNOWN also of a socket that is gone.
 * Not static: the verifier looks at it once, and not for each way that leads here.
 */
__noinline __u32 sa_judge(__u64 address, __u64 cookie)
{
	const struct tcp_sock___sa *tp = sa_cast(address, tcp_sock___sa);
	const struct sa_config *conf = sa_conf();
	__u32 reason;

	if (!conf || sa_cookie_of((const void *)tp) != cookie)
		return SA_READER_UNKNOWN;
	reason = sa_options(tp);
	if (reason || conf->blocking)
		return reason;
	return sa_blocking(tp);
}

#endif
