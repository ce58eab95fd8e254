// SPDX-License-Identifier: GPL-2.0
/*
 * System calls on attached sockets.
 *
 * A socket that was ever attached has our proto_ops until it is closed.  They pass on calls that
 * concern no attached payload, so that they serve a detached socket as TCP's own do.  They are
 * never taken away again, because a system call may be asleep in them: the reference that each such
 * socket holds on the module, through proto_ops.owner, is what makes unloading safe.
 */
#include <linux/module.h>
#include <net/inet_common.h>
#include <net/tcp.h>

#include "compat.h"
#include "tcp/attach.h"
#include "tcp/conn.h"
#include "tcp/info.h"
#include "tcp/listener.h"
#include "tcp/sockops.h"
#include "tcp/tx.h"

/* Made from those of the first socket of each family. */
struct sm_family_ops {
	const struct proto_ops *base;
	struct proto_ops ops;
};

static struct sm_family_ops sm_family_ops[2];
static DEFINE_MUTEX(sm_family_ops_mutex);

/* TCP's own.  A socket with our ops has them, so base was set before. */
static const struct proto_ops *sm_base(const struct socket *sock)
{
	const struct proto_ops *ops = READ_ONCE(sock->ops);

	return container_of(ops, struct sm_family_ops, ops)->base;
}

/* Is the payload ours?  Only a hint without the socket lock. */
static bool sm_attached(struct socket *sock)
{
	struct sock *sk = sock->sk;
	bool attached;

	lock_sock(sk);
	attached = sm_conn_of_locked(sk);
	release_sock(sk);
	return attached;
}

/* A system call may have changed TCP's state. */
static void sm_ops_update_info(struct sock *sk)
{
	struct sm_conn *conn;

	lock_sock(sk);
	conn = sm_conn_of_locked(sk);
	if (conn)
		sm_info_update(conn);
	release_sock(sk);
}

static int sm_ops_release(struct socket *sock)
{
	const struct proto_ops *base = sm_base(sock);
	struct sock *sk = sock->sk;
	struct sm_conn *conn;

	if (!sk)
		return base->release(sock);
	sm_listener_closed(sk);
	lock_sock(sk);
	conn = sm_conn_of_locked(sk);
	if (conn) {
		sm_conn_get(conn);
		sm_detach_locked(conn);
	}
	release_sock(sk);
	if (conn) {
		sm_conn_schedule(conn);
		sm_conn_put(conn);
	}
	return base->release(sock);
}

static int sm_ops_shutdown(struct socket *sock, int how)
{
	struct sock *sk = sock->sk;
	struct sm_conn *conn;
	int err;

	lock_sock(sk);
	conn = sm_conn_of_locked(sk);
	if (conn && (how == SHUT_WR || how == SHUT_RDWR)) {
		sm_tx_flush_partial(conn, true);
		conn->shut = true;	/* or a sync could leave a rest before TCP has its FIN */
	}
	release_sock(sk);
	err = sm_base(sock)->shutdown(sock, how);
	sm_ops_update_info(sk);
	return err;
}

static int sm_ops_connect(struct socket *sock, struct sockaddr *addr, int len, int flags)
{
	return sm_attached(sock) ? -EBUSY : sm_base(sock)->connect(sock, addr, len, flags);
}

/* A socket that is accepted, but not attached, gets TCP's own proto_ops. */
static void sm_ops_restore(const struct socket *sock, struct socket *newsock)
{
	const struct proto_ops *base = sm_base(sock);

	if (newsock->ops != sock->ops)
		return;
	__module_get(base->owner);
	WRITE_ONCE(newsock->ops, base);
	module_put(THIS_MODULE);
}

/* Sockets accepted from an attached listener are attached too. */
static int sm_ops_accept(struct socket *sock, struct socket *newsock, SM_ACCEPT_PARAMS)
{
	struct sm_listener *listener = NULL;
	struct sm_conn *conn;
	int err;

	/* Without a file it is for the kernel itself. */
	if (newsock->file)
		listener = sm_listener_of(sock->sk);
	if (!listener) {
		sm_ops_restore(sock, newsock);
		return sm_pass_accept(sm_base(sock), sock, newsock);
	}
	/* All that may fail for lack of something goes first: the connection is not lost then. */
	conn = sm_conn_alloc(listener->port);
	if (IS_ERR(conn)) {
		err = PTR_ERR(conn);
		goto put_listener;
	}
	err = sm_pass_accept(sm_base(sock), sock, newsock);
	if (!err)
		err = sm_listener_accepted(listener, conn, newsock);
	sm_conn_put(conn);
put_listener:
	sm_listener_put(listener);
	return err;
}

static int sm_ops_listen(struct socket *sock, int backlog)
{
	return sm_attached(sock) ? -EBUSY : sm_base(sock)->listen(sock, backlog);
}

static int sm_ops_sendmsg(struct socket *sock, struct msghdr *msg, size_t len)
{
	return sm_attached(sock) ? -EBUSY : sm_base(sock)->sendmsg(sock, msg, len);
}

/*
 * The error queue has nothing of the stream, but it takes memory from the receive buffer:
 * timestamps that cannot be read would close the window.
 */
static int sm_ops_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags)
{
	if (!(flags & MSG_ERRQUEUE) && sm_attached(sock))
		return -EBUSY;
	return sm_base(sock)->recvmsg(sock, msg, len, flags);
}

static ssize_t sm_ops_splice_read(struct socket *sock, loff_t *ppos, struct pipe_inode_info *pipe,
				  size_t len, unsigned int flags)
{
	if (sm_attached(sock))
		return -EBUSY;
	return sm_base(sock)->splice_read(sock, ppos, pipe, len, flags);
}

