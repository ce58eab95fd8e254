// SPDX-License-Identifier: GPL-2.0
/*
 * Attached sockets: taking a TCP socket's payload over, and giving it back.
 *
 * TCP, ss and getsockopt() see the socket as before.  Attaching replaces its four callbacks, as
 * KCM does, so that data and state reach the port, and its proto_ops, as kTLS does, so that no byte
 * can leave or enter it another way and so that shutdown() and close() first send the bytes that
 * the port has accepted.
 */
#include <linux/nospec.h>
#include <linux/slab.h>
#include <net/tcp.h>

#include "stackmap.h"

static void sm_data_ready(struct sock *sk);

/* TCP's own callbacks, which it does not export: those of a socket that was just made. */
static struct {
	void (*data_ready)(struct sock *sk);
	void (*write_space)(struct sock *sk);
	void (*state_change)(struct sock *sk);
	void (*error_report)(struct sock *sk);
} sm_tcp __ro_after_init;

int __init sm_conn_init(void)
{
	struct socket *sock;
	int err;

	err = sock_create_kern(&init_net, AF_INET, SOCK_STREAM, IPPROTO_TCP, &sock);
	if (err)
		return err;
	sm_tcp.data_ready = sock->sk->sk_data_ready;
	sm_tcp.write_space = sock->sk->sk_write_space;
	sm_tcp.state_change = sock->sk->sk_state_change;
	sm_tcp.error_report = sock->sk->sk_error_report;
	sock_release(sock);
	return 0;
}

/*
 * True if the socket still has TCP's default callbacks.  sk_user_data alone does not tell: sockets
 * accepted by SMC's listeners inherit callbacks that take sk_user_data for their own.
 */
bool sm_conn_is_tcps_own(const struct sock *sk)
{
	return !sk->sk_user_data && sk->sk_data_ready == sm_tcp.data_ready &&
	       sk->sk_write_space == sm_tcp.write_space &&
	       sk->sk_state_change == sm_tcp.state_change &&
	       sk->sk_error_report == sm_tcp.error_report;
}

/*
 * The connection of an attached socket, or NULL.  sk_user_data is ours if and only if sk_data_ready
 * is sm_data_ready: both are changed together.  Caller holds the socket lock.
 */
struct sm_conn *sm_conn_of_locked(struct sock *sk)
{
	if (sk->sk_data_ready != sm_data_ready)
		return NULL;
	return rcu_dereference_protected(__sk_user_data(sk), lockdep_sock_is_held(sk));
}

/* The same in a callback, where the socket is locked too, perhaps by its spinlock only. */
static struct sm_conn *sm_conn_of_rcu(struct sock *sk)
{
	sock_owned_by_me(sk);
	if (READ_ONCE(sk->sk_data_ready) != sm_data_ready)
		return NULL;
	return rcu_dereference_sk_user_data(sk);
}

/*
 * The same where the socket may not be locked: read sk_user_data before and after sk_data_ready,
 * and trust it if both reads agree.  Attaching sets sk_user_data before the callbacks.  Detaching
 * gives the callbacks back under sk_callback_lock, which the next owner of sk_user_data takes
 * before it sets it.  Caller is an RCU reader: until it is done, neither the connection nor its
 * port is freed.
 */
static struct sm_conn *sm_conn_of_unlocked(struct sock *sk)
{
	struct sm_conn *conn;

	conn = rcu_dereference_sk_user_data(sk);
	smp_rmb();	/* pairs with sm_conn_hook(), or the next owner's sk_callback_lock */
	if (!conn || READ_ONCE(sk->sk_data_ready) != sm_data_ready)
		conn = NULL;
	smp_rmb();	/* as above */
	if (conn && rcu_dereference_sk_user_data(sk) != conn)
		conn = NULL;
	return conn;
}

