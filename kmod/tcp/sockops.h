/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_SOCKOPS_H
#define _SM_SOCKOPS_H

struct socket;

int sm_ops_replace(struct socket *sock);
void sm_ops_exit(void);

#endif /* _SM_SOCKOPS_H */
