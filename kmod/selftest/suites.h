/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_SUITES_H
#define _SM_SUITES_H

struct kunit_suite;

extern struct kunit_suite sm_ring_suite, sm_slot_suite, sm_pool_suite, sm_loop_suite,
	sm_attached_suite, sm_doorbell_suite;

#endif /* _SM_SUITES_H */
