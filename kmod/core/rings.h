/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_RINGS_H
#define _SM_RINGS_H

#include <linux/atomic.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/wait.h>

#include "core/ring.h"
#include "uapi/stackmap.h"

#define SM_RINGS_NAPIS	8	/* NAPI contexts that one range polls */

struct sm_port;

enum sm_counter {
	SM_RX_BYTES, SM_TX_BYTES, SM_RX_SLOTS, SM_SENT, SM_RELEASED_ACK, SM_RELEASED_RESET,
	SM_AGAIN, SM_BAD_SLOT, SM_UNKNOWN_CONN, SM_DEAD_CONN, SM_BAD_RING, SM_STALL, SM_SYNCS,
	SM_DIRECT, SM_DIRECT_RECEIVED, SM_CONNECTIONS, SM_COUNTERS
};

/*
 * A range of a port's rings that one thread syncs together.  A descriptor is bound to one.  The
 * numbers of transmit and of receive rings may differ.
 */
struct sm_rings {
	struct sm_port *port;
	u32 index;			/* of the range, in its port */
	struct mutex mutex;		/* user context: one sync or poll at a time */
	struct sm_txring *tx;
	u32 ntx;
	struct sm_rxring *rx;
	u32 nrx;
	int cpu;			/* where the application synced last */
	unsigned int napi[SM_RINGS_NAPIS]; /* where packets come from; 0: none (hints) */
	u32 napi_turn;			/* the one to poll first */

	wait_queue_head_t *wait;	/* the first range's is its file's */
	wait_queue_head_t own_wait;
	int armed;			/* a poller found nothing and wants a wake-up */

	atomic64_t counter[SM_COUNTERS];
};

void sm_rings_init(struct sm_rings *rings, struct sm_port *port, u32 index);
void sm_rings_close(struct sm_rings *rings);
void sm_rings_wake(struct sm_rings *rings);
void sm_rings_note_napi(struct sm_rings *rings, unsigned int id);
int sm_rings_sync(struct sm_rings *rings, const struct sm_sync *req);
long sm_rings_ioctl(struct sm_rings *rings, unsigned int cmd, void __user *arg);
__poll_t sm_rings_poll(struct sm_rings *rings, struct poll_table_struct *wait);

static inline void sm_count(struct sm_rings *rings, enum sm_counter which, s64 n)
{
	atomic64_add(n, &rings->counter[which]);
}

#endif /* _SM_RINGS_H */
