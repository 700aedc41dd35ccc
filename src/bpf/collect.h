/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Removing connections whose two sockets are gone. Each leaves by its state callback,
 * which another sock_ops program on the same cgroups takes away when it sets callback
 * flags of its own: bpf_sock_ops_cb_flags_set() replaces all of them.
 */
#ifndef SA_COLLECT_H
#define SA_COLLECT_H

#include "account.h"
#include "pairing.h"

/*
 * Has this side left, or will no program run for its socket any more? The memory of one
 * that is gone has it still, or is another's.
 */
static __always_inline bool sa_is_through(struct sa_conn *conn, __u32 n, __u64 cookie)
{
	const struct sa_side *side = sa_side(conn, n);
	const struct sock___sa *sk = sa_cast(side->sk, sock___sa);

	if (conn->left & sa_bit(1, n))
		return true;
	if (side->ready != cookie)
		return false;
	return sa_cookie_of(sk) != cookie || !sa_load(sk, __sk_common.skc_refcnt.refs.counter);
}

static __always_inline void sa_account_gone(struct sa_conn *conn, __u32 side)
{
	if (!sa_side(conn, side)->skipped && sa_account(conn, side))
		sa_add(closed, 1);
}

/*
 * Nobody but the timer that calls this touches an entry of two sockets that are gone.
 * But it may have been deleted since, and be another connection's: cookies are never
 * used again, so what still has that of a side that had not left is the one looked at.
 */
static __always_inline bool sa_collect(const __u64 *at, struct sa_conn *conn)
{
	__u64 id = *at, zero = conn->side[0].cookie, one = conn->side[1].cookie;
	__u32 left = conn->left, side = left & sa_bit(1, 0) ? 1 : 0;
	__u64 cookie = side ? one : zero;

	if (!zero || !one || left == 3)
		return false;
	if (!sa_is_through(conn, 0, zero) || !sa_is_through(conn, 1, one))
		return false;
	if (__sync_val_compare_and_swap(&sa_side(conn, side)->cookie, cookie, SA_NOBODY) != cookie)
		return false;
	if (bpf_map_lookup_elem(&sa_conns, &id) != conn)
		return false;
	sa_account_gone(conn, 0);
	sa_account_gone(conn, 1);
	bpf_map_delete_elem(&sa_conns, &id);
	return true;
}

#endif
