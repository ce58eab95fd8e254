// SPDX-License-Identifier: GPL-2.0
/* The kernel's side of a transmit ring: submitted slots are replaced or refused. */
#include <linux/slab.h>

#include "core/port.h"
#include "core/ring.h"
#include "core/rings.h"
#include "trace.h"

/* Its slots get buffers.  ring and n are set already. */
int sm_txring_init(struct sm_txring *tx, struct sm_rings *rings)
{
	u32 i;

	tx->rings = rings;
	tx->spare = kvmalloc_array(tx->n, sizeof(*tx->spare), SM_GFP);
	if (!tx->spare)
		return -ENOMEM;
	if (sm_pool_get(&rings->port->pool, tx->spare, tx->n, SM_USER) != tx->n)
		return -ENOMEM;
	for (i = 0; i < tx->n; i++)
		tx->ring->slot[i].buf_idx = tx->spare[i];
	tx->ring->tail = tx->n - 1;
	return 0;
}

void sm_txring_destroy(struct sm_txring *tx)
{
	kvfree(tx->spare);
}

/*
 * Begin a sync: [tx->done, tx->head) was submitted.  EINVAL if the application wrote positions that
 * it cannot have; they are reset then.
 */
int sm_txring_begin(struct sm_txring *tx)
{
	struct sm_ring *ring = tx->ring;
	/* (B), pairs with the application's release store (A): slots and payload before head. */
	u32 head = smp_load_acquire(&ring->head);
	u32 cur = READ_ONCE(ring->cur);
	u32 tail = sm_prev(tx->done, tx->n);

	lockdep_assert_held(&tx->rings->mutex);
	if (!sm_ring_valid(head, cur, tx->head, tail, tx->n)) {
		WRITE_ONCE(ring->head, tx->head);
		WRITE_ONCE(ring->cur, tx->head);
		WRITE_ONCE(ring->tail, tail);
		sm_count(tx->rings, SM_BAD_RING, 1);
		return -EINVAL;
	}
	tx->head = head;
	if (unlikely(tx->stalled)) {
		WRITE_ONCE(tx->stalled, false);
		atomic_dec(&tx->rings->port->nwanting);
	}
	return 0;
}

/*
 * Have spare buffers at hand: if fewer than @want, get up to four times as many, because the pool
 * is locked meanwhile.  @left slots are left in this sync.  Returns how many there are.
 */
u32 sm_txring_spares(struct sm_txring *tx, u32 left, u32 want)
{
	if (tx->nspare < min(left, want))
		tx->nspare += sm_pool_get(&tx->rings->port->pool, tx->spare + tx->nspare,
					  min(left, 4 * want) - tx->nspare, SM_FREE);
	return tx->nspare;
}

/* The slot was accepted: give it another buffer at once. */
void sm_txring_replace(struct sm_txring *tx, u32 i)
{
	struct sm_slot *slot = &tx->ring->slot[i];
	u32 idx = tx->spare[--tx->nspare];

	sm_pool_give(&tx->rings->port->pool, idx);
	WRITE_ONCE(slot->buf_idx, idx);
	WRITE_ONCE(slot->len, 0);
	WRITE_ONCE(slot->flags, NS_BUF_CHANGED);
	WRITE_ONCE(slot->ptr, 0);
}

/* The slot was not accepted: it keeps its buffer, and says why. */
void sm_txring_refuse(struct sm_txring *tx, u32 i, int err)
{
	struct sm_slot *slot = &tx->ring->slot[i];
	u64 ptr = READ_ONCE(slot->ptr) & GENMASK_ULL(47, 0);

	WRITE_ONCE(slot->ptr, ptr | SM_PTR_EVENT(SM_SLOT_REFUSED, err));
	trace_sm_refuse(tx->rings, i, SM_PTR_ID(ptr), err);
	switch (err) {
	case EAGAIN:
		sm_count(tx->rings, SM_AGAIN, 1);
		break;
	case EINVAL:
	case ERANGE:
	case EPERM:
		sm_count(tx->rings, SM_BAD_SLOT, 1);
		break;
	case ENOENT:
		sm_count(tx->rings, SM_UNKNOWN_CONN, 1);
		break;
	default:
		sm_count(tx->rings, SM_DEAD_CONN, 1);
	}
}

/* The sync stops, because no buffer is left: wake the application when one is. */
void sm_txring_stall(struct sm_txring *tx)
{
	sm_count(tx->rings, SM_STALL, 1);
	atomic_inc(&tx->rings->port->nwanting);
	WRITE_ONCE(tx->stalled, true);
	/* Pairs with sm_port_bufs_freed(): it sees both, or we see the buffer that it freed. */
	smp_mb();
	if (READ_ONCE(tx->rings->port->pool.nfree))
		sm_rings_wake(tx->rings);
}

/* End the sync: the application gets its slots back up to tx->done. */
void sm_txring_end(struct sm_txring *tx)
{
	struct sm_port *port = tx->rings->port;

	lockdep_assert_held(&tx->rings->mutex);
	if (tx->nspare) {
		sm_pool_put(&port->pool, tx->spare, tx->nspare);
		tx->nspare = 0;
		sm_port_bufs_freed(port);
	}
	/* (C), pairs with the application's acquire load (D): slots are replaced or refused. */
	smp_store_release(&tx->ring->tail, sm_prev(tx->done, tx->n));
}
