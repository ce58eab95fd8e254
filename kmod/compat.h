/* SPDX-License-Identifier: GPL-2.0 */
/* Differences between the kernels that this module builds for: Debian's 6.1 and 6.12. */
#ifndef _SM_COMPAT_H
#define _SM_COMPAT_H

#include <linux/mm.h>
#include <linux/net.h>
#include <linux/netdevice.h>
#include <linux/skbuff.h>
#include <linux/version.h>
#include <net/ip.h>
#include <net/ipv6.h>

#if !IS_ENABLED(CONFIG_TLS_DEVICE)
#error "stackmap needs a kernel with CONFIG_TLS_DEVICE=y: TCP tells of ACKs only there"
#endif

#if !IS_ENABLED(CONFIG_NETFILTER)
#error "stackmap needs a kernel with CONFIG_NETFILTER=y, as distributions' are"
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags |= flags;
}

static inline void vm_flags_clear(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags &= ~flags;
}
#endif

/*
 * Before 6.10 struct ubuf_info carried the completion itself; since then it points to a table of
 * operations.  The arguments are the same.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 10, 0)
#define SM_DEFINE_UBUF_OPS(name, fn) \
	static void (*const name)(struct sk_buff *, struct ubuf_info *, bool) = fn

static inline void sm_ubuf_set_ops(struct ubuf_info *ubuf,
				   void (*complete)(struct sk_buff *, struct ubuf_info *, bool))
{
	ubuf->callback = complete;
}

#define sm_ubuf_init(ubuf, ops) sm_ubuf_set_ops(ubuf, ops)
#else
#define SM_DEFINE_UBUF_OPS(name, fn) \
	static const struct ubuf_info_ops name = { .complete = fn }

#define sm_ubuf_init(ubuf, table) ((ubuf)->ops = &(table))
#endif

/* Before 6.5 sendfile() and splice() reached a socket through proto_ops.sendpage. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
#define SM_HAS_SENDPAGE
#endif

/* proto_ops.accept: its arguments after the two sockets, and passing them on */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 10, 0)
#define SM_ACCEPT_PARAMS	int flags, bool kern
#define sm_pass_accept(ops, sock, newsock) ((ops)->accept(sock, newsock, flags, kern))
#else
#define SM_ACCEPT_PARAMS	struct proto_accept_arg *arg
#define sm_pass_accept(ops, sock, newsock) ((ops)->accept(sock, newsock, arg))
#endif

/* Has tc a filter, or BPF a program, for packets that leave the device? */
static inline bool sm_tc_egress(const struct net_device *dev)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
#ifdef CONFIG_NET_CLS_ACT
	return rcu_access_pointer(dev->miniq_egress);
#endif
#else
#ifdef CONFIG_NET_XGRESS
	return rcu_access_pointer(dev->tcx_egress);
#endif
#endif
	return false;
}

#if IS_ENABLED(CONFIG_IPV6)
/* The socket's hop limit, or -1 for the route's.  Since 6.8 it is written without a lock. */
static inline int sm_hop_limit(const struct ipv6_pinfo *np)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	return np->hop_limit;
#else
	return READ_ONCE(np->hop_limit);
#endif
}

/* Does a socket ask for a flow label that TCP's hash makes, or leave it to the namespace? */
static inline bool sm_autoflowlabel(struct net *net, const struct sock *sk)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	const struct ipv6_pinfo *np = inet6_sk(sk);

	return np->autoflowlabel_set ? np->autoflowlabel : ip6_default_np_autolabel(net);
#else
	return inet6_test_bit(AUTOFLOWLABEL_SET, sk) ? inet6_test_bit(AUTOFLOWLABEL, sk) :
						       ip6_default_np_autolabel(net);
#endif
}
#endif

/* IP's counters of a packet of @len bytes that goes out.  Since 6.8 there is one more. */
static inline void sm_count_ip4_out(struct net *net, unsigned int len)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	IP_INC_STATS(net, IPSTATS_MIB_OUTREQUESTS);
#endif
	IP_UPD_PO_STATS(net, IPSTATS_MIB_OUT, len);
}

#if IS_ENABLED(CONFIG_IPV6)
static inline void sm_count_ip6_out(struct net *net, struct inet6_dev *idev, unsigned int len)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	IP6_INC_STATS(net, idev, IPSTATS_MIB_OUTREQUESTS);
#endif
	IP6_UPD_PO_STATS(net, idev, IPSTATS_MIB_OUT, len);
}
#endif

/* The mark that a security module gave the packet. */
static inline u32 sm_skb_secmark(const struct sk_buff *skb)
{
#ifdef CONFIG_NETWORK_SECMARK
	return skb->secmark;
#else
	return 0;
#endif
}

#endif /* _SM_COMPAT_H */
