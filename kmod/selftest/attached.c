// SPDX-License-Identifier: GPL-2.0
/*
 * A connection, attached just after it was reset: what only other code in the kernel could do to
 * it.
 */
#include <kunit/test.h>
#include <linux/delay.h>
#include <linux/net.h>
#include <linux/slab.h>
#include <net/tcp.h>

#include "selftest/suites.h"
#include "tcp/attach.h"
#include "tcp/conn.h"
#include "tcp/events.h"
#include "tcp/info.h"
#include "tcp/port.h"
#include "tcp/rx.h"
#include "tcp/tx.h"

#define RX_SLOTS	4

struct attached {
	struct sm_tcp_port *port;
	struct sm_pair *pair;
	struct socket *sock;
	struct sm_conn *conn;
};

static int attached_setup(struct kunit *test)
{
	struct attached *a = kunit_kzalloc(test, sizeof(*a), GFP_KERNEL);
	struct sm_tcp_port *port;
	struct sm_pair *pair;

	KUNIT_ASSERT_NOT_NULL(test, a);
	test->priv = a;
	port = kunit_kzalloc(test, sizeof(*port), GFP_KERNEL);
	pair = kunit_kzalloc(test, sizeof(*pair), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, port);
	KUNIT_ASSERT_NOT_NULL(test, pair);
	a->port = port;
	a->pair = pair;
	port->base.ops = &sm_tcp_port_ops;
	kref_init(&port->base.kref);	/* the test's, never put: the port is not freed */
	mutex_init(&port->base.mutex);
	xa_init_flags(&port->conns, XA_FLAGS_ALLOC1);
	port->pair = pair;
	port->wq = system_wq;
	port->base.nrings = 1;
	port->base.rx = kunit_kzalloc(test, sizeof(*port->base.rx), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, port->base.rx);
	port->base.rx->n = RX_SLOTS;
	pair->rings.rx = port->base.rx;
	pair->rings.nrx = 1;
	sm_info_queue_init(&pair->info_queue);
	spin_lock_init(&pair->pending_lock);
	INIT_LIST_HEAD(&pair->pending);
	INIT_LIST_HEAD(&pair->blocked);
	sm_rings_init(&pair->rings, &port->base, 0);
	pair->rings.wait = &pair->rings.own_wait;
	KUNIT_ASSERT_EQ(test, sm_pool_init(&port->base.pool, RX_SLOTS), 0);
	KUNIT_ASSERT_EQ(test, sm_infos_init(&port->infos, 1), 0);
	KUNIT_ASSERT_EQ(test, sm_rxring_init(pair->rings.rx, &pair->rings), 0);

	KUNIT_ASSERT_EQ(test, sock_create_kern(&init_net, AF_INET, SOCK_STREAM, IPPROTO_TCP,
					       &a->sock), 0);
	a->sock->sk->sk_err = ECONNRESET;
	a->conn = sm_conn_alloc(port);
	KUNIT_ASSERT_FALSE(test, IS_ERR(a->conn));
	mutex_lock(&port->base.mutex);
	KUNIT_EXPECT_EQ(test, sm_attach_conn(a->conn, a->sock, 0), 0);
	mutex_unlock(&port->base.mutex);
	return 0;
}

static void attached_teardown(struct kunit *test)
{
	struct attached *a = test->priv;

	mutex_lock(&a->port->base.mutex);
	sm_detach_all(a->port);
	mutex_unlock(&a->port->base.mutex);
	sm_conn_put(a->conn);
	sock_release(a->sock);
	while (!llist_empty(&a->pair->info_queue.conns))
		msleep(20);
	sm_info_queue_destroy(&a->pair->info_queue);
	rcu_barrier();
	sm_rxring_destroy(a->pair->rings.rx);
	sm_infos_destroy(&a->port->infos);
	sm_pool_destroy(&a->port->base.pool);
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
	sm_detach_locked(a->conn);
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
	sm_detach_locked(a->conn);
	KUNIT_EXPECT_PTR_EQ(test, sk->sk_data_ready, &foreign_callback);
	KUNIT_EXPECT_PTR_EQ(test, sk->sk_user_data, (void *)test);
	sk->sk_user_data = NULL;
	release_sock(sk);
}

