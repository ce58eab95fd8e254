// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's side of a receive ring.  slot[] is filled in any context; it is written to the
 * mapped ring only when a sync or poll publishes it.
 */
#include <linux/slab.h>

#include "core/port.h"
#include "core/ring.h"
#include "core/rings.h"

#define SM_RX_CHUNK	256	/* slots handled at a time with softirqs off */

/* Its slots get buffers.  ring and n are set already. */
int sm_rxring_init(struct sm_rxring *rx, struct sm_rings *rings)
{
	u32 i;

	rx->rings = rings;
	spin_lock_init(&rx->lock);
	rx->slot = kvcalloc(rx->n, sizeof(*rx->slot), SM_GFP);
	if (!rx->slot)
		return -ENOMEM;
	for (i = 0; i < rx->n; i++)
		if (!sm_pool_get(&rings->port->pool, &rx->slot[i].buf, 1, SM_RX_FILL))
			return -ENOMEM;
	return 0;
}

void sm_rxring_destroy(struct sm_rxring *rx)
{
	kvfree(rx->slot);
}

/* Give a slot a buffer; false if there is none, and then the port is told of the next one. */
static bool sm_rxring_refill(struct sm_rxring *rx, struct sm_rxslot *slot)
{
	struct sm_port *port = rx->rings->port;
	struct sm_pool *pool = &port->pool;

	if (sm_pool_get(pool, &slot->buf, 1, SM_RX_FILL))
		return true;
	/* Counted first: at no time are fewer counted than want. */
	atomic_inc(&port->nwanting);
	if (xchg(&rx->starved, true))
		atomic_dec(&port->nwanting);
	smp_mb();	/* both before the second look; pairs with sm_port_bufs_freed() */
	return sm_pool_get(pool, &slot->buf, 1, SM_RX_FILL);
}

/* Open the next free slot; NULL if there is none.  Caller holds rx->lock. */
struct sm_rxslot *sm_rxring_open(struct sm_rxring *rx, u32 id)
{
	struct sm_rxslot *slot = &rx->slot[rx->fill];
	u32 next = sm_next(rx->fill, rx->n);

	lockdep_assert_held(&rx->lock);
	if (next == rx->head)
		return NULL;
	if (!slot->buf && !sm_rxring_refill(rx, slot))
		return NULL;
	slot->id = id;
	slot->len = 0;
	slot->flags = 0;
	slot->err = 0;
	WRITE_ONCE(rx->fill, next);	/* pairs with READ_ONCE() in sm_rings_ready() */
	return slot;
}

/* The last slot, if it has this id, is unpublished, and has room.  Caller holds rx->lock. */
struct sm_rxslot *sm_rxring_last(struct sm_rxring *rx, u32 id)
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

/* Nothing came into the slot that was opened last.  Caller holds rx->lock since then. */
void sm_rxring_drop_last(struct sm_rxring *rx)
{
	lockdep_assert_held(&rx->lock);
	WRITE_ONCE(rx->fill, sm_prev(rx->fill, rx->n));
}

/* Is there no room for another slot?  If a buffer is missing, the port is told of the next one. */
bool sm_rxring_full(struct sm_rxring *rx)
{
	bool full;

	spin_lock_bh(&rx->lock);
	full = sm_next(rx->fill, rx->n) == rx->head ||
	       (!rx->slot[rx->fill].buf && !sm_rxring_refill(rx, &rx->slot[rx->fill]));
	spin_unlock_bh(&rx->lock);
	return full;
}

/* Take back the next slots before @head, not so many that softirq would wait for long. */
static void sm_rxring_take_back_some(struct sm_rxring *rx, u32 head)
{
	struct sm_pool *pool = &rx->rings->port->pool;
	u32 i, n;

	spin_lock_bh(&rx->lock);
	for (i = rx->head, n = 0; i != head && n < SM_RX_CHUNK; i = sm_next(i, rx->n), n++) {
		u32 given = READ_ONCE(rx->ring->slot[i].buf_idx);
		int idx;

		if (unlikely(!given)) {
			rx->slot[i].buf = 0;	/* kept; another when needed */
			continue;
		}
		idx = sm_pool_claim(pool, given, SM_RX_FILL);
		if (unlikely(idx < 0)) {
			sm_count(rx->rings, SM_BAD_SLOT, 1);
			/* Our own, if the application has it still; else one when needed. */
			idx = sm_pool_claim(pool, rx->slot[i].buf, SM_RX_FILL);
		}
		rx->slot[i].buf = max(idx, 0);
	}
	rx->head = i;
	spin_unlock_bh(&rx->lock);
}

/*
 * Take back the slots that the application is done with.  EINVAL if it wrote positions that it
 * cannot have; they are reset then.
 */
int sm_rxring_take_back(struct sm_rxring *rx)
{
	struct sm_ring *ring = rx->ring;
	/* (B), pairs with the application's release store (A): it has done with the buffers. */
	u32 head = smp_load_acquire(&ring->head);
	u32 cur = READ_ONCE(ring->cur);

	lockdep_assert_held(&rx->rings->mutex);
	if (!sm_ring_valid(head, cur, rx->head, rx->published, rx->n)) {
		WRITE_ONCE(ring->head, rx->head);
		WRITE_ONCE(ring->cur, rx->head);
		WRITE_ONCE(ring->tail, rx->published);
		sm_count(rx->rings, SM_BAD_RING, 1);
		return -EINVAL;
	}
	if (head == rx->head)
		return 0;
	while (rx->head != head)
		sm_rxring_take_back_some(rx, head);
	rx->rings->port->ops->room(rx);
	return 0;
}

/* Write the next filled slots to the ring; returns how many there were. */
static u32 sm_rxring_publish_some(struct sm_rxring *rx)
{
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
		sm_pool_give(&rx->rings->port->pool, slot->buf);
	}
	WRITE_ONCE(rx->published, i);
	spin_unlock_bh(&rx->lock);
	return n;
}

/* Show the filled slots to the application. */
void sm_rxring_publish(struct sm_rxring *rx)
{
	u32 n, total = 0;

	lockdep_assert_held(&rx->rings->mutex);
	do {
		n = sm_rxring_publish_some(rx);
		total += n;
	} while (n == SM_RX_CHUNK);
	/* (C), pairs with the application's acquire load (D): slots and buffers before tail. */
	smp_store_release(&rx->ring->tail, rx->published);
	if (total)
		sm_count(rx->rings, SM_RX_SLOTS, total);
}
