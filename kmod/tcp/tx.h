/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_TX_H
#define _SM_TX_H

#include "tcp/conn.h"

int sm_tx_init(struct sm_pair *pair);
void sm_tx_destroy(struct sm_pair *pair);
int sm_tx_sync(struct sm_txring *tx);
void sm_tx_flush_partial(struct sm_conn *conn, bool closing);
void sm_tx_flush_later(struct sm_conn *conn, unsigned long delay);
void sm_tx_await_space(struct sm_conn *conn);
void sm_tx_check_writable(struct sm_conn *conn);
void sm_tx_disable_mtu_probe(struct sock *sk);

/* Is a transmit slot valid?  @slot is the kernel's copy. */
static inline bool sm_slot_valid(const struct sm_slot *slot)
{
	return slot->len && SM_PTR_OFFSET(slot->ptr) + slot->len <= SM_BUF_SIZE &&
	       !SM_PTR_FLAGS(slot->ptr) && !SM_PTR_ERRNO(slot->ptr);
}

#endif /* _SM_TX_H */
