// SPDX-License-Identifier: GPL-2.0
/*
 * The queueing discipline "stackmap".  A NIC is bound while this is its root qdisc.
 *
 * The root sends nothing itself: as mq does, it gives each transmit queue of the NIC a FIFO, which
 * holds a port's packets back while its sync has plugged them, and gives them to the driver
 * together when it unplugs them.  The driver sees xmit_more, so that one doorbell serves many: on a
 * virtual NIC that is the most expensive step.  The qdisc core would ring it for every nine
 * packets.
 *
 * No packet of another user of the NIC is held.  Any packet that is not to be held makes its FIFO
 * drain, together with what is held in it: packets never overtake each other, and the doorbell has
 * to be rung for that packet anyway.  Unplugging drains the FIFOs that the plug held packets in,
 * and no others, where another processor's sync may be gathering.  A full queue drains, and so does
 * a timer after one jiffy.  After two, a plug holds nothing more: a sync may sleep for as long as
 * its socket is locked, or be preempted, and must not delay its own packets one after another.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <linux/slab.h>
#include <net/netlink.h>
#include <net/pkt_sched.h>
#include <net/sock.h>

#include "compat.h"
#include "nic/nic.h"
#include "nic/qdisc.h"
#include "uapi/stackmap.h"

#define SM_PLUG_MAX	256	/* packets held back at most */

/* -- a transmit queue ----------------------------------------------------------------------- */

struct sm_fifo {
	struct sm_nic *nic;		/* NULL until the root has made all FIFOs */
	unsigned int queue;		/* the NIC's, of which it is the FIFO */
	bool draining;			/* hold nothing back: send all that is queued */
	struct timer_list timer;	/* the plug has been in for long enough */
};

/* Which plug holds this packet back, if any?  Caller is an RCU reader. */
static sm_plug_of_t sm_plug_of __read_mostly;

/* Is the plug in the NIC's queues?  Caller is an RCU reader. */
static bool sm_plugged(const struct sm_plug *plug, const struct sm_nic *nic)
{
	return READ_ONCE(plug->plugged) && plug->nic == nic &&
	       time_before(jiffies, READ_ONCE(plug->until));
}

/* The bit of plug->queues that stands for a queue. */
static unsigned int sm_plug_bit(unsigned int queue)
{
	return queue % BITS_PER_LONG;
}

/*
 * @plug is that of the packet's owner, or NULL.  Called under the root lock, as dequeue is.  Caller
 * is an RCU reader.
 */
static int sm_fifo_put(struct sk_buff *skb, struct Qdisc *sch, struct sk_buff **to_free,
		       struct sm_plug *plug)
{
	struct sm_fifo *q = qdisc_priv(sch);
	bool held = false;

	if (unlikely(sch->q.qlen >= READ_ONCE(sch->limit)))
		return qdisc_drop(skb, sch, to_free);
	qdisc_enqueue_tail(skb, sch);
	if (plug && sm_plugged(plug, q->nic) && sch->q.qlen < SM_PLUG_MAX) {
		/*
		 * A full barrier, as that of sm_unplug(): either we see that the plug is gone, or
		 * sm_unplug() sees the bit, and this packet's qlen.
		 */
		test_and_set_bit(sm_plug_bit(q->queue), &plug->queues);
		held = sm_plugged(plug, q->nic);
	}
	if (!held)
		WRITE_ONCE(q->draining, true);
	else if (!timer_pending(&q->timer))
		mod_timer(&q->timer, jiffies + 1);
	return NET_XMIT_SUCCESS;
}

static int sm_fifo_enqueue(struct sk_buff *skb, struct Qdisc *sch, struct sk_buff **to_free)
{
	int err;

	rcu_read_lock();
	err = sm_fifo_put(skb, sch, to_free, sm_plug_of(skb));
	rcu_read_unlock();
	return err;
}

static struct sk_buff *sm_fifo_dequeue(struct Qdisc *sch)
{
	struct sm_fifo *q = qdisc_priv(sch);

	if (!sch->q.qlen) {
		WRITE_ONCE(q->draining, false);
		return NULL;
	}
	return READ_ONCE(q->draining) ? qdisc_dequeue_head(sch) : NULL;
}

