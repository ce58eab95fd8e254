/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_TX_H
#define _SM_TX_H

#include "tcp/conn.h"

int sm_tx_init(struct sm_pair *pair);
void sm_tx_destroy(struct sm_pair *pair);
int sm_tx_sync(struct sm_txring *tx);
void sm_tx_forget(struct sm_conn *conn);
void sm_tx_flush_partial(struct sm_conn *conn, bool closing);
void sm_tx_flush_later(struct sm_conn *conn, unsigned long delay);
void sm_tx_ask_for_space(struct sm_conn *conn);
void sm_tx_tell_writable(struct sm_conn *conn);
void sm_tx_disable_mtu_probe(struct sock *sk);

/* If something waits to be sent, have TCP say when it has space.  The socket is locked. */
static inline void sm_tx_await_space(struct sm_conn *conn)
{
	if (conn->partial.len || test_bit(SM_CONN_BLOCKED, &conn->bits))
		sm_tx_ask_for_space(conn);
}

/* If the application waits to send, and may now, tell it.  Any context. */
static inline void sm_tx_check_writable(struct sm_conn *conn)
{
	if (test_bit(SM_CONN_BLOCKED, &conn->bits))
		sm_tx_tell_writable(conn);
}

/* Is a transmit slot valid?  @slot is the kernel's copy. */
static inline bool sm_slot_valid(const struct sm_slot *slot)
{
	return slot->len && SM_PTR_OFFSET(slot->ptr) + slot->len <= SM_BUF_SIZE &&
	       !SM_PTR_FLAGS(slot->ptr) && !SM_PTR_ERRNO(slot->ptr);
}

#endif /* _SM_TX_H */
