// SPDX-License-Identifier: GPL-2.0
/*
 * Sending: from ring slots into TCP, and the release of buffers by ACK.
 *
 * Consecutive slots of one connection become one send.  Slots that fill their buffer go by
 * reference: TCP's skbs hold the pages and carry one ubuf_info for all of the send, whose count
 * reaches zero when the last skb that holds it is freed: when the peer acknowledged it, or when the
 * connection was reset.  TCP copies all others, as it copies small writes, and merges and charges
 * them so.  Their buffers wait in the connection's list for the ACK, of which TCP tells us.
 */
#include <linux/bvec.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <net/tcp.h>

#include "stackmap.h"
#include "trace.h"

/*
 * A slot with less goes by a copy.  By reference TCP would charge a page for it, however small:
 * the send buffer would be full long before the peer's window is.
 */
#define SM_REFERENCE_MIN	SM_BUF_SIZE

/*
 * Buffers of one send that went by reference.  Freed with the last reference of ubuf, in any
 * context.
 */
struct sm_batch {
	struct ubuf_info ubuf;
	struct sm_conn *conn;
	u64 end;		/* conn->end after its last byte */
	u32 bytes;
	u32 n;
	u32 buf[];
};

/* One group of slots, from the ring to TCP. */
struct sm_group {
	struct sm_conn *conn;
	u32 n;
	u32 slot[SM_BATCH_MAX];
	u32 buf[SM_BATCH_MAX];
	struct bio_vec vec[SM_BATCH_MAX];
};

/* May the connection take a slot, so that an application that waits should be told? */
static bool sm_tx_may_send(struct sm_conn *conn)
{
	struct sm_pool *pool = &conn->port->pool;
	u32 pinned = atomic_read(&conn->pinned);

	return !READ_ONCE(conn->rest_len) && sk_stream_is_writeable(conn->sk) &&
	       (!pinned || pinned <= READ_ONCE(pool->nfree) / 2);
}

/* Tell the application that waits, if it is worth it.  Any context. */
void sm_tx_check_writable(struct sm_conn *conn)
{
	if (!test_bit(SM_CONN_BLOCKED, &conn->bits) || !sm_tx_may_send(conn))
		return;
	if (test_and_clear_bit(SM_CONN_BLOCKED, &conn->bits)) {
		set_bit(SM_CONN_WRITABLE, &conn->bits);
		sm_conn_kick(conn);
	}
}

/* Buffers became free: let the pairs go on that wait for one.  Any context. */
static void sm_tx_wake_others(struct sm_port *port)
{
	u32 i;

	smp_mb();	/* free before the look; pairs with sm_rx_refill() and sm_tx_sync() */
	for (i = 0; i < port->npairs; i++) {
		struct sm_pair *pair = &port->pair[i];
		/* The exchange is a barrier: not starved, before the look at blocked ones. */
		bool starved = READ_ONCE(pair->rx.starved) && xchg(&pair->rx.starved, false);

		if (starved)
			sm_pair_unblock(pair);
		if (starved || READ_ONCE(pair->tx.stalled))
			sm_pair_wake(pair);
	}
}

/* Release buffers that held @bytes of payload.  Any context. */
static void sm_tx_release(struct sm_conn *conn, const u32 *buf, u32 n, u32 bytes, bool acked)
{
	trace_sm_release(conn, n, acked);
	sm_count(conn->pair, acked ? SM_RELEASED_ACK : SM_RELEASED_RESET,
		 sm_pool_unpin(&conn->port->pool, buf, n));
	atomic_sub(bytes, &conn->pinned_bytes);
	atomic_sub(n, &conn->pinned);
}

/* After buffers were released: tell the applications that wait for them.  Any context. */
static void sm_tx_released(struct sm_conn *conn)
{
	sm_state_pins(conn);
	/*
	 * Pairs with the barrier in sm_tx_block(): either we see BLOCKED, or the sender sees
	 * these buffers released.
	 */
	smp_mb__after_atomic();
	sm_tx_check_writable(conn);
	sm_tx_wake_others(conn->port);
}

