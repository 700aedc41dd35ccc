/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few fields of kernel structs that the programs read, as CO-RE flavours:
 * libbpf finds the true offsets when it loads. Nothing of the build machine's
 * kernel is in the object.
 */
#ifndef SA_KERNEL_H
#define SA_KERNEL_H

#include <linux/types.h>
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head___sa {
	struct list_head___sa *next;
};

struct timespec64___sa {
	__s64 tv_sec;
};

typedef struct {
	int counter;
} atomic_t___sa;

typedef struct {
	__s64 counter;
} atomic64_t___sa;

struct refcount_struct___sa {
	atomic_t___sa refs;
};

struct sk_msg_sg___sa {
	__u32 size;
};

struct sk_msg___sa {
	struct sk_msg_sg___sa sg;
	struct list_head___sa list;
};

struct sk_psock___sa {
	struct list_head___sa ingress_msg;
	__u32 msg_tot_len; /* since 929e30f93125 */
	struct refcount_struct___sa refcnt;
};

struct inode___sa {
	unsigned short i_mode;
	unsigned long i_ino;
};

struct file___sa {
	unsigned int f_flags;
	struct inode___sa *f_inode;
	void *private_data;
};

struct socket___sa {
	struct file___sa *file;
	struct sock___sa *sk;
};

struct net___sa {
	__u64 net_cookie;
};

struct possible_net_t___sa {
	struct net___sa *net;
};

struct proto___sa {
	unsigned long *memory_pressure;
};

struct in6_addr___sa {
	union {
		__u8 u6_addr8[16];
		__be32 u6_addr32[4];
	} in6_u;
};

struct sock_common___sa {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__u32 skc_portpair;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct proto___sa *skc_prot;
	struct possible_net_t___sa skc_net;
	struct in6_addr___sa skc_v6_daddr;
	struct in6_addr___sa skc_v6_rcv_saddr;
	atomic64_t___sa skc_cookie;
	unsigned long skc_flags;
	struct refcount_struct___sa skc_refcnt;
};

struct page_counter___sa {
	atomic64_t___sa usage;
	unsigned long max;
	struct page_counter___sa *parent;
};

struct mem_cgroup___sa {
	struct page_counter___sa tcpmem; /* of version 1 */
	bool tcpmem_active;
};

struct wait_queue_entry___sa {
	void *func;
	struct list_head___sa entry;
};

struct wait_queue_head___sa {
	struct list_head___sa head;
};

struct socket_wq___sa {
	struct wait_queue_head___sa wait;
};

struct socket_lock_t___sa {
	int owned;
};

struct kernfs_node___sa {
	__u64 id;
};

struct cgroup_subsys_state___sa {
	struct cgroup___sa *cgroup;
	struct cgroup_subsys_state___sa *parent;
};

struct cgroup___sa {
	struct cgroup_subsys_state___sa self;
	struct kernfs_node___sa *kn;
};

struct sock_cgroup_data___sa {
	struct cgroup___sa *cgroup;
};

struct sock___sa {
	struct sock_common___sa __sk_common;
	struct sock_cgroup_data___sa sk_cgrp_data;
	struct socket_lock_t___sa sk_lock;
	int sk_peek_off;
	int sk_rcvbuf;
	struct mem_cgroup___sa *sk_memcg;
	void *sk_data_ready;
	int sk_rcvlowat;
	int sk_err;
	struct socket_wq___sa *sk_wq;
	struct socket___sa *sk_socket;
	__u32 sk_tsflags;
	unsigned long sk_max_pacing_rate;
	__u16 sk_protocol;
	__u16 sk_type;
	__u8 sk_kern_sock : 1;
	__u8 sk_shutdown;
	void *sk_user_data;
	unsigned long sk_ino;
};

struct inet_sock___sa {
	struct sock___sa sk;
};

struct inet_connection_sock___sa {
	struct inet_sock___sa icsk_inet;
	void *icsk_ulp_ops;
};

struct tcp_options_received___sa {
	__u16 wscale_ok : 1, snd_wscale : 4, rcv_wscale : 4;
};

struct tcp_sock___sa {
	struct inet_connection_sock___sa inet_conn;
	__u32 copied_seq;
	__u32 write_seq;
	__u32 rcv_nxt;
	__u32 snd_nxt;
	__u32 snd_una;
	__u64 bytes_acked;
	__u64 bytes_received;
	__u8 repair : 1;
	__u8 recvmsg_inq : 1;
	__u8 syn_data : 1;
	__u8 syn_fastopen : 1;
	bool is_mptcp;
	__u8 bpf_sock_ops_cb_flags;
	struct tcp_options_received___sa rx_opt;
};

