/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Telling `sockaccel events` what happens to a socket, as it happens. Where
 * nobody listens this is one load and one branch, on paths taken rarely.
 */
#ifndef SA_EVENTS_H
#define SA_EVENTS_H

#include "maps.h"

static __always_inline struct sa_audience *sa_listening_to(__u32 kind)
{
	struct sa_audience *audience;
	__u32 zero = 0;

	audience = bpf_map_lookup_elem(&sa_audience, &zero);
	return audience && audience->kinds & (1u << kind) ? audience : NULL;
}

/*
 * `what` is the kind, from bit 8 the cause, from bit 24 the role. Not static: the verifier
 * looks at it once, and wants a number from it.
 */
__noinline int sa_emit(__u64 cookie, __u64 netns_cookie, const struct sa_tuple *tuple, __u32 tgid,
		       __u32 what)
{
	struct sa_audience *audience = sa_listening_to(what & 0xff);
	__u64 now = bpf_ktime_get_ns();
	struct sa_event *event;

	if (!audience || !tuple)
		return 0;
	if (now > audience->until) {
		audience->kinds = 0;
		return 0;
	}
	event = bpf_ringbuf_reserve(&sa_events, sizeof(*event), 0);
	if (!event) {
		sa_add(events_lost, 1);
		return 0;
	}
	event->time = now;
	event->cookie = cookie;
	event->netns_cookie = netns_cookie;
	event->tuple = *tuple;
	event->kind = what & 0xff;
	event->cause = what >> 8 & 0xffff;
	event->tgid = tgid;
	event->role = what >> 24;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Of a struct sa_sock or a struct sa_side. */
#define sa_event(of, event, cause)                                                      \
	do {                                                                            \
		if (sa_listening_to(event))                                             \
			sa_emit((of)->cookie, (of)->netns_cookie, &(of)->tuple, (of)->tgid, \
				(event) | (cause) << 8 | (__u32)(of)->role << 24);      \
	} while (0)

#endif