/* Let go all packets that there are, in the context of the caller, which is an RCU reader. */
static void sm_fifo_drain(struct Qdisc *sch)
{
	struct sm_fifo *q = qdisc_priv(sch);

	if (!READ_ONCE(sch->q.qlen))
		return;
	WRITE_ONCE(q->draining, true);
	/*
	 * The core sets DEACTIVATED, waits for RCU readers, then waits for a qdisc that is still
	 * scheduled: seeing it clear here, under RCU, makes scheduling safe.
	 */
	if (!test_bit(__QDISC_STATE_DEACTIVATED, &sch->state))
		__netif_schedule(sch);
}

/* Give packets to the driver; returns those that it did not take.  Called with BH off. */
struct sk_buff *sm_start_xmit(struct sk_buff *skb, struct net_device *dev,
			      struct netdev_queue *txq)
{
	bool tapped = dev_nit_active(dev), more = false;
	struct sk_buff *next;
	unsigned int n = 0;

	HARD_TX_LOCK(dev, txq, smp_processor_id());
	/*
	 * BQL ends no run of packets that share a doorbell: some drivers do not ring for a packet
	 * that has more behind it, even where BQL stops the queue with it.
	 */
	while (skb && !(more ? netif_tx_queue_stopped(txq) : netif_xmit_frozen_or_stopped(txq))) {
		next = skb->next;
		skb_mark_not_on_list(skb);
		if (tapped)
			dev_queue_xmit_nit(skb, dev);
		more = next && ++n % SM_XMIT_BATCH;
		if (!dev_xmit_complete(netdev_start_xmit(skb, dev, txq, more))) {
			skb->next = next;
			break;
		}
		skb = next;
	}
	HARD_TX_UNLOCK(dev, txq);
	return skb;
}

/* Leave to the qdisc core what the driver did not take, as dev_requeue_skb().  Under the lock. */
static void sm_fifo_requeue(struct Qdisc *sch, struct sk_buff *skb)
{
	struct sk_buff *next;

	for (; skb; skb = next) {
		next = skb->next;
		__skb_queue_tail(&sch->gso_skb, skb);
		sch->qstats.requeues++;
		qdisc_qstats_backlog_inc(sch, skb);
		sch->q.qlen++;
	}
	__netif_schedule(sch);
}

/*
 * Give the driver all packets that there are, with few doorbells, as __qdisc_run() does with nine.
 * RUNNING is set as qdisc_run_begin() does it for a qdisc with a lock.  Where the qdisc core is at
 * work, or has packets that come before, these are left to it, too.  Caller is an RCU reader with
 * BH off, so the device is not deactivated meanwhile.
 */
static void sm_fifo_send(struct Qdisc *sch)
{
	struct netdev_queue *txq = sch->dev_queue;
	struct sm_fifo *q = qdisc_priv(sch);
	struct net_device *dev = txq->dev;
	struct sk_buff *skb, *last;
	bool again = false;

	if (!READ_ONCE(sch->q.qlen))
		return;
	spin_lock(qdisc_lock(sch));
	if (!skb_queue_empty(&sch->gso_skb) || !skb_queue_empty(&sch->skb_bad_txq) ||
	    test_bit(__QDISC_STATE_DEACTIVATED, &sch->state) ||
	    __test_and_set_bit(__QDISC_STATE2_RUNNING, &sch->state2)) {
		sm_fifo_drain(sch);
		goto unlock;
	}
	skb = qdisc_dequeue_head(sch);
	for (last = skb; last; last = last->next)
		last->next = qdisc_dequeue_head(sch);
	WRITE_ONCE(q->draining, false);
	spin_unlock(qdisc_lock(sch));

	/* A packet that is queued meanwhile is left to us, because the qdisc is running. */
	skb = validate_xmit_skb_list(skb, dev, &again);
	if (likely(!again))
		skb = sm_start_xmit(skb, dev, txq);

	spin_lock(qdisc_lock(sch));
	if (unlikely(skb))
		sm_fifo_requeue(sch, skb);
	__clear_bit(__QDISC_STATE2_RUNNING, &sch->state2);
	if (READ_ONCE(q->draining))
		__netif_schedule(sch);
unlock:
	spin_unlock(qdisc_lock(sch));
}

static void sm_fifo_timeout(struct timer_list *timer)
{
	struct sm_fifo *q = from_timer(q, timer, timer);

	/*
	 * Pairs with the full barrier of sm_fifo_put(): either that sees that the timer is not
	 * pending any more, or we see its packet's qlen.
	 */
	smp_mb();
	rcu_read_lock();
	sm_fifo_drain(qdisc_from_priv(q));
	rcu_read_unlock();
}

