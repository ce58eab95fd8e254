// SPDX-License-Identifier: GPL-2.0
/*
 * Making a port and its memory, and their end.
 *
 * The mapped region is [sm_if][transmit rings][receive rings][buffers], in whole pages.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/nsproxy.h>
#include <linux/pid.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <net/busy_poll.h>
#include <net/net_namespace.h>

#include "core/port.h"

#define SM_MIN_SLOTS		4
#define SM_MAX_SLOTS		16384
#define SM_DEFAULT_SLOTS	1024
#define SM_MAX_BUFS		1048576
#define SM_SPARES_PER_TX_SLOT	4
#define SM_MAX_KINDS		4
#define SM_ADMIN_POLL_BUDGET	64

struct workqueue_struct *sm_free_wq;

/* The kinds of port there are; changed only while the module is loaded and unloaded. */
static const struct sm_port_ops *sm_kinds[SM_MAX_KINDS];

int sm_port_kind_register(const struct sm_port_ops *ops)
{
	int i;

	for (i = 0; i < SM_MAX_KINDS; i++)
		if (!sm_kinds[i]) {
			sm_kinds[i] = ops;
			return 0;
		}
	return -ENOSPC;
}

void sm_port_kind_unregister(const struct sm_port_ops *ops)
{
	int i;

	for (i = 0; i < SM_MAX_KINDS; i++)
		if (sm_kinds[i] == ops)
			sm_kinds[i] = NULL;
}

/* The kind of a port of this name; NULL if there is none. */
static const struct sm_port_ops *sm_port_kind(const char *name)
{
	int i;

	for (i = 0; i < SM_MAX_KINDS; i++)
		if (sm_kinds[i] && !strncmp(name, sm_kinds[i]->prefix, strlen(sm_kinds[i]->prefix)))
			return sm_kinds[i];
	return NULL;
}

/* -- the end -------------------------------------------------------------------------------- */

/* Free the port, to which there is no reference. */
void sm_port_free(struct sm_port *port)
{
	u32 i;

	if (port->mem_id)
		sm_port_unnumber(port);
	port->ops->destroy(port);
	for (i = 0; port->tx && i < port->ntx; i++)
		sm_txring_destroy(&port->tx[i]);
	for (i = 0; port->rx && i < port->nrx; i++)
		sm_rxring_destroy(&port->rx[i]);
	kvfree(port->tx);
	kvfree(port->rx);
	kvfree(port->rings);
	sm_pool_destroy(&port->pool);
	vfree(port->region);
	sm_port_uncharge(port);
	put_pid(port->pid);
	kvfree(port);
	/* The module's exit flushes sm_free_wq, so this code stays until it has returned. */
	module_put(THIS_MODULE);
}

static void sm_port_free_work(struct work_struct *work)
{
	struct sm_port *port = container_of(to_rcu_work(work), struct sm_port, free_work);
	void *file = port->file;

	sm_port_free(port);
	kfree(file);
}

static void sm_port_release_kref(struct kref *kref)
{
	struct sm_port *port = container_of(kref, struct sm_port, kref);

	queue_rcu_work(sm_free_wq, &port->free_work);	/* we may be in softirq */
}

void sm_port_put(struct sm_port *port)
{
	kref_put(&port->kref, sm_port_release_kref);
}

/* The last descriptor and the last mapping of the file are gone. */
void sm_port_close(struct sm_port *port)
{
	u32 i;

	sm_port_unnumber(port);
	mutex_lock(&port->mutex);
	WRITE_ONCE(port->open, false);
	for (i = 0; i < port->nrings; i++)
		sm_rings_close(port->rings[i]);
	port->ops->close(port);
	mutex_unlock(&port->mutex);
	sm_port_put(port);
}

/* -- the beginning -------------------------------------------------------------------------- */

static size_t sm_ring_size(u32 slots)
{
	return PAGE_ALIGN(sizeof(struct sm_ring) + slots * sizeof(struct sm_slot));
}

/* Size of the part of the mapping that precedes the buffers. */
static size_t sm_region_size(const struct sm_req_register *req)
{
	return PAGE_SIZE + req->nr_tx_rings * sm_ring_size(req->nr_tx_slots) +
	       req->nr_rx_rings * sm_ring_size(req->nr_rx_slots);
}

static u64 sm_port_bufs(const struct sm_req_register *req, const struct sm_opt_limits *limits)
{
	return (u64)req->nr_tx_rings * req->nr_tx_slots + (u64)req->nr_rx_rings * req->nr_rx_slots +
	       limits->spare_bufs + req->nr_extra_bufs;
}

static struct sm_ring *sm_ring_init(struct sm_port *port, size_t ofs, u32 index, u32 slots, u16 dir)
{
	struct sm_ring *ring = port->region + ofs;

	ring->buf_ofs = port->region_size - ofs;
	ring->num_slots = slots;
	ring->nr_buf_size = SM_BUF_SIZE;
	ring->ringid = index;
	ring->dir = dir;
	ring->offset_mask = ~0ULL;
	return ring;
}

