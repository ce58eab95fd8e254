// SPDX-License-Identifier: GPL-2.0
/* Positions in a ring. */
#include <kunit/test.h>

#include "core/ring.h"
#include "selftest/suites.h"

static void next_and_prev_wrap(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, sm_next(0, 4), 1U);
	KUNIT_EXPECT_EQ(test, sm_next(3, 4), 0U);
	KUNIT_EXPECT_EQ(test, sm_prev(0, 4), 3U);
	KUNIT_EXPECT_EQ(test, sm_prev(3, 4), 2U);
}

static void distance_counts_steps(struct kunit *test)
{
	u32 n = 5, from, to, i, steps;

	for (from = 0; from < n; from++)
		for (to = 0; to < n; to++) {
			for (steps = 0, i = from; i != to; i = sm_next(i, n))
				steps++;
			KUNIT_EXPECT_EQ(test, sm_distance(from, to, n), steps);
		}
}

/* A head and a cur are valid if a walk from @from meets head, then cur, no later than end. */
static bool valid_by_walking(u32 head, u32 cur, u32 from, u32 end, u32 n)
{
	bool head_met = false;
	u32 i = from;

	for (;; i = sm_next(i, n)) {
		head_met |= i == head;
		if (i == cur)
			return head_met;
		if (i == end)
			return false;
	}
}

static void valid_positions_are_those_owned(struct kunit *test)
{
	u32 n = 5, from, end, head, cur;

	for (from = 0; from < n; from++)
		for (end = 0; end < n; end++)
			for (head = 0; head < n; head++)
				for (cur = 0; cur < n; cur++)
					KUNIT_EXPECT_EQ(test,
							sm_ring_valid(head, cur, from, end, n),
							valid_by_walking(head, cur, from, end, n));
}

static void positions_outside_the_ring_are_not_valid(struct kunit *test)
{
	static const u32 bad[] = { 4, 5, S32_MAX, U32_MAX };
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		KUNIT_EXPECT_FALSE(test, sm_ring_valid(bad[i], 0, 0, 3, 4));
		KUNIT_EXPECT_FALSE(test, sm_ring_valid(0, bad[i], 0, 3, 4));
		KUNIT_EXPECT_FALSE(test, sm_ring_valid(bad[i], bad[i], 0, 3, 4));
	}
}

static struct kunit_case ring_cases[] = {
	KUNIT_CASE(next_and_prev_wrap),
	KUNIT_CASE(distance_counts_steps),
	KUNIT_CASE(valid_positions_are_those_owned),
	KUNIT_CASE(positions_outside_the_ring_are_not_valid),
	{}
};

struct kunit_suite sm_ring_suite = {
	.name = "stackmap-rings",
	.test_cases = ring_cases,
};