static int sm_fifo_init(struct Qdisc *sch, struct nlattr *opt, struct netlink_ext_ack *extack)
{
	struct sm_fifo *q = qdisc_priv(sch);

	timer_setup(&q->timer, sm_fifo_timeout, 0);
	sch->limit = max_t(u32, qdisc_dev(sch)->tx_queue_len, SM_PLUG_MAX);
	return 0;
}

static void sm_fifo_destroy(struct Qdisc *sch)
{
	struct sm_fifo *q = qdisc_priv(sch);

	del_timer_sync(&q->timer);
	if (q->nic)
		sm_nic_put(q->nic);
}

static const struct Qdisc_ops sm_fifo_ops = {
	.id		= "stackmap_queue",
	.priv_size	= sizeof(struct sm_fifo),
	.enqueue	= sm_fifo_enqueue,
	.dequeue	= sm_fifo_dequeue,
	.peek		= qdisc_peek_dequeued,
	.init		= sm_fifo_init,
	.reset		= qdisc_reset_queue,
	.destroy	= sm_fifo_destroy,
	.owner		= THIS_MODULE,
};

/* -- the binding ---------------------------------------------------------------------------- */

struct sm_root {
	struct sm_nic *nic;
	struct Qdisc **fifo;	/* made, but not attached yet */
	kuid_t uid;		/* user and group that may open ports; guarded by RTNL */
	kgid_t gid;
};

static struct Qdisc_ops sm_root_ops;
static rx_handler_func_t *sm_receive __read_mostly;

static const struct nla_policy sm_root_policy[SM_TCA_MAX + 1] = {
	[SM_TCA_UID]	= { .type = NLA_U32 },
	[SM_TCA_GID]	= { .type = NLA_U32 },
};

/*
 * Let the user and the group that @opt names open ports on the NIC, and no others.  rtnetlink
 * works in the caller's context, so ids are translated from the caller's user namespace.
 */
static int sm_root_change(struct Qdisc *sch, struct nlattr *opt, struct netlink_ext_ack *extack)
{
	struct sm_root *root = qdisc_priv(sch);
	struct nlattr *tb[SM_TCA_MAX + 1];
	kuid_t uid = INVALID_UID;
	kgid_t gid = INVALID_GID;
	int err;

	ASSERT_RTNL();
	err = nla_parse_nested(tb, SM_TCA_MAX, opt, sm_root_policy, extack);
	if (err)
		return err;
	if (tb[SM_TCA_UID]) {
		uid = make_kuid(current_user_ns(), nla_get_u32(tb[SM_TCA_UID]));
		if (!uid_valid(uid)) {
			NL_SET_ERR_MSG_ATTR(extack, tb[SM_TCA_UID],
					    "this user namespace has no such user");
			return -EINVAL;
		}
	}
	if (tb[SM_TCA_GID]) {
		gid = make_kgid(current_user_ns(), nla_get_u32(tb[SM_TCA_GID]));
		if (!gid_valid(gid)) {
			NL_SET_ERR_MSG_ATTR(extack, tb[SM_TCA_GID],
					    "this user namespace has no such group");
			return -EINVAL;
		}
	}
	root->uid = uid;
	root->gid = gid;
	return 0;
}

