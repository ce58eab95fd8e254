/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_POOL_H
#define _SM_POOL_H

#include <linux/atomic.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/nospec.h>
#include <linux/spinlock.h>

#define SM_BUF_SIZE	PAGE_SIZE
#define SM_FIRST_BUF	2	/* netmap reserves indices 0 and 1 */

/* Memory that an application asks for: charged to its cgroup; too much is refused, not fatal. */
#define SM_GFP		(GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN)

enum sm_owner {
	SM_FREE,	/* on the free list */
	SM_USER,	/* the application's */
	SM_RX_FILL,	/* in the receive ring, the kernel's */
	SM_TX_PINNED,	/* its payload may still be read, by a port's transport or a NIC */
};

struct sm_buf {
	struct page *page;
	u32 shares;	/* its holders but one, while TX_PINNED; guarded by pool->lock */
	u32 owner;	/* enum sm_owner */
};

struct sm_pool {
	spinlock_t lock;	/* guards nfree, free[], shares, owners FREE */
	u32 nbufs;		/* valid indices are SM_FIRST_BUF .. nbufs - 1 */
	u32 nfree;
	atomic_t npinned;
	u32 *free;
	struct sm_buf *buf;
};

int sm_pool_init(struct sm_pool *pool, u32 count);
void sm_pool_destroy(struct sm_pool *pool);
u32 sm_pool_get(struct sm_pool *pool, u32 *idx, u32 count, enum sm_owner owner);
void sm_pool_put(struct sm_pool *pool, const u32 *idx, u32 count);
void sm_pool_share(struct sm_pool *pool, u32 idx);
u32 sm_pool_unpin(struct sm_pool *pool, const u32 *idx, u32 count);

static inline void sm_buf_set_owner(struct sm_pool *pool, u32 idx, enum sm_owner owner)
{
	WRITE_ONCE(pool->buf[idx].owner, owner);
}

/*
 * Take a buffer that the application named; returns its index, or an errno.  @idx is a kernel copy
 * of the application's number; only the returned index is safe to use under speculation.
 */
static inline int sm_pool_claim(struct sm_pool *pool, u32 idx, enum sm_owner owner)
{
	if (idx < SM_FIRST_BUF || idx >= pool->nbufs)
		return -ERANGE;
	idx = array_index_nospec(idx, pool->nbufs);
	if (cmpxchg(&pool->buf[idx].owner, SM_USER, owner) != SM_USER)
		return -EPERM;
	return idx;
}

/* Make a buffer the application's. */
static inline void sm_pool_give(struct sm_pool *pool, u32 idx)
{
	sm_buf_set_owner(pool, idx, SM_USER);
}

/* So many claimed buffers have a holder now. */
static inline void sm_pool_pin(struct sm_pool *pool, u32 count)
{
	atomic_add(count, &pool->npinned);
}

/* TCP did not take so many of them: they stay claimed, and the caller gives them back. */
static inline void sm_pool_unpin_refused(struct sm_pool *pool, u32 count)
{
	atomic_sub(count, &pool->npinned);
}

static inline void sm_pool_put_locked(struct sm_pool *pool, u32 idx)
{
	lockdep_assert_held(&pool->lock);
	sm_buf_set_owner(pool, idx, SM_FREE);
	pool->free[pool->nfree++] = idx;
}

/* As sm_pool_unpin(), of one buffer; true if it got free. */
static inline bool sm_pool_unpin_locked(struct sm_pool *pool, u32 idx)
{
	lockdep_assert_held(&pool->lock);
	if (pool->buf[idx].shares) {
		pool->buf[idx].shares--;
		return false;
	}
	sm_pool_put_locked(pool, idx);
	atomic_dec(&pool->npinned);
	return true;
}

static inline void *sm_pool_addr(const struct sm_pool *pool, u32 idx)
{
	return page_address(pool->buf[idx].page);
}

#endif /* _SM_POOL_H */
