// SPDX-License-Identifier: GPL-2.0
/*
 * A pair of rings: one thread's view of a port.
 *
 * A sync sends, polls the NIC, receives and waits, as far as it is asked to; poll() sends and
 * receives and then says what is ready, as netmap's does.
 */
#include <linux/anon_inodes.h>
#include <linux/fs.h>
#include <linux/hrtimer.h>
#include <linux/poll.h>
#include <linux/sched/clock.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <net/busy_poll.h>

#include "stackmap.h"

#define SM_MAX_SPIN_US	1000

/* Wake the application if it sleeps.  Any context. */
void sm_pair_wake(struct sm_pair *pair)
{
	smp_mb();	/* the news before the read of armed; pairs with sm_pair_arm() */
	if (READ_ONCE(pair->armed)) {
		WRITE_ONCE(pair->armed, 0);
		wake_up_interruptible_poll(pair->wait, EPOLLIN | EPOLLRDNORM | EPOLLOUT);
	}
}

/* There is room again: those that waited for it are served before others.  Any context. */
void sm_pair_unblock(struct sm_pair *pair)
{
	unsigned long irq;

	if (list_empty_careful(&pair->blocked))
		return;
	spin_lock_irqsave(&pair->pending_lock, irq);
	list_splice_init(&pair->blocked, &pair->pending);
	spin_unlock_irqrestore(&pair->pending_lock, irq);
}

/* Ask to be woken.  Look at the rings after this, not before. */
static void sm_pair_arm(struct sm_pair *pair)
{
	WRITE_ONCE(pair->armed, 1);
	smp_mb();	/* armed before the look; pairs with sm_pair_wake() */
}

/* Has the application slots that it has not seen?  Caller holds pair->mutex. */
static bool sm_pair_readable(const struct sm_pair *pair)
{
	lockdep_assert_held(&pair->mutex);
	return READ_ONCE(pair->rx.ring->cur) != pair->rx.published;
}

/* Has the application transmit slots that it may fill?  Caller holds pair->mutex. */
static bool sm_pair_writable(const struct sm_pair *pair)
{
	lockdep_assert_held(&pair->mutex);
	return READ_ONCE(pair->tx.ring->cur) != sm_prev(pair->tx.done, pair->tx.n);
}

/* Can a transmit ring that stopped for lack of buffers go on? */
static bool sm_pair_unstalled(const struct sm_pair *pair)
{
	return READ_ONCE(pair->tx.stalled) && READ_ONCE(pair->port->pool.nfree);
}

/* Is there anything to look at the rings again for? */
static bool sm_pair_has_news(struct sm_pair *pair)
{
	return sm_rx_ready(pair) || sm_pair_unstalled(pair);
}

/*
 * Re-arm for waiters that stay in the queue without another poll(), as io_uring's multishot
 * requests do; they sync in between.  Caller holds pair->mutex.
 */
static void sm_pair_rearm(struct sm_pair *pair)
{
	lockdep_assert_held(&pair->mutex);
	/* No barrier: a waiter that joins the queue meanwhile polls after that. */
	if (!waitqueue_active(pair->wait))
		return;
	sm_pair_arm(pair);
	if (sm_pair_has_news(pair))
		sm_pair_wake(pair);
}

/*
 * Remember the NAPI context that the socket receives from, so that the pair's syncs poll it.  The
 * oldest one gives way.  Any context; two at a time may at worst note one twice.
 */
void sm_pair_note_napi(struct sm_pair *pair, const struct sock *sk)
{
#ifdef CONFIG_NET_RX_BUSY_POLL
	unsigned int id = READ_ONCE(sk->sk_napi_id);
	u32 i;

	if (id < MIN_NAPI_ID || id == READ_ONCE(pair->napi[0]))
		return;
	for (i = 1; i < SM_PAIR_NAPIS; i++)
		if (READ_ONCE(pair->napi[i]) == id)
			return;
	for (i = SM_PAIR_NAPIS - 1; i; i--)
		WRITE_ONCE(pair->napi[i], READ_ONCE(pair->napi[i - 1]));
	WRITE_ONCE(pair->napi[0], id);
#endif
}

struct sm_spin {
	struct sm_pair *pair;
	u64 until;		/* local_clock() */
	u32 rounds;		/* the clock may stand still where nothing else runs */
	bool alone;		/* stay with this NAPI context, there is no other */
	bool found;		/* it exists */
};

static bool sm_spin_over(struct sm_spin *spin)
{
	return sm_rx_ready(spin->pair) || !spin->rounds-- || local_clock() >= spin->until;
}

