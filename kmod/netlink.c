// SPDX-License-Identifier: GPL-2.0
/*
 * The generic netlink family "stackmap": dumps of ports, rings and connections, to look at.
 * stackmap.yaml is its specification.
 *
 * A dump takes as many messages as it needs, and nothing is held between two of them: ports are
 * visited in the order of their mem_id, connections in that of their id, and the position is the
 * next number to look for.  An object that goes away meanwhile may be missing; each other object
 * comes exactly once.
 */
#include <linux/rcupdate.h>
#include <net/genetlink.h>
#include <net/inet_sock.h>

#include "core/port.h"
#include "netlink.h"
#include "tcp/conn.h"
#include "tcp/info.h"
#include "tcp/port.h"
#include "uapi/stackmap_netlink.h"

/* Where a dump goes on, in cb->ctx. */
struct sm_nl_pos {
	u32 mem_id;		/* this port, or the next one if it has gone */
	unsigned long item;	/* ring or connection of this port, or the next one */
};

static struct genl_family sm_genl_family;

/* The TCP port with the lowest mem_id from @mem_id on, with a reference; NULL if there is none. */
static struct sm_port *sm_nl_port(const struct net *net, u32 mem_id)
{
	struct sm_port *port;
	unsigned long index;

	mutex_lock(&sm_ports_lock);
	xa_for_each_start(&sm_ports, index, port, mem_id)
		if (port->net_cookie == net->net_cookie && port->ops == &sm_tcp_port_ops)
			break;
	/* Closing takes a port from the table, under the lock, before it drops its reference. */
	if (port)
		sm_port_get(port);
	mutex_unlock(&sm_ports_lock);
	return port;
}

/* The sums of so many ranges' counters. */
static int sm_nl_put_counters(struct sk_buff *skb, int type, struct sm_rings *const *rings, u32 n)
{
	static const u8 attr[SM_COUNTERS] = {
		[SM_RX_BYTES]		= SM_A_COUNTERS_RX_BYTES,
		[SM_TX_BYTES]		= SM_A_COUNTERS_TX_BYTES,
		[SM_RX_SLOTS]		= SM_A_COUNTERS_RX_SLOTS,
		[SM_SENT]		= SM_A_COUNTERS_SLOTS_SENT,
		[SM_RELEASED_ACK]	= SM_A_COUNTERS_SLOTS_RELEASED_ACK,
		[SM_RELEASED_RESET]	= SM_A_COUNTERS_SLOTS_RELEASED_RESET,
		[SM_AGAIN]		= SM_A_COUNTERS_SLOTS_AGAIN,
		[SM_BAD_SLOT]		= SM_A_COUNTERS_BAD_SLOTS,
		[SM_UNKNOWN_CONN]	= SM_A_COUNTERS_UNKNOWN_CONN,
		[SM_DEAD_CONN]		= SM_A_COUNTERS_DEAD_CONN,
		[SM_BAD_RING]		= SM_A_COUNTERS_BAD_RINGS,
		[SM_STALL]		= SM_A_COUNTERS_RING_STALLS,
		[SM_SYNCS]		= SM_A_COUNTERS_SYNCS,
		[SM_DIRECT]		= SM_A_COUNTERS_DIRECT_PACKETS,
		[SM_DIRECT_RECEIVED]	= SM_A_COUNTERS_DIRECT_RECEIVED,
		[SM_CONNECTIONS]	= SM_A_COUNTERS_CONNECTIONS,
	};
	struct nlattr *nest = nla_nest_start(skb, type);
	u32 i, k;

	if (!nest)
		return -EMSGSIZE;
	for (i = 0; i < SM_COUNTERS; i++) {
		s64 sum = 0;

		for (k = 0; k < n; k++)
			sum += atomic64_read(&rings[k]->counter[i]);
		if (nla_put_u64_64bit(skb, attr[i], sum, SM_A_COUNTERS_PAD))
			return -EMSGSIZE;
	}
	nla_nest_end(skb, nest);
	return 0;
}

/* The port's name follows that of its NIC. */
static int sm_nl_put_nic(struct sk_buff *skb, struct sm_nic *nic)
{
	char name[4 + IFNAMSIZ] = "tcp:";
	int ifindex;

	sm_nic_name(nic, name + 4, &ifindex);
	if (nla_put_string(skb, SM_A_PORT_NAME, name) ||
	    (ifindex && nla_put_u32(skb, SM_A_PORT_IFINDEX, ifindex)))
		return -EMSGSIZE;
	return 0;
}

