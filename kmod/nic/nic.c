// SPDX-License-Identifier: GPL-2.0
/* NICs, by their namespace and index. */
#include <linux/mutex.h>
#include <linux/slab.h>
#include <net/net_namespace.h>

#include "nic/nic.h"

static LIST_HEAD(sm_nics);		/* all that are bound, or that a port was opened on */
static DEFINE_MUTEX(sm_nics_lock);	/* guards sm_nics */

/*
 * The record of this NIC, with a reference; NULL if there is no memory.  Ports may have it from an
 * earlier binding: a NIC that comes back with its index to its namespace is theirs again.
 */
struct sm_nic *sm_nic_of(const struct net_device *dev)
{
	u64 cookie = dev_net(dev)->net_cookie;
	struct sm_nic *nic;

	mutex_lock(&sm_nics_lock);
	list_for_each_entry(nic, &sm_nics, list)
		if (nic->ifindex == dev->ifindex && nic->net_cookie == cookie) {
			kref_get(&nic->kref);	/* not 0: the last one goes under the lock */
			goto out;
		}
	nic = kzalloc(sizeof(*nic), GFP_KERNEL);
	if (nic) {
		kref_init(&nic->kref);
		nic->ifindex = dev->ifindex;
		nic->net_cookie = cookie;
		list_add(&nic->list, &sm_nics);
	}
out:
	mutex_unlock(&sm_nics_lock);
	return nic;
}

static void sm_nic_free(struct kref *kref)
{
	struct sm_nic *nic = container_of(kref, struct sm_nic, kref);

	list_del(&nic->list);
	mutex_unlock(&sm_nics_lock);
	kfree(nic);
}

void sm_nic_put(struct sm_nic *nic)
{
	kref_put_mutex(&nic->kref, sm_nic_free, &sm_nics_lock);
}
