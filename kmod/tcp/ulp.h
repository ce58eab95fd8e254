/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_ULP_H
#define _SM_ULP_H

struct sm_conn;
struct sm_ulp;

int sm_ulp_register(void);
void sm_ulp_unregister(void);
struct sm_ulp *sm_ulp_alloc(void);
int sm_ulp_attach(struct sm_conn *conn);
void sm_ulp_attached(struct sm_conn *conn);
void sm_ulp_detached(struct sm_conn *conn);

#endif /* _SM_ULP_H */
