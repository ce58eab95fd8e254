// SPDX-License-Identifier: GPL-2.0
/*
 * Direct input: from the bound NIC to TCP.
 *
 * The NIC's receive handler sees a packet after XDP, taps of all protocols, tc and netfilter's hook
 * of the device, and before IP.  One that belongs to an attached connection gets from here to TCP,
 * as IP's early demux and local delivery would bring it there, where nothing between wants to see
 * it.  Any other packet is passed on as it came, and the kernel looks at it as ever: nothing is
 * dropped or answered here, so all that is wrong with a packet is found and counted by IP.
 *
 * TCP itself looks at IPsec's policies, the least TTL, signatures, the socket's filter, programs of
 * its cgroup, security modules, and the TCP header with its checksum.  None of it is passed by.
 *
 * When the way changes, a packet that NAPI gathered with others for IP may come after a later one
 * that TCP got from here.  TCP puts them in order, as it does when a network has swapped them.
 */
#include <linux/inetdevice.h>
#include <linux/netfilter.h>
#include <net/inet6_hashtables.h>
#include <net/inet_hashtables.h>
#include <net/ip.h>
#include <net/ip6_route.h>
#include <net/protocol.h>
#include <net/raw.h>
#include <net/rawv6.h>
#include <net/tcp.h>

#include "tcp/attach.h"
#include "tcp/conn.h"
#include "tcp/direct_rx.h"

/* -- when ----------------------------------------------------------------------------------- */

/*
 * May the packets of one address family pass IP by?  @hooks are netfilter's, @raw has the family's
 * raw sockets.  All is read for each packet, where the kernel reads it: nothing has to be told.
 */
static __always_inline bool sm_direct_allowed(const struct net *net,
					      struct nf_hook_entries __rcu *const *hooks,
					      const struct raw_hashinfo *raw)
{
	/* Netfilter sees packets before routing, and when they are to be delivered. */
	if (rcu_access_pointer(hooks[NF_INET_PRE_ROUTING]) ||
	    rcu_access_pointer(hooks[NF_INET_LOCAL_IN]))
		return false;
	/*
	 * Taps of one protocol come after the receive handler.  Which protocol a packet socket has
	 * only its own code knows, so any counts.  It is in this list before socket() returns.
	 */
	if (!hlist_empty(&net->packet.sklist))
		return false;
	/* Raw sockets get a copy of what is delivered.  Those of other protocols may count, too. */
	if (!hlist_empty(&raw->ht[raw_hashfunc(net, IPPROTO_TCP)]))
		return false;
	/* The administrator wants a look-up of the route for each packet. */
	return READ_ONCE(net->ipv4.sysctl_ip_early_demux) &&
	       READ_ONCE(net->ipv4.sysctl_tcp_early_demux);
}

/*
 * Is it an ordinary packet for this host?  It may be padded, not linear, or several that GRO put
 * together.  A socket that it has is its sender's, on a virtual wire: IP lets go of it, as we do.
 */
static bool sm_direct_plain(struct sk_buff *skb)
{
	const struct net_device *dev = skb->dev;

	/* Others are another host's, or sent to all, which IP drops, forwards or counts apart. */
	if (skb->pkt_type != PACKET_HOST)
		return false;
	/* With the tag of a VLAN that has no device it is for another host; a priority's goes. */
	if (skb_vlan_tag_present(skb))
		return false;
	/* A tap still has it: IP makes a copy. */
	if (skb_shared(skb))
		return false;
	/* Something before has chosen a route or a tunnel for it, or a socket (BPF). */
	if (skb_dst(skb) || skb_sk_is_prefetched(skb))
		return false;
	/* An L3 domain routes it. */
	return !netif_is_l3_slave(dev) && !netif_is_l3_master(dev) && !netif_has_l3_rx_handler(dev);
}

/*
 * The route that IP would give to a packet of this socket, as early demux does; NULL if it would
 * have to look for one, or if the route is not that of local delivery, @input.  It was made for a
 * packet of the same addresses, which IP let in by the same device: as in early demux, that is the
 * check of the addresses, of martian ones and of the reverse path.  Caller is an RCU reader.
 */
