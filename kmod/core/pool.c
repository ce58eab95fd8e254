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
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "core/pool.h"

int sm_pool_init(struct sm_pool *pool, u32 count)
{
	u32 i;

	/* An estimate, but it is better to fail early than to trigger reclaim or the OOM killer. */
	if (si_mem_available() < count)
		return -ENOMEM;
	spin_lock_init(&pool->lock);
	pool->nfree = 0;	/* an earlier, failed attempt may have left something */
	atomic_set(&pool->npinned, 0);
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
	for (i = 0; i < count; i++)
		sm_pool_put_locked(pool, idx[i]);
	spin_unlock_irqrestore(&pool->lock, irq);
}

/* Count one more holder of a TX_PINNED buffer. */
void sm_pool_share(struct sm_pool *pool, u32 idx)
{
	unsigned long irq;

	spin_lock_irqsave(&pool->lock, irq);
	pool->buf[idx].shares++;
	spin_unlock_irqrestore(&pool->lock, irq);
}

/* One holder less; a buffer without holders is free.  Returns how many got free.  Any context. */
u32 sm_pool_unpin(struct sm_pool *pool, const u32 *idx, u32 count)
{
	unsigned long irq;
	u32 freed = 0;
	u32 i;

	spin_lock_irqsave(&pool->lock, irq);
	for (i = 0; i < count; i++)
		freed += sm_pool_unpin_locked(pool, idx[i]);
	spin_unlock_irqrestore(&pool->lock, irq);
	return freed;
}
