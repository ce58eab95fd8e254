// SPDX-License-Identifier: GPL-2.0
/*
 * Syncing a range of rings, and waiting for it.
 *
 * A sync sends, polls the NIC, receives and waits, as far as it is asked to; poll() sends and
 * receives and then says what is ready, as netmap's does.
 */
#include <linux/hrtimer.h>
#include <linux/sched/clock.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <net/busy_poll.h>

#include "core/port.h"
#include "core/rings.h"

#define SM_MAX_SPIN_US	1000

/* Wake the application if it sleeps.  Any context. */
void sm_rings_wake(struct sm_rings *rings)
{
	smp_mb();	/* the news before the read of armed; pairs with sm_rings_arm() */
	if (READ_ONCE(rings->armed)) {
		WRITE_ONCE(rings->armed, 0);
		wake_up_interruptible_poll(rings->wait, EPOLLIN | EPOLLRDNORM | EPOLLOUT);
	}
}

/* Ask to be woken.  Look at the rings after this, not before. */
static void sm_rings_arm(struct sm_rings *rings)
{
	WRITE_ONCE(rings->armed, 1);
	smp_mb();	/* armed before the look; pairs with sm_rings_wake() */
}

/* Has the application slots that it has not seen?  Caller holds rings->mutex. */
static bool sm_rings_readable(const struct sm_rings *rings)
{
	u32 i;

	lockdep_assert_held(&rings->mutex);
	for (i = 0; i < rings->nrx; i++)
		if (READ_ONCE(rings->rx[i].ring->cur) != rings->rx[i].published)
			return true;
	return false;
}

/* Has the application transmit slots that it may fill?  Caller holds rings->mutex. */
static bool sm_rings_writable(const struct sm_rings *rings)
{
	u32 i;

	lockdep_assert_held(&rings->mutex);
	for (i = 0; i < rings->ntx; i++) {
		const struct sm_txring *tx = &rings->tx[i];

		if (READ_ONCE(tx->ring->cur) != sm_prev(tx->done, tx->n))
			return true;
	}
	return false;
}

/* Can a transmit ring that stopped for lack of buffers go on? */
static bool sm_rings_unstalled(const struct sm_rings *rings)
{
	u32 i;

	for (i = 0; i < rings->ntx; i++)
		if (READ_ONCE(rings->tx[i].stalled))
			return READ_ONCE(rings->port->pool.nfree);
	return false;
}

/* Are there slots to publish, or is there anything that would make some? */
static bool sm_rings_ready(struct sm_rings *rings)
{
	u32 i;

	for (i = 0; i < rings->nrx; i++)
		if (READ_ONCE(rings->rx[i].fill) != READ_ONCE(rings->rx[i].published))
			return true;
	return rings->port->ops->ready(rings);
}

/* Is there anything to look at the rings again for? */
static bool sm_rings_has_news(struct sm_rings *rings)
{
	return sm_rings_ready(rings) || sm_rings_unstalled(rings);
}

/* -- the steps of a sync; the caller holds rings->mutex ------------------------------------- */

static int sm_rings_transmit(struct sm_rings *rings)
{
	int err = 0;
	u32 i;

	lockdep_assert_held(&rings->mutex);
	for (i = 0; i < rings->ntx && !err; i++)
		err = rings->port->ops->txsync(&rings->tx[i]);
	return err;
}

static int sm_rings_take_back(struct sm_rings *rings)
{
	int err = 0;
	u32 i;

	lockdep_assert_held(&rings->mutex);
	for (i = 0; i < rings->nrx && !err; i++)
		err = sm_rxring_take_back(&rings->rx[i]);
	return err;
}

static void sm_rings_publish(struct sm_rings *rings)
{
	u32 i;

	lockdep_assert_held(&rings->mutex);
	rings->port->ops->rxsync(rings);
	for (i = 0; i < rings->nrx; i++)
		sm_rxring_publish(&rings->rx[i]);
}

/* -- polling and waiting -------------------------------------------------------------------- */

/*
 * Re-arm for waiters that stay in the queue without another poll(), as io_uring's multishot
 * requests do; they sync in between.  Caller holds rings->mutex.
 */
static void sm_rings_rearm(struct sm_rings *rings)
{
	lockdep_assert_held(&rings->mutex);
	/* No barrier: a waiter that joins the queue meanwhile polls after that. */
	if (!waitqueue_active(rings->wait))
		return;
	sm_rings_arm(rings);
	if (sm_rings_has_news(rings))
		sm_rings_wake(rings);
}

/*
 * Remember a NAPI context that packets come from, so that the range's syncs poll it.  The oldest
 * one gives way.  Any context; two at a time may at worst note one twice.
 */
