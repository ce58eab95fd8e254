// SPDX-License-Identifier: GPL-2.0
/* Valid transmit slots of a TCP port. */
#include <kunit/test.h>

#include "selftest/suites.h"
#include "tcp/tx.h"

static void slot_payload_stays_in_its_buffer(struct kunit *test)
{
	static const struct { u32 off, len; bool valid; } cases[] = {
		{ 0, 0, false }, { 0, 1, true }, { 0, SM_BUF_SIZE, true },
		{ 0, SM_BUF_SIZE + 1, false }, { 1, SM_BUF_SIZE, false },
		{ SM_BUF_SIZE - 1, 1, true }, { SM_BUF_SIZE, 1, false },
		{ U16_MAX, 1, false }, { U16_MAX, U16_MAX, false }, { 1, U16_MAX, false },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		struct sm_slot slot = { .len = cases[i].len, .ptr = SM_PTR(7, cases[i].off) };

		KUNIT_EXPECT_EQ_MSG(test, sm_slot_valid(&slot), cases[i].valid, "off %u len %u",
				    cases[i].off, cases[i].len);
	}
}

static void slot_has_no_reserved_bits(struct kunit *test)
{
	int bit;

	for (bit = 48; bit < 64; bit++) {
		struct sm_slot slot = { .len = 1, .ptr = SM_PTR(7, 0) | BIT_ULL(bit) };

		KUNIT_EXPECT_FALSE(test, sm_slot_valid(&slot));
	}
}

static void slot_pointer_keeps_its_parts(struct kunit *test)
{
	u64 ptr = SM_PTR(0xfedcba98, 0x7654) | SM_PTR_EVENT(0x32, 0x10);

	KUNIT_EXPECT_EQ(test, SM_PTR_ID(ptr), 0xfedcba98U);
	KUNIT_EXPECT_EQ(test, SM_PTR_OFFSET(ptr), 0x7654);
	KUNIT_EXPECT_EQ(test, SM_PTR_FLAGS(ptr), 0x32);
	KUNIT_EXPECT_EQ(test, SM_PTR_ERRNO(ptr), 0x10);
}

static struct kunit_case slot_cases[] = {
	KUNIT_CASE(slot_payload_stays_in_its_buffer),
	KUNIT_CASE(slot_has_no_reserved_bits),
	KUNIT_CASE(slot_pointer_keeps_its_parts),
	{}
};

struct kunit_suite sm_slot_suite = {
	.name = "stackmap-slots",
	.test_cases = slot_cases,
};
