/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Objects, and the references that keep them:
 *
 *	sm_port		one open /dev/stackmap; kref held by the file, by the file of each pair, by
 *			each connection and listener.  Its memory outlives the file until the last
 *			ACK, because batches hold connections, and until RCU readers that found one
 *			of its connections are done.
 *	sm_pair		a transmit and a receive ring, and their waiters; part of its port
 *	sm_conn		one attached socket; refcount held by the port's table, by the pending
 *			list, by queued work and by each batch.  Holds its sock and its port.
 *	sm_listener	one attached listening socket; refcount held by the port's table and while
 *			in use.  Holds its sock and its port.
 *	sm_ulp		a socket's, from its first attach until TCP destroys it; holds each
 *			connection with bytes that are not acknowledged.
 *	sm_batch	buffers that TCP holds by reference; refcount is that of its ubuf_info.
 *	sm_nic		one NIC; kref held by its qdiscs while it is bound, and by each port on it.
 *
 * Locks, outermost first:
 *
 *	port->mutex		register, attach, detach and close
 *	RTNL			the binding, its name and its users
 *	sm_nics_lock		a mutex: the list of NICs
 *	sm_ports_lock		a mutex: the table of ports
 *	pair->mutex		user context: one sync or poll at a time
 *	lock_sock(conn->sk)	conn->attached, conn->rest, conn->waiting, the socket; in softirq
 *				its spinlock, while it is not owned
 *	sm_family_ops_mutex	the tables of system calls that attached sockets have
 *	pair->rx.lock		the receive ring's kernel side (taken from softirq)
 *	pair->pending_lock	pair->pending (any context)
 *	conn->state_lock	the connection's record (any context)
 *	pool->lock		free list, pins (any context)
 */
#ifndef _SM_STACKMAP_H
#define _SM_STACKMAP_H

#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/interrupt.h>
#include <linux/kref.h>
#include <linux/mutex.h>
#include <linux/refcount.h>
#include <linux/skbuff.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>
#include <net/sock.h>

#include "compat.h"
#include "uapi/stackmap.h"

#define SM_BUF_SIZE		PAGE_SIZE
#define SM_FIRST_BUF		2	/* netmap reserves indices 0 and 1 */
#define SM_MIN_SLOTS		4
#define SM_MAX_SLOTS		16384
#define SM_DEFAULT_SLOTS	1024
#define SM_MAX_PAIRS		64
#define SM_MAX_BUFS		1048576
#define SM_MAX_CONNS		1048576
#define SM_DEFAULT_CONNS	16384
#define SM_SPARES_PER_TX_SLOT	4
#define SM_BATCH_MAX		64	/* buffers in one send */
#define SM_PAIR_NAPIS		8	/* NAPI contexts that one pair polls */

/* Memory that an application asks for: charged to its cgroup; too much is refused, not fatal. */
#define SM_GFP			(GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN)

/* buffers.c */

enum sm_owner {
	SM_FREE,	/* on the free list */
	SM_USER,	/* the application's */
	SM_RX_FILL,	/* in the receive ring, the kernel's */
	SM_TX_PINNED,	/* TCP may still read it */
};

struct sm_buf {
	struct page *page;
	u32 pins;	/* references to it; guarded by pool->lock */
	u32 owner;	/* enum sm_owner */

	/* while it waits for its ACK; guarded by its connection's socket lock */
	u32 next;	/* in conn->waiting; 0: the last */
	u32 end;	/* the sequence number after its last byte */
	u32 bytes;	/* payload that TCP has copied from it */
};

struct sm_pool {
	spinlock_t lock;	/* guards nfree, npinned, free[], pins, owners FREE */
	u32 nbufs;		/* valid indices are SM_FIRST_BUF .. nbufs - 1 */
	u32 nfree;
	u32 npinned;
	u32 *free;
	struct sm_buf *buf;
};

int sm_pool_init(struct sm_pool *pool, u32 count);
void sm_pool_destroy(struct sm_pool *pool);
u32 sm_pool_get(struct sm_pool *pool, u32 *idx, u32 count, enum sm_owner owner);
void sm_pool_put(struct sm_pool *pool, const u32 *idx, u32 count);
int sm_pool_claim(struct sm_pool *pool, u32 idx, enum sm_owner owner);
void sm_pool_give(struct sm_pool *pool, u32 idx);
void sm_pool_pin(struct sm_pool *pool, const u32 *idx, u32 count);
void sm_pool_unpin_refused(struct sm_pool *pool, const u32 *idx, u32 count);
u32 sm_pool_unpin(struct sm_pool *pool, const u32 *idx, u32 count);

static inline void *sm_pool_addr(const struct sm_pool *pool, u32 idx)
{
	return page_address(pool->buf[idx].page);
}

/* qdisc.c */

