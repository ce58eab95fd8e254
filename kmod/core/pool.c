// SPDX-License-Identifier: GPL-2.0
/*
 * Buffers and their owners.  One buffer is one page, so a page is in exactly one state.
 *
 *	FREE -> USER		a spare, which is off the free list, goes into a transmit slot
 *	FREE -> RX_FILL		a receive slot needs a buffer
 *	USER -> TX_PINNED	the application submits it
 *	USER -> RX_FILL		the application gives a receive slot back
 *	RX_FILL -> USER		received data is published
 *	TX_PINNED -> USER	the submission was refused
 *	TX_PINNED -> FREE	no one reads its payload any more: for TCP, its last byte was
 *				acknowledged, or the connection was reset
 *
 * The free list is changed under pool->lock.  A change from USER is a compare-and-exchange,
 * because the application may name a buffer on two rings, which sync at the same time: one of them
 * gets it.  All other states belong to one party at a time, which alone changes them.
 */
#include <linux/nospec.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "core/pool.h"

static void sm_buf_set_owner(struct sm_pool *pool, u32 idx, enum sm_owner owner)
{
	WRITE_ONCE(pool->buf[idx].owner, owner);
}

int sm_pool_init(struct sm_pool *pool, u32 count)
{
	u32 i;

	/* An estimate, but it is better to fail early than to trigger reclaim or the OOM killer. */
	if (si_mem_available() < count)
		return -ENOMEM;
	spin_lock_init(&pool->lock);
	pool->nfree = 0;	/* an earlier, failed attempt may have left something */
	pool->npinned = 0;
	pool->nbufs = count + SM_FIRST_BUF;
	pool->buf = kvcalloc(pool->nbufs, sizeof(*pool->buf), SM_GFP);
	pool->free = kvmalloc_array(count, sizeof(*pool->free), SM_GFP);
	if (!pool->buf || !pool->free)
		goto err;
	/* The reserved indices have pages too, so that the mapping has no hole. */
	for (i = 0; i < pool->nbufs; i++) {
		pool->buf[i].page = alloc_page(SM_GFP | __GFP_ZERO);
		if (!pool->buf[i].page || fatal_signal_pending(current))
			goto err;
		cond_resched();
		if (i >= SM_FIRST_BUF)
			pool->free[pool->nfree++] = i;
	}
	return 0;
err:
	sm_pool_destroy(pool);
	return -ENOMEM;
}

/* Pages that the application still maps, or that a NIC still reads, live on by their own count. */
void sm_pool_destroy(struct sm_pool *pool)
{
	u32 i;

	for (i = 0; pool->buf && i < pool->nbufs; i++) {
		if (pool->buf[i].page)
			put_page(pool->buf[i].page);
		cond_resched();
	}
	kvfree(pool->buf);
	kvfree(pool->free);
	pool->buf = NULL;
	pool->free = NULL;
}

/* Take up to @count free buffers for @owner; returns how many there were. */
u32 sm_pool_get(struct sm_pool *pool, u32 *idx, u32 count, enum sm_owner owner)
{
	unsigned long irq;
	u32 i;

	spin_lock_irqsave(&pool->lock, irq);
	count = min(count, pool->nfree);
	for (i = 0; i < count; i++) {
		idx[i] = pool->free[--pool->nfree];
		sm_buf_set_owner(pool, idx[i], owner);
	}
	spin_unlock_irqrestore(&pool->lock, irq);
	return count;
}

/* Put buffers on the free list that have no other user. */
void sm_pool_put(struct sm_pool *pool, const u32 *idx, u32 count)
{
	unsigned long irq;
	u32 i;

	spin_lock_irqsave(&pool->lock, irq);
	for (i = 0; i < count; i++) {
		sm_buf_set_owner(pool, idx[i], SM_FREE);
		pool->free[pool->nfree++] = idx[i];
	}
	spin_unlock_irqrestore(&pool->lock, irq);
}

/*
 * Take a buffer that the application named; returns its index, or an errno.  @idx is a kernel copy
 * of the application's number; only the returned index is safe to use under speculation.
 */
int sm_pool_claim(struct sm_pool *pool, u32 idx, enum sm_owner owner)
{
	if (idx < SM_FIRST_BUF || idx >= pool->nbufs)
		return -ERANGE;
	idx = array_index_nospec(idx, pool->nbufs);
	if (cmpxchg(&pool->buf[idx].owner, SM_USER, owner) != SM_USER)
		return -EPERM;
	return idx;
}

/* Make a buffer the application's. */
void sm_pool_give(struct sm_pool *pool, u32 idx)
{
	sm_buf_set_owner(pool, idx, SM_USER);
}

/* Count one more holder of each of these TX_PINNED buffers. */
void sm_pool_pin(struct sm_pool *pool, const u32 *idx, u32 count)
{
	unsigned long irq;
	u32 i;

	spin_lock_irqsave(&pool->lock, irq);
	for (i = 0; i < count; i++)
		if (!pool->buf[idx[i]].pins++)
			pool->npinned++;
	spin_unlock_irqrestore(&pool->lock, irq);
}

/* TCP did not take these: unpin them, but leave them claimed.  The caller gives them back. */
void sm_pool_unpin_refused(struct sm_pool *pool, const u32 *idx, u32 count)
{
	unsigned long irq;
	u32 i;

	spin_lock_irqsave(&pool->lock, irq);
	for (i = 0; i < count; i++)
		if (!--pool->buf[idx[i]].pins)
			pool->npinned--;
	spin_unlock_irqrestore(&pool->lock, irq);
}

/* One holder less; a buffer without holders is free.  Returns how many got free.  Any context. */
u32 sm_pool_unpin(struct sm_pool *pool, const u32 *idx, u32 count)
{
	unsigned long irq;
	u32 freed = 0;
	u32 i;

	spin_lock_irqsave(&pool->lock, irq);
	for (i = 0; i < count; i++) {
		if (--pool->buf[idx[i]].pins)
			continue;
		pool->npinned--;
		sm_buf_set_owner(pool, idx[i], SM_FREE);
		pool->free[pool->nfree++] = idx[i];
		freed++;
	}
	spin_unlock_irqrestore(&pool->lock, irq);
	return freed;
}
