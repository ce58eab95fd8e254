/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The TCP port: slots carry payload of attached sockets.
 *
 * Objects, and the references that keep them:
 *
 *	sm_tcp_port	kref (of its sm_port) held by the file, by each ring's descriptor, by each
 *			connection and listener.  Its memory outlives the file until the last ACK,
 *			because batches hold connections, and until RCU readers that found one
 *			of its connections are done.
 *	sm_pair		a transmit and a receive ring, and their connections; part of its port
 *	sm_conn		one attached socket; refcount held by the port's table, by the pending
 *			list, by the queue of its pair's records, by queued work and by each batch.
 *			Holds its sock and its port.
 *	sm_listener	one attached listening socket; refcount held by the port's table and while
 *			in use.  Holds its sock and its port.
 *	sm_ulp		a socket's, from its first attach until TCP destroys it; holds each
 *			connection with bytes that are not acknowledged.
 *	sm_batch	buffers that TCP holds by reference; refcount is that of its ubuf_info.
 *
 * Locks, outermost first:
 *
 *	file->mutex		register
 *	port->base.mutex	attach, detach and close
 *	RTNL			the binding, its name and its users
 *	sm_nics_lock		a mutex: the list of NICs
 *	sm_ports_lock		a mutex: the table of ports
 *	pair->rings.mutex	user context: one sync or poll at a time
 *	lock_sock(conn->sk)	the socket, and the fields of struct sm_conn that say so; in
 *				softirq its spinlock alone, while no user owns the socket
 *	sm_family_ops_mutex	the tables of system calls that attached sockets have
 *	sm_af_ops_mutex		the tables of TCP's address families that they have
 *	rx->lock		the receive ring's kernel side (taken from softirq)
 *	pair->pending_lock	pair->pending and pair->blocked (any context)
 *	pool->lock		free list, shared buffers (any context)
 */
#ifndef _SM_TCP_PORT_H
#define _SM_TCP_PORT_H

#include "core/port.h"
#include "core/rings.h"
#include "nic/qdisc.h"
#include "tcp/info.h"

#define SM_PAIR_KNOWN	256

struct sm_conn;
struct sm_group;
struct sm_waiting;

struct sm_pair {
	struct sm_rings rings;		/* one transmit and one receive ring */
	struct sm_plug plug;
	struct sm_info_queue info_queue;

	/* of the transmit sync under way; guarded by rings.mutex */
	struct sm_group *group;		/* scratch */
	u32 sync_seq;			/* numbers transmit syncs, for conn->refused_in */
	bool refused;			/* it has refused a slot for now */

	/* by id, some of the pair's connections in the port's table; guarded by rings.mutex */
	struct sm_conn *known[SM_PAIR_KNOWN];

	spinlock_t pending_lock;	/* guards all below and, with it, SM_CONN_PENDING */
	struct list_head pending;	/* connections that need user context */
	struct list_head blocked;	/* the same, but there was no room for their next slot */
	bool closed;			/* the lists are not served any more */
};

struct sm_tcp_port {
	struct sm_port base;
	struct sm_nic *nic;
	bool nic_used;			/* a socket was attached; guarded by base.mutex */
	struct workqueue_struct *wq;	/* may wait for its sockets' locks, hence is its own */
	struct sm_pair *pair;		/* base.nrings of them */
	struct sm_waiting *waiting;	/* by buffer, while it waits for its ACK */
	struct xarray conns;		/* id -> sm_conn */
	struct xarray listeners;	/* id -> sm_listener */
	u32 next_id;			/* of both */
	struct sm_infos infos;
};

extern const struct sm_port_ops sm_tcp_port_ops;

static inline struct sm_tcp_port *sm_tcp_port(struct sm_port *port)
{
	return container_of(port, struct sm_tcp_port, base);
}

static inline struct sm_pair *sm_pair_of(struct sm_rings *rings)
{
	return container_of(rings, struct sm_pair, rings);
}

void sm_pair_unblock(struct sm_pair *pair);

#endif /* _SM_TCP_PORT_H */
