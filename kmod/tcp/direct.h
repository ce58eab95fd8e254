/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_DIRECT_H
#define _SM_DIRECT_H

struct sock;

void sm_direct_attach(struct sock *sk);
void sm_direct_release(struct sock *sk);

#endif /* _SM_DIRECT_H */
