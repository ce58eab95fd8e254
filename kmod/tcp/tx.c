// SPDX-License-Identifier: GPL-2.0
/*
 * Sending: from ring slots into TCP.
 *
 * Consecutive slots of one connection become one send.  Slots that fill their buffer go by
 * reference.  TCP copies all others, as it copies small writes, and merges and charges them so.
 * zerocopy.c releases the buffers.
 */
#include <linux/bvec.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <net/tcp.h>

#include "tcp/info.h"
#include "tcp/tx.h"
#include "tcp/zerocopy.h"
#include "trace.h"

/*
 * A slot with less goes by a copy.  By reference TCP would charge a page for it, however small:
 * the send buffer would be full long before the peer's window is.
 */
#define SM_REFERENCE_MIN	SM_BUF_SIZE

/* One group of slots, from the ring to TCP. */
struct sm_group {
	struct sm_conn *conn;
	u32 n;
	u64 report;		/* bit n: slot n has NS_REPORT */
	u32 slot[SM_BATCH_MAX];
	u32 buf[SM_BATCH_MAX];
	struct bio_vec vec[SM_BATCH_MAX];
};

/* May the connection take a slot, so that an application that waits should be told? */
static bool sm_tx_may_send(struct sm_conn *conn)
{
	struct sm_pool *pool = sm_conn_pool(conn);
	u32 pinned = atomic_read(&conn->pinned);

	return !READ_ONCE(conn->partial.len) && sk_stream_is_writeable(conn->sk) &&
	       (!pinned || pinned <= READ_ONCE(pool->nfree) / 2);
}

/* The application waits: tell it, if it is worth it.  Any context. */
void sm_tx_tell_writable(struct sm_conn *conn)
{
	if (!sm_tx_may_send(conn))
		return;
	if (test_and_clear_bit(SM_CONN_BLOCKED, &conn->bits)) {
		set_bit(SM_CONN_WRITABLE, &conn->bits);
		sm_conn_schedule(conn);
	}
}

/* Have the port's work send the rest of a slot, @delay jiffies from now.  The socket is locked. */
void sm_tx_flush_later(struct sm_conn *conn, unsigned long delay)
{
	sm_conn_get(conn);
	if (!queue_delayed_work(conn->port->wq, &conn->flush_work, delay))
		sm_conn_put(conn);
}

/*
 * Someone waits to send, and TCP lacks space: have it call sk_write_space() when it has some, as
 * poll() does.  For the rest of a slot, whether it has some or not: TCP may enlarge its send buffer
 * in the very send that leaves the rest, and calls sk_write_space() then, before we know of it.
 * The next ACK makes TCP call it again.  None will come if all that TCP took has been acknowledged
 * within that send, and TCP lacked memory then: such a rest is tried again.  The socket is locked.
 */
