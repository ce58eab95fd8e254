/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A ring's two sides.
 *
 * The application and the kernel share struct sm_ring, which the application can write at any time.
 * Each side owns some of the slots and passes them on by a store to a position:
 *
 *	application			kernel
 *	writes slots and buffers	reads head			(B)
 *	writes head		(A)	reads slots and buffers
 *					writes slots and buffers
 *	reads tail		(D)	writes tail			(C)
 *	reads slots and buffers
 *
 * A is a store-release and B an acquire load: without them the kernel could see a head, and the
 * slots before it as they were earlier.  C and D are the same the other way: without them the
 * application could see a tail, and the slots before it unfilled.
 *
 * The kernel trusts nothing in there.  It keeps its positions in struct sm_txring
 * and struct sm_rxring, reads head and cur once for each sync, and each slot once.
 */
#ifndef _SM_RING_H
#define _SM_RING_H

#include <linux/spinlock.h>
#include <linux/types.h>

#include "core/pool.h"
#include "uapi/stackmap.h"

struct sm_rings;

/* Guarded by the mutex of its sm_rings; stalled is read without it. */
struct sm_txring {
	struct sm_rings *rings;
	struct sm_ring *ring;	/* mapped by the application */
	u32 n;
	u32 head;		/* last head seen */
	u32 done;		/* first slot not processed yet */
	u32 *spare;		/* buffers for slots of the sync under way */
	u32 nspare;
	bool stalled;		/* no spare was left; wake the application when one is */
};

/* A slot in kernel memory, until it is published. */
struct sm_rxslot {
	u32 buf;		/* 0: none yet */
	u32 id;
	u16 len;
	u8 flags;
	u8 err;
};

/*
 * Positions, walking forward:  head <= published <= fill  (all modulo n)
 *	[head, published)	the application's
 *	[published, fill)	filled, not seen by the application yet
 *	[fill, head - 1)	free
 */
struct sm_rxring {
	struct sm_rings *rings;
	spinlock_t lock;	/* guards all below, but for the application's half of ring */
	struct sm_ring *ring;
	u32 n;
	u32 head;		/* first slot the application owns */
	u32 published;		/* first slot it has not seen: ring->tail */
	u32 fill;		/* next slot to fill */
	bool starved;		/* a slot found no buffer; call for one when it is free */
	struct sm_rxslot *slot;
};

int sm_txring_init(struct sm_txring *tx, struct sm_rings *rings);
void sm_txring_destroy(struct sm_txring *tx);
int sm_txring_begin(struct sm_txring *tx);
u32 sm_txring_spares(struct sm_txring *tx, u32 left, u32 want);
void sm_txring_replace(struct sm_txring *tx, u32 i);
void sm_txring_refuse(struct sm_txring *tx, u32 i, int err);
void sm_txring_stall(struct sm_txring *tx);
void sm_txring_end(struct sm_txring *tx);

int sm_rxring_init(struct sm_rxring *rx, struct sm_rings *rings);
void sm_rxring_destroy(struct sm_rxring *rx);
struct sm_rxslot *sm_rxring_open(struct sm_rxring *rx, u32 id);
struct sm_rxslot *sm_rxring_last(struct sm_rxring *rx, u32 id);
void sm_rxring_drop_last(struct sm_rxring *rx);
bool sm_rxring_full(struct sm_rxring *rx);
int sm_rxring_take_back(struct sm_rxring *rx);
void sm_rxring_publish(struct sm_rxring *rx);

static inline u32 sm_next(u32 i, u32 n)
{
	return i + 1 == n ? 0 : i + 1;
}

static inline u32 sm_prev(u32 i, u32 n)
{
	return i ? i - 1 : n - 1;
}

/* Slots from a up to b, walking forward. */
static inline u32 sm_distance(u32 a, u32 b, u32 n)
{
	return b >= a ? b - a : b + n - a;
}

/* May an application that owns [from, end) have written this head and this cur? */
static inline bool sm_ring_valid(u32 head, u32 cur, u32 from, u32 end, u32 n)
{
	u32 owned = sm_distance(from, end, n);

	return head < n && cur < n && sm_distance(from, cur, n) <= owned &&
	       sm_distance(from, head, n) <= sm_distance(from, cur, n);
}

/* Copy a slot that the application submitted.  It may change in the ring; the copy does not. */
static inline void sm_slot_read(const struct sm_ring *ring, u32 i, struct sm_slot *slot)
{
	slot->buf_idx = READ_ONCE(ring->slot[i].buf_idx);
	slot->len = READ_ONCE(ring->slot[i].len);
	slot->flags = READ_ONCE(ring->slot[i].flags);
	slot->ptr = READ_ONCE(ring->slot[i].ptr);
}

#endif /* _SM_RING_H */
