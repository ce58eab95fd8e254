// SPDX-License-Identifier: GPL-2.0
/* The code behind the tracepoints. */
#include "core/port.h"
#include "tcp/conn.h"

#define CREATE_TRACE_POINTS
#include "trace.h"
