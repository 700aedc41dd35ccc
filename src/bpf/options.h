/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Socket options set while a socket is enrolled. */
#ifndef SA_OPTIONS_H
#define SA_OPTIONS_H

#include "inspect.h"

/* include/uapi/asm-generic/socket.h, include/uapi/linux/tcp.h */
#define SA_SOL_SOCKET 1
#define SA_SO_ZEROCOPY 60
#define SA_SOL_TCP 6
#define SA_TCP_ULP 31
#define SA_EOPNOTSUPP 95

/*
 * Most options are seen by sa_options() at the next message and need nothing
 * here. Two cannot wait: an upper layer would hand out redirected bytes as if
 * it had decrypted them, and MSG_ZEROCOPY never completes on an enrolled
 * socket. Programs fall back from both, as they must where the kernel lacks them.
 */
static __always_inline __s32 sa_refusal(__s32 level, __s32 optname)
{
	if (level == SA_SOL_TCP && optname == SA_TCP_ULP)
		return -SA_EOPNOTSUPP;
	if (level == SA_SOL_SOCKET && optname == SA_SO_ZEROCOPY)
		return -SA_EOPNOTSUPP;
	return 0;
}

static __always_inline bool sa_still_enrolled(struct bpf_sock *sk)
{
	return sa_psock(sa_cast(sk, sock___sa));
}

#endif
