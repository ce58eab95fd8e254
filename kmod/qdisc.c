// SPDX-License-Identifier: GPL-2.0
/*
 * The queueing discipline "stackmap".  Being a NIC's root qdisc is what makes the NIC bound.
 *
 * It is a FIFO that holds packets back while a port's transmit sync is under way, and lets them
 * go together at its end.  The qdisc core then dequeues several at a time and the driver sees
 * xmit_more, so that one doorbell serves many packets: on a virtual NIC that is the dearest step.
 *
 * A NIC has other users too, so nobody can hold it for long: the end of any sync lets go what there
 * is, whoever else holds, and so does a full queue, and a timer after one jiffy.  The timer ends
 * all holds: a sync may sleep for as long as its socket is locked, or be preempted, and must not
 * delay packet after packet.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <linux/slab.h>
#include <net/netlink.h>
#include <net/pkt_sched.h>

#include "stackmap.h"

#define SM_HOLD_MAX	256	/* packets held at most */

struct sm_qdisc {
	struct sm_nic *nic;
	bool draining;			/* held enough: let go all there are */
	struct timer_list timer;	/* the hold has lasted long enough */
};

static struct Qdisc_ops sm_qdisc_ops;

static int sm_qdisc_enqueue(struct sk_buff *skb, struct Qdisc *sch, struct sk_buff **to_free)
{
	sm_conn_sent(skb);
	if (unlikely(sch->q.qlen >= READ_ONCE(sch->limit)))
		return qdisc_drop(skb, sch, to_free);
	return qdisc_enqueue_tail(skb, sch);
}

/* Called under the root lock, as enqueue is. */
static struct sk_buff *sm_qdisc_dequeue(struct Qdisc *sch)
{
	struct sm_qdisc *q = qdisc_priv(sch);

	if (!sch->q.qlen) {
		WRITE_ONCE(q->draining, false);
		return NULL;
	}
	if (sch->q.qlen >= SM_HOLD_MAX)
		WRITE_ONCE(q->draining, true);
	if (!READ_ONCE(q->draining) && READ_ONCE(q->nic->held)) {
		/*
		 * Pairs with the barrier in sm_nic_release(): either we see that a hold is over,
		 * or the releaser sees this packet's qlen.
		 */
		smp_mb();
		if (!READ_ONCE(q->draining) && READ_ONCE(q->nic->held)) {
			if (!timer_pending(&q->timer))
				mod_timer(&q->timer, jiffies + 1);
			return NULL;
		}
	}
	return qdisc_dequeue_head(sch);
}

