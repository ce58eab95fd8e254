// SPDX-License-Identifier: GPL-2.0
/*
 * TCP's state of each connection, in memory that the application can read but not write.
 *
 * A record is written with the socket locked: when received data was put into the ring, and when a
 * sync has sent.  TCP tells of an ACK, and of a packet that goes out, which a timer may have sent,
 * while its processing goes on; and buffers are released at any time and place.  The records of
 * these connections are written one jiffy later, by a timer of their pair.  A tasklet would run
 * sooner, but where the softirq has woken a task it would wake ksoftirqd as well, which costs more
 * than all writes of a request's records.
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

/* Give a new connection its record; ENOSPC if the port has no more of them. */
int sm_info_open(struct sm_conn *conn)
{
	struct sm_infos *infos = &conn->port->infos;
	int record = ida_alloc_max(&infos->used, infos->n - 1, GFP_KERNEL);

	if (record < 0)
		return record;
	conn->record = record;
	conn->recorded = true;
	return 0;
}

static struct sm_state *sm_info_begin(struct sm_conn *conn)
{
	struct sm_state *rec = &conn->port->infos.record[conn->record];

	WRITE_ONCE(rec->seq, rec->seq + 1);
	smp_wmb();	/* pairs with the reader's barrier after its first look at seq */
	return rec;
}

static void sm_info_end(struct sm_state *rec)
{
	smp_wmb();	/* pairs with the reader's barrier before its second look */
	WRITE_ONCE(rec->seq, rec->seq + 1);
}

/*
 * The record is free for another connection; once is enough.  Caller holds the socket lock or the
 * last reference.
 */
void sm_info_close(struct sm_conn *conn)
{
	struct sm_state *rec;

	if (!conn->recorded)
		return;
	rec = sm_info_begin(conn);
	WRITE_ONCE(rec->id, 0);
	sm_info_end(rec);
	conn->recorded = false;
	ida_free(&conn->port->infos.used, conn->record);
}

static void sm_info_write(const struct sm_conn *conn, struct sm_state *rec)
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
 * Bring the connection's record up to date.  The socket is locked; and the caller holds a
 * reference, or the connection is attached, because then the port's table has one.  RCU is not
 * enough: without a reference the record may be another connection's already.
 */
void sm_info_update(struct sm_conn *conn)
{
	struct sm_state *rec;

	sock_owned_by_me(conn->sk);
	if (!conn->recorded)
		return;
	WRITE_ONCE(conn->info_stale, false);
	smp_mb();	/* before the look at the pins; pairs with sm_zc_released() */
	rec = sm_info_begin(conn);
	sm_info_write(conn, rec);
	sm_info_end(rec);
}

/*
 * The state has changed, or will before the socket is unlocked: bring the record up to date one
 * jiffy later, unless somebody does before.  Any context.  Caller holds a reference, or is an RCU
 * reader.
 */
void sm_info_update_later(struct sm_conn *conn)
{
	struct sm_info_queue *queue = &conn->pair->info_queue;

	WRITE_ONCE(conn->info_stale, true);
	/* A barrier, also where the bit was set; pairs with the one in sm_info_update_due(). */
	if (test_and_set_bit(SM_CONN_INFO_DUE, &conn->bits) || !refcount_inc_not_zero(&conn->refs))
		return;
	if (llist_add(&conn->info_due, &queue->conns))
		mod_timer(&queue->timer, jiffies + 1);
}

/* The connection is not in the queue any more. */
static void sm_info_update_due(struct sm_conn *conn)
{
	bool again;

	clear_bit(SM_CONN_INFO_DUE, &conn->bits);
	smp_mb__after_atomic();		/* pairs with the atomic in sm_info_update_later() */
	if (!READ_ONCE(conn->info_stale))
		return;
	bh_lock_sock(conn->sk);
	again = sock_owned_by_user(conn->sk);
	if (!again)
		sm_info_update(conn);
	bh_unlock_sock(conn->sk);
	if (again)
		sm_info_update_later(conn);
}

static void sm_info_timeout(struct timer_list *timer)
{
	struct sm_info_queue *queue = from_timer(queue, timer, timer);
	struct sm_conn *conn, *next;

	llist_for_each_entry_safe(conn, next, llist_del_all(&queue->conns), info_due) {
		sm_info_update_due(conn);
		sm_conn_put(conn);
	}
}

void sm_info_queue_init(struct sm_info_queue *queue)
{
	init_llist_head(&queue->conns);
	timer_setup(&queue->timer, sm_info_timeout, 0);
}

/* The queue is empty: what is in it holds the port. */
void sm_info_queue_destroy(struct sm_info_queue *queue)
{
	del_timer_sync(&queue->timer);
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