static int sm_nl_put_port(struct sk_buff *skb, struct sm_port *port, struct user_namespace *user_ns)
{
	const struct sm_pool *pool = &port->pool;

	if (nla_put_u32(skb, SM_A_PORT_MEM_ID, port->mem_id) ||
	    sm_nl_put_nic(skb, sm_tcp_port(port)->nic) ||
	    nla_put_u32(skb, SM_A_PORT_PID, pid_vnr(port->pid)) ||
	    nla_put_u32(skb, SM_A_PORT_UID, from_kuid_munged(user_ns, port->uid)) ||
	    nla_put_u32(skb, SM_A_PORT_RINGS, port->nrings) ||
	    nla_put_u32(skb, SM_A_PORT_TX_SLOTS, port->tx[0].n) ||
	    nla_put_u32(skb, SM_A_PORT_RX_SLOTS, port->rx[0].n) ||
	    nla_put_u32(skb, SM_A_PORT_BUFS, pool->nbufs - SM_FIRST_BUF) ||
	    nla_put_u32(skb, SM_A_PORT_BUFS_FREE, READ_ONCE(pool->nfree)) ||
	    nla_put_u32(skb, SM_A_PORT_BUFS_PINNED, atomic_read(&pool->npinned)) ||
	    nla_put_u32(skb, SM_A_PORT_CONNECTIONS_MAX, sm_tcp_port(port)->infos.n))
		return -EMSGSIZE;
	return sm_nl_put_counters(skb, SM_A_PORT_COUNTERS, port->rings, port->nrings);
}

static int sm_nl_put_ring(struct sk_buff *skb, struct sm_rings *rings)
{
	const struct sm_rxring *rx = rings->rx;
	u32 filled = sm_distance(READ_ONCE(rx->head), READ_ONCE(rx->fill), rx->n);
	int cpu = READ_ONCE(rings->cpu);

	if (nla_put_u32(skb, SM_A_RING_MEM_ID, rings->port->mem_id) ||
	    nla_put_u32(skb, SM_A_RING_INDEX, rings->index) ||
	    (cpu >= 0 && nla_put_u32(skb, SM_A_RING_CPU, cpu)) ||
	    nla_put_u32(skb, SM_A_RING_RX_FILLED, filled) ||
	    (READ_ONCE(rings->tx->stalled) && nla_put_flag(skb, SM_A_RING_TX_STALLED)))
		return -EMSGSIZE;
	return sm_nl_put_counters(skb, SM_A_RING_COUNTERS, &rings, 1);
}

static int sm_nl_put_addresses(struct sk_buff *skb, const struct sock *sk)
{
	size_t size = sizeof(__be32);
	const void *local, *peer;

	local = &sk->sk_rcv_saddr;
	peer = &sk->sk_daddr;
#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family == AF_INET6) {
		local = &sk->sk_v6_rcv_saddr;
		peer = &sk->sk_v6_daddr;
		size = sizeof(struct in6_addr);
	}
#endif
	if (nla_put_u16(skb, SM_A_CONN_FAMILY, sk->sk_family) ||
	    nla_put(skb, SM_A_CONN_LOCAL_ADDR, size, local) ||
	    nla_put_be16(skb, SM_A_CONN_LOCAL_PORT, inet_sk(sk)->inet_sport) ||
	    nla_put(skb, SM_A_CONN_PEER_ADDR, size, peer) ||
	    nla_put_be16(skb, SM_A_CONN_PEER_PORT, sk->sk_dport))
		return -EMSGSIZE;
	return 0;
}

/* The caller holds the connection, and with it its socket and its port.  A look needs no lock. */
static int sm_nl_put_conn(struct sk_buff *skb, struct sm_conn *conn)
{
	struct sock *sk = conn->sk;
	u32 flags = 0;

	if (test_bit(SM_CONN_PAUSED, &conn->bits))
		flags |= SM_CONN_FLAGS_PAUSED;
	if (test_bit(SM_CONN_BLOCKED, &conn->bits))
		flags |= SM_CONN_FLAGS_BLOCKED;
	if (!READ_ONCE(conn->attached))
		flags |= SM_CONN_FLAGS_LEAVING;

	if (nla_put_u32(skb, SM_A_CONN_MEM_ID, conn->port->base.mem_id) ||
	    nla_put_u32(skb, SM_A_CONN_ID, conn->id) ||
	    nla_put_u32(skb, SM_A_CONN_RING, conn->pair->rings.index) ||
	    nla_put_u32(skb, SM_A_CONN_INODE, sock_i_ino(sk)) ||
	    nla_put_u8(skb, SM_A_CONN_STATE, inet_sk_state_load(sk)) ||
	    sm_nl_put_addresses(skb, sk) ||
	    nla_put_u32(skb, SM_A_CONN_BUFS_PINNED, atomic_read(&conn->pinned)) ||
	    nla_put_u32(skb, SM_A_CONN_BYTES_PINNED, atomic_read(&conn->pinned_bytes)) ||
	    nla_put_u32(skb, SM_A_CONN_REST, READ_ONCE(conn->partial.len)) ||
	    nla_put_u32(skb, SM_A_CONN_FLAGS, flags))
		return -EMSGSIZE;
	return 0;
}

static void *sm_nl_begin(struct sk_buff *skb, struct netlink_callback *cb, u8 cmd)
{
	return genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq, &sm_genl_family,
			   NLM_F_MULTI, cmd);
}

