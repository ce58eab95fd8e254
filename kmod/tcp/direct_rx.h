/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_DIRECT_RX_H
#define _SM_DIRECT_RX_H

#include <linux/netdevice.h>

rx_handler_result_t sm_direct_receive(struct sk_buff **pskb);

#endif /* _SM_DIRECT_RX_H */