/* Called after each poll of a NAPI context, or when another CPU has it. */
static bool sm_spin_end(void *arg, unsigned long start)
{
	struct sm_spin *spin = arg;

	spin->found = true;
	return !spin->alone || sm_spin_over(spin);
}

/* How many NAPI contexts the pair's connections receive from. */
static u32 sm_pair_napis(const struct sm_pair *pair)
{
	u32 i, n = 0;

	for (i = 0; i < SM_PAIR_NAPIS; i++)
		n += READ_ONCE(pair->napi[i]) != 0;
	return n;
}

/* Poll each of the pair's NAPI contexts, until something came.  Caller holds pair->mutex. */
static void sm_pair_poll_napis(struct sm_pair *pair, struct sm_spin *spin)
{
	u32 i, k;

	lockdep_assert_held(&pair->mutex);
	for (k = 0; k < SM_PAIR_NAPIS; k++) {
		unsigned int id;

		i = (pair->napi_turn + k) % SM_PAIR_NAPIS;
		id = READ_ONCE(pair->napi[i]);
		if (!id)
			continue;
		spin->found = false;
		napi_busy_loop(id, sm_spin_end, spin, false, pair->port->poll_budget);
		if (!spin->found)
			cmpxchg(&pair->napi[i], id, 0);	/* the driver has given it up */
		if (sm_rx_ready(pair)) {
			pair->napi_turn = i + 1;	/* the others come first next time */
			return;
		}
	}
}

/*
 * Poll the NIC in our own context: TCP input fills the ring on the way.  A single NAPI context, as
 * where each pair has a queue of the NIC, is kept until the budget is over; several take turns.
 * Caller holds pair->mutex.
 */
static void sm_pair_busy_poll(struct sm_pair *pair, u32 spin_us)
{
	struct sm_spin spin = {
		.pair = pair,
		.until = local_clock() + (u64)spin_us * NSEC_PER_USEC,
		.rounds = spin_us * 10,
	};
	u32 n = sm_pair_napis(pair);

	lockdep_assert_held(&pair->mutex);
	spin.alone = n == 1;
	if (!n)
		return;
	do {
		sm_pair_poll_napis(pair, &spin);
		cond_resched();
	} while (!spin.alone && !sm_spin_over(&spin));
}

/*
 * Sleep until the ring shows something new, a stopped transmit ring has gone on, or the deadline.
 * Caller holds pair->mutex, which is released meanwhile.
 */
static int sm_pair_wait(struct sm_pair *pair, s64 deadline_ns)
{
	ktime_t deadline = ns_to_ktime(deadline_ns);
	bool expired = false;
	DEFINE_WAIT(wait);
	int err = 0;

	lockdep_assert_held(&pair->mutex);
	while (!sm_pair_readable(pair) && !expired && !err) {
		mutex_unlock(&pair->mutex);
		prepare_to_wait(pair->wait, &wait, TASK_INTERRUPTIBLE);
		sm_pair_arm(pair);
		if (signal_pending(current))
			err = -ERESTARTNOHAND;	/* the deadline is absolute */
		else if (!sm_pair_has_news(pair) && READ_ONCE(pair->port->registered))
			expired = !schedule_hrtimeout(deadline_ns < 0 ? NULL : &deadline,
						      HRTIMER_MODE_ABS);
		else
			expired = deadline_ns >= 0 && ktime_get_ns() >= deadline_ns;
		finish_wait(pair->wait, &wait);
		mutex_lock(&pair->mutex);
		if (!READ_ONCE(pair->port->registered))
			return -ENXIO;
		sm_rx_publish(pair);
		if (sm_pair_unstalled(pair))
			return sm_tx_sync(pair);
	}
	return err;
}

/* Caller holds pair->mutex. */
static int sm_pair_sync(struct sm_pair *pair, const struct sm_sync *req)
{
	int err = 0;

	lockdep_assert_held(&pair->mutex);
	WRITE_ONCE(pair->cpu, raw_smp_processor_id());	/* a hint, for sm_pair_for() */
	if (req->flags & SM_SYNC_TX)
		err = sm_tx_sync(pair);
	if (!err && req->flags & SM_SYNC_RX)
		err = sm_rx_take_back(pair);
	if (err)
		return err;
	if (req->flags & SM_SYNC_POLL)
		sm_pair_busy_poll(pair, req->spin_us);
	if (req->flags & SM_SYNC_RX)
		sm_rx_publish(pair);
	sm_count(pair, SM_SYNCS, 1);
	return req->flags & SM_SYNC_WAIT ? sm_pair_wait(pair, req->deadline_ns) : 0;
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

/* The commands that concern one pair. */
long sm_pair_ioctl(struct sm_pair *pair, unsigned int cmd, void __user *arg)
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
	mutex_lock(&pair->mutex);
	if (!READ_ONCE(pair->port->registered)) {
		err = -ENXIO;
		goto out;
	}
	switch (cmd) {
	case SMIOC_SYNC:
		err = sm_pair_sync(pair, &req);
		break;
	case NIOCTXSYNC:
		sm_tx_sync(pair);	/* netmap: a bad ring is poll()'s to report */
		break;
	case NIOCRXSYNC:
		if (!sm_rx_take_back(pair))
			sm_rx_publish(pair);
		break;
	default:
		err = -ENOTTY;
	}
	sm_pair_rearm(pair);
out:
	mutex_unlock(&pair->mutex);
	return err;
}

