// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The programs of sockaccel: thin entries over one header per idea. */
#include <linux/in.h>
#include "kernel.h"
#include "enrol.h"
#include "direction.h"
#include "drain.h"
#include "dump.h"
#include "open.h"
#include "options.h"
#include "reuse.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline int sa_on_sockops(struct bpf_sock_ops *ops, bool enrol)
{
	const struct tcp_sock___sa *tp;
	struct bpf_sock *sk = ops->sk;
	struct sa_sock *st;

	switch (ops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		if (enrol)
			sa_on_established(ops, SA_ROLE_ACTIVE);
		return 1;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		if (enrol)
			sa_on_established(ops, SA_ROLE_PASSIVE);
		return 1;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		sa_on_connect(ops);
		return 1;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		sa_on_listen(ops);
		return 1;
	case BPF_SOCK_OPS_RTT_CB:
	case BPF_SOCK_OPS_STATE_CB:
		break;
	default:
		return 1;
	}
	if (!sk)
		return 1;
	st = bpf_sk_storage_get(&sa_socks, sk, NULL, 0);
	if (!st || !st->cookie)
		return 1;
	tp = (const void *)bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 1;
	if (ops->op == BPF_SOCK_OPS_RTT_CB) {
		if (sa_is_deaf(tp))
			sa_tell_deaf(st);
		sa_on_ack(ops, st, tp);
		return 1;
	}
	sa_tell(st);
	if (ops->args[1] == BPF_TCP_CLOSE) {
		sa_on_close(st);
		if (sa_is_disconnect(tp))
			sa_on_disconnect(st);
	}
	return 1;
}

SEC("sockops")
int sa_sockops(struct bpf_sock_ops *ops)
{
	return sa_on_sockops(ops, true);
}

/* For a cgroup that drains: nothing new, and the guards of what is enrolled. */
SEC("sockops")
int sa_sockops_off(struct bpf_sock_ops *ops)
{
	return sa_on_sockops(ops, false);
}

static __always_inline void sa_stack(struct sa_sock *st, const struct sa_view *v, __u32 why)
{
	struct sa_stats *stats = sa_count();

	st->why = why;
	st->stack_at = bpf_jiffies64();
	st->stack_messages++;
	st->stack_bytes += v->size;
	if (!stats)
		return;
	__sync_fetch_and_add(&stats->stack_messages, 1);
	__sync_fetch_and_add(&stats->stack_bytes, v->size);
	if (why < SA_WHY_COUNT)
		__sync_fetch_and_add(&stats->stack_why[why], 1);
}

/*
 * Each psock keeps the program that it was enrolled with. So that program is only
 * a call through a map, and one write to the map changes it for all.
 */
SEC("sk_msg")
int sa_skmsg(struct sk_msg_md *msg)
{
	bpf_tail_call(msg, &sa_programs, 0);
	/*
	 * Without pins the kernel empties sa_programs. The table must outlive that:
	 * with it unread redirected bytes would go. A program holds the maps that it
	 * names, and each socket in the table this program.
	 */
	asm volatile("" ::"r"(&sa_sockhash));
	return SK_PASS;
}

SEC("sk_msg")
int sa_verdict(struct sk_msg_md *msg)
{
	struct sa_view v = { .size = msg->size };
	const struct sa_config *conf = sa_conf();
	const struct tcp_sock___sa *tp;
	__u32 generation, path, why;
	const struct task_struct___sa *task;
	struct bpf_sock *sk = msg->sk;
	struct sa_sock *st;

	if (!conf || !sk)
		return SK_PASS;
	st = bpf_sk_storage_get(&sa_socks, sk, NULL, 0);
	tp = sa_sender(sk);
	if (!st || !tp)
		return SK_PASS;

	task = (const void *)bpf_get_current_task_btf();
	v.another_thread = st->task != (__u64)task;
	st->task = (__u64)task;
	if (st->tgid != (__u32)task->tgid)
		sa_new_process(st, task->tgid);
	generation = conf->generation + sa_observations() + 1;
	if (st->generation != generation)
		sa_evaluate(st, generation);
	if (!st->peer_cookie) {
		sa_stack(st, &v, SA_WHY_UNPAIRED);
		return SK_PASS;
	}

	sa_inspect(st, tp, conf, &v);
	if (st->marks) {
		v.splicing = st->marks & SA_MARK_SPLICING;
		if (st->marks & SA_MARK_GONE ||
		    (st->marks & SA_MARK_LEAVING && sa_let_go(st, v.queue_empty, v.alone, v.another_thread)))
			sa_force(&v, SA_WHY_MISSED);
	}
	path = st->path;
	if (path == SA_PATH_REDIRECT && !v.queue_empty && sa_over_hard_cap(st))
		v.queue_long = sa_peer_queue_long(st->peer_sk);
	why = sa_decide(st, &v, conf);
	if (!why && !st->gate_open) {
		if (sa_open_gate(st)) {
			st->gate_open = 1;
		} else {
			st->path = SA_PATH_STACK;
			why = SA_WHY_READER;
		}
	}

	/* It stays redirected though something stands against it: ask the drain. */
	if (!why && v.why && sa_is_cut(st))
		why = sa_demote(st, &v, SA_WHY_DISABLED);
	if (why == SA_WHY_STUCK) {
		st->why = why;
		sa_add(stack_why[SA_WHY_STUCK], 1);
		return SK_DROP;
	}
	if (why) {
		if (path == SA_PATH_REDIRECT) {
			sa_add_at(demoted_why, why, SA_WHY_COUNT, 1);
			sa_event(st, SA_EVENT_DEMOTED, why);
			if (!v.alone && !v.forced)
				sa_add(hard_cap, 1);
		}
		if (sa_is_deaf(tp))
			sa_tell_deaf(st);
		sa_stack(st, &v, why);
		return SK_PASS;
	}
	if (bpf_msg_redirect_hash(msg, &sa_sockhash, &st->peer_cookie, BPF_F_INGRESS) != SK_PASS) {
		sa_demote(st, &v, SA_WHY_MISSED);
		sa_stack(st, &v, SA_WHY_MISSED);
		return SK_PASS;
	}
	st->queued_messages++;
	st->queued_bytes += v.size;
	st->redirected_messages++;
	st->redirected_bytes += v.size;
	if (sa_is_deaf(tp))
		sa_tell_deaf(st);
	else if (!(st->redirected_messages % SA_ADMIT_EVERY))
		sa_earn(st, SA_ADMIT_EVERY);
	if (path != SA_PATH_REDIRECT) {
		sa_add(promotions, 1);
		sa_event(st, SA_EVENT_PROMOTED, 0);
	}
	return SK_PASS;
}