/* Chain buffers that are in no slot, as netmap does: each starts with the index of the next. */
static u32 sm_port_extra_bufs(struct sm_port *port, u32 count)
{
	u32 idx, head = 0;

	while (count-- && sm_pool_get(&port->pool, &idx, 1, SM_USER)) {
		*(u32 *)sm_pool_addr(&port->pool, idx) = head;
		head = idx;
	}
	return head;
}

/* Lay the region out. */
static void sm_region_init(struct sm_port *port, const char *name,
			   const struct sm_req_register *req)
{
	struct sm_if *nifp = port->region;
	size_t ofs = PAGE_SIZE;
	u32 i;

	strscpy(nifp->ni_name, name, sizeof(nifp->ni_name));
	nifp->ni_version = SM_API;
	nifp->ni_flags = 1;		/* the region is this port's alone */
	nifp->ni_tx_rings = req->nr_tx_rings;
	nifp->ni_rx_rings = req->nr_rx_rings;
	nifp->ni_host_tx_rings = 1;	/* netmap says 1 where there is none */
	nifp->ni_host_rx_rings = 1;
	for (i = 0; i < req->nr_tx_rings; i++, ofs += sm_ring_size(req->nr_tx_slots)) {
		nifp->ring_ofs[i] = ofs;
		port->tx[i].n = req->nr_tx_slots;
		port->tx[i].ring = sm_ring_init(port, ofs, i, req->nr_tx_slots, 0);
	}
	for (i = 0; i < req->nr_rx_rings; i++, ofs += sm_ring_size(req->nr_rx_slots)) {
		nifp->ring_ofs[req->nr_tx_rings + 1 + i] = ofs;
		port->rx[i].n = req->nr_rx_slots;
		port->rx[i].ring = sm_ring_init(port, ofs, i, req->nr_rx_slots, 1);
	}
}

/* Make @rings the port's @index-th range.  Its tx, ntx, rx and nrx are set already. */
int sm_port_set_range(struct sm_port *port, u32 index, struct sm_rings *rings)
{
	int err = 0;
	u32 i;

	sm_rings_init(rings, port, index);
	port->rings[index] = rings;
	port->nrings = index + 1;
	for (i = 0; i < rings->ntx && !err; i++)
		err = sm_txring_init(&rings->tx[i], rings);
	for (i = 0; i < rings->nrx && !err; i++)
		err = sm_rxring_init(&rings->rx[i], rings);
	return err;
}

static int sm_port_alloc(struct sm_port *port, const char *name,
			 const struct sm_req_register *req, const struct sm_opt_limits *limits)
{
	int err;

	err = sm_pool_init(&port->pool, sm_port_bufs(req, limits));
	if (err)
		return err;
	port->region_size = sm_region_size(req);
	port->region = __vmalloc(port->region_size, SM_GFP | __GFP_ZERO);
	port->tx = kvcalloc(req->nr_tx_rings, sizeof(*port->tx), SM_GFP);
	port->rx = kvcalloc(req->nr_rx_rings, sizeof(*port->rx), SM_GFP);
	port->rings = kvcalloc(max(req->nr_tx_rings, req->nr_rx_rings), sizeof(*port->rings),
			       SM_GFP);
	if (!port->region || !port->tx || !port->rx || !port->rings)
		return -ENOMEM;
	port->ntx = req->nr_tx_rings;
	port->nrx = req->nr_rx_rings;
	sm_region_init(port, name, req);
	err = port->ops->init(port, limits);
	if (err)
		return err;
	((struct sm_if *)port->region)->ni_bufs_head = sm_port_extra_bufs(port, req->nr_extra_bufs);
	return 0;
}

static bool sm_slots_valid(u32 *slots)
{
	if (!*slots)
		*slots = SM_DEFAULT_SLOTS;
	return *slots >= SM_MIN_SLOTS && *slots <= SM_MAX_SLOTS;
}

/* Fill in defaults and check the sizes; limits->limit names the one that is out of bounds. */
static int sm_port_check_size(struct sm_req_register *req, struct sm_opt_limits *limits)
{
	limits->limit = SM_LIMIT_RINGS;
	if (!req->nr_tx_rings && !req->nr_rx_rings) {
		req->nr_tx_rings = 1;
		req->nr_rx_rings = 1;
	}
	if (!req->nr_tx_rings || !req->nr_rx_rings ||
	    req->nr_tx_rings > SM_MAX_RINGS || req->nr_rx_rings > SM_MAX_RINGS)
		return -EINVAL;
	limits->limit = SM_LIMIT_SLOTS;
	if (!sm_slots_valid(&req->nr_tx_slots) || !sm_slots_valid(&req->nr_rx_slots))
		return -EINVAL;
	limits->limit = SM_LIMIT_BUFFERS;
	if (!limits->spare_bufs)
		limits->spare_bufs = req->nr_tx_rings * req->nr_tx_slots * SM_SPARES_PER_TX_SLOT;
	if (sm_port_bufs(req, limits) > SM_MAX_BUFS)
		return -ENOSPC;
	limits->limit = SM_LIMIT_NONE;
	return 0;
}

