// SPDX-License-Identifier: GPL-2.0
/*
 * Receiving: from TCP's receive queue into ring slots.
 *
 * The kernel's side of the ring is filled in whatever context TCP delivers: inside the
 * application's own sync while that polls the NIC, in softirq otherwise.  No more is read from TCP
 * than there are free slots, so TCP's own window holds a fast peer back.
 */
#include <net/tcp.h>

#include "tcp/conn.h"
#include "tcp/rx.h"
#include "trace.h"

/* tcp_read_sock()'s actor.  The socket is locked.  Returns the bytes taken. */
static int sm_rx_actor(read_descriptor_t *desc, struct sk_buff *skb, unsigned int offset,
		       size_t len)
{
	struct sm_conn *conn = desc->arg.data;
	struct sm_rxring *rx = conn->pair->rings.rx;
	size_t left = len;

	spin_lock_bh(&rx->lock);
	while (left) {
		struct sm_rxslot *slot = sm_rxring_last(rx, conn->id);
		size_t n;
		void *to;

		if (!slot) {
			if (!conn->credits)
				break;
			slot = sm_rxring_open(rx, conn->id);
			if (!slot)
				break;
			if (conn->credits != SM_CREDITS_UNLIMITED)
				conn->credits--;
		}
		n = min_t(size_t, left, SM_BUF_SIZE - slot->len);
		to = sm_pool_addr(sm_conn_pool(conn), slot->buf) + slot->len;
		if (unlikely(skb_copy_bits(skb, offset, to, n))) {
			/* A device's memory, say: no slot; sm_event_serve() ends it. */
			if (!slot->len)
				sm_rxring_drop_last(rx);
			set_bit(SM_CONN_UNREADABLE, &conn->bits);
			break;
		}
		slot->len += n;
		offset += n;
		left -= n;
	}
	spin_unlock_bh(&rx->lock);

	if (left)
		desc->count = 0;	/* full: stop reading, the window will close */
	return len - left;
}

/*
 * Urgent data comes in line.  tcp_read_sock() would stop before it for ever, and TCP would drop it
 * for the next urgent byte.  The socket is locked.
 */
void sm_rx_clear_urgent(struct sock *sk)
{
	struct tcp_sock *tp = tcp_sk(sk);

	sock_owned_by_me(sk);
	if (unlikely(tp->urg_data))
		WRITE_ONCE(tp->urg_data, 0);
}

/*
 * Is there payload, but no credit for it?  A FIN, which TCP counts as a byte, needs none.
 * tcp_inq() does not see what came with a SYN before the handshake is over.  The socket is locked.
 */
bool sm_rx_uncredited(const struct sm_conn *conn)
{
	const struct tcp_sock *tp = tcp_sk(conn->sk);

	return !conn->credits && tp->rcv_nxt - tp->copied_seq > sock_flag(conn->sk, SOCK_DONE);
}

/*
 * Move a connection's received data into the ring; false if some is left that has to be moved in
 * user context.  The caller holds the socket, by its spinlock in softirq or by lock_sock().
 */
bool sm_rx_drain(struct sm_conn *conn)
{
	read_descriptor_t desc = { .arg.data = conn, .count = 1 };
	int n;

	sock_owned_by_me(conn->sk);
	if (test_bit(SM_CONN_PAUSED, &conn->bits) || sm_rx_uncredited(conn))
		return true;
	if (test_bit(SM_CONN_OPEN_DUE, &conn->bits))
		return false;		/* that event comes first */
	sm_rx_clear_urgent(conn->sk);
	n = tcp_read_sock(conn->sk, &desc, sm_rx_actor);
	if (n > 0) {
		trace_sm_receive(conn, n);
		sm_conn_count(conn, SM_RX_BYTES, n);
		sm_rings_wake(&conn->pair->rings);
	}
	/* A connection that has to end is served without credits. */
	return (desc.count || !conn->credits) && !test_bit(SM_CONN_UNREADABLE, &conn->bits);
}
