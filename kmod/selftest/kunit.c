// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit: ring arithmetic, owners of buffers, what a slot may say; and what only other code in the
 * kernel could do to an attached socket.
 *
 * Built in with `make SM_KUNIT=1` for a kernel that has KUnit; the tests run when the module loads.
 */
#include <kunit/test.h>
#include <linux/net.h>
#include <linux/slab.h>
#include <net/tcp.h>

#include "stackmap.h"

/* -- positions in a ring -------------------------------------------------------------------- */

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

/* A head and a cur are sound if a walk from @from meets head, then cur, no later than end. */
static bool sound_by_walking(u32 head, u32 cur, u32 from, u32 end, u32 n)
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

static void sound_positions_are_those_owned(struct kunit *test)
{
	u32 n = 5, from, end, head, cur;

	for (from = 0; from < n; from++)
		for (end = 0; end < n; end++)
			for (head = 0; head < n; head++)
				for (cur = 0; cur < n; cur++)
					KUNIT_EXPECT_EQ(test,
							sm_ring_sound(head, cur, from, end, n),
							sound_by_walking(head, cur, from, end, n));
}

static void positions_outside_the_ring_are_not_sound(struct kunit *test)
{
	static const u32 bad[] = { 4, 5, S32_MAX, U32_MAX };
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		KUNIT_EXPECT_FALSE(test, sm_ring_sound(bad[i], 0, 0, 3, 4));
		KUNIT_EXPECT_FALSE(test, sm_ring_sound(0, bad[i], 0, 3, 4));
		KUNIT_EXPECT_FALSE(test, sm_ring_sound(bad[i], bad[i], 0, 3, 4));
	}
}

/* -- slots ---------------------------------------------------------------------------------- */

static void slot_payload_stays_in_its_buffer(struct kunit *test)
{
	static const struct { u32 off, len; bool sound; } cases[] = {
		{ 0, 0, false }, { 0, 1, true }, { 0, SM_BUF_SIZE, true },
		{ 0, SM_BUF_SIZE + 1, false }, { 1, SM_BUF_SIZE, false },
		{ SM_BUF_SIZE - 1, 1, true }, { SM_BUF_SIZE, 1, false },
		{ U16_MAX, 1, false }, { U16_MAX, U16_MAX, false }, { 1, U16_MAX, false },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		struct sm_slot slot = { .len = cases[i].len, .ptr = SM_PTR(7, cases[i].off) };

		KUNIT_EXPECT_EQ_MSG(test, sm_slot_sound(&slot), cases[i].sound, "off %u len %u",
				    cases[i].off, cases[i].len);
	}
}

