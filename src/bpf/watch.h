/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Looking again, by a timer, where the ACK that would show something may never
 * come. At a socket that nobody has met, once: its peer is remote. At the one that
 * connected: it may have done so with a time limit, and block from then on; that comes
 * at once, or late where its thread has to wait for a processor. And at an accepted one
 * that was enrolled before accept(2), until that: how it reads shows only then. Of the
 * first children of a listener; after that their siblings speak. And at every connection
 * as it grows older: is it there? Its end may go untold, see collect.h.
 */
#ifndef SA_WATCH_H
#define SA_WATCH_H

#include "collect.h"
#include "eject.h"

#define SA_CLOCK_MONOTONIC 1
#define SA_WATCH_MS 1000000ULL
/* accept(2) gives a blocking socket; fcntl(2) follows at once or never. */
#define SA_WATCH_SUSPECT_NS (5 * SA_WATCH_MS)
/* Looks at a connection where nobody blocked, while nothing is redirected. */
#define SA_WATCH_AGAIN 3
/* The other end is ESTABLISHED as soon as one ACK has come through. */
#define SA_WATCH_LONELY_NS (1000 * SA_WATCH_MS)
/* ... and of one that is adopted when every network namespace was walked once more. */
#define SA_WATCH_ADOPTED_NS (30000 * SA_WATCH_MS)
/* After the looks at how it reads: 1 s, 2 s, 4 s ... 256 s, and every 256 s then. */
#define SA_WATCH_DOUBLINGS 8

/* The cookies first: once both sides have left, the entry may be another's. */
static __always_inline void sa_watch_eject(struct sa_conn *conn, __u32 reason)
{
	__u64 zero = conn->side[0].cookie, one = conn->side[1].cookie;

	if (!sa_shut(conn))
		return;
	sa_eject_side(conn, 0, zero, reason);
	sa_eject_side(conn, 1, one, reason);
}

/* What was accepted of it before does not block. */
static __always_inline bool sa_listener_reads_well(const struct sa_side *server)
{
	struct sa_listener_key key = {
		.netns_cookie = server->netns_cookie,
		.port = server->tuple.local_port,
	};
	const struct sa_listener *known = bpf_map_lookup_elem(&sa_listeners, &key);

	return known && !known->shared && known->readers == SA_READERS_NONBLOCKING;
}

/* Servers accept within milliseconds, or are busy for long. */
static __always_inline __u64 sa_watch_delay(__u32 looks)
{
	if (looks < 256)
		return SA_WATCH_MS;
	return looks < 512 ? 16 * SA_WATCH_MS : 1000 * SA_WATCH_MS;
}

static __always_inline __u64 sa_watch_delay_again(__u32 again)
{
	return again ? again * 250 * SA_WATCH_MS : 16 * SA_WATCH_MS;
}

static __always_inline __u64 sa_watch_rest(struct sa_conn *conn)
{
	return 1000 * SA_WATCH_MS
	       << (conn->rests < SA_WATCH_DOUBLINGS ? conn->rests++ : SA_WATCH_DOUBLINGS);
}

/*
 * The slots are free for others; the socket sees it at its next callback. The
 * entry may be another connection's by now: what has a side taken stays, so once
 * the other side is ours, and both are still those that were looked at, it is.
 */
static __always_inline bool sa_give_up(const __u64 *at, struct sa_conn *conn)
{
	__u64 id = *at, cookie = conn->side[0].cookie;
	__u32 side = 0;

	if (!cookie) {
		side = 1;
		cookie = conn->side[1].cookie;
	}
	if (!cookie || __sync_val_compare_and_swap(&sa_side(conn, !side)->cookie, 0, SA_NOBODY))
		return false;
	if (bpf_map_lookup_elem(&sa_conns, &id) != conn || sa_side(conn, side)->cookie != cookie) {
		__sync_val_compare_and_swap(&sa_side(conn, !side)->cookie, SA_NOBODY, 0);
		return false;
	}
	/* Not in the map: close(2) has taken it out, and nobody was told yet. */
	if (!sa_eject_side(conn, side, cookie, SA_REASON_NO_LOCAL_PEER))
		sa_account_gone(conn, side);
	bpf_map_delete_elem(&sa_conns, &id);
	return true;
}

/* How its two ends read. Ns until the next look at that, 0 when there need be none. */
static __always_inline __u64 sa_watch_readers(struct sa_conn *conn, const struct sa_config *conf)
{
	const struct sa_side *server, *client;
	__u32 reads, connects, reason;

	server = sa_side(conn, conn->side[0].role != SA_ROLE_PASSIVE);
	client = sa_side(conn, conn->side[0].role == SA_ROLE_PASSIVE);
	/* Between accept(2) and fcntl(2) some look as if they blocked. */
	reads = sa_listener_reads_well(server) ? SA_REASON_NONE : sa_judge(server->sk, server->cookie);
	connects = sa_judge(client->sk, client->cookie);
	if (reads == SA_READER_UNKNOWN || connects == SA_READER_UNKNOWN) {
		/* It has been there: it is closed. */
		return conn->again ? 0 : sa_watch_delay(conn->looks++);
	}
	reason = reads ? reads : connects;
	if (!reason) {
		/* Later it may be another's. */
		if (!conn->again)
			sa_listener_learn(server->netns_cookie, server->tuple.local_port,
					  SA_READERS_NONBLOCKING);
		conn->suspect = 0;
		conn->again++;
		return conn->again <= SA_WATCH_AGAIN ? sa_watch_delay_again(conn->again - 1) : 0;
	}
	if (!conn->suspect) {
		conn->suspect = 1;
		return SA_WATCH_SUSPECT_NS;
	}
	if (reads == SA_REASON_BLOCKING_READER)
		sa_listener_learn(server->netns_cookie, server->tuple.local_port,
				  SA_READERS_BLOCKING);
	sa_watch_eject(conn, reason);
	return 0;
}

static int sa_watch_look(void *map, __u64 *id, struct sa_conn *conn)
{
	const struct sa_config *conf = sa_conf();
	__u64 ns = 0;

	if (sa_collect(id, conn))
		return 0;
	if (conf && conf->enabled && !conn->left && !conn->gate) {
		if (!conn->side[0].cookie || !conn->side[1].cookie) {
			if (sa_give_up(id, conn))
				return 0;
		} else if (conn->again <= SA_WATCH_AGAIN) {
			ns = sa_watch_readers(conn, conf);
		}
	}
	bpf_timer_start(&conn->timer, ns ? ns : sa_watch_rest(conn), 0);
	return 0;
}

static __always_inline void sa_watch_in(struct sa_conn *conn, __u64 ns)
{
	/* Has one already: -EBUSY. */
	bpf_timer_init(&conn->timer, &sa_conns, SA_CLOCK_MONOTONIC);
	bpf_timer_set_callback(&conn->timer, sa_watch_look);
	bpf_timer_start(&conn->timer, ns, 0);
}

/* The pair is complete. Where timers fail, the first ACK remains. */
static __always_inline void sa_watch(struct sa_conn *conn)
{
	const struct sa_config *conf = sa_conf();

	if (conf && !conf->blocking)
		sa_watch_in(conn, sa_watch_delay(0));
}

#endif