/* -- copied payload, which waits for its ACK ------------------------------------------------ */

/*
 * TCP has copied @bytes from the buffer, of which the last has the sequence number before @end.
 * The buffer is pinned.  Caller holds the socket lock.
 */
static void sm_tx_wait_for_ack(struct sm_conn *conn, u32 idx, u32 bytes, u32 end)
{
	struct sm_buf *buf = conn->port->pool.buf;

	buf[idx].next = 0;
	buf[idx].bytes = bytes;
	buf[idx].end = end;
	if (conn->waiting)
		buf[conn->waiting_last].next = idx;
	else
		conn->waiting = idx;
	conn->waiting_last = idx;
}

/* Release the first buffers of the list, those up to conn->acked or all.  The socket is locked. */
static void sm_tx_drain_waiting(struct sm_conn *conn, bool acked)
{
	const struct sm_buf *buf = conn->port->pool.buf;
	u32 ready[SM_BATCH_MAX];
	u32 n, bytes;

	do {
		n = 0;
		bytes = 0;
		while (conn->waiting && n < ARRAY_SIZE(ready)) {
			u32 idx = conn->waiting;

			if (acked && after(buf[idx].end, (u32)conn->acked))
				break;
			ready[n++] = idx;
			bytes += buf[idx].bytes;
			conn->waiting = buf[idx].next;
		}
		if (n)
			sm_tx_release(conn, ready, n, bytes, acked);
	} while (n == ARRAY_SIZE(ready));
}

/* Release the buffers that were acknowledged.  The socket is locked. */
static void sm_tx_release_acked(struct sm_conn *conn)
{
	u32 first = conn->waiting;

	sm_tx_drain_waiting(conn, true);
	if (conn->waiting != first)
		sm_tx_released(conn);
}

/*
 * Someone waits to send, and TCP lacks space: have it call sk_write_space() when it has some, as
 * poll() does.  The socket is locked.
 */
static void sm_tx_await_space(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	if (test_bit(SM_CONN_BLOCKED, &conn->bits) && !sk_stream_is_writeable(sk) && sk->sk_socket)
		set_bit(SOCK_NOSPACE, &sk->sk_socket->flags);
}

/*
 * The peer has acknowledged all before @ack.  TCP frees its skbs only after this, so a batch that
 * completes for this ACK finds that it was acknowledged.  The socket is locked.
 */
void sm_tx_acked(struct sm_conn *conn, u32 ack)
{
	WRITE_ONCE(conn->acked, conn->acked + (u32)(ack - (u32)conn->acked));
	sm_tx_release_acked(conn);
	sm_tx_await_space(conn);
}

/* Has the peer acknowledged all that TCP has from the connection?  The socket is locked. */
bool sm_tx_all_acked(const struct sm_conn *conn)
{
	return conn->acked >= conn->end;
}

/* No ACK will come any more.  The socket is locked. */
void sm_tx_release_waiting(struct sm_conn *conn)
{
	if (!conn->waiting)
		return;
	sm_tx_drain_waiting(conn, false);
	sm_tx_released(conn);
}

/*
 * While TCP took the bytes in the list, it may have processed packets that waited for the socket
 * lock: the ACK for them, or a reset.  Caller holds the socket lock.
 */
static void sm_tx_catch_up(struct sm_conn *conn)
{
	if (list_empty(&conn->acks))
		sm_tx_release_waiting(conn);
	else
		sm_tx_release_acked(conn);
}

/* -- payload by reference ------------------------------------------------------------------- */

/* The last skb that held these buffers is gone.  Any context. */
static void sm_batch_complete(struct sm_batch *batch)
{
	struct sm_conn *conn = batch->conn;

	if (batch->n) {
		sm_tx_release(conn, batch->buf, batch->n, batch->bytes,
			      READ_ONCE(conn->acked) >= batch->end);
		sm_tx_released(conn);
	}
	sm_conn_put(conn);
	kfree(batch);
}

