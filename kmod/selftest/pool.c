// SPDX-License-Identifier: GPL-2.0
/* Owners of buffers. */
#include <kunit/test.h>

#include "core/pool.h"
#include "selftest/suites.h"

#define POOL_BUFS 8

static int pool_setup(struct kunit *test)
{
	struct sm_pool *pool = kunit_kzalloc(test, sizeof(*pool), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, pool);
	test->priv = pool;
	return sm_pool_init(pool, POOL_BUFS);
}

static void pool_teardown(struct kunit *test)
{
	sm_pool_destroy(test->priv);
}

static void every_buffer_is_handed_out_once(struct kunit *test)
{
	struct sm_pool *pool = test->priv;
	unsigned long seen = 0;
	u32 idx[POOL_BUFS + 1];
	u32 i;

	KUNIT_ASSERT_EQ(test, sm_pool_get(pool, idx, POOL_BUFS + 1, SM_USER), (u32)POOL_BUFS);
	for (i = 0; i < POOL_BUFS; i++) {
		KUNIT_EXPECT_GE(test, idx[i], (u32)SM_FIRST_BUF);
		KUNIT_EXPECT_LT(test, idx[i], pool->nbufs);
		KUNIT_EXPECT_FALSE(test, __test_and_set_bit(idx[i], &seen));
		KUNIT_EXPECT_EQ(test, pool->buf[idx[i]].owner, (u32)SM_USER);
	}
	KUNIT_EXPECT_EQ(test, sm_pool_get(pool, idx, 1, SM_USER), 0U);
}

static void only_the_applications_buffers_can_be_claimed(struct kunit *test)
{
	struct sm_pool *pool = test->priv;
	u32 idx;

	KUNIT_ASSERT_EQ(test, sm_pool_get(pool, &idx, 1, SM_USER), 1U);
	KUNIT_EXPECT_EQ(test, sm_pool_claim(pool, 0, SM_TX_PINNED), -ERANGE);
	KUNIT_EXPECT_EQ(test, sm_pool_claim(pool, SM_FIRST_BUF - 1, SM_TX_PINNED), -ERANGE);
	KUNIT_EXPECT_EQ(test, sm_pool_claim(pool, pool->nbufs, SM_TX_PINNED), -ERANGE);
	KUNIT_EXPECT_EQ(test, sm_pool_claim(pool, U32_MAX, SM_TX_PINNED), -ERANGE);
	KUNIT_EXPECT_EQ(test, sm_pool_claim(pool, pool->free[0], SM_TX_PINNED), -EPERM);
	KUNIT_EXPECT_EQ(test, sm_pool_claim(pool, idx, SM_TX_PINNED), (int)idx);
	KUNIT_EXPECT_EQ(test, sm_pool_claim(pool, idx, SM_TX_PINNED), -EPERM);
	KUNIT_EXPECT_EQ(test, sm_pool_claim(pool, idx, SM_RX_FILL), -EPERM);
	sm_pool_give(pool, idx);
	KUNIT_EXPECT_EQ(test, sm_pool_claim(pool, idx, SM_RX_FILL), (int)idx);
}

static void last_pin_frees(struct kunit *test)
{
	struct sm_pool *pool = test->priv;
	u32 idx[2];

	KUNIT_ASSERT_EQ(test, sm_pool_get(pool, idx, 2, SM_TX_PINNED), 2U);
	sm_pool_pin(pool, 2);
	sm_pool_share(pool, idx[0]);
	KUNIT_EXPECT_EQ(test, atomic_read(&pool->npinned), 2);
	KUNIT_EXPECT_EQ(test, sm_pool_unpin(pool, idx, 2), 1U);
	KUNIT_EXPECT_EQ(test, atomic_read(&pool->npinned), 1);
	KUNIT_EXPECT_EQ(test, pool->buf[idx[0]].owner, (u32)SM_TX_PINNED);
	KUNIT_EXPECT_EQ(test, pool->buf[idx[1]].owner, (u32)SM_FREE);
	KUNIT_EXPECT_EQ(test, sm_pool_unpin(pool, idx, 1), 1U);
	KUNIT_EXPECT_EQ(test, atomic_read(&pool->npinned), 0);
	KUNIT_EXPECT_EQ(test, pool->nfree, (u32)POOL_BUFS);
}

static void refused_buffers_stay_claimed(struct kunit *test)
{
	struct sm_pool *pool = test->priv;
	u32 idx;

	KUNIT_ASSERT_EQ(test, sm_pool_get(pool, &idx, 1, SM_TX_PINNED), 1U);
	sm_pool_pin(pool, 1);
	sm_pool_unpin_refused(pool, 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&pool->npinned), 0);
	KUNIT_EXPECT_EQ(test, pool->nfree, POOL_BUFS - 1U);
	KUNIT_EXPECT_EQ(test, pool->buf[idx].owner, (u32)SM_TX_PINNED);
	sm_pool_put(pool, &idx, 1);
	KUNIT_EXPECT_EQ(test, pool->nfree, (u32)POOL_BUFS);
}

static struct kunit_case pool_cases[] = {
	KUNIT_CASE(every_buffer_is_handed_out_once),
	KUNIT_CASE(only_the_applications_buffers_can_be_claimed),
	KUNIT_CASE(last_pin_frees),
	KUNIT_CASE(refused_buffers_stay_claimed),
	{}
};

struct kunit_suite sm_pool_suite = {
	.name = "stackmap-buffers",
	.init = pool_setup,
	.exit = pool_teardown,
	.test_cases = pool_cases,
};
