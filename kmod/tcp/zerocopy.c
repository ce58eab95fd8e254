// SPDX-License-Identifier: GPL-2.0
/*
 * Pinned buffers, and their release by the ACK of their last byte.
 *
 * Of a slot that went to TCP by reference, TCP's skbs hold the page, and carry one ubuf_info for
 * all of the send.  Its count reaches zero when the last skb that holds it is freed: when the peer
 * acknowledged it, or when the connection was reset.
 *
 * The buffer of a slot that TCP copied waits in its connection's list for the ACK, of which TCP
 * tells us through icsk_clean_acked.
 */
#include <linux/slab.h>
#include <net/tcp.h>

#include "compat.h"
#include "tcp/conn.h"
#include "tcp/info.h"
#include "tcp/tx.h"
#include "tcp/zerocopy.h"
#include "trace.h"

/* TCP is about to see @n buffers, which are claimed.  Caller holds the socket lock. */
void sm_zc_pin(struct sm_conn *conn, u32 n)
{
	sm_pool_pin(sm_conn_pool(conn), n);
	atomic_add(n, &conn->pinned);
}

/* TCP did not take @n of them: they stay claimed, and the caller gives them back. */
void sm_zc_unpin_refused(struct sm_conn *conn, u32 n)
{
	atomic_sub(n, &conn->pinned);
	sm_pool_unpin_refused(sm_conn_pool(conn), n);
}

/* The rest of this pinned buffer is kept, beside what TCP has of it.  Caller as above. */
void sm_zc_pin_rest(struct sm_conn *conn, u32 idx)
{
	sm_pool_share(sm_conn_pool(conn), idx);
	atomic_inc(&conn->pinned);
}

/* @n buffers, which held @bytes of payload, were unpinned, and @freed of them are free. */
static void sm_zc_unpinned(struct sm_conn *conn, u32 n, u32 freed, u32 bytes, bool acked)
{
	trace_sm_release(conn, n, acked);
	sm_conn_count(conn, acked ? SM_RELEASED_ACK : SM_RELEASED_RESET, freed);
	atomic_sub(bytes, &conn->pinned_bytes);
	atomic_sub(n, &conn->pinned);
}

/* Release buffers that held @bytes of payload.  Any context. */
static void sm_zc_release(struct sm_conn *conn, const u32 *buf, u32 n, u32 bytes, bool acked)
{
	sm_zc_unpinned(conn, n, sm_pool_unpin(sm_conn_pool(conn), buf, n), bytes, acked);
}

/* After buffers were released: tell the applications that wait for them.  Any context. */
static void sm_zc_released(struct sm_conn *conn)
{
	/*
	 * Pairs with the barrier in sm_tx_block(): either we see BLOCKED, or the sender sees
	 * these buffers released.  And with that in sm_info_update(): the record that is written
	 * there has them, or is stale after it.
	 */
	smp_mb__after_atomic();
	sm_tx_check_writable(conn);
	sm_port_bufs_freed(&conn->port->base);
}

/* -- copied payload, which waits for its ACK ------------------------------------------------ */

/*
 * TCP has copied @bytes from the buffer, of which the last has the sequence number before @end.
 * The buffer is pinned.  Caller holds the socket lock.
 */
void sm_zc_wait_for_ack(struct sm_conn *conn, u32 idx, u32 bytes, u32 end)
{
	struct sm_waiting *waiting = conn->port->waiting;

	waiting[idx].next = 0;
	waiting[idx].bytes = bytes;
	waiting[idx].end = end;
	if (conn->waiting)
		waiting[conn->waiting_last].next = idx;
	else
		conn->waiting = idx;
	conn->waiting_last = idx;
}

/* Does this buffer of the list wait no longer?  The socket is locked. */
static bool sm_zc_is_acked(const struct sm_conn *conn, u32 idx)
{
	return !after(conn->port->waiting[idx].end, (u32)conn->acked);
}

/* Release the first buffers of the list, those up to conn->acked or all.  The socket is locked. */
static void sm_zc_drain(struct sm_conn *conn, bool acked)
{
	const struct sm_waiting *waiting = conn->port->waiting;
	struct sm_pool *pool = sm_conn_pool(conn);
	unsigned long irq;
	u32 n, freed, bytes;

	do {
		freed = 0;
		bytes = 0;
		spin_lock_irqsave(&pool->lock, irq);
		for (n = 0; conn->waiting && n < SM_BATCH_MAX; n++) {
			u32 idx = conn->waiting;

			if (acked && !sm_zc_is_acked(conn, idx))
				break;
			/* Another's, once it is free. */
			conn->waiting = waiting[idx].next;
			bytes += waiting[idx].bytes;
			freed += sm_pool_unpin_locked(pool, idx);
		}
		spin_unlock_irqrestore(&pool->lock, irq);
		if (n)
			sm_zc_unpinned(conn, n, freed, bytes, acked);
	} while (n == SM_BATCH_MAX);
}

