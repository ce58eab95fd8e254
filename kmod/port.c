// SPDX-License-Identifier: GPL-2.0
/*
 * Ports: what an open /dev/stackmap is.
 *
 * The mapped region is [sm_if][transmit ring][receive ring][buffers], in whole pages.
 */
#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/module.h>
#include <linux/nsproxy.h>
#include <linux/poll.h>
#include <linux/sched/clock.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <net/busy_poll.h>
#include <net/net_namespace.h>

#include "stackmap.h"

#define SM_POLL_BUDGET	64	/* packets of one NAPI poll */
#define SM_MAX_SPIN_US	1000

struct workqueue_struct *sm_wq;

static atomic_t sm_next_mem_id = ATOMIC_INIT(1);

/* netmap's libraries keep mappings by this number: not 0, not the global 1, rarely repeated */
static u16 sm_new_mem_id(void)
{
	u16 id;

	do {
		id = atomic_inc_return(&sm_next_mem_id);
	} while (id < 2);
	return id;
}

static void sm_port_unalloc(struct sm_port *port)
{
	sm_tx_destroy(port);
	sm_rx_destroy(port);
	sm_pool_destroy(&port->pool);
	vfree(port->rings);
	port->rings = NULL;
	memset(&port->tx, 0, sizeof(port->tx));
	port->rx.slot = NULL;
	port->pool.nfree = 0;
}

/* The last connection and the last batch in flight are gone. */
static void sm_port_free_work(struct work_struct *work)
{
	struct sm_port *port = container_of(work, struct sm_port, free_work);

	sm_port_unalloc(port);
	if (port->nic)
		sm_nic_put(port->nic);
	xa_destroy(&port->conns);
	kfree(port);
	/* The module's exit flushes sm_wq, so this code stays until it has returned. */
	module_put(THIS_MODULE);
}

static void sm_port_release_kref(struct kref *kref)
{
	struct sm_port *port = container_of(kref, struct sm_port, kref);

	queue_work(sm_wq, &port->free_work);	/* we may be in softirq */
}

void sm_port_put(struct sm_port *port)
{
	kref_put(&port->kref, sm_port_release_kref);
}

/* Wake the application if it sleeps.  Any context. */
void sm_port_wake(struct sm_port *port)
{
	smp_mb();	/* what we announce before armed; pairs with sm_port_poll() */
	if (READ_ONCE(port->armed)) {
		WRITE_ONCE(port->armed, 0);
		wake_up_interruptible_poll(&port->wait, EPOLLIN | EPOLLRDNORM | EPOLLOUT);
	}
}

static int sm_port_open(struct inode *inode, struct file *file)
{
	struct sm_port *port = kzalloc(sizeof(*port), GFP_KERNEL_ACCOUNT);

	if (!port)
		return -ENOMEM;
	kref_init(&port->kref);
	mutex_init(&port->mutex);
	INIT_WORK(&port->free_work, sm_port_free_work);
	spin_lock_init(&port->rx.lock);
	spin_lock_init(&port->pending_lock);
	spin_lock_init(&port->pool.lock);
	INIT_LIST_HEAD(&port->pending);
	init_waitqueue_head(&port->wait);
	xa_init_flags(&port->conns, XA_FLAGS_ALLOC1);
	/* The port may outlive the file, which holds the module only while it is open. */
	__module_get(THIS_MODULE);
	file->private_data = port;
	return 0;
}

/* The last descriptor and the last mapping are gone. */
static int sm_port_close(struct inode *inode, struct file *file)
{
	struct sm_port *port = file->private_data;

	mutex_lock(&port->mutex);
	port->registered = false;
	sm_conn_detach_all(port);
	mutex_unlock(&port->mutex);
	sm_port_put(port);
	return 0;
}

/* -- register ------------------------------------------------------------------------------- */

static size_t sm_ring_size(u32 slots)
{
	return PAGE_ALIGN(sizeof(struct sm_ring) + slots * sizeof(struct sm_slot));
}

static void sm_ring_init(struct sm_port *port, struct sm_ring *ring, u32 slots, u16 dir)
{
	ring->buf_ofs = port->rings_size - ((void *)ring - port->rings);
	ring->num_slots = slots;
	ring->nr_buf_size = SM_BUF_SIZE;
	ring->dir = dir;
	ring->offset_mask = ~0ULL;
}

