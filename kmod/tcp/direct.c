// SPDX-License-Identifier: GPL-2.0
/*
 * Direct output: from TCP to the queues of the bound NIC.
 *
 * TCP gives each packet to the queue_xmit() of its socket's address family.  That of an attached
 * socket is ours.  It writes the IP and the Ethernet header, and gives the packet to the NIC's
 * queue, as IP and the neighbour would, where these would do nothing else.  Where there is more to
 * do (for netfilter, a program of a cgroup, a transformation, IP options, an unknown neighbour, a
 * packet too large), the packet goes the kernel's way, and the next one is looked at again.  Both
 * ways end in the same queue, so the packets of a connection keep their order.
 */
#include <linux/bpf-cgroup.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <net/arp.h>
#include <net/inet6_connection_sock.h>
#include <net/ip.h>
#include <net/ip6_route.h>
#include <net/l3mdev.h>
#include <net/ndisc.h>
#include <net/tcp.h>

#include "compat.h"
#include "nic/qdisc.h"
#include "tcp/attach.h"
#include "tcp/conn.h"
#include "tcp/direct.h"
#include "tcp/info.h"

/* -- when ----------------------------------------------------------------------------------- */

/* Would netfilter look at the packet?  @hooks are its family's.  Caller is an RCU reader. */
static bool sm_direct_hooked(struct nf_hook_entries __rcu *const *hooks, const struct sk_buff *skb)
{
	const struct nf_hook_entries *post;

	if (rcu_access_pointer(hooks[NF_INET_LOCAL_OUT]))
		return true;
	post = rcu_dereference(hooks[NF_INET_POST_ROUTING]);
	if (!post)
		return false;
	/*
	 * AppArmor has a hook in each namespace, which lets packets without a mark pass.  Its
	 * priority tells it, and that it has no private data, as nftables' and iptables' have.
	 */
	return post->num_hook_entries != 1 || post->hooks[0].priv ||
	       nf_hook_entries_get_hook_ops(post)[0]->priority != NF_IP_PRI_SELINUX_FIRST ||
	       sm_skb_secmark(skb);
}

/* Is there a program for what the socket's cgroup sends? */
static bool sm_direct_filtered(struct sock *sk)
{
#ifdef CONFIG_CGROUP_BPF
	return cgroup_bpf_enabled(CGROUP_INET_EGRESS) &&
	       cgroup_bpf_sock_enabled(sk, CGROUP_INET_EGRESS);
#else
	return false;
#endif
}

/*
 * The device that @dst leads to, if it is the bound NIC, and IP would only add @header bytes to the
 * packet; else NULL.  Caller is an RCU reader.  In line, as sm_direct_send(), for each packet.
 */
static __always_inline struct net_device *
sm_direct_dev(const struct sm_conn *conn, const struct sk_buff *skb, const struct dst_entry *dst,
	      size_t header)
{
	struct net_device *dev = sm_nic_dev(conn->port->nic);

	if (!dev || dst->dev != dev || dst->lwtstate || dst_xfrm(dst) || netif_is_l3_slave(dev))
		return NULL;
	if (skb_is_gso(skb) || skb->len + header > dst_mtu(dst) ||
	    skb_headroom(skb) < header + HH_DATA_MOD)
		return NULL;
	return dev;
}

/* May the Ethernet header that the neighbour keeps be used as it is? */
static bool sm_direct_known(const struct neighbour *neigh)
{
	return neigh && READ_ONCE(neigh->nud_state) & NUD_CONNECTED &&
	       READ_ONCE(neigh->hh.hh_len) == ETH_HLEN;
}

/* -- how ------------------------------------------------------------------------------------ */

/* The packet has its IP header.  Caller is an RCU reader, and found all of the above true. */
static __always_inline int sm_direct_send(struct sm_conn *conn, struct sk_buff *skb,
					  struct dst_entry *dst, struct neighbour *neigh)
{
	const struct hh_cache *hh = &neigh->hh;
	const struct sock *sk = conn->sk;
	unsigned int seq;