static int sm_root_init(struct Qdisc *sch, struct nlattr *opt, struct netlink_ext_ack *extack)
{
	struct net_device *dev = qdisc_dev(sch);
	struct sm_root *root = qdisc_priv(sch);
	struct Qdisc *fifo;
	struct sm_fifo *q;
	unsigned int i;
	int err;

	/* The default qdisc (net.core.default_qdisc) has no handle, and is not attached. */
	if (sch->parent != TC_H_ROOT || !sch->handle) {
		NL_SET_ERR_MSG(extack, "stackmap must be the root qdisc");
		return -EOPNOTSUPP;
	}
	root->uid = INVALID_UID;
	root->gid = INVALID_GID;
	err = opt ? sm_root_change(sch, opt, extack) : 0;
	if (err)
		return err;
	/* sm_root_destroy() follows where we fail, too. */
	root->nic = sm_nic_of(dev);
	root->fifo = kcalloc(dev->num_tx_queues, sizeof(*root->fifo), GFP_KERNEL);
	if (!root->nic || !root->fifo)
		return -ENOMEM;
	for (i = 0; i < dev->num_tx_queues; i++) {
		fifo = qdisc_create_dflt(netdev_get_tx_queue(dev, i), &sm_fifo_ops,
					 TC_H_MAKE(sch->handle, i + 1), extack);
		if (!fifo)
			return -ENOMEM;
		/*
		 * Without TCQ_F_ONETXQUEUE: bulk dequeue of a qdisc with that flag is bounded by
		 * BQL, which drivers without BQL keep at nothing; else by a number of packets.
		 */
		fifo->flags |= TCQ_F_NOPARENT;
		sm_nic_get(root->nic);
		q = qdisc_priv(fifo);
		q->nic = root->nic;
		q->queue = i;
		root->fifo[i] = fifo;
	}
	sch->flags |= TCQ_F_MQROOT;
	return 0;
}

/*
 * Have what the NIC receives come to us first.  A device has one receive handler, and bridges,
 * bonds, macvlan and ipvlan need it: ours is there only while a port has had sockets, and where
 * another one is there already, ports do without.
 */
static void sm_receive_begin(struct net_device *dev)
{
	netdev_rx_handler_register(dev, sm_receive, NULL);
}

/* Nobody is in the handler any more when this returns. */
static void sm_receive_end(struct net_device *dev)
{
	if (rtnl_dereference(dev->rx_handler) == sm_receive)
		netdev_rx_handler_unregister(dev);
}

/* The NIC is down, and its former root is gone. */
static void sm_root_attach(struct Qdisc *sch)
{
	struct net_device *dev = qdisc_dev(sch);
	struct sm_root *root = qdisc_priv(sch);
	unsigned int i;

	ASSERT_RTNL();
	for (i = 0; i < dev->num_tx_queues; i++) {
		qdisc_put(dev_graft_qdisc(root->fifo[i]->dev_queue, root->fifo[i]));
		if (i < dev->real_num_tx_queues)
			qdisc_hash_add(root->fifo[i], false);
	}
	kfree(root->fifo);
	root->fifo = NULL;
	rcu_assign_pointer(root->nic->root, sch);
	if (root->nic->users)
		sm_receive_begin(dev);
}

static void sm_root_destroy(struct Qdisc *sch)
{
	struct sm_root *root = qdisc_priv(sch);
	unsigned int i;

	ASSERT_RTNL();
	for (i = 0; root->fifo && i < qdisc_dev(sch)->num_tx_queues; i++)
		qdisc_put(root->fifo[i]);
	kfree(root->fifo);
	if (!root->nic)
		return;		/* init failed */
	if (rcu_access_pointer(root->nic->root) == sch) {
		strscpy(root->nic->name, qdisc_dev(sch)->name, sizeof(root->nic->name));
		RCU_INIT_POINTER(root->nic->root, NULL);
		sm_receive_end(qdisc_dev(sch));
	}
	sm_nic_put(root->nic);
}

/* The root's statistics are the sum of its FIFOs', as with mq. */
static void sm_root_sum(struct Qdisc *sch)
{
	struct net_device *dev = qdisc_dev(sch);
	struct Qdisc *fifo;
	unsigned int i;

	sch->q.qlen = 0;
	gnet_stats_basic_sync_init(&sch->bstats);
	memset(&sch->qstats, 0, sizeof(sch->qstats));
	for (i = 0; i < dev->num_tx_queues; i++) {
		fifo = rtnl_dereference(netdev_get_tx_queue(dev, i)->qdisc_sleeping);
		spin_lock_bh(qdisc_lock(fifo));
		gnet_stats_add_basic(&sch->bstats, fifo->cpu_bstats, &fifo->bstats, false);
		gnet_stats_add_queue(&sch->qstats, fifo->cpu_qstats, &fifo->qstats);
		sch->q.qlen += qdisc_qlen(fifo);
		spin_unlock_bh(qdisc_lock(fifo));
	}
}

/*
 * A dump translates users and groups to the namespace of its reader; a notification, which goes
 * to no socket yet, to that of the NIC.
 */