static void sm_ubuf_complete(struct sk_buff *skb, struct ubuf_info *ubuf, bool success)
{
	if (refcount_dec_and_test(&ubuf->refcnt))
		sm_batch_complete(container_of(ubuf, struct sm_batch, ubuf));
}

SM_DEFINE_UBUF_OPS(sm_ubuf_ops, sm_ubuf_complete);

static struct sm_batch *sm_batch_alloc(struct sm_conn *conn, u32 n)
{
	struct sm_batch *batch = kmalloc(struct_size(batch, buf, n), GFP_KERNEL_ACCOUNT);

	if (!batch)
		return NULL;
	sm_ubuf_init(&batch->ubuf, sm_ubuf_ops);
	refcount_set(&batch->ubuf.refcnt, 1);
	batch->ubuf.flags = SKBFL_ZEROCOPY_FRAG | SKBFL_DONT_ORPHAN;
	sm_conn_get(conn);
	batch->conn = conn;
	batch->end = 0;
	batch->bytes = 0;
	batch->n = 0;
	return batch;
}

/* May the connection's stream go on?  Caller holds the socket lock. */
static bool sm_tx_open(const struct sock *sk)
{
	sock_owned_by_me(sk);
	return ((1 << sk->sk_state) & (TCPF_ESTABLISHED | TCPF_CLOSE_WAIT) ||
		tcp_passive_fastopen(sk)) && !(sk->sk_shutdown & SEND_SHUTDOWN);
}

/*
 * Consume a pending soft error (sk_err; IP_RECVERR reports ICMP messages so) before sending.  The
 * application learns of it by an event; a send that failed for it would leave a hole in the stream.
 */
static void sm_tx_take_error(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	if (unlikely(READ_ONCE(sk->sk_err)) && sm_tx_open(sk))
		sock_error(sk);
}

/*
 * Leave TCP no larger MTU to probe the path for.  A probe takes payload over from the packets that
 * it replaces, but not their ubuf_info.  Since 6.5 it takes the pages themselves, and a peer on
 * this machine would be given them; before, it copies, and buffers would be free before their ACK.
 * A black hole may still make segments smaller.  tcp_mtu_check_reprobe() makes the range larger
 * again after tcp_probe_interval.  The socket is locked.
 */
void sm_tx_no_probes(struct sock *sk)
{
	struct inet_connection_sock *icsk = inet_csk(sk);

	sock_owned_by_me(sk);
	icsk->icsk_mtup.search_high = 0;
	icsk->icsk_mtup.probe_timestamp = tcp_jiffies32;	/* nor look again from now */
}

/*
 * Give @vec to TCP, under @batch by reference or without one to be copied; @flags may be MSG_MORE.
 * Its buffers are pinned.  Returns what tcp_sendmsg() returns.  Caller holds the socket lock.
 */
static int sm_tx_send(struct sm_conn *conn, struct sm_batch *batch, struct bio_vec *vec, u32 n,
		      u32 bytes, int flags)
{
	struct msghdr msg = {
		.msg_flags = flags | MSG_DONTWAIT | MSG_NOSIGNAL,
	};
	struct sock *sk = conn->sk;
	int sent;

	sock_owned_by_me(sk);
	if (batch) {
		msg.msg_flags |= MSG_ZEROCOPY;
		msg.msg_ubuf = &batch->ubuf;
	}
	sm_tx_take_error(conn);
	sm_tx_no_probes(sk);
	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, vec, n, bytes);
	sent = tcp_sendmsg_locked(sk, &msg, bytes);
	trace_sm_send(conn, n, bytes, sent);
	if (sent > 0) {
		conn->end = conn->acked + (u32)(tcp_sk(sk)->write_seq - (u32)conn->acked);
		atomic_add(sent, &conn->pinned_bytes);
		conn->bytes_accepted += sent;
		sm_count(conn->pair, SM_TX_BYTES, sent);
	}
	return sent;
}

