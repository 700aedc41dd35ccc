/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a message finds: its own socket, the peer's, the receiver's queue. */
#ifndef SA_VIEW_H
#define SA_VIEW_H

#include "intf.h"
#include "outcome.h"

struct sa_view {
	__u32 why; /* enum sa_why: what stands against redirect, 0 nothing */
	__u32 forced; /* the stack must take it, whatever is in flight */
	__u32 alone; /* no other send, receive or redirect holds the psock */
	__u32 write_seq; /* own */
	__u32 copied_seq; /* of the peer, in own sequence space */
	__u32 queue_empty; /* the peer's redirect queue */
	__u32 queue_long; /* ... is at the hard cap right now */
	__u32 splicing; /* the peer is marked: it would read TCP's bytes first */
	__u32 another_thread; /* than the one that sent last */
	__u32 answered; /* the peer has sent meanwhile, as far as that was asked */
	__u32 size; /* bytes */
	__u32 budget_bytes; /* what the peer's redirect queue may hold */
};

#endif