/* The caller is on pair->wait already. */
__poll_t sm_pair_poll(struct sm_pair *pair, poll_table *wait)
{
	__poll_t events = 0;

	mutex_lock(&pair->mutex);
	if (!READ_ONCE(pair->port->registered)) {
		events = EPOLLERR | EPOLLHUP;
		goto out;
	}
	if (sm_tx_sync(pair) || sm_rx_take_back(pair)) {
		events = EPOLLERR;
		sm_pair_arm(pair);
		sm_pair_wake(pair);	/* look again at the ring as it is now */
		goto out;
	}
	sm_rx_publish(pair);
	/*
	 * Arm unless both directions are ready, because a waiter for one of them is not told which
	 * is.  Always arm for EPOLLET: such a waiter does not poll again before the next edge.
	 */
	if (!sm_pair_readable(pair) || !sm_pair_writable(pair) ||
	    poll_requested_events(wait) & EPOLLET) {
		sm_pair_arm(pair);
		if (sm_rx_ready(pair))
			sm_rx_publish(pair);
		if (sm_pair_has_news(pair))
			sm_pair_wake(pair);	/* look again, rather than go on here */
	}
	if (sm_pair_readable(pair))
		events |= EPOLLIN | EPOLLRDNORM;
	if (sm_pair_writable(pair))
		events |= EPOLLOUT | EPOLLWRNORM;
out:
	mutex_unlock(&pair->mutex);
	return events;
}

/* -- a descriptor of its own ---------------------------------------------------------------- */

static __poll_t sm_ring_poll(struct file *file, poll_table *wait)
{
	struct sm_pair *pair = file->private_data;

	poll_wait(file, pair->wait, wait);
	return sm_pair_poll(pair, wait);
}

static long sm_ring_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return sm_pair_ioctl(file->private_data, cmd, (void __user *)arg);
}

static int sm_ring_close(struct inode *inode, struct file *file)
{
	struct sm_pair *pair = file->private_data;

	sm_port_put(pair->port);
	return 0;
}

static const struct file_operations sm_ring_fops = {
	.owner		= THIS_MODULE,
	.release	= sm_ring_close,
	.poll		= sm_ring_poll,
	.unlocked_ioctl	= sm_ring_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.llseek		= noop_llseek,
};

/* A new descriptor for the pair.  Does not keep the port open, only its memory. */
int sm_pair_open(struct sm_pair *pair)
{
	int fd;

	sm_port_get(pair->port);
	fd = anon_inode_getfd("[stackmap-ring]", &sm_ring_fops, pair, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		sm_port_put(pair->port);
	return fd;
}

/* -- life ----------------------------------------------------------------------------------- */

/* Everything but its rings. */
void sm_pair_prepare(struct sm_pair *pair, struct sm_port *port, u32 index)
{
	pair->port = port;
	pair->index = index;
	pair->cpu = -1;
	mutex_init(&pair->mutex);
	spin_lock_init(&pair->rx.lock);
	spin_lock_init(&pair->pending_lock);
	INIT_LIST_HEAD(&pair->pending);
	INIT_LIST_HEAD(&pair->blocked);
	init_waitqueue_head(&pair->own_wait);
	pair->wait = index ? &pair->own_wait : &port->wait;
}

/* Its rings are in place already. */
int sm_pair_init(struct sm_pair *pair, u32 tx_slots, u32 rx_slots)
{
	return sm_tx_init(pair, tx_slots) ?: sm_rx_init(pair, rx_slots);
}

void sm_pair_destroy(struct sm_pair *pair)
{
	sm_tx_destroy(pair);
	sm_rx_destroy(pair);
}

/* The port is closed: end all waits. */
void sm_pair_close(struct sm_pair *pair)
{
	mutex_lock(&pair->mutex);	/* a sync under way has seen the port open */
	mutex_unlock(&pair->mutex);
	wake_up_all(pair->wait);
}