static int sm_root_dump(struct Qdisc *sch, struct sk_buff *skb)
{
	struct user_namespace *user_ns =
		skb->sk ? sk_user_ns(skb->sk) : dev_net(qdisc_dev(sch))->user_ns;
	const struct sm_root *root = qdisc_priv(sch);
	struct nlattr *nest;

	sm_root_sum(sch);
	if (!uid_valid(root->uid) && !gid_valid(root->gid))
		return skb->len;
	nest = nla_nest_start(skb, TCA_OPTIONS);
	if (!nest)
		return -EMSGSIZE;
	if ((uid_valid(root->uid) &&
	     nla_put_u32(skb, SM_TCA_UID, from_kuid_munged(user_ns, root->uid))) ||
	    (gid_valid(root->gid) &&
	     nla_put_u32(skb, SM_TCA_GID, from_kgid_munged(user_ns, root->gid)))) {
		nla_nest_cancel(skb, nest);
		return -EMSGSIZE;
	}
	return nla_nest_end(skb, nest);
}

/* Without class operations: the FIFO of a single transmit queue cannot be replaced. */
static struct Qdisc_ops sm_root_ops __read_mostly = {
	.id		= "stackmap",
	.priv_size	= sizeof(struct sm_root),
	.init		= sm_root_init,
	.change		= sm_root_change,
	.attach		= sm_root_attach,
	.change_real_num_tx = mq_change_real_num_tx,
	.destroy	= sm_root_destroy,
	.dump		= sm_root_dump,
	.owner		= THIS_MODULE,
};

/* The bound NIC of that name, with a reference; NULL if it is not there or not bound. */
struct sm_nic *sm_nic_find(struct net *net, const char *name)
{
	struct sm_nic *nic = NULL;
	struct net_device *dev;
	struct Qdisc *sch;

	rtnl_lock();
	dev = __dev_get_by_name(net, name);
	if (dev) {
		sch = rtnl_dereference(dev->qdisc);
		if (sch && sch->ops == &sm_root_ops) {
			nic = ((struct sm_root *)qdisc_priv(sch))->nic;
			sm_nic_get(nic);
		}
	}
	rtnl_unlock();
	return nic;
}

/* The NIC's name; if it is not bound, its name when it was bound last, and @ifindex is 0. */
void sm_nic_name(struct sm_nic *nic, char name[IFNAMSIZ], int *ifindex)
{
	struct Qdisc *sch;

	rtnl_lock();
	sch = rtnl_dereference(nic->root);
	strscpy(name, sch ? qdisc_dev(sch)->name : nic->name, IFNAMSIZ);
	*ifindex = sch ? nic->ifindex : 0;
	rtnl_unlock();
}

/*
 * May the caller open ports on a NIC of @net?  Administrators of the namespace may, and the user
 * and the group that the binding names.  Open ports stay open when the binding changes.
 */
bool sm_nic_may_open(const struct sm_nic *nic, const struct net *net)
{
	const struct sm_root *root;
	bool granted = false;
	struct Qdisc *sch;

	if (ns_capable(net->user_ns, CAP_NET_ADMIN))
		return true;
	rtnl_lock();
	sch = rtnl_dereference(nic->root);
	if (sch) {
		root = qdisc_priv(sch);
		granted = (uid_valid(root->uid) && uid_eq(root->uid, current_euid())) ||
			  (gid_valid(root->gid) && in_egroup_p(root->gid));
	}
	rtnl_unlock();
	return granted;
}

/* A port of the NIC, which may not be bound any more, has got its first socket. */
void sm_nic_use(struct sm_nic *nic)
{
	struct Qdisc *sch;

	rtnl_lock();
	sch = rtnl_dereference(nic->root);
	if (!nic->users++ && sch)
		sm_receive_begin(qdisc_dev(sch));
	rtnl_unlock();
}

/* That port has closed. */
void sm_nic_unuse(struct sm_nic *nic)
{
	struct Qdisc *sch;

	rtnl_lock();
	sch = rtnl_dereference(nic->root);
	if (!--nic->users && sch)
		sm_receive_end(qdisc_dev(sch));
	rtnl_unlock();
}

/* Does anything look at packets before they are queued?  Caller is an RCU reader. */
static bool sm_egress_in_use(const struct net_device *dev)
{
#ifdef CONFIG_NETFILTER_EGRESS
	if (rcu_access_pointer(dev->nf_hooks_egress))
		return true;
#endif
#ifdef CONFIG_CGROUP_NET_PRIO
	if (rcu_access_pointer(dev->priomap))
		return true;
#endif
	return sm_tc_egress(dev);
}

