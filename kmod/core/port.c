// SPDX-License-Identifier: GPL-2.0
/*
 * Ports: each open /dev/stackmap is one.
 *
 * The mapped region is [sm_if][transmit rings][receive rings][buffers], in whole pages.  The
 * records of TCP's state are another mapping, at SM_STATE_OFFSET.
 */
#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/nsproxy.h>
#include <linux/poll.h>
#include <linux/sched/user.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <net/busy_poll.h>
#include <net/net_namespace.h>

#include "stackmap.h"

#define SM_MAX_OPTIONS		16
#define SM_MAX_USER_PORTS	1024
#define SM_ADMIN_POLL_BUDGET	64

struct workqueue_struct *sm_free_wq;
DEFINE_XARRAY_ALLOC(sm_ports);
DEFINE_MUTEX(sm_ports_lock);	/* guards sm_ports and sm_user_ports */
static DEFINE_XARRAY(sm_user_ports);	/* user -> how many of these are theirs */

static void sm_port_unalloc(struct sm_port *port)
{
	u32 i;

	for (i = 0; i < port->npairs; i++)
		sm_pair_destroy(&port->pair[i]);
	kvfree(port->pair);
	port->pair = NULL;
	port->npairs = 0;
	sm_states_destroy(&port->states);
	sm_pool_destroy(&port->pool);
	vfree(port->rings);
	port->rings = NULL;
	if (port->wq)
		destroy_workqueue(port->wq);
	port->wq = NULL;
	if (port->user) {
		atomic_long_sub(port->locked, &port->user->locked_vm);
		free_uid(port->user);
	}
	port->user = NULL;
}

