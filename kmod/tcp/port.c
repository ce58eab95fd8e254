// SPDX-License-Identifier: GPL-2.0
/* The TCP port: "tcp:NIC".  Its connections are of the NIC's network namespace. */
#include <linux/file.h>
#include <linux/net.h>
#include <linux/nsproxy.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include "tcp/attach.h"
#include "tcp/conn.h"
#include "tcp/events.h"
#include "tcp/info.h"
#include "tcp/listener.h"
#include "tcp/port.h"
#include "tcp/tx.h"
#include "tcp/zerocopy.h"

/* -- a pair's connections ------------------------------------------------------------------- */

static void sm_tcp_rxsync(struct sm_rings *rings)
{
	sm_events_serve(sm_pair_of(rings));
}

static bool sm_tcp_ready(struct sm_rings *rings)
{
	return !list_empty_careful(&sm_pair_of(rings)->pending);
}

/* There is room again: connections that waited for it are served before others.  Any context. */
void sm_pair_unblock(struct sm_pair *pair)
{
	unsigned long irq;

	if (list_empty_careful(&pair->blocked))
		return;
	spin_lock_irqsave(&pair->pending_lock, irq);
	list_splice_init(&pair->blocked, &pair->pending);
	spin_unlock_irqrestore(&pair->pending_lock, irq);
}

static void sm_tcp_room(struct sm_rxring *rx)
{
	sm_pair_unblock(sm_pair_of(rx->rings));
}

/* -- commands ------------------------------------------------------------------------------- */

/* Is this a socket that the port may have? */
static int sm_tcp_check_socket(const struct sm_tcp_port *port, const struct socket *sock)
{
	const struct sock *sk = sock->sk;

	if (sk->sk_family != AF_INET && sk->sk_family != AF_INET6)
		return -EOPNOTSUPP;
	if (sk->sk_type != SOCK_STREAM || sk->sk_protocol != IPPROTO_TCP)
		return -EOPNOTSUPP;
	if (sock_net(sk)->net_cookie != port->base.net_cookie)
		return -EXDEV;
	return 0;
}

static int sm_tcp_attach(struct sm_tcp_port *port, struct sm_attach *req)
{
	struct socket *sock;
	int err;

	if (req->flags & ~SM_ATTACH_LISTENER || req->reserved ||
	    (req->ring >= port->base.nrings && req->ring != SM_RING_ANY))
		return -EINVAL;
	sock = sockfd_lookup(req->fd, &err);
	if (!sock)
		return err;
	/* The file may be another socket's, which has fallen back to this one (SMC). */
	if (!sock->file || file_inode(sock->file) != SOCK_INODE(sock))
		err = -EOPNOTSUPP;
	else
		err = sm_tcp_check_socket(port, sock);
	if (!err && req->flags & SM_ATTACH_LISTENER)
		err = sm_listener_attach(port, sock, req);
	else if (!err)
		err = sm_attach(port, sock, req);
	sockfd_put(sock);
	if (!err && !port->nic_used) {
		sm_nic_use(port->nic);
		port->nic_used = true;
	}
	return err;
}

static int sm_tcp_detach(struct sm_tcp_port *port, const struct sm_conn_ctl *req)
{
	int err;

	if (req->flags)
		return -EINVAL;
	err = sm_detach(port, req->id);
	return err == -ENOENT ? sm_listener_detach(port, req->id) : err;
}

static int sm_tcp_rxctl(struct sm_tcp_port *port, const struct sm_conn_ctl *req)
{
	struct sm_conn *conn;

	if (req->flags & ~SM_RX_PAUSE)
		return -EINVAL;
	conn = sm_conn_lookup(port, req->id);
	if (!conn)
		return -ENOENT;
	if (req->flags & SM_RX_PAUSE)
		set_bit(SM_CONN_PAUSED, &conn->bits);
	else if (test_and_clear_bit(SM_CONN_PAUSED, &conn->bits))
		sm_conn_schedule(conn);
	sm_conn_put(conn);
	return 0;
}

static int sm_tcp_credits(struct sm_tcp_port *port, const struct sm_credits *req)
{
	struct sm_conn *conn = sm_conn_lookup(port, req->id);
	u32 had;

	if (!conn)
		return -ENOENT;
	lock_sock(conn->sk);
	had = conn->credits;
	if (req->slots == SM_CREDITS_UNLIMITED || had == SM_CREDITS_UNLIMITED)
		conn->credits = req->slots;
	else
		conn->credits = min_t(u64, (u64)had + req->slots, SM_CREDITS_UNLIMITED - 1);
	release_sock(conn->sk);
	if (!had && req->slots)
		sm_conn_schedule(conn);
	sm_conn_put(conn);
	return 0;
}