struct sm_nic {
	struct kref kref;
	struct list_head list;		/* in sm_nics */
	u64 net_cookie;			/* the namespace the NIC is bound in, */
	int ifindex;			/* and its index there: these two are its identity */
	struct Qdisc __rcu *root;	/* NULL while it is not bound; written under RTNL */
	char name[IFNAMSIZ];		/* when it was bound last; guarded by RTNL */
	atomic_t hold_epoch;		/* how often all holds were ended at once */
};

struct sm_pair;

int sm_qdisc_register(void);
void sm_qdisc_unregister(void);
struct sm_nic *sm_nic_get(struct net *net, const char *name);
bool sm_nic_may_open(const struct sm_nic *nic, const struct net *net);
void sm_nic_put(struct sm_nic *nic);
void sm_nic_name(struct sm_nic *nic, char name[IFNAMSIZ], int *ifindex);
void sm_nic_hold(struct sm_pair *pair);
void sm_nic_release(struct sm_pair *pair);

/* state.c */

struct sm_conn;

struct sm_states {
	struct sm_state *record;	/* vmalloc; the application maps it read-only */
	size_t size;			/* whole pages */
	u32 n;
	struct ida used;
};

size_t sm_states_size(u32 n);
int sm_states_init(struct sm_states *states, u32 n);
void sm_states_destroy(struct sm_states *states);
int sm_state_open(struct sm_conn *conn);
void sm_state_close(struct sm_conn *conn);
void sm_state_update(struct sm_conn *conn);
void sm_state_update_later(struct sm_conn *conn);
void sm_state_pins(struct sm_conn *conn);

/* pair.c */

struct sm_group;

struct sm_txring {
	struct sm_ring *ring;	/* mapped by the application */
	u32 n;
	u32 head;		/* last head seen */
	u32 done;		/* first slot not processed yet */
	u32 *spare;		/* buffers for slots of the sync under way */
	u32 nspare;
	bool stalled;		/* no spare was left; wake the application when one is */
	bool refused;		/* the sync under way has refused a slot for now */
	bool gather;		/* it has several slots to send */
	bool holding;		/* so it holds its connections' packets back, */
	int hold_epoch;		/* unless nic->hold_epoch has changed since */
	struct sm_group *group;	/* scratch of the sync under way */
};

/* A slot in kernel memory, until it is published. */
struct sm_rxslot {
	u32 buf;		/* 0: none yet */
	u32 id;
	u16 len;
	u8 flags;
	u8 err;
};

struct sm_rxring {
	spinlock_t lock;	/* guards all below, but for the application's half of ring */
	struct sm_ring *ring;
	u32 n;
	u32 head;		/* first slot the application owns */
	u32 published;		/* first slot it has not seen: ring->tail */
	u32 fill;		/* next slot to fill */
	bool starved;		/* a slot found no buffer; unblock when one is free */
	struct sm_rxslot *slot;
};

enum sm_counter {
	SM_RX_BYTES, SM_TX_BYTES, SM_RX_SLOTS, SM_SENT, SM_RELEASED_ACK, SM_RELEASED_RESET,
	SM_AGAIN, SM_BAD_SLOT, SM_UNKNOWN_CONN, SM_DEAD_CONN, SM_BAD_RING, SM_STALL, SM_SYNCS,
	SM_CONNECTIONS, SM_COUNTERS
};

struct sm_pair {
	struct sm_port *port;
	u32 index;
	struct mutex mutex;		/* see the top of this file */
	struct sm_txring tx;
	struct sm_rxring rx;
	u32 sync_seq;			/* numbers transmit syncs, for conn->refused_in */
	int cpu;			/* where the application synced last */
	unsigned int napi[SM_PAIR_NAPIS]; /* where its connections receive from; 0: none (hints) */
	u32 napi_turn;			/* the one to poll first */

	spinlock_t pending_lock;	/* guards both lists and, with them, SM_CONN_PENDING */
	struct list_head pending;	/* connections that need user context */
	struct list_head blocked;	/* the same, but there was no room for their next slot */
	bool closed;			/* the lists are not served any more */

	wait_queue_head_t *wait;	/* the first pair's is the port's */
	wait_queue_head_t own_wait;
	int armed;			/* a poller found nothing and wants a wake-up */

	atomic64_t counter[SM_COUNTERS];
};

void sm_pair_prepare(struct sm_pair *pair, struct sm_port *port, u32 index);
int sm_pair_init(struct sm_pair *pair, u32 tx_slots, u32 rx_slots);
void sm_pair_destroy(struct sm_pair *pair);
void sm_pair_close(struct sm_pair *pair);
void sm_pair_wake(struct sm_pair *pair);
void sm_pair_unblock(struct sm_pair *pair);
void sm_pair_note_napi(struct sm_pair *pair, const struct sock *sk);
long sm_pair_ioctl(struct sm_pair *pair, unsigned int cmd, void __user *arg);
__poll_t sm_pair_poll(struct sm_pair *pair, struct poll_table_struct *wait);
int sm_pair_open(struct sm_pair *pair);

