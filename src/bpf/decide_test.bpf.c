// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The decision logic alone, for the tables of cases in tests/root_decide.rs.
 * Not part of the product. Each program copies its case to the stack: the
 * headers take plain pointers, and a context is none to the verifier.
 *
 * syscall programs sleep, and those may not use tries: what looks up a CIDR is
 * a tc program, with its case as the packet.
 */
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include "kernel.h"
#include "path.h"
#include "policy.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* For their types alone: the tests compare the layouts of both sides. */
struct sa_dump test_dump_layout;
struct sa_event test_event_layout;
struct sa_candidate test_candidate_layout;
struct sa_place test_place_layout;
struct sa_adoption test_adoption_layout;

#define case_of(type, skb)                                                             \
	({                                                                             \
		struct type *case_ = (void *)(long)(skb)->data;                        \
		(void *)(case_ + 1) > (void *)(long)(skb)->data_end ? NULL : case_;    \
	})

struct decide_case {
	struct sa_sock st;
	struct sa_config conf;
	struct sa_view view;
	__u32 why;
	__u32 pad;
};

SEC("syscall")
int test_decide(struct decide_case *ctx)
{
	struct sa_config conf = ctx->conf;
	struct sa_view view = ctx->view;
	struct sa_sock st = ctx->st;

	ctx->why = sa_decide(&st, &view, &conf);
	ctx->st = st;
	return 0;
}

struct identity_case {
	struct sa_addr addr;
	__u32 identity;
};

SEC("tc")
int test_identity(struct __sk_buff *skb)
{
	struct identity_case *ctx = case_of(identity_case, skb);
	struct sa_addr addr;

	if (!ctx)
		return TC_ACT_SHOT;
	addr = ctx->addr;
	ctx->identity = sa_identity(&addr);
	return 0;
}

struct lookup_case {
	struct sa_policy_key key; /* kind is not looked at */
	struct sa_decision decision;
};

SEC("syscall")
int test_lookup(struct lookup_case *ctx)
{
	struct sa_policy_key key = ctx->key;
	struct sa_decision d = sa_policy_lookup(&key.endpoint, key.direction, key.identity,
						key.proto, key.port);

	ctx->decision.verdict = d.verdict;
	ctx->decision.tier = d.tier;
	return 0;
}

struct tables_case {
	struct sa_tuple client;
	struct sa_tuple server;
	__u32 client_sends;
	__u32 why;
	__u32 tier;
};

SEC("tc")
int test_tables(struct __sk_buff *skb)
{
	struct tables_case *ctx = case_of(tables_case, skb);
	struct sa_tuple client, server;
	__u32 tier = 0;

	if (!ctx)
		return TC_ACT_SHOT;
	client = ctx->client;
	server = ctx->server;
	if (ctx->client_sends)
		ctx->why = sa_tables_why(&client, &client, &server, &tier);
	else
		ctx->why = sa_tables_why(&server, &client, &server, &tier);
	ctx->tier = tier;
	return 0;
}

struct filter_case {
	struct sa_config conf;
	struct sa_addr addr;
	__u32 port;
	__u32 filtered;
};

SEC("tc")
int test_filter(struct __sk_buff *skb)
{
	struct filter_case *ctx = case_of(filter_case, skb);
	struct sa_config conf;
	struct sa_addr addr;

	if (!ctx)
		return TC_ACT_SHOT;
	conf = ctx->conf;
	addr = ctx->addr;
	ctx->filtered = sa_filtered(&conf, &addr, ctx->port);
	return 0;
}

struct service_case {
	struct sa_tuple client;
	__u32 count;
	__u32 on_stack;
};

SEC("syscall")
int test_service(struct service_case *ctx)
{
	struct sa_tuple client = ctx->client;

	ctx->on_stack = sa_on_stack_service(&client, ctx->count);
	return 0;
}

struct match_case {
	struct sa_conn conn;
	__u32 side;
	__u32 reason;
};

SEC("syscall")
int test_match(struct match_case *ctx)
{
	struct sa_conn conn = ctx->conn;

	if (ctx->side)
		ctx->reason = sa_match(&conn, &conn.side[1], &conn.side[0]);
	else
		ctx->reason = sa_match(&conn, &conn.side[0], &conn.side[1]);
	return 0;
}