/*
 * Would TCP take this slot by reference?  Where the NIC cannot send scattered pages it would copy
 * all the same, and let go of the buffers at once.  Caller holds the socket lock.
 */
static bool sm_tx_by_reference(const struct sm_conn *conn, const struct bio_vec *vec)
{
	return vec->bv_len >= SM_REFERENCE_MIN && conn->sk->sk_route_caps & NETIF_F_SG;
}

/*
 * Remember that a slot was refused with EAGAIN.  Returns after making sure that the event which
 * ends the wait cannot have been missed.  Caller holds the socket lock.
 */
static void sm_tx_block(struct sm_conn *conn)
{
	sock_owned_by_me(conn->sk);
	conn->refused_in = conn->pair->sync_seq;
	conn->pair->tx.refused = true;
	set_bit(SM_CONN_BLOCKED, &conn->bits);
	smp_mb__after_atomic();		/* pairs with sm_tx_released() */
	sm_tx_await_space(conn);
	sm_tx_check_writable(conn);
}

/*
 * Send @vec even where the socket's limits, or those of TCP's memory, would not allow it.  TCP lets
 * a socket that is over its own limit exceed the others, so that it can make progress.
 */
static int sm_tx_force(struct sm_conn *conn, struct bio_vec *vec)
{
	struct tcp_sock *tp = tcp_sk(conn->sk);
	u32 lowat = tp->notsent_lowat;
	struct sock *sk = conn->sk;
	int limit = sk->sk_sndbuf;
	int sent, total = 0;

	WRITE_ONCE(tp->notsent_lowat, U32_MAX);
	while (vec->bv_len) {
		WRITE_ONCE(sk->sk_sndbuf, sk->sk_wmem_queued + 1);
		sent = sm_tx_send(conn, NULL, vec, 1, vec->bv_len, 0);
		if (sent <= 0)
			break;
		vec->bv_offset += sent;
		vec->bv_len -= sent;
		total += sent;
	}
	WRITE_ONCE(sk->sk_sndbuf, limit);
	WRITE_ONCE(tp->notsent_lowat, lowat);
	return total ?: sent;
}

/*
 * The rest will never be sent: reset the connection, so that the peer takes no hole for the end.
 * Caller holds the socket lock.
 */
static void sm_tx_drop_rest(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	WRITE_ONCE(conn->rest_len, 0);
	if (sk->sk_state != TCP_CLOSE) {
		sk->sk_disconnects++;	/* for calls that sleep on the socket */
		tcp_disconnect(sk, 0);
	}
	sm_tx_release(conn, &conn->rest_buf, 1, conn->rest_copied, false);
	sm_tx_released(conn);
}

/*
 * Send the rest of a slot of which TCP took only part, by a copy.  Caller holds the socket
 * lock.
 *
 * With @closing the connection is about to be closed, shut down or given back, so this is the
 * last chance: TCP's limits are lifted for these few bytes.  If there is no memory even so, or if
 * TCP has its FIN already, the connection is reset: the peer must not take a hole for the end, nor
 * the bytes after it for the next ones.
 */
void sm_tx_flush_rest(struct sm_conn *conn, bool closing)
{
	struct sock *sk = conn->sk;
	struct bio_vec vec;
	int sent;

	sock_owned_by_me(sk);
	if (!conn->rest_len)
		return;
	bvec_set_page(&vec, conn->port->pool.buf[conn->rest_buf].page, conn->rest_len,
		      conn->rest_off);
	sent = closing ? sm_tx_force(conn, &vec) :
			 sm_tx_send(conn, NULL, &vec, 1, conn->rest_len, 0);
	if (sent > 0) {
		conn->rest_off += sent;
		conn->rest_copied += sent;
		WRITE_ONCE(conn->rest_len, conn->rest_len - sent);
		if (!conn->rest_len) {
			sm_tx_wait_for_ack(conn, conn->rest_buf, conn->rest_copied,
					   tcp_sk(sk)->write_seq);
			sm_tx_catch_up(conn);
		}
	}
	if (conn->rest_len && (closing || !sm_tx_open(sk)))
		sm_tx_drop_rest(conn);
	sm_tx_check_writable(conn);
}

