/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Socket options set while a socket is enrolled. */
#ifndef SA_OPTIONS_H
#define SA_OPTIONS_H

#include "inspect.h"

/* include/uapi/asm-generic/socket.h, include/uapi/linux/tcp.h */
#define SA_SOL_SOCKET 1
#define SA_SO_RCVLOWAT 18
#define SA_SO_TIMESTAMP_OLD 29
#define SA_SO_TIMESTAMPNS_OLD 35
#define SA_SO_TIMESTAMPING_OLD 37
#define SA_SO_PEEK_OFF 42
#define SA_SO_MAX_PACING_RATE 47
#define SA_SO_ZEROCOPY 60
#define SA_SO_TIMESTAMP_NEW 63
#define SA_SO_TIMESTAMPNS_NEW 64
#define SA_SO_TIMESTAMPING_NEW 65
#define SA_SOL_IP 0
#define SA_IP_TRANSPARENT 19
#define SA_SOL_IPV6 41
#define SA_IPV6_TRANSPARENT 75
#define SA_SOL_TCP 6
#define SA_TCP_REPAIR 19
#define SA_TCP_ULP 31
#define SA_TCP_INQ 36
#define SA_EOPNOTSUPP 95

enum sa_option_kind {
	SA_OPTION_HARMLESS,
	/* The socket goes back to the stack, for good. */
	SA_OPTION_ENDS,
	/*
	 * Refused: an upper layer would hand out redirected bytes as if it had
	 * decrypted them, and MSG_ZEROCOPY never completes on an enrolled socket.
	 * Programs fall back, as they must where the kernel lacks the two.
	 */
	SA_OPTION_REFUSED,
};

static __always_inline __u32 sa_option_kind(__s32 level, __s32 optname)
{
	if (level == SA_SOL_TCP) {
		switch (optname) {
		case SA_TCP_ULP:
			return SA_OPTION_REFUSED;
		case SA_TCP_REPAIR:
		case SA_TCP_INQ:
			return SA_OPTION_ENDS;
		}
		return SA_OPTION_HARMLESS;
	}
	if (level != SA_SOL_SOCKET)
		return SA_OPTION_HARMLESS;
	switch (optname) {
	case SA_SO_ZEROCOPY:
		return SA_OPTION_REFUSED;
	case SA_SO_RCVLOWAT:
	case SA_SO_PEEK_OFF:
	case SA_SO_MAX_PACING_RATE:
	case SA_SO_TIMESTAMP_OLD:
	case SA_SO_TIMESTAMPNS_OLD:
	case SA_SO_TIMESTAMPING_OLD:
	case SA_SO_TIMESTAMP_NEW:
	case SA_SO_TIMESTAMPNS_NEW:
	case SA_SO_TIMESTAMPING_NEW:
		return SA_OPTION_ENDS;
	}
	return SA_OPTION_HARMLESS;
}

/* A listener whose children may have another port than its own. */
static __always_inline bool sa_is_transparent(__s32 level, __s32 optname)
{
	return (level == SA_SOL_IP && optname == SA_IP_TRANSPARENT) ||
	       (level == SA_SOL_IPV6 && optname == SA_IPV6_TRANSPARENT);
}

/* The values that turn the option off, and 1 byte as the low-water mark. */
static __always_inline bool sa_option_off(struct bpf_sockopt *ctx)
{
	const __s32 *value = ctx->optval;

	if ((const void *)(value + 1) > ctx->optval_end)
		return false;
	if (ctx->optname == SA_SO_PEEK_OFF)
		return *value < 0;
	return *value == 0 || (ctx->optname == SA_SO_RCVLOWAT && *value == 1);
}

static __always_inline bool sa_still_enrolled(struct bpf_sock *sk)
{
	return sa_psock(sa_cast(sa_address(sk), sock___sa));
}

#endif
