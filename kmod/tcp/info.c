// SPDX-License-Identifier: GPL-2.0
/*
 * TCP's state of each connection, in memory that the application can read but not write.
 *
 * Records are written where TCP's state changes: after each packet that came in, each send, and
 * each packet that goes out, which a timer may have sent.  The qdisc sees those, and TCP tells of
 * an ACK, while their processing goes on.  So the record is written at its end: when the socket is
 * released by its owner, or by a tasklet, which may run after the socket was unlocked.  A record
 * has a lock of its own therefore.
 */
#include <linux/idr.h>
#include <linux/vmalloc.h>
#include <net/tcp.h>

#include "stackmap.h"

/* Bytes that so many records take, in whole pages. */
size_t sm_states_size(u32 n)
{
	return PAGE_ALIGN(n * sizeof(struct sm_state));
}

int sm_states_init(struct sm_states *states, u32 n)
{
	states->size = sm_states_size(n);
	states->record = __vmalloc(states->size, SM_GFP | __GFP_ZERO);
	if (!states->record)
		return -ENOMEM;
	/* Here, for a lock class of its own: this one is taken in softirq, port->conns' is not. */
	ida_init(&states->used);
	states->n = n;
	return 0;
}

void sm_states_destroy(struct sm_states *states)
{
	if (!states->record)
		return;
	ida_destroy(&states->used);
	vfree(states->record);
	states->record = NULL;
}

static void sm_state_acked(struct tasklet_struct *tasklet);

/* Give a new connection its record; ENOSPC if the port has no more of them. */
int sm_state_open(struct sm_conn *conn)
{
	struct sm_states *states = &conn->port->states;
	int record = ida_alloc_max(&states->used, states->n - 1, GFP_KERNEL);

	if (record < 0)
		return record;
	conn->record = record;
	spin_lock_init(&conn->state_lock);
	conn->recorded = true;
	tasklet_setup(&conn->acked_tasklet, sm_state_acked);
	return 0;
}

/* The record is free for another connection.  Any context; once is enough. */
void sm_state_close(struct sm_conn *conn)
{
	struct sm_states *states = &conn->port->states;
	struct sm_state *rec = &states->record[conn->record];
	unsigned long irq;
	bool recorded;

	spin_lock_irqsave(&conn->state_lock, irq);
	recorded = conn->recorded;
	conn->recorded = false;
	if (recorded) {
		WRITE_ONCE(rec->seq, rec->seq + 1);
		smp_wmb();	/* pairs with the reader's barrier after its first look at seq */
		WRITE_ONCE(rec->id, 0);
		smp_wmb();	/* pairs with the reader's barrier before its second look */
		WRITE_ONCE(rec->seq, rec->seq + 1);
	}
	spin_unlock_irqrestore(&conn->state_lock, irq);
	if (recorded)
		ida_free(&states->used, conn->record);
}

/*
 * Not for KCSAN: in the tasklet the socket may be changing on another CPU, which then
 * writes the record once more.
 */