/* Any context. */
void sm_conn_put(struct sm_conn *conn)
{
	if (!refcount_dec_and_test(&conn->refs))
		return;
	sm_state_close(conn);
	if (conn->sk)
		sock_put(conn->sk);
	else
		xa_release(&conn->port->conns, conn->id);	/* never taken */
	sm_port_put(conn->port);
	kfree(conn->ulp);
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

/* Have the pair look at the connection in user context.  Any context; needs a reference. */
void sm_conn_kick(struct sm_conn *conn)
{
	struct sm_pair *pair = conn->pair;
	unsigned long irq;

	spin_lock_irqsave(&pair->pending_lock, irq);
	if (!pair->closed && !test_and_set_bit(SM_CONN_PENDING, &conn->bits)) {
		sm_conn_get(conn);
		list_add_tail(&conn->pending, &pair->pending);
	}
	spin_unlock_irqrestore(&pair->pending_lock, irq);
	sm_pair_wake(pair);
}

/* -- the socket's callbacks ----------------------------------------------------------------- */

/* TCP calls this with the socket locked: its spinlock in softirq, or by its owner (backlog). */
static void sm_data_ready(struct sock *sk)
{
	struct sm_conn *conn;

	rcu_read_lock();
	conn = sm_conn_of_rcu(sk);
	if (conn) {
		sm_rx_forget_urgent(sk);
		sm_pair_note_napi(conn->pair, sk);
		if (sock_owned_by_user_nocheck(sk) || !sm_rx_drain(conn))
			sm_conn_kick(conn);
		sm_state_update(conn);
	}
	rcu_read_unlock();
}

/* TCP calls this when its send queue has shrunk enough to take more. */
static void sm_write_space(struct sock *sk)
{
	struct sm_conn *conn;

	rcu_read_lock();
	conn = sm_conn_of_rcu(sk);
	if (conn) {
		if (READ_ONCE(conn->rest_len) && sk_stream_is_writeable(sk)) {
			/* With nothing under way TCP lacks memory, and calls us for each try. */
			bool tries = tcp_rtx_and_write_queues_empty(sk);

			sm_conn_get(conn);
			if (!queue_delayed_work(conn->port->wq, &conn->flush_work, tries))
				sm_conn_put(conn);
			/* The work may have to wait for the locks of the port's other sockets. */
			if (!tries)
				sm_conn_kick(conn);
		}
		sm_tx_check_writable(conn);
		sm_tcp.write_space(sk);
		sm_state_update(conn);
	}
	rcu_read_unlock();
}

static void sm_state_change(struct sock *sk)
{
	struct sm_conn *conn;

	rcu_read_lock();
	conn = sm_conn_of_rcu(sk);
	if (conn) {
		sm_conn_kick(conn);
		sm_tcp.state_change(sk);
		sm_state_update(conn);
	}
	rcu_read_unlock();
}

/* Timestamps of sent packets are reported too, from where the socket is not locked. */
static void sm_error_report(struct sock *sk)
{
	int err = READ_ONCE(sk->sk_err);
	struct sm_conn *conn;

	rcu_read_lock();
	conn = sm_conn_of_unlocked(sk);
	if (conn && !refcount_inc_not_zero(&conn->refs))
		conn = NULL;
	rcu_read_unlock();
	if (!conn) {
		sm_tcp.error_report(sk);	/* detached just now */
		return;
	}
	/* With IP_RECVERR the connection may go on after an error, and may have another one. */
	if (err && xchg(&conn->err, err) != err)
		clear_bit(SM_CONN_ERROR_SENT, &conn->bits);
	sm_conn_kick(conn);
	sm_tcp.error_report(sk);
	sm_state_update(conn);
	sm_conn_put(conn);
}

/*
 * A packet goes out.  TCP, which may have been a timer's, counts it afterwards.  Returns the pair
 * that the packet's connection is attached to, or NULL.  Caller is an RCU reader.
 */
const struct sm_pair *sm_conn_sent(const struct sk_buff *skb)
{
	struct sm_conn *conn;

	if (!skb->sk || !sk_fullsock(skb->sk))
		return NULL;
	conn = sm_conn_of_unlocked(skb->sk);
	if (!conn)
		return NULL;
	sm_state_update_later(conn);
	return conn->pair;
}

static void sm_flush_work(struct work_struct *work)
{
	struct sm_conn *conn = container_of(to_delayed_work(work), struct sm_conn, flush_work);

	lock_sock(conn->sk);
	if (conn->attached) {
		sm_tx_flush_rest(conn, false);
		sm_state_update(conn);
	}
	release_sock(conn->sk);
	sm_conn_put(conn);
}

/* -- detaching ------------------------------------------------------------------------------ */

/*
 * Make the socket an ordinary one.  Caller holds the socket lock and a reference.  All bytes that
 * the port has accepted are in TCP's queue when this returns.
 */
void sm_conn_detach_locked(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	sock_owned_by_me(sk);
	sm_tx_flush_rest(conn, true);

	/* Another user in the kernel may have taken any of these since. */
	write_lock_bh(&sk->sk_callback_lock);
	if (sk->sk_data_ready == sm_data_ready)
		WRITE_ONCE(sk->sk_data_ready, sm_tcp.data_ready);
	if (sk->sk_write_space == sm_write_space)
		sk->sk_write_space = sm_tcp.write_space;
	if (sk->sk_state_change == sm_state_change)
		sk->sk_state_change = sm_tcp.state_change;
	if (sk->sk_error_report == sm_error_report)
		sk->sk_error_report = sm_tcp.error_report;
	if (rcu_access_pointer(__sk_user_data(sk)) == conn)
		rcu_assign_sk_user_data(sk, NULL);
	write_unlock_bh(&sk->sk_callback_lock);

	conn->attached = false;
	sm_ulp_detached(conn);
	sm_count(conn->pair, SM_CONNECTIONS, -1);
	sm_state_update(conn);
}

static void sm_conn_detach_sock(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	lock_sock(sk);
	if (conn->attached) {
		sm_conn_detach_locked(conn);
		/* wake readers of the data that TCP still holds */
		sk->sk_data_ready(sk);
	}
	release_sock(sk);
}

/* Caller holds port->mutex. */
int sm_conn_detach(struct sm_port *port, u32 id)
{
	struct sm_conn *conn;

	lockdep_assert_held(&port->mutex);
	conn = sm_conn_lookup(port, id);
	if (!conn)
		return -ENOENT;
	sm_conn_detach_sock(conn);
	sm_conn_kick(conn);	/* CLOSED follows the data that is in the ring */
	sm_conn_put(conn);
	return 0;
}

/* The application has heard the last of it; buffers may still wait for their ACK. */
static void sm_conn_forget(struct sm_conn *conn)
{
	sm_state_close(conn);
	if (xa_erase(&conn->port->conns, conn->id))
		sm_conn_put(conn);
}

static void sm_pair_forget_pending(struct sm_pair *pair)
{
	struct sm_conn *conn, *next;
	LIST_HEAD(pending);

	spin_lock_irq(&pair->pending_lock);
	pair->closed = true;	/* an ACK that comes later must not put a connection there */
	list_splice_init(&pair->pending, &pending);
	list_splice_init(&pair->blocked, &pending);
	spin_unlock_irq(&pair->pending_lock);
	list_for_each_entry_safe(conn, next, &pending, pending) {
		list_del_init(&conn->pending);
		sm_conn_put(conn);
	}
}

/* The port closes.  Caller holds port->mutex; no socket can be attached any more. */
void sm_conn_detach_all(struct sm_port *port)
{
	struct sm_conn *conn;
	unsigned long id;
	u32 i;

	lockdep_assert_held(&port->mutex);
	xa_for_each(&port->conns, id, conn) {
		sm_conn_detach_sock(conn);
		sm_conn_forget(conn);
	}
	for (i = 0; i < port->npairs; i++)
		sm_pair_forget_pending(&port->pair[i]);
}

/* -- attaching ------------------------------------------------------------------------------ */

/* Is this a socket that the port may have? */
int sm_check_socket(const struct sm_port *port, const struct socket *sock)
{
	const struct sock *sk = sock->sk;

	if (sk->sk_family != AF_INET && sk->sk_family != AF_INET6)
		return -EOPNOTSUPP;
	if (sk->sk_type != SOCK_STREAM || sk->sk_protocol != IPPROTO_TCP)
		return -EOPNOTSUPP;
	if (sock_net(sk)->net_cookie != port->net_cookie)
		return -EXDEV;
	return 0;
}

/*
 * Is it established, or has it failed without anybody having been told?  A connection may be reset
 * before accept() returns it: then its events say so, as with one that is reset a moment later.
 */
static bool sm_conn_attachable(const struct sock *sk)
{
	return sk->sk_state == TCP_ESTABLISHED || sk->sk_state == TCP_CLOSE_WAIT ||
	       tcp_passive_fastopen(sk) || (sk->sk_state == TCP_CLOSE && READ_ONCE(sk->sk_err));
}

/* Caller holds the socket lock. */
static int sm_conn_hook(struct sm_conn *conn, struct socket *sock)
{
	struct sock *sk = sock->sk;
	int err;

	sock_owned_by_me(sk);
	if (sk->sk_state == TCP_LISTEN)
		return -EINVAL;
	if (!sm_conn_attachable(sk))
		return -ENOTCONN;
	if (sm_conn_of_locked(sk))
		return -EALREADY;
	/* Nor one where a call waits to send: its bytes would come between those of slots. */
	if (tcp_sk(sk)->repair || sk->sk_write_pending || !sm_conn_is_tcps_own(sk))
		return -EBUSY;
	/* First, because proto_ops of another upper layer protocol must not become our base. */
	err = sm_ulp_take(conn);
	if (!err)
		err = sm_ops_replace(sock);
	if (err)
		return err;

	write_lock_bh(&sk->sk_callback_lock);
	if (!sm_conn_is_tcps_own(sk)) {
		err = -EBUSY;		/* sockmap, KCM, or another kernel user */
	} else {
		rcu_assign_sk_user_data(sk, conn);
		/* After sk_user_data; pairs with sm_conn_of_unlocked(). */
		smp_store_release(&sk->sk_data_ready, sm_data_ready);
		sk->sk_write_space = sm_write_space;
		sk->sk_state_change = sm_state_change;
		sk->sk_error_report = sm_error_report;
	}
	write_unlock_bh(&sk->sk_callback_lock);
	if (err)
		return err;
	sm_tx_no_probes(sk);	/* from before a timeout can enable them */
	WRITE_ONCE(conn->err, READ_ONCE(sk->sk_err));	/* was reported before */
	sm_rx_forget_urgent(sk);
	conn->attached = true;
	conn->acked = tcp_sk(sk)->snd_una;	/* the low half is TCP's, always */
	conn->end = conn->acked;
	sm_ulp_attached(conn);
	sm_count(conn->pair, SM_CONNECTIONS, 1);
	sm_state_update(conn);
	return 0;
}

/* The pair for a connection: on the CPU where its packets arrive, the least loaded one. */
static struct sm_pair *sm_pair_for(struct sm_port *port, const struct sock *sk, u32 ring)
{
	int cpu = READ_ONCE(sk->sk_incoming_cpu);
	struct sm_pair *best = NULL;
	s64 least = 0;
	u32 i;

	if (ring != SM_RING_ANY)
		return &port->pair[array_index_nospec(ring, port->npairs)];
	for (i = 0; i < port->npairs; i++) {
		struct sm_pair *pair = &port->pair[i];
		s64 load = atomic64_read(&pair->counter[SM_CONNECTIONS]);

		if (READ_ONCE(pair->cpu) != cpu)
			load += SM_MAX_CONNS;	/* any on the right CPU comes first */
		if (!best || load < least) {
			best = pair;
			least = load;
		}
	}
	return best;
}

/*
 * A connection to be, with all it needs memory for; the caller's reference is the only one.
 * Returns an ERR_PTR() on failure.
 */
struct sm_conn *sm_conn_alloc(struct sm_port *port)
{
	struct sm_conn *conn = kzalloc(sizeof(*conn), GFP_KERNEL_ACCOUNT);
	int err;

	if (!conn)
		return ERR_PTR(-ENOMEM);
	refcount_set(&conn->refs, 1);
	INIT_LIST_HEAD(&conn->pending);
	INIT_DELAYED_WORK(&conn->flush_work, sm_flush_work);
	INIT_LIST_HEAD(&conn->acks);
	conn->port = port;
	conn->ulp = sm_ulp_alloc();
	if (!conn->ulp) {
		err = -ENOMEM;
		goto err_free;
	}
	err = sm_state_open(conn);
	if (err)
		goto err_ulp;
	/* Cyclic: an id comes again only after 4 billion others. */
	err = xa_alloc_cyclic(&port->conns, &conn->id, NULL, XA_LIMIT(1, U32_MAX),
			      &port->next_id, GFP_KERNEL_ACCOUNT);
	if (err < 0)
		goto err_record;
	sm_port_get(port);
	return conn;

err_record:
	sm_state_close(conn);
err_ulp:
	kfree(conn->ulp);
err_free:
	kfree(conn);
	return ERR_PTR(err);
}

/*
 * Attach the socket as this connection, which the port's table then has a reference of.  Caller
 * holds port->mutex, and has checked the port and the ring.
 */
int sm_conn_take(struct sm_conn *conn, struct socket *sock, u32 ring)
{
	struct sm_port *port = conn->port;
	int err;

	lockdep_assert_held(&port->mutex);
	sock_hold(sock->sk);
	conn->sk = sock->sk;
	conn->pair = sm_pair_for(port, sock->sk, ring);
	sm_conn_get(conn);
	xa_store(&port->conns, conn->id, conn, 0);	/* reserved: cannot fail */

	lock_sock(sock->sk);
	err = sm_conn_hook(conn, sock);
	release_sock(sock->sk);
	if (err) {
		sm_conn_forget(conn);
		return err;
	}
	sm_pair_note_napi(conn->pair, sock->sk);
	sm_conn_kick(conn);	/* in case there are already bytes queued, or a FIN */
	return 0;
}

/* Caller holds port->mutex. */
int sm_conn_attach(struct sm_port *port, struct socket *sock, struct sm_attach *req)
{
	struct sm_conn *conn = sm_conn_alloc(port);
	int err;

	if (IS_ERR(conn))
		return PTR_ERR(conn);
	err = sm_conn_take(conn, sock, req->ring);
	if (!err) {
		req->ring = conn->pair->index;
		req->id = conn->id;
		req->record = conn->record;
	}
	sm_conn_put(conn);
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
	if (!sm_rx_event(conn->pair, conn->id, flags, err))
		return false;
	set_bit(sent, &conn->bits);
	return true;
}

/* Report a listener's new connection and its peer; false if there is no room. */
static bool sm_conn_announce(struct sm_conn *conn)
{
	const struct sock *sk = conn->sk;
	struct sm_open open = {
		.listener = conn->listener,
		.record = conn->record,
		.family = sk->sk_family,
		.port = inet_sk(sk)->inet_dport,
	};

#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family == AF_INET6)
		memcpy(open.addr, &sk->sk_v6_daddr, sizeof(open.addr));
	else
#endif
		memcpy(open.addr, &inet_sk(sk)->inet_daddr, sizeof(__be32));
	return sm_rx_open_event(conn->pair, conn->id, &open);
}

/* Tell of the end of the stream, if it has come; false if data or the event found no room. */
static bool sm_conn_end_of_input(struct sm_conn *conn)
{
	const struct sock *sk = conn->sk;

	if (!skb_queue_empty(&sk->sk_receive_queue))
		return false;
	/* SOCK_DONE: a FIN came.  RCV_SHUTDOWN alone may also be what a reset leaves. */
	if (!sock_flag(sk, SOCK_DONE) &&
	    (!(sk->sk_shutdown & RCV_SHUTDOWN) || READ_ONCE(conn->err)))
		return true;
	return sm_conn_event(conn, SM_CONN_EOF_SENT, SM_SLOT_EOF, 0);
}

/* The connection cannot go on: reset it.  The application is told by its error and its end. */
static void sm_conn_give_up(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	skb_queue_purge(&sk->sk_receive_queue);
	if (sk->sk_state != TCP_CLOSE) {
		sk->sk_disconnects++;	/* for calls that sleep on the socket */
		tcp_disconnect(sk, 0);
	}
	cmpxchg(&conn->err, 0, ECONNRESET);
}

/*
 * Move data and events of one connection into the ring, in order; false if something is left
 * for lack of room.  Caller holds pair->mutex and the socket lock.
 */
static bool sm_conn_service(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;
	bool paused;

	lockdep_assert_held(&conn->pair->mutex);
	sock_owned_by_me(sk);
	if (test_bit(SM_CONN_CLOSED_SENT, &conn->bits))
		return true;		/* a late ACK still kicks it */
	if (test_bit(SM_CONN_OPEN_DUE, &conn->bits)) {
		if (!sm_conn_announce(conn))
			return false;
		clear_bit(SM_CONN_OPEN_DUE, &conn->bits);
	}

	if (conn->attached && conn->rest_len && sk_stream_is_writeable(sk))
		sm_tx_flush_rest(conn, false);
	/* A reset frees the send buffer, but nothing can be sent any more. */
	if (test_and_clear_bit(SM_CONN_WRITABLE, &conn->bits) && sk->sk_state != TCP_CLOSE &&
	    !sm_rx_event(conn->pair, conn->id, SM_SLOT_WRITABLE, 0)) {
		set_bit(SM_CONN_WRITABLE, &conn->bits);
		return false;
	}
	if (conn->attached) {
		sm_rx_drain(conn);
		if (unlikely(test_bit(SM_CONN_UNREADABLE, &conn->bits)))
			sm_conn_give_up(conn);
		sm_state_update(conn);
		paused = test_bit(SM_CONN_PAUSED, &conn->bits);
		if (!paused && !sm_conn_end_of_input(conn))
			return false;
		if (READ_ONCE(conn->err) &&
		    !sm_conn_event(conn, SM_CONN_ERROR_SENT, SM_SLOT_ERROR, READ_ONCE(conn->err)))
			return false;
		/* Unread data of a paused connection is dropped only if the connection failed. */
		if (sk->sk_state != TCP_CLOSE || (paused && !READ_ONCE(conn->err)))
			return true;
	}
	if (!sm_conn_event(conn, SM_CONN_CLOSED_SENT, SM_SLOT_CLOSED, 0))
		return false;
	if (conn->attached)
		sm_conn_detach_locked(conn);
	sm_conn_forget(conn);
	return true;
}

/* There is no room for the connection's next slot: it waits for some. */
static void sm_conn_block(struct sm_conn *conn)
{
	struct sm_pair *pair = conn->pair;

	spin_lock_irq(&pair->pending_lock);
	if (!test_and_set_bit(SM_CONN_PENDING, &conn->bits)) {
		sm_conn_get(conn);
		list_add_tail(&conn->pending, &pair->blocked);
	}
	spin_unlock_irq(&pair->pending_lock);
}

/*
 * Serve the connections that were kicked, until the ring has no room: that one waits for it then,
 * and with it those that come after.  Caller holds pair->mutex, and the port is open.
 */
void sm_conn_service_pending(struct sm_pair *pair)
{
	struct sm_conn *conn;
	bool room = true;
	LIST_HEAD(todo);

	lockdep_assert_held(&pair->mutex);
	if (list_empty_careful(&pair->pending))
		return;
	spin_lock_irq(&pair->pending_lock);
	list_splice_init(&pair->pending, &todo);
	spin_unlock_irq(&pair->pending_lock);

	while (room && !list_empty(&todo)) {
		conn = list_first_entry(&todo, struct sm_conn, pending);
		/* Kicked again from here on, the connection must go on the list again. */
		spin_lock_irq(&pair->pending_lock);
		list_del_init(&conn->pending);
		clear_bit(SM_CONN_PENDING, &conn->bits);
		spin_unlock_irq(&pair->pending_lock);
		lock_sock(conn->sk);
		room = sm_conn_service(conn);
		release_sock(conn->sk);
		if (!room)
			sm_conn_block(conn);
		sm_conn_put(conn);
	}
	if (room)
		return;
	spin_lock_irq(&pair->pending_lock);
	list_splice_tail_init(&todo, &pair->blocked);
	spin_unlock_irq(&pair->pending_lock);
	if (!sm_rx_full(pair))
		sm_pair_unblock(pair);	/* a buffer was released meanwhile */
}