void sm_tx_ask_for_space(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;
	bool lacks = test_bit(SM_CONN_BLOCKED, &conn->bits) && !sk_stream_is_writeable(sk);

	if ((conn->partial.len || lacks) && sk->sk_socket)
		set_bit(SOCK_NOSPACE, &sk->sk_socket->flags);
	if (conn->partial.len && tcp_rtx_and_write_queues_empty(sk))
		sm_tx_flush_later(conn, 1);
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
void sm_tx_disable_mtu_probe(struct sock *sk)
{
	struct inet_connection_sock *icsk = inet_csk(sk);

	sock_owned_by_me(sk);
	icsk->icsk_mtup.search_high = 0;
	icsk->icsk_mtup.probe_timestamp = tcp_jiffies32;	/* nor look again from now */
}

/*
 * Give @vec to TCP, under @batch by reference or without one to be copied; @flags may be MSG_MORE.
 * Its buffers are pinned.  Returns the bytes that it took, or -errno.  Caller holds the socket
 * lock.
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
	sm_tx_disable_mtu_probe(sk);
	iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, vec, n, bytes);
	sent = tcp_sendmsg_locked(sk, &msg, bytes);
	trace_sm_send(conn, n, bytes, sent);
	if (sent > 0) {
		conn->end = conn->acked + (u32)(tcp_sk(sk)->write_seq - (u32)conn->acked);
		atomic_add(sent, &conn->pinned_bytes);
		conn->bytes_accepted += sent;
		sm_conn_count(conn, SM_TX_BYTES, sent);
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
	conn->pair->refused = true;
	set_bit(SM_CONN_BLOCKED, &conn->bits);
	smp_mb__after_atomic();		/* pairs with sm_zc_released() */
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
static void sm_tx_drop_partial(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;

	WRITE_ONCE(conn->partial.len, 0);
	if (sk->sk_state != TCP_CLOSE) {
		sk->sk_disconnects++;	/* for calls that sleep on the socket */
		tcp_disconnect(sk, 0);
	}
	sm_zc_drop(conn, conn->partial.buf, conn->partial.copied);
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
void sm_tx_flush_partial(struct sm_conn *conn, bool closing)
{
	struct sock *sk = conn->sk;
	struct bio_vec vec;
	int sent;

	sock_owned_by_me(sk);
	if (!conn->partial.len)
		return;
	bvec_set_page(&vec, sm_conn_pool(conn)->buf[conn->partial.buf].page, conn->partial.len,
		      conn->partial.off);
	sent = closing ? sm_tx_force(conn, &vec) :
			 sm_tx_send(conn, NULL, &vec, 1, conn->partial.len, 0);
	if (sent > 0) {
		conn->partial.off += sent;
		conn->partial.copied += sent;
		WRITE_ONCE(conn->partial.len, conn->partial.len - sent);
		if (!conn->partial.len) {
			sm_zc_wait_for_ack(conn, conn->partial.buf, conn->partial.copied,
					   tcp_sk(sk)->write_seq);
			if (conn->partial.report)
				sm_zc_report(conn, conn->end);
			sm_zc_catch_up(conn);
		}
	}
	if (conn->partial.len && (closing || !sm_tx_open(sk)))
		sm_tx_drop_partial(conn);
	/* TCP has called sk_write_space(), and may have no space again by what was sent here. */
	sm_tx_await_space(conn);
	sm_tx_check_writable(conn);
}

/* -- slots ---------------------------------------------------------------------------------- */

/*
 * Add slot @i to the group if it is valid; refuse it otherwise.  @slot is our copy of it.
 * Caller holds pair->rings.mutex.
 */
static void sm_group_add(struct sm_pair *pair, struct sm_group *g, u32 i,
			 const struct sm_slot *slot)
{
	struct sm_pool *pool = &pair->rings.port->pool;
	int idx;

	lockdep_assert_held(&pair->rings.mutex);
	if (!sm_slot_valid(slot)) {
		sm_txring_refuse(pair->rings.tx, i, EINVAL);
		return;
	}
	idx = sm_pool_claim(pool, slot->buf_idx, SM_TX_PINNED);
	if (idx < 0) {
		sm_txring_refuse(pair->rings.tx, i, -idx);
		return;
	}
	if (slot->flags & NS_REPORT)
		g->report |= BIT_ULL(g->n);
	g->slot[g->n] = i;
	bvec_set_page(&g->vec[g->n], pool->buf[idx].page, slot->len, SM_PTR_OFFSET(slot->ptr));
	g->buf[g->n] = idx;
	g->n++;
}

/* How many buffers the connection may pin: as many as are free, so that it leaves others some. */
static u32 sm_tx_allowance(struct sm_conn *conn)
{
	struct sm_pair *pair = conn->pair;
	u32 avail = READ_ONCE(pair->rings.port->pool.nfree) + pair->rings.tx->nspare;
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
		sm_pool_give(&pair->rings.port->pool, g->buf[i]);
		sm_txring_refuse(pair->rings.tx, g->slot[i], err);
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
	u64 end = conn->end - sent;

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
			conn->partial.buf = g->buf[i];
			conn->partial.off = g->vec[i].bv_offset + len;
			conn->partial.copied = batch ? 0 : len;
			conn->partial.report = g->report & BIT_ULL(i);
			WRITE_ONCE(conn->partial.len, g->vec[i].bv_len - len);
			if (batch)
				sm_zc_pin_rest(conn, g->buf[i]);
		} else {
			if (!batch)
				sm_zc_wait_for_ack(conn, g->buf[i], len, end);
			if (g->report & BIT_ULL(i))
				sm_zc_report(conn, end);
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
			batch = sm_zc_batch_alloc(conn, g->n);
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
	sm_zc_catch_up(conn);
	if (batch)
		sm_zc_batch_put(batch);
	return i;
}

/* Send the group.  Caller holds pair->rings.mutex and the socket lock. */
static void sm_group_send(struct sm_pair *pair, struct sm_group *g)
{
	struct sm_conn *conn = g->conn;
	u32 allowed, taken;
	bool block;
	int err;

	lockdep_assert_held(&pair->rings.mutex);
	sock_owned_by_me(conn->sk);
	if (!conn->attached || conn->shut) {
		sm_group_refuse(pair, g, 0, conn->attached ? EPIPE : ENOENT);
		return;
	}
	if (conn->partial.len)
		sm_tx_flush_partial(conn, false);
	if (conn->partial.len || conn->refused_in == pair->sync_seq) {
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
	sm_zc_pin(conn, g->n);
	taken = sm_group_to_tcp(g, &err);
	if (taken < g->n) {
		/* While the stream may go on, later slots must not overtake refused ones. */
		if (taken || sm_tx_open(conn->sk))
			err = EAGAIN;
		sm_zc_unpin_refused(conn, g->n - taken);
		sm_group_refuse(pair, g, taken, err);
		if (err == EAGAIN)
			block = true;
	}
	trace_sm_pin(conn, g->n);
	sm_count(&pair->rings, SM_SENT, g->n);
	if (block || conn->partial.len)
		sm_tx_block(conn);
}

/* Where the pair knows the connection of this id, if it does.  Caller holds pair->rings.mutex. */
static struct sm_conn **sm_tx_known(struct sm_pair *pair, u32 id)
{
	lockdep_assert_held(&pair->rings.mutex);
	return &pair->known[id % SM_PAIR_KNOWN];
}

/* The connection leaves the port's table.  Caller holds pair->rings.mutex. */
void sm_tx_forget(struct sm_conn *conn)
{
	struct sm_conn **known = sm_tx_known(conn->pair, conn->id);

	if (*known == conn)
		*known = NULL;
}

/*
 * The connection that a slot is for; NULL if this pair has no such one.  Caller holds
 * pair->rings.mutex.  While it does, a connection that was attached stays in the port's table: it
 * leaves that when its end was served, or when the port is closed and no sync follows.  So the
 * table's reference is enough.
 */
static struct sm_conn *sm_tx_conn(struct sm_pair *pair, const struct sm_slot *slot)
{
	u32 id = SM_PTR_ID(slot->ptr);
	struct sm_conn **known = sm_tx_known(pair, id);
	struct sm_conn *conn;
	bool ours;

	if (*known && (*known)->id == id)
		return *known;
	conn = sm_conn_lookup(sm_tcp_port(pair->rings.port), id);
	if (!conn)
		return NULL;
	ours = conn->pair == pair && READ_ONCE(conn->attached);
	sm_conn_put(conn);
	if (!ours)
		return NULL;
	*known = conn;
	return conn;
}

/* Refuse slot @i for now, for want of a buffer.  Caller holds pair->rings.mutex. */
static u32 sm_tx_refuse(struct sm_pair *pair, u32 i)
{
	struct sm_txring *tx = pair->rings.tx;
	struct sm_conn *conn;
	struct sm_slot slot;

	lockdep_assert_held(&pair->rings.mutex);
	sm_slot_read(tx->ring, i, &slot);
	conn = sm_tx_conn(pair, &slot);
	if (conn) {
		lock_sock(conn->sk);
		sm_txring_refuse(pair->rings.tx, i, conn->attached ? EAGAIN : ENOENT);
		if (conn->attached)
			sm_tx_block(conn);
		release_sock(conn->sk);
	} else {
		sm_txring_refuse(pair->rings.tx, i, ENOENT);
	}
	return sm_next(i, tx->n);
}

/*
 * Process slots of one connection from @i on, at most up to @head.  Returns the next slot to
 * process; @i itself when no buffer was there.  Caller holds pair->rings.mutex.
 */
static u32 sm_tx_group(struct sm_pair *pair, u32 i, u32 head)
{
	struct sm_txring *tx = pair->rings.tx;
	u32 room = min_t(u32, SM_BATCH_MAX,
			 sm_txring_spares(tx, sm_distance(i, head, tx->n), SM_BATCH_MAX));
	struct sm_group *g = pair->group;
	struct sm_slot slot;
	u32 id, len, n, j;

	if (!room)
		return i;
	sm_slot_read(tx->ring, i, &slot);
	id = SM_PTR_ID(slot.ptr);
	g->conn = sm_tx_conn(pair, &slot);
	if (!g->conn) {
		sm_txring_refuse(pair->rings.tx, i, ENOENT);
		return sm_next(i, tx->n);
	}
	/* Count those that follow; each is read, once, below. */
	for (n = 1, j = sm_next(i, tx->n); n < room && j != head; n++, j = sm_next(j, tx->n))
		if (SM_PTR_ID(READ_ONCE(tx->ring->slot[j].ptr)) != id)
			break;
	g->n = 0;
	g->report = 0;
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

		if (!pair->plug.plugged)
			sm_plug(&pair->plug);
		lock_sock(g->conn->sk);
		sm_group_send(pair, g);
		sm_info_update(g->conn);
		release_sock(g->conn->sk);
		for (k = 0; k < g->n; k++)
			sm_txring_replace(pair->rings.tx, g->slot[k]);
	}
	return i;
}

int sm_tx_init(struct sm_pair *pair)
{
	pair->group = kvmalloc(sizeof(*pair->group), SM_GFP);
	return pair->group ? 0 : -ENOMEM;
}

void sm_tx_destroy(struct sm_pair *pair)
{
	kvfree(pair->group);
}

/* Send the slots that the application submitted.  Caller holds pair->rings.mutex. */
int sm_tx_sync(struct sm_txring *tx)
{
	struct sm_pair *pair = sm_pair_of(tx->rings);
	u32 next;
	int err;

	lockdep_assert_held(&pair->rings.mutex);
	err = sm_txring_begin(tx);
	if (err || tx->done == tx->head)
		return err;

	if (!++pair->sync_seq)
		pair->sync_seq = 1;	/* 0 means: never refused */
	pair->refused = false;
	while (tx->done != tx->head) {
		next = sm_tx_group(pair, tx->done, tx->head);
		/* Refused slots must not be overtaken: a sync that refuses does not stop. */
		if (next == tx->done && pair->refused)
			next = sm_tx_refuse(pair, next);
		if (next == tx->done) {
			sm_txring_stall(tx);
			break;
		}
		tx->done = next;
	}
	if (pair->plug.plugged)
		sm_unplug(&pair->plug);
	sm_txring_end(tx);
	return 0;
}