static __always_inline struct dst_entry *sm_direct_route(const struct sock *sk,
							 const struct sk_buff *skb,
							 int (*input)(struct sk_buff *skb))
{
	struct dst_entry *dst = rcu_dereference(sk->sk_rx_dst);

	if (!dst || sk->sk_rx_dst_ifindex != skb->skb_iif || READ_ONCE(dst->input) != input)
		return NULL;
#ifdef CONFIG_IP_ROUTE_CLASSID
	if (dst->tclassid)
		return NULL;		/* IP accounts the packet to a realm */
#endif
	return dst_check(dst, sk->sk_rx_dst_cookie);
}

/* The connection of a socket that was looked up, or NULL.  Caller is an RCU reader. */
static struct sm_conn *sm_direct_conn(struct sock *sk)
{
	return sk_fullsock(sk) ? sm_conn_of_unlocked(sk) : NULL;
}

/* How many packets the network brought, for what IP counts. */
static unsigned int sm_direct_segs(const struct sk_buff *skb)
{
	return max_t(unsigned short, 1, skb_shinfo(skb)->gso_segs);
}

/* -- how ------------------------------------------------------------------------------------ */

/*
 * The rest is TCP's: the packet gets the socket, with the caller's reference, and the route, and
 * begins with its TCP header.  Caller is an RCU reader.
 */
static __always_inline void sm_direct_prepare(struct sk_buff *skb, struct sock *sk,
					      struct dst_entry *dst, unsigned int header)
{
	skb_orphan(skb);
	skb->sk = sk;
	skb->destructor = sock_edemux;
	skb_dst_set_noref(skb, dst);
	skb_clear_delivery_time(skb);
	skb_set_transport_header(skb, header);
	__skb_pull(skb, header);
}

/* As ip_rcv() to ip_protocol_deliver_rcu(); false, with the packet as it was, if these must. */
static bool sm_direct_rcv4(struct sk_buff *skb)
{
	struct net *net = dev_net(skb->dev);
	unsigned int len, received = skb->len;
	struct in_device *in_dev;
	const struct tcphdr *th;
	const struct iphdr *iph;
	struct dst_entry *dst;
	struct sm_conn *conn;
	struct sock *sk;

	if (!sm_direct_allowed(net, net->nf.hooks_ipv4, &raw_v4_hashinfo) ||
	    !pskb_may_pull(skb, sizeof(*iph) + sizeof(*th)))
		return false;
	iph = ip_hdr(skb);
	th = (const struct tcphdr *)(iph + 1);
	len = ntohs(iph->tot_len);
	/*
	 * IP answers for what is wrong, puts fragments together, and looks at options.  The length
	 * of packets that GRO made larger than IPv4's largest is 0.
	 */
	if (iph->version != 4 || iph->ihl != 5 || iph->protocol != IPPROTO_TCP ||
	    ip_is_fragment(iph) || len < sizeof(*iph) + sizeof(*th) || len > received)
		return false;

	sk = __inet_lookup_established(net, net->ipv4.tcp_death_row.hashinfo, iph->saddr,
				       th->source, iph->daddr, ntohs(th->dest), skb->skb_iif, 0);
	if (!sk)
		return false;
	conn = sm_direct_conn(sk);
	if (!conn)
		goto pass;
	/* The last of these change the packet, as IP would, and come when all else is in order. */
	dst = sm_direct_route(sk, skb, ip_local_deliver);
	if (!dst || ((struct rtable *)dst)->rt_type != RTN_LOCAL || ip_fast_csum(iph, 5) ||
	    skb_orphan_frags_rx(skb, GFP_ATOMIC) || pskb_trim_rcsum(skb, len))
		goto pass;

	iph = ip_hdr(skb);
	memset(IPCB(skb), 0, sizeof(*IPCB(skb)));
	IPCB(skb)->iif = skb->skb_iif;
	/* TCP looks at this when it asks for IPsec's policies. */
	in_dev = __in_dev_get_rcu(skb->dev);
	if (in_dev && IN_DEV_ORCONF(in_dev, NOPOLICY))
		IPCB(skb)->flags |= IPSKB_NOPOLICY;
	__IP_UPD_PO_STATS(net, IPSTATS_MIB_IN, received);
	__IP_ADD_STATS(net, IPSTATS_MIB_NOECTPKTS + (iph->tos & INET_ECN_MASK),
		       sm_direct_segs(skb));
	sm_conn_count(conn, SM_DIRECT_RECEIVED, 1);
	sm_direct_prepare(skb, sk, dst, sizeof(*iph));
	/* TCP's result asks for no other protocol, ever. */
	rcu_dereference(inet_protos[IPPROTO_TCP])->handler(skb);
	__IP_INC_STATS(net, IPSTATS_MIB_INDELIVERS);
	return true;
pass:
	sock_gen_put(sk);
	return false;
}