/* struct trace_event_raw_sys_enter: an 8 byte header, the number, the arguments. */
struct sa_sys_enter {
	__u64 header;
	__s64 id;
	__u64 args[6];
};

SEC("tracepoint/syscalls/sys_enter_splice")
int sa_splice(struct sa_sys_enter *ctx)
{
	const struct task_struct___sa *task = (const void *)bpf_get_current_task();

	sa_saw_splice(task, sa_spliced_socket(task, ctx->args[0]));
	return 0;
}

/*
 * The same where the kernel's functions may be traced. It needs no descriptor, so
 * it also sees io_uring, sendfile(2), and a descriptor that changes hands meanwhile.
 */
SEC("?fentry/tcp_splice_read")
int sa_splice_read(__u64 *ctx)
{
	const struct task_struct___sa *task = (const void *)bpf_get_current_task();
	const struct socket___sa *socket = (const void *)ctx[0];

	sa_saw_splice(task, BPF_CORE_READ(socket, sk));
	return 0;
}

/*
 * Options that redirect cannot honour, asked for on a socket that is already
 * enrolled. It runs before the kernel acts.
 */
SEC("cgroup/setsockopt")
int sa_setsockopt(struct bpf_sockopt *ctx)
{
	__u32 kind = sa_option_kind(ctx->level, ctx->optname);
	struct bpf_sock *sk = ctx->sk;
	struct sa_sock *st;

	/* More than a page: let the kernel have the caller's own buffer. */
	if (ctx->optlen > 4096)
		ctx->optlen = 0;
	if (sk && sa_is_transparent(ctx->level, ctx->optname))
		bpf_sk_storage_get(&sa_listening, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (kind == SA_OPTION_HARMLESS || sa_option_off(ctx) || !sk)
		return 1;
	st = bpf_sk_storage_get(&sa_socks, sk, NULL, 0);
	if (!st || !st->enrolled || !sa_still_enrolled(sk))
		return 1;
	if (kind == SA_OPTION_ENDS) {
		sa_mark(st->cookie, SA_MARK_OPTION);
		return 1;
	}
	sa_add(refused_options, 1);
	bpf_set_retval(-SA_EOPNOTSUPP);
	return 0;
}

/* A second connect(2) waits for the first connection's senders to be through:
 * the program may try again, as when local ports are short.
 */
static __always_inline int sa_connect(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk || !sa_still_held(sk))
		return 1;
	bpf_set_retval(-SA_EADDRNOTAVAIL);
	return 0;
}

SEC("cgroup/connect4")
int sa_connect4(struct bpf_sock_addr *ctx)
{
	return sa_connect(ctx);
}

SEC("cgroup/connect6")
int sa_connect6(struct bpf_sock_addr *ctx)
{
	return sa_connect(ctx);
}

SEC("iter/sockmap")
int sa_iter_dump(struct bpf_iter__sockmap___sa *ctx)
{
	sa_dump_one(ctx);
	return 0;
}

SEC("iter/task_file")
int sa_iter_open(struct bpf_iter__task_file___sa *ctx)
{
	sa_tell_open(ctx);
	return 0;
}

SEC("iter/sockmap")
int sa_iter_drain(struct bpf_iter__sockmap___sa *ctx)
{
	sa_drain_one(ctx, SA_DROP_NONE);
	return 0;
}

/* Takes out also what has unread bytes: they are lost. */
SEC("iter/sockmap")
int sa_iter_drop(struct bpf_iter__sockmap___sa *ctx)
{
	sa_drain_one(ctx, SA_DROP_ALL);
	return 0;
}

/* The same, of the cgroup that is asked about. */
SEC("iter/sockmap")
int sa_iter_drop_asked(struct bpf_iter__sockmap___sa *ctx)
{
	sa_drain_one(ctx, SA_DROP_ASKED);
	return 0;
}

/* The cgroup is enabled again. */
SEC("iter/sockmap")
int sa_iter_keep(struct bpf_iter__sockmap___sa *ctx)
{
	sa_keep_one(ctx);
	return 0;
}