void sm_rings_note_napi(struct sm_rings *rings, unsigned int id)
{
#ifdef CONFIG_NET_RX_BUSY_POLL
	u32 i;

	if (id < MIN_NAPI_ID || id == READ_ONCE(rings->napi[0]))
		return;
	for (i = 1; i < SM_RINGS_NAPIS; i++)
		if (READ_ONCE(rings->napi[i]) == id)
			return;
	for (i = SM_RINGS_NAPIS - 1; i; i--)
		WRITE_ONCE(rings->napi[i], READ_ONCE(rings->napi[i - 1]));
	WRITE_ONCE(rings->napi[0], id);
#endif
}

struct sm_spin {
	struct sm_rings *rings;
	u64 until;		/* local_clock() */
	u32 rounds;		/* the clock may stand still where nothing else runs */
	bool alone;		/* stay with this NAPI context, there is no other */
	bool found;		/* it exists */
};

static bool sm_spin_over(struct sm_spin *spin)
{
	return sm_rings_ready(spin->rings) || !spin->rounds-- || local_clock() >= spin->until;
}

/* Called after each poll of a NAPI context, or when another CPU has it. */
static bool sm_spin_end(void *arg, unsigned long start)
{
	struct sm_spin *spin = arg;

	spin->found = true;
	return !spin->alone || sm_spin_over(spin);
}

/* How many NAPI contexts the range's packets come from. */
static u32 sm_rings_napis(const struct sm_rings *rings)
{
	u32 i, n = 0;

	for (i = 0; i < SM_RINGS_NAPIS; i++)
		n += READ_ONCE(rings->napi[i]) != 0;
	return n;
}

/* Poll each of the range's NAPI contexts, until something came.  Caller holds rings->mutex. */
static void sm_rings_poll_napis(struct sm_rings *rings, struct sm_spin *spin)
{
	u32 i, k;

	lockdep_assert_held(&rings->mutex);
	for (k = 0; k < SM_RINGS_NAPIS; k++) {
		unsigned int id;

		i = (rings->napi_turn + k) % SM_RINGS_NAPIS;
		id = READ_ONCE(rings->napi[i]);
		if (!id)
			continue;
		spin->found = false;
		napi_busy_loop(id, sm_spin_end, spin, false, rings->port->poll_budget);
		if (!spin->found)
			cmpxchg(&rings->napi[i], id, 0);	/* the driver has given it up */
		if (sm_rings_ready(rings)) {
			rings->napi_turn = i + 1;	/* the others come first next time */
			return;
		}
	}
}

/*
 * Poll the NIC in our own context: TCP input fills the ring on the way.  A single NAPI context, as
 * where each range has a queue of the NIC, is kept until the budget is over; several take turns.
 * Caller holds rings->mutex.
 */
static void sm_rings_busy_poll(struct sm_rings *rings, u32 spin_us)
{
	struct sm_spin spin = {
		.rings = rings,
		.until = local_clock() + (u64)spin_us * NSEC_PER_USEC,
		.rounds = spin_us * 10,
	};
	u32 n = sm_rings_napis(rings);

	lockdep_assert_held(&rings->mutex);
	spin.alone = n == 1;
	if (!n)
		return;
	do {
		sm_rings_poll_napis(rings, &spin);
		cond_resched();
	} while (!spin.alone && !sm_spin_over(&spin));
}

/*
 * Sleep until a ring shows something new, a stopped transmit ring has gone on, or the deadline.
 * Caller holds rings->mutex, which is released meanwhile.
 */
static int sm_rings_wait(struct sm_rings *rings, s64 deadline_ns)
{
	ktime_t deadline = ns_to_ktime(deadline_ns);
	bool expired = false;
	DEFINE_WAIT(wait);
	int err = 0;

	lockdep_assert_held(&rings->mutex);
	while (!sm_rings_readable(rings) && !expired && !err) {
		mutex_unlock(&rings->mutex);
		prepare_to_wait(rings->wait, &wait, TASK_INTERRUPTIBLE);
		sm_rings_arm(rings);
		if (signal_pending(current))
			err = -ERESTARTNOHAND;	/* the deadline is absolute */
		else if (!sm_rings_has_news(rings) && READ_ONCE(rings->port->open))
			expired = !schedule_hrtimeout(deadline_ns < 0 ? NULL : &deadline,
						      HRTIMER_MODE_ABS);
		else
			expired = deadline_ns >= 0 && ktime_get_ns() >= deadline_ns;
		finish_wait(rings->wait, &wait);
		mutex_lock(&rings->mutex);
		if (!READ_ONCE(rings->port->open))
			return -ENXIO;
		sm_rings_publish(rings);
		if (sm_rings_unstalled(rings))
			return sm_rings_transmit(rings);
	}
	return err;
}