/* -- slots ---------------------------------------------------------------------------------- */

static void sm_slot_refuse(struct sm_pair *pair, u32 i, int err)
{
	struct sm_slot *slot = &pair->tx.ring->slot[i];
	u64 ptr = READ_ONCE(slot->ptr) & GENMASK_ULL(47, 0);

	WRITE_ONCE(slot->ptr, ptr | SM_PTR_EVENT(SM_SLOT_REFUSED, err));
	trace_sm_refuse(pair, i, SM_PTR_ID(ptr), err);
	switch (err) {
	case EAGAIN:
		sm_count(pair, SM_AGAIN, 1);
		break;
	case EINVAL:
	case ERANGE:
	case EPERM:
		sm_count(pair, SM_BAD_SLOT, 1);
		break;
	case ENOENT:
		sm_count(pair, SM_UNKNOWN_CONN, 1);
		break;
	default:
		sm_count(pair, SM_DEAD_CONN, 1);
	}
}

/* The slot was accepted: give it another buffer at once. */
static void sm_slot_replace(struct sm_pair *pair, u32 i)
{
	struct sm_txring *tx = &pair->tx;
	struct sm_slot *slot = &tx->ring->slot[i];
	u32 idx = tx->spare[--tx->nspare];

	sm_pool_give(&pair->port->pool, idx);
	WRITE_ONCE(slot->buf_idx, idx);
	WRITE_ONCE(slot->len, 0);
	WRITE_ONCE(slot->flags, NS_BUF_CHANGED);
	WRITE_ONCE(slot->ptr, 0);
}

/*
 * Add slot @i to the group if it is sound; refuse it otherwise.  @slot is our copy of it.
 * Caller holds pair->mutex.
 */
static void sm_group_add(struct sm_pair *pair, struct sm_group *g, u32 i,
			 const struct sm_slot *slot)
{
	struct sm_pool *pool = &pair->port->pool;
	int idx;

	lockdep_assert_held(&pair->mutex);
	if (!sm_slot_sound(slot)) {
		sm_slot_refuse(pair, i, EINVAL);
		return;
	}
	idx = sm_pool_claim(pool, slot->buf_idx, SM_TX_PINNED);
	if (idx < 0) {
		sm_slot_refuse(pair, i, -idx);
		return;
	}
	g->slot[g->n] = i;
	bvec_set_page(&g->vec[g->n], pool->buf[idx].page, slot->len, SM_PTR_OFFSET(slot->ptr));
	g->buf[g->n] = idx;
	g->n++;
}

/* How many buffers the connection may pin: as many as are free, so that it leaves others some. */
static u32 sm_tx_allowance(struct sm_conn *conn)
{
	struct sm_pair *pair = conn->pair;
	u32 avail = READ_ONCE(pair->port->pool.nfree) + pair->tx.nspare;
	u32 pinned = atomic_read(&conn->pinned);

	if (!pinned)
		return max(avail / 2, 1U);
	return avail > pinned ? (avail - pinned + 1) / 2 : 0;
}

/* Buffers [from, g->n) were not accepted. */
static void sm_group_refuse(struct sm_pair *pair, struct sm_group *g, u32 from, int err)
{
	u32 i;

	for (i = from; i < g->n; i++) {
		sm_pool_give(&pair->port->pool, g->buf[i]);
		sm_slot_refuse(pair, g->slot[i], err);
	}
	g->n = from;
}

/*
 * TCP took @sent bytes of the slots from @i on, under @batch or by a copy.  Returns the first slot
 * of which it took nothing.  Caller holds the socket lock.
 */