static int sm_port_alloc(struct sm_port *port, u32 tx_slots, u32 rx_slots)
{
	size_t tx_ofs = PAGE_SIZE, rx_ofs = tx_ofs + sm_ring_size(tx_slots);
	struct sm_if *nifp;
	int err;

	port->rings_size = rx_ofs + sm_ring_size(rx_slots);
	port->rings = __vmalloc(port->rings_size, GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!port->rings)
		return -ENOMEM;
	port->tx.ring = port->rings + tx_ofs;
	port->rx.ring = port->rings + rx_ofs;
	err = sm_pool_init(&port->pool, tx_slots * (1 + SM_SPARES_PER_TX_SLOT) + rx_slots);
	if (err)
		return err;

	nifp = port->rings;
	nifp->ni_version = SM_API;
	nifp->ni_flags = 1;		/* the region is this port's alone */
	nifp->ni_tx_rings = 1;
	nifp->ni_rx_rings = 1;
	nifp->ni_host_tx_rings = 1;	/* what netmap says where there is none */
	nifp->ni_host_rx_rings = 1;
	nifp->ring_ofs[0] = tx_ofs;
	nifp->ring_ofs[2] = rx_ofs;
	sm_ring_init(port, port->tx.ring, tx_slots, 0);
	sm_ring_init(port, port->rx.ring, rx_slots, 1);

	err = sm_tx_init(port, tx_slots);
	if (err)
		return err;
	return sm_rx_init(port, rx_slots);
}

static int sm_slots_check(u32 *slots)
{
	if (!*slots)
		*slots = SM_DEFAULT_SLOTS;
	return *slots < SM_MIN_SLOTS || *slots > SM_MAX_SLOTS ? -EINVAL : 0;
}

/* Caller holds port->mutex. */
static int sm_port_register(struct sm_port *port, const char *name, struct sm_req_register *req)
{
	struct net *net = current->nsproxy->net_ns;
	int err;

	if (port->registered)
		return -EBUSY;
	if (strncmp(name, "tcp:", 4) || req->nr_mode > 1 || req->nr_ringid || req->nr_flags)
		return -EINVAL;
	if (!ns_capable(net->user_ns, CAP_NET_ADMIN))
		return -EPERM;
	err = sm_slots_check(&req->nr_tx_slots) ?: sm_slots_check(&req->nr_rx_slots);
	if (err)
		return err;
	port->nic = sm_nic_get(net, name + 4);
	if (!port->nic)
		return -ENXIO;
	err = sm_port_alloc(port, req->nr_tx_slots, req->nr_rx_slots);
	if (err)
		goto err_alloc;
	strscpy(((struct sm_if *)port->rings)->ni_name, name,
		sizeof_field(struct sm_if, ni_name));
	port->net_cookie = net->net_cookie;
	port->mem_id = sm_new_mem_id();
	/* Pairs with the acquire load in mmap and fault, which do not take the mutex. */
	smp_store_release(&port->registered, true);

	req->nr_offset = 0;
	req->nr_memsize = port->rings_size + (u64)port->pool.nbufs * SM_BUF_SIZE;
	req->nr_tx_rings = 1;
	req->nr_rx_rings = 1;
	req->nr_host_tx_rings = 0;
	req->nr_host_rx_rings = 0;
	req->nr_mem_id = port->mem_id;
	req->nr_extra_bufs = 0;
	return 0;

err_alloc:
	sm_port_unalloc(port);
	sm_nic_put(port->nic);
	port->nic = NULL;
	return err;
}

static long sm_port_ctrl(struct sm_port *port, void __user *arg)
{
	struct sm_req_register req;
	struct sm_req_header hdr;
	void __user *body;
	int err;

	if (copy_from_user(&hdr, arg, sizeof(hdr)))
		return -EFAULT;
	if (hdr.nr_version < SM_API || hdr.nr_reserved || hdr.nr_reqtype != SM_REQ_REGISTER ||
	    !hdr.nr_body)
		return -EINVAL;
	if (hdr.nr_options)
		return -EOPNOTSUPP;
	body = u64_to_user_ptr(hdr.nr_body);
	if (copy_from_user(&req, body, sizeof(req)))
		return -EFAULT;
	hdr.nr_name[sizeof(hdr.nr_name) - 1] = 0;

	mutex_lock(&port->mutex);
	err = sm_port_register(port, hdr.nr_name, &req);
	mutex_unlock(&port->mutex);
	if (!err && copy_to_user(body, &req, sizeof(req)))
		return -EFAULT;
	return err;
}

