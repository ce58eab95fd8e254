// SPDX-License-Identifier: GPL-2.0
/*
 * TCP's state of each connection, in memory that the application can read but not write.
 *
 * Records are written where TCP's state changes: after each packet that came in, each send, and
 * each packet that goes out, which a timer may have sent.  The qdisc sees those, and TCP tells of
 * an ACK, while their processing goes on.  So the record is written at its end: when the socket is
 * released by its owner, when received data is put into the ring, or one jiffy later by a timer.  A
 * tasklet would run sooner, but where the softirq has woken a task it would wake ksoftirqd as well,
 * which costs more than all writes of a request's records.  Buffers are released at any time and
 * place, so a record has a lock of its own.
 */
#include <linux/idr.h>
#include <linux/mm.h>
#include <linux/vmalloc.h>
#include <net/tcp.h>

#include "compat.h"
#include "tcp/conn.h"
#include "tcp/info.h"

/* Bytes that so many records take, in whole pages. */
size_t sm_infos_size(u32 n)
{
	return PAGE_ALIGN(n * sizeof(struct sm_state));
}

int sm_infos_init(struct sm_infos *infos, u32 n)
{
	infos->size = sm_infos_size(n);
	infos->record = __vmalloc(infos->size, SM_GFP | __GFP_ZERO);
	if (!infos->record)
		return -ENOMEM;
	/* Here, for a lock class of its own: this one is taken in softirq, port->conns' is not. */
	ida_init(&infos->used);
	infos->n = n;
	return 0;
}

void sm_infos_destroy(struct sm_infos *infos)
{
	if (!infos->record)
		return;
	ida_destroy(&infos->used);
	vfree(infos->record);
	infos->record = NULL;
}

static void sm_info_timeout(struct timer_list *timer);

/* Give a new connection its record; ENOSPC if the port has no more of them. */
int sm_info_open(struct sm_conn *conn)
{
	struct sm_infos *infos = &conn->port->infos;
	int record = ida_alloc_max(&infos->used, infos->n - 1, GFP_KERNEL);

	if (record < 0)
		return record;
	conn->record = record;
	spin_lock_init(&conn->info_lock);
	conn->recorded = true;
	timer_setup(&conn->info_timer, sm_info_timeout, 0);
	return 0;
}

/* Begin to write the connection's record; NULL if it is not the connection's any more. */
static struct sm_state *sm_info_begin(struct sm_conn *conn)
{
	struct sm_state *rec = &conn->port->infos.record[conn->record];

	lockdep_assert_held(&conn->info_lock);
	if (!conn->recorded)
		return NULL;
	WRITE_ONCE(rec->seq, rec->seq + 1);
	smp_wmb();	/* pairs with the reader's barrier after its first look at seq */
	return rec;
}

static void sm_info_end(struct sm_state *rec)
{
	smp_wmb();	/* pairs with the reader's barrier before its second look */
	WRITE_ONCE(rec->seq, rec->seq + 1);
}

/* The record is free for another connection.  Any context; once is enough. */
void sm_info_close(struct sm_conn *conn)
{
	struct sm_state *rec;
	unsigned long irq;

	spin_lock_irqsave(&conn->info_lock, irq);
	rec = sm_info_begin(conn);
	if (rec) {
		WRITE_ONCE(rec->id, 0);
		sm_info_end(rec);
	}
	conn->recorded = false;
	spin_unlock_irqrestore(&conn->info_lock, irq);
	if (rec)
		ida_free(&conn->port->infos.used, conn->record);
}

/* The socket is locked. */
static void sm_info_write(struct sm_conn *conn, struct sm_state *rec)
{
	const struct inet_connection_sock *icsk = inet_csk(conn->sk);
	const struct tcp_sock *tp = tcp_sk(conn->sk);

	WRITE_ONCE(rec->id, conn->id);
	WRITE_ONCE(rec->state, inet_sk_state_load(conn->sk));
	WRITE_ONCE(rec->ca_state, icsk->icsk_ca_state);
	WRITE_ONCE(rec->ring, conn->pair->rings.index);
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
void sm_info_update(struct sm_conn *conn)
{
	struct sm_state *rec;
	unsigned long irq;

	spin_lock_irqsave(&conn->info_lock, irq);
	WRITE_ONCE(conn->info_stale, false);
	rec = sm_info_begin(conn);
	if (rec) {
		sm_info_write(conn, rec);
		sm_info_end(rec);
	}
	spin_unlock_irqrestore(&conn->info_lock, irq);
}

static void sm_info_timeout(struct timer_list *timer)
{
	struct sm_conn *conn = from_timer(conn, timer, info_timer);

	clear_bit(SM_CONN_INFO_DUE, &conn->bits);
	smp_mb__after_atomic();		/* pairs with the atomic in sm_info_update_later() */
	/* If the socket has an owner, sm_ulp_release_cb() follows. */
	bh_lock_sock(conn->sk);
	if (READ_ONCE(conn->info_stale) && !sock_owned_by_user(conn->sk))
		sm_info_update(conn);
	bh_unlock_sock(conn->sk);
	sm_conn_put(conn);
}

/*
 * TCP has begun to process an ACK, or to send a packet, and does not tell when it is done: bring
 * the record up to date when the socket is released by its owner, or else after a jiffy, unless
 * received data does so before.  Caller holds a reference, or is an RCU reader.
 */
void sm_info_update_later(struct sm_conn *conn)
{
	WRITE_ONCE(conn->info_stale, true);
	if (sock_owned_by_user_nocheck(conn->sk) ||
	    test_and_set_bit(SM_CONN_INFO_DUE, &conn->bits))
		return;
	if (refcount_inc_not_zero(&conn->refs))
		mod_timer(&conn->info_timer, jiffies + 1);
}

/* Buffers were released, which may be at any time and place, the connection's end included. */
void sm_info_update_pins(struct sm_conn *conn)
{
	struct sm_state *rec;
	unsigned long irq;

	spin_lock_irqsave(&conn->info_lock, irq);
	rec = sm_info_begin(conn);
	if (rec) {
		WRITE_ONCE(rec->bytes_pinned, atomic_read(&conn->pinned_bytes));
		WRITE_ONCE(rec->bufs_pinned, atomic_read(&conn->pinned));
		sm_info_end(rec);
	}
	spin_unlock_irqrestore(&conn->info_lock, irq);
}

/* -- the mapping ---------------------------------------------------------------------------- */

static vm_fault_t sm_info_fault(struct vm_fault *vmf)
{
	struct sm_infos *infos = &sm_tcp_port(vmf->vma->vm_private_data)->infos;
	size_t ofs = (vmf->pgoff << PAGE_SHIFT) - SM_STATE_OFFSET;

	if (ofs >= infos->size)
		return VM_FAULT_SIGBUS;
	vmf->page = vmalloc_to_page((void *)infos->record + ofs);
	get_page(vmf->page);
	return 0;
}

static const struct vm_operations_struct sm_info_vm_ops = {
	.fault = sm_info_fault,
};

/* The application maps the records, which it cannot write. */
int sm_info_mmap(struct sm_port *port, struct vm_area_struct *vma)
{
	u64 end = ((u64)vma->vm_pgoff << PAGE_SHIFT) + (vma->vm_end - vma->vm_start);

	if (end > SM_STATE_OFFSET + sm_tcp_port(port)->infos.size)
		return -EINVAL;
	if (vma->vm_flags & VM_WRITE)
		return -EACCES;
	vm_flags_clear(vma, VM_MAYWRITE);	/* nor after an mprotect() */
	vma->vm_ops = &sm_info_vm_ops;
	return 0;
}
