/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_RX_H
#define _SM_RX_H

#include "tcp/conn.h"

void sm_rx_clear_urgent(struct sock *sk);
bool sm_rx_uncredited(const struct sm_conn *conn);
bool sm_rx_drain(struct sm_conn *conn);

#endif /* _SM_RX_H */
