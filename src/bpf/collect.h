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

/* Will no program run for its socket any more? Its memory has it still, or is another's. */
static __always_inline bool sa_is_gone(const struct sa_side *side, __u64 cookie)
{
	const struct sock___sa *sk = sa_cast(side->sk, sock___sa);

	if (side->ready != cookie)
		return false;
	return sa_cookie_of(sk) != cookie || !sa_load(sk, __sk_common.skc_refcnt.refs.counter);
}

static __always_inline void sa_account_gone(struct sa_conn *conn, __u32 side)
{
	if (!sa_side(conn, side)->skipped)
		sa_account_closed(conn, side);
}

/*
 * Nobody but the timer that calls this touches an entry whose sockets have left or are
 * gone. Which of them have left is read once: one that leaves meanwhile deletes the
 * entry itself, and two must not, see sa_leave().
 *
 * The entry may have been deleted since, and be another connection's. Then it has not
 * the cookie of the side that had not left.
 */
static __always_inline bool sa_collect(const __u64 *at, struct sa_conn *conn)
{
	__u32 left = *(volatile __u32 *)&conn->left;
	__u64 id = *at, zero = conn->side[0].cookie, one = conn->side[1].cookie;
	__u32 side = left & sa_bit(1, 0) ? 1 : 0;
	__u64 cookie = side ? one : zero;

	if (!zero || !one || left == 3)
		return false;
	if (!(left & sa_bit(1, 0)) && !sa_is_gone(&conn->side[0], zero))
		return false;
	if (!(left & sa_bit(1, 1)) && !sa_is_gone(&conn->side[1], one))
		return false;
	if (__sync_val_compare_and_swap(&sa_side(conn, side)->cookie, cookie, SA_NOBODY) != cookie)
		return false;
	if (bpf_map_lookup_elem(&sa_conns, &id) != conn) {
		__sync_val_compare_and_swap(&sa_side(conn, side)->cookie, SA_NOBODY, cookie);
		return false;
	}
	sa_account_gone(conn, 0);
	sa_account_gone(conn, 1);
	bpf_map_delete_elem(&sa_conns, &id);
	return true;
}

#endif