/* The last connection, the last batch in flight and the last RCU reader of either are gone. */
static void sm_port_free_work(struct work_struct *work)
{
	struct sm_port *port = container_of(to_rcu_work(work), struct sm_port, free_work);

	sm_port_unalloc(port);
	put_pid(port->pid);
	if (port->nic)
		sm_nic_put(port->nic);
	xa_destroy(&port->conns);
	xa_destroy(&port->listeners);
	kfree(port);
	/* The module's exit flushes sm_free_wq, so this code stays until it has returned. */
	module_put(THIS_MODULE);
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

/* The port closes, or was not registered after all: its number may be another's. */
static void sm_port_unnumber(struct sm_port *port)
{
	unsigned long user = __kuid_val(port->uid);
	unsigned long n;

	mutex_lock(&sm_ports_lock);
	xa_erase(&sm_ports, port->mem_id);
	n = xa_to_value(xa_load(&sm_user_ports, user)) - 1;
	if (n)
		xa_store(&sm_user_ports, user, xa_mk_value(n), 0);	/* is there: cannot fail */
	else
		xa_erase(&sm_user_ports, user);
	mutex_unlock(&sm_ports_lock);
	port->mem_id = 0;
}

static int sm_port_open(struct inode *inode, struct file *file)
{
	struct sm_port *port = kzalloc(sizeof(*port), GFP_KERNEL_ACCOUNT);

	if (!port)
		return -ENOMEM;
	kref_init(&port->kref);
	mutex_init(&port->mutex);
	INIT_RCU_WORK(&port->free_work, sm_port_free_work);
	init_waitqueue_head(&port->wait);
	xa_init_flags(&port->conns, XA_FLAGS_ALLOC1 | XA_FLAGS_ACCOUNT);
	xa_init_flags(&port->listeners, XA_FLAGS_ACCOUNT);
	/* The port may outlive the file, which holds the module only while it is open. */
	__module_get(THIS_MODULE);
	file->private_data = port;
	return 0;
}

/* The last descriptor and the last mapping are gone. */
static int sm_port_close(struct inode *inode, struct file *file)
{
	struct sm_port *port = file->private_data;
	u32 i;

	if (port->mem_id)
		sm_port_unnumber(port);

	mutex_lock(&port->mutex);
	WRITE_ONCE(port->registered, false);
	sm_listener_detach_all(port);
	for (i = 0; i < port->npairs; i++)
		sm_pair_close(&port->pair[i]);
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

/* Size of the part of the region that precedes the buffers. */
static size_t sm_rings_size(const struct sm_req_register *req)
{
	return PAGE_SIZE + req->nr_tx_rings * (sm_ring_size(req->nr_tx_slots) +
					       sm_ring_size(req->nr_rx_slots));
}

static u64 sm_port_bufs(const struct sm_req_register *req, const struct sm_opt_limits *limits)
{
	return (u64)req->nr_tx_rings * (req->nr_tx_slots + req->nr_rx_slots) +
	       limits->spare_bufs + req->nr_extra_bufs;
}

static struct sm_ring *sm_ring_init(struct sm_port *port, size_t ofs, u32 index, u32 slots, u16 dir)
{
	struct sm_ring *ring = port->rings + ofs;

	ring->buf_ofs = port->rings_size - ofs;
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

static int sm_port_alloc(struct sm_port *port, const struct sm_req_register *req,
			 const struct sm_opt_limits *limits)
{
	u32 pairs = req->nr_tx_rings, tx_slots = req->nr_tx_slots, rx_slots = req->nr_rx_slots;
	size_t tx_size = sm_ring_size(tx_slots), rx_size = sm_ring_size(rx_slots);
	struct sm_if *nifp;
	int err;
	u32 i;

	port->wq = alloc_workqueue("stackmap", WQ_UNBOUND, 1);
	if (!port->wq)
		return -ENOMEM;
	err = sm_pool_init(&port->pool, sm_port_bufs(req, limits));
	if (err)
		return err;
	err = sm_states_init(&port->states, limits->connections);
	if (err)
		return err;
	port->rings_size = sm_rings_size(req);
	port->rings = __vmalloc(port->rings_size, SM_GFP | __GFP_ZERO);
	port->pair = kvcalloc(pairs, sizeof(*port->pair), SM_GFP);
	if (!port->rings || !port->pair)
		return -ENOMEM;
	port->npairs = pairs;

	nifp = port->rings;
	nifp->ni_version = SM_API;
	nifp->ni_flags = 1;		/* the region is this port's alone */
	nifp->ni_tx_rings = pairs;
	nifp->ni_rx_rings = pairs;
	nifp->ni_host_tx_rings = 1;	/* netmap says 1 where there is none */
	nifp->ni_host_rx_rings = 1;
	for (i = 0; i < pairs; i++) {
		struct sm_pair *pair = &port->pair[i];
		size_t tx_ofs = PAGE_SIZE + i * tx_size;
		size_t rx_ofs = PAGE_SIZE + pairs * tx_size + i * rx_size;

		nifp->ring_ofs[i] = tx_ofs;
		nifp->ring_ofs[pairs + 1 + i] = rx_ofs;
		sm_pair_prepare(pair, port, i);
		pair->tx.ring = sm_ring_init(port, tx_ofs, i, tx_slots, 0);
		pair->rx.ring = sm_ring_init(port, rx_ofs, i, rx_slots, 1);
		err = sm_pair_init(pair, tx_slots, rx_slots);
		if (err)
			return err;
	}
	nifp->ni_bufs_head = sm_port_extra_bufs(port, req->nr_extra_bufs);
	return 0;
}

/*
 * Reserve the port's number; the port cannot be found by it yet.  netmap's libraries keep mappings
 * by it: cyclic and unique; 0 and 1 are reserved by netmap.  @limit is set if the user has too many
 * ports.
 */
static int sm_port_number(struct sm_port *port, u32 *limit)
{
	unsigned long n, user = __kuid_val(port->uid);
	static u32 next;
	void *mine;
	u32 mem_id;
	int err;

	mutex_lock(&sm_ports_lock);
	mine = xa_load(&sm_user_ports, user);
	n = mine ? xa_to_value(mine) : 0;
	if (n >= SM_MAX_USER_PORTS && !capable(CAP_SYS_RESOURCE)) {
		*limit = SM_LIMIT_USER_PORTS;
		err = -ENOSPC;
		goto out;
	}
	err = xa_alloc_cyclic(&sm_ports, &mem_id, NULL, XA_LIMIT(2, U16_MAX), &next, GFP_KERNEL);
	if (err == -EBUSY) {
		*limit = SM_LIMIT_PORTS;
		err = -ENOSPC;
	}
	if (err < 0)
		goto out;
	err = xa_err(xa_store(&sm_user_ports, user, xa_mk_value(n + 1), GFP_KERNEL));
	if (err)
		xa_release(&sm_ports, mem_id);
	else
		port->mem_id = mem_id;
out:
	mutex_unlock(&sm_ports_lock);
	return err;
}

static bool sm_port_try_charge(struct sm_port *port, unsigned long pages)
{
	unsigned long limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
	struct user_struct *user = current_user();
	long old = atomic_long_read(&user->locked_vm);

	do {
		if (old + pages > limit)
			return false;
	} while (!atomic_long_try_cmpxchg(&user->locked_vm, &old, old + pages));
	port->user = get_uid(user);
	port->locked = pages;
	return true;
}

/*
 * Charge the port's pages to its user's locked memory, as AF_XDP and io_uring do.
 * Undone with the memory, by sm_port_unalloc().
 */
static int sm_port_charge(struct sm_port *port, const struct sm_req_register *req,
			  const struct sm_opt_limits *limits)
{
	unsigned long pages;

	if (capable(CAP_IPC_LOCK))
		return 0;
	pages = sm_port_bufs(req, limits) + SM_FIRST_BUF +
		((sm_rings_size(req) + sm_states_size(limits->connections)) >> PAGE_SHIFT);
	if (sm_port_try_charge(port, pages))
		return 0;
	/* A port that the user has just closed may wait for a grace period: let it go first. */
	rcu_barrier();
	flush_workqueue(sm_free_wq);
	return sm_port_try_charge(port, pages) ? 0 : -ENOMEM;
}

/* The port is complete, and the application knows of it: let others find and use it. */
static void sm_port_publish(struct sm_port *port)
{
	mutex_lock(&sm_ports_lock);
	xa_store(&sm_ports, port->mem_id, port, 0);	/* reserved: cannot fail */
	mutex_unlock(&sm_ports_lock);
	/* Pairs with the acquire loads of readers that do not take port->mutex. */
	smp_store_release(&port->registered, true);
	wake_up_all(&port->wait);	/* waiters that polled before SM_REQ_REGISTER */
}

static bool sm_slots_sound(u32 *slots)
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
	if (req->nr_tx_rings != req->nr_rx_rings || req->nr_tx_rings > SM_MAX_PAIRS)
		return -EINVAL;
	limits->limit = SM_LIMIT_SLOTS;
	if (!sm_slots_sound(&req->nr_tx_slots) || !sm_slots_sound(&req->nr_rx_slots))
		return -EINVAL;
	limits->limit = SM_LIMIT_BUFFERS;
	if (!limits->spare_bufs)
		limits->spare_bufs = req->nr_tx_rings * req->nr_tx_slots * SM_SPARES_PER_TX_SLOT;
	if (sm_port_bufs(req, limits) > SM_MAX_BUFS)
		return -ENOSPC;
	limits->limit = SM_LIMIT_CONNECTIONS;
	if (!limits->connections)
		limits->connections = SM_DEFAULT_CONNS;
	if (limits->connections > SM_MAX_CONNS)
		return -ENOSPC;
	limits->limit = SM_LIMIT_NONE;
	return 0;
}

/* Make all that a port needs.  Caller holds port->mutex, and publishes the port or undoes it. */
static int sm_port_prepare(struct sm_port *port, const char *name, struct sm_req_register *req,
			   struct sm_opt_limits *limits)
{
	struct net *net = current->nsproxy->net_ns;
	int err;

	lockdep_assert_held(&port->mutex);
	if (port->registered)
		return -EBUSY;
	if (strncmp(name, "tcp:", 4) || req->nr_mode > 1 || req->nr_ringid || req->nr_flags ||
	    req->nr_mem_id)
		return -EINVAL;
	err = sm_port_check_size(req, limits);
	if (err)
		return err;
	port->nic = sm_nic_get(net, name + 4);
	if (!port->nic)
		return -ENXIO;
	if (!sm_nic_may_open(port->nic, net)) {
		err = -EPERM;
		goto err_nic;
	}
	limits->limit = SM_LIMIT_MEMLOCK;
	err = sm_port_charge(port, req, limits);
	if (err)
		goto err_nic;
	limits->limit = SM_LIMIT_MEMORY;
	err = sm_port_alloc(port, req, limits);
	if (err)
		goto err_alloc;
	strscpy(((struct sm_if *)port->rings)->ni_name, name,
		sizeof_field(struct sm_if, ni_name));
	port->net_cookie = net->net_cookie;
	port->uid = current_uid();
	/* As SO_BUSY_POLL_BUDGET: more than the default is the administrator's. */
	port->poll_budget = capable(CAP_NET_ADMIN) ? SM_ADMIN_POLL_BUDGET : BUSY_POLL_BUDGET;
	err = sm_port_number(port, &limits->limit);
	if (err)
		goto err_alloc;
	limits->limit = SM_LIMIT_NONE;

	port->pid = get_pid(task_tgid(current));

	req->nr_offset = 0;
	req->nr_memsize = port->rings_size + (u64)port->pool.nbufs * SM_BUF_SIZE;
	req->nr_host_tx_rings = 0;
	req->nr_host_rx_rings = 0;
	req->nr_mem_id = port->mem_id;
	return 0;

err_alloc:
	sm_port_unalloc(port);
err_nic:
	sm_nic_put(port->nic);
	port->nic = NULL;
	return err;
}

/* Undo sm_port_prepare(). */
static void sm_port_undo(struct sm_port *port)
{
	sm_port_unnumber(port);
	put_pid(port->pid);
	port->pid = NULL;
	sm_port_unalloc(port);
	sm_nic_put(port->nic);
	port->nic = NULL;
}

/*
 * Read the options of a request.  @where is where the application has the limits, NULL if nowhere.
 * An unknown option is refused, and told so in its status.
 */
static int sm_options_read(u64 at, struct sm_opt_limits *limits,
			   struct sm_opt_limits __user **where)
{
	struct sm_req_option opt;
	int i;

	for (i = 0; at; i++, at = opt.nro_next) {
		struct sm_req_option __user *user = u64_to_user_ptr(at);

		if (i == SM_MAX_OPTIONS)
			return -EMSGSIZE;
		if (copy_from_user(&opt, user, sizeof(opt)))
			return -EFAULT;
		if (opt.nro_reqtype != SM_OPT_LIMITS || *where) {
			if (put_user(EOPNOTSUPP, &user->nro_status))
				return -EFAULT;
			return -EOPNOTSUPP;
		}
		if (opt.nro_size && opt.nro_size != sizeof(*limits))
			return -EINVAL;
		*where = u64_to_user_ptr(at);
		if (copy_from_user(limits, *where, sizeof(*limits)))
			return -EFAULT;
		if (limits->reserved)
			return -EINVAL;
	}
	return 0;
}

static long sm_port_ctrl(struct sm_port *port, void __user *arg)
{
	struct sm_opt_limits __user *where = NULL;
	struct sm_opt_limits limits = {};
	struct sm_req_register req;
	struct sm_req_header hdr;
	void __user *body;
	bool fault;
	int err;

	if (copy_from_user(&hdr, arg, sizeof(hdr)))
		return -EFAULT;
	if (hdr.nr_version < SM_API || hdr.nr_version > SM_API_MAX || hdr.nr_reserved ||
	    hdr.nr_reqtype != SM_REQ_REGISTER ||
	    !hdr.nr_body || strnlen(hdr.nr_name, sizeof(hdr.nr_name)) == sizeof(hdr.nr_name))
		return -EINVAL;
	body = u64_to_user_ptr(hdr.nr_body);
	if (copy_from_user(&req, body, sizeof(req)))
		return -EFAULT;
	err = sm_options_read(hdr.nr_options, &limits, &where);
	if (err)
		return err;

	mutex_lock(&port->mutex);
	err = sm_port_prepare(port, hdr.nr_name, &req, &limits);
	limits.opt.nro_status = -err;
	fault = (where && copy_to_user(where, &limits, sizeof(limits))) ||
		(!err && copy_to_user(body, &req, sizeof(req)));
	if (!err && fault)
		sm_port_undo(port);
	else if (!err)
		sm_port_publish(port);
	mutex_unlock(&port->mutex);
	return fault ? -EFAULT : err;
}

/* -- ioctl ---------------------------------------------------------------------------------- */

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
		{ offsetof(struct sm_stats, connections), SM_CONNECTIONS },
	};
	u32 i, p;

	memset(st, 0, sizeof(*st));
	for (p = 0; p < port->npairs; p++)
		for (i = 0; i < ARRAY_SIZE(map); i++)
			*(u64 *)((void *)st + map[i].field) +=
				atomic64_read(&port->pair[p].counter[map[i].counter]);
	st->slots_pinned = READ_ONCE(port->pool.npinned);
	st->bufs_free = READ_ONCE(port->pool.nfree);
}

