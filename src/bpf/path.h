/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The path of one direction: what may be redirected, and when to change over.
 *
 * sa_decide() is a function of plain values, so that tables of cases can run
 * it (decide_test.bpf.c); sa_verdict collects the values.
 */
#ifndef SA_PATH_H
#define SA_PATH_H

#include "weigh.h"

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
	 * never sees past it. So leave when the queue is empty, or at the hard cap. Also
	 * where memory is short: an error is seen, what is stuck or reordered is not.
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
