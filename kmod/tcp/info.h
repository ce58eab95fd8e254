/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_INFO_H
#define _SM_INFO_H

#include <linux/idr.h>
#include <linux/llist.h>
#include <linux/timer.h>
#include <linux/types.h>

#include "uapi/stackmap.h"

struct sm_conn;
struct sm_port;
struct vm_area_struct;

/* The records of a port's connections. */
struct sm_infos {
	struct sm_state *record;	/* vmalloc; the application maps it read-only */
	size_t size;			/* whole pages */
	u32 n;
	struct ida used;
};

/* The connections of a pair whose records are written when the timer expires. */
struct sm_info_queue {
	struct llist_head conns;	/* by sm_conn.info_due; has a reference of each */
	struct timer_list timer;	/* pending while conns is not empty */
};

size_t sm_infos_size(u32 n);
int sm_infos_init(struct sm_infos *infos, u32 n);
void sm_infos_destroy(struct sm_infos *infos);
void sm_info_queue_init(struct sm_info_queue *queue);
void sm_info_queue_destroy(struct sm_info_queue *queue);

int sm_info_open(struct sm_conn *conn);
void sm_info_close(struct sm_conn *conn);
void sm_info_update(struct sm_conn *conn);
void sm_info_update_later(struct sm_conn *conn);
int sm_info_mmap(struct sm_port *port, struct vm_area_struct *vma);

#endif /* _SM_INFO_H */