static inline void sm_count(struct sm_pair *pair, enum sm_counter which, s64 n)
{
	atomic64_add(n, &pair->counter[which]);
}

/* port.c */

struct sm_port {
	struct kref kref;
	struct mutex mutex;		/* see the top of this file */
	struct rcu_work free_work;
	wait_queue_head_t wait;		/* the first pair's; before it is there, too */
	bool registered;		/* set once, under mutex, after all below is valid */

	struct sm_nic *nic;
	u64 net_cookie;			/* the namespace the port belongs to */
	u16 poll_budget;		/* packets of one NAPI poll */
	struct workqueue_struct *wq;	/* may wait for its sockets' locks, hence is its own */
	struct user_struct *user;	/* its locked_vm is charged, if not NULL, */
	unsigned long locked;		/* with so many pages */
	kuid_t uid;			/* of the process that registered it, */
	struct pid *pid;		/* and its pid; informational */

	void *rings;			/* vmalloc: sm_if, transmit rings, receive rings */
	size_t rings_size;		/* whole pages */
	u16 mem_id;
	struct sm_pool pool;
	u32 npairs;
	struct sm_pair *pair;

	struct xarray conns;		/* id -> sm_conn */
	struct xarray listeners;	/* id -> sm_listener */
	u32 next_id;			/* of both */
	struct sm_states states;
};

extern const struct file_operations sm_port_fops;
extern struct workqueue_struct *sm_free_wq;	/* waits for no socket's lock */
extern struct xarray sm_ports;	/* mem_id -> registered sm_port, guarded by sm_ports_lock */
extern struct mutex sm_ports_lock;

void sm_port_put(struct sm_port *port);
void sm_port_stats(struct sm_port *port, struct sm_stats *stats);

static inline void sm_port_get(struct sm_port *port)
{
	kref_get(&port->kref);
}

static inline u32 sm_next(u32 i, u32 n)
{
	return i + 1 == n ? 0 : i + 1;
}

static inline u32 sm_prev(u32 i, u32 n)
{
	return i ? i - 1 : n - 1;
}

/* Slots from a up to b, walking forward. */
static inline u32 sm_distance(u32 a, u32 b, u32 n)
{
	return b >= a ? b - a : b + n - a;
}

/* May an application that owns [from, end) have written this head and this cur? */
static inline bool sm_ring_sound(u32 head, u32 cur, u32 from, u32 end, u32 n)
{
	u32 owned = sm_distance(from, end, n);

	return head < n && cur < n && sm_distance(from, cur, n) <= owned &&
	       sm_distance(from, head, n) <= sm_distance(from, cur, n);
}

/* Is a transmit slot valid?  @slot is the kernel's copy. */
static inline bool sm_slot_sound(const struct sm_slot *slot)
{
	return slot->len && SM_PTR_OFFSET(slot->ptr) + slot->len <= SM_BUF_SIZE &&
	       !SM_PTR_FLAGS(slot->ptr) && !SM_PTR_ERRNO(slot->ptr);
}

/* conn.c */

enum sm_conn_bit {
	SM_CONN_PENDING,	/* on pair->pending or pair->blocked */
	SM_CONN_BLOCKED,	/* a slot was refused with EAGAIN */
	SM_CONN_WRITABLE,	/* owes the application a WRITABLE event */
	SM_CONN_PAUSED,		/* the application wants no data */
	SM_CONN_ACKED,		/* its record will be written, after an ACK */
	SM_CONN_OPEN_DUE,	/* owes the application an OPEN event before all else */
	SM_CONN_EOF_SENT,	/* this event was put into the ring */
	SM_CONN_ERROR_SENT,
	SM_CONN_CLOSED_SENT,
	SM_CONN_UNREADABLE,	/* TCP has payload that cannot be copied */
};

struct sm_conn {
	refcount_t refs;
	u32 id;
	u32 record;			/* index of its struct sm_state */
	struct sm_port *port;
	struct sm_pair *pair;
	u32 listener;			/* id of the one that it came from; 0: none */
	struct sock *sk;
	unsigned long bits;		/* enum sm_conn_bit, atomic */
	struct list_head pending;	/* in one of the pair's lists while SM_CONN_PENDING */
	atomic_t pinned;		/* pins of its buffers: those that wait for an ACK */
	atomic_t pinned_bytes;		/* payload in them that TCP has */
	spinlock_t state_lock;		/* guards its record, and recorded */
	bool recorded;			/* the record is still this connection's */
	u64 bytes_accepted;		/* guarded by the socket lock */

