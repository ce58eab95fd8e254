// SPDX-License-Identifier: GPL-2.0
/*
 * Receiving: from TCP's receive queue into ring slots.
 *
 * The kernel's side of the ring, rx->slot[], is filled in whatever context TCP delivers: inside
 * the application's own sync while that polls the NIC, in softirq otherwise.  It is written to
 * the mapped ring only when a sync or poll publishes it.  No more is read from TCP than there are
 * free slots, so TCP's own window holds a fast peer back.
 *
 * Positions, walking forward:  head <= published <= fill  (all modulo n)
 *	[head, published)	the application's
 *	[published, fill)	filled, not seen by the application yet
 *	[fill, head - 1)	free
 */
#include <linux/slab.h>
#include <net/tcp.h>

#include "stackmap.h"
#include "trace.h"

#define SM_RX_CHUNK	256	/* slots handled at a time with softirqs off */

/* Give a slot a buffer; false if there is none, and then the pair is told of the next one. */
static bool sm_rx_refill(struct sm_pair *pair, struct sm_rxslot *slot)
{
	struct sm_pool *pool = &pair->port->pool;

	if (sm_pool_get(pool, &slot->buf, 1, SM_RX_FILL))
		return true;
	WRITE_ONCE(pair->rx.starved, true);
	smp_mb();	/* starved before the second look; pairs with sm_tx_wake_others() */
	return sm_pool_get(pool, &slot->buf, 1, SM_RX_FILL);
}

/* Open the next free slot; NULL if there is none.  Caller holds rx->lock. */
static struct sm_rxslot *sm_rx_open(struct sm_pair *pair, u32 id)
{
	struct sm_rxring *rx = &pair->rx;
	struct sm_rxslot *slot = &rx->slot[rx->fill];
	u32 next = sm_next(rx->fill, rx->n);

	lockdep_assert_held(&rx->lock);
	if (next == rx->head)
		return NULL;
	if (!slot->buf && !sm_rx_refill(pair, slot))
		return NULL;
	slot->id = id;
	slot->len = 0;
	slot->flags = 0;
	slot->err = 0;
	WRITE_ONCE(rx->fill, next);	/* pairs with READ_ONCE() in sm_rx_ready() */
	return slot;
}

/* The last slot, if it is this connection's, unpublished, and has room. */
static struct sm_rxslot *sm_rx_last(struct sm_rxring *rx, u32 id)
{
	struct sm_rxslot *slot;

	lockdep_assert_held(&rx->lock);
	if (rx->fill == rx->published)
		return NULL;
	slot = &rx->slot[sm_prev(rx->fill, rx->n)];
	if (slot->id != id || slot->flags || slot->len == SM_BUF_SIZE)
		return NULL;
	return slot;
}

/* Is there no room for another slot?  If a buffer is missing, the pair is told of the next one. */
bool sm_rx_full(struct sm_pair *pair)
{
	struct sm_rxring *rx = &pair->rx;
	bool full;

	spin_lock_bh(&rx->lock);
	full = sm_next(rx->fill, rx->n) == rx->head ||
	       (!rx->slot[rx->fill].buf && !sm_rx_refill(pair, &rx->slot[rx->fill]));
	spin_unlock_bh(&rx->lock);
	return full;
}

