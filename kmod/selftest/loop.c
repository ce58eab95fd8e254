// SPDX-License-Identifier: GPL-2.0
/*
 * A kind of port that is no more than the core: what is sent on any of its rings is received on
 * one.
 *
 * It shows what core/ is without TCP and without a NIC: a file, a region, rings whose numbers
 * differ, and two operations that matter.
 */
#include <kunit/test.h>
#include <linux/slab.h>

#include "core/port.h"
#include "selftest/suites.h"

struct loop_port {
	struct sm_port port;
	struct sm_rings rings;
};

/* A slot's payload is copied, and its buffer stays where it is. */
static int loop_txsync(struct sm_txring *tx)
{
	struct sm_rings *rings = tx->rings;
	struct sm_pool *pool = &rings->port->pool;
	struct sm_rxring *rx = rings->rx;
	struct sm_rxslot *to;
	struct sm_slot slot;
	int idx, err;

	err = sm_txring_begin(tx);
	for (; !err && tx->done != tx->head; tx->done = sm_next(tx->done, tx->n)) {
		sm_slot_read(tx->ring, tx->done, &slot);
		idx = sm_pool_claim(pool, slot.buf_idx, SM_TX_PINNED);
		if (idx < 0 || slot.len > SM_BUF_SIZE) {
			sm_txring_refuse(tx, tx->done, idx < 0 ? -idx : EINVAL);
			continue;
		}
		spin_lock_bh(&rx->lock);
		to = sm_rxring_open(rx, SM_PTR_ID(slot.ptr));
		if (to) {
			memcpy(sm_pool_addr(pool, to->buf), sm_pool_addr(pool, idx), slot.len);
			to->len = slot.len;
		}
		spin_unlock_bh(&rx->lock);
		sm_pool_give(pool, idx);
		if (!to)
			sm_txring_refuse(tx, tx->done, EAGAIN);
	}
	if (!err)
		sm_txring_end(tx);
	return err;
}

static void loop_rxsync(struct sm_rings *rings)
{
}

static bool loop_ready(struct sm_rings *rings)
{
	return false;
}

static void loop_room(struct sm_rxring *rx)
{
}

static int loop_open(struct sm_port *port, const char *name, struct sm_req_register *req,
		     struct sm_opt_limits *limits)
{
	return *name ? -ENXIO : 0;
}

static int loop_init(struct sm_port *port, const struct sm_opt_limits *limits)
{
	struct sm_rings *rings = &container_of(port, struct loop_port, port)->rings;

	rings->tx = port->tx;
	rings->ntx = port->ntx;
	rings->rx = port->rx;
	rings->nrx = port->nrx;
	return sm_port_set_range(port, 0, rings);
}

static void loop_end(struct sm_port *port)
{
}

static long loop_ioctl(struct sm_port *port, unsigned int cmd, void __user *arg)
{
	return -ENOTTY;
}

static const struct sm_port_ops loop_ops = {
	.prefix		= "loop:",
	.size		= sizeof(struct loop_port),
	.txsync		= loop_txsync,
	.rxsync		= loop_rxsync,
	.ready		= loop_ready,
	.room		= loop_room,
	.open		= loop_open,
	.init		= loop_init,
	.close		= loop_end,
	.destroy	= loop_end,
	.ioctl		= loop_ioctl,
};

/* -- its tests ------------------------------------------------------------------------------ */

#define TX_RINGS	2
#define SLOTS		4

static const struct sm_sync both = { .flags = SM_SYNC_TX | SM_SYNC_RX };

static int loop_setup(struct kunit *test)
{
	struct sm_req_register req = {
		.nr_tx_rings = TX_RINGS,
		.nr_rx_rings = 1,
		.nr_tx_slots = SLOTS,
		.nr_rx_slots = SLOTS,
	};
	wait_queue_head_t *wait = kzalloc(sizeof(*wait), GFP_KERNEL);
	struct sm_opt_limits limits = {};
	struct sm_port *port;

	KUNIT_ASSERT_NOT_NULL(test, wait);
	init_waitqueue_head(wait);
	KUNIT_ASSERT_EQ(test, sm_port_kind_register(&loop_ops), 0);
	port = sm_port_create("loop:", &req, &limits, wait, wait);
	KUNIT_ASSERT_FALSE(test, IS_ERR(port));
	sm_port_publish(port);
	test->priv = port;
	return 0;
}

static void loop_teardown(struct kunit *test)
{
	sm_port_close(test->priv);
	sm_port_kind_unregister(&loop_ops);
	rcu_barrier();
	flush_workqueue(sm_free_wq);
}