#if IS_ENABLED(CONFIG_IPV6)
/* As ipv6_rcv() to ip6_protocol_deliver_rcu(). */
static bool sm_direct_rcv6(struct sk_buff *skb)
{
	struct net *net = dev_net(skb->dev);
	struct inet6_dev *idev, *dst_idev;
	unsigned int len, received = skb->len;
	const struct ipv6hdr *hdr;
	const struct tcphdr *th;
	struct dst_entry *dst;
	struct sm_conn *conn;
	struct sock *sk;

	idev = __in6_dev_get(skb->dev);
	if (!idev || READ_ONCE(idev->cnf.disable_ipv6))
		return false;
	if (!sm_direct_allowed(net, net->nf.hooks_ipv6, &raw_v6_hashinfo) ||
	    !pskb_may_pull(skb, sizeof(*hdr) + sizeof(*th)))
		return false;
	hdr = ipv6_hdr(skb);
	th = (const struct tcphdr *)(hdr + 1);
	len = ntohs(hdr->payload_len) + sizeof(*hdr);
	/* An extension header has another number.  The length of a jumbogram is 0. */
	if (hdr->version != 6 || hdr->nexthdr != IPPROTO_TCP ||
	    len < sizeof(*hdr) + sizeof(*th) || len > received)
		return false;
	/* IP lets none of these in, but NAT may have made such addresses after IP had looked. */
	if (ipv6_addr_loopback(&hdr->saddr) || ipv6_addr_loopback(&hdr->daddr))
		return false;

	sk = __inet6_lookup_established(net, net->ipv4.tcp_death_row.hashinfo, &hdr->saddr,
					th->source, &hdr->daddr, ntohs(th->dest), skb->skb_iif, 0);
	if (!sk)
		return false;
	conn = sm_direct_conn(sk);
	if (!conn)
		goto pass;
	dst = sm_direct_route(sk, skb, ip6_input);
	if (!dst || skb_orphan_frags_rx(skb, GFP_ATOMIC) || pskb_trim_rcsum(skb, len))
		goto pass;

	hdr = ipv6_hdr(skb);
	memset(IP6CB(skb), 0, sizeof(*IP6CB(skb)));
	IP6CB(skb)->iif = skb->dev->ifindex;
	IP6CB(skb)->nhoff = offsetof(struct ipv6hdr, nexthdr);
	__IP6_UPD_PO_STATS(net, idev, IPSTATS_MIB_IN, received);
	__IP6_ADD_STATS(net, idev, IPSTATS_MIB_NOECTPKTS + (ipv6_get_dsfield(hdr) & INET_ECN_MASK),
			sm_direct_segs(skb));
	dst_idev = ip6_dst_idev(dst);
	sm_conn_count(conn, SM_DIRECT_RECEIVED, 1);
	sm_direct_prepare(skb, sk, dst, sizeof(*hdr));
	skb_postpull_rcsum(skb, skb_network_header(skb), sizeof(*hdr));
	rcu_dereference(inet6_protos[IPPROTO_TCP])->handler(skb);
	__IP6_INC_STATS(net, dst_idev, IPSTATS_MIB_INDELIVERS);
	return true;
pass:
	sock_gen_put(sk);
	return false;
}
#endif

/* The NIC's receive handler.  BH is off, and the caller is an RCU reader. */
rx_handler_result_t sm_direct_receive(struct sk_buff **pskb)
{
	struct sk_buff *skb = *pskb;
	bool done = false;

	if (!sm_direct_plain(skb))
		return RX_HANDLER_PASS;
	if (skb->protocol == htons(ETH_P_IP))
		done = sm_direct_rcv4(skb);
#if IS_ENABLED(CONFIG_IPV6)
	else if (skb->protocol == htons(ETH_P_IPV6))
		done = sm_direct_rcv6(skb);
#endif
	return done ? RX_HANDLER_CONSUMED : RX_HANDLER_PASS;
}
