/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_NETLINK_H
#define _SM_NETLINK_H

int sm_netlink_register(void);
void sm_netlink_unregister(void);

#endif /* _SM_NETLINK_H */