	skb->priority = READ_ONCE(sk->sk_priority);
	skb->mark = READ_ONCE(sk->sk_mark);
	skb->dev = dst->dev;
	skb_dst_set_noref(skb, dst);
	sock_confirm_neigh(skb, neigh);
	do {
		seq = read_seqbegin(&hh->hh_lock);
		memcpy(skb->data - HH_DATA_MOD, hh->hh_data, HH_DATA_MOD);
	} while (read_seqretry(&hh->hh_lock, seq));
	__skb_push(skb, ETH_HLEN);
	sm_conn_count(conn, SM_DIRECT, 1);
	sm_info_update_later(conn);	/* the qdisc may not ask for its connection */
	return sm_nic_xmit(skb, &conn->pair->plug);
}

/* As ip_queue_xmit() to ip_finish_output2(); false, with the packet as it was, if these must. */
static bool sm_direct_ip4(struct sm_conn *conn, struct sk_buff *skb, const struct flowi4 *fl4,
			  int *err)
{
	struct sock *sk = conn->sk;
	struct inet_sock *inet = inet_sk(sk);
	struct net *net = sock_net(sk);
	struct neighbour *neigh;
	struct net_device *dev;
	struct ip_options_rcu *opt;
	struct rtable *rt;
	struct iphdr *iph;
	int ttl;

	rt = (struct rtable *)__sk_dst_check(sk, 0);
	opt = rcu_dereference(inet->inet_opt);
	if (!rt || rt->dst.output != ip_output || rt->rt_gw_family == AF_INET6 ||
	    (opt && opt->opt.optlen))
		return false;
	dev = sm_direct_dev(conn, skb, &rt->dst, sizeof(*iph));
	if (!dev || sm_direct_hooked(net->nf.hooks_ipv4, skb) || sm_direct_filtered(sk))
		return false;
	neigh = __ipv4_neigh_lookup_noref(dev, (__force u32)rt_nexthop(rt, fl4->daddr));
	if (!sm_direct_known(neigh))
		return false;

	__skb_push(skb, sizeof(*iph));
	skb_reset_network_header(skb);
	iph = ip_hdr(skb);
	*(__be16 *)iph = htons(4 << 12 | 5 << 8 | READ_ONCE(inet->tos));
	iph->frag_off = ip_dont_fragment(sk, &rt->dst) && !skb->ignore_df ? htons(IP_DF) : 0;
	ttl = READ_ONCE(inet->uc_ttl);
	if (ttl < 0)
		ttl = dst_metric_raw(&rt->dst, RTAX_HOPLIMIT) ?:
		      READ_ONCE(net->ipv4.sysctl_ip_default_ttl);
	iph->ttl = ttl;
	iph->protocol = IPPROTO_TCP;
	iph->saddr = fl4->saddr;
	iph->daddr = fl4->daddr;
	ip_select_ident_segs(net, skb, sk, 1);
	iph_set_totlen(iph, skb->len);
	iph->check = 0;
	iph->check = ip_fast_csum(iph, iph->ihl);
	skb->protocol = htons(ETH_P_IP);
	sm_count_ip4_out(net, skb->len);
	*err = sm_direct_send(conn, skb, &rt->dst, neigh);
	return true;
}

/* queue_xmit().  The socket is locked. */
static int sm_direct_xmit4(struct sock *sk, struct sk_buff *skb, struct flowi *fl)
{
	struct sm_conn *conn = sm_conn_of_locked(sk);
	bool done;
	int err;

	rcu_read_lock();
	done = conn && sm_direct_ip4(conn, skb, &fl->u.ip4, &err);
	rcu_read_unlock();
	return done ? err : ip_queue_xmit(sk, skb, fl);
}