struct fdtable___sa {
	unsigned int max_fds;
	struct file___sa **fd;
};

struct files_struct___sa {
	struct fdtable___sa *fdt;
};

struct task_struct___sa {
	unsigned int __state;
	unsigned int flags;
	__s32 pid;
	__s32 tgid;
	__u64 start_boottime;
	struct task_struct___sa *group_leader;
	struct files_struct___sa *files;
};

enum sock_flags___sa {
	SOCK_RCVTSTAMP___sa,
	SOCK_RCVTSTAMPNS___sa,
	SOCK_ZEROCOPY___sa,
	SOCK_TIMESTAMPING_RX_SOFTWARE___sa,
};

#pragma clang attribute pop

/* include/net/tcp_states.h, include/uapi/linux/bpf.h BPF_TCP_* */
#define SA_TCP_ESTABLISHED 1
#define SA_TCP_SYN_SENT 2
#define SA_TCP_FIN_WAIT1 4
#define SA_TCP_FIN_WAIT2 5
#define SA_TCP_CLOSE 7
#define SA_TCP_CLOSE_WAIT 8
#define SA_TCP_LISTEN 10

/* include/linux/sched.h: a bit, TASK_FREEZABLE may come with it */
#define SA_TASK_INTERRUPTIBLE 1
#define SA_TASK_DEAD 0x80

#define SA_O_NONBLOCK 04000
#define SA_S_IFMT 0170000
#define SA_S_IFSOCK 0140000
#define SA_SEND_SHUTDOWN 2
#define SA_RCV_SHUTDOWN 1
/* sk_user_data keeps flags in its low bits; this one says it is a psock. */
#define SA_USER_DATA_PTRMASK (~7UL)
#define SA_USER_DATA_PSOCK 4UL

/*
 * What recv(2) and send(2) sleep with, kernel/sched/wait.c; poll(2) has its own. 0 where
 * the kernel shows no addresses. libbpf finds it, unless an object has it from its loader.
 */
#ifndef SA_WOKEN
extern const void woken_wake_function __ksym __weak;
#define SA_WOKEN ((__u64)&woken_wake_function)
#endif

extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

/*
 * A foreign kernel object as a typed pointer whose loads are checked by the
 * exception table: a freed or wrong one reads as garbage or 0, never faults.
 * Before 6.2 it is a number, so nothing but sa_load() may follow it.
 */
#define sa_cast(addr, type)                                                                        \
	((struct type *)(bpf_ksym_exists(bpf_rdonly_cast) ?                                        \
				 bpf_rdonly_cast((const void *)(addr),                             \
						 bpf_core_type_id_kernel(struct type)) :           \
				 (void *)(addr)))

/*
 * A field of what sa_cast() gave; before 6.2 a helper reads it, in the size that is
 * declared here. sa_load_bits() reads it in the size that the kernel has.
 */
#define sa_load(obj, field) \
	(bpf_ksym_exists(bpf_rdonly_cast) ? (obj)->field : BPF_CORE_READ(obj, field))
#define sa_load_bits(obj, field)                                            \
	(bpf_ksym_exists(bpf_rdonly_cast) ? BPF_CORE_READ_BITFIELD(obj, field) : \
					    BPF_CORE_READ_BITFIELD_PROBED(obj, field))

/*
 * The socket that an sk_msg program runs for. It is a full TCP socket, so the helper
 * has nothing to find out, and its call is a tenth of the verdict.
 */
static __always_inline const struct tcp_sock___sa *sa_sender(struct bpf_sock *sk)
{
	if (bpf_ksym_exists(bpf_rdonly_cast))
		return bpf_rdonly_cast(sk, bpf_core_type_id_kernel(struct tcp_sock___sa));
	return (const void *)bpf_skc_to_tcp_sock(sk);
}

/* A program's own socket for sa_cast(): its pointer is no number to begin with. */
static __always_inline __u64 sa_address(struct bpf_sock *sk)
{
	__u64 address = (__u64)sk;

	if (!bpf_ksym_exists(bpf_rdonly_cast))
		bpf_probe_read_kernel(&address, sizeof(address), &sk);
	return address;
}

static __always_inline __u64 sa_cookie_of(const struct sock___sa *sk)
{
	return sa_load(sk, __sk_common.skc_cookie.counter);
}

/* A word somewhere: before 6.16 the cast takes only structs; this one begins with
 * a number.
 */
static __always_inline __u64 sa_word(__u64 addr)
{
	const struct timespec64___sa *word = sa_cast(addr, timespec64___sa);

	return sa_load(word, tv_sec);
}

#endif