static __no_kcsan void sm_state_write(struct sm_conn *conn, struct sm_state *rec)
{
	const struct inet_connection_sock *icsk = inet_csk(conn->sk);
	const struct tcp_sock *tp = tcp_sk(conn->sk);

	WRITE_ONCE(rec->id, conn->id);
	WRITE_ONCE(rec->state, inet_sk_state_load(conn->sk));
	WRITE_ONCE(rec->ca_state, icsk->icsk_ca_state);
	WRITE_ONCE(rec->ring, conn->pair->index);
	WRITE_ONCE(rec->mss, tp->mss_cache);
	WRITE_ONCE(rec->bytes_accepted, conn->bytes_accepted);
	WRITE_ONCE(rec->bytes_sent, tp->bytes_sent);
	WRITE_ONCE(rec->bytes_retrans, tp->bytes_retrans);
	WRITE_ONCE(rec->bytes_acked, tp->bytes_acked);
	WRITE_ONCE(rec->bytes_received, tp->bytes_received);
	WRITE_ONCE(rec->bytes_pinned, atomic_read(&conn->pinned_bytes));
	WRITE_ONCE(rec->bufs_pinned, atomic_read(&conn->pinned));
	WRITE_ONCE(rec->bytes_notsent,
		   max_t(int, 0, READ_ONCE(tp->write_seq) - READ_ONCE(tp->snd_nxt)));
	WRITE_ONCE(rec->unacked, tp->packets_out);
	WRITE_ONCE(rec->snd_cwnd, tcp_snd_cwnd(tp));
	WRITE_ONCE(rec->snd_ssthresh, tp->snd_ssthresh);
	WRITE_ONCE(rec->snd_wnd, tp->snd_wnd);
	WRITE_ONCE(rec->rcv_wnd, tp->rcv_wnd);
	WRITE_ONCE(rec->srtt_us, tp->srtt_us >> 3);
	WRITE_ONCE(rec->rttvar_us, tp->mdev_us >> 2);
	WRITE_ONCE(rec->rto_us, jiffies_to_usecs(icsk->icsk_rto));
	WRITE_ONCE(rec->total_retrans, tp->total_retrans);
}

/*
 * Bring the connection's record up to date.  Caller holds a reference; or the lock of the socket
 * while it is attached, because then the port's table has one.  RCU is not enough: the records go
 * with the port, which does not wait for a grace period.
 */
void sm_state_update(struct sm_conn *conn)
{
	struct sm_state *rec = &conn->port->states.record[conn->record];
	unsigned long irq;

	spin_lock_irqsave(&conn->state_lock, irq);
	WRITE_ONCE(conn->record_stale, false);
	if (conn->recorded) {
		WRITE_ONCE(rec->seq, rec->seq + 1);
		smp_wmb();	/* pairs with the reader's barrier after its first look at seq */
		sm_state_write(conn, rec);
		smp_wmb();	/* pairs with the reader's barrier before its second look */
		WRITE_ONCE(rec->seq, rec->seq + 1);
	}
	spin_unlock_irqrestore(&conn->state_lock, irq);
}

static void sm_state_acked(struct tasklet_struct *tasklet)
{
	struct sm_conn *conn = from_tasklet(conn, tasklet, acked_tasklet);

	clear_bit(SM_CONN_ACKED, &conn->bits);
	smp_mb__after_atomic();		/* pairs with the atomic in sm_state_update_later() */
	if (READ_ONCE(conn->record_stale))
		sm_state_update(conn);
	sm_conn_put(conn);
}

/*
 * TCP has begun to process an ACK, or to send a packet, and does not tell when it is done: bring
 * the record up to date when the socket is released by its owner, or else at the end of the
 * softirq, unless received data does so before.  Caller holds a reference, or is an RCU reader.
 */
void sm_state_update_later(struct sm_conn *conn)
{
	WRITE_ONCE(conn->record_stale, true);
	if (sock_owned_by_user_nocheck(conn->sk) ||
	    test_and_set_bit(SM_CONN_ACKED, &conn->bits))
		return;
	if (refcount_inc_not_zero(&conn->refs))
		tasklet_schedule(&conn->acked_tasklet);
}

/* Buffers were released, which may be at any time and place, the connection's end included. */
void sm_state_pins(struct sm_conn *conn)
{
	struct sm_state *rec = &conn->port->states.record[conn->record];
	unsigned long irq;

	spin_lock_irqsave(&conn->state_lock, irq);
	if (conn->recorded) {
		WRITE_ONCE(rec->seq, rec->seq + 1);
		smp_wmb();	/* pairs with the reader's barrier after its first look at seq */
		WRITE_ONCE(rec->bytes_pinned, atomic_read(&conn->pinned_bytes));
		WRITE_ONCE(rec->bufs_pinned, atomic_read(&conn->pinned));
		smp_wmb();	/* pairs with the reader's barrier before its second look */
		WRITE_ONCE(rec->seq, rec->seq + 1);
	}
	spin_unlock_irqrestore(&conn->state_lock, irq);
}
