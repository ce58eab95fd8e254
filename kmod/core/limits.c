// SPDX-License-Identifier: GPL-2.0
/* Limits for one user and for all of them: numbers of ports, and locked memory. */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>

#include "core/port.h"

#define SM_MAX_USER_PORTS	1024

DEFINE_XARRAY_ALLOC(sm_ports);
DEFINE_MUTEX(sm_ports_lock);	/* guards sm_ports and sm_user_ports */
static DEFINE_XARRAY(sm_user_ports);	/* user -> how many of these are theirs */

/*
 * Reserve the port's number; the port cannot be found by it yet.  netmap's libraries keep mappings
 * by it: cyclic and unique; 0 and 1 are reserved by netmap.  @limit is set if the user has too many
 * ports.
 */
int sm_port_number(struct sm_port *port, u32 *limit)
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

/* The number may be another port's. */
void sm_port_unnumber(struct sm_port *port)
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

/* Charge the port's pages to its user's locked memory, as AF_XDP and io_uring do. */
int sm_port_charge(struct sm_port *port, unsigned long pages)
{
	if (capable(CAP_IPC_LOCK) || sm_port_try_charge(port, pages))
		return 0;
	/* A port that the user has just closed may wait for a grace period: let it go first. */
	rcu_barrier();
	flush_workqueue(sm_free_wq);
	return sm_port_try_charge(port, pages) ? 0 : -ENOMEM;
}

void sm_port_uncharge(struct sm_port *port)
{
	if (!port->user)
		return;
	atomic_long_sub(port->locked, &port->user->locked_vm);
	free_uid(port->user);
	port->user = NULL;
}
