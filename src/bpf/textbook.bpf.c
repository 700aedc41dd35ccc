// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The sockmap program of the tutorials, for IPv4: the peer that `sockaccel
 * bench` has to compare with. No pairing, no proof, no budget, no ejection;
 * nothing here is meant for anything but measuring.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define AF_INET 2

/* Addresses and ports in network byte order, seen from the key's owner. */
struct tuple {
	__u32 local_ip4;
	__u32 remote_ip4;
	__u32 local_port;
	__u32 remote_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536);
	__type(key, struct tuple);
	__type(value, __u32);
} tb_sockhash SEC(".maps");

SEC("sockops")
int tb_sockops(struct bpf_sock_ops *ops)
{
	struct tuple key;

	if (ops->family != AF_INET)
		return 1;
	if (ops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	key.local_ip4 = ops->local_ip4;
	key.remote_ip4 = ops->remote_ip4;
	key.local_port = bpf_htonl(ops->local_port);
	key.remote_port = ops->remote_port;
	bpf_sock_hash_update(ops, &tb_sockhash, &key, BPF_NOEXIST);
	return 1;
}

SEC("sk_msg")
int tb_skmsg(struct sk_msg_md *msg)
{
	struct tuple peer;

	if (msg->family != AF_INET)
		return SK_PASS;
	peer.local_ip4 = msg->remote_ip4;
	peer.remote_ip4 = msg->local_ip4;
	peer.local_port = msg->remote_port;
	peer.remote_port = bpf_htonl(msg->local_port);
	/* A miss is the stack's to deliver. */
	bpf_msg_redirect_hash(msg, &tb_sockhash, &peer, BPF_F_INGRESS);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