/* tcp_read_sock()'s actor.  The socket is locked.  Returns the bytes taken. */
static int sm_rx_actor(read_descriptor_t *desc, struct sk_buff *skb, unsigned int offset,
		       size_t len)
{
	struct sm_conn *conn = desc->arg.data;
	struct sm_pair *pair = conn->pair;
	struct sm_rxring *rx = &pair->rx;
	size_t left = len;

	spin_lock_bh(&rx->lock);
	while (left) {
		struct sm_rxslot *slot = sm_rx_last(rx, conn->id);
		size_t n;
		void *to;

		if (!slot)
			slot = sm_rx_open(pair, conn->id);
		if (!slot)
			break;
		n = min_t(size_t, left, SM_BUF_SIZE - slot->len);
		to = sm_pool_addr(&pair->port->pool, slot->buf) + slot->len;
		if (unlikely(skb_copy_bits(skb, offset, to, n))) {
			/* A device's memory, say: no slot; sm_conn_service() ends it. */
			if (!slot->len)
				WRITE_ONCE(rx->fill, sm_prev(rx->fill, rx->n));
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
void sm_rx_forget_urgent(struct sock *sk)
{
	struct tcp_sock *tp = tcp_sk(sk);

	sock_owned_by_me(sk);
	if (unlikely(tp->urg_data))
		WRITE_ONCE(tp->urg_data, 0);
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
	if (test_bit(SM_CONN_PAUSED, &conn->bits))
		return true;
	if (test_bit(SM_CONN_OPEN_DUE, &conn->bits))
		return false;		/* that event comes first */
	sm_rx_forget_urgent(conn->sk);
	n = tcp_read_sock(conn->sk, &desc, sm_rx_actor);
	if (n > 0) {
		trace_sm_receive(conn, n);
		sm_count(conn->pair, SM_RX_BYTES, n);
		sm_pair_wake(conn->pair);
	}
	return desc.count;
}

/* Put an event slot into the ring; false if there is no room. */
bool sm_rx_event(struct sm_pair *pair, u32 id, u8 flags, u8 err)
{
	struct sm_rxring *rx = &pair->rx;
	struct sm_rxslot *slot;

	spin_lock_bh(&rx->lock);
	slot = sm_rx_open(pair, id);
	if (slot) {
		slot->flags = flags;
		slot->err = err;
		trace_sm_event(pair, id, flags, err);
	}
	spin_unlock_bh(&rx->lock);
	return slot;
}

/* Put a connection's OPEN event into the ring, before its data; false if there is no room. */
bool sm_rx_open_event(struct sm_pair *pair, u32 id, const struct sm_open *open)
{
	struct sm_rxring *rx = &pair->rx;
	struct sm_rxslot *slot;

	spin_lock_bh(&rx->lock);
	slot = sm_rx_open(pair, id);
	if (slot) {
		slot->flags = SM_SLOT_OPEN;
		slot->len = sizeof(*open);
		trace_sm_event(pair, id, SM_SLOT_OPEN, 0);
		memcpy(sm_pool_addr(&pair->port->pool, slot->buf), open, sizeof(*open));
	}
	spin_unlock_bh(&rx->lock);
	return slot;
}

/* Are there slots to publish, or connections to serve? */
bool sm_rx_ready(struct sm_pair *pair)
{
	return READ_ONCE(pair->rx.fill) != READ_ONCE(pair->rx.published) ||
	       !list_empty_careful(&pair->pending);
}

/* Take back the next slots before @head, not so many that softirq would wait for long. */
static void sm_rx_take_back_some(struct sm_pair *pair, u32 head)
{
	struct sm_rxring *rx = &pair->rx;
	u32 i, n;

	spin_lock_bh(&rx->lock);
	for (i = rx->head, n = 0; i != head && n < SM_RX_CHUNK; i = sm_next(i, rx->n), n++) {
		u32 given = READ_ONCE(rx->ring->slot[i].buf_idx);
		int idx;

		if (unlikely(!given)) {
			rx->slot[i].buf = 0;	/* kept; another when needed */
			continue;
		}
		idx = sm_pool_claim(&pair->port->pool, given, SM_RX_FILL);
		if (unlikely(idx < 0)) {
			sm_count(pair, SM_BAD_SLOT, 1);
			/* Our own, if the application has it still; else one when needed. */
			idx = sm_pool_claim(&pair->port->pool, rx->slot[i].buf, SM_RX_FILL);
		}
		rx->slot[i].buf = max(idx, 0);
	}
	rx->head = i;
	spin_unlock_bh(&rx->lock);
}

/*
 * Take back the slots that the application is done with.  Caller holds pair->mutex.
 */
int sm_rx_take_back(struct sm_pair *pair)
{
	struct sm_rxring *rx = &pair->rx;
	struct sm_ring *ring = rx->ring;
	/* (B), pairs with the application's release store (A): it has done with the buffers. */
	u32 head = smp_load_acquire(&ring->head);
	u32 cur = READ_ONCE(ring->cur);

	lockdep_assert_held(&pair->mutex);
	if (!sm_ring_sound(head, cur, rx->head, rx->published, rx->n)) {
		WRITE_ONCE(ring->head, rx->head);
		WRITE_ONCE(ring->cur, rx->head);
		WRITE_ONCE(ring->tail, rx->published);
		sm_count(pair, SM_BAD_RING, 1);
		return -EINVAL;
	}
	if (head == rx->head)
		return 0;

	while (rx->head != head)
		sm_rx_take_back_some(pair, head);
	sm_pair_unblock(pair);
	return 0;
}

/* Write the next filled slots to the ring; returns how many there were. */
static u32 sm_rx_publish_some(struct sm_pair *pair)
{
	struct sm_rxring *rx = &pair->rx;
	struct sm_ring *ring = rx->ring;
	u32 i, n;

	spin_lock_bh(&rx->lock);
	for (i = rx->published, n = 0; i != rx->fill && n < SM_RX_CHUNK;
	     i = sm_next(i, rx->n), n++) {
		struct sm_rxslot *slot = &rx->slot[i];
		u64 ptr = SM_PTR(slot->id, 0) | SM_PTR_EVENT(slot->flags, slot->err);

		WRITE_ONCE(ring->slot[i].buf_idx, slot->buf);
		WRITE_ONCE(ring->slot[i].len, slot->len);
		WRITE_ONCE(ring->slot[i].flags, NS_BUF_CHANGED);
		WRITE_ONCE(ring->slot[i].ptr, ptr);
		sm_pool_give(&pair->port->pool, slot->buf);
	}
	WRITE_ONCE(rx->published, i);
	spin_unlock_bh(&rx->lock);
	return n;
}

/* Show the application what was filled.  Caller holds pair->mutex. */
void sm_rx_publish(struct sm_pair *pair)
{
	u32 n, total = 0;

	lockdep_assert_held(&pair->mutex);
	sm_conn_service_pending(pair);
	do {
		n = sm_rx_publish_some(pair);
		total += n;
	} while (n == SM_RX_CHUNK);
	/* (C), pairs with the application's acquire load (D): slots and buffers before tail. */
	smp_store_release(&pair->rx.ring->tail, pair->rx.published);
	if (total)
		sm_count(pair, SM_RX_SLOTS, total);
}

int sm_rx_init(struct sm_pair *pair, u32 slots)
{
	struct sm_rxring *rx = &pair->rx;
	u32 i;

	rx->n = slots;
	rx->slot = kvcalloc(slots, sizeof(*rx->slot), SM_GFP);
	if (!rx->slot)
		return -ENOMEM;
	for (i = 0; i < slots; i++)
		if (!sm_pool_get(&pair->port->pool, &rx->slot[i].buf, 1, SM_RX_FILL))
			return -ENOMEM;
	return 0;
}

void sm_rx_destroy(struct sm_pair *pair)
{
	kvfree(pair->rx.slot);
}