static u32 sm_group_took(struct sm_group *g, u32 i, int sent, struct sm_batch *batch)
{
	struct sm_conn *conn = g->conn;
	u32 end = (u32)conn->end - sent;

	if (batch) {
		batch->bytes += sent;
		batch->end = conn->end;
	}
	for (; sent > 0; i++) {
		u32 len = min_t(u32, sent, g->vec[i].bv_len);

		end += len;
		sent -= len;
		if (batch)
			batch->buf[batch->n++] = g->buf[i];
		if (len < g->vec[i].bv_len) {
			/* TCP has the first part; we keep the buffer for the second too. */
			conn->rest_buf = g->buf[i];
			conn->rest_off = g->vec[i].bv_offset + len;
			conn->rest_copied = batch ? 0 : len;
			WRITE_ONCE(conn->rest_len, g->vec[i].bv_len - len);
			if (batch) {
				sm_pool_pin(&conn->port->pool, &g->buf[i], 1);
				atomic_inc(&conn->pinned);
			}
		} else if (!batch) {
			sm_tx_wait_for_ack(conn, g->buf[i], len, end);
		}
	}
	return i;
}

/*
 * Give the group's slots to TCP, runs of them by reference and runs by a copy.  Returns how many it
 * took, at least in part; @err is why not all.  Caller holds the socket lock.
 *
 * All runs but the last are sent with MSG_MORE, so that no short segment goes out between two.  If
 * TCP takes nothing of the next run, then it has full segments of this one to send, and sends the
 * end after them.
 */
static u32 sm_group_to_tcp(struct sm_group *g, int *err)
{
	struct sm_conn *conn = g->conn;
	struct sm_batch *batch = NULL;
	bool by_copy = false;
	u32 i, end, bytes;
	int sent;

	*err = EAGAIN;
	for (i = 0; i < g->n; i = end) {
		bool by_ref = !by_copy && sm_tx_by_reference(conn, &g->vec[i]);

		if (by_ref && !batch) {
			batch = sm_batch_alloc(conn, g->n);
			if (!batch) {
				by_copy = true;
				by_ref = false;
			}
		}
		bytes = g->vec[i].bv_len;
		for (end = i + 1; end < g->n; end++) {
			if (by_ref != (!by_copy && sm_tx_by_reference(conn, &g->vec[end])))
				break;
			bytes += g->vec[end].bv_len;
		}
		sent = sm_tx_send(conn, by_ref ? batch : NULL, g->vec + i, end - i, bytes,
				  end < g->n ? MSG_MORE : 0);
		if (sent < (int)bytes) {
			if (sent < 0)
				*err = -sent;
			else
				i = sm_group_took(g, i, sent, by_ref ? batch : NULL);
			break;
		}
		sm_group_took(g, i, sent, by_ref ? batch : NULL);
	}
	sm_tx_catch_up(conn);
	if (batch)
		sm_ubuf_complete(NULL, &batch->ubuf, true);
	return i;
}

/* Send the group.  Caller holds pair->mutex and the socket lock. */
static void sm_group_send(struct sm_pair *pair, struct sm_group *g)
{
	struct sm_conn *conn = g->conn;
	u32 allowed, taken;
	bool block;
	int err;

	lockdep_assert_held(&pair->mutex);
	sock_owned_by_me(conn->sk);
	if (!conn->attached || conn->shut) {
		sm_group_refuse(pair, g, 0, conn->attached ? EPIPE : ENOENT);
		return;
	}
	sm_tx_flush_rest(conn, false);
	if (conn->rest_len || conn->refused_in == pair->sync_seq) {
		sm_group_refuse(pair, g, 0, EAGAIN);
		sm_tx_block(conn);
		return;
	}
	allowed = sm_tx_allowance(conn);
	block = allowed < g->n;
	if (block)
		sm_group_refuse(pair, g, allowed, EAGAIN);
	if (!g->n) {
		sm_tx_block(conn);
		return;
	}

	/* Pinned before TCP can see them; slots that TCP does not take are unpinned below. */
	sm_pool_pin(&pair->port->pool, g->buf, g->n);
	atomic_add(g->n, &conn->pinned);
	taken = sm_group_to_tcp(g, &err);
	if (taken < g->n) {
		/* While the stream may go on, later slots must not overtake refused ones. */
		if (taken || sm_tx_open(conn->sk))
			err = EAGAIN;
		atomic_sub(g->n - taken, &conn->pinned);
		sm_pool_unpin_refused(&pair->port->pool, g->buf + taken, g->n - taken);
		sm_group_refuse(pair, g, taken, err);
		if (err == EAGAIN)
			block = true;
	}
	trace_sm_pin(conn, g->n);
	sm_count(pair, SM_SENT, g->n);
	if (block || conn->rest_len)
		sm_tx_block(conn);
}