/* Let go all packets that there are, in the context of who asks. */
static void sm_qdisc_drain(struct Qdisc *sch)
{
	struct sm_qdisc *q = qdisc_priv(sch);

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

static void sm_qdisc_timeout(struct timer_list *timer)
{
	struct sm_qdisc *q = from_timer(q, timer, timer);
	struct sm_nic *nic = q->nic;
	struct Qdisc *sch;

	spin_lock(&nic->hold_lock);
	WRITE_ONCE(nic->held, 0);
	nic->hold_epoch++;
	spin_unlock(&nic->hold_lock);

	rcu_read_lock();
	sch = rcu_dereference(nic->sch);
	if (sch)
		sm_qdisc_drain(sch);
	rcu_read_unlock();
}

static const struct nla_policy sm_qdisc_policy[SM_TCA_MAX + 1] = {
	[SM_TCA_UID]	= { .type = NLA_U32 },
	[SM_TCA_GID]	= { .type = NLA_U32 },
};

/*
 * Who else may open ports on the NIC: those whom @opt names, nobody if it names none.  rtnetlink
 * works in the context of who asked, so their user namespace is the one to translate from.
 */
static int sm_qdisc_change(struct Qdisc *sch, struct nlattr *opt, struct netlink_ext_ack *extack)
{
	struct sm_nic *nic = ((struct sm_qdisc *)qdisc_priv(sch))->nic;
	struct nlattr *tb[SM_TCA_MAX + 1];
	kuid_t uid = INVALID_UID;
	kgid_t gid = INVALID_GID;
	int err;

	err = nla_parse_nested(tb, SM_TCA_MAX, opt, sm_qdisc_policy, extack);
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
	nic->uid = uid;
	nic->gid = gid;
	return 0;
}

static int sm_qdisc_init(struct Qdisc *sch, struct nlattr *opt, struct netlink_ext_ack *extack)
{
	struct sm_qdisc *q = qdisc_priv(sch);
	struct sm_nic *nic;
	int err;

	if (sch->parent != TC_H_ROOT) {
		NL_SET_ERR_MSG(extack, "stackmap must be the root qdisc");
		return -EOPNOTSUPP;
	}
	nic = kzalloc(sizeof(*nic), GFP_KERNEL);
	if (!nic)
		return -ENOMEM;
	kref_init(&nic->kref);
	spin_lock_init(&nic->hold_lock);
	RCU_INIT_POINTER(nic->sch, sch);
	nic->uid = INVALID_UID;
	nic->gid = INVALID_GID;
	timer_setup(&q->timer, sm_qdisc_timeout, 0);
	q->nic = nic;			/* destroy follows, where we fail after this too */
	err = opt ? sm_qdisc_change(sch, opt, extack) : 0;
	if (err)
		return err;
	sch->limit = max_t(u32, qdisc_dev(sch)->tx_queue_len, SM_HOLD_MAX);
	/*
	 * Bulk dequeue of a qdisc with this flag is bounded by BQL, which drivers without BQL
	 * keep at nothing; without the flag it is bounded by a number of packets.
	 */
	sch->flags &= ~TCQ_F_ONETXQUEUE;
	return 0;
}

static void sm_qdisc_destroy(struct Qdisc *sch)
{
	struct sm_qdisc *q = qdisc_priv(sch);

	if (!q->nic)
		return;		/* init failed */
	RCU_INIT_POINTER(q->nic->sch, NULL);
	del_timer_sync(&q->timer);
	sm_nic_put(q->nic);
}

static int sm_qdisc_dump(struct Qdisc *sch, struct sk_buff *skb)
{
	const struct sm_nic *nic = ((struct sm_qdisc *)qdisc_priv(sch))->nic;
	struct user_namespace *user_ns = current_user_ns();
	struct nlattr *nest;

	if (!uid_valid(nic->uid) && !gid_valid(nic->gid))
		return skb->len;
	nest = nla_nest_start(skb, TCA_OPTIONS);
	if (!nest)
		return -EMSGSIZE;
	if ((uid_valid(nic->uid) &&
	     nla_put_u32(skb, SM_TCA_UID, from_kuid_munged(user_ns, nic->uid))) ||
	    (gid_valid(nic->gid) &&
	     nla_put_u32(skb, SM_TCA_GID, from_kgid_munged(user_ns, nic->gid)))) {
		nla_nest_cancel(skb, nest);
		return -EMSGSIZE;
	}
	return nla_nest_end(skb, nest);
}

static struct Qdisc_ops sm_qdisc_ops __read_mostly = {
	.id		= "stackmap",
	.priv_size	= sizeof(struct sm_qdisc),
	.enqueue	= sm_qdisc_enqueue,
	.dequeue	= sm_qdisc_dequeue,
	.peek		= qdisc_peek_dequeued,
	.init		= sm_qdisc_init,
	.change		= sm_qdisc_change,
	.reset		= qdisc_reset_queue,
	.destroy	= sm_qdisc_destroy,
	.dump		= sm_qdisc_dump,
	.owner		= THIS_MODULE,
};

/* The bound NIC of that name, with a reference; NULL if it is not there or not bound. */
struct sm_nic *sm_nic_get(struct net *net, const char *name)
{
	struct sm_nic *nic = NULL;
	struct net_device *dev;
	struct Qdisc *sch;

	rtnl_lock();
	dev = __dev_get_by_name(net, name);
	if (dev) {
		sch = rtnl_dereference(dev->qdisc);
		if (sch && sch->ops == &sm_qdisc_ops) {
			nic = ((struct sm_qdisc *)qdisc_priv(sch))->nic;
			kref_get(&nic->kref);
		}
	}
	rtnl_unlock();
	return nic;
}

/*
 * May the caller open ports on a NIC of @net?  Who administers the namespace may, and whom the
 * binding names.  Ports that are open stay open when the binding changes.
 */
bool sm_nic_may_open(const struct sm_nic *nic, const struct net *net)
{
	bool granted;

	if (ns_capable(net->user_ns, CAP_NET_ADMIN))
		return true;
	rtnl_lock();
	granted = (uid_valid(nic->uid) && uid_eq(nic->uid, current_euid())) ||
		  (gid_valid(nic->gid) && in_egroup_p(nic->gid));
	rtnl_unlock();
	return granted;
}

static void sm_nic_free(struct kref *kref)
{
	kfree(container_of(kref, struct sm_nic, kref));
}

void sm_nic_put(struct sm_nic *nic)
{
	kref_put(&nic->kref, sm_nic_free);
}

/* Hold the NIC's packets back until the next release.  Returns what to release the hold with. */
u32 sm_nic_hold(struct sm_nic *nic)
{
	u32 epoch;

	spin_lock_bh(&nic->hold_lock);
	WRITE_ONCE(nic->held, nic->held + 1);
	epoch = nic->hold_epoch;
	spin_unlock_bh(&nic->hold_lock);
	return epoch;
}

void sm_nic_release(struct sm_nic *nic, u32 epoch)
{
	struct Qdisc *sch;

	spin_lock_bh(&nic->hold_lock);
	if (epoch == nic->hold_epoch)
		WRITE_ONCE(nic->held, nic->held - 1);
	spin_unlock_bh(&nic->hold_lock);
	/* Pairs with sm_qdisc_dequeue(): the hold ends before qlen is read. */
	smp_mb();
	rcu_read_lock();
	sch = rcu_dereference(nic->sch);
	if (sch) {
		local_bh_disable();
		sm_qdisc_drain(sch);
		local_bh_enable();	/* transmits here, in our own context */
	}
	rcu_read_unlock();
}

int sm_qdisc_register(void)
{
	return register_qdisc(&sm_qdisc_ops);
}

void sm_qdisc_unregister(void)
{
	unregister_qdisc(&sm_qdisc_ops);
}
