/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A port: rings and buffers that an application maps, and the operations of its kind.
 *
 * Which kind it is follows from the prefix of the name it was registered for ("tcp:").  A kind
 * embeds struct sm_port as its first member, and may have more that it maps, more commands, and
 * more in each range of rings.
 */
#ifndef _SM_PORT_H
#define _SM_PORT_H

#include <linux/kref.h>
#include <linux/mutex.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "core/pool.h"
#include "core/ring.h"
#include "core/rings.h"
#include "uapi/stackmap.h"

#define SM_MAX_RINGS	64	/* of each direction */

struct sm_port;
struct vm_area_struct;

/* The operations of a kind of port.  All but ready() and room() are called in user context. */
struct sm_port_ops {
	const char *prefix;	/* of names; the kind interprets the rest */
	size_t size;		/* of the structure that embeds struct sm_port */

	/* Move submitted slots on, from tx->done to tx->head; caller holds rings->mutex. */
	int (*txsync)(struct sm_txring *tx);
	/* Fill the receive rings, which are published next; caller as above. */
	void (*rxsync)(struct sm_rings *rings);
	/* Would rxsync() find anything?  Any context. */
	bool (*ready)(struct sm_rings *rings);
	/* There is room, or a buffer, for the next slot of a receive ring again.  Any context. */
	void (*room)(struct sm_rxring *rx);

	/*
	 * Check the request and the limits as the kind has to, and find the NIC or whatever else
	 * the port is on.  port->extra_pages is set for pages that init() allocates.
	 */
	int (*open)(struct sm_port *port, const char *name, struct sm_req_register *req,
		    struct sm_opt_limits *limits);
	/* The rings are allocated: make ranges of them by sm_port_set_range(). */
	int (*init)(struct sm_port *port, const struct sm_opt_limits *limits);
	/* The file closes; caller holds port->mutex.  No sync runs, and none will. */
	void (*close)(struct sm_port *port);
	/* Undo open() and init(), as far as they came.  The last reference is gone. */
	void (*destroy)(struct sm_port *port);
	/* Commands of the kind; caller holds port->mutex. */
	long (*ioctl)(struct sm_port *port, unsigned int cmd, void __user *arg);
	/* A mapping at SM_STATE_OFFSET or above; NULL if the kind has none. */
	int (*mmap)(struct sm_port *port, struct vm_area_struct *vma);
};

struct sm_port {
	const struct sm_port_ops *ops;
	/*
	 * Held by the file, by each further descriptor of its rings, and by the kind's own objects.
	 * The memory outlives the file until the last of these is gone, and until RCU readers are
	 * done.
	 */
	struct kref kref;
	struct rcu_work free_work;
	struct mutex mutex;		/* the kind's commands, and close */
	bool open;			/* set before it is found; cleared under mutex */

	void *file;			/* freed with the port, because of: */
	wait_queue_head_t *wait;	/* the file's, and the first range's */
	u64 net_cookie;			/* the namespace the port belongs to */
	u16 poll_budget;		/* packets of one NAPI poll */
	struct user_struct *user;	/* its locked_vm is charged, if not NULL, */
	unsigned long locked;		/* with so many pages */
	unsigned long extra_pages;	/* of the kind's */
	kuid_t uid;			/* of the process that registered it, */
	struct pid *pid;		/* and its pid; informational */
	u16 mem_id;			/* 0: has no number (any more) */

	void *region;			/* vmalloc: sm_if, transmit rings, receive rings */
	size_t region_size;		/* whole pages */
	struct sm_pool pool;		/* mapped after the region */
	atomic_t nwanting;		/* rings that are starved or stalled, or about to be */
	struct sm_txring *tx;
	u32 ntx;
	struct sm_rxring *rx;
	u32 nrx;
	struct sm_rings **rings;	/* the kind's ranges of them */
	u32 nrings;
};

extern struct workqueue_struct *sm_free_wq;	/* waits for no socket's lock */
extern struct xarray sm_ports;	/* mem_id -> published sm_port, guarded by sm_ports_lock */
extern struct mutex sm_ports_lock;

/* port.c */

int sm_port_kind_register(const struct sm_port_ops *ops);
void sm_port_kind_unregister(const struct sm_port_ops *ops);
struct sm_port *sm_port_create(const char *name, struct sm_req_register *req,
			       struct sm_opt_limits *limits, wait_queue_head_t *wait, void *file);
int sm_port_set_range(struct sm_port *port, u32 index, struct sm_rings *rings);
void sm_port_publish(struct sm_port *port);
void sm_port_close(struct sm_port *port);
void sm_port_free(struct sm_port *port);
void sm_port_put(struct sm_port *port);
void sm_port_bufs_freed(struct sm_port *port);
void sm_port_stats(struct sm_port *port, struct sm_stats *stats);

static inline void sm_port_get(struct sm_port *port)
{
	kref_get(&port->kref);
}

/* limits.c */

int sm_port_number(struct sm_port *port, u32 *limit);
void sm_port_unnumber(struct sm_port *port);
int sm_port_charge(struct sm_port *port, unsigned long pages);
void sm_port_uncharge(struct sm_port *port);

#endif /* _SM_PORT_H */