/* Allocate everything.  sm_port_free() frees it, also if this fails. */
static int sm_port_prepare(struct sm_port *port, const char *name, struct sm_req_register *req,
			   struct sm_opt_limits *limits)
{
	int err;

	err = port->ops->open(port, name + strlen(port->ops->prefix), req, limits);
	if (err)
		return err;
	limits->limit = SM_LIMIT_MEMLOCK;
	err = sm_port_charge(port, sm_port_bufs(req, limits) + SM_FIRST_BUF +
			     (sm_region_size(req) >> PAGE_SHIFT) + port->extra_pages);
	if (err)
		return err;
	limits->limit = SM_LIMIT_MEMORY;
	err = sm_port_alloc(port, name, req, limits);
	if (err)
		return err;
	err = sm_port_number(port, &limits->limit);
	if (err)
		return err;
	limits->limit = SM_LIMIT_NONE;

	req->nr_offset = 0;
	req->nr_memsize = port->region_size + (u64)port->pool.nbufs * SM_BUF_SIZE;
	req->nr_host_tx_rings = 0;
	req->nr_host_rx_rings = 0;
	req->nr_mem_id = port->mem_id;
	return 0;
}

/*
 * A port of this name; ERR_PTR() on failure.  It cannot be found before sm_port_publish(): until
 * then sm_port_free() undoes this.  @wait is the queue of its first range, in @file, which is freed
 * by kfree() with the published port.
 */
struct sm_port *sm_port_create(const char *name, struct sm_req_register *req,
			       struct sm_opt_limits *limits, wait_queue_head_t *wait, void *file)
{
	const struct sm_port_ops *ops = sm_port_kind(name);
	struct sm_port *port;
	int err;

	if (!ops || req->nr_mode > 1 || req->nr_ringid || req->nr_flags || req->nr_mem_id)
		return ERR_PTR(-EINVAL);
	err = sm_port_check_size(req, limits);
	if (err)
		return ERR_PTR(err);
	port = kvzalloc(ops->size, GFP_KERNEL_ACCOUNT);
	if (!port)
		return ERR_PTR(-ENOMEM);
	port->ops = ops;
	kref_init(&port->kref);
	mutex_init(&port->mutex);
	INIT_RCU_WORK(&port->free_work, sm_port_free_work);
	port->wait = wait;
	port->file = file;
	port->net_cookie = current->nsproxy->net_ns->net_cookie;
	port->uid = current_uid();
	port->pid = get_pid(task_tgid(current));
	/* As SO_BUSY_POLL_BUDGET: more than the default is the administrator's. */
	port->poll_budget = capable(CAP_NET_ADMIN) ? SM_ADMIN_POLL_BUDGET : BUSY_POLL_BUDGET;
	/* The port may outlive the file, which holds the module only while it is open. */
	__module_get(THIS_MODULE);
	err = sm_port_prepare(port, name, req, limits);
	if (err) {
		sm_port_free(port);
		return ERR_PTR(err);
	}
	return port;
}

/* The port is complete, and the application knows of it: let others find it. */
void sm_port_publish(struct sm_port *port)
{
	WRITE_ONCE(port->open, true);
	mutex_lock(&sm_ports_lock);
	xa_store(&sm_ports, port->mem_id, port, 0);	/* reserved: cannot fail */
	mutex_unlock(&sm_ports_lock);
}

/* -- buffers and counters ------------------------------------------------------------------- */

/* Buffers became free: let the rings go on that wait for one.  Any context. */
void sm_port_bufs_freed(struct sm_port *port)
{
	u32 i;

	/* Free before the look; pairs with sm_rxring_refill() and sm_txring_stall(). */
	smp_mb();
	if (likely(!atomic_read(&port->nwanting)))
		return;
	for (i = 0; i < port->nrx; i++) {
		struct sm_rxring *rx = &port->rx[i];

		/* The exchange is a barrier: not starved, before the look at blocked ones. */
		if (READ_ONCE(rx->starved) && xchg(&rx->starved, false)) {
			atomic_dec(&port->nwanting);
			port->ops->room(rx);
			sm_rings_wake(rx->rings);
		}
	}
	for (i = 0; i < port->ntx; i++)
		if (READ_ONCE(port->tx[i].stalled))
			sm_rings_wake(port->tx[i].rings);
}

void sm_port_stats(struct sm_port *port, struct sm_stats *st)
{
	static const struct { size_t field; enum sm_counter counter; } map[] = {
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
		{ offsetof(struct sm_stats, direct_packets), SM_DIRECT },
		{ offsetof(struct sm_stats, direct_received), SM_DIRECT_RECEIVED },
		{ offsetof(struct sm_stats, connections), SM_CONNECTIONS },
	};
	u32 i, p;

	memset(st, 0, sizeof(*st));
	for (p = 0; p < port->nrings; p++)
		for (i = 0; i < ARRAY_SIZE(map); i++)
			*(u64 *)((void *)st + map[i].field) +=
				atomic64_read(&port->rings[p]->counter[map[i].counter]);
	st->slots_pinned = atomic_read(&port->pool.npinned);
	st->bufs_free = READ_ONCE(port->pool.nfree);
}