/* -- sync ----------------------------------------------------------------------------------- */

struct sm_spin {
	struct sm_port *port;
	u64 until;		/* local_clock() */
	u32 rounds;		/* the clock may stand still where nothing else runs */
};

static bool sm_spin_end(void *arg, unsigned long start)
{
	struct sm_spin *spin = arg;

	return sm_rx_ready(spin->port) || !spin->rounds-- || local_clock() >= spin->until;
}

/* Poll the NIC in our own context: TCP input fills the ring on the way. */
static void sm_port_busy_poll(struct sm_port *port, u32 spin_us)
{
	struct sm_spin spin = {
		.port = port,
		.until = local_clock() + (u64)spin_us * NSEC_PER_USEC,
		.rounds = spin_us * 10,
	};

	if (port->nic->napi_id)
		napi_busy_loop(port->nic->napi_id, sm_spin_end, &spin, false, SM_POLL_BUDGET);
}

/* Caller holds port->mutex. */
static int sm_port_do_sync(struct sm_port *port, const struct sm_sync *req)
{
	int err = 0;

	if (req->flags & SM_SYNC_TX)
		err = sm_tx_sync(port);
	if (!err && req->flags & SM_SYNC_RX)
		err = sm_rx_take_back(port);
	if (err)
		return err;
	if (req->flags & SM_SYNC_POLL)
		sm_port_busy_poll(port, req->spin_us);
	if (req->flags & SM_SYNC_RX)
		sm_rx_publish(port);
	sm_count(port, SM_SYNCS, 1);
	return 0;
}

static __poll_t sm_port_poll(struct file *file, poll_table *wait)
{
	struct sm_port *port = file->private_data;
	__poll_t events = 0;
	int err;

	poll_wait(file, &port->wait, wait);
	mutex_lock(&port->mutex);
	if (!port->registered) {
		events = EPOLLERR;
		goto out;
	}
	err = sm_tx_sync(port) ?: sm_rx_take_back(port);
	if (err) {
		events = EPOLLERR;
		goto out;
	}
	sm_rx_publish(port);
	if (READ_ONCE(port->rx.ring->cur) == port->rx.published) {
		WRITE_ONCE(port->armed, 1);
		smp_mb();	/* armed before the second look; pairs with sm_port_wake() */
		if (sm_rx_ready(port))
			sm_rx_publish(port);
	}
	if (READ_ONCE(port->rx.ring->cur) != port->rx.published)
		events |= EPOLLIN | EPOLLRDNORM;
	if (READ_ONCE(port->tx.ring->cur) != sm_prev(port->tx.done, port->tx.n))
		events |= EPOLLOUT | EPOLLWRNORM;
out:
	mutex_unlock(&port->mutex);
	return events;
}

/* -- ioctl ---------------------------------------------------------------------------------- */

static void sm_port_stats(struct sm_port *port, struct sm_stats *st)
{
	const struct { size_t field; enum sm_counter counter; } map[] = {
		{ offsetof(struct sm_stats, rx_bytes), SM_RX_BYTES },
		{ offsetof(struct sm_stats, tx_bytes), SM_TX_BYTES },
		{ offsetof(struct sm_stats, rx_slots), SM_RX_SLOTS },
		{ offsetof(struct sm_stats, slots_sent), SM_SENT },
		{ offsetof(struct sm_stats, slots_released_ack), SM_RELEASED_ACK },
		{ offsetof(struct sm_stats, slots_released_reset), SM_RELEASED_RESET },
		{ offsetof(struct sm_stats, slots_again), SM_AGAIN },
		{ offsetof(struct sm_stats, bad_slots), SM_BAD_SLOT },
		{ offsetof(struct sm_stats, unknown_conn), SM_UNKNOWN_CONN },
		{ offsetof(struct sm_stats, dead_conn), SM_DEAD_CONN },
		{ offsetof(struct sm_stats, bad_rings), SM_BAD_RING },
		{ offsetof(struct sm_stats, ring_stalls), SM_STALL },
		{ offsetof(struct sm_stats, syncs), SM_SYNCS },
		{ offsetof(struct sm_stats, connections), SM_CONNECTIONS },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(map); i++)
		*(u64 *)((void *)st + map[i].field) = atomic64_read(&port->counter[map[i].counter]);
	st->slots_pinned = READ_ONCE(port->pool.npinned);
	st->bufs_free = READ_ONCE(port->pool.nfree);
}