static void sm_slot_read(const struct sm_ring *ring, u32 i, struct sm_slot *slot)
{
	slot->buf_idx = READ_ONCE(ring->slot[i].buf_idx);
	slot->len = READ_ONCE(ring->slot[i].len);
	slot->ptr = READ_ONCE(ring->slot[i].ptr);
}

/*
 * Make sure that spare buffers for a group are at hand, and not many more, because the pool is
 * locked meanwhile.  @left slots are left in this sync.  Returns how many there are.
 */
static u32 sm_tx_spares(struct sm_pair *pair, u32 left)
{
	struct sm_txring *tx = &pair->tx;
	u32 want = min_t(u32, left, 4 * SM_BATCH_MAX);

	if (tx->nspare < min_t(u32, left, SM_BATCH_MAX))
		tx->nspare += sm_pool_get(&pair->port->pool, tx->spare + tx->nspare,
					  want - tx->nspare, SM_FREE);
	return tx->nspare;
}

/* The connection that slot @i is for, with a reference; NULL if this pair has no such one. */
static struct sm_conn *sm_tx_conn(struct sm_pair *pair, const struct sm_slot *slot)
{
	struct sm_conn *conn = sm_conn_lookup(pair->port, SM_PTR_ID(slot->ptr));

	if (conn && conn->pair != pair) {
		sm_conn_put(conn);		/* another ring's */
		return NULL;
	}
	return conn;
}

/* Refuse slot @i for now, for want of a buffer.  Caller holds pair->mutex. */
static u32 sm_tx_refuse(struct sm_pair *pair, u32 i)
{
	struct sm_txring *tx = &pair->tx;
	struct sm_conn *conn;
	struct sm_slot slot;

	lockdep_assert_held(&pair->mutex);
	sm_slot_read(tx->ring, i, &slot);
	conn = sm_tx_conn(pair, &slot);
	if (conn) {
		lock_sock(conn->sk);
		sm_slot_refuse(pair, i, conn->attached ? EAGAIN : ENOENT);
		if (conn->attached)
			sm_tx_block(conn);
		release_sock(conn->sk);
		sm_conn_put(conn);
	} else {
		sm_slot_refuse(pair, i, ENOENT);
	}
	return sm_next(i, tx->n);
}

/*
 * Process slots of one connection from @i on, at most up to @head.  Returns the next slot to
 * process; @i itself when no buffer was there.  Caller holds pair->mutex.
 */
static u32 sm_tx_group(struct sm_pair *pair, u32 i, u32 head)
{
	struct sm_txring *tx = &pair->tx;
	u32 room = min_t(u32, sm_tx_spares(pair, sm_distance(i, head, tx->n)), SM_BATCH_MAX);
	struct sm_group *g = tx->group;
	struct sm_slot slot;
	u32 id, len, n, j;

	if (!room)
		return i;
	sm_slot_read(tx->ring, i, &slot);
	id = SM_PTR_ID(slot.ptr);
	g->conn = sm_tx_conn(pair, &slot);
	if (!g->conn) {
		sm_slot_refuse(pair, i, ENOENT);
		return sm_next(i, tx->n);
	}
	/* Count those that follow; each is read, once, below. */
	for (n = 1, j = sm_next(i, tx->n); n < room && j != head; n++, j = sm_next(j, tx->n))
		if (SM_PTR_ID(READ_ONCE(tx->ring->slot[j].ptr)) != id)
			break;
	g->n = 0;
	sm_group_add(pair, g, i, &slot);
	for (len = 1, j = sm_next(i, tx->n); len < n; len++, j = sm_next(j, tx->n)) {
		sm_slot_read(tx->ring, j, &slot);
		if (SM_PTR_ID(slot.ptr) != id)
			break;		/* changed since: the next group's */
		sm_group_add(pair, g, j, &slot);
	}
	i = j;
	if (g->n) {
		u32 k;

		if (tx->gather && !tx->holding)
			sm_nic_hold(pair);
		lock_sock(g->conn->sk);
		sm_group_send(pair, g);
		sm_state_update(g->conn);
		release_sock(g->conn->sk);
		for (k = 0; k < g->n; k++)
			sm_slot_replace(pair, g->slot[k]);
	}
	sm_conn_put(g->conn);
	return i;
}