/* The queue that the device's driver, or XPS, chooses. */
static struct netdev_queue *sm_pick_queue(struct net_device *dev, struct sk_buff *skb)
{
	const struct net_device_ops *ops = dev->netdev_ops;
	u16 index = 0;

	if (dev->real_num_tx_queues != 1) {
#ifdef CONFIG_XPS
		skb->sender_cpu = raw_smp_processor_id() + 1;
#endif
		index = ops->ndo_select_queue ? ops->ndo_select_queue(dev, skb, NULL) :
						netdev_pick_tx(dev, skb, NULL);
		index = netdev_cap_txqueue(dev, index);
	}
	skb_set_queue_mapping(skb, index);
	return netdev_get_tx_queue(dev, index);
}

/*
 * Queue a packet, which has its Ethernet header and is not to be segmented, as dev_queue_xmit()
 * does.  One that its owner's plug holds back is only put into the queue: nothing is sent before
 * the plug is pulled.  Returns what dev_queue_xmit() would.  Caller is an RCU reader.
 */
int sm_nic_xmit(struct sk_buff *skb, struct sm_plug *plug)
{
	struct net_device *dev = skb->dev;
	struct sk_buff *to_free = NULL;
	struct Qdisc *sch;
	int err;

	if (!sm_plugged(plug, plug->nic) || sm_egress_in_use(dev) ||
	    skb_shinfo(skb)->tx_flags & SKBTX_SCHED_TSTAMP)
		return dev_queue_xmit(skb);
	rcu_read_lock_bh();
	sch = rcu_dereference_bh(sm_pick_queue(dev, skb)->qdisc);
	if (unlikely(sch->ops != &sm_fifo_ops)) {
		rcu_read_unlock_bh();
		return dev_queue_xmit(skb);
	}
	skb_reset_mac_header(skb);
	if (dev->priv_flags & IFF_XMIT_DST_RELEASE)
		skb_dst_drop(skb);
	else
		skb_dst_force(skb);
	qdisc_skb_cb(skb)->pkt_len = skb->len;
	spin_lock(qdisc_lock(sch));
	if (unlikely(test_bit(__QDISC_STATE_DEACTIVATED, &sch->state))) {
		__qdisc_drop(skb, &to_free);
		err = NET_XMIT_DROP;
	} else {
		err = sm_fifo_put(skb, sch, &to_free, plug) & NET_XMIT_MASK;
		if (READ_ONCE(((struct sm_fifo *)qdisc_priv(sch))->draining))
			__netif_schedule(sch);		/* the plug was just pulled */
	}
	spin_unlock(qdisc_lock(sch));
	kfree_skb_list(to_free);
	rcu_read_unlock_bh();
	return err;
}

/* Hold the packets of the plug's owner back until sm_unplug(). */
void sm_plug(struct sm_plug *plug)
{
	WRITE_ONCE(plug->until, jiffies + 2);
	WRITE_ONCE(plug->plugged, true);
}

void sm_unplug(struct sm_plug *plug)
{
	struct net_device *dev;
	unsigned long queues;
	struct Qdisc *sch;
	unsigned int i;

	WRITE_ONCE(plug->plugged, false);
	/* A full barrier, as that of sm_fifo_put(): the plug is gone before qlen is read. */
	queues = xchg(&plug->queues, 0);
	rcu_read_lock();
	sch = rcu_dereference(plug->nic->root);
	if (sch) {
		dev = qdisc_dev(sch);
		local_bh_disable();
		for (i = 0; i < dev->num_tx_queues; i++) {
			if (!test_bit(sm_plug_bit(i), &queues))
				continue;
			sch = rcu_dereference(netdev_get_tx_queue(dev, i)->qdisc);
			if (sch->ops == &sm_fifo_ops)
				sm_fifo_send(sch);
		}
		local_bh_enable();
	}
	rcu_read_unlock();
}

/* @receive is the receive handler of bound NICs, with no data of its own. */
int sm_qdisc_register(sm_plug_of_t plug_of, rx_handler_func_t *receive)
{
	sm_plug_of = plug_of;
	sm_receive = receive;
	return register_qdisc(&sm_root_ops);
}

void sm_qdisc_unregister(void)
{
	unregister_qdisc(&sm_root_ops);
}