/* Caller holds port->mutex, and the port is registered. */
static long sm_port_ioctl_locked(struct sm_port *port, unsigned int cmd, void __user *arg)
{
	union {
		struct sm_attach attach;
		struct sm_conn_ctl conn;
		struct sm_sync sync;
		struct sm_stats stats;
	} u = {};
	int err;

	if (_IOC_DIR(cmd) & _IOC_WRITE && copy_from_user(&u, arg, _IOC_SIZE(cmd)))
		return -EFAULT;
	switch (cmd) {
	case SMIOC_SYNC:
		if (u.sync.flags & ~(SM_SYNC_TX | SM_SYNC_RX | SM_SYNC_POLL) ||
		    u.sync.spin_us > SM_MAX_SPIN_US)
			return -EINVAL;
		return sm_port_do_sync(port, &u.sync);
	case SMIOC_ATTACH:
		err = sm_conn_attach(port, &u.attach);
		if (!err && copy_to_user(arg, &u.attach, sizeof(u.attach))) {
			sm_conn_detach(port, u.attach.id);
			return -EFAULT;
		}
		return err;
	case SMIOC_DETACH:
		return u.conn.flags ? -EINVAL : sm_conn_detach(port, u.conn.id);
	case SMIOC_RXCTL:
		return sm_conn_rxctl(port, &u.conn);
	case SMIOC_STATS:
		sm_port_stats(port, &u.stats);
		return copy_to_user(arg, &u.stats, sizeof(u.stats)) ? -EFAULT : 0;
	case NIOCTXSYNC:
		sm_tx_sync(port);	/* netmap: a bad ring is poll()'s to report */
		return 0;
	case NIOCRXSYNC:
		if (!sm_rx_take_back(port))
			sm_rx_publish(port);
		return 0;
	}
	return -ENOTTY;
}

static long sm_port_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct sm_port *port = file->private_data;
	long ret = -ENXIO;

	switch (cmd) {
	case NIOCCTRL:
		return sm_port_ctrl(port, (void __user *)arg);
	case SMIOC_SYNC:
	case SMIOC_ATTACH:
	case SMIOC_DETACH:
	case SMIOC_RXCTL:
	case SMIOC_STATS:
	case NIOCTXSYNC:
	case NIOCRXSYNC:
		break;
	default:
		return -ENOTTY;
	}
	mutex_lock(&port->mutex);
	if (port->registered)
		ret = sm_port_ioctl_locked(port, cmd, (void __user *)arg);
	mutex_unlock(&port->mutex);
	return ret;
}

/* -- mmap ----------------------------------------------------------------------------------- */

static vm_fault_t sm_port_fault(struct vm_fault *vmf)
{
	struct sm_port *port = vmf->vma->vm_private_data;
	size_t ofs = vmf->pgoff << PAGE_SHIFT;
	struct page *page;
	u32 idx;

	if (ofs < port->rings_size) {
		page = vmalloc_to_page(port->rings + ofs);
	} else {
		idx = (ofs - port->rings_size) >> PAGE_SHIFT;
		if (idx >= port->pool.nbufs)
			return VM_FAULT_SIGBUS;
		page = port->pool.buf[idx].page;
	}
	get_page(page);
	vmf->page = page;
	return 0;
}

static const struct vm_operations_struct sm_port_vm_ops = {
	.fault = sm_port_fault,
};

static int sm_port_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct sm_port *port = file->private_data;
	u64 size, end = ((u64)vma->vm_pgoff << PAGE_SHIFT) + (vma->vm_end - vma->vm_start);

	/* Pairs with the release store in sm_port_register(). */
	if (!smp_load_acquire(&port->registered))
		return -EINVAL;
	size = port->rings_size + (u64)port->pool.nbufs * SM_BUF_SIZE;
	if (!(vma->vm_flags & VM_SHARED) || end > size)
		return -EINVAL;
	/* A forked child has no use for the mapping, and would keep the port open. */
	vm_flags_set(vma, VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = port;
	vma->vm_ops = &sm_port_vm_ops;
	return 0;
}

const struct file_operations sm_port_fops = {
	.owner		= THIS_MODULE,
	.open		= sm_port_open,
	.release	= sm_port_close,
	.poll		= sm_port_poll,
	.mmap		= sm_port_mmap,
	.unlocked_ioctl	= sm_port_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.llseek		= noop_llseek,
};