/* Release the buffers that were acknowledged.  The socket is locked. */
static void sm_zc_release_acked(struct sm_conn *conn)
{
	if (!conn->waiting || !sm_zc_is_acked(conn, conn->waiting))
		return;
	sm_zc_drain(conn, true);
	sm_zc_released(conn);
}

/* The application wants to be told when the peer has all before @end.  Caller as above. */
void sm_zc_report(struct sm_conn *conn, u64 end)
{
	if (conn->report_next == U64_MAX)
		conn->report_next = end;
	conn->report_last = end;
}

/*
 * Tell the application if it asked.  Of the positions that it asked for, the first and the last are
 * known, so each ACK between the two is reported.  The socket is locked.
 */
static void sm_zc_check_report(struct sm_conn *conn)
{
	if (likely(conn->acked < conn->report_next))
		return;
	conn->report_next = conn->acked < conn->report_last ? conn->acked + 1 : U64_MAX;
	set_bit(SM_CONN_ACKED_DUE, &conn->bits);
	sm_conn_schedule(conn);
}

/*
 * The peer has acknowledged all before @ack.  TCP frees its skbs only after this, so a batch that
 * completes for this ACK finds that it was acknowledged.  The socket is locked.
 */
void sm_zc_acked(struct sm_conn *conn, u32 ack)
{
	WRITE_ONCE(conn->acked, conn->acked + (u32)(ack - (u32)conn->acked));
	sm_zc_check_report(conn);
	sm_zc_release_acked(conn);
}

/* Has the peer acknowledged all that TCP has from the connection?  The socket is locked. */
bool sm_zc_all_acked(const struct sm_conn *conn)
{
	return conn->acked >= conn->end;
}

/* This pinned buffer, of which TCP has copied @bytes, will not be acknowledged.  As above. */
void sm_zc_drop(struct sm_conn *conn, u32 idx, u32 bytes)
{
	sm_zc_release(conn, &idx, 1, bytes, false);
	sm_info_update_later(conn);
	sm_zc_released(conn);
}

/* No ACK will come any more.  The socket is locked. */
void sm_zc_drop_waiting(struct sm_conn *conn)
{
	if (!conn->waiting)
		return;
	sm_zc_drain(conn, false);
	sm_info_update_later(conn);
	sm_zc_released(conn);
}

/*
 * While TCP took the bytes in the list, it may have processed packets that waited for the socket
 * lock: the ACK for them, or a reset.  Caller holds the socket lock.
 */
void sm_zc_catch_up(struct sm_conn *conn)
{
	sm_zc_check_report(conn);
	if (list_empty(&conn->acks))
		sm_zc_drop_waiting(conn);
	else
		sm_zc_release_acked(conn);
}

/* -- payload by reference ------------------------------------------------------------------- */

/* The last skb that held these buffers is gone.  Any context. */
static void sm_zc_batch_complete(struct sm_batch *batch)
{
	struct sm_conn *conn = batch->conn;

	if (batch->n) {
		sm_zc_release(conn, batch->buf, batch->n, batch->bytes,
			      READ_ONCE(conn->acked) >= batch->end);
		sm_zc_released(conn);
		sm_info_update_later(conn);
	}
	sm_conn_put(conn);
	kfree(batch);
}

static void sm_ubuf_complete(struct sk_buff *skb, struct ubuf_info *ubuf, bool success)
{
	if (refcount_dec_and_test(&ubuf->refcnt))
		sm_zc_batch_complete(container_of(ubuf, struct sm_batch, ubuf));
}

SM_DEFINE_UBUF_OPS(sm_ubuf_ops, sm_ubuf_complete);

/* For up to @n buffers; NULL on failure.  The caller puts it after the send. */
struct sm_batch *sm_zc_batch_alloc(struct sm_conn *conn, u32 n)
{
	struct sm_batch *batch = kmalloc(struct_size(batch, buf, n), GFP_KERNEL_ACCOUNT);

	if (!batch)
		return NULL;
	sm_ubuf_init(&batch->ubuf, sm_ubuf_ops);
	refcount_set(&batch->ubuf.refcnt, 1);	/* the caller's */
	batch->ubuf.flags = SKBFL_ZEROCOPY_FRAG | SKBFL_DONT_ORPHAN;
	sm_conn_get(conn);
	batch->conn = conn;
	batch->end = 0;
	batch->bytes = 0;
	batch->n = 0;
	return batch;
}

/* The send is over. */
void sm_zc_batch_put(struct sm_batch *batch)
{
	sm_ubuf_complete(NULL, &batch->ubuf, true);
}
