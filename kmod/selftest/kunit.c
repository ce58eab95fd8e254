// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit's tests of the module.
 *
 * Built in with `make SM_KUNIT=1` for a kernel that has KUnit; the tests run when the module loads.
 */
#include <kunit/test.h>

#include "selftest/suites.h"

kunit_test_suites(&sm_ring_suite, &sm_slot_suite, &sm_pool_suite, &sm_loop_suite,
		  &sm_attached_suite, &sm_doorbell_suite);
