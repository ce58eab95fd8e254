/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_NIC_H
#define _SM_NIC_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/netdevice.h>

struct Qdisc;

/* One NIC that is bound, or that a port was opened on; held by its qdiscs and by each such port. */
struct sm_nic {
	struct kref kref;
	struct list_head list;		/* in sm_nics */
	u64 net_cookie;			/* the namespace the NIC is bound in, */
	int ifindex;			/* and its index there: these two are its identity */
	struct Qdisc __rcu *root;	/* NULL while it is not bound; written under RTNL */
	unsigned int users;		/* open ports with sockets; guarded by RTNL */
	char name[IFNAMSIZ];		/* when it was bound last; guarded by RTNL */
};

struct sm_nic *sm_nic_of(const struct net_device *dev);
void sm_nic_put(struct sm_nic *nic);

static inline void sm_nic_get(struct sm_nic *nic)
{
	kref_get(&nic->kref);
}

#endif /* _SM_NIC_H */
