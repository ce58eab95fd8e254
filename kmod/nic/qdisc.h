/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_QDISC_H
#define _SM_QDISC_H

#include <net/sch_generic.h>

#include "nic/nic.h"

#define SM_XMIT_BATCH	64	/* packets that a doorbell serves: the first must not wait long */

struct sk_buff;

/* While plugged, the packets of its owner wait in the NIC's queues. */
struct sm_plug {
	struct sm_nic *nic;
	bool plugged;
	unsigned long until;	/* when it holds nothing more, in jiffies */
	unsigned long queues;	/* a bit for each of the NIC's that it held packets in; atomic */
};

/*
 * The plug of the owner of a packet that goes out, or NULL.  Called with BH off, as an RCU reader.
 */
typedef struct sm_plug *(*sm_plug_of_t)(const struct sk_buff *skb);

int sm_qdisc_register(sm_plug_of_t plug_of, rx_handler_func_t *receive);
void sm_qdisc_unregister(void);
struct sm_nic *sm_nic_find(struct net *net, const char *name);
bool sm_nic_may_open(const struct sm_nic *nic, const struct net *net);
void sm_nic_use(struct sm_nic *nic);
void sm_nic_unuse(struct sm_nic *nic);
void sm_nic_name(struct sm_nic *nic, char name[IFNAMSIZ], int *ifindex);
struct sk_buff *sm_start_xmit(struct sk_buff *skb, struct net_device *dev,
			      struct netdev_queue *txq);
int sm_nic_xmit(struct sk_buff *skb, struct sm_plug *plug);
void sm_plug(struct sm_plug *plug);
void sm_unplug(struct sm_plug *plug);

/* The NIC's device, or NULL while it is not bound.  Caller is an RCU reader. */
static inline struct net_device *sm_nic_dev(const struct sm_nic *nic)
{
	const struct Qdisc *sch = rcu_dereference(nic->root);

	return sch ? qdisc_dev(sch) : NULL;
}

#endif /* _SM_QDISC_H */