#ifdef SM_HAS_SENDPAGE
static ssize_t sm_ops_sendpage(struct socket *sock, struct page *page, int offset, size_t size,
			       int flags)
{
	if (sm_attached(sock))
		return -EBUSY;
	return sm_base(sock)->sendpage(sock, page, offset, size, flags);
}

/* For users in the kernel, with the socket locked. */
static int sm_ops_sendpage_locked(struct sock *sk, struct page *page, int offset, size_t size,
				  int flags)
{
	if (sm_conn_of_locked(sk))
		return -EBUSY;
	return sm_base(sk->sk_socket)->sendpage_locked(sk, page, offset, size, flags);
}
#endif

/* For users in the kernel, with the socket locked. */
static int sm_ops_read_sock(struct sock *sk, read_descriptor_t *desc, sk_read_actor_t recv_actor)
{
	if (sm_conn_of_locked(sk))
		return -EBUSY;
	return sm_base(sk->sk_socket)->read_sock(sk, desc, recv_actor);
}

static int sm_ops_read_skb(struct sock *sk, skb_read_actor_t recv_actor)
{
	return sm_conn_of_locked(sk) ? -EBUSY : sm_base(sk->sk_socket)->read_skb(sk, recv_actor);
}

static int sm_ops_sendmsg_locked(struct sock *sk, struct msghdr *msg, size_t size)
{
	if (sm_conn_of_locked(sk))
		return -EBUSY;
	return sm_base(sk->sk_socket)->sendmsg_locked(sk, msg, size);
}

/* TCP_ULP and IPV6_ADDRFORM change or copy proto_ops: see sm_ops_replace(). */
static int sm_ops_setsockopt(struct socket *sock, int level, int optname, sockptr_t optval,
			     unsigned int optlen)
{
	int err;

	if ((level == SOL_TCP && optname == TCP_ULP) ||
	    (level == SOL_IPV6 && optname == IPV6_ADDRFORM))
		return -EBUSY;
	if (level == SOL_TCP && optname == TCP_REPAIR && sm_attached(sock))
		return -EBUSY;
	err = sm_base(sock)->setsockopt(sock, level, optname, optval, optlen);
	sm_ops_update_info(sock->sk);	/* TCP_NODELAY sends, TCP_MAXSEG changes the mss, ... */
	return err;
}

static int sm_ops_getsockopt(struct socket *sock, int level, int optname, char __user *optval,
			     int __user *optlen)
{
	if (level == SOL_TCP && optname == TCP_ZEROCOPY_RECEIVE && sm_attached(sock))
		return -EBUSY;
	return sm_base(sock)->getsockopt(sock, level, optname, optval, optlen);
}

static void sm_family_ops_init(struct sm_family_ops *f, const struct proto_ops *base)
{
	f->ops = *base;
	f->ops.owner = THIS_MODULE;
	f->ops.release = sm_ops_release;
	f->ops.shutdown = sm_ops_shutdown;
	f->ops.connect = sm_ops_connect;
	f->ops.accept = sm_ops_accept;
	f->ops.listen = sm_ops_listen;
	f->ops.sendmsg = sm_ops_sendmsg;
	f->ops.recvmsg = sm_ops_recvmsg;
	f->ops.splice_read = sm_ops_splice_read;
	f->ops.read_sock = sm_ops_read_sock;
	f->ops.read_skb = sm_ops_read_skb;
	f->ops.sendmsg_locked = sm_ops_sendmsg_locked;
	f->ops.setsockopt = sm_ops_setsockopt;
	f->ops.getsockopt = sm_ops_getsockopt;
#ifdef SM_HAS_SENDPAGE
	f->ops.sendpage = sm_ops_sendpage;
	f->ops.sendpage_locked = sm_ops_sendpage_locked;
#endif
	__module_get(base->owner);
	f->base = base;
}

/* Make the table for the socket's family; EBUSY if its ops are not those of plain TCP. */
static int sm_family_ops_get(struct sm_family_ops *f, const struct proto_ops *base)
{
	int err = 0;

	if (base->family == AF_INET && base != &inet_stream_ops)
		return -EBUSY;
	mutex_lock(&sm_family_ops_mutex);
	if (!f->base)
		sm_family_ops_init(f, base);
	if (f->base != base)
		err = -EBUSY;
	mutex_unlock(&sm_family_ops_mutex);
	return err;
}

/*
 * Give the socket our proto_ops, if it has not got them yet.  EBUSY if its own are not those of
 * plain TCP.  TCP_ULP and IPV6_ADDRFORM change or copy proto_ops, and such a call may wait for the
 * socket lock now: our upper layer protocol, which a connection has first, makes it fail.  A
 * listener is refused by both anyway.  Caller holds the socket lock.
 */
int sm_ops_replace(struct socket *sock)
{
	const struct proto_ops *base = READ_ONCE(sock->ops);
	struct sm_family_ops *f = &sm_family_ops[base->family == AF_INET6];
	int err;

	sock_owned_by_me(sock->sk);
	if (base == &f->ops)
		return 0;
	err = sm_family_ops_get(f, base);
	if (err)
		return err;
	/* close() puts the reference of the owner that it finds then. */
	__module_get(THIS_MODULE);
	WRITE_ONCE(sock->ops, &f->ops);
	module_put(base->owner);
	return 0;
}

/* No socket has our ops any more. */
void sm_ops_exit(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(sm_family_ops); i++)
		if (sm_family_ops[i].base)
			module_put(sm_family_ops[i].base->owner);
}
