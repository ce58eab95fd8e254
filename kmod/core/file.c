// SPDX-License-Identifier: GPL-2.0
/*
 * Descriptors.  An open /dev/stackmap becomes that of a port when it is registered, bound to the
 * first range of the port's rings; SMIOC_RING makes one that is bound to another range.
 */
#include <linux/anon_inodes.h>
#include <linux/compat.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "core/file.h"
#include "core/port.h"

#define SM_MAX_OPTIONS	16

struct sm_file {
	struct mutex mutex;	/* one registration at a time */
	struct sm_port *port;	/* NULL until it is registered; set once */
	wait_queue_head_t wait;	/* of its range; waiters may be there before the port is */
};

/* The file's port, or NULL. */
static struct sm_port *sm_file_port(struct file *filp)
{
	struct sm_file *file = filp->private_data;

	/* Pairs with the release store in sm_file_ctrl(): the port is complete. */
	return smp_load_acquire(&file->port);
}

static int sm_file_open(struct inode *inode, struct file *filp)
{
	struct sm_file *file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);

	if (!file)
		return -ENOMEM;
	mutex_init(&file->mutex);
	init_waitqueue_head(&file->wait);
	filp->private_data = file;
	return 0;
}

static int sm_file_release(struct inode *inode, struct file *filp)
{
	struct sm_file *file = filp->private_data;

	if (file->port)
		sm_port_close(file->port);	/* the port's end frees the file */
	else
		kfree(file);
	return 0;
}

/* -- register ------------------------------------------------------------------------------- */

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

static long sm_file_ctrl(struct sm_file *file, void __user *arg)
{
	struct sm_opt_limits __user *where = NULL;
	struct sm_opt_limits limits = {};
	struct sm_req_register req;
	struct sm_req_header hdr;
	struct sm_port *port;
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

	mutex_lock(&file->mutex);
	port = file->port ? ERR_PTR(-EBUSY) :
			    sm_port_create(hdr.nr_name, &req, &limits, &file->wait, file);
	err = PTR_ERR_OR_ZERO(port);
	limits.opt.nro_status = -err;
	fault = (where && copy_to_user(where, &limits, sizeof(limits))) ||
		(!err && copy_to_user(body, &req, sizeof(req)));
	if (!err && fault) {
		sm_port_free(port);
	} else if (!err) {
		sm_port_publish(port);
		/* Pairs with sm_file_port(). */
		smp_store_release(&file->port, port);
		wake_up_all(&file->wait);	/* waiters that polled before SM_REQ_REGISTER */
	}
	mutex_unlock(&file->mutex);
	return fault ? -EFAULT : err;
}

/* -- the descriptor of a further range ------------------------------------------------------ */

static __poll_t sm_ring_poll(struct file *filp, poll_table *wait)
{
	struct sm_rings *rings = filp->private_data;

	poll_wait(filp, rings->wait, wait);
	return sm_rings_poll(rings, wait);
}

static long sm_ring_ioctl(struct file *filp, unsigned int cmd, unsigned long arg)
{
	return sm_rings_ioctl(filp->private_data, cmd, (void __user *)arg);
}

static int sm_ring_release(struct inode *inode, struct file *filp)
{
	struct sm_rings *rings = filp->private_data;

	sm_port_put(rings->port);
	return 0;
}

static const struct file_operations sm_ring_fops = {
	.owner		= THIS_MODULE,
	.release	= sm_ring_release,
	.poll		= sm_ring_poll,
	.unlocked_ioctl	= sm_ring_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.llseek		= noop_llseek,
};

