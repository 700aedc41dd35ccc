/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the tables say of a connection: evaluated once per generation of the
 * tables, never per message.
 */
#ifndef SA_POLICY_H
#define SA_POLICY_H

#include "maps.h"
#include "pairing.h"

/* The network of just this address. */
static __always_inline void sa_host_cidr(const struct sa_addr *addr, struct sa_cidr *cidr)
{
	const __u32 *word = (const void *)addr;
	bool v4 = !word[0] && !word[1] && word[2] == bpf_htonl(0xffff);

	cidr->prefixlen = 32 + 128;
	cidr->family = v4 ? SA_FAMILY_V4 : SA_FAMILY_V6;
	__builtin_memcpy(&cidr->addr, addr, sizeof(cidr->addr));
}

static __always_inline __u32 sa_identity(const struct sa_addr *addr)
{
	const struct sa_endpoint *ep = bpf_map_lookup_elem(&sa_endpoints, addr);
	struct sa_cidr key;
	const __u32 *identity;

	if (ep && ep->identity)
		return ep->identity;
	sa_host_cidr(addr, &key);
	identity = bpf_map_lookup_elem(&sa_identities, &key);
	if (identity)
		return *identity;
	if (ep && ep->host)
		return SA_IDENTITY_HOST;
	return SA_IDENTITY_WORLD;
}

struct sa_decision {
	__s32 verdict;
	__u32 tier; /* 1 to 6, 7 for the default deny, 0 for no rules at all */
};

/*
 * Six look-ups from exact to any; the first hit decides. The loop unrolls: the
 * tiers differ only in which fields are wildcards.
 */
static __always_inline struct sa_decision sa_policy_lookup(const struct sa_addr *endpoint,
							    __u8 direction, __u32 identity,
							    __u8 proto, __u16 port)
{
	struct sa_policy_key key = { .direction = direction };
	struct sa_decision none = { SA_VERDICT_ALLOW, 0 };
	struct sa_policy *rule;

	__builtin_memcpy(&key.endpoint, endpoint, sizeof(key.endpoint));
#pragma unroll
	for (__u32 tier = 1; tier <= 6; tier++) {
		key.identity = tier & 1 ? identity : SA_IDENTITY_ANY;
		key.proto = tier <= 4 ? proto : 0;
		key.port = tier <= 2 ? port : 0;
		rule = bpf_map_lookup_elem(&sa_policy, &key);
		if (rule) {
			__sync_fetch_and_add(&rule->evaluations, 1);
			return (struct sa_decision){ rule->verdict, tier };
		}
	}
	key.kind = SA_POLICY_DEFAULT_DENY;
	rule = bpf_map_lookup_elem(&sa_policy, &key);
	if (rule) {
		__sync_fetch_and_add(&rule->evaluations, 1);
		return (struct sa_decision){ SA_VERDICT_DENY, 7 };
	}
	return none;
}

/* A proxy verdict lets pass only what ends at that proxy. */
static __always_inline __u32 sa_verdict_why(__s32 verdict, const struct sa_tuple *server)
{
	if (verdict < 0)
		return SA_WHY_DENIED;
	if (verdict > 0 && verdict != server->local_port && verdict != server->listen_port)
		return SA_WHY_PROXY;
	return 0;
}

/*
 * The connection's own direction counts, so a reply is not new egress:
 * the client's endpoint must allow egress to what the client asked for, the
 * server's endpoint ingress from where the client really is.
 */
static __always_inline __u32 sa_policy_why(const struct sa_tuple *client,
					   const struct sa_tuple *server, __u32 *tier)
{
	struct sa_decision d;
	__u32 why;

	d = sa_policy_lookup(&client->local, SA_EGRESS, sa_identity(&client->remote), IPPROTO_TCP,
			     client->remote_port);
	*tier = d.tier;
	why = sa_verdict_why(d.verdict, server);
	if (why)
		return why;
	d = sa_policy_lookup(&server->local, SA_INGRESS, sa_identity(&client->local), IPPROTO_TCP,
			     server->local_port);
	if (d.tier)
		*tier = d.tier;
	return sa_verdict_why(d.verdict, server);
}

static __always_inline bool sa_on_stack_service(const struct sa_tuple *client, bool count)
{
	struct sa_service_key key = { .port = client->remote_port, .proto = IPPROTO_TCP };
	struct sa_service *service;

	__builtin_memcpy(&key.addr, &client->remote, sizeof(key.addr));
	service = bpf_map_lookup_elem(&sa_services, &key);
	if (service && count)
		__sync_fetch_and_add(&service->connections, 1);
	return service && !service->accelerate;
}

/* Everything the tables say of the direction that `me` sends in. */
static __noinline __u32 sa_tables_why(const struct sa_tuple *me, const struct sa_tuple *client,
				      const struct sa_tuple *server, __u32 *tier)
{
	const struct sa_config *conf = sa_conf();

	if (!me || !client || !server || !tier || !conf)
		return SA_WHY_DISABLED;
	if (sa_on_stack_service(client, false))
		return SA_WHY_SERVICE;
	if (conf->scope == SA_SCOPE_ENDPOINTS && !bpf_map_lookup_elem(&sa_endpoints, &me->remote))
		return SA_WHY_NOT_ENDPOINT;
	return sa_policy_why(client, server, tier);
}

/* Scope that is fixed at ESTABLISHED: ports and addresses of the server. */
static __always_inline bool sa_filtered(const struct sa_config *conf, const struct sa_addr *addr,
					__u16 port)
{
	struct sa_cidr cidr;
	__u32 index = port;
	const __u8 *by_port = bpf_map_lookup_elem(&sa_ports, &index);
	const __u32 *by_addr;

	sa_host_cidr(addr, &cidr);
	by_addr = bpf_map_lookup_elem(&sa_cidrs, &cidr);
	if (by_port && *by_port == SA_FILTER_EXCLUDE)
		return true;
	if (by_addr && *by_addr == SA_FILTER_EXCLUDE)
		return true;
	if (conf->port_includes && !(by_port && *by_port == SA_FILTER_INCLUDE))
		return true;
	return conf->cidr_includes && !(by_addr && *by_addr == SA_FILTER_INCLUDE);
}

#endif
