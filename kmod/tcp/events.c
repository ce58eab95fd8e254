// SPDX-License-Identifier: GPL-2.0
/*
 * Events, and all else that a connection needs user context for.
 *
 * Events need the socket's lock and a settled receive queue.  So callbacks put the connection on
 * its pair's list, and the next sync or poll() serves it: data first, then its events.
 */
#include <net/tcp.h>

#include "tcp/attach.h"
#include "tcp/conn.h"
#include "tcp/events.h"
#include "tcp/info.h"
#include "tcp/rx.h"
#include "tcp/tx.h"
#include "trace.h"

/* Put an event with a payload into the ring; false if there is no room. */
static bool sm_event_put_with(struct sm_conn *conn, u8 flags, u8 err, const void *payload, u16 len)
{
	struct sm_rxring *rx = conn->pair->rings.rx;
	struct sm_rxslot *slot;

	spin_lock_bh(&rx->lock);
	slot = sm_rxring_open(rx, conn->id);
	if (slot) {
		slot->flags = flags;
		slot->err = err;
		slot->len = len;
		trace_sm_event(conn, flags, err);
		if (len)
			memcpy(sm_pool_addr(sm_conn_pool(conn), slot->buf), payload, len);
	}
	spin_unlock_bh(&rx->lock);
	return slot;
}

static bool sm_event_put(struct sm_conn *conn, u8 flags, u8 err)
{
	return sm_event_put_with(conn, flags, err, NULL, 0);
}

/* Put one event into the ring, once; false if there is no room. */
static bool sm_event_once(struct sm_conn *conn, enum sm_conn_bit sent, u8 flags, u8 err)
{
	if (test_bit(sent, &conn->bits))
		return true;
	if (!sm_event_put(conn, flags, err))
		return false;
	set_bit(sent, &conn->bits);
	return true;
}

/* Report a listener's new connection and its peer; false if there is no room. */
static bool sm_event_announce(struct sm_conn *conn)
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
	return sm_event_put_with(conn, SM_SLOT_OPEN, 0, &open, sizeof(open));
}

/* Report the bytes that the peer has acknowledged; false if there is no room. */
static bool sm_event_acked(struct sm_conn *conn)
{
	u64 missing = conn->end > conn->acked ? conn->end - conn->acked : 0;
	struct sm_acked acked = { .bytes = conn->bytes_accepted - missing };

	return sm_event_put_with(conn, SM_SLOT_ACKED, 0, &acked, sizeof(acked));
}

/* Tell of the end of the stream, if it has come; false if data or the event found no room. */
static bool sm_event_end_of_input(struct sm_conn *conn)
{
	const struct sock *sk = conn->sk;

	if (!skb_queue_empty(&sk->sk_receive_queue))
		return false;
	/* SOCK_DONE: a FIN came.  RCV_SHUTDOWN alone may also be what a reset leaves. */
	if (!sock_flag(sk, SOCK_DONE) &&
	    (!(sk->sk_shutdown & RCV_SHUTDOWN) || READ_ONCE(conn->err)))
		return true;
	return sm_event_once(conn, SM_CONN_EOF_SENT, SM_SLOT_EOF, 0);
}

/* The connection cannot go on: reset it.  The application is told by its error and its end. */
static void sm_event_give_up(struct sm_conn *conn)
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
 * for lack of room.  Caller holds pair->rings.mutex and the socket lock.
 */
static bool sm_event_serve(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;
	bool paused;

	lockdep_assert_held(&conn->pair->rings.mutex);
	sock_owned_by_me(sk);
	if (test_bit(SM_CONN_CLOSED_SENT, &conn->bits))
		return true;		/* a late ACK still schedules it */
	if (test_bit(SM_CONN_OPEN_DUE, &conn->bits)) {
		if (!sm_event_announce(conn))
			return false;
		clear_bit(SM_CONN_OPEN_DUE, &conn->bits);
	}

	if (conn->attached && conn->partial.len && sk_stream_is_writeable(sk))
		sm_tx_flush_partial(conn, false);
	/* A reset frees the send buffer, but nothing can be sent any more. */
	if (test_and_clear_bit(SM_CONN_WRITABLE, &conn->bits) && sk->sk_state != TCP_CLOSE &&
	    !sm_event_put(conn, SM_SLOT_WRITABLE, 0)) {
		set_bit(SM_CONN_WRITABLE, &conn->bits);
		return false;
	}
	if (test_and_clear_bit(SM_CONN_ACKED_DUE, &conn->bits) && !sm_event_acked(conn)) {
		set_bit(SM_CONN_ACKED_DUE, &conn->bits);
		return false;
	}
	if (conn->attached) {
		sm_rx_drain(conn);
		if (unlikely(test_bit(SM_CONN_UNREADABLE, &conn->bits)))
			sm_event_give_up(conn);
		sm_info_update(conn);
		paused = test_bit(SM_CONN_PAUSED, &conn->bits) || sm_rx_uncredited(conn);
		if (!paused && !sm_event_end_of_input(conn))
			return false;
		if (READ_ONCE(conn->err) &&
		    !sm_event_once(conn, SM_CONN_ERROR_SENT, SM_SLOT_ERROR, READ_ONCE(conn->err)))
			return false;
		/* Unread data of a paused connection is dropped only if the connection failed. */
		if (sk->sk_state != TCP_CLOSE || (paused && !READ_ONCE(conn->err)))
			return true;
	}
	if (!sm_event_once(conn, SM_CONN_CLOSED_SENT, SM_SLOT_CLOSED, 0))
		return false;
	if (conn->attached)
		sm_detach_locked(conn);
	sm_tx_forget(conn);
	sm_conn_remove(conn);
	return true;
}

/*
 * Serve the connections that were scheduled, until the ring has no room: that one waits for it
 * then, and with it those that come after.  Caller holds pair->rings.mutex, and the port is open.
 */
void sm_events_serve(struct sm_pair *pair)
{
	struct sm_conn *conn;
	bool room = true;
	LIST_HEAD(todo);

	lockdep_assert_held(&pair->rings.mutex);
	if (list_empty_careful(&pair->pending))
		return;
	spin_lock_irq(&pair->pending_lock);
	list_splice_init(&pair->pending, &todo);
	spin_unlock_irq(&pair->pending_lock);

	while (room && !list_empty(&todo)) {
		conn = list_first_entry(&todo, struct sm_conn, pending);
		/* Scheduled again from here on, the connection must go on the list again. */
		spin_lock_irq(&pair->pending_lock);
		list_del_init(&conn->pending);
		clear_bit(SM_CONN_PENDING, &conn->bits);
		spin_unlock_irq(&pair->pending_lock);
		lock_sock(conn->sk);
		room = sm_event_serve(conn);
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
	if (!sm_rxring_full(pair->rings.rx))
		sm_pair_unblock(pair);	/* a buffer was released meanwhile */
}