/* A new descriptor for a range.  Does not keep the port open, only its memory. */
static int sm_ring_open(struct sm_port *port, const struct sm_ring_req *req)
{
	struct sm_rings *rings;
	int fd;

	if (req->ring >= port->nrings || req->flags)
		return -EINVAL;
	rings = port->rings[array_index_nospec(req->ring, port->nrings)];
	sm_port_get(port);
	fd = anon_inode_getfd("[stackmap-ring]", &sm_ring_fops, rings, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		sm_port_put(port);
	return fd;
}

/* -- ioctl and poll ------------------------------------------------------------------------- */

/* Commands that must not meet the port's end, or each other.  Caller holds port->mutex. */
static long sm_file_ioctl_locked(struct sm_port *port, unsigned int cmd, void __user *arg)
{
	struct sm_ring_req ring;
	struct sm_stats stats;

	lockdep_assert_held(&port->mutex);
	switch (cmd) {
	case SMIOC_RING:
		if (copy_from_user(&ring, arg, sizeof(ring)))
			return -EFAULT;
		return sm_ring_open(port, &ring);
	case SMIOC_STATS:
		sm_port_stats(port, &stats);
		return copy_to_user(arg, &stats, sizeof(stats)) ? -EFAULT : 0;
	}
	return port->ops->ioctl(port, cmd, arg);
}

static long sm_file_ioctl(struct file *filp, unsigned int cmd, unsigned long user)
{
	struct sm_port *port = sm_file_port(filp);
	void __user *arg = (void __user *)user;
	long ret;

	switch (cmd) {
	case NIOCCTRL:
		return sm_file_ctrl(filp->private_data, arg);
	case SMIOC_SYNC:
	case NIOCTXSYNC:
	case NIOCRXSYNC:
		return port ? sm_rings_ioctl(port->rings[0], cmd, arg) : -ENXIO;
	}
	/* The others of ours; which of them the port's kind has, it says itself. */
	if (_IOC_TYPE(cmd) != _IOC_TYPE(SMIOC_ATTACH) || _IOC_NR(cmd) < _IOC_NR(SMIOC_ATTACH))
		return -ENOTTY;
	if (!port)
		return -ENXIO;
	mutex_lock(&port->mutex);
	ret = sm_file_ioctl_locked(port, cmd, arg);
	mutex_unlock(&port->mutex);
	return ret;
}

static __poll_t sm_file_poll(struct file *filp, poll_table *wait)
{
	struct sm_file *file = filp->private_data;
	struct sm_port *port;

	poll_wait(filp, &file->wait, wait);	/* before there is a port as well */
	port = sm_file_port(filp);
	return port ? sm_rings_poll(port->rings[0], wait) : EPOLLERR;
}

/* -- mmap ----------------------------------------------------------------------------------- */

static vm_fault_t sm_file_fault(struct vm_fault *vmf)
{
	struct sm_port *port = vmf->vma->vm_private_data;
	size_t ofs = vmf->pgoff << PAGE_SHIFT;
	struct page *page;
	u32 idx;

	if (ofs < port->region_size) {
		page = vmalloc_to_page(port->region + ofs);
	} else {
		idx = (ofs - port->region_size) >> PAGE_SHIFT;
		if (idx >= port->pool.nbufs)
			return VM_FAULT_SIGBUS;
		page = port->pool.buf[idx].page;
	}
	get_page(page);
	vmf->page = page;
	return 0;
}

static const struct vm_operations_struct sm_file_vm_ops = {
	.fault = sm_file_fault,
};

static int sm_file_mmap(struct file *filp, struct vm_area_struct *vma)
{
	struct sm_port *port = sm_file_port(filp);
	u64 start = (u64)vma->vm_pgoff << PAGE_SHIFT;
	u64 end = start + (vma->vm_end - vma->vm_start);
	int err;

	if (!port || !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_flags & VM_EXEC)
		return -EACCES;
	if (start >= SM_STATE_OFFSET) {
		err = port->ops->mmap ? port->ops->mmap(port, vma) : -EINVAL;
		if (err)
			return err;
	} else {
		if (end > port->region_size + (u64)port->pool.nbufs * SM_BUF_SIZE)
			return -EINVAL;
		vma->vm_ops = &sm_file_vm_ops;
	}
	/* A forked child has no use for the mapping, and would keep the port open. */
	vm_flags_set(vma, VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	vm_flags_clear(vma, VM_MAYEXEC);
	vma->vm_private_data = port;
	return 0;
}

const struct file_operations sm_file_fops = {
	.owner		= THIS_MODULE,
	.open		= sm_file_open,
	.release	= sm_file_release,
	.poll		= sm_file_poll,
	.mmap		= sm_file_mmap,
	.unlocked_ioctl	= sm_file_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.llseek		= noop_llseek,
};