	/* guarded by the socket lock */
	bool attached;
	bool shut;			/* shutdown() was called: nothing more may be sent */
	u32 refused_in;			/* sync in which a slot was refused */
	u32 rest_buf;			/* accepted, but TCP took only part of it */
	u16 rest_off;
	u16 rest_len;			/* 0: no rest */
	u16 rest_copied;		/* bytes of it that TCP has copied */
	u32 waiting;			/* buffers that TCP copied, by ->next; 0: none */
	u32 waiting_last;
	struct list_head acks;		/* in sm_ulp.conns */
	struct sm_ulp *ulp;		/* for a socket without one, until it is attached */
	u64 end;			/* position after what TCP has, counted as acked is */
	u64 acked;			/* position of the first unacknowledged byte */

	int err;			/* how it failed last; sk_err is gone once read */
	struct delayed_work flush_work;	/* sends the rest when TCP has space */
	struct tasklet_struct acked_tasklet;	/* writes the record after an ACK */
	bool record_stale;		/* an ACK was, and the record was not written since */

	struct rcu_head rcu;
};

int sm_conn_init(void);
bool sm_conn_is_tcps_own(const struct sock *sk);
struct sm_conn *sm_conn_alloc(struct sm_port *port);
struct sm_conn *sm_conn_of_locked(struct sock *sk);
int sm_conn_take(struct sm_conn *conn, struct socket *sock, u32 ring);
int sm_conn_attach(struct sm_port *port, struct socket *sock, struct sm_attach *req);
void sm_conn_detach_locked(struct sm_conn *conn);
int sm_check_socket(const struct sm_port *port, const struct socket *sock);
int sm_conn_detach(struct sm_port *port, u32 id);
int sm_conn_rxctl(struct sm_port *port, const struct sm_conn_ctl *req);
void sm_conn_detach_all(struct sm_port *port);
struct sm_conn *sm_conn_lookup(struct sm_port *port, u32 id);
void sm_conn_put(struct sm_conn *conn);
void sm_conn_kick(struct sm_conn *conn);
const struct sm_pair *sm_conn_sent(const struct sk_buff *skb);
void sm_conn_service_pending(struct sm_pair *pair);

static inline void sm_conn_get(struct sm_conn *conn)
{
	refcount_inc(&conn->refs);
}

/* sockops.c */

int sm_ops_replace(struct socket *sock);
void sm_ops_exit(void);

/* ulp.c */

int sm_ulp_register(void);
void sm_ulp_unregister(void);
struct sm_ulp *sm_ulp_alloc(void);
int sm_ulp_take(struct sm_conn *conn);
void sm_ulp_attached(struct sm_conn *conn);
void sm_ulp_detached(struct sm_conn *conn);

/* listen.c */

struct sm_listener {
	refcount_t refs;
	u32 id;
	u32 ring;			/* for its connections, or SM_RING_ANY */
	struct sm_port *port;
	struct sock *sk;
	struct rcu_head rcu;
};

int sm_listener_attach(struct sm_port *port, struct socket *sock, struct sm_attach *req);
int sm_listener_detach(struct sm_port *port, u32 id);
void sm_listener_detach_all(struct sm_port *port);
void sm_listener_closed(struct sock *sk);
struct sm_listener *sm_listener_of(struct sock *sk);
int sm_listener_accepted(struct sm_listener *listener, struct sm_conn *conn,
			 struct socket *newsock);
void sm_listener_put(struct sm_listener *listener);

/* tx.c */

int sm_tx_init(struct sm_pair *pair, u32 slots);
void sm_tx_destroy(struct sm_pair *pair);
int sm_tx_sync(struct sm_pair *pair);
void sm_tx_flush_rest(struct sm_conn *conn, bool closing);
void sm_tx_acked(struct sm_conn *conn, u32 ack);
bool sm_tx_all_acked(const struct sm_conn *conn);
void sm_tx_release_waiting(struct sm_conn *conn);
void sm_tx_no_probes(struct sock *sk);
void sm_tx_check_writable(struct sm_conn *conn);

/* rx.c */

int sm_rx_init(struct sm_pair *pair, u32 slots);
void sm_rx_destroy(struct sm_pair *pair);
int sm_rx_take_back(struct sm_pair *pair);
void sm_rx_publish(struct sm_pair *pair);
void sm_rx_forget_urgent(struct sock *sk);
bool sm_rx_full(struct sm_pair *pair);
bool sm_rx_drain(struct sm_conn *conn);
bool sm_rx_event(struct sm_pair *pair, u32 id, u8 flags, u8 err);
bool sm_rx_open_event(struct sm_pair *pair, u32 id, const struct sm_open *open);
bool sm_rx_ready(struct sm_pair *pair);

/* netlink.c */

int sm_netlink_register(void);
void sm_netlink_unregister(void);

#endif /* _SM_STACKMAP_H */
