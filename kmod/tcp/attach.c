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
#include <net/tcp.h>

#include "tcp/attach.h"
#include "tcp/conn.h"
#include "tcp/events.h"
#include "tcp/info.h"
#include "tcp/rx.h"
#include "tcp/sockops.h"
#include "tcp/tx.h"
#include "tcp/ulp.h"

static void sm_data_ready(struct sock *sk);

/* TCP's own callbacks, which it does not export: those of a socket that was just made. */
static struct {
	void (*data_ready)(struct sock *sk);
	void (*write_space)(struct sock *sk);
	void (*state_change)(struct sock *sk);
	void (*error_report)(struct sock *sk);
} sm_tcp __ro_after_init;

int __init sm_attach_init(void)
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
bool sm_has_default_callbacks(const struct sock *sk)
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
struct sm_conn *sm_conn_of_unlocked(struct sock *sk)
{
	struct sm_conn *conn;

	conn = rcu_dereference_sk_user_data(sk);
	smp_rmb();	/* pairs with sm_attach_locked(), or the next owner's sk_callback_lock */
	if (!conn || READ_ONCE(sk->sk_data_ready) != sm_data_ready)
		conn = NULL;
	smp_rmb();	/* as above */
	if (conn && rcu_dereference_sk_user_data(sk) != conn)
		conn = NULL;
	return conn;
}

/* Have the pair's syncs poll where the connection's packets come from.  Any context. */
static void sm_attach_note_napi(struct sm_conn *conn)
{
#ifdef CONFIG_NET_RX_BUSY_POLL
	sm_rings_note_napi(&conn->pair->rings, READ_ONCE(conn->sk->sk_napi_id));
#endif
}

/* -- the socket's callbacks ----------------------------------------------------------------- */

/* TCP calls this with the socket locked: its spinlock in softirq, or by its owner (backlog). */
static void sm_data_ready(struct sock *sk)
{
	struct sm_conn *conn;

	rcu_read_lock();
	conn = sm_conn_of_rcu(sk);
	if (conn) {
		sm_rx_clear_urgent(sk);
		sm_attach_note_napi(conn);
		if (sock_owned_by_user_nocheck(sk) || !sm_rx_drain(conn))
			sm_conn_schedule(conn);
		sm_info_update(conn);
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
		if (READ_ONCE(conn->partial.len) && sk_stream_is_writeable(sk)) {
			/* With nothing under way TCP lacks memory, and calls us for each try. */
			bool tries = tcp_rtx_and_write_queues_empty(sk);

			sm_tx_flush_later(conn, tries);
			/* The work may have to wait for the locks of the port's other sockets. */
			if (!tries)
				sm_conn_schedule(conn);
		}
		sm_tx_check_writable(conn);
		sm_tcp.write_space(sk);
		sm_info_update(conn);
	}
	rcu_read_unlock();
}