/* Submit one slot as an application would. */
static void submit(struct sm_txring *tx, u32 id, const char *text)
{
	struct sm_ring *ring = tx->ring;
	struct sm_slot *slot = &ring->slot[ring->head];

	slot->ptr = SM_PTR(id, 0);
	slot->len = strlen(text);
	memcpy(sm_pool_addr(&tx->rings->port->pool, slot->buf_idx), text, slot->len);
	ring->head = sm_next(ring->head, tx->n);
	ring->cur = ring->head;
}

static int sync(struct sm_port *port)
{
	int err;

	mutex_lock(&port->rings[0]->mutex);
	err = sm_rings_sync(port->rings[0], &both);
	mutex_unlock(&port->rings[0]->mutex);
	return err;
}

static void the_rings_of_a_range_are_synced_together(struct kunit *test)
{
	struct sm_port *port = test->priv;
	struct sm_ring *rx = port->rx[0].ring;
	u32 i;

	submit(&port->tx[0], 7, "one");
	submit(&port->tx[1], 8, "three");
	submit(&port->tx[0], 9, "tw");
	KUNIT_ASSERT_EQ(test, sync(port), 0);
	KUNIT_ASSERT_EQ(test, rx->tail, 3U);
	for (i = 0; i < 3; i++) {
		static const struct { u32 id; const char *text; } wanted[] = {
			{ 7, "one" }, { 9, "tw" }, { 8, "three" },
		};
		const struct sm_slot *slot = &rx->slot[i];

		KUNIT_EXPECT_EQ(test, SM_PTR_ID(slot->ptr), wanted[i].id);
		KUNIT_ASSERT_EQ(test, (size_t)slot->len, strlen(wanted[i].text));
		KUNIT_EXPECT_EQ(test, memcmp(sm_pool_addr(&port->pool, slot->buf_idx),
					     wanted[i].text, slot->len), 0);
	}
}

static void a_full_ring_refuses_and_goes_on(struct kunit *test)
{
	struct sm_port *port = test->priv;
	struct sm_ring *rx = port->rx[0].ring;
	u32 i;

	for (i = 0; i < SLOTS - 1; i++)
		submit(&port->tx[0], i, "x");
	submit(&port->tx[1], 99, "y");
	KUNIT_ASSERT_EQ(test, sync(port), 0);
	KUNIT_EXPECT_EQ(test, rx->tail, (u32)SLOTS - 1);
	KUNIT_EXPECT_EQ(test, SM_PTR_FLAGS(port->tx[1].ring->slot[0].ptr), SM_SLOT_REFUSED);
	KUNIT_EXPECT_EQ(test, SM_PTR_ERRNO(port->tx[1].ring->slot[0].ptr), EAGAIN);

	rx->head = rx->tail;		/* all are read */
	rx->cur = rx->head;
	submit(&port->tx[1], 99, "y");
	KUNIT_ASSERT_EQ(test, sync(port), 0);
	/* Slots are taken back after those of this sync were refused. */
	submit(&port->tx[1], 99, "y");
	KUNIT_ASSERT_EQ(test, sync(port), 0);
	KUNIT_EXPECT_EQ(test, SM_PTR_ID(rx->slot[SLOTS - 1].ptr), 99U);
}

static void a_bad_head_is_reset(struct kunit *test)
{
	struct sm_port *port = test->priv;

	port->tx[1].ring->head = SLOTS;
	KUNIT_EXPECT_EQ(test, sync(port), -EINVAL);
	KUNIT_EXPECT_EQ(test, port->tx[1].ring->head, 0U);
	KUNIT_EXPECT_EQ(test, sync(port), 0);
}

static void a_name_of_no_kind_is_refused(struct kunit *test)
{
	struct sm_req_register req = {};
	struct sm_opt_limits limits = {};

	KUNIT_EXPECT_EQ(test, PTR_ERR(sm_port_create("raw:eth0", &req, &limits, NULL, NULL)),
			(long)-EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(sm_port_create("loop:eth0", &req, &limits, NULL, NULL)),
			(long)-ENXIO);
}

static struct kunit_case loop_cases[] = {
	KUNIT_CASE(the_rings_of_a_range_are_synced_together),
	KUNIT_CASE(a_full_ring_refuses_and_goes_on),
	KUNIT_CASE(a_bad_head_is_reset),
	KUNIT_CASE(a_name_of_no_kind_is_refused),
	{}
};

struct kunit_suite sm_loop_suite = {
	.name = "stackmap-core",
	.init = loop_setup,
	.exit = loop_teardown,
	.test_cases = loop_cases,
};