int sm_tx_init(struct sm_pair *pair, u32 slots)
{
	struct sm_txring *tx = &pair->tx;
	u32 i;

	tx->n = slots;
	tx->spare = kvmalloc_array(slots, sizeof(*tx->spare), SM_GFP);
	tx->group = kvmalloc(sizeof(*tx->group), SM_GFP);
	if (!tx->spare || !tx->group)
		return -ENOMEM;
	if (sm_pool_get(&pair->port->pool, tx->spare, slots, SM_USER) != slots)
		return -ENOMEM;
	for (i = 0; i < slots; i++)
		tx->ring->slot[i].buf_idx = tx->spare[i];
	tx->ring->tail = slots - 1;
	return 0;
}

void sm_tx_destroy(struct sm_pair *pair)
{
	kvfree(pair->tx.spare);
	kvfree(pair->tx.group);
}

/* Send the slots that the application submitted.  Caller holds pair->mutex. */
int sm_tx_sync(struct sm_pair *pair)
{
	struct sm_txring *tx = &pair->tx;
	struct sm_ring *ring = tx->ring;
	/* (B), pairs with the application's release store (A): slots and payload before head. */
	u32 head = smp_load_acquire(&ring->head);
	u32 cur = READ_ONCE(ring->cur);
	u32 tail = sm_prev(tx->done, tx->n);
	u32 next;

	lockdep_assert_held(&pair->mutex);
	if (!sm_ring_sound(head, cur, tx->head, tail, tx->n)) {
		WRITE_ONCE(ring->head, tx->head);
		WRITE_ONCE(ring->cur, tx->head);
		WRITE_ONCE(ring->tail, tail);
		sm_count(pair, SM_BAD_RING, 1);
		return -EINVAL;
	}
	tx->head = head;
	if (tx->done == head)
		return 0;

	if (!++pair->sync_seq)
		pair->sync_seq = 1;	/* 0 means: never refused */
	tx->refused = false;
	WRITE_ONCE(tx->stalled, false);
	/* One slot makes one send: nothing to gather. */
	tx->gather = sm_next(tx->done, tx->n) != head;
	while (tx->done != head) {
		next = sm_tx_group(pair, tx->done, head);
		/* Refused slots must not be overtaken: a sync that refuses does not stop. */
		if (next == tx->done && tx->refused)
			next = sm_tx_refuse(pair, next);
		if (next == tx->done) {
			sm_count(pair, SM_STALL, 1);
			WRITE_ONCE(tx->stalled, true);
			/*
			 * Pairs with sm_tx_wake_others(): either it sees stalled, or we see the
			 * buffer that was released.
			 */
			smp_mb();
			if (READ_ONCE(pair->port->pool.nfree))
				sm_pair_wake(pair);
			break;
		}
		tx->done = next;
	}
	if (tx->holding)
		sm_nic_release(pair);
	if (tx->nspare) {
		sm_pool_put(&pair->port->pool, tx->spare, tx->nspare);
		tx->nspare = 0;
		sm_tx_wake_others(pair->port);
	}
	/* (C), pairs with the application's acquire load (D): slots are replaced or refused. */
	smp_store_release(&ring->tail, sm_prev(tx->done, tx->n));
	return 0;
}