static void sm_state_change(struct sock *sk)
{
	struct sm_conn *conn;

	rcu_read_lock();
	conn = sm_conn_of_rcu(sk);
	if (conn) {
		sm_conn_schedule(conn);
		sm_tcp.state_change(sk);
		sm_info_update(conn);
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
	sm_conn_schedule(conn);
	sm_tcp.error_report(sk);
	sm_info_update_later(conn);
	sm_conn_put(conn);
}

/*
 * A packet goes out, and TCP, which may have been called by a timer, counts it afterwards.  Returns
 * the plug of its connection's pair; NULL if it is of no attached socket.  Caller is an RCU reader.
 */
struct sm_plug *sm_attach_plug_of(const struct sk_buff *skb)
{
	struct sm_conn *conn;

	if (!skb->sk || !sk_fullsock(skb->sk))
		return NULL;
	conn = sm_conn_of_unlocked(skb->sk);
	if (!conn)
		return NULL;
	sm_info_update_later(conn);
	return &conn->pair->plug;
}

/* TCP has space for the rest of a slot. */
void sm_attach_flush_work(struct work_struct *work)
{
	struct sm_conn *conn = container_of(to_delayed_work(work), struct sm_conn, flush_work);

	lock_sock(conn->sk);
	if (conn->attached) {
		sm_tx_flush_partial(conn, false);
		sm_info_update(conn);
	}
	release_sock(conn->sk);
	sm_conn_put(conn);
}

/* -- detaching ------------------------------------------------------------------------------ */

/*
 * Make the socket an ordinary one.  Caller holds the socket lock and a reference.  All bytes that
 * the port has accepted are in TCP's queue when this returns.
 */
void sm_detach_locked(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	sock_owned_by_me(sk);
	sm_tx_flush_partial(conn, true);

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

	WRITE_ONCE(conn->attached, false);
	sm_ulp_detached(conn);
	sm_conn_count(conn, SM_CONNECTIONS, -1);
	sm_info_update(conn);
}

/* Caller holds the socket lock and a reference. */
static void sm_detach_sock(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	if (!conn->attached)
		return;
	sm_detach_locked(conn);
	/* wake readers of the data that TCP still holds */
	sk->sk_data_ready(sk);
}

/* Caller holds port->base.mutex. */
int sm_detach(struct sm_tcp_port *port, u32 id)
{
	struct sm_conn *conn;

	lockdep_assert_held(&port->base.mutex);
	conn = sm_conn_lookup(port, id);
	if (!conn)
		return -ENOENT;
	lock_sock(conn->sk);
	sm_detach_sock(conn);
	release_sock(conn->sk);
	sm_conn_schedule(conn);	/* CLOSED follows the data that is in the ring */
	sm_conn_put(conn);
	return 0;
}

/* No connection of the pair will be served any more. */
static void sm_pair_close(struct sm_pair *pair)
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

/* The port closes.  Caller holds port->base.mutex; no socket can be attached any more. */
void sm_detach_all(struct sm_tcp_port *port)
{
	struct sm_conn *conn;
	unsigned long id;
	u32 i;

	lockdep_assert_held(&port->base.mutex);
	xa_for_each(&port->conns, id, conn) {
		sm_conn_get(conn);
		lock_sock(conn->sk);
		sm_detach_sock(conn);
		sm_conn_remove(conn);
		release_sock(conn->sk);
		sm_conn_put(conn);
	}
	for (i = 0; i < port->base.nrings; i++)
		sm_pair_close(&port->pair[i]);
}

/* -- attaching ------------------------------------------------------------------------------ */

/*
 * Is it established, or has it failed without anybody having been told?  A connection may be reset
 * before accept() returns it: then its events say so, as with one that is reset a moment later.
 */
static bool sm_attachable(const struct sock *sk)
{
	return sk->sk_state == TCP_ESTABLISHED || sk->sk_state == TCP_CLOSE_WAIT ||
	       tcp_passive_fastopen(sk) || (sk->sk_state == TCP_CLOSE && READ_ONCE(sk->sk_err));
}

/* Caller holds the socket lock. */
static int sm_attach_locked(struct sm_conn *conn, struct socket *sock)
{
	struct sock *sk = sock->sk;
	int err;

	sock_owned_by_me(sk);
	if (sk->sk_state == TCP_LISTEN)
		return -EINVAL;
	if (!sm_attachable(sk))
		return -ENOTCONN;
	if (sm_conn_of_locked(sk))
		return -EALREADY;
	/* Nor one where a call waits to send: its bytes would come between those of slots. */
	if (tcp_sk(sk)->repair || sk->sk_write_pending || !sm_has_default_callbacks(sk))
		return -EBUSY;
	/* First, because proto_ops of another upper layer protocol must not become our base. */
	err = sm_ulp_attach(conn);
	if (!err)
		err = sm_ops_replace(sock);
	if (err)
		return err;

	write_lock_bh(&sk->sk_callback_lock);
	if (!sm_has_default_callbacks(sk)) {
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
	sm_tx_disable_mtu_probe(sk);	/* from before a timeout can enable them */
	WRITE_ONCE(conn->err, READ_ONCE(sk->sk_err));	/* was reported before */
	sm_rx_clear_urgent(sk);
	WRITE_ONCE(conn->attached, true);
	conn->acked = tcp_sk(sk)->snd_una;	/* the low half is TCP's, always */
	conn->end = conn->acked;
	conn->report_next = U64_MAX;
	conn->credits = SM_CREDITS_UNLIMITED;
	sm_ulp_attached(conn);
	sm_conn_count(conn, SM_CONNECTIONS, 1);
	sm_info_update(conn);
	return 0;
}

/* The pair for a connection: on the CPU where its packets arrive, the least loaded one. */
static struct sm_pair *sm_pair_for(struct sm_tcp_port *port, const struct sock *sk, u32 ring)
{
	int cpu = READ_ONCE(sk->sk_incoming_cpu);
	struct sm_pair *best = NULL;
	s64 least = 0;
	u32 i;

	if (ring != SM_RING_ANY)
		return &port->pair[array_index_nospec(ring, port->base.nrings)];
	for (i = 0; i < port->base.nrings; i++) {
		struct sm_pair *pair = &port->pair[i];
		s64 load = atomic64_read(&pair->rings.counter[SM_CONNECTIONS]);

		if (READ_ONCE(pair->rings.cpu) != cpu)
			load += SM_MAX_CONNS;	/* any on the right CPU comes first */
		if (!best || load < least) {
			best = pair;
			least = load;
		}
	}
	return best;
}

/*
 * Attach the socket as this connection, which the port's table then has a reference of.  Caller
 * holds port->base.mutex, and has checked the port and the ring.
 */
int sm_attach_conn(struct sm_conn *conn, struct socket *sock, u32 ring)
{
	struct sm_tcp_port *port = conn->port;
	int err;

	lockdep_assert_held(&port->base.mutex);
	sock_hold(sock->sk);
	conn->sk = sock->sk;
	conn->pair = sm_pair_for(port, sock->sk, ring);
	sm_conn_get(conn);
	xa_store(&port->conns, conn->id, conn, 0);	/* reserved: cannot fail */

	lock_sock(sock->sk);
	err = sm_attach_locked(conn, sock);
	if (err)
		sm_conn_remove(conn);
	release_sock(sock->sk);
	if (err)
		return err;
	sm_attach_note_napi(conn);
	sm_conn_schedule(conn);	/* in case there are already bytes queued, or a FIN */
	return 0;
}

/* Caller holds port->base.mutex. */
int sm_attach(struct sm_tcp_port *port, struct socket *sock, struct sm_attach *req)
{
	struct sm_conn *conn = sm_conn_alloc(port);
	int err;

	if (IS_ERR(conn))
		return PTR_ERR(conn);
	err = sm_attach_conn(conn, sock, req->ring);
	if (!err) {
		req->ring = conn->pair->rings.index;
		req->id = conn->id;
		req->record = conn->record;
	}
	sm_conn_put(conn);
	return err;
}