static void slot_has_no_reserved_bits(struct kunit *test)
{
	int bit;

	for (bit = 48; bit < 64; bit++) {
		struct sm_slot slot = { .len = 1, .ptr = SM_PTR(7, 0) | BIT_ULL(bit) };

		KUNIT_EXPECT_FALSE(test, sm_slot_sound(&slot));
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

/* -- owners --------------------------------------------------------------------------------- */

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
	sm_pool_pin(pool, idx, 2);
	sm_pool_pin(pool, idx, 1);
	KUNIT_EXPECT_EQ(test, pool->npinned, 2U);
	KUNIT_EXPECT_EQ(test, sm_pool_unpin(pool, idx, 2), 1U);
	KUNIT_EXPECT_EQ(test, pool->npinned, 1U);
	KUNIT_EXPECT_EQ(test, pool->buf[idx[0]].owner, (u32)SM_TX_PINNED);
	KUNIT_EXPECT_EQ(test, pool->buf[idx[1]].owner, (u32)SM_FREE);
	KUNIT_EXPECT_EQ(test, sm_pool_unpin(pool, idx, 1), 1U);
	KUNIT_EXPECT_EQ(test, pool->npinned, 0U);
	KUNIT_EXPECT_EQ(test, pool->nfree, (u32)POOL_BUFS);
}

static void refused_buffers_stay_claimed(struct kunit *test)
{
	struct sm_pool *pool = test->priv;
	u32 idx;

	KUNIT_ASSERT_EQ(test, sm_pool_get(pool, &idx, 1, SM_TX_PINNED), 1U);
	sm_pool_pin(pool, &idx, 1);
	sm_pool_unpin_refused(pool, &idx, 1);
	KUNIT_EXPECT_EQ(test, pool->npinned, 0U);
	KUNIT_EXPECT_EQ(test, pool->nfree, POOL_BUFS - 1U);
	KUNIT_EXPECT_EQ(test, pool->buf[idx].owner, (u32)SM_TX_PINNED);
	sm_pool_put(pool, &idx, 1);
	KUNIT_EXPECT_EQ(test, pool->nfree, (u32)POOL_BUFS);
}

/* -- a connection, attached just after it was reset ----------------------------------------- */

#define RX_SLOTS	4

struct attached {
	struct sm_port *port;
	struct sm_pair *pair;
	struct socket *sock;
	struct sm_conn *conn;
};

static int attached_setup(struct kunit *test)
{
	struct attached *a = kunit_kzalloc(test, sizeof(*a), GFP_KERNEL);
	struct sm_port *port;
	struct sm_pair *pair;

	KUNIT_ASSERT_NOT_NULL(test, a);
	test->priv = a;
	port = kunit_kzalloc(test, sizeof(*port), GFP_KERNEL);
	pair = kunit_kzalloc(test, sizeof(*pair), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, port);
	KUNIT_ASSERT_NOT_NULL(test, pair);
	a->port = port;
	a->pair = pair;
	kref_init(&port->kref);		/* the test's, never put: the port is not freed */
	mutex_init(&port->mutex);
	xa_init_flags(&port->conns, XA_FLAGS_ALLOC1);
	init_waitqueue_head(&port->wait);
	port->pair = pair;
	port->npairs = 1;
	sm_pair_prepare(pair, port, 0);
	KUNIT_ASSERT_EQ(test, sm_pool_init(&port->pool, RX_SLOTS), 0);
	KUNIT_ASSERT_EQ(test, sm_states_init(&port->states, 1), 0);
	KUNIT_ASSERT_EQ(test, sm_rx_init(pair, RX_SLOTS), 0);

	KUNIT_ASSERT_EQ(test, sock_create_kern(&init_net, AF_INET, SOCK_STREAM, IPPROTO_TCP,
					       &a->sock), 0);
	a->sock->sk->sk_err = ECONNRESET;
	a->conn = sm_conn_alloc(port);
	KUNIT_ASSERT_FALSE(test, IS_ERR(a->conn));
	mutex_lock(&port->mutex);
	KUNIT_EXPECT_EQ(test, sm_conn_take(a->conn, a->sock, 0), 0);
	mutex_unlock(&port->mutex);
	return 0;
}

static void attached_teardown(struct kunit *test)
{
	struct attached *a = test->priv;

	mutex_lock(&a->port->mutex);
	sm_conn_detach_all(a->port);
	mutex_unlock(&a->port->mutex);
	sm_conn_put(a->conn);
	sock_release(a->sock);
	rcu_barrier();
	sm_rx_destroy(a->pair);
	sm_states_destroy(&a->port->states);
	sm_pool_destroy(&a->port->pool);
	xa_destroy(&a->port->conns);
}

static void foreign_callback(struct sock *sk)
{
}

static void detach_leaves_the_callbacks_of_others(struct kunit *test)
{
	struct attached *a = test->priv;
	struct sock *sk = a->sock->sk;
	void (*error_report)(struct sock *sk);

	lock_sock(sk);
	error_report = sk->sk_error_report;
	sk->sk_write_space = foreign_callback;
	sk->sk_state_change = foreign_callback;
	sm_conn_detach_locked(a->conn);
	KUNIT_EXPECT_PTR_EQ(test, sk->sk_write_space, &foreign_callback);
	KUNIT_EXPECT_PTR_EQ(test, sk->sk_state_change, &foreign_callback);
	KUNIT_EXPECT_PTR_NE(test, sk->sk_error_report, error_report);
	KUNIT_EXPECT_NULL(test, sm_conn_of_locked(sk));
	KUNIT_EXPECT_NULL(test, sk->sk_user_data);
	release_sock(sk);
}

static void detach_leaves_user_data_of_others(struct kunit *test)
{
	struct attached *a = test->priv;
	struct sock *sk = a->sock->sk;

	lock_sock(sk);
	sk->sk_data_ready = foreign_callback;
	sk->sk_user_data = test;
	sm_conn_detach_locked(a->conn);
	KUNIT_EXPECT_PTR_EQ(test, sk->sk_data_ready, &foreign_callback);
	KUNIT_EXPECT_PTR_EQ(test, sk->sk_user_data, (void *)test);
	sk->sk_user_data = NULL;
	release_sock(sk);
}

/* Payload in a device's memory, as with devmem TCP, has no page that the CPU could read. */
static void payload_that_cannot_be_read_ends_the_connection(struct kunit *test)
{
	struct attached *a = test->priv;
	struct sock *sk = a->sock->sk;
	struct sm_rxring *rx = &a->pair->rx;
	struct page *page = alloc_page(GFP_KERNEL);
	struct sk_buff *skb = alloc_skb(0, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, page);
	KUNIT_ASSERT_NOT_NULL(test, skb);
	skb_fill_page_desc(skb, 0, page, 0, 100);
	skb->len = 100;
	skb->data_len = 100;
	skb->unreadable = 1;
	TCP_SKB_CB(skb)->seq = tcp_sk(sk)->copied_seq;
	TCP_SKB_CB(skb)->end_seq = tcp_sk(sk)->copied_seq + 100;

	lock_sock(sk);
	__skb_queue_tail(&sk->sk_receive_queue, skb);
	KUNIT_EXPECT_FALSE(test, sm_rx_drain(a->conn));
	release_sock(sk);
	KUNIT_EXPECT_EQ(test, rx->fill, 0U);

	mutex_lock(&a->pair->mutex);
	sm_conn_service_pending(a->pair);
	mutex_unlock(&a->pair->mutex);
	KUNIT_EXPECT_TRUE(test, skb_queue_empty(&sk->sk_receive_queue));
	KUNIT_EXPECT_EQ(test, rx->fill, 2U);
	KUNIT_EXPECT_EQ(test, rx->slot[0].flags, (u8)SM_SLOT_ERROR);
	KUNIT_EXPECT_EQ(test, rx->slot[0].err, (u8)ECONNRESET);
	KUNIT_EXPECT_EQ(test, rx->slot[1].flags, (u8)SM_SLOT_CLOSED);
	KUNIT_EXPECT_FALSE(test, a->conn->attached);
}

static struct kunit_case ring_cases[] = {
	KUNIT_CASE(next_and_prev_wrap),
	KUNIT_CASE(distance_counts_steps),
	KUNIT_CASE(sound_positions_are_those_owned),
	KUNIT_CASE(positions_outside_the_ring_are_not_sound),
	KUNIT_CASE(slot_payload_stays_in_its_buffer),
	KUNIT_CASE(slot_has_no_reserved_bits),
	KUNIT_CASE(slot_pointer_keeps_its_parts),
	{}
};

static struct kunit_suite ring_suite = {
	.name = "stackmap-rings",
	.test_cases = ring_cases,
};

static struct kunit_case pool_cases[] = {
	KUNIT_CASE(every_buffer_is_handed_out_once),
	KUNIT_CASE(only_the_applications_buffers_can_be_claimed),
	KUNIT_CASE(last_pin_frees),
	KUNIT_CASE(refused_buffers_stay_claimed),
	{}
};

static struct kunit_suite pool_suite = {
	.name = "stackmap-buffers",
	.init = pool_setup,
	.exit = pool_teardown,
	.test_cases = pool_cases,
};

static struct kunit_case attached_cases[] = {
	KUNIT_CASE(detach_leaves_the_callbacks_of_others),
	KUNIT_CASE(detach_leaves_user_data_of_others),
	KUNIT_CASE(payload_that_cannot_be_read_ends_the_connection),
	{}
};

static struct kunit_suite attached_suite = {
	.name = "stackmap-attached",
	.init = attached_setup,
	.exit = attached_teardown,
	.test_cases = attached_cases,
};

kunit_test_suites(&ring_suite, &pool_suite, &attached_suite);
