/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_CONN_H
#define _SM_CONN_H

#include <linux/llist.h>
#include <linux/refcount.h>
#include <linux/workqueue.h>
#include <net/sock.h>

#include "tcp/port.h"

#define SM_MAX_CONNS		1048576
#define SM_DEFAULT_CONNS	16384

struct sm_ulp;

enum sm_conn_bit {
	SM_CONN_PENDING,	/* on pair->pending or pair->blocked */
	SM_CONN_BLOCKED,	/* a slot was refused with EAGAIN */
	SM_CONN_WRITABLE,	/* owes the application a WRITABLE event */
	SM_CONN_PAUSED,		/* the application wants no data */
	SM_CONN_INFO_DUE,	/* in pair->info_queue: its record will be written */
	SM_CONN_OPEN_DUE,	/* owes the application an OPEN event before all else */
	SM_CONN_ACKED_DUE,	/* owes the application an ACKED event */
	SM_CONN_EOF_SENT,	/* this event was put into the ring */
	SM_CONN_ERROR_SENT,
	SM_CONN_CLOSED_SENT,
	SM_CONN_UNREADABLE,	/* TCP has payload that cannot be copied */
};

struct sm_conn {
	refcount_t refs;
	struct rcu_head rcu;

	/* set before it can be found, and not changed */
	u32 id;
	u32 record;			/* index of its struct sm_state */
	u32 listener;			/* id of the one that it came from; 0: none */
	struct sm_tcp_port *port;
	struct sm_pair *pair;
	struct sock *sk;

	/* atomic */
	unsigned long bits;		/* enum sm_conn_bit */
	atomic_t pinned;		/* pins of its buffers: those that wait for an ACK */
	atomic_t pinned_bytes;		/* payload in them that TCP has */
	int err;			/* how it failed last; sk_err is gone once read */

	/* guarded by pair->pending_lock */
	struct list_head pending;	/* in one of the pair's lists while SM_CONN_PENDING */

	/* guarded by SM_CONN_INFO_DUE */
	struct llist_node info_due;	/* in pair->info_queue */

	/* guarded by the socket lock */
	bool info_stale;		/* the record is out of date; also used without the lock */
	bool recorded;			/* the record is still this connection's */
	bool attached;			/* read without the lock, too */
	bool shut;			/* shutdown() was called: nothing more may be sent */
	u32 refused_in;			/* sync in which a slot was refused */
	u64 bytes_accepted;
	struct {			/* a slot of which TCP took only a part */
		u32 buf;
		u16 off;
		u16 len;		/* 0: there is none; read with READ_ONCE() elsewhere */
		u16 copied;		/* bytes of it that TCP has copied */
		bool report;		/* it has NS_REPORT */
	} partial;
	u32 waiting;			/* first copied buffer without its ACK; 0: none */
	u32 waiting_last;
	u64 end;			/* position after the last byte that TCP has */
	u64 acked;			/* position of the first unacknowledged byte */
	u64 report_next;		/* position that is reported next; U64_MAX: none */
	u64 report_last;		/* and that of the last slot with NS_REPORT */
	u32 credits;			/* slots that it may open, or SM_CREDITS_UNLIMITED */
	struct list_head acks;		/* in sm_ulp.conns */
	struct sm_ulp *ulp;		/* for a socket without one, until it is attached */
	struct delayed_work flush_work;	/* sends the partial slot when TCP has space */
};

struct sm_conn *sm_conn_alloc(struct sm_tcp_port *port);
struct sm_conn *sm_conn_lookup(struct sm_tcp_port *port, u32 id);
void sm_conn_free(struct sm_conn *conn);
void sm_conn_remove(struct sm_conn *conn);
void sm_conn_schedule(struct sm_conn *conn);
void sm_conn_block(struct sm_conn *conn);

static inline void sm_conn_get(struct sm_conn *conn)
{
	refcount_inc(&conn->refs);
}

/* Any context. */
static inline void sm_conn_put(struct sm_conn *conn)
{
	if (refcount_dec_and_test(&conn->refs))
		sm_conn_free(conn);
}

static inline struct sm_pool *sm_conn_pool(const struct sm_conn *conn)
{
	return &conn->port->base.pool;
}

static inline void sm_conn_count(const struct sm_conn *conn, enum sm_counter which, s64 n)
{
	sm_count(&conn->pair->rings, which, n);
}

#endif /* _SM_CONN_H */
