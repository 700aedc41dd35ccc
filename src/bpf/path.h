/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The path of one direction: what may be redirected, and when to change over.
 *
 * sa_decide() is a function of plain values, so that tables of cases can run
 * it (tests.bpf.c); sa_verdict collects the values.
 */
#ifndef SA_PATH_H
#define SA_PATH_H

#include "intf.h"
#include "outcome.h"

/* What a message finds: its own socket, the peer's, the receiver's queue. */
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
	__u32 answered; /* the peer has sent since the last message */
	__u32 size; /* bytes */
	__u32 budget_bytes; /* what the peer's redirect queue may hold */
};

/*
 * Messages and bytes over which a direction leaves in company as well: see "Two
 * threads on one socket" in sockaccel(8). Absolute: a straggler must land behind
 * more than a reader can take while it is in flight, whatever the budget.
 */
#define SA_HARD_MESSAGES 2048
#define SA_HARD_BYTES (2u << 20)
/* So many messages, or all these bytes, must still wait. */
#define SA_LONG_MESSAGES 256

static __always_inline bool sa_over_hard_cap(const struct sa_sock *st)
{
	return st->queued_messages >= SA_HARD_MESSAGES || st->queued_bytes >= SA_HARD_BYTES;
}

static __always_inline bool sa_over(const struct sa_sock *st, const struct sa_view *v,
				    const struct sa_config *conf)
{
	/* Into an empty queue one message goes, however large. */
	return st->queued_messages >= conf->budget_messages ||
	       (st->queued_bytes && (__u64)st->queued_bytes + v->size > v->budget_bytes);
}

static __always_inline __u32 sa_demote(struct sa_sock *st, const struct sa_view *v, __u32 why)
{
	st->path = SA_PATH_STACK;
	st->straggler = !v->alone && (st->others || v->another_thread);
	st->leaving = 0;
	st->demotions++;
	return why;
}

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

/*
 * Does enrolment pay? A message on the stack costs an enrolled sender a copy and
 * a program, and small ones that nobody answers TCP would have coalesced. What
 * is answered saves several times as much.
 */
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

/*
 * Stay redirected, or leave? Leaving is safe when nothing is in flight, which
 * only a lonely sender knows: with company the kernel may be between an
 * earlier verdict and its queue, having dropped the sender's lock.
 */
static __always_inline __u32 sa_stay(struct sa_sock *st, const struct sa_view *v,
				     const struct sa_config *conf)
{
	__u32 why = v->why;

	if (v->forced)
		return sa_demote(st, v, why);
	/* Bytes went by TCP without us: the kernel fell back. */
	if (v->write_seq != st->promoted_seq)
		return sa_demote(st, v, SA_WHY_BEHIND);
	if (v->alone)
		st->others = 0;
	else if (v->another_thread)
		st->others = 1;
	if (!v->alone && v->another_thread)
		st->company = 1;
	if (!why && st->company && v->alone)
		why = SA_WHY_COMPANY;
	if (!why)
		why = st->leaving;
	if (!why && sa_over(st, v, conf))
		why = SA_WHY_BUDGET;
	if (!why && sa_is_stream(st, conf))
		why = SA_WHY_STREAM;
	if (!why)
		return 0;
	/*
	 * It would read TCP's bytes first, and stuck is better than reordered. What
	 * it never reads must not fill the memory: then the sender gets an error.
	 */
	if (v->splicing && !v->queue_empty)
		return v->queue_long && sa_over_hard_cap(st) ? SA_WHY_STUCK : 0;
	/*
	 * A recv(2) that empties the redirect queue does not go on to TCP's: it returns
	 * short, which edge-triggered readers take for "drained" (epoll(7)), and MSG_PEEK
	 * never sees past it. So leave when the queue is empty, or at the hard cap.
	 */
	if (!v->queue_empty && !(v->queue_long && sa_over_hard_cap(st))) {
		st->leaving = why;
		return 0;
	}
	/* Only this thread has sent since one was last alone: nothing is in flight. */
	if (v->alone || !st->others || conf->without_company_rule)
		return sa_demote(st, v, why);
	/*
	 * Never left alone: a straggler in flight lands behind a long queue of
	 * unread messages, so no reader can have passed it.
	 */
	if (v->queue_long && sa_over_hard_cap(st))
		return sa_demote(st, v, why);
	return 0;
}

static __always_inline __u32 sa_enter(struct sa_sock *st, const struct sa_view *v,
				      const struct sa_config *conf)
{
	if (v->alone)
		st->straggler = 0;
	if (v->why)
		return v->why;
	if (!conf->without_company_rule && (st->company || !v->alone))
		return SA_WHY_COMPANY;
	if (v->copied_seq == st->first_seq)
		return SA_WHY_UNREAD;
	if (v->copied_seq != v->write_seq)
		return SA_WHY_BEHIND;
	if (sa_over(st, v, conf))
		return SA_WHY_BUDGET;
	if (sa_is_stream(st, conf))
		return SA_WHY_STREAM;
	st->path = SA_PATH_REDIRECT;
	st->promoted_seq = v->write_seq;
	st->others = 0;
	st->straggler = 0;
	st->promotions++;
	return 0;
}

/* 0: redirect the message. Else the path is stack, and why. */
static __always_inline __u32 sa_decide(struct sa_sock *st, const struct sa_view *v,
				       const struct sa_config *conf)
{
	__u32 why;

	if (v->queue_empty) {
		st->queued_messages = 0;
		st->queued_bytes = 0;
	}
	why = st->path == SA_PATH_REDIRECT ? sa_stay(st, v, conf) : sa_enter(st, v, conf);
	sa_weigh(st, v, why);
	return why;
}

#endif