#if IS_ENABLED(CONFIG_IPV6)
/* As inet6_csk_xmit() to ip6_finish_output2(). */
static bool sm_direct_ip6(struct sm_conn *conn, struct sk_buff *skb, int *err)
{
	struct sock *sk = conn->sk;
	struct ipv6_pinfo *np = inet6_sk(sk);
	struct net *net = sock_net(sk);
	struct neighbour *neigh;
	struct inet6_dev *idev;
	struct net_device *dev;
	struct dst_entry *dst;
	struct ipv6hdr *hdr;
	int hops;

	dst = __sk_dst_check(sk, np->dst_cookie);
	if (!dst || dst->output != ip6_output || rcu_access_pointer(np->opt) || !skb->hash)
		return false;
	dev = sm_direct_dev(conn, skb, dst, sizeof(*hdr));
	if (!dev || sm_direct_hooked(net->nf.hooks_ipv6, skb) || sm_direct_filtered(sk))
		return false;
	idev = ip6_dst_idev(dst);
	if (!idev || READ_ONCE(idev->cnf.disable_ipv6))
		return false;
	neigh = __ipv6_neigh_lookup_noref(dev, rt6_nexthop((struct rt6_info *)dst,
							   &sk->sk_v6_daddr));
	if (!sm_direct_known(neigh))
		return false;

	__skb_push(skb, sizeof(*hdr));
	skb_reset_network_header(skb);
	hdr = ipv6_hdr(skb);
	/* With a hash the label needs no struct flowi6. */
	ip6_flow_hdr(hdr, np->tclass, ip6_make_flowlabel(net, skb, np->flow_label,
							 sm_autoflowlabel(net, sk), NULL));
	hdr->payload_len = htons(skb->len - sizeof(*hdr));
	hdr->nexthdr = IPPROTO_TCP;
	hops = sm_hop_limit(np);
	hdr->hop_limit = hops < 0 ? ip6_dst_hoplimit(dst) : hops;
	hdr->saddr = np->saddr;
	hdr->daddr = sk->sk_v6_daddr;
	skb->protocol = htons(ETH_P_IPV6);
	sm_count_ip6_out(net, idev, skb->len);
	*err = sm_direct_send(conn, skb, dst, neigh);
	return true;
}

static int sm_direct_xmit6(struct sock *sk, struct sk_buff *skb, struct flowi *fl)
{
	struct sm_conn *conn = sm_conn_of_locked(sk);
	bool done;
	int err;

	rcu_read_lock();
	done = conn && sm_direct_ip6(conn, skb, &err);
	rcu_read_unlock();
	return done ? err : inet6_csk_xmit(sk, skb, fl);
}
#endif

/* -- the socket's table --------------------------------------------------------------------- */

/* TCP's for one address family, made from that of the first such socket. */
struct sm_af_ops {
	const struct inet_connection_sock_af_ops *base;
	struct inet_connection_sock_af_ops ops;
};

static struct sm_af_ops sm_af_ops[3];	/* IPv4, IPv6, and IPv4 on IPv6's sockets */
static DEFINE_MUTEX(sm_af_ops_mutex);

/* Our copy of @base; NULL if it belongs to something else than plain TCP. */
static struct sm_af_ops *sm_af_ops_get(const struct inet_connection_sock_af_ops *base)
{
	int (*xmit)(struct sock *sk, struct sk_buff *skb, struct flowi *fl) = NULL;
	struct sm_af_ops *found = NULL;
	int i;

	if (base->queue_xmit == ip_queue_xmit)
		xmit = sm_direct_xmit4;
#if IS_ENABLED(CONFIG_IPV6)
	if (base->queue_xmit == inet6_csk_xmit)
		xmit = sm_direct_xmit6;
#endif
	if (!xmit)
		return NULL;
	mutex_lock(&sm_af_ops_mutex);
	for (i = 0; i < ARRAY_SIZE(sm_af_ops) && !found; i++) {
		struct sm_af_ops *af = &sm_af_ops[i];

		if (!af->base) {
			af->ops = *base;
			af->ops.queue_xmit = xmit;
			af->base = base;
		}
		if (af->base == base)
			found = af;
	}
	mutex_unlock(&sm_af_ops_mutex);
	return found;
}

/* Our table that the socket has, or NULL.  The socket is locked. */
static struct sm_af_ops *sm_af_ops_of(const struct sock *sk)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(sm_af_ops); i++)
		if (inet_csk(sk)->icsk_af_ops == &sm_af_ops[i].ops)
			return &sm_af_ops[i];
	return NULL;
}

/*
 * Have the socket's packets come to us, until sm_direct_release().  Caller holds the socket lock;
 * setsockopt() reads the pointer without it.
 */
void sm_direct_attach(struct sock *sk)
{
	struct sm_af_ops *af;

	sock_owned_by_me(sk);
	af = sm_af_ops_of(sk) ?: sm_af_ops_get(inet_csk(sk)->icsk_af_ops);
	if (af)
		WRITE_ONCE(inet_csk(sk)->icsk_af_ops, &af->ops);
}

/* TCP destroys the socket.  It may have got another table since, by connect() to another family. */
void sm_direct_release(struct sock *sk)
{
	const struct sm_af_ops *af = sm_af_ops_of(sk);

	if (af)
		WRITE_ONCE(inet_csk(sk)->icsk_af_ops, af->base);
}
