/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_ATTACH_H
#define _SM_ATTACH_H

#include <linux/workqueue.h>

#include "tcp/conn.h"

int sm_attach_init(void);
bool sm_has_default_callbacks(const struct sock *sk);
struct sm_conn *sm_conn_of_locked(struct sock *sk);
struct sm_conn *sm_conn_of_unlocked(struct sock *sk);
struct sm_plug *sm_attach_plug_of(const struct sk_buff *skb);
int sm_attach(struct sm_tcp_port *port, struct socket *sock, struct sm_attach *req);
int sm_attach_conn(struct sm_conn *conn, struct socket *sock, u32 ring);
int sm_detach(struct sm_tcp_port *port, u32 id);
void sm_detach_locked(struct sm_conn *conn);
void sm_detach_all(struct sm_tcp_port *port);
void sm_attach_flush_work(struct work_struct *work);

#endif /* _SM_ATTACH_H */
