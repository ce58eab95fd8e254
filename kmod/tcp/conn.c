// SPDX-License-Identifier: GPL-2.0
/* Connections: their table, their references, and the lists of those that need user context. */
#include <linux/slab.h>

#include "tcp/attach.h"
#include "tcp/conn.h"
#include "tcp/info.h"
#include "tcp/ulp.h"

/*
 * A connection to be, with all it needs memory for; the caller's reference is the only one.
 * Returns an ERR_PTR() on failure.
 */
struct sm_conn *sm_conn_alloc(struct sm_tcp_port *port)
{
	struct sm_conn *conn = kzalloc(sizeof(*conn), GFP_KERNEL_ACCOUNT);
	int err;

	if (!conn)
		return ERR_PTR(-ENOMEM);
	refcount_set(&conn->refs, 1);
	INIT_LIST_HEAD(&conn->pending);
	INIT_DELAYED_WORK(&conn->flush_work, sm_attach_flush_work);
	INIT_LIST_HEAD(&conn->acks);
	conn->port = port;
	conn->ulp = sm_ulp_alloc();
	if (!conn->ulp) {
		err = -ENOMEM;
		goto err_free;
	}
	err = sm_info_open(conn);
	if (err)
		goto err_ulp;
	/* Cyclic: an id comes again only after 4 billion others. */
	err = xa_alloc_cyclic(&port->conns, &conn->id, NULL, XA_LIMIT(1, U32_MAX),
			      &port->next_id, GFP_KERNEL_ACCOUNT);
	if (err < 0)
		goto err_info;
	sm_port_get(&port->base);
	return conn;

err_info:
	sm_info_close(conn);
err_ulp:
	kfree(conn->ulp);
err_free:
	kfree(conn);
	return ERR_PTR(err);
}

/* The last reference is gone.  Any context. */
void sm_conn_free(struct sm_conn *conn)
{
	sm_info_close(conn);
	if (conn->sk)
		sock_put(conn->sk);
	else
		xa_release(&conn->port->conns, conn->id);	/* never attached */
	sm_port_put(&conn->port->base);
	kfree(conn->ulp);
	kfree_rcu(conn, rcu);
}

struct sm_conn *sm_conn_lookup(struct sm_tcp_port *port, u32 id)
{
	struct sm_conn *conn;

	rcu_read_lock();
	conn = xa_load(&port->conns, id);
	if (conn && !refcount_inc_not_zero(&conn->refs))
		conn = NULL;
	rcu_read_unlock();
	return conn;
}

/*
 * The application has been told of the end; buffers may still wait for their ACK.  Caller holds the
 * socket lock and a reference.
 */
void sm_conn_remove(struct sm_conn *conn)
{
	sock_owned_by_me(conn->sk);
	sm_info_close(conn);
	if (xa_erase(&conn->port->conns, conn->id))
		sm_conn_put(conn);
}

/* Have the pair look at the connection in user context.  Any context; needs a reference. */
void sm_conn_schedule(struct sm_conn *conn)
{
	struct sm_pair *pair = conn->pair;
	unsigned long irq;

	spin_lock_irqsave(&pair->pending_lock, irq);
	if (!pair->closed && !test_and_set_bit(SM_CONN_PENDING, &conn->bits)) {
		sm_conn_get(conn);
		list_add_tail(&conn->pending, &pair->pending);
	}
	spin_unlock_irqrestore(&pair->pending_lock, irq);
	sm_rings_wake(&pair->rings);
}

/* There is no room for the connection's next slot: it waits for some. */
void sm_conn_block(struct sm_conn *conn)
{
	struct sm_pair *pair = conn->pair;

	spin_lock_irq(&pair->pending_lock);
	if (!test_and_set_bit(SM_CONN_PENDING, &conn->bits)) {
		sm_conn_get(conn);
		list_add_tail(&conn->pending, &pair->blocked);
	}
	spin_unlock_irq(&pair->pending_lock);
}