/* TCP had space, and said so, in the send that took only a part of a slot. */
static void the_rest_of_a_slot_awaits_space_that_there_is(struct kunit *test)
{
	struct attached *a = test->priv;
	struct sock *sk = a->sock->sk;

	lock_sock(sk);
	tcp_sk(sk)->write_seq++;	/* a byte that is under way */
	KUNIT_EXPECT_TRUE(test, sk_stream_is_writeable(sk));
	clear_bit(SOCK_NOSPACE, &a->sock->flags);
	sm_tx_await_space(a->conn);
	KUNIT_EXPECT_FALSE(test, test_bit(SOCK_NOSPACE, &a->sock->flags));
	a->conn->partial.len = 1;
	sm_tx_await_space(a->conn);
	KUNIT_EXPECT_TRUE(test, test_bit(SOCK_NOSPACE, &a->sock->flags));
	/* An ACK of what TCP has will call. */
	KUNIT_EXPECT_FALSE(test, delayed_work_pending(&a->conn->flush_work));
	a->conn->partial.len = 0;
	tcp_sk(sk)->write_seq--;
	release_sock(sk);
}

/* A slot's first part was acknowledged within the send, and TCP lacked memory for the rest. */
static void the_rest_of_a_slot_is_sent_where_no_ack_will_come(struct kunit *test)
{
	struct attached *a = test->priv;
	struct sock *sk = a->sock->sk;

	lock_sock(sk);
	KUNIT_EXPECT_TRUE(test, tcp_rtx_and_write_queues_empty(sk));
	sm_tx_await_space(a->conn);
	KUNIT_EXPECT_FALSE(test, delayed_work_pending(&a->conn->flush_work));
	a->conn->partial.len = 1;
	sm_tx_await_space(a->conn);
	/* The work waits for the socket, if it runs already. */
	KUNIT_EXPECT_TRUE(test, work_busy(&a->conn->flush_work.work));
	a->conn->partial.len = 0;
	release_sock(sk);
	flush_delayed_work(&a->conn->flush_work);
}

/* Payload in a device's memory, as with devmem TCP, has no page that the CPU could read. */
static void unreadable_payload_comes(struct kunit *test, u32 credits)
{
	struct attached *a = test->priv;
	struct sock *sk = a->sock->sk;
	struct sm_rxring *rx = a->pair->rings.rx;
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
	a->conn->credits = credits;
	tcp_sk(sk)->rcv_nxt += 100;
	__skb_queue_tail(&sk->sk_receive_queue, skb);
	KUNIT_EXPECT_FALSE(test, sm_rx_drain(a->conn));
	release_sock(sk);
	KUNIT_EXPECT_EQ(test, rx->fill, 0U);

	mutex_lock(&a->pair->rings.mutex);
	sm_events_serve(a->pair);
	mutex_unlock(&a->pair->rings.mutex);
	KUNIT_EXPECT_TRUE(test, skb_queue_empty(&sk->sk_receive_queue));
	KUNIT_EXPECT_EQ(test, rx->fill, 2U);
	KUNIT_EXPECT_EQ(test, rx->slot[0].flags, (u8)SM_SLOT_ERROR);
	KUNIT_EXPECT_EQ(test, rx->slot[0].err, (u8)ECONNRESET);
	KUNIT_EXPECT_EQ(test, rx->slot[1].flags, (u8)SM_SLOT_CLOSED);
	KUNIT_EXPECT_FALSE(test, a->conn->attached);
}

static void payload_that_cannot_be_read_ends_the_connection(struct kunit *test)
{
	unreadable_payload_comes(test, SM_CREDITS_UNLIMITED);
}

/* The last credit was for the slot that would have had it. */
static void payload_that_cannot_be_read_ends_it_without_credits(struct kunit *test)
{
	unreadable_payload_comes(test, 1);
}

static struct kunit_case attached_cases[] = {
	KUNIT_CASE(detach_leaves_the_callbacks_of_others),
	KUNIT_CASE(detach_leaves_user_data_of_others),
	KUNIT_CASE(the_rest_of_a_slot_awaits_space_that_there_is),
	KUNIT_CASE(the_rest_of_a_slot_is_sent_where_no_ack_will_come),
	KUNIT_CASE(payload_that_cannot_be_read_ends_the_connection),
	KUNIT_CASE(payload_that_cannot_be_read_ends_it_without_credits),
	{}
};

struct kunit_suite sm_attached_suite = {
	.name = "stackmap-attached",
	.init = attached_setup,
	.exit = attached_teardown,
	.test_cases = attached_cases,
};