static int sm_port_attach(struct sm_port *port, struct sm_attach *req)
{
	struct socket *sock;
	int err;

	if (req->flags & ~SM_ATTACH_LISTENER || req->reserved ||
	    (req->ring >= port->npairs && req->ring != SM_RING_ANY))
		return -EINVAL;
	sock = sockfd_lookup(req->fd, &err);
	if (!sock)
		return err;
	/* The file may be another socket's, which has fallen back to this one (SMC). */
	if (!sock->file || file_inode(sock->file) != SOCK_INODE(sock))
		err = -EOPNOTSUPP;
	else
		err = sm_check_socket(port, sock);
	if (!err && req->flags & SM_ATTACH_LISTENER)
		err = sm_listener_attach(port, sock, req);
	else if (!err)
		err = sm_conn_attach(port, sock, req);
	sockfd_put(sock);
	return err;
}

static int sm_port_detach(struct sm_port *port, const struct sm_conn_ctl *req)
{
	int err;

	if (req->flags)
		return -EINVAL;
	err = sm_conn_detach(port, req->id);
	return err == -ENOENT ? sm_listener_detach(port, req->id) : err;
}

/* Commands that must not meet the port's end, or each other.  Caller holds port->mutex. */
static long sm_port_ioctl_locked(struct sm_port *port, unsigned int cmd, void __user *arg)
{
	struct sm_attach attach;
	struct sm_conn_ctl conn;
	struct sm_ring_req ring;
	struct sm_stats stats;
	int err;

	lockdep_assert_held(&port->mutex);
	switch (cmd) {
	case SMIOC_ATTACH:
		if (copy_from_user(&attach, arg, sizeof(attach)))
			return -EFAULT;
		err = sm_port_attach(port, &attach);
		if (!err && copy_to_user(arg, &attach, sizeof(attach))) {
			conn = (struct sm_conn_ctl){ .id = attach.id };
			sm_port_detach(port, &conn);
			return -EFAULT;
		}
		return err;
	case SMIOC_DETACH:
		if (copy_from_user(&conn, arg, sizeof(conn)))
			return -EFAULT;
		return sm_port_detach(port, &conn);
	case SMIOC_RXCTL:
		if (copy_from_user(&conn, arg, sizeof(conn)))
			return -EFAULT;
		return sm_conn_rxctl(port, &conn);
	case SMIOC_RING:
		if (copy_from_user(&ring, arg, sizeof(ring)))
			return -EFAULT;
		if (ring.ring >= port->npairs || ring.flags)
			return -EINVAL;
		return sm_pair_open(&port->pair[array_index_nospec(ring.ring, port->npairs)]);
	case SMIOC_STATS:
		sm_port_stats(port, &stats);
		return copy_to_user(arg, &stats, sizeof(stats)) ? -EFAULT : 0;
	}
	return -ENOTTY;
}

