// SPDX-License-Identifier: GPL-2.0
/*
 * Attached sockets: taking a TCP socket's payload over, and giving it back.
 *
 * The socket stays what it is to TCP, to ss and to getsockopt().  Attaching replaces its four
 * callbacks, as KCM does, so that data and state reach the port, and its proto_ops, as kTLS does,
 * so that no byte can leave or enter it another way and so that shutdown() and close() first send
 * what the port has accepted.
 */
#include <linux/file.h>
#include <linux/slab.h>
#include <net/inet_common.h>
#include <net/tcp.h>

#include "stackmap.h"

/* proto_ops of attached sockets; made from those of the first socket of each family */
struct sm_family_ops {
	const struct proto_ops *base;
	struct proto_ops ops;
};

static struct sm_family_ops sm_family_ops[2];
static DEFINE_MUTEX(sm_family_ops_mutex);

static struct sm_conn *sm_conn_of_locked(struct sock *sk)
{
	return rcu_dereference_protected(__sk_user_data(sk), lockdep_sock_is_held(sk));
}

void sm_conn_put(struct sm_conn *conn)
{
	if (!refcount_dec_and_test(&conn->refs))
		return;
	sock_put(conn->sk);
	sm_port_put(conn->port);
	kfree_rcu(conn, rcu);
}

struct sm_conn *sm_conn_lookup(struct sm_port *port, u32 id)
{
	struct sm_conn *conn;

	rcu_read_lock();
	conn = xa_load(&port->conns, id);
	if (conn && !refcount_inc_not_zero(&conn->refs))
		conn = NULL;
	rcu_read_unlock();
	return conn;
}

/* Have the port look at the connection in user context.  Any context; needs a reference. */
void sm_conn_kick(struct sm_conn *conn)
{
	struct sm_port *port = conn->port;
	unsigned long irq;

	spin_lock_irqsave(&port->pending_lock, irq);
	if (!port->closed && !test_and_set_bit(SM_CONN_PENDING, &conn->bits)) {
		sm_conn_get(conn);
		list_add_tail(&conn->pending, &port->pending);
	}
	spin_unlock_irqrestore(&port->pending_lock, irq);
	sm_port_wake(port);
}

/* -- the socket's callbacks ----------------------------------------------------------------- */

/* TCP calls this with the socket locked: its spinlock in softirq, or by its owner (backlog). */
static void sm_data_ready(struct sock *sk)
{
	struct sm_conn *conn;

	rcu_read_lock();
	conn = rcu_dereference_sk_user_data(sk);
	if (conn) {
		if (sock_owned_by_user_nocheck(sk))
			sm_conn_kick(conn);
		else
			sm_rx_drain(conn);
	}
	rcu_read_unlock();
}

static void sm_write_space(struct sock *sk)
{
	struct sm_conn *conn;

	rcu_read_lock();
	conn = rcu_dereference_sk_user_data(sk);
	if (conn) {
		if (READ_ONCE(conn->rest_len) && sk_stream_is_writeable(sk)) {
			sm_conn_get(conn);
			if (!queue_work(sm_wq, &conn->flush_work))
				sm_conn_put(conn);
		}
		sm_tx_check_writable(conn);
		conn->saved_write_space(sk);
	}
	rcu_read_unlock();
}

static void sm_state_change(struct sock *sk)
{
	struct sm_conn *conn;

	rcu_read_lock();
	conn = rcu_dereference_sk_user_data(sk);
	if (conn) {
		sm_conn_kick(conn);
		conn->saved_state_change(sk);
	}
	rcu_read_unlock();
}

static void sm_error_report(struct sock *sk)
{
	struct sm_conn *conn;

	rcu_read_lock();
	conn = rcu_dereference_sk_user_data(sk);
	if (conn) {
		if (sk->sk_err)
			conn->err = sk->sk_err;
		sm_conn_kick(conn);
		conn->saved_error_report(sk);
	}
	rcu_read_unlock();
}

static void sm_flush_work(struct work_struct *work)
{
	struct sm_conn *conn = container_of(work, struct sm_conn, flush_work);

	lock_sock(conn->sk);
	if (conn->attached)
		sm_tx_flush_rest(conn, false);
	release_sock(conn->sk);
	sm_conn_put(conn);
}

/* -- detaching ------------------------------------------------------------------------------ */

