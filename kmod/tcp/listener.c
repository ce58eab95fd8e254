// SPDX-License-Identifier: GPL-2.0
/*
 * Attached listeners: sockets that accept() returns from them are attached to the port already.
 *
 * The socket's own accept() does the work, so that its queue, its limits and the security modules
 * work as ever.  A listener is found by its sock in an index of the module's own and
 * not through sk_user_data, which every connection made from the listener would inherit.
 */
#include <linux/slab.h>
#include <net/tcp.h>

#include "tcp/attach.h"
#include "tcp/conn.h"
#include "tcp/listener.h"
#include "tcp/sockops.h"

/* Address of the sock -> sm_listener. */
static DEFINE_XARRAY_FLAGS(sm_listener_index, XA_FLAGS_ACCOUNT);

void sm_listener_put(struct sm_listener *listener)
{
	if (!refcount_dec_and_test(&listener->refs))
		return;
	sock_put(listener->sk);
	sm_port_put(&listener->port->base);
	kfree_rcu(listener, rcu);
}

/* The listener that a socket is, with a reference; NULL if it is none. */
struct sm_listener *sm_listener_of(struct sock *sk)
{
	struct sm_listener *listener;

	rcu_read_lock();
	listener = xa_load(&sm_listener_index, (unsigned long)sk);
	if (listener && !refcount_inc_not_zero(&listener->refs))
		listener = NULL;
	rcu_read_unlock();
	return listener;
}

/* From here on its accept() returns ordinary connections.  May come from two sides at once. */
static void sm_listener_remove(struct sm_listener *listener)
{
	struct sm_tcp_port *port = listener->port;

	xa_cmpxchg(&sm_listener_index, (unsigned long)listener->sk, listener, NULL, 0);
	if (xa_erase(&port->listeners, listener->id)) {
		xa_erase(&port->conns, listener->id);
		sm_listener_put(listener);
	}
}

/* Caller holds the socket lock. */
static int sm_listener_attach_locked(struct sm_listener *listener, struct socket *sock)
{
	struct sock *sk = sock->sk;
	int err;

	sock_owned_by_me(sk);
	if (sk->sk_state != TCP_LISTEN)
		return -EINVAL;
	if (!sm_has_default_callbacks(sk) || inet_csk_has_ulp(sk))
		return -EBUSY;
	err = sm_ops_replace(sock);
	if (err)
		return err;
	err = xa_insert(&sm_listener_index, (unsigned long)sk, listener, GFP_KERNEL_ACCOUNT);
	if (err)
		return err == -EBUSY ? -EALREADY : err;
	sock_hold(sk);
	sm_port_get(&listener->port->base);
	return 0;
}

/* Caller holds port->base.mutex, and the socket is one that the port may have. */
int sm_listener_attach(struct sm_tcp_port *port, struct socket *sock, struct sm_attach *req)
{
	struct sm_listener *listener;
	struct sock *sk = sock->sk;
	int err;

	lockdep_assert_held(&port->base.mutex);
	listener = kzalloc(sizeof(*listener), GFP_KERNEL_ACCOUNT);
	if (!listener)
		return -ENOMEM;
	refcount_set(&listener->refs, 1);	/* the table's */
	listener->ring = req->ring;
	listener->port = port;
	listener->sk = sk;

	/* An id that no connection can have: reserved in their table. */
	err = xa_alloc_cyclic(&port->conns, &listener->id, NULL, XA_LIMIT(1, U32_MAX),
			      &port->next_id, GFP_KERNEL_ACCOUNT);
	if (err < 0)
		goto err_free;
	err = xa_reserve(&port->listeners, listener->id, GFP_KERNEL_ACCOUNT);
	if (err)
		goto err_id;

	lock_sock(sk);
	err = sm_listener_attach_locked(listener, sock);
	release_sock(sk);
	if (err)
		goto err_reserved;
	xa_store(&port->listeners, listener->id, listener, 0);	/* reserved: cannot fail */
	req->id = listener->id;
	req->record = 0;
	return 0;

err_reserved:
	xa_release(&port->listeners, listener->id);
err_id:
	xa_erase(&port->conns, listener->id);
err_free:
	kfree(listener);
	return err;
}

/* Caller holds port->base.mutex. */
int sm_listener_detach(struct sm_tcp_port *port, u32 id)
{
	struct sm_listener *listener;

	lockdep_assert_held(&port->base.mutex);
	rcu_read_lock();	/* its socket may be closed now, without port->base.mutex */
	listener = xa_load(&port->listeners, id);
	if (listener && !refcount_inc_not_zero(&listener->refs))
		listener = NULL;
	rcu_read_unlock();
	if (!listener)
		return -ENOENT;
	sm_listener_remove(listener);
	sm_listener_put(listener);
	return 0;
}

/* The port closes.  Caller holds port->base.mutex; no socket can be attached any more. */
void sm_listener_detach_all(struct sm_tcp_port *port)
{
	unsigned long id;
	void *entry;

	xa_for_each(&port->listeners, id, entry)
		sm_listener_detach(port, id);
}

/* The socket closes. */
void sm_listener_closed(struct sock *sk)
{
	struct sm_listener *listener = sm_listener_of(sk);

	if (listener) {
		sm_listener_remove(listener);
		sm_listener_put(listener);
	}
}

/* A connection was accepted: attach it, unless the listener was detached in between. */
int sm_listener_accepted(struct sm_listener *listener, struct sm_conn *conn,
			 struct socket *newsock)
{
	struct sm_tcp_port *port = listener->port;
	int err;

	/* The port's owner may be in a call that copies to memory which does not come. */
	err = mutex_lock_killable(&port->base.mutex);
	if (err)
		return err;
	if (xa_load(&port->listeners, listener->id) == listener) {
		conn->listener = listener->id;
		__set_bit(SM_CONN_OPEN_DUE, &conn->bits);
		err = sm_attach_conn(conn, newsock, listener->ring);
	}
	mutex_unlock(&port->base.mutex);
	return err;
}
