// SPDX-License-Identifier: GPL-2.0
/*
 * Giving packets to a driver that BQL stops, and that then rings no doorbell if more is to come.
 *
 * Some drivers are like that (forcedeth); none that an emulator has.
 */
#include <kunit/test.h>
#include <linux/etherdevice.h>
#include <linux/netdevice.h>

#include "nic/qdisc.h"
#include "selftest/suites.h"

struct doorbell_nic {
	unsigned int sent;
	unsigned int waiting;	/* sent, and not announced to the NIC */
};

static netdev_tx_t doorbell_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct netdev_queue *txq = netdev_get_tx_queue(dev, 0);
	struct doorbell_nic *nic = netdev_priv(dev);

	netdev_tx_sent_queue(txq, skb->len);
	nic->sent++;
	nic->waiting++;
	if (!netdev_xmit_more() || netif_tx_queue_stopped(txq))
		nic->waiting = 0;
	consume_skb(skb);
	return NETDEV_TX_OK;
}

static const struct net_device_ops doorbell_ops = {
	.ndo_start_xmit	= doorbell_xmit,
};

/* A NIC whose queue is new, so that BQL lets only one packet be under way; it is not registered. */
static struct net_device *doorbell_nic(struct kunit *test)
{
	struct net_device *dev = alloc_etherdev(sizeof(struct doorbell_nic));

	KUNIT_ASSERT_NOT_NULL(test, dev);
	dev->netdev_ops = &doorbell_ops;
	return dev;
}

static struct sk_buff *doorbell_packets(struct kunit *test, struct net_device *dev, int n)
{
	struct sk_buff *skb, *list = NULL;

	while (n--) {
		skb = alloc_skb(ETH_ZLEN, GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, skb);
		skb_put_zero(skb, ETH_ZLEN);
		skb_reset_mac_header(skb);
		skb->dev = dev;
		skb->next = list;
		list = skb;
	}
	return list;
}

static struct sk_buff *doorbell_send(struct net_device *dev, struct sk_buff *list)
{
	local_bh_disable();
	list = sm_start_xmit(list, dev, netdev_get_tx_queue(dev, 0));
	local_bh_enable();
	return list;
}

/* No packet is left in a NIC that has not been told of it. */
static void doorbell_rings_for_all(struct kunit *test)
{
	struct net_device *dev = doorbell_nic(test);
	const struct doorbell_nic *nic = netdev_priv(dev);
	struct sk_buff *left = doorbell_send(dev, doorbell_packets(test, dev, 3));

	KUNIT_EXPECT_EQ(test, nic->sent, 3U);
	KUNIT_EXPECT_EQ(test, nic->waiting, 0U);
	KUNIT_EXPECT_NULL(test, left);
	kfree_skb_list(left);
	free_netdev(dev);
}

/* A queue that BQL has stopped takes nothing more after a doorbell. */
static void doorbell_ends_a_run(struct kunit *test)
{
	struct net_device *dev = doorbell_nic(test);
	const struct doorbell_nic *nic = netdev_priv(dev);
	struct sk_buff *left = doorbell_send(dev, doorbell_packets(test, dev, SM_XMIT_BATCH + 3));

	KUNIT_EXPECT_EQ(test, nic->sent, SM_XMIT_BATCH);
	KUNIT_EXPECT_EQ(test, nic->waiting, 0U);
	KUNIT_EXPECT_NOT_NULL(test, left);
	kfree_skb_list(left);
	left = doorbell_send(dev, doorbell_packets(test, dev, 3));
	KUNIT_EXPECT_EQ(test, nic->sent, SM_XMIT_BATCH);
	KUNIT_EXPECT_NOT_NULL(test, left);
	kfree_skb_list(left);
	free_netdev(dev);
}

static struct kunit_case doorbell_cases[] = {
	KUNIT_CASE(doorbell_rings_for_all),
	KUNIT_CASE(doorbell_ends_a_run),
	{}
};

struct kunit_suite sm_doorbell_suite = {
	.name = "stackmap-doorbells",
	.test_cases = doorbell_cases,
};