/*
 * Make the socket an ordinary one.  Caller holds the socket lock and a reference.  What the port
 * has accepted is in TCP's queue when this returns.
 */
static void sm_conn_detach_locked(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	sm_tx_flush_rest(conn, true);

	write_lock_bh(&sk->sk_callback_lock);
	sk->sk_data_ready = conn->saved_data_ready;
	sk->sk_write_space = conn->saved_write_space;
	sk->sk_state_change = conn->saved_state_change;
	sk->sk_error_report = conn->saved_error_report;
	rcu_assign_sk_user_data(sk, NULL);
	write_unlock_bh(&sk->sk_callback_lock);

	WRITE_ONCE(sk->sk_socket->ops, conn->saved_ops);
	conn->attached = false;
	sm_count(conn->port, SM_CONNECTIONS, -1);
}

static void sm_conn_detach_sock(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	lock_sock(sk);
	if (conn->attached) {
		sm_conn_detach_locked(conn);
		/* wake who waits for what TCP still holds */
		sk->sk_data_ready(sk);
	}
	release_sock(sk);
}

/* Caller holds port->mutex. */
int sm_conn_detach(struct sm_port *port, u32 id)
{
	struct sm_conn *conn = sm_conn_lookup(port, id);

	if (!conn)
		return -ENOENT;
	sm_conn_detach_sock(conn);
	sm_conn_kick(conn);	/* CLOSED follows the data that is in the ring */
	sm_conn_put(conn);
	return 0;
}

static void sm_conn_forget(struct sm_conn *conn)
{
	if (xa_erase(&conn->port->conns, conn->id))
		sm_conn_put(conn);
}

/* The port closes.  Caller holds port->mutex; nobody attaches any more. */
void sm_conn_detach_all(struct sm_port *port)
{
	struct sm_conn *conn, *next;
	unsigned long id, irq;
	LIST_HEAD(pending);

	xa_for_each(&port->conns, id, conn) {
		sm_conn_detach_sock(conn);
		sm_conn_forget(conn);
	}
	spin_lock_irqsave(&port->pending_lock, irq);
	port->closed = true;	/* an ACK that comes later must not put a connection there */
	list_splice_init(&port->pending, &pending);
	spin_unlock_irqrestore(&port->pending_lock, irq);
	list_for_each_entry_safe(conn, next, &pending, pending) {
		list_del_init(&conn->pending);
		sm_conn_put(conn);
	}
}

/* -- what attached sockets answer ----------------------------------------------------------- */

static int sm_ops_release(struct socket *sock)
{
	struct sock *sk = sock->sk;
	struct sm_conn *conn;

	lock_sock(sk);
	conn = sm_conn_of_locked(sk);
	if (conn) {
		sm_conn_get(conn);
		sm_conn_detach_locked(conn);
	}
	release_sock(sk);
	if (conn) {
		sm_conn_kick(conn);
		sm_conn_put(conn);
	}
	return READ_ONCE(sock->ops)->release(sock);
}

static int sm_ops_shutdown(struct socket *sock, int how)
{
	const struct proto_ops *ops = READ_ONCE(sock->ops);
	struct sock *sk = sock->sk;
	struct sm_conn *conn;

	lock_sock(sk);
	conn = sm_conn_of_locked(sk);
	if (conn) {
		ops = conn->saved_ops;
		if (how != SHUT_RD)
			sm_tx_flush_rest(conn, true);
	} else {
		ops = READ_ONCE(sock->ops);	/* detached meanwhile */
	}
	release_sock(sk);
	return ops->shutdown(sock, how);
}

static int sm_refuse_connect(struct socket *sock, struct sockaddr *addr, int len, int flags)
{
	return -EBUSY;
}

static int sm_refuse_listen(struct socket *sock, int len)
{
	return -EBUSY;
}

static int sm_refuse_sendmsg(struct socket *sock, struct msghdr *msg, size_t len)
{
	return -EBUSY;
}

static int sm_refuse_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags)
{
	return -EBUSY;
}

static ssize_t sm_refuse_splice_read(struct socket *sock, loff_t *ppos,
				     struct pipe_inode_info *pipe, size_t len,
				     unsigned int flags)
{
	return -EBUSY;
}

static int sm_refuse_read_sock(struct sock *sk, read_descriptor_t *desc,
			       sk_read_actor_t recv_actor)
{
	return -EBUSY;
}

static int sm_refuse_read_skb(struct sock *sk, skb_read_actor_t recv_actor)
{
	return -EBUSY;
}