static int sm_nl_end(struct sk_buff *skb, void *msg, int err)
{
	if (err)
		genlmsg_cancel(skb, msg);
	else
		genlmsg_end(skb, msg);
	return err;
}

static int sm_nl_dump_port(struct sk_buff *skb, struct netlink_callback *cb, struct sm_port *port)
{
	void *msg = sm_nl_begin(skb, cb, SM_CMD_PORT_GET);

	if (!msg)
		return -EMSGSIZE;
	return sm_nl_end(skb, msg, sm_nl_put_port(skb, port, sk_user_ns(NETLINK_CB(cb->skb).sk)));
}

static int sm_nl_dump_rings(struct sk_buff *skb, struct netlink_callback *cb, struct sm_port *port)
{
	struct sm_nl_pos *pos = (void *)cb->ctx;
	void *msg;
	int err;

	for (; pos->item < port->nrings; pos->item++) {
		msg = sm_nl_begin(skb, cb, SM_CMD_RING_GET);
		if (!msg)
			return -EMSGSIZE;
		err = sm_nl_end(skb, msg, sm_nl_put_ring(skb, port->rings[pos->item]));
		if (err)
			return err;
	}
	return 0;
}

/* The connection with the lowest id from *@id on, with a reference. */
static struct sm_conn *sm_nl_conn(struct sm_port *port, unsigned long *id)
{
	struct sm_conn *conn;

	rcu_read_lock();
	do {
		conn = xa_find(&sm_tcp_port(port)->conns, id, U32_MAX, XA_PRESENT);
		/* One without references is leaving the table just now. */
	} while (conn && !refcount_inc_not_zero(&conn->refs) && ++*id);
	rcu_read_unlock();
	return conn;
}

static int sm_nl_dump_conns(struct sk_buff *skb, struct netlink_callback *cb, struct sm_port *port)
{
	struct sm_nl_pos *pos = (void *)cb->ctx;
	struct sm_conn *conn;
	void *msg;
	int err;

	for (; (conn = sm_nl_conn(port, &pos->item)); pos->item++) {
		msg = sm_nl_begin(skb, cb, SM_CMD_CONN_GET);
		err = msg ? sm_nl_end(skb, msg, sm_nl_put_conn(skb, conn)) : -EMSGSIZE;
		sm_conn_put(conn);
		if (err)
			return err;
	}
	return 0;
}

/* Fill one message of the dump: @dump puts as much of one port as fits, from the position on. */
static int sm_nl_dump(struct sk_buff *skb, struct netlink_callback *cb,
		      int (*dump)(struct sk_buff *skb, struct netlink_callback *cb,
				  struct sm_port *port))
{
	struct sm_nl_pos *pos = (void *)cb->ctx;
	struct sm_port *port;
	int err = 0;

	BUILD_BUG_ON(sizeof(*pos) > sizeof(cb->ctx));
	while (!err && (port = sm_nl_port(sock_net(cb->skb->sk), pos->mem_id))) {
		if (port->mem_id != pos->mem_id) {
			pos->mem_id = port->mem_id;
			pos->item = 0;
		}
		err = dump(skb, cb, port);
		if (!err) {
			pos->mem_id++;
			pos->item = 0;
		}
		sm_port_put(port);
	}
	/* Full is an error only where not even one item fits. */
	return skb->len ?: err;
}

static int sm_nl_port_get(struct sk_buff *skb, struct netlink_callback *cb)
{
	return sm_nl_dump(skb, cb, sm_nl_dump_port);
}

static int sm_nl_ring_get(struct sk_buff *skb, struct netlink_callback *cb)
{
	return sm_nl_dump(skb, cb, sm_nl_dump_rings);
}

static int sm_nl_conn_get(struct sk_buff *skb, struct netlink_callback *cb)
{
	return sm_nl_dump(skb, cb, sm_nl_dump_conns);
}

/* Without GENL_ADMIN_PERM: their contents are public, see stackmap.yaml. */
static const struct genl_ops sm_genl_ops[] = {
	{ .cmd = SM_CMD_PORT_GET, .dumpit = sm_nl_port_get },
	{ .cmd = SM_CMD_RING_GET, .dumpit = sm_nl_ring_get },
	{ .cmd = SM_CMD_CONN_GET, .dumpit = sm_nl_conn_get },
};

static struct genl_family sm_genl_family __ro_after_init = {
	.name		= SM_GENL_NAME,
	.version	= SM_GENL_VERSION,
	.netnsok	= true,
	.parallel_ops	= true,		/* all they need is sm_ports_lock */
	.module		= THIS_MODULE,
	.ops		= sm_genl_ops,
	.n_ops		= ARRAY_SIZE(sm_genl_ops),
};

int __init sm_netlink_register(void)
{
	return genl_register_family(&sm_genl_family);
}

void sm_netlink_unregister(void)
{
	genl_unregister_family(&sm_genl_family);
}