/* A sync, as far as @req asks for one.  Caller holds rings->mutex. */
int sm_rings_sync(struct sm_rings *rings, const struct sm_sync *req)
{
	int err = 0;

	lockdep_assert_held(&rings->mutex);
	WRITE_ONCE(rings->cpu, raw_smp_processor_id());	/* a hint */
	if (req->flags & SM_SYNC_TX)
		err = sm_rings_transmit(rings);
	if (!err && req->flags & SM_SYNC_RX)
		err = sm_rings_take_back(rings);
	if (err)
		return err;
	if (req->flags & SM_SYNC_POLL)
		sm_rings_busy_poll(rings, req->spin_us);
	if (req->flags & SM_SYNC_RX)
		sm_rings_publish(rings);
	sm_count(rings, SM_SYNCS, 1);
	return req->flags & SM_SYNC_WAIT ? sm_rings_wait(rings, req->deadline_ns) : 0;
}

static int sm_sync_check(const struct sm_sync *req)
{
	if (req->flags & ~(SM_SYNC_TX | SM_SYNC_RX | SM_SYNC_POLL | SM_SYNC_WAIT) ||
	    req->spin_us > SM_MAX_SPIN_US ||
	    (req->spin_us && !(req->flags & SM_SYNC_POLL)) ||
	    (req->deadline_ns && !(req->flags & SM_SYNC_WAIT)) ||
	    (req->flags & SM_SYNC_WAIT && !(req->flags & SM_SYNC_RX)))
		return -EINVAL;
	return 0;
}

/* The commands that concern one range. */
long sm_rings_ioctl(struct sm_rings *rings, unsigned int cmd, void __user *arg)
{
	struct sm_sync req = {};
	long err = 0;

	if (cmd == SMIOC_SYNC) {
		if (copy_from_user(&req, arg, sizeof(req)))
			return -EFAULT;
		err = sm_sync_check(&req);
		if (err)
			return err;
	}
	mutex_lock(&rings->mutex);
	if (!READ_ONCE(rings->port->open)) {
		err = -ENXIO;
		goto out;
	}
	switch (cmd) {
	case SMIOC_SYNC:
		err = sm_rings_sync(rings, &req);
		break;
	case NIOCTXSYNC:
		sm_rings_transmit(rings);	/* netmap: a bad ring is poll()'s to report */
		break;
	case NIOCRXSYNC:
		if (!sm_rings_take_back(rings))
			sm_rings_publish(rings);
		break;
	default:
		err = -ENOTTY;
	}
	sm_rings_rearm(rings);
out:
	mutex_unlock(&rings->mutex);
	return err;
}

/* The caller is on rings->wait already. */
__poll_t sm_rings_poll(struct sm_rings *rings, poll_table *wait)
{
	__poll_t events = 0;

	mutex_lock(&rings->mutex);
	if (!READ_ONCE(rings->port->open)) {
		events = EPOLLERR | EPOLLHUP;
		goto out;
	}
	if (sm_rings_transmit(rings) || sm_rings_take_back(rings)) {
		events = EPOLLERR;
		sm_rings_arm(rings);
		sm_rings_wake(rings);	/* look again at the ring as it is now */
		goto out;
	}
	sm_rings_publish(rings);
	/*
	 * Arm unless both directions are ready, because a waiter for one of them is not told which
	 * is.  Always arm for EPOLLET: such a waiter does not poll again before the next edge.
	 */
	if (!sm_rings_readable(rings) || !sm_rings_writable(rings) ||
	    poll_requested_events(wait) & EPOLLET) {
		sm_rings_arm(rings);
		if (sm_rings_ready(rings))
			sm_rings_publish(rings);
		if (sm_rings_has_news(rings))
			sm_rings_wake(rings);	/* look again, rather than go on here */
	}
	if (sm_rings_readable(rings))
		events |= EPOLLIN | EPOLLRDNORM;
	if (sm_rings_writable(rings))
		events |= EPOLLOUT | EPOLLWRNORM;
out:
	mutex_unlock(&rings->mutex);
	return events;
}

/* -- life ----------------------------------------------------------------------------------- */

/* Everything but its rings. */
void sm_rings_init(struct sm_rings *rings, struct sm_port *port, u32 index)
{
	rings->port = port;
	rings->index = index;
	rings->cpu = -1;
	mutex_init(&rings->mutex);
	init_waitqueue_head(&rings->own_wait);
	rings->wait = index ? &rings->own_wait : port->wait;
}

/* The port is closed: end all waits. */
void sm_rings_close(struct sm_rings *rings)
{
	mutex_lock(&rings->mutex);	/* a sync under way has seen the port open */
	mutex_unlock(&rings->mutex);
	wake_up_all(rings->wait);
}
