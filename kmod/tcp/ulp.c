// SPDX-License-Identifier: GPL-2.0
/*
 * The upper layer protocol that an attached socket has until TCP destroys it.
 *
 * TCP calls an upper layer protocol when a socket is destroyed, orphans included, so this is where
 * buffers that wait for an ACK are found, also after their connection was detached.  It also keeps
 * kTLS, sockmap and listen() off, which refuse a socket that has one, and holds the module.  The
 * socket's struct proto is a copy of TCP's own: IPV6_ADDRFORM refuses a socket with another than
 * that, and its unhash() is called on each way to TCP_CLOSE, disconnect() included.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <net/inet_connection_sock.h>
#include <net/tcp.h>
#include <net/transp_v6.h>

#include "tcp/conn.h"
#include "tcp/direct.h"
#include "tcp/info.h"
#include "tcp/tx.h"
#include "tcp/ulp.h"
#include "tcp/zerocopy.h"

/* icsk_ulp_data.  Guarded by the socket lock. */
struct sm_ulp {
	struct list_head conns;	/* attached, or with bytes that were not acknowledged */
};

struct sm_proto {
	struct proto *base;	/* TCP's own */
	struct proto prot;	/* our copy */
};

static struct sm_proto sm_proto4 __ro_after_init = { .base = &tcp_prot };
#if IS_ENABLED(CONFIG_IPV6)
static struct sm_proto sm_proto6 __ro_after_init = { .base = &tcpv6_prot };
#endif

static void sm_ulp_release(struct sock *sk);

/* setsockopt(TCP_ULP): a socket comes to us by SMIOC_ATTACH. */
static int sm_ulp_init(struct sock *sk)
{
	return -EOPNOTSUPP;
}

static struct tcp_ulp_ops sm_ulp_ops = {
	.name = "stackmap",
	.owner = THIS_MODULE,
	.init = sm_ulp_init,
	.release = sm_ulp_release,
};

static struct sm_ulp *sm_ulp_of(const struct sock *sk)
{
	/* Set and cleared with the socket locked, as it is in all callers. */
	return rcu_dereference_protected(inet_csk(sk)->icsk_ulp_data, true);
}

static struct sm_proto *sm_proto_of(const struct sock *sk)
{
	return container_of(sk->sk_prot, struct sm_proto, prot);
}

/* The connection awaits no ACK, or none will come.  The socket is locked. */
static void sm_ulp_leave(struct sm_conn *conn)
{
	list_del_init(&conn->acks);
	sm_conn_put(conn);
}

/*
 * TCP calls this for each ACK that acknowledges something new, before it frees the acknowledged
 * packets, with the socket locked: its spinlock in softirq, or by its owner (backlog).
 */
static void sm_ulp_acked(struct sock *sk, u32 ack)
{
	struct sm_ulp *ulp = sm_ulp_of(sk);
	struct sm_conn *conn, *next;

	if (list_empty(&ulp->conns))
		return;
	sm_tx_disable_mtu_probe(sk);
	list_for_each_entry_safe(conn, next, &ulp->conns, acks) {
		sm_zc_acked(conn, ack);
		sm_tx_await_space(conn);
		sm_info_update_later(conn);
		if (!conn->attached)
			sm_ulp_detached(conn);
	}
}

/* No more ACKs will come.  The socket is locked, or has no other user. */
static void sm_ulp_end(struct sock *sk)
{
	struct sm_ulp *ulp = sm_ulp_of(sk);
	struct sm_conn *conn, *next;

	list_for_each_entry_safe(conn, next, &ulp->conns, acks) {
		sm_zc_drop_waiting(conn);
		sm_ulp_leave(conn);
	}
}

/* TCP calls this when the socket gets into TCP_CLOSE, with the socket locked. */
static void sm_ulp_unhash(struct sock *sk)
{
	sm_proto_of(sk)->base->unhash(sk);
	sm_ulp_end(sk);
}

/* TCP destroys the socket, and puts the reference of sm_ulp_ops.owner next. */
static void sm_ulp_release(struct sock *sk)
{
	struct sm_ulp *ulp = sm_ulp_of(sk);

	sm_ulp_end(sk);
	clean_acked_data_disable(inet_csk(sk));
	sm_direct_release(sk);
	WRITE_ONCE(sk->sk_prot, sm_proto_of(sk)->base);
	RCU_INIT_POINTER(inet_csk(sk)->icsk_ulp_data, NULL);
	kfree(ulp);
}

/* Our copy of the socket's struct proto; NULL if the socket's is not TCP's own. */
static struct proto *sm_proto_for(const struct sock *sk)
{
	struct sm_proto *p = &sm_proto4;

#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family == AF_INET6)
		p = &sm_proto6;
#endif
	return sk->sk_prot == p->base ? &p->prot : NULL;
}

/* Allocate for sm_ulp_attach(); NULL on failure.  Freed by kfree(). */
struct sm_ulp *sm_ulp_alloc(void)
{
	struct sm_ulp *ulp = kmalloc(sizeof(*ulp), GFP_KERNEL_ACCOUNT);

	if (ulp)
		INIT_LIST_HEAD(&ulp->conns);
	return ulp;
}

/*
 * Give the connection's socket our upper layer protocol, if it has not got it yet.  EBUSY if it has
 * another one, or its struct proto is not TCP's own.  Caller holds the socket lock.
 */
int sm_ulp_attach(struct sm_conn *conn)
{
	struct sock *sk = conn->sk;
	struct inet_connection_sock *icsk = inet_csk(sk);
	struct proto *prot;

	sock_owned_by_me(sk);
	if (icsk->icsk_ulp_ops)
		return icsk->icsk_ulp_ops == &sm_ulp_ops ? 0 : -EBUSY;
	prot = sm_proto_for(sk);
	if (!prot)
		return -EBUSY;
	__module_get(THIS_MODULE);	/* tcp_cleanup_ulp() puts it */
	rcu_assign_pointer(icsk->icsk_ulp_data, conn->ulp);
	conn->ulp = NULL;
	icsk->icsk_ulp_ops = &sm_ulp_ops;
	WRITE_ONCE(sk->sk_prot, prot);	/* system calls read it without the lock */
	sm_direct_attach(sk);
	clean_acked_data_enable(icsk, sm_ulp_acked);
	return 0;
}

/* The connection was attached: tell it of ACKs.  Caller holds the socket lock. */
void sm_ulp_attached(struct sm_conn *conn)
{
	sm_conn_get(conn);
	list_add_tail(&conn->acks, &sm_ulp_of(conn->sk)->conns);
}

/* The connection is detached: if all of its bytes are acknowledged, let it go.  As above. */
void sm_ulp_detached(struct sm_conn *conn)
{
	if (!list_empty(&conn->acks) && sm_zc_all_acked(conn))
		sm_ulp_leave(conn);
}

static void __init sm_proto_init(struct sm_proto *p)
{
	p->prot = *p->base;
	p->prot.unhash = sm_ulp_unhash;
}

int __init sm_ulp_register(void)
{
	sm_proto_init(&sm_proto4);
#if IS_ENABLED(CONFIG_IPV6)
	sm_proto_init(&sm_proto6);
#endif
	return tcp_register_ulp(&sm_ulp_ops);
}

void sm_ulp_unregister(void)
{
	tcp_unregister_ulp(&sm_ulp_ops);
}
