/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_LISTENER_H
#define _SM_LISTENER_H

#include <linux/refcount.h>
#include <net/sock.h>

#include "tcp/port.h"

struct sm_conn;

struct sm_listener {
	refcount_t refs;
	u32 id;
	u32 ring;			/* for its connections, or SM_RING_ANY */
	struct sm_tcp_port *port;
	struct sock *sk;
	struct rcu_head rcu;
};

int sm_listener_attach(struct sm_tcp_port *port, struct socket *sock, struct sm_attach *req);
int sm_listener_detach(struct sm_tcp_port *port, u32 id);
void sm_listener_detach_all(struct sm_tcp_port *port);
void sm_listener_closed(struct sock *sk);
struct sm_listener *sm_listener_of(struct sock *sk);
int sm_listener_accepted(struct sm_listener *listener, struct sm_conn *conn,
			 struct socket *newsock);
void sm_listener_put(struct sm_listener *listener);

#endif /* _SM_LISTENER_H */