static long sm_port_ioctl(struct file *file, unsigned int cmd, unsigned long user)
{
	struct sm_port *port = file->private_data;
	void __user *arg = (void __user *)user;
	long ret;

	switch (cmd) {
	case NIOCCTRL:
		return sm_port_ctrl(port, arg);
	case SMIOC_SYNC:
	case NIOCTXSYNC:
	case NIOCRXSYNC:
		/* Pairs with the release store in sm_port_publish(). */
		if (!smp_load_acquire(&port->registered))
			return -ENXIO;
		return sm_pair_ioctl(&port->pair[0], cmd, arg);
	case SMIOC_ATTACH:
	case SMIOC_DETACH:
	case SMIOC_RXCTL:
	case SMIOC_RING:
	case SMIOC_STATS:
		mutex_lock(&port->mutex);
		ret = port->registered ? sm_port_ioctl_locked(port, cmd, arg) : -ENXIO;
		mutex_unlock(&port->mutex);
		return ret;
	}
	return -ENOTTY;
}

static __poll_t sm_port_poll(struct file *file, poll_table *wait)
{
	struct sm_port *port = file->private_data;

	poll_wait(file, &port->wait, wait);	/* before it is one as well */
	/* Pairs with the release store in sm_port_publish(). */
	if (!smp_load_acquire(&port->registered))
		return EPOLLERR;
	return sm_pair_poll(&port->pair[0], wait);
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

static vm_fault_t sm_state_fault(struct vm_fault *vmf)
{
	struct sm_port *port = vmf->vma->vm_private_data;
	size_t ofs = (vmf->pgoff << PAGE_SHIFT) - SM_STATE_OFFSET;

	if (ofs >= port->states.size)
		return VM_FAULT_SIGBUS;
	vmf->page = vmalloc_to_page((void *)port->states.record + ofs);
	get_page(vmf->page);
	return 0;
}

static const struct vm_operations_struct sm_state_vm_ops = {
	.fault = sm_state_fault,
};

static int sm_port_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct sm_port *port = file->private_data;
	u64 start = (u64)vma->vm_pgoff << PAGE_SHIFT;
	u64 end = start + (vma->vm_end - vma->vm_start);

	/* Pairs with the release store in sm_port_publish(). */
	if (!smp_load_acquire(&port->registered) || !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_flags & VM_EXEC)
		return -EACCES;
	if (start >= SM_STATE_OFFSET) {
		if (end > SM_STATE_OFFSET + port->states.size)
			return -EINVAL;
		if (vma->vm_flags & VM_WRITE)
			return -EACCES;
		vm_flags_clear(vma, VM_MAYWRITE);	/* nor after an mprotect() */
		vma->vm_ops = &sm_state_vm_ops;
	} else {
		if (end > port->rings_size + (u64)port->pool.nbufs * SM_BUF_SIZE)
			return -EINVAL;
		vma->vm_ops = &sm_port_vm_ops;
	}
	/* A forked child has no use for the mapping, and would keep the port open. */
	vm_flags_set(vma, VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	vm_flags_clear(vma, VM_MAYEXEC);
	vma->vm_private_data = port;
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
