/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_EVENTS_H
#define _SM_EVENTS_H

#include "tcp/port.h"

void sm_events_serve(struct sm_pair *pair);

#endif /* _SM_EVENTS_H */