static long sm_tcp_ioctl(struct sm_port *base, unsigned int cmd, void __user *arg)
{
	struct sm_tcp_port *port = sm_tcp_port(base);
	struct sm_attach attach;
	struct sm_credits credits;
	struct sm_conn_ctl conn;
	int err;

	lockdep_assert_held(&base->mutex);
	switch (cmd) {
	case SMIOC_ATTACH:
		if (copy_from_user(&attach, arg, sizeof(attach)))
			return -EFAULT;
		err = sm_tcp_attach(port, &attach);
		if (!err && copy_to_user(arg, &attach, sizeof(attach))) {
			conn = (struct sm_conn_ctl){ .id = attach.id };
			sm_tcp_detach(port, &conn);
			return -EFAULT;
		}
		return err;
	case SMIOC_DETACH:
		if (copy_from_user(&conn, arg, sizeof(conn)))
			return -EFAULT;
		return sm_tcp_detach(port, &conn);
	case SMIOC_RXCTL:
		if (copy_from_user(&conn, arg, sizeof(conn)))
			return -EFAULT;
		return sm_tcp_rxctl(port, &conn);
	case SMIOC_CREDITS:
		if (copy_from_user(&credits, arg, sizeof(credits)))
			return -EFAULT;
		return sm_tcp_credits(port, &credits);
	}
	return -ENOTTY;
}

/* -- life ----------------------------------------------------------------------------------- */

static int sm_tcp_open(struct sm_port *base, const char *name, struct sm_req_register *req,
		       struct sm_opt_limits *limits)
{
	struct sm_tcp_port *port = sm_tcp_port(base);
	struct net *net = current->nsproxy->net_ns;

	xa_init_flags(&port->conns, XA_FLAGS_ALLOC1 | XA_FLAGS_ACCOUNT);
	xa_init_flags(&port->listeners, XA_FLAGS_ACCOUNT);
	if (req->nr_tx_rings != req->nr_rx_rings) {
		limits->limit = SM_LIMIT_RINGS;
		return -EINVAL;
	}
	if (!limits->connections)
		limits->connections = SM_DEFAULT_CONNS;
	if (limits->connections > SM_MAX_CONNS) {
		limits->limit = SM_LIMIT_CONNECTIONS;
		return -ENOSPC;
	}
	port->nic = sm_nic_find(net, name);
	if (!port->nic)
		return -ENXIO;
	if (!sm_nic_may_open(port->nic, net))
		return -EPERM;
	base->extra_pages = sm_infos_size(limits->connections) >> PAGE_SHIFT;
	return 0;
}

static int sm_pair_init(struct sm_tcp_port *port, u32 index)
{
	struct sm_pair *pair = &port->pair[index];
	int err;

	pair->plug.nic = port->nic;
	sm_info_queue_init(&pair->info_queue);
	spin_lock_init(&pair->pending_lock);
	INIT_LIST_HEAD(&pair->pending);
	INIT_LIST_HEAD(&pair->blocked);
	err = sm_tx_init(pair);
	if (err)
		return err;
	pair->rings.tx = &port->base.tx[index];
	pair->rings.ntx = 1;
	pair->rings.rx = &port->base.rx[index];
	pair->rings.nrx = 1;
	return sm_port_set_range(&port->base, index, &pair->rings);
}

/* Undo sm_pair_init(), if it was called. */
static void sm_pair_destroy(struct sm_pair *pair)
{
	if (!pair->group)
		return;
	sm_tx_destroy(pair);
	sm_info_queue_destroy(&pair->info_queue);
}

static int sm_tcp_init(struct sm_port *base, const struct sm_opt_limits *limits)
{
	struct sm_tcp_port *port = sm_tcp_port(base);
	u32 i, pairs = base->ntx;
	int err;

	port->wq = alloc_workqueue("stackmap", WQ_UNBOUND, 1);
	if (!port->wq)
		return -ENOMEM;
	err = sm_infos_init(&port->infos, limits->connections);
	if (err)
		return err;
	port->waiting = kvmalloc_array(base->pool.nbufs, sizeof(*port->waiting), SM_GFP);
	port->pair = kvcalloc(pairs, sizeof(*port->pair), SM_GFP);
	if (!port->waiting || !port->pair)
		return -ENOMEM;
	for (i = 0; i < pairs; i++) {
		err = sm_pair_init(port, i);
		if (err)
			return err;
	}
	return 0;
}

static void sm_tcp_close(struct sm_port *base)
{
	struct sm_tcp_port *port = sm_tcp_port(base);

	sm_listener_detach_all(port);
	sm_detach_all(port);
	if (port->nic_used)
		sm_nic_unuse(port->nic);
}

static void sm_tcp_destroy(struct sm_port *base)
{
	struct sm_tcp_port *port = sm_tcp_port(base);
	u32 i;

	for (i = 0; port->pair && i < base->ntx; i++)
		sm_pair_destroy(&port->pair[i]);
	kvfree(port->pair);
	kvfree(port->waiting);
	sm_infos_destroy(&port->infos);
	if (port->wq)
		destroy_workqueue(port->wq);
	if (port->nic)
		sm_nic_put(port->nic);
	xa_destroy(&port->conns);
	xa_destroy(&port->listeners);
}

const struct sm_port_ops sm_tcp_port_ops = {
	.prefix		= "tcp:",
	.size		= sizeof(struct sm_tcp_port),
	.txsync		= sm_tx_sync,
	.rxsync		= sm_tcp_rxsync,
	.ready		= sm_tcp_ready,
	.room		= sm_tcp_room,
	.open		= sm_tcp_open,
	.init		= sm_tcp_init,
	.close		= sm_tcp_close,
	.destroy	= sm_tcp_destroy,
	.ioctl		= sm_tcp_ioctl,
	.mmap		= sm_info_mmap,
};