static int sm_refuse_sendmsg_locked(struct sock *sk, struct msghdr *msg, size_t size)
{
	return -EBUSY;
}

static int sm_refuse_mmap(struct file *file, struct socket *sock, struct vm_area_struct *vma)
{
	return -EBUSY;
}

/* The replacement for @base; NULL if this is not the plain TCP of its family. */
static const struct proto_ops *sm_ops_for(const struct proto_ops *base)
{
	struct sm_family_ops *f = &sm_family_ops[base->family == AF_INET6];
	const struct proto_ops *found = NULL;

	if (base->family == AF_INET && base != &inet_stream_ops)
		return NULL;
	mutex_lock(&sm_family_ops_mutex);
	if (!f->base) {
		f->ops = *base;
		f->ops.release = sm_ops_release;
		f->ops.shutdown = sm_ops_shutdown;
		f->ops.connect = sm_refuse_connect;
		f->ops.listen = sm_refuse_listen;
		f->ops.sendmsg = sm_refuse_sendmsg;
		f->ops.recvmsg = sm_refuse_recvmsg;
		f->ops.splice_read = sm_refuse_splice_read;
		f->ops.read_sock = sm_refuse_read_sock;
		f->ops.read_skb = sm_refuse_read_skb;
		f->ops.sendmsg_locked = sm_refuse_sendmsg_locked;
		f->ops.mmap = sm_refuse_mmap;
		sm_ops_refuse_sendpage(&f->ops);
		f->base = base;
	}
	if (f->base == base)
		found = &f->ops;
	mutex_unlock(&sm_family_ops_mutex);
	return found;
}

/* -- attaching ------------------------------------------------------------------------------ */

static int sm_conn_check(const struct sm_port *port, struct socket *sock)
{
	struct sock *sk = sock->sk;

	if (sk->sk_family != AF_INET && sk->sk_family != AF_INET6)
		return -EOPNOTSUPP;
	if (sk->sk_type != SOCK_STREAM || sk->sk_protocol != IPPROTO_TCP)
		return -EOPNOTSUPP;
	if (sock_net(sk)->net_cookie != port->net_cookie)
		return -EXDEV;
	return 0;
}

/* Caller holds the socket lock. */
static int sm_conn_hook(struct sm_conn *conn, struct socket *sock)
{
	const struct proto_ops *ops;
	struct sock *sk = sock->sk;
	int err = 0;

	if (sk->sk_state == TCP_LISTEN)
		return -EINVAL;
	if (sk->sk_state != TCP_ESTABLISHED && sk->sk_state != TCP_CLOSE_WAIT)
		return -ENOTCONN;
	if (READ_ONCE(sock->ops)->release == sm_ops_release)
		return -EALREADY;
	if (inet_csk_has_ulp(sk) || tcp_sk(sk)->repair)
		return -EBUSY;
	ops = sm_ops_for(READ_ONCE(sock->ops));
	if (!ops)
		return -EBUSY;

	write_lock_bh(&sk->sk_callback_lock);
	if (sk->sk_user_data) {
		err = -EBUSY;		/* sockmap, KCM, or another kernel user */
	} else {
		conn->saved_data_ready = sk->sk_data_ready;
		conn->saved_write_space = sk->sk_write_space;
		conn->saved_state_change = sk->sk_state_change;
		conn->saved_error_report = sk->sk_error_report;
		rcu_assign_sk_user_data(sk, conn);
		sk->sk_data_ready = sm_data_ready;
		sk->sk_write_space = sm_write_space;
		sk->sk_state_change = sm_state_change;
		sk->sk_error_report = sm_error_report;
	}
	write_unlock_bh(&sk->sk_callback_lock);
	if (err)
		return err;
	conn->saved_ops = READ_ONCE(sock->ops);
	WRITE_ONCE(sock->ops, ops);
	conn->attached = true;
	sm_count(conn->port, SM_CONNECTIONS, 1);
	return 0;
}

