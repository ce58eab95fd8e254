/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_ZEROCOPY_H
#define _SM_ZEROCOPY_H

#include <linux/skbuff.h>

#include "tcp/conn.h"

#define SM_BATCH_MAX	64	/* buffers in one send */

/* A buffer of which TCP has copied the payload, until its ACK; guarded by the socket lock. */
struct sm_waiting {
	u32 next;	/* of its connection's; 0: the last */
	u32 end;	/* the sequence number after its last byte */
	u32 bytes;	/* payload that TCP has copied from it */
};

/*
 * Buffers of one send that went by reference.  Freed with the last reference of ubuf, in any
 * context.
 */
struct sm_batch {
	struct ubuf_info ubuf;
	struct sm_conn *conn;
	u64 end;		/* conn->end after its last byte */
	u32 bytes;
	u32 n;
	u32 buf[];
};

void sm_zc_pin(struct sm_conn *conn, u32 n);
void sm_zc_unpin_refused(struct sm_conn *conn, u32 n);
void sm_zc_pin_rest(struct sm_conn *conn, u32 idx);

struct sm_batch *sm_zc_batch_alloc(struct sm_conn *conn, u32 n);
void sm_zc_batch_put(struct sm_batch *batch);

void sm_zc_wait_for_ack(struct sm_conn *conn, u32 idx, u32 bytes, u32 end);
void sm_zc_report(struct sm_conn *conn, u64 end);
void sm_zc_acked(struct sm_conn *conn, u32 ack);
void sm_zc_catch_up(struct sm_conn *conn);
bool sm_zc_all_acked(const struct sm_conn *conn);

void sm_zc_drop(struct sm_conn *conn, u32 idx, u32 bytes);
void sm_zc_drop_waiting(struct sm_conn *conn);

#endif /* _SM_ZEROCOPY_H */
