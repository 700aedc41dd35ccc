/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Does enrolment pay? A message on the stack costs an enrolled sender a copy and
 * a program, and small ones that nobody answers TCP would have coalesced. What
 * is answered saves several times as much.
 */
#ifndef SA_WEIGH_H
#define SA_WEIGH_H

#include "view.h"

/* Why a direction whose receiver cannot follow, or must not be redirected to,
 * is on the stack. What tables or a shortage keep there may come back.
 */
#define SA_STREAM_WHYS                                                                     \
	(1u << SA_WHY_UNREAD | 1u << SA_WHY_BEHIND | 1u << SA_WHY_BUDGET |                 \
	 1u << SA_WHY_LARGE | 1u << SA_WHY_COMPANY | 1u << SA_WHY_READER |                 \
	 1u << SA_WHY_SPLICING | 1u << SA_WHY_CONTENDED | 1u << SA_WHY_STREAM |            \
	 1u << SA_WHY_MISSED)

/* Longer pipelines of requests than this are taken for a stream. */
#define SA_PIPELINE 64
/* Redirect carries messages of this size faster than TCP, answered or not. */
#define SA_BULK 16384

static __always_inline bool sa_is_stream(const struct sa_sock *st, const struct sa_config *conf)
{
	return conf->stream_limit && st->lost >= conf->stream_limit;
}

static __always_inline void sa_saved(struct sa_sock *st, __u32 points)
{
	st->lost -= st->lost < points ? st->lost : points;
}

static __always_inline void sa_weigh(struct sa_sock *st, const struct sa_view *v, __u32 why)
{
	if (v->answered)
		st->unanswered = 0;
	else
		st->unanswered++;
	if (why) {
		if (SA_STREAM_WHYS >> (why & 31) & 1)
			st->lost += 1 + (v->size >> 12);
		return;
	}
	if (v->size >= SA_BULK)
		sa_saved(st, v->size >> 11);
	else if (v->answered)
		sa_saved(st, 4);
	else if (st->unanswered > SA_PIPELINE)
		st->lost++;
}

#endif