/* Caller holds port->mutex. */
int sm_conn_attach(struct sm_port *port, struct sm_attach *req)
{
	struct sm_conn *conn;
	struct socket *sock;
	int err;

	if (req->flags || req->reserved)
		return -EINVAL;
	sock = sockfd_lookup(req->fd, &err);
	if (!sock)
		return err;
	err = sm_conn_check(port, sock);
	if (err)
		goto put_sock;

	err = -ENOMEM;
	conn = kzalloc(sizeof(*conn), GFP_KERNEL_ACCOUNT);
	if (!conn)
		goto put_sock;
	refcount_set(&conn->refs, 1);	/* the table's */
	INIT_LIST_HEAD(&conn->pending);
	INIT_WORK(&conn->flush_work, sm_flush_work);
	sock_hold(sock->sk);
	conn->sk = sock->sk;
	sm_port_get(port);
	conn->port = port;

	/* Cyclic: an id comes again only after 4 billion others. */
	err = xa_alloc_cyclic(&port->conns, &conn->id, conn, XA_LIMIT(1, U32_MAX),
			      &port->next_id, GFP_KERNEL_ACCOUNT);
	if (err < 0)
		goto put_conn;

	lock_sock(sock->sk);
	err = sm_conn_hook(conn, sock);
	release_sock(sock->sk);
	if (err) {
		sm_conn_forget(conn);
		goto put_sock;
	}
	req->id = conn->id;
	sm_conn_kick(conn);		/* in case there are already bytes queued, or a FIN */
	goto put_sock;

put_conn:
	sm_conn_put(conn);
put_sock:
	sockfd_put(sock);
	return err;
}

int sm_conn_rxctl(struct sm_port *port, const struct sm_conn_ctl *req)
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
		sm_conn_kick(conn);
	sm_conn_put(conn);
	return 0;
}

/* -- events --------------------------------------------------------------------------------- */

/* Put one event into the ring, once; false if there is no room. */
static bool sm_conn_event(struct sm_conn *conn, enum sm_conn_bit sent, u8 flags, u8 err)
{
	if (test_bit(sent, &conn->bits))
		return true;
	if (!sm_rx_event(conn->port, conn->id, flags, err))
		return false;
	set_bit(sent, &conn->bits);
	return true;
}

/*
 * Move data and events of one connection into the ring, in order; false if something is left
 * for lack of room.  Caller holds port->mutex and the socket lock.
 */
static bool sm_conn_service(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	if (test_and_clear_bit(SM_CONN_WRITABLE, &conn->bits) &&
	    !sm_rx_event(conn->port, conn->id, SM_SLOT_WRITABLE, 0)) {
		set_bit(SM_CONN_WRITABLE, &conn->bits);
		return false;
	}
	if (conn->attached) {
		sm_rx_drain(conn);
		if (!skb_queue_empty(&sk->sk_receive_queue))
			return test_bit(SM_CONN_PAUSED, &conn->bits);
		/* SOCK_DONE: a FIN came.  RCV_SHUTDOWN alone may also be what a reset leaves. */
		if ((sock_flag(sk, SOCK_DONE) || (sk->sk_shutdown & RCV_SHUTDOWN && !conn->err)) &&
		    !sm_conn_event(conn, SM_CONN_EOF_SENT, SM_SLOT_EOF, 0))
			return false;
		if (conn->err &&
		    !sm_conn_event(conn, SM_CONN_ERROR_SENT, SM_SLOT_ERROR, conn->err))
			return false;
		if (sk->sk_state != TCP_CLOSE)
			return true;
	}
	if (!sm_conn_event(conn, SM_CONN_CLOSED_SENT, SM_SLOT_CLOSED, 0))
		return false;
	if (conn->attached)
		sm_conn_detach_locked(conn);
	sm_conn_forget(conn);
	return true;
}

/* Serve the connections that were kicked.  Caller holds port->mutex. */
void sm_conn_service_pending(struct sm_port *port)
{
	struct sm_conn *conn, *next;
	LIST_HEAD(todo);

	if (list_empty_careful(&port->pending))
		return;
	spin_lock_irq(&port->pending_lock);
	list_splice_init(&port->pending, &todo);
	spin_unlock_irq(&port->pending_lock);

	list_for_each_entry_safe(conn, next, &todo, pending) {
		bool done;

		/* Kicked again from here on, the connection must go on the list again. */
		spin_lock_irq(&port->pending_lock);
		list_del_init(&conn->pending);
		clear_bit(SM_CONN_PENDING, &conn->bits);
		spin_unlock_irq(&port->pending_lock);
		lock_sock(conn->sk);
		done = sm_conn_service(conn);
		release_sock(conn->sk);
		if (!done)
			sm_conn_kick(conn);
		sm_conn_put(conn);
	}
}
