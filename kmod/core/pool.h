/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_POOL_H
#define _SM_POOL_H

#include <linux/gfp.h>
#include <linux/mm.h>
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
	u32 pins;	/* references to it; guarded by pool->lock */
	u32 owner;	/* enum sm_owner */
};

struct sm_pool {
	spinlock_t lock;	/* guards nfree, npinned, free[], pins, owners FREE */
	u32 nbufs;		/* valid indices are SM_FIRST_BUF .. nbufs - 1 */
	u32 nfree;
	u32 npinned;
	u32 *free;
	struct sm_buf *buf;
};

int sm_pool_init(struct sm_pool *pool, u32 count);
void sm_pool_destroy(struct sm_pool *pool);
u32 sm_pool_get(struct sm_pool *pool, u32 *idx, u32 count, enum sm_owner owner);
void sm_pool_put(struct sm_pool *pool, const u32 *idx, u32 count);
int sm_pool_claim(struct sm_pool *pool, u32 idx, enum sm_owner owner);
void sm_pool_give(struct sm_pool *pool, u32 idx);
void sm_pool_pin(struct sm_pool *pool, const u32 *idx, u32 count);
void sm_pool_unpin_refused(struct sm_pool *pool, const u32 *idx, u32 count);
u32 sm_pool_unpin(struct sm_pool *pool, const u32 *idx, u32 count);

static inline void *sm_pool_addr(const struct sm_pool *pool, u32 idx)
{
	return page_address(pool->buf[idx].page);
}

#endif /* _SM_POOL_H */
